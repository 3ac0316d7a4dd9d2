//! What the golden files hold, in code: `torture golden` wrote them from it once, `tests/it/golden.rs` compares for ever.
//!
//! Never change what is here; a later version of the format gets files and a list of its own.

use stillframe::Compression;

/// The time of every cut.
pub(crate) const TIME_MS: u64 = 1_700_000_000_000;

/// One golden file.
pub(crate) struct Golden {
    /// Its name, without `.still`.
    pub(crate) name: &'static str,
    pub(crate) compression: Compression,
    /// Keyspaces in the order in which they were made.
    pub(crate) keyspaces: Vec<Entries>,
}

/// A keyspace and its entries: key, value, expiry; in the order of keys.
pub(crate) struct Entries {
    pub(crate) name: &'static str,
    pub(crate) entries: Vec<(Vec<u8>, Vec<u8>, u64)>,
}

fn space(name: &'static str, entries: Vec<(Vec<u8>, Vec<u8>, u64)>) -> Entries {
    Entries { name, entries }
}

fn entry(
    key: impl AsRef<[u8]>,
    value: impl AsRef<[u8]>,
    expire_at: u64,
) -> (Vec<u8>, Vec<u8>, u64) {
    (key.as_ref().into(), value.as_ref().into(), expire_at)
}

fn records(count: u32) -> Vec<(Vec<u8>, Vec<u8>, u64)> {
    let record = |i: u32| {
        let value =
            format!("{{\"id\":{i},\"balance\":{}}}", i.wrapping_mul(2_654_435_761) % 10_000);
        entry(format!("record:{i:06}"), value, 0)
    };
    (0..count).map(record).collect()
}

/// All of version 1.
pub(crate) fn v1() -> Vec<Golden> {
    let (raw, lz4) = (Compression::Raw, Compression::Lz4);
    let golden = |name, compression, keyspaces| Golden { name, compression, keyspaces };
    let long: Vec<u8> = (0..70_000_u32).map(|i| b'a' + (i / 97 % 26) as u8).collect();
    let expiries = vec![
        entry("at the cut", "hidden", TIME_MS),
        entry("before", "hidden", TIME_MS - 1),
        entry("later", "shown", TIME_MS + 1),
        entry("much later", "shown", u64::MAX),
        entry("never", "shown", 0),
    ];
    let long_keys = vec![
        entry("", "the empty key", 0),
        entry("k", "", 0),
        entry(vec![b'k'; 65_536], "the longest", 0),
        entry([&[b'l'; 1], &[b'k'; 65_534][..]].concat(), "one less", 0),
    ];
    vec![
        golden("empty", lz4, vec![]),
        golden("raw", raw, vec![space("records", records(60))]),
        golden("lz4", lz4, vec![space("records", records(200))]),
        golden(
            "keyspaces",
            lz4,
            vec![
                space("z, made first", vec![entry("k", "of z", 0)]),
                space("a", vec![entry([0, 255, 0], [255, 0], 0), entry("k", "of a", 0)]),
                space("empty", vec![]),
                space("größe", records(3)),
            ],
        ),
        // Two chunks, of which the second is short; and the shortest value that has a chunk.
        golden(
            "large_value",
            lz4,
            vec![space(
                "v",
                vec![
                    entry("16,384", &long[..16_384], 0),
                    entry("16,385", &long[..16_385], 0),
                    entry("70,000", &long, 0),
                ],
            )],
        ),
        golden("long_key", lz4, vec![space("k", long_keys)]),
        golden("expiry", raw, vec![space("e", expiries)]),
    ]
}
