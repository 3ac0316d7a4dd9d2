//! Connections between a primary and a replica are cut after every single byte, and worse: a proxy in between sees to it.
//!
//! Real sockets, real threads. What must hold: the replica gets to where its primary is, with the same fingerprint, by records or changed leaves,
//! never by everything where it has the data; within a bounded time; and a link that is not as it should be is found out.

use std::collections::BTreeMap;
use std::panic;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use stillframe::LinkLost;
use stillframe::simulation::Random;

mod lasting;
mod pair;
mod proxy;

use pair::{Outcome, Pace, Pair, SCENARIOS, Scenario, Setup};
use proxy::{Fault, WAYS, Way};

#[derive(Args)]
pub(crate) struct Options {
    /// One object on stdout, and nothing else there
    #[arg(long)]
    json: bool,
    /// What decides about values, about bytes that are left out, and about faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cuts at so many percent of the bytes, and at all places where frames begin and end
    #[arg(long, default_value_t = 100)]
    share: u64,
    /// So many other faults
    #[arg(long, default_value_t = 400)]
    faults: u64,
    /// Batches that are written while a replica does not read
    #[arg(long, default_value_t = 200_000)]
    batches: u64,
    /// Pairs at work at the same time; most of the time each waits
    #[arg(long, default_value_t = 12)]
    workers: usize,
}

/// What has come of all of it.
#[derive(Default)]
struct Found {
    cases: u64,
    /// Faults that did not come about: less was said than when it was recorded.
    late: u64,
    violations: Vec<String>,
    /// Bytes that were said, by setup, scenario and way.
    lengths: BTreeMap<String, usize>,
    by_fault: BTreeMap<&'static str, u64>,
    /// Why links ended.
    ends: BTreeMap<String, u64>,
}

/// What is done to one connection.
struct Job {
    scenario: Scenario,
    fault: Fault,
}

const CALM: Pace = Pace { beat: Duration::from_millis(30), timeout: Duration::from_secs(5) };
const QUICK: Pace = Pace { beat: Duration::from_millis(20), timeout: Duration::from_millis(200) };

/// Beyond that something is wrong with all of it.
const MOST_VIOLATIONS: usize = 50;

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let began = Instant::now();
    let found = campaign(options)?;
    let seconds = began.elapsed().as_secs_f64();
    let Found { cases, late, violations, lengths, by_fault, ends } = found;
    if options.json {
        let report = serde_json::json!({
            "cases": cases, "violations": violations.len(), "late": late, "faults": by_fault,
            "ends": ends, "lengths": lengths, "seed": options.seed, "share": options.share,
            "seconds": seconds, "found": violations,
        });
        println!("{report}");
    } else {
        println!(
            "{cases} cases, seed {}, in {seconds:.0} s: {} violations; {late} faults behind the end of what was said",
            options.seed,
            violations.len()
        );
        println!("faults: {by_fault:?}");
        println!("ends of links: {ends:?}");
        lengths.iter().for_each(|(what, len)| println!("{what}: {len} bytes"));
        violations.iter().for_each(|violation| println!("{violation}"));
    }
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn campaign(options: &Options) -> Result<Found> {
    let campaign = Campaign { options, found: Mutex::default() };
    static PANICKED: AtomicBool = AtomicBool::new(false);
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        // Relaxed: it is looked at when the threads have ended.
        PANICKED.store(true, Ordering::Relaxed);
        before(info);
    }));
    if options.batches > 0 {
        for on_disk in [false, true] {
            let setup = Setup { unix: on_disk, has_key: on_disk, on_disk };
            let what = lasting::does_not_read(setup, options.batches);
            campaign.count("does not read", &setup.name(), what);
        }
    }
    for setup in Setup::ALL {
        campaign.count("twice", &setup.name(), lasting::twice(setup));
    }
    let mut random = Random::new(options.seed);
    for (at, setup) in Setup::ALL.into_iter().enumerate() {
        let jobs = campaign.cuts(setup, &mut random)?;
        campaign.work(setup, CALM, &jobs);
        let count = options.faults / 8 + u64::from((at as u64) < options.faults % 8);
        let jobs = campaign.faults(setup, count, &mut random);
        campaign.work(setup, QUICK, &jobs);
        if PANICKED.swap(false, Ordering::Relaxed) {
            campaign.found().violations.push(format!("{}: a panic", setup.name()));
        }
        if campaign.is_hopeless() {
            break;
        }
    }
    Ok(campaign.found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// What its threads share.
struct Campaign<'o> {
    options: &'o Options,
    found: Mutex<Found>,
}

impl Campaign<'_> {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_hopeless(&self) -> bool {
        self.found().violations.len() > MOST_VIOLATIONS
    }

    fn count(&self, fault: &'static str, case: &str, what: Result<(), String>) {
        let mut found = self.found();
        found.cases += 1;
        *found.by_fault.entry(fault).or_default() += 1;
        found.violations.extend(what.err().map(|what| format!("{fault}: {case}: {what}")));
    }

    /// Cuts at the bytes that are wanted.
    fn cuts(&self, setup: Setup, random: &mut Random) -> Result<Vec<Job>> {
        let Options { share, seed, .. } = *self.options;
        let mut pair = Pair::new(setup, CALM, CALM, seed)?;
        let mut jobs = Vec::new();
        for scenario in SCENARIOS {
            let bytes = pair.record(scenario).map_err(anyhow::Error::msg);
            let bytes = bytes.with_context(|| format!("{}: {scenario:?}", setup.name()))?;
            for (way, bytes) in WAYS.into_iter().zip(bytes) {
                self.found().lengths.insert(talk(setup, scenario, way), bytes.len());
                let mut at: Vec<usize> =
                    (0..bytes.len()).filter(|_| random.below(100) < share).collect();
                if share > 0 {
                    at.extend(pair.boundaries(&bytes));
                    at.sort_unstable();
                    at.dedup();
                }
                let cut = |after| Job { scenario, fault: Fault::Cut { way, after } };
                jobs.extend(at.into_iter().map(cut));
            }
        }
        Ok(jobs)
    }

    /// So many other faults, at any place of what was said.
    fn faults(&self, setup: Setup, count: u64, random: &mut Random) -> Vec<Job> {
        let found = self.found();
        let mut job = || {
            let scenario = SCENARIOS[random.below(4) as usize];
            let way = WAYS[random.below(2) as usize];
            let len = found.lengths.get(&talk(setup, scenario, way)).copied().unwrap_or(1);
            let at = random.below(len as u64) as usize;
            let fault = match random.below(8) {
                0 => Fault::OneByte,
                1 => Fault::Stall { way, after: at, both: false },
                2 => Fault::Stall { way, after: at, both: true },
                3 | 4 => Fault::Reset { way, after: at },
                _ => Fault::Flip { way, at, bit: random.below(8) as u8 },
            };
            Job { scenario, fault }
        };
        (0..count).map(|_| job()).collect()
    }

    fn work(&self, setup: Setup, pace: Pace, jobs: &[Job]) {
        let next = &AtomicUsize::new(0);
        thread::scope(|scope| {
            for worker in 0..self.options.workers.min(jobs.len()) {
                scope.spawn(move || {
                    let seed = self.options.seed ^ (worker as u64) << 32;
                    let mut pair = None;
                    // Relaxed: each takes another one; nothing else is ordered by it.
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
                        && !self.is_hopeless()
                    {
                        let made = match pair.take() {
                            Some(pair) => Ok(pair),
                            None => Pair::new(setup, pace, pace, seed),
                        };
                        pair = self.one(made, job, &setup.name());
                    }
                    if let Some(Err(what)) = pair.map(|mut pair: Pair| pair.tidy_up()) {
                        self.found().violations.push(format!("{}: {what}", setup.name()));
                    }
                });
            }
        });
    }

    /// One case; the pair goes on to the next if all was well.
    fn one(&self, pair: Result<Pair>, job: &Job, name: &str) -> Option<Pair> {
        let fault = match job.fault {
            Fault::None => "none",
            Fault::Cut { .. } => "cut",
            Fault::Reset { .. } => "reset",
            Fault::Stall { both: false, .. } => "one way stalls",
            Fault::Stall { both: true, .. } => "both ways stall",
            Fault::Flip { .. } => "bit flipped",
            Fault::OneByte => "byte by byte",
        };
        let case = format!("{name}, {:?}, {:?}", job.scenario, job.fault);
        let outcome = pair.map_err(|error| format!("{error:#}")).and_then(|mut pair| {
            let outcome = pair.case(job.scenario, job.fault)?;
            Ok((pair, outcome))
        });
        match outcome {
            Ok((pair, Outcome { struck, status })) => {
                self.count(fault, &case, Ok(()));
                let mut found = self.found();
                found.late += u64::from(!struck && !matches!(job.fault, Fault::OneByte));
                let end = status.last_end.map_or("none".into(), |end| name_of(&end));
                *found.ends.entry(format!("{fault}: {end}")).or_default() += 1;
                Some(pair)
            }
            Err(what) => {
                self.count(fault, &case, Err(what));
                None
            }
        }
    }
}

fn talk(setup: Setup, scenario: Scenario, way: Way) -> String {
    format!("{}: {scenario:?} {way:?}", setup.name())
}

/// Why a link ended, without what differs from one to the next.
fn name_of(end: &LinkLost) -> String {
    let told = format!("{end:?}");
    told.split_once(['(', ' ', '{']).map_or(told.clone(), |(name, _)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_share() {
        let options =
            Options { json: false, seed: 7, share: 0, faults: 48, batches: 2_000, workers: 8 };
        let found = campaign(&options).unwrap();
        assert!(found.violations.is_empty(), "{:#?}", found.violations);
        assert!(found.cases >= 48);
    }
}
