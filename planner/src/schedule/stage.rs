//! One stage: the roles of its items, its windows and staging buffers, and its cost.

use sstep_autodiff::ReductionState;

use crate::cost::{AxisSums, BodyCost, BodyRates, Staged};
use crate::overlap::{Channels, Moved};
use crate::plan::{BufferIx, Home, ItemRole, Purpose, Stage, StageCost, StageItem, Tier, Value};
use crate::program::NodeIx;
use crate::stage::{Body, Role};
use crate::sweep::Sweeper;

use super::{Scheduler, Slot};

impl Scheduler<'_> {
    pub(super) fn stage(&mut self, at: usize) {
        let (program, machine) = (self.program, self.machine);
        let body = self.bodies[at].clone();
        let (level, grid, prefetches, why) = match &self.order[at] {
            Slot::Flat { level, .. } => (*level, Vec::new(), false, "flat tensors".to_owned()),
            Slot::Loop { decided } => {
                let d = &self.decision.stages[*decided];
                (d.level, d.grid.clone(), d.prefetches, d.why.clone())
            }
        };
        let sums: Vec<AxisSums> = (grid.iter().enumerate())
            .map(|(axis, g)| AxisSums::new(&Sweeper::new(program, &body, axis), g))
            .collect();
        let rates = BodyRates::new(program, machine, &body);
        let cost = BodyCost::new(&rates, &body, &sums.iter().collect::<Vec<_>>());
        let mut channels = Channels::new(machine, cost.secs);
        let (mut disk_read_bytes, mut disk_write_bytes) = (0, 0);
        let first = self.ticks[at].0;
        let mut items = Vec::with_capacity(body.items.len());
        for (i, item) in body.items.iter().enumerate() {
            let n = item.node;
            let resident = self
                .device_home
                .get(&n)
                .filter(|(_, until)| *until >= at)
                .map(|h| h.0);
            let tick = first + 1 + i as u32;
            let mut accumulator = None;
            let mut staging = None;
            let mut stores = Vec::new();
            let (role, value) = match item.role {
                Role::Flat => (ItemRole::Flat, Value::Flat(self.flat(n, tick))),
                Role::Reduce => {
                    let ty = program.node(n).ty;
                    let (from, to) = self.ticks[at];
                    let result = match program.node(n).op.reduction_state(&ty) {
                        ReductionState::InPlace => self.flat(n, from),
                        ReductionState::F64(count) => {
                            let bytes = 8 * count as u64;
                            accumulator =
                                Some(self.buffer(Some(n), Purpose::Accumulator, bytes, (from, to)));
                            self.flat(n, to)
                        }
                    };
                    (ItemRole::Reduce, Value::Flat(result))
                }
                Role::Supply => match (resident, self.beyond_home.get(&n)) {
                    (Some(b), _) => (ItemRole::Supply(Home::Device(b)), Value::Whole(b)),
                    (None, beyond) => {
                        let home = beyond.copied().unwrap_or(Home::Source);
                        match home {
                            Home::Host(_) => {
                                let moved;
                                (staging, moved) = self.staging(at, n, &cost, i, prefetches);
                                channels.fetch(machine, moved);
                            }
                            Home::Disk(_) => disk_read_bytes += cost.copy_bytes[i],
                            Home::Device(_) | Home::Source => {}
                        }
                        (ItemRole::Supply(home), self.window(at, &body, i, &cost))
                    }
                },
                Role::Compute => {
                    let value = match resident.filter(|_| item.target && cost.totals[i].direct) {
                        Some(b) => Value::Whole(b),
                        None => self.window(at, &body, i, &cost),
                    };
                    if item.target {
                        if let (Some(&(b, _)), Value::Window { .. }) =
                            (self.device_home.get(&n), value)
                        {
                            stores.push(Home::Device(b));
                        }
                        if let Some(&home) = self.beyond_home.get(&n) {
                            stores.push(home);
                            if let Home::Disk(_) = home {
                                disk_write_bytes += cost.copy_bytes[i];
                            } else {
                                let moved;
                                (staging, moved) = self.staging(at, n, &cost, i, prefetches);
                                channels.store(machine, moved);
                            }
                        }
                    }
                    (ItemRole::Compute, value)
                }
            };
            items.push(StageItem {
                node: n,
                role,
                value,
                stores,
                accumulator,
                staging,
            });
        }
        let overlaps = items.iter().any(|i: &StageItem| i.staging.is_some());
        let n_tiles = grid.iter().map(|g| g.n_tiles() as u64).product();
        let secs = if overlaps {
            channels.overlapped_secs(n_tiles)
        } else {
            channels.in_turn_secs()
        };
        let disk_secs = machine.fetch_secs(Tier::Disk, disk_read_bytes)
            + machine.store_secs(Tier::Disk, disk_write_bytes);
        let total = StageCost {
            secs: secs + disk_secs,
            compute_secs: channels.compute_secs,
            h2d_secs: channels.h2d.secs(),
            d2h_secs: channels.d2h.secs(),
            disk_secs,
            flops: cost.flops,
            source_bytes: cost.source_bytes,
            h2d_bytes: channels.h2d.bytes(),
            d2h_bytes: channels.d2h.bytes(),
            disk_read_bytes,
            disk_write_bytes,
            high_water_bytes: 0,
        };
        self.stages.push(Stage {
            level,
            items,
            grid,
            cost: total,
            why,
        });
    }

    fn flat(&mut self, n: NodeIx, from: u32) -> BufferIx {
        let bytes = self.program.node(n).ty.bytes();
        let b = self.buffer(Some(n), Purpose::Flat, bytes, (from, from));
        self.flat_home[n.ix()] = Some(b);
        b
    }

    /// The buffer that an item passes on its way from or to the host, throughout the
    /// stage, if its copies run beside kernels; and what is copied.
    fn staging(
        &mut self,
        at: usize,
        node: NodeIx,
        cost: &BodyCost,
        item: usize,
        prefetches: bool,
    ) -> (Option<BufferIx>, Moved) {
        let Staged {
            buffer_bytes,
            exposed_bytes,
        } = cost.staged[item];
        let is_staged = prefetches && buffer_bytes > 0;
        let live = self.ticks[at];
        let buffer =
            is_staged.then(|| self.buffer(Some(node), Purpose::Staging, buffer_bytes, live));
        let moved = Moved {
            bytes: cost.copy_bytes[item],
            exposed_bytes,
            n_staged: if is_staged {
                cost.totals[item].launches
            } else {
                0
            },
        };
        (buffer, moved)
    }

    fn window(&mut self, at: usize, body: &Body, item: usize, cost: &BodyCost) -> Value {
        let (first, last) = self.ticks[at];
        let tick = |i: usize| first + 1 + i as u32;
        let live = if cost.totals[item].kept {
            (first, last)
        } else {
            let readers = body.items[item].readers.iter().map(|e| e.reader);
            (tick(item), tick(readers.max().unwrap_or(item)))
        };
        let node = Some(body.items[item].node);
        let buffer = self.buffer(node, Purpose::Window, cost.window_bytes[item], live);
        Value::Window {
            buffer,
            capacity: cost.totals[item].capacity,
        }
    }
}
