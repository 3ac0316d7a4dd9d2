//! Damaged directories: what can still be proven comes back, and whatever does not is on the list.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use stillframe::simulation::{CallKind, Disk, DiskFault, Random, SimDisk};
use stillframe::{
    Builder, Compression, Database, Durability, Error, Fault, Lost, LostRange, RecoveryMode,
    SaveOptions, Seq,
};

const DIR: &str = "/db";
/// Long enough to be a large value in a snapshot, and in chunks of its own.
const LONG: usize = 70_000;

fn on(disk: &SimDisk) -> Builder {
    Database::builder()
        .disk(disk.clone())
        .manual_log()
        .save_when_log_exceeds(None)
        .segment_bytes(16 << 10)
        .durability(Durability::Os)
}

/// A directory whose keys are named after the batches that put them, one each; and what there is.
struct Written {
    disk: SimDisk,
    entries: BTreeMap<Vec<u8>, (Seq, Vec<u8>)>,
    /// A file was cut or zeroed: if that was behind a whole record of the last segment, nothing tells that there was more.
    is_cut: bool,
}

impl Written {
    fn fork(&self) -> Self {
        Written { disk: self.disk.fork(), entries: self.entries.clone(), is_cut: false }
    }
}

/// Writes `count` batches; saves behind each of `saves`.
fn write(count: u64, saves: &[u64], long: bool) -> Written {
    let disk = SimDisk::new();
    let db = on(&disk).keep_snapshots(2).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    let mut entries = BTreeMap::new();
    for n in 0..count {
        let key = format!("{:05}", (n * 7919) % 10_000).into_bytes();
        let len = if long && n % 10 == 3 { LONG } else { 200 };
        let value = vec![n as u8; len];
        data.insert(&key, &value).unwrap();
        entries.insert(key, (db.seq(), value));
        if saves.contains(&n) {
            let options = SaveOptions::default().threads(1).block_bytes(1_000);
            db.compact_log(options.compression(Compression::Raw)).unwrap();
        }
    }
    db.close().unwrap();
    Written { disk, entries, is_cut: false }
}

/// Opens what is left and compares: right values, and nothing missing that is not listed.
fn check(written: &Written, what: &str) -> Vec<LostRange> {
    let Written { disk, entries, .. } = written;
    let db = match on(disk).recovery(RecoveryMode::Salvage).open(DIR) {
        // What may be of a newer release is not taken for damage.
        Err(Error::Corrupt { what: Fault::Version { .. }, .. }) => return Vec::new(),
        db => db.unwrap_or_else(|error| panic!("{what}: {error}")),
    };
    let report = db.open_report().unwrap().clone();
    let mut found = BTreeMap::new();
    for name in db.keyspaces().unwrap() {
        for entry in db.keyspace(&name).unwrap().range::<&[u8]>(..) {
            let (key, value) = entry.unwrap();
            found.insert(key.to_vec(), value.to_vec());
        }
    }
    for (key, value) in &found {
        let (_, written) = entries.get(key).unwrap_or_else(|| panic!("{what}: invented {key:?}"));
        assert!(value == written, "{what}: another value of {key:?}");
    }
    for (key, (seq, _)) in entries.iter().filter(|(key, _)| !found.contains_key(*key)) {
        let is_listed = report.lost.iter().any(|range| match &range.what {
            Lost::Batches { after, before } => {
                seq > after && before.is_none_or(|before| *seq < before)
            }
            Lost::Entries { low, high } => {
                let at = (1, key.as_slice());
                (low.id, low.key.as_slice()) <= at
                    && high.as_ref().is_none_or(|high| at < (high.id, high.key.as_slice()))
            }
            // A snapshot whose own name was lost.
            Lost::File => range.path.extension().is_some_and(|name| name == "snap"),
            _ => false,
        });
        // What a writer leaves when it dies looks like that, and so it is told.
        let is_torn = *seq > report.position.seq && (report.torn_bytes > 0 || written.is_cut);
        assert!(
            is_listed || is_torn,
            "{what}: {key:?} of batch {seq} is missing, listed are {:#?}",
            report.lost
        );
    }
    // It is whole now, and another's.
    let (position, seq) = (db.position(), db.seq());
    db.keyspace("data").unwrap().insert("new", "x").unwrap();
    drop(db);
    let again = on(disk).recovery(RecoveryMode::Strict).open(DIR);
    let again = again.unwrap_or_else(|error| panic!("{what}, again: {error}"));
    assert!(again.open_report().unwrap().lost.is_empty(), "{what}: lost once more");
    assert!(again.seq() > seq && again.position().history != position.history, "{what}");
    let data = again.keyspace("data").unwrap();
    assert_eq!(data.get("new").unwrap().unwrap(), "x", "{what}");
    report.lost
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| {
        path.parent() == Some(Path::new(DIR)) && path.extension().is_some_and(|e| e == "log")
    };
    disk.files().into_iter().filter(is_segment).collect()
}

fn snapshots(disk: &SimDisk) -> Vec<PathBuf> {
    let is_snapshot = |path: &PathBuf| {
        path.parent() == Some(Path::new(DIR)) && path.extension().is_some_and(|e| e == "snap")
    };
    disk.files().into_iter().filter(is_snapshot).collect()
}

fn corrupt(disk: &SimDisk) -> bool {
    matches!(on(disk).open(DIR), Err(Error::Corrupt { .. }))
}

#[test]
fn a_directory_that_is_whole_is_opened_as_ever() {
    let written = write(100, &[60], false);
    assert_eq!(check(&written, "whole"), []);
    assert!(written.disk.files().iter().all(|path| !path.starts_with("/db/salvaged")));
}

#[test]
fn a_damaged_record_costs_its_own_batch() {
    let written = write(300, &[], false);
    let first = &segments(&written.disk)[0];
    // In the body of some record in the middle.
    written.disk.edit(first, |bytes| bytes[8_000] ^= 1).unwrap();
    assert!(corrupt(&written.disk));
    let lost = check(&written, "one bit");
    let [LostRange { path, what: Lost::Batches { after, before }, .. }] = &lost[..] else {
        panic!("{lost:#?}");
    };
    assert_eq!((path, before.unwrap().0), (first, after.0 + 2));
    // The evidence is still there, and what is lost is written down.
    let aside = Path::new("/db/salvaged").join(first.file_name().unwrap());
    assert!(written.disk.files().contains(&aside));
    let page = written.disk.contents(Path::new("/db/salvaged/lost.txt")).unwrap();
    let page = String::from_utf8(page).unwrap();
    let batch = after.0 + 1;
    assert!(page.starts_with(&format!("batches {batch} to {batch}: {}", path.display())), "{page}");
}

#[test]
fn a_missing_segment_costs_what_it_held() {
    let written = write(300, &[], false);
    let second = segments(&written.disk)[1].clone();
    written.disk.remove(&second).unwrap();
    let lost = check(&written, "a segment less");
    assert!(matches!(&lost[..], [LostRange { what: Lost::Batches { .. }, .. }]), "{lost:#?}");
}

#[test]
fn a_damaged_block_of_the_only_snapshot_costs_its_range() {
    for long in [false, true] {
        let written = write(300, &[100, 250], long);
        let [first, second] = &snapshots(&written.disk)[..] else { panic!("two were kept") };
        let middle = written.disk.contents(second).unwrap().len() / 3;
        written.disk.edit(second, |bytes| bytes[middle] ^= 1).unwrap();
        // There is an older one with all of its log.
        let untouched = written.fork();
        assert_eq!(check(&untouched, "an older one does"), []);

        // The older one is whole, and the log no longer goes on from it: what is left of the newer holds more.
        let cut_short = written.fork();
        let oldest = segments(&cut_short.disk)[..2].to_vec();
        oldest.iter().for_each(|path| cut_short.disk.remove(path).unwrap());
        let lost = check(&cut_short, "an older one does not");
        assert!(matches!(&lost[..], [LostRange { what: Lost::Entries { .. }, .. }]), "{lost:#?}");

        written.disk.remove(first).unwrap();
        let oldest = segments(&written.disk)[0].clone();
        written.disk.remove(&oldest).unwrap();
        assert!(corrupt(&written.disk));
        let lost = check(&written, "one block");
        assert!(matches!(&lost[..], [LostRange { what: Lost::Entries { .. }, .. }]), "{lost:#?}");
    }
}

#[test]
fn a_log_from_the_first_batch_on_needs_no_snapshot() {
    let disk = SimDisk::new();
    let builder = || on(&disk).keep_log(1 << 30, std::time::Duration::ZERO);
    let db = builder().open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    (0..200_u32).for_each(|n| data.insert(n.to_be_bytes(), [7; 100]).unwrap());
    db.compact_log(SaveOptions::default()).unwrap();
    let (seq, expected) = (db.seq(), db.snapshot().unwrap().fingerprint());
    drop((data, db));
    let snapshot = snapshots(&disk).pop().unwrap();
    let middle = disk.contents(&snapshot).unwrap().len() / 2;
    disk.edit(&snapshot, |bytes| bytes[middle] ^= 1).unwrap();
    let db = builder().open(DIR).unwrap();
    assert_eq!((db.seq(), db.snapshot().unwrap().fingerprint()), (seq, expected));
    assert_eq!(db.open_report().unwrap().damaged_snapshots.len(), 1);
    drop(db);
    // A log that ends before the snapshot did is not all.
    let last = segments(&disk).pop().unwrap();
    disk.edit(&last, |bytes| bytes.truncate(5_000)).unwrap();
    assert!(matches!(builder().open(DIR), Err(Error::Corrupt { .. })));
}

#[test]
fn a_snapshot_without_its_log_may_lack_what_came_then() {
    let written = write(100, &[99], false);
    segments(&written.disk).iter().for_each(|path| written.disk.remove(path).unwrap());
    let lost = check(&written, "no log");
    assert!(matches!(&lost[..], [LostRange { what: Lost::Batches { before: None, .. }, .. }]));
}

#[test]
fn a_log_of_another_history_is_not_put_on_a_snapshot() {
    let written = write(150, &[100], false);
    let other = write(150, &[100], false);
    // The identity is the other's, as of one who copied files about.
    let copy = |from: &Path| other.disk.contents(from).unwrap();
    written
        .disk
        .edit(Path::new("/db/identity"), |bytes| *bytes = copy(Path::new("/db/identity")))
        .unwrap();
    for path in segments(&written.disk) {
        written.disk.remove(&path).unwrap();
    }
    for path in segments(&other.disk) {
        let file = written.disk.create_new(&path).unwrap();
        file.write_at(&copy(&path), 0).unwrap();
    }
    assert!(corrupt(&written.disk));
    let lost = check(&written, "another's log");
    assert!(!lost.is_empty());
}

#[test]
fn an_identity_is_told_by_any_segment() {
    for missing in [false, true] {
        let written = write(100, &[60], false);
        let identity = Path::new("/db/identity");
        match missing {
            true => written.disk.remove(identity).unwrap(),
            false => written.disk.edit(identity, |bytes| bytes[20] ^= 1).unwrap(),
        }
        assert!(on(&written.disk).open(DIR).is_err());
        let lost = check(&written, "no identity");
        assert!(matches!(&lost[..], [LostRange { what: Lost::File, .. }]), "{lost:#?}");
        assert_eq!(lost[0].path, identity);
    }
}

#[test]
fn keyspaces_whose_name_is_lost_get_another() {
    let disk = SimDisk::new();
    let db = on(&disk).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    data.insert("k", "v").unwrap();
    db.close().unwrap();
    // The record that names the keyspace: the first batch, behind the history.
    let log = &segments(&disk)[0];
    let bytes = disk.contents(log).unwrap();
    let at = bytes.windows(4).position(|four| four == b"data").unwrap();
    disk.edit(log, |bytes| bytes[at] ^= 1).unwrap();
    let db = on(&disk).recovery(RecoveryMode::Salvage).open(DIR).unwrap();
    assert_eq!(db.keyspaces().unwrap(), ["salvaged-1"]);
    assert_eq!(db.keyspace("salvaged-1").unwrap().get("k").unwrap().unwrap(), "v");
    // Its number is taken: another keyspace is another one.
    assert!(db.keyspace("data").unwrap().get("k").unwrap().is_none());
}

#[test]
fn what_the_disk_can_not_read_is_lost_and_no_more() {
    let written = write(300, &[], false);
    // Reads of the heads go well; then of a whole segment, and of the half with the bad place, and so on.
    let reads = |disk: &SimDisk| disk.call_counts().get(&CallKind::Read).copied().unwrap_or(0);
    let before = reads(&written.disk);
    let probe = written.disk.fork();
    drop(on(&probe).open(DIR).unwrap());
    let heads = reads(&probe).saturating_sub(before);
    assert!(heads > 0);
    for call in 0..heads {
        let disk = written.disk.fork();
        disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::Read).after(call));
        // Once only: it is a disk that fails now and then, and the second reading has it all.
        let salvage = || on(&disk).recovery(RecoveryMode::Salvage).open(DIR);
        // What was read well before and can't be read again is nobody's damage: the next one to try has it.
        let db = salvage().or_else(|error| match error {
            Error::Io { op: "read", .. } => salvage(),
            other => Err(other),
        });
        let db = db.unwrap_or_else(|error| panic!("read {call}: {error}"));
        let data = db.keyspace("data").unwrap();
        let len = data.len().unwrap();
        let lost = &db.open_report().unwrap().lost;
        assert!(len == written.entries.len() as u64 || !lost.is_empty(), "read {call}: {lost:?}");
    }
}

#[test]
fn whatever_is_damaged_what_is_missing_is_listed() {
    let seed = std::env::var("STILLFRAME_SEED").map_or(1, |seed| seed.parse().unwrap());
    let count = std::env::var("STILLFRAME_SEEDS").map_or(40, |count| count.parse().unwrap());
    for seed in seed..seed + count {
        let mut random = Random::new(seed);
        let saves: &[u64] = [&[][..], &[60], &[50, 150], &[199]][random.below(4) as usize];
        let mut written = write(200, saves, random.one_in(3));
        let disk = &written.disk;
        let mut files = [segments(disk), snapshots(disk)].concat();
        files.push("/db/identity".into());
        let mut done = Vec::new();
        for _ in 0..=random.below(3) {
            let path = &files[random.below(files.len() as u64) as usize];
            let Ok(contents) = disk.contents(path) else { continue };
            let len = contents.len() as u64;
            if len == 0 {
                continue;
            }
            let at = random.below(len) as usize;
            let most = 1 + random.below(2_000);
            let size = random.below(most) as usize;
            let kind = random.below(6);
            done.push((path.clone(), kind, at, size));
            match kind {
                0 => disk.edit(path, |bytes| bytes[at] ^= 1 << (size % 8)),
                1 => disk.edit(path, |bytes| bytes.truncate(at)),
                2 => disk.remove(path),
                3 => {
                    disk.edit(path, |bytes| bytes[at..].iter_mut().take(size).for_each(|b| *b = 0))
                }
                4 => disk.edit(path, |bytes| drop(bytes.splice(at..at, vec![0x55; size % 64]))),
                _ => disk.edit(path, |bytes| {
                    let part: Vec<u8> = bytes[at..].iter().take(size).copied().collect();
                    let to = random.below(len) as usize;
                    bytes[to..].iter_mut().zip(part).for_each(|(to, from)| *to = from);
                }),
            }
            .unwrap();
        }
        // Of a directory all of whose files are gone nothing tells that there was anything.
        let is_blank = |path: &PathBuf| {
            disk.contents(path).unwrap().get(64..160).is_some_and(|begun| *begun == [0; 96])
        };
        if snapshots(disk).is_empty() && segments(disk).iter().all(is_blank) {
            continue;
        }
        written.is_cut = done.iter().any(|(_, kind, ..)| matches!(kind, 1 | 3 | 5));
        check(&written, &format!("seed {seed}, {done:?}"));
    }
}

#[test]
fn a_salvage_that_is_cut_off_is_done_again() {
    let written = write(100, &[60], false);
    let log = segments(&written.disk).pop().unwrap();
    written.disk.edit(&log, |bytes| bytes[1_000] ^= 1).unwrap();
    let snapshot = snapshots(&written.disk).pop().unwrap();
    written.disk.edit(&snapshot, |bytes| bytes[3_000] ^= 1).unwrap();
    written.disk.settle();
    let whole = written.disk.fork();
    let first = on(&whole).recovery(RecoveryMode::Salvage).open(DIR).unwrap();
    let expected = first.snapshot().unwrap().fingerprint();
    let lost = first.open_report().unwrap().lost.clone();
    let changes = whole.change_count();
    drop(first);
    for count in 0..=changes {
        for seed in 0..3 {
            let point = whole.crash_point(count);
            let left = point.image(&point.draw(&mut Random::new(seed)));
            // Either it is as damaged as it was, or all is done.
            let usual = on(&left.fork()).open(DIR);
            let again = on(&left).recovery(RecoveryMode::Salvage).open(DIR);
            let again = again.unwrap_or_else(|error| panic!("cut at {count}, {seed}: {error}"));
            let got = again.snapshot().unwrap().fingerprint();
            assert_eq!(got, expected, "cut at {count} of {changes}, {seed}");
            let again = &again.open_report().unwrap().lost;
            match usual {
                Ok(db) => {
                    assert_eq!(db.snapshot().unwrap().fingerprint(), expected);
                    assert_eq!(*again, [], "cut at {count} of {changes}, {seed}");
                }
                Err(_) => assert_eq!(*again, lost, "cut at {count} of {changes}, {seed}"),
            }
        }
    }
}
