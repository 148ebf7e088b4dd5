//! The machine itself under a model checker: every order in which things can happen, in small elections.
//!
//! The states of the model are values of [`Election`], and a step is one call of it. Messages that were sent stay for ever
//! and may arrive at any time, never, or twice; so loss, delay, reordering and duplication are all there. In models without
//! a clock every timeout may come at any time; in those with one, each voter has a clock that runs at a rate of its own, and
//! acts as late as it likes. What promises forbid is the same as a message that is lost, so the models without a clock have
//! no promises, and no questions before a candidacy either.
//!
//! `MODEL=long cargo test --release --lib election::tests::model -- --nocapture` searches further.

mod checks;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use stateright::{Model, Property};

use super::super::*;
use super::names;

/// A message, and which life of whom has sent it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Envelope {
    from: usize,
    life: u64,
    to: usize,
    frame: Frame,
}

#[derive(Clone, Debug, Hash)]
struct Voter {
    election: Election,
    life: u64,
    /// What it would find after a crash.
    disk: Option<Vote>,
    /// What it waits for.
    writing: Option<Vote>,
    /// Which of the voter sets it counts with.
    set: usize,
    /// How much its clock advances in a step of time.
    rate: u32,
    /// It found that it leads, by this token, and is about to act on it.
    checked: Option<Token>,
    has_checked: bool,
}

/// Something that worlds share for as long as it is the same in both, and its hash.
#[derive(Clone, Debug)]
struct Shared<T> {
    value: Arc<T>,
    hash: u64,
}

impl<T: Hash> Shared<T> {
    fn new(value: T) -> Self {
        let hash = hash(&value);
        Self { value: Arc::new(value), hash }
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// As the standard library's would take most of the time without optimisation.
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = u128::from(self.0 ^ value) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (mixed as u64) ^ (mixed >> 64) as u64 ^ self.0.rotate_left(23);
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = Self(self.0);
        last.write_u64(0x2545_f491_4f6c_dd1d);
        last.0
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut mixer = Mixer(0x1405_7b7e_f767_814f);
    value.hash(&mut mixer);
    mixer.finish()
}

/// All voters, what is on its way, and what has happened.
#[derive(Clone, Debug)]
struct World {
    voters: Vec<Shared<Voter>>,
    /// By their hashes.
    net: Arc<BTreeMap<u64, Envelope>>,
    time: u32,
    crashes: u32,
    /// Who was elected by which token, ever.
    elected: BTreeMap<Token, usize>,
    fence: Fence,
    /// The greatest token by which somebody has led, and somebody led before it.
    led: Option<(Token, bool)>,
    /// The last token whose effect was accepted.
    accepted: Option<Token>,
    broken: Option<&'static str>,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for voter in &self.voters {
            voter.hash.hash(state);
        }
        for key in self.net.keys() {
            key.hash(state);
        }
        (self.time, self.crashes).hash(state);
        self.elected.hash(state);
        self.fence.hash(state);
        self.led.hash(state);
        self.accepted.hash(state);
        self.broken.hash(state);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Deliver(u64),
    Timeout(usize),
    /// Its vote is on disk.
    Written(usize),
    Crash(usize),
    /// It restarts with the next voter set.
    Upgrade(usize),
    Resign(usize),
    Transfer(usize, usize),
    /// It looks whether it leads.
    Check(usize),
    /// It acts, as it led when it looked. Each does so once.
    Act(usize),
    Tick,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |voter: usize| char::from(b'a' + voter as u8);
        match *self {
            Self::Deliver(key) => write!(f, "deliver {key:016x}"),
            Self::Timeout(voter) => write!(f, "timeout of {}", of(voter)),
            Self::Written(voter) => write!(f, "{} has written", of(voter)),
            Self::Crash(voter) => write!(f, "{} restarts", of(voter)),
            Self::Upgrade(voter) => write!(f, "{} restarts with the next voters", of(voter)),
            Self::Resign(voter) => write!(f, "{} resigns", of(voter)),
            Self::Transfer(voter, to) => write!(f, "{} hands over to {}", of(voter), of(to)),
            Self::Check(voter) => write!(f, "{} checks", of(voter)),
            Self::Act(voter) => write!(f, "{} acts", of(voter)),
            Self::Tick => write!(f, "time passes"),
        }
    }
}

/// What may happen in a model, and how often.
#[derive(Clone, Debug)]
struct Rules {
    /// The names, and those of them who start with the first set; the others come with the second.
    all: &'static str,
    names: Vec<NodeName>,
    sets: Vec<Voters>,
    /// Those who stand.
    standing: &'static str,
    params: Params,
    /// Voters stand up to this term.
    terms: u64,
    crashes: u32,
    /// Those who crash, and whose disks are slow.
    crashing: &'static str,
    /// Of the voters, one list for each beginning. Without, there is no time.
    rates: Vec<Vec<u32>>,
    time: u32,
    /// Heartbeats of a leader. Without any, none is ever delivered.
    beats: u64,
    /// Writing takes a step of its own.
    is_disk_slow: bool,
    /// Refusals and answers to heartbeats are lost, always.
    is_lean: bool,
    /// Leaders resign and hand over.
    hands_over: bool,
    acts: bool,
    /// Whatever else is broken does not count.
    seeks: Option<&'static str>,
    has_fence: bool,
    /// Voters without a disk have not begun yet.
    begins: bool,
}

impl Rules {
    fn start(&self, voter: usize, set: usize, life: u64, disk: Option<Vote>, now: Time) -> Option<Election> {
        let me = NodeId::new(self.names[voter].clone(), life);
        let voters = self.sets[set].clone();
        let mut election = Election::new("e".into(), me.clone(), voters, self.params.clone(), disk, 0, now).ok()?;
        if self.standing.contains(me.name().local()) {
            election.handle(Input::Stand, now);
            // By chance at once.
            election.due = Some(now.max(election.quiet_until));
        }
        Some(election)
    }

    fn crashes(&self, voter: usize) -> bool {
        self.crashing.contains(self.names[voter].local())
    }

    fn begin(&self, rates: &[u32]) -> World {
        let voter = |at: usize| {
            let set = usize::from(self.sets[0].rank(&self.names[at]).is_none());
            let mut election = self.start(at, set, 1, None, Time::ZERO).expect("nothing is stored");
            if election.recovery.is_some() && !self.begins {
                election.recovery = None;
                election.quiet_until = Time::ZERO;
                election.lives.fill(1);
                election.due = election.due.map(|_| Time::ZERO);
            }
            let rate = rates.get(at).copied().unwrap_or(1);
            Voter { election, life: 1, disk: None, writing: None, set, rate, checked: None, has_checked: false }
        };
        let mut world = World {
            voters: (0..self.all.len()).map(|at| Shared::new(voter(at))).collect(),
            net: Arc::default(),
            time: 0,
            crashes: 0,
            elected: BTreeMap::new(),
            fence: Fence::default(),
            led: None,
            accepted: None,
            broken: None,
        };
        for at in 0..self.all.len() {
            world.act(at, self, |_, _| ());
        }
        world
    }
}

impl World {
    fn clock(&self, voter: usize) -> Time {
        Duration::from_millis(u64::from(self.time * self.voters[voter].rate))
    }

    fn leads(&self, voter: usize) -> bool {
        self.voters[voter].election.leads(self.clock(voter))
    }

    /// Has a voter do something, and takes what it puts out.
    fn act<R>(&mut self, at: usize, rules: &Rules, act: impl FnOnce(&mut Voter, Time) -> R) -> R {
        let now = self.clock(at);
        let mut voter = (*self.voters[at]).clone();
        let result = act(&mut voter, now);
        self.settle(at, voter, rules);
        result
    }

    fn settle(&mut self, at: usize, mut voter: Voter, rules: &Rules) {
        let now = self.clock(at);
        while let Some(output) = voter.election.poll_output() {
            match output {
                Output::Persist(vote) if rules.is_disk_slow && rules.crashes(at) => voter.writing = Some(*vote),
                Output::Persist(vote) => self.write(&mut voter, *vote, now, rules),
                Output::Send { to, frame } => self.post(at, &voter, &to, frame, rules),
                Output::Led { .. } | Output::Lost { .. } | Output::Observed { .. } => {}
            }
        }
        if voter.election.is_elected() {
            let token = voter.election.token(voter.election.vote.term);
            if *self.elected.entry(token).or_insert(at) != at {
                self.break_rule("two leaders by one token", rules);
            }
        }
        self.voters[at] = Shared::new(voter);
    }

    fn break_rule(&mut self, how: &'static str, rules: &Rules) {
        if rules.seeks.is_none_or(|sought| sought == how) {
            self.broken = Some(how);
        }
    }

    fn write(&mut self, voter: &mut Voter, vote: Vote, now: Time, rules: &Rules) {
        if voter.disk.as_ref().is_some_and(|before| before.term > vote.term) {
            self.break_rule("a term fell", rules);
        }
        let is_other =
            |before: &Vote| before.term == vote.term && before.choice != Choice::Nobody && before.choice != vote.choice;
        if voter.disk.as_ref().is_some_and(is_other) {
            self.break_rule("a vote changed within its term", rules);
        }
        voter.disk = Some(vote);
        voter.election.handle(Input::Persisted { is_written: true }, now);
    }

    fn post(&mut self, from: usize, voter: &Voter, to: &NodeName, frame: Frame, rules: &Rules) {
        let to = rules.names.iter().position(|name| name == to).expect("one of them");
        let is_left_out = match frame.word {
            Word::Voted { is_for: false, .. } => rules.is_lean,
            Word::Beaten { .. } => rules.is_lean && rules.rates.is_empty(),
            Word::Beat { .. } => rules.beats == 0,
            Word::Leads { .. } => true,
            _ => false,
        };
        if is_left_out {
            return;
        }
        if let Word::Voted { is_for: true, .. } = frame.word
            && voter.election.recovery.is_some()
        {
            self.break_rule("a vote of one that has forgotten", rules);
        }
        let envelope = Envelope { from, life: voter.life, to, frame };
        let key = hash(&envelope);
        if !self.net.contains_key(&key) {
            Arc::make_mut(&mut self.net).insert(key, envelope);
        }
    }

    fn restart(&mut self, at: usize, set: usize, rules: &Rules) -> Option<()> {
        let Voter { life, disk, rate, .. } = (*self.voters[at]).clone();
        let election = rules.start(at, set, life + 1, disk.clone(), self.clock(at))?;
        let voter =
            Voter { election, life: life + 1, disk, writing: None, set, rate, checked: None, has_checked: false };
        self.settle(at, voter, rules);
        Some(())
    }
}

/// It is enough for the checker.
impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        hash(self) == hash(other)
    }
}

impl Model for Rules {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        if self.rates.is_empty() {
            vec![self.begin(&[])]
        } else {
            self.rates.iter().map(|rates| self.begin(rates)).collect()
        }
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.broken.is_some() {
            return;
        }
        let matters = |envelope: &Envelope| {
            let Envelope { to, frame, .. } = envelope;
            let election = &world.voters[*to].election;
            let is_over = frame.term < election.vote.term;
            match frame.word {
                // Whoever has answered one does not get it again.
                Word::Recover => election.lives.get(envelope.from).is_some_and(|known| *known < envelope.life),
                Word::Recovered { life, .. } | Word::Blank { life } => {
                    election.recovery.is_some() && life == election.fixed.me.incarnation()
                }
                Word::Voted { .. } if frame.term == election.vote.term => matches!(election.role, Role::Candidate(_)),
                // All that would follow is a refusal.
                Word::Beat { .. } if !self.rates.is_empty() => true,
                _ => !(self.is_lean && is_over),
            }
        };
        let matter = world.net.iter().filter(|(_, envelope)| matters(envelope));
        steps.extend(matter.map(|(key, _)| Step::Deliver(*key)));
        for (at, voter) in world.voters.iter().enumerate() {
            let election = &voter.election;
            let may = match &election.role {
                Role::Leader(leading) => leading.is_over(world.clock(at)) || leading.number < self.beats,
                // Under the voters before, one term less.
                _ => {
                    election.vote.term < self.terms - (self.sets.len() - 1 - voter.set) as u64
                        || election.recovery.is_some()
                }
            };
            if may && election.poll_timeout().is_some_and(|due| due <= world.clock(at)) {
                steps.push(Step::Timeout(at));
            }
            if voter.writing.is_some() {
                steps.push(Step::Written(at));
            }
            if world.crashes < self.crashes && self.crashes(at) {
                steps.push(Step::Crash(at));
            }
            if voter.set + 1 < self.sets.len() && self.sets[voter.set + 1].rank(&self.names[at]).is_some() {
                steps.push(Step::Upgrade(at));
            }
            if self.hands_over && election.is_elected() && election.vote.term < self.terms {
                if !self.acts {
                    steps.push(Step::Resign(at));
                }
                let others = (0..world.voters.len()).filter(|to| *to != at && world.voters[*to].election.is_standing);
                steps.extend(others.map(|to| Step::Transfer(at, to)));
            }
            if self.acts && !voter.has_checked && world.leads(at) {
                steps.push(Step::Check(at));
            }
            if voter.checked.is_some() {
                steps.push(Step::Act(at));
            }
        }
        if world.time < self.time {
            steps.push(Step::Tick);
        }
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut next = world.clone();
        match step {
            Step::Deliver(key) => {
                let Envelope { from, life, to, frame } = world.net[&key].clone();
                let from = NodeId::new(self.names[from].clone(), life);
                next.act(to, self, |voter, now| voter.election.handle(Input::Frame { from, frame }, now));
            }
            Step::Timeout(at) => next.act(at, self, |voter, now| voter.election.handle_timeout(now)),
            Step::Written(at) => {
                let mut voter = (*next.voters[at]).clone();
                let (vote, now) = (voter.writing.take()?, next.clock(at));
                next.write(&mut voter, vote, now, self);
                next.settle(at, voter, self);
            }
            Step::Crash(at) => {
                next.crashes += 1;
                next.restart(at, next.voters[at].set, self)?;
            }
            Step::Upgrade(at) => next.restart(at, next.voters[at].set + 1, self)?,
            Step::Resign(at) => next.act(at, self, |voter, now| voter.election.handle(Input::Resign, now)),
            Step::Transfer(at, to) => {
                let to = self.names[to].clone();
                next.act(at, self, |voter, now| voter.election.handle(Input::Transfer { to }, now));
            }
            Step::Check(at) => next.act(at, self, |voter, _| {
                voter.has_checked = true;
                voter.checked = Some(voter.election.token(voter.election.vote.term));
            }),
            Step::Act(at) => {
                let token = next.act(at, self, |voter, _| voter.checked.take())?;
                if !self.has_fence || next.fence.admit(token).is_ok() {
                    if next.accepted.is_some_and(|before| token < before) {
                        next.break_rule("a resource took a lesser token", self);
                    }
                    next.accepted = Some(token);
                }
            }
            Step::Tick => next.time += 1,
        }
        for voter in &next.voters {
            let token = voter.election.lease().map(|(token, _)| token);
            if let Some(token) = token.filter(|token| next.led.is_none_or(|(before, _)| before < *token)) {
                next.led = Some((token, next.led.is_some()));
            }
        }
        let leaders: Vec<usize> = (0..next.voters.len()).filter(|at| next.leads(*at)).collect();
        if leaders.len() > 1 {
            next.break_rule("two leases at one time", self);
        }
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let safe = Property::always("nothing is broken", |_, world: &World| world.broken.is_none());
        let elected = |rules: &Self, world: &World| {
            (rules.terms == 1 || rules.begins) && !world.elected.is_empty() || world.elected.len() > 1
        };
        let led = |rules: &Self, world: &World| {
            world.led.is_some_and(|(_, is_second)| is_second || (rules.terms == 1 && rules.sets.len() == 1))
        };
        let happens = if self.rates.is_empty() { elected } else { led };
        vec![safe, Property::sometimes("one leads after the other", happens)]
    }
}
