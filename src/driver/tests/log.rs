//! What the log and the counts tell of a peer that keeps no rules.

use tracing::Level;

use super::captured::Log;
use super::fake::{message_frame, number_schema, schema_frame};
use super::*;
use crate::wire::put_varint;

const LANE: &[u8] = &[2];
const SERVICES: &[u8] = &[7];

/// What ends a session, and as what it is told.
struct Attack {
    what: &'static str,
    bytes: Vec<u8>,
    message: &'static str,
}

/// Each frame that ends a session is one warning that names the peer, and one count; the lost session is another.
#[tokio::test(start_paused = true)]
async fn a_frame_that_ends_a_session_is_told_once() {
    let mut world = World::new().await;
    let victim = world.victim.pid().serial();
    let mut endless = vec![0x7f];
    put_varint(&mut endless, 1 << 40);
    let rejected = |what, parts: &[&[u8]]| Attack { what, bytes: parts.concat(), message: "rejected a frame" };
    let attacks = [
        rejected("noise", &[LANE, &[0x1d; 100]]),
        rejected("a message of a schema that was not declared", &[LANE, &message_frame(victim, 0, 0, &[7])]),
        rejected(
            "a message above its credit",
            &[LANE, &schema_frame(0, &number_schema()), &message_frame(victim, 0, 0, &vec![0; 64 << 10])],
        ),
        rejected("a frame that is too large", &[LANE, &endless]),
        rejected("noise of the services", &[SERVICES, &[0x1d; 100]]),
        rejected("a stream of no kind", &[&[0x3f, 1, 2, 3]]),
        Attack {
            what: "a schema beyond the last",
            bytes: [LANE, &schema_frame(4096, &number_schema())].concat(),
            message: "forced disconnect",
        },
    ];
    let fake = world.member("x@10.0.0.9:4370");
    for Attack { what, bytes, message } in attacks {
        let (log, _listening) = Log::listen(Level::INFO);
        let before = world.a.stats().incidents;
        let joined = fake.join(&world.a).await;
        let _stream = joined.open(&bytes).await;
        assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()), "{what}");
        assert!(matches!(world.next_event().await, NodeEvent::Down(id, _) if id == fake.id), "{what}");
        let (told, lost) = (log.only(message), log.only("session lost"));
        for line in [&told, &lost] {
            assert_eq!((line.level, line.field("peer")), (Level::WARN, &*fake.id.to_string()), "{what}");
        }
        let warnings = log.lines().into_iter().filter(|line| line.level <= Level::WARN).count();
        assert_eq!(warnings, 2, "{what}: {log:?}");
        let after = world.a.stats().incidents;
        let counted = [
            after.frames_rejected - before.frames_rejected,
            after.disconnects_forced - before.disconnects_forced,
            after.sessions_lost - before.sessions_lost,
        ];
        let expected = if message == "rejected a frame" { [1, 0, 1] } else { [0, 1, 1] };
        assert_eq!(counted, expected, "{what}");
    }
    world.is_unharmed().await;
}

/// What may be skipped is skipped, counted, and no warning.
#[tokio::test(start_paused = true)]
async fn what_is_skipped_is_counted() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    assert_eq!(world.next_event().await, NodeEvent::Up(fake.id.clone()));
    let (log, _listening) = Log::listen(Level::TRACE);
    let skipped = [&[0x40, 0][..], &[0x41, 1, 7], &[0x7f, 0x4f, 0xff], &[0x55; 0xfff]].concat();
    let _streams = [joined.open(&[LANE, &skipped].concat()).await, joined.open(&[0x40, 1, 2, 3]).await];
    joined.control.write(&skipped).await.unwrap();
    assert!(joined.answers(7).await, "what follows is read");
    let counted = async {
        while world.a.stats().incidents.frames_skipped < 3 + 1 + 3 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(secs(5), counted).await.expect("all are counted");
    assert_eq!(log.of("skipped a frame").len(), 7);
    assert!(log.lines().iter().all(|line| line.level > Level::WARN), "{log:?}");
    world.talk().await;
}
