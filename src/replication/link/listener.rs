//! Waits for others to connect, on a thread that ends when it is told to.
//!
//! Invariant: dropping a [`Listener`] ends its thread, whatever that is waiting for, and takes a bounded time.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};

use super::Link;
use super::socket_file::{SocketFile, bind};

/// Before the next try when the system has no room for a connection, as when all files a process may have are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long who drops a listener waits for its thread before he calls again, and how often he does.
const CALL_PAUSE: Duration = Duration::from_millis(100);
const CALLS: usize = 10;

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// With the port that was given, if any would do.
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Listens, and hands over each connection on a thread of its own, `stillframe-listen`. Ends when it is dropped.
///
/// `accept` should return soon: nobody else is let in meanwhile, and who drops the listener waits for it, though no more than some
/// seconds.
pub(crate) struct Listener {
    address: Address,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    /// Gone when the thread is.
    running: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    /// Before the socket: while that is bound nobody takes the name for that of a dead process.
    _file: Option<SocketFile>,
    door: Door,
}

/// A listening socket once more, under the name of a connected one, because only those can be shut down.
enum Door {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Listens on `address`, as `127.0.0.1:4000`; port 0 takes any that is free.
    ///
    /// # Errors
    /// What the system says, `AddrInUse` above all.
    pub(crate) fn tcp(address: &str, accept: impl Fn(Link) + Send + 'static) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = Address::Tcp(listener.local_addr()?);
        let door = Door::Tcp(TcpStream::from(OwnedFd::from(listener.try_clone()?)));
        let next = move || {
            let (stream, _) = listener.accept()?;
            // Who has gone by now was never here.
            Ok(Link::tcp(stream).ok())
        };
        Self::start(address, None, door, next, accept)
    }

    /// Listens on a Unix socket whose file only this user can use, from its first moment on. What a dead process has left at `path` is replaced.
    ///
    /// The file is made in a directory beside it, so that `path` must be a little shorter than the system's limit (on Linux up to some 95 bytes).
    ///
    /// # Errors
    /// `AddrInUse` if somebody listens there, `AlreadyExists` if what is there is no socket; else what the system says.
    pub(crate) fn unix(path: &Path, accept: impl Fn(Link) + Send + 'static) -> io::Result<Self> {
        let (listener, file) = bind(path)?;
        let door = Door::Unix(UnixStream::from(OwnedFd::from(listener.try_clone()?)));
        let peer = path.display().to_string();
        let next = move || {
            let (stream, _) = listener.accept()?;
            Ok(Link::unix(stream).ok().map(|link| link.named(peer.as_str())))
        };
        Self::start(Address::Unix(file.path().to_owned()), Some(file), door, next, accept)
    }

    fn start(
        address: Address,
        file: Option<SocketFile>,
        door: Door,
        next: impl Fn() -> io::Result<Option<Link>> + Send + 'static,
        accept: impl Fn(Link) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let (runs, running) = bounded(0);
        let run = move || {
            let _runs: Sender<()> = runs;
            listen(&stopped, next, accept);
        };
        let thread = thread::Builder::new().name("stillframe-listen".into()).spawn(run)?;
        let (stop, thread) = (Some(stop), Some(thread));
        Ok(Listener { address, stop, running, thread, _file: file, door })
    }

    /// Where others can connect.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Connects to oneself: ends a wait where shutting down the socket doesn't.
    fn call(&self) {
        match &self.address {
            Address::Tcp(address) => {
                let mut address = *address;
                if address.ip().is_unspecified() {
                    address.set_ip(match address {
                        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                    });
                }
                drop(TcpStream::connect_timeout(&address, CALL_PAUSE));
            }
            Address::Unix(path) => drop(UnixStream::connect(path)),
        }
    }
}

fn listen(
    stopped: &Receiver<()>,
    next: impl Fn() -> io::Result<Option<Link>>,
    accept: impl Fn(Link),
) {
    let is_stopped = || stopped.try_recv() == Err(TryRecvError::Disconnected);
    while !is_stopped() {
        match next() {
            Ok(Some(link)) if !is_stopped() => accept(link),
            Ok(_) => {}
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => {
                // Nothing is ever sent: it times out, or is stopped.
                let _ = stopped.recv_timeout(ACCEPT_PAUSE);
            }
        }
    }
}

/// Whether it says nothing about the next connection.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop = None;
        let Some(thread) = self.thread.take() else { return };
        // Linux wakes who waits for connections, for good; elsewhere it fails, and a call wakes him.
        let _ = match &self.door {
            Door::Tcp(door) => door.shutdown(Shutdown::Both),
            Door::Unix(door) => door.shutdown(Shutdown::Both),
        };
        if thread.thread().id() == thread::current().id() {
            return;
        }
        for _ in 0..CALLS {
            if self.running.recv_timeout(CALL_PAUSE) == Err(RecvTimeoutError::Disconnected) {
                // A panic in `accept` was its own affair.
                let _ = thread.join();
                return;
            }
            self.call();
        }
        // It is in `accept`, and ends when that returns.
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use super::super::socket_file::tests::TempDir;
    use super::*;
    use crate::sync::Mutex;

    const SOON: Duration = Duration::from_secs(20);

    /// Drops it, and looks whether its thread has let go of `accepted`'s other end.
    fn ends(listener: Listener, accepted: &Receiver<Link>) {
        drop(listener);
        assert!(matches!(accepted.try_recv(), Err(TryRecvError::Disconnected)));
    }

    #[test]
    fn dropping_ends_the_thread_and_frees_the_address() {
        let (accept, accepted) = bounded(9);
        let listener = Listener::tcp("0.0.0.0:0", move |link| accept.send(link).unwrap()).unwrap();
        let Address::Tcp(address) = listener.address() else { panic!("it is of TCP") };
        let address = format!("127.0.0.1:{}", address.port());
        // Both ends are kept, so that the system gives their port to nobody else.
        let _link = (Link::connect_tcp(&address, SOON).unwrap(), accepted.recv().unwrap());
        let taken = Listener::tcp(&address, |_| {}).err().unwrap();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        ends(listener, &accepted);
        drop(Listener::tcp(&address, |_| {}).unwrap());

        let dir = TempDir::new();
        let path = dir.file("socket");
        for _ in 0..2 {
            let (accept, accepted) = bounded(9);
            let listener = Listener::unix(&path, move |link| accept.send(link).unwrap()).unwrap();
            assert_eq!(listener.address().to_string(), path.display().to_string());
            Link::connect_unix(&path).unwrap();
            accepted.recv().unwrap();
            let taken = Listener::unix(&path, |_| {}).err().unwrap();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
            ends(listener, &accepted);
            assert_eq!(dir.names(), [""; 0]);
        }
    }

    #[test]
    fn it_can_be_dropped_by_its_own_thread() {
        let slot = Arc::new(Mutex::new(None));
        let (dropped, was_dropped) = bounded::<()>(1);
        let accept = {
            let slot = Arc::clone(&slot);
            move |_| {
                *slot.lock() = None;
                dropped.send(()).unwrap();
            }
        };
        let listener = Listener::tcp("127.0.0.1:0", accept).unwrap();
        let address = listener.address().to_string();
        *slot.lock() = Some(listener);
        let _link = Link::connect_tcp(address, SOON).unwrap();
        was_dropped.recv().unwrap();
        // The thread goes, and with it what it holds.
        assert!(was_dropped.recv().is_err());
    }

    #[test]
    fn one_that_lets_nobody_else_in_is_left_behind() {
        let (release, released) = bounded::<()>(0);
        let (entered, has_entered) = bounded(0);
        let accept = move |_| {
            entered.send(()).unwrap();
            assert!(released.recv().is_err());
        };
        let listener = Listener::tcp("127.0.0.1:0", accept).unwrap();
        let _link = Link::connect_tcp(listener.address().to_string(), SOON).unwrap();
        has_entered.recv().unwrap();
        drop(listener);
        drop(release);
        assert!(has_entered.recv().is_err());
    }

    /// When there is no room for connections it goes on trying, and still ends.
    #[test]
    fn errors_of_the_system_are_survived() {
        let (stop, stopped) = bounded(0);
        let mut stop = Some(stop);
        let tries = Cell::new(0);
        let next = || {
            tries.set(tries.get() + 1);
            match tries.get() {
                1 => Err(io::ErrorKind::ConnectionAborted.into()),
                2 => Err(io::Error::from_raw_os_error(libc::EMFILE)),
                3 => Ok(None),
                4 => Ok(Some(Link::pair().0)),
                5 => Err(io::Error::from_raw_os_error(libc::EMFILE)),
                _ => panic!("it was stopped"),
            }
        };
        let accepted = Cell::new(0);
        let accept = |_| {
            accepted.set(accepted.get() + 1);
            let stop: Option<Sender<()>> = stop.take();
            thread::spawn(move || drop(stop));
        };
        let accept = std::cell::RefCell::new(accept);
        listen(&stopped, next, |link| (accept.borrow_mut())(link));
        assert_eq!(accepted.get(), 1);
        assert!((4..=5).contains(&tries.get()));
    }
}
