//! `stillframe get` and `stillframe scan`: records of a snapshot file, read in place.

use std::io::Write;
use std::ops::Bound;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Map, Value};
use stillframe::{FileKeyspace, Result, Slice};

use crate::snapshot::{ALL, KeyRange, open_keyspace};
use crate::text::Form;
use crate::{Answer, EXIT_CODES, ui};

/// Print the value of one key, byte for byte
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Get {
    /// The snapshot file
    file: PathBuf,
    /// The key; \\, \t, \n, \r and \xNN stand for the bytes they name
    key: String,
    /// The keyspace to read [default: the only one]
    #[arg(long, value_name = "NAME")]
    keyspace: Option<String>,
    /// Print the value on one line, with escapes for what is not plain text
    #[arg(long, conflicts_with = "hex")]
    escape: bool,
    /// Read the key and print the value in hexadecimal
    #[arg(long)]
    hex: bool,
}

/// Print keys and values in order, one record a line
///
/// A tab stands between key and value. Control characters, backslashes and whatever is not UTF-8
/// are printed as \t, \n, \r, \\, \xNN. With --json each line is an object with "key" and "value",
/// or "key_hex" and "value_hex" for bytes that are not UTF-8.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Scan {
    /// The snapshot file
    file: PathBuf,
    /// Only keys that begin with this; escapes as in the output
    #[arg(long, value_name = "KEY", conflicts_with_all = ["from", "to"])]
    prefix: Option<String>,
    /// Begin at this key
    #[arg(long, value_name = "KEY")]
    from: Option<String>,
    /// End before this key
    #[arg(long, value_name = "KEY")]
    to: Option<String>,
    /// Print at most this many records
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// From the last record to the first
    #[arg(long)]
    reverse: bool,
    /// Print no values
    #[arg(long)]
    keys_only: bool,
    /// Read and print keys and values in hexadecimal
    #[arg(long)]
    hex: bool,
    /// The keyspace to read [default: the only one]
    #[arg(long, value_name = "NAME")]
    keyspace: Option<String>,
}

fn form(hex: bool) -> Form {
    if hex { Form::Hex } else { Form::Escaped }
}

impl Get {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let form = form(self.hex);
        let key = form.read(&self.key).context("reading the key")?;
        let keyspace = open_keyspace(&self.file, self.keyspace.as_deref())?;
        let value = keyspace.get(&key)?;
        let answer = if value.is_some() { Answer::Yes } else { Answer::No };
        if json {
            let mut object = Map::new();
            form.put(&mut object, "key", &key);
            object.insert("found".to_owned(), value.is_some().into());
            if let Some(value) = value {
                form.put(&mut object, "value", &value);
            }
            ui::print_json(&object)?;
        } else if let Some(value) = value {
            let mut out = ui::stdout();
            if self.escape || self.hex {
                writeln!(out, "{}", form.write(&value))?;
            } else {
                out.write_all(&value)?;
            }
            out.flush()?;
        }
        Ok(answer)
    }
}

impl Scan {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let form = form(self.hex);
        let read = |key: &Option<String>| {
            let key =
                key.as_deref().map(|key| form.read(key).with_context(|| format!("key {key:?}")));
            key.transpose()
        };
        let (prefix, from, to) = (read(&self.prefix)?, read(&self.from)?, read(&self.to)?);
        let keyspace = open_keyspace(&self.file, self.keyspace.as_deref())?;
        let records = select(&keyspace, prefix, from, to, self.reverse);
        let mut out = ui::stdout();
        for record in records.take(self.limit.unwrap_or(usize::MAX)) {
            let (key, value) = record?;
            let value = (!self.keys_only).then_some(value);
            if json {
                let mut object = Map::new();
                form.put(&mut object, "key", &key);
                if let Some(value) = value {
                    form.put(&mut object, "value", &value);
                }
                writeln!(out, "{}", Value::Object(object))?;
            } else {
                write!(out, "{}", form.write(&key))?;
                if let Some(value) = value {
                    write!(out, "\t{}", form.write(&value))?;
                }
                writeln!(out)?;
            }
        }
        out.flush()?;
        Ok(Answer::Yes)
    }
}

/// The records that the options ask for, in their order.
fn select(
    keyspace: &FileKeyspace,
    prefix: Option<Vec<u8>>,
    from: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
    reverse: bool,
) -> Box<dyn Iterator<Item = Result<(Slice, Slice)>>> {
    let records = match (prefix, from, to) {
        (Some(prefix), _, _) => keyspace.prefix(prefix),
        (_, None, None) => keyspace.range(ALL),
        // The wrong way round is nothing at all, not an error.
        (_, Some(from), Some(to)) if from >= to => return Box::new(std::iter::empty()),
        (_, from, to) => {
            let range: KeyRange = (
                from.map_or(Bound::Unbounded, Bound::Included),
                to.map_or(Bound::Unbounded, Bound::Excluded),
            );
            keyspace.range(range)
        }
    };
    if reverse { Box::new(records.rev()) } else { Box::new(records) }
}
