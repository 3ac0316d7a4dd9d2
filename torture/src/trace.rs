//! A run of operations of every kind on a database in a directory of a simulated disk, from a seed, and what it
//! promised: the state after each batch, and what had to be durable from when on.

use std::collections::BTreeMap;
use std::time::Duration;

use stillframe::simulation::{CallKind, DiskFault, Random, SimDisk};
use stillframe::{
    Builder, Database, Durability, Error, Keyspace, RecoveryMode, SaveOptions, Seq, WriteOptions,
};

pub(crate) const DIR: &str = "/db";

/// What a database holds: its last batch, and the sum over all entries.
pub(crate) type State = (Seq, u64);

/// Opens the directory, as every run here does: nothing happens but what is asked for.
pub(crate) fn builder(disk: &SimDisk) -> Builder {
    Database::builder().disk(disk.clone()).manual_log().manual_reclaim().segment_bytes(8 << 10)
}

/// What a database holds now.
pub(crate) fn state(db: &Database) -> Result<State, Error> {
    Ok((db.seq(), db.snapshot()?.fingerprint()))
}

/// A trace that is being made.
pub(crate) struct Trace {
    pub(crate) disk: SimDisk,
    random: Random,
    db: Option<(Database, Keyspace, Keyspace)>,
    /// The states that may be found: the sum by Seq.
    pub(crate) states: BTreeMap<Seq, u64>,
    /// After so many changes of the disk all up to this batch must be found.
    pub(crate) durable: Vec<(usize, Seq)>,
    /// Whether faults strike: then errors are no surprise.
    pub(crate) faulty: bool,
    /// Errors met, by what they say without the particulars.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Trace {
    pub(crate) fn new(seed: u64, disk: SimDisk) -> Self {
        Self {
            disk,
            random: Random::new(seed),
            db: None,
            states: BTreeMap::from([(Seq(0), 0)]),
            durable: Vec::new(),
            faulty: false,
            errors: BTreeMap::new(),
        }
    }

    /// Does `count` operations.
    ///
    /// # Panics
    /// If something that was promised isn't so.
    pub(crate) fn run(&mut self, count: usize) {
        for number in 0..count {
            if let Err(error) = self.step(number) {
                assert!(self.faulty, "operation {number}: {error}");
                let name = format!("{error:?}");
                let name = name.split(['{', '(']).next().unwrap_or_default().trim().to_owned();
                *self.errors.entry(name).or_default() += 1;
                self.after(error);
            }
        }
    }

    fn open(&mut self) -> Result<&(Database, Keyspace, Keyspace), Error> {
        if self.db.is_none() {
            let level = match self.random.below(4) {
                0 => Durability::Memory,
                1 => Durability::Os,
                2 => Durability::Periodic(Duration::from_secs(1)),
                _ => Durability::Sync,
            };
            let db = builder(&self.disk).durability(level).open(DIR)?;
            let found = state(&db)?;
            // What was found is durable from now on.
            assert_eq!(self.states.get(&found.0), Some(&found.1), "found {}", found.0);
            self.durable.push((self.disk.change_count(), found.0));
            let before = found;
            let one = db.keyspace("one");
            self.note(&db, before)?;
            let before = state(&db)?;
            let two = db.keyspace("two");
            self.note(&db, before)?;
            self.db = Some((db, one?, two?));
        }
        Ok(self.db.as_ref().expect("just opened"))
    }

    /// Notes the states since `before`: each batch may be the first of a run, behind the record of its history.
    fn note(&mut self, db: &Database, before: State) -> Result<(), Error> {
        let after = state(db)?;
        for seq in before.0.0 + 1..after.0.0 {
            self.states.entry(Seq(seq)).or_insert(before.1);
        }
        self.states.insert(after.0, after.1);
        Ok(())
    }

    fn step(&mut self, number: usize) -> Result<(), Error> {
        self.open()?;
        let (db, one, two) = self.db.clone().expect("it is open");
        let before = state(&db)?;
        let key = self.random.below(30).to_be_bytes();
        let long = match self.random.below(8) {
            0 => 700,
            1 => 5_000,
            _ => 8,
        };
        let value = vec![number as u8; long];
        let mut acknowledged = None;
        let done = match self.random.below(32) {
            0..8 => one.insert(key, value),
            8..11 => one.remove(key).map(drop),
            11..13 => two.insert(key, value),
            13..15 => one.delete_range(key..self.random.below(30).to_be_bytes()).map(drop),
            15..18 => {
                let mut batch = db.batch();
                batch.delete_range(&two, key..);
                batch.insert(&one, key, &value);
                batch.insert(&two, key, &value);
                batch.commit().map(drop)
            }
            18..21 => {
                let options = WriteOptions::new().durability(Durability::Os);
                one.insert_with(key, value, options)
            }
            21..24 => {
                let options = WriteOptions::new().durability(Durability::Sync);
                let done = one.insert_with(key, value, options);
                acknowledged = done.is_ok().then(|| db.seq());
                done
            }
            24 => db.persist(Durability::Sync).map(|seq| acknowledged = Some(seq)),
            25 => db.persist(Durability::Os).map(drop),
            26 => {
                let saved = db.compact_log(SaveOptions::default().threads(1));
                saved.map(|report| acknowledged = Some(report.position.seq))
            }
            27 => one.pop_first().map(drop),
            28 if !self.faulty => {
                // A sync that fails, as once in a while one does.
                self.disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::SyncData));
                let options = WriteOptions::new().durability(Durability::Sync);
                let failed = one.insert_with(key, value, options);
                self.disk.clear_faults();
                self.note(&db, before)?;
                match failed {
                    Err(Error::NotDurable { .. } | Error::LogFailed(_)) => {}
                    other => panic!("a sync failed, and the write said {other:?}"),
                }
                assert!(matches!(one.insert(key, "x"), Err(Error::LogFailed(_))));
                db.recover().map(|report| acknowledged = Some(report.position.seq))
            }
            29 => {
                self.db = None;
                let done = db.close();
                acknowledged = done.is_ok().then(|| db.seq());
                done
            }
            30 => {
                // Not closed: dropped, which does the same and tells nobody.
                self.db = None;
                Ok(())
            }
            _ => one.insert_new(key, value).map(drop),
        };
        self.note(&db, before)?;
        self.durable.extend(acknowledged.map(|seq| (self.disk.change_count(), seq)));
        done
    }

    /// What a user would do after an error: begin the log anew, or open again.
    fn after(&mut self, error: Error) {
        let Some((db, ..)) = self.db.clone() else { return };
        if !matches!(error, Error::NotDurable { .. } | Error::LogFailed(_)) {
            return;
        }
        // Reads go on, and writes are refused.
        let before = state(&db).expect("reads go on");
        let (_, one, _) = self.db.as_ref().expect("it is open");
        let refused = one.insert("refused", "x");
        assert!(
            matches!(refused, Err(Error::LogFailed(_))),
            "a failed log took a write: {refused:?}"
        );
        assert_eq!(state(&db).expect("reads go on"), before, "a refused write changed something");
        match db.recover() {
            Ok(report) => self.durable.push((self.disk.change_count(), report.position.seq)),
            Err(_) => self.db = None,
        }
    }

    /// Ends the run without a word to the disk: the process is killed.
    pub(crate) fn kill(mut self) -> Self {
        // What its destructor writes goes to another disk.
        self.disk = self.disk.fork();
        self.db = None;
        self
    }

    /// From how many changes on which batch must be found.
    pub(crate) fn durable_at(&self, changes: usize) -> Seq {
        let until = self.durable.iter().filter(|(at, _)| *at <= changes);
        until.map(|(_, seq)| *seq).max().unwrap_or_default()
    }
}

/// Opens the directory on `disk` and says what is there, and that it is there again when it is opened once more, by
/// someone who takes no torn end.
///
/// # Errors
/// What is wrong.
pub(crate) fn recover(disk: &SimDisk, twice: bool) -> Result<State, String> {
    let db = builder(disk).open(DIR).map_err(|error| format!("it does not open: {error}"))?;
    let found = state(&db).map_err(|error| error.to_string())?;
    if !twice {
        return Ok(found);
    }
    let left = disk.fork();
    drop(db);
    let again = builder(&left).recovery(RecoveryMode::Strict).open(DIR);
    let again = again.map_err(|error| format!("it does not open a second time: {error}"))?;
    let second = state(&again).map_err(|error| error.to_string())?;
    if second != found {
        return Err(format!("found {found:?}, then {second:?}"));
    }
    Ok(found)
}
