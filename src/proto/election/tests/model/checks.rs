//! What is searched, and what each rule is for.

use std::io::{self, Write};

use stateright::report::WriteReporter;
use stateright::{Checker, Expectation, HasDiscoveries};

use super::*;

/// No time passes, and everything may happen at any time.
fn untimed() -> Params {
    Params { skips_canvass: true, ..Params::new(Duration::ZERO, Duration::ZERO, 0, Duration::ZERO) }
}

fn set(version: u64, locals: &str, previous: Option<&str>) -> Voters {
    Voters::new(version, names(locals), previous.map(names), None).unwrap()
}

fn rules(all: &'static str, terms: u64, crashes: u32) -> Rules {
    Rules {
        all,
        names: names(all),
        sets: vec![set(1, all, None)],
        standing: all,
        params: untimed(),
        terms,
        crashes,
        crashing: all,
        rates: vec![],
        time: 0,
        beats: 1,
        is_disk_slow: false,
        is_lean: true,
        hands_over: false,
        acts: false,
        seeks: None,
        has_fence: true,
        begins: false,
    }
}

fn is_long() -> bool {
    std::env::var_os("MODEL").is_some()
}

/// Past the harness, which keeps to itself what tests print that pass.
fn say(figure: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{figure}");
}

/// Searches all of it, and finds nothing wrong.
fn holds(what: &str, rules: Rules) {
    let is_long = is_long();
    let builder = rules.checker();
    let checker = builder.finish_when(HasDiscoveries::AnyFailures).spawn_bfs();
    let checker = if is_long { checker.report(&mut WriteReporter::new(&mut io::stderr())) } else { checker.join() };
    say(format_args!("{what}: {} states, {} deep", checker.unique_state_count(), checker.max_depth()));
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match property.expectation {
            Expectation::Always => {
                if let Some(path) = found {
                    let broken = path.last_state().broken;
                    panic!("{what}: {broken:?} after {:#?}", path.into_actions());
                }
            }
            _ => assert!(found.is_some(), "{what}: never {}", property.name),
        }
    }
}

/// Finds what a broken rule breaks, by the shortest way.
fn breaks(what: &str, flaw: Option<Flaw>, mut rules: Rules, how: &'static str) {
    rules.params.flaw = flaw;
    rules.seeks = Some(how);
    let checker = rules.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checker.discovery("nothing is broken").unwrap_or_else(|| panic!("{what} breaks nothing"));
    let broken = path.last_state().broken;
    let steps = path.into_actions();
    say(format_args!("{what}: {how} after {} steps, {} states", steps.len(), checker.unique_state_count()));
    assert_eq!(broken, Some(how), "{what}: {steps:#?}");
}

#[test]
fn terms() {
    holds("three voters, two terms", rules("abc", 2, 0));
    holds("three voters, two terms, one restart", rules("abc", 2, 1));
    holds("five voters, one term", rules("abcde", 1, 0));
    let slow = Rules { is_disk_slow: true, standing: "ab", crashing: "c", ..rules("abc", 1, 1) };
    holds("three voters, one term, one restart while the disk is slow", slow.clone());

    let twice = "two leaders by one token";
    breaks("a voter that votes twice", Some(Flaw::DoubleVote), rules("abc", 2, 0), twice);
    breaks("a vote forgotten at a step down", Some(Flaw::ForgottenVote), rules("abc", 2, 0), twice);
    breaks("a quorum of those who answer", Some(Flaw::LiveQuorum), rules("abc", 2, 0), twice);
    breaks("a vote said before it is written", Some(Flaw::EarlyWord), slow, twice);
}

/// All have begun together, and who restarts has forgotten all.
fn diskless(all: &'static str, standing: &'static str, terms: u64, crashes: u32) -> Rules {
    let sets = vec![Voters::new(1, names(all), None, Some(1)).unwrap()];
    Rules { sets, standing, ..rules(all, terms, crashes) }
}

#[test]
fn voters_without_disks() {
    holds("three voters without disks, one term, one restart", diskless("abc", "ab", 1, 1));
    let five = || Rules { crashing: "c", beats: 0, ..diskless("abcde", "ab", 1, 1) };
    holds("five voters without disks, one term, one restart", five());
    // The sum of their lives is the term that they begin in.
    let begins = Rules { begins: true, crashing: "c", beats: 0, ..diskless("abc", "ab", 4, u32::from(is_long())) };
    holds("three voters without disks that begin together", begins);
    let twice = "two leaders by one token";
    breaks("a voter that has forgotten and only waits", Some(Flaw::WaitOnly), diskless("abc", "ab", 1, 1), twice);
    breaks("votes that count whatever has become of the voter", Some(Flaw::NoLives), five(), twice);
}

/// A lease of three ticks where clocks may be wrong by a third: a leader relies on two of its own, a voter waits for four.
fn leases(standing: &'static str, time: u32) -> Rules {
    let tick = |ticks| Duration::from_millis(ticks);
    let params = Params {
        heartbeat: tick(1),
        timeout: tick(1),
        spread: Duration::ZERO,
        handicap: Duration::ZERO,
        held: tick(2),
        promised: tick(4),
        flaw: None,
        skips_canvass: true,
    };
    Rules { params, standing, rates: vec![vec![1, 2, 2]], time, ..rules("abc", 2, 0) }
}

#[test]
fn leases_of_two_leaders_do_not_overlap() {
    holds("leases, clocks from 0 to 6", leases("ab", 3));
    let rates = [[1, 1, 1], [1, 1, 2], [1, 2, 1], [1, 2, 2], [2, 1, 1], [2, 1, 2], [2, 2, 1], [2, 2, 2]];
    let rates = rates.map(Vec::from).into();
    holds(
        "leases, clocks from 0 to 4 at rates of 1 and 2",
        Rules { rates, ..leases("ab", if is_long() { 3 } else { 2 }) },
    );
    let overlap = "two leases at one time";
    breaks("a lease that counts from the answer", Some(Flaw::LeaseFromReceipt), leases("ab", 3), overlap);
    let restart = || Rules { crashes: 1, crashing: "c", ..leases("ab", 1) };
    holds("leases, and one restart", restart());
    breaks("a promise forgotten by a restart", Some(Flaw::ForgottenPromise), restart(), overlap);
    // Rates that differ by more than was reckoned with.
    let worse = Rules { rates: vec![vec![1, 4, 4]], ..leases("ab", 2) };
    breaks("clocks worse than was reckoned with", None, worse, overlap);
    let handed = || Rules { hands_over: true, ..leases("ab", 0) };
    holds("leases that are handed over", handed());
    breaks("a leader that hands over and goes on", Some(Flaw::ClaimsOn), handed(), overlap);
}

#[test]
fn a_resource_with_a_fence_takes_nothing_of_a_leader_of_the_past() {
    let acts = || Rules { acts: true, hands_over: true, ..leases("ab", 0) };
    holds("a leader that checks, and acts later", acts());
    let without = Rules { has_fence: false, ..acts() };
    breaks("a resource without a fence", None, without, "a resource took a lesser token");
}

#[test]
fn two_sets_of_voters_do_not_both_elect() {
    let change = |from: &str, to: &str, previous| Rules {
        sets: vec![set(1, from, None), set(2, to, previous)],
        names: names("abcd"),
        all: "abcd",
        standing: "bd",
        rates: vec![vec![2, 1, 2, 2]],
        ..leases("bd", if is_long() { 3 } else { 2 })
    };
    holds("three voters become four", change("abc", "abcd", None));
    holds("four voters become three", change("abcd", "abd", None));
    // The old leader is the one that does not change.
    let replaced = change("abc", "abd", Some("abc"));
    holds("one of three is replaced", Rules { standing: "cd", rates: vec![vec![2, 2, 1, 2]], ..replaced });
    let apart = change("abc", "abd", None);
    breaks("sets without a version", Some(Flaw::NoVersion), apart, "two leases at one time");
}
