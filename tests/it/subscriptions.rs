//! Subscriptions against the content of the database after every batch: each change once and in order, through restarts, power cuts, rotation of
//! the log, lag, replicas and promotions; or an error that says why not.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stillframe::simulation::{CallKind, Clock, DiskFault, Random, SessionEnded, SimClock, SimDisk};
use stillframe::{
    Cause, ChangeBatch, ChangeKind, Database, Durability, Error, Position, Role, SaveOptions, Seq,
    SubscribeOptions, Subscription, WriteOptions,
};

use crate::expiry::replicate;
use crate::model::for_each_seed;

/// Value and expiry by key, by the name of the keyspace.
type Content = BTreeMap<String, BTreeMap<Vec<u8>, (Vec<u8>, u64)>>;

/// All that is stored.
fn content(db: &Database) -> Content {
    let mut pass = db.pass().unwrap();
    let (mut names, mut entries) = (HashMap::new(), Vec::new());
    while let Some(leaf) = pass.step().unwrap() {
        entries.extend(leaf);
    }
    let mut content = Content::new();
    for (id, key, value, expire_at) in entries {
        if id == 0 {
            let name = String::from_utf8(key).unwrap();
            names.insert(u32::from_le_bytes(value.try_into().unwrap()), name.clone());
            content.insert(name, BTreeMap::new());
        } else {
            content.get_mut(&names[&id]).unwrap().insert(key, (value, expire_at));
        }
    }
    content
}

/// What a subscription shows: everything, or what begins so.
type Filter = &'static [(&'static str, &'static str)];
const FILTERS: [Filter; 4] = [&[], &[], &[("b", "")], &[("a", "1"), ("a", "12"), ("c", "2")]];

fn options(filter: Filter) -> SubscribeOptions {
    let prefix = |options: SubscribeOptions, (name, prefix): &(&str, &str)| match prefix.len() {
        0 => options.keyspace(name),
        _ => options.prefix(name, prefix),
    };
    filter.iter().fold(SubscribeOptions::new(), prefix)
}

fn projected(content: &Content, filter: Filter) -> Content {
    let mut content = content.clone();
    if !filter.is_empty() {
        content.retain(|name, _| filter.iter().any(|(wanted, _)| name == wanted));
        for (name, entries) in &mut content {
            let is_wanted = |key: &[u8]| {
                filter
                    .iter()
                    .any(|(wanted, prefix)| name == wanted && key.starts_with(prefix.as_bytes()))
            };
            entries.retain(|key, _| is_wanted(key));
        }
    }
    content
}

fn apply(mirror: &mut Content, batch: &ChangeBatch) {
    assert!(!batch.changes.is_empty(), "a batch of nothing");
    for change in &batch.changes {
        let name = change.keyspace.to_string();
        match &change.kind {
            ChangeKind::CreateKeyspace => {
                assert_eq!(mirror.insert(name, BTreeMap::new()), None, "made twice");
                continue;
            }
            ChangeKind::DropKeyspace => {
                assert_eq!(mirror.remove(&name), Some(BTreeMap::new()), "dropped with entries");
                continue;
            }
            _ => {}
        }
        let entries = mirror.get_mut(&name).expect("it was made");
        match &change.kind {
            ChangeKind::Put { key, value, expires_at } => {
                entries.insert(key.to_vec(), (value.to_vec(), expires_at.unwrap_or(0)));
            }
            ChangeKind::Remove { key } => {
                let before = entries.remove(&key[..]);
                if change.cause == Cause::Expiry {
                    let (_, expires_at) = before.expect("what expires was there");
                    assert!(expires_at != 0 && expires_at <= batch.time_ms);
                }
            }
            ChangeKind::RemoveRange { low, high } => entries.retain(|key, _| {
                key[..] < low[..] || high.as_ref().is_some_and(|high| key[..] >= high[..])
            }),
            _ => panic!("a new kind"),
        }
    }
}

/// A database, and the batches that led to it.
struct Node {
    disk: SimDisk,
    db: Database,
    line: Vec<Position>,
}

struct Subscriber {
    /// 0: the primary, 1: the replica.
    node: usize,
    filter: Filter,
    after_durable: bool,
    subscription: Option<Subscription>,
    position: Position,
    mirror: Content,
}

struct Run {
    random: Random,
    clock: SimClock,
    nodes: Vec<Node>,
    /// Equal positions, equal data.
    contents: HashMap<Position, Content>,
    subscribers: Vec<Subscriber>,
    /// How many batches came, and why subscriptions ended.
    shown: u64,
    lagged: u64,
    rewound: u64,
}

fn open(disk: &SimDisk, clock: &SimClock) -> Database {
    let builder = Database::builder().disk(disk.clone()).clock(clock.clone());
    let builder = builder.manual_log().manual_reclaim().leaf_entries(6);
    let builder = builder.durability(Durability::Memory).keep_log_for_replicas(12 << 10);
    builder.segment_bytes(4 << 10).save_when_log_exceeds(None).open("/db").unwrap()
}

impl Run {
    fn new(seed: u64) -> Self {
        let clock = SimClock::new(1_000_000);
        let disk = SimDisk::new();
        let db = open(&disk, &clock);
        let contents = HashMap::from([(Position::default(), Content::new())]);
        let nodes = vec![Node { disk, db, line: vec![Position::default()] }];
        let (random, subscribers) = (Random::new(seed), Vec::new());
        Self { random, clock, nodes, contents, subscribers, shown: 0, lagged: 0, rewound: 0 }
    }

    /// What the primary has committed since.
    fn note(&mut self) {
        let node = &mut self.nodes[0];
        let (now, last) = (node.db.position(), *node.line.last().unwrap());
        if now == last {
            return;
        }
        if now.history != last.history {
            // The first batch of a history changes nothing.
            let begun = Position { seq: Seq(last.seq.0 + 1), ..now };
            node.line.push(begun);
            self.contents.insert(begun, self.contents[&last].clone());
        }
        if Some(&now) != node.line.last() {
            assert_eq!(now.seq.0, node.line.last().unwrap().seq.0 + 1);
            node.line.push(now);
            self.contents.insert(now, content(&node.db));
        }
    }

    fn key(&mut self) -> String {
        format!("{:02}", self.random.below(30))
    }

    fn write(&mut self) {
        let db = self.nodes[0].db.clone();
        let name = ["a", "b", "c"][self.random.below(3) as usize];
        if self.random.one_in(25) {
            db.drop_keyspace(name).unwrap();
            return self.note();
        }
        let space = db.keyspace(name).unwrap();
        self.note();
        let (key, other) = (self.key(), self.key());
        let value = self.random.below(1_000).to_string().repeat(self.random.below(40) as usize);
        let until = match self.random.below(3) {
            0 => WriteOptions::new().expire_at(self.clock.now_ms() + self.random.below(3_000)),
            _ => WriteOptions::new(),
        };
        match self.random.below(12) {
            0..6 => space.insert_with(&key, &value, until).unwrap(),
            6 | 7 => drop(space.remove(&key).unwrap()),
            8 => {
                let (low, high) = (key.clone().min(other.clone()), key.max(other));
                let _ = space.delete_range(low.as_bytes()..high.as_bytes()).unwrap();
            }
            9 => drop(space.clear().unwrap()),
            10 => {
                let mut batch = db.batch();
                batch.delete_range(&space, key.as_bytes()..);
                batch.insert_with(&space, &other, &value, until);
                batch.remove(&space, &key);
                batch.commit().unwrap();
            }
            _ => db
                .transact(|tx| {
                    let old = tx.get(&space, &key)?.unwrap_or_default();
                    tx.insert(&space, &other, &old)
                })
                .unwrap(),
        }
        self.note();
    }

    /// The database goes, and comes again.
    fn restart(&mut self, at: usize) {
        for subscriber in self.subscribers.iter_mut().filter(|one| one.node == at) {
            subscriber.subscription = None;
        }
        let cut = self.random.one_in(2).then(|| self.random.next_u64());
        let clock = self.clock.clone();
        let node = &mut self.nodes[at];
        let disk = match cut {
            Some(seed) => node.disk.crash(seed),
            None => {
                node.db.close().unwrap();
                node.disk.clone()
            }
        };
        node.db = Database::in_memory();
        node.disk = disk;
        node.db = open(&node.disk, &clock);
        let position = node.db.position();
        let last = node.line.iter().position(|one| *one == position);
        node.line.truncate(last.expect("a batch that there was") + 1);
        assert_eq!(content(&node.db), self.contents[&position]);
    }

    /// The replica gets what the primary has, or the primary what it has lost.
    fn replicate(&mut self) {
        if self.nodes.len() == 1 {
            let disk = SimDisk::new();
            let db = open(&disk, &self.clock);
            self.nodes.push(Node { disk, db, line: vec![Position::default()] });
        }
        let [primary, copy] = &mut self.nodes[..] else { panic!("two") };
        let now_ms = self.clock.now_ms();
        // Once the primary has taken back what it had lost, it is asked anew.
        let mut talks = (0..4).map(|_| replicate(&primary.db, &copy.db, now_ms));
        let ended = talks.find(|end| !matches!(end, Err(SessionEnded::Other(_))));
        if ended.expect("it gets there").is_err() {
            // Each has written what the other lacks: somebody would have to say which is to go.
            self.nodes.truncate(1);
            return self.subscribers.retain(|subscriber| subscriber.node == 0);
        }
        let position = copy.db.position();
        let lines = [&primary.line, &copy.line];
        let line = lines.into_iter().find_map(|line| {
            let last = line.iter().position(|one| *one == position)?;
            Some(line[..=last].to_vec())
        });
        primary.line = line.expect("a batch that there was");
        copy.line = primary.line.clone();
        assert_eq!(content(&copy.db), self.contents[&position]);
    }

    fn promote(&mut self) {
        if self.nodes.len() == 1 {
            return;
        }
        self.nodes[1].db.promote().unwrap();
        self.nodes.remove(0);
        self.note();
        for subscriber in &mut self.subscribers {
            // Elsewhere it goes on where it was.
            subscriber.subscription =
                subscriber.subscription.take().filter(|_| subscriber.node == 1);
            subscriber.node = 0;
        }
    }

    /// A subscriber begins with a still, or from now on.
    fn subscribe(&mut self) {
        let node = self.random.below(self.nodes.len() as u64) as usize;
        let filter = FILTERS[self.random.below(4) as usize];
        let (db, after_durable) = (&self.nodes[node].db, self.random.one_in(3));
        let options = options(filter).after_durable(after_durable);
        let (position, subscription) = match self.random.below(3) {
            0 => {
                let subscription = db.subscribe(options).unwrap();
                assert_eq!(subscription.received(), db.position());
                (db.position(), subscription)
            }
            1 => {
                // From the oldest batch there is.
                let oldest = match db.subscribe(options.clone().after_seq(Seq(0))) {
                    Ok(_) => Seq(1),
                    Err(Error::Lagged { requested: Seq(1), oldest }) => oldest,
                    Err(error) => panic!("{error}"),
                };
                let subscription = db.subscribe(options.after_seq(Seq(oldest.0 - 1))).unwrap();
                assert!(self.nodes[node].line.contains(&subscription.received()));
                assert_eq!(subscription.received().seq.0, oldest.0 - 1);
                (subscription.received(), subscription)
            }
            _ => {
                let (still, subscription) = db.snapshot_and_subscribe(options).unwrap();
                (still.position(), subscription)
            }
        };
        let mirror = projected(&self.contents[&position], filter);
        let subscription = Some(subscription);
        let subscriber = Subscriber { node, filter, after_durable, subscription, position, mirror };
        self.subscribers.push(subscriber);
    }

    /// A subscriber reads some batches; how it ends, if it does.
    fn read(&mut self, at: usize, most: u64) -> Option<Error> {
        let subscriber = &mut self.subscribers[at];
        let Subscriber { node, filter, after_durable, position, mirror, .. } = subscriber;
        let Node { db, line, .. } = &self.nodes[*node];
        if subscriber.subscription.is_none() {
            let options = options(filter).after_durable(*after_durable).after(*position);
            let subscribed = db.subscribe(options);
            let is_on_line = line.contains(position);
            assert_eq!(is_on_line, !matches!(subscribed, Err(Error::Rewound { .. })));
            subscriber.subscription = Some(match subscribed {
                Ok(subscription) => subscription,
                Err(error) => return Some(error),
            });
        }
        let subscription = subscriber.subscription.as_mut().unwrap();
        for _ in 0..most {
            let batch = match subscription.try_recv() {
                Ok(Some(batch)) => batch,
                Ok(None) => {
                    *position = subscription.received();
                    assert!(line.contains(position), "{position:?}");
                    if !*after_durable {
                        assert_eq!((*position, subscription.lag()), (db.position(), 0));
                    }
                    break;
                }
                Err(error) => return Some(error),
            };
            let last = std::mem::replace(position, batch.position);
            assert_eq!(batch.position, subscription.received());
            // It may have been read ahead and taken back since: then that comes in the end.
            assert!(batch.position.seq > last.seq);
            apply(mirror, &batch);
            assert_eq!(*mirror, projected(&self.contents[position], filter), "{position:?}");
            if *after_durable && line.contains(position) {
                let durable = db.stats().log.unwrap().durable;
                assert!(position.seq <= durable, "{position:?} is shown, {durable} is durable");
            }
            self.shown += 1;
        }
        let held = projected(&self.contents[position], filter);
        assert_eq!(*mirror, held, "{position:?}: what was left out");
        None
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0..22 => self.write(),
            22..24 => self.clock.advance(self.random.below(2_000)),
            24 => {
                while self.nodes[0].db.sweep_leaf().is_some() {
                    self.note();
                }
            }
            25 => drop(self.nodes[0].db.persist(Durability::Sync).unwrap()),
            26 => {
                let at = self.random.below(self.nodes.len() as u64) as usize;
                self.nodes[at].db.compact_log(SaveOptions::default().threads(1)).unwrap();
            }
            27 => self.restart(0),
            28 if self.nodes.len() > 1 => self.restart(1),
            29 | 30 => self.replicate(),
            31 if self.random.one_in(4) => self.promote(),
            32 if self.subscribers.len() < 6 => self.subscribe(),
            33 if self.random.one_in(6) => {
                // The log begins anew where it is.
                self.nodes[0].db.recover().unwrap();
            }
            _ if !self.subscribers.is_empty() => {
                let at = self.random.below(self.subscribers.len() as u64) as usize;
                let most = if self.random.one_in(2) { u64::MAX } else { 3 };
                let Some(error) = self.read(at, most) else { return };
                let subscriber = self.subscribers.swap_remove(at);
                let line = &self.nodes[subscriber.node].line;
                let newest = line.last().unwrap().seq;
                // What nobody asked for may have been left out since.
                let received = subscriber.subscription.as_ref().map(Subscription::received);
                let position = received.unwrap_or(subscriber.position);
                match error {
                    Error::Lagged { requested, oldest } => {
                        assert_eq!(requested.0, position.seq.0 + 1);
                        assert!(requested < oldest && oldest.0 <= newest.0 + 1);
                        self.lagged += 1;
                    }
                    Error::Rewound { position: lost, to } => {
                        assert_eq!(lost, position);
                        let is_lost = !line.contains(&position);
                        assert!(is_lost && to.is_none_or(|to| to < lost.seq && to <= newest));
                        self.rewound += 1;
                    }
                    error => panic!("{error}"),
                }
            }
            _ => {}
        }
    }
}

fn run(seed: u64) -> [u64; 3] {
    let mut run = Run::new(seed);
    for _ in 0..400 {
        run.step();
    }
    // What was left unread comes in the end.
    for at in 0..run.subscribers.len() {
        let _ = run.read(at, u64::MAX);
    }
    [run.shown, run.lagged, run.rewound]
}

#[test]
fn every_change_comes_once_and_in_order_or_it_is_said_why_not() {
    static FOUND: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
    for_each_seed("subscriptions", 80, |seed| {
        let found = run(seed).into_iter().zip(&FOUND);
        for (more, all) in found {
            all.fetch_add(more, Ordering::Relaxed);
        }
    });
    let [shown, lagged, rewound] = FOUND.each_ref().map(|all| all.load(Ordering::Relaxed));
    println!("{shown} batches were shown, {lagged} subscribers lagged, {rewound} were rewound");
}

#[test]
fn who_waits_is_woken_and_who_reads_on_another_thread_misses_nothing() {
    for in_memory in [true, false] {
        let dir = std::env::temp_dir().join(format!("stillframe-feed-{}", std::process::id()));
        let db = match in_memory {
            true => Database::in_memory(),
            false => Database::builder().durability(Durability::Memory).open(&dir).unwrap(),
        };
        let spaces = ["a", "b"].map(|name| db.keyspace(name).unwrap());
        let (still, changes) = db.snapshot_and_subscribe(SubscribeOptions::new()).unwrap();
        assert_eq!(still.len().unwrap(), 0);
        let reader = std::thread::spawn(move || {
            let mut mirror: Content =
                ["a", "b"].map(|name| (name.to_owned(), BTreeMap::new())).into();
            let mut last = still.seq();
            for batch in changes {
                let batch = batch.unwrap();
                assert!(batch.position.seq > last);
                last = batch.position.seq;
                apply(&mut mirror, &batch);
            }
            (mirror, last)
        });
        std::thread::scope(|scope| {
            for (number, space) in spaces.iter().enumerate() {
                scope.spawn(move || {
                    for n in 0..5_000_u32 {
                        let key = (n % 97 + number as u32).to_be_bytes();
                        space.insert(key, n.to_string()).unwrap();
                        if n % 13 == 0 {
                            space.remove(key).unwrap();
                        }
                        if n % 500 == 0 {
                            std::thread::sleep(Duration::from_millis(2));
                        }
                    }
                });
            }
        });
        db.close().unwrap();
        let (mirror, last) = reader.join().unwrap();
        assert_eq!((last, &mirror), (db.seq(), &content(&db)));
        drop((db, spaces));
        if !in_memory {
            std::fs::remove_dir_all(&dir).unwrap();
        }
    }
}

/// The first subscriber of a database in memory begins its log: what was written between the cut and that was missing there, and it lagged at once.
#[test]
fn who_is_the_first_while_others_write_begins_where_it_is() {
    for _ in 0..30 {
        let db = Database::in_memory();
        let words = db.keyspace("words").unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in (0_u32..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    words.insert("film", n.to_be_bytes()).unwrap();
                }
            });
            while db.seq().0 < 100 {
                std::thread::yield_now();
            }
            let read = db.subscribe(SubscribeOptions::new()).and_then(|mut changes| {
                let first = changes.received().seq.0 + 1;
                let seqs = (0..100).map(|_| Ok(changes.recv()?.position.seq.0));
                Ok((first, seqs.collect::<stillframe::Result<Vec<_>>>()?))
            });
            is_over.store(true, Ordering::Relaxed);
            let (first, seqs) = read.unwrap();
            assert!(seqs.into_iter().eq(first..first + 100));
        });
    }
}

#[test]
fn it_ends_with_the_last_handle() {
    let db = Database::in_memory();
    let words = db.keyspace("words").unwrap();
    let mut changes = db.subscribe(SubscribeOptions::new()).unwrap();
    assert_eq!(changes.try_recv().unwrap(), None);
    assert_eq!(changes.recv_timeout(Duration::from_millis(20)).unwrap(), None);
    words.insert("film", "moves").unwrap();
    assert_eq!(changes.lag(), 1);
    assert_eq!(changes.recv().unwrap().position, db.position());
    let reader = std::thread::spawn(move || changes.recv().map(drop));
    std::thread::sleep(Duration::from_millis(20));
    drop((db, words));
    assert!(matches!(reader.join().unwrap(), Err(Error::Closed)));
    let closed = Database::in_memory();
    closed.close().unwrap();
    let refused = closed.subscribe(SubscribeOptions::new());
    assert!(matches!(refused, Err(Error::Closed)));
}

/// Without a directory the log is kept in memory: only so much of it.
#[test]
fn who_does_not_read_is_told_so_and_memory_stays_bounded() {
    let db = Database::builder().backlog_bytes(64 << 10).in_memory().unwrap();
    let words = db.keyspace("words").unwrap();
    let mut changes = db.subscribe(SubscribeOptions::new()).unwrap();
    let mut reads = db.subscribe(SubscribeOptions::new()).unwrap();
    for n in 0..2_000_u32 {
        words.insert("film", vec![1; 1_000]).unwrap();
        assert_eq!(reads.recv().unwrap().position.seq, db.seq(), "{n}");
    }
    let began = changes.received();
    for _ in 0..2 {
        match changes.recv() {
            Err(Error::Lagged { requested, oldest }) => {
                assert_eq!(requested.0, began.seq.0 + 1);
                let kept = db.seq().0 - oldest.0;
                assert!((30..140).contains(&kept), "{kept} batches are kept");
                let again = db.subscribe(SubscribeOptions::new().after_seq(Seq(oldest.0 - 1)));
                assert_eq!(again.unwrap().recv().unwrap().position.seq, oldest);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(changes.next(), Some(Err(Error::Lagged { .. }))));
    assert!(changes.next().is_none(), "said once, it has ended");
}

/// A later run gives numbers of keyspaces anew: batches of an earlier one went by the names of the present.
#[test]
fn what_is_read_of_an_earlier_run_has_the_names_of_then() {
    let disk = SimDisk::new();
    let open = || Database::builder().disk(disk.clone()).open("/db").unwrap();
    let db = open();
    let begin = db.position();
    db.keyspace("first").unwrap().insert("k", "1").unwrap();
    let middle = db.position();
    db.keyspace("first").unwrap().insert("k", "2").unwrap();
    db.drop_keyspace("first").unwrap();
    db.close().unwrap();
    drop(db);
    // The number of a keyspace that is gone is known only from the log; now from none.
    open().compact_log(SaveOptions::default()).unwrap();
    let db = open();
    db.keyspace("second").unwrap().insert("k", "3").unwrap();
    for position in [begin, middle] {
        let mut changes = db.subscribe(SubscribeOptions::new().after(position)).unwrap();
        let mut names = Vec::new();
        while let Some(batch) = changes.try_recv().unwrap() {
            let puts = batch.changes.iter().filter(|change| change.value().is_some());
            names.extend(puts.map(|change| change.keyspace.to_string()));
        }
        let expected = if position == begin {
            &["first", "first", "second"][..]
        } else {
            &["first", "second"]
        };
        assert_eq!(names, expected);
    }
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let mut files = disk.files();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    files
}

#[test]
fn what_was_written_before_the_log_failed_is_shown_and_then_the_failure() {
    let disk = SimDisk::new();
    let builder = Database::builder().disk(disk.clone()).manual_log().segment_bytes(4 << 10);
    let db = builder.durability(Durability::Memory).open("/db").unwrap();
    let words = db.keyspace("words").unwrap();
    let mut changes = db.subscribe(SubscribeOptions::new()).unwrap();
    let put = |n: u64| words.insert(n.to_be_bytes(), [1; 300]);
    let more = (0..).find(|n| put(*n).is_ok() && segments(&disk).len() > 1).unwrap();
    // The next segment can't be begun: what waits for it never comes into the log.
    disk.inject(DiskFault::error(5).on(CallKind::Write).forever());
    let failed = (more + 1..100).find(|n| put(*n).is_err()).unwrap();
    let shown = std::iter::from_fn(|| changes.try_recv().ok().flatten()).count() as u64;
    assert!((1..failed).contains(&shown), "{shown} of {failed}");
    assert_eq!(changes.lag(), failed - shown);
    for _ in 0..3 {
        assert!(matches!(changes.recv(), Err(Error::LogFailed(_))));
    }
    disk.clear_faults();
    db.recover().unwrap();
    words.insert("c", "3").unwrap();
    // What failed to be written never came into the log.
    assert!(matches!(changes.recv(), Err(Error::Lagged { .. })));
    let mut changes = db.subscribe(SubscribeOptions::new()).unwrap();
    words.insert("d", "4").unwrap();
    assert_eq!(changes.recv().unwrap().changes[0].key().unwrap(), "d");
    // Who had read all goes on.
    db.recover().unwrap();
    words.insert("e", "5").unwrap();
    assert_eq!(changes.recv().unwrap().changes[0].key().unwrap(), "e");
}

#[test]
fn damage_in_the_log_is_told_with_its_place() {
    let disk = SimDisk::new();
    let db = Database::builder().disk(disk.clone()).open("/db").unwrap();
    let words = db.keyspace("words").unwrap();
    let start = db.position();
    words.insert("first", "whole").unwrap();
    words.insert("second", "damaged").unwrap();
    db.persist(Durability::Sync).unwrap();
    let logs = segments(&disk);
    let damage = |path: &Path| {
        let edit = |bytes: &mut Vec<u8>| {
            if let Some(at) = bytes.windows(7).position(|window| window == b"damaged") {
                bytes[at] ^= 1;
            }
        };
        disk.edit(path, edit).unwrap();
    };
    logs.iter().for_each(|path| damage(path));
    let mut changes = db.subscribe(SubscribeOptions::new().after(start)).unwrap_err();
    for _ in 0..2 {
        let Error::Corrupt { file, offset, .. } = &changes else { panic!("{changes}") };
        assert!(logs.contains(file) && *offset > 0);
        changes = db.subscribe(SubscribeOptions::new().after(start)).unwrap_err();
    }
}

#[test]
fn a_replica_has_subscribers_of_its_own() {
    let (db, copy) = (Database::in_memory(), Database::in_memory());
    let words = db.keyspace("words").unwrap();
    replicate(&db, &copy, 0).unwrap();
    let mut changes = copy.subscribe(SubscribeOptions::new()).unwrap();
    words.insert("film", "moves").unwrap();
    assert_eq!(changes.try_recv().unwrap(), None);
    replicate(&db, &copy, 0).unwrap();
    assert_eq!((copy.role(), copy.position()), (Role::Replica, db.position()));
    assert_eq!(changes.recv().unwrap().position, db.position());
}
