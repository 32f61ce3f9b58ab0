//! Threads that decode announced tiles before they are asked for.
//!
//! They start with the first announcement, so a source that is never announced
//! to costs no thread, and end with the source. What fails here is silent: the
//! read that needs the tile fails in the same way and says so.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::cache::Asker;
use super::slide::Tiles;

/// The read-ahead threads of one source.
pub(super) struct ReadAhead {
    tiles: Arc<Tiles>,
    n_threads: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl ReadAhead {
    /// `n_threads` threads for `tiles`, not yet started. Zero means that
    /// announcements are ignored.
    pub(super) fn new(tiles: Arc<Tiles>, n_threads: usize) -> Self {
        ReadAhead {
            tiles,
            n_threads,
            threads: Mutex::default(),
        }
    }

    /// Has the tiles decoded soon.
    pub(super) fn announce(&self, tiles: impl Iterator<Item = u64>) {
        if self.n_threads == 0 {
            return;
        }
        self.start();
        self.tiles.cache().announce(tiles);
    }

    fn start(&self) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        while threads.len() < self.n_threads {
            let tiles = Arc::clone(&self.tiles);
            let work = move || {
                while let Some(tile) = tiles.cache().next_ahead(tiles.tile_bytes()) {
                    // The reader meets the same error, with someone to tell.
                    let _ = tiles.tile(tile, Asker::Ahead);
                }
            };
            let name = "sstep-read-ahead".to_string();
            match std::thread::Builder::new().name(name).spawn(work) {
                Ok(thread) => threads.push(thread),
                // Without a thread the reader decodes by itself: slower, right.
                Err(_) => return,
            }
        }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.tiles.cache().stop();
        let threads = self
            .threads
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A panic there has been printed; there is nothing left to save.
            let _ = thread.join();
        }
    }
}
