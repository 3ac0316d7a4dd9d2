//! One block on its own, as fuzzing reads it; feature `simulation`.

use super::block::{FRAME_LEN, Frame, Kind};
use super::codec::{Decoded, Decoder};
use super::index::{Index, Root};
use super::leaves::Leaves;
use super::snapshot::{FileId, Footer, Totals};
use crate::error::Fault;
use crate::position::Position;

/// Decodes a block of the file `file_id`, whatever its kind and place, as far as that goes without the rest of the file, and
/// reads all that is in it. Returns how many entries it holds.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// If a key of a proven block is not found where it is: our bug.
pub fn decode_block(file_id: &[u8; 16], block: &[u8]) -> Result<usize, Fault> {
    decode(file_id, block).map_err(|damage| damage.fault)
}

fn decode(file_id: &FileId, block: &[u8]) -> Decoded<usize> {
    let mut d = Decoder::new(block);
    let frame = Frame::decode(&d.array::<FRAME_LEN>("frame")?, file_id)?;
    let mut raw = Vec::new();
    frame.unpack(d.bytes("body", frame.stored_len as usize)?, &mut raw)?;
    d.finish("block")?;
    match frame.kind {
        Kind::Chunk => Ok(0),
        Kind::Leaves => read(&Leaves::decode(raw, frame.items)?),
        Kind::Index => {
            let index = Index::decode(raw, frame.items)?;
            for i in 0..index.len() {
                assert_eq!(
                    index.low(i).map(|low| index.find(low)),
                    Some(i),
                    "a fence leads to its block"
                );
            }
            Ok(index.len())
        }
        Kind::Root => {
            // The footer that such a root would have, but for its sums and its cut.
            let footer = Footer {
                file_id: *file_id,
                position: Position::default(),
                time_ms: 0,
                totals: Totals::default(),
                blocks: frame.ordinal.saturating_add(1),
                root_offset: 0,
                file_len: 0,
                root_len: 0,
                root_crc: frame.crc,
                header_crc: 0,
            };
            let root = Root::decode(raw, frame.items, frame.ordinal, &footer)?;
            Ok(root.index.len())
        }
    }
}

fn read(leaves: &Leaves) -> Decoded<usize> {
    let mut key = Vec::new();
    let mut entries = 0_usize;
    for leaf in leaves.leaves() {
        for entry in leaves.entries_of(&leaf) {
            entry.assemble(&mut key);
            assert!(key.as_slice() >= leaf.low, "a key lies in its leaf");
            assert!(leaf.high.is_none_or(|high| key.as_slice() < high), "a key lies in its leaf");
            assert_eq!(leaves.seek(&key), (entries, true), "a key is found where it is");
            entries = entries.saturating_add(1);
        }
    }
    assert_eq!(entries, leaves.len(), "every entry is in a leaf");
    leaves.check_sums()?;
    Ok(entries)
}
