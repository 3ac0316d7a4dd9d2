//! Makes the checksums of a changed file right again, as someone would who writes files on purpose.
//!
//! Offsets are those of FORMAT.md, sections 4 to 8. Blocks are where they were before the change, whatever it says.

use std::ops::Range;

use crate::damage::Whole;

const FRAME_LEN: usize = 32;
const ENTRY_LEN: usize = 56;
const LEAVES: u8 = 1;
const INDEX: u8 = 3;
const ROOT: u8 = 4;

fn put(bytes: &mut [u8], at: usize, field: u32) {
    bytes[at..at + 4].copy_from_slice(&field.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    bytes[at..].first_chunk().map_or(0, |field| u32::from_le_bytes(*field) as usize)
}

/// Gives `bytes`, a changed copy of `good` of the same length, right checksums, from the blocks up to the footer.
pub(crate) fn fix(bytes: &mut [u8], good: &Whole) {
    let header_crc = crc32fast::hash(&bytes[..92]);
    put(bytes, 92, header_crc);
    let file_id: [u8; 16] = bytes[16..].first_chunk().copied().unwrap_or_default();
    let kind = |block: &&Range<usize>, wanted| good.bytes[block.start] == wanted;
    let mut leaves = good.blocks.iter().filter(|block| kind(block, LEAVES));
    let mut indexes = good.blocks.iter().filter(|block| kind(block, INDEX));
    // Those named come before those who name them, so that their checksums are right by then.
    for block in &good.blocks {
        let body = block.start + FRAME_LEN;
        let count = u32_at(&good.bytes, body);
        let named: Vec<_> = match good.bytes[block.start] {
            INDEX => leaves.by_ref().take(count).collect(),
            ROOT => indexes.by_ref().take(count).collect(),
            _ => Vec::new(),
        };
        for (i, below) in named.into_iter().enumerate() {
            let crc = u32_at(bytes, below.start + 28);
            put(bytes, body + 8 + i * ENTRY_LEN + 44, u32::try_from(crc).unwrap_or_default());
        }
        let body_crc = crc32fast::hash(&bytes[body..block.end]);
        put(bytes, block.start + 12, body_crc);
        let mut frame = crc32fast::Hasher::new();
        frame.update(&file_id);
        frame.update(&bytes[block.start..block.start + 28]);
        put(bytes, block.start + 28, frame.finalize());
    }
    let footer = good.blocks.last().map_or(0, |root| root.end);
    let root_crc = good.blocks.last().map_or(0, |root| u32_at(bytes, root.start + 28));
    put(bytes, footer + 116, u32::try_from(root_crc).unwrap_or_default());
    put(bytes, footer + 120, header_crc);
    let footer_crc = crc32fast::hash(&bytes[footer..footer + 148]);
    put(bytes, footer + 148, footer_crc);
}

/// Where the file says something about itself: everything but keys, values, and bodies that are compressed.
pub(crate) fn fields(good: &Whole) -> Vec<usize> {
    let mut fields: Vec<usize> = (0..96).collect();
    for block in &good.blocks {
        let body = block.start + FRAME_LEN;
        let (kind, codec) = (good.bytes[block.start], good.bytes[block.start + 1]);
        let end = match (kind, codec) {
            (LEAVES, 0) => {
                let (keys, values) =
                    (u32_at(&good.bytes, body + 8), u32_at(&good.bytes, body + 12));
                block.end - keys - values
            }
            (INDEX | ROOT, _) => block.end,
            _ => body,
        };
        fields.extend(block.start..end);
    }
    let footer = good.blocks.last().map_or(0, |root| root.end);
    fields.extend(footer..good.bytes.len());
    fields
}
