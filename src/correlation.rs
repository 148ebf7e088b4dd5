//! Which of a user's undertakings something belongs to.

use std::fmt;
use std::str::FromStr;

use crate::identity::fill_random;
use crate::trace::Trace;

/// Names an undertaking across nodes: what a call, a cast or a message carries, and what the handler of a call sends and
/// calls in turn carries on.
///
/// It is the id of the [`Trace`] that travels with them, so a node that begins with a `traceparent` needs no other, and
/// one that has no tracer begins with [`generate`](Self::generate). In the log it stands in the span of each served call,
/// as `correlation`. Nothing is correlated unless somebody begins: an id costs 25 bytes in each frame.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, CorrelationId, Method, Node};
///
/// const WHICH: Method<(), String> = Method::new("which");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.rpc().serve(WHICH, |_call, ()| async { CorrelationId::current().unwrap().to_string() })?;
/// let order = CorrelationId::generate();
/// let seen = order.scope(async { node.rpc().call(node.name(), WHICH, ()).await }).await?;
/// assert_eq!(seen, order.to_string());
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CorrelationId([u8; 16]);

/// What is no [`CorrelationId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a correlation id: 32 lower-case hexadecimal digits, not all of them 0")]
pub struct CorrelationIdError;

impl CorrelationId {
    /// Makes an id of 128 random bits.
    pub fn generate() -> Self {
        let mut bytes = [0; 16];
        // Zero stands for none.
        while bytes == [0; 16] {
            fill_random(&mut bytes);
        }
        Self(bytes)
    }

    /// An id from its bytes.
    ///
    /// # Errors
    /// [`CorrelationIdError`] when all are zero, which stands for none.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, CorrelationIdError> {
        if bytes == [0; 16] { Err(CorrelationIdError) } else { Ok(Self(bytes)) }
    }

    /// Returns the bytes, as [`Trace::trace_id`] does.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// A trace of this id, which nobody records and which begins here.
    pub(crate) fn begin(self) -> Trace {
        let parent = fastrand::u64(1..).to_be_bytes();
        let mut bytes = [0; 25];
        bytes[..16].copy_from_slice(&self.0);
        bytes[16..24].copy_from_slice(&parent);
        Trace(bytes)
    }
}

impl From<Trace> for CorrelationId {
    fn from(trace: Trace) -> Self {
        Self(trace.trace_id())
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for CorrelationId {
    type Err = CorrelationIdError;

    fn from_str(text: &str) -> Result<Self, CorrelationIdError> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| CorrelationIdError)?;
        Self::from_bytes(bytes.try_into().map_err(|_| CorrelationIdError)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_and_written() {
        let text = "0af7651916cd43dd8448eb211c80319c";
        let id: CorrelationId = text.parse().unwrap();
        assert_eq!((id.to_string(), format!("{id:?}")), (text.to_owned(), text.to_owned()));
        assert_eq!(CorrelationId::from_bytes(id.to_bytes()), Ok(id));
        for text in ["", "0af7651916cd43dd8448eb211c80319", "0AF7651916CD43DD8448EB211C80319C", &"0".repeat(32)] {
            assert_eq!(text.parse::<CorrelationId>(), Err(CorrelationIdError), "{text:?}");
        }
        assert_eq!(CorrelationId::from_bytes([0; 16]), Err(CorrelationIdError));
    }

    #[test]
    fn it_is_the_id_of_its_trace() {
        let trace: Trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
        let id = CorrelationId::from(trace);
        assert_eq!(id.to_string(), "0af7651916cd43dd8448eb211c80319c");
        let (one, other) = (id.begin(), id.begin());
        assert_eq!((CorrelationId::from(one), one.is_sampled()), (id, false));
        assert_eq!(one.to_string().parse(), Ok(one), "the peer's library takes it for a traceparent");
        assert_ne!(one.parent_id(), other.parent_id());
        assert_ne!(CorrelationId::generate(), CorrelationId::generate());
    }
}
