//! The attacker: TLS and HELLO as a node makes them, and whatever bytes it likes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::config::Config;
use crate::id::{ClusterName, HostName, NodeId, NodeName};
use crate::identity::{ClusterKeys, Cookie, ProofInput, Role};
use crate::node::Node;
use crate::sim::{Fabric, Host};
use crate::transport::link::{End, Receiver, Sender, StreamError};
use crate::transport::tls::Tls;
use crate::transport::{Endpoint, Link};
use crate::wire::services::{Service, put_numbered};
use crate::wire::{
    CONTROL_MAX, CallFrame, CallHead, CallMode, Code, Control, CopiesHead, Frame, HELLO_MAX, Hello, MINOR, MessageHead,
    Mode, NodeFlags, Schema, Splitter, StreamKind, Term, TermRef, put_message_head, put_schema,
};

/// How long to wait for what the node is to do.
const PATIENCE: Duration = Duration::from_secs(300);

/// A peer that keeps only the rules that a test wants it to.
pub(super) struct Fake {
    pub(super) host: Host,
    pub(super) endpoint: Endpoint,
    pub(super) tls: Tls,
    pub(super) cluster: ClusterName,
    pub(super) id: NodeId,
}

impl Fake {
    /// One at the address of its name.
    pub(super) fn new(fabric: &Fabric, cookie: &Cookie, cluster: &str, name: &str) -> Self {
        let name = NodeName::parse(name).unwrap();
        let HostName::Ip(ip) = name.host() else { panic!("{name} has no address") };
        Self::at(fabric, (ip, name.port()).into(), cookie, cluster, name)
    }

    /// One that is not where its name says.
    pub(super) fn at(fabric: &Fabric, at: SocketAddr, cookie: &Cookie, cluster: &str, name: NodeName) -> Self {
        let host = fabric.host(at.ip());
        let cluster = ClusterName::parse(cluster).unwrap();
        let config = Config::default();
        let endpoint = Endpoint::bind((&host).into(), at, &config).unwrap();
        let keys = ClusterKeys::derive(cookie, &cluster);
        let tls = Tls::new(&cluster, &name, Some(keys), None, None).unwrap();
        endpoint.identify(&tls, &config);
        Self { host, endpoint, tls, cluster, id: NodeId::new(name, 1_000) }
    }

    pub(super) fn name(&self) -> &NodeName {
        self.id.name()
    }

    pub(super) async fn dial(&self, to: &Node) -> Link {
        self.endpoint.dial(&self.tls, to.local_addr(), to.name()).await.unwrap()
    }

    pub(super) async fn accept(&self) -> Link {
        let accepting = async { self.endpoint.accept().await.unwrap().accept().await.unwrap() };
        timeout(PATIENCE, accepting).await.expect("the node dials")
    }

    /// A good HELLO for this link.
    pub(super) fn hello(&self, link: &Link, role: Role) -> Hello {
        let mut hello = Hello {
            minor: MINOR,
            role: role as u8,
            incarnation: self.id.incarnation(),
            capabilities: 0,
            message_max: 16 << 20,
            codecs: vec![crate::codec::BINCODE],
            cluster: self.cluster.as_str().to_owned(),
            name: self.name().clone(),
            addresses: vec![],
            flags: NodeFlags::default(),
            known_incarnation: 0,
            ended: 0,
            seen_ended: 0,
            first_credit: 64 << 10,
            lanes_max: 16 << 10,
            mode: Mode::Cookie,
            proof: [0; 32],
        };
        self.prove(link, &mut hello);
        hello
    }

    /// Makes the proof for what the HELLO says.
    pub(super) fn prove(&self, link: &Link, hello: &mut Hello) {
        let peer = link.peer(&self.tls).unwrap();
        let role = if hello.role == Role::Dialler as u8 { Role::Dialler } else { Role::Responder };
        hello.proof = self.tls.hello_key().proof(&ProofInput {
            exporter: &link.exporter(),
            role,
            name: &hello.name,
            incarnation: hello.incarnation,
            own_spki: &self.tls.own_spki(),
            peer_spki: peer.spki(),
        });
    }

    /// Dials a node and greets it well.
    pub(super) async fn join(&self, to: &Node) -> Joined {
        self.join_as(to, |_| {}).await.expect("let in")
    }

    /// Dials a node and greets it with another HELLO; the node's refusal if it comes to that.
    pub(super) async fn join_as(&self, to: &Node, alter: impl FnOnce(&mut Hello)) -> Result<Joined, Closed> {
        let link = self.dial(to).await;
        let mut hello = self.hello(&link, Role::Dialler);
        alter(&mut hello);
        self.prove(&link, &mut hello);
        let (send, mut recv) = say(&link, &encode(&hello)).await;
        let Some(hello) = hear(&mut recv).await else { return Err(closed(&link).await) };
        link.raise_limits(1000);
        let mut control = open(&link, &[StreamKind::Control.to_byte()]).await;
        control.write(&control_frame(Control::Ready)).await.unwrap();
        let theirs = link.accept().await.map_err(|_| ());
        let Ok(theirs) = theirs else { return Err(closed(&link).await) };
        Ok(Joined { link, control, frames: Frames::new(theirs, CONTROL_MAX), hello, _greeting: (send, recv) })
    }

    /// Waits for a node's dial and answers its HELLO well.
    pub(super) async fn admit(&self) -> Joined {
        self.admit_as(|_| {}).await.expect("not refused")
    }

    /// Waits for a node's dial and answers with another HELLO; the node's refusal if it comes to that.
    pub(super) async fn admit_as(&self, alter: impl FnOnce(&mut Hello)) -> Result<Joined, Closed> {
        let link = self.accept().await;
        let (mut send, mut recv) = link.accept_greeting().await.unwrap();
        let theirs = hear(&mut recv).await.unwrap();
        let mut hello = self.hello(&link, Role::Responder);
        hello.known_incarnation = theirs.incarnation;
        (hello.ended, hello.seen_ended) = (theirs.seen_ended, theirs.ended);
        alter(&mut hello);
        self.prove(&link, &mut hello);
        send.write(&encode(&hello)).await.unwrap();
        link.raise_limits(1000);
        let Ok(stream) = link.accept().await else { return Err(closed(&link).await) };
        let mut frames = Frames::new(stream, CONTROL_MAX);
        assert_eq!(frames.next_control().await, Some(Control::Ready));
        let control = open(&link, &[StreamKind::Control.to_byte()]).await;
        Ok(Joined { link, control, frames, hello: theirs, _greeting: (send, recv) })
    }
}

/// A link after a good greeting.
pub(super) struct Joined {
    pub(super) link: Link,
    /// To the node.
    pub(super) control: Sender,
    /// From the node.
    pub(super) frames: Frames,
    pub(super) hello: Hello,
    pub(super) _greeting: (Sender, Receiver),
}

impl Joined {
    /// Sends a stream of the kind that its first byte says, and leaves it open.
    pub(super) async fn open(&self, bytes: &[u8]) -> Sender {
        open(&self.link, bytes).await
    }

    pub(super) async fn control(&mut self, frame: Control) {
        self.control.write(&control_frame(frame)).await.unwrap();
    }

    /// Whether the node still answers.
    pub(super) async fn answers(&mut self, seq: u64) -> bool {
        if self.control.write(&control_frame(Control::Ping { seq })).await.is_err() {
            return false;
        }
        while let Some(frame) = self.frames.next_control().await {
            if frame == (Control::Pong { seq }) {
                return true;
            }
        }
        false
    }
}

/// The node's next stream, but for those of membership and of the services, which are read and forgotten; `None` when there
/// is none.
pub(super) async fn next_stream(link: &Link) -> Option<Frames> {
    loop {
        let mut frames = Frames::new(link.accept().await.ok()?, 1 << 20);
        frames.begin().await?;
        if !matches!(frames.kind(), Some(StreamKind::Membership | StreamKind::Services)) {
            return Some(frames);
        }
        tokio::spawn(async move { while frames.next().await.is_some() {} });
    }
}

/// How a node closed a link.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) code: Code,
    pub(super) reason: Vec<u8>,
    /// How long it took.
    pub(super) after: Duration,
}

/// Waits for a node to close the link.
pub(super) async fn closed(link: &Link) -> Closed {
    let began = Instant::now();
    let end = timeout(PATIENCE, link.closed()).await.expect("the node closes the link");
    let End::Closed { code, reason, by_peer: true } = end else { panic!("{end:?}") };
    Closed { code, reason, after: began.elapsed() }
}

pub(super) async fn open(link: &Link, bytes: &[u8]) -> Sender {
    let mut stream = link.open_mute().await.unwrap();
    // The node may close while it is written.
    let _ = stream.write(bytes).await;
    stream
}

/// Opens the greeting stream and writes to it.
pub(super) async fn say(link: &Link, bytes: &[u8]) -> (Sender, Receiver) {
    let (mut send, recv) = link.open_greeting().await.unwrap();
    let _ = send.write(bytes).await;
    (send, recv)
}

/// Reads a node's HELLO; `None` when there comes none.
pub(super) async fn hear(recv: &mut Receiver) -> Option<Hello> {
    let mut splitter = Splitter::new(HELLO_MAX);
    loop {
        match splitter.next_frame().unwrap() {
            Some(frame) => return Some(Hello::decode(frame).unwrap()),
            None => splitter.push(timeout(PATIENCE, recv.read()).await.expect("a HELLO or an end").ok()??),
        }
    }
}

/// The frames of a node's stream.
pub(super) struct Frames {
    stream: Receiver,
    splitter: Splitter,
    kind: Option<u8>,
}

impl Frames {
    pub(super) fn new(stream: Receiver, max: usize) -> Self {
        Self { stream, splitter: Splitter::new(max), kind: None }
    }

    /// Waits for the first bytes, of which one is the kind.
    pub(super) async fn begin(&mut self) -> Option<()> {
        if self.kind.is_none() { self.read_on().await } else { Some(()) }
    }

    async fn read_on(&mut self) -> Option<()> {
        let read = timeout(PATIENCE, self.stream.read()).await.expect("a frame or an end");
        let mut chunk = match read {
            Ok(Some(chunk)) => chunk,
            Ok(None) | Err(StreamError::LinkEnded | StreamError::Reset) => return None,
        };
        if self.kind.is_none() {
            self.kind = Some(chunk.split_to(1)[0]);
        }
        self.splitter.push(chunk);
        Some(())
    }

    /// The next frame; `None` when no more can come.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.splitter.next_frame().unwrap() {
                return Some(frame);
            }
            self.read_on().await?;
        }
    }

    /// Tells the node that nobody reads on.
    pub(super) fn stop(self) {
        self.stream.stop();
    }

    pub(super) fn kind(&self) -> Option<StreamKind> {
        self.kind.and_then(StreamKind::from_byte)
    }

    pub(super) async fn next_control(&mut self) -> Option<Control> {
        Control::decode(self.next().await?).unwrap()
    }

    /// The next frame of a call stream that is more than a declaration.
    pub(super) async fn next_call(&mut self) -> Option<CallFrame> {
        loop {
            match CallFrame::decode(self.next().await?).unwrap() {
                Some(CallFrame { head: CallHead::Term { .. }, .. }) => {}
                frame => return frame,
            }
        }
    }
}

pub(super) fn encode(hello: &Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    hello.encode(&mut bytes);
    bytes
}

pub(super) fn control_frame(frame: Control) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

/// A service frame with a number.
pub(super) fn service_frame(number: u64, service: &Service) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_numbered(&mut bytes, number, service);
    bytes
}

pub(super) fn call_frame(head: &CallHead, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    head.put(&mut bytes, body.len());
    [bytes, body.to_vec()].concat()
}

/// How a `u64` is declared.
pub(super) fn number_schema() -> Schema {
    Schema { tag: "u64".to_owned(), version: 1, readable_since: 1, codec: crate::codec::BINCODE }
}

pub(super) fn schema_frame(id: u64, schema: &Schema) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_schema(&mut bytes, id, schema);
    bytes
}

pub(super) fn message_frame(mailbox: u64, number: u64, schema: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let body = bytes::Bytes::copy_from_slice(body);
    put_message_head(&mut bytes, &MessageHead { mailbox, number, schema, trace: None }, body.len());
    bytes.extend_from_slice(&body);
    bytes
}

pub(super) fn copies_frame(id: u64, schema: u64, to: Vec<(u64, u64)>, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    CopiesHead { id, schema, trace: None, to }.put(&mut bytes, body.len());
    bytes.extend_from_slice(body);
    bytes
}

pub(super) fn call(id: u64, method: &str, timeout_ms: u64) -> Vec<u8> {
    call_as(id, method, timeout_ms, CallMode::Answer, &[21])
}

/// A call with all that it says, in full.
pub(super) fn call_as(id: u64, method: &str, timeout_ms: u64, mode: CallMode, body: &[u8]) -> Vec<u8> {
    call_frame(&CallHead::Call { id, term: in_full(method), timeout_ms, mode, trace: None }, body)
}

/// Requests of a method, or answers, for a `u64`.
pub(super) fn in_full(method: &str) -> TermRef {
    TermRef::InFull(Box::new(Term { method: method.to_owned(), schema: number_schema() }))
}
