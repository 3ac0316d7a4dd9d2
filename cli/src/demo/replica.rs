//! A replica in another process, over TCP: made, killed and started again while the writer writes.
//!
//! The other process is `stillframe follow`, as anybody may run it; what it says of itself in JSON is what is judged.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use stillframe::{AckLevel, Database, Keyspace, Primary, PrimaryOptions};

use super::sleep;
use super::writer::{self, Phase, Workload, Writer};
use crate::{interrupt, key, ui};

/// How long the replica follows before it is killed.
const ALIVE: Duration = Duration::from_millis(300);
/// How long it stays dead.
const AWAY: Duration = Duration::from_millis(500);
/// How long batches are timed on their way.
const STREAMING: Duration = Duration::from_secs(1);
/// A batch that gets there so soon was not waited for behind others.
const IN_STEP: Duration = Duration::from_millis(50);
/// A replica that has not come so far by then has failed.
const PATIENCE: Duration = Duration::from_secs(600);
/// The other process says so often how it does.
const EVERY: &str = "20ms";

/// What was measured on the replica.
pub(crate) struct Replicated {
    /// From its start to its first whole state.
    pub(crate) full_sync: Duration,
    pub(crate) full_sync_bytes: u64,
    /// Batches that it had to catch up with when it was started again.
    pub(crate) missed: u64,
    /// From its second start to when it had those, and what was written meanwhile.
    pub(crate) restart: Duration,
    pub(crate) caught_up: String,
    pub(crate) full_syncs_after_restart: u64,
    pub(crate) writes_per_s: f64,
    /// From a batch's commit to when the replica has said that it is there.
    pub(crate) lag: Duration,
    pub(crate) lag_p99: Duration,
    pub(crate) equal: bool,
}

/// What the other process says of itself.
#[derive(Deserialize, Clone)]
struct Line {
    state: String,
    history: String,
    seq: u64,
    fingerprint: String,
    caught_up: Option<String>,
    counts: Counts,
}

#[derive(Deserialize, Clone)]
struct Counts {
    full: u64,
}

/// Makes a replica of `database` in `directory`, and goes through its life.
pub(crate) fn replicate(
    database: &Database,
    keyspace: &Keyspace,
    workload: &Workload,
    directory: &Path,
) -> anyhow::Result<Replicated> {
    let key_file = directory.join("key");
    key::make(&key_file)?;
    let primary = database.serve_replicas(PrimaryOptions::new().key(key::read(&key_file)?))?;
    let from = primary.listen_tcp("127.0.0.1:0")?;
    let place = Place { directory: directory.join("replica"), key_file, from };
    let ((mut replicated, mut process), recorded) = writer::run(keyspace, workload, |writer| {
        writer.enter(Phase::Beside);
        live(database, &primary, &place, writer)
    })?;
    replicated.writes_per_s = recorded.beside.per_s();

    // The writer has stopped.
    let still = database.snapshot()?;
    let (position, fingerprint) = (still.position(), format!("{:016x}", still.fingerprint()));
    let history = position.history.to_string();
    let comparing = ui::spinner("comparing");
    let last = process.when(|line| line.seq >= position.seq.0)?;
    comparing.finish_and_clear();
    replicated.equal =
        (last.history, last.seq, last.fingerprint) == (history, position.seq.0, fingerprint);
    process.end()?;
    primary.shutdown();
    Ok(replicated)
}

/// The first life of the replica, its end, and its second up to where the writer stops.
fn live(
    database: &Database,
    primary: &Primary,
    place: &Place,
    writer: &Writer<'_>,
) -> anyhow::Result<(Replicated, Process)> {
    let syncing = ui::spinner("replica");
    let began = Instant::now();
    let mut process = place.start()?;
    process.when(|line| line.state == "streaming")?;
    let full_sync = began.elapsed();
    let full_sync_bytes = primary.replicas().first().map_or(0, |replica| replica.sent_bytes);

    in_step(database, primary)?;
    sleep(ALIVE)?;
    process.kill()?;
    sleep(AWAY)?;
    let began = Instant::now();
    let mut process = place.start()?;
    let opened = process.when(|_| true)?;
    let missed = database.seq().0.saturating_sub(opened.seq);
    let caught_up = process.when(|line| line.state == "streaming")?;
    // It has caught up when it has what was written meanwhile, too.
    in_step(database, primary)?;
    let restart = began.elapsed();

    let mut lags = Vec::new();
    let until = Instant::now() + STREAMING;
    while Instant::now() < until {
        interrupt::check()?;
        lags.push(on_its_way(database, primary)?);
        thread::sleep(Duration::from_millis(1));
    }
    writer.enter(Phase::Unrecorded);
    syncing.finish_and_clear();
    lags.sort_unstable();
    let replicated = Replicated {
        full_sync,
        full_sync_bytes,
        missed,
        restart,
        caught_up: caught_up.caught_up.unwrap_or_default(),
        full_syncs_after_restart: caught_up.counts.full,
        writes_per_s: 0.0,
        lag: lags[lags.len() / 2],
        lag_p99: lags[lags.len() * 99 / 100],
        equal: false,
    };
    Ok((replicated, process))
}

/// How long the last batch is on its way, until the replica has said that it is there.
fn on_its_way(database: &Database, primary: &Primary) -> anyhow::Result<Duration> {
    let committed = Instant::now();
    primary.wait(database.position(), 1, AckLevel::Applied, PATIENCE)?;
    Ok(committed.elapsed())
}

/// Waits until batches get there without a wait behind others.
fn in_step(database: &Database, primary: &Primary) -> anyhow::Result<()> {
    while on_its_way(database, primary)? > IN_STEP {
        interrupt::check()?;
    }
    Ok(())
}

/// Where the replica lives, and whom it follows.
struct Place {
    directory: PathBuf,
    key_file: PathBuf,
    from: SocketAddr,
}

/// The replica's process; killed when dropped.
struct Process {
    child: Child,
    lines: Receiver<Line>,
    last: Option<Line>,
}

impl Place {
    fn start(&self) -> anyhow::Result<Process> {
        let mut command = Command::new(env::current_exe().context("finding this program")?);
        command.arg("follow").arg(&self.directory);
        command.args(["--from", &self.from.to_string(), "--every", EVERY]);
        command.arg("--key-file").arg(&self.key_file);
        // Should this process be killed, the other sees the end of its input.
        command.args(["--until-eof", "--json"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for this process alone.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().context("starting the replica's process")?;
        let out = BufReader::new(child.stdout.take().expect("it is piped"));
        let (tell, lines) = mpsc::channel();
        // Ends with the process.
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let Ok(line) = serde_json::from_str(&line) else { return };
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Process { child, lines, last: None })
    }
}

impl Process {
    /// Waits until the replica says what is wanted.
    fn when(&mut self, is_it: impl Fn(&Line) -> bool) -> anyhow::Result<Line> {
        let until = Instant::now() + PATIENCE;
        loop {
            interrupt::check()?;
            if let Some(line) = self.last.as_ref().filter(|line| is_it(line)) {
                return Ok(line.clone());
            }
            match self.lines.recv_timeout(ui::TICK) {
                Ok(line) => self.last = Some(line),
                Err(RecvTimeoutError::Timeout) if Instant::now() < until => {}
                Err(RecvTimeoutError::Timeout) => bail!("the replica does not get on"),
                Err(RecvTimeoutError::Disconnected) => {
                    let mut why = String::new();
                    if let Some(stderr) = &mut self.child.stderr {
                        let _ = stderr.read_to_string(&mut why); // it has ended: what there is
                    }
                    bail!("the replica's process ended: {}", why.trim_end());
                }
            }
        }
    }

    /// Kills it, as a crash would.
    fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill().context("killing the replica's process")?;
        self.child.wait().context("killing the replica's process")?;
        Ok(())
    }

    /// Ends it in good order.
    fn end(mut self) -> anyhow::Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait().context("ending the replica's process")?;
        if !status.success() {
            bail!("the replica's process failed: {status}");
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
