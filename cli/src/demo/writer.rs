//! One thread that overwrites uniformly random existing records without pause, and what each
//! write took.
//!
//! The clock is read once a write: a latency is the time from the end of one write to the end of
//! the next, so nothing that holds the writer up falls between two measurements. It includes
//! picking the record (a few nanoseconds); values were made before.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use stillframe::Keyspace;

use super::histogram::Histogram;
use super::made::{self, KEY_LEN};
use super::random::mix;
use super::sources;

/// Keys and values a second that are written beside a replica: so much that two processors serve both, and that
/// it has to keep up.
pub(crate) const PACE: f64 = 10e6;

/// What the writer overwrites, and by what.
pub(crate) enum Workload {
    Made(made::Overwrites),
    Sources(sources::Overwrites),
}

/// What the latencies of the writer count for.
#[derive(Clone, Copy)]
pub(crate) enum Phase {
    Unrecorded,
    Idle,
    Saving,
    /// At [`PACE`].
    Beside,
    Stop,
}

/// What the writer recorded.
pub(crate) struct Recorded {
    pub(crate) idle: Histogram,
    pub(crate) saving: Histogram,
    /// Beside a replica.
    pub(crate) beside: Histogram,
}

/// The writer as who watches it sees it; stops when dropped.
pub(crate) struct Writer<'a> {
    /// A [`Phase`].
    phase: &'a AtomicUsize,
}

impl Writer<'_> {
    /// From the next write on, latencies count for `phase`.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as usize, Ordering::Relaxed); // Relaxed: it carries no data
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.enter(Phase::Stop);
    }
}

/// Runs the writer for as long as `watch` does.
pub(crate) fn run<T>(
    keyspace: &Keyspace,
    workload: &Workload,
    watch: impl FnOnce(&Writer<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<(T, Recorded)> {
    let phase = AtomicUsize::new(Phase::Unrecorded as usize);
    thread::scope(|scope| {
        let writer = Writer { phase: &phase };
        let thread = scope.spawn(|| overwrite(keyspace, workload, &phase));
        let watched = watch(&writer);
        drop(writer);
        let recorded = thread.join().expect("the writer does not panic")?;
        Ok((watched?, recorded))
    })
}

fn overwrite(
    keyspace: &Keyspace,
    workload: &Workload,
    phase: &AtomicUsize,
) -> anyhow::Result<Recorded> {
    let mut histograms = [(); 4].map(|()| Histogram::new());
    let mut picker = Picker { random: 1, cursor: 0, key: [0; KEY_LEN] };
    let mut last = Instant::now();
    let mut pace = None;
    loop {
        let phase = phase.load(Ordering::Relaxed); // Relaxed: it carries no data
        if phase == Phase::Stop as usize {
            let [_, idle, saving, beside] = histograms;
            return Ok(Recorded { idle, saving, beside });
        }
        let (key, value) = picker.pick(workload);
        keyspace.insert(key, value)?;
        if phase == Phase::Beside as usize {
            pace.get_or_insert_with(Pace::new).wrote(key.len() + value.len());
        }
        let now = Instant::now();
        let ns = u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX);
        histograms[phase].record(ns);
        last = now;
    }
}

/// Holds the writer back.
struct Pace {
    began: Instant,
    bytes: f64,
}

impl Pace {
    fn new() -> Self {
        Pace { began: Instant::now(), bytes: 0.0 }
    }

    /// Waits until it was time for what was written, if that is more than a sleep takes.
    fn wrote(&mut self, bytes: usize) {
        self.bytes += bytes as f64;
        let due = Duration::from_secs_f64(self.bytes / PACE);
        let early = due.saturating_sub(self.began.elapsed());
        if early > Duration::from_millis(1) {
            thread::sleep(early);
        }
    }
}

/// Random records, and values in turn.
struct Picker {
    random: u64,
    /// Where the next value is.
    cursor: usize,
    key: [u8; KEY_LEN],
}

impl Picker {
    fn pick<'a>(&'a mut self, workload: &'a Workload) -> (&'a [u8], &'a [u8]) {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let random = mix(self.random);
        match workload {
            Workload::Made(made) => made.pick(random, &mut self.cursor, &mut self.key),
            Workload::Sources(sources) => sources.pick(random, &mut self.cursor),
        }
    }
}

impl Workload {
    /// The key of some record.
    pub(crate) fn any_key(&self) -> Vec<u8> {
        let mut picker = Picker { random: 2, cursor: 0, key: [0; KEY_LEN] };
        picker.pick(self).0.to_vec()
    }
}
