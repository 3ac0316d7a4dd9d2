//! A backup that goes to another machine as it is made, and needs no disk on this one.
//!
//! `Snapshot::write_to` takes anything that implements `Write`: a pipe, a socket, a compressor, or a wrapper that
//! counts. `Builder::load_from` makes a database of the bytes as they come. Writers go on meanwhile, and the copy is of
//! the one moment of the snapshot. A crash on the way leaves the receiver with an error: a stream that ends early is
//! never taken for a backup.
//!
//! `cargo run --release --example backup_to_writer`

use std::error::Error;
use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use stillframe::{Database, Error as StoreError, Keyspace, Result, SaveOptions};

const ENTRIES: u32 = 50_000;

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let database = Database::in_memory();
    let parts = database.keyspace("parts")?;
    for number in 0..ENTRIES {
        parts.insert(number.to_be_bytes(), format!("part {number}, new"))?;
    }

    // The other machine: it takes one connection and loads what comes.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let receiver = thread::spawn(move || -> io::Result<Result<Database>> {
        let (stream, _) = listener.accept()?;
        Ok(Database::builder().load_from(stream))
    });

    let stop = AtomicBool::new(false);
    let (still, report, counted, writes) = thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&parts, &stop));
        let sent = (|| {
            let still = database.snapshot()?;
            let inner = TcpStream::connect(address)?;
            let mut out = Counted { inner, bytes: 0, hash: 0xcbf2_9ce4_8422_2325 };
            let report = still.write_to(&mut out, &SaveOptions::default())?;
            // The receiver reads to the end of the stream.
            out.inner.shutdown(Shutdown::Write)?;
            Ok::<_, Box<dyn Error>>((still, report, out))
        })();
        stop.store(true, Ordering::Relaxed); // Relaxed: the flag carries no data
        let writes = writer.join().expect("the writer does not panic")?;
        let (still, report, counted) = sent?;
        Ok::<_, Box<dyn Error>>((still, report, counted, writes))
    })?;
    println!(
        "sent {} bytes, checksum {:016x}, beside {writes} writes",
        counted.bytes, counted.hash
    );
    assert_eq!(counted.bytes, report.file_bytes);

    // What arrived is what the snapshot holds, whatever was written since.
    let copy = receiver.join().expect("the receiver does not panic")??;
    assert_eq!(copy.snapshot()?.fingerprint(), still.fingerprint());
    assert_eq!(copy.position(), still.position());
    assert_eq!(copy.keyspace("parts")?.len()?, u64::from(ENTRIES));
    println!("the copy is at {}, fingerprint {:016x}", copy.position(), still.fingerprint());

    // A backup that was cut short is refused, and so is one with a changed byte.
    let mut bytes = Vec::new();
    still.write_to(&mut bytes, &SaveOptions::default())?;
    let short = Database::builder().load_from(&bytes[..bytes.len() - 1]);
    assert!(matches!(short, Err(StoreError::Corrupt { .. })));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let error = Database::builder().load_from(&bytes[..]).expect_err("one byte has changed");
    println!("a changed byte is found: {error}");
    Ok(())
}

/// Hands bytes on, and counts and sums up those that were taken.
struct Counted<W> {
    inner: W,
    bytes: u64,
    /// FNV-1a: enough to compare two logs of transfers, not against somebody who means harm.
    hash: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Less may be taken than was offered: the rest comes again.
        let taken = self.inner.write(bytes)?;
        self.bytes += taken as u64;
        let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        self.hash = bytes[..taken].iter().fold(self.hash, add);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Changes one part after the other, over and over.
fn write_until(parts: &Keyspace, stop: &AtomicBool) -> Result<u64> {
    let mut writes = 0;
    for number in (0..ENTRIES).cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        parts.insert(number.to_be_bytes(), format!("part {number}, changed"))?;
        writes += 1;
    }
    Ok(writes)
}
