//! Elections across whole nodes: who leads, for how long, and who follows.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use distribute::{
    Config, Election, ElectionError, ElectionEvent, Leadership, LossReason, Name, Node, NodeName, StartError, Token,
    VoteError, Voters, VotersError,
};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::common::{World, ip, millis, secs};

const WORK: Name<u64> = Name::new("work");

/// What is documented for three voters; more of them split more votes.
const FAILOVER: Duration = Duration::from_secs(5);

/// Fails instead of waiting for ever.
async fn within<T>(patience: Duration, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(patience, what).await.expect("in time")
}

/// Nodes `n` on hosts from 1 on, each with a directory for its votes that outlives it.
struct Hall {
    world: World,
    directories: Vec<TempDir>,
}

fn name(host: u8) -> String {
    format!("n@10.0.0.{host}")
}

fn names(hosts: &[u8]) -> Vec<String> {
    hosts.iter().map(|host| name(*host)).collect()
}

fn voters(version: u64, hosts: &[u8]) -> Voters {
    Voters::new(version, names(hosts).iter().map(String::as_str))
}

impl Hall {
    fn new(seed: u64) -> Self {
        Self { world: World::new(seed), directories: (0..9).map(|_| tempfile::tempdir().unwrap()).collect() }
    }

    fn directory(&self, host: u8) -> &Path {
        self.directories[usize::from(host)].path()
    }

    async fn node(&self, host: u8) -> Node {
        let builder = self.world.builder("n", host).election_dir(self.directory(host)).bootstrap_expect(1);
        let first = if host == 1 { name(2) } else { name(1) };
        within(secs(10), builder.join(first.as_str()).start()).await.unwrap()
    }

    /// Nodes on these hosts, who know each other.
    async fn nodes(&self, hosts: &[u8]) -> Vec<Node> {
        let mut nodes = Vec::new();
        for host in hosts {
            nodes.push(self.node(*host).await);
        }
        for node in &nodes {
            within(secs(30), node.membership().wait_for_alive(hosts.len())).await.unwrap();
        }
        nodes
    }

    /// The host is dead for all others at once. What it sends reaches nobody.
    fn kill(&self, host: u8) {
        let others: Vec<_> = (1..9).filter(|other| *other != host).map(ip).collect();
        self.world.fabric.partition(&[ip(host)], &others);
    }
}

fn host_of(name: &NodeName) -> u8 {
    name.as_str().split(['.', ':']).nth(3).unwrap().parse().unwrap()
}

/// Each of these nodes takes part, and stands for as long as it lives.
async fn all_stand(nodes: &[Node], voters: &Voters) -> Vec<Election> {
    let mut elections = Vec::new();
    for node in nodes {
        let election = node.election("chair", voters.clone()).await.unwrap();
        if election.is_voter() {
            let standing = election.clone();
            tokio::spawn(async move { standing.while_leading(|_| std::future::pending::<()>()).await });
        }
        elections.push(election);
    }
    elections
}

/// Waits until all of these name the same leader, by a token after that one.
async fn agreed(elections: &[&Election], after: Option<Token>) -> (Token, NodeName) {
    within(secs(60), async {
        loop {
            let leaders: Vec<_> = elections.iter().map(|election| election.leader()).collect();
            if let Some(Some((token, leader))) = leaders.first()
                && leaders.iter().all(|other| other.as_ref() == leaders[0].as_ref())
                && after.is_none_or(|after| *token > after)
            {
                return (*token, leader.clone());
            }
            tokio::time::sleep(millis(10)).await;
        }
    })
    .await
}

/// How long it takes until a leadership is lost, and why.
async fn loss(leadership: &Leadership) -> LossReason {
    within(secs(30), leadership.lost()).await
}

/// The leader leaves, is killed, and leaves again: each time all who are left agree on one new leader, by a greater token.
/// Newcomers, and the loss of others, change nothing.
#[tokio::test(start_paused = true)]
async fn leaders_follow_each_other_and_nothing_else_moves_them() {
    let hall = Hall::new(1);
    let seven = [1, 2, 3, 4, 5, 6, 7];
    let nodes = hall.nodes(&seven).await;
    let elections = all_stand(&nodes, &voters(1, &seven)).await;
    let mut left: Vec<_> = nodes.iter().zip(&elections).collect();
    let mut last = None;
    for is_graceful in [true, false, true] {
        let (token, leader) = agreed(&left.iter().map(|(_, election)| *election).collect::<Vec<_>>(), last).await;
        let at = left.iter().position(|(node, _)| *node.name() == leader).unwrap();
        let (node, _) = left.remove(at);
        let began = Instant::now();
        if is_graceful {
            // It waits for what the dead have not read.
            let node = (*node).clone();
            tokio::spawn(async move { node.shutdown().await });
        } else {
            hall.kill(host_of(&leader));
        }
        let (next, _) = agreed(&left.iter().map(|(_, election)| *election).collect::<Vec<_>>(), Some(token)).await;
        let bound = if is_graceful { secs(2) } else { FAILOVER };
        assert!(began.elapsed() < bound, "{:?}, graceful: {is_graceful}", began.elapsed());
        assert!(next > token);
        last = Some(token);
    }
    let present = agreed(&left.iter().map(|(_, election)| *election).collect::<Vec<_>>(), last).await;

    let newcomer = hall.node(8).await;
    let watching = newcomer.election("chair", voters(1, &seven)).await.unwrap();
    assert_eq!(within(secs(5), watching.wait_for_leader()).await, Some(present.clone()), "it learns who leads");
    assert!(matches!(watching.campaign().await, Err(ElectionError::NotAVoter)));
    let mut changes = watching.observe();
    assert_eq!(changes.next().await, Some(ElectionEvent::Snapshot(Some(present.clone()))));
    // Of four voters one more may not be lost: seven were declared. It comes back.
    let other = left.iter().find(|(node, _)| *node.name() != present.1).unwrap().0;
    newcomer.shutdown().await;
    tokio::time::sleep(secs(5)).await;
    let host = host_of(other.name());
    hall.world.fabric.freeze(ip(host));
    tokio::time::sleep(millis(800)).await;
    hall.world.fabric.thaw(ip(host));
    tokio::time::sleep(secs(5)).await;
    for (node, election) in &left {
        assert_eq!(election.leader(), Some(present.clone()), "{}", node.name());
    }
}

/// A leader that is cut off with a minority stops leading before the majority has another, and never leads again from there.
#[tokio::test(start_paused = true)]
async fn a_minority_never_leads() {
    for seed in 0..3 {
        let hall = Hall::new(seed);
        let nodes = hall.nodes(&[1, 2, 3, 4, 5]).await;
        let voters = voters(1, &[1, 2, 3, 4, 5]);
        let mut elections = Vec::new();
        for node in &nodes {
            elections.push(node.election("chair", voters.clone()).await.unwrap());
        }
        let before = within(secs(10), elections[0].campaign()).await.unwrap();
        assert!(before.is_current());
        hall.world.fabric.partition(&[ip(1), ip(2)], &[ip(3), ip(4), ip(5)]);
        let cut = Instant::now();
        let (lost, after) = tokio::join!(async { (before.lost().await, Instant::now()) }, async {
            (within(FAILOVER, elections[2].campaign()).await.unwrap(), Instant::now())
        },);
        assert_eq!(lost.0, LossReason::LeaseExpired);
        assert!(lost.1 < after.1, "seed {seed}: lost {:?} after the cut", lost.1 - cut);
        assert!(!before.is_current() && after.0.is_current());
        assert!(after.0.token() > before.token());
        drop(before);

        let standing = elections[0].clone();
        let minority = tokio::spawn(async move { standing.campaign().await });
        tokio::time::sleep(secs(60)).await;
        assert!(!minority.is_finished(), "it stands, and is not elected");
        hall.world.fabric.heal_all();
        let known = agreed(&elections.iter().collect::<Vec<_>>(), None).await;
        assert_eq!(known.0, after.0.token());
        tokio::time::sleep(secs(20)).await;
        assert!(after.0.is_current(), "seed {seed}: who comes back does not disturb");
        assert!(!minority.is_finished());
        minority.abort();
    }
}

/// What is counted of a singleton, wherever it runs.
#[derive(Default)]
struct Log {
    /// By which token, and what was read.
    read: Mutex<Vec<(Token, u64)>>,
    begun: Mutex<Vec<(Token, Instant)>>,
    running: AtomicUsize,
    most: AtomicUsize,
}

/// A singleton on each voter that writes down what it reads.
fn singletons(elections: &[Election], log: &Arc<Log>) {
    struct Running(Arc<Log>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.running.fetch_sub(1, Ordering::SeqCst);
        }
    }
    for election in elections.iter().filter(|election| election.is_voter()) {
        let (election, log) = (election.clone(), log.clone());
        tokio::spawn(async move {
            let reading = election.singleton(WORK, |lease, mut mailbox| {
                let log = log.clone();
                async move {
                    let running = log.running.fetch_add(1, Ordering::SeqCst) + 1;
                    log.most.fetch_max(running, Ordering::SeqCst);
                    let _running = Running(log.clone());
                    log.begun.lock().unwrap().push((lease.token(), Instant::now()));
                    while let Some(number) = mailbox.recv().await {
                        log.read.lock().unwrap().push((lease.token(), number));
                    }
                    std::future::pending::<()>().await
                }
            });
            reading.await
        });
    }
}

/// Three of six die in the same moment, the leader among them: there is one new singleton, in time, and never two.
#[tokio::test(start_paused = true)]
async fn one_singleton_is_left_when_half_of_the_nodes_die() {
    let hall = Hall::new(7);
    let nodes = hall.nodes(&[1, 2, 3, 4, 5, 6]).await;
    let five = voters(1, &[1, 2, 3, 4, 5]);
    let mut elections = Vec::new();
    for node in &nodes {
        elections.push(node.election("chair", five.clone()).await.unwrap());
    }
    let log = Arc::new(Log::default());
    singletons(&elections, &log);
    let (token, leader) = agreed(&elections.iter().collect::<Vec<_>>(), None).await;
    for node in &nodes {
        let found = within(secs(10), node.registry().wait_for(WORK).into_future()).await.unwrap();
        assert_eq!(found.pid().node().name(), &leader, "everybody finds it");
    }
    let voter = (1..=5).find(|host| name(*host) != leader.as_str() && *host != host_of(&leader)).unwrap();
    for host in [host_of(&leader), voter, 6] {
        hall.kill(host);
    }
    let died = Instant::now();
    let left: Vec<_> = (1..=5)
        .filter(|host| ![host_of(&leader), voter].contains(host))
        .map(|host| &elections[host as usize - 1])
        .collect();
    let (next, heir) = agreed(&left, Some(token)).await;
    assert!(next > token && died.elapsed() < FAILOVER, "{:?}", died.elapsed());
    let heir = nodes.iter().find(|node| *node.name() == heir).unwrap();
    // Whoever decides on names may be dead as well.
    within(secs(30), async {
        while heir.registry().entry(WORK).is_none_or(|entry| entry.owner.node().name() != heir.name()) {
            tokio::time::sleep(millis(50)).await;
        }
    })
    .await;
    let entry = heir.registry().entry(WORK).unwrap();
    assert_eq!(&entry.metadata[..], next.to_string().as_bytes());
    tokio::time::sleep(secs(30)).await;
    let begun = log.begun.lock().unwrap().clone();
    assert_eq!(begun.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [token, next]);
    assert_eq!((log.running.load(Ordering::SeqCst), log.most.load(Ordering::SeqCst)), (1, 1));
}

/// By a resignation, a transfer and a shutdown in turn: the next singleton begins when the one before has ended, and what was
/// sent to the name arrives in order, or is counted as lost.
#[tokio::test(start_paused = true)]
async fn a_graceful_end_hands_over_without_overlap() {
    let hall = Hall::new(3);
    let nodes = hall.nodes(&[1, 2, 3, 4]).await;
    let three = voters(1, &[1, 2, 3]);
    let mut elections = Vec::new();
    for node in &nodes {
        elections.push(node.election("chair", three.clone()).await.unwrap());
    }
    let log = Arc::new(Log::default());
    singletons(&elections, &log);
    within(secs(10), nodes[3].registry().wait_for(WORK).into_future()).await.unwrap();
    let sender = nodes[3].clone();
    let sending = tokio::spawn(async move {
        let (mut sent, mut refused) = (Vec::new(), 0);
        for number in 0..4000 {
            match sender.registry().send(WORK, number).await {
                Ok(()) => sent.push(number),
                Err(_) => refused += 1,
            }
            tokio::time::sleep(millis(5)).await;
        }
        (sent, refused)
    });
    let mut token = None;
    for end in 0..3 {
        let left: Vec<_> = elections[..3].iter().filter(|election| election.leader().is_some()).collect();
        let (present, leader) = agreed(&left, token).await;
        token = Some(present);
        tokio::time::sleep(secs(3)).await;
        let at = nodes.iter().position(|node| *node.name() == leader).unwrap();
        let began = Instant::now();
        match end {
            0 => elections[at].resign().await,
            1 => {
                let heir = nodes[..3].iter().find(|node| *node.name() != leader).unwrap().name();
                elections[at].transfer(heir).await.unwrap();
                assert_eq!(elections[at].leader().map(|(_, leader)| leader).as_ref(), Some(heir));
            }
            _ => nodes[at].shutdown().await,
        }
        within(secs(3), async {
            while log.begun.lock().unwrap().len() < end + 2 {
                tokio::time::sleep(millis(1)).await;
            }
        })
        .await;
        let begun = log.begun.lock().unwrap()[end + 1];
        println!("end {end}: the next began after {:?}", begun.1 - began);
        assert!(begun.0 > present);
        let is_other = elections[3].leader().is_none_or(|(_, next)| next != leader);
        assert!(is_other || elections[3].leader().unwrap().0 == present, "another leads");
    }
    let (sent, refused) = within(secs(60), sending).await.unwrap();
    tokio::time::sleep(secs(1)).await;
    let read: Vec<_> = log.read.lock().unwrap().clone();
    assert_eq!(log.most.load(Ordering::SeqCst), 1, "never two at a time");
    assert!(read.windows(2).all(|pair| pair[0].1 < pair[1].1), "in order");
    assert!(read.windows(2).all(|pair| pair[0].0 <= pair[1].0), "by tokens that rise");
    let lost = sent.iter().filter(|number| !read.iter().any(|(_, read)| read == *number)).count();
    println!("{} read, {refused} refused, {lost} lost", read.len());
    assert_eq!(read.len() + lost, sent.len(), "each once, or lost");
    assert!(lost < 100 && read.len() > 3000);
}

/// One voter is replaced: the others go on as a later version with it, and the one that was replaced can elect nobody.
#[tokio::test(start_paused = true)]
async fn a_voter_is_replaced_by_another() {
    let hall = Hall::new(5);
    let nodes = hall.nodes(&[1, 2, 3]).await;
    let elections = all_stand(&nodes, &voters(1, &[1, 2, 3])).await;
    let (first, _) = agreed(&elections.iter().collect::<Vec<_>>(), None).await;
    hall.kill(3);
    let next = voters(2, &[1, 2, 4]);
    let far = nodes[0].election("chair", next.clone()).await;
    let far_from = VotersError::Apart { version: 2, stored: 1 };
    assert!(
        matches!(far, Err(ElectionError::Voters(error)) if error == far_from),
        "n1 and n3, n2 and n4: two majorities"
    );
    let next = next.before(names(&[1, 2, 3]).iter().map(String::as_str));
    let newcomer = hall.node(4).await;
    // The new one first, and it can elect nobody alone.
    let mut later = all_stand(std::slice::from_ref(&newcomer), &next).await;
    tokio::time::sleep(secs(10)).await;
    for node in &nodes[..2] {
        later.extend(all_stand(std::slice::from_ref(node), &next).await);
    }
    let (second, leader) = agreed(&later.iter().collect::<Vec<_>>(), Some(first)).await;
    assert_eq!((first.version(), second.version()), (1, 2));
    assert!(second > first && host_of(&leader) != 3);
    assert!(matches!(elections[0].campaign().await, Err(ElectionError::Superseded)), "a handle of the version before");
    let again = nodes[0].election("chair", voters(1, &[1, 2, 3])).await;
    assert!(matches!(again, Err(ElectionError::Voters(VotersError::Older { version: 1, stored: 2 }))), "{again:?}");
    let other = nodes[0].election("chair", voters(2, &[1, 2])).await;
    assert!(matches!(other, Err(ElectionError::Voters(VotersError::SameVersion { version: 2 }))), "{other:?}");
    let apart = nodes[0].election("chair", voters(3, &[5, 6, 7])).await;
    assert!(matches!(apart, Err(ElectionError::Voters(VotersError::Apart { .. }))), "{apart:?}");

    hall.world.fabric.heal_all();
    tokio::time::sleep(secs(30)).await;
    assert_eq!(agreed(&later.iter().collect::<Vec<_>>(), None).await.0.version(), 2);
    assert!(elections[2].leader().is_some_and(|(token, _)| token.version() == 2), "it learns that it votes no more");
}

/// Without disks: a voter that restarts asks the others what it has forgotten, and then its vote counts.
#[tokio::test(start_paused = true)]
async fn a_voter_without_a_disk_recovers() {
    let hall = Hall::new(9);
    let mut nodes = hall.nodes(&[1, 2, 3]).await;
    let three = voters(1, &[1, 2, 3]).diskless(4);
    let mut elections = all_stand(&nodes, &three).await;
    let (mut token, mut leader) = agreed(&elections.iter().collect::<Vec<_>>(), None).await;
    assert_eq!(token.generation(), 4);
    for _ in 0..3 {
        // Another than the leader restarts, and then the leader dies: the vote of the one that has forgotten is needed.
        let at = nodes.iter().position(|node| *node.name() != leader).unwrap();
        let host = host_of(nodes[at].name());
        nodes[at].shutdown().await;
        nodes[at] = hall.node(host).await;
        elections[at] = all_stand(&nodes[at..=at], &three).await.remove(0);
        tokio::time::sleep(secs(5)).await;
        assert_eq!(agreed(&elections.iter().collect::<Vec<_>>(), None).await, (token, leader.clone()));
        let dead = nodes.iter().position(|node| *node.name() == leader).unwrap();
        let dead_host = host_of(&leader);
        hall.kill(dead_host);
        let died = Instant::now();
        let left: Vec<_> = elections.iter().enumerate().filter(|(at, _)| *at != dead).map(|(_, e)| e).collect();
        let (next, heir) = agreed(&left, Some(token)).await;
        assert!(died.elapsed() < FAILOVER, "{:?}", died.elapsed());
        (token, leader) = (next, heir);
        hall.world.fabric.heal_all();
        nodes[dead].shutdown().await;
        nodes[dead] = hall.node(dead_host).await;
        elections[dead] = all_stand(&nodes[dead..=dead], &three).await.remove(0);
        tokio::time::sleep(secs(5)).await;
    }
    let two = nodes[0].election("pair", voters(1, &[1, 2]).diskless(1)).await;
    assert!(matches!(two, Err(ElectionError::Voters(VotersError::TwoWithoutDisk))));
}

/// Tokens rise over restarts of one after the other and of all at once.
#[tokio::test(start_paused = true)]
async fn no_token_comes_twice_whoever_restarts() {
    let hall = Hall::new(11);
    let three = voters(1, &[1, 2, 3]);
    let mut nodes = hall.nodes(&[1, 2, 3]).await;
    let mut elections = all_stand(&nodes, &three).await;
    let (mut token, _) = agreed(&elections.iter().collect::<Vec<_>>(), None).await;
    for round in 0..6 {
        if round % 2 == 0 {
            for at in 0..3 {
                nodes[at].shutdown().await;
                nodes[at] = hall.node(at as u8 + 1).await;
                elections[at] = all_stand(&nodes[at..=at], &three).await.remove(0);
                let (next, _) = agreed(&elections.iter().collect::<Vec<_>>(), None).await;
                assert!(next >= token, "round {round}: {next} after {token}");
                token = next;
            }
        } else {
            for node in &nodes {
                node.shutdown().await;
            }
            nodes = Vec::new();
            for host in 1..=3 {
                nodes.push(hall.node(host).await);
            }
            elections = all_stand(&nodes, &three).await;
            let (next, _) = agreed(&elections.iter().collect::<Vec<_>>(), None).await;
            assert!(next > token, "round {round}: {next} after {token}");
            token = next;
        }
    }
}

/// A node whose disk is gone does not vote, says so, and votes when the disk is back.
#[tokio::test(start_paused = true)]
async fn no_vote_leaves_without_a_disk() {
    let hall = Hall::new(13);
    let nodes = hall.nodes(&[1, 2, 3]).await;
    let three = voters(1, &[1, 2, 3]);
    let away = tempfile::tempdir().unwrap();
    let moved = |host: u8| away.path().join(host.to_string());
    // As if the volumes of two of them had been unmounted.
    for host in [2, 3] {
        std::fs::rename(hall.directory(host), moved(host)).unwrap();
    }
    let mut elections = Vec::new();
    for node in &nodes {
        elections.push(node.election("chair", three.clone()).await.unwrap());
    }
    let standing = elections[0].clone();
    let campaign = tokio::spawn(async move { standing.campaign().await });
    tokio::time::sleep(secs(30)).await;
    assert!(!campaign.is_finished(), "two of three do not vote");
    assert!(elections[1].counters().write_failures > 0 && elections[2].counters().write_failures > 0);
    assert_eq!(elections[0].counters().write_failures, 0);
    assert_eq!((elections[1].leader(), elections[0].leader()), (None, None));
    std::fs::rename(moved(2), hall.directory(2)).unwrap();
    let leadership = within(secs(10), campaign).await.unwrap().unwrap();
    assert!(leadership.is_current(), "a majority votes again");
    std::fs::rename(moved(3), hall.directory(3)).unwrap();
}

/// What a node cannot take part with, it is told at once, and nothing is overwritten.
#[tokio::test(start_paused = true)]
async fn what_keeps_a_node_from_an_election() {
    let hall = Hall::new(15);
    let one = hall.node(1).await;
    let alone = voters(1, &[1]);
    let election = one.election("chair", alone.clone()).await.unwrap();
    let leadership = within(secs(10), election.campaign()).await.unwrap();
    let taken = hall.world.builder("n", 2).election_dir(hall.directory(1)).start().await;
    assert!(matches!(taken, Err(StartError::Votes(VoteError::Locked(path))) if path == hall.directory(1)));
    one.shutdown().await;
    assert_eq!(loss(&leadership).await, LossReason::Shutdown);
    assert!(matches!(election.campaign().await, Err(ElectionError::Shutdown)));
    assert!(matches!(one.election("chair", alone.clone()).await, Err(ElectionError::Shutdown)));
    drop(leadership);

    let vote = std::fs::read_dir(hall.directory(1)).unwrap().map(|entry| entry.unwrap().path());
    let vote = vote.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "vote")).unwrap();
    let whole = std::fs::read(&vote).unwrap();
    std::fs::write(&vote, &whole[..whole.len() / 2]).unwrap();
    let again = hall.node(1).await;
    let refused = again.election("chair", alone.clone()).await;
    assert!(matches!(refused, Err(ElectionError::Vote(VoteError::Damaged(path))) if path == vote));
    assert_eq!(std::fs::read(&vote).unwrap(), &whole[..whole.len() / 2]);
    assert!(again.election("another", alone.clone()).await.is_ok(), "other elections are not concerned");
    std::fs::write(&vote, &whole).unwrap();
    assert!(again.election("chair", alone.clone()).await.is_ok());

    let bare = hall.world.node("n", 3).await;
    assert!(matches!(bare.election("chair", voters(1, &[3])).await, Err(ElectionError::NoDirectory)));
    assert!(bare.election("chair", alone).await.is_ok_and(|election| !election.is_voter()));
    assert!(matches!(bare.election("", voters(1, &[3])).await, Err(ElectionError::Name(_))));
    let wrong = bare.election("other", Voters::new(1, ["no name"])).await;
    assert!(matches!(wrong, Err(ElectionError::Voter { name, .. }) if name == "no name"));
    let client = hall.world.builder("n", 4).client().election_dir(hall.directory(4)).start().await.unwrap();
    assert!(matches!(client.election("chair", voters(1, &[4])).await, Err(ElectionError::Client)));

    let mut config = Config::default();
    config.elections_max = 1;
    let few = hall.world.builder("n", 5).config(config).election_dir(hall.directory(5)).start().await.unwrap();
    few.election("one", voters(1, &[5])).await.unwrap();
    assert!(few.election("one", voters(1, &[5])).await.is_ok(), "the same again");
    assert!(matches!(few.election("two", voters(1, &[5])).await, Err(ElectionError::TooMany(1))));
}

/// A campaign has its turn when the one before is over; a task runs in its own time only.
#[tokio::test(start_paused = true)]
async fn a_node_leads_once_at_a_time() {
    let hall = Hall::new(17);
    let nodes = hall.nodes(&[1, 2, 3]).await;
    let three = voters(1, &[1, 2, 3]);
    let mut elections = Vec::new();
    for node in &nodes {
        elections.push(node.election("chair", three.clone()).await.unwrap());
    }
    let first = within(secs(10), elections[0].campaign()).await.unwrap();
    let (a, b) = (elections[0].clone(), elections[0].clone());
    let waiting = tokio::spawn(async move { a.campaign().await });
    tokio::time::sleep(secs(5)).await;
    assert!(!waiting.is_finished() && first.is_current());
    waiting.abort();
    let _ = waiting.await;
    assert!(first.is_current(), "the campaign that was given up was not this one");
    assert!(matches!(elections[1].transfer(nodes[2].name()).await, Err(ElectionError::NotLeader)));
    assert!(matches!(b.transfer(nodes[0].name()).await, Err(ElectionError::NotASuccessor(_))));
    let late = b.transfer(nodes[1].name()).await;
    assert!(matches!(late, Err(ElectionError::NotTransferred { .. })), "it does not stand: {late:?}");
    assert_eq!(loss(&first).await, LossReason::Transferred);
    drop(first);

    let leadership = within(secs(10), elections[1].campaign()).await.unwrap();
    let began = Arc::new(AtomicUsize::new(0));
    let counted = began.clone();
    let running = tokio::spawn(leadership.run(move |lease| async move {
        counted.fetch_add(1, Ordering::SeqCst);
        let _lease = lease;
        std::future::pending::<()>().await
    }));
    tokio::time::sleep(millis(100)).await;
    assert_eq!(began.load(Ordering::SeqCst), 1);
    elections[1].resign().await;
    assert_eq!(running.await.unwrap(), Err(LossReason::Resigned));
    let next = within(secs(2), elections[2].campaign()).await.unwrap();
    assert!(next.is_current(), "nobody had to wait for a lease to end");
    let outcome = elections[2].counters();
    assert!(outcome.elected == 1 && outcome.campaigns >= 1, "{outcome:?}");
    drop(next);
    let done = within(secs(10), elections[0].while_leading(|lease| async move { lease.token() })).await.unwrap();
    let observed = elections[0].leader();
    assert!(observed.is_none_or(|(token, _)| token >= done), "it resigned with its task");
}

/// Links are full of bulk, and thousands of names are on their way: no heartbeat waits for any of it.
#[tokio::test(start_paused = true)]
async fn heartbeats_wait_neither_for_bulk_nor_for_names() {
    let hall = Hall::new(19);
    let nodes = hall.nodes(&[1, 2, 3]).await;
    let three = voters(1, &[1, 2, 3]);
    let mut elections = Vec::new();
    for node in &nodes {
        elections.push(node.election("chair", three.clone()).await.unwrap());
        within(secs(10), node.ready()).await.unwrap();
    }
    let leadership = within(secs(10), elections[0].campaign()).await.unwrap();
    // 4 Mbit/s, and a queue of an eighth of a second.
    let narrow = distribute::sim::Conditions::default().latency(millis(5)).bandwidth(500_000).queue(64 << 10);
    hall.world.fabric.conditions(narrow);
    let mut bulk = Vec::new();
    for to in &nodes[1..] {
        let mut mailbox = to.mailbox::<Vec<u8>>();
        let address = nodes[0].registry().clone();
        let name = Name::<Vec<u8>>::parse(format!("bulk/{}", to.name())).unwrap();
        to.registry().register(name.clone(), &mailbox).await.unwrap();
        tokio::spawn(async move { while mailbox.recv().await.is_some() {} });
        bulk.push(tokio::spawn(async move {
            let address = address.wait_for(name).await.unwrap();
            for _ in 0..4 {
                address.send(vec![7; 1 << 20]).await.unwrap();
            }
        }));
    }
    let naming = nodes[0].clone();
    let names = tokio::spawn(async move {
        let mailbox = naming.mailbox::<u64>();
        let registry = naming.registry();
        for number in 0..3000 {
            let name = Name::<u64>::parse(format!("name/{number}/{}", "x".repeat(200))).unwrap();
            registry.register(name, &mailbox).await.unwrap();
        }
    });
    let began = Instant::now();
    tokio::select! {
        why = leadership.lost() => panic!("lost after {:?}: {why:?}", began.elapsed()),
        () = async {
            for sending in bulk {
                within(secs(120), sending).await.unwrap();
            }
        } => {}
    }
    assert!(began.elapsed() > secs(5), "the links were full for {:?}", began.elapsed());
    assert!(leadership.is_current());
    names.abort();
    let token = leadership.token();
    assert!(elections.iter().all(|election| election.leader().is_some_and(|(known, _)| known == token)));
}
