//! What a command that goes on shows of itself: in place on a terminal; elsewhere a line when something changes, and now and then.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::{interrupt, ui};

/// Between two updates on a terminal.
const REFRESH: Duration = Duration::from_millis(250);
/// What a rate is taken over, at the least.
const RATE_OVER: Duration = Duration::from_secs(1);

/// How a command that goes on shows itself.
#[derive(clap::Args)]
pub(crate) struct Pace {
    /// Print a line so often where there is no terminal to refresh, and whenever something changes
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    every: Duration,
    /// End when standard input does
    #[arg(long)]
    until_eof: bool,
}

/// A look at what goes on.
pub(crate) trait Look: Serialize {
    /// For people; the first line stands for all.
    fn lines(&self) -> Vec<String>;
    /// Is told at once when it changes.
    fn news(&self) -> impl PartialEq + 'static;
}

/// Shows what `look` sees until it is interrupted, which is how this ends, or standard input has ended if that was asked for.
pub(crate) fn watch<L: Look>(
    pace: &Pace,
    as_json: bool,
    mut look: impl FnMut() -> anyhow::Result<L>,
) -> anyhow::Result<()> {
    if pace.until_eof {
        interrupt::raise_at_eof();
    }
    let view = ui::lines();
    let is_in_place = !as_json && !view.is_hidden();
    let every = if is_in_place { REFRESH } else { pace.every };
    let (mut shown, mut news) = (None::<Instant>, None);
    while !interrupt::raised() {
        let seen = look()?;
        let is_due = shown.is_none_or(|shown| shown.elapsed() >= every);
        let is_new = news.as_ref() != Some(&seen.news());
        if is_due || is_new {
            (shown, news) = (Some(Instant::now()), Some(seen.news()));
            match (is_in_place, as_json) {
                (true, _) => view.set_message(seen.lines().join("\n")),
                (_, true) => ui::print_json(&seen)?,
                _ => print(&seen)?,
            }
        }
        thread::sleep(ui::TICK.min(every));
    }
    // What was seen last stays on the terminal.
    view.abandon();
    Ok(())
}

fn print(seen: &impl Look) -> io::Result<()> {
    let mut out = ui::stdout();
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    writeln!(out, "{now} {}", seen.lines().join("; "))?;
    out.flush()
}

/// How fast a count grows.
pub(crate) struct Rate {
    since: Instant,
    count: u64,
    per_s: f64,
}

impl Rate {
    pub(crate) fn new(count: u64) -> Self {
        Rate { since: Instant::now(), count, per_s: 0.0 }
    }

    /// A second, as of late; `count` may go back.
    pub(crate) fn per_s(&mut self, count: u64) -> f64 {
        let elapsed = self.since.elapsed();
        if elapsed >= RATE_OVER {
            let grown = count.saturating_sub(self.count) as f64;
            *self = Rate {
                since: Instant::now(),
                count,
                per_s: (grown / elapsed.as_secs_f64()).round(),
            };
        }
        self.per_s
    }
}
