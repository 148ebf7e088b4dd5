//! The trust of a node changes while a peer greets it.

use super::fake::{Fake, closed, control_frame, encode, hear, open, say};
use super::*;
use crate::identity::{ClusterKeys, KeyHash, ProofInput, Role};
use crate::transport::Link;
use crate::wire::{Code, Control, Hello, StreamKind};

/// Whether a node's HELLO was made with this cookie, for this link.
fn is_proved(fake: &Fake, link: &Link, hello: &Hello, cookie: &Cookie) -> bool {
    let key = ClusterKeys::derive(cookie, &fake.cluster).hello;
    let peer = link.peer(&fake.tls).unwrap();
    let input = ProofInput {
        exporter: &link.exporter(),
        role: Role::Responder,
        name: &hello.name,
        incarnation: hello.incarnation,
        own_spki: peer.spki(),
        peer_spki: &fake.tls.own_spki(),
    };
    key.verify(&input, &hello.proof)
}

/// The proof speaks of the certificate that the link has presented, although the node presents another by then.
#[tokio::test(start_paused = true)]
async fn a_change_during_the_greeting_does_not_tear_it() {
    let mut world = World::new().await;
    let (old, new) = (world.cookie.clone(), Cookie::generate());
    for node in [&world.a, &world.b] {
        node.trust().accept(&new).await.unwrap();
    }
    let fake = world.member("x@10.0.0.9:4370");
    fake.tls.accept(&ClusterKeys::derive(&new, &fake.cluster)).unwrap();
    let link = fake.dial(&world.a).await;
    assert!(world.a.trust().present(&new).await.unwrap().behind.is_empty());
    let (_send, mut recv) = say(&link, &encode(&fake.hello(&link, Role::Dialler))).await;
    let hello = hear(&mut recv).await.unwrap();
    assert!(is_proved(&fake, &link, &hello, &old));
    assert!(!is_proved(&fake, &link, &hello, &new));
    // The next link presents the new one.
    let next = fake.dial(&world.a).await;
    let (_send, mut recv) = say(&next, &encode(&fake.hello(&next, Role::Dialler))).await;
    assert!(is_proved(&fake, &next, &hear(&mut recv).await.unwrap(), &new));
    for link in [link, next] {
        link.close_as(1, b"");
    }
    world.cookie = new;
    world.is_unharmed().await;
}

/// A peer that loses its trust at any step of its greeting does not come up.
#[tokio::test(start_paused = true)]
async fn who_loses_its_trust_while_it_greets_stays_out() {
    for step in 0..3 {
        let mut world = World::new().await;
        let (old, new) = (world.cookie.clone(), Cookie::generate());
        for node in [&world.a, &world.b] {
            node.trust().accept(&new).await.unwrap();
        }
        for node in [&world.a, &world.b] {
            node.trust().present(&new).await.unwrap();
        }
        let fake = world.member("x@10.0.0.9:4370");
        fake.tls.accept(&ClusterKeys::derive(&new, &fake.cluster)).unwrap();
        let forget = async || {
            for node in [&world.a, &world.b] {
                assert_eq!(node.trust().forget(&old).await.unwrap().closed, []);
            }
        };
        let link = fake.dial(&world.a).await;
        if step == 0 {
            forget().await;
        }
        let (_send, mut recv) = say(&link, &encode(&fake.hello(&link, Role::Dialler))).await;
        let mut control = None;
        if step > 0 {
            hear(&mut recv).await.unwrap();
            link.raise_limits(1000);
            if step == 1 {
                forget().await;
            }
            let ready = [&[StreamKind::Control.to_byte()], &control_frame(Control::Ready)[..]].concat();
            control = Some(open(&link, &ready).await);
            if step == 2 {
                // It is up, and swept away again.
                assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
                for (node, gone) in [(&world.a, true), (&world.b, false)] {
                    assert_eq!(node.trust().forget(&old).await.unwrap().closed.len(), usize::from(gone));
                }
                assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::TrustChanged));
            }
        }
        assert_eq!(closed(&link).await.code, Code::TRUST_CHANGED, "step {step}");
        drop(control);
        world.cookie = new;
        world.is_unharmed().await;
    }
}

/// A node that cannot be dialled is not asked whether it accepts another cookie before its link stops: if it does not, it is
/// without a session until it does.
#[tokio::test(start_paused = true)]
async fn who_cannot_be_dialled_is_to_accept_first() {
    let (fabric, old, new) = (Fabric::new(9), Cookie::generate(), Cookie::generate());
    let open = node(&fabric, &old, "open@10.0.0.1:4370", Config::default()).await;
    let hidden = Node::builder("hidden@10.0.0.2:4370").cookie(old).not_dialable().config(quiet(Config::default()));
    let hidden = hidden.network(fabric.host([10, 0, 0, 2])).start().await.unwrap();
    let mut events = hidden.cluster().node_events();
    hidden.cluster().connect(open.name()).await.unwrap();
    assert_eq!(events.next().await, Some(NodeEvent::Up(open.id())));
    open.trust().accept(&new).await.unwrap();
    open.trust().present(&new).await.unwrap();
    assert_eq!(timeout(secs(30), events.next()).await, Ok(Some(NodeEvent::Down(open.id(), DownReason::Lost))));
    assert!(hidden.cluster().connect(open.name()).await.is_err());
    hidden.trust().accept(&new).await.unwrap();
    hidden.cluster().connect(open.name()).await.unwrap();
    assert_eq!(events.next().await, Some(NodeEvent::Up(open.id())));
}

/// A peer without a link has nothing but its name to be judged by. It stays a peer in name, until it is to be linked.
#[tokio::test(start_paused = true)]
async fn who_has_no_link_is_looked_at_with_the_next() {
    let (fabric, cookie) = (Fabric::new(10), Cookie::generate());
    let config = Config { idle_close: secs(5), ..Config::default() };
    let a = node(&fabric, &cookie, "a@10.0.0.1:4370", config.clone()).await;
    let b = node(&fabric, &cookie, "b@10.0.0.2:4370", config).await;
    let mut events = a.cluster().node_events();
    a.cluster().connect(b.name()).await.unwrap();
    assert_eq!(events.next().await, Some(NodeEvent::Up(b.id())));
    while a.shared().sessions()[0].carrier().is_some() {
        sleep(secs(1)).await;
    }
    assert!(a.trust().block_key(b.trust().key()).await.unwrap().closed.is_empty());
    assert_eq!(a.cluster().peers(), [b.id()]);
    assert!(b.cluster().connect(a.name()).await.is_err());
    assert!(a.cluster().connect(b.name()).await.is_err());
    assert_eq!(timeout(secs(30), events.next()).await, Ok(Some(NodeEvent::Down(b.id(), DownReason::Lost))));
}

/// Time to finish what was begun has only who has another link that is trusted: not who stops its link and never ends that.
#[tokio::test(start_paused = true)]
async fn a_link_that_stops_is_no_shelter() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    joined.control(Control::Stop { code: Code::IDLE, streams: 1000 }).await;
    assert!(joined.answers(1).await, "the stop was read before");
    let changed = world.a.trust().block_key(KeyHash::from_bytes(fake.tls.own_spki())).await.unwrap();
    assert_eq!(changed.closed, [fake.name().clone()]);
    let closed = closed(&joined.link).await;
    assert_eq!((closed.code, closed.after < secs(1)), (Code::TRUST_CHANGED, true));
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::TrustChanged));
    world.is_unharmed().await;
}

/// A link that was let in before the change, and is up for the peer only, is waited for as one that is up: it presents the
/// former cookie, and whoever forgets that one next is not to find it.
#[tokio::test(start_paused = true)]
async fn a_change_waits_for_links_that_are_coming_up() {
    for is_ready in [false, true] {
        let mut world = World::new().await;
        let new = Cookie::generate();
        for node in [&world.a, &world.b] {
            node.trust().accept(&new).await.unwrap();
        }
        let fake = world.member("x@10.0.0.9:4370");
        fake.tls.accept(&ClusterKeys::derive(&new, &fake.cluster)).unwrap();
        let link = fake.dial(&world.a).await;
        let (_send, mut recv) = say(&link, &encode(&fake.hello(&link, Role::Dialler))).await;
        hear(&mut recv).await.unwrap();
        let trust = world.a.trust();
        let presenting = trust.present(&new);
        tokio::pin!(presenting);
        let soon = Duration::from_millis(100);
        assert!(timeout(soon, &mut presenting).await.is_err(), "it has greeted, and nothing more");
        let mut control = None;
        if is_ready {
            link.raise_limits(1000);
            let ready = [&[StreamKind::Control.to_byte()], &control_frame(Control::Ready)[..]].concat();
            control = Some(open(&link, &ready).await);
            assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
            assert!(timeout(soon, &mut presenting).await.is_err(), "it is up, and is to be exchanged");
        }
        let begun = tokio::time::Instant::now();
        link.close_as(1, b"");
        assert_eq!(presenting.await.unwrap().behind, [], "it is gone");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        drop(control);
        world.cookie = new.clone();
        if is_ready {
            assert!(matches!(world.next_event().await, NodeEvent::Down(life, _) if life == fake.id));
        }
        world.is_unharmed().await;
    }
}
