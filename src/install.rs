//! A state from elsewhere takes the place of a database's own: proven as a whole before anything changes, then shown at once.

use std::collections::{BTreeMap, HashMap};

use crate::commit::{CATALOGUE, Installed, KeyspaceSlot, Span, Totals};
use crate::database::Engine;
use crate::format::leaves::KeyspaceSums;
use crate::keys::{self, CATALOGUE_ID, PREFIX_LEN};
use crate::open::Catalogue;
use crate::planted::{Bug, planted};
use crate::position::Position;
use crate::storage::load::Loaded;
use crate::storage::walk::catalogue_entry;
use crate::tree::{BuiltLeaf, Install};
use crate::{Error, Result};

/// A state that has come whole: leaves for the ranges in which it differs, and what all of it must add up to.
pub(crate) struct Arrival {
    /// Leaves that tile a range, for each range in turn.
    pub(crate) ranges: Vec<Vec<BuiltLeaf>>,
    /// What they add up to, by keyspace.
    pub(crate) sums: BTreeMap<u32, Totals>,
    pub(crate) position: Position,
    pub(crate) time_ms: u64,
    pub(crate) lineage: Vec<Span>,
    /// Entries of the whole state, and the sum of their fingerprints.
    pub(crate) records: u64,
    pub(crate) fingerprint: u64,
    /// The state lies on another line, or before the present one.
    pub(crate) rewinds: bool,
}

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
    /// [`Error::SelfCheck`] if the whole would not add up: then nothing has changed.
    pub(crate) fn install(&self, arrival: Arrival) -> Result<()> {
        let Arrival { ranges, sums, position, time_ms, lineage, records, fingerprint, rewinds } =
            arrival;
        let by_id = self.totals_with(&ranges, sums);
        let mut all = Totals::default();
        by_id.values().for_each(|totals| all.include(totals));
        for (field, got, expected) in
            [("records", all.records, records), ("fingerprint", all.fingerprint, fingerprint)]
        {
            if got != expected {
                return Err(Error::SelfCheck { field, got, expected });
            }
        }
        let install = self.tree().install(rewinds)?;
        for leaves in ranges {
            install.replace(leaves);
        }
        if rewinds {
            install.clamp(position.seq);
        }
        let names = names(&install)?;
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
                let id = own.prefix[..].try_into().map_or(CATALOGUE_ID, u32::from_be_bytes);
                by_id.entry(id).or_default().exclude(&own.totals);
            }
        }
        for (id, totals) in sums {
            by_id.entry(id).or_default().include(&totals);
        }
        by_id.retain(|_, totals| *totals != Totals::default());
        by_id
    }
}

/// The names in the new state.
fn names(install: &Install) -> Result<HashMap<String, u32>> {
    let bounds = keys::all(CATALOGUE_ID);
    let (mut names, mut failed) = (HashMap::new(), None);
    install.each(&bounds, |key, entry| {
        let value = (entry.value.len() == 4).then(|| entry.value.bytes());
        match catalogue_entry(key, value, entry.expire_at) {
            Ok(named) => names.extend(named.map(|(name, id)| (name.to_owned(), id))),
            Err(fault) => failed = Some(fault),
        }
    });
    match failed {
        // It was proven as it came.
        Some(fault) => Err(Error::corrupt("<install>".as_ref(), 0, fault)),
        None => Ok(names),
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
