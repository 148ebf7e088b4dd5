//! What nodes find out and repair by comparing.

use super::*;

/// Those who have the same say so in a few bytes.
#[test]
fn an_idle_round_is_a_digest() {
    let names = ["a", "b", "c", "d"];
    let mut net = Net::new(&names, LIMITS, 1);
    for a in names {
        net.write(a, "", name(a), bound(1));
        names.iter().filter(|b| a < **b).for_each(|b| net.connect(&id(a), &id(b)));
    }
    net.run(INTERVAL * 2);
    net.bytes = 0;
    net.run(INTERVAL * 10);
    assert!(net.bytes > 0);
    assert!(net.bytes < 4 * 10 * 100, "{} bytes in 40 rounds", net.bytes);
}

/// A node that is cut off from another, but not from a third, sees its entries within three intervals.
#[test]
fn a_third_node_hands_on_what_one_lacks() {
    for seed in 0..50 {
        let mut net = Net::new(&["a", "b", "c"], LIMITS, seed);
        net.connect_all(&[("a", "b"), ("b", "c"), ("a", "c")]);
        net.write("c", "", name("old"), bound(1));
        net.run(INTERVAL);
        net.cut(&id("a"), &id("c"));
        net.write("c", "", name("new"), bound(2));
        net.write("c", "", name("old"), gone());
        net.causes.clear();
        net.run(INTERVAL * 3);
        net.assert_same("");
        net.write("c", "", name("newer"), bound(3));
        net.run(INTERVAL * 3);
        net.assert_same("");
        // The first fills a gap; what follows is written as far as can be told.
        let causes = net.causes.iter().filter(|(at, _)| *at == id("a")).map(|(_, change)| change.cause);
        assert_eq!(causes.collect::<Vec<_>>(), [Cause::Synced, Cause::Synced, Cause::Written], "seed {seed}");
    }
}

/// A node that has an old state of a log does not bring back what others know to be removed, with the tombstone or without.
#[test]
fn an_old_relay_brings_nothing_back() {
    for tombstones_max in [100, 0] {
        for seed in 0..20 {
            let mut net = Net::new(&["a", "b", "c"], Limits { tombstones_max, ..LIMITS }, seed);
            net.connect_all(&[("a", "b"), ("b", "c"), ("a", "c")]);
            net.write("a", "", name("stays"), bound(1));
            net.write("a", "", name("goes"), bound(1));
            net.run(Duration::ZERO);
            net.cut(&id("a"), &id("c"));
            net.cut(&id("b"), &id("c"));
            net.write("a", "", name("goes"), gone());
            net.run(Duration::ZERO);
            net.cut(&id("a"), &id("b"));
            net.causes.clear();
            net.connect_all(&[("b", "c")]);
            net.run(INTERVAL * 3);
            assert_eq!(net.seen(&id("b"), "", &id("a")).len(), 1);
            assert_eq!(net.seen(&id("c"), "", &id("a")).len(), 1);
            assert!(net.causes.iter().all(|(at, _)| *at == id("c")), "{:?}", net.causes);
        }
    }
}

/// As long as the owner is linked, others are not believed about it; when it is not, they are.
#[test]
fn the_owner_is_the_better_source() {
    let (mut one, owner, relay) = (One::new(), id("owner"), id("relay"));
    let first = [entry(1, "a", bound(1))];
    one.meet(&owner);
    one.meet(&relay);
    one.hear(&owner, reset(1, Some(digest_of(&first)), first.to_vec()));
    let more = [entry(1, "a", bound(1)), entry(2, "b", bound(1))];
    let offer = || vector(vec![held(&owner, 2, digest_of(&more)), held(&relay, 0, 0)], false);
    assert_eq!(one.hear(&relay, offer()), []);

    one.handle(Input::Unlinked { peer: owner.clone() });
    assert_eq!(one.hear(&relay, offer()), [send(&relay, want(&owner, 1))]);
    assert_eq!(one.hear(&relay, offer()), [], "it is asked for already");

    // The owner is back before the answer: its word counts, and a contradiction is counted.
    one.handle(Input::Linked { peer: owner.clone() });
    let lie = relayed(delta(1, 2, None, vec![entry(2, "b", bound(9))]), &owner);
    let answer = Frame::Have { scope: text(""), owner: Some(owner.clone()), version: 1 };
    assert_eq!(one.hear(&relay, lie.clone()), [send(&relay, answer)]);
    assert_eq!(one.node.counters().contradicted, 0, "there is nothing here that it contradicts");
    one.hear(&owner, delta(1, 2, Some(digest_of(&more)), more[1..].to_vec()));
    one.hear(&relay, lie);
    assert_eq!(one.node.counters().contradicted, 1);
    assert_eq!(one.node.visible("", &owner).nth(1), Some((&name("b"), 2, &bound(1))));
}

/// A relay that tells of versions that the owner never wrote is found out when the owner is there.
#[test]
fn an_owner_sets_right_what_was_told_of_it() {
    let mut net = Net::new(&["a", "b", "c"], LIMITS, 1);
    net.write("c", "", name("true"), bound(1));
    net.connect_all(&[("a", "c")]);
    net.settle();
    net.set_linked(&id("a"), &id("c"), false);
    let (a, b, c) = (id("a"), id("b"), id("c"));
    net.sessions.insert(pair(&a, &b), false);
    net.handle(&a, Input::Up { peer: b.clone() });
    net.handle(&a, Input::Linked { peer: b.clone() });
    net.handle(&a, Input::Frame { from: b.clone(), frame: status(0, 0) });
    let frame = vector(vec![held(&c, 1000, 7), held(&b, 0, 0)], false);
    net.handle(&a, Input::Frame { from: b.clone(), frame });
    let frame = relayed(delta(1, 1000, Some(7), vec![entry(1000, "lie", bound(1))]), &c);
    net.handle(&a, Input::Frame { from: b, frame });
    assert_eq!(net.seen(&a, "", &c).len(), 2);
    net.set_linked(&a, &c, true);
    net.write("c", "", name("next"), bound(1));
    net.settle();
    assert_eq!(net.seen(&a, "", &c), net.seen(&c, "", &c));
}

/// A relay that was asked for more than was here, and answers when the owner has told of still more, brings nothing back.
#[test]
fn a_late_answer_brings_nothing_back() {
    for is_late in [true, false] {
        let limits = Limits { tombstones_max: 0, ..LIMITS };
        let (mut one, owner, relay) = (One::with(limits, &[""]), id("owner"), id("relay"));
        one.meet(&owner);
        one.meet(&relay);
        one.handle(Input::Unlinked { peer: owner.clone() });
        let old = [entry(1, "a", bound(1)), entry(2, "b", bound(1))];
        let offer = vector(vec![held(&owner, 2, digest_of(&old)), held(&relay, 0, 0)], false);
        assert_eq!(one.hear(&relay, offer), [send(&relay, want(&owner, 0))]);
        if is_late {
            one.handle(Input::Linked { peer: owner.clone() });
            one.hear(&owner, delta(0, 3, None, vec![entry(2, "b", bound(1)), entry(3, "a", gone())]));
            one.handle(Input::Unlinked { peer: owner.clone() });
        }
        one.hear(&relay, relayed(reset(2, Some(digest_of(&old)), old.to_vec()), &owner));
        let expected: &[&str] = if is_late { &["b"] } else { &["a", "b"] };
        assert_eq!(one.names(&owner), expected);
    }
}

/// A log that did not arrive to its end is neither offered nor handed on, until it has.
#[test]
fn half_a_log_is_not_handed_on() {
    let (mut one, owner, peer) = (One::new(), id("owner"), id("peer"));
    one.meet(&owner);
    one.meet(&peer);
    one.hear(&peer, have(0));
    let first = [entry(3, "a", bound(1))];
    one.hear(&owner, reset(3, Some(digest_of(&first)), first.to_vec()));
    let question = || vector(vec![held(&peer, 0, 0)], true);
    let answer = |logs: &[Held]| send(&peer, vector([logs, &[held(&id("me"), 0, 0)]].concat(), false));
    assert_eq!(one.hear(&peer, question()), [answer(&[held(&owner, 3, digest_of(&first))])]);
    assert_eq!(entries_in(&one.hear(&peer, want(&owner, 1))), 1);
    one.hear(&peer, Frame::Have { scope: text(""), owner: Some(owner.clone()), version: 3 });

    one.hear(&owner, reset(7, None, vec![entry(7, "b", bound(1))]));
    assert_eq!(one.hear(&peer, question()), [answer(&[])]);
    one.handle(Input::Down { peer: owner.clone() });
    assert_eq!(one.hear(&peer, question()), [answer(&[])], "nor when nothing more is to come");
    assert_eq!(one.hear(&peer, want(&owner, 1)), []);

    one.meet(&owner);
    let all = [entry(3, "a", bound(1)), entry(7, "b", bound(1)), entry(8, "c", bound(1))];
    one.hear(&owner, delta(3, 8, Some(digest_of(&all)), all[1..].to_vec()));
    assert_eq!(one.hear(&peer, question()), [answer(&[held(&owner, 8, digest_of(&all))])]);
}

/// Logs that differ at the same version are asked for anew of the owner, once in an interval.
#[test]
fn a_difference_is_repaired() {
    let (mut one, peer) = (One::new(), id("peer"));
    one.meet(&peer);
    let first = [entry(1, "a", bound(1))];
    one.hear(&peer, reset(1, Some(digest_of(&first)), first.to_vec()));
    assert_eq!(one.hear(&peer, delta(1, 1, Some(7), vec![])), [send(&peer, want(&peer, 0)), send(&peer, have(1))]);
    assert_eq!(one.hear(&peer, delta(1, 1, Some(7), vec![])), [send(&peer, have(1))]);
    one.now += INTERVAL - Duration::from_millis(1);
    assert_eq!(one.hear(&peer, delta(1, 1, Some(7), vec![])), [send(&peer, have(1))]);
    one.now += Duration::from_millis(1);
    assert_eq!(one.hear(&peer, delta(1, 1, Some(7), vec![])).len(), 2);
    assert_eq!(one.node.counters().repairs, 2);
}

/// What comes after something that is lacking is not taken; the rest is asked for, once.
#[test]
fn a_gap_is_asked_for() {
    let (mut one, peer) = (One::new(), id("peer"));
    one.meet(&peer);
    let second = || delta(1, 2, None, vec![entry(2, "b", bound(1))]);
    assert_eq!(one.hear(&peer, second()), [send(&peer, want(&peer, 0)), send(&peer, have(0))]);
    assert_eq!(one.hear(&peer, second()), [send(&peer, have(0))]);
    let first = [entry(1, "a", bound(1))];
    one.hear(&peer, reset(1, Some(digest_of(&first)), first.to_vec()));
    one.hear(&peer, second());
    assert_eq!(one.names(&peer), ["a", "b"]);
}

/// All that a peer holds has come, from itself and from it of others, when that is said.
#[test]
fn synced_with_a_peer_that_knows_many() {
    for seed in 0..3 {
        let names: Vec<_> = (0..150).map(|n| format!("n{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let mut net = Net::new(&names, LIMITS, seed);
        for other in &names[2..] {
            net.write(other, "", name(other), bound(1));
            net.connect(&id("n0"), &id(other));
            net.settle();
            net.cut(&id("n0"), &id(other));
        }
        net.write("n0", "", name("n0"), bound(1));
        let (joins, knows) = (id("n1"), id("n0"));
        net.connect(&joins, &knows);
        net.handle(&joins, Input::SyncWith { peer: knows.clone() });
        while net.synced.is_empty() {
            assert!(net.deliver());
        }
        assert_eq!(net.synced, [(joins.clone(), knows)]);
        for other in names {
            assert_eq!(net.seen(&joins, "", &id(other)).len(), usize::from(other != "n1"), "of {other}");
        }
    }
}

/// A node that membership does not know yet is waited for, until it is known or for an interval; a node that is gone is not.
#[test]
fn syncing_waits_for_members_that_are_not_known() {
    let (mut one, peer) = (One::new(), id("peer"));
    let (late, dead, never) = (id("late"), id("dead"), id("never"));
    one.meet(&peer);
    one.live(&dead);
    one.handle(Input::Hidden { node: dead.clone() });
    let me = held(&id("me"), 0, 0);
    assert_eq!(one.handle(Input::SyncWith { peer: peer.clone() }), [send(&peer, vector(vec![me.clone()], true))]);
    let first = [entry(1, "a", bound(1))];
    let digest = digest_of(&first);
    let logs = vec![held(&dead, 1, digest), held(&late, 1, digest), held(&never, 1, digest), held(&peer, 0, 0)];
    assert_eq!(one.hear(&peer, vector(logs.clone(), false)), []);
    let outputs = one.handle(Input::Live { node: late.clone() });
    assert_eq!(outputs, [send(&peer, want(&late, 0))]);
    let outputs = one.hear(&peer, relayed(reset(1, Some(digest), first.to_vec()), &late));
    assert!(!outputs.contains(&Output::Synced { peer: peer.clone() }));
    // It is asked again, and what is still not known is not waited for.
    let again = vector(vec![held(&late, 1, digest), me], true);
    assert!(one.tick().contains(&send(&peer, again)));
    assert_eq!(one.hear(&peer, vector(logs, false)), [Output::Synced { peer: peer.clone() }]);

    one.handle(Input::SyncWith { peer: peer.clone() });
    assert_eq!(one.handle(Input::Down { peer: peer.clone() }), []);
    assert_eq!(one.handle(Input::SyncWith { peer }), [], "there is no session");
}

/// An answer to what was asked before does not count.
#[test]
fn syncing_begins_when_it_is_asked_for() {
    let (mut one, peer) = (One::new(), id("peer"));
    one.meet(&peer);
    one.hear(&peer, Frame::Digest { scope: text(""), digest: 7 });
    one.handle(Input::SyncWith { peer: peer.clone() });
    let answer = || vector(vec![held(&peer, 0, 0)], false);
    assert_eq!(one.hear(&peer, answer()), []);
    assert_eq!(one.hear(&peer, answer()), [Output::Synced { peer }]);
}

/// One who is alone in a scope dials a member of it; so does one who never heard of a member, so that no two groups of nodes
/// stay apart.
#[test]
fn a_scope_without_a_link_is_dialled() {
    let scopes = |scopes: &[&str]| scopes.iter().copied().map(Text::from).collect::<Vec<_>>();
    let all = scopes(&["", "x"]);
    let ids = [(id("a"), all.clone()), (id("b"), scopes(&[""])), (id("c"), all)];
    let mut net = Net::with(&ids, LIMITS, 1);
    net.write("c", "", Key::Arbiter { scope: text("x") }, State::Arbiter);
    net.write("c", "x", name("n"), bound(1));
    net.connect_all(&[("a", "b"), ("b", "c")]);
    net.run(INTERVAL * 4);
    assert!(net.dialled.contains(&(id("a"), id("c").name().clone())));
    assert!(net.dialled.iter().all(|(at, _)| *at == id("a")), "{:?}", net.dialled);
    net.connect_all(&[("a", "c")]);
    net.dialled.clear();
    net.run(INTERVAL * 4);
    net.assert_same("x");
    assert_eq!(net.dialled, []);
}
