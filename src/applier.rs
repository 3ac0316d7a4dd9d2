//! What another node wrote, applied here record by record: each as it came goes into the log of this one, and its effects into the tree.

use crate::commit::{CATALOGUE, Forwarded, HistoryBody, KeyspaceSlot, LoggedEffect};
use crate::database::Engine;
use crate::format::record::{Effects, RecordHeader, RecordKind};
use crate::keys::{CATALOGUE_ID, PREFIX_LEN, id_of};
use crate::position::Position;
use crate::storage::walk::catalogue_entry;
use crate::tree::{BatchOp, Changes, Condition, PointWrite, RangeDelete, given_value};
use crate::{Error, Fault, Result};

/// Applies the records that follow a state, in order. One at a time has a database.
pub(crate) struct Applier {
    /// The last batch, and the chain up to it.
    position: Position,
    chain: u32,
    /// The keyspace of the last record that put one key, and where it is counted.
    last: Option<(u32, KeyspaceSlot)>,
}

/// Why a record was not applied. No entry and no Seq has changed.
#[derive(Debug)]
pub(crate) enum NotApplied {
    /// It is not what may come next, or makes no sense.
    Fault(Fault),
    /// This database can't take it.
    Error(Error),
}

impl From<Error> for NotApplied {
    fn from(error: Error) -> Self {
        NotApplied::Error(error)
    }
}

impl From<Fault> for NotApplied {
    fn from(fault: Fault) -> Self {
        NotApplied::Fault(fault)
    }
}

impl Applier {
    /// Goes on from the present, to which `chain` leads.
    pub(crate) fn new(engine: &Engine, chain: u32) -> Self {
        Self { position: engine.tree().commit.position(), chain, last: None }
    }

    /// For a planted bug: as if a batch had been applied.
    pub(crate) fn skip(&mut self) {
        self.position.seq.0 += 1;
    }

    /// The last batch that was applied.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Brings what the first effect of each of these records will touch towards the cache; nothing needs to be proven of them yet.
    pub(crate) fn prefetch<'a>(engine: &Engine, records: impl Iterator<Item = &'a [u8]>) {
        let first = |body| match Effects::new(body).next() {
            Some(Ok(
                LoggedEffect::Put { key, .. }
                | LoggedEffect::Remove { key }
                | LoggedEffect::Expire { key },
            )) => Some(key),
            _ => None,
        };
        let keys: Vec<&[u8]> = records.filter_map(first).collect();
        // One alone is as quick without.
        if keys.len() > 1 {
            engine.tree().prefetch_keys(&keys);
        }
    }

    /// Applies the next record.
    pub(crate) fn apply(
        &mut self,
        engine: &Engine,
        header: &RecordHeader,
        body: &[u8],
    ) -> std::result::Result<(), NotApplied> {
        header
            .check_place(self.chain, self.position.seq)
            .and_then(|()| header.check_body(body))
            .map_err(|damage| damage.fault)?;
        match header.kind {
            RecordKind::History => {
                let history = HistoryBody::decode(body).map_err(|damage| damage.fault)?;
                Self::history(engine, header, body, &history)?;
                self.position.history = history.history;
            }
            RecordKind::Batch => self.batch(engine, header, body)?,
        }
        self.position.seq = header.seq;
        self.chain = header.chain;
        Ok(())
    }

    fn record(header: &RecordHeader, body: &[u8]) -> Forwarded {
        Forwarded { header: *header, body: body.to_vec() }
    }

    fn history(
        engine: &Engine,
        header: &RecordHeader,
        body: &[u8],
        history: &HistoryBody,
    ) -> Result<()> {
        let commit = &engine.tree().commit;
        let done = commit.with_room(|| commit.forward_history(history, Self::record(header, body)));
        done.map(|_| ())
    }

    fn batch(
        &mut self,
        engine: &Engine,
        header: &RecordHeader,
        body: &[u8],
    ) -> std::result::Result<(), NotApplied> {
        let mut effects = Effects::new(body);
        // As most are.
        if let (Some(Ok(LoggedEffect::Put { key, value, expire_at })), None) =
            (effects.next(), effects.next())
            && id_of(key) != CATALOGUE_ID
        {
            return Ok(self.put(engine, Self::record(header, body), key, value, expire_at)?);
        }
        self.last = None;
        Self::changes(engine, header, body)
    }

    fn put(
        &mut self,
        engine: &Engine,
        record: Forwarded,
        key: &[u8],
        value: &[u8],
        expire_at: u64,
    ) -> Result<()> {
        let (tree, id) = (engine.tree(), id_of(key));
        let slot = match self.last {
            Some((last, slot)) if last == id => slot,
            _ => engine.catalogue.lock().slot(tree, id),
        };
        self.last = Some((id, slot));
        let put = Some(given_value(tree, value, expire_at)?);
        let (view, condition, want_old) = (tree.commit.view(), &Condition::Always, false);
        let prefix_len = PREFIX_LEN;
        let write = PointWrite { view, slot, key, prefix_len, put, condition, want_old };
        tree.forward_put(&write, record)
    }

    fn changes(
        engine: &Engine,
        header: &RecordHeader,
        body: &[u8],
    ) -> std::result::Result<(), NotApplied> {
        let (tree, prefix_len) = (engine.tree(), PREFIX_LEN);
        // The slots are looked up below, once all is proven and hashed with nothing held.
        let (mut changes, slot) = (Changes::default(), CATALOGUE);
        // What names come to stand for; `None` for those that go.
        let mut names: Vec<(String, Option<u32>)> = Vec::new();
        for effect in Effects::new(body) {
            match effect.map_err(|damage| damage.fault)? {
                LoggedEffect::Put { key, value, expire_at } => {
                    let named = catalogue_entry(key, Some(value), expire_at)?;
                    names.extend(named.map(|(name, id)| (name.to_owned(), Some(id))));
                    let put = Some(given_value(tree, value, expire_at)?);
                    changes.ops.push(BatchOp { slot, key, prefix_len, put });
                }
                LoggedEffect::Remove { key } | LoggedEffect::Expire { key } => {
                    if id_of(key) == CATALOGUE_ID {
                        let name = std::str::from_utf8(&key[PREFIX_LEN..]);
                        names.push((name.map_err(|_| Fault::Text)?.to_owned(), None));
                    }
                    changes.ops.push(BatchOp { slot, key, prefix_len, put: None });
                }
                LoggedEffect::RemoveRange { low, high } => {
                    let (low, high) = (low.to_vec(), high.to_vec());
                    changes.ranges.push(RangeDelete { slot, low, high, prefix_len });
                }
            }
        }
        let record = Self::record(header, body);
        let mut catalogue = engine.catalogue.lock();
        for (name, id) in &names {
            match id {
                Some(id) => catalogue.renew(tree, *id),
                None => changes.drops = catalogue.names.get(name).map(|(_, slot)| *slot),
            }
        }
        changes.ops.iter_mut().for_each(|op| op.slot = catalogue.slot(tree, id_of(op.key)));
        for range in &mut changes.ranges {
            range.slot = catalogue.slot(tree, id_of(&range.low));
        }
        if names.is_empty() {
            drop(catalogue);
            return Ok(tree.forward(&changes, record)?);
        }
        // Held to the end: who looks a name up finds it with what it stands for.
        tree.forward(&changes, record)?;
        for (name, id) in names {
            match id {
                Some(id) => {
                    let slot = catalogue.slot(tree, id);
                    catalogue.names.insert(name, (id, slot));
                }
                None => drop(catalogue.names.remove(&name)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "small random numbers")]
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::clock::{Random, test_seeds};
    use crate::commit::{Holder, Role};
    use crate::position::Seq;
    use crate::storage::feed::{Fed, Feed, Shown};
    use crate::storage::sim::SimDisk;
    use crate::{Builder, Database, Durability, SaveOptions};

    fn on(disk: &SimDisk, kept: u64) -> Builder {
        Database::builder()
            .disk(disk.clone())
            .manual_log()
            .save_when_log_exceeds(None)
            .keep_log(kept, Duration::ZERO)
            .segment_bytes(8 << 10)
            .durability(Durability::Memory)
    }

    type Content = BTreeMap<(String, Vec<u8>), Vec<u8>>;

    fn content(db: &Database) -> Content {
        let mut content = Content::new();
        for name in db.keyspaces().unwrap() {
            let keyspace = db.keyspace(&name).unwrap();
            for entry in keyspace.range::<&[u8]>(..) {
                let (key, value) = entry.unwrap();
                content.insert((name.clone(), key.to_vec()), value.to_vec());
            }
        }
        content
    }

    fn change(db: &Database, random: &mut Random) {
        let name = ["films", "makers", "years"][random.below(3) as usize];
        let keyspace = db.keyspace(name).unwrap();
        let key = format!("{:03}", random.below(200));
        match random.below(20) {
            0 => assert!(db.drop_keyspace(name).unwrap()),
            1 => assert!(keyspace.remove(key).is_ok()),
            2 => assert!(keyspace.delete_range(key.clone()..format!("{key}9")).is_ok()),
            3 => keyspace.insert(key, vec![7; 6_000]).unwrap(),
            4 => {
                let mut batch = db.batch();
                (0..30).for_each(|n| batch.insert(&keyspace, format!("{:03}", n * 7), [n]));
                batch.remove(&keyspace, key);
                batch.commit().unwrap();
            }
            _ => keyspace.insert(key, random.below(1_000).to_string()).unwrap(),
        }
    }

    /// Brings the replica as far as the source is, or some way; whether the log still had what it needed.
    fn pump(source: &Database, replica: &Database, most: usize, rounds: usize) -> bool {
        let log = source.engine().log().unwrap();
        let commit = &source.engine().tree().commit;
        log.write_out(commit, source.seq()).unwrap();
        let Some(mut feed) = Feed::open(log, replica.seq()).unwrap() else { return false };
        if replica.seq() > Seq(0) {
            assert_eq!(feed.position(), replica.position());
        }
        let own = replica.engine().log().unwrap();
        own.write_out(&replica.engine().tree().commit, replica.seq()).unwrap();
        assert_eq!(own.chain(), feed.chain());
        let mut applier = Applier::new(replica.engine(), feed.chain());
        for _ in 0..rounds {
            let mut apply = |shown: Shown<'_>| {
                if let Shown::Record { header, body } = shown {
                    applier.apply(replica.engine(), header, body).unwrap();
                }
            };
            match feed.next(Seq(u64::MAX), most, &mut apply).unwrap() {
                Fed::More => {}
                Fed::All => break,
                Fed::Gone => return false,
            }
        }
        assert_eq!((applier.position(), feed.position()), (replica.position(), replica.position()));
        true
    }

    fn same(source: &Database, replica: &Database, what: &str) {
        assert_eq!(source.position(), replica.position(), "{what}");
        let cut = |db: &Database| {
            let cut = db.engine().tree().cut(Holder::Snapshot).unwrap();
            let told = (cut.lineage(), cut.totals);
            db.engine().tree().drop_cut(&cut);
            told
        };
        assert_eq!(cut(source), cut(replica), "{what}");
        assert!(content(source) == content(replica), "{what}");
    }

    /// Both sides are killed, closed and opened again, and save when they like; the log alone brings the replica along as long as it goes back far enough.
    #[test]
    fn a_replica_that_is_fed_the_log_becomes_the_same() {
        for seed in test_seeds(40) {
            let mut random = Random::new(seed);
            let what = format!("seed {seed}");
            let (disk, other) = (SimDisk::new(), SimDisk::new());
            let kept = if seed % 2 == 0 { 1 << 30 } else { 0 };
            let mut source = on(&disk, kept).open("/db").unwrap();
            let mut replica = on(&other, 0).open("/db").unwrap();
            replica.engine().tree().commit.set_role(Role::Replica);
            let mut fed = 0;
            for _ in 0..60 {
                (0..random.below(30)).for_each(|_| change(&source, &mut random));
                match random.below(8) {
                    0 => {
                        source.close().unwrap();
                        drop(source);
                        source = on(&disk, kept).open("/db").unwrap();
                        assert_eq!(source.role(), Role::Primary, "{what}");
                    }
                    1 => {
                        drop(replica);
                        replica = on(&other, 0).open("/db").unwrap();
                        // What it holds is not its own.
                        let role =
                            if replica.seq() > Seq(0) { Role::Replica } else { Role::Primary };
                        assert_eq!(replica.role(), role, "{what}");
                        replica.engine().tree().commit.set_role(Role::Replica);
                    }
                    2 => drop(source.compact_log(SaveOptions::default().threads(1)).unwrap()),
                    3 => drop(replica.compact_log(SaveOptions::default().threads(1)).unwrap()),
                    _ => {
                        let (most, rounds) =
                            (random.below(20_000) as usize, random.below(9) as usize);
                        if pump(&source, &replica, most, rounds) {
                            fed += 1;
                        } else {
                            assert_eq!(kept, 0, "{what}: what was kept is gone");
                            replica =
                                on(&other, 0).open(format!("/db{}", random.next_u64())).unwrap();
                            replica.engine().tree().commit.set_role(Role::Replica);
                        }
                    }
                }
            }
            if pump(&source, &replica, 1 << 20, usize::MAX) {
                same(&source, &replica, &what);
                replica.close().unwrap();
                drop(replica);
            }
            assert!(fed > 0 || kept == 0, "{what}");
        }
    }

    #[test]
    fn what_may_not_come_next_changes_nothing() {
        let (disk, other) = (SimDisk::new(), SimDisk::new());
        let source = on(&disk, 1 << 30).open("/db").unwrap();
        let replica = on(&other, 0).open("/db").unwrap();
        replica.engine().tree().commit.set_role(Role::Replica);
        let mut random = Random::new(1);
        (0..20).for_each(|_| change(&source, &mut random));
        let log = source.engine().log().unwrap();
        log.write_out(&source.engine().tree().commit, source.seq()).unwrap();
        let mut records = Vec::new();
        let mut feed = Feed::open(log, Seq(0)).unwrap().unwrap();
        let mut keep = |shown: Shown<'_>| {
            if let Shown::Record { header, body } = shown {
                records.push((*header, body.to_vec()));
            }
        };
        assert_eq!(feed.next(Seq(u64::MAX), usize::MAX, &mut keep).unwrap(), Fed::All);
        let mut applier = Applier::new(replica.engine(), 0);
        for (at, (header, body)) in records.iter().enumerate() {
            let before = (replica.position(), content(&replica));
            let refused = |applier: &mut Applier, header: &RecordHeader, body: &[u8]| {
                let applied = applier.apply(replica.engine(), header, body);
                assert!(matches!(applied, Err(NotApplied::Fault(_))), "{applied:?}");
            };
            // Another one's place, another chain, another body.
            if let Some((later, body)) = records.get(at + 1) {
                refused(&mut applier, later, body);
            }
            refused(&mut applier, &RecordHeader { chain: header.chain ^ 1, ..*header }, body);
            refused(&mut applier, &RecordHeader { time_ms: header.time_ms + 1, ..*header }, body);
            let mut other = body.clone();
            other[0] ^= 1;
            refused(&mut applier, header, &other);
            assert!((replica.position(), content(&replica)) == before);
            applier.apply(replica.engine(), header, body).unwrap();
            if at > 0 {
                refused(&mut applier, header, body);
            }
        }
        same(&source, &replica, "all");
        // Who takes writes of his own takes no others, whoever brings them and whatever he has looked at before.
        let position = Position { seq: Seq(0), ..Position::default() };
        let (header, body) = &records[0];
        let first = on(&SimDisk::new(), 0).open("/db").unwrap();
        assert_eq!(Applier::new(first.engine(), 0).position, position);
        let applied = Applier::new(first.engine(), 0).apply(first.engine(), header, body);
        assert!(matches!(applied, Err(NotApplied::Error(Error::NotFollowing))), "{applied:?}");
        first.engine().tree().commit.set_role(Role::Replica);
        let mut twice = [Applier::new(first.engine(), 0), Applier::new(first.engine(), 0)];
        twice[0].apply(first.engine(), header, body).unwrap();
        let applied = twice[1].apply(first.engine(), header, body);
        assert!(matches!(applied, Err(NotApplied::Error(Error::NotFollowing))), "{applied:?}");
        assert_eq!(first.position().seq, header.seq);
    }
}
