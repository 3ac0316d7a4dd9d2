//! The picture in the README: how long single writes take before, during and after a save of everything.
//!
//! `cargo bench --bench latency [-- FILE.svg]`; without a file it goes to `target/save_latency.svg`. The number of records is `STILLFRAME_BENCH_KEYS`, 3,000,000
//! if unset. One thread overwrites random records as fast as it can and looks at the clock after each; every point is what 20 ms of that came to.

mod workload;

use std::env;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use stillframe::{Database, SaveOptions};

use workload::{FreshValues, Keys, Probes, Scratch, records, shuffled, value};

const KEYS: Keys = Keys::Demo;
const IDLE: Duration = Duration::from_millis(1_500);
/// A point of the picture stands for so long.
const BIN: Duration = Duration::from_millis(20);

/// What a bin of time came to, in microseconds.
struct Point {
    at_s: f64,
    of: [f64; 3],
}

const NAMES: [&str; 3] = ["median", "p99", "longest"];
const COLOURS: [&str; 3] = ["#2c7fb8", "#fd8d3c", "#bd0026"];

fn main() {
    let given = env::args().skip(1).find(|given| !given.starts_with("--"));
    let out = given.map_or_else(|| PathBuf::from("target/save_latency.svg"), PathBuf::from);
    let count = records();
    let db = Database::in_memory();
    let data = db.keyspace("data").expect("a keyspace");
    for number in shuffled(count) {
        data.insert(KEYS.key(number), value(number)).expect("an insert");
    }
    let (probes, values, scratch) =
        (Probes::new(KEYS, count, 3), FreshValues::new(), Scratch::new());
    let mut values = values.values(0);
    let began = Instant::now();
    let (mut save, mut saved) = (None, None);
    let (mut took, mut points, mut bin, mut last) = (Vec::new(), Vec::new(), began, began);
    for batch in 0.. {
        for key in probes.keys(batch, 256) {
            data.insert(key, values.next().expect("without end")).expect("a write");
            let now = Instant::now();
            took.push(now - last);
            last = now;
        }
        if last - bin >= BIN {
            points.push(point(&mut took, bin - began));
            // What drawing cost is nobody's latency.
            last = Instant::now();
            bin = last;
        }
        match (&save, saved) {
            (None, None) if began.elapsed() >= IDLE => {
                let from = began.elapsed();
                let file = scratch.file("still");
                let handle = db.save(file, SaveOptions::default()).expect("a save");
                save = Some((from, handle));
            }
            (Some((_, handle)), None) if handle.is_finished() => {
                saved = Some(began.elapsed());
            }
            (_, Some(until)) if began.elapsed() >= until + IDLE => break,
            _ => {}
        }
    }
    let (from, handle) = save.expect("it was begun");
    let bytes = handle.wait().expect("a file").raw_bytes;
    let until = saved.expect("it has ended");
    for (name, is_in) in [("idle", false), ("while all is saved", true)] {
        let mine = |point: &&Point| {
            let is_within = (from.as_secs_f64()..until.as_secs_f64()).contains(&point.at_s);
            is_within == is_in
        };
        let mut shown = format!("{name:<20}");
        for (kind, of) in NAMES.iter().enumerate() {
            let mut all: Vec<_> = points.iter().filter(mine).map(|point| point.of[kind]).collect();
            all.sort_by(f64::total_cmp);
            let median = all.get(all.len() / 2).copied().unwrap_or(f64::NAN);
            let worst = all.last().copied().unwrap_or(f64::NAN);
            let _ = write!(shown, "  {of}: {median:.1} us (worst bin {worst:.1})");
        }
        println!("{shown}");
    }
    let title = format!(
        "One write, while {:.0} MB ({count} records) are saved in {:.2} s",
        bytes as f64 / 1e6,
        (until - from).as_secs_f64()
    );
    fs::write(&out, picture(&points, from, until, &title)).expect("a picture");
    println!("{}", out.display());
}

fn point(took: &mut Vec<Duration>, at: Duration) -> Point {
    took.sort_unstable();
    let of = |q: usize| {
        let at = (took.len() * q / 100).min(took.len() - 1);
        took[at].as_nanos() as f64 / 1e3
    };
    let of = [of(50), of(99), of(100)];
    took.clear();
    Point { at_s: at.as_secs_f64(), of }
}

/// Time to the right, microseconds upwards by powers of ten.
fn picture(points: &[Point], from: Duration, until: Duration, title: &str) -> String {
    const W: f64 = 860.0;
    const H: f64 = 400.0;
    const LEFT: f64 = 70.0;
    const TOP: f64 = 50.0;
    const WIDE: f64 = 760.0;
    const HIGH: f64 = 290.0;
    let end = points.last().map_or(1.0, |point| point.at_s);
    let x = |s: f64| LEFT + WIDE * s / end;
    // 0.1 us to 100 ms.
    let y = |us: f64| TOP + HIGH * (1.0 - (us.max(0.1).log10() + 1.0) / 6.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {W} {H}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{W}\" height=\"{H}\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"28\" font-size=\"16\">{title}</text>\n"
    );
    let (begins, ends) = (x(from.as_secs_f64()), x(until.as_secs_f64()));
    let wide = ends - begins;
    let _ = writeln!(
        svg,
        "<rect x=\"{begins:.1}\" y=\"{TOP}\" width=\"{wide:.1}\" height=\"{HIGH}\" fill=\"#e8e8e8\"/>\n\
         <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555\">save</text>",
        begins + wide / 2.0,
        TOP + 16.0
    );
    let limits = ["0.1 us", "1 us", "10 us", "100 us", "1 ms", "10 ms", "100 ms"];
    for (power, limit) in limits.iter().enumerate() {
        let at = y(10_f64.powi(i32::try_from(power).expect("few") - 1));
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ccc\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{limit}</text>",
            LEFT + WIDE,
            LEFT - 8.0,
            at + 4.0
        );
    }
    for second in (0..).take_while(|second| f64::from(*second) <= end) {
        let at = x(f64::from(second));
        let (bottom, text) = (TOP + HIGH, TOP + HIGH + 18.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{}\" stroke=\"#555\"/>\
             <text x=\"{at:.1}\" y=\"{text}\" text-anchor=\"middle\">{second} s</text>",
            bottom + 4.0
        );
    }
    for (kind, (name, colour)) in NAMES.iter().zip(COLOURS).enumerate() {
        let line: Vec<_> = points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x(point.at_s), y(point.of[kind])))
            .collect();
        let at = LEFT + 170.0 * kind as f64;
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.2\"/>\n\
             <rect x=\"{at}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{}\">{name} of 20 ms</text>",
            line.join(" "),
            H - 22.0,
            at + 20.0,
            H - 16.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}
