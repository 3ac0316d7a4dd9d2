//! Puts packed blocks in order: gives each its ordinal, keeps the index, and ends the file.
//!
//! Nothing seeks back: what it returns is written in the order in which it is returned.

use super::block::{FRAME_LEN, Kind, Packer, number};
use super::index::{IndexBody, IndexBuilder, Place};
use super::leaves::Summary;
use super::snapshot::{Codec, FOOTER_LEN, Footer, HEADER_LEN, Header, Span};

/// A file that is being written.
pub(crate) struct Assembly {
    header: Header,
    header_crc: u32,
    lineage: Vec<Span>,
    index: IndexBuilder,
    bodies: Vec<IndexBody>,
    next: Place,
}

impl Assembly {
    /// Starts a file; the bytes are its header.
    pub(crate) fn new(header: Header, lineage: Vec<Span>) -> (Self, [u8; HEADER_LEN]) {
        let bytes = header.encode();
        let header_crc = bytes.last_chunk().copied().map_or(0, u32::from_le_bytes);
        let next = Place { offset: HEADER_LEN as u64, ..Place::default() };
        let index = IndexBuilder::default();
        (Assembly { header, header_crc, lineage, index, bodies: Vec::new(), next }, bytes)
    }

    /// Takes a chunk block as the next of the file.
    pub(crate) fn chunk(&mut self, block: &mut [u8]) {
        self.place(block);
    }

    /// Takes a leaf block as the next of the file, with all its chunk blocks directly before it.
    pub(crate) fn leaves(&mut self, block: &mut [u8], summary: &Summary) {
        let place = self.place(block);
        self.bodies.extend(self.index.push(summary, place));
    }

    /// Index, root and footer: the rest of the file.
    ///
    /// `None` if the root does not fit into a block, which takes fences of more than 4 GiB in total.
    pub(crate) fn finish(mut self) -> Option<(Vec<u8>, Footer)> {
        let mut packer = Packer::new(Codec::Raw);
        let mut tail = Vec::new();
        self.bodies.extend(self.index.finish());
        for body in std::mem::take(&mut self.bodies) {
            let start = tail.len();
            packer.pack(Kind::Index, &body.raw, body.items, &mut tail)?;
            let place = self.place(tail.get_mut(start..)?);
            self.index.placed(&body, place);
        }
        let (raw, items) = self.index.root(&self.lineage);
        u32::try_from(raw.len().checked_add(FRAME_LEN)?).ok()?;
        let start = tail.len();
        packer.pack(Kind::Root, &raw, items, &mut tail)?;
        let root = self.place(tail.get_mut(start..)?);
        let Header { file_id, position, time_ms, .. } = self.header;
        let footer = Footer {
            file_id,
            position,
            time_ms,
            totals: *self.index.totals(),
            blocks: self.next.ordinal,
            root_offset: root.offset,
            file_len: self.next.offset.checked_add(FOOTER_LEN as u64)?,
            root_len: root.len,
            root_crc: root.crc,
            header_crc: self.header_crc,
        };
        tail.extend_from_slice(&footer.encode());
        Some((tail, footer))
    }

    fn place(&mut self, block: &mut [u8]) -> Place {
        let crc = number(block, &self.header.file_id, self.next.ordinal);
        let len = u32::try_from(block.len()).unwrap_or(u32::MAX);
        let place = Place { len, crc, ..self.next };
        self.next.offset = self.next.offset.saturating_add(block.len() as u64);
        self.next.ordinal = self.next.ordinal.saturating_add(1);
        place
    }
}
