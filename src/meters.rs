//! How long things took: histograms that many threads add to, and what is read of them.
//!
//! A duration falls into one of eight buckets to each doubling, so that what is read of them is off by an eighth at the most (the idea is that of
//! Gil Tene's HdrHistogram). To add one is an atomic addition or three. Single writes are too short for a look at the clock each: of those
//! that do not wait for the disk one in 64 of each thread is timed, and counts for as many.

use std::cell::Cell;
use std::fmt;
// Not of the model checker's: nothing is decided by them.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Buckets to a doubling, as a power of two.
const FINE_BITS: u32 = 3;
const FINE: u64 = 1 << FINE_BITS;
/// What takes longer than 2^41 ns, 37 minutes, is in the last one.
const LONGEST_BITS: u32 = 40;
const BUCKETS: usize = ((LONGEST_BITS - FINE_BITS + 2) << FINE_BITS) as usize;

/// Of so many short commits of a thread one is timed.
const ONE_IN: u32 = 64;

thread_local! {
    static COMMITS: Cell<u32> = const { Cell::new(0) };
}

/// What is counted and timed of a database.
///
/// Relaxed throughout: figures, and nothing is decided by them.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    pub(crate) commit: Meter,
    pub(crate) sync: Meter,
    pub(crate) cut: Meter,
    pub(crate) save: Meter,
    /// Transactions that committed, or had nothing to.
    pub(crate) transactions: AtomicU64,
    /// Times that one was run again, or given up, since others were in the way.
    pub(crate) conflicts: AtomicU64,
}

/// Durations of one kind.
pub(crate) struct Meter {
    counts: [AtomicU64; BUCKETS],
    total_ns: AtomicU64,
    max_ns: AtomicU64,
}

impl Default for Meter {
    fn default() -> Self {
        let counts = [const { AtomicU64::new(0) }; BUCKETS];
        Self { counts, total_ns: AtomicU64::new(0), max_ns: AtomicU64::new(0) }
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read().fmt(f)
    }
}

/// A commit that has begun, if it is timed.
#[must_use = "it is to be ended"]
pub(crate) struct Begun(Option<(Instant, u32)>);

impl Meters {
    /// A commit begins; whether it waits for the disk.
    #[inline]
    pub(crate) fn begin_commit(waits: bool) -> Begun {
        if waits {
            return Begun(Some((Instant::now(), 1)));
        }
        let count = COMMITS.get();
        COMMITS.set(count.wrapping_add(1));
        Begun(count.is_multiple_of(ONE_IN).then(|| (Instant::now(), ONE_IN)))
    }

    /// .. and has ended.
    #[inline]
    pub(crate) fn end_commit(&self, begun: &Begun) {
        if let Begun(Some((began, times))) = begun {
            self.commit.add(began.elapsed(), (*times).into());
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The bucket of a duration.
fn bucket_of(ns: u64) -> usize {
    let bits = 63 - (ns | 1).leading_zeros();
    let at = match bits.checked_sub(FINE_BITS) {
        None => ns,
        Some(_) if bits > LONGEST_BITS => BUCKETS as u64 - 1,
        Some(shift) => (u64::from(shift + 1) << FINE_BITS) + ((ns >> shift) & (FINE - 1)),
    };
    usize::try_from(at).unwrap_or(BUCKETS - 1)
}

/// The least duration that is beyond a bucket.
fn end_of(bucket: usize) -> u64 {
    let next = bucket as u64 + 1;
    match (next >> FINE_BITS).checked_sub(1) {
        None => next,
        Some(shift) => (FINE + (next & (FINE - 1))) << shift,
    }
}

impl Meter {
    pub(crate) fn record(&self, took: Duration) {
        self.add(took, 1);
    }

    fn add(&self, took: Duration, times: u64) {
        let ns = nanos(took);
        if let Some(count) = self.counts.get(bucket_of(ns)) {
            count.fetch_add(times, Ordering::Relaxed);
        }
        self.total_ns.fetch_add(ns.saturating_mul(times), Ordering::Relaxed);
        if self.max_ns.load(Ordering::Relaxed) < ns {
            self.max_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self) -> Histogram {
        Histogram {
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            total: Duration::from_nanos(self.total_ns.load(Ordering::Relaxed)),
            max: Duration::from_nanos(self.max_ns.load(Ordering::Relaxed)),
        }
    }
}

/// How long something took, each time: counts of durations, eight buckets to each doubling.
///
/// ```
/// let db = stillframe::Database::in_memory();
/// let data = db.keyspace("data")?;
/// for n in 0..1_000_u32 {
///     data.insert(n.to_be_bytes(), "")?;
/// }
/// let commits = db.stats().commits;
/// println!("half of the writes took less than {:?}", commits.quantile(0.5).unwrap());
/// assert!(commits.quantile(0.5) <= commits.quantile(0.99));
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: Duration,
    max: Duration,
}

impl Histogram {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together.
    pub fn total(&self) -> Duration {
        self.total
    }

    /// The longest; `None` if there was none.
    pub fn max(&self) -> Option<Duration> {
        (self.count() > 0).then_some(self.max)
    }

    /// So long, or up to an eighth less, did the share `q` of them take at the most: 0.5 for the median; `None` if there was none.
    ///
    /// # Panics
    /// If `q` is not between 0 and 1.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        assert!((0.0..=1.0).contains(&q), "a share of {q}");
        let wanted = (q * self.count() as f64).ceil().max(1.0);
        let mut seen = 0;
        self.buckets().find_map(|(end, count)| {
            seen += count;
            (seen as f64 >= wanted).then(|| end.min(self.max))
        })
    }

    /// How many took less than `than`, which is taken down to the end of a bucket; powers of two in nanoseconds are such.
    pub fn below(&self, than: Duration) -> u64 {
        self.buckets().take_while(|(end, _)| *end <= than).map(|(_, count)| count).sum()
    }

    /// For each bucket that is not empty, the duration that is the first beyond it, and how many are in it; ascending.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let all = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        all.map(|(bucket, count)| (Duration::from_nanos(end_of(bucket)), *count))
    }

    /// What came since `earlier`, which was read of the same database before: the longest may be of before.
    #[must_use]
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let counts = self.counts.iter().zip(&earlier.counts);
        Histogram {
            counts: counts.map(|(now, before)| now.saturating_sub(*before)).collect(),
            total: self.total.saturating_sub(earlier.total),
            max: self.max,
        }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |q| self.quantile(q).unwrap_or_default();
        write!(f, "Histogram({} times, median {:?}, p99 {:?})", self.count(), of(0.5), of(0.99))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another_and_are_an_eighth_wide_at_most() {
        for bucket in 0..BUCKETS - 1 {
            let end = end_of(bucket);
            assert_eq!((bucket_of(end - 1), bucket_of(end)), (bucket, bucket + 1), "{bucket}");
            let start = if bucket == 0 { 0 } else { end_of(bucket - 1) };
            assert!(end - start <= (start / 8).max(1), "{start} to {end}");
        }
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_read_is_what_was_added() {
        let meter = Meter::default();
        assert_eq!((meter.read().quantile(0.5), meter.read().max()), (None, None));
        (1..=1_000).for_each(|us| meter.record(Duration::from_micros(us)));
        let read = meter.read();
        assert_eq!((read.count(), read.max()), (1_000, Some(Duration::from_millis(1))));
        assert_eq!(read.total(), Duration::from_micros(500_500));
        for (q, us) in [(0.0, 1), (0.5, 500), (0.99, 990), (1.0, 1_000)] {
            let found = read.quantile(q).unwrap();
            let (least, most) = (Duration::from_micros(us), Duration::from_micros(us) * 9 / 8);
            assert!((least..=most).contains(&found), "{q}: {found:?}");
        }
        let below = read.below(Duration::from_nanos(1 << 17));
        assert_eq!(below, 131);
        meter.record(Duration::from_micros(3));
        let since = meter.read().since(&read);
        assert_eq!((since.count(), since.total()), (1, Duration::from_micros(3)));
    }

    #[test]
    fn one_in_so_many_short_commits_is_timed_and_counts_for_all() {
        let meters = Meters::default();
        for _ in 0..10 * ONE_IN {
            meters.end_commit(&Meters::begin_commit(false));
        }
        assert_eq!(meters.commit.read().count(), u64::from(10 * ONE_IN));
        meters.end_commit(&Meters::begin_commit(true));
        assert_eq!(meters.commit.read().count(), u64::from(10 * ONE_IN) + 1);
    }
}
