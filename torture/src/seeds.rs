//! `torture seeds`: what fuzzing begins with: whole files and single blocks, small ones.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use stillframe::simulation::{Random, SimClock};
use stillframe::{Compression, Database, SaveOptions, WriteOptions};

use crate::canonical::blocks;

#[derive(Args)]
pub(crate) struct Options {
    /// The corpus: gets a folder for each target.
    dir: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut count = 0;
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
    }
    println!("24 files, {count} blocks, 24 runs of operations");
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
