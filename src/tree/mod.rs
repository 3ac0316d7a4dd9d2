//! tree
pub(crate) mod arena;
pub(crate) mod directory;
pub(crate) mod page;
