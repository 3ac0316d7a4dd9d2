//! What a still costs: the cut itself at two sizes, writing while it is held, reading from it, dropping it.
//!
//! The peer for the cut is what one does without stills: a clone of the whole map under its lock.

mod workload;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use stillframe::Slice;

use workload::contenders::{Contender, Engine, LockedTree};
use workload::measure::Tally;
use workload::{FreshValues, Keys, Probes, records};

/// The engine refuses nothing here, and nobody else holds it.
const OPEN: &str = "an open database";

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let tally = Tally::default();
    for keys in Keys::ALL {
        for records in [1000, records()] {
            let engine = Engine::loaded(keys, records);
            let bench = Bench { keys, records, tally: &tally, engine: &engine };
            bench.cut(&mut criterion);
            bench.drop_of_much_kept(&mut criterion);
            bench.update(&mut criterion);
            bench.get(&mut criterion);
        }
        clone_of_map(&mut criterion, keys, 1000, &tally);
    }
    criterion.final_summary();
    tally.print();
}

struct Bench<'a> {
    keys: Keys,
    records: usize,
    tally: &'a Tally,
    engine: &'a Engine,
}

impl Bench<'_> {
    fn named(&self, what: &str) -> String {
        format!("{what}, {} records, {} keys", self.records, self.keys.name())
    }

    /// The clock stops before the still is dropped.
    fn cut(&self, criterion: &mut Criterion) {
        let figure = self.named("cut");
        self.measure(criterion, &figure, "stillframe", |_| {
            let began = Instant::now();
            let still = self.engine.database.snapshot().expect(OPEN);
            let took = began.elapsed();
            drop(still);
            took
        });
    }

    /// The drop that its caller waits for; what was kept is freed in the background.
    fn drop_of_much_kept(&self, criterion: &mut Criterion) {
        let figure = self.named("drop after 100 updates");
        let probes = Probes::new(self.keys, self.records, 32);
        let values = FreshValues::new();
        self.measure(criterion, &figure, "stillframe", |round| {
            let still = self.engine.database.snapshot().expect(OPEN);
            for (key, value) in probes.keys(round, 100).zip(values.values(round)) {
                self.engine.put(key, value);
            }
            let began = Instant::now();
            drop(still);
            began.elapsed()
        });
    }

    fn update(&self, criterion: &mut Criterion) {
        let figure = self.named("1,000 updates");
        let probes = Probes::new(self.keys, self.records, 33);
        let values = FreshValues::new();
        let update = |round: usize| {
            let began = Instant::now();
            for (key, value) in probes.keys(round, 1000).zip(values.values(round)) {
                self.engine.put(key, value);
            }
            began.elapsed()
        };
        self.measure(criterion, &figure, "nothing held", update);
        self.measure(criterion, &figure, "under a fresh still", |round| {
            let _still = self.engine.database.snapshot().expect(OPEN);
            update(round)
        });
    }

    fn get(&self, criterion: &mut Criterion) {
        let figure = self.named("1,000 gets");
        let probes = Probes::new(self.keys, self.records, 34);
        let still = self.engine.database.snapshot().expect(OPEN);
        let keyspace = still.keyspace("bench").expect("its keyspace");
        for (key, value) in probes.keys(0, self.records / 4).zip(FreshValues::new().values(0)) {
            self.engine.put(key, value);
        }
        self.measure(criterion, &figure, "live", |round| {
            let began = Instant::now();
            probes.keys(round, 1000).for_each(|key| touch(self.engine.keyspace.get(key)));
            began.elapsed()
        });
        self.measure(criterion, &figure, "on a still", |round| {
            let began = Instant::now();
            probes.keys(round, 1000).for_each(|key| touch(keyspace.get(key)));
            began.elapsed()
        });
    }

    fn measure(
        &self,
        criterion: &mut Criterion,
        figure: &str,
        name: &str,
        once: impl FnMut(usize) -> Duration,
    ) {
        measure(criterion, self.tally, figure, name, once);
    }
}

/// Uses a value: a reader wants its bytes, not its address.
fn touch(found: stillframe::Result<Option<Slice>>) {
    black_box(found.expect(OPEN).map(|value| value.first().copied()));
}

/// At the larger size this takes a second and more, and nobody writes meanwhile: not worth the wait.
fn clone_of_map(criterion: &mut Criterion, keys: Keys, records: usize, tally: &Tally) {
    let tree = LockedTree::loaded(keys, records);
    let figure = format!("cut, {records} records, {} keys", keys.name());
    measure(criterion, tally, &figure, "RwLock<BTreeMap>, cloned", |_| {
        let began = Instant::now();
        let clone = tree.0.read().expect("no panic").clone();
        let took = began.elapsed();
        drop(clone);
        took
    });
}

/// Sums what `once` says each of its calls took.
fn measure(
    criterion: &mut Criterion,
    tally: &Tally,
    figure: &str,
    name: &str,
    mut once: impl FnMut(usize) -> Duration,
) {
    let mut round = 0;
    let mut group = criterion.benchmark_group(figure);
    group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut took = Duration::ZERO;
            for _ in 0..iterations {
                round += 1;
                took += once(round);
            }
            tally.note(figure, name, iterations, 1, took);
            took
        });
    });
    group.finish();
}
