//! What a primary and a replica are told about how to serve and to follow.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stillframe::simulation::{CallKind, DiskFault, SimDisk};
use stillframe::{
    AckLevel, Builder, Database, DirectoryInfo, Durability, Error, Holder, Link, LinkLost,
    PrimaryOptions, ReplicaSource, ReplicaState, ReplicaStatus, SaveOptions, StalePolicy,
    SyncRefused,
};

use crate::replicas::{LONG, on, reaches, same, until, within};
use crate::saves::Dir;

/// A directory that syncs nothing by itself.
fn unsynced(disk: &SimDisk) -> Builder {
    Database::builder().disk(disk.clone()).durability(Durability::Memory)
}

/// Nothing that a power cut can take from the primary is on a replica, in a state that is sent and among the records behind it.
#[test]
fn what_is_not_durable_is_not_sent_if_so_told() {
    let disk = SimDisk::new();
    let db = unsynced(&disk).open("/db").unwrap();
    let films = db.keyspace("films").unwrap();
    films.insert("first", "v").unwrap();
    let primary = db.serve_replicas(PrimaryOptions::new().replicate_after_durable(true)).unwrap();
    let copy = Database::in_memory();
    let replica = copy.follow(within(&primary)).unwrap();
    let durable = |db: &Database| db.persist(Durability::Sync).unwrap();
    until(&replica, "streaming", |status| status.state == ReplicaState::Streaming);
    let sent = replica.status().position.seq;
    for seed in 0..20 {
        let left = unsynced(&disk.crash(seed)).open("/db").unwrap();
        assert!(left.position().seq >= sent, "seed {seed}: {sent} was sent, {}", left.position());
    }
    for round in 0..5 {
        films.insert("k", format!("{round}")).unwrap();
        let position = db.position();
        // It has had the time to come.
        let waited = replica.wait_for(position, Duration::from_millis(50));
        assert!(matches!(waited, Err(Error::TimedOut)), "{waited:?}");
        durable(&db);
        reaches(&replica, &db);
    }
    same(&db, &copy);
}

/// Who connects and says nothing takes the place of others only up to a number of its own.
#[test]
fn silent_connections_are_few() {
    let db = Database::in_memory();
    db.keyspace("films").unwrap().insert("k", "v").unwrap();
    let options = PrimaryOptions::new().max_pending_handshakes(2).max_connections(8);
    let primary = db.serve_replicas(options).unwrap();
    let address = primary.listen_tcp("127.0.0.1:0").unwrap();
    // Who has proven himself is none of them.
    let copies = [(); 4].map(|()| Database::in_memory());
    let source = || ReplicaSource::tcp(address.to_string());
    let replicas = [0, 1, 2, 3].map(|at: usize| copies[at].follow(source()).unwrap());
    replicas.iter().for_each(|replica| reaches(replica, &db));
    let silent = [(); 2].map(|()| TcpStream::connect(address).unwrap());
    let began = Instant::now();
    let mut byte = [0];
    // The third is closed at once, whenever the first two were taken in.
    while TcpStream::connect(address).unwrap().read(&mut byte).unwrap_or(0) > 0 {
        assert!(began.elapsed() < LONG);
    }
    assert!(began.elapsed() < Duration::from_secs(9), "it was let wait until the time limit");
    drop(silent);
    let late = Database::in_memory();
    reaches(&late.follow(source()).unwrap(), &db);
}

/// Both sides know how far the log is ahead, and how long it will last.
#[test]
fn both_sides_know_how_long_the_log_lasts() {
    let db = Database::in_memory();
    let films = db.keyspace("films").unwrap();
    let often = Duration::from_millis(5);
    let primary = db.serve_replicas(PrimaryOptions::new().heartbeat(often)).unwrap();
    let copy = Database::in_memory();
    let replica = copy.follow(within(&primary)).unwrap();
    reaches(&replica, &db);
    let idle = replica.status();
    assert_eq!((idle.lag_bytes, idle.log_lasts), (0, None));
    let began = Instant::now();
    while replica.status().log_lasts.is_none() {
        assert!(began.elapsed() < LONG, "{:?}", replica.status());
        films.insert("k", vec![7; 1000]).unwrap();
    }
    reaches(&replica, &db);
    primary.wait(db.position(), 1, AckLevel::Applied, LONG).unwrap();
    let infos = primary.replicas();
    assert_eq!(infos.len(), 1);
    let (lasts, most) = (replica.status().log_lasts.unwrap(), Duration::from_secs(365 * 24 * 3600));
    assert!(!lasts.is_zero() && lasts < most, "{lasts:?}");
    assert!(infos[0].log_lasts.is_some(), "{infos:?}");
}

/// A node that was opened a thousand times still says in a few KiB who it is, opens again, and its replicas go on with records.
#[test]
fn a_long_line_stays_short() {
    let dir = Dir::new("long-line");
    let path = dir.file("db");
    let copy = Database::in_memory();
    let mut first = None;
    for run in 0..300 {
        let db = Database::builder().durability(Durability::Memory).open(&path).unwrap();
        db.keyspace("films").unwrap().insert("run", run.to_string()).unwrap();
        first.get_or_insert(db.position());
        if run % 100 == 0 || run == 299 {
            let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
            let replica = copy.follow(within(&primary)).unwrap();
            reaches(&replica, &db);
            same(&db, &copy);
            let counts = replica.status().counts;
            assert_eq!(
                (counts.full, counts.rewind),
                (u64::from(run == 0), 0),
                "run {run}: {counts:?}"
            );
            if run == 299 {
                replica.wait_for(first.unwrap(), LONG).unwrap();
                db.compact_log(SaveOptions::default()).unwrap();
            }
        }
        db.close().unwrap();
    }
    // The node itself forgets nothing.
    assert_eq!(DirectoryInfo::read(&path).unwrap().lineage.len(), 300);
}

/// Who has no memory for two states lets the old one go first: nobody reads the nothing in between, what only it had is saved aside, and what is killed there
/// is an empty replica that fetches everything.
#[test]
fn a_replica_may_drop_what_it_has_first() {
    let dir = Dir::new("drop-first");
    let fill = |db: &Database, what: &str| {
        let films = db.keyspace("films").unwrap();
        (0..2_000_u32).for_each(|n| films.insert(n.to_be_bytes(), what).unwrap());
    };
    let db = Database::in_memory();
    fill(&db, "new");
    let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
    for in_directory in [false, true] {
        let path = dir.file("replica");
        let open = || match in_directory {
            true => Database::open(&path).unwrap(),
            false => Database::in_memory(),
        };
        let copy = open();
        fill(&copy, "old");
        let films = copy.keyspace("films").unwrap();
        let still = copy.snapshot().unwrap();
        // Links that bring so many bytes each, until one is to bring all.
        let (most, links) = (Arc::new(AtomicUsize::new(3_000)), Arc::new(AtomicUsize::new(0)));
        let source = {
            let (primary, most, links) = (primary.clone(), Arc::clone(&most), Arc::clone(&links));
            ReplicaSource::links(move || {
                let (ours, theirs) = UnixStream::pair()?;
                primary.attach(Link::unix(theirs)?);
                let reader = ours.try_clone()?.take(most.load(Ordering::Relaxed) as u64);
                let writer = ours.try_clone()?;
                links.fetch_add(1, Ordering::Relaxed);
                Ok(Link::new(reader, writer, move || drop(ours.shutdown(Shutdown::Both))))
            })
            .drop_first(true)
        };
        let replica = copy.follow(source.clone()).unwrap();
        // Another data set: not without being told.
        until(&replica, "refused", |status| status.state == ReplicaState::Refused);
        assert_eq!(films.get(0_u32.to_be_bytes()).unwrap().unwrap(), "old");
        replica.resync();
        let began = Instant::now();
        loop {
            match films.get(0_u32.to_be_bytes()) {
                Ok(Some(value)) => assert_eq!(value, "old"),
                Err(Error::Stale) => break,
                other => panic!("{other:?}"),
            }
            assert!(began.elapsed() < LONG, "{:?}", replica.status());
        }
        assert!(matches!(copy.snapshot(), Err(Error::Stale)));
        assert_eq!(still.keyspace("films").unwrap().len().unwrap(), 2_000);
        drop(still);
        let (copy, replica) = if in_directory {
            // Cut off in between: what there is is empty, and nobody reads it until more has come.
            replica.stop();
            copy.close().unwrap();
            drop((films, replica, copy));
            let copy = open();
            assert_eq!(copy.position().seq.0, 0);
            let replica = copy.follow(source).unwrap();
            assert!(matches!(copy.snapshot(), Err(Error::Stale)));
            (copy, replica)
        } else {
            (copy, replica)
        };
        most.store(usize::MAX >> 1, Ordering::Relaxed);
        reaches(&replica, &db);
        until(&replica, "streaming", |status| status.state == ReplicaState::Streaming);
        same(&db, &copy);
        if in_directory {
            let aside: Vec<_> = std::fs::read_dir(path.join("aside")).unwrap().collect();
            assert_eq!(aside.len(), 1);
        }
        // A delta drops nothing.
        replica.stop();
        db.keyspace("films").unwrap().insert("later", "v").unwrap();
    }
}

/// A replica that reads slowly holds the cut for no longer than the disk takes: what it has not read waits in a file without a name, and is right.
#[test]
fn a_slow_replica_does_not_hold_the_cut() {
    let dir = Dir::new("slow");
    let db = Database::builder().durability(Durability::Memory).open(dir.file("primary")).unwrap();
    let films = db.keyspace("films").unwrap();
    let mut random = 1_u64;
    for n in 0..30_000_u32 {
        // Nothing that could be compressed.
        let mut value = Vec::new();
        while value.len() < 1_000 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            value.extend((random >> 16).to_le_bytes());
        }
        films.insert(n.to_be_bytes(), value).unwrap();
    }
    db.compact_log(SaveOptions::default()).unwrap();
    let primary = db.serve_replicas(PrimaryOptions::new().always_compress(true)).unwrap();
    let (reads, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let source = {
        let (primary, reads, read) = (primary.clone(), Arc::clone(&reads), Arc::clone(&read));
        ReplicaSource::links(move || {
            let (ours, theirs) = UnixStream::pair()?;
            primary.attach(Link::unix(theirs)?);
            let (reader, writer) = (ours.try_clone()?, ours.try_clone()?);
            let reader = Slow { reader, reads: Arc::clone(&reads), read: Arc::clone(&read) };
            Ok(Link::new(reader, writer, move || drop(ours.shutdown(Shutdown::Both))))
        })
    };
    let copy = Database::in_memory();
    let replica = copy.follow(source).unwrap();
    let began = Instant::now();
    let holds = || db.stats().stills.iter().any(|still| still.holder == Holder::Replica);
    while read.load(Ordering::Relaxed) < 100_000 || holds() {
        assert!(
            began.elapsed() < Duration::from_secs(8),
            "the cut is held: {:?}",
            replica.status()
        );
        std::thread::yield_now();
    }
    // Nothing of it is there for who looks.
    let names = std::fs::read_dir(dir.file("primary")).unwrap().map(|entry| entry.unwrap());
    let left: Vec<_> = names.filter(|entry| entry.path().ends_with(".tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(read.load(Ordering::Relaxed) < 2 << 20, "it has read all: that was no slow replica");
    reads.store(true, Ordering::Relaxed);
    reaches(&replica, &db);
    same(&db, &copy);
    assert_eq!(primary.counts().full, 1);
}

/// Reads next to nothing until it is told to.
struct Slow<R> {
    reader: R,
    reads: Arc<AtomicBool>,
    read: Arc<AtomicUsize>,
}

impl<R: Read> Read for Slow<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let mut len = buf.len();
        if !self.reads.load(Ordering::Relaxed) && self.read.load(Ordering::Relaxed) > 100_000 {
            std::thread::sleep(Duration::from_millis(20));
            len = len.min(1_000);
        }
        let count = self.reader.read(&mut buf[..len])?;
        self.read.fetch_add(count, Ordering::Relaxed);
        Ok(count)
    }
}

/// A replica that has nothing to say is there all the same: the gate stays open while nobody writes.
#[test]
fn the_gate_stays_open_while_nobody_writes() {
    let (often, max_lag) = (Duration::from_millis(20), Duration::from_millis(200));
    let db = Database::in_memory();
    let films = db.keyspace("films").unwrap();
    let options = PrimaryOptions::new().min_replicas(1, max_lag).heartbeat(often);
    let primary = db.serve_replicas(options).unwrap();
    let copy = Database::in_memory();
    let replica = copy.follow(within(&primary).heartbeat(often)).unwrap();
    let began = Instant::now();
    while films.insert("k", "v").is_err() {
        assert!(began.elapsed() < LONG);
        std::thread::sleep(often);
    }
    reaches(&replica, &db);
    // Longer than the limit; whoever was not heard meanwhile would be gone.
    std::thread::sleep(5 * max_lag);
    assert!(primary.replicas()[0].silent_for < max_lag, "{:?}", primary.replicas());
    films.insert("k", "w").unwrap();
    replica.stop();
    let began = Instant::now();
    while films.insert("k", "v").is_ok() {
        assert!(began.elapsed() < LONG);
    }
    assert!(matches!(films.insert("k", "v"), Err(Error::TooFewReplicas { .. })));
}

/// A replica has what its primary has, though its own limit is lower. (Once it failed at the first record past the limit, and could never come to the one that
/// would have removed something.) After it was promoted its own writes keep to the limit, and removing works.
#[test]
fn the_memory_limit_of_a_replica_is_for_its_own_writes() {
    let db = Database::in_memory();
    let films = db.keyspace("films").unwrap();
    films.insert("small", "v").unwrap();
    let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
    let copy = Database::builder().memory_limit(4 << 20).in_memory().unwrap();
    let replica = copy.follow(within(&primary)).unwrap();
    reaches(&replica, &db);
    for n in 0..100_u32 {
        films.insert(n.to_be_bytes(), vec![7; 100_000]).unwrap();
    }
    reaches(&replica, &db);
    same(&db, &copy);
    let status = replica.status();
    assert_eq!(status.links, 1, "{status:?}");
    replica.promote().unwrap();
    let films = copy.keyspace("films").unwrap();
    assert!(matches!(films.insert("k", vec![7; 100_000]), Err(Error::MemoryLimit { .. })));
    for n in 0..100_u32 {
        films.remove(n.to_be_bytes()).unwrap();
    }
    copy.reclaim();
    films.insert("k", vec![7; 100_000]).unwrap();
    copy.check();
}

/// The disk of a replica is full while a state comes, and has room later: nobody has to tell it.
#[test]
fn a_replica_goes_on_when_its_disk_has_room_again() {
    let db = Database::in_memory();
    let films = db.keyspace("films").unwrap();
    let disk = SimDisk::new();
    let copy = on(&disk);
    let used: u64 = disk.files().iter().map(|path| disk.contents(path).unwrap().len() as u64).sum();
    for n in 0..300_u32 {
        films.insert(n.to_be_bytes(), vec![n as u8; 10_000]).unwrap();
    }
    let primary = db.serve_replicas(PrimaryOptions::new().always_compress(true)).unwrap();
    disk.set_capacity(Some(used + (64 << 10)));
    let replica = copy.follow(within(&primary)).unwrap();
    until(&replica, "failed", |status| matches!(status.last_end, Some(LinkLost::Failed(_))));
    let links = replica.status().links;
    std::thread::sleep(Duration::from_secs(2));
    let status = replica.status();
    assert!(status.links - links < 12 && status.counts.full <= 2, "{status:?}");
    disk.set_capacity(None);
    reaches(&replica, &db);
    same(&db, &copy);
    until(&replica, "streaming", |status| status.state == ReplicaState::Streaming);
    copy.persist(Durability::Sync).unwrap();
    replica.stop();
    copy.close().unwrap();
    drop((replica, copy));
    same(&db, &on(&disk));
}

/// Who follows a replica knows when that has lost the primary, and when the primary is back.
#[test]
fn staleness_is_told_down_a_chain() {
    let often = Duration::from_millis(20);
    let options = || PrimaryOptions::new().heartbeat(often);
    let db = Database::in_memory();
    db.keyspace("films").unwrap().insert("k", "v").unwrap();
    let first = db.serve_replicas(options()).unwrap();
    let (near, far) = (Database::in_memory(), Database::in_memory());
    let of_near = near.follow(within(&first).heartbeat(often)).unwrap();
    let second = near.serve_replicas(options()).unwrap();
    let policy = StalePolicy::Refuse { after: Duration::from_millis(100) };
    let of_far = far.follow(within(&second).heartbeat(often).stale_policy(policy)).unwrap();
    reaches(&of_far, &db);
    let settled = |status: &ReplicaStatus| {
        status.state == ReplicaState::Streaming && status.lag_ms == Some(0)
    };
    until(&of_far, "settled", settled);
    first.shutdown();
    let lost = until(&of_far, "old", |status| status.lag_ms.is_some_and(|lag_ms| lag_ms > 150));
    assert_eq!(lost.state, ReplicaState::Streaming);
    assert!(matches!(far.snapshot(), Err(Error::Stale)));
    let again = db.serve_replicas(options()).unwrap();
    of_near.stop();
    let of_near = near.follow(within(&again).heartbeat(often)).unwrap();
    until(&of_far, "settled", settled);
    reaches(&of_near, &db);
    far.snapshot().unwrap();
}

/// Whoever waits for a replica has the batch on the disk here as well, whatever the database does otherwise: the replica may have it of a power that fails.
#[test]
fn to_wait_for_a_replica_is_to_have_it_here() {
    let disk = SimDisk::new();
    let db = unsynced(&disk).manual_log().open("/db").unwrap();
    let films = db.keyspace("films").unwrap();
    let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
    let copy = Database::in_memory();
    let _replica = copy.follow(within(&primary)).unwrap();
    films.insert("k", "v").unwrap();
    primary.wait(db.position(), 1, AckLevel::Applied, LONG).unwrap();
    let left = disk.crash_point(disk.change_count()).image(&[]);
    assert_eq!(unsynced(&left).open("/db").unwrap().position(), db.position());
    disk.inject(DiskFault::error(5).on(CallKind::SyncData).forever());
    films.insert("k", "w").unwrap();
    let waited = primary.wait(db.position(), 1, AckLevel::Applied, LONG);
    assert!(matches!(waited, Err(Error::NotDurable { .. })), "{waited:?}");
}

/// Circles are refused, however long; whoever is promoted in one is followed by the others.
#[test]
fn a_circle_of_three_is_refused() {
    let often = Duration::from_millis(20);
    let nodes = [(); 3].map(|()| Database::in_memory());
    let [a, b, c] = &nodes;
    a.keyspace("films").unwrap().insert("k", "v").unwrap();
    let serve = |db: &Database| db.serve_replicas(PrimaryOptions::new().heartbeat(often)).unwrap();
    let [of_a, of_b, of_c] = [serve(a), serve(b), serve(c)];
    let b_follows = b.follow(within(&of_a).heartbeat(often)).unwrap();
    reaches(&b_follows, a);
    let c_follows = c.follow(within(&of_b).heartbeat(often)).unwrap();
    reaches(&c_follows, a);
    let is_refused =
        |status: &ReplicaStatus| status.last_end == Some(LinkLost::Refused(SyncRefused::Cycle));
    let a_follows = a.follow(within(&of_c).heartbeat(often)).unwrap();
    until(&a_follows, "refused", is_refused);
    a_follows.stop();
    b_follows.stop();
    b.promote().unwrap();
    b.keyspace("films").unwrap().insert("k", "w").unwrap();
    let a_follows = a.follow(within(&of_b).heartbeat(often)).unwrap();
    reaches(&a_follows, b);
    reaches(&c_follows, b);
    same(a, b);
    same(c, b);
}
