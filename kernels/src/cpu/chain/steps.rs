//! Ops over pieces: the loop under a chain.
//!
//! A region is cut into tasks of one channel each, a task into pieces of whole rows; every
//! step runs over a piece before any goes on. Rows that lie together, or in scratch, are
//! computed at once: those of small maps are short.

use std::ops::Range;

use crate::cpu::fold::{Fold, Folded};
use crate::cpu::parts::{Channels, STREAM, each_box, reduce};
use crate::cpu::pointwise::Pointwise;
use crate::cpu::stream;
use crate::real::Real;
use crate::view::{Box4, In, Out};

/// Elements of a piece: those of a few maps stay in the first-level cache together.
const PIECE: usize = 2 << 10;

/// A link, prepared.
pub(super) struct Step<'a, T> {
    pub(super) work: Work<'a, T>,
    /// The maps it reads, one or two.
    pub(super) operands: (Operand<'a, T>, Option<Operand<'a, T>>),
    /// Scratch that holds the result of a piece.
    pub(super) slot: Option<usize>,
}

/// What a step does with a piece.
#[allow(clippy::large_enum_variant, reason = "a chain has a few of them")]
pub(super) enum Work<'a, T> {
    Map {
        op: Pointwise<'a, T>,
        out: Option<Out<'a, T>>,
    },
    Fold(Fold<'a>),
}

/// Where a step finds a map that it reads.
#[derive(Clone, Copy)]
pub(super) enum Operand<'a, T> {
    View(In<'a, T>),
    Slot(usize),
}

/// Where a step finds the maps it reads. What an earlier link has left in memory is in
/// cache and is read from there.
pub(super) fn operands<'a, T: Real>(
    maps: &[usize],
    inputs: &[In<'a, T>],
    from: &[Option<usize>],
    slots: &[Option<usize>],
) -> (Operand<'a, T>, Option<Operand<'a, T>>) {
    let find = |i: usize| {
        let made = from.get(i).copied().flatten();
        match made.and_then(|link| slots[link]) {
            Some(slot) => Operand::Slot(slot),
            None => Operand::View(inputs[i]),
        }
    };
    (find(maps[0]), maps.get(1).map(|&i| find(i)))
}

/// Runs all steps over `region`, piece by piece.
pub(super) fn go<T: Real>(
    steps: &[Step<'_, T>],
    region: &Box4,
    channels: usize,
    states: &mut [&mut [f64]],
) {
    let folds = || {
        steps.iter().filter_map(|step| match &step.work {
            Work::Fold(fold) => Some(fold),
            Work::Map { .. } => None,
        })
    };
    let n_slots = steps
        .iter()
        .filter_map(|s| s.slot)
        .max()
        .map_or(0, |s| s + 1);
    let width = region.s(2).len();
    let piece_rows = match steps {
        // One op alone has nothing to keep.
        [Step { slot: None, .. }] => usize::MAX,
        _ => (PIECE / width.max(1)).max(1),
    };
    let scratch = || Scratch::new(n_slots, piece_rows.min(region.s(1).len()) * width);
    if states.is_empty() {
        return each_box(region, channels, Channels::Each, STREAM, |rows| {
            let mut scratch = scratch();
            let at = [rows.n, rows.c.start, rows.d];
            for h in pieces(rows.h.clone(), piece_rows) {
                scratch.piece(steps, at, h, &rows.w, &mut []);
            }
            scratch.end();
        });
    }
    let n_states = states.len();
    reduce(
        region,
        channels,
        Channels::Each,
        |block| {
            let mut folded = vec![Folded::default(); n_states];
            let mut scratch = scratch();
            for (d, h) in block.runs() {
                for h in pieces(h, piece_rows) {
                    let at = [block.n, block.c.start, d];
                    scratch.piece(steps, at, h, &block.w, &mut folded);
                }
            }
            scratch.end();
            folded
        },
        |block, folded| {
            for ((fold, folded), state) in folds().zip(folded).zip(&mut *states) {
                fold.merge(block.n, block.c.start, channels, folded, state);
            }
        },
    );
}

/// Cuts rows into runs of at most so many.
fn pieces(h: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let Range { start, end } = h;
    let each = move |at: usize| at..at.saturating_add(most).min(end);
    (start..end).step_by(most).map(each)
}

/// What one task computes in.
struct Scratch<T> {
    slots: Vec<Vec<T>>,
    /// Whether anything went past the cache.
    streamed: bool,
}

impl<T: Real> Scratch<T> {
    fn new(n_slots: usize, piece: usize) -> Self {
        Scratch {
            slots: (0..n_slots).map(|_| vec![T::ZERO; piece]).collect(),
            streamed: false,
        }
    }

    /// Runs all steps over rows `h` of `at = [n, c, d]`.
    fn piece(
        &mut self,
        steps: &[Step<'_, T>],
        at: [usize; 3],
        h: Range<usize>,
        w: &Range<usize>,
        folded: &mut [Folded],
    ) {
        let [n, c, _] = at;
        let mut folded = folded.iter_mut();
        for step in steps {
            match &step.work {
                Work::Fold(fold) => {
                    let folded = folded.next().expect("each reduction has a place");
                    if let [Some(a), Some(b)] = self.read(step, at, h.clone(), w, 0) {
                        for (a, b) in a.chunks_exact(w.len()).zip(b.chunks_exact(w.len())) {
                            fold.row(n, c, a, b, folded);
                        }
                        continue;
                    }
                    for (i, h) in h.clone().enumerate() {
                        let [a, b] = self.read(step, at, h..h + 1, w, i).map(row);
                        fold.row(n, c, a, b, folded);
                    }
                }
                Work::Map { op, out } => match step.slot {
                    Some(slot) => {
                        let mut y = std::mem::take(&mut self.slots[slot]);
                        self.map(op, step, at, &h, w, &mut y[..h.len() * w.len()]);
                        if let Some(out) = out {
                            self.streamed = true;
                            for (h, y) in h.clone().zip(y.chunks_exact(w.len())) {
                                // SAFETY: a box is one task's, and no slice of it is alive.
                                stream::copy(y, unsafe { out.row_mut(n, c, at[2], h, w.clone()) });
                            }
                        }
                        self.slots[slot] = y;
                    }
                    None => {
                        let out = out.as_ref().expect("what is stored nowhere has a slot");
                        // SAFETY: a box is one task's; what is read of it by this op
                        // lies elsewhere.
                        if let Some(y) = unsafe { out.rows_mut(at, &h, w) } {
                            self.map(op, step, at, &h, w, y);
                        } else {
                            for (i, h) in h.clone().enumerate() {
                                // SAFETY: as above.
                                let y = unsafe { out.row_mut(n, c, at[2], h, w.clone()) };
                                let [a, b] = self.read(step, at, h..h + 1, w, i).map(row);
                                op.apply(n, c, a, b, y);
                            }
                        }
                    }
                },
            }
        }
    }

    /// Computes all rows of a piece into `y`, at once if the operands allow.
    fn map(
        &self,
        op: &Pointwise<'_, T>,
        step: &Step<'_, T>,
        at: [usize; 3],
        h: &Range<usize>,
        w: &Range<usize>,
        y: &mut [T],
    ) {
        let [n, c, _] = at;
        if let [Some(a), Some(b)] = self.read(step, at, h.clone(), w, 0) {
            return op.apply(n, c, a, b, y);
        }
        for (i, (h, y)) in h.clone().zip(y.chunks_exact_mut(w.len())).enumerate() {
            let [a, b] = self.read(step, at, h..h + 1, w, i).map(row);
            op.apply(n, c, a, b, y);
        }
    }

    /// Rows `h` of a step's operands, of which `i` of this piece come before; `None`
    /// where they are not together. A single operand is given twice.
    fn read<'s>(
        &'s self,
        step: &Step<'s, T>,
        [n, c, d]: [usize; 3],
        h: Range<usize>,
        w: &Range<usize>,
        i: usize,
    ) -> [Option<&'s [T]>; 2] {
        let one = |operand: &Operand<'s, T>| match operand {
            Operand::Slot(slot) => {
                let len = w.len();
                Some(&self.slots[*slot][i * len..][..h.len() * len])
            }
            Operand::View(x) => {
                // A map of one channel is repeated.
                let c = if x.dims()[1] == 1 { 0 } else { c };
                x.rows([n, c, d], &h, w)
            }
        };
        match &step.operands {
            (a, None) => [one(a); 2],
            (a, Some(b)) => [one(a), one(b)],
        }
    }

    /// Makes what went past the cache visible.
    fn end(self) {
        if self.streamed {
            stream::fence();
        }
    }
}

/// A single row, which is always together.
fn row<T>(row: Option<&[T]>) -> &[T] {
    row.expect("a row is in one piece")
}
