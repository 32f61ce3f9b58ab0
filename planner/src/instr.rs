//! The plan spelled out: one instruction after the other.
//!
//! Instructions are generated tile by tile and never stored: a step over a
//! gigapixel slide has millions. Overlap axes are the outer loops; the carry
//! axis, if any, is the innermost, so that windows start empty on each strip.
//!
//! What an item with a staging buffer fetches is copied there one region ahead: the
//! first before the loop, the next as soon as the last has gone to its window, so
//! that the host's link has a whole tile's time for it.

use std::ops::ControlFlow;

use sstep_autodiff::{Region, Span};

use crate::plan::{Home, HostIx, ItemRole, Plan, Stage, Value};
use crate::sweep::{AxisSweep, Spans};

/// One thing to do. Stages and items are positions in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instr {
    /// Clears a reduction.
    Begin {
        /// Stage and item.
        at: At,
    },
    /// Moves what a window keeps to its front; afterwards it holds `keep`.
    Slide {
        /// Stage and item.
        at: At,
        /// Positions kept.
        keep: Region,
    },
    /// Copies a region from the host into an item's staging buffer.
    Prefetch {
        /// Stage and item.
        at: At,
        /// Positions copied.
        region: Region,
    },
    /// Copies a region of a stored map into a window; from the item's staging buffer
    /// if it has one.
    Fetch {
        /// Stage and item.
        at: At,
        /// Positions copied.
        region: Region,
        /// What the window holds afterwards.
        present: Region,
    },
    /// Computes a region of a map.
    Compute {
        /// Stage and item.
        at: At,
        /// Positions computed.
        region: Region,
        /// What the value's buffer holds afterwards.
        present: Region,
    },
    /// Copies a region of a value to a home; to the host by way of the item's staging
    /// buffer if it has one.
    Store {
        /// Stage and item.
        at: At,
        /// Positions copied.
        region: Region,
        /// Where to.
        home: Home,
    },
    /// Adds a region of the domain to a reduction.
    Accumulate {
        /// Stage and item.
        at: At,
        /// Positions of the domain.
        region: Region,
    },
    /// Turns the accumulated values into the result.
    Finish {
        /// Stage and item.
        at: At,
    },
    /// Computes a flat node.
    Flat {
        /// Stage and item.
        at: At,
    },
    /// Gives host memory back.
    Release {
        /// The tensor.
        tensor: HostIx,
    },
    /// Updates a parameter.
    Update {
        /// Position among the program's updates.
        update: u32,
    },
}

/// A stage and one of its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Position among the plan's stages.
    pub stage: u32,
    /// Position among the stage's items.
    pub item: u32,
}

impl Plan {
    /// Calls `visit` with every instruction in order, until it breaks.
    pub fn instructions<B>(
        &self,
        mut visit: impl FnMut(Instr) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        for stage in 0..self.stages.len() {
            self.stage_instructions(stage, &mut visit)?;
        }
        for update in 0..self.program.updates.len() {
            visit(Instr::Update {
                update: update as u32,
            })?;
        }
        ControlFlow::Continue(())
    }

    /// The instructions of one stage.
    pub fn stage_instructions<B>(
        &self,
        stage: usize,
        visit: &mut impl FnMut(Instr) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let this = &self.stages[stage];
        let at = |item: usize| At {
            stage: stage as u32,
            item: item as u32,
        };
        let having = |role: ItemRole| {
            let same =
                move |i: &ItemRole| std::mem::discriminant(i) == std::mem::discriminant(&role);
            this.items
                .iter()
                .enumerate()
                .filter(move |(_, i)| same(&i.role))
                .map(|(i, _)| i)
        };
        for item in having(ItemRole::Flat) {
            visit(Instr::Flat { at: at(item) })?;
        }
        for item in having(ItemRole::Reduce) {
            visit(Instr::Begin { at: at(item) })?;
        }
        if !this.grid.is_empty() {
            TileLoop::new(self, stage).run(visit)?;
        }
        for item in having(ItemRole::Reduce) {
            visit(Instr::Finish { at: at(item) })?;
        }
        for (tensor, host) in self.host.iter().enumerate() {
            if host.live.1 == stage as u32 {
                visit(Instr::Release {
                    tensor: HostIx(tensor as u32),
                })?;
            }
        }
        ControlFlow::Continue(())
    }
}

/// Walks the tiles of a stage.
struct TileLoop<'a> {
    stage: &'a Stage,
    index: u32,
    sweeps: Vec<AxisSweep>,
    /// Axes from the outermost to the innermost loop.
    order: Vec<usize>,
    /// What each item's window holds, in the current strip.
    present: Vec<Option<Region>>,
}

impl<'a> TileLoop<'a> {
    fn new(plan: &'a Plan, index: usize) -> Self {
        let stage = &plan.stages[index];
        let carry = stage.carry_axis();
        let mut order: Vec<usize> = (0..stage.grid.len())
            .filter(|a| Some(*a) != carry)
            .collect();
        order.extend(carry);
        TileLoop {
            stage,
            index: index as u32,
            sweeps: stage.sweeps(&plan.program),
            order,
            present: vec![None; stage.items.len()],
        }
    }

    fn run<B>(&mut self, visit: &mut impl FnMut(Instr) -> ControlFlow<B>) -> ControlFlow<B> {
        let carry = self.stage.carry_axis();
        let mut tile = vec![0; self.sweeps.len()];
        for item in 0..self.stage.items.len() {
            self.prefetch(item, tile.clone(), visit)?;
        }
        loop {
            if carry.is_none_or(|axis| tile[axis] == 0) {
                self.present.fill(None);
            }
            for item in 0..self.stage.items.len() {
                self.item(item, &tile, carry, visit)?;
            }
            if !self.advance(&mut tile) {
                return ControlFlow::Continue(());
            }
        }
    }

    /// Goes on to the next tile, unless it was the last: the innermost axis turns
    /// fastest.
    fn advance(&self, tile: &mut [usize]) -> bool {
        for &axis in self.order.iter().rev() {
            tile[axis] += 1;
            if tile[axis] < self.sweeps[axis].n_tiles() {
                return true;
            }
            tile[axis] = 0;
        }
        false
    }

    /// A region of a tile, by one of its spans per axis.
    fn region(&self, item: usize, tile: &[usize], which: fn(&Spans) -> Span) -> Region {
        let spans: Vec<_> = (tile.iter().enumerate())
            .map(|(a, &t)| which(self.sweeps[a].get(t, item)))
            .collect();
        Region::new(&spans)
    }

    /// Copies the first region that an item fetches in `tile` or, failing that, in a
    /// later one to its staging buffer, if it has one.
    fn prefetch<B>(
        &self,
        item: usize,
        mut tile: Vec<usize>,
        visit: &mut impl FnMut(Instr) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        if self.stage.items[item].staged_fetch().is_none() {
            return ControlFlow::Continue(());
        }
        loop {
            let region = self.region(item, &tile, |s| s.compute);
            if !region.is_empty() {
                let at = At {
                    stage: self.index,
                    item: item as u32,
                };
                return visit(Instr::Prefetch { at, region });
            }
            if !self.advance(&mut tile) {
                return ControlFlow::Continue(());
            }
        }
    }

    fn item<B>(
        &mut self,
        item: usize,
        tile: &[usize],
        carry: Option<usize>,
        visit: &mut impl FnMut(Instr) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let this = &self.stage.items[item];
        let at = At {
            stage: self.index,
            item: item as u32,
        };
        let pick = |which| self.region(item, tile, which);
        let compute = pick(|s| s.compute);
        let emit = pick(|s| s.emit);
        match this.role {
            ItemRole::Flat => return ControlFlow::Continue(()),
            ItemRole::Reduce => {
                if !emit.is_empty() {
                    visit(Instr::Accumulate { at, region: emit })?;
                }
                return ControlFlow::Continue(());
            }
            ItemRole::Supply(_) | ItemRole::Compute => {}
        }
        if compute.is_empty() {
            return ControlFlow::Continue(());
        }
        let mut present = compute;
        if let (Value::Window { .. }, Some(axis)) = (this.value, carry) {
            let window = pick(|s| s.window);
            if let Some(held) = self.present[item] {
                let mut keep = held;
                keep.set(axis, held.span(axis).intersect(window.span(axis)));
                if !keep.is_empty() {
                    if keep != held {
                        visit(Instr::Slide { at, keep })?;
                    }
                    present = keep.hull(&compute);
                }
            }
        }
        if let ItemRole::Supply(home) = this.role {
            if !matches!(home, Home::Device(_)) {
                visit(Instr::Fetch {
                    at,
                    region: compute,
                    present,
                })?;
                let mut next = tile.to_vec();
                if self.advance(&mut next) {
                    self.prefetch(item, next, visit)?;
                }
            }
        } else {
            visit(Instr::Compute {
                at,
                region: compute,
                present,
            })?;
        }
        self.present[item] = Some(present);
        if !emit.is_empty() {
            for &home in &this.stores {
                visit(Instr::Store {
                    at,
                    region: emit,
                    home,
                })?;
            }
        }
        ControlFlow::Continue(())
    }
}
