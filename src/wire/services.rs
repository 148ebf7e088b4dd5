//! Frames of the services: names, group members, monitors and elections.
//!
//! A service frame is the payload of a frame of a service stream. Those of one session are numbered from 0 over all its
//! links, and are taken in that order.

pub(crate) mod election;
pub(crate) mod monitor;
pub(crate) mod registry;
pub(crate) mod replication;

use std::str;
use std::sync::Arc;

use bytes::Bytes;

pub(crate) use self::election::Election;
pub(crate) use self::monitor::Monitor;
pub(crate) use self::registry::Registry;
pub(crate) use self::replication::Replication;
use super::{
    CONTROL_MAX, Count, Fields, Frame, OVERHEAD_MAX, VARINT_MAX, WireError, finished, put_be64, put_bytes, put_frame,
    put_varint, skip, take_be64, take_frame, take_node_name, take_u8, take_varint, varint_len,
};
use crate::id::{NodeId, Pid};
use crate::key::{self, KEY_MAX};

/// A name, a group, a scope or a tag, shared by all who hold it.
pub(crate) type Text = Arc<str>;

/// The longest scope, in bytes. The default scope has none.
pub(crate) const SCOPE_MAX: usize = 64;

/// The longest metadata of a binding, in bytes.
pub(crate) const NAME_METADATA_MAX: usize = 1024;

/// The largest body of a frame of a service stream: a number, and a service frame whose own body has at most
/// [`CONTROL_MAX`] bytes.
pub(crate) const NUMBERED_MAX: usize = CONTROL_MAX + 8 + 1 + 8;

/// Entries, logs or scopes that take so many bytes by their `size_bound` fit one frame, whatever else it says.
pub(crate) const ITEMS_MAX: usize = CONTROL_MAX - OVERHEAD_MAX;

/// One frame of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    Replication(Replication),
    Registry(Registry),
    Monitor(Monitor),
    Election(Election),
    /// The sender has the names and groups of the cluster.
    Ready,
}

/// The only frame of a service stream itself.
const NUMBERED: u8 = 0x8f;

const READY: u8 = 0x80;

/// Whether such a frame is [`Service::is_background`].
pub(crate) fn is_background(frame: &Frame) -> bool {
    frame.kind == replication::DIGEST
}

impl Service {
    /// It is sent again and again, and nobody waits for it.
    pub(crate) fn is_background(&self) -> bool {
        matches!(self, Self::Replication(Replication::Digest { .. }))
    }

    /// Appends the frame. Its body must not be larger than [`CONTROL_MAX`].
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let body = self.body_len();
        debug_assert!(body <= CONTROL_MAX, "a frame of {body} bytes: {self:?}");
        out.push(self.kind());
        put_varint(out, body as u64);
        self.put_fields(out);
    }

    fn body_len(&self) -> usize {
        let mut count = Count(0);
        self.put_fields(&mut count);
        count.0
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Replication(frame) => frame.kind(),
            Self::Registry(frame) => frame.kind(),
            Self::Monitor(frame) => frame.kind(),
            Self::Election(frame) => frame.kind(),
            Self::Ready => READY,
        }
    }

    fn put_fields(&self, out: &mut impl Fields) {
        match self {
            Self::Replication(frame) => frame.put_fields(out),
            Self::Registry(frame) => frame.put_fields(out),
            Self::Monitor(frame) => frame.put_fields(out),
            Self::Election(frame) => frame.put_fields(out),
            Self::Ready => {}
        }
    }

    /// Reads a frame; `None` for one that may be skipped. What is read keeps nothing of the bytes that it came in.
    pub(crate) fn decode(frame: Frame) -> Result<Option<Self>, WireError> {
        let Frame { kind, mut body } = frame;
        let read = match kind {
            READY => Self::Ready,
            kind if Replication::has(kind) => Self::Replication(Replication::take(kind, &mut body)?),
            kind if Registry::has(kind) => Self::Registry(Registry::take(kind, &mut body)?),
            kind if Monitor::has(kind) => Self::Monitor(Monitor::take(kind, &mut body)?),
            kind if Election::has(kind) => Self::Election(Election::take(&mut body)?),
            kind => return skip(kind),
        };
        finished(&body)?;
        Ok(Some(read))
    }
}

/// Writes a frame of a service stream.
pub(crate) fn put_numbered(out: &mut Vec<u8>, number: u64, service: &Service) {
    let body = service.body_len();
    let len = varint_len(number) + 1 + varint_len(body as u64) + body;
    put_frame(out, NUMBERED, len, |out| {
        put_varint(out, number);
        service.encode(out);
    });
}

/// The number and the service frame in a frame of a service stream; `None` for a frame that may be skipped, and has no
/// number. A service frame that may be skipped has one.
pub(crate) fn numbered(frame: Frame) -> Result<Option<(u64, Frame)>, WireError> {
    if frame.kind != NUMBERED {
        return skip(frame.kind);
    }
    let mut body = frame.body;
    let (number, service) = (take_varint(&mut body)?, take_frame(&mut body)?);
    finished(&body)?;
    if service.body.len() > CONTROL_MAX {
        return Err(WireError::TooLong(service.body.len() as u64));
    }
    Ok(Some((number, service)))
}

/// Whether a packet is of elections. Their frames stand in packets, not in the streams of the services: an old one is of no
/// use, and none has to wait for another.
pub(crate) fn is_elections(packet: &[u8]) -> bool {
    packet.first().is_some_and(|kind| Election::has(*kind))
}

/// The frames in a packet of elections.
pub(crate) fn elections(mut packet: Bytes) -> Result<Vec<Election>, WireError> {
    let mut frames = Vec::new();
    while !packet.is_empty() {
        match Service::decode(take_frame(&mut packet)?)? {
            Some(Service::Election(frame)) => frames.push(frame),
            Some(_) => return Err(WireError::Value("frame of an election")),
            None => {}
        }
    }
    Ok(frames)
}

fn put_text(out: &mut impl Fields, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn take_checked(body: &mut Bytes, max: usize) -> Result<Text, WireError> {
    let len = take_varint(body)?;
    if len > max as u64 {
        return Err(WireError::TooLong(len));
    }
    if body.len() < len as usize {
        return Err(WireError::Short);
    }
    let bytes = body.split_to(len as usize);
    let text = str::from_utf8(&bytes).map_err(|_| WireError::Value("UTF-8"))?;
    if text.is_empty() {
        return Ok(Text::default());
    }
    key::check(text, max).map_err(|_| WireError::Value("name"))?;
    Ok(text.into())
}

/// A name, a group or a tag.
fn take_name(body: &mut Bytes) -> Result<Text, WireError> {
    take_checked(body, KEY_MAX).and_then(|name| if name.is_empty() { Err(WireError::Value("name")) } else { Ok(name) })
}

fn take_scope(body: &mut Bytes) -> Result<Text, WireError> {
    take_checked(body, SCOPE_MAX)
}

/// A peer chooses how great a Lamport time is, and whoever has seen it says a greater one.
fn put_time(out: &mut impl Fields, time: u64) {
    out.number(time.min(VARINT_MAX));
}

fn put_node(out: &mut impl Fields, node: &NodeId) {
    put_text(out, node.name().as_str());
    put_be64(out, node.incarnation());
}

fn take_node(body: &mut Bytes) -> Result<NodeId, WireError> {
    Ok(NodeId::new(take_node_name(body)?, take_be64(body)?))
}

fn put_pid(out: &mut impl Fields, pid: &Pid) {
    put_node(out, pid.node());
    out.number(pid.serial());
}

fn take_pid(body: &mut Bytes) -> Result<Pid, WireError> {
    Ok(Pid::new(take_node(body)?, take_varint(body)?))
}

fn put_option<F: Fields, T>(out: &mut F, value: Option<T>, put: impl FnOnce(&mut F, T)) {
    out.bytes(&[u8::from(value.is_some())]);
    if let Some(value) = value {
        put(out, value);
    }
}

fn take_option<T>(
    body: &mut Bytes,
    take: impl FnOnce(&mut Bytes) -> Result<T, WireError>,
) -> Result<Option<T>, WireError> {
    match take_u8(body)? {
        0 => Ok(None),
        1 => take(body).map(Some),
        _ => Err(WireError::Value("flag")),
    }
}

/// How many bytes something takes in a frame.
fn size(put: impl FnOnce(&mut Count)) -> usize {
    let mut count = Count(0);
    put(&mut count);
    count.0
}

#[cfg(test)]
mod tests;
