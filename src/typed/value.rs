//! Values as typed values: encodings without an order.

use super::CodecError;
use crate::slice::Slice;

/// A type whose values are values of entries.
///
/// | type | bytes |
/// |---|---|
/// | `String`, `Vec<u8>`, [`Slice`], `[u8; N]` | as it is |
/// | `u8` to `u128`, `i8` to `i128` | little-endian |
/// | `f32`, `f64` | the bits, little-endian |
/// | `bool` | `00` or `01` |
/// | `()` | none |
/// | `Serde<T>`, with the feature `serde` | those of [postcard](https://postcard.jamesmunns.com/wire-format) |
///
/// These will not change: what is stored by them will be read by every later release. To change the encoding of a type of one's
/// own breaks what is stored, unless `decode` reads both.
///
/// ```
/// use stillframe::{CodecError, Database, TypedValue};
///
/// #[derive(Debug, PartialEq)]
/// struct Point {
///     x: f32,
///     y: f32,
/// }
///
/// impl TypedValue for Point {
///     fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
///         self.x.encode(out)?;
///         self.y.encode(out)
///     }
///     fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
///         let (x, y) = bytes.split_at_checked(4).ok_or(CodecError::new("no two numbers"))?;
///         Ok(Point { x: f32::decode(x)?, y: f32::decode(y)? })
///     }
/// }
///
/// let places = Database::in_memory().keyspace("places")?.typed::<u64, Point>();
/// places.insert(&1, &Point { x: 0.5, y: -2.0 })?;
/// assert_eq!(places.get(&1)?, Some(Point { x: 0.5, y: -2.0 }));
/// # Ok::<(), stillframe::Error>(())
/// ```
pub trait TypedValue: Sized {
    /// Appends the value.
    ///
    /// # Errors
    /// [`CodecError`] if it is one that can't be stored. Of the types here only `Serde` has such.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// The value of all of `bytes`.
    ///
    /// # Errors
    /// [`CodecError`] if they are the encoding of none. It never panics.
    fn decode(bytes: &[u8]) -> Result<Self, CodecError>;
}

/// All of `bytes`, which must be `N`.
fn exact<const N: usize>(bytes: &[u8]) -> Result<[u8; N], CodecError> {
    let wrong = if bytes.len() < N { CodecError::TOO_SHORT } else { CodecError::TOO_LONG };
    bytes.try_into().or(Err(wrong))
}

macro_rules! numbers {
    ($($type:ty)*) => {$(
        impl TypedValue for $type {
            fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
                out.extend_from_slice(&self.to_le_bytes());
                Ok(())
            }

            fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
                exact(bytes).map(Self::from_le_bytes)
            }
        }
    )*};
}

numbers! { u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64 }

impl TypedValue for bool {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.push(u8::from(*self));
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        match exact(bytes)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(CodecError::BOOL),
        }
    }
}

impl TypedValue for () {
    fn encode(&self, _: &mut Vec<u8>) -> Result<(), CodecError> {
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        exact::<0>(bytes).map(drop)
    }
}

impl<const N: usize> TypedValue for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(self);
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        exact(bytes)
    }
}

impl TypedValue for String {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(self.as_bytes());
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        std::str::from_utf8(bytes).map(str::to_owned).or(Err(CodecError::TEXT))
    }
}

impl TypedValue for Vec<u8> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(self);
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        Ok(bytes.to_vec())
    }
}

impl TypedValue for Slice {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(self);
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        Ok(Slice::new(bytes))
    }
}

/// A value of any type that `serde` can take apart, stored in the bytes of
/// [postcard](https://postcard.jamesmunns.com/wire-format): compact, without names of fields.
///
/// As nothing in the bytes says what they are, fields and variants may not be moved, removed or given another type once
/// values are stored, and fields not added; a variant may be added as the last. What a type no longer fits often decodes all the same,
/// to something else.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use stillframe::{Database, Serde};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct Film {
///     title: String,
///     seconds: Option<u32>,
/// }
///
/// let films = Database::in_memory().keyspace("films")?.typed::<u16, Serde<Film>>();
/// films.insert(&1888, &Serde(Film { title: "Roundhay Garden Scene".into(), seconds: Some(2) }))?;
/// let Some(Serde(film)) = films.get(&1888)? else { panic!("it was inserted") };
/// assert_eq!(film.seconds, Some(2));
/// # Ok::<(), stillframe::Error>(())
/// ```
#[cfg(feature = "serde")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serde<T>(pub T);

#[cfg(feature = "serde")]
impl<T: serde::Serialize + serde::de::DeserializeOwned> TypedValue for Serde<T> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        let why = |error| {
            CodecError::new(match error {
                postcard::Error::SerializeSeqLengthUnknown => {
                    "postcard stores no sequence or map whose length is not known before"
                }
                _ => "its own `Serialize` failed",
            })
        };
        *out = postcard::to_extend(&self.0, std::mem::take(out)).map_err(why)?;
        Ok(())
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let why = |error| match error {
            postcard::Error::DeserializeUnexpectedEnd => CodecError::TOO_SHORT,
            postcard::Error::DeserializeBadBool => CodecError::BOOL,
            postcard::Error::DeserializeBadUtf8 => CodecError::TEXT,
            postcard::Error::WontImplement => {
                CodecError::new("postcard can't decode types that ask what comes")
            }
            _ => CodecError::new("postcard would not have stored it so"),
        };
        let (value, rest) = postcard::take_from_bytes(bytes).map_err(why)?;
        if rest.is_empty() { Ok(Serde(value)) } else { Err(CodecError::TOO_LONG) }
    }
}
