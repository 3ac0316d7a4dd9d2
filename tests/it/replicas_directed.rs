//! Transfers that are cut off and go on after something else has happened: each a story that chance hardly ever tells.

use stillframe::simulation::{KeptState, SessionEnd, SimDisk, TurnOptions};
use stillframe::{Database, Durability, SaveOptions, SyncKind};

fn on(disk: &SimDisk) -> Database {
    let builder = Database::builder().disk(disk.clone()).manual_log().manual_reclaim();
    let builder = builder.leaf_entries(16).segment_bytes(8 << 10).save_when_log_exceeds(None);
    builder.durability(Durability::Memory).open("/db").unwrap()
}

fn in_memory() -> Database {
    Database::builder().leaf_entries(16).manual_reclaim().in_memory().unwrap()
}

fn content(db: &Database) -> Vec<(Vec<u8>, Vec<u8>)> {
    let still = db.snapshot().unwrap();
    still.check().unwrap();
    let films = still.keyspace("films").unwrap();
    let entry = |entry: stillframe::Result<(stillframe::Slice, stillframe::Slice)>| {
        let (key, value) = entry.unwrap();
        (key.to_vec(), value.to_vec())
    };
    films.range::<&[u8]>(..).map(entry).collect()
}

/// Every `step`-th of 3,000 keys from `first` on.
fn write(db: &Database, first: u32, step: usize, value: &str) {
    let films = db.keyspace("films").unwrap();
    for key in (first..3_000).step_by(step) {
        // Long, and no two alike: some blocks are to be sent.
        let mut value = format!("{value} {key} ").into_bytes();
        stillframe::simulation::Random::new(key.into()).fill({
            value.resize(60, 0);
            &mut value[20..]
        });
        films.insert(key.to_be_bytes(), value).unwrap();
    }
}

fn options(byte: u8) -> TurnOptions {
    TurnOptions { key: None, beat_ms: 1_000, timeout_ms: 10_000, nonce: [byte; 32] }
}

/// The replica follows the source, and the link is lost once so many bytes have come; what it keeps, how it was to catch up, and whether it has.
fn follow(
    source: &Database,
    replica: &Database,
    mut kept: KeptState,
    most: usize,
) -> (KeptState, Option<SyncKind>, bool) {
    let options =
        |byte| TurnOptions { key: None, beat_ms: 1_000, timeout_ms: 10_000, nonce: [byte; 32] };
    kept.allow_discard();
    replica.begin_following().unwrap();
    let mut ours = SessionEnd::replica(replica, &options(1), kept, 0);
    let mut theirs = SessionEnd::source(source, &options(2), 0).unwrap();
    let mut come = 0;
    for now_ms in 0..20_000 {
        let (mut out, mut back) = (Vec::new(), Vec::new());
        ours.fill(now_ms, &mut out).unwrap();
        theirs.receive(&out, now_ms, &mut back).unwrap();
        theirs.fill(now_ms, &mut back).unwrap();
        back.truncate(most - come);
        come += back.len();
        out.clear();
        ours.receive(&back, now_ms, &mut out).unwrap();
        theirs.receive(&out, now_ms, &mut back).unwrap();
        if come == most || (ours.is_streaming() && replica.position() == source.position()) {
            break;
        }
    }
    let (way, is_same) = (ours.caught_up(), replica.position() == source.position());
    drop(theirs);
    (ours.into_kept(), way, is_same)
}

fn whole(source: &Database, replica: &Database, kept: KeptState) -> Option<SyncKind> {
    let (_, way, is_same) = follow(source, replica, kept, usize::MAX);
    assert!(is_same, "{} {}", source.position(), replica.position());
    assert_eq!(content(source), content(replica));
    replica.check();
    way
}

/// What came of a state rests on what was there: once that has moved on, by way of another source, it is worth nothing.
#[test]
fn a_spool_whose_base_has_moved_is_dropped() {
    for cut_at in [2_000, 20_000, 60_000, 100_000] {
        let (source, between, replica) = (on(&SimDisk::new()), in_memory(), in_memory());
        write(&source, 0, 1, "first");
        whole(&source, &replica, KeptState::default());
        whole(&source, &between, KeptState::default());
        // From when it is first asked it has records in memory, for the replica.
        drop(SessionEnd::source(&between, &options(3), 0).unwrap());
        write(&source, 1, 900, "a few more");
        whole(&source, &between, KeptState::default());
        source.compact_log(SaveOptions::default().threads(1)).unwrap();
        write(&source, 0, 3, "second");
        source.compact_log(SaveOptions::default().threads(1)).unwrap();
        let base = replica.position();
        let (kept, way, is_same) = follow(&source, &replica, KeptState::default(), cut_at);
        assert!(!is_same && replica.position() == base, "{cut_at}");
        assert_eq!(way, Some(SyncKind::Delta), "{cut_at}");
        // What it keeps is put by meanwhile.
        assert_eq!(whole(&between, &replica, KeptState::default()), Some(SyncKind::Partial));
        assert_ne!(replica.position(), base);
        assert_eq!(whole(&source, &replica, kept), Some(SyncKind::Delta), "{cut_at}");
    }
}

/// Zones go with the spool that they are of: what a source on another line is asked for follows from what is here alone.
#[test]
fn zones_of_another_line_are_dropped_with_their_spool() {
    for first_cut in [5_000, 40_000, 90_000] {
        for second_cut in [3_000, 30_000, 60_000, usize::MAX] {
            let (one, other) = (on(&SimDisk::new()), on(&SimDisk::new()));
            let replica = in_memory();
            write(&one, 0, 1, "first");
            whole(&one, &replica, KeptState::default());
            whole(&one, &other, KeptState::default());
            // Both write on, and neither log goes back so far.
            other.promote().unwrap();
            for (db, first, value) in [(&one, 0, "one"), (&other, 1, "other")] {
                write(db, first, 4, value);
                db.compact_log(SaveOptions::default().threads(1)).unwrap();
                write(db, first + 1, 50, value);
                db.compact_log(SaveOptions::default().threads(1)).unwrap();
            }
            let base = replica.position();
            let (kept, ..) = follow(&one, &replica, KeptState::default(), first_cut);
            assert_eq!(replica.position(), base);
            let (kept, _, is_same) = follow(&other, &replica, kept, second_cut);
            if is_same {
                assert_eq!(content(&other), content(&replica));
            } else {
                assert_eq!(replica.position(), base);
                // The line that it began with goes on.
                write(&other, 3, 7, "later");
            }
            whole(&other, &replica, kept);
        }
    }
}
