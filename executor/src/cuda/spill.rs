//! From the device to the spill file: a thread writes a page-locked piece while the device
//! copies into the other.
//!
//! Neither is waited for by the program. A region that is read again, and the end of a
//! step, wait for what was to be written there; what the disk says is told then at the
//! latest.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use sstep_autodiff::Region;
use sstep_kernels::{In, Layout, with_element};

use crate::backend::HostMemory;
use crate::device::DeviceError;
use crate::disk::DiskMap;
use crate::error::ExecError;

/// Pieces on their way.
const PIECES: usize = 2;

/// A piece that the device copies to the host, or has copied.
pub(super) struct Piece {
    /// Where it is copied to.
    pub(super) memory: HostMemory,
    /// How it lies there.
    pub(super) layout: Layout,
    /// What it is of the map.
    pub(super) region: Region,
    /// Where it goes.
    pub(super) disk: DiskMap,
    /// Waits until it is copied.
    pub(super) copied: Box<dyn FnOnce() -> Result<(), DeviceError> + Send>,
}

/// The thread that writes, and the memory of pieces.
pub(super) struct Writer {
    running: Option<Running>,
    spare: Vec<HostMemory>,
    /// Offsets in the file of the tensors whose pieces are being written, oldest first.
    pending: VecDeque<u64>,
}

struct Running {
    give: Sender<Piece>,
    /// The memory of each, in order, when it is on disk.
    done: Receiver<Result<HostMemory, ExecError>>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// No thread and no memory yet.
    pub(super) fn new() -> Self {
        Writer {
            running: None,
            spare: Vec::new(),
            pending: VecDeque::new(),
        }
    }

    /// Memory for a piece of `bytes`; it is had from `make` until there are as
    /// many pieces as there may be.
    ///
    /// # Errors
    /// Those of `make`, and of the piece whose memory it was.
    pub(super) fn memory(
        &mut self,
        bytes: usize,
        make: impl FnOnce(usize) -> Result<HostMemory, ExecError>,
    ) -> Result<HostMemory, ExecError> {
        if self.spare.is_empty() && self.pending.len() >= PIECES {
            self.take_back()?;
        }
        match self.spare.pop() {
            Some(memory) if (*memory).as_ref().len() >= bytes => Ok(memory),
            _ => make(bytes),
        }
    }

    /// Has a piece written.
    ///
    /// # Errors
    /// [`ExecError::Plan`] if there is no thread to be had.
    pub(super) fn write(&mut self, piece: Piece) -> Result<(), ExecError> {
        let offset = piece.disk.offset();
        let running = match self.running.take() {
            Some(running) => running,
            None => Running::start()?,
        };
        let given = running.give.send(piece);
        self.running = Some(running);
        given.map_err(|_| ended())?;
        self.pending.push_back(offset);
        Ok(())
    }

    /// Waits until a tensor is on disk as far as it was given.
    ///
    /// # Errors
    /// [`ExecError::Spill`] and [`ExecError::Device`] if some piece is not.
    pub(super) fn wait_for(&mut self, disk: &DiskMap) -> Result<(), ExecError> {
        while self.pending.contains(&disk.offset()) {
            self.take_back()?;
        }
        Ok(())
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// As [`Writer::wait_for`], the first.
    pub(super) fn wait(&mut self) -> Result<(), ExecError> {
        let mut outcome = Ok(());
        while !self.pending.is_empty() {
            outcome = outcome.and(self.take_back());
        }
        outcome
    }

    /// Waits for the oldest piece.
    fn take_back(&mut self) -> Result<(), ExecError> {
        self.pending.pop_front();
        let done = self.running.as_ref().map(|r| r.done.recv());
        let memory = done.and_then(Result::ok).ok_or_else(ended)??;
        self.spare.push(memory);
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(Running { give, done, thread }) = self.running.take() {
            drop(give);
            // A panic there has been printed; there is nothing left to save.
            let _ = thread.join();
            drop(done);
        }
    }
}

impl Running {
    fn start() -> Result<Self, ExecError> {
        let (give, pieces) = channel::<Piece>();
        let (tell, done) = channel();
        let work = move || {
            for piece in pieces {
                // Nobody listens once a step has failed for good.
                if tell.send(write(piece)).is_err() {
                    return;
                }
            }
        };
        let name = "sstep-spill".to_owned();
        let thread = std::thread::Builder::new().name(name).spawn(work);
        let thread = thread.map_err(|_| ended())?;
        Ok(Running { give, done, thread })
    }
}

/// Writes a piece once it is there.
fn write(piece: Piece) -> Result<HostMemory, ExecError> {
    (piece.copied)()?;
    let data = (*piece.memory).as_ref();
    with_element!(piece.layout.dtype, E => {
        let view = In::<E>::new(piece.layout, bytemuck::cast_slice(data));
        piece.disk.write(&piece.region, &view)?;
    });
    Ok(piece.memory)
}

fn ended() -> ExecError {
    crate::interpret::inconsistent("the thread that writes the spill file is not there")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use sstep_autodiff::{DType, Form, Shape, Span, Ty};

    use super::*;
    use crate::backend::pageable;
    use crate::disk::SpillFile;

    fn map() -> Ty {
        Ty {
            dtype: DType::F32,
            shape: Shape::map(1, 2, &[64, 8]),
            form: Form::Map,
        }
    }

    /// Gives sixteen pieces of four rows each, filled only when they are waited for.
    fn give(writer: &mut Writer, disk: &DiskMap) -> Result<usize, ExecError> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        MADE.store(0, Ordering::Relaxed);
        for at in 0..16 {
            let region =
                Region::new(&[Span::full(1), Span::new(4 * at, 4 * at + 4), Span::full(8)]);
            let layout = disk.staged(&region);
            let mut memory = writer.memory(4 * layout.len, |bytes| {
                MADE.fetch_add(1, Ordering::Relaxed);
                Ok(pageable(bytes))
            })?;
            let values: &mut [f32] = bytemuck::cast_slice_mut((*memory).as_mut());
            values.fill(at as f32);
            writer.write(Piece {
                memory,
                layout,
                region,
                disk: disk.clone(),
                copied: Box::new(|| Ok(())),
            })?;
        }
        Ok(MADE.load(Ordering::Relaxed))
    }

    #[test]
    fn pieces_are_written_from_two_buffers_and_are_there_when_waited_for() {
        let (ty, spill) = (map(), SpillFile::new(&std::env::temp_dir(), 4096));
        let disk = Arc::new(spill.expect("a file")).map(0, &ty);
        let mut writer = Writer::new();
        for _ in 0..3 {
            let made = give(&mut writer, &disk).expect("written");
            assert!(made <= PIECES, "{made} buffers");
            writer.wait_for(&disk).expect("written");
            let all = disk.read_all::<f32>().expect("read");
            let row = |at: usize| (at / 8 % 64 / 4) as f32;
            assert!(all.iter().enumerate().all(|(at, v)| *v == row(at)));
        }
    }

    #[test]
    fn what_the_disk_or_the_device_says_is_told_later() {
        let (ty, spill) = (map(), SpillFile::full(4096));
        let disk = Arc::new(spill).map(0, &ty);
        let mut writer = Writer::new();
        let told = give(&mut writer, &disk).and_then(|_| writer.wait());
        let told = told.expect_err("the disk is full").to_string();
        assert!(told.contains("of the spill file"), "{told}");
        // What is left of that does not spoil what comes next.
        let _ = writer.wait();
        let spill = SpillFile::new(&std::env::temp_dir(), 4096);
        let disk = Arc::new(spill.expect("a file")).map(0, &ty);
        give(&mut writer, &disk).expect("written");
        writer.wait().expect("written");
        let layout = disk.staged(&Region::whole(&ty));
        let lost = || {
            Err(DeviceError::Lost {
                doing: "waiting",
                reason: "gone".to_owned(),
            })
        };
        let piece = Piece {
            memory: pageable(4 * layout.len),
            layout,
            region: Region::whole(&ty),
            disk: disk.clone(),
            copied: Box::new(lost),
        };
        writer.write(piece).expect("given");
        let told = writer.wait_for(&disk).expect_err("lost").to_string();
        assert!(told.contains("gone"), "{told}");
    }
}
