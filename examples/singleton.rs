//! A till that the cluster has once, whoever is killed or frozen: a singleton on the elected leader, and a ledger that looks at
//! tokens.
//!
//! ```text
//! cargo run --example singleton
//!     three voters and the ledger, each a process; the one with the till is frozen, wakes, and is refused; the next is killed
//!
//! V="a@10.0.0.1,b@10.0.0.2,c@10.0.0.3"
//! cargo run --example singleton -- --name ledger@10.0.0.4 --cookie-file cluster.cookie --ledger
//! cargo run --example singleton -- --name a@10.0.0.1 --cookie-file cluster.cookie --join ledger@10.0.0.4 --voters $V --votes votes
//!     on four hosts, likewise b and c, each with a directory `votes` of its own: type `pay WHAT`, or `force WHAT`
//! ```
//!
//! Unlike a name, of which each side of a partition may give one out, the till is never in two places: without a majority of
//! the voters it is nowhere. And a till that was frozen does no harm when it wakes, because the ledger knows a later token.
//!
//! Read [`till`] for the singleton, [`ledger`] for the resource, and [`Voter`] for who votes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use distribute::{
    Builder, Election, Fence, Lease, Mailbox, Message, Method, Name, Node, NodeName, ReplyTo, Token, Voters,
};
use pico_args::Arguments;
use serde::{Deserialize, Serialize};

use crate::common::{Place, Process, Result, Stage, explain, say};

mod common;

/// Asks the till to enter something into the ledger, and for the token that it was entered by.
#[derive(Serialize, Deserialize)]
struct Pay(String, ReplyTo<Option<Token>>);

impl Message for Pay {
    const TAG: &'static str = "singleton.pay";
    const VERSION: u32 = 1;
}

const TILL: Name<Pay> = Name::new("till");
const LEDGER: Name<()> = Name::new("ledger");

/// Enters a line into the ledger, if no later token has been seen; answers the greatest that has.
const ENTER: Method<(Token, String), Result<(), Token>> = Method::new("ledger.enter");

/// How long a till or a ledger is waited for.
const SOON: Duration = Duration::from_secs(10);

/// The resource. A real one stores the fence together with what it guards.
async fn ledger(node: &Node) -> Result<Mailbox<()>> {
    let fence = Mutex::new(Fence::default());
    node.rpc().serve(ENTER, move |_call, (token, line)| {
        let admitted = fence.lock().map_or(Err(token), |mut fence| fence.admit(token).map_err(|fenced| fenced.highest));
        match &admitted {
            Ok(()) => say!("* entered by {token}: {line}"),
            Err(highest) => say!("* refused {token}, because {highest} has been seen: {line}"),
        }
        std::future::ready(admitted)
    })?;
    // The name says where the ledger is.
    let place = node.mailbox();
    node.registry().register(LEDGER, &place).await?;
    Ok(place)
}

/// Enters a line in the name of a leadership.
async fn enter(node: &Node, token: Token, line: String) -> Result<Result<(), Token>> {
    let ledger = node.registry().wait_for(LEDGER).timeout(SOON).await?;
    Ok(node.rpc().call(ledger.pid().node().name(), ENTER, (token, line)).await?)
}

/// The singleton: it exists on the leader, and is dropped when that stops leading.
async fn till(node: Node, last: Arc<Mutex<Option<Token>>>, lease: Lease, mut mailbox: Mailbox<Pay>) {
    let token = lease.token();
    if let Ok(mut last) = last.lock() {
        *last = Some(token);
    }
    say!("* the till is here, by token {token}");
    while let Some(Pay(what, reply_to)) = mailbox.recv().await {
        let entered = enter(&node, token, what).await;
        // Whoever asked may have given up.
        let _ = reply_to.reply(matches!(entered, Ok(Ok(()))).then_some(token)).await;
    }
}

/// A node that votes, and has the till when it leads.
struct Voter {
    node: Node,
    election: Election,
    /// By which token it had the till last.
    last: Arc<Mutex<Option<Token>>>,
}

impl Voter {
    async fn start(builder: Builder, voters: &str, votes: PathBuf) -> Result<Self> {
        let node = builder.election_dir(votes).start().await?;
        say!("node {}", node.name());
        let election = node.election("till", Voters::new(1, voters.split(','))).await?;
        let last = Arc::<Mutex<_>>::default();
        tokio::spawn(Self::lead(node.clone(), election.clone(), last.clone()));
        Ok(Self { node, election, last })
    }

    async fn lead(node: Node, election: Election, last: Arc<Mutex<Option<Token>>>) {
        let leading = election.singleton(TILL, |lease, mailbox| till(node.clone(), last.clone(), lease, mailbox));
        if let Err(error) = leading.await {
            say!("* no till here any more: {error}");
        }
    }

    async fn answer(&self, line: &str) -> Result<String> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("pay", what) => {
                // The name may still be that of a till that was frozen or killed.
                let till = tokio::time::timeout(SOON, self.election.find(TILL)).await??;
                let token = till.ask(|reply_to| Pay(what.to_owned(), reply_to)).await?;
                Ok(token.map_or_else(|| "not paid: the ledger refused".into(), |token| format!("paid by {token}")))
            }
            // What a thread of a till that is over might do: nobody has asked the lease.
            ("force", what) => {
                let last = self.last.lock().ok().and_then(|last| *last).ok_or("the till was never here")?;
                let mut tries = 0;
                loop {
                    match enter(&self.node, last, what.to_owned()).await {
                        Ok(Ok(())) => return Ok(format!("entered by {last}")),
                        Ok(Err(highest)) => return Ok(format!("refused: {last} is over, {highest} has been seen")),
                        // Who was frozen for long was taken for dead: its sessions have ended, and begin anew.
                        Err(_) if tries < 50 => tries += 1,
                        Err(error) => return Err(error),
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            _ => Err("pay WHAT, or force WHAT".into()),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    common::end(run(Arguments::from_env()).await)
}

async fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.contains("--help") {
        say!("usage: singleton [OPTIONS]\n{}", Place::OPTIONS);
        say!(
            "  --ledger             this node is the ledger\n  --voters A,B,C       the voters, the same on all of them"
        );
        say!("  --votes DIRECTORY    where this voter keeps its vote");
        return Ok(());
    }
    let is_ledger = arguments.contains("--ledger");
    let voters: Option<String> = arguments.opt_value_from_str("--voters")?;
    let votes: Option<PathBuf> = arguments.opt_value_from_os_str("--votes", |path| Ok::<_, String>(path.into()))?;
    let place = Place::take(&mut arguments)?;
    common::done(arguments)?;
    let Some(place) = place else { return demo().await };

    let mut typed = common::input();
    if is_ledger {
        let node = place.builder()?.start().await?;
        node.ready().await?;
        let _place = ledger(&node).await?;
        say!("node {}", node.name());
        while typed.recv().await.is_some() {}
        node.shutdown().await;
        return Ok(());
    }
    let (voters, votes) = (voters.ok_or("--voters is required")?, votes.ok_or("--votes is required")?);
    let voter = Voter::start(place.builder()?, &voters, votes).await?;
    while let Some(line) = typed.recv().await {
        match voter.answer(&line).await {
            Ok(answer) => say!("{answer}"),
            Err(error) => say!("not done: {}", explain(&*error)),
        }
    }
    voter.node.shutdown().await;
    Ok(())
}

/// Names of nodes on ports that are free now.
fn free_names(locals: &[&str]) -> Result<Vec<NodeName>> {
    let name = |local: &&str| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        let name = NodeName::parse(&format!("{local}@127.0.0.1:{}", socket.local_addr()?.port()))?;
        Ok((name, socket))
    };
    // They are held until all are chosen.
    let named = locals.iter().map(name).collect::<Result<Vec<_>>>()?;
    Ok(named.into_iter().map(|(name, _)| name).collect())
}

/// Whoever says first that it has the till, and by which token.
async fn till_of(voters: &mut [Option<Process>]) -> Result<(usize, Token)> {
    let here = |line: &str| line.strip_prefix("* the till is here, by token ").and_then(|token| token.parse().ok());
    let waits = voters.iter_mut().enumerate().filter_map(|(at, voter)| voter.as_mut().map(|voter| (at, voter)));
    let mut waits: Vec<_> =
        waits.map(|(at, voter)| Box::pin(async move { (at, voter.until("the till", here).await) })).collect();
    let first = std::future::poll_fn(|context| {
        let ready = waits.iter_mut().find_map(|wait| match wait.as_mut().poll(context) {
            std::task::Poll::Ready(found) => Some(found),
            std::task::Poll::Pending => None,
        });
        ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    });
    let (at, token) = first.await;
    Ok((at, token?))
}

async fn demo() -> Result<()> {
    let mut stage = Stage::new()?;
    let votes = tempfile::tempdir()?;
    let mut ledger = stage.start("ledger", &["--ledger"]).await?;
    let names = free_names(&["a", "b", "c"])?;
    let list = names.iter().map(NodeName::as_str).collect::<Vec<_>>().join(",");
    let mut voters = Vec::new();
    for name in &names {
        let directory = votes.path().join(name.local());
        std::fs::create_dir(&directory)?;
        let directory = directory.to_string_lossy();
        voters.push(Some(stage.start(name.as_str(), &["--voters", &list, "--votes", &directory]).await?));
    }
    let (first, token) = till_of(&mut voters).await?;
    for voter in voters.iter_mut().flatten() {
        voter.say("pay for the tea").await?;
        voter.expect(&format!("paid by {token}")).await?;
    }

    say!("\nThe till is frozen, and another takes its place");
    let frozen = voters[first].take().ok_or("no such voter")?;
    frozen.signal("STOP")?;
    let (second, later) = till_of(&mut voters).await?;
    let other = voters[second].as_mut().ok_or("no such voter")?;
    other.say("pay for the cake").await?;
    other.expect(&format!("paid by {later}")).await?;

    say!("\nThe frozen one goes on, and what it still does is refused");
    frozen.signal("CONT")?;
    let old = voters[first].insert(frozen);
    old.say("force the cake, again").await?;
    old.expect(&format!("refused: {token} is over, {later} has been seen")).await?;
    ledger.expect("* refused").await?;
    old.say("pay for the coffee").await?;
    old.expect(&format!("paid by {later}")).await?;

    say!("\nThe one with the till is killed");
    voters[second].take().ok_or("no such voter")?.kill().await?;
    let (third, last) = till_of(&mut voters).await?;
    let heir = voters[third].as_mut().ok_or("no such voter")?;
    heir.say("pay for the dinner").await?;
    heir.expect(&format!("paid by {last}")).await?;
    if !(token < later && later < last) {
        return Err("the tokens do not rise".into());
    }
    for voter in voters.into_iter().flatten() {
        voter.end().await?;
    }
    ledger.end().await
}
