//! Every leaf block of an open file, each proven, on several threads: what verifying and loading share.
//!
//! Invariant: on `Ok`, every byte between header and footer was read under its checksum, blocks filled that
//! space without a gap, and what they hold sums up to the footer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::reader::{BlockAt, Reader, at};
use crate::error::{Error, Fault, Result};
use crate::format::KEYSPACE_ID_LEN;
use crate::format::codec::equal;
use crate::format::index::{Index, Place};
use crate::format::leaves::{KeyspaceSums, Leaves};
use crate::format::snapshot::{HEADER_LEN, Totals};
use crate::planted::{Bug, planted};
use crate::sync::Mutex;

/// Shows every leaf block to `visit`, on `threads` threads, in no order; returns its answers in key order, and
/// what the blocks hold.
///
/// Proves frames, fences, gaps, fingerprints and totals. Large values are for `visit` to read, which proves them.
pub(crate) fn walk<T: Send>(
    reader: &Reader,
    threads: usize,
    visit: impl Fn(Place, &Leaves) -> Result<T> + Sync,
) -> Result<(Vec<T>, Content)> {
    let start = (HEADER_LEN as u64, 0);
    let cursor = Mutex::new(Cursor { next: BlockAt::default(), index: None, start });
    let failed = AtomicBool::new(false);
    let parts =
        thread::scope(|scope| {
            let worker = || {
                let mut part = Part {
                    visited: Vec::new(),
                    totals: Totals::default(),
                    content: Content::default(),
                    error: None,
                };
                // Relaxed: who sees it late visits a block too many.
                while !failed.load(Ordering::Relaxed) {
                    match visit_next(reader, &cursor, &visit, &mut part) {
                        Ok(true) => {}
                        Ok(false) => break,
                        Err((place, error)) => {
                            failed.store(true, Ordering::Relaxed);
                            part.error = Some((place, error));
                        }
                    }
                }
                part
            };
            // This thread is one of them.
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
            let mut parts = vec![worker()];
            parts.extend(others.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }));
            parts
        });
    let mut totals = Totals::default();
    let mut content = Content::default();
    let mut visited = Vec::new();
    let mut first_error: Option<(u64, Error)> = None;
    for mut part in parts {
        totals.add(&part.totals);
        content.append(part.content);
        visited.append(&mut part.visited);
        if let Some((offset, error)) = part.error
            && first_error.as_ref().is_none_or(|(first, _)| offset < *first)
        {
            first_error = Some((offset, error));
        }
    }
    if let Some((_, error)) = first_error {
        return Err(error);
    }
    let footer_at = reader.footer.root_offset.saturating_add(reader.footer.root_len.into());
    totals
        .check(0, &reader.footer.totals)
        .map_err(|damage| at(reader.path(), footer_at, damage))?;
    content.check().map_err(|fault| Error::corrupt(reader.path(), HEADER_LEN as u64, fault))?;
    visited.sort_unstable_by_key(|(at, _)| *at);
    Ok((visited.into_iter().map(|(_, answer)| answer).collect(), content))
}

/// What one thread did.
struct Part<T> {
    visited: Vec<(BlockAt, T)>,
    totals: Totals,
    content: Content,
    error: Option<(u64, Error)>,
}

/// The block to visit next, and where the one before it ended: offset and ordinal.
struct Cursor {
    next: BlockAt,
    index: Option<Arc<Index>>,
    start: (u64, u64),
}

/// A block that one thread visits: its place, and where its chunks must start.
struct Claim {
    index: Arc<Index>,
    at: BlockAt,
    place: Place,
    start: (u64, u64),
}

impl Cursor {
    fn claim(&mut self, reader: &Reader) -> Result<Option<Claim>> {
        if self.next.index == reader.root.index.len() {
            return Ok(None);
        }
        let index = match &self.index {
            Some(index) => Arc::clone(index),
            None => Arc::clone(self.index.insert(reader.index(self.next.index)?)),
        };
        let place = reader.named(&index, self.next)?.place;
        let end = (place.end(), place.ordinal.saturating_add(1));
        let claim = Claim { at: self.next, place, start: self.start, index };
        self.start = end;
        self.next.block += 1;
        if self.next.block == claim.index.len() {
            self.next = BlockAt { index: self.next.index + 1, block: 0 };
            self.index = None;
            if self.next.index == reader.root.index.len() {
                let limit = reader.root.leaf_blocks_end();
                let first = reader.root.index.get(0).map_or(0, |named| named.place.ordinal);
                equal(0, "end of the leaf blocks", end.0, limit)
                    .and_then(|()| equal(0, "ordinal of the first index block", first, end.1))
                    .map_err(|damage| at(reader.path(), end.0, damage))?;
            }
        }
        Ok(Some(claim))
    }
}

/// Visits one block; `false` when none is left. An error comes with the offset it is ordered by.
fn visit_next<T>(
    reader: &Reader,
    cursor: &Mutex<Cursor>,
    visit: &(impl Fn(Place, &Leaves) -> Result<T> + Sync),
    part: &mut Part<T>,
) -> std::result::Result<bool, (u64, Error)> {
    let claim = cursor.lock().claim(reader).map_err(|error| (u64::MAX, error))?;
    let Some(Claim { index, at: block, place, start }) = claim else { return Ok(false) };
    let told = |error| (place.offset, error);
    let leaves = reader.read_leaves(&index, block).map_err(told)?;
    check_gap(reader, place, start, &leaves).map_err(told)?;
    let damaged = |fault| told(Error::corrupt(reader.path(), place.offset, fault));
    part.content.add(&leaves).map_err(damaged)?;
    let answer = visit(place, &leaves).map_err(told)?;
    part.totals.add(&leaves.totals());
    part.visited.push((block, answer));
    Ok(true)
}

/// The chunks of a block fill the gap before it.
fn check_gap(
    reader: &Reader,
    place: Place,
    (offset, ordinal): (u64, u64),
    leaves: &Leaves,
) -> Result<()> {
    let (bytes, blocks) = leaves.chunks();
    let gap = equal(0, "offset of a leaf block", place.offset, offset.saturating_add(bytes))
        .and_then(|()| {
            equal(16, "ordinal of a leaf block", place.ordinal, ordinal.saturating_add(blocks))
        });
    gap.map_err(|damage| at(reader.path(), place.offset, damage))
}

/// What leaf blocks hold besides their entries: sums of each keyspace, and the catalogue's ids.
#[derive(Debug, Default)]
pub(crate) struct Content {
    pub(crate) keyspaces: BTreeMap<u32, KeyspaceSums>,
    catalogue: Vec<u32>,
}

impl Content {
    /// Adds a block, proving the fingerprints of its leaves and the form of catalogue entries.
    pub(crate) fn add(&mut self, leaves: &Leaves) -> std::result::Result<(), Fault> {
        for sums in leaves.check_sums().map_err(|damage| damage.fault)? {
            self.add_sums(sums);
        }
        // The catalogue is keyspace 0: no block that starts above it holds any of it.
        if leaves.low() >= &[0, 0, 0, 1][..] {
            return Ok(());
        }
        let mut key = Vec::new();
        for entry in (0..leaves.len()).map_while(|i| leaves.entry(i)) {
            entry.assemble(&mut key);
            let Some((_, id)) = catalogue_entry(&key, entry.inline(), entry.expire_at)? else {
                break;
            };
            self.catalogue.push(id);
        }
        Ok(())
    }

    fn add_sums(&mut self, sums: KeyspaceSums) {
        let empty = KeyspaceSums { id: sums.id, ..KeyspaceSums::default() };
        self.keyspaces.entry(sums.id).or_insert(empty).add(&sums);
    }

    /// Adds what another thread has seen.
    fn append(&mut self, mut other: Content) {
        std::mem::take(&mut other.keyspaces).into_values().for_each(|sums| self.add_sums(sums));
        self.catalogue.append(&mut other.catalogue);
    }

    /// Proves, once all is added, that no two names have one id.
    pub(crate) fn check(&mut self) -> std::result::Result<(), Fault> {
        self.catalogue.sort_unstable();
        match self.catalogue.is_sorted_by(|a, b| a < b) {
            true => Ok(()),
            false => Err(Fault::Order { field: "keyspace ids" }),
        }
    }
}

/// Name and id of the keyspace that a catalogue entry is about; `None` for any other entry. `value` is `None` for one that is large.
pub(crate) fn catalogue_entry<'k>(
    key: &'k [u8],
    value: Option<&[u8]>,
    expire_at: u64,
) -> std::result::Result<Option<(&'k str, u32)>, Fault> {
    let Some((&[0, 0, 0, 0], name)) = key.split_first_chunk::<KEYSPACE_ID_LEN>() else {
        return Ok(None);
    };
    let range = |field, got, min, max| Err(Fault::Range { field, got, min, max });
    if name.is_empty() || name.len() > crate::MAX_KEYSPACE_NAME_LEN {
        let max = crate::MAX_KEYSPACE_NAME_LEN as u64;
        return range("length of a keyspace name", name.len() as u64, 1, max);
    }
    let name = match std::str::from_utf8(name) {
        Ok(name) => name,
        Err(error) if planted(Bug::UnwrapsText) => panic!("{error}"),
        Err(_) => return Err(Fault::Text),
    };
    // A name that went away with time would show other keyspaces to who loads than to who reads in place.
    if expire_at != 0 {
        return range("expiry of a catalogue entry", expire_at, 0, 0);
    }
    let len = value.map_or(u64::MAX, |value| value.len() as u64);
    match value.and_then(|value| value.try_into().map(u32::from_le_bytes).ok()) {
        None => range("length of a catalogue value", len, 4, 4),
        Some(0) => range("keyspace id", 0, 1, u32::MAX.into()),
        Some(id) => Ok(Some((name, id))),
    }
}
