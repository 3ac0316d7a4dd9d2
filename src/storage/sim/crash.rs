//! What a power cut may leave behind.
//!
//! The model, harsher than any one file system: a write or change of length may be lost, kept, torn or
//! reordered unless a sync of its file followed it and succeeded; a name may be lost or kept, one by one,
//! unless a sync of its directory did. A file may be longer than what was written of it, with zeros or
//! anything else in the bytes that are new. What a failed sync should have made durable is in doubt for
//! good, even where a later sync succeeds (Rebello et al., "Can Applications Recover from fsync
//! Failures?", ATC 2020). Bytes that were durable change only where a later write that was kept says so.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::sync::Arc;

use super::SimDisk;
use super::tree::{Change, DirId, FileId, Step, Tree, put, to_usize};
use crate::clock::Random;

/// What the disk writes whole or not at all, in bytes.
const SECTOR: u64 = 512;

/// What becomes of a change that was not durable when the power went. A change without a fate is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It reached the disk whole. The only fate for a change of length or of a name, other than to be lost.
    Kept,
    /// Of a write, the first so many bytes.
    Prefix(usize),
    /// Of a write, those of the 512-byte sectors it touches whose bit is set: bit i for the ith,
    /// and again for the one 64 further on.
    Sectors(u64),
    /// Of a write, each byte or not, drawn from this seed: as of a mapped page, of which nobody promises more.
    Bytes(u64),
    /// Of a write, all but the byte at this place.
    Without(usize),
    /// Of a write, only the length it gave the file; the new bytes are zeros.
    Zeros,
    /// Of a write, only the length it gave the file; the new bytes are what another file left there,
    /// here random ones of this seed.
    Garbage(u64),
}

/// A moment at which the power may go: what is durable by then, and what is not.
///
/// Made once for each moment; from it any number of [images](Self::image) at the cost of copying the files
/// that they change.
#[derive(Debug, Clone)]
pub struct CrashPoint {
    /// All that is certain and does not lie on top of what is in doubt.
    durable: Tree,
    /// Per file, from the first change that a failed sync left in doubt: what is to be laid on, in this order.
    doubtful: Vec<(FileId, Vec<Layer>)>,
    pending: Vec<(usize, Change)>,
}

#[derive(Debug, Clone)]
enum Layer {
    Certain(Step),
    /// The change of this index, if and as its fate says.
    Pending(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Durable,
    /// A sync of it failed.
    Doubtful,
    /// Not synced.
    Free,
    /// A name in doubt that a durable one took the place of: it can't show any more.
    Hidden,
}

/// How far the changes of one file or directory got: what the next sync after them said.
fn standing_after<Id: std::hash::Hash + Eq>(next_sync: &HashMap<Id, bool>, id: Id) -> Standing {
    match next_sync.get(&id) {
        Some(true) => Standing::Durable,
        Some(false) => Standing::Doubtful,
        None => Standing::Free,
    }
}

fn standings(changes: &[Change]) -> Vec<Standing> {
    let mut files: HashMap<FileId, bool> = HashMap::new();
    let mut dirs: HashMap<DirId, bool> = HashMap::new();
    let mut durable_names: HashSet<(DirId, &OsStr)> = HashSet::new();
    let mut standings = Vec::with_capacity(changes.len());
    for change in changes.iter().rev() {
        standings.push(match &change.step {
            Step::Write { file, .. } | Step::SetLen { file, .. } => standing_after(&files, *file),
            Step::Name { dir, name, .. } => match standing_after(&dirs, *dir) {
                Standing::Durable => {
                    durable_names.insert((*dir, name));
                    Standing::Durable
                }
                _ if durable_names.contains(&(*dir, &**name)) => Standing::Hidden,
                standing => standing,
            },
            Step::Sync { file, done } => {
                files.insert(*file, *done);
                Standing::Hidden
            }
            Step::SyncDir { dir, done } => {
                dirs.insert(*dir, *done);
                Standing::Hidden
            }
        });
    }
    standings.reverse();
    standings
}

impl CrashPoint {
    pub(super) fn new(start: &Tree, changes: &[Change]) -> Self {
        let mut durable = start.clone();
        let mut doubtful: HashMap<FileId, Vec<Layer>> = HashMap::new();
        let mut pending = Vec::new();
        for (index, (change, standing)) in changes.iter().zip(standings(changes)).enumerate() {
            durable.make_room(&change.step);
            match (standing, &change.step) {
                (Standing::Hidden, _) => {}
                (
                    Standing::Durable,
                    step @ (Step::Write { file, .. } | Step::SetLen { file, .. }),
                ) => match doubtful.get_mut(file) {
                    Some(layers) => layers.push(Layer::Certain(step.clone())),
                    None => durable.apply(step),
                },
                (Standing::Durable, step) => durable.apply(step),
                (Standing::Doubtful, Step::Write { file, .. } | Step::SetLen { file, .. }) => {
                    doubtful.entry(*file).or_default().push(Layer::Pending(index));
                    pending.push((index, change.clone()));
                }
                (Standing::Doubtful | Standing::Free, _) => pending.push((index, change.clone())),
            }
        }
        CrashPoint { durable, doubtful: doubtful.into_iter().collect(), pending }
    }

    /// What may be lost, in the order it was done: writes, lengths and names, each with its index in the
    /// log of changes.
    pub fn pending(&self) -> &[(usize, Change)] {
        &self.pending
    }

    /// The disk as the power cut leaves it: what is durable and, of what is [pending](Self::pending), the
    /// changes that `fates` names by their index, laid on in the order given.
    ///
    /// Any order, any subset. A change may be named again: `(i, Zeros)` then `(i, Sectors(m))` is a file as
    /// long as the write made it that holds some of its sectors. (What a failed sync left in doubt keeps its
    /// place in the order of its file, beneath what was synced after it.)
    ///
    /// # Panics
    /// If `fates` names a change that is not pending, or gives a length or a name another fate than
    /// [`Fate::Kept`].
    pub fn image(&self, fates: &[(usize, Fate)]) -> SimDisk {
        let mut tree = self.durable.clone();
        let mut beneath = HashSet::new();
        for (file, layers) in &self.doubtful {
            let bytes = tree.file_mut(*file);
            for layer in layers {
                match layer {
                    Layer::Certain(step) => lay_on(bytes, step, Fate::Kept),
                    Layer::Pending(index) => {
                        beneath.insert(*index);
                        for (_, fate) in fates.iter().filter(|(named, _)| named == index) {
                            lay_on(bytes, &self.step(*index), *fate);
                        }
                    }
                }
            }
        }
        for (index, fate) in fates.iter().filter(|(index, _)| !beneath.contains(index)) {
            match self.step(*index) {
                step @ (Step::Write { file, .. } | Step::SetLen { file, .. }) => {
                    lay_on(tree.file_mut(file), &step, *fate);
                }
                step => {
                    assert_eq!(*fate, Fate::Kept, "a name is kept or lost");
                    tree.apply(&step);
                }
            }
        }
        SimDisk::from_tree(tree)
    }

    fn step(&self, index: usize) -> Step {
        let found = self.pending.binary_search_by_key(&index, |(index, _)| *index);
        let found = found.unwrap_or_else(|_| panic!("change {index} is not pending"));
        self.pending[found].1.step.clone()
    }

    /// Some fates for an [image](Self::image), drawn so that each kind of loss comes up: all kept, none kept, a
    /// prefix with a torn end, or each change for itself and half of the time out of order.
    pub fn draw(&self, random: &mut Random) -> Vec<(usize, Fate)> {
        let in_order = self.pending.iter().map(|(index, _)| (*index, Fate::Kept));
        match random.below(8) {
            0 => in_order.collect(),
            1 => Vec::new(),
            2 | 3 => {
                let count = random.below(self.pending.len() as u64 + 1);
                #[expect(clippy::cast_possible_truncation, reason = "at most the length of a Vec")]
                let count = count as usize;
                let mut fates: Vec<_> = in_order.take(count).collect();
                if let Some((index, change)) = self.pending.get(count) {
                    draw_fates(random, *index, change, &mut fates);
                }
                fates
            }
            _ => {
                let mut order: Vec<_> = self.pending.iter().collect();
                if random.one_in(2) {
                    random.shuffle(&mut order);
                }
                let mut fates = Vec::new();
                for (index, change) in order {
                    draw_fates(random, *index, change, &mut fates);
                }
                fates
            }
        }
    }
}

/// Adds one change's fates: lost, kept or damaged, each a third of the time.
fn draw_fates(random: &mut Random, index: usize, change: &Change, fates: &mut Vec<(usize, Fate)>) {
    let len = match &change.step {
        Step::Write { data, .. } => data.len(),
        _ => 0,
    };
    match random.below(3) {
        0 => {}
        1 => fates.push((index, Fate::Kept)),
        _ if len == 0 => {}
        _ => {
            let sectors = Fate::Sectors(random.next_u64());
            #[expect(clippy::cast_possible_truncation, reason = "at most len, a usize")]
            let prefix = Fate::Prefix(random.below(len as u64 + 1) as usize);
            match random.below(5) {
                0 => fates.push((index, prefix)),
                1 => fates.push((index, sectors)),
                2 => fates.push((index, Fate::Zeros)),
                3 => fates.extend([(index, Fate::Zeros), (index, sectors)]),
                _ => fates.extend([(index, Fate::Garbage(random.next_u64())), (index, prefix)]),
            }
        }
    }
}

/// Changes the bytes of a file as `fate` lets `step`, a write or a change of length.
fn lay_on(bytes: &mut Arc<Vec<u8>>, step: &Step, fate: Fate) {
    let bytes = Arc::make_mut(bytes);
    let Step::Write { offset, data, .. } = step else {
        assert_eq!(fate, Fate::Kept, "a length is kept or lost");
        if let Step::SetLen { len, .. } = step {
            bytes.resize(to_usize(*len), 0);
        }
        return;
    };
    let start = to_usize(*offset);
    let old_len = bytes.len();
    match fate {
        Fate::Kept => put(bytes, start, data),
        Fate::Prefix(count) => put(bytes, start, &data[..count.min(data.len())]),
        Fate::Sectors(mask) => {
            let mut at = 0;
            let mut sector = 0;
            while at < data.len() {
                let to_boundary = to_usize(SECTOR - (*offset + at as u64) % SECTOR);
                let end = data.len().min(at + to_boundary);
                if mask >> (sector % 64) & 1 == 1 {
                    put(bytes, start + at, &data[at..end]);
                }
                at = end;
                sector += 1;
            }
        }
        Fate::Bytes(seed) => {
            bytes.resize(old_len.max(start + data.len()), 0);
            let mut random = Random::new(seed);
            for (to, from) in bytes[start..].iter_mut().zip(&**data) {
                if random.one_in(2) {
                    *to = *from;
                }
            }
        }
        Fate::Without(at) => {
            let before = bytes.get(start + at).copied().unwrap_or_default();
            put(bytes, start, data);
            if at < data.len() {
                bytes[start + at] = before;
            }
        }
        Fate::Zeros => bytes.resize(old_len.max(start + data.len()), 0),
        Fate::Garbage(seed) => {
            bytes.resize(old_len.max(start + data.len()), 0);
            // A gap before the write was never given room, so it holds nothing of anyone's.
            let new = bytes.len().min(old_len.max(start));
            Random::new(seed).fill(&mut bytes[new..]);
        }
    }
}
