//! What bad input gets: a typed error with file and offset, nothing served, nothing left behind.

use std::path::Path;
use std::process::Command;

use stillframe::simulation::{CallKind, Disk, DiskFault, Fate, SimDisk, Step};
use stillframe::{
    Compression, Database, Error, Fault, MAX_KEY_LEN, MAX_VALUE_LEN, SaveOptions, SnapshotFile,
};

use crate::forge::{Body, Entry, PARTS, Part, body, file, key, name, part_len};
use crate::saves::Dir;

const PATH: &str = "/file";
const HEADER_LEN: u64 = 96;

fn disk_with(bytes: &[u8]) -> SimDisk {
    let disk = SimDisk::new();
    let file = disk.create_new(Path::new(PATH)).unwrap();
    let mut at = 0;
    while at < bytes.len() {
        at += file.write_at(&bytes[at..], at as u64).unwrap();
    }
    disk
}

type Content = Vec<(String, Vec<(Vec<u8>, Vec<u8>)>)>;

fn content(db: &Database) -> Content {
    let entries = |name: &String| {
        let range = db.keyspace(name).unwrap().range::<&[u8]>(..);
        range.map(|item| item.map(|(k, v)| (k.to_vec(), v.to_vec())).unwrap()).collect()
    };
    db.keyspaces().unwrap().iter().map(|name| (name.clone(), entries(name))).collect()
}

/// Opens, reads in place, verifies, loads and streams; the last three must agree.
fn read(bytes: &[u8]) -> Result<Content, Error> {
    let disk = disk_with(bytes);
    let loaded = Database::builder().disk(disk.clone()).load(PATH);
    let streamed = Database::builder().load_from(bytes);
    let opened = SnapshotFile::open_on_disk(&disk, PATH);
    let verified = opened.and_then(|file| {
        let in_place = file.keyspaces().and_then(|names| {
            names.iter().try_for_each(|name| {
                let space = file.keyspace(name)?;
                space.range::<&[u8]>(..).try_for_each(|entry| space.get(entry?.0).map(drop))
            })
        });
        let verified = file.verify();
        assert!(
            verified.is_err() || in_place.is_ok(),
            "what is verified can be read: {in_place:?}"
        );
        verified
    });
    assert_eq!(verified.is_ok(), loaded.is_ok(), "{verified:?}, {:?}", loaded.err());
    assert_eq!(streamed.is_ok(), loaded.is_ok(), "{:?}, {:?}", streamed.err(), loaded.err());
    let (loaded, streamed) = (loaded?, streamed?);
    loaded.check();
    assert!(content(&loaded) == content(&streamed));
    Ok(content(&loaded))
}

fn fault_of(what: &str, bytes: &[u8]) -> Fault {
    refusal(what, bytes).1
}

/// The error, which must name file and place.
fn refusal(what: &str, bytes: &[u8]) -> (u64, Fault) {
    match read(bytes) {
        Err(Error::Corrupt { file, offset, what }) => {
            assert_eq!(file, Path::new(PATH));
            assert!(offset <= bytes.len() as u64, "at {offset} of {}", bytes.len());
            (offset, what)
        }
        Err(other) => panic!("{what}: {other}"),
        Ok(_) => panic!("{what} was taken"),
    }
}

/// Two keyspaces, some records, one expiry.
fn some_entries() -> Vec<Entry> {
    let mut entries = vec![name("a", 1), name("b", 2)];
    entries.extend((0..5_u8).map(|i| (key(1, [b'k', i]), vec![b'v'; usize::from(i)], 0)));
    entries.push((key(2, ""), b"the empty key".to_vec(), u64::MAX));
    entries
}

fn with(more: impl IntoIterator<Item = Entry>) -> Vec<Entry> {
    let mut entries = some_entries();
    entries.extend(more);
    entries
}

#[test]
fn a_file_written_from_the_description_is_read() {
    let content = read(&file(&body(&some_entries()), None)).unwrap();
    assert_eq!(content.len(), 2);
    assert_eq!(content[0].1.len(), 5);
    assert_eq!(content[1].1, [(Vec::new(), b"the empty key".to_vec())]);
}

#[test]
fn keys_out_of_order_or_twice_are_refused_behind_right_checksums() {
    let sorted = some_entries();
    for i in 0..sorted.len() - 1 {
        let mut swapped = sorted.clone();
        swapped.swap(i, i + 1);
        let fault = fault_of("keys out of order", &file(&body(&swapped), None));
        assert_eq!(fault, Fault::Order { field: "keys" }, "entries {i} and {} swapped", i + 1);
        let mut doubled = sorted.clone();
        doubled.insert(i, sorted[i].clone());
        let fault = fault_of("a key twice", &file(&body(&doubled), None));
        assert_eq!(fault, Fault::Order { field: "keys" }, "entry {i} doubled");
    }
}

#[test]
fn keys_and_values_are_taken_at_their_limits_and_refused_past_them() {
    let long = |len: usize| file(&body(&with([(key(2, vec![b'k'; len]), vec![1], 0)])), None);
    assert_eq!(read(&long(MAX_KEY_LEN)).unwrap()[1].1[1].0.len(), MAX_KEY_LEN);
    assert!(matches!(fault_of("a long key", &long(MAX_KEY_LEN + 1)), Fault::Range { .. }));
    let short = file(&body(&[(vec![0, 0, 0], vec![1], 0)]), None);
    assert!(matches!(fault_of("a key without a keyspace", &short), Fault::Range { .. }));
    // 16 KiB is the longest value that lies among the others.
    let inline = |len: usize| file(&body(&with([(key(2, "v"), vec![1; len], 0)])), None);
    assert_eq!(read(&inline(16 << 10)).unwrap()[1].1[1].1.len(), 16 << 10);
    assert!(matches!(fault_of("a long value", &inline((16 << 10) + 1)), Fault::Range { .. }));
    // In memory, before anything changes.
    let db = Database::in_memory();
    let space = db.keyspace("k").unwrap();
    let seq = db.seq();
    let too_long = vec![0; MAX_KEY_LEN + 1];
    assert!(matches!(space.insert(&too_long, ""), Err(Error::KeyTooLarge { .. })));
    // Never touched, so never there.
    let too_large = vec![0; MAX_VALUE_LEN + 1];
    assert!(matches!(space.insert("k", &too_large), Err(Error::ValueTooLarge { .. })));
    assert_eq!(db.seq(), seq);
    space.insert(&too_long[1..], "longest").unwrap();
    let dir = Dir::new("limits");
    db.save(dir.file("file"), SaveOptions::default()).unwrap().wait().unwrap();
    let file = SnapshotFile::open(dir.file("file")).unwrap();
    assert_eq!(file.keyspace("k").unwrap().get(&too_long[1..]).unwrap().unwrap(), "longest");
}

#[test]
fn a_catalogue_that_makes_no_sense_is_refused() {
    let cases: [(&str, Vec<Entry>); 6] = [
        ("an empty name", vec![name("", 1)]),
        ("a long name", vec![name([b'n'; 256], 1)]),
        ("a name that is no text", vec![name([0xFF], 1)]),
        ("id 0", vec![name("a", 0)]),
        ("two names of one id", vec![name("a", 1), name("b", 1)]),
        ("a short id", vec![(key(0, "a"), vec![1, 0, 0], 0)]),
    ];
    for (what, entries) in cases {
        fault_of(what, &file(&body(&entries), None));
    }
    let longest = [name([b'n'; 255], u32::MAX)];
    assert_eq!(read(&file(&body(&longest), None)).unwrap().len(), 1);
}

/// Every number that the file states of itself, of four or eight bytes, wherever one may start.
#[test]
fn numbers_up_to_2_to_the_64_are_refused_behind_right_checksums() {
    let body = body(&some_entries());
    let good = file(&body, None);
    let expected = read(&good).unwrap();
    let words = [0, 1, 0x7FFF_FFFF, 0x8000_0000, u32::MAX - 3, u32::MAX];
    let longs = [1 << 32, 1 << 63, u64::MAX - 1_000, u64::MAX];
    let mut values: Vec<Vec<u8>> = words.iter().map(|word| word.to_le_bytes().to_vec()).collect();
    values.extend(longs.iter().map(|long: &u64| long.to_le_bytes().to_vec()));
    let (mut refused, mut harmless) = (0, Vec::new());
    for part in PARTS {
        for at in 0..part_len(part, &body) {
            for value in &values {
                let bytes = file(&body, Some((part, at, value)));
                match read(&bytes) {
                    Err(Error::Corrupt { .. }) => refused += 1,
                    Err(other) => panic!("{part:?} at {at}: {other}"),
                    // Nothing else knows which codec the writer meant to use.
                    Ok(content) => {
                        assert!(content == expected, "{part:?} at {at} changes what is read");
                        if bytes != good {
                            harmless.push((part, at));
                        }
                    }
                }
            }
        }
    }
    assert!(refused > 5_000, "{refused}");
    let is_footer = |(part, _): &(Part, usize)| matches!(part, Part::Footer);
    assert!(!harmless.iter().any(is_footer), "what the footer says is compared: {harmless:?}");
    harmless.dedup();
    println!("{refused} refused, harmless: {harmless:?}");
}

#[test]
fn decompression_bombs_are_refused() {
    let bomb = |raw_len: u32, stored: Vec<u8>| {
        let entries = 1;
        file(&Body { codec: 1, raw_len, stored, entries, raw_bytes: 0, fingerprint: 0 }, None)
    };
    // A literal, then one match that goes on and on, each byte of its length for 255 bytes of zeros.
    let zeros = |len: usize| {
        let mut stored = vec![0x1F, 0, 1, 0];
        stored.extend(vec![255; (len - 1 - 19) / 255]);
        stored.push(((len - 1 - 19) % 255) as u8);
        stored.push(0); // the last sequence: no literals
        stored
    };
    let mut out = vec![0; 1 << 20];
    assert_eq!(lz4_flex::block::decompress_into(&zeros(1 << 20), &mut out).unwrap(), 1 << 20);
    // As much as a block may hold: unpacked, and found to be nothing.
    fault_of("a megabyte of zeros", &bomb(1 << 20, zeros(1 << 20)));
    // More than it may hold, and more than its bytes can stand for: not unpacked at all.
    let more = fault_of("more than a block", &bomb((1 << 20) + 1, zeros((1 << 20) + 1)));
    assert!(matches!(more, Fault::Range { field: "raw length", .. }), "{more}");
    // Refused for what the frame says, not for what came of it.
    let ratio = refusal("a ratio", &bomb(1 << 20, zeros(1 << 16)));
    assert_eq!(ratio, (HEADER_LEN + 4, Fault::Compression));
    // Another length than was stated.
    assert_eq!(fault_of("less", &bomb(9_999, zeros(10_000))), Fault::Compression);
    assert_eq!(fault_of("more", &bomb(10_001, zeros(10_000))), Fault::Compression);
    let whole = body(&some_entries());
    let stored = lz4_flex::block::compress(&whole.stored);
    let good = Body { codec: 1, stored, ..whole };
    assert_eq!(read(&file(&good, None)).unwrap().len(), 2);
}

#[test]
fn what_is_no_snapshot_file_is_refused_whoever_asks() {
    let good = file(&body(&some_entries()), None);
    let mut newer = good.clone();
    newer[8] = 2;
    assert_eq!(fault_of("newer", &newer), Fault::Version { got: 2, supported: 1 });
    let mut magic = good.clone();
    magic[0] = 0;
    assert_eq!(fault_of("wrong magic", &magic), Fault::Magic);
    assert!(matches!(fault_of("empty", &[]), Fault::Truncated { .. }));
    assert!(matches!(fault_of("a header", &good[..96]), Fault::Truncated { .. }));
    assert_eq!(fault_of("longer", &[&good[..], &[0]].concat()), Fault::NoEnd);

    let dir = Dir::new("no-file");
    let fifo = dir.file("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let db = Database::in_memory();
    for path in [dir.file(""), fifo, dir.file("nowhere/file")] {
        let told = |error: &Error| matches!(error, Error::Io { path: told, .. } if *told == path);
        assert!(told(&SnapshotFile::open(&path).unwrap_err()), "{}", path.display());
        assert!(told(&Database::load(&path).unwrap_err()), "{}", path.display());
        let saved = db.save(&path, SaveOptions::default()).and_then(|save| save.wait());
        assert!(matches!(saved, Err(Error::Io { .. })), "{}", path.display());
    }
    assert_eq!(std::fs::read_dir(dir.file("")).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn without_permission_nothing_is_read_or_written() {
    let disk = disk_with(&file(&body(&some_entries()), None));
    disk.settle();
    for kind in [CallKind::Open, CallKind::Read, CallKind::Len] {
        let disk = disk.fork();
        disk.inject(DiskFault::error(DiskFault::EACCES).on(kind).forever());
        let loaded = Database::builder().disk(disk.clone()).load(PATH);
        assert!(matches!(loaded, Err(Error::Io { .. })), "{kind:?}");
        assert!(matches!(SnapshotFile::open_on_disk(&disk, PATH), Err(Error::Io { .. })));
    }
    for kind in [CallKind::CreateNew, CallKind::Rename] {
        let disk = disk.fork();
        let before = disk.contents(Path::new(PATH)).unwrap();
        disk.inject(DiskFault::error(DiskFault::EACCES).on(kind));
        let db = Database::builder().disk(disk.clone()).in_memory().unwrap();
        let saved = db.save(PATH, SaveOptions::default()).and_then(|save| save.wait());
        assert!(matches!(saved, Err(Error::Io { .. })), "{kind:?}");
        assert_eq!(disk.contents(Path::new(PATH)).unwrap(), before);
        assert_eq!(disk.files().len(), 1, "nothing is left behind");
    }
}

fn filled(disk: &SimDisk, records: u32, value: u8) -> Database {
    let db = Database::builder().leaf_entries(8).disk(disk.clone()).in_memory().unwrap();
    let space = db.keyspace("k").unwrap();
    for i in 0..records {
        space.insert(i.to_be_bytes(), [value; 50]).unwrap();
    }
    db
}

/// However much room there is: the new file whole, or the old one and nothing else.
#[test]
fn a_full_disk_leaves_the_old_file() {
    let old = SimDisk::new();
    filled(&old, 5, 1).save(PATH, SaveOptions::default()).unwrap().wait().unwrap();
    old.settle();
    let old_bytes = old.contents(Path::new(PATH)).unwrap();
    let options = SaveOptions::default().compression(Compression::Raw).block_bytes(1 << 10);
    let needed = {
        let disk = old.fork();
        filled(&disk, 200, 2).save(PATH, options).unwrap().wait().unwrap().file_bytes
    };
    let old_len = old_bytes.len() as u64;
    for room in (0..needed).step_by(997).chain([needed - 1, needed]) {
        let disk = old.fork();
        let db = filled(&disk, 200, 2);
        disk.set_capacity(Some(old_len + room));
        let saved = db.save(PATH, options).unwrap().wait();
        assert_eq!(disk.files().len(), 1, "nothing is left behind with room for {room}");
        match saved {
            Ok(_) => assert_eq!(room, needed),
            Err(Error::Io { op: "write", source, .. }) => {
                assert_eq!(source.raw_os_error(), Some(DiskFault::ENOSPC));
                assert!(room < needed);
                assert_eq!(disk.contents(Path::new(PATH)).unwrap(), old_bytes);
            }
            Err(other) => panic!("with room for {room}: {other}"),
        }
        // It goes on, and saves once there is room.
        disk.set_capacity(None);
        db.keyspace("k").unwrap().insert("more", "").unwrap();
        db.save(PATH, options).unwrap().wait().unwrap();
    }
}

/// After every prefix of what a save does to the disk, with any of what was not synced kept, lost or damaged: the
/// old file or the new one, whole; the new one once the save has returned.
#[test]
fn a_power_cut_at_any_moment_leaves_the_old_file_or_the_new_one() {
    let disk = SimDisk::new();
    filled(&disk, 5, 1).save(PATH, SaveOptions::default()).unwrap().wait().unwrap();
    disk.settle();
    let old = SnapshotFile::open_on_disk(&disk, PATH).unwrap().info().fingerprint;
    let db = filled(&disk, 60, 2);
    let report = db.save(PATH, SaveOptions::default()).unwrap().wait().unwrap();
    let acknowledged = disk.change_count();
    assert_ne!(old, report.fingerprint);
    let mut images = 0;
    let mut found = std::collections::BTreeSet::new();
    for count in 0..=acknowledged {
        let point = disk.crash_point(count);
        let choices: Vec<Vec<Vec<(usize, Fate)>>> = point
            .pending()
            .iter()
            .map(|(index, change)| {
                let mut fates = vec![vec![], vec![(*index, Fate::Kept)]];
                if let Step::Write { data, .. } = &change.step {
                    let torn = Fate::Prefix(data.len() / 2);
                    fates.push(vec![(*index, torn)]);
                    fates.push(vec![(*index, Fate::Zeros)]);
                    fates.push(vec![(*index, Fate::Zeros), (*index, Fate::Sectors(0b10))]);
                    fates.push(vec![(*index, Fate::Garbage(1)), (*index, torn)]);
                }
                fates
            })
            .collect();
        let total: usize = choices.iter().map(Vec::len).product();
        assert!(total <= 10_000, "{total} images after {count} changes");
        for mut number in 0..total {
            let mut fates = Vec::new();
            for choice in &choices {
                fates.extend(&choice[number % choice.len()]);
                number /= choice.len();
            }
            let image = point.image(&fates);
            let file = SnapshotFile::open_on_disk(&image, PATH).unwrap();
            file.verify().unwrap();
            let fingerprint = file.info().fingerprint;
            assert!(fingerprint == old || fingerprint == report.fingerprint);
            assert!(count < acknowledged || fingerprint == report.fingerprint, "acknowledged");
            Database::builder().disk(image).load(PATH).unwrap();
            found.insert(fingerprint);
            images += 1;
        }
    }
    assert_eq!(found.len(), 2, "both were found");
    assert!(images > 20, "{images}");
}
