//! Links between nodes: bytes that come late, in pieces, in part, or to nobody.

use std::collections::VecDeque;

use stillframe::simulation::{Random, SessionEnd};

/// One way of a link.
pub(crate) struct Pipe {
    pieces: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    /// When the last piece comes: nothing overtakes.
    last_due: u64,
    /// Nothing more goes in; who is at the other end learns of it at that time.
    ended: Option<u64>,
    /// What is put in is lost, and that it was too.
    is_dead: bool,
}

/// What comes out of a pipe.
pub(crate) enum Delivered {
    Nothing,
    Bytes(Vec<u8>),
    End,
}

impl Pipe {
    fn new() -> Self {
        Self { pieces: VecDeque::new(), bytes: 0, last_due: 0, ended: None, is_dead: false }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts bytes in, to come in so many milliseconds at the earliest.
    fn put(&mut self, bytes: Vec<u8>, now: u64, delay: u64) {
        if self.is_dead || self.ended.is_some() || bytes.is_empty() {
            return;
        }
        self.last_due = self.last_due.max(now + delay);
        self.bytes += bytes.len();
        self.pieces.push_back((self.last_due, bytes));
    }

    /// Nothing more goes in.
    pub(crate) fn end(&mut self, now: u64) {
        if !self.is_dead {
            self.ended.get_or_insert(self.last_due.max(now));
        }
    }

    /// The connection is lost: of what is on its way the first `kept` bytes come still, and then the end, if that is told.
    pub(crate) fn cut(&mut self, now: u64, kept: usize, is_told: bool) {
        let mut left = kept;
        self.pieces.retain_mut(|(_, piece)| {
            piece.truncate(left);
            left -= piece.len();
            !piece.is_empty()
        });
        self.bytes = self.pieces.iter().map(|(_, piece)| piece.len()).sum();
        if is_told {
            self.end(now);
        } else {
            self.is_dead = true;
        }
    }

    /// A bit of what is on its way changes.
    pub(crate) fn flip(&mut self, random: &mut Random) -> bool {
        let Some((_, piece)) = self.pieces.back_mut() else { return false };
        let at = random.below(piece.len() as u64) as usize;
        piece[at] ^= 1 << random.below(8);
        true
    }

    /// What comes next, up to `most` bytes.
    fn take(&mut self, now: u64, most: usize) -> Delivered {
        let Some((due, piece)) = self.pieces.front_mut() else {
            return match self.ended {
                Some(at) if at <= now => Delivered::End,
                _ => Delivered::Nothing,
            };
        };
        if *due > now {
            return Delivered::Nothing;
        }
        let bytes = if piece.len() <= most {
            self.pieces.pop_front().map(|(_, piece)| piece).unwrap_or_default()
        } else {
            let rest = piece.split_off(most);
            std::mem::replace(piece, rest)
        };
        self.bytes -= bytes.len();
        Delivered::Bytes(bytes)
    }
}

/// Which end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Replica,
    Source,
}

/// A session's two ends, and the pipes between them.
pub(crate) struct Link {
    pub(crate) replica: usize,
    pub(crate) source: usize,
    pub(crate) replica_end: Option<SessionEnd>,
    pub(crate) source_end: Option<SessionEnd>,
    pub(crate) to_source: Pipe,
    pub(crate) to_replica: Pipe,
    /// The longest delay, in milliseconds, and the longest piece.
    pub(crate) delay: u64,
    pub(crate) piece: usize,
    /// Who has so much on its way waits.
    pub(crate) window: usize,
    /// How the replica catches up was looked at, and counted.
    pub(crate) is_predicted: bool,
    pub(crate) is_counted: bool,
    /// How often the source's line had changed when it began.
    pub(crate) source_turns: u64,
    /// The replica began with part of a state.
    pub(crate) has_spool: bool,
}

impl Link {
    pub(crate) fn new(
        (replica, replica_end): (usize, SessionEnd),
        (source, source_end): (usize, SessionEnd),
        random: &mut Random,
    ) -> Self {
        let delay = [1, 3, 10, 40][random.below(4) as usize];
        let piece = [1, 7, 100, 4_096, 1 << 20][random.below(5) as usize];
        let window = [4 << 10, 64 << 10, 1 << 20][random.below(3) as usize];
        Self {
            replica,
            source,
            replica_end: Some(replica_end),
            source_end: Some(source_end),
            to_source: Pipe::new(),
            to_replica: Pipe::new(),
            delay,
            piece,
            window,
            is_predicted: false,
            is_counted: false,
            source_turns: 0,
            has_spool: false,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.replica_end.is_none() && self.source_end.is_none()
    }

    pub(crate) fn node(&self, side: Side) -> usize {
        match side {
            Side::Replica => self.replica,
            Side::Source => self.source,
        }
    }

    /// What this side gets.
    pub(crate) fn inbound(&mut self, side: Side) -> &mut Pipe {
        match side {
            Side::Replica => &mut self.to_replica,
            Side::Source => &mut self.to_source,
        }
    }

    /// What this side says.
    pub(crate) fn outbound(&mut self, side: Side) -> &mut Pipe {
        match side {
            Side::Replica => &mut self.to_source,
            Side::Source => &mut self.to_replica,
        }
    }

    pub(crate) fn end(&mut self, side: Side) -> &mut Option<SessionEnd> {
        match side {
            Side::Replica => &mut self.replica_end,
            Side::Source => &mut self.source_end,
        }
    }

    /// Puts what this side says on its way.
    pub(crate) fn say(&mut self, side: Side, bytes: Vec<u8>, now: u64, random: &mut Random) {
        let delay = random.below(self.delay) + 1;
        self.outbound(side).put(bytes, now, delay);
    }

    /// What comes next to this side.
    pub(crate) fn hear(&mut self, side: Side, now: u64, random: &mut Random) -> Delivered {
        let most = match self.piece {
            1 => 1 + random.below(40) as usize,
            piece => 1 + random.below(piece as u64) as usize,
        };
        self.inbound(side).take(now, most)
    }

    /// This side is gone; the other is told, unless nobody could.
    pub(crate) fn leave(&mut self, side: Side, now: u64, is_told: bool) -> Option<SessionEnd> {
        let pipe = self.outbound(side);
        if is_told {
            pipe.end(now);
        } else {
            pipe.cut(now, usize::MAX, false);
        }
        // What it would have got is for nobody.
        self.inbound(side).cut(now, 0, false);
        self.end(side).take()
    }
}
