//! Waiting for a save: progress on a terminal, Ctrl-C cancels it.

use std::thread;
use std::time::{Duration, Instant};

use stillframe::{Error, SaveHandle, SaveReport};

use crate::interrupt::{self, Interrupted};
use crate::ui;

/// Waits until the file is whole and synced.
pub(crate) fn wait(handle: SaveHandle) -> anyhow::Result<SaveReport> {
    let began = Instant::now();
    let bar = ui::count_bar(handle.progress().total_entries, "saving");
    while !handle.is_finished() {
        bar.set_position(handle.progress().entries);
        if interrupt::raised() {
            handle.cancel();
        }
        // A twentieth of what has passed: short saves end when they end, long ones are left alone.
        thread::sleep((began.elapsed() / 20).clamp(Duration::from_micros(200), ui::TICK));
    }
    bar.finish_and_clear();
    match handle.wait() {
        Err(Error::Cancelled) => Err(Interrupted.into()),
        result => Ok(result?),
    }
}
