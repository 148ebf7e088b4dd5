//! The tour: three nodes in three processes count the words of a file, and a stranger is turned away.
//!
//! ```text
//! cargo run --release --example tour -- FILE
//!
//!                      ┌─ words ──▶ counter-1
//!  FILE ─▶ coordinator ┤                           each a process with a node of its own, on loopback;
//!              ▲       └─ words ──▶ counter-2      found by name; counts come back as answers to calls
//!              └── refused ── stranger             a fourth process, with another cookie
//! ```
//!
//! Read [`count_words`] for what a service does, [`stand_for_chief`] for a name that many want, [`work`] for a member of a
//! group. Then [`stream`] for sending, [`collect`] for calling, [`name_and_find`] and [`elect`] for names, [`share_out`]
//! for groups, [`lose_one`] for how the death of a member is noticed, `tour/leader.rs` for elections, and [`turn_away`] for what a stranger meets. The
//! rest starts processes and prints.
//!
//! Without FILE the words of README.md are counted. `RUST_LOG=distribute=debug` shows what the nodes do meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use distribute::{
    Address, AuthError, Config, ConnectError, Cookie, DownReason, Fate, Group, LookupError, Mailbox, MemberEvent,
    MembershipEvent, Message, Method, Name, Names, Node, NodeEvent, NodeName, Notice, Outcome, Pid, RecvError,
    RegisterError, ReplyTo,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Every wait of the tour ends by then; none comes near it unless something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// Streaming goes on for at least so long, in whole passes over the file.
const STREAM_FOR: Duration = Duration::from_secs(1);

/// A single pass over the largest file that is read takes a while.
const STREAM_PATIENCE: Duration = Duration::from_secs(120);

const FILE_MAX: u64 = 8 << 20;
const WORD_MAX: usize = 100;
const CALLS: usize = 5_000;
const WARM_UP_CALLS: usize = 500;
const PAGE: usize = 1_000;
const REGISTRATIONS: usize = 100;
const LOOKUPS: u32 = 200_000;
const ELECTIONS: u32 = 20;
const LINE_WORDS: usize = 10;
const LINES_MAX: usize = 1_000;

/// One word on its way to a counter.
#[derive(Serialize, Deserialize)]
struct Word(String);

impl Message for Word {
    const TAG: &'static str = "tour.word";
    const VERSION: u32 = 1;
}

/// Where the mailboxes for words are found: `words/counter-1`.
const COUNTERS: Names<Word> = Names::new("words");

/// Names that all nodes want: `tour.chief/1`.
const CHIEFS: Names<u64> = Names::new("tour.chief");

/// Workers, one on each node.
const WORKERS: Group<Work> = Group::new("tour.workers");

#[derive(Serialize, Deserialize)]
enum Work {
    /// Words to count.
    Line(Vec<String>),
    /// How many were counted so far is asked.
    Total(ReplyTo<u64>),
}

impl Message for Work {
    const TAG: &'static str = "tour.work";
    const VERSION: u32 = 1;
}

/// Answers once so many words have been counted in all, with how many of them are different.
const COUNTED: Method<u64, u64> = Method::new("tour.counted");

/// Answers with the next page of counts, those after the given word.
const COUNTS: Method<String, Vec<(String, u64)>> = Method::new("tour.counts");

/// Answers with the next number: as small as a call can be.
const NEXT: Method<u64, u64> = Method::new("tour.next");

/// Answers once the named member was declared dead: how many microseconds after the question it was suspected, and declared.
const MOURN: Method<NodeName, (u64, u64)> = Method::new("tour.mourn");

/// Claims a chief's name at a moment, on the clock that these processes share. Answers with who has it, as the claim was
/// told, and how long that took.
const STAND: Method<(u32, SystemTime), Result<(Pid, Duration), String>> = Method::new("tour.stand");

/// Answers with who has a chief's name, as soon as somebody has.
const CHIEF: Method<u32, Result<Pid, String>> = Method::new("tour.chief");

/// The coordinator's watch of a counter.
#[derive(Serialize, Deserialize)]
enum Watch {
    #[serde(skip)]
    Gone(Notice),
}

impl Message for Watch {
    const TAG: &'static str = "tour.watch";
    const VERSION: u32 = 1;
}

/// Prints a line, and does not mind when nobody reads on.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

#[path = "tour/leader.rs"]
mod leader;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let role: Vec<_> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();
    let outcome = match *role {
        // How the tour starts its other processes.
        ["--counter", name, cookie, join] => counter(name, cookie, join).await,
        ["--stranger", coordinator] => stranger(coordinator).await,
        [] | [_] => {
            let path = arguments.first().map_or_else(default_file, PathBuf::from);
            match read_words(&path) {
                Ok(words) => tour(&path, &words).await,
                Err(error) => {
                    eprintln!("tour: cannot read {}: {error}", path.display());
                    return ExitCode::from(2);
                }
            }
        }
        _ => {
            eprintln!("usage: tour [FILE]");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tour: {}", explain(&*error));
            ExitCode::FAILURE
        }
    }
}

// The counters.

/// What a counter has counted.
#[derive(Default)]
struct Counts {
    total: u64,
    by_word: BTreeMap<String, u64>,
}

/// A process that counts words until its standard input ends, which happens at the latest when its parent dies.
async fn counter(name: &str, cookie: &str, join: &str) -> Result<()> {
    let builder = Node::builder(name).cookie(Cookie::load(cookie)?).join(join).config(Config::local());
    let node = builder.election_dir(leader::votes(Path::new(cookie), name)?).start().await?;
    leader::stand_for_election(&node, join.parse()?)?;
    mourn(&node)?;
    stand_for_chief(&node)?;
    work(&node)?;
    report(node.name())?;
    // Until then it does not know which names are taken.
    node.ready().await?;
    count_words(&node).await?;
    parent_is_done().await;
    node.shutdown().await;
    Ok(())
}

/// The service: a mailbox for words, found by its name, and three methods.
async fn count_words(node: &Node) -> Result<()> {
    let mut words = node.mailbox::<Word>();
    node.registry().register(COUNTERS.name(node.name().local())?, &words).await?;
    let counts = Arc::new(watch::Sender::new(Counts::default()));

    let counted = counts.clone();
    node.rpc().serve(COUNTED, move |_call, expected| {
        let mut counts = counted.subscribe();
        // The caller's deadline ends this wait; there is nothing to time here.
        async move { counts.wait_for(|counts| counts.total >= expected).await.map_or(0, |c| c.by_word.len() as u64) }
    })?;
    let counted = counts.clone();
    node.rpc().serve(COUNTS, move |_call, after: String| {
        let counts = counted.borrow();
        let rest = counts.by_word.range::<str, _>((Bound::Excluded(after.as_str()), Bound::Unbounded));
        let page = rest.take(PAGE).map(|(word, count)| (word.clone(), *count)).collect();
        async move { page }
    })?;
    node.rpc().serve(NEXT, |_call, number: u64| async move { number.wrapping_add(1) })?;

    tokio::spawn(async move {
        // Ends when the node is shut down.
        while let Some(Word(word)) = words.recv().await {
            counts.send_modify(|counts| {
                counts.total += 1;
                *counts.by_word.entry(word).or_default() += 1;
            });
        }
    });
    Ok(())
}

/// Claims a name at the moment at which all others claim it.
fn stand_for_chief(node: &Node) -> Result<()> {
    // One mailbox may have many names, and would lose them all if it closed.
    let (registry, office) = (node.registry(), node.mailbox());
    node.rpc().serve(STAND, move |_call, (number, at)| {
        let claim = CHIEFS.name(number).map(|name| registry.register(name, &office));
        async move {
            let claim = claim.map_err(|error| error.to_string())?;
            tokio::time::sleep(at.duration_since(SystemTime::now()).unwrap_or_default()).await;
            let began = Instant::now();
            let owner = match claim.await {
                Ok(registration) => registration.pid().clone(),
                Err(RegisterError::Taken { owner, .. }) => owner,
                Err(error) => return Err(explain(&error)),
            };
            Ok((owner, began.elapsed()))
        }
    })?;
    let registry = node.registry();
    node.rpc().serve(CHIEF, move |_call, number: u32| {
        let chief = CHIEFS.name(number).map(|name| registry.wait_for(name));
        async move {
            let chief = chief.map_err(|error| error.to_string())?.await;
            Ok(chief.map_err(|error| explain(&error))?.pid().clone())
        }
    })?;
    Ok(())
}

/// A worker: a member of a group, that counts and tells.
fn work(node: &Node) -> Result<()> {
    let mut worker = node.mailbox();
    node.groups().join(WORKERS, &worker)?;
    tokio::spawn(async move {
        let mut total = 0;
        while let Some(work) = worker.recv().await {
            match work {
                Work::Line(words) => total += words.len() as u64,
                // Whoever asked may have given up.
                Work::Total(asker) => drop(asker.reply(total).await),
            }
        }
    });
    Ok(())
}

/// Tells, when asked, how this node saw another die.
fn mourn(node: &Node) -> Result<()> {
    let membership = node.membership();
    node.rpc().serve(MOURN, move |_call, name: NodeName| {
        let (asked, mut changes) = (Instant::now(), membership.subscribe());
        async move {
            let mut suspected = 0;
            while let Some(change) = changes.next().await {
                let passed = asked.elapsed().as_micros() as u64;
                match change {
                    MembershipEvent::Changed(MemberEvent::Suspected { member, .. }) if *member.id.name() == name => {
                        suspected = passed;
                    }
                    MembershipEvent::Changed(MemberEvent::Died { member, .. }) if *member.id.name() == name => {
                        return (suspected, passed);
                    }
                    _ => {}
                }
            }
            (suspected, 0)
        }
    })?;
    Ok(())
}

// The coordinator.

async fn tour(path: &Path, words: &[String]) -> Result<()> {
    let mut local = HashMap::<&str, u64>::new();
    for word in words {
        *local.entry(word).or_default() += 1;
    }
    say!("{} holds {} words, {} different ones.", path.display(), grouped(words.len()), grouped(local.len()));

    heading("Three nodes, three processes, one cookie");
    let directory = tempfile::tempdir()?;
    let cookie_file = directory.path().join("cookie");
    let cookie = Cookie::load_or_generate(&cookie_file)?;
    let began = Instant::now();
    let builder = Node::builder("coordinator@127.0.0.1:0").cookie(cookie).config(Config::local());
    let node = builder.election_dir(leader::votes(&cookie_file, "coordinator")?).start().await?;
    mourn(&node)?;
    stand_for_chief(&node)?;
    work(&node)?;
    let mut events = node.cluster().node_events();
    say!("{} runs in process {}.", node.name(), std::process::id());
    let cookie_file = cookie_file.to_str().ok_or("the temporary directory has a name that is not UTF-8")?;
    let mut counters = Vec::new();
    for name in ["counter-1@127.0.0.1:0", "counter-2@127.0.0.1:0"] {
        let (process, name): (_, NodeName) = launch(&["--counter", name, cookie_file, node.name().as_str()]).await?;
        say!("{name} runs in process {}.", process.id());
        let began = Instant::now();
        node.cluster().connect(&name).await?;
        say!("Dialled it: both sides proved themselves within {}.", milliseconds(began.elapsed()));
        let words = node.registry().wait_for(COUNTERS.name(name.local())?).timeout(PATIENCE).await?;
        counters.push(Counter { process, node: name, words });
    }
    say!("They share a fresh random cookie, which travels only as a file that its owner alone can read.");
    say!(
        "All were up, and their mailboxes found by name, {} after the first was begun.",
        milliseconds(began.elapsed())
    );

    heading("Messages");
    let streaming = within("streaming the words", STREAM_PATIENCE, stream(&node, &counters, words));
    let (passes, took) = streaming.await?;
    let sent = passes * words.len() as u64;
    if sent == 0 {
        say!("There was nothing to send.");
    } else {
        say!("Sent the words of the file {} times over, each word as a message of its own,", grouped(passes));
        say!("alternately to one mailbox in each counter: {} messages in {:.2} s,", grouped(sent), took.as_secs_f64());
        say!("from the first send until both counters had counted their last.");
        say!("That is {} messages per second, counting included.", grouped((sent as f64 / took.as_secs_f64()) as u64));
    }

    heading("Counts, collected by calls");
    let began = Instant::now();
    let counts = within("collecting the counts", PATIENCE, collect(&node, &counters)).await?;
    say!("The counters answered with {} counts in {}.", grouped(counts.len()), milliseconds(began.elapsed()));
    let mut top: Vec<_> = counts.iter().collect();
    top.sort_by(|(a, m), (b, n)| n.cmp(m).then(a.cmp(b)));
    for (word, count) in top.into_iter().take(10) {
        say!("{:>12}  {word}", grouped(count / passes));
    }
    let expected = local.iter().map(|(word, count)| (word.to_string(), count * passes));
    if counts != expected.collect() {
        return Err("the counts differ from those of a local count".into());
    }
    say!("All of them equal a local count: every message was delivered, and none twice.");

    heading("Call latency");
    let mut latencies = within("calling", PATIENCE, call_and_measure(&node, &counters)).await?;
    latencies.sort();
    let percentile = |percent: usize| microseconds(latencies[latencies.len() * percent / 100]);
    say!("{} calls one after the other, a number there and its successor back, alternately to", grouped(CALLS));
    say!("both counters: half within {}, 99 of 100 within {}.", percentile(50), percentile(99));

    heading("Names");
    name_and_find(&node).await?;

    heading("Three claim one name");
    elect(&node, &counters).await?;

    heading("A group");
    share_out(&node, words).await?;

    heading("A member dies");
    lose_one(&node, &mut counters, cookie_file).await?;

    heading("Leaders are frozen and killed");
    leader::lose_leaders(&node, &mut counters, cookie_file).await?;

    heading("A stranger with another cookie");
    turn_away(&node).await?;

    heading("What protected all this");
    say!("QUIC version 1 with TLS 1.3, and no other version of either. Both ends of a link present a");
    say!("certificate, signed by an authority whose key each node derives from the cookie; then each proves in");
    say!("its greeting, keyed by a second secret and bound to this very TLS channel, that it holds the cookie.");
    if cfg!(feature = "aws-lc-rs") {
        say!("Keys are agreed by X25519MLKEM768 wherever both nodes have the default TLS provider, as here.");
    } else {
        say!("This build has the provider ring, which has no post-quantum key agreement: X25519 is used.");
    }

    heading("Goodbye");
    let began = Instant::now();
    for counter in &mut counters {
        counter.process.end().await?;
    }
    let mut left = 0;
    while left < counters.len() {
        match within("the counters' goodbye", PATIENCE, async { Ok(events.next().await) }).await? {
            Some(NodeEvent::Down(_, DownReason::Left)) => left += 1,
            // Of the one that was killed.
            Some(
                NodeEvent::Up(_) | NodeEvent::Down(_, DownReason::Dead | DownReason::Lost | DownReason::Superseded),
            ) => {}
            other => return Err(format!("expected a node to leave, got {other:?}").into()),
        }
    }
    node.shutdown().await;
    say!("Both counters left in good order, and the coordinator saw it, in {}.", milliseconds(began.elapsed()));
    Ok(())
}

/// A counter as the coordinator knows it.
struct Counter {
    process: Process,
    node: NodeName,
    words: Address<Word>,
}

/// Sends all words again and again, then waits until they are counted. Returns how often, and how long it took.
async fn stream(node: &Node, counters: &[Counter], words: &[String]) -> Result<(u64, Duration)> {
    let began = Instant::now();
    let mut passes = 0;
    let mut sent = vec![0; counters.len()];
    while passes == 0 || (began.elapsed() < STREAM_FOR && !words.is_empty()) {
        for (n, word) in words.iter().enumerate() {
            let to = n % counters.len();
            // Waits when the mailbox is not read fast enough: that is the back-pressure.
            counters[to].words.send(Word(word.clone())).await?;
            sent[to] += 1;
        }
        passes += 1;
    }
    // A call does not queue behind messages, so it says what it waits for.
    for (counter, sent) in counters.iter().zip(sent) {
        node.rpc().call(&counter.node, COUNTED, sent).timeout(PATIENCE).await?;
    }
    Ok((passes, began.elapsed()))
}

/// Asks all counters for their counts, page by page, and adds them up.
async fn collect(node: &Node, counters: &[Counter]) -> Result<HashMap<String, u64>> {
    let mut all = HashMap::new();
    for counter in counters {
        let mut last = String::new();
        loop {
            let page = node.rpc().call(&counter.node, COUNTS, last).await?;
            let Some((word, _)) = page.last() else { break };
            last = word.clone();
            for (word, count) in page {
                *all.entry(word).or_default() += count;
            }
        }
    }
    Ok(all)
}

async fn call_and_measure(node: &Node, counters: &[Counter]) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(CALLS);
    for n in 0..WARM_UP_CALLS + CALLS {
        let (number, callee) = (n as u64, &counters[n % counters.len()].node);
        let began = Instant::now();
        let next = node.rpc().call(callee, NEXT, number).await?;
        let took = began.elapsed();
        if next != number + 1 {
            return Err(format!("{callee} says that {next} follows {number}").into());
        }
        if n >= WARM_UP_CALLS {
            latencies.push(took);
        }
    }
    Ok(latencies)
}

/// Registers and looks up, and takes the times.
async fn name_and_find(node: &Node) -> Result<()> {
    const ENTRIES: Names<u64> = Names::new("tour.entry");
    let (registry, mailbox) = (node.registry(), node.mailbox());
    let before = registry.names();
    say!("All nodes know the same names, here {}.", before.join(" and "));
    let mut times = Vec::new();
    let mut last = None;
    for n in 0..REGISTRATIONS {
        let began = Instant::now();
        last = Some(registry.register(ENTRIES.name(n)?, &mailbox).timeout(PATIENCE).await?);
        times.push(began.elapsed());
    }
    times.sort();
    say!(
        "{REGISTRATIONS} names registered one after the other, each granted by a majority of the nodes that decide on it:"
    );
    say!("half within {}, the slowest after {}.", median(&times), slowest(&times));

    let name: Name<Word> = Name::parse(before[0].to_string())?;
    let began = Instant::now();
    for _ in 0..LOOKUPS {
        std::hint::black_box(registry.lookup(name.clone())?);
    }
    say!(
        "A lookup reads memory: {} of them took {} ns each.",
        grouped(LOOKUPS),
        (began.elapsed() / LOOKUPS).as_nanos()
    );

    let Some(last) = last else { return Ok(()) };
    let began = Instant::now();
    drop(mailbox);
    if registry.lookup(last.name().clone()) != Err(LookupError::NotFound) {
        return Err("a mailbox that is closed is found by its name".into());
    }
    let mut changes = registry.watch_family(&ENTRIES);
    within("the names of a closed mailbox to go", PATIENCE, async {
        while registry.names() != before {
            changes.next().await.ok_or("the node has ended")?;
        }
        Ok(())
    })
    .await?;
    say!("Their mailbox is dropped: all {REGISTRATIONS} are gone {} later.", milliseconds(began.elapsed()));
    Ok(())
}

/// Lets all nodes claim one name at one moment, again and again.
async fn elect(node: &Node, counters: &[Counter]) -> Result<()> {
    let nodes: Vec<_> = [node.name()].into_iter().chain(counters.iter().map(|counter| &counter.node)).collect();
    let mut wins = BTreeMap::<_, u32>::new();
    let mut times = Vec::new();
    for number in 0..ELECTIONS {
        let at = SystemTime::now() + Duration::from_millis(20);
        let votes = ask_all(node, &nodes, STAND, (number, at)).await?;
        let winners: Vec<_> = nodes.iter().zip(&votes).filter(|(at, (owner, _))| owner.node().name() == **at).collect();
        let [(winner, (chief, _))] = winners[..] else {
            return Err(format!("{} claims of one name were granted", winners.len()).into());
        };
        if votes.iter().any(|(owner, _)| owner != chief) {
            return Err("a loser was told of another owner".into());
        }
        if ask_all(node, &nodes, CHIEF, number).await?.iter().any(|seen| seen != chief) {
            return Err("not all nodes see one owner".into());
        }
        *wins.entry(winner.local()).or_default() += 1;
        times.extend(votes.iter().map(|(_, took)| *took));
    }
    times.sort();
    let wins: Vec<_> = wins.iter().map(|(node, wins)| format!("{node} {wins}")).collect();
    say!("{ELECTIONS} names, each claimed by all three at one moment: exactly one got each ({}).", wins.join(", "));
    say!("Both others were told by whom it is taken, and all three find that one under the name.");
    say!("Half of the claims were decided within {}, the slowest after {}.", median(&times), slowest(&times));
    Ok(())
}

/// Calls a method of all nodes at once.
async fn ask_all<Q, A>(
    node: &Node,
    nodes: &[&NodeName],
    method: Method<Q, Result<A, String>>,
    question: Q,
) -> Result<Vec<A>>
where
    Q: Message + Copy,
    A: Message,
{
    let mut calls = Vec::new();
    for at in nodes {
        let (rpc, at, method) = (node.rpc(), (*at).clone(), method.clone());
        calls.push(tokio::spawn(async move { rpc.call(&at, method, question).timeout(PATIENCE).await }));
    }
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await???);
    }
    Ok(answers)
}

/// Gives the words to all members of a group, and asks each how many it counted.
async fn share_out(node: &Node, words: &[String]) -> Result<()> {
    let groups = node.groups();
    let mut changes = groups.subscribe(WORKERS);
    within("the workers to join", PATIENCE, async {
        while groups.count(WORKERS) < 3 {
            changes.next().await.ok_or("the node has ended")?;
        }
        Ok(())
    })
    .await?;
    let lines: Vec<_> = words.chunks(LINE_WORDS).take(LINES_MAX).collect();
    let (mut times, mut again) = (Vec::new(), 0);
    let began = Instant::now();
    for line in &lines {
        let (line, began) = (line.to_vec(), Instant::now());
        let report = groups.broadcast(WORKERS, &Work::Line(line.clone())).await?;
        times.push(began.elapsed());
        for member in groups.members(WORKERS) {
            match report.outcome(member.pid()) {
                Some(Outcome::Delivered) => {}
                // A broadcast waits for nobody who is behind. A send does.
                Some(Outcome::Full) => member.send(Work::Line(line.clone())).await?,
                other => return Err(format!("a broadcast to {} came to {other:?}", member.pid()).into()),
            }
            again += usize::from(report.outcome(member.pid()) == Some(Outcome::Full));
        }
    }
    let took = began.elapsed();
    let totals = groups.gather(WORKERS, Work::Total).timeout(PATIENCE).await;
    let expected = lines.iter().map(|line| line.len() as u64).sum::<u64>();
    if totals.replies.len() != 3 || totals.replies.iter().any(|(_, total)| *total != expected) {
        return Err(format!("each of three workers should have counted {expected} words: {totals:?}").into());
    }
    say!(
        "{}, one mailbox on each node, got {} lines of up to {LINE_WORDS} words",
        WORKERS.name(),
        grouped(lines.len())
    );
    say!(
        "by as many broadcasts in {}, each awaited until all three nodes had said that they have it;",
        milliseconds(took)
    );
    say!("{} deliveries were refused for want of room, and repeated.", grouped(again));
    times.sort();
    say!("Half took at most {}, the slowest {}.", median(&times), slowest(&times));
    say!(
        "Asked at once, each of the three said that it counted {} words: that equals a local count.",
        grouped(expected)
    );
    Ok(())
}

/// Kills a counter, lets the others say how they saw it die, and starts it again.
async fn lose_one(node: &Node, counters: &mut [Counter], cookie_file: &str) -> Result<()> {
    let membership = node.membership();
    within("all to see all", PATIENCE, async { Ok(membership.wait_for_alive(1 + counters.len()).await) }).await?;
    let alive: Vec<_> = membership.alive().iter().map(|id| id.name().local().to_string()).collect();
    say!("Nobody was told of everybody, but all know all: {}.", alive.join(", "));
    let [survivor, victim] = counters else { return Err("the tour has two counters".into()) };
    let name = COUNTERS.name(victim.node.local())?;
    let mut notices = node.mailbox();
    notices.monitor_until_dead(&victim.words, Watch::Gone);
    let before = membership.member(&victim.node).ok_or("the victim is no member")?;
    let reports = [node.name(), &survivor.node].map(|at| {
        let (rpc, at, victim) = (node.rpc(), at.clone(), victim.node.clone());
        tokio::spawn(async move {
            let seen = rpc.call(&at, MOURN, victim).timeout(PATIENCE).await;
            (at, seen)
        })
    });
    // Both have the question before the victim is gone.
    node.rpc().call(&survivor.node, NEXT, 0).await?;
    let killed = Instant::now();
    victim.process.kill().await?;
    say!("Process {} is killed (SIGKILL): it says no good-bye.", victim.process.id());
    for report in reports {
        let (at, seen) = report.await?;
        let (suspected, dead) = seen?;
        say!(
            "{:>12} suspected it after {:.1} s, and declared it dead after {:.1} s.",
            at.local(),
            suspected as f64 / 1e6,
            dead as f64 / 1e6
        );
    }
    let stand_in = take_over(node, &mut notices, &name, killed).await?;
    let mut changes = membership.subscribe();
    let began = Instant::now();
    // That gives the name up.
    drop(stand_in);
    let arguments = ["--counter", victim.node.as_str(), cookie_file, node.name().as_str()];
    (victim.process, _) = launch::<NodeName>(&arguments).await?;
    victim.words = node.registry().wait_for(name).timeout(PATIENCE).await?;
    let back = within("the counter to come back", PATIENCE, async {
        loop {
            match changes.next().await.ok_or("the node has ended")? {
                MembershipEvent::Changed(MemberEvent::Joined(member)) if *member.id.name() == victim.node => {
                    return Ok(member);
                }
                _ => {}
            }
        }
    })
    .await?;
    say!("Started again it was back after {}, under the same name,", milliseconds(began.elapsed()));
    say!("as another life: incarnation {} after {}.", back.id.incarnation(), before.id.incarnation());
    if *victim.words.node() != back.id {
        return Err(format!("the counter that is back does not have its name: {} has", victim.words.node()).into());
    }
    say!("It has its name again, which the stand-in gave up.");
    if !matches!(notices.try_recv(), Err(RecvError::Empty)) {
        return Err("there was a second notice".into());
    }
    Ok(())
}

/// Waits for the notice that a counter is gone, and takes its name at once.
async fn take_over(
    node: &Node,
    notices: &mut Mailbox<Watch>,
    name: &Name<Word>,
    killed: Instant,
) -> Result<Mailbox<Word>> {
    let Watch::Gone(notice) = notices.recv_timeout(PATIENCE).await?;
    let after = killed.elapsed();
    if notice.fate != Fate::NodeDown {
        return Err(format!("the fate of the killed counter is {:?}", notice.fate).into());
    }
    say!(
        "The coordinator watched the counter's mailbox until it was dead: told {:?} after {:.1} s, once.",
        notice.fate,
        after.as_secs_f64()
    );
    let registry = node.registry();
    if !matches!(registry.lookup(name.clone()), Err(LookupError::NotFound)) {
        return Err(format!("{name} is not free, though the notice is here").into());
    }
    let (began, mut stand_in) = (Instant::now(), node.mailbox());
    registry.register(name.clone(), &stand_in).timeout(PATIENCE).await?;
    say!("{name} was free by then, and a stand-in has it {} later.", milliseconds(began.elapsed()));
    registry.send(name.clone(), Word("successor".into())).await?;
    stand_in.recv_timeout(PATIENCE).await?;
    Ok(stand_in)
}

// The stranger.

/// What the stranger says of itself.
#[derive(Serialize, Deserialize)]
struct Refusal {
    node: NodeName,
    text: String,
    is_for_the_cookie: bool,
    took: Duration,
}

/// A process with a cookie of its own that knocks at the coordinator's, and then waits to be dialled.
async fn stranger(coordinator: &str) -> Result<()> {
    let coordinator = NodeName::parse(coordinator)?;
    let node = Node::builder("stranger@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    let refusal = knock(&node, &coordinator).await?;
    report(&refusal)?;
    parent_is_done().await;
    node.shutdown().await;
    Ok(())
}

/// Dials a node that must refuse.
async fn knock(node: &Node, at: &NodeName) -> Result<Refusal> {
    let began = Instant::now();
    let Err(error) = node.cluster().connect(at).await else {
        return Err(format!("{at} let in {}, which has another cookie", node.name()).into());
    };
    let is_for_the_cookie = matches!(error, ConnectError::Auth(AuthError::WrongCookie));
    Ok(Refusal { node: node.name().clone(), text: explain(&error), is_for_the_cookie, took: began.elapsed() })
}

/// Lets a stranger knock at this node, and this node at the stranger's.
async fn turn_away(node: &Node) -> Result<()> {
    let (mut process, theirs): (_, Refusal) = launch(&["--stranger", node.name().as_str()]).await?;
    let ours = knock(node, &theirs.node).await?;
    say!("{} runs in process {}, and nobody gave it the cookie.", theirs.node, process.id());
    say!("It dialled the coordinator, and got no link, after {}:\n    {}", milliseconds(theirs.took), theirs.text);
    say!("The coordinator dialled it, and got none either, after {}:\n    {}", milliseconds(ours.took), ours.text);
    if !(theirs.is_for_the_cookie && ours.is_for_the_cookie) {
        return Err("the stranger was refused for another reason than its cookie".into());
    }
    say!("Both errors are `ConnectError::Auth(AuthError::WrongCookie)`. The side that dials sees a certificate");
    say!("first, so it is the one that breaks the TLS handshake off. One that did not would be refused next,");
    say!("because it has to present a certificate as well.");
    process.end().await
}

// Processes.

/// A child that ends when its standard input does.
struct Process {
    child: Child,
    input: Option<ChildStdin>,
    id: u32,
}

impl Process {
    fn id(&self) -> u32 {
        self.id
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let sent = std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.id)]).status()?;
        if sent.success() { Ok(()) } else { Err(format!("process {} got no {signal}", self.id).into()) }
    }

    async fn kill(&mut self) -> Result<()> {
        within("the end of a process", PATIENCE, async { Ok(self.child.kill().await?) }).await
    }

    async fn end(&mut self) -> Result<()> {
        drop(self.input.take());
        let status = within("the end of a process", PATIENCE, async { Ok(self.child.wait().await?) }).await?;
        if status.success() { Ok(()) } else { Err(format!("process {} ended with {status}", self.id).into()) }
    }
}

/// Starts this program again in another role, and reads the line that it prints.
async fn launch<T: DeserializeOwned>(arguments: &[&str]) -> Result<(Process, T)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (input, output) = (child.stdin.take(), child.stdout.take().ok_or("a child has no output")?);
    let id = child.id().unwrap_or_default();
    let mut line = String::new();
    let mut output = BufReader::new(output);
    within("a process to start", PATIENCE, async { Ok(output.read_line(&mut line).await?) }).await?;
    if line.is_empty() {
        return Err(format!("process {id} ended before it was ready").into());
    }
    Ok((Process { child, input, id }, serde_json::from_str(&line)?))
}

/// Prints the line that [`launch`] reads.
fn report(value: &impl Serialize) -> Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "{}", serde_json::to_string(value)?)?;
    Ok(output.flush()?)
}

async fn parent_is_done() {
    let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
}

async fn within<T>(what: &str, patience: Duration, wait: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |_| format!("{what} took longer than {patience:?}");
    tokio::time::timeout(patience, wait).await.map_err(late)?
}

// Words.

fn default_file() -> PathBuf {
    let of_the_project = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    if of_the_project.exists() { of_the_project } else { "README.md".into() }
}

/// Reads the words of a file, any file: what is not UTF-8 separates words, and what is too long is cut.
fn read_words(path: &Path) -> std::io::Result<Vec<String>> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        bytes.truncate(FILE_MAX as usize);
        say!("Only the first {} MiB of the file are read.", FILE_MAX >> 20);
    }
    let text = String::from_utf8_lossy(&bytes).to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    Ok(words.map(|word| word.chars().take(WORD_MAX).collect()).collect())
}

// Print.

fn heading(text: &str) {
    say!("\n{text}\n{}", "-".repeat(text.len()));
}

/// An error with its causes: each level of ours prints only itself.
fn explain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn microseconds(time: Duration) -> String {
    format!("{:.0} µs", time.as_secs_f64() * 1e6)
}

/// Of times that are sorted.
fn median(times: &[Duration]) -> String {
    short(times.get(times.len() / 2))
}

fn slowest(times: &[Duration]) -> String {
    short(times.last())
}

fn short(time: Option<&Duration>) -> String {
    let time = time.copied().unwrap_or_default();
    if time < Duration::from_millis(1) { microseconds(time) } else { milliseconds(time) }
}

/// 1234567 as 1,234,567.
fn grouped(number: impl ToString) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
