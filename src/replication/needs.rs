//! What a replica needs to get to where its source is: for each range of keys, everything, or what changed after some batch.

pub(crate) use crate::format::wire::Need;
use crate::format::wire::RANGE_LEN;
use crate::position::Seq;

impl Need {
    /// What is needed of two neighbours that are asked for as one.
    fn of_both(self, other: Need) -> Need {
        match (self, other) {
            (Need::NewerThan(one), Need::NewerThan(other)) => Need::NewerThan(one.min(other)),
            // Fingerprints add up.
            (Need::Unless(one, sum), Need::Unless(other, more)) if one == other => {
                Need::Unless(one, sum.wrapping_add(more))
            }
            _ => Need::Anything,
        }
    }
}

/// Needs of ranges that tile the key space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Where each range starts, ascending, the first at the empty key.
    ranges: Vec<(Vec<u8>, Need)>,
}

impl Needs {
    /// The same of every key.
    pub(crate) fn everywhere(need: Need) -> Self {
        Self { ranges: vec![(Vec::new(), need)] }
    }

    /// Those of ranges that tile the key space, each by its start.
    pub(crate) fn of_ranges(ranges: Vec<(Vec<u8>, Need)>) -> Self {
        Self { ranges }
    }

    /// Decides about ranges that are needed [unless](Need::Unless) they sum up to something: `sum` tells what they sum up to.
    pub(crate) fn resolve(&mut self, mut sum: impl FnMut(&[u8], Option<&[u8]>) -> u64) {
        for at in 0..self.ranges.len() {
            let Need::Unless(seq, expected) = self.ranges[at].1 else { continue };
            let high = self.ranges.get(at + 1).map(|(next, _)| &next[..]);
            let is_same = sum(&self.ranges[at].0, high) == expected;
            self.ranges[at].1 = if is_same { Need::NewerThan(seq) } else { Need::Anything };
        }
    }

    /// Of `[low, high)` something else than before. Ranges are set in ascending order, none twice.
    pub(crate) fn set(&mut self, low: &[u8], high: Option<&[u8]>, need: Need) {
        let Some((start, after)) = self.ranges.last().cloned() else { return };
        if start == low {
            self.ranges.pop();
        }
        match self.ranges.last() {
            Some((_, before)) if *before == need => {}
            _ => self.ranges.push((low.to_vec(), need)),
        }
        if let Some(high) = high
            && after != need
        {
            self.ranges.push((high.to_vec(), after));
        }
    }

    /// Neighbours become one until all take at most so many bytes in an ask. Never is less needed than before.
    pub(crate) fn join_to(&mut self, most_bytes: usize) {
        let takes = |ranges: &[(Vec<u8>, Need)]| -> usize {
            ranges.iter().map(|(low, _)| RANGE_LEN + low.len()).sum()
        };
        while self.ranges.len() > 1 && takes(&self.ranges) > most_bytes {
            let mut joined: Vec<(Vec<u8>, Need)> = Vec::with_capacity(self.ranges.len());
            let mut ranges = std::mem::take(&mut self.ranges).into_iter();
            while let Some((low, need)) = ranges.next() {
                let need = ranges.next().map_or(need, |(_, other)| need.of_both(other));
                match joined.last() {
                    Some((_, before)) if *before == need && !matches!(need, Need::Unless(..)) => {}
                    _ => joined.push((low, need)),
                }
            }
            self.ranges = joined;
        }
    }

    /// Of `[low, high)` something else than before, wherever that lies.
    pub(crate) fn put(&mut self, low: &[u8], high: Option<&[u8]>, need: Need) {
        let covering = self.ranges.partition_point(|(start, _)| &start[..] <= low);
        if let Some((_, before)) = self.ranges.get(covering.wrapping_sub(1))
            && *before == need
            && self
                .ranges
                .get(covering)
                .is_none_or(|(next, _)| high.is_some_and(|high| &next[..] >= high))
        {
            return;
        }
        let until = high.map(|high| self.ranges.partition_point(|(start, _)| &start[..] <= high));
        let after = until.and_then(|until| self.ranges.get(until.checked_sub(1)?));
        let after = after.map(|(_, need)| *need);
        let first = self.ranges.partition_point(|(start, _)| &start[..] < low);
        let behind = high.map_or(self.ranges.len(), |high| {
            self.ranges.partition_point(|(start, _)| &start[..] < high)
        });
        let goes_on = self.ranges.get(behind).is_none_or(|(start, _)| Some(&start[..]) != high);
        let after = high.zip(after).filter(|_| goes_on).map(|(high, need)| (high.to_vec(), need));
        self.ranges.splice(first..behind, [(low.to_vec(), need)].into_iter().chain(after));
    }

    /// Whether any key of `[low, high)` needs what changed last by the batch `stamp`.
    pub(crate) fn want(&self, low: &[u8], high: Option<&[u8]>, stamp: Seq) -> bool {
        let first = self.ranges.partition_point(|(start, _)| &start[..] <= low).saturating_sub(1);
        let within = self.ranges.get(first..).unwrap_or_default().iter();
        within
            .take_while(|(start, _)| start.is_empty() || high.is_none_or(|high| &start[..] < high))
            .any(|(_, need)| match need {
                Need::Anything => true,
                Need::NewerThan(seq) | Need::Unless(seq, _) => stamp > *seq,
            })
    }

    /// As these, but below each of `zones`, by where it ends, what changed after its batch; they are given with the one that reaches
    /// farthest first, and of two the later counts. One without an end covers all keys.
    pub(crate) fn within_zones<'a>(
        &self,
        zones: impl IntoIterator<Item = (Option<&'a [u8]>, Seq)>,
    ) -> Self {
        let mut needs = self.clone();
        for (end, seq) in zones {
            let need = Need::NewerThan(seq);
            let Some(end) = end else {
                needs = Self::everywhere(need);
                continue;
            };
            let behind = needs.ranges.partition_point(|(start, _)| &start[..] <= end);
            // The one that reaches across the end goes on behind it.
            let mut rest = needs.ranges.split_off(behind);
            let across = needs.ranges.last().map(|(_, need)| *need);
            needs.ranges = vec![(Vec::new(), need)];
            let across = across.filter(|across| *across != need);
            needs.ranges.extend(across.map(|across| (end.to_vec(), across)));
            needs.ranges.append(&mut rest);
        }
        needs
    }

    /// The ranges of which this is needed.
    pub(crate) fn ranges_of(&self, need: Need) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
        self.ranges
            .iter()
            .enumerate()
            .filter(move |(_, (_, of))| *of == need)
            .map(|(at, (low, _))| (&low[..], self.ranges.get(at + 1).map(|(next, _)| &next[..])))
    }

    /// Where each range starts, and what is needed of it.
    pub(crate) fn ranges(&self) -> &[(Vec<u8>, Need)] {
        &self.ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_is_put_covers_what_was_there() {
        let (newer, any) = (Need::NewerThan(Seq(5)), Need::Anything);
        let check = |low: &str, high: Option<&str>, expected: &[(&str, Need)]| {
            let starts = [("", newer), ("c", any), ("e", newer)];
            let ranges = starts.map(|(start, need)| (start.as_bytes().to_vec(), need)).to_vec();
            let mut needs = Needs::of_ranges(ranges);
            needs.put(low.as_bytes(), high.map(str::as_bytes), Need::NewerThan(Seq(9)));
            let got: Vec<_> = needs.ranges().iter().map(|(low, need)| (&low[..], *need)).collect();
            let expected: Vec<_> = expected.iter().map(|(low, n)| (low.as_bytes(), *n)).collect();
            assert_eq!(got, expected, "{low:?} {high:?}");
        };
        let put = Need::NewerThan(Seq(9));
        check("", None, &[("", put)]);
        check("", Some("a"), &[("", put), ("a", newer), ("c", any), ("e", newer)]);
        check("a", Some("c"), &[("", newer), ("a", put), ("c", any), ("e", newer)]);
        check("a", Some("d"), &[("", newer), ("a", put), ("d", any), ("e", newer)]);
        check("c", Some("e"), &[("", newer), ("c", put), ("e", newer)]);
        check("d", Some("f"), &[("", newer), ("c", any), ("d", put), ("f", newer)]);
        check("f", None, &[("", newer), ("c", any), ("e", newer), ("f", put)]);
    }

    /// An ask may not be longer than 64 MiB, and half of what random changes leave of 100 million records was: the link ended, each time.
    #[test]
    fn needs_of_very_many_leaves_become_coarser() {
        let mut random = crate::clock::Random::new(5);
        for most in [1, 100, 5_000, 100_000] {
            let mut ranges = Vec::new();
            for n in 0..2_000_u32 {
                let low = if n == 0 { Vec::new() } else { n.to_be_bytes().to_vec() };
                let need = match random.below(4) {
                    0 => Need::Anything,
                    1 => Need::NewerThan(Seq(random.below(4))),
                    _ => Need::Unless(Seq(3), random.next_u64()),
                };
                ranges.push((low, need));
            }
            let fine = Needs::of_ranges(ranges.clone());
            let mut coarse = fine.clone();
            coarse.join_to(most);
            let takes: usize = coarse.ranges.iter().map(|(low, _)| RANGE_LEN + low.len()).sum();
            assert!(takes <= most || coarse.ranges.len() == 1, "{takes} {most}");
            assert!(coarse.ranges[0].0.is_empty());
            assert!(coarse.ranges.is_sorted_by(|(a, _), (b, _)| a < b));
            // Whatever was wanted of a leaf is.
            for n in 0..2_000_u32 {
                let (low, high) = (n.to_be_bytes(), (n + 1).to_be_bytes());
                for stamp in 0..5 {
                    let wanted = |needs: &Needs| needs.want(&low, Some(&high), Seq(stamp));
                    assert!(wanted(&coarse) || !wanted(&fine), "{n} {stamp}");
                }
            }
            // A range that is the same as a whole is passed over as a whole.
            let sum_of = |low: &[u8], high: Option<&[u8]>| {
                let within = ranges
                    .iter()
                    .filter(|(at, _)| &at[..] >= low && high.is_none_or(|high| &at[..] < high));
                within.fold(0_u64, |sum, (_, need)| match need {
                    Need::Unless(_, of) => sum.wrapping_add(*of),
                    _ => sum,
                })
            };
            coarse.resolve(sum_of);
            assert!(!coarse.ranges.iter().any(|(_, need)| matches!(need, Need::Unless(..))));
        }
    }

    #[test]
    fn a_leaf_is_wanted_if_any_key_of_it_is() {
        let mut needs = Needs::everywhere(Need::NewerThan(Seq(5)));
        needs.set(b"c", Some(b"e"), Need::Anything);
        needs.set(b"e", Some(b"g"), Need::Anything);
        needs.set(b"m", None, Need::NewerThan(Seq(9)));
        let starts: Vec<_> = needs.ranges().iter().map(|(low, _)| &low[..]).collect();
        assert_eq!(starts, [&b""[..], b"c", b"g", b"m"]);
        for (low, high, stamp, expected) in [
            (&b""[..], Some(&b"c"[..]), 5, false),
            (b"", Some(b"c"), 6, true),
            (b"", Some(b"ca"), 0, true),
            (b"c", Some(b"d"), 0, true),
            (b"f", Some(b"h"), 0, true),
            (b"g", Some(b"m"), 5, false),
            (b"g", Some(b"n"), 6, true),
            (b"m", None, 6, false),
            (b"x", None, 9, false),
            (b"x", None, 10, true),
            (b"", None, 0, true),
        ] {
            assert_eq!(needs.want(low, high, Seq(stamp)), expected, "{low:?} {high:?} {stamp}");
        }
        assert!(Needs::everywhere(Need::Anything).want(b"", None, Seq(0)));
    }
}
