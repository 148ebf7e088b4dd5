//! The node task.
//!
//! The task decides which links to dial and keep and which session each serves, and who is a member and lives; it owns the
//! only [`proto::node`](crate::proto::node), and the machines of elections. It waits for commands, deadlines, arrivals and
//! packets, never for a socket. Payload does not pass it: handles and links meet in [`session`].

mod admission;
pub(crate) mod asks;
pub(crate) mod calls;
pub(crate) mod carrier;
pub(crate) mod clock;
pub(crate) mod counters;
pub(crate) mod delivery;
pub(crate) mod disputes;
pub(crate) mod elections;
pub(crate) mod events;
pub(crate) mod exchange;
pub(crate) mod facts;
pub(crate) mod groups;
pub(crate) mod journal;
pub(crate) mod leaders;
pub(crate) mod mailboxes;
pub(crate) mod members;
pub(crate) mod monitors;
pub(crate) mod names;
pub(crate) mod packets;
pub(crate) mod peers;
mod sequence;
pub(crate) mod services;
pub(crate) mod session;
mod shared;
mod shutdown;
pub(crate) mod subscriber;
#[cfg(all(test, feature = "sim"))]
mod tests;
pub(crate) mod trust;
pub(crate) mod votes;
pub(crate) mod waiting;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

use self::admission::{Admitted, Door};
use self::asks::Asks;
use self::calls::Methods;
use self::carrier::{Carrier, Greeted, membership_path};
use self::clock::Clock;
use self::counters::{Accounts, CallCounters, Tallies};
use self::elections::{Ask, Elections};
use self::events::Events;
use self::facts::Facts;
use self::groups::Groups;
use self::journal::{By, Journal, link_span, target};
use self::leaders::Leaders;
use self::mailboxes::{Mailboxes, RefusedHook};
use self::members::{Members, PathVitals, PeerVitals};
use self::monitors::Monitors;
use self::names::Names;
use self::packets::{Arrived, Content, PacketCounters, arrivals};
use self::peers::Failure;
use self::services::{Requests, Services};
use self::session::{Gap, Session};
#[cfg(test)]
use self::shared::Census;
pub(crate) use self::shared::{PoolChange, Shared, decoding_node, inside};
use self::votes::VoteDir;
use crate::config::Config;
use crate::error::{ConnectError, DownReason};
use crate::id::{ClusterName, NodeId, NodeName};
use crate::identity::{AuthError, Role};
use crate::proto::hello::{Greeting, Peer, Refusal};
use crate::proto::lanes::Pool;
use crate::proto::links::{self, CheckId, Limits, LinkId, SessionId};
use crate::proto::membership::{self, Member, MemberEvent, MemberState, Profile};
use crate::proto::node::{self, Input, Output, Setup};
use crate::transport::link::{End, Path};
use crate::transport::tls::{Credentials, Tls};
use crate::transport::{Arrival, Endpoint};
use crate::wire::services::is_elections;
use crate::wire::{Code, NodeFlags};

/// A poisoned lock only says that another task panicked; what it guards is consistent between moves.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who waits for a session, and since when.
#[derive(Debug)]
struct Waiter {
    since: Instant,
    done: oneshot::Sender<Result<Arc<Session>, ConnectError>>,
}

/// What the node task is asked for. The senders are bounded: links, and callers who wait for the answer.
#[derive(Debug)]
pub(crate) enum Command {
    /// A session is needed; an urgent one does not wait for the back-off.
    Connect {
        peer: NodeName,
        urgent: bool,
        done: Option<oneshot::Sender<Result<Arc<Session>, ConnectError>>>,
    },
    Disconnect {
        peer: NodeName,
    },
    Ping {
        peer: NodeName,
        done: oneshot::Sender<Option<oneshot::Receiver<()>>>,
    },
    Arrived {
        arrival: Box<Arrival>,
    },
    Judge {
        link: LinkId,
        role: Role,
        peer: Box<Peer>,
        verdict: oneshot::Sender<Result<Greeting, Refusal>>,
    },
    LinkGreeted {
        link: LinkId,
        greeted: Box<Greeted>,
    },
    LinkFailed {
        link: LinkId,
        failure: Failure,
    },
    LinkStopping {
        link: LinkId,
    },
    LinkEnded {
        link: LinkId,
        end: End,
    },
    Checked {
        check: CheckId,
        alive: bool,
    },
    /// What this node presents, or whom it trusts, may have changed. Answers whose links were closed or are about to be, and
    /// then once no link presents what this node no longer does.
    Recheck {
        swept: Option<oneshot::Sender<Vec<NodeName>>>,
        exchanged: Option<oneshot::Sender<()>>,
    },
    /// A link whose peer is no longer let in.
    Distrusted {
        link: LinkId,
        why: AuthError,
    },
    /// To which peers a link presents what this node no longer does.
    Behind {
        done: oneshot::Sender<Vec<NodeName>>,
    },
    /// Others know a later life of this node's name.
    ToldStale {
        known: u64,
    },
    SetMetadata {
        metadata: Bytes,
    },
    /// Answers false when there is no room for the fact.
    Publish {
        topic: String,
        body: Bytes,
        done: oneshot::Sender<bool>,
    },
    MembershipCounters {
        done: oneshot::Sender<membership::MembershipCounters>,
    },
    /// How the peers are, in any order.
    Health {
        done: oneshot::Sender<Vec<PeerVitals>>,
    },
    /// Answered once the good-bye is told.
    Leave {
        done: oneshot::Sender<()>,
    },
    RegistryStats {
        done: oneshot::Sender<node::services::RegistryStats>,
    },
    /// For the services.
    Service(node::services::Input),
    Election(Ask),
    /// Names and memberships in groups are over.
    Withdraw {
        done: oneshot::Sender<()>,
    },
    /// The end begins; handlers and links may take until then.
    Stop {
        by: Instant,
    },
}

/// What a node is started from, once all of it is checked.
pub(crate) struct Start {
    pub(crate) config: Config,
    pub(crate) cluster: ClusterName,
    pub(crate) id: NodeId,
    pub(crate) endpoint: Endpoint,
    pub(crate) tls: Tls,
    pub(crate) on_refused: Option<RefusedHook>,
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) flags: NodeFlags,
    pub(crate) seed: u64,
    pub(crate) services: Services,
    pub(crate) clock: Clock,
    pub(crate) votes: Option<VoteDir>,
}

/// Starts the node task.
pub(crate) fn start(start: Start) -> Arc<Shared> {
    let Start { config, cluster, id, endpoint, tls, on_refused, addresses, flags, seed, services, clock, votes } =
        start;
    let (commands, inbox) = mpsc::unbounded_channel();
    let limits = Limits {
        backoff_min: config.backoff_min,
        backoff_max: config.backoff_max,
        peers_max: config.peers_max,
        remembered_max: config.peers_remembered,
    };
    let setup = Setup {
        id: id.clone(),
        fingerprint: tls.life_key(),
        limits,
        profile: Profile { addresses: addresses.clone(), flags, metadata: Bytes::new() },
        params: members::params(&config),
        services: services::setup(&config, &services, flags.client),
        seed,
    };
    let (arrivals, packets) = arrivals();
    let own = Member {
        id: id.clone(),
        state: MemberState::Alive,
        refutation: 0,
        metadata: Bytes::new(),
        addresses: addresses.clone(),
        not_dialable: flags.not_dialable,
        client: flags.client,
    };
    let shared = Arc::new(Shared {
        mailboxes: Mailboxes::default(),
        methods: Methods::new(config.handlers_max, config.calls_budget),
        asks: Asks::new(config.calls_max),
        counters: CallCounters::default(),
        accounts: Accounts::default(),
        tallies: Mutex::default(),
        started: tokio::time::Instant::now(),
        packets: PacketCounters::default(),
        journal: Journal::default(),
        arrivals,
        events: Events::new(config.events_max),
        members: Members::new(config.events_max, own),
        facts: Facts::new(config.events_max),
        names: Names::new(config.events_max, services.scopes, services.resolver, services.resolvers),
        groups: Groups::new(id.clone(), config.events_max, config.groups_max),
        monitors: Monitors::default(),
        leaders: Leaders::new(clock, votes),
        requests: Requests::default(),
        pool: Arc::new(Mutex::new(Pool::new(config.window_budget_total as u64, config.bulk_budget_total as u64))),
        config,
        cluster,
        endpoint: Mutex::new(Some(endpoint)),
        tls,
        on_refused,
        addresses,
        flags,
        id: RwLock::new(id),
        sessions: RwLock::default(),
        advertised: Mutex::default(),
        commands,
        wanted: Mutex::default(),
        is_stopping: AtomicBool::new(false),
        is_closing: AtomicBool::new(false),
        stopped: watch::Sender::new(false),
        #[cfg(test)]
        census: Mutex::default(),
        #[cfg(test)]
        told: watch::Sender::default(),
    });
    let node = Node {
        shared: shared.clone(),
        node: node::Node::new(setup, now()),
        elections: Elections::default(),
        farewell: Farewell::No,
        is_contested: false,
        left: Vec::new(),
        entries: HashMap::new(),
        sessions: HashMap::new(),
        waiting: BTreeMap::new(),
        exchanging: Vec::new(),
        coming_up: BTreeSet::new(),
        presented: shared.tls.current(),
        door: Door::new(&shared.config),
        tasks: JoinSet::new(),
    };
    let span = tracing::info_span!(target: target::NODE, parent: None, "node", node = %shared.id().name());
    tokio::spawn(tracing::Instrument::instrument(node.run(inbox, packets), span));
    shared
}

/// The node task's own.
struct Node {
    shared: Arc<Shared>,
    node: node::Node,
    elections: Elections,
    farewell: Farewell,
    /// It is being found out whether another life of this node's name is up.
    is_contested: bool,
    /// Who waits until this node has left.
    left: Vec<oneshot::Sender<()>>,
    entries: HashMap<LinkId, Entry>,
    sessions: HashMap<SessionId, Arc<Session>>,
    /// Who waits for a session with a name.
    waiting: BTreeMap<NodeName, Vec<Waiter>>,
    /// Who waits until no link presents what this node no longer does.
    exchanging: Vec<oneshot::Sender<()>>,
    /// Links that they wait for, because what these present was settled before.
    coming_up: BTreeSet<LinkId>,
    /// What this node presented when links were last looked at.
    presented: Arc<Credentials>,
    /// Arrivals that are not up yet, and who may become one.
    door: Door,
    tasks: JoinSet<()>,
}

/// Whether the other members were told that this node leaves. Its links are closed after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Farewell {
    No,
    /// They are being told, until then at most.
    Until(Instant),
    Said,
}

/// What the node task holds of one link.
#[derive(Default)]
struct Entry {
    session: Option<SessionId>,
    verdict: Option<oneshot::Sender<Result<Greeting, Refusal>>>,
    greeted: Option<Box<Greeted>>,
    carrier: Option<Arc<Carrier>>,
    task: Option<AbortHandle>,
    /// When its dial began, if it was dialled here.
    dialled: Option<Instant>,
    error: Option<ConnectError>,
    /// It was accepted, and is not up yet.
    admitted: Option<Admitted>,
}

impl Entry {
    /// Whether it serves a session, and its greeting is not over on this side.
    fn is_coming_up(&self) -> bool {
        self.session.is_some() && self.greeted.is_none() && self.carrier.is_none()
    }
}

/// How long a node that leaves tells the others so, at most.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a node that has stopped waits for its last packets to be acknowledged.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Node {
    async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>, mut packets: mpsc::Receiver<Arrived>) {
        let accepting = self.tasks.spawn(accept(self.shared.clone()));
        self.tasks.spawn(trust::watch(self.shared.clone()));
        let mut deadline = None;
        self.drain_outputs();
        loop {
            let goodbye = match self.farewell {
                Farewell::Until(due) => Some(due),
                Farewell::No | Farewell::Said => None,
            };
            let election = self.elections.poll_timeout(&self.shared.leaders);
            let timeout = [self.node.poll_timeout(), election, goodbye, deadline].into_iter().flatten().min();
            // Each branch does its move and returns here: nothing below waits.
            tokio::select! {
                biased;
                () = sleep_until(timeout) => {
                    // Whoever is about to be judged may have answered: what has come by now is read first, and no more.
                    self.read_arrived(&mut packets);
                    self.timeout();
                    if deadline.is_some_and(|deadline| now() >= deadline) {
                        break;
                    }
                }
                Some(command) = inbox.recv() => {
                    if let Command::Stop { by } = &command
                        && deadline.is_none()
                    {
                        tracing::info!(target: target::NODE, "stopping");
                        deadline = Some(Self::links_end(*by));
                        accepting.abort();
                    }
                    if matches!(command, Command::LinkEnded { .. }) {
                        // What a link has brought came before its end.
                        self.read_arrived(&mut packets);
                    }
                    self.handle(command);
                }
                Some(arrived) = packets.recv() => self.handle_arrived(arrived),
                Some(_) = self.tasks.join_next() => {}
            }
            self.drain_outputs();
            self.tell_exchanged();
            *lock(&self.shared.tallies) = Tallies {
                membership: *self.node.membership().counters(),
                registry: self.node.registry_stats(),
                admission: self.door.counters(),
            };
            #[cfg(test)]
            self.count();
            if deadline.is_some() && self.farewell == Farewell::Said && self.entries.is_empty() {
                break;
            }
        }
        self.finish().await;
    }

    fn timeout(&mut self) {
        let now = now();
        // What their applications sent did not pass here.
        for peer in self.node.judged(now) {
            let session = self.shared.session(peer.name()).filter(|session| session.peer == peer);
            let carrier = session.and_then(|session| self.carrier_of(&session));
            if let Some(at) = carrier.and_then(|carrier| carrier.last_received()) {
                self.node.handle(Input::Heard { peer, at }, now);
            }
        }
        self.node.handle_timeout(now);
        self.elections_timeout();
        self.shared.members.set_score(self.node.membership().score());
        if matches!(self.farewell, Farewell::Until(due) if due <= now) {
            self.goodbye_said();
        }
    }

    /// Handles what waits by now, and no more.
    fn read_arrived(&mut self, packets: &mut mpsc::Receiver<Arrived>) {
        for _ in 0..packets.len() {
            let Ok(arrived) = packets.try_recv() else { return };
            self.handle_arrived(arrived);
        }
    }

    fn handle_arrived(&mut self, arrived: Arrived) {
        let Arrived { from, content, .. } = arrived;
        match content {
            Content::Packet { packet, .. } if is_elections(&packet) => self.election_packet(&from, packet),
            Content::Packet { way, path, packet } => {
                self.node.handle(Input::Packet { from, way, path, packet }, now());
            }
            Content::Service { session, frame } => {
                // Of a session that has ended the services know no more.
                if !self.sessions.contains_key(&session) {
                    return;
                }
                self.tell_services(node::services::Input::Frame { from, frame });
            }
        }
        self.drain_outputs();
    }

    fn tell_services(&mut self, input: node::services::Input) {
        #[cfg(test)]
        self.shared.told.send_modify(|told| told.push(input.clone()));
        self.node.handle(Input::Service(input), now());
    }

    /// Tells the other members that this node leaves, unless they were told.
    fn say_goodbye(&mut self) {
        if self.farewell == Farewell::No {
            self.resign_elections();
            self.farewell = Farewell::Until(now() + GOODBYE);
            self.withdraw();
            self.node.handle(Input::Leave, now());
        }
    }

    /// Now the links stop. What they still have to write is written.
    fn goodbye_said(&mut self) {
        if self.farewell != Farewell::Said {
            self.farewell = Farewell::Said;
            self.node.handle(Input::Shutdown, now());
        }
        for done in self.left.drain(..) {
            let _ = done.send(());
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Connect { peer, urgent, done } => {
                if done.is_none() {
                    lock(&self.shared.wanted).remove(&peer);
                }
                if self.farewell != Farewell::No {
                    // Nothing is dialled any more.
                    return drop(done.map(|done| done.send(Err(ConnectError::Shutdown))));
                }
                let is_linked = self.shared.session(&peer).filter(|session| self.is_linked(session));
                match (is_linked, done) {
                    (Some(session), Some(done)) => return drop(done.send(Ok(session))),
                    (Some(_), None) => {}
                    (None, Some(done)) => {
                        let waiting = self.waiting.entry(peer.clone()).or_default();
                        waiting.retain(|waiter| !waiter.done.is_closed());
                        waiting.push(Waiter { since: now(), done });
                    }
                    (None, None) => {}
                }
                self.node.handle(Input::Want { peer, urgent }, now());
            }
            Command::Disconnect { peer } => {
                if self.shared.session(&peer).is_some_and(|session| !session.is_closing()) {
                    self.shared.journal.disconnects(&peer, By::User);
                }
                self.node.handle(Input::Disconnect { peer: peer.clone() }, now());
                self.drain_outputs();
                self.answer_waiting(&peer, &Err(ConnectError::Broken));
            }
            Command::Ping { peer, done } => {
                let carrier = self.shared.session(&peer).and_then(|session| self.carrier_of(&session));
                let _ = done.send(carrier.map(|carrier| carrier.ping()));
            }
            Command::Arrived { arrival } => self.arrived(*arrival),
            Command::Judge { link, role, peer, verdict } => {
                let Some(entry) = self.entries.get_mut(&link) else {
                    // The link was given up while it asked.
                    return drop(verdict.send(Err(Code::STALE_LINK.into())));
                };
                entry.verdict = Some(verdict);
                self.node.handle(Input::Greeted { link, role, peer }, now());
            }
            Command::LinkGreeted { link, greeted } => {
                let Some(entry) = self.entries.get_mut(&link) else {
                    return greeted.link.close(Code::STALE_LINK, b"");
                };
                if let Some(admitted) = entry.admitted.take() {
                    self.door.over(admitted);
                }
                let path = membership_path(&greeted.link);
                let distrusted = self.shared.no_longer_trusts(&greeted);
                let is_outdated = greeted.link.is_outdated(&self.shared.tls);
                entry.greeted = Some(greeted);
                if let Some(why) = distrusted {
                    return self.distrust(link, &why);
                }
                self.node.handle(Input::Ready { link, path }, now());
                if is_outdated {
                    self.node.handle(Input::Outdated { link }, now());
                }
            }
            Command::LinkFailed { link, failure } => {
                if let Some(admitted) = self.entries.get(&link).and_then(|entry| entry.admitted) {
                    self.door.failed(admitted, &failure);
                }
                let Failure { error, code, known_incarnation, live_incarnation } = failure;
                if let Some(entry) = self.entries.get_mut(&link) {
                    entry.error = Some(error);
                }
                // First, so that what is dialled next speaks of the new life.
                if let Some(known) = known_incarnation {
                    self.node.handle(Input::ToldStale { known }, now());
                }
                self.node.handle(Input::Closed { link, code }, now());
                self.drain_outputs();
                self.forget(link);
                // Only who was a member is over: a newcomer whose name is taken may wait until it is free.
                if let Some(live) = live_incarnation
                    && self.node.membership().members().nth(1).is_some()
                {
                    let own = self.shared.id();
                    self.superseded(NodeId::new(own.name().clone(), live));
                }
            }
            Command::LinkStopping { link } => self.node.handle(Input::Stopping { link }, now()),
            Command::LinkEnded { link, end } => {
                let carrier = self.entries.get(&link).and_then(|entry| entry.carrier.as_ref());
                // Whoever ended the link knows why. What broke here because it had ended is no reason.
                let code = match end {
                    End::Closed { by_peer: false, code, .. } => {
                        carrier.and_then(|carrier| carrier.closed_with()).or(Some(code))
                    }
                    end => end.code(),
                };
                let is_agreed = carrier.is_some_and(|carrier| carrier.is_agreed());
                if carrier.is_some_and(|carrier| carrier.is_drained()) {
                    self.drained(link);
                }
                // A peer that says good-bye before all was read breaks the session, whatever it calls it.
                let code = code.map(|code| if code.keeps_session() && !is_agreed { Code::PROTOCOL } else { code });
                self.node.handle(Input::Closed { link, code }, now());
                self.drain_outputs();
                self.forget(link);
            }
            Command::Recheck { swept, exchanged } => self.recheck(swept, exchanged),
            Command::Distrusted { link, why } => self.distrust(link, &why),
            Command::Behind { done } => drop(done.send(self.behind())),
            Command::ToldStale { known } => {
                self.is_contested = false;
                self.node.handle(Input::ToldStale { known }, now());
            }
            Command::Checked { check, alive } => self.node.handle(Input::CheckAnswered { check, alive }, now()),
            Command::SetMetadata { metadata } => self.node.handle(Input::SetMetadata { metadata }, now()),
            Command::Publish { topic, body, done } => {
                let has_room = self.node.membership().has_room();
                if has_room {
                    self.node.handle(Input::Publish { topic, body }, now());
                }
                let _ = done.send(has_room);
            }
            Command::RegistryStats { done } => drop(done.send(self.node.registry_stats())),
            Command::MembershipCounters { done } => drop(done.send(*self.node.membership().counters())),
            Command::Health { done } => {
                let peers = self.sessions.values().map(|session| self.vitals(session)).collect();
                let _ = done.send(peers);
            }
            Command::Leave { done } => {
                self.left.push(done);
                match self.farewell {
                    Farewell::Said => self.goodbye_said(),
                    Farewell::No | Farewell::Until(_) => self.say_goodbye(),
                }
            }
            Command::Service(input) => {
                if let node::services::Input::Closed { serial, .. } = &input {
                    self.shared.mailboxes.closed(*serial);
                }
                self.tell_services(input);
            }
            Command::Election(ask) => self.elect(ask),
            Command::Withdraw { done } => {
                self.withdraw();
                self.drain_outputs();
                let _ = done.send(());
            }
            Command::Stop { .. } => {
                self.shared.begin_stop();
                self.shared.is_closing.store(true, Ordering::Release);
                self.say_goodbye();
            }
        }
    }

    /// The link has brought all answers that there will be. Of what another link of the session brings that is not known.
    fn drained(&self, link: LinkId) {
        let Some(session) = self.entries.get(&link).and_then(|entry| entry.session) else { return };
        let links = self.entries.values().filter(|entry| entry.session == Some(session));
        if let (1, Some(session)) = (links.count(), self.sessions.get(&session)) {
            session.drained();
        }
    }

    fn forget(&mut self, link: LinkId) {
        if let Some(admitted) = self.entries.remove(&link).and_then(|entry| entry.admitted) {
            self.door.over(admitted);
        }
    }

    #[cfg(test)]
    fn count(&self) {
        let mut census = lock(&self.shared.census);
        *census = Census {
            entries: self.entries.len(),
            handshakes: self.door.under_way(),
            handshakes_most: census.handshakes_most.max(self.door.under_way()),
            sessions: self.sessions.len(),
            waiting: self.waiting.values().map(Vec::len).sum(),
        };
    }

    fn carrier_of(&self, session: &Session) -> Option<Arc<Carrier>> {
        session.carrier().or_else(|| {
            let mut carriers = self.entries.values().filter(|entry| entry.session == Some(session.id));
            carriers.find_map(|entry| entry.carrier.clone())
        })
    }

    fn vitals(&self, session: &Session) -> PeerVitals {
        let carrier = self.carrier_of(session);
        let path = carrier.as_ref().map(|carrier| {
            let Path { rtt, packets_sent, packets_lost, .. } = carrier.link.path();
            PathVitals { rtt, packets_sent, packets_lost }
        });
        // To membership, or by whatever its application sent.
        let answered = self.node.membership().last_heard(session.peer.name());
        let received = carrier.and_then(|carrier| carrier.last_received());
        PeerVitals { peer: session.peer.clone(), path, last_heard: answered.max(received) }
    }

    fn is_linked(&self, session: &Session) -> bool {
        session.carrier().is_some()
    }

    fn drain_outputs(&mut self) {
        while let Some(output) = self.node.poll_output() {
            self.act(output);
        }
    }

    fn act(&mut self, output: Output) {
        match output {
            Output::Link(output) => self.act_on_links(output),
            Output::Send { to, way, rank, packet } => {
                // A link that stops still carries datagrams, and its stream to the end.
                let session = self.shared.session(to.name()).filter(|session| session.peer == to);
                match session.and_then(|session| self.carrier_of(&session)) {
                    Some(carrier) => carrier.send_packet(way, rank, packet),
                    None => self.shared.packets.dropped_out(1),
                }
            }
            Output::Event(event) => {
                match &event {
                    MemberEvent::Joined(member)
                    | MemberEvent::Replaced { member, .. }
                    | MemberEvent::Returned(member)
                    | MemberEvent::Updated(member) => {
                        self.shared.remember_addresses(member.id.name(), &member.addresses);
                    }
                    _ => {}
                }
                Journal::member(&event);
                self.tell_elections(&event);
                self.door.members_changed(&event);
                self.shared.members.apply(event);
            }
            Output::Fact { from, topic, body } => self.shared.facts.deliver(from, &topic, body),
            Output::Superseded { by } => self.superseded(by),
            Output::GoodbyeSaid => self.goodbye_said(),
            Output::Service(output) => self.act_on_services(output),
        }
    }

    /// Others hold a later life of this node's name for live. Asks whether it is, and who is to give way.
    fn superseded(&mut self, by: NodeId) {
        if self.is_contested || by.incarnation() <= self.shared.id().incarnation() {
            return;
        }
        self.is_contested = true;
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            if !peers::is_taken_over(shared.clone()).await {
                // A life that is over, or never was: this one goes on as a later one still.
                return shared.command(Command::ToldStale { known: by.incarnation() });
            }
            tracing::error!(target: target::NODE, %by, "a later life of this node's name took its place: this one stops");
            shared.events.superseded(by);
            let by = shared.stop_by();
            shared.drain(by).await;
            shared.command(Command::Stop { by });
        });
    }

    fn act_on_links(&mut self, output: links::Output) {
        use links::Output;
        match output {
            Output::Dial { link, peer, greeting } => {
                let span = link_span(link, journal::End::Dialled(&peer));
                tracing::debug!(target: target::LINK, parent: &span, %peer, link = link.0, "dialling");
                let task = peers::dial(self.shared.clone(), link, peer, greeting);
                let task = self.tasks.spawn(tracing::Instrument::instrument(task, span));
                self.entries.insert(link, Entry { task: Some(task), dialled: Some(now()), ..Entry::default() });
            }
            Output::NotDialable { peer } => {
                let error = ConnectError::NotDialable(peer.clone());
                self.answer_waiting(&peer, &Err(error));
            }
            Output::GaveUp { link, peer } => {
                let entry = self.entries.get(&link);
                let error = entry.and_then(|entry| entry.error.clone()).unwrap_or(ConnectError::Broken);
                let began = entry.and_then(|entry| entry.dialled);
                self.shared.journal.dial_failed(&peer, &error);
                self.dial_failed(&peer, began, error);
            }
            Output::Accept { link, session, greeting } => {
                let Some(entry) = self.entries.get_mut(&link) else {
                    // It ended while it waited for the verdict.
                    return self.node.handle(Input::Closed { link, code: None }, now());
                };
                entry.session = Some(session);
                if let Some(verdict) = entry.verdict.take() {
                    let _ = verdict.send(Ok(greeting));
                }
            }
            Output::Refuse { link, refusal } => {
                if let Some(verdict) = self.entries.get_mut(&link).and_then(|entry| entry.verdict.take()) {
                    let _ = verdict.send(Err(refusal));
                }
            }
            Output::SessionUp { session, peer } => {
                self.shared.journal.session_up(&peer.id);
                let name = peer.id.name().clone();
                self.shared.remember_addresses(&name, &peer.addresses);
                let made = Session::new(session, &peer, &self.shared);
                self.sessions.insert(session, made.clone());
                self.shared.accounts.open(&made);
                self.shared.sessions.write().unwrap_or_else(PoisonError::into_inner).insert(name, made);
                self.shared.events.up(peer.id);
            }
            Output::Activate { session, link } => {
                let carrier = self.carrier(link);
                let Some((session, carrier)) = self.sessions.get(&session).cloned().zip(carrier) else { return };
                session.attach(&carrier);
                let name = session.peer.name().clone();
                self.door.met(&name, carrier.link.address().ip());
                self.answer_waiting(&name, &Ok(session));
            }
            Output::Stop { link, code } => {
                if let Some(carrier) = self.carrier(link) {
                    carrier.stop(code);
                }
            }
            Output::Close { link, code } => self.close(link, code),
            Output::SessionEnded { session, peer, reason } => {
                let Some(ended) = self.sessions.remove(&session) else { return };
                // One without a link can only have been ended here, for its place.
                let is_linked = self.entries.values().any(|entry| entry.session == Some(session));
                if reason == DownReason::Overloaded && !is_linked {
                    self.shared.journal.disconnects(&peer, By::Room);
                }
                self.shared.journal.session_ended(&peer, reason);
                let mut sessions = self.shared.sessions.write().unwrap_or_else(PoisonError::into_inner);
                if sessions.get(peer.name()).is_some_and(|present| present.id == session) {
                    sessions.remove(peer.name());
                }
                drop(sessions);
                ended.end(reason);
                self.shared.accounts.close(session);
                self.shared.asks.session_ended(session);
                self.shared.events.down(peer.clone(), reason);
                // Who asked for a link while this one went wants the next session.
                if self.waiting.contains_key(peer.name()) {
                    self.node.handle(Input::Want { peer: peer.name().clone(), urgent: false }, now());
                }
            }
            Output::SessionIdle { session, peer } => {
                let Some(session) = self.sessions.get(&session) else { return };
                let gap = session.gap();
                if gap == Gap::Stays {
                    self.shared.journal.disconnects(&peer, By::Gap);
                    return self.node.handle(Input::Disconnect { peer }, now());
                }
                // Nobody can dial this one, so its links are kept: one that was stopped is to be replaced.
                let is_kept = self.shared.flags.not_dialable && self.farewell == Farewell::No;
                if gap == Gap::New || session.is_pending() || self.waiting.contains_key(&peer) || is_kept {
                    self.node.handle(Input::Want { peer, urgent: false }, now());
                }
            }
            Output::Check { check, old, link, greeting } => self.check(check, old, link, greeting),
            Output::Conflict { live, refused } => {
                self.shared.journal.life_refused(&live, &refused);
                self.shared.events.conflict(live, refused);
            }
            Output::Renewed { id } => {
                tracing::warn!(target: target::NODE, %id, "a later life of this name was known: this node goes on as another incarnation");
                *self.shared.id.write().unwrap_or_else(PoisonError::into_inner) = id.clone();
                self.shared.renew_groups(&id);
                self.renew_elections(&id);
                self.shared.events.renewed(id);
            }
        }
    }

    /// The link at work; it starts to work when it is first asked for.
    fn carrier(&mut self, link: LinkId) -> Option<Arc<Carrier>> {
        let entry = self.entries.get_mut(&link)?;
        if entry.carrier.is_none() {
            let session = self.sessions.get(&entry.session?)?;
            let greeted = entry.greeted.take()?;
            let is_kept = self.shared.flags.not_dialable || session.peer_flags.not_dialable;
            entry.task = None;
            let span = journal::End::Peer { peer: &session.peer, is_dialled: entry.dialled.is_some() };
            let task = (link_span(link, span), &mut self.tasks);
            entry.carrier = Some(Carrier::start(link, *greeted, session, &self.shared, is_kept, task));
        }
        entry.carrier.clone()
    }

    fn close(&mut self, link: LinkId, code: Code) {
        let Some(entry) = self.entries.get_mut(&link) else { return };
        if let Some(carrier) = &entry.carrier {
            // Its task reports the end.
            return carrier.close(code);
        }
        if let Some(greeted) = entry.greeted.take() {
            greeted.link.close(code, b"");
        } else if let Some(verdict) = entry.verdict.take() {
            let _ = verdict.send(Err(code.into()));
            return;
        }
        if let Some(task) = entry.task.take() {
            task.abort();
        }
        entry.error = Some(match code {
            Code::SHUTDOWN => ConnectError::Shutdown,
            Code::TRUST_CHANGED => ConnectError::Auth(AuthError::TrustChanged),
            _ => ConnectError::Broken,
        });
        self.node.handle(Input::Closed { link, code: Some(code) }, now());
        self.drain_outputs();
        self.forget(link);
    }

    fn check(&mut self, check: CheckId, old: NodeId, link: Option<LinkId>, greeting: Greeting) {
        tracing::debug!(target: target::CONFLICT, %old, "asking an old life whether it lives");
        let ping = link.and_then(|link| self.carrier(link)).map(|carrier| carrier.ping());
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            let alive = match ping {
                Some(pong) => matches!(tokio::time::timeout(shared.config.conflict_check, pong).await, Ok(Ok(()))),
                None => peers::answers(shared.clone(), old, greeting).await,
            };
            shared.command(Command::Checked { check, alive });
        });
    }

    fn answer_waiting(&mut self, peer: &NodeName, outcome: &Result<Arc<Session>, ConnectError>) {
        for waiter in self.waiting.remove(peer).into_iter().flatten() {
            let _ = waiter.done.send(outcome.clone());
        }
    }

    /// A dial has failed that began then: whoever waited for it is told. Who came while it was under way has a dial of its
    /// own, because the reason may be gone: membership dials those who are cut off again and again.
    fn dial_failed(&mut self, peer: &NodeName, began: Option<Instant>, error: ConnectError) {
        let waiting = self.waiting.remove(peer).unwrap_or_default();
        let is_later = |waiter: &Waiter| began.is_some_and(|began| waiter.since > began);
        let (later, earlier): (Vec<_>, Vec<_>) = waiting.into_iter().partition(is_later);
        self.waiting.insert(peer.clone(), earlier);
        self.answer_waiting(peer, &Err(error));
        if !later.is_empty() {
            self.waiting.insert(peer.clone(), later);
            self.node.handle(Input::Want { peer: peer.clone(), urgent: true }, now());
        }
    }

    /// Ends what is left, after the links have stopped or the time for it is over.
    async fn finish(mut self) {
        for (_, session) in self.sessions.drain() {
            self.shared.journal.session_ended(&session.peer, DownReason::Shutdown);
            session.end(DownReason::Shutdown);
            self.shared.accounts.close(session.id);
            self.shared.events.down(session.peer.clone(), DownReason::Shutdown);
        }
        self.shared.sessions.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.shared.methods.end();
        self.shared.asks.end_all();
        for waiter in std::mem::take(&mut self.waiting).into_values().flatten() {
            let _ = waiter.done.send(Err(ConnectError::Shutdown));
        }
        self.tasks.shutdown().await;
        self.entries.clear();
        let endpoint = lock(&self.shared.endpoint).take();
        if let Some(endpoint) = endpoint {
            endpoint.close(LAST_WORDS).await;
        }
        // First, because a closed mailbox takes no notices.
        self.shared.monitors.close();
        self.shared.leaders.close();
        self.shared.mailboxes.close_all();
        self.shared.events.close();
        self.shared.members.close();
        self.shared.facts.close();
        self.shared.names.close();
        self.shared.groups.close();
        self.shared.requests.close();
        tracing::info!(target: target::NODE, "stopped");
        self.shared.stopped.send_replace(true);
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

async fn accept(shared: Arc<Shared>) {
    let Some(endpoint) = shared.endpoint() else { return };
    while let Some(arrival) = endpoint.accept().await {
        shared.command(Command::Arrived { arrival: Box::new(arrival) });
    }
}
