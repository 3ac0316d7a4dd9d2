//! Handshakes and frames: cut anywhere, changed anywhere, played again, sent back.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test that overflows fails"
)]
use super::*;
use crate::format::wire::PREFACE_LEN;
use crate::replication::auth::PROOF_LEN;

type Outcome = Result<Option<(Sealer, Opener)>, LinkFault>;

fn secrets(keys: &[u8]) -> Secrets {
    let keys = keys.iter().map(|key| LinkKey::new([*key; 32])).collect();
    Secrets { keys, binding: [0; 32] }
}

/// One end of a handshake: what it has said, how much of the other's words it has heard, and what came of it.
struct End {
    side: Side,
    handshake: Handshake,
    said: Vec<u8>,
    heard: usize,
    outcome: Outcome,
}

impl End {
    fn new(side: Side, (handshake, said): (Handshake, Vec<u8>)) -> Self {
        End { side, handshake, said, heard: 0, outcome: Ok(None) }
    }

    fn hear(&mut self, other: &End, step: usize, change: &impl Fn(Side, usize) -> u8) {
        while self.heard < other.said.len() && matches!(self.outcome, Ok(None)) {
            let end = other.said.len().min(self.heard + step);
            let bytes = (self.heard..end).map(|at| other.said[at] ^ change(other.side, at));
            let bytes: Vec<u8> = bytes.collect();
            self.outcome = self.handshake.receive(&bytes, &mut self.said);
            self.heard = end;
        }
    }
}

/// What came of a handshake, and what each side has said.
struct Shaken {
    client: Outcome,
    server: Outcome,
    from_client: Vec<u8>,
    from_server: Vec<u8>,
}

/// Runs a handshake in which at most `step` bytes arrive at a time, changed in flight: `change` is told who said them and the place.
fn shake(
    (client, server): (&Secrets, &Secrets),
    step: usize,
    change: impl Fn(Side, usize) -> u8,
) -> Shaken {
    let mut client = End::new(Side::Client, Handshake::client(client, [1; 32]));
    let mut server = End::new(Side::Server, (Handshake::server(server, [2; 32]), Vec::new()));
    loop {
        let before = (client.heard, server.heard);
        server.hear(&client, step, &change);
        client.hear(&server, step, &change);
        if before == (client.heard, server.heard) {
            return Shaken {
                client: client.outcome,
                server: server.outcome,
                from_client: client.said,
                from_server: server.said,
            };
        }
    }
}

/// Both ends of a link: the client's first.
fn link(keys: &[u8]) -> ((Sealer, Opener), (Sealer, Opener)) {
    let shaken = shake((&secrets(keys), &secrets(keys)), PREFACE_LEN, |_, _| 0);
    let ends = (shaken.client.ok().flatten(), shaken.server.ok().flatten());
    (ends.0.expect("done"), ends.1.expect("done"))
}

fn fault(outcome: Outcome) -> Option<LinkFault> {
    outcome.err()
}

fn is_done(outcome: &Outcome) -> bool {
    matches!(outcome, Ok(Some(_)))
}

/// Messages in order, until there are no more, and why.
fn opened(opener: &mut Opener) -> (Vec<(MessageKind, Vec<u8>)>, Option<LinkFault>) {
    let mut messages = Vec::new();
    loop {
        match opener.next() {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, None),
            Err(fault) => return (messages, Some(fault)),
        }
    }
}

#[test]
fn a_handshake_is_the_same_however_it_is_cut() {
    for keys in [&[][..], &[7]] {
        let secrets = secrets(keys);
        for step in 1..=PREFACE_LEN + PROOF_LEN {
            let shaken = shake((&secrets, &secrets), step, |_, _| 0);
            let (mut client, mut server) =
                (shaken.client.unwrap().unwrap(), shaken.server.unwrap().unwrap());
            let len = PREFACE_LEN + if keys.is_empty() { 0 } else { PROOF_LEN };
            assert_eq!((shaken.from_client.len(), shaken.from_server.len()), (len, len));
            for (from, to) in [(&mut client.0, &mut server.1), (&mut server.0, &mut client.1)] {
                let mut bytes = Vec::new();
                from.seal(MessageKind::Ack, b"payload", &mut bytes);
                to.receive(&bytes);
                let expected = (MessageKind::Ack, b"payload".to_vec());
                assert_eq!(opened(to), (vec![expected], None));
            }
        }
    }
}

/// The proof is complete with its last byte, and not before; a server says nothing until then but its preface.
#[test]
fn every_beginning_of_a_handshake_waits_for_more() {
    let secrets = secrets(&[7]);
    let whole = shake((&secrets, &secrets), 1, |_, _| 0);
    for len in 0..whole.from_client.len() {
        let mut server = Handshake::server(&secrets, [2; 32]);
        let mut out = Vec::new();
        assert!(matches!(server.receive(&whole.from_client[..len], &mut out), Ok(None)));
        assert_eq!(out.len(), if len < PREFACE_LEN { 0 } else { PREFACE_LEN });
        let (mut client, _) = Handshake::client(&secrets, [1; 32]);
        let mut out = Vec::new();
        assert!(matches!(client.receive(&whole.from_server[..len], &mut out), Ok(None)));
        assert_eq!(out.len(), if len < PREFACE_LEN { 0 } else { PROOF_LEN });
    }
}

#[test]
fn either_both_have_the_key_or_neither_has_one() {
    let done: Option<LinkFault> = None;
    let refused = Some(LinkFault::NoProof);
    for (client, server, expected) in [
        (&[][..], &[][..], &done),
        (&[1], &[1], &done),
        (&[1], &[3, 2, 1], &done),
        // The client proves its first.
        (&[1, 2], &[1], &done),
        (&[1, 2], &[2], &refused),
        (&[1], &[2], &refused),
        (&[1], &[], &refused),
        (&[], &[1], &refused),
    ] {
        let shaken = shake((&secrets(client), &secrets(server)), 99, |_, _| 0);
        let is_done = expected.is_none();
        assert_eq!(is_done, self::is_done(&shaken.client), "{client:?} {server:?}");
        assert_eq!(is_done, self::is_done(&shaken.server), "{client:?} {server:?}");
        assert_eq!(fault(shaken.server), *expected, "{client:?} {server:?}");
        assert_eq!(shaken.from_server.is_empty(), !is_done, "a stranger hears nothing");
    }
    // Servers that answer all the same.
    for (client, server, expected) in [
        (&[][..], Some(1), LinkFault::NoProof),
        (&[1], None, LinkFault::NoProof),
        (&[1], Some(2), LinkFault::NoProof),
    ] {
        let key_id = server.map(|key| LinkKey::new([key; 32]).id());
        let answer = Preface { versions: (1, 1), key_id, nonce: [2; 32] }.encode();
        let (mut client, _) = Handshake::client(&secrets(client), [1; 32]);
        let mut out = Vec::new();
        assert_eq!(fault(client.receive(&answer, &mut out)), Some(expected.clone()));
        assert!(out.is_empty());
        assert_eq!(fault(client.receive(&answer, &mut out)), Some(expected), "over");
    }
}

#[test]
fn versions_must_meet() {
    let preface = |low, high| Preface { versions: (low, high), key_id: None, nonce: [2; 32] };
    let version = |got| Some(LinkFault::Version { got, supported: LINK_VERSION });
    let mismatch = |got, expected| {
        let field = "chosen version of the link";
        Some(LinkFault::Fault(Fault::Mismatch { field, got, expected }))
    };
    for ((low, high), at_server, at_client) in [
        ((1, 1), None, None),
        ((0, 9), None, mismatch(0, 9)),
        ((1, 2), None, mismatch(1, 2)),
        ((2, 3), version(2), version(2)),
        ((0, 0), version(0), version(0)),
    ] {
        let bytes = preface(low, high).encode();
        let mut server = Handshake::server(&secrets(&[]), [2; 32]);
        assert_eq!(fault(server.receive(&bytes, &mut Vec::new())), at_server, "{low} {high}");
        let (mut client, _) = Handshake::client(&secrets(&[]), [1; 32]);
        assert_eq!(fault(client.receive(&bytes, &mut Vec::new())), at_client, "{low} {high}");
    }
    let mut server = Handshake::server(&secrets(&[]), [2; 32]);
    let magic = fault(server.receive(&[b'x'; PREFACE_LEN], &mut Vec::new()));
    assert_eq!(magic, Some(LinkFault::Fault(Fault::Magic)));
}

#[test]
fn another_channel_beneath_is_another_transcript() {
    let (own, other) = (secrets(&[7]), Secrets { binding: [9; 32], ..secrets(&[7]) });
    let shaken = shake((&own, &other), 99, |_, _| 0);
    assert_eq!(fault(shaken.server), Some(LinkFault::NoProof));
    assert_eq!(shaken.from_server.len(), PREFACE_LEN);
    let shaken = shake((&other, &other), 99, |_, _| 0);
    assert!(is_done(&shaken.server) && is_done(&shaken.client));
}

#[test]
fn no_byte_of_a_proved_handshake_can_be_changed() {
    let secrets = secrets(&[7]);
    for side in [Side::Client, Side::Server] {
        for at in 0..PREFACE_LEN + PROOF_LEN {
            for change in [1, 0x10, 0x80, 0xFF] {
                let in_flight = |by, place| if (by, place) == (side, at) { change } else { 0 };
                let shaken = shake((&secrets, &secrets), 99, in_flight);
                assert!(!is_done(&shaken.client), "{side:?} byte {at}");
                // But for the very last word, which is the server's.
                let is_last = side == Side::Server && at >= PREFACE_LEN;
                assert_eq!(is_done(&shaken.server), is_last, "{side:?} byte {at}");
                assert!(shaken.client.is_err() || shaken.server.is_err());
            }
        }
    }
}

#[test]
fn what_was_said_before_or_by_oneself_proves_nothing() {
    let secrets = secrets(&[7]);
    let before = shake((&secrets, &secrets), 99, |_, _| 0);
    let refused = Some(LinkFault::NoProof);
    let mut out = Vec::new();
    // A recorded client, a recorded server.
    let mut server = Handshake::server(&secrets, [3; 32]);
    assert_eq!(fault(server.receive(&before.from_client, &mut out)), refused);
    assert!(out.is_empty(), "what was to be sent is taken back");
    let (mut client, _) = Handshake::client(&secrets, [4; 32]);
    assert_eq!(fault(client.receive(&before.from_server, &mut out)), refused);
    assert!(out.is_empty());
    // A mirror.
    let (mut client, preface) = Handshake::client(&secrets, [4; 32]);
    assert!(matches!(client.receive(&preface, &mut out), Ok(None)));
    assert_eq!(out.len(), PROOF_LEN);
    assert_eq!(fault(client.receive(&out.clone(), &mut out)), refused);
    // The server's own proof, by who knows it.
    let mut server = Handshake::server(&secrets, [2; 32]);
    let mut out = Vec::new();
    assert!(matches!(server.receive(&before.from_client[..PREFACE_LEN], &mut out), Ok(None)));
    assert_eq!(fault(server.receive(&before.from_server[PREFACE_LEN..], &mut out)), refused);
}

#[test]
fn a_stranger_costs_a_hundred_bytes() {
    let secrets = secrets(&[7]);
    let much = vec![7; 8 << 20];
    let before = shake((&secrets, &secrets), 99, |_, _| 0);
    for known in [0, 8, PREFACE_LEN - 1, PREFACE_LEN, PREFACE_LEN + PROOF_LEN - 1] {
        let mut server = Handshake::server(&secrets, [2; 32]);
        let begun = server.receive(&before.from_client[..known], &mut Vec::new());
        assert!(matches!(begun, Ok(None)));
        assert!(server.held.capacity() <= 128);
        assert!(server.receive(&much, &mut Vec::new()).is_err());
        assert_eq!(server.held.capacity(), 0);
    }
}

#[test]
fn what_comes_behind_a_handshake_is_opened() {
    for keys in [&[][..], &[7]] {
        let secrets = secrets(keys);
        let whole = shake((&secrets, &secrets), 99, |_, _| 0);
        let (mut from_client, mut from_server) =
            (whole.client.unwrap().unwrap(), whole.server.unwrap().unwrap());
        let expected = vec![(MessageKind::Hello, b"hello".to_vec())];

        let mut bytes = whole.from_client;
        from_client.0.seal(MessageKind::Hello, b"hello", &mut bytes);
        let mut server = Handshake::server(&secrets, [2; 32]);
        let mut done = server.receive(&bytes, &mut Vec::new()).unwrap().unwrap();
        assert_eq!(opened(&mut done.1), (expected.clone(), None));
        assert_eq!(fault(server.receive(b"more", &mut Vec::new())), Some(LinkFault::NoProof));

        let mut bytes = whole.from_server;
        from_server.0.seal(MessageKind::Hello, b"hello", &mut bytes);
        let (mut client, _) = Handshake::client(&secrets, [1; 32]);
        let mut done = client.receive(&bytes, &mut Vec::new()).unwrap().unwrap();
        assert_eq!(opened(&mut done.1), (expected, None));
    }
}

#[test]
fn messages_come_out_as_they_went_in() {
    for keys in [&[][..], &[7]] {
        for step in [1, 7, 8, 4096, usize::MAX] {
            let ((mut sealer, _), (_, mut opener)) = link(keys);
            opener.set_record_limit(3 * MAX_PAYLOAD_LEN);
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (len, kind) in [
                (0, MessageKind::Beat),
                (1, MessageKind::Ack),
                (MAX_PAYLOAD_LEN, MessageKind::Bye),
                (MAX_PAYLOAD_LEN + 1, MessageKind::Records),
                (3 * MAX_PAYLOAD_LEN, MessageKind::Records),
                (100, MessageKind::Ask),
            ] {
                let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
                sealer.seal(kind, &payload, &mut bytes);
                expected.push((kind, payload));
            }
            sealer.seal_with(MessageKind::Mark, &mut bytes, |out| out.extend(b"in place"));
            expected.push((MessageKind::Mark, b"in place".to_vec()));
            let mut got = Vec::new();
            for piece in bytes.chunks(step.min(bytes.len())) {
                opener.receive(piece);
                let (messages, fault) = opened(&mut opener);
                assert_eq!(fault, None);
                got.extend(messages);
            }
            assert!(got == expected, "{keys:?} in steps of {step}");
            assert_eq!(opener.buffer.len(), opener.start);
        }
    }
}

#[test]
fn messages_of_other_kinds_come_in_between() {
    for keys in [&[][..], &[7]] {
        let ((mut sealer, _), (_, mut opener)) = link(keys);
        let mut bytes = Vec::new();
        let out = &mut bytes;
        sealer.seal_part(MessageKind::Records, b"one ", true, out);
        sealer.seal(MessageKind::Beat, b"", out);
        sealer.seal_part(MessageKind::Block, b"", true, out);
        sealer.seal_part(MessageKind::Records, b"two ", true, out);
        sealer.seal_part(MessageKind::Block, b"block", false, out);
        sealer.seal(MessageKind::Ack, b"ack", out);
        sealer.seal_part(MessageKind::Records, b"three", false, out);
        sealer.seal(MessageKind::Records, b"four", out);
        opener.receive(&bytes);
        let expected = [
            (MessageKind::Beat, &b""[..]),
            (MessageKind::Block, b"block"),
            (MessageKind::Ack, b"ack"),
            (MessageKind::Records, b"one two three"),
            (MessageKind::Records, b"four"),
        ];
        let expected = expected.map(|(kind, payload)| (kind, payload.to_vec())).to_vec();
        assert_eq!(opened(&mut opener), (expected, None));
        assert!(opener.unfinished.is_empty());
    }
}

/// Enough follows that a changed length can't make it wait.
#[test]
fn no_byte_of_a_frame_can_be_changed() {
    for keys in [&[][..], &[7]] {
        let ((mut sealer, _), _) = link(keys);
        let mut bytes = Vec::new();
        sealer.seal(MessageKind::Mark, b"payload", &mut bytes);
        let len = bytes.len();
        sealer.seal(MessageKind::Records, &[5; 2 * MAX_PAYLOAD_LEN], &mut bytes);
        for at in 0..len {
            for change in (0..8).map(|bit| 1 << bit).chain([0xFF]) {
                let (_, (_, mut opener)) = link(keys);
                bytes[at] ^= change;
                opener.receive(&bytes);
                bytes[at] ^= change;
                let (messages, fault) = opened(&mut opener);
                assert!(messages.is_empty() && fault.is_some(), "byte {at}");
                // Nothing makes up for it.
                opener.receive(&bytes);
                assert_eq!(opened(&mut opener), (Vec::new(), fault));
                assert_eq!(opener.buffer.capacity(), 0);
            }
        }
    }
}

#[test]
fn frames_are_good_in_their_order_alone() {
    for keys in [&[][..], &[7]] {
        let ((mut sealer, mut own), _) = link(keys);
        let frames = [0, 1, 2, 3].map(|name| {
            let mut frame = Vec::new();
            sealer.seal(MessageKind::Ack, &[name], &mut frame);
            frame
        });
        for (order, good) in [
            (&[0, 1, 2, 3][..], 4),
            (&[1, 0], 0),
            (&[0, 2, 1, 3], 1),
            (&[0, 1, 3], 2),
            (&[0, 0, 1], 1),
            (&[0, 1, 2, 2], 3),
            (&[3, 0, 1, 2], 0),
        ] {
            let (_, (_, mut opener)) = link(keys);
            order.iter().for_each(|index: &usize| opener.receive(&frames[*index]));
            let (messages, fault) = opened(&mut opener);
            let got: Vec<u8> = messages.iter().map(|(_, payload)| payload[0]).collect();
            let expected: Vec<u8> = (0..good).collect();
            assert_eq!(got, expected, "{order:?}");
            assert_eq!(fault.is_none(), got.len() == order.len(), "{order:?}");
        }
        // Sent back to who sealed them; of another session.
        if !keys.is_empty() {
            let foreign = Some(LinkFault::Fault(Fault::Foreign { field: "frame" }));
            own.receive(&frames[0]);
            assert_eq!(opened(&mut own), (Vec::new(), foreign.clone()));
            let (_, (_, mut other)) = link(&[8]);
            other.receive(&frames[0]);
            assert_eq!(opened(&mut other), (Vec::new(), foreign));
        }
    }
}

#[test]
fn what_is_too_long_is_refused() {
    let header = FrameHeader { len: 0, kind: MessageKind::Beat, goes_on: false }.encode();
    for (len, is_refused) in [(65_536_u32, false), (65_537, true), (u32::MAX, true)] {
        let (_, (_, mut opener)) = link(&[7]);
        let mut header = header;
        header[..4].copy_from_slice(&len.to_le_bytes());
        opener.receive(&header);
        assert_eq!(opener.next().is_err(), is_refused, "{len}");
        assert!(opener.buffer.capacity() < 100, "nothing is reserved for what was announced");
    }
    for (kind, limit) in [
        (MessageKind::Hello, LINEAGE_LIMIT),
        (MessageKind::Cut, LINEAGE_LIMIT),
        (MessageKind::Block, BLOCK_LIMIT),
        (MessageKind::Records, 300_000),
        (MessageKind::Ack, USUAL_LIMIT),
        (MessageKind::Beat, USUAL_LIMIT),
    ] {
        let ((mut sealer, _), (_, mut opener)) = link(&[]);
        opener.set_record_limit(300_000);
        let mut bytes = Vec::new();
        sealer.seal(kind, &vec![1; limit], &mut bytes);
        sealer.seal(kind, &vec![2; limit + 1], &mut bytes);
        opener.receive(&bytes);
        let (messages, fault) = opened(&mut opener);
        assert!(messages == [(kind, vec![1; limit])]);
        assert_eq!(fault, Some(LinkFault::TooLong { kind, len: limit + 1, limit }));
    }
}

#[test]
fn the_buffer_does_not_grow_with_what_was_taken() {
    let ((mut sealer, _), (_, mut opener)) = link(&[]);
    let mut bytes = Vec::new();
    for _ in 0..10_000 {
        sealer.seal(MessageKind::Ack, &[1; 100], &mut bytes);
    }
    let mut count = 0;
    for piece in bytes.chunks(1000) {
        opener.receive(piece);
        count += opened(&mut opener).0.len();
        assert!(opener.buffer.capacity() < 5000);
    }
    assert_eq!(count, 10_000);
}

#[test]
#[should_panic(expected = "payload of 65537 bytes in one frame")]
fn a_frame_holds_so_much() {
    let ((mut sealer, _), _) = link(&[]);
    let fill = |out: &mut Vec<u8>| out.resize(out.len() + MAX_PAYLOAD_LEN + 1, 0);
    sealer.seal_with(MessageKind::Records, &mut Vec::new(), fill);
}

#[test]
fn faults_are_said_in_words() {
    for (fault, expected) in [
        (LinkFault::Fault(Fault::Magic), "the other side is no stillframe node"),
        (LinkFault::NoProof, "the other side has not proved the shared key"),
        (
            LinkFault::Version { got: 2, supported: 1 },
            "the other side speaks version 2, this release speaks 1",
        ),
        (
            LinkFault::TooLong { kind: MessageKind::Ack, len: 9, limit: 8 },
            "ack of 9 bytes or more, the limit is 8",
        ),
    ] {
        assert_eq!(fault.to_string(), expected);
    }
}
