//! What the golden directories and the golden session hold, in code: `torture golden --replicas` wrote them from it once,
//! `tests/it/golden.rs` compares for ever.
//!
//! Never change what is here; a later version of the format gets files and a list of its own.

use stillframe::simulation::{SimClock, TurnOptions};
use stillframe::{Database, LinkKey, WriteOptions};

/// What the clock says all the time.
pub(crate) const TIME_MS: u64 = 1_700_000_000_000;

/// What is written into the directory `log`, by so many runs.
pub(crate) const RUNS: u64 = 2;

/// The writes of one run: every kind of effect that somebody asks for.
pub(crate) fn write_run(db: &Database, run: u64) -> stillframe::Result<()> {
    let films = db.keyspace("films")?;
    let passing = db.keyspace("passing")?;
    for n in 0..40_u64 {
        films.insert((n * 3 + run).to_be_bytes(), noise(run << 32 | n, 500))?;
        let until = TIME_MS + n * 1_000;
        passing.insert_with(n.to_be_bytes(), "until then", WriteOptions::new().expire_at(until))?;
    }
    films.insert("large", noise(run, 70_000))?;
    films.remove(9_u64.to_be_bytes())?;
    films.delete_range(30_u64.to_be_bytes()..45_u64.to_be_bytes())?;
    let mut batch = db.batch();
    batch.insert(&films, "one", "of two");
    batch.insert(&passing, "two", "of two");
    batch.remove(&films, 12_u64.to_be_bytes());
    batch.commit()?;
    db.keyspace("in between")?.insert("k", "v")?;
    db.drop_keyspace("in between")?;
    Ok(())
}

/// What is written into the directory `expired`, in keyspace `leases`: keys from 0, the even ones until then, and for how many milliseconds after [`TIME_MS`].
pub(crate) const LEASES: u64 = 60;
pub(crate) const LEASE_MS: u64 = 30_000;

/// Entries half of which expire, and their removal by the primary once `clock` says so.
pub(crate) fn write_expired(db: &Database, clock: &SimClock) -> stillframe::Result<()> {
    let leases = db.keyspace("leases")?;
    for n in 0..LEASES {
        let until = if n % 2 == 0 { TIME_MS + LEASE_MS } else { 0 };
        let until = WriteOptions::new().expire_at(until);
        leases.insert_with(n.to_be_bytes(), noise(n, 50), until)?;
    }
    clock.set(TIME_MS + LEASE_MS + 1_000);
    db.sweep_expired();
    Ok(())
}

/// Bytes that can't be compressed, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The two ends of the session of which the golden file tells.
pub(crate) fn turn_options() -> TurnOptions {
    let key = Some(LinkKey::new([5; 32]));
    TurnOptions { key, beat_ms: 1_000, timeout_ms: 60_000, nonce: [9; 32] }
}

/// From here on the replica of the session drew.
pub(crate) const SESSION_SEED: u64 = 21;

/// Who said something, and what: `false` the replica, `true` the source.
pub(crate) type Said = Vec<(bool, Vec<u8>)>;
