//! One election's machine: each rule, from both sides.

mod model;
mod sim;

use std::collections::VecDeque;

use super::observer::JUMP_MAX;
use super::*;
use crate::wire::services::election::{NUMBER_MAX, Release};

const BEAT: Duration = Duration::from_millis(250);
const LEASE: Duration = Duration::from_millis(1500);

fn params() -> Params {
    Params::new(BEAT, LEASE, 10_000, Duration::ZERO)
}

fn name(local: char) -> NodeName {
    NodeName::parse(&format!("{local}@h:1")).unwrap()
}

fn names(locals: &str) -> Vec<NodeName> {
    locals.chars().map(name).collect()
}

fn voters(locals: &str) -> Voters {
    Voters::new(1, names(locals), None, None).unwrap()
}

fn ms(ms: u64) -> Time {
    Duration::from_millis(ms)
}

const MS: Time = Duration::from_millis(1);

/// Elections that hear each other at once, or what a test lets them hear.
struct Bench {
    now: Time,
    nodes: Vec<(NodeId, Election)>,
    /// What is on its way.
    wire: VecDeque<(NodeId, NodeName, Frame)>,
    /// What came out besides, in its order.
    out: Vec<(NodeName, Output)>,
    /// Votes are written at once.
    writes: bool,
    disks: Vec<(NodeName, Vote)>,
}

impl Bench {
    fn new() -> Self {
        let (wire, out, disks) = (VecDeque::new(), vec![], vec![]);
        Self { now: ms(1_000_000), nodes: vec![], wire, out, writes: true, disks }
    }

    fn of(locals: &str) -> Self {
        let mut bench = Self::new();
        for local in locals.chars() {
            bench.start(local, 1, voters(locals)).unwrap();
        }
        bench
    }

    fn start(&mut self, local: char, life: u64, voters: Voters) -> Result<(), VotersError> {
        self.start_with(local, life, voters, params())
    }

    fn start_with(&mut self, local: char, life: u64, voters: Voters, params: Params) -> Result<(), VotersError> {
        let me = NodeId::new(name(local), life);
        self.nodes.retain(|(id, _)| id.name() != me.name());
        let stored = self.disks.iter().rev().find(|(of, _)| of == me.name()).map(|(_, vote)| vote.clone());
        let seed = u64::from(local as u32) + life;
        let election = Election::new("billing".into(), me.clone(), voters, params, stored, seed, self.now)?;
        self.nodes.push((me, election));
        self.drain();
        Ok(())
    }

    fn at(&mut self, local: char) -> &mut Election {
        self.nodes.iter_mut().find(|(id, _)| *id.name() == name(local)).map(|(_, election)| election).unwrap()
    }

    fn handle(&mut self, local: char, input: Input) {
        let now = self.now;
        self.at(local).handle(input, now);
        self.drain();
    }

    fn timeout(&mut self, local: char) {
        let now = self.now;
        self.at(local).handle_timeout(now);
        self.drain();
    }

    fn drain(&mut self) {
        let now = self.now;
        for (id, election) in &mut self.nodes {
            while let Some(output) = election.poll_output() {
                match output {
                    Output::Send { to, frame } => self.wire.push_back((id.clone(), to, frame)),
                    Output::Persist(vote) if self.writes => {
                        self.disks.push((id.name().clone(), *vote));
                        election.handle(Input::Persisted { is_written: true }, now);
                    }
                    output => self.out.push((id.name().clone(), output)),
                }
            }
        }
    }

    /// Delivers everything that passes, and what follows from it.
    fn deliver(&mut self, passes: impl Fn(&NodeName, &NodeName) -> bool) {
        while let Some((from, to, frame)) = self.wire.pop_front() {
            let there = self.nodes.iter().any(|(id, _)| *id.name() == to);
            if there && passes(from.name(), &to) {
                let local = to.local().chars().next().unwrap();
                self.handle(local, Input::Frame { from, frame });
            }
        }
    }

    /// Lets time pass, with every timeout in its order.
    fn run_with(&mut self, time: Duration, passes: impl Fn(&NodeName, &NodeName) -> bool + Copy) {
        let end = self.now + time;
        loop {
            self.deliver(passes);
            let due = self.nodes.iter().filter_map(|(_, election)| election.poll_timeout()).min();
            let Some(due) = due.filter(|due| *due <= end) else { break };
            self.now = self.now.max(due);
            for at in 0..self.nodes.len() {
                if self.nodes[at].1.poll_timeout().is_some_and(|due| due <= self.now) {
                    self.nodes[at].1.handle_timeout(self.now);
                    self.drain();
                }
            }
        }
        self.now = end;
    }

    fn run(&mut self, time: Duration) {
        self.run_with(time, |_, _| true);
    }

    fn leader(&self) -> Option<(NodeName, Token)> {
        let leads = |(id, election): &(NodeId, Election)| {
            election.lease().filter(|(_, until)| self.now < *until).map(|(token, _)| (id.name().clone(), token))
        };
        let leaders: Vec<_> = self.nodes.iter().filter_map(leads).collect();
        assert!(leaders.len() <= 1, "{leaders:?}");
        leaders.into_iter().next()
    }

    fn events(&mut self, local: char) -> Vec<Output> {
        let (own, rest) = std::mem::take(&mut self.out).into_iter().partition(|(of, _)| *of == name(local));
        self.out = rest;
        Vec::from_iter::<Vec<(NodeName, Output)>>(own).into_iter().map(|(_, output)| output).collect()
    }

    /// Says something to a voter in another's name, and takes what is answered.
    fn say(&mut self, from: char, to: char, term: u64, word: Word) -> Vec<Word> {
        self.say_as(NodeId::new(name(from), 1), to, term, word)
    }

    fn say_as(&mut self, from: NodeId, to: char, term: u64, word: Word) -> Vec<Word> {
        let ballot = self.at(to).fixed.ballot;
        self.say_with(from, to, ballot, term, word)
    }

    fn say_with(&mut self, from: NodeId, to: char, ballot: Ballot, term: u64, word: Word) -> Vec<Word> {
        self.wire.clear();
        let frame = Frame { name: "billing".into(), ballot, term, word };
        self.handle(to, Input::Frame { from: from.clone(), frame });
        self.answers(from.name())
    }

    fn answers(&mut self, to: &NodeName) -> Vec<Word> {
        let answers =
            self.wire.iter().filter(|(_, name, _)| name == to).map(|(_, _, frame)| frame.word.clone()).collect();
        self.wire.clear();
        answers
    }

    fn term(&mut self, local: char) -> u64 {
        self.at(local).vote.term
    }
}

fn stand() -> Word {
    Word::Stand { release: None }
}

fn yes(life: u64) -> Vec<Word> {
    vec![Word::Voted { life, is_for: true, lives: vec![] }]
}

fn no(life: u64) -> Vec<Word> {
    vec![Word::Voted { life, is_for: false, lives: vec![] }]
}

#[test]
fn who_stands_is_elected_and_everybody_learns_of_it() {
    let mut bench = Bench::of("abc");
    bench.start('o', 1, voters("abc")).unwrap();
    bench.run(ms(60_000));
    assert_eq!(bench.leader(), None, "nobody stands");
    assert_eq!(bench.at('a').poll_timeout(), None, "nor waits for anything");
    bench.handle('b', Input::Stand);
    bench.run(ms(1_500));
    let token = Token::new(0, 1, 1);
    assert_eq!(bench.leader(), Some((name('b'), token)));
    let observed = Output::Observed { token, leader: Some(name('b')) };
    assert_eq!(bench.events('b'), [Output::Led { token }, observed.clone()]);
    for other in ['a', 'c', 'o'] {
        assert_eq!(bench.events(other), std::slice::from_ref(&observed), "{other}");
    }
    bench.run(ms(60_000));
    assert_eq!(bench.leader(), Some((name('b'), token)), "and it stays");
    assert_eq!(bench.at('b').counters().campaigns, 1);
}

#[test]
fn one_voter_alone_needs_nobody() {
    let mut bench = Bench::of("a");
    bench.handle('a', Input::Stand);
    bench.run(ms(30_000));
    assert_eq!(bench.leader(), Some((name('a'), Token::new(0, 1, 1))));
}

#[test]
fn one_vote_in_a_term_and_the_same_one_again() {
    let mut bench = Bench::of("abc");
    assert_eq!(bench.say('b', 'a', 1, stand()), yes(1));
    assert_eq!(bench.say('b', 'a', 1, stand()), yes(1), "its answer may have been lost");
    assert_eq!(bench.say('c', 'a', 1, stand()), no(1));
    assert_eq!(bench.say('c', 'a', 0, stand()), no(1), "a term that is over");
    assert_eq!(bench.say('c', 'a', 2, stand()), yes(1));
    assert_eq!(bench.say('b', 'a', 2, stand()), no(1));
}

/// Hazelcast once erased a vote when it stepped down.
#[test]
fn neither_a_heartbeat_nor_a_step_down_erases_a_vote() {
    let mut bench = Bench::of("abc");
    assert_eq!(bench.say('b', 'a', 1, stand()), yes(1));
    assert_eq!(bench.say('b', 'a', 1, Word::Beat { number: 1 }), [Word::Beaten { life: 1, number: 1 }]);
    bench.now += LEASE * 2;
    assert_eq!(bench.say('c', 'a', 1, stand()), no(1));
    bench.handle('a', Input::Stand);
    bench.handle('a', Input::Resign);
    assert_eq!(bench.say('c', 'a', 1, stand()), no(1));
}

#[test]
fn a_vote_is_on_disk_before_it_is_said() {
    let mut bench = Bench::of("abc");
    bench.writes = false;
    assert_eq!(bench.say('b', 'a', 5, stand()), [], "not yet");
    let [Output::Persist(vote)] = &bench.events('a')[..] else { panic!() };
    assert_eq!((vote.term, &vote.choice), (5, &Choice::For(name('b'))));
    assert_eq!(bench.say('c', 'a', 5, stand()), [], "nor is a no");
    bench.handle('a', Input::Persisted { is_written: true });
    assert_eq!((bench.answers(&name('b')), bench.at('a').stored().unwrap().term), (yes(1), 5));
    // A later term while one is being written: one write at a time, and each answer says its own term.
    bench.say('b', 'a', 6, stand());
    bench.say('c', 'a', 7, stand());
    assert_eq!(bench.events('a').len(), 1);
    bench.handle('a', Input::Persisted { is_written: true });
    assert!(bench.wire.is_empty(), "term 7 is not written yet");
    assert_eq!(bench.events('a').len(), 1);
    bench.handle('a', Input::Persisted { is_written: true });
    let said: Vec<_> = bench.wire.iter().map(|(_, to, frame)| (to.clone(), frame.term)).collect();
    assert_eq!(said, [(name('b'), 6), (name('c'), 7)]);
}

#[test]
fn a_disk_that_fails_gives_no_vote_and_elects_nobody() {
    let mut bench = Bench::of("abc");
    bench.writes = false;
    bench.say('b', 'a', 5, stand());
    bench.handle('a', Input::Persisted { is_written: false });
    assert!(bench.wire.is_empty());
    assert_eq!(bench.say('c', 'a', 5, stand()), [], "the first vote stands, written or not");
    bench.now += LEASE;
    assert_eq!(bench.say('b', 'a', 5, stand()), []);
    bench.handle('a', Input::Persisted { is_written: true });
    assert_eq!(bench.answers(&name('b')), yes(1), "once it is written, it is said");
    // Its own vote is as good as any other.
    bench.handle('c', Input::Stand);
    let mut writes = 0;
    for _ in 0..100 {
        bench.now += ms(100);
        bench.timeout('c');
        let round = bench.at('c').round;
        bench.say('a', 'c', 0, Word::Canvassed { life: 1, round, is_for: true });
        for output in bench.events('c') {
            assert!(matches!(output, Output::Persist(_)), "{output:?}");
            writes += 1;
            bench.handle('c', Input::Persisted { is_written: false });
            assert!(!bench.wire.iter().any(|(_, _, frame)| matches!(frame.word, Word::Stand { .. })));
        }
    }
    assert!((2..=7).contains(&writes), "{writes} in ten seconds: it does not hammer a disk that fails");
}

#[test]
fn a_voter_promises_until_a_lease_has_ended_by_any_clock() {
    let mut bench = Bench::of("abc");
    bench.say('b', 'a', 1, Word::Beat { number: 1 });
    let promised = params().promised;
    assert_eq!(promised, ms(1_515));
    bench.now += promised - MS;
    assert_eq!(bench.say('c', 'a', 2, stand()), [], "as if it had not been asked");
    assert_eq!(bench.term('a'), 1);
    let canvassed = |is_for| vec![Word::Canvassed { life: 1, round: 9, is_for }];
    assert_eq!(bench.say('c', 'a', 1, Word::Canvass { round: 9 }), canvassed(false));
    bench.now += MS;
    assert_eq!(bench.say('c', 'a', 1, Word::Canvass { round: 9 }), canvassed(true));
    assert_eq!(bench.term('a'), 1, "a question changes nothing");
    assert_eq!(bench.say('c', 'a', 2, stand()), yes(1));
    assert_eq!(bench.at('a').counters().promised_away, 1);
}

#[test]
fn a_lease_counts_from_when_the_heartbeat_was_sent() {
    let mut bench = elected("abc");
    let (token, until) = bench.at('a').lease().unwrap();
    let Role::Leader(_) = &bench.at('a').role else { panic!() };
    // The next heartbeat is answered late, by one of two, which is a majority with the leader.
    let sent = bench.at('a').poll_timeout().unwrap();
    bench.now = sent;
    bench.timeout('a');
    let number = beat_number(&bench);
    bench.now += ms(400);
    bench.say('b', 'a', token.term(), Word::Beaten { life: 1, number });
    let (_, later) = bench.at('a').lease().unwrap();
    assert_eq!(later, sent + params().held);
    assert!(later > until);
    bench.say('c', 'a', token.term(), Word::Beaten { life: 1, number: number + 1 });
    assert_eq!(bench.at('a').lease().unwrap().1, later, "a heartbeat that was never sent");
    bench.say('c', 'a', token.term(), Word::Beaten { life: 9, number });
    assert_eq!(bench.at('a').counters().stale, 1, "an answer to another life");
    bench.now = later - MS;
    assert!(bench.leader().is_some());
    bench.now = later;
    assert_eq!(bench.leader(), None, "by the clock alone");
    bench.events('a');
    bench.say('b', 'a', token.term(), Word::Beaten { life: 1, number });
    let lost = Output::Lost { token, why: LossReason::LeaseExpired };
    assert_eq!(
        bench.events('a'),
        [lost, Output::Observed { token, leader: None }],
        "an answer that comes after its end is none"
    );
}

fn beat_number(bench: &Bench) -> u64 {
    let mut numbers = bench.wire.iter().filter_map(|(_, _, frame)| match frame.word {
        Word::Beat { number } => Some(number),
        _ => None,
    });
    numbers.next_back().unwrap()
}

/// A bench on which `a` leads.
fn elected(locals: &str) -> Bench {
    let mut bench = Bench::of(locals);
    bench.handle('a', Input::Stand);
    bench.run(ms(2_000));
    assert_eq!(bench.leader().unwrap().0, name('a'));
    bench.out.clear();
    bench
}

#[test]
fn a_leader_that_hears_no_majority_steps_down_and_one_that_does_stays() {
    let mut bench = elected("abcde");
    let cut =
        |from: &NodeName, to: &NodeName| ![from, to].into_iter().any(|end| *end == name('d') || *end == name('e'));
    bench.run_with(ms(30_000), cut);
    assert!(bench.leader().is_some(), "three of five");
    let cut = |from: &NodeName, to: &NodeName| [from, to].into_iter().all(|end| *end == name('a') || *end == name('b'));
    bench.run_with(ms(1_500), cut);
    assert_eq!(bench.leader(), None, "two of five");
    let lost = |(_, output): &(NodeName, Output)| matches!(output, Output::Lost { why: LossReason::LeaseExpired, .. });
    assert_eq!(bench.out.iter().filter(|event| lost(event)).count(), 1);
}

#[test]
fn a_minority_elects_nobody_however_long_it_tries() {
    let mut bench = Bench::of("abcde");
    bench.handle('a', Input::Stand);
    bench.handle('b', Input::Stand);
    let cut = |from: &NodeName, to: &NodeName| [from, to].into_iter().all(|end| *end == name('a') || *end == name('b'));
    bench.run_with(ms(600_000), cut);
    assert_eq!(bench.leader(), None);
    assert_eq!((bench.term('a'), bench.term('b')), (0, 0), "nor does it raise the term that it comes back with");
}

/// It sees one of four others. Without asking first, it would come back with a later term again and again.
#[test]
fn a_voter_that_sees_a_minority_does_not_depose_a_leader() {
    let mut bench = Bench::of("abcde");
    for local in "abcde".chars() {
        bench.handle(local, Input::Stand);
    }
    bench.run(ms(5_000));
    let (leader, token) = bench.leader().unwrap();
    let half = names("abcde").into_iter().find(|name| *name != leader).unwrap();
    let friend = names("abcde").into_iter().find(|name| *name != leader && *name != half).unwrap();
    let cut = |from: &NodeName, to: &NodeName| (*from != half && *to != half) || (*from == friend || *to == friend);
    bench.out.clear();
    bench.run_with(ms(120_000), cut);
    bench.run(ms(60_000));
    assert_eq!(bench.leader(), Some((leader, token)));
    assert_eq!(bench.out.iter().filter(|(_, output)| matches!(output, Output::Lost { .. })).count(), 0);
}

#[test]
fn a_restarted_voter_sits_out_what_it_may_have_promised() {
    let mut bench = Bench::of("abc");
    bench.say('b', 'a', 1, Word::Beat { number: 1 });
    bench.start('a', 2, voters("abc")).unwrap();
    assert_eq!(bench.term('a'), 1, "its term is on disk");
    bench.now += params().promised - MS;
    assert_eq!(bench.say('c', 'a', 2, stand()), []);
    assert_eq!(
        bench.say('b', 'a', 1, Word::Beat { number: 2 }),
        [Word::Beaten { life: 1, number: 2 }],
        "it follows a leader"
    );
    bench.start('a', 3, voters("abc")).unwrap();
    bench.now += params().promised;
    assert_eq!(bench.say('c', 'a', 2, stand()), yes(1));
    // One that never voted has promised nothing.
    let mut bench = Bench::of("abc");
    assert_eq!(bench.say('c', 'a', 1, stand()), yes(1));
}

#[test]
fn a_restart_neither_lowers_the_term_nor_forgets_the_vote() {
    let mut bench = Bench::of("abc");
    assert_eq!(bench.say('b', 'a', 7, stand()), yes(1));
    bench.start('a', 2, voters("abc")).unwrap();
    bench.now += params().promised;
    assert_eq!(bench.say('c', 'a', 7, stand()), no(1));
    assert_eq!(bench.say('b', 'a', 7, stand()), yes(1));
    assert_eq!(bench.term('a'), 7);
}

#[test]
fn a_handover_waits_for_no_lease_and_overlaps_with_none() {
    let mut bench = Bench::of("abc");
    for local in "abc".chars() {
        bench.handle(local, Input::Stand);
    }
    bench.run(ms(5_000));
    let (leader, token) = bench.leader().unwrap();
    let to = names("abc").into_iter().find(|name| *name != leader).unwrap();
    let local = leader.local().chars().next().unwrap();
    bench.out.clear();
    bench.handle(local, Input::Transfer { to: to.clone() });
    assert_eq!(bench.leader(), None, "it stops claiming before it says so");
    bench.run(Duration::ZERO);
    let (next, greater) = bench.leader().unwrap();
    assert_eq!(next, to);
    assert!(greater > token);
    let lost = Output::Lost { token, why: LossReason::Transferred };
    assert_eq!(bench.events(local).first(), Some(&lost));
}

#[test]
fn only_the_leader_that_was_promised_to_releases_a_voter() {
    let release = |leader, term| Word::Stand { release: Some(Release { leader: name(leader), term }) };
    for (leader, term, is_released) in [('b', 1, true), ('c', 1, false), ('b', 0, false), ('b', 2, false)] {
        let mut bench = Bench::of("abc");
        bench.say('b', 'a', 1, Word::Beat { number: 1 });
        let answer = bench.say('c', 'a', 2, release(leader, term));
        assert_eq!(answer, if is_released { yes(1) } else { vec![] }, "{leader} {term}");
    }
    let mut bench = Bench::of("abc");
    bench.say('b', 'a', 1, Word::Beat { number: 1 });
    bench.start('a', 2, voters("abc")).unwrap();
    assert_eq!(bench.say('c', 'a', 2, release('b', 1)), [], "what was forgotten is not released");
}

#[test]
fn a_handover_to_nobody_who_could_take_it() {
    let mut bench = elected("abc");
    bench.handle('a', Input::Transfer { to: name('x') });
    bench.handle('a', Input::Transfer { to: name('a') });
    assert!(bench.leader().is_some(), "nothing happened");
    bench.handle('a', Input::Transfer { to: name('b') });
    bench.run(ms(8_000));
    assert_eq!(bench.leader().unwrap().0, name('a'), "b does not stand: after a while the old one is elected again");
    assert!(bench.term('a') >= 2);
}

#[test]
fn who_resigns_holds_nobody_to_a_promise() {
    let mut bench = Bench::of("abc");
    for local in "abc".chars() {
        bench.handle(local, Input::Stand);
    }
    bench.run(ms(5_000));
    let (leader, token) = bench.leader().unwrap();
    let local = leader.local().chars().next().unwrap();
    bench.out.clear();
    bench.handle(local, Input::Resign);
    let gone = Output::Observed { token, leader: None };
    assert_eq!(bench.events(local), [Output::Lost { token, why: LossReason::Resigned }, gone.clone()]);
    bench.run(ms(700));
    let (next, _) = bench.leader().expect("sooner than any promise would have ended");
    assert_ne!(next, leader);
    assert!(bench.out.iter().any(|(_, output)| *output == gone), "the others learn of it");
    bench.run(ms(60_000));
    assert_eq!(bench.leader().unwrap().0, next, "it does not stand again");
}

/// Membership may be wrong: its word is a reason to look, and no more.
#[test]
fn a_verdict_of_membership_is_a_hint() {
    let mut bench = elected("abc");
    bench.handle('b', Input::Stand);
    bench.run(ms(1));
    // The leader's last heartbeat is a while ago.
    bench.run_with(ms(600), |from, _| *from != name('a'));
    let usual = bench.at('b').poll_timeout().unwrap();
    bench.handle('b', Input::Gone { name: name('c') });
    assert_eq!(bench.at('b').poll_timeout(), Some(usual), "it was not the leader");
    bench.handle('b', Input::Gone { name: name('a') });
    let soon = bench.at('b').poll_timeout().unwrap();
    let promised = bench.at('b').promise.as_ref().unwrap().until;
    assert!(promised <= soon && soon <= usual && soon <= promised + LEASE / 4, "{promised:?} {soon:?} {usual:?}");
    bench.now = soon;
    bench.timeout('b');
    assert_eq!(bench.term('b'), 1, "it asks first");
    // Whoever hears the leader says no.
    bench.say('a', 'c', 1, Word::Beat { number: 1_000 });
    let round = bench.at('b').round;
    let asked = bench.say('b', 'c', 1, Word::Canvass { round });
    assert_eq!(asked, [Word::Canvassed { life: 1, round, is_for: false }]);
}

#[test]
fn a_longer_wait_is_no_veto() {
    let mut bench = Bench::new();
    let late = Params { handicap: LEASE, ..params() };
    for (local, params) in [('a', late.clone()), ('b', params()), ('c', params())] {
        bench.start_with(local, 1, voters("abc"), params).unwrap();
        bench.handle(local, Input::Stand);
    }
    bench.run(ms(5_000));
    assert_ne!(bench.leader().unwrap().0, name('a'), "the others were first");
    bench.nodes.retain(|(id, _)| *id.name() != name('b'));
    bench.run(ms(10_000));
    let only = bench.leader().unwrap().0;
    bench.start_with('b', 2, voters("abc"), params()).unwrap();
    bench.nodes.retain(|(id, _)| *id.name() != name('c'));
    bench.run(ms(10_000));
    // Of a and b, b does not stand in this life: a is elected, handicap or not.
    assert!(bench.leader().is_some_and(|(leader, _)| leader == name('a')), "{only} led before");
}

#[test]
fn words_of_strangers_and_of_other_sets_move_nothing() {
    let mut bench = Bench::of("abc");
    assert_eq!(bench.say('x', 'a', 5, stand()), []);
    assert_eq!(bench.say('x', 'a', 5, Word::Beat { number: 1 }), []);
    assert_eq!(bench.at('a').counters().strangers, 2);
    let own = bench.at('a').fixed.ballot;
    for other in [
        Ballot { digest: own.digest + 1, ..own },
        Ballot { version: 0, ..own },
        Ballot { version: 2, ..own },
        Ballot { generation: 1, ..own },
    ] {
        assert_eq!(bench.say_with(NodeId::new(name('b'), 1), 'a', other, 5, stand()), [], "{other:?}");
    }
    assert_eq!(bench.at('a').counters().other_ballot, 4);
    assert_eq!(bench.term('a'), 0);
    assert_eq!(bench.say('a', 'a', 5, stand()), [], "its own name from elsewhere");
    assert_eq!(bench.say('b', 'a', 5, stand()), yes(1));
}

#[test]
fn a_term_that_nobody_can_have_reached_is_refused() {
    let mut bench = Bench::of("abc");
    assert_eq!(bench.say('b', 'a', JUMP_MAX + 1, stand()), []);
    assert_eq!(bench.say('b', 'a', JUMP_MAX + 1, Word::Beat { number: 1 }), []);
    assert_eq!((bench.term('a'), bench.at('a').counters().absurd), (0, 2));
    assert_eq!(bench.say('b', 'a', JUMP_MAX, stand()), yes(1));
    // At the end of all terms nobody stands, and nothing overflows.
    bench.at('a').vote.term = NUMBER_MAX;
    bench.handle('a', Input::Stand);
    bench.run(ms(60_000));
    assert_eq!(bench.leader(), None);
    bench.say('b', 'a', u64::MAX, Word::Beat { number: 1 });
    assert_eq!(bench.term('a'), NUMBER_MAX);
}

#[test]
fn a_leader_of_the_past_learns_that_it_is_one() {
    let mut bench = elected("abc");
    let (_, token) = bench.leader().unwrap();
    let number = 1;
    bench.say('b', 'a', token.term() + 1, Word::Beaten { life: 1, number });
    let lost = Output::Lost { token, why: LossReason::Deposed };
    assert_eq!(bench.events('a').first(), Some(&lost));
    assert_eq!(bench.term('a'), token.term() + 1);
}

#[test]
fn a_later_version_retires_a_voter_once_it_has_a_leader() {
    let later = || Voters::new(2, names("abcd"), None, None).unwrap();
    let mut bench = Bench::of("abc");
    let from = |local| NodeId::new(name(local), 1);
    bench.say_with(from('b'), 'a', later().ballot(), 9, stand());
    assert_eq!(bench.say('c', 'a', 1, stand()), yes(1), "that others stand under it is nothing yet");
    bench.say_with(from('d'), 'a', later().ballot(), 9, Word::Beat { number: 1 });
    let token = Token::new(0, 2, 9);
    assert_eq!(bench.at('a').observed(), Some(&(token, Some(name('d')))));
    assert_eq!(bench.say('c', 'a', 2, stand()), yes(1), "a stranger's word retires nobody");
    bench.say_with(from('b'), 'a', later().ballot(), 9, Word::Leads { token, leader: Some(name('d')) });
    assert_eq!(bench.say('c', 'a', 3, stand()), [], "a voter's word does");
    assert_eq!(bench.say('c', 'a', 3, Word::Beat { number: 1 }), []);
    let again = bench.start('a', 2, voters("abc"));
    assert_eq!(again, Err(VotersError::Older { version: 1, stored: 2 }), "nor does it vote after a restart");
    bench.start('a', 3, later()).unwrap();
}

#[test]
fn who_comes_with_an_older_version_is_told_of_the_leader() {
    let later = || Voters::new(2, names("abcd"), None, None).unwrap();
    let mut bench = Bench::new();
    for local in "abd".chars() {
        bench.start(local, 1, later()).unwrap();
    }
    bench.start('c', 1, voters("abc")).unwrap();
    bench.handle('c', Input::Stand);
    bench.run(ms(5_000));
    assert_eq!(bench.at('c').observed(), None, "there is no leader yet");
    bench.handle('a', Input::Stand);
    bench.run(ms(5_000));
    let (_, token) = bench.leader().unwrap();
    assert_eq!(bench.at('c').observed(), Some(&(token, Some(name('a')))));
    assert!(bench.at('c').is_retired);
}

/// Versions may be skipped, but not a leader in between.
#[test]
fn a_set_follows_one_that_has_had_a_leader() {
    let mut bench = elected("abc");
    let next = |version, locals: &str, previous: &str| {
        Voters::new(version, names(locals), Some(names(previous)), None).unwrap()
    };
    bench.start('a', 2, next(2, "abd", "abc")).unwrap();
    let apart = Err(VotersError::Apart { version: 3, stored: 1 });
    assert_eq!(bench.start('a', 3, next(3, "ade", "abd")), apart, "nobody has led in version 2");
    bench.start('a', 4, next(2, "abd", "abc")).unwrap();
    bench.start('b', 2, next(2, "abd", "abc")).unwrap();
    bench.start('d', 1, next(2, "abd", "abc")).unwrap();
    bench.nodes.retain(|(id, _)| *id.name() != name('c'));
    bench.handle('d', Input::Stand);
    bench.run(ms(10_000));
    assert_eq!(bench.leader().unwrap().1.version(), 2);
    bench.start('a', 5, next(3, "ade", "abd")).unwrap();
}

#[test]
fn an_observer_never_goes_back() {
    let mut bench = Bench::new();
    bench.start('o', 1, voters("abc")).unwrap();
    let leads = |version, term, leader: Option<char>| Word::Leads {
        token: Token::new(0, version, term),
        leader: leader.map(name),
    };
    let mut told = |from, version, term, leader| {
        bench.say(from, 'o', 0, leads(version, term, leader));
        bench.at('o').observed().map(|(token, leader)| (token.term(), leader.clone()))
    };
    assert_eq!(told('a', 1, 5, Some('b')), Some((5, Some(name('b')))));
    assert_eq!(told('c', 1, 4, Some('c')), Some((5, Some(name('b')))), "older news");
    assert_eq!(told('x', 1, 6, Some('c')), Some((5, Some(name('b')))), "of a stranger");
    assert_eq!(told('a', 1, 6, Some('x')), Some((5, Some(name('b')))), "about one");
    assert_eq!(told('a', 1, 6 + JUMP_MAX, Some('c')), Some((5, Some(name('b')))), "absurd");
    assert_eq!(told('a', 1, 5, None), Some((5, None)), "it has stopped");
    assert_eq!(told('c', 1, 5, Some('b')), Some((5, None)), "and does not begin again");
    assert_eq!(told('c', 1, 7, Some('a')), Some((7, Some(name('a')))));
    assert_eq!(told('c', 0, 9, Some('a')), Some((7, Some(name('a')))), "of an older version");
    assert_eq!(told('x', 2, 1, Some('a')), Some((7, Some(name('a')))));
    assert_eq!(told('x', 2, 1, Some('x')), Some((1, Some(name('x')))), "a leader of later voters speaks for itself");
    assert_eq!(bench.events('o').len(), 4);
}

fn diskless(locals: &str) -> Voters {
    Voters::new(1, names(locals), None, Some(1)).unwrap()
}

fn diskless_bench(locals: &str) -> Bench {
    let mut bench = Bench::new();
    for local in locals.chars() {
        bench.start(local, 1, diskless(locals)).unwrap();
    }
    bench
}

#[test]
fn without_disks_all_begin_together_and_one_that_forgot_asks_a_majority_of_others() {
    let mut bench = diskless_bench("abc");
    bench.run_with(ms(10_000), |from, to| *from != name('c') && *to != name('c'));
    assert!(bench.at('a').recovery.is_some(), "not before all are there");
    bench.run(ms(5_000));
    assert!(bench.nodes.iter().all(|(_, election)| election.recovery.is_none()));
    assert_eq!(bench.term('a'), 3, "the sum of their lives");
    bench.handle('b', Input::Stand);
    bench.run(ms(10_000));
    let (_, token) = bench.leader().unwrap();
    assert_eq!(token, Token::new(1, 1, 4));
    assert!(bench.disks.is_empty());
    // One restarts. It hears one of two others, which is not enough, then both.
    bench.start('a', 2, diskless("abc")).unwrap();
    let lives = vec![0; 3];
    bench.run_with(ms(10_000), |from, to| ![from, to].contains(&&name('a')) || [from, to].contains(&&name('b')));
    assert!(bench.at('a').recovery.is_some());
    let now = bench.now;
    assert_eq!(bench.say_as(NodeId::new(name('c'), 1), 'a', 9, stand()), [], "it does not vote");
    assert_eq!(bench.say_as(NodeId::new(name('c'), 1), 'a', 9, Word::Beat { number: 1 }), [], "nor answer");
    bench.say_as(NodeId::new(name('c'), 1), 'a', 9, Word::Recovered { life: 1, has_begun: true, lives });
    assert!(bench.at('a').recovery.is_some(), "an answer to an earlier life");
    assert_eq!(now, bench.now);
    bench.run(ms(1_000));
    assert!(bench.at('a').recovery.is_none());
    assert_eq!((bench.term('a'), bench.leader().unwrap().1), (4, token));
    assert_eq!(bench.at('c').lives, [2, 1, 1]);
}

#[test]
fn what_was_recovered_is_voted_on_no_more() {
    let mut bench = diskless_bench("abc");
    bench.run(ms(5_000));
    let term = bench.term('a');
    bench.start('a', 2, diskless("abc")).unwrap();
    bench.run(ms(5_000));
    let lives = vec![2, 1, 1];
    let answer = |is_for| vec![Word::Voted { life: 1, is_for, lives: lives.clone() }];
    assert_eq!(bench.say('b', 'a', term, stand()), answer(false), "it may have voted");
    assert_eq!(bench.say('b', 'a', term + 1, stand()), answer(true));
}

#[test]
fn a_vote_of_a_life_that_is_over_does_not_count() {
    let mut bench = diskless_bench("abcde");
    bench.run(ms(5_000));
    bench.handle('e', Input::Stand);
    bench.now += ms(2_000);
    bench.timeout('e');
    bench.timeout('e');
    let round = bench.at('e').round;
    for other in ['a', 'b'] {
        let term = bench.term('e');
        bench.say(other, 'e', term, Word::Canvassed { life: 1, round, is_for: true });
    }
    let term = bench.term('e');
    let voted = |lives: [u64; 5]| Word::Voted { life: 1, is_for: true, lives: lives.into() };
    bench.say('a', 'e', term, voted([1; 5]));
    assert!(!bench.at('e').is_elected(), "two of five");
    bench.say('b', 'e', term, voted([2, 1, 1, 1, 1]));
    assert!(!bench.at('e').is_elected(), "b knows that the a which voted is gone");
    bench.say('c', 'e', term, voted([1; 5]));
    assert!(bench.at('e').is_elected(), "e, b and c");
    bench.say('c', 'e', term, Word::Voted { life: 1, is_for: true, lives: vec![1] });
    assert_eq!(bench.at('e').counters().malformed, 0, "a leader needs no votes");
}

/// What a peer says cannot break a voter, whatever it is.
#[test]
fn no_word_breaks_a_voter() {
    let mut rng = fastrand::Rng::with_seed(5);
    for voters in [voters("abc"), diskless("abc")] {
        let mut bench = Bench::new();
        for local in "abco".chars() {
            bench.start(local, 1, voters.clone()).unwrap();
            bench.handle(local, Input::Stand);
        }
        for _ in 0..20_000 {
            let number = |rng: &mut fastrand::Rng| match rng.u8(..4) {
                0 => rng.u64(..4),
                1 => rng.u64(..),
                2 => NUMBER_MAX - rng.u64(..2),
                _ => rng.u64(..200),
            };
            let lives = (0..rng.usize(..5)).map(|_| number(&mut rng)).collect();
            let (life, count, is_for) = (rng.u64(..3), number(&mut rng), rng.bool());
            let who = name(rng.choice(*b"abcox").map(char::from).unwrap());
            let word = match rng.u8(..14) {
                0 => Word::Canvass { round: count },
                1 => Word::Canvassed { life, round: count, is_for },
                2 => stand(),
                3 => Word::Stand { release: Some(Release { leader: who, term: count }) },
                4 => Word::Voted { life, is_for, lives },
                5 => Word::Beat { number: count },
                6 => Word::Beaten { life, number: count },
                7 => Word::TakeOver,
                8 => Word::Resigned,
                9 => Word::Ask,
                10 => Word::Leads { token: Token::new(rng.u64(..3), rng.u64(..3), count), leader: Some(who) },
                11 => Word::Recover,
                12 => Word::Recovered { life, has_begun: is_for, lives },
                _ => Word::Blank { life },
            };
            let (from, to) =
                (rng.choice(*b"abcox").map(char::from).unwrap(), rng.choice(*b"abco").map(char::from).unwrap());
            let mut ballot = voters.ballot();
            ballot.version += u64::from(rng.u8(..20) == 0);
            let (from, term) = (NodeId::new(name(from), rng.u64(..3)), number(&mut rng));
            bench.say_with(from, to, ballot, term, word);
            bench.now += ms(rng.u64(..30));
            for local in "abco".chars() {
                if bench.at(local).poll_timeout().is_some_and(|due| due <= bench.now) {
                    bench.timeout(local);
                }
            }
        }
    }
}

#[test]
fn a_fence_refuses_what_is_over() {
    let token = |version, term| Token::new(0, version, term);
    let mut fence = Fence::default();
    assert_eq!((fence.admit(token(1, 5)), fence.admit(token(1, 5))), (Ok(()), Ok(())));
    let refused = Fenced { token: token(1, 4), highest: token(1, 5) };
    assert_eq!(fence.admit(token(1, 4)), Err(refused));
    assert_eq!(fence.highest(), Some(token(1, 5)));
    assert_eq!(fence.admit(token(2, 1)), Ok(()), "a later version");
    assert!(fence.admit(token(1, 9)).is_err());
    assert!(Fence::starting_at(token(2, 2)).admit(token(2, 1)).is_err());
}
