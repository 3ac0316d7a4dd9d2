//! Ctrl-C, and SIGTERM, for commands that leave something behind when they are killed.
//!
//! The first one raises a flag; whoever loops asks [`check`], and the way out through `?` removes
//! temporary files as any other error does. The second one ends the process at once.

use std::fmt;
use std::io;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;

static RAISED: AtomicBool = AtomicBool::new(false);
/// Raised by signals alone: the second one ends the process.
static SIGNALLED: AtomicBool = AtomicBool::new(false);

/// The error of a command that was interrupted.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From here on Ctrl-C, SIGTERM or the terminal's end raises the flag instead of ending the process.
pub(crate) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        // Relaxed: the flags carry no data.
        RAISED.store(true, Ordering::Relaxed);
        if SIGNALLED.swap(true, Ordering::Relaxed) {
            process::exit(super::INTERRUPTED.into());
        }
    })
    .context("installing the handler of Ctrl-C")
}

/// The end of standard input raises the flag as well.
pub(crate) fn raise_at_eof() {
    thread::spawn(|| {
        // An error ends it too.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        RAISED.store(true, Ordering::Relaxed); // Relaxed: the flag carries no data
    });
}

/// Whether Ctrl-C was pressed.
pub(crate) fn raised() -> bool {
    RAISED.load(Ordering::Relaxed) // Relaxed: the flag carries no data
}

/// Fails once Ctrl-C was pressed.
pub(crate) fn check() -> anyhow::Result<()> {
    if raised() { Err(Interrupted.into()) } else { Ok(()) }
}
