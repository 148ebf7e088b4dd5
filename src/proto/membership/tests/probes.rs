//! Asking members whether they live, and the score of the own health.

use super::*;

fn ping_reqs(sent: &[(NodeId, Way, Swim)]) -> usize {
    sent.iter().filter(|(_, _, frame)| matches!(frame, Swim::PingReq { .. })).count()
}

/// A node whose score is this, among peers of which `x` says nothing.
fn scored(score: u32) -> One {
    let mut one = One::among(&["a", "b", "c", "x"]);
    for refutation in 0..score {
        one.hear("a", &[suspect("m", refutation, "a")]);
    }
    assert_eq!(one.node.score(), score);
    one.rest();
    one.set_manner("x", Manner::Silent);
    one
}

/// Half an interval for an answer, then others are asked; a whole one, then the silent is suspected. Each point of the
/// score adds as much again.
#[test]
fn the_score_stretches_a_probe() {
    for score in [0, 1, 2, 7] {
        let scale = score + 1;
        let mut one = scored(score);
        one.probe("x");
        let sent = one.sent();
        assert!(matches!(sent[..], [(_, Way::Datagram, Swim::Ping { .. })]), "{sent:?}");
        one.run(millis(500) * scale - millis(1));
        assert_eq!(ping_reqs(&one.sent()), 0);
        one.run(millis(1));
        assert_eq!(ping_reqs(&one.sent()), 3);
        one.run(millis(500) * scale - millis(1));
        assert_eq!(one.state("x"), (MemberState::Alive, 0));
        one.run(millis(1));
        assert_eq!(one.state("x"), (MemberState::Suspect, 0));
    }
}

/// The next probe starts as much later.
#[test]
fn the_score_stretches_the_interval() {
    for score in [0, 1, 3] {
        let mut one = scored(score);
        one.set_manner("x", Manner::Well);
        one.node.params.probe_helpers = 0;
        // Answers would lower the score.
        ["a", "b", "c", "x"].iter().for_each(|name| one.set_manner(name, Manner::Silent));
        one.node.next_probe = one.now + secs(1);
        one.run(secs(1));
        assert_eq!(one.node.counters().probes, 1);
        assert_eq!(one.node.next_probe - one.now, secs(1) * (score + 1));
    }
}

/// Helpers that say that they have no answer either show that this node is well; each that says nothing is a point.
#[test]
fn each_silent_helper_is_a_point() {
    for (silent, expected) in [(&[][..], 2), (&["a"], 3), (&["a", "b"], 4), (&["a", "b", "c"], 5)] {
        let mut one = scored(2);
        silent.iter().for_each(|name| one.set_manner(name, Manner::NoHelp));
        one.probe("x");
        one.run(secs(3));
        assert_eq!((one.state("x").0, one.node.score()), (MemberState::Suspect, expected), "{silent:?}");
    }
}

/// A failure that no helper could confirm or deny is a point as well.
#[test]
fn without_helpers_a_failure_is_a_point() {
    let mut one = One::among(&["x"]);
    one.set_manner("x", Manner::Silent);
    one.probe("x");
    one.run(secs(1));
    assert_eq!((one.state("x").0, one.node.score()), (MemberState::Suspect, 1));
}

/// An answer takes a point away, and no more than there are; no more are added than the most.
#[test]
fn the_score_has_bounds() {
    let mut one = scored(2);
    for expected in [1, 0, 0] {
        one.probe("a");
        assert_eq!(one.node.score(), expected);
    }
    for refutation in 2..12 {
        one.hear("a", &[suspect("m", refutation, "a")]);
        assert_eq!(one.node.score(), (refutation - 1).min(7));
    }
}

/// Without the score of the own health nothing is stretched.
#[test]
fn without_a_score_times_are_fixed() {
    let mut params = params();
    params.lifeguard.probe = false;
    let mut one = One::with(params, Profile::default());
    one.link_all(&["a", "x"]);
    one.hear("a", &[suspect("m", 0, "a")]);
    one.set_manner("x", Manner::Silent);
    one.probe("x");
    one.run(secs(1));
    assert_eq!((one.state("x").0, one.node.score()), (MemberState::Suspect, 0));
}

/// A suspect is told what is held against it in the same packet as the question, before it, however much waits to be
/// told.
#[test]
fn a_suspect_is_told_first() {
    let names: Vec<_> = (0..200).map(|n| format!("n{n}")).collect();
    for buddy in [true, false] {
        let mut one = One::among(&["a", "x"]);
        one.node.params.lifeguard.buddy = buddy;
        one.set_manner("x", Manner::Silent);
        one.hear("a", &[suspect("x", 0, "a")]);
        names.iter().for_each(|name| one.introduce("a", &[name]));
        one.outputs.clear();
        one.probe("x");
        let Some((_, Output::Send { to, way: Way::Datagram, packet, .. })) = one.outputs.first() else {
            panic!("{:?}", one.outputs)
        };
        assert!(*to == id("x") && packet.len() <= PATH.datagram_max && packet.len() > 1000, "{}", packet.len());
        let frames = frames(packet);
        if buddy {
            assert_eq!(frames[0], suspect("x", 0, "a"));
            assert!(matches!(frames[1], Swim::Ping { .. }));
        } else {
            assert!(matches!(frames[0], Swim::Ping { .. }));
        }
    }
}

/// A question on a stream, when datagrams do not get through, is as good; its answer comes the same way.
#[test]
fn an_answer_on_a_stream_is_an_answer() {
    let mut one = One::among(&["a", "x"]);
    one.set_manner("x", Manner::OnlyStreams);
    one.probe("x");
    one.run(millis(499));
    assert_eq!(one.node.counters().acks, 0);
    one.run(secs(5));
    assert_eq!((one.node.counters().acks, one.node.counters().failures), (1, 0));
    assert_eq!(one.state("x"), (MemberState::Alive, 0));

    let ping = encode_all(&[Swim::Ping { seq: 9, refutation: 0 }]);
    one.outputs.clear();
    one.handle(Input::Packet { from: id("x"), way: Way::Stream, path: PATH, packet: ping });
    assert_eq!(one.sent(), [(id("x"), Way::Stream, Swim::Ack { seq: 9, refutation: 0 })]);
}

/// The answer of a helper counts, that of somebody who was not asked does not, nor one to another question.
#[test]
fn only_who_was_asked_can_answer() {
    let mut one = One::among(&["a", "b", "c", "d", "x"]);
    ["a", "b", "c", "d", "x"].iter().for_each(|name| one.set_manner(name, Manner::Silent));
    one.probe("x");
    one.run(millis(500));
    let sent = one.sent();
    let helpers: Vec<_> = sent.iter().filter(|(_, _, frame)| matches!(frame, Swim::PingReq { .. })).collect();
    let Swim::PingReq { seq, target } = helpers[0].2 else { unreachable!() };
    assert_eq!((helpers.len(), target), (3, short("x")));
    let others = ["a", "b", "c", "d"].map(id);
    let stranger = others.iter().find(|other| helpers.iter().all(|(to, _, _)| to != *other)).unwrap();
    one.hear_from(stranger, &[Swim::Ack { seq, refutation: 0 }]);
    one.hear_from(&helpers[0].0, &[Swim::Ack { seq: seq + 1, refutation: 0 }]);
    assert_eq!(one.node.counters().acks, 0);
    one.hear_from(&helpers[0].0, &[Swim::Ack { seq, refutation: 3 }]);
    assert_eq!(one.node.counters().acks, 1);
    // What the helper heard is the refutation of the target, not its own.
    assert_eq!((one.state("x"), one.member(helpers[0].0.name().local()).refutation), ((MemberState::Alive, 3), 0));
}

/// A helper has no answer after four fifths of the time-out, says so, and passes on an answer that comes later.
#[test]
fn a_helper_says_that_it_has_no_answer() {
    let mut one = One::among(&["a", "x"]);
    one.set_manner("x", Manner::Silent);
    one.hear("a", &[Swim::PingReq { seq: 77, target: short("x") }]);
    let sent = one.sent();
    let Some((_, _, Swim::Ping { seq, .. })) = sent.iter().find(|(to, _, _)| *to == id("x")) else {
        panic!("{sent:?}")
    };
    one.run(millis(399));
    assert_eq!(one.sent(), []);
    one.run(millis(1));
    assert_eq!(one.sent(), [(id("a"), Way::Datagram, Swim::Nack { seq: 77 })]);
    one.hear("x", &[Swim::Ack { seq: *seq, refutation: 2 }]);
    let ack = (id("a"), Way::Datagram, Swim::Ack { seq: 77, refutation: 2 });
    assert!(one.sent().contains(&ack));
    // Once is enough.
    one.hear("x", &[Swim::Ack { seq: *seq, refutation: 2 }]);
    assert!(!one.sent().contains(&ack));
    one.run(secs(10));
    assert!(one.node.relays.is_empty());
}

/// Each member comes within two rounds, whenever others join or leave.
#[test]
fn nobody_waits_for_more_than_two_rounds() {
    let mut one = One::among(&["a", "b", "c", "d", "e"]);
    one.node.next_probe = one.now;
    let mut last_asked: BTreeMap<String, usize> = BTreeMap::new();
    for turn in 0..600 {
        // One joins every ten turns, at any place of a round.
        if turn % 10 == 7 {
            one.link(&id(&format!("n{turn}")));
        }
        let known: Vec<_> = one.node.members().map(|member| member.id.name().local().to_owned()).collect();
        one.outputs.clear();
        one.run(secs(1));
        for (to, _, frame) in one.sent() {
            if matches!(frame, Swim::Ping { .. }) {
                last_asked.insert(to.name().local().to_owned(), turn);
            }
        }
        let others = known.len() - 1;
        for name in known.into_iter().filter(|name| name != "m") {
            let last = *last_asked.entry(name.clone()).or_insert(turn);
            assert!(turn - last < 2 * (others + 1), "{name} waits since turn {last} in turn {turn} of {others}");
        }
    }
    assert_eq!(one.node.counters().failures, 0);
}

/// Of two members each asks the other in every interval, wherever one round ends and the next begins.
#[test]
fn no_turn_is_skipped() {
    let mut few = Few::new(&["a", "b"]);
    few.run(secs(100));
    for node in few.nodes.values() {
        assert!((99..=101).contains(&node.counters().probes), "{:?}", node.counters());
    }
}
