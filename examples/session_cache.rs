//! Sessions that end when nobody uses them, and that outlive a restart of the process.
//!
//! A session is written with a time to live, and `touch` gives it another at each use. Once its time is past, reads
//! hide it at once; a thread of the database removes it soon after. `persist_key` keeps one for good. The time is kept
//! with the entry, on the disk as well, so a restart prolongs nothing. A crash leaves every session whose write has
//! returned: `Durability::Os` waits for the operating system, not for the disk.
//!
//! `cargo run --example session_cache`

use std::env;
use std::error::Error;
use std::fs;
use std::thread;
use std::time::Duration;

use stillframe::{
    Cause, Database, Durability, Keyspace, Result, Slice, SubscribeOptions, WriteOptions,
};

/// How long a session lasts without being used.
const IDLE: Duration = Duration::from_secs(1800);

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let directory = env::temp_dir().join(format!("session-cache-{}", std::process::id()));
    let database = Database::builder().durability(Durability::Os).open(&directory)?;
    let sessions = database.keyspace("sessions")?;
    let mut changes = database.subscribe(SubscribeOptions::new().keyspace("sessions"))?;

    // Three log in; the first will not be seen again.
    log_in(&sessions, "s1", "ada", Duration::from_millis(50))?;
    log_in(&sessions, "s2", "grace", Duration::from_secs(60))?;
    log_in(&sessions, "s3", "hedy", Duration::from_secs(60))?;
    // To use a session prolongs it.
    let before = sessions.expires_at("s2")?;
    assert_eq!(user_of(&sessions, "s2")?.as_deref(), Some(&b"grace"[..]));
    assert!(sessions.expires_at("s2")? > before);
    // "Remember me": this one has no time any more.
    assert!(sessions.persist_key("s3")?);
    assert_eq!(sessions.expires_at("s3")?, None);

    // What is past is hidden, whether it was removed yet or not.
    sessions.insert_with("s4", "lise", WriteOptions::new().expire_at(1))?;
    assert_eq!(user_of(&sessions, "s4")?, None);

    // The thread that removes what is past does so by batches like any other, which a subscriber sees.
    let mut gone = Vec::new();
    while gone.len() < 2 {
        let batch = changes.recv_timeout(Duration::from_secs(10))?.ok_or("nothing was removed")?;
        for change in batch.changes.iter().filter(|change| change.cause == Cause::Expiry) {
            gone.extend(change.key().map(|key| key.escape_ascii().to_string()));
        }
    }
    println!("removed by itself: {}", gone.join(", "));
    gone.sort_unstable();
    assert_eq!(gone, ["s1", "s4"]);
    assert_eq!(user_of(&sessions, "s1")?, None);
    assert_eq!(sessions.len()?, 2);
    // The figure follows a moment after the batch.
    while database.stats().expired < 2 {
        thread::yield_now();
    }
    assert_eq!(database.stats().expired, 2);

    // After a restart a session ends when it would have ended without.
    let ends = sessions.expires_at("s2")?;
    database.close()?;
    let database = Database::open(&directory)?;
    let sessions = database.keyspace("sessions")?;
    assert_eq!(sessions.expires_at("s2")?, ends);
    for entry in sessions.prefix("") {
        let (id, user) = entry?;
        println!("{} of {} is still there", id.escape_ascii(), user.escape_ascii());
    }
    assert_eq!(user_of(&sessions, "s1")?, None);
    assert!(user_of(&sessions, "s2")?.is_some());
    assert!(sessions.contains_key("s3")? && sessions.expires_at("s3")?.is_none());

    database.close()?;
    fs::remove_dir_all(&directory)?;
    Ok(())
}

fn log_in(sessions: &Keyspace, id: &str, user: &str, ttl: Duration) -> Result<()> {
    sessions.insert_with(id, user, WriteOptions::new().ttl(ttl))
}

/// Whose session this is, if it goes on; it then lasts for another while.
fn user_of(sessions: &Keyspace, id: &str) -> Result<Option<Slice>> {
    // Only what has a time gets another: who is to be remembered is not forgotten for being here.
    if sessions.expires_at(id)?.is_some() && !sessions.touch(id, IDLE)? {
        return Ok(None);
    }
    sessions.get(id)
}
