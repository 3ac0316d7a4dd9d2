//! A process followed by `ptrace`: killed at one of its system calls, or after so many of its instructions.
//!
//! Everything here is called by the thread that started the process: the system lets no other follow it.

use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::writer::NOT_TRACED;

/// Where a process is to be killed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// At the nth stop at a system call that has to do with files, before and after it counted apart.
    File(u64),
    /// At the nth stop at any.
    Any(u64),
    /// At the nth stop at this one.
    Call(&'static str, u64),
}

/// Where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fell {
    pub(crate) call: &'static str,
    /// Before the system did anything.
    pub(crate) before: bool,
}

/// How following ended.
pub(crate) enum Followed {
    Killed(Fell),
    /// It had not come to its target in time, and was killed wherever it was.
    Late,
    /// It ended by itself, which is none of its business.
    Ended(String),
    /// This system lets nobody follow.
    Denied,
}

/// System calls that have to do with files, and others worth a name.
#[cfg(target_arch = "x86_64")]
const CALLS: &[(i64, &str, bool)] = &[
    (libc::SYS_read, "read", true),
    (libc::SYS_write, "write", true),
    (libc::SYS_openat, "openat", true),
    (libc::SYS_close, "close", true),
    (libc::SYS_statx, "statx", true),
    (libc::SYS_fstat, "fstat", true),
    (libc::SYS_lseek, "lseek", true),
    (libc::SYS_mmap, "mmap", true),
    (libc::SYS_munmap, "munmap", true),
    (libc::SYS_madvise, "madvise", true),
    (libc::SYS_pread64, "pread64", true),
    (libc::SYS_pwrite64, "pwrite64", true),
    (libc::SYS_fsync, "fsync", true),
    (libc::SYS_fdatasync, "fdatasync", true),
    (libc::SYS_ftruncate, "ftruncate", true),
    (libc::SYS_rename, "rename", true),
    (libc::SYS_unlink, "unlink", true),
    (libc::SYS_mkdir, "mkdir", true),
    (libc::SYS_flock, "flock", true),
    (libc::SYS_fcntl, "fcntl", true),
    (libc::SYS_getdents64, "getdents64", true),
    (libc::SYS_readlink, "readlink", true),
    (libc::SYS_futex, "futex", false),
    (libc::SYS_clone3, "clone3", false),
    (libc::SYS_mprotect, "mprotect", false),
    (libc::SYS_brk, "brk", false),
    (libc::SYS_sched_yield, "sched_yield", false),
    (libc::SYS_clock_nanosleep, "clock_nanosleep", false),
    (libc::SYS_getrandom, "getrandom", false),
];

/// Those that a campaign aims at, one after the other: what changes files, and the locks and names beside it.
pub(crate) const AIMED: &[&str] = &[
    "pwrite64",
    "fdatasync",
    "fsync",
    "rename",
    "unlink",
    "ftruncate",
    "mmap",
    "munmap",
    "madvise",
    "openat",
    "close",
    "flock",
    "mkdir",
    "pread64",
    "getdents64",
];

/// The system call that a stopped process is at, and whether it is before it.
#[cfg(target_arch = "x86_64")]
fn call_of(pid: Pid) -> nix::Result<(&'static str, bool, bool)> {
    let registers = ptrace::getregs(pid)?;
    let known = CALLS.iter().find(|(number, ..)| *number as u64 == registers.orig_rax);
    let (_, name, is_file) = known.copied().unwrap_or((0, "other", false));
    // What is to be the answer says until then that there is no such call.
    Ok((name, is_file, registers.rax == (-i64::from(libc::ENOSYS)) as u64))
}

#[cfg(not(target_arch = "x86_64"))]
fn call_of(_: Pid) -> nix::Result<(&'static str, bool, bool)> {
    Err(Errno::ENOSYS)
}

const IS_KNOWN: bool = cfg!(target_arch = "x86_64");

fn wait_any() -> nix::Result<WaitStatus> {
    loop {
        // Children of this thread alone: others may follow processes of their own.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        match waitpid(Pid::from_raw(-1), Some(flags)) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// One that has gone meanwhile need not go on.
fn if_there(done: nix::Result<()>) -> Result<()> {
    match done {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).context("letting the process go on"),
    }
}

/// Starts the process and stops it before it does anything; `None` if it may not be followed.
fn start(command: &mut Command, options: Options) -> Result<Option<(Child, Pid)>> {
    if !IS_KNOWN {
        return Ok(None);
    }
    let mut child = command.spawn().context("starting the writer")?;
    let leader = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
    match waitpid(leader, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
        WaitStatus::Exited(_, NOT_TRACED) => return Ok(None),
        other => {
            let _ = child.kill();
            bail!("the process to be followed began with {other:?}");
        }
    }
    if let Err(error) = ptrace::setoptions(leader, options | Options::PTRACE_O_EXITKILL) {
        child.kill()?;
        return Err(error).context("following the writer");
    }
    Ok(Some((child, leader)))
}

/// Kills the process and waits until all of it is gone.
fn end(leader: Pid) -> Result<()> {
    if_there(kill(leader, Signal::SIGKILL))?;
    loop {
        match wait_any() {
            Ok(WaitStatus::Signaled(pid, ..) | WaitStatus::Exited(pid, _)) if pid == leader => {
                return Ok(());
            }
            Ok(_) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error).context("waiting for the end of the writer"),
        }
    }
}

/// Starts the process and kills it at `target`; counts, by name, the stops at calls on the way there.
pub(crate) fn kill_at_call(
    command: &mut Command,
    target: Target,
    most: Duration,
    seen: &mut BTreeMap<&'static str, u64>,
) -> Result<Followed> {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
    let Some((_child, leader)) = start(command, options)? else { return Ok(Followed::Denied) };
    let began = Instant::now();
    if_there(ptrace::syscall(leader, None))?;
    let (mut files, mut all) = (0, 0);
    let mut here: BTreeMap<&'static str, u64> = BTreeMap::new();
    loop {
        let stopped = match wait_any().context("following the writer")? {
            WaitStatus::PtraceSyscall(pid) => {
                let Ok((call, is_file, before)) = call_of(pid) else { continue };
                all += 1;
                files += u64::from(is_file);
                let count = here.entry(call).or_default();
                *count += 1;
                let is_target = match target {
                    Target::File(n) => is_file && files == n,
                    Target::Any(n) => all == n,
                    Target::Call(name, n) => call == name && *count == n,
                };
                if is_target {
                    end(leader)?;
                    merge(seen, &here);
                    return Ok(Followed::Killed(Fell { call, before }));
                }
                (pid, None)
            }
            WaitStatus::PtraceEvent(pid, ..) => (pid, None),
            // A new thread begins with that.
            WaitStatus::Stopped(pid, Signal::SIGSTOP) => (pid, None),
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            WaitStatus::Exited(pid, code) if pid == leader => {
                return Ok(Followed::Ended(format!("it ended with code {code}")));
            }
            WaitStatus::Signaled(pid, signal, _) if pid == leader => {
                return Ok(Followed::Ended(format!("it ended by {signal}")));
            }
            _ => continue,
        };
        if began.elapsed() > most {
            end(leader)?;
            merge(seen, &here);
            return Ok(Followed::Late);
        }
        if_there(ptrace::syscall(stopped.0, stopped.1))?;
    }
}

fn merge(seen: &mut BTreeMap<&'static str, u64>, here: &BTreeMap<&'static str, u64>) {
    for (call, count) in here {
        let known = seen.entry(call).or_default();
        *known = (*known).max(*count);
    }
}

/// How single steps ended.
pub(crate) enum Stepped {
    /// Killed after so many instructions as were asked for.
    Killed,
    /// The operation took so many instructions; it was killed behind its end.
    Whole(u64),
    Ended(String),
    Denied,
}

/// Starts the process, lets it run to the operation it tells of, and kills it `steps` instructions later. Calls `look` as the
/// operation begins and after each instruction of it.
pub(crate) fn kill_at_step(
    command: &mut Command,
    steps: u64,
    mut look: impl FnMut(u64) -> Result<()>,
) -> Result<Stepped> {
    let Some((_child, leader)) = start(command, Options::empty())? else {
        return Ok(Stepped::Denied);
    };
    if_there(ptrace::cont(leader, None))?;
    loop {
        match waitpid(leader, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Stopped(_, Signal::SIGUSR1) => break,
            WaitStatus::Stopped(_, signal) => if_there(ptrace::cont(leader, signal))?,
            other => return Ok(Stepped::Ended(format!("{other:?} before its last operation"))),
        }
    }
    let (mut done, mut signal) = (0, None);
    look(0)?;
    while done < steps {
        if_there(ptrace::step(leader, signal.take()))?;
        match waitpid(leader, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                done += 1;
                look(done)?;
            }
            WaitStatus::Stopped(_, Signal::SIGUSR2) => {
                end(leader)?;
                return Ok(Stepped::Whole(done));
            }
            // From somebody else.
            WaitStatus::Stopped(_, other) => signal = Some(other),
            other => return Ok(Stepped::Ended(format!("{other:?} at step {done}"))),
        }
    }
    end(leader)?;
    Ok(Stepped::Killed)
}
