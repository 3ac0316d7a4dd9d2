//! Records that look like real ones: `user` and twelve digits, small JSON values, random order.
//!
//! All is a function of the number of records, so two runs load the same.

use std::io::Write;

use stillframe::Keyspace;

use super::memory;
use super::random::{mix, pick, scale, shuffled};
use crate::ui;

/// Bytes of a key.
pub(crate) const KEY_LEN: usize = 16;
/// What the digits of a key can number.
pub(crate) const MAX_COUNT: u64 = 1_000_000_000_000;
/// Values that the writer takes in turn: so many that a block of the saved file rarely holds one twice.
const VALUES: u64 = 1 << 16;

const FIRST_NAMES: [&str; 24] = [
    "Ada", "Amir", "Bao", "Carla", "Chidi", "Dina", "Edda", "Emeka", "Farah", "Goran", "Hana",
    "Ines", "Jonas", "Kaori", "Lars", "Maite", "Nadia", "Olga", "Pavel", "Rosa", "Sven", "Tariq",
    "Uma", "Zoe",
];
const LAST_NAMES: [&str; 24] = [
    "Abebe",
    "Bauer",
    "Castillo",
    "Dubois",
    "Eriksen",
    "Fontana",
    "Garcia",
    "Haddad",
    "Ivanova",
    "Jansen",
    "Kimura",
    "Lindqvist",
    "Moreau",
    "Nakamura",
    "Okafor",
    "Petrov",
    "Quispe",
    "Rossi",
    "Santos",
    "Tanaka",
    "Ueda",
    "Varga",
    "Weber",
    "Yilmaz",
];
const CITIES: [&str; 16] = [
    "Accra", "Bergen", "Cusco", "Dakar", "Esbjerg", "Fukuoka", "Gdansk", "Haifa", "Izmir",
    "Jaipur", "Kyoto", "Lisbon", "Mendoza", "Nairobi", "Oslo", "Porto",
];

/// So many records, numbered from 0.
pub(crate) struct Made {
    count: u64,
}

impl Made {
    /// `count` is 1 to [`MAX_COUNT`].
    pub(crate) fn new(count: u64) -> Self {
        Made { count }
    }

    pub(crate) fn describe(&self) -> String {
        format!("{} made in random order", ui::plural(self.count, "record"))
    }

    /// Inserts all; returns their number, their raw bytes, and the resident set before the first.
    pub(crate) fn load(&self, keyspace: &Keyspace) -> anyhow::Result<(u64, u64, Option<u64>)> {
        let bar = ui::count_bar(self.count, "loading");
        let (mut key, mut value, mut raw_bytes) = ([0; KEY_LEN], Vec::with_capacity(256), 0);
        let before = memory::resident_bytes();
        for turn in 0..self.count {
            if turn % 4096 == 0 {
                bar.set_position(turn);
            }
            let number = shuffled(turn, self.count);
            write_key(number, &mut key);
            write_value(number, &mut value);
            keyspace.insert(key, &value)?;
            raw_bytes += (key.len() + value.len()) as u64;
        }
        bar.finish_and_clear();
        Ok((self.count, raw_bytes, before))
    }

    /// Other values of the same kind.
    pub(crate) fn overwrites(&self) -> Overwrites {
        let mut bytes = Vec::new();
        let mut value = Vec::new();
        let mut ends = Vec::new();
        for number in self.count..self.count + VALUES {
            write_value(number, &mut value);
            bytes.extend_from_slice(&value);
            ends.push(bytes.len());
        }
        Overwrites { count: self.count, bytes, ends }
    }
}

/// New values for the records numbered `0..count`.
pub(crate) struct Overwrites {
    count: u64,
    /// The values, one after the other.
    bytes: Vec<u8>,
    /// Where each ends in `bytes`.
    ends: Vec<usize>,
}

impl Overwrites {
    /// A random record's key, and the value at `cursor`, which moves on.
    pub(crate) fn pick<'a>(
        &'a self,
        random: u64,
        cursor: &mut usize,
        key: &'a mut [u8; KEY_LEN],
    ) -> (&'a [u8], &'a [u8]) {
        write_key(scale(random, self.count), key);
        let start = if *cursor == 0 { 0 } else { self.ends[*cursor - 1] };
        let value = &self.bytes[start..self.ends[*cursor]];
        *cursor = (*cursor + 1) % self.ends.len();
        (key, value)
    }
}

fn write_key(number: u64, key: &mut [u8; KEY_LEN]) {
    key[..4].copy_from_slice(b"user");
    let mut rest = number;
    for digit in key[4..].iter_mut().rev() {
        *digit = b"0123456789"[(rest % 10) as usize];
        rest /= 10;
    }
}

fn write_value(number: u64, value: &mut Vec<u8>) {
    let random = mix(number);
    value.clear();
    write!(
        value,
        r#"{{"name":"{} {}","city":"{}","visits":{},"balance":{}.{:02},"seen":{},"token":"{:010x}"}}"#,
        pick(&FIRST_NAMES, mix(random ^ 1)),
        pick(&LAST_NAMES, mix(random ^ 2)),
        pick(&CITIES, mix(random ^ 3)),
        random % 1_000,
        random >> 8 & 0xffff,
        (random >> 24) % 100,
        1_700_000_000 + (random >> 32) % 90_000_000,
        mix(random) >> 24,
    )
    .expect("a Vec takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_promised_shape() {
        let (mut key, mut value, mut total) = ([0; KEY_LEN], Vec::new(), 0);
        for number in 0..10_000 {
            write_key(number, &mut key);
            write_value(number, &mut value);
            assert_eq!(key, format!("user{number:012}").as_bytes());
            assert!(serde_json::from_slice::<serde_json::Value>(&value).unwrap().is_object());
            total += value.len();
        }
        assert!((108..=112).contains(&(total / 10_000)), "mean of {}", total / 10_000);
    }
}
