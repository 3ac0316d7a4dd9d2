//! The files below a directory as records, by default those that cargo downloaded.

use std::env;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use stillframe::{Keyspace, MAX_VALUE_LEN};

use super::memory;
use super::random;
use crate::snapshot::ALL;
use crate::tree::{self, Found};
use crate::ui;

/// Where the default path stops.
const DEFAULT_LIMIT: u64 = 1 << 30;
/// About how much content the writer takes its values from.
const TEXT_BYTES: usize = 32 << 20;

/// Files to import.
pub(crate) struct Sources {
    root: PathBuf,
    files: Vec<Found>,
}

impl Sources {
    /// Every file below `path`, or of the default path as much as it gives.
    pub(crate) fn find(path: Option<&Path>) -> anyhow::Result<Self> {
        let looking = ui::spinner("looking");
        let sources = match path {
            Some(path) => Sources { root: path.to_owned(), files: list(path, u64::MAX)? },
            None => {
                let root = default_root();
                Sources { files: list(&root, DEFAULT_LIMIT)?, root }
            }
        };
        looking.finish_and_clear();
        Ok(sources)
    }

    pub(crate) fn describe(&self) -> String {
        self.root.display().to_string()
    }

    /// Inserts all; returns their number, their raw bytes, and the resident set before the first.
    ///
    /// A file that can't be read (any more) is passed over.
    pub(crate) fn load(&self, keyspace: &Keyspace) -> anyhow::Result<(u64, u64, Option<u64>)> {
        let bar = ui::byte_bar(self.files.iter().map(|file| file.bytes).sum(), "importing");
        let largest = self.files.iter().map(|file| file.bytes).max().unwrap_or(0);
        // Touched before the first measurement: this memory is not the engine's.
        let mut content = vec![1; usize::try_from(largest)?];
        let (mut records, mut raw_bytes) = (0, 0);
        let before = memory::resident_bytes();
        for file in &self.files {
            if let Err(error) = tree::read(&file.path, &mut content) {
                bar.suspend(|| eprintln!("passed over: {error:#}"));
                continue;
            }
            keyspace.insert(&file.key, &content)?;
            records += 1;
            raw_bytes += (file.key.len() + content.len()) as u64;
            bar.inc(file.bytes);
        }
        bar.finish_and_clear();
        Ok((records, raw_bytes, before))
    }
}

/// The files below `root`, in order, up to `limit` bytes; what can't be listed or is too long for a
/// value is passed over.
fn list(root: &Path, limit: u64) -> anyhow::Result<Vec<Found>> {
    root.read_dir().map_err(|error| anyhow::anyhow!("open {}: {error}", root.display()))?;
    let mut files = Vec::new();
    let mut total = 0;
    // What building and version control leave behind is not source.
    let is_source = |name: &std::ffi::OsStr| name != ".git" && name != "target";
    let whole = limit == u64::MAX;
    for found in tree::files(root, |entry| whole || is_source(entry.file_name())) {
        let Ok(found) = found else { continue };
        if found.bytes > MAX_VALUE_LEN as u64 {
            continue;
        }
        total += found.bytes;
        if total > limit {
            break;
        }
        files.push(found);
    }
    Ok(files)
}

/// Sources that the build downloaded, or else those of this repository, or else what is here.
fn default_root() -> PathBuf {
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    let downloaded = cargo_home.map(|home| home.join("registry").join("src"));
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned);
    let has_entries = |root: &PathBuf| root.read_dir().is_ok_and(|mut dir| dir.next().is_some());
    downloaded.into_iter().chain(repository).find(has_entries).unwrap_or_else(|| ".".into())
}

/// New content for the files that were imported: each keeps its length, so that the size of the
/// data stays what it was.
pub(crate) struct Overwrites {
    /// Key and length of the value of each record.
    records: Vec<(Box<[u8]>, usize)>,
    /// Content of the records themselves, at least as long as the longest.
    text: Vec<u8>,
}

impl Overwrites {
    /// Reads back what `keyspace` holds.
    pub(crate) fn of(keyspace: &Keyspace) -> anyhow::Result<Self> {
        let mut records = Vec::new();
        let (mut total, mut longest) = (0, 0);
        keyspace.scan_with(ALL, |key, value| {
            total += value.len();
            longest = longest.max(value.len());
            records.push((Box::from(key), value.len()));
            ControlFlow::Continue(())
        })?;
        let stride = total.div_ceil(TEXT_BYTES).max(1);
        let mut text = Vec::with_capacity(longest.max(TEXT_BYTES.min(total)));
        for (key, _) in records.iter().step_by(stride) {
            if let Some(value) = keyspace.get(key)? {
                text.extend_from_slice(&value);
            }
        }
        while text.len() < longest {
            let missing = longest - text.len();
            match text.is_empty() {
                true => text.resize(missing, b' '),
                false => text.extend_from_within(..missing.min(text.len())),
            }
        }
        Ok(Overwrites { records, text })
    }

    /// A random record's key, and as many bytes as its value has from `cursor` on, which moves there.
    pub(crate) fn pick<'a>(&'a self, random: u64, cursor: &mut usize) -> (&'a [u8], &'a [u8]) {
        let (key, len) = random::pick(&self.records, random);
        if self.text.len() - *cursor < *len {
            *cursor = 0;
        }
        let value = &self.text[*cursor..*cursor + len];
        *cursor += len;
        (key, value)
    }
}
