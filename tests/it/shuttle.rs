//! The real tree under a model checker: small programs on leaves of three entries, many schedules each.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test --release --test it shuttle
//! ```
//! `STILLFRAME_SCHEDULES=n` runs n distinct schedules in all (default 70,000), spread over the programs, half of them random,
//! half by probabilistic concurrency testing (PCT); `STILLFRAME_SEED=n` draws others. A failure prints its
//! schedule; `STILLFRAME_SCHEDULE=<that> cargo test .. --test it shuttle::<program> -- --exact` runs it again.
//!
//! A program is a start, then threads of single steps. Before it runs, every order of its writes is played on
//! a map: what a still, a scan or a read shows must be one of the states so found, at the very Seq the still
//! names, and stay it, and lead to the end that there is; a batch is whole or absent in all of them. Besides: fingerprints and counts of stills
//! are recounted, [`Database::check`] holds at the end, and nothing is retained once all stills are gone.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, OnceLock};

use shuttle::scheduler::{PctScheduler, ReplayScheduler, Schedule, Scheduler, Task, TaskId};
use stillframe::simulation::{Clock, Random, SimClock};
use stillframe::{Database, Keyspace, SaveOptions, Snapshot, Transaction, WriteOptions};

/// One step of a thread; the first ones write.
#[derive(Clone, Copy, Debug)]
enum Step {
    Put(u8, u8),
    /// Put with a time after which it is gone.
    PutUntil(u8, u8, u64),
    PutNew(u8, u8),
    Remove(u8),
    /// All at once; `Put` and `Remove` only.
    Batch(&'static [Step]),
    /// From the first key to before the second.
    DeleteRange(u8, u8),
    Clear,
    PopFirst,
    PopLast,
    /// A transaction that removes the first key if it has both.
    TakeOneOfTwo(u8, u8),
    /// A transaction that puts a key if it finds nothing from the first key to before the second.
    PutAlone(u8, u8, u8, u8),
    /// What these make of nothing takes the place of all there is; `Put` only, and nobody may write after it.
    Install(&'static [Step]),
    /// The clock moves on.
    Time(u64),
    /// Takes a still and leaves it under this number.
    Take(usize),
    /// .. and reads it.
    Cut(usize),
    /// Reads the still of this number again, if it is there.
    Read(usize),
    Drop(usize),
    Reclaim,
    /// Copies everything at a cut of its own, as a save does.
    Pass,
    /// .. but what has not changed since the still of this number is what that shows.
    Changed(usize),
    /// Reads from the first key to before the second, live.
    Scan(u8, u8),
    /// Reads all, live.
    ScanAll,
    Get(u8),
    /// A transaction that reads two keys.
    GetBoth(u8, u8),
    First,
    Last,
}
use Step::*;

struct Program {
    start: &'static [Step],
    threads: &'static [&'static [Step]],
}

/// What a key may be.
const KEYS: std::ops::RangeInclusive<u8> = b'a'..=b'p';
const START_MS: u64 = 1_000;
/// The history and the keyspace are batches of their own.
const START_SEQ: u64 = 2;
const STILLS: usize = 6;

type Content = BTreeMap<u8, (u8, u64)>;
/// Content as a reader sees it.
type Seen = Vec<(u8, u8)>;

/// A state in some order of the writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// Batches so far.
    seq: u64,
    content: Content,
    now_ms: u64,
    /// How far each thread is.
    at: Vec<usize>,
}

impl State {
    fn is_visible(&self, (_, until): &(u8, u64)) -> bool {
        *until == 0 || self.now_ms < *until
    }

    fn seen(&self, now_ms: u64) -> Seen {
        let visible = |(_, (_, until)): &(&u8, &(u8, u64))| *until == 0 || now_ms < *until;
        self.content.iter().filter(visible).map(|(key, (value, _))| (*key, *value)).collect()
    }

    /// The state after `step`; reads change nothing.
    fn after(&self, step: &Step) -> State {
        let mut next = self.clone();
        let visible: Vec<u8> = self
            .content
            .iter()
            .filter(|(_, entry)| self.is_visible(entry))
            .map(|(k, _)| *k)
            .collect();
        let removed = |next: &mut State, key: Option<u8>| {
            if let Some(key) = key.filter(|key| visible.contains(key)) {
                next.content.remove(&key);
                next.seq += 1;
            }
        };
        match *step {
            Put(key, value) => {
                next.content.insert(key, (value, 0));
                next.seq += 1;
            }
            PutUntil(key, value, until) => {
                next.content.insert(key, (value, until));
                next.seq += 1;
            }
            PutNew(key, value) if !visible.contains(&key) => {
                next.content.insert(key, (value, 0));
                next.seq += 1;
            }
            Remove(key) => removed(&mut next, Some(key)),
            PopFirst => removed(&mut next, visible.first().copied()),
            PopLast => removed(&mut next, visible.last().copied()),
            TakeOneOfTwo(key, other) if visible.contains(&other) => removed(&mut next, Some(key)),
            PutAlone(low, high, key, value)
                if !visible.iter().any(|key| (low..high).contains(key)) =>
            {
                next.content.insert(key, (value, 0));
                next.seq += 1;
            }
            Batch(steps) => {
                for step in steps {
                    match *step {
                        Put(key, value) => drop(next.content.insert(key, (value, 0))),
                        Remove(key) => drop(next.content.remove(&key)),
                        _ => unreachable!("a batch puts and removes"),
                    }
                }
                next.seq += 1;
            }
            DeleteRange(low, high) => {
                next.content.retain(|key, _| *key < low || *key >= high);
                next.seq += u64::from(next.content.len() < self.content.len());
            }
            Clear => {
                next.content.clear();
                next.seq += u64::from(!self.content.is_empty());
            }
            Install(steps) => {
                let from = State { seq: START_SEQ, content: Content::new(), ..self.clone() };
                next = steps.iter().fold(from, |state, step| state.after(step));
            }
            Time(ms) => next.now_ms += ms,
            _ => {}
        }
        next
    }
}

/// Every state that some order of the program's writes leads to.
struct Reachable {
    /// Contents by Seq, and to which ends each may have led.
    by_seq: HashMap<u64, HashMap<Content, HashSet<Content>>>,
    ends: HashSet<Content>,
}

impl Reachable {
    fn of(program: &Program) -> Self {
        let mut state = State {
            seq: START_SEQ,
            content: Content::new(),
            now_ms: START_MS,
            at: vec![0; program.threads.len()],
        };
        let mut before = Vec::new();
        for step in program.start {
            state = state.after(step);
            before.push(state.clone());
        }
        let mut known = HashMap::new();
        let ends = Self::ends_from(&state, program, &mut known);
        let mut by_seq = HashMap::<u64, HashMap<Content, HashSet<Content>>>::new();
        known.extend(before.into_iter().map(|state| (state, ends.clone())));
        for (State { seq, content, .. }, ends) in known {
            by_seq.entry(seq).or_default().entry(content).or_default().extend(ends);
        }
        Self { by_seq, ends }
    }

    /// Where the program may end from `state` on. What is `known` is not looked at again.
    fn ends_from(
        state: &State,
        program: &Program,
        known: &mut HashMap<State, HashSet<Content>>,
    ) -> HashSet<Content> {
        if let Some(ends) = known.get(state) {
            return ends.clone();
        }
        let mut ends = HashSet::new();
        let mut is_end = true;
        for (thread, steps) in program.threads.iter().enumerate() {
            if let Some(step) = steps.get(state.at[thread]) {
                is_end = false;
                let mut next = state.after(step);
                next.at[thread] += 1;
                ends.extend(Self::ends_from(&next, program, known));
            }
        }
        if is_end {
            ends.insert(state.content.clone());
        }
        known.insert(state.clone(), ends.clone());
        ends
    }

    /// Whether from what `shown` was made of the program may have come to an end that looks like `end`.
    fn leads(&self, (seq, time, shown): &(u64, u64, Seen), end: impl Fn(&Content) -> bool) -> bool {
        self.by_seq.get(seq).into_iter().flatten().any(|(content, ends)| {
            let state = State { seq: 0, content: content.clone(), now_ms: 0, at: Vec::new() };
            state.seen(*time) == *shown && ends.iter().any(&end)
        })
    }

    /// Whether `shown` can be made of a state with a Seq in `seqs`, judged at a time in `times`.
    fn allows(
        &self,
        seqs: std::ops::RangeInclusive<u64>,
        times: &[u64],
        shown: impl Fn(&Seen) -> bool,
    ) -> bool {
        seqs.filter_map(|seq| self.by_seq.get(&seq)).flatten().any(|(content, _)| {
            let state = State { seq: 0, content: content.clone(), now_ms: 0, at: Vec::new() };
            times.iter().any(|time| shown(&state.seen(*time)))
        })
    }
}

/// A still and what it showed first.
struct Held {
    snapshot: Snapshot,
    seen: OnceLock<Seen>,
}

/// What the threads of one execution share. The locks are std's and never held across a step.
struct World {
    db: Database,
    space: Keyspace,
    clock: SimClock,
    reachable: Arc<Reachable>,
    /// What is installed, saved: by the steps that made it.
    arrivals: Vec<(&'static [Step], Vec<u8>)>,
    stills: Mutex<[Option<Arc<Held>>; STILLS]>,
    /// Numbers and times of stills, and what they showed.
    shown: Mutex<Vec<(u64, u64, Seen)>>,
}

impl World {
    fn step(&self, step: &Step) {
        let space = &self.space;
        match *step {
            Put(key, value) => space.insert([key], [value]).unwrap(),
            PutUntil(key, value, until) => {
                space.insert_with([key], [value], WriteOptions::new().expire_at(until)).unwrap();
            }
            PutNew(key, value) => drop(space.insert_new([key], [value]).unwrap()),
            Remove(key) => drop(space.remove([key]).unwrap()),
            Batch(steps) => {
                let mut batch = self.db.batch();
                for step in steps {
                    match *step {
                        Put(key, value) => batch.insert(space, [key], [value]),
                        Remove(key) => batch.remove(space, [key]),
                        _ => unreachable!("a batch puts and removes"),
                    }
                }
                batch.commit().unwrap();
            }
            DeleteRange(low, high) => drop(space.delete_range([low]..[high]).unwrap()),
            Clear => drop(space.clear().unwrap()),
            PopFirst => drop(space.pop_first().unwrap()),
            PopLast => drop(space.pop_last().unwrap()),
            TakeOneOfTwo(key, other) => {
                let take = |tx: &mut Transaction| {
                    if tx.contains_key(space, [other])? {
                        tx.remove(space, [key])?;
                    }
                    Ok(())
                };
                self.db.transact(take).unwrap();
            }
            PutAlone(low, high, key, value) => {
                let put = |tx: &mut Transaction| {
                    if tx.range(space, [low]..[high]).next().transpose()?.is_none() {
                        tx.insert(space, [key], [value])?;
                    }
                    Ok(())
                };
                self.db.transact(put).unwrap();
            }
            Install(steps) => {
                let of_these = |(made_by, _): &&(&[Step], Vec<u8>)| std::ptr::eq(*made_by, steps);
                let (_, bytes) = self.arrivals.iter().find(of_these).unwrap();
                self.db.install(&bytes[..], true).unwrap();
            }
            Time(ms) => self.clock.advance(ms),
            Take(number) => {
                let snapshot = self.db.snapshot().unwrap();
                let held = Arc::new(Held { snapshot, seen: OnceLock::new() });
                let former = self.stills.lock().unwrap()[number].replace(held);
                drop(former);
            }
            Cut(number) => {
                self.step(&Take(number));
                self.step(&Read(number));
            }
            Read(number) => {
                let held = self.stills.lock().unwrap()[number].clone();
                if let Some(held) = held {
                    let seen = self.read(&held.snapshot);
                    let first = held.seen.get_or_init(|| {
                        let Held { snapshot, .. } = &*held;
                        let shown = (snapshot.seq().0, snapshot.time_ms(), seen.clone());
                        self.shown.lock().unwrap().push(shown);
                        seen.clone()
                    });
                    assert_eq!(*first, seen, "a still changed");
                }
            }
            Drop(number) => {
                let held = self.stills.lock().unwrap()[number].take();
                drop(held);
            }
            Reclaim => self.db.reclaim(),
            Pass => {
                let mut pass = self.db.pass().unwrap();
                let mut content = Content::new();
                while let Some(entries) = pass.step().unwrap() {
                    let own = entries.into_iter().filter(|(id, ..)| *id != 0);
                    content.extend(own.map(|(_, key, value, until)| (key[0], (value[0], until))));
                }
                self.was(pass.seq().0, &content);
            }
            Changed(number) => {
                let held = self.stills.lock().unwrap()[number].clone();
                let Some(held) = held else { return };
                let old = self.read(&held.snapshot);
                let mut pass = self.db.pass().unwrap();
                let (mut content, mut from) = (Content::new(), 0);
                let is_own = |(id, ..): &(u32, Vec<u8>, Vec<u8>, u64)| *id != 0;
                while let Some((high, entries)) = pass.step_if_newer(held.snapshot.seq()).unwrap() {
                    // Keys have one byte behind their keyspace's number.
                    let to = high.map_or(u8::MAX, |high| high.get(4).copied().unwrap_or(0));
                    if let Some(entries) = entries {
                        let own = entries.into_iter().filter(is_own);
                        content
                            .extend(own.map(|(_, key, value, until)| (key[0], (value[0], until))));
                    } else {
                        let within = old.iter().filter(|(key, _)| (from..to).contains(key));
                        content.extend(within.map(|(key, value)| (*key, (*value, 0))));
                    }
                    from = to;
                }
                self.was(pass.seq().0, &content);
            }
            Scan(low, high) => self.live(
                || {
                    let mut seen = Seen::new();
                    let show = |key: &[u8], value: &[u8]| {
                        seen.push((key[0], value[0]));
                        ControlFlow::Continue(())
                    };
                    space.scan_with([low]..[high], show).unwrap();
                    seen
                },
                |state| {
                    let within = |(key, _): &&(u8, u8)| low <= *key && *key < high;
                    state.iter().filter(within).copied().collect()
                },
            ),
            ScanAll => self.live(
                || space.range::<&[u8]>(..).map(|item| pair(item.unwrap())).collect(),
                Seen::clone,
            ),
            Get(key) => self.live(
                || space.get([key]).unwrap().map(|value| value[0]),
                |state| state.iter().find(|(k, _)| *k == key).map(|(_, value)| *value),
            ),
            GetBoth(a, b) => {
                let get =
                    |tx: &mut Transaction, key: u8| Ok(tx.get(space, [key])?.map(|value| value[0]));
                self.live(
                    || self.db.transact(|tx| Ok([get(tx, a)?, get(tx, b)?])).unwrap(),
                    |state| {
                        let of = |key| state.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
                        [of(a), of(b)]
                    },
                );
            }
            First => self.live(|| space.first().unwrap().map(pair), |state| state.first().copied()),
            Last => self.live(|| space.last().unwrap().map(pair), |state| state.last().copied()),
        }
    }

    /// At this number a pass shows a state that there was.
    fn was(&self, seq: u64, content: &Content) {
        let states = self.reachable.by_seq.get(&seq);
        let is_state = states.is_some_and(|states| states.contains_key(content));
        assert!(is_state, "the pass at {seq} shows {content:?}, which never was");
    }

    /// Reads the present: what is found must be what `of` makes of a state between the batch that was last
    /// before and the one that is last after.
    fn live<T: PartialEq + std::fmt::Debug>(
        &self,
        read: impl FnOnce() -> T,
        of: impl Fn(&Seen) -> T,
    ) {
        let (before, early) = (self.db.seq().0, self.clock.now_ms());
        let found = read();
        let (late, after) = (self.clock.now_ms(), self.db.seq().0);
        let allowed =
            self.reachable.allows(before..=after, &[early, late], |state| of(state) == found);
        assert!(allowed, "no state from {before} to {after} shows {found:?}");
    }

    /// Reads a still in every way and compares.
    fn read(&self, snapshot: &Snapshot) -> Seen {
        snapshot.check().unwrap();
        let space = snapshot.keyspace("film").unwrap();
        let forwards: Seen = space.range::<&[u8]>(..).map(|item| pair(item.unwrap())).collect();
        let mut backwards: Seen =
            space.range::<&[u8]>(..).rev().map(|item| pair(item.unwrap())).collect();
        backwards.reverse();
        assert_eq!(forwards, backwards, "a still read from both ends");
        for (key, value) in &forwards {
            let got = space.get([*key]).unwrap();
            assert_eq!(got.as_deref(), Some(&[*value][..]), "a point of a still");
        }
        let absent = KEYS.step_by(3).find(|key| forwards.iter().all(|(k, _)| k != key));
        if let Some(key) = absent {
            assert_eq!(space.get([key]).unwrap(), None, "a still has a key that it doesn't show");
        }
        let (seq, time) = (snapshot.seq().0, snapshot.time_ms());
        let is_state = self.reachable.allows(seq..=seq, &[time], |state| *state == forwards);
        assert!(is_state, "the still at {seq} shows {forwards:?}, which never was");
        forwards
    }
}

fn pair((key, value): (stillframe::Slice, stillframe::Slice)) -> (u8, u8) {
    (key[0], value[0])
}

fn empty(clock: &SimClock) -> (Database, Keyspace) {
    let builder = Database::builder().leaf_entries(3).clock(clock.clone());
    let db = builder.manual_reclaim().in_memory().unwrap();
    let space = db.keyspace("film").unwrap();
    (db, space)
}

/// What these steps make of nothing, saved.
fn arrival(steps: &[Step], clock: &SimClock) -> Vec<u8> {
    let (db, space) = empty(clock);
    for step in steps {
        let Put(key, value) = step else { unreachable!("what is installed was put") };
        space.insert([*key], [*value]).unwrap();
    }
    let mut bytes = Vec::new();
    let options = SaveOptions::default().threads(1);
    db.snapshot().unwrap().write_to(&mut bytes, &options).unwrap();
    bytes
}

/// One execution of a program.
fn execute(program: &'static Program, reachable: &Arc<Reachable>) {
    let clock = SimClock::new(START_MS);
    let arrivals = program.threads.iter().copied().flatten().filter_map(|step| match step {
        Install(steps) => Some((*steps, arrival(steps, &clock))),
        _ => None,
    });
    let arrivals = arrivals.collect();
    let (db, space) = empty(&clock);
    let (stills, reachable_here) = (Mutex::default(), Arc::clone(reachable));
    let shown = Mutex::default();
    let world = World { db, space, clock, reachable: reachable_here, arrivals, stills, shown };
    let world = Arc::new(world);
    program.start.iter().for_each(|step| world.step(step));
    let run = |steps: &'static &'static [Step]| {
        let world = Arc::clone(&world);
        shuttle::thread::spawn(move || steps.iter().for_each(|step| world.step(step)))
    };
    let threads: Vec<_> = program.threads.iter().map(run).collect();
    threads.into_iter().for_each(|thread| thread.join().expect("a thread of the program"));
    (0..STILLS).for_each(|number| world.step(&Read(number)));
    world.db.check();
    for number in 0..STILLS {
        world.step(&Drop(number));
        world.db.reclaim();
        (number..STILLS).for_each(|other| world.step(&Read(other)));
    }
    world.db.check();
    let stats = world.db.stats();
    assert!(stats.stills.is_empty() && stats.retained_bytes == 0, "retained for no still");
    let shown = |content: &Content| {
        let state = State { seq: 0, content: content.clone(), now_ms: 0, at: Vec::new() };
        state.seen(world.clock.now_ms())
    };
    let ends: BTreeSet<Seen> = reachable.ends.iter().map(shown).collect();
    let end: Seen = world.space.range::<&[u8]>(..).map(|item| pair(item.unwrap())).collect();
    assert!(ends.contains(&end), "the end {end:?} is that of no order of the writes");
    for still in &*world.shown.lock().unwrap() {
        let leads = reachable.leads(still, |content| shown(content) == end);
        assert!(leads, "no order of the writes leads from the still {still:?} to the end {end:?}");
    }
}

/// Draws schedules from two schedulers in turn and counts those that differ, until there are enough.
struct Counted {
    random: Random,
    pct: PctScheduler,
    is_pct: bool,
    hash: DefaultHasher,
    schedules: Arc<Mutex<HashSet<u64>>>,
    wanted: usize,
    tried: usize,
}

impl Counted {
    /// After so many times `wanted` a program has no more schedules to show.
    const TRIES: usize = 4;

    fn new(seed: u64, wanted: usize, schedules: &Arc<Mutex<HashSet<u64>>>) -> Self {
        Self {
            random: Random::new(seed),
            pct: PctScheduler::new_from_seed(seed, 4, usize::MAX),
            is_pct: false,
            hash: DefaultHasher::new(),
            schedules: Arc::clone(schedules),
            wanted,
            tried: 0,
        }
    }
}

impl Scheduler for Counted {
    fn new_execution(&mut self) -> Option<Schedule> {
        let mut schedules = self.schedules.lock().unwrap();
        if self.tried > 0 {
            schedules.insert(std::mem::take(&mut self.hash).finish());
        }
        if schedules.len() >= self.wanted || self.tried >= self.wanted * Self::TRIES {
            return None;
        }
        self.tried += 1;
        self.is_pct = !self.is_pct;
        if self.is_pct {
            self.pct.new_execution()
        } else {
            Some(Schedule::new(self.random.next_u64()))
        }
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        current: Option<TaskId>,
        is_yielding: bool,
    ) -> Option<TaskId> {
        let next = match self.is_pct {
            true => self.pct.next_task(runnable, current, is_yielding),
            false => {
                let at = self.random.below(runnable.len() as u64);
                Some(runnable[usize::try_from(at).unwrap()].id())
            }
        };
        // Where there is no choice there is nothing to tell apart.
        if runnable.len() > 1 {
            next.map(usize::from).hash(&mut self.hash);
        }
        next
    }

    fn next_u64(&mut self) -> u64 {
        self.random.next_u64()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().expect("a number"))
}

/// Runs this program's share of the schedules.
fn check(name: &str, programs: usize, program: &'static Program) {
    let reachable = Arc::new(Reachable::of(program));
    let mut config = shuttle::Config::new();
    config.stack_size = 256 << 10;
    config.max_steps = shuttle::MaxSteps::FailAfter(100_000);
    let body = move || execute(program, &reachable);
    if let Ok(schedule) = std::env::var("STILLFRAME_SCHEDULE") {
        let mut scheduler = ReplayScheduler::new_from_encoded(&schedule);
        scheduler.set_allow_incomplete();
        shuttle::Runner::new(scheduler, config).run(body);
        return;
    }
    let all = usize::try_from(number("STILLFRAME_SCHEDULES").unwrap_or(70_000)).unwrap();
    let wanted = all.div_ceil(programs);
    let seed = number("STILLFRAME_SEED").unwrap_or(1);
    let schedules = Arc::new(Mutex::new(HashSet::new()));
    let scheduler = Counted::new(seed, wanted, &schedules);
    let tried = shuttle::Runner::new(scheduler, config).run(body);
    let distinct = schedules.lock().unwrap().len();
    println!("{name}: {distinct} distinct schedules of {tried}, seed {seed}");
    assert!(distinct * 2 > wanted, "{name}: only {distinct} schedules differ of {tried}");
}

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident: $start:expr => $($thread:expr),+;)+) => {
        const PROGRAMS: usize = [$(stringify!($name)),+].len();
        $(
            $(#[$doc])*
            #[test]
            fn $name() {
                static PROGRAM: Program = Program { start: &$start, threads: &[$(&$thread),+] };
                check(stringify!($name), PROGRAMS, &PROGRAM);
            }
        )+
    };
}

programs! {
    /// R3, R8: a batch over two leaves, single writes into both, a still that sees it whole or not at all.
    batch_and_cut: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Put(b'i', 1)] =>
        [Batch(&[Put(b'a', 2), Put(b'g', 2)]), Batch(&[Put(b'a', 3), Put(b'i', 3)])],
        [Put(b'c', 4), Put(b'g', 4), Remove(b'a')],
        [Cut(0), Scan(b'a', b'j'), Read(0)];

    /// R3, R4: what is replaced twice between three cuts.
    overlapping_cuts: [Put(b'a', 1), Put(b'b', 1), Cut(0)] =>
        [Put(b'a', 2), Put(b'a', 3), Put(b'a', 4)],
        [Cut(1), Cut(2), Read(1), Drop(1), Reclaim, Read(0), Read(2)],
        [Put(b'b', 5), Cut(3), Drop(0), Reclaim, Read(3)];

    /// R2: two cuts at one tick, dropped in either order.
    cuts_at_one_tick: [Put(b'a', 1), Put(b'b', 1), Cut(0), Cut(1)] =>
        [Put(b'a', 2), Remove(b'b')],
        [Drop(0), Reclaim, Read(1)],
        [Cut(2), Drop(1), Reclaim, Read(2)];

    /// S7: what a pass skips has not changed since the earlier cut, whoever has his place and has not applied yet.
    skipping_pass: [Put(b'b', 1), Put(b'd', 1), Put(b'f', 1), Put(b'h', 1), Put(b'j', 1), Cut(0)] =>
        [Put(b'b', 2), Remove(b'f'), Put(b'c', 2)],
        [Batch(&[Put(b'd', 3), Put(b'j', 3)])],
        [Changed(0), Reclaim, Changed(0)];

    /// R6: splits under a still and beside one; the right half keeps what the left one kept.
    split: [Put(b'b', 1), Put(b'd', 1), Put(b'f', 1), Cut(0), Put(b'd', 2), Put(b'f', 2)] =>
        [Put(b'c', 3), Put(b'e', 3), Put(b'g', 3)],
        [Batch(&[Put(b'b', 4), Put(b'f', 4)])],
        [Cut(1), Read(0), Get(b'f'), Read(1)];

    /// R7, R5: leaves that fall empty are merged while a writer and a reader come by.
    merge: [Put(b'a', 1), Put(b'b', 1), Put(b'c', 1), Put(b'd', 1), Put(b'e', 1), Put(b'f', 1), Put(b'g', 1),
            Remove(b'c'), Remove(b'd'), Remove(b'e'), Remove(b'f')] =>
        [Reclaim, Remove(b'b'), Reclaim],
        [Put(b'g', 2), Put(b'e', 2), Get(b'e')],
        [Cut(0), Scan(b'a', b'h'), Read(0)];

    /// R7, R8: a batch walks right while what lies there is merged away.
    batch_and_merge: [Put(b'a', 1), Put(b'b', 1), Put(b'c', 1), Put(b'd', 1), Put(b'e', 1), Put(b'f', 1), Put(b'g', 1),
            Put(b'h', 1), Put(b'i', 1), Remove(b'd'), Remove(b'e'), Remove(b'f'), Remove(b'g')] =>
        [Reclaim],
        [Batch(&[Put(b'a', 2), Put(b'f', 2), Put(b'i', 2)])],
        [Batch(&[Put(b'b', 3), Remove(b'h')]), Scan(b'a', b'j')];

    /// R7: a leaf is merged away and its number used again further right, while a writer still has it.
    number_used_again: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Put(b'i', 1),
            Remove(b'c'), Remove(b'e'), Remove(b'g')] =>
        [Reclaim, Put(b'j', 2), Put(b'k', 2), Put(b'l', 2)],
        [Put(b'f', 3), Get(b'f'), Put(b'i', 3)],
        [Get(b'i'), Cut(0)];

    /// R6, R7: the right half of a split is emptied and merged away at once.
    split_and_merge: [Put(b'a', 1), Put(b'b', 1), Put(b'c', 1)] =>
        [Put(b'd', 2), Get(b'd')],
        [Remove(b'c'), Remove(b'b'), Reclaim];

    /// R8: a batch goes on right of a leaf that has just been split.
    batch_and_split: [Put(b'a', 1), Put(b'b', 1), Put(b'c', 1)] =>
        [Put(b'd', 2)],
        [Batch(&[Put(b'a', 3), Put(b'd', 3), Put(b'e', 3)])];

    /// R6, R8: a batch gives birth to leaves left of one that it has not changed yet.
    batch_that_splits: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Put(b'i', 1)] =>
        [Batch(&[Put(b'b', 2), Put(b'c', 2), Put(b'd', 2), Put(b'i', 2)])],
        [Scan(b'd', b'j'), Scan(b'c', b'j')],
        [Get(b'd'), Get(b'i'), Cut(0)];

    /// R9: the sweep of a dropped still, a writer that keeps for a newer one, an older one that still needs it.
    sweep: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Cut(0), Put(b'a', 2), Cut(1), Put(b'a', 3), Put(b'g', 3)] =>
        [Drop(1), Reclaim],
        [Put(b'a', 4), Put(b'g', 4), Put(b'c', 4)],
        [Read(0), Cut(2), Read(2), Read(0)];

    /// R9: a cut is dropped and drained while a writer still means to list a range with it.
    drop_before_listing: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Take(0), Put(b'g', 2)] =>
        [Put(b'a', 2)],
        [Drop(0), Reclaim];

    /// R3, R9: a cut comes and goes while a write is under way that did not see it.
    cut_in_between: [Put(b'a', 1), Put(b'c', 1)] =>
        [Put(b'a', 2), Put(b'a', 3)],
        [Take(0), Drop(0), Take(1), Drop(1)];

    /// R9: what is on a list splits before it is swept.
    listed_range_splits: [Put(b'a', 1), Put(b'd', 1), Put(b'g', 1), Cut(0), Put(b'a', 2), Put(b'd', 2), Put(b'g', 2)] =>
        [Put(b'b', 3), Put(b'h', 3), Put(b'e', 3)],
        [Drop(0), Reclaim, Reclaim],
        [Cut(1), Read(1)];

    /// R10: scans and ends of the present beside batches that move a key across leaves.
    live_scan: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Put(b'i', 1)] =>
        [Batch(&[Remove(b'a'), Put(b'i', 2)]), Batch(&[Put(b'a', 3), Remove(b'i')])],
        [Scan(b'a', b'j'), Scan(b'a', b'j'), ScanAll],
        [First, Last, Put(b'd', 4)];

    /// R10: ends of the present while the ends are popped, filled and merged.
    ends: [Put(b'a', 1), Put(b'b', 1), Put(b'c', 1), Put(b'd', 1), Put(b'e', 1)] =>
        [PopFirst, PopLast, PopFirst],
        [Put(b'h', 2), Remove(b'd'), Reclaim],
        [First, Last, Cut(0), Read(0)];

    /// I1: clear and range delete under held stills, while single writes go on.
    clear: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Cut(0), Put(b'c', 2)] =>
        [Clear, Put(b'b', 3)],
        [Put(b'e', 4), DeleteRange(b'b', b'f')],
        [Cut(1), Read(0), Drop(0), Reclaim, Read(1)];

    /// I1: an expiry, a remove and a drop at once.
    expiry: [PutUntil(b'a', 1, 1_005), Put(b'b', 1), PutUntil(b'c', 1, 1_010), Cut(0)] =>
        [Time(5), Remove(b'a'), PutNew(b'c', 2), Time(5)],
        [Cut(1), Put(b'a', 3), Read(1), Drop(0), Reclaim],
        [Remove(b'c'), PutNew(b'a', 4), Read(0), Get(b'a')];

    /// R4: so much is kept that whole pages take its place, while cuts come and go.
    whole_pages: [Put(b'a', 1), Put(b'b', 1), Put(b'c', 1), Cut(0)] =>
        [Clear, Put(b'd', 2), Clear],
        [Cut(1), Put(b'b', 3), Read(0), Drop(0), Reclaim, Read(1)],
        [Batch(&[Put(b'a', 4), Put(b'b', 4), Put(b'c', 4)]), Cut(2), Read(2)];

    /// A save goes by: writers on both sides of it, one that splits, a still that needs what the save doesn't.
    pass: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Put(b'i', 1)] =>
        [Pass],
        [Put(b'a', 2), Put(b'g', 2), Put(b'b', 2), Put(b'd', 2)],
        [Batch(&[Put(b'a', 3), Put(b'i', 3)]), Cut(0), Put(b'a', 4), Remove(b'g'), Read(0)];

    /// A save goes by while leaves on both sides of it are merged; another one follows.
    pass_and_merge: [Put(b'a', 1), Put(b'b', 1), Put(b'c', 1), Put(b'd', 1), Put(b'e', 1), Put(b'f', 1), Put(b'g', 1),
            Remove(b'c'), Remove(b'd'), Remove(b'f'), Remove(b'g')] =>
        [Pass],
        [Remove(b'b'), Reclaim, Put(b'e', 2), Reclaim, Put(b'd', 2)],
        [Pass, Take(0), Put(b'a', 3), Put(b'e', 3), Read(0), Drop(0), Reclaim];

    /// A state takes the place of another under readers of single keys, of ranges and of both ends.
    install: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1)] =>
        [Install(&[Put(b'a', 2), Put(b'b', 2), Put(b'd', 2), Put(b'g', 2), Put(b'i', 2)])],
        [Get(b'a'), Get(b'c'), Scan(b'a', b'h'), Get(b'a')],
        [Last, First, ScanAll, Get(b'i')];

    /// .. under stills, a save and the reclaimer.
    install_and_cuts: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Cut(0), Put(b'c', 2), Take(1), Put(b'e', 2)] =>
        [Install(&[Put(b'a', 3), Put(b'b', 3), Put(b'c', 3), Put(b'd', 3), Put(b'e', 3), Put(b'f', 3), Put(b'g', 1)])],
        [Cut(2), Pass, Read(2), Read(0)],
        [Drop(1), Reclaim, Cut(3), Drop(0), Reclaim, Read(3)];

    /// .. twice, while a reader has one still from before, one from between.
    install_twice: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1)] =>
        [Install(&[Put(b'a', 2), Put(b'c', 2), Put(b'e', 2), Put(b'g', 2)]),
         Install(&[Put(b'a', 3), Put(b'd', 3), Put(b'e', 2), Put(b'g', 3), Put(b'h', 3)]), Reclaim],
        [Get(b'a'), Cut(0), Scan(b'c', b'h'), Read(0), Get(b'g')],
        [Reclaim, Take(1), Last, Read(1), Drop(1)];

    /// Transactions: of two that take one of two keys each, as long as both are there, one does. In other leaves than they change.
    write_skew: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Put(b'i', 1)] =>
        [TakeOneOfTwo(b'a', b'i')],
        [TakeOneOfTwo(b'i', b'a')],
        [Put(b'b', 2), Put(b'h', 2), Remove(b'c')];

    /// Transactions: of two that put a key into an empty range one does, and what is put there otherwise is seen by both.
    phantoms: [Put(b'a', 1), Put(b'b', 1), Put(b'c', 1), Put(b'h', 1), Put(b'i', 1), Put(b'j', 1)] =>
        [PutAlone(b'c', b'h', b'd', 2), PutAlone(b'd', b'h', b'd', 2)],
        [PutAlone(b'd', b'h', b'g', 3), Remove(b'd')],
        [Put(b'b', 4), Reclaim];

    /// Transactions: what one has only read does not change before what it writes has its place.
    read_and_written_at_once: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Put(b'i', 1)] =>
        [TakeOneOfTwo(b'a', b'i')],
        [Remove(b'i')],
        [Cut(0), Cut(1)];

    /// Transactions: what one reads is of one moment, whatever it meets on the way.
    of_one_moment: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Put(b'i', 1)] =>
        [Batch(&[Put(b'a', 2), Put(b'i', 2)]), Batch(&[Put(b'a', 3), Put(b'i', 3)])],
        [GetBoth(b'a', b'i'), GetBoth(b'i', b'a')],
        [Put(b'b', 4), Put(b'h', 4)];

    /// Two writers, one with a batch over two leaves and one that splits, a cut, a drop, a merge, a scan.
    everything: [Put(b'a', 1), Put(b'c', 1), Put(b'e', 1), Put(b'g', 1), Cut(0)] =>
        [Batch(&[Put(b'a', 2), Put(b'g', 2), Remove(b'e')])],
        [Put(b'b', 3), Put(b'd', 3)],
        [Cut(1), Read(1), Scan(b'a', b'h')],
        [Drop(0), Reclaim];
}
