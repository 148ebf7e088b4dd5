//! Pieces of the path of a message: its body, its frame, its credit, and the mailbox of the sender's own node.
//!
//! `cargo bench --bench pieces`. What a whole message or call costs beside raw quinn is in `traffic`.

use std::fmt::Debug;

use distribute::pieces::{Lanes, lane, split};
use distribute::{Address, Bytes, Cookie, Mailbox, Message, Node, Pid};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

fn main() {
    divan::main();
}

/// Numbers, and a name on the heap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Order {
    id: u64,
    price: f64,
    pieces: u32,
    article: String,
}

impl Message for Order {
    const TAG: &'static str = "bench.order";
    const VERSION: u32 = 1;
}

/// A value of each kind, of about so many bytes as a body.
trait Example: Message + Clone + Debug + PartialEq + Sync {
    fn example(size: usize) -> Self;
}

impl Example for u64 {
    fn example(_size: usize) -> Self {
        Self::MAX
    }
}

impl Example for Bytes {
    fn example(size: usize) -> Self {
        vec![7; size].into()
    }
}

impl Example for String {
    fn example(size: usize) -> Self {
        "x".repeat(size)
    }
}

impl Example for Order {
    fn example(size: usize) -> Self {
        Self { id: 70_000, price: 9.95, pieces: 12, article: String::example(size.saturating_sub(16)) }
    }
}

impl Example for Vec<Order> {
    fn example(size: usize) -> Self {
        vec![Order::example(64); size / 64]
    }
}

const SIZES: [usize; 3] = [64, 1024, 64 * 1024];

fn body_of(message: &impl Message) -> Bytes {
    let mut body = Vec::new();
    message.encode(&mut body).unwrap();
    body.into()
}

/// Into a buffer that has room.
#[divan::bench(types = [Bytes, String, Order, Vec<Order>], args = SIZES)]
fn encode<M: Example>(bencher: Bencher<'_, '_>, size: usize) {
    let message = M::example(size);
    let mut out = Vec::with_capacity(2 * body_of(&message).len());
    bencher.counter(BytesCount::new(body_of(&message).len())).bench_local(|| {
        out.clear();
        divan::black_box(&message).encode(&mut out).unwrap();
        divan::black_box(out.len())
    });
}

/// From a body that stays; raw bytes are shared, not copied.
#[divan::bench(types = [Bytes, String, Order, Vec<Order>], args = SIZES)]
fn decode<M: Example>(bencher: Bencher<'_, '_>, size: usize) {
    let message = M::example(size);
    let body = body_of(&message);
    assert_eq!(M::decode(&body, M::VERSION).unwrap(), message);
    bencher.counter(BytesCount::new(body.len())).bench(|| M::decode(divan::black_box(&body), M::VERSION).unwrap());
}

/// As a message says where to answer to.
#[divan::bench]
fn encode_pid(bencher: Bencher<'_, '_>) {
    let pid = Local::<u64>::start().mailbox.pid();
    let mut out = Vec::with_capacity(256);
    bencher.bench_local(|| {
        out.clear();
        divan::black_box(&pid).encode(&mut out).unwrap();
        divan::black_box(out.len())
    });
}

#[divan::bench]
fn decode_pid(bencher: Bencher<'_, '_>) {
    let body = body_of(&Local::<u64>::start().mailbox.pid());
    bencher.bench(|| Pid::decode(divan::black_box(&body), Pid::VERSION).unwrap());
}

/// A lane of a thousand messages, in pieces as packets bring them.
#[divan::bench(args = [64, 1024])]
fn split_a_lane(bencher: Bencher<'_, '_>, body: usize) {
    const MESSAGES: u64 = 1000;
    let lane = lane(MESSAGES, body);
    bencher.counter(ItemsCount::new(MESSAGES)).bench_local(|| split(divan::black_box(&lane), 1400));
}

/// A message through the books of both ends: number, credit, order, and the credit back.
#[divan::bench(args = [1, 1000])]
fn credit(bencher: Bencher<'_, '_>, mailboxes: u64) {
    let mut lanes = Lanes::default();
    let mut turn = 0;
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| {
        turn = (turn + 1) % mailboxes;
        lanes.message(turn, 64);
    });
}

/// A node with a mailbox, alone.
struct Local<M: Message> {
    runtime: Runtime,
    mailbox: Mailbox<M>,
    address: Address<M>,
    _node: Node,
}

impl<M: Message> Local<M> {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let start = Node::builder("local@127.0.0.1:0").cookie(Cookie::generate()).start();
        let node = runtime.block_on(start).unwrap();
        let mailbox = node.mailbox();
        Self { runtime, address: mailbox.address(), mailbox, _node: node }
    }
}

/// Into the mailbox and out of it, without waiting.
#[divan::bench(types = [u64, Bytes, Order])]
fn local_try_send_and_try_recv<M: Example>(bencher: Bencher<'_, '_>) {
    let mut local = Local::<M>::start();
    bencher.counter(ItemsCount::new(1usize)).with_inputs(|| M::example(64)).bench_local_values(|message| {
        local.address.try_send(message).unwrap();
        local.mailbox.try_recv().unwrap()
    });
}

/// A hundred in, a hundred out, with `send` and `recv`, which never wait here.
#[divan::bench(types = [u64, Bytes, Order])]
fn local_send_and_recv<M: Example>(bencher: Bencher<'_, '_>) {
    const MESSAGES: usize = 100;
    let mut local = Local::<M>::start();
    let message = M::example(64);
    bencher.counter(ItemsCount::new(MESSAGES)).bench_local(|| {
        local.runtime.block_on(async {
            for _ in 0..MESSAGES {
                local.address.send(message.clone()).await.unwrap();
            }
            for _ in 0..MESSAGES {
                divan::black_box(local.mailbox.recv().await);
            }
        });
    });
}
