//! Facts of applications.

use super::*;

fn fact(origin: &str, number: u64) -> Swim {
    Swim::Fact { origin: short(origin), number, topic: "t".into(), body: number.to_string().into() }
}

fn publish(one: &mut One, body: &str) {
    one.handle(Input::Publish { topic: "t".into(), body: Bytes::copy_from_slice(body.as_bytes()) });
}

/// The facts that came out, by their origin.
fn came(one: &mut One) -> Vec<(NodeId, Bytes)> {
    let outputs = std::mem::take(&mut one.outputs).into_iter();
    outputs
        .filter_map(|(_, output)| if let Output::Fact { from, body, .. } = output { Some((from, body)) } else { None })
        .collect()
}

/// Each fact comes out once, however often and in whatever order it arrives, and from whomever.
#[test]
fn each_fact_comes_once() {
    let mut one = One::among(&["a", "b"]);
    for number in [3, 1, 3, 2, 1, 66, 65, 2, 66] {
        for teller in ["a", "b"] {
            one.hear(teller, &[fact("a", number)]);
        }
    }
    let came: Vec<_> =
        came(&mut one).into_iter().map(|(from, body)| (from, String::from_utf8(body.to_vec()).unwrap())).collect();
    assert_eq!(came, ["3", "1", "2", "66", "65"].map(|body| (id("a"), body.to_owned())));
}

/// Whoever publishes hears it too, at once and once, also when it comes back; alone nothing waits to be told.
#[test]
fn the_publisher_is_included() {
    let mut one = One::new();
    publish(&mut one, "alone");
    assert_eq!(came(&mut one), [(id("m"), Bytes::from("alone"))]);
    assert!(one.node.rumours.is_empty());

    one.link_all(&["a"]);
    publish(&mut one, "fact");
    one.hear("a", &[Swim::Fact { origin: short("m"), number: 2, topic: "t".into(), body: "fact".into() }]);
    assert_eq!(came(&mut one), [(id("m"), Bytes::from("fact"))]);
}

/// All nodes hear what one publishes, each once.
#[test]
fn a_fact_reaches_all() {
    let mut few = Few::new(&["a", "b", "c", "d", "e", "f"]);
    few.run(secs(5));
    for n in 0..20 {
        few.handle(&id("a"), Input::Publish { topic: "t".into(), body: n.to_string().into() });
        few.run(millis(50));
    }
    few.run(secs(5));
    let mut heard: Vec<_> = few.facts.iter().map(|(at, from, body)| (at.clone(), from.clone(), body.clone())).collect();
    heard.sort();
    heard.dedup();
    assert_eq!((few.facts.len(), heard.len()), (6 * 20, 6 * 20));
    assert!(heard.iter().all(|(_, from, _)| *from == id("a")));
}

/// Own facts have a quarter of the room, to the last; those of others have what is left, and what there is no room for
/// comes out but is not passed on.
#[test]
fn facts_wait_in_bounds() {
    let mut one = One::among(&["a"]);
    for n in 0..64 {
        assert!(one.node.has_room(), "{n}");
        one.node.handle(Input::Publish { topic: "t".into(), body: Bytes::new() }, one.now);
    }
    assert!(!one.node.has_room());
    publish(&mut one, "too many");
    assert_eq!((one.node.counters().facts_dropped, one.node.rumours.own_facts()), (1, 64));
    one.outputs.clear();
    for number in 1..=1000 {
        one.hear("a", &[fact("a", number)]);
    }
    assert_eq!((came(&mut one).len(), one.node.rumours.facts()), (1000, 256));
    assert_eq!(one.node.counters().facts_dropped, 1 + 1000 - 192);
    // They are told, and there is room again.
    one.run(secs(60));
    assert_eq!((one.node.rumours.facts(), one.node.has_room()), (0, true));
}

/// Who published is asked for when it is not known; its next fact comes out then.
#[test]
fn a_fact_of_an_unknown_origin_asks() {
    let mut one = One::among(&["a"]);
    one.hear("a", &[fact("x", 1)]);
    assert_eq!(one.sent(), [(id("a"), Way::Datagram, Swim::Who(vec![short("x")]))]);
    assert_eq!(came(&mut one), []);
    one.introduce("a", &["x"]);
    one.hear("a", &[fact("x", 1)]);
    assert_eq!(came(&mut one), [(id("x"), Bytes::from("1"))]);
}

/// Those who wait to be told of members go before facts, however many of these wait.
#[test]
fn rumours_go_before_facts() {
    let mut one = One::among(&["a"]);
    for number in 1..=200 {
        one.hear("a", &[Swim::Fact { origin: short("a"), number, topic: "t".into(), body: vec![0; 1000].into() }]);
    }
    one.outputs.clear();
    one.hear("a", &[suspect("a", 0, "x"), Swim::Ping { seq: 1, refutation: 0 }]);
    let sent = one.sent();
    let ack = sent.iter().position(|(_, _, frame)| matches!(frame, Swim::Ack { .. })).unwrap();
    assert!(!matches!(sent[ack + 1].2, Swim::Fact { .. }), "{sent:?}");
}

/// A later life of an origin counts from the start again.
#[test]
fn a_later_life_publishes_anew() {
    let mut one = One::among(&["a", "x"]);
    one.hear("a", &[fact("x", 500)]);
    let later = NodeId::new(id("x").name().clone(), 2);
    one.link(&later);
    one.outputs.clear();
    one.hear("a", &[fact("x", 501)]);
    one.hear("a", &[Swim::Fact { origin: ShortId::of(&later), number: 1, topic: "t".into(), body: "new".into() }]);
    assert_eq!(came(&mut one), [(later, Bytes::from("new"))]);
}
