//! Tensors in memory and how a test runs an op on them.

use proptest::test_runner::Config;
use sstep_autodiff::{DType, Form, Op, Region, Shape, Span, Ty, infer};
use sstep_kernels::{Box4, In, Job, Layout, Out, Real, cpu};

/// A seeded stream of numbers (an xorshift generator).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng(seed ^ 0x9e37_79b9_7f4a_7c15 | 1);
        for _ in 0..8 {
            rng.next();
        }
        rng
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// In `lo..=hi`.
    pub(crate) fn int(&mut self, lo: usize, hi: usize) -> usize {
        lo + (self.next() >> 16) as usize % (hi - lo + 1)
    }

    /// In −1..1.
    pub(crate) fn real(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.int(0, 99) < percent
    }
}

/// `cases` random seeds; a failure prints its own, which is all there is to it.
pub(crate) fn random(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    }
}

/// A whole tensor; its values are doubles whatever type an op is run in.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) ty: Ty,
    pub(crate) data: Vec<f64>,
}

impl Tensor {
    pub(crate) fn new(form: Form, dims: &[usize], data: Vec<f64>) -> Self {
        let ty = Ty {
            dtype: DType::F64,
            shape: Shape::new(dims),
            form,
        };
        assert_eq!(ty.shape.elems(), data.len());
        Tensor { ty, data }
    }

    pub(crate) fn map(dims: &[usize], data: Vec<f64>) -> Self {
        Tensor::new(Form::Map, dims, data)
    }

    pub(crate) fn flat(dims: &[usize], data: Vec<f64>) -> Self {
        Tensor::new(Form::Flat, dims, data)
    }

    /// Values in −2..2.
    pub(crate) fn random(form: Form, dims: &[usize], rng: &mut Rng) -> Self {
        let n = dims.iter().product();
        Tensor::new(form, dims, (0..n).map(|_| 2.0 * rng.real()).collect())
    }

    pub(crate) fn random_map(dims: &[usize], rng: &mut Rng) -> Self {
        Tensor::random(Form::Map, dims, rng)
    }

    pub(crate) fn random_flat(dims: &[usize], rng: &mut Rng) -> Self {
        Tensor::random(Form::Flat, dims, rng)
    }

    /// Extents `[N, C, D, H, W]`.
    pub(crate) fn dims5(&self) -> [usize; 5] {
        let dims = self.ty.shape.dims();
        let mut all = [1; 5];
        all[..dims.len().min(2)].copy_from_slice(&dims[..dims.len().min(2)]);
        for (i, &d) in dims.iter().skip(2).rev().enumerate() {
            all[4 - i] = d;
        }
        all
    }

    /// Element at `[n, c, d, h, w]`, if there is one.
    pub(crate) fn get(&self, at: [isize; 5]) -> Option<f64> {
        let dims = self.dims5();
        let mut i = 0;
        for (&a, &d) in at.iter().zip(&dims) {
            if a < 0 || a >= d as isize {
                return None;
            }
            i = i * d + a as usize;
        }
        Some(self.data[i])
    }

    pub(crate) fn at(&self, at: [usize; 5]) -> f64 {
        self.get(at.map(|a| a as isize)).expect("inside")
    }

    /// A tensor of the given type whose elements are a function of place.
    pub(crate) fn build(ty: Ty, mut f: impl FnMut([usize; 5]) -> f64) -> Self {
        let mut out = Tensor {
            ty,
            data: Vec::new(),
        };
        let [n, c, d, h, w] = out.dims5();
        for i in 0..n * c * d * h * w {
            let place = [
                i / (c * d * h * w),
                i / (d * h * w) % c,
                i / (h * w) % d,
                i / w % h,
                i % w,
            ];
            out.data.push(f(place));
        }
        out
    }

    pub(crate) fn typed<T: Real>(&self) -> (Ty, Vec<T>) {
        let data = self.data.iter().map(|&x| T::from_f64(x)).collect();
        (
            Ty {
                dtype: T::DTYPE,
                ..self.ty
            },
            data,
        )
    }
}

/// Step and seed of every job of the tests.
pub(crate) const STEP: u64 = 3;
pub(crate) const SEED: u64 = 17;

pub(crate) fn job<'a, T>(op: &'a Op, region: Box4, inputs: &'a [In<'a, T>]) -> Job<'a, T> {
    Job {
        op,
        region,
        inputs,
        step: STEP,
        seed: SEED,
        plain: false,
    }
}

pub(crate) fn types<T: Real>(inputs: &[Tensor]) -> Vec<Ty> {
    inputs
        .iter()
        .map(|t| Ty {
            dtype: T::DTYPE,
            ..t.ty
        })
        .collect()
}

pub(crate) fn out_ty<T: Real>(op: &Op, inputs: &[Tensor]) -> Ty {
    infer(op, &types::<T>(inputs)).unwrap_or_else(|e| panic!("{op:?}: {e:?}"))
}

/// The whole result, in elements of type `T`.
pub(crate) fn run_typed<T: Real>(op: &Op, inputs: &[Tensor]) -> Vec<T> {
    let ty = out_ty::<T>(op, inputs);
    let held: Vec<(Ty, Vec<T>)> = inputs.iter().map(Tensor::typed).collect();
    let views: Vec<In<T>> = held
        .iter()
        .map(|(t, d)| In::new(Layout::whole(t), d))
        .collect();
    let mut data = vec![T::from_f64(f64::NAN); ty.shape.elems()];
    let mut out = Out::new(Layout::whole(&ty), &mut data);
    let region = Box4::lift(&Region::whole(&ty));
    cpu::run(&job(op, region, &views), &mut out, &mut []);
    data
}

/// The whole result in double precision.
pub(crate) fn run(op: &Op, inputs: &[Tensor]) -> Tensor {
    Tensor {
        ty: out_ty::<f64>(op, inputs),
        data: run_typed(op, inputs),
    }
}

/// A buffer with room beyond `present`, filled with NaN where nothing is.
pub(crate) struct Window<T> {
    pub(crate) layout: Layout,
    pub(crate) data: Vec<T>,
}

impl<T: Real> Window<T> {
    pub(crate) fn new(ty: &Ty, present: &Region, rng: &mut Rng) -> Self {
        let capacity: Vec<usize> = present
            .spans()
            .iter()
            .map(|s| s.len() + rng.int(0, 2))
            .collect();
        let layout = Layout::window(ty, &capacity, present);
        Window {
            layout,
            data: vec![T::from_f64(f64::NAN); layout.len],
        }
    }

    fn offset(&self, [n, c, d, h, w]: [usize; 5]) -> usize {
        let p = &self.layout.present.0;
        let [sn, sc, sd, sh] = self.layout.strides;
        (n - p[0].lo) * sn + c * sc + (d - p[1].lo) * sd + (h - p[2].lo) * sh + (w - p[3].lo)
    }

    /// Places of `region`, with all channels.
    pub(crate) fn places(&self, region: &Region) -> Vec<[usize; 5]> {
        let b = Box4::lift(region);
        let mut all = Vec::new();
        for n in b.n() {
            for c in 0..self.layout.dims[1] {
                for d in b.s(0) {
                    for h in b.s(1) {
                        all.extend(b.s(2).map(|w| [n, c, d, h, w]));
                    }
                }
            }
        }
        all
    }

    /// Copies `region` in from a whole tensor.
    pub(crate) fn fill(&mut self, from: &Tensor, region: &Region) {
        for place in self.places(region) {
            let i = self.offset(place);
            self.data[i] = T::from_f64(from.at(place));
        }
    }

    pub(crate) fn get(&self, place: [usize; 5]) -> T {
        self.data[self.offset(place)]
    }
}

/// A random box of a map.
pub(crate) fn random_region(ty: &Ty, rng: &mut Rng) -> Region {
    let spans: Vec<Span> = (0..ty.n_axes())
        .map(|axis| {
            let extent = ty.axis_extent(axis);
            let lo = rng.int(0, extent - 1);
            Span::new(lo, rng.int(lo + 1, extent))
        })
        .collect();
    Region::new(&spans)
}

/// What `op` reads of map input `i` for `region`.
pub(crate) fn read(op: &Op, i: usize, tys: &[Ty], out: &Ty, region: &Region) -> Region {
    let mut read = Region::whole(&tys[i]);
    for axis in 0..tys[i].n_axes() {
        let span = op
            .read(i, axis, tys, out)
            .apply(region.span(axis), tys[i].axis_extent(axis));
        read.set(axis, span);
    }
    read
}

pub(crate) fn close(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let ok = (g - w).abs() <= tolerance * (1.0 + w.abs()) || (g.is_nan() && w.is_nan());
        assert!(ok || g == w, "{what}: element {i} is {g}, not {w}");
    }
}
