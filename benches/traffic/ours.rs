//! This library's loads, both ends, through its public interface.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use distribute::{Address, Bytes, Config, Cookie, Mailbox, Message, Method, Node, NodeName};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::load::{Ask, Tally};

const ECHO: Method<Bytes, Bytes> = Method::new("bench.echo");
/// Opens mailboxes that are read, for as long as the node lives.
const OPEN: Method<u32, Vec<Address<Bytes>>> = Method::new("bench.open");
const OPEN_READINGS: Method<(), Address<Reading>> = Method::new("bench.open-readings");
/// Opens mailboxes that nobody reads.
const OPEN_UNREAD: Method<u32, Vec<Address<Bytes>>> = Method::new("bench.open-unread");

const PATIENCE: Duration = Duration::from_secs(20);

/// A message with fields, some 64 bytes as a value and as a body.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Reading {
    station: u64,
    taken_at: u64,
    celsius: [f64; 4],
    hectopascal: f64,
    millimetres: f64,
}

impl Message for Reading {
    const TAG: &'static str = "bench.reading";
    const VERSION: u32 = 1;
}

impl Reading {
    pub(crate) fn example() -> Self {
        let taken_at = 1_795_000_000;
        Self { station: 70_000, taken_at, celsius: [21.5; 4], hectopascal: 1013.25, millimetres: 0.5 }
    }
}

pub(crate) async fn start(name: &str, cookie: &str, mtu_max: u16) -> Node {
    let mut config = Config::default();
    config.mtu_max = mtu_max;
    let cookie = Cookie::from_text(cookie).unwrap();
    Node::builder(format!("{name}@127.0.0.1:0").as_str()).cookie(cookie).config(config).start().await.unwrap()
}

// The far end.

/// Serves what the loads need.
pub(crate) fn serve(node: &Node, arrived: &Arc<AtomicU64>) {
    let rpc = node.rpc();
    rpc.serve(ECHO, |_call, question| async move { question }).unwrap();
    let (owner, counter) = (node.clone(), arrived.clone());
    let open = move |_call, mailboxes| {
        let addresses: Vec<_> = (0..mailboxes).map(|_| count(owner.mailbox(), &counter)).collect();
        async move { addresses }
    };
    rpc.serve(OPEN, open).unwrap();
    let (owner, counter) = (node.clone(), arrived.clone());
    let open_readings = move |_call, ()| {
        let address = count(owner.mailbox(), &counter);
        async move { address }
    };
    rpc.serve(OPEN_READINGS, open_readings).unwrap();
    let (owner, unread) = (node.clone(), Mutex::new(Vec::<Mailbox<Bytes>>::new()));
    let open_unread = move |_call, mailboxes| {
        let opened: Vec<_> = (0..mailboxes).map(|_| owner.mailbox()).collect();
        let addresses = opened.iter().map(Mailbox::address).collect::<Vec<_>>();
        unread.lock().unwrap().extend(opened);
        async move { addresses }
    };
    rpc.serve(OPEN_UNREAD, open_unread).unwrap();
}

/// Counts what arrives in a mailbox.
fn count<M: Message>(mut mailbox: Mailbox<M>, arrived: &Arc<AtomicU64>) -> Address<M> {
    let (address, arrived) = (mailbox.address(), arrived.clone());
    tokio::spawn(async move {
        while mailbox.recv().await.is_some() {
            arrived.fetch_add(1, Ordering::Relaxed);
        }
    });
    address
}

// The near end.

/// A node of the near end with a link to one of the far end.
pub(crate) struct Pair {
    pub(crate) near: Node,
    far: NodeName,
}

impl Pair {
    pub(crate) async fn connect(near: Node, far: &NodeName) -> Self {
        near.cluster().connect(far).await.unwrap();
        Self { near, far: far.clone() }
    }

    /// Addresses of so many new mailboxes at the far end, all of which are read.
    pub(crate) async fn open(&self, mailboxes: u32) -> Vec<Address<Bytes>> {
        self.near.rpc().call(&self.far, OPEN, mailboxes).timeout(PATIENCE).await.unwrap()
    }

    pub(crate) async fn open_readings(&self) -> Address<Reading> {
        self.near.rpc().call(&self.far, OPEN_READINGS, ()).timeout(PATIENCE).await.unwrap()
    }

    /// Opens mailboxes at the far end that nobody reads, and sends to them until they take no more.
    pub(crate) async fn stuff(&self, mailboxes: u32, size: usize) {
        let opened = self.near.rpc().call(&self.far, OPEN_UNREAD, mailboxes).timeout(PATIENCE).await.unwrap();
        let message = Bytes::from(vec![7; size]);
        // A send is also refused while much waits for the socket, so another pass follows until one finds no room at all.
        loop {
            let mut taken = 0;
            for address in &opened {
                while address.try_send(message.clone()).is_ok() {
                    taken += 1;
                }
            }
            if taken == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn calls(&self, size: usize) -> Calls {
        Calls { rpc: self.near.rpc(), callee: self.far.clone(), question: vec![7; size].into() }
    }
}

/// Sends on one node alone: a value goes into a mailbox and comes out.
pub(crate) fn send_within(node: &Node, tasks: &mut JoinSet<()>, tally: &Arc<Tally>) {
    let mut mailbox = node.mailbox::<Reading>();
    let (address, tally) = (mailbox.address(), tally.clone());
    // Not one of the load's tasks, because it must outlive the sender; it ends with the node.
    tokio::spawn(async move {
        while mailbox.recv().await.is_some() {
            tally.add_one();
        }
    });
    send_to_all(tasks, vec![address], &Reading::example());
}

/// One sender that sends to these mailboxes in turn.
pub(crate) fn send_to_all<M: Message + Clone + Sync>(tasks: &mut JoinSet<()>, addresses: Vec<Address<M>>, message: &M) {
    let message = message.clone();
    tasks.spawn(async move {
        loop {
            for address in &addresses {
                address.send(message.clone()).await.unwrap();
            }
        }
    });
}

/// Calls of the far end's echo.
#[derive(Clone)]
pub(crate) struct Calls {
    rpc: distribute::Rpc,
    callee: NodeName,
    question: Bytes,
}

impl Ask for Calls {
    async fn ask(&self) {
        let answer = self.rpc.call(&self.callee, ECHO, self.question.clone()).timeout(PATIENCE).await.unwrap();
        assert_eq!(answer.len(), self.question.len());
    }
}
