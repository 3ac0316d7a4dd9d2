//! Bytes as people, shells and JSON take them.
//!
//! The escaped form is one line and safe to show on a terminal: control characters, backslashes and
//! whatever is not UTF-8 are `\t`, `\n`, `\r`, `\\` or `\xNN`, the rest stands as it is.
//! [`unescape`] reads it back byte for byte.

use std::borrow::Cow;
use std::fmt::Write;

use anyhow::bail;
use serde_json::{Map, Value};

/// `bytes` on one line.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => out.push_str("\\\\"),
                '\t' => out.push_str("\\t"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                _ if character.is_control() => {
                    let mut utf8 = [0; 4];
                    escape_each(character.encode_utf8(&mut utf8).as_bytes(), &mut out);
                }
                _ => out.push(character),
            }
        }
        escape_each(chunk.invalid(), &mut out);
    }
    out
}

fn escape_each(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        write!(out, "\\x{byte:02x}").expect("a String takes everything");
    }
}

/// The bytes that `text` is the escaped form of.
///
/// Fails at a backslash that begins no escape, so that nothing is guessed.
pub(crate) fn unescape(text: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let (plain, used) = match rest {
            [b'\\', ..] => (b'\\', 1),
            [b't', ..] => (b'\t', 1),
            [b'n', ..] => (b'\n', 1),
            [b'r', ..] => (b'\r', 1),
            [b'x', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (digit(*high) << 4 | digit(*low), 3)
            }
            _ => bail!(
                "the backslash at byte {} begins none of \\\\, \\t, \\n, \\r, \\xNN",
                text.len() - rest.len() - 1
            ),
        };
        out.push(plain);
        rest = &rest[used..];
    }
    Ok(out)
}

/// The value of a hexadecimal digit.
fn digit(ascii: u8) -> u8 {
    match ascii {
        b'0'..=b'9' => ascii - b'0',
        _ => (ascii | 0x20) - b'a' + 10,
    }
}

/// `bytes` in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(out, "{byte:02x}").expect("a String takes everything");
    }
    out
}

/// The bytes that `text` spells in hexadecimal.
pub(crate) fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        bail!("{text:?} is not an even number of hexadecimal digits");
    }
    Ok(digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect())
}

/// How keys and values are written and read on a command line.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    Escaped,
    Hex,
}

impl Form {
    pub(crate) fn write(self, bytes: &[u8]) -> String {
        match self {
            Form::Escaped => escape(bytes),
            Form::Hex => hex(bytes),
        }
    }

    pub(crate) fn read(self, text: &str) -> anyhow::Result<Vec<u8>> {
        match self {
            Form::Escaped => unescape(text.as_bytes()),
            Form::Hex => unhex(text),
        }
    }

    /// Sets `name` in `object`: a string when `bytes` are UTF-8, else hexadecimal as `name_hex`.
    pub(crate) fn put(self, object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
        match (self, str::from_utf8(bytes)) {
            (Form::Escaped, Ok(text)) => object.insert(name.to_owned(), text.into()),
            _ => object.insert(format!("{name}_hex"), hex(bytes).into()),
        };
    }
}

/// A key for a message: escaped, and cut when it is long.
pub(crate) fn key_in_message(key: &[u8]) -> String {
    const SHOWN: usize = 200;
    let cut = &key[..key.len().min(SHOWN)];
    let more = if cut.len() < key.len() { Cow::from("…") } else { Cow::default() };
    format!("\"{}{more}\"", escape(cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escaped_form_is_one_harmless_line_and_reads_back() {
        let check = |bytes: &[u8], text: &str| {
            assert_eq!(escape(bytes), text);
            assert_eq!(unescape(text.as_bytes()).unwrap(), bytes);
        };
        check(b"", "");
        check(b"user\"1'", "user\"1'");
        check("größe €".as_bytes(), "größe €");
        check(b"a\tb\nc\rd\\e", r"a\tb\nc\rd\\e");
        check(b"\0\x1b[31m\x7f", r"\x00\x1b[31m\x7f");
        check(b"ab\xff\xc3", r"ab\xff\xc3");
        check("\u{9b}31m".as_bytes(), r"\xc2\x9b31m"); // a control sequence in one character
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(unescape(escape(&all).as_bytes()).unwrap(), all);
        assert_eq!(Form::Hex.read(&hex(&all)).unwrap(), all);
    }

    #[test]
    fn what_is_no_escape_is_refused() {
        for text in [r"\", r"a\q", r"\x1", r"\xg0", r"\u{61}"] {
            assert!(unescape(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["a", "0g", "+1", "ää"] {
            assert!(Form::Hex.read(text).is_err(), "{text}");
        }
    }
}
