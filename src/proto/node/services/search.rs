//! Random commands and faults, against a model that is much simpler: who was told that it has a name, and was not told since
//! that it has it no more, has it.
//!
//! `SEED=n` runs one history; `SEEDS=n cargo test --release --lib random_histories -- --nocapture` as many as that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::sim::{Told, World, text};
use super::*;

/// What the handles were told.
#[derive(Default)]
struct Model {
    /// Who has which name, as far as it was told.
    holders: BTreeMap<Text, BTreeSet<Pid>>,
    /// Requests under way, and what they are about.
    open: Vec<Open>,
    joined: BTreeMap<(Text, Pid), u32>,
    watches: BTreeMap<WatchId, (usize, NodeId, Target)>,
    /// How much of what each process was told has been taken.
    seen: BTreeMap<NodeId, usize>,
    commands: BTreeMap<&'static str, u32>,
}

struct Open {
    node: usize,
    id: RequestId,
    name: Text,
    kind: Kind,
}

enum Kind {
    Claim(Pid),
    Unregister,
    Update,
}

const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];
const GROUPS: [&str; 3] = ["red", "green", "blue"];

struct Run {
    world: World,
    model: Model,
    mailboxes: Vec<(usize, NodeId, u64)>,
    is_cut: bool,
    frozen: BTreeSet<usize>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let world = World::cluster(seed, rng.usize(3..=7));
        Self { world, model: Model::default(), mailboxes: Vec::new(), is_cut: false, frozen: BTreeSet::new() }
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.world.rng.usize(0..from.len())].clone()) }
    }

    fn running(&self) -> Vec<usize> {
        let places = self.world.nodes.iter().enumerate();
        places.filter(|(place, node)| node.is_some() && !self.frozen.contains(place)).map(|(place, _)| place).collect()
    }

    fn mailbox_on(&mut self, node: usize) -> u64 {
        let life = self.world.process(node).id.clone();
        let here: Vec<u64> =
            self.mailboxes.iter().filter(|(_, of, _)| *of == life).map(|(_, _, serial)| *serial).collect();
        if here.len() < 3 || self.world.rng.u8(..) < 40 {
            let serial = self.world.open(node);
            self.mailboxes.push((node, life, serial));
            return serial;
        }
        self.pick(&here).expect("there are three")
    }

    fn open(&mut self, node: usize, id: RequestId, name: &str, kind: Kind) {
        self.model.open.push(Open { node, id, name: text(name), kind });
    }

    fn command(&mut self) {
        let dice = self.world.rng.u32(0..1_000);
        let Some(node) = self.pick(&self.running()) else { return };
        let name = self.pick(&NAMES).expect("there are some");
        let what = match dice {
            0..250 => {
                let serial = self.mailbox_on(node);
                let id = self.world.register(node, name, serial);
                let pid = self.world.pid(node, serial);
                self.open(node, id, name, Kind::Claim(pid));
                "register"
            }
            250..350 => {
                let Some(old) = self.world.owner(node, name) else { return };
                let serial = self.mailbox_on(node);
                let new = self.world.pid(node, serial);
                if new == old {
                    return;
                }
                let id = self.world.register_as(node, name, serial, Some(old));
                self.open(node, id, name, Kind::Claim(new));
                "replace"
            }
            350..450 => {
                let Some(old) = self.world.owner(node, name) else { return };
                let id = self.world.unregister(node, name, old);
                self.open(node, id, name, Kind::Unregister);
                "unregister"
            }
            450..520 => {
                let Some(named) = self.world.process(node).names.get(name).cloned() else { return };
                let metadata = Bytes::copy_from_slice(&self.world.rng.u64(..).to_be_bytes());
                let (scope, pid, version) = (text(""), named.pid, named.version);
                let request = Request::Update { scope, name: text(name), pid, version, metadata };
                let id = self.world.request(node, request, 10);
                self.open(node, id, name, Kind::Update);
                "update"
            }
            520..620 => {
                let serial = self.mailbox_on(node);
                let group = self.pick(&GROUPS).expect("there are some");
                let pid = self.world.pid(node, serial);
                let count = self.world.rng.u32(0..3);
                self.world.join(node, group, serial, count);
                if count > 0 {
                    self.model.joined.insert((text(group), pid), count);
                } else {
                    self.model.joined.remove(&(text(group), pid));
                }
                "join"
            }
            620..720 => {
                let Some((owner, life, serial)) = self.pick(&self.mailboxes.clone()) else { return };
                let is_up = self.world.nodes[owner].as_ref().is_some_and(|process| process.id == life);
                if !is_up || self.frozen.contains(&owner) {
                    return;
                }
                self.mailboxes.retain(|(_, of, other)| (of, *other) != (&life, serial));
                let pid = Pid::new(life, serial);
                let groups: Vec<Text> =
                    self.model.joined.keys().filter(|(_, of)| *of == pid).map(|(group, _)| group.clone()).collect();
                for group in groups {
                    self.world.join(owner, &group, serial, 0);
                    self.model.joined.remove(&(group, pid.clone()));
                }
                self.world.close(owner, serial);
                self.forget(|of| *of == pid);
                "close"
            }
            720..820 => {
                let Some((_, life, serial)) = self.pick(&self.mailboxes.clone()) else { return };
                let target = Target::Mailbox(Pid::new(life, serial));
                let watch = self.world.watch(node, target.clone());
                let watcher = self.world.process(node).id.clone();
                self.model.watches.insert(watch, (node, watcher, target));
                "watch"
            }
            820..850 if self.is_spare(node) => {
                self.world.crash(node);
                self.ended(node);
                "crash"
            }
            850..870 if self.is_spare(node) => {
                self.world.stop(node);
                self.ended(node);
                "stop"
            }
            870..920 => {
                let gone: Vec<usize> = (0..self.world.nodes.len()).filter(|n| self.world.nodes[*n].is_none()).collect();
                let Some(node) = self.pick(&gone) else { return };
                let Some(contact) = self.pick(&self.running()) else { return };
                let contact = self.world.name(contact);
                self.world.begin(node, Plan::Contacts(vec![contact]));
                "restart"
            }
            920..945 if !self.is_cut => {
                let count = self.world.nodes.len();
                let side: Vec<usize> = (0..count).filter(|_| self.world.rng.bool()).collect();
                self.world.cut(&side);
                self.is_cut = true;
                "cut"
            }
            945..960 if !self.is_cut => {
                let Some(other) = self.pick(&self.running()) else { return };
                if other == node {
                    return;
                }
                self.world.cut_pair(node, other);
                self.is_cut = true;
                "cut a pair"
            }
            960..975 => {
                self.heal();
                "heal"
            }
            975..1_000 if self.running().len() > 2 && self.frozen.is_empty() => {
                self.world.freeze(node);
                self.frozen.insert(node);
                "freeze"
            }
            _ => return,
        };
        *self.model.commands.entry(what).or_default() += 1;
    }

    /// Whether enough are left without it, and one that is ready: those who join wait for such a one.
    fn is_spare(&self, node: usize) -> bool {
        let running = self.running();
        running.len() > 2 && running.iter().any(|other| *other != node && self.world.process(*other).is_ready)
    }

    fn heal(&mut self) {
        self.is_cut = false;
        self.world.heal();
        for node in std::mem::take(&mut self.frozen) {
            self.world.thaw(node);
        }
    }

    /// The process on that place is over.
    fn ended(&mut self, node: usize) {
        let runs: BTreeSet<NodeId> = self.world.all().map(|process| process.id.clone()).collect();
        self.mailboxes.retain(|(_, life, _)| runs.contains(life));
        self.model.joined.retain(|(_, pid), _| runs.contains(pid.node()));
        self.forget(|pid| !runs.contains(pid.node()));
        self.model.open.retain(|open| open.node != node);
        self.model.watches.retain(|_, (_, watcher, _)| runs.contains(watcher));
    }

    fn forget(&mut self, is_gone: impl Fn(&Pid) -> bool) {
        for holders in self.model.holders.values_mut() {
            holders.retain(|pid| !is_gone(pid));
        }
    }

    /// Takes what handles were told, in its order.
    fn listen(&mut self) {
        let mut news = Vec::new();
        for process in self.world.all() {
            let seen = self.model.seen.entry(process.id.clone()).or_default();
            news.extend(process.told[*seen..].iter().map(|(at, told)| (*at, process.id.clone(), told.clone())));
            *seen = process.told.len();
        }
        news.sort_by_key(|(at, _, _)| *at);
        for (_, life, told) in news {
            match told {
                Told::Lost(name, serial) | Told::Over(name, serial) => {
                    if let Some(holders) = self.model.holders.get_mut(&name) {
                        holders.remove(&Pid::new(life, serial));
                    }
                }
                Told::Done(id) => self.answered(&life, id),
            }
        }
    }

    fn answered(&mut self, life: &NodeId, id: RequestId) {
        let Some(place) = self.model.open.iter().position(|open| open.id == id) else { return };
        let Open { node, name, kind, .. } = self.model.open.swap_remove(place);
        let is_open =
            |pid: &Pid| self.mailboxes.iter().any(|(_, on, serial)| (on, *serial) == (pid.node(), pid.serial()));
        let process = self.world.nodes[node].as_ref().filter(|process| process.id == *life);
        let outcome = process.and_then(|process| process.done.get(&id)).expect("it was told");
        let holders = self.model.holders.entry(name.clone()).or_default();
        match (kind, outcome) {
            (Kind::Claim(pid), Ok(Done::Bound { .. })) => {
                if is_open(&pid) {
                    holders.insert(pid);
                }
            }
            // Whose it was is told on its own node.
            (Kind::Unregister, Ok(Done::Unregistered)) | (Kind::Update, Ok(Done::Updated { .. })) | (_, Err(_)) => {}
            (_, Ok(other)) => panic!("seed {}: {other:?} answers something else", self.world.seed),
        }
    }

    fn rest(&mut self) {
        self.heal();
        let end = self.world.now + Duration::from_secs(45);
        while self.world.now < end {
            self.world.run_for(Duration::from_millis(500));
            self.listen();
        }
        self.check();
    }

    /// What holds whenever nothing has happened for a while.
    fn check(&self) {
        let seed = self.world.seed;
        let running: Vec<_> = self.world.all().collect();
        assert!(self.model.open.is_empty(), "seed {seed}: every request is answered");
        let expected: BTreeMap<_, _> = self.model.joined.clone();
        for process in &running {
            let id = &process.id;
            assert!(process.is_ready, "seed {seed}: {id} is ready");
            assert_eq!(process.broken, [], "seed {seed}: {id} finds nobody who breaks a rule");
            assert_eq!(process.names, running[0].names, "seed {seed}: {id} agrees with {}", running[0].id);
            let others = process.members.clone();
            assert_eq!(others, expected, "seed {seed}: the members that {id} sees");
            process.services.assert_at_rest(seed);
        }
        for name in NAMES {
            let shown = running[0].names.get(name).map(|named| named.pid.clone());
            if let Some(pid) = &shown {
                let owner = running.iter().find(|process| process.id == *pid.node());
                let lives = owner.is_some_and(|process| process.mailboxes.contains(&pid.serial()));
                assert!(lives, "seed {seed}: {name} points at {pid}, which is gone");
            }
            let told: BTreeSet<Pid> = self.model.holders.get(name).cloned().unwrap_or_default();
            assert_eq!(
                told,
                shown.into_iter().collect(),
                "seed {seed}: who was told that it has {name}, and who has it"
            );
        }
        for (watch, (node, _, target)) in &self.model.watches {
            let process = self.world.process(*node);
            let Target::Mailbox(pid) = target else { continue };
            if process.notices.iter().any(|(told, _)| told == watch) {
                continue;
            }
            let lives =
                running.iter().any(|process| process.id == *pid.node() && process.mailboxes.contains(&pid.serial()));
            assert!(lives, "seed {seed}: nobody told {} that {pid} is gone", process.id);
        }
    }
}

fn history(seed: u64, commands: u32) -> BTreeMap<&'static str, u32> {
    let mut run = Run::new(seed);
    for round in 0..3 {
        for _ in 0..commands {
            run.command();
            let pause = Duration::from_micros(run.world.rng.u64(0..if round == 0 { 5_000 } else { 400_000 }));
            run.world.run_for(pause);
            run.listen();
        }
        run.rest();
    }
    run.model.commands
}

#[test]
fn random_histories() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("SEED") {
        history(seed, 60);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(60);
    let mut commands: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..seeds {
        for (what, count) in history(seed, 60) {
            *commands.entry(what).or_default() += count;
        }
        if seed % 100 == 99 {
            println!("{} of {seeds}: {commands:?}", seed + 1);
        }
    }
    // Each kind of command and fault has happened.
    assert_eq!(commands.len(), 14, "{commands:?}");
}
