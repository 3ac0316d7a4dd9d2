//! Sessions without threads or sockets: what either end says, byte by byte, at made-up times.

use stillframe::simulation::{
    CallKind, DiskFault, KeptState, SessionEnd, SessionEnded, SimClock, SimDisk, TurnOptions,
    seed_thread,
};
use stillframe::{
    AckLevel, Database, Durability, Error, Holder, LinkKey, PrimaryOptions, Role, SaveOptions,
    SyncKind, SyncRefused,
};

fn options() -> TurnOptions {
    TurnOptions { key: None, beat_ms: 10, timeout_ms: 100, nonce: [1; 32] }
}

/// Two ends and the bytes between them.
struct Pair {
    source: SessionEnd,
    replica: SessionEnd,
    to_source: Vec<u8>,
    to_replica: Vec<u8>,
    now_ms: u64,
}

impl Pair {
    fn new(source: &Database, replica: &Database, kept: KeptState) -> Self {
        Self::with(source, replica, kept, (&options(), &options()))
    }

    fn with(
        source: &Database,
        replica: &Database,
        kept: KeptState,
        (of_source, of_replica): (&TurnOptions, &TurnOptions),
    ) -> Self {
        Pair {
            source: SessionEnd::source(source, of_source, 0).unwrap(),
            replica: SessionEnd::replica(replica, of_replica, kept, 0),
            to_source: Vec::new(),
            to_replica: Vec::new(),
            now_ms: 0,
        }
    }

    /// Both say what they have to say, and at most so many bytes arrive on either way.
    fn turn(&mut self, most: usize) -> Result<(), SessionEnded> {
        self.source.fill(self.now_ms, &mut self.to_replica)?;
        self.replica.fill(self.now_ms, &mut self.to_source)?;
        let some = |bytes: &mut Vec<u8>| bytes.drain(..bytes.len().min(most)).collect::<Vec<_>>();
        let arrived = some(&mut self.to_replica);
        self.replica.receive(&arrived, self.now_ms, &mut self.to_source)?;
        let arrived = some(&mut self.to_source);
        self.source.receive(&arrived, self.now_ms, &mut self.to_replica)
    }

    /// Until nothing is under way and the replica has all that is written.
    fn settle(&mut self, source: &Database, replica: &Database) {
        for _ in 0..100_000 {
            self.turn(usize::MAX).unwrap();
            let is_quiet = self.to_source.is_empty() && self.to_replica.is_empty();
            if is_quiet && self.replica.is_streaming() && source.position() == replica.position() {
                return;
            }
        }
        panic!("{} never came to {}", replica.position(), source.position());
    }
}

fn on(disk: &SimDisk) -> Database {
    let builder = Database::builder().disk(disk.clone()).manual_log().manual_reclaim();
    builder.open("/db").unwrap()
}

fn filled(count: u32) -> Database {
    let db = Database::in_memory();
    fill(&db, 0..count);
    db
}

fn fill(db: &Database, keys: std::ops::Range<u32>) {
    let films = db.keyspace("films").unwrap();
    for n in keys {
        films.insert(n.to_be_bytes(), format!("film {n} {:?}", db.position())).unwrap();
    }
}

fn same(a: &Database, b: &Database) {
    let fingerprint = |db: &Database| (db.position(), db.snapshot().unwrap().fingerprint());
    assert_eq!(fingerprint(a), fingerprint(b));
}

fn replica() -> Database {
    let db = Database::in_memory();
    db.begin_following().unwrap();
    db
}

/// (51, 58) Whatever has arrived, acknowledged is what is applied; beats change nothing.
#[test]
fn acknowledgements_never_run_ahead() {
    let (a, b) = (filled(50), replica());
    let patient = TurnOptions { timeout_ms: 10_000, ..options() };
    let mut pair = Pair::with(&a, &b, KeptState::default(), (&patient, &patient));
    pair.settle(&a, &b);
    fill(&a, 0..20);
    let last = a.position();
    // A beat goes ahead of what was written.
    pair.now_ms += 10;
    for turn in 0..20_000 {
        pair.turn(17).unwrap();
        pair.now_ms += 1;
        let acked = a.acked(last, AckLevel::Applied);
        assert!(acked == 0 || b.seq() >= last.seq, "{} acked {last}", b.position());
        if acked == 1 {
            return;
        }
        if turn % 50 == 0 {
            fill(&a, 100..101);
        }
    }
    panic!("it never came");
}

/// (62, C8) What a session has acknowledged counts no more when it has ended.
#[test]
fn acknowledgements_end_with_their_session() {
    let (a, b) = (filled(50), replica());
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    pair.turn(usize::MAX).unwrap();
    assert_eq!(a.acked(a.position(), AckLevel::Applied), 1);
    drop(pair);
    assert_eq!(a.acked(a.position(), AckLevel::Applied), 0);
}

/// (63, I9) A transfer that takes longer than the time-out is no silence.
#[test]
fn a_long_transfer_keeps_the_link() {
    let (a, b) = (filled(20_000), replica());
    let mut pair = Pair::new(&a, &b, KeptState::default());
    let mut turns = 0;
    while !pair.replica.is_streaming() {
        pair.now_ms += 5;
        pair.turn(2_000).unwrap();
        turns += 1;
    }
    assert!(turns * 5 > 2 * options().timeout_ms, "{turns} turns");
    pair.settle(&a, &b);
    same(&a, &b);
}

/// (63, I9) A link on which there is nothing to say is no silence.
#[test]
fn an_idle_link_stays() {
    let (a, b) = (filled(10), replica());
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    for _ in 0..100 {
        pair.now_ms += 5;
        pair.turn(usize::MAX).unwrap();
    }
    assert!(pair.replica.is_streaming());
}

/// (59, I5) What came and what is here must add up before anything changes; what differs is then sent.
#[test]
fn an_install_that_does_not_add_up_is_refused() {
    let disk = SimDisk::new();
    let (a, b) = (on(&disk), replica());
    fill(&a, 0..5_000);
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    drop(pair);
    b.plant_difference("films", &3_000_u32.to_be_bytes(), b"another");
    let before = b.position();
    // A counter, so often that its leaf is the cheaper way.
    let films = a.keyspace("films").unwrap();
    for _ in 0..300 {
        films.insert("counter", vec![7; 10_000]).unwrap();
    }
    let mut pair = Pair::new(&a, &b, KeptState::default());
    let ended = (0..1_000).find_map(|_| pair.turn(usize::MAX).err());
    assert!(ended.is_some());
    assert_eq!(b.position(), before);
    let mut pair = Pair::new(&a, &b, pair.replica.into_kept());
    pair.settle(&a, &b);
    assert_eq!(pair.replica.caught_up(), Some(SyncKind::Repair));
    same(&a, &b);
}

/// I9: who says nothing any more is gone, at either end.
#[test]
fn silence_ends_a_session() {
    let (a, b) = (filled(10), replica());
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    let mut out = Vec::new();
    assert!(pair.source.fill(1_000, &mut out).is_err());
    assert!(pair.replica.fill(1_000, &mut out).is_err());
    assert!(!out.is_empty());
}

/// (68, C12) Without the proof nothing is told.
#[test]
fn who_has_not_the_key_gets_nothing() {
    let (a, b) = (filled(10), replica());
    let key = |byte| TurnOptions { key: Some(LinkKey::new([byte; 32])), ..options() };
    for (of_source, of_replica) in [(key(1), options()), (key(1), key(2)), (options(), key(1))] {
        let sides = (&of_source, &of_replica);
        let mut pair = Pair::with(&a, &b, KeptState::default(), sides);
        let ended = (0..10).find_map(|_| pair.turn(usize::MAX).err());
        assert!(ended.is_some(), "{of_source:?} {of_replica:?}");
        assert_eq!(b.seq().0, 0);
    }
    let mut pair = Pair::with(&a, &b, KeptState::default(), (&key(1), &key(1)));
    pair.settle(&a, &b);
    same(&a, &b);
}

/// (54, B1) Two copies of one directory never write the same batch.
#[test]
fn a_copied_directory_writes_a_history_of_its_own() {
    let disk = SimDisk::new();
    let a = on(&disk);
    fill(&a, 0..10);
    a.close().unwrap();
    drop(a);
    let copy = disk.fork();
    let (a, b) = (on(&disk), on(&copy));
    assert_eq!(a.position(), b.position());
    fill(&a, 0..1);
    fill(&b, 1..2);
    assert_ne!(a.position(), b.position());
    b.begin_following().unwrap();
    let mut pair = Pair::new(&a, &b, KeptState::default());
    let refused = (0..10).find_map(|_| pair.turn(usize::MAX).err());
    // One node wrote both: its own end, as after a power cut, unless it was told that it is durable.
    let is_told = !matches!(refused, Some(SessionEnded::Refused(SyncRefused::SplitBrain { .. })));
    assert!(is_told, "{refused:?}");
    if refused.is_none() {
        pair.settle(&a, &b);
        same(&a, &b);
    }
}

/// (56, B12, B13) What a node sent before another state took the place of its own does not go on behind that.
#[test]
fn a_chain_begins_anew_behind_an_install() {
    let (a, b, c) = (filled(100), replica(), replica());
    let mut first = Pair::new(&a, &b, KeptState::default());
    first.settle(&a, &b);
    let mut second = Pair::new(&b, &c, KeptState::default());
    second.settle(&b, &c);
    // Another promoted one, which parted from a before its end.
    let d = replica();
    let mut third = Pair::new(&a, &d, KeptState::default());
    third.settle(&a, &d);
    d.promote().unwrap();
    fill(&a, 0..30);
    first.settle(&a, &b);
    second.settle(&b, &c);
    fill(&d, 50..90);
    drop(first);
    let mut other = Pair::new(&d, &b, KeptState::default());
    other.settle(&d, &b);
    assert_eq!(other.replica.caught_up(), Some(SyncKind::Rewind));
    same(&d, &b);
    b.set_in_touch(true);
    for _ in 0..200 {
        if second.turn(usize::MAX).is_err() {
            second = Pair::new(&b, &c, KeptState::default());
        }
        fill(&d, 0..1);
        other.settle(&d, &b);
    }
    second.settle(&b, &c);
    same(&d, &c);
}

/// (B11, B14) A transfer that was cut goes on where it was, and what changed below that comes again.
#[test]
fn a_cut_transfer_goes_on_at_its_zone() {
    let (a, b) = (filled(20_000), replica());
    let mut kept = KeptState::default();
    let mut sent = Vec::new();
    for round in 0..40 {
        let mut pair = Pair::new(&a, &b, kept);
        let mut bytes = 0;
        while bytes < 60_000 && !pair.replica.is_streaming() {
            pair.turn(1_000).unwrap();
            bytes += 1_000;
        }
        sent.push(bytes);
        if pair.replica.is_streaming() {
            pair.settle(&a, &b);
            same(&a, &b);
            assert!(round > 2, "{sent:?}");
            return;
        }
        assert_eq!(b.seq().0, 0, "nothing is shown before it is whole");
        kept = pair.replica.into_kept();
        // Behind what came, and before it.
        fill(&a, round * 100..round * 100 + 3);
        a.keyspace("films").unwrap().remove((round * 300).to_be_bytes()).unwrap();
    }
    panic!("{sent:?}");
}

/// (57) A promoted replica has the log that others need.
#[test]
fn who_follows_a_promoted_replica_gets_records() {
    let (a, b, c) = (filled(100), replica(), replica());
    let mut first = Pair::new(&a, &b, KeptState::default());
    first.settle(&a, &b);
    let mut second = Pair::new(&a, &c, KeptState::default());
    second.settle(&a, &c);
    // b serves from now on, and has a log from now on.
    drop(Pair::new(&b, &c, KeptState::default()));
    fill(&a, 0..10);
    first.settle(&a, &b);
    b.promote().unwrap();
    fill(&b, 10..20);
    let mut third = Pair::new(&b, &c, KeptState::default());
    third.settle(&b, &c);
    assert_eq!(third.replica.caught_up(), Some(SyncKind::Partial));
    same(&b, &c);
}

/// C7: who is handed over to hears of it only once it is on the disk.
#[test]
fn a_hand_over_that_is_not_durable_is_told_to_nobody() {
    let disk = SimDisk::new();
    let (a, b) = (on(&disk), replica());
    fill(&a, 0..10);
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    disk.inject(
        stillframe::simulation::DiskFault::error(5)
            .on(stillframe::simulation::CallKind::SyncData)
            .forever(),
    );
    let node = a.replica_nodes()[0];
    assert!(matches!(a.hand_to(node), Err(Error::NotDurable { .. })));
    for _ in 0..20 {
        let _ = pair.turn(usize::MAX);
    }
    assert_eq!((a.role(), b.role()), (Role::Replica, Role::Replica));
}

/// (B12, B27) Where the log does not go back, or is the dearer way, leaves are sent.
#[test]
fn the_cheaper_way_is_taken() {
    let disk = SimDisk::new();
    let (a, b) = (on(&disk), replica());
    fill(&a, 0..5_000);
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    drop(pair);
    // The log is gone.
    fill(&a, 7..9);
    a.persist(Durability::Sync).unwrap();
    a.compact_log(SaveOptions::default()).unwrap();
    fill(&a, 9..10);
    a.compact_log(SaveOptions::default()).unwrap();
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    let way = pair.replica.caught_up();
    assert!(way == Some(SyncKind::Delta) || way == Some(SyncKind::Partial), "{way:?}");
    same(&a, &b);
    drop(pair);
    // One counter, again and again: the log is long, the change is small.
    let films = a.keyspace("films").unwrap();
    for _ in 0..300 {
        films.insert("counter", vec![7; 10_000]).unwrap();
    }
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    assert_eq!(pair.replica.caught_up(), Some(SyncKind::Delta));
    same(&a, &b);
}

/// How a session between the two ends, if it does within so many turns.
fn ends(
    source: &Database,
    replica: &Database,
    kept: KeptState,
) -> (Option<SessionEnded>, KeptState) {
    let mut pair = Pair::new(source, replica, kept);
    let ended = (0..200).find_map(|_| pair.turn(usize::MAX).err());
    (ended, pair.replica.into_kept())
}

fn is_refused(ended: &Option<SessionEnded>, why: SyncRefused) -> bool {
    matches!(ended, Some(SessionEnded::Refused(refused)) if *refused == why)
}

/// A record that takes longer than the time-out to arrive: each frame of it is a sign of life.
#[test]
fn a_record_may_take_longer_than_the_time_limit() {
    let (a, b) = (filled(5), replica());
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    let mut long = Vec::new();
    (0..250_000_u32).for_each(|n| long.extend(n.wrapping_mul(0x9e37_79b9).to_le_bytes()));
    a.keyspace("films").unwrap().insert("long", long).unwrap();
    let began = pair.now_ms;
    while b.position() != a.position() {
        pair.now_ms += 5;
        pair.turn(8_000).unwrap();
    }
    assert!(pair.now_ms - began > 4 * options().timeout_ms, "{} ms", pair.now_ms - began);
    same(&a, &b);
}

/// The log of a source reads back damaged: nothing of that is sent. What was written is sent as leaves, from memory, and the source says what is wrong with its
/// disk, whenever it is met: as records are sent, or before.
#[test]
fn a_damaged_log_is_not_sent() {
    for is_met_at_once in [true, false] {
        let disk = SimDisk::new();
        let a = on(&disk);
        fill(&a, 0..50);
        let b = replica();
        let mut pair = Pair::new(&a, &b, KeptState::default());
        pair.settle(&a, &b);
        let before = b.position();
        fill(&a, 50..60);
        a.persist(Durability::Sync).unwrap();
        let is_log = |path: &std::path::PathBuf| path.extension().is_some_and(|end| end == "log");
        let mut logs = disk.files().into_iter().filter(is_log);
        let edited = disk.edit(&logs.next().unwrap(), |bytes| {
            let at = bytes.windows(7).rposition(|bytes| bytes == b"film 59").unwrap();
            bytes[at] ^= 1;
        });
        edited.unwrap();
        if is_met_at_once {
            pair = Pair::new(&a, &b, KeptState::default());
        }
        let mut told = None;
        for _ in 0..500 {
            // What was said before its end arrives.
            told = told.or(pair.turn(usize::MAX).err());
            let arrived = std::mem::take(&mut pair.to_replica);
            let _ = pair.replica.receive(&arrived, pair.now_ms, &mut pair.to_source);
        }
        assert_ne!(b.position(), before);
        same(&a, &b);
        let told = format!("{told:?}");
        assert!(told.contains("Corrupt") && told.contains(".log"), "{told}");
    }
}

/// A primary whose writes are on its disk is told to follow its own old replica, which has what it lost before: it gives nothing up.
#[test]
fn who_wrote_durably_does_not_go_back_to_an_old_replica() {
    let disk = SimDisk::new();
    let open = |disk: &SimDisk| {
        let builder = Database::builder().disk(disk.clone()).manual_log().manual_reclaim();
        builder.durability(Durability::Memory).open("/db").unwrap()
    };
    let a = open(&disk);
    fill(&a, 0..30);
    a.persist(Durability::Sync).unwrap();
    fill(&a, 30..50);
    let other = SimDisk::new();
    let b = on(&other);
    b.begin_following().unwrap();
    Pair::new(&a, &b, KeptState::default()).settle(&a, &b);
    // It has forgotten whom it followed.
    b.close().unwrap();
    drop(b);
    let b = on(&other);
    let left = disk.crash_point(disk.change_count()).image(&[]);
    drop(a);
    let a = open(&left);
    assert!(a.seq() < b.seq());
    fill(&a, 100..120);
    a.persist(Durability::Sync).unwrap();
    let before = a.position();
    a.begin_following().unwrap();
    b.set_in_touch(true);
    let (ended, _) = ends(&b, &a, KeptState::default());
    assert!(
        matches!(ended, Some(SessionEnded::Refused(SyncRefused::WentBack { .. }))),
        "{ended:?}"
    );
    assert_eq!(a.position(), before);
}

/// What was permitted is permitted once: a source that needed it not uses it up.
#[test]
fn a_permission_does_not_outlast_what_it_was_for() {
    let (a, b) = (filled(50), replica());
    Pair::new(&a, &b, KeptState::default()).settle(&a, &b);
    fill(&a, 0..5);
    let mut kept = KeptState::default();
    kept.allow_discard();
    let mut pair = Pair::new(&a, &b, kept);
    pair.settle(&a, &b);
    let kept = pair.replica.into_kept();
    // Later the source comes back as another.
    let stranger = filled(1);
    let before = b.position();
    let (ended, _) = ends(&stranger, &b, kept);
    assert!(is_refused(&ended, SyncRefused::Stranger), "{ended:?}");
    assert_eq!(b.position(), before);
}

/// A node that never had the data is promoted: nobody gives anything up for it.
#[test]
fn an_empty_node_that_was_promoted_takes_nothing_away() {
    let (a, c) = (filled(50), replica());
    Pair::new(&a, &c, KeptState::default()).settle(&a, &c);
    let before = c.position();
    let empty = replica();
    empty.promote().unwrap();
    let (ended, _) = ends(&empty, &c, KeptState::default());
    assert!(is_refused(&ended, SyncRefused::Stranger), "{ended:?}");
    assert_eq!(c.position(), before);
    same(&a, &c);
    // It gives up the nothing that it has.
    empty.begin_following().unwrap();
    let mut pair = Pair::new(&a, &empty, KeptState::default());
    pair.settle(&a, &empty);
    same(&a, &empty);
}

/// The log drops what a connected replica has not read, once that is more than the cap: it gets leaves, and the writer never waits.
#[test]
fn beyond_the_cap_of_the_log_leaves_are_sent() {
    for (cap, is_kept) in [(32 << 10, false), (1 << 30, true)] {
        let disk = SimDisk::new();
        let builder = Database::builder().disk(disk.clone()).manual_log().manual_reclaim();
        let builder = builder.segment_bytes(4 << 10).keep_log_for_replicas(cap);
        let a = builder.durability(Durability::Os).open("/db").unwrap();
        fill(&a, 0..50);
        let b = replica();
        let mut pair = Pair::new(&a, &b, KeptState::default());
        pair.settle(&a, &b);
        let films = a.keyspace("films").unwrap();
        for n in 0..300_u32 {
            films.insert(n.to_be_bytes(), vec![7; 1_000]).unwrap();
        }
        a.compact_log(SaveOptions::default()).unwrap();
        pair.settle(&a, &b);
        same(&a, &b);
        let way = pair.replica.caught_up();
        assert_eq!(way == Some(SyncKind::Delta), !is_kept, "{way:?}");
    }
}

fn stills_for_replicas(db: &Database) -> usize {
    db.stats().stills.iter().filter(|still| still.holder == Holder::Replica).count()
}

/// A transfer that is lost leaves nothing behind at its source, and who waits for a place gets his turn.
#[test]
fn transfers_wait_their_turn_and_leave_nothing() {
    let a = Database::builder().manual_reclaim().in_memory().unwrap();
    fill(&a, 0..100_000);
    let patient = TurnOptions { timeout_ms: 1_000_000, ..options() };
    let copies = [replica(), replica(), replica()];
    let start = |at: usize| Pair::with(&a, &copies[at], KeptState::default(), (&patient, &patient));
    let mut pairs = [start(0), start(1), start(2)];
    while pairs[0].replica.caught_up().is_none() || pairs[1].replica.caught_up().is_none() {
        for pair in &mut pairs {
            pair.turn(1_000).unwrap();
            pair.now_ms += 50;
        }
    }
    let ways = [0, 1, 2].map(|at: usize| pairs[at].replica.caught_up());
    assert_eq!(ways, [Some(SyncKind::Full), Some(SyncKind::Full), None]);
    assert_eq!(stills_for_replicas(&a), 2);
    // The first is lost on its way.
    let [first, mut second, mut third] = pairs;
    drop(first);
    assert_eq!(stills_for_replicas(&a), 1);
    while !third.replica.is_streaming() {
        third.turn(100_000).unwrap();
        third.now_ms += 50;
    }
    second.settle(&a, &copies[1]);
    third.settle(&a, &copies[2]);
    assert_eq!(stills_for_replicas(&a), 0);
    a.reclaim();
    assert_eq!(a.stats().retained_bytes, 0);
    same(&a, &copies[1]);
    same(&a, &copies[2]);
}

/// The log of a source fails and begins anew while a replica reads it.
#[test]
fn a_log_that_begins_anew_is_read_on() {
    let disk = SimDisk::new();
    let (a, b) = (on(&disk), replica());
    fill(&a, 0..50);
    let patient = TurnOptions { timeout_ms: 1_000_000, ..options() };
    let mut pair = Pair::with(&a, &b, KeptState::default(), (&patient, &patient));
    pair.settle(&a, &b);
    fill(&a, 50..60);
    disk.inject(DiskFault::error(5).on(CallKind::SyncData));
    assert!(a.persist(Durability::Sync).is_err());
    a.recover().unwrap();
    fill(&a, 60..70);
    pair.settle(&a, &b);
    same(&a, &b);
}

/// All keys of many leaves go, all is saved, the source restarts: what is empty by then has its stamp, and the replica loses the keys too.
#[test]
fn what_was_emptied_before_a_restart_is_empty_on_the_replica() {
    let disk = SimDisk::new();
    let open = || {
        let builder = Database::builder().disk(disk.clone()).manual_log().manual_reclaim();
        let builder = builder.leaf_entries(8).segment_bytes(4 << 10);
        builder.save_when_log_exceeds(None).open("/db").unwrap()
    };
    let (a, b) = (open(), replica());
    fill(&a, 0..3_000);
    Pair::new(&a, &b, KeptState::default()).settle(&a, &b);
    let films = a.keyspace("films").unwrap();
    films.delete_range(500_u32.to_be_bytes()..2_500_u32.to_be_bytes()).unwrap();
    a.reclaim();
    a.compact_log(SaveOptions::default()).unwrap();
    fill(&a, 0..3);
    a.compact_log(SaveOptions::default()).unwrap();
    a.close().unwrap();
    drop((films, a));
    let a = open();
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    assert_eq!(pair.replica.caught_up(), Some(SyncKind::Delta));
    same(&a, &b);
    assert_eq!(b.keyspace("films").unwrap().len().unwrap(), 1_000);
}

/// A node that has begun 1,500 histories can still say who it is, in one message of bounded length, and so can its replica.
#[test]
fn a_line_of_very_many_histories_is_told() {
    let (a, b) = (filled(5), replica());
    for _ in 0..1_500 {
        a.begin_following().unwrap();
        a.promote().unwrap();
    }
    Pair::new(&a, &b, KeptState::default()).settle(&a, &b);
    b.promote().unwrap();
    fill(&b, 0..3);
    a.begin_following().unwrap();
    Pair::new(&b, &a, KeptState::default()).settle(&b, &a);
    same(&a, &b);
}

/// A directory was put back as it was before its promotion, which its replica has, and follows that. It came back to the batch with which its promotion had begun,
/// took that for a hand-over, and wrote.
#[test]
fn a_promotion_that_was_lost_gives_no_right_to_write() {
    let (a, disk) = (filled(5), SimDisk::new());
    let b = on(&disk);
    b.begin_following().unwrap();
    Pair::new(&a, &b, KeptState::default()).settle(&a, &b);
    b.persist(Durability::Sync).unwrap();
    let before = disk.fork();
    b.promote().unwrap();
    let c = replica();
    Pair::new(&b, &c, KeptState::default()).settle(&b, &c);
    let b = on(&before);
    assert_eq!(b.position(), a.position());
    // It has forgotten whom it followed.
    c.begin_following().unwrap();
    b.begin_following().unwrap();
    let mut pair = Pair::new(&c, &b, KeptState::default());
    pair.settle(&c, &b);
    for _ in 0..10 {
        pair.turn(usize::MAX).unwrap();
    }
    assert_eq!(b.role(), Role::Replica);
    same(&b, &c);
}

/// A virtual machine that went back: what a run was before it wrote the last of it, in memory and all, under the same ids.
fn gone_back(further: u32) -> (Database, Database) {
    let write = |db: &Database, keys: std::ops::Range<u32>, what: &str| {
        let films = db.keyspace("films").unwrap();
        keys.for_each(|n| films.insert(n.to_be_bytes(), what).unwrap());
    };
    let run = || {
        seed_thread(Some(7));
        let clock = SimClock::new(1_800_000_000_000);
        let db = Database::builder().clock(clock).leaf_entries(4).in_memory().unwrap();
        write(&db, 0..100, "both");
        db.serve_replicas(PrimaryOptions::new()).unwrap();
        db
    };
    let (first, second) = (run(), run());
    seed_thread(None);
    assert_eq!(first.position(), second.position());
    write(&first, 0..further, "forgotten");
    (first, second)
}

/// (S29) A replica has more than its primary, which has gone back and is still writing: that takes back what it has lost, and what it writes from then on is another
/// history.
#[test]
fn a_run_that_went_back_writes_another_history() {
    let (first, second) = gone_back(7);
    let b = replica();
    Pair::new(&first, &b, KeptState::default()).settle(&first, &b);
    assert_eq!(b.position(), first.position());
    let (_, kept) = ends(&second, &b, KeptState::default());
    same(&first, &second);
    assert_eq!(second.role(), Role::Primary);
    fill(&second, 0..3);
    assert_ne!(second.position().history, first.position().history, "one position for two batches");
    Pair::new(&second, &b, kept).settle(&second, &b);
    same(&second, &b);
}

/// (S29) Two batches have one position: the source has gone back and has come just as far again. The replica can't be told so by its line; the chain of records shows
/// it, and the leaves that differ are sent.
#[test]
fn two_batches_at_one_position_are_found_and_mended() {
    for further in [1, 7] {
        let (first, second) = gone_back(further);
        let b = replica();
        Pair::new(&first, &b, KeptState::default()).settle(&first, &b);
        fill(&second, 50..50 + further);
        assert_eq!(second.position(), b.position());
        let fingerprint = |db: &Database| db.snapshot().unwrap().fingerprint();
        assert_ne!(fingerprint(&second), fingerprint(&b));
        // Refused as often as it takes; never is anything shown that is neither.
        let (was, is) = (fingerprint(&b), fingerprint(&second));
        let mut kept = KeptState::default();
        for _ in 0..4 {
            let mut pair = Pair::new(&second, &b, kept);
            for _ in 0..50 {
                if pair.turn(usize::MAX).is_err() {
                    break;
                }
                assert!([was, is].contains(&fingerprint(&b)));
            }
            kept = pair.replica.into_kept();
        }
        same(&second, &b);
    }
}

/// (S8) A source in a chain is itself rewound while it sends leaves: what it sends is one state or the other. What follows comes by what has changed, and adds up.
#[test]
fn a_source_that_is_rewound_while_it_sends_sends_one_state() {
    for seed in 0..20 {
        let open = || Database::builder().leaf_entries(4).manual_reclaim().in_memory().unwrap();
        let (a, b, c) = (open(), open(), open());
        b.begin_following().unwrap();
        c.begin_following().unwrap();
        fill(&a, 0..300);
        Pair::new(&a, &b, KeptState::default()).settle(&a, &b);
        // Another that was promoted there, while the first wrote on.
        let d = replica();
        Pair::new(&a, &d, KeptState::default()).settle(&a, &d);
        d.promote().unwrap();
        fill(&d, 100..200);
        fill(&a, 150..250);
        Pair::new(&a, &b, KeptState::default()).settle(&a, &b);
        let mut small = TurnOptions { timeout_ms: 100_000, ..options() };
        small.nonce[0] = seed;
        let mut down = Pair::with(&b, &c, KeptState::default(), (&small, &small));
        for _ in 0..usize::from(seed) * 10 {
            down.turn(50).unwrap();
        }
        // It goes back to the fork, and on to what the new primary has.
        let mut up = Pair::new(&d, &b, KeptState::default());
        up.settle(&d, &b);
        assert_eq!(up.replica.caught_up(), Some(SyncKind::Rewind));
        same(&d, &b);
        // Who drives it says so; until then it takes nothing away from anyone.
        b.set_in_touch(true);
        let mut ended = None;
        for _ in 0..5_000 {
            down.now_ms += 1;
            if let Err(why) = down.turn(50) {
                ended = Some(why);
                let kept = down.replica.into_kept();
                down = Pair::with(&b, &c, kept, (&small, &small));
            }
            if c.position() == b.position() {
                break;
            }
        }
        same(&b, &c);
        let told = format!("seed {seed}: {ended:?}");
        assert!(!told.contains("Differs"), "{told}");
        // The stamps that came are right: another follows by them.
        fill(&d, 0..20);
        Pair::new(&d, &b, KeptState::default()).settle(&d, &b);
        let e = replica();
        Pair::new(&c, &e, KeptState::default()).settle(&c, &e);
        Pair::new(&b, &e, KeptState::default()).settle(&b, &e);
        same(&d, &e);
    }
}

/// A node had followed a cluster with a high term, and was told to give that up for another, whose data set it has now: the terms of the one say nothing in the other.
/// (It told them all the same, and the innocent primary took no more writes.)
#[test]
fn a_term_of_another_data_set_fences_nobody() {
    let (a, b, r) = (filled(10), filled(20), replica());
    for _ in 0..3 {
        b.begin_following().unwrap();
        b.promote().unwrap();
    }
    Pair::new(&b, &r, KeptState::default()).settle(&b, &r);
    let (ended, mut kept) = ends(&a, &r, KeptState::default());
    assert!(is_refused(&ended, SyncRefused::Stranger), "{ended:?}");
    kept.allow_discard();
    for _ in 0..3 {
        let mut pair = Pair::new(&a, &r, kept);
        pair.settle(&a, &r);
        kept = pair.replica.into_kept();
    }
    assert_eq!(a.role(), Role::Primary);
    same(&a, &r);
}

/// C7: it was handed over to a replica that came to a stop before it could write: it does once it is back, though nothing is to come any more.
#[test]
fn what_was_handed_over_is_taken_however_late() {
    let (disk, other) = (SimDisk::new(), SimDisk::new());
    let (a, b) = (on(&disk), on(&other));
    b.begin_following().unwrap();
    fill(&a, 0..10);
    let mut pair = Pair::new(&a, &b, KeptState::default());
    pair.settle(&a, &b);
    let handed = a.hand_to(b.node()).unwrap();
    // It has the record, and can't say that it has it.
    other.inject(DiskFault::error(5).on(CallKind::SyncData).forever());
    let ended = (0..100).find_map(|_| pair.turn(usize::MAX).err());
    assert!(ended.is_some() && b.role() == Role::Replica, "{ended:?}");
    drop(pair);
    other.clear_faults();
    let ended = b.close();
    drop((ended, b));
    // Killed: what it wrote is there.
    let b = on(&other);
    assert_eq!(b.position(), handed);
    b.begin_following().unwrap();
    let (ended, _) = ends(&a, &b, KeptState::default());
    assert!(format!("{ended:?}").contains("Promoted"), "{ended:?}");
    assert_eq!((a.role(), b.role()), (Role::Replica, Role::Primary));
    fill(&b, 0..1);
    a.begin_following().unwrap();
    Pair::new(&b, &a, KeptState::default()).settle(&b, &a);
    same(&a, &b);
}

/// (B17) A replica in the middle of a backlog knows of what it has that it is durable at its primary: when that comes back without it, it asks.
#[test]
fn who_is_behind_knows_what_is_durable_too() {
    let disk = SimDisk::new();
    let a = on(&disk);
    let b = replica();
    fill(&a, 0..300);
    a.persist(Durability::Sync).unwrap();
    let patient = TurnOptions { timeout_ms: 100_000, ..options() };
    let mut pair = Pair::with(&a, &b, KeptState::default(), (&patient, &patient));
    pair.settle(&a, &b);
    let image = disk.fork();
    let films = a.keyspace("films").unwrap();
    for n in 0..400_u32 {
        films.insert(n.to_be_bytes(), vec![7; 1_000]).unwrap();
        if n % 50 == 49 {
            a.persist(Durability::Sync).unwrap();
        }
    }
    while b.seq().0 < 500 {
        pair.now_ms += 1;
        pair.turn(2_000).unwrap();
    }
    assert!(b.seq() < a.seq());
    drop(pair);
    let back = on(&image);
    fill(&back, 0..3);
    let (ended, _) = ends(&back, &b, KeptState::default());
    let is_asked = matches!(ended, Some(SessionEnded::Refused(SyncRefused::WentBack { .. })));
    assert!(is_asked, "{ended:?}, {} {}", b.position(), back.position());
}

/// Whether to give up what it has was decided by what the source was when it said hello: a restored backup wrote after that, before its cut, and nobody asked though there
/// were two writers of one term.
#[test]
fn what_a_source_writes_after_its_hello_counts_too() {
    let mut refused = 0;
    for turns in 0..10 {
        let disk = SimDisk::new();
        let (a, b) = (on(&disk), replica());
        fill(&a, 0..100);
        a.persist(Durability::Sync).unwrap();
        a.backup("/copy").unwrap();
        let copy = Database::builder().disk(disk.clone()).manual_log().open("/copy").unwrap();
        fill(&a, 0..50);
        Pair::new(&a, &b, KeptState::default()).settle(&a, &b);
        let (had, fork) = (b.position(), copy.position());
        let mut pair = Pair::new(&copy, &b, KeptState::default());
        (0..turns).for_each(|_| pair.turn(usize::MAX).unwrap());
        // What is here may go, as long as that is no more than an unsynced end that its writer has lost.
        fill(&copy, 0..1);
        let mut was_there = false;
        let ended = (0..5_000).find_map(|_| {
            let ended = pair.turn(40).err();
            was_there |= b.position() == fork;
            ended
        });
        if is_refused(&ended, SyncRefused::SplitBrain { fork: fork.seq }) {
            refused += 1;
            assert_eq!(b.position(), had);
        } else {
            // The cut was taken before: the record came after it.
            assert!(was_there && refused > 0, "{turns} turns, {refused} refused: {ended:?}");
            return;
        }
    }
    panic!("it never came to a cut");
}
