//! Little-endian integers, varints, lengths, checksums: what every structure is read and written with.
//!
//! [`Decoder`] knows where it stands and what it reads, so every refusal names a place and a field.

use super::MAX_SEQ;
use crate::error::Fault;
use crate::position::Seq;

/// What is wrong, and where: bytes from the start of the structure that was being decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) at: u64,
    pub(crate) fault: Fault,
}

impl Damage {
    pub(crate) fn new(at: usize, fault: Fault) -> Self {
        Damage { at: at as u64, fault }
    }

    /// The same damage seen from a structure that starts `base` bytes earlier.
    pub(crate) fn offset_by(mut self, base: usize) -> Self {
        self.at = self.at.saturating_add(base as u64);
        self
    }
}

pub(crate) type Decoded<T> = std::result::Result<T, Damage>;

/// A cursor over bytes that may be anything.
#[derive(Debug, Clone)]
pub(crate) struct Decoder<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Decoder { rest: bytes, at: 0 }
    }

    /// Bytes consumed so far.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn bytes(&mut self, field: &'static str, len: usize) -> Decoded<&'a [u8]> {
        let Some((bytes, rest)) = self.rest.split_at_checked(len) else {
            let available = self.rest.len() as u64;
            return self.refuse(Fault::Truncated { field, needed: len as u64, available });
        };
        self.rest = rest;
        self.at = self.at.saturating_add(len);
        Ok(bytes)
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Decoded<[u8; N]> {
        let Some((bytes, rest)) = self.rest.split_first_chunk::<N>() else {
            let available = self.rest.len() as u64;
            return self.refuse(Fault::Truncated { field, needed: N as u64, available });
        };
        self.rest = rest;
        self.at = self.at.saturating_add(N);
        Ok(*bytes)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Decoded<u8> {
        self.array(field).map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Decoded<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Decoded<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// A Seq, which is never so high that none could follow.
    pub(crate) fn seq(&mut self, field: &'static str) -> Decoded<Seq> {
        let at = self.at;
        let got = self.u64(field)?;
        if got > MAX_SEQ {
            return Err(Damage::new(at, Fault::Range { field, got, min: 0, max: MAX_SEQ }));
        }
        Ok(Seq(got))
    }

    /// A `u32` that must lie in `min..=max`.
    pub(crate) fn u32_in(&mut self, field: &'static str, min: usize, max: usize) -> Decoded<u32> {
        let at = self.at;
        let got = self.u32(field)?;
        let (min, max) = (min as u64, max as u64);
        if (min..=max).contains(&got.into()) {
            return Ok(got);
        }
        Err(Damage::new(at, Fault::Range { field, got: got.into(), min, max }))
    }

    /// A `u32` count of items that take at least `min_len` bytes each, of which enough must be left.
    pub(crate) fn count(&mut self, field: &'static str, min_len: usize) -> Decoded<usize> {
        let at = self.at;
        let count = self.u32(field)? as usize;
        let needed = count.saturating_mul(min_len);
        if needed > self.rest.len() {
            let available = self.rest.len() as u64;
            return Err(Damage::new(
                at,
                Fault::Truncated { field, needed: needed as u64, available },
            ));
        }
        Ok(count)
    }

    /// A variable-length integer in its shortest form, at most `max`.
    #[inline]
    pub(crate) fn varint(&mut self, field: &'static str, max: usize) -> Decoded<u32> {
        if let Some((&byte, rest)) = self.rest.split_first()
            && byte < 0x80
            && usize::from(byte) <= max
        {
            self.rest = rest;
            self.at = self.at.saturating_add(1);
            return Ok(byte.into());
        }
        self.long_varint(field, max)
    }

    fn long_varint(&mut self, field: &'static str, max: usize) -> Decoded<u32> {
        let at = self.at;
        let mut got = 0_u64;
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.u8(field)?;
            got |= u64::from(byte & 0x7F).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                let shortest = byte != 0 || shift == 0;
                return match u32::try_from(got) {
                    Ok(value) if value as usize <= max && shortest => Ok(value),
                    _ => {
                        let range = Fault::Range { field, got, min: 0, max: max as u64 };
                        Err(Damage::new(at, range))
                    }
                };
            }
        }
        Err(Damage::new(at, Fault::Range { field, got: u64::MAX, min: 0, max: max as u64 }))
    }

    /// Reserved bytes: must be zero.
    pub(crate) fn zeros(&mut self, field: &'static str, len: usize) -> Decoded<()> {
        let at = self.at;
        let bytes = self.bytes(field, len)?;
        match bytes.iter().position(|&byte| byte != 0) {
            None => Ok(()),
            Some(i) => {
                let got = bytes.get(i).copied().unwrap_or_default().into();
                Err(Damage::new(at.saturating_add(i), Fault::Mismatch { field, got, expected: 0 }))
            }
        }
    }

    /// Nothing may follow.
    pub(crate) fn finish(&self, field: &'static str) -> Decoded<()> {
        match self.rest.len() as u64 {
            0 => Ok(()),
            count => self.refuse(Fault::TrailingBytes { field, count }),
        }
    }

    fn refuse<T>(&self, fault: Fault) -> Decoded<T> {
        Err(Damage::new(self.at, fault))
    }
}

/// Appends `value` as a variable-length integer: seven bits a byte, lowest first, the top bit set on all but the last.
#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// `got` must equal `expected`.
pub(crate) fn equal(at: usize, field: &'static str, got: u64, expected: u64) -> Decoded<()> {
    if got == expected {
        return Ok(());
    }
    Err(Damage::new(at, Fault::Mismatch { field, got, expected }))
}

/// CRC-32 (IEEE 802.3) over `parts` as if they were one.
pub(crate) fn crc(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// Whether what is only there to find damage passes whatever it is: so in fuzzing builds, in order that the fuzzer
/// reaches what lies behind; `--cfg stillframe_checksums` makes those as strict as all others.
pub(crate) const LENIENT: bool = cfg!(all(fuzzing, not(stillframe_checksums)));

/// The checksum `got` must equal the stored `expected`.
pub(crate) fn check_crc(at: usize, field: &'static str, got: u32, expected: u32) -> Decoded<()> {
    if got == expected || LENIENT {
        return Ok(());
    }
    Err(Damage::new(at, Fault::Checksum { field, got, expected }))
}

/// The fingerprint, or chain, `got` must equal the stored `expected`.
pub(crate) fn check_fingerprint(
    at: usize,
    field: &'static str,
    got: u64,
    expected: u64,
) -> Decoded<()> {
    if LENIENT { Ok(()) } else { equal(at, field, got, expected) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_in_their_shortest_form_only() {
        for value in [0, 1, 127, 128, 300, 16_383, 16_384, u32::MAX - 1, u32::MAX] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let mut d = Decoder::new(&bytes);
            assert_eq!(d.varint("v", usize::MAX), Ok(value));
            assert_eq!(d.finish("v"), Ok(()));
            for cut in 0..bytes.len() {
                assert!(Decoder::new(&bytes[..cut]).varint("v", usize::MAX).is_err());
            }
        }
        for bad in [&[0x80, 0][..], &[0xFF, 0x80, 0], &[0x80; 6], &[0xFF, 0xFF, 0xFF, 0xFF, 0x1F]] {
            assert!(Decoder::new(bad).varint("v", usize::MAX).is_err(), "{bad:x?}");
        }
        assert!(Decoder::new(&[8]).varint("v", 7).is_err());
    }

    #[test]
    fn refusals_name_place_and_field() {
        let mut d = Decoder::new(&[1, 0, 0, 0, 0, 9]);
        assert_eq!(d.u32("first"), Ok(1));
        let fault = Fault::Mismatch { field: "reserved", got: 9, expected: 0 };
        assert_eq!(d.clone().zeros("reserved", 2), Err(Damage::new(5, fault)));
        let fault = Fault::Truncated { field: "second", needed: 4, available: 2 };
        assert_eq!(d.u32("second"), Err(Damage::new(4, fault)));
        let fault = Fault::TrailingBytes { field: "all", count: 2 };
        assert_eq!(d.finish("all"), Err(Damage::new(4, fault)));
        assert!(Decoder::new(&[255, 255, 255, 255, 0]).count("items", 1).is_err());
    }

    #[test]
    fn the_checksum_is_the_ieee_one() {
        assert_eq!(crc(&[b"1234", b"56789"]), 0xCBF4_3926);
    }
}
