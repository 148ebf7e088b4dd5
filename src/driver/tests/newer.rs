//! A peer of the next minor version: it knows more, says more, and stays connected.

use super::fake::{Fake, Frames};
use super::fake::{
    Joined, call, call_frame, control_frame, encode, hear, in_full, message_frame, next_stream, number_schema, open,
    say, schema_frame,
};
use super::*;
use crate::error::PingError;
use crate::identity::Role;
use crate::wire::{CONTROL_MAX, CallFrame, CallHead, Control, LaneFrame, MINOR, StreamKind};

/// A HELLO with another minor version, capabilities, and fields behind those that are known.
fn newer_hello(fake: &Fake, link: &crate::transport::Link, role: Role, theirs: Option<&crate::wire::Hello>) -> Vec<u8> {
    let mut hello = fake.hello(link, role);
    hello.minor = MINOR + 1;
    hello.capabilities = u64::MAX;
    hello.codecs.extend([9, 77, 255]);
    if let Some(theirs) = theirs {
        (hello.known_incarnation, hello.ended, hello.seen_ended) =
            (theirs.incarnation, theirs.seen_ended, theirs.ended);
    }
    fake.prove(link, &mut hello);
    let frame = encode(&hello);
    // A HELLO's length takes two bytes.
    let body = [&frame[3..], &[0xab; 500]].concat();
    [&frame[..1], &(body.len() as u16 | 0x4000).to_be_bytes(), &body].concat()
}

/// Frames that this version does not know and may skip, one with much in it.
fn unknown_frames() -> Vec<u8> {
    [&[0x40, 0][..], &[0x41, 1, 7], &[0x7f, 0x4f, 0xff], &[0x55; 0xfff]].concat()
}

#[tokio::test(start_paused = true)]
async fn a_newer_peer_that_dials_stays_connected() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let link = fake.dial(&world.a).await;
    let (send, mut recv) = say(&link, &newer_hello(&fake, &link, Role::Dialler, None)).await;
    let hello = hear(&mut recv).await.expect("let in");
    link.raise_limits(1000);
    let first = [&[1][..], &unknown_frames(), &control_frame(Control::Ready), &unknown_frames()].concat();
    let control = open(&link, &first).await;
    let frames = Frames::new(link.accept().await.unwrap(), CONTROL_MAX);
    works_for_a_minute(&mut world, &fake, Joined { link, control, frames, hello, _greeting: (send, recv) }).await;
}

#[tokio::test(start_paused = true)]
async fn a_newer_peer_that_is_dialled_stays_connected() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let answering = async {
        let link = fake.accept().await;
        let (mut send, mut recv) = link.accept_greeting().await.unwrap();
        let hello = hear(&mut recv).await.unwrap();
        send.write(&newer_hello(&fake, &link, Role::Responder, Some(&hello))).await.unwrap();
        link.raise_limits(1000);
        let mut frames = Frames::new(link.accept().await.unwrap(), CONTROL_MAX);
        assert_eq!(frames.next_control().await, Some(Control::Ready));
        let control = open(&link, &[&[1][..], &unknown_frames()].concat()).await;
        Joined { link, control, frames, hello, _greeting: (send, recv) }
    };
    let (joined, dialled) = tokio::join!(answering, world.dials(fake.name()));
    assert_eq!(dialled, Ok(fake.id.clone()));
    works_for_a_minute(&mut world, &fake, joined).await;
}

/// Messages and calls both ways, among frames and streams that are to be skipped, for longer than any time-out.
async fn works_for_a_minute(world: &mut World, fake: &Fake, joined: Joined) {
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let victim = world.victim.pid().serial();
    let Joined { link, mut control, frames, hello, _greeting } = joined;
    assert_eq!(hello.minor, MINOR);
    let unknown = unknown_frames();
    let mut lane = open(&link, &[&[2][..], &unknown, &schema_frame(0, &number_schema())].concat()).await;
    let mut calls = open(&link, &[&[3][..], &unknown].concat()).await;

    // What the node sends is answered by the peer.
    let (from_a, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let (asked, mut questions) = tokio::sync::mpsc::unbounded_channel();
    let mut streams = tokio::task::JoinSet::new();
    let accepting = link.clone();
    let (pings, mut pinged) = tokio::sync::mpsc::unbounded_channel();
    let mut control_frames = frames;
    streams.spawn(async move {
        while let Some(frame) = control_frames.next_control().await {
            if let Control::Ping { seq } = frame {
                let _ = pings.send(seq);
            }
        }
    });
    let reader = tokio::spawn(async move {
        let mut readers = tokio::task::JoinSet::new();
        while let Some(mut frames) = next_stream(&accepting).await {
            let (from_a, asked) = (from_a.clone(), asked.clone());
            readers.spawn(async move {
                while let Some(frame) = frames.next().await {
                    match frames.kind() {
                        Some(StreamKind::Lane) => drop(from_a.send(LaneFrame::decode(frame).unwrap())),
                        Some(StreamKind::Calls) => match CallFrame::decode(frame).unwrap().unwrap() {
                            CallFrame { head: CallHead::Term { .. }, .. } => {}
                            frame => drop(asked.send(frame)),
                        },
                        kind => panic!("{kind:?}"),
                    }
                }
            });
        }
    });
    let there = crate::id::Pid::new(fake.id.clone(), 1);
    let there = crate::messaging::Address::<u64>::bound(there, world.a.shared());
    let rpc = world.a.rpc();
    let began = tokio::time::Instant::now();
    let mut number = 0;
    while began.elapsed() < secs(60) {
        lane.write(&[unknown.clone(), message_frame(victim, number, 0, &[7])].concat()).await.unwrap();
        assert_eq!(world.victim.recv_timeout(secs(1)).await, Ok(7));
        calls.write(&[unknown.clone(), call(number, "double", 1000)].concat()).await.unwrap();
        let answer = timeout(secs(1), questions.recv()).await.unwrap().unwrap();
        assert!(matches!(answer.head, CallHead::Answer { .. }) && answer.body[..] == [42], "{answer:?}");
        there.send(9).await.unwrap();
        let message = async {
            loop {
                if let Some(Some(LaneFrame::Message(message))) = arrived.recv().await {
                    return message;
                }
            }
        };
        let message = timeout(secs(1), message).await.unwrap();
        assert_eq!((message.head.mailbox, message.head.number, &message.body[..]), (1, number, &[9][..]));
        let answering = async {
            let Some(CallFrame { head: CallHead::Call { id, .. }, .. }) = questions.recv().await else {
                panic!("no question")
            };
            let answer = call_frame(&CallHead::Answer { id, term: in_full("") }, &[11]);
            calls.write(&[unknown.clone(), answer].concat()).await.unwrap();
        };
        let calling = async { rpc.call(fake.name(), DOUBLE, 5).await };
        let ((), answer) = tokio::join!(answering, calling);
        assert_eq!(answer, Ok(11));
        // Streams of kinds to come: one that goes on, one that ends, one that is taken back.
        for kind in [0x40, 0x47, 0x7f, 0xc1] {
            let going_on = open(&link, &[&[kind][..], &unknown].concat()).await;
            open(&link, &[kind]).await.finish();
            drop(going_on);
        }
        control.write(&unknown).await.unwrap();
        while let Ok(seq) = pinged.try_recv() {
            control.write(&control_frame(Control::Pong { seq })).await.unwrap();
        }
        number += 1;
        sleep(secs(2)).await;
    }
    assert!(number > 20);
    let (cluster, patience) = (world.a.cluster(), secs(2));
    let (pong, ()) = tokio::join!(cluster.ping(fake.name(), patience), async {
        let seq = pinged.recv().await.unwrap();
        control.write(&control_frame(Control::Pong { seq })).await.unwrap();
    });
    assert!(!matches!(pong, Err(PingError::NotConnected(_) | PingError::Disconnected)), "{pong:?}");
    world.has_no_event().await;
    world.runs.store(0, Ordering::Relaxed);
    drop((lane, calls));
    link.close_as(1, b"");
    reader.await.unwrap();
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Left));
    world.is_unharmed().await;
}
