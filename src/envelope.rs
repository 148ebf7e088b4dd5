//! Messages in their envelopes: for those who store or forward them unopened.

use std::fmt;

use bytes::{Buf, Bytes};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec::{DecodeError, EncodeError, RAW};
use crate::message::{self, Message};
use crate::wire::Schema;

/// A message as its bytes, with all that says how to read them.
///
/// Wrapping encodes, [`unwrap`](Self::unwrap) decodes by the same rules as a mailbox; between the two nobody needs the
/// type. An envelope is a message itself, so it can be sent and forwarded by nodes that know nothing of what is in it; and
/// it has bytes that may be kept. Cheap to clone but for the tag: clones share the body.
///
/// ```
/// use distribute::Envelope;
///
/// let envelope = Envelope::wrap(&vec![7u64, 8])?;
/// assert_eq!((envelope.tag(), envelope.version()), ("vec<u64>", 1));
///
/// let stored = envelope.to_bytes();
/// let envelope = Envelope::from_bytes(stored)?;
/// assert!(envelope.holds::<Vec<u64>>());
/// assert_eq!(envelope.unwrap::<Vec<u64>>()?, [7, 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope {
    schema: Schema,
    body: Bytes,
}

impl Envelope {
    /// Encodes a message.
    ///
    /// # Errors
    /// [`EncodeError`] when the value has no encoding.
    pub fn wrap<M: Message>(message: &M) -> Result<Self, EncodeError> {
        Ok(Self { schema: message::schema::<M>(), body: message::body(message)? })
    }

    /// Decodes the message, by the rules of a mailbox: the tag is the type's, and its version can be read.
    ///
    /// An [`Address`](crate::Address) in it is unbound: see [`Address::bind`](crate::Address::bind).
    ///
    /// # Errors
    /// [`DecodeError`]; the envelope is as it was.
    pub fn unwrap<M: Message>(&self) -> Result<M, DecodeError> {
        message::decode(&self.schema, &self.body)
    }

    /// Tells whether the message has the tag of this type. Its version may still be one that cannot be read.
    pub fn holds<M: Message>(&self) -> bool {
        message::is_tagged::<M>(&self.schema)
    }

    /// Returns the tag of the message, at most 255 bytes.
    pub fn tag(&self) -> &str {
        &self.schema.tag
    }

    /// Returns the version of the message's layout.
    pub fn version(&self) -> u32 {
        self.schema.version
    }

    /// Returns the oldest version whose readers can read the message.
    pub fn readable_since(&self) -> u32 {
        self.schema.readable_since
    }

    /// Returns how many bytes the encoded message has, without its envelope.
    pub fn body_len(&self) -> usize {
        self.body.len()
    }

    /// Returns the envelope's bytes. Their layout is fixed:
    ///
    /// | bytes | what |
    /// |---|---|
    /// | 1 | `0xe1`, this layout |
    /// | 1 | length of the tag |
    /// | 0 to 255 | the tag, UTF-8 |
    /// | 4 | the version, big-endian |
    /// | 4 | readable since, big-endian |
    /// | 1 | how the body is encoded: 1 is bincode 2 in its standard configuration, 2 is a type's own |
    /// | the rest | the body |
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.len());
        self.put(&mut out);
        out.into()
    }

    /// Reads the bytes of [`to_bytes`](Self::to_bytes), without a look into the body, which is shared and not copied.
    ///
    /// # Errors
    /// [`EnvelopeError`] when these are no bytes of an envelope.
    pub fn from_bytes(mut bytes: Bytes) -> Result<Self, EnvelopeError> {
        let layout = bytes.try_get_u8().map_err(|_| EnvelopeError::Short)?;
        if layout != LAYOUT {
            return Err(EnvelopeError::Layout(layout));
        }
        let len = usize::from(bytes.try_get_u8().map_err(|_| EnvelopeError::Short)?);
        if bytes.len() < len + FIXED_AFTER_TAG {
            return Err(EnvelopeError::Short);
        }
        let tag = std::str::from_utf8(&bytes.split_to(len)).map_err(|_| EnvelopeError::Tag)?.to_owned();
        let schema = Schema { tag, version: bytes.get_u32(), readable_since: bytes.get_u32(), codec: bytes.get_u8() };
        Ok(Self { schema, body: bytes })
    }

    fn len(&self) -> usize {
        2 + self.schema.tag.len() + FIXED_AFTER_TAG + self.body.len()
    }

    fn put(&self, out: &mut Vec<u8>) {
        let Schema { tag, version, readable_since, codec } = &self.schema;
        out.extend_from_slice(&[LAYOUT, u8::try_from(tag.len()).expect("no schema has a longer tag")]);
        out.extend_from_slice(tag.as_bytes());
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(&readable_since.to_be_bytes());
        out.push(*codec);
        out.extend_from_slice(&self.body);
    }
}

/// The first byte: this layout, and no other.
const LAYOUT: u8 = 0xe1;

/// Bytes between the tag and the body.
const FIXED_AFTER_TAG: usize = 4 + 4 + 1;

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("tag", &self.tag())
            .field("version", &self.version())
            .field("readable_since", &self.readable_since())
            .field("body_len", &self.body_len())
            .finish()
    }
}

/// An envelope travels as the bytes of [`Envelope::to_bytes`].
impl Message for Envelope {
    const TAG: &'static str = "envelope";
    const VERSION: u32 = 1;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.reserve(self.len());
        self.put(out);
        Ok(())
    }

    fn heap_size(&self) -> usize {
        self.len()
    }

    fn decode(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
        if version != Self::VERSION {
            return Err(DecodeError::Version { expected: Self::VERSION, got: version });
        }
        Self::from_bytes(body.clone()).map_err(|error| DecodeError::Malformed(error.to_string()))
    }

    fn codec() -> u8 {
        RAW
    }
}

impl Serialize for Envelope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.to_bytes())
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_bytes(Bytes::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Why bytes are no envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The bytes begin with that of another layout: of a later version of this crate, or of something else.
    #[error("{0:#04x} is the layout of no envelope that is known here")]
    Layout(u8),
    /// The bytes end before the body.
    #[error("the bytes end before the body")]
    Short,
    /// The tag is not UTF-8.
    #[error("the tag is not UTF-8")]
    Tag,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Order {
        id: u64,
    }

    impl Message for Order {
        const TAG: &'static str = "shop.order";
        const VERSION: u32 = 300;
        const READABLE_SINCE: u32 = 2;
    }

    const GOLDEN: &[u8] = b"\xe1\x0ashop.order\x00\x00\x01\x2c\x00\x00\x00\x02\x01\x07";

    #[test]
    fn the_bytes_are_pinned() {
        let envelope = Envelope::wrap(&Order { id: 7 }).unwrap();
        assert_eq!(&envelope.to_bytes()[..], GOLDEN);
        assert_eq!(Envelope::from_bytes(Bytes::from_static(GOLDEN)), Ok(envelope));
        let raw = Envelope::wrap(&Bytes::from_static(b"raw")).unwrap();
        assert_eq!(&raw.to_bytes()[..], b"\xe1\x05bytes\x00\x00\x00\x01\x00\x00\x00\x01\x02raw");
    }

    #[test]
    fn what_is_in_it_is_seen_without_opening() {
        let envelope = Envelope::from_bytes(Bytes::from_static(GOLDEN)).unwrap();
        assert_eq!((envelope.tag(), envelope.version(), envelope.readable_since()), ("shop.order", 300, 2));
        assert_eq!(envelope.body_len(), 1);
        assert!(envelope.holds::<Order>() && !envelope.holds::<Vec<Order>>());
        assert_eq!(
            format!("{envelope:?}"),
            "Envelope { tag: \"shop.order\", version: 300, readable_since: 2, body_len: 1 }"
        );
    }

    #[test]
    fn unwrapping_keeps_to_the_rules_of_a_mailbox() {
        let envelope = Envelope::wrap(&Order { id: 7 }).unwrap();
        assert_eq!(envelope.unwrap(), Ok(Order { id: 7 }));
        let of_another = DecodeError::Tag { expected: "u64".into(), got: "shop.order".into() };
        assert_eq!(envelope.unwrap::<u64>(), Err(of_another));

        let altered = |change: fn(&mut Schema)| {
            let mut envelope = envelope.clone();
            change(&mut envelope.schema);
            envelope.unwrap::<Order>()
        };
        assert_eq!(altered(|schema| schema.codec = 9), Err(DecodeError::Codec(9)));
        let version = |got| Err(DecodeError::Version { expected: 300, got });
        assert_eq!(altered(|schema| schema.version = 299), version(299));
        assert_eq!(altered(|schema| (schema.version, schema.readable_since) = (301, 301)), version(301));
        assert_eq!(altered(|schema| schema.version = 301), Ok(Order { id: 7 }));
    }

    #[test]
    fn each_end_too_early_is_an_error() {
        for len in 0..GOLDEN.len() - 1 {
            assert_eq!(Envelope::from_bytes(Bytes::from_static(&GOLDEN[..len])), Err(EnvelopeError::Short), "{len}");
        }
        let empty = Envelope::from_bytes(Bytes::from_static(&GOLDEN[..GOLDEN.len() - 1])).unwrap();
        assert!(matches!(empty.unwrap::<Order>(), Err(DecodeError::Malformed(_))));
        assert_eq!(Envelope::from_bytes(Bytes::from_static(b"\xe2")), Err(EnvelopeError::Layout(0xe2)));
        let tag = b"\xe1\x01\xff\x00\x00\x00\x01\x00\x00\x00\x01\x01";
        assert_eq!(Envelope::from_bytes(Bytes::from_static(tag)), Err(EnvelopeError::Tag));
    }

    /// Envelopes within messages, within envelopes, and in JSON.
    #[test]
    fn an_envelope_is_a_message() {
        let inner = Envelope::wrap(&Order { id: 7 }).unwrap();
        let outer = Envelope::wrap(&inner).unwrap();
        assert_eq!((outer.tag(), outer.body_len()), ("envelope", GOLDEN.len()));
        assert_eq!(outer.unwrap().as_ref(), Ok(&inner));

        let several = vec![inner.clone(), outer];
        let wrapped = Envelope::wrap(&several).unwrap();
        assert_eq!(wrapped.tag(), "vec<envelope>");
        assert_eq!(wrapped.unwrap::<Vec<Envelope>>(), Ok(several));

        let json = serde_json::to_string(&inner).unwrap();
        assert_eq!(serde_json::from_str::<Envelope>(&json).unwrap(), inner);
        assert!(serde_json::from_str::<Envelope>("[226]").is_err());
    }

    proptest! {
        #[test]
        fn noise_is_no_panic(noise in prop::collection::vec(any::<u8>(), 0..64), begins in any::<bool>()) {
            let bytes: Bytes = if begins { [&[LAYOUT], &noise[..]].concat() } else { noise }.into();
            if let Ok(envelope) = Envelope::from_bytes(bytes.clone()) {
                prop_assert_eq!(envelope.to_bytes(), bytes);
                let _ = envelope.unwrap::<Order>();
            }
        }
    }
}
