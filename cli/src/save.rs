//! Waiting for a save: progress on a terminal, Ctrl-C cancels it.

use std::thread;
use std::time::Duration;

use stillframe::{Error, SaveHandle, SaveReport};

use crate::interrupt::{self, Interrupted};
use crate::ui;

/// Short, so that a save of a few milliseconds isn't taken for a longer one.
const POLL: Duration = Duration::from_millis(2);

/// Waits until the file is whole and synced.
pub(crate) fn wait(handle: SaveHandle) -> anyhow::Result<SaveReport> {
    let bar = ui::count_bar(handle.progress().total_entries, "saving");
    while !handle.is_finished() {
        bar.set_position(handle.progress().entries);
        if interrupt::raised() {
            handle.cancel();
        }
        thread::sleep(POLL);
    }
    bar.finish_and_clear();
    match handle.wait() {
        Err(Error::Cancelled) => Err(Interrupted.into()),
        result => Ok(result?),
    }
}
