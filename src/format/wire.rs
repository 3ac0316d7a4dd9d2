//! What replicas and their sources say to each other: frames, and the messages that they carry.
//!
//! Any byte may come from a stranger. A frame is at most 64 KiB and is checked before anything in it is looked at; a
//! message is put together from frames up to the limit of its kind.

use super::MAX_INTERNAL_KEY_LEN;
use super::codec::{Damage, Decoded, Decoder, check_crc, crc, equal};
use super::snapshot::{FileId, SPAN_LEN, Span};
use crate::error::Fault;
use crate::position::{HistoryId, Position, Seq};

/// Before the payload of a frame, and the longest payload.
pub(crate) const FRAME_HEADER_LEN: usize = 8;
pub(crate) const MAX_PAYLOAD_LEN: usize = 64 << 10;
/// Behind it, where no key is set.
pub(crate) const CRC_LEN: usize = 4;
/// The longest name of a node.
const MAX_NAME_LEN: usize = 255;
/// Nodes between a replica and its primary, at the most.
const MAX_PATH_LEN: usize = 64;

/// What either side of a link says first, in the clear.
pub(crate) const PREFACE_LEN: usize = 64;
const PREFACE_MAGIC: [u8; 8] = *b"\x89STW\r\n\x1a\n";
/// The version of what is said over links that this release speaks.
pub(crate) const LINK_VERSION: u32 = 1;

/// The first bytes of a link, from who connected and then from who listened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preface {
    /// The versions that it speaks, lowest and highest; who listened says the one that was chosen, twice.
    pub(crate) versions: (u32, u32),
    /// The key that it has, if one is wanted: then proofs follow.
    pub(crate) key_id: Option<[u8; 8]>,
    /// Random.
    pub(crate) nonce: [u8; 32],
}

impl Preface {
    pub(crate) fn encode(&self) -> [u8; PREFACE_LEN] {
        let mut out = Vec::with_capacity(PREFACE_LEN);
        out.extend_from_slice(&PREFACE_MAGIC);
        for field in [self.versions.0, self.versions.1, self.key_id.is_some().into(), 0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.key_id.unwrap_or_default());
        out.extend_from_slice(&self.nonce);
        let mut preface = [0; PREFACE_LEN];
        preface.iter_mut().zip(out).for_each(|(to, from)| *to = from);
        preface
    }

    pub(crate) fn decode(bytes: &[u8; PREFACE_LEN]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        if d.array("magic")? != PREFACE_MAGIC {
            return Err(Damage::new(0, Fault::Magic));
        }
        let versions = (d.u32("lowest version")?, d.u32("highest version")?);
        // Before the rest, which another version may have elsewhere.
        if versions.0 > LINK_VERSION || versions.1 < LINK_VERSION {
            let got = if versions.0 > LINK_VERSION { versions.0 } else { versions.1 };
            return Err(Damage::new(8, Fault::Version { got, supported: LINK_VERSION }));
        }
        let has_key = d.u32_in("whether a key is set", 0, 1)? == 1;
        d.zeros("reserved bytes of a preface", 4)?;
        let at = d.at();
        let key_id: [u8; 8] = d.array("key id")?;
        if !has_key {
            equal(at, "key id", u64::from_le_bytes(key_id), 0)?;
        }
        let nonce = d.array("nonce")?;
        Ok(Preface { versions, key_id: has_key.then_some(key_id), nonce })
    }
}

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageKind {
    Hello,
    Ask,
    Offer,
    Cut,
    Block,
    End,
    Records,
    Mark,
    Ack,
    Beat,
    Bye,
}

impl MessageKind {
    /// Persistent: numbered by hand, never reused.
    pub(crate) const ALL: [(u8, Self); 11] = [
        (1, Self::Hello),
        (2, Self::Ask),
        (3, Self::Offer),
        (4, Self::Cut),
        (5, Self::Block),
        (6, Self::End),
        (7, Self::Records),
        (8, Self::Mark),
        (9, Self::Ack),
        (10, Self::Beat),
        (11, Self::Bye),
    ];

    pub(crate) fn id(self) -> u8 {
        number_of(self, &Self::ALL)
    }
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) len: u32,
    pub(crate) kind: MessageKind,
    /// The message goes on in the next frame of this kind.
    pub(crate) goes_on: bool,
}

const GOES_ON: u8 = 1;

impl FrameHeader {
    pub(crate) fn encode(&self) -> [u8; FRAME_HEADER_LEN] {
        let [a, b, c, d] = self.len.to_le_bytes();
        [a, b, c, d, self.kind.id(), if self.goes_on { GOES_ON } else { 0 }, 0, 0]
    }

    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let len = d.u32_in("length of a frame", 0, MAX_PAYLOAD_LEN)?;
        let kind = one_of(&mut d, "kind of message", &MessageKind::ALL)?;
        let at = d.at();
        let flags = d.u8("flags of a frame")?;
        if flags > GOES_ON {
            let (field, got) = ("flags of a frame", flags.into());
            return Err(Damage::new(at, Fault::Range { field, got, min: 0, max: GOES_ON.into() }));
        }
        d.zeros("reserved bytes of a frame", 2)?;
        Ok(FrameHeader { len, kind, goes_on: flags == GOES_ON })
    }
}

/// The checksum of the frame that is the `count`th in its direction.
pub(crate) fn frame_crc(count: u64, header: &[u8; FRAME_HEADER_LEN], payload: &[u8]) -> u32 {
    crc(&[&count.to_le_bytes(), header, payload])
}

/// Refuses a frame that is not as it was sent, or not in its place.
pub(crate) fn check_frame_crc(
    count: u64,
    header: &[u8; FRAME_HEADER_LEN],
    payload: &[u8],
    stored: [u8; CRC_LEN],
) -> Decoded<()> {
    let at = FRAME_HEADER_LEN.saturating_add(payload.len());
    check_crc(at, "frame", frame_crc(count, header, payload), u32::from_le_bytes(stored))
}

/// Who one is, and where one stands: the first message of either side, the replica's first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) node: [u8; 16],
    pub(crate) dataset: [u8; 16],
    /// The highest term that was heard of.
    pub(crate) term: u64,
    /// What is known to be durable: on a primary, of what is on one's line.
    pub(crate) durable: Seq,
    /// Entries one holds.
    pub(crate) records: u64,
    /// The chain up to one's last batch.
    pub(crate) chain: u32,
    pub(crate) is_primary: bool,
    /// The last history of one's line is this run's own.
    pub(crate) has_written: bool,
    /// One is installing, or has not heard of one's primary of late.
    pub(crate) is_unsettled: bool,
    /// The longest body of a record that one takes.
    pub(crate) max_body_len: u32,
    /// The nodes that one follows, the nearest first.
    pub(crate) path: Vec<[u8; 16]>,
    pub(crate) lineage: Vec<Span>,
    /// For people.
    pub(crate) name: String,
}

const HELLO_LEN: usize = 88;

impl Hello {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.node);
        out.extend_from_slice(&self.dataset);
        for field in [self.term, self.durable.0, self.records] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        let flags = [self.is_primary, self.has_written, self.is_unsettled];
        let flags = flags.iter().rev().fold(0, |flags: u32, flag| flags << 1 | u32::from(*flag));
        for field in [self.chain, flags, self.max_body_len, 0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for len in [self.path.len(), self.lineage.len(), self.name.len(), 0] {
            out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        }
        self.path.iter().for_each(|node| out.extend_from_slice(node));
        self.lineage.iter().for_each(|span| span.put(out));
        out.extend_from_slice(self.name.as_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let (node, dataset) = (d.array("node")?, d.array("data set")?);
        let (term, durable) = (d.u64("term")?, d.seq("durable seq")?);
        let records = d.u64("records")?;
        let chain = d.u32("chain")?;
        let flags = d.u32_in("flags of a hello", 0, 7)?;
        let max_body_len = d.u32_in("longest record", 1, super::record::MAX_BODY_LEN)?;
        d.zeros("reserved bytes of a hello", 4)?;
        let path_len = d.u32_in("length of the path", 0, MAX_PATH_LEN)?;
        let spans = d.count("lineage spans", SPAN_LEN)?;
        let name_len = d.u32_in("length of the name", 0, MAX_NAME_LEN)? as usize;
        d.zeros("reserved bytes of a hello", 4)?;
        let path = (0..path_len).map(|_| d.array("node of the path")).collect::<Decoded<_>>()?;
        let lineage = take_lineage(&mut d, spans)?;
        let at = d.at();
        let name = std::str::from_utf8(d.bytes("name", name_len)?);
        let name = name.map_err(|_| Damage::new(at, Fault::Text))?.to_owned();
        d.finish("hello")?;
        let has = |flag: u32| flags & flag != 0;
        Ok(Hello {
            node,
            dataset,
            term,
            durable,
            records,
            chain,
            is_primary: has(1),
            has_written: has(2),
            is_unsettled: has(4),
            max_body_len,
            path,
            lineage,
            name,
        })
    }
}

/// What is needed of a range of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Whatever it holds: what the replica has there is not to be used.
    Anything,
    /// It if it changed after this batch: up to there the replica has it.
    NewerThan(Seq),
    /// As that; and if its entries' fingerprints sum up to something else than the replica's.
    Unless(Seq, u64),
}

/// How a replica wants to get to where its source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Counts what is asked for in a session; the answer has it.
    pub(crate) number: u64,
    /// Mixed into the checksums of the blocks that come, and the number that the first of them is to have.
    pub(crate) file_id: FileId,
    pub(crate) next_block: u64,
    /// Records will do as well, from its last batch on, if they are cheaper.
    pub(crate) takes_records: bool,
    /// Where each range starts, and what is needed of it: they tile the key space.
    pub(crate) needs: Vec<(Vec<u8>, Need)>,
}

/// A range's fields before its key.
pub(crate) const RANGE_LEN: usize = 24;

impl Ask {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.file_id);
        out.extend_from_slice(&self.next_block.to_le_bytes());
        out.extend_from_slice(&u32::from(self.takes_records).to_le_bytes());
        out.extend_from_slice(&u32::try_from(self.needs.len()).unwrap_or(u32::MAX).to_le_bytes());
        for (low, need) in &self.needs {
            let (tag, seq, sum) = match need {
                Need::Anything => (1_u32, 0, 0),
                Need::NewerThan(seq) => (2, seq.0, 0),
                Need::Unless(seq, sum) => (3, seq.0, *sum),
            };
            out.extend_from_slice(&u32::try_from(low.len()).unwrap_or(u32::MAX).to_le_bytes());
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&seq.to_le_bytes());
            out.extend_from_slice(&sum.to_le_bytes());
            out.extend_from_slice(low);
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let (number, file_id) = (d.u64("number of an ask")?, d.array("file id")?);
        // Blocks are numbered as batches are: there is always a next one.
        let next_block = d.seq("ordinal of the next block")?.0;
        let takes_records = d.u32_in("whether records will do", 0, 1)? == 1;
        let count = d.count("ranges", RANGE_LEN)?;
        let mut needs: Vec<(Vec<u8>, Need)> = Vec::with_capacity(count);
        for _ in 0..count {
            let at = d.at();
            let len = d.u32_in("length of a range's start", 0, MAX_INTERNAL_KEY_LEN)? as usize;
            let tag = d.u32_in("need", 1, 3)?;
            let seq = d.seq("seq of a need")?;
            let sum = d.u64("fingerprint of a range")?;
            let low = d.bytes("start of a range", len)?.to_vec();
            let follows = needs.last().map_or(low.is_empty(), |(last, _)| *last < low);
            if !follows || (tag == 1 && seq != Seq(0)) || (tag != 3 && sum != 0) {
                return Err(Damage::new(at, Fault::Order { field: "ranges of an ask" }));
            }
            let need = match tag {
                1 => Need::Anything,
                2 => Need::NewerThan(seq),
                _ => Need::Unless(seq, sum),
            };
            needs.push((low, need));
        }
        d.finish("ask")?;
        if needs.is_empty() {
            return Err(Damage::new(36, Fault::Order { field: "ranges of an ask" }));
        }
        Ok(Ask { number, file_id, next_block, takes_records, needs })
    }
}

/// What a source does about an [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Records follow.
    Records,
    /// A cut and its leaves follow.
    Leaves,
    /// It can't tell now: to be asked again.
    Retry,
    /// The replica is ahead on the source's own line: it waits.
    Wait,
    /// The replica has what the source has lost: they change places.
    Heal,
}

impl Plan {
    /// Persistent: numbered by hand, never reused.
    const ALL: [(u8, Self); 5] =
        [(1, Self::Records), (2, Self::Leaves), (3, Self::Retry), (4, Self::Wait), (5, Self::Heal)];
}

/// The answer to an [`Ask`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) number: u64,
    pub(crate) plan: Plan,
}

impl Offer {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&[number_of(self.plan, &Plan::ALL), 0, 0, 0, 0, 0, 0, 0]);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let number = d.u64("number of an ask")?;
        let plan = one_of(&mut d, "plan", &Plan::ALL)?;
        d.zeros("reserved bytes of an offer", 7)?;
        d.finish("offer")?;
        Ok(Offer { number, plan })
    }
}

/// The state whose leaves follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CutMessage {
    /// Answers this ask.
    pub(crate) number: u64,
    pub(crate) time_ms: u64,
    /// Entries of the whole state, and the sum of their fingerprints.
    pub(crate) records: u64,
    pub(crate) fingerprint: u64,
    /// What of the line is durable on its primary, as far as is known.
    pub(crate) durable: Seq,
    pub(crate) chain: u32,
    /// The line up to the state; empty if that is nothing.
    pub(crate) lineage: Vec<Span>,
}

impl CutMessage {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for field in [self.number, self.time_ms, self.records, self.fingerprint, self.durable.0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        let spans = u32::try_from(self.lineage.len()).unwrap_or(u32::MAX);
        for field in [self.chain, spans] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        self.lineage.iter().for_each(|span| span.put(out));
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let (number, time_ms) = (d.u64("number of an ask")?, d.u64("time")?);
        let (records, fingerprint) = (d.u64("records")?, d.u64("fingerprint")?);
        let durable = d.seq("durable seq")?;
        let chain = d.u32("chain")?;
        let spans = d.count("lineage spans", SPAN_LEN)?;
        let lineage = take_lineage(&mut d, spans)?;
        d.finish("cut")?;
        Ok(CutMessage { number, time_ms, records, fingerprint, durable, chain, lineage })
    }
}

/// The end of a cut's leaves, by what was sent of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) number: u64,
    pub(crate) blocks: u64,
}

impl End {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.blocks.to_le_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let end = End { number: d.u64("number of an ask")?, blocks: d.u64("blocks")? };
        d.finish("end")?;
        Ok(end)
    }
}

/// Where the source stands between two records: what the replica must add up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) position: Position,
    pub(crate) fingerprint: u64,
    /// What of the line is durable on its primary, as far as is known.
    pub(crate) durable: Seq,
    /// By the clock of the primary: how far behind a replica is.
    pub(crate) time_ms: u64,
}

impl Mark {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.position.history.0);
        for field in [self.position.seq.0, self.fingerprint, self.durable.0, self.time_ms] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let history = HistoryId(d.array("history")?);
        let position = Position { history, seq: d.seq("seq")? };
        let (fingerprint, durable) = (d.u64("fingerprint")?, d.seq("durable seq")?);
        let time_ms = d.u64("time")?;
        d.finish("mark")?;
        Ok(Mark { position, fingerprint, durable, time_ms })
    }
}

/// That one is there, and how far one is: sent past all that waits. What a replica is to add up to a [`Mark`] says, in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Beat {
    /// The last batch.
    pub(crate) seq: Seq,
    /// By the clock of the primary, as far as it is known.
    pub(crate) time_ms: u64,
    /// Somebody waits until what is sent is on the other's disk.
    pub(crate) wants_durable: bool,
    /// One has not heard of the primary of late.
    pub(crate) is_unsettled: bool,
    pub(crate) backlog: Backlog,
}

/// How far the log is ahead of what a replica was sent of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backlog {
    pub(crate) bytes: u64,
    /// Growing as it does, the log will drop what the replica was not sent yet after so long, if that is sent no more of it.
    pub(crate) lasts_ms: u64,
}

impl Backlog {
    /// Nothing is known that would end.
    pub(crate) const NONE: Self = Self { bytes: 0, lasts_ms: u64::MAX };
}

impl Beat {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Backlog { bytes, lasts_ms } = self.backlog;
        let flags = u64::from(self.wants_durable) | u64::from(self.is_unsettled) << 32;
        for field in [self.seq.0, self.time_ms, flags, bytes, lasts_ms] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let (seq, time_ms) = (d.seq("seq")?, d.u64("time")?);
        let wants_durable = d.u32_in("whether durability is wanted", 0, 1)? == 1;
        let is_unsettled = d.u32_in("whether the primary was heard", 0, 1)? == 1;
        let backlog = Backlog { bytes: d.u64("bytes ahead")?, lasts_ms: d.u64("time left")? };
        d.finish("beat")?;
        Ok(Beat { seq, time_ms, wants_durable, is_unsettled, backlog })
    }
}

/// How far a replica is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Its last batch.
    pub(crate) applied: Position,
    /// The last that is on its disk.
    pub(crate) durable: Seq,
}

impl Ack {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.applied.history.0);
        out.extend_from_slice(&self.applied.seq.0.to_le_bytes());
        out.extend_from_slice(&self.durable.0.to_le_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let history = HistoryId(d.array("history")?);
        let applied = Position { history, seq: d.seq("seq")? };
        let durable = d.seq("durable seq")?;
        d.finish("ack")?;
        Ok(Ack { applied, durable })
    }
}

/// Why a link ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Whoever says so stops.
    Stopping,
    /// Bytes that make no sense came.
    Protocol,
    /// One would follow oneself.
    Cycle,
    /// The replica does not follow this source by itself; which rule says so is in the detail.
    Refused,
    /// A longer record is to come than the replica takes.
    TooLarge,
    /// There are as many replicas as there may be, or one of this node.
    Busy,
    /// What was sent does not add up.
    Differs,
    /// One's own disk or memory fails.
    Failed,
    /// The other says nothing any more.
    Silent,
    /// A higher term was heard of.
    Fenced,
    /// Another state took the place of the source's: what it sent goes on from nothing.
    Moved,
}

impl Reason {
    /// Persistent: numbered by hand, never reused.
    const ALL: [(u8, Self); 11] = [
        (1, Self::Stopping),
        (2, Self::Protocol),
        (4, Self::Cycle),
        (5, Self::Refused),
        (6, Self::TooLarge),
        (7, Self::Busy),
        (8, Self::Differs),
        (9, Self::Failed),
        (10, Self::Silent),
        (11, Self::Fenced),
        (12, Self::Moved),
    ];
}

/// The last message of either side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bye {
    pub(crate) reason: Reason,
    /// A number that says more, by the reason.
    pub(crate) detail: u64,
}

impl Bye {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[number_of(self.reason, &Reason::ALL), 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&self.detail.to_le_bytes());
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let reason = one_of(&mut d, "reason", &Reason::ALL)?;
        d.zeros("reserved bytes of a bye", 7)?;
        let detail = d.u64("detail")?;
        d.finish("bye")?;
        Ok(Bye { reason, detail })
    }
}

/// Takes spans that follow one another. Some between them may have been dropped.
fn take_lineage(d: &mut Decoder<'_>, spans: usize) -> Decoded<Vec<Span>> {
    let mut lineage: Vec<Span> = Vec::with_capacity(spans);
    for _ in 0..spans {
        let at = d.at();
        let span = Span::take(d)?;
        let follows = lineage.last().is_none_or(|last| last.end < span.start);
        if span.start > span.end || !follows || span.start == Seq(0) || span.end.0 > super::MAX_SEQ
        {
            return Err(Damage::new(at, Fault::Order { field: "lineage" }));
        }
        lineage.push(span);
    }
    Ok(lineage)
}

/// The number of one of these.
fn number_of<T: PartialEq>(one: T, all: &[(u8, T)]) -> u8 {
    all.iter().find(|(_, other)| *other == one).map_or(0, |(number, _)| *number)
}

/// Takes a byte that must be one of these.
fn one_of<T: Copy>(d: &mut Decoder<'_>, field: &'static str, all: &[(u8, T)]) -> Decoded<T> {
    let at = d.at();
    let got = d.u8(field)?;
    match all.iter().find(|(id, _)| *id == got) {
        Some((_, found)) => Ok(*found),
        None => {
            let max = all.iter().map(|(id, _)| *id).max().unwrap_or(0).into();
            Err(Damage::new(at, Fault::Range { field, got: got.into(), min: 1, max }))
        }
    }
}

const _: () = assert!(HELLO_LEN == 32 + 24 + 16 + 16);

#[cfg(test)]
mod tests {
    #![allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        reason = "a test that overflows fails"
    )]
    use super::*;

    fn span(name: u8, start: u64, end: u64) -> Span {
        let (start, end) = (Seq(start), Seq(end));
        Span { history: HistoryId([name; 16]), term: 3, writer: [name; 16], start, end }
    }

    fn hello() -> Hello {
        Hello {
            node: [1; 16],
            dataset: [2; 16],
            term: 3,
            durable: Seq(4),
            records: 5,
            chain: 6,
            is_primary: false,
            has_written: true,
            is_unsettled: false,
            max_body_len: 7,
            path: vec![[8; 16], [9; 16]],
            lineage: vec![span(1, 1, 5), span(2, 9, 9)],
            name: "réplica".to_owned(),
        }
    }

    fn ask() -> Ask {
        let needs = vec![
            (Vec::new(), Need::NewerThan(Seq(5))),
            (b"c".to_vec(), Need::Anything),
            (b"e".to_vec(), Need::NewerThan(Seq(9))),
        ];
        Ask { number: 1, file_id: [2; 16], next_block: 3, takes_records: true, needs }
    }

    fn cut() -> CutMessage {
        CutMessage {
            number: 1,
            time_ms: 2,
            records: 3,
            fingerprint: 4,
            durable: Seq(5),
            chain: 0,
            lineage: vec![span(1, 1, 5)],
        }
    }

    /// Round trip; every beginning is refused, and every byte too much; no changed byte is taken for the same.
    fn check<T: PartialEq + std::fmt::Debug>(
        message: &T,
        encode: impl Fn(&T, &mut Vec<u8>),
        decode: impl Fn(&[u8]) -> Decoded<T>,
    ) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes);
        assert_eq!(decode(&bytes).as_ref(), Ok(message));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{message:?} cut at {len}");
        }
        for at in 0..bytes.len() {
            for change in [1, 0x10, 0x80, 0xFF] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                if let Ok(other) = decode(&changed) {
                    assert_ne!(other, *message, "byte {at}");
                    let mut again = Vec::new();
                    encode(&other, &mut again);
                    assert_eq!(again, changed, "one spelling, byte {at}");
                }
            }
        }
        bytes.push(0);
        assert!(decode(&bytes).is_err());
    }

    #[test]
    fn messages_have_one_spelling() {
        check(&hello(), Hello::encode, Hello::decode);
        let nobody =
            Hello { path: Vec::new(), lineage: Vec::new(), name: String::new(), ..hello() };
        check(&nobody, Hello::encode, Hello::decode);
        check(&ask(), Ask::encode, Ask::decode);
        for (_, plan) in Plan::ALL {
            check(&Offer { number: 9, plan }, Offer::encode, Offer::decode);
        }
        check(&cut(), CutMessage::encode, CutMessage::decode);
        check(&End { number: 1, blocks: 2 }, End::encode, End::decode);
        let position = Position { history: HistoryId([1; 16]), seq: Seq(2) };
        let mark = Mark { position, fingerprint: 3, durable: Seq(4), time_ms: 5 };
        check(&mark, Mark::encode, Mark::decode);
        check(&Ack { applied: position, durable: Seq(1) }, Ack::encode, Ack::decode);
        for (_, reason) in Reason::ALL {
            check(&Bye { reason, detail: 7 }, Bye::encode, Bye::decode);
        }
    }

    #[test]
    fn prefaces_speak_one_version() {
        let preface = Preface { versions: (1, 1), key_id: Some([3; 8]), nonce: [4; 32] };
        assert_eq!(Preface::decode(&preface.encode()), Ok(preface));
        let open = Preface { key_id: None, ..preface };
        assert_eq!(Preface::decode(&open.encode()), Ok(open));
        Preface::decode(&Preface { versions: (0, 9), ..preface }.encode()).unwrap();
        for versions in [(0, 0), (2, 2), (2, 9), (9, 0)] {
            let decoded = Preface::decode(&Preface { versions, ..preface }.encode());
            let fault = decoded.unwrap_err().fault;
            assert!(matches!(fault, Fault::Version { supported: 1, .. }), "{versions:?}");
        }
        for (at, byte) in [(0, 0), (16, 2), (17, 1), (20, 1)] {
            let mut bytes = preface.encode();
            bytes[at] = byte;
            assert!(Preface::decode(&bytes).is_err(), "byte {at}");
        }
        let mut bytes = open.encode();
        bytes[24] = 1;
        assert!(Preface::decode(&bytes).is_err());
    }

    #[test]
    fn a_frame_is_good_in_its_place_alone() {
        for (id, kind) in MessageKind::ALL {
            let header = FrameHeader { len: 5, kind, goes_on: id % 2 == 0 };
            let bytes = header.encode();
            assert_eq!(FrameHeader::decode(&bytes), Ok(header));
            let crc = frame_crc(7, &bytes, b"hello").to_le_bytes();
            check_frame_crc(7, &bytes, b"hello", crc).unwrap();
            assert!(check_frame_crc(8, &bytes, b"hello", crc).is_err());
            assert!(check_frame_crc(7, &bytes, b"hallo", crc).is_err());
        }
        let bytes = FrameHeader { len: 1 << 16, kind: MessageKind::Beat, goes_on: false }.encode();
        FrameHeader::decode(&bytes).unwrap();
        for (at, byte) in [(0, 1), (3, 1), (4, 0), (4, 12), (5, 2), (6, 1), (7, 1)] {
            let mut bytes = bytes;
            bytes[at] = byte;
            assert!(FrameHeader::decode(&bytes).is_err(), "byte {at} = {byte}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |lineage: &[Span]| {
            let mut bytes = Vec::new();
            CutMessage { lineage: lineage.to_vec(), ..cut() }.encode(&mut bytes);
            CutMessage::decode(&bytes).is_err()
        };
        assert!(!refused(&[]));
        for spans in [[span(1, 0, 5), span(2, 6, 7)], [span(1, 1, 5), span(2, 5, 7)]] {
            assert!(refused(&spans));
        }
        assert!(refused(&[span(1, 5, 4)]) && refused(&[span(1, 1, u64::MAX)]));
        let refused = |needs: &[(Vec<u8>, Need)]| {
            let mut bytes = Vec::new();
            Ask { needs: needs.to_vec(), ..ask() }.encode(&mut bytes);
            Ask::decode(&bytes).is_err()
        };
        // There is always a next block. (Found by the fuzzer of sources, which counted on.)
        let mut bytes = Vec::new();
        Ask { next_block: u64::MAX, ..ask() }.encode(&mut bytes);
        assert!(Ask::decode(&bytes).is_err());
        let any = |low: &[u8]| (low.to_vec(), Need::Anything);
        assert!(refused(&[]) && refused(&[any(b"a")]) && refused(&[any(b""), any(b"")]));
        assert!(refused(&[any(b""), any(b"b"), any(b"a")]));
        assert!(!refused(&[any(b""), any(b"b")]));
    }
}
