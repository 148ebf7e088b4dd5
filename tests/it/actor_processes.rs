//! A pool across processes, one of which is killed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use distribute::{
    Actor, ActorContext, AskError, Config, Cookie, Fate, Group, Message, Method, Next, Node, NodeName, Pool, ReplyTo,
    Restart,
};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::children::{Process, live};
use crate::common::{millis, secs};

const CREW: Group<Work> = Group::new("crew");

/// How often the members of a node's part of the pool have begun anew, once they have so often.
const RESTARTS: Method<u64, u64> = Method::new("restarts");

const CHILD: &str = "DISTRIBUTE_TEST_CREW";

#[derive(Debug, Serialize, Deserialize)]
enum Work {
    Double(u64, ReplyTo<u64>),
    Never(ReplyTo<u64>),
    Poison,
}

impl Message for Work {
    const TAG: &'static str = "test.work";
    const VERSION: u32 = 1;
}

/// Keeps the questions that it never answers.
struct Worker(Vec<ReplyTo<u64>>);

impl Actor for Worker {
    type Message = Work;

    async fn handle(&mut self, work: Work, _: &ActorContext<Work>) -> Next {
        match work {
            Work::Double(number, reply_to) => drop(reply_to.reply(2 * number).await),
            Work::Never(reply_to) => self.0.push(reply_to),
            // A panic without a word, of which there are hundreds.
            Work::Poison => std::panic::resume_unwind(Box::new("as it should")),
        }
        Next::Continue
    }
}

/// A node with its part of the pool. A silent peer is given up, and a dead member buried, within seconds.
async fn start(name: &str, cookie: Cookie, join: Option<&str>, members: usize) -> (Node, Pool<Work>) {
    let mut config = Config::local();
    (config.sign_of_life_every, config.link_lost_after) = (millis(500), secs(2));
    (config.probe_interval, config.suspicion_max_mult) = (millis(400), 2);
    let mut builder = Node::builder(name).cookie(cookie).config(config);
    if let Some(join) = join {
        builder = builder.join(join);
    }
    let node = builder.start().await.unwrap();
    node.ready().await.unwrap();
    let policy = Restart::on_panic().back_off(millis(10), millis(100));
    let pool = node.pool(CREW, members, |_| Worker(Vec::new())).restart(policy).await.unwrap();
    let of_pool = pool.clone();
    node.rpc()
        .serve(RESTARTS, move |_, least| {
            let pool = of_pool.clone();
            async move {
                while pool.restarts() < least {
                    tokio::time::sleep(millis(5)).await;
                }
                pool.restarts()
            }
        })
        .unwrap();
    (node, pool)
}

/// The other processes; by itself it is no test. It lives until its standard input ends.
#[tokio::test]
async fn child() {
    let Ok(arguments) = std::env::var(CHILD) else { return };
    let arguments: Vec<_> = arguments.split('|').collect();
    let [cookie, name, join, members] = arguments[..] else { panic!("four arguments") };
    let (node, _pool) = start(name, Cookie::load(cookie).unwrap(), Some(join), members.parse().unwrap()).await;
    live(node).await;
}

async fn patience<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(secs(30), wait).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// Waits until this node lists so many members.
async fn until_count(node: &Node, members: usize) {
    let mut changes = node.groups().subscribe(CREW);
    let seen = async {
        while node.groups().count(CREW) != members {
            changes.next().await.expect("the node lives");
        }
    };
    patience(&format!("{members} members"), seen).await;
}

/// What came of a question to each member, by the node of the member.
async fn ask_all(node: &Node) -> Vec<(NodeName, Result<(), AskError>)> {
    let mut asking = JoinSet::new();
    for (number, member) in (0..).zip(node.groups().members(CREW)) {
        asking.spawn(async move {
            let doubled = member.ask(|reply_to| Work::Double(number, reply_to)).timeout(secs(20)).await;
            (member.node().name().clone(), doubled.map(|doubled| assert_eq!(doubled, 2 * number)))
        });
    }
    asking.join_all().await
}

/// A thousand workers in three processes. All answer; those that are poisoned begin anew, each once, and are counted where
/// they live. Then a process is killed: whoever waits for one of its workers has an error that says so, the others stay and
/// answer, and the dead are no members any more.
#[tokio::test]
async fn a_thousand_workers_lose_a_process() {
    let began = Instant::now();
    let directory = tempfile::tempdir().unwrap();
    let cookie_file = directory.path().join("cookie");
    let cookie = Cookie::load_or_generate(&cookie_file).unwrap();
    let (node, pool) = start("parent@127.0.0.1:0", cookie, None, 334).await;
    let child = |name, members| {
        let arguments = [cookie_file.to_str().unwrap(), name, node.name().as_str(), members].join("|");
        // It says its name once it is ready, for which it needs this node.
        tokio::task::spawn_blocking(move || Process::start("actor_processes::child", CHILD, arguments))
    };
    let (one, two) = (child("one@127.0.0.1:0", "333"), child("two@127.0.0.1:0", "333"));
    let (one, mut two) = (one.await.unwrap(), two.await.unwrap());
    until_count(&node, 1000).await;
    let all = ask_all(&node).await;
    assert_eq!((all.len(), all.iter().filter(|(_, answer)| answer.is_err()).count()), (1000, 0));
    println!("a thousand answered {:?} after the start", began.elapsed());

    // Every third worker is poisoned, wherever it lives.
    let members = node.groups().members(CREW);
    for member in members.iter().step_by(3) {
        member.send(Work::Poison).await.unwrap();
    }
    let mut restarts = 0;
    for at in [node.name(), &one.name, &two.name] {
        let poisoned = members.iter().step_by(3).filter(|member| member.node().name() == at).count() as u64;
        let counted = node.rpc().call(at, RESTARTS, poisoned).timeout(secs(20)).await.unwrap();
        assert_eq!(counted, poisoned, "{at}");
        restarts += counted;
    }
    assert_eq!(restarts, 334);
    let again = ask_all(&node).await;
    assert_eq!((again.len(), again.iter().filter(|(_, answer)| answer.is_err()).count()), (1000, 0), "in their places");
    assert!(pool.members().iter().all(|member| member.exit().is_none()));
    println!("all answered again {:?} after the start", began.elapsed());

    // Questions that wait at all of the workers that die, and at one that does not.
    let on_two = |pid: &distribute::Pid| *pid.node().name() == two.name;
    let watch = node.monitor(members.iter().find(|member| on_two(member.pid())).unwrap());
    let mut waiting = JoinSet::new();
    for member in members.iter().filter(|member| on_two(member.pid())) {
        let member = member.clone();
        waiting.spawn(async move { member.ask(Work::Never).timeout(secs(20)).await });
    }
    let survivor = members.iter().find(|member| *member.node().name() == one.name).cloned().unwrap();
    let mut unaffected = tokio::spawn(async move { survivor.ask(Work::Never).timeout(secs(3)).await });
    // They have arrived: what is sent after them is answered.
    assert!(ask_all(&node).await.iter().all(|(_, answer)| answer.is_ok()));
    two.child.kill().unwrap();
    let killed = Instant::now();
    let outcomes = patience("the end of all questions", waiting.join_all()).await;
    assert_eq!(outcomes.len(), 333);
    for outcome in outcomes {
        assert!(matches!(&outcome, Err(AskError::Disconnected(node)) if *node.name() == two.name), "{outcome:?}");
    }
    assert!(matches!(patience("a notice", watch).await.fate, Fate::Disconnected | Fate::NodeDown));
    println!("all who waited were told {:?} after the kill", killed.elapsed());

    // Who asks from now on: the survivors answer, and of the others it is said why they do not.
    for (at, answer) in ask_all(&node).await {
        let is_right = if at == two.name {
            matches!(answer, Err(AskError::NotSent(_) | AskError::Disconnected(_)))
        } else {
            answer.is_ok()
        };
        assert!(is_right, "{at}: {answer:?}");
    }
    until_count(&node, 667).await;
    println!("its workers were no members any more {:?} after the kill", killed.elapsed());
    let survivors: BTreeSet<_> =
        members.iter().map(|member| member.pid()).filter(|pid| !on_two(pid)).cloned().collect();
    let left = node.groups().members(CREW);
    assert_eq!(left.iter().map(|member| member.pid().clone()).collect::<BTreeSet<_>>(), survivors);
    assert!(ask_all(&node).await.iter().all(|(_, answer)| answer.is_ok()));
    let asked: Result<u64, AskError> = patience("a timeout", &mut unaffected).await.unwrap();
    assert_eq!(asked, Err(AskError::Timeout(Duration::from_secs(3))), "nobody else's question ended");
    println!("the whole took {:?}", began.elapsed());
    assert!(began.elapsed() < secs(30), "{:?}", began.elapsed());
}
