//! A replica that follows its primary over TLS, with rustls.
//!
//! `cargo run --manifest-path examples/tls/Cargo.toml`
//!
//! A key that nodes share proves them to each other, and every frame; it hides nothing. TLS 1.3 does: here each node has a certificate and demands the
//! other's, and the proof of the key is bound to the connection, so that nobody in between can pass it on. What there is to take away is
//! [`channel`]. The rest shows that it works: a replica gets everything, then what is written, and, after its connection was cut, the
//! records that it missed.

mod channel;

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
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
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use stillframe::{
    Database, Link, LinkKey, Primary, PrimaryOptions, ReplicaSource, ReplicaState, ReplicaStatus,
    SyncKind,
};

/// The name in the primary's certificate.
const PRIMARY: &str = "primary.example";
/// Who connects has so long until the handshake is over.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Whatever takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

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
    let serving = primary.clone();
    // Ends with the program.
    thread::spawn(move || {
        let Err(error) = accept(&listener, &server, &serving);
        eprintln!("nobody is let in any more: {error}");
    });

    // .. and another.
    let copy = Database::in_memory();
    let newest = Arc::new(Mutex::new(None));
    let socket = Arc::clone(&newest);
    let (tell, told) = mpsc::channel();
    let source = ReplicaSource::links(move || connect(address, &client, &socket)).key(key);
    let replica = copy.follow(source.on_change(move |status| {
        // Nobody listens any more once this function ends.
        let _ = tell.send(status.clone());
    }))?;

    let status = until(&told, ReplicaState::Streaming)?;
    assert_eq!(status.caught_up, Some(SyncKind::Full));
    replica.wait_for(db.position(), PATIENCE)?;
    compare(&db, &copy)?;
    println!("the replica at {} has everything", primary.replicas()[0].peer);

    write(&db, 20_000..21_000)?;
    replica.wait_for(db.position(), PATIENCE)?;
    compare(&db, &copy)?;
    println!("and what was written since: both are at {}", copy.position());

    // While this is held no new connection is made.
    let mut newest = newest.lock().expect("who connects does not panic");
    newest.take().ok_or("it has connected")?.shutdown(Shutdown::Both)?;
    until(&told, ReplicaState::Connecting)?;
    write(&db, (0..21_000).step_by(200))?;
    let missed = db.position().seq.0 - copy.position().seq.0;
    assert_eq!(missed, 105);
    println!("its connection was cut; it missed {missed} batches");
    drop(newest);

    // Records are fewer bytes than the leaves that they changed.
    let status = until(&told, ReplicaState::Streaming)?;
    assert_eq!((status.links, status.caught_up), (2, Some(SyncKind::Partial)));
    replica.wait_for(db.position(), PATIENCE)?;
    compare(&db, &copy)?;
    println!("it is back over a new one and got their records: both are at {}", copy.position());

    replica.stop();
    primary.shutdown();
    Ok(())
}

fn write(db: &Database, numbers: impl Iterator<Item = u64>) -> stillframe::Result<()> {
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
    assert_eq!(copy.position(), db.position());
    assert!(entries(copy)? == entries(db)?, "the replica has other entries");
    Ok(())
}

/// Waits until the replica comes to be in `state`; returns how it was then.
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

// ---- who is who ----

/// How the primary accepts, and how the replica connects. One authority has signed both certificates, and who is shown one demands that it has.
///
/// In earnest nobody makes them here: each node reads its certificate, its private key and the authority's certificate from files.
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

    let (certificates, key) = issue(PRIMARY, ExtendedKeyUsagePurpose::ServerAuth)?;
    let server = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::clone(&roots)).build()?)
        .with_single_cert(certificates, key)?;
    let (certificates, key) = issue("replica.example", ExtendedKeyUsagePurpose::ClientAuth)?;
    let client = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates, key)?;
    Ok((Arc::new(server), Arc::new(client)))
}

/// Serves all who connect and have a certificate, until the listener fails.
///
/// Each handshake has a thread, so that nobody waits for one who says nothing. Where strangers can connect, bound how many there are at a time.
fn accept(
    listener: &TcpListener,
    config: &Arc<ServerConfig>,
    primary: &Primary,
) -> io::Result<Infallible> {
    loop {
        let (socket, peer) = listener.accept()?;
        let (config, primary) = (Arc::clone(config), primary.clone());
        thread::spawn(move || {
            let deadline = Instant::now() + HANDSHAKE;
            let tls = ServerConnection::new(config).map_err(io::Error::other);
            match tls.and_then(|tls| channel::link(socket, tls, deadline)) {
                Ok(link) => primary.attach(link),
                Err(error) => eprintln!("{peer} was not let in: {error}"),
            }
        });
    }
}

/// A new link to the primary; its socket is left in `newest` too, where it can be cut.
fn connect(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    newest: &Mutex<Option<TcpStream>>,
) -> io::Result<Link> {
    let mut newest = newest.lock().expect("who cuts it does not panic");
    let deadline = Instant::now() + HANDSHAKE;
    let name = ServerName::try_from(PRIMARY).map_err(io::Error::other)?;
    let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    let socket = TcpStream::connect_timeout(&address, HANDSHAKE)?;
    *newest = Some(socket.try_clone()?);
    channel::link(socket, tls, deadline)
}
