//! What a member may do wrong after a good greeting. It costs the member its own session, and nobody else anything.

use super::fake::{
    Fake, Joined, call, call_frame, closed, control_frame, copies_frame, in_full, message_frame, next_stream,
    number_schema, open, schema_frame,
};
use super::*;
use crate::driver::session::Body;
use crate::transport::link::Sender;
use crate::wire::{
    CONTROL_MAX, CallFrame, CallHead, Code, Control, OVERHEAD_MAX, Schema, Status, StreamKind, Term, TermRef,
    put_varint,
};

const LANE: &[u8] = &[2];
const CALLS: &[u8] = &[3];
const BODY: &[u8] = &[4];
const LARGE: &[u8] = &[5];

/// The largest varint.
const MOST: u64 = (1 << 62) - 1;

/// What arrives on one stream, and how the node ends the session for it.
struct Attack {
    what: &'static str,
    bytes: Vec<u8>,
    code: Code,
    down: DownReason,
}

fn breaks(what: &'static str, parts: &[&[u8]]) -> Attack {
    Attack { what, bytes: parts.concat(), code: Code::PROTOCOL, down: DownReason::Protocol }
}

fn too_large(what: &'static str, parts: &[&[u8]]) -> Attack {
    Attack { code: Code::FRAME_TOO_LARGE, ..breaks(what, parts) }
}

fn overloads(what: &'static str, parts: &[&[u8]]) -> Attack {
    Attack { code: Code::LIMIT, down: DownReason::Overloaded, ..breaks(what, parts) }
}

/// Any frame, as long as it says.
fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [&announced(kind, body.len() as u64)[..], body].concat()
}

fn announced(kind: u8, len: u64) -> Vec<u8> {
    let mut bytes = vec![kind];
    put_varint(&mut bytes, len);
    bytes
}

fn schema(id: u64) -> Vec<u8> {
    schema_frame(id, &number_schema())
}

fn term(method: &str) -> Term {
    Term { method: method.to_owned(), schema: number_schema() }
}

fn tagged(tag: &str) -> Schema {
    Schema { tag: tag.to_owned(), ..number_schema() }
}

/// Runs each attack on a stream of its own in a session of its own.
async fn each(world: &mut World, attacks: Vec<Attack>) {
    let fake = world.member("x@10.0.0.9:4370");
    for Attack { what, bytes, code, down } in attacks {
        let joined = fake.join(&world.a).await;
        let _stream = joined.open(&bytes).await;
        ends(world, &fake, joined, what, code, down).await;
    }
}

async fn ends(world: &mut World, fake: &Fake, joined: Joined, what: &str, code: Code, down: DownReason) {
    let closed = closed(&joined.link).await;
    assert_eq!((closed.code, &closed.reason[..]), (code, &b""[..]), "{what}");
    world.up_and_down(&fake.id, down, what).await;
    world.talk().await;
}

#[tokio::test(start_paused = true)]
async fn garbage_on_a_lane_ends_the_session() {
    let mut world = World::new().await;
    let victim = world.victim.pid().serial();
    let many_schemas: Vec<u8> = (0..4097).flat_map(|id| schema_frame(id, &tagged(&id.to_string()))).collect();
    let huge = announced(0x11, (16 << 20) + OVERHEAD_MAX as u64 + 1);
    let attacks = vec![
        breaks("noise", &[LANE, &[0x1d; 100]]),
        breaks("an empty message", &[LANE, &frame(0x11, &[])]),
        breaks("an empty traced message", &[LANE, &frame(0x12, &[])]),
        breaks("an empty schema", &[LANE, &frame(0x10, &[])]),
        breaks("a trace cut off", &[LANE, &schema(0), &frame(0x12, &[1, 0, 0, 7, 7])]),
        breaks("an unknown frame", &[LANE, &frame(0x15, &[])]),
        breaks("a frame of the control stream", &[LANE, &control_frame(Control::Ping { seq: 1 })]),
        breaks("a frame of calls", &[LANE, &call(0, "double", 1000)]),
        breaks("HELLO again", &[LANE, &frame(0x01, &[0; 100])]),
        breaks("a schema that goes on", &[LANE, &frame(0x10, &[0, 1, b'x', 1, 1, 1, 0])]),
        breaks("a tag that is no text", &[LANE, &frame(0x10, &[0, 1, 0xff, 1, 1, 1])]),
        breaks("an undeclared schema", &[LANE, &message_frame(victim, 0, 0, &[7])]),
        breaks("a schema declared anew", &[LANE, &schema(0), &schema_frame(0, &tagged("u32"))]),
        overloads("a schema beyond the last", &[LANE, &schema_frame(4096, &number_schema())]),
        overloads("4097 schemas", &[LANE, &many_schemas]),
        breaks(
            "a gap is not filled by a repetition",
            &[LANE, &schema(0), &message_frame(victim, 1, 0, &[7]), &message_frame(victim, 1, 0, &[7])],
        ),
        breaks("over credit", &[LANE, &schema(0), &message_frame(victim, 1, 0, &vec![0; 64 << 10])]),
        too_large("a message over the limit", &[LANE, &huge]),
        too_large("a skippable frame over the limit", &[LANE, &announced(0x7f, 1 << 40)]),
        too_large("the longest frame of all", &[LANE, &announced(0x11, MOST)]),
        breaks("no copies at all", &[LANE, &schema(0), &copies_frame(1, 0, vec![], &[7])]),
        breaks("copies cut off", &[LANE, &schema(0), &frame(0x13, &[1, 0, 2, 1, 0])]),
        breaks("too many copies", &[LANE, &schema(0), &copies_frame(1, 0, vec![(victim, 0); 4097], &[7])]),
        breaks("copies of an undeclared schema", &[LANE, &copies_frame(1, 0, vec![(victim, 0)], &[7])]),
        breaks(
            "copies over credit",
            &[LANE, &schema(0), &copies_frame(1, 0, vec![(victim, 1)], &vec![0; (32 << 10) - 127])],
        ),
        breaks(
            "many copies over credit",
            &[LANE, &schema(0), &copies_frame(1, 0, (1..259).map(|number| (victim, number)).collect(), &[])],
        ),
        breaks(
            "a copy that was there",
            &[LANE, &schema(0), &message_frame(victim, 1, 0, &[7]), &copies_frame(1, 0, vec![(victim, 1)], &[7])],
        ),
        breaks("one number for two copies", &[LANE, &schema(0), &copies_frame(1, 0, vec![(victim, 1); 2], &[7])]),
        too_large("copies over the limit", &[BODY, &schema(0), &announced(0x13, (16 << 20) + OVERHEAD_MAX as u64 + 1)]),
        breaks("the same on a stream of its own", &[BODY, &[0x1d; 100]]),
        too_large("a body over the limit", &[BODY, &schema(0), &huge]),
        too_large("the longest body of all", &[BODY, &schema(0), &announced(0x11, MOST)]),
    ];
    each(&mut world, attacks).await;
    world.is_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn a_repeated_message_ends_the_session_after_the_first() {
    let mut world = World::new().await;
    let victim = world.victim.pid().serial();
    let twice = [message_frame(victim, 0, 0, &[7]), message_frame(victim, 0, 0, &[8])].concat();
    each(&mut world, vec![breaks("a number twice", &[LANE, &schema(0), &twice])]).await;
    assert_eq!(world.victim.recv().await, Some(7));
    world.is_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn garbage_among_calls_ends_the_session() {
    let mut world = World::new().await;
    let bad_flag = frame(0x20, &[0, 0, 1, b'x', 1, b'x', 1, 1, 1, 1, 6]);
    let term = |number, method: &str| call_frame(&CallHead::Term { number, term: term(method) }, &[]);
    let many_terms: Vec<u8> = (1..4098).flat_map(|number| term(number, &number.to_string())).collect();
    let undeclared = |number| call_frame(&CallHead::Answer { id: 0, term: TermRef::Number(number) }, &[1]);
    let attacks = vec![
        breaks("noise", &[CALLS, &[0x1d; 100]]),
        breaks("an empty call", &[CALLS, &frame(0x20, &[])]),
        breaks("an empty answer", &[CALLS, &frame(0x21, &[])]),
        breaks("an empty cancel", &[CALLS, &frame(0x22, &[])]),
        breaks("a cancel that goes on", &[CALLS, &frame(0x22, &[0, 0])]),
        breaks("an unknown frame", &[CALLS, &frame(0x28, &[])]),
        breaks("a frame of lanes", &[CALLS, &schema(0)]),
        breaks("an unknown status", &[CALLS, &frame(0x21, &[0, 99])]),
        breaks("call flags that are none", &[CALLS, &bad_flag]),
        breaks("an undeclared term", &[CALLS, &undeclared(1)]),
        breaks("the greatest undeclared term", &[CALLS, &undeclared(MOST)]),
        breaks("a term without a number", &[CALLS, &frame(0x24, &[0, 0, 1, b'x', 1, 1, 1])]),
        breaks("a term declared anew", &[CALLS, &term(1, "double"), &term(1, "never")]),
        overloads("a term beyond the last", &[CALLS, &term(4097, "double")]),
        overloads("the greatest term", &[CALLS, &term(MOST, "double")]),
        overloads("4097 terms", &[CALLS, &many_terms]),
        breaks("a cancel on a stream of its own", &[LARGE, &call_frame(&CallHead::Cancel { id: 1 }, &[])]),
        breaks("noise on a stream of its own", &[LARGE, &[0x1d; 100]]),
        breaks(
            "two frames on a stream of one",
            &[LARGE, &call(0, "nothing", 1000), &call_frame(&CallHead::Answer { id: 0, term: in_full("") }, &[1])],
        ),
        too_large("a large call over the limit", &[LARGE, &announced(0x20, (16 << 20) + OVERHEAD_MAX as u64 + 1)]),
        too_large("a call over the limit", &[CALLS, &announced(0x20, (16 << 20) + OVERHEAD_MAX as u64 + 1)]),
    ];
    each(&mut world, attacks).await;
    world.is_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn unknown_and_silent_streams_end_the_session() {
    let mut world = World::new().await;
    let attacks = vec![
        breaks("kind 0", &[&[0]]),
        breaks("kind 8", &[&[8, 1, 2, 3]]),
        breaks("kind 0x80", &[&[0x80]]),
        breaks("a second control stream", &[&[1]]),
        breaks("READY again", &[&[1], &control_frame(Control::Ready)]),
    ];
    each(&mut world, attacks).await;

    // It answers the clock, and nothing else: not the stop of its idle link either.
    let fake = world.member("z@10.0.0.11:4370");
    let mut joined = fake.join(&world.a).await;
    while let Some(frame) = joined.frames.next_control().await {
        if let Control::Ping { seq } = frame {
            joined.control(Control::Pong { seq }).await;
        }
    }
    ends(&mut world, &fake, joined, "silence", Code::SLOW, DownReason::Overloaded).await;

    let fake = world.member("y@10.0.0.10:4370");
    let ways: [(&str, &[u8], bool); 4] = [
        ("ends without a word", &[], true),
        ("is reset before its first frame", &[2], false),
        ("is reset in the middle of a frame", &[2, 0x11, 40, 1, 2], false),
        ("ends in the middle of a frame", &[2, 0x11, 40, 1, 2], true),
    ];
    for (what, bytes, finish) in ways {
        let joined = fake.join(&world.a).await;
        let stream = joined.open(bytes).await;
        sleep(Duration::from_millis(20)).await;
        if finish {
            stream.finish()
        } else {
            drop(stream)
        }
        ends(&mut world, &fake, joined, what, Code::PROTOCOL, DownReason::Protocol).await;
    }
    // What was taken back before it was read may have been anything.
    let mut joined = fake.join(&world.a).await;
    drop(joined.open(&[]).await);
    drop(joined.open(&[0x47]).await);
    assert!(joined.answers(1).await);
    joined.link.close_as(0, b"");
    world.up_and_down(&fake.id, DownReason::Disconnected, "taken back").await;
    world.is_unharmed().await;
}

#[tokio::test(start_paused = true)]
async fn nonsense_on_the_control_stream_ends_the_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let victim = world.victim.pid().serial();
    let need = |limit| control_frame(Control::Need { mailbox: victim, seq: 1, sent: 0, limit });
    let back = |limit| control_frame(Control::Return { mailbox: victim, seq: 2, limit });
    let attacks = vec![
        breaks("noise", &[&[0x1d; 100]]),
        breaks("READY again", &[&control_frame(Control::Ready)]),
        breaks("an unknown frame", &[&frame(0x3f, &[])]),
        breaks("an answer to copies that were never sent", &[&frame(0x0e, &[1, 0])]),
        breaks("an answer that goes on", &[&frame(0x0e, &[1, 0, 0])]),
        breaks("an empty ping", &[&frame(0x06, &[])]),
        breaks("a ping that goes on", &[&frame(0x06, &[1, 1])]),
        breaks("a STOP of no code", &[&frame(0x08, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0])]),
        too_large("a frame over the limit", &[&announced(0x06, CONTROL_MAX as u64 + 1)]),
        breaks("credit beyond a message", &[&need((16 << 20) + (32 << 10) + 129)]),
        breaks("all credit there is", &[&need(MOST)]),
        breaks(
            "more sent than asked for",
            &[&control_frame(Control::Need { mailbox: victim, seq: 1, sent: 2, limit: 1 })],
        ),
        breaks("a shortage that is neither", &[&frame(0x0b, &[1, 2])]),
        breaks("a refusal for no reason", &[&frame(0x0d, &[0, 1])]),
        breaks("credit given back that it never had", &[&need(1 << 20), &back(MOST)]),
    ];
    for Attack { what, bytes, code, down } in attacks {
        let mut joined = fake.join(&world.a).await;
        joined.control.write(&bytes).await.unwrap();
        ends(&mut world, &fake, joined, what, code, down).await;
    }
    for finish in [false, true] {
        let Joined { link, control, frames, hello, _greeting } = fake.join(&world.a).await;
        let replaced = open(&link, &[0x47]).await;
        if finish {
            control.finish()
        } else {
            drop(control)
        }
        let joined = Joined { link, control: replaced, frames, hello, _greeting };
        ends(&mut world, &fake, joined, "no control stream any more", Code::PROTOCOL, DownReason::Protocol).await;
    }
    world.is_unharmed().await;
}

/// Pings that are sent faster than their answers are read are no way to fill memory.
#[tokio::test(start_paused = true)]
async fn a_flood_of_pings_ends_the_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    let pings: Vec<u8> = (0..1000).flat_map(|seq| control_frame(Control::Ping { seq: 1 << 30 | seq })).collect();
    while joined.control.write(&pings).await.is_ok() {}
    ends(&mut world, &fake, joined, "a flood of pings", Code::LIMIT, DownReason::Overloaded).await;
    world.is_unharmed().await;
}

/// Nor are messages to mailboxes that do not exist, or calls of methods that do not, whose refusals are not read.
#[tokio::test(start_paused = true)]
async fn a_flood_that_does_not_read_its_refusals_ends_the_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    for what in ["messages to nobody", "requests of credit at nobody", "calls of nothing"] {
        let mut joined = fake.join(&world.a).await;
        let mut lane = joined.open(&[LANE, &schema(0)].concat()).await;
        let mut calls = joined.open(CALLS).await;
        let mut at = 1_000_000;
        let written = async {
            loop {
                let frames = (at..at + 1000).flat_map(|n| match what {
                    "messages to nobody" => message_frame(n, 0, 0, &[]),
                    "calls of nothing" => call(n, "nothing", MOST),
                    _ => control_frame(Control::Need { mailbox: n, seq: 1, sent: 0, limit: 1 << 20 }),
                });
                let frames: Vec<u8> = frames.collect();
                at += 1000;
                let stream = match what {
                    "messages to nobody" => &mut lane,
                    "calls of nothing" => &mut calls,
                    _ => &mut joined.control,
                };
                if stream.write(&frames).await.is_err() {
                    return at;
                }
            }
        };
        let sent = timeout(secs(300), written).await.expect(what);
        assert!(sent < 1_700_000, "{what}: {sent}");
        ends(&mut world, &fake, joined, what, Code::LIMIT, DownReason::Overloaded).await;
    }
    world.is_unharmed().await;
}

/// Frames that mean nothing, or nothing any more, are no crime: they cross what they are about.
#[tokio::test(start_paused = true)]
async fn what_comes_too_late_is_ignored() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    for frame in [
        Control::Grant { mailbox: 77, seq: 1, limit: MOST },
        Control::Closed { mailbox: 77 },
        Control::Return { mailbox: 77, seq: 1, limit: MOST },
        Control::Pong { seq: 77 },
        Control::Pong { seq: MOST },
    ] {
        joined.control(frame).await;
    }
    let calls = [
        CALLS,
        &call_frame(&CallHead::Answer { id: 7, term: in_full("") }, &[1]),
        &call_frame(&CallHead::Item { id: 7, number: MOST, term: in_full("") }, &[1]),
        &call_frame(&CallHead::End { id: MOST, status: Status::Panicked, items: 0 }, &[]),
        &call_frame(&CallHead::End { id: 7, status: Status::Answered, items: MOST }, &[]),
        &call_frame(&CallHead::Credit { id: 7, limit: MOST }, &[]),
        &call_frame(&CallHead::Reply { serial: 1, secret: [7; 8], term: in_full("") }, &[1]),
        &call_frame(&CallHead::Cancel { id: MOST }, &[]),
    ];
    let mut stream = joined.open(&calls.concat()).await;
    assert!(joined.answers(1).await);

    // A call of an id that is in use is no second call; a cancel of it ends the first.
    stream.write(&call(5, "never", MOST)).await.unwrap();
    stream.write(&call(5, "double", 1000)).await.unwrap();
    stream.write(&call(6, "nothing", MOST)).await.unwrap();
    stream.write(&call(7, "nothing", 0)).await.unwrap();
    let mut odd = None;
    for _ in 0..2 {
        let mut frames = next_stream(&joined.link).await.unwrap();
        let Some(CallFrame { head: CallHead::End { id, status: Status::NoSuchMethod, .. }, .. }) =
            frames.next_call().await
        else {
            panic!("no refusal")
        };
        assert_eq!(frames.kind(), Some(StreamKind::Calls));
        if id == 7 {
            odd = Some(frames);
        }
    }
    assert_eq!(world.runs.load(Ordering::Relaxed), 1);
    stream.write(&call_frame(&CallHead::Cancel { id: 5 }, &[])).await.unwrap();
    stream.write(&call(5, "double", MOST)).await.unwrap();
    let answer = odd.unwrap().next_call().await;
    let CallFrame { head, body } = answer.unwrap();
    assert!(matches!(head, CallHead::Answer { id: 5, .. }) && body[..] == [42], "{head:?}");
    assert_eq!(world.runs.load(Ordering::Relaxed), 2);
    world.runs.store(0, Ordering::Relaxed);
    joined.link.close_as(0, b"");
    assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), DownReason::Disconnected));
    world.is_unharmed().await;
}

/// A byte at a time is no progress, whatever the frame.
#[tokio::test(start_paused = true)]
async fn a_frame_that_dribbles_is_cut_off() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    for (what, begin) in [
        ("a lane", [LANE, &announced(0x11, 1 << 20)].concat()),
        ("calls", [CALLS, &announced(0x20, 1 << 20)].concat()),
        ("a body", [BODY, &announced(0x11, 1 << 20)].concat()),
        ("something to be skipped", [LANE, &announced(0x7f, 1 << 20)].concat()),
    ] {
        let joined = fake.join(&world.a).await;
        let stream = joined.open(&begin).await;
        let dribbling = tokio::spawn(dribble(stream));
        let began = tokio::time::Instant::now();
        ends(&mut world, &fake, joined, what, Code::SLOW, DownReason::Overloaded).await;
        let took = began.elapsed();
        assert!((secs(29)..secs(33)).contains(&took), "{what}: {took:?}");
        dribbling.abort();
    }
    world.is_unharmed().await;
}

async fn dribble(mut stream: Sender) {
    while stream.write(&[0]).await.is_ok() {
        sleep(Duration::from_millis(500)).await;
    }
}

/// A stop that makes no sense ends the attacker's session, and is not waited for without end.
#[tokio::test(start_paused = true)]
async fn a_stop_that_makes_no_sense_is_not_waited_for() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    for code in [Code::IDLE, Code::DUPLICATE_LINK, Code::NORMAL, Code::STALE_INCARNATION, Code(u32::MAX)] {
        let mut joined = fake.join(&world.a).await;
        joined.control(Control::Stop { code, streams: MOST }).await;
        let closed = closed(&joined.link).await;
        assert_eq!(closed.code, Code::SLOW, "{code:?}");
        assert!(closed.after < secs(35), "{code:?}: {:?}", closed.after);
        world.up_and_down(&fake.id, DownReason::Overloaded, "STOP").await;
    }
    let mut joined = fake.join(&world.a).await;
    joined.control(Control::Stopped).await;
    joined.control(Control::Stop { code: Code::NORMAL, streams: 0 }).await;
    assert_eq!(closed(&joined.link).await.code, Code::NORMAL, "STOPPED before STOP");
    world.up_and_down(&fake.id, DownReason::Disconnected, "STOPPED before STOP").await;
    world.is_unharmed().await;
}

/// A peer that will not hear what it is owed has no use for a session.
#[tokio::test(start_paused = true)]
async fn a_peer_that_stops_the_nodes_streams_ends_its_session() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let Joined { link, control, frames, hello: _, _greeting } = fake.join(&world.a).await;
    frames.stop();
    let pinging = async {
        let mut control = control;
        while control.write(&control_frame(Control::Ping { seq: 1 })).await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let (closed, ()) = tokio::join!(closed(&link), pinging);
    assert_eq!(closed.code, Code::PROTOCOL);
    world.up_and_down(&fake.id, DownReason::Protocol, "the control stream").await;
    world.is_unharmed().await;
}

/// Streams that nobody reads are not given to a peer: it would fill them.
#[tokio::test(start_paused = true)]
async fn there_is_no_second_bidirectional_stream() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let Joined { link, control, frames, hello: _, _greeting } = fake.join(&world.a).await;
    let (send, _recv) = _greeting;
    send.finish();
    sleep(secs(1)).await;
    assert!(timeout(secs(10), link.open_greeting()).await.is_err());
    link.close_as(0, b"");
    world.up_and_down(&fake.id, DownReason::Disconnected, "a good one").await;
    drop((control, frames));
    world.is_unharmed().await;
}

/// What the peer says at the end of a link is why it ended, also to a node that was writing.
#[tokio::test(start_paused = true)]
async fn the_peers_reason_is_the_reason() {
    let mut world = World::new().await;
    for (life, (code, down)) in (1_000..).zip([
        (Code::SHUTDOWN, DownReason::Left),
        (Code::NORMAL, DownReason::Disconnected),
        (Code::LIMIT, DownReason::Overloaded),
        (Code::LOST, DownReason::Lost),
        (Code(0x7777_7777), DownReason::Protocol),
    ]) {
        let mut fake = world.member("x@10.0.0.9:4370");
        fake.id = NodeId::new(fake.name().clone(), life);
        let joined = fake.join(&world.a).await;
        assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
        // The fake grants credit and reads nothing, so a writer of the node waits in the middle of a stream.
        let session = world.a.shared().session(fake.name()).unwrap();
        let number = session.declare(&number_schema());
        for mailbox in 0..400 {
            let _ = session.offer(mailbox, number.unwrap(), None, Body::Borrowed(&[0; 60_000]), false);
            sleep(Duration::from_millis(20)).await;
        }
        joined.link.close_as(code.0.into(), b"");
        assert_eq!(world.next_event().await, NodeEvent::Down(fake.id.clone(), down), "{code:?}");
        drop((joined, fake));
        sleep(secs(10)).await;
    }
    world.is_unharmed().await;
}

/// Frames that are announced large and stop short of their end take no more than their share, whatever their number.
#[tokio::test(start_paused = true)]
async fn frames_in_the_making_are_bounded() {
    const MIB: usize = 1 << 20;
    let mut config = Config { message_max: MIB, bulk_budget: 2 * MIB, stream_window: 64 << 10, ..Config::default() };
    config.frame_timeout = secs(20);
    let mut world = World::with(config).await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    let mut streams = tokio::task::JoinSet::new();
    let taken = Arc::new(AtomicUsize::new(0));
    for n in 0..30 {
        let mut stream = joined.open(if n % 2 == 0 { LANE } else { CALLS }).await;
        let taken = taken.clone();
        streams.spawn(async move {
            stream.write(&announced(if n % 2 == 0 { 0x11 } else { 0x20 }, MIB as u64)).await.unwrap();
            for _ in 0..MIB / 1024 - 1 {
                if stream.write(&[1; 1024]).await.is_err() {
                    break;
                }
                taken.fetch_add(1024, Ordering::Relaxed);
            }
            std::future::pending::<()>().await;
        });
    }
    sleep(secs(10)).await;
    let taken = taken.load(Ordering::Relaxed);
    assert!((MIB..2 * MIB + 30 * (64 << 10)).contains(&taken), "{taken}");
    ends(&mut world, &fake, joined, "none of them ends", Code::SLOW, DownReason::Overloaded).await;
    world.is_unharmed().await;
}

/// Large messages of an honest peer wait for one another, and all arrive.
#[tokio::test(start_paused = true)]
async fn large_frames_take_turns() {
    const MIB: usize = 1 << 20;
    let config = Config { message_max: MIB, bulk_budget: MIB, call_streams: 8, ..Config::default() };
    let mut world = World::with(config.clone()).await;
    let c = node(&world.fabric, &world.cookie, "c@10.0.0.3:4370", config).await;
    let length: Method<Vec<u8>, u64> = Method::new("length");
    let _ = world.a.rpc().serve(length.clone(), |_, bytes| async move { bytes.len() as u64 });
    let mut work = tokio::task::JoinSet::new();
    for n in 0..12 {
        let mut inbox = world.a.mailbox::<Vec<u8>>();
        let there = inbox.address().bind(&c);
        work.spawn(async move {
            there.send(vec![n; 900_000]).await.unwrap();
            assert_eq!(inbox.recv().await.map(|bytes| bytes.len()), Some(900_000));
        });
        let (rpc, a, length) = (c.rpc(), world.a.name().clone(), length.clone());
        work.spawn(async move {
            let answer = rpc.call(&a, length, vec![n; 900_000]).timeout(secs(60)).await;
            assert_eq!(answer, Ok(900_000));
        });
    }
    timeout(secs(60), work.join_all()).await.expect("nobody waits for ever");
    assert_eq!(world.next_event().await, NodeEvent::Up(c.id()));
    c.shutdown().await;
    assert_eq!(world.next_event().await, NodeEvent::Down(c.id(), DownReason::Left));
    world.is_unharmed().await;
}
