//! A pool of workers on several nodes: who has a job asks any worker, and asks another one if that one dies.
//!
//! ```text
//! cargo run --example worker_pool
//!     three nodes with two workers each, every node a process, share 60 jobs; one is killed in the middle of its work
//!
//! cargo run --example worker_pool -- --name boss@10.0.0.1 --cookie-file cluster.cookie --jobs 60
//! cargo run --example worker_pool -- --name hand@10.0.0.2 --cookie-file cluster.cookie --join boss@10.0.0.1 --workers 2
//!     on two hosts, or more: the boss waits for a worker
//! ```
//!
//! Read [`Worker`] and [`work`] for the workers, and [`do_job`] for what becomes of a job whose worker is gone. [`demo`] is both on one host.

use std::process::ExitCode;
use std::time::Duration;

use distribute::{Actor, ActorContext, AskError, Group, GroupEvent, Message, Next, Node, ReplyTo, Restart};
use pico_args::Arguments;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::common::{PATIENCE, Place, Result, Stage, explain, say};

mod common;

/// Asks how many primes there are below a number.
#[derive(Serialize, Deserialize)]
struct Job {
    below: u32,
    reply_to: ReplyTo<u32>,
}

impl Message for Job {
    const TAG: &'static str = "pool.job";
    const VERSION: u32 = 1;
}

const WORKERS: Group<Job> = Group::new("workers");

/// So many jobs wait for workers, or are being done, at one time.
const AT_ONCE: usize = 12;

/// A worker that takes longer is taken for lost.
const JOB_PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    common::end(run(Arguments::from_env()).await)
}

async fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.contains("--help") {
        say!("usage: worker_pool [OPTIONS (--workers COUNT | --jobs COUNT)]\n{}", Place::OPTIONS);
        say!("  --workers COUNT      work with so many workers, until the standard input ends");
        say!("  --jobs COUNT         have so many jobs done");
        return Ok(());
    }
    let (workers, jobs) = (arguments.opt_value_from_str("--workers")?, arguments.opt_value_from_str("--jobs")?);
    let place = Place::take(&mut arguments)?;
    common::done(arguments)?;
    match (place, workers, jobs) {
        (Some(place), Some(workers), None) => work(&place, workers).await,
        (Some(place), None, Some(jobs)) => boss(&place, jobs).await.map(drop),
        (None, None, None) => demo().await,
        _ => Err("--name goes with either --workers or --jobs; see --help".into()),
    }
}

/// A worker does one job after the other.
struct Worker;

impl Actor for Worker {
    type Message = Job;

    async fn handle(&mut self, Job { below, reply_to }: Job, _context: &ActorContext<Job>) -> Next {
        say!("takes {below}");
        // It computes, so it does that where it holds up nobody.
        match tokio::task::spawn_blocking(move || primes_below(below)).await {
            // Whoever asked may have given up.
            Ok(primes) => drop(reply_to.reply(primes).await),
            Err(error) => return Next::fail(error),
        }
        Next::Continue
    }
}

/// A node of workers, until the standard input ends.
async fn work(place: &Place, workers: usize) -> Result<()> {
    let node = place.builder()?.start().await?;
    let _pool = node.pool(WORKERS, workers, |_index| Worker).restart(Restart::on_failure()).await?;
    say!("node {}", node.name());
    let mut input = common::input();
    while input.recv().await.is_some() {}
    node.shutdown().await;
    Ok(())
}

/// A job that is done.
struct Done {
    below: u32,
    primes: u32,
    /// How many workers it was given to.
    tries: u32,
}

/// Has jobs done.
async fn boss(place: &Place, jobs: u32) -> Result<Vec<Done>> {
    let node = place.builder()?.start().await?;
    say!("node {}", node.name());
    let (mut running, mut all_done) = (JoinSet::new(), Vec::new());
    let mut waiting = (1..=jobs).map(|job| 1_000 * job);
    loop {
        while running.len() < AT_ONCE
            && let Some(below) = waiting.next()
        {
            running.spawn(do_job(node.clone(), below));
        }
        let Some(done) = running.join_next().await else { break };
        all_done.push(done??);
    }
    node.shutdown().await;
    let retried = all_done.iter().filter(|done| done.tries > 1).count();
    say!("{jobs} jobs are done; {retried} of them were given to a second worker.");
    Ok(all_done)
}

/// Has one job done, by as many workers as that takes.
async fn do_job(node: Node, below: u32) -> Result<Done> {
    let mut tries = 0;
    loop {
        let Some(worker) = node.groups().pick(WORKERS).random() else {
            wait_for_worker(&node).await?;
            continue;
        };
        tries += 1;
        let error = match worker.ask(|reply_to| Job { below, reply_to }).timeout(JOB_PATIENCE).await {
            Ok(primes) => return Ok(Done { below, primes, tries }),
            Err(error) => error,
        };
        match error {
            // It was not sent, or nobody knows how far it came: `error.effect()` tells which. To count primes twice does no
            // harm, so both are tried again; what must be done once needs a number by which a worker knows it again.
            AskError::NotSent(_) | AskError::MailboxClosed(_) | AskError::Disconnected(_) | AskError::Timeout(_) => {
                say!("the primes below {below} are asked again: {}", explain(&error));
            }
            // The same would happen at any worker.
            error => return Err(error.into()),
        }
    }
}

async fn wait_for_worker(node: &Node) -> Result<()> {
    let mut changes = node.groups().subscribe(WORKERS);
    loop {
        match changes.next().await.ok_or("the node has ended")? {
            GroupEvent::Snapshot(members) if !members.is_empty() => return Ok(()),
            GroupEvent::Joined { .. } => return Ok(()),
            _ => {}
        }
    }
}

fn primes_below(number: u32) -> u32 {
    let is_prime = |n: u32| (2..n).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
    (2..number).filter(|n| is_prime(*n)).count() as u32
}

/// All of it on this host.
async fn demo() -> Result<()> {
    let mut stage = Stage::new()?;
    let workers = ["--workers", "2"];
    let one = stage.start("one", &workers).await?;
    let two = stage.start("two", &workers).await?;
    let mut three = stage.start("three", &workers).await?;
    let place = Place::take(&mut Arguments::from_vec(stage.options("boss@127.0.0.1:0")))?.ok_or("no name")?;
    let dying = async {
        // It has two of the jobs then, and more of them wait in its mailboxes.
        three.expect("takes ").await?;
        three.expect("takes ").await?;
        three.kill().await?;
        say!("   three is killed");
        Ok(())
    };
    let both = async { tokio::try_join!(boss(&place, 60), dying) };
    let (all_done, ()) = tokio::time::timeout(2 * PATIENCE, both).await.map_err(|_| "the jobs take too long")??;
    one.end().await?;
    two.end().await?;
    if all_done.len() != 60 || all_done.iter().any(|done| done.primes != primes_below(done.below)) {
        return Err("a result is missing or wrong".into());
    }
    if all_done.iter().all(|done| done.tries == 1) {
        return Err("a worker was killed in the middle of its work, and nothing was done again".into());
    }
    Ok(())
}
