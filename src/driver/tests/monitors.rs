//! Where notices go, once it is decided that a watch is over.

use super::*;
use crate::id::Pid;
use crate::monitor::{Monitored, Notice, Watching};
use crate::proto::monitor::{Fate, WatchId};

/// A mailbox of A, and one of B that it watches; the notice is the number 1000.
struct Watch {
    world: World,
    inbox: Mailbox<u64>,
    target: Mailbox<u64>,
    watching: Watching,
}

impl Watch {
    async fn new() -> Self {
        let world = World::new().await;
        let (inbox, target) = (world.a.mailbox(), world.b.mailbox());
        let watching = inbox.monitor(&target, told);
        Self { world, inbox, target, watching }
    }

    /// B sends so many messages to the mailbox.
    async fn send(&self, messages: std::ops::Range<u64>) {
        let here = self.inbox.address().bind(&self.world.b);
        here.send_all(messages).await.unwrap();
    }

    /// The watch is over, after the messages of B below that number.
    fn over(&self, number: Option<u64>) {
        self.over_by(self.watching.id(), number);
    }

    fn over_by(&self, watch: WatchId, number: Option<u64>) {
        let cut = number.map(|number| (self.world.b.id(), number));
        self.world.a.shared().notice(watch, Fate::Closed.into(), cut);
    }

    fn parked(&self) -> usize {
        self.world.a.shared().session(self.world.b.name()).unwrap().parked()
    }

    fn held(&self) -> usize {
        self.world.a.shared().monitors.held()
    }

    async fn reads(&mut self, messages: impl IntoIterator<Item = u64>) {
        for message in messages {
            assert_eq!(self.inbox.recv_timeout(secs(5)).await, Ok(message));
        }
    }

    fn is_empty(&mut self) -> bool {
        self.inbox.try_recv() == Err(RecvError::Empty)
    }
}

fn told(notice: Notice) -> u64 {
    assert_eq!(notice.fate, Fate::Closed);
    1000
}

/// A notice that comes before the messages that it follows waits for the last of them.
#[tokio::test(start_paused = true)]
async fn a_notice_waits_for_the_messages_before_it() {
    let mut watch = Watch::new().await;
    watch.over(Some(3));
    assert!(watch.is_empty());
    watch.send(0..2).await;
    watch.reads(0..2).await;
    assert!(watch.is_empty());
    assert_eq!(watch.parked(), 1);
    watch.send(2..3).await;
    watch.reads([2, 1000]).await;
    assert_eq!((watch.parked(), watch.held()), (0, 0));
    watch.over(Some(0));
    assert!(watch.is_empty(), "it is told once");
    watch.world.is_unharmed().await;
}

/// One that comes after them waits for nothing, be it for their number or one less; nor does one without a number.
#[tokio::test(start_paused = true)]
async fn a_notice_whose_messages_have_come_waits_for_nothing() {
    for number in [Some(0), Some(2), Some(3), None] {
        let mut watch = Watch::new().await;
        watch.send(0..3).await;
        watch.reads(0..3).await;
        watch.over(number);
        assert_eq!(watch.inbox.try_recv(), Ok(1000), "{number:?}");
        assert_eq!((watch.parked(), watch.held()), (0, 0));
    }
}

/// What a lost session took along is not waited for, and what it had brought comes first.
#[tokio::test(start_paused = true)]
async fn a_notice_does_not_outlive_its_session() {
    let mut watch = Watch::new().await;
    watch.send(0..2).await;
    watch.reads(0..1).await;
    watch.over(Some(9));
    let cluster = watch.world.a.cluster();
    cluster.disconnect(watch.world.b.name()).await;
    watch.reads([1, 1000]).await;
    assert_eq!(watch.held(), 0);
    // There is no such session any more: the next one's numbers are others.
    let second = watch.inbox.monitor(&watch.target, told);
    watch.over_by(second.id(), Some(9));
    watch.reads([1000]).await;
}

/// Nobody waits for a notice that is cancelled, or whose mailbox is gone, wherever it is by then.
#[tokio::test(start_paused = true)]
async fn a_notice_that_nobody_wants_is_forgotten() {
    let mut watch = Watch::new().await;
    // Before the end.
    watch.watching.cancel();
    watch.over(None);
    assert!(watch.is_empty());
    // While it waits.
    watch.watching = watch.inbox.monitor(&watch.target, told);
    watch.over(Some(1));
    let other = watch.inbox.monitor(&watch.target, told);
    watch.over_by(other.id(), Some(1));
    assert_eq!(watch.parked(), 2);
    watch.watching.cancel();
    watch.watching.cancel();
    assert_eq!(watch.parked(), 1);
    watch.send(0..1).await;
    watch.reads([0, 1000]).await;
    other.cancel();
    // In the queue.
    watch.watching = watch.inbox.monitor(&watch.target, told);
    watch.over(None);
    watch.watching.cancel();
    assert!(watch.is_empty());
    assert_eq!((watch.parked(), watch.held()), (0, 0));
    // With its mailbox.
    let watching = [watch.inbox.monitor(&watch.target, told), watch.inbox.monitor(&watch.target, told)];
    watch.over_by(watching[0].id(), Some(9));
    assert_eq!((watch.parked(), watch.held()), (1, 3));
    watch.inbox = watch.world.a.mailbox();
    assert_eq!((watch.parked(), watch.held()), (0, 0));
    watch.world.is_unharmed().await;
}

/// A future is told once; dropped, it leaves nothing. When the node stops, all are told.
#[tokio::test(start_paused = true)]
async fn a_node_that_stops_tells_all_who_wait() {
    let mut watch = Watch::new().await;
    let a = watch.world.a.clone();
    let there = watch.target.pid();
    let mut monitors: Vec<_> = (0..3).map(|_| a.monitor(&there)).collect();
    drop(monitors.pop());
    assert_eq!(watch.held(), 4, "two futures, and one in band for one mailbox");
    let told = Notice { target: Monitored::Mailbox(there.clone()), fate: Fate::Disconnected, reason: None };
    watch.watching = watch.inbox.monitor(&watch.target, |notice| {
        assert_eq!(notice.fate, Fate::Disconnected);
        2000
    });
    let first = watch.inbox.monitor(&watch.target, |_| 0);
    first.cancel();
    watch.world.chatter.abort();
    a.shutdown().await;
    for monitor in monitors {
        assert_eq!(monitor.await, told);
    }
    assert_eq!(watch.held(), 0);
    assert_eq!(a.monitor(&there).await, told, "and so is who comes later");
    let never = a.monitor(Monitored::Name { scope: String::new(), name: "nobody".into() });
    assert_eq!(never.await.fate, Fate::NoSuchMailbox);
}

/// Watches of ever new dead lives leave nothing in a node.
#[tokio::test(start_paused = true)]
async fn watches_of_the_dead_leave_nothing() {
    let world = World::new().await;
    let live = world.b.id();
    for n in 1..=200_000 {
        let old = NodeId::new(live.name().clone(), live.incarnation() - n);
        let told = timeout(secs(5), world.a.monitor(Pid::new(old, n))).await;
        assert_eq!(told.expect("a notice").fate, Fate::Superseded);
    }
    assert_eq!(world.a.shared().monitors.held(), 0);
}
