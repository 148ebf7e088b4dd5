//! One node's part in giving out names, among peers who say whatever they like.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::wire::services::registry::{Pending, Spent};
use crate::wire::services::replication::{After, Binding};

fn node(name: &str) -> NodeId {
    NodeId::new(NodeName::parse(&format!("{name}@h:1")).unwrap(), 1)
}

fn pid(name: &str, serial: u64) -> Pid {
    Pid::new(node(name), serial)
}

fn token(name: &str, number: u64) -> Token {
    Token { node: node(name), number }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn bound(serial: u64, stamp: u64, after: Option<After>) -> State {
    State::Bound(std::sync::Arc::new(Binding { serial, stamp, after, tag: "".into(), metadata: Bytes::new() }))
}

/// The registry of `a`, an arbiter beside `b` and `c`. `d` and `e` only claim.
struct Alone {
    registry: Registry,
    now: Instant,
    /// Of the own log.
    version: u64,
    number: u64,
    done: Vec<(RequestId, Result<Granted, Refusal>)>,
    /// Its mailboxes that were told that they have a name no more.
    over: Vec<(Text, u64)>,
    /// Why what is to be seen of a name has changed, as it was told last.
    reason: Option<NameReason>,
}

impl Alone {
    fn new() -> Self {
        Self::with(Rule::Oldest)
    }

    fn with(rule: Rule) -> Self {
        let params = Params {
            rule,
            rules: Default::default(),
            patience: secs(1),
            barrier: secs(2),
            grant_kept: secs(10),
            names_max: 1_000,
            claims_max: 100_000,
            is_client: false,
        };
        let registry = Registry::new(node("a"), &["".into()], params, 1);
        let mut this = Self {
            registry,
            now: Instant::now(),
            version: 0,
            number: 0,
            done: Vec::new(),
            over: Vec::new(),
            reason: None,
        };
        for name in ["a", "b", "c", "d", "e"] {
            this.tell(Input::Live { node: node(name) });
            if name != "a" {
                this.tell(Input::Up { peer: node(name) });
            }
        }
        this.tell(Input::Ready { is_founder: true });
        for name in ["a", "b", "c"] {
            this.tell(Input::Arbiter { scope: "".into(), node: node(name), is: true });
        }
        this
    }

    /// What it sends.
    fn tell(&mut self, input: Input) -> Vec<(NodeId, Frame)> {
        self.registry.handle(input, self.now);
        self.sent()
    }

    fn sent(&mut self) -> Vec<(NodeId, Frame)> {
        let mut sent = Vec::new();
        while let Some(output) = self.registry.poll_output() {
            match output {
                Output::Send { to, frame } => sent.push((to, frame)),
                Output::Write { scope, name, state } => {
                    self.version += 1;
                    let written = Input::Written { scope, name, version: self.version, state };
                    self.registry.handle(written, self.now);
                }
                Output::Done { id, outcome } => self.done.push((id, outcome)),
                Output::Over { name, serial, .. } => self.over.push((name, serial)),
                Output::Named { reason, .. } => self.reason = Some(reason),
                _ => {}
            }
        }
        sent
    }

    fn pass(&mut self, time: Duration) -> Vec<(NodeId, Frame)> {
        self.now += time;
        self.registry.handle_timeout(self.now);
        self.sent()
    }

    fn changed(&mut self, name: &str, owner: &str, version: u64, state: State) -> Vec<(NodeId, Frame)> {
        let (scope, owner, state) = ("".into(), node(owner), Some(state));
        self.tell(Input::Changed { scope, name: name.into(), owner, version, state, why: Why::Written })
    }

    fn ask(&mut self, from: &str, request: Request) -> Vec<(NodeId, Frame)> {
        let clock = self.registry.clock;
        self.ask_at(from, clock, request)
    }

    fn ask_at(&mut self, from: &str, clock: u64, request: Request) -> Vec<(NodeId, Frame)> {
        self.number += 1;
        self.tell(Input::Frame { from: node(from), frame: Frame::Request { number: self.number, clock, request } })
    }

    /// The answer to what a peer asks.
    fn answer(&mut self, from: &str, request: Request) -> Option<Answer> {
        let sent = self.ask(from, request);
        answers(sent).into_iter().find(|(to, _)| *to == node(from)).map(|(_, answer)| answer)
    }

    fn reply(&mut self, from: &str, number: u64, answer: Answer) -> Vec<(NodeId, Frame)> {
        let clock = self.registry.clock;
        self.tell(Input::Frame { from: node(from), frame: Frame::Answer { number, clock, answer } })
    }

    fn withdraw(&mut self, from: &str, token: Token) {
        let clock = self.registry.clock;
        let frame = Frame::Withdraw { scope: "".into(), name: "x".into(), token, clock };
        self.tell(Input::Frame { from: node(from), frame });
    }

    fn register(&mut self, name: &str, serial: u64, seconds: u64) -> (RequestId, Vec<(NodeId, Frame)>) {
        self.number += 1;
        let id = RequestId(self.number);
        let wish = Wish {
            scope: "".into(),
            name: name.into(),
            serial,
            tag: "".into(),
            metadata: Bytes::new(),
            replacing: None,
            deadline: self.now + secs(seconds),
        };
        let sent = self.tell(Input::Register { id, wish });
        (id, sent)
    }
}

fn answers(sent: Vec<(NodeId, Frame)>) -> Vec<(NodeId, Answer)> {
    let answers = sent.into_iter().filter_map(|(to, frame)| match frame {
        Frame::Answer { answer, .. } => Some((to, answer)),
        _ => None,
    });
    answers.collect()
}

fn requests(sent: Vec<(NodeId, Frame)>) -> Vec<(NodeId, u64, Request)> {
    let requests = sent.into_iter().filter_map(|(to, frame)| match frame {
        Frame::Request { number, request, .. } => Some((to, number, request)),
        _ => None,
    });
    requests.collect()
}

fn vote(name: &str, token: Token, serial: u64, stamp: u64, free: Option<After>) -> Request {
    Request::Vote { scope: "".into(), name: name.into(), token, serial, stamp, replacing: None, free, spent: None }
}

fn claim(claim: u64, serial: u64) -> Request {
    Request::Claim { scope: "".into(), name: "x".into(), claim, serial, replacing: None, has_voted: false }
}

/// A vote is taken back by the claimant or by who asked for it last, and by nobody else: not by another claimant, and not by
/// the coordinator before, whose word is late.
#[test]
fn only_who_asked_for_a_vote_takes_it_back() {
    let mut a = Alone::new();
    assert_eq!(a.answer("c", vote("x", token("d", 1), 7, 100, None)), Some(Answer::Yes));
    assert_eq!(a.answer("b", vote("x", token("d", 1), 7, 101, None)), Some(Answer::Yes));
    let no = Some(Answer::No { holder: pid("d", 7) });
    for stranger in ["e", "c"] {
        a.withdraw(stranger, token("d", 1));
        assert_eq!(a.answer("c", vote("x", token("e", 1), 8, 102, None)), no, "{stranger}");
    }
    a.withdraw("b", token("d", 1));
    assert_eq!(a.answer("c", vote("x", token("e", 1), 8, 103, None)), Some(Answer::Yes));
    a.withdraw("e", token("e", 1));
    assert_eq!(a.answer("b", vote("x", token("d", 2), 7, 104, None)), Some(Answer::Yes));
}

/// Nobody ends the round of another's claim.
#[test]
fn only_the_claimant_gives_its_claim_up() {
    let mut a = Alone::new();
    let sent = requests(a.ask("d", claim(1, 7)));
    let (voter, number, _) = sent.first().cloned().expect("it asks for votes");
    a.withdraw("e", token("d", 1));
    let granted = answers(a.reply(voter.name().as_str().split('@').next().unwrap(), number, Answer::Yes));
    assert!(matches!(&granted[..], [(to, Answer::Granted { .. })] if *to == node("d")), "{granted:?}");
}

/// A vote is kept for its time after it was last asked for.
#[test]
fn a_vote_that_is_asked_for_again_is_kept_longer() {
    let mut a = Alone::new();
    let request = vote("x", token("d", 1), 7, 100, None);
    assert_eq!(a.answer("b", request.clone()), Some(Answer::Yes));
    a.pass(secs(9));
    assert_eq!(a.answer("b", request), Some(Answer::Yes));
    let other = vote("x", token("e", 1), 8, 101, None);
    a.pass(secs(10) - Duration::from_nanos(1));
    assert_eq!(a.answer("b", other.clone()), Some(Answer::No { holder: pid("d", 7) }));
    a.pass(Duration::from_nanos(1));
    assert_eq!(a.answer("b", other), Some(Answer::Yes));
}

/// Timers are as many as what they are for, however often a peer asks.
#[test]
fn votes_leave_no_timers_behind() {
    let mut a = Alone::new();
    let before = a.registry.timers.len();
    for round in 0..100 {
        a.answer("b", vote("x", token("d", round), 7, 100, None));
        a.answer("b", vote("x", token("d", round), 7, 100, None));
        assert_eq!(a.registry.timers.len(), before + 1, "{round}");
        a.withdraw("d", token("d", round));
        assert_eq!(a.registry.timers.len(), before, "{round}");
    }
    a.answer("b", vote("x", token("d", 1000), 7, 100, None));
    a.changed("x", "d", 1, bound(7, 100, None));
    assert_eq!(a.registry.timers.len(), before, "the binding came");
}

/// A holder that was free of its name may have claimed it again since: that claim's vote stays.
#[test]
fn a_vote_for_a_claim_after_the_release_is_kept() {
    let mut a = Alone::new();
    assert_eq!(a.answer("b", vote("x", token("d", 2), 7, 100, None)), Some(Answer::Yes));
    let free = After { owner: node("d"), version: 5 };
    let request = |serial, time| match vote("x", token("e", 1), 8, 101, Some(free.clone())) {
        Request::Vote { scope, name, token, stamp, replacing, free, .. } => {
            let spent = Some(Spent { mailbox: pid("d", serial), time });
            Request::Vote { scope, name, token, serial: 8, stamp, replacing, free, spent }
        }
        other => other,
    };
    let no = Some(Answer::No { holder: pid("d", 7) });
    assert_eq!(a.answer("c", vote("x", token("e", 1), 8, 101, Some(free.clone()))), no);
    assert_eq!(a.answer("c", request(6, 100)), no, "that was another mailbox");
    assert_eq!(a.answer("c", request(7, 99)), no, "it claims the name since");
    assert_eq!(a.answer("c", request(7, 100)), Some(Answer::Yes));
}

/// Who said no hears from the coordinator what it has found out.
#[test]
fn other_arbiters_are_told_that_the_name_is_free() {
    let mut a = Alone::new();
    a.changed("x", "d", 1, bound(6, 10, None));
    let (_, number, _) = requests(a.ask("e", claim(1, 8))).first().cloned().expect("it asks the owner");
    let time = a.registry.clock;
    let votes = requests(a.reply("d", number, Answer::Free { version: 1 }));
    assert_eq!(votes.len(), 2);
    for (_, _, request) in votes {
        let Request::Vote { free, spent, .. } = request else { panic!("{request:?}") };
        assert_eq!(free, Some(After { owner: node("d"), version: 1 }));
        assert_eq!(spent, Some(Spent { mailbox: pid("d", 6), time }));
    }
}

/// Votes for a claim that fails are given back.
#[test]
fn a_round_that_fails_takes_its_votes_back() {
    let mut a = Alone::new();
    let votes = requests(a.ask("e", claim(1, 8)));
    let to_c = votes.iter().find(|(to, _, _)| *to == node("c")).expect("it asks c").1;
    let confirm = requests(a.reply("c", to_c, Answer::No { holder: pid("d", 6) }));
    let sent = a.reply("d", confirm[0].1, Answer::Holds);
    let withdrawn = sent.iter().filter(|(_, frame)| matches!(frame, Frame::Withdraw { .. })).map(|(to, _)| to.clone());
    assert_eq!(withdrawn.collect::<BTreeSet<_>>(), [node("b"), node("c")].into());
    assert_eq!(answers(sent), [(node("e"), Answer::Taken { owner: pid("d", 6), is_confirmed: true })]);
    assert_eq!(a.registry.votes, 0);
}

/// The claimant's own vote counts when it is an arbiter, and says that it has voted.
#[test]
fn the_claimants_vote_counts_if_it_has_one() {
    for (from, has_voted, is_granted) in [("b", true, true), ("b", false, false), ("d", true, false)] {
        let mut a = Alone::new();
        let (scope, name): (Text, Text) = ("".into(), "x".into());
        let request = Request::Claim { scope, name, claim: 1, serial: 7, replacing: None, has_voted };
        let answer = a.answer(from, request);
        assert_eq!(matches!(answer, Some(Answer::Granted { .. })), is_granted, "{from}, {has_voted}: {answer:?}");
    }
}

/// Whoever is gone claims nothing any more.
#[test]
fn a_vote_ends_with_its_claimants_node() {
    let mut a = Alone::new();
    assert_eq!(a.answer("b", vote("x", token("d", 1), 7, 100, None)), Some(Answer::Yes));
    a.tell(Input::Gone { node: node("d") });
    assert_eq!(a.answer("b", vote("x", token("e", 1), 8, 101, None)), Some(Answer::Yes));
}

/// A new arbiter decides on nothing, and votes for nothing, before all others have told it what they voted for.
#[test]
fn a_new_arbiter_waits_for_what_others_voted_for() {
    let mut a = Alone::new();
    a.tell(Input::Arbiter { scope: "".into(), node: node("a"), is: false });
    let holds = requests(a.tell(Input::Arbiter { scope: "".into(), node: node("a"), is: true }));
    assert_eq!(holds.len(), 2);
    assert_eq!(a.answer("b", vote("x", token("d", 1), 7, 100, None)), None, "it is not said yet");
    // Nor does it vote for a claim of its own.
    let claims = (0..20).flat_map(|n| requests(a.register(&format!("name/{n}"), 1, 10).1)).collect::<Vec<_>>();
    assert!(claims.iter().any(|(_, _, request)| matches!(request, Request::Claim { .. })));
    let voted = |request: &Request| matches!(request, Request::Claim { has_voted: true, .. });
    assert!(!claims.iter().any(|(_, _, request)| voted(request)));
    let number = |name| holds.iter().find(|(to, _, _)| *to == node(name)).expect("both are asked").1;
    let pending = vec![Pending { name: "x".into(), token: token("e", 1), serial: 8, stamp: 90 }];
    assert_eq!(answers(a.reply("b", number("b"), Answer::Held { pending })), []);
    let told = answers(a.reply("c", number("c"), Answer::Held { pending: Vec::new() }));
    assert!(told.contains(&(node("b"), Answer::No { holder: pid("e", 8) })), "{told:?}");
}

/// An arbiter tells a new one what it has voted for; from then on the new one counts.
#[test]
fn a_new_arbiter_is_told_what_was_voted_for() {
    let mut a = Alone::new();
    let holds = requests(a.tell(Input::Arbiter { scope: "".into(), node: node("c"), is: false }));
    a.reply("b", holds[0].1, Answer::Held { pending: Vec::new() });
    assert_eq!(a.answer("b", vote("x", token("d", 1), 7, 100, None)), Some(Answer::Yes));
    assert_eq!(a.answer("c", vote("y", token("d", 2), 7, 101, None)), Some(Answer::NotArbiter));
    let pending = vec![Pending { name: "x".into(), token: token("d", 1), serial: 7, stamp: 100 }];
    assert_eq!(a.answer("c", Request::Hold { scope: "".into() }), Some(Answer::Held { pending }));
    assert_eq!(a.answer("c", vote("y", token("d", 2), 7, 101, None)), Some(Answer::Yes));
}

/// The same at the coordinator: while it asked the old holder, it has voted for that node's next claim.
#[test]
fn a_coordinator_keeps_its_vote_for_a_claim_after_the_release() {
    let mut a = Alone::new();
    a.changed("x", "d", 1, bound(6, 10, None));
    let sent = requests(a.ask("e", claim(1, 8)));
    let Some((_, number, Request::Confirm { serial: 6, .. })) = sent.first().cloned() else { panic!("{sent:?}") };
    a.changed("x", "d", 2, State::Gone(Ended::Withdrawn));
    assert_eq!(a.answer("b", vote("x", token("d", 2), 7, 100, None)), Some(Answer::Yes));
    a.reply("d", number, Answer::Free { version: 2 });
    let kept = a.registry.scopes[""].names["x"].vote().map(|vote| vote.token.clone());
    assert_eq!(kept, Some(token("d", 2)));
}

/// Who is no arbiter asks for no votes, and tells nobody that a name is free.
#[test]
fn votes_are_for_arbiters() {
    let mut a = Alone::new();
    a.changed("x", "b", 1, bound(6, 10, None));
    let free = After { owner: node("b"), version: 1 << 60 };
    let answer = a.answer("d", vote("x", token("d", 1), 7, 100, Some(free)));
    assert_eq!(answer, Some(Answer::NotArbiter));
    a.changed("x", "e", 1, bound(6, 20, None));
    assert_eq!(a.registry.shown(&"".into(), &"x".into()), Some(pid("b", 6)));
}

/// That a name was confirmed to be free is remembered until its owner's log says so, and not for ever.
#[test]
fn nothing_is_left_of_a_name_that_was_released() {
    let mut a = Alone::new();
    for n in 0..RELEASES_KEPT as u64 + 100 {
        let name = format!("name/{n}");
        a.changed(&name, "d", 2 * n + 1, bound(6, 10 + n, None));
        let free = After { owner: node("d"), version: 2 * n + 2 };
        assert_eq!(a.answer("b", vote(&name, token("e", n), 8, 100 + n, Some(free))), Some(Answer::Yes));
        a.changed(&name, "d", 2 * n + 2, State::Gone(Ended::Withdrawn));
        let clock = a.registry.clock;
        let frame = Frame::Withdraw { scope: "".into(), name: name.as_str().into(), token: token("e", n), clock };
        a.tell(Input::Frame { from: node("e"), frame });
    }
    assert!(a.registry.scopes[""].names.len() <= RELEASES_KEPT, "{}", a.registry.scopes[""].names.len());
}

/// Nor of what peers say of nodes that have no binding.
#[test]
fn what_is_said_of_nodes_without_a_binding_is_not_kept() {
    let mut a = Alone::new();
    for n in 0..1_000 {
        let free = After { owner: NodeId::new(node("z").name().clone(), n), version: 9 };
        a.answer("b", vote("x", token("d", 1), 7, 100, Some(free)));
    }
    a.withdraw("d", token("d", 1));
    assert!(a.registry.scopes[""].names.is_empty(), "{:?}", a.registry.scopes[""].names.len());
}

/// A binding that its owner may have given up meanwhile is no grant: the others are asked, too.
#[test]
fn a_claim_by_the_holder_is_voted_on_like_any_other() {
    let mut a = Alone::new();
    a.changed("x", "d", 1, bound(7, 10, None));
    let sent = a.ask("d", claim(5, 7));
    assert_eq!(answers(sent.clone()), []);
    assert!(requests(sent).iter().any(|(_, _, request)| matches!(request, Request::Vote { .. })));
}

/// A rival that cannot be reached is asked for again by one timer, however often what is seen of the name changes.
#[test]
fn a_contest_has_one_timer() {
    let mut a = Alone::new();
    a.tell(Input::Down { peer: node("d") });
    a.registry.clock = 50;
    a.registry.write(&"".into(), &"x".into(), bound(1, 50, None), Then::Nothing);
    a.sent();
    for version in 1..100 {
        a.now += Duration::from_millis(1);
        a.changed("x", "d", version, bound(7, 10, None));
    }
    let count =
        |a: &Alone| a.registry.timers.iter().filter(|(_, timer)| matches!(timer, Timer::Contend { .. })).count();
    assert_eq!(count(&a), 1);
    a.pass(secs(1));
    assert_eq!(count(&a), 1, "and goes on");
    let asked = requests(a.tell(Input::Up { peer: node("d") }));
    let later = requests(a.pass(secs(1)));
    let contends = asked.into_iter().chain(later).filter(|(_, _, request)| matches!(request, Request::Contend { .. }));
    assert_eq!(contends.count(), 1);
}

/// A younger claim gives way in the view of its own node before it is lost. Taken away meanwhile, it is told so all the same;
/// with other metadata it goes on.
#[test]
fn a_claim_that_is_not_to_be_seen_is_told_that_it_is_over() {
    let mut a = Alone::new();
    let (scope, name): (Text, Text) = ("".into(), "x".into());
    a.registry.write(&scope, &name, bound(1, 50, None), Then::Nothing);
    a.sent();
    let sent = a.changed("x", "d", 1, bound(7, 10, None));
    assert!(requests(sent).iter().any(|(_, _, request)| matches!(request, Request::Contend { .. })));
    assert_eq!(a.registry.shown(&scope, &name), Some(pid("d", 7)));
    let (serial, version, metadata) = (1, a.version, "more".into());
    let update = Request::Update { scope: scope.clone(), name: name.clone(), serial, version, metadata };
    assert!(matches!(a.answer("e", update), Some(Answer::Updated { .. })));
    assert_eq!(a.over, []);
    let release = Request::Release { scope: scope.clone(), name: name.clone(), serial, successor: None };
    assert!(matches!(a.answer("e", release), Some(Answer::Released { .. })));
    assert_eq!(a.over, [(name, 1)]);
    assert_eq!(a.registry.shown(&scope, &"x".into()), Some(pid("d", 7)));
}

/// A claim that was granted after a release takes the place of what was released, and is a rival of what its owner has
/// claimed since: that is a conflict, and who loses it is told so.
#[test]
fn what_was_claimed_since_the_release_is_not_replaced_by_what_follows_it() {
    for (version, reason) in [(2, NameReason::Conflict), (3, NameReason::Replaced), (4, NameReason::Replaced)] {
        let mut a = Alone::new();
        a.changed("x", "d", 1, bound(1, 10, None));
        a.changed("x", "d", 2, State::Gone(Ended::Closed));
        a.changed("x", "d", 3, bound(2, 30, None));
        a.changed("x", "e", 1, bound(7, 20, Some(After { owner: node("d"), version })));
        assert_eq!(a.registry.shown(&"".into(), &"x".into()), Some(pid("e", 7)));
        assert_eq!(a.reason, Some(reason), "after version {version}");
    }
}

/// The owner coordinates its own replacement, and hands the name over; its answer comes too late. Asked again it says the
/// same again.
#[test]
fn an_owner_that_has_handed_over_says_so_again() {
    let mut a = Alone::new();
    let (scope, name): (Text, Text) = ("".into(), "x".into());
    a.registry.write(&scope, &name, bound(1, 50, None), Then::Nothing);
    a.sent();
    let after = After { owner: node("a"), version: a.version + 1 };
    for _ in 0..2 {
        let (scope, name, replacing) = (scope.clone(), name.clone(), Some(pid("a", 1)));
        let sent = a.ask("d", Request::Claim { scope, name, claim: 5, serial: 7, replacing, has_voted: false });
        let (_, number, _) =
            requests(sent).into_iter().find(|(to, _, _)| *to == node("b")).expect("b is asked to vote");
        let answer = answers(a.reply("b", number, Answer::Yes));
        assert_eq!(answer, [(node("d"), Answer::Granted { stamp: 50, after: Some(after.clone()) })]);
    }
}

/// Whose log says that it has handed the name to the claimant is not asked to: on a long way there is time for either.
#[test]
fn a_hand_over_that_is_known_is_not_asked_for() {
    for is_known in [false, true] {
        let mut a = Alone::new();
        let State::Bound(old) = bound(3, 50, None) else { unreachable!() };
        a.changed("x", "e", 1, State::Bound(old.clone()));
        if is_known {
            a.changed("x", "e", 2, State::Gone(Ended::Replaced { by: node("d"), old }));
        }
        let (scope, name, replacing) = ("".into(), "x".into(), Some(pid("e", 3)));
        let sent = a.ask("d", Request::Claim { scope, name, claim: 5, serial: 7, replacing, has_voted: false });
        let (_, number, _) =
            requests(sent).into_iter().find(|(to, _, _)| *to == node("b")).expect("b is asked to vote");
        let sent = a.reply("b", number, Answer::Yes);
        let is_asked = requests(sent.clone()).iter().any(|(_, _, request)| matches!(request, Request::Release { .. }));
        assert_eq!(is_asked, !is_known);
        let granted = Answer::Granted { stamp: 50, after: Some(After { owner: node("e"), version: 2 }) };
        assert_eq!(answers(sent), if is_known { vec![(node("d"), granted)] } else { vec![] });
    }
}

/// An answer that is none is like silence: the next arbiter is asked.
#[test]
fn a_claim_survives_an_answer_that_makes_no_sense() {
    let mut a = Alone::new();
    a.tell(Input::Arbiter { scope: "".into(), node: node("a"), is: false });
    let (id, sent) = a.register("x", 1, 10);
    let Some((first, number, Request::Claim { .. })) = requests(sent).first().cloned() else { panic!("no claim") };
    let name = if first == node("b") { "b" } else { "c" };
    let sent = requests(a.reply(name, number, Answer::Wins));
    let later = requests(a.pass(Duration::from_millis(100)));
    let next = sent.into_iter().chain(later).find(|(_, _, request)| matches!(request, Request::Claim { .. }));
    let (to, number, _) = next.expect("somebody else is asked");
    assert_ne!(to, first);
    let name = if to == node("b") { "b" } else { "c" };
    a.reply(name, number, Answer::Granted { stamp: 60, after: None });
    assert!(matches!(&a.done[..], [(done, Ok(Granted::Bound { .. }))] if *done == id), "{:?}", a.done);
}

/// A claim that is given up while it waits for the barrier is not decided when that ends.
#[test]
fn a_claim_that_waits_for_the_barrier_is_given_up() {
    let mut a = Alone::new();
    // It gains names by the loss of an arbiter; here it has all of them before, so it comes anew itself.
    a.tell(Input::Arbiter { scope: "".into(), node: node("a"), is: false });
    a.tell(Input::Arbiter { scope: "".into(), node: node("a"), is: true });
    a.ask("d", claim(1, 7));
    let (id, _) = a.register("y", 1, 1);
    a.withdraw("d", token("d", 1));
    a.tell(Input::GiveUp { id });
    let sent = a.pass(secs(2));
    assert_eq!(requests(sent), []);
    assert_eq!(a.registry.pending(), 0);
}

/// By a rule under which the newer claim may stand, nothing is decided before its binding is here.
#[test]
fn a_contender_that_has_not_shown_its_binding_waits() {
    for (rule, answer) in [
        (Rule::Oldest, Answer::Wins),
        (Rule::Newest, Answer::Contended),
        (Rule::Priority(vec![node("d").name().clone()]), Answer::Contended),
    ] {
        let mut a = Alone::with(rule.clone());
        a.registry.write(&"".into(), &"x".into(), bound(1, 50, None), Then::Nothing);
        a.sent();
        let (scope, name): (Text, Text) = ("".into(), "x".into());
        let request = Request::Contend { scope, name, serial: 1, contender: pid("d", 7), stamp: 60 };
        assert_eq!(a.answer("d", request.clone()), Some(answer.clone()), "{rule:?}");
        a.changed("x", "d", 1, bound(7, 60, None));
        let answer = a.answer("d", request);
        let yields = matches!(answer, Some(Answer::Yields { .. }));
        assert_eq!(yields, rule != Rule::Oldest, "{rule:?}: {answer:?}");
    }
}

/// Requests to owners leave no timers when they are answered.
#[test]
fn an_owner_that_answers_leaves_no_timer() {
    let mut a = Alone::new();
    a.changed("x", "d", 1, bound(7, 10, None));
    let before = a.registry.timers.len();
    for n in 0..10 {
        let (id, deadline) = (RequestId(1_000 + n), a.now + secs(3_600));
        let sent = a.tell(Input::Unregister { id, scope: "".into(), name: "x".into(), pid: pid("d", 7), deadline });
        let (_, number, _) = requests(sent).first().cloned().expect("it asks");
        a.reply("d", number, Answer::Released { version: 2, stamp: 10 });
    }
    assert_eq!((a.registry.timers.len(), a.done.len()), (before, 10));
}
