//! A chain against its ops one after the other, bit for bit.

use sstep_autodiff::{
    DType, Form, NormAttrs, NormKind, Num, Op, Region, Saved, Shape, Span, Ty, UnaryKind,
};

use super::*;
use crate::view::{Box4, Layout};
use crate::{State, cpu};

/// Numbers between −1 and 1.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) % n as u64) as usize
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| self.below(2001) as f32 / 1000.0 - 1.0)
            .collect()
    }
}

/// A map in a buffer of its own.
struct Map {
    layout: Layout,
    data: Vec<f32>,
}

/// One link: op, the maps it reads, the map it writes unless it is a reduction.
struct Made {
    op: Op,
    maps: Vec<usize>,
    out: Option<usize>,
    /// Whether the map is written nowhere.
    passes: bool,
}

const CHANNELS: usize = 4;
const GROUPS: usize = 2;

fn norm() -> NormAttrs {
    NormAttrs {
        kind: NormKind::Group(GROUPS),
        eps: Num::new(1e-5),
        frozen: false,
    }
}

fn flat(dims: &[usize]) -> Layout {
    Layout::whole(&Ty {
        dtype: DType::F32,
        shape: Shape::new(dims),
        form: Form::Flat,
    })
}

/// Flat operands of the norms: moments, γ, β, sums.
struct Flats {
    moments: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    sums: Vec<f32>,
    batch: usize,
}

impl Flats {
    /// The inputs of `op`, its maps being given in their order.
    fn inputs<'a>(&'a self, op: &Op, maps: &[In<'a, f32>]) -> Vec<In<'a, f32>> {
        let moments = In::new(flat(&[self.batch, GROUPS, 2]), &self.moments);
        let gamma = In::new(flat(&[CHANNELS]), &self.gamma);
        let beta = In::new(flat(&[CHANNELS]), &self.beta);
        let sums = In::new(flat(&[self.batch, CHANNELS, 2]), &self.sums);
        match op {
            Op::Normalise(_) => vec![maps[0], moments, gamma, beta],
            Op::NormSums(_) => vec![maps[0], moments, maps[1]],
            Op::NormGrad(_) => vec![maps[0], moments, maps[1], gamma, sums],
            _ => maps.to_vec(),
        }
    }
}

fn random_op(rng: &mut Rng) -> (Op, usize, bool) {
    match rng.below(8) {
        0 => (Op::Unary(UnaryKind::Relu), 1, true),
        1 => (
            Op::UnaryGrad {
                kind: UnaryKind::Relu,
                saved: Saved::Output,
            },
            2,
            true,
        ),
        2 => (Op::Add, 2, true),
        3 => (Op::Normalise(norm()), 1, true),
        4 => (Op::NormGrad(norm()), 2, true),
        5 => (Op::Moments(NormKind::Group(GROUPS)), 1, false),
        6 => (Op::NormSums(norm()), 2, false),
        _ => (Op::SumMap { keep_batch: true }, 1, false),
    }
}

#[test]
fn a_chain_computes_what_its_ops_compute() {
    let mut rng = Rng(7);
    for _ in 0..300 {
        let batch = 1 + rng.below(2);
        let extents = [batch, CHANNELS, 1 + rng.below(40), 1 + rng.below(90)];
        let ty = Ty {
            dtype: DType::F32,
            shape: Shape::new(&extents),
            form: Form::Map,
        };
        let mut span = |extent: usize| {
            let lo = rng.below(extent);
            Span::new(lo, lo + 1 + rng.below(extent - lo))
        };
        let region = Region::new(&[span(batch), span(extents[2]), span(extents[3])]);
        // Some buffers hold the whole map, some only what is asked for.
        let map = |rng: &mut Rng| {
            let layout = match rng.below(2) {
                0 => Layout::whole(&ty),
                _ => Layout::dense(&ty, &region),
            };
            let data = rng.values(layout.len);
            Map { layout, data }
        };
        let mut maps: Vec<Map> = (0..3).map(|_| map(&mut rng)).collect();
        let mut links: Vec<Made> = Vec::new();
        for _ in 0..1 + rng.below(6) {
            let (op, n_maps, writes) = random_op(&mut rng);
            let reads = (0..n_maps).map(|_| rng.below(maps.len())).collect();
            let out = writes.then_some(maps.len());
            if writes {
                maps.push(map(&mut rng));
            }
            links.push(Made {
                op,
                maps: reads,
                out,
                passes: writes && rng.below(2) == 0,
            });
        }
        let flats = Flats {
            moments: rng
                .values(batch * GROUPS * 2)
                .iter()
                .map(|x| x.abs())
                .collect(),
            gamma: rng.values(CHANNELS),
            beta: rng.values(CHANNELS),
            sums: rng.values(batch * CHANNELS * 2),
            batch,
        };
        let expected = one_by_one(&maps, &links, &flats, &region);
        let found = at_once(&maps, &links, &flats, &region);
        assert_eq!(expected.1, found.1, "sums of {:?}", ops(&links));
        for (link, (a, b)) in links
            .iter()
            .filter_map(|l| Some((l, l.out?)))
            .map(|(l, out)| (l, (&expected.0[out], &found.0[out])))
        {
            if !link.passes {
                let bits = |xs: &[f32]| xs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(a), bits(b), "{:?} of {:?}", link.op, ops(&links));
            }
        }
    }
}

fn ops(links: &[Made]) -> Vec<&Op> {
    links.iter().map(|l| &l.op).collect()
}

fn state_len(op: &Op, batch: usize) -> usize {
    match op {
        Op::Moments(_) => 3 * batch * GROUPS,
        Op::NormSums(_) => 2 * batch * CHANNELS,
        _ => batch * CHANNELS,
    }
}

type Results = (Vec<Vec<f32>>, Vec<Vec<f64>>);

fn one_by_one(maps: &[Map], links: &[Made], flats: &Flats, region: &Region) -> Results {
    let mut data: Vec<Vec<f32>> = maps.iter().map(|m| m.data.clone()).collect();
    let mut states = Vec::new();
    for link in links {
        let mut written = link.out.map(|out| std::mem::take(&mut data[out]));
        let reads: Vec<In<'_, f32>> = (link.maps.iter())
            .map(|&m| In::new(maps[m].layout, &data[m]))
            .collect();
        let inputs = flats.inputs(&link.op, &reads);
        let job = Job {
            op: &link.op,
            region: Box4::lift(region),
            inputs: &inputs,
            step: 0,
            seed: 0,
            plain: false,
        };
        match (link.out, &mut written) {
            (Some(out), Some(y)) => {
                cpu::run(&job, &mut Out::new(maps[out].layout, y), &mut []);
            }
            _ => {
                let mut state = vec![0.0; state_len(&link.op, flats.batch)];
                let ty = flat(&[1]).ty();
                cpu::accumulate(&job, &mut State::F64(&mut state), &ty, &mut []);
                states.push(state);
            }
        }
        if let (Some(out), Some(y)) = (link.out, written) {
            data[out] = y;
        }
    }
    (data, states)
}

fn at_once(maps: &[Map], links: &[Made], flats: &Flats, region: &Region) -> Results {
    let mut data: Vec<Vec<f32>> = maps.iter().map(|m| m.data.clone()).collect();
    let mut states: Vec<Vec<f64>> = (links.iter())
        .filter(|l| l.out.is_none())
        .map(|l| vec![0.0; state_len(&l.op, flats.batch)])
        .collect();
    let bases: Vec<*mut f32> = data.iter_mut().map(|d| d.as_mut_ptr()).collect();
    // SAFETY: buffers are apart, and a chain writes each piece before it is read.
    let view = |m: usize| unsafe { In::from_raw(maps[m].layout, bases[m].cast_const()) };
    let inputs: Vec<_> = (links.iter())
        .map(|l| {
            let reads: Vec<_> = l.maps.iter().map(|&m| view(m)).collect();
            flats.inputs(&l.op, &reads)
        })
        .collect();
    let from: Vec<Vec<Option<usize>>> = (links.iter())
        .map(|l| {
            let maker = |m: usize| links.iter().position(|l| l.out == Some(m));
            let makers: Vec<_> = l.maps.iter().map(|&m| maker(m)).collect();
            match l.op {
                Op::NormSums(_) | Op::NormGrad(_) => vec![makers[0], None, makers[1]],
                _ => makers,
            }
        })
        .collect();
    let mut states_left = states.iter_mut();
    let mut chain: Vec<Link<'_, f32>> = (links.iter().enumerate())
        .map(|(i, l)| Link {
            job: Job {
                op: &l.op,
                region: Box4::lift(region),
                inputs: &inputs[i],
                step: 0,
                seed: 0,
                plain: false,
            },
            from: &from[i],
            to: match l.out {
                None => Target::State(states_left.next().expect("one per reduction")),
                Some(_) if l.passes => Target::Nowhere,
                // SAFETY: as above.
                Some(m) => Target::Map(unsafe { Out::from_raw(maps[m].layout, bases[m]) }),
            },
        })
        .collect();
    cpu::run_chain(&mut chain);
    drop(chain);
    (data, states)
}

#[test]
fn a_chain_may_write_where_it_has_read() {
    let ty = Ty {
        dtype: DType::F32,
        shape: Shape::new(&[1, 3, 37, 50]),
        form: Form::Map,
    };
    let (layout, region) = (Layout::whole(&ty), Region::whole(&ty));
    let mut data = Rng(3).values(layout.len);
    let expected: Vec<f32> = data.iter().map(|x| (3.0 * x).max(0.0)).collect();
    let base = data.as_mut_ptr();
    // SAFETY: a chain reads each piece before it writes it.
    let (x, y) = unsafe { (In::from_raw(layout, base), Out::from_raw(layout, base)) };
    let (scale, relu) = (
        Op::Scale {
            factor: Num::new(3.0),
        },
        Op::Unary(UnaryKind::Relu),
    );
    let job = |op| Job {
        op,
        region: Box4::lift(&region),
        inputs: std::slice::from_ref(&x),
        step: 0,
        seed: 0,
        plain: false,
    };
    cpu::run_chain(&mut [
        Link {
            job: job(&scale),
            from: &[None],
            to: Target::Nowhere,
        },
        Link {
            job: job(&relu),
            from: &[Some(0)],
            to: Target::Map(y),
        },
    ]);
    assert_eq!(data, expected);
}
