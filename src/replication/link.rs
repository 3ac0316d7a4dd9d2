//! Links: two halves that carry bytes, and a way to end both from outside. Sockets are named here and in the files below, nowhere else.
//!
//! Four kinds: TCP, Unix sockets, a pipe within the process, and whatever a user brings; a [`listener`] waits for others to connect. Nothing here
//! knows what the bytes mean, who is at the other end, or how long to wait.
//!
//! Invariant: after [`Closer::close`] no half of the link waits any more.

use std::fmt;
use std::io::{self, Read, Write};
pub(crate) use std::net::SocketAddr;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select};

use crate::sync::Mutex;

pub(crate) mod listener;
mod socket_file;
#[cfg(test)]
mod tests;

/// What a pipe within the process holds in each direction, beside a chunk at either end.
const PIPE_CHUNKS: usize = 16;
const PIPE_CHUNK_LEN: usize = 64 << 10;

/// A connection to another node: bytes go in at one end and come out at the other, in order, both ways.
///
/// It need not be secret, and who is at the other end need not be known: the nodes prove to each other that they have the same key, if one is
/// set, and then every frame.
///
/// ```
/// use stillframe::{Database, Link, PrimaryOptions};
///
/// let (ours, theirs) = Link::pair();
/// let primary = Database::in_memory().serve_replicas(PrimaryOptions::new())?;
/// primary.attach(theirs.named("a replica in this process"));
/// drop(ours);
/// # Ok::<(), stillframe::Error>(())
/// ```
pub struct Link {
    halves: Halves,
}

/// What a link is made of.
pub(crate) struct Halves {
    pub(crate) reader: Reader,
    pub(crate) writer: Box<dyn Write + Send>,
    pub(crate) closer: Closer,
    /// Names the channel beneath, or is zeros.
    pub(crate) binding: [u8; 32],
    /// Who is at the other end, for people.
    pub(crate) peer: String,
}

/// What is read from.
pub(crate) enum Reader {
    /// A call waits as long as it takes.
    Bytes(Box<dyn Read + Send>),
    /// Can be waited for with a limit: it needs no thread of its own.
    Pipe(PipeReader),
}

/// Ends a link from any thread, as often as one likes.
#[derive(Clone)]
pub(crate) struct Closer(Arc<dyn Fn() + Send + Sync>);

impl Closer {
    /// Makes both halves return soon, and doesn't wait for them. The other end reads the end then; what it writes may wait until the halves are
    /// dropped.
    ///
    /// Who is done with a link calls it: to drop the halves is not enough where a user's own `close` holds the channel too.
    pub(crate) fn close(&self) {
        (self.0)();
    }
}

impl Link {
    /// A link over a reader and a writer of your own: TLS, a tunnel, two pipes of another process.
    ///
    /// Each half is used by one thread at a time, and the two at the same time. Both may wait as long as they like; `close`, which any thread may
    /// call, more than once and while others wait in the halves, must make both return soon, with an error or, when reading, the end. It must
    /// not wait itself. It is called when the link is no longer needed; a link that was never used is just dropped.
    ///
    /// If the channel below has a name that no other channel has, say so with [`bound_to`](Link::bound_to).
    ///
    /// # Example
    /// ```
    /// use std::net::Shutdown;
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let (socket, _other_end) = UnixStream::pair()?;
    /// let (reader, writer) = (socket.try_clone()?, socket.try_clone()?);
    /// let close = move || {
    ///     // Fails if it was closed before.
    ///     let _ = socket.shutdown(Shutdown::Both);
    /// };
    /// let link = stillframe::Link::new(reader, writer, close).named("my child process");
    /// # drop(link);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(
        reader: impl Read + Send + 'static,
        writer: impl Write + Send + 'static,
        close: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let halves = Halves {
            reader: Reader::Bytes(Box::new(reader)),
            writer: Box::new(writer),
            closer: Closer(Arc::new(close)),
            binding: [0; 32],
            peer: "a link of the caller's".to_owned(),
        };
        Link { halves }
    }

    /// Ties the proof of the shared key to the channel below: 32 bytes that TLS exports (RFC 9266), the same at both ends, another for every
    /// connection. Who sits in between with a TLS connection to either side then can't pass the proofs on. Both ends must say it, or neither.
    #[must_use]
    pub fn bound_to(mut self, exporter: [u8; 32]) -> Self {
        self.halves.binding = exporter;
        self
    }

    /// Says who is at the other end, for reports and messages.
    #[must_use]
    pub fn named(mut self, peer: impl Into<String>) -> Self {
        self.halves.peer = peer.into();
        self
    }

    /// Who is at the other end, for people.
    pub(crate) fn peer(&self) -> &str {
        &self.halves.peer
    }

    /// Both ends of a link within this process. Each direction holds up to 1 MiB that was written and not read, then a writer waits.
    ///
    /// When one end is dropped the other reads what is left and then the end; writing to it fails with `BrokenPipe`.
    pub fn pair() -> (Link, Link) {
        let gate = Arc::new(Gate::new());
        let (to_second, from_first) = bounded(PIPE_CHUNKS);
        let (to_first, from_second) = bounded(PIPE_CHUNKS);
        let end = |chunks_in, chunks_out| {
            let reader = PipeReader { chunks: chunks_in, gate: Arc::clone(&gate) };
            let writer = PipeWriter { chunks: chunks_out, gate: Arc::clone(&gate) };
            let gate = Arc::clone(&gate);
            let closer = Closer(Arc::new(move || gate.close()));
            let (reader, writer) = (Reader::Pipe(reader), Box::new(writer));
            let peer = "this process".to_owned();
            Link { halves: Halves { reader, writer, closer, binding: [0; 32], peer } }
        };
        (end(from_second, to_second), end(from_first, to_first))
    }

    /// A link over a TCP connection, with whatever time limits were set on it taken away, and without Nagle's delay.
    ///
    /// # Errors
    /// What the system says, `NotConnected` if the other has gone by now.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        let peer = stream.peer_addr()?.to_string();
        Ok(Self::over(stream, TcpStream::shutdown).named(peer))
    }

    /// A link over a connection of a Unix socket, with whatever time limits were set on it taken away.
    ///
    /// # Errors
    /// What the system says.
    pub fn unix(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        Ok(Self::over(stream, UnixStream::shutdown).named("a unix socket"))
    }

    /// Connects over TCP. A name is looked up first, which takes as long as it takes; then each of its addresses is tried in turn, with a
    /// fair share of what is left of `timeout`.
    ///
    /// # Errors
    /// What the system says of the last address, `TimedOut` after `timeout`.
    pub fn connect_tcp(address: impl ToSocketAddrs, timeout: Duration) -> io::Result<Self> {
        let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
        let begun = Instant::now();
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
        for (index, address) in addresses.iter().enumerate() {
            let left = timeout.saturating_sub(begun.elapsed());
            let after = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match TcpStream::connect_timeout(address, (left / after).max(Duration::from_millis(1)))
            {
                Ok(stream) => return Self::tcp(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Connects to a Unix socket. Waits while more connections are pending there than the system allows.
    ///
    /// # Errors
    /// What the system says: `NotFound` if there is no such file, `ConnectionRefused` if nobody listens on it any more.
    pub fn connect_unix(path: &Path) -> io::Result<Self> {
        Ok(Self::unix(UnixStream::connect(path)?)?.named(path.display().to_string()))
    }

    /// A link over a socket that is used for reading and writing at once.
    fn over<S>(socket: S, shutdown: fn(&S, Shutdown) -> io::Result<()>) -> Self
    where
        S: Send + Sync + 'static,
        for<'a> &'a S: Read + Write,
    {
        let socket = Arc::new(socket);
        // Weak: who could close it must not keep it open. A socket that was shut down wakes all who wait in it.
        let weak = Arc::downgrade(&socket);
        let close = move || {
            if let Some(socket) = weak.upgrade() {
                // It fails if the other has gone: then nobody waits any more.
                let _ = shutdown(&socket, Shutdown::Both);
            }
        };
        Link::new(Half(Arc::clone(&socket)), Half(socket), close)
    }

    /// Both ends of a link over a pair of sockets.
    #[cfg(test)]
    pub(crate) fn sockets() -> (Link, Link) {
        let (first, second) = UnixStream::pair().unwrap();
        (Link::unix(first).unwrap(), Link::unix(second).unwrap())
    }

    pub(crate) fn split(self) -> Halves {
        self.halves
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.halves.peer)
    }
}

/// Either half of a socket; it is closed when both are gone.
struct Half<S>(Arc<S>);

impl<S> Read for Half<S>
where
    for<'a> &'a S: Read,
{
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buf)
    }
}

impl<S> Write for Half<S>
where
    for<'a> &'a S: Write,
{
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        (&*self.0).write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.0).flush()
    }
}

// ---- within the process ----

/// Says to all four halves of a pair that it was closed.
struct Gate {
    /// Nothing is ever sent: it is dropped.
    open: Mutex<Option<Sender<()>>>,
    closed: Receiver<()>,
}

impl Gate {
    fn new() -> Self {
        let (open, closed) = bounded(0);
        Gate { open: Mutex::new(Some(open)), closed }
    }

    fn close(&self) {
        *self.open.lock() = None;
    }

    fn is_closed(&self) -> bool {
        self.closed.try_recv() == Err(TryRecvError::Disconnected)
    }
}

pub(crate) struct PipeReader {
    chunks: Receiver<Vec<u8>>,
    gate: Arc<Gate>,
}

impl PipeReader {
    /// What was written at once, or a part of it; `None` if nothing is in time, an empty chunk at the end.
    pub(crate) fn next(&self, within: Duration) -> Option<Vec<u8>> {
        select! {
            recv(self.chunks) -> chunk => Some(chunk.unwrap_or_default()),
            // What was written before still comes, as over a socket.
            recv(self.gate.closed) -> _ => Some(self.chunks.try_recv().unwrap_or_default()),
            default(within) => None,
        }
    }
}

struct PipeWriter {
    chunks: Sender<Vec<u8>>,
    gate: Arc<Gate>,
}

impl Write for PipeWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let chunk = &buf[..buf.len().min(PIPE_CHUNK_LEN)];
        // First by itself: of two that are ready select! takes either.
        if self.gate.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if chunk.is_empty() {
            return Ok(0);
        }
        let is_sent = select! {
            send(self.chunks, chunk.to_vec()) -> sent => sent.is_ok(),
            recv(self.gate.closed) -> _ => false,
        };
        if is_sent { Ok(chunk.len()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
