//! Drives one end of a session over a link: bytes in, messages to a machine, messages out, bytes.
//!
//! Three threads. One reads and does nothing else, so that the other side is never taken for dead because something here takes long; what it
//! has read and nobody has taken yet is bounded. (A pipe within the process keeps what was written by itself, and has no such thread.) One has the
//! machine take what came. One has it say what there is to say, and writes. The
//! machine is locked by either while it has it; the writer does not wait for it: while it is busy for long, it says that one is there.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::clock::{deadline, os_random, uptime_ms};
use crate::format::record::RECORD_HEADER_LEN;
use crate::format::wire::{Backlog, Beat, Bye, MessageKind, Reason};
use crate::position::Seq;
use crate::replication::auth::Side;
use crate::replication::framing::{Handshake, LinkFault, Opener, Sealer, Secrets};
use crate::replication::link::{Closer, Halves, Link, PipeReader, Reader};
use crate::serve::session::{Ended, Filled, Step};
use crate::serve::signal::Signal;

/// Read at once, and chunks of it that may wait.
const CHUNK: usize = 64 << 10;
const CHUNKS: usize = 16;
/// Read at once of who has proven nothing: all that he has to say for that, or all but.
const FIRST_CHUNK: usize = 128;
/// What does not press may wait so long.
const SHORT_NAP: Duration = Duration::from_millis(1);
/// After something was said so long, more is expected soon.
const ACTIVE: Duration = Duration::from_millis(5);

/// One end of a session, as a machine.
pub(crate) trait Machine: Send {
    /// Takes a message that was proven.
    fn receive(&mut self, kind: MessageKind, payload: &[u8], now_ms: u64) -> Step;
    /// Appends what is to be said now.
    fn fill(&mut self, sealer: &mut Sealer, out: &mut Vec<u8>, now_ms: u64) -> Step<Filled>;
    /// Whether what it has to say can't wait for the end of a nap that has begun.
    fn is_pressing(&self) -> bool {
        true
    }
    /// Work that takes long and does not need the machine: done by who writes.
    fn chore(&mut self) -> Option<Chore> {
        None
    }
    /// How long the body of a record may be that it takes now.
    fn most_body_len(&self) -> u32;
    /// How long nothing is to be said, if nobody wakes it before. `is_active`: something was said just now.
    fn nap(&mut self, is_active: bool) -> Duration;
    /// The other side was heard, or was kept from being heard.
    fn heard(&mut self, now_ms: u64);
}

pub(crate) type Chore = Box<dyn FnOnce() + Send>;

/// How a session is driven.
pub(crate) struct Drive {
    pub(crate) side: Side,
    pub(crate) secrets: Secrets,
    pub(crate) timeout: Duration,
    pub(crate) beat: Duration,
    pub(crate) max_body_len: u32,
    pub(crate) stop: Arc<Stop>,
}

/// Ends a session from outside.
#[derive(Default)]
pub(crate) struct Stop {
    is_set: AtomicBool,
    now: Mutex<Option<(Closer, Arc<Signal>)>>,
}

impl Stop {
    /// The session says that it stops, and ends.
    pub(crate) fn stop(&self) {
        // Release: who sees it sees what was done before.
        self.is_set.store(true, Ordering::Release);
        if let Some((_, signal)) = &*lock(&self.now) {
            signal.wake();
        }
    }

    /// Ends it whatever it does.
    pub(crate) fn close(&self) {
        self.is_set.store(true, Ordering::Release);
        if let Some((closer, _)) = &*lock(&self.now) {
            closer.close();
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Acquire)
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why the bytes of a link are not taken any more.
#[derive(Debug)]
pub(crate) enum LinkEnd {
    /// The session has ended, as its machine or the other's says.
    Session(Ended),
    /// The other is gone, or the link is.
    Lost(Option<io::Error>),
    /// The other has said nothing for too long.
    Silent,
    /// The other is not who it should be, or speaks another language.
    Fault(LinkFault),
    /// It was told to stop.
    Stopped,
}

impl From<LinkFault> for LinkEnd {
    fn from(fault: LinkFault) -> Self {
        LinkEnd::Fault(fault)
    }
}

impl From<Ended> for LinkEnd {
    fn from(ended: Ended) -> Self {
        LinkEnd::Session(ended)
    }
}

/// Drives the machine that `begin` makes once the other side has proven who it is, to the end of the session; returns it, if it came to that.
pub(crate) fn drive<M: Machine + 'static>(
    link: Link,
    how: &Drive,
    signal: &Arc<Signal>,
    begin: impl FnOnce() -> M,
) -> (Option<M>, LinkEnd) {
    let Halves { reader, mut writer, closer, binding, .. } = link.split();
    *lock(&how.stop.now) = Some((closer.clone(), Arc::clone(signal)));
    let has_met = Arc::new(AtomicBool::new(false));
    let (chunks, reading) = match reader {
        Reader::Pipe(pipe) => (Chunks::Pipe(pipe), None),
        Reader::Bytes(reader) => {
            let (hand_over, chunks) = bounded(CHUNKS);
            let (give_back, spent) = bounded(CHUNKS);
            let met = Arc::clone(&has_met);
            let reading = spawn("stillframe-read", move || read(reader, &met, &hand_over, &spent));
            (Chunks::Thread { chunks, give_back }, Some(reading))
        }
    };
    let secrets = Secrets { binding, ..how.secrets.clone() };
    let (machine, end) = match meet(&secrets, how, &chunks, &mut *writer) {
        Err(end) => (None, end),
        Ok((sealer, opener)) => {
            // Relaxed: nothing is read that was written before.
            has_met.store(true, Ordering::Relaxed);
            let mut machine = begin();
            machine.heard(uptime_ms());
            let shared = Arc::new(Shared {
                machine: Mutex::new(machine),
                signal: Arc::clone(signal),
                stop: Arc::clone(&how.stop),
                end: Mutex::new(None),
                naps: AtomicBool::new(false),
                beat: how.beat,
            });
            let (writing, sides) = (Arc::clone(&shared), closer.clone());
            let writing = spawn("stillframe-write", move || {
                writing.write(sealer, &mut *writer);
                sides.close();
            });
            let end = shared.take(opener, how.timeout, &chunks);
            if let Some(end) = end {
                lock(&shared.end).get_or_insert(end);
            }
            // It says goodbye, if it can at once.
            shared.signal.wake();
            let until = Instant::now() + GOODBYE;
            while !writing.is_finished() && Instant::now() < until {
                chunks.pass(Duration::from_millis(1));
            }
            closer.close();
            chunks.drain();
            // A panic there is told below: the machine is poisoned.
            let _ = writing.join();
            let end = lock(&shared.end).take().unwrap_or(LinkEnd::Lost(None));
            let shared = Arc::into_inner(shared).expect("the writer has gone");
            let machine = shared.machine.into_inner().unwrap_or_else(PoisonError::into_inner);
            (Some(machine), end)
        }
    };
    closer.close();
    // The reader may wait to hand over what nobody takes any more.
    chunks.drain();
    let _ = reading.map(JoinHandle::join);
    *lock(&how.stop.now) = None;
    (machine, end)
}

/// Who ends a session may say so for so long.
const GOODBYE: Duration = Duration::from_millis(200);

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let thread = thread::Builder::new().name(name.into());
    thread.spawn(run).expect("the system starts a thread")
}

/// Reads until the link ends, or nobody takes what was read.
fn read(
    mut reader: Box<dyn Read + Send>,
    has_met: &AtomicBool,
    hand_over: &Sender<io::Result<Vec<u8>>>,
    spent: &Receiver<Vec<u8>>,
) {
    loop {
        let mut chunk = spent.try_recv().unwrap_or_default();
        chunk.resize(if has_met.load(Ordering::Relaxed) { CHUNK } else { FIRST_CHUNK }, 0);
        let read = match reader.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read,
        };
        let is_over = matches!(read, Ok(0) | Err(_));
        let chunk = read.map(|len| {
            chunk.truncate(len);
            chunk
        });
        if hand_over.send(chunk).is_err() || is_over {
            return;
        }
    }
}

/// What was read, in order; an empty chunk at the end.
enum Chunks {
    /// By a thread that reads.
    Thread {
        chunks: Receiver<io::Result<Vec<u8>>>,
        give_back: Sender<Vec<u8>>,
    },
    Pipe(PipeReader),
}

impl Chunks {
    /// The next; `None` if there is none in time.
    fn next(&self, within: Duration) -> Result<Option<Vec<u8>>, LinkEnd> {
        let chunks = match self {
            Chunks::Thread { chunks, .. } => chunks,
            Chunks::Pipe(pipe) => {
                let chunk = pipe.next(within);
                let is_end = chunk.as_ref().is_some_and(Vec::is_empty);
                return if is_end { Err(LinkEnd::Lost(None)) } else { Ok(chunk) };
            }
        };
        match chunks.recv_timeout(within) {
            Ok(Ok(chunk)) if !chunk.is_empty() => Ok(Some(chunk)),
            Ok(Ok(_)) | Err(RecvTimeoutError::Disconnected) => Err(LinkEnd::Lost(None)),
            Ok(Err(error)) => Err(LinkEnd::Lost(Some(error))),
            Err(RecvTimeoutError::Timeout) => Ok(None),
        }
    }

    fn spent(&self, chunk: Vec<u8>) {
        if let Chunks::Thread { give_back, .. } = self {
            // Full: it is freed.
            let _ = give_back.try_send(chunk);
        }
    }

    /// Lets what comes go for so long.
    fn pass(&self, within: Duration) {
        if !matches!(self.next(within), Ok(Some(_))) {
            thread::sleep(within);
        }
    }

    /// Lets go of all that comes until the thread that reads has ended, which may wait to hand it over.
    fn drain(&self) {
        if let Chunks::Thread { chunks, .. } = self {
            while chunks.recv().is_ok() {}
        }
    }
}

/// Both sides prove who they are.
fn meet(
    secrets: &Secrets,
    how: &Drive,
    chunks: &Chunks,
    writer: &mut (dyn Write + Send),
) -> Result<(Sealer, Opener), LinkEnd> {
    let nonce = os_random().map_err(|error| LinkEnd::Lost(Some(error)))?;
    let (mut handshake, mut out) = match how.side {
        Side::Client => Handshake::client(secrets, nonce),
        Side::Server => (Handshake::server(secrets, nonce), Vec::new()),
    };
    let deadline = deadline(how.timeout);
    loop {
        if !out.is_empty() {
            let sent = writer.write_all(&out).and_then(|()| writer.flush());
            sent.map_err(|error| LinkEnd::Lost(Some(error)))?;
            out.clear();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if how.stop.is_set() {
            return Err(LinkEnd::Stopped);
        }
        if left.is_zero() {
            return Err(LinkEnd::Silent);
        }
        let Some(chunk) = chunks.next(left.min(LOOK))? else { continue };
        let met = handshake.receive(&chunk, &mut out)?;
        chunks.spent(chunk);
        if let Some((sealer, mut opener)) = met {
            if !out.is_empty() {
                let sent = writer.write_all(&out).and_then(|()| writer.flush());
                sent.map_err(|error| LinkEnd::Lost(Some(error)))?;
            }
            opener.set_record_limit(how.max_body_len as usize + RECORD_HEADER_LEN);
            return Ok((sealer, opener));
        }
    }
}

/// So often it is looked whether to stop, while nothing comes.
const LOOK: Duration = Duration::from_millis(50);

/// What both who take and who write have.
struct Shared<M> {
    machine: Mutex<M>,
    signal: Arc<Signal>,
    stop: Arc<Stop>,
    /// Why the session ends, by whoever finds out first.
    end: Mutex<Option<LinkEnd>>,
    /// Who writes will ask the machine anew after a short nap: what does not press needs no word.
    ///
    /// It is put back before the machine is asked, or found locked, and set afterwards: who sees it set, after the machine has taken something and was
    /// let go, knows that it has yet to be asked. A lock that is found taken orders nothing: there is a fence on either side.
    naps: AtomicBool,
    beat: Duration,
}

impl<M: Machine> Shared<M> {
    /// Has the machine take what comes, until the session ends.
    fn take(&self, mut opener: Opener, timeout: Duration, chunks: &Chunks) -> Option<LinkEnd> {
        let mut heard = Instant::now();
        // What came with the handshake.
        let (mut chunk, mut is_pressing) = (Vec::new(), true);
        loop {
            opener.receive(&chunk);
            chunks.spent(std::mem::take(&mut chunk));
            let before = opener.frames();
            loop {
                let message = match opener.next() {
                    Ok(message) => message,
                    Err(fault) => return Some(fault.into()),
                };
                if opener.frames() != before && message.is_none() {
                    lock(&self.machine).heard(uptime_ms());
                }
                let Some((kind, payload)) = message else { break };
                let mut machine = lock(&self.machine);
                let taken = machine.receive(kind, &payload, uptime_ms());
                // It may have taken long.
                machine.heard(uptime_ms());
                is_pressing |= machine.is_pressing();
                opener.set_record_limit(machine.most_body_len() as usize + RECORD_HEADER_LEN);
                drop(machine);
                if let Err(ended) = taken {
                    return Some(ended.into());
                }
                // Who was told of the last one may have told this to stop.
                if self.stop.is_set() {
                    return Some(LinkEnd::Stopped);
                }
            }
            self.took(std::mem::take(&mut is_pressing));
            chunk = loop {
                if self.stop.is_set() {
                    return Some(LinkEnd::Stopped);
                }
                if lock(&self.end).is_some() {
                    return None;
                }
                match chunks.next(LOOK) {
                    Ok(Some(chunk)) => {
                        heard = Instant::now();
                        break chunk;
                    }
                    Ok(None) if heard.elapsed() > timeout => return Some(LinkEnd::Silent),
                    Ok(None) => {}
                    Err(end) => return Some(end),
                }
            };
        }
    }

    /// The machine has taken something and was let go: it may have something to say now.
    fn took(&self, is_pressing: bool) {
        fence(Ordering::SeqCst);
        if is_pressing || !self.naps.load(Ordering::Relaxed) {
            self.signal.wake();
        }
    }

    /// Writes what the machine has to say, until the session ends.
    fn write(&self, mut sealer: Sealer, writer: &mut (dyn Write + Send)) {
        let (mut out, mut active, mut written) = (Vec::new(), Instant::now(), Instant::now());
        loop {
            let end = lock(&self.end).is_some();
            if end || self.stop.is_set() {
                return self.say_goodbye(&mut sealer, &mut out, writer);
            }
            let mut chore = None;
            self.naps.store(false, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let filled = match self.machine.try_lock() {
                Ok(mut machine) => {
                    chore = machine.chore();
                    machine.fill(&mut sealer, &mut out, uptime_ms())
                }
                Err(TryLockError::Poisoned(_)) => Err(Ended::By(Reason::Failed, 0)),
                Err(TryLockError::WouldBlock) => {
                    if written.elapsed() >= self.beat {
                        sealer.seal_with(MessageKind::Beat, &mut out, |out| {
                            let (seq, time_ms, backlog) = (Seq(0), 0, Backlog::NONE);
                            let (wants_durable, is_unsettled) = (false, false);
                            Beat { seq, time_ms, wants_durable, is_unsettled, backlog }.encode(out);
                        });
                    }
                    Ok(Filled::Idle)
                }
            };
            let filled = match filled {
                Ok(filled) => filled,
                Err(ended) => {
                    lock(&self.end).get_or_insert(LinkEnd::Session(ended));
                    return self.say_goodbye(&mut sealer, &mut out, writer);
                }
            };
            if !out.is_empty() {
                if let Err(error) = writer.write_all(&out).and_then(|()| writer.flush()) {
                    lock(&self.end).get_or_insert(LinkEnd::Lost(Some(error)));
                    return;
                }
                out.clear();
                (active, written) = (Instant::now(), Instant::now());
            }
            if let Some(chore) = chore {
                chore();
                continue;
            }
            if filled == Filled::Idle {
                let nap = match self.machine.try_lock() {
                    Ok(mut machine) => machine.nap(active.elapsed() < ACTIVE),
                    Err(_) => LOOK.min(self.beat),
                };
                self.naps.store(nap <= SHORT_NAP, Ordering::Relaxed);
                if !nap.is_zero() {
                    self.signal.wait(nap);
                }
            }
        }
    }

    /// Says why the session ends, if the other does not know.
    fn say_goodbye(&self, sealer: &mut Sealer, out: &mut Vec<u8>, writer: &mut (dyn Write + Send)) {
        let bye = match &*lock(&self.end) {
            Some(LinkEnd::Session(ended)) => ended.bye(),
            Some(LinkEnd::Lost(_)) => None,
            Some(LinkEnd::Silent) => Some(Bye { reason: Reason::Silent, detail: 0 }),
            Some(LinkEnd::Fault(_)) => Some(Bye { reason: Reason::Protocol, detail: 0 }),
            Some(LinkEnd::Stopped) | None => Some(Bye { reason: Reason::Stopping, detail: 0 }),
        };
        if let Some(bye) = bye {
            sealer.seal_with(MessageKind::Bye, out, |out| bye.encode(out));
        }
        // It has ended, whether the other is told or not.
        let _ = writer.write_all(out).and_then(|()| writer.flush());
        lock(&self.end).get_or_insert(LinkEnd::Stopped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time limit of both sides.
    const LIMIT_MS: u64 = 100;
    const LIMIT: Duration = Duration::from_millis(LIMIT_MS);

    /// Asks for work without a pause, and does what it is asked for.
    struct Worker {
        /// What one task takes, once.
        task: Duration,
        asked: u64,
        done: u64,
        enough: u64,
        heard_ms: u64,
    }

    impl Worker {
        fn new(task: Duration) -> Self {
            Worker { task, asked: 0, done: 0, enough: 5, heard_ms: 0 }
        }
    }

    impl Machine for Worker {
        fn receive(&mut self, kind: MessageKind, _: &[u8], now_ms: u64) -> Step {
            self.heard_ms = now_ms;
            if kind == MessageKind::Mark {
                thread::sleep(self.task);
                self.done += 1;
            }
            match kind {
                MessageKind::Bye => Err(Ended::By(Reason::Moved, 0)),
                _ => Ok(()),
            }
        }

        fn fill(&mut self, sealer: &mut Sealer, out: &mut Vec<u8>, now_ms: u64) -> Step<Filled> {
            if now_ms.saturating_sub(self.heard_ms) > LIMIT_MS {
                return Err(Ended::By(Reason::Silent, 0));
            }
            if self.asked < self.enough {
                self.asked += 1;
                sealer.seal(MessageKind::Mark, b"task", out);
                return Ok(Filled::More);
            }
            // It alone is what is said while nothing is asked for.
            sealer.seal(MessageKind::Beat, b"", out);
            if self.done == self.enough {
                Err(Ended::By(Reason::Stopping, 0))
            } else {
                Ok(Filled::Idle)
            }
        }

        fn nap(&mut self, _: bool) -> Duration {
            LIMIT / 10
        }

        fn most_body_len(&self) -> u32 {
            0
        }

        fn heard(&mut self, now_ms: u64) {
            self.heard_ms = self.heard_ms.max(now_ms);
        }
    }

    /// S24: either side, or both, has work that takes many times the limit, and more of it waits: nobody is silent.
    #[test]
    fn who_works_is_not_silent() {
        let ways = [[true, false], [false, true], [true, true]];
        let ways =
            ways.into_iter().flat_map(|slow| [(slow, Link::pair()), (slow, Link::sockets())]);
        for (slow, (first, second)) in ways {
            let ends = [(first, Side::Client), (second, Side::Server)].map(Some);
            let done: Vec<_> = thread::scope(|scope| {
                let drives: Vec<_> = ends
                    .into_iter()
                    .flatten()
                    .zip(slow)
                    .map(|((link, side), is_slow)| {
                        scope.spawn(move || {
                            let how = Drive {
                                side,
                                secrets: Secrets { keys: Vec::new(), binding: [0; 32] },
                                timeout: LIMIT,
                                beat: LIMIT / 10,
                                max_body_len: 0,
                                stop: Arc::default(),
                            };
                            let task = if is_slow { 3 * LIMIT } else { Duration::ZERO };
                            drive(link, &how, &Arc::default(), || Worker::new(task))
                        })
                    })
                    .collect();
                drives.into_iter().map(|drive| drive.join().unwrap()).collect()
            });
            for (machine, end) in &done {
                let told = format!("{slow:?}: {end:?}");
                assert!(!told.contains("Silent"), "{told}");
                assert!(machine.is_some(), "{told}");
            }
            // Who was done first said goodbye.
            assert!(done.iter().any(|(machine, _)| machine.as_ref().unwrap().done == 5));
        }
    }

    /// Says something once for each task. What it has to say can wait for the end of a nap; the second is a long one.
    #[derive(Default)]
    struct Patient {
        tasks: usize,
        said: usize,
        naps: usize,
    }

    impl Machine for Patient {
        fn receive(&mut self, _: MessageKind, _: &[u8], _: u64) -> Step {
            self.tasks += 1;
            Ok(())
        }

        fn fill(&mut self, sealer: &mut Sealer, out: &mut Vec<u8>, _: u64) -> Step<Filled> {
            if self.said < self.tasks {
                self.said += 1;
                sealer.seal(MessageKind::Mark, b"", out);
            }
            Ok(Filled::Idle)
        }

        fn is_pressing(&self) -> bool {
            false
        }

        fn nap(&mut self, _: bool) -> Duration {
            self.naps += 1;
            if self.naps == 2 { Duration::from_secs(3600) } else { SHORT_NAP }
        }

        fn most_body_len(&self) -> u32 {
            0
        }

        fn heard(&mut self, _: u64) {}
    }

    /// Takes what is said, and has the machine take another task meanwhile.
    struct Hearer(Arc<Shared<Patient>>, Sender<()>);

    impl Write for Hearer {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            lock(&self.0.machine).receive(MessageKind::Mark, b"", 0).unwrap();
            self.0.took(false);
            let _ = self.1.send(());
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is taken after the machine was asked what it has to say, and before who asked naps for long, wakes him, though it does not press and
    /// his last nap was short.
    #[test]
    fn what_does_not_press_is_said_after_a_short_nap_and_not_after_a_long_one() {
        let secrets = Secrets { keys: Vec::new(), binding: [0; 32] };
        let (mut client, mut there) = Handshake::client(&secrets, [1; 32]);
        let mut server = Handshake::server(&secrets, [2; 32]);
        let sealer = loop {
            let mut back = Vec::new();
            let _ = server.receive(&there, &mut back).unwrap();
            there.clear();
            if let Some((sealer, _)) = client.receive(&back, &mut there).unwrap() {
                break sealer;
            }
        };
        let shared = Arc::new(Shared {
            machine: Mutex::new(Patient { tasks: 1, ..Patient::default() }),
            signal: Arc::default(),
            stop: Arc::default(),
            end: Mutex::new(None),
            naps: AtomicBool::new(false),
            beat: Duration::from_secs(3600),
        });
        let (tell, said) = bounded(0);
        let mut hearer = Hearer(Arc::clone(&shared), tell);
        let writing = Arc::clone(&shared);
        let writing = spawn("test", move || writing.write(sealer, &mut hearer));
        for _ in 0..4 {
            said.recv_timeout(Duration::from_secs(20)).expect("it is said");
        }
        drop(said);
        shared.stop.stop();
        shared.signal.wake();
        writing.join().unwrap();
    }

    /// Gives whatever is asked for until it is closed, and notes the most.
    struct Flood(Arc<Mutex<(usize, usize)>>, Arc<AtomicBool>);

    impl Read for Flood {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.1.load(Ordering::Relaxed) {
                return Ok(0);
            }
            let mut seen = lock(&self.0);
            *seen = (seen.0.max(buf.len()), seen.1 + buf.len());
            buf.fill(7);
            Ok(buf.len())
        }
    }

    /// C12: who has proven nothing has no more than 4 KiB taken in for him, however much he says.
    #[test]
    fn a_stranger_is_read_sparingly() {
        for keys in [Vec::new(), vec![crate::LinkKey::new([3; 32])]] {
            let seen = Arc::new(Mutex::new((0, 0)));
            let (closed, flood) = (Arc::new(AtomicBool::new(false)), Arc::clone(&seen));
            let flood = Flood(flood, Arc::clone(&closed));
            let close = move || closed.store(true, Ordering::Relaxed);
            let link = Link::new(flood, io::sink(), close);
            let how = Drive {
                side: Side::Server,
                secrets: Secrets { keys, binding: [0; 32] },
                timeout: LIMIT,
                beat: LIMIT / 10,
                max_body_len: 0,
                stop: Arc::default(),
            };
            let (machine, end) = drive(link, &how, &Arc::default(), || Worker::new(LIMIT));
            assert!(machine.is_none() && matches!(end, LinkEnd::Fault(_)), "{end:?}");
            let (most, all) = *lock(&seen);
            assert!(most <= 128 && all <= 4 << 10, "{most} {all}");
        }
    }
}
