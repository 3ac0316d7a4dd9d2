//! Saving, loading, and reading in place.
//!
//! The peer writes the records of a locked ordered map one after the other, without order, checksum,
//! compression or index, and syncs the file: what the disk and a single thread leave room for.

mod workload;

use std::fs::File;
use std::hint::black_box;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use stillframe::{Compression, Database, SaveOptions, SnapshotFile};

use workload::contenders::{Contender, Engine, LockedTree};
use workload::measure::Tally;
use workload::{Key, Keys, Probes, Scratch, records};

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    let tally = Tally::default();
    for keys in Keys::ALL {
        let scratch = Scratch::new();
        let bench = Bench { keys, tally: &tally, scratch: &scratch };
        bench.save_and_load(&mut criterion);
        bench.in_place(&mut criterion);
        bench.plain(&mut criterion);
    }
    criterion.final_summary();
    tally.print();
}

struct Bench<'a> {
    keys: Keys,
    tally: &'a Tally,
    scratch: &'a Scratch,
}

impl Bench<'_> {
    fn named(&self, what: &str) -> String {
        format!("{what}, {} keys", self.keys.name())
    }

    /// Leaves a file behind for [`in_place`](Bench::in_place).
    fn save_and_load(&self, criterion: &mut Criterion) {
        let engine = Engine::loaded(self.keys, records());
        let raw_bytes = engine.database.stats().raw_bytes;
        let path = self.scratch.file("all.still");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for (name, compression) in
            [("stillframe, raw", Compression::Raw), ("stillframe, LZ4", Compression::Lz4)]
        {
            self.measure(criterion, "save", name, Some(raw_bytes), || {
                let options = SaveOptions::default().compression(compression).threads(cores);
                let save = engine.database.save(&path, options).expect("a save begins");
                save.wait().expect("a save succeeds");
            });
        }
        drop(engine);
        self.measure(criterion, "load", "stillframe, LZ4", Some(raw_bytes), || {
            black_box(Database::load(&path).expect("a sound file"));
        });
    }

    fn in_place(&self, criterion: &mut Criterion) {
        let path = self.scratch.file("all.still");
        let probes = Probes::new(self.keys, records(), 51);
        let mut all = probes.keys(0, usize::MAX);
        self.measure(criterion, "open and first get", "stillframe, LZ4", None, || {
            let file = SnapshotFile::open(&path).expect("a sound file");
            let keyspace = file.keyspace("bench").expect("its keyspace");
            black_box(keyspace.get(all.next().expect("an endless cycle")).expect("a sound file"));
        });
        let file = SnapshotFile::open(&path).expect("a sound file");
        let keyspace = file.keyspace("bench").expect("its keyspace");
        self.measure(criterion, "get in place", "stillframe, LZ4", None, || {
            black_box(keyspace.get(all.next().expect("an endless cycle")).expect("a sound file"));
        });
    }

    fn plain(&self, criterion: &mut Criterion) {
        let tree = LockedTree::loaded(self.keys, records());
        let path = self.scratch.file("all.plain");
        let mut raw_bytes = 0;
        for (key, value) in &*tree.0.read().expect("no panic") {
            raw_bytes += (key.len() + value.len()) as u64;
        }
        self.measure(criterion, "save", "RwLock<BTreeMap>, plain", Some(raw_bytes), || {
            write_plain(&tree, &path).expect("room on the disk");
        });
        drop(tree);
        self.measure(criterion, "load", "RwLock<BTreeMap>, plain", Some(raw_bytes), || {
            black_box(read_plain(&path).expect("the file just written"));
        });
    }

    fn measure(
        &self,
        criterion: &mut Criterion,
        what: &str,
        name: &str,
        bytes: Option<u64>,
        mut once: impl FnMut(),
    ) {
        let figure = self.named(what);
        let mut group = criterion.benchmark_group(&figure);
        if let Some(bytes) = bytes {
            group.throughput(Throughput::Bytes(bytes));
        }
        group.sampling_mode(criterion::SamplingMode::Flat);
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|iterations| {
                let began = Instant::now();
                (0..iterations).for_each(|_| once());
                let took = began.elapsed();
                self.tally.note(&figure, name, iterations, 1, took);
                took
            });
        });
        group.finish();
    }
}

fn write_plain(tree: &LockedTree, path: &Path) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for (key, value) in &*tree.0.read().expect("no panic") {
        let len = u32::try_from(value.len()).expect("a short value");
        file.write_all(&len.to_le_bytes())?;
        file.write_all(key)?;
        file.write_all(value)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn read_plain(path: &Path) -> io::Result<LockedTree> {
    let tree = LockedTree::empty();
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut len = [0; 4];
    loop {
        match file.read_exact(&mut len) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(tree),
            other => other?,
        }
        let mut key: Key = [0; 16];
        file.read_exact(&mut key)?;
        let mut value = vec![0; u32::from_le_bytes(len).try_into().expect("a short value")];
        file.read_exact(&mut value)?;
        tree.0.write().expect("no panic").insert(key, value);
    }
}
