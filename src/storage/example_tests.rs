//! The example in FORMAT.md: written anew, taken apart field by field, compared with what the page shows.

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use super::snapshot_tests::{Entries, Map, key};
use crate::format::snapshot::Codec;

const BEGIN: &str = "<!-- dump: begin -->\n```text\n";
const END: &str = "```\n<!-- dump: end -->";

fn example() -> Vec<u8> {
    let mut entries = Entries::new();
    entries.insert(key(0, "a"), (1_u32.to_le_bytes().to_vec(), 0));
    entries.insert(key(0, "big"), (2_u32.to_le_bytes().to_vec(), 0));
    entries.insert(key(1, "k1"), (b"one".to_vec(), 0));
    entries.insert(key(1, "k2"), (b"two".to_vec(), 1_700_000_060_000));
    entries.insert(key(2, "large"), (vec![b'x'; 16_385], 0));
    let fences = vec![Vec::new(), vec![0, 0, 0, 1], vec![0, 0, 0, 2]];
    Map { entries: Arc::new(entries), fences }.bytes(Codec::Lz4, 1)
}

/// Takes bytes from the front of `bytes` and writes a line for each field.
struct Dump<'a> {
    bytes: &'a [u8],
    at: usize,
    text: String,
}

impl Dump<'_> {
    fn title(&mut self, title: &str) {
        writeln!(self.text, "\n{title}").unwrap();
    }

    /// One field of `len` bytes; returns it as a number.
    fn field(&mut self, len: usize, name: &str) -> u64 {
        let bytes = &self.bytes[self.at..self.at + len];
        let value = bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let known = |name: &str| {
            [
                "id",
                "history",
                "writer",
                "magic",
                "mark",
                "crc32",
                "checksum",
                "reserved",
                "fingerprint",
                "hash",
            ]
            .iter()
            .any(|word| name.contains(word))
        };
        let note = match len {
            1 | 2 | 4 | 8 if !known(name) => format!("{name} = {value}"),
            _ => name.to_owned(),
        };
        for (i, row) in bytes.chunks(16).enumerate() {
            let hex: Vec<_> = row.iter().map(|byte| format!("{byte:02x}")).collect();
            let note = if i == 0 { note.as_str() } else { "" };
            let line = format!("{:5}  {:<47}  {note}", self.at + 16 * i, hex.join(" "));
            writeln!(self.text, "{}", line.trim_end()).unwrap();
        }
        self.at += len;
        value
    }

    fn fields(&mut self, fields: &[(usize, &str)]) {
        for (len, name) in fields {
            self.field(*len, name);
        }
    }

    /// A frame; returns codec, raw length and stored length.
    fn frame(&mut self) -> (u64, usize, usize) {
        self.field(1, "kind");
        let codec = self.field(1, "codec");
        self.field(2, "reserved");
        let raw_len = usize::try_from(self.field(4, "raw length")).unwrap();
        let stored_len = usize::try_from(self.field(4, "stored length")).unwrap();
        self.fields(&[(4, "crc32 of the stored body"), (8, "ordinal"), (4, "items")]);
        self.field(4, "frame checksum");
        (codec, raw_len, stored_len)
    }

    fn index_entry(&mut self) {
        self.fields(&[(8, "offset"), (8, "ordinal"), (8, "entries"), (8, "raw bytes")]);
        self.fields(&[(8, "newest stamp"), (4, "length"), (4, "checksum of the block")]);
        self.fields(&[(4, "leaf blocks"), (4, "length of the low fence")]);
    }
}

/// The decompressed body of the leaf block.
fn dump_leaves(raw: &[u8]) -> String {
    let mut d = Dump { bytes: raw, at: 0, text: String::new() };
    d.fields(&[(4, "L, leaves"), (4, "N, entries"), (4, "K, key bytes"), (4, "V, value bytes")]);
    d.fields(&[(4, "E, expiries"), (4, "G, large values"), (4, "length of the high fence")]);
    d.field(4, "reserved");
    let mut lens = Vec::new();
    for leaf in 1..=3 {
        d.field(8, &format!("leaf {leaf}: stamp"));
        d.fields(&[(8, "fingerprint"), (4, "entries")]);
        let low = usize::try_from(d.field(4, "length of the low fence")).unwrap();
        let prefix = usize::try_from(d.field(4, "length of the prefix")).unwrap();
        d.field(4, "reserved");
        lens.push((low, prefix));
    }
    for (leaf, (low, prefix)) in lens.into_iter().enumerate() {
        if low > 0 {
            let fence = d.at;
            d.field(low, "low fence, id of its keyspace");
            assert_eq!(raw[fence..d.at], [0, 0, 0, u8::try_from(leaf).unwrap()]);
        }
        d.field(
            prefix,
            &format!("prefix of leaf {}, keyspace id and what the keys share", leaf + 1),
        );
    }
    d.field(8, "expiry");
    d.fields(&[(8, "hash of the large value"), (8, "bytes of its chunk blocks")]);
    d.field(1, "key length x 4 + flags: \"a\" without the prefix");
    d.field(1, "\"big\"");
    d.field(1, "\"k1\"");
    d.field(1, "\"k2\", which has an expiry");
    d.field(1, "\"large\": all of it is prefix; a large value");
    for name in ["a", "big", "k1", "k2"] {
        d.field(1, &format!("value length of {name}"));
    }
    d.field(3, "value length of large: 16385 as a varint");
    d.field(raw.len() - d.at - 14, "keys");
    d.field(14, "values: two ids, \"one\", \"two\"");
    assert_eq!(d.at, raw.len());
    d.text
}

fn dump(bytes: &[u8]) -> String {
    let mut d = Dump { bytes, at: 0, text: "Header".into() };
    d.text.push('\n');
    d.fields(&[(8, "magic"), (4, "version"), (4, "features"), (16, "file id"), (16, "history")]);
    d.fields(&[(8, "Seq of the cut"), (8, "time of the cut"), (1, "codec"), (27, "reserved")]);
    d.field(4, "crc32");

    d.title("Chunk block: the large value");
    let (codec, raw_len, stored_len) = d.frame();
    assert_eq!((codec, raw_len), (1, 16_385));
    d.field(stored_len, "stored body, LZ4");

    d.title("Leaf block");
    let (codec, raw_len, stored_len) = d.frame();
    assert_eq!(codec, 1);
    let mut raw = vec![0; raw_len];
    let stored = &bytes[d.at..d.at + stored_len];
    lz4_flex::block::decompress_into(stored, &mut raw).unwrap();
    d.field(stored_len, "stored body, LZ4");
    d.title("    its body, decompressed");
    d.text.push_str(&dump_leaves(&raw));

    d.title("Index block");
    let (codec, _, _) = d.frame();
    assert_eq!(codec, 0);
    d.fields(&[(4, "n, entries"), (4, "s, lineage spans")]);
    d.index_entry();
    d.title("Root");
    d.frame();
    d.fields(&[(4, "n, entries"), (4, "s, lineage spans")]);
    d.index_entry();
    d.fields(&[(16, "history"), (8, "term"), (16, "writer"), (8, "start"), (8, "end")]);

    d.title("Footer");
    d.fields(&[(16, "file id"), (16, "history"), (8, "Seq of the cut"), (8, "time of the cut")]);
    d.fields(&[(8, "entries"), (8, "raw bytes"), (8, "fingerprint"), (8, "leaves")]);
    d.fields(&[(8, "leaf blocks"), (8, "blocks"), (8, "offset of the root")]);
    d.fields(&[(8, "length of the file"), (4, "length of the root"), (4, "checksum of the root")]);
    d.fields(&[(4, "crc32 of the header"), (24, "reserved"), (4, "crc32"), (8, "end mark")]);
    assert_eq!(d.at, bytes.len());
    d.text
}

#[test]
fn format_md_shows_a_file_as_it_is_written() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("FORMAT.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let start = page.find(BEGIN).expect("FORMAT.md has a place for the dump") + BEGIN.len();
    let end = start + page[start..].find(END).expect("the dump has an end");
    let fresh = dump(&example());
    if std::env::var_os("UPDATE_FORMAT_MD").is_some() {
        std::fs::write(&path, [&page[..start], &fresh, &page[end..]].concat()).unwrap();
    } else {
        assert!(
            page[start..end] == fresh,
            "FORMAT.md shows another file; this is it now:\n{fresh}"
        );
    }
}
