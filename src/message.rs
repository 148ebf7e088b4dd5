//! Types that travel between nodes: their tags, their versions, their bytes.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, DecodeError, EncodeError};
use crate::id::{NodeId, Pid};
use crate::wire::Schema;

/// A type that travels between nodes.
///
/// The tag names the type on the wire, so choose one that no other type of your cluster has, and keep it when the type
/// moves or is renamed. Raise the version with each change of the layout. A receiver of another tag or of a version that
/// it cannot read gets no message: it is refused there and counted.
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
/// Implemented for the primitives, `String`, [`Bytes`], `Vec`, `Option`, `Result`, `Box`, tuples and
/// [`Address`](crate::Address). The tag of a composed type names its parts, and its version is read exactly.
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
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// The name of the type on the wire, at most 255 bytes.
    const TAG: &'static str;

    /// The version of the layout.
    const VERSION: u32;

    /// The oldest version whose readers can read this layout. Lower than [`VERSION`](Self::VERSION) only when since then
    /// fields were added at the end of this very type, and nothing else changed.
    const READABLE_SINCE: u32 = Self::VERSION;

    /// The whole tag: of a composed type, with its parts.
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
    /// readable here. Override it to read older versions.
    ///
    /// # Errors
    /// [`DecodeError`]; the message is refused.
    fn decode(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
        if version < Self::VERSION {
            return Err(DecodeError::Version { expected: Self::VERSION, got: version });
        }
        codec::decode(body, version == Self::VERSION)
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

pub(crate) fn schema<M: Message>() -> Schema {
    Schema { tag: M::tag().into_owned(), version: M::VERSION, readable_since: M::READABLE_SINCE, codec: M::codec() }
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
    let tag = M::tag();
    if schema.tag != tag {
        return Err(DecodeError::Tag { expected: tag.into_owned(), got: schema.tag.clone() });
    }
    if schema.codec != M::codec() {
        return Err(DecodeError::Codec(schema.codec));
    }
    if schema.version > M::VERSION && schema.readable_since > M::VERSION {
        return Err(DecodeError::Version { expected: M::VERSION, got: schema.version });
    }
    M::decode(body, schema.version)
}

macro_rules! plain_messages {
    ($($type:ty => $tag:literal),* $(,)?) => {
        $(impl Message for $type {
            const TAG: &'static str = $tag;
            const VERSION: u32 = 1;
        })*
    };
}

plain_messages! {
    () => "()", bool => "bool", char => "char", String => "string", f32 => "f32", f64 => "f64",
    u8 => "u8", u16 => "u16", u32 => "u32", u64 => "u64", u128 => "u128", usize => "u64",
    i8 => "i8", i16 => "i16", i32 => "i32", i64 => "i64", i128 => "i128", isize => "i64",
    Duration => "duration", crate::id::NodeName => "node-name", NodeId => "node-id", Pid => "pid",
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
    ($([$($part:ident),+] $type:ty => $tag:literal),* $(,)?) => {
        $(impl<$($part: Message),+> Message for $type {
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
        })*
    };
}

composed_messages! {
    [T] Vec<T> => "vec",
    [T] Option<T> => "option",
    [T] Box<T> => "box",
    [T, E] Result<T, E> => "result",
    [A] (A,) => "tuple",
    [A, B] (A, B) => "tuple",
    [A, B, C] (A, B, C) => "tuple",
    [A, B, C, D] (A, B, C, D) => "tuple",
    [A, B, C, D, E] (A, B, C, D, E) => "tuple",
    [A, B, C, D, E, F] (A, B, C, D, E, F) => "tuple",
}
