//! Memory for pages: 2 MiB chunks that can be huge pages, cut into spans, each span into equal blocks.
//!
//! Leaves of a random load end up all over memory, and with 4 KiB pages nearly every read also misses
//! the TLB. So pages of up to 16 KiB live in anonymous maps that ask for huge pages. A span of 128 KiB
//! serves one block size, `128 KiB / n` for a whole n: sizes lie 2 to 6 % apart where full leaves are, 15 %
//! below, and no span has a tail that fits no block.
//!
//! While a load goes on, leaves grow from size to size and leave spans behind in which few blocks are used.
//! When free blocks come to an eighth of the used ones, the tree is told to *compact*: the emptiest spans of
//! each size are closed to new blocks, and pages found in them are moved. Spans that fall free go back to the
//! operating system, but for a reserve, and those that are opened next are made resident ahead of time:
//! the first touch of a huge page takes milliseconds where the system is slow to clear it. Both is done by
//! the reclaimer, with nothing locked.
//!
//! The single entries that leaves keep for stills go to a second arena, without huge pages: see [`Arena::for_kept`].
//! It is never compacted: what lies there goes with the stills.
//!
//! The arena also owns the account of what pages and large values take. Knows nothing of what a page holds.

use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{Advice, MmapMut};

use crate::slice::Account;
use crate::sync::{AtomicBool, Mutex, MutexGuard, Ordering::Relaxed};

const CHUNK: usize = 2 << 20;
const SPAN: usize = 128 << 10;
const SPANS_PER_CHUNK: u32 = 16;
/// Blocks in a span of the largest and of the smallest blocks.
const BLOCKS_MIN: usize = 8;
const BLOCKS_MAX: usize = 512;
/// Regions double from one chunk up to this many.
const REGION_CHUNKS_MAX: usize = 32;
/// So many spans that are opened next are resident before they are needed: a chunk's worth ..
const AHEAD: usize = 16;
/// .. once so many are in use: a small database stays small.
const AHEAD_MIN: usize = 512;
/// Waste below this is not worth a walk over all leaves.
const WASTE_MIN: usize = 4 << 20;

/// Requests above this are not the arena's.
pub(crate) const BLOCK_MAX: usize = SPAN / BLOCKS_MIN;

/// The numbers of blocks that a span may be cut into: small steps where full leaves are.
const CLASSES: [u16; 54] = [
    8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
    32, 34, 36, 38, 40, 42, 44, 46, 48, 51, 54, 57, 60, 64, 73, 85, 93, 102, 113, 128, 146, 170,
    186, 204, 227, 256, 292, 341, 409, 512,
];

/// For each number of blocks that would do, the class that does.
const CLASS_OF: [u8; BLOCKS_MAX + 1] = {
    let mut classes = [0; BLOCKS_MAX + 1];
    let (mut blocks, mut class) = (0, 0);
    while blocks <= BLOCKS_MAX {
        while class + 1 < CLASSES.len() && CLASSES[class + 1] as usize <= blocks {
            class += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "54 classes")]
        {
            classes[blocks] = class as u8;
        }
        blocks += 1;
    }
    classes
};

/// Names a block: span and place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockId(pub(crate) u32);

/// A block as handed out.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) id: BlockId,
    pub(crate) start: NonNull<u8>,
    pub(crate) len: usize,
}

/// Where pages get their memory.
#[derive(Debug)]
pub(crate) struct Arena {
    state: Mutex<State>,
    /// What pages and large values take.
    pub(crate) account: Arc<Account>,
    /// There is so much waste that a walk over all leaves pays.
    ///
    /// Relaxed: a hint for when to come; what there is to do is decided under the lock.
    wasteful: AtomicBool,
    /// There may be memory to give back, or to make resident.
    ///
    /// Relaxed, as above.
    untidy: AtomicBool,
    /// Gives a range's memory back; the bytes then read as zero.
    release: fn(&MmapMut, usize, usize),
    /// Where what leaves keep for stills lies, in the arena of leaves.
    kept: Option<Arc<Arena>>,
}

#[derive(Debug, Default)]
struct State {
    /// Asks for huge pages, and makes them resident ahead of time.
    huge: bool,
    regions: Vec<Region>,
    chunks: Vec<Chunk>,
    spans: Vec<Span>,
    /// Spans of no class, lowest first, so that high chunks fall free.
    free_spans: BTreeSet<u32>,
    /// Free spans whose memory is resident.
    idle_spans: usize,
    used_spans: usize,
    /// Bytes of free blocks in used spans.
    waste: usize,
    /// Spans with a free block, by class; draining ones are not among them.
    partial: Vec<Vec<u32>>,
}

#[derive(Debug)]
struct Region {
    /// Shared with whoever advises the system about a part of it, for that long.
    map: Arc<MmapMut>,
    /// Its address, exposed.
    start: usize,
}

#[derive(Debug)]
struct Chunk {
    region: usize,
    offset: usize,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    /// Index of [`CLASSES`]; `None` while free.
    class: Option<u8>,
    /// Closed to new blocks, to fall empty.
    draining: bool,
    /// Of a free span: its memory is not resident.
    released: bool,
    free_count: u16,
    /// Place in its partial list, while it has a free block and is not draining.
    place: u32,
    /// A bit for each free block.
    free: [u64; BLOCKS_MAX / 64],
}

const UNTOUCHED: Span = Span {
    class: None,
    draining: false,
    // Untouched memory is not resident: as good as released.
    released: true,
    free_count: 0,
    place: 0,
    free: [0; BLOCKS_MAX / 64],
};

fn blocks_of(class: u8) -> usize {
    usize::from(CLASSES[usize::from(class)])
}

fn block_len(class: u8) -> usize {
    (SPAN / blocks_of(class)) & !15
}

impl Arena {
    /// An empty arena; `release` gives the resident memory of a range of a map back.
    pub(crate) fn new(account: Arc<Account>, release: fn(&MmapMut, usize, usize)) -> Self {
        let kept = Self::with(Arc::clone(&account), release, false, None);
        Self::with(account, release, true, Some(Arc::new(kept)))
    }

    fn with(
        account: Arc<Account>,
        release: fn(&MmapMut, usize, usize),
        huge: bool,
        kept: Option<Arc<Self>>,
    ) -> Self {
        let partial = vec![Vec::new(); CLASSES.len()];
        let state = Mutex::new(State { partial, huge, ..State::default() });
        Self {
            state,
            account,
            wasteful: AtomicBool::new(false),
            untidy: AtomicBool::new(false),
            release,
            kept,
        }
    }

    /// The arena for the entries that are kept beside pages of this one; whole pages that are kept stay here.
    ///
    /// It has no huge pages and nothing resident ahead: what is kept goes soon and is seldom read, and beside a save
    /// a writer would go through huge pages by the dozen, to wait for the first touch of each or, on a busy
    /// machine, for the thread that it wakes to touch the next one.
    pub(crate) fn for_kept(self: &Arc<Self>) -> &Arc<Self> {
        self.kept.as_ref().unwrap_or(self)
    }

    /// A block of at least `len` bytes, which are at most [`BLOCK_MAX`]; all of its bytes are initialised.
    ///
    /// # Panics
    /// If the operating system has no more address space to give, as any allocation here would.
    pub(crate) fn alloc(&self, len: usize) -> Block {
        // The most blocks whose rounded length still holds `len`.
        let blocks = (SPAN / len.next_multiple_of(16).max(1)).clamp(BLOCKS_MIN, BLOCKS_MAX);
        let class = CLASS_OF[blocks];
        let mut state = self.state.lock();
        let span = match state.partial[usize::from(class)].last() {
            Some(&span) => span,
            None => {
                let used = state.used_spans * SPAN - state.waste;
                if state.waste > WASTE_MIN + used / 8 {
                    self.wasteful.store(true, Relaxed);
                }
                let span = state.open_span(class);
                let looks_ahead = state.huge && state.used_spans >= AHEAD_MIN;
                if looks_ahead && state.used_spans.is_multiple_of(AHEAD / 4) {
                    self.untidy.store(true, Relaxed);
                }
                span
            }
        };
        let entry = &mut state.spans[span as usize];
        let (word, bits) =
            entry.free.iter_mut().enumerate().find(|(_, bits)| **bits != 0).expect("listed");
        #[expect(clippy::cast_possible_truncation, reason = "at most BLOCKS_MAX")]
        let slot = word as u32 * 64 + bits.trailing_zeros();
        *bits &= *bits - 1;
        entry.free_count -= 1;
        if entry.free_count == 0 {
            state.unlist(span);
        }
        let len = block_len(class);
        state.waste -= len;
        Block {
            id: BlockId(span << 9 | slot),
            start: state.address(span, slot as usize * len),
            len,
        }
    }

    /// Takes a block back.
    pub(crate) fn free(&self, BlockId(id): BlockId) {
        let (span, slot) = (id >> 9, id & 511);
        let mut state = self.state.lock();
        let entry = &mut state.spans[span as usize];
        let class = entry.class.expect("a block of a span in use");
        let was_full = entry.free_count == 0;
        let bits = &mut entry.free[slot as usize / 64];
        assert_eq!(*bits & 1 << (slot % 64), 0, "a page block is freed twice");
        *bits |= 1 << (slot % 64);
        entry.free_count += 1;
        let is_empty = usize::from(entry.free_count) == blocks_of(class);
        let draining = entry.draining;
        if was_full && !draining {
            state.list(span);
        }
        state.waste += block_len(class);
        if is_empty {
            state.close_span(span);
            if state.idle_spans > state.reserve() {
                self.untidy.store(true, Relaxed);
            }
        }
        let used = state.used_spans * SPAN - state.waste;
        if state.waste > WASTE_MIN + used / 4 {
            self.wasteful.store(true, Relaxed);
        }
    }

    /// Whether there may be something to tidy.
    pub(crate) fn is_untidy(&self) -> bool {
        self.untidy.load(Relaxed) || self.kept.as_ref().is_some_and(|kept| kept.is_untidy())
    }

    /// Gives free spans beyond a reserve back to the system, highest first; makes those that are opened next
    /// resident. While it asks the system about a span, nobody can have that span, and nothing is locked.
    pub(crate) fn tidy(&self) {
        if let Some(kept) = &self.kept {
            kept.tidy();
        }
        self.untidy.store(false, Relaxed);
        let mut state = self.state.lock();
        if state.idle_spans > state.reserve() {
            // Down to half the reserve, so that this is not to be done again at once.
            let excess = state.idle_spans - state.reserve() / 2;
            let highest = state.free_spans.iter().rev().copied();
            let resident = highest.filter(|span| !state.spans[*span as usize].released);
            let spans: Vec<u32> = resident.take(excess).collect();
            for span in spans {
                // It may have been opened meanwhile.
                if state.free_spans.contains(&span) && !state.spans[span as usize].released {
                    state = self.advise(state, span, self.release);
                }
            }
        }
        if state.huge && state.used_spans >= AHEAD_MIN {
            let next: Vec<u32> = state.free_spans.iter().take(AHEAD).copied().collect();
            for span in next {
                if state.free_spans.contains(&span) && state.spans[span as usize].released {
                    state = self.advise(state, span, populate);
                }
            }
        }
    }

    /// Takes a free span away, asks the system to change whether it is resident, and puts it back.
    fn advise<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        span: u32,
        ask: fn(&MmapMut, usize, usize),
    ) -> MutexGuard<'a, State> {
        let was_released = state.spans[span as usize].released;
        state.free_spans.remove(&span);
        state.idle_spans -= usize::from(!was_released);
        let (region, offset) = state.offset_of(span);
        let map = Arc::clone(&state.regions[region].map);
        drop(state);
        ask(&map, offset, SPAN);
        let mut state = self.state.lock();
        state.spans[span as usize].released = !was_released;
        state.free_spans.insert(span);
        state.idle_spans += usize::from(was_released);
        state
    }

    /// Whether it is worth compacting.
    pub(crate) fn is_wasteful(&self) -> bool {
        self.wasteful.load(Relaxed)
    }

    /// Closes the emptiest spans of each size to new blocks, as many as the others have room for.
    pub(crate) fn begin_compaction(&self) {
        self.wasteful.store(false, Relaxed);
        let mut state = self.state.lock();
        for (class, &blocks) in CLASSES.iter().enumerate() {
            let mut spans = state.partial[class].clone();
            let free_of = |span: &u32| usize::from(state.spans[*span as usize].free_count);
            let free: usize = spans.iter().map(free_of).sum();
            // So many spans would be empty if the used blocks were packed.
            let spare = free / usize::from(blocks);
            spans.sort_by_key(|span| std::cmp::Reverse(free_of(span)));
            for &span in &spans[..spare.min(spans.len().saturating_sub(1))] {
                state.unlist(span);
                state.spans[span as usize].draining = true;
            }
        }
    }

    /// Whether the block's page is to be moved.
    pub(crate) fn is_draining(&self, BlockId(id): BlockId) -> bool {
        self.state.lock().spans[(id >> 9) as usize].draining
    }

    /// Opens again what has not fallen empty.
    pub(crate) fn end_compaction(&self) {
        let mut state = self.state.lock();
        for span in 0..state.spans.len() {
            let entry = &mut state.spans[span];
            if std::mem::take(&mut entry.draining) && entry.free_count > 0 {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "spans are counted in 32 bits"
                )]
                state.list(span as u32);
            }
        }
    }

    /// Bytes of spans in use, and of these in free blocks.
    #[cfg(test)]
    fn span_bytes(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.used_spans * SPAN, state.waste)
    }
}

impl State {
    fn list(&mut self, span: u32) {
        let class = self.spans[span as usize].class.expect("a span in use");
        let list = &mut self.partial[usize::from(class)];
        #[expect(clippy::cast_possible_truncation, reason = "no more entries than spans")]
        let place = list.len() as u32;
        self.spans[span as usize].place = place;
        list.push(span);
    }

    fn unlist(&mut self, span: u32) {
        let Span { class, place, .. } = self.spans[span as usize];
        let list = &mut self.partial[usize::from(class.expect("a span in use"))];
        list.swap_remove(place as usize);
        if let Some(&moved) = list.get(place as usize) {
            self.spans[moved as usize].place = place;
        }
    }

    fn offset_of(&self, span: u32) -> (usize, usize) {
        let chunk = &self.chunks[(span / SPANS_PER_CHUNK) as usize];
        (chunk.region, chunk.offset + (span % SPANS_PER_CHUNK) as usize * SPAN)
    }

    fn address(&self, span: u32, offset: usize) -> NonNull<u8> {
        let (region, start) = self.offset_of(span);
        let start = self.regions[region].start + start + offset;
        NonNull::new(std::ptr::with_exposed_provenance_mut(start))
            .expect("a map never starts at address 0")
    }

    fn open_span(&mut self, class: u8) -> u32 {
        if self.free_spans.is_empty() {
            self.add_region();
        }
        let span = self.free_spans.pop_first().expect("a region was just added");
        let blocks = blocks_of(class);
        let mut free = [0; BLOCKS_MAX / 64];
        for (word, bits) in free.iter_mut().enumerate() {
            let left = blocks.saturating_sub(word * 64).min(64);
            *bits = if left == 0 { 0 } else { u64::MAX >> (64 - left) };
        }
        self.idle_spans -= usize::from(!self.spans[span as usize].released);
        let free_count = CLASSES[usize::from(class)];
        self.spans[span as usize] =
            Span { class: Some(class), free_count, free, released: false, ..UNTOUCHED };
        self.used_spans += 1;
        self.waste += blocks * block_len(class);
        self.list(span);
        span
    }

    /// Free spans that may stay resident: a database whose size goes up and down would else give them back
    /// and fault them in again all the time.
    fn reserve(&self) -> usize {
        16 + self.used_spans / 8
    }

    fn close_span(&mut self, span: u32) {
        let Span { class, draining, .. } = self.spans[span as usize];
        let class = class.expect("a span in use");
        if !draining {
            self.unlist(span);
        }
        self.spans[span as usize] = Span { released: false, ..UNTOUCHED };
        self.free_spans.insert(span);
        self.used_spans -= 1;
        self.waste -= blocks_of(class) * block_len(class);
        self.idle_spans += 1;
    }

    fn add_region(&mut self) {
        let chunks = 1usize << self.regions.len().min(REGION_CHUNKS_MAX.ilog2() as usize);
        // The first region asks for no huge page, so that a small database stays small.
        let huge = self.huge && chunks > 1;
        let len = chunks * CHUNK + if huge { CHUNK } else { 0 };
        let mut map = MmapMut::map_anon(len).expect("out of address space for pages");
        let skip = if huge { map.as_ptr().align_offset(CHUNK) } else { 0 };
        if huge {
            // Refused where the kernel has no huge pages: then it is only slower.
            let _ = map.advise_range(Advice::HugePage, skip, chunks * CHUNK);
        }
        for chunk in 0..chunks {
            #[expect(clippy::cast_possible_truncation, reason = "2^23 spans are a terabyte")]
            let first = self.spans.len() as u32;
            assert!(first < 1 << 23, "more than a terabyte of pages");
            self.free_spans.extend(first..first + SPANS_PER_CHUNK);
            self.spans.extend([UNTOUCHED; SPANS_PER_CHUNK as usize]);
            self.chunks.push(Chunk { region: self.regions.len(), offset: skip + chunk * CHUNK });
        }
        let start = map.as_mut_ptr().expose_provenance();
        self.regions.push(Region { map: Arc::new(map), start });
    }
}

/// Makes a part of a map resident; where the system can't, the first touch will.
fn populate(map: &MmapMut, offset: usize, len: usize) {
    #[cfg(target_os = "linux")]
    let _ = map.advise_range(Advice::PopulateWrite, offset, len);
    #[cfg(not(target_os = "linux"))]
    let _ = (map, offset, len);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arena {
        Arena::new(Arc::new(Account::default()), |_, _, _| {})
    }

    #[test]
    fn every_length_gets_a_block_that_holds_it_and_wastes_little() {
        let arena = arena();
        for len in (1..=BLOCK_MAX).step_by(7) {
            let block = arena.alloc(len);
            assert!(
                block.len >= len && block.len - len <= 256.max(len / 5),
                "{len} got {}",
                block.len
            );
            assert_eq!(block.start.as_ptr() as usize % 16, 0);
            arena.free(block.id);
        }
        assert_eq!(arena.span_bytes(), (0, 0));
    }

    #[test]
    fn blocks_never_overlap_and_all_memory_comes_back() {
        let arena = arena();
        let mut random = 7u64;
        let mut live: Vec<Block> = Vec::new();
        for _ in 0..20_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let pick = (random >> 33) as usize;
            if live.len() > 600 || (pick.is_multiple_of(3) && !live.is_empty()) {
                let block = live.swap_remove(pick % live.len());
                arena.free(block.id);
            } else {
                live.push(arena.alloc(1 + pick % (BLOCK_MAX - 1)));
            }
        }
        let mut ranges: Vec<_> = live.iter().map(|b| (b.start.as_ptr() as usize, b.len)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        for block in live {
            arena.free(block.id);
        }
        assert_eq!(arena.span_bytes(), (0, 0));
    }

    #[test]
    fn compaction_packs_what_is_left() {
        let arena = arena();
        let mut blocks: Vec<Block> = (0..4000).map(|_| arena.alloc(6000)).collect();
        // Every span keeps one block in five.
        for block in (0..4000).filter(|i| i % 5 != 0).rev().map(|i| blocks.swap_remove(i)) {
            arena.free(block.id);
        }
        assert!(arena.is_wasteful());
        arena.begin_compaction();
        for block in &mut blocks {
            if arena.is_draining(block.id) {
                let moved = arena.alloc(6000);
                assert!(!arena.is_draining(moved.id));
                arena.free(std::mem::replace(block, moved).id);
            }
        }
        arena.end_compaction();
        let (used, waste) = arena.span_bytes();
        assert!(waste <= SPAN, "{waste} bytes of {used} are wasted");
        for block in blocks {
            arena.free(block.id);
        }
        assert_eq!(arena.span_bytes(), (0, 0));
    }

    #[test]
    fn what_is_kept_lies_apart_and_nothing_is_resident_before_it_is_needed() {
        let arena = Arc::new(arena());
        let kept = arena.for_kept();
        assert!(!Arc::ptr_eq(kept, &arena) && Arc::ptr_eq(kept.for_kept(), kept));
        let blocks: Vec<Block> = (0..AHEAD_MIN * 16).map(|_| kept.alloc(BLOCK_MAX / 2)).collect();
        assert!(!kept.state.lock().huge && !arena.is_untidy());
        blocks.into_iter().for_each(|block| kept.free(block.id));
        assert!(arena.is_untidy(), "nobody is asked to give back what was kept");
        arena.tidy();
        assert!(!arena.is_untidy());
        let state = kept.state.lock();
        assert!(state.idle_spans <= state.reserve(), "{} spans lie idle", state.idle_spans);
    }

    #[test]
    fn tidying_gives_back_what_lies_idle_and_readies_what_comes_next() {
        use std::cell::Cell;
        thread_local!(static RELEASED: Cell<usize> = const { Cell::new(0) });
        let release = |_: &MmapMut, _, len| RELEASED.set(RELEASED.get() + len);
        let arena = Arena::new(Arc::new(Account::default()), release);
        let is_resident = |span: u32| !arena.state.lock().spans[span as usize].released;
        let next = || arena.state.lock().free_spans.iter().take(AHEAD).copied().collect::<Vec<_>>();
        // Few spans: none is made resident before it is needed.
        let mut blocks: Vec<Block> = (0..64 * 16).map(|_| arena.alloc(BLOCK_MAX / 2)).collect();
        arena.tidy();
        assert!(!next().into_iter().any(is_resident));
        blocks.extend((0..AHEAD_MIN * 16).map(|_| arena.alloc(BLOCK_MAX / 2)));
        assert!(arena.is_untidy(), "nobody is asked to look ahead");
        arena.tidy();
        assert!(!arena.is_untidy());
        assert!(next().into_iter().all(is_resident));
        assert_eq!(RELEASED.get(), 0, "given back while all is in use");
        for block in blocks {
            arena.free(block.id);
        }
        assert!(arena.is_untidy(), "nobody is asked to give back");
        arena.tidy();
        let state = arena.state.lock();
        assert!(state.idle_spans <= state.reserve(), "{} spans lie idle", state.idle_spans);
        assert!(RELEASED.get() >= AHEAD_MIN / 2 * SPAN);
    }
}
