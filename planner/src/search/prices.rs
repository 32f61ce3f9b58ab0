//! What memory is worth, segment by segment.

use crate::plan::Tier;

/// What a second of each channel costs: of kernels, of copies from the host, of copies
/// to it. Where copies run beside kernels only the busiest channel counts, so a second
/// of the others is worth less than one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChannelPrices {
    /// Of kernels, and of whatever else nothing runs beside.
    pub compute: f64,
    /// Of copies from the host to the device.
    pub h2d: f64,
    /// Of copies from the device to the host.
    pub d2h: f64,
}

impl ChannelPrices {
    /// One after the other, every second counts.
    pub const IN_TURN: ChannelPrices = ChannelPrices {
        compute: 1.0,
        h2d: 1.0,
        d2h: 1.0,
    };
    /// A guess for copies beside kernels, until the relaxation tells.
    pub const BESIDE: ChannelPrices = ChannelPrices {
        compute: 1.0,
        h2d: 0.5,
        d2h: 0.5,
    };

    /// Of a second of storing to a tier, and of fetching from it.
    pub(super) fn of(&self, tier: Tier) -> (f64, f64) {
        match tier {
            Tier::Host => (self.d2h, self.h2d),
            // By way of the host, and nothing runs beside.
            Tier::Disk => (self.compute, self.compute),
        }
    }
}

/// Seconds per byte of device memory and of each tier beyond it, per segment, and what
/// seconds themselves are worth.
#[derive(Clone, Debug)]
pub struct Prices {
    pub(super) device: Vec<f64>,
    pub(super) beyond: [Vec<f64>; Tier::COUNT],
    /// Running sums of both.
    device_until: Vec<f64>,
    beyond_until: [Vec<f64>; Tier::COUNT],
    pub(super) channels: ChannelPrices,
}

impl Prices {
    /// Prices per segment; those beyond the device by [`Tier::ix`].
    pub fn new(
        device: Vec<f64>,
        beyond: [Vec<f64>; Tier::COUNT],
        channels: ChannelPrices,
    ) -> Prices {
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
            channels,
        }
    }

    /// The same price everywhere in each tier beyond the device.
    pub(super) fn set_beyond(&mut self, each: [f64; Tier::COUNT]) {
        let n = self.device.len();
        let beyond = each.map(|price| vec![price; n]);
        *self = Prices::new(std::mem::take(&mut self.device), beyond, self.channels);
    }

    /// How many segments there are prices for.
    pub fn n_segments(&self) -> usize {
        self.device.len()
    }

    /// All prices of memory times a factor.
    pub(super) fn times(&self, factor: f64) -> Prices {
        let times = |prices: &Vec<f64>| prices.iter().map(|p| p * factor).collect();
        let beyond = self.beyond.each_ref().map(times);
        Prices::new(times(&self.device), beyond, self.channels)
    }

    /// The same price everywhere on the device, none beyond it.
    pub(super) fn flat(n: usize, device: f64, channels: ChannelPrices) -> Prices {
        Prices::new(vec![device; n], [vec![0.0; n], vec![0.0; n]], channels)
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
