//! What a database is to others: primary or replica; the log that it keeps for replicas where there is no directory; states that come
//! from elsewhere.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use crate::commit::{Commit, Holder, Role, Room, Standing};
use crate::database::Engine;
use crate::follow::Following;
use crate::format::log::Fence;
use crate::install::Arrival;
use crate::notices;
use crate::options::BacklogSize;
use crate::planted::{Bug, planted};
use crate::position::{HistoryId, Position};
use crate::storage::directory::Directory;
use crate::storage::log::{Log, Start};
use crate::storage::memory_disk::MemoryDisk;
use crate::storage::save::{SaveHandle, SaveOptions};
use crate::storage::segment::Spare;
use crate::storage::source;
use crate::tree::Pass;
use crate::{Error, Result};

/// Who does something for a database on threads of its own, which end when that does.
pub(crate) trait Attendant: Send + Sync {
    /// The database is closed, or has been dropped: nothing more is to be done, and nobody waits for that.
    fn end(&self);
}

/// Makes room in a log that lives in memory.
struct Backlog {
    log: Arc<Log>,
    size: BacklogSize,
}

impl Room for Backlog {
    fn make_room(&self, commit: &Commit, len: u64) -> Result<()> {
        self.log.make_room(commit, len)?;
        let leased = self.log.leased_after();
        let (_, mut bytes) = self.log.size();
        for closed in self.log.closed() {
            let is_read = leased.is_none_or(|leased| closed.last <= leased);
            if bytes <= if is_read { self.size.usual } else { self.size.most } {
                break;
            }
            bytes -= closed.bytes;
            self.log.prune(closed.ordinal)?;
        }
        Ok(())
    }
}

impl Engine {
    /// Whether it takes writes.
    pub(crate) fn is_primary(&self) -> bool {
        self.tree().commit.role() == Role::Primary
    }

    /// What it has in common with its copies and replicas, whatever they hold.
    pub(crate) fn dataset(&self) -> [u8; 16] {
        match self.log() {
            Some(log) => log.directory.identity().dataset,
            None => *self.own_dataset.lock(),
        }
    }

    /// The log that replicas are sent: that of the directory, or one in memory, which begins when it is first asked for.
    pub(crate) fn source_log(&self) -> Result<&Arc<Log>> {
        if let Some(log) = self.log().or_else(|| self.backlog.get()) {
            return Ok(log);
        }
        let directory = Directory::claim(Arc::new(MemoryDisk::default()), Path::new("/"))?;
        directory.go_on_anew(self.dataset());
        let (mut directory, size) = (Some(directory), self.backlog_size);
        self.tree().commit.attach_log_now(|base| {
            let start = Start { base, previous: None, closed: Vec::new(), next_ordinal: 1 };
            let directory = directory.take().expect("made once");
            let log = Arc::new(Log::new(directory, size.segment, start, None));
            let backlog = self.backlog.get_or_init(|| Arc::clone(&log));
            Arc::new(Backlog { log: Arc::clone(backlog), size })
        });
        Ok(self.backlog.get().expect("it was just made"))
    }

    /// Bytes of the log that are kept for who has not read them.
    pub(crate) fn log_for_replicas(&self) -> u64 {
        self.saver.as_ref().map_or(self.backlog_size.most, |saver| saver.kept_for_replicas())
    }

    /// See [`Database::promote`].
    pub(crate) fn promote(&self) -> Result<Position> {
        let (tree, log) = (self.tree(), self.log());
        if tree.commit.role() == Role::Primary {
            return Ok(tree.commit.position());
        }
        self.stop_following();
        // Nothing is put in place between its last batch and the beginning of its term.
        let placing = self.placing.lock();
        // Who takes something back in the name of another sees it before the next message.
        tree.commit.set_role(Role::Replica);
        let history = HistoryId::own()?;
        let now_ms = tree.clock().now_ms();
        let fence = log.as_ref().map(|log| log.directory.fence()).transpose()?.flatten();
        let heard = self.hub.term(&[]).max(fence.map_or(0, |fence| fence.term));
        let position = tree.commit.with_room(|| tree.commit.begin_term(history, heard, now_ms))?;
        let position = position.expect("it has its body");
        if let Some(log) = log {
            let synced = log.sync(&tree.commit, position.seq);
            synced.map_err(|failure| Error::NotDurable { position, failure })?;
        }
        if let (Some(backlog), true) = (self.backlog.get(), planted(Bug::PromoteDropsLog)) {
            backlog.restart(&tree.commit, None)?;
        }
        if let Some(log) = log {
            // Part of a state that is not fetched any more. If it stays it takes room, no more: who follows looks whether it is of use.
            let _ = log.directory.remove(&log.directory.spool());
        }
        // Whom it followed is not between its replicas and their primary any more.
        self.hub.set_path(Vec::new());
        tree.commit.set_role(Role::Primary);
        drop(placing);
        notices::info(|| format!("promoted, begins with {position}"));
        // Whom it was told to follow meanwhile.
        self.stop_following();
        Ok(position)
    }

    /// Takes no more writes: another was promoted, in a term of this rank. What it has written since, it keeps.
    ///
    /// # Errors
    /// [`Error::Io`]: it takes none all the same, up to when it is opened again.
    pub(crate) fn fence(&self, term: u64, history: HistoryId) -> Result<()> {
        self.tree().commit.set_role(Role::Replica);
        notices::warn(|| format!("takes no more writes: another was promoted, in term {term}"));
        self.hub.heard_term(term);
        match self.log() {
            Some(log) if !planted(Bug::FenceForgotten) => {
                log.directory.set_fence(Fence { term, history })
            }
            _ => Ok(()),
        }
    }

    /// Begins a history of `writer`'s, another node's, which alone writes from then on. Writers wait at the gate. It is shown to replicas once it is on
    /// the disk, and not before: else both might write.
    pub(crate) fn hand_to(&self, writer: [u8; 16]) -> Result<Position> {
        let (tree, log) = (self.tree(), self.source_log()?);
        if let Some(log) = self.log() {
            // What it was copied from gives no right to write any more.
            log.directory.follows()?;
        }
        let term = self.hub.term(&tree.commit.standing().lineage).saturating_add(1);
        let (history, now_ms) = (HistoryId::handed()?, tree.clock().now_ms());
        log.show_up_to(Some(tree.commit.position().seq));
        let handed = tree.commit.with_room(|| tree.commit.hand_to(writer, history, term, now_ms));
        let position = match handed {
            Ok(position) => position.expect("it has its body"),
            Err(error) => {
                log.show_up_to(None);
                return Err(error);
            }
        };
        // If it can't be synced it is never shown: nobody writes, until somebody is promoted.
        log.sync(&tree.commit, position.seq)
            .map_err(|failure| Error::NotDurable { position, failure })?;
        log.show_up_to(None);
        self.signals.committed();
        Ok(position)
    }

    /// Saves what is about to be given up, beside the database: a snapshot file in the folder `aside`, named by its history and Seq. Of those there are
    /// the newest stay. A database in memory has no place for it.
    pub(crate) fn set_aside(&self, own: &Standing) -> Result<()> {
        let Some(log) = self.log() else { return Ok(()) };
        let directory = &log.directory;
        let name = format!("{}-{:020}.snap", own.position.history, own.position.seq);
        let path = directory.aside(&name)?;
        let pass = Pass::take(self.tree(), Holder::Save)?;
        let cut = source::Cut::of(pass.cut());
        let disk = Arc::clone(&directory.disk);
        SaveHandle::start(disk, &path, pass, cut, &SaveOptions::default())?.wait()?;
        Ok(())
    }

    /// Whom it follows.
    pub(crate) fn following(&self) -> Option<Arc<Following>> {
        self.following.lock().clone()
    }

    /// From now on that is followed; returns whom it followed.
    pub(crate) fn set_following(&self, following: &Arc<Following>) -> Option<Arc<Following>> {
        self.following.lock().replace(Arc::clone(following))
    }

    /// Follows nobody any more.
    pub(crate) fn stop_following(&self) {
        let following = self.following.lock().take();
        if let Some(following) = following
            && !planted(Bug::OldSourceStays)
        {
            following.stop();
        }
    }

    /// Who is to be told when the database ends.
    pub(crate) fn attend(&self, attendant: Weak<dyn Attendant>) {
        let mut attendants = self.attendants.lock();
        attendants.retain(|attendant| attendant.strong_count() > 0);
        attendants.push(attendant);
    }

    pub(crate) fn dismiss(&self) {
        let attendants = std::mem::take(&mut *self.attendants.lock());
        attendants.iter().filter_map(Weak::upgrade).for_each(|attendant| attendant.end());
    }

    /// Puts a state that came from a node of `dataset` in the place of the present, on the disk as well if there is one.
    pub(crate) fn put_in_place(&self, arrival: Arrival, dataset: [u8; 16]) -> Result<()> {
        let _one = self.placing.lock();
        if self.is_primary() {
            return Err(Error::NotFollowing);
        }
        self.installs.fetch_add(1, Ordering::AcqRel);
        if dataset != self.dataset() {
            // Nobody's terms there are those here.
            self.hub.forget_term();
        }
        let put = self.put_in_place_alone(arrival, dataset);
        self.installs.fetch_add(1, Ordering::AcqRel);
        put
    }

    /// How often another state has taken the place of the present; `None` while one does.
    pub(crate) fn installs(&self) -> Option<u64> {
        let installs = self.installs.load(Ordering::Acquire);
        installs.is_multiple_of(2).then_some(installs)
    }

    fn put_in_place_alone(&self, arrival: Arrival, dataset: [u8; 16]) -> Result<()> {
        let Some(saver) = &self.saver else {
            self.install(arrival)?;
            *self.own_dataset.lock() = dataset;
            if let Some(backlog) = self.backlog.get() {
                let directory = &backlog.directory;
                directory.go_on_anew(dataset);
                if planted(Bug::BacklogKept) {
                    return Ok(());
                }
                // What is in them does not lead to the new state.
                let (before, _) = backlog.ordinals();
                let ordinal = backlog.take_ordinal();
                let spare = Spare::make(directory, ordinal, self.backlog_size.segment)?;
                backlog.restart(&self.tree().commit, Some(spare))?;
                for segment in before {
                    directory.remove(&directory.segment(segment))?;
                }
            }
            return Ok(());
        };
        saver.begin_anew(dataset, || self.install(arrival)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim::{CallKind, DiskFault, SimDisk};
    use crate::{Builder, Database, Durability};

    fn on(disk: &SimDisk) -> Builder {
        Database::builder().disk(disk.clone()).manual_log().durability(Durability::Memory)
    }

    /// What was fetched in part goes with a promotion. That it can't be removed once made a promotion fail that had stopped following.
    #[test]
    fn a_promotion_leaves_no_spool_and_does_not_fail_for_one() {
        for stays in [false, true] {
            let disk = SimDisk::new();
            let db = on(&disk).open("/db").unwrap();
            let engine = db.engine();
            engine.tree().commit.set_role(Role::Replica);
            let spool = engine.log().unwrap().directory.spool();
            drop(crate::storage::Disk::create_new(&disk, &spool).unwrap());
            if stays {
                disk.inject(DiskFault::error(5).on(CallKind::Remove).forever());
            }
            db.promote().unwrap();
            assert_eq!(db.role(), Role::Primary);
            assert_eq!(crate::storage::Disk::open(&disk, &spool).is_ok(), stays);
        }
    }
}
