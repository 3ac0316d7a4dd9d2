//! How a replica gets to where its source is: a pure function of both lines, of the source's log and of what either costs.
//!
//! [`choose`] is the source's half: which way is right, and of two that are the cheaper. [`consent`] is the replica's: whether
//! it gives up batches of its own for it. Nothing here looks at a bare Seq: what both have is where their lines
//! [fork](super::line::fork).

use super::line::{end, fork, term};
use crate::error::SyncRefused;
use crate::format::snapshot::Span;
use crate::position::Seq;

/// What a source knows of itself when a replica asks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Its line, up to its last batch.
    pub(crate) line: &'a [Span],
    pub(crate) node: [u8; 16],
    /// It takes writes.
    pub(crate) is_primary: bool,
    /// The last history of its line is this run's own.
    pub(crate) has_written: bool,
    /// It is installing what its own source sent, or has not heard of its primary of late.
    pub(crate) is_unsettled: bool,
    /// Its log has all batches after this one; `None` without a log.
    pub(crate) log_after: Option<Seq>,
}

/// What either way would send, in bytes, for a replica whose line is the source's.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Costs {
    /// Records of the batches that the replica has not.
    pub(crate) records: u64,
    /// Leaves that changed since.
    pub(crate) leaves: u64,
}

/// What a source does for a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CatchUp {
    /// It can't tell yet; the replica asks again.
    Retry,
    /// The replica is ahead of it on its own line: it waits until the source has caught up itself.
    Wait,
    /// Partial resync: records of all batches after this one.
    Records { after: Seq },
    /// Delta resync: leaves that changed after this batch, which both have and which is the replica's last.
    Delta { after: Seq },
    /// As a delta, and what the replica has beyond this batch, the last that both have, is replaced.
    Rewind { to: Seq },
    /// Full sync: every leaf; nothing that the replica has is used.
    Full,
    /// The replica has batches that this primary wrote itself and has lost: they change places.
    Heal,
    /// The replica has more of the history that this primary is just writing: it was rolled back. It
    /// begins a new history before anything else.
    NewHistory,
}

/// Decides how a replica of the line `replica` catches up. `costs` is asked only when it matters.
pub(crate) fn choose(
    replica: &[Span],
    source: &Source<'_>,
    costs: impl FnOnce() -> Costs,
) -> CatchUp {
    let (own, asked) = (end(source.line), end(replica));
    let Some(at) = fork(replica, source.line) else {
        return if source.is_unsettled { CatchUp::Retry } else { CatchUp::Full };
    };
    if at == asked.seq {
        if own.seq == at {
            return CatchUp::Records { after: at };
        }
        let Costs { records, leaves } = match source.log_after {
            Some(after) if after <= at => costs(),
            _ => Costs { records: 1, leaves: 0 },
        };
        return if records <= leaves {
            CatchUp::Records { after: at }
        } else {
            CatchUp::Delta { after: at }
        };
    }
    if at == own.seq && !source.is_primary {
        return CatchUp::Wait;
    }
    if at == own.seq && source.has_written && asked.history == own.history {
        return CatchUp::NewHistory;
    }
    let beyond = || replica.iter().filter(|span| span.end > at);
    // Of others' histories it would make two writers of one term.
    let lost_own = !source.has_written && beyond().all(|span| span.writer == source.node);
    if at == own.seq && lost_own {
        return CatchUp::Heal;
    }
    if source.is_unsettled { CatchUp::Retry } else { CatchUp::Rewind { to: at } }
}

/// What a replica knows of itself when it is to give up batches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replica<'a> {
    pub(crate) line: &'a [Span],
    /// The highest term it has heard of.
    pub(crate) term: u64,
    /// The highest batch it was told is durable on the primary.
    pub(crate) durable: Seq,
    /// It holds entries.
    pub(crate) holds_data: bool,
}

/// What becomes of batches that the replica has and the source has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// There are none that hold anything.
    Nothing,
    /// They go, and are saved aside before.
    SaveAside,
}

/// Whether a replica follows a source of the line `source`, giving up what it has beyond their fork.
pub(crate) fn consent(
    replica: &Replica<'_>,
    source: &[Span],
) -> std::result::Result<Consent, SyncRefused> {
    let (known, offered) = (replica.term.max(term(replica.line)), term(source));
    let at = fork(replica.line, source);
    let loses = match at {
        Some(at) => batches_beyond(replica.line, at) > 0,
        None => replica.holds_data,
    };
    if !loses {
        return if offered < known && !source.is_empty() {
            Err(SyncRefused::OldTerm { known, offered })
        } else {
            Ok(Consent::Nothing)
        };
    }
    if source.is_empty() {
        return Err(SyncRefused::EmptyPrimary);
    }
    let Some(at) = at else { return Err(SyncRefused::Stranger) };
    if offered < known {
        return Err(SyncRefused::OldTerm { known, offered });
    }
    // Somebody decided, whoever told the replica of it before.
    if offered > term(replica.line) {
        return Ok(Consent::SaveAside);
    }
    let mut beyond = replica.line.iter().chain(source).filter(|span| span.end > at);
    let writer = beyond.next().map(|span| span.writer);
    if !beyond.all(|span| Some(span.writer) == writer) {
        return Err(SyncRefused::SplitBrain { fork: at });
    }
    if at < replica.durable {
        return Err(SyncRefused::WentBack { durable: replica.durable, fork: at });
    }
    Ok(Consent::SaveAside)
}

/// Batches of the line after `at`, but for those that begin a history, which hold nothing.
pub(crate) fn batches_beyond(line: &[Span], at: Seq) -> u64 {
    let of = |span: &Span| {
        let first = span.start.max(Seq(at.0.saturating_add(1)));
        let batches = (span.end.0.saturating_add(1)).saturating_sub(first.0);
        batches.saturating_sub(u64::from(first == span.start && batches > 0))
    };
    line.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::{HistoryId, Position};

    const P: u8 = 1;
    const Q: u8 = 2;

    /// History `name` of `writer`, in `term`, from `start` to `end`.
    fn span(name: u8, writer: u8, term: u64, start: u64, end: u64) -> Span {
        let (start, end) = (Seq(start), Seq(end));
        Span { history: HistoryId([name; 16]), term, writer: [writer; 16], start, end }
    }

    /// Histories of writer P and term 0, each with its name and its end, one behind the other.
    fn line(ends: &[(u8, u64)]) -> Vec<Span> {
        let mut start = 1;
        let mut spans = Vec::new();
        for &(name, end) in ends {
            spans.push(span(name, P, 0, start, end));
            start = end + 1;
        }
        spans
    }

    #[test]
    fn lines_fork_at_the_earlier_end_of_their_last_common_history() {
        fn check(a: &[(u8, u64)], b: &[(u8, u64)], expected: Option<u64>) {
            assert_eq!(fork(&line(a), &line(b)), expected.map(Seq), "{a:?} {b:?}");
            assert_eq!(fork(&line(b), &line(a)), expected.map(Seq), "{b:?} {a:?}");
        }
        check(&[], &[], Some(0));
        check(&[], &[(1, 5)], Some(0));
        check(&[(1, 5)], &[(1, 5)], Some(5));
        check(&[(1, 5)], &[(1, 3)], Some(3));
        check(&[(1, 5)], &[(2, 5)], None);
        // The source was killed at 5, recovered 3 and wrote on: 4 and 5 of the replica are gone there.
        check(&[(1, 5)], &[(1, 3), (2, 9)], Some(3));
        // The replica holds less of history 1 than the source went on from.
        check(&[(1, 5)], &[(1, 7), (2, 9)], Some(5));
        check(&[(1, 5), (2, 7)], &[(1, 5), (3, 9)], Some(5));
        check(&[(1, 5), (2, 7)], &[(1, 6), (3, 9)], Some(5));
    }

    #[test]
    fn lineages_that_were_thinned_fork_too_early_never_too_late() {
        let whole = line(&[(1, 5), (2, 9), (3, 12)]);
        let thinned = [whole[0], whole[2]];
        let other = line(&[(1, 5), (2, 9)]);
        assert_eq!(fork(&whole, &other), Some(Seq(9)));
        assert_eq!(fork(&thinned, &other), Some(Seq(5)));
    }

    #[test]
    fn a_line_has_what_one_of_its_histories_has() {
        let spans = line(&[(1, 5), (2, 9)]);
        let at = |name, seq| Position { history: HistoryId([name; 16]), seq: Seq(seq) };
        for (position, expected) in
            [(at(1, 5), true), (at(1, 6), false), (at(2, 6), true), (at(2, 5), false)]
        {
            assert_eq!(super::super::line::has(&spans, position), expected, "{position}");
        }
        assert!(super::super::line::has(&spans, Position::default()));
    }

    fn primary(line: &[Span]) -> Source<'_> {
        Source {
            line,
            node: [P; 16],
            is_primary: true,
            has_written: true,
            is_unsettled: false,
            log_after: Some(Seq(4)),
        }
    }

    fn check(replica: &[(u8, u64)], source: &Source<'_>, expected: CatchUp) {
        let costs = || Costs { records: 10, leaves: 100 };
        assert_eq!(choose(&line(replica), source, costs), expected, "{replica:?} {source:?}");
    }

    #[test]
    fn the_way_follows_from_both_lines_and_the_log() {
        let own = line(&[(1, 9)]);
        let source = primary(&own);
        check(&[(1, 7)], &source, CatchUp::Records { after: Seq(7) });
        // The oldest the log goes on from; one earlier, and a record is missing.
        check(&[(1, 4)], &source, CatchUp::Records { after: Seq(4) });
        check(&[(1, 3)], &source, CatchUp::Delta { after: Seq(3) });
        check(&[], &source, CatchUp::Delta { after: Seq(0) });
        let no_log = Source { log_after: None, ..source };
        check(&[(1, 7)], &no_log, CatchUp::Delta { after: Seq(7) });
        // Nothing to send needs no log.
        check(&[(1, 9)], &no_log, CatchUp::Records { after: Seq(9) });
        check(&[(2, 7)], &source, CatchUp::Full);

        let later = line(&[(1, 9), (2, 20)]);
        let source = primary(&later);
        check(&[(1, 9)], &source, CatchUp::Records { after: Seq(9) });
        // It has writes that this line never had.
        check(&[(1, 12)], &source, CatchUp::Rewind { to: Seq(9) });
        check(&[(1, 9), (3, 12)], &source, CatchUp::Rewind { to: Seq(9) });
        check(&[(1, 9), (3, 30)], &source, CatchUp::Rewind { to: Seq(9) });
    }

    #[test]
    fn the_cheaper_of_records_and_leaves_is_sent() {
        let own = line(&[(1, 9)]);
        for (records, leaves, expected) in [
            (10, 10, CatchUp::Records { after: Seq(7) }),
            (11, 10, CatchUp::Delta { after: Seq(7) }),
        ] {
            let costs = || Costs { records, leaves };
            assert_eq!(choose(&line(&[(1, 7)]), &primary(&own), costs), expected);
        }
    }

    #[test]
    fn a_replica_that_is_ahead_waits_gives_back_or_is_a_sign_of_a_rollback() {
        let own = line(&[(1, 9)]);
        let chained = Source { is_primary: false, has_written: false, ..primary(&own) };
        check(&[(1, 12)], &chained, CatchUp::Wait);
        // Just opened, and its last batches were lost with the power.
        let opened = Source { has_written: false, ..primary(&own) };
        check(&[(1, 12)], &opened, CatchUp::Heal);
        check(&[(1, 9), (2, 12)], &opened, CatchUp::Heal);
        // Somebody else wrote those.
        let theirs = [line(&[(1, 9)])[0], span(2, Q, 1, 10, 12)];
        let chosen = choose(&theirs, &opened, Costs::default);
        assert_eq!(chosen, CatchUp::Rewind { to: Seq(9) });
        // It runs, and has less of what it is writing.
        check(&[(1, 12)], &primary(&own), CatchUp::NewHistory);
    }

    /// A source that may itself be rewound, or follows somebody it has lost sight of, takes nothing away from anyone.
    #[test]
    fn who_is_unsettled_rewinds_nobody() {
        let own = line(&[(1, 9), (2, 20)]);
        let source = Source { is_unsettled: true, ..primary(&own) };
        check(&[(1, 12)], &source, CatchUp::Retry);
        check(&[(7, 12)], &source, CatchUp::Retry);
        check(&[(1, 7)], &source, CatchUp::Records { after: Seq(7) });
        check(&[(1, 3)], &source, CatchUp::Delta { after: Seq(3) });
    }

    #[test]
    fn own_batches_are_given_up_by_rule_only() {
        fn check(
            replica: &[Span],
            (term, durable): (u64, u64),
            source: &[Span],
            expected: std::result::Result<Consent, SyncRefused>,
        ) {
            let (durable, holds_data) = (Seq(durable), !replica.is_empty());
            let replica = Replica { line: replica, term, durable, holds_data };
            assert_eq!(consent(&replica, source), expected, "{replica:?} {source:?}");
        }
        let old = line(&[(1, 12)]);
        let restarted = line(&[(1, 9), (2, 20)]);
        let at = Seq(9);
        // Nothing to lose.
        check(&[], (0, 0), &restarted, Ok(Consent::Nothing));
        check(&[], (0, 0), &[], Ok(Consent::Nothing));
        check(&line(&[(1, 9)]), (0, 9), &restarted, Ok(Consent::Nothing));
        // Beyond the fork there is only the beginning of a history.
        let began = [line(&[(1, 9)])[0], span(3, Q, 0, 10, 10)];
        check(&began, (0, 9), &restarted, Ok(Consent::Nothing));
        // The unsynced tail of a primary that lost power.
        check(&old, (0, 9), &restarted, Ok(Consent::SaveAside));
        // More than an unsynced tail.
        let refusal = SyncRefused::WentBack { durable: Seq(10), fork: at };
        check(&old, (0, 10), &restarted, Err(refusal));
        // Somebody was promoted: that was decided.
        let promoted = [old[0], span(2, Q, 1, 10, 20)];
        let promoted = [Span { end: at, ..promoted[0] }, promoted[1]];
        check(&old, (0, 12), &promoted, Ok(Consent::SaveAside));
        // Two wrote in one term.
        let other = [Span { end: at, ..old[0] }, span(2, Q, 0, 10, 20)];
        check(&old, (0, 9), &other, Err(SyncRefused::SplitBrain { fork: at }));
        check(&old, (0, 12), &line(&[(7, 30)]), Err(SyncRefused::Stranger));
        check(&old, (0, 12), &[], Err(SyncRefused::EmptyPrimary));
        // It was told of a promotion that this source has not heard of.
        let refusal = SyncRefused::OldTerm { known: 2, offered: 0 };
        check(&old, (2, 9), &restarted, Err(refusal));
        check(&line(&[(1, 9)]), (2, 9), &restarted, Err(refusal));
    }

    #[test]
    fn beginnings_of_histories_are_no_batches() {
        let spans = line(&[(1, 5), (2, 9)]);
        for (at, expected) in [(0, 4 + 3), (1, 4 + 3), (2, 3 + 3), (5, 3), (6, 3), (8, 1), (9, 0)] {
            assert_eq!(batches_beyond(&spans, Seq(at)), expected, "after {at}");
        }
    }
}
