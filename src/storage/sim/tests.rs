//! What the simulated disk must do, beside the real one.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use super::super::tests::TestDir;
use super::super::{OsDisk, read_exact_at, write_all_at};
use super::*;

const SEEDS: u64 = 2_000;

fn root() -> &'static Path {
    Path::new("/")
}

fn path(name: &str) -> PathBuf {
    root().join(name)
}

/// A disk with one durable file, `/file`, and a handle that writes it.
fn disk_with(bytes: &[u8]) -> (SimDisk, Box<dyn DiskFile>) {
    let disk = SimDisk::new();
    let file = disk.create_new(&path("file")).unwrap();
    write_all_at(&*file, bytes, 0).unwrap();
    disk.settle();
    (disk, file)
}

/// Everything that `/file` may hold after a crash, by many seeds; `None` if it is gone.
fn outcomes(disk: &SimDisk) -> BTreeSet<Option<Vec<u8>>> {
    (0..SEEDS).map(|seed| disk.crash(seed).contents(&path("file")).ok()).collect()
}

#[track_caller]
fn check_reached(outcomes: &BTreeSet<Option<Vec<u8>>>, what: &str, wanted: &[u8]) {
    assert!(outcomes.contains(&Some(wanted.to_vec())), "no seed of {SEEDS} left it {what}");
}

#[test]
fn what_was_synced_is_never_lost() {
    let disk = SimDisk::new();
    disk.create_dir(&path("dir")).unwrap();
    disk.sync_dir(root()).unwrap();
    let file = disk.create_new(&path("dir/a")).unwrap();
    write_all_at(&*file, &[1; 3_000], 0).unwrap();
    file.sync_data().unwrap();
    disk.rename(&path("dir/a"), &path("dir/b")).unwrap();
    disk.sync_dir(&path("dir")).unwrap();
    // Pending, and none of it over what was synced.
    write_all_at(&*file, &[2; 3_000], 3_000).unwrap();
    disk.create_new(&path("dir/c")).unwrap();
    for seed in 0..SEEDS {
        let after = disk.crash(seed);
        let bytes = after.contents(&path("dir/b")).unwrap();
        assert_eq!(bytes[..3_000], [1; 3_000], "seed {seed}");
        assert!(after.contents(&path("dir/a")).is_err(), "seed {seed}");
    }
}

#[test]
fn an_unsynced_write_is_kept_lost_torn_or_longer_than_its_bytes() {
    let (disk, file) = disk_with(&[b'o'; 700]);
    write_all_at(&*file, &[b'n'; 1_000], 400).unwrap();
    let outcomes = outcomes(&disk);
    let old = vec![b'o'; 700];
    let mut new = vec![b'o'; 400];
    new.resize(1_400, b'n');
    check_reached(&outcomes, "kept", &new);
    check_reached(&outcomes, "lost", &old);
    // Sector 0 ends at 512, sector 1 at 1024.
    check_reached(&outcomes, "torn after a sector", &[&new[..512], &old[512..]].concat());
    check_reached(&outcomes, "torn before a sector", &[&old[..512], &new[512..]].concat());
    let zeros = [&old[..], &[0; 700]].concat();
    check_reached(&outcomes, "with zeros", &zeros);
    check_reached(
        &outcomes,
        "with zeros in one sector",
        &[&zeros[..1_024], &new[1_024..]].concat(),
    );
    let torn_at_a_byte = |bytes: &Vec<u8>| {
        (400..1_400)
            .any(|at| at % 512 != 0 && bytes.len() == at.max(700) && bytes[..at] == new[..at])
    };
    assert!(outcomes.iter().flatten().any(torn_at_a_byte), "never torn within a sector");
    let garbage = |bytes: &Vec<u8>| bytes.iter().any(|byte| !b"on\0".contains(byte));
    assert!(outcomes.iter().flatten().any(garbage), "never garbage past the old end");
    for bytes in outcomes.iter().flatten() {
        assert_eq!(bytes[..400], old[..400]);
        assert!(bytes[400..700].iter().all(|byte| b"on".contains(byte)), "synced bytes decayed");
    }
}

#[test]
fn unsynced_writes_reach_the_disk_in_any_order() {
    let (disk, file) = disk_with(b"....");
    write_all_at(&*file, b"AA", 0).unwrap();
    write_all_at(&*file, b"BB", 1).unwrap();
    let outcomes = outcomes(&disk);
    check_reached(&outcomes, "with the second alone", b".BB.");
    check_reached(&outcomes, "with the first alone", b"AA..");
    check_reached(&outcomes, "in order", b"ABB.");
    check_reached(&outcomes, "out of order", b"AAB.");
}

#[test]
fn an_unsynced_length_is_kept_or_lost() {
    let (disk, file) = disk_with(b"0123456789");
    file.set_len(4).unwrap();
    let reached = outcomes(&disk);
    check_reached(&reached, "cut", b"0123");
    check_reached(&reached, "uncut", b"0123456789");
    assert_eq!(reached.len(), 2);
    file.sync_data().unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(b"0123".to_vec())]));
}

#[test]
fn names_are_kept_or_lost_one_by_one_until_their_directory_is_synced() {
    let (disk, _) = disk_with(b"old");
    let file = disk.create_new(&path("temporary")).unwrap();
    write_all_at(&*file, b"new", 0).unwrap();
    file.sync_all().unwrap();
    disk.rename(&path("temporary"), &path("file")).unwrap();
    let seen = |disk: &SimDisk| -> BTreeSet<(Vec<u8>, bool)> {
        let look = |after: SimDisk| {
            let file = after.contents(&path("file")).unwrap();
            (file, after.contents(&path("temporary")).is_ok())
        };
        (0..SEEDS).map(|seed| look(disk.crash(seed))).collect()
    };
    let all = [(b"new", false), (b"new", true), (b"old", false), (b"old", true)];
    assert_eq!(seen(&disk), all.map(|(file, temporary)| (file.to_vec(), temporary)).into());
    disk.sync_dir(root()).unwrap();
    assert_eq!(seen(&disk), BTreeSet::from([(b"new".to_vec(), false)]));

    disk.remove(&path("file")).unwrap();
    let reached = outcomes(&disk);
    assert_eq!(reached, BTreeSet::from([None, Some(b"new".to_vec())]));
    disk.sync_dir(root()).unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([None]));
}

#[test]
fn a_lost_directory_takes_all_that_is_in_it() {
    let disk = SimDisk::new();
    disk.create_dir(&path("dir")).unwrap();
    disk.create_new(&path("dir/a")).unwrap().sync_all().unwrap();
    disk.sync_dir(&path("dir")).unwrap();
    let found = (0..SEEDS).map(|seed| disk.crash(seed).files()).collect::<BTreeSet<_>>();
    assert_eq!(found, BTreeSet::from([vec![], vec![path("dir/a")]]));
}

#[test]
fn a_failed_sync_leaves_doubt_that_no_later_sync_lifts() {
    let (disk, file) = disk_with(b"....");
    write_all_at(&*file, b"AB", 0).unwrap();
    disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::SyncData));
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(DiskFault::EIO));
    write_all_at(&*file, b"CD", 1).unwrap();
    file.sync_data().unwrap();
    let reached = outcomes(&disk);
    check_reached(&reached, "without the doubtful write", b".CD.");
    check_reached(&reached, "with the doubtful write", b"ACD.");
    // The write that was synced lies on top, whatever becomes of the other.
    assert_eq!(reached.len(), 2);

    let (disk, _) = disk_with(b"");
    disk.create_new(&path("new")).unwrap();
    disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::SyncDir));
    disk.sync_dir(root()).unwrap_err();
    disk.sync_dir(root()).unwrap();
    assert!((0..SEEDS).any(|seed| disk.crash(seed).files() == [path("file")]));
    disk.remove(&path("new")).unwrap();
    disk.sync_dir(root()).unwrap();
    assert!((0..SEEDS).all(|seed| disk.crash(seed).files() == [path("file")]));
}

/// Replaces `/file` by `bytes`, as every save does; the sync of the file can be left out.
fn replace(disk: &dyn Disk, bytes: &[u8], sync: bool) -> io::Result<()> {
    let file = disk.create_new(&path("temporary"))?;
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    write_all_at(&*file, head, 0)?;
    write_all_at(&*file, tail, head.len() as u64)?;
    if sync {
        file.sync_all()?;
    }
    disk.rename(&path("temporary"), &path("file"))?;
    disk.sync_dir(root())
}

/// Every subset of what is pending at every moment, each write kept, torn or only as long.
fn every_image(disk: &SimDisk, mut visit: impl FnMut(usize, SimDisk)) {
    for count in 0..=disk.change_count() {
        let point = disk.crash_point(count);
        let mut choices: Vec<Vec<(usize, Fate)>> = vec![Vec::new()];
        for (index, change) in point.pending() {
            let fates = match change.step {
                Step::Write { .. } => &[Fate::Kept, Fate::Prefix(1), Fate::Zeros][..],
                _ => &[Fate::Kept],
            };
            for choice in choices.clone() {
                choices.extend(fates.iter().map(|fate| {
                    let mut choice = choice.clone();
                    choice.push((*index, *fate));
                    choice
                }));
            }
        }
        for choice in choices {
            visit(count, point.image(&choice));
        }
    }
}

#[test]
fn a_replacement_is_whole_in_every_image_if_and_only_if_it_syncs_first() {
    for sync in [true, false] {
        let (disk, _) = disk_with(b"old");
        replace(&disk, b"new!", sync).unwrap();
        let mut images = 0;
        let mut torn = 0;
        every_image(&disk, |count, after| {
            images += 1;
            let bytes = after.contents(&path("file")).unwrap();
            let old_allowed = count < disk.change_count();
            if bytes != b"new!" && !(old_allowed && bytes == b"old") {
                torn += 1;
            }
        });
        assert!(images > 40, "{images}");
        assert_eq!(torn > 0, !sync, "{torn} of {images} images torn, synced: {sync}");
    }
}

#[test]
fn each_call_can_fail_once_or_for_ever() {
    let run = |fault: Option<DiskFault>| {
        let (disk, _) = disk_with(b"old");
        let before = disk.calls().len();
        fault.into_iter().for_each(|fault| disk.inject(fault));
        let result = replace(&disk, b"new!", true);
        (result, disk.calls()[before..].to_vec(), disk)
    };
    let (result, calls, _) = run(None);
    result.unwrap();
    let kinds: Vec<CallKind> = calls.iter().map(|call| call.kind).collect();
    use CallKind::{CreateNew, Rename, SyncAll, SyncDir, Write};
    assert_eq!(kinds, [CreateNew, Write, Write, SyncAll, Rename, SyncDir]);
    assert_eq!(&*calls[4].path, path("temporary"));
    for n in 0..calls.len() {
        let fault = DiskFault::error(DiskFault::ENOSPC).after(n as u64);
        let (result, calls, disk) = run(Some(fault.clone()));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull, "call {n}");
        assert_eq!(calls.len(), n + 1);
        assert_eq!(calls[n].fault, Some(Effect::Error(DiskFault::ENOSPC)));
        disk.list(root()).unwrap();

        let (_, _, disk) = run(Some(fault.forever()));
        disk.list(root()).unwrap_err();
        disk.clear_faults();
        disk.list(root()).unwrap();
    }
    // An interruption is no failure, unless it never ends.
    run(Some(DiskFault::error(DiskFault::EINTR).on(Write).after(1))).0.unwrap();
    let (result, ..) = run(Some(DiskFault::error(DiskFault::EINTR).on(Write).forever()));
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::Interrupted);
}

#[test]
fn faults_pick_their_calls_and_the_first_planted_strikes_first() {
    let (disk, file) = disk_with(b"0123456789");
    disk.inject(DiskFault::short(4).on(CallKind::Read).after(1));
    disk.inject(DiskFault::error(DiskFault::EIO).on(CallKind::Len).on(CallKind::Read).after(1));
    let mut buf = [0; 10];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 10);
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 4);
    file.write_at(b"x", 0).unwrap();
    file.len().unwrap_err();
    file.len().unwrap();

    disk.inject(DiskFault::short(3).forever());
    write_all_at(&*file, b"abcdefghij", 0).unwrap();
    read_exact_at(&*file, &mut buf, 0).unwrap();
    assert_eq!(&buf, b"abcdefghij");
    assert_eq!(disk.call_counts()[&CallKind::Write], 6);
    disk.inject(DiskFault::short(0).forever());
    disk.clear_faults();
    disk.inject(DiskFault::short(0));
    assert_eq!(write_all_at(&*file, b"a", 0).unwrap_err().kind(), io::ErrorKind::WriteZero);
}

#[test]
fn a_full_disk_takes_what_fits() {
    let (disk, file) = disk_with(b"0123");
    disk.set_capacity(Some(10));
    let other = disk.create_new(&path("other")).unwrap();
    assert_eq!(other.write_at(b"abcdefgh", 0).unwrap(), 6);
    assert_eq!(other.write_at(b"gh", 6).unwrap_err().kind(), io::ErrorKind::StorageFull);
    // What is there can still be overwritten; a hole takes room too.
    assert_eq!(file.write_at(b"zz", 3).unwrap(), 1);
    assert_eq!(file.set_len(5).unwrap_err().kind(), io::ErrorKind::StorageFull);
    disk.remove(&path("other")).unwrap();
    file.set_len(10).unwrap();
    file.write_at(b"x", u64::MAX).unwrap_err();
    file.set_len(u64::MAX).unwrap_err();
    disk.set_capacity(None);
    file.set_len(11).unwrap();
}

#[test]
fn the_same_calls_give_the_same_log_and_the_same_seed_the_same_loss() {
    let run = || {
        let (disk, file) = disk_with(b"old");
        replace(&disk, &[7; 2_000], true).unwrap();
        write_all_at(&*file, &[8; 100], 0).unwrap();
        disk
    };
    let (one, other) = (run(), run());
    let lines = |disk: &SimDisk| disk.changes().iter().map(Change::to_string).collect::<Vec<_>>();
    assert_eq!(lines(&one), lines(&other));
    assert_eq!(lines(&one)[1], "write /temporary at 0, 1000 bytes");
    for seed in 0..200 {
        let count = usize::try_from(seed).unwrap() % one.change_count();
        let look = |disk: &SimDisk| {
            let point = disk.crash_point(count);
            let after = point.image(&point.draw(&mut Random::new(seed)));
            let files = after.files();
            let bytes: Vec<_> = files.iter().map(|file| after.contents(file).unwrap()).collect();
            (files, bytes)
        };
        assert_eq!(look(&one), look(&other), "seed {seed}");
    }
}

#[test]
fn forks_and_images_are_disks_of_their_own() {
    let (disk, file) = disk_with(b"old");
    let fork = disk.fork();
    let image = disk.crash(0);
    write_all_at(&*file, b"new", 0).unwrap();
    write_all_at(&*image.open_write(&path("file")).unwrap(), b"img", 0).unwrap();
    fork.edit(&path("file"), |bytes| bytes[0] ^= 1).unwrap();
    let contents = |disk: &SimDisk| disk.contents(&path("file")).unwrap();
    assert_eq!([contents(&disk), contents(&image), contents(&fork)], [*b"new", *b"img", *b"nld"]);
    assert_eq!(contents(&fork.crash(3)), b"nld");
    assert!(disk.open(&path("file")).unwrap().write_at(b"x", 0).is_err());
}

/// A call's answer, comparable: bytes or the kind of the error.
type Answer = Result<Vec<u8>, io::ErrorKind>;

/// One of the calls that have a path; the handle is put aside if it opens a file.
fn call_disk(
    disk: &dyn Disk,
    what: u64,
    name: &Path,
    other: &Path,
    handles: &mut Vec<Box<dyn DiskFile>>,
) -> Answer {
    let opened = match what {
        0 => disk.create_new(name).map(Some),
        1 => disk.open(name).map(Some),
        2 => disk.open_write(name).map(Some),
        3 => disk.rename(name, other).map(|()| None),
        4 => disk.remove(name).map(|()| None),
        5 => disk.create_dir(name).map(|()| None),
        _ => {
            let names = disk.list(name).map_err(|error| error.kind())?;
            return Ok(names.join(OsStr::new("|")).into_encoded_bytes());
        }
    };
    handles.extend(opened.map_err(|error| error.kind())?);
    Ok(Vec::new())
}

/// One of the calls on an open file.
fn call_file(file: &dyn DiskFile, what: u64, fill: u8, offset: u64, len: usize) -> Answer {
    let mut buf = vec![fill; len];
    match what {
        7 => file.write_at(&buf, offset).map(|count| vec![u8::try_from(count).unwrap()]),
        8 => file.read_at(&mut buf, offset).map(|count| buf[..count].to_vec()),
        9 => file.set_len(offset).map(|()| Vec::new()),
        _ => file.len().map(|len| len.to_le_bytes().to_vec()),
    }
    .map_err(|error| error.kind())
}

/// Random calls, made to the simulated disk and to the real one: both answer alike.
#[test]
fn it_behaves_as_the_operating_system_does() {
    let names = ["a", "b", "d", "d/a", "d/b", "a/x", "e/x"];
    let mut successes = BTreeMap::new();
    for seed in 0..40 {
        let dir = TestDir::new();
        let sim = SimDisk::new();
        let mut random = Random::new(seed);
        let (mut on_sim, mut on_os) = (Vec::new(), Vec::new());
        for step in 0..200 {
            let mut below = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
            let (name, other) = (names[below(names.len())], names[below(names.len())]);
            let what = below(11) as u64;
            let (got, expected) = if what < 7 {
                // Directories can be renamed on the real disk alone.
                let name = if what == 3 && name == "d" { "a" } else { name };
                let other = if what == 3 && other == "d" { "b" } else { other };
                // And of the names, d alone is a directory, so that it can be left out there.
                let name = if what == 5 { "d" } else { name };
                (
                    call_disk(&sim, what, &path(name), &path(other), &mut on_sim),
                    call_disk(&OsDisk, what, &dir.path(name), &dir.path(other), &mut on_os),
                )
            } else if on_os.is_empty() {
                continue;
            } else {
                let (at, fill) = (below(on_os.len()), u8::try_from(below(256)).unwrap());
                let (offset, len) = (below(50) as u64, below(40));
                (
                    call_file(&*on_sim[at], what, fill, offset, len),
                    call_file(&*on_os[at], what, fill, offset, len),
                )
            };
            assert_eq!(got, expected, "seed {seed}, step {step}: {what} of {name}, {other}");
            *successes.entry(what).or_insert(0) += u32::from(got.is_ok());
        }
    }
    assert!(successes.len() == 11 && successes.values().all(|&count| count > 20), "{successes:?}");
}
