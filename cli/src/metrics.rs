//! Figures of a running database over HTTP: one page of text, for Prometheus, for `stillframe top`, for a browser.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use stillframe::Database;

/// A file in the database's directory that says where its figures are served.
const ADDRESS_FILE: &str = "metrics-address";
/// Nobody is waited for longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest request that is read.
const MAX_REQUEST: usize = 8 << 10;

/// Serves the figures until it is dropped.
pub(crate) struct Metrics {
    pub(crate) address: SocketAddr,
    file: PathBuf,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    /// Serves them if there is an address.
    pub(crate) fn start(
        db: &Database,
        directory: &Path,
        address: Option<&str>,
    ) -> anyhow::Result<Option<Self>> {
        address.map(|address| Self::serve(db, directory, address)).transpose()
    }

    fn serve(db: &Database, directory: &Path, address: &str) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        let address = listener.local_addr()?;
        let file = directory.join(ADDRESS_FILE);
        fs::write(&file, address.to_string())
            .with_context(|| format!("write {}", file.display()))?;
        let is_over = Arc::new(AtomicBool::new(false));
        let (db, over) = (db.clone(), Arc::clone(&is_over));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                // Whoever it was has gone.
                let _ = stream.and_then(|stream| answer(stream, &db));
            }
        });
        Ok(Self { address, file, is_over, thread: Some(thread) })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        // Relaxed: the flag carries no data.
        self.is_over.store(true, Ordering::Relaxed);
        // Ends the wait for the next one.
        let woken = TcpStream::connect_timeout(&self.address, PATIENCE);
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
        let _ = fs::remove_file(&self.file);
    }
}

fn answer(mut stream: TcpStream, db: &Database) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut request, mut chunk) = (Vec::new(), [0; 1 << 10]);
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        let len = stream.read(&mut chunk)?;
        request.extend_from_slice(&chunk[..len]);
        if len == 0 || request.len() > MAX_REQUEST {
            return Ok(());
        }
    }
    let is_asked = [&b"GET /metrics "[..], b"GET / "].iter().any(|line| request.starts_with(line));
    let (status, body) = match is_asked {
        true => ("200 OK", db.stats().to_prometheus()),
        false => ("404 Not Found", "there is /metrics\n".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Where the figures of `target` are: a directory that is served with `--metrics`, or an address itself.
pub(crate) fn address_of(target: &str) -> anyhow::Result<String> {
    let directory = Path::new(target);
    if !directory.is_dir() {
        return Ok(target.to_owned());
    }
    let file = directory.join(ADDRESS_FILE);
    fs::read_to_string(&file)
        .with_context(|| format!("{target} is not open with --metrics: open {}", file.display()))
}

/// What is served at `address`.
pub(crate) fn fetch(address: &str) -> anyhow::Result<String> {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().with_context(|| format!("ask {address} for its figures"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let is_good = head.lines().next().is_some_and(|line| line.contains(" 200 "));
    anyhow::ensure!(is_good, "{address} has no figures of Stillframe's");
    Ok(body.to_owned())
}
