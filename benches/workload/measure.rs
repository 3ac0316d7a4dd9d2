//! Clocks, counters and what is made of them: threads that start together, medians, latencies, memory.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Runs `work(0)`, `work(1)`, … on `threads` threads at once: from the first start to the last end.
pub(crate) fn together(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let barrier = Barrier::new(threads);
    let run = |thread| {
        barrier.wait();
        let began = Instant::now();
        work(thread);
        (began, Instant::now())
    };
    let spans: Vec<(Instant, Instant)> = if threads == 1 {
        vec![run(0)]
    } else {
        thread::scope(|scope| {
            let run = &run;
            let handles: Vec<_> = (0..threads).map(|at| scope.spawn(move || run(at))).collect();
            handles.into_iter().map(|handle| handle.join().expect("no panic")).collect()
        })
    };
    let began = spans.iter().map(|span| span.0).min().expect("at least one thread");
    let ended = spans.iter().map(|span| span.1).max().expect("at least one thread");
    ended - began
}

/// What one contender did, round by round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(pub(crate) Vec<f64>);

impl Samples {
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.as_slice() {
            [] => f64::NAN,
            some if some.len() % 2 == 1 => some[some.len() / 2],
            some => (some[some.len() / 2 - 1] + some[some.len() / 2]) / 2.0,
        }
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Round by round, so that what disturbs a whole round cancels out.
    pub(crate) fn over(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
    }
}

/// One thing to measure: what it is called, and a round of it.
pub(crate) type Lane<'a> = (&'a str, Box<dyn FnMut(usize) -> f64 + 'a>);

/// Runs `rounds` rounds of all `lanes`, one after the other in each round; the first round is not counted.
pub(crate) fn interleaved(rounds: usize, lanes: &mut [Lane<'_>]) -> Vec<Samples> {
    let mut samples = vec![Samples::default(); lanes.len()];
    for round in 0..=rounds {
        for (lane, samples) in lanes.iter_mut().zip(&mut samples) {
            let sample = (lane.1)(round);
            if round > 0 {
                samples.0.push(sample);
            }
        }
    }
    samples
}

/// Times of single operations, in buckets about 3 % wide.
pub(crate) struct Latencies {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
    above_5_ms: u64,
}

/// Buckets per doubling.
const STEPS: u64 = 32;

impl Latencies {
    pub(crate) fn new() -> Self {
        Latencies { buckets: vec![0; 64 * 32], count: 0, max: 0, above_5_ms: 0 }
    }

    pub(crate) fn record(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(ns)] += 1;
        self.count += 1;
        self.max = self.max.max(ns);
        self.above_5_ms += u64::from(ns > 5_000_000);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn max_us(&self) -> f64 {
        self.max as f64 / 1e3
    }

    pub(crate) fn above_5_ms(&self) -> u64 {
        self.above_5_ms
    }

    /// The time that `share` of all operations did not exceed, in microseconds.
    pub(crate) fn quantile_us(&self, share: f64) -> f64 {
        let mut left = share * self.count as f64;
        for (bucket, count) in self.buckets.iter().enumerate() {
            left -= *count as f64;
            if left <= 0.0 {
                return Self::middle(bucket as u64) / 1e3;
            }
        }
        self.max_us()
    }

    fn bucket(ns: u64) -> usize {
        let doublings = u64::from(ns.max(STEPS).ilog2() - STEPS.ilog2());
        let bucket = doublings * STEPS + (ns >> doublings);
        usize::try_from(bucket).expect("at most 64 doublings")
    }

    fn middle(bucket: u64) -> f64 {
        if bucket < 2 * STEPS {
            return bucket as f64 + 0.5;
        }
        let doublings = bucket / STEPS - 1;
        let low = (bucket - doublings * STEPS) << doublings;
        low as f64 + (1u64 << doublings) as f64 / 2.0
    }
}

/// The resident set of this process, in bytes.
pub(crate) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("the benches run on Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a VmRSS line");
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .expect("VmRSS is a number of KiB");
    kib * 1024
}

/// What the criterion benches measured, by figure and contender, to print ratios at the end.
#[derive(Default)]
pub(crate) struct Tally(Mutex<BTreeMap<String, Vec<Entry>>>);

struct Entry {
    contender: String,
    /// Iterations and nanoseconds per operation of each sample.
    samples: Vec<(u64, f64)>,
}

impl Tally {
    /// Notes that `iterations` of `operations` each took `took` in all.
    pub(crate) fn note(
        &self,
        figure: &str,
        contender: &str,
        iterations: u64,
        operations: u64,
        took: Duration,
    ) {
        let sample = (iterations, took.as_secs_f64() * 1e9 / (iterations * operations) as f64);
        let mut figures = self.0.lock().expect("no panic");
        let entries = figures.entry(figure.to_owned()).or_default();
        match entries.iter_mut().find(|entry| entry.contender == contender) {
            Some(entry) => entry.samples.push(sample),
            None => {
                let contender = contender.to_owned();
                entries.push(Entry { contender, samples: vec![sample] });
            }
        }
    }

    /// Prints, for each figure, the first contender's time and how many times as long the others took.
    pub(crate) fn print(&self) {
        println!("\nns per operation (medians), and how many times as long the others take");
        for (figure, entries) in &*self.0.lock().expect("no panic") {
            let mut ours = None;
            print!("  {figure:<34}");
            for entry in entries {
                // Warming up begins with single iterations, which say little.
                let most = entry.samples.iter().map(|sample| sample.0).max().unwrap_or(0);
                let counted = entry.samples.iter().filter(|sample| sample.0 * 20 >= most);
                let median = Samples(counted.map(|sample| sample.1).collect()).median();
                match ours {
                    None => print!("  {} {median:.0}", entry.contender),
                    Some(ours) => {
                        print!("  {} {median:.0} ({:.2}x)", entry.contender, median / ours)
                    }
                }
                ours = ours.or(Some(median));
            }
            println!();
        }
    }
}

/// Prints `found` beside the least that is expected.
pub(crate) fn at_least(what: &str, found: f64, expected: f64, unit: &str) {
    verdict(what, found, found >= expected, &format!("at least {expected}"), unit);
}

/// Prints `found` beside the most that is expected.
pub(crate) fn at_most(what: &str, found: f64, expected: f64, unit: &str) {
    verdict(what, found, found <= expected, &format!("at most {expected}"), unit);
}

fn verdict(what: &str, found: f64, met: bool, expected: &str, unit: &str) {
    let word = if met { "met" } else { "MISSED" };
    println!("=> {what:<62} {found:>9.2} {unit}, expected {expected}: {word}");
}
