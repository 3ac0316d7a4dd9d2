//! Figures for Prometheus: `Stats::to_prometheus` behind a page of HTTP, with nothing but the standard library. `examples/grafana-dashboard.json` is a dashboard of them.
//!
//! ```sh
//! cargo run --example metrics                      # asks itself once, and ends
//! cargo run --example metrics -- 127.0.0.1:9100    # goes on, for Prometheus
//! ```
//!
//! Who has a recorder of the `metrics` crate turns on the feature of that name and calls `Stats::publish` now and then instead.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use stillframe::Database;

fn answer(stream: TcpStream, db: &Database) -> std::io::Result<()> {
    let mut head = BufReader::new(stream).take(8 << 10);
    let mut line = String::new();
    // Whatever is asked for: there is one page. The head ends with an empty line.
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    let body = db.stats().to_prometheus();
    let mut stream = head.into_inner().into_inner();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1);
    let db = Database::in_memory();
    let films = db.keyspace("films")?;
    for n in 0..10_000_u32 {
        films.insert(n.to_be_bytes(), "moves")?;
    }
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:0"))?;
    let at = listener.local_addr()?;
    println!("figures at http://{at}/metrics");
    let rounds = if address.is_some() { usize::MAX } else { 1 };
    let asks = (rounds == 1).then(|| {
        std::thread::spawn(move || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(at)?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok(page)
        })
    });
    for stream in listener.incoming().take(rounds) {
        // Who asked may have gone; the next one may not.
        if let Err(error) = stream.and_then(|stream| answer(stream, &db)) {
            eprintln!("{error}");
        }
    }
    if let Some(asks) = asks {
        let page = asks.join().expect("it does not panic")?;
        assert!(page.contains("stillframe_records 10000\n"));
        assert!(page.contains("stillframe_commit_seconds_count"));
        println!("{} lines", page.lines().count());
    }
    Ok(())
}
