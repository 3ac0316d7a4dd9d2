//! A second copy that takes over when the first goes away.
//!
//! `serve_replicas` and `follow` keep a standby up to date, here over loopback TCP. `Primary::wait` returns once the
//! standby has a write on its disk: from then on it outlives the loss of the primary. `promote` makes the standby the
//! primary. The old one comes back as its replica. What it had written and nobody else had is saved aside in its
//! directory and given up, so that both hold the same again. A crash on either side leaves a directory that opens to
//! what was committed there, and the same steps go on from it.
//!
//! `cargo run --example warm_standby`

use std::env;
use std::error::Error;
use std::fs;
use std::time::Duration;

use stillframe::{
    AckLevel, Database, Durability, Error as StoreError, LinkKey, PrimaryOptions, ReplicaSource,
    Role,
};

/// Nothing here takes as long as this.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn Error>> {
    let directory = env::temp_dir().join(format!("warm-standby-{}", std::process::id()));
    let (home_a, home_b) = (directory.join("a"), directory.join("b"));
    fs::create_dir_all(&directory)?;
    // Both sides prove to each other that they have this key. A real one comes from a random generator.
    let key = LinkKey::new([7; 32]);

    // The primary: port 0 lets the system choose.
    let a = Database::builder().durability(Durability::Os).open(&home_a)?;
    let primary = a.serve_replicas(PrimaryOptions::new().key(key.clone()))?;
    let address = primary.listen_tcp("127.0.0.1:0")?;

    // The standby follows as soon as it is open.
    let source = ReplicaSource::tcp(address.to_string()).key(key.clone()).name("standby");
    let b = Database::builder().follow(source).open(&home_b)?;

    // A write that must not be lost is waited for: it is on the standby's disk when this returns.
    let orders = a.keyspace("orders")?;
    orders.insert("1001", "three reels of film")?;
    let acked = primary.wait(a.position(), 1, AckLevel::Durable, PATIENCE)?;
    println!("order 1001 is on {acked} standby, which is at {}", b.position());
    assert_eq!(b.keyspace("orders")?.get("1001")?.as_deref(), Some(&b"three reels of film"[..]));
    // The standby answers reads and takes no writes.
    let refused = b.keyspace("orders")?.insert("1002", "a projector");
    assert!(matches!(refused, Err(StoreError::ReadOnly)));

    // The primary is cut off, writes once more without waiting for anybody, and is gone.
    primary.shutdown();
    orders.insert("1003", "a lens")?;
    let alone = primary.wait(a.position(), 1, AckLevel::Durable, Duration::from_millis(10));
    assert!(matches!(alone, Err(StoreError::NotAcked { acked: 0, .. })));
    a.close()?;
    drop((orders, primary, a));

    // Somebody, a person or a program, decides that the standby takes over.
    b.promote()?;
    assert_eq!(b.role(), Role::Primary);
    let orders = b.keyspace("orders")?;
    orders.insert("1002", "a projector")?;
    println!("the standby has taken over, and order 1002");

    // The old primary comes back. It must not write before it follows: so it follows as it is opened.
    let primary = b.serve_replicas(PrimaryOptions::new().key(key.clone()))?;
    let address = primary.listen_tcp("127.0.0.1:0")?;
    let source = ReplicaSource::tcp(address.to_string()).key(key).name("the old primary");
    let a = Database::builder().follow(source).open(&home_a)?;
    let replica = a.replica().ok_or("it follows")?;
    replica.wait_for(b.position(), PATIENCE)?;
    assert_eq!(a.role(), Role::Replica);
    assert_eq!(a.snapshot()?.fingerprint(), b.snapshot()?.fingerprint());

    // Order 1003 was acknowledged by nobody. It is not in the data any more, but in a file of its own.
    assert_eq!(replica.status().counts.rewind, 1);
    assert!(!a.keyspace("orders")?.contains_key("1003")?);
    let saved = fs::read_dir(home_a.join("aside"))?.next().ok_or("something was saved aside")??;
    let aside = Database::load(saved.path())?;
    assert!(aside.keyspace("orders")?.contains_key("1003")?);
    println!("the old primary follows; what only it had is saved aside");

    a.close()?;
    b.close()?;
    fs::remove_dir_all(&directory)?;
    Ok(())
}
