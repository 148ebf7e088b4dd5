//! The greeting of a link: HELLO both ways, then READY.
//!
//! ```text
//! dialler                                   responder
//!    |-- HELLO(proof over this TLS channel) ----->|   certificate names the node? proof? then judged (links)
//!    |<------------------- HELLO(proof) ----------|   answered only after the dialler proved itself
//!    |-- READY (opens the control stream) ------->|   now both are up
//! ```
//!
//! TLS has already let only holders of the cookie in. This is the second, independent lock: each proof is keyed by a
//! secret of its own and bound to the TLS channel by its exporter ([RFC 5705], [RFC 9266]), so it can be neither relayed
//! nor replayed. Nothing else is read or delivered before both sides are up, and no order of inputs leads there without
//! both proofs.
//!
//! [RFC 5705]: https://www.rfc-editor.org/rfc/rfc5705
//! [RFC 9266]: https://www.rfc-editor.org/rfc/rfc9266

use std::fmt;

use bytes::Bytes;

use crate::id::{ClusterName, NodeId, NodeName};
use crate::identity::{HelloKey, ProofInput, Role};
use crate::wire::{Code, Frame, Hello, MINOR, Mode, NodeFlags, WireError};

/// What TLS has established about this link.
pub(crate) struct Channel {
    pub(crate) exporter: [u8; 32],
    /// Fingerprints of the two certificates' keys.
    pub(crate) own_spki: [u8; 32],
    pub(crate) peer_spki: [u8; 32],
    /// The key of the epoch that this side presents, and of the one that vouched for the peer.
    pub(crate) own_key: HelloKey,
    pub(crate) peer_key: HelloKey,
    /// Whether the peer's certificate was made for this node name.
    pub(crate) certified: Box<dyn Fn(&NodeName) -> bool + Send>,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Channel([redacted])")
    }
}

/// What this node says about itself in every HELLO.
#[derive(Clone, Debug)]
pub(crate) struct Local {
    pub(crate) id: NodeId,
    pub(crate) cluster: ClusterName,
    pub(crate) message_max: u32,
    pub(crate) addresses: Vec<std::net::SocketAddr>,
    pub(crate) flags: NodeFlags,
    pub(crate) first_credit: u32,
    pub(crate) first_lanes: u32,
}

/// What one side remembers of its sessions with the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Greeting {
    /// The peer's life that the counters are about; 0 for none.
    pub(crate) known_incarnation: u64,
    pub(crate) ended: u64,
    pub(crate) seen_ended: u64,
}

/// A peer that has proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) greeting: Greeting,
    pub(crate) addresses: Vec<std::net::SocketAddr>,
    pub(crate) flags: NodeFlags,
    pub(crate) message_max: u32,
    pub(crate) first_credit: u32,
    pub(crate) first_lanes: u32,
}

/// Why a link does not come up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    /// Goes with the close: empty, or the incarnation of [`Code::STALE_INCARNATION`].
    pub(crate) reason: Vec<u8>,
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self { code, reason: Vec::new() }
    }
}

#[derive(Debug)]
pub(crate) enum Input {
    /// The peer's first frame, or what was wrong with it.
    Frame(Result<Frame, WireError>),
    /// What the node decided about a peer that had proved itself. The responder greets with these counters.
    Judged(Result<Greeting, Refusal>),
    /// READY has arrived.
    Ready,
    /// The time for the greeting is over.
    Deadline,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Send(Bytes),
    /// The peer has proved itself: may it come in?
    Judge(Box<Peer>),
    SendReady,
    Up,
    Refuse(Refusal),
}

#[derive(Debug)]
enum State {
    AwaitHello,
    Judging,
    AwaitReady,
    Up,
    Refused,
}

/// One link's greeting, seen from one side.
#[derive(Debug)]
pub(crate) struct Handshake {
    role: Role,
    /// Whom the dialler wants to reach.
    expected: Option<NodeName>,
    local: Local,
    channel: Channel,
    state: State,
}

impl Handshake {
    /// Starts at the dialling side, which speaks first.
    pub(crate) fn dial(local: Local, channel: Channel, expected: NodeName, greeting: Greeting) -> (Self, Output) {
        let this = Self { role: Role::Dialler, expected: Some(expected), local, channel, state: State::AwaitHello };
        let hello = this.hello(greeting);
        (this, Output::Send(hello))
    }

    /// Starts at the responding side, which says nothing until the dialler has proved itself.
    pub(crate) fn respond(local: Local, channel: Channel) -> Self {
        Self { role: Role::Responder, expected: None, local, channel, state: State::AwaitHello }
    }

    pub(crate) fn handle(&mut self, input: Input) -> Vec<Output> {
        match (std::mem::replace(&mut self.state, State::Refused), input) {
            (State::AwaitHello, Input::Frame(frame)) => match self.verify(frame) {
                Ok(peer) => {
                    self.state = State::Judging;
                    vec![Output::Judge(Box::new(peer))]
                }
                Err(code) => vec![Output::Refuse(code.into())],
            },
            (State::Judging, Input::Judged(Ok(greeting))) => match self.role {
                Role::Dialler => {
                    self.state = State::Up;
                    vec![Output::SendReady, Output::Up]
                }
                Role::Responder => {
                    self.state = State::AwaitReady;
                    vec![Output::Send(self.hello(greeting))]
                }
            },
            (State::Judging, Input::Judged(Err(refusal))) => vec![Output::Refuse(refusal)],
            (State::AwaitReady, Input::Ready) => {
                self.state = State::Up;
                vec![Output::Up]
            }
            // The deadline is over once the link is up, and a refusal is said once.
            (State::Up, Input::Deadline) => {
                self.state = State::Up;
                vec![]
            }
            (State::Refused, _) => vec![],
            (_, Input::Deadline) => vec![Output::Refuse(Code::HELLO_TIMEOUT.into())],
            _ => vec![Output::Refuse(Code::PROTOCOL.into())],
        }
    }

    fn hello(&self, greeting: Greeting) -> Bytes {
        let Local { id, cluster, message_max, addresses, flags, first_credit, first_lanes } = &self.local;
        let proof = self.channel.own_key.proof(&ProofInput {
            exporter: &self.channel.exporter,
            role: self.role,
            name: id.name(),
            incarnation: id.incarnation(),
            own_spki: &self.channel.own_spki,
            peer_spki: &self.channel.peer_spki,
        });
        let hello = Hello {
            minor: MINOR,
            role: self.role as u8,
            incarnation: id.incarnation(),
            capabilities: 0,
            message_max: *message_max,
            codecs: vec![crate::codec::BINCODE],
            cluster: cluster.as_str().to_owned(),
            name: id.name().clone(),
            addresses: addresses.clone(),
            flags: *flags,
            known_incarnation: greeting.known_incarnation,
            ended: greeting.ended,
            seen_ended: greeting.seen_ended,
            first_credit: *first_credit,
            first_lanes: *first_lanes,
            mode: Mode::Cookie,
            proof,
        };
        let mut bytes = Vec::with_capacity(512);
        hello.encode(&mut bytes);
        bytes.into()
    }

    /// Every check that needs no more than this link. A wrong proof and a wrong name look different to the peer, because
    /// whoever gets this far already holds the cookie.
    fn verify(&self, frame: Result<Frame, WireError>) -> Result<Peer, Code> {
        let hello = frame.and_then(Hello::decode).map_err(|error| match error {
            WireError::TooLong(_) => Code::FRAME_TOO_LARGE,
            _ => Code::PROTOCOL,
        })?;
        let peer_role = match self.role {
            Role::Dialler => Role::Responder,
            Role::Responder => Role::Dialler,
        };
        if hello.role != peer_role as u8 {
            return Err(Code::PROTOCOL);
        }
        if hello.mode != Mode::Cookie {
            return Err(Code::MODE_MISMATCH);
        }
        if !hello.codecs.contains(&crate::codec::BINCODE) {
            return Err(Code::VERSION);
        }
        if hello.cluster != self.local.cluster.as_str() {
            return Err(Code::NAME_MISMATCH);
        }
        if self.expected.as_ref().is_some_and(|expected| *expected != hello.name) {
            return Err(Code::NAME_MISMATCH);
        }
        if !(self.channel.certified)(&hello.name) {
            return Err(Code::NAME_MISMATCH);
        }
        let proof = ProofInput {
            exporter: &self.channel.exporter,
            role: peer_role,
            name: &hello.name,
            incarnation: hello.incarnation,
            own_spki: &self.channel.peer_spki,
            peer_spki: &self.channel.own_spki,
        };
        if !self.channel.peer_key.verify(&proof, &hello.proof) {
            return Err(Code::BAD_PROOF);
        }
        // 0 says "no life known", and the last values would leave no room for the next life.
        if hello.incarnation == 0 || hello.incarnation >= INCARNATION_END {
            return Err(Code::PROTOCOL);
        }
        // Counters rise by one for each session that ended: a greater one is no counter.
        if [hello.ended, hello.seen_ended].into_iter().any(|count| count >= INCARNATION_END) {
            return Err(Code::PROTOCOL);
        }
        Ok(Peer {
            id: NodeId::new(hello.name, hello.incarnation),
            fingerprint: self.channel.peer_spki,
            greeting: Greeting {
                known_incarnation: hello.known_incarnation,
                ended: hello.ended,
                seen_ended: hello.seen_ended,
            },
            addresses: hello.addresses,
            flags: hello.flags,
            message_max: hello.message_max,
            first_credit: hello.first_credit,
            first_lanes: hello.first_lanes,
        })
    }
}

/// No incarnation and no counter reaches this: it is a clock some 140,000 years from now.
pub(crate) const INCARNATION_END: u64 = 1 << 62;
