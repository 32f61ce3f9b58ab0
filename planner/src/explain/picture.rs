//! A plan over time: when each stage runs, what lies where in the arena, and
//! which stored map goes from which stage to which.

use crate::plan::{Home, ItemRole, Plan, Purpose, Value};

/// A buffer of the arena while it is needed.
#[derive(Clone, Debug, PartialEq)]
pub struct BufferSpan {
    /// The tensor it holds, or what it is if it holds none.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// First and last tick, inclusive.
    pub ticks: (u32, u32),
    /// Offset in the arena in bytes.
    pub offset: u64,
    /// Size in bytes.
    pub bytes: u64,
}

/// A stored map that a stage reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Stage that stored it; `None` for an image.
    pub from: Option<usize>,
    /// Stage that reads it.
    pub to: usize,
    /// Where it lies: device, host, disk or source.
    pub place: &'static str,
    /// Its size in bytes, whole.
    pub bytes: u64,
}

/// A plan over time. Ticks are the plan's: one per item of a stage, one before
/// and one after; a stage's ticks are spread evenly over its predicted seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// Begin and end of each stage in predicted seconds.
    pub stage_secs: Vec<(f64, f64)>,
    /// First and last tick of each stage.
    pub stage_ticks: Vec<(u32, u32)>,
    /// Ticks of the whole step.
    pub n_ticks: u32,
    /// The buffers of the arena, in the order of the plan.
    pub buffers: Vec<BufferSpan>,
    /// Stored maps by reader.
    pub links: Vec<Link>,
    /// Bytes of buffers needed in each stage at most, without gaps between them.
    pub live_bytes: Vec<u64>,
    /// Bytes in host memory in each stage.
    pub host_bytes: Vec<u64>,
    /// Bytes in the spill file in each stage.
    pub disk_bytes: Vec<u64>,
}

impl Plan {
    /// The plan over time.
    pub fn picture(&self) -> Picture {
        let mut stage_secs = Vec::with_capacity(self.stages.len());
        let mut stage_ticks = Vec::with_capacity(self.stages.len());
        let (mut secs, mut tick) = (0.0, 1);
        for stage in &self.stages {
            stage_secs.push((secs, secs + stage.cost.secs));
            secs += stage.cost.secs;
            let last = tick + stage.items.len() as u32 + 1;
            stage_ticks.push((tick, last));
            tick = last + 1;
        }
        let buffers = self.buffers.iter().map(|b| BufferSpan {
            name: b.node.map_or_else(
                || "kernel scratch".to_owned(),
                |n| self.program.node(n).name.clone(),
            ),
            purpose: b.purpose,
            ticks: b.live,
            offset: b.offset,
            bytes: b.bytes,
        });
        Picture {
            live_bytes: self.live_bytes(&stage_ticks, tick),
            host_bytes: self.bytes_by_stage(self.host.iter().map(|h| (h.bytes, h.live))),
            disk_bytes: self.bytes_by_stage(self.disk.iter().map(|d| (d.bytes, d.live))),
            buffers: buffers.collect(),
            links: self.links(),
            stage_secs,
            stage_ticks,
            n_ticks: tick + 1,
        }
    }

    /// Sum of the bytes that are live in each stage.
    fn bytes_by_stage(&self, tensors: impl Iterator<Item = (u64, (u32, u32))> + Clone) -> Vec<u64> {
        let in_stage = |s: u32| {
            let live = tensors
                .clone()
                .filter(|(_, (from, to))| *from <= s && s <= *to);
            live.map(|(bytes, _)| bytes).sum()
        };
        (0..self.stages.len() as u32).map(in_stage).collect()
    }

    /// Largest sum of live buffers within each stage.
    fn live_bytes(&self, stage_ticks: &[(u32, u32)], last: u32) -> Vec<u64> {
        let mut change = vec![0i128; last as usize + 2];
        for b in &self.buffers {
            change[b.live.0.min(last) as usize] += i128::from(b.bytes);
            change[b.live.1.min(last) as usize + 1] -= i128::from(b.bytes);
        }
        let mut live = 0;
        let sums: Vec<i128> = (change.iter())
            .map(|c| {
                live += c;
                live
            })
            .collect();
        let most = |&(from, to): &(u32, u32)| {
            let within = sums[from as usize..=to as usize].iter();
            within.copied().max().unwrap_or(0) as u64
        };
        stage_ticks.iter().map(most).collect()
    }

    fn links(&self) -> Vec<Link> {
        let mut links = Vec::new();
        for (to, stage) in self.stages.iter().enumerate() {
            for item in &stage.items {
                let ItemRole::Supply(home) = item.role else {
                    continue;
                };
                let stores = |s: &crate::plan::Stage| {
                    s.items.iter().any(|i| {
                        let in_place = matches!(i.value, Value::Whole(_));
                        let makes = i.role == ItemRole::Compute && i.node == item.node;
                        makes && (in_place || !i.stores.is_empty())
                    })
                };
                let node = self.program.node(item.node);
                links.push(Link {
                    name: node.name.clone(),
                    from: self.stages[..to].iter().rposition(stores),
                    to,
                    place: match home {
                        Home::Device(_) => "device",
                        Home::Host(_) => "host",
                        Home::Disk(_) => "disk",
                        Home::Source => "source",
                    },
                    bytes: node.ty.bytes(),
                });
            }
        }
        links
    }
}
