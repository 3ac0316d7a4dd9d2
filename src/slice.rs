//! Owned bytes that are cheap to clone: short ones inline, longer ones shared by reference count.
//!
//! Invariant: a slice of at most [`INLINE_LEN`] bytes is inline, so equal contents have equal shapes.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Slices up to this many bytes need no allocation.
const INLINE_LEN: usize = 22;

/// Immutable bytes, owned: keys and values as reads return them.
///
/// 24 bytes on the stack. Up to 22 bytes are held inline; longer contents are shared by reference
/// count, so a clone never copies them. Dereferences to `[u8]`. As a key of a map it is compared by its bytes, which never change; that clippy asks
/// there (`mutable_key_type`) is for a counter beside them.
///
/// ```
/// let s = stillframe::Slice::from(&b"still"[..]);
/// assert_eq!(s, b"still");
/// assert_eq!(s.clone().len(), 5);
/// ```
#[derive(Clone)]
pub struct Slice(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE_LEN] },
    Shared(Arc<[u8]>),
    Large(Arc<LargeBytes>),
}

/// Bytes too long for a leaf, with their hash, counted for as long as anyone holds them.
pub(crate) struct LargeBytes {
    bytes: Box<[u8]>,
    /// XXH3 of `bytes`, so that nobody hashes them again under a latch.
    hash: u64,
    /// Whether the account counts them as retained for stills instead of live.
    retained: AtomicBool,
    account: Arc<Account>,
}

/// What a tree's memory adds up to, in bytes.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Pages and large values that live entries use, leaf headers included.
    pub(crate) live: AtomicU64,
    /// Pages and large values that only stills need.
    pub(crate) retained: AtomicU64,
    /// Directory nodes.
    pub(crate) directory: AtomicU64,
}

// Relaxed throughout: the three are sums to report and to compare with limits; nothing is read
// because of what they say.
impl Account {
    /// The counter of live or of retained memory.
    pub(crate) fn of(&self, retained: bool) -> &AtomicU64 {
        if retained { &self.retained } else { &self.live }
    }

    /// Live, retained and directory bytes together.
    pub(crate) fn total(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
            + self.retained.load(Ordering::Relaxed)
            + self.directory.load(Ordering::Relaxed)
    }
}

/// What a large value of `len` bytes takes: allocators have sizes of their own, mimalloc and jemalloc four to each
/// doubling, and give the next one; that of glibc gives no more than is asked for, so that it takes less than this.
fn allocated(len: usize) -> u64 {
    let step = (len.max(4).next_power_of_two() / 8) as u64;
    (len as u64).next_multiple_of(step)
}

impl LargeBytes {
    /// Takes `bytes`, whose hash is `hash`.
    pub(crate) fn new(bytes: Box<[u8]>, hash: u64, account: &Arc<Account>) -> Arc<Self> {
        account.live.fetch_add(allocated(bytes.len()), Ordering::Relaxed);
        let account = Arc::clone(account);
        Arc::new(Self { bytes, hash, retained: AtomicBool::new(false), account })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// From now on only stills (or the caller's slices) need these bytes.
    pub(crate) fn retain(&self) {
        if !self.retained.swap(true, Ordering::Relaxed) {
            self.account.live.fetch_sub(allocated(self.bytes.len()), Ordering::Relaxed);
            self.account.retained.fetch_add(allocated(self.bytes.len()), Ordering::Relaxed);
        }
    }
}

impl Drop for LargeBytes {
    fn drop(&mut self) {
        let retained = self.retained.load(Ordering::Relaxed);
        self.account.of(retained).fetch_sub(allocated(self.bytes.len()), Ordering::Relaxed);
    }
}

const _: () = assert!(size_of::<Slice>() == 24);

impl Slice {
    /// Copies `bytes`. One allocation when there are more than 22 of them.
    pub fn new(bytes: &[u8]) -> Self {
        if bytes.len() > INLINE_LEN {
            Slice(Repr::Shared(bytes.into()))
        } else {
            Self::inline(bytes)
        }
    }

    fn inline(bytes: &[u8]) -> Self {
        let mut inline = [0; INLINE_LEN];
        inline[..bytes.len()].copy_from_slice(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "at most INLINE_LEN")]
        Slice(Repr::Inline { len: bytes.len() as u8, bytes: inline })
    }

    /// The large value it shares, if it does.
    pub(crate) fn as_large(&self) -> Option<&Arc<LargeBytes>> {
        match &self.0 {
            Repr::Large(large) => Some(large),
            _ => None,
        }
    }

    /// Shares a large value.
    pub(crate) fn large(bytes: Arc<LargeBytes>) -> Self {
        Slice(Repr::Large(bytes))
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Shared(bytes) => bytes,
            Repr::Large(large) => large.bytes(),
        }
    }
}

impl From<Arc<[u8]>> for Slice {
    /// Shares `bytes` without a copy when they are too long to be inline.
    fn from(bytes: Arc<[u8]>) -> Self {
        if bytes.len() > INLINE_LEN { Slice(Repr::Shared(bytes)) } else { Self::inline(&bytes) }
    }
}

impl From<&[u8]> for Slice {
    fn from(bytes: &[u8]) -> Self {
        Self::new(bytes)
    }
}

impl<const N: usize> From<&[u8; N]> for Slice {
    fn from(bytes: &[u8; N]) -> Self {
        Self::new(bytes)
    }
}

impl From<Vec<u8>> for Slice {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(&bytes)
    }
}

impl From<&str> for Slice {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes())
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for Slice {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl Default for Slice {
    fn default() -> Self {
        Self::inline(&[])
    }
}

impl fmt::Debug for Slice {
    /// Printable bytes as text, others escaped: `b"a\x00b"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

impl PartialEq for Slice {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Slice {}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Slice
where
    T: NotSlice,
{
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

/// Everything a [`Slice`] compares with besides itself; keeps the two impls apart.
pub trait NotSlice {}
impl NotSlice for [u8] {}
impl<const N: usize> NotSlice for [u8; N] {}
impl NotSlice for Vec<u8> {}
impl NotSlice for str {}
impl<T: NotSlice + ?Sized> NotSlice for &T {}

impl PartialOrd for Slice {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slice {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Slice {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_around_the_inline_limit_round_trip() {
        for len in [0, 1, 21, 22, 23, 24, 255, 256, 4096] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let slice = Slice::new(&bytes);
            assert_eq!(slice, bytes, "length {len}");
            assert_eq!(slice.clone(), slice);
        }
    }

    #[test]
    fn order_is_the_order_of_bytes() {
        let (short, long) = (Slice::from("b"), Slice::from("abcdefghijklmnopqrstuvwxyz"));
        assert!(short > long);
        let (empty, zero) = (Slice::from(""), Slice::from(&[0]));
        assert!(empty < zero);
    }
}
