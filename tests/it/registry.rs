//! Names across whole nodes: who gets one, who sees it, what partitions and deaths do to it.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use distribute::sim::Conditions;
use distribute::{
    Builder, Bytes, Conflict, ConflictResolver, ConflictRule, Cookie, Dns, LookupError, Mailbox, Name, NameChange,
    NameEvent, NameEvents, NameReason, Names, Node, OnLoss, Pid, RegisterError, Registration, ReplaceError,
    UnregisterError, UpdateError, Verdict,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::common::{World, ip, lossy, millis, secs};

const DESK: Name<u64> = Name::new("desk");
const NUMBERS: Names<u64> = Names::new("number");

/// What a change takes to be seen by all, and a partition to be noticed or healed, with room.
const SPREAD: Duration = Duration::from_secs(2);
const NOTICED: Duration = Duration::from_secs(60);
const HEALED: Duration = Duration::from_secs(90);

/// Fails instead of waiting for ever.
async fn within<T>(patience: Duration, what: impl Future<Output = T>) -> T {
    tokio::time::timeout(patience, what).await.expect("in time")
}

/// Nodes `n` on hosts 1 to `size`, joined through the first, all ready and seeing each other.
async fn cluster_with(world: &World, size: u8, builder: impl Fn(Builder) -> Builder) -> Vec<Node> {
    let mut nodes = vec![builder(world.builder("n", 1)).start().await.unwrap()];
    for host in 2..=size {
        nodes.push(builder(world.builder("n", host).join(nodes[0].name())).start().await.unwrap());
    }
    for node in &nodes {
        within(secs(30), node.ready()).await.unwrap();
        within(secs(30), node.membership().wait_for_alive(size.into())).await.unwrap();
    }
    nodes
}

async fn cluster(world: &World, size: u8) -> Vec<Node> {
    cluster_with(world, size, |builder| builder).await
}

async fn register(node: &Node, name: Name<u64>, mailbox: &Mailbox<u64>) -> Result<Registration<u64>, RegisterError> {
    within(secs(60), node.registry().register(name, mailbox).into_future()).await
}

fn owner(node: &Node, name: &Name<u64>) -> Option<Pid> {
    node.registry().entry(name.clone()).map(|entry| entry.owner)
}

/// Waits until all of these see that owner.
async fn all_see(nodes: &[Node], name: Name<u64>, expected: Option<Pid>, patience: Duration) {
    for node in nodes {
        let seen = async {
            let mut changes = node.registry().watch(name.clone());
            while owner(node, &name) != expected {
                changes.next().await.expect("the node lives");
            }
        };
        let seen = tokio::time::timeout(patience, seen).await;
        assert!(seen.is_ok(), "{} sees {:?} as {name}, not {expected:?}", node.name(), owner(node, &name));
    }
}

/// Waits until each of these knows exactly so many names.
async fn all_count(nodes: &[Node], names: usize, patience: Duration) {
    for node in nodes {
        let mut changes = node.registry().watch_all();
        let seen = async {
            while node.registry().count() != names {
                changes.next().await.expect("the node lives");
            }
        };
        let seen = tokio::time::timeout(patience, seen).await;
        assert!(seen.is_ok(), "{} knows {} names, not {names}", node.name(), node.registry().count());
    }
}

/// All know the same names of the same owners, which live.
fn agree(nodes: &[Node]) {
    let entries = nodes[0].registry().entries();
    for node in nodes {
        assert_eq!(node.registry().entries(), entries, "{}", node.name());
        assert_eq!(node.registry().count(), entries.len());
    }
    for entry in entries {
        assert!(nodes.iter().any(|node| node.id() == *entry.owner.node()), "{entry:?} lives nowhere");
    }
}

/// A watcher after its first snapshot.
async fn watch(node: &Node, name: Name<u64>) -> NameEvents {
    let mut changes = node.registry().watch(name);
    assert!(matches!(changes.next().await, Some(NameEvent::Snapshot(_))));
    changes
}

async fn next_change(changes: &mut NameEvents) -> NameChange {
    match within(NOTICED, changes.next()).await {
        Some(NameEvent::Changed(change)) => change,
        event => panic!("{event:?}"),
    }
}

async fn next_reason(changes: &mut NameEvents) -> NameReason {
    next_change(changes).await.reason
}

/// Whether nothing is told within that time.
async fn is_quiet(changes: &mut NameEvents, time: Duration) -> bool {
    tokio::time::timeout(time, changes.next()).await.is_err()
}

/// Here on return, everywhere in a moment; with `everywhere`, there on return.
#[tokio::test(start_paused = true)]
async fn a_registered_name_is_found_on_all_nodes() {
    let world = World::new(701);
    let nodes = cluster(&world, 4).await;
    let desk = nodes[0].mailbox::<u64>();
    let registration = register(&nodes[0], DESK, &desk).await.unwrap();
    assert_eq!((registration.pid(), registration.is_lost()), (&desk.pid(), false));
    assert_eq!(nodes[0].registry().lookup(DESK), Ok(desk.address()));
    all_see(&nodes, DESK, Some(desk.pid()), SPREAD).await;
    for node in &nodes {
        assert_eq!(node.registry().names(), ["desk".into()]);
    }
    for (n, node) in nodes.iter().enumerate() {
        let number = node.mailbox::<u64>();
        let name = NUMBERS.name(n).unwrap();
        within(secs(30), node.registry().register(name.clone(), &number).everywhere().into_future()).await.unwrap();
        for other in &nodes {
            assert_eq!(owner(other, &name), Some(number.pid()), "on return");
        }
    }
}

/// Whoever comes later is told who has it, and nothing changes; on the owner's own node and on others.
#[tokio::test(start_paused = true)]
async fn a_taken_name_stays_with_its_owner() {
    let world = World::new(702);
    let nodes = cluster(&world, 3).await;
    let desk = nodes[0].mailbox::<u64>();
    register(&nodes[0], DESK, &desk).await.unwrap();
    all_see(&nodes, DESK, Some(desk.pid()), SPREAD).await;
    let mut watches = Vec::new();
    for node in &nodes {
        watches.push(watch(node, DESK).await);
    }
    for node in &nodes {
        let other = node.mailbox::<u64>();
        let error = register(node, DESK, &other).await.unwrap_err();
        assert_eq!(error, RegisterError::Taken { owner: desk.pid(), is_confirmed: true });
    }
    // Whoever has it may ask again: the first answer may have been late.
    assert_eq!(register(&nodes[0], DESK, &desk).await.unwrap().pid(), &desk.pid());
    for changes in &mut watches {
        assert!(is_quiet(changes, secs(5)).await);
    }
    agree(&nodes);
}

/// Of many that claim a name at one time exactly one gets it, and all others are told so.
#[tokio::test(start_paused = true)]
async fn of_concurrent_claims_one_is_granted() {
    let world = World::new(703);
    world.fabric.conditions(lossy());
    let nodes = cluster(&world, 5).await;
    for round in 0..10 {
        let name = NUMBERS.name(round).unwrap();
        let mailboxes: Vec<_> = nodes.iter().map(|node| (node, node.mailbox::<u64>())).collect();
        let mut claims = JoinSet::new();
        for (node, mailbox) in &mailboxes {
            let pid = mailbox.pid();
            let claim = node.registry().register(name.clone(), mailbox).timeout(secs(30)).into_future();
            claims.spawn(async move { (pid, claim.await.map(drop)) });
        }
        let outcomes = within(secs(60), claims.join_all()).await;
        let (granted, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(_, outcome)| outcome.is_ok());
        let [(winner, _)] = &granted[..] else { panic!("{granted:?}") };
        for (_, outcome) in refused {
            assert!(matches!(outcome, Err(RegisterError::Taken { owner, .. }) if owner == *winner));
        }
        all_see(&nodes, name, Some(winner.clone()), SPREAD).await;
    }
}

/// It is free as soon as its mailbox closes, for every node.
#[tokio::test(start_paused = true)]
async fn a_name_goes_with_its_mailbox() {
    let world = World::new(704);
    let nodes = cluster(&world, 3).await;
    // What is learned of a node with all that it has is no news: they have met by now.
    let met = [&nodes[0], &nodes[1], &nodes[2]].map(|node| node.mailbox::<u64>());
    for (n, (node, mailbox)) in nodes.iter().zip(&met).enumerate() {
        register(node, NUMBERS.name(n).unwrap(), mailbox).await.unwrap();
        all_see(&nodes, NUMBERS.name(n).unwrap(), Some(mailbox.pid()), SPREAD).await;
    }
    let mut changes = watch(&nodes[2], DESK).await;
    for node in &nodes {
        let desk = node.mailbox::<u64>();
        register(node, DESK, &desk).await.unwrap();
        all_see(&nodes, DESK, Some(desk.pid()), SPREAD).await;
        drop(desk);
        assert_eq!(owner(node, &DESK), None, "on its own node it is never found again");
        all_see(&nodes, DESK, None, SPREAD).await;
    }
    for _ in &nodes {
        assert_eq!(next_reason(&mut changes).await, NameReason::Registered);
        assert_eq!(next_reason(&mut changes).await, NameReason::MailboxClosed);
    }
    assert!(is_quiet(&mut changes, secs(5)).await);
}

/// From one node to another, without a moment in which nobody has it: a third node's sends reach the successor only.
#[tokio::test(start_paused = true)]
async fn a_successor_takes_a_name_over() {
    let world = World::new(705);
    let nodes = cluster(&world, 3).await;
    let (mut old, mut next) = (nodes[0].mailbox::<u64>(), nodes[1].mailbox::<u64>());
    let registration = register(&nodes[0], DESK, &old).await.unwrap();
    all_see(&nodes, DESK, Some(old.pid()), SPREAD).await;
    let registry = nodes[1].registry();
    let wrong = within(secs(30), registry.replace(DESK, &next, &next).into_future()).await.unwrap_err();
    assert_eq!(wrong, ReplaceError::NotOwner { owner: old.pid() });
    let nobody = within(secs(30), registry.replace(NUMBERS.name(1).unwrap(), &old, &next).into_future()).await;
    assert_eq!(nobody.unwrap_err(), ReplaceError::NotRegistered);

    let mut changes = watch(&nodes[2], DESK).await;
    nodes[2].registry().send(DESK, 1).await.unwrap();
    let replacing = registry.replace(DESK, &old, &next).metadata("second");
    within(secs(30), replacing.into_future()).await.unwrap();
    all_see(&nodes, DESK, Some(next.pid()), SPREAD).await;
    nodes[2].registry().send(DESK, 2).await.unwrap();
    assert_eq!((old.recv().await, next.recv().await), (Some(1), Some(2)));
    assert_eq!(old.recv_timeout(secs(5)).await, Err(distribute::RecvError::Timeout), "nothing more");

    let change = next_change(&mut changes).await;
    assert_eq!(change.reason, NameReason::Replaced);
    assert_eq!((change.before.unwrap().owner, change.now.unwrap().metadata), (old.pid(), Bytes::from("second")));
    assert!(is_quiet(&mut changes, secs(5)).await);
    assert_eq!((within(secs(5), registration.lost()).await, registration.is_lost()), (None, false));
}

/// Anybody may take a name from its owner, once; the owner lives, and its end is no second event.
#[tokio::test(start_paused = true)]
async fn a_name_is_unregistered_from_any_node() {
    let world = World::new(706);
    let nodes = cluster(&world, 3).await;
    let (desk, other) = (nodes[0].mailbox::<u64>(), nodes[0].mailbox::<u64>());
    register(&nodes[0], DESK, &desk).await.unwrap();
    all_see(&nodes, DESK, Some(desk.pid()), SPREAD).await;
    let mut changes = watch(&nodes[2], DESK).await;
    let unregister = |node: &Node, mailbox: &Mailbox<u64>| {
        let (registry, pid) = (node.registry(), mailbox.pid());
        async move { within(secs(30), registry.unregister(DESK, pid)).await }
    };
    let wrong = unregister(&nodes[1], &other).await;
    assert_eq!(wrong, Err(UnregisterError::NotOwner { owner: desk.pid() }));
    assert_eq!(unregister(&nodes[1], &desk).await, Ok(()));
    all_see(&nodes, DESK, None, SPREAD).await;
    assert_eq!(unregister(&nodes[1], &desk).await, Err(UnregisterError::NotRegistered));
    assert_eq!(unregister(&nodes[0], &desk).await, Err(UnregisterError::NotRegistered));
    assert_eq!(next_reason(&mut changes).await, NameReason::Unregistered);
    desk.address().send(1).await.unwrap();
    drop(desk);
    assert!(is_quiet(&mut changes, secs(10)).await);
}

/// A mailbox may have several names: they go together with it, and apart from each other.
#[tokio::test(start_paused = true)]
async fn a_mailbox_may_have_several_names() {
    let world = World::new(707);
    let nodes = cluster(&world, 2).await;
    let desk = nodes[0].mailbox::<u64>();
    let [one, two, three] = [1, 2, 3].map(|n| NUMBERS.name(n).unwrap());
    for name in [&one, &two, &three] {
        register(&nodes[0], name.clone(), &desk).await.unwrap();
    }
    all_count(&nodes, 3, SPREAD).await;
    within(secs(30), nodes[1].registry().unregister(one.clone(), &desk)).await.unwrap();
    all_see(&nodes, one, None, SPREAD).await;
    assert_eq!(owner(&nodes[1], &two), Some(desk.pid()));
    drop(desk);
    all_count(&nodes, 0, SPREAD).await;
}

/// A node that leaves takes its names along at once.
#[tokio::test(start_paused = true)]
async fn names_go_with_a_node_that_leaves() {
    let world = World::new(708);
    let mut nodes = cluster(&world, 4).await;
    let leaver = nodes.pop().unwrap();
    let desk = leaver.mailbox::<u64>();
    for n in 0..100 {
        register(&leaver, NUMBERS.name(n).unwrap(), &desk).await.unwrap();
    }
    all_count(&nodes, 100, SPREAD).await;
    let mut changes = watch(&nodes[0], NUMBERS.name(7).unwrap()).await;
    leaver.shutdown().await;
    all_count(&nodes, 0, SPREAD).await;
    assert_eq!(next_reason(&mut changes).await, NameReason::NodeLeft);
    let again = nodes[1].mailbox::<u64>();
    register(&nodes[1], NUMBERS.name(7).unwrap(), &again).await.unwrap();
    assert_eq!(next_reason(&mut changes).await, NameReason::Registered);
}

/// Until its death is noticed a silent node's names are its own, and whoever claims one is told that nobody confirms it, or
/// that it took too long; then they are free.
#[tokio::test(start_paused = true)]
async fn names_go_with_a_node_that_dies() {
    let world = World::new(709);
    let nodes = cluster(&world, 4).await;
    let desk = nodes[3].mailbox::<u64>();
    for n in 0..100 {
        register(&nodes[3], NUMBERS.name(n).unwrap(), &desk).await.unwrap();
    }
    all_count(&nodes, 100, SPREAD).await;
    let living = &nodes[..3];
    let mut changes = watch(&nodes[0], NUMBERS.name(7).unwrap()).await;
    world.fabric.freeze(ip(4));
    let early = nodes[1].mailbox::<u64>();
    let claim = nodes[1].registry().register(NUMBERS.name(7).unwrap(), &early).timeout(secs(2));
    match within(secs(3), claim.into_future()).await {
        Err(RegisterError::Taken { owner, is_confirmed: false }) => assert_eq!(owner, desk.pid()),
        Err(RegisterError::Timeout(_)) => {}
        outcome => panic!("{outcome:?}"),
    }
    all_count(living, 0, NOTICED).await;
    assert_eq!(next_reason(&mut changes).await, NameReason::NodeDown);
    register(&nodes[1], NUMBERS.name(7).unwrap(), &early).await.unwrap();
    all_see(living, NUMBERS.name(7).unwrap(), Some(early.pid()), SPREAD).await;
    assert_eq!(next_reason(&mut changes).await, NameReason::Registered);
}

/// A new life of a node has none of the old one's names.
#[tokio::test(start_paused = true)]
async fn a_new_life_begins_without_names() {
    let world = World::new(710);
    let nodes = cluster(&world, 3).await;
    let old = nodes[2].mailbox::<u64>();
    register(&nodes[2], DESK, &old).await.unwrap();
    all_see(&nodes, DESK, Some(old.pid()), SPREAD).await;
    nodes[2].shutdown().await;
    let reborn = world.builder("n", 3).join(nodes[0].name()).start().await.unwrap();
    within(secs(30), reborn.ready()).await.unwrap();
    assert_eq!(owner(&reborn, &DESK), None);
    let next = reborn.mailbox::<u64>();
    register(&reborn, DESK, &next).await.unwrap();
    all_see(&[nodes[0].clone(), nodes[1].clone(), reborn], DESK, Some(next.pid()), SPREAD).await;
}

/// Whoever joins knows all names when it is ready, and claims before that are refused as such.
#[tokio::test(start_paused = true)]
async fn a_ready_node_knows_all_names() {
    const NAMES: usize = 1_000;
    let world = World::new(711);
    let nodes = cluster(&world, 3).await;
    let mailboxes: Vec<_> = nodes.iter().map(|node| node.mailbox::<u64>()).collect();
    for n in 0..NAMES {
        register(&nodes[n % 3], NUMBERS.name(n).unwrap(), &mailboxes[n % 3]).await.unwrap();
    }
    let late = world.builder("n", 4).join(nodes[0].name()).start().await.unwrap();
    let desk = late.mailbox::<u64>();
    assert!(!late.is_ready());
    assert_eq!(register(&late, DESK, &desk).await.unwrap_err(), RegisterError::NotReady);
    within(secs(30), late.ready()).await.unwrap();
    assert!(late.is_ready());
    for n in 0..NAMES {
        assert_eq!(owner(&late, &NUMBERS.name(n).unwrap()), Some(mailboxes[n % 3].pid()), "{n}");
    }
    all_count(&nodes, NAMES, SPREAD).await;
    agree(&[nodes, vec![late.clone()]].concat());
    register(&late, DESK, &desk).await.unwrap();
}

/// Nodes that begin together agree on who founds: by their number, or by naming each other.
#[tokio::test(start_paused = true)]
async fn nodes_that_begin_together_found_one_cluster() {
    for (seed, expects) in [(712, true), (713, false)] {
        let world = World::new(seed);
        let start = |host: u8| {
            let others = (1..=3).filter(|other| *other != host);
            let builder = others
                .fold(world.builder("n", host), |builder, other| builder.join(format!("n@10.0.0.{other}").as_str()));
            if expects { builder.bootstrap_expect(3) } else { builder }.start()
        };
        let mut nodes = vec![start(3).await.unwrap(), start(2).await.unwrap()];
        assert!(tokio::time::timeout(secs(30), nodes[0].ready()).await.is_err(), "two are not all");
        nodes.push(start(1).await.unwrap());
        for node in &nodes {
            within(secs(60), node.ready()).await.unwrap();
        }
        let mut claims = JoinSet::new();
        let mailboxes: Vec<_> = nodes.iter().map(|node| (node, node.mailbox::<u64>())).collect();
        for (node, mailbox) in &mailboxes {
            claims.spawn(node.registry().register(DESK, mailbox).into_future());
        }
        let outcomes = within(secs(60), claims.join_all()).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    }
}

/// Who only discovers does not found; it is ready once there is somebody who did.
#[tokio::test(start_paused = true)]
async fn who_only_discovers_waits_for_a_founder() {
    let world = World::new(714);
    world.fabric.name("seeds.internal", &[ip(1), ip(2)]);
    let dns = || Dns::new("seeds.internal").unwrap();
    let one = world.builder("n", 1).discover(dns()).start().await.unwrap();
    assert!(tokio::time::timeout(secs(120), one.ready()).await.is_err());
    let two = world.builder("n", 2).discover(dns()).bootstrap_expect(1).start().await.unwrap();
    within(secs(5), two.ready()).await.unwrap();
    within(secs(60), one.ready()).await.unwrap();
}

/// Four nodes claim, take and close again and again: at the end all know the same, and it lives.
#[tokio::test(start_paused = true)]
async fn a_contended_name_ends_with_one_answer() {
    for seed in 720..723 {
        let world = World::new(seed);
        let nodes = cluster(&world, 4).await;
        let mut contenders = JoinSet::new();
        for (at, node) in nodes.iter().cloned().enumerate() {
            contenders.spawn(async move {
                let mut rng = fastrand::Rng::with_seed(seed * 10 + at as u64);
                let mut mailbox = node.mailbox::<u64>();
                for _ in 0..250 {
                    match node.registry().register(DESK, &mailbox).timeout(secs(30)).await {
                        Ok(_) | Err(RegisterError::Timeout(_)) => {}
                        Err(RegisterError::Taken { owner, .. }) => {
                            let _ = node.registry().unregister(DESK, owner).await;
                        }
                        Err(error) => panic!("{error:?}"),
                    }
                    if rng.u8(..10) == 0 {
                        mailbox = node.mailbox::<u64>();
                    }
                    tokio::time::sleep(millis(rng.u64(0..30))).await;
                }
                mailbox
            });
        }
        let mailboxes = within(secs(36_000), contenders.join_all()).await;
        tokio::time::sleep(secs(10)).await;
        agree(&nodes);
        let last = owner(&nodes[0], &DESK);
        assert!(last.is_none_or(|last| mailboxes.iter().any(|mailbox| mailbox.pid() == last)), "seed {seed}");
    }
}

/// Forty names on each of five nodes, whose mailboxes all close in one instant.
#[tokio::test(start_paused = true)]
async fn all_owners_die_at_once() {
    let world = World::new(723);
    let nodes = cluster(&world, 5).await;
    let mut mailboxes = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        for n in 0..40 {
            let mailbox = node.mailbox::<u64>();
            register(node, NUMBERS.name(at * 40 + n).unwrap(), &mailbox).await.unwrap();
            mailboxes.push(mailbox);
        }
    }
    all_count(&nodes, 200, SPREAD).await;
    drop(mailboxes);
    all_count(&nodes, 0, secs(10)).await;
}

/// Names of a scope are its nodes' alone, and counts are exact.
#[tokio::test(start_paused = true)]
async fn scopes_are_apart() {
    let world = World::new(724);
    let a = world.builder("n", 1).scope("x").start().await.unwrap();
    let b = world.builder("n", 2).scope("x").scope("y").join(a.name()).start().await.unwrap();
    let c = world.builder("n", 3).scope("y").join(a.name()).start().await.unwrap();
    for node in [&a, &b, &c] {
        within(secs(30), node.ready()).await.unwrap();
    }
    let (desk, other) = (a.mailbox::<u64>(), c.mailbox::<u64>());
    let [ax, bx] = [&a, &b].map(|node| node.registry().in_scope("x").unwrap());
    let [by, cy] = [&b, &c].map(|node| node.registry().in_scope("y").unwrap());
    within(secs(30), ax.register(DESK, &desk).everywhere().into_future()).await.unwrap();
    within(secs(30), cy.register(DESK, &other).everywhere().into_future()).await.unwrap();
    assert_eq!((bx.lookup(DESK).unwrap().pid(), by.lookup(DESK).unwrap().pid()), (&desk.pid(), &other.pid()));
    assert_eq!([ax.count(), bx.count(), by.count(), cy.count()], [1; 4]);
    for node in [&a, &b, &c] {
        assert_eq!((node.registry().count(), node.registry().lookup(DESK)), (0, Err(LookupError::NotFound)));
    }
    assert!(c.registry().in_scope("x").is_err());
}

/// A counter that three nodes raise loses nothing; an updater that fails changes nothing; what is equal is no event.
#[tokio::test(start_paused = true)]
async fn updates_are_atomic_from_any_node() {
    let world = World::new(725);
    let nodes = cluster(&world, 3).await;
    let desk = nodes[0].mailbox::<u64>();
    within(secs(30), nodes[0].registry().register(DESK, &desk).metadata("0").into_future()).await.unwrap();
    all_see(&nodes, DESK, Some(desk.pid()), SPREAD).await;
    let add = |metadata: &Bytes| {
        let text = std::str::from_utf8(metadata).unwrap();
        text.parse().map(|n: u64| Bytes::from((n + 1).to_string()))
    };
    let mut updaters = JoinSet::new();
    for registry in nodes.iter().map(Node::registry) {
        updaters.spawn(async move {
            for _ in 0..100 {
                registry.update(DESK, add).await.unwrap();
            }
        });
    }
    within(secs(600), updaters.join_all()).await;
    for node in &nodes {
        let mut changes = node.registry().watch(DESK);
        while node.registry().entry(DESK).unwrap().metadata != "300" {
            within(SPREAD, changes.next()).await.unwrap();
        }
    }
    let mut changes = watch(&nodes[1], DESK).await;
    let failed = nodes[2].registry().update(DESK, |_| Err("no")).await;
    assert_eq!(
        (failed, UpdateError::Failed("no").to_string()),
        (Err(UpdateError::Failed("no")), "the updater failed: no".into())
    );
    assert_eq!(nodes[2].registry().update(DESK, |same| Ok::<_, ()>(same.clone())).await, Ok("300".into()));
    let unknown = nodes[2].registry().update(NUMBERS.name(1).unwrap(), |same| Ok::<_, ()>(same.clone())).await;
    assert_eq!(unknown, Err(UpdateError::NotRegistered));
    assert!(is_quiet(&mut changes, secs(5)).await);
    within(secs(30), nodes[2].registry().update(DESK, add)).await.unwrap();
    let change = next_change(&mut changes).await;
    assert_eq!((change.reason, change.now.unwrap().metadata), (NameReason::Updated, Bytes::from("301")));
}

/// Who updates a name that is on its way to another node waits for the successor; it does not ask again and again meanwhile.
/// The clock is not paused: it would stand still as long as somebody does.
#[tokio::test]
async fn an_update_waits_for_a_hand_over() {
    let world = World::new(746);
    let nodes = cluster(&world, 2).await;
    let (desk, next) = (nodes[0].mailbox::<u64>(), nodes[1].mailbox::<u64>());
    register(&nodes[0], DESK, &desk).await.unwrap();
    all_see(&nodes, DESK, Some(desk.pid()), SPREAD).await;
    world.fabric.conditions(Conditions::default().latency(millis(200)));
    let replacing = tokio::spawn(nodes[1].registry().replace(DESK, &desk, &next).into_future());
    let mut most = 0;
    for n in 0_u64.. {
        let mut tries = 0;
        let registry = nodes[0].registry();
        let update = registry.update(DESK, |_| {
            tries += 1;
            Ok::<_, ()>(Bytes::from(n.to_string()))
        });
        let updated = within(secs(30), update).await;
        let sees = nodes.iter().map(|node| owner(node, &DESK)).collect::<Vec<_>>();
        assert!(updated.is_ok(), "{n}: {updated:?} after {tries} tries, of {desk:?} or {next:?}: {sees:?}");
        most = most.max(tries);
        if owner(&nodes[0], &DESK) == Some(next.pid()) {
            break;
        }
        tokio::time::sleep(millis(5)).await;
    }
    within(secs(30), replacing).await.unwrap().unwrap();
    assert!((2..50).contains(&most), "{most} tries");
}

/// Two sides of a cut go on alone: each finds its own, and finds the other's again when it heals.
#[tokio::test(start_paused = true)]
async fn a_partition_hides_and_a_heal_shows() {
    let world = World::new(726);
    let nodes = cluster(&world, 4).await;
    let (left, right) = nodes.split_at(2);
    let mailboxes: Vec<_> = nodes.iter().map(|node| node.mailbox::<u64>()).collect();
    let name = |n: usize| NUMBERS.name(n).unwrap();
    for n in [0, 2] {
        register(&nodes[n], name(n), &mailboxes[n]).await.unwrap();
        all_see(&nodes, name(n), Some(mailboxes[n].pid()), SPREAD).await;
    }
    let mut changes = watch(&nodes[0], name(2)).await;
    world.fabric.partition(&[ip(1), ip(2)], &[ip(3), ip(4)]);
    all_see(left, name(2), None, NOTICED).await;
    all_see(right, name(0), None, NOTICED).await;
    assert_eq!(owner(&nodes[1], &name(0)), Some(mailboxes[0].pid()), "its own side's names stay");
    for n in [1, 3] {
        register(&nodes[n], name(n), &mailboxes[n]).await.unwrap();
    }
    world.fabric.heal_all();
    for (n, mailbox) in mailboxes.iter().enumerate() {
        all_see(&nodes, name(n), Some(mailbox.pid()), HEALED).await;
    }
    let reasons = [next_reason(&mut changes).await, next_reason(&mut changes).await];
    assert_eq!(reasons, [NameReason::NodeDown, NameReason::Synced]);
    drop(mailboxes);
    all_count(&nodes, 0, SPREAD).await;
    assert!(nodes.iter().all(|node| node.registry().counters().lost == 0));
}

/// What an application may do when it is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Older,
    Newer,
    Neither,
    Panics,
    Sleeps,
}

struct Moody(Mood, Arc<AtomicUsize>);

impl ConflictResolver for Moody {
    fn resolve(&self, conflict: Conflict) -> Pin<Box<dyn Future<Output = Verdict> + Send + '_>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            assert_eq!((&*conflict.scope, &*conflict.name), ("", "desk"));
            match self.0 {
                Mood::Older => Verdict::Older,
                Mood::Newer => Verdict::Newer,
                Mood::Neither => Verdict::Neither,
                Mood::Panics => panic!("a user's mistake"),
                Mood::Sleeps => std::future::pending().await,
            }
        })
    }
}

/// A name that both sides of a partition have claimed, the left first.
struct Split {
    world: World,
    nodes: Vec<Node>,
    mailboxes: [Mailbox<u64>; 2],
    registrations: [Registration<u64>; 2],
}

impl Split {
    async fn new(seed: u64, on_loss: OnLoss, builder: impl Fn(Builder) -> Builder) -> Self {
        let world = World::new(seed);
        let nodes = cluster_with(&world, 4, builder).await;
        // A claim of the founder, so that all count from its time on, and not from before there was any.
        let first = nodes[0].mailbox::<u64>();
        register(&nodes[0], NUMBERS.name(0).unwrap(), &first).await.unwrap();
        all_see(&nodes, NUMBERS.name(0).unwrap(), Some(first.pid()), SPREAD).await;
        drop(first);
        all_see(&nodes, NUMBERS.name(0).unwrap(), None, SPREAD).await;
        world.fabric.partition(&[ip(1), ip(2)], &[ip(3), ip(4)]);
        for node in &nodes {
            let membership = node.membership();
            let seen = membership.wait_for(|members| members.iter().filter(|m| m.state.is_live()).count() == 2);
            within(NOTICED, seen).await.unwrap();
        }
        let mailboxes = [nodes[0].mailbox::<u64>(), nodes[2].mailbox::<u64>()];
        let mut registrations = Vec::new();
        // The sides do not hear of each other, and their times are counted in claims: more of them on the right make its own
        // the younger.
        let others = nodes[2].mailbox::<u64>();
        for n in 0..300 {
            register(&nodes[2], NUMBERS.name(1_000 + n).unwrap(), &others).await.unwrap();
        }
        drop(others);
        for (node, mailbox) in [&nodes[0], &nodes[2]].into_iter().zip(&mailboxes) {
            let claim = node.registry().register(DESK, mailbox).on_loss(on_loss).into_future();
            registrations.push(within(secs(60), claim).await.unwrap());
        }
        let registrations = registrations.try_into().unwrap();
        Self { world, nodes, mailboxes, registrations }
    }
}

/// Every rule and every mood, and the same answer on all nodes: the loser is told, and lives unless it chose not to.
#[tokio::test(start_paused = true)]
async fn a_conflict_has_one_outcome_everywhere() {
    let asked = Arc::new(AtomicUsize::new(0));
    let ask = |mood| ConflictRule::from(Moody(mood, asked.clone()));
    let third = "n@10.0.0.3".parse().unwrap();
    let cases: [(ConflictRule, Option<usize>, u64); 8] = [
        (ConflictRule::Oldest, Some(0), 0),
        (ConflictRule::Newest, Some(1), 0),
        (ConflictRule::Priority(vec![third]), Some(1), 0),
        (ask(Mood::Older), Some(0), 0),
        (ask(Mood::Newer), Some(1), 0),
        (ask(Mood::Neither), None, 0),
        (ask(Mood::Panics), Some(0), 1),
        (ask(Mood::Sleeps), Some(0), 1),
    ];
    for (at, (rule, winner, failures)) in cases.into_iter().enumerate() {
        let on_loss = if at % 2 == 0 { OnLoss::CloseMailbox } else { OnLoss::Tell };
        asked.store(0, Ordering::Relaxed);
        let is_asked = matches!(rule, ConflictRule::Ask(_));
        let split = Split::new(730 + at as u64, on_loss, |builder| match at % 2 {
            0 => builder.conflict_resolver(rule.clone()),
            // For this name alone, where another rule holds for the others.
            _ => {
                let other = if at == 1 { ConflictRule::Oldest } else { ConflictRule::Newest };
                builder.conflict_resolver(other).conflict_resolver_for(DESK, rule.clone())
            }
        });
        let split = split.await;
        let Split { world, nodes, mut mailboxes, registrations } = split;
        world.fabric.heal_all();
        // Other names go on while it is not decided.
        let other = nodes[1].mailbox::<u64>();
        register(&nodes[1], NUMBERS.name(1).unwrap(), &other).await.unwrap();
        let expected = winner.map(|winner| mailboxes[winner].pid());
        for loser in [0, 1].into_iter().filter(|side| Some(*side) != winner) {
            let lost_to = within(HEALED, registrations[loser].lost()).await;
            assert_eq!(lost_to, Some(mailboxes[1 - loser].pid()), "{rule:?}");
            assert!(registrations[loser].is_lost());
            let read = mailboxes[loser].recv_timeout(secs(1)).await.unwrap_err();
            let closed = if on_loss == OnLoss::CloseMailbox { "closed" } else { "in time" };
            assert!(read.to_string().contains(closed), "{rule:?} {read}");
        }
        all_see(&nodes, DESK, expected, HEALED).await;
        tokio::time::sleep(secs(60)).await;
        all_see(&nodes, DESK, winner.map(|winner| mailboxes[winner].pid()), millis(1)).await;
        if let Some(winner) = winner {
            assert!(!registrations[winner].is_lost());
        }
        agree(&nodes);
        let counters: Vec<_> = nodes.iter().map(|node| node.registry().counters()).collect();
        assert_eq!(counters.iter().map(|counters| counters.resolver_failures).sum::<u64>(), failures, "{rule:?}");
        let losers = if winner.is_some() { 1 } else { 2 };
        assert_eq!(counters.iter().map(|counters| counters.lost).sum::<u64>(), losers, "{rule:?}");
        assert_eq!(asked.load(Ordering::Relaxed), usize::from(is_asked), "{rule:?}");
    }
}

/// A name whose owner both sides know is no conflict: nobody is asked, and nothing is told but what the cut hid.
#[tokio::test(start_paused = true)]
async fn one_owner_is_no_conflict() {
    let world = World::new(740);
    let asked = Arc::new(AtomicUsize::new(0));
    let nodes = cluster_with(&world, 4, |builder| builder.conflict_resolver(Moody(Mood::Neither, asked.clone()))).await;
    let desk = nodes[0].mailbox::<u64>();
    register(&nodes[0], DESK, &desk).await.unwrap();
    all_see(&nodes, DESK, Some(desk.pid()), SPREAD).await;
    let mut changes = watch(&nodes[1], DESK).await;
    world.fabric.partition(&[ip(1), ip(2)], &[ip(3), ip(4)]);
    all_see(&nodes[2..], DESK, None, NOTICED).await;
    world.fabric.heal_all();
    all_see(&nodes, DESK, Some(desk.pid()), HEALED).await;
    assert!(is_quiet(&mut changes, secs(60)).await);
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

/// Six clusters of one node each, which all have the same name, meet one by one.
#[tokio::test(start_paused = true)]
async fn isolated_owners_meet_in_a_line() {
    for seed in 741..744 {
        let world = World::new(seed);
        let mut nodes = Vec::new();
        let mut owners = Vec::new();
        for host in 1..=6 {
            let node = world.node("n", host).await;
            within(secs(5), node.ready()).await.unwrap();
            let desk = node.mailbox::<u64>();
            let registration = register(&node, DESK, &desk).await.unwrap();
            owners.push((desk, registration));
            nodes.push(node);
        }
        let mut dials = JoinSet::new();
        for pair in nodes.windows(2) {
            let (cluster, name) = (pair[1].cluster(), pair[0].name().clone());
            dials.spawn(async move { cluster.connect(&name).await.map(drop) });
        }
        within(secs(60), dials.join_all()).await;
        for node in &nodes {
            within(HEALED, node.membership().wait_for_alive(6)).await.unwrap();
        }
        let is_settled = async {
            let mut changes = nodes[0].registry().watch(DESK);
            while owners.iter().filter(|(_, registration)| registration.is_lost()).count() < 5 {
                let _ = tokio::time::timeout(secs(1), changes.next()).await;
            }
        };
        within(HEALED, is_settled).await;
        let winner = owners.iter().find(|(_, registration)| !registration.is_lost()).expect("one keeps it");
        all_see(&nodes, DESK, Some(winner.0.pid()), HEALED).await;
        agree(&nodes);
    }
}

type Owner = (Mailbox<u64>, Registration<u64>);

/// Both sides make up for what they miss. After the heal each name has one owner, and no owner lost a name that nobody else
/// had.
#[tokio::test(start_paused = true)]
async fn what_was_made_up_for_in_a_partition_is_settled() {
    const NAMES: usize = 200;
    let world = World::new(744);
    let nodes = cluster(&world, 4).await;
    let mut owners: BTreeMap<usize, Vec<Owner>> = BTreeMap::new();
    for n in 0..NAMES {
        let node = &nodes[n % 4];
        let mailbox = node.mailbox::<u64>();
        let registration = register(node, NUMBERS.name(n).unwrap(), &mailbox).await.unwrap();
        owners.entry(n).or_default().push((mailbox, registration));
    }
    all_count(&nodes, NAMES, SPREAD).await;
    world.fabric.partition(&[ip(1), ip(2)], &[ip(3), ip(4)]);
    all_count(&nodes, NAMES / 2, NOTICED).await;
    // Of every second name that is missed, somebody is made owner again.
    let mut contested = 0;
    for n in (0..NAMES).filter(|n| n % 8 < 4) {
        let node = if n % 4 < 2 { &nodes[3] } else { &nodes[0] };
        let mailbox = node.mailbox::<u64>();
        let registration = register(node, NUMBERS.name(n).unwrap(), &mailbox).await.unwrap();
        owners.entry(n).or_default().push((mailbox, registration));
        contested += 1;
    }
    world.fabric.heal_all();
    for (n, owners) in &owners {
        let oldest = owners[0].0.pid();
        all_see(&nodes, NUMBERS.name(n).unwrap(), Some(oldest), HEALED).await;
    }
    for (n, owners) in &owners {
        assert!(!owners[0].1.is_lost(), "{n} is the older claim");
        if let Some((_, later)) = owners.get(1) {
            assert_eq!(within(HEALED, later.lost()).await, Some(owners[0].0.pid()), "{n}");
        }
    }
    agree(&nodes);
    let lost: u64 = nodes.iter().map(|node| node.registry().counters().lost).sum();
    assert_eq!((lost, nodes[0].registry().count()), (contested, NAMES));
}

/// As long as its node is cut off from all others, a lookup answers what it knows, and a claim of what others have too.
#[tokio::test(start_paused = true)]
async fn lookups_wait_for_nobody() {
    let world = World::new(745);
    let nodes = cluster(&world, 3).await;
    let desk = nodes[0].mailbox::<u64>();
    register(&nodes[0], DESK, &desk).await.unwrap();
    all_see(&nodes, DESK, Some(desk.pid()), SPREAD).await;
    for host in [1, 3] {
        world.fabric.cut(ip(2), ip(host));
    }
    let began = Instant::now();
    for _ in 0..1_000 {
        assert_eq!(nodes[1].registry().lookup(DESK).unwrap().pid(), &desk.pid());
        tokio::task::yield_now().await;
    }
    assert!(began.elapsed() < millis(1), "no time passes");
    all_see(&nodes[1..2], DESK, None, NOTICED).await;
}

/// The ordinary way, over real sockets.
#[tokio::test]
async fn names_over_real_sockets() {
    let cookie = Cookie::generate();
    let builder = |name: &str| Node::builder(format!("{name}@127.0.0.1:0")).cookie(cookie.clone());
    let a = builder("a").start().await.unwrap();
    let b = builder("b").join(a.name()).start().await.unwrap();
    for node in [&a, &b] {
        within(secs(30), node.ready()).await.unwrap();
    }
    let waits = tokio::spawn(b.registry().wait_for(DESK).timeout(secs(30)).into_future());
    let mut desk = a.mailbox::<u64>();
    let registration = register(&a, DESK, &desk).await.unwrap();
    let there = waits.await.unwrap().unwrap();
    assert_eq!(there, desk.address());
    there.send(1).await.unwrap();
    b.registry().send(DESK, 2).await.unwrap();
    assert_eq!((desk.recv().await, desk.recv().await), (Some(1), Some(2)));
    within(secs(30), registration.unregister()).await.unwrap();
    all_see(&[a.clone(), b.clone()], DESK, None, secs(30)).await;
    let next = b.mailbox::<u64>();
    within(secs(30), b.registry().register(DESK, &next).everywhere().into_future()).await.unwrap();
    assert_eq!(a.registry().lookup(DESK), Ok(next.address()), "on return");
    b.shutdown().await;
    a.shutdown().await;
}
