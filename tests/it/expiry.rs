//! Expiry against a model, in simulated time: through sweeps, saves, loads, power cuts, replicas and promotions.
//!
//! What is past its time is hidden from all who read, at once; it is removed by a sweep, on a primary, never before its time and within a
//! quarter of a second of it. Nobody else removes anything.

use std::collections::BTreeMap;
use std::time::Duration;

use stillframe::simulation::{
    Clock, KeptState, Random, SessionEnd, SessionEnded, SimClock, SimDisk, TurnOptions,
};
use stillframe::{
    Database, Durability, LogEffect, LogReader, LogRecordKind, Role, SaveOptions, WriteOptions,
};

use crate::model::for_each_seed;

/// Value and expiry by key: what is stored, past its time or not.
type Content = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

const GRAIN_MS: u64 = 256;

struct Run {
    random: Random,
    clock: SimClock,
    leaf_entries: usize,
    disk: SimDisk,
    /// Follows it, if there is one.
    copy: Option<(SimDisk, Database)>,
    db: Database,
    model: Content,
}

fn open(disk: &SimDisk, clock: &SimClock, leaf_entries: usize) -> Database {
    let builder =
        Database::builder().disk(disk.clone()).clock(clock.clone()).manual_log().manual_reclaim();
    let builder = builder.leaf_entries(leaf_entries).durability(Durability::Sync);
    builder.segment_bytes(8 << 10).save_when_log_exceeds(None).open("/db").unwrap()
}

/// All that is stored, but names.
fn stored(db: &Database) -> Content {
    let mut pass = db.pass().unwrap();
    let mut content = Content::new();
    while let Some(entries) = pass.step().unwrap() {
        let own = entries.into_iter().filter(|(id, ..)| *id != 0);
        content.extend(own.map(|(_, key, value, expire_at)| (key, (value, expire_at))));
    }
    content
}

/// Both talk until the replica has all, or is refused.
pub(crate) fn replicate(db: &Database, copy: &Database, now_ms: u64) -> Result<(), SessionEnded> {
    let options = TurnOptions { key: None, beat_ms: 1_000, timeout_ms: 10_000, nonce: [7; 32] };
    copy.begin_following().unwrap();
    let mut source = SessionEnd::source(db, &options, now_ms).unwrap();
    let mut replica = SessionEnd::replica(copy, &options, KeptState::default(), now_ms);
    for _ in 0..200 {
        for is_source in [false, true] {
            let mut out = Vec::new();
            let (from, to) = match is_source {
                true => (&mut source, &mut replica),
                false => (&mut replica, &mut source),
            };
            from.fill(now_ms, &mut out)?;
            let mut answer = Vec::new();
            to.receive(&out, now_ms, &mut answer)?;
            from.receive(&answer, now_ms, &mut Vec::new())?;
        }
        if copy.position() == db.position() {
            return Ok(());
        }
    }
    panic!("the replica is at {:?}, its source at {:?}", copy.position(), db.position());
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let clock = SimClock::new(1_000_000 + random.below(1_000));
        let (disk, leaf_entries) = (SimDisk::new(), 3 + random.below(6) as usize);
        let db = open(&disk, &clock, leaf_entries);
        Self { random, clock, leaf_entries, disk, copy: None, db, model: Content::new() }
    }

    fn now(&self) -> u64 {
        self.clock.now_ms()
    }

    fn visible(&self, key: &[u8]) -> Option<&(Vec<u8>, u64)> {
        self.model.get(key).filter(|(_, at)| *at == 0 || self.now() < *at)
    }

    fn key(&mut self) -> Vec<u8> {
        format!("{:02}", self.random.below(40)).into_bytes()
    }

    fn expiry(&mut self) -> u64 {
        match self.random.below(5) {
            0 => 0,
            1 => self.now().saturating_sub(self.random.below(400)),
            2 => self.now() + self.random.below(100),
            _ => self.now() + self.random.below(3_000),
        }
    }

    fn write(&mut self) {
        let space = self.db.keyspace("all").unwrap();
        let (key, expire_at) = (self.key(), self.expiry());
        let value = self.random.below(1_000).to_string().into_bytes();
        let value = if self.random.one_in(9) { value.repeat(1_000) } else { value };
        let until = WriteOptions::new().expire_at(expire_at);
        match self.random.below(10) {
            0..4 => {
                space.insert_with(&key, &value, until).unwrap();
                self.model.insert(key, (value, expire_at));
            }
            4 => {
                let mut batch = self.db.batch();
                for _ in 0..self.random.below(12) {
                    let key = format!("{:02}", self.random.below(40)).into_bytes();
                    batch.insert_with(&space, &key, &value, until);
                    self.model.insert(key, (value.clone(), expire_at));
                }
                batch.commit().unwrap();
            }
            5 => {
                let ttl = self.random.below(2_000);
                let was_there = space.touch(&key, Duration::from_millis(ttl)).unwrap();
                assert_eq!(was_there, self.visible(&key).is_some());
                if was_there {
                    let until = self.now() + ttl;
                    self.model.get_mut(&key).unwrap().1 = until;
                }
            }
            6 => {
                let stays = space.persist_key(&key).unwrap();
                assert_eq!(stays, self.visible(&key).is_some_and(|(_, at)| *at != 0));
                if stays {
                    self.model.get_mut(&key).unwrap().1 = 0;
                }
            }
            7 => {
                if space.remove(&key).unwrap() {
                    assert!(self.visible(&key).is_some());
                    self.model.remove(&key);
                }
            }
            8 => {
                // A transaction leaves an expiry that it does not mention behind.
                let put = self.db.transact(|tx| {
                    let is_there = tx.contains_key(&space, &key)?;
                    if is_there {
                        tx.insert_with(&space, &key, &value, until)?;
                    }
                    Ok(is_there)
                });
                assert_eq!(put.unwrap(), self.visible(&key).is_some());
                if self.visible(&key).is_some() {
                    self.model.insert(key, (value, expire_at));
                }
            }
            _ => {
                let is_new = space.insert_new(&key, &value).unwrap();
                assert_eq!(is_new, self.visible(&key).is_none());
                if is_new {
                    self.model.insert(key, (value, 0));
                }
            }
        }
    }

    /// What a sweep leaves of what there was.
    fn check_sweep(db: &Database, before: &Content, now: u64) -> Content {
        let (seq, removed) = (db.seq(), db.sweep_expired());
        let left = stored(db);
        assert_eq!(removed as usize, before.len() - left.len());
        assert_eq!(db.seq() > seq, removed > 0);
        for (key, entry) in before {
            let is_past = entry.1 != 0 && entry.1 <= now;
            let is_long_past = entry.1 != 0 && entry.1 <= now / GRAIN_MS * GRAIN_MS;
            match left.get(key) {
                Some(same) => assert!(same == entry && !is_long_past, "{key:?} {entry:?} at {now}"),
                None => assert!(is_past, "{key:?} {entry:?} was removed at {now}"),
            }
        }
        left
    }

    fn step(&mut self) {
        match self.random.below(30) {
            0..18 => self.write(),
            18 | 19 => self.clock.advance(self.random.below(700)),
            20 => match self.random.below(3) {
                // The clock is set: back, or far ahead.
                0 => self.clock.set(self.now() - self.random.below(1_500)),
                _ => self.clock.advance(self.random.below(20_000)),
            },
            21..24 => {
                let now = self.now();
                self.model = Self::check_sweep(&self.db, &self.model, now);
            }
            24 => {
                // A copy in memory, from a file.
                let mut bytes = Vec::new();
                let options = SaveOptions::default().threads(1);
                self.db.snapshot().unwrap().write_to(&mut bytes, &options).unwrap();
                let builder = Database::builder().clock(self.clock.clone());
                let loaded = builder.leaf_entries(self.leaf_entries).load_from(&bytes[..]).unwrap();
                assert!(stored(&loaded) == self.model, "loading leaves something out");
                Self::check_sweep(&loaded, &self.model, self.now());
            }
            25 => {
                if self.random.one_in(2) {
                    self.db.compact_log(SaveOptions::default().threads(1)).unwrap();
                }
                // Nobody waits for what a sweep removes to be durable.
                self.db.persist(Durability::Sync).unwrap();
                self.disk = match self.random.one_in(2) {
                    true => self.disk.crash(self.random.next_u64()),
                    false => {
                        self.db.close().unwrap();
                        self.disk.clone()
                    }
                };
                let nobody = Database::in_memory();
                drop(std::mem::replace(&mut self.db, nobody));
                self.db = open(&self.disk, &self.clock, self.leaf_entries);
            }
            26 | 27 => {
                if self.copy.is_none() {
                    let disk = SimDisk::new();
                    let copy = open(&disk, &self.clock, self.leaf_entries);
                    self.copy = Some((disk, copy));
                }
                let (_, copy) = self.copy.as_ref().unwrap();
                replicate(&self.db, copy, self.now()).unwrap();
                assert!(stored(copy) == self.model, "a replica has what its primary has");
                assert_eq!((copy.role(), copy.sweep_expired()), (Role::Replica, 0));
            }
            28 => {
                let Some((disk, copy)) = self.copy.take() else { return };
                replicate(&self.db, &copy, self.now()).unwrap();
                copy.promote().unwrap();
                (self.disk, self.db) = (disk, copy);
            }
            _ => self.db.reclaim(),
        }
    }

    fn check(&self) {
        self.db.check();
        let stored = stored(&self.db);
        for (key, entry) in &self.model {
            assert_eq!(stored.get(key), Some(entry), "{key:?}");
        }
        assert_eq!(stored.len(), self.model.len());
        let space = self.db.keyspace("all").unwrap();
        assert_eq!(space.len().unwrap(), self.model.len() as u64);
        let now = self.now();
        let shown: Vec<_> = space.range::<&[u8]>(..).map(|e| e.unwrap().0.to_vec()).collect();
        // A range is judged by its cut, which is never earlier than one before.
        let hidden = |at: u64| at != 0 && at <= now;
        for (key, (value, at)) in &self.model {
            assert!(!hidden(*at) || !shown.contains(key));
            assert_eq!(space.get(key).unwrap().is_some_and(|v| v == *value), !hidden(*at));
            let expected = Some(*at).filter(|at| *at != 0 && !hidden(*at));
            assert_eq!(space.expires_at(key).unwrap(), expected);
        }
    }
}

fn run(seed: u64) {
    let mut run = Run::new(seed);
    for step in 0..250 {
        run.step();
        if step % 10 == 0 {
            run.check();
        }
    }
    // In the end nothing stays that expires.
    run.clock.advance(1 << 40);
    let now = run.now();
    run.model = Run::check_sweep(&run.db, &run.model, now);
    assert!(run.model.values().all(|(_, at)| *at == 0));
    run.check();
}

#[test]
fn what_expires_is_hidden_and_then_removed_wherever_it_goes() {
    for_each_seed("expiry", 60, run);
}

#[test]
fn a_database_sweeps_by_itself() {
    let db = Database::in_memory();
    let space = db.keyspace("all").unwrap();
    let soon = WriteOptions::new().ttl(Duration::from_millis(30));
    for n in 0..2_000_u32 {
        space.insert_with(n.to_be_bytes(), "soon", soon).unwrap();
    }
    space.insert("stays", "").unwrap();
    // The thread is woken by what comes first.
    let began = std::time::Instant::now();
    while db.stats().expired < 2_000 {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", db.stats().expired);
        std::thread::yield_now();
    }
    assert_eq!(space.len().unwrap(), 1);
}

/// What was removed because of its time is told apart in the log from what somebody removed.
#[test]
fn the_log_says_why() {
    let dir = std::env::temp_dir().join(format!("stillframe-expiry-{}", std::process::id()));
    let clock = SimClock::new(1_000);
    let db = Database::builder().clock(clock.clone()).open(&dir).unwrap();
    let space = db.keyspace("all").unwrap();
    space.insert_with("a", "1", WriteOptions::new().expire_at(2_000)).unwrap();
    space.insert("b", "2").unwrap();
    space.remove("b").unwrap();
    clock.set(3_000);
    assert_eq!(db.sweep_expired(), 1);
    db.close().unwrap();
    let mut found = Vec::new();
    let visit = |record: &stillframe::LogRecord<'_>| {
        if let LogRecordKind::Batch { effects, .. } = &record.kind {
            found.extend(effects.clone().filter_map(|effect| match effect {
                LogEffect::Remove { key, .. } => Some(("removed", key.to_vec())),
                LogEffect::Expire { key, .. } => Some(("expired", key.to_vec())),
                _ => None,
            }));
        }
        std::ops::ControlFlow::Continue(())
    };
    LogReader::open(&dir).unwrap().each(visit).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(found, [("removed", b"b".to_vec()), ("expired", b"a".to_vec())]);
}
