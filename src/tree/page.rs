//! A page: the sorted entries of a leaf in one allocation, and the fences they lie within.
//!
//! ```text
//! header | low fence | high fence | slots, ascending by key -> | free | <- entries, in any order |
//! ```
//! A slot is one word: the first 4 bytes of the key behind the fences' common prefix (its *head*), the
//! entry's offset, the length of the key behind the prefix, flags. A search touches only slots until a
//! head is equal. An entry holds what the slot doesn't: lengths, expiry, the rest of the key, the value.
//! Large keys and values lie outside, by reference count.
//!
//! Pages are also what a leaf keeps for stills: such entries carry the tick they died at, may be absent,
//! and a key may have several, ascending by that tick.
//!
//! # Unsafe
//! The file is one of three that may use it: page memory is one raw allocation, prefetching is an
//! intrinsic, and giving memory back to the system is a promise about it. Invariants:
//! 1. `Page::start` points to `Header::cap` initialised bytes, 16-aligned, owned by this page alone.
//! 2. `Header::arena` is a strong count of an `Arc<Arena>`, given up when the page is dropped.
//! 3. `base` is a multiple of 8 and slots `base..base + 8 * count` and the entries they name lie within
//!    `cap`; only this file writes slots and entries, so what an entry says of its lengths is true.
//! 4. An entry with [`LARGE_VALUE`] or [`LARGE_KEY`] owns one strong count of an `Arc<LargeBytes>` each,
//!    whose address (with exposed provenance) is stored in it.
//!
//! Knows nothing of latches, ticks' meaning, files.

#![expect(unsafe_code, reason = "page memory; see `Unsafe` above")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cmp::Ordering;
use std::hint::select_unpredictable;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use memmap2::{MmapMut, UncheckedAdvice};

use crate::planted::{Bug, planted};
use crate::slice::LargeBytes;
use crate::tree::arena::{Arena, BLOCK_MAX, BlockId};

mod copy;
mod entry;

use entry::{
    ABSENT, HAS_DIED, HAS_EXPIRY, LARGE_KEY, LARGE_VALUE, LONG_KEY, Parts, WIDE_VALUE, flags_of,
    head_of, rounded, shape,
};
pub(crate) use entry::{Entry, INLINE_VALUE_MAX, Place, Trash, Value, common_prefix};

/// What a page can address: slots and entries together.
pub(crate) const AREA_MAX: usize = 60 << 10;

const SLOT: usize = 8;
const HEADER: usize = size_of::<Header>();
const ALIGN: usize = 16;

#[repr(C)]
struct Header {
    arena: *const Arena,
    /// Wrapping sum of the entries' fingerprints.
    fingerprint: u64,
    /// Block of the arena; `NO_BLOCK` if the memory is the global allocator's.
    block: u32,
    cap: u32,
    base: u32,
    heap: u32,
    /// Bytes of entries no slot names any more.
    garbage: u32,
    prefix_len: u32,
    low_len: u32,
    /// `NO_HIGH` if the page ends the keyspace.
    high_len: u32,
    count: u16,
    /// Entries that own a large key or value.
    larges: u16,
    /// How many of the latest inserts came right behind one another.
    run: u16,
    last_insert: u16,
    retained: bool,
}

const NO_BLOCK: u32 = u32::MAX;
const NO_HIGH: u32 = u32::MAX;

/// See the file's head.
pub(crate) struct Page {
    start: NonNull<Header>,
}

// SAFETY: a page owns its memory (invariant 1) and its counts (2, 4), which are of `Send + Sync` types;
// it has no interior mutability, so `&Page` gives reads only.
unsafe impl Send for Page {}
// SAFETY: as above.
unsafe impl Sync for Page {}

/// A large value or key owned by an entry or by a caller's `Arc`.
#[derive(Clone, Copy)]
pub(crate) struct Large<'a> {
    address: *const LargeBytes,
    owner: PhantomData<&'a LargeBytes>,
}

impl<'a> Large<'a> {
    pub(crate) fn of(bytes: &'a Arc<LargeBytes>) -> Self {
        Self { address: Arc::as_ptr(bytes), owner: PhantomData }
    }

    pub(crate) fn get(self) -> &'a LargeBytes {
        // SAFETY: the address came from an Arc whose count the owner holds during 'a (invariant 4).
        unsafe { &*self.address }
    }

    pub(crate) fn to_arc(self) -> Arc<LargeBytes> {
        // SAFETY: as in `get`; the count added is the one the new Arc owns.
        unsafe {
            Arc::increment_strong_count(self.address);
            Arc::from_raw(self.address)
        }
    }

    pub(crate) fn is(self, other: &Arc<LargeBytes>) -> bool {
        std::ptr::eq(self.address, Arc::as_ptr(other))
    }
}

impl Page {
    /// An empty page for keys in `[low, high)` with room for `room` bytes of slots and entries.
    pub(crate) fn new(arena: &Arc<Arena>, low: &[u8], high: Option<&[u8]>, room: usize) -> Self {
        debug_assert!(room <= AREA_MAX, "our bug: a page of {room} bytes");
        let base = (HEADER + low.len() + high.map_or(0, <[u8]>::len)).next_multiple_of(SLOT);
        let mut page = Self::alloc(arena, base + room);
        let prefix_len = high.map_or(0, |high| common_prefix(low, high));
        let header = page.header_mut();
        #[expect(clippy::cast_possible_truncation, reason = "fences are at most a key long")]
        {
            header.base = base as u32;
            header.prefix_len = prefix_len as u32;
            header.low_len = low.len() as u32;
            header.high_len = high.map_or(NO_HIGH, |high| high.len() as u32);
        }
        page.write(HEADER, low);
        if let Some(high) = high {
            page.write(HEADER + low.len(), high);
        }
        // Offsets count from `base` in 16 bits: what a generous block offers beyond is not used.
        let header = page.header_mut();
        header.heap = header.cap.min(header.base + u16::MAX as u32);
        page
    }

    fn alloc(arena: &Arc<Arena>, len: usize) -> Self {
        let (start, cap, block) = if len <= BLOCK_MAX {
            let block = arena.alloc(len);
            (block.start, block.len, block.id.0)
        } else {
            let cap = len.next_multiple_of(ALIGN);
            let layout =
                Layout::from_size_align(cap, ALIGN).expect("a page is far below isize::MAX");
            // SAFETY: the layout is not of size 0, a header is in it.
            let start = unsafe { alloc_zeroed(layout) };
            (NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout)), cap, NO_BLOCK)
        };
        arena.account.live.fetch_add(cap as u64, Relaxed);
        let header = Header {
            arena: Arc::into_raw(Arc::clone(arena)),
            fingerprint: 0,
            block,
            #[expect(
                clippy::cast_possible_truncation,
                reason = "fences and AREA_MAX are far below"
            )]
            cap: cap as u32,
            base: 0,
            heap: 0,
            garbage: 0,
            prefix_len: 0,
            low_len: 0,
            high_len: NO_HIGH,
            count: 0,
            larges: 0,
            run: 0,
            last_insert: 0,
            retained: false,
        };
        let start = start.cast::<Header>();
        // SAFETY: the block is at least a header long, 16-aligned and ours alone (invariant 1).
        unsafe { start.write(header) };
        Self { start }
    }

    fn header(&self) -> &Header {
        // SAFETY: invariant 1; written by `alloc`.
        unsafe { self.start.as_ref() }
    }

    fn header_mut(&mut self) -> &mut Header {
        // SAFETY: invariant 1, and `&mut self` excludes others.
        unsafe { self.start.as_mut() }
    }

    fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        debug_assert!(offset >= HEADER && offset + len <= self.header().cap as usize);
        // SAFETY: offsets and lengths come from invariant 3, all bytes are initialised (1), and the
        // header, which other references may cover, is not part of it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast::<u8>().add(offset), len) }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset >= HEADER && offset + bytes.len() <= self.header().cap as usize);
        // SAFETY: the range was just checked against the allocation (invariant 1); `bytes` is borrowed
        // and so not part of memory that `&mut self` owns.
        unsafe {
            let target = self.start.as_ptr().cast::<u8>().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
    }

    fn read_u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(*self.bytes(offset, 8).first_chunk().expect("8 bytes asked for"))
    }

    fn slots(&self) -> &[u64] {
        let header = self.header();
        // SAFETY: invariant 3: `base` is 8-aligned in a 16-aligned page and `count` slots are there.
        unsafe {
            let start = self.start.as_ptr().cast::<u8>().add(header.base as usize);
            std::slice::from_raw_parts(start.cast::<u64>(), usize::from(header.count))
        }
    }

    /// The lowest key that belongs here.
    pub(crate) fn low(&self) -> &[u8] {
        self.bytes(HEADER, self.header().low_len as usize)
    }

    /// The lowest key that belongs to the next leaf; `None` at the end of the keyspace.
    pub(crate) fn high(&self) -> Option<&[u8]> {
        let header = self.header();
        let start = HEADER + header.low_len as usize;
        (header.high_len != NO_HIGH).then(|| self.bytes(start, header.high_len as usize))
    }

    /// Whether `key` lies below the high fence.
    pub(crate) fn below_high(&self, key: &[u8]) -> bool {
        self.high().is_none_or(|high| key < high)
    }

    pub(crate) fn prefix_len(&self) -> usize {
        self.header().prefix_len as usize
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.header().count)
    }

    /// Wrapping sum of the entries' fingerprints. Only the pages of leaves have one: it means nothing in copies
    /// for stills and in what is kept for them.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.header().fingerprint
    }

    pub(crate) fn add_fingerprint(&mut self, change: u64) {
        let header = self.header_mut();
        header.fingerprint = header.fingerprint.wrapping_add(change);
    }

    /// Whether compaction wants the page somewhere else.
    pub(crate) fn is_draining(&self) -> bool {
        let block = self.header().block;
        block != NO_BLOCK && self.arena().is_draining(BlockId(block))
    }

    /// Keys and values, in bytes.
    pub(crate) fn raw_bytes(&self) -> usize {
        let of_slot = |&slot: &u64| {
            let parts = self.parts(slot);
            let value_len = match flags_of(slot) & LARGE_VALUE {
                0 => parts.value_len,
                _ => self.large_at(parts.value).get().bytes().len(),
            };
            self.prefix_len() + parts.suffix_len + value_len
        };
        self.slots().iter().map(of_slot).sum()
    }

    /// Bytes of slots and entries in use.
    pub(crate) fn used(&self) -> usize {
        let header = self.header();
        self.heap_end() - (header.heap + header.garbage) as usize + SLOT * self.len()
    }

    /// Where entries end: offsets count from `base` in 16 bits, what a block offers beyond is not used.
    fn heap_end(&self) -> usize {
        let header = self.header();
        header.cap.min(header.base + u16::MAX as u32) as usize
    }

    /// Bytes of entries that no slot names any more.
    pub(crate) fn garbage(&self) -> usize {
        self.header().garbage as usize
    }

    /// Bytes the page takes in memory.
    pub(crate) fn cap(&self) -> usize {
        self.header().cap as usize
    }

    /// Bytes between slots and entries.
    pub(crate) fn free(&self) -> usize {
        let header = self.header();
        header.heap as usize - header.base as usize - SLOT * usize::from(header.count)
    }

    /// Bytes that `entry` under `key` would take here, its slot included.
    pub(crate) fn cost(&self, key: &[u8], entry: &Entry<'_>) -> usize {
        SLOT + shape(key.len(), self.prefix_len(), entry).1
    }

    /// Whether the latest inserts came one behind the other up to `at`: then a split leaves the left half full.
    pub(crate) fn is_ascending(&self, at: usize) -> bool {
        let header = self.header();
        at == self.len() && header.run >= 4 && usize::from(header.last_insert) + 1 == at
    }

    /// From now on the account counts this page as retained for stills; large values count for themselves.
    pub(crate) fn retain(&mut self) {
        if !self.header().retained && !planted(Bug::RetainedNotCounted) {
            self.header_mut().retained = true;
            let cap = u64::from(self.header().cap);
            let account = Arc::clone(&self.arena().account);
            account.live.fetch_sub(cap, Relaxed);
            account.retained.fetch_add(cap, Relaxed);
        }
    }

    /// Of a page that was replaced: large values that only it still holds are retained from now on.
    pub(crate) fn retain_orphans(&self) {
        if self.header().larges == 0 {
            return;
        }
        for at in 0..self.len() {
            if let Value::Large(large) = self.entry(at).value
                && Arc::strong_count(&large.to_arc()) == 2
            {
                large.get().retain();
            }
        }
    }

    /// The arena, borrowed from this page's count.
    pub(crate) fn arena(&self) -> ManuallyDrop<Arc<Arena>> {
        // SAFETY: invariant 2; the Arc made here is never dropped, so the page's count stays its own.
        ManuallyDrop::new(unsafe { Arc::from_raw(self.header().arena) })
    }

    fn parts(&self, slot: u64) -> Parts {
        let flags = flags_of(slot);
        let mut at = self.header().base as usize + ((slot >> 16) & 0xffff) as usize;
        let value_len = if flags & (LARGE_VALUE | ABSENT) != 0 {
            if flags & ABSENT != 0 { 0 } else { 8 }
        } else if flags & WIDE_VALUE != 0 {
            at += 2;
            usize::from(u16::from_le_bytes(*self.bytes(at - 2, 2).first_chunk().expect("2 bytes")))
        } else {
            at += 1;
            usize::from(self.bytes(at - 1, 1)[0])
        };
        let expiry = at;
        at += if flags & HAS_EXPIRY != 0 { 8 } else { 0 };
        let died = at;
        at += if flags & HAS_DIED != 0 { 8 } else { 0 };
        let short_len = ((slot >> 8) & 0xff) as u8;
        let suffix_len = if short_len == LONG_KEY {
            at += 4;
            u32::from_le_bytes(*self.bytes(at - 4, 4).first_chunk().expect("4 bytes")) as usize
        } else {
            usize::from(short_len)
        };
        let rest = at;
        let rest_len = if flags & LARGE_KEY != 0 { 8 } else { suffix_len.saturating_sub(4) };
        let value = rest + rest_len;
        Parts { value, value_len, expiry, died, rest, rest_len, suffix_len, end: value + value_len }
    }

    fn large_at(&self, offset: usize) -> Large<'_> {
        #[expect(clippy::cast_possible_truncation, reason = "an address, stored as u64")]
        let address = std::ptr::with_exposed_provenance(self.read_u64(offset) as usize);
        Large { address, owner: PhantomData }
    }

    /// What the key has behind its head.
    fn rest_of(&self, slot: u64, parts: &Parts) -> &[u8] {
        if flags_of(slot) & LARGE_KEY != 0 {
            let key = self.large_at(parts.rest).get().bytes();
            key.get(self.prefix_len() + 4..).unwrap_or(&[])
        } else {
            self.bytes(parts.rest, parts.rest_len)
        }
    }

    fn compare(&self, slot: u64, suffix: &[u8]) -> Ordering {
        let parts = self.parts(slot);
        self.rest_of(slot, &parts)
            .cmp(suffix.get(4..).unwrap_or(&[]))
            .then(parts.suffix_len.cmp(&suffix.len()))
    }

    /// Where `key` is, or where it would be inserted. Of several entries of one key, the first.
    ///
    /// `key` lies within the fences.
    pub(crate) fn find(&self, key: &[u8]) -> Place {
        debug_assert!(self.low() <= key && self.below_high(key));
        let suffix = &key[self.prefix_len()..];
        let head = u64::from(head_of(suffix));
        let slots = self.slots();
        let start = lower_bound(slots, head << 32);
        match slots.get(start) {
            // Its key is compared next and its value read or replaced: all of its lines come together.
            Some(&slot) if slot >> 32 == head => self.prefetch_entry(slot),
            _ => return Err(start),
        }
        let run = &slots[start..];
        // Nearly always one entry has this head; when many do, halve.
        let run = match run.get(8).is_some_and(|slot| slot >> 32 == head) {
            true => &run[..lower_bound(run, (head + 1) << 32)],
            false => run,
        };
        let equal_run = run.iter().take_while(|slot| *slot >> 32 == head).count();
        if equal_run == 1 {
            return match self.compare(run[0], suffix) {
                Ordering::Less => Err(start + 1),
                Ordering::Equal => Ok(start),
                Ordering::Greater => Err(start),
            };
        }
        let at = run[..equal_run].partition_point(|&slot| self.compare(slot, suffix).is_lt());
        match run[..equal_run].get(at) {
            Some(&slot) if self.compare(slot, suffix).is_eq() => Ok(start + at),
            _ => Err(start + at),
        }
    }

    /// The first place whose key is at least `key`, for any key.
    pub(crate) fn seek(&self, key: &[u8]) -> usize {
        if key <= self.low() {
            return 0;
        }
        if !self.below_high(key) {
            return self.len();
        }
        self.find(key).unwrap_or_else(|at| at)
    }

    /// The entry at `at`.
    pub(crate) fn entry(&self, at: usize) -> Entry<'_> {
        let slot = self.slots()[at];
        self.entry_of(slot, &self.parts(slot))
    }

    fn entry_of(&self, slot: u64, parts: &Parts) -> Entry<'_> {
        let flags = flags_of(slot);
        let value = if flags & ABSENT != 0 {
            Value::Absent
        } else if flags & LARGE_VALUE != 0 {
            Value::Large(self.large_at(parts.value))
        } else {
            Value::Bytes(self.bytes(parts.value, parts.value_len))
        };
        let expire_at = if flags & HAS_EXPIRY != 0 { self.read_u64(parts.expiry) } else { 0 };
        let died = if flags & HAS_DIED != 0 { self.read_u64(parts.died) } else { 0 };
        Entry { value, expire_at, died }
    }

    /// When the entry at `at` expires, 0 for never: for most entries the slot alone says so.
    pub(crate) fn expire_at(&self, at: usize) -> u64 {
        let slot = self.slots()[at];
        if flags_of(slot) & HAS_EXPIRY == 0 { 0 } else { self.read_u64(self.parts(slot).expiry) }
    }

    /// When the first of the entries expires, 0 if none does.
    pub(crate) fn first_expiry(&self) -> u64 {
        let has_expiry = |slot: &&u64| flags_of(**slot) & HAS_EXPIRY != 0;
        let expiring = self.slots().iter().filter(has_expiry);
        expiring.map(|&slot| self.read_u64(self.parts(slot).expiry)).min().unwrap_or(0)
    }

    /// The part that all keys here share.
    pub(crate) fn prefix(&self) -> &[u8] {
        &self.low()[..self.prefix_len()]
    }

    /// Appends the part of the key that lies behind the fences' prefix.
    fn suffix_into(&self, slot: u64, parts: &Parts, key: &mut Vec<u8>) {
        let head = ((slot >> 32) as u32).to_be_bytes();
        key.extend_from_slice(&head[..parts.suffix_len.min(4)]);
        key.extend_from_slice(self.rest_of(slot, parts));
    }

    /// Writes the whole key at `at` into `key`.
    pub(crate) fn key_into(&self, at: usize, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.prefix());
        let slot = self.slots()[at];
        self.suffix_into(slot, &self.parts(slot), key);
    }

    /// The entry at `at`, its key in `key`, which begins with the page's prefix already.
    pub(crate) fn show(&self, at: usize, key: &mut Vec<u8>) -> Entry<'_> {
        let slot = self.slots()[at];
        let parts = self.parts(slot);
        key.truncate(self.prefix_len());
        self.suffix_into(slot, &parts, key);
        self.entry_of(slot, &parts)
    }

    /// The key at `at` compared with `key`, which lies within the fences.
    pub(crate) fn compare_key(&self, at: usize, key: &[u8]) -> Ordering {
        let suffix = &key[self.prefix_len()..];
        let slot = self.slots()[at];
        (slot >> 32).cmp(&u64::from(head_of(suffix))).then_with(|| self.compare(slot, suffix))
    }

    /// Inserts at `at`, which keeps the order; there is room for `cost` bytes.
    ///
    /// # Panics
    /// If there is no room: our bug, nothing was changed.
    pub(crate) fn insert(&mut self, at: usize, key: &[u8], entry: &Entry<'_>) {
        let (flags, len) = shape(key.len(), self.prefix_len(), entry);
        assert!(self.free() >= SLOT + len, "our bug: no room for {len} bytes in a page");
        let slot = self.push_entry(key, entry, flags, len);
        let count = self.len();
        let slots = self.slots_prefix_mut(count + 1);
        slots.copy_within(at..count, at + 1);
        slots[at] = slot;
        let header = self.header_mut();
        header.count += 1;
        header.larges += u16::from(flags & (LARGE_VALUE | LARGE_KEY) != 0);
        let follows = at == usize::from(header.last_insert) + 1;
        header.run = if follows { header.run.saturating_add(1) } else { 0 };
        #[expect(clippy::cast_possible_truncation, reason = "fewer entries than 16-bit offsets")]
        {
            header.last_insert = at as u16;
        }
    }

    /// Writes an entry of `len` bytes into the free room and returns its slot.
    fn push_entry(&mut self, key: &[u8], entry: &Entry<'_>, flags: u8, len: usize) -> u64 {
        let suffix = &key[self.prefix_len()..];
        let start = self.header().heap as usize - len;
        let mut at = start;
        if let Value::Bytes(bytes) = entry.value {
            at += self.write_len(start, bytes.len());
        }
        let mut put = |page: &mut Self, bytes: &[u8]| {
            page.write(at, bytes);
            at += bytes.len();
        };
        if entry.expire_at != 0 {
            put(self, &entry.expire_at.to_le_bytes());
        }
        if entry.died != 0 {
            put(self, &entry.died.to_le_bytes());
        }
        #[expect(clippy::cast_possible_truncation, reason = "keys are at most 64 KiB and a prefix")]
        let short_len = match suffix.len() >= usize::from(LONG_KEY) {
            true => {
                put(self, &(suffix.len() as u32).to_le_bytes());
                LONG_KEY
            }
            false => suffix.len() as u8,
        };
        if flags & LARGE_KEY != 0 {
            let account = Arc::clone(&self.arena().account);
            let handle = LargeBytes::new(key.into(), 0, &account);
            let address = Arc::into_raw(handle).expose_provenance() as u64;
            put(self, &address.to_le_bytes());
        } else {
            put(self, suffix.get(4..).unwrap_or(&[]));
        }
        match entry.value {
            Value::Absent => {}
            Value::Bytes(bytes) => put(self, bytes),
            Value::Large(large) => {
                let address = Arc::into_raw(large.to_arc()).expose_provenance() as u64;
                put(self, &address.to_le_bytes());
            }
        }
        debug_assert_eq!(rounded(at - start), len);
        let header = self.header_mut();
        #[expect(clippy::cast_possible_truncation, reason = "below cap")]
        {
            header.heap = start as u32;
        }
        let offset = (start - header.base as usize) as u64;
        debug_assert!(offset <= u64::from(u16::MAX));
        u64::from(head_of(suffix)) << 32
            | offset << 16
            | u64::from(short_len) << 8
            | u64::from(flags)
    }

    /// Writes the length of an inline value, and returns the length of that: one byte, or two beyond 255.
    ///
    /// Which of both a slot says; a value that is replaced in place keeps its width.
    fn write_len(&mut self, offset: usize, value_len: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "inline values are at most 2 KiB")]
        if value_len > 255 {
            self.write(offset, &(value_len as u16).to_le_bytes());
            2
        } else {
            self.write(offset, &[value_len as u8]);
            1
        }
    }

    /// Bytes of free room that replacing the entry at `at` by `entry` needs; 0 if it fits in place.
    pub(crate) fn replace_cost(&self, at: usize, key: &[u8], entry: &Entry<'_>) -> usize {
        let slot = self.slots()[at];
        let (flags, len) = shape(key.len(), self.prefix_len(), entry);
        if flags == flags_of(slot) && len <= self.entry_len(slot) { 0 } else { len }
    }

    /// Bytes that the entry of `slot` takes, the slot not counted.
    fn entry_len(&self, slot: u64) -> usize {
        rounded(self.parts(slot).end - self.entry_start(slot))
    }

    fn entry_start(&self, slot: u64) -> usize {
        self.header().base as usize + ((slot >> 16) & 0xffff) as usize
    }

    /// Replaces the entry at `at`; there is room for `replace_cost` bytes.
    pub(crate) fn replace(&mut self, at: usize, key: &[u8], entry: &Entry<'_>) -> Trash {
        let slot = self.slots()[at];
        let parts = self.parts(slot);
        let (flags, len) = shape(key.len(), self.prefix_len(), entry);
        let start = self.entry_start(slot);
        let old_len = rounded(parts.end - start);
        if flags == flags_of(slot) && len <= old_len {
            if entry.expire_at != 0 {
                self.write(parts.expiry, &entry.expire_at.to_le_bytes());
            }
            return match entry.value {
                Value::Absent => None,
                Value::Bytes(bytes) => {
                    self.write_len(start, bytes.len());
                    self.write(parts.value, bytes);
                    #[expect(clippy::cast_possible_truncation, reason = "below cap")]
                    {
                        self.header_mut().garbage += (old_len - len) as u32;
                    }
                    None
                }
                Value::Large(large) => {
                    // SAFETY: invariant 4: the count that this entry owned is given to the Arc.
                    let old = unsafe { Arc::from_raw(self.large_at(parts.value).address) };
                    let address = Arc::into_raw(large.to_arc()).expose_provenance() as u64;
                    self.write(parts.value, &address.to_le_bytes());
                    Some(old)
                }
            };
        }
        assert!(self.free() >= len, "our bug: no room for {len} bytes in a page");
        let trash = self.disown(slot);
        let new_slot = self.push_entry(key, entry, flags, len);
        let count = self.len();
        self.slots_prefix_mut(count)[at] = new_slot;
        self.header_mut().larges += u16::from(flags & (LARGE_VALUE | LARGE_KEY) != 0);
        trash
    }

    /// Removes the entry at `at`.
    pub(crate) fn remove(&mut self, at: usize) -> Trash {
        let slot = self.slots()[at];
        let trash = self.disown(slot);
        let count = self.len();
        self.slots_prefix_mut(count).copy_within(at + 1..count, at);
        self.header_mut().count -= 1;
        self.header_mut().run = 0;
        trash
    }

    /// Makes the entry of `slot` garbage and takes what it owned. A large key is freed here: it is small
    /// beside large values, which are handed on.
    fn disown(&mut self, slot: u64) -> Trash {
        let flags = flags_of(slot);
        let parts = self.parts(slot);
        let len = rounded(parts.end - self.entry_start(slot));
        #[expect(clippy::cast_possible_truncation, reason = "below cap")]
        {
            self.header_mut().garbage += len as u32;
        }
        if flags & (LARGE_KEY | LARGE_VALUE) == 0 {
            return None;
        }
        self.header_mut().larges -= 1;
        if flags & LARGE_KEY != 0 {
            // SAFETY: invariant 4; the slot is gone after this, so the count is given up once.
            drop(unsafe { Arc::from_raw(self.large_at(parts.rest).address) });
        }
        // SAFETY: as above.
        (flags & LARGE_VALUE != 0)
            .then(|| unsafe { Arc::from_raw(self.large_at(parts.value).address) })
    }

    /// The first `count` slots, room for which the caller has checked, set or not.
    fn slots_prefix_mut(&mut self, count: usize) -> &mut [u64] {
        let base = self.header().base as usize;
        debug_assert!(base + SLOT * count <= self.header().heap as usize);
        // SAFETY: as in `slots`; all memory of the page is initialised.
        unsafe {
            let start = self.start.as_ptr().cast::<u8>().add(base);
            std::slice::from_raw_parts_mut(start.cast::<u64>(), count)
        }
    }

    /// Empties the page and drops what its entries owned.
    pub(crate) fn clear(&mut self) {
        if self.header().larges > 0 {
            for at in 0..self.len() {
                let slot = self.slots()[at];
                drop(self.disown(slot));
            }
        }
        let header = self.header_mut();
        (header.count, header.larges, header.garbage, header.run) = (0, 0, 0, 0);
        header.fingerprint = 0;
    }

    /// Brings the free room that the next entry will take towards the cache.
    #[inline]
    pub(crate) fn prefetch_free(&self) {
        let heap = self.header().heap as usize;
        for line in 1..=2 {
            prefetch(self.start.as_ptr().cast::<u8>().wrapping_add(heap).wrapping_sub(64 * line));
        }
    }

    /// Brings the entry of `key`, if it has one, towards the cache.
    pub(crate) fn prefetch_key(&self, key: &[u8]) {
        let head = u64::from(head_of(&key[self.prefix_len()..]));
        let slots = self.slots();
        match slots.get(lower_bound(slots, head << 32)) {
            Some(&slot) if slot >> 32 == head => self.prefetch_entry(slot),
            _ => {}
        }
    }

    #[inline]
    fn prefetch_entry(&self, slot: u64) {
        let start = self.start.as_ptr().cast::<u8>().wrapping_add(self.entry_start(slot));
        for line in 0..3 {
            prefetch(start.wrapping_add(64 * line));
        }
    }

    /// Brings the page's first lines towards the cache.
    #[inline]
    pub(crate) fn prefetch(&self) {
        for line in 0..8 {
            prefetch(self.start.as_ptr().cast::<u8>().wrapping_add(64 * line));
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.clear();
        let header = self.header();
        let (block, cap, retained) = (header.block, header.cap, header.retained);
        // SAFETY: invariant 2: this count is the page's, and given up here only.
        let arena = unsafe { Arc::from_raw(header.arena) };
        arena.account.of(retained).fetch_sub(u64::from(cap), Relaxed);
        if block == NO_BLOCK {
            let layout = Layout::from_size_align(cap as usize, ALIGN).expect("as in `alloc`");
            // SAFETY: invariant 1; allocated in `alloc` with this layout, since cap was a multiple of ALIGN.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        } else {
            arena.free(BlockId(block));
        }
    }
}

/// The first place in `slots` that is at least `bound`, a head in the upper half.
fn lower_bound(slots: &[u64], bound: u64) -> usize {
    let mut first = 0;
    let mut len = slots.len();
    // No branch depends on what is compared: a mispredicted one costs more than the whole search.
    while len > 1 {
        let half = len / 2;
        let is_below = slots[first + half - 1] < bound;
        first = select_unpredictable(is_below, first + half, first);
        len -= half;
    }
    first + usize::from(len == 1 && slots[first] < bound)
}

/// Brings the cache line of `address` towards the cache; any address will do.
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address has no effect but on the cache, and SSE is part of x86_64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Gives the resident memory of a range of a map back to the operating system; it then reads as zero.
///
/// The arena calls it for chunks in which no block is in use.
pub(crate) fn release(map: &MmapMut, offset: usize, len: usize) {
    // SAFETY: no page lies in the range (the arena's chunk has no block in use), so nobody relies on its bytes;
    // later blocks from it are initialised all the same, with zeros.
    let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len) };
}
