//! One segment of the log: made ahead, written by one, read by recovery.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::directory::{Directory, create_temporary};
use super::{DiskFile, DiskMap, read_exact_at, write_all_at};
use crate::clock::os_random;
use crate::error::{Error, Fault, LogFailure};
use crate::format::log::{
    BEGINNING_LEN, Base, Beginning, END_LEN, Frame, Framed, LABEL_LEN, Label, MAX_SEGMENT_LEN,
    RECORD_FRAME_LEN, SEGMENT_HEADER_LEN,
};
use crate::format::record::RecordHeader;
use crate::planted::{Bug, planted};
use crate::position::Seq;

/// A segment that is ready to be begun: zeros behind its label, all of it on the disk.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) path: Arc<Path>,
    pub(crate) label: Label,
    /// Its length, in bytes.
    pub(crate) capacity: u64,
    /// What is written goes through here, where the disk can map files: a store costs no call of the system.
    map: Option<Box<dyn DiskMap>>,
}

/// What a segment has beside its records.
pub(crate) const OVERHEAD: u64 = (SEGMENT_HEADER_LEN + END_LEN) as u64;

impl Spare {
    /// Makes a segment of `capacity` bytes. Nothing of one that fails stays.
    pub(crate) fn make(directory: &Directory, ordinal: u64, capacity: u64) -> crate::Result<Self> {
        Self::make_with(directory, ordinal, capacity, None)
    }

    /// As [`make`](Self::make), with a pause, if there is one, after each small piece: it is told how many bytes there are,
    /// and of how many, and says whether to go on.
    pub(crate) fn make_with(
        directory: &Directory,
        ordinal: u64,
        capacity: u64,
        pause: Option<&dyn Fn(u64, u64) -> bool>,
    ) -> crate::Result<Self> {
        let piece = if pause.is_some() { 64 << 10 } else { 1 << 20 };
        let path = directory.segment(ordinal);
        let salt = os_random().map_err(|source| Error::io("draw a number for", &path, source))?;
        let salt = u64::from_le_bytes(salt);
        let label = Label { dataset: directory.identity().dataset, ordinal, salt };
        let disk = &*directory.disk;
        let (temporary, file) = create_temporary(disk, &path)?;
        let fill = || -> crate::Result<()> {
            let told = |source| Error::io("write", &temporary, source);
            if disk.is_memory() {
                file.set_len(capacity).map_err(told)?;
                write_all_at(&*file, &label.encode(), 0).map_err(told)?;
                let renamed = disk.rename(&temporary, &path);
                return renamed.map_err(|source| Error::io("rename to", &path, source));
            }
            // Zeros are written, not promised: a sync of bytes that have their blocks commits no metadata.
            #[expect(clippy::cast_possible_truncation, reason = "a piece at most")]
            let zeros = vec![0; capacity.min(piece) as usize];
            let mut offset = 0;
            while offset < capacity {
                let len = zeros.len().min(usize::try_from(capacity - offset).unwrap_or(usize::MAX));
                write_all_at(&*file, &zeros[..len], offset).map_err(told)?;
                offset += len as u64;
                if pause.is_some_and(|pause| !pause(offset, capacity)) {
                    return Err(Error::Cancelled);
                }
            }
            write_all_at(&*file, &label.encode(), 0).map_err(told)?;
            if !planted(Bug::RenamedUnsynced) {
                file.sync_all().map_err(|source| Error::io("sync", &temporary, source))?;
            }
            disk.rename(&temporary, &path)
                .map_err(|source| Error::io("rename to", &path, source))?;
            if planted(Bug::NameUnsynced) { Ok(()) } else { directory.sync() }
        };
        if let Err(error) = fill() {
            // It failed for another reason, which is the one that is told.
            let _ = disk.remove(&temporary);
            let _ = disk.remove(&path);
            return Err(error);
        }
        let map = map(directory, &path)?;
        Ok(Self { file: file.into(), path: path.into(), label, capacity, map })
    }

    /// Opens one that an earlier run made ahead.
    pub(crate) fn reopen(directory: &Directory, found: &Found) -> crate::Result<Self> {
        let path = &*found.path;
        let file = directory.disk.open_write(path).map_err(|s| Error::io("open", path, s))?;
        let (file, map) = (file.into(), map(directory, path)?);
        let (label, capacity) = (found.label, found.len);
        Ok(Self { file, path: path.into(), label, capacity, map })
    }
}

/// Maps a segment; `None` where files can't be mapped.
fn map(directory: &Directory, path: &Path) -> crate::Result<Option<Box<dyn DiskMap>>> {
    match directory.disk.map(path) {
        Ok(map) => Ok(Some(map)),
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        // A file system without shared maps.
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(Error::io("map", path, source)),
    }
}

/// How bytes come into a segment. Measured on ext4: a store into its map costs about a tenth of a call that writes,
/// but a sync of a page that was stored to takes twice as long as of one that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the map, if there is one: nobody waits for a sync of it.
    Store,
    /// By a call of the system: a sync follows.
    Call,
}

/// The segment that the log goes on in.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) path: Arc<Path>,
    pub(crate) label: Label,
    capacity: u64,
    map: Option<Box<dyn DiskMap>>,
    /// Where the next frame goes.
    pub(crate) offset: u64,
}

impl Segment {
    /// Begins `spare`.
    pub(crate) fn begin(spare: Spare, beginning: &Beginning) -> Result<Self, LogFailure> {
        let Spare { file, path, label, capacity, map } = spare;
        let offset = SEGMENT_HEADER_LEN as u64;
        let mut begun = Self { file, path, label, capacity, map, offset };
        begun.write(&beginning.encode(), LABEL_LEN as u64, Way::Call)?;
        Ok(begun)
    }

    /// Writes `bytes` at `to`: the end of this process does not undo it.
    pub(crate) fn write(&mut self, bytes: &[u8], to: u64, way: Way) -> Result<(), LogFailure> {
        let written = match (&mut self.map, way) {
            (Some(map), Way::Store) => map.store(bytes, to),
            _ => write_all_at(&*self.file, bytes, to),
        };
        written.map_err(|source| LogFailure::new("write", &self.path, source))
    }

    /// Nothing is written to it any more: what of it is mapped need not be.
    pub(crate) fn leave(&mut self) {
        self.map = None;
    }

    /// Cuts off what was not used, and syncs. Nothing is written any more.
    pub(crate) fn give_back(&mut self) -> crate::Result<()> {
        // A file must not be shortened under a map of it.
        self.leave();
        let told = |op, source| Error::io(op, &self.path, source);
        self.file.set_len(self.offset).map_err(|source| told("cut", source))?;
        if planted(Bug::CloseUnsynced) {
            return Ok(());
        }
        self.file.sync_all().map_err(|source| told("sync", source))
    }

    /// What may still be written to it, its end left out.
    pub(crate) fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.offset + END_LEN as u64)
    }

    /// Whether the next segment, of which there are `made` of `capacity` bytes, will be whole well before this one is full, for which so many wait.
    pub(crate) fn is_well_before(&self, made: u64, capacity: u64, waiting: u64) -> bool {
        let part = |bytes: u64, of: u64| bytes as f64 / of.max(1) as f64;
        part(made, capacity) > 2.0 * part(self.offset + waiting, self.capacity)
    }
}

/// A segment as found on the disk.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) ordinal: u64,
    pub(crate) label: Label,
    pub(crate) beginning: Begun,
    pub(crate) len: u64,
    /// The file, where that must stay whatever becomes of its name.
    held: Option<Box<dyn DiskFile>>,
}

/// What a segment says of where it begins.
#[derive(Debug, Clone)]
pub(crate) enum Begun {
    /// Made ahead, never begun.
    No,
    Yes(Beginning),
    /// Torn or damaged: which of both, what lies behind it tells.
    Unclear {
        fault: Fault,
    },
}

impl Found {
    /// Reads the head of segment `ordinal` and keeps the file open.
    pub(crate) fn hold(directory: &Directory, ordinal: u64) -> crate::Result<Self> {
        let (found, file) = Self::open(directory, ordinal)?;
        Ok(Self { held: Some(file), ..found })
    }

    /// Reads the head of segment `ordinal`.
    pub(crate) fn read(directory: &Directory, ordinal: u64) -> crate::Result<Self> {
        Ok(Self::open(directory, ordinal)?.0)
    }

    fn open(directory: &Directory, ordinal: u64) -> crate::Result<(Self, Box<dyn DiskFile>)> {
        let path = directory.segment(ordinal);
        let file = directory.disk.open(&path).map_err(|s| Error::io("open", &path, s))?;
        let told = |source| Error::io("read", &path, source);
        let len = file.len().map_err(told)?;
        if len < SEGMENT_HEADER_LEN as u64 {
            let needed = SEGMENT_HEADER_LEN as u64;
            let fault = Fault::Truncated { field: "head of a segment", needed, available: len };
            return Err(Error::corrupt(&path, 0, fault));
        }
        if len > MAX_SEGMENT_LEN {
            let (field, min) = ("length of a segment", SEGMENT_HEADER_LEN as u64);
            let fault = Fault::Range { field, got: len, min, max: MAX_SEGMENT_LEN };
            return Err(Error::corrupt(&path, 0, fault));
        }
        let mut head = [0; SEGMENT_HEADER_LEN];
        read_exact_at(&*file, &mut head, 0).map_err(told)?;
        let label = Label::decode(&head[..LABEL_LEN])
            .map_err(|damage| Error::corrupt(&path, damage.at, damage.fault))?;
        let foreign = |field| Err(Error::corrupt(&path, 0, Fault::Foreign { field }));
        if label.dataset != directory.identity().dataset {
            return foreign("segment of another database");
        }
        if label.ordinal != ordinal {
            return foreign("segment under another's name");
        }
        let beginning = match Beginning::decode(&head[LABEL_LEN..LABEL_LEN + BEGINNING_LEN]) {
            Ok(None) => Begun::No,
            Ok(Some(beginning)) => Begun::Yes(beginning),
            Err(damage) => Begun::Unclear { fault: damage.fault },
        };
        Ok((Self { path, ordinal, label, beginning, len, held: None }, file))
    }

    /// The file, if it is held.
    pub(crate) fn into_file(self) -> Option<Box<dyn DiskFile>> {
        self.held
    }

    /// The segment that this one says it goes on from.
    pub(crate) fn goes_on_from(&self) -> Option<u64> {
        match &self.beginning {
            Begun::Yes(beginning) => beginning.previous.map(|(ordinal, _)| ordinal),
            _ => None,
        }
    }

    /// All its bytes.
    pub(crate) fn bytes(&self, directory: &Directory) -> crate::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.read_into(directory, &mut bytes)?;
        Ok(bytes)
    }

    /// The bytes of a segment that somebody may be writing to, as they were at one moment.
    ///
    /// One writes at a time, each behind the one before. So once anything was seen at some place, all that was written before is
    /// whole, or is the same writer's: what looked torn is read once more, and nothing behind that place counts.
    pub(crate) fn settled_bytes(&self, directory: &Directory) -> crate::Result<Vec<u8>> {
        let mut bytes = self.bytes(directory)?;
        let seen = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        // Where it ends: behind the last whole frame.
        let end = |bytes: &[u8]| {
            let beginning = bytes.get(LABEL_LEN..SEGMENT_HEADER_LEN).unwrap_or_default();
            let Ok(Some(beginning)) = Beginning::decode(beginning) else { return LABEL_LEN };
            let mut frames = Frames::new(bytes, self.label.salt, beginning.base);
            while let Ok(Some(_)) = frames.next() {}
            frames.offset
        };
        let mut whole = end(&bytes);
        if whole < seen {
            self.read_at(directory, &mut bytes[whole..seen], whole as u64)?;
            whole = end(&bytes);
        }
        // A record may well end with zeros.
        bytes.truncate(whole.max(seen).max(SEGMENT_HEADER_LEN));
        Ok(bytes)
    }

    /// Fills `bytes` with all its bytes.
    pub(crate) fn read_into(
        &self,
        directory: &Directory,
        bytes: &mut Vec<u8>,
    ) -> crate::Result<()> {
        let told = |source| Error::io("read", &self.path, source);
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        let more = len.saturating_sub(bytes.len());
        bytes.try_reserve_exact(more).map_err(|_| told(io::ErrorKind::OutOfMemory.into()))?;
        bytes.resize(len, 0);
        self.read_at(directory, bytes, 0)
    }

    fn read_at(&self, directory: &Directory, bytes: &mut [u8], offset: u64) -> crate::Result<()> {
        let told = |op, source| Error::io(op, &self.path, source);
        if let Some(file) = &self.held {
            return read_exact_at(&**file, bytes, offset).map_err(|source| told("read", source));
        }
        let file = directory.disk.open(&self.path).map_err(|source| told("open", source))?;
        read_exact_at(&*file, bytes, offset).map_err(|source| told("read", source))
    }
}

/// What comes next in a segment.
#[derive(Debug)]
pub(crate) enum Item<'a> {
    Record {
        header: RecordHeader,
        body: &'a [u8],
    },
    Mark {
        seq: Seq,
        fingerprint: u64,
    },
    /// It ends here, and the log goes on in the segment of this ordinal.
    End {
        next: u64,
    },
}

/// Walks the frames of a segment, each proven, and that each follows the one before.
pub(crate) struct Frames<'a> {
    bytes: &'a [u8],
    salt: u64,
    /// Where the next frame should be.
    pub(crate) offset: usize,
    pub(crate) base: Base,
    /// How far the log was durable when the last frame was written.
    pub(crate) durable: Seq,
}

impl<'a> Frames<'a> {
    /// `bytes` are those of the whole segment, which goes on from `base`.
    pub(crate) fn new(bytes: &'a [u8], salt: u64, base: Base) -> Self {
        Self { bytes, salt, offset: SEGMENT_HEADER_LEN, base, durable: Seq(0) }
    }

    /// The next frame; `None` where nothing was ever written.
    ///
    /// # Errors
    /// What is wrong with the bytes at [`offset`](Self::offset), which stays there.
    pub(crate) fn next(&mut self) -> Result<Option<Item<'a>>, Fault> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        // Too short for any frame: nothing can have been written here.
        if rest.len() < END_LEN && rest.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let frame = Frame::decode(rest, self.salt, self.offset as u64).map_err(|d| d.fault)?;
        let Some(frame) = frame else { return Ok(None) };
        let item = match frame.framed {
            Framed::Record(header) => {
                header.check_place(self.base.chain, self.base.position.seq).map_err(|d| d.fault)?;
                let start = RECORD_FRAME_LEN;
                let body_len = header.body_len as usize;
                let end = start.saturating_add(body_len);
                let body = rest.get(start..end).ok_or(Fault::Truncated {
                    field: "body of a record",
                    needed: body_len as u64,
                    available: (rest.len() - start) as u64,
                })?;
                let is_trusted = planted(Bug::LongBodyTrusted) && body_len >= 4 << 10;
                if !planted(Bug::RecordUnchecked) && !is_trusted {
                    header.check_body(body).map_err(|damage| damage.fault)?;
                }
                self.base.position.seq = header.seq;
                self.base.time_ms = header.time_ms;
                self.base.chain = header.chain;
                self.offset += body_len;
                Item::Record { header, body }
            }
            Framed::Mark { seq, fingerprint } => Item::Mark { seq, fingerprint },
            Framed::End { next } => Item::End { next },
        };
        self.offset += frame.len();
        self.durable = frame.durable;
        Ok(Some(item))
    }
}

/// The highest Seq that any valid frame from `from` on says was durable, whatever lies between.
pub(crate) fn durable_behind(bytes: &[u8], salt: u64, from: usize) -> Seq {
    let mut durable = Seq(0);
    if planted(Bug::DurableNotSought) {
        return durable;
    }
    let Some(end) = bytes.iter().rposition(|byte| *byte != 0) else { return durable };
    let mut offset = from;
    while offset <= end {
        // A frame starts with a sum that is not 0 and has a kind from 1 to 3.
        let is_possible = bytes.get(offset + 4).is_some_and(|kind| (1..=3).contains(kind));
        if is_possible && let Ok(Some(frame)) = Frame::decode(&bytes[offset..], salt, offset as u64)
        {
            durable = durable.max(frame.durable);
            offset += frame.len();
        } else {
            offset += 1;
        }
    }
    durable
}
