//! Commits a second of this engine beside redb, fjall, LMDB, surrealmx and bare files, on one disk in the same minutes.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml -- [--quick] [--only TABLE] [--json]`. Every contender
//! has a directory of its own with the same 100,000 records; a commit overwrites one of them, with key and value of the
//! other benches. In each round all contenders have their turn, each round begins with another of them, and a ratio
//! compares two turns of one round: what else the machine does meanwhile falls out of it. Lines that begin with `=>` hold
//! a figure against what is expected.

mod bare;
#[path = "../../workload/measure.rs"]
#[allow(dead_code, reason = "shared with the other benches, which use the rest")]
mod measure;
#[path = "../../workload/records.rs"]
#[allow(dead_code, reason = "shared with the other benches, which use the rest")]
mod records;
mod stores;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};

use measure::{Samples, at_least};
use records::{Key, Keys, value};
use stores::{Level, Lmdb};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Records in every store before the clock starts.
const RECORDS: usize = 100_000;
/// Keys that one thread writes to, none of them another's.
const KEYS_A_THREAD: usize = 10_000;
/// Values that are made beforehand.
const VALUES: usize = 1 << 16;

/// Commits a second, beside other embedded stores.
#[derive(Debug, Parser)]
struct Arguments {
    /// One short round: that it runs, not what it says
    #[arg(long)]
    quick: bool,
    /// One table instead of both
    #[arg(long)]
    only: Option<Table>,
    /// Only these beside stillframe, by the beginnings of their names
    #[arg(long, value_delimiter = ',')]
    with: Vec<String>,
    /// Seconds of each turn
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Rounds that count; one more comes before
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Writers at once, one figure for each
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    threads: Vec<usize>,
    /// A folder on the disk to be measured [default: beside this program]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON object instead of tables
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// A commit returns when it is on the disk
    Sync,
    /// A commit returns when it can't be undone by the end of the process, or sooner
    Os,
}

/// What is written to: one commit puts one record.
trait Store: Sync {
    /// Returns when the record is as durable as the table says.
    fn commit(&self, key: &Key, value: &[u8]) -> Result<()>;

    /// Lets go of what commits that nobody waited for have left, so that the next contender does not pay for it.
    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

/// One line of a table.
struct Contender<'a> {
    name: &'static str,
    /// How it is used: what its documentation says is needed for the level.
    how: &'static str,
    kind: Kind,
    store: Box<dyn Store + 'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// This engine, at the table's level.
    Ours,
    /// This engine at another level, to be read beside a peer that promises no more.
    Beside,
    Peer,
    /// A file and a loop; one thread only.
    Bare,
}

/// What one contender did with so many threads.
struct Line {
    contender: usize,
    threads: usize,
    rates: Samples,
}

fn main() -> Result<()> {
    let mut arguments = Arguments::parse();
    if arguments.quick {
        (arguments.seconds, arguments.runs) = (0.2, 1);
    }
    ensure!(arguments.runs > 0 && arguments.seconds > 0.0, "nothing would be measured");
    let most = RECORDS / KEYS_A_THREAD;
    let is_possible = |threads: &usize| (1..=most).contains(threads);
    ensure!(arguments.threads.iter().all(is_possible), "1 to {most} threads");
    let scratch = Scratch::new(arguments.dir.as_deref())?;
    let values: Vec<Vec<u8>> = (0..VALUES).map(value).collect();
    let mut tables = Vec::new();
    for table in [Table::Sync, Table::Os] {
        if arguments.only.is_none_or(|only| only == table) {
            tables.push(measured(table, &arguments, &scratch, &values)?);
        }
    }
    if arguments.json {
        println!("{{\"runs\":{},\"figures\":[{}]}}", arguments.runs, tables.concat().join(","));
    }
    Ok(())
}

/// Measures one table and prints it; or, asked for JSON, returns its figures.
fn measured(
    table: Table,
    arguments: &Arguments,
    scratch: &Scratch,
    values: &[Vec<u8>],
) -> Result<Vec<String>> {
    let folder = scratch.folder(match table {
        Table::Sync => "sync",
        Table::Os => "os",
    })?;
    let level = if table == Table::Sync { Level::Sync } else { Level::Os };
    let env = Lmdb::environment(&folder.join("lmdb"), level)?;
    let contenders = stores::all(&folder, level, &env)?;
    let time = Duration::from_secs_f64(arguments.seconds);
    let mut lines: Vec<Line> = Vec::new();
    for &threads in &arguments.threads {
        let of = |contender| Line { contender, threads, rates: Samples::default() };
        let takes_part = |at: &usize| {
            let Contender { name, kind, .. } = contenders[*at];
            let is_wanted = arguments.with.is_empty()
                || arguments.with.iter().any(|wanted| name.starts_with(wanted.as_str()));
            (is_wanted || kind == Kind::Ours) && (threads == 1 || kind != Kind::Bare)
        };
        lines.extend((0..contenders.len()).filter(takes_part).map(of));
    }
    for round in 0..=arguments.runs {
        // Who comes after whom changes: a disk may still be busy with the one before.
        for turn in 0..lines.len() {
            let at = (turn + round * 5) % lines.len();
            let line = &mut lines[at];
            let store = &*contenders[line.contender].store;
            let rate = rate(store, line.threads, time, values)
                .with_context(|| contenders[line.contender].name)?;
            store.settle()?;
            if level == Level::Os {
                sync_files(&folder)?;
            }
            // The first round is not counted.
            if round > 0 {
                line.rates.0.push(rate);
            }
        }
    }
    if arguments.json {
        return Ok(lines.iter().map(|line| as_json(table, line, &lines, &contenders)).collect());
    }
    print(table, arguments, &lines, &contenders);
    Ok(Vec::new())
}

/// Commits a second of so many threads for so long.
fn rate(store: &dyn Store, threads: usize, time: Duration, values: &[Vec<u8>]) -> Result<f64> {
    let began = Instant::now();
    let count: Result<usize> = thread::scope(|scope| {
        let write = |thread: usize| -> Result<usize> {
            let mut count = 0;
            while began.elapsed() < time {
                let key = Keys::Demo.key(thread * KEYS_A_THREAD + count % KEYS_A_THREAD);
                store.commit(&key, &values[count % VALUES])?;
                count += 1;
            }
            Ok(count)
        };
        let writers: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || write(thread))).collect();
        writers.into_iter().map(|writer| writer.join().expect("no panic")).sum()
    });
    Ok(count? as f64 / began.elapsed().as_secs_f64())
}

/// Stillframe's rate over that of `line`, round by round.
fn ours_over(line: &Line, lines: &[Line], contenders: &[Contender<'_>]) -> Samples {
    let is_ours = |other: &&Line| {
        other.threads == line.threads && contenders[other.contender].kind == Kind::Ours
    };
    lines.iter().find(is_ours).expect("it takes part").rates.over(&line.rates)
}

fn print(table: Table, arguments: &Arguments, lines: &[Line], contenders: &[Contender<'_>]) {
    let what = match table {
        Table::Sync => "durable commits a second: each is on the disk when it returns",
        Table::Os => "commits a second that no sync is waited for",
    };
    println!("\n== {what}, {} rounds of {} s", arguments.runs, arguments.seconds);
    for &threads in &arguments.threads {
        let s = if threads == 1 { "" } else { "s" };
        println!(
            "\n  {threads} thread{s:<14} {:>9} {:>23}   stillframe over it",
            "median", "range"
        );
        let of = |kind: Kind| {
            let is_of = move |line: &&Line| {
                line.threads == threads && contenders[line.contender].kind == kind
            };
            lines.iter().filter(is_of)
        };
        for line in lines.iter().filter(|line| line.threads == threads) {
            let Contender { name, how, .. } = contenders[line.contender];
            let (rates, ratio) = (&line.rates, ours_over(line, lines, contenders));
            println!(
                "  {name:<22} {:>9.0} {:>23}   {:>6.2} ({:.2} to {:.2})  {how}",
                rates.median(),
                format!("({:.0} to {:.0})", rates.min(), rates.max()),
                ratio.median(),
                ratio.min(),
                ratio.max()
            );
        }
        let best = |kind| of(kind).max_by(|a, b| a.rates.median().total_cmp(&b.rates.median()));
        let found = |line: &Line| ours_over(line, lines, contenders).median();
        if table == Table::Os {
            continue;
        }
        if let Some(bare) = best(Kind::Bare) {
            at_least("durable commits, over the better bare file", found(bare), 0.9, "x");
        }
        if let Some(peer) = best(Kind::Peer).filter(|_| threads > 1) {
            let name = contenders[peer.contender].name;
            let what = format!("durable commits of {threads} threads, over {name}, the best peer");
            at_least(&what, found(peer), 3.0, "x");
        }
    }
}

fn as_json(table: Table, line: &Line, lines: &[Line], contenders: &[Contender<'_>]) -> String {
    let Contender { name, how, .. } = contenders[line.contender];
    let of = |samples: &Samples| {
        let (median, min, max) = (samples.median(), samples.min(), samples.max());
        format!("{{\"median\":{median:.3},\"min\":{min:.3},\"max\":{max:.3}}}")
    };
    format!(
        "{{\"table\":\"{}\",\"threads\":{},\"contender\":\"{name}\",\"how\":\"{how}\",\
         \"commits_a_second\":{},\"stillframe_over_it\":{}}}",
        if table == Table::Sync { "sync" } else { "os" },
        line.threads,
        of(&line.rates),
        of(&ours_over(line, lines, contenders)),
    )
}

/// Brings all files of `folder` to the disk.
fn sync_files(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_files(&path)?;
        } else {
            // It may be gone by now: some stores remove files in threads of their own.
            if let Ok(file) = File::open(&path) {
                file.sync_data().with_context(|| path.display().to_string())?;
            }
        }
    }
    Ok(())
}

/// A folder of this run's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(within: Option<&Path>) -> Result<Self> {
        let program = std::env::current_exe()?;
        let beside = program.parent().context("a program lies in a folder")?;
        let name = format!("stillframe-peers-{}", std::process::id());
        let path = within.unwrap_or(beside).join(name);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Scratch(path))
    }

    fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            let _ = writeln!(std::io::stderr(), "{}: {error}", self.0.display());
        }
    }
}
