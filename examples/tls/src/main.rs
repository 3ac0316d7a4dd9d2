//! A replica that follows its primary over TLS: a link of one's own, made with rustls.
//!
//! `cargo run --manifest-path examples/tls/Cargo.toml`
//!
//! Nodes prove to each other that they share a key, and every frame by it; nothing of that hides what is sent. Here TLS 1.3 does: each node has a
//! certificate, each demands the other's, and the proof of the key is bound to the connection, so that nobody in between can pass it on. [`Channel`]
//! is what there is to take away from here; the rest shows that it works: a replica gets everything, then what is written, and, after its connection
//! was cut, the records that it missed.

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};
use stillframe::{
    Database, Link, LinkKey, Primary, PrimaryOptions, ReplicaSource, ReplicaState, ReplicaStatus,
    SyncKind,
};

const PRIMARY: &str = "primary.example";
/// Who connects, and who accepts, has so long to become a link.
const HANDSHAKE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
/// Ciphertext that is read at once; a record has 16 KiB.
const CHUNK: usize = 32 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let (server, client) = configs()?;
    let mut secret = [0; 32];
    ring::default_provider().secure_random.fill(&mut secret).map_err(|_| "no random bytes")?;
    let key = LinkKey::new(secret);

    // One process ..
    let db = Database::in_memory();
    write(&db, 0..20_000)?;
    let primary = db.serve_replicas(PrimaryOptions::new().key(key.clone()))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let served = primary.clone();
    // It ends with the program.
    thread::spawn(move || {
        let Err(error) = accept(&listener, &server, &served);
        eprintln!("nobody is accepted any more: {error}");
    });

    // .. and another.
    let copy = Database::in_memory();
    let wire = Arc::new(Mutex::new(None));
    let newest = Arc::clone(&wire);
    let (tell, told) = mpsc::channel();
    let source = ReplicaSource::links(move || connect(address, &client, &newest))
        .key(key)
        // Nobody listens once the program ends.
        .on_change(move |status| drop(tell.send(status.clone())));
    let replica = copy.follow(source)?;

    let status = until(&told, ReplicaState::Streaming)?;
    assert_eq!(status.caught_up, Some(SyncKind::Full));
    replica.wait_for(db.position(), PATIENCE)?;
    compare(&db, &copy)?;
    println!("the replica at {} has all", primary.replicas()[0].peer);

    write(&db, 20_000..21_000)?;
    replica.wait_for(db.position(), PATIENCE)?;
    compare(&db, &copy)?;
    println!("and what was written since: it is at {}", copy.position());

    // While this is held no new connection is made.
    let mut cut = lock(&wire);
    cut.take().ok_or("there was a connection")?.shutdown(Shutdown::Both)?;
    let status = until(&told, ReplicaState::Connecting)?;
    write(&db, 20_500..22_000)?;
    let missed = db.position().seq.0 - copy.position().seq.0;
    println!("its connection was cut ({}), it missed {missed} batches", ended(&status));
    assert_eq!(missed, 1_500);
    drop(cut);

    let status = until(&told, ReplicaState::Streaming)?;
    assert_eq!(status.caught_up, Some(SyncKind::Partial));
    assert_eq!((status.links, status.counts.full, status.counts.partial), (2, 1, 1));
    replica.wait_for(db.position(), PATIENCE)?;
    compare(&db, &copy)?;
    println!("it came back over another, and got them as records: both have the same");

    replica.stop();
    primary.shutdown();
    Ok(())
}

fn write(db: &Database, numbers: std::ops::Range<u64>) -> stillframe::Result<()> {
    let squares = db.keyspace("squares")?;
    for number in numbers {
        squares
            .insert(number.to_be_bytes(), format!("{} at {}", number * number, db.position()))?;
    }
    Ok(())
}

fn compare(db: &Database, copy: &Database) -> stillframe::Result<()> {
    let entries = |db: &Database| -> stillframe::Result<Vec<_>> {
        db.keyspace("squares")?.prefix("").collect()
    };
    assert_eq!(db.position(), copy.position());
    assert!(entries(db)? == entries(copy)?, "the replica differs");
    Ok(())
}

/// Waits until the replica is in `state`, and returns how it was then.
fn until(
    told: &Receiver<ReplicaStatus>,
    state: ReplicaState,
) -> Result<ReplicaStatus, RecvTimeoutError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = told.recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
        if status.state == state {
            return Ok(status);
        }
    }
}

fn ended(status: &ReplicaStatus) -> String {
    status.last_end.as_ref().map_or_else(|| "why is not known".into(), ToString::to_string)
}

// ---- who is who ----

/// How the primary accepts and how the replica connects: each has a certificate that one authority signed, and each demands one from the other.
///
/// In earnest the authority is elsewhere, and each node finds its certificate, its private key and the authority's certificate in files.
fn configs() -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), Box<dyn Error>> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let issue = |name: &str, usage| -> Result<_, rcgen::Error> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;
        Ok((vec![certificate.der().clone()], PrivateKeyDer::from(key)))
    };

    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone())?;
    let roots = Arc::new(roots);
    let (chain, key) = issue(PRIMARY, ExtendedKeyUsagePurpose::ServerAuth)?;
    let server = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::clone(&roots)).build()?)
        .with_single_cert(chain, key)?;
    let (chain, key) = issue("replica.example", ExtendedKeyUsagePurpose::ClientAuth)?;
    let client = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok((Arc::new(server), Arc::new(client)))
}

/// Serves whoever connects and is who he should be.
///
/// Each handshake has a thread, so that nobody is kept waiting by one who says nothing. Where strangers can connect, bound how many there are.
fn accept(
    listener: &TcpListener,
    config: &Arc<ServerConfig>,
    primary: &Primary,
) -> io::Result<Infallible> {
    loop {
        let (socket, peer) = listener.accept()?;
        let (config, primary) = (Arc::clone(config), primary.clone());
        thread::spawn(move || {
            let tls = ServerConnection::new(config).map_err(io::Error::other);
            match tls.and_then(|tls| Channel::link(socket, tls.into(), Instant::now() + HANDSHAKE))
            {
                Ok(link) => primary.attach(link),
                Err(error) => eprintln!("{peer} was refused: {error}"),
            }
        });
    }
}

/// A new connection to the primary. Its socket is left in `wire`, for who wants to cut it.
fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    wire: &Mutex<Option<TcpStream>>,
) -> io::Result<Link> {
    let mut wire = lock(wire);
    let deadline = Instant::now() + HANDSHAKE;
    let name = ServerName::try_from(PRIMARY).map_err(io::Error::other)?;
    let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    let socket = TcpStream::connect_timeout(&address, HANDSHAKE)?;
    *wire = Some(socket.try_clone()?);
    Channel::link(socket, tls.into(), deadline)
}

// ---- the channel ----

/// A TLS connection whose halves are used by two threads, and which any thread may close.
///
/// Two locks. `tls` is held while bytes are encrypted or decrypted, never while anybody waits for the socket. `order` is taken before it and held until
/// what was encrypted is written, for records must be sent in the order in which they were encrypted. Who reads takes `tls` alone: if he waited for
/// one who writes, on both sides, nobody would read any more.
///
/// After the handshake TLS has hardly anything to say of its own. An alert ends the link: [`close`](Channel::close) sends it. The answer to a change of
/// keys goes before the next record that is written, which rustls sees to; the link writes one with each heartbeat.
struct Channel {
    socket: TcpStream,
    tls: Mutex<Connection>,
    /// What was encrypted and is being written.
    order: Mutex<Vec<u8>>,
}

impl Channel {
    /// Shakes hands, and makes a link of the connection.
    ///
    /// # Errors
    /// `TimedOut` after `deadline`, `InvalidData` if the other is not who he should be, else what the system says.
    fn link(socket: TcpStream, mut tls: Connection, deadline: Instant) -> io::Result<Link> {
        socket.set_nodelay(true)?;
        shake_hands(&socket, &mut tls, deadline).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })?;
        socket.set_read_timeout(None)?;
        socket.set_write_timeout(None)?;
        // RFC 9266: this label, no context, 32 bytes.
        let binding = tls.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", None);
        let binding = binding.map_err(io::Error::other)?;
        let suite = tls.negotiated_cipher_suite().map(|suite| suite.suite());
        let peer = format!("{}, {suite:?}", socket.peer_addr()?);
        let channel = Arc::new(Channel { socket, tls: Mutex::new(tls), order: Mutex::default() });
        let reader = Reader { channel: Arc::clone(&channel), chunk: vec![0; CHUNK], at: 0, len: 0 };
        let writer = Writer { channel: Arc::clone(&channel) };
        Ok(Link::new(reader, writer, move || channel.close()).bound_to(binding).named(peer))
    }

    /// Writes what TLS has to send, all of it.
    fn send(&self, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        let mut tls = lock(&self.tls);
        while tls.wants_write() {
            tls.write_tls(out)?;
        }
        drop(tls);
        (&self.socket).write_all(out)
    }

    /// Says that it ends, if that can be said at once, and makes both halves return.
    fn close(&self) {
        // From here on nothing waits for the socket. If any of this fails the other has gone, and nobody has to be told.
        let _ = self.socket.set_nonblocking(true);
        if let Ok(mut out) = self.order.try_lock() {
            lock(&self.tls).send_close_notify();
            let _ = self.send(&mut out);
        }
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// Brings the handshake to its end. However the other spreads out what he sends, he has until `deadline`.
fn shake_hands(mut socket: &TcpStream, tls: &mut Connection, deadline: Instant) -> io::Result<()> {
    while tls.is_handshaking() || tls.wants_write() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if tls.wants_write() {
            socket.set_write_timeout(Some(left))?;
            tls.write_tls(&mut socket)?;
            continue;
        }
        socket.set_read_timeout(Some(left))?;
        if tls.read_tls(&mut socket)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Err(error) = tls.process_new_packets() {
            // The other is told why, if he can be.
            let _ = tls.write_tls(&mut socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
    }
    Ok(())
}

struct Reader {
    channel: Arc<Channel>,
    /// What was read from the socket; from `at` to `len` it is still to be decrypted.
    chunk: Vec<u8>,
    at: usize,
    len: usize,
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut tls = lock(&self.channel.tls);
            loop {
                match tls.reader().read(buf) {
                    // Nothing that can be read yet.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // After the other's close_notify, the end.
                    read => return read,
                }
                if self.at == self.len {
                    break;
                }
                self.at += tls.read_tls(&mut &self.chunk[self.at..self.len])?;
                if let Err(error) = tls.process_new_packets() {
                    drop(tls);
                    self.channel.close();
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
            drop(tls);
            (self.at, self.len) = (0, 0);
            self.len = match (&self.channel.socket).read(&mut self.chunk) {
                // Only `close` makes it so.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                read => read?,
            };
            if self.len == 0 {
                // Without close_notify too: where frames end the link knows by itself.
                return Ok(0);
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
        // It takes 64 KiB at the most, and has room: what was taken before is gone.
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
