//! What people see: progress bars, and numbers in units.
//!
//! Bars are drawn to standard error and only when it is a terminal (indicatif sees to that), so
//! nothing here asks for it.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::time::Duration;

use indicatif::{DecimalBytes, HumanCount, ProgressBar, ProgressStyle};
use serde::Serialize;

/// Between two updates of a spinner or of a bar that is polled.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A bar over `len` bytes.
pub(crate) fn byte_bar(len: u64, doing: &'static str) -> ProgressBar {
    bar(len, doing, "{msg:10} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {eta:>4}")
}

/// A bar over `len` records.
pub(crate) fn count_bar(len: u64, doing: &'static str) -> ProgressBar {
    bar(len, doing, "{msg:10} {wide_bar} {human_pos}/{human_len} {eta:>4}")
}

fn bar(len: u64, doing: &'static str, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("our own template");
    ProgressBar::new(len).with_style(style).with_message(doing)
}

/// For what has no measurable end.
pub(crate) fn spinner(doing: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {spinner} {elapsed}").expect("our own");
    let spinner = ProgressBar::new_spinner().with_style(style).with_message(doing);
    spinner.enable_steady_tick(TICK);
    spinner
}

/// Lines that are replaced in place.
pub(crate) fn lines() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg}").expect("our own");
    ProgressBar::new_spinner().with_style(style)
}

/// Standard output, buffered; call `flush` at the end, or an error there goes unseen.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 << 10, io::stdout().lock())
}

/// Writes `report` as one line of JSON to standard output.
pub(crate) fn print_json(report: &impl Serialize) -> anyhow::Result<()> {
    let mut out = stdout();
    serde_json::to_writer(&mut out, report).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

/// `3,000,000`
pub(crate) fn count(count: u64) -> String {
    HumanCount(count).to_string()
}

/// `3,000,000`, of so many a second.
#[expect(clippy::cast_possible_truncation, reason = "a count")]
pub(crate) fn rate(per_s: f64) -> String {
    count(per_s as u64)
}

/// `378.12 MB`: units of a thousand, as rates are stated.
pub(crate) fn bytes(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

/// `1 record`, `3,000 records`
pub(crate) fn plural(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// `1 batch`, `3,000 batches`
pub(crate) fn batches(number: u64) -> String {
    format!("{} batch{}", count(number), if number == 1 { "" } else { "es" })
}

/// Microseconds in the unit that leaves one to three digits before the point: `0.42 µs`, `12.5 ms`.
pub(crate) fn micros(us: f64) -> String {
    let (number, unit) = match us {
        _ if us < 1e3 => (us, "µs"),
        _ if us < 1e6 => (us / 1e3, "ms"),
        _ => (us / 1e6, "s"),
    };
    let digits = match number {
        _ if number < 10.0 => 2,
        _ if number < 100.0 => 1,
        _ => 0,
    };
    format!("{number:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_and_a_unit() {
        for (us, text) in [
            (0.042, "0.04 µs"),
            (9.4, "9.40 µs"),
            (999.4, "999 µs"),
            (1_000.0, "1.00 ms"),
            (45_600.0, "45.6 ms"),
            (3_200_000.0, "3.20 s"),
        ] {
            assert_eq!(micros(us), text);
        }
        assert_eq!(count(3_000_000), "3,000,000");
        assert_eq!(plural(1, "record"), "1 record");
    }
}
