//! The house rules that a machine can check: who may use whom, and what no file may hold.
//!
//! The layers are drawn in ARCHITECTURE.md; [`ROOMS`] is that drawing as a table, [`SEAMS`] names what
//! only one file may touch. Sources are read as tokens, comments and literals left out, so that
//! `use crate::{tree, format::codec}`, `super::super::tree` and a path in the middle of an expression
//! all count. Inline `#[cfg(test)]` modules are exempt from the layers: tests may build what they need.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A line of the drawing: some top-level modules of `src`, and the lines below that they may use.
struct Room {
    name: &'static str,
    /// Modules of this line.
    modules: &'static [&'static str],
    /// Whether modules of this line may use one another; folders below never do.
    neighbours: bool,
    /// Names of other lines that may be used.
    may_use: &'static [&'static str],
}

/// Every allowed edge. A module that is not listed here fails the test: draw it first.
const ROOMS: &[Room] = &[
    Room {
        name: "upstairs",
        modules: &[
            "database",
            "keyspace",
            "transaction",
            "snapshot",
            "batch",
            "range",
            "keys",
            "keeper",
            "open",
            "install",
            "applier",
            "roles",
            "serve",
            "follow",
            "saver",
            "options",
            "progress",
            "replayer",
            "salvage",
            "backup",
            "stats",
            "expiry",
            "subscription",
            "typed",
        ],
        neighbours: true,
        may_use: &["storage", "replication", "tree", "commit", "format", "floor"],
    },
    Room {
        name: "storage",
        modules: &["storage"],
        neighbours: false,
        may_use: &["tree", "commit", "format", "floor"],
    },
    Room {
        name: "replication",
        modules: &["replication"],
        neighbours: false,
        may_use: &["tree", "commit", "format", "floor"],
    },
    Room { name: "tree", modules: &["tree"], neighbours: false, may_use: &["commit", "floor"] },
    Room { name: "commit", modules: &["commit"], neighbours: false, may_use: &["format", "floor"] },
    Room { name: "format", modules: &["format"], neighbours: false, may_use: &["floor"] },
    Room {
        name: "floor",
        modules: &[
            "slice",
            "error",
            "clock",
            "sync",
            "position",
            "fingerprint",
            "planted",
            "meters",
            "notices",
        ],
        neighbours: true,
        may_use: &[],
    },
];

/// A name that only its home may hold, tests included: everyone else goes through the seam.
struct Seam {
    /// A path and what lies below it, or, ending in `*`, all that begin so.
    name: &'static str,
    /// Files of `src`, or folders (ending in `/`), that may name it.
    homes: &'static [&'static str],
    /// Where the rule holds; empty for everywhere.
    within: &'static [&'static str],
    why: &'static str,
}

/// The model checker drives these; what it doesn't see there it can't order.
const CHECKED: &[&str] = &["tree/", "commit/"];

const SEAMS: &[Seam] = &[
    Seam {
        name: "std::fs",
        // A Unix socket's file is a name to connect to: it holds nothing that a Disk could forget.
        homes: &["storage/", "replication/link/socket_file.rs"],
        within: &[],
        why: "files are behind Disk",
    },
    Seam {
        name: "std::net",
        homes: &["replication/link.rs", "replication/link/"],
        within: &[],
        why: "sockets are behind Link",
    },
    Seam {
        name: "std::os::unix::net",
        // A Disk must refuse to open a socket: it is tested with one.
        homes: &["replication/link.rs", "replication/link/", "storage/mod.rs"],
        within: &[],
        why: "sockets are behind Link",
    },
    Seam {
        name: "std::time::SystemTime",
        homes: &["clock.rs"],
        within: &[],
        why: "the time of day is behind Clock",
    },
    Seam { name: "getrandom", homes: &["clock.rs"], within: &[], why: "randomness has one source" },
    Seam {
        name: "parking_lot",
        homes: &["sync.rs", "storage/sim/"],
        within: &[],
        why: "locks come from the sync facade",
    },
    Seam {
        name: "crossbeam_epoch",
        homes: &["sync.rs", "tree/directory.rs"],
        within: &[],
        why: "epochs come from the sync facade",
    },
    Seam {
        name: "shuttle",
        homes: &["sync.rs"],
        within: &[],
        why: "only the facade knows it is checked",
    },
    Seam {
        name: "std::sync::atomic::Atomic*",
        homes: &[],
        within: CHECKED,
        why: "atomics come from the sync facade",
    },
    Seam {
        name: "std::sync::Mutex",
        homes: &[],
        within: CHECKED,
        why: "locks come from the sync facade",
    },
    Seam {
        name: "std::sync::RwLock",
        homes: &[],
        within: CHECKED,
        why: "locks come from the sync facade",
    },
];

/// The files that may open `unsafe`; each numbers its invariants.
const UNSAFE: &[&str] = &["tree/page.rs", "tree/directory.rs", "storage/map.rs"];
/// `open_mapped` passes on what its caller promises: it is declared `unsafe` and calls map.rs, and no more.
const UNSAFE_PASSED_ON: (&str, usize) = ("storage/snapshot_file.rs", 2);

/// Words that no Rust file of the project may hold, and why.
const BANNED: &[(&[&str], &str)] = &[
    (&["todo", "!"], "what is committed is finished"),
    (&["unimplemented", "!"], "what is committed is finished"),
    (&["dbg", "!"], "left over from debugging"),
    (&["#", "[", "ignore"], "a test that nobody runs is no test"),
];

/// At 700 lines look for the second noun; past this the file is two files.
const MAX_LINES: usize = 1000;

#[test]
fn layers_hold() {
    let src = root().join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).expect("src/lib.rs is there");
    let exports = Exports::of(&lib);
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        let name = relative(&file, &src);
        if name == "lib.rs" || is_test_file(&name) {
            continue;
        }
        wrong.extend(layer_faults(&name, &read(&file), &exports));
    }
    report(&wrong);
}

#[test]
fn seams_are_kept() {
    let src = root().join("src");
    let mut wrong = Vec::new();
    for file in rust_files(&src) {
        wrong.extend(seam_faults(&relative(&file, &src), &read(&file)));
    }
    report(&wrong);
}

#[test]
fn files_are_in_order() {
    let mut wrong = Vec::new();
    for folder in ["src", "cli", "torture", "tests", "benches", "examples", "fuzz"] {
        for file in rust_files(&root().join(folder)) {
            wrong.extend(file_faults(&relative(&file, &root()), &read(&file)));
        }
    }
    report(&wrong);
}

#[test]
fn dependencies_say_why() {
    let mut wrong = Vec::new();
    for manifest in [
        "Cargo.toml",
        "cli/Cargo.toml",
        "torture/Cargo.toml",
        "fuzz/Cargo.toml",
        "benches/peers/Cargo.toml",
        "examples/tls/Cargo.toml",
    ] {
        let Ok(text) = fs::read_to_string(root().join(manifest)) else { continue };
        wrong.extend(dependency_faults(manifest, &text));
    }
    report(&wrong);
}

// ---- the rules, over text ----

/// Whoever renames a test renames it where it is said what it shows.
#[test]
fn scenarios_name_tests_that_are_there() {
    let scenarios = root().join("tests/SCENARIOS.md");
    let folders = ["src", "tests", "cli/tests", "torture/src"];
    let texts: Vec<_> = folders
        .iter()
        .flat_map(|folder| rust_files(&root().join(folder)))
        .map(|f| read(&f))
        .collect();
    let text = read(&scenarios);
    let mut count = 0;
    let mut wrong = Vec::new();
    for kind in ["it: ", "lib: ", "cli: "] {
        for (at, _) in text.match_indices(kind) {
            let rest = &text[at + kind.len()..];
            let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            let name = rest.split(|c| !is_part(c)).next().unwrap_or_default();
            let last = name.rsplit("::").next().unwrap_or_default();
            count += 1;
            // A program of the model checker is named where it is listed.
            let is_there = |text: &String| {
                text.contains(&format!("fn {last}()")) || text.contains(&format!("{last}:"))
            };
            if last.is_empty() || !texts.iter().any(is_there) {
                wrong.push(format!("{kind}{name}"));
            }
        }
    }
    report(&wrong);
    assert!(count > 60, "{count} tests are named");
}

fn layer_faults(file: &str, text: &str, exports: &Exports) -> Vec<String> {
    let from = module_path(file);
    let Some(user) = from.first().and_then(|module| room_of(module)) else {
        return vec![format!(
            "src/{file}: this module is on no line of the drawing; place it in ARCHITECTURE.md and in ROOMS"
        )];
    };
    let mut wrong = Vec::new();
    for path in paths(&without_tests(tokens(text)), &from) {
        let [krate, rest @ ..] = path.segments.as_slice() else { continue };
        if krate != "crate" {
            continue;
        }
        let at = format!("src/{file}:{}", path.line);
        let full = path.segments.join("::");
        let Some(module) = rest.first().and_then(|name| exports.module_of(name)) else {
            wrong.push(format!("{at}: `{full}` hides which module is meant; name the module"));
            continue;
        };
        if module == LIB {
            continue; // a limit that lib.rs itself states
        }
        let Some(used) = room_of(module) else {
            wrong.push(format!("{at}: `{full}`: module `{module}` is on no line of the drawing"));
            continue;
        };
        let inside = module == from[0] || (user.neighbours && used.name == user.name);
        if !inside && !user.may_use.contains(&used.name) {
            wrong.push(format!(
                "{at}: {} may not use {} (`{full}`); it may use {}",
                user.name,
                used.name,
                if user.may_use.is_empty() { "nothing".into() } else { user.may_use.join(", ") },
            ));
        }
    }
    wrong
}

fn seam_faults(file: &str, text: &str) -> Vec<String> {
    let all = tokens(text);
    let mut wrong = Vec::new();
    for path in paths(&all, &module_path(file)) {
        let full = path.segments.join("::");
        for Seam { name, homes, within, why } in SEAMS {
            let is_in = |places: &[&str]| {
                places.iter().any(|place| match place.strip_suffix('/') {
                    Some(_) => file.starts_with(place),
                    None => file == *place,
                })
            };
            let named = match name.strip_suffix('*') {
                Some(start) => full.starts_with(start),
                None => full == *name || full.starts_with(&format!("{name}::")),
            };
            let watched = within.is_empty() || is_in(within);
            if named && watched && !is_in(homes) {
                wrong.push(format!("src/{file}:{}: `{full}`: {why} (only {homes:?})", path.line));
            }
        }
    }
    let opened = all.iter().filter(|token| token.text == "unsafe");
    let allowed = if file == UNSAFE_PASSED_ON.0 { UNSAFE_PASSED_ON.1 } else { 0 };
    for token in opened.skip(allowed) {
        if !UNSAFE.contains(&file) {
            wrong.push(format!("src/{file}:{}: `unsafe` is opened only in {UNSAFE:?}", token.line));
        }
    }
    wrong
}

fn file_faults(file: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if !text.starts_with("//! ") {
        wrong.push(format!("{file}:1: the first line must be `//!` and say what lives here"));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        wrong.push(format!("{file}: {lines} lines; past {MAX_LINES} a file is two files"));
    }
    let all = tokens(text);
    for (words, why) in BANNED {
        for window in all.windows(words.len()) {
            if window.iter().map(|token| token.text.as_str()).eq(words.iter().copied()) {
                wrong.push(format!("{file}:{}: `{}`: {why}", window[0].line, words.concat()));
            }
        }
    }
    // Spelled apart, so that this file passes its own test.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    for (number, line) in text.lines().enumerate() {
        if let Some(mark) = marks.iter().find(|mark| line.contains(*mark)) {
            wrong.push(format!("{file}:{}: {mark}: finish it, or open an issue", number + 1));
        }
    }
    wrong
}

fn dependency_faults(manifest: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.trim_end().ends_with("dependencies]");
        } else if inside && line.contains('=') && !line.contains(" # ") && !line.starts_with('#') {
            wrong.push(format!("{manifest}:{}: say why this dependency is here", number + 1));
        }
    }
    wrong
}

fn room_of(module: &str) -> Option<&'static Room> {
    ROOMS.iter().find(|room| room.modules.contains(&module))
}

// ---- what names mean ----

/// Stands for lib.rs itself in [`Exports`].
const LIB: &str = "lib";

/// Which top-level module a name behind `crate::` leads to.
struct Exports(BTreeMap<String, String>);

impl Exports {
    /// From the `mod`, `pub use` and `const` items of lib.rs.
    fn of(lib: &str) -> Self {
        let all = tokens(lib);
        let mut names = BTreeMap::new();
        for pair in all.windows(2) {
            match pair[0].text.as_str() {
                "mod" => names.insert(pair[1].text.clone(), pair[1].text.clone()),
                "const" => names.insert(pair[1].text.clone(), LIB.to_owned()),
                _ => None,
            };
        }
        for (index, token) in all.iter().enumerate() {
            if token.text != "use" {
                continue;
            }
            let mut at = index + 1;
            let mut found = Vec::new();
            use_tree(&all, &mut at, Vec::new(), &mut found);
            for path in found {
                let mut segments = path.segments;
                segments.retain(|segment| segment != "crate" && segment != "self");
                if let [module, .., name] = segments.as_slice()
                    && names.contains_key(module)
                {
                    names.insert(name.clone(), module.clone());
                }
            }
        }
        Exports(names)
    }

    fn module_of(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

/// `tree/leaf.rs` is `tree::leaf`, `tree/mod.rs` is `tree`, `lib.rs` is the root.
fn module_path(file: &str) -> Vec<String> {
    let stem = file.strip_suffix(".rs").unwrap_or(file);
    let mut path: Vec<String> = stem.split('/').map(str::to_owned).collect();
    if path.last().is_some_and(|last| last == "mod" || last == "lib") {
        path.pop();
    }
    path
}

fn is_test_file(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/")
}

/// A path as written, resolved so far that it starts with `crate` or the name of another crate.
struct Named {
    segments: Vec<String>,
    line: usize,
}

/// Every path in `all` that is written out, as seen from module `home`.
fn paths(all: &[Token], home: &[String]) -> Vec<Named> {
    let mut found = Vec::new();
    // Inline modules around the present token, with the brace depth at which each ends.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while at < all.len() {
        match all[at].text.as_str() {
            "{" => {
                depth += 1;
                if at >= 2 && all[at - 2].text == "mod" {
                    inline.push((all[at - 1].text.clone(), depth));
                }
            }
            "}" => {
                if inline.last().is_some_and(|(_, inner)| *inner == depth) {
                    inline.pop();
                }
                depth -= 1;
            }
            _ => {}
        }
        let starts = is_word(&all[at].text) && (at == 0 || all[at - 1].text != "::");
        if starts && all.get(at + 1).is_some_and(|next| next.text == "::") {
            let mut here: Vec<String> = home.to_vec();
            here.extend(inline.iter().map(|(name, _)| name.clone()));
            let mut written = Vec::new();
            use_tree(all, &mut at, Vec::new(), &mut written);
            found.extend(written.into_iter().map(|path| path.resolve(&here)));
        } else {
            // `use getrandom;`, `extern crate parking_lot`: a name alone.
            if starts && at > 0 && matches!(all[at - 1].text.as_str(), "use" | "crate") {
                let segments = vec![all[at].text.clone()];
                found.push(Named { segments, line: all[at].line });
            }
            at += 1;
        }
    }
    found
}

/// Reads `a::b::{c, d::*}` at `at`, moving past it, into one path per leaf.
fn use_tree(all: &[Token], at: &mut usize, mut segments: Vec<String>, found: &mut Vec<Named>) {
    let text = |at: usize| all.get(at).map_or("", |token| token.text.as_str());
    let line = all.get(*at).map_or(0, |token| token.line);
    loop {
        match text(*at) {
            "{" => {
                *at += 1;
                while !matches!(text(*at), "}" | "") {
                    let before = *at;
                    use_tree(all, at, segments.clone(), found);
                    if text(*at) == "as" {
                        *at += 2;
                    }
                    if text(*at) == "," || *at == before {
                        *at += 1;
                    }
                }
                *at += 1;
                return;
            }
            "*" => {
                segments.push("*".to_owned());
                *at += 1;
                break;
            }
            word if is_word(word) => {
                // `self` after a prefix names the prefix.
                if word != "self" || segments.is_empty() {
                    segments.push(word.to_owned());
                }
                *at += 1;
            }
            _ => break,
        }
        let goes_on = matches!(text(*at + 1), "{" | "*") || is_word(text(*at + 1));
        if text(*at) != "::" || !goes_on {
            break;
        }
        *at += 1;
    }
    found.push(Named { segments, line });
}

impl Named {
    /// Turns leading `self` and `super` into the path from the crate's root.
    fn resolve(mut self, here: &[String]) -> Self {
        if !matches!(self.segments.first().map(String::as_str), Some("self" | "super")) {
            return self;
        }
        let mut base = here.to_vec();
        let mut used = 0;
        for segment in &self.segments {
            match segment.as_str() {
                "self" => {}
                "super" => drop(base.pop()),
                _ => break,
            }
            used += 1;
        }
        let mut segments = vec!["crate".to_owned()];
        segments.extend(base);
        segments.extend(self.segments.drain(used..));
        self.segments = segments;
        self
    }
}

// ---- tokens ----

#[derive(Debug, Clone, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Words, numbers, `::` and single other characters; comments, strings and character literals are left out.
fn tokens(text: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let len = skipped(rest).unwrap_or_else(|| {
            let len = if first.is_alphanumeric() || first == '_' {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            if !first.is_whitespace() {
                out.push(Token { text: rest[..len].to_owned(), line });
            }
            len
        });
        line += rest[..len].matches('\n').count();
        rest = &rest[len..];
    }
    out
}

/// The length of the comment or literal that `text` starts with.
fn skipped(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if text.starts_with("/*") {
        let mut depth = 0;
        let mut at = 0;
        while at < text.len() {
            match text.as_bytes()[at..] {
                [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
                [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
                _ => at += 1,
            }
            if depth == 0 {
                break;
            }
        }
        return Some(at);
    }
    let word = text.find(|c: char| !matches!(c, 'b' | 'c' | 'r')).unwrap_or(text.len());
    let (prefix, literal) = text.split_at(word);
    if matches!(prefix, "r" | "br" | "cr") {
        let hashes = literal.find(|c| c != '#').unwrap_or(literal.len());
        if literal[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = word + hashes + 1;
            let end = text[body..].find(&close).map_or(text.len(), |at| body + at + close.len());
            return Some(end);
        }
    }
    if matches!(prefix, "" | "b" | "c") && literal.starts_with('"') {
        return Some(word + quoted(literal, '"'));
    }
    if matches!(prefix, "" | "b") && literal.starts_with('\'') {
        // `'a'` and `'\n'` are characters, `'a` is a lifetime.
        let mut chars = literal.chars().skip(1);
        let (first, second) = (chars.next()?, chars.next());
        if first == '\\' || second == Some('\'') {
            return Some(word + quoted(literal, '\''));
        }
    }
    None
}

/// The length of the literal between `quote`s that `text` starts with.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Leaves out what stands in `#[cfg(test)] mod … { … }`.
fn without_tests(all: Vec<Token>) -> Vec<Token> {
    let texts: Vec<&str> = all.iter().map(|token| token.text.as_str()).collect();
    let mut out = Vec::new();
    let mut at = 0;
    while at < all.len() {
        if texts[at..].starts_with(&["#", "[", "cfg", "("]) {
            let attribute = at + 1 + group(&texts[at + 1..]);
            let for_tests = texts[at..attribute].contains(&"test");
            let mut next = attribute;
            while texts[next..].starts_with(&["#", "["]) {
                next += 1 + group(&texts[next + 1..]);
            }
            if for_tests
                && texts[next..].first() == Some(&"mod")
                && texts.get(next + 2) == Some(&"{")
            {
                at = next + 2 + group(&texts[next + 2..]);
                continue;
            }
        }
        out.push(all[at].clone());
        at += 1;
    }
    out
}

/// The length of the bracketed group that `texts` starts with.
fn group(texts: &[&str]) -> usize {
    let mut depth = 0;
    for (at, text) in texts.iter().enumerate() {
        match *text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    texts.len()
}

// ---- files ----

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn relative(file: &Path, base: &Path) -> String {
    file.strip_prefix(base).expect("below its base").to_string_lossy().replace('\\', "/")
}

/// All Rust files below `folder`, sorted; none if there is no such folder, as in a published crate.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return files };
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} faults\n{}", wrong.len(), wrong.join("\n"));
}

// ---- the test's own tests ----

const SAMPLE_LIB: &str = "
    //! Sample.
    mod slice; mod error; mod format; mod commit; mod tree; mod storage; mod replication;
    mod database; mod keyspace; mod batch;
    pub use {database::Database, error::{Error, Result}};
    pub use slice::Slice;
    pub const MAX_KEY_LEN: usize = 1;
";

#[test]
fn every_way_to_name_a_layer_is_seen() {
    let exports = Exports::of(SAMPLE_LIB);
    let check = |file: &str, text: &str, expected: usize| {
        let faults = layer_faults(file, text, &exports);
        assert_eq!(faults.len(), expected, "{file}: {text}\n{faults:?}");
    };
    check(
        "database.rs",
        "use crate::{tree::Tree, storage, replication::*, keyspace::Keyspace};",
        0,
    );
    check(
        "tree/leaf.rs",
        "use crate::sync::Mutex; use super::page::Page; use crate::commit::Cut;",
        1,
    );
    check("tree/leaf.rs", "use crate::{Error, MAX_KEY_LEN, slice::Slice}; use super::page;", 0);
    check("tree/leaf.rs", "use crate::format::codec;", 1);
    check("tree/leaf.rs", "use crate::{slice::Slice, format::{self, codec}};", 2);
    check("tree/leaf.rs", "fn f() { let x = crate::format::LEN; }", 1);
    check("tree/leaf.rs", "use super::super::format;", 1);
    check("tree/mod.rs", "use super::format; pub(in crate::tree) struct A;", 1);
    check("tree/mod.rs", "mod inner { use super::super::format; use super::leaf; }", 1);
    check("tree/mod.rs", "use crate::Database;", 1);
    check("tree/mod.rs", "use crate::*;", 1);
    check("tree/mod.rs", "use crate::unheard::Of;", 1);
    check(
        "tree/mod.rs",
        "// use crate::format;\n/* crate::format /* x */ */ const A: &str = \"crate::format\";",
        0,
    );
    check(
        "tree/mod.rs",
        "const A: &str = r#\"\"crate::format\"#; fn f<'a>(c: char) -> bool { c == '\"' }",
        0,
    );
    check("tree/mod.rs", "#[cfg(test)] mod tests { use crate::format::codec; }", 0);
    check(
        "tree/mod.rs",
        "#[cfg(test)] #[expect(x, reason = \"y\")] mod tests { use crate::format; } use crate::storage;",
        1,
    );
    check("tree/mod.rs", "#[cfg(feature = \"simulation\")] mod probe { use crate::format; }", 1);
    check("storage/mod.rs", "use crate::replication::link;", 1);
    check("replication/mod.rs", "use crate::storage::Disk;", 1);
    check(
        "storage/mod.rs",
        "use crate::{tree, commit, format, error}; use crate::database::Database;",
        1,
    );
    check("commit/mod.rs", "use crate::format::record; use crate::tree::Leaf;", 1);
    check("format/mod.rs", "use crate::error::Fault; use crate::commit::Seq;", 1);
    check("batch.rs", "use crate::{slice::Slice, error::Error}; use crate::keyspace::Keyspace;", 0);
    check("slice.rs", "use crate::error::Error; use crate::keyspace::Keyspace;", 1);
    check("attic.rs", "", 1);
}

#[test]
fn every_way_through_a_seam_is_seen() {
    let check = |file: &str, text: &str, expected: usize| {
        let faults = seam_faults(file, text);
        assert_eq!(faults.len(), expected, "{file}: {text}\n{faults:?}");
    };
    check("storage/mod.rs", "use std::fs::File; use std::{fs, io};", 0);
    check("database.rs", "use std::{fs, io};", 1);
    check("database.rs", "use std::{io::{self, Write}, fs::{self, File}}; use std::fsx;", 2);
    check("database.rs", "fn f() { std::fs::read(p); }", 1);
    check("database.rs", "// std::fs\nuse std::time::{Duration, Instant};", 0);
    check("tree/mod.rs", "use std::sync::{Arc, atomic::{AtomicU64, Ordering}};", 1);
    check("slice.rs", "use std::sync::{Arc, atomic::{AtomicU64, Ordering}};", 0);
    check("replication/link/listener.rs", "use std::net::TcpStream;", 0);
    check("replication/link.rs", "use std::os::unix::net::UnixStream; use std::fs;", 1);
    check("replication/framing.rs", "use std::os::unix::net::UnixStream; use std::net;", 2);
    check("tree/mod.rs", "use parking_lot::Mutex;", 1);
    check("sync.rs", "pub(crate) use parking_lot::Mutex; use std::sync::atomic::AtomicU64;", 0);
    check("tree/page.rs", "unsafe { p.read() }", 0);
    let passed_on = "pub unsafe fn open_mapped() { unsafe { Map::open() } }";
    check("storage/snapshot_file.rs", passed_on, 0);
    check("storage/snapshot_file.rs", &format!("{passed_on} unsafe impl Send for A {{}}"), 1);
    check("storage/mod.rs", passed_on, 2);
    check("tree/leaf.rs", "#![forbid(unsafe_code)] fn f() { unsafe { p.read() } }", 1);
}

#[test]
fn every_disorder_is_seen() {
    let check = |text: &str, expected: usize| {
        let faults = file_faults("a.rs", text);
        assert_eq!(faults.len(), expected, "{text}\n{faults:?}");
    };
    check("//! Lives here.\nfn f() {}", 0);
    check("use std::io;\n", 1);
    check("//! Lives here.\nfn f() { todo!() }", 1);
    check("//! Lives here.\nfn f() { dbg!(1); unimplemented ! () }", 2);
    check("//! Lives here.\n#[test]\n#[ignore = \"slow\"]\nfn f() {}", 1);
    check("//! Lives here.\nfn f() { \"todo!\" }\n// dbg!", 0);
    check(concat!("//! Lives here.\nfn f() {} // TO", "DO: more"), 1);
    check(&format!("//! Lives here.\n{}", "\n".repeat(MAX_LINES)), 1);
    let manifest = "[dependencies]\na = \"1\" # why\nb = \"1\"\n[features]\nc = []\n[dev-dependencies]\nd = \"1\"";
    assert_eq!(dependency_faults("Cargo.toml", manifest).len(), 2);
}
