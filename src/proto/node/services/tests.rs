//! Names, groups and monitors of several nodes: the histories that must not break a promise.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::sim::{World, text};
use super::*;

/// `SEED=n` runs one, `SEEDS=n` so many.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(40),
    }
}

/// Only what is between two moments counts.
pub(super) fn any_moment() -> Instant {
    Instant::now()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// All nodes that run name the same owner.
fn agree_on(world: &World, name: &str) -> Option<Pid> {
    let owners: BTreeSet<_> =
        world.all().map(|process| process.names.get(name).map(|named| named.pid.clone())).collect();
    assert_eq!(owners.len(), 1, "seed {}: {name} has {owners:?}", world.seed);
    owners.into_iter().next().flatten()
}

/// Whether all nodes that run see that owner.
fn all_see(world: &World, name: &str, owner: Option<&Pid>) -> bool {
    world.all().all(|process| process.names.get(name).map(|named| &named.pid) == owner)
}

#[test]
fn a_name_is_registered_and_seen_everywhere() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 5);
        let mailbox = world.open(3);
        let asked = world.now;
        let id = world.register(3, "orders", mailbox);
        assert!(matches!(world.answer(3, id), Ok(Done::Bound { .. })), "seed {seed}");
        let pid = world.pid(3, mailbox);
        assert_eq!(world.owner(3, "orders").as_ref(), Some(&pid), "seed {seed}: here at once");
        // Two round trips of 4 ms at most.
        assert!(world.now - asked <= Duration::from_millis(8), "seed {seed}");
        world.run_until("all see it", 1, |world| all_see(world, "orders", Some(&pid)));
    }
}

/// A claim of a name that is taken, from whichever node, names the owner.
#[test]
fn a_name_that_is_taken_says_by_whom() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 4);
        let mailbox = world.open(1);
        let id = world.register(1, "orders", mailbox);
        world.answer(1, id).unwrap();
        let owner = world.pid(1, mailbox);
        for node in 0..4 {
            let other = world.open(node);
            let id = world.register(node, "orders", other);
            let taken = Refusal::Taken { owner: owner.clone(), is_confirmed: true };
            assert_eq!(world.answer(node, id), Err(taken), "seed {seed}, node {node}");
        }
        world.run_for(secs(1));
        assert_eq!(agree_on(&world, "orders"), Some(owner), "seed {seed}");
    }
}

/// Of concurrent claims exactly one keeps the name, and nobody ever sees two.
#[test]
fn of_concurrent_claims_one_wins() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 5);
        let claims: Vec<_> = (0..5)
            .map(|node| {
                let mailbox = world.open(node);
                (node, mailbox, world.register(node, "orders", mailbox))
            })
            .collect();
        let mut winners = Vec::new();
        for (node, mailbox, id) in claims {
            match world.answer(node, id) {
                Ok(_) => winners.push(world.pid(node, mailbox)),
                Err(Refusal::Taken { .. }) => {}
                Err(other) => panic!("seed {seed}: {other:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "seed {seed}");
        world.run_for(secs(1));
        assert_eq!(agree_on(&world, "orders").as_ref(), winners.first(), "seed {seed}");
        for process in world.all() {
            let owners = process.events.iter().filter(|(_, owner, _)| owner.is_some()).count();
            assert_eq!((owners, process.lost.len()), (1, 0), "seed {seed}: {:?}", process.events);
        }
    }
}

/// While the members do not change, no claim is ever granted beside another, however quickly a name goes from hand to hand:
/// nobody loses, and nobody sees a conflict.
#[test]
fn in_a_calm_cluster_nobody_loses() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 5);
        let mailboxes: Vec<[u64; 2]> = (0..5).map(|node| [world.open(node), world.open(node)]).collect();
        for _ in 0..400 {
            let node = world.rng.usize(0..5);
            let serial = mailboxes[node][world.rng.usize(0..2)];
            let pid = world.pid(node, serial);
            match world.owner(node, "orders") {
                Some(owner) if owner == pid => drop(world.unregister(node, "orders", pid)),
                Some(owner) if world.rng.u8(..) < 40 => drop(world.register_as(node, "orders", serial, Some(owner))),
                _ => drop(world.register(node, "orders", serial)),
            }
            let pause = world.rng.u64(0..6_000);
            world.run_for(Duration::from_micros(pause));
        }
        world.run_for(secs(30));
        agree_on(&world, "orders");
        for process in world.all() {
            assert_eq!(process.lost, [], "seed {seed}");
            let conflict = process.events.iter().find(|(_, _, reason)| *reason == NameReason::Conflict);
            assert_eq!(conflict, None, "seed {seed}");
            process.services.assert_at_rest(seed);
        }
    }
}

/// Whatever the order in which the release of one owner and the binding of the next arrive, nobody takes it for a conflict, and
/// nobody sees the name free in between who sees the hand-over of a replacement.
#[test]
fn an_ordinary_hand_over_is_no_conflict() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 5);
        let mut owner = (0, world.open(0));
        let id = world.register(0, "orders", owner.1);
        world.answer(0, id).unwrap();
        for round in 1..8 {
            let next = (round % 5, world.open(round % 5));
            if round % 2 == 0 {
                let old = world.pid(owner.0, owner.1);
                let id = world.register_as(next.0, "orders", next.1, Some(old));
                world.answer(next.0, id).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
            } else {
                let old = world.pid(owner.0, owner.1);
                let id = world.unregister(owner.0, "orders", old);
                assert_eq!(world.answer(owner.0, id), Ok(Done::Unregistered));
                // At once, before most have heard of the release.
                let id = world.register(next.0, "orders", next.1);
                world.answer(next.0, id).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
            }
            owner = next;
        }
        let pid = world.pid(owner.0, owner.1);
        world.run_until("all see it", 2, |world| all_see(world, "orders", Some(&pid)));
        for process in world.all() {
            assert!(process.lost.is_empty(), "seed {seed}");
            assert!(process.events.iter().all(|(_, _, reason)| *reason != NameReason::Conflict), "seed {seed}");
        }
    }
}

/// The stamp of the first claim is kept by those who replace its owner.
#[test]
fn a_replacement_keeps_the_age_of_the_claim() {
    let mut world = World::cluster(1, 3);
    let first = world.open(0);
    let id = world.register(0, "orders", first);
    let Ok(Done::Bound { stamp, .. }) = world.answer(0, id) else { panic!("not bound") };
    for node in [1, 1, 2] {
        let old = world.owner(node, "orders").unwrap_or_else(|| world.pid(0, first));
        let next = world.open(node);
        let id = world.register_as(node, "orders", next, Some(old));
        let Ok(Done::Bound { stamp: kept, .. }) = world.answer(node, id) else { panic!("not replaced") };
        assert_eq!(kept, stamp);
        world.run_for(secs(1));
    }
}

/// Replacing is a compare-and-set: who is not the owner is not replaced.
#[test]
fn only_the_owner_is_replaced() {
    let mut world = World::cluster(2, 3);
    let (owner, other, next) = (world.open(0), world.open(1), world.open(2));
    let id = world.register(0, "orders", owner);
    world.answer(0, id).unwrap();
    world.run_for(secs(1));
    let not_owner = world.pid(1, other);
    let id = world.register_as(2, "orders", next, Some(not_owner.clone()));
    let refusal = Refusal::NotOwner { owner: world.pid(0, owner) };
    assert_eq!(world.answer(2, id), Err(refusal.clone()));
    let id = world.unregister(2, "orders", not_owner);
    assert_eq!(world.answer(2, id), Err(refusal));
    let id = world.unregister(2, "nobody", world.pid(0, owner));
    assert_eq!(world.answer(2, id), Err(Refusal::NotRegistered));
    world.run_for(secs(1));
    assert_eq!(agree_on(&world, "orders"), Some(world.pid(0, owner)));
}

/// Five nodes that list each other and start at once have one founder, and are all ready.
#[test]
fn five_that_list_each_other_are_one_cluster() {
    for seed in seeds() {
        let mut world = World::new(seed);
        let names: Vec<NodeName> = (0..5).map(|n| NodeName::parse(&format!("n{n:02}@h:1")).unwrap()).collect();
        for own in 0..5 {
            let others = names.iter().enumerate().filter(|(n, _)| *n != own).map(|(_, name)| name.clone());
            world.add_with(Plan::Contacts(others.collect()));
        }
        world.run_until("all are ready", 10, |world| world.all().all(|process| process.is_ready));
        let mailboxes: Vec<u64> = (0..5).map(|node| world.open(node)).collect();
        let ids: Vec<_> = (0..5).map(|node| world.register(node, "orders", mailboxes[node])).collect();
        let won = (0..5).filter(|node| world.answer(*node, ids[*node]).is_ok()).count();
        assert_eq!(won, 1, "seed {seed}");
        world.run_for(secs(5));
        assert!(world.all().all(|process| process.lost.is_empty()), "seed {seed}");
    }
}

/// A claim before the node is ready is refused, and tells why.
#[test]
fn a_node_that_is_cut_off_at_its_start_claims_nothing() {
    let mut world = World::cluster(3, 3);
    world.crash(2);
    world.cut(&[2]);
    world.run_for(secs(10));
    world.restart(2);
    world.run_for(secs(20));
    let mailbox = world.open(2);
    let id = world.register(2, "orders", mailbox);
    assert_eq!(world.answer(2, id), Err(Refusal::NotReady));
    world.heal();
    world.run_until("it is ready", 10, |world| world.process(2).is_ready);
    let id = world.register(2, "orders", mailbox);
    assert!(world.answer(2, id).is_ok());
}

/// The same name on both sides of a partition: the older claim wins everywhere, and the other's node is told, once.
#[test]
fn after_a_partition_the_older_claim_wins() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 5);
        world.cut(&[0, 1]);
        world.run_until("both sides know", 20, |world| {
            world.all().all(|process| process.services.live.len() == if process.sessions.len() == 1 { 2 } else { 3 })
        });
        let (one, other) = (world.open(1), world.open(4));
        let first = if seed % 2 == 0 { 1 } else { 4 };
        let claims = if first == 1 { [(1, one), (4, other)] } else { [(4, other), (1, one)] };
        for (node, mailbox) in claims {
            let id = world.register(node, "orders", mailbox);
            world.answer(node, id).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
            world.run_for(secs(1));
        }
        world.heal();
        world.run_for(secs(20));
        let winner = agree_on(&world, "orders").expect("one has it");
        let (loser, mailbox) = if *winner.node() == world.process(1).id { (4, other) } else { (1, one) };
        assert_eq!(world.process(loser).lost, [(text("orders"), mailbox, winner)], "seed {seed}");
        assert_eq!(world.all().map(|process| process.lost.len()).sum::<usize>(), 1, "seed {seed}");
    }
}

/// The same owner on both sides is no conflict, and nobody hears of anything but its going and coming.
#[test]
fn the_same_owner_on_both_sides_is_no_conflict() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 4);
        let mailbox = world.open(0);
        let id = world.register(0, "orders", mailbox);
        world.answer(0, id).unwrap();
        world.run_for(secs(1));
        let bytes = world.all().map(|process| process.sent_bytes).sum::<u64>();
        world.cut(&[0, 1]);
        world.run_for(secs(10));
        assert_eq!(world.owner(2, "orders"), None, "seed {seed}: its owner is not to be seen");
        world.heal();
        let pid = world.pid(0, mailbox);
        world.run_until("it is back", 10, |world| all_see(world, "orders", Some(&pid)));
        let expected = [NameReason::Registered, NameReason::NodeDown, NameReason::Synced];
        let reasons: Vec<_> = world.process(2).events.iter().map(|(_, _, reason)| *reason).collect();
        assert_eq!(reasons, expected, "seed {seed}");
        assert!(world.all().map(|process| process.sent_bytes).sum::<u64>() - bytes < 20_000, "no snapshot");
        assert!(world.all().all(|process| process.lost.is_empty()), "seed {seed}");
    }
}

/// An arbiter that answers and dies before the binding has spread, or before the others know: one owner all the same.
#[test]
fn an_arbiter_that_answers_and_dies() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 5);
        let (one, other) = (world.open(3), world.open(4));
        let first = world.register(3, "orders", one);
        // Any moment of the claim.
        let wait = world.rng.u64(0..6_000);
        world.run_for(Duration::from_micros(wait));
        let dies = world.rng.usize(0..3);
        world.crash(dies);
        let second = world.register(4, "orders", other);
        let outcomes = [world.answer(3, first), world.answer(4, second)];
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(won, 1, "seed {seed}: {outcomes:?}");
        world.run_for(secs(15));
        assert!(agree_on(&world, "orders").is_some(), "seed {seed}");
        assert!(world.all().all(|process| process.lost.is_empty()), "seed {seed}");
    }
}

/// A frozen arbiter, or one that the claimant alone does not reach, holds up a claim for its patience and no longer.
#[test]
fn a_silent_arbiter_is_done_without() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 5);
        let silent = world.rng.usize(0..4);
        if seed % 2 == 0 {
            world.freeze(silent);
        } else {
            world.cut_pair(4, silent);
        }
        let asked = world.now;
        for name in 0..8 {
            let mailbox = world.open(4);
            let id = world.register(4, &format!("name/{name}"), mailbox);
            assert!(world.answer(4, id).is_ok(), "seed {seed}");
        }
        let taken = world.now - asked;
        assert!(taken < secs(8), "seed {seed}: {taken:?}: a second for each that needs it, before it is declared dead");
    }
}

/// Whoever claims the name at once when it hears that the mailbox is gone is never told that it is taken.
#[test]
fn a_watcher_claims_the_name_on_the_notice() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 5);
        let owner = world.open(1);
        let id = world.register(1, "orders", owner);
        world.answer(1, id).unwrap();
        world.run_for(secs(1));
        let target = Target::Mailbox(world.pid(1, owner));
        let watch = world.watch(3, target);
        world.run_for(secs(1));
        let crashes = seed % 2 == 0;
        if crashes {
            world.crash(1);
        } else {
            world.close(1, owner);
        }
        world.run_until("the notice", 10, |world| !world.process(3).notices.is_empty());
        let fate = if crashes { Fate::NodeDown } else { Fate::Closed };
        assert_eq!(world.process(3).notices, [(watch, fate)], "seed {seed}");
        assert_eq!(world.owner(3, "orders"), None, "seed {seed}: a corpse");
        let next = world.open(3);
        let id = world.register(3, "orders", next);
        assert!(world.answer(3, id).is_ok(), "seed {seed}: {:?}", world.process(3).done[&id]);
        let pid = world.pid(3, next);
        world.run_until("all see it", 10, |world| all_see(world, "orders", Some(&pid)));
    }
}

/// A node that joins while others register is ready with all their names, and decides on claims without giving one twice.
#[test]
fn a_node_that_joins_while_others_register() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 3);
        let mut claims = Vec::new();
        let mut joined = None;
        for n in 0..60 {
            let node = world.rng.usize(0..3);
            let mailbox = world.open(node);
            let name = format!("name/{}", n % 20);
            claims.push((node, mailbox, world.register(node, &name, mailbox), name));
            if n == 20 {
                joined = Some(world.add());
            }
            world.run_for(Duration::from_millis(1));
        }
        let joined = joined.unwrap();
        world.run_until("it is ready", 10, |world| world.process(joined).is_ready);
        for n in 0..20 {
            let mailbox = world.open(joined);
            let name = format!("name/{n}");
            claims.push((joined, mailbox, world.register(joined, &name, mailbox), name));
        }
        let mut owners: BTreeMap<String, Vec<Pid>> = BTreeMap::new();
        for (node, mailbox, id, name) in claims {
            if world.answer(node, id).is_ok() {
                owners.entry(name).or_default().push(world.pid(node, mailbox));
            }
        }
        world.run_for(secs(5));
        for (name, owners) in &owners {
            assert_eq!(owners.len(), 1, "seed {seed}: {name}: {owners:?}");
            assert_eq!(agree_on(&world, name).as_ref(), owners.first(), "seed {seed}");
        }
        assert_eq!(owners.len(), 20, "seed {seed}");
    }
}

/// Nothing hangs: a name of a frozen owner is taken as far as anybody can tell, and free when it is declared dead.
#[test]
fn a_frozen_owner() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 4);
        let owner = world.open(1);
        let id = world.register(1, "orders", owner);
        world.answer(1, id).unwrap();
        world.run_for(secs(1));
        world.freeze(1);
        let asked = world.now;
        let next = world.open(2);
        let id = world.register(2, "orders", next);
        let taken = Refusal::Taken { owner: world.pid(1, owner), is_confirmed: false };
        assert_eq!(world.answer(2, id), Err(taken), "seed {seed}");
        assert!(world.now - asked < secs(3), "seed {seed}");
        world.run_for(secs(8));
        let id = world.register(2, "orders", next);
        assert!(world.answer(2, id).is_ok(), "seed {seed}");
        // It comes back, and has the older claim.
        world.thaw(1);
        world.run_for(secs(20));
        assert_eq!(agree_on(&world, "orders"), Some(world.pid(1, owner)), "seed {seed}");
        assert_eq!(world.process(2).lost.len(), 1, "seed {seed}");
    }
}

/// Metadata is set if it is still what was read: a counter that three nodes raise a hundred times each loses none.
#[test]
fn metadata_is_updated_atomically() {
    let mut world = World::cluster(5, 3);
    let owner = world.open(0);
    let id = world.register(0, "counter", owner);
    world.answer(0, id).unwrap();
    world.run_for(secs(1));
    let pid = world.pid(0, owner);
    for _ in 0..100 {
        let mut open: Vec<(usize, u64, Bytes)> = (0..3)
            .map(|node| {
                let named = &world.process(node).names["counter"];
                (node, named.version, named.metadata.clone())
            })
            .collect();
        while !open.is_empty() {
            let asked: Vec<_> = open
                .drain(..)
                .map(|(node, version, metadata)| {
                    let count = <[u8; 8]>::try_from(&metadata[..]).map_or(0, u64::from_be_bytes);
                    let metadata = Bytes::copy_from_slice(&(count + 1).to_be_bytes());
                    let (scope, name, pid) = (text(""), text("counter"), pid.clone());
                    let request = Request::Update { scope, name, pid, version, metadata };
                    (node, world.request(node, request, 10))
                })
                .collect();
            for (node, id) in asked {
                match world.answer(node, id) {
                    Ok(Done::Updated { .. }) => {}
                    Err(Refusal::Stale { version, metadata }) => open.push((node, version, metadata)),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    world.run_for(secs(1));
    for process in world.all() {
        assert_eq!(process.names["counter"].metadata[..], 300u64.to_be_bytes(), "{}", process.id);
    }
    assert_eq!(world.process(1).events.len(), 301, "one event for each");
}

/// With a rule that is not the oldest's: the newest, a list of nodes, and an application that decides, is late, or says neither.
#[test]
fn other_rules() {
    type Tune = fn(&mut Setup);
    let rules: [(Tune, &str); 5] = [
        (|setup| setup.registry.rule = registry::Rule::Newest, "newest"),
        (|setup| setup.registry.rule = registry::Rule::Priority(vec![NodeName::parse("n03@h:1").unwrap()]), "n03"),
        (|setup| setup.registry.rule = registry::Rule::Asked, "asked"),
        // The same for this name alone, whatever holds for the others.
        (|setup| setup.registry.rules.set_name("orders".into(), registry::Rule::Newest), "newest"),
        (
            |setup| {
                setup.registry.rule = registry::Rule::Newest;
                setup.registry.rules.set_family("ord".into(), registry::Rule::Asked);
            },
            "asked",
        ),
    ];
    for (tune, what) in rules {
        for verdict in [Verdict::Older, Verdict::Newer, Verdict::Neither] {
            let mut world = World::cluster_with(7, 4, tune);
            world.cut(&[0, 1]);
            world.run_for(secs(10));
            let (one, other) = (world.open(0), world.open(3));
            for (node, mailbox) in [(0, one), (3, other)] {
                let id = world.register(node, "orders", mailbox);
                world.answer(node, id).unwrap();
                world.run_for(secs(2));
            }
            let stamp = |node: usize| world.process(node).names["orders"].stamp;
            let older = if (stamp(0), 0) < (stamp(3), 3) { 0 } else { 3 };
            world.heal();
            if what == "asked" {
                world.run_until("somebody is asked", 10, |world| {
                    world.all().any(|process| !process.disputes.is_empty())
                });
                world.run_for(secs(6));
                let (dispute, over) = world.process(older).disputes[0].clone();
                assert_eq!(world.process(older).disputes.len(), 1, "asked once");
                assert_eq!(*over.older.pid.node(), world.process(older).id);
                world.tell(older, Input::Decided { dispute, verdict });
            }
            world.run_for(secs(20));
            let winner = agree_on(&world, "orders").map(|pid| pid.node().clone());
            let expected = match (what, verdict) {
                ("newest", _) | ("asked", Verdict::Newer) => Some(if older == 0 { 3 } else { 0 }),
                ("n03", _) => Some(3),
                ("asked", Verdict::Older) => Some(older),
                _ => None,
            };
            assert_eq!(winner, expected.map(|node| world.process(node).id.clone()), "{what}, {verdict:?}");
            let lost = world.all().map(|process| process.lost.len()).sum::<usize>();
            assert_eq!(lost, if expected.is_some() { 1 } else { 2 }, "{what}, {verdict:?}");
        }
    }
}

/// A mailbox holds several names; they go with it, and one that is given back leaves the other.
#[test]
fn several_names_of_one_mailbox() {
    let mut world = World::cluster(9, 3);
    let mailbox = world.open(1);
    for name in ["one", "two", "three"] {
        let id = world.register(1, name, mailbox);
        world.answer(1, id).unwrap();
    }
    let id = world.unregister(1, "one", world.pid(1, mailbox));
    world.answer(1, id).unwrap();
    world.run_for(secs(1));
    let pid = world.pid(1, mailbox);
    assert_eq!([agree_on(&world, "one"), agree_on(&world, "two")], [None, Some(pid)]);
    world.close(1, mailbox);
    world.run_for(secs(1));
    assert!(world.all().all(|process| process.names.is_empty()));
    let reasons: Vec<_> = world.process(2).events.iter().skip(4).map(|(_, _, reason)| *reason).collect();
    assert_eq!(reasons, [NameReason::MailboxClosed; 2]);
}

/// Cut off from one, and not from another: its names and members are seen by way of that one.
#[test]
fn names_come_by_a_third_node() {
    for seed in seeds() {
        let mut world = World::cluster(seed, 3);
        world.cut_pair(0, 2);
        world.run_for(secs(12));
        let mailbox = world.open(0);
        let id = world.register(0, "orders", mailbox);
        world.answer(0, id).unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        world.join(0, "workers", mailbox, 1);
        let pid = world.pid(0, mailbox);
        // Two rounds of comparisons.
        world.run_until("the third tells", 3, |world| {
            all_see(world, "orders", Some(&pid)) && world.process(2).members.len() == 1
        });
    }
}

/// A node that leaves takes its names and members along at once.
#[test]
fn a_node_that_leaves() {
    let mut world = World::cluster(11, 3);
    let mailbox = world.open(1);
    let id = world.register(1, "orders", mailbox);
    world.answer(1, id).unwrap();
    world.join(1, "workers", mailbox, 2);
    let watch = world.watch(2, Target::Mailbox(world.pid(1, mailbox)));
    world.run_for(secs(1));
    assert_eq!(world.process(2).members.len(), 1);
    world.stop(1);
    assert_eq!(world.process(2).notices, [(watch, Fate::NodeLeft)]);
    assert!(world.all().all(|process| process.names.is_empty() && process.members.is_empty()));
    let id = world.open(2);
    let id = world.register(2, "orders", id);
    assert!(world.answer(2, id).is_ok());
}

/// "Everywhere" is when the last live member has it, and not before.
#[test]
fn everywhere_waits_for_the_last() {
    let mut world = World::cluster(13, 4);
    let mailbox = world.open(0);
    let id = world.register(0, "orders", mailbox);
    let Ok(Done::Bound { version, .. }) = world.answer(0, id) else { panic!("not bound") };
    let everywhere = world.request(0, Request::Everywhere { scope: text(""), version }, 10);
    assert_eq!(world.answer(0, everywhere), Ok(Done::Everywhere));
    assert!(all_see(&world, "orders", Some(&world.pid(0, mailbox))));
    world.freeze(3);
    let id = world.register(0, "more", mailbox);
    let Ok(Done::Bound { version, .. }) = world.answer(0, id) else { panic!("not bound") };
    let everywhere = world.request(0, Request::Everywhere { scope: text(""), version }, 20);
    world.run_for(secs(2));
    assert!(!world.process(0).done.contains_key(&everywhere), "one is frozen");
    assert_eq!(world.answer(0, everywhere), Ok(Done::Everywhere), "and no member any more");
}
