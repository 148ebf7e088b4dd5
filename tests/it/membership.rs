//! Whole nodes that know each other: joining, dying, cuts, good-byes, new lives, facts, over the network in memory.

use std::net::IpAddr;
use std::time::Duration;

use distribute::sim::Conditions;
use distribute::{
    Config, ConnectError, Cookie, Dns, HealthReason, HealthStatus, MemberEvent, MemberState, MembershipEvent,
    MembershipEvents, Node, PublishError, Topic,
};
use tokio::time::Instant;

use crate::common::{World, ip, lossy, millis, secs};

const NEWS: Topic<u64> = Topic::new("news");

/// Nodes `n` on hosts 1 to `size`, joined through the first, who all see each other.
async fn cluster(world: &World, size: u8) -> Vec<Node> {
    let mut nodes = vec![world.node("n", 1).await];
    for host in 2..=size {
        nodes.push(world.builder("n", host).join(nodes[0].name()).start().await.unwrap());
    }
    all_see(&nodes, size.into()).await;
    nodes
}

/// Settings of a node that is to be dropped without a word, and whose port is to be free soon.
fn hasty() -> Config {
    let mut config = Config::default();
    config.shutdown_timeout = millis(100);
    config
}

/// Waits until each of these nodes sees exactly so many live.
async fn all_see(nodes: &[Node], alive: usize) {
    for node in nodes {
        let membership = node.membership();
        let seen = membership.wait_for(|members| members.iter().filter(|m| m.state.is_live()).count() == alive);
        let seen = tokio::time::timeout(secs(300), seen).await;
        assert!(seen.is_ok(), "{} sees {:?}, not {alive}", node.name(), node.membership().alive());
    }
}

/// Waits for a change of the member on that host.
async fn change_of(changes: &mut MembershipEvents, node: &Node) -> MemberEvent {
    let waiting = async {
        loop {
            if let MembershipEvent::Changed(change) = changes.next().await.unwrap()
                && is_about(&change, node)
            {
                return change;
            }
        }
    };
    tokio::time::timeout(secs(300), waiting).await.expect("a change")
}

fn is_about(change: &MemberEvent, node: &Node) -> bool {
    match change {
        MemberEvent::Joined(member)
        | MemberEvent::Cleared(member)
        | MemberEvent::Returned(member)
        | MemberEvent::Left(member)
        | MemberEvent::Updated(member)
        | MemberEvent::Replaced { member, .. }
        | MemberEvent::Suspected { member, .. }
        | MemberEvent::Died { member, .. } => member.id.name() == node.name(),
        _ => false,
    }
}

fn state(at: &Node, of: &Node) -> MemberState {
    at.membership().member(of.name()).unwrap().state
}

async fn suspicions(nodes: &[Node]) -> u64 {
    let mut all = 0;
    for node in nodes {
        all += node.membership().counters().await.suspicions;
    }
    all
}

/// Told of one, all know all, agree on who leads, and have nothing to complain of in a quiet quarter of an hour.
#[tokio::test(start_paused = true)]
async fn nodes_find_each_other() {
    let world = World::new(301);
    let began = Instant::now();
    let nodes = cluster(&world, 8).await;
    println!("eight nodes saw each other after {:?}", began.elapsed());
    assert!(began.elapsed() < secs(5));
    tokio::time::sleep(secs(900)).await;
    let alive = nodes[0].membership().alive();
    assert_eq!(alive.len(), 8);
    for node in &nodes {
        assert_eq!(node.membership().alive(), alive);
        assert_eq!(node.membership().leader().as_ref(), alive.last());
        assert_eq!(node.health().status(), HealthStatus::Healthy);
        let counters = node.membership().counters().await;
        assert!(counters.probes > 800 && counters.acks + 1 >= counters.probes, "{counters:?}");
        assert_eq!((counters.failures, counters.suspicions, counters.malformed), (0, 0, 0), "{counters:?}");
    }
}

/// A node is ready by its own measure when it sees so many, and not before.
#[tokio::test(start_paused = true)]
async fn a_node_waits_for_enough_others() {
    let world = World::new(302);
    let one = world.node("n", 1).await;
    let membership = one.membership();
    let mut ready = tokio::spawn(async move { membership.wait_for_alive(3).await });
    let two = world.builder("n", 2).join(one.name()).start().await.unwrap();
    all_see(&[one.clone(), two.clone()], 2).await;
    assert!(tokio::time::timeout(secs(30), &mut ready).await.is_err(), "two are not three");
    let three = world.builder("n", 3).join(two.name()).start().await.unwrap();
    let seen = tokio::time::timeout(secs(10), ready).await.unwrap().unwrap().unwrap();
    assert_eq!(seen, [one.id(), two.id(), three.id()]);
}

/// One of five falls silent for ever: all four others declare it dead, in seconds, and suspect nobody else.
#[tokio::test(start_paused = true)]
async fn the_dead_are_noticed_by_all() {
    let world = World::new(303);
    let nodes = cluster(&world, 5).await;
    tokio::time::sleep(secs(20)).await;
    let (dead, living) = nodes.split_last().unwrap();
    let mut changes: Vec<_> = living.iter().map(|node| node.membership().subscribe()).collect();
    world.fabric.freeze(ip(5));
    let began = Instant::now();
    for changes in &mut changes {
        assert!(matches!(change_of(changes, dead).await, MemberEvent::Suspected { .. }));
    }
    println!("all suspected it after {:?}", began.elapsed());
    assert!(began.elapsed() < secs(10));
    for changes in &mut changes {
        assert!(matches!(change_of(changes, dead).await, MemberEvent::Died { .. }));
    }
    println!("all declared it dead after {:?}", began.elapsed());
    assert!(began.elapsed() < secs(30));
    for node in living {
        assert!(living.iter().all(|other| state(node, other) == MemberState::Alive));
        assert!(matches!(node.health().status(), HealthStatus::Degraded(_)));
        assert_eq!(node.membership().alive().len(), 4);
    }
}

/// Cut off for less than the shortest suspicion nobody dies; for longer each side goes on alone; and when the cut heals all
/// see all again, as the same lives, with nothing done by hand.
#[tokio::test(start_paused = true)]
async fn a_partition_heals_by_itself() {
    let world = World::new(304);
    let nodes = cluster(&world, 5).await;
    tokio::time::sleep(secs(20)).await;
    let before = nodes[0].membership().alive();
    let (few, many): (Vec<_>, Vec<_>) = ((1..=2).map(ip).collect(), (3..=5).map(ip).collect());
    world.fabric.partition(&few, &many);
    tokio::time::sleep(secs(3)).await;
    world.fabric.heal_all();
    tokio::time::sleep(secs(40)).await;
    for node in &nodes {
        let counters = node.membership().counters().await;
        assert_eq!(counters.deaths, 0, "{} {counters:?}", node.name());
        assert_eq!(node.membership().alive(), before);
    }
    world.fabric.partition(&few, &many);
    all_see(&nodes[..2], 2).await;
    all_see(&nodes[2..], 3).await;
    assert!(!nodes[0].health().has_quorum(5) && nodes[4].health().has_quorum(5));
    tokio::time::sleep(secs(120)).await;
    world.fabric.heal_all();
    let began = Instant::now();
    all_see(&nodes, 5).await;
    println!("healed after {:?}", began.elapsed());
    assert!(began.elapsed() < secs(60), "within two sync intervals: {:?}", began.elapsed());
    for node in &nodes {
        assert_eq!(node.membership().alive(), before, "the same lives");
    }
}

/// A sole survivor of two finds the other again.
#[tokio::test(start_paused = true)]
async fn two_that_lost_each_other_meet_again() {
    let world = World::new(305);
    let nodes = cluster(&world, 2).await;
    world.fabric.cut(ip(1), ip(2));
    all_see(&nodes, 1).await;
    assert_eq!(nodes[0].health().status(), HealthStatus::Isolated(vec![HealthReason::Alone, died(&nodes[1])]));
    world.fabric.heal_all();
    let began = Instant::now();
    all_see(&nodes, 2).await;
    assert!(began.elapsed() < secs(60), "{:?}", began.elapsed());
}

fn died(node: &Node) -> HealthReason {
    HealthReason::Died(vec![node.id()])
}

/// A cut between two that others reach is bridged by these: nobody dies of it.
#[tokio::test(start_paused = true)]
async fn a_cut_between_two_is_bridged() {
    let world = World::new(306);
    let nodes = cluster(&world, 4).await;
    world.fabric.cut_one_way(ip(1), ip(2));
    world.fabric.cut(ip(3), ip(4));
    tokio::time::sleep(secs(180)).await;
    for node in &nodes {
        assert_eq!(node.membership().alive().len(), 4, "{}", node.name());
        assert_eq!(node.membership().counters().await.deaths, 0);
    }
}

/// On bad days nobody dies either.
#[tokio::test(start_paused = true)]
async fn loss_is_no_death() {
    let world = World::new(307);
    let nodes = cluster(&world, 5).await;
    world.fabric.conditions(lossy());
    tokio::time::sleep(secs(120)).await;
    world.fabric.conditions(Conditions::default().latency(millis(10)).loss(0.25));
    tokio::time::sleep(secs(30)).await;
    for node in &nodes {
        let counters = node.membership().counters().await;
        assert_eq!(counters.deaths, 0, "{counters:?}");
    }
    println!("{} suspicions, all cleared", suspicions(&nodes).await);
}

/// Whoever leaves is gone at once, without a suspicion; and comes back as another life.
#[tokio::test(start_paused = true)]
async fn who_leaves_is_gone_at_once() {
    let world = World::new(308);
    let mut nodes = cluster(&world, 4).await;
    let suspicions_before = suspicions(&nodes).await;
    let mut changes: Vec<_> = nodes[..3].iter().map(|node| node.membership().subscribe()).collect();
    let leaver = nodes.pop().unwrap();
    let (old, began) = (leaver.id(), Instant::now());
    leaver.shutdown().await;
    for changes in &mut changes {
        assert!(matches!(change_of(changes, &leaver).await, MemberEvent::Left(_)));
    }
    assert!(began.elapsed() < secs(2), "{:?}", began.elapsed());
    // The clock is real time, which a paused test does not advance.
    let again = world.builder("n", 4).join(nodes[0].name()).incarnation(old.incarnation() + 1).start().await.unwrap();
    for changes in &mut changes {
        let MemberEvent::Joined(member) = change_of(changes, &again).await else { panic!("it joins anew") };
        assert_eq!(member.id, again.id());
    }
    tokio::time::sleep(secs(60)).await;
    assert_eq!(suspicions(&nodes).await, suspicions_before);
    assert!(nodes.iter().all(|node| state(node, &again) == MemberState::Alive));
}

/// A node that restarts before anybody noticed takes the place of its old life at once, everywhere, whatever its clock says.
#[tokio::test(start_paused = true)]
async fn a_new_life_takes_the_place_of_the_old() {
    for step in [1, -3_600_000_000_i64] {
        let world = World::new(309);
        let mut nodes = cluster(&world, 3).await;
        nodes.push(world.builder("n", 4).join(nodes[0].name()).config(hasty()).start().await.unwrap());
        all_see(&nodes, 4).await;
        tokio::time::sleep(secs(10)).await;
        let mut changes: Vec<_> = nodes[..3].iter().map(|node| node.membership().subscribe()).collect();
        let old = nodes.pop().unwrap();
        let incarnation = old.id().incarnation().saturating_add_signed(step);
        world.fabric.freeze(ip(4));
        drop(old);
        // Its last words are not heard, and its port is free for the next.
        tokio::time::sleep(millis(2500)).await;
        world.fabric.thaw(ip(4));
        let again = world.builder("n", 4).join(nodes[0].name()).incarnation(incarnation).start().await.unwrap();
        let began = Instant::now();
        for changes in &mut changes {
            loop {
                match change_of(changes, &again).await {
                    MemberEvent::Replaced { member, .. } | MemberEvent::Joined(member) => {
                        assert_eq!(member.state, MemberState::Alive);
                        break;
                    }
                    MemberEvent::Suspected { .. } | MemberEvent::Left(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        println!("the new life was seen by all after {:?}", began.elapsed());
        assert!(began.elapsed() < secs(5), "{:?}", began.elapsed());
        tokio::time::sleep(secs(60)).await;
        for node in &nodes {
            assert_eq!(node.membership().member(again.name()).unwrap().id, again.id());
            assert_eq!(state(node, &again), MemberState::Alive);
        }
    }
}

/// What a member says of itself reaches all, the late comers too.
#[tokio::test(start_paused = true)]
async fn metadata_reaches_all() {
    let world = World::new(310);
    let mut nodes = cluster(&world, 4).await;
    nodes[0].membership().set_metadata("zone=a").unwrap();
    nodes[0].membership().set_metadata("zone=b").unwrap();
    nodes.push(world.builder("n", 5).join(nodes[3].name()).start().await.unwrap());
    for node in &nodes {
        let name = nodes[0].name().clone();
        let seen = node.membership();
        let seen = seen.wait_for(|members| members.iter().any(|m| *m.id.name() == name && m.metadata == "zone=b"));
        assert!(tokio::time::timeout(secs(60), seen).await.is_ok(), "{}", node.name());
    }
    assert!(nodes[0].membership().set_metadata(vec![0; 512]).is_ok());
    assert!(nodes[0].membership().set_metadata(vec![0; 513]).is_err());
}

/// A fact reaches every live node once, its origin included, also under loss; what does not fit is refused.
#[tokio::test(start_paused = true)]
async fn facts_reach_all_once() {
    let world = World::new(311);
    let nodes = cluster(&world, 6).await;
    tokio::time::sleep(secs(10)).await;
    world.fabric.conditions(lossy());
    let mut readers: Vec<_> = nodes.iter().map(|node| node.gossip().subscribe(NEWS)).collect();
    for (n, node) in nodes.iter().enumerate() {
        node.gossip().publish(NEWS, &(n as u64)).await.unwrap();
    }
    for reader in &mut readers {
        let mut seen = Vec::new();
        while seen.len() < nodes.len() {
            let fact = tokio::time::timeout(secs(30), reader.next()).await.expect("every fact").unwrap();
            assert_eq!(fact.from, nodes[fact.value as usize].id());
            seen.push(fact.value);
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
        assert!(tokio::time::timeout(secs(30), reader.next()).await.is_err(), "each once");
    }
    const LONG: Topic<Vec<u8>> = Topic::new("long");
    let error = nodes[0].gossip().publish(LONG, &vec![0; 1024]).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { max: 1024, .. }), "{error:?}");
}

/// More facts than can be spread at once are refused, and there is room again when they are.
#[tokio::test(start_paused = true)]
async fn too_many_facts_are_refused() {
    let world = World::new(312);
    let nodes = cluster(&world, 3).await;
    let gossip = nodes[0].gossip();
    let mut taken = 0;
    while gossip.publish(NEWS, &1).await.is_ok() {
        taken += 1;
        assert!(taken <= 256);
    }
    assert!(matches!(gossip.publish(NEWS, &1).await, Err(PublishError::Busy)));
    tokio::time::sleep(secs(30)).await;
    assert_eq!(gossip.publish(NEWS, &2).await, Ok(()));
}

/// Strangers stay strangers when they take over an address: another cluster's node, with the same cookie even.
#[tokio::test(start_paused = true)]
async fn another_cluster_at_a_members_address_stays_apart() {
    let world = World::new(313);
    let nodes = cluster(&world, 2).await;
    let gone = world.builder("n", 3).join(nodes[0].name()).config(hasty()).start().await.unwrap();
    all_see(&nodes, 3).await;
    world.fabric.freeze(ip(3));
    all_see(&nodes, 2).await;
    drop(gone);
    tokio::time::sleep(secs(3)).await;
    world.fabric.thaw(ip(3));
    let stranger = world.builder("n", 3).cluster("other").join(nodes[0].name()).start().await.unwrap();
    let error = nodes[0].cluster().connect(stranger.name()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Auth(_)), "{error:?}");
    tokio::time::sleep(secs(120)).await;
    assert_eq!(stranger.membership().alive(), [stranger.id()]);
    all_see(&nodes, 2).await;
}

/// A node that nobody can dial is a member like others: it keeps links, and dies when all of them fall silent.
#[tokio::test(start_paused = true)]
async fn who_cannot_be_dialled_is_a_member_too() {
    let world = World::new(314);
    let mut nodes = cluster(&world, 4).await;
    let hidden = world.builder("hidden", 9).not_dialable().join(nodes[0].name()).start().await.unwrap();
    nodes.push(hidden.clone());
    all_see(&nodes, 5).await;
    tokio::time::sleep(secs(300)).await;
    all_see(&nodes, 5).await;
    let linked = hidden.health().peers().await.iter().filter(|peer| peer.round_trip.is_some()).count();
    assert!(linked >= 3, "{linked} links are kept");
    assert_eq!(suspicions(&nodes).await, 0);
    // One of its links falls silent: the others vouch for it.
    world.fabric.cut(ip(1), ip(9));
    tokio::time::sleep(secs(60)).await;
    assert_eq!(state(&nodes[2], &hidden), MemberState::Alive);
    world.fabric.freeze(ip(9));
    all_see(&nodes[..4], 4).await;
}

/// All members move to other addresses one after the other, under other names: a DNS name still leads a node to them.
#[tokio::test(start_paused = true)]
async fn a_dns_name_leads_to_members_that_moved() {
    let world = World::new(315);
    let points_to =
        |hosts: &[u8]| world.fabric.name("shop.internal", &hosts.iter().copied().map(ip).collect::<Vec<IpAddr>>());
    let start = |host: u8| world.builder("n", host).discover(Dns::new("shop.internal:4370").unwrap()).start();
    points_to(&[1]);
    let (one, two) = (start(1).await.unwrap(), start(2).await.unwrap());
    all_see(&[one.clone(), two.clone()], 2).await;
    // Both are cut off from each other, and one goes to where the other never was.
    world.fabric.cut(ip(1), ip(2));
    all_see(&[one.clone(), two.clone()], 1).await;
    one.shutdown().await;
    let moved = start(7).await.unwrap();
    points_to(&[7]);
    let began = Instant::now();
    all_see(&[two, moved], 2).await;
    println!("found after {:?}", began.elapsed());
    assert!(began.elapsed() < secs(30), "{:?}", began.elapsed());
}

/// An active check asks all at once, and says who answered within the time.
#[tokio::test(start_paused = true)]
async fn a_check_asks_everybody() {
    let world = World::new(316);
    let nodes = cluster(&world, 5).await;
    world.fabric.freeze(ip(5));
    let began = Instant::now();
    let checked = nodes[0].health().check(secs(2)).await;
    assert!(began.elapsed() <= millis(2100), "{:?}", began.elapsed());
    let outcome: Vec<_> = checked.iter().map(|checked| checked.outcome.is_ok()).collect();
    assert_eq!(outcome, [true, true, true, false]);
}

/// Settings that cannot work are refused at start.
#[tokio::test]
async fn settings_are_checked() {
    for change in [
        |config: &mut Config| config.probe_timeout = config.probe_interval + millis(1),
        |config: &mut Config| config.suspicion_mult = 0,
        |config: &mut Config| config.gossip_interval = Duration::ZERO,
        |config: &mut Config| config.dead_kept = secs(1),
    ] {
        let mut config = Config::default();
        change(&mut config);
        let error = Node::builder("n@127.0.0.1:0").cookie(Cookie::generate()).config(config).start().await;
        assert!(error.is_err());
    }
    for preset in [Config::lan(), Config::wan(), Config::local()] {
        assert_eq!(preset.validate(), Ok(()));
    }
    assert_eq!(Config::lan(), Config::default());
}
