//! What goes wrong on a simulated disk, when, and what was asked of it meanwhile.
//!
//! A sweep runs a workload once to learn the calls it makes, then once for each of them with a fault
//! planted there: the workload is deterministic, so call number n is the same call each time.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::sync::assert_no_latch;

/// The methods of [`Disk`](super::super::Disk) and [`DiskFile`](super::super::DiskFile).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum CallKind {
    CreateNew,
    Open,
    OpenWrite,
    Map,
    Rename,
    Remove,
    CreateDir,
    RemoveDir,
    List,
    Lock,
    SyncDir,
    Read,
    Write,
    Store,
    Len,
    SetLen,
    SyncData,
    SyncAll,
}

/// One call that was made to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which method.
    pub kind: CallKind,
    /// On which file or directory; of a rename, its old name.
    pub path: Arc<Path>,
    /// What the fault plan did to it.
    pub fault: Option<Effect>,
}

/// What a fault does to the call it meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The call fails with this error number and does nothing; but a sync that fails leaves what it
    /// should have made durable in doubt for good, whatever later syncs say.
    Error(i32),
    /// A read or a write takes no more than so many bytes.
    Short(usize),
}

/// A fault to plant: [`SimDisk::inject`](super::SimDisk::inject).
///
/// It meets the next call of any kind, once; [`on`](Self::on), [`after`](Self::after) and
/// [`forever`](Self::forever) say otherwise.
#[derive(Debug, Clone)]
pub struct DiskFault {
    effect: Effect,
    /// Empty: all.
    kinds: Vec<CallKind>,
    /// Matching calls that still pass before it strikes.
    skip: u64,
    forever: bool,
}

impl DiskFault {
    /// Error number: the device failed.
    pub const EIO: i32 = libc::EIO;
    /// Error number: the disk is full.
    pub const ENOSPC: i32 = libc::ENOSPC;
    /// Error number: interrupted by a signal before anything was done.
    pub const EINTR: i32 = libc::EINTR;
    /// Error number: not allowed.
    pub const EACCES: i32 = libc::EACCES;

    /// Fails a call with the operating system's error number `errno`.
    pub fn error(errno: i32) -> Self {
        DiskFault { effect: Effect::Error(errno), kinds: Vec::new(), skip: 0, forever: false }
    }

    /// Lets a read or a write take no more than `count` bytes.
    pub fn short(count: usize) -> Self {
        DiskFault { effect: Effect::Short(count), kinds: Vec::new(), skip: 0, forever: false }
    }

    /// Only calls of this kind; said more than once, of any of these. (A short count meets nothing but reads
    /// and writes in any case.)
    #[must_use]
    pub fn on(mut self, kind: CallKind) -> Self {
        self.kinds.push(kind);
        self
    }

    /// Lets `count` matching calls pass first, counted from the injection.
    #[must_use]
    pub fn after(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Strikes at every matching call from then on, not once.
    #[must_use]
    pub fn forever(mut self) -> Self {
        self.forever = true;
        self
    }

    fn matches(&self, kind: CallKind) -> bool {
        let able = match self.effect {
            Effect::Error(_) => true,
            Effect::Short(_) => matches!(kind, CallKind::Read | CallKind::Write),
        };
        able && (self.kinds.is_empty() || self.kinds.contains(&kind))
    }
}

/// The faults that are planted and the calls made so far.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultPlan {
    faults: Vec<DiskFault>,
    calls: Vec<Call>,
}

impl FaultPlan {
    pub(super) fn inject(&mut self, fault: DiskFault) {
        self.faults.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    pub(super) fn calls(&self) -> &[Call] {
        &self.calls
    }

    pub(super) fn counts(&self) -> BTreeMap<CallKind, u64> {
        let mut counts = BTreeMap::new();
        for call in &self.calls {
            *counts.entry(call.kind).or_default() += 1;
        }
        counts
    }

    /// Notes a call and decides what becomes of it: the most bytes it may take, or its error.
    pub(super) fn admit(&mut self, kind: CallKind, path: &Arc<Path>) -> io::Result<usize> {
        assert_no_latch(crate::storage::DISK);
        let mut struck = None;
        self.faults.retain_mut(|fault| {
            if struck.is_some() || !fault.matches(kind) {
                return true;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                return true;
            }
            struck = Some(fault.effect);
            fault.forever
        });
        self.calls.push(Call { kind, path: Arc::clone(path), fault: struck });
        match struck {
            Some(Effect::Error(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Effect::Short(count)) => Ok(count),
            None => Ok(usize::MAX),
        }
    }
}
