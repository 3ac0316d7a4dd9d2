//! Ranges within a transaction: a still's entries, and the transaction's own writes in the place of what they replace.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::{holds, is_visible};
use crate::keys::PREFIX_LEN;
use crate::slice::Slice;
use crate::sync::Mutex;
use crate::tree::{Bounds, Scan, SeenRange, Still};
use crate::{Error, Result};

/// How far a range was read.
pub(super) struct Extent {
    bounds: Bounds,
    /// The last keys shown from either end.
    front: Option<Vec<u8>>,
    back: Option<Vec<u8>>,
    is_all: bool,
    first_expiry: u64,
}

impl Extent {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, front: None, back: None, is_all: false, first_expiry: u64::MAX }
    }

    pub(super) fn seen(&self) -> Vec<SeenRange> {
        let Bounds { low, high, .. } = &self.bounds;
        let first_expiry = self.first_expiry;
        let range = |low: &Vec<u8>, high: Option<Vec<u8>>| {
            let is_empty = high.as_ref().is_some_and(|high| high <= low);
            (!is_empty).then(|| SeenRange { low: low.clone(), high, first_expiry })
        };
        if self.is_all {
            return range(low, high.clone()).into_iter().collect();
        }
        let behind = |key: &Vec<u8>| [key, &[0][..]].concat();
        let front = self.front.as_ref().and_then(|last| range(low, Some(behind(last))));
        let back = self.back.as_ref().and_then(|last| range(last, high.clone()));
        front.into_iter().chain(back).collect()
    }
}

/// A key that the transaction has written, and what it is to have.
pub(super) type Own = (Vec<u8>, Option<(Slice, u64)>);

/// Entries of a range within a [`Transaction`](super::Transaction), in order, from both ends. After an error it ends.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let jobs = db.keyspace("jobs")?;
/// jobs.insert("2", "print")?;
/// db.transact(|tx| {
///     tx.insert(&jobs, "1", "develop")?;
///     // It shows what the transaction itself has written, in its place.
///     let waiting: Vec<_> = tx.range::<&str>(&jobs, ..).collect::<Result<_, _>>()?;
///     assert_eq!(waiting, [("1".into(), "develop".into()), ("2".into(), "print".into())]);
///     Ok(())
/// })?;
/// # Ok::<(), stillframe::Error>(())
/// ```
pub struct TransactionRange(State);

enum State {
    Failed(Option<Error>),
    Merge(Box<Merge>),
}

/// A scan of the still, and the transaction's own writes in the place of what they replace.
pub(super) struct Merge {
    scan: Scan,
    /// What the scan has shown and this has not yet.
    front: Option<Scanned>,
    back: Option<Scanned>,
    own: VecDeque<Own>,
    emptied: Vec<Bounds>,
    now_ms: u64,
    extent: Arc<Mutex<Extent>>,
}

struct Scanned {
    key: Vec<u8>,
    value: Slice,
    expire_at: u64,
}

/// Which end of a range.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Front,
    Back,
}

impl Merge {
    /// Of `still` in `bounds`, with the transaction's `own` writes there over what it has `emptied`; what is seen goes into the extent.
    pub(super) fn new(
        still: Arc<Still>,
        bounds: Bounds,
        own: VecDeque<Own>,
        emptied: Vec<Bounds>,
        now_ms: u64,
    ) -> Self {
        let extent = Arc::new(Mutex::new(Extent::new(bounds.clone())));
        let scan = Scan::of_still(still, bounds);
        Self { scan, front: None, back: None, own, emptied, now_ms, extent }
    }

    /// How far it was read.
    pub(super) fn extent(&self) -> &Arc<Mutex<Extent>> {
        &self.extent
    }

    /// The scan's next entry from `side`, to be looked at.
    fn fill(&mut self, side: Side) -> Result<()> {
        let is_filled = match side {
            Side::Front => self.front.is_some(),
            Side::Back => self.back.is_some(),
        };
        if is_filled {
            return Ok(());
        }
        let shown = match side {
            Side::Front => self.scan.next()?,
            Side::Back => self.scan.next_back()?,
        };
        let shown = shown.map(|(key, entry)| Scanned {
            key: key.to_vec(),
            value: entry.value.to_slice(),
            expire_at: entry.expire_at,
        });
        // The last one of all may have been looked at from the other end.
        match side {
            Side::Front => self.front = shown.or_else(|| self.back.take()),
            Side::Back => self.back = shown.or_else(|| self.front.take()),
        }
        Ok(())
    }

    fn step(&mut self, side: Side) -> Result<Option<(Slice, Slice)>> {
        loop {
            self.fill(side)?;
            let (scanned, own) = match side {
                Side::Front => (&mut self.front, self.own.front()),
                Side::Back => (&mut self.back, self.own.back()),
            };
            let mut extent = self.extent.lock();
            let own_comes_first = match (&scanned, own) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(scanned), Some((own, _))) => match side {
                    Side::Front => *own <= scanned.key,
                    Side::Back => *own >= scanned.key,
                },
            };
            let (key, put) = if own_comes_first {
                let own = match side {
                    Side::Front => self.own.pop_front(),
                    Side::Back => self.own.pop_back(),
                };
                let (key, put) = own.expect("it was looked at");
                if scanned.as_ref().is_some_and(|scanned| scanned.key == key) {
                    *scanned = None;
                }
                (key, put)
            } else {
                let Some(Scanned { key, value, expire_at }) = scanned.take() else {
                    extent.is_all = true;
                    return Ok(None);
                };
                let is_gone = self.emptied.iter().any(|bounds| holds(bounds, &key));
                if !is_gone && expire_at != 0 {
                    extent.first_expiry = extent.first_expiry.min(expire_at);
                }
                (key, (!is_gone).then_some((value, expire_at)))
            };
            match side {
                Side::Front => extent.front = Some(key.clone()),
                Side::Back => extent.back = Some(key.clone()),
            }
            if let Some((value, expire_at)) = put
                && is_visible(expire_at, self.now_ms)
            {
                return Ok(Some((Slice::new(&key[PREFIX_LEN..]), value)));
            }
        }
    }
}

impl TransactionRange {
    pub(super) fn new(merge: Result<Merge>) -> Self {
        TransactionRange(match merge {
            Ok(merge) => State::Merge(Box::new(merge)),
            Err(error) => State::Failed(Some(error)),
        })
    }

    fn step(&mut self, side: Side) -> Option<Result<(Slice, Slice)>> {
        match &mut self.0 {
            State::Failed(error) => error.take().map(Err),
            State::Merge(merge) => match merge.step(side) {
                Ok(shown) => shown.map(Ok),
                Err(error) => {
                    self.0 = State::Failed(None);
                    Some(Err(error))
                }
            },
        }
    }
}

impl Iterator for TransactionRange {
    type Item = Result<(Slice, Slice)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(Side::Front)
    }
}

impl DoubleEndedIterator for TransactionRange {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(Side::Back)
    }
}

impl fmt::Debug for TransactionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TransactionRange")
    }
}
