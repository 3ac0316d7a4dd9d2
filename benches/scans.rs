//! Ordered reads of 10, 100 and 1,000 records, owned and borrowed, beside a locked ordered map and a skip list.

mod workload;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};

use workload::contenders::{Engine, LockedTree, Scan, SkipList};
use workload::measure::{Tally, together};
use workload::{Key, Keys, Probes, records};

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args();
    let tally = Tally::default();
    for keys in Keys::ALL {
        let bench = Bench { keys, tally: &tally, probes: &Probes::new(keys, records(), 21) };
        bench.all::<Engine>(&mut criterion);
        bench.all::<LockedTree>(&mut criterion);
        bench.all::<SkipList>(&mut criterion);
    }
    criterion.final_summary();
    tally.print();
}

struct Bench<'a> {
    keys: Keys,
    tally: &'a Tally,
    probes: &'a Probes,
}

impl Bench<'_> {
    /// Everything on one contender, which then goes: no two are in memory at once.
    fn all<S: Scan>(&self, criterion: &mut Criterion) {
        let contender = S::loaded(self.keys, records());
        for length in [10, 100, 1000] {
            self.scan(criterion, "scan_with", &contender, length, S::scan_borrowed);
            self.scan(criterion, "range", &contender, length, S::scan);
        }
    }

    fn scan<S: Scan>(
        &self,
        criterion: &mut Criterion,
        what: &str,
        contender: &S,
        length: usize,
        scan: fn(&S, &Key, usize) -> usize,
    ) {
        let figure = format!("{what} of {length}, {} keys", self.keys.name());
        let mut group = criterion.benchmark_group(&figure);
        group.throughput(Throughput::Elements(length as u64));
        let mut round = 0;
        group.bench_function(BenchmarkId::from_parameter(S::NAME), |bencher| {
            bencher.iter_custom(|iterations| {
                round += 1;
                let count = usize::try_from(iterations).expect("a count that fits");
                let took = together(1, |_| {
                    let keys = self.probes.keys(round, count);
                    black_box(keys.map(|from| scan(contender, from, length)).sum::<usize>());
                });
                self.tally.note(&figure, S::NAME, iterations, length as u64, took);
                took
            });
        });
        group.finish();
    }
}
