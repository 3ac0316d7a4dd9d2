//! Replicas over links within the process, TCP and Unix sockets: they become what their primary is, and stay it.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stillframe::simulation::SimDisk;
use stillframe::{
    AckLevel, Database, DirectoryInfo, Durability, Error, HistoryId, Link, LinkKey, LinkLost,
    Position, Primary, PrimaryOptions, Replica, ReplicaSource, ReplicaState, ReplicaStatus, Role,
    SaveOptions, Seq, StalePolicy, SyncRefused,
};

use crate::saves::Dir;

pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Everything in a database.
fn content(db: &Database) -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let still = db.snapshot().unwrap();
    let mut all = Vec::new();
    for name in still.keyspaces().unwrap() {
        for entry in still.keyspace(&name).unwrap().range::<&[u8]>(..) {
            let (key, value) = entry.unwrap();
            all.push((name.clone(), key.to_vec(), value.to_vec()));
        }
    }
    all
}

pub(crate) fn within(primary: &Primary) -> ReplicaSource {
    let primary = primary.clone();
    ReplicaSource::links(move || {
        let (ours, theirs) = Link::pair();
        primary.attach(theirs);
        Ok(ours)
    })
}

pub(crate) fn same(primary: &Database, replica: &Database) {
    assert_eq!(primary.position(), replica.position());
    let fingerprint = |db: &Database| db.snapshot().unwrap().fingerprint();
    assert_eq!(fingerprint(primary), fingerprint(replica));
    assert_eq!(content(primary), content(replica));
}

pub(crate) fn reaches(replica: &Replica, primary: &Database) {
    if let Err(error) = replica.wait_for(primary.position(), LONG) {
        panic!("{error}: {:?}, primary at {}", replica.status(), primary.position());
    }
}

#[test]
fn a_replica_becomes_what_its_primary_is_and_stays_it() {
    let db = Database::in_memory();
    let films = db.keyspace("films").unwrap();
    for n in 0..5_000_u32 {
        films.insert(n.to_be_bytes(), format!("film {n}")).unwrap();
    }
    films.insert("large", vec![7; 3 << 20]).unwrap();
    let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
    let copy = Database::in_memory();
    let replica = copy.follow(within(&primary)).unwrap();
    reaches(&replica, &db);
    same(&db, &copy);
    assert_eq!(copy.role(), Role::Replica);
    assert!(matches!(copy.keyspace("films").unwrap().insert("k", "v"), Err(Error::ReadOnly)));
    for n in 0..5_000_u32 {
        films.insert(n.to_be_bytes(), format!("again {n}")).unwrap();
    }
    films.insert("long", vec![8; 1 << 20]).unwrap();
    films.delete_range(10_u32.to_be_bytes()..500_u32.to_be_bytes()).unwrap();
    db.keyspace("more").unwrap().insert("k", "v").unwrap();
    db.drop_keyspace("more").unwrap();
    reaches(&replica, &db);
    same(&db, &copy);
    let status = replica.status();
    assert_eq!((status.state, status.counts.full), (ReplicaState::Streaming, 1));
    assert_eq!(primary.wait(db.position(), 1, AckLevel::Applied, LONG).unwrap(), 1);
    replica.stop();
    assert_eq!(replica.status().state, ReplicaState::Stopped);
    films.insert("k", "v").unwrap();
    let few = primary.wait(db.position(), 1, AckLevel::Applied, Duration::from_millis(20));
    assert!(matches!(few, Err(Error::NotAcked { acked: 0, wanted: 1 })));
    // It was away for a moment.
    let replica = copy.follow(within(&primary)).unwrap();
    reaches(&replica, &db);
    same(&db, &copy);
    assert_eq!(replica.status().counts.partial, 1);
}

#[test]
fn directories_over_sockets_with_a_key() {
    let dir = Dir::new("replicas");
    let key = || LinkKey::new([5; 32]);
    let db = Database::open(dir.file("primary")).unwrap();
    let films = db.keyspace("films").unwrap();
    for n in 0..2_000_u32 {
        films.insert(n.to_be_bytes(), format!("film {n}")).unwrap();
    }
    let primary = db.serve_replicas(PrimaryOptions::new().key(key())).unwrap();
    let address = primary.listen_tcp("127.0.0.1:0").unwrap();
    let socket = dir.file("socket");
    primary.listen_unix(&socket).unwrap();
    let sources = [ReplicaSource::tcp(address.to_string()), ReplicaSource::unix(&socket)];
    for (at, source) in sources.into_iter().enumerate() {
        let path = dir.file(&format!("replica-{at}"));
        let copy = Database::open(&path).unwrap();
        let replica = copy.follow(source.clone().key(key())).unwrap();
        reaches(&replica, &db);
        same(&db, &copy);
        films.insert("k", format!("{at}")).unwrap();
        assert_eq!(primary.wait(db.position(), 1, AckLevel::Durable, LONG).unwrap(), 1);
        copy.persist(Durability::Sync).unwrap();
        drop(replica);
        copy.close().unwrap();
        drop(copy);
        films.insert("k2", format!("{at}")).unwrap();
        // What it was it is again, and goes on by records.
        let copy = Database::open(&path).unwrap();
        assert_eq!(copy.role(), Role::Replica);
        let replica = copy.follow(source.key(key())).unwrap();
        reaches(&replica, &db);
        same(&db, &copy);
        assert_eq!((replica.status().counts.partial, replica.status().counts.full), (1, 0));
    }
    // At open, as in a service that is always a replica.
    let source = ReplicaSource::tcp(address.to_string()).key(key());
    let copy = Database::builder().follow(source).open(dir.file("replica-0")).unwrap();
    reaches(&copy.replica().unwrap(), &db);
    same(&db, &copy);
    drop(copy);
    // Without the key, or with another, nothing is told.
    for source in [
        ReplicaSource::tcp(address.to_string()),
        ReplicaSource::tcp(address.to_string()).key(LinkKey::new([6; 32])),
    ] {
        let copy = Database::in_memory();
        let replica = copy.follow(source).unwrap();
        assert!(matches!(
            replica.wait_for(db.position(), Duration::from_millis(300)),
            Err(Error::TimedOut)
        ));
        assert_eq!(copy.position(), Default::default());
        assert!(replica.status().last_end.is_some());
    }
}

#[test]
fn a_chain_and_a_change_of_the_primary() {
    let (a, b, c) = (Database::in_memory(), Database::in_memory(), Database::in_memory());
    let films = a.keyspace("films").unwrap();
    films.insert("k", "a").unwrap();
    let first = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let second = b.serve_replicas(PrimaryOptions::new()).unwrap();
    let of_a = b.follow(within(&first)).unwrap();
    let of_b = c.follow(within(&second)).unwrap();
    for n in 0..1_000_u32 {
        films.insert(n.to_be_bytes(), format!("film {n}")).unwrap();
    }
    reaches(&of_a, &a);
    reaches(&of_b, &a);
    same(&a, &c);
    // The one in the middle takes over; the old one follows it.
    first.shutdown();
    of_a.promote().unwrap();
    assert_eq!(b.role(), Role::Primary);
    b.keyspace("films").unwrap().insert("k", "b").unwrap();
    reaches(&of_b, &b);
    same(&b, &c);
    let of_b_too = a.follow(within(&second)).unwrap();
    reaches(&of_b_too, &b);
    same(&b, &a);
    assert_eq!(of_b_too.status().counts.partial, 1);
    assert!(matches!(films.insert("k", "x"), Err(Error::ReadOnly)));
}

#[test]
fn writers_and_replicas_that_come_and_go() {
    let db = Database::in_memory();
    let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
    let films = Arc::new(db.keyspace("films").unwrap());
    std::thread::scope(|scope| {
        for writer in 0..2_u32 {
            let films = Arc::clone(&films);
            scope.spawn(move || {
                for n in 0..20_000_u32 {
                    let key = (n.wrapping_mul(2_654_435_761) % 5_000).to_be_bytes();
                    films.insert(key, format!("{writer} {n}")).unwrap();
                    if n % 7 == 0 {
                        films.remove((n % 5_000).to_be_bytes()).unwrap();
                    }
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let copy = Database::in_memory();
                for _ in 0..5 {
                    let replica = copy.follow(within(&primary)).unwrap();
                    let at = db.position();
                    let waited = replica.wait_for(at, LONG);
                    assert!(waited.is_ok(), "{waited:?} {at} {:?}", replica.status());
                    replica.stop();
                }
                let replica = copy.follow(within(&primary)).unwrap();
                let status = replica.status();
                assert_eq!(status.counts.full, 0, "{status:?}");
            });
        }
    });
    let copy = Database::in_memory();
    let replica = copy.follow(within(&primary)).unwrap();
    reaches(&replica, &db);
    same(&db, &copy);
}

pub(crate) fn on(disk: &SimDisk) -> Database {
    Database::builder().disk(disk.clone()).open("/db").unwrap()
}

/// Waits until the status is as asked, and tells what it is if it never becomes so.
pub(crate) fn until(
    replica: &Replica,
    what: &str,
    is: impl Fn(&ReplicaStatus) -> bool,
) -> ReplicaStatus {
    let began = Instant::now();
    loop {
        let status = replica.status();
        if is(&status) {
            return status;
        }
        assert!(began.elapsed() < LONG, "never {what}: {status:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn refused(replica: &Replica) -> SyncRefused {
    let status = until(replica, "refused", |status| status.state == ReplicaState::Refused);
    match status.last_end {
        Some(LinkLost::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// C7: nothing that was acknowledged is lost, and never do both write.
#[test]
fn a_planned_change_of_the_primary_loses_nothing() {
    let disks = [SimDisk::new(), SimDisk::new()];
    let [a, b] = [on(&disks[0]), on(&disks[1])];
    let films = a.keyspace("films").unwrap();
    films.insert("k", "v").unwrap();
    let primary = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let replica = b.follow(within(&primary)).unwrap();
    reaches(&replica, &a);
    let nobody = primary.hand_over([9; 16], Duration::from_millis(20));
    assert!(matches!(nobody, Err(Error::NotAcked { .. })));
    films.insert("k", "still the primary").unwrap();
    let node = primary.replicas()[0].node;
    let (mut last, mut handed) = (None, None);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut last = 0_u32;
            for n in 0.. {
                match films.insert("n", n.to_string()) {
                    Ok(()) => last = n,
                    Err(Error::ReadOnly) => return last,
                    Err(error) => panic!("{error}"),
                }
            }
            unreachable!()
        });
        // It is in the middle of writing.
        let some = a.seq().0 + 200;
        while a.seq().0 < some {
            std::thread::yield_now();
        }
        handed = Some(primary.hand_over(node, LONG).unwrap());
        last = Some(writer.join().unwrap());
    });
    assert_eq!((a.role(), a.position()), (Role::Replica, handed.unwrap()));
    until(&replica, "the primary", |_| b.role() == Role::Primary);
    assert_eq!(b.position(), handed.unwrap());
    let kept = b.keyspace("films").unwrap().get("n").unwrap().unwrap();
    assert_eq!(kept, last.unwrap().to_string().as_str());
    b.keyspace("films").unwrap().insert("k", "b").unwrap();
    // Whatever happens to either, only one of them writes.
    drop((primary, replica, films, a));
    let a = on(&disks[0]);
    assert_eq!(a.role(), Role::Replica);
    let second = b.serve_replicas(PrimaryOptions::new()).unwrap();
    let replica = a.follow(within(&second)).unwrap();
    reaches(&replica, &b);
    same(&b, &a);
    assert_eq!(replica.status().counts.partial, 1);
    let position = b.position();
    drop((second, replica, b));
    let b = on(&disks[1].crash(3));
    assert_eq!((b.role(), b.position()), (Role::Primary, position));
}

/// C6, B17: who was replaced while he was away takes no writes once he hears of it, also after he was opened anew, until he is promoted.
#[test]
fn a_primary_that_was_replaced_stops_writing() {
    let disk = SimDisk::new();
    let (a, b, c) = (on(&disk), Database::in_memory(), Database::in_memory());
    let films = a.keyspace("films").unwrap();
    films.insert("k", "v").unwrap();
    let first = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let of_a = b.follow(within(&first)).unwrap();
    reaches(&of_a, &a);
    of_a.promote().unwrap();
    b.keyspace("films").unwrap().insert("k", "b").unwrap();
    // Nobody has told it.
    films.insert("k", "a").unwrap();
    let second = b.serve_replicas(PrimaryOptions::new()).unwrap();
    let of_b = c.follow(within(&second)).unwrap();
    reaches(&of_b, &b);
    let lost = c.follow(within(&first)).unwrap();
    until(&lost, "told", |status| status.last_end == Some(LinkLost::Fenced));
    assert!(matches!(films.insert("k", "x"), Err(Error::ReadOnly)));
    assert_eq!(films.get("k").unwrap().unwrap(), "a");
    assert_eq!(c.keyspace("films").unwrap().get("k").unwrap().unwrap(), "b");
    drop((first, films, a));
    let a = on(&disk);
    assert_eq!(a.role(), Role::Replica);
    // Somebody decided: what it wrote alone is saved aside, and gone here.
    let of_b = a.follow(within(&second)).unwrap();
    reaches(&of_b, &b);
    same(&b, &a);
    assert_eq!(of_b.status().counts.rewind, 1);
    let aside: Vec<_> =
        disk.files().into_iter().filter(|path| path.starts_with("/db/aside")).collect();
    let [path] = &aside[..] else { panic!("{aside:?}") };
    let before = Database::builder().disk(disk.clone()).load(path).unwrap();
    assert_eq!(before.keyspace("films").unwrap().get("k").unwrap().unwrap(), "a");
    a.promote().unwrap();
    a.keyspace("films").unwrap().insert("k", "a again").unwrap();
}

/// B16: a primary that has lost its unsynced end takes it back from a replica, as long as it has written nothing since.
#[test]
fn a_primary_takes_back_what_it_lost() {
    takes_back(&Database::in_memory());
    // By records, which come to who serves: once the limit of what a server takes was in their way.
    takes_back(&on(&SimDisk::new()));
}

fn takes_back(b: &Database) {
    let disk = SimDisk::new();
    let open = |disk: &SimDisk| {
        let builder = Database::builder().durability(Durability::Os).manual_log();
        builder.disk(disk.clone()).open("/db").unwrap()
    };
    let a = open(&disk);
    let films = a.keyspace("films").unwrap();
    films.insert("k", "v").unwrap();
    a.persist(Durability::Sync).unwrap();
    let primary = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let replica = b.follow(within(&primary)).unwrap();
    for n in 0..100_u32 {
        films.insert(n.to_be_bytes(), "not synced").unwrap();
    }
    reaches(&replica, &a);
    let position = a.position();
    replica.stop();
    let mut seed = 0;
    // A power cut that loses something.
    let a = loop {
        seed += 1;
        let after = open(&disk.crash(seed));
        if after.position().seq < position.seq {
            break after;
        }
    };
    let primary = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let replica = b.follow(within(&primary)).unwrap();
    until(&replica, "streaming", |status| status.state == ReplicaState::Streaming);
    assert_eq!((a.position(), a.role()), (position, Role::Primary));
    same(&a, b);
    a.keyspace("films").unwrap().insert("k", "goes on").unwrap();
    reaches(&replica, &a);
    same(&a, b);
}

/// C5: what a replica has is given up where somebody decided so, and else only when its user says so.
#[test]
fn what_a_replica_has_is_not_given_up_by_itself() {
    // A stranger.
    let (a, b) = (Database::in_memory(), Database::in_memory());
    a.keyspace("films").unwrap().insert("k", "a").unwrap();
    b.keyspace("films").unwrap().insert("k", "b").unwrap();
    let primary = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let replica = b.follow(within(&primary)).unwrap();
    assert_eq!(refused(&replica), SyncRefused::Stranger);
    assert_eq!(b.keyspace("films").unwrap().get("k").unwrap().unwrap(), "b");
    replica.resync();
    reaches(&replica, &a);
    same(&a, &b);
    assert_eq!(replica.status().counts.full, 1);
    // An empty one, as after a restart of a primary in memory.
    let empty = Database::in_memory();
    let nothing = empty.serve_replicas(PrimaryOptions::new()).unwrap();
    let replica = b.follow(within(&nothing)).unwrap();
    refused(&replica);
    assert_eq!(b.keyspace("films").unwrap().get("k").unwrap().unwrap(), "a");
    // Oneself, and who follows oneself.
    let own = b.serve_replicas(PrimaryOptions::new()).unwrap();
    let replica = b.follow(within(&own)).unwrap();
    assert_eq!(refused(&replica), SyncRefused::Cycle);
    let replica = b.follow(within(&primary)).unwrap();
    until(&replica, "streaming", |status| status.state == ReplicaState::Streaming);
    let cycle = a.follow(within(&own)).unwrap();
    assert_eq!(refused(&cycle), SyncRefused::Cycle);
    assert_eq!(a.role(), Role::Replica);
}

/// B17: a restored backup is not what its replicas follow by themselves; nor is one of two that both have written.
#[test]
fn a_primary_that_went_back_is_refused() {
    let disk = SimDisk::new();
    let a = on(&disk);
    let films = a.keyspace("films").unwrap();
    films.insert("k", "v").unwrap();
    a.persist(Durability::Sync).unwrap();
    let backups = [disk.crash(1), disk.crash(1)];
    let primary = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let b = Database::in_memory();
    let replica = b.follow(within(&primary)).unwrap();
    for n in 0..50_u32 {
        films.insert(n.to_be_bytes(), "v").unwrap();
    }
    a.persist(Durability::Sync).unwrap();
    reaches(&replica, &a);
    until(&replica, "told what is durable", |status| status.durable >= a.seq());
    replica.stop();
    let position = b.position();
    let restored = on(&backups[0]);
    restored.keyspace("films").unwrap().insert("k", "another").unwrap();
    // Whoever is the primary just then.
    let current = Arc::new(Mutex::new(None));
    *current.lock().unwrap() = Some(restored.serve_replicas(PrimaryOptions::new()).unwrap());
    let links = Arc::clone(&current);
    let source = ReplicaSource::links(move || {
        let (ours, theirs) = Link::pair();
        links.lock().unwrap().as_ref().expect("a primary").attach(theirs);
        Ok(ours)
    });
    let replica = b.follow(source).unwrap();
    assert!(matches!(refused(&replica), SyncRefused::WentBack { .. }));
    assert_eq!(b.position(), position);
    replica.resync();
    reaches(&replica, &restored);
    same(&restored, &b);
    let status = until(&replica, "streaming", |status| status.state == ReplicaState::Streaming);
    assert_eq!(status.counts.rewind, 1);
    // It is behind nothing: what it had was of higher numbers.
    assert_eq!((status.lag, status.source_seq), (0, restored.seq()));
    // What is permitted while there is nothing to refuse is permitted for nothing that comes later.
    replica.resync();
    let wrote = restored.position();
    restored.persist(Durability::Sync).unwrap();
    restored.keyspace("films").unwrap().insert("later", "v").unwrap();
    restored.persist(Durability::Sync).unwrap();
    reaches(&replica, &restored);
    until(&replica, "told what is durable", |status| status.durable >= restored.seq());
    let position = b.position();
    assert!(position.seq > wrote.seq);
    current.lock().unwrap().take().expect("a primary").shutdown();
    let again = on(&backups[1]);
    again.keyspace("films").unwrap().insert("k", "yet another").unwrap();
    let primary = again.serve_replicas(PrimaryOptions::new()).unwrap();
    *current.lock().unwrap() = Some(primary);
    assert!(matches!(refused(&replica), SyncRefused::WentBack { .. }));
    assert_eq!(b.position(), position);
}

/// C8: an acknowledgement counts for the batch it names and for no other.
#[test]
fn waiting_for_replicas_and_gates() {
    let a = Database::in_memory();
    let films = a.keyspace("films").unwrap();
    let options = PrimaryOptions::new().min_replicas(1, Duration::from_secs(5));
    let primary = a.serve_replicas(options).unwrap();
    // At once: it was once not before a thread had begun.
    let refused = films.insert("k", "v");
    assert!(matches!(refused, Err(Error::TooFewReplicas { connected: 0, needed: 1 })));
    let seq = a.seq();
    let b = Database::in_memory();
    let replica = b.follow(within(&primary)).unwrap();
    let began = Instant::now();
    while films.insert("k", "v").is_err() {
        assert!(began.elapsed() < LONG);
    }
    assert_eq!(a.seq().0, seq.0 + 1);
    assert_eq!(primary.wait(a.position(), 1, AckLevel::Applied, LONG).unwrap(), 1);
    let other = Position { history: HistoryId([7; 16]), ..a.position() };
    assert!(matches!(primary.wait(other, 1, AckLevel::Applied, LONG), Err(Error::Gone { .. })));
    assert!(matches!(replica.wait_for(other, LONG), Err(Error::Gone { .. })));
    let next = Position { seq: Seq(a.seq().0 + 1), ..a.position() };
    let short = Duration::from_millis(10);
    assert!(matches!(replica.wait_for(next, short), Err(Error::TimedOut)));
    films.insert("k", "w").unwrap();
    replica.wait_for(next, LONG).unwrap();
    assert_eq!(b.keyspace("films").unwrap().get("k").unwrap().unwrap(), "w");
}

#[test]
fn reads_of_a_replica_out_of_touch_are_refused_if_it_was_told_so() {
    let a = Database::in_memory();
    let films = a.keyspace("films").unwrap();
    films.insert("k", "v").unwrap();
    let primary = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let b = Database::in_memory();
    let policy = StalePolicy::Refuse { after: Duration::ZERO };
    let replica = b.follow(within(&primary).stale_policy(policy)).unwrap();
    reaches(&replica, &a);
    until(&replica, "streaming", |status| status.state == ReplicaState::Streaming);
    let copy = b.keyspace("films").unwrap();
    assert_eq!(copy.get("k").unwrap().unwrap(), "v");
    let still = b.snapshot().unwrap();
    primary.shutdown();
    until(&replica, "lost", |status| status.state == ReplicaState::Connecting);
    assert!(matches!(copy.get("k"), Err(Error::Stale)));
    assert!(matches!(copy.len(), Err(Error::Stale)));
    assert!(matches!(b.snapshot(), Err(Error::Stale)));
    // What was taken before stays what it is.
    assert_eq!(still.keyspace("films").unwrap().get("k").unwrap().unwrap(), "v");
    replica.promote().unwrap();
    copy.insert("k", "w").unwrap();
    assert_eq!(copy.get("k").unwrap().unwrap(), "w");
}

/// How old a replica is that was just opened nobody knows; it once answered for as long as if it had been up to date then.
#[test]
fn a_replica_that_was_never_up_to_date_refuses_reads_at_once() {
    let a = Database::in_memory();
    a.keyspace("films").unwrap().insert("k", "v").unwrap();
    let primary = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let b = Database::in_memory();
    let policy = StalePolicy::Refuse { after: LONG };
    let nowhere = || ReplicaSource::links(|| Err(std::io::ErrorKind::ConnectionRefused.into()));
    b.follow(nowhere().stale_policy(policy)).unwrap();
    assert!(matches!(b.snapshot(), Err(Error::Stale)));
    let replica = b.follow(within(&primary).stale_policy(policy)).unwrap();
    reaches(&replica, &a);
    until(&replica, "streaming", |status| status.state == ReplicaState::Streaming);
    // Told to follow another it has been up to date a moment ago, and so for as long as it may.
    b.follow(nowhere().stale_policy(policy)).unwrap();
    assert_eq!(b.keyspace("films").unwrap().get("k").unwrap().unwrap(), "v");
    let policy = StalePolicy::Refuse { after: Duration::ZERO };
    b.follow(nowhere().stale_policy(policy)).unwrap();
    assert!(matches!(b.snapshot(), Err(Error::Stale)));
}

/// I11: whatever is dropped in whatever order, all threads end.
#[test]
fn dropping_ends_everything() {
    for order in 0..4 {
        let a = Database::in_memory();
        a.keyspace("films").unwrap().insert("k", "v").unwrap();
        let primary = a.serve_replicas(PrimaryOptions::new()).unwrap();
        let b = Database::in_memory();
        let replica = b.follow(within(&primary)).unwrap();
        reaches(&replica, &a);
        match order {
            0 => drop((a, b)),
            1 => {
                drop(primary);
                drop((replica, b, a));
            }
            2 => {
                b.close().unwrap();
                assert_eq!(replica.status().state, ReplicaState::Stopped);
                assert!(matches!(replica.promote(), Err(Error::Closed)));
            }
            _ => {
                a.close().unwrap();
                until(&replica, "lost", |status| status.last_end.is_some());
                replica.stop();
            }
        }
    }
}

/// A link whose reader ends after so many bytes.
struct Cut<R> {
    reader: R,
    left: usize,
    read: Arc<AtomicUsize>,
}

impl<R: Read> Read for Cut<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = buf.len().min(self.left);
        let count = self.reader.read(&mut buf[..len])?;
        self.left -= count;
        self.read.fetch_add(count, Ordering::Relaxed);
        Ok(count)
    }
}

/// What came of a state is kept when the link is lost and when the process dies, and is not sent again.
#[test]
fn a_transfer_goes_on_where_it_was_cut() {
    let db = Database::in_memory();
    let films = db.keyspace("films").unwrap();
    for n in 0..20_000_u32 {
        films.insert(n.to_be_bytes(), format!("{:x}", u128::from(n).wrapping_pow(5))).unwrap();
    }
    films.insert("large", vec![7; 200_000]).unwrap();
    let mut bytes = Vec::new();
    db.snapshot().unwrap().write_to(&mut bytes, &SaveOptions::default()).unwrap();
    let primary = db.serve_replicas(PrimaryOptions::new().always_compress(true)).unwrap();
    for reopens in [false, true] {
        let disk = SimDisk::new();
        let (read, links) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let source = {
            let (primary, read, links) = (primary.clone(), Arc::clone(&read), Arc::clone(&links));
            ReplicaSource::links(move || {
                let (ours, theirs) = UnixStream::pair()?;
                primary.attach(Link::unix(theirs)?);
                let (reader, writer) = (ours.try_clone()?, ours.try_clone()?);
                let count = links.fetch_add(1, Ordering::Relaxed);
                // More each time: what came must reach the other side of a block.
                let reader = Cut { reader, left: 60_000 + 1_000 * count, read: Arc::clone(&read) };
                Ok(Link::new(reader, writer, move || drop(ours.shutdown(Shutdown::Both))))
            })
        };
        let mut copy = on(&disk);
        let mut replica = copy.follow(source.clone()).unwrap();
        let began = Instant::now();
        while replica.wait_for(db.position(), Duration::from_millis(30)).is_err() {
            assert!(began.elapsed() < LONG, "{:?}", replica.status());
            films.insert("k", read.load(Ordering::Relaxed).to_string()).unwrap();
            if reopens {
                replica.stop();
                drop((replica, copy));
                copy = on(&disk);
                replica = copy.follow(source.clone()).unwrap();
            }
        }
        same(&db, &copy);
        let (read, links) = (read.load(Ordering::Relaxed), links.load(Ordering::Relaxed));
        assert!(
            links > 3 && read < 2 * bytes.len() + 20_000 * links,
            "{links} links, {read} bytes"
        );
        // It is shown before it is on the disk.
        until(&replica, "streaming", |status| status.state == ReplicaState::Streaming);
        let left: Vec<_> =
            disk.files().into_iter().filter(|path| path.ends_with("spool")).collect();
        assert!(left.is_empty(), "{left:?}");
        replica.stop();
    }
}

/// C9, B29: a difference that nothing explains is found by the sums, and only where it is something is sent anew.
#[test]
fn a_difference_is_found_and_mended_where_it_is() {
    let db = Database::in_memory();
    let films = db.keyspace("films").unwrap();
    for n in 0..20_000_u32 {
        films.insert(n.to_be_bytes(), format!("{:x}", u128::from(n).wrapping_pow(5))).unwrap();
    }
    let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
    let copy = Database::in_memory();
    let replica = copy.follow(within(&primary)).unwrap();
    reaches(&replica, &db);
    let sent = primary.replicas()[0].sent_bytes;
    copy.plant_difference("films", &7_000_u32.to_be_bytes(), b"another");
    copy.plant_difference("films", b"one too many", b"v");
    films.insert("k", "v").unwrap();
    let status = until(&replica, "mended", |status| status.counts.repair == 1);
    assert_eq!((status.counts.full, status.counts.delta), (1, 0));
    reaches(&replica, &db);
    same(&db, &copy);
    let repaired = primary.replicas()[0].sent_bytes;
    assert!(repaired < sent / 10, "{repaired} bytes after {sent}");
    copy.check();
}

#[test]
fn a_directory_tells_what_it_holds_while_it_is_open() {
    let dir = Dir::new("info");
    let [first, second] = [dir.file("first"), dir.file("second")];
    let db = Database::open(&first).unwrap();
    let empty = DirectoryInfo::read(&first).unwrap();
    assert_eq!((empty.role, empty.position), (Role::Primary, Default::default()));
    assert!(empty.lineage.is_empty());
    let films = db.keyspace("films").unwrap();
    films.insert("k", "v").unwrap();
    let primary = db.serve_replicas(PrimaryOptions::new()).unwrap();
    let copy = Database::open(&second).unwrap();
    let replica = copy.follow(within(&primary)).unwrap();
    films.insert("k", "w").unwrap();
    reaches(&replica, &db);
    assert_eq!(primary.wait(db.position(), 1, AckLevel::Durable, LONG).unwrap(), 1);
    let of_first = DirectoryInfo::read(&first).unwrap();
    let of_second = DirectoryInfo::read(&second).unwrap();
    assert_eq!((of_first.role, of_second.role), (Role::Primary, Role::Replica));
    for info in [&of_first, &of_second] {
        assert_eq!((info.position, info.torn_bytes), (db.position(), 0));
        assert_eq!(info.lineage, of_first.lineage);
        assert_eq!(info.lineage[0].writer, of_first.node);
        assert_eq!((info.lineage[0].start.0, info.lineage[0].end), (1, db.seq()));
    }
    assert_eq!(of_first.dataset, of_second.dataset);
    assert_ne!(of_first.node, of_second.node);
    // What a snapshot holds is known without its log.
    copy.compact_log(SaveOptions::default()).unwrap();
    let saved = DirectoryInfo::read(&second).unwrap();
    assert_eq!((saved.snapshot, saved.batches), (Some(db.position()), 0));
    assert_eq!((saved.position, saved.lineage), (db.position(), of_first.lineage));
    let promoted = copy.promote().unwrap();
    let info = DirectoryInfo::read(&second).unwrap();
    assert_eq!((info.role, info.position), (Role::Primary, promoted));
    let [before, after] = info.lineage[..] else { panic!("{info:?}") };
    assert!(after.term > before.term && after.writer == info.node);
    assert_eq!(before.end.0 + 1, after.start.0);
    assert!(matches!(DirectoryInfo::read(dir.file("none")), Err(Error::Io { .. })));
}

/// C7: a replica that has gone, or that can't keep anything on a disk, is not waited for while writers wait.
#[test]
fn a_hand_over_to_who_can_not_take_it_ends_at_once() {
    let a = on(&SimDisk::new());
    let films = a.keyspace("films").unwrap();
    films.insert("k", "v").unwrap();
    let primary = a.serve_replicas(PrimaryOptions::new()).unwrap();
    let b = on(&SimDisk::new());
    let replica = b.follow(within(&primary)).unwrap();
    reaches(&replica, &a);
    let node = primary.replicas()[0].node;
    replica.stop();
    while !primary.replicas().is_empty() {
        std::thread::yield_now();
    }
    let began = Instant::now();
    assert!(matches!(primary.hand_over(node, LONG), Err(Error::NotAcked { .. })));
    assert!(began.elapsed() < LONG / 2);
    // In memory: writers go on while that is found out.
    let c = Database::in_memory();
    reaches(&c.follow(within(&primary)).unwrap(), &a);
    let node = primary.replicas()[0].node;
    std::thread::scope(|scope| {
        let handing = scope.spawn(|| primary.hand_over(node, Duration::from_millis(500)));
        while !handing.is_finished() {
            films.insert("k", "w").unwrap();
        }
        assert!(matches!(handing.join().unwrap(), Err(Error::NotAcked { .. })));
    });
    assert_eq!(a.role(), Role::Primary);
}
