//! Ways into a cluster: where its members may be found, asked again and again.

mod report;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

pub(crate) use self::report::Joins;
pub use self::report::{JoinOutcome, JoinReport};
use crate::driver::journal::target;
use crate::driver::{Shared, peers};
use crate::error::ConnectError;
use crate::id::{HostName, NameError, NodeName};
use crate::proto::membership::Member;

/// Where members may be found now: a list that somebody else keeps, such as a file, a cloud's API or a service
/// registry.
///
/// Give it to [`Builder::discover`](crate::Builder::discover). For a DNS name there is [`Dns`].
///
/// ```
/// use std::{io, pin::Pin};
/// use distribute::{Contact, Discovery};
///
/// /// A name in each line of a file, which may change while the node runs.
/// struct Lines(std::path::PathBuf);
///
/// impl Discovery for Lines {
///     fn contacts(&self) -> Pin<Box<dyn Future<Output = io::Result<Vec<Contact>>> + Send + '_>> {
///         Box::pin(async {
///             let text = std::fs::read_to_string(&self.0)?;
///             Ok(text.lines().filter_map(|line| line.parse().ok()).map(Contact::Node).collect())
///         })
///     }
/// }
/// ```
pub trait Discovery: Send + Sync + 'static {
    /// Returns where members may be. Any order will do, and this node may be among them.
    ///
    /// It is called as often as the node looks for others, has
    /// [`Config::connect_timeout`](crate::Config::connect_timeout) to answer, and is dropped then. An error or a panic
    /// is logged, and it is asked again the next time.
    fn contacts(&self) -> Pin<Box<dyn Future<Output = io::Result<Vec<Contact>>> + Send + '_>>;
}

/// A place where a member may be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Contact {
    /// A node, by its name.
    Node(NodeName),
    /// An address. Whoever answers there and holds the cookie is a node of the cluster; the address may be a load
    /// balancer's.
    Address(SocketAddr),
    /// All addresses of a host, as of then, on the node's network.
    Host(HostName, u16),
}

/// A DNS name behind which members are: a headless service, a record with all addresses.
///
/// It is resolved anew each time, so it leads into the cluster even when the address of every member has changed.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Dns, Node};
///
/// let node = Node::builder("shop@127.0.0.1:0")
///     .cookie(Cookie::generate())
///     .discover(Dns::new("localhost:4370")?) // in production: "shop.internal:4370"
///     .start()
///     .await?;
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns(Contact);

impl Dns {
    /// A name to resolve, `host` or `host:port`. The port is that of the members there;
    /// [`DEFAULT_PORT`](crate::DEFAULT_PORT) unless it is given.
    ///
    /// # Errors
    /// [`NameError`] says what is wrong with the text.
    pub fn new(place: &str) -> Result<Self, NameError> {
        let anyone = NodeName::parse(&format!("any@{place}"))?;
        Ok(Self(Contact::Host(anyone.host(), anyone.port())))
    }
}

impl Discovery for Dns {
    fn contacts(&self) -> Pin<Box<dyn Future<Output = io::Result<Vec<Contact>>> + Send + '_>> {
        Box::pin(std::future::ready(Ok(vec![self.0.clone()])))
    }
}

/// All ways into the cluster that a node was given.
#[derive(Clone, Default)]
pub(crate) struct Ways {
    pub(crate) names: Vec<NodeName>,
    pub(crate) sources: Vec<Arc<dyn Discovery>>,
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ways").field("names", &self.names).field("sources", &self.sources.len()).finish()
    }
}

/// So many places are looked at in one round; of more, these are chosen by chance.
const CONTACTS_MAX: usize = 64;

/// So many are dialled at one time.
const PARALLEL: usize = 4;

/// The first pause of a node that finds nobody. It doubles up to `reconnect_interval`.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Looks for other members for as long as the node runs: all places while it sees no other, one at a time later, in
/// case that two clusters should be one.
pub(crate) async fn seek(shared: Arc<Shared>, ways: Ways, seed: u64, joins: Arc<Joins>) {
    let rng = fastrand::Rng::with_seed(seed);
    let mut seeker = Seeker { shared, ways, rng, known: HashMap::new(), joins, is_first: true };
    let shared = seeker.shared.clone();
    tokio::select! {
        () = shared.stopped() => {}
        () = seeker.run() => {}
    }
}

struct Seeker {
    shared: Arc<Shared>,
    ways: Ways,
    rng: fastrand::Rng,
    /// Who answered at addresses that name nobody, as of the last round.
    known: HashMap<SocketAddr, NodeName>,
    /// What has come of all that was tried.
    joins: Arc<Joins>,
    /// All places are tried once, whoever answers, so that it is known of each whether it is good for anything.
    is_first: bool,
}

impl Seeker {
    async fn run(&mut self) {
        let mut pause = FIRST_PAUSE;
        while !self.shared.is_stopping() && !self.shared.members.is_closed() {
            let contacts = self.contacts().await;
            self.known.retain(|address, _| contacts.contains(&Contact::Address(*address)));
            if self.is_alone() || self.is_first {
                self.try_all(contacts).await;
            } else {
                self.try_all(contacts.into_iter().take(1).collect()).await;
            }
            if self.is_alone() {
                let longest = self.shared.config.reconnect_interval;
                let next = self.jittered(pause.min(longest));
                pause = (pause * 2).min(longest);
                tokio::time::sleep(next).await;
            } else {
                pause = FIRST_PAUSE;
                let next = self.jittered(self.shared.config.sync_interval);
                let alone = self.shared.members.wait_for(|members| (members.live_count() <= 1).then_some(()));
                let _ = tokio::time::timeout(next, alone).await;
            }
        }
    }

    /// Whether there is nobody else, as far as membership knows, and nobody who could tell of others.
    fn is_alone(&self) -> bool {
        self.shared.members.live_count() <= 1
    }

    /// Less a random part of up to a half, so that a cluster that was started at once does not look around at once.
    fn jittered(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(1.0 - self.rng.f64() / 2.0)
    }

    /// Where members may be that are not known to live, in a random order.
    async fn contacts(&mut self) -> Vec<Contact> {
        let mut found: Vec<_> = self.ways.names.iter().cloned().map(Contact::Node).collect();
        let mut asked = JoinSet::new();
        for source in &self.ways.sources {
            let source = source.clone();
            let patience = self.shared.config.connect_timeout;
            asked.spawn(async move { tokio::time::timeout(patience, source.contacts()).await });
        }
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(Ok(contacts))) => found.extend(contacts),
                Ok(Ok(Err(error))) => tracing::warn!(%error, "a discovery failed"),
                Ok(Err(_)) => tracing::warn!("a discovery did not answer in time"),
                Err(error) => tracing::warn!(%error, "a discovery panicked"),
            }
        }
        let mut places = Vec::new();
        for contact in found {
            match contact {
                Contact::Host(host, port) => {
                    let Some(endpoint) = self.shared.endpoint() else { continue };
                    places.extend(endpoint.resolve_host(&host, port).await.into_iter().map(Contact::Address));
                }
                place => places.push(place),
            }
        }
        places.sort();
        places.dedup();
        let met = Met::new(self.shared.id().name(), &self.shared.members.snapshot());
        let (met, mut unmet): (Vec<_>, Vec<_>) =
            places.into_iter().partition(|place| met.holds(place, &self.known) || self.has_session(place));
        self.rng.shuffle(&mut unmet);
        unmet.truncate(CONTACTS_MAX);
        self.joins.places(self.ways.names.iter().cloned().map(Contact::Node).chain(met.iter().chain(&unmet).cloned()));
        for place in &met {
            self.joins.met(place, self.is_own(place));
        }
        unmet
    }

    fn is_own(&self, place: &Contact) -> bool {
        let own = self.shared.id();
        match place {
            Contact::Node(name) => name == own.name(),
            Contact::Address(address) => {
                let answered = self.known.get(address).is_some_and(|name| name == own.name());
                answered || own.name().host() == HostName::Ip(address.ip()) && own.name().port() == address.port()
            }
            Contact::Host(..) => false,
        }
    }

    /// A peer will tell of others by itself.
    fn has_session(&self, place: &Contact) -> bool {
        matches!(place, Contact::Node(name) if self.shared.session(name).is_some())
    }

    /// Tries these places, some at a time, until one leads to a session. The first time the others are tried beside what comes
    /// next.
    async fn try_all(&mut self, contacts: Vec<Contact>) {
        let mut round = Round::new(&self.shared, &self.joins, contacts);
        while let Some((place, name, is_linked)) = round.next().await {
            if let (Contact::Address(address), Some(name)) = (place, name) {
                self.known.insert(address, name);
            }
            if is_linked && self.is_first {
                self.is_first = false;
                tokio::spawn(round.finish());
                return;
            }
            if is_linked {
                // What was begun beside it goes on in the node task.
                return;
            }
        }
        self.is_first = false;
        self.joins.tried();
    }
}

/// Places that are tried, some at a time.
struct Round {
    shared: Arc<Shared>,
    joins: Arc<Joins>,
    contacts: std::vec::IntoIter<Contact>,
    tries: JoinSet<(Contact, Option<NodeName>, bool)>,
}

impl Round {
    fn new(shared: &Arc<Shared>, joins: &Arc<Joins>, contacts: Vec<Contact>) -> Self {
        let (shared, joins) = (shared.clone(), joins.clone());
        Self { shared, joins, contacts: contacts.into_iter(), tries: JoinSet::new() }
    }

    /// What came of the next of them: where, who is there, and whether there is a session with it.
    async fn next(&mut self) -> Option<(Contact, Option<NodeName>, bool)> {
        loop {
            while self.tries.len() < PARALLEL
                && let Some(contact) = self.contacts.next()
            {
                if let Contact::Node(name) = &contact
                    && self.shared.members.member(name).is_some_and(|member| member.state.is_live())
                {
                    self.joins.met(&contact, false);
                    continue;
                }
                self.tries.spawn(enter(self.shared.clone(), self.joins.clone(), contact));
            }
            match self.tries.join_next().await? {
                Ok(entered) => return Some(entered),
                Err(_) => continue,
            }
        }
    }

    /// Tries those that are left.
    async fn finish(mut self) {
        let shared = self.shared.clone();
        let trying = async {
            while self.next().await.is_some() {}
            self.joins.tried();
        };
        tokio::select! {
            () = shared.stopped() => {}
            () = trying => {}
        }
    }
}

async fn enter(shared: Arc<Shared>, joins: Arc<Joins>, place: Contact) -> (Contact, Option<NodeName>, bool) {
    let answers = match &place {
        Contact::Node(name) => Ok(name.clone()),
        Contact::Address(address) => peers::who_answers(&shared, *address).await,
        // It was resolved before.
        Contact::Host(..) => return (place, None, false),
    };
    let name = answers.as_ref().ok().cloned();
    let entered = match answers {
        Ok(name) => shared.connect(&name, false).await.map(|_| name),
        Err(error) => Err(error),
    };
    let is_linked = entered.is_ok();
    match entered {
        Ok(name) => joins.answered(&place, name),
        Err(ConnectError::IsSelf) => joins.met(&place, true),
        Err(error) => {
            tracing::info!(target: target::NODE, ?place, %error, "could not join yet");
            joins.came_of(&place, JoinOutcome::Failed(error));
        }
    }
    (place, name, is_linked)
}

/// Where this node is, and the members that live: nobody need look there.
#[derive(Debug)]
struct Met {
    names: HashSet<NodeName>,
    addresses: HashSet<SocketAddr>,
}

impl Met {
    fn new(own: &NodeName, members: &[Member]) -> Self {
        let live = || members.iter().filter(|member| member.state.is_live());
        let names: HashSet<_> = live().map(|member| member.id.name().clone()).chain([own.clone()]).collect();
        let addresses = names.iter().filter_map(|name| match name.host() {
            HostName::Ip(ip) => Some(SocketAddr::new(ip, name.port())),
            HostName::Dns(_) => None,
        });
        let addresses = addresses.chain(live().flat_map(|member| member.addresses.iter().copied())).collect();
        Self { names, addresses }
    }

    /// `answered` tells who was met at addresses that say nothing of it.
    fn holds(&self, place: &Contact, answered: &HashMap<SocketAddr, NodeName>) -> bool {
        match place {
            Contact::Node(name) => self.names.contains(name),
            Contact::Address(address) => {
                let is_met = |name| self.names.contains(name);
                self.addresses.contains(address) || answered.get(address).is_some_and(is_met)
            }
            Contact::Host(..) => false,
        }
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use std::net::IpAddr;

    use bytes::Bytes;
    use tokio::sync::watch;
    use tokio::time::Instant;

    use super::*;
    use crate::driver::events::NodeEvent;
    use crate::id::NodeId;
    use crate::identity::{Cookie, Identity};
    use crate::node::{Builder, Node};
    use crate::proto::membership::{MemberEvent, MemberState};
    use crate::sim::Fabric;
    use crate::transport::tls::tests::ca::Ca;

    /// Places that somebody wrote down, and how often they were read.
    #[derive(Clone)]
    struct List(Vec<Contact>, watch::Sender<usize>);

    impl List {
        fn new(contacts: &[Contact]) -> Self {
            Self(contacts.to_vec(), watch::Sender::new(0))
        }
    }

    impl Discovery for List {
        fn contacts(&self) -> Pin<Box<dyn Future<Output = io::Result<Vec<Contact>>> + Send + '_>> {
            self.1.send_modify(|reads| *reads += 1);
            Box::pin(async { Ok(self.0.clone()) })
        }
    }

    fn ip(host: u8) -> IpAddr {
        [10, 0, 0, host].into()
    }

    fn at(host: u8) -> Contact {
        Contact::Address((ip(host), 4370).into())
    }

    struct World {
        fabric: Fabric,
        cookie: Cookie,
    }

    impl World {
        fn new() -> Self {
            Self { fabric: Fabric::new(3), cookie: Cookie::generate() }
        }

        fn builder(&self, name: &str, host: u8) -> Builder {
            Node::builder(name).cookie(self.cookie.clone()).network(self.fabric.host(ip(host)))
        }

        async fn node(&self, name: &str, host: u8) -> Node {
            self.builder(name, host).start().await.unwrap()
        }
    }

    /// The first session of a node, and when it came.
    async fn first_up(node: &Node) -> (NodeId, Duration) {
        let begin = Instant::now();
        match node.cluster().node_events().next().await {
            Some(NodeEvent::Up(peer)) => (peer, begin.elapsed()),
            event => panic!("{event:?}"),
        }
    }

    #[test]
    fn a_place_has_a_host_and_a_port() {
        let host = |name: &str| HostName::Dns(name.into());
        assert_eq!(Dns::new("Shop.internal").unwrap().0, Contact::Host(host("shop.internal"), 4370));
        assert_eq!(Dns::new("shop.internal:99").unwrap().0, Contact::Host(host("shop.internal"), 99));
        assert_eq!(Dns::new("[::1]:99").unwrap().0, Contact::Host(HostName::Ip("::1".parse().unwrap()), 99));
        for bad in ["", "a b", "a@b", "host:70000"] {
            assert!(Dns::new(bad).is_err(), "{bad:?}");
        }
    }

    /// Nobody looks where those live who are known, by whatever way of saying where; where the dead were, one looks.
    #[test]
    fn known_places_are_left_out() {
        let member = |name: &str, state, addresses: &[SocketAddr]| {
            let id = NodeId::new(name.parse().unwrap(), 1);
            let (metadata, addresses) = (Bytes::new(), addresses.to_vec());
            Member { id, state, refutation: 0, metadata, addresses, not_dialable: false, client: false }
        };
        let members = [
            member("b@10.0.0.2:4370", MemberState::Suspect, &[]),
            member("c@c.internal:4370", MemberState::Alive, &[(ip(3), 4370).into()]),
            member("d@10.0.0.4:4370", MemberState::Dead, &[]),
        ];
        let met = Met::new(&"a@10.0.0.1:4370".parse().unwrap(), &members);
        let name = |name: &str| name.parse::<NodeName>().unwrap();
        let answered = [(6, "c@c.internal:4370"), (7, "d@10.0.0.4:4370"), (8, "a@10.0.0.1:4370")];
        let answered = answered.map(|(host, who)| ((ip(host), 4370).into(), name(who))).into();
        let holds = |place: Contact| met.holds(&place, &answered);
        assert_eq!(
            [1, 2, 3, 4, 5, 6, 7, 8].map(|host| holds(at(host))),
            [true, true, true, false, false, true, false, true]
        );
        let names = ["a@10.0.0.1:4370", "b@10.0.0.2:4370", "d@10.0.0.4:4370", "e@10.0.0.5:4370"];
        assert_eq!(names.map(|text| holds(Contact::Node(name(text)))), [true, true, false, false]);
    }

    /// The record has this node too, and a place where nobody is.
    #[tokio::test(start_paused = true)]
    async fn a_dns_name_leads_to_a_member() {
        let world = World::new();
        world.fabric.name("seeds.internal", &[ip(1), ip(2), ip(9)]);
        let b = world.node("b@10.0.0.2:4370", 2).await;
        let dns = Dns::new("seeds.internal:4370").unwrap();
        let a = world.builder("a@10.0.0.1:4370", 1).discover(dns).start().await.unwrap();
        assert_eq!(first_up(&a).await.0, b.id());
    }

    /// The name leads nowhere at first; it is resolved again, so its new address is found by itself.
    #[tokio::test(start_paused = true)]
    async fn whoever_has_moved_is_found() {
        let world = World::new();
        let dns = Dns::new("seeds.internal:4370").unwrap();
        let a = world.builder("a@10.0.0.1:4370", 1).discover(dns).start().await.unwrap();
        let b = world.node("b@10.0.0.2:4370", 2).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(a.cluster().peers(), []);
        world.fabric.name("seeds.internal", &[ip(2)]);
        let (peer, took) = first_up(&a).await;
        assert_eq!(peer, b.id());
        assert!(took <= Duration::from_secs(11), "{took:?}");
    }

    /// A contact that starts later is found, and other contacts that are nobody do not keep a node from it.
    #[tokio::test(start_paused = true)]
    async fn joining_goes_on_until_somebody_is_there() {
        let world = World::new();
        let builder = world.builder("a@10.0.0.1:4370", 1);
        let names = (2..12).map(|host| format!("n@10.0.0.{host}:4370"));
        let a = names.fold(builder, |builder, name| builder.join(name.as_str())).start().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(a.cluster().peers(), []);
        let last = world.node("n@10.0.0.11:4370", 11).await;
        let (peer, took) = first_up(&a).await;
        assert_eq!(peer, last.id());
        assert!(took <= Duration::from_secs(30), "{took:?}");
    }

    /// Nobody can resolve the host of its name: the address is enough, and serves until it is linked.
    #[tokio::test(start_paused = true)]
    async fn an_address_tells_whose_it_is() {
        let world = World::new();
        let b = world.node("b@nowhere.internal:4370", 2).await;
        let stranger = Node::builder("s@10.0.0.3:4370").cookie(Cookie::generate());
        let stranger = stranger.network(world.fabric.host(ip(3))).start().await.unwrap();
        let list = List::new(&[at(3), at(2)]);
        let a = world.builder("a@10.0.0.1:4370", 1).discover(list).start().await.unwrap();
        assert_eq!(first_up(&a).await.0, b.id());
        assert_eq!(a.cluster().peers(), [b.id()]);
        assert_eq!(stranger.cluster().peers(), []);
    }

    /// To ask who is there ends no session, and works after sessions have come and gone.
    #[tokio::test(start_paused = true)]
    async fn a_question_to_an_address_disturbs_nobody() {
        let world = World::new();
        let (a, b) = (world.node("a@10.0.0.1:4370", 1).await, world.node("b@10.0.0.2:4370", 2).await);
        let ask = || peers::who_answers(a.shared(), (ip(2), 4370).into());
        assert_eq!(ask().await.as_ref(), Ok(b.name()), "before any session");
        a.cluster().connect(b.name()).await.unwrap();
        let mut events = [&a, &b].map(|node| node.cluster().node_events());
        for events in &mut events {
            assert!(matches!(events.next().await, Some(NodeEvent::Up(_))));
        }
        assert_eq!(ask().await.as_ref(), Ok(b.name()));
        for events in &mut events {
            assert!(tokio::time::timeout(Duration::from_secs(30), events.next()).await.is_err(), "nothing has ended");
        }
        for round in 0..3 {
            a.cluster().disconnect(b.name()).await;
            assert_eq!(ask().await.as_ref(), Ok(b.name()), "{round}");
            assert!(a.cluster().connect(b.name()).await.is_ok());
        }
        assert_eq!(peers::who_answers(a.shared(), (ip(1), 4370).into()).await.as_ref(), Ok(a.name()), "itself");
        let nobody = peers::who_answers(a.shared(), (ip(9), 4370).into()).await;
        assert!(matches!(nobody, Err(ConnectError::Timeout(_))), "{nobody:?}");
    }

    /// Certificates that name hosts do not tell the nodes of one host apart: each of these says itself who it is.
    #[tokio::test(start_paused = true)]
    async fn nodes_of_one_host_are_told_apart() {
        let world = World::new();
        let ca = Ca::root("shop");
        let host = world.fabric.host(ip(1));
        let start = async |name: &str| {
            let signed = ca.sign(&["10.0.0.1"], &[]);
            let identity = Identity::from_pem_bytes(ca.root_pem(), signed.chain_pem(), signed.key_pem());
            let identity = identity.with_cookie(world.cookie.clone());
            Node::builder(name).identity(identity).network(&host).start().await.unwrap()
        };
        let b = start("b@10.0.0.1:4371").await;
        let c = start("c@10.0.0.1:4372").await;
        let d = start("d@10.0.0.1:4373").await;
        let who = async |port: u16| peers::who_answers(d.shared(), (ip(1), port).into()).await;
        assert_eq!(who(4371).await.as_ref(), Ok(b.name()), "before any session");
        d.cluster().connect(b.name()).await.unwrap();
        assert_eq!(who(4372).await.as_ref(), Ok(c.name()), "beside a session");
        assert_eq!(who(4371).await.as_ref(), Ok(b.name()), "within one");
        for node in [&b, &c] {
            d.cluster().connect(node.name()).await.unwrap();
            d.cluster().disconnect(node.name()).await;
        }
        assert_eq!(who(4371).await.as_ref(), Ok(b.name()), "after one");
        assert_eq!(who(4372).await.as_ref(), Ok(c.name()), "after one");
        assert!(matches!(who(4373).await, Err(ConnectError::IsSelf)), "itself");
    }

    /// An error, a panic and silence of some sources do not keep the others from being used.
    #[tokio::test(start_paused = true)]
    async fn bad_sources_harm_nobody() {
        enum Bad {
            Fails,
            Panics,
            Hangs,
        }
        impl Discovery for Bad {
            fn contacts(&self) -> Pin<Box<dyn Future<Output = io::Result<Vec<Contact>>> + Send + '_>> {
                Box::pin(async {
                    match self {
                        Self::Fails => Err(io::ErrorKind::NotFound.into()),
                        Self::Panics => panic!("a user's mistake"),
                        Self::Hangs => std::future::pending().await,
                    }
                })
            }
        }
        let world = World::new();
        let b = world.node("b@10.0.0.2:4370", 2).await;
        let builder = world.builder("a@10.0.0.1:4370", 1);
        let builder = builder.discover(Bad::Fails).discover(Bad::Panics).discover(Bad::Hangs);
        let a = builder.discover(List::new(&[at(2)])).start().await.unwrap();
        assert_eq!(first_up(&a).await.0, b.id());
    }

    /// A node that sees others looks for more seldom; when they are gone it looks at once.
    #[tokio::test(start_paused = true)]
    async fn whoever_is_not_alone_looks_seldom() {
        let world = World::new();
        let b = world.node("b@10.0.0.2:4370", 2).await;
        let id = NodeId::new("x@10.0.0.8:4370".parse().unwrap(), 1);
        let (metadata, addresses) = (Bytes::new(), Vec::new());
        let (state, not_dialable, client) = (MemberState::Alive, false, false);
        let other = Member { id, state, refutation: 0, metadata, addresses, not_dialable, client };
        world.fabric.cut(ip(1), ip(2));
        let list = List::new(&[at(2)]);
        let a = world.builder("a@10.0.0.1:4370", 1).discover(list.clone()).start().await.unwrap();
        a.shared().members.apply(MemberEvent::Joined(other.clone()));

        let mut reads = list.1.subscribe();
        let mut looked = Vec::new();
        for look in 1..=4 {
            reads.wait_for(|reads| *reads == look).await.unwrap();
            looked.push(Instant::now());
        }
        // Half of `sync_interval` at least, and the 5 s of a dial to nobody.
        let pauses = looked.windows(2).map(|pair| pair[1] - pair[0]);
        let all = Duration::from_secs(20)..=Duration::from_millis(35_100);
        assert!(pauses.clone().all(|pause| all.contains(&pause)), "{:?}", pauses.collect::<Vec<_>>());

        // The present look ends in vain, and the next would be 15 s later.
        tokio::time::sleep(Duration::from_secs(6)).await;
        world.fabric.heal_all();
        let dead = Member { state: MemberState::Dead, ..other };
        a.shared().members.apply(MemberEvent::Died { member: dead, by: a.id() });
        let (peer, took) = first_up(&a).await;
        assert_eq!(peer, b.id());
        assert!(took < Duration::from_secs(1), "{took:?}");
    }

    /// After good-bye nobody is looked for.
    #[tokio::test(start_paused = true)]
    async fn whoever_left_looks_for_nobody() {
        let world = World::new();
        let a = world.builder("a@10.0.0.1:4370", 1).join("b@10.0.0.2:4370").start().await.unwrap();
        a.cluster().leave().await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let b = world.node("b@10.0.0.2:4370", 2).await;
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!((a.cluster().peers(), b.cluster().peers()), (Vec::new(), Vec::new()));
    }
}
