//! What records mean to a subscriber: the names of the keyspaces that they speak of, and what of them was asked for.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Cause, Change, ChangeKind};
use crate::error::Fault;
use crate::format::codec::Damage;
use crate::format::record::{Effect, Effects, RecordKind};
use crate::keys::{self, CATALOGUE_ID, PREFIX_LEN, id_of};
use crate::planted::{Bug, planted};
use crate::position::Seq;
use crate::slice::Slice;
use crate::storage::feed::{Fed, Feed, Shown};
use crate::tree::{Scan, Still};
use crate::{Error, Result};

/// So much is read at a time.
const PIECE: usize = 256 << 10;

/// The keyspaces there are at one batch of the log, by number. A number means one keyspace within a run; a later one may give it again.
pub(super) struct Names {
    known: HashMap<u32, Known>,
    wanted: Wanted,
}

struct Known {
    name: Arc<str>,
    prefixes: Prefixes,
}

/// Beginnings of keys by the name of their keyspace; `None`: all.
#[derive(Default)]
struct Wanted(Option<BTreeMap<String, Prefixes>>);

/// None of which begins with another.
type Prefixes = Arc<[Vec<u8>]>;

/// What became of the name of a keyspace.
struct Renamed<'a> {
    name: &'a [u8],
    id: u32,
    is_made: bool,
}

impl Wanted {
    fn of(wanted: Option<&BTreeMap<String, Vec<Vec<u8>>>>) -> Self {
        let apart = |prefixes: &Vec<Vec<u8>>| {
            let mut all = prefixes.clone();
            all.sort_unstable();
            // What begins with another comes right behind it.
            all.dedup_by(|later, first| later.starts_with(first));
            all.into()
        };
        let each = |wanted: &BTreeMap<String, Vec<Vec<u8>>>| {
            wanted.iter().map(|(name, prefixes)| (name.clone(), apart(prefixes))).collect()
        };
        Self(wanted.map(each))
    }

    fn known(&self, name: &[u8]) -> Known {
        let name = String::from_utf8_lossy(name);
        let prefixes = match &self.0 {
            None => Prefixes::from([Vec::new()]),
            Some(wanted) => wanted.get(&*name).cloned().unwrap_or_default(),
        };
        Known { name: name.into(), prefixes }
    }
}

impl Names {
    /// As they are in `still`.
    pub(super) fn of(
        still: &Arc<Still>,
        wanted: Option<&BTreeMap<String, Vec<Vec<u8>>>>,
    ) -> Result<Self> {
        let (wanted, mut known) = (Wanted::of(wanted), HashMap::new());
        Scan::of_still(Arc::clone(still), keys::all(CATALOGUE_ID)).each(|key, entry| {
            if let Some(id) = entry.value.bytes().first_chunk() {
                known.insert(u32::from_le_bytes(*id), wanted.known(&key[PREFIX_LEN..]));
            }
            ControlFlow::Continue(())
        })?;
        Ok(Self { known, wanted })
    }

    /// As they were where `ahead` begins, if they are now as at `last`; `false` if the log has gone meanwhile.
    pub(super) fn go_back(&mut self, mut ahead: Feed, last: Seq) -> Result<bool> {
        // Made or dropped, the last change first.
        let mut changed = Vec::new();
        let mut damaged = None;
        let mut show = |shown: Shown<'_>| {
            let Shown::Record { header, body } = shown else { return };
            if header.kind == RecordKind::Batch && damaged.is_none() {
                match renamed(body) {
                    Ok(Some(Renamed { name, id, is_made })) => {
                        changed.push((name.to_vec(), id, is_made));
                    }
                    Ok(None) => {}
                    Err(damage) => damaged = Some(damage),
                }
            }
        };
        loop {
            match ahead.next(last, PIECE, &mut show)? {
                Fed::More => {}
                Fed::All => break,
                Fed::Gone => return Ok(false),
            }
        }
        if let Some(damage) = damaged {
            return Err(Error::corrupt(&ahead.path(), damage.at, damage.fault));
        }
        if planted(Bug::NamesOfNow) {
            return Ok(true);
        }
        for (name, id, is_made) in changed.into_iter().rev() {
            match is_made {
                true => self.known.remove(&id),
                false => self.known.insert(id, self.wanted.known(&name)),
            };
        }
        Ok(true)
    }

    /// What of a batch was asked for.
    pub(super) fn show(&mut self, body: &[u8]) -> std::result::Result<Vec<Change>, Damage> {
        let mut changes = Vec::new();
        let renamed = renamed(body)?;
        if let Some(Renamed { name, id, is_made: true }) = renamed {
            self.known.insert(id, self.wanted.known(name));
        }
        for effect in Effects::new(body) {
            self.show_effect(effect?, &mut changes)?;
        }
        if let Some(Renamed { id, is_made, .. }) = renamed {
            let known = match is_made {
                true => self.known.get(&id).map(|known| {
                    (Arc::clone(&known.name), ChangeKind::CreateKeyspace, known.prefixes.is_empty())
                }),
                false => self
                    .known
                    .remove(&id)
                    .map(|known| (known.name, ChangeKind::DropKeyspace, known.prefixes.is_empty())),
            };
            if let Some((keyspace, kind, false)) = known {
                changes.push(Change { keyspace, cause: Cause::Write, kind });
            }
        }
        Ok(changes)
    }

    fn show_effect(
        &self,
        effect: Effect<'_>,
        changes: &mut Vec<Change>,
    ) -> std::result::Result<(), Damage> {
        let (Effect::Put { key: whole, .. }
        | Effect::Remove { key: whole }
        | Effect::Expire { key: whole }
        | Effect::RemoveRange { low: whole, .. }) = effect;
        let id = id_of(whole);
        if id == CATALOGUE_ID {
            return Ok(());
        }
        let Some(Known { name, prefixes }) = self.known.get(&id) else {
            let fault = Fault::Foreign { field: "number of a keyspace" };
            return Err(Damage::new(0, fault));
        };
        let (_, own) = whole.split_at(PREFIX_LEN);
        let mut push = |cause, kind| {
            changes.push(Change { keyspace: Arc::clone(name), cause, kind });
        };
        let is_wanted = || prefixes.iter().any(|prefix| own.starts_with(prefix));
        let key = || Slice::new(own);
        match effect {
            Effect::Put { value, expire_at, .. } if is_wanted() => {
                let expires_at = (expire_at != 0).then_some(expire_at);
                let (key, value) = (key(), Slice::new(value));
                push(Cause::Write, ChangeKind::Put { key, value, expires_at });
            }
            Effect::Remove { .. } if is_wanted() => {
                push(Cause::Write, ChangeKind::Remove { key: key() });
            }
            Effect::Expire { .. } if is_wanted() => {
                push(Cause::Expiry, ChangeKind::Remove { key: key() });
            }
            Effect::RemoveRange { high, .. } => {
                // Behind the keyspace: without end.
                let high = high.strip_prefix(&whole[..PREFIX_LEN]);
                for prefix in prefixes.iter() {
                    let low = own.max(prefix);
                    let end = end_of(prefix);
                    let high = match (high, end.as_deref()) {
                        (Some(high), Some(end)) => Some(high.min(end)),
                        (high, end) => high.or(end),
                    };
                    if high.is_none_or(|high| low < high) {
                        let (low, high) = (Slice::new(low), high.map(Slice::new));
                        push(Cause::Write, ChangeKind::RemoveRange { low, high });
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The first key behind all that begin with `prefix`, if there is one.
fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let grows = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut end = prefix.get(..=grows)?.to_vec();
    *end.last_mut()? += 1;
    Some(end)
}

/// What a batch does to the names: that is the first that it does to keys, or nothing.
fn renamed(body: &[u8]) -> std::result::Result<Option<Renamed<'_>>, Damage> {
    let mut removed = None;
    for effect in Effects::new(body) {
        match effect? {
            Effect::RemoveRange { low, .. } => removed = Some(id_of(low)),
            Effect::Put { key, value, .. } if id_of(key) == CATALOGUE_ID => {
                let id = value.first_chunk().map(|id| u32::from_le_bytes(*id));
                let name = &key[PREFIX_LEN..];
                return Ok(id.map(|id| Renamed { name, id, is_made: true }));
            }
            Effect::Remove { key } if id_of(key) == CATALOGUE_ID => {
                let name = &key[PREFIX_LEN..];
                return Ok(removed.map(|id| Renamed { name, id, is_made: false }));
            }
            _ => break,
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_behind_it() {
        assert_eq!(end_of(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(end_of(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(end_of(b"\xff"), None);
        assert_eq!(end_of(b""), None);
    }

    #[test]
    fn prefixes_that_another_covers_are_left_out() {
        let prefixes = ["b", "abc", "ab", "b", "ba", "c"].map(|p| p.as_bytes().to_vec()).to_vec();
        let wanted = Wanted::of(Some(&BTreeMap::from([("x".to_owned(), prefixes)])));
        let kept: Vec<_> = wanted.known(b"x").prefixes.to_vec();
        assert_eq!(kept, [b"ab".to_vec(), b"b".to_vec(), b"c".to_vec()]);
        assert!(wanted.known(b"y").prefixes.is_empty());
    }
}
