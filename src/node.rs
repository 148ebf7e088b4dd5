//! A node: its start, its parts, its end.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cluster::Cluster;
use crate::config::Config;
use crate::discovery::{self, Discovery, Joins, Ways};
use crate::driver::clock::Clock;
use crate::driver::journal::target;
use crate::driver::mailboxes::{RefusedHook, RefusedMessage};
use crate::driver::services::Services;
use crate::driver::votes::VoteDir;
use crate::driver::{self, Command, Shared};
use crate::election::{Election, Voters};
use crate::error::{ElectionError, ReadyError, StartError};
use crate::gossip::Gossip;
use crate::groups::Groups;
use crate::health::Health;
use crate::id::{ClusterName, HostName, NameError, NodeId, NodeName};
use crate::identity::{ALLOWED_MAX, Allowed, Cookie, Identity};
use crate::key::Key;
use crate::membership::Membership;
use crate::message::Message;
use crate::messaging::Mailbox;
use crate::monitor::{Monitor, Monitored};
use crate::proto::founding::Plan;
use crate::registry::{ConflictRule, NamePattern, Registry, by_name};
use crate::rpc::Rpc;
use crate::stats::{self, NodeStats};
use crate::transport::tls::Tls;
use crate::transport::{Endpoint, Network};
use crate::trust::Trust;
use crate::wire::NodeFlags;

/// A running node: one QUIC endpoint and all that lives behind it. Cheap to clone.
///
/// Dropping the last clone closes the node's links without waiting; [`Node::shutdown`] leaves in good order. Mailboxes
/// and addresses do not keep a node running.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Node};
///
/// let cookie = Cookie::generate();
/// let one = Node::builder("one@127.0.0.1:0").cookie(cookie.clone()).start().await?;
/// let two = Node::builder("two@127.0.0.1:0").cookie(cookie).join(one.name()).start().await?;
/// two.cluster().connect(one.name()).await?;
/// assert_eq!(two.cluster().peers(), [one.id()]);
/// two.shutdown().await;
/// one.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Node {
    guard: Arc<Guard>,
}

/// Ends the node with its last handle.
struct Guard {
    shared: Arc<Shared>,
    name: NodeName,
    address: SocketAddr,
    joins: Arc<Joins>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.begin_stop();
        self.shared.command(Command::Stop { by: self.shared.stop_by() });
    }
}

impl Node {
    /// Begins to describe a node by its name, `local@host` or `local@host:port`.
    pub fn builder<N>(name: N) -> Builder
    where
        N: TryInto<NodeName, Error = NameError> + ToString,
    {
        let text = name.to_string();
        Builder {
            name: parse(text, name),
            identity: None,
            allowed: None,
            cluster: Ok(ClusterName::default()),
            join: Vec::new(),
            sources: Vec::new(),
            expect: None,
            scopes: Vec::new(),
            rule: ConflictRule::default(),
            rules: Vec::new(),
            bind: None,
            advertise: Vec::new(),
            network: Network::system(),
            flags: NodeFlags::default(),
            on_refused: None,
            incarnation: None,
            election_dir: None,
            config: Config::default(),
        }
    }

    /// Returns the node's name. A node started with port 0 has the port that it got.
    pub fn name(&self) -> &NodeName {
        &self.guard.name
    }

    /// Returns the identity of this life of the node.
    pub fn id(&self) -> NodeId {
        self.guard.shared.id()
    }

    /// Returns the address that the node is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.guard.address
    }

    /// Opens a mailbox for messages of one type.
    #[doc(alias = "spawn")]
    pub fn mailbox<M: Message>(&self) -> Mailbox<M> {
        Mailbox::open(&self.guard.shared)
    }

    /// Watches a mailbox, a node or the owner of a name: the future resolves when it is gone, or out of reach.
    ///
    /// The watch is on when this returns, not when the future is first polled; dropping the future ends it. See
    /// [`Monitor`] for what is promised. To be told in a mailbox, in order with its messages, use [`Mailbox::monitor`].
    #[doc(alias = "link")]
    pub fn monitor(&self, target: impl Into<Monitored>) -> Monitor {
        Monitor::begin(&self.guard.shared, target.into(), false)
    }

    /// As [`monitor`](Self::monitor), but a session that ends is no end: the watch goes on until the target is gone for
    /// certain. It is never told [`Fate::Disconnected`](crate::Fate::Disconnected) while this node runs, unless nothing is
    /// known of the target's node.
    ///
    /// As long as there is no session the node is dialled again every second. That a mailbox was closed meanwhile is told
    /// when there is a session again, and the end of a member as soon as the others agree on it.
    pub fn monitor_until_dead(&self, target: impl Into<Monitored>) -> Monitor {
        Monitor::begin(&self.guard.shared, target.into(), true)
    }

    /// Returns the part that serves methods and calls them.
    pub fn rpc(&self) -> Rpc {
        Rpc::new(&self.guard.shared)
    }

    /// Returns the part that knows the links to other nodes.
    #[doc(alias = "net_kernel")]
    pub fn cluster(&self) -> Cluster {
        Cluster::new(&self.guard.shared)
    }

    /// Returns the part that knows all members of the cluster, and which of them live.
    #[doc(alias = "nodes")]
    pub fn membership(&self) -> Membership {
        Membership::new(&self.guard.shared)
    }

    /// Returns the part that knows the groups of the cluster, and sends to their members.
    #[doc(alias = "pg")]
    pub fn groups(&self) -> Groups {
        Groups::new(&self.guard.shared)
    }

    /// Returns the part that tells small facts to all live nodes.
    pub fn gossip(&self) -> Gossip {
        Gossip::new(&self.guard.shared)
    }

    /// Returns the part that changes what the node presents and whom it trusts.
    pub fn trust(&self) -> Trust {
        Trust::new(&self.guard.shared)
    }

    /// Returns the part that tells how well the node and its cluster are.
    pub fn health(&self) -> Health {
        Health::new(&self.guard.shared)
    }

    /// Returns what the node has done and holds, in numbers. It looks at each session and each mailbox, and waits for
    /// nothing.
    pub fn stats(&self) -> NodeStats {
        stats::look(&self.guard.shared)
    }

    /// Returns the part that knows which mailbox has which name.
    #[doc(alias = "global")]
    #[doc(alias = "whereis")]
    pub fn registry(&self) -> Registry {
        Registry::new(&self.guard.shared)
    }

    /// Takes part in an election: votes in it, if this node is one of the voters, and learns who leads in any case.
    ///
    /// All nodes give the same name and the same voters; [`Election`] has the rules. A voter votes from now on until the node
    /// stops, whether or not a handle lives. A second call for the same voters returns another handle. One with a later version
    /// of the voters opens the election anew: this node resigns if it leads, and handles of the version before are over.
    ///
    /// Reads this node's vote, in a thread for blocking work.
    ///
    /// # Errors
    /// [`ElectionError`]: these are no voters, or cannot follow those before; this node is a voter and has no directory for its
    /// vote, or what it has voted cannot be read. Then it takes no part.
    ///
    /// # Cancel safety
    /// One that is dropped goes on.
    #[doc(alias = "leader_election")]
    pub async fn election(&self, name: impl Into<String>, voters: Voters) -> Result<Election, ElectionError> {
        Election::open(&self.guard.shared, name.into(), voters).await
    }

    /// Waits until this node is ready: it knows the names and groups of the cluster, or has founded one.
    ///
    /// Until then [`Registry`] answers from what has come so far, and claims fail with
    /// [`NotReady`](crate::RegisterError::NotReady). A node that has nobody to join is ready at once, one that joins when
    /// it has taken over all that a ready member knows. Who founds the cluster, where all nodes begin together, is told
    /// at [`Builder::bootstrap_expect`]. Once ready, a node stays so.
    ///
    /// It has no deadline of its own: a node that finds nobody waits for ever.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Cookie, Node};
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// node.ready().await?;
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ReadyError`] once the node has stopped.
    ///
    /// # Cancel safety
    /// A wait that is dropped leaves nothing behind.
    pub async fn ready(&self) -> Result<(), ReadyError> {
        self.guard.shared.names.wait_ready().await
    }

    /// Tells whether this node is ready, as [`ready`](Self::ready) waits for.
    pub fn is_ready(&self) -> bool {
        self.guard.shared.names.is_ready()
    }

    /// Leaves in good order. In this order: what it leads is resigned, as soon as the holders of its
    /// [`Leadership`](crate::Leadership)s have let go, or after [`Config::election_lease`]; the names and memberships in groups
    /// of its mailboxes are withdrawn, new calls are refused as [`ShuttingDown`](crate::CallError::ShuttingDown), running handlers are waited for, the other members are
    /// told as [`Cluster::leave`] does, what was accepted is given time to be read by the peers (but for what still waits for
    /// a link to be made), the links are closed, then the socket. Waits for [`Config::shutdown_timeout`] at most, for handlers
    /// and links together, and a second each for links when handlers took all the time, the good-bye and the last words.
    ///
    /// Others see its names and memberships go with [`NameReason::NodeLeft`](crate::NameReason::NodeLeft) and
    /// [`LeftReason::NodeLeft`](crate::LeftReason::NodeLeft), whether they learn of the withdrawal or of the leave first. A
    /// name is free from then on, so a successor may have it while handlers still run here. Messages are taken, and handlers
    /// may send, call and connect, until the other members are told.
    ///
    /// Afterwards sends and calls fail, and mailboxes end when they are read. A second call waits for the first.
    ///
    /// # Cancel safety
    /// A shutdown that is dropped goes on, without waiting for running handlers.
    pub async fn shutdown(&self) {
        self.guard.shared.shut_down().await;
    }

    /// Does the first part of a [`shutdown`](Self::shutdown), and nothing more: resigns, withdraws names and memberships in groups,
    /// refuses new calls and registrations, and waits for running handlers, for [`Config::shutdown_timeout`] at most. Returns
    /// how many handlers run still: 0 when all have ended in time.
    ///
    /// The node remains a member, takes messages and keeps its links; there is no way back from it but to shut down. For a
    /// process that is told to stop and has something of its own to do between the last call and the end.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{CallError, Cookie, Method, Node};
    ///
    /// const DOUBLE: Method<u64, u64> = Method::new("double");
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// node.rpc().serve(DOUBLE, |_call, n| async move { 2 * n })?;
    /// assert_eq!(node.drain().await, 0);
    /// assert_eq!(node.rpc().call(node.name(), DOUBLE, 4).await, Err(CallError::ShuttingDown));
    /// node.shutdown().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    /// One that is dropped waits no longer; what it has withdrawn is withdrawn, and new calls may be refused.
    pub async fn drain(&self) -> usize {
        let shared = &self.guard.shared;
        shared.drain(shared.stop_by()).await
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.guard.shared
    }

    pub(crate) fn joins(&self) -> &Joins {
        &self.guard.joins
    }

    pub(crate) fn downgrade(&self) -> WeakNode {
        WeakNode(Arc::downgrade(&self.guard))
    }
}

/// What finds a node again as long as somebody holds it, and does not keep it running.
#[derive(Clone)]
pub(crate) struct WeakNode(Weak<Guard>);

impl WeakNode {
    pub(crate) fn upgrade(&self) -> Option<Node> {
        self.0.upgrade().map(|guard| Node { guard })
    }
}

impl fmt::Debug for WeakNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakNode")
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Node({})", self.id())
    }
}

/// A node about to be started.
#[must_use = "a node is started by `start`"]
pub struct Builder {
    name: Result<NodeName, StartError>,
    identity: Option<Identity>,
    allowed: Option<Allowed>,
    cluster: Result<ClusterName, StartError>,
    join: Vec<Result<NodeName, StartError>>,
    sources: Vec<Arc<dyn Discovery>>,
    expect: Option<usize>,
    scopes: Vec<Result<Key, StartError>>,
    rule: ConflictRule,
    rules: Vec<(NamePattern, ConflictRule)>,
    bind: Option<SocketAddr>,
    advertise: Vec<SocketAddr>,
    network: Network,
    flags: NodeFlags,
    on_refused: Option<RefusedHook>,
    incarnation: Option<u64>,
    election_dir: Option<PathBuf>,
    config: Config,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, cluster, join, expect, scopes, rule, rules, bind, advertise, network, flags, config, .. } =
            self;
        f.debug_struct("Builder")
            .field("name", name)
            .field("cluster", cluster)
            .field("join", join)
            .field("sources", &self.sources.len())
            .field("expect", expect)
            .field("scopes", scopes)
            .field("rule", rule)
            .field("rules", rules)
            .field("bind", bind)
            .field("advertise", advertise)
            .field("network", network)
            .field("flags", flags)
            .field("config", config)
            .finish_non_exhaustive()
    }
}

/// The most addresses that a node advertises beside its name.
pub const ADVERTISED_MAX: usize = 4;

/// The longest name of a scope, in bytes.
pub const SCOPE_MAX: usize = 64;

/// The most scopes that a node takes part in, beside the default one.
pub const SCOPES_MAX: usize = 64;

impl Builder {
    /// Sets the cookie, which all nodes of the cluster share. This, or [`Builder::identity`], is required.
    pub fn cookie(self, cookie: Cookie) -> Self {
        self.identity(Identity::cookie(cookie))
    }

    /// Sets what the node shows to be taken for a member: a cookie, certificates of your own PKI, or both. The last one that
    /// is set counts.
    pub fn identity(mut self, identity: impl Into<Identity>) -> Self {
        self.identity = Some(identity.into());
        self
    }

    /// Lets in and dials only the nodes on a list. The default is all members. See
    /// [`Trust::set_allowed`](crate::Trust::set_allowed), which changes it while the node runs.
    pub fn allow(mut self, allowed: Allowed) -> Self {
        self.allowed = Some(allowed);
        self
    }

    /// Sets the cluster's name; the default is `default`. Nodes of another cluster name are strangers, whatever their
    /// cookie.
    pub fn cluster<C>(mut self, name: C) -> Self
    where
        C: TryInto<ClusterName, Error = NameError> + ToString,
    {
        let text = name.to_string();
        self.cluster = name.try_into().map_err(|source| StartError::Name { name: text, source });
        self
    }

    /// Adds a node by which this one joins the cluster; several are tried until one leads to a session, and all members are
    /// learned from it. Any member will do, and two nodes may name each other.
    ///
    /// The start does not wait for it: see [`Node::join_report`] and
    /// [`Membership::wait_for_alive`](crate::Membership::wait_for_alive). All places are tried once. As long as the node sees no other live member, be it at its start or after all others are gone, it tries all again, first after a
    /// second or less, then less and less often down to [`Config::reconnect_interval`]. Otherwise it tries one that is no
    /// live member every [`Config::sync_interval`], so that two clusters which name each other's nodes become one.
    pub fn join<N>(mut self, name: N) -> Self
    where
        N: TryInto<NodeName, Error = NameError> + ToString,
    {
        let text = name.to_string();
        self.join.push(parse(text, name));
        self
    }

    /// Adds a source of places where members may be found, besides those of [`Builder::join`]; there may be several. It is
    /// asked again each time that the node looks for others, and at most 64 places are tried each time.
    pub fn discover(mut self, source: impl Discovery) -> Self {
        self.sources.push(Arc::new(source));
        self
    }

    /// Sets how many nodes, this one included, make up the cluster at its first start: when so many see each other and
    /// none of them is ready, the one with the lowest name founds the cluster, and the others take it over from there.
    /// Give the same number to all.
    ///
    /// It answers how a cluster begins when all its nodes start at once. Without it
    /// - a node without [`join`](Self::join) and [`discover`](Self::discover) founds a cluster of its own at once;
    /// - nodes that name each other by `join` wait until all of these are up, and then the lowest name founds: so each
    ///   should name all others, or one that founds by itself;
    /// - a node that has only `discover` never founds, and waits for a ready member: let one of them expect.
    ///
    /// A ready member is always preferred to founding: a node that is started later joins what is there, whatever it
    /// expects. With 1, and 0 counts as 1, the node founds at once, and two such nodes found two clusters, which become
    /// one when they meet: conflicts of names are then settled as after a partition.
    pub fn bootstrap_expect(mut self, nodes: usize) -> Self {
        self.expect = Some(nodes.max(1));
        self
    }

    /// Takes part in a scope, beside the default one: a part of the names and groups that only the nodes in it know. A
    /// scope is named in 1 to [`SCOPE_MAX`] bytes without control characters; there may be [`SCOPES_MAX`] of them.
    ///
    /// See [`Registry::in_scope`].
    pub fn scope(mut self, name: impl Into<String>) -> Self {
        let name = name.into();
        let scope = Key::parse_within(name.clone(), SCOPE_MAX);
        self.scopes.push(scope.map_err(|source| StartError::Scope { name, source }));
        self
    }

    /// Sets which of two claims of one name stands, as a [`ConflictRule`] or by a
    /// [`ConflictResolver`](crate::ConflictResolver). The default is [`ConflictRule::Oldest`]. It must be the same on all
    /// nodes, or they will not agree on who has the name.
    pub fn conflict_resolver(mut self, rule: impl Into<ConflictRule>) -> Self {
        self.rule = rule.into();
        self
    }

    /// Sets the rule of [`conflict_resolver`](Self::conflict_resolver) for one name, or for all names of a family, in all scopes.
    /// A name's own rule goes before its family's, a narrower family before a wider one, and what is set later before what was
    /// set of the same. It must be the same on all nodes, or they will not agree on who has these names.
    ///
    /// ```
    /// use distribute::{ConflictRule, Name, Names, Node};
    ///
    /// const SESSIONS: Names<u64> = Names::new("session");
    /// const CRON: Name<u64> = Name::new("cron");
    ///
    /// let builder = Node::builder("shop@127.0.0.1:4370")
    ///     .conflict_resolver_for(SESSIONS, ConflictRule::Newest) // where the user is now
    ///     .conflict_resolver_for(CRON, ConflictRule::Priority(vec!["db@127.0.0.1:4371".parse()?]));
    /// # Ok::<(), distribute::Error>(())
    /// ```
    pub fn conflict_resolver_for(mut self, names: impl Into<NamePattern>, rule: impl Into<ConflictRule>) -> Self {
        self.rules.push((names.into(), rule.into()));
        self
    }

    /// Binds another address than the name's host and port: for a node behind a forwarded port, or `0.0.0.0`.
    ///
    /// The default is the name's host if that is an address of this machine. A DNS host binds all addresses of this
    /// machine.
    pub fn bind(mut self, address: SocketAddr) -> Self {
        self.bind = Some(address);
        self
    }

    /// Tells peers another address to dial, beside the name's own; at most [`ADVERTISED_MAX`].
    pub fn advertise(mut self, address: SocketAddr) -> Self {
        self.advertise.push(address);
        self
    }

    /// Chooses the network; the default is the system's.
    pub fn network(mut self, network: impl Into<Network>) -> Self {
        self.network = network.into();
        self
    }

    /// Says that nobody can dial this node, as behind a NAT. It dials the others, and its links are kept.
    pub fn not_dialable(mut self) -> Self {
        self.flags.not_dialable = true;
        self
    }

    /// Says that this node only uses the cluster: it never decides for others.
    pub fn client(mut self) -> Self {
        self.flags.client = true;
        self
    }

    /// Sets what is told of each message that a mailbox cannot read: of another type, of a version that is not readable
    /// here, or malformed. The message is skipped and counted all the same.
    ///
    /// It is called in the task that reads the mailbox, and should not block.
    pub fn on_refused(mut self, hook: impl Fn(&RefusedMessage) + Send + Sync + 'static) -> Self {
        self.on_refused = Some(RefusedHook(Arc::new(hook)));
        self
    }

    /// Sets the number of this life, which is the time of the start in microseconds unless set: for tests of restarts, and
    /// of clocks that step back.
    #[cfg(feature = "sim")]
    pub fn incarnation(mut self, incarnation: u64) -> Self {
        self.incarnation = Some(incarnation);
        self
    }

    /// Sets the directory where this node keeps its votes in elections: one of its own, which exists, on a disk that outlives
    /// the node. A voter needs one, unless the voters are [`diskless`](Voters::diskless).
    ///
    /// Each vote is flushed to the disk before anybody hears of it: a few small writes in each election, and none in between.
    /// The start fails when another node uses the directory, or none is there: it is not made, because one that is not there
    /// may be a volume that is not mounted, and a voter that has forgotten its vote may elect a second leader. For the same
    /// reason it must not be restored from a copy, nor emptied.
    pub fn election_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.election_dir = Some(path.into());
        self
    }

    /// Sets the numbers that the node goes by.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Starts the node. Returns at once: when it is bound and can be dialled, and before it has found any other.
    ///
    /// Call it inside a tokio runtime with time and, on the system's network, I/O enabled. A passphrase cookie is
    /// stretched first, which takes some 40 ms of a blocking thread; on an in-memory network it is done in place.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    ///
    /// # Cancel safety
    /// A start that is dropped starts nothing.
    pub async fn start(self) -> Result<Node, StartError> {
        let Self {
            name,
            identity,
            allowed,
            cluster,
            join,
            sources,
            expect,
            scopes,
            rule,
            rules: exceptions,
            bind,
            advertise,
            network,
            flags,
            on_refused,
            incarnation,
            election_dir,
            config,
        } = self;
        let (name, cluster) = (name?, cluster?);
        let scopes = scopes.into_iter().collect::<Result<BTreeSet<_>, _>>()?;
        if scopes.len() > SCOPES_MAX {
            return Err(StartError::TooManyScopes { count: scopes.len(), max: SCOPES_MAX });
        }
        let ways = Ways { names: join.into_iter().collect::<Result<_, _>>()?, sources };
        config.validate()?;
        let Identity { cookie, pem } = identity.ok_or(StartError::NoIdentity)?;
        if let Some(allowed) = allowed.as_ref().filter(|allowed| allowed.len() > ALLOWED_MAX) {
            return Err(StartError::TooManyAllowed { count: allowed.len(), max: ALLOWED_MAX });
        }
        let keys = match cookie {
            Some(cookie) => Some(driver::trust::derive(&cookie, &cluster, network.allows_blocking()).await?),
            None => None,
        };
        let clock = if network.allows_blocking() { Clock::System } else { Clock::tokio() };
        let identify = |name: &NodeName| Tls::new(&cluster, name, keys, pem, allowed);
        // A name without its port is not yet what certificates name. Otherwise what is wrong with them is found before
        // anything is bound.
        let (identify, identified) =
            if name.port() == 0 { (Some(identify), None) } else { (None, Some(identify(&name)?)) };
        let address = bind.unwrap_or_else(|| default_bind(&name, &network));
        let endpoint = Endpoint::bind(network, address, &config);
        let endpoint = endpoint.map_err(|source| StartError::Bind { address, source })?;
        let bound = endpoint.local_addr().map_err(|source| StartError::Bind { address, source })?;
        let name = if name.port() == 0 { name.with_port(bound.port()) } else { name };
        let votes = election_dir.map(|path| VoteDir::open(&path, cluster.clone(), name.clone())).transpose()?;
        let tls = match (identified, identify) {
            (Some(tls), _) => tls,
            (None, Some(identify)) => identify(&name)?,
            (None, None) => unreachable!("one of the two is there"),
        };
        endpoint.identify(&tls, &config);
        let mut seed = [0; 8];
        crate::identity::fill_random(&mut seed);
        let id = NodeId::new(name.clone(), incarnation.unwrap_or_else(incarnation_now));
        tracing::info!(target: target::NODE, node = %id, %cluster, address = %bound, "started");
        let addresses = advertise.into_iter().take(ADVERTISED_MAX).collect();
        let seed = u64::from_be_bytes(seed);
        let (rule, resolver) = rule.into_parts();
        let (rules, resolvers) = by_name(exceptions);
        let scopes = scopes.iter().map(Key::to_text).collect();
        let services = Services { scopes, plan: plan(&name, &ways, expect), rule, resolver, rules, resolvers };
        let start = driver::Start {
            config,
            cluster,
            id,
            endpoint,
            tls,
            on_refused,
            addresses,
            flags,
            seed,
            services,
            clock,
            votes,
        };
        let shared = driver::start(start);
        let has_ways = !ways.names.is_empty() || !ways.sources.is_empty();
        let joins = Arc::new(Joins::new(has_ways));
        if has_ways {
            tokio::spawn(discovery::seek(shared.clone(), ways, !seed, joins.clone()));
        }
        #[cfg(feature = "metrics")]
        tokio::spawn(stats::export::publish(shared.clone()));
        Ok(Node { guard: Arc::new(Guard { shared, name, address: bound, joins }) })
    }
}

/// How the first node of the cluster is found.
fn plan(own: &NodeName, ways: &Ways, expect: Option<usize>) -> Plan {
    let others: Vec<_> = ways.names.iter().filter(|name| *name != own).cloned().collect();
    match expect {
        Some(1) => Plan::Found,
        Some(nodes) => Plan::Expect(nodes),
        None if !others.is_empty() => Plan::Contacts(others),
        None if ways.sources.is_empty() => Plan::Found,
        // Nobody says how many there are to be: never all, so a ready member has to come.
        None => Plan::Expect(usize::MAX),
    }
}

fn parse<N>(text: String, name: N) -> Result<NodeName, StartError>
where
    N: TryInto<NodeName, Error = NameError>,
{
    name.try_into().map_err(|source| StartError::Name { name: text, source })
}

fn default_bind(name: &NodeName, network: &Network) -> SocketAddr {
    let ip = match name.host() {
        HostName::Ip(ip) => ip,
        HostName::Dns(host) if host == "localhost" => Ipv4Addr::LOCALHOST.into(),
        // Where the name points to may be a load balancer or a forwarded port.
        HostName::Dns(_) => network.all_addresses(),
    };
    (ip, name.port()).into()
}

/// Microseconds since 1970: later lives of a name have greater numbers, as far as the clock goes; peers correct the rest.
fn incarnation_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |elapsed| elapsed.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Dns;

    #[test]
    fn who_founds_follows_from_the_ways_in() {
        let name = |local: &str| NodeName::parse(&format!("{local}@10.0.0.1")).unwrap();
        let planned = |names: &[&str], discovers: bool, expect| {
            let source = || Arc::new(Dns::new("seeds.internal").unwrap()) as Arc<dyn Discovery>;
            let names = names.iter().map(|local| name(local)).collect();
            let ways = Ways { names, sources: discovers.then(source).into_iter().collect() };
            plan(&name("a"), &ways, expect)
        };
        assert_eq!(planned(&[], false, None), Plan::Found);
        assert_eq!(planned(&["a"], false, None), Plan::Found, "it names only itself");
        assert_eq!(planned(&["a", "b"], true, None), Plan::Contacts(vec![name("b")]));
        assert_eq!(planned(&[], true, None), Plan::Expect(usize::MAX));
        assert_eq!(planned(&["b"], true, Some(3)), Plan::Expect(3));
        assert_eq!(planned(&["b"], true, Some(1)), Plan::Found);
        assert_eq!(Node::builder("a@h:1").bootstrap_expect(0).expect, Some(1));
    }
}
