//! Questions asked of yesterday's file, without loading it and without the database that wrote it.
//!
//! `Database::save` writes a snapshot file, and `SnapshotFile::open` reads it in place: opening takes milliseconds at
//! any size, and a read proves by checksums just the blocks that it needs. So a report can be made by another process,
//! on another machine, from a file larger than its memory. `verify` proves the whole file at once. A crash while
//! saving leaves the file of before under the name, or the new one, never half of either.
//!
//! `cargo run --release --example analytics`

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::ops::ControlFlow;

use stillframe::{Database, SaveOptions, SnapshotFile};

const DAYS: u32 = 30;
const SALES_A_DAY: u32 = 500;

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::temp_dir().join(format!("analytics-{}.still", std::process::id()));

    // The shop: sales under (day, number), both big-endian, so that those of a day lie side by side.
    let shop = Database::in_memory();
    let (sales, products) = (shop.keyspace("sales")?, shop.keyspace("products")?);
    for (number, name) in ["film", "lens", "tripod"].iter().enumerate() {
        products.insert([u8::try_from(number)?], name)?;
    }
    for day in 0..DAYS {
        for number in 0..SALES_A_DAY {
            sales.insert(key(day, number), sale(day, number))?;
        }
    }
    let report = shop.save(&path, SaveOptions::default())?.wait()?;
    println!("saved {} entries in {} bytes", report.entries, report.file_bytes);
    // The shop goes on; the file does not change.
    sales.clear()?;
    drop((sales, products, shop));

    // The analyst: opening reads the two ends of the file and no more. Reading the root is the way to every block.
    let file = SnapshotFile::open(&path)?;
    let info = file.info();
    println!(
        "the file is of {}, {} raw bytes in {} blocks",
        info.position, info.raw_bytes, info.blocks
    );
    assert_eq!(file.keyspaces()?, ["products", "sales"]);
    let (sales, products) = (file.keyspace("sales")?, file.keyspace("products")?);
    assert_eq!(sales.len()?, u64::from(DAYS * SALES_A_DAY));

    // A few gets: each reads one block.
    let first = sales.get(key(0, 0))?.ok_or("the first sale is there")?;
    assert_eq!(first, sale(0, 0));
    assert_eq!(sales.get(key(DAYS, 0))?, None);

    // One day: the blocks of that day are read, and no others.
    let mut day_7 = 0;
    for entry in sales.prefix(7_u32.to_be_bytes()) {
        day_7 += price(&entry?.1);
    }
    println!("day 7 made {day_7}");

    // Everything, by product. `scan_with` copies nothing that it shows.
    let mut by_product = BTreeMap::new();
    let mut by_day = BTreeMap::new();
    sales.scan_with::<&[u8]>(.., |key, value| {
        *by_product.entry(value[0]).or_insert(0) += price(value);
        *by_day.entry(key[..4].to_vec()).or_insert(0) += price(value);
        ControlFlow::Continue(())
    })?;
    for (product, made) in &by_product {
        let name = products.get([*product])?.ok_or("every product has a name")?;
        println!("{} made {made}", name.escape_ascii());
    }
    assert_eq!(by_day.get(&7_u32.to_be_bytes()[..]), Some(&day_7));
    assert_eq!(by_product.values().sum::<u64>(), by_day.values().sum::<u64>());

    // The last sale, from the end of the file.
    let last = sales.range::<&[u8]>(..).next_back().ok_or("there are sales")??;
    assert_eq!(last.0, key(DAYS - 1, SALES_A_DAY - 1));

    // Before the file goes to the archive: all of it is read and proven.
    let verified = file.verify()?;
    assert_eq!((verified.keyspaces, verified.fingerprint), (2, report.fingerprint));
    println!("all {} entries are as they were written", verified.entries);

    fs::remove_file(&path)?;
    Ok(())
}

fn key(day: u32, number: u32) -> [u8; 8] {
    (u64::from(day) << 32 | u64::from(number)).to_be_bytes()
}

/// The product, one byte, then the price.
fn sale(day: u32, number: u32) -> Vec<u8> {
    let product = (day + number) % 3;
    let price = u64::from(10 + product * 90 + number % 7);
    [&product.to_be_bytes()[3..], &price.to_le_bytes()].concat()
}

fn price(sale: &[u8]) -> u64 {
    u64::from_le_bytes(sale[1..].try_into().expect("a sale has nine bytes"))
}
