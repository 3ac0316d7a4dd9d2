//! Two threads move money between accounts while a third takes stills and counts: no still ever shows
//! a transfer half done, and nobody waits for the counting.
//!
//! `cargo run --release --example bank`

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use stillframe::{Database, Keyspace, Result};

const ACCOUNTS: u64 = 1_000;
const EACH: u64 = 100;
const TRANSFERS: u64 = 200_000;
const TELLERS: u64 = 2;

fn main() -> Result<()> {
    let bank = Database::in_memory();
    let accounts = bank.keyspace("accounts")?;
    for number in 0..ACCOUNTS {
        accounts.insert(key(number), EACH.to_le_bytes())?;
    }

    let closing = AtomicBool::new(false);
    let (stills, last) = thread::scope(|scope| {
        let tellers: Vec<_> = (0..TELLERS)
            .map(|teller| {
                let (bank, accounts) = (&bank, &accounts);
                scope.spawn(move || transfers(bank, accounts, teller))
            })
            .collect();
        let auditor = scope.spawn(|| audit(&bank, &closing));
        for teller in tellers {
            teller.join().expect("a teller does not panic")?;
        }
        closing.store(true, Ordering::Relaxed);
        auditor.join().expect("the auditor does not panic")
    })?;
    println!(
        "{} transfers, {stills} stills, every one of them balanced; the last at {last}",
        TRANSFERS * TELLERS
    );
    Ok(())
}

/// Moves money between two accounts of this teller's own, so that tellers need no lock between them.
fn transfers(bank: &Database, accounts: &Keyspace, teller: u64) -> Result<()> {
    let mut random = teller + 1;
    let mut account = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % (ACCOUNTS / TELLERS) * TELLERS + teller
    };
    for _ in 0..TRANSFERS {
        let (from, to) = (account(), account());
        let (rich, poor) = (balance(accounts, from)?, balance(accounts, to)?);
        if rich == 0 || from == to {
            continue;
        }
        let mut batch = bank.batch();
        batch.insert(accounts, key(from), (rich - 1).to_le_bytes());
        batch.insert(accounts, key(to), (poor + 1).to_le_bytes());
        batch.commit()?;
    }
    Ok(())
}

/// Counts all money, in one still after the other, until the bank closes.
fn audit(bank: &Database, closing: &AtomicBool) -> Result<(u64, u64)> {
    let mut stills = 0;
    loop {
        let last = closing.load(Ordering::Relaxed);
        let still = bank.snapshot()?;
        let mut sum = 0;
        for account in still.keyspace("accounts")?.range::<&[u8]>(..) {
            sum += amount(&account?.1);
        }
        assert_eq!(sum, ACCOUNTS * EACH, "a still shows whole batches only");
        stills += 1;
        if last {
            return Ok((stills, still.seq().0));
        }
    }
}

fn balance(accounts: &Keyspace, number: u64) -> Result<u64> {
    Ok(accounts.get_with(key(number), amount)?.expect("accounts are never closed"))
}

fn amount(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().expect("eight bytes, as written"))
}

fn key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}
