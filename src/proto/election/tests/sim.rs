//! Many voters under a virtual clock and a seed: whether there is a leader when there can be one, and at every event that
//! there are not two.
//!
//! `SEEDS=5000 cargo test --lib election::tests::sim -- --nocapture` is the long search, `SEED=n` replays one, `TRACE=1`
//! shows what happens.

use std::collections::{BTreeMap, BTreeSet};

use super::super::*;
use super::{ms, names, params};

/// Once everybody hears everybody, somebody leads within so many leases.
const CALM_LEASES: u32 = 8;

enum Event {
    Deliver {
        from: NodeId,
        to: usize,
        frame: Frame,
    },
    Written {
        at: usize,
        life: u64,
    },
    Wake,
    Thaw {
        at: usize,
    },
    /// A leader that looked whether it leads acts now.
    Act {
        token: Token,
    },
}

struct Node {
    election: Option<Election>,
    life: u64,
    disk: Option<Vote>,
    writing: Option<Vote>,
    /// By how much its clock differs from the true time, and at what rate it runs.
    offset: Time,
    rate: f64,
    frozen: Option<Vec<Event>>,
    is_standing: bool,
}

impl Node {
    fn clock(&self, now: Time) -> Time {
        self.offset + now.mul_f64(self.rate)
    }

    /// When its clock will show that.
    fn when(&self, shown: Time) -> Time {
        shown.saturating_sub(self.offset).div_f64(self.rate) + Duration::from_nanos(1)
    }
}

struct World {
    seed: u64,
    rng: fastrand::Rng,
    now: Time,
    voters: Voters,
    nodes: Vec<Node>,
    queue: BTreeMap<(Time, u64), Event>,
    planned: u64,
    /// Directed: what the first sends does not reach the second.
    cuts: BTreeSet<(usize, usize)>,
    loss: f64,
    disk_fails: f64,
    /// Who was elected by which token, ever.
    elected: BTreeMap<Token, usize>,
    /// Leaders and when they began, in their order.
    led: Vec<(Time, usize, Token)>,
    observed: BTreeMap<usize, Token>,
    fence: Fence,
    refused: u64,
    frozen_leaders: u64,
    /// Two leases at one time are counted, instead of being a failure.
    counts_overlaps: bool,
    overlaps: u64,
    traces: bool,
}

impl World {
    fn new(seed: u64, voters: Voters) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let node = |rng: &mut fastrand::Rng| Node {
            election: None,
            life: 0,
            disk: None,
            writing: None,
            offset: ms(rng.u64(..1_000_000)),
            // Within one in a hundred, as the lease allows.
            rate: 0.99 + 0.02 * rng.f64(),
            frozen: None,
            is_standing: true,
        };
        let nodes = voters.names().iter().map(|_| node(&mut rng)).collect();
        let mut world = Self {
            seed,
            rng,
            now: Time::ZERO,
            voters,
            nodes,
            queue: BTreeMap::new(),
            planned: 0,
            cuts: BTreeSet::new(),
            loss: 0.0,
            disk_fails: 0.0,
            elected: BTreeMap::new(),
            led: vec![],
            observed: BTreeMap::new(),
            fence: Fence::default(),
            refused: 0,
            frozen_leaders: 0,
            counts_overlaps: false,
            overlaps: 0,
            traces: std::env::var_os("TRACE").is_some(),
        };
        for at in 0..world.nodes.len() {
            world.start(at);
        }
        world
    }

    fn plan(&mut self, after: Duration, event: Event) {
        self.planned += 1;
        self.queue.insert((self.now + after, self.planned), event);
    }

    fn start(&mut self, at: usize) {
        let seed = self.rng.u64(..);
        let (id, clock) = {
            let node = &mut self.nodes[at];
            node.life += 1;
            // Lives are times where votes are in memory.
            let life = if self.voters.is_diskless() { 1_000_000 + self.now.as_micros() as u64 } else { node.life };
            (NodeId::new(self.voters.names()[at].clone(), life), node.clock(self.now))
        };
        let stored = self.nodes[at].disk.clone();
        let election = Election::new("e".into(), id, self.voters.clone(), params(), stored, seed, clock);
        self.nodes[at].election = Some(election.expect("the same voters"));
        if self.nodes[at].is_standing {
            self.input(at, Input::Stand);
        }
        self.settle(at);
    }

    fn crash(&mut self, at: usize) {
        self.note(|| format!("{at} crashes"));
        let is_written = self.rng.bool();
        let node = &mut self.nodes[at];
        (node.election, node.frozen) = (None, None);
        if let Some(vote) = node.writing.take().filter(|_| is_written) {
            node.disk = Some(vote);
        }
    }

    fn note(&self, what: impl FnOnce() -> String) {
        if self.traces {
            println!("{:>9.3} {}", self.now.as_secs_f64(), what());
        }
    }

    fn input(&mut self, at: usize, input: Input) {
        let clock = self.nodes[at].clock(self.now);
        if let Some(election) = &mut self.nodes[at].election {
            election.handle(input, clock);
        }
        self.settle(at);
    }

    fn settle(&mut self, at: usize) {
        while let Some(output) = self.nodes[at].election.as_mut().and_then(Election::poll_output) {
            match output {
                Output::Persist(vote) => {
                    self.nodes[at].writing = Some(*vote);
                    let (after, life) = (Duration::from_micros(self.rng.u64(100..20_000)), self.nodes[at].life);
                    self.plan(after, Event::Written { at, life });
                }
                Output::Send { to, frame } => {
                    let to = self.voters.rank(&to).expect("words go to voters");
                    let is_lost = self.cuts.contains(&(at, to)) || self.rng.f64() < self.loss;
                    if !is_lost {
                        let from = self.nodes[at].election.as_ref().expect("it has just spoken").fixed.me.clone();
                        let after = Duration::from_micros(self.rng.u64(200..40_000));
                        self.plan(after, Event::Deliver { from, to, frame });
                    }
                }
                Output::Led { token } => {
                    self.note(|| format!("{at} leads by {token}"));
                    let greatest = self.led.iter().map(|(_, _, token)| *token).max();
                    assert!(greatest.is_none_or(|greatest| greatest < token), "seed {}: {token} again", self.seed);
                    self.led.push((self.now, at, token));
                }
                Output::Lost { token, why } => self.note(|| format!("{at} leads no more by {token}: {why:?}")),
                Output::Observed { token, .. } => {
                    let before = self.observed.insert(at, token);
                    let life_is_new = self.nodes[at].election.as_ref().is_some_and(|e| e.counters().elected == 0);
                    assert!(
                        before.is_none_or(|before| before <= token) || life_is_new,
                        "seed {}: {at} went back",
                        self.seed
                    );
                }
            }
        }
        let Some(election) = &self.nodes[at].election else { return };
        if election.is_elected() {
            let token = election.token(election.vote.term);
            let by = *self.elected.entry(token).or_insert(at);
            assert_eq!(by, at, "seed {}: two leaders by {token}", self.seed);
        }
        if let Some(due) = election.poll_timeout() {
            let after = self.nodes[at].when(due).saturating_sub(self.now);
            self.plan(after, Event::Wake);
        }
        self.check();
    }

    fn leads(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        node.election.as_ref().is_some_and(|election| election.leads(node.clock(self.now)))
    }

    fn leader(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|at| self.leads(*at))
    }

    /// Whether or not they run: nobody may believe that it leads while another does.
    fn check(&mut self) {
        let leaders = (0..self.nodes.len()).filter(|at| self.leads(*at)).count();
        assert!(leaders <= 1 || self.counts_overlaps, "seed {}: {leaders} leaders at {:?}", self.seed, self.now);
        self.overlaps += u64::from(leaders > 1);
    }

    fn step(&mut self, until: Time) -> bool {
        let Some((&(at, number), _)) = self.queue.first_key_value() else { return false };
        if at > until {
            return false;
        }
        let event = self.queue.remove(&(at, number)).expect("it was there");
        self.now = self.now.max(at);
        self.check();
        match event {
            Event::Deliver { to, .. } | Event::Written { at: to, .. } if self.nodes[to].frozen.is_some() => {
                self.nodes[to].frozen.as_mut().expect("it is frozen").push(event);
            }
            Event::Deliver { from, to, frame } => self.input(to, Input::Frame { from, frame }),
            Event::Written { at, life } => {
                let is_written = self.rng.f64() >= self.disk_fails;
                let node = &mut self.nodes[at];
                if node.life == life
                    && let Some(vote) = node.writing.take()
                {
                    if is_written {
                        node.disk = Some(vote);
                    }
                    self.input(at, Input::Persisted { is_written });
                }
            }
            Event::Wake => {
                for at in 0..self.nodes.len() {
                    let clock = self.nodes[at].clock(self.now);
                    let node = &mut self.nodes[at];
                    if node.frozen.is_none()
                        && let Some(election) = &mut node.election
                        && election.poll_timeout().is_some_and(|due| due <= clock)
                    {
                        election.handle_timeout(clock);
                        self.settle(at);
                    }
                }
            }
            Event::Thaw { at } => {
                let held = self.nodes[at].frozen.take().unwrap_or_default();
                for event in held {
                    self.plan(Duration::ZERO, event);
                }
                self.plan(Duration::ZERO, Event::Wake);
            }
            Event::Act { token } => self.refused += u64::from(self.fence.admit(token).is_err()),
        }
        // Leaders act, and some are held up between the look and the deed.
        if self.rng.u8(..8) == 0
            && let Some(at) = self.leader()
            && self.nodes[at].frozen.is_none()
        {
            let election = self.nodes[at].election.as_ref().expect("it leads");
            let token = election.token(election.vote.term);
            let after = if self.rng.u8(..50) == 0 { ms(self.rng.u64(..10_000)) } else { ms(1) };
            self.plan(after, Event::Act { token });
        }
        true
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Until somebody leads.
    fn elects_within(&mut self, time: Duration) -> Option<Duration> {
        let begun = self.now;
        loop {
            if self.leader().is_some_and(|at| self.nodes[at].frozen.is_none()) {
                return Some(self.now - begun);
            }
            if !self.step(begun + time) {
                return None;
            }
        }
    }

    fn fault(&mut self) {
        let count = self.nodes.len();
        let (at, other) = (self.rng.usize(..count), self.rng.usize(..count));
        match self.rng.u8(..12) {
            0 | 1 if at != other => {
                self.cuts.insert((at, other));
            }
            2 => self.cuts.extend((0..count).filter(|other| *other != at).flat_map(|other| [(at, other), (other, at)])),
            3 | 4 => self.cuts.clear(),
            5 => self.loss = self.rng.f64() * 0.5,
            6 => self.loss = 0.0,
            7 if self.nodes[at].election.is_some() && self.nodes[at].frozen.is_none() => {
                self.frozen_leaders += u64::from(self.leads(at));
                self.nodes[at].frozen = Some(vec![]);
                let after = ms(self.rng.u64(..8_000));
                self.plan(after, Event::Thaw { at });
            }
            8 | 9 if self.may_restart(at) => {
                self.crash(at);
                self.start(at);
            }
            10 if !self.voters.is_diskless() => {
                for at in 0..count {
                    self.crash(at);
                }
                for at in 0..count {
                    self.start(at);
                }
            }
            11 => self.disk_fails = if self.rng.bool() { 0.3 } else { 0.0 },
            _ => {}
        }
    }

    /// Without disks, a minority at most may have forgotten at a time.
    fn may_restart(&self, at: usize) -> bool {
        let forgotten = self.nodes.iter().filter(|node| node.election.as_ref().is_some_and(|e| e.recovery.is_some()));
        let others = forgotten.count();
        !self.voters.is_diskless()
            || (self.nodes[at].election.as_ref().is_some_and(|e| e.recovery.is_none())
                && others < (self.nodes.len() - 1) / 2)
    }

    fn calm(&mut self) {
        self.cuts.clear();
        (self.loss, self.disk_fails) = (0.0, 0.0);
        for at in 0..self.nodes.len() {
            if self.nodes[at].frozen.is_some() {
                self.plan(Duration::ZERO, Event::Thaw { at });
            }
        }
    }
}

fn seeds(usual: u64) -> Vec<u64> {
    let of = |key: &str| std::env::var(key).ok().and_then(|text| text.parse().ok());
    of("SEED").map_or_else(|| (1..=of("SEEDS").unwrap_or(usual)).collect(), |seed| vec![seed])
}

fn voters_of(seed: u64) -> Voters {
    let locals = ["abc", "abcde", "abcd", "abcdefg"][seed as usize / 2 % 4];
    Voters::new(1, names(locals), None, (seed % 2 == 1).then_some(1)).unwrap()
}

fn quantile(times: &mut [Duration], of: f64) -> Duration {
    times.sort();
    times[((times.len() - 1) as f64 * of) as usize]
}

#[test]
fn two_never_lead_and_after_any_faults_one_does() {
    let (mut calm, mut leaders, mut refused, mut frozen) = (vec![], 0, 0, 0);
    for seed in seeds(60) {
        let mut world = World::new(seed, voters_of(seed));
        world.run(ms(3_000));
        for _ in 0..60 {
            world.fault();
            let time = ms(world.rng.u64(..2_000));
            world.run(time);
        }
        world.calm();
        let most = super::LEASE * CALM_LEASES;
        let Some(took) = world.elects_within(most) else { panic!("seed {seed}: nobody leads after {most:?}") };
        calm.push(took);
        // And it stays.
        world.run(ms(4_000));
        let (count, leader) = (world.led.len(), world.leader());
        world.run(ms(60_000));
        assert!(leader.is_some() && world.leader() == leader, "seed {seed}");
        assert_eq!(world.led.len(), count, "seed {seed}: leaders change for no reason");
        (leaders, refused, frozen) = (leaders + count, refused + world.refused, frozen + world.frozen_leaders);
    }
    println!(
        "a leader after the faults: p50 {:?}, max {:?}; {leaders} leaders, {frozen} of them frozen, {refused} deeds of the past refused",
        quantile(&mut calm, 0.5),
        quantile(&mut calm, 1.0),
    );
    if seeds(60).len() >= 60 {
        assert!(refused > 10 && frozen > 10 && leaders > 100, "{refused} {frozen} {leaders}: these faults happened");
    }
}

#[test]
fn a_leader_that_dies_is_followed_within_a_few_leases() {
    let mut times = vec![];
    for seed in seeds(100) {
        let mut world = World::new(seed * 2, voters_of(seed * 2));
        world.run(ms(20_000));
        let leader = world.leader().unwrap_or_else(|| panic!("seed {seed}: nobody leads"));
        world.crash(leader);
        let took = world.elects_within(super::LEASE * CALM_LEASES);
        times.push(took.unwrap_or_else(|| panic!("seed {seed}: nobody follows")));
    }
    println!("a leader after a death: p50 {:?}, max {:?}", quantile(&mut times, 0.5), quantile(&mut times, 1.0));
    assert!(quantile(&mut times, 0.0) > ms(1_200), "nobody waited for the lease to end");
}

/// It hears a minority, or is heard by one.
#[test]
fn a_voter_with_few_links_deposes_nobody() {
    for seed in seeds(40) {
        let mut world = World::new(seed, voters_of(seed));
        world.run(ms(20_000));
        let leader = world.leader().unwrap_or_else(|| panic!("seed {seed}: nobody leads"));
        let led = world.led.len();
        let count = world.nodes.len();
        let half = (leader + 1) % count;
        let friend = (leader + 2) % count;
        for other in (0..count).filter(|other| *other != half && *other != friend) {
            let ways = [(half, other), (other, half)];
            world.cuts.extend(&ways[..1 + seed as usize % 2]);
        }
        world.run(ms(60_000));
        world.cuts.clear();
        world.run(ms(20_000));
        assert_eq!((world.leader(), world.led.len()), (Some(leader), led), "seed {seed}");
    }
}

/// The simulator sees what it is there for.
#[test]
fn a_clock_that_is_worse_than_allowed_is_noticed() {
    let overlaps = |rate: f64| {
        let mut world = World::new(1, Voters::new(1, names("abc"), None, None).unwrap());
        world.run(ms(20_000));
        let leader = world.leader().expect("after twenty seconds");
        // From now on the leader's clock is slow, and it hears nobody.
        let shown = world.nodes[leader].clock(world.now);
        world.nodes[leader].offset = shown.saturating_sub(world.now.mul_f64(rate));
        world.nodes[leader].rate = rate;
        world.cuts.extend((0..3).flat_map(|other| [(leader, other), (other, leader)]));
        world.counts_overlaps = true;
        world.run(ms(10_000));
        assert_eq!(world.led.len(), 2, "another was elected");
        world.overlaps
    };
    assert_eq!(overlaps(0.99), 0);
    assert!(overlaps(0.2) > 0);
}
