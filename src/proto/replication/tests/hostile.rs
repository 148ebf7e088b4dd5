//! What peers do that they may not do.

use super::*;

/// Each rule, and what ends the session of who breaks it; after that, nothing is read of it.
#[test]
fn who_breaks_a_rule() {
    let arbiter = Entry { version: 1, key: Key::Arbiter { scope: text("x") }, state: State::Arbiter };
    let in_scope = |scope: &str, entries: Vec<Entry>| {
        let (scope, upto) = (text(scope), entries.last().map_or(0, |entry| entry.version));
        Frame::Entries { scope, owner: None, since: 0, upto, is_reset: false, digest: None, entries }
    };
    let misfit = Entry { version: 1, key: name("a"), state: State::Joined(Joined { count: 1, tag: text("") }) };
    let cases = [
        (in_scope("y", vec![]), Some(Broken::Scope)),
        (in_scope("z", vec![]), Some(Broken::Scope)),
        (in_scope("x", vec![]), None),
        (in_scope("x", vec![arbiter.clone()]), Some(Broken::Scope)),
        (in_scope("", vec![arbiter]), None),
        (in_scope("", vec![misfit]), Some(Broken::Versions)),
        (delta(2, 1, None, vec![]), Some(Broken::Versions)),
        (delta(0, 1, None, vec![entry(2, "a", bound(1))]), Some(Broken::Versions)),
        (delta(0, 2, None, vec![entry(2, "a", bound(1)), entry(1, "b", bound(1))]), Some(Broken::Versions)),
        (delta(0, 2, None, vec![entry(2, "a", bound(1)), entry(2, "b", bound(1))]), Some(Broken::Versions)),
        (delta(0, 2, None, vec![entry(0, "a", bound(1))]), Some(Broken::Versions)),
        (reset(1, Some(7), vec![entry(1, "a", bound(1))]), Some(Broken::Versions)),
    ];
    for (frame, rule) in cases {
        let (mut one, peer) = (One::with(LIMITS, &["", "x", "y"]), id("peer"));
        one.live(&peer);
        one.handle(Input::Up { peer: peer.clone() });
        one.handle(Input::Linked { peer: peer.clone() });
        let mine = |scope: &str| Mine { scope: text(scope), version: 0, digest: 0 };
        one.hear(&peer, Frame::Status { scopes: vec![mine(""), mine("x"), mine("z")] });
        let outputs = one.hear(&peer, frame.clone());
        let found = outputs.iter().find_map(|output| match output {
            Output::Broken { rule, .. } => Some(*rule),
            _ => None,
        });
        assert_eq!(found, rule, "{frame:?}");
        assert_eq!(one.hear(&peer, frame).is_empty(), rule.is_some());
    }
}

/// A node may have so many entries, in all scopes together, and not one more.
#[test]
fn an_owner_has_a_limit() {
    let limits = Limits { owner_max: 3, ..LIMITS };
    let (mut one, peer, relay) = (One::with(limits, &[""]), id("peer"), id("relay"));
    let entries = |many: u64| (1..=many).map(|n| entry(n, &format!("n{n}"), bound(n))).collect::<Vec<_>>();
    one.meet(&peer);
    let three = entries(3);
    assert_eq!(one.hear(&peer, reset(3, Some(digest_of(&three)), three)).last(), Some(&send(&peer, have(3))));
    let outputs = one.hear(&peer, delta(3, 5, None, vec![entry(4, "n1", gone()), entry(5, "m", bound(1))]));
    assert_eq!(outputs.last(), Some(&send(&peer, have(5))), "one went, one came");
    let outputs = one.hear(&peer, delta(5, 6, None, vec![entry(6, "n4", bound(1))]));
    assert_eq!(outputs, [broken(&peer, Broken::Limit)]);
    assert_eq!(one.names(&peer).len(), 3);

    // Who only hands it on is not to blame: the rest is left out.
    let other = id("other");
    one.meet(&relay);
    one.live(&other);
    let four = entries(4);
    let digest = digest_of(&four);
    one.hear(&relay, vector(vec![held(&other, 4, digest), held(&relay, 0, 0)], false));
    let outputs = one.hear(&relay, relayed(reset(4, Some(digest), four), &other));
    assert!(!outputs.contains(&broken(&relay, Broken::Limit)));
    assert_eq!((one.names(&other).len(), one.node.counters().left_out), (3, 1));
}

/// What there is no room for is left out, without asking for it again and again, until there is room.
#[test]
fn all_have_a_limit() {
    let limits = Limits { total_max: 10, ..LIMITS };
    let mut net = Net::new(&["a", "b"], limits, 1);
    (0..9).for_each(|n| net.write("a", "", name(&format!("a{n}")), bound(n)));
    (0..3).for_each(|n| net.write("b", "", name(&format!("b{n}")), bound(n)));
    net.connect_all(&[("a", "b")]);
    net.run(Duration::ZERO);
    assert_eq!(net.seen(&id("a"), "", &id("b")).len(), 1);
    assert_eq!(net.seen(&id("b"), "", &id("a")).len(), 7);
    assert_eq!(net.node("a").counters().left_out, 2);
    net.entries = 0;
    net.run(INTERVAL * 10);
    assert_eq!((net.entries, &net.broken[..]), (0, &[][..]));

    (0..3).for_each(|n| net.write("a", "", name(&format!("a{n}")), gone()));
    net.run(INTERVAL * 3);
    net.assert_same("");
}

/// Of a node that is not live nothing is taken, nor what was not asked for, nor anything about this node's own log.
#[test]
fn what_was_not_asked_for_is_not_taken() {
    let (mut one, peer, other) = (One::new(), id("peer"), id("other"));
    one.meet(&peer);
    let first = vec![entry(1, "a", bound(1))];
    let frame = |of: &NodeId| relayed(reset(1, Some(digest_of(&first)), first.clone()), of);
    let answer = |of: &NodeId, version| send(&peer, Frame::Have { scope: text(""), owner: Some(of.clone()), version });
    assert_eq!(one.hear(&peer, frame(&other)), [answer(&other, 0)], "nobody knows it");
    one.live(&other);
    assert_eq!(one.hear(&peer, frame(&other)), [answer(&other, 0)], "nobody asked");
    one.write("mine", bound(1));
    one.hear(&peer, have(1));
    assert_eq!(one.hear(&peer, frame(&id("me"))), [answer(&id("me"), 1)]);
    assert_eq!(one.node.counters().contradicted, 1);
    assert_eq!((one.names(&other).len(), one.names(&id("me"))), (0, vec!["mine".into()]));
}

/// A peer that says it has more than was ever written gets all of it, once in an interval.
#[test]
fn a_lie_about_what_it_has() {
    let (mut one, peer) = (One::new(), id("peer"));
    one.write("a", bound(1));
    one.meet(&peer);
    one.hear(&peer, have(1));
    let own = vec![entry(1, "a", bound(1))];
    let all = send(&peer, reset(1, Some(digest_of(&own)), own));
    assert_eq!(one.hear(&peer, have(1000)).first(), Some(&all));
    assert_eq!(one.hear(&peer, have(u64::MAX)), []);
    assert_eq!(one.node.acknowledged(&peer, ""), 1);
    one.now += INTERVAL;
    assert_eq!(one.hear(&peer, vector(vec![held(&id("me"), 1, 7)], false)), [all]);
}

/// Questions and wants have a limit; up to it they are answered.
#[test]
fn who_asks_too_much() {
    let (mut one, peer) = (One::new(), id("peer"));
    one.meet(&peer);
    let question = || vector(vec![held(&peer, 0, 0)], true);
    for _ in 0..64 {
        assert_eq!(one.hear(&peer, question()), [send(&peer, vector(vec![held(&id("me"), 0, 0)], false))]);
    }
    assert_eq!(one.hear(&peer, question()), [broken(&peer, Broken::Questions)]);

    // An interval later, it may ask again.
    let peer = id("patient");
    one.meet(&peer);
    for _ in 0..3 {
        (0..64).for_each(|_| _ = one.hear(&peer, Frame::Digest { scope: text(""), digest: 7 }));
        assert!(!one.tick().contains(&broken(&peer, Broken::Questions)));
    }

    // Wants that cannot be served yet, because nothing that was sent is answered.
    let mut one = One::with(Limits { window: 1, owner_max: 1000, ..LIMITS }, &[""]);
    one.write("a", bound(1));
    let source = id("source");
    one.meet(&source);
    let first = vec![entry(1, "a", bound(1))];
    for n in 0..257 {
        let owner = id(&format!("n{n}"));
        one.live(&owner);
        let digest = digest_of(&first);
        one.hear(&source, vector(vec![held(&owner, 1, digest), held(&source, 0, 0)], false));
        one.hear(&source, relayed(reset(1, Some(digest), first.clone()), &owner));
    }
    let greedy = id("greedy");
    one.meet(&greedy);
    for n in 0..256 {
        assert_eq!(one.hear(&greedy, want(&id(&format!("n{n}")), 0)), []);
    }
    assert_eq!(one.hear(&greedy, want(&id("n7"), 0)), [], "that it wants already");
    assert_eq!(one.hear(&greedy, want(&id("unknown"), 0)), []);
    assert_eq!(one.hear(&greedy, want(&id("n256"), 0)), [broken(&greedy, Broken::Questions)]);
}

/// Whatever a peer says, the node goes on, within its limits.
#[test]
fn noise_is_survived() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let limits = Limits { owner_max: 8, total_max: 16, tombstones_max: 4, window: 500, ..LIMITS };
        let mut one = One::with(limits, &["", "x"]);
        let ids = [id("me"), id("a"), id("b"), life("b", 2), id("c")];
        for _ in 0..400 {
            let peer = ids[rng.usize(1..ids.len())].clone();
            let (other, scope) = (ids[rng.usize(..ids.len())].clone(), text(["", "x", "y"][rng.usize(..3)]));
            let number = |rng: &mut fastrand::Rng| [rng.u64(..12), u64::MAX][usize::from(rng.u8(..40) == 0)];
            let (first, second) = (number(&mut rng), number(&mut rng));
            let owner = rng.bool().then(|| other.clone());
            let input = match rng.u8(..20) {
                0 => Input::Up { peer },
                1 => Input::Linked { peer },
                2 => Input::Unlinked { peer },
                3 => Input::Down { peer },
                4 | 5 => Input::Live { node: other },
                6 => Input::Hidden { node: other },
                7 => Input::Over { node: other },
                8 => Input::SyncWith { peer },
                kind => {
                    let mine = |scope: &str| Mine { scope: text(scope), version: first, digest: second };
                    let frame = match kind {
                        9 | 10 => Frame::Status { scopes: vec![mine(""), mine("x"), mine("y")] },
                        11 => Frame::Have { scope, owner, version: first },
                        12 => Frame::Digest { scope, digest: second },
                        13 => Frame::Want { scope, owner: other, since: first },
                        14 | 15 => {
                            let logs = vec![held(&other, first, second), held(&peer, second, first)];
                            Frame::Vector { scope, logs, is_question: rng.bool() }
                        }
                        _ => {
                            let (since, upto) = (first.min(second), first.max(second));
                            let versions: BTreeSet<_> = (0..3).map(|_| rng.u64(..12)).collect();
                            let entries = versions.into_iter().filter(|version| since < *version && *version <= upto);
                            let entries = entries.map(|version| {
                                let state = if rng.bool() { gone() } else { bound(rng.u64(..3)) };
                                entry(version, &rng.u8(..20).to_string(), state)
                            });
                            let entries = entries.collect();
                            let (digest, is_reset) = (rng.bool().then_some(second), rng.u8(..4) == 0);
                            let since = if is_reset { 0 } else { since };
                            Frame::Entries { scope, owner, since, upto, is_reset, digest, entries }
                        }
                    };
                    Input::Frame { from: peer, frame }
                }
            };
            one.handle(input);
            if rng.u8(..10) == 0 {
                one.write(&rng.u8(..4).to_string(), if rng.bool() { gone() } else { bound(1) });
            }
            if rng.u8(..20) == 0 {
                one.tick();
            }
            let logs = one.node.owners.nodes.values().map(|owner| owner.live());
            assert_eq!(logs.sum::<usize>(), one.node.owners.live);
            assert!(one.node.owners.live <= limits.total_max);
            assert!(one.node.owners.nodes.values().all(|owner| owner.live() <= limits.owner_max));
        }
    }
}
