//! Every call to the disk fails, one after the other: once and for ever, with each error there is, or by taking less
//! than it was given.
//!
//! What was acknowledged as durable is there afterwards, whatever failed; a log that failed takes no write before it is
//! begun anew, and reads go on; with the fault gone the directory opens.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use clap::Args;
use stillframe::simulation::{CallKind, DiskFault, SimDisk};

use crate::trace::{Trace, recover};

#[derive(Args)]
pub(crate) struct Options {
    /// One object on stdout, and nothing else there
    #[arg(long)]
    json: bool,
    /// The seed of the first trace
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many traces
    #[arg(long, default_value_t = 4)]
    traces: u64,
    /// Operations in a trace
    #[arg(long, default_value_t = 120)]
    operations: usize,
    /// Every so many-th call only
    #[arg(long, default_value_t = 1)]
    step: u64,
}

/// What becomes of the call.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Errno(i32),
    Short(usize),
}

const FAULTS: &[Fault] = &[
    Fault::Errno(DiskFault::EIO),
    Fault::Errno(DiskFault::ENOSPC),
    Fault::Errno(DiskFault::EINTR),
    Fault::Errno(DiskFault::EACCES),
    Fault::Short(0),
    Fault::Short(1),
    Fault::Short(100),
];

impl Fault {
    fn plant(self, call: u64, forever: bool) -> DiskFault {
        let fault = match self {
            Fault::Errno(errno) => DiskFault::error(errno),
            Fault::Short(count) => DiskFault::short(count),
        };
        let fault = fault.after(call);
        if forever { fault.forever() } else { fault }
    }
}

#[derive(Default)]
struct Found {
    violations: Vec<String>,
    /// Calls that were failed, by kind.
    reached: BTreeMap<CallKind, u64>,
    errors: BTreeMap<String, u64>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let found = Mutex::new(Found::default());
    let runs = AtomicU64::new(0);
    for seed in options.seed..options.seed + options.traces {
        let mut plain = Trace::new(seed, SimDisk::new());
        plain.faulty = true;
        plain.run(options.operations);
        let calls = plain.disk.calls().len() as u64;
        drop(plain);
        let next = AtomicU64::new(0);
        let workers = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let call = next.fetch_add(options.step, Ordering::Relaxed);
                        if call >= calls {
                            return;
                        }
                        for (fault, forever) in FAULTS.iter().flat_map(|f| [(f, false), (f, true)])
                        {
                            runs.fetch_add(1, Ordering::Relaxed);
                            one(seed, options.operations, call, *fault, forever, &found);
                        }
                    }
                });
            }
        });
    }
    let found = found.into_inner().unwrap_or_default();
    let (runs, seconds) = (runs.into_inner(), began.elapsed().as_secs_f64());
    let reached: BTreeMap<String, u64> =
        found.reached.iter().map(|(kind, count)| (format!("{kind:?}"), *count)).collect();
    if options.json {
        let report = serde_json::json!({
            "runs": runs, "violations": found.violations.len(), "reached": reached,
            "errors": found.errors, "seed": options.seed, "seconds": seconds,
            "found": found.violations,
        });
        println!("{report}");
    } else {
        println!(
            "{runs} runs, seeds {} and on, in {seconds:.0} s: {} violations",
            options.seed,
            found.violations.len()
        );
        println!("calls failed, by kind: {reached:?}");
        println!("errors told: {:?}", found.errors);
        found.violations.iter().for_each(|violation| println!("{violation}"));
    }
    Ok(if found.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn one(seed: u64, operations: usize, call: u64, fault: Fault, forever: bool, found: &Mutex<Found>) {
    let work = || -> Result<Trace, String> {
        let mut trace = Trace::new(seed, SimDisk::new());
        trace.faulty = true;
        trace.disk.inject(fault.plant(call, forever));
        trace.run(operations);
        let trace = trace.kill();
        trace.disk.clear_faults();
        // Killed: the disk has all that was written. Unplugged: what was synced, and nothing else.
        let changes = trace.disk.change_count();
        let least = trace.durable_at(changes);
        let images = [
            ("killed", trace.disk.fork()),
            ("unplugged", trace.disk.crash_point(changes).image(&[])),
        ];
        let struck = |call: &&stillframe::simulation::Call| call.fault.is_some();
        let calls = trace.disk.calls();
        let at = calls
            .iter()
            .find(struck)
            .map(|call| format!("{:?} {}", call.kind, call.path.display()));
        let at = at.unwrap_or_default();
        for (how, image) in images {
            let (seq, sum) =
                recover(&image, true).map_err(|what| format!("{at}: {how}: {what}"))?;
            if trace.states.get(&seq) != Some(&sum) {
                return Err(format!("{at}: {how}: batch {seq} is there, with other content"));
            }
            if seq < least {
                return Err(format!("{at}: {how}: batch {seq} is there, {least} was durable"));
            }
        }
        Ok(trace)
    };
    let result = catch_unwind(AssertUnwindSafe(work));
    let Ok(mut found) = found.lock() else { return };
    match result {
        Ok(Ok(trace)) => {
            for call in trace.disk.calls().iter().filter(|call| call.fault.is_some()) {
                *found.reached.entry(call.kind).or_default() += 1;
            }
            for (error, count) in trace.errors {
                *found.errors.entry(error).or_default() += count;
            }
        }
        Ok(Err(what)) => {
            found
                .violations
                .push(format!("seed {seed}, call {call}, {fault:?}, forever {forever}: {what}"));
        }
        Err(_) => {
            found
                .violations
                .push(format!("seed {seed}, call {call}, {fault:?}, forever {forever}: a panic"));
        }
    }
}
