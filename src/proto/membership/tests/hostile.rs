//! A peer that says anything. It belongs to the cluster, so what it says is heard; it costs no more than it may.

use std::collections::BTreeSet;

use super::*;
use crate::wire::membership::WHO_MAX;

/// No collection is larger than it may be.
pub(super) fn assert_bounded(node: &Membership) {
    let (members, params) = (node.table.len(), &node.params);
    assert!(members <= params.members_max && node.table.slots() <= params.members_max);
    assert!(node.peers.len() <= members && node.peers.is_sorted_by_key(|peer| peer.slot));
    assert!(node.probes.len() <= 16, "{} probes", node.probes.len());
    assert!(node.urgent.len() <= probe::URGENT_MAX && node.relays.len() <= 256 && node.questions.is_empty());
    assert!(node.asked.len() <= 1024 && node.sync_wanted.len() <= 16);
    assert!(node.contested.len() <= members && node.facts.len() <= members);
    assert_eq!(node.suspicions.running.len(), node.suspicions.deadlines.len());
    let suspects = node.members().filter(|member| member.state == MemberState::Suspect).count();
    assert_eq!(node.suspicions.running.len(), suspects);
    let gone = node.members().filter(|member| !member.state.is_live() && member.id != node.id).count();
    assert_eq!(node.gone.len(), gone);
    assert!(node.forget_at.len() <= gone, "{} to forget of {gone}", node.forget_at.len());
    assert!(node.rumours.facts() <= params.facts_max + params.facts_max / 4);
    let mut waiting = Vec::new();
    node.rumours.clone().fill(&mut waiting, usize::MAX, u32::MAX);
    let waiting = frames(&waiting.into()).len();
    assert!(waiting <= members + node.rumours.facts(), "{waiting} rumours");
    assert!(node.score <= params.score_max);
}

/// A node with honest peers and one that is not, `h`.
fn attacked() -> One {
    let mut one = One::among(&["a", "b", "c", "h"]);
    one.set_manner("h", Manner::Silent);
    one
}

/// All sizes of what was sent to a peer.
fn bytes_to(one: &mut One, name: &str) -> usize {
    let sizes = one.outputs.iter().map(|(_, output)| match output {
        Output::Send { to, packet, .. } if *to == id(name) => packet.len(),
        _ => 0,
    });
    let all = sizes.sum();
    one.outputs.clear();
    all
}

/// A packet counts up to what makes no sense in it; noise, and what is cut off, is counted and changes nothing.
#[test]
fn what_makes_no_sense_is_counted() {
    let mut one = attacked();
    let sense = encode_all(&[alive("a", 1)]);
    let mut rng = fastrand::Rng::with_seed(3);
    for nonsense in [&[0x35, 200][..], &[0x30, 1, 0xff], &[0x3f, 0], &[0x3b, 3, 1, 2, 3], &[0x34, 3, 1, 1, 1]] {
        let malformed = one.node.counters().malformed;
        one.hear_bytes(&id("h"), [nonsense, &encode_all(&[alive("a", 1)])].concat().into());
        assert_eq!((one.state("a").1, one.node.counters().malformed), (0, malformed + 1), "{nonsense:?}");
    }
    one.hear_bytes(&id("h"), [&sense[..], &[0x35, 200]].concat().into());
    assert_eq!(one.state("a").1, 1);
    for size in (0..2000).chain([65_536]) {
        one.hear_bytes(&id("h"), std::iter::repeat_with(|| rng.u8(..)).take(size).collect());
    }
    assert!(one.node.counters().malformed > 1500);
    assert_bounded(&one.node);

    // A stranger is not heard.
    let before = (one.node.table.len(), one.node.counters().unknown);
    one.hear("stranger", &[alive("a", 2), Swim::Introduce(introduction(id("y"), Life::Alive, 0))]);
    assert_eq!((one.node.table.len(), one.node.counters().unknown, one.state("a").1), (before.0, before.1 + 1, 1));
}

/// Whoever accuses this node as often as it likes makes it object as often, and nothing else.
#[test]
fn endless_accusations_are_endured() {
    let mut one = attacked();
    for refutation in 0..5_000 {
        one.hear("h", &[suspect("m", refutation, "h"), left("m", refutation), dead("m", u32::MAX, "h")]);
    }
    assert_eq!(one.state("m").0, MemberState::Alive);
    assert_bounded(&one.node);
}

/// Members that nobody knows are asked for once each, up to so many at a time; a while later again.
#[test]
fn the_unknown_are_asked_for_in_bounds() {
    let mut one = attacked();
    let invent = |one: &mut One, n: u64| {
        let subjects = (0..50).map(|m| ShortId(n * 50 + m));
        let rumours: Vec<_> = subjects.map(|subject| Swim::Alive { subject, refutation: 0, profile: 0 }).collect();
        one.hear("h", &rumours);
    };
    let asked = |one: &mut One| {
        let sent = one.sent_to("h").into_iter();
        sent.filter_map(|frame| if let Swim::Who(subjects) = frame { Some(subjects) } else { None }).flatten().count()
    };
    (0..2).for_each(|_| invent(&mut one, 0));
    assert_eq!(asked(&mut one), 50);
    (0..2_000).for_each(|n| invent(&mut one, n));
    assert_eq!(asked(&mut one), 1024 - 50);
    assert_bounded(&one.node);
    one.run(millis(5_001));
    one.outputs.clear();
    invent(&mut one, 0);
    assert_eq!((asked(&mut one), one.node.table.len()), (50, 5));
}

/// Nobody is taken in who says that it is where nobody can be.
#[test]
fn a_place_where_nobody_can_be_is_not_believed() {
    let mut one = attacked();
    let nowhere = ["x@0.0.0.0:1", "x@[::]:1", "x@224.0.0.1:1", "x@[ff02::1]:1", "x@10.0.0.1:0", "x@255.255.255.255:1"];
    for (n, name) in nowhere.iter().enumerate() {
        let x = NodeId::new(name.parse().unwrap(), 1);
        for addresses in [vec![], vec!["0.0.0.0:0".parse().unwrap(), "224.0.0.1:9".parse().unwrap()]] {
            one.hear("h", &[Swim::Introduce(Introduction { addresses, ..introduction(x.clone(), Life::Alive, 0) })]);
            assert_eq!((one.node.member(x.name()), one.node.live()), (None, 5 + n), "{name}");
        }
        // Another address of it can be dialled.
        let addresses = vec!["10.0.0.9:1".parse().unwrap()];
        one.hear("h", &[Swim::Introduce(Introduction { addresses, ..introduction(x.clone(), Life::Alive, 0) })]);
        assert!(one.node.member(x.name()).is_some());
    }
    assert_eq!(one.node.counters().implausible, 2 * nowhere.len() as u64);
}

/// Ten thousand invented members take the room that there is, and no more; they die, and leave it to those who come.
#[test]
fn invented_members_die() {
    let mut params = params();
    params.members_max = 1000;
    let mut one = One::with(params, Profile::default());
    one.link_all(&["a", "b", "h"]);
    for n in 0..10_000 {
        one.introduce("h", &[&format!("n{n}")]);
    }
    assert_eq!((one.node.table.len(), one.node.counters().crowded_out), (1000, 10_000 - 996));
    one.link(&id("new"));
    assert_eq!(one.node.member(id("new").name()), None);
    assert_bounded(&one.node);
    // Nobody answers for them.
    one.node.next_probe = one.now;
    for _ in 0..30 {
        one.run(secs(1));
        for dial in one.dials() {
            one.handle(Input::DialFailed { peer: dial });
        }
        one.outputs.clear();
        assert_bounded(&one.node);
    }
    one.run(secs(60));
    assert!(one.node.counters().deaths > 5);
    one.link(&id("new"));
    assert_eq!(one.state("new").0, MemberState::Alive);
    assert!(["a", "b"].iter().all(|name| one.state(name).0 == MemberState::Alive));
}

/// Members that come, die, return and go, over and over, are not remembered more than once.
#[test]
fn those_who_come_and_go_take_no_room() {
    let mut params = params();
    params.members_max = 100;
    let mut one = One::with(params, Profile::default());
    one.link_all(&["a", "h"]);
    one.introduce("h", &["x"]);
    for n in 0..5_000 {
        one.hear("h", &[dead("x", n, "h"), alive("x", n + 1)]);
        let name = format!("n{n}");
        one.introduce("h", &[&name]);
        one.hear("h", &[left(&name, 0)]);
        one.outputs.clear();
    }
    assert_bounded(&one.node);
    one.run(secs(700));
    assert_eq!((one.node.table.len(), one.node.gone.len(), one.node.forget_at.len()), (4, 0, 0));
}

/// Whoever asks this node to ask others gets so many asked at a time, and all of that ends.
#[test]
fn a_flood_of_requests_is_bounded() {
    let mut one = attacked();
    let names: Vec<_> = (0..300).map(|n| format!("n{n}")).collect();
    names.iter().for_each(|name| one.introduce("a", &[name]));
    one.outputs.clear();
    for seq in 0..20_000 {
        one.hear("h", &[Swim::PingReq { seq, target: short(&names[seq as usize % 300]) }]);
    }
    assert_bounded(&one.node);
    assert!(one.dials().len() <= 256);
    one.run(secs(10));
    assert!(one.node.relays.is_empty());
    // Honest ones are helped again.
    one.outputs.clear();
    one.hear("a", &[Swim::PingReq { seq: 1, target: short("b") }]);
    assert!(one.sent_to("a").contains(&Swim::Ack { seq: 1, refutation: 0 }));
}

fn crowded() -> (One, usize) {
    let mut one = attacked();
    let names: Vec<_> = (0..1000).map(|n| format!("n{n}")).collect();
    names.iter().for_each(|name| one.introduce("a", &[name]));
    one.rest();
    let size = |name: &String| Swim::Introduce(introduction(id(name), Life::Alive, 0)).len();
    (one, names.iter().map(size).sum())
}

/// Whoever asks who somebody is gets each introduction once per question, and all of them twice in an interval, at
/// most.
#[test]
fn questions_do_not_amplify_without_bound() {
    let (mut one, table) = crowded();
    let all: Vec<_> = (0..1000).map(|n| short(&format!("n{n}"))).collect();
    one.hear("h", &[Swim::Who(vec![all[0]; WHO_MAX])]);
    assert!(bytes_to(&mut one, "h") < 100);
    for _ in 0..100 {
        one.hear("h", &[Swim::Who(all.clone())]);
    }
    let bytes = bytes_to(&mut one, "h");
    assert!(bytes >= table - 1000 && bytes < 3 * table, "{bytes} bytes of a table of {table}");
    // Another has its own share; and so has this one a while later.
    one.hear("a", &[Swim::Who(all.clone())]);
    assert!(bytes_to(&mut one, "a") >= table - 1000);
    one.run(secs(1));
    one.outputs.clear();
    one.hear("h", &[Swim::Who(all)]);
    assert!(bytes_to(&mut one, "h") >= table - 1000);
}

/// Whoever lacks all gets all, once for each comparison that it began, and that is once an interval.
#[test]
fn comparisons_do_not_amplify_without_bound() {
    let (mut one, table) = crowded();
    let summaries = Swim::Summaries { buckets: 1, of: vec![0], summaries: vec![] };
    let digest = Swim::Digest { members: 1, digest: 1 };
    // None began.
    one.hear("h", std::slice::from_ref(&summaries));
    assert_eq!(bytes_to(&mut one, "h"), 0);
    let mut packet = vec![digest.clone()];
    packet.extend(vec![summaries; 1000]);
    one.hear("h", &packet);
    let bytes = bytes_to(&mut one, "h");
    assert!(bytes >= table && bytes < table + 4096, "{bytes} bytes of a table of {table}");
    (0..100).for_each(|_| one.hear("h", &packet));
    let bytes = bytes_to(&mut one, "h");
    assert!(bytes < 100, "{bytes} bytes");
    one.run(secs(1));
    one.outputs.clear();
    one.hear("h", &packet);
    assert!(bytes_to(&mut one, "h") >= table);
}

/// A packet that asks a thousand times gets few answers, so that rumours are not spent on one.
#[test]
fn a_packet_full_of_questions_gets_few_answers() {
    for question in [Swim::Ping { seq: 1, refutation: 0 }, Swim::PingReq { seq: 1, target: short("m") }] {
        let (mut one, _) = crowded();
        one.introduce("a", &["x"]);
        one.outputs.clear();
        one.hear("h", &vec![question; 1000]);
        let answers = one.outputs.iter().filter(|(_, output)| matches!(output, Output::Send { .. })).count();
        assert!((1..=8).contains(&answers), "{answers} answers");
        assert!(!one.node.rumours.is_empty());
    }
}

/// A number that is far ahead keeps nobody from hearing others.
#[test]
fn great_numbers_are_endured() {
    let mut one = attacked();
    let fact = |origin, number| Swim::Fact { origin: short(origin), number, topic: "t".into(), body: Bytes::new() };
    // The greatest that a packet holds.
    let greatest = (1 << 62) - 1;
    one.hear("h", &[fact("h", greatest), fact("h", 0), fact("h", greatest), fact("a", 1), fact("a", 64), fact("a", 0)]);
    let facts = one.outputs.iter().filter(|(_, output)| matches!(output, Output::Fact { .. })).count();
    assert_eq!(facts, 3);
    let great = u32::MAX;
    one.hear(
        "h",
        &[
            Swim::Ping { seq: great, refutation: great },
            Swim::Ack { seq: great, refutation: great },
            Swim::Nack { seq: great },
            Swim::Alive { subject: short("a"), refutation: 0, profile: great },
            Swim::Digest { members: greatest, digest: u64::MAX },
            Swim::Introduce(Introduction { profile: great, ..introduction(id("z"), Life::Suspect, great) }),
            Swim::Introduce(Introduction { profile: great, ..introduction(id("m"), Life::Alive, great) }),
            Swim::Introduce(introduction(NodeId::new(id("y").name().clone(), u64::MAX), Life::Alive, 0)),
        ],
    );
    one.run(secs(120));
    assert_eq!(one.state("m").0, MemberState::Alive);
    assert_bounded(&one.node);
}

/// A packet that is well formed and says anything.
fn anything(rng: &mut fastrand::Rng, ids: &[(NodeId, ShortId)]) -> Bytes {
    let mut packet = Vec::new();
    for _ in 0..rng.usize(1..4) {
        let (who, known) = ids[rng.usize(..ids.len())].clone();
        let subject = if rng.u8(..) < 16 { ShortId(rng.u64(..)) } else { known };
        let accuser = ids[rng.usize(..ids.len())].1;
        let refutation = if rng.u8(..) < 4 { rng.u32(..) } else { rng.u32(..6) };
        let number = rng.u32(..) >> rng.u32(..32);
        let life = [Life::Alive, Life::Suspect, Life::Dead, Life::Left][rng.usize(..4)];
        let buckets = 1 << if rng.u8(..) < 8 { rng.u32(..9) } else { rng.u32(..4) };
        match rng.u8(..14) {
            0 => Swim::Ping { seq: number, refutation },
            1 => Swim::Ack { seq: number % 64, refutation },
            2 => Swim::PingReq { seq: number, target: subject },
            3 => Swim::Nack { seq: number % 64 },
            4 => Swim::Who((0..rng.usize(..8)).map(|_| ids[rng.usize(..ids.len())].1).collect()),
            5 => Swim::Alive { subject, refutation, profile: number % 4 },
            6 => Swim::Suspect { subject, refutation, accuser },
            7 => Swim::Dead { subject, refutation, accuser },
            8 => Swim::Left { subject, refutation },
            9 => Swim::Introduce(Introduction { profile: number % 4, ..introduction(who, life, refutation) }),
            10 => Swim::Fact { origin: subject, number: number.into(), topic: "t".into(), body: vec![0; 100].into() },
            11 => Swim::Digest { members: number.into(), digest: rng.u64(..4) },
            12 => Swim::Buckets((0..buckets).map(|_| rng.u64(..4)).collect()),
            _ => {
                let summary = |rng: &mut fastrand::Rng| {
                    let subject = ids[rng.usize(..ids.len())].1;
                    Summary { subject, life, refutation, profile: number % 4 }
                };
                let summaries = (0..rng.usize(..10)).map(|_| summary(rng)).collect();
                Swim::Summaries { buckets, of: (0..buckets).filter(|_| rng.u8(..) < 64).collect(), summaries }
            }
        }
        .put(&mut packet);
    }
    if rng.u8(..) < 8 {
        packet.truncate(rng.usize(..=packet.len()));
    }
    packet.into()
}

/// The honest can be dialled, and answer; nobody else does.
fn answer_dials(one: &mut One) {
    let dials = one.dials();
    one.outputs.clear();
    for peer in dials {
        let honest = ["a", "b", "c"].map(id).into_iter().find(|honest| *honest.name() == peer);
        match honest {
            Some(honest) => one.link(&honest),
            None => one.handle(Input::DialFailed { peer }),
        }
    }
}

/// A hundred thousand packets that say anything: nothing grows beyond its bounds, and afterwards the node still finds
/// who dies.
#[test]
fn a_flood_is_survived() {
    let mut params = params();
    params.members_max = 200;
    let mut one = One::with(params, Profile::default());
    one.link_all(&["a", "b", "c", "h"]);
    one.node.next_probe = one.now;
    one.node.next_sync = one.now;
    one.node.next_reconnect = one.now;
    let mut ids: Vec<_> = ["a", "b", "c", "h", "m"].map(id).into();
    for n in 0..400 {
        ids.push(NodeId::new(id(&format!("n{}", n % 300)).name().clone(), 1 + n / 300));
    }
    let ids: Vec<_> = ids.into_iter().map(|id| (id.clone(), ShortId::of(&id))).collect();
    let mut rng = fastrand::Rng::with_seed(11);
    for n in 0..100_000 {
        let packet = anything(&mut rng, &ids);
        one.hear_bytes(&id("h"), packet);
        if n % 200 == 0 {
            one.run(millis(50));
            assert_bounded(&one.node);
        }
        answer_dials(&mut one);
    }
    let counters = *one.node.counters();
    let happened = [
        counters.suspicions,
        counters.refutations,
        counters.false_alarms,
        counters.deaths,
        counters.malformed,
        counters.implausible,
        counters.unknown,
        counters.probes,
        counters.syncs,
    ];
    assert!(happened.iter().all(|happened| *happened > 0), "{counters:?}");
    assert_eq!(one.state("m").0, MemberState::Alive);
    // Quiet again. What is said of the honest ends with their objections.
    let run = |one: &mut One, seconds| {
        for _ in 0..seconds {
            one.run(secs(1));
            answer_dials(one);
        }
    };
    run(&mut one, 120);
    let honest = ["a", "b", "c"].map(|name| one.state(name).0);
    assert_eq!(honest, [MemberState::Alive; 3]);
    one.set_manner("c", Manner::Silent);
    run(&mut one, 400);
    assert_eq!(one.state("c").0, MemberState::Dead);
    assert_eq!(["a", "b"].map(|name| one.state(name).0), [MemberState::Alive; 2]);
    let live: BTreeSet<_> =
        one.node.members().filter(|member| member.state.is_live()).map(|member| member.id).collect();
    assert!(live.is_superset(&["a", "b", "m"].map(id).into()), "{live:?}");
    assert_bounded(&one.node);
}
