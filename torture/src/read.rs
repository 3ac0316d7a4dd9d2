//! Reads one file in every way there is, and judges what comes of each.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use stillframe::simulation::{Disk, DiskFile, DiskMap};
use stillframe::{Builder, Database, Error, SnapshotFile};

use crate::canonical::{Content, builder, is_alive};

/// What reading came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Every way of reading all of it gave an error with file and offset, and what single reads showed was right.
    Detected,
    /// Somebody took it, and what he read is what was written.
    Benign(String),
    /// Somebody read what was not written.
    Silent(String),
    /// A panic, an error without a place, too much memory, too much time.
    Crashed(String),
}

/// One way of reading, done.
enum Way {
    Refused,
    Read,
    Wrong(String),
    Untyped(String),
}

/// Keys and values in order.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Everything that is needed to read damaged files one after the other.
pub(crate) struct Reader {
    /// Names in order, with what is shown of each keyspace.
    expected: Vec<(String, Pairs)>,
    disk: OneFile,
    builder: Builder,
}

const PATH: &str = "/damaged.still";

impl Reader {
    pub(crate) fn new(content: &Content) -> Self {
        let alive = |(key, (value, expire_at)): (&Vec<u8>, &(Vec<u8>, u64))| {
            is_alive(*expire_at).then(|| (key.clone(), value.clone()))
        };
        let expected = content
            .iter()
            .map(|(name, entries)| (name.clone(), entries.iter().filter_map(alive).collect()))
            .collect();
        let disk = OneFile::default();
        Reader { expected, builder: builder().disk(disk.clone()), disk }
    }

    /// Opens, looks up every key in place, verifies, loads and streams.
    ///
    /// A file that is `forged`, with right checksums all over, may show anything in place: who must trust the content
    /// has to verify it or more. What it may not do is to pass there with other content.
    pub(crate) fn read(&self, bytes: Vec<u8>, forged: bool) -> Outcome {
        let len = bytes.len();
        let bytes = Arc::new(bytes);
        self.disk.put(Arc::clone(&bytes));
        let way = |read: stillframe::Result<Option<String>>| judge(read, len);
        let opened = SnapshotFile::open_on_disk(&self.disk, PATH);
        let mut ways = Vec::new();
        match &opened {
            Ok(file) => {
                ways.extend([
                    ("in place", way(self.in_place(file))),
                    ("range", way(self.ranges(file))),
                    ("verify", way(file.verify().map(|_| None))),
                ]);
            }
            Err(_) => ways.push(("open", way(opened.map(|_| None)))),
        }
        ways.push(("load", way(self.builder.clone().load(PATH).and_then(|db| self.loaded(&db)))));
        let streamed = self.builder.clone().load_from(&**bytes);
        ways.push(("stream", way(streamed.and_then(|db| self.loaded(&db)))));
        let whole = |name: &str| !matches!(name, "in place" | "range");
        for (name, way) in &ways {
            match way {
                Way::Wrong(_) if forged && !whole(name) => {}
                Way::Wrong(what) => return Outcome::Silent(format!("{name}: {what}")),
                Way::Untyped(what) => return Outcome::Crashed(format!("{name}: {what}")),
                Way::Refused | Way::Read => {}
            }
        }
        // Single reads may be right: what they did not need may be what is damaged.
        let took = |(name, way): &(&'static str, Way)| matches!(way, Way::Read).then_some(*name);
        let takers: Vec<_> = ways.iter().filter_map(took).filter(|name| whole(name)).collect();
        if takers.is_empty() { Outcome::Detected } else { Outcome::Benign(takers.join(", ")) }
    }

    /// Looks up every key.
    fn in_place(&self, file: &SnapshotFile) -> stillframe::Result<Option<String>> {
        let mut refused = None;
        // One refusal must not hide a wrong answer to a later question.
        let mut ask = |answer: stillframe::Result<bool>, what: String| match answer {
            Ok(true) => None,
            Ok(false) => Some(what),
            Err(error) => {
                refused.get_or_insert(error);
                None
            }
        };
        for (name, entries) in &self.expected {
            let space = match file.keyspace(name) {
                Ok(space) => space,
                Err(Error::NoKeyspace) => return Ok(Some(format!("no keyspace {name}"))),
                Err(error) => {
                    ask(Err(error), String::new());
                    continue;
                }
            };
            for (key, value) in entries {
                let right = space.get(key).map(|got| got.as_deref() == Some(value));
                let wrong = ask(right, format!("{name}: value of {}", key.escape_ascii()));
                if wrong.is_some() {
                    return Ok(wrong);
                }
            }
        }
        let names = self.expected.iter().map(|(name, _)| name);
        let right = file.keyspaces().map(|got| got.iter().eq(names));
        let wrong = ask(right, "names of keyspaces".into());
        match (wrong, refused) {
            (None, Some(error)) => Err(error),
            (wrong, _) => Ok(wrong),
        }
    }

    /// Walks every keyspace; what comes before an error must be right, and nothing may come after it.
    fn ranges(&self, file: &SnapshotFile) -> stillframe::Result<Option<String>> {
        for (name, entries) in &self.expected {
            let space = match file.keyspace(name) {
                // A wrong answer, as in `in_place`: only a forged catalogue can give it.
                Err(Error::NoKeyspace) => return Ok(Some(format!("no keyspace {name}"))),
                space => space?,
            };
            let mut range = space.range::<&[u8]>(..);
            for (i, (key, value)) in entries.iter().enumerate() {
                let got = range.next().transpose();
                if got.is_err() && range.next().is_some() {
                    return Ok(Some(format!("{name}: an iterator went on after an error")));
                }
                if got?.is_none_or(|(k, v)| k != *key || v != *value) {
                    return Ok(Some(format!("{name}: entry {i} of a range")));
                }
            }
            if range.next().transpose()?.is_some() {
                return Ok(Some(format!("{name}: more than was written")));
            }
        }
        Ok(None)
    }

    /// Compares a database with what was written.
    fn loaded(&self, db: &Database) -> stillframe::Result<Option<String>> {
        let names = self.expected.iter().map(|(name, _)| name);
        if !db.keyspaces()?.iter().eq(names) {
            return Ok(Some("names of keyspaces".into()));
        }
        for (name, entries) in &self.expected {
            let mut rest = entries.iter();
            let mut same = true;
            db.keyspace(name)?.scan_with::<&[u8]>(.., |key, value| {
                same &= rest.next().is_some_and(|(k, v)| k == key && v == value);
                ControlFlow::Continue(())
            })?;
            if !same || rest.next().is_some() {
                return Ok(Some(format!("{name}: other content")));
            }
        }
        Ok(None)
    }
}

/// An error must be the typed one, name the file, and a place in it.
fn judge(read: stillframe::Result<Option<String>>, len: usize) -> Way {
    match read {
        Ok(None) => Way::Read,
        Ok(Some(wrong)) => Way::Wrong(wrong),
        Err(Error::Corrupt { file, offset, .. })
            if (file == Path::new(PATH) || file == Path::new("<stream>"))
                && offset <= len as u64 =>
        {
            Way::Refused
        }
        Err(other) => Way::Untyped(format!("{other} (the file has {len} bytes)")),
    }
}

/// A disk with one file, which can be exchanged.
#[derive(Debug, Clone, Default)]
struct OneFile(Arc<Mutex<Arc<Vec<u8>>>>);

impl OneFile {
    fn put(&self, bytes: Arc<Vec<u8>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::Unsupported.into())
}

impl Disk for OneFile {
    fn open(&self, _: &Path) -> io::Result<Box<dyn DiskFile>> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Box::new(Bytes(Arc::clone(&bytes))))
    }
    fn create_new(&self, _: &Path) -> io::Result<Box<dyn DiskFile>> {
        refused()
    }
    fn open_write(&self, _: &Path) -> io::Result<Box<dyn DiskFile>> {
        refused()
    }
    fn map(&self, _: &Path) -> io::Result<Box<dyn DiskMap>> {
        refused()
    }
    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }
    fn remove(&self, _: &Path) -> io::Result<()> {
        refused()
    }
    fn create_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }
    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }
    fn list(&self, _: &Path) -> io::Result<Vec<std::ffi::OsString>> {
        refused()
    }
    fn identify(&self, _: &Path) -> io::Result<PathBuf> {
        refused()
    }
    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn std::any::Any + Send + Sync>>> {
        refused()
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }
}

/// Its content when it was opened.
#[derive(Debug)]
struct Bytes(Arc<Vec<u8>>);

impl DiskFile for Bytes {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let len = buf.len().min(self.0.len() - start);
        buf[..len].copy_from_slice(&self.0[start..start + len]);
        Ok(len)
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
        refused()
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        refused()
    }
    fn sync_data(&self) -> io::Result<()> {
        refused()
    }
    fn sync_all(&self) -> io::Result<()> {
        refused()
    }
}
