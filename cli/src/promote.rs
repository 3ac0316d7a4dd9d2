//! `stillframe promote`: the directory of a replica becomes a primary's.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::json;
use stillframe::{Error, Role};

use crate::{Answer, EXIT_CODES, open, ui};

/// Make a replica's directory a primary's: who opens it from then on may write
///
/// The old primary must be gone for good, or follow this one when it is back: what both write, one will have to give up. The exit
/// code is 1 if it is a primary's already.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Promote {
    /// The replica's directory, which nobody has open
    directory: PathBuf,
}

impl Promote {
    pub(crate) fn run(self, as_json: bool) -> anyhow::Result<Answer> {
        let shown = self.directory.display();
        open::check_is_database(&self.directory)?;
        let database = open::database(&self.directory);
        let database = match database {
            Err(error @ Error::Locked { .. }) => {
                return Err(error)
                    .context("it can only be promoted by the process that has it open");
            }
            database => database?,
        };
        let is_new = database.role() != Role::Primary;
        let position = database.promote()?;
        database.close()?;
        if as_json {
            ui::print_json(&json!({
                "directory": self.directory.to_string_lossy(), "promoted": is_new,
                "seq": position.seq.0, "history": position.history.to_string(),
            }))?;
        } else {
            let at = format!("{} in history {}", ui::count(position.seq.0), position.history);
            let mut out = ui::stdout();
            match is_new {
                true => writeln!(out, "{shown}: a primary from now on, at {at}")?,
                false => writeln!(out, "{shown}: a primary already, at {at}")?,
            }
            out.flush()?;
        }
        Ok(if is_new { Answer::Yes } else { Answer::No })
    }
}
