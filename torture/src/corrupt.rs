//! `torture corrupt`: two small files, one per codec, damaged in every way there is and read in every way there is.
//!
//! The work is done by processes of this program, one per core, each taking every so-manieth case: one case at
//! a time, so that what it allocates can be counted, and so that an abort or a hang costs one case, not the run. A
//! part reports each case with one byte on its standard output, and says more of those that are not as they should be.

use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::thread::CpuSet;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use stillframe::Compression;

use crate::allocator;
use crate::canonical::{blocks, content, file};
use crate::damage::{Damage, Extent, Whole, apply, cases};
use crate::read::{Outcome, Reader};

/// A case may take so much processor time.
const MAX_TIME: Duration = Duration::from_secs(1);
/// A part that says nothing for so long hangs.
const HANG: Duration = Duration::from_secs(60);
/// A case may allocate twice its file and this.
const MAX_SPARE_BYTES: usize = 1 << 20;
/// A forged one may say that everything in it is compressed as well as LZ4 can (FORMAT.md, section 11).
const MAX_RATIO: usize = 255;
const CODECS: [(&str, Compression); 2] = [("lz4", Compression::Lz4), ("raw", Compression::Raw)];
/// So many findings are printed; all are counted.
const SHOWN: usize = 20;

#[derive(Args)]
pub(crate) struct Options {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Every 16th byte only, from a place that the seed chooses.
    #[arg(long)]
    quick: bool,
    /// Chooses random bytes, and where `--quick` begins. Default: the time.
    #[arg(long)]
    seed: Option<u64>,
    /// Processes. Default: one per core.
    #[arg(long)]
    parts: Option<usize>,
    /// Keep damaged files that were not refused here.
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

/// What one process does.
#[derive(Args)]
pub(crate) struct Part {
    /// Where the files are.
    dir: PathBuf,
    codec: String,
    part: usize,
    parts: usize,
    /// Cases of this part that are done.
    from: usize,
    stride: usize,
    many: u64,
    seed: u64,
    #[arg(long)]
    keep: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    tried: u64,
    detected: u64,
    benign: u64,
    silent: u64,
    crashed: u64,
}

impl Counts {
    fn count(&mut self, mark: u8) {
        self.tried += 1;
        match mark {
            DETECTED => self.detected += 1,
            BENIGN => self.benign += 1,
            SILENT => self.silent += 1,
            _ => self.crashed += 1,
        }
    }
}

// What a part says of a case; of all but the first two a line follows.
const UNCHANGED: u8 = b'-';
const DETECTED: u8 = b'd';
const BENIGN: u8 = b'b';
const SILENT: u8 = b's';
const CRASHED: u8 = b'c';

/// What a part says, as the parent hears it.
struct Said {
    mark: u8,
    line: String,
}

/// What came of all cases so far.
#[derive(Default)]
struct Tally {
    /// By kind of damage, in the order in which they came up.
    kinds: Vec<(&'static str, Counts)>,
    /// Apart: there a change may also be one that nothing depends on.
    forged: Counts,
    findings: Vec<String>,
}

impl Tally {
    fn count(&mut self, file: &str, damage: Damage, said: &Said) {
        let is_forged = matches!(damage, Damage::Forged(..));
        let counts = if is_forged {
            &mut self.forged
        } else {
            let kind = damage.kind();
            let at = self.kinds.iter().position(|(known, _)| *known == kind);
            let at = at.unwrap_or_else(|| {
                self.kinds.push((kind, Counts::default()));
                self.kinds.len() - 1
            });
            &mut self.kinds[at].1
        };
        counts.count(said.mark);
        if said.mark == DETECTED || is_forged && said.mark == BENIGN {
            return;
        }
        let finding = format!("{file}: {damage:?}: {}", said.line);
        if self.findings.len() < SHOWN {
            eprintln!("{finding}");
        }
        self.findings.push(finding);
    }

    /// Of all that is not forged.
    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for (_, counts) in &self.kinds {
            total.tried += counts.tried;
            total.detected += counts.detected;
            total.benign += counts.benign;
            total.silent += counts.silent;
            total.crashed += counts.crashed;
        }
        total
    }

    fn is_clean(&self) -> bool {
        let total = self.total();
        total.tried > 0
            && total.detected == total.tried
            && self.forged.silent == 0
            && self.forged.crashed == 0
    }

    fn print(&self) {
        let row = |name: &str, columns: [&dyn std::fmt::Display; 5]| {
            let [a, b, c, d, e] = columns;
            println!("{name:<15} {a:>9} {b:>9} {c:>8} {d:>7} {e:>7}");
        };
        row("", [&"tried", &"detected", &"benign", &"silent", &"crashed"]);
        for (name, c) in self.kinds.iter().copied().chain([("all", self.total())]) {
            row(name, [&c.tried, &c.detected, &c.benign, &c.silent, &c.crashed]);
        }
        println!();
        row("", [&"tried", &"refused", &"harmless", &"silent", &"crashed"]);
        let c = self.forged;
        row("forged", [&c.tried, &c.detected, &c.benign, &c.silent, &c.crashed]);
    }

    fn json(&self) -> serde_json::Value {
        let (total, forged) = (self.total(), self.forged);
        let by_kind: serde_json::Map<_, _> = self
            .kinds
            .iter()
            .map(|(kind, c)| ((*kind).into(), json!({"tried": c.tried, "detected": c.detected})))
            .collect();
        json!({
            "tried": total.tried, "detected": total.detected, "benign": total.benign,
            "silent": total.silent, "crashed": total.crashed, "by_kind": by_kind,
            "forged": {
                "tried": forged.tried, "refused": forged.detected, "harmless": forged.benign,
                "silent": forged.silent, "crashed": forged.crashed,
            },
            "findings": &self.findings[..self.findings.len().min(SHOWN)],
        })
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let start = Instant::now();
    let seed = options.seed.unwrap_or_else(now_nanos);
    let extent = match options.quick {
        true => Extent { stride: 16, many: 2_000, seed },
        false => Extent { stride: 1, many: 20_000, seed },
    };
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    let parts = options.parts.unwrap_or_else(cores).max(1);
    if let Some(keep) = &options.keep {
        std::fs::create_dir_all(keep).with_context(|| format!("make {}", keep.display()))?;
    }
    let dir = tempfile::tempdir().context("make a directory for the files")?;
    let mut tally = Tally::default();
    let mut files = Vec::new();
    for (name, codec) in CODECS {
        let (good, donors) = prepare(dir.path(), name, codec)?;
        let (bytes, blocks) = (good.bytes.len(), good.blocks.len());
        eprintln!("{name}: {bytes} bytes, {blocks} blocks, seed {seed}, {parts} processes");
        files.push(json!({"codec": name, "bytes": bytes, "blocks": blocks}));
        let all: Vec<_> = cases(&good, &donors, extent).collect();
        let part = |part| Part {
            dir: dir.path().into(),
            codec: name.into(),
            part,
            parts,
            from: 0,
            stride: extent.stride,
            many: extent.many,
            seed,
            keep: options.keep.clone(),
        };
        run_file(name, &all, (0..parts).map(part).collect(), start, &mut tally)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    if options.json {
        let mut report = tally.json();
        report["files"] = files.into();
        report["seconds"] = seconds.into();
        report["seed"] = seed.into();
        report["quick"] = options.quick.into();
        println!("{report}");
    } else {
        tally.print();
        println!("{seconds:.0} s, seed {seed}");
    }
    Ok(if tally.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all cases of one file.
fn run_file(
    name: &str,
    all: &[Damage],
    parts: Vec<Part>,
    start: Instant,
    tally: &mut Tally,
) -> Result<()> {
    let (tell, told) = channel();
    thread::scope(|scope| {
        for part in parts {
            let mine: Vec<_> = all.iter().copied().skip(part.part).step_by(part.parts).collect();
            let tell = tell.clone();
            scope.spawn(move || part.supervise(&mine, &tell));
        }
        drop(tell);
        let mut done = 0;
        for result in told {
            let (damage, said): (Damage, Said) = result?;
            done += 1;
            if done % (all.len() / 10).max(1) == 0 {
                eprintln!("{name}: {} %, {:.0?}", 100 * done / all.len(), start.elapsed());
            }
            if said.mark != UNCHANGED {
                tally.count(name, damage, &said);
            }
        }
        ensure!(done == all.len(), "{done} of {} cases were reported", all.len());
        Ok(())
    })
}

fn now_nanos() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.subsec_nanos().into())
}

/// Makes the file to be damaged, and three others to take blocks from: the same saved again, the same with one value
/// changed, and the other codec's.
fn prepare(dir: &Path, name: &str, codec: Compression) -> Result<(Whole, Vec<Whole>)> {
    let content_now = content(codec);
    let mut changed = content_now.clone();
    let entry = changed.values_mut().next().and_then(|entries| entries.values_mut().next());
    entry.context("no entry to change")?.0 = b"changed".to_vec();
    let other = CODECS.map(|(_, codec)| codec).into_iter().find(|other| *other != codec);
    let other = other.unwrap_or_default();
    let files = [
        file(&content_now, codec)?,
        file(&content_now, codec)?,
        file(&changed, codec)?,
        file(&content(other), other)?,
    ];
    for (i, bytes) in files.iter().enumerate() {
        std::fs::write(dir.join(format!("{name}-{i}")), bytes)?;
    }
    let (good, donors) = open(dir, name)?;
    let len = good.bytes.len();
    ensure!((56 << 10..72 << 10).contains(&len), "the {name} file has {len} bytes");
    ensure!(good.blocks.len() >= 12, "the {name} file has {} blocks", good.blocks.len());
    // Whoever finds everything damaged finds nothing: the whole file must be read as whole.
    let outcome = Reader::new(&content_now).read(good.bytes.clone(), false);
    ensure!(
        outcome == Outcome::Benign("verify, load, stream".into()),
        "the undamaged {name} file: {outcome:?}"
    );
    Ok((good, donors))
}

fn open(dir: &Path, name: &str) -> Result<(Whole, Vec<Whole>)> {
    let mut files = Vec::new();
    for i in 0..4 {
        let path = dir.join(format!("{name}-{i}"));
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        files.push(Whole { blocks: blocks(&bytes)?, bytes });
    }
    let donors = files.split_off(1);
    let good = files.pop().context("the file to be damaged")?;
    Ok((good, donors))
}

impl Part {
    /// Runs this part in a process, and again behind whatever case ended it, until all of `mine` are done.
    fn supervise(mut self, mine: &[Damage], tell: &Sender<Result<(Damage, Said)>>) {
        while self.from < mine.len() {
            let ended = self.watch(mine, tell);
            if let Err(error) = ended {
                // Nobody listens any more if the run has failed already.
                let _ = tell.send(Err(error));
                return;
            }
        }
    }

    /// Passes on what one process says; when it ends early, the case it was at has crashed.
    fn watch(&mut self, mine: &[Damage], tell: &Sender<Result<(Damage, Said)>>) -> Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg("corrupt-part").arg(&self.dir).arg(&self.codec);
        let numbers = [self.part, self.parts, self.from, self.stride];
        command.args(numbers.map(|number| number.to_string()));
        command.args([self.many, self.seed].map(|number| number.to_string()));
        command.args(self.keep.iter().flat_map(|dir| ["--keep".as_ref(), dir.as_os_str()]));
        let mut child = command.stdout(Stdio::piped()).spawn().context("start a process")?;
        let stdout = child.stdout.take().context("the process has no output")?;
        let (hear, heard) = channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                listen(BufReader::new(stdout), |said| hear.send(said).is_ok());
            });
            let why = loop {
                match heard.recv_timeout(HANG) {
                    Ok(said) => {
                        let Some(damage) = mine.get(self.from) else { bail!("too much was said") };
                        self.from += 1;
                        if tell.send(Ok((*damage, said))).is_err() {
                            break "nobody listens";
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => break "the process ended",
                    Err(RecvTimeoutError::Timeout) => break "the process hung",
                }
            };
            // It has ended, hangs, or talks to nobody.
            let _ = child.kill();
            let status = child.wait().context("wait for a process")?;
            if let Some(damage) = mine.get(self.from) {
                self.from += 1;
                let line = format!("{why}: {status}");
                let _ = tell.send(Ok((*damage, Said { mark: CRASHED, line })));
            }
            Ok(())
        })
    }

    /// The process itself: case after case.
    pub(crate) fn run(&self) -> Result<()> {
        stay_on_one_core(self.part);
        let codec = CODECS.iter().find(|(name, _)| *name == self.codec).context("no such codec")?.1;
        let (good, donors) = open(&self.dir, &self.codec)?;
        let extent = Extent { stride: self.stride, many: self.many, seed: self.seed };
        let reader = Reader::new(&content(codec));
        let panicked = silence_panics();
        let mut out = std::io::stdout().lock();
        let all = cases(&good, &donors, extent);
        for damage in all.skip(self.part).step_by(self.parts).skip(self.from) {
            let Some(bytes) = apply(damage, &good, &donors, self.seed) else {
                out.write_all(&[UNCHANGED])?;
                continue;
            };
            let forged = matches!(damage, Damage::Forged(..));
            let (mark, line) = match try_once(&reader, bytes.clone(), forged, panicked) {
                Outcome::Detected => (DETECTED, None),
                Outcome::Benign(line) => (BENIGN, Some(line)),
                Outcome::Silent(line) => (SILENT, Some(line)),
                Outcome::Crashed(line) => (CRASHED, Some(line)),
            };
            out.write_all(&[mark])?;
            if let Some(line) = line {
                writeln!(out, "{}", line.replace('\n', " "))?;
                if let Some(keep) = &self.keep {
                    let name = format!("{}-{damage:?}.still", self.codec);
                    std::fs::write(keep.join(name), &bytes)?;
                }
            }
            // An abort in the next case must not take this one's report along.
            out.flush()?;
        }
        Ok(())
    }
}

fn try_once(reader: &Reader, bytes: Vec<u8>, forged: bool, panicked: &Mutex<String>) -> Outcome {
    let limit = if forged { MAX_RATIO } else { 2 } * bytes.len() + MAX_SPARE_BYTES;
    let start = processor_time();
    let (outcome, peak) =
        allocator::peak_of(|| catch_unwind(AssertUnwindSafe(|| reader.read(bytes, forged))));
    match outcome {
        Err(_) => {
            let what = panicked.lock().map(|what| what.clone()).unwrap_or_default();
            Outcome::Crashed(format!("panic: {what}"))
        }
        Ok(_) if peak > limit => {
            Outcome::Crashed(format!("{peak} bytes allocated, at most {limit} allowed"))
        }
        Ok(outcome) => match processor_time().saturating_sub(start) {
            took if took > MAX_TIME => Outcome::Crashed(format!("{took:.1?} of processor time")),
            _ => outcome,
        },
    }
}

/// What this process has used: waiting for a processor that others use does not count, and who waits for nothing hangs.
fn processor_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// Reading then starts one thread where it would start one per core: a case is a few hundred microseconds.
fn stay_on_one_core(part: usize) {
    let Ok(ours) = rustix::thread::sched_getaffinity(None) else { return };
    let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|core| ours.is_set(*core)).collect();
    let Some(core) = cores.get(part % cores.len().max(1)) else { return };
    let mut only = CpuSet::new();
    only.set(*core);
    // Where that is not allowed the run takes longer.
    let _ = rustix::thread::sched_setaffinity(None, &only);
}

/// Panics are counted, not printed; the last one's text is kept.
fn silence_panics() -> &'static Mutex<String> {
    static LAST: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|panic| {
        if let Ok(mut last) = LAST.lock() {
            *last = panic.to_string();
        }
    }));
    &LAST
}

/// Reads what a part says until it ends, or `hear` has heard enough.
fn listen(mut input: impl BufRead, mut hear: impl FnMut(Said) -> bool) {
    let mut mark = [0];
    while input.read_exact(&mut mark).is_ok() {
        let mut line = String::new();
        if !matches!(mark[0], UNCHANGED | DETECTED) && input.read_line(&mut line).is_err() {
            return;
        }
        if !hear(Said { mark: mark[0], line: line.trim_end().into() }) {
            return;
        }
    }
}
