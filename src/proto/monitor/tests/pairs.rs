//! Two nodes that watch each other's mailboxes, joined by channels in order, under any interleaving of events.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Something that happens at one of the two, or between them.
#[derive(Clone, Debug)]
enum Step {
    Watch {
        at: usize,
        target: Option<u64>,
        mailbox: Option<u64>,
        until_dead: bool,
        own: bool,
    },
    /// The watch that was the nth to begin, counted round.
    Cancel(usize),
    Close {
        at: usize,
        serial: u64,
        gone: Gone,
    },
    /// So many frames arrive.
    Arrive {
        at: usize,
        frames: usize,
    },
    /// The session ends for both; what was on its way is lost.
    Lose,
    Link,
    DialFails {
        at: usize,
    },
    Pass,
}

const SERIALS: std::ops::RangeInclusive<u64> = 1..=3;

/// What is known of a watch from outside.
#[derive(Debug)]
struct Observed {
    at: usize,
    target: Target,
    mailbox: Option<u64>,
    until_dead: bool,
    is_cancelled: bool,
    notices: Vec<Fate>,
}

/// The two nodes.
struct Pair {
    now: Instant,
    machines: [Monitors; 2],
    ids: [NodeId; 2],
    /// To each.
    channels: [VecDeque<Frame>; 2],
    is_linked: bool,
    open: [BTreeSet<u64>; 2],
    tracked: [BTreeSet<u64>; 2],
    dialled: [bool; 2],
    watches: Vec<Observed>,
}

impl Pair {
    fn new() -> Self {
        let ids = [life("left", 1), life("right", 1)];
        let machines = ids.clone().map(|id| Monitors::new(id, 1000));
        let mut pair = Self {
            now: One::new().now,
            machines,
            ids,
            channels: Default::default(),
            is_linked: false,
            open: [SERIALS.collect(), SERIALS.collect()],
            tracked: Default::default(),
            dialled: [false; 2],
            watches: Vec::new(),
        };
        for at in 0..2 {
            let node = pair.ids[1 - at].clone();
            pair.handle(at, Input::Live { node });
        }
        pair
    }

    fn handle(&mut self, at: usize, input: Input) {
        self.machines[at].handle(input, self.now);
        self.settle(at);
    }

    fn settle(&mut self, at: usize) {
        while let Some(output) = self.machines[at].poll_output() {
            match output {
                Output::Send { to, frame } => {
                    assert_eq!(to, self.ids[1 - at]);
                    assert!(self.is_linked, "{frame:?} is sent without a session");
                    self.channels[1 - at].push_back(frame);
                }
                Output::Dial { peer } => {
                    assert_eq!(peer, *self.ids[1 - at].name());
                    assert!(!self.is_linked && !self.dialled[at], "dialled in vain");
                    self.dialled[at] = true;
                }
                Output::Track { serial } => {
                    if self.open[at].contains(&serial) {
                        self.tracked[at].insert(serial);
                    } else {
                        let gone = Gone::NoSuchMailbox;
                        self.machines[at].handle(Input::Closed { serial, gone, reason: None }, self.now);
                    }
                }
                Output::Notice { watch, told, cut } => {
                    let watch = &mut self.watches[watch.0 as usize];
                    assert_eq!(watch.at, at);
                    assert!(!watch.is_cancelled, "a notice after the cancel");
                    assert!(cut.is_none() || watch.mailbox.is_some(), "a number for who is told at once");
                    watch.notices.push(told.fate);
                }
                Output::Armed { peer, watches } => {
                    assert_eq!(peer, self.ids[1 - at]);
                    let armed = self.watches.iter().filter(|watch| watch.at == at && watch.node() == &peer);
                    assert_eq!(watches, armed.filter(|watch| watch.is_armed()).count());
                }
                Output::Broken { .. } => panic!("nobody breaks a rule"),
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Watch { at, target, mailbox, until_dead, own } => {
                let node = self.ids[if own { at } else { 1 - at }].clone();
                let target = match target {
                    Some(serial) => Target::Mailbox(Pid::new(node, serial)),
                    None => Target::Node(node),
                };
                let watch = WatchId(self.watches.len() as u64);
                let (is_cancelled, notices) = (false, Vec::new());
                self.watches.push(Observed { at, target: target.clone(), mailbox, until_dead, is_cancelled, notices });
                self.handle(at, Input::Watch { watch, target, mailbox, until_dead });
            }
            Step::Cancel(nth) => {
                let Some(nth) = nth.checked_rem(self.watches.len()) else { return };
                self.watches[nth].is_cancelled = true;
                self.handle(self.watches[nth].at, Input::Unwatch { watch: WatchId(nth as u64) });
            }
            Step::Close { at, serial, gone } => {
                self.open[at].remove(&serial);
                if self.tracked[at].remove(&serial) {
                    self.handle(at, Input::Closed { serial, gone, reason: None });
                }
            }
            Step::Arrive { at, frames } => {
                for _ in 0..frames {
                    let Some(frame) = self.channels[at].pop_front() else { return };
                    let from = self.ids[1 - at].clone();
                    self.handle(at, Input::Frame { from, frame });
                }
            }
            Step::Lose if self.is_linked => {
                self.is_linked = false;
                self.channels = Default::default();
                for at in 0..2 {
                    let peer = self.ids[1 - at].clone();
                    self.handle(at, Input::Down { peer, why: Fate::Disconnected });
                }
            }
            Step::Link if !self.is_linked => {
                self.is_linked = true;
                self.dialled = [false; 2];
                for at in 0..2 {
                    let peer = self.ids[1 - at].clone();
                    self.handle(at, Input::Up { peer });
                }
            }
            Step::DialFails { at } if self.dialled[at] => {
                self.dialled[at] = false;
                let peer = self.ids[1 - at].name().clone();
                self.handle(at, Input::DialFailed { peer });
            }
            Step::Pass => {
                self.now += REDIAL;
                for at in 0..2 {
                    self.machines[at].handle_timeout(self.now);
                    self.settle(at);
                }
            }
            Step::Lose | Step::Link | Step::DialFails { .. } => {}
        }
    }

    /// All that was said has arrived.
    fn calm(&mut self) {
        self.step(Step::Link);
        while self.channels.iter().any(|channel| !channel.is_empty()) {
            (0..2).for_each(|at| self.step(Step::Arrive { at, frames: usize::MAX }));
        }
    }

    /// Each watch has ended in one way, or its target lives.
    fn check(&self) {
        for watch in &self.watches {
            assert!(watch.notices.len() <= 1, "told twice: {watch:?}");
            if let Some(fate) = watch.notices.first() {
                let is_true = match fate {
                    Fate::Closed | Fate::Panicked | Fate::Failed | Fate::NoSuchMailbox => !self.lives(&watch.target),
                    Fate::Disconnected => !watch.until_dead && *watch.node() != self.ids[watch.at],
                    Fate::NodeLeft | Fate::NodeDown | Fate::Superseded => false,
                };
                assert!(is_true, "{watch:?}");
            }
            assert!(!watch.is_armed() || self.lives(&watch.target), "never told: {watch:?}");
        }
    }

    fn lives(&self, target: &Target) -> bool {
        match target {
            Target::Mailbox(pid) => {
                let at = usize::from(*pid.node() == self.ids[1]);
                self.open[at].contains(&pid.serial())
            }
            Target::Node(_) => true,
        }
    }

    /// Everybody gives up.
    fn cancel_all(&mut self) {
        (0..self.watches.len()).for_each(|nth| self.step(Step::Cancel(nth)));
    }

    fn held(&self) -> [usize; 2] {
        [self.machines[0].held(), self.machines[1].held()]
    }
}

impl Observed {
    fn node(&self) -> &NodeId {
        match &self.target {
            Target::Mailbox(pid) => pid.node(),
            Target::Node(node) => node,
        }
    }

    fn is_armed(&self) -> bool {
        !self.is_cancelled && self.notices.is_empty()
    }
}

fn steps() -> impl Strategy<Value = Step> {
    let at = 0..2_usize;
    let serial = SERIALS;
    let mailbox = prop::option::of(50..52_u64);
    let gone = prop::sample::select(&[Gone::Closed, Gone::Panicked][..]);
    let watch =
        (at.clone(), prop::option::weighted(0.9, serial.clone()), mailbox, any::<bool>(), prop::bool::weighted(0.2));
    prop_oneof![
        8 => watch.prop_map(|(at, target, mailbox, until_dead, own)| Step::Watch { at, target, mailbox, until_dead, own }),
        4 => any::<usize>().prop_map(Step::Cancel),
        2 => (at.clone(), serial, gone).prop_map(|(at, serial, gone)| Step::Close { at, serial, gone }),
        8 => (at.clone(), 1..4_usize).prop_map(|(at, frames)| Step::Arrive { at, frames }),
        1 => Just(Step::Lose),
        2 => Just(Step::Link),
        1 => at.prop_map(|at| Step::DialFails { at }),
        1 => Just(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Every watch ends in one of: a notice, a cancel, a target that lives. Nothing is left when all are over.
    #[test]
    fn every_watch_ends_once(steps in vec(steps(), 0..120)) {
        let mut pair = Pair::new();
        steps.into_iter().for_each(|step| pair.step(step));
        pair.calm();
        pair.check();
        pair.cancel_all();
        pair.calm();
        prop_assert_eq!(pair.held(), [0, 0]);
    }
}

/// A mailbox is watched from both nodes, three times each. It exits, the watches are cancelled, the session is lost, the
/// frames arrive: in whatever order, nothing is left, and nobody is told twice.
#[test]
fn ends_in_all_orders_leave_nothing() {
    let acts = [
        vec![Step::Close { at: 1, serial: 1, gone: Gone::Closed }],
        (0..6).step_by(2).map(Step::Cancel).collect(),
        (1..6).step_by(2).map(Step::Cancel).collect(),
        vec![Step::Lose],
        vec![Step::Arrive { at: 1, frames: 9 }],
        vec![Step::Arrive { at: 0, frames: 9 }],
    ];
    for order in orders((0..acts.len()).collect()) {
        let mut pair = Pair::new();
        pair.step(Step::Link);
        for own in [false, true] {
            for mailbox in [None, Some(50), Some(51)] {
                let at = usize::from(own);
                pair.step(Step::Watch { at, target: Some(1), mailbox, until_dead: false, own });
            }
        }
        order.iter().flat_map(|act| acts[*act].clone()).for_each(|step| pair.step(step));
        pair.calm();
        pair.check();
        assert_eq!(pair.held(), [0, 0], "{order:?}");
    }
}

fn orders(of: Vec<usize>) -> Vec<Vec<usize>> {
    if of.len() <= 1 {
        return vec![of];
    }
    let first = |nth: usize| {
        let mut rest = of.clone();
        let first = rest.remove(nth);
        orders(rest).into_iter().map(move |order| [vec![first], order].concat())
    };
    (0..of.len()).flat_map(first).collect()
}
