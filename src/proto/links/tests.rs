//! One `Links` at a time, by its outputs; whole networks of them are in [`sim`].

mod sim;

use super::*;
use crate::wire::NodeFlags;

const LIMITS: Limits = Limits {
    backoff_min: Duration::from_millis(100),
    backoff_max: Duration::from_secs(5),
    peers_max: 10,
    remembered_max: 100,
};

/// `Links` under test, and the moment.
struct Side {
    links: Links,
    now: Instant,
}

#[test]
fn the_first_want_dials_and_the_next_joins_it() {
    let mut side = side("a@h");
    assert_eq!(side.want("b@h"), [dial(2, "b@h", greeting(0, 0, 0))]);
    assert_eq!(side.want("b@h"), []);
    assert_eq!(side.want("a@h"), [], "nobody dials itself");
}

#[test]
fn a_dial_comes_up_when_the_peer_has_answered() {
    let mut side = side("a@h");
    side.want("b@h");
    let b = peer(&life("b@h", 7), 2, greeting(1, 0, 0));
    assert_eq!(
        side.handle(Input::Greeted { link: LinkId(2), role: Role::Dialler, peer: b.clone(), hearsay: None }),
        [Output::Accept { link: LinkId(2), session: SessionId(4), greeting: greeting(7, 0, 0) }]
    );
    assert_eq!(
        side.handle(Input::Ready { link: LinkId(2) }),
        [
            Output::SessionUp { session: SessionId(4), peer: b },
            Output::Activate { session: SessionId(4), link: LinkId(2) }
        ]
    );
    assert_eq!(side.want("b@h"), [], "it is served");
}

#[test]
fn failed_dials_wait_ever_longer_within_their_bounds() {
    let mut side = side("a@h");
    for failures in 0..12u32 {
        let dialled = side.want("b@h");
        let [Output::Dial { link, .. }] = dialled[..] else { panic!("{dialled:?}") };
        let gave_up = Output::GaveUp { link, peer: name("b@h") };
        assert_eq!(side.handle(Input::Closed { link, code: None }), [gave_up]);

        assert_eq!(side.want("b@h"), []);
        let wait = side.links.poll_timeout().expect("a dial is due") - side.now;
        let full = (LIMITS.backoff_min * (1 << failures)).min(LIMITS.backoff_max);
        assert!(full / 2 <= wait && wait < full, "{wait:?} after {failures} failures");

        side.now += wait - Duration::from_nanos(1);
        assert_eq!(side.timeout(), []);
        side.now += Duration::from_nanos(1);
        let dialled = side.timeout();
        let [Output::Dial { link, .. }] = dialled[..] else { panic!("{dialled:?}") };
        // Back to one failure fewer, so that each turn of the loop counts one.
        side.links.peers.get_mut(&name("b@h")).expect("known").failures = failures;
        side.handle(Input::Closed { link, code: None });
        side.now += LIMITS.backoff_max;
    }
}

#[test]
fn an_urgent_want_does_not_wait() {
    let mut side = side("a@h");
    side.want("b@h");
    side.handle(Input::Closed { link: LinkId(2), code: None });
    assert_eq!(side.want("b@h"), []);
    assert_eq!(side.handle(Input::Want { peer: name("b@h"), urgent: true }), [dial(3, "b@h", greeting(0, 0, 0))]);
}

#[test]
fn a_dial_whose_wanter_left_is_not_made() {
    let mut side = side("a@h");
    side.want("b@h");
    side.handle(Input::Closed { link: LinkId(2), code: None });
    side.want("b@h");
    assert_eq!(side.handle(Input::Disconnect { peer: name("b@h") }), []);
    side.now += LIMITS.backoff_max;
    assert_eq!(side.timeout(), []);
}

#[test]
fn of_crossed_dials_the_one_by_the_greater_name_stays() {
    for (own, other, is_own_kept) in [("b@h", "a@h", true), ("a@h", "b@h", false)] {
        for is_own_first in [true, false] {
            let mut side = side(own);
            side.want(other);
            let (dialled, accepted) = (LinkId(2), side.links.accepted());
            let them = peer(&life(other, 7), 2, greeting(1, 0, 0));
            side.handle(Input::Greeted { link: dialled, role: Role::Dialler, peer: them.clone(), hearsay: None });
            side.handle(Input::Greeted { link: accepted, role: Role::Responder, peer: them, hearsay: None });
            let (first, second) = if is_own_first { (dialled, accepted) } else { (accepted, dialled) };
            let (kept, stopped) = if is_own_kept { (dialled, accepted) } else { (accepted, dialled) };
            side.handle(Input::Ready { link: first });
            let session = SessionId(5);
            assert_eq!(
                side.handle(Input::Ready { link: second }),
                [Output::Activate { session, link: kept }, Output::Stop { link: stopped, code: Code::DUPLICATE_LINK }]
            );
            side.handle(Input::Stopping { link: stopped });
            assert_eq!(side.handle(Input::Closed { link: stopped, code: Some(Code::DUPLICATE_LINK) }), []);
        }
    }
}

#[test]
fn of_two_links_by_one_side_the_later_stays() {
    let mut side = side("a@h");
    let first = side.up("b@h", 7);
    let second = side.greeted("b@h", 7, greeting(1, 0, 0));
    assert_eq!(
        side.handle(Input::Ready { link: second }),
        [Output::Activate { session: SESSION, link: second }, Output::Stop { link: first, code: Code::DUPLICATE_LINK }]
    );
}

/// A node that presents something else exchanges its links: the old one serves until the new one is up.
#[test]
fn an_outdated_link_is_exchanged_for_another() {
    let mut side = side("a@h");
    let old = side.up("b@h", 7);
    assert_eq!(side.handle(Input::Outdated { link: old }), [dial(5, "b@h", greeting(7, 0, 0))]);
    assert_eq!(side.handle(Input::Outdated { link: old }), [], "one dial is enough");
    let them = peer(&life("b@h", 7), 2, greeting(1, 0, 0));
    side.handle(Input::Greeted { link: LinkId(5), role: Role::Dialler, peer: them, hearsay: None });
    assert_eq!(
        side.handle(Input::Ready { link: LinkId(5) }),
        [
            Output::Activate { session: SESSION, link: LinkId(5) },
            Output::Stop { link: old, code: Code::DUPLICATE_LINK }
        ]
    );
    side.handle(Input::Stopping { link: old });
    assert_eq!(side.handle(Input::Closed { link: old, code: Some(Code::DUPLICATE_LINK) }), []);
    assert_eq!(side.handle(Input::Outdated { link: old }), [], "it is gone");
}

/// The peer's new certificate tells which of two links it wants to keep, although names would tell otherwise.
#[test]
fn a_peer_with_another_certificate_exchanges_its_links() {
    for own in ["a@h", "c@h"] {
        let mut side = side(own);
        side.want("b@h");
        let them = peer(&life("b@h", 7), 2, greeting(1, 0, 0));
        side.handle(Input::Greeted { link: LinkId(2), role: Role::Dialler, peer: them.clone(), hearsay: None });
        side.handle(Input::Ready { link: LinkId(2) });
        let newer = side.links.accepted();
        let mut them = them;
        them.certificate = [9; 32];
        side.handle(Input::Greeted { link: newer, role: Role::Responder, peer: them, hearsay: None });
        assert_eq!(
            side.handle(Input::Ready { link: newer }),
            [
                Output::Activate { session: SESSION, link: newer },
                Output::Stop { link: LinkId(2), code: Code::DUPLICATE_LINK }
            ]
        );
    }
}

/// A peer that does not accept what this node presents by now keeps its link, and is tried again.
#[test]
fn an_outdated_link_stays_while_the_peer_refuses_the_next() {
    let mut side = side("a@h");
    let old = side.up("b@h", 7);
    side.handle(Input::Outdated { link: old });
    for link in [5, 6, 7] {
        assert_eq!(side.handle(Input::Closed { link: LinkId(link), code: None }), [], "the session goes on");
        side.now = side.links.poll_timeout().expect("it is tried again");
        assert_eq!(side.timeout(), [dial(link + 1, "b@h", greeting(7, 0, 0))]);
    }
    // Once it is cut off, nobody dials any more.
    side.handle(Input::Closed { link: LinkId(8), code: None });
    assert_eq!(
        side.handle(Input::Closed { link: old, code: Some(Code::TRUST_CHANGED) }),
        [ended("b@h", 7, DownReason::TrustChanged)]
    );
    side.now += LIMITS.backoff_max;
    assert_eq!(side.timeout(), []);
}

/// Nobody can dial it, so its link stops, and it dials again.
#[test]
fn an_outdated_link_of_a_node_that_cannot_be_dialled_stops() {
    let mut side = side("a@h");
    let link = side.links.accepted();
    let mut them = peer(&life("b@h", 7), 2, greeting(1, 0, 0));
    them.flags.not_dialable = true;
    side.handle(Input::Greeted { link, role: Role::Responder, peer: them.clone(), hearsay: None });
    side.handle(Input::Ready { link });
    assert_eq!(side.handle(Input::Outdated { link }), [Output::Stop { link, code: Code::OUTDATED }]);
    let idle = Output::SessionIdle { session: SESSION, peer: name("b@h") };
    assert_eq!(side.handle(Input::Closed { link, code: Some(Code::OUTDATED) }), [idle]);
    let next = side.links.accepted();
    side.handle(Input::Greeted { link: next, role: Role::Responder, peer: them, hearsay: None });
    assert_eq!(side.handle(Input::Ready { link: next }), [Output::Activate { session: SESSION, link: next }]);
}

#[test]
fn a_session_goes_on_after_an_idle_close() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    side.handle(Input::Stopping { link });
    assert_eq!(side.want("b@h"), [dial(5, "b@h", greeting(7, 0, 0))], "a link that stops serves nobody");
    assert_eq!(
        side.handle(Input::Closed { link, code: Some(Code::IDLE) }),
        [Output::SessionIdle { session: SESSION, peer: name("b@h") }]
    );
    let them = peer(&life("b@h", 7), 2, greeting(1, 0, 0));
    side.handle(Input::Greeted { link: LinkId(5), role: Role::Dialler, peer: them, hearsay: None });
    assert_eq!(side.handle(Input::Ready { link: LinkId(5) }), [Output::Activate { session: SESSION, link: LinkId(5) }]);
}

#[test]
fn a_lost_link_ends_its_session_and_the_count_tells_the_peer() {
    for (code, reason) in [
        (None, DownReason::Lost),
        (Some(Code::LOST), DownReason::Lost),
        (Some(Code::SHUTDOWN), DownReason::Left),
        (Some(Code::NORMAL), DownReason::Disconnected),
        (Some(Code::STALE_LINK), DownReason::EndedByPeer),
        (Some(Code::SLOW), DownReason::Overloaded),
        (Some(Code::PROTOCOL), DownReason::Protocol),
    ] {
        let mut side = side("a@h");
        let link = side.up("b@h", 7);
        assert_eq!(side.handle(Input::Closed { link, code }), [ended("b@h", 7, reason)]);
        assert_eq!(side.want("b@h"), [dial(5, "b@h", greeting(7, 1, 0))]);
    }
}

#[test]
fn a_higher_count_of_the_peer_ends_the_session_first() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    let second = side.links.accepted();
    let them = peer(&life("b@h", 7), 2, greeting(1, 1, 0));
    assert_eq!(
        side.handle(Input::Greeted { link: second, role: Role::Responder, peer: them.clone(), hearsay: None }),
        [
            Output::Close { link, code: Code::STALE_LINK },
            ended("b@h", 7, DownReason::EndedByPeer),
            Output::Accept { link: second, session: SessionId(7), greeting: greeting(7, 0, 1) }
        ]
    );
    assert_eq!(side.handle(Input::Closed { link, code: Some(Code::STALE_LINK) }), [], "it is nobody's");
    assert_eq!(
        side.handle(Input::Ready { link: second }),
        [
            Output::SessionUp { session: SessionId(7), peer: them },
            Output::Activate { session: SessionId(7), link: second }
        ]
    );
}

#[test]
fn a_lower_count_of_the_peer_is_stale() {
    let mut side = side("a@h");
    let link = side.links.accepted();
    side.greet(link, "b@h", 7, greeting(1, 3, 0));
    let late = side.links.accepted();
    assert_eq!(side.greet(late, "b@h", 7, greeting(1, 2, 0)), [refuse(late, Code::STALE_LINK)]);
}

/// Both dialled; the peer's HELLO on one link is from before it knew this life, though the other is up by now.
#[test]
fn a_greeting_from_before_the_peer_knew_this_life_ends_nothing() {
    let mut side = side("a@h");
    side.up("b@h", 7);
    let link = side.links.accepted();
    assert_eq!(
        side.greet(link, "b@h", 7, greeting(0, 0, 0)),
        [Output::Accept { link, session: SESSION, greeting: greeting(7, 0, 0) }]
    );
}

#[test]
fn an_own_dial_from_before_an_end_is_repeated_at_once() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    side.handle(Input::Stopping { link });
    side.want("b@h");
    assert_eq!(side.handle(Input::Closed { link, code: None }), [ended("b@h", 7, DownReason::Lost)]);
    let dialled = LinkId(5);
    let them = peer(&life("b@h", 7), 2, greeting(1, 0, 0));
    assert_eq!(
        side.handle(Input::Greeted { link: dialled, role: Role::Dialler, peer: them, hearsay: None }),
        [refuse(dialled, Code::STALE_LINK)]
    );
    assert_eq!(
        side.handle(Input::Closed { link: dialled, code: Some(Code::STALE_LINK) }),
        [dial(7, "b@h", greeting(7, 1, 0))]
    );
    assert_eq!(
        side.handle(Input::Closed { link: LinkId(7), code: Some(Code::STALE_LINK) }),
        [Output::GaveUp { link: LinkId(7), peer: name("b@h") }],
        "but only once"
    );
}

#[test]
fn a_late_dial_that_nobody_wants_any_more_is_not_repeated() {
    let mut side = side("b@h");
    side.want("a@h");
    let link = side.links.accepted();
    side.greet(link, "a@h", 7, greeting(1, 0, 0));
    side.handle(Input::Ready { link });
    assert_eq!(side.handle(Input::Closed { link: LinkId(2), code: Some(Code::STALE_LINK) }), []);
    assert_eq!(side.links.peers[&name("a@h")].failures, 0);
}

#[test]
fn a_link_greeted_before_an_end_is_closed_at_ready() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    let second = side.greeted("b@h", 7, greeting(1, 0, 0));
    side.handle(Input::Closed { link, code: None });
    assert_eq!(side.handle(Input::Ready { link: second }), [Output::Close { link: second, code: Code::STALE_LINK }]);
    assert_eq!(side.handle(Input::Closed { link: second, code: Some(Code::STALE_LINK) }), []);
    assert_eq!(side.want("b@h"), [dial(8, "b@h", greeting(7, 1, 0))], "nothing is left that could come");
}

/// The dial is answered and accepted, and before its READY is reported the old session ends.
#[test]
fn an_own_link_that_came_too_late_is_dialled_again() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    side.handle(Input::Stopping { link });
    side.want("b@h");
    let them = peer(&life("b@h", 7), 2, greeting(1, 0, 0));
    side.handle(Input::Greeted { link: LinkId(5), role: Role::Dialler, peer: them, hearsay: None });
    side.handle(Input::Closed { link, code: None });
    assert_eq!(
        side.handle(Input::Ready { link: LinkId(5) }),
        [Output::Close { link: LinkId(5), code: Code::STALE_LINK }, dial(8, "b@h", greeting(7, 1, 0))]
    );
}

#[test]
fn an_unknown_link_that_ends_changes_nothing() {
    let mut side = side("a@h");
    side.up("b@h", 7);
    let stranger = side.links.accepted();
    assert_eq!(side.handle(Input::Closed { link: stranger, code: None }), []);
    assert_eq!(side.handle(Input::Ready { link: stranger }), []);
    assert_eq!(side.handle(Input::Stopping { link: stranger }), []);
}

#[test]
fn a_session_that_never_came_up_is_forgotten_with_its_links() {
    let mut side = side("a@h");
    let link = side.greeted("b@h", 7, greeting(1, 0, 0));
    assert_eq!(side.handle(Input::Closed { link, code: None }), []);
    assert!(side.links.peers[&name("b@h")].is_idle());
}

#[test]
fn a_second_life_waits_until_the_first_has_answered() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    let newcomer = side.links.accepted();
    let asked = side.greet(newcomer, "b@h", 8, greeting(0, 0, 0));
    let [Output::Check { check, ref old, link: Some(on), .. }] = asked[..] else { panic!("{asked:?}") };
    assert_eq!((old, on), (&life("b@h", 7), link));
    let another = side.links.accepted();
    assert_eq!(side.greet(another, "b@h", 9, greeting(0, 0, 0)), [], "one question at a time");
    assert_eq!(
        side.handle(Input::CheckAnswered { check, alive: true }),
        [
            refuse(newcomer, Code::NAME_CONFLICT),
            Output::Conflict { live: life("b@h", 7), refused: life("b@h", 8) },
            refuse(another, Code::NAME_CONFLICT),
            Output::Conflict { live: life("b@h", 7), refused: life("b@h", 9) },
        ]
    );
}

#[test]
fn a_dead_first_life_is_told_before_the_second_comes_in() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    let newcomer = side.links.accepted();
    let asked = side.greet(newcomer, "b@h", 8, greeting(0, 4, 0));
    let [Output::Check { check, .. }] = asked[..] else { panic!("{asked:?}") };
    let outputs = side.handle(Input::CheckAnswered { check, alive: false });
    let [_, _, Output::Accept { session, .. }] = outputs[..] else { panic!("{outputs:?}") };
    assert_eq!(
        outputs,
        [
            Output::Close { link, code: Code::STALE_LINK },
            ended("b@h", 7, DownReason::Superseded),
            Output::Accept { link: newcomer, session, greeting: greeting(8, 1, 4) }
        ]
    );
}

#[test]
fn an_idle_first_life_is_asked_by_dialling_it() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    side.handle(Input::Stopping { link });
    side.handle(Input::Closed { link, code: Some(Code::IDLE) });
    let newcomer = side.links.accepted();
    let asked = side.greet(newcomer, "b@h", 8, greeting(0, 0, 0));
    assert!(matches!(&asked[..], [Output::Check { link: None, .. }]), "{asked:?}");
}

#[test]
fn a_newcomer_whose_link_ends_during_the_check_is_forgotten() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    let newcomer = side.links.accepted();
    let asked = side.greet(newcomer, "b@h", 8, greeting(0, 0, 0));
    let [Output::Check { check, .. }] = asked[..] else { panic!("{asked:?}") };
    side.handle(Input::Closed { link: newcomer, code: None });
    assert_eq!(
        side.handle(Input::CheckAnswered { check, alive: false }),
        [Output::Close { link, code: Code::STALE_LINK }, ended("b@h", 7, DownReason::Superseded)]
    );
    let dialled = side.want("b@h");
    assert!(matches!(&dialled[..], [Output::Dial { .. }]), "{dialled:?}");
}

/// The old session ends while its life is asked, and a dial finds the new life; the late answer is not about that one.
#[test]
fn an_answer_about_a_life_that_was_replaced_ends_nothing() {
    for alive in [false, true] {
        let mut side = side("a@h");
        let link = side.up("b@h", 7);
        let newcomer = side.links.accepted();
        let asked = side.greet(newcomer, "b@h", 8, greeting(0, 0, 0));
        let [Output::Check { check, .. }] = asked[..] else { panic!("{asked:?}") };
        side.handle(Input::Closed { link, code: None });
        let dialled = side.want("b@h");
        let [Output::Dial { link: dialled, .. }] = dialled[..] else { panic!("{dialled:?}") };
        let them = peer(&life("b@h", 8), 8, greeting(1, 0, 1));
        side.handle(Input::Greeted { link: dialled, role: Role::Dialler, peer: them, hearsay: None });
        side.handle(Input::Ready { link: dialled });
        let outputs = side.handle(Input::CheckAnswered { check, alive });
        assert!(matches!(outputs[..], [Output::Accept { link, .. }] if link == newcomer), "{outputs:?}");
    }
}

/// Nobody of the name was met, but others tell of a life that lives: it is asked at its name's address.
#[test]
fn a_life_that_others_tell_of_is_asked_before_another_comes_in() {
    let mut side = side("a@h");
    let newcomer = side.links.accepted();
    let asked = side.greet_told(newcomer, 8, Some((7, true)));
    let [Output::Check { check, ref old, link: None, .. }] = asked[..] else { panic!("{asked:?}") };
    assert_eq!(old, &life("b@h", 7));
    let another = side.links.accepted();
    assert_eq!(side.greet_told(another, 9, Some((7, true))), [], "one question at a time");
    assert_eq!(
        side.handle(Input::CheckAnswered { check, alive: true }),
        [
            refuse(newcomer, Code::NAME_CONFLICT),
            Output::Conflict { live: life("b@h", 7), refused: life("b@h", 8) },
            refuse(another, Code::NAME_CONFLICT),
            Output::Conflict { live: life("b@h", 7), refused: life("b@h", 9) },
        ]
    );
}

#[test]
fn when_a_life_that_others_tell_of_has_no_answer_a_later_one_comes_in_and_an_earlier_is_told() {
    for (incarnation, comes_in) in [(6, false), (8, true)] {
        let mut side = side("a@h");
        let newcomer = side.links.accepted();
        let asked = side.greet_told(newcomer, incarnation, Some((7, true)));
        let [Output::Check { check, .. }] = asked[..] else { panic!("{asked:?}") };
        let outputs = side.handle(Input::CheckAnswered { check, alive: false });
        if comes_in {
            assert!(matches!(outputs[..], [Output::Accept { link, .. }] if link == newcomer), "{outputs:?}");
        } else {
            assert_eq!(outputs, [refuse_stale(newcomer, 7)]);
        }
    }
}

/// It comes back as the next life, while others still tell of the old one; there is one more question, and no third.
#[test]
fn who_was_told_stale_comes_in_as_the_next_life() {
    let mut side = side("a@h");
    for (incarnation, answered) in [(5, false), (8, true)] {
        let newcomer = side.links.accepted();
        let asked = side.greet_told(newcomer, incarnation, Some((7, true)));
        let [Output::Check { check, .. }] = asked[..] else { panic!("{asked:?}") };
        let outputs = side.handle(Input::CheckAnswered { check, alive: false });
        assert_eq!(matches!(outputs[..], [Output::Accept { .. }]), answered, "{outputs:?}");
    }
}

#[test]
fn of_the_dead_only_a_later_life_stands_in_the_way() {
    for (told, expected) in [(6, None), (7, None), (8, Some(8))] {
        let mut side = side("a@h");
        let link = side.links.accepted();
        let outputs = side.greet_told(link, 7, Some((told, false)));
        match expected {
            Some(known) => assert_eq!(outputs, [refuse_stale(link, known)]),
            None => assert!(matches!(outputs[..], [Output::Accept { .. }]), "{told}: {outputs:?}"),
        }
    }
}

#[test]
fn what_a_handshake_showed_stands_over_what_others_say() {
    let mut side = side("a@h");
    side.up("b@h", 7);
    let second = side.links.accepted();
    let outputs = side.greet_told(second, 7, Some((9, true)));
    assert!(matches!(outputs[..], [Output::Accept { .. }]), "{outputs:?}");
}

/// The question was where the name points, and the answer came from there.
#[test]
fn a_dial_has_asked_already() {
    for (told, expected) in [(6, None), (8, Some(8))] {
        let mut side = side("a@h");
        side.want("b@h");
        let them = peer(&life("b@h", 7), 2, greeting(1, 0, 0));
        let hearsay = Some(Hearsay { incarnation: told, is_live: true });
        let outputs = side.handle(Input::Greeted { link: LinkId(2), role: Role::Dialler, peer: them, hearsay });
        match expected {
            Some(known) => assert_eq!(outputs, [refuse_stale(LinkId(2), known)]),
            None => assert!(matches!(outputs[..], [Output::Accept { .. }]), "{outputs:?}"),
        }
    }
}

/// While a life is asked that others tell of, it comes by itself, so there is one with a session to ask.
#[test]
fn a_life_that_comes_by_itself_while_it_is_asked_stays() {
    let mut side = side("a@h");
    let newcomer = side.links.accepted();
    let asked = side.greet_told(newcomer, 8, Some((7, true)));
    let [Output::Check { check, .. }] = asked[..] else { panic!("{asked:?}") };
    let link = side.up("b@h", 7);
    let asked = side.handle(Input::CheckAnswered { check, alive: false });
    let [Output::Check { ref old, link: Some(on), .. }] = asked[..] else { panic!("{asked:?}") };
    assert_eq!((old, on), (&life("b@h", 7), link));
}

#[test]
fn a_life_that_is_over_loses_its_session_and_no_other_life_does() {
    for (over, reason) in [(6, None), (7, Some(DownReason::Dead)), (8, None)] {
        let mut side = side("a@h");
        let link = side.up("b@h", 7);
        let outputs = side.handle(Input::Over { life: life("b@h", over), reason: DownReason::Dead });
        match reason {
            None => assert_eq!(outputs, []),
            Some(reason) => {
                assert_eq!(outputs, [Output::Close { link, code: Code::STALE_LINK }, ended("b@h", 7, reason)]);
                assert_eq!(side.want("b@h"), [dial(5, "b@h", greeting(7, 1, 0))], "it may have been a mistake");
            }
        }
    }
}

/// A peer may dial again and again, and never finish the stop of what it had. It gets so many links, and others get theirs.
#[test]
fn links_of_one_peer_are_bounded() {
    let mut side = side("a@h");
    let first = side.up("b@h", 7);
    for _ in 1..LINKS_MAX {
        let link = side.greeted("b@h", 7, greeting(1, 0, 0));
        side.handle(Input::Ready { link });
    }
    let link = side.links.accepted();
    assert_eq!(side.greet(link, "b@h", 7, greeting(1, 0, 0)), [refuse(link, Code::LIMIT)]);
    side.up("c@h", 7);
    side.handle(Input::Closed { link: first, code: Some(Code::DUPLICATE_LINK) });
    side.greeted("b@h", 7, greeting(1, 0, 0));
}

#[test]
fn newcomers_for_one_check_are_bounded() {
    let mut side = side("a@h");
    side.up("b@h", 7);
    for n in 0..NEWCOMERS_MAX as u64 {
        let link = side.links.accepted();
        side.greet(link, "b@h", 8 + n, greeting(0, 0, 0));
    }
    let link = side.links.accepted();
    assert_eq!(side.greet(link, "b@h", 99, greeting(0, 0, 0)), [refuse(link, Code::LIMIT)]);
}

#[test]
fn an_older_life_is_told_what_is_known() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    side.handle(Input::Closed { link, code: None });
    for incarnation in [6, 7] {
        let link = side.links.accepted();
        // Another key under the same number is another life too.
        let them = peer(&life("b@h", incarnation), 99, greeting(1, 0, 0));
        assert_eq!(
            side.handle(Input::Greeted { link, role: Role::Responder, peer: them, hearsay: None }),
            [refuse_stale(link, 7)]
        );
    }
}

#[test]
fn told_stale_a_node_ends_its_sessions_and_goes_on_as_another() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    let pending = side.greeted("c@h", 7, greeting(1, 0, 0));
    for known in [0, INCARNATION_END - 1, u64::MAX] {
        assert_eq!(side.handle(Input::ToldStale { known }), [], "{known} is no later life");
    }
    assert_eq!(
        side.handle(Input::ToldStale { known: 1 }),
        [
            Output::Close { link, code: Code::STALE_LINK },
            ended("b@h", 7, DownReason::Renewed),
            Output::Renewed { id: life("a@h", 2) }
        ]
    );
    assert_eq!(side.handle(Input::ToldStale { known: 1 }), [], "it was told before");
    assert_eq!(
        side.handle(Input::Ready { link: pending }),
        [Output::Close { link: pending, code: Code::STALE_LINK }],
        "its peer knows the old life"
    );
}

#[test]
fn a_dial_in_the_old_life_does_not_come_up_in_the_new() {
    let mut side = side("a@h");
    side.want("b@h");
    side.handle(Input::ToldStale { known: 1 });
    let link = LinkId(2);
    for them in [greeting(1, 0, 0), greeting(2, 0, 0)] {
        let them = peer(&life("b@h", 7), 2, them);
        assert_eq!(
            side.handle(Input::Greeted { link, role: Role::Dialler, peer: them, hearsay: None }),
            [refuse(link, Code::STALE_LINK)]
        );
    }
}

#[test]
fn the_own_name_is_self_or_a_conflict() {
    let mut side = side("a@h");
    for (incarnation, key, code) in [(1, 1, Code::SELF), (1, 9, Code::NAME_CONFLICT), (2, 1, Code::NAME_CONFLICT)] {
        let link = side.links.accepted();
        let (live, refused) = (life("a@h", 1), life("a@h", incarnation));
        let them = peer(&refused, key, greeting(0, 0, 0));
        let conflict = (code == Code::NAME_CONFLICT).then_some(Output::Conflict { live, refused });
        let expected: Vec<_> = [refuse(link, code)].into_iter().chain(conflict).collect();
        assert_eq!(side.handle(Input::Greeted { link, role: Role::Responder, peer: them, hearsay: None }), expected);
    }
}

#[test]
fn one_peer_more_than_the_limit_is_refused() {
    let mut side = with_limits("a@h", Limits { peers_max: 2, ..LIMITS });
    let first = side.up("b@h", 7);
    side.greeted("c@h", 7, greeting(1, 0, 0));
    let third = side.links.accepted();
    assert_eq!(side.greet(third, "d@h", 7, greeting(1, 0, 0)), [refuse(third, Code::LIMIT)]);
    assert!(!side.links.peers.contains_key(&name("d@h")), "who is refused is not remembered");
    side.greeted("b@h", 7, greeting(1, 0, 0));
    side.handle(Input::Closed { link: first, code: None });
    let third = side.links.accepted();
    let accepted = side.greet(third, "d@h", 7, greeting(1, 0, 0));
    assert!(matches!(&accepted[..], [Output::Accept { .. }]), "{accepted:?}");
}

#[test]
fn who_is_forgotten_starts_from_the_highest_count() {
    let mut side = with_limits("a@h", Limits { remembered_max: 1, ..LIMITS });
    for _ in 0..3 {
        let ended = side.links.ended_max;
        let link = side.greeted("b@h", 7, greeting(1, 0, ended));
        side.handle(Input::Ready { link });
        side.handle(Input::Closed { link, code: None });
    }
    let link = side.links.accepted();
    let accepted = side.greet(link, "c@h", 7, greeting(0, 0, 0));
    let [Output::Accept { greeting: said, .. }] = accepted[..] else { panic!("{accepted:?}") };
    assert_eq!(said, greeting(7, 3, 0), "first contact is not refused for it");
    assert!(!side.links.peers.contains_key(&name("b@h")));
    side.handle(Input::Closed { link, code: None });
    let dialled = side.want("b@h");
    assert!(matches!(dialled[..], [Output::Dial { greeting: said, .. }] if said == greeting(0, 3, 0)), "{dialled:?}");
}

#[test]
fn a_peer_in_use_is_not_forgotten() {
    let mut side = with_limits("a@h", Limits { remembered_max: 1, ..LIMITS });
    let link = side.up("b@h", 7);
    side.up("c@h", 7);
    assert_eq!(side.handle(Input::Closed { link, code: None }), [ended("b@h", 7, DownReason::Lost)]);
}

#[test]
fn a_peer_that_nobody_can_dial_is_not_dialled() {
    let mut side = side("a@h");
    let link = side.links.accepted();
    let mut them = peer(&life("b@h", 7), 2, greeting(1, 0, 0));
    them.flags.not_dialable = true;
    side.handle(Input::Greeted { link, role: Role::Responder, peer: them, hearsay: None });
    side.handle(Input::Ready { link });
    side.handle(Input::Closed { link, code: None });
    assert_eq!(side.want("b@h"), [Output::NotDialable { peer: name("b@h") }]);
    let link = side.greeted("b@h", 7, greeting(1, 0, 1));
    assert_eq!(side.want("b@h"), [], "it comes by itself");
    assert_eq!(side.handle(Input::Closed { link, code: None }).len(), 1);
}

#[test]
fn a_disconnect_stops_what_is_up_and_closes_what_is_not() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    let pending = side.greeted("b@h", 7, greeting(1, 0, 0));
    assert_eq!(
        side.handle(Input::Disconnect { peer: name("b@h") }),
        [Output::Stop { link, code: Code::NORMAL }, Output::Close { link: pending, code: Code::NORMAL }]
    );
    side.handle(Input::Closed { link: pending, code: Some(Code::NORMAL) });
    assert_eq!(
        side.handle(Input::Closed { link, code: Some(Code::NORMAL) }),
        [ended("b@h", 7, DownReason::Disconnected)]
    );
    assert_eq!(side.handle(Input::Disconnect { peer: name("b@h") }), []);
    assert_eq!(side.handle(Input::Disconnect { peer: name("c@h") }), []);
}

#[test]
fn a_disconnect_ends_an_idle_session_at_once_and_a_stopping_one_with_its_link() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    side.handle(Input::Stopping { link });
    assert_eq!(side.handle(Input::Disconnect { peer: name("b@h") }), []);
    assert_eq!(
        side.handle(Input::Closed { link, code: Some(Code::IDLE) }),
        [ended("b@h", 7, DownReason::Disconnected)]
    );

    let mut side = self::side("a@h");
    let link = side.up("b@h", 7);
    side.handle(Input::Stopping { link });
    side.handle(Input::Closed { link, code: Some(Code::IDLE) });
    assert_eq!(side.handle(Input::Disconnect { peer: name("b@h") }), [ended("b@h", 7, DownReason::Disconnected)]);
    assert_eq!(side.want("b@h"), [dial(5, "b@h", greeting(7, 1, 0))]);
}

#[test]
fn a_dial_that_fails_ends_an_idle_session() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    side.handle(Input::Stopping { link });
    side.handle(Input::Closed { link, code: Some(Code::IDLE) });
    side.want("b@h");
    assert_eq!(
        side.handle(Input::Closed { link: LinkId(5), code: None }),
        [Output::GaveUp { link: LinkId(5), peer: name("b@h") }, ended("b@h", 7, DownReason::Lost)]
    );
}

#[test]
fn a_dial_that_fails_beside_a_stopping_link_is_told_and_ends_nothing() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    side.handle(Input::Stopping { link });
    side.want("b@h");
    assert_eq!(
        side.handle(Input::Closed { link: LinkId(5), code: None }),
        [Output::GaveUp { link: LinkId(5), peer: name("b@h") }]
    );
    assert_eq!(
        side.handle(Input::Closed { link, code: Some(Code::IDLE) }),
        [Output::SessionIdle { session: SESSION, peer: name("b@h") }]
    );
}

#[test]
fn a_shutdown_stops_and_closes_everything_and_lets_nothing_in() {
    let mut side = side("a@h");
    let link = side.up("b@h", 7);
    side.want("c@h");
    assert_eq!(
        side.handle(Input::Shutdown),
        [Output::Stop { link, code: Code::SHUTDOWN }, Output::Close { link: LinkId(5), code: Code::SHUTDOWN }]
    );
    assert_eq!(side.want("d@h"), []);
    let newcomer = side.links.accepted();
    assert_eq!(side.greet(newcomer, "d@h", 7, greeting(0, 0, 0)), [refuse(newcomer, Code::SHUTDOWN)]);
    assert_eq!(
        side.handle(Input::Closed { link, code: Some(Code::SHUTDOWN) }),
        [ended("b@h", 7, DownReason::Shutdown)],
        "it was this node that left"
    );
}

/// The session of the first [`Side::up`].
const SESSION: SessionId = SessionId(4);

impl Side {
    fn handle(&mut self, input: Input) -> Vec<Output> {
        self.links.handle(input, self.now);
        std::iter::from_fn(|| self.links.poll_output()).collect()
    }

    fn timeout(&mut self) -> Vec<Output> {
        self.links.handle_timeout(self.now);
        std::iter::from_fn(|| self.links.poll_output()).collect()
    }

    fn want(&mut self, peer: &str) -> Vec<Output> {
        self.handle(Input::Want { peer: name(peer), urgent: false })
    }

    fn greet(&mut self, link: LinkId, who: &str, incarnation: u64, greeting: Greeting) -> Vec<Output> {
        let key = if incarnation == 7 { 2 } else { incarnation as u8 };
        let peer = peer(&life(who, incarnation), key, greeting);
        self.handle(Input::Greeted { link, role: Role::Responder, peer, hearsay: None })
    }

    /// Somebody named b greets, of whose name others tell this.
    fn greet_told(&mut self, link: LinkId, incarnation: u64, told: Option<(u64, bool)>) -> Vec<Output> {
        let key = if incarnation == 7 { 2 } else { incarnation as u8 };
        let peer = peer(&life("b@h", incarnation), key, greeting(1, 0, 0));
        let hearsay = told.map(|(incarnation, is_live)| Hearsay { incarnation, is_live });
        self.handle(Input::Greeted { link, role: Role::Responder, peer, hearsay })
    }

    /// A link that waits for READY.
    fn greeted(&mut self, who: &str, incarnation: u64, greeting: Greeting) -> LinkId {
        let link = self.links.accepted();
        let accepted = self.greet(link, who, incarnation, greeting);
        assert!(matches!(accepted.last(), Some(Output::Accept { .. })), "{accepted:?}");
        link
    }

    /// A link that serves.
    fn up(&mut self, who: &str, incarnation: u64) -> LinkId {
        let link = self.greeted(who, incarnation, greeting(1, 0, 0));
        let up = self.handle(Input::Ready { link });
        assert!(matches!(up[..], [Output::SessionUp { .. }, Output::Activate { .. }]), "{up:?}");
        link
    }
}

fn side(own: &str) -> Side {
    with_limits(own, LIMITS)
}

fn with_limits(own: &str, limits: Limits) -> Side {
    Side { links: Links::new(life(own, 1), [1; 32], limits, 1), now: start() }
}

/// Any moment: only what is between two of them counts.
fn start() -> Instant {
    Instant::now()
}

fn name(text: &str) -> NodeName {
    NodeName::parse(text).expect("a name")
}

fn life(text: &str, incarnation: u64) -> NodeId {
    NodeId::new(name(text), incarnation)
}

fn greeting(known_incarnation: u64, ended: u64, seen_ended: u64) -> Greeting {
    Greeting { known_incarnation, ended, seen_ended }
}

fn dial(link: u64, peer: &str, greeting: Greeting) -> Output {
    Output::Dial { link: LinkId(link), peer: name(peer), greeting }
}

fn refuse(link: LinkId, code: Code) -> Output {
    Output::Refuse { link, refusal: code.into() }
}

fn refuse_stale(link: LinkId, known: u64) -> Output {
    let refusal = Refusal { code: Code::STALE_INCARNATION, reason: known.to_be_bytes().to_vec() };
    Output::Refuse { link, refusal }
}

fn ended(peer: &str, incarnation: u64, reason: DownReason) -> Output {
    Output::SessionEnded { session: SESSION, peer: life(peer, incarnation), reason }
}

fn peer(id: &NodeId, key: u8, greeting: Greeting) -> Box<Peer> {
    Box::new(Peer {
        id: id.clone(),
        fingerprint: [key; 32],
        certificate: [1; 32],
        greeting,
        addresses: vec![],
        flags: NodeFlags::default(),
        message_max: 1,
        first_credit: 1,
        lanes_max: 1,
    })
}
