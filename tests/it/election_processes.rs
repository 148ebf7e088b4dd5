//! Voters in processes of their own, over loopback: what the others do when the leader is killed or stopped, and what a
//! resource that looks at tokens does about a leader of the past.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use distribute::{Cookie, Fence, Fenced, Method, Node, NodeId, NodeName, Token, Voters};

use crate::children::{Process, live};
use crate::common::{millis, say, secs};

/// Has a child take part in the election.
const OPEN: Method<Vec<NodeName>, ()> = Method::new("open");
/// Who leads, as a child knows it.
const LEADER: Method<(), Option<(Token, NodeName)>> = Method::new("leader");
/// Why a child lost its leaderships.
const LOSSES: Method<(), Vec<String>> = Method::new("losses");
/// The resource, which is the test's own process: a write in the name of a leadership. Answers false when it was refused.
const WRITE: Method<(NodeId, Token), bool> = Method::new("write");

const CHILD: &str = "DISTRIBUTE_TEST_VOTER";

/// What is documented for three voters.
const FAILOVER: Duration = Duration::from_secs(5);

/// Writes again and again in the name of a leadership, whether or not it is over: as a thread would that nobody stops.
async fn write_on(node: Node, resource: NodeName, token: Token) {
    loop {
        let _ = node.rpc().call(&resource, WRITE, (node.id(), token)).timeout(secs(1)).await;
        tokio::time::sleep(millis(10)).await;
    }
}

/// The other processes; by itself it is no test. It lives until its standard input ends.
#[tokio::test]
async fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let arguments: Vec<_> = arguments.split('|').collect();
    let [cookie, name, join, directory] = arguments[..] else { panic!("four arguments") };
    let builder = Node::builder(name).cookie(Cookie::load(cookie).unwrap()).join(join).election_dir(directory);
    let node = builder.start().await.unwrap();
    let resource: NodeName = join.parse().unwrap();
    let losses = Arc::new(Mutex::new(Vec::new()));
    let known = losses.clone();
    node.rpc().serve(LOSSES, move |_, ()| std::future::ready(known.lock().unwrap().clone())).unwrap();
    let (opening, has_begun) = (node.clone(), Arc::new(AtomicBool::new(false)));
    node.rpc()
        .serve(OPEN, move |_, voters| {
            let (node, resource, losses) = (opening.clone(), resource.clone(), losses.clone());
            let is_first = !has_begun.swap(true, Ordering::SeqCst);
            async move {
                if !is_first {
                    return;
                }
                let election = node.election("chair", Voters::new(1, &voters)).await.unwrap();
                let asked = election.clone();
                let _ = node.rpc().serve(LEADER, move |_, ()| std::future::ready(asked.leader()));
                tokio::spawn(async move {
                    loop {
                        let leadership = election.campaign().await.unwrap();
                        tokio::spawn(write_on(node.clone(), resource.clone(), leadership.token()));
                        let lost = leadership.lost().await;
                        losses.lock().unwrap().push(format!("{lost:?}"));
                    }
                });
            }
        })
        .unwrap();
    live(node).await;
}

/// What the resource has seen.
#[derive(Default)]
struct Resource {
    fence: Fence,
    /// Who wrote by each token, and when first and last.
    writers: BTreeMap<Token, (NodeId, Instant, Instant)>,
    /// Refused writes, by their token.
    refused: BTreeMap<Token, u64>,
}

impl Resource {
    fn write(&mut self, by: NodeId, token: Token) -> bool {
        match self.fence.admit(token) {
            Ok(()) => {
                let now = Instant::now();
                let (writer, _, last) = self.writers.entry(token).or_insert_with(|| (by.clone(), now, now));
                assert_eq!(*writer, by, "{token} has come twice");
                *last = now;
                true
            }
            Err(Fenced { token, .. }) => {
                *self.refused.entry(token).or_default() += 1;
                false
            }
        }
    }
}

/// Three voters, and the resource.
struct Cluster {
    node: Node,
    resource: Arc<Mutex<Resource>>,
    children: Vec<Process>,
    directory: tempfile::TempDir,
}

impl Cluster {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cookie = Cookie::load_or_generate(directory.path().join("cookie")).unwrap();
        let node = Node::builder("resource@127.0.0.1:0").cookie(cookie).start().await.unwrap();
        let resource = Arc::new(Mutex::new(Resource::default()));
        let written = resource.clone();
        let write = move |_, (by, token)| std::future::ready(written.lock().unwrap().write(by, token));
        node.rpc().serve(WRITE, write).unwrap();
        let mut cluster = Self { node, resource, children: Vec::new(), directory };
        for local in ["a", "b", "c"] {
            std::fs::create_dir(cluster.votes_of(local)).unwrap();
            let child = cluster.start(&format!("{local}@127.0.0.1:0"));
            cluster.children.push(child);
        }
        cluster.open_all().await;
        cluster
    }

    fn votes_of(&self, local: &str) -> PathBuf {
        self.directory.path().join(local)
    }

    fn start(&self, name: &str) -> Process {
        let directory = self.votes_of(name.split('@').next().unwrap());
        let cookie = self.directory.path().join("cookie");
        let (cookie, directory) = (cookie.to_str().unwrap(), directory.to_str().unwrap());
        let arguments = [cookie, name, self.node.name().as_str(), directory].join("|");
        Process::start("election_processes::child", CHILD, arguments)
    }

    async fn open(&self, at: usize) {
        let voters: Vec<_> = self.children.iter().map(|child| child.name.clone()).collect();
        let began = Instant::now();
        // A session with the life before may end meanwhile.
        while let Err(error) = self.node.rpc().call(&self.children[at].name, OPEN, voters.clone()).await {
            assert!(began.elapsed() < secs(20), "{error}");
        }
    }

    async fn open_all(&self) {
        for at in 0..self.children.len() {
            self.open(at).await;
        }
    }

    /// Kills a child, as a crash would.
    fn kill(&mut self, at: usize) {
        self.children[at].child.kill().unwrap();
        self.children[at].child.wait().unwrap();
    }

    /// The same node again, with the vote that it has.
    async fn restart(&mut self, at: usize) {
        let name = self.children[at].name.to_string();
        self.children[at] = self.start(&name);
        self.open(at).await;
    }

    /// Waits for a write by a token after that one: the token, who wrote, and when first.
    async fn written_after(&self, token: Option<Token>) -> (Token, usize, Instant) {
        let began = Instant::now();
        loop {
            let last = self.resource.lock().unwrap().writers.iter().next_back().map(|(t, w)| (*t, w.clone()));
            if let Some((last, (by, first, _))) = last
                && token.is_none_or(|token| last > token)
            {
                let at = self.children.iter().position(|child| child.name == *by.name()).unwrap();
                return (last, at, first);
            }
            assert!(began.elapsed() < secs(30), "nobody leads");
            tokio::time::sleep(millis(2)).await;
        }
    }

    /// Waits until a child knows that leadership.
    async fn until_known(&self, at: usize, token: Token) {
        let began = Instant::now();
        loop {
            let known = self.node.rpc().call(&self.children[at].name, LEADER, ()).await;
            if known.is_ok_and(|known| known.is_some_and(|(known, _)| known >= token)) {
                return;
            }
            assert!(began.elapsed() < secs(30), "it does not learn who leads");
            tokio::time::sleep(millis(20)).await;
        }
    }
}

/// From the kill until the resource has a write by the next leader. `KILLS=20` measures more of them.
#[tokio::test]
async fn a_killed_leader_is_followed_in_time() {
    let kills = std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(5);
    let mut cluster = Cluster::new().await;
    let (mut token, mut leader, _) = cluster.written_after(None).await;
    let mut times = Vec::new();
    for _ in 0..kills {
        for at in 0..3 {
            cluster.until_known(at, token).await;
        }
        let killed = Instant::now();
        cluster.kill(leader);
        let (next, heir, first) = cluster.written_after(Some(token)).await;
        times.push(first - killed);
        cluster.restart(leader).await;
        (token, leader) = (next, heir);
    }
    times.sort();
    let (p50, most) = (times[times.len() / 2], times[times.len() - 1]);
    say(format_args!("failover over {kills} kills: p50 {p50:.2?}, max {most:.2?}, of {times:.2?}"));
    assert!(most < FAILOVER, "{times:?}");
}

/// A leader is stopped, another follows, and the first goes on: whatever it writes then is refused.
#[tokio::test]
async fn a_frozen_leader_writes_nothing_when_it_wakes() {
    let cluster = Cluster::new().await;
    let (old, frozen, _) = cluster.written_after(None).await;
    cluster.children[frozen].signal("STOP");
    let (new, heir, _) = cluster.written_after(Some(old)).await;
    assert!(new > old && heir != frozen);
    assert_eq!(cluster.resource.lock().unwrap().refused.get(&old), None);
    cluster.children[frozen].signal("CONT");
    let woken = Instant::now();
    // Its writer does not know, or does not care.
    while cluster.resource.lock().unwrap().refused.get(&old).copied().unwrap_or_default() < 10 {
        assert!(woken.elapsed() < secs(30), "no write of the old leader has come");
        tokio::time::sleep(millis(10)).await;
    }
    cluster.until_known(frozen, new).await;
    let of = |token| cluster.resource.lock().unwrap().writers[&token].clone();
    assert!(of(old).2 < of(new).1, "none was admitted after the new leader's first");
    let losses = cluster.node.rpc().call(&cluster.children[frozen].name, LOSSES, ()).await.unwrap();
    assert_eq!(losses, ["LeaseExpired"], "it knows by its own clock");
}

/// Processes are killed and restarted, one after the other and all at once: no two leaderships have the same token.
#[tokio::test]
async fn no_token_comes_twice_from_processes_that_are_killed() {
    let mut cluster = Cluster::new().await;
    let (mut token, _, _) = cluster.written_after(None).await;
    for is_together in [false, true, true] {
        if is_together {
            (0..3).for_each(|at| cluster.kill(at));
            for at in 0..3 {
                let name = cluster.children[at].name.to_string();
                cluster.children[at] = cluster.start(&name);
            }
            cluster.open_all().await;
            // The resource says who wrote by which token, and panics when two did.
            let (next, _, _) = cluster.written_after(Some(token)).await;
            token = next;
        } else {
            for at in 0..3 {
                cluster.kill(at);
                cluster.restart(at).await;
            }
            let latest = cluster.resource.lock().unwrap().fence.highest().unwrap();
            for at in 0..3 {
                cluster.until_known(at, latest).await;
            }
            token = latest;
        }
    }
    let resource = cluster.resource.lock().unwrap();
    assert!(resource.writers.len() >= 3 && resource.fence.highest() >= Some(token));
}
