//! Every kind of link: carries bytes both ways, ends, and is ended while somebody waits in it.

use std::thread;

use super::listener::Listener;
use super::socket_file::tests::TempDir;
use super::*;

const SOON: Duration = Duration::from_secs(20);

/// Both ends of a link of each kind.
fn links() -> Vec<(&'static str, Link, Link)> {
    let (first, second) = Link::pair();
    let mut links = vec![("pair", first, second)];

    let (accept, accepted) = bounded(1);
    let listener = Listener::tcp("127.0.0.1:0", move |link| accept.send(link).unwrap()).unwrap();
    let client = Link::connect_tcp(listener.address().to_string(), SOON).unwrap();
    links.push(("tcp", client, accepted.recv().unwrap()));

    let dir = TempDir::new();
    let path = dir.file("socket");
    let (accept, accepted) = bounded(1);
    let listener = Listener::unix(&path, move |link| accept.send(link).unwrap()).unwrap();
    let client = Link::connect_unix(&path).unwrap();
    links.push(("unix", client, accepted.recv().unwrap()));
    drop(listener);

    let (first, second) = UnixStream::pair().unwrap();
    let own = |socket: UnixStream| {
        let (reader, writer) = (socket.try_clone().unwrap(), socket.try_clone().unwrap());
        Link::new(reader, writer, move || drop(socket.shutdown(Shutdown::Both)))
    };
    links.push(("own", own(first), own(second)));
    links
}

/// Reads to the end, or to an error, which is one after a close.
fn read_all(reader: &mut dyn Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = reader.read_to_end(&mut bytes);
    bytes
}

/// Writes until it fails, and tells of every write.
fn write_on(writer: &mut dyn Write, wrote: &Sender<()>) -> io::Error {
    loop {
        match writer.write_all(&[7; 100_000]) {
            Ok(()) => drop(wrote.send(())),
            Err(error) => return error,
        }
    }
}

/// What comes out of a link, byte by byte.
struct Bytes {
    reader: Reader,
    /// Of a chunk that is read in part.
    rest: Vec<u8>,
}

fn bytes_of(reader: Reader) -> Bytes {
    Bytes { reader, rest: Vec::new() }
}

impl Read for Bytes {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let pipe = match &mut self.reader {
            Reader::Bytes(reader) => return reader.read(buf),
            Reader::Pipe(pipe) => pipe,
        };
        if self.rest.is_empty() && !buf.is_empty() {
            self.rest = pipe.next(Duration::from_secs(3600)).unwrap();
        }
        let count = (&self.rest[..]).read(buf)?;
        self.rest.drain(..count);
        Ok(count)
    }
}

/// Waits until nothing is written any more.
fn stalled(wrote: &Receiver<()>) {
    while wrote.recv_timeout(Duration::from_millis(100)).is_ok() {}
}

#[test]
fn bytes_come_back_as_they_went() {
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    for (kind, ours, theirs) in links() {
        let (mut ours, mut theirs) = (ours.split(), theirs.split());
        thread::scope(|scope| {
            let mut out = bytes_of(theirs.reader);
            let echo = scope.spawn(move || io::copy(&mut out, &mut theirs.writer));
            let writer = &mut ours.writer;
            let bytes = &bytes;
            let write = scope.spawn(move || {
                bytes.chunks(12_345).for_each(|chunk| writer.write_all(chunk).unwrap());
                writer.flush()
            });
            let mut back = vec![0; bytes.len()];
            bytes_of(ours.reader).read_exact(&mut back).unwrap();
            write.join().unwrap().unwrap();
            assert!(back == *bytes, "{kind}");
            ours.closer.close();
            assert_eq!(echo.join().unwrap().unwrap(), bytes.len() as u64, "{kind}");
        });
    }
}

#[test]
fn closing_wakes_who_reads() {
    for closes_here in [true, false] {
        for (kind, ours, theirs) in links() {
            let (ours, theirs) = (ours.split(), theirs.split());
            let closer = if closes_here { &ours.closer } else { &theirs.closer }.clone();
            let (begin, begun) = bounded(1);
            let read = thread::spawn(move || {
                begin.send(()).unwrap();
                read_all(&mut bytes_of(ours.reader))
            });
            begun.recv().unwrap();
            // Time to begin to wait; if it was too little the test passes all the same.
            stalled(&begun);
            closer.close();
            closer.close();
            assert_eq!(read.join().unwrap(), b"", "{kind}");
        }
    }
}

#[test]
fn closing_wakes_who_writes() {
    for (kind, ours, theirs) in links() {
        let mut ours = ours.split();
        let closer = ours.closer.clone();
        let (wrote, writes) = bounded(0);
        let write = thread::spawn(move || {
            let error = write_on(&mut ours.writer, &wrote);
            (error, ours.writer.write(b"more").is_err())
        });
        stalled(&writes);
        closer.close();
        drop(writes);
        let (error, fails_on) = write.join().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{kind}");
        assert!(fails_on, "{kind}");
        drop(theirs);
    }
}

#[test]
fn who_is_left_reads_the_rest_and_the_end() {
    for (kind, ours, theirs) in links() {
        let (mut ours, mut theirs) = (ours.split(), theirs.split());
        theirs.writer.write_all(b"the rest").unwrap();
        // One's own closer keeps it open.
        let closer = (kind != "own").then(|| theirs.closer.clone());
        drop(theirs);
        let mut reader = bytes_of(ours.reader);
        assert_eq!(read_all(&mut reader), b"the rest", "{kind}");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "{kind}");
        let (wrote, _) = bounded(0);
        let error = write_on(&mut ours.writer, &wrote);
        let is_end = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        assert!(is_end.contains(&error.kind()), "{kind}: {error}");
        // Of a link that is gone.
        closer.inspect(Closer::close);
    }
}

#[test]
fn who_waits_to_write_is_woken_when_the_other_goes() {
    for (kind, ours, theirs) in links() {
        let mut ours = ours.split();
        let (wrote, writes) = bounded(0);
        let write = thread::spawn(move || write_on(&mut ours.writer, &wrote));
        stalled(&writes);
        drop((theirs, writes));
        let error = write.join().unwrap();
        let is_end = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        assert!(is_end.contains(&error.kind()), "{kind}: {error}");
    }
}

#[test]
fn a_pair_holds_so_much_and_no_more() {
    let (ours, theirs) = Link::pair();
    let (mut ours, theirs) = (ours.split(), theirs.split());
    let write = thread::spawn(move || {
        let mut written = 0;
        while let Ok(count) = ours.writer.write(&[7; 2 * PIPE_CHUNK_LEN]) {
            assert!(count <= PIPE_CHUNK_LEN);
            written += count;
        }
        written
    });
    let mut byte = [0];
    let mut reader = bytes_of(theirs.reader);
    assert_eq!(reader.read(&mut byte).unwrap(), 1);
    theirs.closer.close();
    // One chunk is taken, and so one more was let in at the most.
    assert!(write.join().unwrap() <= (PIPE_CHUNKS + 1) * PIPE_CHUNK_LEN);
    assert_eq!(reader.read(&mut []).unwrap(), 0);
}

#[test]
fn links_say_who_is_at_the_other_end() {
    let names = links().into_iter().map(|(kind, ours, _)| (kind, ours.split().peer));
    for (kind, name) in names {
        let expected = match kind {
            "pair" => "this process",
            "tcp" => "127.0.0.1:",
            "unix" => "/socket",
            _ => "a link of the caller's",
        };
        assert!(name.contains(expected), "{kind}: {name}");
    }
    let link = Link::pair().0.named("somebody").bound_to([9; 32]);
    assert_eq!(format!("{link:?}"), "Link(somebody)");
    assert_eq!(link.split().binding, [9; 32]);
}

#[test]
fn where_nobody_listens_connecting_fails() {
    let listener = Listener::tcp("127.0.0.1:0", |_| {}).unwrap();
    // Its port is taken, so that nobody can listen there by chance.
    let connected = TcpStream::connect(listener.address().to_string()).unwrap();
    let address = connected.local_addr().unwrap();
    let refused = Link::connect_tcp(address, SOON).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let late = Link::connect_tcp("127.0.0.1:1", Duration::ZERO).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);
    let none: &[SocketAddr] = &[];
    let none = Link::connect_tcp(none, SOON).unwrap_err();
    assert_eq!(none.kind(), io::ErrorKind::InvalidInput);
    let gone = Link::connect_unix(&TempDir::new().file("socket")).unwrap_err();
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
}
