//! A profile of a device that nobody has measured, from its published peaks.
//!
//! A call takes what its arithmetic takes at a part of the peak that kernels commonly
//! reach, or what its bytes take, whichever is longer, and some microseconds in any case:
//! a device that is not full is no faster for it. That is coarse. It is meant to rank
//! plans as such a device would until `sstep calibrate` has measured it, and says by its
//! name that nobody has.

use std::collections::BTreeMap;

use super::{ConvClass, ConvRole, Family, Links, Machine, RateTable, Unit};

/// What a vendor publishes of a device, and what commonly comes of it.
struct Peaks {
    /// Additions and multiplications in `f32`, without tensor cores.
    flops_per_sec: f64,
    /// Of device memory.
    bytes_per_sec: f64,
    /// Of the link to the host, one way.
    link_bytes_per_sec: f64,
    /// Parts of these that large calls reach.
    reached_flops: f64,
    reached_bytes: f64,
    reached_link: f64,
    /// Seconds below which no kernel ends.
    kernel_secs: f64,
    /// Seconds until the host has given a call to the driver.
    launch_secs: f64,
}

/// NVIDIA's data sheet of the H200 SXM: 67 TFLOP/s in `f32`, 4.8 TB/s, PCIe 5.0 × 16.
const H200: Peaks = Peaks {
    flops_per_sec: 67e12,
    bytes_per_sec: 4.8e12,
    link_bytes_per_sec: 64e9,
    reached_flops: 0.6,
    reached_bytes: 0.75,
    reached_link: 0.85,
    kernel_secs: 3e-6,
    launch_secs: 5e-6,
};

/// Positions of the columns of convolutions.
const POSITIONS: [f64; 5] = [64.0, 1024.0, 16_384.0, 262_144.0, 4_194_304.0];

/// Channels of maps where only bytes count.
const CHANNELS: f64 = 64.0;

/// Scratch in bytes: what cuDNN's faster algorithms ask for at the sizes of tiles.
const WORKSPACE_BYTES: u64 = 64 << 20;

/// A GPU of the H200's class.
pub(super) fn h200() -> Machine {
    let p = &H200;
    let (disk, link) = (
        Machine::cpu_default(),
        p.link_bytes_per_sec * p.reached_link,
    );
    let links = Links {
        h2d_bytes_per_sec: link,
        d2h_bytes_per_sec: link,
        // Disks and decoders are the host's.
        disk_read_bytes_per_sec: disk.disk_read_bytes_per_sec,
        disk_write_bytes_per_sec: disk.disk_write_bytes_per_sec,
        source_bytes_per_sec: disk.source_bytes_per_sec,
        launch_secs: p.launch_secs,
        copies_overlap: true,
    };
    let name = "a GPU of the H200's class, from published peaks, not measured";
    let tables: BTreeMap<Family, RateTable> = Family::all().map(|f| (f, p.table(f))).collect();
    Machine::new(name.to_owned(), 1, links, WORKSPACE_BYTES, tables)
        .expect("every family has a table of positive numbers")
}

impl Peaks {
    fn table(&self, family: Family) -> RateTable {
        match family {
            Family::Conv(class, role) => self.convolution(class, role),
            other => {
                debug_assert_eq!(other.unit(), Unit::Bytes);
                let sizes = POSITIONS.map(|n| n * CHANNELS * 8.0).to_vec();
                let per_sec = sizes.iter().map(|&bytes| bytes / self.secs(0.0, bytes));
                RateTable {
                    widths: vec![CHANNELS],
                    per_sec: vec![per_sec.collect()],
                    sizes,
                }
            }
        }
    }

    /// Winograd's algorithm has no kernels of its own on such a device: what asks for it
    /// runs as any other convolution.
    fn convolution(&self, class: ConvClass, role: ConvRole) -> RateTable {
        // Taps, and channels of the rows.
        let (taps, widths): (f64, &[f64]) = match class {
            ConvClass::Direct | ConvClass::Winograd | ConvClass::Strided => {
                (9.0, &[16.0, 32.0, 64.0, 128.0, 256.0, 512.0])
            }
            ConvClass::OneByOne => (1.0, &[8.0, 16.0, 64.0, 256.0]),
            ConvClass::Depthwise => (9.0, &[CHANNELS]),
            ConvClass::FewChannels => (49.0, &[7.0, 14.0]),
        };
        let group = |width: f64| match class {
            ConvClass::Depthwise => 1.0,
            _ => width,
        };
        // Weight gradients are one long sum, which fills a device less well.
        let part = match role {
            ConvRole::Forward | ConvRole::Adjoint => 1.0,
            ConvRole::Weight => 0.7,
        };
        let row = |&width: &f64| {
            let one = |positions: &f64| {
                let flops = 2.0 * taps * group(width) * width * positions;
                flops / self.secs(flops / part, 8.0 * width * positions)
            };
            POSITIONS.iter().map(one).collect()
        };
        RateTable {
            widths: widths.to_vec(),
            sizes: POSITIONS.to_vec(),
            per_sec: widths.iter().map(row).collect(),
        }
    }

    /// Seconds of a call that computes and touches so much.
    fn secs(&self, flops: f64, bytes: f64) -> f64 {
        let compute = flops / (self.flops_per_sec * self.reached_flops);
        let memory = bytes / (self.bytes_per_sec * self.reached_bytes);
        compute.max(memory) + self.kernel_secs
    }
}
