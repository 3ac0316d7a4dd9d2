//! `torture planted`: every bug of src/planted.rs against the test that README.md here names for it.
//!
//! The table in README.md is what is run. A test that is named there must pass without a bug and fail, or never
//! end, with its bug alive; anything else is a bug that was missed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

const TABLE: &str = include_str!("../README.md");
/// A test that runs for so long will never end.
const MAX_TIME: Duration = Duration::from_secs(120);

#[derive(Args)]
pub(crate) struct Options {
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Only these bugs.
    bugs: Vec<String>,
}

/// One line of the table.
#[derive(Debug, PartialEq, Eq)]
struct Planted {
    bug: String,
    suite: Suite,
    test: String,
    seed: u64,
}

/// A test binary and how it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Suite {
    /// The integration tests.
    It,
    /// The library's own.
    Lib,
    /// The integration tests under the model checker.
    Shuttle,
    /// This program's campaign `kill`; the test is its arguments.
    Kill,
}

impl Suite {
    fn of(name: &str) -> Result<Self> {
        Ok(match name {
            "it" => Suite::It,
            "lib" => Suite::Lib,
            "shuttle" => Suite::Shuttle,
            "kill" => Suite::Kill,
            _ => bail!("the table names a suite `{name}`, which there is not"),
        })
    }

    /// Builds it, in a directory of its own, and returns the binary.
    fn build(self, root: &Path) -> Result<PathBuf> {
        let (flags, folder, args): (&str, &str, &[&str]) = match self {
            Suite::It => ("--cfg planted", "planted", &["--test", "it"]),
            Suite::Lib => ("--cfg planted", "planted", &["--lib"]),
            Suite::Shuttle => {
                ("--cfg planted --cfg shuttle", "planted-shuttle", &["--release", "--test", "it"])
            }
            Suite::Kill => ("--cfg planted", "planted", &["--release", "--bin", "torture"]),
        };
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(root)
            .env("RUSTFLAGS", flags)
            .stderr(Stdio::inherit())
            .stdout(Stdio::piped());
        match self {
            Suite::Kill => cargo.args(["build", "--locked", "--package", "torture"]),
            _ => cargo.args(["test", "--locked", "--package", "stillframe", "--no-run"]),
        };
        cargo.args(args);
        cargo.args(["--message-format", "json-render-diagnostics", "--target-dir"]);
        let mut child = cargo.arg(target.join(folder)).spawn().context("starting cargo")?;
        let mut binary = None;
        for line in BufReader::new(child.stdout.take().context("cargo's output")?).lines() {
            let message: Value = serde_json::from_str(&line?).context("what cargo says")?;
            if let Some(path) = message["executable"].as_str() {
                binary = Some(PathBuf::from(path));
            }
        }
        ensure!(child.wait()?.success(), "the build with planted bugs fails");
        binary.context("cargo named no test binary")
    }
}

/// How a test ended.
enum End {
    Passed,
    /// This machine can't, for this reason.
    Skipped(String),
    /// With the first line that tells why.
    Failed(String),
    Hung,
}

fn run_test(binary: &Path, root: &Path, line: &Planted, alive: bool) -> Result<End> {
    let mut test = Command::new(binary);
    let seed = line.seed.to_string();
    match line.suite {
        Suite::Kill => {
            test.arg("kill").args(line.test.split(' ')).args(["--discard", "--seed", &seed])
        }
        _ => test.args([&line.test, "--exact"]).env("STILLFRAME_SEED", &seed),
    };
    test.current_dir(root);
    test.env("RUST_BACKTRACE", "0").env_remove("STILLFRAME_SEEDS").env_remove("STILLFRAME_PLANTED");
    if alive {
        test.env("STILLFRAME_PLANTED", &line.bug);
    }
    let mut child =
        test.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (mut out, mut err) = (child.stdout.take().context("its output")?, child.stderr.take());
    let (said, text) = mpsc::channel();
    thread::spawn(move || {
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            err.as_mut().map(|err| err.read_to_end(&mut text));
            text
        });
        let mut text = Vec::new();
        let _ = out.read_to_end(&mut text);
        text.extend(errors.join().unwrap_or_default());
        // Nobody listens any more if it took too long.
        let _ = said.send(text);
    });
    let Ok(text) = text.recv_timeout(MAX_TIME) else {
        child.kill()?;
        child.wait()?;
        return Ok(End::Hung);
    };
    let status = child.wait()?;
    let text = String::from_utf8_lossy(&text);
    if line.suite == Suite::Kill {
        return Ok(end_of_campaign(status.success(), &text));
    }
    if status.success() {
        ensure!(text.contains("1 passed"), "there is no test `{}`", line.test);
        return Ok(End::Passed);
    }
    let mut lines = text.lines().skip_while(|line| !line.contains("panicked at")).skip(1);
    Ok(End::Failed(lines.next().map_or_else(|| status.to_string(), |why| why.trim().to_owned())))
}

/// How a campaign ended that said `text`: behind the first line, which counts, and those that say what was done.
fn end_of_campaign(is_success: bool, text: &str) -> End {
    if let Some(why) = text.lines().find(|line| line.starts_with("skipped: ")) {
        return End::Skipped(why.to_owned());
    }
    match is_success {
        true => End::Passed,
        false => {
            let mut lines = text.lines().skip_while(|line| !line.starts_with("violations:"));
            End::Failed(lines.nth(1).unwrap_or("it fails").to_owned())
        }
    }
}

const HEADING: &str = "## Planted bugs";

/// The rows of the table under the heading whose first cell is code.
fn table(text: &str) -> Result<Vec<Planted>> {
    let section = text.split(HEADING).nth(1).context("no section of planted bugs")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut all = Vec::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> =
            row.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`')).collect();
        let [bug, _what, suite, test, seed] = cells[..] else {
            bail!("a row of the table has {} cells: {row}", cells.len());
        };
        let seed = seed.parse().with_context(|| format!("the seed of {bug}"))?;
        all.push(Planted { bug: bug.into(), suite: Suite::of(suite)?, test: test.into(), seed });
    }
    Ok(all)
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let mut lines = table(TABLE)?;
    if !options.bugs.is_empty() {
        lines.retain(|line| options.bugs.contains(&line.bug));
        ensure!(!lines.is_empty(), "none of these bugs is in the table");
    }
    let mut binaries: HashMap<Suite, PathBuf> = HashMap::new();
    let mut healthy = HashMap::new();
    let (mut reports, mut missed, mut skipped) = (Vec::new(), 0, 0);
    for line in &lines {
        let binary = match binaries.entry(line.suite) {
            Entry::Occupied(built) => built.into_mut(),
            Entry::Vacant(vacant) => vacant.insert(line.suite.build(root)?),
        };
        // Hangs of a healthy engine are failures too.
        let is_healthy = match healthy.get(&(line.suite, &line.test, line.seed)) {
            Some(known) => *known,
            None => {
                let passes = matches!(run_test(binary, root, line, false)?, End::Passed);
                healthy.insert((line.suite, &line.test, line.seed), passes);
                passes
            }
        };
        let began = Instant::now();
        let end = run_test(binary, root, line, true)?;
        let seconds = began.elapsed().as_secs_f64();
        let is_skipped = matches!(end, End::Skipped(_));
        let (caught, how) = match end {
            End::Skipped(why) => (false, why),
            _ if !is_healthy => (false, "the test fails without the bug".to_owned()),
            End::Passed => (false, "the test passes with the bug".to_owned()),
            End::Failed(why) => (true, why),
            End::Hung => (true, "never ends".to_owned()),
        };
        skipped += usize::from(is_skipped);
        missed += usize::from(!caught && !is_skipped);
        if !options.json {
            let word = match (caught, is_skipped) {
                (true, _) => "caught",
                (_, true) => "-     ",
                _ => "MISSED",
            };
            let how: String = how.chars().take(80).collect();
            println!("{word}  {:22} {:40} {seconds:6.1} s  {how}", line.bug, line.test);
        }
        reports.push(json!({
            "bug": line.bug, "test": line.test, "seed": line.seed, "caught": caught,
            "skipped": is_skipped, "seconds": seconds, "how": how,
        }));
    }
    let caught = lines.len() - missed - skipped;
    if options.json {
        let counts = json!({
            "bugs": reports, "caught": caught, "missed": missed, "skipped": skipped,
        });
        println!("{counts}");
    } else {
        println!("{caught} caught, {missed} missed, {skipped} skipped");
    }
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_planted_bug_is_in_the_table_once() {
        let source = include_str!("../../src/planted.rs");
        let list = source.split("enum Bug {").nth(1).and_then(|rest| rest.split("\n}").next());
        let lines = list.expect("the list of bugs").lines().map(str::trim);
        let bugs = lines.filter(|line| !line.starts_with("//") && !line.is_empty());
        let mut bugs: Vec<String> =
            bugs.map(|line| line.trim_end_matches(',').to_owned()).collect();
        let mut listed: Vec<String> =
            table(TABLE).unwrap().into_iter().map(|line| line.bug).collect();
        bugs.sort();
        listed.sort();
        assert_eq!(bugs, listed);
    }

    #[test]
    fn a_row_says_what_to_run() {
        let text = "## Planted bugs\n| bug | what |\n|---|---|\n| `A` | why | it | `model::x` | 7 |\nnot | a | row";
        let expected =
            Planted { bug: "A".into(), suite: Suite::It, test: "model::x".into(), seed: 7 };
        assert_eq!(table(text).unwrap(), [expected]);
        assert!(table("## Planted bugs\n| `A` | why | it |").is_err());
        assert!(table("## Planted bugs\n| `A` | why | nowhere | `x` | 7 |").is_err());
        assert!(table("| `A` | why | it | `model::x` | 7 |").is_err());
    }
}
