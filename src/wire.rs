//! Frames: every byte that a link carries, except message bodies.
//!
//! A stream starts with its kind (one byte), then holds frames: a type (one byte), a length ([RFC 9000, section 16]
//! varint), a body. A type with the bit [`SKIPPABLE`] may be skipped by a peer that does not know it; any other unknown
//! type ends the session. The codec is written by hand, because what is read here comes from a peer that may be hostile:
//! lengths are checked before anything is kept, and nothing is allocated by a number that arrived.
//!
//! [RFC 9000, section 16]: https://www.rfc-editor.org/rfc/rfc9000#section-16

use std::str;

use bytes::{Buf, Bytes, BytesMut};

use crate::id::{NODE_NAME_MAX, NodeName};
pub(crate) use crate::trace::Trace;

/// Set in the type of a frame, or in the kind of a stream, that a peer who does not know it skips.
pub(crate) const SKIPPABLE: u8 = 0x40;

/// The largest HELLO, in bytes.
pub(crate) const HELLO_MAX: usize = 4096;

/// The largest body of a control frame, in bytes.
pub(crate) const CONTROL_MAX: usize = 64 * 1024;

/// What the frame around a body may add to it, in bytes: an upper bound.
pub(crate) const OVERHEAD_MAX: usize = 1024;

/// The longest tag or method name, in bytes.
pub(crate) const TAG_MAX: usize = 255;

/// What a byte sequence from a peer may be guilty of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    #[error("a frame ends before its content does")]
    Short,
    #[error("a frame goes on after its content")]
    Trailing,
    #[error("a frame of {0} bytes is longer than its kind allows")]
    TooLong(u64),
    #[error("a value is out of its range: {0}")]
    Value(&'static str),
    #[error("an unknown frame of type {0:#04x}")]
    UnknownFrame(u8),
}

/// Application close codes, carried in QUIC's CONNECTION_CLOSE.
///
/// Some are sent in good order, after both sides agreed that all was read; the rest end the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Code(pub(crate) u32);

impl Code {
    /// The user asked for it.
    pub(crate) const NORMAL: Self = Self(0x00);
    pub(crate) const SHUTDOWN: Self = Self(0x01);
    pub(crate) const IDLE: Self = Self(0x02);
    pub(crate) const HELLO_TIMEOUT: Self = Self(0x10);
    pub(crate) const BAD_PROOF: Self = Self(0x11);
    pub(crate) const NAME_MISMATCH: Self = Self(0x12);
    pub(crate) const NAME_CONFLICT: Self = Self(0x13);
    pub(crate) const SELF: Self = Self(0x14);
    pub(crate) const PROTOCOL: Self = Self(0x15);
    pub(crate) const FRAME_TOO_LARGE: Self = Self(0x16);
    pub(crate) const LIMIT: Self = Self(0x18);
    pub(crate) const VERSION: Self = Self(0x19);
    pub(crate) const MODE_MISMATCH: Self = Self(0x1a);
    /// Two dials crossed; the other link serves the session.
    pub(crate) const DUPLICATE_LINK: Self = Self(0x1b);
    pub(crate) const SLOW: Self = Self(0x1c);
    /// This side counts more ends of sessions than the HELLO knew of.
    pub(crate) const STALE_LINK: Self = Self(0x1d);
    /// The reason holds the incarnation that is known, as 8 bytes.
    pub(crate) const STALE_INCARNATION: Self = Self(0x1e);
    /// No sign of life.
    pub(crate) const LOST: Self = Self(0x1f);

    /// True for a close that both sides agreed on and after which the session goes on.
    pub(crate) fn keeps_session(self) -> bool {
        matches!(self, Self::IDLE | Self::DUPLICATE_LINK)
    }
}

/// What a unidirectional stream carries, from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamKind {
    /// Frames about the link and the session; the first stream of each side.
    Control,
    /// Schemas and messages below the size of a body with its own stream.
    Lane,
    /// Calls, answers, items, and what steers them.
    Calls,
    /// One message of its own.
    Body,
    /// One large call, answer, item or reply. It is reset when nobody wants it any more.
    LargeCall,
}

impl StreamKind {
    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Lane => 2,
            Self::Calls => 3,
            Self::Body => 4,
            Self::LargeCall => 5,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        let kinds = [Self::Control, Self::Lane, Self::Calls, Self::Body, Self::LargeCall];
        kinds.into_iter().find(|kind| kind.to_byte() == byte)
    }
}

/// How the bytes of a body are to be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Schema {
    pub(crate) tag: String,
    pub(crate) version: u32,
    /// The oldest version whose readers can read this body, when it only grew at its end.
    pub(crate) readable_since: u32,
    pub(crate) codec: u8,
}

impl Schema {
    fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.tag);
        put_varint(out, self.version.into());
        put_varint(out, self.readable_since.into());
        out.push(self.codec);
    }

    fn decode(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self {
            tag: take_text(body, TAG_MAX)?,
            version: take_u32(body)?,
            readable_since: take_u32(body)?,
            codec: take_u8(body)?,
        })
    }
}

/// Frames of the control stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// The dialler has accepted the responder's HELLO.
    Ready,
    /// The credit of a mailbox: all bytes that may ever be sent to it in this session. `seq` is of the last request of the
    /// lane that was heard.
    Grant {
        mailbox: u64,
        seq: u64,
        limit: u64,
    },
    /// A sender that has sent so many bytes needs credit up to this limit. Of the requests of a lane the one with the highest
    /// `seq` stands.
    Need {
        mailbox: u64,
        seq: u64,
        sent: u64,
        limit: u64,
    },
    /// A sender will not send beyond this limit, and hears no grant that was made before this.
    Return {
        mailbox: u64,
        seq: u64,
        limit: u64,
    },
    /// The mailbox does not exist (any more).
    Closed {
        mailbox: u64,
    },
    /// Messages wait for credit here, or no longer do: the receiver gives back credit for messages that were given up.
    Short {
        seq: u64,
        on: bool,
    },
    /// Windows are small here, because many lanes have one: the receiver gives back those that it does not use.
    Spare,
    /// So many messages of the receiver could not be read, since the last of these frames.
    Refused {
        reason: Unreadable,
        messages: u64,
    },
    Ping {
        seq: u64,
    },
    Pong {
        seq: u64,
    },
    /// The sender has finished its streams on this link; it opened that many, this one not counted.
    Stop {
        code: Code,
        streams: u64,
    },
    /// The sender has read every stream that the other's STOP counted.
    Stopped,
}

/// Why a mailbox cannot read a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    Tag = 1,
    Version = 2,
    Malformed = 3,
}

impl Unreadable {
    pub(crate) const ALL: [Self; 3] = [Self::Tag, Self::Version, Self::Malformed];
}

const READY: u8 = 0x02;
const GRANT: u8 = 0x03;
const NEED: u8 = 0x04;
const CLOSED: u8 = 0x05;
const PING: u8 = 0x06;
const PONG: u8 = 0x07;
const STOP: u8 = 0x08;
const STOPPED: u8 = 0x09;
const RETURN: u8 = 0x0a;
const SHORT: u8 = 0x0b;
const SPARE: u8 = 0x0c;
const REFUSED: u8 = 0x0d;

impl Control {
    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        let (kind, fields): (u8, &[u64]) = match &self {
            Self::Ready => (READY, &[]),
            Self::Grant { mailbox, seq, limit } => (GRANT, &[*mailbox, *seq, *limit]),
            Self::Need { mailbox, seq, sent, limit } => (NEED, &[*mailbox, *seq, *sent, *limit]),
            Self::Return { mailbox, seq, limit } => (RETURN, &[*mailbox, *seq, *limit]),
            Self::Closed { mailbox } => (CLOSED, &[*mailbox]),
            Self::Short { seq, on } => (SHORT, &[*seq, u64::from(*on)]),
            Self::Spare => (SPARE, &[]),
            Self::Refused { reason, messages } => (REFUSED, &[*reason as u64, *messages]),
            Self::Ping { seq } => (PING, &[*seq]),
            Self::Pong { seq } => (PONG, &[*seq]),
            Self::Stop { code, streams } => (STOP, &[code.0.into(), *streams]),
            Self::Stopped => (STOPPED, &[]),
        };
        put_frame(out, kind, fields.iter().map(|v| varint_len(*v)).sum(), |out| {
            for field in fields {
                put_varint(out, *field);
            }
        });
    }

    /// Reads a frame; `None` for one that may be skipped.
    pub(crate) fn decode(frame: Frame) -> Result<Option<Self>, WireError> {
        let mut body = frame.body;
        let read = match frame.kind {
            READY => Self::Ready,
            GRANT => Self::Grant {
                mailbox: take_varint(&mut body)?,
                seq: take_varint(&mut body)?,
                limit: take_varint(&mut body)?,
            },
            RETURN => Self::Return {
                mailbox: take_varint(&mut body)?,
                seq: take_varint(&mut body)?,
                limit: take_varint(&mut body)?,
            },
            NEED => Self::Need {
                mailbox: take_varint(&mut body)?,
                seq: take_varint(&mut body)?,
                sent: take_varint(&mut body)?,
                limit: take_varint(&mut body)?,
            },
            CLOSED => Self::Closed { mailbox: take_varint(&mut body)? },
            SHORT => Self::Short { seq: take_varint(&mut body)?, on: take_flag(&mut body)? },
            SPARE => Self::Spare,
            REFUSED => {
                let reason = take_varint(&mut body)?;
                let reason = Unreadable::ALL.into_iter().find(|known| *known as u64 == reason);
                let reason = reason.ok_or(WireError::Value("reason"))?;
                Self::Refused { reason, messages: take_varint(&mut body)? }
            }
            PING => Self::Ping { seq: take_varint(&mut body)? },
            PONG => Self::Pong { seq: take_varint(&mut body)? },
            STOP => Self::Stop { code: Code(take_u32(&mut body)?), streams: take_varint(&mut body)? },
            STOPPED => Self::Stopped,
            kind => return skip(kind),
        };
        finished(&body)?;
        Ok(Some(read))
    }
}

/// Frames of lanes, and the one frame of a body's own stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LaneFrame {
    /// What the number means in this session; sent on each stream before it is used there.
    Schema {
        id: u64,
        schema: Schema,
    },
    Message(MessageFrame),
}

/// One message on its way to a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MessageFrame {
    pub(crate) head: MessageHead,
    pub(crate) body: Bytes,
}

/// All of a message but its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MessageHead {
    pub(crate) mailbox: u64,
    /// Counted from 0 in each (session, mailbox).
    pub(crate) number: u64,
    pub(crate) schema: u64,
    pub(crate) trace: Option<Trace>,
}

impl MessageHead {
    fn take(body: &mut impl Buf) -> Result<Self, WireError> {
        Ok(Self { mailbox: take_varint(body)?, number: take_varint(body)?, schema: take_varint(body)?, trace: None })
    }

    pub(crate) fn with(self, body: Bytes) -> MessageFrame {
        MessageFrame { head: self, body }
    }
}

const SCHEMA: u8 = 0x10;
const MESSAGE: u8 = 0x11;
const TRACED_MESSAGE: u8 = 0x12;

pub(crate) fn put_schema(out: &mut Vec<u8>, id: u64, schema: &Schema) {
    let mut body = Vec::new();
    put_varint(&mut body, id);
    schema.encode(&mut body);
    put_frame(out, SCHEMA, body.len(), |out| out.extend_from_slice(&body));
}

/// Writes all of a message but its body, which is to follow.
pub(crate) fn put_message_head(out: &mut Vec<u8>, head: &MessageHead, body: usize) {
    let MessageHead { mailbox, number, schema, trace } = head;
    let numbers = varint_len(*mailbox) + varint_len(*number) + varint_len(*schema);
    let kind = if trace.is_some() { TRACED_MESSAGE } else { MESSAGE };
    let len = numbers + trace.map_or(0, |trace| trace.0.len()) + body;
    out.push(kind);
    put_varint(out, len as u64);
    put_varint(out, *mailbox);
    put_varint(out, *number);
    put_varint(out, *schema);
    if let Some(trace) = trace {
        out.extend_from_slice(&trace.0);
    }
}

impl LaneFrame {
    pub(crate) fn decode(frame: Frame) -> Result<Option<Self>, WireError> {
        let mut body = frame.body;
        match frame.kind {
            SCHEMA => {
                let (id, schema) = (take_varint(&mut body)?, Schema::decode(&mut body)?);
                finished(&body)?;
                Ok(Some(Self::Schema { id, schema }))
            }
            MESSAGE | TRACED_MESSAGE => {
                let mut head = MessageHead::take(&mut body)?;
                if frame.kind == TRACED_MESSAGE {
                    head.trace = Some(Trace(take_array(&mut body)?));
                }
                Ok(Some(Self::Message(head.with(body))))
            }
            kind => skip(kind),
        }
    }
}

/// A frame of a call stream, or the one frame of a large call's own stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallFrame {
    pub(crate) head: CallHead,
    /// Empty but for calls, answers, items and replies.
    pub(crate) body: Bytes,
}

/// All of a [`CallFrame`] but its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallHead {
    /// What the number means in this session; sent on each stream before it is used there. Numbers begin with 1.
    Term {
        number: u64,
        term: Term,
    },
    Call {
        id: u64,
        term: TermRef,
        timeout_ms: u64,
        mode: CallMode,
        trace: Option<Trace>,
    },
    Answer {
        id: u64,
        term: TermRef,
    },
    /// One answer of many, counted from 0.
    Item {
        id: u64,
        number: u64,
        term: TermRef,
    },
    /// The call is over without an answer, or after so many items.
    End {
        id: u64,
        status: Status,
        items: u64,
    },
    /// Nobody waits for the answer any more.
    Cancel {
        id: u64,
    },
    /// How much the items of a call may cost from its beginning.
    Credit {
        id: u64,
        limit: u64,
    },
    /// What somebody answers to a message that asked for it.
    Reply {
        serial: u64,
        secret: [u8; 8],
        term: TermRef,
    },
}

/// What is said of many calls: a method with the schema of its requests, or the schema of answers, without a method.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Term {
    pub(crate) method: String,
    pub(crate) schema: Schema,
}

/// A term by the number that was declared for it, or in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TermRef {
    Number(u64),
    InFull(Box<Term>),
}

/// What the caller wants back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallMode {
    Answer,
    Nothing,
    /// Items, and so much of them at first.
    Items {
        limit: u64,
    },
}

/// How a call ended at the callee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Answered,
    NoSuchMethod,
    /// The request's type or version is not what the method reads.
    Mismatch,
    /// The request's body cannot be decoded.
    Undecodable,
    Panicked,
    Cancelled,
    ShuttingDown,
    Overloaded,
    /// The deadline passed at the callee.
    Expired,
    /// The answer is larger than the caller's or the callee's limit.
    AnswerTooLarge,
}

const STATUSES: [Status; 10] = [
    Status::Answered,
    Status::NoSuchMethod,
    Status::Mismatch,
    Status::Undecodable,
    Status::Panicked,
    Status::Cancelled,
    Status::ShuttingDown,
    Status::Overloaded,
    Status::Expired,
    Status::AnswerTooLarge,
];

const CALL: u8 = 0x20;
const ANSWER: u8 = 0x21;
const CANCEL: u8 = 0x22;
const END: u8 = 0x23;
const TERM: u8 = 0x24;
const ITEM: u8 = 0x25;
const CREDIT: u8 = 0x26;
const REPLY: u8 = 0x27;

/// Flags of a call.
const TRACED: u8 = 1;
const ONE_WAY: u8 = 2;
const ITEMS: u8 = 4;

/// Where the fields of a head go: to a frame, or to nowhere, to be counted.
trait Fields {
    fn bytes(&mut self, bytes: &[u8]);
    fn number(&mut self, value: u64);
}

impl Fields for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn number(&mut self, value: u64) {
        put_varint(self, value);
    }
}

struct Count(usize);

impl Fields for Count {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn number(&mut self, value: u64) {
        self.0 += varint_len(value);
    }
}

impl Term {
    fn put(&self, out: &mut impl Fields) {
        for text in [&self.method, &self.schema.tag] {
            out.number(text.len() as u64);
            out.bytes(text.as_bytes());
        }
        out.number(self.schema.version.into());
        out.number(self.schema.readable_since.into());
        out.bytes(&[self.schema.codec]);
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { method: take_text(body, TAG_MAX)?, schema: Schema::decode(body)? })
    }
}

impl TermRef {
    fn put(&self, out: &mut impl Fields) {
        match self {
            Self::Number(number) => out.number(*number),
            Self::InFull(term) => {
                out.number(0);
                term.put(out);
            }
        }
    }

    fn take(body: &mut Bytes) -> Result<Self, WireError> {
        Ok(match take_varint(body)? {
            0 => Self::InFull(Box::new(Term::take(body)?)),
            number => Self::Number(number),
        })
    }
}

impl CallHead {
    /// Whether a body follows. These frames may have a stream of their own.
    pub(crate) fn has_body(&self) -> bool {
        matches!(self, Self::Call { .. } | Self::Answer { .. } | Self::Item { .. } | Self::Reply { .. })
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Term { .. } => TERM,
            Self::Call { .. } => CALL,
            Self::Answer { .. } => ANSWER,
            Self::Item { .. } => ITEM,
            Self::End { .. } => END,
            Self::Cancel { .. } => CANCEL,
            Self::Credit { .. } => CREDIT,
            Self::Reply { .. } => REPLY,
        }
    }

    fn put_fields(&self, out: &mut impl Fields) {
        match self {
            Self::Term { number, term } => {
                out.number(*number);
                term.put(out);
            }
            Self::Call { id, term, timeout_ms, mode, trace } => {
                out.number(*id);
                term.put(out);
                // A caller may be willing to wait for ever.
                out.number((*timeout_ms).min(VARINT_MAX));
                let traced = if trace.is_some() { TRACED } else { 0 };
                match mode {
                    CallMode::Answer => out.bytes(&[traced]),
                    CallMode::Nothing => out.bytes(&[traced | ONE_WAY]),
                    CallMode::Items { limit } => {
                        out.bytes(&[traced | ITEMS]);
                        out.number(*limit);
                    }
                }
                if let Some(trace) = trace {
                    out.bytes(&trace.0);
                }
            }
            Self::Answer { id, term } => {
                out.number(*id);
                term.put(out);
            }
            Self::Item { id, number, term } => {
                out.number(*id);
                out.number(*number);
                term.put(out);
            }
            Self::End { id, status, items } => {
                out.number(*id);
                let byte = STATUSES.iter().position(|s| s == status).expect("every status is listed");
                out.bytes(&[byte as u8]);
                out.number(*items);
            }
            Self::Cancel { id } => out.number(*id),
            Self::Credit { id, limit } => {
                out.number(*id);
                out.number(*limit);
            }
            Self::Reply { serial, secret, term } => {
                out.number(*serial);
                out.bytes(secret);
                term.put(out);
            }
        }
    }

    /// Writes all of a frame but its body, which is to follow.
    pub(crate) fn put(&self, out: &mut Vec<u8>, body: usize) {
        let mut count = Count(body);
        self.put_fields(&mut count);
        out.push(self.kind());
        put_varint(out, count.0 as u64);
        self.put_fields(out);
    }
}

impl CallFrame {
    pub(crate) fn decode(frame: Frame) -> Result<Option<Self>, WireError> {
        let mut body = frame.body;
        let head = match frame.kind {
            TERM => {
                let number = take_varint(&mut body)?;
                if number == 0 {
                    return Err(WireError::Value("term number"));
                }
                CallHead::Term { number, term: Term::take(&mut body)? }
            }
            CALL => {
                let id = take_varint(&mut body)?;
                let term = TermRef::take(&mut body)?;
                let timeout_ms = take_varint(&mut body)?;
                let flags = take_u8(&mut body)?;
                let mode = match flags & !TRACED {
                    0 => CallMode::Answer,
                    ONE_WAY => CallMode::Nothing,
                    ITEMS => CallMode::Items { limit: take_varint(&mut body)? },
                    _ => return Err(WireError::Value("call flags")),
                };
                let trace = if flags & TRACED != 0 { Some(Trace(take_array(&mut body)?)) } else { None };
                CallHead::Call { id, term, timeout_ms, mode, trace }
            }
            ANSWER => CallHead::Answer { id: take_varint(&mut body)?, term: TermRef::take(&mut body)? },
            ITEM => CallHead::Item {
                id: take_varint(&mut body)?,
                number: take_varint(&mut body)?,
                term: TermRef::take(&mut body)?,
            },
            END => {
                let id = take_varint(&mut body)?;
                let status = usize::from(take_u8(&mut body)?);
                let status = *STATUSES.get(status).ok_or(WireError::Value("status"))?;
                CallHead::End { id, status, items: take_varint(&mut body)? }
            }
            CANCEL => CallHead::Cancel { id: take_varint(&mut body)? },
            CREDIT => CallHead::Credit { id: take_varint(&mut body)?, limit: take_varint(&mut body)? },
            REPLY => CallHead::Reply {
                serial: take_varint(&mut body)?,
                secret: take_array(&mut body)?,
                term: TermRef::take(&mut body)?,
            },
            kind => return skip(kind),
        };
        if !head.has_body() {
            finished(&body)?;
        }
        Ok(Some(Self { head, body }))
    }
}

/// The type of the only frame on the greeting stream.
pub(crate) const HELLO: u8 = 0x01;

const HELLO_MAGIC: &[u8; 4] = b"DSTB";

/// The minor version of this wire format. A peer with a greater one speaks this one too.
pub(crate) const MINOR: u16 = 0;

/// How a node proves that it belongs to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Cookie,
    Pki,
    Both,
}

/// The one frame that each side sends before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) minor: u16,
    /// 1 for the dialler, 2 for the responder.
    pub(crate) role: u8,
    pub(crate) incarnation: u64,
    pub(crate) capabilities: u64,
    /// The largest body that the sender takes, in bytes.
    pub(crate) message_max: u32,
    pub(crate) codecs: Vec<u8>,
    pub(crate) cluster: String,
    pub(crate) name: NodeName,
    /// Where the sender can be dialled, beside its name; at most four.
    pub(crate) addresses: Vec<std::net::SocketAddr>,
    pub(crate) flags: NodeFlags,
    /// The receiver's incarnation that the two counters are about; 0 when the sender knows none.
    pub(crate) known_incarnation: u64,
    /// How many sessions with the receiver the sender has ended by itself.
    pub(crate) ended: u64,
    /// The receiver's own count, as the sender last saw it.
    pub(crate) seen_ended: u64,
    /// What each mailbox of the sender may be sent without asking, in bytes.
    pub(crate) first_credit: u32,
    /// To how many mailboxes of the sender one session may send.
    pub(crate) lanes_max: u32,
    pub(crate) mode: Mode,
    pub(crate) proof: [u8; 32],
}

/// What kind of member a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFlags {
    /// Nobody can dial the node: its links are kept.
    pub(crate) not_dialable: bool,
    /// The node never decides for others.
    pub(crate) client: bool,
}

const ADDRESSES_MAX: usize = 4;
const CODECS_MAX: usize = 16;

impl Hello {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(256);
        body.extend_from_slice(HELLO_MAGIC);
        body.extend_from_slice(&self.minor.to_be_bytes());
        body.push(self.role);
        body.extend_from_slice(&self.incarnation.to_be_bytes());
        body.extend_from_slice(&self.capabilities.to_be_bytes());
        body.extend_from_slice(&self.message_max.to_be_bytes());
        put_list(&mut body, &self.codecs, CODECS_MAX, |out, codec| out.push(*codec));
        put_text(&mut body, &self.cluster);
        put_text(&mut body, self.name.as_str());
        put_list(&mut body, &self.addresses, ADDRESSES_MAX, put_address);
        body.push(u8::from(self.flags.not_dialable) | u8::from(self.flags.client) << 1);
        for value in [self.known_incarnation, self.ended, self.seen_ended] {
            body.extend_from_slice(&value.to_be_bytes());
        }
        body.extend_from_slice(&self.first_credit.to_be_bytes());
        body.extend_from_slice(&self.lanes_max.to_be_bytes());
        body.push(match self.mode {
            Mode::Cookie => 1,
            Mode::Pki => 2,
            Mode::Both => 3,
        });
        body.extend_from_slice(&self.proof);
        put_frame(out, HELLO, body.len(), |out| out.extend_from_slice(&body));
    }

    /// Reads a HELLO. What a later minor version puts behind the fields known here is ignored.
    pub(crate) fn decode(frame: Frame) -> Result<Self, WireError> {
        if frame.kind != HELLO {
            return Err(WireError::UnknownFrame(frame.kind));
        }
        let mut body = frame.body;
        if &take_array::<4>(&mut body)? != HELLO_MAGIC {
            return Err(WireError::Value("magic"));
        }
        let minor = u16::from_be_bytes(take_array(&mut body)?);
        let role = take_u8(&mut body)?;
        let incarnation = take_be64(&mut body)?;
        let capabilities = take_be64(&mut body)?;
        let message_max = take_be32(&mut body)?;
        let codecs = take_list(&mut body, CODECS_MAX, take_u8)?;
        let cluster = take_text(&mut body, crate::id::CLUSTER_NAME_MAX)?;
        let name = take_text(&mut body, NODE_NAME_MAX)?;
        let parsed = NodeName::parse(&name).map_err(|_| WireError::Value("node name"))?;
        if parsed.as_str() != name {
            // Proofs and certificates are over the text: only one spelling of a name may exist.
            return Err(WireError::Value("node name"));
        }
        let addresses = take_list(&mut body, ADDRESSES_MAX, take_address)?;
        let flags = take_u8(&mut body)?;
        let hello = Self {
            minor,
            role,
            incarnation,
            capabilities,
            message_max,
            codecs,
            cluster,
            name: parsed,
            addresses,
            flags: NodeFlags { not_dialable: flags & 1 != 0, client: flags & 2 != 0 },
            known_incarnation: take_be64(&mut body)?,
            ended: take_be64(&mut body)?,
            seen_ended: take_be64(&mut body)?,
            first_credit: take_be32(&mut body)?,
            lanes_max: take_be32(&mut body)?,
            mode: match take_u8(&mut body)? {
                1 => Mode::Cookie,
                2 => Mode::Pki,
                3 => Mode::Both,
                _ => return Err(WireError::Value("mode")),
            },
            proof: take_array(&mut body)?,
        };
        if minor == MINOR {
            finished(&body)?;
        }
        Ok(hello)
    }
}

/// One frame, split off but not yet read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) body: Bytes,
}

/// Splits what a stream delivers into frames, however it was cut.
///
/// It keeps at most one begun frame, and of that only what arrived.
#[derive(Debug)]
pub(crate) struct Splitter {
    /// A frame that began in an earlier chunk.
    begun: BytesMut,
    chunk: Bytes,
    /// Bytes at the beginning of the chunk that were given out by reference.
    lent: usize,
    max: usize,
}

impl Splitter {
    /// A splitter that refuses bodies of more than `max` bytes.
    pub(crate) fn new(max: usize) -> Self {
        Self { begun: BytesMut::new(), chunk: Bytes::new(), lent: 0, max }
    }

    /// Adds what arrived. Take all frames out before the next chunk.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.len() == self.lent, "all frames are taken before the next chunk");
        self.lent = 0;
        self.chunk = chunk;
    }

    /// True when a frame has begun and is not complete.
    pub(crate) fn is_begun(&self) -> bool {
        !self.begun.is_empty()
    }

    /// How many bytes complete the frame that has begun, as far as is known.
    pub(crate) fn missing(&self) -> usize {
        match self.head(&self.begun) {
            Ok(Some((_, head, len))) => (head + len).saturating_sub(self.begun.len()),
            _ => 1,
        }
    }

    /// The next frame, if it is a message without a trace whose body is below `max`, and is whole in the chunk: for these
    /// nothing is allocated or counted.
    pub(crate) fn next_small_message(&mut self, max: usize) -> Result<Option<(MessageHead, &[u8])>, WireError> {
        self.chunk.advance(std::mem::take(&mut self.lent));
        if !self.begun.is_empty() || self.chunk.first() != Some(&MESSAGE) {
            return Ok(None);
        }
        let Some((_, head, len)) = self.head(&self.chunk)? else { return Ok(None) };
        let Some(mut body) = self.chunk.get(head..head + len).filter(|_| len < max) else { return Ok(None) };
        self.lent = head + len;
        let message = MessageHead::take(&mut body)?;
        Ok(Some((message, body)))
    }

    /// Returns the next whole frame, or `None` until more arrives.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        self.chunk.advance(std::mem::take(&mut self.lent));
        if self.begun.is_empty() {
            let Some((kind, head, len)) = self.head(&self.chunk)? else {
                self.begun.extend_from_slice(&self.chunk);
                self.chunk.clear();
                return Ok(None);
            };
            if self.chunk.len() < head + len {
                self.begun.extend_from_slice(&self.chunk);
                self.chunk.clear();
                return Ok(None);
            }
            self.chunk.advance(head);
            return Ok(Some(Frame { kind, body: self.chunk.split_to(len) }));
        }
        loop {
            let missing = match self.head(&self.begun)? {
                None => 1,
                Some((kind, head, len)) if self.begun.len() == head + len => {
                    let mut whole = std::mem::take(&mut self.begun).freeze();
                    whole.advance(head);
                    return Ok(Some(Frame { kind, body: whole }));
                }
                Some((_, head, len)) => head + len - self.begun.len(),
            };
            if self.chunk.is_empty() {
                return Ok(None);
            }
            let part = self.chunk.split_to(missing.min(self.chunk.len()));
            if self.begun.capacity() < self.begun.len() + part.len() {
                // By what has come, not by what was announced; in few steps, because each copies.
                self.begun.reserve(missing.min(4 * (self.begun.len() + part.len())));
            }
            self.begun.extend_from_slice(&part);
        }
    }

    /// Reads type and length, once both are there: (type, bytes of the head, bytes of the body).
    fn head(&self, bytes: &[u8]) -> Result<Option<(u8, usize, usize)>, WireError> {
        let [kind, rest @ ..] = bytes else { return Ok(None) };
        let Some((len, used)) = peek_varint(rest) else { return Ok(None) };
        if len > self.max as u64 {
            return Err(WireError::TooLong(len));
        }
        Ok(Some((*kind, 1 + used, len as usize)))
    }
}

fn skip<T>(kind: u8) -> Result<Option<T>, WireError> {
    if kind & SKIPPABLE != 0 { Ok(None) } else { Err(WireError::UnknownFrame(kind)) }
}

fn finished(body: &Bytes) -> Result<(), WireError> {
    if body.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
}

fn put_frame(out: &mut Vec<u8>, kind: u8, len: usize, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(kind);
    put_varint(out, len as u64);
    let start = out.len();
    body(out);
    debug_assert_eq!(out.len() - start, len);
}

/// Numbers from 2^62 on do not fit a varint; no counter of this crate can reach them.
const VARINT_MAX: u64 = (1 << 62) - 1;

fn varint_len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, value: u64) {
    assert!(value <= VARINT_MAX, "counters stay below 2^62");
    match varint_len(value) {
        1 => out.push(value as u8),
        2 => out.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        4 => out.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes()),
        _ => out.extend_from_slice(&(value | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

fn peek_varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let first = *bytes.first()?;
    let len = 1 << (first >> 6);
    let rest = bytes.get(1..len)?;
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, byte| value << 8 | u64::from(*byte));
    Some((value, len))
}

fn take_varint(body: &mut impl Buf) -> Result<u64, WireError> {
    let (value, len) = peek_varint(body.chunk()).ok_or(WireError::Short)?;
    body.advance(len);
    Ok(value)
}

fn take_u32(body: &mut Bytes) -> Result<u32, WireError> {
    take_varint(body)?.try_into().map_err(|_| WireError::Value("a 32-bit number"))
}

fn take_u8(body: &mut Bytes) -> Result<u8, WireError> {
    body.try_get_u8().map_err(|_| WireError::Short)
}

fn take_flag(body: &mut Bytes) -> Result<bool, WireError> {
    match take_u8(body)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(WireError::Value("flag")),
    }
}

fn take_be32(body: &mut Bytes) -> Result<u32, WireError> {
    body.try_get_u32().map_err(|_| WireError::Short)
}

fn take_be64(body: &mut Bytes) -> Result<u64, WireError> {
    body.try_get_u64().map_err(|_| WireError::Short)
}

fn take_array<const N: usize>(body: &mut Bytes) -> Result<[u8; N], WireError> {
    let mut array = [0; N];
    body.try_copy_to_slice(&mut array).map_err(|_| WireError::Short)?;
    Ok(array)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

fn take_text(body: &mut Bytes, max: usize) -> Result<String, WireError> {
    let len = take_varint(body)?;
    if len > max as u64 {
        return Err(WireError::TooLong(len));
    }
    if body.len() < len as usize {
        return Err(WireError::Short);
    }
    let bytes = body.split_to(len as usize);
    str::from_utf8(&bytes).map(str::to_owned).map_err(|_| WireError::Value("UTF-8"))
}

fn put_list<T>(out: &mut Vec<u8>, list: &[T], max: usize, put: impl Fn(&mut Vec<u8>, &T)) {
    let len = list.len().min(max);
    out.push(len as u8);
    list[..len].iter().for_each(|item| put(out, item));
}

fn take_list<T>(
    body: &mut Bytes,
    max: usize,
    take: impl Fn(&mut Bytes) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let len = usize::from(take_u8(body)?);
    if len > max {
        return Err(WireError::TooLong(len as u64));
    }
    (0..len).map(|_| take(body)).collect()
}

fn put_address(out: &mut Vec<u8>, address: &std::net::SocketAddr) {
    match address.ip() {
        std::net::IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        std::net::IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn take_address(body: &mut Bytes) -> Result<std::net::SocketAddr, WireError> {
    let ip: std::net::IpAddr = match take_u8(body)? {
        4 => take_array::<4>(body)?.into(),
        6 => take_array::<16>(body)?.into(),
        _ => return Err(WireError::Value("address family")),
    };
    Ok((ip, u16::from_be_bytes(take_array(body)?)).into())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Any frame, with the stream that it belongs to.
    #[derive(Clone, Debug, PartialEq)]
    enum Any {
        Hello(Hello),
        Control(Control),
        Lane(LaneFrame),
        Call(CallFrame),
    }

    /// These bytes are what nodes of this version say to each other: a change here is a change of the protocol.
    #[test]
    fn the_bytes_of_every_frame_are_these() {
        for (hex, frame) in golden() {
            assert_eq!(to_hex(&frame.encoded()), hex, "{frame:?}");
        }
        let kinds = [StreamKind::Control, StreamKind::Lane, StreamKind::Calls, StreamKind::Body, StreamKind::LargeCall];
        assert_eq!(kinds.map(StreamKind::to_byte), [1, 2, 3, 4, 5]);
        for byte in 0..=255 {
            let kind = kinds.into_iter().find(|kind| kind.to_byte() == byte);
            assert_eq!(StreamKind::from_byte(byte), kind);
        }
    }

    #[test]
    fn the_golden_frames_are_read_back() {
        for (hex, frame) in golden() {
            let bytes = from_hex(hex);
            assert_eq!(frame.decoded(split_one(&bytes)), Ok(Some(frame.clone())), "{hex}");
        }
    }

    #[test]
    fn a_truncated_frame_is_an_error() {
        for (hex, frame) in golden() {
            let whole = split_one(&from_hex(hex));
            // The body of a message or a call ends where its frame ends: only what comes before it can be cut short.
            let open_end = match &frame {
                Any::Lane(LaneFrame::Message(message)) => message.body.len(),
                Any::Call(call) => call.body.len(),
                _ => 0,
            };
            for len in 0..whole.body.len() {
                let cut = Frame { kind: whole.kind, body: whole.body.slice(..len) };
                let read = frame.decoded(cut);
                assert_eq!(read.is_err(), len < whole.body.len() - open_end, "{len} bytes of {frame:?}: {read:?}");
            }
        }
    }

    #[test]
    fn a_frame_that_goes_on_is_an_error() {
        for (hex, frame) in golden() {
            let whole = split_one(&from_hex(hex));
            let longer = Frame { kind: whole.kind, body: [&whole.body[..], &[0]].concat().into() };
            match frame {
                Any::Lane(LaneFrame::Message(_)) => {}
                Any::Call(call) if call.head.has_body() => {}
                _ => assert_eq!(frame.decoded(longer), Err(WireError::Trailing), "{hex}"),
            }
        }
    }

    #[test]
    fn an_unknown_frame_is_skipped_if_it_may_be_and_refused_if_not() {
        let samples = golden();
        let known = |kind: u8| samples.iter().any(|(hex, _)| from_hex(hex)[0] == kind);
        for kind in (0..=255u8).filter(|kind| !known(*kind)) {
            let frame = Frame { kind, body: Bytes::from_static(b"whatever") };
            let is_skipped = kind & SKIPPABLE != 0;
            let unknown = WireError::UnknownFrame(kind);
            assert_eq!(Control::decode(frame.clone()), if is_skipped { Ok(None) } else { Err(unknown) });
            assert_eq!(LaneFrame::decode(frame.clone()), if is_skipped { Ok(None) } else { Err(unknown) });
            assert_eq!(CallFrame::decode(frame.clone()), if is_skipped { Ok(None) } else { Err(unknown) });
            assert_eq!(Hello::decode(frame), Err(unknown), "a greeting is a HELLO");
        }
        assert!(samples.iter().all(|(hex, _)| from_hex(hex)[0] & SKIPPABLE == 0), "a later peer may not skip these");
    }

    #[test]
    fn a_hello_of_the_next_version_is_understood() {
        let hello = Hello { minor: MINOR + 1, capabilities: u64::MAX, codecs: vec![1, 99], ..full_hello() };
        let mut body = split_one(&Any::Hello(hello.clone()).encoded()).body.to_vec();
        let flags_at = body.len() - 32 - 1 - 8 - 24 - 1;
        assert_eq!(body[flags_at], 0b11);
        body[flags_at] = 0xff;
        body.extend_from_slice(b"what nobody knows yet");
        assert_eq!(Hello::decode(Frame { kind: HELLO, body: body.into() }), Ok(hello));
    }

    #[test]
    fn a_hello_that_says_nonsense_is_refused() {
        let hello = full_hello();
        let good = split_one(&Any::Hello(hello.clone()).encoded()).body;
        let refused = |from: &[u8], to: &[u8], why| {
            let at = good.windows(from.len()).position(|window| window == from).expect("it is in there");
            let body = [&good[..at], to, &good[at + from.len()..]].concat();
            assert_eq!(Hello::decode(Frame { kind: HELLO, body: body.into() }), Err(why), "{to:?}");
        };
        refused(b"DSTB", b"DSTC", WireError::Value("magic"));
        refused(b"a@host", b"a@HOST", WireError::Value("node name"));
        refused(b"a@host:4370", b"a@host:+437", WireError::Value("node name"));
        refused(b"a@host:4370", b"a-host:4370", WireError::Value("node name"));
        refused(b"a@host:4370", b"\xff@host:4370", WireError::Value("UTF-8"));
        refused(&[4, 10, 0, 0, 2], &[5, 10, 0, 0, 2], WireError::Value("address family"));
        refused(&[2, 4, 10, 0, 0, 2], &[5, 4, 10, 0, 0, 2], WireError::TooLong(5));
        refused(&[2, 1, 2, 4, b'p'], &[17, 1, 2, 4, b'p'], WireError::TooLong(17));
        refused(&[&[4][..], b"prod"].concat(), &[&[0x40, 65][..], b"prod"].concat(), WireError::TooLong(65));
        refused(&[1; 33], &[&[4][..], &[1; 32]].concat(), WireError::Value("mode"));
        // The port may not be left out either: one name has one spelling.
        let short = [&[6][..], b"a@host"].concat();
        refused(&[&[11][..], b"a@host:4370"].concat(), &short, WireError::Value("node name"));
    }

    #[test]
    fn more_than_a_list_may_hold_is_left_out() {
        let address = full_hello().addresses[0];
        let hello = Hello { codecs: vec![1; 17], addresses: vec![address; 5], ..full_hello() };
        let read = Hello::decode(split_one(&Any::Hello(hello).encoded())).expect("a good HELLO");
        assert_eq!((read.codecs.len(), read.addresses.len()), (16, 4));
    }

    #[test]
    fn the_largest_hello_fits() {
        let hello = Hello {
            codecs: vec![1; CODECS_MAX],
            cluster: "c".repeat(crate::id::CLUSTER_NAME_MAX),
            name: NodeName::parse(&format!("{}@h:4370", "n".repeat(NODE_NAME_MAX - 7))).expect("a long name"),
            addresses: vec!["[::1]:1".parse().expect("an address"); ADDRESSES_MAX],
            ..full_hello()
        };
        let bytes = Any::Hello(hello.clone()).encoded();
        assert!(bytes.len() <= HELLO_MAX);
        assert_eq!(Hello::decode(split_one(&bytes)), Ok(hello));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        let control = |kind, body: &[u8]| Control::decode(Frame { kind, body: Bytes::copy_from_slice(body) });
        assert_eq!(control(SHORT, &[1, 2]), Err(WireError::Value("flag")));
        assert_eq!(control(REFUSED, &[0, 1]), Err(WireError::Value("reason")));
        assert_eq!(control(STOP, &[0xc0, 0, 0, 1, 0, 0, 0, 0, 1]), Err(WireError::Value("a 32-bit number")));
        let call = |kind, body: &[u8]| CallFrame::decode(Frame { kind, body: Bytes::copy_from_slice(body) });
        assert_eq!(call(END, &[1, STATUSES.len() as u8, 0]), Err(WireError::Value("status")));
        assert_eq!(call(CALL, &[1, 1, 1, ONE_WAY | ITEMS]), Err(WireError::Value("call flags")));
        assert_eq!(call(CALL, &[1, 1, 1, 8]), Err(WireError::Value("call flags")));
        assert_eq!(call(CALL, &[1, 0, 0x41, 0]), Err(WireError::TooLong(256)), "the longest method has 255 bytes");
        assert_eq!(call(TERM, &[0, 0, 1, b'x', 1, 1, 1]), Err(WireError::Value("term number")));
    }

    #[test]
    fn a_call_may_wait_for_ever() {
        let call = |timeout_ms| {
            let (term, mode) = (TermRef::Number(1), CallMode::Answer);
            let head = CallHead::Call { id: 9, term, timeout_ms, mode, trace: None };
            Any::Call(CallFrame { head, body: Bytes::new() })
        };
        assert_eq!(call(u64::MAX).encoded(), call(VARINT_MAX).encoded());
    }

    /// What a small call costs beside its body: a million calls into a session, with the default timeout.
    #[test]
    fn a_small_call_costs_ten_bytes_and_its_answer_seven() {
        let (id, term) = (1_000_000, TermRef::Number(3));
        let len = |head: CallHead| Any::Call(CallFrame { head, body: Bytes::new() }).encoded().len();
        let (mode, trace) = (CallMode::Answer, None);
        assert_eq!(len(CallHead::Call { id, term: term.clone(), timeout_ms: 5_000, mode, trace }), 10);
        assert_eq!(len(CallHead::Answer { id, term }), 7);
    }

    #[test]
    fn varints_are_those_of_rfc_9000() {
        // RFC 9000, appendix A.1, and both sides of every edge.
        for (value, hex) in [
            (151_288_809_941_952_652, "c2197c5eff14e88c"),
            (494_878_333, "9d7f3e7d"),
            (15_293, "7bbd"),
            (37, "25"),
            (0, "00"),
            (0x3f, "3f"),
            (0x40, "4040"),
            (0x3fff, "7fff"),
            (0x4000, "80004000"),
            (0x3fff_ffff, "bfffffff"),
            (0x4000_0000, "c000000040000000"),
            (VARINT_MAX, "ffffffffffffffff"),
        ] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(to_hex(&bytes), hex);
            assert_eq!(varint_len(value), bytes.len());
            assert_eq!(peek_varint(&bytes), Some((value, bytes.len())));
            assert!((0..bytes.len()).all(|len| peek_varint(&bytes[..len]).is_none()));
        }
        assert_eq!(peek_varint(&[0x40, 0x25]), Some((37, 2)), "the shortest form is not required");
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_by_its_head() {
        for (max, head, is_refused) in [(63, [7, 63].as_slice(), false), (63, &[7, 0x40, 64], true), (0, &[7, 1], true)]
        {
            for chunk in [1, 2, 3] {
                let mut splitter = Splitter::new(max);
                let outcomes: Vec<_> = head
                    .chunks(chunk)
                    .map(|chunk| {
                        splitter.push(Bytes::copy_from_slice(chunk));
                        splitter.next_frame()
                    })
                    .collect();
                let last = outcomes.last().expect("a head is not empty");
                assert_eq!(last.is_err(), is_refused, "{outcomes:?}");
                assert!(outcomes[..outcomes.len() - 1].iter().all(|outcome| *outcome == Ok(None)));
                assert!(splitter.begun.len() <= head.len());
            }
        }
        let mut splitter = Splitter::new(10);
        splitter.push(vec![7; 11].into_iter().chain([0; 1000]).collect::<Vec<_>>().into());
        assert!(splitter.next_frame().is_ok(), "a body of 7 bytes");
        splitter.chunk = Bytes::from([&[7, 0x44, 0][..], &[0; 1000]].concat());
        assert_eq!(splitter.next_frame(), Err(WireError::TooLong(1024)));
        assert_eq!(splitter.begun.len(), 0, "nothing of it was kept");
        assert_eq!(splitter.next_frame(), Err(WireError::TooLong(1024)), "and it stays refused");
    }

    #[test]
    fn a_splitter_knows_what_is_missing() {
        let mut splitter = Splitter::new(1000);
        assert!(!splitter.is_begun());
        for (byte, missing) in [(7, 1), (0x40, 1), (3, 3), (0, 2), (0, 1)] {
            splitter.push(Bytes::copy_from_slice(&[byte]));
            assert_eq!(splitter.next_frame(), Ok(None));
            assert!(splitter.is_begun());
            assert_eq!(splitter.missing(), missing);
        }
        splitter.push(Bytes::from_static(&[0, 8, 0]));
        assert_eq!(splitter.next_frame(), Ok(Some(Frame { kind: 7, body: Bytes::from_static(&[0, 0, 0]) })));
        assert!(!splitter.is_begun());
        assert_eq!(splitter.next_frame(), Ok(Some(Frame { kind: 8, body: Bytes::new() })), "an empty body is a body");
        assert_eq!(splitter.next_frame(), Ok(None));
        assert!(!splitter.is_begun());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(frame in any_frame()) {
            let bytes = frame.encoded();
            prop_assert_eq!(frame.decoded(split_one(&bytes)), Ok(Some(frame)));
        }

        #[test]
        fn it_does_not_matter_how_a_stream_is_cut(
            frames in vec((any::<u8>(), vec(any::<u8>(), 0..200)), 0..8),
            cuts in vec(1..100usize, 1..20),
        ) {
            let mut bytes = Vec::new();
            for (kind, body) in &frames {
                put_frame(&mut bytes, *kind, body.len(), |out| out.extend_from_slice(body));
            }
            let mut splitter = Splitter::new(200);
            let mut read = Vec::new();
            let mut left = Bytes::from(bytes);
            for cut in cuts.into_iter().cycle() {
                if left.is_empty() {
                    break;
                }
                splitter.push(left.split_to(cut.min(left.len())));
                while let Some(frame) = splitter.next_frame().expect("none is too long") {
                    read.push((frame.kind, frame.body.to_vec()));
                }
                if splitter.is_begun() {
                    prop_assert!((1..=left.len()).contains(&splitter.missing()));
                }
            }
            prop_assert!(!splitter.is_begun());
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn no_bytes_break_a_decoder(
            kind in any::<u8>(),
            sample in any::<prop::sample::Index>(),
            body in vec(any::<u8>(), 0..400),
        ) {
            let samples = golden();
            let (hex, _) = &samples[sample.index(samples.len())];
            for kind in [kind, from_hex(hex)[0]] {
                let frame = Frame { kind, body: body.clone().into() };
                let _ = (Hello::decode(frame.clone()), Control::decode(frame.clone()));
                let _ = (LaneFrame::decode(frame.clone()), CallFrame::decode(frame));
            }
            let mut splitter = Splitter::new(100);
            splitter.push(body.into());
            while let Ok(Some(_)) = splitter.next_frame() {}
        }

        /// A good frame with a few bytes changed goes deeper than noise does; what is read of it can be said again.
        #[test]
        fn no_change_of_a_frame_breaks_a_decoder(
            sample in any::<prop::sample::Index>(),
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let samples = golden();
            let (hex, frame) = &samples[sample.index(samples.len())];
            let whole = split_one(&from_hex(hex));
            let mut body = whole.body.to_vec();
            for (at, byte) in changes {
                if !body.is_empty() {
                    let at = at.index(body.len());
                    body[at] = byte;
                }
            }
            if let Ok(Some(read)) = frame.decoded(Frame { kind: whole.kind, body: body.into() }) {
                prop_assert_eq!(read.decoded(split_one(&read.encoded())), Ok(Some(read)));
            }
        }
    }

    impl Any {
        fn encoded(&self) -> Vec<u8> {
            let mut out = Vec::new();
            match self {
                Self::Hello(hello) => hello.encode(&mut out),
                Self::Control(control) => control.encode(&mut out),
                Self::Lane(LaneFrame::Schema { id, schema }) => put_schema(&mut out, *id, schema),
                Self::Lane(LaneFrame::Message(MessageFrame { head, body })) => {
                    put_message_head(&mut out, head, body.len());
                    out.extend_from_slice(body);
                }
                Self::Call(CallFrame { head, body }) => {
                    head.put(&mut out, body.len());
                    out.extend_from_slice(body);
                }
            }
            out
        }

        /// Reads a frame from the kind of stream that this one belongs to.
        fn decoded(&self, frame: Frame) -> Result<Option<Self>, WireError> {
            Ok(match self {
                Self::Hello(_) => Some(Self::Hello(Hello::decode(frame)?)),
                Self::Control(_) => Control::decode(frame)?.map(Self::Control),
                Self::Lane(_) => LaneFrame::decode(frame)?.map(Self::Lane),
                Self::Call(_) => CallFrame::decode(frame)?.map(Self::Call),
            })
        }
    }

    fn golden() -> Vec<(&'static str, Any)> {
        let trace = Trace(std::array::from_fn(|n| n as u8));
        let schema = Schema { tag: "shop.order".to_owned(), version: 300, readable_since: 2, codec: 1 };
        let body = Bytes::from_static(b"body");
        let message = MessageHead { mailbox: 5, number: 70_000, schema: 3, trace: None };
        let term = Term { method: "shop.quote".to_owned(), schema: schema.clone() };
        let numbered = || TermRef::Number(3);
        let in_full = || TermRef::InFull(Box::new(term.clone()));
        let bare = |head| Any::Call(CallFrame { head, body: Bytes::new() });
        let full = |head| Any::Call(CallFrame { head, body: body.clone() });
        let call = |term, mode, trace| full(CallHead::Call { id: 9, term, timeout_ms: 5_000, mode, trace });
        let end = |status| bare(CallHead::End { id: 9, status, items: 0 });
        vec![
            (
                "01408c4453544200000101020304050607080000000000000000010000000201020470726f640b6140686f73743a343337\
                 3002040a00000211120620010db80000000000000000000000010050030000000000000006000000000000000700000000\
                 000000080001000000001000010101010101010101010101010101010101010101010101010101010101010101",
                Any::Hello(full_hello()),
            ),
            (
                "014070445354420000020102030405060708000000000000000001000000000470726f640b6140686f73743a3433373000\
                 00000000000000000600000000000000070000000000000008000100000000100003010101010101010101010101010101\
                 0101010101010101010101010101010101",
                Any::Hello(bare_hello()),
            ),
            ("0200", Any::Control(Control::Ready)),
            ("0306050280100000", Any::Control(Control::Grant { mailbox: 5, seq: 2, limit: 1 << 20 })),
            ("04050502324064", Any::Control(Control::Need { mailbox: 5, seq: 2, sent: 50, limit: 100 })),
            ("050105", Any::Control(Control::Closed { mailbox: 5 })),
            ("0608c000010000000000", Any::Control(Control::Ping { seq: 1 << 40 })),
            ("070101", Any::Control(Control::Pong { seq: 1 })),
            ("08020203", Any::Control(Control::Stop { code: Code::IDLE, streams: 3 })),
            ("0900", Any::Control(Control::Stopped)),
            ("0a0305023c", Any::Control(Control::Return { mailbox: 5, seq: 2, limit: 60 })),
            ("0b020301", Any::Control(Control::Short { seq: 3, on: true })),
            ("0c00", Any::Control(Control::Spare)),
            ("0d020207", Any::Control(Control::Refused { reason: Unreadable::Version, messages: 7 })),
            ("1010030a73686f702e6f72646572412c0201", Any::Lane(LaneFrame::Schema { id: 3, schema: schema.clone() })),
            ("110a058001117003626f6479", Any::Lane(LaneFrame::Message(message.with(body.clone())))),
            (
                "1223058001117003000102030405060708090a0b0c0d0e0f101112131415161718626f6479",
                Any::Lane(LaneFrame::Message(MessageHead { trace: Some(trace), ..message }.with(body.clone()))),
            ),
            ("20090903538800626f6479", call(numbered(), CallMode::Answer, None)),
            (
                "202309000a73686f702e71756f74650a73686f702e6f72646572412c0201538800626f6479",
                call(in_full(), CallMode::Answer, None),
            ),
            (
                "20220903538801000102030405060708090a0b0c0d0e0f101112131415161718626f6479",
                call(numbered(), CallMode::Answer, Some(trace)),
            ),
            ("20090903538802626f6479", call(numbered(), CallMode::Nothing, None)),
            (
                "2026090353880580040000000102030405060708090a0b0c0d0e0f101112131415161718626f6479",
                call(numbered(), CallMode::Items { limit: 1 << 18 }, Some(trace)),
            ),
            ("21060903626f6479", full(CallHead::Answer { id: 9, term: numbered() })),
            (
                "212009000a73686f702e71756f74650a73686f702e6f72646572412c0201626f6479",
                full(CallHead::Answer { id: 9, term: in_full() }),
            ),
            ("250809412c03626f6479", full(CallHead::Item { id: 9, number: 300, term: numbered() })),
            ("2303090000", end(Status::Answered)),
            ("2303090100", end(Status::NoSuchMethod)),
            ("2303090200", end(Status::Mismatch)),
            ("2303090300", end(Status::Undecodable)),
            ("2303090400", end(Status::Panicked)),
            ("2303090500", end(Status::Cancelled)),
            ("2303090600", end(Status::ShuttingDown)),
            ("2303090700", end(Status::Overloaded)),
            ("2303090800", end(Status::Expired)),
            ("2303090900", end(Status::AnswerTooLarge)),
            ("2306090080011170", bare(CallHead::End { id: 9, status: Status::Answered, items: 70_000 })),
            ("220109", bare(CallHead::Cancel { id: 9 })),
            ("26050980100000", bare(CallHead::Credit { id: 9, limit: 1 << 20 })),
            (
                "270e09010203040506070803626f6479",
                full(CallHead::Reply { serial: 9, secret: [1, 2, 3, 4, 5, 6, 7, 8], term: numbered() }),
            ),
            (
                "241b030a73686f702e71756f74650a73686f702e6f72646572412c0201",
                bare(CallHead::Term { number: 3, term: term.clone() }),
            ),
        ]
    }

    fn full_hello() -> Hello {
        Hello {
            minor: MINOR,
            role: 1,
            incarnation: 0x0102_0304_0506_0708,
            capabilities: 0,
            message_max: 16 << 20,
            codecs: vec![1, 2],
            cluster: "prod".to_owned(),
            name: NodeName::parse("a@host").expect("a name"),
            addresses: vec!["10.0.0.2:4370".parse().expect("v4"), "[2001:db8::1]:80".parse().expect("v6")],
            flags: NodeFlags { not_dialable: true, client: true },
            known_incarnation: 6,
            ended: 7,
            seen_ended: 8,
            first_credit: 65_536,
            lanes_max: 4_096,
            mode: Mode::Cookie,
            proof: [1; 32],
        }
    }

    fn bare_hello() -> Hello {
        Hello {
            role: 2,
            codecs: vec![],
            addresses: vec![],
            flags: NodeFlags::default(),
            mode: Mode::Both,
            ..full_hello()
        }
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0..100u64, 0..=VARINT_MAX]
    }

    fn schema() -> impl Strategy<Value = Schema> {
        ("[a-z.é]{0,100}", any::<u32>(), any::<u32>(), any::<u8>())
            .prop_map(|(tag, version, readable_since, codec)| Schema { tag, version, readable_since, codec })
    }

    fn trace() -> impl Strategy<Value = Option<Trace>> {
        prop::option::of(any::<[u8; 25]>().prop_map(Trace))
    }

    fn body() -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..300).prop_map(Bytes::from)
    }

    fn any_frame() -> impl Strategy<Value = Any> {
        prop_oneof![
            hello().prop_map(Any::Hello),
            control().prop_map(Any::Control),
            (number(), schema()).prop_map(|(id, schema)| Any::Lane(LaneFrame::Schema { id, schema })),
            (number(), number(), number(), trace(), body()).prop_map(|(mailbox, number, schema, trace, body)| {
                Any::Lane(LaneFrame::Message(MessageHead { mailbox, number, schema, trace }.with(body)))
            }),
            call().prop_map(Any::Call),
        ]
    }

    fn control() -> impl Strategy<Value = Control> {
        (0..12u8, number(), number(), number(), any::<(u32, bool)>()).prop_map(
            |(kind, mailbox, seq, limit, (code, on))| match kind {
                0 => Control::Ready,
                1 => Control::Grant { mailbox, seq, limit },
                2 => Control::Need { mailbox, seq, sent: limit / 2, limit },
                3 => Control::Return { mailbox, seq, limit },
                4 => Control::Closed { mailbox },
                5 => Control::Ping { seq },
                6 => Control::Pong { seq },
                7 => Control::Short { seq, on },
                8 => Control::Spare,
                9 => Control::Refused { reason: Unreadable::ALL[code as usize % 3], messages: limit },
                10 => Control::Stop { code: Code(code), streams: limit },
                _ => Control::Stopped,
            },
        )
    }

    fn term() -> impl Strategy<Value = Term> {
        ("[a-z.]{0,255}", schema()).prop_map(|(method, schema)| Term { method, schema })
    }

    fn term_ref() -> impl Strategy<Value = TermRef> {
        let number = prop_oneof![1..100u64, 1..=VARINT_MAX].prop_map(TermRef::Number);
        prop_oneof![number, term().prop_map(|term| TermRef::InFull(Box::new(term)))]
    }

    fn mode() -> impl Strategy<Value = CallMode> {
        prop_oneof![
            Just(CallMode::Answer),
            Just(CallMode::Nothing),
            number().prop_map(|limit| CallMode::Items { limit })
        ]
    }

    fn call() -> impl Strategy<Value = CallFrame> {
        let head = prop_oneof![
            (number(), number(), term_ref(), mode(), trace())
                .prop_map(|(id, timeout_ms, term, mode, trace)| CallHead::Call { id, timeout_ms, term, mode, trace }),
            (number(), term_ref()).prop_map(|(id, term)| CallHead::Answer { id, term }),
            (number(), number(), term_ref()).prop_map(|(id, number, term)| CallHead::Item { id, number, term }),
            (number(), 0..STATUSES.len(), number()).prop_map(|(id, status, items)| CallHead::End {
                id,
                status: STATUSES[status],
                items
            }),
            number().prop_map(|id| CallHead::Cancel { id }),
            (number(), number()).prop_map(|(id, limit)| CallHead::Credit { id, limit }),
            (number(), any::<[u8; 8]>(), term_ref()).prop_map(|(serial, secret, term)| CallHead::Reply {
                serial,
                secret,
                term
            }),
            (1..=VARINT_MAX, term()).prop_map(|(number, term)| CallHead::Term { number, term }),
        ];
        (head, body()).prop_map(|(head, body)| {
            let body = if head.has_body() { body } else { Bytes::new() };
            CallFrame { head, body }
        })
    }

    fn hello() -> impl Strategy<Value = Hello> {
        let address = (any::<std::net::IpAddr>(), any::<u16>()).prop_map(std::net::SocketAddr::from);
        (
            (any::<u16>(), any::<u8>(), any::<[u64; 5]>(), any::<[u32; 3]>()),
            (vec(any::<u8>(), 0..=CODECS_MAX), "[a-z.]{0,64}", "[a-z]{1,20}@[a-z]{1,20}"),
            (vec(address, 0..=ADDRESSES_MAX), any::<[bool; 2]>(), 0..3usize, any::<[u8; 32]>()),
        )
            .prop_map(
                |((minor, role, longs, ints), (codecs, cluster, name), (addresses, flags, mode, proof))| Hello {
                    minor,
                    role,
                    incarnation: longs[0],
                    capabilities: longs[1],
                    message_max: ints[0],
                    codecs,
                    cluster,
                    name: NodeName::parse(&name).expect("a name"),
                    addresses,
                    flags: NodeFlags { not_dialable: flags[0], client: flags[1] },
                    known_incarnation: longs[2],
                    ended: longs[3],
                    seen_ended: longs[4],
                    first_credit: ints[1],
                    lanes_max: ints[2],
                    mode: [Mode::Cookie, Mode::Pki, Mode::Both][mode],
                    proof,
                },
            )
    }

    fn split_one(bytes: &[u8]) -> Frame {
        let mut splitter = Splitter::new(CONTROL_MAX);
        splitter.push(Bytes::copy_from_slice(bytes));
        let frame = splitter.next_frame().expect("a frame").expect("a whole one");
        assert_eq!((splitter.next_frame(), splitter.is_begun()), (Ok(None), false), "one frame and no more");
        frame
    }

    fn to_hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn from_hex(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    }
}
