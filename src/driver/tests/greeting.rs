//! Holders of the cookie that do not greet as they should: the second lock, and the time it may take.

use super::fake::{Closed, Fake, closed, control_frame, encode, hear, open, say};
use super::*;
use crate::error::ConnectError;
use crate::identity::{AuthError, Role};
use crate::transport::Link;
use crate::wire::{Code, Control, Hello, Mode, StreamKind};

/// Every field that a HELLO can get wrong, and every way not to be one.
#[tokio::test(start_paused = true)]
async fn a_bad_hello_is_refused_by_the_responder() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let elsewhere = fake.hello(&fake.dial(&world.b).await, Role::Dialler).proof;
    type Forge<'a> = &'a dyn Fn(&mut Hello);
    let forged: [(&str, Forge<'_>, Code); 4] = [
        ("no proof", &|hello| hello.proof = [0; 32], Code::BAD_PROOF),
        ("a bit is wrong", &|hello| hello.proof[31] ^= 1, Code::BAD_PROOF),
        ("the proof of another connection", &|hello| hello.proof = elsewhere, Code::BAD_PROOF),
        ("another incarnation than proved", &|hello| hello.incarnation += 1, Code::BAD_PROOF),
    ];
    for (what, forge, code) in forged {
        let link = fake.dial(&world.a).await;
        let mut hello = fake.hello(&link, Role::Dialler);
        forge(&mut hello);
        let _greeting = say(&link, &encode(&hello)).await;
        is_refused(&link, code, what).await;
    }
    for (n, (what, alter, code, _)) in altered().into_iter().enumerate() {
        // Each from elsewhere: whoever is refused ten times is ignored.
        let fake = world.member(&format!("x@10.0.3.{n}:4370"));
        let link = fake.dial(&world.a).await;
        let mut hello = fake.hello(&link, Role::Dialler);
        alter(&mut hello);
        fake.prove(&link, &mut hello);
        let _greeting = say(&link, &encode(&hello)).await;
        is_refused(&link, code, what).await;
    }
    world.is_unharmed().await;
}

/// The dialler checks the same, and its caller learns what it was.
#[tokio::test(start_paused = true)]
async fn a_bad_hello_is_refused_by_the_dialler() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    for (what, alter, code, error) in altered() {
        let (refused, dialled) = tokio::join!(fake.admit_as(alter), world.dials(fake.name()));
        assert_eq!(dialled, Err(error), "{what}");
        let closed = refused.err().expect(what);
        assert_eq!((closed.code, &closed.reason[..]), (code, &b""[..]), "{what}");
    }
    world.is_unharmed().await;
}

type Alter = fn(&mut Hello);

/// HELLOs with a good proof of bad content: what is wrong, the code, and what the caller of a dial is told.
fn altered() -> Vec<(&'static str, Alter, Code, ConnectError)> {
    let protocol = ConnectError::Protocol;
    let mismatch = ConnectError::Auth(AuthError::NameMismatch);
    vec![
        ("the wrong role", |hello| hello.role = 3 - hello.role, Code::PROTOCOL, protocol.clone()),
        ("no role", |hello| hello.role = 0, Code::PROTOCOL, protocol.clone()),
        ("another cluster", |hello| hello.cluster = "other".into(), Code::NAME_MISMATCH, mismatch.clone()),
        (
            "another name than certified",
            |hello| hello.name = NodeName::parse("z@10.0.0.9:4370").unwrap(),
            Code::NAME_MISMATCH,
            mismatch,
        ),
        (
            "another mode",
            |hello| hello.mode = Mode::Pki,
            Code::MODE_MISMATCH,
            ConnectError::Auth(AuthError::ModeMismatch),
        ),
        ("no codec", |hello| hello.codecs.clear(), Code::VERSION, protocol.clone()),
        ("no incarnation", |hello| hello.incarnation = 0, Code::PROTOCOL, protocol.clone()),
        ("no possible incarnation", |hello| hello.incarnation = 1 << 62, Code::PROTOCOL, protocol.clone()),
        ("no possible count", |hello| hello.ended = u64::MAX, Code::PROTOCOL, protocol.clone()),
        ("no possible count of ours", |hello| hello.seen_ended = u64::MAX, Code::PROTOCOL, protocol),
    ]
}

#[tokio::test(start_paused = true)]
async fn what_is_no_hello_is_refused() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let whole = |link: &Link| encode(&fake.hello(link, Role::Dialler));
    type Bytes<'a> = &'a dyn Fn(&Link) -> Vec<u8>;
    let wrong: [(&str, Bytes<'_>, Code); 9] = [
        ("cut off", &|link| whole(link)[..100].to_vec(), Code::PROTOCOL),
        ("nothing", &|_| vec![], Code::PROTOCOL),
        ("too short inside", &|link| reframed(&whole(link), |body| body.truncate(body.len() - 1)), Code::PROTOCOL),
        ("too long inside", &|link| reframed(&whole(link), |body| body.push(0)), Code::PROTOCOL),
        ("no magic", &|link| reframed(&whole(link), |body| body[0] = 0), Code::PROTOCOL),
        ("too large", &|_| [&[1][..], &0x8000_1001u32.to_be_bytes()].concat(), Code::FRAME_TOO_LARGE),
        ("far too large", &|_| [[1].as_slice(), &[0xff; 8]].concat(), Code::FRAME_TOO_LARGE),
        ("READY first", &|_| control_frame(Control::Ready), Code::PROTOCOL),
        ("a frame that could be skipped elsewhere", &|_| vec![0x41, 0], Code::PROTOCOL),
    ];
    for (what, bytes, code) in wrong {
        let link = fake.dial(&world.a).await;
        let (send, _recv) = say(&link, &bytes(&link)).await;
        send.finish();
        is_refused(&link, code, what).await;
    }
    world.is_unharmed().await;
}

/// A node's own HELLO, sent back to it, opens nothing; nor does its proof under the attacker's name.
#[tokio::test(start_paused = true)]
async fn an_echo_is_refused() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    type Mix = fn(&mut Hello, Hello);
    let mixes: [(Mix, Code, ConnectError); 3] = [
        (|echo, own| *echo = own, Code::PROTOCOL, ConnectError::Protocol),
        (
            |echo, own| *echo = Hello { role: 2, ..own },
            Code::NAME_MISMATCH,
            ConnectError::Auth(AuthError::NameMismatch),
        ),
        (|echo, own| echo.proof = own.proof, Code::BAD_PROOF, ConnectError::Auth(AuthError::Proof)),
    ];
    for (mix, code, error) in mixes {
        let answering = async {
            let link = fake.accept().await;
            let (mut send, mut recv) = link.accept_greeting().await.unwrap();
            let own = hear(&mut recv).await.unwrap();
            let mut hello = fake.hello(&link, Role::Responder);
            mix(&mut hello, own);
            send.write(&encode(&hello)).await.unwrap();
            closed(&link).await.code
        };
        let (refused, dialled) = tokio::join!(answering, world.dials(fake.name()));
        assert_eq!((refused, dialled), (code, Err(error)));
    }
    world.is_unharmed().await;
}

/// Before HELLO there is room for a greeting and nothing else.
#[tokio::test(start_paused = true)]
async fn nothing_is_read_before_hello() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let link = fake.dial(&world.a).await;
    for kind in [StreamKind::Control, StreamKind::Lane, StreamKind::Calls, StreamKind::Body] {
        let opened = timeout(secs(1), link.open(kind, 0)).await;
        assert!(opened.is_err(), "{kind:?}");
    }
    let mut sent = 0;
    while sent < 1000 && link.send_datagram(vec![0x55; 1000].into()) {
        sent += 1;
        tokio::task::yield_now().await;
    }
    assert_eq!(sent, 1000);
    let (_send, _recv) = say(&link, &[]).await;
    assert!(timeout(secs(1), link.open_greeting()).await.is_err(), "a second greeting stream");
    world.talk().await;
    assert_eq!(closed(&link).await.code, Code::HELLO_TIMEOUT);
    world.is_unharmed().await;
}

/// What was sent before HELLO is not heard after it either.
#[tokio::test(start_paused = true)]
async fn datagrams_before_hello_are_not_punished() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let link = fake.dial(&world.a).await;
    for _ in 0..100 {
        link.send_datagram(vec![0; 500].into());
    }
    let (_send, mut recv) = say(&link, &encode(&fake.hello(&link, Role::Dialler))).await;
    assert!(hear(&mut recv).await.is_some());
    link.raise_limits(1000);
    let _control = open(&link, &[&[1][..], &control_frame(Control::Ready)].concat()).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    world.is_unharmed().await;
}

/// Each way to be late is cut off at the same moment.
#[tokio::test(start_paused = true)]
async fn a_greeting_that_does_not_end_is_cut_off_in_time() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");

    let link = fake.dial(&world.a).await;
    is_timed_out(closed(&link).await, "no stream");

    let link = fake.dial(&world.a).await;
    let _greeting = say(&link, &encode(&fake.hello(&link, Role::Dialler))[..50]).await;
    is_timed_out(closed(&link).await, "half a HELLO");

    let link = fake.dial(&world.a).await;
    let hello = encode(&fake.hello(&link, Role::Dialler));
    let dribble = async {
        let (mut send, _recv) = say(&link, &[]).await;
        for byte in hello {
            if send.write(&[byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    is_timed_out(tokio::join!(closed(&link), dribble).0, "a byte at a time");

    for (what, first) in [("no control stream", &[][..]), ("no READY", &[1]), ("half a READY", &[1, 2])] {
        let (link, _greeting, began) = greeted(&fake, &world).await;
        let _control = if first.is_empty() { None } else { Some(open(&link, first).await) };
        let closed = closed(&link).await;
        is_timed_out(Closed { after: began.elapsed(), ..closed }, what);
    }

    // READY comes, but the node may not open its own control stream.
    let (link, _greeting, began) = greeted(&fake, &world).await;
    let _control = open(&link, &[&[1][..], &control_frame(Control::Ready)].concat()).await;
    let closed = closed(&link).await;
    is_timed_out(Closed { after: began.elapsed(), ..closed }, "no room for the node's stream");
    world.is_unharmed().await;
}

/// A dial is over in time, whatever the responder leaves out.
#[tokio::test(start_paused = true)]
async fn a_responder_that_does_not_greet_is_given_up_in_time() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    for answers in [false, true] {
        let answering = async {
            let link = fake.accept().await;
            let (mut send, mut recv) = link.accept_greeting().await.unwrap();
            let theirs = hear(&mut recv).await.unwrap();
            if answers {
                // All is well, but for a node that may open no stream.
                let hello = Hello { known_incarnation: theirs.incarnation, ..fake.hello(&link, Role::Responder) };
                send.write(&encode(&hello)).await.unwrap();
            }
            closed(&link).await.code
        };
        let began = tokio::time::Instant::now();
        let (code, dialled) = tokio::join!(answering, world.dials(fake.name()));
        assert_eq!(code, Code::HELLO_TIMEOUT, "{answers}");
        let error = dialled.unwrap_err();
        assert!(matches!(error, ConnectError::HelloTimeout | ConnectError::Timeout(_)), "{error}");
        assert!(began.elapsed() < secs(5) + Duration::from_millis(20));
    }
    world.is_unharmed().await;
}

/// A stream that is given up, or that carries something else, is no greeting; nobody waits for the deadline.
#[tokio::test(start_paused = true)]
async fn a_greeting_that_breaks_off_is_refused_at_once() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");

    let link = fake.dial(&world.a).await;
    let (send, _recv) = say(&link, &[1]).await;
    sleep(Duration::from_millis(10)).await;
    drop(send);
    is_refused(&link, Code::PROTOCOL, "reset in HELLO").await;

    let link = fake.dial(&world.a).await;
    let (mut send, recv) = say(&link, &[]).await;
    recv.stop();
    sleep(Duration::from_millis(10)).await;
    send.write(&encode(&fake.hello(&link, Role::Dialler))).await.unwrap();
    is_refused(&link, Code::PROTOCOL, "will not hear the answer").await;

    let first_streams: [(&str, &[u8]); 6] = [
        ("a lane", &[2]),
        ("calls", &[3]),
        ("a body", &[4]),
        ("a stream of a later version", &[0x47]),
        ("something else than READY", &[1, 0x06, 1, 9]),
        ("READY with a body", &[1, 0x02, 1, 0]),
    ];
    for (what, bytes) in first_streams {
        let (link, _greeting, _) = greeted(&fake, &world).await;
        let _stream = open(&link, bytes).await;
        is_refused(&link, Code::PROTOCOL, what).await;
    }
    let (link, _greeting, _) = greeted(&fake, &world).await;
    let stream = open(&link, &[1]).await;
    sleep(Duration::from_millis(10)).await;
    drop(stream);
    is_refused(&link, Code::PROTOCOL, "reset before READY").await;
    let (link, _greeting, _) = greeted(&fake, &world).await;
    open(&link, &[1]).await.finish();
    is_refused(&link, Code::PROTOCOL, "finished before READY").await;

    let answering = async {
        let link = fake.accept().await;
        let (send, mut recv) = link.accept_greeting().await.unwrap();
        hear(&mut recv).await.unwrap();
        drop(send);
        closed(&link).await
    };
    let (refused, dialled) = tokio::join!(answering, world.dials(fake.name()));
    assert_eq!((refused.code, dialled), (Code::PROTOCOL, Err(ConnectError::Protocol)));
    assert!(refused.after < secs(1));
    world.is_unharmed().await;
}

/// A link that ends at any step of the greeting leaves nothing behind, and the next one is let in.
#[tokio::test(start_paused = true)]
async fn a_link_that_ends_in_the_greeting_leaves_nothing() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    for close in [0x00, 0x01, 0x02, 0x10, 0x1b, 0x1d, 0x1e, 0x1f, 0x77, 0xffff_ffff, (1 << 62) - 1] {
        for step in 0..4 {
            let link = fake.dial(&world.a).await;
            let hello = encode(&fake.hello(&link, Role::Dialler));
            let mut greeting = None;
            if step > 0 {
                greeting = Some(say(&link, if step == 1 { &hello[..9] } else { &hello }).await);
            }
            if step == 3 {
                assert!(hear(&mut greeting.as_mut().unwrap().1).await.is_some());
            }
            sleep(Duration::from_millis(step)).await;
            link.close_as(close, b"for no reason");
        }
        let answering = async {
            let link = fake.accept().await;
            link.accept_greeting().await.unwrap();
            link.close_as(close, b"for no reason");
        };
        let ((), dialled) = tokio::join!(answering, world.dials(fake.name()));
        assert!(dialled.is_err(), "{dialled:?}");
    }
    world.has_no_leak().await;
    let joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    joined.link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    world.is_unharmed().await;
}

/// A link that has had its HELLO answered, and since when it was up.
async fn greeted(
    fake: &Fake,
    world: &World,
) -> (Link, (crate::transport::link::Sender, crate::transport::link::Receiver), tokio::time::Instant) {
    let link = fake.dial(&world.a).await;
    let began = tokio::time::Instant::now();
    let (send, mut recv) = say(&link, &encode(&fake.hello(&link, Role::Dialler))).await;
    assert!(hear(&mut recv).await.is_some());
    (link, (send, recv), began)
}

async fn is_refused(link: &Link, code: Code, what: &str) {
    let closed = closed(link).await;
    assert_eq!((closed.code, &closed.reason[..]), (code, &b""[..]), "{what}");
    assert!(closed.after < secs(1), "{what}: {:?}", closed.after);
}

fn is_timed_out(closed: Closed, what: &str) {
    assert_eq!((closed.code, &closed.reason[..]), (Code::HELLO_TIMEOUT, &b""[..]), "{what}");
    // TLS ends at the two ends half a round trip apart.
    let (least, most) = (secs(5) - Duration::from_millis(5), secs(5) + Duration::from_millis(5));
    assert!((least..=most).contains(&closed.after), "{what}: {:?}", closed.after);
}

/// The same frame with another body.
fn reframed(frame: &[u8], alter: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    // A HELLO's length takes two bytes.
    let mut body = frame[3..].to_vec();
    alter(&mut body);
    let len = (body.len() as u16 | 0x4000).to_be_bytes();
    [&frame[..1], &len, &body].concat()
}
