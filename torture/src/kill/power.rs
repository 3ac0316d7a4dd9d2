//! Power cuts of a whole file system: ext4 on a loop device on a disk of our own ([`device`](super::device)). At
//! random moments, with the writer at full rate, it is laid out what a power cut would leave on that disk: what was flushed, and any part
//! of what was not. Each such disk is mounted, which replays the file system's journal, and the database in it is recovered.
//!
//! Mounts are made in a namespace of the thread's own: when the process ends, in whatever way, they are gone.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use stillframe::simulation::Random;

use super::device::{Cut, Device, Piece};
use super::oracle::{self, End, PATIENCE, State};
use super::progress::{Progress, WRITERS};
use super::{Amount, MOST_VIOLATIONS, Report};

const DISK_BYTES: u64 = 32 << 20;
/// So many power cuts of one run of the writer.
const CUTS: u64 = 5;
/// So many runs go on from what a power cut left, before one begins with an empty disk.
const RUNS: u64 = 4;
/// What a disk writes in one piece: file systems rely on so much.
const BLOCK: usize = 4096;
/// What older disks do.
const SECTOR: usize = 512;

pub(super) fn run(folder: &Path, seed: u64, amount: Amount, report: &mut Report) -> Result<()> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(why) = prepare(folder) {
                report.skipped.insert("power cuts", format!("{why:#}"));
                return Ok(());
            }
            campaign(folder, seed, amount, report)
        });
        match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whether there is all that it takes.
fn prepare(folder: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a namespace for mounts")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("mounts of our own")?;
    Mounted::new(empty_disk(folder)?, folder, "first").map(drop)
}

fn call(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("starting {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A disk with an empty file system.
fn empty_disk(folder: &Path) -> Result<Vec<u8>> {
    let path = folder.join("empty.img");
    std::fs::File::create(&path)?.set_len(DISK_BYTES)?;
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-b", "4096", "-J", "size=4", "-m", "0"]);
    call(mkfs.args(["-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"]).arg(&path))?;
    let bytes = std::fs::read(&path)?;
    std::fs::remove_file(&path)?;
    Ok(bytes)
}

/// A disk whose file system is mounted. Unmounted when dropped.
struct Mounted {
    // In this order: what lies upon the device goes first.
    at: MountPoint,
    device: Device,
}

struct MountPoint(PathBuf);

impl Mounted {
    fn new(bytes: Vec<u8>, folder: &Path, name: &str) -> Result<Self> {
        let at = folder.join(name);
        std::fs::create_dir_all(&at)?;
        let device = Device::attach(bytes, &folder.join(format!("{name}.disk")))?;
        // The loop device goes with its mount.
        call(Command::new("mount").args(["-t", "ext4", "-o", "loop"]).arg(&device.path).arg(&at))?;
        Ok(Self { at: MountPoint(at), device })
    }

    fn directory(&self) -> PathBuf {
        self.at.0.join("db")
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        for _ in 0..50 {
            match umount2(&self.0, MntFlags::empty()) {
                // Somebody who was killed just now may still be on his way out.
                Err(nix::errno::Errno::EBUSY) => thread::sleep(Duration::from_millis(20)),
                _ => return,
            }
        }
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A writer that is to be killed, whatever happens.
struct Writing(std::process::Child);

impl Drop for Writing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn campaign(folder: &Path, seed: u64, amount: Amount, report: &mut Report) -> Result<()> {
    let mut random = Random::new(seed ^ 3);
    let empty = empty_disk(folder)?;
    let progress = folder.join("power.progress");
    let (mut disk, mut state) = (empty.clone(), State::default());
    let (mut run, mut line) = (0, 0);
    while !amount.is_over(report.cuts) && report.violations.len() < MOST_VIOLATIONS {
        if run == RUNS {
            (disk, state) = (empty.clone(), State::default());
            (run, line) = (0, line + 1);
        }
        run += 1;
        // Several writers at a time that wait for the disk.
        let seed = seed.wrapping_add((2 * line + 1) << 32);
        let mounted =
            Mounted::new(disk, folder, "disk").context("mounting what a power cut left")?;
        Progress::create(&progress, &state.done)?;
        let child = super::writer_command(&mounted.directory(), &progress, seed)?.spawn();
        let mut child = Writing(child.context("starting the writer")?);
        // The first cut of some runs comes while it recovers.
        if random.one_in(4) {
            thread::sleep(Duration::from_micros(random.below(30_000)));
        } else {
            let began = Instant::now();
            while began.elapsed() < PATIENCE && !Progress::read(&progress)?.is_writing() {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let mut next = None;
        for _ in 0..CUTS {
            thread::sleep(Duration::from_micros(random.below(150_000)));
            if let Some(status) = child.0.try_wait()? {
                report.violations.push(format!("power: the writer ended: {status}"));
                break;
            }
            // What was told before the cut must be there. What is begun by then is looked at after it.
            let (earlier, cut) = cut_now(&mounted.device, &progress, &mut random)?;
            let told = Progress::read(&progress)?.with_acknowledged_of(&earlier);
            // It need not go on before the next cut.
            let pid = Pid::from_raw(i32::try_from(child.0.id())?);
            kill(pid, Signal::SIGSTOP)?;
            report.cuts += 1;
            *report.power.entry("flushes before a cut").or_default() += cut.flushes;
            *report.power.entry("writes not flushed").or_default() += cut.pending.len() as u64;
            let mut images = images(&cut, &mut random);
            images.dedup_by(|later, earlier| later.1 == earlier.1);
            for (name, image) in images {
                report.images += 1;
                let place = format!("power cut {}, {name}", report.cuts);
                match recover(&image, folder, seed, &state, &told) {
                    Ok(Some(found)) => {
                        *report.power.entry(name).or_default() += 1;
                        next = Some((image, found));
                    }
                    // Half a block of the file system's own: it refuses what it can't prove.
                    Ok(None) if name == TORN => {
                        *report.power.entry("refused by ext4").or_default() += 1;
                    }
                    Ok(None) => bail!("{place}: ext4 does not mount it"),
                    Err(what) => {
                        let kept =
                            folder.join(format!("violation-{}.img", report.violations.len()));
                        std::fs::write(&kept, &image)?;
                        report.violations.push(format!("{place}: {what}"));
                    }
                }
            }
            if amount.is_over(report.cuts) {
                break;
            }
            kill(pid, Signal::SIGCONT)?;
        }
        drop(child);
        drop(mounted);
        // The machine comes back with what the power cut left.
        match next {
            Some((image, found)) => {
                let done = |state: &State| state.done.iter().sum::<u64>();
                report.operations += done(&found) - done(&state);
                (disk, state) = (image, found);
            }
            None => (disk, state, run) = (empty.clone(), State::default(), 0),
        }
    }
    Ok(())
}

/// Cuts the power at once or, mostly, as a flush is asked for: then most is pending.
fn cut_now(device: &Device, progress: &Path, random: &mut Random) -> Result<(Progress, Cut)> {
    if !random.one_in(4) {
        let (tell, earlier) = mpsc::channel();
        let told = progress.to_owned();
        let read = move || drop(tell.send(Progress::read(&told)));
        let cut = device.cut_at_flush(random.below(4) as usize, read);
        if let Ok(cut) = cut.recv_timeout(Duration::from_millis(100)) {
            return Ok((earlier.recv()??, cut));
        }
    }
    let earlier = Progress::read(progress)?;
    Ok((earlier, device.cut()))
}

const TORN: &str = "sectors drawn";

/// What a power cut may leave.
fn images(cut: &Cut, random: &mut Random) -> Vec<(&'static str, Vec<u8>)> {
    let whole = |(offset, bytes): &Piece, image: &mut Vec<u8>| {
        image[*offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    // Pieces of each write, each there or not.
    let drawn = |piece: &Piece, unit: usize, random: &mut Random, image: &mut Vec<u8>| {
        for (at, bytes) in piece.1.chunks(unit).enumerate() {
            if random.one_in(2) {
                let offset = piece.0 + at * unit;
                image[offset..offset + bytes.len()].copy_from_slice(bytes);
            }
        }
    };
    let mut all = vec![("what was flushed", cut.flushed.clone())];
    if cut.pending.is_empty() {
        return all;
    }
    let mut image = cut.flushed.clone();
    cut.pending.iter().for_each(|piece| whole(piece, &mut image));
    all.push(("all that was written", image));
    let mut image = cut.flushed.clone();
    let until = random.below(cut.pending.len() as u64) as usize;
    cut.pending[..until].iter().for_each(|piece| whole(piece, &mut image));
    drawn(&cut.pending[until], BLOCK, random, &mut image);
    all.push(("a beginning of it", image));
    let mut image = cut.flushed.clone();
    for piece in &cut.pending {
        drawn(piece, BLOCK, random, &mut image);
    }
    all.push(("blocks drawn", image));
    let mut image = cut.flushed.clone();
    for piece in &cut.pending {
        drawn(piece, SECTOR, random, &mut image);
    }
    all.push((TORN, image));
    all
}

/// Mounts a disk, and recovers what is in it; `None` if it does not mount.
fn recover(
    image: &[u8],
    folder: &Path,
    seed: u64,
    before: &State,
    told: &Progress,
) -> Result<Option<State>, String> {
    let Ok(mounted) = Mounted::new(image.to_vec(), folder, "recovered") else { return Ok(None) };
    let directory = mounted.directory();
    if !directory.exists() {
        // Its name is durable once it is open.
        let is_needed = told.is_writing() || before.done != [0; WRITERS];
        return if is_needed {
            Err("the directory is gone".into())
        } else {
            Ok(Some(before.clone()))
        };
    }
    oracle::check(&directory, seed, before, told, End::PowerCut).map(Some)
}
