//! Actors in whole nodes: their names, their restarts, their ends and who is told of them.

use std::collections::BTreeSet;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use distribute::sim::Conditions;
use distribute::{
    Actor, ActorContext, ActorRef, Address, AskError, Config, DecodeError, Exit, Fate, Group, JoinError, Mailbox,
    Member, Message, Name, Names, Next, Node, Notice, OnLoss, Pid, REASON_MAX, RecvError, RefusedMessage,
    RegisterError, ReplyTo, Resource, Restart, SendError, SpawnError, Trace, actor_fn,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::common::{World, ip, millis, secs};

const TILL: Name<Job> = Name::new("till");
const TILLS: Names<Job> = Names::new("till");
const CREW: Group<Job> = Group::new("crew");

/// What the actors of these tests are told.
#[derive(Debug, Serialize, Deserialize)]
enum Job {
    Add(u64),
    Total(ReplyTo<u64>),
    /// Add after a while.
    Slowly(u64, Duration),
    Panic,
    Fail(String),
    Stop,
    StopIn(Duration),
    Stay,
    Watch(Pid),
    #[serde(skip)]
    Down(Notice),
}

impl Message for Job {
    const TAG: &'static str = "test.job";
    const VERSION: u32 = 1;
}

/// What an actor did, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Did {
    Started,
    Added(u64),
    Heard(Fate),
    Refused,
    Stopping,
    Dropped,
}

struct Adder {
    total: u64,
    diary: mpsc::UnboundedSender<Did>,
}

impl Adder {
    fn new(diary: &mpsc::UnboundedSender<Did>) -> Self {
        Self { total: 0, diary: diary.clone() }
    }

    fn add(&mut self, number: u64) {
        self.total += number;
        self.did(Did::Added(number));
    }

    fn did(&self, did: Did) {
        let _ = self.diary.send(did);
    }
}

impl Drop for Adder {
    fn drop(&mut self) {
        self.did(Did::Dropped);
    }
}

impl Actor for Adder {
    type Message = Job;

    async fn started(&mut self, _: &ActorContext<Job>) -> Next {
        self.did(Did::Started);
        Next::Continue
    }

    async fn handle(&mut self, job: Job, context: &ActorContext<Job>) -> Next {
        match job {
            Job::Add(number) => self.add(number),
            Job::Total(reply_to) => reply_to.reply(self.total).await.unwrap(),
            Job::Slowly(number, time) => {
                tokio::time::sleep(time).await;
                self.add(number);
            }
            // Without a word on the way.
            Job::Panic => std::panic::resume_unwind(Box::new("as it should")),
            Job::Fail(reason) => return Next::fail(reason),
            Job::Stop => return Next::Stop,
            Job::StopIn(time) => context.stop_after(time),
            Job::Stay => context.stay(),
            Job::Watch(pid) => drop(context.monitor(pid, Job::Down)),
            Job::Down(notice) => self.did(Did::Heard(notice.fate)),
        }
        Next::Continue
    }

    fn refused(&mut self, _: &RefusedMessage, _: &ActorContext<Job>) -> Next {
        self.did(Did::Refused);
        Next::Continue
    }

    async fn stopping(&mut self, _: &ActorContext<Job>) {
        self.did(Did::Stopping);
    }
}

type Diary = mpsc::UnboundedReceiver<Did>;

fn adder() -> (Adder, Diary) {
    let (diary, entries) = mpsc::unbounded_channel();
    (Adder::new(&diary), entries)
}

/// What has been done so far, or since the last look.
fn done(diary: &mut Diary) -> Vec<Did> {
    std::iter::from_fn(|| diary.try_recv().ok()).collect()
}

/// Fails instead of waiting for ever.
async fn within<T>(patience: Duration, what: impl IntoFuture<Output = T>) -> T {
    timeout(patience, what).await.expect("in time")
}

async fn ended(actor: &ActorRef<Job>) -> Exit {
    within(secs(60), actor.ended()).await
}

async fn total(address: &Address<Job>) -> u64 {
    within(secs(60), address.ask(Job::Total)).await.unwrap()
}

/// A ready node.
async fn alone(seed: u64) -> (World, Node) {
    let world = World::new(seed);
    let node = world.node("a", 1).await;
    node.ready().await.unwrap();
    (world, node)
}

/// Two nodes of one cluster that see each other.
async fn two(seed: u64) -> (World, Node, Node) {
    let (world, a) = alone(seed).await;
    let b = world.builder("b", 2).join(a.name()).start().await.unwrap();
    b.ready().await.unwrap();
    for node in [&a, &b] {
        node.membership().wait_for_alive(2).await.unwrap();
    }
    (world, a, b)
}

/// A peer sends 3, 4 and 5, and asks for the sum after each. The actor goes on without whoever spawned it.
#[tokio::test(start_paused = true)]
async fn an_actor_handles_what_comes_in_order() {
    let (_world, a, b) = two(1201).await;
    let (state, mut diary) = adder();
    drop(a.actor(state).named(TILL).await.unwrap());
    let there = within(secs(5), b.registry().wait_for(TILL)).await.unwrap();
    for (number, sum) in [(3, 3), (4, 7), (5, 12)] {
        there.send(Job::Add(number)).await.unwrap();
        assert_eq!(total(&there).await, sum);
    }
    assert_eq!(done(&mut diary), [Did::Started, Did::Added(3), Did::Added(4), Did::Added(5)]);
}

/// A handler that stops ends its actor: what waits behind is not handled, and senders are told.
#[tokio::test(start_paused = true)]
async fn a_handler_may_stop_its_actor() {
    let (_world, node) = alone(1202).await;
    let (state, mut diary) = adder();
    let actor = node.actor(state).await.unwrap();
    assert_eq!(actor.exit(), None);
    for job in [Job::Add(1), Job::Stop, Job::Add(2)] {
        actor.address().send(job).await.unwrap();
    }
    assert_eq!(ended(&actor).await, Exit::Stopped);
    assert!(actor.exit().unwrap().is_clean());
    assert_eq!(done(&mut diary), [Did::Started, Did::Added(1), Did::Stopping, Did::Dropped]);
    assert_eq!(actor.address().send(Job::Add(3)).await, Err(SendError::MailboxClosed(actor.pid().clone())));
    assert_eq!((actor.stop().await, actor.drain().await), (Exit::Stopped, Exit::Stopped), "it has ended");
}

/// One that is stopped finishes the message at hand and leaves the rest; one that is drained handles what had come, and
/// takes nothing more.
#[tokio::test(start_paused = true)]
async fn a_stop_leaves_what_waits_and_a_drain_does_not() {
    let (_world, node) = alone(1203).await;
    for drains in [false, true] {
        let (state, mut diary) = adder();
        let actor = node.actor(state).await.unwrap();
        actor.address().send(Job::Slowly(1, secs(5))).await.unwrap();
        actor.address().send(Job::Slowly(2, secs(5))).await.unwrap();
        tokio::time::sleep(secs(1)).await;
        let (began, other) = (Instant::now(), actor.clone());
        let ending = tokio::spawn(async move { if drains { other.drain().await } else { other.stop().await } });
        tokio::time::sleep(secs(1)).await;
        assert_eq!(actor.exit(), None, "it is at work");
        let late = actor.address().send(Job::Add(9)).await;
        assert_eq!(late.is_err(), drains, "a mailbox that is drained is closed at once");
        assert_eq!(ending.await.unwrap(), Exit::Stopped);
        assert_eq!(began.elapsed(), secs(if drains { 9 } else { 4 }));
        let handled = [Did::Added(1)].into_iter().chain(drains.then_some(Did::Added(2)));
        let all = [Did::Started].into_iter().chain(handled).chain([Did::Stopping, Did::Dropped]);
        assert_eq!(done(&mut diary), all.collect::<Vec<_>>());
    }
}

/// A stop that is dropped goes on.
#[tokio::test(start_paused = true)]
async fn a_stop_that_is_dropped_goes_on() {
    let (_world, node) = alone(1204).await;
    let (state, mut diary) = adder();
    let actor = node.actor(state).await.unwrap();
    actor.address().send(Job::Slowly(1, secs(5))).await.unwrap();
    tokio::time::sleep(secs(1)).await;
    assert!(timeout(secs(1), actor.stop()).await.is_err());
    assert_eq!(ended(&actor).await, Exit::Stopped);
    assert!(done(&mut diary).contains(&Did::Added(1)));
}

/// The mailbox that a spawn claims a name for, as it is told of it.
fn noting(pid: &Arc<Mutex<Option<Pid>>>) -> impl FnOnce(&Node, &Mailbox<Job>) -> distribute::Register<Job> + use<> {
    let pid = pid.clone();
    move |node, mailbox| {
        *pid.lock().unwrap() = Some(mailbox.pid());
        node.registry().register(TILL, mailbox)
    }
}

/// Whose name is taken never runs, and leaves no mailbox.
#[tokio::test(start_paused = true)]
async fn a_taken_name_leaves_no_orphan() {
    let (_world, a, b) = two(1205).await;
    let (state, _) = adder();
    let first = a.actor(state).named(TILL).await.unwrap();
    within(secs(5), b.registry().wait_for(TILL)).await.unwrap();
    for node in [&a, &b] {
        let ((state, mut diary), pid) = (adder(), Arc::default());
        let second = within(secs(30), node.actor(state).registered(noting(&pid)).in_group(CREW)).await;
        match second {
            Err(SpawnError::Register(RegisterError::Taken { owner, .. })) => assert_eq!(owner, *first.pid()),
            other => panic!("{other:?}"),
        }
        assert_eq!(done(&mut diary), [Did::Dropped], "it never began");
        let pid = pid.lock().unwrap().clone().unwrap();
        assert_eq!(within(secs(5), node.monitor(&pid)).await.fate, Fate::NoSuchMailbox);
        assert_eq!(node.groups().count(CREW), 0);
    }
    assert_eq!(a.registry().entry(TILL).unwrap().owner, *first.pid());
    first.stop().await;
    let (state, _) = adder();
    within(secs(30), b.actor(state).named(TILL)).await.expect("it is free again");
}

/// Neither does a spawn that is given up while its name is being decided.
#[tokio::test(start_paused = true)]
async fn a_spawn_that_is_dropped_leaves_no_orphan() {
    let (world, a, b) = two(1206).await;
    // Of three, two have to agree, so it takes as long as the way to another.
    let c = world.builder("c", 3).join(a.name()).start().await.unwrap();
    within(secs(30), c.ready()).await.unwrap();
    a.membership().wait_for_alive(3).await.unwrap();
    world.fabric.conditions(Conditions::default().latency(millis(100)));
    let ((state, mut diary), pid) = (adder(), Arc::default());
    let spawning = a.actor(state).registered(noting(&pid)).into_future();
    assert!(timeout(millis(50), spawning).await.is_err(), "it is being decided");
    assert_eq!(done(&mut diary), [Did::Dropped]);
    let pid = pid.lock().unwrap().clone().unwrap();
    assert_eq!(within(secs(5), a.monitor(&pid)).await.fate, Fate::NoSuchMailbox);
    tokio::time::sleep(secs(1)).await;
    let (state, _) = adder();
    let other = within(secs(60), b.actor(state).named(TILL)).await.expect("the name is free");
    assert_eq!(b.registry().entry(TILL).unwrap().owner, *other.pid());
}

/// A node that shuts down spawns nothing.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_over_spawns_nothing() {
    let (_world, node) = alone(1207).await;
    node.shutdown().await;
    let (state, mut diary) = adder();
    assert_eq!(node.actor(state).await.unwrap_err(), SpawnError::Shutdown);
    assert_eq!(done(&mut diary), [Did::Dropped]);
    let (_, make) = counting();
    assert_eq!(node.pool(CREW, 1, make).await.unwrap_err(), SpawnError::Shutdown);
}

/// A maker of adders that counts those it has made, and what they do.
fn counting() -> (Arc<AtomicUsize>, impl Fn(usize) -> Adder + Send + Sync + Clone + 'static) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    (made, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        adder().0
    })
}

/// Each member of a pool is reached by its name and as a member of the group, from any node.
#[tokio::test(start_paused = true)]
async fn each_member_of_a_pool_is_reached() {
    let (_world, a, b) = two(1208).await;
    let (made, make) = counting();
    let pool = within(secs(30), a.pool(CREW, 5, make).named_each(TILLS)).await.unwrap();
    assert_eq!(pool.members().len(), 5);
    for (index, member) in pool.members().iter().enumerate() {
        let there = within(secs(5), b.registry().wait_for(TILLS.name(index).unwrap())).await.unwrap();
        assert_eq!(there.pid(), member.pid());
        there.send(Job::Add(index as u64)).await.unwrap();
        assert_eq!(total(&there).await, index as u64, "each has a state of its own");
    }
    assert_eq!(made.load(Ordering::Relaxed), 5);
    let members: BTreeSet<Pid> = b.groups().members(CREW).iter().map(|member| member.pid().clone()).collect();
    assert_eq!(members, pool.members().iter().map(|member| member.pid().clone()).collect());
    assert_eq!(within(secs(5), pool.stop()).await, vec![Exit::Stopped; 5]);
    assert_eq!(a.groups().count(CREW), 0);
}

/// There is a pool as a whole, or none at all.
#[tokio::test(start_paused = true)]
async fn a_pool_is_whole_or_not_at_all() {
    let (world, node) = alone(1209).await;
    let (made, make) = counting();
    assert_eq!(node.pool(CREW, 0, make.clone()).await.unwrap_err(), SpawnError::EmptyPool);
    let (state, _) = adder();
    let third = node.actor(state).named(TILLS.name(2).unwrap()).await.unwrap();
    let refused = within(secs(30), node.pool(CREW, 4, make.clone()).named_each(TILLS)).await.unwrap_err();
    assert!(matches!(&refused, SpawnError::Register(RegisterError::Taken { owner, .. }) if owner == third.pid()));
    assert_eq!((node.groups().count(CREW), made.load(Ordering::Relaxed)), (0, 0));
    third.stop().await;
    let pool = within(secs(30), node.pool(CREW, 4, make.clone()).named_each(TILLS)).await.unwrap();
    assert_eq!((pool.members().len(), node.groups().count(CREW)), (4, 4));

    let mut config = Config::default();
    config.groups_max = 3;
    let small = world.builder("small", 9).config(config).start().await.unwrap();
    assert_eq!(small.pool(CREW, 4, make.clone()).await.unwrap_err(), SpawnError::Join(JoinError::TooMany(3)));
    assert_eq!(small.groups().local_members(CREW), []);
    small.pool(CREW, 3, make.clone()).await.expect("three fit");
    let long = Names::parse("x".repeat(253)).unwrap();
    assert!(
        matches!(node.pool(CREW, 11, make).named_each(long).await, Err(SpawnError::Name(_))),
        "the index has two digits"
    );
}

/// One that panics begins anew in the same mailbox: its name, its group and its watches stay, the message that it fell over
/// is not handled again, and those behind it are.
#[tokio::test(start_paused = true)]
async fn an_actor_begins_anew_in_its_mailbox() {
    let (_world, a, b) = two(1210).await;
    let (diary, mut entries) = mpsc::unbounded_channel();
    let make = move || Adder::new(&diary);
    let actor = a.actor(make()).named(TILL).in_group(CREW).restart(Restart::on_panic(), make).await.unwrap();
    let there = within(secs(5), b.registry().wait_for(TILL)).await.unwrap();
    let watched = b.mailbox::<u64>();
    for job in [Job::Watch(watched.pid()), Job::Add(1), Job::Panic, Job::Add(2)] {
        there.send(job).await.unwrap();
    }
    assert_eq!(total(&there).await, 2, "a fresh state");
    assert_eq!((actor.restarts(), actor.panics(), actor.exit()), (1, 1, None));
    let first_life = [Did::Started, Did::Added(1), Did::Dropped];
    assert_eq!(done(&mut entries), [&first_life[..], &[Did::Started, Did::Added(2)]].concat());
    assert_eq!(b.registry().entry(TILL).unwrap().owner, *actor.pid());
    assert_eq!(b.groups().members(CREW), [actor.address().clone()]);
    drop(watched);
    assert_eq!(within(secs(5), entries.recv()).await, Some(Did::Heard(Fate::Closed)), "the watch stays, too");
    // The node counts it, and has not noticed otherwise.
    let incidents = a.stats().incidents;
    assert_eq!((incidents.actors_panicked, incidents.actors_restarted), (1, 1));
    assert_eq!(a.cluster().peers(), [b.id()]);
}

/// While it pauses, messages wait in its mailbox, and no more of them than it holds; the pause is within its bounds and
/// doubles.
#[tokio::test(start_paused = true)]
async fn messages_wait_out_the_pause() {
    let world = World::new(1211);
    let mut config = Config::default();
    config.mailbox_local = 8;
    let node = world.builder("a", 1).config(config).start().await.unwrap();
    let policy = Restart::on_panic().limit(10, secs(600)).back_off(secs(2), secs(5));
    let (diary, mut entries) = mpsc::unbounded_channel();
    let make = move || Adder::new(&diary);
    let actor = node.actor(make()).restart(policy, make).await.unwrap();
    for (times, longest) in [2, 4, 5, 5].map(secs).into_iter().enumerate() {
        actor.address().send(Job::Panic).await.unwrap();
        while entries.recv().await != Some(Did::Dropped) {}
        let fell = Instant::now();
        let mut waiting = 0;
        while actor.address().try_send(Job::Add(1)).is_ok() {
            waiting += 1;
        }
        assert_eq!((waiting, actor.restarts()), (8, times as u64));
        assert_eq!(entries.recv().await, Some(Did::Started));
        let pause = fell.elapsed();
        assert!(longest / 2 <= pause && pause <= longest + millis(1), "{pause:?} of {longest:?}");
        assert_eq!(total(actor.address()).await, 8, "all that waited");
        assert_eq!(actor.restarts(), times as u64 + 1);
    }
}

/// After so many restarts within its window it ends, and says so.
#[tokio::test(start_paused = true)]
async fn too_many_restarts_are_the_end() {
    let (_world, a, b) = two(1212).await;
    let policy = Restart::on_panic().limit(2, secs(60)).back_off(secs(1), secs(1));
    let actor = a.actor(adder().0).named(TILL).restart(policy, || adder().0).await.unwrap();
    let watch = b.monitor(&actor);
    // The two of the first minute no longer count after it.
    for pause in [0, 0, 61, 0, 0] {
        tokio::time::sleep(secs(pause)).await;
        actor.address().send(Job::Panic).await.unwrap();
        tokio::time::sleep(secs(2)).await;
    }
    let exit = Exit::TooManyRestarts("panicked: as it should".into());
    assert_eq!((actor.exit(), actor.restarts(), actor.panics()), (Some(exit), 4, 5));
    let notice = within(secs(5), watch).await;
    assert_eq!((notice.fate, notice.reason()), (Fate::Failed, Some("too many restarts")));
    let (state, _) = adder();
    within(secs(30), b.actor(state).named(TILL)).await.expect("its name is free");
}

/// What each policy makes of each end.
#[tokio::test(start_paused = true)]
async fn each_policy_follows_its_ends() {
    let (_world, node) = alone(1213).await;
    let panicked = || Some(Exit::Panicked("as it should".into()));
    let failed = || Some(Exit::Failed("no paper".into()));
    let cases = [
        (Restart::never(), [panicked(), failed(), Some(Exit::Stopped)]),
        (Restart::on_panic(), [None, failed(), Some(Exit::Stopped)]),
        (Restart::on_failure(), [None, None, Some(Exit::Stopped)]),
        (Restart::always(), [None, None, None]),
    ];
    for (policy, exits) in cases {
        let ends = [Job::Panic, Job::Fail("no paper".into()), Job::Stop];
        for (job, exit) in ends.into_iter().zip(exits) {
            let what = format!("{policy:?} after {job:?}");
            let actor = node.actor(adder().0).restart(policy.clone(), || adder().0).await.unwrap();
            actor.address().send(job).await.unwrap();
            tokio::time::sleep(secs(1)).await;
            assert_eq!(actor.exit(), exit, "{what}");
            assert_eq!(actor.restarts(), u64::from(exit.is_none()), "{what}");
            if exit.is_none() {
                actor.address().send(Job::Add(7)).await.unwrap();
                assert_eq!(total(actor.address()).await, 7, "{what}: it works again");
                assert_eq!(actor.stop().await, Exit::Stopped, "{what}: who is asked to stop does");
            }
        }
    }
}

/// One that is to stop while it pauses does not begin anew, whoever says so: a holder, its time, its node.
#[tokio::test(start_paused = true)]
async fn a_pause_ends_with_a_stop() {
    let (_world, node) = alone(1214).await;
    let policy = || Restart::on_panic().back_off(secs(100), secs(100));
    for way in ["stop", "time", "drain", "shutdown"] {
        let (state, mut diary) = adder();
        let actor = node.actor(state).restart(policy(), || panic!("it does not begin anew")).await.unwrap();
        if way == "time" {
            actor.address().send(Job::StopIn(secs(5))).await.unwrap();
        }
        actor.address().send(Job::Panic).await.unwrap();
        while diary.recv().await != Some(Did::Dropped) {}
        let began = Instant::now();
        let exit = match way {
            "stop" => actor.stop().await,
            "time" => actor.ended().await,
            "drain" => {
                // What had arrived is to be handled, so it does begin anew: and falls, once more.
                let drained = timeout(secs(40), actor.drain()).await;
                assert!(drained.is_err(), "after the pause");
                actor.stop().await
            }
            _ => {
                node.shutdown().await;
                actor.ended().await
            }
        };
        assert_eq!((exit, actor.restarts()), (Exit::Stopped, 0), "{way}");
        assert!(began.elapsed() <= secs(45), "{way}");
    }
}

/// A panic anywhere in an actor is contained: at its start, in a maker, when its state is dropped.
#[tokio::test(start_paused = true)]
async fn a_panic_anywhere_is_contained() {
    struct Falls {
        at: &'static str,
    }
    impl Drop for Falls {
        fn drop(&mut self) {
            assert_ne!(self.at, "drop");
        }
    }
    impl Actor for Falls {
        type Message = u64;
        async fn started(&mut self, _: &ActorContext<u64>) -> Next {
            assert_ne!(self.at, "start");
            Next::Continue
        }
        async fn handle(&mut self, _: u64, _: &ActorContext<u64>) -> Next {
            assert_ne!(self.at, "handle");
            Next::Stop
        }
        fn refused(&mut self, _: &RefusedMessage, _: &ActorContext<u64>) -> Next {
            panic!("refused")
        }
        async fn stopping(&mut self, _: &ActorContext<u64>) {
            assert_ne!(self.at, "stopping");
        }
    }
    let (_world, a, b) = two(1215).await;
    let policy = Restart::on_panic().limit(2, secs(60));
    for at in ["start", "handle", "stopping", "refused"] {
        let actor = a.actor(Falls { at }).restart(policy.clone(), move || Falls { at }).await.unwrap();
        let there = actor.address().bind(&b);
        for _ in 0..3 {
            let sent = match at {
                "refused" => known_as::<_, String>(&there, &b).send(String::new()).await,
                _ => there.send(1).await,
            };
            assert!(sent.is_ok() || at == "start");
        }
        let exit = within(secs(60), actor.ended()).await;
        assert!(matches!(exit, Exit::TooManyRestarts(_)), "{at}: {exit:?}");
        assert_eq!((actor.restarts(), actor.panics()), (2, 3), "{at}");
    }
    // Whoever was asked to stop does not begin anew.
    for drains in [false, true] {
        let fallen = a.actor(Falls { at: "stopping" }).restart(policy.clone(), || Falls { at: "stopping" });
        let actor = fallen.await.unwrap();
        let exit = within(secs(60), async { if drains { actor.drain().await } else { actor.stop().await } }).await;
        assert!(matches!(exit, Exit::Panicked(_)), "{exit:?}");
        assert_eq!((actor.restarts(), actor.panics()), (0, 1));
    }
    let actor = a.actor(Falls { at: "handle" }).restart(policy, || panic!("there is none")).await.unwrap();
    actor.address().send(1).await.unwrap();
    let exit = within(secs(60), actor.ended()).await;
    assert_eq!(exit, Exit::TooManyRestarts("panicked: there is none".into()));
    let actor = a.actor(Falls { at: "drop" }).await.unwrap();
    actor.address().send(1).await.unwrap();
    assert_eq!(within(secs(60), actor.ended()).await, Exit::Stopped);
    assert_eq!(a.cluster().peers(), [b.id()], "the node lives on");
}

/// Monitors on its own node and on another are told how it ended, and why.
#[tokio::test(start_paused = true)]
async fn how_an_actor_ended_is_told_to_all() {
    let (_world, a, b) = two(1216).await;
    // A reason whose 256th byte is half of a character.
    let long = format!("{}é and more", "x".repeat(REASON_MAX - 1));
    let cut = "x".repeat(REASON_MAX - 1);
    let ends: [(Option<Job>, Exit, Fate, Option<&str>); 6] = [
        (Some(Job::Stop), Exit::Stopped, Fate::Closed, None),
        (Some(Job::Panic), Exit::Panicked("as it should".into()), Fate::Panicked, None),
        (Some(Job::Fail("no paper".into())), Exit::Failed("no paper".into()), Fate::Failed, Some("no paper")),
        (Some(Job::Fail(String::new())), Exit::Failed(String::new()), Fate::Failed, Some("")),
        (Some(Job::Fail(long.clone())), Exit::Failed(long), Fate::Failed, Some(&cut)),
        (None, Exit::Killed, Fate::Failed, Some("killed")),
    ];
    for (job, exit, fate, reason) in ends {
        let actor = a.actor(adder().0).await.unwrap();
        let (mut here, mut there) = (a.mailbox::<Job>(), b.mailbox::<Job>());
        here.monitor(&actor, Job::Down);
        there.monitor(&actor, Job::Down);
        let watches = [a.monitor(&actor), b.monitor(&actor)];
        tokio::time::sleep(secs(1)).await;
        match job {
            Some(job) => actor.address().send(job).await.unwrap(),
            None => actor.kill(),
        }
        assert_eq!(ended(&actor).await, exit);
        let mut notices = Vec::new();
        for watch in watches {
            notices.push(within(secs(5), watch).await);
        }
        for mailbox in [&mut here, &mut there] {
            match mailbox.recv_timeout(secs(5)).await {
                Ok(Job::Down(notice)) => notices.push(notice),
                other => panic!("{other:?} in place of a notice"),
            }
        }
        for notice in notices {
            assert_eq!((notice.fate, notice.reason()), (fate, reason), "{exit:?}");
        }
    }
}

/// One that is killed before its task has begun was killed all the same, for those who watch it too.
#[tokio::test(start_paused = true)]
async fn who_is_killed_before_it_begins_was_killed() {
    let (_world, node) = alone(1231).await;
    let (tell, watch) = tokio::sync::oneshot::channel();
    let (state, mut diary) = adder();
    let actor = node
        .actor(state)
        .registered(move |node, mailbox| {
            tell.send(node.monitor(mailbox)).unwrap();
            node.registry().register(TILL, mailbox)
        })
        .await
        .unwrap();
    actor.kill();
    assert_eq!(ended(&actor).await, Exit::Killed);
    let notice = within(secs(5), watch.await.unwrap()).await;
    assert_eq!((notice.fate, notice.reason()), (Fate::Failed, Some("killed")));
    assert_eq!(done(&mut diary), [Did::Dropped], "nothing of it ran");
}

/// A mailbox that nobody made an actor of can fail as well.
#[tokio::test(start_paused = true)]
async fn a_mailbox_may_fail() {
    let (_world, a, b) = two(1217).await;
    let mailbox = a.mailbox::<u64>();
    let watches = [a.monitor(&mailbox), b.monitor(&mailbox)];
    tokio::time::sleep(secs(1)).await;
    mailbox.fail("the disk is full");
    for watch in watches {
        let notice = within(secs(5), watch).await;
        assert_eq!((notice.fate, notice.reason()), (Fate::Failed, Some("the disk is full")));
    }
}

/// An actor whose node shuts down handles what had arrived, and ends in good order; its node is not kept running by it.
#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_actors_in_good_order() {
    let (world, a, b) = two(1218).await;
    let (state, mut diary) = adder();
    let actor = a.actor(state).await.unwrap();
    let watch = b.monitor(&actor);
    actor.address().send(Job::Slowly(1, secs(20))).await.unwrap();
    actor.address().send(Job::Add(2)).await.unwrap();
    tokio::time::sleep(secs(1)).await;
    a.shutdown().await;
    assert_eq!(actor.exit(), None, "the shutdown does not wait for it");
    assert_eq!(ended(&actor).await, Exit::Stopped);
    assert_eq!(done(&mut diary), [Did::Started, Did::Added(1), Did::Added(2), Did::Stopping, Did::Dropped]);
    assert_eq!(within(secs(30), watch).await.fate, Fate::NodeLeft);

    // Nor does it keep a node running that nobody else holds.
    let node = world.node("c", 3).await;
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let there = actor_fn(seen, async |seen: &mut Arc<Mutex<Vec<bool>>>, (): (), context: &ActorContext<()>| {
        seen.lock().unwrap().push(context.node().is_some());
        Next::Continue
    });
    let actor = node.actor(there).await.unwrap();
    actor.address().send(()).await.unwrap();
    tokio::time::sleep(secs(1)).await;
    actor.address().send(()).await.unwrap();
    drop(node);
    assert_eq!(within(secs(30), actor.ended()).await, Exit::Stopped);
    assert_eq!(*asked.lock().unwrap(), [true, false]);
}

/// An actor that loses its name with its mailbox ends.
#[tokio::test(start_paused = true)]
async fn an_actor_ends_with_its_mailbox() {
    let (world, a, b) = two(1219).await;
    world.fabric.cut(ip(1), ip(2));
    for node in [&a, &b] {
        let is_alone = |members: &[Member]| members.iter().filter(|member| member.state.is_live()).count() == 1;
        within(secs(60), node.membership().wait_for(is_alone)).await.unwrap();
    }
    let claim =
        |node: &Node, mailbox: &Mailbox<Job>| node.registry().register(TILL, mailbox).on_loss(OnLoss::CloseMailbox);
    let on_a = within(secs(30), a.actor(adder().0).registered(claim)).await.unwrap();
    let on_b = within(secs(30), b.actor(adder().0).registered(claim)).await.unwrap();
    world.fabric.heal(ip(1), ip(2));
    let (exit, loser, winner) = within(secs(120), async {
        tokio::select! {
            exit = on_a.ended() => (exit, &on_a, &on_b),
            exit = on_b.ended() => (exit, &on_b, &on_a),
        }
    })
    .await;
    assert_eq!(exit, Exit::Stopped);
    assert!(loser.registration().unwrap().is_lost() && !winner.registration().unwrap().is_lost());
    tokio::time::sleep(secs(60)).await;
    assert_eq!(winner.exit(), None);
}

/// Counts how often it is closed.
#[derive(Clone, Default)]
struct Closes(Arc<AtomicUsize>);

impl Closes {
    fn resource(&self) -> Resource<u64> {
        let count = self.0.clone();
        Resource::new(0, move |_| _ = count.fetch_add(1, Ordering::SeqCst))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

async fn hold(held: &mut Resource<u64>, job: Job, _: &ActorContext<Job>) -> Next {
    match job {
        Job::Add(number) => **held += number,
        Job::Slowly(_, time) => tokio::time::sleep(time).await,
        Job::Panic => panic!("as it should"),
        Job::Fail(reason) => return Next::fail(reason),
        Job::Stop => return Next::Stop,
        _ => {}
    }
    Next::Continue
}

/// What an actor holds is closed once, however it ends, and by the time that its end is told.
#[tokio::test(start_paused = true)]
async fn a_resource_is_closed_once_however_its_owner_ends() {
    let (_world, node) = alone(1220).await;
    for way in ["stop", "drain", "Stop", "Fail", "Panic", "kill", "kill at work", "not begun", "shutdown"] {
        let closes = Closes::default();
        let owner = actor_fn(closes.resource(), hold);
        if way == "not begun" {
            let actor = node.actor(owner).await.unwrap();
            actor.kill();
            assert_eq!((ended(&actor).await, closes.count()), (Exit::Killed, 1), "{way}");
            continue;
        }
        let actor = node.actor(owner).await.unwrap();
        let send = async |job| actor.address().send(job).await.unwrap();
        send(Job::Add(1)).await;
        tokio::time::sleep(secs(1)).await;
        assert_eq!((closes.count(), actor.exit()), (0, None), "{way}");
        match way {
            "stop" => drop(actor.stop().await),
            "drain" => drop(actor.drain().await),
            "Stop" => send(Job::Stop).await,
            "Fail" => send(Job::Fail("no paper".into())).await,
            "Panic" => send(Job::Panic).await,
            "kill" => actor.kill(),
            "kill at work" => {
                send(Job::Slowly(1, secs(100))).await;
                tokio::time::sleep(secs(1)).await;
                actor.kill();
            }
            _ => node.shutdown().await,
        }
        ended(&actor).await;
        assert_eq!(closes.count(), 1, "{way}");
        tokio::time::sleep(secs(200)).await;
        assert_eq!(closes.count(), 1, "{way}");
    }
}

/// Each life has its own, and closes it.
#[tokio::test(start_paused = true)]
async fn each_life_closes_its_own_resource() {
    let (_world, node) = alone(1221).await;
    let closes = Closes::default();
    let again = closes.clone();
    let make = move || actor_fn(again.resource(), hold);
    let actor = node.actor(make()).restart(Restart::on_panic(), make).await.unwrap();
    for lives in 1..=3 {
        actor.address().send(Job::Panic).await.unwrap();
        tokio::time::sleep(secs(2)).await;
        assert_eq!((closes.count(), actor.restarts()), (lives, lives as u64));
    }
    actor.stop().await;
    assert_eq!(closes.count(), 4);
}

/// It is closed by a runtime that goes away, be it at work or not yet begun.
#[test]
fn a_resource_is_closed_with_its_runtime() {
    let closes = Closes::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (node, actor) = runtime.block_on(async {
        let (_world, node) = alone(1222).await;
        let actor = node.actor(actor_fn(closes.resource(), hold)).await.unwrap();
        actor.address().send(Job::Slowly(1, secs(1000))).await.unwrap();
        tokio::time::sleep(secs(1)).await;
        node.actor(actor_fn(closes.resource(), hold)).await.unwrap();
        (node, actor)
    });
    assert_eq!(closes.count(), 0);
    drop(runtime);
    assert_eq!((closes.count(), actor.exit()), (2, Some(Exit::Killed)));
    drop(node);
}

/// It is closed once by hand, by a lifetime that ends, and by one that was over before; a closing that panics harms nobody.
#[tokio::test(start_paused = true)]
async fn a_resource_is_closed_with_a_lifetime() {
    let (_world, node) = alone(1223).await;
    let closes = Closes::default();
    closes.resource().close();
    assert_eq!(closes.count(), 1);
    let owner = node.mailbox::<u64>();
    closes.resource().until(node.monitor(&owner));
    tokio::time::sleep(secs(10)).await;
    assert_eq!(closes.count(), 1);
    let pid = owner.pid();
    drop(owner);
    tokio::time::sleep(secs(1)).await;
    assert_eq!(closes.count(), 2);
    closes.resource().until(node.monitor(&pid));
    tokio::time::sleep(secs(1)).await;
    assert_eq!(closes.count(), 3, "it was over already");
    let actor = node.actor(actor_fn(Resource::new(0, |_| panic!("it is stuck")), hold)).await.unwrap();
    actor.address().send(Job::Panic).await.unwrap();
    assert_eq!(ended(&actor).await, Exit::Panicked("as it should".into()), "two panics at once end no process");
}

/// A time that an actor sets itself stops it, unless it sets another before; it goes on through a restart.
#[tokio::test(start_paused = true)]
async fn an_actor_stops_itself_after_a_time() {
    let (_world, node) = alone(1224).await;
    let began = Instant::now();
    let policy = Restart::always().back_off(millis(10), millis(10));
    let actor = node.actor(adder().0).restart(policy, || adder().0).await.unwrap();
    let send = async |job| actor.address().send(job).await.unwrap();
    send(Job::StopIn(secs(10))).await;
    tokio::time::sleep(secs(9)).await;
    send(Job::StopIn(secs(10))).await;
    send(Job::Panic).await;
    assert_eq!(ended(&actor).await, Exit::Stopped, "no restart follows");
    assert_eq!((began.elapsed().as_secs(), actor.restarts()), (19, 1));

    // One that is at work finishes; one that takes it back stays.
    let (state, mut diary) = adder();
    let actor = node.actor(state).await.unwrap();
    let send = async |job| actor.address().send(job).await.unwrap();
    send(Job::StopIn(secs(10))).await;
    send(Job::Stay).await;
    send(Job::StopIn(Duration::MAX)).await;
    tokio::time::sleep(secs(100)).await;
    send(Job::StopIn(secs(10))).await;
    send(Job::Slowly(1, secs(30))).await;
    send(Job::Add(2)).await;
    let began = Instant::now();
    assert_eq!(ended(&actor).await, Exit::Stopped);
    assert_eq!((began.elapsed().as_secs(), done(&mut diary).contains(&Did::Added(2))), (30, false));
}

/// A handler knows who sends, and what it sends belongs to the trace of what it handles.
#[tokio::test(start_paused = true)]
async fn a_handler_knows_whom_it_serves() {
    let (_world, a, b) = two(1225).await;
    let mut replies = a.mailbox::<String>();
    let relay = actor_fn(replies.address(), async |to: &mut Address<String>, _: u64, context: &ActorContext<u64>| {
        to.send(context.sender().to_string()).await.unwrap();
        Next::Continue
    });
    let relay = a.actor(relay).await.unwrap();
    let trace: Trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
    let there = relay.address().bind(&b);
    trace.scope(there.send(1)).await.unwrap();
    let first = within(secs(5), replies.recv_full()).await.unwrap();
    assert_eq!((first.message, first.trace), (b.id().to_string(), Some(trace)));
    relay.address().send(2).await.unwrap();
    let second = within(secs(5), replies.recv_full()).await.unwrap();
    assert_eq!((second.message, second.trace), (a.id().to_string(), None), "of each message, not of the last");
}

/// The address of a mailbox, as a binary knows it that has other types.
fn known_as<A: Message, B: Message>(address: &Address<A>, node: &Node) -> Address<B> {
    let text = serde_json::to_string(address).unwrap();
    serde_json::from_str::<Address<B>>(&text).unwrap().bind(node)
}

/// An order as this binary knows it, and as a later one does.
#[derive(Debug, Serialize, Deserialize)]
struct Order(u64);

impl Message for Order {
    const TAG: &'static str = "test.order";
    const VERSION: u32 = 1;
}

#[derive(Serialize, Deserialize)]
struct LaterOrder(String, u64);

impl Message for LaterOrder {
    const TAG: &'static str = "test.order";
    const VERSION: u32 = 2;
}

/// Of its tag and version, and not in its layout.
#[derive(Serialize, Deserialize)]
struct BadOrder(u64, String);

impl Message for BadOrder {
    const TAG: &'static str = "test.order";
    const VERSION: u32 = 1;
}

/// Sends so many messages of each kind that an order's mailbox cannot read, then an order.
async fn send_garbage(orders: &Address<Order>, from: &Node, each: u64) {
    let (other, later, bad) = (
        known_as::<_, String>(orders, from),
        known_as::<_, LaterOrder>(orders, from),
        known_as::<_, BadOrder>(orders, from),
    );
    for n in 0..each {
        other.send("an order".into()).await.unwrap();
        later.send(LaterOrder("urgent".into(), n)).await.unwrap();
        bad.send(BadOrder(n, "x".into())).await.unwrap();
    }
    orders.bind(from).send(Order(7)).await.unwrap();
}

/// A thousand messages that cannot be read, of a peer of other types and versions: each is told, and the good one behind
/// them is handled, within a second.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_told_and_passed() {
    let world = World::new(1226);
    let of_node = Arc::new(AtomicU64::new(0));
    let count = of_node.clone();
    let hook = move |_: &RefusedMessage| _ = count.fetch_add(1, Ordering::Relaxed);
    let a = world.builder("a", 1).on_refused(hook).start().await.unwrap();
    let b = world.node("b", 2).await;
    let (mut orders, of_mailbox) = (a.mailbox::<Order>(), Arc::new(Mutex::new(Vec::new())));
    let told = of_mailbox.clone();
    orders.on_refused(move |refused| told.lock().unwrap().push(refused.clone()));
    let sending = {
        let (there, b) = (orders.address(), b.clone());
        tokio::spawn(async move { send_garbage(&there, &b, 334).await })
    };
    let began = std::time::Instant::now();
    assert_eq!(orders.recv().await.map(|order| order.0), Some(7));
    assert!(began.elapsed() < secs(1), "{:?}", began.elapsed());
    sending.await.unwrap();
    assert_eq!((orders.refused(), of_node.load(Ordering::Relaxed)), (1002, 1002));
    let of_mailbox = std::mem::take(&mut *of_mailbox.lock().unwrap());
    assert_eq!(of_mailbox.len(), 1002);
    for (refused, n) in of_mailbox.iter().zip((0..3).cycle()) {
        assert_eq!((&refused.from, &refused.mailbox), (&b.id(), &orders.pid()));
        let is_right = match n {
            0 => matches!(refused.error, DecodeError::Tag { .. }),
            1 => matches!(refused.error, DecodeError::Version { .. }),
            _ => !matches!(refused.error, DecodeError::Tag { .. } | DecodeError::Version { .. }),
        };
        assert!(is_right, "{refused:?}");
    }
}

/// Whoever asks for them receives them, in their places, as errors.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_received_as_an_error() {
    let world = World::new(1227);
    let (a, b) = world.pair().await;
    let mut orders = a.mailbox::<Order>();
    send_garbage(&orders.address(), &b, 1).await;
    let mut next = async || within(secs(5), orders.recv_or_refused()).await.unwrap();
    assert!(matches!(next().await, Err(refused) if refused.tag == "string"));
    assert!(matches!(next().await, Err(refused) if refused.version == 2));
    assert!(matches!(next().await, Err(refused) if refused.version == 1));
    let received = next().await.unwrap();
    assert_eq!((received.message.0, received.from), (7, b.id()));
    // One that is dropped takes nothing along.
    assert!(timeout(secs(1), orders.recv_or_refused()).await.is_err());
    send_garbage(&orders.address(), &b, 1).await;
    assert_eq!(within(secs(5), orders.recv()).await.unwrap().0, 7);
    assert_eq!((orders.refused(), orders.try_recv().unwrap_err()), (6, RecvError::Empty));
    a.shutdown().await;
    assert!(orders.recv_or_refused().await.is_none());
}

/// An actor is told of them as well, goes on, and may stop for them.
#[tokio::test(start_paused = true)]
async fn an_actor_is_told_what_it_cannot_read() {
    struct Clerk {
        refused: u64,
        most: u64,
    }
    impl Actor for Clerk {
        type Message = Order;
        async fn handle(&mut self, order: Order, _: &ActorContext<Order>) -> Next {
            Next::fail(format!("{} refused before {}", self.refused, order.0))
        }
        fn refused(&mut self, _: &RefusedMessage, context: &ActorContext<Order>) -> Next {
            assert_eq!(context.sender().name().local(), "b");
            self.refused += 1;
            if self.refused < self.most { Next::Continue } else { Next::fail("too much of it") }
        }
    }
    let world = World::new(1228);
    let (a, b) = world.pair().await;
    for (most, reason) in [(3001, "3000 refused before 7"), (3000, "too much of it")] {
        let clerk = a.actor(Clerk { refused: 0, most }).await.unwrap();
        let _ = send_garbage(clerk.address(), &b, 1000).await;
        assert_eq!(within(secs(60), clerk.ended()).await, Exit::Failed(reason.into()));
    }
}

/// An actor whose mailbox is never empty leaves other tasks their turn, on a single thread too.
#[test]
fn a_busy_actor_leaves_others_their_turn() {
    let (told, is_told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_world, node) = alone(1229).await;
            let busy = actor_fn((), async |(): &mut (), n: u64, context: &ActorContext<u64>| {
                context.address().try_send(n + 1).unwrap();
                Next::Continue
            });
            let busy = node.actor(busy).await.unwrap();
            busy.address().send(0).await.unwrap();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            told.send(busy.stop().await).unwrap();
        });
    });
    assert_eq!(is_told.recv_timeout(secs(30)), Ok(Exit::Stopped), "others have their turn");
}

/// A question to an actor that falls over it, or is gone, ends at once.
#[tokio::test(start_paused = true)]
async fn a_question_ends_with_its_actor() {
    let (_world, a, b) = two(1230).await;
    let actor =
        a.actor(actor_fn((), async |(): &mut (), _: Job, _: &ActorContext<Job>| panic!("as it should"))).await.unwrap();
    let there = actor.address().bind(&b);
    let began = Instant::now();
    assert_eq!(there.ask(Job::Total).await, Err(AskError::MailboxClosed(actor.pid().clone())));
    assert!(matches!(there.ask(Job::Total).await, Err(AskError::NotSent(SendError::MailboxClosed(_)))));
    assert!(began.elapsed() < secs(1), "{:?}", began.elapsed());
}
