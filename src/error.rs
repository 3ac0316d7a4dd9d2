//! The one public error type, and what exactly is wrong with damaged bytes.
//!
//! Three kinds: *bad bytes or I/O* come back as [`Error`]; a *caller's bug* panics and is documented
//! at the call; *our bug* is an `assert!`. Texts are lower case, without a period, and name the place.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of nearly everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a call failed.
///
/// Errors that are found before a write gets its sequence number changed nothing; which ones those
/// are is said at each variant.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused `op` on `path`.
    Io {
        /// What was attempted: "open", "read", "write", "sync", "rename", …
        op: &'static str,
        /// The file or directory it was attempted on; `<stream>` for a reader or writer of the caller's.
        path: PathBuf,
        /// The operating system's own word.
        source: io::Error,
    },
    /// The bytes at `offset` of `file` are not what was written there.
    Corrupt {
        /// The damaged file; `<stream>` for bytes that came from a reader of the caller's.
        file: PathBuf,
        /// Where in the file, in bytes from its start.
        offset: u64,
        /// What is wrong there.
        what: Fault,
    },
    /// The database met a state it can't vouch for and refuses all further use.
    Poisoned,
    /// The database was closed; stills taken before stay readable.
    Closed,
    /// A key longer than [`MAX_KEY_LEN`](crate::MAX_KEY_LEN). Nothing changed.
    KeyTooLarge {
        /// Length of the key, in bytes.
        len: usize,
    },
    /// A value longer than [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN). Nothing changed.
    ValueTooLarge {
        /// Length of the value, in bytes.
        len: usize,
    },
    /// A batch whose operations encode to more than [`MAX_BATCH_BYTES`](crate::MAX_BATCH_BYTES). Nothing changed.
    BatchTooLarge {
        /// Encoded size, in bytes.
        bytes: u64,
    },
    /// A keyspace name that is empty or longer than [`MAX_KEYSPACE_NAME_LEN`](crate::MAX_KEYSPACE_NAME_LEN). Nothing changed.
    KeyspaceName {
        /// Length of the name, in bytes.
        len: usize,
    },
    /// There is no keyspace of that name, or it was dropped while a handle was held.
    NoKeyspace,
    /// The write would grow memory past the limit set with `memory_limit`. Nothing changed; removing still works.
    MemoryLimit {
        /// The limit, in bytes.
        limit: u64,
        /// What live data, retained data and directory take now, in bytes.
        used: u64,
    },
    /// What a save wrote does not sum up to what the cut promised: our bug, or bad memory. The file was
    /// not put in place.
    SelfCheck {
        /// The sum that differs.
        field: &'static str,
        /// Summed up from what was written.
        got: u64,
        /// The running total at the cut.
        expected: u64,
    },
    /// The save was cancelled through its handle; nothing was left behind.
    Cancelled,
    /// Another save to the same path is running.
    SaveInProgress {
        /// The path both want.
        path: PathBuf,
    },
}

/// What is wrong with bytes that should hold a snapshot file or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// A checksum over `field` does not match.
    Checksum {
        /// What the checksum covers.
        field: &'static str,
        /// Computed from the bytes.
        got: u32,
        /// Stored beside them.
        expected: u32,
    },
    /// Fewer bytes are left than `field` needs.
    Truncated {
        /// What was being read.
        field: &'static str,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// Bytes follow where the file or structure must end.
    TrailingBytes {
        /// What should have ended.
        field: &'static str,
        /// How many bytes too many.
        count: u64,
    },
    /// Not a file of ours: the magic bytes are wrong.
    Magic,
    /// A format version this release can't read.
    Version {
        /// The version the file states.
        got: u32,
        /// The newest version this release reads.
        supported: u32,
    },
    /// A number lies outside what `field` allows.
    Range {
        /// The field.
        field: &'static str,
        /// The number found.
        got: u64,
        /// The smallest allowed.
        min: u64,
        /// The largest allowed.
        max: u64,
    },
    /// A field that must equal something known does not.
    Mismatch {
        /// The field.
        field: &'static str,
        /// The number found.
        got: u64,
        /// The number required.
        expected: u64,
    },
    /// The end mark is missing: the file was cut short, or bytes were appended.
    NoEnd,
    /// `field` is whole, but belongs to another file or another place.
    Foreign {
        /// The structure.
        field: &'static str,
    },
    /// The name of a keyspace is not UTF-8.
    Text,
    /// Keys or fences are not strictly ascending, or lie outside their fences.
    Order {
        /// What is out of order.
        field: &'static str,
    },
    /// Compressed bytes that do not decompress to what was promised.
    Compression,
}

impl Error {
    pub(crate) fn io(op: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Io { op, path: path.to_owned(), source }
    }

    pub(crate) fn corrupt(file: &Path, offset: u64, what: Fault) -> Self {
        Error::Corrupt { file: file.to_owned(), offset, what }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { op, path, source } => write!(f, "{op} {}: {source}", path.display()),
            Error::Corrupt { file, offset, what } => {
                write!(f, "{} at byte {offset}: {what}", file.display())
            }
            Error::Poisoned => f.write_str("the database is poisoned by an earlier failure"),
            Error::Closed => f.write_str("the database is closed"),
            Error::KeyTooLarge { len } => {
                write!(f, "key of {len} bytes, the limit is {}", crate::MAX_KEY_LEN)
            }
            Error::ValueTooLarge { len } => {
                write!(f, "value of {len} bytes, the limit is {}", crate::MAX_VALUE_LEN)
            }
            Error::BatchTooLarge { bytes } => {
                write!(f, "batch of {bytes} bytes, the limit is {}", crate::MAX_BATCH_BYTES)
            }
            Error::KeyspaceName { len } => write!(
                f,
                "keyspace name of {len} bytes, it must have 1 to {}",
                crate::MAX_KEYSPACE_NAME_LEN
            ),
            Error::NoKeyspace => f.write_str("no such keyspace"),
            Error::MemoryLimit { limit, used } => {
                write!(f, "memory limit of {limit} bytes reached, {used} in use")
            }
            Error::SelfCheck { field, got, expected } => {
                write!(f, "the save wrote a {field} of {got}, the cut promised {expected}")
            }
            Error::Cancelled => f.write_str("cancelled"),
            Error::SaveInProgress { path } => {
                write!(f, "another save to {} is running", path.display())
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Checksum { field, got, expected } => {
                write!(f, "{field} checksum is {got:08x}, expected {expected:08x}")
            }
            Fault::Truncated { field, needed, available } => {
                write!(f, "{field} needs {needed} bytes, {available} are left")
            }
            Fault::TrailingBytes { field, count } => {
                write!(f, "{count} bytes after the end of {field}")
            }
            Fault::Magic => f.write_str("not a stillframe snapshot file"),
            Fault::Version { got, supported } => {
                write!(f, "format version {got}, this release reads up to {supported}")
            }
            Fault::Range { field, got, min, max } => {
                write!(f, "{field} is {got}, allowed are {min} to {max}")
            }
            Fault::Mismatch { field, got, expected } => {
                write!(f, "{field} is {got}, expected {expected}")
            }
            Fault::NoEnd => {
                f.write_str("no end mark: the file was cut short or bytes were appended")
            }
            Fault::Foreign { field } => write!(f, "{field} belongs to another file or place"),
            Fault::Text => f.write_str("the name of a keyspace is not UTF-8"),
            Fault::Order { field } => write!(f, "{field} out of order"),
            Fault::Compression => {
                f.write_str("compressed bytes do not decompress to the stated length")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
