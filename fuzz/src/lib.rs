//! What the targets do with an input. `tests/it/regressions.rs` does the same with inputs that once failed.

use std::collections::BTreeMap;
use std::path::Path;

use stillframe::simulation::{Disk, SimClock, SimDisk, decode_block, walk_segment};
use stillframe::{Builder, Database, Keyspace, SaveOptions, Snapshot, SnapshotFile};

mod directory;
mod link;

pub use directory::directory;
pub use link::{replica, source};

/// By keyspace: key and value of what is shown.
type Content = Vec<(String, Vec<(Vec<u8>, Vec<u8>)>)>;

const PATH: &str = "/file";

/// Reads `bytes` as a snapshot file in every way. Whatever they are: no panic, and who takes the whole of it sees the same.
pub fn snapshot(bytes: &[u8]) {
    let disk = SimDisk::new();
    put(&disk, Path::new(PATH), bytes);
    let opened = SnapshotFile::open_on_disk(&disk, PATH);
    let time_ms = opened.as_ref().map_or(0, |file| file.info().time_ms);
    let builder = Database::builder().clock(SimClock::new(time_ms)).disk(disk).manual_reclaim();
    let loaded = builder.clone().load(PATH);
    let streamed = builder.load_from(bytes);
    let Ok(file) = opened else {
        assert!(loaded.is_err() && streamed.is_err(), "what can't be opened can't be loaded");
        return;
    };
    let verified = file.verify();
    let in_place = read_file(&file);
    assert_eq!(verified.is_ok(), loaded.is_ok(), "{verified:?}, {:?}", loaded.err());
    assert_eq!(streamed.is_ok(), loaded.is_ok(), "{:?}, {:?}", streamed.err(), loaded.err());
    let (Ok(loaded), Ok(streamed)) = (loaded, streamed) else { return };
    let in_place = in_place.expect("what was verified can be read");
    for db in [loaded, streamed] {
        db.check();
        let snapshot = db.snapshot().expect("a still");
        assert_eq!(snapshot.position(), file.info().position);
        assert!(of_snapshot(&snapshot) == in_place, "loaded and in place show the same");
    }
}

/// Makes a file of `bytes`, if there is none of that name.
fn put(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let Ok(file) = disk.create_new(path) else { return };
    let mut written = 0;
    while written < bytes.len() {
        written += file.write_at(&bytes[written..], written as u64).expect("room");
    }
}

/// Everything that is shown in place: walked from both ends and looked up key by key.
fn read_file(file: &SnapshotFile) -> stillframe::Result<Content> {
    let mut content = Vec::new();
    for name in file.keyspaces()? {
        let space = file.keyspace(&name)?;
        let mut entries = Vec::new();
        for item in space.range::<&[u8]>(..) {
            let (key, value) = item?;
            assert_eq!(
                space.get(&key)?.as_deref(),
                Some(&value[..]),
                "a key that was walked over is found"
            );
            entries.push((key.to_vec(), value.to_vec()));
        }
        let mut backwards = entries.len();
        for item in space.range::<&[u8]>(..).rev() {
            let (key, value) = item?;
            backwards = backwards.checked_sub(1).expect("no more from behind than from the front");
            assert!(entries[backwards].0 == *key && entries[backwards].1 == *value);
        }
        assert_eq!(backwards, 0, "as many from behind as from the front");
        assert!(space.len()? >= entries.len() as u64, "what is shown is stored");
        content.push((name, entries));
    }
    Ok(content)
}

fn of_snapshot(snapshot: &Snapshot) -> Content {
    let entries = |name: &String| {
        let range = snapshot.keyspace(name).expect("a name that was listed").range::<&[u8]>(..);
        range.map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec())).expect("memory")).collect()
    };
    let names = snapshot.keyspaces().expect("memory");
    names.into_iter().map(|name| (name.clone(), entries(&name))).collect()
}

/// Reads 16 bytes as the id of a file and the rest as one block of it.
pub fn block(bytes: &[u8]) {
    if let Some((file_id, block)) = bytes.split_first_chunk::<16>() {
        // Refused or not: only a panic is a finding.
        let _ = decode_block(file_id, block);
    }
}

/// Reads `bytes` as one segment of a log, from its label to its last frame.
pub fn log(bytes: &[u8]) {
    // Refused or not: only a panic is a finding.
    let _ = walk_segment(bytes);
}

/// Does what `bytes` say to a database and to a map, with stills held over it, saving and loading now and then.
pub fn model(bytes: &[u8]) {
    Run::new(bytes).run();
}

type Model = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

const NAMES: [&str; 2] = ["a", "b"];

struct Run<'b> {
    bytes: &'b [u8],
    builder: Builder,
    db: Database,
    spaces: Vec<Keyspace>,
    model: Model,
    stills: Vec<(Snapshot, Model)>,
}

impl<'b> Run<'b> {
    fn new(bytes: &'b [u8]) -> Self {
        let (first, bytes) = bytes.split_first().unwrap_or((&0, bytes));
        let builder = Database::builder()
            .leaf_entries(3 + usize::from(*first) % 6)
            .clock(SimClock::new(1_000))
            .disk(SimDisk::new())
            .manual_reclaim();
        let db = builder.clone().in_memory().expect("memory");
        let spaces = open(&db);
        Run { bytes, builder, db, spaces, model: Model::new(), stills: Vec::new() }
    }

    fn byte(&mut self) -> u8 {
        match self.bytes.split_first() {
            Some((byte, rest)) => {
                self.bytes = rest;
                *byte
            }
            None => 0,
        }
    }

    /// Few different keys, some of which begin alike, some long.
    fn key(&mut self) -> Vec<u8> {
        let byte = self.byte();
        let mut key = vec![b'k'; usize::from(byte % 4)];
        key.push(byte / 16);
        if byte % 64 == 63 {
            key.extend([byte; 700]);
        }
        key
    }

    fn value(&mut self) -> Vec<u8> {
        let byte = self.byte();
        let len = match byte % 16 {
            15 => 17_000,
            14 => 3_000,
            13 => 0,
            len => usize::from(len) * 5,
        };
        vec![byte; len]
    }

    fn run(mut self) {
        while !self.bytes.is_empty() {
            let op = self.byte();
            let i = usize::from(op >> 7);
            self.operation(op & 0x7F, i);
        }
        self.check_stills();
        self.stills.clear();
        self.db.reclaim();
        self.db.check();
        self.save_and_load();
        assert!(content(&self.model) == of_snapshot(&self.db.snapshot().expect("a still")));
    }

    fn operation(&mut self, op: u8, i: usize) {
        let space = self.spaces[i].clone();
        match op % 16 {
            0..=4 => {
                let (key, value) = (self.key(), self.value());
                space.insert(&key, &value).expect("an insert");
                self.model.insert((i, key), value);
            }
            5 | 6 => {
                let key = self.key();
                let removed = space.remove(&key).expect("a remove");
                assert_eq!(removed, self.model.remove(&(i, key)).is_some());
            }
            7 => {
                let (key, value) = (self.key(), self.value());
                let inserted = space.insert_new(&key, &value).expect("an insert");
                assert_eq!(inserted, !self.model.contains_key(&(i, key.clone())));
                self.model.entry((i, key)).or_insert(value);
            }
            8 => {
                let (low, high) = (self.key(), self.key());
                let gone = space.delete_range::<&Vec<u8>>(&low..&high).expect("a range");
                let before = self.model.len();
                self.model.retain(|(space, key), _| *space != i || *key < low || *key >= high);
                assert_eq!(gone, (before - self.model.len()) as u64);
            }
            9 => {
                let popped = space.pop_first().expect("a pop");
                let first = self.model.range((i, Vec::new())..(i + 1, Vec::new())).next();
                let first = first.map(|(key, value)| (key.clone(), value.clone()));
                let popped = popped.map(|(key, value)| ((i, key.to_vec()), value.to_vec()));
                assert!(popped == first);
                first.map(|(key, _)| self.model.remove(&key));
            }
            10 => self.batch(),
            11 if self.stills.len() < 4 => {
                self.stills.push((self.db.snapshot().expect("a still"), self.model.clone()));
            }
            12 if !self.stills.is_empty() => {
                let which = usize::from(op) % self.stills.len();
                let (still, model) = self.stills.swap_remove(which);
                assert!(of_snapshot(&still) == content(&model), "a still shows its cut");
            }
            13 => self.db.reclaim(),
            14 if op == 14 => self.save_and_load(),
            15 if op == 15 => {
                space.clear().expect("a clear");
                self.model.retain(|(space, _), _| *space != i);
            }
            _ => {
                let key = self.key();
                let got = space.get(&key).expect("a get");
                assert_eq!(got.as_deref(), self.model.get(&(i, key)).map(Vec::as_slice));
            }
        }
    }

    fn batch(&mut self) {
        let mut batch = self.db.batch();
        for _ in 0..2 + self.byte() % 4 {
            let (i, key) = (usize::from(self.byte() % 2), self.key());
            if self.byte().is_multiple_of(3) {
                batch.remove(&self.spaces[i], &key);
                self.model.remove(&(i, key));
            } else {
                let value = self.value();
                batch.insert(&self.spaces[i], &key, &value);
                self.model.insert((i, key), value);
            }
        }
        batch.commit().expect("a batch");
    }

    fn check_stills(&self) {
        for (still, model) in &self.stills {
            assert!(of_snapshot(still) == content(model), "a still shows its cut");
        }
    }

    /// Saves, loads, and goes on with what was loaded; stills stay with the database they are of.
    fn save_and_load(&mut self) {
        self.db.save(PATH, SaveOptions::default()).expect("a save").wait().expect("a save");
        self.db = self.builder.clone().load(PATH).expect("a load");
        self.db.check();
        self.spaces = open(&self.db);
    }
}

fn open(db: &Database) -> Vec<Keyspace> {
    NAMES.iter().map(|name| db.keyspace(name).expect("a keyspace")).collect()
}

fn content(model: &Model) -> Content {
    let of = |i: usize| {
        let entries = model.range((i, Vec::new())..(i + 1, Vec::new()));
        entries.map(|((_, key), value)| (key.clone(), value.clone())).collect()
    };
    NAMES.iter().enumerate().map(|(i, name)| ((*name).into(), of(i))).collect()
}
