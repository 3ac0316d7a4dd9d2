//! Golden files: written once by `cargo run -p torture -- golden tests/golden/v1`, opened by every later version.
//!
//! A golden file never changes. A test that fails here means that files people have can't be read any more.

use std::path::PathBuf;

use stillframe::simulation::SimClock;
use stillframe::{Compression, Database, Snapshot, SnapshotFile};

use content::{Golden, TIME_MS};

#[path = "../golden/content.rs"]
mod content;

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
    let mut expected: Vec<_> = V1
        .iter()
        .map(|(name, ..)| format!("{name}.still").into())
        .collect::<Vec<std::ffi::OsString>>();
    expected.sort();
    assert_eq!(names, expected);
    assert!(content::v1().iter().any(|golden| golden.compression == Compression::Raw));
}
