//! Random operations against a `BTreeMap`, with several stills held, on leaves of a few entries.
//!
//! Every run prints its seed when it fails; `STILLFRAME_SEED=n` runs that one alone, `STILLFRAME_SEEDS=n` that
//! many.

use std::collections::BTreeMap;
use std::ops::Bound;

use stillframe::simulation::{LeafPass, PassedEntry, Random, SimClock};
use stillframe::{Database, Error, Keyspace, Seq, Slice, Snapshot, WriteOptions};

/// Value and expiry by key.
type Model = BTreeMap<Vec<u8>, (Vec<u8>, u64)>;

/// The content of both keyspaces.
#[derive(Clone, Default)]
struct World {
    spaces: [Model; 2],
}

struct Held {
    snapshot: Snapshot,
    world: World,
    time_ms: u64,
    fingerprint: u64,
}

/// A pass on its way, and the world it began in.
struct Passing {
    pass: LeafPass,
    world: World,
    /// By the number of the keyspace.
    seen: BTreeMap<u32, Model>,
}

impl Passing {
    fn see(&mut self, entries: Vec<PassedEntry>) {
        for (id, key, value, expire_at) in entries {
            let before = self.seen.entry(id).or_default().insert(key, (value, expire_at));
            assert_eq!(before, None, "a pass shows a key twice");
        }
    }

    /// All of the world in which it began was seen, and nothing else.
    fn check(mut self) {
        let catalogue = self.seen.remove(&0).unwrap_or_default();
        assert_eq!(catalogue.len(), NAMES.len(), "names in the catalogue");
        let mut expected: Vec<Model> = self.world.spaces.into();
        expected.retain(|model| !model.is_empty());
        for seen in self.seen.into_values() {
            let at = expected.iter().position(|model| *model == seen);
            expected.swap_remove(at.expect("a pass shows what was there when it began"));
        }
        assert_eq!(expected, [], "a pass leaves a keyspace out");
    }
}

struct Run {
    random: Random,
    clock: SimClock,
    now_ms: u64,
    db: Database,
    spaces: [Keyspace; 2],
    world: World,
    held: Vec<Held>,
    passes: Vec<Passing>,
    /// Without stills leaves keep less, and merge on both sides of a pass.
    takes_stills: bool,
}

const NAMES: [&str; 2] = ["alpha", "beta"];

/// Seeds to run: one from the environment, or `default` many.
pub(crate) fn seeds(default: u64) -> impl Iterator<Item = u64> {
    let number = |name| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    match number("STILLFRAME_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STILLFRAME_SEEDS").unwrap_or(default),
    }
}

/// Runs `run` for each seed, in a thread so that a failure can name its seed.
pub(crate) fn for_each_seed(name: &str, default: u64, run: fn(u64)) {
    for seed in seeds(default) {
        let result = std::panic::catch_unwind(|| run(seed));
        assert!(result.is_ok(), "{name} failed at STILLFRAME_SEED={seed}");
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let now_ms = 1_000_000;
        let clock = SimClock::new(now_ms);
        let entries = 3 + random.below(6) as usize;
        let builder = Database::builder().leaf_entries(entries).clock(clock.clone());
        let db = builder.manual_reclaim().in_memory().unwrap();
        let spaces = NAMES.map(|name| db.keyspace(name).unwrap());
        let takes_stills = !random.one_in(4);
        let (world, held, passes) = (World::default(), Vec::new(), Vec::new());
        Run { random, clock, now_ms, db, spaces, world, held, passes, takes_stills }
    }

    /// Keys that share prefixes, are prefixes of each other, hold zeros, and now and then are long.
    fn key(&mut self) -> Vec<u8> {
        let stem: &[u8] =
            [&b""[..], b"key-", b"key-\0", b"abcdefgh"][self.random.below(4) as usize];
        let mut key = stem.to_vec();
        let number = self.random.below(24) as u8;
        key.extend_from_slice(&[b'0' + number / 5, number][..self.random.below(3) as usize]);
        if self.random.one_in(40) {
            key.resize(key.len() + [300, 1500][number as usize % 2], b'x');
        }
        key
    }

    fn value(&mut self) -> Vec<u8> {
        let len = match self.random.below(30) {
            0 => 3000,
            1..4 => 300,
            n => n as usize,
        };
        let mut value = vec![0; len];
        self.random.fill(&mut value);
        value
    }

    fn expiry(&mut self) -> u64 {
        if self.random.one_in(6) { self.now_ms + self.random.below(50) } else { 0 }
    }

    fn range(&mut self) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        let mut bound = || match self.random.below(4) {
            0 => Bound::Unbounded,
            1 => Bound::Excluded(self.key()),
            _ => Bound::Included(self.key()),
        };
        (bound(), bound())
    }

    fn visible<'a>(model: &'a Model, key: &[u8], now_ms: u64) -> Option<&'a Vec<u8>> {
        model.get(key).filter(|(_, at)| *at == 0 || now_ms < *at).map(|(value, _)| value)
    }

    fn in_range<'a>(
        model: &'a Model,
        range: &'a (Bound<Vec<u8>>, Bound<Vec<u8>>),
    ) -> impl DoubleEndedIterator<Item = (&'a Vec<u8>, &'a (Vec<u8>, u64))> {
        use std::ops::RangeBounds;
        model.iter().filter(|(key, _)| (range.0.as_ref(), range.1.as_ref()).contains(key))
    }

    fn step(&mut self) {
        let which = self.random.below(2) as usize;
        let space = self.spaces[which].clone();
        let key = self.key();
        let now_ms = self.now_ms;
        let visible = Self::visible(&self.world.spaces[which], &key, now_ms).cloned();
        match self.random.below(37) {
            0..7 => {
                let (value, at) = (self.value(), self.expiry());
                space.insert_with(&key, &value, WriteOptions::new().expire_at(at)).unwrap();
                self.world.spaces[which].insert(key, (value, at));
            }
            7..11 => {
                assert_eq!(space.remove(&key).unwrap(), visible.is_some());
                if visible.is_some() {
                    self.world.spaces[which].remove(&key);
                }
            }
            11 => {
                let value = self.value();
                assert_eq!(space.insert_new(&key, &value).unwrap(), visible.is_none());
                if visible.is_none() {
                    self.world.spaces[which].insert(key, (value, 0));
                }
            }
            12 => {
                let value = self.value();
                assert_eq!(space.replace(&key, &value).unwrap().as_deref(), visible.as_deref());
                self.world.spaces[which].insert(key, (value, 0));
            }
            13 => {
                assert_eq!(space.take(&key).unwrap().as_deref(), visible.as_deref());
                if visible.is_some() {
                    self.world.spaces[which].remove(&key);
                }
            }
            14 => {
                let expected = if self.random.one_in(2) { visible.clone() } else { None };
                let new = if self.random.one_in(3) { None } else { Some(self.value()) };
                let done =
                    space.compare_and_swap(&key, expected.as_deref(), new.as_deref()).unwrap();
                assert_eq!(done.is_ok(), expected == visible);
                match (done, new) {
                    (Err(failed), _) => assert_eq!(failed.current.as_deref(), visible.as_deref()),
                    (Ok(()), Some(new)) => {
                        self.world.spaces[which].insert(key, (new, 0));
                    }
                    (Ok(()), None) if visible.is_some() => {
                        self.world.spaces[which].remove(&key);
                    }
                    (Ok(()), None) => {}
                }
            }
            15 => {
                let new = space.update(&key, |old| {
                    assert_eq!(old, visible.as_deref());
                    old.map(|old| [old, b"+"].concat().into()).or(Some(Slice::from("new")))
                });
                let at = if visible.is_some() { self.world.spaces[which][&key].1 } else { 0 };
                self.world.spaces[which].insert(key, (new.unwrap().unwrap().to_vec(), at));
            }
            16..19 => self.batch(),
            19 => {
                let range = self.range();
                let model = &mut self.world.spaces[which];
                let gone: Vec<_> = Self::in_range(model, &range).map(|(k, _)| k.clone()).collect();
                assert_eq!(space.delete_range(range).unwrap(), gone.len() as u64);
                gone.iter().for_each(|key| drop(model.remove(key)));
            }
            20 if self.random.one_in(4) => {
                let model = std::mem::take(&mut self.world.spaces[which]);
                assert_eq!(space.clear().unwrap(), model.len() as u64);
            }
            20 if self.random.one_in(6) => {
                // Dropped with all it holds, and begun anew; stills keep the old one.
                assert!(self.db.drop_keyspace(NAMES[which]).unwrap());
                assert!(matches!(space.insert(&key, "x"), Err(Error::NoKeyspace)));
                self.spaces[which] = self.db.keyspace(NAMES[which]).unwrap();
                self.world.spaces[which].clear();
            }
            21 => {
                let popped =
                    if self.random.one_in(2) { space.pop_first() } else { space.pop_last() };
                if let Some((key, _)) = popped.unwrap() {
                    self.world.spaces[which].remove(&*key).expect("it was there");
                }
            }
            22..25 if self.takes_stills => {
                let snapshot = self.db.snapshot().unwrap();
                let (time_ms, fingerprint) = (snapshot.time_ms(), snapshot.fingerprint());
                self.held.push(Held { snapshot, world: self.world.clone(), time_ms, fingerprint });
            }
            31 if self.passes.len() < 2 => {
                let (pass, world) = (self.db.pass().unwrap(), self.world.clone());
                self.passes.push(Passing { pass, world, seen: BTreeMap::new() });
            }
            31..36 if !self.passes.is_empty() => {
                let at = self.random.below(self.passes.len() as u64) as usize;
                match self.passes[at].pass.step().unwrap() {
                    Some(entries) => self.passes[at].see(entries),
                    None => self.passes.swap_remove(at).check(),
                }
            }
            36 if self.random.one_in(20) => drop(self.passes.pop()),
            25..28 if self.held.len() > 3 => {
                let at = self.random.below(self.held.len() as u64) as usize;
                self.held.swap_remove(at);
            }
            28 => self.db.reclaim(),
            29 => {
                self.now_ms += self.random.below(30);
                self.clock.set(self.now_ms);
            }
            30 if self.random.one_in(3) => {
                let seq = self.db.seq().0;
                self.db.rewind_seq(Seq(seq - self.random.below(seq.min(4) + 1)));
            }
            _ => self.check_present(which),
        }
    }

    fn batch(&mut self) {
        let mut batch = self.db.batch();
        for _ in 0..self.random.below(9) {
            let which = self.random.below(2) as usize;
            let space = self.spaces[which].clone();
            match self.random.below(5) {
                0 => {
                    let range = self.range();
                    batch.delete_range(&space, range.clone());
                    let model = &mut self.world.spaces[which];
                    let gone: Vec<_> =
                        Self::in_range(model, &range).map(|(k, _)| k.clone()).collect();
                    gone.iter().for_each(|key| drop(model.remove(key)));
                }
                1 => {
                    let key = self.key();
                    batch.remove(&space, &key);
                    self.world.spaces[which].remove(&key);
                }
                _ => {
                    let (key, value, at) = (self.key(), self.value(), self.expiry());
                    let options = WriteOptions::new().expire_at(at);
                    batch.insert_with(&space, &key, &value, options);
                    self.world.spaces[which].insert(key, (value, at));
                }
            }
        }
        batch.commit().unwrap();
    }

    /// Point reads, both ends and a range of the present.
    fn check_present(&mut self, which: usize) {
        let (space, now_ms) = (self.spaces[which].clone(), self.now_ms);
        let keys: Vec<_> = (0..20).map(|_| self.key()).collect();
        let range = self.range();
        let model = &self.world.spaces[which];
        let many = space.get_many(&keys).unwrap();
        for (key, one) in keys.iter().zip(many) {
            let expected = Self::visible(model, key, now_ms).map(|value| &value[..]);
            assert_eq!(one.as_deref(), expected);
            assert_eq!(space.get(key).unwrap().as_deref(), expected);
            let copy = space.get_with(key, <[u8]>::to_vec).unwrap();
            assert_eq!(copy.as_deref(), expected);
            assert_eq!(space.contains_key(key).unwrap(), expected.is_some());
        }
        let shown = |(_, (_, at)): &(&Vec<u8>, &(Vec<u8>, u64))| *at == 0 || now_ms < *at;
        let pair = |(key, (value, _)): (&Vec<u8>, &(Vec<u8>, u64))| (key.clone(), value.clone());
        let expected: Vec<_> = Self::in_range(model, &range).filter(shown).map(pair).collect();
        let owned = |item: stillframe::Result<(Slice, Slice)>| {
            let (key, value) = item.unwrap();
            (key.to_vec(), value.to_vec())
        };
        let got: Vec<_> = space.range(range.clone()).map(owned).collect();
        assert_eq!(got, expected);
        let mut seen = Vec::new();
        space
            .scan_with(range.clone(), |key, value| {
                seen.push((key.to_vec(), value.to_vec()));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(seen, expected);
        // From both ends at once, in a random mix: the ends meet without loss or double.
        let mut both = space.range(range);
        let (mut front, mut back) = (Vec::new(), Vec::new());
        loop {
            let item = match self.random.one_in(2) {
                true => both.next().map(|item| front.push(owned(item))),
                false => both.next_back().map(|item| back.push(owned(item))),
            };
            if item.is_none() {
                break;
            }
        }
        back.reverse();
        front.extend(back);
        assert_eq!(front, expected);
        let all: Vec<_> = model.iter().filter(shown).map(pair).collect();
        let edge = |found: Option<(Slice, Slice)>| found.map(|(k, v)| (k.to_vec(), v.to_vec()));
        assert_eq!(edge(space.first().unwrap()), all.first().cloned());
        assert_eq!(edge(space.last().unwrap()), all.last().cloned());
        assert_eq!(space.len().unwrap(), model.len() as u64);
    }

    fn check_held(held: &Held) {
        assert_eq!(held.snapshot.fingerprint(), held.fingerprint);
        let records = held.world.spaces.iter().map(BTreeMap::len).sum::<usize>();
        assert_eq!(held.snapshot.len().unwrap(), records as u64);
        held.snapshot.check().unwrap();
        for (name, model) in NAMES.iter().zip(&held.world.spaces) {
            let space = held.snapshot.keyspace(name).unwrap();
            assert_eq!(space.len().unwrap(), model.len() as u64, "len of a still");
            let shown = |(_, (_, at)): &(&Vec<u8>, &(Vec<u8>, u64))| *at == 0 || held.time_ms < *at;
            let pair =
                |(key, (value, _)): (&Vec<u8>, &(Vec<u8>, u64))| (key.clone(), value.clone());
            let expected: Vec<_> = model.iter().filter(shown).map(pair).collect();
            let owned = |item: stillframe::Result<(Slice, Slice)>| {
                let (key, value) = item.unwrap();
                (key.to_vec(), value.to_vec())
            };
            let got: Vec<_> = space.range::<Vec<u8>>(..).map(owned).collect();
            assert_eq!(got, expected, "a still read forwards");
            let got: Vec<_> = space.range::<Vec<u8>>(..).rev().map(owned).collect();
            assert!(got.into_iter().rev().eq(expected.iter().cloned()), "a still read backwards");
            for (key, value) in &expected {
                assert_eq!(space.get(key).unwrap().unwrap(), *value);
            }
            let edge = |found: Option<(Slice, Slice)>| found.map(|(k, v)| (k.to_vec(), v.to_vec()));
            assert_eq!(edge(space.first().unwrap()), expected.first().cloned());
            assert_eq!(edge(space.last().unwrap()), expected.last().cloned());
        }
    }
}

fn run(seed: u64) {
    let mut run = Run::new(seed);
    let steps = 150 + run.random.below(250);
    for step in 0..steps {
        run.step();
        if step % 25 == 24 {
            run.held.iter().for_each(Run::check_held);
            run.db.check();
        }
    }
    for mut passing in std::mem::take(&mut run.passes) {
        while let Some(entries) = passing.pass.step().unwrap() {
            passing.see(entries);
        }
        passing.check();
    }
    run.check_present(0);
    run.check_present(1);
    run.held.iter().for_each(Run::check_held);
    // Dropping one still must not disturb another, and when the last is gone nothing is kept.
    while let Some(held) = run.held.pop() {
        drop(held);
        run.db.reclaim();
        run.held.iter().for_each(Run::check_held);
    }
    run.db.check();
}

#[test]
fn operations_equal_a_map_and_stills_never_change() {
    for_each_seed("model", 300, run);
}
