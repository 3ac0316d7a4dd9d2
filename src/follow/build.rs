//! Leaves are built of the blocks that come: on threads beside the one that takes them, and by that one while those are busy.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};

use crate::Result;
use crate::storage::load::{Arrived, Group};
use crate::tree::{BuiltLeaf, Bulk};

/// Groups that are being built, or wait for those before them.
const MOST: usize = 64;

type Leaves = Result<Arrived<BuiltLeaf>>;

/// A group, and what became of it.
pub(crate) struct Built {
    pub(crate) group: Group,
    pub(crate) leaves: Leaves,
    /// The number of the block behind it.
    pub(crate) end: u64,
}

/// Builds groups, and gives them back in the order in which they came.
pub(crate) struct Builders {
    bulk: Arc<Bulk>,
    /// Threads to start once there is something to do.
    count: usize,
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    pending: VecDeque<Pending>,
}

enum Pending {
    There(Box<Built>),
    Elsewhere(Receiver<Built>),
}

struct Job {
    group: Group,
    end: u64,
    built: Sender<Built>,
}

fn build(bulk: &Bulk, group: Group, end: u64) -> Built {
    let leaves = group.build(bulk);
    Built { group, leaves, end }
}

impl Builders {
    /// Builds into `bulk`, on so many threads beside the caller's.
    pub(crate) fn new(bulk: Bulk, count: usize) -> Self {
        let (jobs, threads, pending) = (None, Vec::new(), VecDeque::new());
        Self { bulk: Arc::new(bulk), count, jobs, threads, pending }
    }

    /// Has a group built, behind which the block `end` comes.
    pub(crate) fn add(&mut self, group: Group, end: u64) {
        if self.count == 0 {
            let built = build(&self.bulk, group, end);
            self.pending.push_back(Pending::There(Box::new(built)));
            return;
        }
        let (built, receiver) = bounded(1);
        let job = Job { group, end, built };
        match self.jobs().try_send(job) {
            Ok(()) => self.pending.push_back(Pending::Elsewhere(receiver)),
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                let built = build(&self.bulk, job.group, job.end);
                self.pending.push_back(Pending::There(Box::new(built)));
            }
        }
    }

    fn jobs(&mut self) -> &Sender<Job> {
        self.jobs.get_or_insert_with(|| {
            let (jobs, taken) = bounded::<Job>(2 * self.count);
            let run = |bulk: Arc<Bulk>, jobs: Receiver<Job>| {
                for Job { group, end, built } in jobs {
                    // Nobody waits for it any more: it is dropped.
                    let _ = built.send(build(&bulk, group, end));
                }
            };
            for _ in 0..self.count {
                let (bulk, taken) = (Arc::clone(&self.bulk), taken.clone());
                let thread = thread::Builder::new().name("stillframe-build".into());
                let thread = thread.spawn(move || run(bulk, taken));
                self.threads.push(thread.expect("the system starts a thread"));
            }
            jobs
        })
    }

    /// The next group, if it is built; waits for it if `all` are wanted, or too many wait.
    pub(crate) fn next(&mut self, all: bool) -> Option<Built> {
        let waits = all || self.pending.len() > MOST;
        match self.pending.pop_front()? {
            Pending::There(built) => Some(*built),
            Pending::Elsewhere(receiver) if waits => {
                Some(receiver.recv().expect("our bug: who builds has panicked"))
            }
            Pending::Elsewhere(receiver) => match receiver.try_recv() {
                Ok(built) => Some(built),
                Err(TryRecvError::Empty) => {
                    self.pending.push_front(Pending::Elsewhere(receiver));
                    None
                }
                Err(TryRecvError::Disconnected) => panic!("our bug: who builds has panicked"),
            },
        }
    }

    /// Forgets what has not been given back.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
    }
}

impl Drop for Builders {
    fn drop(&mut self) {
        self.pending.clear();
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Told where its answer was missed.
            let _ = thread.join();
        }
    }
}
