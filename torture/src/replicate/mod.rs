//! Replication at random: a few nodes, links that lose and delay, promotions, power cuts, restored disks, all in one thread and virtual
//! time, so that a seed says all that happens.
//!
//! Oracle: whatever a node has is what some primary committed at that position; nothing is given up but by rule; what was told to be durable
//! is there; a replica catches up in the cheapest way that is right; and once all links work, all become the same in bounded time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Args;
use stillframe::simulation::{Random, seed_thread};
use stillframe::{LinkKey, Position, SyncRefused};

use self::oracle::Truth;
use self::world::{Counts, Node, Outcome, World};

mod acts;
mod network;
mod oracle;
mod world;

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
    /// Tells all that happens
    #[arg(long)]
    tell: bool,
}

/// Counted over all seeds.
#[derive(Default)]
struct Sums {
    counts: Counts,
    violations: Vec<String>,
}

/// In so many virtual milliseconds all have become the same.
const HEAL_MS: u64 = 60_000;

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let first = options.seed.unwrap_or(1);
    let seeds = options.seeds.unwrap_or(if options.seed.is_some() { 1 } else { 200 });
    let (next, end) = (AtomicU64::new(first), first + seeds);
    let sums = Mutex::new(Sums::default());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers.min(seeds as usize) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let (counts, violation) = one(seed, options.tell);
                    let Ok(mut sums) = sums.lock() else { return };
                    sums.counts.add(&counts);
                    if let Some(violation) = violation {
                        eprintln!("{violation}");
                        sums.violations.push(violation);
                    }
                }
            });
        }
    });
    let Sums { counts, violations } = sums.into_inner().unwrap_or_default();
    let Counts { full, delta, rewind, partial, refused, promises, handed } = counts;
    let seconds = began.elapsed().as_secs_f64();
    if options.json {
        let report = serde_json::json!({
            "seeds": seeds, "violations": violations.len(), "full": full, "delta": delta + rewind,
            "partial": partial, "rewind": rewind, "refused": refused, "promises": promises, "handed": handed,
            "seed": first, "seconds": seconds, "found": violations,
        });
        println!("{report}");
    } else {
        println!(
            "{seeds} seeds from {first} in {seconds:.0} s: {} violations; {full} full, {} delta ({rewind} of them rewinds), {partial} partial, {refused} refused, {promises} promises, {handed} handed over",
            violations.len(),
            delta + rewind,
        );
    }
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.full += other.full;
        self.delta += other.delta;
        self.rewind += other.rewind;
        self.partial += other.partial;
        self.refused += other.refused;
        self.promises += other.promises;
        self.handed += other.handed;
    }
}

/// One seed; what was wrong, with all that happened.
fn one(seed: u64, tell: bool) -> (Counts, Option<String>) {
    seed_thread(Some(seed));
    let mut world = World::new(seed);
    let outcome = match catch_unwind(AssertUnwindSafe(|| world.live())) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
            Err(format!("a panic: {}", text.unwrap_or_default()))
        }
    };
    if tell {
        println!("{}", world.acts.join("\n"));
    }
    let counts = world.counts;
    let violation = outcome
        .err()
        .map(|what| format!("seed {seed}: {what}\n{}\nseed {seed}: {what}", world.acts.join("\n")));
    // What is left of it is not to fail a second time.
    drop(catch_unwind(AssertUnwindSafe(|| drop(world))));
    (counts, violation)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = 2 + random.below(6);
        let nodes: Vec<_> = (0..count)
            .map(|n| {
                let in_memory = random.one_in(3);
                Node::new(&mut random, in_memory, n)
            })
            .collect();
        let mut key = [0; 32];
        random.fill(&mut key);
        let key = random.one_in(3).then(|| LinkKey::new(key));
        World {
            random,
            now: 1_000,
            nodes,
            links: Vec::new(),
            blocked: Default::default(),
            truth: Truth::new(),
            counts: Counts::default(),
            acts: Vec::new(),
            key,
            has_restored: false,
            promises: Vec::new(),
            next_writer: count,
            heals: false,
            next_copy: 0,
        }
    }

    /// All of it.
    fn live(&mut self) -> Outcome {
        for n in 0..self.nodes.len() {
            self.start(n, Position::default())?;
            if n == 0 {
                self.nodes[0].is_meant = true;
            } else {
                let source = if self.random.one_in(3) { self.some(n) } else { 0 };
                self.follow(n, source, false)?;
            }
        }
        let acts = 40 + self.random.below(160);
        for _ in 0..acts {
            self.act()?;
            for _ in 0..self.random.below(12) {
                self.step(12)?;
            }
        }
        self.check_all()?;
        self.heal()
    }

    /// All links work again, one is the primary, all others follow: they become the same.
    fn heal(&mut self) -> Outcome {
        self.blocked.clear();
        self.heals = true;
        for n in 0..self.nodes.len() {
            if !self.is_up(n) {
                self.start(n, Position::default())?;
            }
        }
        let is_meant = |w: &Self, n: usize| w.nodes[n].is_meant && w.nodes[n].is_primary();
        let primary = match self.random.one_in(2) {
            true => self.pick(is_meant),
            false => None,
        };
        let primary = match primary {
            Some(primary) => primary,
            None => self.some(self.nodes.len()),
        };
        self.say(format!("healing: node {primary} is the primary"));
        self.promote_node(primary)?;
        let mut order = vec![primary];
        for n in 0..self.nodes.len() {
            if n != primary {
                let at = if self.random.one_in(3) { self.some(order.len()) } else { 0 };
                self.say(format!("node {n} is to follow {}", order[at]));
                self.follow(n, order[at], false)?;
                order.push(n);
            }
        }
        let (began, mut writes) = (self.now, self.random.below(6));
        if self.nodes[primary].position == Position::default() {
            // Who is ahead of a replica that is empty waits for more.
            writes += 1;
        }
        let (mut was_primary, mut write_at) = (self.now, self.now + HEAL_MS / 4);
        loop {
            self.step(25)?;
            if self.nodes[primary].is_primary() {
                was_primary = self.now;
            } else if self.now > was_primary + 1_000 {
                // It has met what outranks it: it is to be beyond that.
                self.promote_node(primary)?;
            }
            // Who heard only now that it was handed over to is not needed any more.
            for n in (0..self.nodes.len()).filter(|n| *n != primary) {
                if self.nodes[n].follows.is_none() {
                    self.follow(n, primary, false)?;
                }
            }
            // Who has lost batches of its own may write on without them.
            let lost = |node: &Node| node.last_refusal == Some(SyncRefused::SourceLostData);
            if self.nodes.iter().any(lost) {
                self.nodes.iter_mut().for_each(|node| node.last_refusal = None);
                writes = writes.max(1);
            }
            // Who is ahead of a replica waits for more as long as its primary writes nothing.
            if self.now > write_at {
                (writes, write_at) = (writes + 1, self.now + HEAL_MS / 4);
            }
            if writes > 0 && self.random.one_in(20) {
                writes -= 1;
                self.write()?;
            }
            let at = self.nodes[primary].position;
            let is_same = |node: &Node| node.position == at;
            if writes == 0 && self.nodes.iter().all(is_same) && self.all_stream() {
                break;
            }
            if self.now > began + HEAL_MS {
                let where_ = |node: &Node| format!("{} ({:?})", node.position, node.last_refusal);
                let all: Vec<_> = self.nodes.iter().map(where_).collect();
                return Err(format!("not the same after {HEAL_MS} ms: {all:?}"));
            }
        }
        self.count_acks()?;
        self.check_all()
    }

    fn all_stream(&self) -> bool {
        let streams = |n: usize| {
            self.links.iter().any(|link| {
                link.replica == n && link.replica_end.as_ref().is_some_and(|end| end.is_streaming())
            })
        };
        (0..self.nodes.len()).all(|n| self.nodes[n].follows.is_none() || streams(n))
    }
}
