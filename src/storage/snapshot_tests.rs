//! Saving, reading in place and loading, over a tree that is a sorted map and a disk that can fail.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::load::{Loaded, load_file, load_stream};
use super::save::{Compression, SaveHandle, SaveOptions, save_to_stream};
use super::sim::{CallKind, DiskFault, SimDisk};
use super::snapshot_file::SnapshotFile;
use super::source::{Cut, EntryRef, LeafBuild, LeafCopy, LeafSink, LeafSource, Payload};
use super::tests::TestDir;
use super::writer::{Progress, WriterOptions, write_snapshot};
use super::{Disk, DiskFile, OsDisk};
use crate::clock::Random;
use crate::error::{Error, Fault, Result};
use crate::fingerprint;
use crate::format::snapshot::{Codec, FileId, Span};
use crate::position::{HistoryId, Position, Seq};

pub(super) type Entries = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

/// A tree of the simplest kind: a map, cut into leaves at `fences`.
#[derive(Clone, Default)]
pub(super) struct Map {
    pub(super) entries: Arc<Entries>,
    /// Low fences, the first empty; stamp i + 1 belongs to the ith.
    pub(super) fences: Vec<Vec<u8>>,
}

#[derive(Default)]
pub(super) struct MapLeaf {
    low: Vec<u8>,
    high: Option<Vec<u8>>,
    stamp: Seq,
    entries: Vec<(Vec<u8>, Vec<u8>, u64)>,
}

impl LeafCopy for MapLeaf {
    fn clear(&mut self) {
        self.entries.clear();
    }
    fn low(&self) -> &[u8] {
        &self.low
    }
    fn high(&self) -> Option<&[u8]> {
        self.high.as_deref()
    }
    fn stamp(&self) -> Seq {
        self.stamp
    }
    fn raw_bytes(&self) -> usize {
        self.entries.iter().map(|(key, value, _)| key.len() + value.len()).sum()
    }
    fn each(&self, visit: &mut dyn FnMut(EntryRef<'_>) -> Result<()>) -> Result<()> {
        self.entries.iter().try_for_each(|(key, value, expire_at)| {
            visit(EntryRef { key, value, expire_at: *expire_at })
        })
    }
}

impl LeafSource for Map {
    type Copy = MapLeaf;
    fn copy_leaf(&self, from: &[u8], out: &mut MapLeaf) -> Result<bool> {
        let next = self.fences.partition_point(|fence| fence.as_slice() <= from);
        let high = self.fences.get(next).cloned();
        let end = high.clone().map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.entries.range((Bound::Included(from.to_vec()), end));
        let entries = entries.map(|(k, (v, e))| (k.clone(), v.clone(), *e)).collect();
        *out = MapLeaf { low: from.to_vec(), high, stamp: Seq(next as u64), entries };
        Ok(true)
    }
}

impl Map {
    /// With a fence before every `leaf_len`th entry, and one between keyspaces that is no key.
    fn new(entries: Entries, leaf_len: usize) -> Self {
        let mut fences = vec![Vec::new()];
        fences.extend(entries.keys().skip(1).step_by(leaf_len).cloned());
        fences.push(vec![0, 0, 0, 1]);
        fences.sort();
        fences.dedup();
        Map { entries: Arc::new(entries), fences }
    }

    fn cut(&self) -> Cut {
        let position = Position { history: HistoryId([0xBB; 16]), seq: Seq(99) };
        let span = Span {
            history: position.history,
            term: 1,
            writer: [0xCC; 16],
            start: Seq(1),
            end: Seq(99),
        };
        Cut {
            position,
            time_ms: 1_700_000_000_000,
            lineage: vec![span],
            entries: self.entries.len() as u64,
            fingerprint: self.entries.iter().fold(0, |sum, (key, (value, expire_at))| {
                let entry = fingerprint::entry(key, fingerprint::value_hash(value), *expire_at);
                sum.wrapping_add(entry)
            }),
        }
    }

    pub(super) fn bytes(&self, codec: Codec, threads: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let options = WriterOptions { codec, threads, rate_limit: None, run_bytes: None };
        let progress = Progress::default();
        write_snapshot(self, &self.cut(), FILE_ID, options, &progress, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })
        .unwrap();
        assert_eq!(progress.entries.load(Ordering::Relaxed), self.entries.len() as u64);
        assert_eq!(progress.file_bytes.load(Ordering::Relaxed), bytes.len() as u64);
        bytes
    }

    fn start_save(
        &self,
        disk: &Arc<dyn Disk>,
        path: &Path,
        options: &SaveOptions,
    ) -> Result<SaveHandle> {
        SaveHandle::start(Arc::clone(disk), path, self.clone(), self.cut(), options)
    }
}

const FILE_ID: FileId = [0xAA; 16];

/// Collects what a load hands over and checks fences as it goes.
struct Collect;

struct CollectLeaf {
    low: Vec<u8>,
    high: Option<Vec<u8>>,
    stamp: Seq,
    entries: Vec<(Vec<u8>, Vec<u8>, u64)>,
}

impl LeafSink for Collect {
    type Builder<'a> = CollectLeaf;
    fn begin(&self, low: &[u8], high: Option<&[u8]>, stamp: Seq) -> CollectLeaf {
        CollectLeaf {
            low: low.to_vec(),
            high: high.map(<[u8]>::to_vec),
            stamp,
            entries: Vec::new(),
        }
    }
}

impl LeafBuild for CollectLeaf {
    type Built = CollectLeaf;
    fn push(&mut self, key: &[u8], value: Payload<'_>, expire_at: u64) -> Result<()> {
        let last = self.entries.last().map_or(&self.low, |(key, ..)| key);
        assert!(key >= last.as_slice() && self.high.as_deref().is_none_or(|high| key < high));
        let value = match value {
            Payload::Bytes(bytes) => bytes.to_vec(),
            Payload::Large { bytes, hash } => {
                assert_eq!(hash, fingerprint::value_hash(&bytes));
                bytes.into()
            }
        };
        self.entries.push((key.to_vec(), value, expire_at));
        Ok(())
    }
    fn finish(self) -> Result<Vec<CollectLeaf>> {
        Ok(vec![self])
    }
}

/// The entries of what was loaded; panics unless its leaves tile the key space.
fn entries_of(loaded: Loaded<CollectLeaf>) -> Entries {
    let mut low = Some(Vec::new());
    let mut entries = Entries::new();
    for leaf in loaded.leaves {
        assert_eq!(Some(leaf.low), low);
        assert!(leaf.stamp > Seq(0));
        low = leaf.high;
        entries.extend(leaf.entries.into_iter().map(|(key, value, expiry)| (key, (value, expiry))));
    }
    assert_eq!(low, None);
    let sums = loaded.keyspaces.values();
    assert_eq!(sums.clone().map(|sums| sums.entries).sum::<u64>(), entries.len() as u64);
    let fingerprint = sums.fold(0, |sum, keyspace| u64::wrapping_add(sum, keyspace.fingerprint));
    assert_eq!(fingerprint, loaded.footer.totals.fingerprint);
    assert_eq!(loaded.footer.totals.entries, entries.len() as u64);
    assert_eq!(loaded.lineage.len(), 1);
    entries
}

pub(super) fn key(id: u32, text: impl AsRef<[u8]>) -> Vec<u8> {
    [&id.to_be_bytes()[..], text.as_ref()].concat()
}

fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// Catalogue, three keyspaces, expiries, empty and large values, long keys: everything there is, small.
fn everything(records: u32) -> Entries {
    let mut random = Random::new(7);
    let mut entries = Entries::new();
    for (name, id) in [("accounts", 1_u32), ("größe", 2), ("z", 3)] {
        entries.insert(key(0, name), (id.to_le_bytes().to_vec(), 0));
    }
    for i in 0..records {
        let value =
            format!("{{\"id\":{i},\"name\":\"user {i:05}\",\"balance\":{}}}", random.below(90_000));
        entries.insert(key(1, format!("user:{i:06}")), (value.into_bytes(), 0));
    }
    let past = 1_699_999_999_999;
    for (name, expire_at) in [("past", past), ("now", past + 1), ("later", past + 2)] {
        entries.insert(key(2, name), (b"v".to_vec(), expire_at));
    }
    entries.insert(key(2, ""), (Vec::new(), 0));
    entries.insert(key(2, vec![0xFF; 65_536]), (b"long key".to_vec(), 0));
    entries.insert(key(2, [&vec![0xFF; 65_535][..], &[0xFE]].concat()), (b"long too".to_vec(), 0));
    entries.insert(key(3, "inline"), (noise(&mut random, 16_384), 0));
    entries.insert(key(3, "large"), (noise(&mut random, 16_385), past + 9));
    entries.insert(key(3, "large and dull"), (vec![b'.'; 200_000], 0));
    entries
}

/// Values that take several pieces each, among leaves of which many are in one claim.
fn with_large_values() -> Map {
    let mut entries = everything(600);
    for i in [77, 300, 301] {
        entries.insert(key(1, format!("user:{i:06}")), (noise(&mut Random::new(i), 700_000), 0));
    }
    Map::new(entries, 5)
}

fn temporary_files(dir: &TestDir) -> Vec<PathBuf> {
    let names = OsDisk.list(&dir.path("")).unwrap();
    names
        .into_iter()
        .map(PathBuf::from)
        .filter(|name| name.extension() == Some("tmp".as_ref()))
        .collect()
}

fn saved(dir: &TestDir, name: &str, bytes: &[u8]) -> SnapshotFile {
    SnapshotFile::open(dir.write(name, bytes)).unwrap()
}

/// Reads everything in every way and compares.
fn check_all(file: &SnapshotFile, bytes: &[u8], expected: &Entries) {
    let report = file.verify().unwrap();
    assert_eq!(report.entries, expected.len() as u64);
    assert_eq!(report.fingerprint, file.info().fingerprint);
    assert_eq!(
        report.raw_bytes,
        expected.iter().map(|(k, (v, _))| k.len() - 4 + v.len()).sum::<usize>() as u64
    );
    assert!(entries_of(load_file(file.reader(), &Collect, 3).unwrap()) == *expected);
    assert!(entries_of(load_stream(bytes, &Collect).unwrap()) == *expected);

    let names: Vec<_> = expected
        .range(key(0, "")..key(1, ""))
        .map(|(k, (v, _))| {
            (
                String::from_utf8(k[4..].to_vec()).unwrap(),
                u32::from_le_bytes(v[..].try_into().unwrap()),
            )
        })
        .collect();
    assert_eq!(
        file.keyspaces().unwrap(),
        names.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
    );
    for (name, id) in names {
        let keyspace = file.keyspace(&name).unwrap();
        let range = expected.range(key(id, "")..key(id + 1, ""));
        assert_eq!(keyspace.len().unwrap(), range.clone().count() as u64);
        let alive: Vec<_> = range
            .clone()
            .filter(|(_, (_, e))| *e == 0 || *e > file.info().time_ms)
            .map(|(k, (v, _))| (k[4..].to_vec(), v.clone()))
            .collect();
        for (k, (v, e)) in range {
            let expected = (*e == 0 || *e > file.info().time_ms).then_some(v);
            assert_eq!(keyspace.get(&k[4..]).unwrap().as_deref(), expected.map(Vec::as_slice));
            assert_eq!(keyspace.contains_key(&k[4..]).unwrap(), expected.is_some());
            let missing = [&k[4..], b"\0"].concat();
            assert_eq!(keyspace.get(&missing).unwrap(), None);
        }
        let owned = |entry: Result<(crate::Slice, crate::Slice)>| {
            entry.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()
        };
        let forward: Vec<_> = keyspace.range::<&[u8]>(..).map(owned).collect();
        assert!(forward == alive);
        let mut backward: Vec<_> = keyspace.range::<&[u8]>(..).rev().map(owned).collect();
        backward.reverse();
        assert!(backward == alive);
        let mut shown = Vec::new();
        keyspace
            .scan_with::<&[u8]>(.., |k, v| {
                shown.push((k.to_vec(), v.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(shown == alive);
    }
    assert!(matches!(file.keyspace("absent"), Err(Error::NoKeyspace)));
}

#[test]
fn what_was_saved_is_read_in_every_way() {
    let dir = TestDir::new();
    for (records, leaf_len) in [(0, 10), (1, 1), (500, 3), (3_000, 40), (3_000, 100_000)] {
        let map = Map::new(everything(records), leaf_len);
        for codec in [Codec::Lz4, Codec::Raw] {
            let bytes = map.bytes(codec, 1);
            for threads in [2, 5] {
                assert!(map.bytes(codec, threads) == bytes, "threads do not show in the bytes");
            }
            check_all(&saved(&dir, "file", &bytes), &bytes, &map.entries);
        }
    }
}

#[test]
fn the_number_of_encoders_does_not_show_whatever_a_run_takes() {
    let map = with_large_values();
    for run_bytes in [Some(0), Some(300), None, Some(usize::MAX)] {
        let write = |threads| {
            let mut bytes = Vec::new();
            let options = WriterOptions { codec: Codec::Lz4, threads, rate_limit: None, run_bytes };
            let progress = Progress::default();
            write_snapshot(&map, &map.cut(), FILE_ID, options, &progress, &mut |part| {
                bytes.extend_from_slice(part);
                Ok(())
            })
            .unwrap();
            assert_eq!(progress.file_bytes.load(Ordering::Relaxed), bytes.len() as u64);
            bytes
        };
        let bytes = write(1);
        assert!(entries_of(load_stream(&bytes[..], &Collect).unwrap()) == *map.entries);
        for threads in [0, 2, 5] {
            assert!(write(threads) == bytes, "{threads} threads, runs of {run_bytes:?}");
        }
    }
}

#[test]
fn a_save_stops_wherever_it_is_cancelled_or_its_sink_fails() {
    let map = with_large_values();
    let len = map.bytes(Codec::Lz4, 1).len();
    for threads in [1, 3] {
        for stop in (0..len * 9 / 10).step_by(len / 10) {
            for cancels in [true, false] {
                let options =
                    WriterOptions { codec: Codec::Lz4, threads, rate_limit: None, run_bytes: None };
                let progress = Progress::default();
                let (mut written, mut calls_since) = (0, 0);
                let mut sink = |part: &[u8]| {
                    if written >= stop {
                        calls_since += 1;
                        progress.cancelled.store(cancels, Ordering::Relaxed);
                        if !cancels {
                            return Err(Error::Closed);
                        }
                    }
                    written += part.len();
                    Ok(())
                };
                let saved =
                    write_snapshot(&map, &map.cut(), FILE_ID, options, &progress, &mut sink);
                match saved.unwrap_err() {
                    Error::Cancelled if cancels => {}
                    Error::Closed if !cancels => {}
                    error => panic!("{error}"),
                }
                assert_eq!(calls_since, 1, "{threads} threads, stopped at {stop}");
            }
        }
    }
}

#[test]
fn an_empty_tree_is_saved_and_read() {
    let dir = TestDir::new();
    let map = Map { fences: vec![Vec::new()], ..Map::default() };
    let bytes = map.bytes(Codec::Lz4, 1);
    check_all(&saved(&dir, "file", &bytes), &bytes, &Entries::new());
    let cut = Cut { lineage: Vec::new(), position: Position::default(), ..map.cut() };
    let mut bytes = Vec::new();
    save_to_stream(&map, &cut, &SaveOptions::default(), &mut bytes).unwrap();
    assert_eq!(saved(&dir, "file", &bytes).info().position, Position::default());
}

#[test]
fn ranges_agree_with_a_map_from_both_ends() {
    let dir = TestDir::new();
    let map = Map::new(everything(2_000), 7);
    let file = saved(&dir, "file", &map.bytes(Codec::Lz4, 2));
    let keyspace = file.keyspace("accounts").unwrap();
    let model: BTreeMap<Vec<u8>, Vec<u8>> = map
        .entries
        .range(key(1, "")..key(2, ""))
        .map(|(k, (v, _))| (k[4..].to_vec(), v.clone()))
        .collect();
    let mut random = Random::new(11);
    let text = |random: &mut Random| format!("user:{:06}", random.below(2_100)).into_bytes();
    for round in 0..400 {
        let (a, b) = (text(&mut random), text(&mut random));
        let bounds = match round % 4 {
            0 => (Bound::Included(&a), Bound::Excluded(&b)),
            1 => (Bound::Excluded(&a), Bound::Included(&b)),
            2 => (Bound::Unbounded, Bound::Included(&b)),
            _ => (Bound::Excluded(&a), Bound::Unbounded),
        };
        let mut expected: Vec<_> = match bounds {
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b))
                if a >= b =>
            {
                Vec::new()
            }
            bounds => model.range::<Vec<u8>, _>(bounds).collect(),
        };
        let mut range = keyspace.range::<&Vec<u8>>(bounds);
        // Both ends in random turns, until they meet.
        loop {
            let from_back = random.one_in(2);
            let got = if from_back { range.next_back() } else { range.next() };
            let model = if expected.is_empty() {
                None
            } else if from_back {
                expected.pop()
            } else {
                Some(expected.remove(0))
            };
            let got = got.transpose().unwrap();
            assert_eq!(
                got.as_ref().map(|(k, v)| (&**k, &**v)),
                model.map(|(k, v)| (&k[..], &v[..]))
            );
            if got.is_none() {
                break;
            }
        }
        assert!(range.next().is_none() && range.next_back().is_none());
    }
    assert_eq!(keyspace.prefix("user:00012").count(), 10);
    assert_eq!(keyspace.prefix("").count(), 2_000);
    assert_eq!(keyspace.prefix("x").count(), 0);
    assert_eq!(file.keyspace("größe").unwrap().prefix([0xFF; 9]).count(), 2);
}

#[test]
fn every_changed_byte_and_every_other_length_is_refused() {
    let map = Map::new(small(), 4);
    for codec in [Codec::Lz4, Codec::Raw] {
        let good = map.bytes(codec, 1);
        let refused = |bytes: &[u8], what: &str| {
            assert!(matches!(read_all(bytes), Err(Error::Corrupt { .. })), "{codec:?}: {what}");
            let streamed = load_stream(bytes, &Collect).map(entries_of);
            assert!(matches!(streamed, Err(Error::Corrupt { .. })), "{codec:?}: streamed, {what}");
        };
        assert!(read_all(&good).unwrap() == *map.entries);
        let mut random = Random::new(3);
        for i in 0..good.len() {
            // A long run of one byte teaches little: the value that has to be large to be one.
            if good[i.saturating_sub(32)..].starts_with(&[b'x'; 64]) && i % 97 != 0 {
                continue;
            }
            let mut changes = vec![1, 0x80, good[i], !good[i], good[i] ^ good[i].wrapping_add(1)];
            changes.push(u8::try_from(random.below(255)).unwrap() + 1);
            changes.retain(|change| *change != 0);
            for change in changes {
                let mut bytes = good.clone();
                bytes[i] ^= change;
                refused(&bytes, &format!("byte {i} ^ {change:#x}"));
            }
            refused(&good[..i], &format!("cut at {i}"));
            let mut bytes = good.clone();
            bytes.insert(i, 0);
            refused(&bytes, &format!("a byte inserted at {i}"));
            bytes.remove(i);
            bytes.remove(i);
            refused(&bytes, &format!("byte {i} taken out"));
        }
        refused(&[&good[..], &[0]].concat(), "a byte appended");
        refused(&[&good[..], &good[..]].concat(), "twice the same");
    }
}

/// A few entries of every kind.
fn small() -> Entries {
    let mut entries = everything(12);
    entries.retain(|key, (value, _)| key.len() < 100 && value.len() < 20_000);
    entries.remove(&key(3, "inline"));
    entries.remove(&key(3, "large"));
    entries.insert(key(3, "large"), (vec![b'x'; 16_385], 0));
    entries
}

/// A file in memory: thousands of damaged ones are read.
#[derive(Debug)]
struct Memory(Vec<u8>);

impl DiskFile for Memory {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap().min(self.0.len());
        let len = buf.len().min(self.0.len() - start);
        buf[..len].copy_from_slice(&self.0[start..start + len]);
        Ok(len)
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync_all(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Opens, verifies, loads, and looks everything up in place; all must agree that all is well.
fn read_all(bytes: &[u8]) -> Result<Entries> {
    let file = SnapshotFile::open_file(Box::new(Memory(bytes.to_vec())), Path::new("damaged"))?;
    let loaded = load_file(file.reader(), &Collect, 1).map(entries_of);
    let verified = file.verify();
    assert_eq!(loaded.is_ok(), verified.is_ok(), "loading and verifying agree");
    let in_place = file.keyspaces().and_then(|names| {
        names.iter().try_for_each(|name| {
            file.keyspace(name)?.range::<&[u8]>(..).try_for_each(|entry| entry.map(drop))
        })
    });
    if loaded.is_ok() {
        in_place.unwrap();
    }
    loaded
}

#[test]
fn blocks_dropped_doubled_swapped_or_of_another_file_are_refused() {
    let map = Map::new(everything(3_000), 40);
    let good = map.bytes(Codec::Lz4, 1);
    let other = {
        let mut bytes = Vec::new();
        let options =
            WriterOptions { codec: Codec::Lz4, threads: 1, rate_limit: None, run_bytes: None };
        write_snapshot(&map, &map.cut(), [0xAB; 16], options, &Progress::default(), &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })
        .unwrap();
        bytes
    };
    // Frames follow one another from byte 96; the stored length is at 8.
    let mut blocks = vec![];
    let mut at = 96;
    while at < good.len() - 160 {
        let len = 32 + u32::from_le_bytes(good[at + 8..at + 12].try_into().unwrap()) as usize;
        blocks.push(at..at + len);
        at += len;
    }
    assert_eq!(at, good.len() - 160);
    assert!(blocks.len() > 12);
    let refused = |bytes: &[u8], what: &str| {
        assert!(matches!(read_all(bytes), Err(Error::Corrupt { .. })), "{what}");
        assert!(load_stream(bytes, &Collect).is_err(), "streamed, {what}");
    };
    for (i, block) in blocks.iter().enumerate() {
        let (before, after) = (&good[..block.start], &good[block.end..]);
        refused(&[before, after].concat(), &format!("block {i} dropped"));
        refused(
            &[before, &good[block.clone()], &good[block.clone()], after].concat(),
            &format!("block {i} doubled"),
        );
        let foreign = &other[block.clone()];
        refused(&[before, foreign, after].concat(), &format!("block {i} of another file"));
        if let Some(next) = blocks.get(i + 1) {
            let swapped =
                [before, &good[next.clone()], &good[block.clone()], &good[next.end..]].concat();
            refused(&swapped, &format!("blocks {i} and {} swapped", i + 1));
        }
    }
}

#[test]
fn a_large_value_of_another_length_or_content_is_refused() {
    // Every byte of a file of several chunks is too much to try; the chunks' frames and a few bytes are not.
    let mut entries = small();
    entries.insert(key(3, "two"), (noise(&mut Random::new(1), 150_000), 0));
    let map = Map::new(entries, 4);
    let good = map.bytes(Codec::Raw, 1);
    assert!(read_all(&good).unwrap() == *map.entries);
    let mut random = Random::new(2);
    for _ in 0..300 {
        let mut bytes = good.clone();
        let i = usize::try_from(random.below(good.len() as u64)).unwrap();
        bytes[i] ^= 1 << random.below(8);
        assert!(read_all(&bytes).is_err(), "byte {i}");
    }
}

#[test]
fn a_save_that_does_not_sum_up_fails_and_leaves_nothing() {
    let dir = TestDir::new();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let map = Map::new(everything(100), 10);
    let path = dir.write("file", b"old");
    for cut in [Cut { entries: 1, ..map.cut() }, Cut { fingerprint: 1, ..map.cut() }] {
        let options = SaveOptions::default();
        let save = SaveHandle::start(Arc::clone(&disk), &path, map.clone(), cut, &options).unwrap();
        assert!(matches!(save.wait(), Err(Error::SelfCheck { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert!(temporary_files(&dir).is_empty());
    }
}

#[test]
fn whatever_call_to_the_disk_fails_the_old_file_or_the_new_one_is_there() {
    let (old, new) = (Map::new(everything(20), 10), Map::new(everything(400), 10));
    let path = Path::new("/still");
    let options = SaveOptions::default();
    let start = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(start.clone());
    old.start_save(&disk, path, &options).unwrap().wait().unwrap();
    let old_bytes = start.contents(path).unwrap();
    let kinds = [
        CallKind::Open,
        CallKind::CreateNew,
        CallKind::Write,
        CallKind::SyncAll,
        CallKind::Rename,
        CallKind::SyncDir,
    ];
    let (mut failed, mut short) = (0, 0);
    for kind in kinds {
        for after in 0..3 {
            for fault in
                [DiskFault::error(libc::EIO), DiskFault::error(libc::EINTR), DiskFault::short(7)]
            {
                let sim = start.fork();
                sim.inject(fault.on(kind).after(after));
                let disk: Arc<dyn Disk> = Arc::new(sim.clone());
                let save = new.start_save(&disk, path, &options).and_then(SaveHandle::wait);
                sim.clear_faults();
                assert_eq!(sim.files(), [path], "{kind:?} {after}: nothing else is left");
                let bytes = sim.contents(path).unwrap();
                // A directory that can't be synced is told after the new file has its name.
                if save.is_ok() || kind == CallKind::SyncDir {
                    assert!(entries_of(load_stream(&bytes[..], &Collect).unwrap()) == *new.entries);
                    short += usize::from(save.is_ok());
                } else {
                    assert!(bytes == old_bytes, "{kind:?} {after}: the old file is untouched");
                    failed += 1;
                }
                if save.is_ok() {
                    for seed in 0..4 {
                        let bytes = sim.crash(seed).contents(path).unwrap();
                        assert!(
                            entries_of(load_stream(&bytes[..], &Collect).unwrap()) == *new.entries
                        );
                    }
                }
            }
        }
    }
    assert!(failed > 5 && short > 5, "{failed} saves failed, {short} went through");

    let sim = start.fork();
    sim.set_capacity(Some(old_bytes.len() as u64 + 1_000));
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let error = new.start_save(&disk, path, &options).unwrap().wait().unwrap_err();
    assert!(matches!(error, Error::Io { op: "write", .. }), "{error}");
    assert_eq!(sim.files(), [path]);
    assert!(sim.contents(path).unwrap() == old_bytes);
}

#[test]
fn a_power_cut_at_any_moment_of_a_save_leaves_the_old_file_or_the_new_one() {
    let (old, new) = (Map::new(everything(20), 10), Map::new(everything(200), 10));
    let path = Path::new("/still");
    let sim = SimDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let options = SaveOptions::default();
    old.start_save(&disk, path, &options).unwrap().wait().unwrap();
    let before = sim.change_count();
    new.start_save(&disk, path, &options).unwrap().wait().unwrap();
    let mut seen = [0, 0];
    for count in before..=sim.change_count() {
        let point = sim.crash_point(count);
        for seed in 0..20 {
            let bytes = point.image(&point.draw(&mut Random::new(seed))).contents(path).unwrap();
            let found = entries_of(load_stream(&bytes[..], &Collect).unwrap());
            assert!(found == *old.entries || found == *new.entries);
            seen[usize::from(found == *new.entries)] += 1;
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

#[test]
fn saves_replace_the_old_file_and_two_to_one_path_do_not_meet() {
    let dir = TestDir::new();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let map = Map::new(everything(2_000), 10);
    let path = dir.write("file", b"old");
    let slow = SaveOptions::default().rate_limit(Some(20_000));
    let first = map.start_save(&disk, &path, &slow).unwrap();
    for same in [path.clone(), dir.path("./file")] {
        let second = map.start_save(&disk, &same, &SaveOptions::default());
        assert!(matches!(second, Err(Error::SaveInProgress { .. })), "{}", same.display());
    }
    let elsewhere = map.start_save(&disk, &dir.path("other"), &SaveOptions::default()).unwrap();
    elsewhere.wait().unwrap();
    first.cancel();
    assert!(matches!(first.wait(), Err(Error::Cancelled)));
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert!(temporary_files(&dir).is_empty());

    let options = SaveOptions::default().threads(2).compression(Compression::Raw);
    let save = map.start_save(&disk, &path, &options).unwrap();
    let report = save.wait().unwrap();
    let file = SnapshotFile::open(&path).unwrap();
    assert_eq!(report.fingerprint, file.info().fingerprint);
    assert_eq!(report.file_bytes, std::fs::metadata(&path).unwrap().len());
    assert_eq!(file.info().compression, Compression::Raw);
    check_all(&file, &std::fs::read(&path).unwrap(), &map.entries);
}

#[test]
fn a_rate_limit_is_kept() {
    let map = Map::new(everything(1_000), 10);
    let len = map.bytes(Codec::Raw, 1).len() as u64;
    let start = Instant::now();
    let options = SaveOptions::default().compression(Compression::Raw).rate_limit(Some(len * 10));
    save_to_stream(&map, &map.cut(), &options, io::sink()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(100));
}

#[test]
fn a_writer_that_fails_ends_the_save() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.checked_sub(bytes.len()) {
                Some(left) => self.0 = left,
                None => return Err(io::ErrorKind::StorageFull.into()),
            }
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let map = Map::new(everything(3_000), 10);
    for room in [0, 100, 50_000, 100_000] {
        for threads in [1, 4] {
            let options = SaveOptions::default().threads(threads);
            let error = save_to_stream(&map, &map.cut(), &options, Full(room)).unwrap_err();
            assert!(matches!(error, Error::Io { op: "write", .. }), "{error}");
        }
    }
}

#[test]
fn what_is_no_snapshot_file_is_refused_by_name() {
    let dir = TestDir::new();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk);
    let map = Map::new(small(), 4);
    let error = SnapshotFile::open(dir.path("")).unwrap_err();
    assert!(matches!(error, Error::Io { op: "open", .. }));
    let options = SaveOptions::default();
    assert!(matches!(map.start_save(&disk, &dir.path(""), &options), Err(Error::Io { .. })));
    let fifo = dir.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(matches!(SnapshotFile::open(&fifo), Err(Error::Io { .. })));
    assert!(matches!(map.start_save(&disk, &fifo, &options), Err(Error::Io { .. })));

    let mut newer = map.bytes(Codec::Lz4, 1);
    newer[8] = 2;
    for (bytes, expected) in [
        (&b""[..], Fault::Truncated { field: "snapshot file", needed: 288, available: 0 }),
        (b"this is no snapshot file", Fault::Magic),
        (&[b'x'; 500], Fault::Magic),
        (&newer, Fault::Version { got: 2, supported: 1 }),
        (&newer[..20], Fault::Version { got: 2, supported: 1 }),
    ] {
        match SnapshotFile::open(dir.write("other", bytes)) {
            Err(Error::Corrupt { what, .. }) => assert_eq!(what, expected),
            other => panic!("{other:?} instead of {expected:?}"),
        }
    }
}

#[test]
fn an_iterator_ends_with_its_first_error() {
    let dir = TestDir::new();
    let map = Map::new(everything(3_000), 40);
    let mut bytes = map.bytes(Codec::Lz4, 1);
    bytes[20_000] ^= 1;
    let file = saved(&dir, "file", &bytes);
    let keyspace = file.keyspace("accounts").unwrap();
    let mut forward = keyspace.range::<&[u8]>(..);
    let errors = forward.by_ref().filter(Result::is_err).count();
    assert_eq!(errors, 1);
    assert!(forward.next().is_none() && forward.next_back().is_none());
    // Blocks that are whole can still be read.
    assert!(keyspace.get("user:000001").unwrap().is_some());
    assert!(file.verify().is_err());
}

#[test]
fn a_mapped_file_reads_the_same() {
    let dir = TestDir::new();
    let map = Map::new(everything(1_000), 10);
    let bytes = map.bytes(Codec::Lz4, 2);
    let path = dir.write("file", &bytes);
    let file = super::map::tests::open_mapped(&path);
    check_all(&file, &bytes, &map.entries);
}

#[test]
fn leaves_outside_what_one_block_holds_are_split() {
    let dir = TestDir::new();
    let mut random = Random::new(5);
    let mut entries = Entries::new();
    entries.insert(key(0, "k"), (1_u32.to_le_bytes().to_vec(), 0));
    for i in 0..40_u8 {
        let long = [&vec![b'k'; 60_000][..], &[i]].concat();
        entries.insert(key(1, long), (noise(&mut random, 16_000), 0));
    }
    // One leaf of 3 MB.
    let map = Map { entries: Arc::new(entries), fences: vec![Vec::new()] };
    let bytes = map.bytes(Codec::Raw, 2);
    check_all(&saved(&dir, "file", &bytes), &bytes, &map.entries);
}
