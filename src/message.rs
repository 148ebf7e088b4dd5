//! Types that travel between nodes: their tags, their versions, their bytes.

use std::any::TypeId;
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::codec::{self, DecodeError, EncodeError};
use crate::id::{NodeId, Pid};
use crate::wire::{Schema, TAG_MAX};

/// A type that travels between nodes.
///
/// The tag names the type on the wire, so choose one that no other type of your cluster has, and keep it when the type
/// moves or is renamed. A receiver of another tag or of a version that it cannot read gets no message: it is refused there
/// and counted, or is the error of the call.
///
/// ```
/// use distribute::Message;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Order { id: u64 }
///
/// impl Message for Order {
///     const TAG: &'static str = "shop.order";
///     const VERSION: u32 = 1;
/// }
/// assert_eq!(<Vec<Order> as Message>::tag(), "vec<shop.order>");
/// ```
///
/// # Evolution
/// Raise the version with each change of the layout, also with one of a type within this one: what is nested has no version
/// of its own on the wire. Then nothing is misread in silence: between versions a message is refused, unless
/// - the newer reader reads the older layout: [`migrate`](Self::migrate);
/// - the older reader can read what it knows of the newer layout: [`READABLE_SINCE`](Self::READABLE_SINCE).
///
/// ```
/// # use distribute::{Bytes, DecodeError, Message};
/// # use serde::{Deserialize, Serialize};
/// #[derive(Serialize, Deserialize)]
/// struct Order { id: u64, note: String }
///
/// impl Message for Order {
///     const TAG: &'static str = "shop.order";
///     const VERSION: u32 = 2;
///     const READABLE_SINCE: u32 = 1; // The note is at the end: who reads version 1 overlooks it.
///
///     fn migrate(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
///         let OrderV1 { id } = OrderV1::decode(body, version)?;
///         Ok(Self { id, note: String::new() })
///     }
/// }
///
/// #[derive(Serialize, Deserialize)]
/// struct OrderV1 { id: u64 }
///
/// impl Message for OrderV1 {
///     const TAG: &'static str = "shop.order";
///     const VERSION: u32 = 1;
/// }
/// # let old = distribute::Envelope::wrap(&OrderV1 { id: 7 }).unwrap();
/// # assert_eq!(old.unwrap::<Order>().unwrap().id, 7);
/// # let new = distribute::Envelope::wrap(&Order { id: 8, note: "now".into() }).unwrap();
/// # assert_eq!(new.unwrap::<OrderV1>().unwrap().id, 8);
/// ```
///
/// # Limits
/// Reading a body is bounded, whatever its bytes are and whatever the type is:
/// - Values nest 128 levels deep, beyond that is [`DecodeError::TooDeep`]. Each list, map, tuple, struct, enum and option
///   is a level within the one around it; one in a collection or a box counts as another level for each 512 bytes of its
///   size. So a chain of boxes may have 127 links and its end.
/// - A value takes 64 times the body's size in memory, and 64 KiB; beyond that is [`DecodeError::TooLarge`]. What counts are
///   the elements of collections, each with its size but with 16 bytes at least, and what is in boxes. So it is elements of
///   more than 64 times the size of their encoding that are refused, and empty ones (`Vec<()>`) from some 4096 on. The
///   spare room of collections comes on top: as much again while they grow, and 1 MiB for the one that is begun.
///
/// Both are limits of reading: what is beyond them can be sent, and is refused where it arrives.
///
/// # Types
/// Implemented for the primitives, `String`, [`Bytes`], `Duration`, `SystemTime`, `IpAddr` and `SocketAddr` (which travels
/// without the scope of an IPv6 address), for lists, maps and sets of the standard library, for `Option`, `Result`, `Box`
/// and tuples of up to six, and for [`Address`](crate::Address) and [`Envelope`](crate::Envelope). What is encoded alike has
/// one tag: `usize` and `u64`, a `HashMap` and a `BTreeMap`.
///
/// The tag of a composed type names its parts: `vec<shop.order>`. Its version changes with the version of any part and is
/// read exactly, since a part that grew would shift all that follows it: wrap a list in a type of your own if it is to
/// evolve.
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// The name of the type on the wire. Keep it below 256 bytes and without `<`, `>` and `,`, which join the tags of
    /// composed types.
    const TAG: &'static str;

    /// The version of the layout.
    const VERSION: u32;

    /// The oldest version whose readers can read this layout. Lower than [`VERSION`](Self::VERSION) only when since then
    /// fields were added at the end of this very type, and nothing else changed.
    const READABLE_SINCE: u32 = Self::VERSION;

    /// The whole tag: of a composed type, with its parts. From 256 bytes on, its first 200 travel, with a hash of it all.
    fn tag() -> Cow<'static, str> {
        Cow::Borrowed(Self::TAG)
    }

    /// Appends the body to `out`.
    ///
    /// # Errors
    /// [`EncodeError`] when the value has no encoding; nothing is sent.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        codec::encode(self, out)
    }

    /// Reads a body that a sender of `version` wrote.
    ///
    /// Called with this type's tag, and with this type's version, or an older one, or a newer one that says it is
    /// readable here. All of the body must be used, but for what a newer version added at its end. Override it together
    /// with [`encode`](Self::encode) for an encoding of your own, and otherwise [`migrate`](Self::migrate).
    ///
    /// # Errors
    /// [`DecodeError`]; the message is refused.
    fn decode(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
        if version < Self::VERSION {
            return Self::migrate(body, version);
        }
        codec::decode(body, version == Self::VERSION)
    }

    /// Reads a body of an older version than this type's.
    ///
    /// # Errors
    /// [`DecodeError::Version`], unless it is overridden; the message is refused.
    fn migrate(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
        let _ = body;
        Err(DecodeError::Version { expected: Self::VERSION, got: version })
    }

    /// About how many bytes the value holds beside its own size, in lists, texts and boxes. The default is none.
    ///
    /// Messages to a mailbox of the same node are moved and not encoded, so this is what bounds their bytes:
    /// [`Config::mailbox_local_bytes`](crate::Config::mailbox_local_bytes). Override it for a type of your own that may be
    /// large.
    fn heap_size(&self) -> usize {
        0
    }

    /// How the body is encoded on the wire.
    #[doc(hidden)]
    fn codec() -> u8 {
        codec::BINCODE
    }

    /// The body, when the value is one already and can be shared instead of written.
    #[doc(hidden)]
    fn shared_body(&self) -> Option<Bytes> {
        None
    }
}

/// What goes along with the bodies of a type.
pub(crate) fn schema<M: Message>() -> Schema {
    Schema::clone(&known_schema::<M>())
}

/// Tells whether a body is a type's, of whatever version.
pub(crate) fn is_tagged<M: Message>(schema: &Schema) -> bool {
    schema.tag == known_schema::<M>().tag
}

/// Tells whether that is a type's tag.
pub(crate) fn has_tag<M: Message>(tag: &str) -> bool {
    known_schema::<M>().tag == tag
}

thread_local! {
    /// The schemas of the types that this thread has met: to make a composed tag is dearer than to decode a small message.
    static KNOWN: RefCell<HashMap<TypeId, Rc<Schema>, BuildHasherDefault<TypeIdHasher>>> = RefCell::default();
}

fn known_schema<M: Message>() -> Rc<Schema> {
    let id = TypeId::of::<M>();
    // When the thread ends, what it knew may be gone.
    if let Ok(Some(schema)) = KNOWN.try_with(|known| known.borrow().get(&id).cloned()) {
        return schema;
    }
    // Outside of the borrow, because the tag may be a user's code.
    let schema = Rc::new(Schema {
        tag: fitted(M::tag()),
        version: M::VERSION,
        readable_since: M::READABLE_SINCE,
        codec: M::codec(),
    });
    let _ = KNOWN.try_with(|known| known.borrow_mut().insert(id, schema.clone()));
    schema
}

/// A tag that fits a frame: what is too long is cut, and told apart by a hash.
fn fitted(tag: Cow<'static, str>) -> String {
    if tag.len() <= TAG_MAX {
        return tag.into_owned();
    }
    let cut = (0..=LONG_TAG_KEEPS).rev().find(|at| tag.is_char_boundary(*at)).unwrap_or_default();
    let hash = Sha256::digest(tag.as_bytes());
    format!("{}#{}", &tag[..cut], HEXLOWER.encode(&hash[..8]))
}

/// Bytes that are left of a tag that is too long.
const LONG_TAG_KEEPS: usize = 200;

/// A type's id is a hash already.
#[derive(Default)]
struct TypeIdHasher(u64);

impl Hasher for TypeIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, half: u64) {
        self.0 ^= half;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The whole body of a value.
pub(crate) fn body<M: Message>(message: &M) -> Result<Bytes, EncodeError> {
    if let Some(body) = message.shared_body() {
        return Ok(body);
    }
    let mut out = Vec::new();
    message.encode(&mut out)?;
    Ok(out.into())
}

/// Reads a body after checking that it is this type's.
pub(crate) fn decode<M: Message>(schema: &Schema, body: &Bytes) -> Result<M, DecodeError> {
    check::<M>(schema)?;
    M::decode(body, schema.version)
}

/// Checks that bodies of a schema are this type's, and can be read.
pub(crate) fn check<M: Message>(schema: &Schema) -> Result<(), DecodeError> {
    let own = known_schema::<M>();
    if schema.tag != own.tag {
        return Err(DecodeError::Tag { expected: own.tag.clone(), got: schema.tag.clone() });
    }
    if schema.codec != own.codec {
        return Err(DecodeError::Codec(schema.codec));
    }
    if schema.version > own.version && schema.readable_since > own.version {
        return Err(DecodeError::Version { expected: own.version, got: schema.version });
    }
    Ok(())
}

macro_rules! plain_messages {
    ($($type:ty => $tag:literal $(, heap $heap:expr)?);* $(;)?) => {
        $(impl Message for $type {
            const TAG: &'static str = $tag;
            const VERSION: u32 = 1;
            $(
                fn heap_size(&self) -> usize {
                    let heap: fn(&Self) -> usize = $heap;
                    heap(self)
                }
            )?
        })*
    };
}

plain_messages! {
    () => "()"; bool => "bool"; char => "char"; f32 => "f32"; f64 => "f64";
    u8 => "u8"; u16 => "u16"; u32 => "u32"; u64 => "u64"; u128 => "u128"; usize => "u64";
    i8 => "i8"; i16 => "i16"; i32 => "i32"; i64 => "i64"; i128 => "i128"; isize => "i64";
    String => "string", heap |text| text.len(); Cow<'static, str> => "string", heap |text| text.len();
    Duration => "duration"; SystemTime => "system-time"; IpAddr => "ip-address"; SocketAddr => "socket-address";
    crate::id::NodeName => "node-name"; NodeId => "node-id"; Pid => "pid";
    crate::wire::services::election::Token => "election-token";
}

impl Message for Bytes {
    const TAG: &'static str = "bytes";
    const VERSION: u32 = 1;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.extend_from_slice(self);
        Ok(())
    }

    fn decode(body: &Bytes, _version: u32) -> Result<Self, DecodeError> {
        Ok(body.clone())
    }

    fn codec() -> u8 {
        codec::RAW
    }

    fn shared_body(&self) -> Option<Bytes> {
        Some(self.clone())
    }

    fn heap_size(&self) -> usize {
        self.len()
    }
}

/// One version out of those of the parts, so that a part that grew makes another whole.
const fn combined(versions: &[u32]) -> u32 {
    if versions.len() == 1 {
        return versions[0];
    }
    // FNV-1a (draft-eastlake-fnv): any change of any part changes the result, but for one chance in 2^32.
    let mut hash: u32 = 0x811c_9dc5;
    let mut at = 0;
    while at < versions.len() {
        hash = (hash ^ versions[at]).wrapping_mul(0x0100_0193);
        at += 1;
    }
    hash
}

macro_rules! composed_messages {
    ($([$($part:ident $(: $bound:ident $(+ $more:ident)*)?),+] $type:ty => $tag:literal, heap $heap:expr);* $(;)?) => {
        $(impl<$($part: Message $(+ $bound $(+ $more)*)?),+> Message for $type {
            const TAG: &'static str = $tag;
            const VERSION: u32 = combined(&[$($part::VERSION),+]);

            fn tag() -> Cow<'static, str> {
                let parts: &[Cow<'static, str>] = &[$($part::tag()),+];
                Cow::Owned(format!("{}<{}>", Self::TAG, parts.join(",")))
            }

            fn decode(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
                if version != Self::VERSION {
                    return Err(DecodeError::Version { expected: Self::VERSION, got: version });
                }
                codec::decode(body, true)
            }

            fn heap_size(&self) -> usize {
                let heap: fn(&Self) -> usize = $heap;
                heap(self)
            }
        })*
    };
}

/// What a collection holds.
fn heap_of<'a, T: Message>(elements: impl Iterator<Item = &'a T>) -> usize {
    elements.map(|element| size_of::<T>() + element.heap_size()).sum()
}

composed_messages! {
    [T] Vec<T> => "vec", heap |all| heap_of(all.iter());
    [T] VecDeque<T> => "vec", heap |all| heap_of(all.iter());
    [T: Eq + Hash] HashSet<T> => "set", heap |all| heap_of(all.iter());
    [T: Ord] BTreeSet<T> => "set", heap |all| heap_of(all.iter());
    [K: Eq + Hash, V] HashMap<K, V> => "map", heap |all| heap_of(all.keys()) + heap_of(all.values());
    [K: Ord, V] BTreeMap<K, V> => "map", heap |all| heap_of(all.keys()) + heap_of(all.values());
    [T] Option<T> => "option", heap |some| some.as_ref().map_or(0, T::heap_size);
    [T] Box<T> => "box", heap |inner| size_of::<T>() + T::heap_size(inner);
    [T, E] Result<T, E> => "result", heap |result| result.as_ref().map_or_else(E::heap_size, T::heap_size);
    [A] (A,) => "tuple", heap |(a,)| a.heap_size();
    [A, B] (A, B) => "tuple", heap |(a, b)| a.heap_size() + b.heap_size();
    [A, B, C] (A, B, C) => "tuple", heap |(a, b, c)| a.heap_size() + b.heap_size() + c.heap_size();
    [A, B, C, D] (A, B, C, D) => "tuple",
        heap |(a, b, c, d)| a.heap_size() + b.heap_size() + c.heap_size() + d.heap_size();
    [A, B, C, D, E] (A, B, C, D, E) => "tuple",
        heap |(a, b, c, d, e)| a.heap_size() + b.heap_size() + c.heap_size() + d.heap_size() + e.heap_size();
    [A, B, C, D, E, F] (A, B, C, D, E, F) => "tuple",
        heap |(a, b, c, d, e, f)| {
            a.heap_size() + b.heap_size() + c.heap_size() + d.heap_size() + e.heap_size() + f.heap_size()
        };
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use serde::Deserialize;

    use super::*;
    use crate::messaging::Address;

    #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    struct OrderV1 {
        id: u64,
    }

    impl Message for OrderV1 {
        const TAG: &'static str = "shop.order";
        const VERSION: u32 = 1;
    }

    /// Adds a note at the end.
    #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    struct OrderV2 {
        id: u64,
        note: Option<String>,
    }

    impl Message for OrderV2 {
        const TAG: &'static str = "shop.order";
        const VERSION: u32 = 2;
        const READABLE_SINCE: u32 = 1;

        fn migrate(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
            let OrderV1 { id } = OrderV1::decode(body, version)?;
            Ok(Self { id, note: None })
        }
    }

    /// Makes the id a text.
    #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
    struct OrderV3 {
        id: String,
        note: Option<String>,
    }

    impl Message for OrderV3 {
        const TAG: &'static str = "shop.order";
        const VERSION: u32 = 3;

        fn migrate(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
            let OrderV2 { id, note } = OrderV2::decode(body, version)?;
            Ok(Self { id: id.to_string(), note })
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Invoice {
        id: u64,
    }

    impl Message for Invoice {
        const TAG: &'static str = "shop.invoice";
        const VERSION: u32 = 1;
    }

    #[test]
    fn a_newer_reader_migrates() {
        let (v1, v2) = (OrderV1 { id: 7 }, OrderV2 { id: 7, note: Some("soon".into()) });
        assert_eq!(sent::<_, OrderV2>(&v1), Ok(OrderV2 { id: 7, note: None }));
        assert_eq!(sent::<_, OrderV3>(&v1), Ok(OrderV3 { id: "7".into(), note: None }));
        assert_eq!(sent::<_, OrderV3>(&v2), Ok(OrderV3 { id: "7".into(), note: Some("soon".into()) }));
    }

    #[test]
    fn a_migration_uses_all_of_the_body() {
        let long = Bytes::from_static(&[7, 7]);
        assert_eq!(decode::<OrderV2>(&schema::<OrderV1>(), &long), Err(DecodeError::Trailing(1)));
        assert_eq!(decode::<OrderV3>(&schema::<OrderV1>(), &long), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn an_older_reader_reads_what_only_grew() {
        let v2 = OrderV2 { id: 7, note: Some("soon".into()) };
        assert_eq!(sent::<_, OrderV1>(&v2), Ok(OrderV1 { id: 7 }));

        let v3 = OrderV3 { id: "7".into(), note: None };
        assert_eq!(sent::<_, OrderV1>(&v3), version(1, 3));
        assert_eq!(sent::<_, OrderV2>(&v3), version(2, 3));
    }

    /// Only a newer version that says it is readable may have more bytes than this one.
    #[test]
    fn bytes_that_follow_are_an_error_otherwise() {
        let body = Bytes::from_static(&[7, 0, 0]);
        let told = |version, readable_since| Schema { version, readable_since, ..schema::<OrderV1>() };
        assert_eq!(decode::<OrderV1>(&told(1, 1), &body), Err(DecodeError::Trailing(2)));
        assert_eq!(decode::<OrderV1>(&told(2, 1), &body), Ok(OrderV1 { id: 7 }));
        assert_eq!(decode::<OrderV1>(&told(2, 0), &body), Ok(OrderV1 { id: 7 }));
        assert_eq!(decode::<OrderV1>(&told(2, 2), &body), version(1, 2));
        assert_eq!(decode::<OrderV1>(&told(0, 0), &body), version(1, 0));
        assert!(decode::<OrderV1>(&told(2, 1), &Bytes::new()).is_err());
    }

    #[test]
    fn what_grew_within_another_is_never_misread() {
        /// Between all versions of a part, in both directions: read where they are one, else an error.
        fn apart<A: Message + Debug, B: Message + Debug>(a: &A, b: &B) {
            assert_eq!(schema::<A>().tag, schema::<B>().tag);
            assert!(matches!(sent::<A, B>(a), Err(DecodeError::Version { .. })), "{a:?}");
            assert!(matches!(sent::<B, A>(b), Err(DecodeError::Version { .. })), "{b:?}");
            assert!(sent::<A, A>(a).is_ok() && sent::<B, B>(b).is_ok());
        }
        let (v1, v2) = (OrderV1 { id: 7 }, OrderV2 { id: 7, note: None });
        apart(&vec![v1.clone(); 2], &vec![v2.clone(); 2]);
        apart(&VecDeque::from([v1.clone()]), &VecDeque::from([v2.clone()]));
        apart(&BTreeSet::from([v1.clone()]), &BTreeSet::from([v2.clone()]));
        apart(&HashSet::from([v1.clone()]), &HashSet::from([v2.clone()]));
        apart(&BTreeMap::from([(1u8, v1.clone())]), &BTreeMap::from([(1u8, v2.clone())]));
        apart(&HashMap::from([(v1.clone(), 1u8)]), &HashMap::from([(v2.clone(), 1u8)]));
        apart(&Some(v1.clone()), &Some(v2.clone()));
        apart(&Box::new(v1.clone()), &Box::new(v2.clone()));
        apart(&Ok::<_, u64>(v1.clone()), &Ok::<_, u64>(v2.clone()));
        apart(&Err::<u64, _>(v1.clone()), &Err::<u64, _>(v2.clone()));
        apart(&(v1.clone(),), &(v2.clone(),));
        apart(&(v1.clone(), 1u64), &(v2.clone(), 1u64));
        apart(&(1u64, v1.clone()), &(1u64, v2.clone()));
        apart(&(v1.clone(), v2.clone()), &(v2.clone(), v1.clone()));
        apart(&(v1.clone(), v1.clone()), &(v2.clone(), v2.clone()));
        apart(&Some(vec![(1u8, v1)]), &Some(vec![(1u8, v2)]));
    }

    /// No two of a thousand pairs and a thousand triples of versions are one.
    #[test]
    fn combined_versions_differ() {
        let mut seen = HashSet::new();
        for a in 0..10 {
            for b in 0..10 {
                for c in 0..10 {
                    assert!(seen.insert(combined(&[a, b, c])), "{a} {b} {c}");
                }
            }
        }
        seen.clear();
        for a in 0..40 {
            for b in 0..40 {
                assert!(seen.insert(combined(&[a, b])), "{a} {b}");
            }
        }
    }

    #[test]
    fn another_type_has_another_tag() {
        fn refused<A: Message, B: Message + Debug + PartialEq>(a: &A) {
            let (got, expected) = (A::tag().into_owned(), B::tag().into_owned());
            assert_eq!(sent::<A, B>(a), Err(DecodeError::Tag { expected, got }));
        }
        refused::<_, Invoice>(&OrderV1 { id: 7 });
        refused::<_, Vec<Invoice>>(&vec![OrderV1 { id: 7 }]);
        refused::<_, Option<Invoice>>(&Some(OrderV1 { id: 7 }));
        refused::<_, (Invoice, OrderV1)>(&(OrderV1 { id: 7 }, Invoice { id: 7 }));
        refused::<_, Result<Invoice, OrderV1>>(&Ok::<_, Invoice>(OrderV1 { id: 7 }));
        refused::<_, (OrderV1,)>(&OrderV1 { id: 7 });
        refused::<_, (u64, u64)>(&(7u64, 7u64, 7u64));
        refused::<_, BTreeSet<u64>>(&vec![7u64]);
        refused::<_, BTreeMap<u64, String>>(&BTreeMap::from([(String::new(), 7u64)]));
        assert_eq!(schema::<Address<OrderV1>>().tag, "address<shop.order>");
        assert_eq!(schema::<Address<Vec<Invoice>>>().tag, "address<vec<shop.invoice>>");
    }

    #[test]
    fn what_is_encoded_alike_has_one_tag() {
        assert_eq!(
            sent(&HashMap::from([(7u64, "seven".to_owned())])),
            Ok(BTreeMap::from([(7u64, "seven".to_owned())]))
        );
        assert_eq!(sent(&HashSet::from([7u64])), Ok(BTreeSet::from([7u64])));
        assert_eq!(sent(&VecDeque::from([7u64, 8])), Ok(vec![7u64, 8]));
        assert_eq!(sent(&Cow::Borrowed("seven")), Ok("seven".to_owned()));
        assert_eq!(sent(&7usize), Ok(7u64));
    }

    #[test]
    fn times_and_addresses_come_back() {
        comes_back(SystemTime::UNIX_EPOCH + Duration::new(7, 8));
        comes_back(Duration::MAX);
        comes_back("::1".parse::<IpAddr>().unwrap());
        comes_back("10.0.0.2:4370".parse::<SocketAddr>().unwrap());
        comes_back(Cow::<'static, str>::Owned("seven".into()));
    }

    /// A tag of 255 bytes travels as it is; a longer one is cut, and what it lost still counts.
    #[test]
    fn a_long_tag_is_cut_and_hashed() {
        assert_eq!(fitted("x".repeat(255).into()), "x".repeat(255));
        let cut = fitted("x".repeat(256).into());
        assert_eq!(cut, format!("{}#{}", "x".repeat(200), "85e62acd750c4eb5"));
        assert_ne!(cut, fitted("x".repeat(257).into()));
        // Not within a letter.
        assert_eq!(fitted(format!("x{}", "ü".repeat(200)).into()).find('#'), Some(199));
        assert!(fitted("名".repeat(100).into()).len() <= TAG_MAX);
    }

    #[test]
    fn messages_with_long_tags_are_sent() {
        type Four<T> = (T, T, T, T);
        type Many = Vec<Four<Four<Four<u64>>>>;
        type Others = Vec<Four<Four<Four<u32>>>>;
        let Schema { tag, .. } = schema::<Many>();
        assert!(Many::tag().len() > TAG_MAX && tag.len() <= TAG_MAX);
        assert_eq!(sent::<Many, Many>(&vec![]), Ok(vec![]));
        assert_eq!(sent::<Many, Others>(&vec![]), Err(DecodeError::Tag { expected: schema::<Others>().tag, got: tag }));
    }

    fn sent<A: Message, B: Message>(message: &A) -> Result<B, DecodeError> {
        decode(&schema::<A>(), &body(message).unwrap())
    }

    fn comes_back<M: Message + PartialEq + Debug>(message: M) {
        assert_eq!(sent(&message), Ok(message));
    }

    fn version<T>(expected: u32, got: u32) -> Result<T, DecodeError> {
        Err(DecodeError::Version { expected, got })
    }
}
