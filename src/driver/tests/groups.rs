//! Broadcasts between real nodes, and to a peer that keeps only some of the rules. Who is a member elsewhere is told here
//! as the node task would tell it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::fake::{Frames, Joined, copies_frame, next_stream, number_schema, schema_frame};
use super::*;
use crate::driver::session::COPIES_WAITING_MAX;
use crate::groups::{Group, Outcome, Report};
use crate::id::Pid;
use crate::message::{Message, schema};
use crate::proto::replication::Cause;
use crate::wire::{Code, Control, CopiesFrame, LaneFrame, StreamKind};

const NUMBERS: Group<u64> = Group::new("numbers");
const PARTS: Group<Part> = Group::new("parts");

/// A message of any size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Part {
    number: u64,
    filler: Bytes,
}

impl Message for Part {
    const TAG: &'static str = "test.part";
    const VERSION: u32 = 1;
}

/// A node learns of members elsewhere.
fn tell<M: Message>(node: &Node, group: &Group<M>, members: impl IntoIterator<Item = Pid>) {
    for pid in members {
        let tag = schema::<M>().tag.into();
        node.shared().groups.apply("", group.name().into(), pid, tag, 1, Cause::Written);
    }
}

fn outcomes(report: &Report) -> Vec<Outcome> {
    report.outcomes().map(|(_, outcome)| outcome).collect()
}

async fn broadcast(node: &Node, number: u64) -> Report {
    node.groups().broadcast(NUMBERS, &number).await.unwrap()
}

/// Two nodes that have talked.
async fn pair(config: Config) -> (Node, Node) {
    let (fabric, cookie) = (Fabric::new(3), Cookie::generate());
    let a = node(&fabric, &cookie, "a@10.0.0.1:4370", config.clone()).await;
    let b = node(&fabric, &cookie, "b@10.0.0.2:4370", config).await;
    a.cluster().connect(b.name()).await.unwrap();
    (a, b)
}

/// Members on both nodes, some of them twice as slow, get direct messages and broadcasts of all sizes: each member gets what
/// was reported as delivered to it, in the order of sending.
#[tokio::test(start_paused = true)]
async fn broadcasts_and_direct_sends_keep_one_order() {
    for seed in 0..6 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (a, b) = pair(Config::default()).await;
        let members = [a.mailbox::<Part>(), b.mailbox(), b.mailbox(), b.mailbox()];
        a.groups().join(PARTS, &members[0]).unwrap();
        tell(&a, &PARTS, members[1..].iter().map(Mailbox::pid));
        let addresses: Vec<_> = members.iter().map(|member| member.address().bind(&a)).collect();
        let readers = members.map(|mut member| {
            tokio::spawn(async move {
                let mut numbers = Vec::new();
                while let Some(part) = member.recv().await {
                    if part.number == u64::MAX {
                        break;
                    }
                    numbers.push(part.number);
                    if part.number.is_multiple_of(7) {
                        sleep(Duration::from_millis(3)).await;
                    }
                }
                numbers
            })
        });
        let mut sent = vec![Vec::new(); 4];
        let mut reports = Vec::new();
        for number in 0..120 {
            // Small ones, those that are larger than a lane's credit, and those with a stream of their own.
            let size = [0, 10, 3_000, 40_000, 70_000, 300_000][rng.usize(..6)];
            let part = Part { number, filler: vec![7; size].into() };
            let to = rng.usize(..8);
            if to < 4 {
                addresses[to].send(part).await.unwrap();
                sent[to].push((number, None));
            } else {
                // The next message is sent before the answer has come.
                let mut report = Box::pin(a.groups().broadcast(PARTS, &part).into_future());
                let first = std::future::poll_fn(|context| std::task::Poll::Ready(report.as_mut().poll(context))).await;
                reports.push(tokio::spawn(async move {
                    match first {
                        std::task::Poll::Ready(report) => report,
                        std::task::Poll::Pending => report.await,
                    }
                }));
                sent.iter_mut().for_each(|sent| sent.push((number, Some(reports.len() - 1))));
            }
        }
        let mut told = Vec::new();
        for report in reports {
            told.push(report.await.unwrap().unwrap());
        }
        for address in &addresses {
            address.send(Part { number: u64::MAX, filler: Bytes::new() }).await.unwrap();
        }
        assert!(told.iter().any(Report::is_complete), "seed {seed}");
        for ((reader, sent), address) in readers.into_iter().zip(sent).zip(addresses) {
            let has_it = |report: usize| told[report].outcome(address.pid()) == Some(Outcome::Delivered);
            let expected: Vec<_> =
                sent.into_iter().filter(|(_, report)| report.is_none_or(has_it)).map(|(number, _)| number).collect();
            assert_eq!(reader.await.unwrap(), expected, "seed {seed}");
        }
    }
}

/// A member that does not read is left out when its credit is used up; the others get every message; and what it had was
/// never more than its credit.
#[tokio::test(start_paused = true)]
async fn a_stuck_member_holds_up_nobody() {
    let (a, b) = pair(Config::default()).await;
    let (mut stuck, mut reads) = (b.mailbox::<u64>(), b.mailbox::<u64>());
    tell(&a, &NUMBERS, [stuck.pid(), reads.pid()]);
    let mut had = 0;
    for number in 0..1000 {
        let report = broadcast(&a, number).await;
        assert_eq!(report.outcome(&reads.pid()), Some(Outcome::Delivered));
        match report.outcome(&stuck.pid()) {
            Some(Outcome::Delivered) => had += 1,
            outcome => assert_eq!(outcome, Some(Outcome::Full)),
        }
        assert_eq!(reads.recv().await, Some(number));
    }
    assert!((200..=(32 << 10) / 128).contains(&had), "{had} messages");
    for number in 0..had {
        assert_eq!(stuck.try_recv(), Ok(number));
    }
    assert_eq!(stuck.try_recv(), Err(RecvError::Empty));
}

/// Closed is told by the node the first time, and is known here the second. One member is of a later type.
#[tokio::test(start_paused = true)]
async fn each_member_has_its_own_outcome() {
    let (a, b) = pair(Config::default()).await;
    let (mut open, closed, mut here) = (b.mailbox::<u64>(), b.mailbox::<u64>(), a.mailbox::<u64>());
    let (open_pid, closed_pid) = (open.pid(), closed.pid());
    let other = b.mailbox::<String>();
    drop(closed);
    a.groups().join(NUMBERS, &here).unwrap();
    tell(&a, &NUMBERS, [open_pid.clone(), closed_pid.clone()]);
    tell(&a, &Group::<String>::new("numbers"), [other.pid()]);
    assert_eq!(a.groups().count(NUMBERS), 4);
    for number in [1, 2] {
        let report = broadcast(&a, number).await;
        assert_eq!(report.outcome(&closed_pid), Some(Outcome::Closed));
        assert_eq!([&open_pid, &here.pid()].map(|pid| report.outcome(pid)), [Some(Outcome::Delivered); 2]);
        assert_eq!((report.outcome(&other.pid()), report.len(), report.is_complete()), (None, 3, false));
        assert_eq!((open.recv().await, here.recv().await), (Some(number), Some(number)));
    }
    let report = a.groups().broadcast(NUMBERS, &3).local().await.unwrap();
    assert_eq!((report.len(), report.delivered(), open.try_recv()), (1, 1, Err(RecvError::Empty)));
    let report = a.groups().broadcast(NUMBERS, &4).except(&here).except(&closed_pid).await.unwrap();
    assert_eq!((outcomes(&report), open.recv().await), (vec![Outcome::Delivered], Some(4)));
    assert_eq!((here.try_recv(), here.try_recv()), (Ok(3), Err(RecvError::Empty)));
}

/// Nodes without a session are dialled; meanwhile the others have the message. One is not there: that is known at the
/// deadline.
#[tokio::test(start_paused = true)]
async fn nodes_without_a_session_are_dialled() {
    let (fabric, cookie) = (Fabric::new(3), Cookie::generate());
    let a = node(&fabric, &cookie, "a@10.0.0.1:4370", Config::default()).await;
    let b = node(&fabric, &cookie, "b@10.0.0.2:4370", Config::default()).await;
    let c = node(&fabric, &cookie, "c@10.0.0.3:4370", Config::default()).await;
    a.cluster().connect(b.name()).await.unwrap();
    let (mut near, mut far) = (b.mailbox::<u64>(), c.mailbox::<u64>());
    let nowhere = Pid::new(NodeId::new("x@10.0.0.9:4370".parse().unwrap(), 1), 1);
    let earlier = Pid::new(NodeId::new(b.name().clone(), 1), 1);
    tell(&a, &NUMBERS, [near.pid(), far.pid(), nowhere.clone(), earlier.clone()]);
    let sending = tokio::spawn(a.groups().broadcast(NUMBERS, &7).timeout(secs(2)).into_future());
    assert_eq!(near.recv().await, Some(7));
    assert_eq!(far.recv().await, Some(7));
    assert!(!sending.is_finished());
    let began = tokio::time::Instant::now();
    let report = sending.await.unwrap().unwrap();
    assert!(began.elapsed() <= secs(2));
    let of = |pid: &Pid| report.outcome(pid).unwrap();
    assert_eq!([of(&near.pid()), of(&far.pid())], [Outcome::Delivered; 2]);
    assert_eq!([of(&nowhere), of(&earlier)], [Outcome::NotConnected; 2]);
}

/// A frame holds as many copies as the peer takes next to the body: here the body is as large as may be.
#[tokio::test(start_paused = true)]
async fn the_largest_message_goes_in_several_frames() {
    let config = Config { message_max: 100_000, lane_window: 150_000, lane_window_max: 150_000, ..Config::default() };
    let (a, b) = pair(config).await;
    let mut members: Vec<_> = (0..130).map(|_| b.mailbox::<Bytes>()).collect();
    let group = Group::<Bytes>::new("large");
    tell(&a, &group, members.iter().map(Mailbox::pid));
    let body = Bytes::from(vec![7; 100_000]);
    let report = a.groups().broadcast(group.clone(), &body).await.unwrap();
    assert_eq!((report.len(), report.delivered()), (130, 130));
    for member in &mut members {
        assert_eq!(member.recv().await.as_ref(), Some(&body));
    }
    let larger = Bytes::from(vec![7; 100_001]);
    let error = crate::error::BroadcastError::TooLarge { size: 100_001, max: 100_000 };
    assert_eq!(a.groups().broadcast(group, &larger).await, Err(error));
}

/// The next frame of copies on a stream of lanes.
async fn next_copies(frames: &mut Frames) -> CopiesFrame {
    loop {
        match LaneFrame::decode(frames.next().await.unwrap()).unwrap() {
            Some(LaneFrame::Copies(copies)) => return copies,
            Some(LaneFrame::Schema { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A peer with so many members, and the stream that the first broadcast comes on.
async fn with_members(world: &World, members: u64) -> (Fake, Joined, Vec<Pid>) {
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    let pids: Vec<_> = (1..=members).map(|serial| Pid::new(fake.id.clone(), serial)).collect();
    tell(&world.a, &NUMBERS, pids.clone());
    (fake, joined, pids)
}

/// One node, one frame, one body; 4,096 members to a frame. The answers say who is closed.
#[tokio::test(start_paused = true)]
async fn all_members_of_a_node_share_one_frame() {
    let world = World::new().await;
    let (_fake, mut joined, pids) = with_members(&world, 4097).await;
    let sending = tokio::spawn(world.a.groups().broadcast(NUMBERS, &300).into_future());
    let mut frames = next_stream(&joined.link).await.unwrap();
    assert_eq!(frames.kind(), Some(StreamKind::Lane));
    let (first, second) = (next_copies(&mut frames).await, next_copies(&mut frames).await);
    assert_eq!(first.head.to, (1..=4096).map(|mailbox| (mailbox, 0)).collect::<Vec<_>>());
    assert_eq!(second.head.to, [(4097, 0)]);
    assert!(first.body.len() < 8 && first.body == second.body);
    joined.control(Control::Delivered { id: second.head.id, closed: vec![] }).await;
    joined.control(Control::Delivered { id: first.head.id, closed: vec![4096, 1, 9999] }).await;
    let report = sending.await.unwrap().unwrap();
    assert_eq!((report.len(), report.delivered(), report.count(Outcome::Closed)), (4097, 4095, 2));
    assert_eq!([&pids[0], &pids[4095]].map(|pid| report.outcome(pid)), [Some(Outcome::Closed); 2]);
}

/// No answer by the deadline, and a session that ends before it, are known as what they are.
#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_is_reported() {
    let world = World::new().await;
    let (_fake, mut joined, _) = with_members(&world, 3).await;
    let report = world.a.groups().broadcast(NUMBERS, &1).timeout(secs(1)).await.unwrap();
    assert_eq!(outcomes(&report), [Outcome::NoAnswer; 3]);
    let mut frames = next_stream(&joined.link).await.unwrap();
    let late = next_copies(&mut frames).await;
    joined.control(Control::Delivered { id: late.head.id, closed: vec![] }).await;
    assert!(joined.answers(1).await, "a late answer is no offence");

    let sending = tokio::spawn(world.a.groups().broadcast(NUMBERS, &2).timeout(secs(3600)).into_future());
    assert_eq!(next_copies(&mut frames).await.head.to, [(1, 1), (2, 1), (3, 1)]);
    joined.link.close_as(0, b"");
    assert_eq!(outcomes(&sending.await.unwrap().unwrap()), [Outcome::NoAnswer; 3]);
}

/// Two answers to one frame are an offence.
#[tokio::test(start_paused = true)]
async fn an_answer_comes_once() {
    let mut world = World::new().await;
    let (fake, mut joined, _) = with_members(&world, 1).await;
    let sending = tokio::spawn(world.a.groups().broadcast(NUMBERS, &1).into_future());
    let id = next_copies(&mut next_stream(&joined.link).await.unwrap()).await.head.id;
    joined.control(Control::Delivered { id, closed: vec![] }).await;
    assert_eq!(outcomes(&sending.await.unwrap().unwrap()), [Outcome::Delivered]);
    joined.control(Control::Delivered { id, closed: vec![] }).await;
    assert_eq!(fake::closed(&joined.link).await.code, Code::PROTOCOL);
    world.up_and_down(&fake.id, DownReason::Protocol, "twice").await;
    world.is_unharmed().await;
}

/// What a peer does not answer is bounded: then broadcasts to it are full, before anything is kept.
#[tokio::test(start_paused = true)]
async fn unanswered_broadcasts_are_bounded() {
    let world = World::new().await;
    let (fake, joined, _) = with_members(&world, 1).await;
    let reading = tokio::spawn(async move {
        let mut frames = next_stream(&joined.link).await.unwrap();
        while frames.next().await.is_some() {}
    });
    let session = world.a.shared().session(fake.name()).unwrap();
    let schema = session.declare(&number_schema()).unwrap();
    let offer = |mailbox| session.offer_copies(&[mailbox], schema, None, &Bytes::new(), 0).offered[0];
    for mailbox in 1..=COPIES_WAITING_MAX as u64 {
        while offer(mailbox % 1000).is_err() {
            // The way to the peer has to be emptied.
            sleep(Duration::from_millis(10)).await;
        }
    }
    sleep(secs(1)).await;
    assert_eq!(offer(1001), Err(crate::driver::waiting::Refused::Full));
    reading.abort();
}

/// A peer that broadcasts to mailboxes which do not exist, and does not read that they do not, reaches its limit.
#[tokio::test(start_paused = true)]
async fn answers_that_nobody_reads_are_bounded() {
    let mut world = World::new().await;
    let fake = world.member("x@10.0.0.9:4370");
    let joined = fake.join(&world.a).await;
    let mut stream = joined.open(&[StreamKind::Lane.to_byte()]).await;
    stream.write(&schema_frame(0, &number_schema())).await.unwrap();
    let to: Vec<_> = (0..4096).map(|mailbox| (1 << 40 | mailbox, 0)).collect();
    for id in 0.. {
        if stream.write(&copies_frame(id, 0, to.clone(), &[7])).await.is_err() {
            break;
        }
        assert!(id < 10_000, "nobody minds");
    }
    assert_eq!(fake::closed(&joined.link).await.code, Code::LIMIT);
    world.up_and_down(&fake.id, DownReason::Overloaded, "flooded").await;
    world.is_unharmed().await;
}

/// Copies that come before what they follow wait for it, and go to whoever they are for.
#[tokio::test(start_paused = true)]
async fn an_early_copy_waits_for_its_turn() {
    let mut world = World::new().await;
    let (victim, mut other) = (world.victim.pid().serial(), world.a.mailbox::<u64>());
    let fake = world.member("x@10.0.0.9:4370");
    let mut joined = fake.join(&world.a).await;
    let to = vec![(victim, 1), (other.pid().serial(), 0), (1 << 40, 5)];
    let lane = [&[2][..], &schema_frame(0, &number_schema()), &copies_frame(9, 0, to, &[8])].concat();
    let mut lane = joined.open(&lane).await;
    assert_eq!(other.recv().await, Some(8));
    assert_eq!(world.victim.try_recv(), Err(RecvError::Empty));
    lane.write(&fake::message_frame(victim, 0, 0, &[7])).await.unwrap();
    assert_eq!((world.victim.recv().await, world.victim.recv().await), (Some(7), Some(8)));
    let mut answered = None;
    while answered.is_none() {
        if let Some(Control::Delivered { id, closed }) = joined.frames.next_control().await {
            answered = Some((id, closed));
        }
    }
    assert_eq!(answered, Some((9, vec![1 << 40])));
}

/// A node that goes on as another incarnation keeps its members, by their new names.
#[tokio::test(start_paused = true)]
async fn members_go_on_with_their_node() {
    let (a, _b) = pair(Config::default()).await;
    let member = a.mailbox::<u64>();
    a.groups().join(NUMBERS, &member).unwrap();
    a.groups().join(NUMBERS, &member).unwrap();
    let next = NodeId::new(a.name().clone(), a.id().incarnation() + 1);
    a.shared().renew_groups(&next);
    let members: Vec<_> =
        a.groups().memberships(NUMBERS).into_iter().map(|member| (member.pid, member.count)).collect();
    assert_eq!(members, [(Pid::new(next, member.pid().serial()), 2)]);
    drop(member);
    assert_eq!(a.groups().groups(), [] as [Arc<str>; 0]);
}
