//! Bodies of messages: the only file that knows bincode.
//!
//! Bodies come from peers that hold the cookie but may be wrong or hostile, so decoding is limited by the body's length
//! and must use all of it. [bincode 2.0.1] through serde, standard configuration.
//!
//! [bincode 2.0.1]: https://docs.rs/bincode/2.0.1

use bincode::config::{self, Config, Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

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
    // The limit keeps a length that lies from allocating. bincode takes it as a constant only, and counts what the values
    // take in memory: up to 16 times the body, where a u128 came in one byte. So each step holds 16 times its bodies.
    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    let size = body.len();
    if size <= 4 * KIB {
        decode_within(body, exact, limited::<{ 64 * KIB }>())
    } else if size <= 64 * KIB {
        decode_within(body, exact, limited::<MIB>())
    } else if size <= MIB {
        decode_within(body, exact, limited::<{ 16 * MIB }>())
    } else if size <= 16 * MIB {
        decode_within(body, exact, limited::<{ 256 * MIB }>())
    } else {
        decode_within(body, exact, limited::<{ 16 << 30 }>())
    }
}

fn limited<const N: usize>() -> Configuration<LittleEndian, Varint, Limit<N>> {
    config::standard().with_limit::<N>()
}

fn decode_within<T: DeserializeOwned>(body: &[u8], exact: bool, config: impl Config) -> Result<T, DecodeError> {
    let (value, used) =
        bincode::serde::decode_from_slice(body, config).map_err(|error| DecodeError::Malformed(error.to_string()))?;
    if exact && used != body.len() {
        return Err(DecodeError::Trailing(body.len() - used));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back_and_its_bytes_are_pinned() {
        let value = (7u64, "seven".to_owned(), vec![1u16, 300, 70]);
        let mut bytes = Vec::new();
        encode(&value, &mut bytes).unwrap();
        assert_eq!(bytes, b"\x07\x05seven\x03\x01\xfb\x2c\x01\x46");
        assert_eq!(decode::<(u64, String, Vec<u16>)>(&bytes, true), Ok(value));
    }

    #[test]
    fn trailing_bytes_are_refused_unless_allowed() {
        assert_eq!(decode::<u8>(&[1, 2], true), Err(DecodeError::Trailing(1)));
        assert_eq!(decode::<u8>(&[1, 2], false), Ok(1));
    }

    /// Small numbers take one byte each on the wire and eight in memory: the limit counts the wire.
    #[test]
    fn what_grows_in_memory_is_decoded() {
        for size in [4_000, 60_000, 1_000_000] {
            let value = vec![7u128; size];
            let mut bytes = Vec::new();
            encode(&value, &mut bytes).unwrap();
            assert!(bytes.len() < size + 10);
            assert!(decode(&bytes, true) == Ok(value), "{size}");
        }
    }

    #[test]
    fn a_length_that_lies_is_an_error() {
        let terabyte = [&[0xfd][..], &(1u64 << 40).to_le_bytes()].concat();
        assert!(matches!(decode::<Vec<u64>>(&terabyte, true), Err(DecodeError::Malformed(_))));
        assert!(matches!(decode::<String>(&terabyte, true), Err(DecodeError::Malformed(_))));
        assert!(matches!(decode::<Vec<u8>>(&terabyte, true), Err(DecodeError::Malformed(_))));
    }
}
