//! The command as scripts see it: run on temporary directories, judged by output and exit code.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A directory to work in, and the command run there.
struct Shell(TempDir);

impl Shell {
    fn new() -> Self {
        Shell(TempDir::new().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stillframe"));
        command.current_dir(self.path()).args(line.split_ascii_whitespace());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).stdin(Stdio::null()).output().unwrap()
    }

    /// Standard output of a run that must end with `code`.
    fn expect(&self, code: i32, line: &str) -> String {
        let output = self.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Standard error of a run that must end with `code`.
    fn fail(&self, code: i32, line: &str) -> String {
        let output = self.run(line);
        assert_eq!(output.status.code(), Some(code), "{line}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{line}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.expect(0, line)).unwrap()
    }

    /// Names in the directory, sorted.
    fn names(&self) -> Vec<String> {
        let names = self.path().read_dir().unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Every file below `root`: relative path and content, sorted.
fn tree(root: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else {
                let relative = path.strip_prefix(root).unwrap();
                let name = relative.as_os_str().as_encoded_bytes().to_vec();
                files.push((name, fs::read(path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_directory_tree_survives_the_round_trip() {
    let shell = Shell::new();
    shell.write("tree/readme", "hello\n");
    shell.write("tree/.hidden/empty", "");
    shell.write("tree/a/b/c/deep", vec![0xff; 300_000]);
    shell.write("tree/a/all", (0..=255).collect::<Vec<u8>>());
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"tree/not\xffutf8");
        fs::write(shell.path().join(name), "bytes").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", shell.path().join("tree/link")).unwrap();
    }
    let original = tree(&shell.path().join("tree"));
    #[cfg(target_os = "linux")]
    let original: Vec<_> = original.into_iter().filter(|(name, _)| name != b"link").collect();

    let report = shell.json("import tree a.still --json");
    assert_eq!(report["records"], original.len());
    let verified = shell.json("verify a.still --json");
    assert_eq!(verified["records"], report["records"]);
    assert_eq!(verified["fingerprint"], report["fingerprint"]);
    assert_eq!(shell.expect(0, "get a.still readme"), "hello\n");
    let all = shell.run("get a.still a/all");
    assert_eq!(all.stdout, (0..=255).collect::<Vec<u8>>());

    shell.expect(0, "export a.still out");
    assert_eq!(tree(&shell.path().join("out")), original);
    shell.expect(0, "import out b.still --compression raw --threads 1");
    shell.expect(0, "diff a.still b.still");
}

#[test]
fn json_lines_keep_whole_lines_under_a_field() {
    let shell = Shell::new();
    let lines = "{\"id\":\"b\",\"n\":1}\n{\"id\":7}\n\n{\"n\":[2], \"id\":\"ä\"}\n{\"id\":\"b\"}\n";
    shell.write("in.jsonl", lines);
    let report = shell.json("import in.jsonl a.still --key id --json");
    assert_eq!((&report["read"], &report["records"]), (&4.into(), &3.into()));
    assert_eq!(shell.expect(0, "get a.still b"), "{\"id\":\"b\"}");
    shell.expect(0, "export a.still out.jsonl");
    let out = fs::read_to_string(shell.path().join("out.jsonl")).unwrap();
    assert_eq!(out, "{\"id\":7}\n{\"id\":\"b\"}\n{\"n\":[2], \"id\":\"ä\"}\n");
}

#[test]
fn tab_separated_lines_are_taken_as_they_are_or_with_escapes() {
    let shell = Shell::new();
    shell.write("in.tsv", "a\\t\tx\ty\r\nb\t\nc\t\\x00\\n");
    shell.expect(0, "import in.tsv plain.still");
    assert_eq!(shell.expect(0, "scan plain.still"), "a\\\\t\tx\\ty\nb\t\nc\t\\\\x00\\\\n\n");
    assert_eq!(
        shell.expect(0, "export plain.still - --format tsv"),
        "a\\t\tx\ty\nb\t\nc\t\\x00\\n\n"
    );

    shell.expect(0, "import in.tsv escaped.still --escape");
    assert_eq!(shell.run("get escaped.still c").stdout, b"\0\n");
    assert_eq!(shell.expect(0, "get escaped.still a\\t --escape"), "x\\ty\n");
    assert_eq!(shell.expect(0, "get escaped.still 63 --hex"), "000a\n");
    assert!(shell.fail(2, "export escaped.still out.tsv").contains("--escape"));
    assert!(!shell.path().join("out.tsv").exists());
    shell.expect(0, "export escaped.still out.tsv --escape");
    shell.expect(0, "import out.tsv again.still --escape");
    shell.expect(0, "diff escaped.still again.still");
}

#[test]
fn a_bad_line_is_named_and_nothing_is_left_behind() {
    let shell = Shell::new();
    shell.write("bad.tsv", "a\t1\nno tab\n");
    shell.write("bad.jsonl", "{\"id\":1}\n{\"id\":2.5}\n");
    assert!(shell.fail(2, "import bad.tsv out.still").contains("bad.tsv line 2 at byte 4"));
    let message = shell.fail(2, "import bad.jsonl out.still --key id");
    assert!(message.contains("bad.jsonl line 2 at byte 9"), "{message}");
    assert!(shell.fail(2, "import bad.jsonl out.still").contains("--key"));
    shell.fail(2, "import nothing out.still --format tree");
    assert_eq!(shell.names(), ["bad.jsonl", "bad.tsv"]);
}

#[test]
fn what_exists_is_replaced_only_by_force() {
    let shell = Shell::new();
    shell.write("in.tsv", "a\t1\n");
    shell.write("out.still", "precious");
    shell.write("out.tsv", "precious");
    shell.write("out/file", "precious");
    assert!(shell.fail(2, "import in.tsv out.still").contains("--force"));
    shell.expect(0, "import in.tsv out.still --force");
    assert!(shell.fail(2, "export out.still out.tsv").contains("--force"));
    shell.expect(0, "export out.still out.tsv --force");
    assert_eq!(fs::read_to_string(shell.path().join("out.tsv")).unwrap(), "a\t1\n");
    assert!(shell.fail(2, "export out.still out").contains("not empty"));
    assert_eq!(shell.names(), ["in.tsv", "out", "out.still", "out.tsv"]);
}

#[test]
fn a_key_cannot_lead_out_of_the_directory() {
    let shell = Shell::new();
    for key in ["../evil", "/tmp/evil", "a/../../evil", "a//b", ".", ""] {
        shell.write("in.tsv", format!("a/ok\t1\n{key}\t2\n"));
        shell.expect(0, "import in.tsv in.still --force");
        let message = shell.fail(2, "export in.still sub/tree --format tree");
        assert!(!message.is_empty());
        fs::create_dir_all(shell.path().join("sub")).unwrap();
        let message = shell.fail(2, "export in.still sub/tree --format tree");
        assert!(message.contains("not a safe relative path"), "{key:?}: {message}");
        assert_eq!(shell.path().join("sub").read_dir().unwrap().count(), 0, "{key:?}");
        fs::remove_dir(shell.path().join("sub")).unwrap();
        assert_eq!(shell.names(), ["in.still", "in.tsv"], "{key:?}");
    }
    // A name can't be both file and directory.
    shell.write("in.tsv", "a\t1\na/b\t2\n");
    shell.expect(0, "import in.tsv in.still --force");
    assert!(shell.fail(2, "export in.still tree").contains("\"a/b\""));
    assert_eq!(shell.names(), ["in.still", "in.tsv"]);
}

#[test]
fn scans_select_and_order() {
    let shell = Shell::new();
    shell.write("in.tsv", "a1\tA\na2\tB\nb1\tC\nb2\t\\xff\n");
    shell.expect(0, "import in.tsv a.still --escape");
    let keys = |options: &str| {
        let keys = shell.expect(0, &format!("scan a.still --keys-only {options}"));
        keys.lines().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(keys(""), "a1 a2 b1 b2");
    assert_eq!(keys("--reverse"), "b2 b1 a2 a1");
    assert_eq!(keys("--prefix b"), "b1 b2");
    assert_eq!(keys("--prefix b --reverse --limit 1"), "b2");
    assert_eq!(keys("--from a2 --to b2"), "a2 b1");
    assert_eq!(keys("--to a2 --reverse"), "a1");
    assert_eq!(keys("--from b --to a"), "");
    assert_eq!(keys("--limit 0"), "");
    assert_eq!(keys("--hex --from 6232"), "6232");
    assert_eq!(shell.expect(0, "scan a.still --from b2"), "b2\t\\xff\n");
    let line = shell.json("scan a.still --from b2 --json");
    assert_eq!(line, serde_json::json!({ "key": "b2", "value_hex": "ff" }));
    shell.fail(2, "scan a.still --prefix a --from b");
}

#[test]
fn keyspaces_are_kept_apart() {
    let shell = Shell::new();
    shell.write("in.tsv", "a\t1\n");
    shell.expect(0, "import in.tsv one.still --keyspace x");
    shell.expect(0, "import in.tsv two.still --keyspace y --base one.still");
    let contents = shell.json("inspect two.still --json");
    let keyspaces = serde_json::json!([
        { "name": "x", "records": 1 },
        { "name": "y", "records": 1 },
    ]);
    assert_eq!(contents["keyspaces"], keyspaces);
    assert!(shell.expect(0, "inspect two.still").contains("y: 1 record"));
    let message = shell.fail(2, "get two.still a");
    assert!(message.contains("x, y") && message.contains("--keyspace"), "{message}");
    assert_eq!(shell.expect(0, "get two.still a --keyspace y"), "1");
    assert!(shell.fail(2, "get two.still a --keyspace z").contains("no keyspace \"z\""));
}

#[test]
fn a_key_that_is_not_there_is_exit_code_one() {
    let shell = Shell::new();
    shell.write("in.tsv", "a\t\n");
    shell.expect(0, "import in.tsv a.still");
    assert_eq!(shell.expect(0, "get a.still a"), "");
    assert_eq!(shell.expect(1, "get a.still b"), "");
    let answer: Value = serde_json::from_str(&shell.expect(1, "get a.still b --json")).unwrap();
    assert_eq!(answer, serde_json::json!({ "key": "b", "found": false }));
}

#[test]
fn diff_ends_like_diff() {
    let shell = Shell::new();
    shell.write("a.tsv", "gone\t1\nchanged\t1\nsame\t1\n");
    shell.write("b.tsv", "changed\t2\nnew\t1\nsame\t1\n");
    shell.expect(0, "import a.tsv a.still");
    shell.expect(0, "import b.tsv b.still");
    shell.expect(0, "import b.tsv c.still --keyspace other --base b.still");
    assert_eq!(
        shell.expect(1, "diff a.still b.still"),
        "~ default\tchanged\n- default\tgone\n+ default\tnew\n\
         default: 1 added, 1 removed, 1 changed, 1 the same\n"
    );
    assert_eq!(
        shell.expect(1, "diff b.still a.still --brief"),
        "default: 1 added, 1 removed, 1 changed, 1 the same\n"
    );
    let equal: Value =
        serde_json::from_str(&shell.expect(0, "diff a.still a.still --json")).unwrap();
    assert_eq!(equal["equal"], true);
    let lines = shell.expect(1, "diff b.still c.still --json");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    let added = serde_json::json!({ "change": "added", "keyspace": "other", "key": "changed" });
    assert_eq!(lines[0], added);
    assert_eq!(lines[3]["keyspaces"][1]["in_a"], false);
    shell.fail(2, "diff a.still missing.still");
    shell.write("d.still", "not a snapshot file, but long enough to look at");
    shell.fail(3, "diff a.still d.still");
}

#[test]
fn damage_names_file_and_offset() {
    let shell = Shell::new();
    let records: String = (0..5_000).map(|n| format!("key{n:06}\tvalue {n}\n")).collect();
    shell.write("in.tsv", records);
    shell.expect(0, "import in.tsv a.still");
    let whole = fs::read(shell.path().join("a.still")).unwrap();

    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 1;
    shell.write("flipped.still", &flipped);
    shell.write("short.still", &whole[..whole.len() - 10]);
    shell.write("long.still", [&whole[..], b"more"].concat());
    shell.write("alien.still", "#!/bin/sh\n".repeat(100));
    for name in ["flipped.still", "short.still", "long.still", "alien.still"] {
        let message = shell.fail(3, &format!("verify {name}"));
        assert!(message.contains(&format!("{name} at byte ")), "{message}");
        let error: Value =
            serde_json::from_str(&shell.fail(3, &format!("verify {name} --json"))).unwrap();
        assert_eq!(error["file"], name);
        assert!(error["offset"].as_u64().unwrap() <= whole.len() as u64 + 4);
    }
    shell.expect(3, "export flipped.still - --format tsv");
    assert!(shell.fail(2, "verify missing.still").contains("missing.still"));
    shell.fail(2, "verify ."); // a directory is not damage
}

#[test]
fn wrong_usage_is_exit_code_two() {
    let shell = Shell::new();
    for line in ["", "frobnicate", "get a.still", "demo --keys 0", "demo . --keys 5"] {
        assert_eq!(shell.run(line).status.code(), Some(2), "{line}");
    }
    assert!(shell.expect(0, "scan --help").contains("Exit codes"));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let shell = Shell::new();
    let records: String = (0..50_000).map(|n| format!("key{n:06}\tvalue {n}\n")).collect();
    shell.write("in.tsv", records);
    shell.expect(0, "import in.tsv a.still");
    let mut scan = shell.command("scan a.still");
    let mut scan = scan.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(16, scan.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "key000000\tvalue 0\n");
    let output = scan.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn standard_input_is_a_source() {
    let shell = Shell::new();
    let mut import = shell.command("import - a.still --format tsv");
    let mut import = import.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(b"a\t1\n").unwrap();
    assert!(import.wait().unwrap().success());
    assert_eq!(shell.expect(0, "get a.still a"), "1");
}

/// What `demo --json` promises to hold.
fn check_demo(report: &Value) {
    for field in [
        "records",
        "raw_bytes",
        "memory_bytes_per_record",
        "cut_us",
        "cut_p99_us",
        "extra_memory_bytes",
        "save_mb_per_s",
        "save_idle_mb_per_s",
        "file_bytes",
        "open_in_place_ms",
        "load_mb_per_s",
    ] {
        assert!(report[field].is_number(), "{field} in {report}");
    }
    for phase in ["idle", "saving"] {
        for field in ["ops_per_s", "p50_us", "p99_us", "p999_us", "max_us"] {
            assert!(report[phase][field].as_f64().unwrap() > 0.0, "{phase}.{field} in {report}");
        }
    }
    assert_eq!(report["fingerprints_equal"], true);
    let replica = &report["replica"];
    for field in ["full_sync_ms", "full_sync_bytes", "restart_ms", "lag_us", "lag_p99_us"] {
        assert!(replica[field].as_f64().unwrap() > 0.0, "{field} in {report}");
    }
    let how = replica["restart_caught_up"].as_str().unwrap();
    assert!(["partial", "delta"].contains(&how), "{report}");
    assert_eq!((&replica["restart_full_syncs"], &replica["equal"]), (&0.into(), &true.into()));
}

#[test]
fn the_demo_proves_made_records_and_leaves_nothing() {
    let shell = Shell::new();
    let output = shell.run("demo --keys 20000 --json --dir .");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // from_slice fails at anything after the first object.
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    check_demo(&report);
    assert_eq!(report["records"], 20_000);
    assert_eq!(shell.names(), [""; 0]);
}

#[test]
fn the_demo_proves_files_and_leaves_them_alone() {
    let shell = Shell::new();
    for n in 0..300 {
        shell.write(&format!("tree/{n}"), format!("file {n}\n").repeat(n * 7));
    }
    let before = tree(&shell.path().join("tree"));
    check_demo(&shell.json("demo tree --json --dir ."));
    assert_eq!(tree(&shell.path().join("tree")), before);
    assert_eq!(shell.names(), ["tree"]);
    assert!(shell.fail(2, "demo missing").contains("missing"));
}

#[cfg(unix)]
#[test]
fn an_interrupted_demo_leaves_nothing() {
    let shell = Shell::new();
    let mut demo = shell.command("demo --keys 1000 --dir .");
    let mut demo = demo.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while shell.names().is_empty() {
        assert!(demo.try_wait().unwrap().is_none(), "it ended before it made anything");
        std::thread::yield_now();
    }
    let kill = Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    assert_eq!(shell.names(), [""; 0]);
}

/// A database with a history of a keyspace, and the batches after which it had 1, 2, .. records.
fn database(shell: &Shell, name: &str) -> Vec<u64> {
    let database = stillframe::Database::open(shell.path().join(name)).unwrap();
    let users = database.keyspace("users").unwrap();
    let seqs = ["ada", "grace", "edsger"].map(|user| {
        users.insert(user, format!("{user}'s")).unwrap();
        database.seq().0
    });
    database.close().unwrap();
    seqs.to_vec()
}

#[test]
fn a_directory_is_opened_looked_into_copied_and_gone_back_in() {
    let shell = Shell::new();
    let seqs = database(&shell, "db");
    let opened = shell.json("open db --strict --json");
    assert_eq!((&opened["records"], &opened["seq"]), (&3.into(), &seqs[2].into()));
    assert_eq!(opened["keyspaces"][0]["name"], "users");
    let verified = shell.json("log verify db --json");
    assert_eq!((&verified["records"], &verified["seq"]), (&seqs[2].into(), &seqs[2].into()));
    let dump = shell.expect(0, "log dump db");
    let last = dump.lines().last().unwrap();
    assert_eq!(last, format!("{}\tput\tusers\tedsger\tedsger's", seqs[2]));
    let line = format!("log dump db --json --from {0} --to {0}", seqs[1]);
    let record: Value = serde_json::from_str(&shell.expect(0, &line)).unwrap();
    assert_eq!(record["effects"][0]["key"], "grace");
    let segments = shell.json("log list db --json");
    assert_eq!(segments[0]["state"], "begun");

    let copied = shell.json("backup db copy --json");
    assert_eq!(copied["seq"], seqs[2]);
    // Somebody has it open: that is no matter for a copy.
    let held = stillframe::Database::open(shell.path().join("db")).unwrap();
    shell.expect(0, "backup db second");
    assert!(shell.fail(2, "restore db other").contains("open already"));
    assert!(shell.fail(2, "open db").contains("open already"));
    drop(held);
    assert!(shell.fail(2, "backup db copy").contains("create copy"));
    for (seq, records) in seqs.iter().zip(1..) {
        let line = format!("restore copy at{records} --seq {seq} --json");
        assert_eq!(shell.json(&line)["records"], records);
        assert_eq!(shell.json(&format!("open at{records} --json"))["records"], records);
    }
    assert_eq!(shell.json("restore copy now --time 2999-01-01T00:00:00Z --json")["records"], 3);
    assert!(shell.fail(2, "restore copy far --seq 1000").contains("newer than the last batch"));
    assert!(!shell.path().join("far").exists());

    // What is no database is not made one.
    assert!(shell.fail(2, "open nowhere").contains("nowhere/identity"));
    assert!(!shell.path().join("nowhere").exists());
}

#[test]
fn a_snapshot_file_is_made_a_directory() {
    let shell = Shell::new();
    shell.write("in/a", "1");
    shell.expect(0, "import in out.still");
    shell.expect(0, "restore out.still db");
    assert_eq!(shell.json("open db --json")["records"], 1);
    assert!(shell.fail(2, "restore out.still more --seq 1").contains("one state only"));
}

#[test]
fn damage_is_named_and_salvaged_and_the_loss_is_listed() {
    let shell = Shell::new();
    database(&shell, "db");
    let log = shell.path().join("db/0000000001.log");
    let mut bytes = fs::read(&log).unwrap();
    let at = bytes.windows(7).position(|seven| seven == b"grace's").unwrap();
    bytes[at] ^= 1;
    fs::write(&log, bytes).unwrap();
    for line in ["open db", "log verify db"] {
        assert!(shell.fail(3, line).contains("0000000001.log at byte"), "{line}");
    }
    let lost: Value = serde_json::from_str(&shell.expect(1, "open db --salvage --json")).unwrap();
    assert_eq!((&lost["records"], lost["lost"].as_array().unwrap().len()), (&2.into(), 1));
    assert!(lost["lost"][0]["lost"].as_str().unwrap().starts_with("batches "));
    assert_eq!(shell.json("open db --strict --json")["records"], 2);
    assert!(shell.path().join("db/salvaged/0000000001.log").exists());
}

/// A command that goes on, and what it says in JSON lines; killed when dropped.
struct Running {
    child: Child,
    lines: Receiver<Value>,
    last: Value,
}

/// Whoever has not come so far by then has failed.
const PATIENCE: Duration = Duration::from_secs(60);

impl Shell {
    fn start(&self, line: &str) -> Running {
        // Should the tests be killed, what they started sees the end of its input.
        let mut command = self.command(&format!("{line} --json --every 50ms --until-eof"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap();
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, lines, last: Value::Null }
    }

    /// Serves `directory` on any port with the key in the file `key`; also where it listens.
    fn serve(&self, directory: &str, more: &str) -> (Running, String) {
        let line = format!("serve {directory} --listen 127.0.0.1:0 --key-file key {more}");
        let mut serve = self.start(&line);
        let said = serve.when("that it listens", |said| said["listening"][0].is_string());
        (serve, said["listening"][0].as_str().unwrap().to_owned())
    }

    /// Writes `count` records to a database that nobody has open; its last batch then.
    fn fill(&self, directory: &str, name: &str, count: u32) -> u64 {
        let database = stillframe::Database::open(self.path().join(directory)).unwrap();
        let films = database.keyspace("films").unwrap();
        for n in 0..count {
            films.insert(format!("{name} {n}"), vec![b'f'; 100]).unwrap();
        }
        let seq = database.seq().0;
        database.close().unwrap();
        seq
    }
}

impl Running {
    /// Waits until it says what is wanted.
    fn when(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        while !is_it(&self.last) {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(said) => self.last = said,
                Err(why) => panic!("{why}, waited for {what}, last was {}", self.last),
            }
        }
        self.last.clone()
    }

    /// Waits until it follows and has the batch.
    fn reaches(&mut self, seq: u64) -> Value {
        let has = |said: &Value| said["state"] == "streaming" && said["seq"] == seq;
        self.when(&format!("batch {seq}"), has)
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    }

    /// Ends it as a crash would.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The code it ends with when it is told to by `signal`.
    fn end(mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Position and fingerprint, as a node has told them.
fn state(said: &Value) -> (&Value, &Value, &Value) {
    (&said["history"], &said["seq"], &said["fingerprint"])
}

#[cfg(unix)]
#[test]
fn replicas_follow_over_tcp_and_unix_sockets_and_one_another() {
    let shell = Shell::new();
    shell.expect(0, "key key");
    assert!(shell.fail(2, "key key").contains("create key"));
    let seq = shell.fill("primary", "first", 2_000);
    let (mut primary, address) = shell.serve("primary", "--listen unix:socket");
    let follow = |name: &str, more: &str| {
        shell.start(&format!("follow {name} --key-file key --name of-{name} {more}"))
    };
    let mut tcp = follow("tcp", &format!("--from {address} --listen unix:passed-on"));
    let mut unix = follow("unix", "--from unix:socket");
    let mut chained = follow("chained", "--from unix:passed-on");
    let of_primary = primary.last.clone();
    for replica in [&mut tcp, &mut unix, &mut chained] {
        let said = replica.reaches(seq);
        assert_eq!(state(&said), state(&of_primary));
        // More than one where the source had nothing yet itself.
        assert!(said["counts"]["full"].as_u64() >= Some(1) && said["lag"] == 0, "{said}");
    }
    let has_two = |said: &Value| {
        let replicas = said["replicas"].as_array().unwrap();
        replicas.iter().filter(|replica| replica["applied_seq"] == seq).count() == 2
    };
    let said = primary.when("two replicas", has_two);
    let names: Vec<_> = (0..2).map(|at| said["replicas"][at]["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"of-tcp") && names.contains(&"of-unix"), "{said}");
    assert_eq!(said["replicas"][0]["caught_up"], "full");
    tcp.when("a replica of its own", |said| said["replicas"][0]["name"] == "of-chained");

    // All of them are open, and can be asked all the same.
    for (name, role) in [("primary", "primary"), ("tcp", "replica"), ("chained", "replica")] {
        let status = shell.json(&format!("status {name} --json"));
        assert_eq!(status["role"], role, "{status}");
        assert_eq!(status["dataset"], shell.json("status primary --json")["dataset"]);
    }
    assert!(shell.fail(2, "promote tcp").contains("locked"));
    assert_eq!(chained.end("-TERM"), Some(0));
    assert_eq!(unix.end("-INT"), Some(0));
    drop(tcp.child.stdin.take());
    assert_eq!(tcp.child.wait().unwrap().code(), Some(0));
    assert_eq!(primary.end("-TERM"), Some(0));
    assert!(!shell.path().join("socket").exists());
}

#[test]
fn top_shows_what_is_served() {
    let shell = Shell::new();
    shell.expect(0, "key key");
    shell.fill("primary", "film", 10);
    assert!(shell.fail(2, "top primary").contains("not open with --metrics"));
    let (primary, _) = shell.serve("primary", "--metrics 127.0.0.1:0");
    let address = primary.last["metrics"].as_str().unwrap().to_owned();
    for target in ["primary", &address] {
        let mut top = shell.start(&format!("top {target}"));
        let seen = top.when("the records", |seen| seen["records"] == 10);
        assert_eq!(seen["keyspaces"][0]["name"], "films");
        assert_eq!((&seen["not_durable"], &seen["stills"]), (&0.into(), &0.into()));
    }
    let from = primary.last["listening"][0].as_str().unwrap().to_owned();
    let line = format!("follow copy --from {from} --key-file key --metrics 127.0.0.1:0");
    let mut copy = shell.start(&line);
    copy.when("all", |said| said["state"] == "streaming" && said["lag"] == 0);
    let mut top = shell.start("top copy");
    let seen = top.when("what it follows", |seen| seen["is_streaming"] == true);
    assert_eq!((&seen["is_primary"], &seen["lag"]), (&false.into(), &0.into()));
    let mut top = shell.start("top primary");
    top.when("its replica", |seen| seen["replicas"] == 1 && seen["most_behind"] == 0);
    assert_eq!(copy.end("-TERM"), Some(0));
    assert_eq!(primary.end("-TERM"), Some(0));
    assert!(!shell.path().join("primary/metrics-address").exists());
    assert!(shell.fail(2, &format!("top {address}")).contains(&address));
}

#[cfg(unix)]
#[test]
fn without_the_key_nothing_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let shell = Shell::new();
    for name in ["key", "other", "public", "short"] {
        shell.expect(0, &format!("key {name}"));
    }
    shell.fill("primary", "secret", 10);
    let (primary, address) = shell.serve("primary", "");
    for key in ["--key-file other", ""] {
        let mut replica = shell.start(&format!("follow replica --from {address} {key}"));
        let said = replica.when("why it is not let in", |said| said["last_end"].is_string());
        assert!(said["last_end"].as_str().unwrap().contains("key"), "{said}");
        assert_eq!((&said["seq"], &said["links"].as_u64().is_some()), (&0.into(), &true));
    }
    assert_eq!(primary.last["replicas"], serde_json::json!([]));
    let public = fs::Permissions::from_mode(0o644);
    fs::set_permissions(shell.path().join("public"), public).unwrap();
    fs::write(shell.path().join("short"), "c0ffee").unwrap();
    for (file, why) in [("public", "chmod 600"), ("short", "64 hexadecimal"), ("none", "none")] {
        for line in ["serve primary --listen 127.0.0.1:0", "follow new --from 127.0.0.1:1"] {
            let message = shell.fail(2, &format!("{line} --key-file {file}"));
            assert!(message.contains(why) && !message.contains("c0ffee"), "{message}");
        }
    }
    assert!(!shell.path().join("new").exists());
}

#[cfg(unix)]
#[test]
fn both_sides_are_killed_and_go_on_without_a_full_sync() {
    let shell = Shell::new();
    shell.expect(0, "key key");
    let seq = shell.fill("primary", "first", 2_000);
    let (primary, _) = shell.serve("primary", "--listen unix:socket");
    let line = "follow replica --from unix:socket --key-file key";
    let mut replica = shell.start(line);
    replica.reaches(seq);

    // The replica finds its primary again, and what that wrote meanwhile.
    primary.kill();
    replica.when("that it is gone", |said| said["state"] == "connecting");
    let seq = shell.fill("primary", "second", 500);
    let (primary, _) = shell.serve("primary", "--listen unix:socket");
    let said = replica.reaches(seq);
    assert_eq!(state(&said), state(&primary.last));
    let counts = (&said["counts"]["full"], &said["counts"]["partial"]);
    assert_eq!((counts, &said["caught_up"]), ((&1.into(), &1.into()), &"partial".into()));
    assert!(said["links"].as_u64().unwrap() >= 2, "{said}");

    // What its log had not stored yet comes again.
    replica.kill();
    let mut replica = shell.start(line);
    let said = replica.reaches(seq);
    assert_eq!(state(&said), state(&primary.last));
    assert_eq!(said["counts"]["full"], 0);
    assert_eq!(replica.end("-TERM"), Some(0));
    assert_eq!(primary.end("-TERM"), Some(0));
    let seq = shell.fill("primary", "third", 10);
    let (primary, _) = shell.serve("primary", "--listen unix:socket");
    let mut replica = shell.start(line);
    let said = replica.reaches(seq);
    assert_eq!(state(&said), state(&primary.last));
    assert_eq!(said["counts"]["full"], 0);
}

#[cfg(unix)]
#[test]
fn a_replica_is_promoted_and_the_old_primary_gives_up_what_it_wrote_alone() {
    let shell = Shell::new();
    shell.expect(0, "key key");
    let seq = shell.fill("first", "both", 100);
    let (primary, address) = shell.serve("first", "");
    let mut replica = shell.start(&format!("follow second --from {address} --key-file key"));
    replica.reaches(seq);
    assert_eq!(replica.end("-TERM"), Some(0));
    assert_eq!(primary.end("-TERM"), Some(0));
    let before = shell.json("status second --json");
    assert_eq!((&before["role"], &before["seq"]), (&"replica".into(), &seq.into()));
    assert!(shell.expect(0, "status second").contains("until it is promoted"));

    // Both write.
    shell.fill("first", "alone", 50);
    let promoted = shell.json("promote second --json");
    assert_eq!((&promoted["promoted"], &promoted["seq"]), (&true.into(), &(seq + 1).into()));
    assert!(shell.expect(1, "promote second").contains("a primary already"));
    assert!(shell.expect(1, "promote first").contains("a primary already"));
    let after = shell.json("status second --json");
    assert_eq!(after["role"], "primary");
    assert!(after["term"].as_u64() > before["term"].as_u64(), "{after}");
    assert_eq!(after["lineage"].as_array().unwrap().last().unwrap()["writer"], after["node"]);
    let seq = shell.fill("second", "new", 10);

    let (primary, address) = shell.serve("second", "");
    let line = format!("follow first --from {address} --key-file key");
    let mut old = shell.start(&line);
    let said = old.reaches(seq);
    assert_eq!(state(&said), state(&primary.last));
    assert_eq!(said["caught_up"], "rewind");
    assert_eq!(old.end("-TERM"), Some(0));
    assert_eq!(shell.json("status first --json")["role"], "replica");

    // What has nothing in common is given up when that is said, and not before.
    shell.fill("stranger", "other", 10);
    let line = format!("follow stranger --from {address} --key-file key");
    let mut stranger = shell.start(&line);
    let said = stranger.when("that it does not follow", |said| said["refused"].is_string());
    assert_eq!(said["state"], "refused");
    assert_eq!(stranger.end("-TERM"), Some(0));
    let mut stranger = shell.start(&format!("{line} --resync"));
    let said = stranger.reaches(seq);
    assert_eq!(state(&said), state(&primary.last));
    assert_eq!(said["caught_up"], "full");
}

#[test]
fn what_is_no_database_is_neither_served_nor_promoted() {
    let shell = Shell::new();
    for line in ["serve nowhere --listen 127.0.0.1:0", "promote nowhere", "status nowhere"] {
        assert!(shell.fail(2, line).contains("nowhere/identity"), "{line}");
    }
    for line in ["serve .", "serve . --listen here", "follow a", "follow a --from unix:"] {
        assert_eq!(shell.run(line).status.code(), Some(2), "{line}");
    }
    assert_eq!(shell.names(), [""; 0]);
}
