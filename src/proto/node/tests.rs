//! Each way from one machine to the other. What the machines do by themselves is tested beside them.

use super::*;
use crate::proto::founding::Plan;
use crate::proto::membership::{Lifeguard, MemberState};
use crate::proto::{registry, replication};
use crate::wire::membership::{Introduction, Life, Swim};

const PATH: Path = Path { rtt: Duration::from_millis(1), datagram_max: 1162 };

/// A node under test, and the moment.
struct Side {
    node: Node,
    now: Instant,
}

#[test]
fn a_node_is_its_own_first_member() {
    let mut side = side();
    let outputs = side.drain();
    let [Output::Service(services::Output::Ready), Output::Event(MemberEvent::Joined(own))] = &outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(own.id, life("a@h:1", 1));
}

/// The session is told first, then its link, then the member that came with it, and only then what it is sent.
#[test]
fn a_link_that_serves_makes_a_member() {
    let mut side = side();
    side.drain();
    let link = side.greeted("b@h:1", 7);
    let outputs = side.handle(Input::Ready { link, path: PATH });
    // The services say something of their own to the new peer.
    let outputs: Vec<_> = outputs.into_iter().filter(|output| !matches!(output, Output::Service(_))).collect();
    let [up, active, joined, sent @ ..] = &outputs[..] else { panic!("{outputs:?}") };
    assert!(matches!(up, Output::Link(links::Output::SessionUp { .. })), "{up:?}");
    assert!(matches!(active, Output::Link(links::Output::Activate { .. })), "{active:?}");
    assert!(
        matches!(joined, Output::Event(MemberEvent::Joined(member)) if member.id == life("b@h:1", 7)),
        "{joined:?}"
    );
    assert!(matches!(sent, [Output::Send { to, .. }] if *to == life("b@h:1", 7)), "{sent:?}");
    assert_eq!(side.node.membership().last_heard(&name("b@h:1")), Some(side.now));
}

#[test]
fn a_session_without_a_link_is_a_peer_without_one() {
    let mut side = side();
    let link = side.up("b@h:1", 7);
    side.handle(Input::Stopping { link });
    assert!(side.node.membership().last_heard(&name("b@h:1")).is_some(), "what it still sends is heard");
    side.handle(Input::Closed { link, code: Some(Code::IDLE) });
    assert_eq!(side.node.membership().last_heard(&name("b@h:1")), None);
    assert_eq!(side.state("b@h:1"), Some(MemberState::Alive));
}

/// Of two links one is left, so nothing is told.
#[test]
fn a_peer_with_another_link_is_linked() {
    let mut side = side();
    let first = side.up("b@h:1", 7);
    let second = side.greeted("b@h:1", 7);
    side.handle(Input::Ready { link: second, path: PATH });
    side.handle(Input::Closed { link: first, code: Some(Code::DUPLICATE_LINK) });
    assert!(side.node.membership().last_heard(&name("b@h:1")).is_some());
}

#[test]
fn how_a_session_ends_says_something_of_the_member_or_nothing() {
    for (code, state, is_asked) in [
        (Some(Code::SHUTDOWN), MemberState::Left, false),
        (Some(Code::NORMAL), MemberState::Alive, false),
        (Some(Code::STALE_LINK), MemberState::Alive, true),
        (Some(Code::LIMIT), MemberState::Alive, false),
        (Some(Code::LOST), MemberState::Alive, true),
        (Some(Code::PROTOCOL), MemberState::Alive, true),
        (None, MemberState::Alive, true),
    ] {
        let mut side = side();
        let link = side.up("b@h:1", 7);
        let outputs = side.handle(Input::Closed { link, code });
        assert!(matches!(outputs[0], Output::Link(links::Output::SessionEnded { .. })), "{outputs:?}");
        assert_eq!(dials(&outputs).len(), usize::from(is_asked), "{code:?}: {outputs:?}");
        assert_eq!(side.state("b@h:1"), Some(state), "{code:?}");
    }
}

/// The member whose link broke is asked by a dial; when that fails, others are asked at once.
#[test]
fn a_dial_that_fails_is_told() {
    let mut side = side();
    side.up("c@h:1", 7);
    let link = side.up("b@h:1", 7);
    let dialled = side.handle(Input::Closed { link, code: None });
    let [link] = dials(&dialled)[..] else { panic!("{dialled:?}") };
    let outputs = side.handle(Input::Closed { link, code: None });
    let is_gave_up = |output: &Output| matches!(output, Output::Link(links::Output::GaveUp { .. }));
    let is_asked = |output: &Output| matches!(output, Output::Send { to, .. } if *to == life("c@h:1", 7));
    assert!(is_gave_up(&outputs[0]) && outputs[1..].iter().any(is_asked), "{outputs:?}");
}

/// Its session ends first: whoever acts on the death finds none.
#[test]
fn the_session_of_a_member_that_died_ends() {
    let mut side = side();
    let link = side.up("b@h:1", 7);
    let outputs = side.until(|output| matches!(output, Output::Event(MemberEvent::Died { .. })));
    let [.., close, ended, died] = &outputs[..] else { panic!("{outputs:?}") };
    assert!(matches!(close, Output::Link(links::Output::Close { link: closed, .. }) if *closed == link), "{close:?}");
    let is_dead = matches!(ended, Output::Link(links::Output::SessionEnded { reason: DownReason::Dead, .. }));
    assert!(is_dead, "{ended:?}");
    assert!(
        matches!(died, Output::Event(MemberEvent::Died { member, .. }) if member.id == life("b@h:1", 7)),
        "{died:?}"
    );
    assert_eq!(side.node.membership().last_heard(&name("b@h:1")), None);
}

/// C tells of a later life of B, and B has not answered for a while.
#[test]
fn the_session_of_a_life_that_was_replaced_ends() {
    let mut side = side();
    side.up("b@h:1", 7);
    side.up("c@h:1", 7);
    side.now += Duration::from_secs(3);
    let outputs = side.introduce("c@h:1", &life("b@h:1", 9), Life::Alive);
    let [.., ended, replaced] = &outputs[..] else { panic!("{outputs:?}") };
    let is_over = matches!(ended, Output::Link(links::Output::SessionEnded { reason: DownReason::Superseded, .. }));
    assert!(is_over, "{ended:?}");
    assert!(
        matches!(replaced, Output::Event(MemberEvent::Replaced { old, .. }) if *old == life("b@h:1", 7)),
        "{replaced:?}"
    );
}

#[test]
fn a_new_incarnation_is_one_for_membership_too() {
    let mut side = side();
    side.up("b@h:1", 7);
    let outputs = side.handle(Input::ToldStale { known: 4 });
    let is_replaced = |output: &Output| matches!(output, Output::Event(MemberEvent::Replaced { old, member }) if *old == life("a@h:1", 1) && member.id == life("a@h:1", 5));
    assert!(outputs.iter().any(is_replaced), "{outputs:?}");
    assert_eq!(side.node.membership().last_heard(&name("b@h:1")), None, "no session outlives it");
}

#[test]
fn a_later_life_of_this_node_is_told() {
    let mut side = side();
    side.up("b@h:1", 7);
    let outputs = side.introduce("b@h:1", &life("a@h:1", 2), Life::Alive);
    assert!(matches!(&outputs[..], [Output::Superseded { by }] if *by == life("a@h:1", 2)), "{outputs:?}");
}

/// Of B nobody here has heard but by C.
#[test]
fn who_greets_is_judged_by_what_membership_knows() {
    let mut side = side();
    side.up("c@h:1", 7);
    side.introduce("c@h:1", &life("b@h:1", 9), Life::Alive);
    let link = side.node.accepted();
    let outputs = side.greet(link, "b@h:1", 8);
    let is_asked = |output: &Output| matches!(output, Output::Link(links::Output::Check { old, link: None, .. }) if *old == life("b@h:1", 9));
    assert!(outputs.iter().any(is_asked), "{outputs:?}");

    side.introduce("c@h:1", &life("b@h:1", 9), Life::Left);
    let link = side.node.accepted();
    let outputs = side.greet(link, "b@h:1", 8);
    let is_stale = |output: &Output| matches!(output, Output::Link(links::Output::Refuse { refusal, .. }) if refusal.code == Code::STALE_INCARNATION && refusal.reason == 9u64.to_be_bytes());
    assert!(outputs.iter().any(is_stale), "{outputs:?}");
}

/// Its answers are lost, but its application is heard.
#[test]
fn a_member_whose_application_is_heard_is_not_suspected() {
    for is_heard in [false, true] {
        let mut side = side();
        side.up("b@h:1", 7);
        let end = side.now + Duration::from_secs(20);
        let mut was_suspected = false;
        while side.now < end {
            side.now = side.node.poll_timeout().expect("membership always has something to do").max(side.now);
            if is_heard {
                for peer in side.node.judged(side.now) {
                    side.handle(Input::Heard { peer, at: side.now });
                }
            }
            let outputs = side.timeout();
            was_suspected |=
                outputs.iter().any(|output| matches!(output, Output::Event(MemberEvent::Suspected { .. })));
        }
        assert_eq!(was_suspected, !is_heard);
    }
}

#[test]
fn a_goodbye_is_sent_before_it_is_said_to_be() {
    let mut side = side();
    side.up("b@h:1", 7);
    let outputs = side.handle(Input::Leave);
    let sent = outputs.iter().position(|output| matches!(output, Output::Send { .. }));
    assert!(sent.is_some(), "{outputs:?}");
    assert!(matches!(outputs.last(), Some(Output::GoodbyeSaid)), "{outputs:?}");
}

#[test]
fn what_users_ask_of_membership_arrives_there() {
    let mut side = side();
    side.up("b@h:1", 7);
    let outputs = side.handle(Input::SetMetadata { metadata: Bytes::from_static(b"m") });
    let is_told =
        |output: &Output| matches!(output, Output::Event(MemberEvent::Updated(own)) if own.metadata[..] == *b"m");
    assert!(outputs.iter().any(is_told), "{outputs:?}");
    let outputs = side.handle(Input::Publish { topic: "t".to_owned(), body: Bytes::from_static(b"f") });
    assert!(matches!(&outputs[..], [Output::Fact { from, .. }] if *from == life("a@h:1", 1)), "{outputs:?}");
}

/// In the order in which it happened, whatever membership makes of it.
#[test]
fn services_hear_of_a_session_from_its_beginning_to_its_end() {
    let mut side = side();
    let b = life("b@h:1", 7);
    let link = side.greeted("b@h:1", 7);
    assert!(side.told().is_empty(), "nobody is there yet");
    side.handle(Input::Ready { link, path: PATH });
    assert_eq!(side.told(), ["session up b@h:1/7", "linked b@h:1/7", "live b@h:1/7"]);
    side.handle(Input::Stopping { link });
    side.handle(Input::Closed { link, code: Some(Code::IDLE) });
    assert_eq!(side.told(), ["idle b@h:1/7"]);
    let link = side.greeted("b@h:1", 7);
    side.handle(Input::Ready { link, path: PATH });
    assert_eq!(side.told(), ["linked b@h:1/7"]);
    side.handle(Input::Closed { link, code: Some(Code::PROTOCOL) });
    assert_eq!(side.told(), ["session down b@h:1/7 Protocol"]);
    assert!(side.node.membership().member(b.name()).is_some(), "a session is not a life");
}

#[test]
fn services_hear_of_dials_that_came_to_nothing() {
    let mut side = side();
    side.drain();
    let outputs = side.handle(Input::Want { peer: name("b@h:1"), urgent: true });
    let [link] = dials(&outputs)[..] else { panic!("{outputs:?}") };
    side.handle(Input::Closed { link, code: None });
    assert_eq!(side.told(), ["dial failed b@h:1"]);
}

/// Its session is over by then, and the event comes last: whoever acts on it finds no names of the dead.
#[test]
fn services_hear_of_a_death_before_anybody_else() {
    let mut side = side();
    side.up("b@h:1", 7);
    side.told();
    let outputs = side.until(|output| matches!(output, Output::Event(MemberEvent::Died { .. })));
    let told = side.told_at();
    let ended = outputs.len() - 2;
    let is_end = matches!(&outputs[ended], Output::Link(links::Output::SessionEnded { .. }));
    assert!(is_end, "{outputs:?}");
    let last: Vec<_> = told.iter().map(|(_, told)| told.as_str()).collect();
    assert_eq!(last, ["session down b@h:1/7 Dead", "gone b@h:1/7 Died"]);
    // Of the outputs since the last drain, which ended with the death.
    let before = |at: usize| told[at].0;
    assert_eq!(before(0), before(1), "nothing is done between the end and the death but what the services do");

    let link = side.greeted("b@h:1", 7);
    side.handle(Input::Ready { link, path: PATH });
    let told = side.told();
    assert_eq!(told[..2], ["session up b@h:1/7", "linked b@h:1/7"], "{told:?}");
}

#[test]
fn services_hear_of_members_that_nobody_here_has_met() {
    let mut side = side();
    side.up("c@h:1", 7);
    side.told();
    side.introduce("c@h:1", &life("b@h:1", 7), Life::Alive);
    assert_eq!(side.told(), ["live b@h:1/7"]);
    side.now += Duration::from_secs(3);
    side.introduce("c@h:1", &life("b@h:1", 9), Life::Alive);
    assert_eq!(side.told(), ["gone b@h:1/7 Replaced", "live b@h:1/9"]);
    side.introduce("c@h:1", &life("b@h:1", 9), Life::Left);
    assert_eq!(side.told(), ["gone b@h:1/9 Left"]);
    // The dead, and those who left, are remembered for ten minutes.
    side.until_within(
        Duration::from_secs(660),
        |output| matches!(output, Output::Event(MemberEvent::Forgotten(node)) if *node == life("b@h:1", 9)),
    );
    let told = side.told();
    assert_eq!(told.iter().filter(|told| told.contains("b@h:1")).collect::<Vec<_>>(), ["gone b@h:1/9 Forgotten"]);
}

#[test]
fn the_session_of_a_life_that_was_replaced_ends_before_services_hear_of_it() {
    let mut side = side();
    side.up("b@h:1", 7);
    side.up("c@h:1", 7);
    side.told();
    side.now += Duration::from_secs(3);
    side.introduce("c@h:1", &life("b@h:1", 9), Life::Alive);
    let told = side.told();
    assert_eq!(told, ["session down b@h:1/7 Superseded", "gone b@h:1/7 Replaced", "live b@h:1/9"]);
}

/// It is told of its new life, and of no death of its own.
#[test]
fn services_hear_of_a_new_incarnation() {
    let mut side = side();
    assert!(side.told().is_empty(), "a node is no news to itself");
    side.up("b@h:1", 7);
    side.told();
    side.handle(Input::ToldStale { known: 4 });
    let told = side.told();
    assert_eq!(told, ["session down b@h:1/7 Renewed", "renewed a@h:1/5"]);
}

impl Side {
    /// What the services were told since they were asked last, each with the number of outputs before it.
    fn told_at(&mut self) -> Vec<(usize, String)> {
        let of = |input| match input {
            services::Input::SessionUp { peer } => format!("session up {}", short(&peer)),
            services::Input::Linked { peer } => format!("linked {}", short(&peer)),
            services::Input::Idle { peer } => format!("idle {}", short(&peer)),
            services::Input::SessionDown { peer, reason } => format!("session down {} {reason:?}", short(&peer)),
            services::Input::DialFailed { peer } => format!("dial failed {peer}"),
            services::Input::Live { node } => format!("live {}", short(&node)),
            services::Input::Gone { node, how } => format!("gone {} {how:?}", short(&node)),
            services::Input::Renewed { id } => format!("renewed {}", short(&id)),
            other => panic!("{other:?} is none of links and members"),
        };
        std::mem::take(&mut self.node.told).into_iter().map(|(at, input)| (at, of(input))).collect()
    }

    fn told(&mut self) -> Vec<String> {
        self.told_at().into_iter().map(|(_, told)| told).collect()
    }

    fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.node.poll_output()).collect()
    }

    fn handle(&mut self, input: Input) -> Vec<Output> {
        self.node.handle(input, self.now);
        self.drain()
    }

    fn timeout(&mut self) -> Vec<Output> {
        self.node.handle_timeout(self.now);
        self.drain()
    }

    /// Lets time pass until this is done, and returns all that was done with it.
    fn until(&mut self, is_done: impl Fn(&Output) -> bool) -> Vec<Output> {
        self.until_within(Duration::from_secs(60), is_done)
    }

    fn until_within(&mut self, patience: Duration, is_done: impl Fn(&Output) -> bool) -> Vec<Output> {
        let end = self.now + patience;
        loop {
            self.now = self.node.poll_timeout().expect("membership always has something to do").max(self.now);
            assert!(self.now < end, "it does not happen");
            let mut outputs = self.timeout();
            if let Some(at) = outputs.iter().position(&is_done) {
                outputs.truncate(at + 1);
                return outputs;
            }
        }
    }

    fn greet(&mut self, link: LinkId, who: &str, incarnation: u64) -> Vec<Output> {
        let peer = Box::new(Peer {
            id: life(who, incarnation),
            fingerprint: [incarnation as u8; 32],
            certificate: [1; 32],
            greeting: super::super::hello::Greeting { known_incarnation: 1, ended: 0, seen_ended: 0 },
            addresses: vec![],
            flags: NodeFlags::default(),
            message_max: 1,
            first_credit: 1,
            lanes_max: 1,
        });
        self.handle(Input::Greeted { link, role: Role::Responder, peer })
    }

    /// A link that waits for READY.
    fn greeted(&mut self, who: &str, incarnation: u64) -> LinkId {
        let link = self.node.accepted();
        let outputs = self.greet(link, who, incarnation);
        let is_accepted = matches!(outputs.last(), Some(Output::Link(links::Output::Accept { .. })));
        assert!(is_accepted, "{outputs:?}");
        link
    }

    /// A link that serves.
    fn up(&mut self, who: &str, incarnation: u64) -> LinkId {
        let link = self.greeted(who, incarnation);
        self.handle(Input::Ready { link, path: PATH });
        link
    }

    /// One member tells of another.
    fn introduce(&mut self, teller: &str, id: &NodeId, life: Life) -> Vec<Output> {
        let introduction = Introduction {
            id: id.clone(),
            life,
            refutation: 0,
            profile: 0,
            flags: NodeFlags::default(),
            addresses: vec![],
            metadata: Bytes::new(),
        };
        let mut packet = Vec::new();
        Swim::Introduce(introduction).put(&mut packet);
        let from = self::life(teller, 7);
        self.handle(Input::Packet { from, way: Way::Stream, path: PATH, packet: packet.into() })
    }

    fn state(&self, who: &str) -> Option<MemberState> {
        self.node.membership().member(&name(who)).map(|member| member.state)
    }
}

fn short(id: &NodeId) -> String {
    format!("{}/{}", id.name(), id.incarnation())
}

fn dials(outputs: &[Output]) -> Vec<LinkId> {
    let dial = |output: &Output| match output {
        Output::Link(links::Output::Dial { link, .. }) => Some(*link),
        _ => None,
    };
    outputs.iter().filter_map(dial).collect()
}

fn side() -> Side {
    let second = Duration::from_secs(1);
    let params = Params {
        probe_interval: second,
        probe_timeout: second / 2,
        dial_allowance: second,
        probe_helpers: 3,
        score_max: 7,
        suspicion_mult: 4,
        suspicion_max_mult: 6,
        suspicion_accusers: 2,
        retransmit_mult: 4,
        gossip_interval: second / 5,
        gossip_fanout: 3,
        gossip_to_dead: 30 * second,
        sync_interval: 30 * second,
        reconnect_interval: 10 * second,
        dead_kept: 600 * second,
        flap_deaths: 3,
        flap_window: 600 * second,
        hold_down: 60 * second,
        hold_down_max: 3600 * second,
        kept_links: 3,
        members_max: 100,
        facts_max: 256,
        lifeguard: Lifeguard { probe: true, suspicion: true, buddy: true },
        doubts_sudden_death: true,
    };
    let limits = Limits { backoff_min: second / 10, backoff_max: 5 * second, peers_max: 10, remembered_max: 100 };
    let id = life("a@h:1", 1);
    let setup =
        Setup { id, fingerprint: [1; 32], limits, profile: Profile::default(), params, services: services(), seed: 1 };
    // Any moment: only what is between two of them counts.
    let now = Instant::now();
    Side { node: Node::new(setup, now), now }
}

fn name(text: &str) -> NodeName {
    NodeName::parse(text).expect("a name")
}

fn life(text: &str, incarnation: u64) -> NodeId {
    NodeId::new(name(text), incarnation)
}

/// Of a node that founds its cluster.
fn services() -> services::Setup {
    let second = Duration::from_secs(1);
    services::Setup {
        scopes: Vec::new(),
        plan: Plan::Found,
        settle: second,
        registry: registry::Params {
            rule: registry::Rule::Oldest,
            rules: Default::default(),
            patience: second,
            barrier: 2 * second,
            grant_kept: 10 * second,
            names_max: 100,
            claims_max: 100,
            is_client: false,
        },
        replication: replication::Limits {
            owner_max: 100,
            total_max: 1000,
            tombstones_max: 10,
            window: 64 * 1024,
            sync_interval: second,
        },
        watches_max: 100,
    }
}
