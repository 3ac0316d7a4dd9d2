//! Where a replica finds its source, and how it is to follow it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::ReplicaStatus;
use crate::LinkKey;
use crate::replication::link::Link;
use crate::serve::short;

/// What a replica does with reads while it has not what its source has.
///
/// ```
/// use std::time::Duration;
/// use stillframe::{Database, Error, ReplicaSource, StalePolicy};
///
/// let copy = Database::in_memory();
/// let words = copy.keyspace("words")?;
/// let policy = StalePolicy::Refuse { after: Duration::from_secs(5) };
/// // Nobody listens on port 1.
/// let replica = copy.follow(ReplicaSource::tcp("127.0.0.1:1").stale_policy(policy))?;
/// assert!(matches!(words.get("film"), Err(Error::Stale)));
/// replica.stop();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StalePolicy {
    /// Answers them from what it has: one state of its primary, if an old one.
    #[default]
    Serve,
    /// Refuses them with [`Error::Stale`](crate::Error::Stale), unless it was up to date within so long. After it was opened it
    /// refuses them until it is up to date: how old what it has is nobody knows.
    Refuse {
        /// So long after it last was.
        after: Duration,
    },
}

/// Where a replica finds its source, and how it follows it.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-source-{}", std::process::id()));
/// # std::fs::create_dir(&dir).unwrap();
/// use std::time::Duration;
/// use stillframe::{Database, LinkKey, ReplicaSource};
///
/// let source = ReplicaSource::unix(dir.join("primary.sock"))
///     .key(LinkKey::new([7; 32]))
///     .name("reports")
///     .timeout(Duration::from_secs(3))
///     .on_change(|status| eprintln!("{:?}, {} batches behind", status.state, status.lag));
/// let copy = Database::in_memory();
/// let replica = copy.follow(source)?;
/// replica.stop();
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone)]
pub struct ReplicaSource {
    pub(super) connect: Arc<Connect>,
    pub(super) place: String,
    pub(super) keys: Vec<LinkKey>,
    pub(super) beat: Duration,
    pub(super) timeout: Duration,
    pub(super) threads: usize,
    pub(super) name: String,
    pub(super) stale: StalePolicy,
    pub(super) drops_first: bool,
    pub(super) tell: Option<Arc<Tell>>,
}

pub(super) type Connect = dyn Fn(Duration) -> io::Result<Link> + Send + Sync;
pub(super) type Tell = dyn Fn(&ReplicaStatus) + Send + Sync;

impl ReplicaSource {
    fn new(
        place: String,
        connect: impl Fn(Duration) -> io::Result<Link> + Send + Sync + 'static,
    ) -> Self {
        Self {
            connect: Arc::new(connect),
            place,
            keys: Vec::new(),
            beat: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            threads: thread::available_parallelism().map_or(1, usize::from).min(4),
            name: String::new(),
            stale: StalePolicy::Serve,
            drops_first: false,
            tell: None,
        }
    }

    /// A node that listens on a TCP address, such as `"10.0.0.7:7878"`.
    pub fn tcp(address: impl Into<String>) -> Self {
        let address = address.into();
        Self::new(address.clone(), move |timeout| Link::connect_tcp(&address, timeout))
    }

    /// A node that listens on a Unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self::new(path.display().to_string(), move |_| Link::connect_unix(&path))
    }

    /// A node that `connect` makes links to, each time there is none: within the process, over TLS, whatever carries bytes.
    pub fn links(connect: impl Fn() -> io::Result<Link> + Send + Sync + 'static) -> Self {
        Self::new("links of the caller's".into(), move |_| connect())
    }

    /// Both sides prove to each other that they have this key, and every frame by it.
    #[must_use]
    pub fn key(mut self, key: LinkKey) -> Self {
        self.keys = vec![key];
        self
    }

    /// Says so often that it is there; default 1 s.
    #[must_use]
    pub fn heartbeat(mut self, every: Duration) -> Self {
        self.beat = every.max(Duration::from_millis(1));
        self
    }

    /// A source that says nothing for so long is lost, and connecting may take so long; default 10 s.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// So many threads build leaves of what comes in a full sync; default: as many as there are processors, 4 at the most.
    #[must_use]
    pub fn decoding_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// What the replica calls itself, for people.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = short(name.into());
        self
    }

    /// What is done with reads while it has not what its source has; default [`StalePolicy::Serve`].
    #[must_use]
    pub fn stale_policy(mut self, policy: StalePolicy) -> Self {
        self.stale = policy;
        self
    }

    /// Lets go of what it has before a full sync, instead of keeping it until the new state is whole: for who has no memory for both. Reads are refused with
    /// [`Error::Stale`](crate::Error::Stale) meanwhile, whatever the policy; stills that are held keep what they show. Deltas go as ever. Default: no.
    ///
    /// A crash in between leaves an empty directory, which whoever opens it without following may write to, and so does [`stop`](crate::Replica::stop): that is not
    /// to be promoted.
    #[must_use]
    pub fn drop_first(mut self, drop: bool) -> Self {
        self.drops_first = drop;
        self
    }

    /// Told of every change of [`state`](ReplicaStatus::state), on the thread that follows: it must not wait for that.
    #[must_use]
    pub fn on_change(mut self, tell: impl Fn(&ReplicaStatus) + Send + Sync + 'static) -> Self {
        self.tell = Some(Arc::new(tell));
        self
    }
}

impl fmt::Debug for ReplicaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicaSource").field("place", &self.place).finish_non_exhaustive()
    }
}
