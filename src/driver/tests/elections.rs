//! An election, and what comes from nodes that have no say in it, or say what cannot be.

use bytes::Bytes;

use super::fake::Joined;
use super::*;
use crate::driver::leaders::ElectionCounters;
use crate::election::{Election, Leadership, Voters};
use crate::proto::election::Voters as Declared;
use crate::wire::services::Service;
use crate::wire::services::election::{Ballot, Election as Frame, NUMBER_MAX, Token, Word};
use crate::wire::{StreamKind, put_packet};

const VOTERS: [&str; 3] = ["a@10.0.0.1:4370", "b@10.0.0.2:4370", "x@10.0.0.3:4370"];

/// Of these voters, with these times.
fn ballot(version: u64, voters: &[&str], config: &Config) -> Ballot {
    let names = voters.iter().map(|voter| NodeName::parse(voter).unwrap()).collect();
    let voters = Declared::new(version, names, None, Some(1)).unwrap();
    voters.timed(config.election_lease, config.election_drift).ballot()
}

fn word(ballot: Ballot, term: u64, word: Word) -> Frame {
    Frame { name: "chair".into(), ballot, term, word }
}

/// Sends these in one packet, on a stream, so that none is lost.
async fn say(joined: &Joined, frames: &[Frame]) {
    let mut packet = Vec::new();
    frames.iter().for_each(|frame| Service::Election(frame.clone()).encode(&mut packet));
    say_bytes(joined, &packet).await;
}

async fn say_bytes(joined: &Joined, packet: &[u8]) {
    let mut bytes = vec![StreamKind::Membership.to_byte()];
    put_packet(&mut bytes, packet);
    let stream = joined.open(&bytes).await;
    stream.finish();
}

/// What has been counted since.
async fn counted(election: &Election, until: impl Fn(&ElectionCounters) -> bool) -> ElectionCounters {
    timeout(secs(5), async {
        while !until(&election.counters()) {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{:?}", election.counters()));
    election.counters()
}

/// A is the leader of A, B and the attacker X, who is a voter; B only votes.
async fn led(world: &World) -> (Election, Leadership, Fake, Joined) {
    let voters = || Voters::new(1, VOTERS).diskless(1);
    // They begin together, with X, which is not there: the vote of A and B is enough, once all three have begun.
    let election = world.a.election("chair", voters()).await.unwrap();
    world.b.election("chair", voters()).await.unwrap();
    let x = world.member(VOTERS[2]);
    let (to_a, to_b) = (x.join(&world.a).await, x.join(&world.b).await);
    for to in [&to_a, &to_b] {
        let life = to.hello.incarnation;
        say(to, &[word(ballot(1, &VOTERS, &Config::default()), 0, Word::Blank { life })]).await;
    }
    let leadership = timeout(secs(30), election.campaign()).await.unwrap().unwrap();
    (election, leadership, x, to_a)
}

#[tokio::test(start_paused = true)]
async fn words_of_strangers_and_of_other_elections_change_nothing() {
    let world = World::with(quiet(Config::default())).await;
    let (election, leadership, _x, _joined) = led(&world).await;
    let (config, token) = (Config::default(), leadership.token());
    let stranger = world.member("s@10.0.0.9:4370");
    let joined = stranger.join(&world.a).await;
    let (own, term) = (ballot(1, &VOTERS, &config), token.term() + 1);
    let life = joined.hello.incarnation;
    let before = election.counters();
    let words = [
        Word::Stand { release: None },
        Word::Beat { number: 1 },
        Word::Voted { life, is_for: true, lives: vec![0; 3] },
        Word::Resigned,
        Word::TakeOver,
        Word::Leads { token: Token::new(1, 1, term), leader: Some(NodeName::parse(VOTERS[1]).unwrap()) },
    ];
    for word_of_stranger in words.clone() {
        say(&joined, &[word(own, term, word_of_stranger)]).await;
    }
    let after = counted(&election, |now| now.strangers >= before.strangers + words.len() as u64).await;
    assert_eq!(after.strangers, before.strangers + words.len() as u64);

    for name in ["another", "CHAIR"] {
        say(&joined, &[Frame { name: name.into(), ..word(own, term, Word::Beat { number: 1 }) }]).await;
    }
    assert_eq!(counted(&election, |now| now.unknown >= 2).await.unknown, 2);
    for packet in [&[0xb0, 200][..], &[0xb0, 1, 0], &[0xb0, 0]] {
        say_bytes(&joined, packet).await;
    }
    assert_eq!(counted(&election, |now| now.unreadable >= 3).await.unreadable, 3);
    assert!(leadership.is_current() && election.leader().is_some_and(|(now, _)| now == token));
    world.fabric.heal_all();
}

/// A voter that counts with others, or speaks of terms that cannot be, is not heard; and the term does not follow it.
#[tokio::test(start_paused = true)]
async fn words_of_voters_that_cannot_be_change_nothing() {
    let world = World::with(quiet(Config::default())).await;
    let (election, leadership, _x, joined) = led(&world).await;
    let (config, token) = (Config::default(), leadership.token());
    let own = ballot(1, &VOTERS, &config);
    let before = election.counters();
    for term in [token.term() + (1 << 33), NUMBER_MAX] {
        say(&joined, &[word(own, term, Word::Stand { release: None }), word(own, term, Word::Beat { number: 1 })])
            .await;
    }
    let after = counted(&election, |now| now.absurd >= before.absurd + 4).await;
    assert_eq!(after.absurd, before.absurd + 4);

    // Other voters, another version, other times.
    let other_times = Config { election_lease: config.election_lease * 2, ..config.clone() };
    let few = [VOTERS[0], VOTERS[2], "y@10.0.0.4:4370"];
    let others = [ballot(1, &few, &config), ballot(0, &VOTERS, &config), ballot(1, &VOTERS, &other_times)];
    for other in others {
        say(&joined, &[word(other, token.term() + 1, Word::Beat { number: 1 })]).await;
        say(&joined, &[word(other, token.term() + 1, Word::Stand { release: None })]).await;
    }
    let after = counted(&election, |now| now.other_voters >= before.other_voters + 6).await;
    assert_eq!(after.other_voters, before.other_voters + 6);
    sleep(secs(10)).await;
    assert!(leadership.is_current(), "{:?}", election.counters());
    assert_eq!(election.leader().map(|(now, _)| now), Some(token));
    drop(leadership);
    let next = timeout(secs(30), election.campaign()).await.unwrap().unwrap();
    assert!(next.token() > token && next.token().term() < token.term() + 20, "{} after {token}", next.token());
}

/// As many packets as fit the way: the election goes on, and so do the others.
#[tokio::test(start_paused = true)]
async fn a_flood_of_words_harms_nobody() {
    let world = World::with(quiet(Config::default())).await;
    let (election, leadership, _x, _joined) = led(&world).await;
    let stranger = world.member("s@10.0.0.9:4370");
    let joined = stranger.join(&world.a).await;
    let own = ballot(1, &VOTERS, &Config::default());
    let mut packet = Vec::new();
    for at in 0..20 {
        let frame = Frame { name: format!("e{at}").as_str().into(), ..word(own, 1, Word::Ask) };
        Service::Election(frame).encode(&mut packet);
    }
    let mut bytes = vec![StreamKind::Membership.to_byte()];
    (0..2000).for_each(|_| put_packet(&mut bytes, &packet));
    let mut stream = joined.open(&[]).await;
    stream.write(&bytes).await.unwrap();
    let packet = Bytes::from(packet);
    for _ in 0..2000 {
        let _ = joined.link.send_datagram_wait(packet.clone()).await;
    }
    counted(&election, |now| now.unknown >= 40_000).await;
    world.talk().await;
    assert!(leadership.is_current());
}
