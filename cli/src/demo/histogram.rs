//! Latencies in logarithmic buckets: recording one is a shift, an addition and a store.
//!
//! 64 buckets to each power of two, so a quantile is at most 1.6 % above the true one; sum and
//! maximum are exact.

use std::time::Duration;

/// Buckets to a power of two, as a power of two.
const BITS: u32 = 6;
/// Buckets that tell all `u64` apart to that precision.
const BUCKETS: usize = (64 - BITS as usize + 1) << BITS;

/// Counts of nanoseconds.
pub(crate) struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    sum_ns: u64,
    max_ns: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        let buckets = vec![0; BUCKETS].try_into().expect("of that length");
        Histogram { buckets, count: 0, sum_ns: 0, max_ns: 0 }
    }

    pub(crate) fn record(&mut self, ns: u64) {
        self.buckets[bucket(ns)] += 1;
        self.count += 1;
        self.sum_ns += ns;
        self.max_ns = self.max_ns.max(ns);
    }

    /// All that was recorded, one after the other.
    pub(crate) fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// How many there were a second.
    pub(crate) fn per_s(&self) -> f64 {
        if self.sum_ns > 0 { (self.count as f64 / self.sum().as_secs_f64()).round() } else { 0.0 }
    }

    pub(crate) fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// The least latency that `per_mille` of a thousand operations did not exceed; zero of none.
    pub(crate) fn quantile(&self, per_mille: u64) -> Duration {
        let rank = (self.count * per_mille).div_ceil(1_000);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(highest_in(bucket).min(self.max_ns));
            }
        }
        self.max()
    }
}

/// The bucket of `ns`: itself below 128, then the highest 7 bits and how far they were shifted.
#[expect(clippy::cast_possible_truncation, reason = "below 128")]
fn bucket(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(BITS + 1);
    ((shift as usize) << BITS) + (ns >> shift) as usize
}

fn highest_in(bucket: usize) -> u64 {
    let shift = (bucket >> BITS).saturating_sub(1);
    let lowest = (bucket - (shift << BITS)) as u64;
    ((lowest + 1) << shift).wrapping_sub(1) // the last bucket ends at u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_tile_all_numbers_closely() {
        let mut lowest = 0u64;
        for index in 0..BUCKETS {
            let highest = highest_in(index);
            assert_eq!((bucket(lowest), bucket(highest)), (index, index));
            assert!(highest - lowest <= lowest / 64, "{lowest}..={highest}");
            lowest = highest.wrapping_add(1);
        }
        assert_eq!(lowest, 0, "the last bucket ends at u64::MAX");
    }

    #[test]
    fn quantiles_are_those_of_a_sorted_list() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(500), Duration::ZERO);
        for ns in (1..=1_000).rev() {
            histogram.record(ns * 1_000);
        }
        for per_mille in [500, 990, 999] {
            let exact = per_mille as f64;
            let measured = histogram.quantile(per_mille).as_secs_f64() * 1e6;
            assert!((exact..=exact * 1.016).contains(&measured), "{per_mille}: {measured}");
        }
        assert_eq!(histogram.max(), Duration::from_millis(1));
        assert_eq!(histogram.quantile(1_000), histogram.max());
        assert_eq!(histogram.sum(), Duration::from_micros(500_500));
        assert_eq!(histogram.count, 1_000);
    }
}
