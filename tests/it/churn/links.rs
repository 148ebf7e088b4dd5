//! Links that fail one by one, or again and again: who is not concerned does not notice, and no storm follows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use distribute::{
    MemberEvent, MembershipEvent, MembershipEvents, Names, Node, NodeEvent, NodeEvents, NodeId, SendError,
};
use tokio::time::{Instant, sleep, timeout};

use crate::common::{World, ip, lossy, millis, secs};

const NODES: u8 = 20;

/// Nodes on hosts 1 to `size` that have met, and have nothing left to tell each other.
async fn cluster(world: &World, size: u8) -> Vec<Node> {
    let mut nodes = vec![world.node("n", 1).await];
    for host in 2..=size {
        nodes.push(world.builder("n", host).join(nodes[0].name()).start().await.unwrap());
    }
    for node in &nodes {
        timeout(secs(60), node.membership().wait_for_alive(size.into())).await.expect("they meet").unwrap();
        timeout(secs(60), node.ready()).await.expect("it is ready").unwrap();
    }
    sleep(secs(30)).await;
    nodes
}

/// What one node is told of members and sessions.
struct Observer {
    members: MembershipEvents,
    sessions: NodeEvents,
}

impl Observer {
    fn of(node: &Node) -> Self {
        Self { members: node.membership().subscribe(), sessions: node.cluster().node_events() }
    }

    /// Waits until it is told that this one is dead, and of nobody else that it is gone.
    async fn sees_the_death_of(&mut self, gone: &NodeId) {
        loop {
            match self.members.next().await.expect("the node lives") {
                MembershipEvent::Changed(MemberEvent::Died { member, .. }) if member.id == *gone => return,
                event => is_no_end(&event),
            }
        }
    }

    /// Nobody else is gone, in its view, nor is any session with another.
    async fn saw_no_other_end(&mut self, gone: &NodeId) {
        while let Ok(event) = timeout(millis(1), self.members.next()).await {
            is_no_end(&event.expect("the node lives"));
        }
        while let Ok(event) = timeout(millis(1), self.sessions.next()).await {
            match event.expect("the node lives") {
                NodeEvent::Up(_) => {}
                NodeEvent::Down(node, _) if node == *gone => {}
                event => panic!("{event:?}"),
            }
        }
    }
}

fn is_no_end(event: &MembershipEvent) {
    use MemberEvent::{Cleared, Joined, Suspected, Updated};
    match event {
        MembershipEvent::Snapshot(_)
        | MembershipEvent::Changed(Cleared(_) | Joined(_) | Suspected { .. } | Updated(_)) => {}
        event => panic!("{event:?}"),
    }
}

/// What nodes have sent, together.
#[derive(Clone, Copy, Debug)]
struct Effort {
    /// Packets of membership.
    packets: u64,
    /// Links that membership asked for.
    dials: u64,
    /// Datagrams of all kinds.
    datagrams: u64,
    /// Of these: to or from where there is a cut.
    into_the_cut: u64,
}

impl Effort {
    async fn of(world: &World, nodes: &[Node]) -> Self {
        let counters = world.fabric.counters();
        let (mut packets, mut dials) = (0, 0);
        for node in nodes {
            let counters = node.membership().counters().await;
            packets += counters.packets_sent;
            dials += counters.dials;
        }
        Self { packets, dials, datagrams: counters.sent, into_the_cut: counters.cut }
    }

    fn since(self, before: Self) -> Self {
        Self {
            packets: self.packets - before.packets,
            dials: self.dials - before.dials,
            datagrams: self.datagrams - before.datagrams,
            into_the_cut: self.into_the_cut - before.into_the_cut,
        }
    }
}

/// One of twenty is gone for the others, however it goes: these stay one cluster, and tell each other so by a number of
/// messages that is in proportion to theirs.
async fn one_drops_out(world: World, host: u8, drop_out: impl AsyncFnOnce(&World)) {
    let mut nodes = cluster(&world, NODES).await;
    let (index, others) = (usize::from(host - 1), u64::from(NODES - 1));
    let gone = nodes.remove(index);
    let before = Effort::of(&world, &nodes).await;
    sleep(secs(60)).await;
    let quiet = Effort::of(&world, &nodes).await.since(before);

    let mut observers: Vec<_> = nodes.iter().map(Observer::of).collect();
    let (before, began) = (Effort::of(&world, &nodes).await, Instant::now());
    drop_out(&world).await;
    for observer in &mut observers {
        timeout(secs(60), observer.sees_the_death_of(&gone.id())).await.expect("it is told");
    }
    println!("all were told after {:?}", began.elapsed());
    sleep(secs(60) - began.elapsed()).await;
    let minute = Effort::of(&world, &nodes).await.since(before);
    println!("a quiet minute: {quiet:?}\nthe minute of the fall: {minute:?}");
    sleep(secs(60)).await;
    for (node, observer) in nodes.iter().zip(&mut observers) {
        observer.saw_no_other_end(&gone.id()).await;
        assert_eq!(node.membership().alive().len(), nodes.len());
        assert!(!node.cluster().peers().contains(&gone.id()));
    }
    assert!(minute.dials <= quiet.dials + 4 * others, "no storm of dials: {minute:?}");
    assert!(minute.packets <= quiet.packets + 60 * others, "news in proportion to the nodes: {minute:?}");
    assert!(minute.into_the_cut <= quiet.into_the_cut + 200 * others, "few words to the dead: {minute:?}");
}

#[tokio::test(start_paused = true)]
async fn one_of_twenty_loses_its_links_one_by_one() {
    one_drops_out(World::new(151), NODES, async |world| {
        for other in 1..NODES {
            world.fabric.cut(ip(NODES), ip(other));
            sleep(secs(2) / u32::from(NODES - 1)).await;
        }
    })
    .await;
}

/// Here it is the one by which all others joined.
#[tokio::test(start_paused = true)]
async fn one_of_twenty_dies_while_packets_are_lost() {
    let world = World::new(152);
    world.fabric.conditions(lossy());
    one_drops_out(world, 1, async |world| {
        for other in 2..=NODES {
            world.fabric.cut(ip(1), ip(other));
        }
    })
    .await;
}

/// Sends for ever, and takes no for an answer.
async fn chatter(there: distribute::Address<u64>, ends: Arc<AtomicU64>) {
    for n in 0.. {
        match there.send(n).await {
            Ok(()) => {}
            Err(SendError::SessionEnded(_)) => drop(ends.fetch_add(1, Ordering::Relaxed)),
            Err(SendError::NotConnected(..)) => {}
            Err(error) => panic!("{error:?}"),
        }
        sleep(millis(10)).await;
    }
}

/// One link of four nodes fails five hundred times in a minute, by short cuts and by ends of its session: what the two hold
/// does not grow, others get their names as ever, ups and downs alternate, nobody is declared dead, and after it all is well.
#[tokio::test(start_paused = true)]
async fn a_link_flaps_five_hundred_times_in_a_minute() {
    const FLAPS: u64 = 500;
    const USUAL: Duration = Duration::from_secs(2);
    let names: Names<u64> = Names::new("number");
    let world = World::new(153);
    let nodes = cluster(&world, 4).await;
    let (a, b) = (&nodes[0], &nodes[1]);
    let (mut at_a, mut at_b) = (a.mailbox::<u64>(), b.mailbox::<u64>());
    let ends = Arc::new(AtomicU64::new(0));
    let chatters =
        [(&at_a, b), (&at_b, a)].map(|(inbox, from)| tokio::spawn(chatter(inbox.address().bind(from), ends.clone())));
    sleep(secs(5)).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let usual_tasks = tasks();
    let mut observers: Vec<_> = nodes.iter().map(Observer::of).collect();

    let registering = {
        let others = [nodes[2].clone(), nodes[3].clone()];
        tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            let mailboxes = others.each_ref().map(|node| node.mailbox::<u64>());
            for n in 0..usize::MAX {
                let (node, mailbox) = (&others[n % 2], &mailboxes[n % 2]);
                let began = Instant::now();
                let registration = node.registry().register(names.name(n).unwrap(), mailbox).await.unwrap();
                slowest = slowest.max(began.elapsed());
                if n >= 600 {
                    return (n, slowest);
                }
                registration.unregister().await.unwrap();
                sleep(millis(100) - began.elapsed().min(millis(100))).await;
            }
            (0, slowest)
        })
    };

    let mut rng = fastrand::Rng::with_seed(153);
    let (mut last, mut most_tasks, mut heard) = ([None; 2], 0, 0);
    let began = Instant::now();
    for flap in 0..FLAPS {
        match flap % 4 {
            0 => a.cluster().disconnect(b.name()).await,
            2 => b.cluster().disconnect(a.name()).await,
            _ => {
                world.fabric.cut(ip(1), ip(2));
                sleep(millis(rng.u64(1..110))).await;
                world.fabric.heal(ip(1), ip(2));
            }
        }
        sleep_until_flap(began, flap + 1).await;
        most_tasks = most_tasks.max(tasks());
        for (inbox, last) in [&mut at_a, &mut at_b].into_iter().zip(&mut last) {
            while let Ok(n) = inbox.try_recv() {
                assert!(last.replace(n).is_none_or(|last| last < n), "{n} after {last:?}");
                heard += 1;
            }
        }
    }
    assert!(began.elapsed() < secs(61), "{:?}", began.elapsed());
    let (registered, slowest) = registering.await.unwrap();
    println!("{registered} names were registered, the slowest in {slowest:?}");
    assert!(slowest < USUAL, "{slowest:?}");
    println!("{heard} messages arrived, {ends:?} ends were told; {usual_tasks} tasks, at most {most_tasks}");
    assert!(ends.load(Ordering::Relaxed) >= FLAPS / 4 && heard > 1_000);
    assert!(most_tasks < usual_tasks + 50, "{most_tasks} tasks, of {usual_tasks}");

    // After it, the two talk, and all agree.
    let patience = Instant::now() + secs(10);
    let link = async {
        let (n, m) = tokio::join!(at_a.recv(), at_b.recv());
        assert!(n.is_some() && m.is_some());
    };
    timeout(secs(10), link).await.expect("they talk again");
    chatters.iter().for_each(tokio::task::JoinHandle::abort);
    let entries = nodes[2].registry().entries();
    for (node, observer) in nodes.iter().zip(&mut observers) {
        while node.registry().entries() != entries || tasks() > usual_tasks {
            assert!(Instant::now() < patience, "{} tasks, {:?}", tasks(), node.registry().entries());
            sleep(millis(100)).await;
        }
        assert_eq!(node.membership().members().len(), nodes.len());
        assert_eq!(node.membership().alive().len(), nodes.len());
        let mut up = std::collections::BTreeSet::new();
        let mut downs = 0;
        while let Ok(event) = timeout(millis(1), observer.sessions.next()).await {
            match event.expect("the node lives") {
                NodeEvent::Up(peer) => assert!(up.insert(peer)),
                NodeEvent::Down(peer, _) => {
                    assert!(up.remove(&peer));
                    downs += 1;
                }
                event => panic!("{event:?}"),
            }
        }
        assert_eq!(up.into_iter().collect::<Vec<_>>(), node.cluster().peers());
        let is_concerned = [a.id(), b.id()].contains(&node.id());
        assert!(if is_concerned { downs >= FLAPS / 4 } else { downs == 0 }, "{node:?} was told of {downs} ends");
        observer.saw_no_other_end(&node.id()).await;
    }
}

/// Flaps begin 120 ms apart.
async fn sleep_until_flap(began: Instant, flap: u64) {
    tokio::time::sleep_until(began + millis(120 * flap)).await;
}
