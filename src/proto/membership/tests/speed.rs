//! What an update costs, in small clusters and in large ones.

use super::*;

fn packet(frame: &Swim) -> Input {
    Input::Packet { from: id("a"), way: Way::Datagram, path: PATH, packet: encode_all([frame]) }
}

/// How long it takes to hear these.
fn hear(one: &mut One, inputs: Vec<Input>) -> Duration {
    time(|| {
        for input in inputs {
            one.node.handle(input, one.now);
            while one.node.poll_output().is_some() {}
        }
    })
}

/// What it costs to hear one rumour about one of so many members.
fn cost(members: usize, updates: usize) -> Duration {
    let mut one = One::among(&["a"]);
    let names: Vec<_> = (0..members).map(|n| format!("n{n}")).collect();
    let introduce = |name: &String| packet(&Swim::Introduce(introduction(id(name), Life::Alive, 0)));
    let took = hear(&mut one, names.iter().map(introduce).collect());
    println!("{members} members are introduced in {took:?}");
    assert_eq!(one.node.live(), members + 2);

    // Every member is suspected, and objects, in turn.
    let (subjects, accuser): (Vec<_>, _) = (names.iter().map(|name| short(name)).collect(), short("a"));
    let update = |n: usize| {
        let (subject, refutation) = (subjects[n / 2 % members], (n / 2 / members) as u32);
        packet(&match n % 2 {
            0 => Swim::Suspect { subject, refutation, accuser },
            _ => Swim::Alive { subject, refutation: refutation + 1, profile: 0 },
        })
    };
    let batch = updates / 10;
    let costs = (0..10).map(|n| hear(&mut one, (n * batch..(n + 1) * batch).map(update).collect()) / batch as u32);
    let best = costs.min().expect("ten batches");
    println!("{best:?} for an update of one of {members} members");
    let counters = one.node.counters();
    assert_eq!((counters.suspicions, counters.false_alarms), (updates as u64 / 2, updates as u64 / 2));
    best
}

/// An update costs about the same in a cluster of ten times the size: nothing goes through all members.
#[test]
fn an_update_costs_the_same_in_a_large_cluster() {
    let (small, large) = (cost(1_000, 10_000), cost(10_000, 100_000));
    assert!(large < 4 * small, "{small:?} {large:?}");
}
