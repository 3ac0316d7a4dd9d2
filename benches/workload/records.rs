//! Keys and values of the records that benches write: the same number gives the same bytes everywhere.

pub(crate) type Key = [u8; 16];

/// The two data sets. Their values are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keys {
    /// As the demo makes them: a word, then a number of fixed width.
    Demo,
    /// 16 bytes that share nothing.
    Random,
}

impl Keys {
    pub(crate) const ALL: [Keys; 2] = [Keys::Demo, Keys::Random];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Keys::Demo => "demo",
            Keys::Random => "random",
        }
    }

    pub(crate) fn of_name(name: &str) -> Option<Keys> {
        Keys::ALL.into_iter().find(|keys| keys.name() == name)
    }

    /// The key of record `number`, below 10^12.
    pub(crate) fn key(self, number: usize) -> Key {
        match self {
            Keys::Demo => {
                let mut key = *b"user000000000000";
                let mut rest = number;
                for digit in key[4..].iter_mut().rev() {
                    *digit = b"0123456789"[rest % 10];
                    rest /= 10;
                }
                key
            }
            Keys::Random => {
                // Two different bijections of the number: unique, and far from sorted.
                let high = mix(number as u64 ^ 0x5bf0_3635_dcf5_8d6f);
                let low = mix(high ^ 0x94d0_49bb_1331_11eb);
                (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
            }
        }
    }
}

/// The value of record `number`, as the demo makes it: JSON of about 110 bytes.
pub(crate) fn value(number: usize) -> Vec<u8> {
    const FIRST: [&str; 24] = [
        "Ada", "Amir", "Bao", "Carla", "Chidi", "Dina", "Edda", "Emeka", "Farah", "Goran", "Hana",
        "Ines", "Jonas", "Kaori", "Lars", "Maite", "Nadia", "Olga", "Pavel", "Rosa", "Sven",
        "Tariq", "Uma", "Zoe",
    ];
    const LAST: [&str; 24] = [
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
    let mut random = Random::new(number as u64);
    format!(
        r#"{{"name":"{} {}","city":"{}","visits":{},"balance":{}.{:02},"seen":{},"token":"{:010x}"}}"#,
        FIRST[random.below(FIRST.len())],
        LAST[random.below(LAST.len())],
        CITIES[random.below(CITIES.len())],
        random.below(1000),
        random.below(1 << 16),
        random.below(100),
        1_700_000_000 + random.below(90_000_000),
        random.below(1 << 40),
    )
    .into_bytes()
}

/// SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Uniform in `0..bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let wide = u128::from(mix(self.0)) * bound as u128;
        usize::try_from(wide >> 64).expect("less than the bound")
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
