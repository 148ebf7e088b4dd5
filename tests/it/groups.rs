//! Groups of mailboxes, on one node and in a cluster.

use std::time::Duration;

use distribute::sim::Conditions;
use distribute::{
    Config, Group, GroupEvent, GroupEvents, JoinError, LeaveError, LeftReason, Mailbox, Message, Node, Outcome, Pid,
    RecvError, ReplyTo, ScopeError,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use crate::common::{World, ip, millis, secs};

const NUMBERS: Group<u64> = Group::new("numbers");
const OTHERS: Group<u64> = Group::new("others");

/// Within so long after a change everybody knows it, also that a node is dead.
const SOON: Duration = Duration::from_secs(60);

#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    reply_to: ReplyTo<u64>,
}

impl Message for Ask {
    const TAG: &'static str = "test.ask";
    const VERSION: u32 = 1;
}

const ASKED: Group<Ask> = Group::new("asked");

/// Who is in a group, and how often.
fn listed(node: &Node, group: &Group<u64>) -> Vec<(Pid, u32)> {
    node.groups().memberships(group.clone()).into_iter().map(|member| (member.pid, member.count)).collect()
}

/// The same of several mailboxes, in order.
fn counted<'a>(mailboxes: impl IntoIterator<Item = (&'a Mailbox<u64>, u32)>) -> Vec<(Pid, u32)> {
    let mut counted: Vec<_> = mailboxes.into_iter().map(|(mailbox, count)| (mailbox.pid(), count)).collect();
    counted.sort();
    counted
}

/// Waits until a node lists this, and nothing else.
async fn lists(node: &Node, group: &Group<u64>, expected: Vec<(Pid, u32)>) {
    let mut events = node.groups().subscribe(group.clone());
    let listing = async {
        while listed(node, group) != expected {
            events.next().await.expect("the node lives");
        }
    };
    let done = timeout(SOON, listing).await;
    assert!(done.is_ok(), "{node:?} lists {:?}, not {expected:?}", listed(node, group));
}

async fn next(events: &mut GroupEvents) -> GroupEvent {
    timeout(SOON, events.next()).await.expect("an event").expect("the node lives")
}

/// What is read of an event: how often somebody came or went, how often it is in now, and why it went.
fn read(event: GroupEvent) -> (Pid, i64, u32, Option<LeftReason>) {
    match event {
        GroupEvent::Joined { member, times, .. } => (member.pid, times.into(), member.count, None),
        GroupEvent::Left { member, times, reason, .. } => (member.pid, -i64::from(times), member.count, Some(reason)),
        other => panic!("{other:?}"),
    }
}

fn snapshot(event: GroupEvent) -> Vec<(Pid, u32)> {
    let GroupEvent::Snapshot(members) = event else { panic!("{event:?}") };
    members.into_iter().map(|member| (member.pid, member.count)).collect()
}

/// Members of one cluster that see each other, all through the first.
async fn cluster(world: &World, hosts: u8) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for host in 1..=hosts {
        let mut builder = world.builder(&format!("n{host}"), host).config(Config::local());
        if let Some(first) = nodes.first() {
            builder = builder.join(first.name());
        }
        nodes.push(builder.start().await.unwrap());
    }
    for node in &nodes {
        node.membership().wait_for_alive(hosts.into()).await.unwrap();
    }
    nodes
}

/// Each join counts, and each leave takes one back; the last one takes the group out of every listing.
#[tokio::test(start_paused = true)]
async fn a_mailbox_is_a_member_until_it_has_left_as_often_as_it_joined() {
    let node = World::new(1).node("a", 1).await;
    let groups = node.groups();
    let member = node.mailbox();
    for count in 1..=3 {
        groups.join(NUMBERS, &member).unwrap();
        assert_eq!(listed(&node, &NUMBERS), [(member.pid(), count)]);
    }
    assert_eq!((groups.members(NUMBERS), groups.count(NUMBERS)), (vec![member.address()], 1));
    assert_eq!(groups.groups().iter().map(|name| &**name).collect::<Vec<_>>(), ["numbers"]);
    assert_eq!(groups.broadcast(NUMBERS, &7).await.unwrap().len(), 1, "one message, however often it joined");
    for count in [2, 1] {
        groups.leave(NUMBERS, &member).unwrap();
        assert_eq!(listed(&node, &NUMBERS), [(member.pid(), count)]);
    }
    groups.leave(NUMBERS, &member).unwrap();
    assert_eq!((listed(&node, &NUMBERS), groups.groups().len()), (vec![], 0));
    assert_eq!(groups.leave(NUMBERS, &member), Err(LeaveError::NotJoined(member.pid())));
    assert_eq!(groups.leave(OTHERS, &member), Err(LeaveError::NotJoined(member.pid())));
}

/// A task that reads a mailbox has it to itself, and whoever has its address takes it out of the group.
#[tokio::test(start_paused = true)]
async fn a_member_that_another_task_reads_leaves_by_its_address() {
    let (a, b) = World::new(1).pair().await;
    let mut member = a.mailbox();
    a.groups().join(NUMBERS, &member).unwrap();
    let address = member.address();
    let reading = tokio::spawn(async move { (member.recv().await, member.recv().await) });
    assert_eq!(a.groups().broadcast(NUMBERS, &7).await.unwrap().len(), 1);
    let elsewhere = b.groups().leave(NUMBERS, &address);
    assert_eq!(elsewhere, Err(LeaveError::NotJoined(address.pid().clone())), "its own node alone takes it out");
    a.groups().leave(NUMBERS, &address).unwrap();
    assert_eq!(a.groups().broadcast(NUMBERS, &8).await.unwrap().len(), 0);
    address.send(9).await.unwrap();
    assert_eq!(reading.await.unwrap(), (Some(7), Some(9)), "the mailbox is open");
    assert_eq!(a.groups().leave(NUMBERS, address.pid()), Err(LeaveError::NotJoined(address.pid().clone())));
}

/// A mailbox of another node, and a scope that is not taken part in, are errors, and nothing has changed.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_joined_says_why() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let mailbox = b.mailbox();
    assert_eq!(a.groups().join(NUMBERS, &mailbox), Err(JoinError::NotLocal(mailbox.pid())));
    assert_eq!(a.groups().leave(NUMBERS, &mailbox), Err(LeaveError::NotJoined(mailbox.pid())));
    assert_eq!(a.groups().groups().len(), 0);
    assert_eq!(a.groups().in_scope("x").unwrap_err(), ScopeError::NotInScope("x".to_owned()));
    assert!(a.groups().in_scope("").is_ok());
    b.shutdown().await;
    assert_eq!(b.groups().join(NUMBERS, &mailbox), Err(JoinError::Shutdown));
}

/// The last membership that a node may have, and one more. Joining once more takes none.
#[tokio::test(start_paused = true)]
async fn memberships_are_bounded() {
    let mut config = Config::default();
    config.groups_max = 2;
    let node = World::new(1).builder("a", 1).config(config).start().await.unwrap();
    let (one, two) = (node.mailbox(), node.mailbox());
    node.groups().join(NUMBERS, &one).unwrap();
    node.groups().join(NUMBERS, &two).unwrap();
    node.groups().join(NUMBERS, &two).unwrap();
    assert_eq!(node.groups().join(OTHERS, &one), Err(JoinError::TooMany(2)));
    drop(two);
    assert_eq!(node.groups().join(OTHERS, &one), Ok(()));
}

/// A subscriber has what there is, then exactly what follows, however it comes about.
#[tokio::test(start_paused = true)]
async fn subscribers_read_each_change_once() {
    let node = World::new(1).node("a", 1).await;
    let groups = node.groups();
    let (one, two) = (node.mailbox(), node.mailbox());
    groups.join(NUMBERS, &one).unwrap();
    let (mut events, mut all) = (groups.subscribe(NUMBERS), groups.subscribe_all());
    groups.join(NUMBERS, &two).unwrap();
    groups.join(NUMBERS, &two).unwrap();
    groups.join(OTHERS, &two).unwrap();
    groups.leave(NUMBERS, &one).unwrap();
    let (one_pid, two_pid) = (one.pid(), two.pid());
    drop((one, two));
    let left = Some(LeftReason::Left);
    assert_eq!(snapshot(next(&mut events).await), [(one_pid.clone(), 1)]);
    let expected = [
        (two_pid.clone(), 1, 1, None),
        (two_pid.clone(), 1, 2, None),
        (one_pid.clone(), -1, 0, left),
        (two_pid.clone(), -2, 0, left),
    ];
    for expected in expected {
        assert_eq!(read(next(&mut events).await), expected);
    }
    assert_eq!(snapshot(next(&mut all).await), [(one_pid, 1)]);
    let mut names = Vec::new();
    for _ in 0..6 {
        match next(&mut all).await {
            GroupEvent::Joined { member, .. } => names.push(format!("+{}", member.group)),
            GroupEvent::Left { member, times, .. } => names.push(format!("-{times} {}", member.group)),
            other => panic!("{other:?}"),
        }
    }
    let expected = ["+numbers", "+numbers", "+others", "-1 numbers", "-2 numbers", "-1 others"];
    assert_eq!(names, expected);
    node.shutdown().await;
    assert_eq!((events.next().await, all.next().await), (None, None));
}

/// The last event that is kept for a slow subscriber, and one more.
#[tokio::test(start_paused = true)]
async fn a_slow_subscriber_begins_again() {
    let mut config = Config::default();
    config.events_max = 4;
    let node = World::new(1).builder("a", 1).config(config).start().await.unwrap();
    let member = node.mailbox();
    let mut events = node.groups().subscribe(NUMBERS);
    (0..3).for_each(|_| node.groups().join(NUMBERS, &member).unwrap());
    assert_eq!(snapshot(next(&mut events).await), []);
    for count in 1..=3 {
        assert_eq!(read(next(&mut events).await).2, count);
    }
    (0..5).for_each(|_| node.groups().join(NUMBERS, &member).unwrap());
    assert_eq!(next(&mut events).await, GroupEvent::Lagged);
    assert_eq!(snapshot(next(&mut events).await), [(member.pid(), 8)]);
}

/// Nobody to send to is no error.
#[tokio::test(start_paused = true)]
async fn an_empty_group_is_told_nothing() {
    let node = World::new(1).node("a", 1).await;
    let report = node.groups().broadcast(NUMBERS, &7).await.unwrap();
    assert_eq!((report.len(), report.is_complete()), (0, true));
    assert!(node.groups().pick(NUMBERS).first().is_none());
    assert!(node.groups().pick(NUMBERS).random().is_none());
    assert!(node.groups().pick(NUMBERS).nearest().is_none());
    let gathered = node.groups().gather(ASKED, |reply_to| Ask { reply_to }).await;
    assert_eq!((gathered.replies, gathered.silent), (vec![], vec![]));
}

/// A full mailbox of this node is left out, as one elsewhere is.
#[tokio::test(start_paused = true)]
async fn a_full_local_member_is_reported() {
    let mut config = Config::default();
    config.mailbox_local = 2;
    config.mailbox_local_bytes = 32;
    let node = World::new(1).builder("a", 1).config(config).start().await.unwrap();
    let (mut full, mut reads) = (node.mailbox(), node.mailbox());
    node.groups().join(NUMBERS, &full).unwrap();
    node.groups().join(NUMBERS, &reads).unwrap();
    for number in 0..3 {
        let report = node.groups().broadcast(NUMBERS, &number).await.unwrap();
        let expected = if number < 2 { Outcome::Delivered } else { Outcome::Full };
        assert_eq!(report.outcome(&full.pid()), Some(expected));
        assert_eq!(reads.recv().await, Some(number));
    }
    assert_eq!((full.try_recv(), full.try_recv(), full.try_recv()), (Ok(0), Ok(1), Err(RecvError::Empty)));
}

/// Joins and leaves of a node are known elsewhere, in their number; when the node dies, so are none.
#[tokio::test(start_paused = true)]
async fn members_elsewhere_are_known_in_their_number() {
    let world = World::new(2);
    let nodes = cluster(&world, 2).await;
    let member = nodes[1].mailbox();
    for _ in 0..16 {
        nodes[1].groups().join(NUMBERS, &member).unwrap();
    }
    lists(&nodes[0], &NUMBERS, counted([(&member, 16)])).await;
    let mut events = nodes[0].groups().subscribe(NUMBERS);
    assert_eq!(snapshot(next(&mut events).await), counted([(&member, 16)]));
    for _ in 0..4 {
        nodes[1].groups().leave(NUMBERS, &member).unwrap();
    }
    lists(&nodes[0], &NUMBERS, counted([(&member, 12)])).await;
    world.fabric.freeze(ip(2));
    lists(&nodes[0], &NUMBERS, vec![]).await;
    assert_eq!(nodes[0].groups().groups().len(), 0);
    // Those who left one by one, or several at once; then the rest, with its node.
    let mut left = 0;
    loop {
        let (pid, change, count, reason) = read(next(&mut events).await);
        assert_eq!((pid, count), (member.pid(), (16 + left + change) as u32));
        left += change;
        if count == 0 {
            assert_eq!((change, reason), (-12, Some(LeftReason::NodeDied)));
            break;
        }
        assert_eq!(reason, Some(LeftReason::Left));
    }
}

/// Each member on each node gets a message once, non-members nothing; all nodes see the members in one order.
#[tokio::test(start_paused = true)]
async fn a_broadcast_reaches_all_members_once() {
    let world = World::new(3);
    let nodes = cluster(&world, 3).await;
    let mut members: Vec<Mailbox<u64>> = nodes.iter().flat_map(|node| [node.mailbox(), node.mailbox()]).collect();
    let mut outsider = nodes[1].mailbox::<u64>();
    nodes[1].groups().join(OTHERS, &outsider).unwrap();
    for (at, member) in members.iter().enumerate() {
        nodes[at / 2].groups().join(NUMBERS, member).unwrap();
    }
    for node in &nodes {
        lists(node, &NUMBERS, counted(members.iter().map(|member| (member, 1)))).await;
    }
    for (number, node) in nodes.iter().enumerate() {
        let report = node.groups().broadcast(NUMBERS, &(number as u64)).await.unwrap();
        assert_eq!((report.len(), report.delivered()), (6, 6));
        for member in &mut members {
            assert_eq!(member.recv_timeout(SOON).await, Ok(number as u64));
            assert_eq!(member.try_recv(), Err(RecvError::Empty));
        }
    }
    let report = nodes[0].groups().broadcast(NUMBERS, &9).local().await.unwrap();
    assert_eq!(report.len(), 2);
    assert_eq!(outsider.try_recv(), Err(RecvError::Empty));
    let firsts = nodes.iter().map(|node| node.groups().pick(NUMBERS).first().unwrap());
    assert!(firsts.into_iter().all(|first| first == members[0].address()));
    for (at, node) in nodes.iter().enumerate() {
        let own = [members[2 * at].pid(), members[2 * at + 1].pid()];
        assert!(own.contains(node.groups().pick(NUMBERS).nearest().unwrap().pid()));
        assert_eq!(node.groups().local_members(NUMBERS).len(), 2);
    }
}

/// Of the others, the nearest is the one with the shortest way.
#[tokio::test(start_paused = true)]
async fn the_nearest_member_is_picked() {
    let world = World::new(4);
    for (from, to) in [(1, 3), (3, 1)] {
        world.fabric.conditions_between(ip(from), ip(to), Conditions::default().latency(millis(80)));
    }
    let nodes = cluster(&world, 3).await;
    let (near, far) = (nodes[1].mailbox(), nodes[2].mailbox());
    nodes[2].groups().join(NUMBERS, &far).unwrap();
    nodes[1].groups().join(NUMBERS, &near).unwrap();
    lists(&nodes[0], &NUMBERS, counted([(&near, 1), (&far, 1)])).await;
    for node in &nodes[1..] {
        nodes[0].cluster().connect(node.name()).await.unwrap();
        nodes[0].cluster().ping(node.name(), secs(5)).await.unwrap();
    }
    for _ in 0..20 {
        assert_eq!(nodes[0].groups().pick(NUMBERS).nearest(), Some(near.address()));
    }
}

/// During a cut, one side leaves a group, joins another, and both join a third; after it, everybody sees what everybody did.
#[tokio::test(start_paused = true)]
async fn after_a_cut_the_groups_are_what_both_sides_did() {
    const THIRD: Group<u64> = Group::new("third");
    let world = World::new(5);
    let nodes = cluster(&world, 2).await;
    let (here, there, dies) = (nodes[0].mailbox(), nodes[1].mailbox(), nodes[1].mailbox());
    nodes[1].groups().join(NUMBERS, &there).unwrap();
    nodes[1].groups().join(OTHERS, &dies).unwrap();
    lists(&nodes[0], &NUMBERS, counted([(&there, 1)])).await;
    lists(&nodes[0], &OTHERS, counted([(&dies, 1)])).await;
    world.fabric.cut(ip(1), ip(2));
    lists(&nodes[0], &NUMBERS, vec![]).await;
    nodes[1].groups().leave(NUMBERS, &there).unwrap();
    drop(dies);
    nodes[1].groups().join(OTHERS, &there).unwrap();
    nodes[1].groups().join(THIRD, &there).unwrap();
    nodes[0].groups().join(THIRD, &here).unwrap();
    assert_eq!(nodes[0].groups().leave(OTHERS, &here), Err(LeaveError::NotJoined(here.pid())));
    assert_eq!(listed(&nodes[1], &THIRD), counted([(&there, 1)]));
    world.fabric.heal(ip(1), ip(2));
    for node in &nodes {
        lists(node, &THIRD, counted([(&here, 1), (&there, 1)])).await;
        lists(node, &OTHERS, counted([(&there, 1)])).await;
        lists(node, &NUMBERS, vec![]).await;
    }
}

/// Nodes leave and die one after another; the members on the one that stays are never gone, not for a moment.
#[tokio::test(start_paused = true)]
async fn members_of_those_who_stay_are_never_gone() {
    let world = World::new(6);
    let nodes = cluster(&world, 4).await;
    let members: Vec<_> = nodes.iter().map(|node| node.mailbox::<u64>()).collect();
    for (node, member) in nodes.iter().zip(&members) {
        node.groups().join(NUMBERS, member).unwrap();
    }
    lists(&nodes[0], &NUMBERS, counted(members.iter().map(|member| (member, 1)))).await;
    lists(&nodes[1], &NUMBERS, counted(members.iter().map(|member| (member, 1)))).await;
    let mut events = nodes[0].groups().subscribe(NUMBERS);
    snapshot(next(&mut events).await);
    nodes[2].shutdown().await;
    world.fabric.freeze(ip(4));
    let mut left = vec![read(next(&mut events).await), read(next(&mut events).await)];
    left.sort_by(|one, other| one.0.cmp(&other.0));
    let expected =
        [(members[2].pid(), -1, 0, Some(LeftReason::NodeLeft)), (members[3].pid(), -1, 0, Some(LeftReason::NodeDied))];
    assert_eq!(left, expected);
    assert!(timeout(secs(30), events.next()).await.is_err(), "nobody else went");
    lists(&nodes[1], &NUMBERS, counted([(&members[0], 1), (&members[1], 1)])).await;
}

/// Prompt members are among the replies, slow ones among the silent, and a late reply reaches nobody.
#[tokio::test(start_paused = true)]
async fn a_gather_ends_at_its_deadline() {
    let node = World::new(7).node("a", 1).await;
    let (mut prompt, mut slow) = (node.mailbox::<Ask>(), node.mailbox::<Ask>());
    let (closed, full) = (node.mailbox::<Ask>(), node.mailbox::<u64>());
    for member in [&prompt, &slow, &closed] {
        node.groups().join(ASKED, member).unwrap();
    }
    node.groups().join(NUMBERS, &full).unwrap();
    drop(closed);
    let prompt_pid = prompt.pid();
    tokio::spawn(async move {
        while let Some(Ask { reply_to }) = prompt.recv().await {
            reply_to.reply(7).await.unwrap();
        }
    });
    let began = Instant::now();
    let gathered = node.groups().gather(ASKED, |reply_to| Ask { reply_to }).timeout(millis(100)).await;
    assert_eq!(began.elapsed(), millis(100));
    assert_eq!((gathered.replies, gathered.silent), (vec![(prompt_pid, 7)], vec![slow.pid()]));
    let before = node.rpc().stats();
    assert_eq!((before.asking, before.late), (0, 0));
    slow.recv().await.unwrap().reply_to.reply(8).await.unwrap();
    assert_eq!(node.rpc().stats().late, 1);
    // A gather that is given up forgets its questions too.
    let groups = node.groups();
    let gather = groups.gather(ASKED, |reply_to| Ask { reply_to });
    assert!(timeout(millis(10), gather).await.is_err());
    sleep(millis(1)).await;
    assert_eq!(node.rpc().stats().asking, 0);
}

/// Ten thousand groups, and a crowd that comes and goes: a join is there at once.
#[tokio::test]
async fn a_join_is_quick_whatever_else_goes_on() {
    let node = World::new(8).node("a", 1).await;
    let members: Vec<Mailbox<u64>> = (0..100).map(|_| node.mailbox()).collect();
    for number in 0..10_000 {
        let group = Group::parse(format!("group/{number}")).unwrap();
        node.groups().join(group, &members[number % 100]).unwrap();
    }
    assert_eq!(node.groups().groups().len(), 10_000);
    let late = node.mailbox();
    let began = std::time::Instant::now();
    node.groups().join(NUMBERS, &late).unwrap();
    assert_eq!(node.groups().members(NUMBERS), [late.address()]);
    assert!(began.elapsed() < millis(100));
    drop(members);
    assert_eq!(node.groups().groups().len(), 1);
}
