//! How far opening a directory is, and what it found: told to whoever waits for it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Fault;
use crate::position::Position;
use crate::storage::salvage::LostRange;

/// How far opening a directory is: handed to the callback of [`Builder::on_open_progress`](crate::Builder::on_open_progress).
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-progress-{}", std::process::id()));
/// use stillframe::Database;
///
/// let db = Database::builder()
///     .on_open_progress(|progress| {
///         let percent = 100 * progress.done / progress.total.max(1);
///         eprintln!("{:?}: {percent} %", progress.phase);
///     })
///     .open(&dir)?;
/// # db.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenProgress {
    /// What is being done.
    pub phase: OpenPhase,
    /// How much of it is done, in the phase's own unit.
    pub done: u64,
    /// How much there is to do.
    pub total: u64,
}

/// What opening is busy with.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-phase-{}", std::process::id()));
/// use std::sync::{Arc, Mutex};
/// use stillframe::{Database, OpenPhase};
///
/// let db = Database::open(&dir)?;
/// db.keyspace("notes")?.insert("1", "first")?;
/// db.close()?;
/// let phases = Arc::new(Mutex::new(Vec::new()));
/// let seen = Arc::clone(&phases);
/// let db = Database::builder()
///     .on_open_progress(move |progress| seen.lock().unwrap().push(progress.phase))
///     .open(&dir)?;
/// assert!(phases.lock().unwrap().contains(&OpenPhase::Replaying));
/// # db.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OpenPhase {
    /// The snapshot is loaded; counted in leaves.
    Loading,
    /// The log behind it is replayed; counted in bytes, those included that were reserved and never written.
    Replaying,
    /// Damaged files are searched for what can still be proven; counted in files.
    Salvaging,
}

/// What was found when a directory was opened.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-opened-{}", std::process::id()));
/// use stillframe::Database;
///
/// let db = Database::open(&dir)?;
/// db.keyspace("notes")?.insert("1", "first")?;
/// let position = db.position();
/// db.close()?;
/// let db = Database::open(&dir)?;
/// let report = db.open_report().unwrap();
/// assert_eq!((report.position, report.torn_bytes), (position, 0));
/// assert!(report.lost.is_empty() && report.damaged_snapshots.is_empty());
/// # db.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpenReport {
    /// The last batch.
    pub position: Position,
    /// The last batch in the snapshot that was loaded; `None` if there was none.
    pub snapshot: Option<Position>,
    /// Snapshots that were passed over because they are damaged, and what is wrong with each. An older one and
    /// its log held the same.
    pub damaged_snapshots: Vec<(PathBuf, Fault)>,
    /// Segments of the log that were read.
    pub segments: u64,
    /// Bytes of the log that were read.
    pub log_bytes: u64,
    /// Batches that were replayed.
    pub batches: u64,
    /// Bytes that a writer left behind the last whole batch when it died: none of them was acknowledged as durable.
    pub torn_bytes: u64,
    /// What could not be recovered; only [`RecoveryMode::Salvage`](crate::RecoveryMode::Salvage) opens with anything in here.
    pub lost: Vec<LostRange>,
    /// How long it took.
    pub elapsed: Duration,
}

/// Hears how far opening is.
#[derive(Clone)]
pub(crate) struct Tell(pub(crate) Arc<dyn Fn(&OpenProgress) + Send + Sync>);

impl fmt::Debug for Tell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tell")
    }
}

/// Counts one phase, and tells of each hundredth of it.
pub(crate) struct Progress {
    tell: Option<Tell>,
    phase: OpenPhase,
    total: u64,
    /// Relaxed, both: figures.
    done: AtomicU64,
    next: AtomicU64,
}

impl Progress {
    pub(crate) fn new(tell: Option<Tell>, phase: OpenPhase, total: u64) -> Self {
        let progress =
            Self { tell, phase, total, done: AtomicU64::new(0), next: AtomicU64::new(0) };
        progress.tell(0);
        progress
    }

    fn tell(&self, done: u64) {
        if let Some(Tell(tell)) = &self.tell {
            tell(&OpenProgress { phase: self.phase, done, total: self.total });
        }
    }

    /// So much more is done.
    pub(crate) fn add(&self, count: u64) {
        let done = self.done.fetch_add(count, Ordering::Relaxed).saturating_add(count);
        let next = self.next.load(Ordering::Relaxed);
        if done < next.max(1) {
            return;
        }
        let later = done.saturating_add((self.total / 100).max(1));
        // One of those who came past it tells.
        let is_ours = self.next.compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed);
        if is_ours.is_ok() && done < self.total {
            self.tell(done);
        }
    }

    /// All of it is done, whatever was counted.
    pub(crate) fn end(&self) {
        self.tell(self.total);
    }
}
