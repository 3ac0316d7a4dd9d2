//! Statistics: that what is told was so, that the page of figures is well formed, and that the dashboard asks for what is on it.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use stillframe::simulation::SimDisk;
use stillframe::{
    AckLevel, Database, Durability, Error, Link, PrimaryOptions, ReplicaSource, SaveOptions,
};

#[test]
fn what_happens_is_counted_and_timed() {
    let disk = SimDisk::new();
    let db = Database::builder().disk(disk).durability(Durability::Sync).open("/db").unwrap();
    let data = db.keyspace("data").unwrap();
    let before = db.stats();
    for n in 0..10_u32 {
        data.insert(n.to_be_bytes(), "").unwrap();
    }
    let mut batch = db.batch();
    batch.insert(&data, "a", "b");
    batch.commit().unwrap();
    db.transact(|tx| tx.insert(&data, "a", "c")).unwrap();
    let mut turn = 0_u32;
    let refused: Result<(), _> = db.transact(|tx| {
        tx.get(&data, "a")?;
        turn += 1;
        data.insert("a", turn.to_be_bytes())?;
        tx.insert(&data, "a", "d")
    });
    assert!(matches!(refused, Err(Error::Conflict { .. })));
    let held = db.snapshot().unwrap();
    db.compact_log(SaveOptions::default()).unwrap();
    let after = db.stats();
    let inserts = 10 + 1 + 1 + after.conflicts;
    assert_eq!((after.transactions, after.conflicts), (1, 100));
    // Each waits for the disk here, so that each is timed.
    assert_eq!(after.commits.since(&before.commits).count(), inserts);
    assert!(after.syncs.since(&before.syncs).count() >= inserts);
    let longest = after.commits.max().unwrap();
    assert!(after.commits.quantile(1.0) == Some(longest) && after.commits.total() >= longest);
    assert_eq!(after.saves.since(&before.saves).count(), 1);
    assert!(after.cuts.since(&before.cuts).count() >= 2);
    assert_eq!(after.stills.len(), 1);
    drop(held);
}

/// Each line is one that Prometheus reads; each name has one type, said before; buckets only grow.
#[test]
fn the_page_of_figures_is_well_formed() {
    let db = Database::in_memory();
    db.keyspace("odd \"name\" \\ of\ntwo lines").unwrap().insert("k", "v").unwrap();
    let page = db.stats().to_prometheus();
    let (mut typed, mut seen, mut last) = (BTreeSet::new(), BTreeSet::new(), (String::new(), 0.0));
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(typed.insert(name.to_owned()), "{name} twice");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap();
        assert!(seen.insert(name.to_owned()) && value >= 0.0, "{line}");
        let bare = name.split('{').next().unwrap();
        let ends = ["_bucket", "_sum", "_count"];
        let of = ends.iter().find_map(|end| bare.strip_suffix(end)).unwrap_or(bare);
        assert!(typed.contains(of) || typed.contains(bare), "{line}");
        if bare.ends_with("_bucket") {
            assert!(last.0 != bare || last.1 <= value, "{line}");
            last = (bare.to_owned(), value);
        }
    }
    assert!(
        page.contains(r#"stillframe_keyspace_records{keyspace="odd \"name\" \\ of\ntwo lines"} 1"#)
    );
    assert!(page.contains("stillframe_commit_seconds_bucket{le=\"0.000000256\"}"));
}

/// A dashboard that shows nothing would be found out when it is needed.
#[test]
fn the_dashboard_asks_for_figures_that_there_are() {
    let disk = SimDisk::new();
    let db = Database::builder().disk(disk).open("/db").unwrap();
    db.keyspace("data").unwrap();
    let primary =
        db.serve_replicas(PrimaryOptions::new().heartbeat(Duration::from_millis(10))).unwrap();
    let (copy, attach) = (Database::in_memory(), primary.clone());
    let source = ReplicaSource::links(move || {
        let (ours, theirs) = Link::pair();
        attach.attach(theirs);
        Ok(ours)
    });
    let replica = copy.follow(source.name("copy")).unwrap();
    primary.wait(db.position(), 1, AckLevel::Applied, Duration::from_secs(60)).unwrap();
    // How old a replica is it says once it has heard what time its primary has.
    let began = Instant::now();
    while replica.status().lag_ms.is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", replica.status());
        thread::yield_now();
    }
    let (of_primary, of_copy) = (db.stats().to_prometheus(), copy.stats().to_prometheus());
    replica.stop();
    let says = |page: &str, line: &str| page.lines().any(|said| said.starts_with(line));
    for line in [
        "stillframe_primary 1",
        "stillframe_replicas 1",
        "stillframe_replica_lag_batches{replica=\"copy ",
        "stillframe_replica_syncs_total{kind=\"full\"} 1",
    ] {
        assert!(says(&of_primary, line), "{line}: {of_primary}");
    }
    for line in ["stillframe_primary 0", "stillframe_lag_batches 0", "stillframe_links_total 1"] {
        assert!(says(&of_copy, line), "{line}: {of_copy}");
    }
    let page = of_primary + &of_copy;
    let names: BTreeSet<&str> = page
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let dashboard = std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/examples/grafana-dashboard.json"
    ));
    let dashboard = dashboard.unwrap();
    let asked: Vec<&str> = dashboard
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("stillframe_"))
        .collect();
    assert!(asked.len() > 20);
    for name in &asked {
        assert!(names.contains(name), "{name} is on no page");
    }
    // Nothing that is told is left out, but for parts of a histogram.
    for name in names {
        let is_part = name.ends_with("_sum") || name.ends_with("_count");
        let is_shown = asked.contains(&name) || is_part;
        let is_minor = [
            "stillframe_records",
            "stillframe_leaves",
            "stillframe_keyspace_raw_bytes",
            "stillframe_log_written_seq",
            "stillframe_log_segments",
        ];
        assert!(is_shown || is_minor.contains(&name), "{name} is on no panel");
    }
}

#[cfg(feature = "metrics")]
#[test]
fn figures_go_to_a_recorder() {
    // Without one it is a walk over the figures.
    Database::in_memory().stats().publish();
}
