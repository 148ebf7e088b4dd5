//! How long the suspected have to object, by the number of members and of accusers.

use super::*;

/// `m` and so many others, of which only the guide has a link; alpha 5, at most twice that, three more accusers.
fn crowd(members: usize) -> One {
    let mut params = params();
    params.probe_interval = millis(100);
    (params.suspicion_mult, params.suspicion_max_mult, params.suspicion_accusers) = (5, 2, 3);
    let mut one = One::with(params, Profile::default());
    one.link_all(&["a"]);
    for name in ["x", "b", "c", "d", "e", "f"].iter().take(members - 2) {
        one.introduce("a", &[name]);
    }
    assert_eq!(one.node.live(), members);
    one.run(secs(10));
    one
}

/// The time by the size of the cluster, where there are enough others to be heard, and by how many were.
#[test]
fn accusers_shorten_the_time() {
    for (members, confirmations, expected) in
        [(3, 0, 500), (4, 0, 500), (5, 0, 1000), (6, 0, 1000), (6, 1, 750), (6, 2, 603), (6, 3, 500), (6, 4, 500)]
    {
        let mut one = crowd(members);
        one.hear("a", &[suspect("x", 0, "a")]);
        for accuser in ["b", "c", "d", "e"].iter().take(confirmations) {
            one.hear("a", &[suspect("x", 0, accuser)]);
        }
        let time = one.dies_after("x").unwrap();
        assert_eq!(time.as_millis(), expected, "{members} members, {confirmations} more accusers");
    }
}

/// Neither the first accuser again, nor any other twice, nor the accused, nor one of the dead is another accuser.
#[test]
fn only_others_count_as_accusers() {
    for accusers in [&["a", "a"][..], &["x"], &["e"], &["a", "x", "e", "a"]] {
        let mut one = crowd(7);
        one.hear("a", &[dead("e", 0, "a")]);
        assert_eq!(one.state("e").0, MemberState::Dead);
        one.hear("a", &[suspect("x", 0, "a")]);
        accusers.iter().for_each(|accuser| one.hear("a", &[suspect("x", 0, accuser)]));
        assert_eq!(one.dies_after("x").unwrap().as_millis(), 1000, "{accusers:?}");
    }
    let mut one = crowd(7);
    one.hear("a", &[suspect("x", 0, "a")]);
    (0..4).for_each(|_| one.hear("a", &[suspect("x", 0, "b")]));
    assert_eq!(one.dies_after("x").unwrap().as_millis(), 750);
}

/// An accuser in the middle shortens what is left; one that is so late that the time is over ends it.
#[test]
fn a_late_accuser_counts_from_the_start() {
    let mut one = crowd(6);
    one.hear("a", &[suspect("x", 0, "a")]);
    one.run(millis(700));
    one.hear("a", &[suspect("x", 0, "b")]);
    assert_eq!(one.dies_after("x").unwrap().as_millis(), 50);

    let mut one = crowd(6);
    one.hear("a", &[suspect("x", 0, "a")]);
    one.run(millis(800));
    one.hear("a", &[suspect("x", 0, "b")]);
    assert_eq!(one.dies_after("x").unwrap().as_millis(), 0);
}

/// The first three more accusers are told to others; the fourth is not.
#[test]
fn accusers_that_count_are_told() {
    let mut one = crowd(7);
    for (accuser, is_told) in [("a", true), ("b", true), ("b", false), ("c", true), ("d", true), ("m2", false)] {
        one.node.rumours = Rumours::default();
        one.hear("a", &[suspect("x", 0, accuser)]);
        assert_eq!(!one.node.rumours.is_empty(), is_told, "{accuser}");
    }
}

/// An objection in the last moment ends the suspicion; one that is too late brings the dead back.
#[test]
fn an_objection_ends_a_suspicion() {
    let mut one = crowd(5);
    one.hear("a", &[suspect("x", 0, "a")]);
    one.run(millis(999));
    one.outputs.clear();
    one.hear("a", &[alive("x", 1)]);
    assert!(matches!(&one.events()[..], [MemberEvent::Cleared(member)] if member.refutation == 1));
    assert_eq!(one.dies_after("x"), None);

    one.hear("a", &[suspect("x", 1, "a")]);
    one.run(millis(1000));
    assert_eq!(one.state("x"), (MemberState::Dead, 1));
    one.outputs.clear();
    one.hear("a", &[alive("x", 2)]);
    assert!(matches!(&one.events()[..], [MemberEvent::Returned(member)] if member.refutation == 2));
    assert_eq!(one.dies_after("x"), None);
    assert_eq!(one.node.counters().false_alarms, 2);
}

/// A death out of the blue is a suspicion. A suspicion that has run for half of its shortest time can be ended by others.
#[test]
fn a_sudden_death_is_a_suspicion() {
    for (after, expected) in
        [(None, MemberState::Suspect), (Some(249), MemberState::Suspect), (Some(250), MemberState::Dead)]
    {
        let mut one = crowd(5);
        one.node.params.doubts_sudden_death = true;
        if let Some(after) = after {
            one.hear("a", &[suspect("x", 0, "a")]);
            one.run(millis(after));
        }
        one.hear("a", &[dead("x", 0, "b")]);
        assert_eq!(one.state("x"), (expected, 0), "{after:?}");
    }
    // What was suspected was an earlier refutation.
    let mut one = crowd(5);
    one.node.params.doubts_sudden_death = true;
    one.hear("a", &[suspect("x", 0, "a")]);
    one.run(millis(900));
    one.hear("a", &[dead("x", 1, "b")]);
    assert_eq!(one.state("x"), (MemberState::Suspect, 1));
    assert_eq!(one.dies_after("x").unwrap().as_millis(), 1000);
    // That somebody has left is not doubted.
    one.hear("a", &[left("x", 1)]);
    assert_eq!(one.state("x").0, MemberState::Left);
}

/// A suspicion at a higher refutation is another: it begins anew.
#[test]
fn a_suspicion_of_a_later_refutation_begins_anew() {
    let mut one = crowd(5);
    one.hear("a", &[suspect("x", 0, "a")]);
    one.run(millis(900));
    one.hear("a", &[suspect("x", 1, "b")]);
    assert_eq!(one.state("x"), (MemberState::Suspect, 1));
    assert_eq!(one.dies_after("x").unwrap().as_millis(), 1000);
}
