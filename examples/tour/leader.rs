//! A leader that is frozen, and one that is killed: the coordinator votes and keeps what leaders write, the counters lead.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use distribute::{Fence, Method, Node, NodeName, Token, Voters};
use tokio::sync::watch;

use super::{COUNTERS, Counter, PATIENCE, Result, launch, within};

/// Has a counter stand for election among these voters.
const STAND: Method<Vec<NodeName>, Result<(), String>> = Method::new("tour.stand_for_election");

/// Writes in the name of a leader; answers false when that is over.
const WRITE: Method<(NodeName, Token), bool> = Method::new("tour.write");

/// Where a node of the tour keeps its votes: beside the cookie.
pub(super) fn votes(cookie_file: &Path, node: &str) -> Result<PathBuf> {
    let local = node.split('@').next().unwrap_or_default();
    let directory = cookie_file.with_file_name(format!("votes-of-{local}"));
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}

/// In each counter.
pub(super) fn stand_for_election(node: &Node, coordinator: NodeName) -> Result<()> {
    let own = node.clone();
    node.rpc().serve(STAND, move |_call, voters: Vec<NodeName>| {
        let (node, coordinator) = (own.clone(), coordinator.clone());
        async move {
            let election = node.election("chair", Voters::new(1, &voters)).await.map_err(|error| error.to_string())?;
            tokio::spawn(async move {
                while let Ok(leadership) = election.campaign().await {
                    tokio::spawn(write_on(node.clone(), coordinator.clone(), leadership.token()));
                    leadership.lost().await;
                }
            });
            Ok(())
        }
    })?;
    Ok(())
}

/// Writes until it is refused. It never asks whether it still leads: a token is what stops such a task.
async fn write_on(node: Node, coordinator: NodeName, token: Token) {
    while !matches!(node.rpc().call(&coordinator, WRITE, (node.name().clone(), token)).await, Ok(false)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What the coordinator has seen of leaders.
#[derive(Default)]
struct Written {
    /// Whose write was admitted last, by which token, and when that one's first came.
    last: Option<(Token, NodeName, Instant)>,
    refused: Vec<Token>,
}

pub(super) async fn lose_leaders(node: &Node, counters: &mut [Counter], cookie_file: &str) -> Result<()> {
    let written = Arc::new(watch::Sender::new(Written::default()));
    let (fence, log) = (Mutex::new(Fence::default()), written.clone());
    node.rpc().serve(WRITE, move |_call, (by, token)| {
        let is_admitted = fence.lock().is_ok_and(|mut fence| fence.admit(token).is_ok());
        log.send_if_modified(|written| {
            let is_new = written.last.as_ref().is_none_or(|(last, ..)| token > *last);
            if !is_admitted {
                written.refused.push(token);
            } else if is_new {
                written.last = Some((token, by, Instant::now()));
            }
            !is_admitted || is_new
        });
        std::future::ready(is_admitted)
    })?;
    let mut written = written.subscribe();
    let voters: Vec<_> =
        std::iter::once(node.name()).chain(counters.iter().map(|counter| &counter.node)).cloned().collect();
    node.election("chair", Voters::new(1, &voters)).await?;
    for counter in &*counters {
        node.rpc().call(&counter.node, STAND, voters.clone()).await??;
    }
    let began = Instant::now();
    let (first, leader, at) = next_leader(&mut written, None).await?;
    say!("{} leads by token {first}, {} after all three had begun to vote.", leader.local(), seconds(at - began));

    let at = of(counters, &leader)?;
    counters[at].process.signal("STOP")?;
    let began = Instant::now();
    let (second, heir, at_heir) = next_leader(&mut written, Some(first)).await?;
    say!("Its process is stopped (SIGSTOP): {} leads by {second} after {}.", heir.local(), seconds(at_heir - began));
    counters[at].process.signal("CONT")?;
    within("the write of the first leader", PATIENCE, async {
        written.wait_for(|written| written.refused.contains(&first)).await?;
        Ok(())
    })
    .await?;
    say!("It goes on, and writes as if it led still: the coordinator has seen {second}, and refuses {first}.");

    let at = of(counters, &heir)?;
    let began = Instant::now();
    counters[at].process.kill().await?;
    let (third, last, at_last) = next_leader(&mut written, Some(second)).await?;
    say!("{} is killed: {} leads by {third} after {}.", heir.local(), last.local(), seconds(at_last - began));
    let counter = &mut counters[at];
    let name = COUNTERS.name(counter.node.local())?;
    (counter.process, _) =
        launch::<NodeName>(&["--counter", counter.node.as_str(), cookie_file, node.name().as_str()]).await?;
    within("the counter to come back", PATIENCE, async {
        // The session with its life before may end first.
        while node.rpc().call(&counter.node, STAND, voters.clone()).await.is_err() {}
        Ok(())
    })
    .await?;
    counter.words = node.registry().wait_for(name).timeout(PATIENCE).await?;
    say!("It is back, with the vote that it gave before: two of three were a majority meanwhile.");
    Ok(())
}

fn of(counters: &[Counter], node: &NodeName) -> Result<usize> {
    counters.iter().position(|counter| counter.node == *node).ok_or_else(|| format!("{node} is no counter").into())
}

async fn next_leader(
    written: &mut watch::Receiver<Written>,
    after: Option<Token>,
) -> Result<(Token, NodeName, Instant)> {
    within("another leader", PATIENCE, async {
        let is_next = |written: &Written| {
            written.last.as_ref().is_some_and(|(token, ..)| after.is_none_or(|after| *token > after))
        };
        let written = written.wait_for(is_next).await?;
        written.last.clone().ok_or_else(|| "nobody leads".into())
    })
    .await
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
