//! Mailboxes that nobody reads, and mailboxes in numbers: what they take of memory, and of everybody else.
//!
//! Each test runs in a process of its own, because other tests take memory too. All nodes of a test are in that process, so
//! what is measured is the memory of both sides.

use bytes::Bytes;

use super::flood::resident_kib;
use super::*;
use crate::error::SendError;
use crate::messaging::Address;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

const MEASURE: Method<Bytes, u64> = Method::new("measure");

/// Set in the processes that [`alone`] starts.
const ALONE: &str = "DISTRIBUTE_TEST_ALONE";

fn alone(test: &str) {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("driver::tests::memory::{test}"), "--nocapture"])
        .env(ALONE, "1")
        .status();
    assert!(status.unwrap().success());
}

fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

async fn nodes(count: usize) -> Vec<Node> {
    let (fabric, cookie) = (Fabric::new(7), Cookie::generate());
    let mut nodes = Vec::new();
    for n in 1..=count {
        nodes.push(node(&fabric, &cookie, &format!("n{n}@10.0.0.{n}:4370"), Config::default()).await);
    }
    let _ = nodes[0].rpc().serve(MEASURE, |_, bytes| async move { bytes.len() as u64 });
    for node in &nodes[1..] {
        node.cluster().connect(nodes[0].name()).await.unwrap();
    }
    nodes
}

/// Offers a message again and again, so many bytes in all, and returns how many were accepted.
async fn offer(there: &Address<Bytes>, body: &Bytes, total: usize) -> usize {
    let mut accepted = 0;
    for n in 0..total / body.len() {
        match there.try_send(body.clone()) {
            Ok(()) => accepted += 1,
            Err(refused) => assert_eq!(refused.reason(), &SendError::Full),
        }
        if n % 500 == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    accepted
}

/// Messages small and large, and calls, from a peer to a mailbox of its own: how long they take.
async fn converse(from: &Node, to: &Node) -> (Duration, Duration) {
    let (began, real) = (tokio::time::Instant::now(), std::time::Instant::now());
    let mut inbox = to.mailbox::<Bytes>();
    let there = inbox.address().bind(from);
    let sending = async {
        for n in 0..1000usize {
            there.send(vec![n as u8; if n % 250 == 0 { MIB } else { 1000 }].into()).await.unwrap();
        }
    };
    let reading = async {
        for n in 0..1000usize {
            let body = inbox.recv_timeout(secs(60)).await.unwrap();
            assert_eq!((body[0], body[body.len() - 1]), (n as u8, n as u8));
        }
    };
    let calling = async {
        for n in 0..200 {
            assert_eq!(from.rpc().call(to.name(), MEASURE, vec![0; n].into()).await, Ok(n as u64));
        }
    };
    tokio::join!(sending, reading, calling);
    (began.elapsed(), real.elapsed())
}

/// Ten gigabytes offered to mailboxes that nobody reads, then a thousand sends that wait: only what fits is accepted and
/// memory stays flat; sends that are given up leave nothing; and who comes to read finds what was accepted, and then the
/// rest of the traffic.
#[test]
fn a_mailbox_that_nobody_reads_is_bounded() {
    alone("unread_mailboxes");
}

#[tokio::test(start_paused = true)]
async fn unread_mailboxes() {
    if !is_alone() {
        return;
    }
    let nodes = nodes(2).await;
    let [b, a] = &nodes[..] else { unreachable!() };
    let window = b.shared().config.lane_window;
    let before = resident_kib();
    for (size, total) in [(MIB, 5_000_000_000), (64 * KIB, 5_000_000_000), (1000, 100_000_000)] {
        let mut inbox = b.mailbox::<Bytes>();
        let there = inbox.address().bind(a);
        let body = Bytes::from(vec![7; size]);
        let mut accepted = offer(&there, &body, total / 10).await;
        let early = resident_kib();
        accepted += offer(&there, &body, total - total / 10).await;
        let late = resident_kib();
        println!(
            "{total} bytes offered in messages of {size}: {accepted} accepted; resident {before} KiB before, {early} KiB \
             after a tenth, {late} KiB after all"
        );
        assert!((1..=window / size + 1).contains(&accepted), "{accepted}");
        assert!(late < early + 2 * 1024, "memory grows with what is offered");
        assert!(late < before + 16 * 1024, "more is held than a window and a message");

        let waiting = Bytes::from(vec![8; size]);
        let mut sends = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            let (there, waiting) = (there.clone(), waiting.clone());
            sends.spawn(async move { there.send(waiting).await });
        }
        sleep(secs(20)).await;
        assert!(sends.try_join_next().is_none(), "they wait");
        let parked = resident_kib();
        sends.shutdown().await;
        println!(
            "resident {parked} KiB with a thousand of them waiting, {} KiB after they were given up",
            resident_kib()
        );
        assert!(parked < late + 4 * 1024);
        assert!(waiting.is_unique(), "all is given back");

        for _ in 0..accepted {
            assert_eq!(inbox.recv_timeout(secs(5)).await.as_ref(), Ok(&body));
        }
        assert_eq!(inbox.try_recv(), Err(RecvError::Empty));
        let sending = async {
            for _ in 0..100 {
                there.send(waiting.clone()).await.unwrap();
            }
        };
        let reading = async {
            for _ in 0..100 {
                assert_eq!(inbox.recv_timeout(secs(5)).await.as_ref(), Ok(&waiting));
            }
        };
        tokio::join!(sending, reading);
    }
    let end = resident_kib();
    println!("resident at the end: {end} KiB");
}

/// A thousand mailboxes that nobody reads, each stuffed by three peers: they hold their windows and no more, however long
/// it goes on, and whoever talks to other mailboxes is as fast as before.
#[test]
fn a_thousand_stuffed_mailboxes_are_bounded_and_delay_nobody() {
    alone("stuffed_mailboxes");
}

#[tokio::test(start_paused = true)]
async fn stuffed_mailboxes() {
    if !is_alone() {
        return;
    }
    const MAILBOXES: usize = 1000;
    let nodes = nodes(4).await;
    let [target, peers @ ..] = &nodes[..] else { unreachable!() };
    // The first talk warms up what is made once.
    converse(&peers[0], target).await;
    let (idle, idle_real) = converse(&peers[0], target).await;
    let before = resident_kib();
    let inboxes: Vec<_> = (0..MAILBOXES).map(|_| target.mailbox::<Bytes>()).collect();
    let lanes: Vec<Address<Bytes>> =
        peers.iter().flat_map(|peer| inboxes.iter().map(|inbox| inbox.address().bind(peer))).collect();
    let body = Bytes::from(vec![7; 1000]);
    let mut accepted = 0;
    let stuff = async || {
        let mut more = 0;
        for there in &lanes {
            while there.try_send(body.clone()).is_ok() {
                more += 1;
            }
        }
        sleep(Duration::from_millis(20)).await;
        more
    };
    loop {
        let more = stuff().await;
        accepted += more;
        if more == 0 {
            break;
        }
    }
    sleep(secs(1)).await;
    let stuffed = resident_kib();
    for _ in 0..20 {
        assert_eq!(stuff().await, 0);
    }
    let late = resident_kib();
    let bound = (lanes.len() * target.shared().config.lane_window / KIB) as u64;
    println!(
        "{} lanes took {accepted} messages of {} bytes; resident {before} KiB before, {stuffed} KiB stuffed, {late} KiB \
         after as many offers again; the windows are {bound} KiB",
        lanes.len(),
        body.len()
    );
    assert_eq!(accepted, lanes.len() * (target.shared().config.lane_window / (body.len() + 128)));
    assert!(stuffed < before + bound + bound / 4, "the lanes hold more than their windows");
    assert!(late < stuffed + 2 * 1024, "memory grows with what is offered");

    for peer in peers {
        let (busy, busy_real) = converse(peer, target).await;
        println!("a conversation took {idle:?} before and {busy:?} beside; really {idle_real:?} and {busy_real:?}");
        assert!(busy <= idle + idle / 2, "{idle:?} became {busy:?}");
        assert!(busy_real <= 5 * idle_real + secs(1), "{idle_real:?} became {busy_real:?}");
    }
    for mut inbox in inboxes {
        for _ in 0..accepted / MAILBOXES {
            assert_eq!(inbox.try_recv().as_ref(), Ok(&body));
        }
    }
}

/// A hundred thousand mailboxes that are opened, sent to, read and closed: many times more than a peer may send to at one
/// time. Nothing is left of them, and sends to them say that they are closed.
#[test]
fn mailboxes_that_come_and_go_leave_nothing() {
    alone("many_mailboxes");
}

#[tokio::test(start_paused = true)]
async fn many_mailboxes() {
    if !is_alone() {
        return;
    }
    const BATCHES: usize = 100;
    const BATCH: usize = 1000;
    let nodes = nodes(2).await;
    let [b, a] = &nodes[..] else { unreachable!() };
    let mut resident = Vec::new();
    let mut first_of_all = None;
    for batch in 0..BATCHES {
        let mut inboxes: Vec<_> = (0..BATCH).map(|_| b.mailbox::<u64>()).collect();
        let there: Vec<_> = inboxes.iter().map(|inbox| inbox.address().bind(a)).collect();
        for (n, to) in there.iter().enumerate() {
            for _ in 0..=n % 2 {
                to.send(n as u64).await.unwrap();
            }
        }
        for (n, inbox) in inboxes.iter_mut().enumerate() {
            for _ in 0..=n % 2 {
                assert_eq!(inbox.recv_timeout(secs(5)).await, Ok(n as u64));
            }
        }
        drop(inboxes);
        for to in there.iter().step_by(10) {
            is_closed(to).await;
        }
        first_of_all.get_or_insert_with(|| there[0].clone());
        if batch % 10 == 9 {
            resident.push(resident_kib());
        }
    }
    println!("resident after each {} mailboxes: {resident:?} KiB", 10 * BATCH);
    let (first, last) = (resident[0], resident[resident.len() - 1]);
    assert!(last < first + 2 * 1024, "memory grows with the number of mailboxes");
    // Closed so long ago that nobody remembers: it is found out again.
    is_closed(&first_of_all.unwrap()).await;
    converse(a, b).await;
}

/// A send says that the mailbox is closed, at the latest when the peer has said so.
async fn is_closed(there: &Address<u64>) {
    let asking = async {
        loop {
            match there.send(0).await {
                Ok(()) => sleep(Duration::from_millis(1)).await,
                Err(error) => return error,
            }
        }
    };
    let error = timeout(secs(1), asking).await.expect("it is told");
    assert_eq!(error, SendError::MailboxClosed(there.pid().clone()));
}

/// Five thousand small messages arrive in order, unharmed, while bulk passes to another mailbox, and memory stays flat.
#[test]
fn small_messages_pass_beside_bulk_in_bounded_memory() {
    alone("bulk_beside");
}

#[tokio::test(start_paused = true)]
async fn bulk_beside() {
    if !is_alone() {
        return;
    }
    const SMALL: u64 = 5000;
    let nodes = nodes(2).await;
    let [b, a] = &nodes[..] else { unreachable!() };
    let (mut small, mut bulk) = (b.mailbox::<(u64, Vec<u64>)>(), b.mailbox::<Bytes>());
    let (to_small, to_bulk) = (small.address().bind(a), bulk.address().bind(a));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let sending_bulk = tokio::spawn(async move {
        let body = Bytes::from((0..MIB).map(|n| n as u8).collect::<Vec<_>>());
        let mut sent = 0;
        while !stopped.load(Ordering::Relaxed) {
            to_bulk.send(body.clone()).await.unwrap();
            sent += 1;
        }
        sent
    });
    let reading_bulk = tokio::spawn(async move {
        let mut read = 0;
        while let Ok(body) = bulk.recv_timeout(secs(5)).await {
            assert!(
                body.len() == MIB && body.iter().step_by(997).enumerate().all(|(n, byte)| *byte == (997 * n) as u8)
            );
            read += 1;
        }
        read
    });
    let sending = tokio::spawn(async move {
        for n in 0..SMALL {
            to_small.send((n, vec![n; n as usize % 50])).await.unwrap();
            if n % 10 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
    });
    let mut resident = Vec::new();
    for n in 0..SMALL {
        assert_eq!(small.recv_timeout(secs(5)).await, Ok((n, vec![n; n as usize % 50])));
        if n % (SMALL / 10) == SMALL / 10 - 1 {
            resident.push(resident_kib());
        }
    }
    stop.store(true, Ordering::Relaxed);
    sending.await.unwrap();
    let (sent, read) = (sending_bulk.await.unwrap(), reading_bulk.await.unwrap());
    println!("{SMALL} small messages beside {sent} MiB in bulk; resident on the way: {resident:?} KiB");
    assert_eq!(sent, read);
    assert!(sent > 50, "only {sent} MiB passed");
    let (first, last) = (resident[1], resident[resident.len() - 1]);
    assert!(last < first + 8 * 1024, "memory grows with what passes");
}
