//! The reader in Python, written from FORMAT.md alone, against files of the library: what both say must be equal.

#![allow(clippy::cast_possible_truncation, reason = "lengths and counters here are small")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Output};

use stillframe::simulation::{Random, SimClock};
use stillframe::{Compression, Database, SaveOptions, SnapshotFile, WriteOptions};

use crate::saves::Dir;

/// A keyspace: what was written to it, by key: value and expiry.
type Model = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

/// Runs a script of `tests/` with one argument or none.
fn python(script: &str, argument: Option<&Path>) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
    match Command::new("python3").arg("-B").arg(script).args(argument).output() {
        Ok(output) => output,
        Err(error) => panic!("this test needs Python 3 as `python3` in the PATH: {error}"),
    }
}

/// What the reader prints about a valid file.
fn read(path: &Path) -> String {
    let output = python("snapshot_reader.py", Some(path));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The reader must refuse these bytes, and say where.
fn refuse(path: &Path, bytes: &[u8], what: &str) {
    std::fs::write(path, bytes).unwrap();
    let output = python("snapshot_reader.py", Some(path));
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {told}");
    assert!(told.starts_with(&format!("{} at byte ", path.display())), "{what}: {told}");
    assert!(output.stdout.is_empty(), "{what}: it used what it read");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}

/// What the reader must print of a file: entries by the model, the summary by the library.
fn expected(content: &[(&str, Model)], file: &SnapshotFile) -> String {
    let mut out = String::new();
    for (name, model) in content {
        for (key, (value, expire_at)) in model {
            let (key, value) = (hex(key), hex(value));
            writeln!(
                out,
                r#"{{"keyspace": "{name}", "key": "{key}", "value": "{value}", "expire_at": {expire_at}}}"#
            )
            .unwrap();
        }
    }
    let info = file.info();
    let position =
        format!(r#"{{"history": "{}", "seq": {}}}"#, info.position.history, info.position.seq);
    writeln!(
        out,
        r#"{{"summary": {{"position": {position}, "time": {}, "entries": {}, "raw_bytes": {}, "fingerprint": "{:016x}", "blocks": {}, "keyspaces": {:?}}}}}"#,
        info.time_ms, info.entries, info.raw_bytes, info.fingerprint, info.blocks, file.keyspaces().unwrap(),
    )
    .unwrap();
    out
}

/// The library shows of the file what the model holds, less what expired before the cut.
fn check_library(content: &[(&str, Model)], file: &SnapshotFile) {
    let time = file.info().time_ms;
    for (name, model) in content {
        let mut shown = Vec::new();
        let scan = file.keyspace(name).unwrap().scan_with::<&[u8]>(.., |key, value| {
            shown.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        });
        scan.unwrap();
        let present = |(_, (_, at)): &(&Vec<u8>, &(Vec<u8>, u64))| *at == 0 || *at > time;
        let stands =
            model.iter().filter(present).map(|(key, (value, _))| (key.clone(), value.clone()));
        assert!(stands.eq(shown), "keyspace {name}");
    }
}

/// Half of it repeats, so that LZ4 has something to find.
fn bytes(random: &mut Random, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    random.fill(&mut out);
    let word = out[..len / 50].to_vec();
    for (i, byte) in out.iter_mut().enumerate().skip(len / 2) {
        *byte = word.get(i % word.len().max(1)).copied().unwrap_or(b'x');
    }
    out
}

fn models(random: &mut Random) -> Vec<(&'static str, Model)> {
    let mut mixed = Model::new();
    for i in 0..600_u64 {
        let len = random.below(40) as usize;
        let key = bytes(random, len);
        let len = random.below(300) as usize;
        let expire_at = match i % 7 {
            0 => 1 + random.below(1000),
            1 => u64::MAX - random.below(1000),
            _ => 0,
        };
        mixed.insert(key, (bytes(random, len), expire_at));
    }
    let mut large = Model::new();
    for (i, len) in
        [0, 16_384, 16_385, 40_000, 65_536, 65_537, 131_072, 200_000].into_iter().enumerate()
    {
        let key = [b"large ", &[i as u8][..]].concat();
        large.insert(key, (bytes(random, len), if i % 2 == 0 { 0 } else { 5_000_000_000_000 }));
        large.insert(format!("small {i}").into_bytes(), (vec![b'.'; 20 * i], 0));
    }
    large.insert(Vec::new(), (vec![b'z'; 200_000], 1));
    // Long fences make more than one index block.
    let mut long = Model::new();
    for i in 0..200_u32 {
        let key = [&[b'k'; 3_000][..], &i.to_be_bytes()].concat();
        long.insert(key, (bytes(random, 4_000), 0));
    }
    long.insert(vec![0xFF; 65_536], (b"the longest key".to_vec(), 0));
    vec![("mixed", mixed), ("empty", Model::new()), ("Größe", large), ("long", long)]
}

fn write(db: &Database, content: &[(&str, Model)]) {
    for (name, model) in content {
        let space = db.keyspace(name).unwrap();
        for (key, (value, expire_at)) in model {
            space.insert_with(key, value, WriteOptions::new().expire_at(*expire_at)).unwrap();
        }
    }
}

fn save(db: &Database, path: &Path, compression: Compression) -> SnapshotFile {
    let options = SaveOptions::default().compression(compression);
    let report = db.save(path, options).unwrap().wait().unwrap();
    let file = SnapshotFile::open(path).unwrap();
    assert_eq!(file.info().fingerprint, report.fingerprint);
    file.verify().unwrap();
    file
}

/// Entries of the root, which are the index blocks: where FORMAT.md says they are counted.
fn index_blocks(bytes: &[u8]) -> u32 {
    let footer = &bytes[bytes.len() - 160..];
    let root = u64::from_le_bytes(footer[96..104].try_into().unwrap()) as usize;
    u32::from_le_bytes(bytes[root + 24..root + 28].try_into().unwrap())
}

#[test]
fn it_reads_what_the_library_wrote() {
    let dir = Dir::new("python");
    let content = models(&mut Random::new(7));
    // What is past its time stays where it is.
    let db = Database::builder().clock(SimClock::new(1)).in_memory().unwrap();
    write(&db, &content);
    // Written and removed again: histories of leaves, none of it in the file.
    let space = db.keyspace("mixed").unwrap();
    for i in 0..500_u32 {
        space.insert(format!("gone {i:0100}"), [1; 60]).unwrap();
    }
    space.delete_range("gone 0".."gone 1").unwrap();
    for (name, compression) in [("lz4", Compression::Lz4), ("raw", Compression::Raw)] {
        let path = dir.file(name);
        let file = save(&db, &path, compression);
        assert!(index_blocks(&std::fs::read(&path).unwrap()) > 1);
        check_library(&content, &file);
        let (got, expected) = (read(&path), expected(&content, &file));
        for (line, (got, expected)) in got.lines().zip(expected.lines()).enumerate() {
            assert_eq!(got, expected, "{name}, line {line}");
        }
        assert_eq!(got.len(), expected.len(), "{name}");
    }
}

/// Nothing written at all; keyspaces without entries; what a loaded database writes, with a lineage of two.
#[test]
fn it_reads_empty_files_and_those_of_a_loaded_database() {
    let dir = Dir::new("python-empty");
    let db = Database::in_memory();
    let file = save(&db, &dir.file("nothing"), Compression::Lz4);
    assert_eq!((file.info().position.seq.0, file.info().position.history.0), (0, [0; 16]));
    assert_eq!(read(&dir.file("nothing")), expected(&[], &file));

    db.keyspace("a").unwrap().insert("k", "v").unwrap();
    db.keyspace("b").unwrap();
    assert!(db.drop_keyspace("a").unwrap());
    let file = save(&db, &dir.file("empty"), Compression::Lz4);
    assert_eq!(read(&dir.file("empty")), expected(&[("b", Model::new())], &file));

    let again = Database::load(dir.file("empty")).unwrap();
    let file = save(&again, &dir.file("same"), Compression::Lz4);
    assert_eq!(read(&dir.file("same")), expected(&[("b", Model::new())], &file));
    again.keyspace("b").unwrap().insert([0, 255], "later").unwrap();
    let content = [("b", Model::from([(vec![0, 255], (b"later".to_vec(), 0))]))];
    assert_ne!(again.position().history, file.info().position.history);
    let file = save(&again, &dir.file("later"), Compression::Lz4);
    assert_eq!(read(&dir.file("later")), expected(&content, &file));
}

#[test]
fn it_refuses_damage_anywhere() {
    let dir = Dir::new("python-damage");
    let path = dir.file("file");
    let db = Database::in_memory();
    let value = bytes(&mut Random::new(1), 40_000);
    write(
        &db,
        &[("k", Model::from([(b"large".to_vec(), (value, 0)), (Vec::new(), (b"v".to_vec(), 9))]))],
    );
    save(&db, &path, Compression::Lz4);
    let good = std::fs::read(&path).unwrap();
    read(&path);
    let end = good.len();
    let places = (0..end).step_by(end / 8).chain([8, 70, 97, end - 20, end - 1]);
    for at in places {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refuse(&path, &bad, &format!("byte {at} of {end} flipped"));
    }
    for cut in [0, 96, end / 2, end - 1] {
        refuse(&path, &good[..cut], &format!("{cut} of {end} bytes"));
    }
    refuse(&path, &[&good[..], b"\0"].concat(), "a byte more");
}

/// The appendix is the code that runs here, and that gives the reference's known answers.
#[test]
fn the_hash_in_format_md_is_the_one_that_is_tested() {
    let (_, appendix) = include_str!("../../FORMAT.md").split_once("## Appendix A").unwrap();
    let code = appendix.split("```").nth(1).unwrap().trim_start_matches("python\n");
    assert!(include_str!("../xxh3.py").contains(code), "tests/xxh3.py differs from FORMAT.md");
    let output = python("xxh3.py", None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
