//! A cluster in memory.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use distribute::sim::{Conditions, Fabric};
use distribute::{Builder, Config, Cookie, Node, NodeEvent, NodeEvents};

/// Nodes on one in-memory network, under the paused clock.
pub(crate) struct World {
    pub(crate) fabric: Fabric,
    cookie: Cookie,
}

/// Says a figure past the harness, which keeps to itself what tests print that pass.
pub(crate) fn say(figure: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{figure}");
}

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The address of the host that a number names.
pub(crate) fn ip(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, host).into()
}

/// The faults of a bad day: 5 % loss, jitter, reordering, duplicates.
pub(crate) fn lossy() -> Conditions {
    Conditions::default().latency(millis(5)).jitter(millis(20)).loss(0.05).duplicate(0.02).reorder(0.05)
}

impl World {
    /// A network whose faults follow the seed. With `RUST_LOG` set, the nodes say what they do.
    pub(crate) fn new(seed: u64) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        Self { fabric: Fabric::new(seed), cookie: Cookie::generate() }
    }

    pub(crate) fn builder(&self, name: &str, host: u8) -> Builder {
        Node::builder(format!("{name}@10.0.0.{host}").as_str())
            .cookie(self.cookie.clone())
            .network(self.fabric.host(ip(host)))
    }

    pub(crate) async fn node(&self, name: &str, host: u8) -> Node {
        self.builder(name, host).start().await.unwrap()
    }

    /// A node whose host is reached by a name or is of IPv6.
    pub(crate) async fn at(&self, name: &str, host: IpAddr) -> Node {
        let builder = Node::builder(name).cookie(self.cookie.clone()).network(self.fabric.host(host));
        builder.start().await.unwrap()
    }

    /// A node that never asks by itself whether another lives.
    pub(crate) async fn unprobing(&self, name: &str, host: u8) -> Node {
        self.builder(name, host).config(unprobing()).start().await.unwrap()
    }

    /// As [`World::pair`], but neither asks by itself whether the other lives.
    pub(crate) async fn unprobing_pair(&self) -> (Node, Node) {
        (self.unprobing("a", 1).await, self.unprobing("b", 2).await)
    }

    /// Nodes `a` and `b` on hosts 1 and 2.
    pub(crate) async fn pair(&self) -> (Node, Node) {
        (self.node("a", 1).await, self.node("b", 2).await)
    }
}

/// Settings of a node that never asks by itself whether another lives, so that its links are used by users alone.
pub(crate) fn unprobing() -> Config {
    let day = secs(24 * 60 * 60);
    let mut config = Config::default();
    (config.probe_interval, config.sync_interval, config.dead_kept) = (day, day, 200 * day);
    config
}

/// The next event, within a virtual minute.
pub(crate) async fn next(events: &mut NodeEvents) -> NodeEvent {
    tokio::time::timeout(secs(60), events.next()).await.expect("an event within a minute").expect("the node lives")
}

/// Whether no event comes within that time.
pub(crate) async fn quiet(events: &mut NodeEvents, time: Duration) -> bool {
    tokio::time::timeout(time, events.next()).await.is_err()
}
