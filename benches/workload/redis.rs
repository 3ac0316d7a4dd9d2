//! Redis, beside which replicas are measured: processes of `redis-server`, on this machine, with the same records.

use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Keys, shuffled, value};

/// A server, until it is dropped.
pub(crate) struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    /// Whether it is installed.
    pub(crate) fn is_here() -> bool {
        let version = Command::new("redis-server").arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    }

    /// Starts one that saves nothing of its own accord, and begins a full sync at once, without a file on the primary's side.
    pub(crate) fn start(dir: &Path, more: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let dir = dir.join(format!("redis-{port}"));
        std::fs::create_dir_all(&dir).expect("a directory");
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"])
            .arg(&dir)
            .args(["--save", "", "--appendonly", "no", "--repl-diskless-sync", "yes"])
            .args(["--repl-diskless-sync-delay", "0", "--repl-backlog-size", "256mb"])
            .args(["--client-output-buffer-limit", "replica 0 0 0"])
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        let server = Redis { child, port };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server did not listen on {port}");
            thread::sleep(Duration::from_millis(1));
        }
        server
    }

    /// Starts one that follows another.
    pub(crate) fn follow(dir: &Path, primary: &Redis, more: &[&str]) -> Self {
        let port = primary.port.to_string();
        Self::start(dir, &[&["--replicaof", "127.0.0.1", &port], more].concat())
    }

    fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).expect("it listens")
    }

    /// Writes the records.
    pub(crate) fn fill(&self, records: usize) {
        let stream = self.connect();
        let mut answers = BufReader::new(stream.try_clone().expect("a handle"));
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut out = BufWriter::with_capacity(1 << 20, stream);
                for number in shuffled(records) {
                    let (key, value) = (Keys::Demo.key(number), value(number));
                    write!(out, "*3\r\n$3\r\nSET\r\n$16\r\n").expect("it reads");
                    out.write_all(&key).expect("it reads");
                    write!(out, "\r\n${}\r\n", value.len()).expect("it reads");
                    out.write_all(&value).expect("it reads");
                    out.write_all(b"\r\n").expect("it reads");
                }
                out.flush().expect("it reads");
            });
            let mut ok = [0; 5];
            for _ in 0..records {
                answers.read_exact(&mut ok).expect("it answers");
                assert_eq!(&ok, b"+OK\r\n", "what Redis says of a write");
            }
        });
    }

    /// One field of what it says of its replication.
    pub(crate) fn info(&self, field: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(b"INFO replication\r\n").expect("it reads");
        let mut answers = BufReader::new(stream);
        let mut line = String::new();
        answers.read_line(&mut line).expect("it answers");
        let len = line.trim().trim_start_matches('$').parse().unwrap_or(0);
        let mut text = vec![0; len];
        answers.read_exact(&mut text).expect("it answers");
        let text = String::from_utf8(text).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    /// Waits until it has all that its primary has.
    pub(crate) fn wait_for(&self, primary: &Redis) {
        while self.info("master_link_status") != "up"
            || self.info("slave_repl_offset") != primary.info("master_repl_offset")
        {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Writes a second, of `writes` over random ones of so many keys, 32 in each round trip.
    pub(crate) fn writes_a_second(&self, records: usize, writes: usize) -> f64 {
        let value = value(1);
        let value = std::str::from_utf8(&value).expect("text");
        let began = Instant::now();
        let status = Command::new("redis-benchmark")
            .args(["-p", &self.port.to_string(), "-P", "32", "-q", "-c", "50"])
            .args(["-n", &writes.to_string(), "-r", &records.to_string()])
            .args(["SET", "user__rand_int__", value])
            .stdout(Stdio::null())
            .status()
            .expect("redis-benchmark starts");
        assert!(status.success(), "redis-benchmark failed");
        writes as f64 / began.elapsed().as_secs_f64()
    }
}

/// Touches that much memory and gives it back. On a virtual machine whose host takes free memory back, memory touched for the first time costs
/// tens of times what it costs elsewhere, and who comes first pays for it: this is called before each of those who are compared.
pub(crate) fn warm_memory(bytes: usize) {
    let mut map = memmap2::MmapMut::map_anon(bytes).expect("memory");
    // Only a hint.
    let _ = map.advise(memmap2::Advice::HugePage);
    map.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
