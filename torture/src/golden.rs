//! `torture golden`: writes the golden files of the present version of the format, once.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use stillframe::simulation::SimClock;
use stillframe::{Database, SaveOptions, WriteOptions};

#[path = "../../tests/golden/content.rs"]
mod content;

#[derive(Args)]
pub(crate) struct Options {
    /// Where to; a file that is there already is never written again.
    dir: PathBuf,
}

pub(crate) fn run(options: &Options) -> Result<()> {
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
