//! A node with a prompt, to try a cluster by hand or by a script.
//!
//! ```text
//! cargo run --example node -- --name a@127.0.0.1:4370 --cookie-file cluster.cookie
//! cargo run --example node -- --name b@127.0.0.1:4371 --cookie-file cluster.cookie --join a@127.0.0.1:4370
//! ```
//!
//! Then type `help`. On two hosts, put the addresses of the hosts into the names and copy the cookie to the second.
//!
//! Lines that begin with `*` tell what happens; all others answer commands, and begin with the command, or with `error`.
//! With `--script` each answer is one line. When the input ends, the node leaves in good order. `RUST_LOG=distribute=debug`
//! shows what the node does meanwhile.
//!
//! Read [`Prompt`] for what a node can be asked, and [`tell`] for what it tells by itself.

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use distribute::{
    Election, ElectionEvent, Group, GroupEvent, GroupMember, HealthReason, HealthStatus, Mailbox, MemberEvent,
    MembershipEvent, Method, Name, NameChange, NameEvent, Node, NodeEvent, NodeId, NodeName, Pid, Registration, Voters,
};
use pico_args::Arguments;
use tokio::task::AbortHandle;

use crate::common::{Place, Result, explain, say};

mod common;

const COMMANDS: &str = "\
  who                   the members, and whether each lives
  wait N                waits until so many live
  ready                 waits until this node knows the names and groups of the cluster
  names                 who has which name
  groups                who is in which group
  register NAME         opens a mailbox with this name
  unregister NAME       gives the name back
  join GROUP            opens a mailbox in this group
  leave GROUP           closes it
  send NAME TEXT        sends to the mailbox that has the name
  broadcast GROUP TEXT  sends to all mailboxes in the group
  call NODE TEXT        asks a node to shout, and prints its answer
  ping NODE             asks a node for a sign of life, and prints how long that took
  watch NODE|NAME       tells once when the node, or who has the name, is gone
  lead NAME VERSION VOTER..  stands in the election of this name among these voters; tells who leads
  resign NAME           gives up the lead
  health                what is wrong, as far as this node knows
  stats                 what it has counted
  quit                  leaves in good order";

/// Every node serves this: it answers in capitals.
const SHOUT: Method<String, String> = Method::new("node.shout");

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    common::end(run(Arguments::from_env()).await)
}

async fn run(mut arguments: Arguments) -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    if arguments.contains("--help") {
        say!("usage: node OPTIONS\n{}\n  --script             one line for each answer", Place::OPTIONS);
        say!("  --votes DIRECTORY    where this node keeps its votes in elections\n");
        say!("commands:\n{COMMANDS}");
        return Ok(());
    }
    let is_script = arguments.contains("--script");
    let votes: Option<PathBuf> = arguments.opt_value_from_os_str("--votes", |path| Ok::<_, String>(path.into()))?;
    let place = Place::take(&mut arguments)?.ok_or("--name is required; see --help")?;
    common::done(arguments)?;

    let mut builder = place.builder()?;
    if let Some(votes) = votes {
        builder = builder.election_dir(votes);
    }
    let node = builder.start().await?;
    node.rpc().serve(SHOUT, |_call, text| async move { text.to_uppercase() })?;
    say!("node {}", node.name());
    let mut told = tokio::spawn(tell(node.clone()));
    let mut prompt =
        Prompt { node, is_script, names: HashMap::new(), groups: HashMap::new(), elections: HashMap::new() };
    let mut input = common::input();
    loop {
        if std::io::stdin().is_terminal() && !is_script {
            eprint!("> ");
        }
        tokio::select! {
            line = input.recv() => match line {
                Some(line) if line.trim() == "quit" => break,
                Some(line) => prompt.answer(line.trim()).await,
                None => break,
            },
            // The node has ended by itself: a later life of its name took its place.
            _ = &mut told => break,
        }
    }
    prompt.node.shutdown().await;
    say!("bye");
    Ok(())
}

/// What the commands need.
struct Prompt {
    node: Node,
    is_script: bool,
    /// The names of this prompt's mailboxes, and the tasks that read these.
    names: HashMap<String, (Registration<String>, Reader)>,
    groups: HashMap<String, (Pid, Reader)>,
    elections: HashMap<String, Election>,
}

/// A task that reads a mailbox. Dropping it closes the mailbox.
struct Reader(AbortHandle);

impl Reader {
    fn start(about: String, mut mailbox: Mailbox<String>) -> Self {
        let reading = tokio::spawn(async move {
            while let Some(received) = mailbox.recv_full().await {
                say!("* message for {about} from {}: {}", received.from.name(), received.message);
            }
        });
        Self(reading.abort_handle())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Prompt {
    /// Does what a line says, and prints the answer.
    async fn answer(&mut self, line: &str) {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let answer = match (command, rest.trim()) {
            ("", _) => return,
            ("help", _) => return say!("{COMMANDS}"),
            ("who", _) => Ok(self.who()),
            ("wait", number) => self.wait(number).await,
            ("ready", _) => self.node.ready().await.map(|()| Vec::new()).map_err(Into::into),
            ("names", _) => Ok(self.names()),
            ("groups", _) => Ok(self.groups()),
            ("register", name) => self.register(name).await,
            ("unregister", name) => self.unregister(name).await,
            ("join", group) => self.join(group),
            ("leave", group) => self.leave(group),
            ("send", rest) => self.send(rest).await,
            ("broadcast", rest) => self.broadcast(rest).await,
            ("call", rest) => self.call(rest).await,
            ("ping", node) => self.ping(node).await,
            ("watch", target) => self.watch(target),
            ("lead", rest) => self.lead(rest).await,
            ("resign", name) => self.resign(name).await,
            ("health", _) => Ok(self.health()),
            ("stats", _) => Ok(self.stats()),
            _ => Err("no such command; try help".into()),
        };
        match answer {
            Ok(items) if self.is_script || items.len() < 2 => {
                say!("{}", [&[command.to_owned()], &*items].concat().join(" "))
            }
            Ok(items) => say!("{command}\n  {}", items.join("\n  ")),
            Err(error) => say!("error {command}: {}", explain(&*error)),
        }
    }

    fn who(&self) -> Vec<String> {
        let members = self.node.membership().members();
        members.iter().map(|member| format!("{}={}", member.id.name(), lower(member.state))).collect()
    }

    async fn wait(&self, number: &str) -> Result<Vec<String>> {
        let members = self.node.membership().wait_for_alive(number.parse()?).await;
        Ok(names_of(&members.ok_or("the node has ended")?))
    }

    fn names(&self) -> Vec<String> {
        let entries = self.node.registry().entries();
        entries.iter().map(|entry| format!("{}={}", entry.name, entry.owner.node().name())).collect()
    }

    fn groups(&self) -> Vec<String> {
        let groups = self.node.groups();
        let members = |name: &str| {
            // Of whatever type: what a group takes is not asked here.
            let members = Group::<()>::parse(name).map(|group| groups.memberships(group)).unwrap_or_default();
            members.iter().map(|member| member.pid.node().name().to_string()).collect::<Vec<_>>().join(",")
        };
        groups.groups().iter().map(|name| format!("{name}={}", members(name))).collect()
    }

    async fn register(&mut self, name: &str) -> Result<Vec<String>> {
        let mailbox = self.node.mailbox();
        let registration = self.node.registry().register(Name::parse(name)?, &mailbox).await?;
        let (claim, about) = (registration.clone(), name.to_owned());
        tokio::spawn(async move {
            if let Some(owner) = claim.lost().await {
                say!("* lost {about} to {}", owner.node().name());
            }
        });
        self.names.insert(name.to_owned(), (registration, Reader::start(name.to_owned(), mailbox)));
        Ok(vec![name.to_owned()])
    }

    async fn unregister(&mut self, name: &str) -> Result<Vec<String>> {
        let (registration, _reader) = self.names.remove(name).ok_or("it was not registered here")?;
        registration.unregister().await?;
        Ok(vec![name.to_owned()])
    }

    fn join(&mut self, group: &str) -> Result<Vec<String>> {
        if !self.groups.contains_key(group) {
            let mailbox = self.node.mailbox();
            self.node.groups().join(Group::parse(group)?, &mailbox)?;
            self.groups.insert(group.to_owned(), (mailbox.pid(), Reader::start(group.to_owned(), mailbox)));
        }
        Ok(vec![group.to_owned()])
    }

    fn leave(&mut self, group: &str) -> Result<Vec<String>> {
        let (member, _reader) = self.groups.remove(group).ok_or("it was not joined here")?;
        self.node.groups().leave(Group::<String>::parse(group)?, member)?;
        Ok(vec![group.to_owned()])
    }

    async fn send(&self, rest: &str) -> Result<Vec<String>> {
        let (name, text) = rest.split_once(' ').ok_or("send NAME TEXT")?;
        self.node.registry().send(Name::parse(name)?, text.to_owned()).await?;
        Ok(vec![name.to_owned()])
    }

    async fn broadcast(&self, rest: &str) -> Result<Vec<String>> {
        let (group, text) = rest.split_once(' ').ok_or("broadcast GROUP TEXT")?;
        let report = self.node.groups().broadcast(Group::parse(group)?, &text.to_owned()).await?;
        let mut counts = BTreeMap::new();
        for (_, outcome) in report.outcomes() {
            *counts.entry(lower(outcome)).or_insert(0) += 1;
        }
        let counts = counts.iter().map(|(outcome, count)| format!("{outcome}={count}"));
        Ok([format!("members={}", report.len())].into_iter().chain(counts).collect())
    }

    async fn call(&self, rest: &str) -> Result<Vec<String>> {
        let (node, text) = rest.split_once(' ').ok_or("call NODE TEXT")?;
        let node: NodeName = node.parse()?;
        Ok(vec![self.node.rpc().call(&node, SHOUT, text.to_owned()).await?])
    }

    async fn ping(&self, node: &str) -> Result<Vec<String>> {
        let round_trip = self.node.cluster().ping(&node.parse()?, Duration::from_secs(5)).await?;
        Ok(vec![format!("{:.1}ms", round_trip.as_secs_f64() * 1e3)])
    }

    fn watch(&self, target: &str) -> Result<Vec<String>> {
        // The watch is on from here; the task only waits.
        let monitor = match target.parse::<NodeName>() {
            Ok(node) => self.node.monitor(&node),
            Err(_) => self.node.monitor(&Name::<String>::parse(target)?),
        };
        let about = target.to_owned();
        tokio::spawn(async move { say!("* gone {about}: {}", lower(monitor.await.fate)) });
        Ok(vec![target.to_owned()])
    }

    async fn lead(&mut self, rest: &str) -> Result<Vec<String>> {
        let words: Vec<_> = rest.split_whitespace().collect();
        let [name, version, voters @ ..] = &*words else { return Err("lead NAME VERSION VOTER..".into()) };
        let voters = Voters::new(version.parse()?, voters.iter().copied());
        let election = self.node.election(*name, voters).await?;
        if self.elections.insert((*name).to_owned(), election.clone()).is_none() {
            tokio::spawn(tell_election(election.clone()));
        }
        if election.is_voter() {
            tokio::spawn(async move { election.while_leading(|_| std::future::pending::<()>()).await });
        }
        Ok(vec![(*name).to_owned()])
    }

    async fn resign(&self, name: &str) -> Result<Vec<String>> {
        self.elections.get(name).ok_or("it takes no part in this election")?.resign().await;
        Ok(vec![name.to_owned()])
    }

    fn health(&self) -> Vec<String> {
        let status = self.node.health().status();
        let heading = match &status {
            HealthStatus::Healthy => "healthy",
            HealthStatus::Degraded(_) => "degraded",
            HealthStatus::Isolated(_) => "isolated",
            _ => "unknown",
        };
        let reason = |reason: &HealthReason| match reason {
            HealthReason::Suspected(nodes) => format!("suspected={}", names_of(nodes).join(",")),
            HealthReason::Died(nodes) => format!("died={}", names_of(nodes).join(",")),
            HealthReason::Unwell { score } => format!("unwell={score}"),
            other => lower(other),
        };
        [heading.to_owned()].into_iter().chain(status.reasons().iter().map(reason)).collect()
    }

    fn stats(&self) -> Vec<String> {
        let stats = self.node.stats();
        vec![
            format!("uptime={}s", stats.uptime.as_secs()),
            format!("sessions={}", stats.peers.len()),
            format!("sessions_lost={}", stats.incidents.sessions_lost),
            format!("messages_sent={}", stats.traffic.sent.messages),
            format!("messages_received={}", stats.traffic.received.messages),
            format!("messages_refused={}", stats.incidents.messages_refused),
            format!("calls_answered={}", stats.calls.answered),
            format!("calls_served={}", stats.calls.served),
            format!("probes={}", stats.membership.probes),
            format!("probes_failed={}", stats.membership.failures),
            format!("deaths={}", stats.membership.deaths),
            format!("false_alarms={}", stats.membership.false_alarms),
            format!("name_changes={}", stats.names.changes),
            format!("name_conflicts={}", stats.names.conflicts),
        ]
    }
}

/// Prints what happens, until the node ends.
async fn tell(node: Node) {
    let (mut sessions, mut members) = (node.cluster().node_events(), node.membership().subscribe());
    let (mut names, mut groups) = (node.registry().watch_all(), node.groups().subscribe_all());
    let ready = node.clone();
    tokio::spawn(async move {
        if ready.ready().await.is_ok() {
            say!("* ready");
        }
    });
    drop(node);
    loop {
        tokio::select! {
            Some(event) = sessions.next() => tell_session(event),
            Some(event) = members.next() => tell_member(event),
            Some(event) = names.next() => tell_name(event),
            Some(event) = groups.next() => tell_group(event),
            else => break,
        }
    }
}

async fn tell_election(election: Election) {
    let mut events = election.observe();
    while let Some(event) = events.next().await {
        match event {
            ElectionEvent::Snapshot(Some((token, leader))) | ElectionEvent::Changed { token, leader: Some(leader) } => {
                say!("* leader {} is {leader} by {token}", election.name());
            }
            ElectionEvent::Changed { token, leader: None } => {
                say!("* leader {} by {token} has stopped", election.name())
            }
            _ => {}
        }
    }
}

fn tell_session(event: NodeEvent) {
    match event {
        NodeEvent::Up(node) => say!("* session {} up", node.name()),
        NodeEvent::Down(node, reason) => say!("* session {} down: {}", node.name(), lower(reason)),
        NodeEvent::Conflict { live, refused } => say!("* conflict {refused} was refused: {live} lives"),
        other => say!("* session {other:?}"),
    }
}

fn tell_member(event: MembershipEvent) {
    // The present ones are what `who` is for.
    let MembershipEvent::Changed(event) = event else { return };
    match event {
        MemberEvent::Joined(member) => say!("* member {} joined", member.id.name()),
        MemberEvent::Replaced { member, .. } => say!("* member {} replaced: it has restarted", member.id.name()),
        MemberEvent::Suspected { member, by } => say!("* member {} suspected by {}", member.id.name(), by.name()),
        MemberEvent::Cleared(member) => say!("* member {} cleared", member.id.name()),
        MemberEvent::Died { member, by } => say!("* member {} died, says {}", member.id.name(), by.name()),
        MemberEvent::Returned(member) => say!("* member {} returned", member.id.name()),
        MemberEvent::Left(member) => say!("* member {} left", member.id.name()),
        _ => {}
    }
}

fn tell_name(event: NameEvent) {
    let NameEvent::Changed(NameChange { name, before, now, reason, .. }) = event else { return };
    match (before, now) {
        (_, Some(now)) => say!("* name {name} at {}: {}", now.owner.node().name(), lower(reason)),
        (Some(before), None) => say!("* name {name} gone from {}: {}", before.owner.node().name(), lower(reason)),
        (None, None) => {}
    }
}

fn tell_group(event: GroupEvent) {
    let who = |member: &GroupMember| format!("{}: {}", member.group, member.pid.node().name());
    match event {
        GroupEvent::Joined { member, .. } => say!("* group {} joined", who(&member)),
        GroupEvent::Left { member, reason, .. } => say!("* group {} gone: {}", who(&member), lower(reason)),
        _ => {}
    }
}

fn names_of(nodes: &[NodeId]) -> Vec<String> {
    nodes.iter().map(|node| node.name().to_string()).collect()
}

/// The name of a case, as in `alive`.
fn lower(case: impl std::fmt::Debug) -> String {
    format!("{case:?}").to_lowercase()
}
