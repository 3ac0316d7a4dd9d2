//! The process that is killed: writers at full rate, saves all the time, and a word of each operation before it begins and
//! after it is acknowledged.
//!
//! What operation `n` of a writer does follows from seed, writer and `n`: the campaign knows it without being told.
//! Each leaves its number in an entry of the writer's own, so that the highest number found says how far the writer came.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use nix::sys::signal::{Signal, raise};
use stillframe::simulation::Random;
use stillframe::{Builder, Database, Durability, Keyspace, SaveOptions, WriteOptions};

use super::progress::{Told, WRITERS, WRITING};

/// Options of the process; it is started by `kill` alone.
#[derive(Args)]
pub(crate) struct Part {
    directory: PathBuf,
    progress: PathBuf,
    seed: u64,
    /// Whose system calls and steps the parent follows.
    #[arg(long)]
    traced: bool,
    /// One writer, no thread of the database's own: does so many operations and tells by a signal where the last one begins and
    /// ends.
    #[arg(long)]
    steps: Option<u64>,
}

/// The exit code of a process that may not be traced here.
pub(crate) const NOT_TRACED: i32 = 77;
/// Who is not killed ends by itself.
const MAX_TIME: Duration = Duration::from_secs(60);
/// Keys of a writer in each keyspace, and the one that counts.
const KEYS: u64 = 48;
const COUNTER: u8 = 255;
pub(crate) const ONE: &str = "one";
pub(crate) const TWO: &str = "two";
pub(crate) const SHARED: &str = "shared";

/// Opens a directory as all here do: small segments, so that they follow one another all the time, and how small the seed says.
pub(crate) fn builder(seed: u64) -> Builder {
    let bytes = [24 << 10, 96 << 10, 512 << 10][(seed % 3) as usize];
    Database::builder().segment_bytes(bytes).durability(Durability::Os)
}

/// What one operation does.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) level: Durability,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// Puts one key.
    Put { key: u8 },
    /// Puts the counter and one key in both keyspaces, and removes others.
    Batch { pair: u8, remove: Option<u8>, range: Option<(u8, u8)>, shared: bool },
}

fn random(seed: u64, writer: usize, n: u64) -> Random {
    let mixed = (writer as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ n.rotate_left(24);
    Random::new(seed ^ mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93))
}

impl Operation {
    pub(crate) fn of(seed: u64, writer: usize, n: u64) -> Self {
        let mut random = random(seed, writer, n);
        // With an odd number above the seed two of them wait for the disk, and meet in one sync.
        let second = match seed >> 32 & 1 {
            0 => Durability::Periodic(Duration::from_millis(5)),
            _ => Durability::Sync,
        };
        let levels = [Durability::Os, second, Durability::Sync, Durability::Memory];
        // Each writer has a level that it mostly writes at.
        let level = match random.below(8) {
            0 => levels[random.below(4) as usize],
            _ => levels[writer % 4],
        };
        let key = random.below(KEYS) as u8;
        let kind = match random.below(8) {
            0..4 => Kind::Put { key },
            4 => Kind::Put { key: COUNTER },
            _ => {
                let remove = random.one_in(2).then(|| random.below(KEYS) as u8);
                let low = random.below(KEYS) as u8;
                let range = random.one_in(4).then_some((low, low + 4));
                Kind::Batch { pair: key, remove, range, shared: random.one_in(8) }
            }
        };
        Self { level, kind }
    }
}

/// A key of a writer.
pub(crate) fn key(writer: usize, key: u8) -> [u8; 2] {
    [writer as u8, key]
}

/// The value that operation `n` gives to all it puts.
pub(crate) fn value(seed: u64, writer: usize, n: u64) -> Vec<u8> {
    let mut random = random(!seed, writer, n);
    let more = match random.below(256) {
        // Longer than a segment.
        0 => 30_000,
        // Not copied into the tail.
        1..4 => 5_000,
        4..32 => random.below(1_500),
        _ => random.below(120),
    };
    let mut value = vec![0; 16 + more as usize];
    random.fill(&mut value[16..]);
    value[..8].copy_from_slice(&(writer as u64).to_le_bytes());
    value[8..16].copy_from_slice(&n.to_le_bytes());
    value
}

/// Writer and number that a value names.
pub(crate) fn named(value: &[u8]) -> Option<(usize, u64)> {
    let writer = u64::from_le_bytes(*value.first_chunk()?);
    let n = u64::from_le_bytes(*value.get(8..)?.first_chunk()?);
    Some((usize::try_from(writer).ok().filter(|writer| *writer < WRITERS)?, n))
}

struct Writer {
    db: Database,
    one: Keyspace,
    two: Keyspace,
    shared: Keyspace,
    seed: u64,
    writer: usize,
    told: Arc<Told>,
}

impl Writer {
    fn new(db: &Database, seed: u64, writer: usize, told: &Arc<Told>) -> Result<Self> {
        let (one, two) = (db.keyspace(ONE)?, db.keyspace(TWO)?);
        let (shared, told) = (db.keyspace(SHARED)?, Arc::clone(told));
        Ok(Self { db: db.clone(), one, two, shared, seed, writer, told })
    }

    fn step(&self, n: u64) -> Result<()> {
        let operation = Operation::of(self.seed, self.writer, n);
        self.write(n, &operation, &value(self.seed, self.writer, n))
    }

    fn write(&self, n: u64, operation: &Operation, value: &[u8]) -> Result<()> {
        let Self { db, one, two, shared, writer, told, .. } = self;
        told.begins(*writer, n, db.seq().0);
        let seq = match operation.kind {
            Kind::Put { key: k } => {
                let options = WriteOptions::new().durability(operation.level);
                one.insert_with(key(*writer, k), value, options)?;
                None
            }
            Kind::Batch { pair, remove, range, shared: is_shared } => {
                let mut batch = db.batch();
                batch.durability(operation.level);
                if let Some(remove) = remove {
                    batch.remove(one, key(*writer, remove));
                }
                if let Some((low, high)) = range {
                    batch.delete_range(two, key(*writer, low)..key(*writer, high));
                }
                batch.insert(one, key(*writer, COUNTER), value);
                batch.insert(one, key(*writer, pair), value);
                batch.insert(two, key(*writer, pair), value);
                if is_shared {
                    batch.insert(shared, "last", value);
                }
                Some(batch.commit()?.seq.0)
            }
        };
        told.acknowledged(*writer, n, seq.unwrap_or_else(|| db.seq().0), seq.is_some());
        Ok(())
    }
}

/// What operation `n` puts and removes among the keys of its writer, the removals first.
pub(crate) fn effects(
    kind: &Kind,
    mut put: impl FnMut(&str, u8),
    mut remove: impl FnMut(&str, u8, u8),
) {
    match *kind {
        Kind::Put { key } => put(ONE, key),
        Kind::Batch { pair, remove: removed, range, .. } => {
            if let Some(key) = removed {
                remove(ONE, key, key + 1);
            }
            if let Some((low, high)) = range {
                remove(TWO, low, high);
            }
            put(ONE, COUNTER);
            put(ONE, pair);
            put(TWO, pair);
        }
    }
}

impl Part {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        // Whoever started this is not there to end it: then nobody else will.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        if self.traced {
            if nix::sys::ptrace::traceme().is_err() {
                return Ok(ExitCode::from(NOT_TRACED as u8));
            }
            raise(Signal::SIGSTOP)?;
        }
        thread::spawn(|| {
            thread::sleep(MAX_TIME);
            std::process::exit(4);
        });
        let told = Arc::new(Told::open(&self.progress)?);
        if let Some(count) = self.steps {
            return self.step_by_step(&told, count);
        }
        let db = builder(self.seed).open(&self.directory)?;
        thread::scope(|scope| {
            for number in 0..WRITERS {
                let writer = Writer::new(&db, self.seed, number, &told)?;
                scope.spawn(move || {
                    for n in writer.told.first(number).. {
                        if let Err(error) = writer.step(n) {
                            eprintln!("writer {number}, operation {n}: {error}");
                            std::process::exit(3);
                        }
                    }
                });
            }
            told.state(WRITING);
            let mut random = Random::new(self.seed);
            loop {
                let seq = match random.below(4) {
                    0 => db.persist(Durability::Sync)?,
                    _ => db.compact_log(SaveOptions::default())?.position.seq,
                };
                told.saved(seq.0);
                thread::sleep(Duration::from_micros(random.below(4_000)));
            }
        })
    }

    /// One writer, which tells where its last operation begins and ends.
    fn step_by_step(&self, told: &Arc<Told>, count: u64) -> Result<ExitCode> {
        let db = builder(self.seed).manual_log().manual_reclaim().open(&self.directory)?;
        let writer = Writer::new(&db, self.seed, 0, told)?;
        told.state(WRITING);
        for n in 1..count {
            writer.step(n)?;
        }
        let operation = Operation::of(self.seed, 0, count);
        let value = value(self.seed, 0, count);
        raise(Signal::SIGUSR1)?;
        writer.write(count, &operation, &value)?;
        raise(Signal::SIGUSR2)?;
        bail!("nobody killed it")
    }
}
