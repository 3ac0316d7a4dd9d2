//! Time and randomness, as seams: whoever needs either is handed one, so that a test can hand in its own.
//!
//! [`Clock`] is wall time, for expiry and the times of cuts; nothing is ever ordered by it. What must
//! not be guessed, or not repeat in another process, comes from the operating system ([`os_random`],
//! [`random_id`]); what must repeat exactly comes from a seed (`Random`).

use std::fmt;
use std::io;
use std::path::Path;
#[cfg(any(test, feature = "simulation"))]
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[cfg(any(test, feature = "simulation"))]
use crate::sync::{AtomicU64, Ordering};
use crate::{Error, Result};

/// Tells the time of day. It may jump, backwards too.
#[cfg_attr(
    not(feature = "simulation"),
    allow(unreachable_pub, reason = "public with `simulation`")
)]
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Milliseconds since 1970-01-01 00:00 UTC.
    fn now_ms(&self) -> u64;
}

/// The operating system's clock; 0 before 1970.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A clock that stands still until it is set. Clones share one time.
#[cfg(any(test, feature = "simulation"))]
#[derive(Debug, Clone, Default)]
pub struct SimClock(Arc<AtomicU64>);

#[cfg(any(test, feature = "simulation"))]
impl SimClock {
    /// A clock that stands at `now_ms`.
    pub fn new(now_ms: u64) -> Self {
        SimClock(Arc::new(AtomicU64::new(now_ms)))
    }

    /// Puts the clock to `now_ms`, forwards or backwards.
    pub fn set(&self, now_ms: u64) {
        // Release: pairs with the Acquire in now_ms(); who sees the new time sees what came before it.
        self.0.store(now_ms, Ordering::Release);
    }

    /// Moves the clock forwards by `ms`.
    pub fn advance(&self, ms: u64) {
        // AcqRel: as in set(), and two threads that advance it both count.
        self.0.fetch_add(ms, Ordering::AcqRel);
    }
}

#[cfg(any(test, feature = "simulation"))]
impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        // Acquire: pairs with the Release in set() and advance().
        self.0.load(Ordering::Acquire)
    }
}

/// So much later than now; in a hundred years if that is no time at all.
pub(crate) fn deadline(after: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    let now = Instant::now();
    now.checked_add(after).unwrap_or_else(|| now + LONG)
}

/// Milliseconds since some moment, whatever is done to the time of day.
pub(crate) fn uptime_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(feature = "simulation")]
thread_local! {
    /// What this thread draws from in the place of the operating system.
    static SEEDED: std::cell::RefCell<Option<Random>> = const { std::cell::RefCell::new(None) };
}

/// From now on what this thread would draw from the operating system follows from `seed`, so that a whole run can be repeated, ids and
/// all; `None`: no more. Threads that it starts draw as ever.
#[cfg(feature = "simulation")]
pub fn seed_thread(seed: Option<u64>) {
    SEEDED.set(seed.map(Random::new));
}

/// `N` bytes from the operating system's generator.
///
/// # Errors
/// Whatever the system says; a sandbox that allows neither `getrandom` nor `/dev/urandom`, mostly.
pub(crate) fn os_random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    #[cfg(feature = "simulation")]
    if SEEDED.with_borrow_mut(|seeded| seeded.as_mut().map(|random| random.fill(&mut bytes)))
        == Some(())
    {
        return Ok(bytes);
    }
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// 128 bits that no other file, history or node has: an id.
///
/// # Errors
/// [`Error::Io`], with `<system random source>` in the place of a path.
pub(crate) fn random_id() -> Result<[u8; 16]> {
    os_random().map_err(|source| Error::io("read", Path::new("<system random source>"), source))
}

/// Numbers that look random and are the same for the same seed, in every release: for tests and jitter,
/// never for anything that must not be guessed.
///
/// SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014): one
/// addition and one mix a number, period 2^64, every seed as good as any other.
#[cfg(any(test, feature = "simulation"))]
#[derive(Debug, Clone)]
pub struct Random(u64);

#[cfg(any(test, feature = "simulation"))]
impl Random {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number, any of 2^64.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..bound`, uneven by at most `bound` in 2^64.
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "there is no number below 0");
        // The high half of the product, which is < bound (Lemire, "Fast Random Integer Generation in an
        // Interval", 2019, without its rejection step).
        let product = u128::from(self.next_u64()) * u128::from(bound);
        (product >> 64) as u64
    }

    /// True once in `n` times.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next_u64().to_le_bytes()[..part.len()]);
        }
    }

    /// Puts `items` in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            let other = self.below(end as u64 + 1);
            #[expect(clippy::cast_possible_truncation, reason = "at most end, a usize")]
            items.swap(end, other as usize);
        }
    }
}

/// The seeds a randomised test runs: so many, or as `STILLFRAME_SEEDS` says, or the one that `STILLFRAME_SEED` names.
#[cfg(test)]
pub(crate) fn test_seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    match number("STILLFRAME_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STILLFRAME_SEEDS").unwrap_or(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_time_is_this_century() {
        let now_ms = SystemClock.now_ms();
        assert!(now_ms > 1_700_000_000_000 && now_ms < 4_102_444_800_000, "{now_ms}");
    }

    #[test]
    fn clones_of_a_simulated_clock_share_one_time() {
        let clock = SimClock::new(5);
        let handed_out: Box<dyn Clock> = Box::new(clock.clone());
        clock.advance(10);
        assert_eq!(handed_out.now_ms(), 15);
        clock.set(3);
        assert_eq!(handed_out.now_ms(), 3);
    }

    /// The reference outputs of SplitMix64 for seed 1234567: seeds in bug reports must stay good.
    #[test]
    fn seeded_numbers_never_change() {
        let mut random = Random::new(1_234_567);
        let got: Vec<u64> = (0..5).map(|_| random.next_u64()).collect();
        assert_eq!(
            got,
            [
                6457827717110365317,
                3203168211198807973,
                9817491932198370423,
                4593380528125082431,
                16408922859458223821
            ]
        );
    }

    #[test]
    fn below_reaches_each_number_and_no_other() {
        let mut random = Random::new(1);
        let mut seen = [0_u32; 6];
        for _ in 0..6_000 {
            seen[usize::try_from(random.below(6)).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&count| (850..1_150).contains(&count)), "{seen:?}");
        assert_eq!(random.below(1), 0);
    }

    #[test]
    fn fill_and_shuffle() {
        let mut bytes = [0; 11];
        Random::new(9).fill(&mut bytes);
        let first = Random::new(9).next_u64().to_le_bytes();
        assert_eq!(bytes[..8], first);
        assert_ne!(bytes[8..], [0; 3]);

        let mut items: Vec<u32> = (0..100).collect();
        Random::new(9).shuffle(&mut items);
        assert!(!items.is_sorted());
        items.sort_unstable();
        assert!(items.into_iter().eq(0..100));
    }

    #[test]
    fn ids_differ() {
        assert_ne!(random_id().unwrap(), random_id().unwrap());
    }
}
