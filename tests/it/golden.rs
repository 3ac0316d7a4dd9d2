//! Golden files: written once by `cargo run -p torture -- golden tests/golden/v1`, and `.. golden --replicas ..`, opened by every later version.
//!
//! A golden file never changes. A test that fails here means that files people have can't be read any more.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use stillframe::simulation::{KeptState, SessionEnd, SimClock, seed_thread};
use stillframe::{
    AckLevel, Builder, Compression, Database, Durability, LogEffect, LogReader, LogRecord,
    LogRecordKind, Role, Snapshot, SnapshotFile, SyncKind,
};

use content::{Golden, TIME_MS};

use crate::saves::Dir;

#[path = "../golden/content.rs"]
mod content;
#[path = "../golden/directories.rs"]
mod directories;

/// Name, hash of the file's bytes, fingerprint of its content.
const V1: [(&str, u64, u64); 7] = [
    ("empty", 0xED29_0923_F540_04FF, 0),
    ("raw", 0x67DC_785E_2F26_343A, 0x4AE5_2279_DB49_8D5F),
    ("lz4", 0x987E_BD56_F45C_B998, 0x5869_E44B_E6A8_8477),
    ("keyspaces", 0xBAE6_CAA9_099A_BE14, 0xF58B_1E55_FF03_8ABF),
    ("large_value", 0xBE92_7E8D_3498_22AF, 0x0E8B_DDAC_BB86_1157),
    ("long_key", 0xF5E2_CC55_B917_47B7, 0xF044_E597_CC42_D30E),
    ("expiry", 0xEB03_0323_5472_B327, 0xB1F9_EC9D_026C_F22F),
];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1").join(name)
}

/// FNV-1a, 64 bits: whether the file is still the one that was committed.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

type Shown = Vec<(String, Vec<(Vec<u8>, Vec<u8>)>)>;

/// What a reader of the file is shown: names in order, and what had not expired at the cut.
fn expected(golden: &Golden) -> Shown {
    let alive = |expire_at: u64| expire_at == 0 || expire_at > TIME_MS;
    let mut shown: Shown = golden
        .keyspaces
        .iter()
        .map(|space| {
            let entries = space.entries.iter().filter(|(.., expire_at)| alive(*expire_at));
            (space.name.into(), entries.map(|(k, v, _)| (k.clone(), v.clone())).collect())
        })
        .collect();
    shown.sort();
    shown
}

fn of_snapshot(snapshot: &Snapshot) -> Shown {
    let entries = |name: &String| {
        let range = snapshot.keyspace(name).unwrap().range::<&[u8]>(..);
        range.map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
    };
    snapshot.keyspaces().unwrap().into_iter().map(|name| (name.clone(), entries(&name))).collect()
}

fn in_place(file: &SnapshotFile, golden: &Golden) -> Shown {
    for space in &golden.keyspaces {
        let read = file.keyspace(space.name).unwrap();
        assert_eq!(read.len().unwrap(), space.entries.len() as u64);
        for (key, value, expire_at) in &space.entries {
            let alive = *expire_at == 0 || *expire_at > TIME_MS;
            let got = read.get(key).unwrap();
            assert_eq!(got.as_deref(), alive.then_some(&value[..]), "{}", key.escape_ascii());
        }
    }
    let entries = |name: &String| {
        let range = file.keyspace(name).unwrap().range::<&[u8]>(..);
        range.map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
    };
    file.keyspaces().unwrap().into_iter().map(|name| (name.clone(), entries(&name))).collect()
}

#[test]
fn golden_files_of_version_1_are_read_in_every_way() {
    let all = content::v1();
    assert_eq!(all.len(), V1.len());
    let found: Vec<_> = all
        .iter()
        .map(|golden| {
            let path = path(&format!("{}.still", golden.name));
            let bytes = std::fs::read(&path).unwrap();
            let file = SnapshotFile::open(&path).unwrap();
            let info = file.info();
            assert_eq!((info.version, info.time_ms), (1, TIME_MS), "{}", golden.name);
            assert_eq!(info.compression, golden.compression);
            let written: usize = golden.keyspaces.iter().map(|space| 1 + space.entries.len()).sum();
            assert_eq!(info.entries, written as u64);
            assert_eq!(info.position.seq.0, written as u64, "one batch an entry");

            let report = file.verify().unwrap();
            assert_eq!(report.keyspaces, golden.keyspaces.len() as u64);
            assert_eq!((report.entries, report.fingerprint), (info.entries, info.fingerprint));
            let expected = expected(golden);
            assert!(in_place(&file, golden) == expected, "{} in place", golden.name);

            let builder = Database::builder().clock(SimClock::new(TIME_MS));
            let loaded = builder.clone().load(&path).unwrap();
            let streamed = builder.load_from(&*bytes).unwrap();
            for (way, db) in [("loaded", loaded), ("streamed", streamed)] {
                db.check();
                let snapshot = db.snapshot().unwrap();
                assert_eq!(snapshot.position(), info.position);
                assert_eq!(snapshot.fingerprint(), info.fingerprint);
                assert!(of_snapshot(&snapshot) == expected, "{} {way}", golden.name);
            }
            (golden.name, hash(&bytes), info.fingerprint)
        })
        .collect();
    assert_eq!(found, V1);
}

#[test]
fn no_golden_file_is_left_out() {
    let mut names: Vec<_> =
        std::fs::read_dir(path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let stills = V1.iter().map(|(name, ..)| format!("{name}.still").into());
    let others = V1_REPLICAS.iter().map(|(name, _)| (*name).into());
    let mut expected: Vec<std::ffi::OsString> = stills.chain(others).collect();
    expected.sort();
    assert_eq!(names, expected);
    assert!(content::v1().iter().any(|golden| golden.compression == Compression::Raw));
}

/// Directories, and the session: name, hash of its files' names and bytes, in the order of their names.
const V1_REPLICAS: [(&str, u64); 5] = [
    ("expired", 11641972335316163097),
    ("fenced", 2330301084367349334),
    ("log", 11904790284202125452),
    ("part", 891019802511696167),
    ("session", 4306090752272284773),
];

/// The directory `log`, at its last batch.
const LOG_FINGERPRINT: u64 = 0x2C31_CE6F_CAED_13E9;
const LOG_SEQ: u64 = 177;

fn hash_of(path: &Path) -> u64 {
    if path.is_file() {
        return hash(&std::fs::read(path).unwrap());
    }
    let mut files: Vec<_> =
        std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let of = |file: &PathBuf| {
        let name = file.file_name().unwrap().as_encoded_bytes();
        hash(&[name, &std::fs::read(file).unwrap()].concat())
    };
    hash(&files.iter().flat_map(|file| of(file).to_le_bytes()).collect::<Vec<_>>())
}

/// A copy of a golden directory, which is opened.
fn copied(dir: &Dir, name: &str) -> PathBuf {
    let to = dir.file(name);
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(path(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to
}

fn builder() -> Builder {
    let builder = Database::builder().clock(SimClock::new(directories::TIME_MS)).manual_log();
    builder.save_when_log_exceeds(None).durability(Durability::Os)
}

fn decode(mut bytes: &[u8]) -> directories::Said {
    let mut said = Vec::new();
    while let Some((side, rest)) = bytes.split_first() {
        let (len, rest) = rest.split_first_chunk::<4>().expect("a length");
        let (words, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        said.push((*side == 1, words.to_vec()));
        bytes = rest;
    }
    said
}

#[test]
fn golden_directories_are_what_they_were() {
    let found = V1_REPLICAS.map(|(name, _)| (name, hash_of(&path(name))));
    assert_eq!(found, V1_REPLICAS);
}

/// Recovery of a snapshot and segments of two runs, and reading all that the log tells.
#[test]
fn the_golden_log_is_recovered() {
    let dir = Dir::new("golden-log");
    let log = copied(&dir, "log");
    let end = LogReader::open(&log).unwrap().each(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!((end.position.seq.0, end.torn_bytes), (LOG_SEQ, 0));
    let db = builder().open(&log).unwrap();
    assert_eq!((db.role(), db.seq().0), (Role::Primary, LOG_SEQ));
    db.check();
    let still = db.snapshot().unwrap();
    assert_eq!(still.fingerprint(), LOG_FINGERPRINT);
    assert_eq!(db.line().len(), 2, "one history for each run");
    // The same writes make the same content, for ever.
    let again = builder().in_memory().unwrap();
    (0..directories::RUNS).for_each(|run| directories::write_run(&again, run).unwrap());
    assert_eq!(of_snapshot(&again.snapshot().unwrap()), of_snapshot(&still));
    // It is gone on with.
    db.keyspace("films").unwrap().insert("k", "v").unwrap();
    let last = db.position();
    db.close().unwrap();
    drop((still, db));
    assert_eq!(builder().open(&log).unwrap().position(), last);
}

/// What a primary has removed because its time was past is told apart, and stays removed whatever the clock says.
#[test]
fn golden_expiries_are_recovered() {
    let dir = Dir::new("golden-expired");
    let expired = copied(&dir, "expired");
    let mut gone = 0;
    let visit = |record: &LogRecord<'_>| {
        if let LogRecordKind::Batch { effects, .. } = &record.kind {
            let expires = |effect: &LogEffect<'_>| matches!(effect, LogEffect::Expire { .. });
            gone += effects.clone().filter(expires).count() as u64;
        }
        ControlFlow::Continue(())
    };
    LogReader::open(&expired).unwrap().each(visit).unwrap();
    assert_eq!(gone, directories::LEASES / 2);
    let db = builder().open(&expired).unwrap();
    assert_eq!((db.seq().0, db.snapshot().unwrap().fingerprint()), (63, 0x380D_E912_24D1_9080));
    let clock = SimClock::new(directories::TIME_MS);
    let again = Database::builder().clock(clock.clone()).in_memory().unwrap();
    directories::write_expired(&again, &clock).unwrap();
    let shown = |db: &Database| of_snapshot(&db.snapshot().unwrap());
    assert_eq!(shown(&again), shown(&db));
    assert_eq!(db.keyspace("leases").unwrap().len().unwrap(), directories::LEASES - gone);
}

/// A fence, and part of a state: who has them follows, and goes on where it was.
#[test]
fn golden_replicas_go_on() {
    let dir = Dir::new("golden-replicas");
    let fenced = builder().open(copied(&dir, "fenced")).unwrap();
    assert_eq!(fenced.role(), Role::Replica);
    assert!(fenced.seq().0 > 0);
    let source = builder().open(copied(&dir, "log")).unwrap();
    let fresh = builder().in_memory().unwrap();
    let part = builder().open(copied(&dir, "part")).unwrap();
    let came = [fresh, part].map(|replica| {
        replica.begin_following().unwrap();
        let options = directories::turn_options();
        let mut of_source = SessionEnd::source(&source, &options, 0).unwrap().block_bytes(8 << 10);
        let mut of_replica = SessionEnd::replica(&replica, &options, KeptState::default(), 0);
        let (mut to_source, mut to_replica, mut came) = (Vec::new(), Vec::new(), 0);
        while !of_replica.is_streaming() {
            of_source.fill(0, &mut to_replica).unwrap();
            of_replica.fill(0, &mut to_source).unwrap();
            came += to_replica.len();
            of_replica.receive(&std::mem::take(&mut to_replica), 0, &mut to_source).unwrap();
            of_source.receive(&std::mem::take(&mut to_source), 0, &mut to_replica).unwrap();
        }
        assert_eq!(of_replica.caught_up(), Some(SyncKind::Full));
        assert_eq!(replica.position(), source.position());
        assert_eq!(replica.snapshot().unwrap().fingerprint(), LOG_FINGERPRINT);
        came
    });
    assert!(came[1] < came[0] - 20_000, "{came:?}: what it had came again");
}

/// What either side said then, the other side of today understands.
#[test]
fn the_golden_session_is_understood() {
    let dir = Dir::new("golden-session");
    let said = decode(&std::fs::read(path("session")).unwrap());
    let options = directories::turn_options();
    let replica = builder().in_memory().unwrap();
    replica.begin_following().unwrap();
    seed_thread(Some(directories::SESSION_SEED));
    let mut end = SessionEnd::replica(&replica, &options, KeptState::default(), 0);
    let mut out = Vec::new();
    for (is_source, words) in &said {
        end.fill(0, &mut out).unwrap();
        if *is_source {
            end.receive(words, 0, &mut out).unwrap();
        }
    }
    seed_thread(None);
    assert!(end.is_streaming());
    assert_eq!(replica.seq().0, LOG_SEQ);
    assert_eq!(replica.snapshot().unwrap().fingerprint(), LOG_FINGERPRINT);
    let source = builder().open(copied(&dir, "log")).unwrap();
    let mut end = SessionEnd::source(&source, &options, 0).unwrap().block_bytes(8 << 10);
    for (is_source, words) in &said {
        if !*is_source {
            end.receive(words, 0, &mut out).unwrap();
        }
        while end.fill(0, &mut out).unwrap() {}
    }
    assert_eq!(source.acked(source.position(), AckLevel::Applied), 1);
}
