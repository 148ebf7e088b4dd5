//! What is searched, and what each rule is for.

use std::io;

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
        term: 0,
    }
}

fn is_long() -> bool {
    std::env::var_os("MODEL").is_some()
}

/// Searches all of it, and finds nothing wrong.
fn holds(what: &str, rules: Rules) {
    let is_long = is_long();
    let builder = rules.checker();
    let checker = builder.finish_when(HasDiscoveries::AnyFailures).spawn_bfs();
    let checker = if is_long { checker.report(&mut WriteReporter::new(&mut io::stderr())) } else { checker.join() };
    println!("{what}: {} states, {} deep", checker.unique_state_count(), checker.max_depth());
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
    println!("{what}: {} after {} steps, {} states", how, steps.len(), checker.unique_state_count());
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
    let restart = || Rules { crashes: 1, ..leases("ab", 2) };
    holds("leases, and one restart", Rules { crashing: "c", ..restart() });
    breaks("a promise forgotten by a restart", Some(Flaw::ForgottenPromise), restart(), overlap);
    // Rates that differ by more than was reckoned with.
    let worse = Rules { rates: vec![vec![1, 3, 3]], ..leases("ab", 2) };
    breaks("clocks worse than was reckoned with", None, worse, overlap);
    holds("leases that are handed over", Rules { hands_over: true, ..leases("ab", 1) });
}

#[test]
fn a_resource_with_a_fence_takes_nothing_of_a_leader_of_the_past() {
    let acts = || Rules { acts: true, rates: vec![vec![1, 2, 2]], ..leases("ab", 3) };
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
        ..leases("bd", 3)
    };
    holds("three voters become four", change("abc", "abcd", None));
    holds("four voters become three", change("abcd", "abd", None));
    holds("one of three is replaced", change("abc", "abd", Some("abc")));
    let apart = change("abc", "abd", None);
    breaks("sets without a version", Some(Flaw::NoVersion), apart, "two leases at one time");
}

#[test]
fn explore() {
    let get = |key: &str, or: u64| std::env::var(key).ok().map_or(or, |v| v.parse().unwrap());
    let text =
        |key: &str, or: &str| -> &'static str { Box::leak(std::env::var(key).unwrap_or(or.into()).into_boxed_str()) };
    let (all, standing) = (text("ALL", "abc"), text("STAND", "abc"));
    let base = match text("KIND", "") {
        "diskless" => {
            Rules { beats: get("BEATS", 0), ..diskless(all, standing, get("TERMS", 1), get("CRASHES", 1) as u32) }
        }
        "lease" => Rules {
            terms: get("TERMS", 2),
            crashes: get("CRASHES", 0) as u32,
            beats: get("BEATS", 1),
            ..leases(standing, get("TIME", 3) as u32)
        },
        "sets" => Rules {
            sets: vec![
                set(1, text("FROM", "abc"), None),
                set(2, text("TO", "abcd"), std::env::var("PREV").ok().as_deref()),
            ],
            names: names("abcd"),
            all: "abcd",
            rates: vec![vec![2, 1, 2, 2]],
            ..leases(standing, get("TIME", 3) as u32)
        },
        _ => Rules { standing, beats: get("BEATS", 1), ..rules(all, get("TERMS", 2), get("CRASHES", 0) as u32) },
    };
    let rates: Vec<Vec<u32>> = text("RATES", "")
        .split(',')
        .filter(|t| !t.is_empty())
        .map(|t| t.bytes().map(|b| u32::from(b - b'0')).collect())
        .collect();
    let base = Rules {
        crashing: text("CRASHING", all),
        rates: if rates.is_empty() { base.rates.clone() } else { rates },
        is_disk_slow: get("SLOW", 0) == 1,
        hands_over: get("HAND", 0) == 1,
        ..base
    };
    let checker = base.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!(
        "{} states, {} deep, {:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        checker.discovery("nothing is broken").map(|p| p.last_state().broken)
    );
}
