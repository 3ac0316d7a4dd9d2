//! Turns a cut into the bytes of a snapshot file: encoders in parallel, one writer that keeps the order.
//!
//! An encoder claims the next run of leaves under the cursor's lock by copying them, then encodes,
//! compresses and checksums them on its own. Each claim has a channel of its own, queued in the order of claims,
//! so the writer takes blocks in key order while later claims are being encoded. Both kinds of queue are
//! bounded: a slow sink stops the encoders, and then nothing is held but copies of a few leaves.
//!
//! Invariant: the writer returns `Ok` only if what was written has the count and the fingerprint that
//! the cut promised, recomputed from the bytes of every entry.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::STREAM;
use super::source::{Cut, LeafCopy, LeafSource};
use crate::error::{Error, Result};
use crate::fingerprint;
use crate::format::assembly::Assembly;
use crate::format::block::{Kind, Packer};
use crate::format::leaves::{Large, LeavesBuilder, Stored, Summary};
use crate::format::snapshot::{Codec, FileId, Footer, Header};
use crate::format::{CHUNK_LEN, MAX_INLINE_VALUE_LEN};
use crate::sync::Mutex;

/// A claim ends with the leaf that brings it to so many bytes of keys and values: with leaves of 4 to
/// 8 KiB, blocks are about 16 KiB. Measured with 16-byte keys and JSON of 110 bytes, in place: 63 k random gets
/// a second and a file of 0.434 of raw; at 32 KiB 38 k and 0.409, at 24 KiB 49 k and 0.418.
const CLAIM_BYTES: usize = 14 << 10;
/// A block is closed, and a leaf split, before a body outgrows this. Below 64 KiB the compressor's table is
/// the small, fast one.
const BLOCK_BYTES: usize = 32 << 10;
/// Blocks that an encoder may be ahead of the writer within one claim: matters for large values only.
const PIECES: usize = 8;
/// Nobody sleeps longer than this without looking whether the save was cancelled.
const NAP: Duration = Duration::from_millis(20);

/// How a save is going; shared by those who write and those who watch.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) entries: AtomicU64,
    pub(crate) total_entries: AtomicU64,
    pub(crate) raw_bytes: AtomicU64,
    pub(crate) file_bytes: AtomicU64,
    pub(crate) cancelled: AtomicBool,
}

impl Progress {
    /// # Errors
    /// [`Error::Cancelled`] once someone cancelled.
    pub(crate) fn check(&self) -> Result<()> {
        // Relaxed, here and in every use of these: counters and a wish, which order nothing else.
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// What a save is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriterOptions {
    pub(crate) codec: Codec,
    /// Encoders, at least one; the writer is one thread more.
    pub(crate) threads: usize,
    /// Bytes of file per second.
    pub(crate) rate_limit: Option<u64>,
    /// Ends a claim at so many bytes of keys and values instead of the usual.
    pub(crate) claim_bytes: Option<usize>,
}

/// A packed block on its way to the writer; a summary comes with leaf blocks.
struct Piece {
    block: Vec<u8>,
    summary: Option<Summary>,
}

type Pieces = Receiver<Result<Piece>>;

/// Writes the snapshot of `source` at `cut` to `sink`, front to back.
///
/// # Errors
/// What `source` and `sink` say; [`Error::Cancelled`]; [`Error::SelfCheck`] if the content is not what the cut promised.
pub(crate) fn write_snapshot<S: LeafSource>(
    source: &S,
    cut: &Cut,
    file_id: FileId,
    options: WriterOptions,
    progress: &Progress,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Footer> {
    let threads = options.threads.max(1);
    let (claims, ordered) = bounded::<Pieces>(threads * 2);
    // Buffers go round: from the writer back to whoever encodes next.
    let (used, spare) = bounded::<Vec<u8>>(threads * 4);
    let claim_bytes = options.claim_bytes.unwrap_or(CLAIM_BYTES);
    let cursor = Mutex::new(Cursor { next: Some(Vec::new()), claim_bytes });
    thread::scope(|scope| {
        for _ in 0..threads {
            let encoder = Encoder::new(options.codec, spare.clone());
            let (cursor, claims) = (&cursor, claims.clone());
            scope.spawn(move || encode(source, cursor, &claims, progress, encoder));
        }
        // The encoders hold the only senders now: when the last has ended, so has the queue.
        drop(claims);
        write_in_order(cut, file_id, options, progress, ordered, &used, sink)
    })
}

/// Where the next claim starts; `None` once there is none.
struct Cursor {
    next: Option<Vec<u8>>,
    claim_bytes: usize,
}

impl Cursor {
    /// Copies the next run of leaves into `copies`, each with its size, and queues a channel for their blocks; returns how many
    /// leaves, and where to put the blocks. `None` when nothing is left, or nobody listens.
    fn claim<S: LeafSource>(
        &mut self,
        source: &S,
        claims: &Sender<Pieces>,
        progress: &Progress,
        copies: &mut Vec<(S::Copy, usize)>,
    ) -> Option<(Result<usize>, Sender<Result<Piece>>)> {
        self.next.as_ref()?;
        let copied = self.copy(source, progress, copies);
        if copied.is_err() {
            self.next = None;
        }
        let (pieces, queue) = bounded(PIECES);
        // Under the lock, so that queues stand in the order of claims.
        claims.send(queue).ok()?;
        Some((copied, pieces))
    }

    fn copy<S: LeafSource>(
        &mut self,
        source: &S,
        progress: &Progress,
        copies: &mut Vec<(S::Copy, usize)>,
    ) -> Result<usize> {
        progress.check()?;
        let (mut count, mut bytes) = (0, 0);
        while let Some(from) = &mut self.next
            && bytes < self.claim_bytes
        {
            if count == copies.len() {
                copies.push(Default::default());
            }
            let (copy, size) = &mut copies[count];
            source.copy_leaf(from, copy)?;
            assert!(copy.low() == from, "a leaf starts where its left neighbour ends");
            match copy.high() {
                Some(high) => {
                    assert!(high > from.as_slice(), "a leaf has a range");
                    from.clear();
                    from.extend_from_slice(high);
                }
                None => self.next = None,
            }
            *size = copy.raw_bytes();
            bytes += *size;
            count += 1;
        }
        Ok(count)
    }
}

/// One encoder's life: claim, encode, until nothing is left or nobody wants it.
fn encode<S: LeafSource>(
    source: &S,
    cursor: &Mutex<Cursor>,
    claims: &Sender<Pieces>,
    progress: &Progress,
    mut encoder: Encoder,
) {
    let mut copies = Vec::new();
    loop {
        let claim = cursor.lock().claim(source, claims, progress, &mut copies);
        let Some((copied, pieces)) = claim else { return };
        let encoded = copied.and_then(|count| encoder.leaves(&copies[..count], progress, &pieces));
        if let Err(error) = encoded {
            // If the writer has gone, its own error is the one that is told.
            let _ = pieces.send(Err(error));
            return;
        }
    }
}

/// Leaves in, packed blocks out.
struct Encoder {
    builder: LeavesBuilder,
    packer: Packer,
    raw: Vec<u8>,
    spare: Receiver<Vec<u8>>,
}

impl Encoder {
    fn new(codec: Codec, spare: Receiver<Vec<u8>>) -> Self {
        let builder = LeavesBuilder::default();
        Encoder { builder, packer: Packer::new(codec), raw: Vec::new(), spare }
    }

    /// Encodes neighbouring leaves as one block, or several if they need it.
    fn leaves<C: LeafCopy>(
        &mut self,
        copies: &[(C, usize)],
        progress: &Progress,
        pieces: &Sender<Result<Piece>>,
    ) -> Result<()> {
        for (copy, size) in copies {
            if !self.builder.is_empty() && self.builder.raw_len() + size > BLOCK_BYTES {
                self.close(Some(copy.low()), pieces)?;
            }
            self.builder.begin_leaf(copy.low(), copy.stamp());
            copy.each(&mut |entry| {
                let inline = entry.value.len() <= MAX_INLINE_VALUE_LEN;
                let value_len = if inline { entry.value.len() } else { 0 };
                let added = entry.key.len() + value_len;
                if self.builder.open_entries() > 0 && self.builder.raw_len() + added > BLOCK_BYTES {
                    let fence = separator(self.builder.last_key(), entry.key).to_vec();
                    self.builder.end_leaf();
                    self.close(Some(&fence), pieces)?;
                    self.builder.begin_leaf(&fence, copy.stamp());
                }
                let value = if inline {
                    Stored::Inline(entry.value)
                } else {
                    Stored::Large(self.chunks(entry.value, progress, pieces)?)
                };
                self.builder.push(entry.key, value, entry.expire_at);
                Ok(())
            })?;
            self.builder.end_leaf();
        }
        match copies.last() {
            Some((last, _)) => self.close(last.high(), pieces),
            None => Ok(()),
        }
    }

    /// Sends a large value ahead of its block.
    fn chunks(
        &mut self,
        value: &[u8],
        progress: &Progress,
        pieces: &Sender<Result<Piece>>,
    ) -> Result<Large> {
        let mut chunk_bytes = 0;
        for chunk in value.chunks(CHUNK_LEN) {
            progress.check()?;
            let mut block = self.spare.try_recv().unwrap_or_default();
            block.clear();
            let packed = self.packer.pack(Kind::Chunk, chunk, 0, &mut block);
            packed.expect("a chunk is not empty and fits its block");
            chunk_bytes += block.len() as u64;
            send(pieces, Piece { block, summary: None })?;
        }
        let hash = fingerprint::value_hash(value);
        Ok(Large { len: value.len(), hash, chunk_bytes, back_bytes: 0, back_blocks: 0 })
    }

    /// Ends the block that is being built; `high` is where the next one starts.
    fn close(&mut self, high: Option<&[u8]>, pieces: &Sender<Result<Piece>>) -> Result<()> {
        let summary = self.builder.finish(high, &mut self.raw);
        let mut block = self.spare.try_recv().unwrap_or_default();
        block.clear();
        let items = u32::try_from(summary.totals.entries).unwrap_or(u32::MAX);
        let packed = self.packer.pack(Kind::Leaves, &self.raw, items, &mut block);
        packed.expect("leaves are split before they outgrow a block");
        send(pieces, Piece { block, summary: Some(summary) })
    }
}

/// The shortest key that is above `left` and not above `right`, which is above `left`.
fn separator<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    let shared = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    &right[..right.len().min(shared + 1)]
}

fn send(pieces: &Sender<Result<Piece>>, piece: Piece) -> Result<()> {
    // Closed only by a writer that failed, whose error is the one that is told.
    pieces.send(Ok(piece)).map_err(|_| Error::Cancelled)
}

fn write_in_order(
    cut: &Cut,
    file_id: FileId,
    options: WriterOptions,
    progress: &Progress,
    ordered: Receiver<Pieces>,
    used: &Sender<Vec<u8>>,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Footer> {
    let Cut { position, time_ms, .. } = *cut;
    progress.total_entries.store(cut.entries, Ordering::Relaxed);
    let mut pace = Pace::new(options.rate_limit);
    let mut put = |bytes: &[u8]| {
        progress.check()?;
        sink(bytes)?;
        progress.file_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        pace.after(bytes.len() as u64, progress)
    };
    let header = Header { file_id, position, time_ms, codec: options.codec };
    let (mut assembly, bytes) = Assembly::new(header, cut.lineage.clone());
    put(&bytes)?;
    for piece in ordered.iter().flatten() {
        let Piece { mut block, summary } = piece?;
        match &summary {
            Some(summary) => assembly.leaves(&mut block, summary),
            None => assembly.chunk(&mut block),
        }
        put(&block)?;
        if let Some(summary) = summary {
            progress.entries.fetch_add(summary.totals.entries, Ordering::Relaxed);
            progress.raw_bytes.fetch_add(summary.totals.raw_bytes, Ordering::Relaxed);
        }
        // A full pool keeps no more; the buffer is freed then.
        let _ = used.try_send(block);
    }
    let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
    let finished = assembly.finish();
    let (tail, footer) =
        finished.ok_or_else(|| Error::io("index", Path::new(STREAM), too_large()))?;
    check_totals("entry count", footer.totals.entries, cut.entries)?;
    check_totals("fingerprint", footer.totals.fingerprint, cut.fingerprint)?;
    put(&tail)?;
    Ok(footer)
}

fn check_totals(field: &'static str, got: u64, expected: u64) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::SelfCheck { field, got, expected }) }
}

/// Keeps the file from growing faster than asked; sleeps with nothing held.
struct Pace {
    limit: Option<u64>,
    start: Instant,
    bytes: u64,
}

impl Pace {
    fn new(limit: Option<u64>) -> Self {
        Pace { limit, start: Instant::now(), bytes: 0 }
    }

    /// Returns when so many bytes more may have been written.
    fn after(&mut self, bytes: u64, progress: &Progress) -> Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        self.bytes += bytes;
        #[expect(clippy::cast_precision_loss, reason = "a sleep may be off by a microsecond")]
        let due = Duration::try_from_secs_f64(self.bytes as f64 / limit.max(1) as f64)
            .unwrap_or(Duration::MAX);
        while let Some(early) = due.checked_sub(self.start.elapsed()).filter(|d| !d.is_zero()) {
            progress.check()?;
            thread::sleep(early.min(NAP));
        }
        Ok(())
    }
}
