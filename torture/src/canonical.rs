//! The file that is damaged: small, and with everything in it that a snapshot file can hold.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use stillframe::simulation::{Random, SimClock};
use stillframe::{Builder, Compression, Database, SaveOptions, WriteOptions};

/// The time of the cut.
const NOW_MS: u64 = 1_700_000_000_000;
/// The last seconds before it, and after.
const PAST: u64 = NOW_MS - 1_000;
const FUTURE: u64 = NOW_MS + 1_000_000;

/// Length of the header and of the footer, and where a frame holds the length of what follows it (FORMAT.md, sections
/// 4, 5 and 8).
const HEADER_LEN: usize = 96;
const FOOTER_LEN: usize = 160;
const FRAME_LEN: usize = 32;
const STORED_LEN_AT: usize = 8;

/// What the file holds, by keyspace: key, value, expiry.
pub(crate) type Content = BTreeMap<String, BTreeMap<Vec<u8>, (Vec<u8>, u64)>>;

/// Options for whoever reads or writes these files: the clock stands at the time of the cut.
pub(crate) fn builder() -> Builder {
    Database::builder().clock(SimClock::new(NOW_MS)).leaf_entries(8).manual_reclaim()
}

/// Whether an entry with this expiry is shown.
pub(crate) fn is_alive(expire_at: u64) -> bool {
    expire_at == 0 || expire_at > NOW_MS
}

/// Three keyspaces: JSON records; keys that begin alike, with expiries behind and ahead of the cut, an empty key, an
/// empty value and a long key; and values that lie in chunk blocks of their own.
///
/// Such that the file has about 64 KiB, compressed or not.
pub(crate) fn content(codec: Compression) -> Content {
    let mut random = Random::new(2026);
    let (records, large) = match codec {
        // The first of these spans two chunks.
        Compression::Lz4 => (142, [66_000, 16_385]),
        _ => (105, [16_500, 16_385]),
    };
    let mut accounts = BTreeMap::new();
    for i in 0..records {
        let mut text =
            |len| -> String { (0..len).map(|_| char::from(b'a' + letter(&mut random))).collect() };
        let value = format!(
            "{{\"id\":{i},\"name\":\"{}\",\"note\":\"{}\",\"active\":{}}}",
            text(12),
            text(160),
            random.one_in(2),
        );
        accounts.insert(format!("account:{i:08}").into_bytes(), (value.into_bytes(), 0));
    }
    let mut sessions = BTreeMap::new();
    for i in 0..40_u64 {
        let mut key = b"session/".to_vec();
        key.extend_from_slice(&random.next_u64().to_be_bytes());
        let expire_at = [0, PAST, FUTURE + i][random.below(3) as usize];
        sessions.insert(key, (format!("user {}", random.below(900)).into_bytes(), expire_at));
    }
    sessions.insert(Vec::new(), (b"the empty key".to_vec(), 0));
    sessions.insert(b"empty".to_vec(), (Vec::new(), FUTURE));
    sessions.insert(vec![b'k'; 700], (b"a long key".to_vec(), 0));
    let mut blobs = BTreeMap::new();
    for (i, len) in large.into_iter().enumerate() {
        // Words in random order: half of it compresses away.
        let mut value = Vec::with_capacity(len + 8);
        while value.len() < len {
            let words = ["still ", "frame ", "leaf ", "fence ", "cut ", "block "];
            value.extend_from_slice(words[random.below(6) as usize].as_bytes());
        }
        value.truncate(len);
        blobs.insert(format!("blob {i}").into_bytes(), (value, if i == 0 { FUTURE } else { 0 }));
    }
    BTreeMap::from([
        ("accounts".into(), accounts),
        ("blobs".into(), blobs),
        ("größe".into(), sessions),
    ])
}

#[expect(clippy::cast_possible_truncation, reason = "below 26")]
fn letter(random: &mut Random) -> u8 {
    random.below(26) as u8
}

/// Saves `content`; each time with another file id.
pub(crate) fn file(content: &Content, codec: Compression) -> Result<Vec<u8>> {
    let db = builder().in_memory()?;
    for (name, entries) in content {
        let space = db.keyspace(name)?;
        for (key, (value, expire_at)) in entries {
            space.insert_with(key, value, WriteOptions::new().expire_at(*expire_at))?;
        }
    }
    let block_bytes = match codec {
        Compression::Lz4 => 6 << 10,
        _ => 2 << 10,
    };
    let options = SaveOptions::default().compression(codec).block_bytes(block_bytes).threads(1);
    let mut bytes = Vec::new();
    db.snapshot()?.write_to(&mut bytes, &options)?;
    Ok(bytes)
}

/// Where the blocks of a whole file lie.
pub(crate) fn blocks(file: &[u8]) -> Result<Vec<Range<usize>>> {
    let mut blocks = Vec::new();
    let end = file.len().checked_sub(FOOTER_LEN).context("no room for a footer")?;
    let mut at = HEADER_LEN;
    while at < end {
        let stored_len = file.get(at + STORED_LEN_AT..).and_then(|bytes| bytes.first_chunk());
        let stored_len = u32::from_le_bytes(*stored_len.context("no room for a frame")?);
        let next = at + FRAME_LEN + stored_len as usize;
        blocks.push(at..next);
        at = next;
    }
    ensure!(at == end, "blocks do not end where the footer starts");
    Ok(blocks)
}
