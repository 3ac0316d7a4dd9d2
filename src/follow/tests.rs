//! Installs on a disk that is cut off, or fails.
#![allow(clippy::cast_possible_truncation, reason = "small random numbers")]
use std::sync::Arc;

use crate::clock::{Random, test_seeds};
use crate::commit::Holder;
use crate::follow::spool::Spool;
use crate::format::snapshot::{Codec, Span};
use crate::format::wire::CutMessage;
use crate::position::{HistoryId, Seq};
use crate::replication::needs::{Need, Needs};
use crate::serve::transfer::{Next, Transfer};
use crate::storage::sim::{DiskFault, SimDisk};
use crate::storage::source::Cut;
use crate::storage::writer::WriterOptions;
use crate::tree::Pass;
use crate::{Database, Durability, Error, SaveOptions};

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
        let mut spool = Spool::new(db.engine(), [3; 16], 1);
        spool.begin(cut.clone()).unwrap();
        let ended = spool.end(0, &Needs::everywhere(need), &[]);
        assert_eq!(ended.is_ok(), is_enough);
    }
    // Nor one that sent more or fewer blocks than it says.
    let mut spool = Spool::new(db.engine(), [3; 16], 1);
    spool.begin(cut).unwrap();
    assert!(spool.end(1, &Needs::everywhere(Need::NewerThan(Seq(0))), &[]).is_err());
}

/// Blocks are built by several threads, in whatever order these come to it. One that makes no sense takes all behind it along, and nothing before it; it is sent
/// again with the same number.
#[test]
fn blocks_count_in_the_order_in_which_they_came() {
    let source = Database::builder().leaf_entries(4).manual_reclaim().in_memory().unwrap();
    let films = source.keyspace("films").unwrap();
    for n in 0..2_000_u32 {
        films.insert(n.to_be_bytes(), n.to_string()).unwrap();
    }
    films.insert(1_000_u32.to_be_bytes(), vec![7; 200_000]).unwrap();
    for seed in test_seeds(20) {
        let mut random = Random::new(seed);
        let replica = Database::in_memory();
        let threads = random.below(4) as usize;
        let mut spool = Spool::new(replica.engine(), [3; 16], threads);
        let pass = Pass::take(source.engine().tree(), Holder::Replica).unwrap();
        let cut = Cut::of(pass.cut());
        let message = CutMessage {
            number: 1,
            time_ms: cut.time_ms,
            records: cut.entries,
            fingerprint: cut.fingerprint,
            durable: Seq(0),
            chain: 0,
            lineage: cut.lineage,
        };
        spool.begin(message).unwrap();
        let needs = Needs::everywhere(Need::Anything);
        let options =
            WriterOptions { codec: Codec::Lz4, threads: 0, rate_limit: None, run_bytes: Some(100) };
        let signal = Arc::default();
        let mut transfer =
            Transfer::begin(pass, needs.clone(), ([3; 16], 0), (options, false), (&signal, None));
        let mut blocks = Vec::new();
        while let Next::Block(block) = transfer.next().unwrap() {
            blocks.push(block.to_vec());
        }
        let damaged = random.below(blocks.len() as u64) as usize;
        let mut told = None;
        for (at, block) in blocks.iter().enumerate() {
            let mut block = block.clone();
            if at == damaged {
                *block.last_mut().unwrap() ^= 1;
            }
            told = spool.block(&block).err();
            if told.is_some() {
                break;
            }
        }
        let told = told.or_else(|| spool.settle().err());
        assert!(matches!(told, Some(Error::Corrupt { .. })), "seed {seed}: {told:?}");
        let _ = spool.settle();
        let (_, next) = spool.place();
        let next = usize::try_from(next).unwrap();
        // A chunk is proven with the leaf block behind it, and both come again.
        assert!(
            next <= damaged && damaged < next + 6,
            "seed {seed}: {damaged} is bad, next {next}"
        );
        assert!(spool.needs(&needs).ranges().len() < 3, "seed {seed}");
    }
}
