//! The first ten minutes: write, read, take a still, save it, read the file in place and loaded.
//!
//! `cargo run --example quickstart`

use std::env;
use std::fs;

use stillframe::{Database, Result, SaveOptions, SnapshotFile};

fn main() -> Result<()> {
    // A database lives in memory; a keyspace is an ordered map of bytes to bytes in it.
    let database = Database::in_memory();
    let users = database.keyspace("users")?;
    users.insert("ada", "London")?;
    users.insert("grace", "New York")?;
    users.insert("hedy", "Vienna")?;

    // Reads from any thread, in key order.
    for entry in users.range("a".."h") {
        let (name, city) = entry?;
        println!("{} lives in {}", name.escape_ascii(), city.escape_ascii());
    }

    // A batch takes effect at once, everywhere or nowhere.
    let moves = database.keyspace("moves")?;
    let mut batch = database.batch();
    batch.insert(&users, "hedy", "Hollywood");
    batch.insert(&moves, "hedy", "Vienna to Hollywood");
    batch.commit()?;

    // A still is the whole database at one moment, and stays what it is.
    let still = database.snapshot()?;
    users.remove("ada")?;
    assert_eq!(users.get("ada")?, None);
    assert_eq!(still.keyspace("users")?.get("ada")?.as_deref(), Some(&b"London"[..]));

    // A still goes to disk as one checksummed file; writers go on meanwhile.
    let path = env::temp_dir().join(format!("quickstart-{}.still", std::process::id()));
    let report = still.save(&path, SaveOptions::default())?.wait()?;
    println!("saved {} bytes", report.file_bytes);

    // The file is read in place, without loading it …
    let file = SnapshotFile::open(&path)?;
    assert_eq!(file.keyspace("users")?.get("hedy")?.as_deref(), Some(&b"Hollywood"[..]));

    // … or becomes a database again, exactly as it was at the cut.
    let loaded = Database::load(&path)?;
    assert_eq!(loaded.snapshot()?.fingerprint(), still.fingerprint());
    assert_eq!(loaded.keyspace("users")?.len()?, 3);

    let _ = fs::remove_file(&path);
    Ok(())
}
