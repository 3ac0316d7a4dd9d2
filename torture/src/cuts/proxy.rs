//! A proxy between a replica and its source that does to a connection what networks do: ends it after so many bytes, stops one direction,
//! resets it, changes a bit, passes single bytes on. It knows nothing of what the bytes mean.
//!
//! One thread, one `poll`: what happens to a connection happens at a byte that was chosen before.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    ToSource,
    ToReplica,
}

pub(crate) const WAYS: [Way; 2] = [Way::ToSource, Way::ToReplica];

/// What becomes of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// It ends after exactly so many bytes of one way; all of them arrive.
    Cut { way: Way, after: usize },
    /// As when a machine goes down: what is under way may be lost.
    Reset { way: Way, after: usize },
    /// After so many bytes that way, nothing passes any more: that way alone, or both.
    Stall { way: Way, after: usize, both: bool },
    /// One bit is another.
    Flip { way: Way, at: usize, bit: u8 },
    /// Every byte by itself.
    OneByte,
}

/// Where somebody listens.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What came of the connections since the last plan.
#[derive(Debug, Default, Clone)]
pub(crate) struct Told {
    /// The first fault has happened.
    pub(crate) struck: bool,
    /// What passed in the first of them, either way, if that was to be kept.
    pub(crate) bytes: [Vec<u8>; 2],
}

#[derive(Default)]
struct Plan {
    faults: VecDeque<Fault>,
    keeps: bool,
    told: Told,
    /// Connections of an earlier plan are not told of.
    number: u64,
    /// All there are end now.
    ends_all: bool,
    is_over: bool,
}

/// See the file's head. It ends when dropped.
pub(crate) struct Proxy {
    place: Place,
    plan: Arc<Mutex<Plan>>,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Proxy {
    /// Passes on what comes to `source`, by the same means; a Unix socket gets the name `path`.
    pub(crate) fn new(source: Place, path: &Path) -> io::Result<Self> {
        let (door, place) = match &source {
            Place::Tcp(_) => {
                let door = TcpListener::bind("127.0.0.1:0")?;
                door.set_nonblocking(true)?;
                let place = Place::Tcp(door.local_addr()?);
                (Door::Tcp(door), place)
            }
            Place::Unix(_) => {
                let door = UnixListener::bind(path)?;
                door.set_nonblocking(true)?;
                (Door::Unix(door), Place::Unix(path.to_owned()))
            }
        };
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let plan = Arc::new(Mutex::new(Plan::default()));
        let shared = Arc::clone(&plan);
        let run = move || Running { door, source, woken, plan: shared, connections: vec![] }.run();
        let thread = Some(thread::Builder::new().name("proxy".into()).spawn(run)?);
        Ok(Self { place, plan, wake, thread })
    }

    /// Where replicas connect to.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// What is to become of the next connections, one after the other; all further ones pass. Those that there are end.
    pub(crate) fn plan(&self, faults: impl IntoIterator<Item = Fault>, keeps: bool) {
        let mut plan = lock(&self.plan);
        plan.faults = faults.into_iter().collect();
        (plan.keeps, plan.ends_all, plan.told) = (keeps, true, Told::default());
        plan.number += 1;
        drop(plan);
        self.wake();
    }

    pub(crate) fn has_struck(&self) -> bool {
        lock(&self.plan).told.struck
    }

    pub(crate) fn bytes(&self) -> [Vec<u8>; 2] {
        lock(&self.plan).told.bytes.clone()
    }

    fn wake(&self) {
        // It reads all there is: one byte too many changes nothing.
        let _ = (&self.wake).write(&[0]);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        lock(&self.plan).is_over = true;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => (&*socket).read(buf),
            Socket::Unix(socket) => (&*socket).read(buf),
        }
    }

    fn write(&self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => (&*socket).write(buf),
            Socket::Unix(socket) => (&*socket).write(buf),
        }
    }

    /// The other side reads what was written, and then the end. It fails if that has gone.
    fn end_writing(&self) {
        let _ = match self {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }

    fn prepare(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => {
                socket.set_nodelay(true)?;
                socket.set_nonblocking(true)
            }
            Socket::Unix(socket) => socket.set_nonblocking(true),
        }
    }

    /// Closing it resets it.
    fn reset_at_close(&self) {
        if let Socket::Tcp(socket) = self {
            let now = Some(Duration::ZERO);
            let _ = rustix::net::sockopt::set_socket_linger(socket, now);
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

/// One way of a connection: what was read and is not written yet.
#[derive(Default)]
struct Half {
    held: Vec<u8>,
    at: usize,
    /// Bytes that have passed.
    passed: usize,
    has_ended: bool,
    is_stalled: bool,
}

struct Connection {
    /// The replica's end, the source's end.
    ends: [Socket; 2],
    halves: [Half; 2],
    fault: Fault,
    number: u64,
    keeps: bool,
    /// Since then what comes is thrown away.
    cut: Option<Instant>,
    is_over: bool,
}

/// What was cut is read to its end, so that nothing of what was passed on is lost by a reset; no longer than that.
const LINGER: Duration = Duration::from_secs(1);

struct Running {
    door: Door,
    source: Place,
    woken: UnixStream,
    plan: Arc<Mutex<Plan>>,
    connections: Vec<Connection>,
}

impl Running {
    fn run(mut self) {
        loop {
            self.wait();
            let mut taken = [0; 64];
            while matches!((&self.woken).read(&mut taken), Ok(64)) {}
            {
                let mut plan = lock(&self.plan);
                if plan.is_over {
                    return;
                }
                if std::mem::take(&mut plan.ends_all) {
                    self.connections.retain(|connection| connection.number == plan.number);
                }
            }
            self.accept();
            for connection in &mut self.connections {
                connection.step(&self.plan);
            }
            self.connections.retain(|connection| !connection.is_over);
        }
    }

    /// Until something can be read or written that is wanted.
    fn wait(&self) {
        let door = match &self.door {
            Door::Tcp(door) => door.as_fd(),
            Door::Unix(door) => door.as_fd(),
        };
        let woken = PollFd::from_borrowed_fd(self.woken.as_fd(), PollFlags::IN);
        let mut fds = vec![woken, PollFd::from_borrowed_fd(door, PollFlags::IN)];
        for connection in &self.connections {
            for (end, wants) in connection.ends.iter().zip(connection.wants()) {
                if !wants.is_empty() {
                    fds.push(PollFd::from_borrowed_fd(end.as_fd(), wants));
                }
            }
        }
        let within = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        // Interrupted: it looks and waits again.
        let _ = poll(&mut fds, Some(&within));
    }

    fn accept(&mut self) {
        loop {
            let came = match &self.door {
                Door::Tcp(door) => door.accept().map(|(socket, _)| Socket::Tcp(socket)),
                Door::Unix(door) => door.accept().map(|(socket, _)| Socket::Unix(socket)),
            };
            let Ok(replica) = came else { return };
            let source = match &self.source {
                Place::Tcp(address) => TcpStream::connect(address).map(Socket::Tcp),
                Place::Unix(path) => UnixStream::connect(path).map(Socket::Unix),
            };
            // Who listens no more lets nobody in.
            let Ok(source) = source else { continue };
            if replica.prepare().and_then(|()| source.prepare()).is_err() {
                continue;
            }
            let mut plan = lock(&self.plan);
            let fault = plan.faults.pop_front().unwrap_or(Fault::None);
            let (number, keeps) = (plan.number, std::mem::take(&mut plan.keeps));
            drop(plan);
            self.connections.push(Connection {
                ends: [replica, source],
                halves: Default::default(),
                fault,
                number,
                keeps,
                cut: None,
                is_over: false,
            });
        }
    }
}

impl Connection {
    /// What is waited for at either end.
    fn wants(&self) -> [PollFlags; 2] {
        let mut wants = [PollFlags::empty(); 2];
        for (way, half) in self.halves.iter().enumerate() {
            if half.is_stalled {
            } else if self.cut.is_some() || (half.at == half.held.len() && !half.has_ended) {
                wants[way] |= PollFlags::IN;
            } else if half.at < half.held.len() {
                wants[1 - way] |= PollFlags::OUT;
            }
        }
        wants
    }

    fn step(&mut self, plan: &Mutex<Plan>) {
        if self.cut.is_some() {
            return self.drain();
        }
        for way in WAYS {
            if self.cut.is_none() && !self.is_over && self.pass(way, plan).is_err() {
                self.is_over = true;
            }
        }
        let is_done = |half: &Half| half.has_ended || half.is_stalled;
        let all_stall = self.halves.iter().all(|half| half.is_stalled);
        self.is_over |= self.halves.iter().all(is_done) && !all_stall;
    }

    /// Passes on what can be at present.
    fn pass(&mut self, way: Way, plan: &Mutex<Plan>) -> io::Result<()> {
        let index = way as usize;
        loop {
            if self.strikes(way, plan) || self.halves[index].is_stalled {
                return Ok(());
            }
            let half = &mut self.halves[index];
            if half.at == half.held.len() {
                if half.has_ended {
                    return Ok(());
                }
                half.held.resize(16 << 10, 0);
                half.at = 0;
                let read = self.ends[index].read(&mut half.held);
                half.held.truncate(*read.as_ref().unwrap_or(&0));
                match read {
                    Ok(0) => {
                        half.has_ended = true;
                        self.ends[1 - index].end_writing();
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
                if let Fault::Flip { way: flipped, at, bit } = self.fault
                    && flipped == way
                    && let Some(byte) = half.held.get_mut(at.wrapping_sub(half.passed))
                {
                    *byte ^= 1 << bit;
                    self.has_struck(plan);
                }
            }
            let half = &mut self.halves[index];
            let at_most = match self.fault {
                Fault::OneByte => 1,
                Fault::Cut { way: w, after }
                | Fault::Reset { way: w, after }
                | Fault::Stall { way: w, after, .. }
                    if w == way =>
                {
                    after - half.passed
                }
                _ => usize::MAX,
            };
            let next = &half.held[half.at..];
            let next = &next[..next.len().min(at_most)];
            match self.ends[1 - index].write(next) {
                Ok(count) => {
                    if self.keeps {
                        let mut plan = lock(plan);
                        if plan.number == self.number {
                            plan.told.bytes[index].extend_from_slice(&next[..count]);
                        }
                    }
                    half.at += count;
                    half.passed += count;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether what was planned for this place happens now.
    fn strikes(&mut self, way: Way, plan: &Mutex<Plan>) -> bool {
        let passed = self.halves[way as usize].passed;
        match self.fault {
            Fault::Cut { way: w, after } if w == way && passed == after => {
                self.ends.iter().for_each(Socket::end_writing);
                self.cut = Some(Instant::now());
            }
            Fault::Reset { way: w, after } if w == way && passed == after => {
                self.ends.iter().for_each(Socket::reset_at_close);
                self.is_over = true;
            }
            Fault::Stall { way: w, after, both } if w == way && passed == after => {
                self.halves[way as usize].is_stalled = true;
                self.halves[1 - way as usize].is_stalled |= both;
            }
            _ => return false,
        }
        self.has_struck(plan);
        true
    }

    fn has_struck(&self, plan: &Mutex<Plan>) {
        let mut plan = lock(plan);
        plan.told.struck |= plan.number == self.number;
    }

    fn drain(&mut self) {
        let mut thrown = [0; 4 << 10];
        for (end, half) in self.ends.iter().zip(&mut self.halves) {
            while !half.has_ended {
                match end.read(&mut thrown) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Ok(0) | Err(_) => half.has_ended = true,
                    Ok(_) => {}
                }
            }
            // Not waited for any more.
            half.is_stalled = half.has_ended;
        }
        let is_late = self.cut.is_some_and(|since| since.elapsed() > LINGER);
        self.is_over = is_late || self.halves.iter().all(|half| half.has_ended);
    }
}
