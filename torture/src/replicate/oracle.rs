//! What must hold: what each batch left, whoever has it; what was durable; how a replica may catch up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use stillframe::{Database, HistoryId, Position, Seq, Snapshot, SyncKind};

/// A history of a line: id, term, first and last batch.
pub(crate) type Span = (HistoryId, u64, Seq, Seq);

/// An entry: its value, and when it is past its time.
pub(crate) type Entry = (Rc<[u8]>, u64);

/// What a database holds, by the model.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Content {
    pub(crate) keyspaces: BTreeSet<&'static str>,
    pub(crate) entries: BTreeMap<(&'static str, Vec<u8>), Entry>,
}

/// What a batch left.
#[derive(Clone)]
pub(crate) struct Fact {
    pub(crate) fingerprint: u64,
    pub(crate) content: Rc<Content>,
    /// The histories that led there; the last ends there.
    pub(crate) line: Rc<Vec<Span>>,
}

impl Fact {
    pub(crate) fn term(&self) -> u64 {
        self.line.iter().map(|span| span.1).max().unwrap_or(0)
    }
}

/// Every batch that was ever committed.
pub(crate) struct Truth {
    facts: HashMap<Position, Fact>,
    /// Which directory, or memory, began a history.
    writers: HashMap<HistoryId, u64>,
}

impl Truth {
    pub(crate) fn new() -> Self {
        let nothing = Fact { fingerprint: 0, content: Rc::default(), line: Rc::default() };
        Self { facts: HashMap::from([(Position::default(), nothing)]), writers: HashMap::new() }
    }

    pub(crate) fn fact(&self, position: Position) -> Result<&Fact, String> {
        self.facts.get(&position).ok_or_else(|| format!("nobody ever committed {position}"))
    }

    /// A primary has gone from `before` to where it is now, by a batch that leaves `content`.
    pub(crate) fn committed(
        &mut self,
        db: &Database,
        writer: u64,
        before: Position,
        content: &Rc<Content>,
        is_promotion: bool,
    ) -> Result<(), String> {
        let after = db.position();
        let last = self.fact(before)?.clone();
        if after == before {
            return match **content == *last.content {
                true => Ok(()),
                false => Err(format!("a batch changed something and left {before}")),
            };
        }
        let mut line = (*last.line).clone();
        let batches = after.seq.0.wrapping_sub(before.seq.0);
        if after.history != before.history {
            let start = Seq(before.seq.0 + 1);
            let found = db.line().last().map_or(0, |span| span.1);
            // Who is promoted goes beyond all that he has heard of.
            let own = last.line.last().map_or(0, |span| span.1);
            let is_right = if is_promotion { found > last.term() } else { found == own };
            if !is_right {
                return Err(format!("{after} is of term {found}, behind one of {own}"));
            }
            line.push((after.history, found, start, start));
            let first = Position { history: after.history, seq: start };
            self.writers.insert(after.history, writer);
            let fact = Fact { line: Rc::new(line.clone()), ..last };
            self.insert(first, fact)?;
        }
        let begins = u64::from(after.history != before.history);
        if batches != begins + u64::from(!is_promotion) {
            return Err(format!("a batch went from {before} to {after}"));
        }
        if is_promotion {
            return Ok(());
        }
        line.last_mut().ok_or("a batch without a history")?.3 = after.seq;
        let fingerprint = db.snapshot().map_err(|e| e.to_string())?.fingerprint();
        let fact = Fact { fingerprint, content: Rc::clone(content), line: Rc::new(line) };
        self.insert(after, fact)
    }

    fn insert(&mut self, position: Position, fact: Fact) -> Result<(), String> {
        match self.facts.insert(position, fact) {
            None => Ok(()),
            Some(_) => Err(format!("{position} was committed twice")),
        }
    }

    /// What is at a position is what was committed there; which that is.
    pub(crate) fn check(&self, db: &Database) -> Result<Fact, String> {
        let position = db.position();
        let fact = self.fact(position)?;
        let still = db.snapshot().map_err(|error| error.to_string())?;
        if still.position() != position {
            return Err(format!("a still at {position} says {}", still.position()));
        }
        if still.fingerprint() != fact.fingerprint {
            let (got, expected) = (still.fingerprint(), fact.fingerprint);
            return Err(format!("{position} has fingerprint {got:x}, expected {expected:x}"));
        }
        let line = db.line();
        if line != *fact.line {
            return Err(format!("{position} is on the line {line:?}, expected {:?}", fact.line));
        }
        Ok(fact.clone())
    }

    /// No leaf hides a change: with every key it is as it was at the stamp of the leaf around it.
    pub(crate) fn check_stamps(&self, db: &Database, fact: &Fact) -> Result<(), String> {
        let told = |error: stillframe::Error| error.to_string();
        let still = db.snapshot().map_err(told)?;
        for name in &fact.content.keyspaces {
            let space = still.keyspace(name).map_err(told)?;
            for number in 0..super::acts::KEYS {
                let key = (*name, format!("{number:03}").into_bytes());
                let stamp = space.leaf_stamp(&key.1).map_err(told)?;
                let then = self.fact(at(&fact.line, stamp))?;
                let (is, was) = (fact.content.entries.get(&key), then.content.entries.get(&key));
                // A keyspace that went and came again has other leaves.
                let is_other = || {
                    let since = (stamp.0..=still.seq().0).map(|seq| at(&fact.line, Seq(seq)));
                    since
                        .filter_map(|at| self.facts.get(&at))
                        .any(|fact| !fact.content.keyspaces.contains(name))
                };
                if is != was && !is_other() {
                    let key = String::from_utf8_lossy(&key.1).into_owned();
                    return Err(format!(
                        "{} has changed {name} {key} since {stamp}, which its leaf has",
                        still.position()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether all that were committed on the line after `fork`, but for those that begin a history, are of one writer; with those
    /// of another line.
    pub(crate) fn is_one_writer(&self, fork: Seq, lines: [&[Span]; 2]) -> bool {
        let beyond = lines.into_iter().flatten().filter(|span| span.3 > fork);
        let writers: BTreeSet<_> = beyond.map(|span| self.writers.get(&span.0)).collect();
        writers.len() <= 1
    }
}

/// Batches of the line after `at`, but for those that begin a history.
pub(crate) fn batches_beyond(line: &[Span], at: Seq) -> u64 {
    let of = |span: &Span| (span.2.0 + 1..=span.3.0).filter(|seq| *seq > at.0).count() as u64;
    line.iter().map(of).sum()
}

/// Reads all of a still and compares it.
pub(crate) fn check_content(still: &Snapshot, expected: &Content) -> Result<(), String> {
    let told = |error: stillframe::Error| error.to_string();
    let at = still.position();
    let names = still.keyspaces().map_err(told)?;
    if !names.iter().eq(expected.keyspaces.iter()) {
        return Err(format!("{at}: keyspaces {names:?}, expected {:?}", expected.keyspaces));
    }
    let stored = still.len().map_err(told)?;
    if stored != expected.entries.len() as u64 {
        return Err(format!("{at}: {stored} entries, expected {}", expected.entries.len()));
    }
    let now = still.time_ms();
    let visible = |(_, expire_at): &Entry| *expire_at == 0 || now < *expire_at;
    for name in &expected.keyspaces {
        let mut model = expected.entries.iter().filter(|((of, _), e)| of == name && visible(e));
        for entry in still.keyspace(name).map_err(told)?.range::<&[u8]>(..) {
            let (key, value) = entry.map_err(told)?;
            match model.next() {
                Some(((_, k), (v, _))) if key == k[..] && value == v[..] => {}
                other => {
                    let other = other.map(|((_, key), (value, _))| (key, value.len()));
                    return Err(format!("{at}: {name} {key:?}, expected {other:?}"));
                }
            }
        }
        if let Some(((_, key), _)) = model.next() {
            return Err(format!("{at}: {name} ends, expected {key:?}"));
        }
    }
    Ok(())
}

/// The last batch that both lines have: found anew, from whole lines. `None` without any.
pub(crate) fn fork(a: &[Span], b: &[Span]) -> Option<Seq> {
    let both_begin = a.is_empty() || b.is_empty();
    let mut at = both_begin.then_some(Seq(0));
    for (own, other) in a.iter().zip(b) {
        if own.0 != other.0 {
            break;
        }
        at = Some(own.3.min(other.3));
        if own.3 != other.3 {
            break;
        }
    }
    at
}

pub(crate) fn has(line: &[Span], position: Position) -> bool {
    position.seq == Seq(0)
        || line.iter().any(|(history, _, start, end)| {
            *history == position.history && *start <= position.seq && position.seq <= *end
        })
}

/// The batch of the line with this number.
pub(crate) fn at(line: &[Span], seq: Seq) -> Position {
    let span = line.iter().rfind(|span| span.2 <= seq);
    span.map_or_else(Position::default, |span| Position { history: span.0, seq })
}

/// What is known when a replica was told how it catches up.
pub(crate) struct Meeting<'a> {
    pub(crate) replica: &'a [Span],
    pub(crate) source: &'a [Span],
    /// The source's log has all behind the replica's last batch.
    pub(crate) is_in_log: bool,
    /// It is so much that the leaves may be cheaper.
    pub(crate) is_long: bool,
    /// The replica has part of a state already.
    pub(crate) has_spool: bool,
}

/// Whether a replica may catch up in this way.
pub(crate) fn check_kind(kind: SyncKind, meeting: &Meeting<'_>) -> Result<(), String> {
    let Meeting { replica, source, is_in_log, is_long, has_spool } = *meeting;
    let own = replica.last().map_or(Seq(0), |span| span.3);
    let expected: &[SyncKind] = match fork(replica, source) {
        None => &[SyncKind::Full],
        Some(Seq(0)) if own == Seq(0) => &[SyncKind::Full, SyncKind::Partial],
        Some(Seq(0)) => &[SyncKind::Full],
        Some(at) if at < own => &[SyncKind::Rewind],
        Some(_) if is_in_log && !is_long && !has_spool => &[SyncKind::Partial],
        Some(_) => &[SyncKind::Partial, SyncKind::Delta],
    };
    match expected.contains(&kind) {
        true => Ok(()),
        false => Err(format!(
            "it catches up by {kind:?}, expected {expected:?}: from {replica:?} to {source:?}, log {is_in_log}, spool {has_spool}"
        )),
    }
}
