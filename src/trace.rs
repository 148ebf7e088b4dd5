//! The trace that a call belongs to.

use std::fmt;
use std::str::FromStr;

/// A W3C [trace context]: which trace a call or a message belongs to, and under which of its spans.
///
/// A call carries it to its handler, and what the handler calls and sends carries it on. The library begins no trace and
/// records no span in one, so the bytes travel as they are; who opens a span sets it with [`Call::trace`](crate::Call::trace), or with
/// [`Trace::scope`] for all that is sent within a future. Its id alone is a [`CorrelationId`](crate::CorrelationId), which
/// stands in the log.
///
/// ```
/// use distribute::Trace;
///
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let trace: Trace = text.parse()?;
/// assert_eq!(trace.to_string(), text);
/// assert!(trace.is_sampled());
/// # Ok::<(), distribute::TraceError>(())
/// ```
///
/// # Beside HTTP and OpenTelemetry
/// The header `traceparent` of a request goes in as it is, and what is called from within a handler gets it out again, so
/// a trace goes through a cluster as through any other service. `tracestate` does not travel.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use std::collections::HashMap;
/// use distribute::{Cookie, Method, Node, Trace};
///
/// const PRICE: Method<u64, u64> = Method::new("shop.price");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.rpc().serve(PRICE, |_call, item| async move {
///     // Out: for an HTTP request that the handler makes.
///     let header = Trace::current().map(|trace| ("traceparent", trace.to_string()));
///     assert!(header.is_some());
///     item * 2
/// })?;
///
/// // In: from an HTTP request that came.
/// let headers = HashMap::from([("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]);
/// let trace = headers.get("traceparent").and_then(|header| header.parse::<Trace>().ok());
/// let rpc = node.rpc();
/// let call = rpc.call(node.name(), PRICE, 21);
/// let price = match trace {
///     Some(trace) => call.trace(trace).await?,
///     None => call.await?,
/// };
/// assert_eq!(price, 42);
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// Of an OpenTelemetry `SpanContext` it is
/// `Trace::new(context.trace_id().to_bytes(), context.span_id().to_bytes(), context.trace_flags().to_u8())`, and back it is
/// `SpanContext::new(TraceId::from_bytes(trace.trace_id()), SpanId::from_bytes(trace.parent_id()),
/// TraceFlags::new(trace.flags()), true, TraceState::NONE)`. The library opens a `tracing` span named `call` around each
/// handler, without a parent: with `tracing-opentelemetry` a handler makes it part of its caller's trace by
/// `tracing::Span::current().set_parent(...)` with that context, and what it calls is then to be given the trace of that
/// span, by [`scope`](Self::scope) or [`Call::trace`](crate::Call::trace).
///
/// [trace context]: https://www.w3.org/TR/trace-context/#traceparent-header
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Trace(pub(crate) [u8; 25]);

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of W3C trace context")]
pub struct TraceError;

impl Trace {
    /// A trace context from its parts.
    ///
    /// # Errors
    /// [`TraceError`] when one of the ids is all zeros, which stands for none.
    pub fn new(trace_id: [u8; 16], parent_id: [u8; 8], flags: u8) -> Result<Self, TraceError> {
        if trace_id == [0; 16] || parent_id == [0; 8] {
            return Err(TraceError);
        }
        let mut bytes = [0; 25];
        bytes[..16].copy_from_slice(&trace_id);
        bytes[16..24].copy_from_slice(&parent_id);
        bytes[24] = flags;
        Ok(Self(bytes))
    }

    /// Returns the id of the whole trace.
    pub fn trace_id(&self) -> [u8; 16] {
        std::array::from_fn(|at| self.0[at])
    }

    /// Returns the id of the span that the call was made in.
    pub fn parent_id(&self) -> [u8; 8] {
        std::array::from_fn(|at| self.0[16 + at])
    }

    /// Returns the flags; the lowest bit says that the trace is sampled.
    pub fn flags(&self) -> u8 {
        self.0[24]
    }

    /// Returns whether whoever began the trace records it.
    pub fn is_sampled(&self) -> bool {
        self.flags() & 1 != 0
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        write!(f, "00-{}-{}-{:02x}", hex(&self.0[..16]), hex(&self.0[16..24]), self.0[24])
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Trace {
    type Err = TraceError;

    /// Reads a `traceparent`: of version 00 exactly, of a later one what stands at its beginning.
    fn from_str(text: &str) -> Result<Self, TraceError> {
        let hex = |text: &str, out: &mut [u8]| {
            let read = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| TraceError)?;
            if read.len() != out.len() {
                return Err(TraceError);
            }
            out.copy_from_slice(&read);
            Ok(())
        };
        let mut parts = text.splitn(5, '-');
        let mut part = || parts.next().ok_or(TraceError);
        let (mut version, mut trace_id, mut parent_id, mut flags) = ([0; 1], [0; 16], [0; 8], [0; 1]);
        hex(part()?, &mut version)?;
        hex(part()?, &mut trace_id)?;
        hex(part()?, &mut parent_id)?;
        hex(part()?, &mut flags)?;
        let goes_on = parts.next().is_some();
        // W3C trace context, 2.2.2 and 3.2.4: version ff is none, and only a later version than 00 may go on.
        if version[0] == 0xff || (version[0] == 0 && goes_on) {
            return Err(TraceError);
        }
        Self::new(trace_id, parent_id, flags[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_and_written() {
        let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let trace: Trace = text.parse().unwrap();
        assert_eq!(trace.to_string(), text);
        assert_eq!((trace.trace_id()[0], trace.parent_id()[7], trace.flags()), (0x0a, 0x31, 0));
        assert_eq!(Trace::new(trace.trace_id(), trace.parent_id(), 0), Ok(trace));
        let later = "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more-to-come";
        assert_eq!(later.parse(), Ok(trace), "what is known of a later version");
    }

    #[test]
    fn what_is_no_traceparent() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-00",
            "00-00000000000000000000000000000000-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-00",
        ] {
            assert_eq!(text.parse::<Trace>(), Err(TraceError), "{text:?}");
        }
    }
}
