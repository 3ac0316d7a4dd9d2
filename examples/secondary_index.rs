//! Users by number, and an index that finds them by e-mail address and lets no address be used twice.
//!
//! Data and index are two keyspaces that are changed in one transaction, so no reader sees one without the other.
//! `try_transact` takes a closure with an error type of its own: to return an error changes nothing. Two who want the
//! same address at once conflict; one of the two is run again, and then finds it taken. A crash leaves both changes
//! or neither, since a transaction is one batch in the log.
//!
//! `cargo run --example secondary_index`

use std::thread;

use stillframe::{Database, Keyspace};

/// Why somebody was not signed up.
#[derive(Debug)]
enum Refused {
    /// Another user has the address.
    Taken,
    /// There is no such user.
    Unknown,
    Storage(stillframe::Error),
}

impl From<stillframe::Error> for Refused {
    fn from(error: stillframe::Error) -> Self {
        Refused::Storage(error)
    }
}

struct Users {
    database: Database,
    /// Addresses by number.
    by_id: Keyspace,
    /// Numbers by address.
    by_email: Keyspace,
}

impl Users {
    /// Adds a user under the next number, which it returns.
    fn sign_up(&self, email: &str) -> Result<u64, Refused> {
        self.database.try_transact(|tx| {
            // Big-endian numbers are in order as bytes; the last one read is part of what must not change.
            let last = tx.last(&self.by_id)?.map_or(0, |(id, _)| number(&id));
            let id = (last + 1).to_be_bytes();
            if !tx.insert_new(&self.by_email, email, id)? {
                return Err(Refused::Taken);
            }
            tx.insert(&self.by_id, id, email)?;
            Ok(last + 1)
        })
    }

    /// Gives a user another address; the old one is free then.
    fn change_email(&self, id: u64, email: &str) -> Result<(), Refused> {
        self.database.try_transact(|tx| {
            let old = tx.replace(&self.by_id, id.to_be_bytes(), email)?.ok_or(Refused::Unknown)?;
            tx.remove(&self.by_email, &old)?;
            match tx.insert_new(&self.by_email, email, id.to_be_bytes())? {
                true => Ok(()),
                // What was done above is forgotten.
                false => Err(Refused::Taken),
            }
        })
    }
}

fn main() -> Result<(), Refused> {
    let database = Database::in_memory();
    let (by_id, by_email) = (database.keyspace("users")?, database.keyspace("users by email")?);
    let users = Users { database, by_id, by_email };

    // Two threads want the same hundred addresses.
    let sign_all_up = || -> stillframe::Result<u32> {
        let mut taken = 0;
        for n in 0..100 {
            match users.sign_up(&format!("user{n}@example.org")) {
                Ok(_) => {}
                Err(Refused::Storage(error)) => return Err(error),
                Err(_) => taken += 1,
            }
        }
        Ok(taken)
    };
    let (one, other) = thread::scope(|scope| {
        let other = scope.spawn(sign_all_up);
        (sign_all_up(), other.join().expect("it does not panic"))
    });
    let (one, other) = (one?, other?);
    println!("one thread was refused {one} addresses, the other {other}");
    assert_eq!(one + other, 100);

    // A refused change leaves everything as it was, a change to a new address moves the index along.
    assert!(matches!(users.change_email(1, "user99@example.org"), Err(Refused::Taken)));
    assert!(matches!(users.change_email(500, "nobody@example.org"), Err(Refused::Unknown)));
    let old = users.by_id.get(1_u64.to_be_bytes())?.ok_or(Refused::Unknown)?;
    users.change_email(1, "ada@example.org")?;
    assert!(!users.by_email.contains_key(&old)?);
    assert_eq!(users.by_email.get_with("ada@example.org", number)?, Some(1));
    println!("the index has followed user 1 to another address");

    // In a snapshot both sides are of one moment: each entry has its counterpart.
    let still = users.database.snapshot()?;
    let (by_id, by_email) = (still.keyspace("users")?, still.keyspace("users by email")?);
    assert_eq!((by_id.len()?, by_email.len()?), (100, 100));
    for entry in by_id.prefix("") {
        let (id, email) = entry?;
        assert_eq!(by_email.get(&email)?, Some(id));
    }
    println!("data and index agree on {} users", by_id.len()?);
    Ok(())
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("numbers have eight bytes"))
}
