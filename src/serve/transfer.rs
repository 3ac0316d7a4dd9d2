//! The leaves of a cut on their way to a replica: those that it needs, as blocks.
//!
//! A pass over the tree picks them under their latches and encodes them, on threads of its own or in turn with whoever sends. What is encoded and not sent
//! yet is bounded in memory, and for a while a replica that is slow stops the pass, which by then holds back what writers change in the leaves it has not
//! come to. Then the rest goes into a file without a name, at the speed of the disk, so that the cut is let go in seconds whoever reads. Without a disk
//! the pass waits.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::format::block::number;
use crate::format::snapshot::FileId;
use crate::replication::needs::Needs;
use crate::serve::signal::Signal;
use crate::storage::log::Log;
use crate::storage::source::LeafSource;
use crate::storage::writer::{Piece, Progress, Walk, WriterOptions, encode_all};
use crate::storage::{DiskFile, read_exact_at, write_all_at};
use crate::tree::{self, Pass};
use crate::{Error, Result};

/// Encoded bytes may wait up to so many.
const QUEUE_BYTES: usize = 8 << 20;
/// A pass that has run so long waits for a slow link no more.
const PATIENCE: Duration = Duration::from_secs(2);
/// While it waits it looks so often whether the link has proven slow.
const LOOK: Duration = Duration::from_millis(100);
/// A link that takes fewer bytes a second than this gets compressed blocks, if it is left to us: what gigabit Ethernet carries, and less than a
/// replica takes that shares two processors with its source.
const FAST: u64 = 120_000_000;
/// What that is called where it fails.
const NAMELESS: &str = "a file without a name";
/// A link's speed is measured over so many bytes each time: more than wait in queues on the way.
const MEASURED: u64 = 16 << 20;

/// The leaves of a cut that are needed.
struct Needed {
    pass: Pass,
    needs: Needs,
}

impl LeafSource for Needed {
    type Copy = tree::LeafCopy;

    fn copy_leaf(&self, from: &[u8], out: &mut tree::LeafCopy) -> Result<bool> {
        self.pass.copy_leaf_if(from, |low, high, stamp| self.needs.want(low, high, stamp), out)
    }
}

/// See the file's head.
pub(crate) struct Transfer {
    way: Way,
    file_id: FileId,
    next_block: u64,
    /// Blocks that were taken.
    pub(crate) blocks: u64,
    /// What is encoded and not sent yet: from `at` on, blocks of these lengths.
    bytes: Vec<u8>,
    at: usize,
    lens: VecDeque<usize>,
}

enum Way {
    /// Whoever sends encodes.
    InTurn { needed: Box<Needed>, walk: Box<Walk<tree::LeafCopy>>, progress: Progress, ended: bool },
    /// The pass and who encodes for it, until they have ended.
    Aside(Arc<Queue>, Option<JoinHandle<()>>),
}

/// Pieces from those who encode to the one who sends.
struct Queue {
    state: Mutex<Waiting>,
    begun: Instant,
    /// Where what there is no room for goes, in a file that grows to so many bytes.
    spill: Option<(Arc<Log>, u64)>,
    /// There is room, or nobody takes any more.
    room: Condvar,
    signal: Arc<Signal>,
    progress: Progress,
}

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Encoded>,
    /// In memory.
    bytes: usize,
    file: Option<Arc<dyn DiskFile>>,
    /// There can be no file, or it takes no more.
    has_failed: bool,
    /// So many bytes were taken since then.
    taken: u64,
    taken_in_all: u64,
    since: Option<Instant>,
    /// How the pass ended.
    ended: Option<Result<()>>,
    /// Nobody takes any more.
    is_left: bool,
}

/// Blocks, and their lengths.
type Taken = (Vec<u8>, Vec<usize>);

/// Blocks of these lengths, one directly behind the other.
struct Encoded {
    lens: Vec<usize>,
    bytes: Bytes,
}

impl Encoded {
    fn is_spilled(&self) -> bool {
        matches!(self.bytes, Bytes::Spilled(_))
    }
}

enum Bytes {
    Here(Vec<u8>),
    /// In the file, from there on.
    Spilled(u64),
}

/// What comes next of a transfer.
pub(crate) enum Next<'a> {
    /// A block, numbered.
    Block(&'a [u8]),
    /// There will be more.
    NotYet,
    /// That was all.
    End,
}

impl Transfer {
    /// Begins to encode what `needs` says of the cut of `pass`; blocks are numbered from `next_block` on. Without `threads` whoever asks for
    /// the next block encodes it; with them, a transfer that `adapts` compresses only once the link proves slow.
    pub(crate) fn begin(
        pass: Pass,
        needs: Needs,
        (file_id, next_block): (FileId, u64),
        (options, adapts): (WriterOptions, bool),
        (signal, spill): (&Arc<Signal>, Option<(&Arc<Log>, u64)>),
    ) -> Self {
        let needed = Needed { pass, needs };
        let way = match options.threads {
            0 => Way::InTurn {
                needed: Box::new(needed),
                walk: Box::new(Walk::new(options)),
                progress: Progress::default(),
                ended: false,
            },
            _ => {
                let (queue, thread) = Queue::fill(needed, (options, adapts), signal, spill);
                Way::Aside(queue, Some(thread))
            }
        };
        let (bytes, lens) = (Vec::new(), VecDeque::new());
        Transfer { way, file_id, next_block, blocks: 0, bytes, at: 0, lens }
    }

    /// The next block.
    ///
    /// # Errors
    /// Those of the pass.
    pub(crate) fn next(&mut self) -> Result<Next<'_>> {
        while self.lens.is_empty() {
            (self.at, self.bytes) = (0, Vec::new());
            let (bytes, lens) = (&mut self.bytes, &mut self.lens);
            match &mut self.way {
                Way::InTurn { needed, walk, progress, ended } => {
                    if *ended {
                        return Ok(Next::End);
                    }
                    *ended = !walk.step(&**needed, progress, &mut |piece| {
                        bytes.extend_from_slice(&piece.bytes);
                        lens.extend(piece.blocks.drain(..).map(|block| block.len));
                        piece.bytes.clear();
                        Ok(())
                    })?;
                }
                Way::Aside(queue, _) => match queue.take()? {
                    Some(Some((encoded, of))) => {
                        *bytes = encoded;
                        lens.extend(of);
                    }
                    Some(None) => return Ok(Next::End),
                    None => return Ok(Next::NotYet),
                },
            }
        }
        let start = self.at;
        self.at += self.lens.pop_front().unwrap_or(0);
        let block = &mut self.bytes[start..self.at];
        number(block, &self.file_id, self.next_block);
        self.next_block += 1;
        self.blocks += 1;
        Ok(Next::Block(block))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Way::Aside(queue, thread) = &mut self.way {
            // Relaxed: a wish, which orders nothing else.
            queue.progress.cancelled.store(true, Ordering::Relaxed);
            queue.state().is_left = true;
            queue.room.notify_all();
            // A panic there is our bug; what it left behind is a state that was not sent.
            let _ = thread.take().map(JoinHandle::join);
        }
    }
}

/// Whether a link that took so many bytes in that time is.
fn is_fast(bytes: u64, within: Duration) -> bool {
    u128::from(bytes) * 1000 >= within.as_millis() * u128::from(FAST)
}

impl Queue {
    /// Has all that is needed encoded on threads of its own.
    fn fill(
        needed: Needed,
        (options, adapts): (WriterOptions, bool),
        signal: &Arc<Signal>,
        spill: Option<(&Arc<Log>, u64)>,
    ) -> (Arc<Self>, JoinHandle<()>) {
        let queue = Arc::new(Self {
            state: Mutex::default(),
            begun: Instant::now(),
            spill: spill.map(|(log, most)| (Arc::clone(log), most)),
            room: Condvar::new(),
            signal: Arc::clone(signal),
            progress: Progress { in_haste: adapts.into(), ..Progress::default() },
        });
        let filled = Arc::clone(&queue);
        let run = move || {
            let put = &mut |piece: &mut Piece| filled.put(std::mem::take(piece));
            let ended = encode_all(&needed, options, &filled.progress, put);
            // The cut is not needed any more, whoever still takes.
            drop(needed);
            filled.state().ended = Some(ended);
            filled.signal.wake();
        };
        let thread = thread::Builder::new().name("stillframe-pass".into());
        let thread = thread.spawn(run).expect("the system starts a thread");
        (queue, thread)
    }

    fn state(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room, or makes some.
    fn put(&self, piece: Piece) -> Result<()> {
        let Piece { bytes, blocks } = piece;
        let lens = blocks.iter().map(|block| block.len).collect();
        let mut state = self.state();
        while state.bytes > QUEUE_BYTES && !state.is_left {
            let left = PATIENCE.saturating_sub(self.begun.elapsed());
            if left.is_zero() && !is_fast(state.taken_in_all, self.begun.elapsed()) {
                self.progress.in_haste.store(false, Ordering::Relaxed);
            }
            // Who is fast is waited for.
            let may_spill = !self.progress.in_haste.load(Ordering::Relaxed) && !state.has_failed;
            match &self.spill {
                Some((log, most)) if may_spill && left.is_zero() => {
                    drop(state);
                    let spilled = self.spill(log, *most, &bytes);
                    state = self.state();
                    match spilled {
                        Ok(Some(offset)) => {
                            state.pieces.push_back(Encoded { lens, bytes: Bytes::Spilled(offset) });
                            drop(state);
                            self.signal.wake();
                            return Ok(());
                        }
                        // A full disk, say. The log is to have what room the file takes: the replica asks again, for what has not come.
                        Err(error) if state.pieces.iter().any(Encoded::is_spilled) => {
                            (state.pieces, state.bytes) = (VecDeque::new(), 0);
                            state.file = None;
                            return Err(error);
                        }
                        Ok(None) | Err(_) => state.has_failed = true,
                    }
                }
                _ => {
                    let at_most = left.max(LOOK);
                    let waited = self.room.wait_timeout(state, at_most);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        if state.is_left {
            return Err(Error::Cancelled);
        }
        state.bytes += bytes.len();
        state.pieces.push_back(Encoded { lens, bytes: Bytes::Here(bytes) });
        drop(state);
        self.signal.wake();
        Ok(())
    }

    /// Writes into the file, and tells where; `None` if it is as long as it may get. Nobody else does.
    fn spill(&self, log: &Log, most: u64, bytes: &[u8]) -> Result<Option<u64>> {
        let (file, offset) = {
            let state = self.state();
            let last = state.pieces.iter().rev().find_map(|piece| match piece.bytes {
                Bytes::Spilled(offset) => Some(offset + piece.lens.iter().sum::<usize>() as u64),
                Bytes::Here(_) => None,
            });
            (state.file.clone(), last.unwrap_or(0))
        };
        if offset.saturating_add(bytes.len() as u64) > most {
            return Ok(None);
        }
        let file = match file {
            Some(file) => file,
            None => {
                let file: Arc<dyn DiskFile> = log.directory.create_nameless()?.into();
                self.state().file.insert(file).clone()
            }
        };
        let told = |source| Error::io("write", Path::new(NAMELESS), source);
        write_all_at(&*file, bytes, offset).map_err(told)?;
        Ok(Some(offset))
    }

    /// The next blocks, and their lengths; `Some(None)` behind the last. One takes them.
    fn take(&self) -> Result<Option<Option<Taken>>> {
        let mut state = self.state();
        // Read while it stands in the queue, without the lock: its place in the file is free only when it has gone from there.
        let mut spilled = None;
        if let Some(Encoded { lens, bytes: Bytes::Spilled(offset) }) = state.pieces.front() {
            let (len, offset) = (lens.iter().sum(), *offset);
            let file = state.file.clone().expect("our bug: spilled without a file");
            drop(state);
            let mut bytes = vec![0; len];
            let told = |source| Error::io("read", Path::new(NAMELESS), source);
            read_exact_at(&*file, &mut bytes, offset).map_err(told)?;
            spilled = Some(bytes);
            state = self.state();
        }
        if let Some(Encoded { lens, bytes }) = state.pieces.pop_front() {
            let bytes = match (bytes, spilled) {
                (Bytes::Here(bytes), _) => {
                    state.bytes -= bytes.len();
                    bytes
                }
                (Bytes::Spilled(_), bytes) => bytes.expect("our bug: one takes them"),
            };
            let len = bytes.len() as u64;
            state.taken += len;
            state.taken_in_all += len;
            if state.taken >= MEASURED {
                let since = state.since.replace(Instant::now());
                let taken = std::mem::take(&mut state.taken);
                if since.is_some_and(|since| !is_fast(taken, since.elapsed())) {
                    // Relaxed: a hint.
                    self.progress.in_haste.store(false, Ordering::Relaxed);
                }
            }
            if state.has_failed && !state.pieces.iter().any(Encoded::is_spilled) {
                state.file = None;
            }
            drop(state);
            self.room.notify_all();
            return Ok(Some(Some((bytes, lens))));
        }
        match state.ended.take() {
            None => Ok(None),
            Some(Ok(())) => {
                state.ended = Some(Ok(()));
                Ok(Some(None))
            }
            Some(Err(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim::{CallKind, DiskFault, SimDisk};
    use crate::storage::writer::Packed;
    use crate::{Database, Durability};

    const PIECE: usize = 1 << 20;

    /// The queue of a link that has proven slow, whose file may take three pieces.
    fn slow_queue(db: &Database) -> Queue {
        let progress = Progress::default();
        progress.in_haste.store(false, Ordering::Relaxed);
        Queue {
            state: Mutex::default(),
            begun: Instant::now().checked_sub(2 * PATIENCE).unwrap(),
            spill: Some((Arc::clone(db.engine().log().unwrap()), 3 * PIECE as u64)),
            room: Condvar::new(),
            signal: Arc::default(),
            progress,
        }
    }

    fn on(disk: &SimDisk) -> Database {
        let builder = Database::builder().disk(disk.clone()).manual_log();
        builder.durability(Durability::Memory).open("/db").unwrap()
    }

    fn piece(number: u8) -> Piece {
        Piece { bytes: vec![number; PIECE], blocks: vec![Packed { len: PIECE, summary: None }] }
    }

    /// What is put until the file is used, and then `more` pieces.
    fn put(queue: &Queue, more: u8) -> u8 {
        let here = u8::try_from(QUEUE_BYTES / PIECE).unwrap() + 1;
        (0..here + more).for_each(|number| queue.put(piece(number)).unwrap());
        here + more
    }

    fn spilled(queue: &Queue) -> usize {
        queue.state().pieces.iter().filter(|piece| piece.is_spilled()).count()
    }

    #[test]
    fn a_file_without_a_name_takes_so_much_and_the_rest_waits() {
        let db = on(&SimDisk::new());
        let queue = slow_queue(&db);
        let count = put(&queue, 3);
        assert_eq!(spilled(&queue), 3);
        thread::scope(|scope| {
            let last = scope.spawn(|| queue.put(piece(count)).unwrap());
            while !queue.state().has_failed {
                assert!(!last.is_finished(), "it was let in");
                thread::yield_now();
            }
            assert_eq!(spilled(&queue), 3);
            for number in 0..=count {
                let taken = loop {
                    match queue.take().unwrap() {
                        Some(taken) => break taken.unwrap(),
                        None => thread::yield_now(),
                    }
                };
                assert!(taken.0.iter().all(|byte| *byte == number) && taken.1 == [PIECE]);
            }
        });
        assert!(queue.state().file.is_none(), "its room is given back");
    }

    /// What a slow replica has not taken filled the disk, and the log stood still until it had.
    #[test]
    fn a_disk_that_fills_up_is_not_kept_full() {
        for error in [DiskFault::ENOSPC, DiskFault::EIO] {
            let disk = SimDisk::new();
            let db = on(&disk);
            let queue = slow_queue(&db);
            put(&queue, 2);
            disk.inject(DiskFault::error(error).on(CallKind::Write));
            assert!(matches!(queue.put(piece(0)), Err(Error::Io { op: "write", .. })));
            assert!(queue.state().file.is_none() && queue.state().pieces.is_empty());
            // There was no room from the beginning: it waits, as without a disk.
            let queue = slow_queue(&db);
            let count = put(&queue, 0);
            disk.inject(DiskFault::error(error).on(CallKind::Write));
            thread::scope(|scope| {
                let last = scope.spawn(|| queue.put(piece(count)).unwrap());
                while !queue.state().has_failed {
                    assert!(!last.is_finished(), "it was let in");
                    thread::yield_now();
                }
                assert_eq!(queue.take().unwrap().unwrap().unwrap().0.len(), PIECE);
            });
            assert_eq!(spilled(&queue), 0);
        }
    }
}
