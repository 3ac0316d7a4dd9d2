//! Replicas over links within the process, TCP and Unix sockets: they become what their primary is, and stay it.

use std::sync::Arc;
use std::time::Duration;

use stillframe::{
    AckLevel, Database, Durability, Error, Link, LinkKey, Primary, PrimaryOptions, Replica,
    ReplicaSource, ReplicaState, Role,
};

use crate::saves::Dir;

const LONG: Duration = Duration::from_secs(60);

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

fn within(primary: &Primary) -> ReplicaSource {
    let primary = primary.clone();
    ReplicaSource::links(move || {
        let (ours, theirs) = Link::pair();
        primary.attach(theirs);
        Ok(ours)
    })
}

fn same(primary: &Database, replica: &Database) {
    assert_eq!(primary.position(), replica.position());
    let fingerprint = |db: &Database| db.snapshot().unwrap().fingerprint();
    assert_eq!(fingerprint(primary), fingerprint(replica));
    assert_eq!(content(primary), content(replica));
}

fn reaches(replica: &Replica, primary: &Database) {
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
