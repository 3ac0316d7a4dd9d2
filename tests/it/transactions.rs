//! Transactions, one rule a test. What they see among many others is in `torture serialize` and, schedule by schedule, in `shuttle`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use stillframe::simulation::{SimClock, SimDisk};
use stillframe::{
    Database, Durability, Error, MAX_KEY_LEN, Result, Slice, Transaction, WriteOptions,
};

fn text(slice: &Slice) -> &str {
    std::str::from_utf8(slice).unwrap()
}

fn shown(range: impl Iterator<Item = Result<(Slice, Slice)>>) -> Vec<String> {
    range.map(|entry| entry.map(|(k, v)| format!("{}={}", text(&k), text(&v))).unwrap()).collect()
}

#[test]
fn an_error_or_a_panic_changes_nothing() {
    let db = Database::in_memory();
    let space = db.keyspace("all").unwrap();
    space.insert("a", "1").unwrap();
    let seq = db.seq();
    let failed = db.transact(|tx| {
        tx.insert(&space, "a", "2")?;
        tx.delete_range::<&str>(&space, ..)?;
        Err::<(), _>(Error::Cancelled)
    });
    assert!(matches!(failed, Err(Error::Cancelled)));
    let panics = catch_unwind(AssertUnwindSafe(|| {
        db.transact(|tx| {
            tx.insert(&space, "a", "3")?;
            assert!(tx.get(&space, "a")?.is_none(), "as planned");
            Ok(())
        })
    }));
    assert!(panics.is_err());
    assert_eq!((db.seq(), text(&space.get("a").unwrap().unwrap())), (seq, "1"));
    space.insert("b", "goes on").unwrap();
}

#[test]
fn it_sees_what_it_has_written() {
    let db = Database::in_memory();
    let (left, right) = (db.keyspace("left").unwrap(), db.keyspace("right").unwrap());
    for key in ["a", "b", "c", "d", "e"] {
        left.insert(key, "old").unwrap();
    }
    let kept = db
        .transact(|tx| {
            tx.delete_range(&left, "b".."d")?;
            tx.insert(&left, "c", "new")?;
            tx.insert(&left, "f", "new")?;
            assert!(tx.remove(&left, "e")? && !tx.remove(&left, "e")? && !tx.remove(&left, "b")?);
            assert!(!tx.insert_new(&left, "a", "new")? && tx.insert_new(&left, "b", "new")?);
            assert_eq!(tx.replace(&left, "b", "newer")?.unwrap(), "new");
            assert_eq!(tx.take(&left, "b")?.unwrap(), "newer");
            assert!(tx.get(&right, "a")?.is_none());
            let forwards = shown(tx.range::<&str>(&left, ..));
            assert_eq!(forwards, ["a=old", "c=new", "d=old", "f=new"]);
            let mut backwards = shown(tx.range::<&str>(&left, ..).rev());
            backwards.reverse();
            assert_eq!(backwards, forwards);
            let mut both = tx.range(&left, "a".."e");
            let ends = [both.next(), both.next_back(), both.next(), both.next_back()];
            assert_eq!(shown(ends.into_iter().flatten()), ["a=old", "d=old", "c=new"]);
            assert_eq!(tx.pop_last(&left)?.unwrap().0, "f");
            assert_eq!(tx.pop_first(&left)?.unwrap().0, "a");
            assert_eq!(
                (tx.first(&left)?.unwrap().0, tx.last(&left)?.unwrap().0),
                ("c".into(), "d".into())
            );
            // A range does not change any more, whatever the transaction does next.
            let kept = tx.prefix(&left, "");
            tx.insert(&left, "g", "later")?;
            Ok(kept)
        })
        .unwrap();
    assert_eq!(shown(kept), ["c=new", "d=old"]);
    assert_eq!(shown(left.range::<&str>(..)), ["c=new", "d=old", "g=later"]);
}

#[test]
fn all_it_writes_is_one_batch() {
    let disk = SimDisk::new();
    let open = || Database::builder().disk(disk.clone()).open("/db").unwrap();
    let db = open();
    let (left, right) = (db.keyspace("left").unwrap(), db.keyspace("right").unwrap());
    left.insert("from", "7").unwrap();
    let seq = db.seq();
    db.transact(|tx| {
        tx.durability(Durability::Sync);
        let value = tx.take(&left, "from")?.unwrap();
        tx.insert(&right, "to", value)?;
        tx.insert(&right, "large", vec![b'x'; 9_000])
    })
    .unwrap();
    assert_eq!(db.seq().0, seq.0 + 1);
    assert_eq!(db.stats().log.unwrap().durable, db.seq());
    // One that only reads, or has nothing to remove, gets no place.
    db.transact(|tx| Ok(tx.get(&right, "to")?.is_some() && tx.remove(&left, "from")?)).unwrap();
    assert_eq!(db.seq().0, seq.0 + 1);
    db.close().unwrap();
    let db = open();
    assert_eq!(db.keyspace("right").unwrap().get("large").unwrap().unwrap().len(), 9_000);
    assert!(db.keyspace("left").unwrap().is_empty().unwrap());
}

/// Whether a transaction that reads by `read` must run again when `meanwhile` is done before it commits.
fn runs_again(
    start: &[(&str, &str)],
    read: impl Fn(&mut Transaction, &stillframe::Keyspace) -> Result<()>,
    meanwhile: impl Fn(&stillframe::Keyspace),
) -> bool {
    let db = Database::in_memory();
    let space = db.keyspace("all").unwrap();
    start.iter().for_each(|(key, value)| space.insert(key, value).unwrap());
    let mut runs = 0;
    db.transact(|tx| {
        runs += 1;
        read(tx, &space)?;
        if runs == 1 {
            meanwhile(&space);
        }
        tx.insert(&space, "result", "")
    })
    .unwrap();
    runs > 1
}

#[test]
fn what_was_read_is_what_others_may_not_change() {
    let start = [("a", "1"), ("c", "2"), ("e", "3"), ("m", "4")];
    let get_c = |tx: &mut Transaction, space: &_| tx.get(space, "c").map(drop);
    assert!(runs_again(&start, get_c, |space| space.insert("c", "5").unwrap()));
    assert!(runs_again(&start, get_c, |space| assert!(space.remove("c").unwrap())));
    // Other keys of the same leaf; the same content once more.
    assert!(!runs_again(&start, get_c, |space| space.insert("a", "5").unwrap()));
    assert!(!runs_again(&start, get_c, |space| space.insert("c", "2").unwrap()));
    let get_b = |tx: &mut Transaction, space: &_| tx.get(space, "b").map(drop);
    assert!(runs_again(&start, get_b, |space| space.insert("b", "5").unwrap()));
    // A range with all its gaps, as far as it was walked.
    let some = |tx: &mut Transaction, space: &_| shown_len(tx.range(space, "b".."f"));
    assert!(runs_again(&start, some, |space| space.insert("d", "phantom").unwrap()));
    assert!(runs_again(&start, some, |space| space.insert("b", "phantom").unwrap()));
    assert!(runs_again(&start, some, |space| assert!(space.remove("e").unwrap())));
    assert!(!runs_again(&start, some, |space| space.insert("a", "5").unwrap()));
    assert!(!runs_again(&start, some, |space| space.insert("f", "5").unwrap()));
    let first = |tx: &mut Transaction, space: &_| tx.first(space).map(drop);
    assert!(!runs_again(&start, first, |space| space.insert("b", "5").unwrap()));
    assert!(runs_again(&start, first, |space| space.insert("", "5").unwrap()));
    let last = |tx: &mut Transaction, space: &_| tx.last(space).map(drop);
    assert!(!runs_again(&start, last, |space| space.insert("k", "5").unwrap()));
    assert!(runs_again(&start, last, |space| space.insert("n", "5").unwrap()));
    // What it only writes it has not read.
    let put = |tx: &mut Transaction, space: &_| tx.insert(space, "c", "6");
    assert!(!runs_again(&start, put, |space| space.insert("c", "5").unwrap()));
    let empty = |tx: &mut Transaction, space: &_| tx.delete_range(space, "a".."d");
    assert!(!runs_again(&start, empty, |space| space.insert("b", "5").unwrap()));
}

fn shown_len(range: impl Iterator<Item = Result<(Slice, Slice)>>) -> Result<()> {
    range.collect::<Result<Vec<_>>>().map(drop)
}

#[test]
fn who_is_always_in_the_way_is_given_up() {
    let db = Database::builder().transaction_attempts(5).in_memory().unwrap();
    let space = db.keyspace("all").unwrap();
    let mut runs = 0_u32;
    let lost = db.transact(|tx| {
        runs += 1;
        tx.get(&space, "a")?;
        space.insert("a", runs.to_le_bytes())?;
        tx.insert(&space, "b", "never")
    });
    assert!(matches!(lost, Err(Error::Conflict { attempts: 5 })), "{lost:?}");
    assert_eq!((runs, space.get("b").unwrap()), (5, None));
    // Also if the closure does not care.
    let lost = db.transact(|tx| {
        let _ = tx.get(&space, "a");
        runs += 1;
        space.insert("a", runs.to_le_bytes())?;
        let _ = tx.get(&space, "b");
        Ok(())
    });
    assert!(matches!(lost, Err(Error::Conflict { attempts: 5 })), "{lost:?}");
}

#[test]
fn counters_of_many_threads_add_up() {
    const THREADS: u64 = 4;
    const EACH: u64 = 500;
    let db = Database::in_memory();
    let space = db.keyspace("all").unwrap();
    let (start, runs) = (Barrier::new(4), AtomicU32::new(0));
    let number = |slice: Option<Slice>| {
        slice.map_or(0, |slice| u64::from_le_bytes(slice[..].try_into().unwrap()))
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                for _ in 0..EACH {
                    let add = |tx: &mut Transaction| {
                        runs.fetch_add(1, Ordering::Relaxed);
                        let sum = number(tx.get(&space, "sum")?) + 1;
                        let sums = number(tx.get(&space, "sums")?) + sum;
                        tx.insert(&space, "sum", sum.to_le_bytes())?;
                        tx.insert(&space, "sums", sums.to_le_bytes())
                    };
                    db.transact(add).unwrap();
                }
            });
        }
    });
    let all = THREADS * EACH;
    assert_eq!(number(space.get("sum").unwrap()), all);
    assert_eq!(number(space.get("sums").unwrap()), all * (all + 1) / 2);
}

#[test]
fn an_entry_that_expires_before_the_commit_was_read_in_vain() {
    let clock = SimClock::new(1_000);
    let db = Database::builder().clock(clock.clone()).in_memory().unwrap();
    let space = db.keyspace("all").unwrap();
    for by_range in [false, true] {
        let until = WriteOptions::new().ttl(Duration::from_millis(10));
        space.insert_with("lease", "mine", until).unwrap();
        let mut runs = 0;
        let held = db
            .transact(|tx| {
                runs += 1;
                let held = match by_range {
                    true => tx.prefix(&space, "lease").next().is_some(),
                    false => tx.contains_key(&space, "lease")?,
                };
                if runs == 1 {
                    clock.advance(10);
                }
                tx.insert(&space, "held", if held { "yes" } else { "no" })?;
                Ok(held)
            })
            .unwrap();
        assert_eq!((held, runs), (false, 2), "by range: {by_range}");
    }
}

#[test]
fn bad_input_is_refused_at_once() {
    let db = Database::in_memory();
    let space = db.keyspace("all").unwrap();
    let refused = |put: &dyn Fn(&mut Transaction) -> Result<()>| db.transact(put).unwrap_err();
    let long = vec![0; MAX_KEY_LEN + 1];
    assert!(matches!(refused(&|tx| tx.get(&space, &long).map(drop)), Error::KeyTooLarge { .. }));
    assert!(matches!(refused(&|tx| tx.insert(&space, &long, "")), Error::KeyTooLarge { .. }));
    assert!(matches!(
        refused(&|tx| {
            tx.durability(Durability::Sync);
            tx.insert(&space, "a", "")
        }),
        Error::NoLog
    ));
    let gone = db.keyspace("gone").unwrap();
    gone.insert("a", "1").unwrap();
    let dropped = db.transact(|tx| {
        tx.insert(&gone, "b", "2")?;
        db.drop_keyspace("gone")?;
        tx.insert(&space, "a", "")
    });
    assert!(matches!(dropped, Err(Error::NoKeyspace)), "{dropped:?}");
    assert!(space.is_empty().unwrap());
    let other = Database::in_memory();
    let foreign = catch_unwind(AssertUnwindSafe(|| other.transact(|tx| tx.get(&space, "a"))));
    assert!(foreign.is_err());
    db.close().unwrap();
    assert!(matches!(refused(&|tx| tx.insert(&space, "a", "")), Error::Closed));
    assert!(db.transact(|tx| tx.get(&space, "a")).unwrap().is_none());
}

#[test]
fn a_full_memory_refuses_the_whole() {
    let db = Database::builder().memory_limit(3 << 20).in_memory().unwrap();
    let space = db.keyspace("all").unwrap();
    let full = db.transact(|tx| {
        for n in 0..10_u8 {
            tx.insert(&space, [n], vec![n; 1 << 20])?;
        }
        Ok(())
    });
    assert!(matches!(full, Err(Error::MemoryLimit { .. })), "{full:?}");
    assert!(space.is_empty().unwrap() && db.stats().live_bytes < 2 << 20);
}

/// What a replica is shown is one moment as well; to write is its primary's.
#[test]
fn on_a_replica_it_reads() {
    let disk = SimDisk::new();
    let db = Database::builder().disk(disk).open("/db").unwrap();
    let (words, copies) = (db.keyspace("words").unwrap(), Database::in_memory());
    words.insert("film", "moves").unwrap();
    let mut saved = Vec::new();
    db.snapshot().unwrap().write_to(&mut saved, &stillframe::SaveOptions::default()).unwrap();
    copies.install(&saved[..], false).unwrap();
    let words = copies.keyspace("words").unwrap();
    let read = copies.transact(|tx| {
        let first = tx.get(&words, "film")?;
        // Another state takes the place of what it reads.
        copies.install(&saved[..], true)?;
        Ok((first, tx.get(&words, "film")?, tx.first(&words)?.map(|(_, value)| value)))
    });
    let moves = Some(Slice::from("moves"));
    assert_eq!(read.unwrap(), (moves.clone(), moves.clone(), moves));
    let refused = copies.transact(|tx| tx.insert(&words, "film", "stands"));
    assert!(matches!(refused, Err(Error::ReadOnly)), "{refused:?}");
}
