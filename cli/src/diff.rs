//! `stillframe diff`: which keys two snapshot files disagree about.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::{Map, Value};
use stillframe::{FileKeyspace, Result, Slice, SnapshotFile};

use crate::snapshot::ALL;
use crate::text::Form;
use crate::{Answer, EXIT_CODES, ui};

/// Compare two snapshot files, key by key
///
/// Prints + for a key that only B has, - for one that only A has, ~ for one whose value differs,
/// then the keyspace and the key. Files with the same keyspaces, keys and values are equal,
/// whatever their positions, times and layouts; expired records are not there.
/// With --json each difference is an object on a line of its own, and the last line sums up.
/// Exits with 0 for equal and 1 for different files, above 1 in trouble, like diff(1).
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Diff {
    /// The older file
    a: PathBuf,
    /// The newer file
    b: PathBuf,
    /// Only sum up each keyspace
    #[arg(long)]
    brief: bool,
    /// Print keys in hexadecimal
    #[arg(long)]
    hex: bool,
}

#[derive(Serialize)]
struct Summary {
    equal: bool,
    keyspaces: Vec<KeyspaceSummary>,
}

/// What became of one keyspace from A to B.
#[derive(Serialize)]
struct KeyspaceSummary {
    name: String,
    in_a: bool,
    in_b: bool,
    added: u64,
    removed: u64,
    changed: u64,
    same: u64,
}

#[derive(Clone, Copy)]
enum Change {
    Added,
    Removed,
    Changed,
}

impl Change {
    fn sign(self) -> char {
        match self {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed => '~',
        }
    }

    fn word(self) -> &'static str {
        match self {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Changed => "changed",
        }
    }
}

impl KeyspaceSummary {
    fn is_equal(&self) -> bool {
        self.in_a && self.in_b && self.added + self.removed + self.changed == 0
    }
}

impl Diff {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let (a, b) = (SnapshotFile::open(&self.a)?, SnapshotFile::open(&self.b)?);
        let names_a = BTreeSet::from_iter(a.keyspaces()?);
        let names_b = BTreeSet::from_iter(b.keyspaces()?);
        let form = if self.hex { Form::Hex } else { Form::Escaped };
        let bar = match !self.brief && io::stdout().is_terminal() {
            true => ProgressBar::hidden(), // the differences themselves are shown there
            false => ui::count_bar(a.info().entries + b.info().entries, "comparing"),
        };
        let mut out = ui::stdout();
        let mut keyspaces = Vec::new();
        for name in names_a.union(&names_b) {
            let side = |file: &SnapshotFile, names: &BTreeSet<String>| {
                names.contains(name).then(|| file.keyspace(name)).transpose()
            };
            let (a, b) = (side(&a, &names_a)?, side(&b, &names_b)?);
            let summary = compare(name, a.as_ref(), b.as_ref(), &bar, |change, key| {
                if self.brief {
                    return Ok(());
                }
                print_change(&mut out, json, form, change, name, key)
            })?;
            keyspaces.push(summary);
        }
        bar.finish_and_clear();
        let summary = Summary { equal: keyspaces.iter().all(KeyspaceSummary::is_equal), keyspaces };
        if json {
            writeln!(out, "{}", serde_json::to_string(&summary)?)?;
        } else {
            print_summary(&mut out, &summary)?;
        }
        out.flush()?;
        Ok(if summary.equal { Answer::Yes } else { Answer::No })
    }
}

fn print_change(
    out: &mut impl Write,
    json: bool,
    form: Form,
    change: Change,
    keyspace: &str,
    key: &[u8],
) -> anyhow::Result<()> {
    if json {
        let mut object = Map::new();
        object.insert("change".to_owned(), change.word().into());
        object.insert("keyspace".to_owned(), keyspace.into());
        form.put(&mut object, "key", key);
        writeln!(out, "{}", Value::Object(object))?;
    } else {
        let keyspace = Form::Escaped.write(keyspace.as_bytes());
        writeln!(out, "{} {keyspace}\t{}", change.sign(), form.write(key))?;
    }
    Ok(())
}

fn print_summary(out: &mut impl Write, summary: &Summary) -> anyhow::Result<()> {
    for keyspace in &summary.keyspaces {
        let only = match (keyspace.in_a, keyspace.in_b) {
            (true, false) => "only in A: ",
            (false, true) => "only in B: ",
            _ => "",
        };
        writeln!(
            out,
            "{}: {only}{} added, {} removed, {} changed, {} the same",
            Form::Escaped.write(keyspace.name.as_bytes()),
            ui::count(keyspace.added),
            ui::count(keyspace.removed),
            ui::count(keyspace.changed),
            ui::count(keyspace.same)
        )?;
    }
    Ok(())
}

/// Walks both sides once, in key order, and hands every difference to `found`.
fn compare(
    name: &str,
    a: Option<&FileKeyspace>,
    b: Option<&FileKeyspace>,
    bar: &ProgressBar,
    mut found: impl FnMut(Change, &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<KeyspaceSummary> {
    let mut summary = KeyspaceSummary {
        name: name.to_owned(),
        in_a: a.is_some(),
        in_b: b.is_some(),
        added: 0,
        removed: 0,
        changed: 0,
        same: 0,
    };
    let mut records_a = a.map(|a| a.range(ALL)).into_iter().flatten();
    let mut records_b = b.map(|b| b.range(ALL)).into_iter().flatten();
    let mut next_a = || next(&mut records_a, bar);
    let mut next_b = || next(&mut records_b, bar);
    let (mut a, mut b) = (next_a()?, next_b()?);
    loop {
        let order = match (&a, &b) {
            (None, None) => return Ok(summary),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((key_a, _)), Some((key_b, _))) => key_a.cmp(key_b),
        };
        match (order, &a, &b) {
            (Ordering::Less, Some((key, _)), _) => {
                summary.removed += 1;
                found(Change::Removed, key)?;
            }
            (Ordering::Greater, _, Some((key, _))) => {
                summary.added += 1;
                found(Change::Added, key)?;
            }
            (_, Some((key, value_a)), Some((_, value_b))) if value_a != value_b => {
                summary.changed += 1;
                found(Change::Changed, key)?;
            }
            _ => summary.same += 1,
        }
        if order.is_le() {
            a = next_a()?;
        }
        if order.is_ge() {
            b = next_b()?;
        }
    }
}

fn next(
    records: &mut impl Iterator<Item = Result<(Slice, Slice)>>,
    bar: &ProgressBar,
) -> anyhow::Result<Option<(Slice, Slice)>> {
    let record = records.next().transpose()?;
    if record.is_some() {
        bar.inc(1);
    }
    Ok(record)
}
