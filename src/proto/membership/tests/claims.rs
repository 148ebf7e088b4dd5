//! Which of two claims stands, and how this node answers what is said of itself.

use super::*;

/// A node that knows `x`, which is alive and has objected thrice, from hearsay.
fn knowing_x() -> One {
    let mut one = One::among(&["a", "b"]);
    one.introduce("a", &["x"]);
    one.hear("a", &[alive("x", 3)]);
    one.run(secs(10));
    one.rest();
    assert_eq!(one.state("x"), (MemberState::Alive, 3));
    one
}

/// The same rumour of life as before the death does not bring anybody back; a later one does.
#[test]
fn only_an_objection_brings_the_dead_back() {
    let mut one = knowing_x();
    one.hear("a", &[dead("x", 3, "b")]);
    for stale in [0, 2, 3] {
        one.hear("a", &[alive("x", stale)]);
        one.hear("b", &[suspect("x", stale, "b")]);
        assert_eq!(one.state("x"), (MemberState::Dead, 3));
    }
    one.hear("a", &[alive("x", 4)]);
    assert_eq!(one.state("x"), (MemberState::Alive, 4));
}

/// What is said of an earlier refutation is old.
#[test]
fn claims_of_an_earlier_refutation_are_ignored() {
    let mut one = knowing_x();
    for stale in [suspect("x", 2, "a"), dead("x", 2, "a"), dead("x", 0, "a"), left("x", 2), alive("x", 2)] {
        one.hear("a", std::slice::from_ref(&stale));
        assert_eq!((one.state("x"), one.events()), ((MemberState::Alive, 3), vec![]), "{stale:?}");
    }
    for (news, state) in [
        (suspect("x", 3, "a"), MemberState::Suspect),
        (dead("x", 3, "a"), MemberState::Dead),
        (left("x", 3), MemberState::Left),
    ] {
        let mut one = knowing_x();
        one.hear("a", &[news]);
        assert_eq!(one.state("x"), (state, 3));
    }
}

/// What a peer remembers in a comparison as dead is suspected here; what it remembers to have left has left.
#[test]
fn the_dead_of_others_are_suspects() {
    let introduce = |life, refutation| Swim::Introduce(introduction(id("x"), life, refutation));
    let summarise = |life, refutation| Swim::Summaries {
        buckets: 1,
        of: vec![],
        summaries: vec![Summary { subject: short("x"), life, refutation, profile: 0 }],
    };
    for tell in [introduce as fn(_, _) -> _, summarise] {
        for (life, refutation, expected) in [
            (Life::Dead, 3, (MemberState::Suspect, 3)),
            (Life::Dead, 4, (MemberState::Suspect, 4)),
            (Life::Dead, 2, (MemberState::Alive, 3)),
            (Life::Suspect, 3, (MemberState::Suspect, 3)),
            (Life::Left, 3, (MemberState::Left, 3)),
            (Life::Alive, 4, (MemberState::Alive, 4)),
        ] {
            let mut one = knowing_x();
            one.hear("a", &[tell(life, refutation)]);
            assert_eq!(one.state("x"), expected, "{life:?} {refutation}");
        }
    }
}

/// Of the death of somebody unknown nothing is made; of somebody unknown who lives it is asked who that is.
#[test]
fn the_unknown_are_asked_for_if_they_live() {
    let mut one = knowing_x();
    one.hear("a", &[dead("y", 0, "b"), left("z", 0)]);
    assert_eq!((one.node.table.len(), one.sent()), (4, vec![]));
    one.hear("a", &[Swim::Introduce(introduction(id("y"), Life::Dead, 0))]);
    assert_eq!((one.node.table.len(), one.sent()), (4, vec![]));
    one.hear("a", &[alive("y", 0), suspect("z", 0, "b")]);
    assert_eq!(one.sent(), [(id("a"), Way::Datagram, Swim::Who(vec![short("y"), short("z")]))]);
}

/// Whoever has no standing is heard about itself and about this node, not about others.
#[test]
fn the_dead_have_no_say() {
    let mut one = knowing_x();
    one.run(secs(10));
    one.hear("b", &[dead("a", 0, "b")]);
    assert_eq!(one.state("a").0, MemberState::Dead);
    one.hear("a", &[dead("x", 3, "a")]);
    one.introduce("a", &["y"]);
    assert_eq!((one.state("x").0, one.node.table.len()), (MemberState::Alive, 4));
    one.hear("a", &[dead("m", 0, "a")]);
    assert_eq!(one.state("m"), (MemberState::Alive, 1));
    one.hear("a", &[alive("a", 1)]);
    assert_eq!(one.state("a"), (MemberState::Alive, 1));
}

/// An accusation is answered by a higher refutation, once, and told to all.
#[test]
fn a_node_objects_to_what_is_said_of_it() {
    let mut one = knowing_x();
    for (accusation, refutation) in [
        (suspect("m", 0, "a"), 1),
        (suspect("m", 0, "b"), 1),
        (dead("m", 0, "b"), 1),
        (dead("m", 1, "b"), 2),
        (left("m", 2), 3),
        (suspect("m", 7, "a"), 8),
        (alive("m", 20), 8),
        (Swim::Introduce(introduction(id("m"), Life::Suspect, 8)), 9),
        (Swim::Introduce(introduction(id("m"), Life::Alive, 9)), 9),
    ] {
        one.hear("a", std::slice::from_ref(&accusation));
        assert_eq!(one.state("m"), (MemberState::Alive, refutation), "{accusation:?}");
        let mut packet = Vec::new();
        one.node.rumours.clone().fill(&mut packet, 1162, 9);
        assert!(frames(&packet.into()).contains(&alive("m", refutation)));
    }
    assert_eq!(one.node.counters().refutations, 5);
}

/// A refutation far above what is known cannot be true, of oneself or of others; the last that can be is believed.
#[test]
fn a_great_leap_is_not_believed() {
    let claims: [fn(&str, u32) -> Swim; 4] = [
        alive,
        |name, refutation| suspect(name, refutation, "a"),
        |name, refutation| dead(name, refutation, "a"),
        left,
    ];
    for claim in claims {
        for (refutation, is_plausible) in [(u32::MAX, false), (4096 + 4, false), (4096 + 3, true)] {
            let mut one = knowing_x();
            one.hear("a", &[claim("x", refutation)]);
            assert_eq!(one.state("x").1, if is_plausible { refutation } else { 3 });
            assert_eq!(one.node.counters().implausible > 0, !is_plausible);
        }
    }
    let mut one = knowing_x();
    one.hear("a", &[dead("m", u32::MAX, "a"), suspect("m", 4097, "a")]);
    assert_eq!((one.state("m"), one.node.counters().refutations), ((MemberState::Alive, 0), 0));
    one.hear("a", &[dead("m", 4096, "a")]);
    assert_eq!(one.state("m"), (MemberState::Alive, 4097));
}

/// Those who died lately are told what is new, so that whoever was wrongly declared dead hears of it; the long dead are
/// not.
#[test]
fn the_long_dead_get_no_gossip() {
    for (later, expected) in [(millis(29_500), true), (millis(30_500), false)] {
        let mut one = One::among(&["a", "x"]);
        one.set_manner("x", Manner::Silent);
        one.run(secs(10));
        one.hear("a", &[dead("x", 0, "a")]);
        one.run(later);
        one.rest();
        one.introduce("a", &["y"]);
        one.run(millis(250));
        let sent = one.sent();
        let told = |name| sent.iter().any(|(to, _, frame)| *to == id(name) && matches!(frame, Swim::Introduce(_)));
        assert_eq!((told("a"), told("x")), (true, expected), "{later:?}");
    }
}

/// The dead are remembered for as long as they are kept, each for its last death; then their name is free.
#[test]
fn the_dead_are_forgotten() {
    let mut one = knowing_x();
    one.hear("a", &[dead("x", 3, "a")]);
    one.run(secs(300));
    one.hear("a", &[alive("x", 4), dead("x", 4, "a")]);
    one.run(secs(599));
    assert_eq!(one.state("x"), (MemberState::Dead, 4));
    one.outputs.clear();
    one.run(secs(1));
    assert_eq!(one.events(), [MemberEvent::Forgotten(id("x"))]);
    assert_eq!(one.node.member(id("x").name()), None);
    one.introduce("a", &["x"]);
    assert_eq!(one.state("x"), (MemberState::Alive, 0));
}

/// A dead member to which there is a link is not forgotten, nor makes room for others: it may still object.
#[test]
fn the_linked_are_not_forgotten() {
    let mut one = One::with(Params { members_max: 4, ..params() }, Profile::default());
    one.link_all(&["a", "x", "y"]);
    one.set_manner("x", Manner::Silent);
    one.run(secs(10));
    one.hear("a", &[dead("x", 0, "a"), left("y", 0)]);
    one.unlink("y", Unlinked::Left);
    one.run(secs(599));
    one.introduce("a", &["z"]);
    assert_eq!((one.state("x").0, one.node.member(id("y").name())), (MemberState::Dead, None));
    one.introduce("a", &["w"]);
    assert_eq!((one.state("z").0, one.node.counters().crowded_out), (MemberState::Alive, 1));
    one.run(secs(6000));
    assert_eq!(one.state("x"), (MemberState::Dead, 0));
    one.hear("x", &[alive("x", 1)]);
    assert_eq!(one.state("x"), (MemberState::Alive, 1));
    // Without a link it is.
    one.hear("a", &[dead("x", 1, "a")]);
    one.unlink("x", Unlinked::Lost);
    one.run(secs(600));
    assert_eq!(one.node.member(id("x").name()), None);
}

/// What was said at the start is known to those who met the node before anybody spoke of it.
#[test]
fn metadata_from_the_start_reaches_who_links_first() {
    let profile = Profile { metadata: Bytes::from_static(b"role=db"), ..Profile::default() };
    let mut few = Few::new(&["a", "b"]);
    let now = few.now;
    few.nodes.insert(id("c").name().clone(), Membership::new(id("c"), profile, params(), 9, now));
    few.link("b", "c");
    few.settle();
    few.run(secs(5));
    for at in ["a", "b", "c"] {
        assert_eq!(few.node(at).member(id("c").name()).unwrap().metadata, "role=db", "at {at}");
    }
}

/// Metadata that changes is known everywhere soon, and the last change stands.
#[test]
fn metadata_is_told() {
    let mut few = Few::new(&["a", "b", "c"]);
    for metadata in ["one", "two"] {
        few.handle(&id("a"), Input::SetMetadata { metadata: metadata.into() });
    }
    few.run(secs(2));
    for at in ["a", "b", "c"] {
        assert_eq!(few.node(at).member(id("a").name()).unwrap().metadata, "two", "at {at}");
    }
}

/// A node that goes on as another incarnation is the same name elsewhere, with nothing held against it.
#[test]
fn a_renewed_node_starts_anew() {
    let mut one = knowing_x();
    one.hear("a", &[dead("m", 0, "a")]);
    one.outputs.clear();
    let renewed = NodeId::new(id("m").name().clone(), 2);
    one.handle(Input::Renewed { id: renewed.clone() });
    assert!(matches!(&one.events()[..], [MemberEvent::Replaced { old, member }]
        if *old == id("m") && member.id == renewed && (member.state, member.refutation) == (MemberState::Alive, 0)));
    // Of the life before nothing is held against this one.
    one.hear("a", &[dead("m", 5, "a")]);
    assert_eq!((one.node.id(), one.state("m")), (&renewed, (MemberState::Alive, 0)));
}
