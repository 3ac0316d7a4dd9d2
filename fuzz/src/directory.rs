//! The target `directory`: a directory of any files, or of those that operations left and damage changed, is opened.
//!
//! The first byte of an input says which of both. *Files* follow one another: kind of name, ordinal, length (2 bytes), how many
//! bytes are given (2 bytes), and those; the rest up to the length is zeros. *Operations* are counted by a byte and go to a
//! database on the disk that is damaged; what follows them is the damage. Numbers are little-endian; an input that
//! is too short goes on with zeros.

use std::path::{Path, PathBuf};

use stillframe::simulation::{Disk, Random, SimClock, SimDisk};
use stillframe::{
    Builder, Database, Durability, Error, Keyspace, RecoveryMode, SaveOptions, Seq, WriteOptions,
};

use super::{Content, of_snapshot, put};

const DIR: &str = "/db";
const MODES: [RecoveryMode; 2] = [RecoveryMode::Strict, RecoveryMode::TolerateTail];
/// Damage passes unseen: what is found need not be what was written.
const LENIENT: bool = cfg!(all(fuzzing, not(stillframe_checksums)));

/// Opens a directory in each way. Whatever it holds: no panic; what is found is sound, is found again, and can be gone on from. Where
/// operations made it, what is found is what there was after some batch.
pub fn directory(bytes: &[u8]) {
    let mut input = Input(bytes);
    if input.byte().is_multiple_of(2) {
        check(&files(&mut input), None);
    } else {
        let mut run = Run::new(input.byte());
        for _ in 0..input.byte() % 64 {
            run.operation(&mut input);
        }
        let Run { disk, db, spaces, states, synced } = run;
        drop((spaces, db));
        let disk = damaged(disk, &mut input, &synced);
        check(&disk, Some(&states));
    }
}

struct Input<'b>(&'b [u8]);

impl<'b> Input<'b> {
    fn take(&mut self, len: usize) -> &'b [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn short(&mut self) -> usize {
        usize::from(self.byte()) | usize::from(self.byte()) << 8
    }

    /// A number below `len`; 0 if that is 0.
    fn below(&mut self, len: usize) -> usize {
        self.short() % len.max(1)
    }
}

fn builder(disk: &SimDisk) -> Builder {
    let builder = Database::builder().disk(disk.clone()).clock(SimClock::new(1_000));
    builder.manual_log().manual_reclaim().leaf_entries(4).segment_bytes(4 << 10)
}

fn name(kind: u8, ordinal: u8) -> PathBuf {
    let name = match kind % 6 {
        0 => format!("{ordinal:010}.log"),
        1 => format!("{ordinal:010}.snap"),
        2 => "identity".into(),
        3 => format!(".{ordinal:010}.log.0123456789abcdef.tmp"),
        4 => "lock".into(),
        _ => format!("{ordinal}.log"),
    };
    Path::new(DIR).join(name)
}

fn files(input: &mut Input<'_>) -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir(Path::new(DIR)).expect("an empty disk");
    while !input.0.is_empty() {
        let path = name(input.byte(), input.byte());
        let (len, given) = (input.short(), input.short());
        let mut bytes = input.take(given.min(len)).to_vec();
        bytes.resize(len, 0);
        put(&disk, &path, &bytes);
    }
    disk
}

/// The last batch, and all there is after it.
type State = (Seq, Content);

fn state(db: &Database) -> State {
    (db.seq(), of_snapshot(&db.snapshot().expect("a still")))
}

/// Operations, and what there was after each batch.
struct Run {
    disk: SimDisk,
    db: Database,
    spaces: [Keyspace; 2],
    states: Vec<State>,
    /// Batches that were durable after so many changes of the disk.
    synced: Vec<(usize, Seq)>,
}

impl Run {
    fn new(options: u8) -> Self {
        let disk = SimDisk::new();
        let db = Self::options(&disk, options).open(DIR).expect("an empty disk");
        let mut states = vec![state(&db), (Seq(1), Content::new())];
        let spaces = ["a", "b"].map(|name| {
            let space = db.keyspace(name).expect("a keyspace");
            states.push(state(&db));
            space
        });
        Run { disk, db, spaces, states, synced: Vec::new() }
    }

    fn options(disk: &SimDisk, options: u8) -> Builder {
        builder(disk).keep_snapshots(1 + usize::from(options % 3)).durability(Durability::Memory)
    }

    fn synced(&mut self, seq: Seq) {
        self.synced.push((self.disk.change_count(), seq));
    }

    fn operation(&mut self, input: &mut Input<'_>) {
        let (op, i) = (input.byte(), usize::from(input.byte() % 2));
        let before = state(&self.db);
        let space = &self.spaces[i];
        let mut key = || [b'k', input.byte() % 40];
        let levels = [Durability::Memory, Durability::Os, Durability::Sync];
        let level = levels[usize::from(op / 16) % 3];
        let options = WriteOptions::new().durability(level);
        match op % 16 {
            0..=5 => {
                let key = key();
                let value = vec![op; 1 + input.below(40)];
                space.insert_with(key, value, options).expect("an insert");
            }
            6 => {
                let key = key();
                let value = vec![op; 1_000 + input.below(4_000)];
                space.insert_with(key, value, options).expect("a long insert");
            }
            7 => drop(space.remove(key()).expect("a remove")),
            8 => drop(space.delete_range(key()..key()).expect("a range")),
            9 | 10 => {
                let mut batch = self.db.batch();
                batch.durability(level);
                batch.delete_range(space, key()..key());
                batch.insert(space, key(), [op; 20]);
                batch.insert(&self.spaces[1 - i], key(), "other");
                batch.commit().expect("a batch");
            }
            11 | 12 => {
                let seq = self.db.persist(Durability::Sync).expect("a sync");
                self.synced(seq);
            }
            13 => {
                let options = SaveOptions::default().threads(1).block_bytes(256);
                let report = self.db.compact_log(options).expect("a save");
                self.synced(report.position.seq);
            }
            _ => {
                if op % 16 == 14 {
                    self.db.close().expect("a close");
                    self.synced(before.0);
                }
                self.reopen(op / 16);
            }
        }
        if op % 16 < 11 {
            // A run's first batch comes behind the record of its history.
            self.states.push((Seq(before.0.0 + 1), before.1));
            self.states.push(state(&self.db));
            if level == Durability::Sync && !matches!(op % 16, 7 | 8) {
                self.synced(self.db.seq());
            }
        }
    }

    fn reopen(&mut self, options: u8) {
        let before = (self.db.position(), state(&self.db));
        // Nothing holds its lock any more.
        let memory = Database::in_memory();
        self.spaces = ["a", "b"].map(|name| memory.keyspace(name).expect("memory"));
        self.db = memory;
        self.db = Self::options(&self.disk, options).open(DIR).expect("what was left");
        assert!((self.db.position(), state(&self.db)) == before, "what was left is found");
        self.spaces = ["a", "b"].map(|name| self.db.keyspace(name).expect("a keyspace"));
    }
}

/// Damages what is on the disk, as the rest of the input says.
fn damaged(mut disk: SimDisk, input: &mut Input<'_>, synced: &[(usize, Seq)]) -> SimDisk {
    let mut power_only = input.0.first().is_none_or(|first| first % 12 == 0);
    let mut acknowledged = Seq(0);
    for damage in 0..16 {
        if input.0.is_empty() {
            break;
        }
        let kind = input.byte() % 12;
        if kind == 0 && damage == 0 {
            let count = input.below(disk.change_count() + 1);
            let point = disk.crash_point(count);
            let last = synced.iter().rev().find(|(at, _)| *at <= count);
            acknowledged = last.map_or(Seq(0), |(_, seq)| *seq);
            disk = point.image(&point.draw(&mut Random::new(input.short() as u64)));
        } else {
            power_only = false;
            damage_file(&disk, kind, input);
        }
    }
    // Where checksums don't count a torn write passes for a whole one.
    if power_only && !LENIENT {
        let db = builder(&disk.fork()).open(DIR).expect("what a power cut leaves");
        assert!(db.seq() >= acknowledged, "{} of {acknowledged}", db.seq());
    }
    disk
}

fn damage_file(disk: &SimDisk, kind: u8, input: &mut Input<'_>) {
    let files = disk.files();
    if files.is_empty() {
        return;
    }
    let (path, other) = (&files[input.below(files.len())], &files[input.below(files.len())]);
    let bytes = disk.contents(path).expect("it was listed");
    let (at, value) = (input.below(bytes.len()), input.byte());
    let edit = |edit: &dyn Fn(&mut Vec<u8>)| disk.edit(path, edit).expect("it was listed");
    match kind {
        0 | 1 => edit(&|bytes| {
            bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (value % 8))
        }),
        2 => edit(&|bytes| bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = value)),
        3 => edit(&|bytes| bytes.truncate(at)),
        4 => disk.remove(path).expect("it was listed"),
        5 => edit(&|bytes| bytes.iter_mut().skip(at).take(value.into()).for_each(|byte| *byte = 0)),
        6 => edit(&|bytes| bytes.extend(vec![value; 1 + at % 64])),
        7 => disk.edit(other, |other| *other = bytes).expect("it was listed"),
        8 => put(disk, &name(at as u8, value), &bytes),
        9 => edit(&|bytes| bytes.insert(at, value)),
        10 => edit(&|bytes| drop(bytes.drain(at..(at + usize::from(value)).min(bytes.len())))),
        _ => edit(&|bytes| {
            // What lies in one place lies in another as well.
            let to = usize::from(value) * bytes.len() / 256;
            let part = bytes[at..].iter().copied().take(48).collect::<Vec<_>>();
            bytes.iter_mut().skip(to).zip(part).for_each(|(byte, new)| *byte = new);
        }),
    }
}

/// What can be salvaged, which is a whole database then.
fn salvage(disk: &SimDisk) -> Option<State> {
    let disk = disk.fork();
    let db = match builder(&disk).recovery(RecoveryMode::Salvage).open(DIR) {
        Ok(db) => db,
        Err(Error::Corrupt { .. } | Error::Io { .. }) => return None,
        Err(error) => panic!("salvage: {error}"),
    };
    db.check();
    let found = state(&db);
    drop(db);
    let again = builder(&disk).recovery(RecoveryMode::Strict).open(DIR);
    let again = again.unwrap_or_else(|error| panic!("what was salvaged is whole: {error}"));
    assert!(state(&again) == found, "what was salvaged is found again");
    Some(found)
}

fn check(disk: &SimDisk, states: Option<&[State]>) {
    let opened = |disk: &SimDisk, mode| builder(disk).recovery(mode).open(DIR);
    let strict = opened(&disk.fork(), RecoveryMode::Strict);
    let salvaged = salvage(disk);
    let recovered = disk.fork();
    let db = match opened(&recovered, RecoveryMode::TolerateTail) {
        Ok(db) => db,
        Err(error) => {
            assert!(matches!(error, Error::Corrupt { .. } | Error::Io { .. }), "{error}");
            assert!(strict.is_err(), "who tolerates no damage tolerates this: {error}");
            return;
        }
    };
    db.check();
    let (position, found) = (db.position(), state(&db));
    if let Ok(strict) = strict {
        assert!((strict.position(), state(&strict)) == (position, found.clone()));
    }
    if let Some(states) = states {
        assert!(LENIENT || states.contains(&found), "nothing is invented: {}", found.0);
    }
    assert!(salvaged == Some(found.clone()), "what opens as it is needs no salvage");
    drop(db);
    for mode in MODES {
        match opened(&recovered.fork(), mode) {
            Ok(db) => assert!((db.position(), state(&db)) == (position, found.clone()), "{mode:?}"),
            // The damaged snapshot is there still.
            Err(Error::Corrupt { file, .. })
                if mode == RecoveryMode::Strict
                    && file.extension().is_some_and(|end| end == "snap") => {}
            Err(error) => panic!("{mode:?}: {error}"),
        }
    }
    let db = opened(&recovered, RecoveryMode::TolerateTail).expect("as before");
    // By its identity it may be another node's.
    db.promote().expect("it goes on");
    db.keyspace("a").and_then(|space| space.insert("more", "later")).expect("it goes on");
    db.close().expect("it goes on");
    let later = (db.position(), state(&db));
    drop(db);
    let db = opened(&recovered, RecoveryMode::TolerateTail).expect("it went on");
    db.check();
    assert!((db.position(), state(&db)) == later);
}
