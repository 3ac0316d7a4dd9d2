//! Installs on a disk that is cut off, or fails.
use crate::clock::{Random, test_seeds};
use crate::follow::spool::Spool;
use crate::format::snapshot::Span;
use crate::format::wire::CutMessage;
use crate::position::{HistoryId, Seq};
use crate::replication::needs::{Need, Needs};
use crate::storage::sim::{DiskFault, SimDisk};
use crate::{Database, Durability, SaveOptions};

fn on(disk: &SimDisk) -> crate::Builder {
    Database::builder().disk(disk.clone()).manual_log().manual_reclaim()
}

fn content(db: &Database) -> Vec<(Vec<u8>, Vec<u8>)> {
    let still = db.snapshot().unwrap();
    let mut all = Vec::new();
    for name in still.keyspaces().unwrap() {
        for entry in still.keyspace(&name).unwrap().range::<&[u8]>(..) {
            let (key, value) = entry.unwrap();
            all.push(([name.as_bytes(), &key].concat(), value.to_vec()));
        }
    }
    all
}

/// What a power cut may leave behind so many changes.
fn cut_at(disk: &SimDisk, count: usize, random: &mut Random) -> SimDisk {
    let point = disk.crash_point(count);
    point.image(&point.draw(random))
}

fn change(db: &Database, random: &mut Random) {
    let films = db.keyspace("films").unwrap();
    for _ in 0..=random.below(20) {
        films.insert(random.below(30).to_le_bytes(), random.next_u64().to_le_bytes()).unwrap();
    }
    if random.one_in(3) {
        db.compact_log(SaveOptions::default()).unwrap();
    }
}

/// A power cut, and then another while what it left is opened, at every moment of an install: the directory holds what was before or what came.
#[test]
fn an_install_is_whole_or_nothing_on_the_disk() {
    for seed in test_seeds(16) {
        let mut random = Random::new(seed);
        let source = on(&SimDisk::new()).open("/db").unwrap();
        change(&source, &mut random);
        let disk = SimDisk::new();
        let replica = on(&disk).open("/db").unwrap();
        for _ in 0..random.below(3) {
            change(&replica, &mut random);
        }
        replica.persist(Durability::Sync).unwrap();
        let mut states = vec![(replica.position(), content(&replica))];
        let first = disk.change_count();
        for _ in 0..2 {
            change(&source, &mut random);
            let mut bytes = Vec::new();
            source.snapshot().unwrap().write_to(&mut bytes, &SaveOptions::default()).unwrap();
            replica.install(&bytes[..], true).unwrap();
            states.push((replica.position(), content(&replica)));
        }
        let last = disk.change_count();
        drop(replica);
        for count in first..=last {
            let cut = cut_at(&disk, count, &mut random);
            let check = |disk: &SimDisk, what: &str| {
                let opened = on(disk).open("/db");
                let db = opened.unwrap_or_else(|e| panic!("seed {seed} at {count}, {what}: {e}"));
                let found = (db.position(), content(&db));
                assert!(states.contains(&found), "seed {seed} at {count}, {what}: {found:?}");
            };
            let before = cut.change_count();
            check(&cut, "opened");
            let count = cut.change_count() - before + 1;
            let again = before + usize::try_from(random.below(count as u64)).unwrap();
            check(&cut_at(&cut, again, &mut random), "opened again");
        }
    }
}

/// A disk that fails in the middle of it: the state is shown, the log takes nothing more, and it can be done later.
#[test]
fn an_install_that_the_disk_refuses_can_be_saved_later() {
    for seed in test_seeds(40) {
        let mut random = Random::new(seed);
        let source = on(&SimDisk::new()).open("/db").unwrap();
        change(&source, &mut random);
        let disk = SimDisk::new();
        let replica = on(&disk).open("/db").unwrap();
        change(&replica, &mut random);
        let before = (replica.position(), content(&replica));
        let mut bytes = Vec::new();
        source.snapshot().unwrap().write_to(&mut bytes, &SaveOptions::default()).unwrap();
        disk.inject(DiskFault::error(5).after(random.below(40)));
        let installed = replica.install(&bytes[..], true);
        disk.clear_faults();
        let now = (replica.position(), content(&replica));
        let after = (source.position(), content(&source));
        match installed {
            Ok(()) => assert_eq!(now, after, "seed {seed}"),
            Err(error) => {
                assert!(now == before || now == after, "seed {seed}: {error}");
                if now == after {
                    replica.recover().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                } else {
                    replica
                        .install(&bytes[..], true)
                        .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                }
            }
        }
        drop(replica);
        let opened = on(&disk).open("/db").unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!((opened.position(), content(&opened)), after, "seed {seed}");
    }
}

/// A source that leaves out what was asked for has not sent the state, whatever it adds up to.
#[test]
fn a_pass_that_leaves_something_out_is_refused() {
    let db = Database::in_memory();
    let history = HistoryId([1; 16]);
    let span = Span { history, term: 0, writer: [2; 16], start: Seq(1), end: Seq(9) };
    let cut = CutMessage {
        number: 1,
        time_ms: 0,
        records: 0,
        fingerprint: 0,
        durable: Seq(0),
        chain: 0,
        lineage: vec![span],
    };
    for (need, is_enough) in [(Need::Anything, false), (Need::NewerThan(Seq(0)), true)] {
        let mut spool = Spool::new(db.engine(), [3; 16]);
        spool.begin(cut.clone()).unwrap();
        let ended = spool.end(0, &Needs::everywhere(need), &[]);
        assert_eq!(ended.is_ok(), is_enough);
    }
    // Nor one that sent more or fewer blocks than it says.
    let mut spool = Spool::new(db.engine(), [3; 16]);
    spool.begin(cut).unwrap();
    assert!(spool.end(1, &Needs::everywhere(Need::NewerThan(Seq(0))), &[]).is_err());
}
