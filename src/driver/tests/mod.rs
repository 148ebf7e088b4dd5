//! A node under attack: a peer that keeps no rules meets a real node, over QUIC in memory and under a paused clock.
//!
//! In each test nodes A and B are a good pair that never stops talking. The attacker speaks raw frames. What it does may
//! end its own session; it never reaches a mailbox, a handler, or the pair.

mod authority;
#[allow(dead_code, reason = "other tests use other parts of it")]
#[path = "../../../tests/it/captured.rs"]
mod captured;
mod elections;
mod exchanges;
mod fake;
mod flood;
mod greeting;
mod groups;
mod lives;
mod log;
mod membership;
mod memory;
mod monitors;
mod newer;
mod services;
mod strangers;
mod streams;
mod trust;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use self::fake::Fake;
use super::{Census, lock};
use crate::cluster::NodeEvents;
use crate::config::Config;
use crate::driver::events::NodeEvent;
use crate::error::{ConnectError, DownReason, RecvError};
use crate::id::{NodeId, NodeName};
use crate::identity::Cookie;
use crate::messaging::Mailbox;
use crate::node::Node;
use crate::rpc::Method;
use crate::sim::Fabric;

const DOUBLE: Method<u64, u64> = Method::new("double");
/// Never answers.
const NEVER: Method<u64, u64> = Method::new("never");

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// No member asks another whether it lives, or what it knows: an attacker has no answer to that.
fn quiet(config: Config) -> Config {
    let day = secs(24 * 60 * 60);
    Config { probe_interval: day, sync_interval: day, dead_kept: 200 * day, ..config }
}

/// The good pair, and what the attacker aims at.
struct World {
    fabric: Fabric,
    cookie: Cookie,
    a: Node,
    b: Node,
    events: NodeEvents,
    /// On A, and known to nobody but the attacker.
    victim: Mailbox<u64>,
    /// How often a handler of A ran for somebody else than B.
    runs: Arc<AtomicUsize>,
    chatter: JoinHandle<()>,
    said: Arc<AtomicUsize>,
    census: Census,
}

impl World {
    async fn new() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let fabric = Fabric::new(7);
        let cookie = Cookie::generate();
        let a = node(&fabric, &cookie, "a@10.0.0.1:4370", config).await;
        let b = node(&fabric, &cookie, "b@10.0.0.2:4370", Config::default()).await;
        let runs = Arc::new(AtomicUsize::new(0));
        let (counter, friend) = (runs.clone(), b.id());
        let _ = a.rpc().serve(DOUBLE, move |call, n| {
            counter.fetch_add(usize::from(*call.caller() != friend), Ordering::Relaxed);
            async move { n.wrapping_mul(2) }
        });
        let (counter, friend) = (runs.clone(), b.id());
        let _ = a.rpc().serve(NEVER, move |call, _| {
            counter.fetch_add(usize::from(*call.caller() != friend), Ordering::Relaxed);
            std::future::pending()
        });
        b.cluster().connect(a.name()).await.unwrap();
        let said = Arc::new(AtomicUsize::new(0));
        let chatter = tokio::spawn(chatter(a.clone(), b.clone(), said.clone()));
        let victim = a.mailbox();
        let mut world = Self {
            events: a.cluster().node_events(),
            fabric,
            cookie,
            a,
            b,
            victim,
            runs,
            chatter,
            said,
            census: Census::default(),
        };
        assert_eq!(world.next_event().await, NodeEvent::Up(world.b.id()));
        world.talk().await;
        world.census = lock(&world.a.shared().census).to_owned();
        world
    }

    /// An attacker that has the cookie.
    fn member(&self, name: &str) -> Fake {
        Fake::new(&self.fabric, &self.cookie, "default", name)
    }

    async fn dials(&self, name: &NodeName) -> Result<NodeId, ConnectError> {
        let cluster = self.a.cluster();
        cluster.connect(name).await
    }

    async fn next_event(&mut self) -> NodeEvent {
        timeout(secs(120), self.events.next()).await.expect("an event").unwrap()
    }

    /// The attacker had a session, and it ended.
    async fn up_and_down(&mut self, attacker: &NodeId, reason: DownReason, what: &str) {
        assert_eq!(self.next_event().await, NodeEvent::Up(attacker.clone()), "{what}");
        assert_eq!(self.next_event().await, NodeEvent::Down(attacker.clone(), reason), "{what}");
    }

    /// Waits until the pair has said some more to each other.
    async fn talk(&self) {
        let enough = self.said.load(Ordering::Relaxed) + 3;
        let talking = async {
            while self.said.load(Ordering::Relaxed) < enough {
                assert!(!self.chatter.is_finished(), "the pair broke");
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(secs(5), talking).await.expect("the pair fell silent");
    }

    /// The attack is over: nothing got through, and nothing is left of it.
    async fn is_unharmed(&mut self) {
        self.talk().await;
        assert_eq!(self.a.cluster().peers(), [self.b.id()]);
        assert_eq!(self.b.cluster().peers(), [self.a.id()]);
        assert_eq!(self.victim.try_recv(), Err(RecvError::Empty));
        assert_eq!(self.victim.refused(), 0);
        assert_eq!(self.runs.load(Ordering::Relaxed), 0, "a handler ran for the attacker");
        self.has_no_event().await;
        self.has_no_leak().await;
    }

    async fn has_no_event(&mut self) {
        let event = timeout(Duration::from_millis(1), self.events.next()).await;
        assert!(event.is_err(), "{event:?}");
    }

    async fn has_no_leak(&self) {
        let mut left = Census::default();
        for _ in 0..100 {
            left = Census { handshakes_most: self.census.handshakes_most, ..self.held() };
            if left == self.census {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("{left:?} is not {:?}", self.census);
    }

    fn held(&self) -> Census {
        *lock(&self.a.shared().census)
    }

    /// A good node comes, is served, and goes.
    async fn welcomes_a_newcomer(&mut self) {
        let config = Config::default();
        let c = node(&self.fabric, &self.cookie, "c@10.0.0.3:4370", config).await;
        assert_eq!(c.cluster().connect(self.a.name()).await, Ok(self.a.id()));
        assert_eq!(self.next_event().await, NodeEvent::Up(c.id()));
        c.shutdown().await;
        assert_eq!(self.next_event().await, NodeEvent::Down(c.id(), DownReason::Left));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.chatter.abort();
    }
}

async fn node(fabric: &Fabric, cookie: &Cookie, name: &str, config: Config) -> Node {
    let name = NodeName::parse(name).unwrap();
    let crate::id::HostName::Ip(ip) = name.host() else { panic!("{name} has no address") };
    Node::builder(name.as_str())
        .cookie(cookie.clone())
        .network(fabric.host(ip))
        .config(quiet(config))
        .start()
        .await
        .unwrap()
}

/// Messages and calls both ways, again and again; panics when one of them fails, is late or out of order.
async fn chatter(a: Node, b: Node, said: Arc<AtomicUsize>) {
    let _ = b.rpc().serve(DOUBLE, |_, n| async move { n.wrapping_mul(2) });
    let (mut at_a, mut at_b) = (a.mailbox::<u64>(), b.mailbox::<u64>());
    let (to_a, to_b) = (at_a.address().bind(&b), at_b.address().bind(&a));
    let soon = secs(1);
    for n in 0.. {
        to_a.send(n).await.unwrap();
        to_b.send(n).await.unwrap();
        assert_eq!(at_a.recv_timeout(soon).await, Ok(n));
        assert_eq!(at_b.recv_timeout(soon).await, Ok(n));
        assert_eq!(a.rpc().call(b.name(), DOUBLE, n).timeout(soon).await, Ok(2 * n));
        assert_eq!(b.rpc().call(a.name(), DOUBLE, n).timeout(soon).await, Ok(2 * n));
        said.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(200)).await;
    }
}
