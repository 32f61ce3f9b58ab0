//! Host memory for tensors moved off the device.
//!
//! A step asks for the same tensors as the one before, so what is released is
//! kept and given out again: the pages of many gigabytes need not be mapped and
//! faulted in anew every step. Held and spare memory together never pass the
//! most that was promised to be held at once.

use sstep_planner::HostIx;

use crate::backend::HostMemory;

/// The tensors on the host, and memory for more.
pub(crate) struct HostPool {
    tensors: Vec<Option<HostMemory>>,
    spare: Vec<HostMemory>,
    /// Bytes of tensors and spare memory that may be kept.
    limit_bytes: u64,
    held_bytes: u64,
    spare_bytes: u64,
    peak_bytes: u64,
}

impl HostPool {
    /// A pool for `n` tensors that hold at most `limit_bytes` at once.
    pub(crate) fn new(n: usize, limit_bytes: u64) -> Self {
        HostPool {
            tensors: (0..n).map(|_| None).collect(),
            spare: Vec::new(),
            limit_bytes,
            held_bytes: 0,
            spare_bytes: 0,
            peak_bytes: 0,
        }
    }

    /// Releases everything, also what a failed step left behind.
    pub(crate) fn begin_step(&mut self) {
        for h in 0..self.tensors.len() {
            self.release(HostIx(h as u32));
        }
        self.peak_bytes = 0;
    }

    /// Most bytes held at once since the step began.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// A tensor, if it is there.
    pub(crate) fn get(&self, h: HostIx) -> Option<&[u8]> {
        Some(self.tensors.get(h.0 as usize)?.as_ref()?.as_ref().as_ref())
    }

    /// A tensor of `bytes` to write to; of any content at first. Memory that is not there
    /// yet is had from `make`.
    ///
    /// # Errors
    /// Those of `make`.
    pub(crate) fn get_mut<E>(
        &mut self,
        h: HostIx,
        bytes: usize,
        make: impl FnOnce(usize) -> Result<HostMemory, E>,
    ) -> Result<&mut [u8], E> {
        let size = bytes as u64;
        let slot = &mut self.tensors[h.0 as usize];
        if slot.is_none() {
            let is_it = |s: &HostMemory| s.as_ref().as_ref().len() == bytes;
            let data = match self.spare.iter().position(is_it) {
                Some(at) => {
                    self.spare_bytes -= size;
                    self.spare.swap_remove(at)
                }
                None => {
                    while self.held_bytes + self.spare_bytes + size > self.limit_bytes {
                        let Some(old) = self.spare.pop() else { break };
                        self.spare_bytes -= old.as_ref().as_ref().len() as u64;
                    }
                    make(bytes)?
                }
            };
            *slot = Some(data);
            self.held_bytes += size;
            self.peak_bytes = self.peak_bytes.max(self.held_bytes);
        }
        let data = slot.as_mut().expect("the tensor was just made");
        Ok(data.as_mut().as_mut())
    }

    /// Takes a tensor back.
    pub(crate) fn release(&mut self, h: HostIx) {
        if let Some(data) = self.tensors[h.0 as usize].take() {
            let bytes = data.as_ref().as_ref().len() as u64;
            self.held_bytes -= bytes;
            self.spare_bytes += bytes;
            self.spare.push(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_out_again_and_never_passes_the_limit() {
        let mut pool = HostPool::new(3, 400);
        fn get(pool: &mut HostPool, h: u32, elems: usize) -> *const u8 {
            let make = |n| Ok::<HostMemory, ()>(crate::backend::pageable(n));
            let got = pool.get_mut(HostIx(h), 4 * elems, make);
            got.map_or(std::ptr::null(), |data| data.as_ptr())
        }
        let at = get(&mut pool, 0, 50);
        pool.release(HostIx(0));
        // The same memory for the same size, in this step and the next.
        assert_eq!(get(&mut pool, 1, 50), at);
        pool.begin_step();
        assert_eq!(get(&mut pool, 0, 50), at);
        pool.release(HostIx(0));
        // Another size, which fits only without the spare.
        get(&mut pool, 2, 80);
        assert_eq!(
            (pool.spare_bytes, pool.held_bytes, pool.peak_bytes()),
            (0, 320, 320)
        );
        assert!(pool.get(HostIx(0)).is_none());
        assert_eq!(pool.get(HostIx(2)).map(<[u8]>::len), Some(320));
    }
}
