//! Ranges: owned iterators over keys in order, from both ends.

use crate::keys::PREFIX_LEN;
use crate::slice::Slice;
use crate::tree::Scan;
use crate::{Error, Result};

/// A scan, or what kept it from beginning.
enum State {
    Scan(Box<Scan>),
    Failed(Option<Error>),
}

impl State {
    fn of(scan: Result<Scan>) -> Self {
        match scan {
            Ok(scan) => State::Scan(Box::new(scan)),
            Err(error) => State::Failed(Some(error)),
        }
    }

    fn step<T>(
        &mut self,
        back: bool,
        make: impl Fn(&[u8], crate::tree::Entry<'_>) -> T,
    ) -> Option<Result<T>> {
        match self {
            State::Failed(error) => error.take().map(Err),
            State::Scan(scan) => {
                let shown = if back { scan.next_back() } else { scan.next() };
                match shown {
                    Ok(shown) => shown.map(|(key, entry)| Ok(make(&key[PREFIX_LEN..], entry))),
                    Err(error) => {
                        *self = State::Failed(None);
                        Some(Err(error))
                    }
                }
            }
        }
    }
}

/// Entries of a range in order, of one moment, from both ends.
///
/// Owned and `'static`: it borrows from no keyspace and may be sent to another thread. A longer range of a live
/// keyspace holds a still until it is dropped. After an error it ends.
///
/// ```
/// use stillframe::Database;
///
/// let films = Database::in_memory().keyspace("films")?;
/// for (film, year) in [("Metropolis", "1927"), ("Nosferatu", "1922"), ("Sunrise", "1927")] {
///     films.insert(film, year)?;
/// }
/// let mut range = films.range("N"..);
/// assert_eq!(range.next_back().unwrap()?.0, "Sunrise");
/// films.remove("Nosferatu")?;
/// // It shows the moment at which it was asked for.
/// assert_eq!(range.next().unwrap()?.0, "Nosferatu");
/// # Ok::<(), stillframe::Error>(())
/// ```
pub struct Range(State);

impl Range {
    pub(crate) fn new(scan: Result<Scan>) -> Self {
        Range(State::of(scan))
    }
}

impl Iterator for Range {
    type Item = Result<(Slice, Slice)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.step(false, |key, entry| (Slice::new(key), entry.value.to_slice()))
    }
}

impl DoubleEndedIterator for Range {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.step(true, |key, entry| (Slice::new(key), entry.value.to_slice()))
    }
}

/// Keys of a range in order, as [`Range`] without the values.
///
/// ```
/// use stillframe::Database;
///
/// let films = Database::in_memory().keyspace("films")?;
/// films.insert("Metropolis", "1927")?;
/// films.insert("Nosferatu", "1922")?;
/// let titles: Vec<_> = films.range_keys::<&str>(..).collect::<Result<_, _>>()?;
/// assert_eq!(titles, ["Metropolis", "Nosferatu"]);
/// # Ok::<(), stillframe::Error>(())
/// ```
pub struct Keys(State);

impl Keys {
    pub(crate) fn new(scan: Result<Scan>) -> Self {
        Keys(State::of(scan))
    }
}

impl Iterator for Keys {
    type Item = Result<Slice>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.step(false, |key, _| Slice::new(key))
    }
}

impl DoubleEndedIterator for Keys {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.step(true, |key, _| Slice::new(key))
    }
}
