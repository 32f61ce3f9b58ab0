//! Weight gradient by F(3×3, 4×4), the adjoint of the convolution in its taps.
//!
//! Patches of `x` and tiles of `ȳ` are transformed, and for each of the 36
//! points and every pair of channels the products of all tiles are summed where
//! they are, in the transformed space; only such sums are transformed back.
//!
//! **Accuracy.** A sum in `f32` spans 128 tiles. Then it is transformed back and
//! added to doubles, which are added to `w` once per call.

use std::arch::x86_64::_MM_HINT_T1;
use std::array::from_fn;
use std::ops::Range;

use super::super::Geom;
use super::super::tasks::{self, DisjointMut};
use super::gemm;
use super::shuffle::{ROW, spread_channels};
use super::tiles::{self, Grid, Patches, Segment, Slab};
use super::transform::{LANES, Lanes, Lines, PATCH, POINTS, TILE, output_grad, taps_grad_2d};
use crate::Job;

/// Channels between asking for a patch and reading it.
const AHEAD: usize = 2;

/// Vectors of tiles transformed at a time.
const VECTORS: usize = 2;

/// Tiles summed in `f32`.
const MOST_TILES: usize = 128;

/// Channels of `x` and of `ȳ` of a task: few enough for its sums to stay in the
/// cache, many because each task transforms anew.
const CHANNELS: [usize; 3] = [64, 32, 16];

/// The numbers of a task's channels.
#[derive(Clone, Copy)]
struct Sizes {
    ins: usize,
    /// Of `ȳ`, in sixteens.
    out_lanes: usize,
}

impl Sizes {
    const TILES: usize = VECTORS * LANES;

    /// Between points of the patches, an odd number of cache lines.
    fn patch_point(&self) -> usize {
        ((self.ins * VECTORS) | 1) * LANES
    }

    /// Between points of the tiles of `ȳ`.
    fn grad_point(&self) -> usize {
        ((self.out_lanes * Self::TILES) | 1) * LANES
    }

    /// Between points of the sums.
    fn sum_point(&self) -> usize {
        ((self.ins * self.out_lanes) | 1) * LANES
    }

    /// Sums in doubles.
    fn doubles(&self) -> usize {
        9 * self.ins * self.out_lanes * LANES
    }

    /// Floats of all of these.
    fn floats(&self) -> usize {
        POINTS * (self.patch_point() + self.grad_point() + self.sum_point()) + 2 * self.doubles()
    }
}

/// Computes the job if there is scratch for it; tells whether it did.
pub(in super::super) fn weight_grad(
    g: &Geom,
    job: &Job<f32>,
    w: &mut [f32],
    scratch: &mut [f32],
) -> bool {
    let (x, y) = (job.inputs[0], &job.inputs[1]);
    let [_, ins, d, h, cols] = x.dims();
    let outs = y.dims()[1];
    let region = &job.region;
    let grid = Grid::around(region);
    let macs = grid.n_vectors() * LANES * POINTS * g.kernel[0] * ins * outs;
    let wanted = tasks::n_workers(usize::MAX, macs);
    let Some((sizes, n_tasks, workers)) = cut(g.kernel[0], ins, outs, wanted, scratch.len()) else {
        return false;
    };
    // Nothing beyond the exact halo: it may not be there.
    let readable = |s: usize, extent: usize| {
        let span = region.s(s);
        let end = (span.end - 1 + g.kernel[s]).saturating_sub(g.pad[s]);
        span.start.saturating_sub(g.pad[s])..end.min(extent)
    };
    let layer = Layer {
        job,
        patches: Patches {
            x,
            pad: g.pad.map(|p| p as isize),
            readable: [readable(0, d), readable(1, h), readable(2, cols)],
        },
        grid,
        taps: g.taps(),
        w: DisjointMut::new(w),
    };
    let n_ins = ins.div_ceil(sizes.ins);
    let n_outs = outs.div_ceil(sizes.out_lanes * LANES);
    let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
    tasks::run(n_tasks, workers, scratch, |index, scratch| {
        let (index, c) = (index / n_ins, index % n_ins * sizes.ins);
        let (t, k) = (index / n_outs, index % n_outs * sizes.out_lanes * LANES);
        let task = Task {
            layer: &layer,
            sizes,
            t,
            c: c..(c + sizes.ins).min(ins),
            k: k..(k + sizes.out_lanes * LANES).min(outs),
        };
        // SAFETY: the machine has the features; tasks own disjoint weights.
        unsafe {
            if wide {
                task.run_512(scratch);
            } else {
                task.run_256(scratch);
            }
        }
    });
    true
}

/// The cheapest cut into tasks, how many they are, and by how many threads at
/// once they fit `scratch` floats; nothing if not even one does. A weight's sum is
/// the same in any cut.
fn cut(
    depth: usize,
    ins: usize,
    outs: usize,
    workers: usize,
    scratch: usize,
) -> Option<(Sizes, usize, usize)> {
    let sizes = CHANNELS
        .iter()
        .flat_map(|&c| CHANNELS.iter().map(move |&k| (c, k)));
    let fitting = sizes.filter_map(|(c, k)| {
        let sizes = Sizes {
            ins: c.min(ins),
            out_lanes: k.min(outs).div_ceil(LANES),
        };
        let (c, k) = (sizes.ins, sizes.out_lanes * LANES);
        let n_tasks = depth * ins.div_ceil(c) * outs.div_ceil(k);
        let room = scratch / tasks::whole_lines(sizes.floats());
        let workers = workers.min(n_tasks).min(room);
        // Per vector of tiles, in cycles: products, and both transforms.
        let cost = POINTS * c * k + 400 * c + 300 * k;
        (workers > 0).then(|| (n_tasks.div_ceil(workers) * cost, n_tasks, workers, sizes))
    });
    let best = fitting.min_by_key(|&(cost, ..)| cost)?;
    Some((best.3, best.1, best.2))
}

struct Layer<'a> {
    job: &'a Job<'a, f32>,
    patches: Patches<'a, f32>,
    grid: Grid,
    taps: usize,
    w: DisjointMut<'a, f32>,
}

/// The weights of one task.
struct Task<'a> {
    layer: &'a Layer<'a>,
    sizes: Sizes,
    /// Depth tap.
    t: usize,
    /// Channels of `x`.
    c: Range<usize>,
    /// Channels of `ȳ`.
    k: Range<usize>,
}

impl Task<'_> {
    /// # Safety
    /// The machine has AVX-512F and VL, AVX2 and FMA; nobody else has the weights.
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
    unsafe fn run_512(&self, scratch: &mut [f32]) {
        // SAFETY: as promised to this function.
        unsafe { self.run::<16>(scratch) };
    }

    /// # Safety
    /// The machine has AVX2 and FMA; nobody else has the weights.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run_256(&self, scratch: &mut [f32]) {
        // SAFETY: as promised to this function.
        unsafe { self.run::<8>(scratch) };
    }

    /// # Safety
    /// As [`Task::run_512`] if `WIDTH` is 16, else as [`Task::run_256`].
    #[inline(always)]
    unsafe fn run<const WIDTH: usize>(&self, scratch: &mut [f32]) {
        let Task { layer, sizes, .. } = self;
        let n_ins = self.c.len();
        let (doubles, scratch) = scratch.split_at_mut(2 * sizes.doubles());
        // SAFETY: any bytes are a valid `f64`; scratch begins at a cache line.
        let (before, doubles, _) = unsafe { doubles.align_to_mut::<f64>() };
        assert!(before.is_empty(), "scratch is aligned");
        let (patches, scratch) = scratch.split_at_mut(POINTS * sizes.patch_point());
        let (grads, scratch) = scratch.split_at_mut(POINTS * sizes.grad_point());
        let sums = &mut scratch[..POINTS * sizes.sum_point()];
        doubles.fill(0.0);
        sums.fill(0.0);
        let mut summed = 0;
        let mut columns = tiles::no_columns();
        let mut slab: Slab<f32> = Lines([[[0.0; ROW]; TILE]; LANES]);
        for first in (0..layer.grid.n_vectors()).step_by(VECTORS) {
            for v in 0..VECTORS {
                let segments = layer.grid.vector(first + v);
                for (i, c) in self.c.clone().enumerate() {
                    let at = (i * VECTORS + v) * LANES;
                    layer.patches.prefetch(&segments, c + AHEAD, self.t);
                    layer
                        .patches
                        .transform::<WIDTH>(&mut columns, &segments, c, self.t, |p, u| {
                            patches[p * sizes.patch_point() + at..][..LANES].copy_from_slice(u);
                        });
                }
                self.grads::<WIDTH>(&segments, v, &mut slab, grads);
            }
            let next: [_; VECTORS] = from_fn(|v| layer.grid.vector(first + VECTORS + v));
            for p in 0..POINTS {
                // Memory fetches the next vectors while these are multiplied.
                self.prefetch(&next, p);
                let u = &patches[p * sizes.patch_point()..][..n_ins * Sizes::TILES];
                for k in 0..sizes.out_lanes {
                    let y = &grads[p * sizes.grad_point() + k * Sizes::TILES * LANES..]
                        [..Sizes::TILES * LANES];
                    let at = p * sizes.sum_point() + k * sizes.ins * LANES;
                    let m = &mut sums[at..][..n_ins * LANES];
                    let (u, y, m) = (u.as_ptr(), y.as_ptr(), m.as_mut_ptr());
                    // SAFETY: the slices hold what is asked of them.
                    unsafe {
                        if WIDTH == 16 {
                            gemm::correlate_512(n_ins, Sizes::TILES, u, y, m);
                        } else {
                            gemm::correlate_256(n_ins, Sizes::TILES, u, y, m);
                        }
                    }
                }
            }
            summed += Sizes::TILES;
            if summed >= MOST_TILES {
                self.flush(sums, doubles);
                summed = 0;
            }
        }
        self.flush(sums, doubles);
        // SAFETY: as promised to this function.
        unsafe { self.finish(doubles) };
    }

    /// Asks for the `p`-th of [`POINTS`] parts of vectors to come.
    #[inline(always)]
    fn prefetch(&self, next: &[Vec<Segment>; VECTORS], p: usize) {
        let (y, region) = (&self.layer.job.inputs[1], &self.layer.job.region);
        let rows = self.c.len() * VECTORS * PATCH;
        for row in rows * p / POINTS..rows * (p + 1) / POINTS {
            let (patch, i) = (row / PATCH, row % PATCH);
            let (c, v) = (self.c.start + patch / VECTORS, patch % VECTORS);
            let patches = &self.layer.patches;
            patches.prefetch_row::<_MM_HINT_T1>(&next[v], c, self.t, i);
        }
        let rows = self.k.len() * VECTORS * TILE;
        for row in rows * p / POINTS..rows * (p + 1) / POINTS {
            let (tile, i) = (row / TILE, row % TILE);
            let (k, v) = (self.k.start + tile / VECTORS, tile % VECTORS);
            let address = |at| y.address(at);
            tiles::prefetch_tiles::<_MM_HINT_T1, _>(address, region, &next[v], k, i);
        }
    }

    /// Transforms vector `v` of the tiles of `ȳ`, all channels.
    #[inline(always)]
    fn grads<const WIDTH: usize>(
        &self,
        segments: &[Segment],
        v: usize,
        slab: &mut Slab<f32>,
        grads: &mut [f32],
    ) {
        let sizes = self.sizes;
        let (y, region) = (&self.layer.job.inputs[1], &self.layer.job.region);
        for lanes in 0..sizes.out_lanes {
            let k = self.k.start + lanes * LANES;
            tiles::fill(y, region, segments, k..(k + LANES).min(self.k.end), slab);
            let slab = slab.0.as_flattened().as_flattened();
            for tile in 0..LANES {
                let mut columns = Lines([[[0.0; LANES]; TILE]; PATCH]);
                for i in 0..TILE {
                    let mut row = Lines([[0.0; LANES]; TILE]);
                    let from = &slab[i * ROW + tile * TILE..];
                    spread_channels::<f32, WIDTH>(from, TILE * ROW, &mut row.0);
                    for l in 0..LANES {
                        let y = output_grad(from_fn(|j| row.0[j][l]));
                        for j in 0..PATCH {
                            columns.0[j][i][l] = y[j];
                        }
                    }
                }
                let to = (lanes * Sizes::TILES + v * LANES + tile) * LANES;
                for (j, column) in columns.0.iter().enumerate() {
                    let mut points = Lines([[0.0; LANES]; PATCH]);
                    for l in 0..LANES {
                        let y = output_grad(from_fn(|i| column[i][l]));
                        for i in 0..PATCH {
                            points.0[i][l] = y[i];
                        }
                    }
                    for (i, point) in points.0.iter().enumerate() {
                        let p = i * PATCH + j;
                        grads[p * sizes.grad_point() + to..][..LANES].copy_from_slice(point);
                    }
                }
            }
        }
    }

    /// Adds sums, transformed back, to the doubles, and begins again.
    #[inline(always)]
    fn flush(&self, sums: &mut [f32], doubles: &mut [f64]) {
        let sizes = self.sizes;
        for pair in 0..sizes.ins * sizes.out_lanes {
            let m: [Lanes<f32>; POINTS] = from_fn(|p| {
                let mut lanes = [0.0; LANES];
                lanes.copy_from_slice(&sums[p * sizes.sum_point() + pair * LANES..][..LANES]);
                lanes
            });
            let mut taps = [[0.0; LANES]; 9];
            taps_grad_2d(&m, &mut taps);
            let doubles = &mut doubles[pair * 9 * LANES..][..9 * LANES];
            for (double, &tap) in doubles.iter_mut().zip(taps.as_flattened()) {
                *double += f64::from(tap);
            }
        }
        sums.fill(0.0);
    }

    /// Adds the doubles, `[lanes of ȳ][x][tap][16]`, to `w`.
    ///
    /// # Safety
    /// Nobody else has these weights.
    unsafe fn finish(&self, doubles: &[f64]) {
        let [_, ins, ..] = self.layer.job.inputs[0].dims();
        let taps = self.layer.taps;
        for (i, k) in self.k.clone().enumerate() {
            for (j, c) in self.c.clone().enumerate() {
                let pair = (i / LANES) * self.sizes.ins + j;
                let at = (k * ins + c) * taps + 9 * self.t;
                // SAFETY: as promised to this function.
                let w = unsafe { self.layer.w.part(at, 9) };
                for (tap, w) in w.iter_mut().enumerate() {
                    *w += doubles[(pair * 9 + tap) * LANES + i % LANES] as f32;
                }
            }
        }
    }
}
