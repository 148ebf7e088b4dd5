//! Membership between whole nodes, and what a member may do wrong with it.

use std::sync::atomic::Ordering::Relaxed;

use super::fake::{Joined, closed};
use super::*;
use crate::proto::membership::MemberState;
use crate::wire::membership::{Introduction, Life, Swim};
use crate::wire::{Code, NodeFlags, StreamKind, put_packet};

/// Members as soon as they know of each other, and asked again and again whether they live.
async fn three() -> (Fabric, Cookie, [Node; 3]) {
    let fabric = Fabric::new(7);
    let cookie = Cookie::generate();
    let mut nodes = Vec::new();
    for n in 1..=3 {
        nodes.push(member(&fabric, &cookie, &format!("n{n}@10.0.0.{n}:4370")).await);
    }
    let nodes: [Node; 3] = nodes.try_into().unwrap();
    // The third is told of the first by the second.
    nodes[0].cluster().connect(nodes[1].name()).await.unwrap();
    nodes[2].cluster().connect(nodes[1].name()).await.unwrap();
    for node in &nodes {
        sees(node, nodes.iter().map(|other| (other, MemberState::Alive))).await;
    }
    (fabric, cookie, nodes)
}

async fn member(fabric: &Fabric, cookie: &Cookie, name: &str) -> Node {
    let name = NodeName::parse(name).unwrap();
    let crate::id::HostName::Ip(ip) = name.host() else { panic!("{name} has no address") };
    Node::builder(name.as_str()).cookie(cookie.clone()).network(fabric.host(ip)).start().await.unwrap()
}

/// Waits until a node knows these, and nobody else, in these states.
async fn sees<'a>(node: &Node, expected: impl IntoIterator<Item = (&'a Node, MemberState)>) {
    let mut expected: Vec<_> = expected.into_iter().map(|(node, state)| (node.id(), state)).collect();
    expected.sort();
    let view = || {
        let members = node.shared().members.snapshot().into_iter();
        members.map(|member| (member.id, member.state)).collect::<Vec<_>>()
    };
    let seen = node.shared().members.wait_for(|_| (view() == expected).then_some(()));
    if timeout(secs(60), seen).await.is_err() {
        panic!("{node:?} sees {:?}, not {expected:?}", view());
    }
}

fn counters(node: &Node) -> impl Future<Output = crate::proto::membership::MembershipCounters> {
    let (done, counters) = tokio::sync::oneshot::channel();
    node.shared().command(crate::driver::Command::MembershipCounters { done });
    async { counters.await.unwrap() }
}

/// A member says something on a stream of membership.
async fn tell(joined: &Joined, frames: &[Swim]) -> crate::transport::link::Sender {
    let mut packet = Vec::new();
    frames.iter().for_each(|frame| frame.put(&mut packet));
    let mut bytes = vec![StreamKind::Membership.to_byte()];
    put_packet(&mut bytes, &packet);
    joined.open(&bytes).await
}

fn introduction(id: &NodeId) -> Swim {
    Swim::Introduce(Introduction {
        id: id.clone(),
        life: Life::Alive,
        refutation: 0,
        profile: 0,
        flags: NodeFlags::default(),
        addresses: vec![],
        metadata: bytes::Bytes::new(),
    })
}

/// Whoever joins one joins all, and links carry answers for longer than an idle one is kept.
#[tokio::test(start_paused = true)]
async fn three_nodes_see_each_other_and_stay_linked() {
    let (_fabric, _cookie, nodes) = three().await;
    let watched = nodes[0].shared().members.subscribe();
    sleep(secs(180)).await;
    for node in &nodes {
        sees(node, nodes.iter().map(|other| (other, MemberState::Alive))).await;
        let counters = counters(node).await;
        assert!(counters.acks > 170 && counters.failures == 0 && counters.suspicions == 0, "{counters:?}");
        assert_eq!(counters.malformed, 0, "{counters:?}");
        assert_eq!(node.cluster().peers().len(), 2);
        let packets = &node.shared().packets;
        assert_eq!((packets.dropped_in.load(Relaxed), packets.dropped_out.load(Relaxed)), (0, 0));
    }
    let events = std::iter::from_fn(|| {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match watched.poll_next(&mut context) {
            std::task::Poll::Ready(event) => event,
            std::task::Poll::Pending => None,
        }
    });
    assert_eq!(events.count(), 1, "nothing follows the snapshot");
}

/// Its sessions end with it.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_cut_off_dies_at_the_others() {
    let (fabric, _cookie, nodes) = three().await;
    nodes[0].cluster().connect(nodes[2].name()).await.unwrap();
    let mut events = nodes[0].cluster().node_events();
    fabric.cut(nodes[0].local_addr().ip(), nodes[2].local_addr().ip());
    fabric.cut(nodes[1].local_addr().ip(), nodes[2].local_addr().ip());
    for node in &nodes[..2] {
        let states = [MemberState::Alive, MemberState::Alive, MemberState::Dead];
        sees(node, nodes.iter().zip(states)).await;
        assert!(!node.cluster().peers().contains(&nodes[2].id()));
    }
    let mut reason = None;
    while let Ok(Some(event)) = timeout(secs(1), events.next()).await {
        if let NodeEvent::Down(id, why) = event {
            assert_eq!(id, nodes[2].id());
            reason = Some(why);
        }
    }
    assert!(matches!(reason, Some(DownReason::Dead | DownReason::Lost)), "{reason:?}");
    // It is found again when it can be.
    fabric.heal_all();
    for node in &nodes {
        sees(node, nodes.iter().map(|other| (other, MemberState::Alive))).await;
    }
}

/// One that shuts down says so: nobody has to find out.
#[tokio::test(start_paused = true)]
async fn a_node_that_shuts_down_has_left() {
    let (_fabric, _cookie, nodes) = three().await;
    let began = tokio::time::Instant::now();
    nodes[2].shutdown().await;
    assert!(began.elapsed() < secs(1), "{:?}", began.elapsed());
    for node in &nodes[..2] {
        sees(node, nodes.iter().zip([MemberState::Alive, MemberState::Alive, MemberState::Left])).await;
        let counters = counters(node).await;
        assert_eq!((counters.suspicions, counters.deaths), (0, 0), "{counters:?}");
    }
}

/// The next life of a name takes the place of the last, whether that left or vanished.
#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_is_another_life_of_its_name() {
    for is_graceful in [true, false] {
        let (fabric, cookie, [one, two, three]) = three().await;
        let moving = |n: u8| {
            fabric.name("moving", &[[10, 0, 1, n].into()]);
            let host = fabric.host([10, 0, 1, n]);
            Node::builder("four@moving:4370").cookie(cookie.clone()).network(host).start()
        };
        let first = moving(1).await.unwrap();
        first.cluster().connect(one.name()).await.unwrap();
        let is_seen = |id: NodeId, node: &Node| {
            let members = &node.shared().members;
            members.member(id.name()).is_some_and(|member| member.id == id && member.state == MemberState::Alive)
        };
        let seen = |id: NodeId, node: Node| async move {
            let seen = node.shared().members.wait_for(|_| is_seen(id.clone(), &node).then_some(())).await;
            assert_eq!(seen, Some(()));
        };
        timeout(secs(10), seen(first.id(), two.clone())).await.expect("it is a member");
        if is_graceful {
            first.shutdown().await;
        } else {
            for other in [&one, &two, &three] {
                fabric.cut(first.local_addr().ip(), other.local_addr().ip());
            }
        }
        let second = moving(2).await.unwrap();
        assert!(second.id() > first.id());
        second.cluster().connect(one.name()).await.unwrap();
        for node in [&one, &two] {
            timeout(secs(10), seen(second.id(), node.clone())).await.expect("it took the place of the first");
        }
    }
}

/// A node that never had a link to the life of that name asks it before it lets another in.
#[tokio::test(start_paused = true)]
async fn a_second_life_of_a_name_that_only_others_met_is_refused() {
    let mut world = World::new().await;
    let c = node(&world.fabric, &world.cookie, "c@10.0.0.3:4370", Config::default()).await;
    c.cluster().connect(world.b.name()).await.unwrap();
    sees(&world.a, [&world.a, &world.b, &c].map(|node| (node, MemberState::Alive))).await;
    assert_eq!(world.a.cluster().peers(), [world.b.id()]);
    let at = "10.0.0.9:4370".parse().unwrap();
    let mut double = Fake::at(&world.fabric, at, &world.cookie, "default", c.name().clone());
    for incarnation in [1, c.id().incarnation() + 1] {
        double.id = NodeId::new(c.name().clone(), incarnation);
        let refused = double.join_as(&world.a, |_| {}).await.err().unwrap();
        assert_eq!(refused.code, Code::NAME_CONFLICT);
        let conflict = NodeEvent::Conflict { live: c.id(), refused: double.id.clone() };
        assert_eq!(world.next_event().await, conflict);
    }
    // Nobody answers for it any more.
    world.fabric.cut(world.a.local_addr().ip(), c.local_addr().ip());
    double.id = NodeId::new(c.name().clone(), 1);
    let refused = double.join_as(&world.a, |_| {}).await.err().unwrap();
    assert_eq!((refused.code, refused.reason), (Code::STALE_INCARNATION, c.id().incarnation().to_be_bytes().to_vec()));
    double.id = NodeId::new(c.name().clone(), c.id().incarnation() + 1);
    let joined = double.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(double.id.clone()));
    drop(joined);
}

/// A member says that a later life of a node's own name lives. Nobody else answers at that name's address, so the node goes
/// on, as a later life still.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_told_of_a_later_life_looks_for_it() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let later = NodeId::new(world.a.name().clone(), world.a.id().incarnation() + 1);
    let _stream = tell(&joined, &[introduction(&later)]).await;
    loop {
        match world.next_event().await {
            NodeEvent::Down(_, reason) => assert_eq!(reason, DownReason::Renewed),
            event => {
                assert_eq!(event, NodeEvent::Renewed(world.a.id()));
                break;
            }
        }
    }
    assert_eq!(world.a.id().incarnation(), later.incarnation() + 1);
}

/// A node was cut off, and its name lives on elsewhere. When the cut heals it finds out, says so and stops.
#[tokio::test(start_paused = true)]
async fn a_node_whose_place_was_taken_stops() {
    let fabric = Fabric::new(7);
    let cookie = Cookie::generate();
    let one = member(&fabric, &cookie, "n1@10.0.0.1:4370").await;
    let moving = |n: u8, incarnation| {
        fabric.name("moving", &[[10, 0, 1, n].into()]);
        let builder = Node::builder("two@moving:4370").cookie(cookie.clone()).network(fabric.host([10, 0, 1, n]));
        builder.join(one.name().as_str()).incarnation(incarnation).start()
    };
    let first = moving(1, 1000).await.unwrap();
    sees(&one, [(&one, MemberState::Alive), (&first, MemberState::Alive)]).await;
    let mut events = first.cluster().node_events();
    fabric.cut(one.local_addr().ip(), first.local_addr().ip());
    let second = moving(2, 2000).await.unwrap();
    sees(&one, [(&one, MemberState::Alive), (&second, MemberState::Alive)]).await;
    sleep(secs(60)).await;
    assert!(!first.shared().is_stopping(), "it cannot know");
    fabric.heal_all();
    let superseded = async {
        while let Some(event) = events.next().await {
            if let NodeEvent::Superseded(by) = event {
                return Some(by);
            }
        }
        None
    };
    assert_eq!(timeout(secs(60), superseded).await.expect("it is told"), Some(second.id()));
    timeout(secs(10), first.shared().stopped()).await.expect("it stops");
    sees(&one, [(&one, MemberState::Alive), (&second, MemberState::Alive)]).await;
    assert!(!second.shared().is_stopping());
}

/// Nonsense in a packet is counted; nonsense around packets breaks the rules of streams.
#[tokio::test(start_paused = true)]
async fn packets_that_make_no_sense_are_borne_and_streams_are_not() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    assert!(joined.link.send_datagram(vec![0x1d; 100].into()));
    assert!(joined.link.send_datagram(bytes::Bytes::new()));
    let kind = StreamKind::Membership.to_byte();
    let mut good = vec![kind];
    put_packet(&mut good, &[0x1d; 100]);
    put_packet(&mut good, &vec![0x1d; crate::wire::CONTROL_MAX]);
    put_packet(&mut good, &[]);
    let stream = joined.open(&good).await;
    assert!(joined.answers(1).await);
    while counters(&world.a).await.malformed < 3 {
        sleep(Duration::from_millis(10)).await;
    }
    assert!(joined.answers(2).await);
    stream.finish();
    joined.link.close_as(1, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Left));

    let mut too_large = vec![kind];
    put_packet(&mut too_large, &vec![0; crate::wire::CONTROL_MAX + 1]);
    for (what, bytes, code) in [
        ("an unknown frame", vec![kind, 0x3e, 0], Code::PROTOCOL),
        ("a frame of calls", vec![kind, 0x22, 1, 0], Code::PROTOCOL),
        ("a packet too large", too_large, Code::FRAME_TOO_LARGE),
    ] {
        let joined = fake.join(&world.a).await;
        let _stream = joined.open(&bytes).await;
        assert_eq!(closed(&joined.link).await.code, code, "{what}");
        world.up_and_down(&fake.id, DownReason::Protocol, what).await;
    }
    world.talk().await;
}

/// A member that sends more packets than can be read loses its own.
#[tokio::test(start_paused = true)]
async fn a_flood_of_packets_harms_only_its_sender() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let mut ping = Vec::new();
    Swim::Ping { seq: 1, refutation: 0 }.put(&mut ping);
    let mut stream = joined.open(&[StreamKind::Membership.to_byte()]).await;
    let mut frames = Vec::new();
    (0..1000).for_each(|_| put_packet(&mut frames, &ping));
    for _ in 0..50 {
        for _ in 0..100 {
            joined.link.send_datagram(ping.clone().into());
        }
        stream.write(&frames).await.unwrap();
        world.talk().await;
    }
    assert!(joined.answers(1).await, "it is served as before");
    let taken = counters(&world.a).await.packets_received;
    assert!(taken >= 50_000, "a stream loses nothing: {taken}");
    world.a.shared().sessions().iter().for_each(|session| assert!(session.carrier().is_some()));
    world.talk().await;
}

/// A member that reads nothing costs no more than what may wait for it.
#[tokio::test(start_paused = true)]
async fn what_is_sent_to_who_does_not_read_is_bounded() {
    use crate::proto::membership::{Rank, Way};

    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let session = world.a.shared().session(fake.name()).unwrap();
    let carrier = session.carrier().unwrap();
    world.fabric.cut(world.a.local_addr().ip(), fake.host.ip());
    let dropped = || world.a.shared().packets.dropped_out.load(Relaxed);
    let packet = bytes::Bytes::from(vec![0; 1000]);
    for _ in 0..1000 {
        carrier.send_packet(Way::Datagram, Rank::Gossip, packet.clone());
        carrier.send_packet(Way::Datagram, Rank::Probe, packet.clone());
        tokio::task::yield_now().await;
    }
    assert!(dropped() > 1800, "{}", dropped());
    let before = dropped();
    let large = bytes::Bytes::from(vec![0; 64 * 1024]);
    for _ in 0..1000 {
        carrier.send_packet(Way::Stream, Rank::Sync, large.clone());
        tokio::task::yield_now().await;
    }
    assert!(dropped() - before > 700, "{}", dropped() - before);
    drop(joined);
}

/// A datagram that the path does not take travels on the stream.
#[tokio::test(start_paused = true)]
async fn what_no_datagram_holds_goes_by_the_stream() {
    use crate::proto::membership::{Rank, Way};

    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let carrier = world.a.shared().session(fake.name()).unwrap().carrier().unwrap();
    let max = carrier.path().datagram_max;
    assert!((1162..1452).contains(&max), "{max}");
    carrier.send_packet(Way::Datagram, Rank::Probe, vec![0x7e; 1453].into());
    let reading = async {
        loop {
            let mut frames = fake::Frames::new(joined.link.accept().await.unwrap(), 1 << 20);
            frames.begin().await.unwrap();
            if frames.kind() == Some(StreamKind::Services) {
                tokio::spawn(async move { while frames.next().await.is_some() {} });
                continue;
            }
            while let Some(frame) = frames.next().await {
                if frame.body.len() == 1453 {
                    return frames.kind();
                }
            }
        }
    };
    assert_eq!(timeout(secs(5), reading).await.unwrap(), Some(StreamKind::Membership));
}

/// An event of membership reaches who subscribed, and a fact everybody, on real sockets too.
#[tokio::test]
async fn two_nodes_on_loopback_see_each_other() {
    let cookie = Cookie::generate();
    let one = Node::builder("one@127.0.0.1:0").cookie(cookie.clone()).start().await.unwrap();
    let two = Node::builder("two@127.0.0.1:0").cookie(cookie).join(one.name().as_str()).start().await.unwrap();
    let facts = one.shared().facts.subscribe("t");
    for node in [&one, &two] {
        sees(node, [&one, &two].map(|other| (other, MemberState::Alive))).await;
    }
    let (done, taken) = tokio::sync::oneshot::channel();
    let body = bytes::Bytes::from_static(b"fact");
    two.shared().command(crate::driver::Command::Publish { topic: "t".to_owned(), body: body.clone(), done });
    assert_eq!(taken.await, Ok(true));
    let fact = std::future::poll_fn(|context| facts.poll_next(context));
    let fact = timeout(secs(10), fact).await.unwrap().unwrap();
    assert_eq!((fact.from, fact.body), (two.id(), body));
    two.shutdown().await;
    sees(&one, [(&one, MemberState::Alive), (&two, MemberState::Left)]).await;
    one.shutdown().await;
}
