//! Bugs planted on purpose, to test the tests: each is a tempting wrong form of a rule that the engine rests on.
//!
//! In a build with `--cfg planted` the environment variable `STILLFRAME_PLANTED` names the one that is alive in this
//! process; in every other build [`planted`] is `false` at compile time and nothing of them is left.
//! torture/README.md says which command catches which; `cargo run -p torture -- planted` runs them all.

/// The bugs, by the area they are in. Rules R1 to R11, the wrong forms and I1 to I11 are in ARCHITECTURE.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// R3: the new content is put in place before the old is kept.
    KeepAfterApply,
    /// R3: whether a cut lives is looked up before the commit lock and not again under it.
    NewestBeforeLock,
    /// R3: .. or after the commit lock was released.
    NewestAfterLock,
    /// R3: the place in the order is taken before the leaf is latched.
    SeqBeforeLatch,
    /// R8, I3: a batch lets a leaf go for a moment before all is applied.
    BatchLetsGoEarly,
    /// R6: a leaf that a batch gives birth to can be found before it has its content.
    BornUnlatched,
    /// R6: the right half of a split gets nothing of what was kept.
    SplitDropsKept,
    /// R6: the right half of a split has no stamp.
    SplitDropsStamp,
    /// R5: a version that died at the cut's own tick is taken for one that the cut still has.
    DiedAtCut,
    /// R5: of several versions the newest is taken, not the first that died after the cut.
    NewestVersion,
    /// R9: what is on a dropped cut's list is freed, whoever else needs it.
    FreedWithItsLabel,
    /// R9: versions that died after the newest live cut are freed.
    FreesAboveNewest,
    /// R9: versions that died before the newest live cut are freed.
    FreesBelowNewest,
    /// R9: only versions that died before the oldest live cut are freed.
    FreesOnlyBelowOldest,
    /// R9: the live cuts are read before the leaf is latched.
    LiveReadBeforeLatch,
    /// R9: what an older cut still needs is not put on its list.
    NoHandOver,
    /// R9: a list leads to one leaf, not to whatever covers the range now.
    ListOfLeaves,
    /// R9: a list that was drained for good takes what is listed later.
    ListNeverCloses,
    /// R7: a merged leaf has the lower stamp.
    MergedStampLower,
    /// Hand-over: a promotion of its own that it has lost is one.
    OwnIsHanded,
    /// R6: recovery joins batches, and a leaf in which what came has gone again keeps its stamp.
    ReplayUnstamped,
    /// R2: cuts at one tick are one entry among the live ones.
    SameTickIsOneCut,
    /// R8: the next leaf of a batch is looked up as if nothing were held, with a directory that learns of splits late.
    NextLeafLookedUp,
    /// R8: .. or followed through a dead leaf's link.
    NextLeafThroughDead,
    /// R7: a merged leaf is not marked dead.
    DeadNotMarked,
    /// R7: who finds a dead leaf walks right from it.
    DeadWalkedPast,
    /// R7: a merged leaf stays in the directory.
    DeadNeverRemoved,
    /// R6: the right half of a split is entered into the directory later, by nobody who holds it.
    SplitEnteredLater,
    /// R10: a scan of the present holds one latch at a time.
    ScanHandOverHand,
    /// R7: leaves are merged whatever they keep.
    MergesKept,
    /// R11: a still marks the leaves that it has read, as a pass does.
    StillMarks,
    /// R11: a pass marks nothing: all it has passed goes on being kept for it.
    PassMarksNothing,
    /// R11: a batch takes the mark of its first leaf for that of all.
    BatchMarkOfFirst,
    /// R11: a leaf's mark counts for whatever cut is the newest.
    MarkOfAnother,
    /// R11: a merged leaf keeps the left one's mark, though the pass has yet to come to the right one.
    MergeKeepsMark,
    /// I7: a merge latches the right leaf before the left.
    MergeRightFirst,
    /// Nothing is kept of an entry that is removed.
    RemoveKeepsNothing,
    /// Nothing is kept of an entry whose time has passed.
    ExpiredKeepsNothing,
    /// Nothing is kept of what a range delete removes.
    RangeKeepsNothing,
    /// Nothing is kept of a keyspace's old totals.
    TotalsKeepNothing,
    /// R2: a cut reads its tick, lets the lock go, and takes its Position later.
    CutReadsTwice,
    /// R2: a cut is counted among the live ones after its tick was read.
    CutCountedLate,
    /// A merged leaf's number is used again while somebody may still have it from the directory.
    LeafFreedEarly,
    /// A still that a range held is never dropped.
    RangeLeaksStill,
    /// I6: a split's fence lies one entry too low.
    FenceTooLow,
    /// I7: a reader's closure runs under the leaf's latch.
    ClosureUnderLatch,
    /// I8: what is kept for stills is not counted as retained.
    RetainedNotCounted,
    /// I8: a leaf that keeps something for no live cut is left as it is.
    SweepFreesNothing,
    /// I8: leaves that could not be merged under a still are never tried again.
    MergeNotRetried,
    /// I11: the reclaimer is not told to stop, but waited for.
    ReclaimerNotStopped,
    /// I11: the reclaimer is neither told to stop nor waited for.
    ReclaimerLeaked,
    /// A write past the memory limit is done all the same.
    LimitNotChecked,
    /// A handle to a dropped keyspace goes on writing.
    DroppedStillWrites,
    /// Files: a block is decompressed over what an earlier one left, and may be shorter than was stated.
    ReusesBuffer,
    /// Files: a block may state any length, whatever its bytes can stand for.
    NoRatioCap,
    /// Files: a key may be there twice.
    KeysTwice,
    /// Files: keys may be in any order.
    KeysUnsorted,
    /// Files: the name of a keyspace is taken for text.
    UnwrapsText,
    /// Files: the body of a block is used without a look at its checksum.
    BodyUnchecked,
    /// Files: bytes behind the footer are not looked for.
    TakesMore,
    /// Files: how much is there is not compared with what the footer counts.
    CountsUnchecked,
    /// Saves: a snapshot gets its name before its bytes are synced.
    SavedUnsynced,
    /// Saves: the name of a snapshot is not synced.
    SavedNameUnsynced,
    /// Log: the name of a new segment is not synced.
    NameUnsynced,
    /// Log: a segment gets its name before its bytes are synced.
    RenamedUnsynced,
    /// Log: segments that were left are not synced before what follows counts.
    LeftUnsynced,
    /// Log: who finds somebody writing trusts that he brings his record along.
    WriterTrusted,
    /// Log: what is being synced is told to be durable as the sync begins.
    DurableAsSyncBegins,
    /// Log: what asked for a sync is told before there was one.
    AckBeforeSync,
    /// Log: a sync that failed is taken for one that did not.
    FailedSyncIgnored,
    /// Log: after a failure the log is used again as if nothing had been.
    FailureForgotten,
    /// Log: what has left the process counts as durable.
    WrittenIsDurable,
    /// Log: a sync goes to the segment that was in use before the tail was written.
    WrongSegmentSynced,
    /// Log: who keeps it goes to sleep with a sync still due.
    IdleUnsynced,
    /// Log: a write that took less than was asked counts for all of it.
    ShortWriteTaken,
    /// Log: closing syncs nothing.
    CloseUnsynced,
    /// Log: the segments go before the snapshot is there that holds them.
    PrunedEarly,
    /// Log: segments go without a sync of the directory between them.
    PrunedTogether,
    /// Recovery: a torn end is cut one byte too late.
    CutTooLate,
    /// Recovery: .. or too early.
    CutTooEarly,
    /// Recovery: a torn end is not cut.
    NeverCut,
    /// Recovery: later segments go before the torn one is cut.
    RemovedBeforeCut,
    /// Recovery: a segment that is of no use goes before another one is there.
    RemovedBeforeMade,
    /// Recovery: what was replayed counts as durable as it was found.
    ReplayedUnsynced,
    /// Recovery: a read that was interrupted is taken for the file's end.
    InterruptedIsEnd,
    /// Recovery: segments are taken in the order of their names as text.
    SortedAsText,
    /// Recovery: frames are taken without a look at their checksums.
    FrameUnchecked,
    /// Recovery: a frame's checksum is not that of its place: what an older file left there counts.
    PlaceUnchecked,
    /// Recovery: what is behind a torn end is not searched for what was durable.
    DurableNotSought,
    /// Recovery: what is in doubt is synced and not written again.
    DoubtNotRewritten,
    /// Recovery: the body of a record is taken without a look at its checksum.
    RecordUnchecked,
    /// Recovery: a long body is taken without a look at its checksum.
    LongBodyTrusted,
    /// Recovery: that a record follows its predecessor is not checked.
    ChainUnchecked,
    /// Recovery: files are read before the directory is locked.
    ReadBeforeLock,
    /// Recovery: a file in the making is taken for one that is whole.
    TemporaryTaken,
    /// Saves: a snapshot is made where there is no segment yet.
    SnapshotAlone,
    /// Roles: a directory that another node wrote may be written by whoever opens it.
    AnyoneWrites,
    /// Roles: a replica takes writes.
    ReplicaWrites,
    /// Install: what is replaced is not kept for stills.
    InstallKeepsNothing,
    /// Install: the new state is seen leaf by leaf.
    InstallShownEarly,
    /// Install: a leaf that came with the content it has already keeps its own stamp.
    SameKeepsStamp,
    /// Install: keyspaces are found by their numbers, whatever those mean by now.
    NamesNeverMove,
    /// Install: what came is put in place without a look at what it adds up to.
    InstallUnproven,
    /// Replicas: acknowledged is what the source has, not what was applied.
    AckBeforeApply,
    /// Replicas: a feed begins one batch too late.
    FeedOneTooFar,
    /// Replicas: a feed shows what is being written.
    FeedReadsAhead,
    /// Replicas: a run goes on in the history of the one before.
    SameHistory,
    /// Replicas: two lines are taken to part one batch later than they do.
    ForkOneLater,
    /// Replicas: a log in memory goes on over an install.
    BacklogKept,
    /// Replicas: promotion begins the log anew.
    PromoteDropsLog,
    /// Replicas: a beat counts as a batch.
    BeatTakesSeq,
    /// Replicas: what a session has acknowledged counts after it has ended.
    AckOutlives,
    /// Replicas: a source with nothing to send does not say that it is there.
    NoBeat,
    /// Replicas: who follows another goes on following the first.
    OldSourceStays,
    /// Replicas: anything will do as the proof of a key.
    ProofUnchecked,
    /// Replicas: who is handed over to hears of it before it is durable.
    HandShownEarly,
    /// Replicas: who hears of a promotion forgets it when it is closed.
    FenceForgotten,
    /// Replicas: what came before the link was lost is taken for what is there, at the wrong batch.
    ZoneOfBase,
    /// Replicas: a pass may leave out what is needed whatever it is.
    CoverUnchecked,
    /// Expiry: what expires at all is removed before its time.
    ExpiresEarly,
    /// Expiry: the right half of a split is not known to have anything that expires.
    DueLostAtSplit,
    /// Expiry: nor is what was loaded.
    DueLostAtLoad,
    /// Feed: a subscriber goes on behind a batch that was taken back.
    ResumesAnywhere,
    /// Feed: who is too late for the log goes on where it is.
    LagUntold,
    /// Feed: numbers of keyspaces mean in old batches what they mean now.
    NamesOfNow,
    /// Transactions: a key that was read may have changed before the commit.
    ReadsUnvalidated,
    /// Transactions: .. or a range.
    RangesUnvalidated,
    /// Transactions: leaves that were only read are let go of before all is applied.
    ReadLatchesDropped,
    /// Transactions: when a still is taken, what was read before need not be in it.
    StillUnchecked,
}

/// Whether `bug` is alive.
#[cfg(not(planted))]
#[inline(always)]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}

/// Whether `bug` is alive.
#[cfg(planted)]
pub(crate) fn planted(bug: Bug) -> bool {
    use std::sync::OnceLock;
    static NAME: OnceLock<Option<String>> = OnceLock::new();
    let name = NAME.get_or_init(|| std::env::var("STILLFRAME_PLANTED").ok());
    name.as_ref().is_some_and(|name| *name == format!("{bug:?}"))
}
