//! The plan spelled out: one instruction after the other.
//!
//! Instructions are generated tile by tile and never stored: a step over a
//! gigapixel slide has millions. Overlap axes are the outer loops; the carry
//! axis, if any, is the innermost, so that windows start empty on each strip.

use std::ops::ControlFlow;

use sstep_autodiff::Region;

use crate::plan::{Home, HostIx, ItemRole, Plan, Stage, Value};
use crate::sweep::AxisSweep;

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
    /// Copies a region of a stored map into a window.
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
    /// Copies a region of a value to a home.
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
        loop {
            if carry.is_none_or(|axis| tile[axis] == 0) {
                self.present.fill(None);
            }
            for item in 0..self.stage.items.len() {
                self.item(item, &tile, carry, visit)?;
            }
            // Next tile: the innermost axis turns fastest.
            let mut loops = self.order.iter().rev();
            loop {
                let Some(&axis) = loops.next() else {
                    return ControlFlow::Continue(());
                };
                tile[axis] += 1;
                if tile[axis] < self.sweeps[axis].n_tiles() {
                    break;
                }
                tile[axis] = 0;
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
        let pick = |which: fn(&crate::sweep::Spans) -> sstep_autodiff::Span| {
            let spans: Vec<_> = (tile.iter().enumerate())
                .map(|(a, &t)| which(self.sweeps[a].get(t, item)))
                .collect();
            Region::new(&spans)
        };
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
