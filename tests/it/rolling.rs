//! All nodes of a service are restarted, one after the other, while it is used.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use distribute::sim::Conditions;
use distribute::{
    Builder, CallError, Cookie, DownReason, Error, Fate, LookupError, MemberEvent, MembershipEvent, Method, Name,
    NameEvent, NameReason, Node, NodeEvent, NodeName, RegisterError, Retry,
};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::common::{World, millis, say, secs};

const NODES: usize = 5;
/// Does the work of that number; takes a moment.
const WORK: Method<u64, u64> = Method::new("work");
/// Has another node do it, and tells what came of it.
const RELAY: Method<u64, Result<u64, String>> = Method::new("relay");

/// Whoever has this name does the work that is sent by name.
const FOREMAN: Name<u64> = Name::new("foreman");

/// How often each piece of work was done.
type Done = Arc<Mutex<HashMap<u64, u32>>>;

/// What was not done is tried again for as long as a restart may take.
fn retry() -> Retry {
    Retry::new().attempts(1000).within(secs(20)).pauses(millis(10), millis(100))
}

fn name_of(at: usize) -> Name<u64> {
    Name::parse(format!("worker/{at}")).unwrap()
}

/// One life of a node of the service.
struct Worker {
    node: Node,
    tasks: JoinSet<()>,
}

impl Worker {
    async fn start(builder: Builder, at: usize, done: &Done) -> Self {
        let node = builder.start().await.unwrap();
        let counter = done.clone();
        let work = move |_, id: u64| {
            let done = counter.clone();
            async move {
                tokio::time::sleep(millis(5 + id % 20)).await;
                *done.lock().unwrap().entry(id).or_default() += 1;
                id
            }
        };
        node.rpc().serve(WORK, work).unwrap();
        let (rpc, membership, own) = (node.rpc(), node.membership(), node.name().clone());
        let relay = move |_, id: u64| {
            let (rpc, membership, own) = (rpc.clone(), membership.clone(), own.clone());
            async move {
                let asked = retry().run(async || {
                    let others = membership.alive().into_iter().map(|node| node.name().clone());
                    let others: Vec<_> = others.filter(|name| name.local() == own.local() && *name != own).collect();
                    match others.len() {
                        0 => Err(CallError::Overloaded), // it has just begun, and knows nobody
                        all => rpc.call(&others[id as usize % all], WORK, id).await,
                    }
                });
                asked.await.map_err(|error| error.to_string())
            }
        };
        node.rpc().serve(RELAY, relay).unwrap();
        node.ready().await.unwrap();
        let mut tasks = JoinSet::new();
        let own = node.mailbox::<u64>();
        node.registry().register(name_of(at), &own).await.unwrap();
        let (registry, desk) = (node.registry(), node.mailbox::<u64>());
        tasks.spawn(async move {
            let _own = own;
            // Whoever is first after the one before has it until its own end.
            loop {
                match registry.register(FOREMAN, &desk).await {
                    Ok(registration) => return drop(registration.lost().await),
                    Err(RegisterError::Taken { .. }) => {}
                    Err(_) => return,
                }
                let mut changes = registry.watch(FOREMAN);
                while registry.entry(FOREMAN).is_some() {
                    if changes.next().await.is_none() {
                        return;
                    }
                }
            }
        });
        Self { node, tasks }
    }

    async fn stop(mut self) {
        self.node.shutdown().await;
        self.tasks.shutdown().await;
    }
}

/// How long each name had no owner, as one node saw it.
fn absences(node: &Node) -> Arc<Mutex<BTreeMap<String, Vec<Duration>>>> {
    let absent = Arc::new(Mutex::new(BTreeMap::<_, Vec<_>>::new()));
    let (mut changes, result) = (node.registry().watch_all(), absent.clone());
    tokio::spawn(async move {
        let mut gone = HashMap::new();
        while let Some(event) = changes.next().await {
            let NameEvent::Changed(change) = event else { continue };
            match (&change.before, &change.now) {
                (Some(_), None) => {
                    assert_eq!(change.reason, NameReason::NodeLeft, "{change:?}");
                    gone.insert(change.name.clone(), Instant::now());
                }
                (None, Some(_)) => {
                    if let Some(since) = gone.remove(&change.name) {
                        absent.lock().unwrap().entry(change.name.to_string()).or_default().push(since.elapsed());
                    }
                }
                _ => {}
            }
        }
    });
    result
}

/// What must not be seen of the nodes that restart: that one is taken for dead, or that a session is lost.
fn alarms(node: &Node) -> Arc<Mutex<Vec<String>>> {
    let alarms = Arc::new(Mutex::new(Vec::new()));
    let (mut members, of_members) = (node.membership().subscribe(), alarms.clone());
    tokio::spawn(async move {
        while let Some(event) = members.next().await {
            if let MembershipEvent::Changed(event @ (MemberEvent::Died { .. } | MemberEvent::Replaced { .. })) = event {
                of_members.lock().unwrap().push(format!("{event:?}"));
            }
        }
    });
    let (mut sessions, of_sessions) = (node.cluster().node_events(), alarms.clone());
    tokio::spawn(async move {
        while let Some(event) = sessions.next().await {
            match event {
                NodeEvent::Up(_) | NodeEvent::Down(_, DownReason::Left | DownReason::Shutdown) => {}
                event => of_sessions.lock().unwrap().push(format!("{event:?}")),
            }
        }
    });
    alarms
}

/// Callers on a node that is not restarted: to one node or another, by name, and by way of another node.
struct Load {
    callers: JoinSet<Vec<(u64, Result<u64, Error>)>>,
    is_over: Arc<AtomicBool>,
}

impl Load {
    fn start(node: &Node, names: &[NodeName], callers: usize, next: &Arc<AtomicU64>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut load = JoinSet::new();
        for _ in 0..callers {
            for way in 0..3 {
                let (rpc, registry, names) = (node.rpc(), node.registry(), names.to_vec());
                let (next, is_over) = (next.clone(), is_over.clone());
                load.spawn(async move {
                    let mut outcomes = vec![];
                    while !is_over.load(Ordering::Relaxed) {
                        let id = next.fetch_add(1, Ordering::Relaxed);
                        let to = &names[id as usize % names.len()];
                        let outcome = match way {
                            0 => retry().run(async || Ok(rpc.call(to, WORK, id).await?)).await,
                            1 => {
                                let by_name = async || {
                                    let foreman = registry.entry(FOREMAN).ok_or(LookupError::NotFound)?;
                                    Ok(rpc.call(foreman.owner.node(), WORK, id).await?)
                                };
                                retry().run(by_name).await
                            }
                            _ => {
                                let relayed = retry().run(async || rpc.call(to, RELAY, id).timeout(secs(20)).await);
                                match relayed.await {
                                    Ok(answer) => Ok(answer.expect("what is relayed is done")),
                                    Err(error) => Err(error.into()),
                                }
                            }
                        };
                        outcomes.push((id, outcome));
                    }
                    outcomes
                });
            }
        }
        Self { callers: load, is_over }
    }

    async fn stop(self) -> Vec<(u64, Result<u64, Error>)> {
        self.is_over.store(true, Ordering::Relaxed);
        self.callers.join_all().await.into_iter().flatten().collect()
    }
}

/// Waits until all have been called a good many times more.
async fn used_again(next: &AtomicU64) {
    let before = next.load(Ordering::Relaxed);
    while next.load(Ordering::Relaxed) < before + 20 * NODES as u64 {
        tokio::time::sleep(millis(10)).await;
    }
}

/// Restarts all, one after the other, and judges what the callers and the watchers saw.
async fn roll(builder: impl Fn(Option<&NodeName>, usize) -> Builder, observers: &[Node], callers: usize) {
    let done = Done::default();
    let mut workers = Vec::new();
    let mut names = Vec::new();
    for at in 0..NODES {
        let worker = Worker::start(builder(None, at).join(observers[0].name()), at, &done).await;
        names.push(worker.node.name().clone());
        workers.push(worker);
    }
    for observer in observers {
        observer.ready().await.unwrap();
        observer.membership().wait_for_alive(NODES + observers.len()).await.unwrap();
        observer.registry().wait_for(FOREMAN).await.unwrap();
    }
    let (absent, alarms) = (absences(&observers[0]), observers.iter().map(alarms).collect::<Vec<_>>());
    let next = Arc::new(AtomicU64::new(0));
    let loads: Vec<_> = observers.iter().map(|node| Load::start(node, &names, callers, &next)).collect();
    used_again(&next).await;

    for (at, name) in names.iter().enumerate() {
        let old = workers.remove(0);
        let watches: Vec<_> = observers.iter().map(|node| node.monitor(old.node.id())).collect();
        let begun = Instant::now();
        old.stop().await;
        let stopped = begun.elapsed();
        let new = Worker::start(builder(Some(name), at).join(observers[0].name()), at, &done).await;
        println!("{name} stopped within {stopped:?}, and was back after {:?}", begun.elapsed());
        for watch in watches {
            assert_eq!(watch.await.fate, Fate::NodeLeft);
        }
        workers.push(new);
        // Before the next one goes.
        used_again(&next).await;
    }

    let mut outcomes = Vec::new();
    for load in loads {
        outcomes.extend(load.stop().await);
    }
    let done = done.lock().unwrap().clone();
    let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| outcome.is_err()).collect();
    let twice = done.iter().filter(|(_, times)| **times != 1).count();
    println!("{} calls, {} pieces of work done, {twice} not once, {} failed", outcomes.len(), done.len(), failed.len());
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(twice, 0, "nothing is done twice");
    assert_eq!(done.len(), outcomes.len(), "what is answered was done, and nothing else");
    assert!(outcomes.iter().all(|(id, outcome)| outcome.as_ref().is_ok_and(|answer| answer == id)));
    let absent = absent.lock().unwrap().clone();
    for (name, times) in &absent {
        say(format_args!("{name} was nobody's for {times:?}"));
    }
    assert_eq!(absent.iter().filter(|(name, _)| name.starts_with("worker/")).count(), NODES);
    assert!(absent.contains_key(FOREMAN.name()), "the foreman was restarted, too");
    assert!(absent.values().flatten().all(|time| *time < secs(8)), "{absent:?}");
    for alarms in alarms {
        let alarms = alarms.lock().unwrap().clone();
        assert!(alarms.is_empty(), "{alarms:?}");
    }
    for worker in workers {
        worker.stop().await;
    }
}

/// Callers that try again what was not done lose nothing, and nothing is done twice; nobody is taken for dead.
#[tokio::test(start_paused = true)]
async fn a_rolling_restart_loses_nothing() {
    let world = World::new(1);
    let observers = [world.node("x", 11).await, world.builder("y", 12).join("x@10.0.0.11").start().await.unwrap()];
    let builder = |_: Option<&NodeName>, at: usize| world.builder("n", at as u8 + 1);
    roll(builder, &observers, 3).await;
}

/// The same over real sockets, where a port is free for the next life at once.
#[tokio::test]
async fn a_rolling_restart_over_real_sockets_loses_nothing() {
    let cookie = Cookie::generate();
    let start = |name: &str| Node::builder(name).cookie(cookie.clone());
    let x = start("x@127.0.0.1:0").start().await.unwrap();
    let builder = |name: Option<&NodeName>, _: usize| start(name.map_or("n@127.0.0.1:0", NodeName::as_str));
    roll(builder, &[x], 2).await;
}

/// Without another try a stop is noticed, by errors that say that nothing was done: also by those whose call was on its way
/// when the node stopped to answer, over a path that takes longer than its stop.
#[tokio::test(start_paused = true)]
async fn without_another_try_a_stop_is_noticed() {
    let world = World::new(2);
    world.fabric.conditions(Conditions::default().latency(millis(40)));
    let x = world.node("x", 11).await;
    let done = Done::default();
    let worker = Worker::start(world.builder("n", 1).join(x.name()), 0, &done).await;
    let (to, next) = (worker.node.name().clone(), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..50 {
        let (rpc, to, next) = (x.rpc(), to.clone(), next.clone());
        callers.spawn(async move {
            for answered in 0.. {
                let id = next.fetch_add(1, Ordering::Relaxed);
                match rpc.call(&to, WORK, id).await {
                    Ok(_) => {}
                    Err(error) => return (id, answered, error),
                }
                tokio::time::sleep(millis(id % 7)).await;
            }
            unreachable!()
        });
    }
    tokio::time::sleep(secs(2)).await;
    worker.stop().await;
    let ends = callers.join_all().await;
    let answered: usize = ends.iter().map(|(_, answered, _)| answered).sum();
    let shutting = ends.iter().filter(|(_, _, error)| *error == CallError::ShuttingDown).count();
    println!("{answered} calls were answered; of {} that were not, {shutting} were refused", ends.len());
    let done = done.lock().unwrap();
    for (id, _, error) in &ends {
        assert!(matches!(error, CallError::ShuttingDown | CallError::NotConnected(..)), "{error:?}");
        assert!(!done.contains_key(id), "{error:?}, but it was done");
    }
    assert_eq!(done.len(), answered);
}
