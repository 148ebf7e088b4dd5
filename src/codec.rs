//! Bodies of messages: the only file that knows bincode.
//!
//! Bodies come from peers that hold the cookie but may be wrong or hostile, so decoding takes time and memory in proportion
//! to the body's length, a bounded stack ([`guard`]), and must use all of the body. [bincode 2.0.1] through serde, standard
//! configuration.
//!
//! [bincode 2.0.1]: https://docs.rs/bincode/2.0.1

mod guard;

use bincode::config;
use serde::Serialize;
use serde::de::DeserializeOwned;

use guard::{Breach, Budget, Root};

/// The codec's number on the wire.
pub(crate) const BINCODE: u8 = 1;

/// The codec's number for bodies that are raw bytes.
pub(crate) const RAW: u8 = 2;

/// Why a value has no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EncodeError(String);

impl EncodeError {
    /// An error of a user's own encoding.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// Why bytes are no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes are not what the type expects.
    #[error("malformed: {0}")]
    Malformed(String),
    /// Bytes follow after the value.
    #[error("{0} bytes follow after the value")]
    Trailing(usize),
    /// Values are nested in each other more than 128 levels deep. A value in a collection or a box that takes more than 512
    /// bytes counts as another level for each of them.
    #[error("values are nested more than 128 levels deep")]
    TooDeep,
    /// The value would take more memory than bytes of this length may: 64 times as much, and 64 KiB.
    #[error("a body of {body} bytes is a value that takes more than {max} bytes of memory")]
    TooLarge {
        /// Bytes of the body.
        body: usize,
        /// Bytes of memory allowed.
        max: usize,
    },
    /// The sender's version cannot be read here.
    #[error("version {got} was sent, version {expected} is read here")]
    Version {
        /// What this binary reads.
        expected: u32,
        /// What was sent.
        got: u32,
    },
    /// The bytes hold a message of another type.
    #[error("a {got:?} was sent, a {expected:?} is read here")]
    Tag {
        /// What this mailbox or method takes.
        expected: String,
        /// What was sent.
        got: String,
    },
    /// The body is encoded in a way that this binary does not know.
    #[error("unknown codec {0}")]
    Codec(u8),
}

impl DecodeError {
    /// Which kind it is, in a word; the error itself may quote the value.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Trailing(_) => "trailing bytes",
            Self::TooDeep => "too deep",
            Self::TooLarge { .. } => "too large",
            Self::Version { .. } => "version",
            Self::Tag { .. } => "tag",
            Self::Codec(_) => "codec",
        }
    }
}

pub(crate) fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    struct Out<'a>(&'a mut Vec<u8>);
    impl bincode::enc::write::Writer for Out<'_> {
        fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }
    bincode::serde::encode_into_writer(value, Out(out), config::standard())
        .map_err(|error| EncodeError(error.to_string()))
}

/// Decodes a value; `exact` refuses bytes that follow it.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8], exact: bool) -> Result<T, DecodeError> {
    let budget = Budget::for_body(body.len());
    let decoded = bincode::serde::seed_decode_from_slice(Root::new(&budget), body, config::standard());
    let (value, used) = decoded.map_err(|error| match budget.breach() {
        None => DecodeError::Malformed(error.to_string()),
        Some(Breach::Depth) => DecodeError::TooDeep,
        Some(Breach::Memory) => DecodeError::TooLarge { body: body.len(), max: Budget::memory_max(body.len()) },
    })?;
    if exact && used != body.len() {
        return Err(DecodeError::Trailing(body.len() - used));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
    use std::fmt::Debug;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::guard::{LEVELS_MAX, MEMORY_FACTOR, MEMORY_FLOOR};
    use super::*;

    #[test]
    fn a_value_comes_back_and_its_bytes_are_pinned() {
        let value = (7u64, "seven".to_owned(), vec![1u16, 300, 70]);
        let bytes = encoded(&value);
        assert_eq!(bytes, b"\x07\x05seven\x03\x01\xfb\x2c\x01\x46");
        assert_eq!(decode::<(u64, String, Vec<u16>)>(&bytes, true), Ok(value));
    }

    #[test]
    fn trailing_bytes_are_refused_unless_allowed() {
        assert_eq!(decode::<u8>(&[1, 2], true), Err(DecodeError::Trailing(1)));
        assert_eq!(decode::<u8>(&[1, 2], false), Ok(1));
    }

    /// Small numbers and empty lists take one byte each on the wire and many in memory.
    #[test]
    fn what_grows_in_memory_is_decoded() {
        for size in [0, 1, 4_000, 100_000] {
            comes_back(&vec![7u128; size]);
            comes_back(&vec![Some(7u64); size]);
            comes_back(&vec![None::<u64>; size]);
            comes_back(&vec![String::new(); size]);
            comes_back(&vec![Vec::<u8>::new(); size]);
            comes_back(&vec![(Vec::<u64>::new(), None::<String>); size]);
            comes_back(&(0..size).map(|n| (n.to_string(), vec![0u8; n % 3])).collect::<HashMap<_, _>>());
            comes_back(&(0..size as u64).map(|n| (n, [n; 3])).collect::<BTreeMap<_, _>>());
        }
        comes_back(&vec![(); 1024]);
        comes_back(&vec![[0u8; 0]; 1024]);
    }

    /// Nine bytes announce up to 2^64 - 1 elements.
    #[test]
    fn a_length_that_lies_is_an_error_at_once() {
        fn lies<T: DeserializeOwned>() {
            for len in [1 << 16, 1 << 20, 1 << 40, u64::MAX >> 1, u64::MAX] {
                let body = encoded(&len);
                assert!(at_once(|| decode::<T>(&body, false)).is_err(), "{len} {}", std::any::type_name::<T>());
                let within = [&[1], &body[..], &[0; 100]].concat();
                assert!(at_once(|| decode::<Vec<T>>(&within, false)).is_err(), "{len} {}", std::any::type_name::<T>());
            }
        }
        lies::<String>();
        lies::<bytes::Bytes>();
        lies::<Vec<u8>>();
        lies::<Vec<u64>>();
        lies::<Vec<[u64; 32]>>();
        lies::<Vec<Vec<Vec<u64>>>>();
        lies::<VecDeque<String>>();
        lies::<HashMap<u64, u64>>();
        lies::<BTreeMap<String, u8>>();
        lies::<BTreeSet<u8>>();
        lies::<Box<[u16]>>();
        lies::<Tree>();
    }

    #[test]
    fn elements_without_a_size_are_bounded_in_number() {
        fn floods<T: DeserializeOwned>() {
            let body = encoded(&u64::MAX);
            let decoded = at_once(|| decode::<T>(&body, true)).err();
            assert_eq!(decoded, Some(too_large(9)), "{}", std::any::type_name::<T>());
        }
        floods::<Vec<()>>();
        floods::<Vec<[u8; 0]>>();
        floods::<VecDeque<()>>();
        floods::<HashMap<(), ()>>();
        floods::<HashSet<()>>();
        floods::<BTreeMap<(), ()>>();
        floods::<BTreeSet<()>>();
        floods::<Vec<std::marker::PhantomData<String>>>();
    }

    /// An element costs 16 bytes or its size; a body of three bytes may cost 64 KiB and 192 bytes.
    #[test]
    fn the_last_byte_of_memory_and_one_more() {
        let max = MEMORY_FLOOR + 3 * MEMORY_FACTOR;
        let body = |len: usize| encoded(&u16::try_from(len).unwrap());
        assert_eq!(decode::<Vec<()>>(&body(max / 16), true).map(|list| list.len()), Ok(max / 16));
        assert_eq!(decode::<Vec<()>>(&body(max / 16 + 1), true), Err(too_large(3)));

        // The last of the announced elements is refused before the first is read.
        assert!(matches!(decode::<Vec<u64>>(&body(max / 16), true), Err(DecodeError::Malformed(_))));
        assert_eq!(decode::<Vec<u64>>(&body(max / 16 + 1), true), Err(too_large(3)));
        let entry = 16 + 24;
        assert!(matches!(decode::<HashMap<u8, String>>(&body(max / entry), true), Err(DecodeError::Malformed(_))));
        let entries = [&body(max / entry + 1)[..], &[0, 0]].concat();
        assert!(matches!(decode::<HashMap<u8, String>>(&entries, true), Err(DecodeError::Malformed(_))));
        let entries = [&body(max / entry + 8)[..], &[0, 0]].concat();
        assert_eq!(decode::<HashMap<u8, String>>(&entries, true), Err(too_large(5)));
    }

    #[test]
    fn large_values_of_few_bytes_are_refused() {
        type Large = Option<[u64; 32]>;
        let size = size_of::<Large>();
        let fits = (0..).find(|n| n * size > MEMORY_FLOOR + (n + 3) * MEMORY_FACTOR).unwrap() - 1;
        comes_back(&vec![Large::None; fits]);
        refused_as_too_large(&vec![Large::None; fits + 1]);
        refused_as_too_large(&vec![Large::None; 100_000]);

        // In a box it takes no less.
        comes_back(&vec![Box::new(Large::None); 200]);
        refused_as_too_large(&vec![Box::new(Large::None); 400]);
        comes_back(&vec![Some(Box::new([[0u64; 32]; 2])); 1000]);
        refused_as_too_large(&(0..3000u32).map(|n| (n, Box::new(Large::None))).collect::<BTreeMap<_, _>>());
    }

    /// A list of values that contain themselves; the innermost is a level too.
    #[test]
    fn the_last_level_and_one_more() {
        in_a_task(|| {
            let last = LEVELS_MAX as usize - 1;
            nests::<Chain>(&[1], &[0], last);
            nests::<Tree>(&[1], &[0], last / 2); // A level for the struct, a level for its list.
            nests::<Named>(&[7, 1], &[7, 0], last / 2);
            nests::<Mapped>(&[1, 7], &[0], last / 2);
            nests::<Pair>(&[1], &[0, 7], last);
            nests::<Wrapped>(&[1], &[0], last / 2);
        });
    }

    /// The stack holds a large value several times while it is built, so its size counts.
    #[test]
    fn large_values_nest_less_deep() {
        in_a_task(|| {
            nests::<Large>(&[1], &[0], (LEVELS_MAX as usize - 1) / (size_of::<Large>() / 512 + 1));
            nests::<Huge>(&[1], &[0], (LEVELS_MAX as usize - 1) / (size_of::<Huge>() / 512 + 1));
            comes_back(&vec![Huge::Leaf([7; 32], [[8; 32]; 30], [[9; 32]; 30])]);
        });
    }

    /// All limits at once, in a stack as small as a task's.
    #[test]
    fn hostile_bytes_are_an_error_in_time() {
        in_a_task(|| {
            for byte in [0, 1, 2, 7, 250, 251, 252, 253, 255] {
                for len in [1, 9, 300, 20_000] {
                    let body = vec![byte; len];
                    each_type(&body);
                    each_type(&[&[253, 255, 255, 255, 255, 255, 255, 255, 255], &body[..]].concat());
                    each_type(&[&[251, 255, 15], &body[..]].concat());
                }
            }
        });
    }

    proptest! {
        #[test]
        fn noise_is_no_panic(body in prop::collection::vec(any::<u8>(), 0..600)) {
            each_type(&body);
        }

        /// Noise of small numbers gets further into a type.
        #[test]
        fn quiet_noise_is_no_panic(body in prop::collection::vec(0u8..4, 0..2000)) {
            each_type(&body);
        }

        #[test]
        fn a_rich_value_comes_back(value in rich()) {
            let bytes = encoded(&value);
            prop_assert_eq!(decode::<Rich>(&bytes, true), Ok(value.clone()));
            prop_assert!(decode::<Rich>(&[&bytes[..], &[0]].concat(), true).is_err());
            prop_assert_eq!(decode::<Rich>(&[&bytes[..], &[0]].concat(), false), Ok(value));
            if let Some((_, shorter)) = bytes.split_last() {
                prop_assert!(decode::<Rich>(shorter, false).is_err());
            }
        }
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Chain {
        Nil,
        Cons(Box<Self>),
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Tree(Vec<Self>, ());

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Named {
        id: u8,
        next: Option<Box<Self>>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Mapped {
        next: BTreeMap<u8, Self>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    enum Pair {
        Leaf(u8),
        Node { next: Box<Self> },
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Wrapped(Option<Box<Self>>);

    #[derive(Debug, Serialize, Deserialize)]
    #[expect(clippy::large_enum_variant, reason = "that is what is tested")]
    enum Large {
        Leaf([[u64; 32]; 8]),
        Node(Box<Self>),
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[expect(clippy::large_enum_variant, reason = "that is what is tested")]
    enum Huge {
        Leaf([u64; 32], [[u64; 32]; 30], [[u64; 32]; 30]),
        Node(Box<Self>),
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Rich {
        id: u64,
        balance: i128,
        name: String,
        letter: char,
        ratio: Option<f32>,
        lists: Vec<Vec<u16>>,
        map: BTreeMap<String, (bool, i8)>,
        kind: Kind,
        outcome: Result<(), String>,
        tree: Tree,
        chain: Chain,
        waited: Duration,
        address: std::net::IpAddr,
        units: Vec<()>,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Kind {
        None,
        One(u32),
        Two(i64, String),
        Named { bytes: bytes::Bytes, array: [u32; 5] },
    }

    fn rich() -> impl Strategy<Value = Rich> {
        let kind = prop_oneof![
            Just(Kind::None),
            any::<u32>().prop_map(Kind::One),
            any::<(i64, String)>().prop_map(|(number, text)| Kind::Two(number, text)),
            any::<(Vec<u8>, [u32; 5])>().prop_map(|(bytes, array)| Kind::Named { bytes: bytes.into(), array }),
        ];
        let tree = Just(Tree(vec![], ()))
            .prop_recursive(6, 30, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(|trees| Tree(trees, ())));
        let chain = (0..100).prop_map(|len| (0..len).fold(Chain::Nil, |chain, _| Chain::Cons(Box::new(chain))));
        let plain = any::<(u64, i128, String, char, Option<f32>, Vec<Vec<u16>>)>();
        let more = any::<(BTreeMap<String, (bool, i8)>, Result<(), String>, Duration, std::net::IpAddr)>();
        (plain, more, kind, tree, chain, 0..1024usize).prop_map(|(plain, more, kind, tree, chain, units)| {
            let (id, balance, name, letter, ratio, lists) = plain;
            let (map, outcome, waited, address) = more;
            let units = vec![(); units];
            Rich { id, balance, name, letter, ratio, lists, map, kind, outcome, tree, chain, waited, address, units }
        })
    }

    fn each_type(body: &[u8]) {
        fn bounded<T: DeserializeOwned>(body: &[u8]) {
            drop(at_once(|| decode::<T>(body, true)));
            drop(at_once(|| decode::<T>(body, false)));
        }
        bounded::<bool>(body);
        bounded::<char>(body);
        bounded::<u128>(body);
        bounded::<String>(body);
        bounded::<Duration>(body);
        bounded::<std::time::SystemTime>(body);
        bounded::<Vec<()>>(body);
        bounded::<Vec<Vec<Vec<()>>>>(body);
        bounded::<Vec<Vec<u8>>>(body);
        bounded::<Vec<Option<[u64; 32]>>>(body);
        bounded::<HashMap<String, Vec<u8>>>(body);
        bounded::<BTreeMap<u8, BTreeSet<u8>>>(body);
        bounded::<Chain>(body);
        bounded::<Tree>(body);
        bounded::<Named>(body);
        bounded::<Mapped>(body);
        bounded::<Large>(body);
        bounded::<Huge>(body);
        bounded::<Vec<Huge>>(body);
        bounded::<Rich>(body);
        bounded::<crate::id::Pid>(body);
    }

    fn encoded<T: Serialize>(value: &T) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(value, &mut bytes).unwrap();
        bytes
    }

    fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
        assert!(decode::<T>(&encoded(value), true).as_ref() == Ok(value), "{}", std::any::type_name::<T>());
    }

    fn refused_as_too_large<T: Serialize + DeserializeOwned>(value: &T) {
        let bytes = encoded(value);
        assert_eq!(decode::<T>(&bytes, true).err(), Some(too_large(bytes.len())));
    }

    fn too_large(body: usize) -> DecodeError {
        DecodeError::TooLarge { body, max: body * MEMORY_FACTOR + MEMORY_FLOOR }
    }

    /// `levels` outer levels are read, one more is not, and very many are refused no later.
    fn nests<T: DeserializeOwned + Debug>(outer: &[u8], inner: &[u8], levels: usize) {
        let body = |levels: usize| [&outer.repeat(levels)[..], inner, &[0; 2000]].concat();
        let what = std::any::type_name::<T>();
        assert!(decode::<T>(&body(levels), false).is_ok(), "{what}: {:?}", decode::<T>(&body(levels), false));
        assert_eq!(decode::<T>(&body(levels + 1), false).err(), Some(DecodeError::TooDeep), "{what}");
        let deep = body(20_000);
        assert_eq!(at_once(|| decode::<T>(&deep, false)).err(), Some(DecodeError::TooDeep), "{what}");
    }

    /// Runs on a stack as large as that of tokio's workers.
    fn in_a_task(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(test).unwrap();
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn at_once<T>(work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
        done
    }
}
