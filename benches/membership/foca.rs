//! foca as a machine of the simulator, with its own settings for a local network. It speaks plain datagrams, so it needs no
//! links and no handshakes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use distribute::Bytes;
use distribute::pieces::membership::{FIRST_LIFE, Id, Input, Machine, Output, Rank, Seen, State, Way, What};
use foca::{Config, Foca, Identity, Member, NoCustomBroadcast, Notification, PostcardCodec, Runtime, Timer};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};

/// A node, and how often it had to renew itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Name {
    node: u32,
    life: u32,
}

impl Identity for Name {
    type Addr = u32;

    fn renew(&self) -> Option<Self> {
        Some(Self { life: self.life + 1, ..*self })
    }

    fn addr(&self) -> u32 {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.life > adversary.life
    }
}

/// What foca asks its host for.
#[derive(Default)]
struct Host {
    outputs: VecDeque<Output>,
    timers: BinaryHeap<Reverse<(Instant, Timer<Name>, u64)>>,
    planned: u64,
    now: Option<Instant>,
    /// The lives that were declared down, by node.
    down: BTreeMap<u32, u32>,
}

impl Host {
    fn event(&mut self, what: What, name: Name, state: State) {
        let id = Id { node: name.node, life: name.life };
        self.outputs.push_back(Output::Event { what, seen: Seen { id, state, refutation: 0 } });
    }
}

impl Runtime<Name> for Host {
    fn notify(&mut self, notification: Notification<'_, Name>) {
        match notification {
            Notification::MemberUp(name) => {
                let what = if self.down.remove(&name.node).is_some() { What::Returned } else { What::Joined };
                self.event(what, *name, State::Alive);
            }
            Notification::MemberDown(name) => {
                self.down.insert(name.node, name.life);
                self.event(What::Died, *name, State::Dead);
            }
            Notification::Rename(before, after) if !self.down.contains_key(&before.node) => {
                self.event(What::Replaced { old: before.life }, *after, State::Alive);
            }
            Notification::Rejoin(name) => self.outputs.push_back(Output::Renewed { life: name.life }),
            _ => {}
        }
    }

    fn send_to(&mut self, to: Name, data: &[u8]) {
        let packet = Bytes::copy_from_slice(data);
        self.outputs.push_back(Output::Send { to: to.node, way: Way::Unlinked, rank: Rank::Gossip, packet });
    }

    fn submit_after(&mut self, event: Timer<Name>, after: Duration) {
        let now = self.now.expect("the host says what time it is first");
        self.planned += 1;
        self.timers.push(Reverse((now + after, event, self.planned)));
    }
}

pub(crate) struct FocaMachine {
    foca: Foca<Name, PostcardCodec, SmallRng, NoCustomBroadcast>,
    host: Host,
    name: Name,
    nodes: u32,
    config: Config,
}

impl FocaMachine {
    fn alone(config: &Config, id: Id, nodes: u32, seed: u64, now: Instant) -> Self {
        let name = Name { node: id.node, life: id.life };
        let foca = Foca::new(name, config.clone(), SmallRng::seed_from_u64(seed), PostcardCodec);
        let host = Host { now: Some(now), ..Host::default() };
        Self { foca, host, name, nodes, config: config.clone() }
    }
}

/// foca's settings for a local network of so many.
pub(crate) fn config(nodes: u32) -> Config {
    Config::new_lan(NonZeroU32::new(nodes).expect("at least one node"))
}

impl Machine for FocaMachine {
    type Setup = Config;

    fn new(config: &Config, id: Id, seed: u64, now: Instant) -> Self {
        Self::alone(config, id, 0, seed, now)
    }

    fn template(config: &Config, nodes: u32, now: Instant) -> Self {
        Self::alone(config, Id { node: 0, life: FIRST_LIFE }, nodes, 0, now)
    }

    fn fork(&self, id: Id, seed: u64, now: Instant) -> Self {
        let mut this = Self::alone(&self.config, id, self.nodes, seed, now);
        let others = (0..self.nodes).filter(|node| *node != id.node);
        let members = others.map(|node| Member::alive(Name { node, life: FIRST_LIFE }));
        this.foca.apply_many(members, false, &mut this.host).expect("members with good names");
        this.host.outputs.clear();
        this
    }

    fn handle(&mut self, input: Input, now: Instant) {
        self.host.now = Some(now);
        match input {
            // What it refuses is old or not for it; it says so by an error, and goes on.
            Input::Packet { packet, .. } => drop(self.foca.handle_data(&packet, &mut self.host)),
            Input::Leave => {
                drop(self.foca.leave_cluster(&mut self.host));
                self.host.outputs.push_back(Output::GoodbyeSaid);
            }
            _ => {}
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.host.now = Some(now);
        while self.host.timers.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            let Some(Reverse((_, timer, _))) = self.host.timers.pop() else { return };
            drop(self.foca.handle_timer(timer, &mut self.host));
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.host.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.host.timers.peek().map(|Reverse((due, ..))| *due)
    }

    fn judged(&self, _: Instant) -> Vec<Id> {
        Vec::new()
    }

    fn each_member(&self, see: &mut dyn FnMut(Seen)) {
        for member in self.foca.iter_membership_state() {
            let Name { node, life } = *member.id();
            let state = match member.state() {
                foca::State::Alive => State::Alive,
                foca::State::Suspect => State::Suspect,
                foca::State::Down => State::Dead,
            };
            see(Seen { id: Id { node, life }, state, refutation: member.incarnation().into() });
        }
    }

    fn live(&self) -> usize {
        self.foca.iter_members().count() + 1
    }

    fn score(&self) -> u32 {
        0
    }

    fn life_of(&self, node: u32) -> Option<u32> {
        (node == self.name.node).then_some(self.name.life)
    }
}
