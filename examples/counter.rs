//! A counter that the cluster has once: an actor with a name, which another node starts anew when its node is gone.
//!
//! ```text
//! cargo run --example counter
//!     three nodes, each a process; the counter panics and begins anew, then its process is killed and another one has it
//!
//! cargo run --example counter -- --name one@10.0.0.1 --cookie-file cluster.cookie
//! cargo run --example counter -- --name two@10.0.0.2 --cookie-file cluster.cookie --join one@10.0.0.1
//!     on two hosts: type `add NUMBER`, `get`, or `fail`
//! ```
//!
//! What it has counted is in memory, and gone with its process. And it is there once as a name is: while a partition splits
//! the cluster, each side may have one.
//!
//! Read [`Counter`] for the actor, [`keep`] for how the cluster always has one, and [`ask`] for how any node asks it.

use std::process::ExitCode;
use std::time::Duration;

use distribute::{Actor, ActorContext, Effect, Message, Name, Next, Node, RegisterError, ReplyTo, Restart, SpawnError};
use pico_args::Arguments;
use serde::{Deserialize, Serialize};

use crate::common::{Place, Result, Stage, explain, say};

mod common;

#[derive(Serialize, Deserialize)]
enum Count {
    /// Adds a number, and asks for the sum.
    Add(i64, ReplyTo<i64>),
    Get(ReplyTo<i64>),
    /// Panics.
    Fail,
}

impl Message for Count {
    const TAG: &'static str = "counter.count";
    const VERSION: u32 = 1;
}

/// How long a counter is waited for.
const SOON: Duration = Duration::from_secs(5);

const COUNTER: Name<Count> = Name::new("counter");

#[derive(Default)]
struct Counter {
    sum: i64,
}

impl Actor for Counter {
    type Message = Count;

    async fn handle(&mut self, message: Count, _context: &ActorContext<Count>) -> Next {
        let reply_to = match message {
            Count::Add(number, reply_to) => {
                self.sum = self.sum.wrapping_add(number);
                reply_to
            }
            Count::Get(reply_to) => reply_to,
            Count::Fail => panic!("the counter was told to fail"),
        };
        // Whoever asked may have given up.
        let _ = reply_to.reply(self.sum).await;
        Next::Continue
    }
}

/// Sees to it that there is a counter, here if it is nowhere else.
async fn keep(node: Node) -> Result<()> {
    loop {
        let spawn = node.actor(Counter::default()).named(COUNTER).restart(Restart::on_panic(), Counter::default);
        match spawn.await {
            Ok(counter) => {
                say!("* the counter is here");
                // It ends with the node, or when it has panicked too often.
                say!("* the counter has ended: {}", counter.ended().await);
            }
            Err(SpawnError::Register(RegisterError::Taken { owner, .. })) => {
                say!("* the counter is on {}", owner.node().name());
                let notice = node.monitor_until_dead(owner).await;
                say!("* the counter is gone: {:?}", notice.fate);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Asks the counter, wherever it is.
async fn ask(node: &Node, typed: &str) -> Result<i64> {
    // It may be on its way from one node to another.
    let counter = node.registry().wait_for(COUNTER).timeout(SOON).await?;
    let (command, number) = typed.split_once(' ').unwrap_or((typed, ""));
    let answer = match command {
        "add" => {
            let number = number.parse()?;
            counter.ask(|reply_to| Count::Add(number, reply_to)).await
        }
        "get" => counter.ask(Count::Get).await,
        "fail" => {
            counter.send(Count::Fail).await?;
            // What this node sends later is handled later.
            counter.ask(Count::Get).await
        }
        _ => return Err("add NUMBER, get, or fail".into()),
    };
    // Nobody repeats an addition that may have been made but the one who typed it.
    answer.map_err(|error| {
        let effect = if error.effect() == Effect::NotDone { "it was not done" } else { "it may have been done" };
        format!("{}; {effect}", explain(&error)).into()
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    common::end(run(Arguments::from_env()).await)
}

async fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.contains("--help") {
        say!("usage: counter [OPTIONS]\n{}", Place::OPTIONS);
        return Ok(());
    }
    let place = Place::take(&mut arguments)?;
    common::done(arguments)?;
    let Some(place) = place else { return demo().await };

    let node = place.builder()?.start().await?;
    say!("node {}", node.name());
    node.ready().await?;
    let mut keeping = tokio::spawn(keep(node.clone()));
    let mut typed = common::input();
    loop {
        let line = tokio::select! {
            line = typed.recv() => line,
            kept = &mut keeping => return kept?,
        };
        let Some(line) = line else { break };
        match ask(&node, &line).await {
            Ok(sum) => say!("sum {sum}"),
            Err(error) => say!("no answer: {}", explain(&*error)),
        }
    }
    keeping.abort();
    node.shutdown().await;
    Ok(())
}

/// Three nodes.
async fn demo() -> Result<()> {
    let mut stage = Stage::new()?;
    let mut a = stage.start("a", &[]).await?;
    a.expect("* the counter is here").await?;
    let mut b = stage.start("b", &[]).await?;
    let mut c = stage.start("c", &[]).await?;
    for other in [&mut b, &mut c] {
        other.expect(&format!("* the counter is on {}", a.node)).await?;
    }
    for (node, line, sum) in [(&mut a, "add 3", "sum 3"), (&mut b, "add 4", "sum 7"), (&mut c, "add 5", "sum 12")] {
        node.say(line).await?;
        node.expect(sum).await?;
    }

    say!("\nThe counter fails, and begins anew in the same mailbox");
    b.say("fail").await?;
    b.expect("sum 0").await?;
    c.say("add 6").await?;
    c.expect("sum 6").await?;

    say!("\nIts process is killed");
    a.kill().await?;
    for other in [&mut b, &mut c] {
        other.expect("* the counter is gone: NodeDown").await?;
    }
    let is_here = |line: &str| line.strip_prefix("* the counter is ").map(|place| place == "here");
    let of_b = b.until("where the counter is", is_here).await?;
    let of_c = c.until("where the counter is", is_here).await?;
    if of_b == of_c {
        return Err("the counter is not in one place".into());
    }
    for (node, line, sum) in [(&mut b, "add 7", "sum 7"), (&mut c, "add 8", "sum 15")] {
        node.say(line).await?;
        node.expect(sum).await?;
    }
    c.end().await?;
    b.end().await
}
