//! A pass: everything at a cut of its own, copied out leaf after leaf from left to right, each leaf once.
//!
//! A pass needs nothing any more of a leaf that it has copied. So it marks the leaf under its latch: from
//! then on writers there look for the newest live cut *other than this one*, and what was kept for this cut
//! alone is freed on the spot. Under even writes half as much is ever kept for a pass as for a still, and a
//! quarter of it at once.
//!
//! Rules beside those of stills, whose cut anyone may read at any time and which therefore never mark:
//! 1. Only the newest mark of a leaf counts; a pass whose mark was overwritten has more kept than it needs.
//! 2. Halves of a split have the mark. A merged leaf has it only if both had: what lies right of the pass is
//!    still to be copied; it is unchanged since the cut if it keeps nothing, since it was never marked.
//! 3. A mark counts for the content of leaves only: old totals are kept for every live cut.

use std::sync::Arc;

use crate::Result;
use crate::commit::{Cut, Holder};
use crate::planted::{Bug, planted};
use crate::position::Seq;
use crate::tree::Tree;
use crate::tree::still::{LeafCopy, Still};

/// See the file's head.
pub(crate) struct Pass {
    still: Still,
}

impl Pass {
    /// A pass over the present.
    pub(crate) fn take(tree: &Arc<Tree>, holder: Holder) -> Result<Self> {
        Ok(Self { still: Still::take(tree, holder)? })
    }

    pub(crate) fn tree(&self) -> &Tree {
        self.still.tree()
    }

    pub(crate) fn cut(&self) -> &Cut {
        self.still.cut()
    }

    /// Copies the content of the leaf that covers `from` into `out`, from that key on; `from` is where the
    /// copy before ended.
    pub(crate) fn copy_leaf(&self, from: &[u8], out: &mut LeafCopy) -> Result<()> {
        self.copy_leaf_if(from, |_, _, _| true, out).map(drop)
    }

    /// As [`copy_leaf`](Self::copy_leaf), if `wants` says so, which is shown the leaf's range and the batch that changed it last, or a later
    /// one; else `out` gets its fences and nothing between them. Whether it was copied.
    ///
    /// It is looked at under its latch, after the cut: a writer that has its place before the cut and has not applied yet is
    /// waited for.
    pub(crate) fn copy_leaf_if(
        &self,
        from: &[u8],
        wants: impl FnOnce(&[u8], Option<&[u8]>, Seq) -> bool,
        out: &mut LeafCopy,
    ) -> Result<bool> {
        out.clear();
        let tree = self.still.tree();
        let mut leaf = tree.latch_write(from);
        tree.commit.check()?;
        let (page, stamp) = (leaf.live(), self.still.stamp_of(&leaf));
        let low = page.low().max(from);
        let is_wanted = wants(low, page.high(), stamp);
        match is_wanted {
            true => self.still.copy(&leaf, from, out),
            false => out.set_fences(low, page),
        }
        if !planted(Bug::PassMarksNothing) {
            leaf.passed_by = self.cut().id;
        }
        let freed = match leaf.kept {
            Some(_) => tree.sweep_leaf(&mut leaf, None),
            None => Vec::new(),
        };
        drop(leaf);
        drop(freed);
        Ok(is_wanted)
    }
}
