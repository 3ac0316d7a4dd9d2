//! Transactions at random: whatever they see and write must be what some order of them, one after the other, makes.
//!
//! Each seed is run twice. In *turns*, on one thread, so that the seed says all that happens: several transactions are under way at once, a
//! step of one, then of another, with plain writes between; the order of the Seqs is then played on a map. On *threads*, whose schedule
//! the machine picks, transactions append to lists, and the lists alone tell who came before whom: a cycle among them is a
//! violation (Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations", VLDB 2020).

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Args;

mod cycles;
mod threads;
mod turns;

#[derive(Args)]
pub(crate) struct Options {
    /// How many seeds to run; without it 200, or the one that `--seed` names
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long)]
    seed: Option<u64>,
    /// One object on stdout, and nothing else there
    #[arg(long)]
    json: bool,
}

/// What became of the transactions of one seed, or of all.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    committed: u64,
    /// .. of those, how many wrote nothing.
    read_only: u64,
    conflicts: u64,
    edges: u64,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.committed += other.committed;
        self.read_only += other.read_only;
        self.conflicts += other.conflicts;
        self.edges += other.edges;
    }
}

fn one(seed: u64) -> Result<Counts, String> {
    let mut counts = turns::run(seed).map_err(|what| format!("seed {seed}, in turns: {what}"))?;
    let on_threads = threads::run(seed);
    counts.add(&on_threads.map_err(|what| format!("seed {seed}, on threads: {what}"))?);
    Ok(counts)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let first = options.seed.unwrap_or(1);
    let seeds = options.seeds.unwrap_or(if options.seed.is_some() { 1 } else { 200 });
    let (next, end) = (AtomicU64::new(first), first + seeds);
    let sums = Mutex::new((Counts::default(), Vec::new()));
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers.min(seeds as usize) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let done = one(seed);
                    let Ok(mut sums) = sums.lock() else { return };
                    match done {
                        Ok(counts) => sums.0.add(&counts),
                        Err(violation) => {
                            eprintln!("{violation}");
                            sums.1.push(violation);
                        }
                    }
                }
            });
        }
    });
    let (counts, violations) = sums.into_inner().unwrap_or_default();
    let Counts { committed, read_only, conflicts, edges } = counts;
    let seconds = began.elapsed().as_secs_f64();
    if options.json {
        let report = serde_json::json!({
            "seeds": seeds, "violations": violations.len(), "committed": committed, "read_only": read_only,
            "conflicts": conflicts, "edges": edges, "seed": first, "seconds": seconds, "found": violations,
        });
        println!("{report}");
    } else {
        println!(
            "{seeds} seeds from {first} in {seconds:.0} s: {} violations; {committed} committed, {read_only} of them wrote nothing, {conflicts} conflicts, {edges} edges",
            violations.len()
        );
    }
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    #[test]
    fn transactions_are_as_if_done_one_at_a_time() {
        let mut counts = super::Counts::default();
        for seed in 0..150 {
            counts.add(&super::one(seed).unwrap());
        }
        assert!(counts.conflicts > 100 && counts.committed > 3 * counts.conflicts, "{counts:?}");
    }
}
