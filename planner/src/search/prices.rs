//! What memory is worth, segment by segment.

/// Seconds per byte of device and host memory, per segment.
pub struct Prices {
    pub(super) device: Vec<f64>,
    pub(super) host: Vec<f64>,
    /// Running sums of both.
    device_until: Vec<f64>,
    host_until: Vec<f64>,
}

impl Prices {
    /// Prices per segment.
    pub fn new(device: Vec<f64>, host: Vec<f64>) -> Prices {
        let sums = |prices: &[f64]| {
            let mut until = Vec::with_capacity(prices.len() + 1);
            let mut sum = 0.0;
            until.push(sum);
            for p in prices {
                sum += p;
                until.push(sum);
            }
            until
        };
        Prices {
            device_until: sums(&device),
            host_until: sums(&host),
            device,
            host,
        }
    }

    /// All prices times a factor.
    pub(super) fn times(&self, factor: f64) -> Prices {
        let times = |prices: &[f64]| prices.iter().map(|p| p * factor).collect();
        Prices::new(times(&self.device), times(&self.host))
    }

    /// The same price everywhere on the device, none on the host.
    pub(super) fn flat(n: usize, device: f64) -> Prices {
        Prices::new(vec![device; n], vec![0.0; n])
    }

    /// Price of a device byte during segments `from..to`.
    pub(super) fn over(&self, from: usize, to: usize) -> f64 {
        self.device_until[to.max(from)] - self.device_until[from]
    }

    /// Price of a host byte during segments `from..to`.
    pub(super) fn host_over(&self, from: usize, to: usize) -> f64 {
        self.host_until[to.max(from)] - self.host_until[from]
    }
}
