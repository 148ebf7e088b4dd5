//! Members in processes of their own, over loopback: what the others see when one is killed, stopped, or restarted.

use std::time::{Duration, Instant};

use distribute::{
    Cookie, Member, MemberEvent, MemberState, Membership, MembershipEvent, MembershipEvents, Method, Node, NodeName,
};

use crate::children::{Process, live};
use crate::common::secs;

/// Whom a node has ever suspected.
const SUSPECTED: Method<(), Vec<String>> = Method::new("suspected");
/// Answers once the node sees a member in a state, as this incarnation or a later one, with so many refutations or more: with
/// its incarnation and its refutations.
const UNTIL: Method<(NodeName, String, u64, u32), (u64, u32)> = Method::new("until");

const CHILD: &str = "DISTRIBUTE_TEST_MEMBER";

/// Nodes of one cluster in the test's own process and in children.
struct Cluster {
    node: Node,
    cookie_file: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

async fn start(name: &str, cookie: Cookie, join: Option<&str>, incarnation: Option<u64>) -> Node {
    let mut builder = Node::builder(name).cookie(cookie);
    if let Some(join) = join {
        builder = builder.join(join);
    }
    if let Some(incarnation) = incarnation {
        builder = builder.incarnation(incarnation);
    }
    let node = builder.start().await.unwrap();
    let (membership, suspected) = (node.membership(), std::sync::Arc::new(std::sync::Mutex::new(Vec::new())));
    let (mut changes, seen) = (membership.subscribe(), suspected.clone());
    tokio::spawn(async move {
        while let Some(change) = changes.next().await {
            if let MembershipEvent::Changed(MemberEvent::Suspected { member, .. }) = change {
                seen.lock().unwrap().push(member.id.name().to_string());
            }
        }
    });
    node.rpc().serve(SUSPECTED, move |_, ()| std::future::ready(suspected.lock().unwrap().clone())).unwrap();
    node.rpc()
        .serve(UNTIL, move |_, (name, state, incarnation, refutation)| {
            let membership = membership.clone();
            async move {
                let is_wanted = |member: &&Member| {
                    *member.id.name() == name
                        && format!("{:?}", member.state) == state
                        && member.id.incarnation() >= incarnation
                        && member.refutation >= refutation
                };
                let members = membership.wait_for(|members| members.iter().any(|member| is_wanted(&member))).await;
                let seen = members.iter().flatten().find(is_wanted).map(|m| (m.id.incarnation(), m.refutation));
                seen.unwrap_or_default()
            }
        })
        .unwrap();
    node
}

/// The other processes; by itself it is no test. It lives until its standard input ends.
#[tokio::test]
async fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let arguments: Vec<_> = arguments.split('|').collect();
    let [cookie, name, join, incarnation] = arguments[..] else { panic!("four arguments") };
    let node = start(name, Cookie::load(cookie).unwrap(), Some(join), incarnation.parse().ok()).await;
    live(node).await;
}

impl Cluster {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cookie_file = directory.path().join("cookie");
        let cookie = Cookie::load_or_generate(&cookie_file).unwrap();
        Self { node: start("parent@127.0.0.1:0", cookie, None, None).await, cookie_file, _directory: directory }
    }

    fn child(&self, name: &str, incarnation: Option<u64>) -> Process {
        let incarnation = incarnation.map_or_else(String::new, |incarnation| incarnation.to_string());
        let arguments = [self.cookie_file.to_str().unwrap(), name, self.node.name().as_str(), &incarnation].join("|");
        Process::start("member_processes::child", CHILD, arguments)
    }

    /// The parent and two children, who all see each other.
    async fn three() -> (Self, Process, Process) {
        let cluster = Self::new().await;
        let (one, two) = (cluster.child("one@127.0.0.1:0", None), cluster.child("two@127.0.0.1:0", None));
        patience("three to see each other", cluster.membership().wait_for_alive(3)).await;
        for child in [&one, &two] {
            for of in [&one, &two] {
                cluster.until_seen(&child.name, &of.name, "Alive").await;
            }
        }
        (cluster, one, two)
    }

    fn membership(&self) -> Membership {
        self.node.membership()
    }

    /// Waits until a child sees a member in that state; returns its incarnation and refutations.
    async fn until_seen(&self, at: &NodeName, of: &NodeName, state: &str) -> (u64, u32) {
        self.until(at, of, state, 0, 0).await
    }

    /// The same for so late an incarnation, or a later one, and so many refutations, or more.
    async fn until(&self, at: &NodeName, of: &NodeName, state: &str, incarnation: u64, refutation: u32) -> (u64, u32) {
        let wanted = (of.clone(), state.to_owned(), incarnation, refutation);
        let seen = self.node.rpc().call(at, UNTIL, wanted).timeout(secs(40)).await;
        seen.unwrap_or_else(|error| panic!("{at} does not see {of} {state}: {error}"))
    }

    async fn suspected(&self, at: &NodeName) -> Vec<String> {
        self.node.rpc().call(at, SUSPECTED, ()).await.unwrap()
    }
}

async fn patience<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(secs(40), wait).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Waits for a change of one member.
async fn change_of(changes: &mut MembershipEvents, name: &NodeName) -> MemberEvent {
    patience("a change", async {
        loop {
            let MembershipEvent::Changed(change) = changes.next().await.unwrap() else { continue };
            if member_of(&change).is_some_and(|member| member.id.name() == name) {
                return change;
            }
        }
    })
    .await
}

fn member_of(change: &MemberEvent) -> Option<&Member> {
    match change {
        MemberEvent::Joined(member)
        | MemberEvent::Cleared(member)
        | MemberEvent::Returned(member)
        | MemberEvent::Left(member)
        | MemberEvent::Updated(member)
        | MemberEvent::Replaced { member, .. }
        | MemberEvent::Suspected { member, .. }
        | MemberEvent::Died { member, .. } => Some(member),
        _ => None,
    }
}

/// One of three is killed: both others declare it dead within seconds, and suspect nobody else.
#[tokio::test]
async fn a_killed_member_is_declared_dead() {
    let (cluster, one, mut two) = Cluster::three().await;
    let mut changes = cluster.membership().subscribe();
    two.child.kill().unwrap();
    let killed = Instant::now();
    assert!(matches!(change_of(&mut changes, &two.name).await, MemberEvent::Suspected { .. }));
    let suspected = killed.elapsed();
    assert!(matches!(change_of(&mut changes, &two.name).await, MemberEvent::Died { .. }));
    let dead = killed.elapsed();
    cluster.until_seen(&one.name, &two.name, "Dead").await;
    println!("suspected after {suspected:?}, dead after {dead:?}, by both after {:?}", killed.elapsed());
    // At most two intervals until its turn, one for the probe, and the shortest suspicion, four intervals.
    assert!(killed.elapsed() < secs(12));
    assert_eq!(cluster.suspected(&one.name).await, [two.name.to_string()]);
}

/// One that stands still for less than the shortest suspicion is not declared dead.
#[tokio::test]
async fn a_short_stop_is_no_death() {
    let (cluster, one, two) = Cluster::three().await;
    let mut changes = cluster.membership().subscribe();
    two.signal("STOP");
    assert!(matches!(change_of(&mut changes, &two.name).await, MemberEvent::Suspected { .. }));
    two.signal("CONT");
    let change = change_of(&mut changes, &two.name).await;
    assert!(matches!(change, MemberEvent::Cleared(_)), "{change:?}");
    cluster.until(&one.name, &two.name, "Alive", 0, 1).await;
}

/// One that stands still for longer is declared dead; when it goes on it hears of it, objects, and is back as the same life.
#[tokio::test]
async fn a_long_stop_is_a_death_that_is_taken_back() {
    let (cluster, one, two) = Cluster::three().await;
    let before = cluster.until_seen(&one.name, &two.name, "Alive").await;
    two.signal("STOP");
    cluster.until_seen(&one.name, &two.name, "Dead").await;
    let here = cluster.membership();
    let is_dead = |member: &Member| *member.id.name() == two.name && member.state == MemberState::Dead;
    patience("the parent to see it dead", here.wait_for(|members| members.iter().any(is_dead))).await;
    let mut changes = here.subscribe();
    two.signal("CONT");
    let continued = Instant::now();
    assert!(matches!(change_of(&mut changes, &two.name).await, MemberEvent::Returned(_)));
    let after = cluster.until(&one.name, &two.name, "Alive", 0, before.1 + 1).await;
    println!("back {:?} after it went on", continued.elapsed());
    assert_eq!(after.0, before.0, "the same life");
}

/// A node whose clock stepped back an hour before it restarts is back at once, everywhere.
#[tokio::test]
async fn a_clock_that_stepped_back_keeps_nobody_out() {
    const HOUR: u64 = 3_600_000_000;
    let (cluster, one, mut two) = Cluster::three().await;
    let (before, _) = cluster.until_seen(&one.name, &two.name, "Alive").await;
    two.child.kill().unwrap();
    two.child.wait().unwrap();
    let restarted = Instant::now();
    let again = cluster.child(two.name.as_str(), Some(before - HOUR));
    cluster.until(&one.name, &again.name, "Alive", before + 1, 0).await;
    let is_back = |member: &Member| member.id.incarnation() > before && member.state == MemberState::Alive;
    let membership = cluster.membership();
    patience(
        "the parent to see it",
        membership.wait_for(|members| members.iter().any(|m| m.id.name() == &again.name && is_back(m))),
    )
    .await;
    println!("back everywhere {:?} after the restart began", restarted.elapsed());
    assert!(restarted.elapsed() < Duration::from_secs(6), "{:?}", restarted.elapsed());
}
