//! Where in which history a state stands: sequence numbers, history ids, positions.
//!
//! Identity is the [`Position`]; a [`Seq`] alone names nothing, since two runs may both have assigned it.

use std::fmt;

/// Counts the committed batches of a line; the first is 1, 0 is the empty state.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// let before = db.seq();
/// films.insert("Metropolis", "1927")?;
/// assert_eq!(db.seq().0, before.0 + 1);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// 127 random bits that name what one run of a process wrote, and the last, which is set in one that a primary began in the name
/// of another that it handed over to; all zero before the first write.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-history-{}", std::process::id()));
/// use stillframe::{Database, DirectoryInfo, HistoryId};
///
/// for run in ["first", "second"] {
///     let db = Database::open(&dir)?;
///     db.keyspace("runs")?.insert(run, "")?;
///     db.close()?;
/// }
/// // Each run that wrote has one of its own.
/// let info = DirectoryInfo::read(&dir)?;
/// assert_eq!(info.lineage.len(), 2);
/// assert_ne!(info.lineage[0].history, info.lineage[1].history);
/// assert_eq!(Database::in_memory().position().history, HistoryId::default());
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HistoryId(pub [u8; 16]);

/// One committed batch: the history whose run assigned it, and its number.
///
/// Equal positions mean equal data, on every node and in every file.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// films.insert("Metropolis", "1927")?;
/// let still = db.snapshot()?;
/// assert_eq!(still.position(), db.position());
/// films.insert("Metropolis", "2010")?;
/// assert!(still.position().seq < db.position().seq);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// The history that assigned `seq`.
    pub history: HistoryId,
    /// The number of the batch on its line.
    pub seq: Seq,
}

impl HistoryId {
    /// That of a history which its writer begins himself.
    pub(crate) fn own() -> crate::Result<Self> {
        let mut id = crate::clock::random_id()?;
        id[15] &= !1;
        Ok(Self(id))
    }

    /// That of one which is begun in the name of its writer.
    pub(crate) fn handed() -> crate::Result<Self> {
        let mut id = crate::clock::random_id()?;
        id[15] |= 1;
        Ok(Self(id))
    }

    /// Whether another than its writer began it.
    pub(crate) fn is_handed(self) -> bool {
        self.0[15] & 1 == 1
    }
}

impl Position {
    /// 24 bytes to keep it by: the history, then the number, big-endian.
    ///
    /// ```
    /// let db = stillframe::Database::in_memory();
    /// db.keyspace("data")?.insert("k", "v")?;
    /// let kept = db.position().to_bytes();
    /// assert_eq!(stillframe::Position::from_bytes(kept), db.position());
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    pub fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        let (history, seq) = bytes.split_at_mut(16);
        history.copy_from_slice(&self.history.0);
        seq.copy_from_slice(&self.seq.0.to_be_bytes());
        bytes
    }

    /// The position that [`to_bytes`](Self::to_bytes) gave.
    pub fn from_bytes(bytes: [u8; 24]) -> Self {
        let (mut history, mut seq) = ([0; 16], [0; 8]);
        history.copy_from_slice(&bytes[..16]);
        seq.copy_from_slice(&bytes[16..]);
        Self { history: HistoryId(history), seq: Seq(u64::from_be_bytes(seq)) }
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for HistoryId {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for HistoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HistoryId({self})")
    }
}

impl fmt::Display for Position {
    /// The first eight digits of the history and the number: `1f3a90c2@17`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.history.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "@{}", self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_print_short_and_histories_whole() {
        let history = HistoryId(std::array::from_fn(|i| 0x10 + u8::try_from(i).unwrap()));
        assert_eq!(history.to_string(), "101112131415161718191a1b1c1d1e1f");
        assert_eq!(Position { history, seq: Seq(17) }.to_string(), "10111213@17");
    }
}
