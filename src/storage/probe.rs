//! One segment on its own, as fuzzing reads it; feature `simulation`.

use super::segment::{Frames, Item, durable_behind};
use crate::error::Fault;
use crate::format::codec::{Damage, LENIENT};
use crate::format::log::{
    Beginning, Frame, Framed, LABEL_LEN, Label, RECORD_FRAME_LEN, SEGMENT_HEADER_LEN,
};
use crate::format::record::{Effects, HistoryBody, RecordKind};

/// Reads `bytes` as a whole segment, of whatever database and under whatever name: its label, its beginning, every frame
/// up to the end and every effect. Returns how many frames it holds.
///
/// # Errors
/// What is wrong with the first thing that is.
///
/// # Panics
/// If what was taken does not follow what came before it, or is not what it would be written as: our bug.
pub fn walk_segment(bytes: &[u8]) -> Result<usize, Fault> {
    let head = bytes.first_chunk::<SEGMENT_HEADER_LEN>().ok_or(Fault::Truncated {
        field: "head of a segment",
        needed: SEGMENT_HEADER_LEN as u64,
        available: bytes.len() as u64,
    })?;
    let (label_bytes, beginning_bytes) = head.split_at(LABEL_LEN);
    let label = Label::decode(label_bytes).map_err(fault)?;
    check_sealed(label_bytes, &label.encode());
    let Some(beginning) = Beginning::decode(beginning_bytes).map_err(fault)? else { return Ok(0) };
    check_sealed(beginning_bytes, &beginning.encode());

    let mut frames = Frames::new(bytes, label.salt, beginning.base);
    let (mut count, mut encoded) = (0, Vec::new());
    loop {
        let (offset, before) = (frames.offset, frames.base);
        let item = match frames.next() {
            Ok(Some(item)) => item,
            ended => {
                assert_eq!(frames.offset, offset, "where it ends is where it stays");
                let _ = durable_behind(bytes, label.salt, offset);
                return ended.map(|_| count);
            }
        };
        let framed = match item {
            Item::Mark { seq, fingerprint } => Framed::Mark { seq, fingerprint },
            Item::End { next } => Framed::End { next },
            Item::Record { header, body } => {
                assert_eq!(before.position.seq.0.checked_add(1), Some(header.seq.0), "no gap");
                assert!(LENIENT || header.chain == header.chain_after(before.chain), "the chain");
                let body_at = offset + RECORD_FRAME_LEN;
                assert_eq!(body, &bytes[body_at..body_at + header.body_len as usize]);
                check_body(header.kind, body)?;
                Framed::Record(header)
            }
        };
        let frame = Frame { durable: frames.durable, framed };
        encoded.clear();
        frame.encode(label.salt, offset as u64, &mut encoded);
        let unsummed = if LENIENT { 4 } else { 0 };
        assert_eq!(encoded[unsummed..], bytes[offset + unsummed..offset + frame.len()]);
        count += 1;
        if let Framed::End { .. } = framed {
            return Ok(count);
        }
    }
}

fn fault(damage: Damage) -> Fault {
    damage.fault
}

/// What ends with a checksum was decoded: it would be encoded so.
fn check_sealed(found: &[u8], encoded: &[u8]) {
    let unsummed = if LENIENT { 4 } else { 0 };
    assert_eq!(found[..found.len() - unsummed], encoded[..encoded.len() - unsummed]);
}

fn check_body(kind: RecordKind, body: &[u8]) -> Result<(), Fault> {
    match kind {
        RecordKind::History => {
            let history = HistoryBody::decode(body).map_err(fault)?;
            assert_eq!(history.encode()[..], *body);
        }
        RecordKind::Batch => {
            let mut encoded = Vec::new();
            for effect in Effects::new(body) {
                effect.map_err(fault)?.encode(&mut encoded);
            }
            assert_eq!(encoded, body);
        }
    }
    Ok(())
}
