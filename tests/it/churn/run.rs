//! Whole nodes that are started, stopped, killed, cut off and frozen, and all that is asked of them meanwhile.

mod asking;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use distribute::sim::Conditions;
use distribute::{Address, Config, Group, Mailbox, Method, Name, Node, NodeId, NodeName, Pid, StartError};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use self::asking::{Answer, speak};
use super::books::{Books, Event, Letter};
use crate::common::{World, ip, lossy, millis, secs};

const NAMES: [&str; 8] = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"];
const GROUPS: [&str; 3] = ["red", "green", "blue"];
const DOUBLE: Method<u64, u64> = Method::new("churn.double");

/// Within so long after the last fault, all is well everywhere. A member that was declared dead for the third time objects a
/// minute late, and each time after it twice as late.
const SETTLED: Duration = Duration::from_secs(600);

/// Whatever was asked has ended within this.
const ANSWERED: Duration = Duration::from_secs(120);

fn name(name: &str) -> Name<Event> {
    Name::parse(name).unwrap()
}

fn group(group: &str) -> Group<Event> {
    Group::parse(group).unwrap()
}

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// How many panics there were on this thread, on which all tasks of a test run.
fn panics() -> usize {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            former(info);
        }));
    });
    PANICS.with(Cell::get)
}

/// A node, from its start to its end.
pub(super) struct Life {
    pub(super) node: Node,
    pub(super) id: NodeId,
    desks: Vec<Mailbox<Event>>,
    orders: mpsc::UnboundedSender<(Order, Unsaid)>,
    speaker: JoinHandle<()>,
}

/// What a node is to say.
enum Order {
    Broadcast(&'static str, Duration),
    Send(Address<Event>),
}

/// Counts an order until it is carried out, or given up.
struct Unsaid(Arc<AtomicUsize>);

impl Unsaid {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Unsaid {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) struct Run {
    pub(super) seed: u64,
    pub(super) rng: fastrand::Rng,
    world: World,
    pub(super) lives: BTreeMap<u8, Life>,
    /// How a node is set up.
    config: Config,
    books: Books,
    /// Those who say good-bye, and have done so when their task has ended.
    leaving: Vec<(Life, JoinHandle<()>)>,
    /// Hosts whose node was killed: they are cut off, so that its last words reach nobody.
    killed: BTreeSet<u8>,
    frozen: BTreeSet<u8>,
    is_cut: bool,
    /// Nothing was cut, lost or frozen since the last rest.
    is_calm: bool,
    requests: JoinSet<Answer>,
    said: Arc<Mutex<Vec<Letter>>>,
    /// Orders that are not carried out yet.
    unsaid: Arc<AtomicUsize>,
    /// Mailboxes of late, open and closed.
    known: Vec<Pid>,
    next: u64,
    pub(super) counts: BTreeMap<&'static str, u64>,
}

impl Run {
    pub(super) fn new(seed: u64) -> Self {
        println!("SEED={seed}");
        panics();
        Self {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            world: World::new(seed),
            lives: BTreeMap::new(),
            config: Config::local(),
            books: Books::default(),
            leaving: Vec::new(),
            killed: BTreeSet::new(),
            frozen: BTreeSet::new(),
            is_cut: false,
            is_calm: true,
            requests: JoinSet::new(),
            said: Arc::default(),
            unsaid: Arc::default(),
            known: Vec::new(),
            next: 0,
            counts: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.rng.usize(..from.len())].clone()) }
    }

    pub(super) fn hosts(&self) -> Vec<u8> {
        self.lives.keys().copied().collect()
    }

    pub(super) fn some_host(&mut self) -> u8 {
        let hosts = self.hosts();
        self.pick(&hosts).expect("somebody runs")
    }

    /// A number that no node has, the lowest.
    pub(super) fn free_host(&self) -> u8 {
        let leaving = |host: u8| self.leaving.iter().any(|(life, _)| *life.id.name() == name_of(host));
        (1..).find(|host| !self.lives.contains_key(host) && !leaving(*host)).expect("there are more numbers than nodes")
    }

    /// Starts a node, which joins by some of those that run.
    pub(super) async fn start(&mut self, host: u8) {
        assert!(!self.lives.contains_key(&host), "SEED={}", self.seed);
        let mut contacts = self.hosts();
        self.rng.shuffle(&mut contacts);
        contacts.truncate(3);
        let deadline = Instant::now() + secs(60);
        let node = loop {
            let builder = self.world.builder("n", host).config(self.config.clone());
            let builder = contacts.iter().fold(builder, |builder, host| builder.join(&name_of(*host)));
            match builder.start().await {
                Ok(node) => break node,
                // The port is in use until the life before has ended, unheard.
                Err(StartError::Bind { .. }) if Instant::now() < deadline => self.pause(millis(500)).await,
                Err(error) => panic!("SEED={}: {error:?}", self.seed),
            }
        };
        if self.killed.remove(&host) {
            self.isolate(host, false);
        }
        node.rpc()
            .serve(DOUBLE, |_, n| async move {
                sleep(millis(n % 40)).await;
                n.wrapping_mul(2)
            })
            .unwrap();
        let (orders, given) = mpsc::unbounded_channel();
        let id = node.id();
        let speaker = tokio::spawn(speak(id.clone(), node.groups(), given, self.said.clone()));
        self.lives.insert(host, Life { id, desks: Vec::new(), orders, speaker, node });
        self.count("start");
    }

    /// Whoever runs on that host says good-bye.
    pub(super) fn stop(&mut self, host: u8) {
        let life = self.lives.remove(&host).expect("it runs");
        let node = life.node.clone();
        self.books.close(|pid| *pid.node() == life.id);
        self.leaving.push((life, tokio::spawn(async move { node.shutdown().await })));
        self.count("stop");
    }

    /// Whoever runs on that host is gone, without a word.
    pub(super) fn kill(&mut self, host: u8) {
        let life = self.lives.remove(&host).expect("it runs");
        self.killed.insert(host);
        self.isolate(host, true);
        self.bury(life);
        self.count("kill");
    }

    fn bury(&mut self, life: Life) {
        life.speaker.abort();
        self.books.close(|pid| *pid.node() == life.id);
    }

    /// Cuts a host off from all others, or lets it reach all that were not killed.
    fn isolate(&self, host: u8, is_cut: bool) {
        for other in (1..=MOST).filter(|other| *other != host) {
            if is_cut {
                self.world.fabric.cut(ip(host), ip(other));
            } else if !self.killed.contains(&other) {
                self.world.fabric.heal(ip(host), ip(other));
            }
        }
    }

    pub(super) fn cut(&mut self, one: &[u8], other: &[u8]) {
        let ips = |hosts: &[u8]| hosts.iter().map(|host| ip(*host)).collect::<Vec<_>>();
        self.world.fabric.partition(&ips(one), &ips(other));
        (self.is_cut, self.is_calm) = (true, false);
        self.count("cut");
    }

    /// One no longer hears the other.
    fn deafen(&mut self, from: u8, to: u8) {
        self.world.fabric.cut_one_way(ip(from), ip(to));
        (self.is_cut, self.is_calm) = (true, false);
        self.count("cut one way");
    }

    /// Packets are lost, overtake each other and come twice.
    fn lose(&mut self) {
        self.world.fabric.conditions(lossy());
        (self.is_cut, self.is_calm) = (true, false);
        self.count("lose");
    }

    pub(super) fn freeze(&mut self, host: u8) {
        self.world.fabric.freeze(ip(host));
        self.frozen.insert(host);
        self.is_calm = false;
        self.count("freeze");
    }

    /// Ends all cuts, losses and freezes.
    pub(super) fn heal(&mut self) {
        self.world.fabric.conditions(Conditions::default());
        self.world.fabric.heal_all();
        for host in &self.killed {
            self.isolate(*host, true);
        }
        for host in std::mem::take(&mut self.frozen) {
            self.world.fabric.thaw(ip(host));
        }
        self.is_cut = false;
        self.count("heal");
    }

    /// Lets so much time pass, in which mailboxes are read.
    pub(super) async fn pause(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            sleep(millis(20).min(end - Instant::now())).await;
            self.harvest();
        }
    }

    /// Asks for so long, each node ten times a second.
    pub(super) async fn busy(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.ask();
            let pause = 200_000 / self.lives.len() as u64;
            let pause = Duration::from_micros(self.rng.u64(..pause));
            sleep(pause).await;
            self.harvest();
        }
    }

    /// Whether enough are left without it, and one that is ready: those who join wait for such a one.
    fn is_spare(&self, host: u8) -> bool {
        let is_ready = |(other, life): (&u8, &Life)| *other != host && life.node.is_ready();
        self.lives.len() > 2 && self.lives.iter().any(is_ready)
    }

    /// One request, or one thing that happens to nodes or to the network.
    pub(super) async fn happen(&mut self, most: usize) {
        let host = self.some_host();
        let hosts = self.hosts();
        match self.rng.u16(..1_000) {
            0..30 if hosts.len() < most => {
                let host = self.free_host();
                self.start(host).await;
            }
            30..42 if self.is_spare(host) => self.stop(host),
            42..60 if self.is_spare(host) => self.kill(host),
            60..80 if !self.is_cut => {
                let (one, other): (Vec<u8>, Vec<u8>) = hosts.iter().partition(|_| self.rng.bool());
                self.cut(&one, &other);
            }
            80..95 if !self.is_cut && hosts.len() > 1 => {
                let other = self.pick(&hosts.into_iter().filter(|other| *other != host).collect::<Vec<_>>());
                let other = other.expect("there are two");
                if self.rng.bool() { self.cut(&[host], &[other]) } else { self.deafen(host, other) }
            }
            95..105 if !self.is_cut => self.lose(),
            105..120 => self.heal(),
            120..135 if self.frozen.is_empty() => self.freeze(host),
            135..160 => {
                let time = self.rng.u64(2..30);
                self.pause(secs(time)).await;
            }
            _ => {
                for _ in 0..self.rng.u8(1..5) {
                    self.ask();
                }
            }
        }
        let time = self.rng.u64(..150);
        self.pause(millis(time)).await;
    }

    /// A mailbox on that host, which is opened if there are few.
    fn desk(&mut self, host: u8) -> usize {
        let desks = self.lives[&host].desks.len();
        if desks < 3 || desks < 6 && self.rng.u8(..8) == 0 {
            let life = self.lives.get_mut(&host).expect("it runs");
            let desk = life.node.mailbox();
            self.books.open.insert(desk.pid());
            self.known.push(desk.pid());
            if self.known.len() > 100 {
                self.known.remove(0);
            }
            life.desks.push(desk);
            return desks;
        }
        self.rng.usize(..desks)
    }

    fn close(&mut self, mut desk: Mailbox<Event>) {
        let pid = desk.pid();
        while let Ok(event) = desk.try_recv() {
            self.books.hear(&pid, event);
        }
        self.books.close(|gone| *gone == pid);
    }

    /// Takes all that has come, to mailboxes and in answer to requests.
    pub(super) fn harvest(&mut self) {
        let leaving = self.leaving.iter_mut().map(|(life, _)| life);
        for life in self.lives.values_mut().chain(leaving) {
            for desk in &mut life.desks {
                let pid = desk.pid();
                while let Ok(event) = desk.try_recv() {
                    self.books.hear(&pid, event);
                }
            }
        }
        self.books.poll();
        while let Some(answer) = self.requests.try_join_next() {
            self.answered(answer.expect("no request panics"));
        }
        let gone: Vec<_> = self.leaving.extract_if(.., |(_, goodbye)| goodbye.is_finished()).collect();
        for (life, _) in gone {
            self.bury(life);
        }
        self.books.letters.append(&mut self.said.lock().unwrap());
        assert_eq!(panics(), 0, "SEED={}", self.seed);
    }

    fn runs(&self, id: &NodeId) -> bool {
        self.lives.values().any(|life| life.id == *id)
    }

    /// Heals, asks no more, and waits until all is as it must be.
    pub(super) async fn rest(&mut self) {
        if self.is_cut || !self.frozen.is_empty() {
            self.heal();
        }
        let deadline = Instant::now() + ANSWERED;
        while !self.requests.is_empty() || self.unsaid.load(Ordering::Relaxed) > 0 || !self.leaving.is_empty() {
            assert!(Instant::now() < deadline, "SEED={}: requests are not answered", self.seed);
            self.pause(millis(100)).await;
        }
        assert_eq!(self.books.taking.len(), 0, "SEED={}", self.seed);
        let (began, mut is_long) = (Instant::now(), false);
        while let Err(why) = self.check() {
            let waited = began.elapsed();
            assert!(waited < SETTLED, "SEED={}: {why}", self.seed);
            if !is_long && waited > SETTLED / 5 {
                println!("SEED={}: after {waited:?} still: {why}", self.seed);
                is_long = true;
            }
            self.pause(millis(250)).await;
        }
        // And so it stays.
        self.pause(secs(3)).await;
        if let Err(why) = self.check() {
            panic!("SEED={}: it was well, but now: {why}", self.seed);
        }
        let live = self.live();
        self.books.turn_page(&live);
        self.is_calm = true;
    }

    fn live(&self) -> BTreeSet<NodeId> {
        self.lives.values().map(|life| life.id.clone()).collect()
    }

    fn check(&self) -> Result<(), String> {
        let live = self.live();
        let names = self.lives.values().next().map(|life| life.node.registry().entries()).unwrap_or_default();
        for Life { node, id, .. } in self.lives.values() {
            let same = |what: &str, is_same: bool| if is_same { Ok(()) } else { Err(format!("{id}: {what}")) };
            same("is another life", node.id() == *id)?;
            let alive: BTreeSet<_> = node.membership().alive().into_iter().collect();
            same(&format!("sees {alive:?}, not {live:?}"), alive == live)?;
            same("is not ready", node.is_ready())?;
            let peers = node.cluster().peers();
            same(&format!("has sessions with {peers:?}"), peers.iter().all(|peer| live.contains(peer)))?;
            let stats = node.rpc().stats();
            let open = (stats.waiting, stats.asking, stats.handlers, stats.handler_bytes);
            same(&format!("waits for calls: {open:?}"), open == (0, 0, 0, 0))?;
            let entries = node.registry().entries();
            same(&format!("knows {entries:?}, not {names:?}"), entries == names)?;
            same("counts its names wrongly", node.registry().count() == names.len())?;
            for among in GROUPS {
                let members = node.groups().memberships(group(among));
                let members: BTreeMap<_, _> = members.into_iter().map(|member| (member.pid, member.count)).collect();
                let joined = self.books.joined.iter().filter(|((of, _), _)| *of == among);
                let joined: BTreeMap<_, _> = joined.map(|((_, pid), times)| (pid.clone(), *times)).collect();
                same(&format!("in {among} sees {members:?}, not {joined:?}"), members == joined)?;
            }
            let groups: BTreeSet<_> = self.books.joined.keys().map(|(of, _)| *of).collect();
            same("lists other groups", node.groups().groups().iter().map(|of| &**of).eq(groups))?;
        }
        self.books.check(&live, &names, self.is_calm)
    }

    /// All nodes stop; nothing of any of them is left.
    pub(super) async fn end(mut self, tasks: usize) {
        self.rest().await;
        for host in self.hosts() {
            self.stop(host);
        }
        let deadline = Instant::now() + ANSWERED;
        let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        while !self.leaving.is_empty() || alive() > tasks {
            assert!(Instant::now() < deadline, "SEED={}: {} tasks are left of {tasks}", self.seed, alive());
            self.pause(millis(100)).await;
        }
        println!("SEED={}: {:?}", self.seed, self.counts);
    }
}

/// Hosts have numbers up to this.
const MOST: u8 = 40;

fn name_of(host: u8) -> NodeName {
    NodeName::parse(&format!("n@10.0.0.{host}")).unwrap()
}
