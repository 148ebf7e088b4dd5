//! Testing a service of your own under a partition, in virtual time.
//!
//! ```text
//! cargo run --example partition
//! ```
//!
//! Two whole nodes run in this process, with real QUIC and TLS; only their sockets are replaced by those of
//! [`distribute::sim::Fabric`], a network in memory that can be cut. tokio's clock is paused, so it jumps to the next
//! timer whenever everybody waits: a minute of partition passes in less than a second, and nothing depends on how fast
//! this machine is.
//!
//! The same lines with `#[tokio::test(start_paused = true)]` in place of `main` are a test. In your own crate, put
//! `distribute = { version = "…", features = ["sim"] }` and tokio's `test-util` into the dev-dependencies.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use distribute::sim::Fabric;
use distribute::{CallError, Cookie, DownReason, Effect, Message, Method, Node, NodeEvent};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

// The service: a counter that can be told the same thing twice.

/// Adds to the counter. An order that was carried out is recognised by its number and not carried out again, so a caller
/// that is left in doubt simply repeats it.
#[derive(Clone, Serialize, Deserialize)]
struct Add {
    order: u64,
    amount: u64,
}

impl Message for Add {
    const TAG: &'static str = "counter.add";
    const VERSION: u32 = 1;
}

const ADD: Method<Add, u64> = Method::new("counter.add");

#[derive(Clone, Default)]
struct Counter {
    state: Arc<Mutex<(u64, HashSet<u64>)>>,
}

impl Counter {
    fn serve(&self, node: &Node) -> Result<(), distribute::Error> {
        let counter = self.clone();
        node.rpc().serve(ADD, move |_call, add| {
            let value = counter.add(&add);
            async move { value }
        })?;
        Ok(())
    }

    fn add(&self, add: &Add) -> u64 {
        let (value, orders) = &mut *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.insert(add.order) {
            *value += add.amount;
        }
        *value
    }

    fn value(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

// The test. One thread, so that nothing runs while the clock jumps.

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), distribute::Error> {
    let start = Instant::now();
    let say = |text: &str| println!("{:>7.3} s  {text}", start.elapsed().as_secs_f64());

    // Two hosts on one network. The addresses are whatever you like: nothing of this leaves the process.
    let fabric = Fabric::new(1);
    let (here, there): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let cookie = Cookie::generate();
    let shop = Node::builder("shop@10.0.0.1").cookie(cookie.clone()).network(fabric.host(here)).start().await?;
    let bank = Node::builder("bank@10.0.0.2").cookie(cookie).network(fabric.host(there)).start().await?;
    let counter = Counter::default();
    counter.serve(&bank)?;
    let mut events = shop.cluster().node_events();

    let (rpc, bank_name) = (shop.rpc(), bank.name().clone());
    let add = |order| rpc.call(&bank_name, ADD, Add { order, amount: 1 });
    let secs = Duration::from_secs;

    assert_eq!(add(1).await?, 1);
    assert_eq!(events.next().await, Some(NodeEvent::Up(bank.id())));
    say("The shop's first call dialled the bank and was answered. The counter is at 1.");

    println!("\nA cut of 4 s, shorter than `Config::link_lost_after` (10 s)");
    fabric.cut(here, there);
    say("The network between the two is cut.");
    let healing = tokio::spawn({
        let fabric = fabric.clone();
        async move {
            sleep(secs(4)).await;
            fabric.heal(here, there);
        }
    });
    let asked = Instant::now();
    assert_eq!(add(2).timeout(secs(20)).await?, 2);
    assert!(healing.is_finished() && asked.elapsed() >= secs(4));
    say(&format!(
        "A call made during the cut was answered after {:.3} s: late, and once.",
        asked.elapsed().as_secs_f64()
    ));
    assert_eq!(shop.cluster().peers(), [bank.id()]);
    say("The session is the one from before, and nobody was told of anything.");

    println!("\nA cut of 40 s, both ways");
    let cut = Instant::now();
    fabric.cut(here, there);
    say("The network is cut again.");
    let error = add(3).timeout(secs(3)).await.unwrap_err();
    assert_eq!((&error, error.effect()), (&CallError::Timeout(secs(3)), Effect::Unknown));
    say(&format!("A call that waits for 3 s: \"{error}\". Its effect is unknown."));
    let error = add(4).timeout(secs(60)).await.unwrap_err();
    assert_eq!((&error, error.effect()), (&CallError::Disconnected(bank.id()), Effect::Unknown));
    say(&format!("A call that waits for 60 s ends sooner: \"{error}\". Unknown as well."));
    // Which of the two is noticed first is a matter of milliseconds.
    let down = [DownReason::Dead, DownReason::Lost].map(|reason| Some(NodeEvent::Down(bank.id(), reason)));
    assert!(down.contains(&events.next().await));
    say("The shop's node events say that the bank is down: its link was lost, or membership declared it dead.");
    let error = add(5).await.unwrap_err();
    assert!(matches!(error, CallError::NotConnected(..)));
    assert_eq!(error.effect(), Effect::NotDone);
    say(&format!("A call that begins now: \"{error}\". It has certainly had no effect."));
    tokio::time::sleep_until(cut + secs(40)).await;
    fabric.heal(here, there);
    say("The network is healed.");
    for order in [3, 4, 5] {
        add(order).timeout(secs(20)).await?;
    }
    assert_eq!(events.next().await, Some(NodeEvent::Up(bank.id())));
    assert_eq!(counter.value(), 5);
    say("The shop repeats the three orders: the node dials by itself, and the counter is at 5.");

    println!("\nA cut of 40 s, of the answers only");
    let cut = Instant::now();
    fabric.cut_one_way(there, here);
    say("The bank hears the shop, the shop does not hear the bank.");
    let error = add(6).timeout(secs(60)).await.unwrap_err();
    assert_eq!((&error, error.effect()), (&CallError::Disconnected(bank.id()), Effect::Unknown));
    assert_eq!(counter.value(), 6);
    say(&format!("\"{error}\". The same error, but this time the counter is at 6: \"unknown\" means it."));
    tokio::time::sleep_until(cut + secs(40)).await;
    fabric.heal_all();
    assert_eq!(add(6).timeout(secs(20)).await?, 6);
    say("After healing the shop repeats the order, which the bank recognises. The counter stays at 6.");

    let counters = fabric.counters();
    shop.shutdown().await;
    bank.shutdown().await;
    say("Both nodes have left in good order.");
    println!("\n{} datagrams were sent, {} of them into a cut.", counters.sent, counters.cut);
    Ok(())
}
