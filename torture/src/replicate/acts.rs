//! What happens to the nodes, at random.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use stillframe::simulation::{Clock, KeptState, SessionEnd, SimDisk};
use stillframe::{
    AckLevel, Database, Durability, Position, SaveOptions, Seq, SyncRefused, WriteOptions,
};

use super::network::{Link, Side};
use super::oracle::{self, Content, Entry};
use super::world::{Outcome, World};

const NAMES: [&str; 4] = ["cast", "films", "makers", "years"];
/// Keys: those of the last quarter expire and are never removed one by one.
pub(super) const KEYS: u64 = 120;

/// What one batch does, in order.
enum Op {
    Put(usize, Vec<u8>, Entry),
    Remove(usize, Vec<u8>),
    Range(usize, Vec<u8>, Vec<u8>),
}

/// Names of keyspaces, and keys in them: all that is stored, past its time or not.
fn stored(db: &Database) -> Result<BTreeSet<(String, Vec<u8>)>, String> {
    let mut pass = db.pass().map_err(told)?;
    let (mut names, mut found) = (HashMap::new(), Vec::new());
    while let Some(entries) = pass.step().map_err(told)? {
        for (id, key, value, _) in entries {
            match (id, value.first_chunk()) {
                (0, Some(id)) => {
                    names.insert(
                        u32::from_le_bytes(*id),
                        String::from_utf8_lossy(&key).into_owned(),
                    );
                }
                _ => found.push((id, key)),
            }
        }
    }
    let named = |(id, key)| names.get(&id).map(|name: &String| (name.clone(), key));
    Ok(found.into_iter().filter_map(named).collect())
}

fn told(error: stillframe::Error) -> String {
    error.to_string()
}

impl World {
    pub(crate) fn some(&mut self, count: usize) -> usize {
        self.random.below(count as u64) as usize
    }

    /// One of the nodes for which this holds.
    pub(crate) fn pick(&mut self, is_fit: impl Fn(&Self, usize) -> bool) -> Option<usize> {
        let fit: Vec<_> = (0..self.nodes.len()).filter(|n| is_fit(self, *n)).collect();
        if fit.is_empty() { None } else { Some(fit[self.some(fit.len())]) }
    }

    pub(crate) fn act(&mut self) -> Outcome {
        match self.random.below(100) {
            0..38 => self.write(),
            38..44 => self.persist(),
            44..50 => self.compact(),
            50..56 => self.cut_link(),
            56..60 => self.partition(),
            60..66 => self.follow_another(),
            66..69 => self.kill(),
            69..74 => self.power_cut(),
            74..76 => self.promote(),
            76..78 => self.hand_over(),
            78..80 => self.demote(),
            80..82 => self.copy(),
            82..84 => self.image(),
            84..87 => self.hold_still(),
            87..89 => self.reclaim(),
            89..90 => self.noise(),
            90..92 => self.drop_kept(),
            92..94 => self.allow_discard(),
            94..97 => self.count_acks(),
            97..99 => self.sweep(),
            _ => self.check_all(),
        }
    }

    fn writable(&self, n: usize) -> bool {
        self.nodes[n].is_meant && self.nodes[n].is_primary()
    }

    pub(crate) fn write(&mut self) -> Outcome {
        let Some(n) = self.pick(Self::writable) else { return Ok(()) };
        let count = 1 + self.random.below(12);
        for _ in 0..count {
            self.write_one(n)?;
        }
        let at = self.nodes[n].position;
        self.say(format!("node {n} writes {count}, up to {at}"));
        Ok(())
    }

    /// A primary removes what is past its time, a leaf at a time.
    fn sweep(&mut self) -> Outcome {
        let Some(n) = self.pick(Self::writable) else { return Ok(()) };
        let db = self.nodes[n].db.clone().ok_or("it is down")?;
        let (mut leaves, mut all) = (0, 0);
        while leaves < 50
            && let Some(removed) = db.sweep_leaf()
        {
            leaves += 1;
            all += removed;
            let stored = stored(&db)?;
            let mut content = (*self.nodes[n].fact.content).clone();
            let now = self.nodes[n].clock.now_ms();
            let is_there =
                |(name, key): &(&str, Vec<u8>)| stored.contains(&(name.to_string(), key.clone()));
            for (gone, (_, at)) in content.entries.iter().filter(|(key, _)| !is_there(key)) {
                if *at == 0 || *at > now {
                    return Err(format!(
                        "node {n} removed {gone:?}, which stays until {at}, at {now}"
                    ));
                }
            }
            let before = content.entries.len();
            content.entries.retain(|key, _| is_there(key));
            if before - content.entries.len() != removed as usize {
                return Err(format!(
                    "node {n} says it removed {removed}, had {before}, has {}",
                    content.entries.len()
                ));
            }
            self.committed(n, &db, content, false)?;
        }
        if all > 0 {
            self.say(format!("node {n} sweeps {all} from {leaves} leaves"));
        }
        Ok(())
    }

    fn write_one(&mut self, n: usize) -> Outcome {
        let db = self.nodes[n].db.clone().ok_or("it is down")?;
        let name = self.some(NAMES.len());
        if self.random.one_in(60) {
            let mut content = (*self.nodes[n].fact.content).clone();
            content.keyspaces.remove(NAMES[name]);
            content.entries.retain(|(of, _), _| *of != NAMES[name]);
            db.drop_keyspace(NAMES[name]).map_err(told)?;
            return self.committed(n, &db, content, false);
        }
        let others = self.random.one_in(4);
        let ops: Vec<_> = match others {
            true => (0..2 + self.random.below(20)).map(|_| self.op()).collect(),
            false => vec![self.op()],
        };
        let of = |op: &Op| match op {
            Op::Put(of, ..) | Op::Remove(of, _) | Op::Range(of, ..) => *of,
        };
        let mut keyspaces = [const { None }; NAMES.len()];
        for at in ops.iter().map(of) {
            let before = &self.nodes[n].fact.content;
            let is_there = before.keyspaces.contains(NAMES[at]);
            keyspaces[at] = Some(db.keyspace(NAMES[at]).map_err(told)?);
            if !is_there {
                let mut content = (*self.nodes[n].fact.content).clone();
                content.keyspaces.insert(NAMES[at]);
                self.committed(n, &db, content, false)?;
            }
        }
        let mut content = (*self.nodes[n].fact.content).clone();
        ops.iter().for_each(|op| op.apply(&mut content));
        if let [op] = &ops[..]
            && self.random.one_in(2)
        {
            let keyspace = keyspaces[of(op)].as_ref().expect("it was just opened");
            match op {
                Op::Put(_, key, (value, expire_at)) => {
                    let options = WriteOptions::new().expire_at(*expire_at);
                    keyspace.insert_with(key, value, options).map_err(told)?;
                }
                Op::Remove(_, key) => drop(keyspace.remove(key).map_err(told)?),
                Op::Range(_, low, high) if low.is_empty() && high.is_empty() => {
                    keyspace.clear().map_err(told)?;
                }
                Op::Range(_, low, high) => {
                    keyspace.delete_range(&low[..]..&high[..]).map_err(told)?;
                }
            }
            return self.committed(n, &db, content, false);
        }
        let mut batch = db.batch();
        for op in &ops {
            let keyspace = keyspaces[of(op)].as_ref().expect("it was just opened");
            match op {
                Op::Put(_, key, (value, expire_at)) => {
                    let options = WriteOptions::new().expire_at(*expire_at);
                    batch.insert_with(keyspace, key, value, options);
                }
                Op::Remove(_, key) => batch.remove(keyspace, key),
                Op::Range(_, low, high) if low.is_empty() && high.is_empty() => {
                    batch.delete_range::<&[u8]>(keyspace, ..);
                }
                Op::Range(_, low, high) => batch.delete_range(keyspace, &low[..]..&high[..]),
            }
        }
        batch.commit().map_err(told)?;
        self.committed(n, &db, content, false)
    }

    fn op(&mut self) -> Op {
        let keyspace = self.some(NAMES.len());
        let number = self.random.below(KEYS);
        let key = format!("{number:03}").into_bytes();
        let expires = number >= KEYS * 3 / 4;
        match self.random.below(20) {
            0 if self.random.one_in(4) => Op::Range(keyspace, Vec::new(), Vec::new()),
            0 | 1 => {
                let high = format!("{:03}", number + self.random.below(20));
                Op::Range(keyspace, key, high.into_bytes())
            }
            2..6 if !expires => Op::Remove(keyspace, key),
            _ => {
                let len = match self.random.below(400) {
                    0 => 70_000 + self.random.below(130_000),
                    1..10 => 2_000 + self.random.below(4_000),
                    _ => self.random.below(60),
                };
                let value = vec![self.random.below(3) as u8; len as usize];
                let day = 1_800_000_000_000 + self.now;
                let expire_at = if expires { day + self.random.below(8_000) } else { 0 };
                Op::Put(keyspace, key, (value.into(), expire_at))
            }
        }
    }

    /// A batch was committed, or nothing was to be.
    pub(crate) fn committed(
        &mut self,
        n: usize,
        db: &Database,
        content: Content,
        is_promotion: bool,
    ) -> Outcome {
        let node = &self.nodes[n];
        let (before, writer) = (node.position, node.writer);
        self.truth
            .committed(db, writer, before, &Rc::new(content), is_promotion)
            .map_err(|what| format!("node {n}: {what}"))?;
        self.check(n)
    }

    /// A planned change of the primary, from where the replica has everything: it writes once it hears of it, now or much later.
    fn hand_over(&mut self) -> Outcome {
        let is_fit = |w: &Self, n: usize| {
            let has_all = |link: &Link| {
                let (source, replica) = (&w.nodes[n], &w.nodes[link.replica]);
                let has_it = replica.disk.is_none() || replica.durable_seq() >= source.position.seq;
                let is_streaming = link.replica_end.as_ref().is_some_and(SessionEnd::is_streaming);
                link.source == n && is_streaming && replica.position == source.position && has_it
            };
            w.writable(n) && w.nodes[n].position.seq > Seq(0) && w.links.iter().any(has_all)
        };
        let Some(n) = self.pick(is_fit) else { return Ok(()) };
        let at = self.nodes[n].position;
        let has_it = |link: &&Link| {
            let replica = &self.nodes[link.replica];
            let has_it = replica.disk.is_none() || replica.durable_seq() >= at.seq;
            link.source == n && replica.position == at && has_it
        };
        let Some(to) = self.links.iter().find(has_it).map(|link| link.replica) else {
            return Ok(());
        };
        let db = self.nodes[n].db.clone().ok_or("it is down")?;
        let other = self.nodes[to].db.as_ref().ok_or("it is down")?.node();
        let content = Rc::clone(&self.nodes[n].fact.content);
        db.hand_to(other).map_err(told)?;
        self.truth
            .committed(&db, self.nodes[to].writer, at, &content, true)
            .map_err(|what| format!("node {n} hands over: {what}"))?;
        self.nodes[n].is_meant = false;
        self.counts.handed += 1;
        self.say(format!("node {n} hands over to {to}, at {}", db.position()));
        self.check(n)
    }

    fn persist(&mut self) -> Outcome {
        let Some(n) = self.pick(|w, n| w.is_up(n) && w.nodes[n].disk.is_some()) else {
            return Ok(());
        };
        let level = if self.random.one_in(4) { Durability::Os } else { Durability::Sync };
        let db = self.nodes[n].db.clone().ok_or("it is down")?;
        let seq = db.persist(level).map_err(told)?;
        if seq != db.seq() {
            return Err(format!("node {n} persists {seq} of {}", db.seq()));
        }
        self.note_durable(n);
        self.say(format!("node {n} persists {seq}, {level:?}"));
        Ok(())
    }

    fn compact(&mut self) -> Outcome {
        let Some(n) = self.pick(|w, n| w.is_up(n) && w.nodes[n].disk.is_some()) else {
            return Ok(());
        };
        let db = self.nodes[n].db.clone().ok_or("it is down")?;
        db.compact_log(SaveOptions::default().threads(1)).map_err(told)?;
        self.note_durable(n);
        self.say(format!("node {n} saves {}", db.position()));
        Ok(())
    }

    fn cut_link(&mut self) -> Outcome {
        if self.links.is_empty() {
            return Ok(());
        }
        let at = self.some(self.links.len());
        let (now, link) = (self.now, &mut self.links[at]);
        // Each side learns of it, or one, or none.
        let told = self.random.below(4);
        let total = link.to_source.bytes().max(link.to_replica.bytes()) as u64 + 1;
        let kept = self.random.below(total) as usize;
        link.to_source.cut(now, kept, told & 1 == 0);
        link.to_replica.cut(now, kept, told & 2 == 0);
        let what = format!("the link of node {} to {} is cut", link.replica, link.source);
        self.say(what);
        Ok(())
    }

    fn partition(&mut self) -> Outcome {
        let (a, b) = (self.some(self.nodes.len()), self.some(self.nodes.len()));
        let until = self.now + [100, 300, 600, 2_000][self.some(4)];
        self.blocked.insert((a, b), until);
        if self.random.one_in(2) {
            self.blocked.insert((b, a), until);
        }
        self.say(format!("nothing comes from node {a} to {b} until {until}"));
        Ok(())
    }

    fn follow_another(&mut self) -> Outcome {
        let Some(n) = self.pick(|w, n| w.nodes[n].follows.is_some()) else { return Ok(()) };
        let source = self.some(self.nodes.len());
        if source == n {
            return Ok(());
        }
        let keeps = self.random.one_in(2);
        self.say(format!("node {n} is to follow {source}"));
        self.follow(n, source, keeps)
    }

    /// The process is killed: what it wrote is there.
    fn kill(&mut self) -> Outcome {
        let Some(n) = self.pick(|w, n| w.is_up(n) && w.nodes[n].disk.is_some()) else {
            return Ok(());
        };
        let written = self.nodes[n].db.as_ref().and_then(|db| db.stats().log);
        let written = written.map_or(Seq(0), |log| log.written);
        let at_least = oracle::at(&self.nodes[n].fact.line, written);
        // What its destructor writes goes to the disk that is left behind.
        let disk = self.nodes[n].disk.as_ref().map(SimDisk::fork);
        self.say(format!("node {n} is killed"));
        self.down(n, disk, at_least)
    }

    fn power_cut(&mut self) -> Outcome {
        let Some(n) = self.pick(Self::is_up) else { return Ok(()) };
        let at_least = oracle::at(&self.nodes[n].fact.line, self.nodes[n].durable_seq());
        let seed = self.random.next_u64();
        let disk = self.nodes[n].disk.as_ref().map(|disk| disk.crash(seed));
        self.say(format!("node {n} loses power"));
        self.down(n, disk, at_least)
    }

    fn down(&mut self, n: usize, disk: Option<SimDisk>, at_least: Position) -> Outcome {
        let is_told = self.random.one_in(2);
        self.nodes[n].disk = disk;
        drop(self.stop(n, is_told));
        if self.random.one_in(2) {
            self.nodes[n].stills.clear();
        }
        if self.random.one_in(2) {
            return self.start(n, at_least);
        }
        // Looked at now: later it is opened as it is.
        self.start(n, at_least)?;
        let disk = self.nodes[n].disk.as_ref().map(SimDisk::fork);
        self.nodes[n].disk = disk;
        drop(self.stop(n, is_told));
        let node = &mut self.nodes[n];
        node.restart_at = self.now + 20 + self.random.below(1_000);
        Ok(())
    }

    fn promote(&mut self) -> Outcome {
        let is_fit = |w: &Self, n: usize| w.is_up(n) && w.nodes[n].position.seq > Seq(0);
        let Some(n) = self.pick(is_fit) else { return Ok(()) };
        self.promote_node(n)?;
        if self.random.one_in(3) {
            return Ok(());
        }
        for other in 0..self.nodes.len() {
            if other != n && (self.nodes[other].is_meant || self.random.one_in(2)) {
                self.say(format!("node {other} is to follow {n}"));
                self.follow(other, n, false)?;
            }
        }
        Ok(())
    }

    pub(crate) fn promote_node(&mut self, n: usize) -> Outcome {
        let db = self.nodes[n].db.clone().ok_or("it is down")?;
        self.leave_source(n, true);
        let was_primary = self.nodes[n].is_primary();
        let position = db.promote().map_err(told)?;
        let node = &mut self.nodes[n];
        (node.follows, node.is_meant) = (None, true);
        (node.kept, node.may_discard) = (KeptState::default(), false);
        node.last_refusal = None;
        let content = (*node.fact.content).clone();
        self.say(format!("node {n} is promoted, at {position}"));
        if was_primary {
            return Ok(());
        }
        self.committed(n, &db, content, true)
    }

    fn demote(&mut self) -> Outcome {
        let Some(n) = self.pick(|w, n| w.nodes[n].is_meant) else { return Ok(()) };
        let Some(other) = self.pick(|w, other| other != n && w.nodes[other].is_meant) else {
            return Ok(());
        };
        self.say(format!("node {n} is to follow {other} and takes no writes"));
        self.follow(n, other, false)
    }

    /// A backup of one node takes the place of another.
    fn copy(&mut self) -> Outcome {
        let is_fit = |w: &Self, n: usize| w.nodes[n].disk.is_some() && !w.nodes[n].is_meant;
        let Some(to) = self.pick(is_fit) else { return Ok(()) };
        let from = self.pick(|w, n| n != to && w.is_up(n) && w.nodes[n].disk.is_some());
        let Some(from) = from else { return Ok(()) };
        let db = self.nodes[from].db.clone().ok_or("it is down")?;
        self.next_copy += 1;
        let dir = format!("/copy{}", self.next_copy);
        let report = db.backup(&dir).map_err(told)?;
        if report.position != db.position() {
            return Err(format!("a backup holds {}, not {}", report.position, db.position()));
        }
        drop(self.stop(to, true));
        let disk = self.nodes[from].disk.as_ref().map(SimDisk::fork);
        let node = &mut self.nodes[to];
        (node.disk, node.dir, node.has_spool) = (disk, dir, true);
        node.writer = self.next_writer;
        self.next_writer += 1;
        // It goes on from where that was: it may have been ahead.
        self.has_restored = true;
        self.say(format!("node {to} becomes a backup of {from}, at {}", report.position));
        self.start(to, report.position)
    }

    /// A node's disk is copied, or put back.
    fn image(&mut self) -> Outcome {
        let Some(n) = self.pick(|w, n| w.nodes[n].disk.is_some()) else { return Ok(()) };
        let node = &mut self.nodes[n];
        if node.images.is_empty() || self.random.one_in(2) {
            let disk = node.disk.as_ref().map(SimDisk::fork);
            node.images.extend(disk.map(|disk| (disk, node.dir.clone(), node.writer)));
            self.say(format!("the disk of node {n} is copied"));
            return Ok(());
        }
        let (disk, dir, writer) = node.images[0].clone();
        drop(self.stop(n, true));
        let node = &mut self.nodes[n];
        (node.disk, node.dir, node.has_spool) = (Some(disk.fork()), dir, true);
        node.writer = writer;
        self.has_restored = true;
        self.say(format!("node {n} gets a disk back that it had"));
        self.start(n, Position::default())
    }

    fn hold_still(&mut self) -> Outcome {
        let Some(n) = self.pick(|_, _| true) else { return Ok(()) };
        let node = &mut self.nodes[n];
        if node.stills.len() >= 3 || (self.random.one_in(2) && !node.stills.is_empty()) {
            let at = self.random.below(node.stills.len() as u64) as usize;
            let (still, fact) = node.stills.remove(at);
            still.check().map_err(told)?;
            return oracle::check_content(&still, &fact.content);
        }
        if let Some(db) = &node.db {
            node.stills.push((db.snapshot().map_err(told)?, node.fact.clone()));
        }
        Ok(())
    }

    fn reclaim(&mut self) -> Outcome {
        self.nodes.iter().filter_map(|node| node.db.as_ref()).for_each(Database::reclaim);
        Ok(())
    }

    fn noise(&mut self) -> Outcome {
        if self.links.is_empty() {
            return Ok(());
        }
        let at = self.some(self.links.len());
        let side = if self.random.one_in(4) { Side::Source } else { Side::Replica };
        let link = &mut self.links[at];
        let (replica, source) = (link.replica, link.source);
        if link.inbound(side).flip(&mut self.random) {
            self.say(format!("a bit changes between node {replica} and {source}"));
        }
        Ok(())
    }

    fn drop_kept(&mut self) -> Outcome {
        let Some(n) = self.pick(|w, n| w.nodes[n].follows.is_some()) else { return Ok(()) };
        let source = self.nodes[n].follows.ok_or("it follows")?;
        self.say(format!("node {n} begins to follow {source} again"));
        self.follow(n, source, false)
    }

    fn allow_discard(&mut self) -> Outcome {
        let is_fit = |w: &Self, n: usize| {
            let refusal = w.nodes[n].last_refusal;
            refusal.is_some_and(|why| !matches!(why, SyncRefused::Cycle)) && w.is_up(n)
        };
        let Some(n) = self.pick(is_fit) else { return Ok(()) };
        self.leave_source(n, true);
        let node = &mut self.nodes[n];
        node.kept.allow_discard();
        (node.may_discard, node.last_refusal) = (true, None);
        self.say(format!("node {n} may give up what it has"));
        Ok(())
    }

    /// How many replicas a primary takes to have a batch, have or had it.
    pub(crate) fn count_acks(&mut self) -> Outcome {
        let Some(n) = self.pick(|w, n| w.nodes[n].is_primary()) else { return Ok(()) };
        let (db, durable) = (self.nodes[n].db.clone(), self.nodes[n].durable_seq());
        let db = db.ok_or("it is down")?;
        let line = std::rc::Rc::clone(&self.nodes[n].fact.line);
        let last = self.nodes[n].position;
        for (level, position) in [
            (AckLevel::Applied, last),
            (AckLevel::Durable, last),
            (AckLevel::Durable, oracle::at(&line, durable.min(last.seq))),
        ] {
            if position.seq == Seq(0) {
                continue;
            }
            let acked = db.acked(position, level);
            let held = self.holders(n, position, level == AckLevel::Durable);
            // A replica that has gone is counted until its link is known to be lost.
            let sessions: std::collections::BTreeSet<_> =
                self.links.iter().filter(|l| l.source == n).map(|l| l.replica).collect();
            let doubles = self.links.iter().filter(|l| l.source == n).count() - sessions.len();
            if acked > held + doubles {
                return Err(format!(
                    "node {n} takes {acked} replicas to have {position} {level:?}, {held} ever had"
                ));
            }
            if level == AckLevel::Durable && acked > 0 && position.seq <= durable {
                self.counts.promises += 1;
                if self.promises.last() != Some(&position) {
                    self.promises.push(position);
                }
            }
        }
        Ok(())
    }

    /// Everything, by reading it.
    pub(crate) fn check_all(&mut self) -> Outcome {
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(db) = &node.db else { continue };
            db.check();
            let still = db.snapshot().map_err(told)?;
            oracle::check_content(&still, &node.fact.content)
                .and_then(|()| self.truth.check_stamps(db, &node.fact))
                .map_err(|what| format!("node {n}: {what}"))?;
        }
        Ok(())
    }
}

impl Op {
    fn apply(&self, content: &mut Content) {
        match self {
            Op::Put(of, key, entry) => {
                content.entries.insert((NAMES[*of], key.clone()), entry.clone());
            }
            Op::Remove(of, key) => drop(content.entries.remove(&(NAMES[*of], key.clone()))),
            Op::Range(of, low, high) => {
                let is_all = low.is_empty() && high.is_empty();
                content.entries.retain(|(name, key), _| {
                    *name != NAMES[*of] || !(is_all || (low <= key && key < high))
                });
            }
        }
    }
}
