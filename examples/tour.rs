//! The tour: three nodes in three processes count the words of a file, and a stranger is turned away.
//!
//! ```text
//! cargo run --release --example tour -- FILE
//!
//!                      ┌─ words ──▶ counter-1
//!  FILE ─▶ coordinator ┤                           each a process with a node of its own, on loopback;
//!              ▲       └─ words ──▶ counter-2      counts come back as answers to calls
//!              └── refused ── stranger             a fourth process, with another cookie
//! ```
//!
//! Read [`count_words`] for what a service does, [`stream`] for sending, [`collect`] for calling, [`lose_one`] for how the
//! death of a member is noticed, and [`turn_away`] for what a stranger meets. The rest starts processes and prints.
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
use std::time::{Duration, Instant};

use distribute::{
    Address, AuthError, Config, ConnectError, Cookie, DownReason, MemberEvent, MembershipEvent, Message, Method, Node,
    NodeEvent, NodeName,
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

/// One word on its way to a counter.
#[derive(Serialize, Deserialize)]
struct Word(String);

impl Message for Word {
    const TAG: &'static str = "tour.word";
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

/// Prints a line, and does not mind when nobody reads on.
macro_rules! say {
    ($($text:tt)*) => {
        let _ = writeln!(std::io::stdout(), $($text)*);
    };
}

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

/// Where a counter is found: the line that it prints. An address is a value and survives JSON.
#[derive(Serialize, Deserialize)]
struct Place {
    node: NodeName,
    words: Address<Word>,
}

/// A process that counts words until its standard input ends, which happens at the latest when its parent dies.
async fn counter(name: &str, cookie: &str, join: &str) -> Result<()> {
    let node = Node::builder(name).cookie(Cookie::load(cookie)?).join(join).config(Config::local()).start().await?;
    mourn(&node)?;
    let words = count_words(&node)?;
    report(&Place { node: node.name().clone(), words })?;
    parent_is_done().await;
    node.shutdown().await;
    Ok(())
}

/// The service: a mailbox for words, and three methods.
fn count_words(node: &Node) -> Result<Address<Word>> {
    let mut words = node.mailbox::<Word>();
    let address = words.address();
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
    Ok(address)
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
    let node = Node::builder("coordinator@127.0.0.1:0").cookie(cookie).config(Config::local()).start().await?;
    mourn(&node)?;
    let mut events = node.cluster().node_events();
    say!("{} runs in process {}.", node.name(), std::process::id());
    let cookie_file = cookie_file.to_str().ok_or("the temporary directory has a name that is not UTF-8")?;
    let mut counters = Vec::new();
    for name in ["counter-1@127.0.0.1:0", "counter-2@127.0.0.1:0"] {
        let (process, place): (_, Place) = launch(&["--counter", name, cookie_file, node.name().as_str()]).await?;
        say!("{} runs in process {}.", place.node, process.id());
        counters.push(Counter { process, node: place.node, words: place.words.bind(&node) });
    }
    say!("They share a fresh random cookie, which travels only as a file that its owner alone can read.");
    say!("All were up {} after the first was begun.", milliseconds(began.elapsed()));
    for counter in &counters {
        let began = Instant::now();
        node.cluster().connect(&counter.node).await?;
        say!("Dialled {}: both sides proved themselves within {}.", counter.node, milliseconds(began.elapsed()));
    }

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

    heading("A member dies");
    lose_one(&node, &mut counters, cookie_file).await?;

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

/// Kills a counter, lets the others say how they saw it die, and starts it again.
async fn lose_one(node: &Node, counters: &mut [Counter], cookie_file: &str) -> Result<()> {
    let membership = node.membership();
    within("all to see all", PATIENCE, async { Ok(membership.wait_for_alive(1 + counters.len()).await) }).await?;
    let alive: Vec<_> = membership.alive().iter().map(|id| id.name().local().to_string()).collect();
    say!("Nobody was told of everybody, but all know all: {}.", alive.join(", "));
    let [survivor, victim] = counters else { return Err("the tour has two counters".into()) };
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
    let mut changes = membership.subscribe();
    let began = Instant::now();
    let arguments = ["--counter", victim.node.as_str(), cookie_file, node.name().as_str()];
    let (process, place): (_, Place) = launch(&arguments).await?;
    victim.process = process;
    victim.words = place.words.bind(node);
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
    Ok(())
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
