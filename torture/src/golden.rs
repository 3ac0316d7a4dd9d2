//! `torture golden`: writes the golden files of the present version of the format, once.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use stillframe::simulation::{KeptState, SessionEnd, SimClock, seed_thread};
use stillframe::{Database, Durability, SaveOptions, WriteOptions};

#[path = "../../tests/golden/content.rs"]
mod content;
#[path = "../../tests/golden/directories.rs"]
mod directories;

#[derive(Args)]
pub(crate) struct Options {
    /// Where to; a file that is there already is never written again.
    dir: PathBuf,
    /// Directories and a session of replicas, not snapshot files.
    #[arg(long)]
    replicas: bool,
    /// A directory whose log tells of entries that have expired, not snapshot files.
    #[arg(long)]
    expired: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.replicas {
        return replicas(&options.dir);
    }
    if options.expired {
        return expired(&options.dir.join("expired"));
    }
    for golden in content::v1() {
        let path = options.dir.join(format!("{}.still", golden.name));
        let clock = SimClock::new(content::TIME_MS);
        let db = Database::builder().clock(clock).in_memory()?;
        for space in &golden.keyspaces {
            let keyspace = db.keyspace(space.name)?;
            for (key, value, expire_at) in &space.entries {
                keyspace.insert_with(key, value, WriteOptions::new().expire_at(*expire_at))?;
            }
        }
        let mut bytes = Vec::new();
        let save = SaveOptions::default().compression(golden.compression);
        let report = db.snapshot()?.write_to(&mut bytes, &save)?;
        let told = || format!("write {}", path.display());
        let mut file = File::create_new(&path).with_context(told)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).with_context(told)?;
        println!(
            "{}: {} bytes, fingerprint {:#018x}",
            path.display(),
            bytes.len(),
            report.fingerprint
        );
    }
    Ok(())
}

fn expired(dir: &Path) -> Result<()> {
    std::fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))?;
    let clock = SimClock::new(directories::TIME_MS);
    seed_thread(Some(22));
    let builder = Database::builder().clock(clock.clone()).manual_log().manual_reclaim();
    let builder = builder.segment_bytes(16 << 10).save_when_log_exceeds(None);
    let db = builder.durability(Durability::Os).open(dir)?;
    directories::write_expired(&db, &clock)?;
    db.persist(Durability::Sync)?;
    println!("{}: {:?}, {:#018x}", dir.display(), db.position(), db.snapshot()?.fingerprint());
    db.close()?;
    seed_thread(None);
    Ok(())
}

/// A directory whose log [`directories::RUNS`] runs wrote, one that has part of its state, one that is fenced; and what two sides of a session
/// said.
fn replicas(dir: &Path) -> Result<()> {
    let clock = SimClock::new(directories::TIME_MS);
    let builder = || {
        let builder = Database::builder().clock(clock.clone()).manual_log().manual_reclaim();
        builder.segment_bytes(64 << 10).save_when_log_exceeds(None).durability(Durability::Os)
    };
    seed_thread(Some(20));
    let place = |name: &str| -> Result<PathBuf> {
        let place = dir.join(name);
        std::fs::create_dir(&place).with_context(|| format!("make {}", place.display()))?;
        Ok(place)
    };
    let log = place("log")?;
    for run in 0..directories::RUNS {
        let db = builder().open(&log)?;
        directories::write_run(&db, run)?;
        if run == 0 {
            db.compact_log(SaveOptions::default().threads(1))?;
        }
        db.persist(Durability::Sync)?;
        db.close()?;
    }
    let source = builder().open(&log)?;
    let position = source.position();
    println!("{}: {position:?}, {:#018x}", log.display(), source.snapshot()?.fingerprint());
    // Part of the state, and then nothing more.
    let part = builder().open(place("part")?)?;
    part.begin_following()?;
    let mut said = directories::Said::new();
    talk(&source, &part, 60_000, &mut Vec::new())?;
    part.close()?;
    // All of it, and what is written then.
    let whole = builder().in_memory()?;
    whole.begin_following()?;
    // The first that is drawn is the id of the file that blocks are made for.
    seed_thread(Some(directories::SESSION_SEED));
    talk(&source, &whole, usize::MAX, &mut said)?;
    ensure!(whole.position() == position, "the replica is at {}", whole.position());
    let path = dir.join("session");
    File::create_new(&path)?.write_all(&encode(&said))?;
    // It takes no more writes, once it has met a higher term.
    let fenced = builder().open(place("fenced")?)?;
    directories::write_run(&fenced, 0)?;
    let other = builder().in_memory()?;
    other.begin_following()?;
    talk(&fenced, &other, usize::MAX, &mut Vec::new())?;
    other.promote()?;
    other.begin_following()?;
    talk(&fenced, &other, usize::MAX, &mut Vec::new())?;
    fenced.close()?;
    seed_thread(None);
    Ok(())
}

/// A session, until nobody says anything any more or so many bytes were said.
fn talk(
    source: &Database,
    replica: &Database,
    most: usize,
    said: &mut directories::Said,
) -> Result<()> {
    let options = directories::turn_options();
    let mut ends = [
        SessionEnd::replica(replica, &options, KeptState::default(), 0),
        SessionEnd::source(source, &options, 0)?.block_bytes(8 << 10),
    ];
    let (mut bytes, mut is_quiet) = (0, false);
    let mut said_by = [Vec::new(), Vec::new()];
    while !is_quiet && bytes < most {
        is_quiet = true;
        for side in [0, 1] {
            let mut ended = ends[side].fill(0, &mut said_by[side]).is_err();
            let mut words = std::mem::take(&mut said_by[side]);
            if !words.is_empty() {
                is_quiet = false;
                words.truncate(most - bytes.min(most));
                bytes += words.len();
                said.push((side == 1, words.clone()));
                ended |= ends[1 - side].receive(&words, 0, &mut said_by[1 - side]).is_err();
            }
            if ended {
                return Ok(());
            }
        }
    }
    let [replica, _] = ends;
    drop(replica.into_kept());
    Ok(())
}

/// One byte for the side, four for the length, little-endian, then what it said.
fn encode(said: &directories::Said) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (is_source, words) in said {
        bytes.push(u8::from(*is_source));
        bytes.extend_from_slice(&u32::try_from(words.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(words);
    }
    bytes
}
