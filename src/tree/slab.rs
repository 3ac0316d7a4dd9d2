//! Leaves by number: slots that never move and are never given back, so that any number is always safe to
//! look up. What a slot holds may be dead, or another leaf by now; the epoch rules that out for readers of
//! the directory, since a slot is reused only when nobody is pinned who could have seen its number there.

use std::sync::OnceLock;

use crate::sync::{Mutex, RwLock};
use crate::tree::directory::LeafId;
use crate::tree::leaf::{Latch, Leaf};

/// Slots in the first bucket; each further bucket doubles.
const FIRST: u32 = 64;
const BUCKETS: usize = 26;

/// See the file's head.
pub(crate) struct Slab {
    buckets: [OnceLock<Box<[Latch]>>; BUCKETS],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u32,
    free: Vec<LeafId>,
}

impl Slab {
    pub(crate) fn new() -> Self {
        Self { buckets: [const { OnceLock::new() }; BUCKETS], state: Mutex::default() }
    }

    /// A slot for a new leaf.
    ///
    /// # Panics
    /// After about four billion leaves.
    pub(crate) fn alloc(&self) -> LeafId {
        let mut state = self.state.lock();
        if let Some(id) = state.free.pop() {
            return id;
        }
        let id = LeafId(state.next);
        let (bucket, _) = place(id);
        self.buckets[bucket].get_or_init(|| {
            let empty = || Latch(RwLock::new(Leaf::default()));
            std::iter::repeat_with(empty).take((FIRST as usize) << bucket).collect()
        });
        state.next = state.next.checked_add(1).expect("more leaves than numbers");
        id
    }

    /// The slot may be used again.
    pub(crate) fn free(&self, id: LeafId) {
        self.state.lock().free.push(id);
    }

    #[inline]
    pub(crate) fn get(&self, id: LeafId) -> &Latch {
        let (bucket, at) = place(id);
        &self.buckets[bucket].get().expect("a leaf's number comes from `alloc`")[at]
    }

    /// Bytes of all slots.
    pub(crate) fn bytes(&self) -> u64 {
        let len = |bucket: &OnceLock<Box<[Latch]>>| bucket.get().map_or(0, |slots| slots.len());
        (self.buckets.iter().map(len).sum::<usize>() * size_of::<Latch>()) as u64
    }

    /// Numbers below this have been given out.
    pub(crate) fn allocated(&self) -> u32 {
        self.state.lock().next
    }

    /// How many leaves live.
    pub(crate) fn len(&self) -> u64 {
        let state = self.state.lock();
        u64::from(state.next) - state.free.len() as u64
    }
}

#[inline]
fn place(LeafId(id): LeafId) -> (usize, usize) {
    let number = u64::from(id) + u64::from(FIRST);
    let bucket = number.ilog2() - FIRST.ilog2();
    #[expect(clippy::cast_possible_truncation, reason = "below 2^32 slots")]
    (bucket as usize, (number - (u64::from(FIRST) << bucket)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tile_the_buckets() {
        let mut expected = (0, 0);
        for id in 0..100_000 {
            assert_eq!(place(LeafId(id)), expected);
            expected.1 += 1;
            if expected.1 == (FIRST as usize) << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        assert!(place(LeafId(u32::MAX)).0 <= BUCKETS);
    }
}
