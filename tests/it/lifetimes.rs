//! Beginnings and ends: handles that outlive what they name, calls from within calls, everything dropped at once.

use std::ops::ControlFlow;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use stillframe::{Database, Error, Keyspace, Slice};

fn filled(db: &Database, name: &str, count: u32) -> Keyspace {
    let space = db.keyspace(name).unwrap();
    for number in 0..count {
        space.insert(number.to_be_bytes(), [9; 40]).unwrap();
    }
    space
}

#[test]
fn handles_to_a_dropped_keyspace_fail() {
    let db = Database::in_memory();
    let gone = filled(&db, "gone", 500);
    let other = filled(&db, "other", 500);
    let still = db.snapshot().unwrap();
    assert!(db.drop_keyspace("gone").unwrap());
    assert!(!db.drop_keyspace("gone").unwrap());
    let seq = db.seq();
    let fails = |done: stillframe::Result<()>| {
        assert!(matches!(done, Err(Error::NoKeyspace)), "{done:?}");
    };
    fails(gone.insert("a", "b"));
    fails(gone.insert_new("a", "b").map(drop));
    fails(gone.update("a", |_| Some(Slice::from("b"))).map(drop));
    let mut batch = db.batch();
    batch.insert(&other, "a", "b");
    batch.insert(&gone, "a", "b");
    fails(batch.commit().map(drop));
    assert_eq!(other.get("a").unwrap(), None, "half a batch was committed");
    // Also if it would change nothing: such a batch took a number, and was said to be committed.
    let mut batch = db.batch();
    batch.remove(&gone, "not there");
    fails(batch.commit().map(drop));
    assert_eq!(db.seq(), seq);
    assert_eq!(db.keyspaces().unwrap(), ["other"]);
    // What was there then is there in the still; a new keyspace of the name is another one.
    assert_eq!(still.keyspaces().unwrap(), ["gone", "other"]);
    assert_eq!(still.keyspace("gone").unwrap().range::<&[u8]>(..).count(), 500);
    let again = db.keyspace("gone").unwrap();
    assert!(again.is_empty().unwrap());
    again.insert("a", "new").unwrap();
    fails(gone.insert("a", "old"));
    assert_eq!(again.get("a").unwrap().unwrap(), "new");
    assert_eq!(still.keyspace("gone").unwrap().get("a").unwrap(), None);
    let now = db.snapshot().unwrap();
    assert_eq!(now.keyspace("gone").unwrap().len().unwrap(), 1);
    assert!(matches!(still.keyspace("none").map(drop), Err(Error::NoKeyspace)));
    still.check().unwrap();
    now.check().unwrap();
}

#[test]
fn stills_outlive_close() {
    let db = Database::in_memory();
    let space = filled(&db, "all", 500);
    let still = db.snapshot().unwrap();
    space.remove(7u32.to_be_bytes()).unwrap();
    db.close().unwrap();
    db.close().unwrap();
    let seq = db.seq();
    assert!(matches!(space.insert("a", "b"), Err(Error::Closed)));
    assert!(matches!(space.remove(1u32.to_be_bytes()), Err(Error::Closed)));
    assert!(matches!(space.clear(), Err(Error::Closed)));
    assert!(matches!(db.keyspace("new"), Err(Error::Closed)));
    assert!(matches!(db.drop_keyspace("all"), Err(Error::Closed)));
    assert_eq!(db.seq(), seq);
    assert_eq!(space.len().unwrap(), 499);
    assert_eq!(space.range::<&[u8]>(..).count(), 499);
    still.check().unwrap();
    assert_eq!(still.keyspace("all").unwrap().range::<&[u8]>(..).rev().count(), 500);
    drop((db, space));
    assert_eq!(still.keyspace("all").unwrap().len().unwrap(), 500);
}

#[test]
fn closures_may_use_the_database() {
    let db = Database::builder().leaf_entries(4).in_memory().unwrap();
    let space = filled(&db, "all", 50);
    let key = 7u32.to_be_bytes();
    // A read in a read, and a write of the same key in it: the outer one keeps what it saw.
    let sum = space
        .get_with(key, |outer| {
            space.update(key, |_| Some(Slice::from("inner"))).unwrap();
            let inner = space.get_with(key, <[u8]>::to_vec).unwrap().unwrap();
            assert_eq!(inner, b"inner");
            outer.len() + inner.len()
        })
        .unwrap();
    assert_eq!(sum, Some(45));
    let large = vec![3; 10_000];
    space.insert("large", &large).unwrap();
    let kept = space.get_with("large", |value| {
        space.remove("large").unwrap();
        value.to_vec()
    });
    assert_eq!(kept.unwrap().unwrap(), large);
    // An update whose closure writes the key first: it is run again on what it wrote.
    let mut runs = 0;
    let value = space.update(key, |old| {
        runs += 1;
        if runs == 1 {
            space.insert(key, "meanwhile").unwrap();
        }
        Some([old.unwrap(), b"!"].concat().into())
    });
    assert_eq!((value.unwrap().unwrap(), runs), (Slice::from("meanwhile!"), 2));
    // A scan over what its own closure removes, and a range that is written to.
    let mut seen = 0;
    space
        .scan_with::<&[u8]>(.., |key, _| {
            seen += 1;
            assert!(space.remove(key).unwrap());
            space.insert([key, b"+"].concat(), "x").unwrap();
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen, 50);
    let in_range = space.range::<&[u8]>(..).map(Result::unwrap).inspect(|(key, _)| {
        assert!(space.remove(key).unwrap());
        db.snapshot().unwrap().check().unwrap();
    });
    assert_eq!(in_range.count(), 50);
    assert!(space.is_empty().unwrap());
}

/// Set for the process of its own that a test starts.
const CHILD: &str = "STILLFRAME_TEST_CHILD";

/// Runs the test `name` alone in a process of its own, which must end well within a minute.
fn in_a_process(name: &str) {
    let mut child = Command::new(std::env::current_exe().expect("this binary"));
    child.args([name, "--exact", "--nocapture"]).env(CHILD, "1").stdin(Stdio::null());
    let mut child = child.stdout(Stdio::null()).spawn().expect("this binary starts");
    let id = child.id();
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(child.wait()));
    match end.recv_timeout(Duration::from_secs(60)) {
        Ok(status) => assert!(status.expect("its status").success(), "{name} failed"),
        Err(_) => {
            let _ = Command::new("kill").arg("-9").arg(id.to_string()).status();
            panic!("{name} never ended");
        }
    }
}

/// Threads of this process that the engine started.
#[cfg(target_os = "linux")]
fn engine_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("this process's threads");
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")));
    names.flatten().filter(|name| name.starts_with("stillframe")).count()
}

/// Waits until the engine has so many threads: one gets its name only once it runs, and the kernel may show
/// one for a moment after it was joined.
#[cfg(target_os = "linux")]
fn wait_for_engine_threads(count: usize) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while engine_threads() != count {
        let now = engine_threads();
        assert!(std::time::Instant::now() < deadline, "{now} threads of the engine, not {count}");
        thread::yield_now();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn dropping_everything_ends_and_leaks_no_thread() {
    if std::env::var_os(CHILD).is_none() {
        return in_a_process("lifetimes::dropping_everything_ends_and_leaks_no_thread");
    }
    for round in 0..40 {
        let db = Database::builder().leaf_entries(8).in_memory().unwrap();
        let space = filled(&db, "all", 300);
        wait_for_engine_threads(1);
        let stills: Vec<_> = (0..4u32)
            .map(|number| {
                space.insert(number.to_be_bytes(), "later").unwrap();
                db.snapshot().unwrap()
            })
            .collect();
        let mut threads = Vec::new();
        for (number, still) in stills.into_iter().enumerate() {
            let (db, space) = (db.clone(), space.clone());
            threads.push(thread::spawn(move || {
                // Each thread is the last to hold something, in an order that nobody fixes.
                let mut range = space.range::<&[u8]>(..);
                // Another thread may have cleared the keyspace before this range began.
                assert!(range.next().is_none_or(|item| item.is_ok()));
                match (round + number) % 4 {
                    0 => drop(db),
                    1 => db.close().unwrap(),
                    2 => drop(space.clear()),
                    _ => drop(range.next_back()),
                }
                still.check().unwrap();
                assert_eq!(still.keyspace("all").unwrap().range::<&[u8]>(..).count(), 300);
                drop(still);
                range.for_each(drop);
            }));
        }
        drop((db, space));
        threads.into_iter().for_each(|thread| thread.join().expect("a thread of the round"));
        wait_for_engine_threads(0);
    }
}

/// As above with the clock of the machine: the reclaimer frees by itself what a dropped still leaves.
#[test]
fn the_reclaimer_works_by_itself() {
    let db = Database::builder().leaf_entries(8).in_memory().unwrap();
    let space = filled(&db, "all", 500);
    for _ in 0..3 {
        let still = db.snapshot().unwrap();
        for number in 0..500u32 {
            space.insert(number.to_be_bytes(), number.to_le_bytes()).unwrap();
        }
        assert!(db.stats().retained_bytes > 0);
        assert_eq!(db.stats().stills.len(), 1);
        drop(still);
        while db.stats().retained_bytes > 0 {
            thread::yield_now();
        }
    }
    // A range holds a still of its own for as long as it is read.
    let range = space.range::<&[u8]>(..);
    assert_eq!(db.stats().stills.len(), 1);
    drop(range);
    assert!(db.stats().stills.is_empty());
}
