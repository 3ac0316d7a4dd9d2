//! `stillframe import`: a directory tree, JSON lines or tab-separated lines into a snapshot file.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use stillframe::{Compression, Database, Keyspace, SaveOptions};

use crate::{Answer, EXIT_CODES, interrupt, save, text, tree, ui};

/// Make a snapshot file from a directory tree, JSON lines, or tab-separated lines
///
/// The output appears whole and synced, or not at all.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Import {
    /// A directory, a file, or - for standard input
    source: PathBuf,
    /// The snapshot file to write
    output: PathBuf,
    /// What the source is [default: a directory is a tree; files by their extension]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The field of each JSON line that holds its key, a string or an integer
    #[arg(long, value_name = "FIELD")]
    key: Option<String>,
    /// Read \\, \t, \n, \r and \xNN in tab-separated lines as the bytes they stand for
    #[arg(long)]
    escape: bool,
    /// The keyspace to import into
    #[arg(long, value_name = "NAME", default_value = "default")]
    keyspace: String,
    /// Begin with what this snapshot file holds
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// How blocks are stored
    #[arg(long, value_enum, default_value_t = Codec::Lz4)]
    compression: Codec,
    /// Threads that encode the file [default: all cores]
    #[arg(long, value_name = "COUNT")]
    threads: Option<usize>,
}

/// Plain data outside of snapshot files.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Relative path to content, of every regular file
    Tree,
    /// Each line a JSON object; the whole line is the value
    Jsonl,
    /// Each line a key, a tab, and a value
    Tsv,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Codec {
    Lz4,
    Raw,
}

#[derive(Serialize)]
struct Report {
    output: String,
    keyspace: String,
    /// Files or lines read.
    read: u64,
    /// In the keyspace now; fewer than read where keys repeat.
    keyspace_records: u64,
    records: u64,
    raw_bytes: u64,
    file_bytes: u64,
    fingerprint: String,
    save_ms: f64,
}

impl Format {
    /// What `path` most likely holds, or should.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("jsonl" | "ndjson") => Some(Format::Jsonl),
            Some("tsv") => Some(Format::Tsv),
            _ => None,
        }
    }
}

impl Import {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        if !self.force && self.output.symlink_metadata().is_ok() {
            bail!("{} exists; --force replaces it", self.output.display());
        }
        let format = self.format()?;
        let database = match &self.base {
            Some(base) => load(base)?,
            None => Database::in_memory(),
        };
        let keyspace = database.keyspace(&self.keyspace)?;
        let read = match format {
            Format::Tree => self.import_tree(&keyspace),
            Format::Jsonl => self.import_json(&keyspace),
            Format::Tsv => self.import_tabbed(&keyspace),
        }?;
        let stats = database.stats();
        interrupt::install()?; // up to here there is nothing to clean up
        let saved = save::wait(database.save(&self.output, self.save_options())?)?;
        let report = Report {
            output: self.output.to_string_lossy().into_owned(),
            keyspace: self.keyspace,
            read,
            keyspace_records: keyspace.len()?,
            records: stats.records,
            raw_bytes: stats.raw_bytes,
            file_bytes: saved.file_bytes,
            fingerprint: format!("{:016x}", saved.fingerprint),
            save_ms: saved.elapsed.as_secs_f64() * 1e3,
        };
        if json {
            ui::print_json(&report)?;
        } else {
            eprintln!(
                "{}: {} of {} in {}",
                report.output,
                ui::plural(report.records, "record"),
                ui::bytes(report.raw_bytes),
                ui::bytes(report.file_bytes)
            );
        }
        Ok(Answer::Yes)
    }

    fn format(&self) -> anyhow::Result<Format> {
        let given = self.format.or_else(|| self.source.is_dir().then_some(Format::Tree));
        let Some(format) = given.or_else(|| Format::of(&self.source)) else {
            bail!("{}: say with --format what this is", self.source.display());
        };
        match (format, &self.key) {
            (Format::Jsonl, None) => bail!("JSON lines need --key FIELD"),
            (Format::Tree | Format::Tsv, Some(_)) => bail!("--key is for JSON lines"),
            _ if self.escape && format != Format::Tsv => bail!("--escape is for --format tsv"),
            _ => Ok(format),
        }
    }

    fn save_options(&self) -> SaveOptions {
        let compression = match self.compression {
            Codec::Lz4 => Compression::Lz4,
            Codec::Raw => Compression::Raw,
        };
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        SaveOptions::default().compression(compression).threads(self.threads.unwrap_or_else(cores))
    }

    fn import_tree(&self, keyspace: &Keyspace) -> anyhow::Result<u64> {
        let looking = ui::spinner("looking");
        let files: Vec<_> = tree::files(&self.source, |_| true).collect::<anyhow::Result<_>>()?;
        looking.finish_and_clear();
        let bar = ui::byte_bar(files.iter().map(|file| file.bytes).sum(), "importing");
        let mut content = Vec::new();
        for file in &files {
            tree::read(&file.path, &mut content)?;
            let inserted = keyspace.insert(&file.key, &content);
            inserted.with_context(|| format!("importing {}", file.path.display()))?;
            bar.inc(file.bytes);
        }
        bar.finish_and_clear();
        Ok(files.len() as u64)
    }

    fn import_json(&self, keyspace: &Keyspace) -> anyhow::Result<u64> {
        let field = self.key.as_deref().expect("checked in format()");
        each_line(&self.source, |line| {
            if line.trim_ascii().is_empty() {
                return Ok(false);
            }
            keyspace.insert(key_field(line, field)?, line)?;
            Ok(true)
        })
    }

    fn import_tabbed(&self, keyspace: &Keyspace) -> anyhow::Result<u64> {
        each_line(&self.source, |line| {
            if line.is_empty() {
                return Ok(false);
            }
            let Some(tab) = line.iter().position(|&byte| byte == b'\t') else {
                bail!("no tab between key and value");
            };
            let (key, value) = (&line[..tab], &line[tab + 1..]);
            if self.escape {
                keyspace.insert(text::unescape(key)?, text::unescape(value)?)?;
            } else {
                keyspace.insert(key, value)?;
            }
            Ok(true)
        })
    }
}

fn load(path: &Path) -> anyhow::Result<Database> {
    let loading = ui::spinner("loading");
    let database = Database::load(path)?;
    loading.finish_and_clear();
    Ok(database)
}

/// Hands every line of `source` to `take`, without its line feed and a carriage return before that;
/// returns how often it said that it took one. Errors get the place.
fn each_line(
    source: &Path,
    mut take: impl FnMut(&[u8]) -> anyhow::Result<bool>,
) -> anyhow::Result<u64> {
    let (mut reader, bar) = open(source)?;
    let name = if is_stdin(source) { "standard input".into() } else { source.to_string_lossy() };
    let (mut line, mut number, mut offset, mut taken) = (Vec::new(), 0u64, 0u64, 0u64);
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line);
        let read = read.with_context(|| format!("reading {name} at byte {offset}"))?;
        if read == 0 {
            bar.finish_and_clear();
            return Ok(taken);
        }
        number += 1;
        if line.last() == Some(&b'\n') {
            line.pop();
            line.pop_if(|last| *last == b'\r');
        }
        let took = take(&line);
        let took = took.with_context(|| format!("{name} line {number} at byte {offset}"))?;
        taken += u64::from(took);
        offset += read as u64;
        bar.set_position(offset);
    }
}

fn is_stdin(source: &Path) -> bool {
    source == Path::new("-")
}

fn open(source: &Path) -> anyhow::Result<(Box<dyn BufRead>, ProgressBar)> {
    if is_stdin(source) {
        return Ok((Box::new(io::stdin().lock()), ui::byte_bar(0, "importing")));
    }
    let file = File::open(source).with_context(|| format!("open {}", source.display()))?;
    let bytes = fs::metadata(source).map_or(0, |metadata| metadata.len());
    Ok((Box::new(BufReader::with_capacity(1 << 20, file)), ui::byte_bar(bytes, "importing")))
}

/// The bytes of `field` in the JSON object `line`.
fn key_field(line: &[u8], field: &str) -> anyhow::Result<Vec<u8>> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let found = json.deserialize_map(KeyField(field))?;
    json.end()?;
    match found {
        Some(serde_json::Value::String(key)) => Ok(key.into_bytes()),
        Some(serde_json::Value::Number(key)) if !key.is_f64() => Ok(key.to_string().into_bytes()),
        Some(other) => Err(anyhow!("field {field:?} is {other}, neither string nor integer")),
        None => Err(anyhow!("no field {field:?}")),
    }
}

/// Reads an object for one field and skips the rest without building it.
struct KeyField<'a>(&'a str);

impl<'de> Visitor<'de> for KeyField<'_> {
    type Value = Option<serde_json::Value>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_json_line_is_a_string_or_an_integer() {
        let key = |line: &str| key_field(line.as_bytes(), "id").ok();
        assert_eq!(key(r#"{"a":{"id":1},"id":"x\ny"}"#), Some(b"x\ny".to_vec()));
        assert_eq!(key(r#" {"id": -7, "b": [1]} "#), Some(b"-7".to_vec()));
        assert_eq!(key(r#"{"id":18446744073709551615}"#), Some(b"18446744073709551615".to_vec()));
        for line in [
            r#"{"id":1.5}"#,
            r#"{"id":null}"#,
            r#"{"no":1}"#,
            r#"{"id":1} x"#,
            r#"{"id":1"#,
            r#"["id"]"#,
            r#"{"id":1e3}"#,
        ] {
            assert_eq!(key(line), None, "{line}");
        }
    }
}
