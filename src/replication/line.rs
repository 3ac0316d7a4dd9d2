//! Lines: which histories led to a state, and how far two of them are the same.
//!
//! A *line* is the sequence of all batches that led to a state; its *lineage* names the histories that wrote them, in
//! order, each with the last batch that the line has of it. Two nodes compare lineages, never a bare Seq: both may have
//! assigned that.

use crate::format::snapshot::Span;
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};

/// The last batch that both lines have; `None` if they have nothing in common, which neither has while it is empty.
///
/// Either may have dropped histories from its lineage: each that is left keeps its own end, so that the answer is never
/// too late.
pub(crate) fn fork(a: &[Span], b: &[Span]) -> Option<Seq> {
    if a.is_empty() || b.is_empty() {
        return Some(Seq(0));
    }
    a.iter().rev().find_map(|own| {
        let other = b.iter().rev().find(|other| other.history == own.history)?;
        // Each has what both have: up to where the first of them left the history.
        let fork = own.end.min(other.end);
        Some(if planted(Bug::ForkOneLater) { Seq(fork.0 + 1) } else { fork })
    })
}

/// Whether the line has this batch.
pub(crate) fn has(line: &[Span], position: Position) -> bool {
    position.seq == Seq(0)
        || line.iter().any(|span| {
            span.history == position.history
                && span.start <= position.seq
                && position.seq <= span.end
        })
}

/// So many of a line's newest histories are told.
const TOLD: usize = 256;

/// What is told of a line that may name very many histories: its first, its newest, the one that began its highest term, which decides between two
/// primaries, the last that `other`, if its line is known, names as well, and those with which the writer changes within a term. So what is decided by it is
/// what the whole would decide, but for who has more histories of his own since the fork than are told: he forks earlier, and is sent more.
pub(crate) fn told(line: &[Span], other: &[Span]) -> Vec<Span> {
    let newest = line.len().saturating_sub(TOLD);
    let highest = term(line);
    let decides = line.iter().position(|span| span.term == highest);
    let is_shared = |span: &Span| other.iter().any(|theirs| theirs.history == span.history);
    let shared = line.iter().rposition(is_shared);
    let changes = |at: usize| {
        let before = at.checked_sub(1).and_then(|before| line.get(before)).zip(line.get(at));
        before.is_some_and(|(before, own)| before.term == own.term && before.writer != own.writer)
    };
    let is_told = |at: usize| {
        at == 0 || at >= newest || Some(at) == decides || Some(at) == shared || changes(at)
    };
    (0..line.len()).filter(|at| is_told(*at)).filter_map(|at| line.get(at).copied()).collect()
}

/// The last batch of the line.
pub(crate) fn end(line: &[Span]) -> Position {
    line.last()
        .map_or_else(Position::default, |last| Position { history: last.history, seq: last.end })
}

/// The batch of this number on the line; the empty state if the line does not name it.
pub(crate) fn at(line: &[Span], seq: Seq) -> Position {
    let span = line.iter().find(|span| span.start <= seq && seq <= span.end);
    span.map_or_else(Position::default, |span| Position { history: span.history, seq })
}

/// The highest term on the line.
pub(crate) fn term(line: &[Span]) -> u64 {
    line.iter().map(|span| span.term).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "small numbers")]
    use super::*;
    use crate::clock::{Random, test_seeds};
    use crate::format::snapshot::rank;
    use crate::position::HistoryId;

    fn span(n: u64, term: u64) -> Span {
        let mut history = [0; 16];
        history[..8].copy_from_slice(&n.to_le_bytes());
        let (start, end) = (Seq(n * 10), Seq(n * 10 + 9));
        Span { history: HistoryId(history), term, writer: [1; 16], start, end }
    }

    /// What is told of a line stays short, and decides as the whole would: where two fork, and which primary is the one.
    #[test]
    fn what_is_told_of_a_line_decides_as_all_of_it() {
        for seed in test_seeds(300) {
            let mut random = Random::new(seed);
            let (mut own, mut term) = (Vec::new(), 0);
            for n in 1..=1 + random.below(1_000) {
                term += u64::from(random.one_in(200));
                own.push(span(n, term));
            }
            // Another line, which has left it somewhere and gone on by itself.
            let shared = random.below(own.len() as u64 + 1) as usize;
            let mut other = own[..shared].to_vec();
            if let Some(last) = other.last_mut() {
                last.end = Seq(last.end.0 - random.below(10));
            }
            let beyond = random.below(200);
            other.extend((0..beyond).map(|n| span(5_000 + n, term)));
            // It says so first, and then it is answered.
            let said = told(&other, &[]);
            let answered = told(&own, &said);
            assert!(said.len() < 260 && answered.len() < 260, "seed {seed}");
            assert_eq!((rank(&said), rank(&answered)), (rank(&other), rank(&own)), "seed {seed}");
            assert_eq!((end(&said), end(&answered)), (end(&other), end(&own)), "seed {seed}");
            let at = fork(&own, &other);
            assert_eq!((fork(&own, &said), fork(&other, &answered)), (at, at), "seed {seed}");
        }
        assert!(told(&[], &[]).is_empty());
    }
}
