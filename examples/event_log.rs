//! A log of events, and a reader that counts each of them once, across restarts of both.
//!
//! Events are entries under big-endian numbers, so they are in order. The reader subscribes to them and keeps its sum
//! in a database of its own: the sum and the position of the batch that it includes are written as one batch. A crash
//! of the reader leaves it behind some event, and the next run subscribes after exactly that one. With `after_durable`
//! it is shown nothing that a power cut takes back. Two errors say that there is no going on: `Lagged`, the log does
//! not go back so far, and `Rewound`, the position is not on this line, as after a restored backup. Either way
//! `snapshot_and_subscribe` gives a state to begin with and all that follows it.
//!
//! `cargo run --example event_log`

use std::env;
use std::fs;
use std::path::Path;

use stillframe::{
    Database, Durability, Error, HistoryId, Position, Result, SaveOptions, Seq, SubscribeOptions,
    Subscription,
};

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let directory = env::temp_dir().join(format!("event-log-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let (home, backup) = (directory.join("events"), directory.join("events.still"));
    let reader = directory.join("reader");

    let events = Database::builder().durability(Durability::Sync).open(&home)?;
    append(&events, &[1, 2, 3])?;
    assert_eq!(run_reader(&events, &reader)?, ("began with a state", 6));
    events.save(&backup, SaveOptions::default())?.wait()?;

    // Both are started again; the reader goes on where it was.
    events.close()?;
    let events = Database::builder().durability(Durability::Sync).open(&home)?;
    append(&events, &[4, 5])?;
    assert_eq!(run_reader(&events, &reader)?, ("went on", 15));
    assert_eq!(run_reader(&events, &reader)?, ("went on", 15));

    // While it is away a snapshot takes the place of the log that it would read: of whole segments, and each run
    // begins one of its own.
    append(&events, &[6])?;
    events.close()?;
    let events = Database::builder().durability(Durability::Sync).open(&home)?;
    append(&events, &[7])?;
    events.compact_log(SaveOptions::default())?;
    assert_eq!(run_reader(&events, &reader)?, ("had lagged", 28));
    events.close()?;

    // The disk is lost. The backup has three events; the fourth is another one now.
    let events = Database::load(&backup)?;
    append(&events, &[100])?;
    assert_eq!(run_reader(&events, &reader)?, ("was rewound", 106));

    fs::remove_dir_all(&directory)?;
    Ok(())
}

/// Appends events, each under the number after the last.
fn append(events: &Database, amounts: &[u64]) -> Result<()> {
    let log = events.keyspace("log")?;
    amounts.iter().try_for_each(|amount| {
        events.transact(|tx| {
            let last = tx.last(&log)?.map_or(0, |(key, _)| number(&key));
            tx.insert(&log, (last + 1).to_be_bytes(), amount.to_be_bytes())
        })
    })
}

/// One run of the reader, until it has all there is. Returns how it began and the sum of all events.
fn run_reader(events: &Database, home: &Path) -> Result<(&'static str, u64)> {
    let own = Database::open(home)?;
    let state = own.keyspace("state")?;
    let stored = state.get_with("position", decode)?;
    let resumed = stored.map(|position| events.subscribe(wanted().after(position)));
    let (began, mut changes) = match resumed {
        Some(Err(Error::Lagged { .. })) => ("had lagged", begin_anew(events, &own)?),
        Some(Err(Error::Rewound { .. })) => ("was rewound", begin_anew(events, &own)?),
        Some(resumed) => ("went on", resumed?),
        None => ("began with a state", begin_anew(events, &own)?),
    };
    let mut sum = state.get_with("sum", number)?.unwrap_or(0);
    // A service waits, with `recv`, and may meet the same two errors there.
    while let Some(batch) = changes.try_recv()? {
        sum += batch.changes.iter().filter_map(|it| it.value()).map(|it| number(it)).sum::<u64>();
        store(&own, batch.position, sum)?;
    }
    println!("the reader {began} and is at {} with the sum {sum}", changes.received());
    own.close()?;
    Ok((began, sum))
}

fn wanted() -> SubscribeOptions {
    SubscribeOptions::new().keyspace("log").after_durable(true)
}

/// Adds up what the log holds now; what comes later the subscription shows.
fn begin_anew(events: &Database, own: &Database) -> Result<Subscription> {
    let (still, changes) = events.snapshot_and_subscribe(wanted())?;
    let mut sum = 0;
    for event in still.keyspace("log")?.prefix("") {
        sum += number(&event?.1);
    }
    store(own, still.position(), sum)?;
    Ok(changes)
}

/// The sum and where it was reached, as one batch.
fn store(own: &Database, Position { history, seq }: Position, sum: u64) -> Result<()> {
    let (state, mut batch) = (own.keyspace("state")?, own.batch());
    batch.insert(&state, "position", [&history.0[..], &seq.0.to_be_bytes()].concat());
    batch.insert(&state, "sum", sum.to_be_bytes());
    batch.commit().map(drop)
}

fn decode(position: &[u8]) -> Position {
    let (history, seq) = position.split_at(16);
    let history = HistoryId(history.try_into().expect("a history has sixteen bytes"));
    Position { history, seq: Seq(number(seq)) }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("numbers have eight bytes"))
}
