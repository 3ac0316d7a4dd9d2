//! Running totals: what the entries add up to, in all and by keyspace.

/// What a set of entries adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Entries stored, past their time or not.
    pub(crate) records: u64,
    /// Bytes of keys (as the user gave them) and values.
    pub(crate) bytes: u64,
    /// Wrapping sum of the entries' fingerprints.
    pub(crate) fingerprint: u64,
}

/// The change a batch makes to a keyspace's totals.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delta {
    pub(crate) records: i64,
    pub(crate) bytes: i64,
    pub(crate) fingerprint: u64,
}

impl Totals {
    /// Adds what other entries add up to.
    pub(crate) fn include(&mut self, other: &Totals) {
        self.records = self.records.wrapping_add(other.records);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.fingerprint = self.fingerprint.wrapping_add(other.fingerprint);
    }

    /// Takes away what some of the entries add up to.
    pub(crate) fn exclude(&mut self, other: &Totals) {
        self.records = self.records.wrapping_sub(other.records);
        self.bytes = self.bytes.wrapping_sub(other.bytes);
        self.fingerprint = self.fingerprint.wrapping_sub(other.fingerprint);
    }

    pub(super) fn add(&mut self, delta: &Delta) {
        self.records = self.records.wrapping_add_signed(delta.records);
        self.bytes = self.bytes.wrapping_add_signed(delta.bytes);
        self.fingerprint = self.fingerprint.wrapping_add(delta.fingerprint);
    }
}

/// A keyspace's place among the counters of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyspaceSlot(pub(crate) u32);

/// The catalogue's own.
pub(crate) const CATALOGUE: KeyspaceSlot = KeyspaceSlot(0);
