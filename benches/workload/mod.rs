//! What all benches share: the records, the contenders, and how things are measured.
//!
//! Everything a bench reads is made before its clock starts, and read in the order it was made, so
//! that a measured operation pays for its own memory and not for the bench's.

#![allow(dead_code, reason = "each bench program uses its part")]

pub(crate) mod contenders;
pub(crate) mod measure;
pub(crate) mod records;
pub(crate) mod redis;

use std::env;
use std::path::{Path, PathBuf};

pub(crate) use records::{Key, Keys, Random, value};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many records, when `STILLFRAME_BENCH_KEYS` doesn't say.
const RECORDS: usize = 3_000_000;

/// How many records the benches hold.
pub(crate) fn records() -> usize {
    let wanted = env::var("STILLFRAME_BENCH_KEYS").ok().map(|text| {
        text.replace('_', "").parse().expect("STILLFRAME_BENCH_KEYS is a number of records")
    });
    wanted.unwrap_or(RECORDS).max(1000)
}

/// The numbers of all records, in random order.
pub(crate) fn shuffled(records: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..records).collect();
    let mut random = Random::new(1);
    for index in (1..records).rev() {
        order.swap(index, random.below(index + 1));
    }
    order
}

/// Keys to read or write, uniform over all records, in an order made beforehand.
pub(crate) struct Probes(Vec<Key>);

impl Probes {
    pub(crate) fn new(keys: Keys, records: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = records.clamp(1 << 16, 1 << 20);
        Probes((0..count).map(|_| keys.key(random.below(records))).collect())
    }

    /// `count` keys in groups of `by`, starting at a place of its own for each `round`.
    pub(crate) fn groups(
        &self,
        round: usize,
        count: usize,
        by: usize,
    ) -> impl Iterator<Item = &[Key]> {
        let from = round.wrapping_mul(7_919) % self.0.len();
        self.0.chunks_exact(by).cycle().skip(from / by).take(count.div_ceil(by))
    }

    /// `count` keys, starting at a place of its own for each `round`.
    pub(crate) fn keys(&self, round: usize, count: usize) -> impl Iterator<Item = &Key> {
        let from = round.wrapping_mul(7_919) % self.0.len();
        self.0.iter().cycle().skip(from).take(count)
    }
}

/// New values for updates, one after the other in memory: so many that a block of a saved file
/// rarely holds one twice.
pub(crate) struct FreshValues {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl FreshValues {
    pub(crate) fn new() -> Self {
        let mut values = FreshValues { bytes: Vec::new(), ends: vec![0] };
        for number in 0..1 << 16 {
            values.bytes.extend_from_slice(&value(usize::MAX - number));
            values.ends.push(values.bytes.len());
        }
        values
    }

    /// Without end, starting at a place of its own for each `round`.
    pub(crate) fn values(&self, round: usize) -> impl Iterator<Item = &[u8]> {
        let from = round.wrapping_mul(4_253) % (self.ends.len() - 1);
        let values = self.ends.windows(2).map(|ends| &self.bytes[ends[0]..ends[1]]);
        values.cycle().skip(from)
    }
}

/// A folder of its own below the build's, removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("stillframe-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder below the build's");
        Scratch(path)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{}: {error}", self.0.display());
        }
    }
}
