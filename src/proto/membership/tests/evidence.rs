//! What links show: handshakes, failed dials, closed and lost links, traffic of applications.

use super::*;

/// A node that knows `x` from hearsay, beside a few helpers.
fn cold() -> One {
    let mut one = One::among(&["a", "b", "c"]);
    one.introduce("a", &["x"]);
    one.rest();
    one
}

fn failed(one: &mut One, name: &str) {
    one.handle(Input::DialFailed { peer: id(name).name().clone() });
}

/// A probe of somebody without a link dials, once, and the handshake is the answer.
#[test]
fn a_handshake_answers_a_probe() {
    let mut one = cold();
    one.probe("x");
    assert_eq!(one.dials(), [id("x").name().clone()]);
    one.run(millis(1_900));
    assert_eq!(one.dials(), []);
    one.link(&id("x"));
    one.run(secs(10));
    assert_eq!((one.state("x"), one.node.counters().acks, one.node.score()), ((MemberState::Alive, 0), 1, 0));
    // A silent one is dialled once too.
    let mut one = cold();
    one.probe("x");
    one.run(secs(20));
    assert_eq!((one.dials().len(), one.node.counters().dials), (1, 1));
}

/// A handshake that this node makes for another answers that other.
#[test]
fn a_handshake_answers_a_helped_probe() {
    let mut one = cold();
    one.hear("a", &[Swim::PingReq { seq: 5, target: short("x") }]);
    assert_eq!((one.dials().len(), one.sent()), (1, vec![]));
    one.link(&id("x"));
    assert!(one.sent().contains(&(id("a"), Way::Datagram, Swim::Ack { seq: 5, refutation: 0 })));

    let mut one = cold();
    one.hear("a", &[Swim::PingReq { seq: 5, target: short("x") }]);
    failed(&mut one, "x");
    assert_eq!(one.sent(), [(id("a"), Way::Datagram, Swim::Nack { seq: 5 })]);
}

/// A probe that has to dial is judged when the time for a dial is over too, neither before nor after.
#[test]
fn a_cold_probe_has_longer() {
    let mut one = cold();
    one.probe("x");
    one.run(millis(1_999));
    assert_eq!(one.state("x").0, MemberState::Alive);
    one.run(millis(1));
    assert_eq!(one.state("x").0, MemberState::Suspect);
}

/// A dial that fails is no death, nor a suspicion yet: others are asked at once, and the time for the dial is given
/// back.
#[test]
fn a_failed_dial_asks_others() {
    let mut one = cold();
    one.probe("x");
    one.run(millis(10));
    assert_eq!(one.sent(), []);
    failed(&mut one, "x");
    let asked = one.sent();
    let ask =
        asked.iter().filter(|(_, _, frame)| matches!(frame, Swim::PingReq { target, .. } if *target == short("x")));
    assert_eq!(ask.count(), 3, "{asked:?}");
    one.run(millis(989));
    assert_eq!(one.state("x").0, MemberState::Alive);
    one.run(millis(1));
    assert_eq!((one.state("x").0, one.dials().len()), (MemberState::Suspect, 1));

    // A dial that fails after others were asked does not ask them again.
    let mut one = cold();
    one.probe("x");
    one.run(millis(1_500));
    one.outputs.clear();
    failed(&mut one, "x");
    assert_eq!((one.sent(), one.state("x").0), (vec![], MemberState::Alive));
    one.run(millis(1));
    assert_eq!(one.state("x").0, MemberState::Suspect);
}

/// A link that both sides closed took the question with it: it is dialled again, once.
#[test]
fn an_idle_close_in_the_middle_of_a_probe_dials() {
    let mut one = One::among(&["a", "x"]);
    one.set_manner("x", Manner::Silent);
    one.probe("x");
    one.run(millis(300));
    one.unlink("x", Unlinked::Idle);
    assert_eq!(one.dials().len(), 1);
    one.unlink("x", Unlinked::Idle);
    assert_eq!(one.dials().len(), 0);
    one.run(millis(1_699));
    assert_eq!(one.state("x").0, MemberState::Alive);
    one.link(&id("x"));
    one.run(secs(5));
    assert_eq!((one.state("x").0, one.node.counters().acks), (MemberState::Alive, 1));
}

/// A link that closed in good order, or on request, says nothing; one that was lost is a reason to ask.
#[test]
fn a_lost_link_is_a_reason_to_ask() {
    for (why, probes) in [(Unlinked::Idle, 0), (Unlinked::Asked, 0), (Unlinked::Lost, 1)] {
        let mut one = One::among(&["a", "x"]);
        one.unlink("x", why);
        assert_eq!((one.dials().len() as u64, one.node.counters().probes), (probes, probes), "{why:?}");
        assert_eq!(one.state("x").0, MemberState::Alive);
    }
}

/// A good-bye on the link is believed at once, told, and ends every question.
#[test]
fn a_goodbye_is_a_leave() {
    let mut one = One::among(&["a", "x"]);
    one.set_manner("x", Manner::Silent);
    one.probe("x");
    one.unlink("x", Unlinked::Left);
    assert!(matches!(&one.events()[..], [MemberEvent::Left(member)] if member.id == id("x")));
    one.run(secs(60));
    assert!(one.sent_to("a").contains(&left("x", 0)));
    assert_eq!((one.state("x"), one.events(), one.node.counters().suspicions), ((MemberState::Left, 0), vec![], 0));
}

/// Something of the application that came after the question was asked is an answer; what came before is not.
#[test]
fn traffic_answers_a_probe() {
    for (at, expected) in [(millis(0), MemberState::Alive), (millis(900), MemberState::Alive)] {
        let mut one = One::among(&["a", "x"]);
        one.run(secs(5));
        one.set_manner("x", Manner::Silent);
        one.probe("x");
        let heard = one.now + at;
        one.run(millis(999));
        // Who knows when their application was heard is asked about those, and those only, who are about to be judged.
        let due = one.now + millis(1);
        assert_eq!((one.node.judged(one.now), one.node.judged(due)), (vec![], vec![id("x")]));
        one.handle(Input::Heard { peer: id("x"), at: heard });
        one.run(secs(1));
        assert_eq!((one.state("x").0, one.node.counters().failures), (expected, 0));
    }
    let mut one = One::among(&["a", "x"]);
    one.run(secs(5));
    one.set_manner("x", Manner::Silent);
    one.probe("x");
    one.handle(Input::Heard { peer: id("x"), at: one.now - millis(1) });
    one.run(secs(1));
    assert_eq!(one.state("x").0, MemberState::Suspect);
}

/// Whoever is heard within the last interval is not declared dead when its time is over; it is told, and has another
/// interval.
#[test]
fn traffic_delays_a_death() {
    for (since, dies) in [(millis(999), false), (secs(1), true)] {
        let mut one = One::among(&["x"]);
        one.set_manner("x", Manner::Silent);
        one.run(secs(10));
        one.hear("x", &[suspect("y", 0, "x")]);
        one.probe("x");
        one.run(secs(1));
        assert_eq!((one.state("x").0, one.node.score()), (MemberState::Suspect, 1));
        one.node.score = 0;
        let due = one.node.suspicions.deadlines.first().unwrap().0;
        one.run(due - one.now - millis(1));
        assert_eq!(one.node.judged(due), [id("x")]);
        one.handle(Input::Heard { peer: id("x"), at: due - since });
        one.outputs.clear();
        one.run(millis(1));
        let expected = if dies { MemberState::Dead } else { MemberState::Suspect };
        assert_eq!(one.state("x").0, expected, "{since:?}");
        if !dies {
            assert_eq!(one.sent_to("x"), [suspect("x", 0, "m")]);
            one.run(millis(999));
            assert_eq!(one.state("x").0, MemberState::Suspect);
            one.run(millis(1));
            assert_eq!(one.state("x").0, MemberState::Dead);
        }
    }
}

/// Others say that a peer is dead which answers here: it is suspected, and told so, that it may object.
#[test]
fn a_rumour_of_death_about_a_peer_that_answers_is_a_suspicion() {
    for (later, is_believed) in [(millis(998), false), (millis(999), true)] {
        let mut one = One::among(&["a", "x"]);
        one.set_manner("x", Manner::Silent);
        one.run(later);
        one.hear("a", &[dead("x", 0, "a")]);
        let expected = if is_believed { MemberState::Dead } else { MemberState::Suspect };
        assert_eq!(one.state("x").0, expected);
        assert_eq!(one.sent_to("x").contains(&suspect("x", 0, "a")), !is_believed);
    }
    let mut one = One::among(&["a", "x"]);
    one.hear("a", &[dead("x", 0, "a")]);
    assert_eq!(one.state("x"), (MemberState::Alive, 1));
}

fn hidden() -> Profile {
    let flags = NodeFlags { not_dialable: true, ..NodeFlags::default() };
    Profile { flags, ..Profile::default() }
}

/// A member that cannot be dialled is probed over a link that it keeps, and by nobody else.
#[test]
fn only_peers_probe_who_cannot_be_dialled() {
    let hide = |name| {
        let flags = NodeFlags { not_dialable: true, ..NodeFlags::default() };
        Swim::Introduce(Introduction { flags, ..introduction(id(name), Life::Alive, 0) })
    };
    let mut one = One::among(&["a"]);
    one.hear("a", &[hide("x"), hide("y")]);
    one.link(&id("y"));
    one.node.next_probe = one.now;
    one.rest();
    one.run(secs(60));
    assert_eq!((one.dials(), one.state("x").0, one.state("y").0), (vec![], MemberState::Alive, MemberState::Alive));
    assert!(one.sent_to("y").iter().filter(|frame| matches!(frame, Swim::Ping { .. })).count() >= 20);
    // Asked by another, this node says that it has no answer from the one, and asks the other.
    one.hear("a", &[Swim::PingReq { seq: 1, target: short("x") }, Swim::PingReq { seq: 2, target: short("y") }]);
    let sent = one.sent_to("a");
    assert!(sent.contains(&Swim::Nack { seq: 1 }) && sent.contains(&Swim::Ack { seq: 2, refutation: 0 }), "{sent:?}");
    assert_eq!(one.dials(), []);

    // When its link is lost, others that may have one are asked at once, and decide.
    one.outputs.clear();
    one.unlink("y", Unlinked::Lost);
    assert!(matches!(one.sent_to("a")[..], [Swim::PingReq { target, .. }] if target == short("y")));
    one.run(secs(1));
    assert_eq!((one.dials(), one.state("y").0), (vec![], MemberState::Suspect));
}

/// A node that cannot be dialled keeps so many links, to members that can.
#[test]
fn who_cannot_be_dialled_keeps_links() {
    let mut one = One::with(params(), hidden());
    one.link_all(&["a", "b", "c"]);
    one.introduce("a", &["d", "e", "f"]);
    one.node.next_reconnect = one.now + secs(10);
    one.rest();
    one.run(secs(10));
    assert_eq!(one.dials(), []);
    one.unlink("a", Unlinked::Idle);
    let dials = one.dials();
    assert_eq!(dials.len(), 1, "{dials:?}");
    one.unlink("b", Unlinked::Idle);
    assert_eq!(one.dials().len(), 2);
    ["d", "e"].iter().for_each(|name| one.link(&id(name)));
    one.outputs.clear();
    one.run(secs(60));
    assert_eq!(one.dials(), []);

    // One that can be dialled keeps none.
    let mut one = cold();
    one.node.next_reconnect = one.now + secs(10);
    ["a", "b", "c"].iter().for_each(|name| one.unlink(name, Unlinked::Idle));
    one.run(secs(60));
    assert_eq!(one.dials(), []);
}

/// A handshake with a later life ends the earlier at once, whatever was known; with an earlier life it says nothing.
#[test]
fn a_handshake_of_a_later_life_stands() {
    let life = |incarnation| NodeId::new(id("x").name().clone(), incarnation);
    let mut one = One::among(&["a", "x"]);
    one.set_manner("x", Manner::Silent);
    one.hear("a", &[suspect("x", 2, "a")]);
    one.probe("x");
    one.outputs.clear();
    one.link(&life(2));
    assert!(matches!(&one.events()[..], [MemberEvent::Replaced { old, member }]
        if *old == life(1) && member.id == life(2) && member.state == MemberState::Alive && member.refutation == 0));
    // The end of the old link, what was said of the old life and what it says are nothing to the later.
    one.unlink("x", Unlinked::Lost);
    one.hear("x", &[Swim::Ping { seq: 1, refutation: 9 }]);
    one.hear("a", &[dead("x", 9, "a"), suspect("x", 9, "a")]);
    assert_eq!((one.dials(), one.node.last_heard(life(2).name())), (vec![], Some(one.now)));
    one.run(secs(100));
    assert_eq!((one.state("x"), one.member("x").id), ((MemberState::Alive, 0), life(2)));

    one.outputs.clear();
    one.link(&life(1));
    assert_eq!((one.member("x").id, one.events()), (life(2), vec![]));

    // It joins where the earlier was dead.
    one.hear("a", &[Swim::Dead { subject: ShortId::of(&life(2)), refutation: 0, accuser: short("a") }]);
    one.outputs.clear();
    one.link(&life(3));
    assert!(matches!(&one.events()[..], [MemberEvent::Joined(member)] if member.id == life(3)));
}

/// Hearsay of a later life of one that answers is checked: while that answers it is not believed.
#[test]
fn hearsay_of_a_later_life_is_checked() {
    let later = NodeId::new(id("x").name().clone(), 2);
    let hearsay = [Swim::Introduce(introduction(later.clone(), Life::Alive, 0))];
    // It answers.
    let mut one = One::among(&["a", "x"]);
    one.hear("a", &hearsay);
    assert_eq!((one.member("x").id, one.node.counters().acks), (id("x"), 1));
    one.run(secs(10));
    assert!(one.node.contested.is_empty());
    one.unlink("x", Unlinked::Lost);
    assert_eq!(one.member("x").id, id("x"));
    // It does not.
    let mut one = One::among(&["a", "x"]);
    one.set_manner("x", Manner::Silent);
    one.hear("a", &hearsay);
    one.run(millis(999));
    assert_eq!(one.member("x").id, id("x"));
    one.run(millis(1));
    assert_eq!((one.member("x").id, one.state("x").0), (later.clone(), MemberState::Alive));
    // Its link is lost.
    let mut one = One::among(&["a", "x"]);
    one.set_manner("x", Manner::Silent);
    one.hear("a", &hearsay);
    one.unlink("x", Unlinked::Lost);
    assert_eq!(one.member("x").id, later);
    // It was not heard for an interval.
    let mut one = One::among(&["a", "x"]);
    one.run(secs(1));
    one.hear("a", &hearsay);
    assert_eq!(one.member("x").id, later);
}

/// What was to be checked of somebody who is forgotten is nothing to whoever comes after.
#[test]
fn a_check_ends_with_its_member() {
    let mut one = One::among(&["a", "x"]);
    one.set_manner("x", Manner::Silent);
    one.run(secs(10));
    one.hear("a", &[dead("x", 0, "a")]);
    one.handle(Input::Heard { peer: id("x"), at: one.now });
    let later = NodeId::new(id("x").name().clone(), 2);
    one.hear("a", &[Swim::Introduce(introduction(later, Life::Alive, 0))]);
    one.unlink("x", Unlinked::Asked);
    one.run(secs(601));
    assert_eq!(one.node.member(id("x").name()), None);
    // It takes the place in the table.
    one.link(&id("y"));
    one.set_manner("y", Manner::Silent);
    one.unlink("y", Unlinked::Lost);
    one.run(secs(5));
    assert_eq!((one.member("y").id, one.state("y").0), (id("y"), MemberState::Suspect));
    assert!(one.node.contested.is_empty());
}

/// A node that slept judges nobody by what it missed, and takes a point; afterwards it judges again.
#[test]
fn who_slept_does_not_judge() {
    let mut one = One::among(&["a", "b", "x", "y"]);
    ["x", "y"].iter().for_each(|name| one.set_manner(name, Manner::Silent));
    one.hear("a", &[suspect("y", 0, "a")]);
    one.run(secs(3));
    one.probe("x");
    one.run(millis(600));
    one.outputs.clear();

    // Both verdicts are overdue when it wakes.
    one.now += secs(60);
    let woke = one.now;
    one.node.handle_timeout(woke);
    one.settle();
    assert_eq!((one.state("x").0, one.state("y").0), (MemberState::Alive, MemberState::Suspect));
    assert_eq!((one.node.score(), one.node.probes.len()), (1, 0));
    // An interval to hear what waits to be read.
    one.run(millis(999));
    assert_eq!(one.state("y").0, MemberState::Suspect);
    one.run(millis(1));
    assert_eq!(one.state("y").0, MemberState::Dead);
    one.probe("x");
    one.run(secs(2));
    assert_eq!(one.state("x").0, MemberState::Suspect);
}

/// The same for a verdict that is due a moment after it wakes: what it missed has not been read by then.
#[test]
fn who_slept_does_not_judge_a_moment_later() {
    let mut one = One::among(&["a", "b", "y"]);
    one.set_manner("y", Manner::Silent);
    one.hear("a", &[suspect("y", 0, "a")]);
    one.node.next_reconnect = one.now + secs(2);
    let due = one.node.suspicions.deadlines.first().unwrap().0;
    one.now = due - millis(1);
    one.node.handle_timeout(one.now);
    one.run(millis(998));
    assert_eq!(one.state("y").0, MemberState::Suspect);
    one.run(millis(3));
    assert_eq!(one.state("y").0, MemberState::Dead);
}

/// A timer that is late by less than half an interval was not slept through.
#[test]
fn a_little_late_is_not_asleep() {
    for (late, is_judged) in [(millis(500), true), (millis(501), false)] {
        let mut one = One::among(&["a", "x"]);
        one.set_manner("x", Manner::Silent);
        one.probe("x");
        one.run(millis(999));
        one.now += millis(1) + late;
        one.node.handle_timeout(one.now);
        let expected = if is_judged { MemberState::Suspect } else { MemberState::Alive };
        assert_eq!(one.state("x").0, expected, "{late:?}");
    }
}

/// A dead member is dialled again now and then, and answers when a partition has healed; those who left are not.
#[test]
fn the_dead_are_dialled_now_and_then() {
    let mut one = One::among(&["a"]);
    one.introduce("a", &["x", "y"]);
    one.hear("a", &[dead("x", 0, "a"), left("y", 0)]);
    one.node.next_reconnect = one.now + secs(10);
    one.outputs.clear();
    one.run(secs(300));
    let dials = one.dials();
    assert!(dials.len() > 5 && dials.iter().all(|dial| dial == id("x").name()), "{dials:?}");
    one.link(&id("x"));
    assert_eq!(one.state("x"), (MemberState::Alive, 1));
}

/// After its good-bye a node asks nobody and suspects nobody, but still answers.
#[test]
fn who_has_left_is_quiet() {
    let mut one = One::among(&["a", "b", "x"]);
    one.node.next_probe = one.now + secs(1);
    one.handle(Input::Leave);
    assert!(one.outputs.iter().any(|(_, output)| matches!(output, Output::GoodbyeSaid)));
    assert!(one.sent_to("a").contains(&left("m", 0)));
    one.set_manner("x", Manner::Silent);
    one.unlink("x", Unlinked::Lost);
    one.hear("a", &[dead("m", 0, "a"), Swim::Ping { seq: 3, refutation: 0 }]);
    one.run(secs(60));
    assert_eq!(one.state("m"), (MemberState::Left, 0));
    assert_eq!((one.dials(), one.node.counters().probes, one.node.counters().suspicions), (vec![], 0, 0));
    assert!(one.sent_to("a").contains(&Swim::Ack { seq: 3, refutation: 0 }));

    // Alone it has nobody to tell.
    let mut one = One::new();
    one.handle(Input::Leave);
    assert!(matches!(one.outputs[..], [.., (_, Output::GoodbyeSaid)]));
    one.run(secs(60));
}
