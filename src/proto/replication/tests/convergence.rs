//! In whatever order things happen, all come to see the same.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Write { at: usize, key: u8, is_gone: bool },
    Deliver(usize),
    Connect(usize, usize),
    Cut(usize, usize),
    Link(usize, usize, bool),
    Hide(usize, usize),
    Live(usize, usize),
    Pass(u64),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pair = || (0..4_usize, 0..4_usize).prop_filter("two", |(a, b)| a != b);
    let step = prop_oneof![
        6 => (0..4_usize, 0..6_u8, any::<bool>()).prop_map(|(at, key, is_gone)| Step::Write { at, key, is_gone }),
        8 => (1..6_usize).prop_map(Step::Deliver),
        3 => pair().prop_map(|(a, b)| Step::Connect(a, b)),
        1 => pair().prop_map(|(a, b)| Step::Cut(a, b)),
        2 => (pair(), any::<bool>()).prop_map(|((a, b), is_linked)| Step::Link(a, b, is_linked)),
        1 => pair().prop_map(|(a, b)| Step::Hide(a, b)),
        1 => pair().prop_map(|(a, b)| Step::Live(a, b)),
        2 => (0..15_000_u64).prop_map(Step::Pass),
    ];
    vec(step, 1..120)
}

/// Delivers some frames in the middle of things, and lets time pass without delivering everything.
fn take(net: &mut Net, step: Step) {
    let ids = NAMES.map(id);
    match step {
        Step::Write { at, key, is_gone } => {
            net.write(NAMES[at], "", name(&key.to_string()), if is_gone { gone() } else { bound(key.into()) });
        }
        Step::Deliver(many) => (0..many).for_each(|_| _ = net.deliver()),
        Step::Connect(a, b) => net.connect(&ids[a], &ids[b]),
        Step::Cut(a, b) => net.cut(&ids[a], &ids[b]),
        Step::Link(a, b, is_linked) => net.set_linked(&ids[a], &ids[b], is_linked),
        Step::Hide(at, node) => net.handle(&ids[at], Input::Hidden { node: ids[node].clone() }),
        Step::Live(at, node) => net.handle(&ids[at], Input::Live { node: ids[node].clone() }),
        Step::Pass(time) => {
            net.now += Duration::from_millis(time);
            while let Some((at, due)) = net.next_timeout().filter(|(_, due)| *due <= net.now) {
                net.nodes.get_mut(&at).unwrap().0.handle_timeout(due.max(net.now));
                net.drain(&at);
                net.deliver();
            }
        }
    }
}

/// All live, as all know; and those sessions are there and have links.
fn heal(net: &mut Net, pairs: &[(&str, &str)]) {
    for a in NAMES {
        for b in NAMES.into_iter().filter(|b| *b != a) {
            net.handle(&id(a), Input::Live { node: id(b) });
            if pairs.contains(&(a, b)) {
                net.connect(&id(a), &id(b));
                net.set_linked(&id(a), &id(b), true);
            } else if !pairs.contains(&(b, a)) {
                net.cut(&id(a), &id(b));
            }
        }
    }
}

proptest! {
    /// Deltas, snapshots and relays in any order, with cuts, deaths and returns between them: in a line of nodes, in which
    /// all but the neighbours see each other through relays only, all see the same in the end, and then fall silent.
    #[test]
    fn all_see_the_same(steps in steps(), seed: u64, small: bool) {
        let tombstones_max = if small { 1 } else { 100 };
        let window = if small { 300 } else { 100_000 };
        let mut net = Net::new(&NAMES, Limits { tombstones_max, window, ..LIMITS }, seed);
        net.connect_all(&[("a", "b"), ("b", "c"), ("c", "d"), ("a", "d")]);
        for step in steps {
            take(&mut net, step);
            for (at, owner) in NAMES.iter().flat_map(|at| NAMES.iter().map(move |owner| (at, owner))) {
                net.seen(&id(at), "", &id(owner));
            }
        }
        heal(&mut net, &[("a", "b"), ("b", "c"), ("c", "d")]);
        net.run(INTERVAL * 16);
        prop_assert_eq!(&net.broken[..], &[][..]);
        net.assert_same("");
        let digests: BTreeSet<_> = net.nodes.values().map(|(node, _)| node.digest(&text(""))).collect();
        prop_assert_eq!(digests.len(), 1);
        net.entries = 0;
        net.run(INTERVAL * 4);
        prop_assert_eq!(net.entries, 0);
    }

    /// The parts of a log, in any order and any number of times, never make a replica go back, and with the last part it is
    /// the log: what is taken in commutes, associates, and changes nothing the second time.
    #[test]
    fn parts_of_a_log_in_any_order(
        writes in vec((0..5_u8, any::<bool>()), 1..20),
        parts in vec((0..20_u64, 1..20_u64), 0..30),
        keeps_tombstones: bool,
    ) {
        let owner = id("owner");
        let mut log = Log::default();
        let tombstones_max = if keeps_tombstones { 100 } else { 0 };
        let mut one = One::with(Limits { tombstones_max, ..LIMITS }, &[""]);
        one.meet(&owner);
        let mut history = Vec::new();
        for (key, is_gone) in writes {
            let state = if is_gone { gone() } else { bound(key.into()) };
            let version = log.write(name(&key.to_string()), state.clone(), 100);
            history.push(entry(version, &key.to_string(), state));
        }
        // As the log was when each part was read from it.
        let part = |since: u64, upto: u64| {
            let entries = &history[..upto as usize];
            let is_last = |entry: &&Entry| !entries.iter().any(|e| e.key == entry.key && e.version > entry.version);
            let entries = entries.iter().filter(|entry| entry.version > since).filter(is_last).cloned();
            delta(since, upto, None, entries.collect())
        };
        let mut version = 0;
        for (since, many) in parts {
            let since = since.min(log.version());
            let upto = (since + many).min(log.version());
            one.hear(&owner, part(since, upto));
            let here = one.node.owners.version(&owner, "");
            prop_assert_eq!(here, if since <= version { version.max(upto) } else { version });
            version = here;
        }
        let mut last = part(version, log.version());
        if let Frame::Entries { digest, .. } = &mut last {
            *digest = Some(log.digest());
        }
        for _ in 0..2 {
            let outputs = one.hear(&owner, last.clone());
            prop_assert_eq!(outputs.last(), Some(&send(&owner, have(log.version()))));
            let seen: Vec<_> = one.node.visible("", &owner).collect();
            prop_assert_eq!(seen, log.visible().collect::<Vec<_>>());
        }
        prop_assert_eq!(one.node.counters().repairs, 0);
    }
}
