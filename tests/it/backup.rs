//! Copies of a directory: whole whenever they open, and any batch that was kept can be gone back to.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use stillframe::simulation::{Clock, Disk, DiskFault, Random, SimClock, SimDisk};
use stillframe::{
    Builder, Database, Durability, Error, LogEffect, LogReader, LogRecordKind, PointInTime,
    RecoveryMode, SaveOptions, Seq,
};

const DIR: &str = "/db";
const COPY: &str = "/copy";

fn on(disk: &SimDisk) -> Builder {
    Database::builder()
        .disk(disk.clone())
        .manual_log()
        .save_when_log_exceeds(None)
        .segment_bytes(8 << 10)
        .durability(Durability::Os)
}

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

fn content(db: &Database) -> Content {
    let mut content = BTreeMap::new();
    for name in db.keyspaces().unwrap() {
        for entry in db.keyspace(&name).unwrap().range::<&[u8]>(..) {
            let (key, value) = entry.unwrap();
            content.insert([name.as_bytes(), b"/", &key[..]].concat(), value.to_vec());
        }
    }
    content
}

/// A database with some history, and its content after each batch from the first snapshot on.
fn written(
    disk: &SimDisk,
    clock: &SimClock,
    seed: u64,
) -> (Database, BTreeMap<Seq, (u64, Content)>) {
    let kept = if seed % 2 == 1 { 1 << 30 } else { 0 };
    let db = on(disk).clock(clock.clone()).keep_log(kept, Duration::ZERO).open(DIR).unwrap();
    let data = db.keyspace("data").unwrap();
    let mut random = Random::new(seed);
    let mut states = BTreeMap::new();
    for n in 0..120_u64 {
        clock.advance(random.below(3));
        let key = random.below(40).to_be_bytes();
        match random.below(8) {
            0 => drop(data.remove(key).unwrap()),
            1 => drop(data.delete_range(key..random.below(40).to_be_bytes()).unwrap()),
            2 => data.insert(key, vec![n as u8; 2_000]).unwrap(),
            3 if n > 20 => drop(db.keyspace(&format!("more{n}")).unwrap()),
            _ => data.insert(key, n.to_string()).unwrap(),
        }
        if n % 40 == 30 {
            db.compact_log(SaveOptions::default().threads(1)).unwrap();
        }
        states.entry(db.seq()).or_insert_with(|| (clock.now_ms(), content(&db)));
    }
    (db, states)
}

#[test]
fn a_backup_holds_all_that_was_committed_and_opens() {
    let disk = SimDisk::new();
    let (db, _) = written(&disk, &SimClock::new(1_000), 1);
    let report = db.backup(COPY).unwrap();
    assert_eq!(report.position, db.position());
    let copy = on(&disk).recovery(RecoveryMode::Strict).open(COPY).unwrap();
    assert!((content(&copy), copy.position()) == (content(&db), db.position()));
    // Both go on, each its own way.
    copy.keyspace("data").unwrap().insert("a", "copy").unwrap();
    db.keyspace("data").unwrap().insert("a", "own").unwrap();
    assert_ne!(copy.position().history, db.position().history);
    assert!(content(&copy) != content(&db));
}

#[test]
fn a_new_database_is_backed_up_as_well() {
    let disk = SimDisk::new();
    let db = on(&disk).open(DIR).unwrap();
    assert_eq!(db.backup(COPY).unwrap().position.seq, Seq(0));
    assert_eq!(on(&disk).open(COPY).unwrap().seq(), Seq(0));
}

#[test]
fn any_batch_that_was_kept_can_be_gone_back_to() {
    for seed in 1..4 {
        let disk = SimDisk::new();
        let clock = SimClock::new(1_000_000);
        let (db, states) = written(&disk, &clock, seed);
        // Before all that was kept: nothing is made of it.
        on(&disk).restore_from(&saved(&db)[..], "/alone").unwrap();
        for point in [PointInTime::Time(1), PointInTime::Seq(Seq(1))] {
            let early = on(&disk).restore("/alone", "/early", point);
            assert!(matches!(early, Err(Error::OutOfReach { newest: None })), "{early:?}");
            assert!(disk.list(Path::new("/early")).is_err());
        }
        assert_eq!(db.backup(COPY).unwrap().position, db.position(), "seed {seed}");
        let restore = |point| {
            let to = format!("/to-{point:?}");
            let report = on(&disk).restore(COPY, &to, point);
            report.map(|report| {
                let restored = on(&disk).recovery(RecoveryMode::Strict).open(&to).unwrap();
                assert_eq!(restored.position(), report.position, "seed {seed} {point:?}");
                (report, content(&restored))
            })
        };
        // Where the log is kept to its beginning all is in reach, else what the newest snapshot and the log behind it hold.
        let too_old = |seq: &&Seq| {
            let done = restore(PointInTime::Seq(**seq));
            matches!(done, Err(Error::OutOfReach { newest: None }))
        };
        let oldest = states.keys().rev().find(too_old).copied();
        assert_eq!(oldest.is_some(), seed % 2 == 0, "seed {seed}");
        let reached: Vec<_> = states.range(Seq(oldest.unwrap_or_default().0 + 1)..).collect();
        assert!(reached.len() > 5, "seed {seed}");
        for (seq, (time_ms, expected)) in &reached {
            let (report, got) = on_copy(&disk, **seq);
            assert!((report, &got) == (**seq, expected), "seed {seed} {seq}");
            // By time: the last of those that came in the same millisecond.
            let last = reached.iter().rfind(|(_, (at, _))| at <= time_ms).unwrap();
            let to = format!("/at-{seq}");
            on(&disk).restore(COPY, &to, PointInTime::Time(*time_ms)).unwrap();
            let got = content(&on(&disk).open(&to).unwrap());
            assert!(got == last.1.1, "seed {seed} {time_ms}");
        }
        let beyond = restore(PointInTime::Seq(Seq(db.seq().0 + 1)));
        let newest = Some(db.seq());
        assert!(matches!(beyond, Err(Error::OutOfReach { newest: n }) if n == newest));
    }
}

fn on_copy(disk: &SimDisk, seq: Seq) -> (Seq, Content) {
    let to = format!("/seq-{seq}");
    let report = on(disk).restore(COPY, &to, PointInTime::Seq(seq));
    let report = report.unwrap_or_else(|error| panic!("{seq}: {error}"));
    (report.position.seq, content(&on(disk).open(&to).unwrap()))
}

/// Damage to what is not needed is nobody's business.
#[test]
fn a_damaged_snapshot_beyond_the_point_is_not_needed() {
    let disk = SimDisk::new();
    let (db, states) = written(&disk, &SimClock::new(1_000), 3);
    let early = *states.keys().nth(20).unwrap();
    drop(db);
    let files = disk.files();
    let snapshot = files.iter().rfind(|path| path.extension().is_some_and(|e| e == "snap"));
    disk.edit(snapshot.unwrap(), |bytes| bytes.truncate(1_000)).unwrap();
    on(&disk).restore(DIR, COPY, PointInTime::Seq(early)).unwrap();
    assert!(content(&on(&disk).open(COPY).unwrap()) == states[&early].1);
}

fn saved(db: &Database) -> Vec<u8> {
    let mut bytes = Vec::new();
    db.snapshot().unwrap().write_to(&mut bytes, &SaveOptions::default()).unwrap();
    bytes
}

#[test]
fn a_directory_is_made_from_a_snapshot_that_comes_as_a_stream() {
    let disk = SimDisk::new();
    let (db, _) = written(&disk, &SimClock::new(1_000), 2);
    let bytes = saved(&db);
    let report = on(&disk).restore_from(&bytes[..], COPY).unwrap();
    assert_eq!(report.position, db.position());
    let copy = on(&disk).open(COPY).unwrap();
    assert!(content(&copy) == content(&db));
    drop(copy);
    // A stream that breaks off leaves nothing.
    let short = on(&disk).restore_from(&bytes[..bytes.len() - 1], "/other");
    assert!(matches!(short, Err(Error::Corrupt { .. })));
    assert!(disk.list(Path::new("/other")).is_err());
}

#[test]
fn who_must_not_be_disturbed_is_not() {
    let disk = SimDisk::new();
    let (db, _) = written(&disk, &SimClock::new(1_000), 3);
    let in_use = on(&disk).restore(DIR, COPY, PointInTime::Latest);
    assert!(matches!(in_use, Err(Error::Locked { .. })));
    // A target that holds anything is left as it is.
    disk.create_dir(Path::new(COPY)).unwrap();
    disk.create_new(&Path::new(COPY).join("mine")).unwrap();
    let exists = |error: &Error| matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists);
    assert!(exists(&db.backup(COPY).unwrap_err()));
    assert!(exists(&db.backup(DIR).unwrap_err()));
    assert_eq!(disk.list(Path::new(COPY)).unwrap(), ["mine"]);
    // Nor is one that somebody else is making, or has open.
    let making =
        disk.create_dir(Path::new("/making")).and_then(|()| disk.lock(Path::new("/making/lock")));
    let making = making.unwrap().unwrap();
    assert!(matches!(db.backup("/making"), Err(Error::Locked { .. })));
    assert_eq!(disk.list(Path::new("/making")).unwrap(), ["lock"]);
    drop(making);
    db.backup("/making").unwrap();
    let restored = on(&disk).open("/making").unwrap();
    assert!(exists(&db.backup("/making").unwrap_err()));
    assert!(content(&restored) == content(&db));
    // None of it is a database.
    assert!(matches!(on(&disk).backup(COPY, "/to"), Err(Error::Io { op: "open", .. })));
    assert!(matches!(on(&disk).backup("/nowhere", "/to"), Err(Error::Io { op: "open", .. })));
    assert!(disk.list(Path::new("/to")).is_err());
}

#[test]
fn a_backup_that_fails_leaves_nothing() {
    let disk = SimDisk::new();
    let (db, _) = written(&disk, &SimClock::new(1_000), 4);
    let expected = content(&db);
    drop(db);
    let probe = disk.fork();
    let calls = probe.calls().len();
    on(&probe).backup(DIR, COPY).unwrap();
    let count = (probe.calls().len() - calls) as u64;
    assert!(count > 20);
    for call in 0..count {
        for errno in [DiskFault::EIO, DiskFault::ENOSPC] {
            let disk = disk.fork();
            disk.inject(DiskFault::error(errno).after(call));
            let done = on(&disk).backup(DIR, COPY);
            disk.clear_faults();
            match done {
                Ok(_) => {
                    assert!(content(&on(&disk).open(COPY).unwrap()) == expected, "call {call}");
                }
                Err(_) => {
                    let left = disk.list(Path::new(COPY));
                    assert!(left.is_err(), "call {call}: {left:?}");
                }
            }
            assert!(content(&on(&disk).open(DIR).unwrap()) == expected, "call {call}");
        }
    }
}

#[test]
fn a_backup_that_is_cut_off_does_not_open() {
    let disk = SimDisk::new();
    let (db, _) = written(&disk, &SimClock::new(1_000), 5);
    let expected = content(&db);
    drop(db);
    disk.settle();
    let whole = disk.fork();
    on(&whole).backup(DIR, COPY).unwrap();
    let restored = disk.fork();
    on(&restored).restore(DIR, COPY, PointInTime::Latest).unwrap();
    for (what, disk) in [("backup", whole), ("restore", restored)] {
        let mut opened = 0;
        for count in 0..=disk.change_count() {
            for seed in 0..4 {
                let point = disk.crash_point(count);
                let left = point.image(&point.draw(&mut Random::new(seed)));
                // Without any file that means something it is a directory like any other.
                let means = |name: &std::ffi::OsString| {
                    let name = name.to_string_lossy();
                    name == "identity" || name.ends_with(".log") || name.ends_with(".snap")
                };
                if !left.list(Path::new(COPY)).is_ok_and(|names| names.iter().any(means)) {
                    continue;
                }
                match on(&left).open(COPY) {
                    Ok(db) => {
                        assert!(content(&db) == expected, "{what} cut at {count}, seed {seed}");
                        opened += 1;
                    }
                    Err(Error::Io { op: "open", .. }) => {}
                    Err(error) => panic!("{what} cut at {count}, seed {seed}: {error}"),
                }
            }
        }
        assert!(opened > 0, "{what}");
    }
}

/// Somebody else's process, as far as the one that writes can tell: it is not asked.
#[test]
fn a_directory_that_is_written_to_is_copied_whole() {
    let dir = Temporary::new("live");
    let builder = || {
        Database::builder()
            .segment_bytes(64 << 10)
            .durability(Durability::Os)
            .keep_log(0, Duration::ZERO)
    };
    let db = builder().open(dir.path("db")).unwrap();
    let stop = AtomicBool::new(false);
    let written: [AtomicU64; 2] = Default::default();
    thread::scope(|scope| {
        for (thread, written) in written.iter().enumerate() {
            let (db, stop) = (db.clone(), &stop);
            scope.spawn(move || {
                let data = db.keyspace("data").unwrap();
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let mut batch = db.batch();
                    batch.insert(&data, format!("{thread}"), n.to_string());
                    batch.insert(&data, format!("{thread} {n}"), vec![n as u8; 50]);
                    batch.commit().unwrap();
                    written.store(n, Ordering::Release);
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                db.compact_log(SaveOptions::default().threads(1)).unwrap();
            }
        });
        // Stops them also when this panics.
        let _stops = Stops(&stop);
        for copy in 0..12 {
            let least: Vec<u64> = written.iter().map(|n| n.load(Ordering::Acquire)).collect();
            // And whoever only reads the log is shown each batch once, in order.
            let mut last = None;
            let read = LogReader::open(dir.path("db")).and_then(|reader| {
                reader.each(|record| {
                    let seq = record.position.seq.0;
                    assert!(last.is_none_or(|last| seq == last + 1), "{seq} behind {last:?}");
                    last = Some(seq);
                    ControlFlow::Continue(())
                })
            });
            // All of it may have gone into a snapshot under the reader.
            assert!(matches!(read, Ok(_) | Err(Error::Io { op: "open", .. })), "{read:?}");
            let to = dir.path(&format!("copy{copy}"));
            Database::builder().backup(dir.path("db"), &to).unwrap();
            let most: Vec<u64> = written.iter().map(|n| n.load(Ordering::Acquire)).collect();
            let copied = builder().open(&to).unwrap();
            let data = copied.keyspace("data").unwrap();
            let mut sum = 0;
            for thread in 0..2 {
                let last = data.get(format!("{thread}")).unwrap();
                let last = last.map_or(0, |n| std::str::from_utf8(&n).unwrap().parse().unwrap());
                // One more may be on its way to be counted.
                let range = least[thread]..=most[thread] + 1;
                assert!(range.contains(&last), "copy {copy}: {last} is not in {range:?}");
                sum += last + u64::from(last > 0);
            }
            assert_eq!(data.len().unwrap(), sum, "copy {copy}: batches are whole, none is missing");
        }
    });
}

pub(crate) struct Stops<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A folder that goes with the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("stillframe-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Temporary(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_log_tells_what_was_done() {
    let dir = Temporary::new("reader");
    let db = Database::builder().durability(Durability::Os).open(dir.path("db")).unwrap();
    let data = db.keyspace("data").unwrap();
    data.insert("a", "1").unwrap();
    data.remove("a").unwrap();
    data.delete_range("b".."c").unwrap();
    data.insert("b", "1").unwrap();
    data.delete_range("b".."c").unwrap();
    data.insert("c", "2").unwrap();
    let mut batch = db.batch();
    batch.insert(&data, "d", "3");
    batch.remove(&data, "c");
    batch.commit().unwrap();
    // It is still open.
    let reader = LogReader::open(dir.path("db")).unwrap();
    let mut told = Vec::new();
    let mut seqs = Vec::new();
    let end = reader
        .each(|record| {
            seqs.push(record.position.seq.0);
            if let LogRecordKind::Batch { effects, .. } = &record.kind {
                told.extend(effects.clone().map(|effect| match effect {
                    LogEffect::Put { keyspace, key, .. } => format!("put {keyspace} {key:?}"),
                    LogEffect::Remove { keyspace, key } => format!("remove {keyspace} {key:?}"),
                    other => format!("{other:?}"),
                }));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(end.position, db.position());
    assert_eq!(seqs, (1..=db.seq().0).collect::<Vec<_>>());
    assert_eq!(
        told,
        [
            "put 0 [100, 97, 116, 97]",
            "put 1 [97]",
            "remove 1 [97]",
            "put 1 [98]",
            "RemoveRange { keyspace: 1, low: [98], high: Some([99]) }",
            "put 1 [99]",
            "remove 1 [99]",
            "put 1 [100]",
        ]
    );
    let mut seen = 0;
    let stopped = reader.each(|_| {
        seen += 1;
        if seen == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let stopped = stopped.unwrap();
    assert_eq!((stopped.records, stopped.position.seq), (3, Seq(3)));
    let begun = reader.segments().filter(|segment| segment.is_ok()).count();
    assert!(begun >= 1);
    // Damage is told with its place.
    db.close().unwrap();
    let log = std::fs::read_dir(dir.path("db")).unwrap().map(|entry| entry.unwrap().path());
    let log = log.filter(|path| path.extension().is_some_and(|name| name == "log")).min().unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[300] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let damaged = LogReader::open(dir.path("db")).unwrap().each(|_| ControlFlow::Continue(()));
    assert!(matches!(damaged, Err(Error::Corrupt { file, .. }) if file == log));
}
