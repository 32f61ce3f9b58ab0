//! Depthwise convolution in `f32`: every channel has its own few taps.
//!
//! No sum over channels pays for packing a panel. Input rows are copied once,
//! zero-padded, into a ring that holds as many as the taps of one output row
//! span; outputs are computed from there, and the sums of a weight gradient too.

use std::ops::Range;

use super::Geom;
use super::direct::base;
use super::ring::{Ring, Taps};
use super::stores::store;
use super::tasks::{self, DisjointMut};
use super::vector::{Kernel, Vector, Width};
use crate::Job;
use crate::cpu::stream;
use crate::view::{In, Out};

/// Columns computed from one ring, which should stay in the first-level cache; few
/// in tests, whose maps are small.
const COLUMNS: usize = if cfg!(test) { 40 } else { 1024 };

/// Vectors of outputs computed at a time.
const VECTORS: usize = 4;

/// Taps of a weight gradient summed at a time.
const TAPS: usize = 9;

/// Products summed in a lane of a weight gradient: see [`super::wgrad`].
const PRODUCTS: usize = 32;

/// Whether each channel is on its own.
fn fits(g: &Geom, x: &In<f32>, y_channels: usize) -> bool {
    x.dims()[1] == g.groups && y_channels == g.groups
}

/// Computes the job if it is depthwise and there is scratch; tells whether it did.
pub(super) fn conv(g: &Geom, job: &Job<f32>, out: &Out<f32>, scratch: &mut [f32]) -> bool {
    fits(g, &job.inputs[0], out.dims()[1]) && map(&Taps::conv(g), job, out, scratch)
}

/// [`conv`] of an adjoint, of stride 1.
pub(super) fn adjoint(g: &Geom, job: &Job<f32>, out: &Out<f32>, scratch: &mut [f32]) -> bool {
    fits(g, &job.inputs[0], out.dims()[1])
        && g.stride == [1; 3]
        && map(&Taps::adjoint(g), job, out, scratch)
}

fn map(taps: &Taps, job: &Job<f32>, out: &Out<f32>, scratch: &mut [f32]) -> bool {
    let region = &job.region;
    let channels = out.dims()[1];
    let (n, d, h, w) = (region.n(), region.s(0), region.s(1), region.s(2));
    let wanted = tasks::n_workers(usize::MAX, region.points() * channels * taps.len());
    let workers = wanted.min(scratch.len() / taps.floats(COLUMNS.min(w.len())));
    if workers == 0 {
        return false;
    }
    let along = w.len().div_ceil(COLUMNS);
    let planes = n.len() * channels * d.len() * along;
    // Few planes are cut, though each strip copies its halo.
    let strips = (2 * workers).div_ceil(planes).min(h.len());
    let strip = h.len().div_ceil(strips);
    let strips = h.len().div_ceil(strip);
    let width = Width::best(w.len());
    // The input passes through the cache along with the output, and is as large. Vectors
    // are stored a few side by side, so that lines are whole.
    let past = stream::worthwhile::<f32>(2 * region.points() * channels);
    let n_tasks = planes * strips;
    tasks::run(n_tasks, workers.min(n_tasks), scratch, |index, scratch| {
        let (plane, i) = (index / strips, index % strips);
        let (plane, j) = (plane / along, w.start + plane % along * COLUMNS);
        let (plane, d) = (plane / d.len(), d.start + plane % d.len());
        let (h0, w) = (h.start + i * strip, j..(j + COLUMNS).min(w.end));
        let outputs = Outputs {
            ring: Ring::new(taps, &job.inputs[0], &w, scratch),
            job,
            out,
            n: n.start + plane / channels,
            c: plane % channels,
            d,
            h: h0..(h0 + strip).min(h.end),
            w,
            past,
        };
        // SAFETY: the caller checked the machine, and that the output holds the
        // region; tasks write disjoint parts of it.
        unsafe { width.run(outputs) };
        if past {
            stream::fence();
        }
    });
    true
}

/// Rows of one plane.
struct Outputs<'a> {
    ring: Ring<'a>,
    job: &'a Job<'a, f32>,
    out: &'a Out<'a, f32>,
    n: usize,
    c: usize,
    d: usize,
    h: Range<usize>,
    w: Range<usize>,
    /// Whether outputs are stored past the cache.
    past: bool,
}

impl Kernel for Outputs<'_> {
    /// The rows lie in the output view, and nobody else uses them meanwhile.
    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        let n_taps = self.ring.taps.len();
        let w = &self.job.inputs[1].flat()[self.c * n_taps..][..n_taps];
        let bias = self.job.inputs.get(2).map(|bias| bias.flat()[self.c]);
        let (columns, past) = (self.w.len(), self.past);
        for h in self.h.clone() {
            // SAFETY: as promised to this function.
            unsafe { self.ring.advance::<V>(self.n, self.c, self.d, h) };
            let (x, at) = (&*self.ring.floats, &self.ring.at[..]);
            let last = at.iter().max().copied().unwrap_or(0);
            assert!(last + columns.next_multiple_of(V::LANES) <= x.len() && at.len() == n_taps);
            let to = base(self.out, self.n, self.c, [self.d, h, self.w.start]);
            let x = x.as_ptr();
            let mut column = 0;
            while column < columns {
                let (x, to) = (x.wrapping_add(column), to.wrapping_add(column));
                // SAFETY: as promised to this function; reads as checked.
                unsafe {
                    column += if columns - column >= VECTORS * V::LANES {
                        vectors::<V, VECTORS>(x, at, w, bias, to, V::LANES, past)
                    } else {
                        vectors::<V, 1>(x, at, w, bias, to, (columns - column).min(V::LANES), past)
                    };
                }
            }
        }
    }
}

/// `N` vectors of outputs, the last of so many lanes; returns the columns of all.
///
/// # Safety
/// The machine has the instructions; vectors may be read from `x` at each tap, and
/// `to` may be written.
#[inline(always)]
unsafe fn vectors<V: Vector, const N: usize>(
    x: *const f32,
    taps: &[usize],
    w: &[f32],
    bias: Option<f32>,
    to: *mut f32,
    lanes: usize,
    past: bool,
) -> usize {
    // SAFETY: as promised to this function.
    unsafe {
        let mut acc = [[V::zero(); N]; 1];
        let mut from = [x; N];
        for (i, from) in from.iter_mut().enumerate() {
            *from = x.wrapping_add(i * V::LANES);
        }
        for (&tap, w) in taps.iter().zip(w) {
            V::broadcast_step(&mut acc, &from, tap, w, 0);
        }
        for (i, acc) in acc[0].iter().enumerate() {
            let sum = bias.map_or(*acc, |bias| acc.add(V::splat(bias)));
            let to = to.wrapping_add(i * V::LANES);
            store(to, 1, lanes, sum, past);
        }
    }
    (N - 1) * V::LANES + lanes
}

/// Adds the weight gradient if the job is depthwise and there is scratch; tells
/// whether it did.
pub(super) fn weight_grad(g: &Geom, job: &Job<f32>, w: &mut [f32], scratch: &mut [f32]) -> bool {
    let channels = job.inputs[1].dims()[1];
    if !fits(g, &job.inputs[0], channels) {
        return false;
    }
    let taps = Taps::conv(g);
    let columns = job.region.s(2).len();
    let wanted = tasks::n_workers(channels, job.region.points() * w.len());
    let workers = wanted.min(scratch.len() / taps.floats(COLUMNS.min(columns)));
    if workers == 0 {
        return false;
    }
    let width = Width::best(columns);
    let w = DisjointMut::new(w);
    tasks::run(channels, workers, scratch, |c, scratch| {
        let sums = Sums {
            taps: &taps,
            job,
            c,
            // SAFETY: each channel's weights belong to one task.
            w: unsafe { w.part(c * taps.len(), taps.len()) },
            scratch,
        };
        // SAFETY: the caller checked the machine.
        unsafe { width.run(sums) };
    });
    true
}

/// The weight gradient of one channel.
struct Sums<'a> {
    taps: &'a Taps,
    job: &'a Job<'a, f32>,
    c: usize,
    w: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for Sums<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let (x, y) = (&self.job.inputs[0], &self.job.inputs[1]);
        let (region, c) = (&self.job.region, self.c);
        let mut sums = vec![0.0; self.taps.len()];
        for j in region.s(2).step_by(COLUMNS) {
            let w = j..(j + COLUMNS).min(region.s(2).end);
            let mut ring = Ring::new(self.taps, x, &w, self.scratch);
            for (n, d) in region.n().flat_map(|n| region.s(0).map(move |d| (n, d))) {
                ring.forget();
                for h in region.s(1) {
                    let y = y.row(n, c, d, h, w.clone());
                    // SAFETY: as promised to this function.
                    unsafe {
                        ring.advance::<V>(n, c, d, h);
                        row_sums::<V>(ring.floats, &ring.at, y, &mut sums);
                    }
                }
            }
        }
        for (w, &sum) in self.w.iter_mut().zip(&sums) {
            *w += sum as f32;
        }
    }
}

/// Adds the products of a row of `ȳ` with the row at each tap.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn row_sums<V: Vector>(x: &[f32], taps: &[usize], y: &[f32], sums: &mut [f64]) {
    let last = taps.iter().max().copied().unwrap_or(0);
    assert!(last + y.len().next_multiple_of(V::LANES) <= x.len());
    for (i, y) in y.chunks(PRODUCTS * V::LANES).enumerate() {
        let x = x.as_ptr().wrapping_add(i * PRODUCTS * V::LANES);
        let (mut taps, mut sums) = (taps, &mut *sums);
        while !taps.is_empty() {
            // SAFETY: as promised to this function; reads as checked.
            let n = unsafe {
                if taps.len() >= TAPS {
                    products::<V, TAPS>(x, taps, y, sums)
                } else if taps.len() >= 3 {
                    products::<V, 3>(x, taps, y, sums)
                } else {
                    products::<V, 1>(x, taps, y, sums)
                }
            };
            taps = &taps[n..];
            sums = &mut sums[n..];
        }
    }
}

/// The first `Q` taps of at most [`PRODUCTS`] vectors of `ȳ`; returns `Q`.
///
/// # Safety
/// The machine has the instructions; as many whole vectors may be read at each tap.
#[inline(always)]
unsafe fn products<V: Vector, const Q: usize>(
    x: *const f32,
    taps: &[usize],
    y: &[f32],
    sums: &mut [f64],
) -> usize {
    let mut from = [x; Q];
    for (from, &tap) in from.iter_mut().zip(taps) {
        *from = from.wrapping_add(tap);
    }
    let whole = y.len() / V::LANES * V::LANES;
    let mut rest = [0.0; 16];
    rest[..y.len() - whole].copy_from_slice(&y[whole..]);
    // SAFETY: as promised to this function; lanes beyond the row are zeros in `rest`.
    unsafe {
        let mut acc = [[V::zero(); Q]; 1];
        for at in (0..whole).step_by(V::LANES) {
            V::correlate_step(&mut acc, &from, at, y.as_ptr().wrapping_add(at), 0);
        }
        if whole < y.len() {
            V::correlate_step(&mut acc, &from, whole, rest.as_ptr(), 0);
        }
        for (acc, sums) in acc[0].chunks(8).zip(sums[..Q].chunks_mut(8)) {
            let mut eight = [V::zero(); 8];
            eight[..acc.len()].copy_from_slice(acc);
            for (sum, add) in sums.iter_mut().zip(V::lane_sums(eight)) {
                *sum += f64::from(add);
            }
        }
    }
    Q
}
