//! Power cuts, enumerated: a trace is cut at every operation of the disk, and for each cut what the power cut may
//! leave is laid out, piece by piece; each disk so found is recovered, and the recovery is cut in turn.
//!
//! Oracle: what is recovered is the state after some batch, and no earlier one than the last that was acknowledged as
//! durable; recovered again it is the same, also if the recovery itself was cut anywhere.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use stillframe::simulation::{Change, CrashPoint, Fate, Random, SimDisk, Step};

use crate::trace::{State, Trace, recover};

#[derive(Args)]
pub(crate) struct Options {
    /// How many distinct disks to recover; without it, as many as 25 seconds allow
    #[arg(long, value_name = "N")]
    states: Option<u64>,
    /// One object on stdout, and nothing else there
    #[arg(long)]
    json: bool,
    /// The seed of the first trace
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Operations in a trace
    #[arg(long, default_value_t = 200)]
    operations: usize,
}

/// Counted over all traces.
#[derive(Default)]
struct Counts {
    states: AtomicU64,
    traces: AtomicU64,
    cuts: AtomicU64,
    /// Recoveries that were cut in turn.
    nested: AtomicU64,
    violations: AtomicU64,
    found: Mutex<Vec<String>>,
}

/// Of each trace the first so many recoveries are cut in turn, each at every operation, and one of so many later ones.
const NESTED: u64 = 100;
const NESTED_OF: u64 = 256;
/// One of so many is opened a second time.
const TWICE_OF: u64 = 4;
/// So many draws at random for each cut, beside what is laid out.
const DRAWS: usize = 24;

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let counts = Counts::default();
    let next_seed = AtomicU64::new(options.seed);
    let wanted = options.states.unwrap_or(u64::MAX);
    let until = options.states.is_none().then(|| began + Duration::from_secs(25));
    let is_over = || {
        counts.states.load(Ordering::Relaxed) >= wanted
            || until.is_some_and(|until| Instant::now() >= until)
            || counts.violations.load(Ordering::Relaxed) >= 20
    };
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !is_over() {
                    let seed = next_seed.fetch_add(1, Ordering::Relaxed);
                    let run = || enumerate(seed, options.operations, &counts, &is_over);
                    if catch_unwind(AssertUnwindSafe(run)).is_err() {
                        counts.violation(format!("seed {seed}: the trace itself failed"));
                    }
                    counts.traces.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let found = counts.found.into_inner().unwrap_or_default();
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let violations = get(&counts.violations);
    let seconds = began.elapsed().as_secs_f64();
    if options.json {
        let report = serde_json::json!({
            "states": get(&counts.states), "violations": violations, "traces": get(&counts.traces),
            "cuts": get(&counts.cuts), "nested": get(&counts.nested), "seed": options.seed,
            "seconds": seconds, "found": found,
        });
        println!("{report}");
    } else {
        println!(
            "{} distinct disks of {} cuts in {} traces from seed {} recovered, {} of the recoveries cut in turn, in {seconds:.0} s: {violations} violations",
            get(&counts.states),
            get(&counts.cuts),
            get(&counts.traces),
            options.seed,
            get(&counts.nested),
        );
        found.iter().for_each(|violation| println!("{violation}"));
    }
    Ok(if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Counts {
    fn violation(&self, what: String) {
        self.violations.fetch_add(1, Ordering::Relaxed);
        eprintln!("{what}");
        if let Ok(mut found) = self.found.lock() {
            found.push(what);
        }
    }
}

/// One trace, cut everywhere.
fn enumerate(seed: u64, operations: usize, counts: &Counts, is_over: &dyn Fn() -> bool) {
    let mut trace = Trace::new(seed, SimDisk::new());
    trace.run(operations);
    let trace = trace.kill();
    let mut random = Random::new(seed ^ 0x00C0_FFEE);
    let mut seen = HashSet::new();
    let mut nested = 0;
    for cut in 0..=trace.disk.change_count() {
        if is_over() {
            return;
        }
        counts.cuts.fetch_add(1, Ordering::Relaxed);
        let point = trace.disk.crash_point(cut);
        let least = trace.durable_at(cut);
        for fates in layouts(&point, &mut random) {
            let image = point.image(&fates);
            if !seen.insert(hash(&image)) {
                continue;
            }
            counts.states.fetch_add(1, Ordering::Relaxed);
            let told = |what: String| {
                counts.violation(format!("seed {seed}, cut at {cut}, {fates:?}: {what}"));
            };
            let work = image.fork();
            let twice = random.one_in(TWICE_OF);
            let recovered = catch_unwind(AssertUnwindSafe(|| recover(&work, twice)));
            let found = match recovered {
                Err(_) => {
                    told("a panic".into());
                    continue;
                }
                Ok(Err(what)) => {
                    told(what);
                    continue;
                }
                Ok(Ok(found)) => found,
            };
            if trace.states.get(&found.0) != Some(&found.1) {
                told(format!("batch {} is there, with other content", found.0));
            } else if found.0 < least {
                told(format!("batch {} is there, {least} was durable", found.0));
            } else if twice && (nested < NESTED || random.one_in(NESTED_OF / TWICE_OF)) {
                nested += 1;
                again(&work, found, &mut random, counts, &told);
            }
        }
    }
}

/// Cuts a recovery at each of its operations and recovers what is left: the same is found.
fn again(
    recovered: &SimDisk,
    found: State,
    random: &mut Random,
    counts: &Counts,
    told: &dyn Fn(String),
) {
    counts.nested.fetch_add(1, Ordering::Relaxed);
    for cut in 0..=recovered.change_count() {
        let point = recovered.crash_point(cut);
        let all: Vec<_> = point.pending().iter().map(|(index, _)| (*index, Fate::Kept)).collect();
        for fates in [Vec::new(), all, point.draw(random)] {
            match recover(&point.image(&fates), true) {
                Ok(second) if second == found => {}
                Ok(second) => told(format!("recovery cut at {cut}: {found:?}, then {second:?}")),
                Err(what) => told(format!("recovery cut at {cut}: {what}")),
            }
        }
    }
}

/// What a power cut may leave: all or nothing of what was pending, each piece alone, all but one, every
/// beginning with the last piece torn, the same backwards, and some at random.
fn layouts(point: &CrashPoint, random: &mut Random) -> Vec<Vec<(usize, Fate)>> {
    let pending = point.pending();
    let all: Vec<_> = pending.iter().map(|(index, _)| (*index, Fate::Kept)).collect();
    let mut layouts = vec![Vec::new(), all.clone()];
    // Of many, those nearest to the cut, and some of the others.
    let near = pending.len().saturating_sub(12);
    for (at, (index, change)) in pending.iter().enumerate() {
        if at < near && !random.one_in(8) {
            continue;
        }
        layouts.push(vec![(*index, Fate::Kept)]);
        let mut others = all.clone();
        others.remove(at);
        layouts.push(others);
        layouts.push(all[..at].to_vec());
        for torn in torn(change, random) {
            let mut beginning = all[..at].to_vec();
            beginning.extend(torn.iter().map(|fate| (*index, *fate)));
            layouts.push(beginning);
            let mut with_later = all.clone();
            with_later.splice(at..=at, torn.iter().map(|fate| (*index, *fate)));
            layouts.push(with_later);
        }
    }
    let mut backwards = all;
    backwards.reverse();
    layouts.push(backwards);
    layouts.extend((0..DRAWS).map(|_| point.draw(random)));
    layouts
}

/// The ways in which one write can be there in part.
fn torn(change: &Change, random: &mut Random) -> Vec<Vec<Fate>> {
    let Step::Write { data, .. } = &change.step else { return Vec::new() };
    let len = data.len();
    if len == 0 {
        return Vec::new();
    }
    let mut torn = vec![
        vec![Fate::Zeros],
        vec![Fate::Garbage(random.next_u64())],
        vec![Fate::Sectors(random.next_u64())],
        vec![Fate::Sectors(!1)],
        vec![Fate::Zeros, Fate::Sectors(random.next_u64())],
        vec![Fate::Bytes(random.next_u64())],
        vec![Fate::Without(random.below(len as u64) as usize)],
        vec![Fate::Without(len - 1)],
    ];
    // At one byte and another, and at the borders of what the engine writes.
    let random_len = random.below(len as u64 + 1) as usize;
    for prefix in [1, 4, 16, 48, len / 2, len.saturating_sub(1), random_len] {
        if prefix > 0 && prefix < len {
            torn.push(vec![Fate::Prefix(prefix)]);
        }
    }
    torn
}

fn hash(disk: &SimDisk) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in disk.files() {
        path.hash(&mut hasher);
        disk.contents(&path).unwrap_or_default().hash(&mut hasher);
    }
    hasher.finish()
}
