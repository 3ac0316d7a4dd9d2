//! A state from elsewhere takes the place of a database's own: proven as a whole before anything changes, then shown at once.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::commit::{CATALOGUE, Installed, KeyspaceSlot, Span, Totals};
use crate::database::Engine;
#[cfg(feature = "simulation")]
use crate::format::leaves::KeyspaceSums;
use crate::keys::{self, CATALOGUE_ID, PREFIX_LEN, id_of};
use crate::open::Catalogue;
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};
use crate::storage::STREAM;
#[cfg(feature = "simulation")]
use crate::storage::load::Loaded;
use crate::storage::walk::catalogue_entry;
use crate::tree::{BuiltLeaf, Entry, Tree};
use crate::{Error, Fault, Result};

/// A state that has come whole: leaves for the ranges in which it differs, and what all of it must add up to.
pub(crate) struct Arrival {
    /// Leaves that tile a range, for each range in turn.
    pub(crate) ranges: Vec<Vec<BuiltLeaf>>,
    /// What they add up to, by keyspace.
    pub(crate) sums: BTreeMap<u32, Totals>,
    pub(crate) position: Position,
    pub(crate) time_ms: u64,
    pub(crate) lineage: Vec<Span>,
    /// That of the records that led there.
    pub(crate) chain: u32,
    /// Entries of the whole state, and the sum of their fingerprints.
    pub(crate) records: u64,
    pub(crate) fingerprint: u64,
    /// The state lies on another line, or before the present one.
    pub(crate) rewinds: bool,
}

/// What leaves add up to, by keyspace.
pub(crate) fn sums_of<'a>(
    leaves: impl IntoIterator<Item = &'a BuiltLeaf>,
) -> BTreeMap<u32, Totals> {
    let mut sums: BTreeMap<u32, Totals> = BTreeMap::new();
    for leaf in leaves {
        leaf.sum_up(PREFIX_LEN, &mut |prefix, totals| {
            sums.entry(id_of(prefix)).or_default().include(totals);
        });
    }
    sums
}

impl Arrival {
    /// A database without anything, as a new one is.
    pub(crate) fn nothing(engine: &Engine) -> Self {
        let empty = engine.tree().bulk().begin(&[], None, Seq(0)).finish();
        Arrival {
            ranges: vec![empty],
            sums: BTreeMap::new(),
            position: Position::default(),
            time_ms: engine.tree().clock().now_ms(),
            lineage: Vec::new(),
            chain: 0,
            records: 0,
            fingerprint: 0,
            rewinds: true,
        }
    }
}

#[cfg(feature = "simulation")]
impl Arrival {
    /// All of a snapshot that was loaded.
    pub(crate) fn whole(loaded: Loaded<BuiltLeaf>, rewinds: bool) -> Self {
        let Loaded { leaves, footer, lineage, keyspaces } = loaded;
        let totals = |sums: KeyspaceSums| Totals {
            records: sums.entries,
            bytes: sums.raw_bytes,
            fingerprint: sums.fingerprint,
        };
        Arrival {
            ranges: vec![leaves],
            sums: keyspaces.into_iter().map(|(id, sums)| (id, totals(sums))).collect(),
            position: footer.position,
            time_ms: footer.time_ms,
            lineage,
            chain: 0,
            records: footer.totals.entries,
            fingerprint: footer.totals.fingerprint,
            rewinds,
        }
    }
}

impl Engine {
    /// Puts `arrival` in the place of the present. Reads and stills go on meanwhile, of the state before, up to one moment. Nobody
    /// else may be writing.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the whole would not add up: then nothing has changed.
    pub(crate) fn install(&self, arrival: Arrival) -> Result<()> {
        let Arrival { ranges, sums, position, time_ms, lineage, chain, .. } = arrival;
        let Arrival { records, fingerprint, rewinds, .. } = arrival;
        let told = |fault| Error::corrupt(Path::new(STREAM), 0, fault);
        let by_id = self.totals_with(&ranges, sums);
        let mut all = Totals::default();
        by_id.values().for_each(|totals| all.include(totals));
        for (field, got, expected) in
            [("records", all.records, records), ("fingerprint", all.fingerprint, fingerprint)]
        {
            if got != expected && !planted(Bug::InstallUnproven) {
                return Err(told(Fault::Mismatch { field, got, expected }));
            }
        }
        let names = names_after(self.tree(), &ranges).map_err(told)?;
        // From here on nothing fails.
        let install = self.tree().install(rewinds)?;
        for leaves in ranges {
            // Latched at once are those that take the place of one leaf, which may be all there is.
            let mut leaves = leaves.into_iter();
            while !leaves.as_slice().is_empty() {
                install.replace(leaves.by_ref().take(AT_ONCE).collect());
            }
        }
        if rewinds {
            install.clamp(position.seq);
        }
        // What names mean changes under this lock alone.
        let mut catalogue = self.catalogue.lock();
        let mut next =
            catalogue.next(&names, by_id.keys().copied(), || self.tree().commit.add_keyspace());
        let slot_of = |id: &u32| if *id == CATALOGUE_ID { CATALOGUE } else { next.slots[id] };
        let keyspaces: Vec<_> = by_id.iter().map(|(id, totals)| (slot_of(id), *totals)).collect();
        let is_gone = |slot: &KeyspaceSlot| !keyspaces.iter().any(|(other, _)| other == slot);
        let named = |slot: &KeyspaceSlot| next.slots.values().any(|other| other == slot);
        let mut emptied: Vec<_> = next.slots.values().copied().filter(is_gone).collect();
        emptied.extend(is_gone(&CATALOGUE).then_some(CATALOGUE));
        let dropped: Vec<_> =
            catalogue.slots.values().copied().filter(|slot| !named(slot)).collect();
        let keyspaces =
            keyspaces.into_iter().chain(emptied.into_iter().map(|slot| (slot, Totals::default())));
        let keyspaces = keyspaces.collect();
        let renames = catalogue.names != next.names && !planted(Bug::NamesNeverMove);
        next.earlier = std::mem::take(&mut catalogue.earlier);
        let before = std::mem::take(&mut catalogue.slots);
        if renames {
            next.earlier.push((self.tree().commit.view(), before));
        } else {
            // Stills may show keyspaces that were dropped since.
            for (id, slot) in before {
                next.slots.entry(id).or_insert(slot);
            }
        }
        let totals = all;
        install.finish(Installed {
            position,
            time_ms,
            lineage,
            chain,
            totals,
            keyspaces,
            dropped,
            renames,
        });
        *catalogue = next;
        Ok(())
    }

    /// What each keyspace will add up to with `ranges`, which add up to `sums`, in the place of what is there.
    fn totals_with(
        &self,
        ranges: &[Vec<BuiltLeaf>],
        sums: BTreeMap<u32, Totals>,
    ) -> BTreeMap<u32, Totals> {
        let tree = self.tree();
        let mut by_id: BTreeMap<u32, Totals> = {
            let catalogue = self.catalogue.lock();
            let slots = catalogue.slots.iter().map(|(id, slot)| (*id, *slot));
            let slots = slots.chain([(CATALOGUE_ID, CATALOGUE)]);
            slots.map(|(id, slot)| (id, tree.commit.totals(slot))).collect()
        };
        for leaves in ranges {
            let (Some(first), Some(last)) = (leaves.first(), leaves.last()) else { continue };
            for own in tree.sums(PREFIX_LEN, first.low(), last.high()) {
                by_id.entry(id_of(&own.prefix)).or_default().exclude(&own.totals);
            }
        }
        for (id, totals) in sums {
            by_id.entry(id).or_default().include(&totals);
        }
        by_id.retain(|_, totals| *totals != Totals::default());
        by_id
    }
}

/// So many new leaves are put in the place of an old one at once.
const AT_ONCE: usize = 64;

/// The names in the present with `ranges` in the place of what is there.
fn names_after(
    tree: &Tree,
    ranges: &[Vec<BuiltLeaf>],
) -> std::result::Result<HashMap<String, u32>, Fault> {
    let bounds = keys::all(CATALOGUE_ID);
    let (mut names, mut failed) = (HashMap::new(), None);
    let mut take = |key: &[u8], entry: Entry<'_>| {
        let value = (entry.value.len() == 4).then(|| entry.value.bytes());
        match catalogue_entry(key, value, entry.expire_at) {
            Ok(named) => names.extend(named.map(|(name, id)| (name.to_owned(), id))),
            Err(fault) => failed = Some(fault),
        }
    };
    let is_replaced = |key: &[u8]| {
        ranges.iter().any(|leaves| match (leaves.first(), leaves.last()) {
            (Some(first), Some(last)) => {
                first.low() <= key && last.high().is_none_or(|high| key < high)
            }
            _ => false,
        })
    };
    tree.each_present(&bounds, |key, entry| {
        if !is_replaced(key) {
            take(key, entry);
        }
    });
    for leaf in ranges.iter().flatten() {
        if bounds.high.as_deref().is_some_and(|high| leaf.low() < high) {
            leaf.each(&mut take);
        }
    }
    if let Some(fault) = failed {
        return Err(fault);
    }
    let mut ids: Vec<_> = names.values().collect();
    ids.sort_unstable();
    match ids.is_sorted_by(|a, b| a < b) {
        true => Ok(names),
        false => Err(Fault::Order { field: "keyspace ids" }),
    }
}

impl Catalogue {
    /// The catalogue in which names mean what `names` says, and keyspaces `ids` hold something. Who has the same name and number as before
    /// keeps his counters.
    fn next(
        &self,
        names: &HashMap<String, u32>,
        ids: impl Iterator<Item = u32>,
        mut add: impl FnMut() -> KeyspaceSlot,
    ) -> Catalogue {
        let mut next = Catalogue { next_id: self.next_id, ..Catalogue::new() };
        for (name, &id) in names {
            let slot = match self.names.get(name) {
                Some(&(before, slot)) if before == id => slot,
                _ => add(),
            };
            next.names.insert(name.clone(), (id, slot));
            next.slots.insert(id, slot);
        }
        for id in ids.filter(|id| *id != CATALOGUE_ID) {
            next.slots.entry(id).or_insert_with(&mut add);
        }
        // Above all that were ever given, on either line.
        let highest = next.slots.keys().max().map_or(0, |id| id.saturating_add(1));
        next.next_id = next.next_id.max(highest);
        next
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation, reason = "small random numbers")]
    use super::*;
    use crate::clock::{Random, test_seeds};
    use crate::commit::{Holder, Role};
    use crate::replication::line::{end, fork};
    use crate::replication::needs::{Need, Needs};
    use crate::tree::{LeafCopy, Pass};
    use crate::{Database, SaveOptions};

    fn empty(entries: usize) -> Database {
        Database::builder().leaf_entries(entries).manual_reclaim().in_memory().unwrap()
    }

    fn saved(db: &Database) -> Vec<u8> {
        let mut bytes = Vec::new();
        db.snapshot().unwrap().write_to(&mut bytes, &SaveOptions::default().threads(1)).unwrap();
        bytes
    }

    type Content = BTreeMap<(String, Vec<u8>), Vec<u8>>;

    fn content(db: &Database) -> Content {
        let mut content = Content::new();
        for name in db.keyspaces().unwrap() {
            let keyspace = db.keyspace(&name).unwrap();
            let before = content.len();
            for entry in keyspace.range::<&[u8]>(..) {
                let (key, value) = entry.unwrap();
                content.insert((name.clone(), key.to_vec()), value.to_vec());
            }
            assert_eq!(keyspace.len().unwrap(), (content.len() - before) as u64);
        }
        content
    }

    fn change(db: &Database, random: &mut Random, most: u64) {
        for _ in 0..random.below(most) {
            let name = ["films", "makers", "years"][random.below(3) as usize];
            let keyspace = db.keyspace(name).unwrap();
            let key = format!("{:03}", random.below(250));
            match random.below(40) {
                0 => assert!(db.drop_keyspace(name).unwrap()),
                1..4 => assert!(keyspace.delete_range(key.clone()..format!("{key}9")).is_ok()),
                4..12 => assert!(keyspace.remove(key).is_ok()),
                12 => keyspace.insert(key, vec![7; 3_000]).unwrap(),
                13..16 => db.reclaim(),
                // Few values: what changes and changes back has changed.
                _ => keyspace.insert(key, random.below(2).to_string()).unwrap(),
            }
        }
    }

    fn lineage(db: &Database) -> Vec<Span> {
        let cut = db.engine().tree().cut(Holder::Snapshot).unwrap();
        db.engine().tree().drop_cut(&cut);
        cut.lineage()
    }

    /// What `source` would send to `replica`, as it would be installed there; and how many leaves it passed over.
    fn arrival(source: &Database, replica: &Database, random: &mut Random) -> (Arrival, u64) {
        let (own, theirs) = (lineage(replica), lineage(source));
        let at = fork(&own, &theirs);
        let mut needs = match at {
            Some(at) => Needs::everywhere(Need::NewerThan(at)),
            None => Needs::everywhere(Need::Anything),
        };
        if let Some(at) = at.filter(|at| *at < end(&own).seq) {
            replica.engine().tree().stamps(|low, high, stamp| {
                if stamp > at {
                    needs.set(low, high, Need::Anything);
                }
            });
        }
        let pass = Pass::take(source.engine().tree(), Holder::Save).unwrap();
        // Neither what was written since nor what the replica merges meanwhile matters.
        let changes = random.below(2) == 0 && source.role() == Role::Primary;
        let (bulk, mut ranges, mut skipped) = (replica.engine().tree().bulk(), Vec::new(), 0);
        let (mut from, mut copy) = (Some(Vec::new()), LeafCopy::default());
        let mut run: Vec<BuiltLeaf> = Vec::new();
        while let Some(low) = from {
            let wants = |low: &[u8], high: Option<&[u8]>, stamp| needs.want(low, high, stamp);
            if pass.copy_leaf_if(&low, wants, &mut copy).unwrap() {
                let page = copy.page();
                let mut leaf = bulk.begin(page.low(), page.high(), copy.stamp());
                let mut key = page.prefix().to_vec();
                for at in 0..page.len() {
                    let entry = page.show(at, &mut key);
                    leaf.push(&key, entry.value.bytes(), entry.expire_at);
                }
                run.extend(leaf.finish());
            } else {
                ranges.push(std::mem::take(&mut run));
                skipped += 1;
            }
            from = copy.page().high().map(<[u8]>::to_vec);
            if changes && random.below(4) == 0 {
                change(source, random, 3);
            }
            if random.below(8) == 0 {
                replica.reclaim();
            }
        }
        ranges.push(run);
        let cut = pass.cut();
        let rewinds = at != Some(end(&own).seq);
        let arrival = Arrival {
            sums: sums_of(ranges.iter().flatten()),
            ranges,
            position: cut.position,
            time_ms: cut.time_ms,
            lineage: cut.lineage(),
            chain: 0,
            records: cut.totals.records,
            fingerprint: cut.totals.fingerprint,
            rewinds,
        };
        (arrival, skipped)
    }

    /// What was changed and changed back is no difference for one replica, and is one for another that follows it.
    #[test]
    fn a_leaf_that_came_with_the_same_content_has_changed() {
        let mut random = Random::new(1);
        let first = empty(4);
        let film = first.keyspace("films").unwrap();
        let load = || Database::builder().load_from(&saved(&first)[..]).unwrap();
        film.insert("k", "a").unwrap();
        let replica = load();
        film.insert("k", "b").unwrap();
        let other = load();
        film.insert("k", "a").unwrap();
        for (source, replica) in [(&first, &replica), (&replica, &other)] {
            replica.engine().tree().commit.set_role(Role::Replica);
            source.engine().tree().commit.set_role(Role::Replica);
            let (arrival, _) = arrival(source, replica, &mut random);
            replica.engine().install(arrival).unwrap();
            assert!(content(replica) == content(&first));
        }
    }

    /// Three databases that follow one another in turns, each time by what has changed alone: a stamp that is too old would leave something out,
    /// which the fingerprint shows before anything is installed.
    #[test]
    fn changed_leaves_are_enough() {
        let mut skipped = 0;
        for seed in test_seeds(150) {
            let mut random = Random::new(seed);
            let first = empty(4);
            change(&first, &mut random, 300);
            let bytes = saved(&first);
            let load = || {
                let builder = Database::builder().leaf_entries(4).manual_reclaim();
                builder.load_from(&bytes[..]).unwrap()
            };
            let nodes = [first, load(), load()];
            let mut stills = Vec::new();
            for round in 0..12 {
                let what = format!("seed {seed}, round {round}");
                let writer = random.below(3) as usize;
                if nodes[writer].role() != Role::Primary {
                    nodes[writer].promote().unwrap();
                }
                change(&nodes[writer], &mut random, 60);
                let source = random.below(3) as usize;
                let to = (source + 1 + random.below(2) as usize) % 3;
                let (source, replica) = (&nodes[source], &nodes[to]);
                if random.below(2) == 0 {
                    stills.push((replica.snapshot().unwrap(), content(replica), to));
                }
                let was = replica.role();
                replica.engine().tree().commit.set_role(Role::Replica);
                let (arrival, passed_over) = arrival(source, replica, &mut random);
                skipped += passed_over;
                let (position, fingerprint) = (arrival.position, arrival.fingerprint);
                replica.engine().install(arrival).unwrap_or_else(|error| panic!("{what}: {error}"));
                replica.check();
                assert_eq!(replica.position(), position, "{what}");
                let still = replica.snapshot().unwrap();
                still.check().unwrap();
                assert_eq!(still.fingerprint(), fingerprint, "{what}");
                if source.position() == position {
                    assert!(content(replica) == content(source), "{what}");
                    assert_eq!(lineage(replica), lineage(source), "{what}");
                }
                if was == Role::Primary && random.below(2) == 0 {
                    replica.engine().tree().commit.set_role(was);
                }
                for (still, expected, _) in &stills {
                    let mut shown = Content::new();
                    for name in still.keyspaces().unwrap() {
                        let keyspace = still.keyspace(&name).unwrap();
                        for entry in keyspace.range::<&[u8]>(..) {
                            let (key, value) = entry.unwrap();
                            shown.insert((name.clone(), key.to_vec()), value.to_vec());
                        }
                    }
                    assert!(shown == *expected, "{what}: still at {}", still.position());
                }
                if random.below(3) == 0 {
                    stills.clear();
                    nodes.iter().for_each(Database::reclaim);
                }
            }
        }
        assert!(skipped > 10, "{skipped} leaves were passed over");
    }
}
