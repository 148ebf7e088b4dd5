//! From a dial or an arrival to a greeted link.
//!
//! One task per link, outside the node task: TLS, then [`proto::hello`](crate::proto::hello), which asks the node task for
//! its verdict.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::carrier::{Greeted, kind_of};
use super::journal::Journal;
use super::{Command, Shared, lock};
use crate::error::ConnectError;
use crate::id::{HostName, NodeId, NodeName};
use crate::identity::{AuthError, Role};
use crate::proto::hello::{Channel, Greeting, Handshake, Input, Output, Peer, Refusal};
use crate::proto::links::LinkId;
use crate::transport::link::{End, Receiver, StreamError};
use crate::transport::tls::refusal_code;
use crate::transport::{Arrival, Link};
use crate::wire::{CONTROL_MAX, Code, Control, Frame, HELLO_MAX, Mode, Splitter, StreamKind, WireError};

/// At most so many addresses of one name are tried in one dial.
const ADDRESSES_MAX: usize = 8;

/// How long an address is tried alone: what RFC 8305, section 8, recommends.
const HEAD_START: Duration = Duration::from_millis(250);

/// Dials a node and greets it; reports how it went.
pub(crate) async fn dial(shared: Arc<Shared>, id: LinkId, name: NodeName, greeting: Greeting) {
    let patience = shared.config.connect_timeout;
    let deadline = Instant::now() + patience;
    let outcome = match timeout_at(deadline, reach(&shared, &name)).await {
        Err(_) => Err(Failure::from(ConnectError::Timeout(patience))),
        Ok(Err(error)) => Err(error.into()),
        Ok(Ok(link)) => {
            let trust = shared.tls.version();
            match channel(&shared, &link) {
                Err(error) => Err(ConnectError::Auth(error).into()),
                Ok(channel) => {
                    let (machine, hello) = Handshake::dial(shared.local(), channel, name, greeting);
                    let deadline = deadline.min(Instant::now() + shared.config.hello_timeout);
                    let greeter = Greeter { shared: &shared, id, link, role: Role::Dialler, trust };
                    greeter.run(machine, Some(hello), deadline).await
                }
            }
        }
    };
    report(&shared, id, outcome);
}

/// Takes one arrival through TLS and the greeting.
pub(crate) async fn accept(shared: Arc<Shared>, id: LinkId, arrival: Arrival) {
    let address = arrival.address();
    let link = match arrival.accept().await {
        Ok(link) => link,
        Err(error) => {
            match &error {
                Some(error) => shared.journal.link_refused(&address, error),
                None => Journal::link_broke(&address, &"TLS was not completed"),
            }
            let error = error.map_or(ConnectError::Broken, ConnectError::Auth);
            return report(&shared, id, Err(error.into()));
        }
    };
    let trust = shared.tls.version();
    let outcome = match channel(&shared, &link) {
        Err(error) => Err(ConnectError::Auth(error).into()),
        Ok(channel) => {
            let machine = Handshake::respond(shared.local(), channel);
            let deadline = Instant::now() + shared.config.hello_timeout;
            Greeter { shared: &shared, id, link, role: Role::Responder, trust }.run(machine, None, deadline).await
        }
    };
    if let Err(failure) = &outcome {
        match &failure.error {
            ConnectError::Auth(error) => shared.journal.link_refused(&address, error),
            error @ (ConnectError::HelloTimeout | ConnectError::Protocol | ConnectError::Limit) => {
                shared.journal.link_refused(&address, error);
            }
            // Dials that crossed, a question that was answered, a conflict that is told as such.
            error => Journal::link_broke(&address, error),
        }
    }
    report(&shared, id, outcome);
}

/// Asks whether this very life of a node answers at its name's address. It is greeted as for its session, or it would
/// take the question for the end of it.
pub(crate) async fn answers(shared: Arc<Shared>, old: NodeId, greeting: Greeting) -> bool {
    let deadline = Instant::now() + shared.config.conflict_check;
    let asking = async {
        let link = reach(&shared, old.name()).await.ok()?;
        let channel = channel(&shared, &link).ok()?;
        let (mut machine, hello) = Handshake::dial(shared.local(), channel, old.name().clone(), greeting);
        let Output::Send(hello) = hello else { return None };
        let (mut send, mut recv) = link.open_greeting().await.ok()?;
        send.write(&hello).await.ok()?;
        let outputs = machine.handle(Input::Frame(read_frame(&mut recv).await.ok()?));
        link.close(Code::NORMAL, b"");
        outputs.into_iter().find_map(|output| match output {
            Output::Judge(peer) => Some(peer.id == old),
            _ => None,
        })
    };
    timeout_at(deadline, asking).await.ok().flatten().unwrap_or(false)
}

/// Asks whether another life of this node's name answers at the name's address, and turns this one away.
pub(crate) async fn is_taken_over(shared: Arc<Shared>) -> bool {
    let deadline = Instant::now() + shared.config.conflict_check;
    let asking = async {
        let name = shared.id().name().clone();
        let link = reach(&shared, &name).await.ok()?;
        let channel = channel(&shared, &link).ok()?;
        let (_, hello) = Handshake::dial(shared.local(), channel, name, Greeting::default());
        let Output::Send(hello) = hello else { return None };
        let (mut send, _recv) = link.open_greeting().await.ok()?;
        send.write(&hello).await.ok()?;
        Some(link.closed().await.code() == Some(Code::NAME_CONFLICT))
    };
    timeout_at(deadline, asking).await.ok().flatten().unwrap_or(false)
}

fn report(shared: &Shared, link: LinkId, outcome: Result<Box<Greeted>, Failure>) {
    shared.command(match outcome {
        Ok(greeted) => Command::LinkGreeted { link, greeted },
        Err(failure) => Command::LinkFailed { link, failure },
    });
}

/// Why a link did not come up.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: ConnectError,
    pub(crate) code: Option<Code>,
    /// The incarnation in [`Code::STALE_INCARNATION`], when the peer told it.
    pub(crate) known_incarnation: Option<u64>,
    /// The same in [`Code::NAME_CONFLICT`].
    pub(crate) live_incarnation: Option<u64>,
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self { error, code: None, known_incarnation: None, live_incarnation: None }
    }
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        let End::Closed { code, reason, by_peer } = end else {
            return match end {
                End::Auth(error) => ConnectError::Auth(error).into(),
                _ => ConnectError::Broken.into(),
            };
        };
        let incarnation = <[u8; 8]>::try_from(reason).ok().filter(|_| by_peer).map(u64::from_be_bytes);
        Self {
            error: refused(code),
            code: Some(code),
            known_incarnation: incarnation.filter(|_| code == Code::STALE_INCARNATION),
            live_incarnation: incarnation.filter(|_| code == Code::NAME_CONFLICT),
        }
    }
}

/// What a close code during the greeting means to whoever wanted the link.
fn refused(code: Code) -> ConnectError {
    match code {
        Code::HELLO_TIMEOUT => ConnectError::HelloTimeout,
        Code::BAD_PROOF => ConnectError::Auth(AuthError::Proof),
        Code::NAME_MISMATCH => ConnectError::Auth(AuthError::NameMismatch),
        Code::NAME_CONFLICT => ConnectError::NameConflict,
        Code::SELF => ConnectError::IsSelf,
        Code::LIMIT => ConnectError::Limit,
        Code::MODE_MISMATCH => ConnectError::Auth(AuthError::ModeMismatch),
        Code::NOT_ALLOWED => ConnectError::Auth(AuthError::NotAllowed),
        Code::TRUST_CHANGED => ConnectError::Auth(AuthError::TrustChanged),
        Code::SHUTDOWN => ConnectError::PeerShutdown,
        Code::VERSION | Code::PROTOCOL | Code::FRAME_TOO_LARGE => ConnectError::Protocol,
        _ => ConnectError::Broken,
    }
}

/// Tries the addresses where a node may be: each gets a head start before the next is tried beside it, and the first that
/// answers is taken (as RFC 8305, section 5, does for TCP).
async fn reach(shared: &Arc<Shared>, name: &NodeName) -> Result<Link, ConnectError> {
    let Some(endpoint) = shared.endpoint() else { return Err(ConnectError::Shutdown) };
    if !shared.tls.may_admit(name) {
        return Err(ConnectError::Auth(AuthError::NotAllowed));
    }
    let mut addresses = endpoint.resolve(name).await;
    addresses.truncate(ADDRESSES_MAX);
    for advertised in shared.advertised(name) {
        if !addresses.contains(&advertised) {
            addresses.push(advertised);
        }
    }
    let mut attempts = JoinSet::new();
    let mut last = ConnectError::Resolve(name.clone());
    for address in addresses {
        let (endpoint, tls, name) = (endpoint.clone(), shared.tls.clone(), name.clone());
        attempts.spawn(async move { endpoint.dial(&tls, address, &name).await });
        if let Ok(Some(Ok(outcome))) = timeout(HEAD_START, attempts.join_next()).await {
            match outcome {
                Ok(link) => return Ok(link),
                Err(error) => last = error,
            }
        }
    }
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
    }
    Err(last)
}

/// What the greeting is bound to: the certificate that this side presented on this very link, and the peer's, by the trust
/// of this moment. A peer that is trusted no longer is told so.
fn channel(shared: &Shared, link: &Link) -> Result<Channel, AuthError> {
    let peer = link.peer(&shared.tls).inspect_err(|_| link.close(Code::TRUST_CHANGED, b""))?;
    let cluster = shared.cluster.clone();
    let own = link.own();
    Ok(Channel {
        exporter: link.exporter(),
        own_spki: *own.spki(),
        peer_spki: *peer.spki(),
        peer_life: peer.life_key(),
        peer_certificate: peer.hash(),
        mode: own.mode(),
        own_key: own.hello_key().cloned(),
        peer_keys: peer.proofs().to_vec(),
        certified: Box::new(move |name| peer.admits(&cluster, name).map_err(|error| refusal_code(&error))),
    })
}

/// Takes one link through its greeting.
struct Greeter<'a> {
    shared: &'a Arc<Shared>,
    id: LinkId,
    link: Link,
    role: Role,
    /// The trust by which the certificate was looked at.
    trust: u64,
}

impl Greeter<'_> {
    async fn run(
        self,
        mut machine: Handshake,
        first: Option<Output>,
        deadline: Instant,
    ) -> Result<Box<Greeted>, Failure> {
        let greeting = async {
            match self.greet(&mut machine, first).await {
                Ok(greeted) => Ok(greeted),
                Err(Some(failure)) => Err(failure),
                // The link's end says why.
                Err(None) => Err(self.link.closed().await.into()),
            }
        };
        if let Ok(outcome) = timeout_at(deadline, greeting).await {
            return outcome;
        }
        let refusal = machine.handle(Input::Deadline).into_iter().find_map(|output| match output {
            Output::Refuse(refusal) => Some(refusal),
            _ => None,
        });
        // The machine has nothing against a peer that greeted, but lets this side open no stream.
        Err(self.refuse(refusal.unwrap_or_else(|| Code::HELLO_TIMEOUT.into())))
    }

    /// What a stream that carries no more means for the link; `None` when the link has ended.
    fn broke(&self, error: StreamError) -> Option<Failure> {
        match error {
            StreamError::LinkEnded => None,
            StreamError::Reset => Some(self.refuse(Code::PROTOCOL.into())),
        }
    }

    fn refuse(&self, Refusal { code, reason }: Refusal) -> Failure {
        self.link.close(code, &reason);
        Failure { code: Some(code), ..refused(code).into() }
    }

    /// Feeds the machine until the link is up. `Err(None)` when the link ended meanwhile.
    async fn greet(&self, machine: &mut Handshake, first: Option<Output>) -> Result<Box<Greeted>, Option<Failure>> {
        let (mut send, mut recv) = match self.role {
            Role::Dialler => self.link.open_greeting().await,
            Role::Responder => self.link.accept_greeting().await,
        }
        .map_err(|error| self.broke(error))?;
        let mut outputs: std::collections::VecDeque<_> = first.into_iter().collect();
        let mut next = Next::Hello;
        let mut control = None;
        let mut peer_control = None;
        let mut greeted = None;
        loop {
            let Some(output) = outputs.pop_front() else {
                let input = match next {
                    Next::Hello => Input::Frame(read_frame(&mut recv).await.map_err(|error| self.broke(error))?),
                    Next::Ready => {
                        peer_control = self.read_ready().await?;
                        match &peer_control {
                            Some(_) => Input::Ready,
                            None => Input::Frame(Err(WireError::Value("READY"))),
                        }
                    }
                };
                outputs.extend(machine.handle(input));
                continue;
            };
            match output {
                Output::Send(hello) => {
                    send.write(&hello).await.map_err(|error| self.broke(error))?;
                    if self.role == Role::Responder {
                        next = Next::Ready;
                    }
                }
                Output::Judge(peer) => {
                    let name = peer.id.name().clone();
                    if let Some(key) = machine.proved_by() {
                        self.link.proved_by(key.clone());
                    }
                    let mut verdict = self.judge(peer).await;
                    // The machine speaks for the life that this link began in.
                    if !self.shared.is_own(machine.own_id()) {
                        verdict = Err(Code::STALE_LINK.into());
                    }
                    // The trust may have changed while the two greeted.
                    let trust = self.shared.tls.version();
                    if verdict.is_ok()
                        && trust != self.trust
                        && let Err(error) = self.link.recheck(&self.shared.tls, &self.shared.cluster, &name)
                    {
                        tracing::debug!(peer = %name, %error, "no longer trusted");
                        verdict = Err(Code::TRUST_CHANGED.into());
                    }
                    greeted = Some((name, trust));
                    if verdict.is_ok() {
                        self.link.raise_limits(self.shared.config.streams_max);
                    }
                    outputs.extend(machine.handle(Input::Judged(verdict)));
                }
                Output::SendReady => {
                    let mut bytes = Vec::new();
                    Control::Ready.encode(&mut bytes);
                    let mut stream = self.open_control().await?;
                    stream.write(&bytes).await.map_err(|error| self.broke(error))?;
                    control = Some(stream);
                }
                Output::Up => {
                    send.finish();
                    let control = match control {
                        Some(control) => control,
                        None => self.open_control().await?,
                    };
                    let Some((peer, trust)) = greeted else { return Err(None) };
                    return Ok(Box::new(Greeted { link: self.link.clone(), control, peer_control, peer, trust }));
                }
                Output::Refuse(refusal) => return Err(Some(self.refuse(refusal))),
            }
        }
    }

    async fn open_control(&self) -> Result<crate::transport::link::Sender, Option<Failure>> {
        self.link.open(StreamKind::Control, super::carrier::CONTROL_PRIORITY).await.map_err(|error| self.broke(error))
    }

    /// Asks the node task.
    async fn judge(&self, peer: Box<Peer>) -> Result<Greeting, Refusal> {
        let (verdict, answer) = oneshot::channel();
        self.shared.command(Command::Judge { link: self.id, role: self.role, peer, verdict });
        answer.await.unwrap_or_else(|_| Err(Code::SHUTDOWN.into()))
    }

    /// The dialler's control stream, with READY taken off; `None` when something else comes first.
    async fn read_ready(&self) -> Result<Option<(Receiver, Splitter)>, Option<Failure>> {
        let mut stream = self.link.accept().await.map_err(|error| self.broke(error))?;
        let patience: Duration = self.shared.config.hello_timeout;
        let splitter = kind_of(&mut stream, patience, CONTROL_MAX, StreamKind::Control)
            .await
            .map_err(|error| self.broke(error))?;
        let Some(mut splitter) = splitter else { return Ok(None) };
        loop {
            match splitter.next_frame() {
                Err(_) => return Ok(None),
                Ok(Some(frame)) => match Control::decode(frame) {
                    Ok(Some(Control::Ready)) => return Ok(Some((stream, splitter))),
                    // A later version may say more here.
                    Ok(None) => continue,
                    _ => return Ok(None),
                },
                Ok(None) => match stream.read().await.map_err(|error| self.broke(error))? {
                    Some(chunk) => splitter.push(chunk),
                    None => return Ok(None),
                },
            }
        }
    }
}

enum Next {
    Hello,
    Ready,
}

/// The first frame of a greeting stream, or what is wrong with it.
async fn read_frame(recv: &mut Receiver) -> Result<Result<Frame, WireError>, StreamError> {
    let mut splitter = Splitter::new(HELLO_MAX);
    loop {
        match splitter.next_frame() {
            Ok(Some(frame)) => return Ok(Ok(frame)),
            Err(error) => return Ok(Err(error)),
            Ok(None) => match recv.read().await? {
                Some(chunk) => splitter.push(chunk),
                None => return Ok(Err(WireError::Short)),
            },
        }
    }
}

/// Asks who is at an address, which is remembered as a place of whoever it is. The link is only for that.
pub(crate) async fn who_answers(shared: &Arc<Shared>, address: SocketAddr) -> Result<NodeName, ConnectError> {
    let broken = |_| ConnectError::Broken;
    let asking = async {
        let endpoint = shared.endpoint().ok_or(ConnectError::Shutdown)?;
        let link = endpoint.dial_anyone(&shared.tls, address).await?;
        let channel = channel(shared, &link)?;
        // A peer that has met this node refuses a greeting that is not its session's, so it is to be known by its
        // certificate. One of a cookie's tells which node it is; one of a PKI may be for several, and these say it themselves.
        let mut met = shared.names_met();
        met.retain(|name| (channel.certified)(name).is_ok());
        if channel.mode == Mode::Cookie
            && let Some(met) = met.pop()
        {
            link.close(Code::NORMAL, b"");
            return Ok((met, Vec::new()));
        }
        let (mut machine, hello) = Handshake::inquire(shared.local(), channel, Greeting::default());
        let Output::Send(hello) = hello else { return Err(ConnectError::Protocol) };
        let (mut send, mut recv) = link.open_greeting().await.map_err(broken)?;
        send.write(&hello).await.map_err(broken)?;
        let Ok(frame) = read_frame(&mut recv).await else {
            // It says why.
            let Failure { error, code, .. } = link.closed().await.into();
            let likely = met.into_iter().max_by_key(|name| shared.likeness(name, address));
            return match likely.filter(|_| code == Some(Code::STALE_LINK)) {
                Some(met) => Ok((met, Vec::new())),
                None => Err(error),
            };
        };
        let outputs = machine.handle(Input::Frame(frame));
        link.close(Code::NORMAL, b"");
        let answers = outputs.into_iter().find_map(|output| match output {
            Output::Judge(peer) => Some((peer.id.name().clone(), peer.addresses)),
            _ => None,
        });
        answers.ok_or(ConnectError::Protocol)
    };
    let patience = shared.config.connect_timeout;
    let (name, addresses) = timeout(patience, asking).await.unwrap_or(Err(ConnectError::Timeout(patience)))?;
    shared.remember_places(&name, addresses.into_iter().chain([address]));
    Ok(name)
}

impl Shared {
    /// Names of nodes that this one knows or has known, its own too: with those of peers, all that it may have counts of.
    fn names_met(&self) -> Vec<NodeName> {
        let mut names: Vec<_> = self.sessions().iter().map(|session| session.peer.name().clone()).collect();
        names.push(self.id().name().clone());
        names.extend(self.members.snapshot().into_iter().map(|member| member.id.name().clone()));
        names.extend(lock(&self.advertised).keys().cloned());
        names
    }

    /// How well an address goes with a name, to tell names apart: it may be a place of that node, or only have its port.
    fn likeness(&self, name: &NodeName, address: SocketAddr) -> u8 {
        let is_named = matches!(name.host(), HostName::Ip(ip) if SocketAddr::new(ip, name.port()) == address);
        let is_known = is_named || self.advertised(name).contains(&address);
        2 * u8::from(is_known) + u8::from(name.port() == address.port())
    }

    /// A node was met at these addresses, or says that it is there.
    fn remember_places(&self, name: &NodeName, places: impl Iterator<Item = SocketAddr>) {
        let mut advertised = lock(&self.advertised);
        if !advertised.contains_key(name) && advertised.len() >= self.config.peers_remembered {
            advertised.pop_first();
        }
        let known = advertised.entry(name.clone()).or_default();
        for place in places {
            known.retain(|known| *known != place);
            known.insert(0, place);
        }
        known.truncate(ADDRESSES_MAX);
    }
}
