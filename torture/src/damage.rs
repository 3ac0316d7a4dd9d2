//! Every way in which a file is damaged, in a fixed order: a case has a number, and is the same each time.

use std::ops::Range;

use stillframe::simulation::Random;

use crate::forge;

/// A change to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    /// One bit is flipped.
    Bit(usize, u8),
    /// One byte becomes another.
    Byte(usize, Class),
    /// The file ends here.
    Cut(usize),
    /// A byte comes in before this one.
    Insert(usize),
    /// This byte goes.
    Delete(usize),
    /// A block goes.
    Drop(usize),
    /// A block is there twice.
    Double(usize),
    /// Two blocks change places.
    Swap(usize, usize),
    /// A block gives way to one of another whole file.
    Foreign { block: usize, donor: usize, from: usize },
    /// So many bytes from here on are zero.
    Zeros(usize, usize),
    /// Two to eight bytes, anywhere, become others.
    Many(u64),
    /// A number that the file states of itself becomes another, and all checksums are made right.
    Forged(usize, Number),
}

/// What a number becomes: four bytes, or eight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    Four(u32),
    Eight(u64),
    Plus(u32),
}

const NUMBERS: [Number; 10] = [
    Number::Four(0),
    Number::Four(1),
    Number::Four(0x7FFF_FFFF),
    Number::Four(u32::MAX),
    Number::Eight(1 << 63),
    Number::Eight(u64::MAX),
    Number::Eight(u64::MAX - 100),
    Number::Plus(1),
    Number::Plus(u32::MAX),
    Number::Plus(256),
];

/// What a byte becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Zero,
    Ones,
    Next,
    Random,
}

impl Damage {
    /// What the table of results counts it under.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Damage::Bit(..) => "bit flipped",
            Damage::Byte(_, Class::Zero) => "byte to 0x00",
            Damage::Byte(_, Class::Ones) => "byte to 0xFF",
            Damage::Byte(_, Class::Next) => "byte plus 1",
            Damage::Byte(_, Class::Random) => "byte random",
            Damage::Cut(_) => "truncated",
            Damage::Insert(_) => "byte inserted",
            Damage::Delete(_) => "byte deleted",
            Damage::Drop(_) => "block dropped",
            Damage::Double(_) => "block doubled",
            Damage::Swap(..) => "blocks swapped",
            Damage::Foreign { .. } => "foreign block",
            Damage::Zeros(..) => "bytes zeroed",
            Damage::Many(_) => "many bytes",
            Damage::Forged(..) => "forged",
        }
    }
}

/// A whole file, and where its blocks lie.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    pub(crate) bytes: Vec<u8>,
    pub(crate) blocks: Vec<Range<usize>>,
}

impl Whole {
    fn block(&self, i: usize) -> &[u8] {
        &self.bytes[self.blocks[i].clone()]
    }

    fn replace(&self, i: usize, parts: &[&[u8]]) -> Vec<u8> {
        let at = &self.blocks[i];
        [&self.bytes[..at.start], &parts.concat(), &self.bytes[at.end..]].concat()
    }
}

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// Of the bytes, and of the lengths, each so-manieth.
    pub(crate) stride: usize,
    /// Files with several bytes changed at random.
    pub(crate) many: u64,
    pub(crate) seed: u64,
}

/// All cases, in order.
pub(crate) fn cases(
    good: &Whole,
    donors: &[Whole],
    extent: Extent,
) -> impl Iterator<Item = Damage> {
    let Extent { stride, many, seed } = extent;
    let len = good.bytes.len();
    let phase = Random::new(seed).below(stride as u64) as usize;
    let bytes = (phase..len).step_by(stride).flat_map(|at| {
        let bits = (0..8).map(move |bit| Damage::Bit(at, bit));
        let classes = [Class::Zero, Class::Ones, Class::Next, Class::Random];
        let classes = classes.into_iter().map(move |class| Damage::Byte(at, class));
        bits.chain(classes).chain([Damage::Cut(at), Damage::Insert(at), Damage::Delete(at)])
    });
    let count = good.blocks.len();
    let one = (0..count).flat_map(|i| [Damage::Drop(i), Damage::Double(i)]);
    let two = (0..count).flat_map(move |i| (i + 1..count).map(move |j| Damage::Swap(i, j)));
    let foreign: Vec<_> = donors
        .iter()
        .enumerate()
        .flat_map(|(donor, whole)| {
            let from = 0..whole.blocks.len();
            // Any place would take the quick run too long; the same place and the next are the likely ones.
            (0..count).flat_map(move |block| {
                let near = move |from: &usize| stride == 1 || from.wrapping_sub(block) <= 1;
                from.clone().filter(near).map(move |from| Damage::Foreign { block, donor, from })
            })
        })
        .collect();
    let zeros = [16, 512, 4096].into_iter().flat_map(move |window: usize| {
        let step = window.max(stride);
        (0..len).step_by(step).map(move |at| Damage::Zeros(at, window))
    });
    let end = [Damage::Insert(len)];
    let many = (0..many).map(move |i| Damage::Many(seed ^ i << 8));
    let fields = forge::fields(good).into_iter().skip(phase).step_by(stride);
    let forged = fields.flat_map(|at| NUMBERS.map(move |number| Damage::Forged(at, number)));
    let blocks = one.chain(two).chain(foreign);
    bytes.chain(end).chain(blocks).chain(zeros).chain(many).chain(forged)
}

/// The damaged file; `None` if the damage leaves all bytes as they were.
pub(crate) fn apply(damage: Damage, good: &Whole, donors: &[Whole], seed: u64) -> Option<Vec<u8>> {
    let mut bytes = good.bytes.clone();
    // A number of its own for every place, the same each time.
    let random = |at: usize| Random::new(seed ^ (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let byte = |random: &mut Random| random.next_u64().to_le_bytes()[0];
    match damage {
        Damage::Bit(at, bit) => bytes[at] ^= 1 << bit,
        Damage::Byte(at, class) => {
            bytes[at] = match class {
                Class::Zero => 0,
                Class::Ones => 0xFF,
                Class::Next => bytes[at].wrapping_add(1),
                Class::Random => byte(&mut random(at)),
            }
        }
        Damage::Cut(len) => bytes.truncate(len),
        Damage::Insert(at) => bytes.insert(at, byte(&mut random(at))),
        Damage::Delete(at) => drop(bytes.remove(at)),
        Damage::Drop(i) => bytes = good.replace(i, &[]),
        Damage::Double(i) => bytes = good.replace(i, &[good.block(i), good.block(i)]),
        Damage::Swap(i, j) => {
            let between = &good.bytes[good.blocks[i].end..good.blocks[j].start];
            let swapped = [good.block(j), between, good.block(i)].concat();
            bytes.splice(good.blocks[i].start..good.blocks[j].end, swapped);
        }
        Damage::Foreign { block, donor, from } => {
            bytes = good.replace(block, &[donors[donor].block(from)]);
        }
        Damage::Zeros(at, window) => {
            let end = bytes.len().min(at + window);
            bytes[at..end].fill(0);
        }
        Damage::Many(seed) => {
            let mut random = Random::new(seed);
            for _ in 0..2 + random.below(7) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = byte(&mut random);
            }
        }
        Damage::Forged(at, number) => {
            let old = bytes[at..].first_chunk().map_or(0, |old| u32::from_le_bytes(*old));
            let new = match number {
                Number::Four(new) => u64::from(new).to_le_bytes(),
                Number::Eight(new) => new.to_le_bytes(),
                Number::Plus(more) => u64::from(old.wrapping_add(more)).to_le_bytes(),
            };
            let width = if matches!(number, Number::Eight(_)) { 8 } else { 4 };
            bytes.iter_mut().skip(at).zip(&new[..width]).for_each(|(to, from)| *to = *from);
            forge::fix(&mut bytes, good);
        }
    }
    (bytes != good.bytes).then_some(bytes)
}
