//! What must be there: of each writer's operations a beginning that holds all that was acknowledged at a level that covers what happened,
//! all of them together one beginning of the order of commits, every value right.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use stillframe::{Database, Durability, RecoveryMode};

use super::progress::{Progress, WRITERS};
use super::writer::{Kind, ONE, Operation, SHARED, TWO, builder, effects, named, value};

/// The number of the operation that put each key of a writer.
type Content = BTreeMap<(&'static str, u8), u64>;

/// What the end of a process may not undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Kill,
    PowerCut,
}

impl End {
    fn spares(self, level: Durability) -> bool {
        match self {
            End::Kill => level != Durability::Memory,
            End::PowerCut => level == Durability::Sync,
        }
    }
}

/// What a directory is known to hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    /// The last operation of each writer.
    pub(crate) done: [u64; WRITERS],
    content: [Content; WRITERS],
}

/// Everything in a database.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    seq: u64,
    fingerprint: u64,
    entries: Vec<(String, Vec<u8>, Vec<u8>)>,
}

impl Found {
    fn of(db: &Database) -> Result<Self, stillframe::Error> {
        let still = db.snapshot()?;
        let mut entries = Vec::new();
        for name in still.keyspaces()? {
            for entry in still.keyspace(&name)?.range::<&[u8]>(..) {
                let (key, value) = entry?;
                entries.push((name.clone(), key.to_vec(), value.to_vec()));
            }
        }
        Ok(Self { seq: still.seq().0, fingerprint: still.fingerprint(), entries })
    }
}

/// Recovers `directory`, after a run that began with `before` and told `progress`, and says what is there.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(
    directory: &Path,
    seed: u64,
    before: &State,
    progress: &Progress,
    end: End,
) -> Result<State, String> {
    let db = builder(seed).open(directory).map_err(|error| format!("it does not open: {error}"))?;
    let found = Found::of(&db).map_err(|error| format!("it can't be read: {error}"))?;
    db.close().map_err(|error| format!("it does not close: {error}"))?;
    drop(db);
    let again = builder(seed).recovery(RecoveryMode::Strict).manual_log().open(directory);
    let again = again.map_err(|error| format!("it does not open a second time: {error}"))?;
    let second = Found::of(&again).map_err(|error| error.to_string())?;
    if second != found {
        return Err(format!(
            "batch {} with sum {:016x} is found, then {} with {:016x}",
            found.seq, found.fingerprint, second.seq, second.fingerprint
        ));
    }
    drop(again);
    judge(&found, seed, before, progress, end)
}

fn judge(
    found: &Found,
    seed: u64,
    before: &State,
    progress: &Progress,
    end: End,
) -> Result<State, String> {
    let mut content: [Content; WRITERS] = Default::default();
    let mut shared = None;
    for (name, key, bytes) in &found.entries {
        let (writer, n) =
            named(bytes).ok_or_else(|| format!("{name}: {key:?} has no value of ours"))?;
        if *bytes != value(seed, writer, n) {
            return Err(format!(
                "{name}: {key:?} has another value than operation {n} of writer {writer} gave it"
            ));
        }
        let name = [ONE, TWO, SHARED].into_iter().find(|known| known == name);
        let name = name.ok_or_else(|| format!("a keyspace nobody made: {key:?}"))?;
        if name == SHARED {
            shared = Some((writer, n));
        } else if key.len() != 2 || usize::from(key[0]) != writer {
            return Err(format!("{name}: {key:?} has a value of writer {writer}"));
        } else {
            content[writer].insert((name, key[1]), n);
        }
    }
    let mut state = before.clone();
    let mut last_shared = None;
    for (writer, content) in content.into_iter().enumerate() {
        // Each operation leaves its number.
        let done = content.values().copied().max().unwrap_or(0);
        let begun = progress.begun(writer);
        let told = |what: String| format!("writer {writer}: {what}");
        if done > begun {
            return Err(told(format!("operation {done} is there, {begun} was the last begun")));
        }
        let is_spared = |n: &u64| end.spares(Operation::of(seed, writer, *n).level);
        let first = before.done[writer] + 1;
        let least = (first..=progress.acknowledged(writer)).rev().find(is_spared);
        let least = least.unwrap_or(before.done[writer]);
        if done < least {
            return Err(told(format!(
                "operation {done} is the last there, {least} was acknowledged"
            )));
        }
        let expected = &mut state.content[writer];
        for n in first..=done {
            let kind = Operation::of(seed, writer, n).kind;
            if let Kind::Batch { shared: true, .. } = kind
                && let Some((_, Some(seq))) = progress.place(writer, n)
            {
                last_shared = last_shared.max(Some((seq, writer, n)));
            }
            apply(expected, &kind, n);
        }
        state.done[writer] = done;
        if *expected != content {
            let differs = |(key, n): &(&(&str, u8), &u64)| expected.get(*key) != Some(*n);
            let found = content.iter().find(differs);
            let missing = expected.iter().find(|(key, _)| !content.contains_key(*key));
            return Err(told(format!(
                "what is there is not the state after operation {done}: {found:?} is not to be, {missing:?} is missing"
            )));
        }
        // All writers together are one beginning of the order.
        if let Some((before, _)) = progress.place(writer, done)
            && before >= found.seq
        {
            return Err(told(format!(
                "operation {done} came after batch {before}; the log ends with {}",
                found.seq
            )));
        }
        if let Some((_, Some(last))) = progress.place(writer, done + 1)
            && last <= found.seq
        {
            return Err(told(format!(
                "operation {} was batch {last} or earlier; the log ends with {} and it is missing",
                done + 1,
                found.seq
            )));
        }
    }
    if found.seq < progress.saved() {
        return Err(format!("batch {} is the last, {} was durable", found.seq, progress.saved()));
    }
    if let (Some((writer, n)), Some((seq, last_writer, last_n))) = (shared, last_shared)
        && let Some((_, Some(shown))) = progress.place(writer, n)
        && shown < seq
    {
        return Err(format!(
            "the shared key is operation {n} of writer {writer}; {last_n} of {last_writer} came later"
        ));
    }
    if let (None, Some((_, writer, n))) = (shared, last_shared) {
        return Err(format!("the shared key is missing; operation {n} of writer {writer} put it"));
    }
    Ok(state)
}

fn apply(content: &mut Content, kind: &Kind, n: u64) {
    let (mut puts, mut removed) = (Vec::new(), Vec::new());
    let name = |name: &str| if name == ONE { ONE } else { TWO };
    effects(
        kind,
        |keyspace, key| puts.push((name(keyspace), key)),
        |keyspace, low, high| {
            removed.extend((low..high).map(|key| (name(keyspace), key)));
        },
    );
    for key in &removed {
        content.remove(key);
    }
    content.extend(puts.into_iter().map(|key| (key, n)));
}

/// Copies the files of a directory, and no folder in it.
pub(crate) fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// How long a process may take to begin writing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
