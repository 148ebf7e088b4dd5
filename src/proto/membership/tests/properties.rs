//! What holds for all orders of all inputs.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Something that is said of a member, or done.
#[derive(Clone, Debug)]
enum Step {
    Say { from: usize, frame: Swim },
    Link(NodeId),
    Unlink(NodeId, Unlinked),
    DialFailed(NodeId),
    Heard(NodeId),
    Metadata(u8),
    Pass(u64),
}

const PEERS: [&str; 3] = ["a", "b", "c"];

fn lives(names: &'static [&'static str], incarnations: u64) -> impl Strategy<Value = NodeId> {
    let life = (prop::sample::select(names), 1..=incarnations);
    life.prop_map(|(name, incarnation)| NodeId::new(id(name).name().clone(), incarnation))
}

fn life() -> impl Strategy<Value = Life> {
    prop::sample::select(&[Life::Alive, Life::Suspect, Life::Dead, Life::Left][..])
}

/// A profile says the same of the same version.
fn introductions(names: &'static [&'static str], incarnations: u64) -> impl Strategy<Value = Swim> {
    let parts = (lives(names, incarnations), life(), 0..4_u32, 0..3_u32);
    parts.prop_map(|(id, life, refutation, profile)| {
        let metadata = if profile == 0 { Bytes::new() } else { profile.to_string().into() };
        Swim::Introduce(Introduction { profile, metadata, ..introduction(id, life, refutation) })
    })
}

fn rumours(names: &'static [&'static str], incarnations: u64) -> impl Strategy<Value = Swim> {
    let parts = (lives(names, incarnations), life(), 0..4_u32, prop::sample::select(&PEERS[..]));
    parts.prop_map(|(id, life, refutation, accuser)| {
        let (subject, accuser) = (ShortId::of(&id), short(accuser));
        match life {
            Life::Alive => Swim::Alive { subject, refutation, profile: 0 },
            Life::Suspect => Swim::Suspect { subject, refutation, accuser },
            Life::Dead => Swim::Dead { subject, refutation, accuser },
            Life::Left => Swim::Left { subject, refutation },
        }
    })
}

fn steps() -> impl Strategy<Value = Step> {
    const NAMES: &[&str] = &["a", "b", "c", "m", "x", "y", "z"];
    let why = prop::sample::select(&[Unlinked::Idle, Unlinked::Left, Unlinked::Asked, Unlinked::Lost][..]);
    prop_oneof![
        6 => (0..3_usize, rumours(NAMES, 2)).prop_map(|(from, frame)| Step::Say { from, frame }),
        4 => (0..3_usize, introductions(NAMES, 3)).prop_map(|(from, frame)| Step::Say { from, frame }),
        2 => lives(NAMES, 3).prop_map(Step::Link),
        1 => (lives(NAMES, 3), why).prop_map(|(id, why)| Step::Unlink(id, why)),
        1 => lives(NAMES, 1).prop_map(Step::DialFailed),
        1 => lives(NAMES, 2).prop_map(Step::Heard),
        1 => any::<u8>().prop_map(Step::Metadata),
        2 => prop_oneof![0..1_000_u64, 0..9_000_u64, Just(700_000_u64)].prop_map(Step::Pass),
    ]
}

fn take(one: &mut One, step: Step) {
    match step {
        Step::Say { from, frame } => one.hear(PEERS[from], &[frame]),
        Step::Link(peer) => one.link(&peer),
        Step::Unlink(peer, why) => one.handle(Input::Unlinked { peer, why }),
        Step::DialFailed(peer) => one.handle(Input::DialFailed { peer: peer.name().clone() }),
        Step::Heard(peer) => {
            let at = one.now;
            one.handle(Input::Heard { peer, at });
        }
        Step::Metadata(byte) => one.handle(Input::SetMetadata { metadata: vec![byte].into() }),
        Step::Pass(time) => one.run(millis(time)),
    }
}

/// What a subscriber knows.
#[derive(Debug, Default)]
struct View(BTreeMap<NodeName, Member>);

impl View {
    /// Takes in an event, if it can follow on what is known.
    fn apply(&mut self, event: MemberEvent) {
        let (member, is_legal) = match event {
            MemberEvent::Forgotten(id) => {
                let old = self.0.remove(id.name()).unwrap();
                return assert!(old.id == id && !old.state.is_live(), "{old:?} is forgotten");
            }
            MemberEvent::Joined(member) => {
                let is_new = self
                    .0
                    .get(member.id.name())
                    .is_none_or(|old| !old.state.is_live() && old.id.incarnation() < member.id.incarnation());
                (member, is_new)
            }
            MemberEvent::Replaced { old, member } => {
                let known = &self.0[old.name()];
                let is_legal = known.id == old && known.state.is_live() && old.incarnation() < member.id.incarnation();
                (member, is_legal)
            }
            MemberEvent::Suspected { member, .. } => {
                let old = self.same_life(&member);
                let is_news = old.state == MemberState::Alive || old.refutation < member.refutation;
                let is_legal = old.state.is_live() && is_news && member.state == MemberState::Suspect;
                (member, is_legal)
            }
            MemberEvent::Cleared(member) => {
                let old = self.same_life(&member);
                let is_legal = old.state == MemberState::Suspect && old.refutation < member.refutation;
                (member.clone(), is_legal && member.state == MemberState::Alive)
            }
            MemberEvent::Died { member, .. } => {
                let is_legal = self.same_life(&member).state.is_live() && member.state == MemberState::Dead;
                (member, is_legal)
            }
            MemberEvent::Returned(member) => {
                let old = self.same_life(&member);
                let is_legal = !old.state.is_live() && old.refutation < member.refutation;
                (member.clone(), is_legal && member.state == MemberState::Alive)
            }
            MemberEvent::Left(member) => {
                let is_legal = self.same_life(&member).state != MemberState::Left && member.state == MemberState::Left;
                (member, is_legal)
            }
            MemberEvent::Updated(member) => {
                let old = self.same_life(&member);
                // Whoever has left can be told of as dead later: that its count has risen is what is new.
                let is_legal = old.state == member.state
                    || (old.state, member.state) == (MemberState::Left, MemberState::Dead)
                        && old.refutation < member.refutation;
                (member.clone(), is_legal && *old != member)
            }
        };
        let old = self.0.insert(member.id.name().clone(), member.clone());
        assert!(is_legal, "{member:?} follows {old:?}");
        assert!(
            old.is_none_or(|old| old.id.incarnation() < member.id.incarnation() || old.refutation <= member.refutation),
            "the refutation never falls"
        );
    }

    fn same_life(&self, member: &Member) -> &Member {
        let known = &self.0[member.id.name()];
        assert_eq!(known.id, member.id);
        known
    }
}

fn members(node: &Membership) -> BTreeMap<NodeName, Member> {
    node.members().map(|member| (member.id.name().clone(), member)).collect()
}

const HEARSAY: &[&str] = &["x", "y", "z"];

/// A node that knows three members from hearsay.
fn listener() -> One {
    let mut one = One::among(&PEERS);
    one.introduce("a", HEARSAY);
    one
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is said of members, in any order, and again: what stands in the end is the same. Merging is
    /// commutative, associative and idempotent.
    #[test]
    fn what_stands_does_not_depend_on_the_order(
        claims in vec(prop_oneof![rumours(HEARSAY, 1), introductions(HEARSAY, 2)], 1..12),
        tellers in vec(0..3_usize, 12),
        seed in any::<u64>(),
    ) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let claims: Vec<_> = claims.into_iter().zip(tellers).collect();
        let mut again = claims.clone();
        again.extend(claims.iter().filter(|_| rng.bool()).cloned());
        rng.shuffle(&mut again);
        let (mut one, mut other) = (listener(), listener());
        for (node, claims) in [(&mut one, &claims), (&mut other, &again)] {
            claims.iter().for_each(|(claim, from)| node.hear(PEERS[*from], std::slice::from_ref(claim)));
        }
        prop_assert_eq!(members(&one.node), members(&other.node));
        prop_assert_eq!(one.node.table.digest(), other.node.table.digest());
    }

    /// Each event can follow on those before; and who takes them in, from the first, knows what the node knows, at any
    /// time.
    #[test]
    fn events_tell_all(steps in vec(steps(), 1..50), doubts in any::<bool>()) {
        let mut params = params();
        params.members_max = 6;
        params.doubts_sudden_death = doubts;
        let mut one = One::with(params, Profile::default());
        let mut view = View::default();
        let now = one.now;
        one.outputs.clear();
        // With ticks.
        one.node = Membership::new(id("m"), Profile::default(), params, 7, now);
        one.settle();
        PEERS.iter().for_each(|name| one.link(&id(name)));
        for step in steps {
            take(&mut one, step.clone());
            one.events().into_iter().for_each(|event| view.apply(event));
            prop_assert_eq!(&view.0, &members(&one.node), "after {:?}", step);
            prop_assert!(one.node.member(id("m").name()).unwrap().state == MemberState::Alive);
            let live = one.node.members().filter(|member| member.state.is_live()).count();
            prop_assert_eq!(one.node.live(), live);
            one.outputs.clear();
        }
        hostile::assert_bounded(&one.node);
    }

    /// Two tables have the same digest if and only if the same members live in them, with the same refutations and
    /// profiles.
    #[test]
    fn digests_tell_live_members_apart(
        one in vec((introductions(HEARSAY, 2), rumours(HEARSAY, 1)), 0..4),
        other in vec((introductions(HEARSAY, 2), rumours(HEARSAY, 1)), 0..4),
    ) {
        let tables = [one, other].map(|claims| {
            let mut one = One::among(&PEERS);
            for (introduction, rumour) in claims {
                one.hear("a", &[introduction, rumour]);
            }
            one.node
        });
        let [one, other] = tables.each_ref().map(|node| {
            let live = node.table.iter().filter(|(_, record)| record.is_live());
            let mut live: Vec<_> = live
                .map(|(_, record)| (record.identity.id.clone(), record.refutation, record.identity.version))
                .collect();
            live.sort();
            live
        });
        prop_assert_eq!(one == other, tables[0].table.digest() == tables[1].table.digest());
        prop_assert_eq!(one == other, tables[0].table.digests(8) == tables[1].table.digests(8));
    }
}
