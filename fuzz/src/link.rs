//! The targets `source` and `replica`: one side of a link, and whatever the other may say.
//!
//! The first byte of an input says in its lowest two bits how the rest is meant. *Bytes* go to it as they are, from the handshake on. *Messages* go to
//! it in frames that are as they should be: kind, what else happens (1: it goes on; 2: it says first what it has to say; 4: time passes), length (2 bytes),
//! payload. *Edits* change a conversation with a real other side, in five bytes each: which message, what, where (2 bytes), a value. Bit 2: there is a key.
//! Bit 3: the replica has an earlier state of the source. Bit 4: what it has may be given up. Bit 5: the source has a directory, and its
//! log has no more than the last batches. Numbers are little-endian.

use stillframe::simulation::{
    KeptState, SessionEnd, SessionEnded, SimClock, SimDisk, Speaker, TurnOptions,
};
use stillframe::{Builder, Database, LinkKey, Position, SaveOptions, Seq};

/// Damage passes unseen: what is taken need not be what was sent.
const LENIENT: bool = cfg!(all(fuzzing, not(stillframe_checksums)));
/// No more is said at once: a few times what a session makes ready.
const MOST_AT_ONCE: usize = 2 << 20;

/// A source that is told anything stays what it is.
pub fn source(bytes: &[u8]) {
    let (how, bytes) = split(bytes);
    let mut talk = Talk::new(how);
    match how % 4 {
        0 => talk.bytes(true, bytes),
        1 => talk.messages(true, bytes),
        _ => talk.edits(true, bytes),
    }
    talk.check();
}

/// A replica that is told anything is what it was, or what its source was after some batch.
pub fn replica(bytes: &[u8]) {
    let (how, bytes) = split(bytes);
    let mut talk = Talk::new(how);
    match how % 4 {
        0 => talk.bytes(false, bytes),
        1 => talk.messages(false, bytes),
        _ => talk.edits(false, bytes),
    }
    talk.check();
}

fn split(bytes: &[u8]) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(how, rest)| (*how, rest))
}

/// The last batch, and what all adds up to.
type State = (Position, u64);

fn state(db: &Database) -> State {
    (db.position(), db.snapshot().expect("a still").fingerprint())
}

/// A source, a replica, and all that the source has ever been.
struct Talk {
    source: Database,
    replica: Database,
    states: Vec<State>,
    may_discard: bool,
    has_key: bool,
    now_ms: u64,
}

fn builder() -> Builder {
    let builder = Database::builder().clock(SimClock::new(1_000)).disk(SimDisk::new());
    builder.manual_log().manual_reclaim().leaf_entries(4)
}

impl Talk {
    fn new(how: u8) -> Self {
        let has = |bit: u8| how & 1 << bit != 0;
        let on_disk = has(5);
        let source = match on_disk {
            true => builder().open("/db").expect("an empty disk"),
            false => builder().in_memory().expect("memory"),
        };
        let replica = builder().in_memory().expect("memory");
        let states = vec![state(&replica), state(&source)];
        let (may_discard, has_key) = (has(4), has(2));
        let mut talk = Self { source, replica, states, may_discard, has_key, now_ms: 1_000 };
        talk.write(0..30);
        if has(3) {
            talk.replica.begin_following().expect("memory");
            let kept = talk.converse(KeptState::default(), &mut Edits::none());
            drop(kept);
            assert_eq!(state(&talk.replica), state(&talk.source), "without edits it gets there");
        }
        talk.write(20..40);
        if on_disk {
            talk.source.compact_log(SaveOptions::default().threads(1)).expect("a save");
        }
        talk.write(40..44);
        talk.replica.begin_following().expect("memory");
        talk
    }

    fn write(&mut self, numbers: std::ops::Range<u8>) {
        for number in numbers {
            let name = if number % 3 == 0 { "a" } else { "b" };
            let mut before = state(&self.source);
            let space = self.source.keyspace(name).expect("a keyspace");
            self.did(before);
            before = state(&self.source);
            match number {
                17 => space.insert("long", vec![number; 17_000]).expect("an insert"),
                25 => drop(space.delete_range([3]..[9]).expect("a range")),
                26 => drop(space.remove([2]).expect("a remove")),
                _ => space.insert([number % 32], vec![number; 9]).expect("an insert"),
            }
            self.did(before);
        }
    }

    /// A batch was written, and before the first of all the history that it begins.
    fn did(&mut self, before: State) {
        let after = state(&self.source);
        if after.0.seq > before.0.seq {
            let seq = Seq(after.0.seq.0 - 1);
            self.states.extend([(Position { seq, ..after.0 }, before.1), after]);
        }
    }

    fn options(&self, nonce: u8) -> TurnOptions {
        let key = self.has_key.then(|| LinkKey::new([5; 32]));
        TurnOptions { key, beat_ms: 1_000, timeout_ms: 10_000, nonce: [nonce; 32] }
    }

    fn kept(&self) -> KeptState {
        let mut kept = KeptState::default();
        if self.may_discard {
            kept.allow_discard();
        }
        kept
    }

    /// The side that is told something.
    fn end(&self, of_source: bool, kept: KeptState) -> SessionEnd {
        match of_source {
            true => SessionEnd::source(&self.source, &self.options(1), self.now_ms)
                .expect("it has a log")
                .block_bytes(100),
            false => SessionEnd::replica(&self.replica, &self.options(2), kept, self.now_ms),
        }
    }

    fn bytes(&mut self, of_source: bool, bytes: &[u8]) {
        let mut end = self.end(of_source, self.kept());
        let mut out = Vec::new();
        let half = bytes.len() / 2;
        for part in [&bytes[..half], &bytes[half..]] {
            if end.receive(part, self.now_ms, &mut out).is_err() || self.fill(&mut end).is_err() {
                return;
            }
        }
    }

    /// What it has to say now, and a second later.
    fn fill(&mut self, end: &mut SessionEnd) -> Result<Vec<u8>, SessionEnded> {
        let mut said = Vec::new();
        for _ in 0..64 {
            let mut out = Vec::new();
            let has_more = end.fill(self.now_ms, &mut out);
            assert!(out.len() < MOST_AT_ONCE, "{} bytes at once", out.len());
            said.extend(out);
            if !has_more? {
                return Ok(said);
            }
        }
        panic!("it never ends: {} bytes", said.len());
    }

    fn messages(&mut self, of_source: bool, mut bytes: &[u8]) {
        let mut end = self.end(of_source, self.kept());
        let mut speaker = match of_source {
            true => Speaker::client(&self.options(3)),
            false => Speaker::server(&self.options(3)),
        };
        let (mut to_end, mut to_speaker) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            to_speaker.extend(self.fill(&mut end).expect("nothing came"));
            let said = std::mem::take(&mut to_speaker);
            speaker.receive(&said, &mut to_end).expect("it is what it should be");
            let told = std::mem::take(&mut to_end);
            end.receive(&told, self.now_ms, &mut to_speaker).expect("it is what it should be");
        }
        assert!(speaker.is_open(), "both have the key");
        while let Some((&[kind, flags, low, high], rest)) = bytes.split_first_chunk() {
            let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
            let (payload, rest) = rest.split_at(len);
            bytes = rest;
            if flags & 2 != 0 && self.fill(&mut end).is_err() {
                return;
            }
            if flags & 4 != 0 {
                self.now_ms += 300;
            }
            let mut said = Vec::new();
            speaker.say(kind, payload, flags & 1 != 0, &mut said);
            if end.receive(&said, self.now_ms, &mut Vec::new()).is_err() {
                return;
            }
        }
        // It may have something to say about the last.
        let _ = self.fill(&mut end);
    }

    fn edits(&mut self, of_source: bool, bytes: &[u8]) {
        let mut edits = Edits::of(of_source, bytes);
        let mut kept = self.kept();
        for _ in 0..3 {
            kept = self.converse(kept, &mut edits);
        }
        // Of what was changed below the frames nothing is taken; whatever the other side was made to say may have consequences.
        if !LENIENT && edits.all.iter().all(|edit| edit.what % WAYS == BELOW) {
            let found = state(&self.replica);
            assert!(self.states.contains(&found), "{} was never the source's", found.0);
            self.converse(KeptState::default(), &mut Edits::none());
            assert_eq!(state(&self.replica), state(&self.source), "it gets there");
        }
    }

    /// One session between the two, with somebody in between who edits. Returns what the replica keeps.
    fn converse(&mut self, kept: KeptState, edits: &mut Edits) -> KeptState {
        let (mut source, mut replica) =
            (self.end(true, KeptState::default()), self.end(false, kept));
        let (mut to_source, mut to_replica) =
            (Speaker::client(&self.options(3)), Speaker::server(&self.options(4)));
        let _ = self.pump((&mut source, &mut to_source), (&mut replica, &mut to_replica), edits);
        replica.into_kept()
    }

    /// Until nobody has anything to say; fails when the session ends.
    fn pump(
        &mut self,
        (source, to_source): (&mut SessionEnd, &mut Speaker),
        (replica, to_replica): (&mut SessionEnd, &mut Speaker),
        edits: &mut Edits,
    ) -> Result<(), Over> {
        let mut idle = 0;
        // What is on its way: to whom it goes it goes by the speaker that stands for the other.
        let (mut for_source, mut for_replica) = (Vec::new(), Vec::new());
        for _ in 0..400 {
            let (mut from_source, mut from_replica) =
                (std::mem::take(&mut for_source), std::mem::take(&mut for_replica));
            let (mut more_source, mut more_replica) = (Vec::new(), Vec::new());
            edits.below(true, &mut from_source);
            edits.below(false, &mut from_replica);
            let is_quiet = from_source.is_empty() && from_replica.is_empty();
            source.receive(&from_source, self.now_ms, &mut more_source)?;
            replica.receive(&from_replica, self.now_ms, &mut more_replica)?;
            more_source.extend(self.fill(source)?);
            more_replica.extend(self.fill(replica)?);
            let said = to_source.receive(&more_source, &mut for_source)?;
            let asked = to_replica.receive(&more_replica, &mut for_replica)?;
            for (is_asked, messages) in [(true, asked), (false, said)] {
                for (kind, payload) in edits.edited(is_asked, messages) {
                    match is_asked {
                        true => to_source.say(kind, &payload, false, &mut for_source),
                        false => to_replica.say(kind, &payload, false, &mut for_replica),
                    }
                }
            }
            idle = if is_quiet && for_source.is_empty() && for_replica.is_empty() {
                idle + 1
            } else {
                0
            };
            if idle > 2 {
                return Ok(());
            }
            // Who is to wait asks again.
            self.now_ms += if idle > 0 { 300 } else { 1 };
        }
        Ok(())
    }

    fn check(&self) {
        self.source.check();
        self.replica.check();
        let (source, replica) = (state(&self.source), state(&self.replica));
        let last = self.states.last().expect("it was written to");
        assert_eq!(source.1, last.1, "nobody changes a source");
        assert!(
            LENIENT || self.states.iter().any(|(_, sum)| *sum == replica.1),
            "{} was never the source's",
            replica.0
        );
    }
}

/// A session is over, whatever the reason.
struct Over;

impl From<SessionEnded> for Over {
    fn from(_: SessionEnded) -> Self {
        Over
    }
}

impl From<String> for Over {
    fn from(_: String) -> Self {
        Over
    }
}

/// Kinds of edits, and the one that changes bytes below the frames.
const WAYS: u8 = 12;
const BELOW: u8 = 11;

struct Edit {
    nth: u8,
    what: u8,
    at: usize,
    value: u8,
}

/// What is done to messages of one direction, by their number in all sessions.
struct Edits {
    of_source: bool,
    all: Vec<Edit>,
    count: u8,
    before: Vec<(u8, Vec<u8>)>,
    bytes: usize,
}

impl Edits {
    fn none() -> Self {
        Self::of(true, &[])
    }

    fn of(of_source: bool, bytes: &[u8]) -> Self {
        let (edits, _) = bytes.as_chunks();
        let edit = |&[nth, what, low, high, value]: &[u8; 5]| {
            let at = usize::from(u16::from_le_bytes([low, high]));
            Edit { nth, what, at, value }
        };
        let all = edits.iter().take(32).map(edit).collect();
        Self { of_source, all, count: 0, before: Vec::new(), bytes: 0 }
    }

    /// The messages, with what was done to them.
    fn edited(&mut self, for_source: bool, messages: Vec<(u8, Vec<u8>)>) -> Vec<(u8, Vec<u8>)> {
        if for_source != self.of_source || self.all.is_empty() {
            return messages;
        }
        let mut out = Vec::new();
        for (mut kind, mut payload) in messages {
            self.before.push((kind, payload.clone()));
            let nth = self.count;
            self.count = self.count.wrapping_add(1);
            let (mut times, mut other) = (1, None);
            for edit in self.all.iter().filter(|edit| edit.nth == nth) {
                let at = edit.at % payload.len().max(1);
                match edit.what % WAYS {
                    0 => payload
                        .iter_mut()
                        .skip(at)
                        .take(1)
                        .for_each(|b| *b ^= 1 << (edit.value % 8)),
                    1 => payload.iter_mut().skip(at).take(1).for_each(|b| *b = edit.value),
                    2 => times = 0,
                    3 => times = 2,
                    4 => payload.truncate(at),
                    5 => payload.extend(vec![edit.value; 1 + at % 300]),
                    6 => kind = edit.value,
                    7 => drop(payload.drain(at..(at + usize::from(edit.value)).min(payload.len()))),
                    8 => number(&mut payload, at, edit.value),
                    9 => other = self.before.get(edit.at % self.before.len()).cloned(),
                    10 => payload.insert(at, edit.value),
                    _ => {}
                }
            }
            for _ in 0..times {
                out.push((kind, payload.clone()));
            }
            out.extend(other);
        }
        out
    }

    /// Changes single bytes on their way, by their number in that direction.
    fn below(&mut self, for_source: bool, bytes: &mut [u8]) {
        if for_source != self.of_source {
            return;
        }
        for edit in self.all.iter().filter(|edit| edit.what % WAYS == BELOW) {
            let at = edit.at + usize::from(edit.nth) * 32;
            if let Some(byte) = at.checked_sub(self.bytes).and_then(|at| bytes.get_mut(at)) {
                *byte ^= edit.value;
            }
        }
        self.bytes += bytes.len();
    }
}

/// Puts a number that readers may stumble over.
fn number(payload: &mut [u8], at: usize, value: u8) {
    let numbers = [0, 1, 2, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, 1 << 62, 1 << 63, u64::MAX - 1];
    let number = numbers.get(usize::from(value)).copied().unwrap_or(u64::MAX).to_le_bytes();
    payload.iter_mut().skip(at).zip(number).for_each(|(byte, new)| *byte = new);
}
