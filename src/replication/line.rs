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
