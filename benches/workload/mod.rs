//! What all benches share: the records, the contenders, and how things are measured.
//!
//! Everything a bench reads is made before its clock starts, and read in the order it was made, so
//! that a measured operation pays for its own memory and not for the bench's.

#![allow(dead_code, reason = "each bench program uses its part")]

pub(crate) mod contenders;
pub(crate) mod measure;

use std::env;
use std::path::{Path, PathBuf};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub(crate) type Key = [u8; 16];

/// How many records, when `STILLFRAME_BENCH_KEYS` doesn't say.
const RECORDS: usize = 3_000_000;

/// The two data sets. Their values are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// As the demo makes them: a word, then a number of fixed width.
    Demo,
    /// 16 bytes that share nothing.
    Random,
}

impl Keys {
    pub(crate) const ALL: [Keys; 2] = [Keys::Demo, Keys::Random];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Keys::Demo => "demo",
            Keys::Random => "random",
        }
    }

    pub(crate) fn of_name(name: &str) -> Option<Keys> {
        Keys::ALL.into_iter().find(|keys| keys.name() == name)
    }

    /// The key of record `number`, below 10^12.
    pub(crate) fn key(self, number: usize) -> Key {
        match self {
            Keys::Demo => {
                let mut key = *b"user000000000000";
                let mut rest = number;
                for digit in key[4..].iter_mut().rev() {
                    *digit = b"0123456789"[rest % 10];
                    rest /= 10;
                }
                key
            }
            Keys::Random => {
                // Two different bijections of the number: unique, and far from sorted.
                let high = mix(number as u64 ^ 0x5bf0_3635_dcf5_8d6f);
                let low = mix(high ^ 0x94d0_49bb_1331_11eb);
                (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
            }
        }
    }
}

/// How many records the benches hold.
pub(crate) fn records() -> usize {
    let wanted = env::var("STILLFRAME_BENCH_KEYS").ok().map(|text| {
        text.replace('_', "").parse().expect("STILLFRAME_BENCH_KEYS is a number of records")
    });
    wanted.unwrap_or(RECORDS).max(1000)
}

/// The value of record `number`, as the demo makes it: JSON of about 110 bytes.
pub(crate) fn value(number: usize) -> Vec<u8> {
    const FIRST: [&str; 24] = [
        "Ada", "Amir", "Bao", "Carla", "Chidi", "Dina", "Edda", "Emeka", "Farah", "Goran", "Hana",
        "Ines", "Jonas", "Kaori", "Lars", "Maite", "Nadia", "Olga", "Pavel", "Rosa", "Sven",
        "Tariq", "Uma", "Zoe",
    ];
    const LAST: [&str; 24] = [
        "Abebe",
        "Bauer",
        "Castillo",
        "Dubois",
        "Eriksen",
        "Fontana",
        "Garcia",
        "Haddad",
        "Ivanova",
        "Jansen",
        "Kimura",
        "Lindqvist",
        "Moreau",
        "Nakamura",
        "Okafor",
        "Petrov",
        "Quispe",
        "Rossi",
        "Santos",
        "Tanaka",
        "Ueda",
        "Varga",
        "Weber",
        "Yilmaz",
    ];
    const CITIES: [&str; 16] = [
        "Accra", "Bergen", "Cusco", "Dakar", "Esbjerg", "Fukuoka", "Gdansk", "Haifa", "Izmir",
        "Jaipur", "Kyoto", "Lisbon", "Mendoza", "Nairobi", "Oslo", "Porto",
    ];
    let mut random = Random::new(number as u64);
    format!(
        r#"{{"name":"{} {}","city":"{}","visits":{},"balance":{}.{:02},"seen":{},"token":"{:010x}"}}"#,
        FIRST[random.below(FIRST.len())],
        LAST[random.below(LAST.len())],
        CITIES[random.below(CITIES.len())],
        random.below(1000),
        random.below(1 << 16),
        random.below(100),
        1_700_000_000 + random.below(90_000_000),
        random.below(1 << 40),
    )
    .into_bytes()
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

/// SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Uniform in `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let wide = u128::from(mix(self.0)) * bound as u128;
        usize::try_from(wide >> 64).expect("less than the bound")
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
