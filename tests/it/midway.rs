//! What is done to nodes while something is under way between them: told otherwise in the middle of a state, clocks that jump, work that takes long.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use stillframe::simulation::{SimClock, SimDisk};
use stillframe::{
    AckLevel, Builder, Database, Durability, Error, Link, LinkLost, Primary, PrimaryOptions,
    RecoveryMode, ReplicaSource, ReplicaState, Role, SyncRefused, WriteOptions,
};

use crate::replicas::{LONG, reaches, same, until, within};

/// Lets so many bytes pass, and holds the others back.
#[derive(Default)]
struct Valve {
    state: Mutex<Flow>,
    changed: Condvar,
}

#[derive(Default)]
struct Flow {
    passed: usize,
    at_most: usize,
    is_held: bool,
    is_closed: bool,
}

impl Valve {
    fn new(at_most: usize) -> Arc<Self> {
        let flow = Flow { at_most, ..Flow::default() };
        Arc::new(Valve { state: Mutex::new(flow), changed: Condvar::new() })
    }

    fn change(&self, change: impl FnOnce(&mut Flow)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn open(&self) {
        self.change(|flow| flow.at_most = usize::MAX);
    }

    /// Until somebody wants more than may pass; `false`, if all has passed before `is_over`.
    fn waits(&self, is_over: impl Fn() -> bool) -> bool {
        let began = Instant::now();
        let mut flow = self.state.lock().unwrap();
        while !flow.is_held {
            assert!(began.elapsed() < LONG, "nothing comes: {} bytes did", flow.passed);
            if is_over() {
                return false;
            }
            flow = self.changed.wait_timeout(flow, Duration::from_millis(10)).unwrap().0;
        }
        true
    }
}

struct Held {
    reader: UnixStream,
    valve: Arc<Valve>,
}

impl Read for Held {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut flow = self.valve.state.lock().unwrap();
        while flow.passed >= flow.at_most && !flow.is_closed {
            flow.is_held = true;
            self.valve.changed.notify_all();
            flow = self.valve.changed.wait(flow).unwrap();
        }
        if flow.is_closed {
            return Ok(0);
        }
        let len = buf.len().min(flow.at_most - flow.passed);
        drop(flow);
        let count = self.reader.read(&mut buf[..len])?;
        self.valve.change(|flow| flow.passed += count);
        Ok(count)
    }
}

/// Links of which the replica reads what the valve lets pass.
fn through(primary: &Primary, valve: &Arc<Valve>) -> ReplicaSource {
    let (primary, valve) = (primary.clone(), Arc::clone(valve));
    ReplicaSource::links(move || {
        let (ours, theirs) = UnixStream::pair()?;
        primary.attach(Link::unix(theirs)?);
        let reader = Held { reader: ours.try_clone()?, valve: Arc::clone(&valve) };
        let (writer, valve) = (ours.try_clone()?, Arc::clone(&valve));
        Ok(Link::new(reader, writer, move || {
            valve.change(|flow| flow.is_closed = true);
            drop(ours.shutdown(Shutdown::Both));
        }))
    })
}

fn fill(db: &Database, count: u32, what: &str) {
    let films = db.keyspace("films").unwrap();
    (0..count).for_each(|n| films.insert(n.to_be_bytes(), format!("{what} {n}")).unwrap());
}

/// All values of "films".
fn films(db: &Database) -> Vec<String> {
    let films = db.keyspace("films").unwrap();
    let value = |entry: stillframe::Result<(stillframe::Slice, stillframe::Slice)>| {
        String::from_utf8(entry.unwrap().1.to_vec()).unwrap()
    };
    films.range::<&[u8]>(..).map(value).collect()
}

/// A replica that is as its primary was before it wrote "new" everywhere, and how many bytes it takes to get there.
fn behind(in_directory: bool) -> (Database, Primary, Database, usize) {
    let db = Database::in_memory();
    fill(&db, 5_000, "old");
    let primary = db.serve_replicas(PrimaryOptions::new().always_compress(true)).unwrap();
    let follow = |copy: &Database| {
        let valve = Valve::new(usize::MAX);
        let replica = copy.follow(through(&primary, &valve)).unwrap();
        reaches(&replica, &db);
        replica.stop();
        let flow = valve.state.lock().unwrap();
        flow.passed
    };
    let (copy, other) = (
        match in_directory {
            true => Database::builder().disk(SimDisk::new()).open("/db").unwrap(),
            false => Database::in_memory(),
        },
        Database::in_memory(),
    );
    follow(&copy);
    follow(&other);
    for _ in 0..20 {
        // So often that leaves are cheaper than the log.
        fill(&db, 5_000, "new");
    }
    let bytes = follow(&other);
    assert_eq!(primary.counts().delta, 1, "{:?}", primary.counts());
    (db, primary, copy, bytes)
}

/// F14: wherever the state is, that comes in leaves or is put in place: who is promoted has the old or the new, whole, and writes on in it alone.
#[test]
fn who_is_promoted_in_the_middle_of_a_state_has_one_of_both() {
    let mut found = [0, 0];
    for in_directory in [false, true] {
        for eighth in 1..=8 {
            let (db, primary, copy, bytes) = behind(in_directory);
            let (old, new) = (films(&copy), films(&db));
            let valve = Valve::new(bytes * eighth / 8);
            let replica = copy.follow(through(&primary, &valve)).unwrap();
            valve.waits(|| copy.position() == db.position());
            // What was held back may come from now on: the last of it while it is promoted.
            valve.open();
            replica.promote().unwrap();
            assert_eq!(copy.role(), Role::Primary);
            let has = films(&copy);
            let is_new = has == new;
            found[usize::from(is_new)] += 1;
            assert!(is_new || has == old, "eighth {eighth}: neither");
            let position = copy.position();
            assert_ne!(position.history, db.position().history);
            fill(&copy, 10, "own");
            // Nothing of the session comes later.
            assert_eq!(copy.position().seq.0, position.seq.0 + 10);
            assert_eq!(replica.status().state, ReplicaState::Stopped);
            copy.check();
            // The other follows it, whichever it has.
            let second = copy.serve_replicas(PrimaryOptions::new()).unwrap();
            let follower = Database::in_memory();
            reaches(&follower.follow(within(&second)).unwrap(), &copy);
            same(&copy, &follower);
        }
    }
    assert!(found[0] > 0, "{found:?}");
}

/// F13: the first source is left for good; nothing that it sends comes in any more.
#[test]
fn who_is_told_to_follow_another_in_the_middle_of_a_state_does() {
    for eighth in 1..=8 {
        let (db, primary, copy, bytes) = behind(false);
        let old = films(&copy);
        // Another that has the same, and has gone on.
        let other = Database::in_memory();
        reaches(&other.follow(within(&primary)).unwrap(), &db);
        other.promote().unwrap();
        fill(&other, 100, "other");
        let second = other.serve_replicas(PrimaryOptions::new()).unwrap();
        let valve = Valve::new(bytes * eighth / 8);
        let first = copy.follow(through(&primary, &valve)).unwrap();
        valve.waits(|| copy.position() == db.position());
        assert!([&old, &films(&db)].contains(&&films(&copy)));
        valve.open();
        let replica = copy.follow(within(&second)).unwrap();
        assert_eq!(first.status().state, ReplicaState::Stopped);
        fill(&db, 100, "late");
        reaches(&replica, &other);
        same(&other, &copy);
        assert_eq!(primary.replicas().len(), 0, "eighth {eighth}");
        assert!(
            copy.snapshot()
                .unwrap()
                .keyspace("films")
                .unwrap()
                .get(0_u32.to_be_bytes())
                .unwrap()
                .unwrap()
                == "other 0"
        );
    }
}

/// F23: clocks that jump by hours, on both sides and both ways, under a link. It stays; times of cuts never go back; a replica shows nothing that its primary hides.
#[test]
fn clocks_that_jump_end_no_link() {
    const NOON: u64 = 1_800_000_000_000;
    const HOUR: u64 = 3_600_000;
    let clocks = [SimClock::new(NOON), SimClock::new(NOON)];
    let [db, copy] =
        clocks.clone().map(|clock| Database::builder().clock(clock).in_memory().unwrap());
    let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
    let replica = copy.follow(within(&primary)).unwrap();
    let films = db.keyspace("films").unwrap();
    let mut last = [0; 2];
    let jumps =
        [(0, 5 * HOUR), (1, 9 * HOUR), (0, 0), (1, 0), (0, HOUR), (1, 24 * HOUR), (0, 24 * HOUR)];
    for (round, (which, to)) in jumps.into_iter().enumerate() {
        clocks[which].set(NOON + to);
        for n in 0..50_u32 {
            let key = [round.to_be_bytes().as_slice(), &n.to_be_bytes()].concat();
            let options = WriteOptions::new().expire_at(NOON + u64::from(n) * HOUR / 5);
            films.insert_with(key, "v", options).unwrap();
        }
        reaches(&replica, &db);
        let stills = [&db, &copy].map(|db| db.snapshot().unwrap());
        let times = stills.each_ref().map(stillframe::Snapshot::time_ms);
        assert!(times[0] >= last[0] && times[1] >= last[1], "round {round}: {last:?} {times:?}");
        last = times;
        // What its primary had hidden when it wrote last, a replica hides, whatever its own clock says.
        assert!(times[1] >= times[0], "round {round}: {times:?}");
        let shown = stills.map(|still| {
            let films = still.keyspace("films").unwrap();
            films.range_keys::<&[u8]>(..).map(Result::unwrap).collect::<Vec<_>>()
        });
        assert!(shown[1].iter().all(|key| shown[0].contains(key)), "round {round}");
        assert!(times[0] != times[1] || shown[0] == shown[1], "round {round}");
    }
    assert_eq!(last[0], last[1], "both have jumped to the same at last");
    same(&db, &copy);
    let status = replica.status();
    assert_eq!((status.links, status.last_end), (1, None));
}

/// F24, S24: what takes far longer than the time limit on one side, while it holds the session: that side is read on, says that it is there, and gives nobody up.
#[test]
fn work_that_takes_longer_than_the_time_limit_ends_no_link() {
    let (often, limit) = (Duration::from_millis(20), Duration::from_millis(200));
    let db = Database::in_memory();
    fill(&db, 20_000, "old");
    let primary = db.serve_replicas(PrimaryOptions::new().heartbeat(often).timeout(limit)).unwrap();
    // Who is told of a change has the session's thread for as long as he likes.
    let told = Arc::new(AtomicUsize::new(0));
    let times = Arc::clone(&told);
    let source = within(&primary).heartbeat(often).timeout(limit).on_change(move |_| {
        times.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(4 * limit);
    });
    let copy = Database::in_memory();
    let replica = copy.follow(source).unwrap();
    reaches(&replica, &db);
    fill(&db, 100, "later");
    primary.wait(db.position(), 1, AckLevel::Applied, LONG).unwrap();
    same(&db, &copy);
    let status = replica.status();
    assert_eq!((status.links, status.last_end), (1, None));
    assert!(told.load(Ordering::Relaxed) >= 3, "nothing was slow");
}

fn unsaved(disk: &SimDisk) -> Builder {
    let builder = Database::builder().disk(disk.clone()).manual_log().durability(Durability::Os);
    builder.save_when_log_exceeds(None).segment_bytes(16 << 10)
}

/// S21: what was salvaged is another history, though it ends at a batch that others have: nobody takes it for that batch, in either role, unless he is told to.
#[test]
fn what_was_salvaged_is_not_taken_for_what_it_was() {
    let disk = SimDisk::new();
    let db = unsaved(&disk).open("/db").unwrap();
    fill(&db, 500, "first");
    let keeper = Database::in_memory();
    let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
    reaches(&keeper.follow(within(&primary)).unwrap(), &db);
    db.close().unwrap();
    drop((primary, db));
    // A bit in the middle of the log.
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|end| end == "log");
    let segment = disk.files().into_iter().find(is_segment).expect("a segment");
    disk.edit(&segment, |bytes| bytes[4_000] ^= 1).unwrap();
    assert!(matches!(unsaved(&disk).open("/db"), Err(Error::Corrupt { .. })));
    let salvaged = unsaved(&disk).recovery(RecoveryMode::Salvage).open("/db").unwrap();
    assert!(!salvaged.open_report().unwrap().lost.is_empty());
    assert_ne!(salvaged.position(), keeper.position());
    // As the source of who has all: refused, until he is told.
    let primary = salvaged.serve_replicas(PrimaryOptions::new()).unwrap();
    let had = films(&keeper);
    let replica = keeper.follow(within(&primary)).unwrap();
    let status = until(&replica, "refused", |status| status.state == ReplicaState::Refused);
    assert!(matches!(status.last_end, Some(LinkLost::Refused(_))), "{status:?}");
    assert_eq!(films(&keeper), had);
    drop((replica, primary));
    // As the replica of who has all: what it has left is its own until it is told.
    keeper.promote().unwrap();
    fill(&keeper, 10, "later");
    let second = keeper.serve_replicas(PrimaryOptions::new()).unwrap();
    let left = films(&salvaged);
    let replica = salvaged.follow(within(&second)).unwrap();
    let status = until(&replica, "refused", |status| status.state == ReplicaState::Refused);
    let Some(LinkLost::Refused(why)) = status.last_end else { panic!("{status:?}") };
    assert!(!matches!(why, SyncRefused::Cycle), "{why:?}");
    assert_eq!(films(&salvaged), left);
    replica.resync();
    reaches(&replica, &keeper);
    same(&keeper, &salvaged);
    assert_eq!(replica.status().counts.full + replica.status().counts.rewind, 1);
}
