//! Calls carried out together, as far as the arena allows.
//!
//! The plan's buffers are apart while calls follow one another; where calls run piece by
//! piece at once, one that comes later must not write what an earlier one has yet to
//! read. A run of calls is therefore cut where that would be, and the parts follow one
//! another.

use std::ops::Range;

use sstep_autodiff::Form;
use sstep_kernels::{Box4, In, Job, Real, State, cpu};

use super::{Cpu, is_narrow};
use crate::backend::{Backend, Link, Partial, Place, Target};
use crate::error::ExecError;

impl Cpu {
    /// See [`Backend::chain`].
    pub(super) fn run_chain<T: Real>(&mut self, links: &[Link<'_>]) -> Result<(), ExecError> {
        let mut start = 0;
        while start < links.len() {
            let may = |&end: &usize| end == start + 1 || is_apart(links, start..end);
            let end = (start + 1..=links.len()).rev().find(may);
            let end = end.unwrap_or(start + 1);
            match &links[start..end] {
                [link] => match &link.to {
                    Target::Map(out) => Backend::<T>::compute(self, &link.launch, out)?,
                    Target::Reduction(partial, ty) => {
                        Backend::<T>::accumulate(self, &link.launch, partial, ty)?;
                    }
                },
                _ => self.together::<T>(links, start..end),
            }
            start = end;
        }
        Ok(())
    }

    /// Runs a part of a chain whose writes are apart.
    fn together<T: Real>(&mut self, links: &[Link<'_>], part: Range<usize>) {
        // A view of a map that is written nowhere is a shape, and never read.
        let inputs = |link: &Link<'_>| -> Vec<In<'_, T>> {
            link.launch.inputs.iter().map(|p| self.input(p)).collect()
        };
        let inputs: Vec<_> = links[part.clone()].iter().map(inputs).collect();
        let from = |link: &Link<'_>| -> Vec<Option<usize>> {
            let within = |maker: usize| maker.checked_sub(part.start);
            link.from.iter().map(|maker| within((*maker)?)).collect()
        };
        let from: Vec<_> = links[part.clone()].iter().map(from).collect();
        let run = part.clone().zip(&inputs).zip(&from);
        let mut run: Vec<cpu::Link<'_, T>> = run
            .map(|((i, inputs), from)| cpu::Link {
                job: Job {
                    op: links[i].launch.op,
                    region: Box4::lift(&links[i].launch.region),
                    inputs,
                    step: links[i].launch.step,
                    seed: links[i].launch.seed,
                    plain: false,
                },
                from,
                to: match &links[i].to {
                    Target::Map(_) if passes(links, i, &part) => cpu::Target::Nowhere,
                    Target::Map(out) => cpu::Target::Map(self.output(out)),
                    Target::Reduction(partial, _) => match self.state::<T>(partial) {
                        State::F64(state) => cpu::Target::State(state),
                        State::InPlace(_) => unreachable!("such a call runs alone"),
                    },
                },
            })
            .collect();
        cpu::run_chain(&mut run);
    }
}

impl Link<'_> {
    /// The place that it writes, if it writes a map.
    fn written(&self) -> Option<&Place> {
        match &self.to {
            Target::Map(place) => Some(place),
            Target::Reduction(..) => None,
        }
    }
}

/// Whether nothing outside `part` reads what link `i` computes.
fn passes(links: &[Link<'_>], i: usize, part: &Range<usize>) -> bool {
    links[i]
        .last_reader
        .is_some_and(|last| part.contains(&last))
}

/// Whether the calls of `part` may run piece by piece: nothing that one writes overlaps
/// what another writes or reads, but for what an earlier one reads just where a later one
/// then writes.
fn is_apart(links: &[Link<'_>], part: Range<usize>) -> bool {
    let plain = |link: &Link<'_>| {
        let (out, in_place) = match &link.to {
            Target::Map(place) => (place.layout.dtype, false),
            Target::Reduction(partial, ty) => (ty.dtype, matches!(partial, Partial::InPlace(_))),
        };
        !in_place && !is_narrow(&link.launch, out)
    };
    if !links[part.clone()].iter().all(plain) {
        return false;
    }
    let written = |i: usize| links[i].written().filter(|_| !passes(links, i, &part));
    part.clone().all(|writer| {
        let Some(to) = written(writer) else {
            return true;
        };
        let mut others = part.clone().filter(|&other| other != writer);
        others.all(|other| {
            let reads = links[other].launch.inputs.iter().zip(links[other].from);
            let mut in_memory = reads.filter(|(place, maker)| {
                let passed = maker.is_some_and(|m| part.contains(&m) && passes(links, m, &part));
                place.layout.form == Form::Map && **maker != Some(writer) && !passed
            });
            let reads_apart = in_memory
                .all(|(place, _)| !overlap(place, to) || (other < writer && lie_alike(place, to)));
            reads_apart && written(other).is_none_or(|place| !overlap(place, to))
        })
    })
}

/// Whether two places have a byte in common.
fn overlap(a: &Place, b: &Place) -> bool {
    let bytes = |p: &Place| {
        let end = p.offset + (p.layout.len * p.layout.dtype.bytes()) as u64;
        p.offset..end
    };
    let (a, b) = (bytes(a), bytes(b));
    a.start < b.end && b.start < a.end
}

/// Whether every position lies at the same byte in both.
fn lie_alike(a: &Place, b: &Place) -> bool {
    let (x, y) = (&a.layout, &b.layout);
    a.offset == b.offset
        && x.dtype == y.dtype
        && x.dims == y.dims
        && x.strides == y.strides
        && x.present == y.present
}

#[cfg(test)]
mod tests {
    use sstep_autodiff::{DType, Op, Region, Ty, UnaryKind};
    use sstep_kernels::Layout;

    use super::*;
    use crate::backend::Launch;

    fn place(offset: u64) -> Place {
        let ty = Ty {
            dtype: DType::F32,
            shape: sstep_autodiff::Shape::new(&[1, 1, 4]),
            form: Form::Map,
        };
        Place {
            offset,
            layout: Layout::whole(&ty),
        }
    }

    /// Whether two calls that read and write at these bytes may run at once; the second
    /// reads what the first writes if told so.
    fn together(
        first: [u64; 2],
        second: [u64; 2],
        linked: bool,
        last_reader: Option<usize>,
    ) -> bool {
        let op = Op::Unary(UnaryKind::Relu);
        let inputs = [first, second].map(|[from, _]| [place(from)]);
        let from = [[None], [linked.then_some(0)]];
        let links: Vec<Link<'_>> = [first, second]
            .iter()
            .enumerate()
            .map(|(i, &[_, to])| Link {
                launch: Launch {
                    op: &op,
                    region: Region::new(&[]),
                    inputs: &inputs[i],
                    step: 0,
                    seed: 0,
                    workspace: None,
                },
                from: &from[i],
                to: Target::Map(place(to)),
                last_reader: last_reader.filter(|_| i == 0),
            })
            .collect();
        is_apart(&links, 0..2)
    }

    #[test]
    fn calls_run_at_once_where_their_buffers_are_apart() {
        assert!(together([0, 16], [16, 32], true, None));
        // Where the first has read, the second writes: there, or shifted.
        assert!(together([0, 16], [16, 0], true, None));
        assert!(!together([0, 16], [16, 4], true, None));
        // The second reads where the first writes, though not what it writes.
        assert!(!together([0, 16], [20, 48], false, None));
        // Both write the same bytes; but not if the first writes nothing.
        assert!(!together([0, 16], [32, 24], false, None));
        assert!(together([0, 16], [16, 24], true, Some(1)));
    }
}
