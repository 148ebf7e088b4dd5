//! Comparing and repairing.

use super::*;

/// Two linked nodes with these members in common, and one each beside.
fn pair(common: usize, only_a: &[&str], only_b: &[&str]) -> Few {
    let mut few = Few::new(&["a", "b"]);
    let names: Vec<_> = (0..common).map(|n| format!("n{n}")).collect();
    for (at, only) in [("a", only_a), ("b", only_b)] {
        let names = names.iter().map(String::as_str).chain(only.iter().copied());
        for name in names {
            know(few.node(at), name);
        }
        let node = few.node(at);
        node.rumours = Rumours::default();
        (node.exchange, node.next_gossip) = (None, None);
        while node.poll_output().is_some() {}
    }
    (few.packets, few.bytes) = (0, 0);
    few
}

fn know(node: &mut Membership, name: &str) {
    let identity = Identity { id: id(name), short: short(name), version: 0, profile: Profile::default() };
    node.join(Record { identity: Arc::new(identity), life: Life::Alive, refutation: 0 }).unwrap();
}

fn compare(few: &mut Few, at: &str, with: &str) {
    let now = few.now;
    let node = few.node(at);
    let slot = node.table.by_name(id(with).name()).unwrap();
    node.sync_with(slot, now);
    // What is told of members otherwise is not the matter here.
    for _ in 0..20 {
        few.nodes.values_mut().for_each(|node| node.rumours = Rumours::default());
        few.step();
    }
    few.settle();
}

fn names(few: &Few, at: &str) -> Vec<NodeId> {
    let mut names: Vec<_> = few.nodes[id(at).name()].members().map(|member| member.id).collect();
    names.sort();
    names
}

/// Where nothing differs a comparison takes two packets and tens of bytes, however many members there are.
#[test]
fn equal_tables_exchange_tens_of_bytes() {
    for common in [0, 1000] {
        let mut few = pair(common, &[], &[]);
        compare(&mut few, "a", "b");
        assert_eq!(few.packets, 2);
        assert!(few.bytes < 40, "{} bytes", few.bytes);
        assert_eq!(few.node("a").exchange.map(|exchange| exchange.with), None);
    }
}

/// One difference among a thousand members takes little more than its bucket, whichever side lacks it.
#[test]
fn one_difference_is_found_in_little() {
    for (only_a, only_b) in [(&["x"][..], &[][..]), (&[], &["x"]), (&["x"], &["y"])] {
        let mut few = pair(1000, only_a, only_b);
        compare(&mut few, "a", "b");
        assert_eq!((few.node("a").table.digest(), names(&few, "a")), (few.node("b").table.digest(), names(&few, "b")));
        assert_eq!(names(&few, "a").len(), 1002 + only_a.len() + only_b.len());
        assert!(few.bytes < 2048, "{} bytes for {only_a:?} {only_b:?}", few.bytes);
        assert!(few.packets <= 6, "{}", few.packets);
    }
}

/// The digest shows who lives, in which life, and each one's counts; not that somebody is suspected, nor who is gone.
#[test]
fn a_digest_shows_who_lives() {
    let later = NodeId::new(id("x").name().clone(), 2);
    let told = |profile| Introduction { profile, ..introduction(id("x"), Life::Alive, 0) };
    for (claim, shows) in [
        (alive("x", 1), true),
        (Swim::Introduce(told(1)), true),
        (Swim::Introduce(introduction(later, Life::Alive, 0)), true),
        (left("x", 0), true),
        (alive("x", 0), false),
        (suspect("x", 0, "a"), false),
    ] {
        let mut one = One::among(&["a"]);
        one.introduce("a", &["x", "y"]);
        let before = (one.node.table.digest(), one.node.table.digests(8));
        one.hear("a", std::slice::from_ref(&claim));
        let after = (one.node.table.digest(), one.node.table.digests(8));
        assert_eq!((before.0 != after.0, before.1 != after.1), (shows, shows), "{claim:?}");
    }
    // Who was there and is gone leaves nothing behind.
    let mut one = One::among(&["a"]);
    let before = one.node.table.digest();
    one.introduce("a", &["x"]);
    one.hear("a", &[alive("x", 5), left("x", 5)]);
    assert_eq!(one.node.table.digest(), before);
}

/// Whatever differs of one member is repaired to what stands.
#[test]
fn what_differs_of_a_member_is_repaired() {
    type Change = fn(&mut Membership, Instant);
    let changes: [(Change, (MemberState, u32)); 4] = [
        (|node, now| node.handle_rumour(alive("n3", 2), node.own, now), (MemberState::Alive, 2)),
        (|node, now| node.handle_rumour(left("n3", 0), node.own, now), (MemberState::Left, 0)),
        (|node, now| node.handle_rumour(dead("n3", 0, "a"), node.own, now), (MemberState::Suspect, 0)),
        (|node, now| node.handle_rumour(suspect("n3", 1, "a"), node.own, now), (MemberState::Suspect, 1)),
    ];
    for (at, with) in [("a", "b"), ("b", "a")] {
        for (change, expected) in &changes {
            let mut few = pair(100, &[], &[]);
            let now = few.now;
            change(few.node("a"), now);
            few.node("a").rumours = Rumours::default();
            compare(&mut few, at, with);
            let member = few.node("b").member(id("n3").name()).unwrap();
            assert_eq!((member.state, member.refutation), *expected, "{at} asks");
        }
    }
}

/// A newcomer that knows nobody gets all, whoever asks, and whichever name is the smaller; so with more members than
/// one packet can name.
#[test]
fn a_newcomer_gets_all() {
    let members: Vec<_> = (0..6000).map(|n| format!("n{n}")).collect();
    for newcomer in ["A", "z"] {
        let mut few = Few::new(&["b"]);
        members.iter().for_each(|name| know(few.node("b"), name));
        few.node("b").rumours = Rumours::default();
        let node = Membership::new(id(newcomer), Profile::default(), params(), 5, few.now);
        few.nodes.insert(node.id().name().clone(), node);
        few.link(newcomer, "b");
        for _ in 0..20 {
            few.nodes.values_mut().for_each(|node| node.rumours = Rumours::default());
            few.step();
        }
        assert_eq!(few.node(newcomer).live(), 6002, "{newcomer}");
        assert_eq!(few.node("b").live(), 6002, "{newcomer}");
        assert!(few.bytes < 6002 * 100, "{} bytes", few.bytes);
        assert!(few.largest < 32 * 1024, "{} bytes in a packet", few.largest);
    }
}

/// Those who are only remembered do not make a comparison too large for a packet.
#[test]
fn many_dead_are_compared_in_pieces() {
    let gone: Vec<_> = (0..6000).map(|n| format!("n{n}")).collect();
    let gone: Vec<_> = gone.iter().map(String::as_str).collect();
    let mut few = pair(0, &gone, &["x"]);
    let now = few.now;
    for name in gone {
        let node = few.node("a");
        let own = node.own;
        node.handle_rumour(left(name, 0), own, now);
    }
    few.node("a").rumours = Rumours::default();
    while few.node("a").poll_output().is_some() {}
    for (at, with) in [("a", "b"), ("b", "a")] {
        compare(&mut few, at, with);
        assert_eq!((few.node("a").live(), few.node("b").live()), (3, 3));
    }
    assert!(few.largest < 32 * 1024, "{} bytes in a packet", few.largest);
}

/// A comparison that breaks off anywhere has applied what arrived; the next one completes it.
#[test]
fn what_breaks_off_is_completed() {
    for packets in 0..8 {
        let mut few = pair(300, &["x", "y"], &["z"]);
        let now = few.now;
        let node = few.node("a");
        let slot = node.table.by_name(id("b").name()).unwrap();
        node.sync_with(slot, now);
        few.limit = Some(packets);
        few.settle();
        few.limit = None;
        let known = names(&few, "b").len();
        few.run(secs(11));
        compare(&mut few, "a", "b");
        assert!(names(&few, "b").len() >= known);
        assert_eq!((names(&few, "a").len(), names(&few, "a")), (305, names(&few, "b")), "after {packets} packets");
    }
}

/// When both ask at once one comparison goes on, and repairs both.
#[test]
fn both_ask_at_once() {
    let mut few = pair(300, &["x"], &["y"]);
    let now = few.now;
    for (at, with) in [("a", "b"), ("b", "a")] {
        let node = few.node(at);
        let slot = node.table.by_name(id(with).name()).unwrap();
        node.sync_with(slot, now);
    }
    few.settle();
    assert_eq!((names(&few, "a").len(), names(&few, "a")), (304, names(&few, "b")));
    assert!(few.packets <= 7, "{}", few.packets);

    let mut few = pair(300, &[], &[]);
    for (at, with) in [("a", "b"), ("b", "a")] {
        let node = few.node(at);
        let slot = node.table.by_name(id(with).name()).unwrap();
        node.sync_with(slot, now);
    }
    few.settle();
    assert_eq!(few.packets, 2);
    assert!(few.nodes.values().all(|node| node.exchange.is_none()));
}

/// Whoever gives way to the other's comparison goes on with the next that waits.
#[test]
fn giving_way_keeps_nobody_waiting() {
    let mut one = One::new();
    ["a", "b"].iter().for_each(|name| one.link(&id(name)));
    one.outputs.clear();
    one.hear("a", &[Swim::Digest { members: 9, digest: 9 }]);
    let sent = one.sent();
    assert!(
        matches!(&sent[..], [(a, _, Swim::Buckets(_)), (b, _, Swim::Digest { .. })] if *a == id("a") && *b == id("b")),
        "{sent:?}"
    );
}

/// A comparison that lost its link is over, and the next begins.
#[test]
fn a_comparison_ends_with_its_link() {
    let mut one = One::new();
    ["a", "b"].iter().for_each(|name| one.link(&id(name)));
    one.outputs.clear();
    one.unlink("a", Unlinked::Lost);
    assert!(matches!(&one.sent_to("b")[..], [Swim::Digest { .. }]));
    one.unlink("b", Unlinked::Lost);
    assert!(one.node.exchange.is_none());
}

/// An answer that comes after all patience is over starts nothing, neither here nor there.
#[test]
fn a_late_answer_starts_nothing() {
    let mut few = pair(10, &[], &[]);
    let now = few.now;
    let node = few.node("a");
    let slot = node.table.by_name(id("b").name()).unwrap();
    node.sync_with(slot, now);
    let Some(Output::Send { packet, .. }) = node.poll_output() else { panic!() };
    few.handle(&id("b"), Input::Packet { from: id("a"), way: Way::Stream, path: PATH, packet });
    let Some(Output::Send { packet, .. }) = few.node("b").poll_output() else { panic!() };
    few.run(secs(11));
    few.packets = 0;
    few.handle(&id("a"), Input::Packet { from: id("b"), way: Way::Stream, path: PATH, packet });
    for _ in 0..10 {
        few.step();
    }
    assert_eq!(few.packets, 0);
}

/// Those who wait for a comparison have it one after the other, so that one goes on at a time.
#[test]
fn comparisons_take_turns() {
    let mut one = One::new();
    for name in ["a", "b", "c"] {
        one.link(&id(name));
    }
    let digests = |one: &mut One| {
        let sent = one.sent().into_iter().filter(|(_, _, frame)| matches!(frame, Swim::Digest { .. }));
        sent.map(|(to, _, _)| to).collect::<Vec<_>>()
    };
    assert_eq!(digests(&mut one), [id("a")]);
    // The first has no answer; the next has its turn when patience is over.
    one.run(millis(9_999));
    assert_eq!(digests(&mut one), []);
    one.run(millis(1));
    assert_eq!(digests(&mut one), [id("b")]);
    // One that has gone meanwhile is passed over.
    one.unlink("c", Unlinked::Idle);
    one.run(secs(20));
    assert_eq!((digests(&mut one), one.node.sync_wanted.len()), (vec![], 0));
}
