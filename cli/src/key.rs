//! Key files: the secret that nodes share which replicate each other, in 64 hexadecimal digits, for its owner alone.
//!
//! What a key file holds is never part of a message.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;
use stillframe::LinkKey;

use crate::text::{hex, unhex};
use crate::{Answer, EXIT_CODES, ui};

/// Bytes of a key.
const KEY_LEN: usize = 32;

/// Make a file with a new random key, for `serve` and `follow`
///
/// Only its owner can read it. Every node that is to replicate another one, or be replicated, needs a copy.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Key {
    /// The file to make: one that is not there
    file: PathBuf,
}

impl Key {
    pub(crate) fn run(self, json: bool) -> anyhow::Result<Answer> {
        make(&self.file)?;
        let file = self.file.to_string_lossy();
        if json {
            ui::print_json(&json!({ "file": file }))?;
        } else {
            let mut out = ui::stdout();
            writeln!(out, "{file}: a new key, for its owner alone")?;
            out.flush()?;
        }
        Ok(Answer::Yes)
    }
}

/// Makes a key file at `path`, which appears whole or not at all and replaces nothing.
pub(crate) fn make(path: &Path) -> anyhow::Result<()> {
    const RANDOM: &str = "/dev/urandom";
    let mut bytes = [0; KEY_LEN];
    let random = File::open(RANDOM).and_then(|mut random| random.read_exact(&mut bytes));
    random.with_context(|| format!("read {RANDOM}"))?;
    let creating = || format!("create {}", path.display());
    // Such a file is its owner's alone from its first moment on.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let file = tempfile::Builder::new()
        .prefix(".stillframe-")
        .tempfile_in(directory.unwrap_or(Path::new(".")));
    let mut file = file.with_context(creating)?;
    writeln!(file, "{}", hex(&bytes)).with_context(creating)?;
    file.as_file().sync_all().with_context(creating)?;
    file.persist_noclobber(path).map_err(|refused| refused.error).with_context(creating)?;
    Ok(())
}

/// Reads the key in the file at `path`.
pub(crate) fn read(path: &Path) -> anyhow::Result<LinkKey> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("open {shown}"))?;
    check_owner_alone(&file, path)?;
    let mut text = String::new();
    // Two digits a byte, and a line end; of anything else one byte more is enough to see it.
    let most = 2 * KEY_LEN as u64 + 3;
    let read = file.take(most).read_to_string(&mut text);
    let digits = text.trim_end();
    if read.is_err() || digits.len() != 2 * KEY_LEN {
        bail!("{shown} holds no key: that is {} hexadecimal digits", 2 * KEY_LEN);
    }
    let Some(bytes) = unhex(digits).ok().and_then(|bytes| bytes.try_into().ok()) else {
        bail!("{shown} holds no key: not all of it are hexadecimal digits");
    };
    Ok(LinkKey::new(bytes))
}

/// Fails if anybody but its owner may use the file.
#[cfg(unix)]
fn check_owner_alone(file: &File, path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let shown = path.display();
    let metadata = file.metadata().with_context(|| format!("open {shown}"))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!(
            "{shown} is open to others than its owner (mode {mode:04o}): chmod 600 it, or make a new key"
        );
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_owner_alone(_file: &File, _path: &Path) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_by_its_owner_alone() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("key");
        make(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.len(), 65);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        read(&path).unwrap();
        assert!(make(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), text);

        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains(&format!("mode {mode:04o}")), "{message}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        read(&path).unwrap();
    }

    #[test]
    fn what_is_no_key_is_not_repeated() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("key");
        make(&path).unwrap();
        let digits = "c0ffee".repeat(11);
        let long = format!("{}{}", &digits[..64], "0".repeat(64));
        let odd = format!("{}xy", &digits[..62]);
        for text in ["", "c0ffee", &digits, &long, &odd, " \n", "\u{fffd}"] {
            fs::write(&path, text).unwrap();
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains("holds no key") && !message.contains("c0ffee"), "{message}");
        }
        fs::write(&path, format!("{}\r\n", &digits[..64])).unwrap();
        read(&path).unwrap();
    }
}
