//! Transactions in turns: on one thread, so that a seed says all that happens.
//!
//! A map for each Seq says what there was. A transaction that commits must have seen what the last one holds, also in ranges; one that
//! wrote nothing, or that met a conflict, what some one of them held while it ran. A conflict needs a cause: nobody is in the way who has
//! changed nothing that was read.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use stillframe::simulation::{Clock, Random, SimClock};
use stillframe::{Database, Error, Keyspace, Result, Slice, Snapshot, Transaction, WriteOptions};

use super::Counts;

const STEPS: u64 = 160;
const KEYS: u64 = 24;
const SPACES: [&str; 2] = ["left", "right"];
/// A value that a leaf does not hold itself.
const LARGE: usize = 2_500;

type Key = (usize, u8);
type Content = BTreeMap<Key, (u32, u64)>;

/// What a transaction, or a plain write, does to one keyspace.
#[derive(Debug, Clone)]
enum Act {
    Get(u8),
    Insert(u8, u32, u64),
    InsertNew(u8, u32),
    Replace(u8, u32),
    Remove(u8),
    Take(u8),
    DeleteRange(Range<u8>),
    /// So many from the front and then from the back; `None`: to the end.
    Range(Range<u8>, Option<(u8, u8)>),
    First,
    Last,
    PopFirst,
    PopLast,
}
use Act::*;

/// What it has shown: keys and numbers of values.
type Shown = Vec<(u8, u32)>;

/// The database as it was after a batch.
struct State {
    content: Content,
    /// What that batch may have changed.
    changed: BTreeSet<Key>,
}

struct Running {
    tx: Transaction,
    done: Vec<(usize, Act, Shown)>,
    left: u64,
    /// How many batches there were, and how often the clock had been moved.
    began: usize,
    began_at: usize,
}

struct World {
    db: Database,
    spaces: Vec<Keyspace>,
    clock: SimClock,
    times: Vec<u64>,
    states: Vec<State>,
    running: Vec<Running>,
    stills: Vec<Snapshot>,
    next_id: u32,
    counts: Counts,
}

pub(super) fn run(seed: u64) -> std::result::Result<Counts, String> {
    let mut random = Random::new(seed);
    let clock = SimClock::new(1_000);
    let builder = Database::builder().clock(clock.clone()).manual_reclaim();
    let db = builder.leaf_entries(3 + random.below(5) as usize).in_memory();
    let db = db.map_err(|e| e.to_string())?;
    let spaces = SPACES.iter().map(|name| db.keyspace(name)).collect::<Result<Vec<_>>>();
    let states = vec![State { content: Content::new(), changed: BTreeSet::new() }];
    let mut world = World {
        spaces: spaces.map_err(|e| e.to_string())?,
        db,
        clock,
        times: vec![1_000],
        states,
        running: Vec::new(),
        stills: Vec::new(),
        next_id: 1,
        counts: Counts::default(),
    };
    for step in 0..STEPS {
        world.step(&mut random).map_err(|what| format!("step {step}: {what}"))?;
    }
    while !world.running.is_empty() {
        world.finish(0)?;
    }
    world.check()?;
    Ok(world.counts)
}

impl World {
    fn step(&mut self, random: &mut Random) -> std::result::Result<(), String> {
        match random.below(20) {
            0..=3 if self.running.len() < 5 => {
                let left = 1 + random.below(7);
                let (began, began_at) = (self.states.len() - 1, self.times.len() - 1);
                let tx = Transaction::new(&self.db);
                self.running.push(Running { tx, done: Vec::new(), left, began, began_at });
            }
            0..=11 if !self.running.is_empty() => {
                let at = random.below(self.running.len() as u64) as usize;
                match self.running[at].left {
                    0 => self.finish(at)?,
                    _ => self.go_on(at, random)?,
                }
            }
            12 => {
                self.clock.advance(random.below(30));
                self.times.push(self.clock.now_ms());
            }
            13 => self.stills.extend(self.db.snapshot().ok()),
            14 => {
                if !self.stills.is_empty() {
                    self.stills.swap_remove(random.below(self.stills.len() as u64) as usize);
                }
                self.db.reclaim();
            }
            15 => self.check()?,
            _ => self.write(random)?,
        }
        Ok(())
    }

    fn now(&self) -> u64 {
        self.times[self.times.len() - 1]
    }

    fn last(&self) -> &State {
        &self.states[self.states.len() - 1]
    }

    fn act(&mut self, random: &mut Random) -> (usize, Act) {
        let key = random.below(KEYS) as u8;
        let id = self.next_id;
        self.next_id += 1;
        let to = key + random.below(KEYS + 1 - u64::from(key)) as u8;
        let expire_at = match random.below(3) {
            0 => self.now() + 1 + random.below(40),
            _ => 0,
        };
        let act = match random.below(24) {
            0..=6 => Get(key),
            7..=10 => Insert(key, id, expire_at),
            11 => InsertNew(key, id),
            12 => Replace(key, id),
            13..=14 => Remove(key),
            15 => Take(key),
            16 => DeleteRange(key..to),
            17..=18 => Range(key..to, None),
            19 => Range(key..to, Some((random.below(3) as u8, random.below(3) as u8))),
            20 => First,
            21 => Last,
            22 => PopFirst,
            _ => PopLast,
        };
        (random.below(SPACES.len() as u64) as usize, act)
    }

    /// The next step of a transaction.
    fn go_on(&mut self, at: usize, random: &mut Random) -> std::result::Result<(), String> {
        let (space, act) = self.act(random);
        let running = &mut self.running[at];
        running.left -= 1;
        match in_transaction(&mut running.tx, &self.spaces[space], &act) {
            Ok(shown) => running.done.push((space, act, shown)),
            Err(Error::Conflict { .. }) => {
                let running = self.running.swap_remove(at);
                self.conflict(&running, Some((space, act)))?;
            }
            Err(error) => return Err(format!("{act:?}: {error}")),
        }
        Ok(())
    }

    fn finish(&mut self, at: usize) -> std::result::Result<(), String> {
        let Running { tx, done, began, began_at, .. } = self.running.swap_remove(at);
        let is_written = match tx.finish() {
            Ok(position) => {
                let last = self.db.seq();
                if position.is_some_and(|position| position.seq != last) {
                    return Err(format!("it is said to be {position:?}, the last is {last}"));
                }
                position.is_some()
            }
            Err(Error::Conflict { .. }) => {
                let tx = Transaction::new(&self.db);
                return self.conflict(&Running { tx, done, left: 0, began, began_at }, None);
            }
            Err(error) => return Err(error.to_string()),
        };
        self.counts.committed += 1;
        if !is_written {
            self.counts.read_only += 1;
            // It has changed nothing.
            return self.was(&done, began, began_at, true);
        }
        let times = (self.now(), self.times[began_at]);
        let (content, mut changed) = play(&self.last().content, &done, times)?;
        changed.retain(|key| content.get(key) != self.last().content.get(key));
        self.states.push(State { content, changed });
        Ok(())
    }

    /// All was shown at some one moment since it began, and then, if it `is_idle`, changed nothing.
    fn was(
        &self,
        done: &[(usize, Act, Shown)],
        began: usize,
        began_at: usize,
        is_idle: bool,
    ) -> std::result::Result<(), String> {
        let fits = |state: &State| {
            self.times[began_at..].iter().any(|now| {
                let played = play(&state.content, done, (*now, self.times[began_at]));
                played.is_ok_and(|(content, _)| !is_idle || content == state.content)
            })
        };
        match self.states[began..].iter().any(fits) {
            true => Ok(()),
            false => Err(format!("there was no moment at which it is what it shows: {done:?}")),
        }
    }

    /// It may not go on: something that it has read, or was about to read, has changed; what it had seen until then belongs together.
    fn conflict(
        &mut self,
        running: &Running,
        next: Option<(usize, Act)>,
    ) -> std::result::Result<(), String> {
        self.counts.conflicts += 1;
        self.was(&running.done, running.began, running.began_at, false)?;
        let acts = running.done.iter().map(|(space, act, _)| (*space, act));
        let acts: Vec<_> = acts.chain(next.iter().map(|(space, act)| (*space, act))).collect();
        let reads = |key: &Key| acts.iter().any(|(space, act)| key.0 == *space && act.reads(key.1));
        let times = self.times[running.began_at]..=self.now();
        let has_passed = |state: &State| {
            state.content.iter().any(|(key, (_, at))| *at != 0 && times.contains(at) && reads(key))
        };
        let is_changed =
            self.states[running.began + 1..].iter().any(|s| s.changed.iter().any(reads));
        match is_changed || self.states[running.began..].iter().any(has_passed) {
            true => Ok(()),
            false => Err(format!("a conflict of which nothing is the cause: {acts:?}")),
        }
    }

    /// A plain write.
    fn write(&mut self, random: &mut Random) -> std::result::Result<(), String> {
        let (space, act) = self.act(random);
        let before = self.db.seq();
        let shown = plainly(&self.spaces[space], &act).map_err(|e| format!("{act:?}: {e}"))?;
        let done = [(space, act, shown)];
        let times = (self.now(), self.now());
        let (content, mut changed) = play(&self.last().content, &done, times)?;
        changed.retain(|key| content.get(key) != self.last().content.get(key));
        if self.db.seq() != before {
            self.states.push(State { content, changed });
        } else if content != self.last().content {
            return Err(format!("{done:?} has changed something and got no place"));
        }
        Ok(())
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.db.check();
        let mut found = Vec::new();
        for (number, space) in self.spaces.iter().enumerate() {
            for entry in space.range::<&[u8]>(..) {
                let (key, value) = entry.map_err(|e| e.to_string())?;
                found.push(((number, key[0]), id_of(&value)));
            }
        }
        let now = self.now();
        let visible = self.last().content.iter().filter(|(_, (_, at))| *at == 0 || now < *at);
        let expected: Vec<_> = visible.map(|(key, (id, _))| (*key, *id)).collect();
        if found == expected { Ok(()) } else { Err(format!("{found:?}, expected {expected:?}")) }
    }
}

/// Does it all on a map, where entries are judged by the first time, those that it has put itself by the second; what it shows, and
/// which keys it writes.
fn play(
    before: &Content,
    done: &[(usize, Act, Shown)],
    (now, own_now): (u64, u64),
) -> std::result::Result<(Content, BTreeSet<Key>), String> {
    let (mut content, mut written) = (before.clone(), BTreeSet::new());
    for (space, act, shown) in done {
        let own = written.clone();
        let time = |key: &Key| if own.contains(key) { own_now } else { now };
        let expected = on_map(&mut content, &mut written, *space, act, &time);
        if expected != *shown {
            return Err(format!(
                "{act:?} of keyspace {space} has shown {shown:?}, expected {expected:?}, in {done:?}"
            ));
        }
    }
    Ok((content, written))
}

fn on_map(
    content: &mut Content,
    written: &mut BTreeSet<Key>,
    space: usize,
    act: &Act,
    time: &dyn Fn(&Key) -> u64,
) -> Shown {
    let within = |content: &Content, range: Range<u8>| -> Shown {
        let own = content.range((space, range.start)..(space, range.end));
        let visible = own.filter(|(key, (_, at))| *at == 0 || time(key) < *at);
        visible.map(|((_, key), (id, _))| (*key, *id)).collect()
    };
    let get = |content: &Content, key: u8| within(content, key..key + 1);
    let all = |content: &Content| within(content, 0..u8::MAX);
    let mut put = |content: &mut Content, key: u8, put: Option<(u32, u64)>| {
        written.insert((space, key));
        match put {
            Some(entry) => drop(content.insert((space, key), entry)),
            None => drop(content.remove(&(space, key))),
        }
    };
    match act.clone() {
        Get(key) => get(content, key),
        Insert(key, id, expire_at) => {
            put(content, key, Some((id, expire_at)));
            Vec::new()
        }
        InsertNew(key, id) => {
            let old = get(content, key);
            if old.is_empty() {
                put(content, key, Some((id, 0)));
            }
            old
        }
        Replace(key, id) => {
            let old = get(content, key);
            put(content, key, Some((id, 0)));
            old
        }
        Remove(key) | Take(key) => {
            let old = get(content, key);
            if !old.is_empty() {
                put(content, key, None);
            }
            old
        }
        DeleteRange(range) => {
            for key in range {
                put(content, key, None);
            }
            Vec::new()
        }
        Range(range, some) => {
            let mut shown = within(content, range);
            if let Some((front, back)) = some {
                let back = shown
                    .split_off(shown.len().min(front.into()))
                    .into_iter()
                    .rev()
                    .take(back.into());
                shown.extend(back);
            }
            shown
        }
        First => all(content).first().copied().into_iter().collect(),
        Last => all(content).last().copied().into_iter().collect(),
        PopFirst | PopLast => {
            let all = all(content);
            let end = if matches!(act, PopFirst) { all.first() } else { all.last() };
            let end: Shown = end.copied().into_iter().collect();
            end.iter().for_each(|(key, _)| put(content, *key, None));
            end
        }
    }
}

impl Act {
    /// Whether it may have looked at `key`.
    fn reads(&self, key: u8) -> bool {
        match self {
            Get(own) | InsertNew(own, _) | Replace(own, _) | Remove(own) | Take(own) => *own == key,
            Insert(..) | DeleteRange(_) => false,
            Range(range, _) => range.contains(&key),
            First | Last | PopFirst | PopLast => true,
        }
    }
}

fn value(id: u32) -> Vec<u8> {
    let mut value = id.to_le_bytes().to_vec();
    if id.is_multiple_of(5) {
        value.resize(LARGE, 7);
    }
    value
}

fn id_of(value: &[u8]) -> u32 {
    value.first_chunk().map_or(0, |id| u32::from_le_bytes(*id))
}

fn of_key(key: u8, value: Option<Slice>) -> Shown {
    value.map(|value| (key, id_of(&value))).into_iter().collect()
}

fn of_entry(entry: Option<(Slice, Slice)>) -> Shown {
    entry.map(|(key, value)| (key[0], id_of(&value))).into_iter().collect()
}

fn of_range(
    mut entries: impl DoubleEndedIterator<Item = Result<(Slice, Slice)>>,
    some: Option<(u8, u8)>,
) -> Result<Shown> {
    let pair = |entry: Result<(Slice, Slice)>| entry.map(|(key, value)| (key[0], id_of(&value)));
    let Some((front, back)) = some else { return entries.map(pair).collect() };
    let mut shown: Shown = entries.by_ref().take(front.into()).map(pair).collect::<Result<_>>()?;
    let back: Shown = entries.rev().take(back.into()).map(pair).collect::<Result<_>>()?;
    shown.extend(back);
    Ok(shown)
}

fn expiring(at: u64) -> WriteOptions {
    WriteOptions::new().expire_at(at)
}

fn in_transaction(tx: &mut Transaction, space: &Keyspace, act: &Act) -> Result<Shown> {
    Ok(match act.clone() {
        Get(key) => of_key(key, tx.get(space, [key])?),
        Insert(key, id, at) => {
            tx.insert_with(space, [key], value(id), expiring(at))?;
            Vec::new()
        }
        InsertNew(key, id) => {
            let old = of_key(key, tx.get(space, [key])?);
            assert_eq!(tx.insert_new(space, [key], value(id))?, old.is_empty());
            old
        }
        Replace(key, id) => of_key(key, tx.replace(space, [key], value(id))?),
        Remove(key) => {
            let old = of_key(key, tx.get(space, [key])?);
            assert_eq!(tx.remove(space, [key])?, !old.is_empty());
            old
        }
        Take(key) => of_key(key, tx.take(space, [key])?),
        DeleteRange(range) => {
            tx.delete_range(space, [range.start]..[range.end])?;
            Vec::new()
        }
        Range(range, some) => of_range(tx.range(space, [range.start]..[range.end]), some)?,
        First => of_entry(tx.first(space)?),
        Last => of_entry(tx.last(space)?),
        PopFirst => of_entry(tx.pop_first(space)?),
        PopLast => of_entry(tx.pop_last(space)?),
    })
}

fn plainly(space: &Keyspace, act: &Act) -> Result<Shown> {
    Ok(match act.clone() {
        Get(key) => of_key(key, space.get([key])?),
        Insert(key, id, at) => {
            space.insert_with([key], value(id), expiring(at))?;
            Vec::new()
        }
        InsertNew(key, id) => {
            let old = of_key(key, space.get([key])?);
            assert_eq!(space.insert_new([key], value(id))?, old.is_empty());
            old
        }
        Replace(key, id) => of_key(key, space.replace([key], value(id))?),
        Remove(key) => {
            let old = of_key(key, space.get([key])?);
            assert_eq!(space.remove([key])?, !old.is_empty());
            old
        }
        Take(key) => of_key(key, space.take([key])?),
        DeleteRange(range) => {
            space.delete_range([range.start]..[range.end])?;
            Vec::new()
        }
        Range(range, some) => of_range(space.range([range.start]..[range.end]), some)?,
        First => of_entry(space.first()?),
        Last => of_entry(space.last()?),
        PopFirst => of_entry(space.pop_first()?),
        PopLast => of_entry(space.pop_last()?),
    })
}
