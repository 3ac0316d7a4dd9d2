//! Memory for pages: 2 MiB chunks that can be huge pages, cut into spans, each span into equal blocks.
//!
//! Leaves of a random load end up all over memory, and with 4 KiB pages nearly every read also misses
//! the TLB; huge pages were worth 1.5x in gets. So pages of 2 to 16 KiB live in anonymous maps that
//! ask for huge pages. A span of 128 KiB serves one block size, `128 KiB / n` for a whole n: sizes lie
//! 2 to 6 % apart in the range that matters, and no span has a tail that fits no block.
//!
//! A chunk that falls wholly free goes back to the operating system, but for one kept in reserve.
//! The arena also owns the account of what pages and large values take.
//!
//! Knows nothing of what a page holds.

use std::collections::BTreeSet;
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{Advice, MmapMut};

use crate::slice::Account;
use crate::sync::Mutex;

const CHUNK: usize = 2 << 20;
const SPAN: usize = 128 << 10;
const SPANS_PER_CHUNK: u32 = 16;
/// Blocks in a span of the largest and of the smallest blocks.
const BLOCKS_MIN: usize = 8;
const BLOCKS_MAX: usize = 64;
/// Regions double from one chunk up to this many.
const REGION_CHUNKS_MAX: usize = 32;

/// Requests above this are not the arena's.
pub(crate) const BLOCK_MAX: usize = SPAN / BLOCKS_MIN;
/// Requests below this are not the arena's.
pub(crate) const BLOCK_MIN: usize = SPAN / BLOCKS_MAX;

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
    /// Gives a chunk's memory back; the bytes then read as zero.
    release: fn(&MmapMut, usize, usize),
}

#[derive(Debug, Default)]
struct State {
    regions: Vec<MmapMut>,
    chunks: Vec<Chunk>,
    spans: Vec<Span>,
    /// Spans of no class, lowest first, so that high chunks fall free.
    free_spans: BTreeSet<u32>,
    /// Wholly free chunks whose memory is still resident.
    idle_chunks: u32,
    /// Spans with a free block, by number of blocks in the span.
    partial: Vec<Vec<u32>>,
}

#[derive(Debug)]
struct Chunk {
    region: usize,
    offset: usize,
    /// Spans that have a class.
    used: u32,
    /// Given back to the operating system since it was last used.
    released: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Span {
    /// How many blocks it is cut into; 0 while free.
    blocks: u8,
    /// Place in its partial list, while it has a free block.
    place: u32,
    /// A bit for each free block.
    free: u64,
}

fn block_len(blocks: usize) -> usize {
    (SPAN / blocks) & !15
}

fn all_free(blocks: usize) -> u64 {
    u64::MAX >> (64 - blocks)
}

impl Arena {
    /// An empty arena; `release` gives the resident memory of a range of a map back.
    pub(crate) fn new(account: Arc<Account>, release: fn(&MmapMut, usize, usize)) -> Self {
        let partial = vec![Vec::new(); BLOCKS_MAX + 1];
        Self { state: Mutex::new(State { partial, ..State::default() }), account, release }
    }

    /// A block of at least `len` bytes, `BLOCK_MIN <= len <= BLOCK_MAX`; all of its bytes are initialised.
    ///
    /// # Panics
    /// If the operating system has no more address space to give, as any allocation here would.
    pub(crate) fn alloc(&self, len: usize) -> Block {
        // The most blocks whose rounded length still holds `len`; above 32 in steps of two, since
        // each class of a small database costs a span of its own.
        let mut blocks = (SPAN / len.next_multiple_of(16)).clamp(BLOCKS_MIN, BLOCKS_MAX);
        if blocks > 32 {
            blocks &= !1;
        }
        let mut state = self.state.lock();
        let span = match state.partial[blocks].last() {
            Some(&span) => span,
            None => state.open_span(blocks),
        };
        let entry = &mut state.spans[span as usize];
        let slot = entry.free.trailing_zeros();
        entry.free &= entry.free - 1;
        if entry.free == 0 {
            state.unlist(span);
        }
        Block {
            id: BlockId(span << 6 | slot),
            start: state.address(span, slot as usize * block_len(blocks)),
            len: block_len(blocks),
        }
    }

    /// Takes a block back.
    pub(crate) fn free(&self, BlockId(id): BlockId) {
        let (span, slot) = (id >> 6, id & 63);
        let mut state = self.state.lock();
        let entry = &mut state.spans[span as usize];
        let was_full = entry.free == 0;
        assert_eq!(entry.free & 1 << slot, 0, "a page block is freed twice");
        entry.free |= 1 << slot;
        let wholly_free = entry.free == all_free(usize::from(entry.blocks));
        if was_full {
            state.list(span);
        }
        if wholly_free {
            state.close_span(span, self.release);
        }
    }

    /// Bytes of chunks in use, blocks free inside them included.
    #[cfg(test)]
    fn resident_bytes(&self) -> usize {
        let state = self.state.lock();
        state.chunks.iter().filter(|chunk| chunk.used > 0).count() * CHUNK
    }
}

impl State {
    fn list(&mut self, span: u32) {
        let list = &mut self.partial[usize::from(self.spans[span as usize].blocks)];
        #[expect(clippy::cast_possible_truncation, reason = "no more entries than spans")]
        let place = list.len() as u32;
        self.spans[span as usize].place = place;
        list.push(span);
    }

    fn unlist(&mut self, span: u32) {
        let Span { blocks, place, .. } = self.spans[span as usize];
        let list = &mut self.partial[usize::from(blocks)];
        list.swap_remove(place as usize);
        if let Some(&moved) = list.get(place as usize) {
            self.spans[moved as usize].place = place;
        }
    }

    fn address(&mut self, span: u32, offset: usize) -> NonNull<u8> {
        let chunk = &self.chunks[(span / SPANS_PER_CHUNK) as usize];
        let start = chunk.offset + (span % SPANS_PER_CHUNK) as usize * SPAN + offset;
        let region = self.regions[chunk.region].as_mut_ptr().wrapping_add(start);
        NonNull::new(region).expect("a map never starts at address 0")
    }

    fn open_span(&mut self, blocks: usize) -> u32 {
        if self.free_spans.is_empty() {
            self.add_region();
        }
        let span = self.free_spans.pop_first().expect("a region was just added");
        let chunk = &mut self.chunks[(span / SPANS_PER_CHUNK) as usize];
        if chunk.used == 0 && !chunk.released {
            self.idle_chunks -= 1;
        }
        chunk.used += 1;
        chunk.released = false;
        #[expect(clippy::cast_possible_truncation, reason = "at most BLOCKS_MAX")]
        let blocks_u8 = blocks as u8;
        self.spans[span as usize] = Span { blocks: blocks_u8, place: 0, free: all_free(blocks) };
        self.list(span);
        span
    }

    fn close_span(&mut self, span: u32, release: fn(&MmapMut, usize, usize)) {
        self.unlist(span);
        self.spans[span as usize] = Span::default();
        self.free_spans.insert(span);
        let chunk = &mut self.chunks[(span / SPANS_PER_CHUNK) as usize];
        chunk.used -= 1;
        if chunk.used == 0 {
            // One idle chunk stays resident: a database at the edge of a chunk would else give it
            // back and fault it in again all the time.
            if self.idle_chunks > 0 {
                release(&self.regions[chunk.region], chunk.offset, CHUNK);
                chunk.released = true;
            } else {
                self.idle_chunks += 1;
            }
        }
    }

    fn add_region(&mut self) {
        let chunks = 1usize << self.regions.len().min(REGION_CHUNKS_MAX.ilog2() as usize);
        // The first region asks for no huge page, so that a small database stays small.
        let huge = chunks > 1;
        let len = chunks * CHUNK + if huge { CHUNK } else { 0 };
        let map = MmapMut::map_anon(len).expect("out of address space for pages");
        let skip = if huge { map.as_ptr().align_offset(CHUNK) } else { 0 };
        if huge {
            // Refused where the kernel has no huge pages: then it is only slower.
            let _ = map.advise_range(Advice::HugePage, skip, chunks * CHUNK);
        }
        for chunk in 0..chunks {
            #[expect(clippy::cast_possible_truncation, reason = "2^32 spans are 512 TiB")]
            let first = self.spans.len() as u32;
            self.free_spans.extend(first..first + SPANS_PER_CHUNK);
            self.spans.extend([Span::default(); SPANS_PER_CHUNK as usize]);
            let offset = skip + chunk * CHUNK;
            // Untouched memory is not resident: as good as released.
            self.chunks.push(Chunk { region: self.regions.len(), offset, used: 0, released: true });
        }
        self.regions.push(map);
    }
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
        for len in (BLOCK_MIN..=BLOCK_MAX).step_by(7) {
            let block = arena.alloc(len);
            assert!(block.len >= len && block.len - len <= len / 7, "{len} got {}", block.len);
            assert_eq!(block.start.as_ptr() as usize % 16, 0);
            arena.free(block.id);
        }
        assert_eq!(arena.resident_bytes(), 0);
    }

    #[test]
    fn blocks_never_overlap_and_all_memory_comes_back() {
        let arena = arena();
        let mut random = 7u64;
        let mut live: Vec<Block> = Vec::new();
        for _ in 0..20_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let pick = (random >> 33) as usize;
            if live.len() > 600 || (pick % 3 == 0 && !live.is_empty()) {
                let block = live.swap_remove(pick % live.len());
                arena.free(block.id);
            } else {
                live.push(arena.alloc(BLOCK_MIN + pick % (BLOCK_MAX - BLOCK_MIN)));
            }
        }
        let mut ranges: Vec<_> = live.iter().map(|b| (b.start.as_ptr() as usize, b.len)).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        for block in live {
            arena.free(block.id);
        }
        assert_eq!(arena.resident_bytes(), 0);
    }
}
