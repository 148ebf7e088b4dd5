//! A node that is declared dead again and again.

use super::*;

/// Declares `m` dead at its present refutation, and says how long it takes to object.
fn dies(one: &mut One) -> Duration {
    let (start, refutation) = (one.now, one.member("m").refutation);
    one.hear("a", &[dead("m", refutation, "a")]);
    while one.member("m").refutation == refutation {
        one.run(secs(1));
        assert!(one.now - start < secs(10_000), "it never objects");
    }
    one.now - start
}

/// The third death within ten minutes holds the objection back for a minute, each further one for twice as long, up to
/// an hour.
#[test]
fn objections_come_later_each_time() {
    let mut one = One::among(&["a", "b"]);
    for expected in [0, 0, 60, 120, 240, 480, 960, 1920, 3600, 3600] {
        one.run(secs(300));
        assert_eq!(dies(&mut one), secs(expected));
    }
}

/// Deaths that lie further apart are no flapping, whatever came before.
#[test]
fn rare_deaths_are_no_flapping() {
    let mut one = One::among(&["a", "b"]);
    for _ in 0..5 {
        assert_eq!(dies(&mut one), secs(0));
        one.run(secs(601));
    }
    assert_eq!([(); 3].map(|()| dies(&mut one)), [secs(0), secs(0), secs(60)]);
    one.run(secs(600));
    assert_eq!(dies(&mut one), secs(120));
    one.run(secs(601));
    assert_eq!([(); 3].map(|()| dies(&mut one)), [secs(0), secs(0), secs(60)]);
}

/// Suspicions are objected to at once, however many; nor is a death counted twice that several tell of.
#[test]
fn only_deaths_count() {
    let mut one = One::among(&["a", "b"]);
    for refutation in 0..10 {
        one.hear("a", &[suspect("m", refutation, "a")]);
        assert_eq!(one.member("m").refutation, refutation + 1);
    }
    for _ in 0..2 {
        let refutation = one.member("m").refutation;
        ["a", "b"].iter().for_each(|teller| one.hear(teller, &[dead("m", refutation, teller)]));
        assert_eq!(one.member("m").refutation, refutation + 1);
    }
}

/// While it holds its objection back nothing makes it speak, and when it does, it is above all that was said meanwhile.
#[test]
fn a_held_objection_stays_held() {
    let mut one = One::among(&["a", "b"]);
    assert_eq!([(); 2].map(|()| dies(&mut one)), [secs(0); 2]);
    one.hear("a", &[dead("m", 2, "a")]);
    for second in 0..59 {
        one.run(secs(1));
        one.hear("b", &[suspect("m", 2, "b"), dead("m", 2, "b"), dead("m", 3, "b")]);
        assert_eq!((second, one.member("m").refutation), (second, 2));
    }
    one.run(secs(1));
    assert_eq!(one.member("m").refutation, 4);
    assert_eq!(one.node.deaths, 3);
}
