//! The greeting of a link: HELLO both ways, then READY.
//!
//! ```text
//! dialler                                   responder
//!    |-- HELLO(proof over this TLS channel) ----->|   certificate names the node? proof? then judged (links)
//!    |<------------------- HELLO(proof) ----------|   answered only after the dialler proved itself
//!    |-- READY (opens the control stream) ------->|   now both are up
//! ```
//!
//! TLS has already let only members in. This is the second, independent lock, wherever there is a cookie: each proof is keyed
//! by a secret of its own and bound to the TLS channel by its exporter ([RFC 5705], [RFC 9266]), so it can be neither relayed
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
    /// Tells the peer's life from others of the same name and incarnation.
    pub(crate) peer_life: [u8; 32],
    /// A hash of the peer's certificate.
    pub(crate) peer_certificate: [u8; 32],
    pub(crate) mode: Mode,
    /// The key of this side's proof; `None` where certificates are all the proof.
    pub(crate) own_key: Option<HelloKey>,
    /// One of these made the peer's proof.
    pub(crate) peer_keys: Vec<HelloKey>,
    /// Why the peer's certificate is not for a node of that name, or why that is not let in.
    pub(crate) certified: Certified,
}

type Certified = Box<dyn Fn(&NodeName) -> Result<(), Code> + Send>;

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
    pub(crate) lanes_max: u32,
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
    /// Tells its life from others of the same name and incarnation.
    pub(crate) fingerprint: [u8; 32],
    /// A hash of what it presented: its certificate, and the cookie of its proof, which may change by itself.
    pub(crate) certificate: [u8; 32],
    pub(crate) greeting: Greeting,
    pub(crate) addresses: Vec<std::net::SocketAddr>,
    pub(crate) flags: NodeFlags,
    pub(crate) message_max: u32,
    pub(crate) first_credit: u32,
    pub(crate) lanes_max: u32,
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
    /// The key that the peer's proof was made with.
    proved_by: Option<HelloKey>,
}

impl Handshake {
    /// Starts at the dialling side, which speaks first.
    pub(crate) fn dial(local: Local, channel: Channel, expected: NodeName, greeting: Greeting) -> (Self, Output) {
        let this = Self::new(Role::Dialler, Some(expected), local, channel);
        let hello = this.hello(greeting);
        (this, Output::Send(hello))
    }

    /// Starts at a dialling side that does not know whom it will reach, and only wants to learn it.
    pub(crate) fn inquire(local: Local, channel: Channel, greeting: Greeting) -> (Self, Output) {
        let this = Self::new(Role::Dialler, None, local, channel);
        let hello = this.hello(greeting);
        (this, Output::Send(hello))
    }

    /// Starts at the responding side, which says nothing until the dialler has proved itself.
    pub(crate) fn respond(local: Local, channel: Channel) -> Self {
        Self::new(Role::Responder, None, local, channel)
    }

    fn new(role: Role, expected: Option<NodeName>, local: Local, channel: Channel) -> Self {
        Self { role, expected, local, channel, state: State::AwaitHello, proved_by: None }
    }

    /// The life of this node that the greeting speaks for.
    pub(crate) fn own_id(&self) -> &NodeId {
        &self.local.id
    }

    /// The key that the peer's proof was made with, once it has proved itself by one.
    pub(crate) fn proved_by(&self) -> Option<&HelloKey> {
        self.proved_by.as_ref()
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
        let Local { id, cluster, message_max, addresses, flags, first_credit, lanes_max } = &self.local;
        let input = ProofInput {
            exporter: &self.channel.exporter,
            role: self.role,
            name: id.name(),
            incarnation: id.incarnation(),
            own_spki: &self.channel.own_spki,
            peer_spki: &self.channel.peer_spki,
        };
        let proof = self.channel.own_key.as_ref().map_or([0; 32], |key| key.proof(&input));
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
            lanes_max: *lanes_max,
            mode: self.channel.mode,
            proof,
        };
        let mut bytes = Vec::with_capacity(512);
        hello.encode(&mut bytes);
        bytes.into()
    }

    /// Every check that needs no more than this link. A wrong proof and a wrong name look different to the peer, because
    /// whoever gets this far already holds the cookie.
    fn verify(&mut self, frame: Result<Frame, WireError>) -> Result<Peer, Code> {
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
        if hello.mode != self.channel.mode {
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
        (self.channel.certified)(&hello.name)?;
        let proof = ProofInput {
            exporter: &self.channel.exporter,
            role: peer_role,
            name: &hello.name,
            incarnation: hello.incarnation,
            own_spki: &self.channel.peer_spki,
            peer_spki: &self.channel.own_spki,
        };
        if self.channel.mode != Mode::Pki {
            let key = self.channel.peer_keys.iter().find(|key| key.verify(&proof, &hello.proof));
            self.proved_by = Some(key.ok_or(Code::BAD_PROOF)?.clone());
        }
        let certificate = self.proved_by.as_ref().map_or(self.channel.peer_certificate, |key| {
            // The same in either role, and whatever this side presents.
            let role = Role::Dialler;
            let (exporter, peer_spki) = (&self.channel.peer_certificate, &[0; 32]);
            key.proof(&ProofInput { exporter, role, peer_spki, ..proof })
        });
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
            fingerprint: self.channel.peer_life,
            certificate,
            greeting: Greeting {
                known_incarnation: hello.known_incarnation,
                ended: hello.ended,
                seen_ended: hello.seen_ended,
            },
            addresses: hello.addresses,
            flags: hello.flags,
            message_max: hello.message_max,
            first_credit: hello.first_credit,
            lanes_max: hello.lanes_max,
        })
    }
}

/// No incarnation and no counter reaches this: it is a clock some 140,000 years from now.
pub(crate) const INCARNATION_END: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{ClusterKeys, Cookie};
    use crate::wire::{HELLO_MAX, Splitter};

    const COOKIE: &str = "pk1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypqeeggyf";
    const EXPORTER: [u8; 32] = [0xee; 32];

    /// What the two ends are given before they speak. A test bends it, then sees what becomes of the greeting.
    struct Pair {
        dialler: (Local, Channel),
        responder: (Local, Channel),
        expected: NodeName,
    }

    #[test]
    fn a_good_pair_comes_up() {
        let (mut dialler, hello) = pair().dialler();
        let mut responder = pair().responder();
        let greeting = Greeting { known_incarnation: 1, ended: 2, seen_ended: 3 };

        let judged = responder.handle(frame(&hello));
        let [Output::Judge(peer)] = &judged[..] else { panic!("{judged:?}") };
        assert_eq!((&peer.id, peer.fingerprint), (&life("a@h", 5), [0xaa; 32]));
        assert_eq!(peer.greeting, Greeting { known_incarnation: 6, ended: 0, seen_ended: 1 });
        assert_eq!((peer.message_max, peer.first_credit, peer.lanes_max), (1000, 100, 7));

        let answered = responder.handle(Input::Judged(Ok(greeting)));
        let [Output::Send(answer)] = &answered[..] else { panic!("{answered:?}") };
        let judged = dialler.handle(frame(answer));
        let [Output::Judge(peer)] = &judged[..] else { panic!("{judged:?}") };
        assert_eq!((&peer.id, peer.fingerprint, peer.greeting), (&life("b@h", 6), [0xbb; 32], greeting));

        assert_eq!(dialler.handle(Input::Judged(Ok(greeting))), [Output::SendReady, Output::Up]);
        assert_eq!(responder.handle(Input::Ready), [Output::Up]);
        for machine in [&mut dialler, &mut responder] {
            assert_eq!(machine.handle(Input::Deadline), [], "its time is over");
        }
    }

    /// Both ends are bent in turn: the same lie is refused by either.
    #[test]
    fn what_is_wrong_with_a_hello_is_refused_with_its_code() {
        type Bend = fn(&mut Hello);
        let bends: [(&str, Code, Bend); 18] = [
            ("a proof with one wrong bit", Code::BAD_PROOF, |hello| hello.proof[31] ^= 1),
            ("no proof", Code::BAD_PROOF, |hello| hello.proof = [0; 32]),
            ("a proof for another incarnation", Code::BAD_PROOF, |hello| hello.incarnation += 1),
            ("another cluster", Code::NAME_MISMATCH, |hello| hello.cluster = "other".to_owned()),
            ("a name that is not the certificate's", Code::NAME_MISMATCH, |hello| hello.name = name("c@h")),
            ("the own role", Code::PROTOCOL, |hello| hello.role = 3 - hello.role),
            ("no role", Code::PROTOCOL, |hello| hello.role = 0),
            ("another mode", Code::MODE_MISMATCH, |hello| hello.mode = Mode::Pki),
            ("both modes", Code::MODE_MISMATCH, |hello| hello.mode = Mode::Both),
            ("an unknown codec", Code::VERSION, |hello| hello.codecs = vec![99]),
            ("no codec", Code::VERSION, |hello| hello.codecs = vec![]),
            ("no incarnation", Code::PROTOCOL, |hello| prove(hello, |hello| hello.incarnation = 0)),
            ("the last incarnation", Code::PROTOCOL, |hello| prove(hello, |hello| hello.incarnation = INCARNATION_END)),
            ("no room for a next life", Code::PROTOCOL, |hello| prove(hello, |hello| hello.incarnation = u64::MAX)),
            ("a count that is none", Code::PROTOCOL, |hello| hello.ended = INCARNATION_END),
            ("a seen count that is none", Code::PROTOCOL, |hello| hello.seen_ended = u64::MAX),
            ("an exporter of another channel", Code::BAD_PROOF, |hello| {
                hello.proof = proof_of(hello, &[0xef; 32], true);
            }),
            ("a proof of the other role", Code::BAD_PROOF, |hello| {
                hello.proof = proof_of(hello, &EXPORTER, false);
            }),
        ];
        for (lie, code, bend) in bends {
            let (_, hello) = pair().dialler();
            let refused = pair().responder().handle(frame(&bent(&hello, bend)));
            assert_eq!(refused, [Output::Refuse(code.into())], "{lie}, told by the dialler");

            let (mut dialler, _) = pair().dialler();
            let refused = dialler.handle(frame(&bent(&answer(), bend)));
            assert_eq!(refused, [Output::Refuse(code.into())], "{lie}, told by the responder");
        }
    }

    #[test]
    fn what_only_a_later_version_says_is_no_lie() {
        let later: fn(&mut Hello) = |hello| {
            hello.minor = MINOR + 1;
            hello.capabilities = u64::MAX;
            hello.codecs = vec![99, crate::codec::BINCODE];
            prove(hello, |hello| hello.incarnation = INCARNATION_END - 1);
        };
        let (mut dialler, hello) = pair().dialler();
        assert!(matches!(pair().responder().handle(frame(&bent(&hello, later)))[..], [Output::Judge(_)]));
        assert!(matches!(dialler.handle(frame(&bent(&answer(), later)))[..], [Output::Judge(_)]));
    }

    #[test]
    fn a_proof_made_for_other_keys_is_refused() {
        let bends: [fn(&mut Channel); 4] = [
            |channel| channel.exporter = [0; 32],
            |channel| channel.own_spki = [0; 32],
            |channel| channel.peer_spki = [0; 32],
            |channel| channel.peer_keys = vec![keys(&Cookie::generate())],
        ];
        for bend in bends {
            let (_, hello) = pair().dialler();
            let mut other = pair();
            bend(&mut other.responder.1);
            assert_eq!(other.responder().handle(frame(&hello)), [Output::Refuse(Code::BAD_PROOF.into())]);

            let mut other = pair();
            bend(&mut other.dialler.1);
            assert_eq!(other.dialler().0.handle(frame(&answer())), [Output::Refuse(Code::BAD_PROOF.into())]);
        }
    }

    /// With certificates alone no proof is made, and none is looked at: TLS has proved all.
    #[test]
    fn without_a_cookie_there_is_no_proof() {
        let pki = || {
            let mut pair = pair();
            for (_, channel) in [&mut pair.dialler, &mut pair.responder] {
                (channel.mode, channel.own_key, channel.peer_keys) = (Mode::Pki, None, vec![]);
            }
            pair
        };
        let (mut dialler, hello) = pki().dialler();
        let said = Hello::decode(split(&hello)).unwrap();
        assert_eq!((said.mode, said.proof), (Mode::Pki, [0; 32]));
        let mut responder = pki().responder();
        assert!(matches!(responder.handle(frame(&hello))[..], [Output::Judge(_)]));
        assert!(responder.proved_by().is_none());
        let answered = responder.handle(Input::Judged(Ok(Greeting::default())));
        let [Output::Send(answer)] = &answered[..] else { panic!("{answered:?}") };
        assert!(matches!(dialler.handle(frame(answer))[..], [Output::Judge(_)]));
        // What certificates say of names holds all the same, and so does the mode.
        for (code, bend) in [
            (Code::NAME_MISMATCH, (|hello| hello.name = name("c@h")) as fn(&mut Hello)),
            (Code::MODE_MISMATCH, |hello| hello.mode = Mode::Both),
            (Code::MODE_MISMATCH, |hello| hello.mode = Mode::Cookie),
        ] {
            assert_eq!(pki().responder().handle(frame(&bent(&hello, bend))), [Output::Refuse(code.into())]);
            assert_eq!(pki().dialler().0.handle(frame(&bent(answer, bend))), [Output::Refuse(code.into())]);
        }
    }

    /// Beside certificates another cookie is all that a peer may present anew: it does not look the same then.
    #[test]
    fn another_cookie_is_another_thing_presented() {
        let (one, other) = (keys(&Cookie::generate()), keys(&Cookie::generate()));
        let presented = |own: &HelloKey| {
            let mut pair = pair();
            pair.dialler.1.mode = Mode::Both;
            pair.dialler.1.own_key = Some(own.clone());
            (pair.responder.1.mode, pair.responder.1.peer_keys) = (Mode::Both, vec![one.clone(), other.clone()]);
            let responder = pair.responder;
            let (_, hello) = Pair { responder: (local("b@h", 6), channel("a@h", [0; 32], [0; 32])), ..pair }.dialler();
            let mut responder = Handshake::respond(responder.0, responder.1);
            match &responder.handle(frame(&hello))[..] {
                [Output::Judge(peer)] => peer.certificate,
                refused => panic!("{refused:?}"),
            }
        };
        assert_eq!(presented(&one), presented(&one));
        assert_ne!(presented(&one), presented(&other));
    }

    /// Beside certificates any cookie that is accepted will do; without one nothing does.
    #[test]
    fn the_second_factor_is_one_of_those_accepted() {
        let other = keys(&Cookie::generate());
        let good = keys(&Cookie::from_text(COOKIE).expect("a cookie"));
        for (accepted, code) in [
            (vec![good.clone()], None),
            (vec![other.clone(), good.clone()], None),
            (vec![other], Some(Code::BAD_PROOF)),
            (vec![], Some(Code::BAD_PROOF)),
        ] {
            let mut pair = pair();
            pair.dialler.1.mode = Mode::Both;
            (pair.responder.1.mode, pair.responder.1.peer_keys) = (Mode::Both, accepted);
            let responder = pair.responder;
            let (_, hello) = Pair { responder: (local("b@h", 6), channel("a@h", [0; 32], [0; 32])), ..pair }.dialler();
            let mut responder = Handshake::respond(responder.0, responder.1);
            let outputs = responder.handle(frame(&hello));
            match code {
                None => assert!(matches!(outputs[..], [Output::Judge(_)]), "{outputs:?}"),
                Some(code) => assert_eq!(outputs, [Output::Refuse(code.into())]),
            }
            assert_eq!(responder.proved_by().is_some_and(|key| key.is(&good)), code.is_none());
        }
    }

    /// A node that is not let in is told so, and not that its name is wrong.
    #[test]
    fn who_is_not_allowed_is_told_so() {
        let (_, hello) = pair().dialler();
        let mut closed = pair();
        closed.responder.1.certified = Box::new(|_| Err(Code::NOT_ALLOWED));
        assert_eq!(closed.responder().handle(frame(&hello)), [Output::Refuse(Code::NOT_ALLOWED.into())]);
    }

    #[test]
    fn an_echo_proves_nothing() {
        let (mut dialler, hello) = pair().dialler();
        assert_eq!(dialler.handle(frame(&hello)), [Output::Refuse(Code::PROTOCOL.into())]);
        // With role, name and all else set right, the proof is still the own one.
        for expected in ["a@h", "b@h"] {
            let (mut dialler, _) = Pair { expected: name(expected), ..pair() }.dialler();
            let echo = bent(&hello, |hello| (hello.role, hello.name) = (Role::Responder as u8, name(expected)));
            let refused = dialler.handle(frame(&echo));
            let code = if expected == "b@h" { Code::BAD_PROOF } else { Code::NAME_MISMATCH };
            assert_eq!(refused, [Output::Refuse(code.into())]);
        }
        let echo = bent(&answer(), |hello| (hello.role, hello.name) = (Role::Dialler as u8, name("a@h")));
        assert_eq!(pair().responder().handle(frame(&echo)), [Output::Refuse(Code::BAD_PROOF.into())]);
    }

    #[test]
    fn a_dialler_reaches_whom_it_expects_or_nobody() {
        let mut pair = pair();
        pair.expected = name("c@h");
        pair.dialler.1.certified = Box::new(|_| Ok(()));
        assert_eq!(pair.dialler().0.handle(frame(&answer())), [Output::Refuse(Code::NAME_MISMATCH.into())]);
    }

    #[test]
    fn every_truncation_is_refused() {
        let hello = answer();
        let whole = split(&hello);
        for len in 0..whole.body.len() {
            let cut = Frame { kind: whole.kind, body: whole.body.slice(..len) };
            let (mut dialler, _) = pair().dialler();
            let refused = dialler.handle(Input::Frame(Ok(cut)));
            assert!(matches!(&refused[..], [Output::Refuse(_)]), "{refused:?} at {len}");
        }
        for (error, code) in [
            (WireError::Short, Code::PROTOCOL),
            (WireError::TooLong(HELLO_MAX as u64 + 1), Code::FRAME_TOO_LARGE),
            (WireError::UnknownFrame(9), Code::PROTOCOL),
        ] {
            let (mut dialler, _) = pair().dialler();
            assert_eq!(dialler.handle(Input::Frame(Err(error))), [Output::Refuse(code.into())]);
        }
    }

    #[test]
    fn a_refusal_of_the_node_is_passed_on() {
        let (_, hello) = pair().dialler();
        let mut responder = pair().responder();
        responder.handle(frame(&hello));
        let refusal = Refusal { code: Code::STALE_INCARNATION, reason: vec![1, 2, 3] };
        assert_eq!(responder.handle(Input::Judged(Err(refusal.clone()))), [Output::Refuse(refusal)]);
        assert_eq!(responder.handle(Input::Ready), []);
    }

    #[test]
    fn out_of_turn_is_refused() {
        let protocol = || [Output::Refuse(Code::PROTOCOL.into())];
        let (_, hello) = pair().dialler();
        let ok = || Input::Judged(Ok(Greeting::default()));

        assert_eq!(pair().responder().handle(Input::Ready), protocol(), "READY before HELLO");
        assert_eq!(pair().responder().handle(ok()), protocol(), "a verdict on nobody");

        let mut responder = pair().responder();
        responder.handle(frame(&hello));
        assert_eq!(responder.handle(frame(&hello)), protocol(), "HELLO twice");

        let mut responder = pair().responder();
        responder.handle(frame(&hello));
        assert_eq!(responder.handle(Input::Ready), protocol(), "READY before the answer");

        let mut responder = pair().responder();
        responder.handle(frame(&hello));
        responder.handle(ok());
        assert_eq!(responder.handle(frame(&hello)), protocol(), "HELLO in place of READY");

        let (mut dialler, _) = pair().dialler();
        assert_eq!(dialler.handle(Input::Ready), protocol(), "a responder says no READY");

        let (mut dialler, _) = pair().dialler();
        dialler.handle(frame(&answer()));
        dialler.handle(ok());
        assert_eq!(dialler.handle(frame(&answer())), protocol(), "HELLO on a link that is up");
    }

    #[test]
    fn the_deadline_ends_every_state_but_up() {
        let (_, hello) = pair().dialler();
        let steps = [frame(&hello), Input::Judged(Ok(Greeting::default())), Input::Ready];
        for taken in 0..=steps.len() {
            let mut responder = pair().responder();
            let steps = [frame(&hello), Input::Judged(Ok(Greeting::default())), Input::Ready];
            steps.into_iter().take(taken).for_each(|step| drop(responder.handle(step)));
            let expected = if taken == 3 { vec![] } else { vec![Output::Refuse(Code::HELLO_TIMEOUT.into())] };
            assert_eq!(responder.handle(Input::Deadline), expected, "after {taken} steps");
            assert_eq!(responder.handle(Input::Deadline), [], "it is said once");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Good,
        Bent(u8),
        Echo,
        Garbage(Vec<u8>),
        Broken,
        Judged(bool),
        Ready,
        Deadline,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Good),
            1 => any::<u8>().prop_map(Step::Bent),
            1 => Just(Step::Echo),
            1 => proptest::collection::vec(any::<u8>(), 0..300).prop_map(Step::Garbage),
            1 => Just(Step::Broken),
            3 => any::<bool>().prop_map(Step::Judged),
            3 => Just(Step::Ready),
            1 => Just(Step::Deadline),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// No order of inputs leads up but HELLO with its proof, then the node's consent, then (for a responder) READY;
        /// and after a refusal nothing is said.
        #[test]
        fn nothing_but_the_proof_leads_up(
            is_dialler in any::<bool>(),
            has_key in any::<bool>(),
            steps in proptest::collection::vec(step(), 0..12),
        ) {
            let (dialler, own_hello) = pair().dialler();
            let (mut machine, good, own) =
                if is_dialler { (dialler, answer(), own_hello) } else { (pair().responder(), own_hello, answer()) };
            // How far the only way up was followed; 255 once it was left.
            let mut way = 0;
            let mut is_over = false;
            for step in steps {
                let next = match (&step, way) {
                    (Step::Good, 0) if has_key => 1,
                    (Step::Judged(true), 1) => 2,
                    (Step::Ready, 2) if !is_dialler => 3,
                    (Step::Deadline, at) if at == if is_dialler { 2 } else { 3 } => at,
                    _ => 255,
                };
                let input = match step {
                    Step::Good if has_key => frame(&good),
                    // All that an attacker without the key knows: everything but the proof.
                    Step::Good => frame(&bent(&good, |hello| hello.proof = [7; 32])),
                    Step::Bent(bit) => frame(&bent(&good, |hello| hello.proof[usize::from(bit / 8)] ^= 1 << (bit % 8))),
                    Step::Echo => frame(&own),
                    Step::Garbage(body) => Input::Frame(Ok(Frame { kind: crate::wire::HELLO, body: body.into() })),
                    Step::Broken => Input::Frame(Err(WireError::Short)),
                    Step::Judged(true) => Input::Judged(Ok(Greeting::default())),
                    Step::Judged(false) => Input::Judged(Err(Code::LIMIT.into())),
                    Step::Ready => Input::Ready,
                    Step::Deadline => Input::Deadline,
                };
                let outputs = machine.handle(input);
                let is_up = outputs.contains(&Output::Up);
                prop_assert_eq!(is_up, next != way && next == if is_dialler { 2 } else { 3 });
                prop_assert!(!is_over || outputs.is_empty(), "{:?} after a refusal", outputs);
                let judges = outputs.iter().any(|output| matches!(output, Output::Judge(_)));
                prop_assert_eq!(judges, way == 0 && next == 1);
                let refuses = outputs.iter().any(|output| matches!(output, Output::Refuse(_)));
                prop_assert_eq!(refuses, next == 255 && !is_over);
                is_over |= refuses;
                way = next;
            }
        }
    }

    impl Pair {
        fn dialler(self) -> (Handshake, Bytes) {
            let (local, channel) = self.dialler;
            let greeting = Greeting { known_incarnation: 6, ended: 0, seen_ended: 1 };
            match Handshake::dial(local, channel, self.expected, greeting) {
                (machine, Output::Send(hello)) => (machine, hello),
                (_, other) => panic!("{other:?}"),
            }
        }

        fn responder(self) -> Handshake {
            Handshake::respond(self.responder.0, self.responder.1)
        }
    }

    fn pair() -> Pair {
        Pair {
            dialler: (local("a@h", 5), channel("b@h", [0xaa; 32], [0xbb; 32])),
            responder: (local("b@h", 6), channel("a@h", [0xbb; 32], [0xaa; 32])),
            expected: name("b@h"),
        }
    }

    fn local(own: &str, incarnation: u64) -> Local {
        Local {
            id: life(own, incarnation),
            cluster: ClusterName::default(),
            message_max: 1000,
            addresses: vec![],
            flags: NodeFlags::default(),
            first_credit: 100,
            lanes_max: 7,
        }
    }

    fn channel(certified: &str, own_spki: [u8; 32], peer_spki: [u8; 32]) -> Channel {
        let certified = name(certified);
        let key = keys(&Cookie::from_text(COOKIE).expect("a cookie"));
        Channel {
            exporter: EXPORTER,
            own_spki,
            peer_spki,
            peer_life: peer_spki,
            peer_certificate: peer_spki,
            mode: Mode::Cookie,
            own_key: Some(key.clone()),
            peer_keys: vec![key],
            certified: Box::new(move |name| if *name == certified { Ok(()) } else { Err(Code::NAME_MISMATCH) }),
        }
    }

    /// The responder's answer to a good dialler.
    fn answer() -> Bytes {
        let (_, hello) = pair().dialler();
        let mut responder = pair().responder();
        responder.handle(frame(&hello));
        match responder.handle(Input::Judged(Ok(Greeting::default()))).pop() {
            Some(Output::Send(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn split(bytes: &Bytes) -> Frame {
        let mut splitter = Splitter::new(HELLO_MAX);
        splitter.push(bytes.clone());
        splitter.next_frame().expect("a frame").expect("a whole one")
    }

    fn frame(bytes: &Bytes) -> Input {
        Input::Frame(Ok(split(bytes)))
    }

    fn bent(bytes: &Bytes, bend: impl FnOnce(&mut Hello)) -> Bytes {
        let mut hello = Hello::decode(split(bytes)).expect("a HELLO");
        bend(&mut hello);
        let mut bytes = Vec::new();
        hello.encode(&mut bytes);
        bytes.into()
    }

    /// Changes a HELLO as one who holds the key.
    fn prove(hello: &mut Hello, change: impl FnOnce(&mut Hello)) {
        change(hello);
        hello.proof = proof_of(hello, &EXPORTER, true);
    }

    fn proof_of(hello: &Hello, exporter: &[u8; 32], own_role: bool) -> [u8; 32] {
        let is_dialler = hello.role == Role::Dialler as u8;
        let (own, peer) = if is_dialler { ([0xaa; 32], [0xbb; 32]) } else { ([0xbb; 32], [0xaa; 32]) };
        keys(&Cookie::from_text(COOKIE).expect("a cookie")).proof(&ProofInput {
            exporter,
            role: if is_dialler == own_role { Role::Dialler } else { Role::Responder },
            name: &hello.name,
            incarnation: hello.incarnation,
            own_spki: &own,
            peer_spki: &peer,
        })
    }

    fn keys(cookie: &Cookie) -> HelloKey {
        ClusterKeys::derive(cookie, &ClusterName::default()).hello
    }

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).expect("a name")
    }

    fn life(text: &str, incarnation: u64) -> NodeId {
        NodeId::new(name(text), incarnation)
    }
}
