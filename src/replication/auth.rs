//! Proof of a shared key, mutual and fresh: nothing is done for who has not shown that he has it.
//!
//! Both sides send 32 random bytes and what they offer, in the clear. From all of that and the key comes a *pair key*; each proves that he has
//! it by a MAC over his own role, the one who connects first: whoever merely listens on a port tells strangers nothing that they could test
//! keys against. What was offered is bound in, so that nobody in between can talk both into less; roles are, so that nobody can send back to one what
//! he said; both sides' random bytes are, so that nothing can be played again. Every frame after that has a MAC over its count and its bytes, by
//! a key of its direction.
//!
//! HMAC with SHA-256 (RFC 2104, FIPS 198-1). Not given: secrecy, and that what was recorded stays useless to who learns the key later: that is
//! TLS's. Whoever has the key can be either side.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::format::wire::{FRAME_HEADER_LEN, PREFACE_LEN};

/// What stands behind a frame on a link with a key.
pub(crate) const TAG_LEN: usize = 16;
pub(crate) const PROOF_LEN: usize = 32;

const CONTEXT: &[u8] = b"stillframe link 1";

/// A secret that all nodes share which may replicate each other: 32 random bytes, no password.
///
/// Its `Debug` tells nothing.
///
/// ```
/// use std::io::Read;
/// use stillframe::LinkKey;
///
/// let mut bytes = [0; 32];
/// std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
/// let key = LinkKey::new(bytes);
/// # drop(key);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct LinkKey([u8; 32]);

impl LinkKey {
    /// The key of these bytes, which must come from a generator of random ones: a password can be guessed by who listens.
    pub fn new(bytes: [u8; 32]) -> Self {
        LinkKey(bytes)
    }

    /// Names the key among several that a side may have, and tells nothing of it.
    pub(crate) fn id(&self) -> [u8; 8] {
        first(&mac(&self.0, &[b"key id"]))
    }
}

impl fmt::Debug for LinkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkKey(..)")
    }
}

/// Which side of a link one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Who connected.
    Client,
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// What both sides of one link have in common, if they have the key.
#[derive(Clone)]
pub(crate) struct PairKey([u8; 32]);

impl PairKey {
    /// `first` and `second` are what was sent in the clear; `binding` names the channel beneath, as TLS exports it, or is zeros.
    pub(crate) fn new(
        key: &LinkKey,
        first: &[u8; PREFACE_LEN],
        second: &[u8; PREFACE_LEN],
        binding: &[u8; 32],
    ) -> Self {
        let mut transcript = Sha256::new();
        for part in [CONTEXT, first, second, binding] {
            transcript.update(part);
        }
        PairKey(mac(&key.0, &[&transcript.finalize()]))
    }

    /// What `side` sends to prove that it has the key.
    pub(crate) fn proof(&self, side: Side) -> [u8; PROOF_LEN] {
        mac(&self.0, &[role(side)])
    }

    /// Whether `proof` is that of `side`; takes as long whatever is wrong with it.
    pub(crate) fn proves(&self, side: Side, proof: &[u8; PROOF_LEN]) -> bool {
        hasher(&self.0, &[role(side)]).verify_slice(proof).is_ok()
    }

    /// The key of the frames that `side` sends.
    pub(crate) fn frames_of(&self, side: Side) -> FrameKey {
        let label: &[u8] = match side {
            Side::Client => b"client to server",
            Side::Server => b"server to client",
        };
        let key = mac(&self.0, &[label]);
        FrameKey(Hmac::new_from_slice(&key).expect("any length will do"))
    }
}

impl fmt::Debug for PairKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PairKey(..)")
    }
}

fn role(side: Side) -> &'static [u8] {
    match side {
        Side::Client => b"client",
        Side::Server => b"server",
    }
}

/// Tags the frames of one direction.
#[derive(Clone)]
pub(crate) struct FrameKey(Hmac<Sha256>);

impl FrameKey {
    /// The tag of the frame before which `count` others were sent.
    pub(crate) fn tag(
        &self,
        count: u64,
        header: &[u8; FRAME_HEADER_LEN],
        payload: &[u8],
    ) -> [u8; TAG_LEN] {
        first(&self.over(count, header, payload).finalize().into_bytes())
    }

    /// Whether a frame is as it was sent, and in its place; takes as long whatever is wrong with it.
    pub(crate) fn checks(
        &self,
        count: u64,
        header: &[u8; FRAME_HEADER_LEN],
        payload: &[u8],
        tag: &[u8; TAG_LEN],
    ) -> bool {
        self.over(count, header, payload).verify_truncated_left(tag).is_ok()
    }

    fn over(&self, count: u64, header: &[u8; FRAME_HEADER_LEN], payload: &[u8]) -> Hmac<Sha256> {
        let mut hasher = self.0.clone();
        hasher.update(&count.to_le_bytes());
        hasher.update(header);
        hasher.update(payload);
        hasher
    }
}

impl fmt::Debug for FrameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameKey(..)")
    }
}

fn hasher(key: &[u8; 32], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut hasher = Hmac::<Sha256>::new_from_slice(key).expect("any length will do");
    parts.iter().for_each(|part| hasher.update(part));
    hasher
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    hasher(key, parts).finalize().into_bytes().into()
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("a MAC is longer")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(key: u8, first: u8, second: u8, binding: u8) -> PairKey {
        let (first, second) = ([first; PREFACE_LEN], [second; PREFACE_LEN]);
        PairKey::new(&LinkKey::new([key; 32]), &first, &second, &[binding; 32])
    }

    /// RFC 4231, test case 6: a key longer than a block is hashed first, which ours never are; case 2 has a short one.
    #[test]
    fn the_mac_is_hmac_with_sha_256() {
        let mut hasher = Hmac::<Sha256>::new_from_slice(b"Jefe").unwrap();
        hasher.update(b"what do ya want for nothing?");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let got: String =
            hasher.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn only_who_has_the_key_and_saw_the_same_proves_his_role() {
        let own = pair(1, 2, 3, 0);
        for side in [Side::Client, Side::Server] {
            assert!(own.proves(side, &own.proof(side)));
            // Sent back to who said it.
            assert!(!own.proves(side.other(), &own.proof(side)));
            // Another key, other offers of either side, another channel beneath.
            for other in [pair(9, 2, 3, 0), pair(1, 9, 3, 0), pair(1, 2, 9, 0), pair(1, 2, 3, 9)] {
                assert!(!own.proves(side, &other.proof(side)));
            }
            for at in 0..PROOF_LEN {
                let mut proof = own.proof(side);
                proof[at] ^= 1;
                assert!(!own.proves(side, &proof));
            }
        }
    }

    #[test]
    fn a_frame_is_good_in_its_place_and_direction_alone() {
        let own = pair(1, 2, 3, 0);
        let key = own.frames_of(Side::Client);
        let (header, payload) = ([5; FRAME_HEADER_LEN], b"payload");
        let tag = key.tag(7, &header, payload);
        assert!(key.checks(7, &header, payload, &tag));
        assert!(!key.checks(8, &header, payload, &tag));
        assert!(!key.checks(7, &[6; FRAME_HEADER_LEN], payload, &tag));
        assert!(!key.checks(7, &header, b"payloae", &tag));
        assert!(!own.frames_of(Side::Server).checks(7, &header, payload, &tag));
        assert!(!pair(9, 2, 3, 0).frames_of(Side::Client).checks(7, &header, payload, &tag));
    }

    #[test]
    fn nothing_shows_a_secret() {
        let key = LinkKey::new([0xAB; 32]);
        let pair = pair(0xAB, 1, 2, 3);
        let shown = format!("{key:?} {pair:?} {:?}", pair.frames_of(Side::Client));
        assert_eq!(shown, "LinkKey(..) PairKey(..) FrameKey(..)");
        assert_ne!(key.id(), LinkKey::new([0xAC; 32]).id());
    }
}
