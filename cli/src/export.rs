//! `stillframe export`: a keyspace of a snapshot file as a directory tree, JSON lines or
//! tab-separated lines; the inverse of `import`.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use serde::de::IgnoredAny;
use stillframe::FileKeyspace;

use crate::import::Format;
use crate::snapshot::{ALL, open_keyspace};
use crate::text::{self, key_in_message};
use crate::{Answer, EXIT_CODES, interrupt, tree, ui};

/// Write a keyspace as a directory tree, JSON lines, or tab-separated lines
///
/// A tree or file appears whole or not at all. Keys that would lead out of the directory are
/// refused, and so is what a format can't hold: nothing is written wrong or left out.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Export {
    /// The snapshot file
    file: PathBuf,
    /// The directory (new or empty) or file to write, or - for standard output
    output: PathBuf,
    /// What to write [default: by the output's extension, else a tree]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write tabs, line ends, backslashes and whatever is not UTF-8 in tab-separated lines as \t, \n,
    /// \r, \\, \xNN
    #[arg(long)]
    escape: bool,
    /// The keyspace to export [default: the only one]
    #[arg(long, value_name = "NAME")]
    keyspace: Option<String>,
    /// Replace the output file if it exists
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Report {
    output: String,
    keyspace_records: u64,
    raw_bytes: u64,
}

impl Export {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        let to_stdout = self.output == Path::new("-");
        let format = match self.format.or_else(|| Format::of(&self.output)) {
            Some(Format::Tree) if to_stdout => bail!("a tree needs a directory to go to"),
            None if to_stdout => bail!("say with --format what to write to standard output"),
            Some(format) => format,
            None => Format::Tree,
        };
        if self.escape && format != Format::Tsv {
            bail!("--escape is for --format tsv");
        }
        let keyspace = open_keyspace(&self.file, self.keyspace.as_deref())?;
        let report = match format {
            Format::Tree => {
                interrupt::install()?;
                export_tree(&keyspace, &self.output)?
            }
            _ if to_stdout => self.export_lines(&keyspace, format, &mut ui::stdout())?,
            _ => {
                interrupt::install()?;
                self.export_file(&keyspace, format)?
            }
        };
        match json {
            true if to_stdout => eprintln!("{}", serde_json::to_string(&report)?),
            true => ui::print_json(&report)?,
            false => eprintln!(
                "{}: {} of {}",
                if to_stdout { "standard output" } else { &report.output },
                ui::plural(report.keyspace_records, "record"),
                ui::bytes(report.raw_bytes)
            ),
        }
        Ok(Answer::Yes)
    }

    fn export_file(&self, keyspace: &FileKeyspace, format: Format) -> anyhow::Result<Report> {
        if !self.force && self.output.symlink_metadata().is_ok() {
            bail!("{} exists; --force replaces it", self.output.display());
        }
        let file = temporary(0o666).tempfile_in(parent(&self.output));
        let file = file.with_context(|| format!("creating {}", self.output.display()))?;
        let report = self.export_lines(keyspace, format, &mut BufWriter::new(&file))?;
        let placed = if self.force {
            file.persist(&self.output)
        } else {
            file.persist_noclobber(&self.output)
        };
        placed.with_context(|| format!("creating {}", self.output.display()))?;
        Ok(report)
    }

    /// Writes each record as a line; the error of a record that does not fit names its key.
    fn export_lines(
        &self,
        keyspace: &FileKeyspace,
        format: Format,
        out: &mut impl Write,
    ) -> anyhow::Result<Report> {
        let report = each_record(keyspace, &self.output, |key, value| {
            match format {
                Format::Jsonl => write_json_line(key, value, out)?,
                _ if self.escape => {
                    writeln!(out, "{}\t{}", text::escape(key), text::escape(value))?;
                }
                _ => write_tabbed_line(key, value, out)?,
            }
            Ok(())
        })?;
        out.flush()?;
        Ok(report)
    }
}

/// Writes every record below a temporary directory beside `output`, then renames that.
fn export_tree(keyspace: &FileKeyspace, output: &Path) -> anyhow::Result<Report> {
    // An existing directory must be empty: a symbolic link planted in it could lead a key outside.
    if output.symlink_metadata().is_ok() {
        let mut entries =
            fs::read_dir(output).with_context(|| format!("open {}", output.display()))?;
        if entries.next().is_some() {
            bail!("{} is not empty", output.display());
        }
    }
    let creating = || format!("creating {}", output.display());
    let directory = temporary(0o777).tempdir_in(parent(output));
    let directory = directory.with_context(creating)?;
    let report = each_record(keyspace, output, |key, value| {
        let path = directory.path().join(tree::path_of(key)?);
        write_file(&path, value).with_context(|| format!("writing key {}", key_in_message(key)))
    })?;
    fs::rename(directory.path(), output).with_context(creating)?;
    let _renamed = directory.keep();
    Ok(report)
}

fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let open = || File::create_new(path);
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().expect("joined to a directory"))?;
            open()?
        }
        result => result?,
    };
    file.write_all(content)
}

/// Hands every record to `write`, with a bar.
fn each_record(
    keyspace: &FileKeyspace,
    output: &Path,
    mut write: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Report> {
    let on_terminal = output == Path::new("-") && io::stdout().is_terminal();
    let bar = match on_terminal {
        true => ProgressBar::hidden(),
        false => ui::count_bar(keyspace.len()?, "exporting"),
    };
    let output = output.to_string_lossy().into_owned();
    let mut report = Report { output, keyspace_records: 0, raw_bytes: 0 };
    for record in keyspace.range(ALL) {
        interrupt::check()?;
        let (key, value) = record?;
        write(&key, &value)?;
        report.keyspace_records += 1;
        report.raw_bytes += (key.len() + value.len()) as u64;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(report)
}

/// Makes temporary files and directories that get the permissions of ordinary ones, since they are
/// renamed to what they become.
fn temporary(mode: u32) -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".stillframe-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode)); // less the umask
    #[cfg(not(unix))]
    let _ = mode;
    builder
}

/// The directory that `path` is or will be in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn write_json_line(key: &[u8], value: &[u8], out: &mut impl Write) -> anyhow::Result<()> {
    let one_line = !value.contains(&b'\n') && value.starts_with(b"{");
    if !one_line || serde_json::from_slice::<IgnoredAny>(value).is_err() {
        bail!("the value of key {} is not one line of JSON", key_in_message(key));
    }
    out.write_all(value)?;
    Ok(out.write_all(b"\n")?)
}

fn write_tabbed_line(key: &[u8], value: &[u8], out: &mut impl Write) -> anyhow::Result<()> {
    let breaks_line = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let whole_line_is_empty = key.is_empty() && value.is_empty();
    if key.contains(&b'\t')
        || key.iter().any(breaks_line)
        || value.iter().any(breaks_line)
        || whole_line_is_empty
    {
        bail!("key {} or its value has a tab or line end: use --escape", key_in_message(key));
    }
    out.write_all(key)?;
    out.write_all(b"\t")?;
    out.write_all(value)?;
    Ok(out.write_all(b"\n")?)
}
