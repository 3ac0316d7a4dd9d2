//! What takes longer than one fault: a replica that does not read while much is written, and one that is connected twice.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use stillframe::{AckLevel, Error, Replica, ReplicaState};

use super::pair::{BOUND, Pace, Pair, Setup};
use super::proxy::{Fault, Way};

const PATIENT: Pace = Pace { beat: Duration::from_millis(30), timeout: Duration::from_secs(600) };
const QUICK: Pace = Pace { beat: Duration::from_millis(20), timeout: Duration::from_millis(200) };
/// What 200,000 small batches may leave in memory: a log of some 20 MB in the process, where there is no directory, twice as much while it
/// grows, and what is under way.
const MOST_GROWTH: u64 = 96 << 20;

/// The source may write to the socket until that is full, no more: writers go on, memory does not grow with what the replica lacks.
pub(super) fn does_not_read(setup: Setup, batches: u64) -> Result<(), String> {
    let pair = Pair::new(setup, PATIENT, PATIENT, 1).map_err(told)?;
    let copy = pair.fresh("copy").map_err(told)?;
    pair.proxy.plan([Fault::Stall { way: Way::ToReplica, after: 40_000, both: false }], false);
    let replica = copy.follow(pair.source.clone()).map_err(told)?;
    replica.wait_for(pair.db.position(), BOUND).map_err(told)?;
    let write = |number: u64| pair.space.insert((number % 160).to_be_bytes(), [number as u8; 40]);
    // What is made once is not counted.
    for number in 0..4_000 {
        write(number).map_err(told)?;
    }
    let before = resident().map_err(told)?;
    for number in 0..batches {
        write(number).map_err(told)?;
    }
    let growth = resident().map_err(told)?.saturating_sub(before);
    // On a busy machine the source may not have come so far yet.
    let until = Instant::now() + BOUND;
    while !pair.proxy.has_struck() {
        if Instant::now() > until {
            return Err("the replica was not stopped".into());
        }
        thread::yield_now();
    }
    if growth > MOST_GROWTH {
        return Err(format!("{} MiB more in memory", growth >> 20));
    }
    let status = replica.status();
    if (status.links, status.state) != (1, ReplicaState::Streaming) {
        return Err(format!("the link was given up: {status:?}"));
    }
    pair.proxy.plan([], false);
    replica.wait_for(pair.db.position(), 6 * BOUND).map_err(told)?;
    let counts = replica.status().counts;
    replica.stop();
    if counts.full != 1 {
        return Err(format!("it had the data: {counts:?}"));
    }
    same(&pair, &copy)
}

/// The replica has given a connection up that its source has not, and makes another one: it is one replica still.
pub(super) fn twice(setup: Setup) -> Result<(), String> {
    let pair = Pair::new(setup, PATIENT, QUICK, 1).map_err(told)?;
    let copy = pair.fresh("copy").map_err(told)?;
    let after = 60_000;
    pair.proxy.plan([Fault::Stall { way: Way::ToReplica, after, both: true }], false);
    let replica = copy.follow(pair.source.clone()).map_err(told)?;
    let acked = pair.db.position();
    pair.primary.wait(acked, 1, AckLevel::Applied, BOUND).map_err(told)?;
    let mut number = 0_u64;
    while !pair.proxy.has_struck() && number < 10_000 {
        pair.space.insert((number % 160).to_be_bytes(), [number as u8; 40]).map_err(told)?;
        number += 1;
        if number.is_multiple_of(100) {
            thread::sleep(Duration::from_millis(1));
        }
    }
    replica.wait_for(pair.db.position(), BOUND).map_err(told)?;
    streams(&replica, 2)?;
    let sessions = pair.primary.replicas();
    let [first, second] = &sessions[..] else {
        return Err(format!("two sessions are expected: {sessions:?}"));
    };
    if first.node != second.node {
        return Err("a node changes its name".into());
    }
    let both = pair.primary.wait(acked, 2, AckLevel::Applied, Duration::from_millis(20));
    if !matches!(both, Err(Error::NotAcked { acked: 1, wanted: 2 })) {
        return Err(format!("one replica counts twice: {both:?}"));
    }
    replica.stop();
    same(&pair, &copy)
}

fn streams(replica: &Replica, links: u64) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let status = replica.status();
        if status.state == ReplicaState::Streaming && status.links >= links {
            return Ok(());
        }
        if began.elapsed() > BOUND {
            return Err(format!("no new link: {status:?}"));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn same(pair: &Pair, copy: &stillframe::Database) -> Result<(), String> {
    let of = |db: &stillframe::Database| -> stillframe::Result<_> {
        Ok((db.position(), db.snapshot()?.fingerprint()))
    };
    let (ours, theirs) = (of(&pair.db).map_err(told)?, of(copy).map_err(told)?);
    copy.check();
    (ours == theirs).then_some(()).ok_or_else(|| format!("primary {ours:?}, replica {theirs:?}"))
}

/// Bytes of this process in memory.
fn resident() -> Result<u64> {
    let told = std::fs::read_to_string("/proc/self/statm").context("read /proc/self/statm")?;
    let pages: u64 = told.split(' ').nth(1).context("the second number")?.parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}
