//! A primary and a replica with the proxy between them, used for one case after the other.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use stillframe::simulation::Random;
use stillframe::{
    AckLevel, Builder, Database, Durability, Keyspace, LinkKey, Primary, PrimaryOptions, Replica,
    ReplicaSource, ReplicaState, ReplicaStatus, SaveOptions, SyncCounts,
};
use tempfile::TempDir;

use super::proxy::{Fault, Place, Proxy};

/// What there is on both sides and between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) unix: bool,
    pub(crate) has_key: bool,
    pub(crate) on_disk: bool,
}

impl Setup {
    pub(crate) const ALL: [Setup; 8] = {
        let mut all = [Setup { unix: false, has_key: false, on_disk: false }; 8];
        let mut at = 0;
        while at < 8 {
            all[at] = Setup { unix: at & 1 != 0, has_key: at & 2 != 0, on_disk: at & 4 != 0 };
            at += 1;
        }
        all
    };

    pub(crate) fn name(self) -> String {
        let unix = if self.unix { "unix" } else { "tcp" };
        let key = if self.has_key { "key" } else { "no key" };
        let disk = if self.on_disk { "directories" } else { "memory" };
        format!("{unix}, {key}, {disk}")
    }
}

/// What is said between the two until the replica is where the primary is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// One batch was missed: hardly more than who one is.
    Handshake,
    /// The replica has nothing, the primary 8 KiB.
    Full,
    /// The log has gone, or is much longer than what has changed.
    Delta,
    /// 200 batches were missed.
    Records,
}

pub(crate) const SCENARIOS: [Scenario; 4] =
    [Scenario::Handshake, Scenario::Full, Scenario::Delta, Scenario::Records];

/// How often sides say that they are there, and how long they wait for that.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) beat: Duration,
    pub(crate) timeout: Duration,
}

/// Whatever happens, it is over by then.
pub(crate) const BOUND: Duration = Duration::from_secs(20);
const ENTRIES: u32 = 160;
const VALUE_LEN: usize = 40;

pub(crate) struct Pair {
    setup: Setup,
    pub(crate) db: Database,
    pub(crate) space: Keyspace,
    pub(crate) primary: Primary,
    pub(crate) proxy: Proxy,
    pub(crate) source: ReplicaSource,
    copy: Option<Database>,
    random: Random,
    cases: u64,
    dir: TempDir,
}

/// What came of a case.
pub(crate) struct Outcome {
    /// The fault came about.
    pub(crate) struck: bool,
    pub(crate) status: ReplicaStatus,
}

fn key(number: u32) -> [u8; 8] {
    u64::from(number).to_be_bytes()
}

impl Pair {
    pub(crate) fn new(setup: Setup, primary_pace: Pace, pace: Pace, seed: u64) -> Result<Self> {
        let dir = TempDir::new().context("make a temporary directory")?;
        let builder =
            builder().save_when_log_exceeds(None).keep_snapshots(1).segment_bytes(8 << 10);
        let db = match setup.on_disk {
            true => builder.open(dir.path().join("primary"))?,
            false => builder.in_memory()?,
        };
        let space = db.keyspace("data")?;
        let mut random = Random::new(seed);
        let mut batch = db.batch();
        for number in 0..ENTRIES {
            batch.insert(&space, key(number), value(&mut random));
        }
        batch.commit()?;
        let mut options = PrimaryOptions::new()
            .heartbeat(primary_pace.beat)
            .timeout(primary_pace.timeout)
            .encoding_threads(1)
            .block_bytes(1 << 10);
        if setup.has_key {
            options = options.key(shared_key());
        }
        let primary = db.serve_replicas(options)?;
        let place = if setup.unix {
            let path = dir.path().join("source");
            primary.listen_unix(&path)?;
            Place::Unix(path)
        } else {
            Place::Tcp(primary.listen_tcp("127.0.0.1:0")?)
        };
        let proxy = Proxy::new(place, &dir.path().join("proxy")).context("start the proxy")?;
        let source = match proxy.place() {
            Place::Tcp(address) => ReplicaSource::tcp(address.to_string()),
            Place::Unix(path) => ReplicaSource::unix(path),
        };
        let mut source = source.heartbeat(pace.beat).timeout(pace.timeout);
        if setup.has_key {
            source = source.key(shared_key());
        }
        let (copy, cases) = (None, 0);
        Ok(Self { setup, db, space, primary, proxy, source, copy, random, cases, dir })
    }

    /// A database for a replica that has nothing.
    pub(crate) fn fresh(&self, name: &str) -> Result<Database> {
        Ok(match self.setup.on_disk {
            true => builder().open(self.path(name))?,
            false => builder().in_memory()?,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The replica that is kept, which has all there was.
    fn copy(&mut self) -> Result<Database, String> {
        if let Some(copy) = &self.copy {
            return Ok(copy.clone());
        }
        let copy = self.fresh("copy").map_err(told)?;
        self.proxy.plan([], false);
        let replica = copy.follow(self.source.clone()).map_err(told)?;
        replica.wait_for(self.db.position(), BOUND).map_err(told)?;
        replica.stop();
        self.copy = Some(copy.clone());
        Ok(copy)
    }

    /// What the replica misses.
    fn write(&mut self, scenario: Scenario) -> stillframe::Result<()> {
        let mut some = |count: u32, below: u64| {
            for _ in 0..count {
                let number = self.random.below(below) as u32;
                self.space.insert(key(number), value(&mut self.random))?;
            }
            Ok(())
        };
        match scenario {
            Scenario::Full => Ok(()),
            Scenario::Handshake => some(1, ENTRIES.into()),
            Scenario::Records => some(200, ENTRIES.into()),
            Scenario::Delta => {
                some(30, u64::from(ENTRIES) / 3)?;
                // Some segments, of which all but the last go; or more than anybody sends in the place of a few leaves.
                let (len, times) = if self.setup.on_disk { (5 << 10, 3) } else { (60 << 10, 22) };
                for _ in 0..times {
                    self.space.insert("long", vec![7; len])?;
                }
                self.space.insert("long", [7; VALUE_LEN])?;
                if self.setup.on_disk {
                    self.db.compact_log(SaveOptions::default().threads(1))?;
                }
                Ok(())
            }
        }
    }

    /// One case: what the replica misses is written, it follows, the fault happens to its first connection.
    ///
    /// # Errors
    /// What is not as it must be.
    pub(crate) fn case(&mut self, scenario: Scenario, fault: Fault) -> Result<Outcome, String> {
        self.cases += 1;
        let copy = match scenario {
            Scenario::Full => self.fresh("fresh").map_err(told)?,
            _ => self.copy()?,
        };
        if scenario == Scenario::Delta {
            // For them the log would be kept.
            self.sessions_end()?;
        }
        self.write(scenario).map_err(told)?;
        self.proxy.plan([fault], false);
        let replica = copy.follow(self.source.clone()).map_err(told)?;
        let outcome = self.follow(scenario, fault, &replica);
        replica.stop();
        let outcome = outcome?;
        self.equal(&copy)?;
        if self.cases.is_multiple_of(64) {
            copy.check();
        }
        if scenario == Scenario::Full {
            drop((replica, copy));
            if self.setup.on_disk {
                std::fs::remove_dir_all(self.path("fresh")).map_err(told)?;
            }
        } else if self.cases.is_multiple_of(200) {
            drop((replica, copy));
            self.tidy_up()?;
        }
        Ok(outcome)
    }

    fn follow(
        &self,
        scenario: Scenario,
        fault: Fault,
        replica: &Replica,
    ) -> Result<Outcome, String> {
        let began = Instant::now();
        let at = self.db.position();
        let reached = replica.wait_for(at, BOUND);
        reached.map_err(|error| format!("{error}: {:?}, primary at {at}", replica.status()))?;
        // Whether it must be found out, and another link be made.
        let ends = match fault {
            Fault::None | Fault::OneByte => false,
            // Without a key the preface holds nothing that is proven.
            Fault::Flip { at, .. } => self.setup.has_key || at >= 64,
            Fault::Cut { .. } | Fault::Reset { .. } | Fault::Stall { .. } => true,
        };
        let reached = Instant::now();
        loop {
            let struck = self.proxy.has_struck();
            let status = replica.status();
            let is_well =
                status.state == ReplicaState::Streaming && (!struck || !ends || status.links > 1);
            // What was said may have been shorter this time: what is left comes with beats.
            let is_due = struck || matches!(fault, Fault::None | Fault::OneByte);
            if is_well && (is_due || reached.elapsed() > Duration::from_millis(300)) {
                check_counts(scenario, status.counts)?;
                return Ok(Outcome { struck, status });
            }
            if began.elapsed() > BOUND {
                return Err(format!("not found out, or no new link: {struck} {status:?}"));
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn equal(&self, copy: &Database) -> Result<(), String> {
        let of = |db: &Database| -> stillframe::Result<_> {
            let still = db.snapshot()?;
            Ok((db.position(), still.fingerprint(), still.keyspace("data")?.len()?))
        };
        let (ours, theirs) = (of(&self.db).map_err(told)?, of(copy).map_err(told)?);
        if ours != theirs {
            return Err(format!("primary {ours:?}, replica {theirs:?}"));
        }
        let expected =
            u64::from(ENTRIES) + u64::from(self.space.contains_key("long").map_err(told)?);
        if ours.2 != expected {
            return Err(format!("the primary has {} entries of {expected}", ours.2));
        }
        Ok(())
    }

    fn sessions_end(&self) -> Result<(), String> {
        let began = Instant::now();
        self.proxy.plan([], false);
        while !self.primary.replicas().is_empty() {
            if began.elapsed() > BOUND {
                return Err(format!("sessions do not end: {:?}", self.primary.replicas()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Sessions end; a directory holds what was there, and opens again; its log is made short.
    pub(crate) fn tidy_up(&mut self) -> Result<(), String> {
        self.sessions_end()?;
        let Some(copy) = self.copy.take().filter(|_| self.setup.on_disk) else { return Ok(()) };
        copy.compact_log(SaveOptions::default().threads(1)).map_err(told)?;
        copy.close().map_err(told)?;
        drop(copy);
        let copy = builder().open(self.path("copy")).map_err(told)?;
        self.equal(&copy).map_err(|what| format!("opened again: {what}"))?;
        copy.check();
        // What it lacks from now on it misses as usual.
        self.copy = Some(copy);
        Ok(())
    }

    /// What passes either way until the replica is where the primary is and has said so.
    pub(crate) fn record(&mut self, scenario: Scenario) -> Result<[Vec<u8>; 2], String> {
        let copy = match scenario {
            Scenario::Full => self.fresh("recorded").map_err(told)?,
            _ => self.copy()?,
        };
        // Those before have said that they are there as well.
        self.sessions_end()?;
        self.write(scenario).map_err(told)?;
        self.proxy.plan([], true);
        let replica = copy.follow(self.source.clone()).map_err(told)?;
        let at = self.db.position();
        self.primary.wait(at, 1, AckLevel::Applied, BOUND).map_err(told)?;
        let bytes = self.proxy.bytes();
        check_counts(scenario, replica.status().counts)?;
        replica.stop();
        Ok(bytes)
    }

    /// Where frames begin in what passed: those bytes, and the ones beside them.
    pub(crate) fn boundaries(&self, bytes: &[u8]) -> Vec<usize> {
        let proof_len = if self.setup.has_key { 32 } else { 0 };
        let tag_len = if self.setup.has_key { 16 } else { 4 };
        let mut at = 64 + proof_len;
        let mut all = vec![0, 64, at];
        while let Some(header) = bytes.get(at..at + 4).and_then(|len| len.try_into().ok()) {
            all.push(at + 8);
            at += 8 + u32::from_le_bytes(header) as usize + tag_len;
            all.extend([at - tag_len, at]);
        }
        let beside = all.iter().flat_map(|at| [at.saturating_sub(1), *at, at + 1]);
        let mut beside: Vec<usize> = beside.filter(|at| *at < bytes.len()).collect();
        beside.sort_unstable();
        beside.dedup();
        beside
    }
}

/// A replica that has the data never gets it all; none ever loses what it wrote, since it wrote nothing.
fn check_counts(scenario: Scenario, counts: SyncCounts) -> Result<(), String> {
    let SyncCounts { partial, delta, rewind, full, repair, .. } = counts;
    let is_right = rewind + repair == 0
        && match scenario {
            Scenario::Full => full == 1 && delta == 0,
            Scenario::Delta => full == 0 && delta >= 1,
            Scenario::Handshake | Scenario::Records => full == 0 && delta == 0 && partial >= 1,
        };
    is_right.then_some(()).ok_or_else(|| format!("caught up in the wrong way: {counts:?}"))
}

pub(crate) fn builder() -> Builder {
    Database::builder().leaf_entries(8).durability(Durability::Memory)
}

fn shared_key() -> LinkKey {
    LinkKey::new([5; 32])
}

/// Nothing that compresses: so that lengths are the same every time.
fn value(random: &mut Random) -> [u8; VALUE_LEN] {
    let mut value = [0; VALUE_LEN];
    random.fill(&mut value);
    value
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
