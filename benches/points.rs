//! Point operations by one and two threads, beside a locked ordered map, a sharded hash map and a skip list.

mod workload;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};

use workload::contenders::{Contender, Engine, LockedTree, Shards, SkipList};
use workload::measure::{Tally, together};
use workload::{FreshValues, Key, Keys, Probes, records};

/// Keys in one `get_many` and in one batch.
const GROUP: usize = 16;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .configure_from_args();
    let tally = Tally::default();
    for keys in Keys::ALL {
        let probes = [Probes::new(keys, records(), 11), Probes::new(keys, records(), 12)];
        let bench = Bench { keys, tally: &tally, probes: &probes, values: &FreshValues::new() };
        bench.all::<Engine>(&mut criterion);
        bench.all::<LockedTree>(&mut criterion);
        bench.all::<Shards>(&mut criterion);
        bench.all::<SkipList>(&mut criterion);
    }
    criterion.final_summary();
    tally.print();
}

struct Bench<'a> {
    keys: Keys,
    tally: &'a Tally,
    probes: &'a [Probes; 2],
    values: &'a FreshValues,
}

impl Bench<'_> {
    /// Everything on one contender, which then goes: no two are in memory at once.
    fn all<C: Contender>(&self, criterion: &mut Criterion) {
        let contender = C::loaded(self.keys, records());
        for threads in [1, 2] {
            let plural = if threads == 1 { "" } else { "s" };
            let name =
                |what: &str| format!("{what}, {threads} thread{plural}, {} keys", self.keys.name());
            self.each(criterion, &name("get"), threads, &contender, |key, _| contender.get(key));
            self.each(criterion, &name("get_with"), threads, &contender, |key, _| {
                contender.get_borrowed(key)
            });
            let one = self.keys.key(0);
            self.each(criterion, &name("get of one key"), threads, &contender, |_, _| {
                contender.get(black_box(&one))
            });
            self.each(criterion, &name("update"), threads, &contender, |key, value| {
                contender.put(key, value);
                0
            });
        }
        let name = |what: &str| format!("{what} of {GROUP}, {} keys", self.keys.name());
        self.groups(criterion, &name("get_many"), &contender, |keys, _| contender.get_many(keys));
        self.groups(criterion, &name("batch"), &contender, |keys, value| {
            contender.put_batch(keys, value);
            0
        });
    }

    /// `work` for one key after the other, by so many threads.
    fn each<C: Contender>(
        &self,
        criterion: &mut Criterion,
        figure: &str,
        threads: usize,
        _: &C,
        work: impl Fn(&Key, &[u8]) -> usize + Sync,
    ) {
        let mut group = criterion.benchmark_group(figure);
        group.throughput(Throughput::Elements(threads as u64));
        let mut round = 0;
        group.bench_function(BenchmarkId::from_parameter(C::NAME), |bencher| {
            bencher.iter_custom(|iterations| {
                round += 1;
                let count = usize::try_from(iterations).expect("a count that fits");
                let took = together(threads, |thread| {
                    let values = self.values.values(round * 2 + thread);
                    let keys = self.probes[thread].keys(round, count);
                    black_box(keys.zip(values).map(|(key, value)| work(key, value)).sum::<usize>());
                });
                self.tally.note(figure, C::NAME, iterations, threads as u64, took);
                took
            });
        });
        group.finish();
    }

    /// `work` for one group of keys after the other, by one thread.
    fn groups<C: Contender>(
        &self,
        criterion: &mut Criterion,
        figure: &str,
        _: &C,
        work: impl Fn(&[Key], &[u8]) -> usize + Sync,
    ) {
        let mut group = criterion.benchmark_group(figure);
        group.throughput(Throughput::Elements(GROUP as u64));
        let mut round = 0;
        group.bench_function(BenchmarkId::from_parameter(C::NAME), |bencher| {
            bencher.iter_custom(|iterations| {
                round += 1;
                let count = usize::try_from(iterations).expect("a count that fits") * GROUP;
                let took = together(1, |_| {
                    let values = self.values.values(round);
                    let groups = self.probes[0].groups(round, count, GROUP);
                    black_box(
                        groups.zip(values).map(|(keys, value)| work(keys, value)).sum::<usize>(),
                    );
                });
                self.tally.note(figure, C::NAME, iterations, GROUP as u64, took);
                took
            });
        });
        group.finish();
    }
}
