//! The directory: leads a key to a leaf, and may be stale. Whoever arrives checks the leaf's fences.
//!
//! A tree of nodes with up to [`FANOUT`] children, the low fences as separators. Readers walk it under an
//! epoch guard and take no lock; writers take one mutex, replace the nodes they change whole and retire
//! the old ones. A node drops the prefix that its separators share, and holds the first 8 bytes behind it
//! (*heads*) apart from the separators, so that a search touches the heads and one child.
//!
//! A removed first entry leaves its node's low fence as it is, and within an inner node the first child
//! covers from the node's fence on. A search that then finds nothing at or below its key in a bottom node
//! looks for the entry before that node instead, which exists because the leftmost leaf never dies and
//! empty nodes are removed.
//!
//! # Unsafe
//! One of three files that may use it: [`Slot`] is an epoch pointer. Invariants:
//! 1. A slot is never null; its node was boxed by it and is retired at most once, when it is replaced or
//!    when the node that leads to it is dropped with the whole directory.
//! 2. `Slot::share` makes a second pointer to one node; the writer then retires the node around the first
//!    pointer without its children.
//!
//! Knows nothing of latches and pages. Ids are opaque.

#![expect(unsafe_code, reason = "epoch pointers; see `Unsafe` above")]

use std::cmp::Ordering;
use std::hint::select_unpredictable;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::slice::{Account, Slice};
use crate::sync::{Guard, Mutex, pin};
use crate::tree::page::{common_prefix, prefetch};

/// Children of a node at the most: its heads are 8 cache lines. Few in tests, so that trees get deep.
const FANOUT: usize = if cfg!(any(test, shuttle)) { 8 } else { 64 };
/// Children of a node that a bulk load fills.
const BULK: usize = FANOUT - FANOUT / 8;

/// Cache lines of a node up to the end of a bottom node's children.
const PREFETCH_LINES: usize = std::mem::offset_of!(Node, first).div_ceil(64);

/// Names a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LeafId(pub(crate) u32);

/// See the file's head.
pub(crate) struct Directory {
    root: Slot,
    /// Excludes other writers.
    writer: Mutex<()>,
    account: Arc<Account>,
}

#[repr(C)]
struct Node {
    count: usize,
    /// What all separators here share, but for `first`; they are stored without it. Nearly always short,
    /// and so in this line.
    prefix: Slice,
    heads: [u64; FANOUT],
    children: Children,
    /// The first separator, where it lacks the prefix: it is then the low fence of all, or of a wider
    /// range than its neighbours have. It stands in `separators` as empty.
    first: Option<Box<[u8]>>,
    /// Where the separators end in `separators`.
    ends: Box<[u32]>,
    separators: Box<[u8]>,
}

#[cfg_attr(
    not(any(test, shuttle)),
    expect(
        clippy::large_enum_variant,
        reason = "a bottom node's numbers lie in it: one miss less"
    )
)]
enum Children {
    Leaves([LeafId; FANOUT]),
    Nodes(Box<[Slot]>),
}

/// One child while a node is rebuilt.
enum Child {
    Leaf(LeafId),
    Node(Slot),
}

#[cfg(not(shuttle))]
mod slot {
    use super::Node;
    use crate::sync::Guard;
    use crossbeam_epoch::{Atomic, Owned};
    use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

    /// An epoch pointer to a node.
    pub(super) struct Slot(Atomic<Node>);

    impl Slot {
        pub(super) fn new(node: Node) -> Self {
            Slot(Atomic::new(node))
        }

        /// Acquire: pairs with the release in `replace`, so that the node's content is seen whole.
        pub(super) fn load<'g>(&self, guard: &'g Guard) -> &'g Node {
            // SAFETY: never null, and retired only by a guard's defer (invariant 1).
            unsafe { self.0.load(Acquire, guard).deref() }
        }

        /// Puts `node` in place; the old one is freed when no guard can see it.
        pub(super) fn replace(&self, node: Node, guard: &Guard) {
            let old = self.0.swap(Owned::new(node), AcqRel, guard);
            // SAFETY: unreachable now, for its only other pointers are in retired nodes (invariant 2),
            // and retired once: only the one writer replaces.
            unsafe { guard.defer_destroy(old) };
        }

        /// A second pointer to the same node, for the node that replaces the one around this slot.
        pub(super) fn share(&self, guard: &Guard) -> Self {
            Slot(Atomic::from(self.0.load(Acquire, guard)))
        }

        /// Frees the node once no guard can see it.
        pub(super) fn retire(&self, guard: &Guard) {
            // SAFETY: the caller took the slot out of the tree (invariant 1).
            unsafe { guard.defer_destroy(self.0.load(Acquire, guard)) };
        }

        /// Takes the node out of a directory that nobody uses any more.
        pub(super) fn take(&mut self) -> Node {
            let old = std::mem::replace(&mut self.0, Atomic::null());
            debug_assert!(!old.load(Relaxed, unprotected()).is_null());
            // SAFETY: `&mut self` of a slot that is in the tree: no one else has the node (invariants 1, 2).
            *unsafe { old.into_owned() }.into_box()
        }
    }

    fn unprotected() -> &'static Guard {
        // SAFETY: only used to look at a pointer that `&mut` already excludes others from.
        unsafe { crossbeam_epoch::unprotected() }
    }
}
#[cfg(shuttle)]
mod slot {
    use super::Node;
    use crate::sync::{Guard, Shared};
    use std::sync::Arc;

    /// What the model checker sees instead of an epoch pointer: a node is freed as soon as no guard that
    /// loaded it is left.
    pub(super) struct Slot(Shared<Node>);

    impl Slot {
        pub(super) fn new(node: Node) -> Self {
            Slot(Shared::new(Arc::new(node)))
        }

        pub(super) fn load<'g>(&self, guard: &'g Guard) -> &'g Node {
            let node = self.0.load();
            let address = Arc::as_ptr(&node);
            guard.keep(node);
            // SAFETY: the guard holds a count of the node until it is dropped, which 'g forbids, and
            // nobody ever has a `&mut` to a node in an Arc.
            unsafe { &*address }
        }

        pub(super) fn replace(&self, node: Node, _: &Guard) {
            self.0.store(Arc::new(node));
        }

        pub(super) fn share(&self, _: &Guard) -> Self {
            Slot(Shared::new(self.0.load()))
        }

        /// Nothing to do: the last count frees the node.
        pub(super) fn retire(&self, _: &Guard) {}
    }
}
use slot::Slot;

/// The first 8 bytes behind a node's prefix, so that integers order as the keys do.
fn head_of(suffix: &[u8]) -> u64 {
    match suffix.first_chunk::<8>() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0; 8];
            head[..suffix.len()].copy_from_slice(suffix);
            u64::from_be_bytes(head)
        }
    }
}

impl Node {
    /// A node for these separators, ascending.
    fn new(entries: Vec<(Vec<u8>, Child)>) -> Self {
        assert!(!entries.is_empty() && entries.len() <= FANOUT, "our bug: a node's size");
        // Nodes are replaced whole, so the prefix may depend on the separators. Were the first one never
        // left out, the leftmost nodes, the root among them, had heads that are all the same.
        let last = &entries[entries.len() - 1].0;
        let second = &entries[1.min(entries.len() - 1)].0;
        let prefix_len = common_prefix(second, last);
        let prefix = Slice::new(&last[..prefix_len]);
        let first = &entries[0].0;
        let first = (!first.starts_with(&prefix)).then(|| first.as_slice().into());
        let mut heads = [u64::MAX; FANOUT];
        let mut ends = Vec::with_capacity(entries.len());
        let mut separators = Vec::new();
        for (at, (separator, _)) in entries.iter().enumerate() {
            let suffix = if at == 0 && first.is_some() { &[] } else { &separator[prefix_len..] };
            heads[at] = head_of(suffix);
            separators.extend_from_slice(suffix);
            #[expect(clippy::cast_possible_truncation, reason = "64 separators of at most 64 KiB")]
            ends.push(separators.len() as u32);
        }
        let count = entries.len();
        let is_bottom = matches!(entries[0].1, Child::Leaf(_));
        let children = if is_bottom {
            let mut leaves = [LeafId(u32::MAX); FANOUT];
            for (leaf, (_, child)) in leaves.iter_mut().zip(&entries) {
                if let Child::Leaf(id) = child {
                    *leaf = *id;
                }
            }
            Children::Leaves(leaves)
        } else {
            let node = |(_, child)| match child {
                Child::Node(slot) => slot,
                Child::Leaf(_) => unreachable!("a node's children are of one kind"),
            };
            Children::Nodes(entries.into_iter().map(node).collect())
        };
        let (ends, separators) = (ends.into(), separators.into());
        Node { heads, children, count, prefix, first, ends, separators }
    }

    fn bytes(&self) -> u64 {
        let children = match &self.children {
            Children::Leaves(_) => 0,
            Children::Nodes(nodes) => size_of_val(&**nodes),
        };
        let first = self.first.as_ref().map_or(0, |first| first.len());
        let boxes = self.prefix.len() + first + size_of_val(&*self.ends) + self.separators.len();
        (size_of::<Self>() + children + boxes) as u64
    }

    /// The separator at `at` without the prefix; that of `first` is empty.
    fn separator(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        &self.separators[start..self.ends[at] as usize]
    }

    fn full_separator(&self, at: usize) -> Vec<u8> {
        match &self.first {
            Some(first) if at == 0 => first.to_vec(),
            _ => [&self.prefix, self.separator(at)].concat(),
        }
    }

    /// How many separators are at most `key` (less than `key` if `strictly`).
    fn rank(&self, key: &[u8], strictly: bool) -> usize {
        let is_below = |separator: &[u8], key: &[u8]| match strictly {
            true => separator < key,
            false => separator <= key,
        };
        let Some(suffix) = key.strip_prefix(&*self.prefix) else {
            if key > &*self.prefix {
                return self.count;
            }
            return usize::from(self.first.as_ref().is_some_and(|first| is_below(first, key)));
        };
        let head = head_of(suffix);
        let heads = &self.heads[..self.count];
        // Over all there is room for, what is not used being the highest: steps and their number are fixed.
        let mut rank = 0;
        let mut half = FANOUT / 2;
        while half > 0 {
            let is_below = self.heads[(rank + half - 1) % FANOUT] <= head;
            rank = select_unpredictable(is_below, rank + half, rank);
            half /= 2;
        }
        rank += usize::from(self.heads[rank % FANOUT] <= head);
        rank = rank.min(self.count);
        if rank == 0 || heads[rank - 1] != head {
            return rank;
        }
        // Separators with the key's own head: seldom more than one.
        let mut low = heads[..rank].partition_point(|&other| other < head);
        while low < rank {
            let middle = low.midpoint(rank);
            let is_first = middle == 0 && self.first.is_some();
            match is_first || is_below(self.separator(middle), suffix) {
                true => low = middle + 1,
                false => rank = middle,
            }
        }
        rank
    }

    fn entries(&self, guard: &Guard) -> Vec<(Vec<u8>, Child)> {
        let child = |at: usize| match &self.children {
            Children::Leaves(leaves) => Child::Leaf(leaves[at]),
            Children::Nodes(nodes) => Child::Node(nodes[at].share(guard)),
        };
        (0..self.count).map(|at| (self.full_separator(at), child(at))).collect()
    }
}

/// An entry found: a leaf and its low fence.
#[derive(Clone, Copy)]
pub(crate) struct Found<'g> {
    node: &'g Node,
    at: usize,
    pub(crate) id: LeafId,
}

impl Found<'_> {
    /// Whether the low fence is at least `bound`.
    pub(crate) fn low_is_at_least(&self, bound: &[u8]) -> bool {
        if let (0, Some(first)) = (self.at, &self.node.first) {
            return &**first >= bound;
        }
        match bound.strip_prefix(&*self.node.prefix) {
            // Separators lie elsewhere: mostly the head tells.
            Some(suffix) => match self.node.heads[self.at].cmp(&head_of(suffix)) {
                Ordering::Equal => self.node.separator(self.at) >= suffix,
                order => order.is_gt(),
            },
            None => &*self.node.prefix >= bound,
        }
    }
}

/// How far a search has come.
enum Way<'g> {
    /// To this node. With it the last node above that the way did not leave by its first child, and by which.
    To(&'g Node, Option<(&'g Node, usize)>),
    End(Found<'g>),
}

/// One node on a writer's way down.
struct Step<'g> {
    slot: &'g Slot,
    node: &'g Node,
    /// The child that covers what is looked for.
    at: usize,
    low: Vec<u8>,
}

impl Directory {
    /// A directory of `leaves`, each with its low fence, ascending, the first one empty.
    pub(crate) fn new(leaves: Vec<(Vec<u8>, LeafId)>, account: Arc<Account>) -> Self {
        let mut level: Vec<_> =
            leaves.into_iter().map(|(low, id)| (low, Child::Leaf(id))).collect();
        let mut bytes = 0;
        while level.len() > FANOUT || matches!(level[0].1, Child::Leaf(_)) {
            let lows: Vec<Vec<u8>> =
                level.iter().step_by(BULK).map(|(low, _)| low.clone()).collect();
            let mut rest = level.into_iter();
            let node = |low: &Vec<u8>| {
                let entries: Vec<_> = rest.by_ref().take(BULK).collect();
                let node = Node::new(entries);
                bytes += node.bytes();
                (low.clone(), Child::Node(Slot::new(node)))
            };
            level = lows.iter().map(node).collect();
        }
        let root = match (level.len(), level.pop()) {
            (1, Some((_, Child::Node(root)))) => root,
            (_, last) => {
                level.extend(last);
                let root = Node::new(level);
                bytes += root.bytes();
                Slot::new(root)
            }
        };
        account.directory.fetch_add(bytes, Relaxed);
        Self { root, writer: Mutex::new(()), account }
    }

    /// The entry with the greatest low fence at most `key`.
    #[inline]
    pub(crate) fn find<'g>(&self, key: &[u8], guard: &'g Guard) -> Found<'g> {
        self.search(key, false, guard)
    }

    /// The entry with the greatest low fence below `fence`, which is not empty.
    pub(crate) fn find_before<'g>(&self, fence: &[u8], guard: &'g Guard) -> Found<'g> {
        self.search(fence, true, guard)
    }

    /// As `find`, for each of `keys`: all wait for memory together.
    pub(crate) fn find_many<'g, 'k>(
        &self,
        keys: impl Iterator<Item = &'k [u8]> + Clone,
        guard: &'g Guard,
    ) -> Vec<Found<'g>> {
        let root = self.root.load(guard);
        let mut ways: Vec<Way<'g>> = keys.clone().map(|_| Way::To(root, None)).collect();
        let mut found = Vec::with_capacity(ways.len());
        while found.len() < ways.len() {
            found.clear();
            for (way, key) in ways.iter_mut().zip(keys.clone()) {
                if let Way::To(node, low) = *way {
                    *way = self.step(node, low, key, false, guard);
                }
                if let Way::End(end) = way {
                    found.push(*end);
                }
            }
        }
        found
    }

    fn search<'g>(&self, key: &[u8], strictly: bool, guard: &'g Guard) -> Found<'g> {
        let mut way = Way::To(self.root.load(guard), None);
        loop {
            match way {
                Way::To(node, low) => way = self.step(node, low, key, strictly, guard),
                Way::End(found) => return found,
            }
        }
    }

    /// One step down from `node`.
    #[inline]
    fn step<'g>(
        &self,
        node: &'g Node,
        low: Option<(&'g Node, usize)>,
        key: &[u8],
        strictly: bool,
        guard: &'g Guard,
    ) -> Way<'g> {
        let rank = node.rank(key, strictly);
        let at = rank.saturating_sub(1);
        match &node.children {
            Children::Leaves(leaves) if rank > 0 => Way::End(Found { node, at, id: leaves[at] }),
            Children::Leaves(_) => {
                // The node's first entry was removed: take the entry before the node.
                let (parent, at) = low.expect("the leftmost leaf is always in the directory");
                Way::End(self.search(&parent.full_separator(at), true, guard))
            }
            Children::Nodes(nodes) => {
                let low = if at > 0 { Some((node, at)) } else { low };
                let node = nodes[at].load(guard);
                // The heads and the numbers of leaves that follow them, all under way at once.
                for line in 0..PREFETCH_LINES {
                    prefetch(std::ptr::from_ref(node).cast::<u8>().wrapping_add(line * 64));
                }
                Way::To(node, low)
            }
        }
    }

    /// Enters a leaf. Its latch is held by the caller.
    pub(crate) fn insert(&self, low: &[u8], id: LeafId) {
        self.insert_all(vec![(low.to_vec(), id)]);
    }

    /// Enters leaves, ascending, whose latches are held by the caller: a node that takes many is made anew once.
    pub(crate) fn insert_all(&self, leaves: Vec<(Vec<u8>, LeafId)>) {
        let _writer = self.writer.lock();
        let mut leaves = leaves.into_iter().peekable();
        while let Some((low, _)) = leaves.peek() {
            let guard = &pin();
            let path = self.path_to(low, guard);
            // Where the node begins that comes after the one at the end of the path.
            let next = path.iter().rev().skip(1).find(|step| step.at + 1 < step.node.count);
            let end = next.map(|step| step.node.full_separator(step.at + 1));
            let is_here = |(low, _): &(Vec<u8>, LeafId)| end.as_ref().is_none_or(|end| low < end);
            let mut here = Vec::new();
            while let Some((low, id)) = leaves.next_if(is_here) {
                here.push((low, Child::Leaf(id)));
            }
            self.insert_along(&path, here, guard);
        }
    }

    /// Enters children of the node at the end of `path`.
    fn insert_along(&self, path: &[Step<'_>], mut carry: Vec<(Vec<u8>, Child)>, guard: &Guard) {
        for (depth, step) in path.iter().enumerate().rev() {
            let mut entries = step.node.entries(guard);
            let mut at = step.at;
            match path.get(depth + 1) {
                // The child that was split starts at its fence, wherever its first entry is.
                Some(child) => {
                    entries[at].0.clone_from(&child.low);
                    let count = carry.len();
                    entries.splice(at + 1..at + 1, carry);
                    at += count;
                }
                None => {
                    for (low, child) in carry {
                        at = entries.partition_point(|(separator, _)| *separator < low);
                        match entries.get_mut(at) {
                            Some(entry) if entry.0 == low => entry.1 = child,
                            _ => entries.insert(at, (low, child)),
                        }
                    }
                }
            }
            if entries.len() <= FANOUT {
                return self.put(step, Node::new(entries), guard);
            }
            // An ascending load leaves the left nodes full.
            let parts = entries.len().div_ceil(FANOUT);
            let is_ascending = at + 1 == entries.len();
            let by = if is_ascending { FANOUT - 1 } else { entries.len().div_ceil(parts) };
            if depth == 0 {
                let mut level = entries;
                while level.len() > FANOUT {
                    level = self.divided(level, by);
                }
                return self.put(step, Node::new(level), guard);
            }
            let right = entries.split_off(by);
            self.put(step, Node::new(entries), guard);
            carry = self.divided(right, by);
        }
    }

    /// Nodes of `by` entries each, by where they begin.
    fn divided(&self, entries: Vec<(Vec<u8>, Child)>, by: usize) -> Vec<(Vec<u8>, Child)> {
        let mut nodes = Vec::with_capacity(entries.len().div_ceil(by));
        let mut entries = entries.into_iter().peekable();
        while let Some((low, _)) = entries.peek() {
            let low = low.clone();
            let node = Node::new(entries.by_ref().take(by).collect());
            self.grown(&node, 1);
            nodes.push((low, Child::Node(Slot::new(node))));
        }
        nodes
    }

    /// Removes the leaf entered at `low`. Its latch is held by the caller.
    pub(crate) fn remove(&self, low: &[u8]) {
        assert!(!low.is_empty(), "our bug: the leftmost leaf never dies");
        let _writer = self.writer.lock();
        let guard = &pin();
        for step in self.path_to(low, guard).iter().rev() {
            let mut entries = step.node.entries(guard);
            if matches!(step.node.children, Children::Leaves(_)) {
                assert!(
                    entries[step.at].0 == low,
                    "our bug: a leaf removed that was never entered"
                );
            }
            entries.remove(step.at);
            if !entries.is_empty() {
                return self.put(step, Node::new(entries), guard);
            }
            // An empty node goes as well, and its parent's entry with it.
            step.slot.retire(guard);
            self.grown(step.node, -1);
        }
    }

    fn put(&self, step: &Step<'_>, new: Node, guard: &Guard) {
        self.grown(&new, 1);
        self.grown(step.node, -1);
        step.slot.replace(new, guard);
    }

    fn grown(&self, node: &Node, sign: i8) {
        match sign {
            1 => self.account.directory.fetch_add(node.bytes(), Relaxed),
            _ => self.account.directory.fetch_sub(node.bytes(), Relaxed),
        };
    }

    /// The nodes from the root to the bottom node that covers `low`.
    fn path_to<'g>(&'g self, low: &[u8], guard: &'g Guard) -> Vec<Step<'g>> {
        let mut path: Vec<Step<'g>> = Vec::new();
        let (mut slot, mut node_low) = (&self.root, Vec::new());
        loop {
            let node = slot.load(guard);
            let at = node.rank(low, false).saturating_sub(1);
            let step = Step { slot, node, at, low: node_low };
            if let Children::Nodes(nodes) = &node.children {
                slot = &nodes[at];
                // Within a node the first child starts at the node's fence.
                node_low = if at == 0 { step.low.clone() } else { node.full_separator(at) };
                path.push(step);
            } else {
                path.push(step);
                return path;
            }
        }
    }

    /// Every entry in order: for tests and for taking the tree apart.
    #[cfg(test)]
    fn entries(&self) -> Vec<(Vec<u8>, LeafId)> {
        fn walk(node: &Node, guard: &Guard, out: &mut Vec<(Vec<u8>, LeafId)>) {
            for at in 0..node.count {
                match &node.children {
                    Children::Leaves(leaves) => out.push((node.full_separator(at), leaves[at])),
                    Children::Nodes(nodes) => walk(nodes[at].load(guard), guard, out),
                }
            }
        }
        let guard = pin();
        let mut out = Vec::new();
        walk(self.root.load(&guard), &guard, &mut out);
        out
    }
}

#[cfg(not(shuttle))]
impl Drop for Directory {
    fn drop(&mut self) {
        let mut nodes = vec![self.root.take()];
        while let Some(node) = nodes.pop() {
            self.grown(&node, -1);
            if let Children::Nodes(children) = node.children {
                nodes.extend(children.into_vec().iter_mut().map(Slot::take));
            }
        }
    }
}

#[cfg(all(test, not(shuttle)))]
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn check(directory: &Directory, model: &BTreeMap<Vec<u8>, LeafId>, keys: &[Vec<u8>]) {
        let guard = pin();
        for key in keys {
            let found = directory.find(key, &guard);
            let (low, id) = model.range(..=key.clone()).next_back().expect("the first is empty");
            assert_eq!(found.id, *id, "find {key:?}");
            assert!(found.low_is_at_least(low));
            let mut above = low.clone();
            above.push(0);
            assert!(!found.low_is_at_least(&above));
            if !key.is_empty() {
                let before = model.range(..key.clone()).next_back().expect("the first is empty");
                assert_eq!(directory.find_before(key, &guard).id, *before.1, "before {key:?}");
            }
        }
    }

    /// Keys that share long prefixes, hold zeros and are prefixes of one another.
    fn key(random: u64) -> Vec<u8> {
        let stem: &[u8] = [&b""[..], b"aaaaaaaaaaaa", b"aaaaaaaaaaaab", b"\0\0\0\0\0\0\0\0\0"]
            [(random >> 8) as usize % 4];
        let mut key = stem.to_vec();
        key.extend(((random >> 16) as u16).to_be_bytes().iter().take((random >> 40) as usize % 3));
        key.extend(std::iter::repeat_n(0, (random >> 48) as usize % 3));
        key
    }

    #[test]
    fn finds_what_a_map_finds_through_inserts_and_removes() {
        for seed in 1..6u64 {
            let mut random = seed;
            let mut next = move || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random
            };
            let account = Arc::new(Account::default());
            let first = vec![(Vec::new(), LeafId(0))];
            let directory = Directory::new(first, Arc::clone(&account));
            let mut model = BTreeMap::from([(Vec::new(), LeafId(0))]);
            for step in 1..6_000u32 {
                let low = key(next());
                if next() % 1000 < if step < 3_000 { 800 } else { 200 } {
                    // Now and then many at once.
                    let count = if step % 50 == 0 { 1 + next() % 200 } else { 1 };
                    let lows = std::iter::once(low).chain((1..count).map(|_| key(next())));
                    let leaves: BTreeMap<_, _> =
                        lows.filter(|low| !low.is_empty()).map(|low| (low, LeafId(step))).collect();
                    model.extend(leaves.clone());
                    match leaves.len() {
                        1 => leaves.iter().for_each(|(low, id)| directory.insert(low, *id)),
                        _ => directory.insert_all(leaves.into_iter().collect()),
                    }
                } else if let Some(low) = model.range(low..).next().map(|(low, _)| low.clone())
                    && !low.is_empty()
                {
                    directory.remove(&low);
                    model.remove(&low);
                }
                if step % 500 == 0 {
                    let keys: Vec<_> = (0..300).map(|_| key(next())).collect();
                    check(&directory, &model, &keys);
                    assert!(directory.entries().into_iter().eq(model.clone()));
                }
            }
            drop(directory);
            assert_eq!(account.directory.load(Relaxed), 0, "seed {seed}");
        }
    }

    /// The leftmost nodes hold the empty fence, which shares nothing with the others.
    #[test]
    fn leftmost_nodes_tell_keys_apart_by_their_heads() {
        let mut leaves = vec![(Vec::new(), LeafId(0))];
        leaves.extend((1..60).map(|i| (format!("user{i:012}").into_bytes(), LeafId(i))));
        let directory = Directory::new(leaves, Arc::new(Account::default()));
        let guard = pin();
        let mut node = directory.root.load(&guard);
        loop {
            assert!(node.first.as_deref().is_some_and(<[u8]>::is_empty));
            assert!(node.heads[1..node.count].is_sorted_by(|a, b| a < b));
            match &node.children {
                Children::Nodes(nodes) => node = nodes[0].load(&guard),
                Children::Leaves(_) => return,
            }
        }
    }

    #[test]
    fn a_bulk_load_equals_inserts_one_by_one() {
        for count in [1usize, 2, 56, 57, 64, 65, 3136, 3137, 4000] {
            let lows = (0..count).map(|i| match i {
                0 => Vec::new(),
                _ => (i as u32).to_be_bytes().to_vec(),
            });
            let leaves: Vec<_> = lows.zip(0..).map(|(low, id)| (low, LeafId(id))).collect();
            let model: BTreeMap<_, _> = leaves.iter().cloned().collect();
            let directory = Directory::new(leaves, Arc::new(Account::default()));
            let keys: Vec<_> = (0..count as u32).map(|i| i.to_be_bytes().to_vec()).collect();
            check(&directory, &model, &keys);
        }
    }
}
