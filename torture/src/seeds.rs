//! `torture seeds`: what fuzzing begins with: whole files and directories, single blocks and segments, small ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use stillframe::simulation::{
    KeptState, Random, SessionEnd, SimClock, SimDisk, Speaker, TurnOptions,
};
use stillframe::{Compression, Database, Durability, SaveOptions, WriteOptions};

use crate::canonical::blocks;

#[derive(Args)]
pub(crate) struct Options {
    /// The corpus: gets a folder for each target.
    dir: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let (mut count, mut segments) = (0, 0);
    for seed in 0..24 {
        let file = small(seed)?;
        write(&options.dir.join("snapshot"), &format!("file-{seed}"), &file)?;
        for (i, block) in blocks(&file)?.into_iter().enumerate() {
            // Behind the id of its file, as the target wants it.
            let with_id = [&file[16..32], &file[block]].concat();
            write(&options.dir.join("block"), &format!("block-{seed}-{i}"), &with_id)?;
            count += 1;
        }
        let mut operations = vec![0; 40 << (seed % 6)];
        Random::new(seed).fill(&mut operations);
        write(&options.dir.join("model"), &format!("operations-{seed}"), &operations)?;
        let files = directory(seed)?;
        for (i, segment) in files.iter().filter(|file| file.kind == SEGMENT).enumerate() {
            write(&options.dir.join("log"), &format!("segment-{seed}-{i}"), &segment.bytes)?;
            segments += 1;
        }
        let to = options.dir.join("directory");
        write(&to, &format!("files-{seed}"), &as_input(&files))?;
        // One that is odd: operations, and what damages their directory.
        operations[0] = 1;
        write(&to, &format!("operations-{seed}"), &operations)?;
    }
    let talks = talks(&options.dir)?;
    println!(
        "24 files, {count} blocks, 24 directories, {segments} segments, 24 runs of operations, {talks} talks"
    );
    Ok(())
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&path, bytes))
        .with_context(|| format!("write {}", path.display()))
}

/// A file of one to some hundred entries: few or many leaves and blocks, both codecs, large values, expiries.
fn small(seed: u64) -> Result<Vec<u8>> {
    let mut random = Random::new(seed);
    let now_ms = 1_700_000_000_000;
    let builder =
        Database::builder().clock(SimClock::new(now_ms)).leaf_entries(3 + seed as usize % 9);
    let db = builder.in_memory()?;
    for name in ["a", "b", "größe"].into_iter().take(seed as usize % 4) {
        let space = db.keyspace(name)?;
        for i in 0..random.below(1 << (seed % 8)) {
            let value = format!("value {} of {name}", i % 7).repeat(random.below(4) as usize);
            let expire_at = [0, 0, now_ms - 1, now_ms + 1][random.below(4) as usize];
            let key = format!("key {i:03}");
            space.insert_with(key, value, WriteOptions::new().expire_at(expire_at))?;
        }
        if seed % 5 == 4 {
            space.insert("large", [b'x'; 16_385])?;
        }
    }
    let codec = if seed.is_multiple_of(3) { Compression::Lz4 } else { Compression::Raw };
    let options = SaveOptions::default().compression(codec).block_bytes(1 << (4 + seed % 8));
    let mut bytes = Vec::new();
    db.snapshot()?.write_to(&mut bytes, &options)?;
    Ok(bytes)
}

/// Kinds of names in the inputs of the target `directory`.
const SEGMENT: u8 = 0;
const SNAPSHOT: u8 = 1;
const IDENTITY: u8 = 2;

struct File {
    kind: u8,
    ordinal: u8,
    len: u16,
    /// Without the zeros it ends with.
    bytes: Vec<u8>,
}

/// A directory with some segments and snapshots, in half of the cases as a process that was killed leaves it.
fn directory(seed: u64) -> Result<Vec<File>> {
    let mut random = Random::new(seed);
    let disk = SimDisk::new();
    let builder = Database::builder().disk(disk.clone()).manual_log().segment_bytes(4 << 10);
    let builder = builder.keep_snapshots(1 + seed as usize % 3).durability(Durability::Os);
    for _ in 0..1 + seed % 3 {
        let db = builder.clone().open("/db")?;
        let space = db.keyspace("a")?;
        for n in 0..random.below(60) {
            let key = [random.below(30) as u8];
            match random.below(12) {
                0 => drop(space.delete_range(key..[30])?),
                1 => drop(space.remove(key)?),
                2 => {
                    let mut batch = db.batch();
                    batch.durability(Durability::Sync);
                    batch.insert(&space, key, "batch");
                    batch.insert(&db.keyspace("b")?, key, "other");
                    batch.commit()?;
                }
                3 => space.insert_with(key, "late", WriteOptions::new().expire_at(1 << 60))?,
                4 if n % 4 == 0 => db.compact_log(SaveOptions::default()).map(drop)?,
                5 => space.insert(key, vec![n as u8; 1_500])?,
                _ => space.insert(key, n.to_string().repeat(9))?,
            }
        }
        if seed.is_multiple_of(2) {
            db.close()?;
        } else {
            // As it is found while somebody has it open.
            return files(&disk);
        }
    }
    files(&disk)
}

fn files(disk: &SimDisk) -> Result<Vec<File>> {
    let mut files = Vec::new();
    for path in disk.files() {
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        let kind = match path.extension().and_then(|end| end.to_str()) {
            Some("log") => SEGMENT,
            Some("snap") => SNAPSHOT,
            _ if name == "identity" => IDENTITY,
            _ => continue,
        };
        let ordinal = name.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        let mut bytes = disk.contents(&path)?;
        let len = u16::try_from(bytes.len()).context("a small file")?;
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(end);
        files.push(File { kind, ordinal, len, bytes });
    }
    Ok(files)
}

/// The files as fuzz/src/directory.rs reads them.
fn as_input(files: &[File]) -> Vec<u8> {
    let mut input = vec![0];
    for File { kind, ordinal, len, bytes } in files {
        input.extend([*kind, *ordinal]);
        input.extend(len.to_le_bytes());
        // As many at the most as it is long.
        input.extend((bytes.len() as u16).to_le_bytes());
        input.extend(bytes);
    }
    input
}

/// Talks between a replica and its source, and what changes some: inputs of the targets `source` and `replica` (fuzz/src/link.rs).
fn talks(dir: &Path) -> Result<u64> {
    const SIDES: [&str; 2] = ["source", "replica"];
    let mut count = 0;
    for seed in 0..32_u8 {
        let mut random = Random::new(seed.into());
        // With each of the bits, and the lowest two that say: edits.
        let mut edits = vec![2 | seed << 2; 1 + 5 * random.below(6) as usize];
        random.fill(&mut edits[1..]);
        // One of the first messages.
        edits[1..].iter_mut().step_by(5).for_each(|nth| *nth %= 24);
        for side in SIDES {
            write(&dir.join(side), &format!("edits-{seed}"), &edits)?;
            count += 1;
        }
    }
    for seed in 0..6 {
        let talk = talk(seed)?;
        for (side, Said { bytes, messages }) in SIDES.into_iter().zip(talk) {
            // What the replica has may be given up.
            write(&dir.join(side), &format!("bytes-{seed}"), &[&[16][..], &bytes].concat())?;
            for how in [1 + 16, 1 + 16 + 8] {
                let mut input = vec![how];
                for (kind, payload) in messages.iter().filter(|(_, payload)| payload.len() < 9_000)
                {
                    // Each waits for what the other has to say.
                    input.extend([*kind, 2]);
                    input.extend((payload.len() as u16).to_le_bytes());
                    input.extend(payload);
                }
                write(&dir.join(side), &format!("messages-{seed}-{how}"), &input)?;
            }
            count += 3;
        }
    }
    Ok(count)
}

/// What one side has said.
#[derive(Default)]
struct Said {
    bytes: Vec<u8>,
    messages: Vec<(u8, Vec<u8>)>,
}

/// What a replica and its source say, the replica first, until it has all.
fn talk(seed: u64) -> Result<[Said; 2]> {
    let clock = SimClock::new(1_000);
    let builder = Database::builder().clock(clock).leaf_entries(4).manual_reclaim();
    let (db, copy) = (builder.clone().in_memory()?, builder.in_memory()?);
    let space = db.keyspace("a")?;
    for n in 0..4 + 7 * seed {
        space.insert([n as u8], [n as u8; 9])?;
    }
    let options = TurnOptions { key: None, beat_ms: 1_000, timeout_ms: 10_000, nonce: [7; 32] };
    let mut said = [Said::default(), Said::default()];
    for _ in 0..2 {
        copy.begin_following()?;
        let mut source = SessionEnd::source(&db, &options, 1_000)?.block_bytes(100);
        let mut replica = SessionEnd::replica(&copy, &options, KeptState::default(), 1_000);
        // Who listens to both.
        let mut ears = [Speaker::server(&options), Speaker::client(&options)];
        said.iter_mut().for_each(|said| said.bytes.clear());
        for _ in 0..40 {
            let mut out = Vec::new();
            let mut turn = |end: &mut SessionEnd, to: &mut SessionEnd, at: usize| -> Result<()> {
                end.fill(1_000, &mut out).map_err(|e| anyhow::anyhow!("{e:?}"))?;
                let heard = ears[at].receive(&out, &mut Vec::new()).map_err(anyhow::Error::msg)?;
                said[at].messages.extend(heard);
                said[at].bytes.extend(&out);
                let mut answer = Vec::new();
                let took = to.receive(&out, 1_000, &mut answer);
                took.map_err(|e| anyhow::anyhow!("{e:?}"))?;
                out.clear();
                if !answer.is_empty() {
                    let other = 1 - at;
                    let heard = ears[other].receive(&answer, &mut Vec::new());
                    said[other].messages.extend(heard.map_err(anyhow::Error::msg)?);
                    said[other].bytes.extend(&answer);
                    end.receive(&answer, 1_000, &mut out).map_err(|e| anyhow::anyhow!("{e:?}"))?;
                    out.clear();
                }
                Ok(())
            };
            turn(&mut replica, &mut source, 0)?;
            turn(&mut source, &mut replica, 1)?;
        }
        anyhow::ensure!(copy.position() == db.position(), "the replica has all");
        // The second time it has missed some records.
        space.insert("late", "later")?;
    }
    Ok(said)
}
