//! What a database tells whoever reads its log file: through the `log` facade, if the feature of that name is on; else to nobody.
//!
//! Never called with a latch held: a logger is the user's code. It may be called in the middle of a save or a session, and so must not begin one.

/// What went wrong and was not the caller's to hear.
#[cfg(feature = "log")]
pub(crate) fn warn(text: impl FnOnce() -> String) {
    crate::sync::assert_no_latch("a logger");
    log::warn!(target: "stillframe", "{}", text());
}

/// What happens seldom and is good to know afterwards.
#[cfg(feature = "log")]
pub(crate) fn info(text: impl FnOnce() -> String) {
    crate::sync::assert_no_latch("a logger");
    log::info!(target: "stillframe", "{}", text());
}

/// What went wrong and was not the caller's to hear.
#[cfg(not(feature = "log"))]
pub(crate) fn warn(_: impl FnOnce() -> String) {}

/// What happens seldom and is good to know afterwards.
#[cfg(not(feature = "log"))]
pub(crate) fn info(_: impl FnOnce() -> String) {}
