//! A chat: a room is a group, and a nick is a name that one mailbox has at a time.
//!
//! ```text
//! cargo run --example chat
//!     three who chat, each in a process of its own; a nick is refused, one of them is killed, one leaves
//!
//! cargo run --example chat -- --name one@10.0.0.1 --cookie-file cluster.cookie --nick ann
//! cargo run --example chat -- --name two@10.0.0.2 --cookie-file cluster.cookie --join one@10.0.0.1 --nick bob
//!     on two hosts: what you type goes to the room, and `/to NICK TEXT` to one of those in it
//! ```
//!
//! Read [`chat`]: it is all there is. [`demo`] starts the three, types for them, and checks what they print.

use std::collections::HashMap;
use std::process::ExitCode;

use distribute::{Group, GroupEvent, GroupMember, LeftReason, Message, Names, Node, Pid};
use pico_args::Arguments;
use serde::{Deserialize, Serialize};

use crate::common::{Place, Result, Stage, explain, say};

mod common;

#[derive(Serialize, Deserialize)]
struct Line {
    nick: String,
    text: String,
    is_private: bool,
}

impl Message for Line {
    const TAG: &'static str = "chat.line";
    const VERSION: u32 = 1;
}

/// `nick/ann` is the mailbox of ann.
const NICKS: Names<Line> = Names::new("nick");

const ROOM: Group<Line> = Group::new("room");

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    common::end(run(Arguments::from_env()).await)
}

async fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.contains("--help") {
        say!("usage: chat [OPTIONS --nick NICK]\n{}\n  --nick NICK          what you are called", Place::OPTIONS);
        return Ok(());
    }
    let nick = arguments.opt_value_from_str("--nick")?;
    let place = Place::take(&mut arguments)?;
    common::done(arguments)?;
    match (place, nick) {
        (Some(place), Some(nick)) => chat(&place, nick).await,
        (None, None) => demo().await,
        _ => Err("--name and --nick go together; see --help".into()),
    }
}

async fn chat(place: &Place, nick: String) -> Result<()> {
    let node = place.builder()?.start().await?;
    say!("node {}", node.name());
    // From then on it knows who is there.
    node.ready().await?;
    let mut inbox = node.mailbox::<Line>();
    if let Err(error) = node.registry().register(NICKS.name(&nick)?, &inbox).await {
        node.shutdown().await;
        return Err(format!("you cannot be {nick}: {}", explain(&error)).into());
    }
    let mut changes = node.groups().subscribe(ROOM);
    node.groups().join(ROOM, &inbox)?;

    let mut present = HashMap::<Pid, String>::new();
    let mut typed = common::input();
    loop {
        tokio::select! {
            typed = typed.recv() => match typed {
                Some(text) => say_to_others(&node, &nick, &text, &inbox.pid()).await,
                None => break,
            },
            Some(Line { nick, text, is_private }) = inbox.recv() => {
                if is_private { say!("{nick} to you: {text}") } else { say!("{nick}: {text}") }
            }
            Some(change) = changes.next() => match change {
                GroupEvent::Snapshot(members) => present.extend(members.iter().map(|member| who_is(&node, member))),
                GroupEvent::Joined { member, .. } => {
                    let (pid, nick) = who_is(&node, &member);
                    say!("* {nick} is here");
                    present.insert(pid, nick);
                }
                GroupEvent::Left { member, reason, .. } => if let Some(nick) = present.remove(&member.pid) {
                    let how = if reason == LeftReason::NodeDied { "was lost" } else { "has left" };
                    say!("* {nick} {how}");
                },
                _ => {}
            },
        }
    }
    // The mailbox closes with the node: the others see it leave the room, and its nick is free.
    node.shutdown().await;
    Ok(())
}

async fn say_to_others(node: &Node, nick: &str, typed: &str, own: &Pid) {
    let line = |text: &str, is_private| Line { nick: nick.to_owned(), text: text.to_owned(), is_private };
    let Some((other, text)) = typed.strip_prefix("/to ").and_then(|rest| rest.split_once(' ')) else {
        match node.groups().broadcast(ROOM, &line(typed, false)).except(own).await {
            Ok(report) if report.is_complete() => {}
            Ok(report) => say!("* {} of {} have it", report.delivered(), report.len()),
            Err(error) => say!("* not said: {}", explain(&error)),
        }
        return;
    };
    let sent = async { Ok(node.registry().send(NICKS.name(other)?, line(text, true)).await?) };
    if let Err(error) = sent.await as Result<()> {
        say!("* not said: {}", explain(&*error));
    }
}

/// Which nick a mailbox in the room has.
fn who_is(node: &Node, member: &GroupMember) -> (Pid, String) {
    let entries = node.registry().entries();
    let mut of_it = entries.iter().filter(|entry| entry.owner == member.pid);
    let nick = of_it.find_map(|entry| NICKS.member(&entry.name)).map(str::to_owned);
    (member.pid.clone(), nick.unwrap_or_else(|| member.pid.node().name().to_string()))
}

/// Three who chat.
async fn demo() -> Result<()> {
    let mut stage = Stage::new()?;
    let mut ann = stage.start("one", &["--nick", "ann"]).await?;
    ann.expect("* ann is here").await?;
    let mut bob = stage.start("two", &["--nick", "bob"]).await?;
    ann.expect("* bob is here").await?;
    let mut eve = stage.start("three", &["--nick", "eve"]).await?;
    for other in [&mut ann, &mut bob] {
        other.expect("* eve is here").await?;
    }
    ann.say("good morning").await?;
    for other in [&mut bob, &mut eve] {
        other.expect("ann: good morning").await?;
    }
    bob.say("/to ann has eve slept?").await?;
    ann.expect("bob to you: has eve slept?").await?;

    let second = stage.start("four", &["--nick", "ann"]).await?;
    if second.end().await.is_ok() {
        return Err("there are two of one nick".into());
    }
    eve.kill().await?;
    for other in [&mut ann, &mut bob] {
        other.expect("* eve was lost").await?;
    }
    bob.say("/to eve where are you?").await?;
    bob.expect("* not said").await?;
    bob.end().await?;
    ann.expect("* bob has left").await?;
    ann.end().await
}
