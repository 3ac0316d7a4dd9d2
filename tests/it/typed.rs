//! Typed keyspaces: encodings that keep the order of keys, and random operations against a `BTreeMap` of Rust values.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};

use stillframe::simulation::Random;
use stillframe::{
    CodecError, Database, Error, Keyspace, Slice, Typed, TypedKey, TypedRange, TypedSnapshot,
    TypedValue, WriteOptions,
};

use crate::model::for_each_seed;

// ---- random keys, close to one another ----

trait Arbitrary {
    fn arbitrary(random: &mut Random) -> Self;
}

macro_rules! arbitrary_integers {
    ($($type:ty)*) => {$(
        impl Arbitrary for $type {
            fn arbitrary(random: &mut Random) -> Self {
                let any = u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
                match random.below(8) {
                    0 => <$type>::MIN,
                    1 => <$type>::MAX,
                    2 => 0,
                    3 => <$type>::MAX.wrapping_add(1).wrapping_sub(random.below(3) as $type),
                    4 | 5 => (random.below(5) as $type).wrapping_sub(2),
                    6 => (any as $type) >> (random.below(u64::from(<$type>::BITS)) as u32),
                    _ => any as $type,
                }
            }
        }
    )*};
}

arbitrary_integers! { u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 }

impl Arbitrary for bool {
    fn arbitrary(random: &mut Random) -> Self {
        random.one_in(2)
    }
}

impl Arbitrary for char {
    fn arbitrary(random: &mut Random) -> Self {
        let near = ['\0', '\u{1}', 'a', 'b', '\u{ff}', '\u{d7ff}', '\u{e000}', char::MAX];
        let any = char::from_u32(random.below(0x11_0000) as u32);
        any.filter(|_| random.one_in(3)).unwrap_or(near[random.below(8) as usize])
    }
}

impl Arbitrary for String {
    fn arbitrary(random: &mut Random) -> Self {
        (0..random.below(5)).map(|_| char::arbitrary(random)).collect()
    }
}

impl Arbitrary for Vec<u8> {
    fn arbitrary(random: &mut Random) -> Self {
        (0..random.below(6))
            .map(|_| [0, 0, 1, 0x7f, 0xfe, 0xff][random.below(6) as usize])
            .collect()
    }
}

impl<const N: usize> Arbitrary for [u8; N] {
    fn arbitrary(random: &mut Random) -> Self {
        [(); N].map(|()| u8::arbitrary(random))
    }
}

impl<K: Arbitrary> Arbitrary for Option<K> {
    fn arbitrary(random: &mut Random) -> Self {
        (!random.one_in(3)).then(|| K::arbitrary(random))
    }
}

impl Arbitrary for () {
    fn arbitrary(_: &mut Random) -> Self {}
}

macro_rules! arbitrary_tuples {
    ($(($($part:ident)+))*) => {$(
        impl<$($part: Arbitrary),+> Arbitrary for ($($part,)+) {
            fn arbitrary(random: &mut Random) -> Self {
                ($($part::arbitrary(random),)+)
            }
        }
    )*};
}

arbitrary_tuples! { (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) }

// ---- encodings of keys ----

fn whole<K: TypedKey>(key: &K) -> Vec<u8> {
    let mut bytes = Vec::new();
    key.encode(&mut bytes);
    bytes
}

fn part<K: TypedKey>(key: &K) -> Vec<u8> {
    let mut bytes = Vec::new();
    key.encode_part(&mut bytes);
    bytes
}

/// What bytes decode to, as a whole and as a part, encodes to them again.
fn check_canonical<K: TypedKey + Debug>(bytes: &[u8]) {
    if let Ok(key) = K::decode(bytes) {
        assert_eq!(whole(&key), bytes, "{key:?}");
    }
    let mut rest = bytes;
    if let Ok(key) = K::decode_part(&mut rest) {
        assert_eq!(part(&key), bytes[..bytes.len() - rest.len()], "{key:?}");
    }
}

fn check_key_type<K: TypedKey + Arbitrary + Debug>(random: &mut Random) {
    let keys: Vec<K> = (0..24).map(|_| K::arbitrary(random)).collect();
    for a in &keys {
        let (alone, in_tuple) = (whole(a), part(a));
        assert_eq!(K::decode(&alone).as_ref(), Ok(a));
        for tail in [&[][..], &[0], &[1], &[0xff]] {
            let bytes = [&in_tuple, tail].concat();
            let mut rest = &bytes[..];
            assert_eq!(K::decode_part(&mut rest).as_ref(), Ok(a));
            assert_eq!(rest, tail, "a part knows its end");
            check_canonical::<K>(&bytes);
        }
        for b in &keys {
            assert_eq!(a.cmp(b), alone.cmp(&whole(b)), "{a:?} and {b:?} alone");
            assert_eq!(a.cmp(b), in_tuple.cmp(&part(b)), "{a:?} and {b:?} as parts");
            let begins = part(b).starts_with(&in_tuple);
            assert_eq!(begins, a == b, "{a:?} begins {b:?}");
        }
        for bytes in [&alone, &in_tuple] {
            for len in 0..bytes.len() {
                check_canonical::<K>(&bytes[..len]);
                let mut damaged = bytes.clone();
                damaged[len] = damaged[len].wrapping_add([1, 0xff, 0x80][random.below(3) as usize]);
                check_canonical::<K>(&damaged);
            }
        }
        for len in 0..in_tuple.len() {
            assert!(K::decode_part(&mut &in_tuple[..len]).is_err(), "{a:?} cut to {len} bytes");
        }
    }
    for _ in 0..50 {
        let mut bytes = vec![0; random.below(24) as usize];
        random.fill(&mut bytes);
        check_canonical::<K>(&bytes);
        check_canonical::<K>(&Vec::arbitrary(random));
    }
}

#[test]
fn encoded_keys_are_in_the_order_of_the_keys() {
    for_each_seed("encoded_keys_are_in_the_order_of_the_keys", 40, |seed| {
        let random = &mut Random::new(seed);
        macro_rules! check {
            ($($key:ty),* $(,)?) => { $(check_key_type::<$key>(random);)* };
        }
        check!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128, bool, char, ());
        check!(String, Vec<u8>, [u8; 0], [u8; 1], [u8; 9], Option<u8>, Option<Option<String>>);
        check!((String,), (Vec<u8>, Vec<u8>), (String, u8), (u8, String), (Option<String>, i8));
        check!(((String, u16), Vec<u8>, bool), (u8, (), char, i64), (Option<(u8, String)>, String));
        check!((i8, Vec<u8>, Option<i8>, [u8; 2], bool), ((((String,),),), (Vec<u8>, u8), ()));
        check!((bool, String, Option<()>, Vec<u8>, i16, (String, Option<Vec<u8>>)));
    });
}

/// What was once stored must be found for ever: these bytes may never change.
#[test]
fn encodings_of_keys_stay_what_they_are() {
    fn check<K: TypedKey + Debug>(key: K, alone: &[u8], in_tuple: &[u8]) {
        assert_eq!(whole(&key), alone, "{key:?} alone");
        assert_eq!(part(&key), in_tuple, "{key:?} as a part");
        assert_eq!(K::decode(alone).as_ref(), Ok(&key));
        assert_eq!(K::decode_part(&mut &in_tuple[..]).as_ref(), Ok(&key));
    }
    fn same<K: TypedKey + Debug>(key: K, bytes: &[u8]) {
        check(key, bytes, bytes);
    }
    same(0x12_u8, b"\x12");
    same(0x1234_u16, b"\x12\x34");
    same(0x1234_5678_u32, b"\x12\x34\x56\x78");
    same(0x1234_u64, b"\0\0\0\0\0\0\x12\x34");
    same(1_u128 << 127, b"\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    same(-1_i8, b"\x7f");
    same(1_i16, b"\x80\x01");
    same(i32::MIN, b"\0\0\0\0");
    same(-2_i64, b"\x7f\xff\xff\xff\xff\xff\xff\xfe");
    same(0_i128, b"\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    same(true, b"\x01");
    same('\u{1f3ac}', b"\0\x01\xf3\xac");
    same([7_u8, 0, 255], b"\x07\0\xff");
    same((), b"");
    same(None::<u16>, b"\0");
    same(Some(5_u16), b"\x01\0\x05");
    same(Some("a".to_owned()), b"\x01a\0\x01");
    check("f\u{fc}\0r".to_owned(), b"f\xc3\xbc\0r", b"f\xc3\xbc\0\xffr\0\x01");
    check(vec![0_u8, 1, 255], b"\0\x01\xff", b"\0\xff\x01\xff\0\x01");
    check(String::new(), b"", b"\0\x01");
    same((1_u8,), b"\x01");
    same(("a".to_owned(), 2_u16), b"a\0\x01\0\x02");
    same((false, (-1_i8, vec![0_u8]), None::<String>), b"\0\x7f\0\xff\0\x01\0");
    same((1_u8, 2_u8, 3_u8, 4_u8, 5_u8, 6_u8), b"\x01\x02\x03\x04\x05\x06");
}

#[test]
fn encodings_of_values_stay_what_they_are() {
    fn check<V: TypedValue + PartialEq + Debug>(value: V, expected: &[u8]) {
        let mut bytes = Vec::new();
        value.encode(&mut bytes).unwrap();
        assert_eq!(bytes, expected, "{value:?}");
        assert_eq!(V::decode(expected).as_ref(), Ok(&value));
    }
    check("f\u{fc}\0r".to_owned(), b"f\xc3\xbc\0r");
    check(vec![0_u8, 1, 255], b"\0\x01\xff");
    check(Slice::from("still"), b"still");
    check([1_u8, 0], b"\x01\0");
    check(0x12_u8, b"\x12");
    check(0x1234_u16, b"\x34\x12");
    check(0x1234_5678_u32, b"\x78\x56\x34\x12");
    check(0x1234_u64, b"\x34\x12\0\0\0\0\0\0");
    check(1_u128, b"\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    check(-1_i8, b"\xff");
    check(-2_i16, b"\xfe\xff");
    check(1_i32, b"\x01\0\0\0");
    check(i64::MIN, b"\0\0\0\0\0\0\0\x80");
    check(-1_i128, &[0xff; 16]);
    check(1.0_f32, b"\0\0\x80\x3f");
    check(-2.0_f64, b"\0\0\0\0\0\0\0\xc0");
    check(true, b"\x01");
    check((), b"");
}

/// What bytes decode to encodes to them again, for values of one encoding.
#[test]
fn any_bytes_decode_to_their_value_or_to_none() {
    fn check<V: TypedValue>(bytes: &[u8]) {
        if let Ok(value) = V::decode(bytes) {
            let mut again = Vec::new();
            value.encode(&mut again).unwrap();
            assert_eq!(again, bytes, "{}", std::any::type_name::<V>());
        }
    }
    for_each_seed("any_bytes_decode_to_their_value_or_to_none", 500, |seed| {
        let random = &mut Random::new(seed);
        let mut bytes = vec![0; random.below(18) as usize];
        random.fill(&mut bytes);
        for bytes in [bytes, Vec::arbitrary(random), String::arbitrary(random).into_bytes()] {
            macro_rules! check {
                ($($value:ty),*) => { $(check::<$value>(&bytes);)* };
            }
            check!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128, f32, f64, bool, ());
            check!(String, Vec<u8>, Slice, [u8; 0], [u8; 3]);
        }
    });
}

// ---- operations ----

type ModelKey = (Option<String>, i8, Vec<u8>);

fn model_key(random: &mut Random) -> ModelKey {
    let name = ["", "a", "a\0", "ab"][random.below(4) as usize];
    let number = random.below(4) as i8 - 2;
    let tail = [&b""[..], b"\0", b"\xff"][random.below(3) as usize];
    ((!random.one_in(4)).then(|| name.to_owned()), number, tail.to_vec())
}

fn bounds(random: &mut Random) -> (Bound<ModelKey>, Bound<ModelKey>) {
    let mut bound = || match random.below(4) {
        0 => Bound::Unbounded,
        1 => Bound::Excluded(model_key(random)),
        _ => Bound::Included(model_key(random)),
    };
    let (low, high) = (bound(), bound());
    // A BTreeMap panics at ranges that end before they begin, where a keyspace shows nothing.
    match (&low, &high) {
        (Bound::Excluded(a) | Bound::Included(a), Bound::Excluded(b) | Bound::Included(b))
            if a >= b =>
        {
            (low, Bound::Unbounded)
        }
        _ => (low, high),
    }
}

/// What an iterator shows, read from both ends in random turns.
fn drain<T>(
    random: &mut Random,
    mut entries: impl DoubleEndedIterator<Item = stillframe::Result<T>>,
) -> Vec<T> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    loop {
        let is_back = random.one_in(2);
        let entry = if is_back { entries.next_back() } else { entries.next() };
        match entry {
            Some(entry) if is_back => back.push(entry.unwrap()),
            Some(entry) => front.push(entry.unwrap()),
            None => break,
        }
    }
    front.extend(back.into_iter().rev());
    front
}

fn owned<'a>(entries: impl Iterator<Item = (&'a ModelKey, &'a u32)>) -> Vec<(ModelKey, u32)> {
    entries.map(|(key, value)| (key.clone(), *value)).collect()
}

#[test]
fn a_typed_keyspace_is_a_map() {
    for_each_seed("a_typed_keyspace_is_a_map", 30, |seed| {
        let random = &mut Random::new(seed);
        let db =
            Database::builder().leaf_entries(3 + random.below(6) as usize).in_memory().unwrap();
        let typed: Typed<ModelKey, u32> = db.keyspace("typed").unwrap().typed();
        let mut model = BTreeMap::new();
        for _ in 0..300 {
            step(random, &db, &typed, &mut model);
            assert_eq!(typed.len().unwrap(), model.len() as u64);
            assert_eq!(typed.is_empty().unwrap(), model.is_empty());
        }
        let expected = owned(model.iter());
        let snapshot: TypedSnapshot<ModelKey, u32> =
            db.snapshot().unwrap().keyspace("typed").unwrap().typed();
        typed.clear().unwrap();
        assert_eq!(drain(random, snapshot.range(..)), expected);
        assert_eq!(snapshot.first().unwrap().as_ref(), expected.first());
        assert_eq!(snapshot.last().unwrap().as_ref(), expected.last());
        assert_eq!(snapshot.len().unwrap(), expected.len() as u64);
        for (key, value) in &expected {
            assert_eq!(snapshot.get(key).unwrap(), Some(*value));
            assert!(snapshot.contains_key(key).unwrap());
            let same = drain(random, snapshot.prefix(&key.0));
            assert!(same.iter().all(|(other, _)| other.0 == key.0) && !same.is_empty());
        }
    });
}

fn step(
    random: &mut Random,
    db: &Database,
    typed: &Typed<ModelKey, u32>,
    model: &mut BTreeMap<ModelKey, u32>,
) {
    let (key, value) = (model_key(random), random.below(4) as u32);
    match random.below(20) {
        0 => {
            typed.insert(&key, &value).unwrap();
            model.insert(key, value);
        }
        1 => {
            typed.insert_with(&key, &value, WriteOptions::new()).unwrap();
            model.insert(key, value);
        }
        2 => {
            let is_new = !model.contains_key(&key);
            assert_eq!(typed.insert_new(&key, &value).unwrap(), is_new);
            model.entry(key).or_insert(value);
        }
        3 => assert_eq!(typed.replace(&key, &value).unwrap(), model.insert(key, value)),
        4 => assert_eq!(typed.remove(&key).unwrap(), model.remove(&key).is_some()),
        5 => assert_eq!(typed.take(&key).unwrap(), model.remove(&key)),
        6 | 7 => {
            let change = |old: Option<u32>| match old {
                Some(old) if old >= value => None,
                old => Some(old.unwrap_or(0) + 1),
            };
            let new = change(model.get(&key).copied());
            assert_eq!(typed.update(&key, change).unwrap(), new);
            set(model, key, new);
        }
        8 | 9 => {
            let current = model.get(&key).copied();
            let expected = if random.one_in(2) { current } else { Some(value) };
            let new = (!random.one_in(3)).then_some(value + 1);
            let done = typed.compare_and_swap(&key, expected.as_ref(), new.as_ref()).unwrap();
            assert_eq!(done, if expected == current { Ok(()) } else { Err(current) });
            if done.is_ok() {
                set(model, key, new);
            }
        }
        10 => assert_eq!(typed.pop_first().unwrap(), model.pop_first()),
        11 => assert_eq!(typed.pop_last().unwrap(), model.pop_last()),
        12 if random.one_in(4) => {
            let range = bounds(random);
            let before = model.len();
            model.retain(|key, _| !range.contains(key));
            assert_eq!(typed.delete_range(range).unwrap(), (before - model.len()) as u64);
        }
        13 => in_transaction(random, db, typed, model),
        14 | 15 => {
            let range = bounds(random);
            assert_eq!(drain(random, typed.range(range.clone())), owned(model.range(range)));
        }
        16 => {
            let expected = owned(model.iter().filter(|(other, _)| other.0 == key.0));
            assert_eq!(drain(random, typed.prefix(&key.0)), expected);
        }
        17 => {
            let of = |other: &ModelKey| other.0 == key.0 && other.1 == key.1;
            let expected = owned(model.iter().filter(|(other, _)| of(other)));
            assert_eq!(drain(random, typed.prefix(&(key.0.clone(), key.1))), expected);
        }
        _ => {
            assert_eq!(typed.get(&key).unwrap(), model.get(&key).copied());
            assert_eq!(typed.contains_key(&key).unwrap(), model.contains_key(&key));
            let first = model.first_key_value().map(|(k, v)| (k.clone(), *v));
            let last = model.last_key_value().map(|(k, v)| (k.clone(), *v));
            assert_eq!((typed.first().unwrap(), typed.last().unwrap()), (first, last));
        }
    }
}

fn set(model: &mut BTreeMap<ModelKey, u32>, key: ModelKey, value: Option<u32>) {
    match value {
        Some(value) => model.insert(key, value),
        None => model.remove(&key),
    };
}

fn in_transaction(
    random: &mut Random,
    db: &Database,
    typed: &Typed<ModelKey, u32>,
    model: &mut BTreeMap<ModelKey, u32>,
) {
    let [a, b, c, d, e] = [(); 5].map(|()| model_key(random));
    let range = bounds(random);
    db.transact(|tx| {
        typed.delete_range_in(tx, range.clone())?;
        model.retain(|key, _| !range.contains(key));
        typed.insert_in(tx, &a, &1)?;
        model.insert(a.clone(), 1);
        typed.insert_with_in(tx, &b, &2, WriteOptions::new())?;
        model.insert(b.clone(), 2);
        assert_eq!(typed.insert_new_in(tx, &c, &3)?, !model.contains_key(&c));
        model.entry(c.clone()).or_insert(3);
        assert_eq!(typed.remove_in(tx, &d)?, model.remove(&d).is_some());
        assert_eq!(typed.take_in(tx, &e)?, model.remove(&e));
        assert_eq!(typed.get_in(tx, &a)?, model.get(&a).copied());
        assert_eq!(typed.contains_key_in(tx, &b)?, model.contains_key(&b));
        let first = model.first_key_value().map(|(k, v)| (k.clone(), *v));
        let last = model.last_key_value().map(|(k, v)| (k.clone(), *v));
        assert_eq!((typed.first_in(tx)?, typed.last_in(tx)?), (first, last));
        assert_eq!(drain(random, typed.range_in(tx, ..)), owned(model.iter()));
        let same = owned(model.iter().filter(|(key, _)| key.0 == a.0));
        assert_eq!(drain(random, typed.prefix_in(tx, &a.0)), same);
        Ok(())
    })
    .unwrap();
}

// ---- what does not decode ----

fn keyspace() -> Keyspace {
    Database::in_memory().keyspace("typed").unwrap()
}

/// What does not decode, of which type, and why.
#[track_caller]
fn check_undecodable<T: Debug>(done: stillframe::Result<T>, what: &str, of: &str, why: &str) {
    match done {
        Err(Error::Undecodable(found)) => {
            assert_eq!((found.what, found.type_name, found.why), (what, of, why));
        }
        done => panic!("{done:?}"),
    }
}

#[test]
fn what_does_not_decode_is_an_error_in_its_place() {
    let bytes = keyspace();
    let typed = bytes.typed::<String, u16>();
    typed.insert(&"a".to_owned(), &1).unwrap();
    bytes.insert("b", "three").unwrap();
    bytes.insert(b"c\xff", 3_u16.to_le_bytes()).unwrap();
    typed.insert(&"d".to_owned(), &4).unwrap();

    let b = "b".to_owned();
    let too_long = "bytes are left over";
    check_undecodable(typed.get(&b), "value", "u16", too_long);
    check_undecodable(typed.update(&b, |_| panic!("there is no value")), "value", "u16", too_long);
    check_undecodable(typed.compare_and_swap(&b, None, None), "value", "u16", too_long);
    assert_eq!(bytes.get("b").unwrap().unwrap(), "three");
    assert!(typed.contains_key(&b).unwrap());

    let shown: Vec<_> = typed.range(..).collect();
    assert_eq!(shown.len(), 4);
    assert!(shown[0].is_ok() && shown[3].is_ok());
    let text = shown[1].as_ref().unwrap_err().to_string();
    assert_eq!(text, "value of entry \"b\" is no u16: bytes are left over");
    let text = shown[2].as_ref().unwrap_err().to_string();
    assert_eq!(text, "key of entry \"c\\xff\" is no alloc::string::String: text is not UTF-8");

    check_undecodable(typed.take(&b), "value", "u16", too_long);
    assert_eq!(typed.pop_first().unwrap(), Some(("a".to_owned(), 1)));
    match typed.pop_first() {
        Err(Error::Undecodable(found)) => {
            assert_eq!(found.key, b"c\xff");
            assert_eq!(found.value.unwrap(), 3_u16.to_le_bytes(), "it is not lost");
        }
        done => panic!("{done:?}"),
    }
    assert_eq!(typed.len().unwrap(), 1);
}

/// A value that its type refuses to store.
#[derive(Debug)]
struct Unstorable;

impl TypedValue for Unstorable {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.push(1);
        Err(CodecError::new("it never is"))
    }

    fn decode(_: &[u8]) -> Result<Self, CodecError> {
        Ok(Unstorable)
    }
}

#[test]
fn what_does_not_encode_changes_nothing() {
    let bytes = keyspace();
    let typed = bytes.typed::<u8, Unstorable>();
    let error = typed.insert(&1, &Unstorable).unwrap_err();
    assert!(error.to_string().ends_with("Unstorable can't be stored: it never is"), "{error}");
    bytes.insert([1], "old").unwrap();
    for key in [1, 2] {
        let done = typed.update(&key, |_| Some(Unstorable));
        assert!(matches!(done, Err(Error::Unencodable { .. })), "{done:?}");
    }
    assert_eq!(bytes.get([1]).unwrap().unwrap(), "old");
    assert_eq!(bytes.len().unwrap(), 1);
}

#[test]
fn text_alone_is_stored_as_it_is() {
    let bytes = keyspace();
    bytes.typed::<String, String>().insert(&"a\0b".to_owned(), &"c".to_owned()).unwrap();
    assert_eq!(bytes.get("a\0b").unwrap().unwrap(), "c");
    assert_eq!(bytes.typed::<Vec<u8>, Slice>().get(&b"a\0b".to_vec()).unwrap().unwrap(), "c");
}

#[test]
fn typed_keyspaces_may_go_to_any_thread() {
    fn check<T: Clone + Debug + Send + Sync + 'static>() {}
    // Whatever the types may do: they are only made and taken.
    type Local = std::rc::Rc<u8>;
    check::<Typed<Local, Local>>();
    check::<TypedSnapshot<Local, Local>>();
    fn check_range<T: Debug + Send + 'static>() {}
    check_range::<TypedRange<Local, Local>>();
}

#[cfg(feature = "serde")]
mod serde_values {
    use super::*;
    use serde::{Deserialize, Serialize, Serializer};
    use stillframe::Serde;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    enum Shape {
        Nothing,
        Circle { name: String, radius: u32 },
        Path(Vec<(i16, Option<bool>)>),
    }

    fn encoded<V: TypedValue>(value: &V) -> Vec<u8> {
        let mut bytes = Vec::new();
        value.encode(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn values_of_any_type_come_back() {
        let typed = keyspace().typed::<u8, Serde<Shape>>();
        let circle = Shape::Circle { name: "o".to_owned(), radius: 300 };
        let path = Shape::Path(vec![(-1, None), (1, Some(true))]);
        let expected: [(Shape, &[u8]); 3] = [
            (Shape::Nothing, b"\0"),
            (circle, b"\x01\x01o\xac\x02"),
            (path, b"\x02\x02\x01\0\x02\x01\x01"),
        ];
        for (shape, bytes) in expected {
            typed.insert(&1, &Serde(shape.clone())).unwrap();
            assert_eq!(typed.keyspace().get([1]).unwrap().unwrap(), bytes, "{shape:?}");
            assert_eq!(typed.get(&1).unwrap(), Some(Serde(shape)));
            for len in 0..bytes.len() {
                assert!(Serde::<Shape>::decode(&bytes[..len]).is_err(), "cut to {len} bytes");
            }
            assert!(Serde::<Shape>::decode(&[bytes, b"\0"].concat()).is_err());
        }
    }

    #[test]
    fn any_bytes_decode_or_fail() {
        for_each_seed("any_bytes_decode_or_fail", 500, |seed| {
            let random = &mut Random::new(seed);
            let mut bytes = vec![0; random.below(40) as usize];
            random.fill(&mut bytes);
            bytes.splice(..0, [random.below(4) as u8, random.below(9) as u8]);
            if let Ok(shape) = Serde::<Shape>::decode(&bytes) {
                assert_eq!(Serde::<Shape>::decode(&encoded(&shape)), Ok(shape));
            }
        });
    }

    #[test]
    fn what_serde_refuses_is_an_error() {
        struct Refused;
        impl Serialize for Refused {
            fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("no"))
            }
        }
        impl<'de> Deserialize<'de> for Refused {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                Err(serde::de::Error::custom("no"))
            }
        }
        let typed = keyspace().typed::<u8, Serde<Refused>>();
        assert!(matches!(typed.insert(&1, &Serde(Refused)), Err(Error::Unencodable { .. })));
        typed.keyspace().insert([1], "").unwrap();
        assert!(matches!(typed.get(&1), Err(Error::Undecodable(_))));
    }
}
