//! Who has no cookie, or the wrong one, does not get through TLS, in either direction.

use super::fake::{Fake, call, message_frame, next_stream, number_schema, schema_frame};
use super::*;
use crate::error::ConnectError;
use crate::identity::AuthError;
use crate::transport::link::End;
use crate::transport::tls::ALPN;
use crate::transport::tls::tests::{rogue_client, rogue_server};
use crate::wire::{CallFrame, CallHead};

/// The attacker does what honest TLS does: it refuses first, and both sides know why.
#[tokio::test(start_paused = true)]
async fn another_cookie_or_cluster_name_is_refused_both_ways() {
    let mut world = World::new().await;
    let other_cookie = Fake::new(&world.fabric, &Cookie::generate(), "default", "x@10.0.0.9:4370");
    let other_cluster = Fake::new(&world.fabric, &world.cookie, "other", "y@10.0.0.10:4370");
    for fake in [other_cookie, other_cluster] {
        let error = fake.endpoint.dial(&fake.tls, world.a.local_addr(), world.a.name()).await.unwrap_err();
        assert_eq!(error, ConnectError::Auth(AuthError::WrongCookie));
        let (accepted, dialled) =
            tokio::join!(async { fake.endpoint.accept().await.unwrap().accept().await }, world.dials(fake.name()),);
        assert_eq!(accepted.unwrap_err(), Some(AuthError::WrongCookie));
        assert_eq!(dialled, Err(ConnectError::Auth(AuthError::WrongCookie)));
    }
    world.is_unharmed().await;
}

/// The attacker checks nothing, so it believes that it is connected until it hears otherwise.
#[tokio::test(start_paused = true)]
async fn a_stranger_that_checks_nothing_is_refused() {
    let mut world = World::new().await;
    let fake = Fake::new(&world.fabric, &Cookie::generate(), "default", "x@10.0.0.9:4370");
    let member = world.member("y@10.0.0.10:4370");
    for (client, expected) in [
        (rogue_client(Some(&fake.tls), &[ALPN]), AuthError::WrongCookie),
        (rogue_client(None, &[ALPN]), AuthError::NoCertificate),
        (rogue_client(Some(&member.tls), &[b"h3"]), AuthError::Protocol),
        (rogue_client(Some(&member.tls), &[b"distribute/2"]), AuthError::Protocol),
        (rogue_client(Some(&member.tls), &[]), AuthError::Protocol),
    ] {
        match fake.endpoint.dial_as(client, world.a.local_addr()).await {
            Err(error) => assert_eq!(error, ConnectError::Auth(expected)),
            Ok(link) => {
                // Whatever it says before it hears is not listened to.
                let _greeting = timeout(secs(1), link.open_greeting()).await;
                assert_eq!(link.closed().await, End::Auth(expected));
            }
        }
    }
    world.is_unharmed().await;
}

/// A node that dials an impostor learns why it is none of its cluster.
#[tokio::test(start_paused = true)]
async fn a_node_refuses_a_responder_that_is_no_member() {
    let mut world = World::new().await;
    let fake = Fake::new(&world.fabric, &Cookie::generate(), "default", "x@10.0.0.9:4370");
    let member = world.member("y@10.0.0.10:4370");
    let node = NodeName::parse("x@10.0.0.9:4370").unwrap();
    for (server, expected) in [
        (rogue_server(&fake.tls, &[ALPN]), AuthError::WrongCookie),
        (rogue_server(&member.tls, &[ALPN]), AuthError::NameMismatch),
        (rogue_server(&member.tls, &[b"h3"]), AuthError::Protocol),
        (rogue_server(&member.tls, &[]), AuthError::Protocol),
    ] {
        fake.endpoint.serve_as(server);
        let (accepted, dialled) =
            tokio::join!(async { fake.endpoint.accept().await.unwrap().accept().await }, world.dials(&node),);
        assert_eq!(dialled, Err(ConnectError::Auth(expected.clone())));
        assert_eq!(accepted.unwrap_err(), Some(expected));
    }
    world.is_unharmed().await;
}

/// A node that is dialled under another name is not taken for it, not even by itself.
#[tokio::test(start_paused = true)]
async fn a_node_at_the_address_of_another_name_is_refused() {
    let mut world = World::new().await;
    let member = world.member("y@10.0.0.10:4370");
    let wrong = NodeName::parse("z@10.0.0.10:4370").unwrap();
    let (accepted, dialled) =
        tokio::join!(async { member.endpoint.accept().await.unwrap().accept().await }, world.dials(&wrong));
    assert_eq!(dialled, Err(ConnectError::Auth(AuthError::NameMismatch)));
    assert_eq!(accepted.unwrap_err(), Some(AuthError::NameMismatch));
    let itself = NodeName::parse("z@10.0.0.1:4370").unwrap();
    assert_eq!(world.dials(&itself).await, Err(ConnectError::Auth(AuthError::NameMismatch)));
    assert_eq!(world.dials(world.a.name()).await, Ok(world.a.id()));
    world.is_unharmed().await;
}

/// The harness is not what keeps the attacker out: with the cookie, and by the rules, it gets in and is heard.
#[tokio::test(start_paused = true)]
async fn a_member_that_keeps_the_rules_is_heard() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let victim = world.victim.pid().serial();
    let message = [&[2][..], &schema_frame(0, &number_schema()), &message_frame(victim, 0, 0, &[7])].concat();
    let _lane = joined.open(&message).await;
    assert_eq!(world.victim.recv().await, Some(7));
    let _calls = joined.open(&[&[3][..], &call(0, "double", 1000)].concat()).await;
    let mut answers = next_stream(&joined.link).await.unwrap();
    let answer = answers.next_call().await;
    let CallFrame { head, body } = answer.unwrap();
    assert!(matches!(head, CallHead::Answer { id: 0, .. }) && body[..] == [42], "{head:?}");
    assert_eq!(world.runs.swap(0, Ordering::Relaxed), 1);
    joined.link.close_as(1, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Left));
    world.is_unharmed().await;
}
