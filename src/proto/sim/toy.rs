//! A small failure detector that shows everybody its whole table, and copies of it with a fault each: what the simulator is
//! tested with.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::machine::{FIRST_LIFE, Id, Input, Machine, Output, Rank, Seen, State, Way, What};

pub(super) const SUSPICION: Duration = Duration::from_secs(3);
const TICK: Duration = Duration::from_millis(500);

/// What is wrong with a toy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Bug {
    #[default]
    None,
    /// Tells a subscriber everything twice.
    TellsTwice,
    /// Forgets how often a member has objected.
    DropsRefutation,
    /// Lets the dead live again at once.
    Resurrects,
    /// Never ends a suspicion.
    SuspectsForEver,
    /// Ends a suspicion without a word.
    KeepsQuiet,
    /// Believes that it is dead itself.
    BelievesItsDeath,
    ScoreRunsAway,
    /// Does not listen to those that it holds for dead.
    NeverForgives,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    life: u32,
    state: State,
    refutation: u32,
    since: Instant,
}

#[derive(Debug)]
pub(super) struct Toy {
    bug: Bug,
    id: Id,
    rng: fastrand::Rng,
    table: BTreeMap<u32, Row>,
    linked: BTreeMap<u32, Id>,
    probe: Option<u32>,
    next_tick: Instant,
    outputs: VecDeque<Output>,
}

impl Toy {
    fn row(&self, node: u32) -> Option<Seen> {
        let row = self.table.get(&node)?;
        Some(Seen { id: Id { node, life: row.life }, state: row.state, refutation: row.refutation })
    }

    fn set(&mut self, what: What, mut seen: Seen, now: Instant) {
        if self.bug == Bug::DropsRefutation && what == What::Suspected {
            seen.refutation = 0;
        }
        let row = Row { life: seen.id.life, state: seen.state, refutation: seen.refutation, since: now };
        self.table.insert(seen.id.node, row);
        if self.bug == Bug::KeepsQuiet && what == What::Cleared {
            return;
        }
        self.outputs.push_back(Output::Event { what, seen });
        if self.bug == Bug::TellsTwice && what == What::Suspected {
            self.outputs.push_back(Output::Event { what, seen });
        }
        if self.bug == Bug::Resurrects && what == What::Died {
            self.set(What::Returned, Seen { state: State::Alive, ..seen }, now);
        }
    }

    fn merge(&mut self, heard: Seen, now: Instant) {
        let Some(held) = self.row(heard.id.node) else {
            if heard.state.is_live() {
                self.set(What::Joined, Seen { state: State::Alive, ..heard }, now);
            }
            return;
        };
        if heard.id.node == self.id.node {
            let accuses = heard.id.life == self.id.life && heard.state != State::Alive;
            if accuses && heard.refutation >= held.refutation && held.state != State::Left {
                if self.bug == Bug::BelievesItsDeath && heard.state == State::Dead {
                    return self.set(What::Died, heard, now);
                }
                self.set(What::Updated, Seen { refutation: heard.refutation + 1, ..held }, now);
            }
            return;
        }
        if heard.id.life > held.id.life && heard.state.is_live() {
            let old = held.id.life;
            let what = if held.state.is_live() { What::Replaced { old } } else { What::Joined };
            return self.set(what, Seen { state: State::Alive, ..heard }, now);
        }
        if heard.id.life != held.id.life || self.bug == Bug::NeverForgives && held.state == State::Dead {
            return;
        }
        let is_newer = heard.refutation > held.refutation;
        let is_as_new = heard.refutation >= held.refutation;
        match (held.state, heard.state) {
            (State::Left, _) => {}
            (_, State::Left) if is_as_new => self.set(What::Left, heard, now),
            (State::Alive, State::Alive) if is_newer => self.set(What::Updated, heard, now),
            (State::Suspect, State::Alive) if is_newer => self.set(What::Cleared, heard, now),
            (State::Dead, State::Alive) if is_newer => self.set(What::Returned, heard, now),
            (State::Dead, State::Suspect) if is_newer => {
                self.set(What::Returned, Seen { state: State::Alive, ..heard }, now);
                self.set(What::Suspected, heard, now);
            }
            (State::Alive, State::Suspect) if is_as_new => self.set(What::Suspected, heard, now),
            (State::Suspect, State::Suspect) if is_newer => self.set(What::Suspected, heard, now),
            (State::Alive | State::Suspect, State::Dead) if is_as_new => self.set(What::Died, heard, now),
            _ => {}
        }
    }

    /// The whole table: this node's own row first.
    fn packet(&self, is_ping: bool) -> Bytes {
        let mut packet = vec![u8::from(is_ping)];
        for node in self.table.keys() {
            let Some(Seen { id, state, refutation }) = self.row(*node) else { continue };
            packet.extend(id.node.to_be_bytes());
            packet.extend(id.life.to_be_bytes());
            packet.push(state as u8);
            packet.extend(refutation.to_be_bytes());
        }
        packet.into()
    }

    fn send(&mut self, to: u32, way: Way, is_ping: bool) {
        let packet = self.packet(is_ping);
        self.outputs.push_back(Output::Send { to, way, rank: Rank::Probe, packet });
    }

    fn tick(&mut self, now: Instant) {
        if let Some(seen) = self.probe.take().and_then(|silent| self.row(silent))
            && seen.state == State::Alive
        {
            self.set(What::Suspected, Seen { state: State::Suspect, ..seen }, now);
        }
        let is_over = |row: &Row| row.state == State::Suspect && now >= row.since + SUSPICION;
        let over = self.table.iter().filter(|(_, row)| is_over(row)).filter_map(|(node, _)| self.row(*node));
        let over: Vec<Seen> = over.filter(|_| self.bug != Bug::SuspectsForEver).collect();
        over.into_iter().for_each(|seen| self.set(What::Died, Seen { state: State::Dead, ..seen }, now));
        let others: Vec<u32> = self.table.keys().copied().filter(|node| *node != self.id.node).collect();
        let Some(target) = self.rng.choice(others) else { return };
        if self.table[&target].state == State::Left {
            return;
        }
        self.probe = Some(target);
        if self.linked.contains_key(&target) {
            self.send(target, Way::Datagram, true);
        } else {
            self.outputs.push_back(Output::Dial { node: target });
        }
    }
}

fn read(row: &[u8]) -> Option<Seen> {
    let number = |at: usize| Some(u32::from_be_bytes(row.get(at..at + 4)?.try_into().ok()?));
    let states = [State::Alive, State::Suspect, State::Dead, State::Left];
    let state = *states.get(usize::from(*row.get(8)?))?;
    Some(Seen { id: Id { node: number(0)?, life: number(4)? }, state, refutation: number(9)? })
}

impl Machine for Toy {
    type Setup = Bug;

    fn new(bug: &Bug, id: Id, seed: u64, now: Instant) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let next_tick = now + TICK.mul_f64(rng.f64());
        let (table, linked, outputs) = (BTreeMap::new(), BTreeMap::new(), VecDeque::new());
        let mut toy = Self { bug: *bug, id, rng, table, linked, probe: None, next_tick, outputs };
        toy.set(What::Joined, Seen { id, state: State::Alive, refutation: 0 }, now);
        toy
    }

    fn template(bug: &Bug, nodes: u32, now: Instant) -> Self {
        let mut toy = Self::new(bug, Id { node: 0, life: FIRST_LIFE }, 0, now);
        let row = Row { life: FIRST_LIFE, state: State::Alive, refutation: 0, since: now };
        toy.table = (0..nodes).map(|node| (node, row)).collect();
        toy
    }

    fn fork(&self, id: Id, seed: u64, now: Instant) -> Self {
        let mut toy = Self::new(&self.bug, id, seed, now);
        toy.outputs.clear();
        toy.table.clone_from(&self.table);
        toy
    }

    fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Packet { from, packet, .. } => {
                if self.probe == Some(from.node) {
                    self.probe = None;
                }
                let Some((kind, rows)) = packet.split_first() else { return };
                rows.chunks(13).filter_map(read).for_each(|seen| self.merge(seen, now));
                if *kind == 1 {
                    self.send(from.node, Way::Datagram, false);
                }
            }
            Input::Linked { peer, .. } => {
                self.linked.insert(peer.node, peer);
                if self.row(peer.node).is_none_or(|held| held.id.life < peer.life) {
                    self.merge(Seen { id: peer, state: State::Alive, refutation: 0 }, now);
                }
                self.send(peer.node, Way::Stream, true);
            }
            Input::Unlinked { peer, .. } => {
                if self.linked.get(&peer.node) == Some(&peer) {
                    self.linked.remove(&peer.node);
                }
            }
            Input::Leave => {
                if let Some(own) = self.row(self.id.node) {
                    self.set(What::Left, Seen { state: State::Left, ..own }, now);
                }
                let peers: Vec<u32> = self.linked.keys().copied().collect();
                peers.into_iter().for_each(|peer| self.send(peer, Way::Stream, false));
                self.outputs.push_back(Output::GoodbyeSaid);
            }
            Input::Renewed { life } => {
                let old = self.id.life;
                self.id.life = life;
                self.set(What::Replaced { old }, Seen { id: self.id, state: State::Alive, refutation: 0 }, now);
            }
            Input::DialFailed { .. } | Input::Heard { .. } | Input::SetMetadata { .. } | Input::Publish { .. } => {}
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            self.tick(now);
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        Some(self.next_tick)
    }

    fn judged(&self, _: Instant) -> Vec<Id> {
        self.probe.and_then(|node| self.row(node)).map(|seen| seen.id).into_iter().collect()
    }

    fn each_member(&self, see: &mut dyn FnMut(Seen)) {
        self.table.keys().filter_map(|node| self.row(*node)).for_each(see);
    }

    fn live(&self) -> usize {
        self.table.values().filter(|row| row.state.is_live()).count()
    }

    fn score(&self) -> u32 {
        if self.bug == Bug::ScoreRunsAway && self.table.values().any(|row| row.state == State::Suspect) { 9 } else { 0 }
    }

    fn life_of(&self, node: u32) -> Option<u32> {
        self.table.get(&node).map(|row| row.life)
    }
}
