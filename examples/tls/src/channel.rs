//! A TLS connection as the halves of a link: one thread reads, another writes, any may close it. Knows nothing of certificates, or of what the bytes mean.
//!
//! Two locks. `tls` is held while bytes are encrypted or decrypted, never while anybody waits for the socket. `order` is taken before it and held until
//! what was encrypted is written, since records must be sent in the order in which they were encrypted. Who reads never waits for `order`: if he waited
//! for who writes, at both ends, nobody would read any more.
//!
//! After the handshake TLS 1.3 has little to say of its own. An alert ends the link, and [`Channel::close`] sends it. The answer to a change of keys goes
//! before the next record that is written, which rustls sees to; the link has something to write at each heartbeat.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use rustls::Connection;
use stillframe::Link;

/// Ciphertext that is read at once: two records of full length.
const CHUNK: usize = 32 << 10;

/// Shakes hands over a socket that waits, and makes a link of what comes of it, bound to this one connection.
///
/// # Errors
/// `TimedOut` after `deadline`, `InvalidData` if the other is not who he should be or can't speak TLS; else what the system says.
pub(crate) fn link(
    socket: TcpStream,
    tls: impl Into<Connection>,
    deadline: Instant,
) -> io::Result<Link> {
    let mut tls = tls.into();
    socket.set_nodelay(true)?;
    shake_hands(&socket, &mut tls, deadline)?;
    socket.set_read_timeout(None)?;
    socket.set_write_timeout(None)?;
    // RFC 9266: 32 bytes under this label, without context.
    let binding = tls.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", None);
    let binding = binding.map_err(io::Error::other)?;
    let peer = format!("{} over TLS", socket.peer_addr()?);
    let channel = Arc::new(Channel { socket, tls: Mutex::new(tls), order: Mutex::default() });
    let reader = Reader { channel: Arc::clone(&channel), chunk: vec![0; CHUNK], at: 0, len: 0 };
    let writer = Writer { channel: Arc::clone(&channel) };
    Ok(Link::new(reader, writer, move || channel.close()).bound_to(binding).named(peer))
}

/// Brings the handshake to its end. However the other spreads out what he sends, he has until `deadline`.
fn shake_hands(mut socket: &TcpStream, tls: &mut Connection, deadline: Instant) -> io::Result<()> {
    while tls.is_handshaking() || tls.wants_write() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        socket.set_write_timeout(Some(left))?;
        let moved =
            if tls.wants_write() { tls.write_tls(&mut socket) } else { tls.read_tls(&mut socket) };
        match moved {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            // The time is up, as some systems call it, or a signal came: the clock tells.
            Err(error) if may_go_on(&error) => continue,
            Err(error) => return Err(error),
        }
        if let Err(error) = tls.process_new_packets() {
            // The other is told why, if he can be.
            let _ = tls.write_tls(&mut socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
    }
    Ok(())
}

fn may_go_on(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// What both halves share.
struct Channel {
    socket: TcpStream,
    tls: Mutex<Connection>,
    /// What was encrypted and is being written.
    order: Mutex<Vec<u8>>,
}

impl Channel {
    /// Writes what TLS has to send, all of it. `out` is what `order` guards.
    fn send(&self, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        let mut tls = lock(&self.tls);
        while tls.wants_write() {
            tls.write_tls(out)?;
        }
        drop(tls);
        (&self.socket).write_all(out)
    }

    /// Tells the other that it ends, and why, if that can be said at once; then makes both halves return.
    fn close(&self) {
        // From here on nobody begins to wait for the socket. What fails below fails because the other has gone: then nobody has to be told.
        let _ = self.socket.set_nonblocking(true);
        if let Ok(mut out) = self.order.try_lock() {
            lock(&self.tls).send_close_notify();
            let _ = self.send(&mut out);
        }
        // Wakes who waits already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

struct Reader {
    channel: Arc<Channel>,
    /// What was read from the socket; from `at` to `len` it is still to be decrypted.
    chunk: Vec<u8>,
    at: usize,
    len: usize,
}

impl Reader {
    /// What has come and can be decrypted; `None` if more must come first. 0 after the other's close_notify.
    fn decrypt(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let mut tls = lock(&self.channel.tls);
        loop {
            // First of all: while plaintext lies there rustls takes no more.
            match tls.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(Some),
            }
            if self.at == self.len {
                return Ok(None);
            }
            self.at += tls.read_tls(&mut &self.chunk[self.at..self.len])?;
            tls.process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.decrypt(buf) {
                Ok(Some(len)) => return Ok(len),
                Ok(None) => {}
                Err(error) => {
                    // Sends the alert: nothing that comes after this can be trusted.
                    self.channel.close();
                    return Err(error);
                }
            }
            (self.at, self.len) = (0, 0);
            match (&self.channel.socket).read(&mut self.chunk) {
                // The end, if the other says so or not: the link knows by itself where a frame ends, and that it was no goodbye.
                Ok(0) => return Ok(0),
                Ok(len) => self.len = len,
                // It was closed here: only then the socket does not wait.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(error),
            }
        }
    }
}

struct Writer {
    channel: Arc<Channel>,
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut out = lock(&self.channel.order);
        // Some of it, 64 KiB at the most. There is room: what was encrypted before has been taken out.
        let taken = lock(&self.channel.tls).writer().write(buf)?;
        self.channel.send(&mut out)?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.channel.send(&mut lock(&self.channel.order))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while he holds it")
}
