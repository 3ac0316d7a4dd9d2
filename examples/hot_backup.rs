//! A backup of a database that is being written to: no writer waits, and the file holds the state
//! of exactly one moment.
//!
//! `cargo run --release --example hot_backup`

use std::env;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use stillframe::{Database, Keyspace, Result, SaveOptions, SnapshotFile};

/// Accounts that money moves between; the sum of all balances never changes.
const ACCOUNTS: u64 = 200_000;
const OPENING_BALANCE: u64 = 1_000;

fn main() -> Result<()> {
    let database = Database::in_memory();
    let accounts = database.keyspace("accounts")?;
    for number in 0..ACCOUNTS {
        accounts.insert(number.to_be_bytes(), OPENING_BALANCE.to_le_bytes())?;
    }

    let path = env::temp_dir().join(format!("hot-backup-{}.still", std::process::id()));
    let stop = AtomicBool::new(false);
    let (transfers, report) = thread::scope(|scope| {
        let writer = scope.spawn(|| transfer_until(&database, &accounts, &stop));
        let saved = (|| {
            // The default leaves one core to the writers; a rate limit would spare the disk as well.
            let save = database.save(&path, SaveOptions::default())?;
            while !save.is_finished() {
                let progress = save.progress();
                println!("{} %", progress.entries * 100 / progress.total_entries);
                thread::sleep(Duration::from_millis(20));
            }
            save.wait()
        })();
        stop.store(true, Ordering::Relaxed); // Relaxed: the flag carries no data
        let transfers = writer.join().expect("the writer does not panic")?;
        Ok::<_, stillframe::Error>((transfers, saved?))
    })?;
    println!("{transfers} transfers while {} bytes were saved", report.file_bytes);

    // Every transfer is in the file whole or not at all: the balances still add up.
    let file = SnapshotFile::open(&path)?;
    file.verify()?;
    let mut sum = 0;
    for entry in file.keyspace("accounts")?.prefix("") {
        sum += balance(&entry?.1);
    }
    assert_eq!(sum, ACCOUNTS * OPENING_BALANCE);
    println!("the balances in the backup add up");

    let _ = fs::remove_file(&path);
    Ok(())
}

/// Moves one unit between two accounts at a time, each time in one atomic batch.
fn transfer_until(database: &Database, accounts: &Keyspace, stop: &AtomicBool) -> Result<u64> {
    let mut transfers = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let random = u64::wrapping_mul(transfers + 1, 0x9e37_79b9_7f4a_7c15);
        let from = (random >> 32) % ACCOUNTS;
        let to = (random & 0xffff_ffff) % ACCOUNTS;
        let balance_of = |number: u64| -> Result<u64> {
            Ok(accounts.get(number.to_be_bytes())?.map_or(0, |bytes| balance(&bytes)))
        };
        if from == to || balance_of(from)? == 0 {
            transfers += 1;
            continue;
        }
        let mut batch = database.batch();
        batch.insert(accounts, from.to_be_bytes(), (balance_of(from)? - 1).to_le_bytes());
        batch.insert(accounts, to.to_be_bytes(), (balance_of(to)? + 1).to_le_bytes());
        batch.commit()?;
        transfers += 1;
    }
    Ok(transfers)
}

fn balance(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("balances have eight bytes"))
}
