//! Turns a cut into the bytes of a snapshot file: encoders in parallel, one writer that keeps the order.
//!
//! An encoder claims the next runs of leaves under the cursor's lock by copying them, then encodes,
//! compresses and checksums them on its own: a run becomes a block. Blocks travel in pieces of many, because waking the
//! writer costs as much as compressing a block. Each claim has a channel of its own, queued in the order of claims,
//! so the writer takes blocks in key order while later claims are being encoded. Both kinds of queue are
//! bounded, and so is a piece: a slow sink stops the encoders, and then nothing is held but copies of a few leaves
//! and a few pieces. A single encoder writes as well, without a thread or a queue: it leaves the other cores alone.
//!
//! Invariant: where blocks end depends on nothing but the leaves and what a run takes: neither the number of encoders
//! nor the length of a claim shows in the bytes.
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

/// A run ends with the leaf that brings it to so many bytes of keys and values: with leaves of 4 to
/// 8 KiB, blocks are about 16 KiB. Measured with 16-byte keys and JSON of 110 bytes, in place: 63 k random gets
/// a second and a file of 0.434 of raw; at 32 KiB 38 k and 0.409, at 24 KiB 49 k and 0.418.
const RUN_BYTES: usize = 14 << 10;
/// A claim ends with the run that brings it to so many times the bytes of one. Two encoders on two cores took 540 MB of
/// the same records a second with 4, 640 with 8, 690 with 16, 670 with 32.
const RUNS: usize = 16;
/// A block is closed, and a leaf split, before a body outgrows this. Below 64 KiB the compressor's table is
/// the small, fast one.
const BLOCK_BYTES: usize = 32 << 10;
/// Leaves that are not wanted end a claim when there are so many of them.
const PASSED: usize = 1 << 10;
/// A piece that has grown to so many bytes is sent before its claim is done: matters for large values only.
const PIECE_BYTES: usize = 256 << 10;
/// Pieces that an encoder may be ahead of the writer within one claim.
const PIECES: usize = 2;
/// The sink gets at most so many bytes of them at once.
const PUT_BYTES: usize = 64 << 10;
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
    /// Blocks are not to be compressed.
    pub(crate) in_haste: AtomicBool,
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
    /// Encoders; 0 counts as 1. One writes as well, beside several the writer is one thread more.
    pub(crate) threads: usize,
    /// Bytes of file per second.
    pub(crate) rate_limit: Option<u64>,
    /// Ends a run at so many bytes of keys and values instead of the usual.
    pub(crate) run_bytes: Option<usize>,
}

/// Packed blocks on their way to the writer, without a place yet.
#[derive(Default)]
pub(crate) struct Piece {
    /// The blocks, one directly behind the other.
    pub(crate) bytes: Vec<u8>,
    pub(crate) blocks: Vec<Packed>,
}

/// A block of a piece; a summary comes with leaf blocks.
pub(crate) struct Packed {
    pub(crate) len: usize,
    pub(crate) summary: Option<Summary>,
}

type Pieces = Receiver<Result<Piece>>;

/// Takes a piece and leaves an empty one in its place.
pub(crate) type Outlet<'a> = &'a mut dyn FnMut(&mut Piece) -> Result<()>;

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
    let mut writer = Writer::new(cut, file_id, options, progress, sink)?;
    encode_all(source, options, progress, &mut |piece| writer.take(piece))?;
    writer.finish(cut)
}

/// Leaves become blocks, a claim at a time.
pub(crate) struct Walk<C> {
    cursor: Cursor,
    encoder: Encoder,
    claimed: Vec<Claimed<C>>,
}

impl<C: LeafCopy> Walk<C> {
    pub(crate) fn new(options: WriterOptions) -> Self {
        let (cursor, encoder) = (Cursor::new(options), Encoder::new(options.codec));
        Walk { cursor, encoder, claimed: Vec::new() }
    }

    /// Encodes what a claim takes; `false` once there is nothing left.
    pub(crate) fn step<S: LeafSource<Copy = C>>(
        &mut self,
        source: &S,
        progress: &Progress,
        outlet: Outlet<'_>,
    ) -> Result<bool> {
        if self.cursor.next.is_some() {
            let count = self.cursor.copy(source, progress, &mut self.claimed)?;
            self.encoder.claim(&mut self.claimed[..count], progress, outlet)?;
        }
        Ok(self.cursor.next.is_some())
    }
}

/// Encodes the leaves of `source` that are wanted, and hands the blocks to `outlet` in key order.
///
/// # Errors
/// What `source` and `outlet` say; [`Error::Cancelled`].
pub(crate) fn encode_all<S: LeafSource>(
    source: &S,
    options: WriterOptions,
    progress: &Progress,
    outlet: Outlet<'_>,
) -> Result<()> {
    if options.threads <= 1 {
        let mut walk = Walk::new(options);
        while walk.step(source, progress, outlet)? {}
        return Ok(());
    }
    let cursor = Cursor::new(options);
    let (claims, ordered) = bounded::<Pieces>(options.threads * 2);
    // Buffers go round: from the writer back to whoever encodes next.
    let (used, spare) = bounded::<Piece>(options.threads * 4);
    let (cursor, ended) = (Mutex::new(cursor), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..options.threads {
            let (cursor, ended) = (&cursor, &ended);
            let (claims, spare) = (claims.clone(), spare.clone());
            let encoder = Encoder::new(options.codec);
            scope.spawn(move || encode(source, cursor, ended, &claims, &spare, progress, encoder));
        }
        // The encoders hold the only senders now: when the last has ended, so has the queue.
        drop(claims);
        let ordered = Ordered { claims: ordered, ended: &ended };
        for piece in ordered.claims.iter().flatten() {
            let mut piece = piece?;
            outlet(&mut piece)?;
            // A full pool keeps no more; the buffers are freed then.
            let _ = used.try_send(piece);
        }
        Ok(())
    })
}

/// The writer's end of the queue of claims.
struct Ordered<'a> {
    claims: Receiver<Pieces>,
    ended: &'a AtomicBool,
}

impl Drop for Ordered<'_> {
    /// Lets all encoders end. A bounded channel keeps what it holds until its last sender has gone, even when nobody can
    /// receive it any more: an encoder would wait for room in a queue that is held there, and so never go.
    fn drop(&mut self) {
        // Relaxed: a wish, which orders nothing else.
        self.ended.store(true, Ordering::Relaxed);
        self.claims.iter().for_each(drop);
    }
}

/// Where the next claim starts; `None` once there is none.
struct Cursor {
    next: Option<Vec<u8>>,
    run_bytes: usize,
}

/// A leaf of a claim.
#[derive(Default)]
struct Claimed<C> {
    copy: C,
    raw_bytes: usize,
    ends_run: bool,
}

impl Cursor {
    /// Copies the next runs of leaves into `claimed` and queues a channel for their blocks; returns how many leaves, and
    /// where to put the blocks. `None` when nothing is left, or nobody listens.
    fn claim<S: LeafSource>(
        &mut self,
        source: &S,
        claims: &Sender<Pieces>,
        progress: &Progress,
        claimed: &mut Vec<Claimed<S::Copy>>,
    ) -> Option<(Result<usize>, Sender<Result<Piece>>)> {
        self.next.as_ref()?;
        let copied = self.copy(source, progress, claimed);
        if copied.is_err() {
            self.next = None;
        }
        let (pieces, queue) = bounded(PIECES);
        // Under the lock, so that queues stand in the order of claims.
        claims.send(queue).ok()?;
        Some((copied, pieces))
    }

    fn new(options: WriterOptions) -> Self {
        let run_bytes = options.run_bytes.unwrap_or(RUN_BYTES).max(1);
        Cursor { next: Some(Vec::new()), run_bytes }
    }

    /// Copies the next runs of leaves into `claimed` and returns how many leaves. One that is not wanted ends a run.
    fn copy<S: LeafSource>(
        &mut self,
        source: &S,
        progress: &Progress,
        claimed: &mut Vec<Claimed<S::Copy>>,
    ) -> Result<usize> {
        progress.check()?;
        let (mut count, mut run, mut bytes, mut passed) = (0, 0, 0, 0);
        while let Some(from) = &mut self.next
            && bytes < self.run_bytes.saturating_mul(RUNS)
            && passed < PASSED
        {
            if count == claimed.len() {
                claimed.push(Claimed::default());
            }
            let Claimed { copy, raw_bytes, ends_run } = &mut claimed[count];
            let is_wanted = source.copy_leaf(from, copy)?;
            assert!(copy.low() == from, "a leaf starts where its left neighbour ends");
            match copy.high() {
                Some(high) => {
                    assert!(high > from.as_slice(), "a leaf has a range");
                    from.clear();
                    from.extend_from_slice(high);
                }
                None => self.next = None,
            }
            if !is_wanted {
                passed += 1;
                if let Some(last) = count.checked_sub(1) {
                    claimed[last].ends_run = true;
                }
                bytes += std::mem::take(&mut run);
                continue;
            }
            *raw_bytes = copy.raw_bytes();
            run += *raw_bytes;
            *ends_run = run >= self.run_bytes || self.next.is_none();
            if *ends_run {
                bytes += run;
                run = 0;
            }
            count += 1;
        }
        Ok(count)
    }
}

/// One encoder's life: claim, encode, until nothing is left or nobody wants it.
fn encode<S: LeafSource>(
    source: &S,
    cursor: &Mutex<Cursor>,
    ended: &AtomicBool,
    claims: &Sender<Pieces>,
    spare: &Receiver<Piece>,
    progress: &Progress,
    mut encoder: Encoder,
) {
    let mut claimed = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let claim = cursor.lock().claim(source, claims, progress, &mut claimed);
        let Some((copied, pieces)) = claim else { return };
        let mut send = |piece: &mut Piece| {
            let full = std::mem::replace(piece, spare.try_recv().unwrap_or_default());
            // Closed only by a writer that failed, whose error is the one that is told.
            pieces.send(Ok(full)).map_err(|_| Error::Cancelled)
        };
        let encoded =
            copied.and_then(|count| encoder.claim(&mut claimed[..count], progress, &mut send));
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
    raw: Vec<u8>,
    parcel: Parcel,
}

impl Encoder {
    fn new(codec: Codec) -> Self {
        let parcel = Parcel { packer: Packer::new(codec), piece: Piece::default() };
        Encoder { builder: LeavesBuilder::default(), raw: Vec::new(), parcel }
    }

    /// Encodes neighbouring leaves, each run as one block, or several if it needs them.
    fn claim<C: LeafCopy>(
        &mut self,
        claimed: &mut [Claimed<C>],
        progress: &Progress,
        outlet: Outlet<'_>,
    ) -> Result<()> {
        self.parcel.packer.haste(progress.in_haste.load(Ordering::Relaxed));
        for Claimed { copy, raw_bytes, ends_run } in claimed {
            if !self.builder.is_empty() && self.builder.raw_len() + *raw_bytes > BLOCK_BYTES {
                self.close(Some(copy.low()), outlet)?;
            }
            self.leaf(copy, progress, outlet)?;
            if *ends_run {
                self.close(copy.high(), outlet)?;
            }
            // The next claim may be of fewer leaves: none may keep a large value alive meanwhile.
            copy.clear();
        }
        self.parcel.send(outlet)
    }

    fn leaf<C: LeafCopy>(
        &mut self,
        copy: &C,
        progress: &Progress,
        outlet: Outlet<'_>,
    ) -> Result<()> {
        self.builder.begin_leaf(copy.low(), copy.stamp());
        copy.each(&mut |entry| {
            let inline = entry.value.len() <= MAX_INLINE_VALUE_LEN;
            let value_len = if inline { entry.value.len() } else { 0 };
            let added = entry.key.len() + value_len;
            if self.builder.open_entries() > 0 && self.builder.raw_len() + added > BLOCK_BYTES {
                let fence = separator(self.builder.last_key(), entry.key).to_vec();
                self.builder.end_leaf();
                self.close(Some(&fence), outlet)?;
                self.builder.begin_leaf(&fence, copy.stamp());
            }
            let value = if inline {
                Stored::Inline(entry.value)
            } else {
                Stored::Large(self.chunks(entry.value, progress, outlet)?)
            };
            self.builder.push(entry.key, value, entry.expire_at);
            Ok(())
        })?;
        self.builder.end_leaf();
        Ok(())
    }

    /// Packs a large value ahead of its block.
    fn chunks(&mut self, value: &[u8], progress: &Progress, outlet: Outlet<'_>) -> Result<Large> {
        let mut chunk_bytes = 0;
        for chunk in value.chunks(CHUNK_LEN) {
            progress.check()?;
            chunk_bytes += self.parcel.pack(Kind::Chunk, chunk, None, outlet)? as u64;
        }
        let hash = fingerprint::value_hash(value);
        Ok(Large { len: value.len(), hash, chunk_bytes, back_bytes: 0, back_blocks: 0 })
    }

    /// Ends the block that is being built; `high` is where the next one starts.
    fn close(&mut self, high: Option<&[u8]>, outlet: Outlet<'_>) -> Result<()> {
        let summary = self.builder.finish(high, &mut self.raw);
        self.parcel.pack(Kind::Leaves, &self.raw, Some(summary), outlet).map(|_| ())
    }
}

/// Packs blocks into the piece that is sent next.
struct Parcel {
    packer: Packer,
    piece: Piece,
}

impl Parcel {
    /// Packs a block and returns its length; sends the piece if that has grown long.
    fn pack(
        &mut self,
        kind: Kind,
        raw: &[u8],
        summary: Option<Summary>,
        outlet: Outlet<'_>,
    ) -> Result<usize> {
        let Piece { bytes, blocks } = &mut self.piece;
        let start = bytes.len();
        let entries = summary.as_ref().map_or(0, |summary| summary.totals.entries);
        let packed = self.packer.pack(kind, raw, u32::try_from(entries).unwrap_or(u32::MAX), bytes);
        packed.expect("no block is empty; leaves are split before they outgrow one, as are values");
        let len = bytes.len() - start;
        blocks.push(Packed { len, summary });
        if bytes.len() >= PIECE_BYTES {
            self.send(outlet)?;
        }
        Ok(len)
    }

    /// Sends what was packed since it last did, if anything.
    fn send(&mut self, outlet: Outlet<'_>) -> Result<()> {
        if self.piece.blocks.is_empty() { Ok(()) } else { outlet(&mut self.piece) }
    }
}

/// The shortest key that is above `left` and not above `right`, which is above `left`.
fn separator<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    let shared = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    &right[..right.len().min(shared + 1)]
}

/// Gives blocks their places and writes them.
struct Writer<'a> {
    assembly: Assembly,
    output: Output<'a>,
}

impl<'a> Writer<'a> {
    fn new(
        cut: &Cut,
        file_id: FileId,
        options: WriterOptions,
        progress: &'a Progress,
        sink: &'a mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Self> {
        let Cut { position, time_ms, .. } = *cut;
        progress.total_entries.store(cut.entries, Ordering::Relaxed);
        let header = Header { file_id, position, time_ms, codec: options.codec };
        let (assembly, bytes) = Assembly::new(header, cut.lineage.clone());
        let mut output = Output { pace: Pace::new(options.rate_limit), progress, sink };
        output.put(&bytes)?;
        Ok(Writer { assembly, output })
    }

    /// Writes what is in `piece` and empties it.
    fn take(&mut self, piece: &mut Piece) -> Result<()> {
        let (mut entries, mut raw_bytes) = (0, 0);
        let mut rest = &mut piece.bytes[..];
        for Packed { len, summary } in piece.blocks.drain(..) {
            let block = rest.split_off_mut(..len).expect("the blocks fill the piece");
            let Some(summary) = summary else {
                self.assembly.chunk(block);
                continue;
            };
            self.assembly.leaves(block, &summary);
            entries += summary.totals.entries;
            raw_bytes += summary.totals.raw_bytes;
        }
        // In parts, so that it can be cancelled and keeps its pace within a piece.
        piece.bytes.chunks(PUT_BYTES).try_for_each(|part| self.output.put(part))?;
        self.output.progress.entries.fetch_add(entries, Ordering::Relaxed);
        self.output.progress.raw_bytes.fetch_add(raw_bytes, Ordering::Relaxed);
        piece.bytes.clear();
        Ok(())
    }

    fn finish(mut self, cut: &Cut) -> Result<Footer> {
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let Some((tail, footer)) = self.assembly.finish() else {
            return Err(Error::io("index", Path::new(STREAM), too_large()));
        };
        check_totals("entry count", footer.totals.entries, cut.entries)?;
        check_totals("fingerprint", footer.totals.fingerprint, cut.fingerprint)?;
        self.output.put(&tail)?;
        Ok(footer)
    }
}

/// The sink, and what is told of it.
struct Output<'a> {
    pace: Pace,
    progress: &'a Progress,
    sink: &'a mut dyn FnMut(&[u8]) -> Result<()>,
}

impl Output<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.progress.check()?;
        (self.sink)(bytes)?;
        self.progress.file_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.pace.after(bytes.len() as u64, self.progress)
    }
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
