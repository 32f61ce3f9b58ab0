//! The fast way: blocks of tiles whose transformed patches stay in the cache.
//!
//! A task transforms the patches of up to three vectors of tiles for all input
//! channels, `[point][term][tile]`. Then, eight output channels at a time, it
//! multiplies them with the transformed weights and transforms the sums back.
//! Transformed weights, `[outputs][point][term][8]`, are four times as large as
//! the weights: where the scratch holds them they are made once per call and
//! shared, otherwise each task makes those of eight output channels as it goes.

use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T1};

use super::super::tasks::{self, DisjointMut};
use super::shuffle::PATCH_ROW;
use super::tiles::{self, Grid, Segment};
use super::transform::{LANES, PATCH, POINTS, TILE, taps_2d};
use super::{OUTS, Problem, gemm};

/// Floats of the transformed patches of a task: they should stay in the
/// second-level cache.
const PATCH_FLOATS: usize = 288 << 10;

/// Channels between asking for a patch and reading it.
const AHEAD: usize = 2;

/// Floats of a task's patches, and of the rows they are made of, that leave room
/// in the second-level cache for the rows of the next task.
const AHEAD_FLOATS: usize = 224 << 10;

/// Most vectors of tiles of a task.
const MOST_VECTORS: usize = 3;

/// Sizes of a task's packed operands, in floats.
#[derive(Clone, Copy)]
struct Sizes {
    terms: usize,
    /// Vectors of tiles.
    vectors: usize,
}

impl Sizes {
    /// Between points of the patches. An odd number of cache lines, so that the
    /// points of one term do not all fall into one cache set.
    fn patch_point(&self) -> usize {
        ((self.terms * self.vectors) | 1) * LANES
    }

    fn patches(&self) -> usize {
        self.patch_point() * POINTS
    }

    /// Between points of the sums.
    fn sum_point(&self) -> usize {
        OUTS * self.vectors * LANES
    }

    fn sums(&self) -> usize {
        self.sum_point() * POINTS
    }

    /// Between points of the weights.
    fn weight_point(&self) -> usize {
        ((self.terms * OUTS).div_ceil(LANES) | 1) * LANES
    }

    /// Weights of eight output channels.
    fn weights(&self) -> usize {
        self.weight_point() * POINTS
    }
}

/// Computes the problem if there is scratch for it; tells whether it did.
pub(in super::super) fn compute(problem: &Problem<f32>, scratch: &mut [f32]) -> bool {
    let grid = Grid::aligned(&problem.region);
    let groups = problem.outs.div_ceil(OUTS);
    let macs = grid.n_vectors() * LANES * POINTS * problem.n_terms() * problem.outs;
    let wanted = tasks::n_workers(usize::MAX, macs);
    let sizes = |vectors| Sizes {
        terms: problem.n_terms(),
        vectors,
    };
    let one = sizes(1);
    let least = one.patches() + one.sums() + one.weights();
    let workers = wanted.min(scratch.len() / (least + LANES));
    if workers == 0 {
        return false;
    }
    // Weights are shared if they leave room for the smallest block.
    let all = one.weights() * groups;
    let cached = grid.n_vectors() > workers && all + workers * (least + LANES) <= scratch.len();
    let (weights, scratch) = scratch.split_at_mut(if cached { all } else { 0 });
    let share = tasks::share(scratch.len(), workers);
    let fits = |v: usize| {
        let own = if cached { 0 } else { one.weights() };
        let s = sizes(v);
        let most = if cached {
            PATCH_FLOATS
        } else {
            4 * PATCH_FLOATS
        };
        s.patches() + s.sums() + own <= share && s.patches() <= most
    };
    let balanced = grid.n_vectors().div_ceil(workers).clamp(1, MOST_VECTORS);
    let vectors = (2..=balanced).rev().find(|&v| fits(v)).unwrap_or(1);
    let n_blocks = grid.n_vectors().div_ceil(vectors);
    // Small maps have fewer blocks than threads; then output channels are shared.
    let parts = workers.div_ceil(n_blocks).min(groups);

    if cached {
        let packed = DisjointMut::new(weights);
        tasks::run(groups, workers, &mut [], |group, _| {
            // SAFETY: every group is packed by one task. The caller checked the machine.
            unsafe {
                pack(
                    problem,
                    one,
                    group,
                    packed.part(group * one.weights(), one.weights()),
                )
            };
        });
    }
    let weights = &*weights;
    let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
    tasks::run(n_blocks * parts, workers, scratch, |index, scratch| {
        let (block, part) = (index / parts, index % parts);
        let first = block * vectors;
        let last = (first + vectors).min(grid.n_vectors());
        let segments: Vec<_> = (first..last).map(|v| grid.vector(v)).collect();
        let sizes = sizes(segments.len());
        // Workers draw tasks in turn, so this one's next is likely to be there.
        let rows = problem.n_terms() * segments.len() * PATCH;
        let ahead = parts == 1 && sizes.patches() + rows * PATCH_ROW <= AHEAD_FLOATS;
        let first = (block + workers) * vectors;
        let next = if ahead { first..first + vectors } else { 0..0 };
        let task = Task {
            problem,
            sizes,
            segments: &segments,
            next: &next.map(|v| grid.vector(v)).collect::<Vec<_>>(),
            weights: cached.then_some(weights),
            groups: groups * part / parts..groups * (part + 1) / parts,
        };
        // SAFETY: the machine has the features; tasks store disjoint outputs.
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

/// Transforms the weights of eight output channels.
///
/// # Safety
/// The machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
unsafe fn pack(problem: &Problem<f32>, sizes: Sizes, group: usize, into: &mut [f32]) {
    pack_inline(problem, sizes, group, into);
}

#[inline(always)]
fn pack_inline(problem: &Problem<f32>, sizes: Sizes, group: usize, into: &mut [f32]) {
    let point = sizes.weight_point();
    for (r, (t, c)) in problem.terms().enumerate() {
        let mut w = [[0.0; OUTS]; POINTS];
        taps_2d(&problem.w.nine(group * OUTS, problem.outs, c, t), &mut w);
        for (p, w) in w.iter().enumerate() {
            into[p * point + r * OUTS..][..OUTS].copy_from_slice(w);
        }
    }
}

/// One block of tiles.
struct Task<'a> {
    problem: &'a Problem<'a, f32>,
    sizes: Sizes,
    segments: &'a [Vec<Segment>],
    /// The vectors of tiles that this worker is likely to compute next.
    next: &'a [Vec<Segment>],
    /// Transformed weights of all output channels.
    weights: Option<&'a [f32]>,
    /// Eights of output channels.
    groups: std::ops::Range<usize>,
}

impl Task<'_> {
    /// # Safety
    /// The machine has AVX-512F and VL, AVX2 and FMA; nobody else uses the outputs.
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
    unsafe fn run_512(&self, scratch: &mut [f32]) {
        // SAFETY: as promised to this function.
        unsafe { self.run::<16>(scratch) };
    }

    /// # Safety
    /// The machine has AVX2 and FMA; nobody else uses the outputs.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn run_256(&self, scratch: &mut [f32]) {
        // SAFETY: as promised to this function.
        unsafe { self.run::<8>(scratch) };
    }

    /// # Safety
    /// As [`Task::run_512`] if `WIDTH` is 16, else as [`Task::run_256`].
    #[inline(always)]
    unsafe fn run<const WIDTH: usize>(&self, scratch: &mut [f32]) {
        let (problem, sizes) = (self.problem, self.sizes);
        let vectors = self.segments.len();
        let (patches, scratch) = scratch.split_at_mut(sizes.patches());
        let (sums, own) = scratch.split_at_mut(sizes.sums());
        let point = sizes.patch_point();
        let mut columns = tiles::no_columns();
        for (r, (t, c)) in problem.terms().enumerate() {
            for (v, segments) in self.segments.iter().enumerate() {
                let at = (r * vectors + v) * LANES;
                problem.patches.prefetch(segments, c + AHEAD, t);
                problem
                    .patches
                    .transform::<WIDTH>(&mut columns, segments, c, t, |p, u| {
                        patches[p * point + at..][..LANES].copy_from_slice(u);
                    });
            }
        }
        let n_products = self.groups.len() * POINTS;
        for (done, group) in self.groups.clone().enumerate() {
            let weights = match self.weights {
                Some(all) => &all[group * sizes.weights()..][..sizes.weights()],
                None => {
                    pack_inline(problem, sizes, group, &mut own[..sizes.weights()]);
                    &own[..sizes.weights()]
                }
            };
            for p in 0..POINTS {
                // Memory works while the products are computed: it fetches what
                // these sums will overwrite, and what comes after them.
                self.prefetch_outputs(group, p);
                self.prefetch_next(done * POINTS + p, n_products);
                let w = &weights[p * sizes.weight_point()..][..sizes.terms * OUTS];
                let u = &patches[p * point..][..sizes.terms * vectors * LANES];
                let m = &mut sums[p * sizes.sum_point()..][..sizes.sum_point()];
                // SAFETY: the slices hold what is asked of them.
                unsafe {
                    if WIDTH == 16 {
                        gemm::by_512(vectors, sizes.terms, w.as_ptr(), u.as_ptr(), m.as_mut_ptr());
                    } else {
                        gemm::by_256(vectors, sizes.terms, w.as_ptr(), u.as_ptr(), m.as_mut_ptr());
                    }
                }
            }
            for (i, k) in (group * OUTS..problem.outs).take(OUTS).enumerate() {
                for (v, segments) in self.segments.iter().enumerate() {
                    let at = (i * vectors + v) * LANES;
                    let lanes = |p: usize| {
                        let from = &sums[p * sizes.sum_point() + at..];
                        let mut lanes = [0.0; LANES];
                        lanes.copy_from_slice(&from[..LANES]);
                        lanes
                    };
                    // SAFETY: as promised to this function.
                    unsafe { problem.store::<WIDTH>(segments, k, lanes) };
                }
            }
        }
    }

    /// Asks for the `p`-th part of the rows that a group's sums go to.
    #[inline(always)]
    fn prefetch_outputs(&self, group: usize, p: usize) {
        /// Points before whose products everything has been asked for.
        const LAST: usize = POINTS - 6;
        let (problem, vectors) = (self.problem, self.segments.len());
        let first = group * OUTS;
        let rows = OUTS.min(problem.outs - first) * vectors * TILE;
        for row in rows * p.min(LAST) / LAST..rows * (p + 1).min(LAST) / LAST {
            let (tile, i) = (row / TILE, row % TILE);
            let (k, v) = (first + tile / vectors, tile % vectors);
            let address = |at| problem.out.address(at);
            let segments = &self.segments[v];
            tiles::prefetch_tiles::<_MM_HINT_ET0, _>(address, &problem.region, segments, k, i);
        }
    }

    /// Asks for the `part`-th of `parts` of the next task's patches.
    #[inline(always)]
    fn prefetch_next(&self, part: usize, parts: usize) {
        let (problem, vectors) = (self.problem, self.next.len());
        let rows = problem.n_terms() * vectors * PATCH;
        for row in rows * part / parts..rows * (part + 1) / parts {
            let (patch, i) = (row / PATCH, row % PATCH);
            let (term, v) = (patch / vectors, patch % vectors);
            let (t, c) = (term / problem.ins, term % problem.ins);
            let segments = &self.next[v];
            problem
                .patches
                .prefetch_row::<_MM_HINT_T1>(segments, c, t, i);
        }
    }
}
