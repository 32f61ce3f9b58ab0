//! Decoded tiles, as many as a byte limit allows, and which to decode next.
//!
//! Neighbouring regions share tiles through their halos, and a tile decodes in
//! about a millisecond, so a few megabytes of least-recently-used tiles save
//! most of the work. A tile is decoded by one thread at a time; others that
//! want it wait. Whoever claims a tile decodes it at once and waits for nothing
//! meanwhile, so waiting always ends.
//!
//! Read-ahead may fill at most half of the limit with tiles that nobody has
//! read yet: were it to run further, it would push out what it decoded first.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Most tiles announced but not yet begun; what is announced beyond is dropped.
const MAX_QUEUED: usize = 4096;

/// A least-recently-used cache of decoded tiles, by tile index.
pub(super) struct TileCache {
    limit_bytes: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tiles: HashMap<u64, Entry>,
    /// Tiles by time of last use, oldest first.
    by_age: BTreeMap<u64, u64>,
    clock: u64,
    held_bytes: u64,
    /// Tiles some thread is decoding.
    decoding: HashSet<u64>,
    /// Announced tiles, next first.
    queue: VecDeque<u64>,
    /// Bytes decoded ahead and not read yet.
    unread_bytes: u64,
    stopped: bool,
}

struct Entry {
    rgb: Arc<Vec<u8>>,
    used: u64,
    unread: bool,
}

/// Who asks for a tile.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// A read that needs it now.
    Reader,
    /// A read-ahead thread.
    Ahead,
}

impl TileCache {
    /// An empty cache that holds at most `limit_bytes`.
    pub(super) fn new(limit_bytes: u64) -> Self {
        TileCache {
            limit_bytes,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Bytes held now.
    pub(super) fn held_bytes(&self) -> u64 {
        self.lock().held_bytes
    }

    /// Bytes ever held.
    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// The tile, from the cache or by `decode`.
    ///
    /// # Errors
    /// Those of `decode`. A failure is not remembered: who asks next, tries.
    pub(super) fn get_or_decode<E>(
        &self,
        tile: u64,
        asker: Asker,
        decode: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<Arc<Vec<u8>>, E> {
        let mut state = self.lock();
        loop {
            if let Some(rgb) = state.hit(tile, asker) {
                drop(state);
                self.changed.notify_all();
                return Ok(rgb);
            }
            if state.decoding.insert(tile) {
                break;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let claim = Claim { cache: self, tile };
        let rgb = Arc::new(decode()?);
        self.lock().insert(tile, &rgb, asker, self.limit_bytes);
        drop(claim);
        Ok(rgb)
    }

    /// Announces tiles to the read-ahead threads.
    pub(super) fn announce(&self, tiles: impl Iterator<Item = u64>) {
        let mut state = self.lock();
        for tile in tiles {
            if state.queue.len() >= MAX_QUEUED {
                break;
            }
            if !state.tiles.contains_key(&tile) && !state.queue.contains(&tile) {
                state.queue.push_back(tile);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Takes back announced tiles: a read is about to decode them itself.
    pub(super) fn withdraw(&self, inside: impl Fn(u64) -> bool) {
        self.lock().queue.retain(|&tile| !inside(tile));
    }

    /// The next tile to decode ahead, of `tile_bytes` each. Waits until there
    /// is one and room for it; `None` once the cache is stopped.
    pub(super) fn next_ahead(&self, tile_bytes: u64) -> Option<u64> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if state.unread_bytes + tile_bytes <= self.limit_bytes / 2
                && let Some(tile) = state.queue.pop_front()
            {
                return Some(tile);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends [`TileCache::next_ahead`] for good.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can leave the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hit(&mut self, tile: u64, asker: Asker) -> Option<Arc<Vec<u8>>> {
        let entry = self.tiles.get_mut(&tile)?;
        self.clock += 1;
        self.by_age.remove(&entry.used);
        entry.used = self.clock;
        self.by_age.insert(self.clock, tile);
        if asker == Asker::Reader && std::mem::take(&mut entry.unread) {
            self.unread_bytes -= entry.rgb.len() as u64;
        }
        Some(Arc::clone(&entry.rgb))
    }

    fn insert(&mut self, tile: u64, rgb: &Arc<Vec<u8>>, asker: Asker, limit_bytes: u64) {
        let bytes = rgb.len() as u64;
        if bytes > limit_bytes {
            return;
        }
        while self.held_bytes + bytes > limit_bytes
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.evict(oldest);
        }
        self.clock += 1;
        let unread = asker == Asker::Ahead;
        self.tiles.insert(
            tile,
            Entry {
                rgb: Arc::clone(rgb),
                used: self.clock,
                unread,
            },
        );
        self.by_age.insert(self.clock, tile);
        self.held_bytes += bytes;
        if unread {
            self.unread_bytes += bytes;
        }
    }

    fn evict(&mut self, tile: u64) {
        if let Some(entry) = self.tiles.remove(&tile) {
            let bytes = entry.rgb.len() as u64;
            self.held_bytes -= bytes;
            if entry.unread {
                self.unread_bytes -= bytes;
            }
        }
    }
}

/// The right to decode a tile, given back when it ends, be it by an error.
struct Claim<'a> {
    cache: &'a TileCache,
    tile: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.cache.lock().decoding.remove(&self.tile);
        self.cache.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(cache: &TileCache, tile: u64, asker: Asker) -> bool {
        let mut decoded = false;
        let rgb = cache.get_or_decode(tile, asker, || {
            decoded = true;
            Ok::<_, ()>(vec![tile as u8; 10])
        });
        assert_eq!(rgb.unwrap()[..], [tile as u8; 10]);
        decoded
    }

    #[test]
    fn the_least_recently_used_tile_goes_first() {
        let cache = TileCache::new(35);
        for tile in [0, 1, 2] {
            assert!(get(&cache, tile, Asker::Reader));
        }
        assert!(!get(&cache, 0, Asker::Reader));
        assert!(get(&cache, 3, Asker::Reader));
        assert_eq!(cache.held_bytes(), 30);
        assert!(!get(&cache, 0, Asker::Reader), "0 was used after 1");
        assert!(get(&cache, 1, Asker::Reader), "1 was the oldest");
    }

    #[test]
    fn nothing_is_kept_beyond_the_limit() {
        for limit in [0, 9, 10, 25] {
            let cache = TileCache::new(limit);
            for tile in 0..50 {
                get(&cache, tile % 7, Asker::Reader);
                assert!(cache.held_bytes() <= limit);
            }
        }
    }

    #[test]
    fn read_ahead_keeps_to_half_of_the_limit_until_a_read() {
        let cache = TileCache::new(40);
        cache.announce([5, 6, 7].into_iter());
        for tile in [5, 6] {
            assert_eq!(cache.next_ahead(10), Some(tile));
            get(&cache, tile, Asker::Ahead);
        }
        assert_eq!(cache.lock().unread_bytes, 20);
        assert!(!get(&cache, 5, Asker::Reader), "it was decoded ahead");
        assert_eq!(cache.next_ahead(10), Some(7));
        cache.stop();
        assert_eq!(cache.next_ahead(10), None);
    }

    #[test]
    fn an_error_is_told_and_not_remembered() {
        let cache = TileCache::new(100);
        let failed = cache.get_or_decode(1, Asker::Ahead, || Err("broken"));
        assert_eq!(failed.unwrap_err(), "broken");
        assert!(get(&cache, 1, Asker::Reader), "the next asker tries again");
    }

    #[test]
    fn a_tile_is_decoded_once_however_many_want_it() {
        let cache = TileCache::new(1000);
        let decoded = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let slow = || {
                        decoded.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok::<_, ()>(vec![1; 10])
                    };
                    cache.get_or_decode(3, Asker::Reader, slow).unwrap();
                });
            }
        });
        assert_eq!(decoded.into_inner(), 1);
    }
}
