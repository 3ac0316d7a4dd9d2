//! Pages made from pages: resized, divided, joined, copied out. No unsafe code: entries move as bytes, and
//! what they own moves or is counted again with them.

use std::sync::Arc;

use super::{
    HEADER, LARGE_KEY, LARGE_VALUE, NO_HIGH, Page, SLOT, Value, common_prefix, flags_of, shape,
};
use crate::commit::Totals;
use crate::fingerprint;
use crate::tree::arena::Arena;

impl Page {
    /// The same entries in a page with `room` bytes for slots and entries: no garbage, order kept.
    pub(crate) fn resized(mut self, room: usize) -> Self {
        let arena = Arc::clone(&self.arena());
        let mut page = Page::new(&arena, self.low(), self.high(), room);
        page.adopt(&self);
        // The entries, and what they own, are the new page's now.
        self.header_mut().count = 0;
        page
    }

    /// A page of the entries in `range`, within other fences that cover them.
    pub(crate) fn copied(
        &self,
        range: std::ops::Range<usize>,
        low: &[u8],
        high: Option<&[u8]>,
        extra: usize,
    ) -> Self {
        let prefix_len = high.map_or(0, |high| common_prefix(low, high));
        let room: usize = range.clone().map(|at| self.cost_with_prefix(at, prefix_len)).sum();
        let mut page = Page::new(&self.arena(), low, high, room + extra);
        page.append_range(self, range);
        page
    }

    /// What the entry at `at` takes, its slot included, in a page of another prefix.
    fn cost_with_prefix(&self, at: usize, prefix_len: usize) -> usize {
        let key_len = self.parts(self.slots()[at]).suffix_len + self.prefix_len();
        SLOT + shape(key_len, prefix_len, &self.entry(at)).1
    }

    /// What the entry at `at` takes, its slot included.
    pub(crate) fn cost_at(&self, at: usize) -> usize {
        self.cost_with_prefix(at, self.prefix_len())
    }

    /// What the entries would take in a page with other fences.
    pub(crate) fn cost_within(&self, low: &[u8], high: Option<&[u8]>) -> usize {
        let prefix_len = high.map_or(0, |high| common_prefix(low, high));
        (0..self.len()).map(|at| self.cost_with_prefix(at, prefix_len)).sum()
    }

    /// Shows what the entries in `range` add up to, for each run of keys whose first `prefix_len` bytes are the same; those bytes
    /// do not count.
    pub(crate) fn sum_up(
        &self,
        range: std::ops::Range<usize>,
        prefix_len: usize,
        show: &mut dyn FnMut(&[u8], &Totals),
    ) {
        if range.is_empty() {
            return;
        }
        if range.len() == self.len() && self.prefix_len() >= prefix_len {
            let bytes = (self.raw_bytes() - prefix_len * self.len()) as u64;
            let (records, fingerprint) = (self.len() as u64, self.fingerprint());
            return show(&self.prefix()[..prefix_len], &Totals { records, bytes, fingerprint });
        }
        let mut key = Vec::new();
        for at in range {
            self.key_into(at, &mut key);
            let entry = self.entry(at);
            let bytes = (key.len() - prefix_len + entry.value.len()) as u64;
            let fingerprint = fingerprint::entry(&key, entry.value.hash(), entry.expire_at);
            show(&key[..prefix_len], &Totals { records: 1, bytes, fingerprint });
        }
    }

    /// Appends all entries of `from`, which come after those here; sums of fingerprints too.
    pub(crate) fn append(&mut self, from: &Page) {
        self.append_range(from, 0..from.len());
    }

    fn append_range(&mut self, from: &Page, range: std::ops::Range<usize>) {
        let all = range.len() == from.len();
        let mut key = Vec::new();
        for at in range {
            from.key_into(at, &mut key);
            let entry = from.entry(at);
            self.insert(self.len(), &key, &entry);
            if !all && entry.died == 0 {
                let own = fingerprint::entry(&key, entry.value.hash(), entry.expire_at);
                self.add_fingerprint(own);
            }
        }
        if all {
            self.add_fingerprint(from.fingerprint());
        }
        let header = self.header_mut();
        (header.run, header.last_insert) = (0, 0);
    }

    /// Up to where at most half of the bytes lie: at least 1, less than the count, of two entries or more.
    pub(crate) fn middle(&self) -> usize {
        let half = self.used() / 2;
        let mut sum = 0;
        let prefix_len = self.prefix_len();
        let is_before = |at: &usize| {
            sum += self.cost_with_prefix(*at, prefix_len);
            sum <= half
        };
        (0..self.len()).take_while(is_before).count().clamp(1, self.len() - 1)
    }

    /// The same page in no more memory than it needs.
    pub(crate) fn shrunk(self) -> Self {
        let room = self.used();
        self.resized(room)
    }

    /// Closes the gaps that replaced and removed entries left, within the page's own memory.
    pub(crate) fn compact(&mut self) {
        let header = self.header();
        let (base, end) = (header.base as usize, self.heap_end());
        let len = end - header.heap as usize - header.garbage as usize;
        let heap = end - len;
        let mut packed = Vec::with_capacity(len);
        let mut slots = Vec::with_capacity(self.len());
        for &slot in self.slots() {
            let offset = (heap + packed.len() - base) as u64;
            packed.extend_from_slice(self.bytes(self.entry_start(slot), self.entry_len(slot)));
            slots.push((slot & !0xffff_0000) | offset << 16);
        }
        assert_eq!(packed.len(), len, "our bug: a page's garbage is miscounted");
        self.write(heap, &packed);
        self.slots_prefix_mut(slots.len()).copy_from_slice(&slots);
        let header = self.header_mut();
        header.garbage = 0;
        #[expect(clippy::cast_possible_truncation, reason = "below cap")]
        {
            header.heap = heap as u32;
        }
    }

    /// The same page elsewhere.
    pub(crate) fn moved(self) -> Self {
        let room = self.used() + self.free();
        self.resized(room)
    }

    /// Copies slots and entries of a page with the same fences, byte by byte.
    fn adopt(&mut self, from: &Page) {
        let header = self.header();
        assert!(
            header.base == from.header().base && self.free() >= from.used(),
            "our bug: no room"
        );
        let base = header.base as usize;
        let mut heap = header.heap as usize;
        let count = from.len();
        self.header_mut().count = from.header().count;
        for (at, &slot) in from.slots().iter().enumerate() {
            let (start, len) = (from.entry_start(slot), from.entry_len(slot));
            heap -= len;
            self.write(heap, from.bytes(start, len));
            let offset = (heap - base) as u64;
            self.slots_prefix_mut(count)[at] = (slot & !0xffff_0000) | offset << 16;
        }
        let (run, last, larges) =
            (from.header().run, from.header().last_insert, from.header().larges);
        let fingerprint = from.fingerprint();
        let header = self.header_mut();
        #[expect(clippy::cast_possible_truncation, reason = "below cap")]
        {
            header.heap = heap as u32;
        }
        header.fingerprint = fingerprint;
        (header.run, header.last_insert, header.larges) = (run, last, larges);
    }

    /// Whether the entries in `range` are those of `other` in `other_range`, keys and all. A large value is the same only if it is there once.
    pub(crate) fn has_same(
        &self,
        range: std::ops::Range<usize>,
        other: &Page,
        other_range: std::ops::Range<usize>,
    ) -> bool {
        let (mut key, mut other_key) = (Vec::new(), Vec::new());
        range.len() == other_range.len()
            && range.zip(other_range).all(|(at, other_at)| {
                self.key_into(at, &mut key);
                other.key_into(other_at, &mut other_key);
                let (own, other) = (self.entry(at), other.entry(other_at));
                let same_value = match (own.value, other.value) {
                    (Value::Large(own), Value::Large(other)) => {
                        std::ptr::eq(own.get(), other.get())
                    }
                    (Value::Large(_), _) | (_, Value::Large(_)) => false,
                    (own, other) => own.bytes() == other.bytes(),
                };
                key == other_key && own.expire_at == other.expire_at && same_value
            })
    }

    /// A copy with counts of its own on whatever lies outside, and room for `extra` bytes more.
    pub(crate) fn duplicate(&self, extra: usize) -> Self {
        let room = self.bytes_to_copy() + extra;
        let mut page = Page::new(&self.arena(), self.low(), self.high(), room);
        page.adopt_copy(self);
        page
    }

    /// Whether a copy takes the garbage along: less is moved without it, but entry by entry.
    fn copies_garbage(&self) -> bool {
        self.garbage() <= self.used() / 4
    }

    /// Room for slots and entries that a copy needs.
    fn bytes_to_copy(&self) -> usize {
        self.used() + if self.copies_garbage() { self.garbage() } else { 0 }
    }

    /// Copies what `from` holds, with counts of its own on whatever lies outside.
    fn adopt_copy(&mut self, from: &Page) {
        match from.copies_garbage() {
            true => self.adopt_raw(from),
            false => self.adopt(from),
        }
        self.own_larges();
    }

    /// Copies this page, bytes and all, into `target`'s memory if that has room for it and for `extra` bytes
    /// more, else into new memory.
    pub(crate) fn copy_to(&self, extra: usize, target: &mut Option<Page>) {
        let needed = self.header().base as usize + self.bytes_to_copy() + extra;
        let room = match target {
            Some(page) if page.cap() >= needed => {
                page.clear();
                self.header().base as usize
            }
            _ => {
                // A little more, so that the copies of the next leaves fit as well.
                let cap = (needed + needed / 4).max(1024);
                *target = Some(Self::alloc(&self.arena(), cap));
                self.header().base as usize
            }
        };
        let page = target.as_mut().expect("just set");
        let fences = self.bytes(HEADER, room - HEADER);
        page.write(HEADER, fences);
        let (base, prefix_len, low_len, high_len) = {
            let header = self.header();
            (header.base, header.prefix_len, header.low_len, header.high_len)
        };
        let header = page.header_mut();
        (header.base, header.prefix_len) = (base, prefix_len);
        (header.low_len, header.high_len) = (low_len, high_len);
        header.heap = header.cap.min(base + u16::MAX as u32);
        page.adopt_copy(self);
    }

    /// As `adopt`, garbage and all: two copies of memory.
    fn adopt_raw(&mut self, from: &Page) {
        let (base, heap, end) = {
            let header = from.header();
            (header.base as usize, header.heap as usize, from.heap_end())
        };
        assert!(
            base == self.header().base as usize && self.free() >= end - heap + SLOT * from.len(),
            "our bug: no room"
        );
        let own_end = self.header().heap as usize;
        let own_heap = own_end - (end - heap);
        self.write(own_heap, from.bytes(heap, end - heap));
        self.header_mut().count = from.header().count;
        // Offsets shift alike: both heaps are as long and end at the end.
        let shift = (own_end as u64).wrapping_sub(end as u64) << 16;
        let count = from.len();
        let slots = self.slots_prefix_mut(count);
        for (own, &slot) in slots.iter_mut().zip(from.slots()) {
            *own = (slot & !0xffff_0000) | (slot.wrapping_add(shift) & 0xffff_0000);
        }
        let (fingerprint, larges) = (from.fingerprint(), from.header().larges);
        let garbage = from.header().garbage;
        let header = self.header_mut();
        #[expect(clippy::cast_possible_truncation, reason = "below cap")]
        {
            header.heap = own_heap as u32;
        }
        header.garbage = garbage;
        header.fingerprint = fingerprint;
        header.larges = larges;
    }

    /// Takes a count of its own for each large key and value whose address was copied.
    fn own_larges(&mut self) {
        if self.header().larges == 0 {
            return;
        }
        for &slot in self.slots() {
            let parts = self.parts(slot);
            let flags = flags_of(slot);
            if flags & LARGE_KEY != 0 {
                std::mem::forget(self.large_at(parts.rest).to_arc());
            }
            if flags & LARGE_VALUE != 0 {
                std::mem::forget(self.large_at(parts.value).to_arc());
            }
        }
    }

    /// Empties the page and gives it other fences, in the same memory if that is large enough.
    pub(crate) fn reset(
        target: &mut Option<Page>,
        arena: &Arc<Arena>,
        low: &[u8],
        high: Option<&[u8]>,
        room: usize,
    ) {
        let base = (HEADER + low.len() + high.map_or(0, <[u8]>::len)).next_multiple_of(SLOT);
        match target {
            Some(page) if page.cap() >= base + room => {
                page.clear();
                let prefix_len = high.map_or(0, |high| common_prefix(low, high));
                let header = page.header_mut();
                #[expect(clippy::cast_possible_truncation, reason = "fences are short of 4 GiB")]
                {
                    header.base = base as u32;
                    header.prefix_len = prefix_len as u32;
                    header.low_len = low.len() as u32;
                    header.high_len = high.map_or(NO_HIGH, |high| high.len() as u32);
                }
                header.heap = header.cap.min(header.base + u16::MAX as u32);
                page.write(HEADER, low);
                page.write(HEADER + low.len(), high.unwrap_or(&[]));
            }
            _ => *target = Some(Page::new(arena, low, high, room)),
        }
    }
}
