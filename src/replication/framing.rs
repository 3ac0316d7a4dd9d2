//! The bytes of a link: who is at the other end, then messages in frames. FORMAT.md section 20, without sockets, threads or clock.
//!
//! [`Handshake`] takes what came, however it was cut, and says what is to be sent. When it is done there is a [`Sealer`] for what goes out and an
//! [`Opener`] for what comes in. Randomness is handed in.
//!
//! Invariants: until the other has proved the key, no more than a preface or a proof of his is held; nothing of a frame is used before
//! its tag was right; memory grows with the bytes that came, never with a length that was announced; after the first fault nothing else is
//! taken.
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::arithmetic_side_effects)]

use std::fmt;

use super::auth::{FrameKey, LinkKey, PairKey, Side, TAG_LEN};
use crate::error::Fault;
use crate::format::codec::Damage;
use crate::format::wire::{
    CRC_LEN, FRAME_HEADER_LEN, FrameHeader, LINK_VERSION, MAX_PAYLOAD_LEN, MessageKind, Preface,
    check_frame_crc, frame_crc,
};
use crate::planted::{Bug, planted};

/// The longest hello or cut: room for a lineage of a thousand histories, for a path of nodes and a name.
const LINEAGE_LIMIT: usize = 68 << 10;
/// The longest ask: one range for every leaf of a large database.
const ASK_LIMIT: usize = 64 << 20;
/// The longest block, with its frame.
const BLOCK_LIMIT: usize = (1 << 20) + 64;
/// The longest of any other message, and of records until it is set.
const USUAL_LIMIT: usize = 64 << 10;

/// What each side brings to a link.
#[derive(Clone)]
pub(crate) struct Secrets {
    /// The client proves the first, the server takes any. Without one nothing is proved, and frames have checksums only.
    pub(crate) keys: Vec<LinkKey>,
    /// Names the channel beneath, as TLS exports it, or is zeros.
    pub(crate) binding: [u8; 32],
}

/// Why no more is taken from a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkFault {
    /// Bytes that make no sense, or a frame that is not as it was sent, or not in its place.
    Fault(Fault),
    /// The other has not proved the key, or only one side has one.
    NoProof,
    /// The other does not speak this release's version.
    Version {
        /// The one of its versions that is nearest.
        got: u32,
        supported: u32,
    },
    /// A message that is longer than its kind may be.
    TooLong {
        kind: MessageKind,
        /// As much as is known of it.
        len: usize,
        limit: usize,
    },
}

impl From<Damage> for LinkFault {
    fn from(damage: Damage) -> Self {
        match damage.fault {
            Fault::Version { got, supported } => LinkFault::Version { got, supported },
            fault => LinkFault::Fault(fault),
        }
    }
}

impl fmt::Display for LinkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkFault::Fault(Fault::Magic) => f.write_str("the other side is no stillframe node"),
            LinkFault::Fault(fault) => fault.fmt(f),
            LinkFault::NoProof => f.write_str("the other side has not proved the shared key"),
            LinkFault::Version { got, supported } => {
                write!(f, "the other side speaks version {got}, this release speaks {supported}")
            }
            LinkFault::TooLong { kind, len, limit } => {
                write!(f, "{} of {len} bytes or more, the limit is {limit}", name_of(*kind))
            }
        }
    }
}

impl std::error::Error for LinkFault {}

fn name_of(kind: MessageKind) -> &'static str {
    match kind {
        MessageKind::Hello => "hello",
        MessageKind::Ask => "ask",
        MessageKind::Offer => "offer",
        MessageKind::Cut => "cut",
        MessageKind::Block => "block",
        MessageKind::End => "end",
        MessageKind::Records => "records",
        MessageKind::Mark => "mark",
        MessageKind::Ack => "ack",
        MessageKind::Beat => "beat",
        MessageKind::Bye => "bye",
    }
}

/// Finds out whether the other has the key, and proves one's own.
pub(crate) struct Handshake {
    side: Side,
    secrets: Secrets,
    nonce: [u8; 32],
    step: Step,
    /// The beginning of what is awaited.
    held: Vec<u8>,
}

enum Step {
    /// The other's preface is to come.
    Preface,
    /// The other's proof is.
    Proof(PairKey),
    /// It is done, or it failed.
    Over,
}

impl Handshake {
    /// For who connected, with 32 fresh random bytes; and what he says first.
    pub(crate) fn client(secrets: &Secrets, nonce: [u8; 32]) -> (Self, Vec<u8>) {
        let handshake = Self::new(Side::Client, secrets, nonce);
        let preface = handshake.preface(secrets.keys.first().map(LinkKey::id)).encode().to_vec();
        (handshake, preface)
    }

    /// For who listened, with 32 fresh random bytes. He says nothing until he has heard the client.
    pub(crate) fn server(secrets: &Secrets, nonce: [u8; 32]) -> Self {
        Self::new(Side::Server, secrets, nonce)
    }

    fn new(side: Side, secrets: &Secrets, nonce: [u8; 32]) -> Self {
        let mut secrets = secrets.clone();
        if side == Side::Client {
            secrets.keys.truncate(1);
        }
        Handshake { side, secrets, nonce, step: Step::Preface, held: Vec::new() }
    }

    fn preface(&self, key_id: Option<[u8; 8]>) -> Preface {
        Preface { versions: (LINK_VERSION, LINK_VERSION), key_id, nonce: self.nonce }
    }

    /// Takes bytes as they came and appends to `out` what is to be sent. When it is done: what seals and opens all that follows; what came behind
    /// the handshake is in the opener.
    ///
    /// # Errors
    /// The link is to be closed, with nothing said: `out` is as it was. Every later call fails, as one does that comes when it was done.
    pub(crate) fn receive(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<(Sealer, Opener)>, LinkFault> {
        let said = out.len();
        let received = self.advance(bytes, out);
        if received.is_err() {
            out.truncate(said);
        }
        if !matches!(received, Ok(None)) {
            self.step = Step::Over;
            self.held = Vec::new();
        }
        received
    }

    fn advance(
        &mut self,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<(Sealer, Opener)>, LinkFault> {
        if matches!(self.step, Step::Preface) {
            let Some(theirs) = take(&mut self.held, &mut bytes) else { return Ok(None) };
            let preface = Preface::decode(&theirs)?;
            let (low, high) = preface.versions;
            if self.side == Side::Client && low != high {
                // A server says the one that it has chosen, twice.
                let (field, got) = ("chosen version of the link", low.into());
                return Err(LinkFault::Fault(Fault::Mismatch {
                    field,
                    got,
                    expected: high.into(),
                }));
            }
            let key = match preface.key_id {
                None if self.secrets.keys.is_empty() => None,
                id => {
                    let is_it = |key: &&LinkKey| Some(key.id()) == id;
                    Some(self.secrets.keys.iter().find(is_it).ok_or(LinkFault::NoProof)?)
                }
            };
            // If a key is set it is the same by now, so that both prefaces name it.
            let own = self.preface(preface.key_id).encode();
            if self.side == Side::Server {
                out.extend_from_slice(&own);
            }
            let Some(key) = key else { return Ok(Some(self.finish(None, bytes))) };
            let (first, second) = match self.side {
                Side::Client => (own, theirs),
                Side::Server => (theirs, own),
            };
            let pair = PairKey::new(key, &first, &second, &self.secrets.binding);
            if self.side == Side::Client {
                out.extend_from_slice(&pair.proof(Side::Client));
            }
            self.step = Step::Proof(pair);
        }
        let Step::Proof(pair) = &self.step else { return Err(LinkFault::NoProof) };
        let Some(proof) = take(&mut self.held, &mut bytes) else { return Ok(None) };
        if !pair.proves(self.side.other(), &proof) && !planted(Bug::ProofUnchecked) {
            return Err(LinkFault::NoProof);
        }
        // The server comes second: it tells a stranger nothing that he could test keys against.
        if self.side == Side::Server {
            out.extend_from_slice(&pair.proof(Side::Server));
        }
        Ok(Some(self.finish(Some(pair), bytes)))
    }

    fn finish(&self, pair: Option<&PairKey>, rest: &[u8]) -> (Sealer, Opener) {
        let sealer = Sealer { key: pair.map(|pair| pair.frames_of(self.side)), count: 0 };
        let mut opener = Opener::new(pair.map(|pair| pair.frames_of(self.side.other())));
        opener.receive(rest);
        (sealer, opener)
    }
}

/// Takes the next `N` bytes, of which some may be `held`; holds what there is if that is too little.
fn take<const N: usize>(held: &mut Vec<u8>, bytes: &mut &[u8]) -> Option<[u8; N]> {
    let missing = N.saturating_sub(held.len()).min(bytes.len());
    let (taken, rest) = bytes.split_at_checked(missing)?;
    held.extend_from_slice(taken);
    *bytes = rest;
    let whole = held.first_chunk().copied()?;
    held.clear();
    Some(whole)
}

/// Puts messages into frames.
pub(crate) struct Sealer {
    /// Of this direction, if a key is set.
    key: Option<FrameKey>,
    /// Frames before the next.
    count: u64,
}

impl Sealer {
    /// Appends a message, in as many frames as it takes.
    pub(crate) fn seal(&mut self, kind: MessageKind, payload: &[u8], out: &mut Vec<u8>) {
        self.seal_part(kind, payload, false, out);
    }

    /// Appends a part of a message; another part of it must follow if it `goes_on`. Messages of other kinds may come in between.
    pub(crate) fn seal_part(
        &mut self,
        kind: MessageKind,
        part: &[u8],
        goes_on: bool,
        out: &mut Vec<u8>,
    ) {
        let mut rest = part;
        while let Some((frame, after)) = rest.split_at_checked(MAX_PAYLOAD_LEN)
            && !after.is_empty()
        {
            self.frame(kind, true, out, |out| out.extend_from_slice(frame));
            rest = after;
        }
        self.frame(kind, goes_on, out, |out| out.extend_from_slice(rest));
    }

    /// Appends a message of one frame, whose payload `fill` appends to what is there.
    ///
    /// # Panics
    /// If that is more than [`MAX_PAYLOAD_LEN`], or if `fill` took something away.
    pub(crate) fn seal_with(
        &mut self,
        kind: MessageKind,
        out: &mut Vec<u8>,
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        self.frame(kind, false, out, fill);
    }

    fn frame(
        &mut self,
        kind: MessageKind,
        goes_on: bool,
        out: &mut Vec<u8>,
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME_HEADER_LEN]);
        fill(out);
        let frame = out.get_mut(start..).and_then(|frame| frame.split_first_chunk_mut());
        let (header, payload) = frame.expect("a payload is appended");
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        assert!(payload.len() <= MAX_PAYLOAD_LEN, "payload of {len} bytes in one frame");
        *header = FrameHeader { len, kind, goes_on }.encode();
        match &self.key {
            Some(key) => {
                let tag = key.tag(self.count, header, payload);
                out.extend_from_slice(&tag);
            }
            None => {
                let crc = frame_crc(self.count, header, payload);
                out.extend_from_slice(&crc.to_le_bytes());
            }
        }
        self.count = self.count.wrapping_add(1);
    }
}

/// Takes frames apart into messages.
pub(crate) struct Opener {
    /// Of the other direction, if a key is set.
    key: Option<FrameKey>,
    /// Frames before the next.
    count: u64,
    /// What came; up to `start` it was taken.
    buffer: Vec<u8>,
    start: usize,
    /// Messages of which not all frames came, at most one of each kind.
    unfinished: Vec<(MessageKind, Vec<u8>)>,
    record_limit: usize,
    fault: Option<LinkFault>,
}

impl Opener {
    fn new(key: Option<FrameKey>) -> Self {
        Opener {
            key,
            count: 0,
            buffer: Vec::new(),
            start: 0,
            unfinished: Vec::new(),
            record_limit: USUAL_LIMIT,
            fault: None,
        }
    }

    /// Sets how long a message of records may be, in bytes.
    pub(crate) fn set_record_limit(&mut self, bytes: usize) {
        self.record_limit = bytes;
    }

    fn limit(&self, kind: MessageKind) -> usize {
        match kind {
            MessageKind::Hello | MessageKind::Cut => LINEAGE_LIMIT,
            MessageKind::Ask => ASK_LIMIT,
            MessageKind::Block => BLOCK_LIMIT,
            MessageKind::Records => self.record_limit,
            _ => USUAL_LIMIT,
        }
    }

    /// Frames that were proven: each is a sign of life, though the message may have more to come.
    pub(crate) fn frames(&self) -> u64 {
        self.count
    }

    /// Takes bytes as they came. They are held until [`Opener::next`] was called for them.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        let left = self.buffer.len().saturating_sub(self.start);
        // Moves less than was taken since it last did: all in all every byte at most once.
        if left < self.start {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if all of it came.
    ///
    /// # Errors
    /// From then on it is always the same one.
    pub(crate) fn next(&mut self) -> Result<Option<(MessageKind, Vec<u8>)>, LinkFault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let opened = self.open();
        if let Err(fault) = &opened {
            self.fault = Some(fault.clone());
            (self.buffer, self.start, self.unfinished) = (Vec::new(), 0, Vec::new());
        }
        opened
    }

    fn open(&mut self) -> Result<Option<(MessageKind, Vec<u8>)>, LinkFault> {
        loop {
            let came = self.buffer.get(self.start..).unwrap_or_default();
            let Some(frame) = split(self.key.as_ref(), self.count, came)? else { return Ok(None) };
            let Frame { header, payload, len } = frame;
            self.start = self.start.saturating_add(len);
            self.count = self.count.wrapping_add(1);

            let kind = header.kind;
            let begun = self.unfinished.iter().position(|(other, _)| *other == kind);
            let before = begun.and_then(|index| self.unfinished.get(index));
            let before = before.map_or(0, |(_, message)| message.len());
            let (len, limit) = (before.saturating_add(payload.len()), self.limit(kind));
            if len > limit {
                return Err(LinkFault::TooLong { kind, len, limit });
            }
            match begun {
                None if !header.goes_on => return Ok(Some((kind, payload.to_vec()))),
                None => self.unfinished.push((kind, payload.to_vec())),
                Some(index) => {
                    if let Some((_, message)) = self.unfinished.get_mut(index) {
                        message.extend_from_slice(payload);
                    }
                    if !header.goes_on {
                        return Ok(Some(self.unfinished.swap_remove(index)));
                    }
                }
            }
        }
    }
}

/// A frame whose tag was right.
struct Frame<'a> {
    header: FrameHeader,
    payload: &'a [u8],
    /// With header and tag.
    len: usize,
}

/// The frame that `bytes` begin with, if all of it is there; `count` came before it.
fn split<'a>(
    key: Option<&FrameKey>,
    count: u64,
    bytes: &'a [u8],
) -> Result<Option<Frame<'a>>, LinkFault> {
    let Some((raw, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let header = FrameHeader::decode(raw)?;
    let Some((payload, rest)) = rest.split_at_checked(header.len as usize) else { return Ok(None) };
    let tag_len = match key {
        Some(key) => {
            let Some(tag) = rest.first_chunk::<TAG_LEN>() else { return Ok(None) };
            if !key.checks(count, raw, payload, tag) {
                return Err(LinkFault::Fault(Fault::Foreign { field: "frame" }));
            }
            TAG_LEN
        }
        None => {
            let Some(stored) = rest.first_chunk::<CRC_LEN>() else { return Ok(None) };
            check_frame_crc(count, raw, payload, *stored)?;
            CRC_LEN
        }
    };
    let len = FRAME_HEADER_LEN.saturating_add(payload.len()).saturating_add(tag_len);
    Ok(Some(Frame { header, payload, len }))
}

#[cfg(test)]
mod tests;
