//! What a writer says of itself, in a file that both processes have: a store into its map is there at once and
//! survives any kill, and costs the writer no system call. The only file here that opens `unsafe`.
//!
//! Invariants:
//!
//! 1. The map is a shared one of a file of [`LEN`] bytes, which nobody shortens while it is mapped: the campaign makes it and
//!    removes it when the writer has ended.
//! 2. All that is mapped is used as `AtomicU64` alone, in both processes; the campaign reads the file by calls of the system.
#![expect(unsafe_code, reason = "atomics in a mapped file, which another process reads")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;

/// Writers in a process.
pub(crate) const WRITERS: usize = 4;
/// So many of the last operations of each writer are told with their place in the order.
const RING: usize = 1 << 14;

const STATE: usize = 0;
const SAVED: usize = 1;
const WRITER: usize = 8;
const PER_WRITER: usize = 8;
const RINGS: usize = WRITER + WRITERS * PER_WRITER;
const WORDS: usize = RINGS + WRITERS * RING * 2;
const LEN: usize = WORDS * 8;

/// The state of a process that has opened its directory.
pub(crate) const WRITING: u64 = 1;

fn start_of(writer: usize) -> usize {
    WRITER + writer * PER_WRITER
}

fn ring_of(writer: usize, n: u64) -> usize {
    RINGS + (writer * RING + (n % RING as u64) as usize) * 2
}

/// The writing side.
pub(crate) struct Told {
    map: MmapRaw,
}

impl Told {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() != LEN as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self { map: MmapRaw::map_raw(&file)? })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < WORDS);
        // SAFETY: `at` lies within the map (checked above), which is page-aligned, mapped as long as `self` lives and as
        // long as the file (invariant 1), and used as atomics alone (invariant 2).
        unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().cast::<u64>().add(at)) }
    }

    // Release, all of them: who finds a later store finds the earlier ones. A kill stops the whole process at once, and
    // what it had stored is in the system's memory.

    pub(crate) fn state(&self, state: u64) {
        self.word(STATE).store(state, Ordering::Release);
    }

    /// All batches up to `seq` are on the disk.
    pub(crate) fn saved(&self, seq: u64) {
        self.word(SAVED).fetch_max(seq, Ordering::AcqRel);
    }

    /// The first operation that `writer` is to do.
    pub(crate) fn first(&self, writer: usize) -> u64 {
        self.word(start_of(writer) + 2).load(Ordering::Acquire)
    }

    /// `writer` begins operation `n`; `seq` is the last batch that was committed before.
    pub(crate) fn begins(&self, writer: usize, n: u64, seq: u64) {
        let ring = ring_of(writer, n);
        self.word(ring).store(seq, Ordering::Release);
        self.word(ring + 1).store(0, Ordering::Release);
        self.word(start_of(writer)).store(n, Ordering::Release);
    }

    /// It is acknowledged; it is none later than `seq`, and if that is `exact` it is that batch.
    pub(crate) fn acknowledged(&self, writer: usize, n: u64, seq: u64, exact: bool) {
        let ring = ring_of(writer, n);
        if exact {
            self.word(ring).store(seq - 1, Ordering::Release);
        }
        self.word(ring + 1).store(seq, Ordering::Release);
        self.word(start_of(writer) + 1).store(n, Ordering::Release);
    }
}

/// The reading side: what was told, at one time.
pub(crate) struct Progress {
    words: Vec<u64>,
}

impl Progress {
    /// Makes the file for a run in which each writer begins behind `done`.
    pub(crate) fn create(path: &Path, done: &[u64; WRITERS]) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(LEN as u64)?;
        for (writer, done) in done.iter().enumerate() {
            let words = [*done, *done, done + 1];
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            file.write_all_at(&bytes, start_of(writer) as u64 * 8)?;
        }
        Ok(())
    }

    /// Reads it. While the writers go on, a figure that is read later may be newer than one that was read earlier.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(path)?;
        let words =
            bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("eight")));
        let words: Vec<u64> = words.collect();
        if words.len() != WORDS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self { words })
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.words[STATE] == WRITING
    }

    pub(crate) fn saved(&self) -> u64 {
        self.words[SAVED]
    }

    /// The last operation that was begun.
    pub(crate) fn begun(&self, writer: usize) -> u64 {
        self.words[start_of(writer)]
    }

    /// The last operation that was acknowledged.
    pub(crate) fn acknowledged(&self, writer: usize) -> u64 {
        self.words[start_of(writer) + 1]
    }

    /// Between which batches operation `n` is: behind the first, none later than the second; `None` if that is forgotten, or was
    /// never told.
    pub(crate) fn place(&self, writer: usize, n: u64) -> Option<(u64, Option<u64>)> {
        let begun = self.begun(writer);
        // A margin for those that are overwritten while they are read.
        let is_known =
            n >= self.words[start_of(writer) + 2] && n <= begun && begun - n < RING as u64 / 2;
        is_known.then(|| {
            let ring = ring_of(writer, n);
            let last = self.words[ring + 1];
            (self.words[ring], (n <= self.acknowledged(writer) && last > 0).then_some(last))
        })
    }

    /// These acknowledgements instead of those that were read: all that was told before some moment.
    pub(crate) fn with_acknowledged_of(mut self, earlier: &Progress) -> Self {
        for writer in 0..WRITERS {
            self.words[start_of(writer) + 1] = earlier.acknowledged(writer);
        }
        self.words[SAVED] = earlier.saved();
        self.words[STATE] = earlier.words[STATE];
        self
    }
}
