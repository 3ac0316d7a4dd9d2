//! Numbers without a pattern, the same in every run.

/// A bijection of 64-bit numbers that leaves no pattern (SplitMix64's finalizer; Steele et al.,
/// "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
pub(crate) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

/// `random` brought down to `0..below`, uniformly.
pub(crate) fn scale(random: u64, below: u64) -> u64 {
    ((u128::from(random) * u128::from(below)) >> 64) as u64
}

/// The one of `items` that `random` falls on; there must be one.
#[expect(clippy::cast_possible_truncation, reason = "less than a length")]
pub(crate) fn pick<T>(items: &[T], random: u64) -> &T {
    &items[scale(random, items.len() as u64) as usize]
}

/// Where `turn` of `0..count` goes in a random order of `0..count` that is held nowhere.
///
/// A Feistel network shuffles the next power of four; numbers past `count` go round again.
pub(crate) fn shuffled(turn: u64, count: u64) -> u64 {
    let half_bits = (u64::BITS - (count - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half_bits) - 1;
    let mut number = turn;
    loop {
        let (mut left, mut right) = (number >> half_bits, number & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(right << 2 | round) & mask));
        }
        number = left << half_bits | right;
        if number < count {
            return number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_a_permutation_without_runs() {
        for count in [1, 2, 3, 4, 5, 16, 17, 1_000, 4_097] {
            let mut order: Vec<_> = (0..count).map(|turn| shuffled(turn, count)).collect();
            let runs = order.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
            assert!(runs <= 2 + order.len() / 100, "{count}: {runs} runs");
            order.sort_unstable();
            assert!(order.into_iter().eq(0..count), "{count}");
        }
    }

    #[test]
    fn every_item_is_picked() {
        let mut picked = [0; 10];
        for number in 0..10_000 {
            let &index = pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], mix(number));
            picked[index] += 1;
        }
        assert!(picked.iter().all(|count| (850..1_150).contains(count)), "{picked:?}");
    }
}
