//! A queue of jobs: the most urgent first, each taken by one of several workers, and none lost in a crash.
//!
//! The key is the priority, 0 the most urgent, and a number, both big-endian: the first key is the next job. To take
//! one, a transaction moves it from `waiting` to `running` with `pop_first`; workers that want the same one conflict,
//! and all but one are run again. A job that fails goes back with a lower priority, until it has been tried often
//! enough. A crash leaves a job that was being worked on in `running`, from where the next run takes it back: so a
//! job may be begun twice, and is never forgotten. `Keyspace::pop_first` alone is simpler, and loses it there.
//!
//! `cargo run --example priority_queue`

use std::env;
use std::error::Error;
use std::fs;
use std::sync::Mutex;
use std::thread;

use stillframe::{Database, Durability, Keyspace, Result, Slice};

/// A job is tried so often.
const ATTEMPTS: u8 = 3;
const WORKERS: usize = 3;

struct Queue {
    database: Database,
    waiting: Keyspace,
    running: Keyspace,
}

/// A key, of priority and number, and what is to be done.
type Job = (Slice, Slice);

impl Queue {
    /// Opens the queue; what a crash has interrupted waits again.
    fn open(directory: &std::path::Path) -> Result<Self> {
        let database = Database::builder().durability(Durability::Os).open(directory)?;
        let (waiting, running) = (database.keyspace("waiting")?, database.keyspace("running")?);
        database.transact(|tx| {
            while let Some((key, task)) = tx.pop_first(&running)? {
                tx.insert(&waiting, &key, &task)?;
            }
            Ok(())
        })?;
        Ok(Self { database, waiting, running })
    }

    /// The most urgent job, for this caller alone.
    fn take(&self) -> Result<Option<Job>> {
        self.database.transact(|tx| {
            let Some((key, task)) = tx.pop_first(&self.waiting)? else { return Ok(None) };
            tx.insert(&self.running, &key, &task)?;
            Ok(Some((key, task)))
        })
    }

    /// Puts a job back behind those of its priority, unless it was tried often enough.
    fn failed(&self, (key, task): &Job) -> Result<()> {
        let (priority, number) = parts(key);
        self.database.transact(|tx| {
            tx.remove(&self.running, key)?;
            if priority % 10 + 1 < ATTEMPTS {
                tx.insert(&self.waiting, new_key(priority + 1, number), task)?;
            }
            Ok(())
        })
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let directory = env::temp_dir().join(format!("priority-queue-{}", std::process::id()));
    let queue = Queue::open(&directory)?;
    // Priorities in tens leave room between them for what failed.
    for number in 0..90 {
        let task = if number % 15 == 0 { "fails" } else { "works" };
        let priority = u8::try_from(number % 3)? * 10;
        queue.waiting.insert(new_key(priority, number), task)?;
    }

    // A worker takes the most urgent job, and the process ends before it is done.
    let job = queue.take()?.ok_or("there are jobs")?;
    assert_eq!(parts(&job.0), (0, 0));
    queue.database.close()?;
    drop(queue);
    let queue = Queue::open(&directory)?;
    assert_eq!((queue.waiting.len()?, queue.running.len()?), (90, 0));

    // Who puts a job back goes on itself, so a worker that finds nothing may stop.
    let begun = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let work = || -> Result<()> {
            while let Some(job) = queue.take()? {
                begun.lock().expect("no worker panics").push(parts(&job.0));
                match job.1 == "fails" {
                    true => queue.failed(&job)?,
                    false => drop(queue.running.remove(&job.0)?),
                }
            }
            Ok(())
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    assert!(queue.waiting.is_empty()? && queue.running.is_empty()?);

    // Six of ninety fail and are begun three times each; every beginning was one worker's alone.
    let mut begun = begun.into_inner()?;
    println!("{} beginnings by {WORKERS} workers", begun.len());
    assert_eq!(begun.len(), 84 + 6 * usize::from(ATTEMPTS));
    begun.sort_unstable();
    assert!(begun.is_sorted_by(|a, b| a < b));

    queue.database.close()?;
    fs::remove_dir_all(&directory)?;
    Ok(())
}

fn new_key(priority: u8, number: u64) -> Vec<u8> {
    [&[priority][..], &number.to_be_bytes()].concat()
}

fn parts(key: &[u8]) -> (u8, u64) {
    let number = key[1..].try_into().expect("a key has nine bytes");
    (key[0], u64::from_be_bytes(number))
}
