//! `stillframe demo`: the engine's main job on real input, measured.
//!
//! Load, write from one thread, take a still, save it while the writer goes on, open the file in
//! place and loaded, compare fingerprints; then the same with a replica in another process. [`report`] says how each figure is measured; that is
//! part of what the output promises. Everything is made in one temporary directory, which goes
//! with the command, failed and interrupted ones included.

mod histogram;
mod made;
mod memory;
mod place;
mod random;
mod replica;
mod report;
mod sources;
mod writer;

use std::hint;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use stillframe::{Database, Keyspace, SaveOptions, SaveReport, SnapshotFile};

use crate::{Answer, EXIT_CODES, interrupt, save, ui};
use made::Made;
use memory::PeakSampler;
use replica::Replicated;
use report::Report;
use sources::Sources;
use writer::{Phase, Workload, Writer};

/// The keyspace that everything happens in.
const KEYSPACE: &str = "demo";
/// How long the writer runs before anything is recorded: caches, branch predictors and clock rates settle.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long it is recorded with nothing else going on.
const IDLE: Duration = Duration::from_secs(3);
/// How many cuts are timed.
const CUTS: usize = 1_000;
/// Between two cuts; spun away, since a thread that sleeps would measure its own waking up.
const BETWEEN_CUTS: Duration = Duration::from_micros(200);
/// How long dropped cuts may take to leave nothing behind, before the demo goes on all the same.
const SETTLE: Duration = Duration::from_secs(2);

/// Load real data, save it while a writer runs at full speed, replicate it to another process, and measure all of it
///
/// Reads every file below PATH, or makes records with --keys. Writes only to a temporary directory,
/// and removes that again.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Demo {
    /// Import every file below this directory [default: the first GiB of the sources of the crates that
    /// cargo has downloaded, or this repository]
    path: Option<PathBuf>,
    /// Make this many records instead: 16-byte keys, JSON values of about 110 bytes, in random order
    #[arg(long, value_name = "COUNT", conflicts_with = "path")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=made::MAX_COUNT))]
    keys: Option<u64>,
    /// Put the temporary directory here [default: where there is room on a real disk]
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

/// Where the records come from, and how the writer overwrites them.
enum Records {
    Made(Made),
    Sources(Sources),
}

/// What was loaded and what it took.
struct Loaded {
    records: u64,
    raw_bytes: u64,
    /// Growth of the resident set; none where the platform doesn't tell.
    memory_bytes: Option<u64>,
    /// The library's own account of the same.
    account_bytes: u64,
}

/// What was measured while the writer ran.
struct Watched {
    cuts: Cuts,
    saved: SaveReport,
    extra_memory_bytes: Option<u64>,
    /// The library's own account of what it kept for the still, at its peak.
    extra_account_bytes: u64,
}

/// What one cut takes.
struct Cuts {
    median: Duration,
    p99: Duration,
}

/// What was measured on the file that was saved beside the writer.
struct Reopened {
    open_in_place: Duration,
    load: Duration,
    fingerprints_equal: bool,
}

impl Demo {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let records = match self.keys {
            Some(count) => Records::Made(Made::new(count)),
            None => Records::Sources(Sources::find(self.path.as_deref())?),
        };
        let report = measure(records, self.dir)?;
        if json {
            ui::print_json(&report)?;
        } else {
            report.print()?;
        }
        Ok(if report.all_equal() { Answer::Yes } else { Answer::No })
    }
}

impl Records {
    fn describe(&self) -> String {
        match self {
            Records::Made(made) => made.describe(),
            Records::Sources(sources) => sources.describe(),
        }
    }

    /// Inserts everything and measures what that took.
    fn load(&self, database: &Database, keyspace: &Keyspace) -> anyhow::Result<Loaded> {
        let (records, raw_bytes, before) = match self {
            Records::Made(made) => made.load(keyspace),
            Records::Sources(sources) => sources.load(keyspace),
        }?;
        let memory_bytes = memory::growth_since(before);
        let stats = database.stats();
        let account_bytes = stats.live_bytes + stats.directory_bytes;
        Ok(Loaded { records, raw_bytes, memory_bytes, account_bytes })
    }

    /// What the writer will overwrite and by what, made now.
    fn workload(self, keyspace: &Keyspace) -> anyhow::Result<Workload> {
        match self {
            Records::Made(made) => Ok(Workload::Made(made.overwrites())),
            Records::Sources(_) => Ok(Workload::Sources(sources::Overwrites::of(keyspace)?)),
        }
    }
}

/// The whole demo; what it made is gone when it returns, whatever it returns.
fn measure(records: Records, dir: Option<PathBuf>) -> anyhow::Result<Report> {
    let source = records.describe();
    let database = Database::in_memory();
    let keyspace = database.keyspace(KEYSPACE)?;
    let loaded = records.load(&database, &keyspace)?;
    ensure!(loaded.records > 0, "no file to import below {source}");
    interrupt::install()?; // up to here there is nothing to clean up
    let directory = place::directory(dir, loaded.raw_bytes)?;
    let workload = records.workload(&keyspace)?;

    let beside = directory.path().join("beside.still");
    let (watched, recorded) =
        writer::run(&keyspace, &workload, |writer| watch(&database, writer, &beside))?;
    let saved_idle = save_idle(&database, &directory.path().join("idle.still"))?;
    let reopened = reopen(&beside, &workload.any_key(), &watched)?;
    std::fs::remove_file(&beside).with_context(|| format!("removing {}", beside.display()))?;
    let replicated = replica::replicate(&database, &keyspace, &workload, directory.path())?;
    directory.close().context("removing the temporary directory")?;
    Ok(Report::new(source, &loaded, &watched, &recorded, &saved_idle, &reopened, &replicated))
}

/// Everything that is measured while the writer runs.
fn watch(database: &Database, writer: &Writer<'_>, path: &Path) -> anyhow::Result<Watched> {
    let running = ui::spinner("writing");
    sleep(WARM_UP)?;
    // Memory is sampled here as well, so that what sampling costs the writer is in both phases.
    let sampler = sample(database);
    writer.enter(Phase::Idle);
    sleep(IDLE)?;
    writer.enter(Phase::Unrecorded);
    sampler.stop();
    let cuts = time_cuts(database)?;
    settle(database)?;
    running.finish_and_clear();

    let sampler = sample(database);
    writer.enter(Phase::Saving);
    let saved = save::wait(database.save(path, SaveOptions::default())?)?;
    writer.enter(Phase::Unrecorded);
    let peak = sampler.stop();
    Ok(Watched {
        cuts,
        saved,
        extra_memory_bytes: peak.growth_bytes,
        extra_account_bytes: peak.account_bytes,
    })
}

/// Samples the resident set, and beside it what the library says that it keeps for stills.
fn sample(database: &Database) -> PeakSampler {
    let database = database.clone();
    PeakSampler::start(move || database.stats().retained_bytes)
}

/// Sleeps in slices, so that Ctrl-C is heard.
fn sleep(duration: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + duration;
    while Instant::now() < until {
        interrupt::check()?;
        thread::sleep(ui::TICK.min(until.saturating_duration_since(Instant::now())));
    }
    Ok(())
}

/// Takes and drops [`CUTS`] stills; only the taking is timed.
fn time_cuts(database: &Database) -> anyhow::Result<Cuts> {
    let mut times = Vec::with_capacity(CUTS);
    for _ in 0..CUTS {
        interrupt::check()?;
        let began = Instant::now();
        let still = database.snapshot()?;
        times.push(began.elapsed());
        drop(still);
        let next = Instant::now() + BETWEEN_CUTS;
        while Instant::now() < next {
            hint::spin_loop();
        }
    }
    times.sort_unstable();
    Ok(Cuts { median: times[CUTS / 2], p99: times[CUTS * 99 / 100] })
}

/// Waits until nothing is kept any more for the cuts that were dropped.
fn settle(database: &Database) -> anyhow::Result<()> {
    let until = Instant::now() + SETTLE;
    while database.stats().retained_bytes > 0 && Instant::now() < until {
        interrupt::check()?;
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Saves with every core while nobody writes; the file is gone afterwards.
fn save_idle(database: &Database, path: &Path) -> anyhow::Result<SaveReport> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let options = SaveOptions::default().threads(threads);
    let saved = save::wait(database.save(path, options)?)?;
    std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))?;
    Ok(saved)
}

/// Opens the saved file in place, then verifies it, then loads it.
fn reopen(path: &Path, key: &[u8], watched: &Watched) -> anyhow::Result<Reopened> {
    let began = Instant::now();
    let file = SnapshotFile::open(path)?;
    let value = file.keyspace(KEYSPACE)?.get(key)?;
    let open_in_place = began.elapsed();
    ensure!(value.is_some(), "a record is missing from the saved file");

    let verifying = ui::spinner("verifying");
    let verified = file.verify()?;
    verifying.finish_and_clear();
    interrupt::check()?;

    let loading = ui::spinner("loading");
    let began = Instant::now();
    let loaded = Database::load(path)?;
    let load = began.elapsed();
    loading.finish_and_clear();

    // The save compared its still's with what it wrote, or it would have failed.
    let fingerprints =
        [file.info().fingerprint, verified.fingerprint, loaded.snapshot()?.fingerprint()];
    let fingerprints_equal = fingerprints.iter().all(|&other| other == watched.saved.fingerprint);
    Ok(Reopened { open_in_place, load, fingerprints_equal })
}
