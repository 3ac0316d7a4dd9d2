//! Keys as typed values: encodings whose byte order is the order of the values.

use super::CodecError;

/// A type whose values are keys: their encodings, compared as bytes, are in the order of the values.
///
/// There are two encodings. [`encode`](TypedKey::encode) is of a whole key. [`encode_part`](TypedKey::encode_part) is of a part of
/// a tuple and tells where it ends, so that tuples sort by their first part, then by their second. Only text and byte vectors
/// differ in the two: alone they are stored as they are, and who reads the keyspace without types finds the same keys.
///
/// | type | bytes of a part | a whole key, where it differs |
/// |---|---|---|
/// | `u8`, `u16`, `u32`, `u64`, `u128` | big-endian | |
/// | `i8`, `i16`, `i32`, `i64`, `i128` | big-endian, the sign bit flipped | |
/// | `bool` | `00` or `01` | |
/// | `char` | its code point as a `u32` | |
/// | `[u8; N]` | as it is | |
/// | `()` | none | |
/// | `String`, `Vec<u8>` | as it is, each `00` as `00 FF`, then `00 01` | as it is |
/// | `Option<K>` | `00` for `None`; `01`, then the part | |
/// | tuples of 1 to 6 | the parts, one after the other | |
///
/// These will not change: what is stored by them will be read by every later release.
///
/// Parts are what the tuple layer of FoundationDB made of keys; the way text ends is that of Google's orderedcode library.
///
/// `usize` and `isize` are no keys, as they are not the same everywhere. Neither are floating-point numbers, which have no total
/// order of their own: `NaN` equals nothing, and `-0.0` equals `0.0` with other bits. Encode what is meant, such as an `i64` of cents.
///
/// # A type of one's own
/// It is best made of the types above. The order must be that of `Ord`; no part's encoding may begin another's; what
/// is decoded must encode to the same bytes again.
///
/// ```
/// use stillframe::{CodecError, Database, TypedKey};
///
/// #[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
/// struct Seat {
///     row: u16,
///     letter: char,
/// }
///
/// impl TypedKey for Seat {
///     fn encode_part(&self, out: &mut Vec<u8>) {
///         (self.row, self.letter).encode_part(out);
///     }
///     fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
///         let (row, letter) = TypedKey::decode_part(bytes)?;
///         Ok(Seat { row, letter })
///     }
/// }
///
/// let seats = Database::in_memory().keyspace("seats")?.typed::<Seat, String>();
/// seats.insert(&Seat { row: 12, letter: 'c' }, &"ann".to_owned())?;
/// seats.insert(&Seat { row: 2, letter: 'f' }, &"ben".to_owned())?;
/// assert_eq!(seats.first()?.unwrap().0, Seat { row: 2, letter: 'f' });
/// # Ok::<(), stillframe::Error>(())
/// ```
///
/// To change such an encoding, or the order or types of the fields behind it, breaks what is stored: keys are not found any
/// more, or don't decode, or are in the wrong order. Begin a new keyspace for it.
pub trait TypedKey: Ord + Sized {
    /// Appends the value as a part of a tuple.
    fn encode_part(&self, out: &mut Vec<u8>);

    /// Takes a part from the front of `bytes`.
    ///
    /// # Errors
    /// [`CodecError`] if no value's encoding is there. It never panics.
    fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError>;

    /// Appends the value as a whole key: as a part, unless the type says otherwise.
    fn encode(&self, out: &mut Vec<u8>) {
        self.encode_part(out);
    }

    /// The value of a whole key.
    ///
    /// # Errors
    /// As [`decode_part`](TypedKey::decode_part), and if bytes are left over.
    fn decode(mut bytes: &[u8]) -> Result<Self, CodecError> {
        let value = Self::decode_part(&mut bytes)?;
        if bytes.is_empty() { Ok(value) } else { Err(CodecError::TOO_LONG) }
    }
}

/// Takes `N` bytes from the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], CodecError> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(CodecError::TOO_SHORT)?;
    *bytes = rest;
    Ok(*taken)
}

macro_rules! unsigned {
    ($($type:ty)*) => {$(
        impl TypedKey for $type {
            fn encode_part(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
                take(bytes).map(Self::from_be_bytes)
            }
        }
    )*};
}

unsigned! { u8 u16 u32 u64 u128 }

macro_rules! signed {
    ($($type:ty)*) => {$(
        impl TypedKey for $type {
            fn encode_part(&self, out: &mut Vec<u8>) {
                // Its least value is the sign bit alone: flipped, negative numbers sort first.
                out.extend_from_slice(&(*self ^ Self::MIN).to_be_bytes());
            }

            fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
                take(bytes).map(|taken| Self::from_be_bytes(taken) ^ Self::MIN)
            }
        }
    )*};
}

signed! { i8 i16 i32 i64 i128 }

impl TypedKey for bool {
    fn encode_part(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
        match take(bytes)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(CodecError::BOOL),
        }
    }
}

impl TypedKey for char {
    fn encode_part(&self, out: &mut Vec<u8>) {
        u32::from(*self).encode_part(out);
    }

    fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
        char::from_u32(u32::decode_part(bytes)?)
            .ok_or(CodecError::new("no character has this code"))
    }
}

impl<const N: usize> TypedKey for [u8; N] {
    fn encode_part(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
        take(bytes)
    }
}

/// What a zero within text is followed by: more than [`END`], so that text that goes on sorts later.
const ZERO: u8 = 0xff;
/// What the zero behind text is followed by.
const END: u8 = 0x01;

/// Appends `text` and a mark of its end, which no text holds.
fn encode_ended(text: &[u8], out: &mut Vec<u8>) {
    let mut runs = text.split(|byte| *byte == 0);
    // There is always a first one: empty text is one empty run.
    out.extend_from_slice(runs.next().unwrap_or_default());
    for run in runs {
        out.extend_from_slice(&[0, ZERO]);
        out.extend_from_slice(run);
    }
    out.extend_from_slice(&[0, END]);
}

/// Takes text and the mark of its end from the front.
fn decode_ended(bytes: &mut &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut text = Vec::new();
    loop {
        let zero = bytes.iter().position(|byte| *byte == 0).ok_or(CodecError::TOO_SHORT)?;
        let (run, rest) = bytes.split_at(zero);
        text.extend_from_slice(run);
        let (mark, rest) = rest.split_at_checked(2).ok_or(CodecError::TOO_SHORT)?;
        *bytes = rest;
        match mark {
            [_, END] => return Ok(text),
            [_, ZERO] => text.push(0),
            _ => return Err(CodecError::new("a zero byte is followed by neither FF nor 01")),
        }
    }
}

impl TypedKey for Vec<u8> {
    fn encode_part(&self, out: &mut Vec<u8>) {
        encode_ended(self, out);
    }

    fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
        decode_ended(bytes)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        Ok(bytes.to_vec())
    }
}

impl TypedKey for String {
    fn encode_part(&self, out: &mut Vec<u8>) {
        encode_ended(self.as_bytes(), out);
    }

    fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
        String::from_utf8(decode_ended(bytes)?).or(Err(CodecError::TEXT))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        std::str::from_utf8(bytes).map(str::to_owned).or(Err(CodecError::TEXT))
    }
}

impl<K: TypedKey> TypedKey for Option<K> {
    fn encode_part(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(key) = self {
            key.encode_part(out);
        }
    }

    fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
        match take(bytes)? {
            [0] => Ok(None),
            [1] => K::decode_part(bytes).map(Some),
            _ => Err(CodecError::new("an option begins with neither 00 nor 01")),
        }
    }
}

impl TypedKey for () {
    fn encode_part(&self, _: &mut Vec<u8>) {}

    fn decode_part(_: &mut &[u8]) -> Result<Self, CodecError> {
        Ok(())
    }
}

macro_rules! tuple {
    ($($part:ident $at:tt),+) => {
        impl<$($part: TypedKey),+> TypedKey for ($($part,)+) {
            fn encode_part(&self, out: &mut Vec<u8>) {
                $(self.$at.encode_part(out);)+
            }

            fn decode_part(bytes: &mut &[u8]) -> Result<Self, CodecError> {
                Ok(($($part::decode_part(bytes)?,)+))
            }
        }
    };
}

tuple! { A 0 }
tuple! { A 0, B 1 }
tuple! { A 0, B 1, C 2 }
tuple! { A 0, B 1, C 2, D 3 }
tuple! { A 0, B 1, C 2, D 3, E 4 }
tuple! { A 0, B 1, C 2, D 3, E 4, F 5 }

/// A tuple whose first part is a `P`, or whose first parts are those of the tuple `P`: see [`Typed::prefix`](crate::Typed::prefix).
///
/// For a type of one's own that encodes as such a tuple it is to be implemented by hand: the encoding of a whole key must begin with
/// that of `P` as a part. It has no methods.
///
/// ```
/// fn begins_with<K: stillframe::BeginsWith<P>, P: stillframe::TypedKey>() {}
/// begins_with::<(u64, String, bool), u64>();
/// begins_with::<(u64, String, bool), (u64, String)>();
/// ```
pub trait BeginsWith<P: TypedKey>: TypedKey {}

macro_rules! begins_with {
    (@one ($($part:ident)+) $prefix:ty) => {
        impl<$($part: TypedKey),+> BeginsWith<$prefix> for ($($part,)+) {}
    };
    ($parts:tt: $($prefix:ty),+) => {
        $(begins_with! { @one $parts $prefix })+
    };
}

begins_with! { (A B): A }
begins_with! { (A B C): A, (A, B) }
begins_with! { (A B C D): A, (A, B), (A, B, C) }
begins_with! { (A B C D E): A, (A, B), (A, B, C), (A, B, C, D) }
begins_with! { (A B C D E F): A, (A, B), (A, B, C), (A, B, C, D), (A, B, C, D, E) }
