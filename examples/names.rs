//! One name on both sides of a partition, in virtual time.
//!
//! ```text
//! cargo run --example names
//!
//!    east ── north ──╳── south        each side goes on alone, and gives the same names to mailboxes of its own;
//!      └───────────╳───────┘          when the two meet again, one owner is left of each
//! ```
//!
//! As in the example `partition`, whole nodes run in this process on a network in memory, and tokio's clock jumps to the
//! next timer whenever everybody waits.
//!
//! Read [`Desk`] for the service and its two ways to lose a name.

use std::net::IpAddr;
use std::time::Duration;

use distribute::sim::Fabric;
use distribute::{
    Cookie, Mailbox, Name, NameChange, NameEntry, NameEvent, NameEvents, Node, OnLoss, Pid, RegisterError,
    Registration, SendError,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

/// Who loses this name keeps its mailbox, and gives what it has to the owner.
const ORDERS: Name<String> = Name::new("orders");

/// Nobody may write this without the name: who loses it is closed.
const LEDGER: Name<String> = Name::new("ledger");

/// Every wait ends by then, in virtual time.
const PATIENCE: Duration = Duration::from_secs(120);

/// A mailbox and its name.
struct Desk {
    mailbox: Mailbox<String>,
    registration: Registration<String>,
}

impl Desk {
    async fn open(node: &Node, name: Name<String>, on_loss: OnLoss) -> Result<Self, RegisterError> {
        let mailbox = node.mailbox();
        let registration = node.registry().register(name, &mailbox).on_loss(on_loss).await?;
        Ok(Self { mailbox, registration })
    }

    fn node(&self) -> &str {
        self.registration.pid().node().name().local()
    }
}

// One thread, so that nothing runs while the clock jumps.

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<()> {
    let start = Instant::now();
    let say = |text: &str| println!("{:>7.3} s  {text}", start.elapsed().as_secs_f64());

    let fabric = Fabric::new(1);
    let ips = [1, 2, 3].map(|host| IpAddr::from([10, 0, 0, host]));
    let cookie = Cookie::generate();
    let builder = |name: &str, ip| Node::builder(name).cookie(cookie.clone()).network(fabric.host(ip));
    let north = builder("north@10.0.0.1", ips[0]).start().await?;
    let east = builder("east@10.0.0.2", ips[1]).join(north.name()).start().await?;
    let south = builder("south@10.0.0.3", ips[2]).join(north.name()).start().await?;
    let nodes = [&north, &east, &south];
    for node in nodes {
        timeout(PATIENCE, node.ready()).await??;
        timeout(PATIENCE, node.membership().wait_for_alive(3)).await?;
    }
    say("North, east and south are ready: each knows all names, of which there are none.");

    println!("\nOne cluster, one owner");
    let desk = Desk::open(&north, ORDERS, OnLoss::Tell).await?;
    say("North registers \"orders\".");
    let error = Desk::open(&south, ORDERS, OnLoss::Tell).await.map(|_| ()).unwrap_err();
    assert!(matches!(&error, RegisterError::Taken { owner, is_confirmed: true } if owner == desk.registration.pid()));
    say(&format!("South tries to: \"{error}\". North has just confirmed it."));
    drop(desk);
    all_see(&nodes, ORDERS, None).await?;
    say("North's mailbox is dropped, and nobody has the name.");

    println!("\nA partition");
    fabric.partition(&ips[..2], &ips[2..]);
    say("South is cut off from north and east.");
    let alone = |node: &Node, size| {
        let membership = node.membership();
        async move { timeout(PATIENCE, membership.wait_for(|_| membership.alive().len() == size)).await }
    };
    alone(&south, 1).await?;
    say("South has given up the two others,");
    alone(&north, 2).await?;
    alone(&east, 2).await?;
    say("and they have given up south. Each side goes on alone.");
    let mut orders = [Desk::open(&north, ORDERS, OnLoss::Tell).await?, Desk::open(&south, ORDERS, OnLoss::Tell).await?];
    say("North registers \"orders\", and south does: both are granted.");
    let close = OnLoss::CloseMailbox;
    let mut ledgers = [Desk::open(&south, LEDGER, close).await?, Desk::open(&east, LEDGER, close).await?];
    say("South registers \"ledger\", and east does.");
    all_see(&[&north, &east], ORDERS, Some(orders[0].registration.pid())).await?;
    all_see(&[&south], ORDERS, Some(orders[1].registration.pid())).await?;
    for (node, order) in [(&east, "an order of east"), (&south, "an order of south")] {
        node.registry().send(ORDERS, order.to_owned()).await?;
        node.registry().send(LEDGER, format!("{order} is written down")).await?;
    }
    say("An order is sent on each side, to whoever has the name there.");

    println!("\nThe two sides meet");
    let mut tellers = JoinSet::new();
    for node in nodes {
        tellers.spawn(tell_changes(node.name().local().to_owned(), node.registry().watch_all(), start));
    }
    fabric.heal_all();
    say("The network is healed.");

    let loser = lost(&orders).await?;
    let (winner, loser) = (orders[1 - loser].registration.pid().clone(), &mut orders[loser]);
    all_see(&nodes, ORDERS, Some(&winner)).await?;
    say(&format!("{} has lost \"orders\", and its registration says to whom: {winner}.", loser.node()));
    say("All three nodes see that one owner.");
    // The mailbox goes on, so nothing in it is lost.
    while let Ok(order) = loser.mailbox.try_recv() {
        say(&format!("{} sends \"{order}\", which came to it, to the owner.", loser.node()));
        let its_node = nodes.into_iter().find(|node| node.name().local() == loser.node()).ok_or("no such node")?;
        its_node.registry().send(ORDERS, order).await?;
    }
    let winner = orders.iter_mut().find(|desk| *desk.registration.pid() == winner).ok_or("nobody won")?;
    let mut taken = [winner.mailbox.recv_timeout(PATIENCE).await?, winner.mailbox.recv_timeout(PATIENCE).await?];
    taken.sort();
    assert_eq!(taken, ["an order of east", "an order of south"]);
    assert!(!winner.registration.is_lost());
    say(&format!("{} has both orders.", winner.node()));

    let loser = lost(&ledgers).await?;
    let (winner, loser) = (ledgers[1 - loser].registration.pid().clone(), &mut ledgers[loser]);
    all_see(&nodes, LEDGER, Some(&winner)).await?;
    say(&format!("{} has lost \"ledger\" to {winner}, which all nodes see.", loser.node()));
    let entry = timeout(PATIENCE, loser.mailbox.recv()).await?;
    assert!(entry.is_some());
    assert_eq!(timeout(PATIENCE, loser.mailbox.recv()).await?, None);
    let error = loser.mailbox.address().send("too late".into()).await.unwrap_err();
    assert!(matches!(error, SendError::MailboxClosed(_)));
    say(&format!(
        "Its mailbox is closed by that: the last it reads is {entry:?}, and a send to it fails: \"{error}\"."
    ));
    for node in nodes {
        assert_eq!(node.registry().names(), ["ledger".into(), "orders".into()]);
        assert_eq!(node.registry().entries(), north.registry().entries());
    }
    say("The names are the same on all nodes: \"ledger\" and \"orders\", each with one owner.");
    tellers.abort_all();
    for node in nodes {
        node.shutdown().await;
    }
    Ok(())
}

/// Prints what a node learns of names.
async fn tell_changes(node: String, mut changes: NameEvents, start: Instant) {
    let at = |entry: Option<NameEntry>| {
        entry.map_or_else(|| "nowhere".to_owned(), |entry| format!("at {}", entry.owner.node().name().local()))
    };
    while let Some(event) = changes.next().await {
        if let NameEvent::Changed(NameChange { name, before, now, reason, .. }) = event {
            let (before, now, time) = (at(before), at(now), start.elapsed().as_secs_f64());
            println!("{time:>7.3} s      {node} sees: \"{name}\" was {before} and is {now} ({reason:?})");
        }
    }
}

/// Waits until one of the two has lost its name, to the other. Returns which.
async fn lost(desks: &[Desk; 2]) -> Result<usize> {
    let [one, two] = desks.each_ref().map(|desk| &desk.registration);
    let (loser, owner) = timeout(PATIENCE, async {
        tokio::select! {
            owner = one.lost() => (0, owner),
            owner = two.lost() => (1, owner),
        }
    })
    .await?;
    if owner.as_ref() != Some(desks[1 - loser].registration.pid()) || !desks[loser].registration.is_lost() {
        return Err(format!("{} lost its name to {owner:?}", desks[loser].node()).into());
    }
    Ok(loser)
}

/// Waits until all of these nodes see that owner.
async fn all_see(nodes: &[&Node], name: Name<String>, owner: Option<&Pid>) -> Result<()> {
    for node in nodes {
        let registry = node.registry();
        let mut changes = registry.watch(name.clone());
        timeout(PATIENCE, async {
            while registry.entry(name.clone()).map(|entry| entry.owner).as_ref() != owner {
                changes.next().await.ok_or("the node has ended")?;
            }
            Ok::<_, &str>(())
        })
        .await??;
    }
    Ok(())
}
