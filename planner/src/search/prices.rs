//! What memory is worth, segment by segment.

use crate::plan::Tier;

/// Seconds per byte of device memory and of each tier beyond it, per segment.
pub struct Prices {
    pub(super) device: Vec<f64>,
    pub(super) beyond: [Vec<f64>; Tier::COUNT],
    /// Running sums of both.
    device_until: Vec<f64>,
    beyond_until: [Vec<f64>; Tier::COUNT],
}

impl Prices {
    /// Prices per segment; those beyond the device by [`Tier::ix`].
    pub fn new(device: Vec<f64>, beyond: [Vec<f64>; Tier::COUNT]) -> Prices {
        let sums = |prices: &Vec<f64>| {
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
            beyond_until: beyond.each_ref().map(sums),
            device,
            beyond,
        }
    }

    /// All prices times a factor.
    pub(super) fn times(&self, factor: f64) -> Prices {
        let times = |prices: &Vec<f64>| prices.iter().map(|p| p * factor).collect();
        Prices::new(times(&self.device), self.beyond.each_ref().map(times))
    }

    /// The same price everywhere on the device, none beyond it.
    pub(super) fn flat(n: usize, device: f64) -> Prices {
        Prices::new(vec![device; n], [vec![0.0; n], vec![0.0; n]])
    }

    /// Price of a device byte during segments `from..to`.
    pub(super) fn over(&self, from: usize, to: usize) -> f64 {
        self.device_until[to.max(from)] - self.device_until[from]
    }

    /// Price of a byte of a tier during segments `from..to`.
    pub(super) fn beyond_over(&self, tier: Tier, from: usize, to: usize) -> f64 {
        let until = &self.beyond_until[tier.ix()];
        until[to.max(from)] - until[from]
    }
}
