//! Writes snapshot files from FORMAT.md alone, with right checksums around whatever a test wants in them.
//!
//! One leaf, one leaf block, one index block. Nothing of the library is used but its hash and checksum crates.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const FILE_ID: [u8; 16] = [7; 16];

/// A part of the file that has a checksum of its own; a patch is laid on before that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Header,
    LeafFrame,
    LeafBody,
    IndexFrame,
    IndexBody,
    RootFrame,
    RootBody,
    Footer,
}

pub(crate) const PARTS: [Part; 8] = [
    Part::Header,
    Part::LeafFrame,
    Part::LeafBody,
    Part::IndexFrame,
    Part::IndexBody,
    Part::RootFrame,
    Part::RootBody,
    Part::Footer,
];

/// Internal key, value, expiry.
pub(crate) type Entry = (Vec<u8>, Vec<u8>, u64);

/// A key of keyspace `id`; 0 is the catalogue.
pub(crate) fn key(id: u32, key: impl AsRef<[u8]>) -> Vec<u8> {
    [&id.to_be_bytes()[..], key.as_ref()].concat()
}

pub(crate) fn name(name: impl AsRef<[u8]>, id: u32) -> Entry {
    (key(0, name), id.to_le_bytes().to_vec(), 0)
}

/// The body of the leaf block as it is stored, and what frame and index say of it.
#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub(crate) codec: u8,
    pub(crate) raw_len: u32,
    pub(crate) stored: Vec<u8>,
    pub(crate) entries: u32,
    pub(crate) raw_bytes: u64,
    pub(crate) fingerprint: u64,
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The body that holds these entries in this order, whatever it is (section 6). No value is large.
pub(crate) fn body(entries: &[Entry]) -> Body {
    let (mut expiries, mut key_lens, mut value_lens) = (Vec::new(), Vec::new(), Vec::new());
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let (mut fingerprint, mut raw_bytes) = (0_u64, 0);
    for (key, value, expire_at) in entries {
        varint(&mut key_lens, key.len() * 4 + usize::from(*expire_at != 0));
        varint(&mut value_lens, value.len());
        if *expire_at != 0 {
            expiries.extend(expire_at.to_le_bytes());
        }
        keys.extend(key);
        values.extend(value);
        raw_bytes += (key.len().saturating_sub(4) + value.len()) as u64;
        let seed = xxh3_64(value) ^ expire_at.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        fingerprint = fingerprint.wrapping_add(xxh3_64_with_seed(key, seed));
    }
    let mut stored = Vec::new();
    let count = entries.len() as u32;
    let expiry_count = (expiries.len() / 8) as u32;
    for field in [1, count, keys.len() as u32, values.len() as u32, expiry_count, 0, 0, 0] {
        stored.extend(field.to_le_bytes());
    }
    stored.extend(0_u64.to_le_bytes()); // stamp
    stored.extend(fingerprint.to_le_bytes());
    for field in [count, 0, 0, 0] {
        stored.extend(field.to_le_bytes());
    }
    stored.extend([expiries, key_lens, value_lens, keys, values].concat());
    Body { codec: 0, raw_len: stored.len() as u32, stored, entries: count, raw_bytes, fingerprint }
}

/// What is being written, and the one change to it.
struct Forge<'a> {
    file: Vec<u8>,
    patch: Option<(Part, usize, &'a [u8])>,
}

impl Forge<'_> {
    fn patched(&self, part: Part, mut bytes: Vec<u8>) -> Vec<u8> {
        if let Some((patched, at, new)) = self.patch
            && patched == part
        {
            bytes.iter_mut().skip(at).zip(new).for_each(|(to, from)| *to = *from);
        }
        bytes
    }

    /// Appends a block (section 5); returns how an index names it: offset, length, checksum.
    fn block(
        &mut self,
        parts: (Part, Part),
        head: [u8; 2],
        raw_len: u32,
        body: Vec<u8>,
        items: u32,
    ) -> (u64, u32, u32) {
        let body = self.patched(parts.1, body);
        let offset = self.file.len() as u64;
        let ordinal = u64::from(head[0].max(2) - 2); // 0 for leaves, 1 for the index, 2 for the root
        let mut frame = vec![head[0], head[1], 0, 0];
        frame.extend(raw_len.to_le_bytes());
        frame.extend((body.len() as u32).to_le_bytes());
        frame.extend(crc32fast::hash(&body).to_le_bytes());
        frame.extend(ordinal.to_le_bytes());
        frame.extend(items.to_le_bytes());
        let frame = self.patched(parts.0, frame);
        let crc = crc32fast::hash(&[&FILE_ID[..], &frame].concat());
        self.file.extend(frame);
        self.file.extend(crc.to_le_bytes());
        self.file.extend(&body);
        (offset, 32 + body.len() as u32, crc)
    }
}

/// The whole file around `body`; `patch` changes one part before its checksum is made.
pub(crate) fn file(body: &Body, patch: Option<(Part, usize, &[u8])>) -> Vec<u8> {
    let mut forge = Forge { file: Vec::new(), patch };
    let mut header = b"\x89STF\r\n\x1a\n".to_vec();
    header.extend([1_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat());
    header.extend(FILE_ID);
    header.resize(92, 0); // the cut of the empty state, raw
    let header = forge.patched(Part::Header, header);
    let header_crc = crc32fast::hash(&header).to_le_bytes();
    forge.file.extend(header);
    forge.file.extend(header_crc);

    let named = |(offset, len, crc): (u64, u32, u32), ordinal: u64| {
        let mut index = [1_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat();
        for field in [offset, ordinal, body.entries.into(), body.raw_bytes, 0] {
            index.extend(field.to_le_bytes());
        }
        for field in [len, crc, 1, 0] {
            index.extend(field.to_le_bytes());
        }
        index
    };
    let parts = (Part::LeafFrame, Part::LeafBody);
    let leaves =
        forge.block(parts, [1, body.codec], body.raw_len, body.stored.clone(), body.entries);
    let index = named(leaves, 0);
    let len = index.len() as u32;
    let index = forge.block((Part::IndexFrame, Part::IndexBody), [3, 0], len, index, 1);
    let root = named(index, 1);
    let len = root.len() as u32;
    let root = forge.block((Part::RootFrame, Part::RootBody), [4, 0], len, root, 1);

    let mut footer = FILE_ID.to_vec();
    footer.resize(48, 0);
    let file_len = forge.file.len() as u64 + 160;
    for field in [body.entries.into(), body.raw_bytes, body.fingerprint, 1, 1, 3, root.0, file_len]
    {
        footer.extend(u64::to_le_bytes(field));
    }
    footer.extend([root.1.to_le_bytes(), root.2.to_le_bytes(), header_crc].concat());
    footer.resize(148, 0);
    let footer = forge.patched(Part::Footer, footer);
    let footer_crc = crc32fast::hash(&footer).to_le_bytes();
    forge.file.extend(footer);
    forge.file.extend(footer_crc);
    forge.file.extend(b"\x89END\r\n\x1a\n");
    forge.file
}

/// How many bytes a part has before its checksum.
pub(crate) fn part_len(part: Part, body: &Body) -> usize {
    match part {
        Part::Header => 92,
        Part::LeafFrame | Part::IndexFrame | Part::RootFrame => 28,
        Part::LeafBody => body.stored.len(),
        Part::IndexBody | Part::RootBody => 64,
        Part::Footer => 148,
    }
}
