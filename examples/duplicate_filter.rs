//! Messages that are delivered at least once, worked on exactly once.
//!
//! The number of a message is written with a time to live, in the same transaction as what the message changes. Who
//! finds it there has a second delivery and changes nothing. Several workers may get the same message at once: the
//! transactions conflict, one is run again and finds the number. After the time to live, longer than the sender
//! tries, the number removes itself. A crash leaves the mark and the change, or neither, and the next delivery does
//! the work. What goes outside the database, such as a mail, is not covered by this.
//!
//! `cargo run --example duplicate_filter`

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use stillframe::{Database, Keyspace, Result, WriteOptions};

/// The sender gives up long before.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

const MESSAGES: u64 = 500;
const WORKERS: u64 = 3;

/// A payment to one of ten accounts.
#[derive(Clone, Copy)]
struct Message {
    id: u64,
    account: u64,
    amount: u64,
}

impl Message {
    fn new(id: u64) -> Self {
        Self { id, account: id % 10, amount: id }
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let database = Database::in_memory();
    let (seen, accounts) = (database.keyspace("seen")?, database.keyspace("accounts")?);

    // Every worker is delivered every message, each beginning somewhere else, as after a lost connection.
    let duplicates = AtomicU64::new(0);
    thread::scope(|scope| {
        let (database, seen, accounts, duplicates) = (&database, &seen, &accounts, &duplicates);
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                scope.spawn(move || -> Result<()> {
                    for n in 0..MESSAGES {
                        let message = Message::new((n + worker * 7) % MESSAGES);
                        if !work_on(database, seen, accounts, message, REMEMBERED)? {
                            duplicates.fetch_add(1, Ordering::Relaxed); // Relaxed: a figure
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    let duplicates = duplicates.into_inner();
    println!("{} deliveries, {duplicates} of them again", MESSAGES * WORKERS);
    assert_eq!(duplicates, MESSAGES * (WORKERS - 1));

    // Each amount was paid in once: the accounts add up to 0 + 1 + 2 + …
    let mut sum = 0;
    for entry in accounts.prefix("") {
        sum += amount(Some(&entry?.1));
    }
    assert_eq!(sum, MESSAGES * (MESSAGES - 1) / 2);
    println!("{MESSAGES} payments of {sum} in all, each made once");

    // Once its time is past a number is forgotten, and would be taken for new.
    let late = Message { id: MESSAGES, account: 0, amount: 1 };
    assert!(work_on(&database, &seen, &accounts, late, REMEMBERED)?);
    assert!(!work_on(&database, &seen, &accounts, late, REMEMBERED)?);
    assert!(seen.expire_at(late.id.to_be_bytes(), 1)?);
    assert!(work_on(&database, &seen, &accounts, late, REMEMBERED)?);
    println!("a number whose time is past is forgotten");
    Ok(())
}

/// Does what the message says, unless that was done before; whether it was done now.
fn work_on(
    database: &Database,
    seen: &Keyspace,
    accounts: &Keyspace,
    message: Message,
    remembered: Duration,
) -> Result<bool> {
    let (id, account) = (message.id.to_be_bytes(), message.account.to_be_bytes());
    database.transact(|tx| {
        if tx.contains_key(seen, id)? {
            return Ok(false);
        }
        tx.insert_with(seen, id, "", WriteOptions::new().ttl(remembered))?;
        let balance = amount(tx.get(accounts, account)?.as_deref());
        tx.insert(accounts, account, (balance + message.amount).to_le_bytes())?;
        Ok(true)
    })
}

fn amount(bytes: Option<&[u8]>) -> u64 {
    bytes.map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
}
