//! Who computes what, with which scratch.
//!
//! A convolution is cut into tasks that write disjoint outputs. A few workers,
//! each with its own part of the caller's workspace, draw tasks from a counter:
//! which worker gets which task does not matter to any bit of the result.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Scratch wanted per thread: a panel and a weight block that together stay in
/// a typical second-level cache, and a share of the weight gradient's sums.
pub(super) const BYTES_PER_THREAD: usize = 1 << 20;

/// Below this many multiply-adds, waking another thread costs more than it saves.
const SERIAL_MACS: usize = 1 << 17;

/// Bytes of a cache line; scratch is aligned to it.
const LINE: usize = 64;

/// The aligned middle of a byte workspace, as stale floats. How many depends
/// on the length alone, not on where it lies: blocks are cut by it, and a
/// weight gradient's bits depend on the blocks.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) fn floats(ws: &mut [u8]) -> &mut [f32] {
    let usable = ws.len().saturating_sub(LINE - 1) / LINE * LINE;
    let skip = ws.as_ptr().align_offset(LINE).min(ws.len() - usable);
    // SAFETY: any bytes are a valid `f32`; the start is aligned to a line.
    let (_, floats, _) = unsafe { ws[skip..skip + usable].align_to_mut::<f32>() };
    floats
}

/// How many workers to use for so many tasks and multiply-adds.
pub(super) fn n_workers(n_tasks: usize, macs: usize) -> usize {
    if macs < SERIAL_MACS {
        1
    } else {
        rayon::current_num_threads().min(n_tasks).max(1)
    }
}

/// Runs `task(index, scratch)` for every index below `n_tasks`, on
/// `n_workers` threads that share `scratch` evenly.
pub(super) fn run<F>(n_tasks: usize, n_workers: usize, scratch: &mut [f32], task: F)
where
    F: Fn(usize, &mut [f32]) + Sync,
{
    work(n_tasks, n_workers, scratch, |draw, scratch| {
        while let Some(index) = draw.next() {
            task(index, scratch);
        }
    });
}

/// Tasks that nobody has drawn yet.
pub(super) struct Draw {
    next: AtomicUsize,
    n_tasks: usize,
}

impl Draw {
    /// One of them, if there is one.
    pub(super) fn next(&self) -> Option<usize> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.n_tasks).then_some(index)
    }
}

/// Runs `worker(draw, scratch)` on `n_workers` threads that share `scratch` evenly
/// and draw from the same `n_tasks` tasks: each may prepare one while it does another.
pub(super) fn work<F>(n_tasks: usize, n_workers: usize, scratch: &mut [f32], worker: F)
where
    F: Fn(&Draw, &mut [f32]) + Sync,
{
    let draw = Draw {
        next: AtomicUsize::new(0),
        n_tasks,
    };
    if n_workers == 1 {
        return worker(&draw, scratch);
    }
    let share = share(scratch.len(), n_workers);
    let mut rest = scratch;
    rayon::scope(|scope| {
        let (draw, worker) = (&draw, &worker);
        for _ in 1..n_workers {
            let (mine, others) = std::mem::take(&mut rest).split_at_mut(share);
            rest = others;
            scope.spawn(move |_| worker(draw, mine));
        }
        worker(draw, &mut rest[..share]);
    });
}

/// Floats of scratch that each of `n_workers` gets out of `len`: whole lines.
pub(super) fn share(len: usize, n_workers: usize) -> usize {
    len / n_workers / (LINE / 4) * (LINE / 4)
}

/// So many floats and what is left of their last line.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) fn whole_lines(floats: usize) -> usize {
    floats.next_multiple_of(LINE / 4)
}

/// A slice whose parts go to several threads.
pub(super) struct DisjointMut<'a, T> {
    base: *mut T,
    len: usize,
    lives: PhantomData<&'a mut [T]>,
}

// SAFETY: parts are handed out under a contract that forbids overlap.
unsafe impl<T: Send> Sync for DisjointMut<'_, T> {}

impl<'a, T> DisjointMut<'a, T> {
    pub(super) fn new(all: &'a mut [T]) -> Self {
        DisjointMut {
            base: all.as_mut_ptr(),
            len: all.len(),
            lives: PhantomData,
        }
    }

    /// The part `[at, at + len)`.
    ///
    /// # Safety
    /// No other live part overlaps it.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.len, "a part lies within the slice");
        // SAFETY: in bounds as checked, not aliased as promised.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(at), len) }
    }
}
