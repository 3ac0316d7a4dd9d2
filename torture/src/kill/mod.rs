//! A process that writes at full rate to the real disk, and is killed: at any time, at each system call, between the instructions of an
//! append; and the power cut, on a file system of its own over a device that forgets what was not flushed.
//!
//! Oracle: `oracle.rs`. Each run goes on in the directory that the one before left behind, now and then in a new one.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use rustix::thread::CpuSet;
use serde_json::json;
use stillframe::Durability;
use stillframe::simulation::Random;

mod device;
mod oracle;
mod power;
mod progress;
mod tracer;
mod writer;

pub(crate) use writer::Part;

use oracle::{End, PATIENCE, State};
use progress::Progress;
use tracer::{AIMED, Followed, Stepped, Target};
use writer::{Kind, Operation};

#[derive(Args)]
pub(crate) struct Options {
    /// How many kills, a third of each kind; without it, as many as 12 seconds allow
    #[arg(long, value_name = "N")]
    kills: Option<u64>,
    /// How many power cuts; without it and `--kills`, as many as 5 seconds allow
    #[arg(long, value_name = "N")]
    power_cuts: Option<u64>,
    /// Kills after each instruction of the appends, however many there are
    #[arg(long)]
    every_step: bool,
    /// Only this kind; may be said more than once
    #[arg(long, value_name = "KIND")]
    only: Vec<Way>,
    /// One object on stdout, and nothing else there
    #[arg(long)]
    json: bool,
    /// Keeps nothing of what is not as it must be
    #[arg(long)]
    discard: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where directories are made; without it, in the system's folder for temporary files
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// How a run is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Way {
    /// Killed at a random time
    Times,
    /// Killed at a system call
    Calls,
    /// Killed between two instructions of an append
    Steps,
    /// The power is cut
    Power,
}

/// Set by Ctrl-C: campaigns end, and clean up.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// How much of a campaign there is to do.
#[derive(Debug, Clone, Copy)]
struct Amount {
    count: u64,
    until: Option<Instant>,
}

impl Amount {
    fn is_over(&self, done: u64) -> bool {
        let is_late = self.until.is_some_and(|until| Instant::now() >= until);
        done >= self.count || is_late || is_interrupted()
    }
}

/// What was done and found.
#[derive(Default)]
struct Report {
    kills: BTreeMap<&'static str, u64>,
    /// Kills at each system call, before it and after it.
    calls: BTreeMap<&'static str, (u64, u64)>,
    /// Of each kind of append.
    steps: BTreeMap<&'static str, Steps>,
    cuts: u64,
    images: u64,
    power: BTreeMap<&'static str, u64>,
    operations: u64,
    skipped: BTreeMap<&'static str, String>,
    violations: Vec<String>,
}

/// How an append was killed.
struct Steps {
    /// Instructions that it takes.
    all: u64,
    /// After so many different ones it was killed.
    hit: u64,
    /// Those that change a byte of the log.
    changing: u64,
    changing_hit: u64,
}

/// No campaign goes on after so many.
const MOST_VIOLATIONS: usize = 10;

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let began = Instant::now();
    // Before any thread is started: they and the processes inherit it.
    let mut interrupts = SigSet::empty();
    interrupts.add(Signal::SIGINT);
    interrupts.add(Signal::SIGTERM);
    interrupts.thread_block()?;
    thread::spawn(move || {
        if interrupts.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    let folder = match &options.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
            tempfile::Builder::new().prefix("kill-").tempdir_in(dir)
        }
        None => tempfile::Builder::new().prefix("stillframe-kill-").tempdir(),
    };
    let folder = folder.context("a place for directories")?;
    let mut report = Report::default();
    let is_wanted = |way| options.only.is_empty() || options.only.contains(&way);
    let ways: Vec<Way> =
        [Way::Times, Way::Calls, Way::Steps].into_iter().filter(|way| is_wanted(*way)).collect();
    let kinds = ways.len() as u64;
    for (at, way) in ways.into_iter().enumerate() {
        let amount = match options.kills {
            Some(kills) => Amount {
                count: kills / kinds + u64::from((at as u64) < kills % kinds),
                until: None,
            },
            None => {
                let until = Instant::now() + Duration::from_secs(12) / kinds as u32;
                Amount { count: u64::MAX, until: Some(until) }
            }
        };
        let campaign = Campaign { folder: folder.path(), seed: options.seed, amount };
        match way {
            Way::Times => campaign.times(&mut report)?,
            Way::Calls => campaign.calls(&mut report)?,
            _ => campaign.steps(&mut report, options.every_step)?,
        }
    }
    if is_wanted(Way::Power) {
        let amount = match (options.power_cuts, options.kills) {
            (Some(count), _) => Amount { count, until: None },
            (None, Some(_)) if options.only.is_empty() => Amount { count: 0, until: None },
            (None, _) => {
                let until = Instant::now() + Duration::from_secs(5);
                Amount { count: u64::MAX, until: Some(until) }
            }
        };
        if amount.count > 0 {
            power::run(folder.path(), options.seed, amount, &mut report)?;
        }
    }
    if !report.violations.is_empty() && !options.discard {
        // To be looked at.
        let kept = folder.keep();
        report.violations.push(format!("the directories are in {}", kept.display()));
    }
    print(options, &report, began.elapsed().as_secs_f64());
    Ok(if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(options: &Options, report: &Report, seconds: f64) {
    let kills: u64 = report.kills.values().sum();
    if options.json {
        let calls: BTreeMap<_, _> = report
            .calls
            .iter()
            .map(|(call, (before, after))| (call, json!({ "before": before, "after": after })))
            .collect();
        let steps: BTreeMap<_, _> = report
            .steps
            .iter()
            .map(|(what, steps)| {
                let Steps { all, hit, changing, changing_hit } = steps;
                let counts = json!({
                    "instructions": all, "killed_after": hit,
                    "changing": changing, "killed_after_changing": changing_hit,
                });
                (what, counts)
            })
            .collect();
        println!(
            "{}",
            json!({
                "kills": kills, "by_kind": report.kills, "calls": calls, "steps": steps,
                "power_cuts": report.cuts, "images": report.images, "power": report.power,
                "operations": report.operations, "skipped": report.skipped,
                "violations": report.violations.len(), "found": report.violations,
                "seed": options.seed, "seconds": seconds,
            })
        );
        return;
    }
    println!(
        "{kills} kills {:?}, {} power cuts, seed {}, in {seconds:.0} s: {} operations found again, {} violations",
        report.kills,
        report.cuts,
        options.seed,
        report.operations,
        report.violations.len()
    );
    let calls =
        report.calls.iter().map(|(call, (before, after))| format!("{call} {before}+{after}"));
    println!("killed before + after: {}", calls.collect::<Vec<_>>().join(", "));
    for (what, Steps { all, hit, changing, changing_hit }) in &report.steps {
        println!(
            "append of {what}: killed after {hit} of {all} instructions, {changing_hit} of the {changing} that change the log"
        );
    }
    if report.cuts > 0 {
        println!("{} disks after a power cut: {:?}", report.images, report.power);
    }
    for (what, why) in &report.skipped {
        println!("skipped: {what}: {why}");
    }
    if !report.violations.is_empty() {
        println!("violations:");
        report.violations.iter().for_each(|violation| println!("{violation}"));
    }
}

/// A directory in use, what is known to be in it, and what its writers tell.
struct Place {
    directory: PathBuf,
    progress: PathBuf,
    seed: u64,
    state: State,
    runs: u64,
}

struct Campaign<'a> {
    folder: &'a Path,
    seed: u64,
    amount: Amount,
}

impl Campaign<'_> {
    /// One that is empty.
    fn place(&self, kind: &str, number: u64) -> Place {
        Place {
            directory: self.folder.join(format!("{kind}-{number}")),
            progress: self.folder.join(format!("{kind}-{number}.progress")),
            seed: self.seed.wrapping_add(number << 32),
            state: State::default(),
            runs: 0,
        }
    }

    fn times(&self, report: &mut Report) -> Result<()> {
        let mut random = Random::new(self.seed);
        let mut number = 0;
        let mut place = self.place("times", 0);
        let mut kills = 0;
        while !self.amount.is_over(kills) && report.violations.len() < MOST_VIOLATIONS {
            let mut child = place.command(&[])?.spawn().context("starting the writer")?;
            // One in four is killed while it starts: recovery is cut as well.
            if random.one_in(4) {
                thread::sleep(Duration::from_micros(random.below(20_000)));
            } else {
                let began = Instant::now();
                while began.elapsed() < PATIENCE
                    && child.try_wait()?.is_none()
                    && !Progress::read(&place.progress)?.is_writing()
                {
                    thread::sleep(Duration::from_micros(500));
                }
                let most = if random.one_in(4) { 150_000 } else { 20_000 };
                thread::sleep(Duration::from_micros(random.below(most)));
            }
            if let Some(status) = child.try_wait()? {
                report.violations.push(format!("times: run {kills}: the writer ended: {status}"));
            } else {
                child.kill()?;
                child.wait()?;
            }
            kills += 1;
            let run = format!("times, kill {kills}");
            let is_sound = place.check(&mut random, report, &run);
            if !is_sound || place.runs >= 20 {
                number += 1;
                place.leave(is_sound)?;
                place = self.place("times", number);
            }
        }
        report.kills.insert("times", kills);
        place.leave(true)
    }

    fn calls(&self, report: &mut Report) -> Result<()> {
        let mut random = Random::new(self.seed ^ 1);
        let mut seen = BTreeMap::new();
        let (mut kills, mut number, mut growing) = (0, 0, 0);
        let mut place = self.place("calls", 0);
        while !self.amount.is_over(kills) && report.violations.len() < MOST_VIOLATIONS {
            let target = match kills % 4 {
                // From the first on, as the process starts and recovers what the last one left.
                0 | 2 => {
                    growing += 1;
                    Target::File(growing)
                }
                1 => Target::Any(1 + random.below(4_000)),
                _ => {
                    let call = AIMED[(kills / 4) as usize % AIMED.len()];
                    let most = seen.get(call).copied().unwrap_or(2_u64).min(400);
                    Target::Call(call, 1 + random.below(most))
                }
            };
            let mut command = place.command(&["--traced"])?;
            let most = Duration::from_millis(1_500);
            match tracer::kill_at_call(&mut command, target, most, &mut seen)? {
                Followed::Denied => {
                    let why = "this system lets no process be followed (ptrace)".to_owned();
                    report.skipped.insert("system calls", why);
                    return Ok(());
                }
                Followed::Killed(fell) => {
                    let hit = report.calls.entry(fell.call).or_default();
                    *if fell.before { &mut hit.0 } else { &mut hit.1 } += 1;
                }
                Followed::Late => report.calls.entry("elsewhere").or_default().0 += 1,
                Followed::Ended(how) => {
                    report.violations.push(format!("calls, {target:?}: {how}"));
                }
            }
            kills += 1;
            let run = format!("calls, kill {kills}, {target:?}");
            let is_sound = place.check(&mut random, report, &run);
            if !is_sound || place.runs >= 12 {
                number += 1;
                place.leave(is_sound)?;
                place = self.place("calls", number);
            }
        }
        report.kills.insert("calls", kills);
        place.leave(true)
    }

    fn steps(&self, report: &mut Report, every: bool) -> Result<()> {
        // Who steps and who is stepped take turns: on one core the one need not wake up another.
        let cores = rustix::thread::sched_getaffinity(None)?;
        if let Some(core) = (0..CpuSet::MAX_CPU).rev().find(|core| cores.is_set(*core)) {
            let mut only = CpuSet::new();
            only.set(core);
            // Where that is not allowed it takes longer.
            let _ = rustix::thread::sched_setaffinity(None, &only);
        }
        let stepped = self.step_through(report, every);
        let _ = rustix::thread::sched_setaffinity(None, &cores);
        stepped
    }

    fn step_through(&self, report: &mut Report, every: bool) -> Result<()> {
        let mut random = Random::new(self.seed ^ 2);
        let mut kills = 0;
        let mut appends = Vec::new();
        // To measure one takes time: with little of it the first ones do.
        let kinds = if self.amount.until.is_some() { 2 } else { usize::MAX };
        for append in Append::all(self.seed).into_iter().take(kinds) {
            let mut watch = Watch::default();
            let watched = |place: &Path, step| watch.look(place, step);
            match self.step(&append, u64::MAX, kills, watched, &mut random, report)? {
                Stepped::Denied => {
                    let why = "this system lets no process be followed (ptrace)".to_owned();
                    report.skipped.insert("single steps", why);
                    return Ok(());
                }
                Stepped::Whole(len) => {
                    appends.push(Stepwise { append, len, changes: watch.changes, hit: Vec::new() });
                }
                Stepped::Killed => {}
                Stepped::Ended(how) => {
                    report.violations.push(format!("steps, {}: {how}", append.name));
                }
            }
            kills += 1;
        }
        let longest = appends.iter().map(|stepwise| stepwise.len).max().unwrap_or(0);
        for round in 0.. {
            let is_over = if every { round >= longest } else { self.amount.is_over(kills) };
            if is_over || is_interrupted() || report.violations.len() >= MOST_VIOLATIONS {
                break;
            }
            for Stepwise { append, len, changes, hit } in &mut appends {
                let at = match changes.get(round as usize) {
                    _ if every => round,
                    Some(change) => *change,
                    None => random.below(*len),
                };
                if at >= *len || (!every && self.amount.is_over(kills)) {
                    continue;
                }
                let look = |_: &Path, _| Ok(());
                let stepped = self.step(append, at, kills, look, &mut random, report)?;
                if let Stepped::Ended(how) = stepped {
                    let what = format!("steps, {} after {at}: {how}", append.name);
                    report.violations.push(what);
                }
                hit.push(at);
                kills += 1;
            }
        }
        for Stepwise { append, len, changes, mut hit } in appends {
            hit.sort_unstable();
            hit.dedup();
            let storing = changes.iter().filter(|change| hit.binary_search(change).is_ok()).count();
            let steps = Steps {
                all: len,
                hit: hit.len() as u64,
                changing: changes.len() as u64,
                changing_hit: storing as u64,
            };
            report.steps.insert(append.name, steps);
        }
        report.kills.insert("steps", kills);
        Ok(())
    }

    /// Kills one append after `steps` instructions, in a directory of its own.
    fn step(
        &self,
        append: &Append,
        steps: u64,
        number: u64,
        mut look: impl FnMut(&Path, u64) -> Result<()>,
        random: &mut Random,
        report: &mut Report,
    ) -> Result<Stepped> {
        let mut place = self.place("steps", number);
        place.seed = append.seed;
        let count = append.n.to_string();
        let mut command = place.command(&["--traced", "--steps", &count])?;
        let stepped =
            tracer::kill_at_step(&mut command, steps, |step| look(&place.directory, step))?;
        if matches!(stepped, Stepped::Denied) {
            return Ok(stepped);
        }
        let run = format!("steps, {} after {steps}", append.name);
        let is_sound = place.check(random, report, &run);
        place.leave(is_sound)?;
        Ok(stepped)
    }
}

/// An append to be stepped through: the `n`th operation of a run with a seed of its own.
struct Append {
    name: &'static str,
    seed: u64,
    n: u64,
}

/// An append, how many instructions it takes, after which of them the log's bytes are others than before, and after which it
/// was killed.
struct Stepwise {
    append: Append,
    len: u64,
    changes: Vec<u64>,
    hit: Vec<u64>,
}

/// Sees after which instructions the bytes of the log have changed.
#[derive(Default)]
struct Watch {
    segments: Vec<(File, Vec<u8>)>,
    changes: Vec<u64>,
}

/// After so many steps it is looked whether there are other files.
const LIST_EVERY: u64 = 256;

impl Watch {
    fn look(&mut self, directory: &Path, step: u64) -> Result<()> {
        if step.is_multiple_of(LIST_EVERY) {
            let mut segments = Vec::new();
            for entry in std::fs::read_dir(directory)? {
                let path = entry?.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    // The next call reads it: at worst a change is noted that lies some steps back.
                    segments.push((File::open(path)?, Vec::new()));
                }
            }
            let known = std::mem::replace(&mut self.segments, segments);
            for ((_, bytes), (_, before)) in self.segments.iter_mut().zip(known) {
                *bytes = before;
            }
        }
        let mut is_changed = false;
        for (file, before) in &mut self.segments {
            let mut now = vec![0; file.metadata()?.len() as usize];
            let read = file.read_at(&mut now, 0)?;
            now.truncate(read);
            is_changed |= now != *before;
            *before = now;
        }
        if is_changed && step > 0 {
            self.changes.push(step);
        }
        Ok(())
    }
}

impl Append {
    /// One of each kind, from `seed` on; all at [`Durability::Os`].
    fn all(seed: u64) -> Vec<Self> {
        let is_put = |kind: &Kind| matches!(kind, Kind::Put { .. });
        let is_batch =
            |kind: &Kind| matches!(kind, Kind::Batch { remove: Some(_), range: None, .. });
        let is_range = |kind: &Kind| matches!(kind, Kind::Batch { range: Some(_), .. });
        let find = |name, is: &dyn Fn(&Kind) -> bool, bytes: std::ops::Range<usize>| {
            let n = 12 + seed % 8;
            // The smallest segments.
            ((seed << 20)..).filter(|seed| seed % 3 == 0).find_map(|seed| {
                let operation = Operation::of(seed, 0, n);
                let is_it = operation.level == Durability::Os && is(&operation.kind);
                let is_it = is_it && bytes.contains(&writer::value(seed, 0, n).len());
                is_it.then_some(Self { name, seed, n })
            })
        };
        let all = [
            find("one key", &is_put, 20..140),
            find("one key, a longer value", &is_put, 600..1_500),
            find("one key, a value that is handed over", &is_put, 5_000..6_000),
            find("a batch", &is_batch, 20..140),
            find("a batch with a range", &is_range, 20..140),
        ];
        all.into_iter().flatten().collect()
    }
}

/// What starts a writer.
fn writer_command(directory: &Path, progress: &Path, seed: u64) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("kill-part").args([directory, progress]).arg(seed.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

impl Place {
    /// What starts a writer here.
    fn command(&mut self, more: &[&str]) -> Result<Command> {
        Progress::create(&self.progress, &self.state.done)?;
        self.runs += 1;
        let mut command = writer_command(&self.directory, &self.progress, self.seed)?;
        command.args(more);
        Ok(command)
    }

    /// Recovers what the run left, and notes what is wrong with it. Either here, or in a copy, so that the next run does it itself.
    fn check(&mut self, random: &mut Random, report: &mut Report, run: &str) -> bool {
        match self.recover(random) {
            Ok(operations) => {
                report.operations += operations;
                true
            }
            Err(what) => {
                report.violations.push(format!("{run}, in {}: {what}", self.directory.display()));
                false
            }
        }
    }

    /// How many operations are there that were not before.
    fn recover(&mut self, random: &mut Random) -> Result<u64, String> {
        let told = |error: std::io::Error| error.to_string();
        let progress = Progress::read(&self.progress).map_err(told)?;
        if !self.directory.exists() {
            return Ok(0);
        }
        let copied = self.directory.with_extension("copy");
        oracle::copy(&self.directory, &copied).map_err(told)?;
        let state = oracle::check(&copied, self.seed, &self.state, &progress, End::Kill)?;
        let before: u64 = self.state.done.iter().sum();
        self.state = state;
        if random.one_in(2) {
            std::fs::remove_dir_all(&self.directory).map_err(told)?;
            std::fs::rename(&copied, &self.directory).map_err(told)?;
        } else {
            std::fs::remove_dir_all(&copied).map_err(told)?;
        }
        Ok(self.state.done.iter().sum::<u64>() - before)
    }

    /// Nothing more is done here.
    fn leave(&self, is_sound: bool) -> Result<()> {
        if is_sound && self.directory.exists() {
            std::fs::remove_dir_all(&self.directory)?;
            std::fs::remove_file(&self.progress)?;
        }
        Ok(())
    }
}
