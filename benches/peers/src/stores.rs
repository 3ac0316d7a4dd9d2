//! The contenders, each opened and used as its documentation says for the level.
//!
//! All have what they come with beside the level, this engine too: caches, threads of their own, saves and compactions.

use std::path::Path;

use anyhow::Result;
use fjall::PersistMode;
use heed::types::Bytes;
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions};
use redb::TableDefinition;
use stillframe::Durability;
use surrealmx::{AolMode, DatabaseOptions, FsyncMode, PersistenceOptions};

use crate::bare::Bare;
use crate::records::{Key, Keys, value};
use crate::{Contender, Kind, RECORDS, Store};

/// What a commit waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// It is on the disk.
    Sync,
    /// The operating system has it; or, where a store has no such level, the store has.
    Os,
}

/// All contenders of a table, filled, in directories of `folder`; `env` is LMDB's.
pub(crate) fn all<'a>(folder: &Path, level: Level, env: &'a Env) -> Result<Vec<Contender<'a>>> {
    let fjall = Fjall::open(&folder.join("fjall"), level)?;
    let redb = Redb::open(&folder.join("redb"), level)?;
    let lmdb = Lmdb::of(env)?;
    let surrealmx = Surrealmx::open(&folder.join("surrealmx"), level)?;
    let ours = |name: &str, level| Ours::open(&folder.join(name), level);
    Ok(match level {
        Level::Sync => vec![
            new("stillframe", "Sync", Kind::Ours, ours("stillframe", Durability::Sync)?),
            new("redb", "Immediate", Kind::Peer, redb),
            new("fjall", "batch at SyncData", Kind::Peer, fjall),
            new("LMDB", "default flags", Kind::Peer, lmdb),
            new("surrealmx", "SynchronousOnCommit, EveryAppend", Kind::Peer, surrealmx),
            new("bare append", "fdatasync", Kind::Bare, Bare::append(&folder.join("append"))?),
            new("bare overwrite", "fdatasync", Kind::Bare, Bare::overwrite(&folder.join("over"))?),
        ],
        Level::Os => vec![
            new("stillframe", "Os", Kind::Ours, ours("stillframe", Durability::Os)?),
            new("fjall", "Buffer", Kind::Peer, fjall),
            new("LMDB", "MDB_NOSYNC", Kind::Peer, lmdb),
            new("surrealmx", "SynchronousOnCommit, Never", Kind::Peer, surrealmx),
            new("redb", "None: lost with the process", Kind::Peer, redb),
            new(
                "stillframe in memory",
                "Memory: the last milliseconds are lost with the process",
                Kind::Beside,
                ours("memory", Durability::Memory)?,
            ),
        ],
    })
}

fn new<'a>(
    name: &'static str,
    how: &'static str,
    kind: Kind,
    store: impl Store + 'a,
) -> Contender<'a> {
    Contender { name, how, kind, store: Box::new(store) }
}

/// The records that every store holds before the clock starts.
fn records() -> impl Iterator<Item = (Key, Vec<u8>)> {
    (0..RECORDS).map(|number| (Keys::Demo.key(number), value(number)))
}

struct Ours {
    db: stillframe::Database,
    data: stillframe::Keyspace,
}

impl Ours {
    fn open(path: &Path, level: Durability) -> Result<Self> {
        let db = stillframe::Database::builder().durability(level).open(path)?;
        let data = db.keyspace("data")?;
        let mut batch = db.batch();
        for (key, value) in records() {
            batch.insert(&data, key, value);
        }
        batch.commit()?;
        db.persist(Durability::Sync)?;
        Ok(Self { db, data })
    }
}

impl Store for Ours {
    fn commit(&self, key: &Key, value: &[u8]) -> Result<()> {
        Ok(self.data.insert(key, value)?)
    }

    fn settle(&self) -> Result<()> {
        self.db.persist(Durability::Sync)?;
        Ok(())
    }
}

struct Redb {
    db: redb::Database,
    level: redb::Durability,
}

impl Redb {
    const TABLE: TableDefinition<'static, &'static [u8], &'static [u8]> =
        TableDefinition::new("data");

    fn open(path: &Path, level: Level) -> Result<Self> {
        let db = redb::Database::create(path)?;
        let transaction = db.begin_write()?;
        {
            let mut table = transaction.open_table(Self::TABLE)?;
            for (key, value) in records() {
                table.insert(&key[..], &value[..])?;
            }
        }
        transaction.commit()?;
        let level = match level {
            Level::Sync => redb::Durability::Immediate,
            Level::Os => redb::Durability::None,
        };
        Ok(Self { db, level })
    }
}

impl Store for Redb {
    fn commit(&self, key: &Key, value: &[u8]) -> Result<()> {
        let mut transaction = self.db.begin_write()?;
        transaction.set_durability(self.level)?;
        transaction.open_table(Self::TABLE)?.insert(&key[..], value)?;
        Ok(transaction.commit()?)
    }

    fn settle(&self) -> Result<()> {
        // What was committed without is written, and its pages are freed, by the next that is durable.
        Ok(self.db.begin_write()?.commit()?)
    }
}

struct Fjall {
    db: fjall::Database,
    data: fjall::Keyspace,
    level: Level,
}

impl Fjall {
    fn open(path: &Path, level: Level) -> Result<Self> {
        let db = fjall::Database::builder(path).open()?;
        let data = db.keyspace("data", fjall::KeyspaceCreateOptions::default)?;
        for (key, value) in records() {
            data.insert(key, value)?;
        }
        db.persist(PersistMode::SyncAll)?;
        Ok(Self { db, data, level })
    }
}

impl Store for Fjall {
    fn commit(&self, key: &Key, value: &[u8]) -> Result<()> {
        match self.level {
            Level::Sync => {
                let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
                batch.insert(&self.data, key, value);
                Ok(batch.commit()?)
            }
            // Handed to the operating system by each insert, unless one asks for less.
            Level::Os => Ok(self.data.insert(key, value)?),
        }
    }

    fn settle(&self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }
}

/// LMDB, in an environment that its user holds.
pub(crate) struct Lmdb<'a> {
    env: &'a Env,
    data: heed::Database<'a, Bytes, Bytes>,
}

impl Lmdb<'_> {
    /// Opens the environment in the directory `path`, which is made.
    #[expect(
        unsafe_code,
        reason = "LMDB maps its file, and no call of it can be safe against who changes that file"
    )]
    pub(crate) fn environment(path: &Path, level: Level) -> Result<Env> {
        std::fs::create_dir(path)?;
        let mut options = EnvOpenOptions::new();
        options.map_size(1 << 30);
        if level == Level::Os {
            // SAFETY: the flag costs durability alone; what a power cut leaves is never read again.
            unsafe { options.flags(EnvFlags::NO_SYNC) };
        }
        // SAFETY: the directory was made just now for this run; nobody else knows its files, nobody shortens them.
        Ok(unsafe { options.open(path) }?)
    }
}

impl<'a> Lmdb<'a> {
    fn of(env: &'a Env) -> Result<Self> {
        let open = env.create_databases_and_commit(env.write_txn()?, |names, transaction| {
            let data = names.create_database::<Bytes, Bytes>(transaction, None);
            data.map(CommitOrAbort::<_, ()>::Commit)
        });
        let data = open?.unwrap_commit();
        let mut transaction = env.write_txn()?;
        for (key, value) in records() {
            data.put(&mut transaction, &key, &value)?;
        }
        transaction.commit()?;
        env.force_sync()?;
        Ok(Self { env, data })
    }
}

impl Store for Lmdb<'_> {
    fn commit(&self, key: &Key, value: &[u8]) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        self.data.put(&mut transaction, key, value)?;
        Ok(transaction.commit()?)
    }

    fn settle(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }
}

struct Surrealmx(surrealmx::Database);

impl Surrealmx {
    fn open(path: &Path, level: Level) -> Result<Self> {
        let fsync = match level {
            Level::Sync => FsyncMode::EveryAppend,
            Level::Os => FsyncMode::Never,
        };
        let persistence = PersistenceOptions::new(path)
            .with_aol_mode(AolMode::SynchronousOnCommit)
            .with_fsync_mode(fsync);
        let options = DatabaseOptions::default();
        let db = surrealmx::Database::new_with_persistence(options, persistence)?;
        let mut transaction = db.transaction(true);
        for (key, value) in records() {
            transaction.set(&key[..], value)?;
        }
        transaction.commit()?;
        Ok(Self(db))
    }
}

impl Store for Surrealmx {
    fn commit(&self, key: &Key, value: &[u8]) -> Result<()> {
        Ok(self.0.set(&key[..], value)?)
    }
}
