//! What one machine says to each input, and what two of them make of any order of events.

mod pairs;

use super::*;

/// A machine of the node `here`, and the moment.
struct One {
    machine: Monitors,
    now: Instant,
}

/// Many watch one mailbox: its node is asked once for all who are told at once, and once for each mailbox that is told in
/// band. One answer ends them all.
#[test]
fn a_node_asks_once_and_is_answered_once() {
    let mut one = One::new();
    let there = life("there", 1);
    assert_eq!(one.up(&there), []);
    assert_eq!(one.watch(1, &mailbox(&there, 7)), [ask(&there, 7, None), armed(&there, 1)]);
    assert_eq!(one.watch(2, &mailbox(&there, 7)), [armed(&there, 2)]);
    assert_eq!(one.watch_in_band(3, &mailbox(&there, 7), 30), [ask(&there, 7, Some(30)), armed(&there, 3)]);
    assert_eq!(one.watch_in_band(4, &mailbox(&there, 7), 30), [armed(&there, 4)]);
    assert_eq!(one.watch_in_band(5, &mailbox(&there, 7), 31), [ask(&there, 7, Some(31)), armed(&there, 5)]);
    assert_eq!(one.watch(6, &mailbox(&there, 8)), [ask(&there, 8, None), armed(&there, 6)]);
    let cut = |number| Some((there.clone(), number));
    assert_eq!(
        one.answer(&there, 7, Gone::Panicked, &[(30, 12), (31, 0)]),
        [
            notice(1, Fate::Panicked),
            notice(2, Fate::Panicked),
            Output::Notice { watch: WatchId(3), told: Fate::Panicked.into(), cut: cut(12) },
            Output::Notice { watch: WatchId(4), told: Fate::Panicked.into(), cut: cut(12) },
            Output::Notice { watch: WatchId(5), told: Fate::Panicked.into(), cut: cut(0) },
            armed(&there, 1),
        ]
    );
    assert_eq!(one.answer(&there, 7, Gone::Closed, &[(30, 13)]), [], "each is told once");
    assert_eq!(one.unwatch(6), [unask(&there, 8, None), armed(&there, 0)]);
    assert_eq!(one.machine.held(), 0);
}

/// Four watch; the first gives up before the end and the third after it.
#[test]
fn a_cancelled_watch_has_no_notice() {
    let mut one = One::new();
    let there = life("there", 1);
    one.up(&there);
    for watch in 1..=4 {
        one.watch(watch, &mailbox(&there, 7));
    }
    assert_eq!(one.unwatch(1), [armed(&there, 3)], "others are still to be told");
    assert_eq!(one.unwatch(1), [], "twice is once");
    assert_eq!(one.unwatch(99), [], "nor was there such a watch");
    let told = one.answer(&there, 7, Gone::Closed, &[]);
    assert_eq!(
        told,
        [2, 3, 4].map(|watch| notice(watch, Fate::Closed)).into_iter().chain([armed(&there, 0)]).collect::<Vec<_>>()
    );
    assert_eq!(one.unwatch(3), [], "it is over");
    assert_eq!(one.machine.held(), 0);
}

/// The last watch of a kind takes the question back, and that kind only.
#[test]
fn a_question_is_taken_back_with_its_last_watch() {
    let mut one = One::new();
    let there = life("there", 1);
    one.up(&there);
    one.watch(1, &mailbox(&there, 7));
    one.watch_in_band(2, &mailbox(&there, 7), 30);
    one.watch_in_band(3, &mailbox(&there, 7), 30);
    assert_eq!(one.unwatch(2), [armed(&there, 2)]);
    assert_eq!(one.unwatch(3), [unask(&there, 7, Some(30)), armed(&there, 1)]);
    assert_eq!(one.unwatch(1), [unask(&there, 7, None), armed(&there, 0)]);
    // It is asked anew.
    assert_eq!(one.watch(4, &mailbox(&there, 7)), [ask(&there, 7, None), armed(&there, 1)]);
}

/// The answer to the first question has no number for a mailbox that was asked for after it was on its way: the second
/// answer has it. That says there is no such mailbox, but it was closed.
#[test]
fn a_question_that_meets_an_answer_is_answered_too() {
    let mut one = One::new();
    let there = life("there", 1);
    one.up(&there);
    one.watch(1, &mailbox(&there, 7));
    one.watch_in_band(2, &mailbox(&there, 7), 30);
    assert_eq!(one.answer(&there, 7, Gone::Closed, &[]), [notice(1, Fate::Closed), armed(&there, 1)]);
    assert_eq!(one.watch(3, &mailbox(&there, 7)), [notice(3, Fate::Closed)], "it is known");
    let told = Output::Notice { watch: WatchId(2), told: Fate::Closed.into(), cut: Some((there.clone(), 5)) };
    assert_eq!(one.answer(&there, 7, Gone::NoSuchMailbox, &[(30, 5)]), [told, armed(&there, 0)]);
    assert_eq!(one.machine.held(), 0);
}

/// What is known of a mailbox is told, whatever becomes of the session before its last answer.
#[test]
fn a_known_end_is_told_though_the_session_is_lost() {
    let mut one = One::new();
    let there = life("there", 1);
    one.up(&there);
    one.watch_in_band(1, &mailbox(&there, 7), 30);
    assert_eq!(one.answer(&there, 7, Gone::Panicked, &[]), []);
    assert_eq!(one.down(&there, Fate::Disconnected), [notice(1, Fate::Panicked)]);
}

/// Each end of a session, for each kind of watch.
#[test]
fn a_session_ends_its_watches() {
    for why in [Fate::Disconnected, Fate::NodeLeft, Fate::NodeDown, Fate::Superseded] {
        let mut one = One::new();
        let (there, other) = (life("there", 1), life("other", 1));
        one.up(&there);
        one.up(&other);
        one.watch(1, &mailbox(&there, 7));
        one.watch_in_band(2, &mailbox(&there, 7), 30);
        one.watch(3, &Target::Node(there.clone()));
        one.watch_until_dead(4, &mailbox(&there, 7));
        one.watch_until_dead(5, &Target::Node(there.clone()));
        one.watch(6, &mailbox(&other, 7));
        let ended: &[u64] = if why == Fate::Disconnected { &[3, 1, 2] } else { &[3, 5, 1, 4, 2] };
        let notices: Vec<_> = ended.iter().map(|watch| notice(*watch, why)).collect();
        assert_eq!(one.down(&there, why), notices, "{why:?}");
        assert_eq!(one.down(&there, why), [], "{why:?}: it has no session any more");
        let waits = why == Fate::Disconnected;
        assert_eq!(one.machine.poll_timeout(), waits.then(|| one.now + REDIAL), "{why:?}");
    }
}

/// A watch until the end is certain outlives a session: its node is dialled again, not sooner than in a second, and asked
/// again in the next session.
#[test]
fn a_watch_until_dead_goes_on_in_the_next_session() {
    let mut one = One::new();
    let there = life("there", 1);
    one.live(&there);
    one.up(&there);
    one.watch_until_dead(1, &mailbox(&there, 7));
    one.handle(Input::Watch { watch: WatchId(2), target: mailbox(&there, 7), mailbox: Some(30), until_dead: true });
    assert_eq!(one.down(&there, Fate::Disconnected), []);
    let dial = Output::Dial { peer: there.name().clone() };
    assert_eq!(one.pass(REDIAL - Duration::from_millis(1)), []);
    assert_eq!(one.pass(Duration::from_millis(1)), std::slice::from_ref(&dial));
    assert_eq!(one.pass(REDIAL), [], "one dial at a time");
    assert_eq!(one.handle(Input::DialFailed { peer: there.name().clone() }), [], "membership holds it for live");
    assert_eq!(one.pass(REDIAL), [dial]);
    assert_eq!(one.up(&there), [ask(&there, 7, None), ask(&there, 7, Some(30)), armed(&there, 2)]);
    assert_eq!(
        one.answer(&there, 7, Gone::NoSuchMailbox, &[(30, 0)]),
        [
            notice(1, Fate::NoSuchMailbox),
            Output::Notice { watch: WatchId(2), told: Fate::NoSuchMailbox.into(), cut: Some((there.clone(), 0)) },
            armed(&there, 0),
        ]
    );
    assert_eq!(one.pass(REDIAL), []);
    assert_eq!(one.machine.poll_timeout(), None);
    assert_eq!(one.machine.held(), 0);
}

/// Nobody is dialled again for watches that are all over.
#[test]
fn nobody_is_dialled_in_vain() {
    let mut one = One::new();
    let there = life("there", 1);
    one.live(&there);
    one.up(&there);
    one.watch_until_dead(1, &mailbox(&there, 7));
    one.down(&there, Fate::Disconnected);
    assert_eq!(one.unwatch(1), [], "nobody is there to be told");
    assert_eq!(one.pass(REDIAL), []);
    assert_eq!(one.machine.poll_timeout(), None);
}

/// Without a session there is one dial for all; when it fails each is told what that means to it.
#[test]
fn a_node_that_cannot_be_reached_has_a_fate() {
    let mut one = One::new();
    let (stranger, member) = (life("stranger", 1), life("member", 1));
    one.live(&member);
    for (first, node) in [(10, &stranger), (20, &member)] {
        assert_eq!(one.watch(first, &mailbox(node, 7)), [Output::Dial { peer: node.name().clone() }]);
        assert_eq!(one.watch_until_dead(first + 1, &mailbox(node, 7)), []);
        assert_eq!(one.watch(first + 2, &Target::Node(node.clone())), []);
    }
    assert_eq!(
        one.handle(Input::DialFailed { peer: stranger.name().clone() }),
        [notice(12, Fate::Disconnected), notice(10, Fate::Disconnected), notice(11, Fate::NodeDown)]
    );
    assert_eq!(
        one.handle(Input::DialFailed { peer: member.name().clone() }),
        [notice(22, Fate::Disconnected), notice(20, Fate::Disconnected)]
    );
    // Until the members agree.
    assert_eq!(one.ended(&member, Fate::NodeDown), [notice(21, Fate::NodeDown)]);
    one.pass(REDIAL);
    assert_eq!(one.machine.held(), 0);
}

/// A dial of somebody else that fails is no news of a session that is there.
#[test]
fn a_failed_dial_leaves_a_session_alone() {
    let mut one = One::new();
    let there = life("there", 1);
    one.up(&there);
    one.watch(1, &mailbox(&there, 7));
    assert_eq!(one.handle(Input::DialFailed { peer: there.name().clone() }), []);
    assert_eq!(one.answer(&there, 7, Gone::Closed, &[]), [notice(1, Fate::Closed), armed(&there, 0)]);
}

/// A member that is over is not dialled: what became of it is known, until it is back.
#[test]
fn the_end_of_a_member_is_remembered() {
    for fate in [Fate::NodeDown, Fate::NodeLeft, Fate::Superseded] {
        let mut one = One::new();
        let there = life("there", 1);
        one.live(&there);
        one.watch_until_dead(1, &Target::Node(there.clone()));
        assert_eq!(one.ended(&there, fate), [notice(1, fate)]);
        assert_eq!(one.watch(2, &mailbox(&there, 7)), [notice(2, fate)]);
        assert_eq!(one.watch_until_dead(3, &Target::Node(there.clone())), [notice(3, fate)]);
        one.handle(Input::DialFailed { peer: there.name().clone() });
        one.live(&there);
        assert_eq!(one.watch(4, &mailbox(&there, 7)), [Output::Dial { peer: there.name().clone() }]);
    }
}

/// Of so many lives and no more.
#[test]
fn old_ends_are_forgotten() {
    let mut one = One::new();
    for n in 0..=ENDED_REMEMBERED as u64 {
        one.ended(&life(&format!("n{n}"), 1), Fate::NodeDown);
    }
    assert_eq!(one.watch(1, &mailbox(&life("n1", 1), 7)), [notice(1, Fate::NodeDown)]);
    let oldest = life("n0", 1);
    assert_eq!(one.watch(2, &mailbox(&oldest, 7)), [Output::Dial { peer: oldest.name().clone() }]);
    // It is told again and again, and remembered once.
    for _ in 0..2 * ENDED_REMEMBERED {
        one.ended(&life("n2", 1), Fate::NodeDown);
    }
    assert_eq!(one.machine.ended.order.len(), ENDED_REMEMBERED);
    assert_eq!(one.machine.ended.fates.len(), ENDED_REMEMBERED);
}

/// A member leaves while its last messages are on their way: who is told at once is told, and who is told in band when the
/// session has ended, whatever that is called then.
#[test]
fn who_leaves_is_heard_out() {
    let mut one = One::new();
    let there = life("there", 1);
    one.live(&there);
    one.up(&there);
    one.watch(1, &mailbox(&there, 7));
    one.watch_in_band(2, &mailbox(&there, 7), 30);
    assert_eq!(one.ended(&there, Fate::NodeLeft), [notice(1, Fate::NodeLeft), armed(&there, 1)]);
    assert_eq!(one.down(&there, Fate::Disconnected), [notice(2, Fate::NodeLeft)]);
    assert_eq!(one.machine.held(), 0);
}

/// An address of an earlier life means nobody. That is known from the session with the later one, from membership, or by
/// dialling.
#[test]
fn an_earlier_life_is_superseded() {
    let (old, new) = (life("there", 1), life("there", 2));
    for until_dead in [false, true] {
        let watch = |watch| Input::Watch { watch: WatchId(watch), target: mailbox(&old, 7), mailbox: None, until_dead };
        let mut one = One::new();
        assert_eq!(one.handle(watch(1)), [Output::Dial { peer: old.name().clone() }]);
        assert_eq!(one.up(&new), [notice(1, Fate::Superseded)]);
        assert_eq!(one.handle(watch(2)), [notice(2, Fate::Superseded)]);

        let mut one = One::new();
        one.handle(watch(1));
        assert_eq!(one.live(&new), [notice(1, Fate::Superseded)]);
        assert_eq!(one.handle(watch(2)), [notice(2, Fate::Superseded)]);
        assert_eq!(one.up(&new), []);
        assert_eq!(one.machine.held(), 0);
    }
}

/// There is still a session with an earlier life: the later one cannot be asked yet.
#[test]
fn a_later_life_waits_for_the_end_of_the_earlier() {
    let (old, new) = (life("there", 1), life("there", 2));
    let mut one = One::new();
    one.up(&old);
    assert_eq!(one.watch(1, &mailbox(&new, 7)), [notice(1, Fate::Disconnected)]);
    assert_eq!(one.watch_until_dead(2, &mailbox(&new, 7)), []);
    assert_eq!(one.down(&old, Fate::Superseded), []);
    assert_eq!(one.pass(REDIAL), [Output::Dial { peer: new.name().clone() }]);
    assert_eq!(one.up(&new), [ask(&new, 7, None), armed(&new, 1)]);
}

/// This node's own mailboxes are watched without a frame; so is its life, which ends when it goes on as another.
#[test]
fn a_node_watches_itself() {
    let mut one = One::new();
    let own = life("here", 5);
    assert_eq!(one.watch(1, &mailbox(&own, 7)), [Output::Track { serial: 7 }]);
    assert_eq!(one.watch_in_band(2, &mailbox(&own, 7), 30), []);
    assert_eq!(one.closed(7, Gone::Closed), [notice(1, Fate::Closed), notice(2, Fate::Closed)]);
    assert_eq!(one.closed(7, Gone::Closed), []);
    assert_eq!(one.watch(3, &mailbox(&own, 7)), [Output::Track { serial: 7 }]);
    assert_eq!(one.closed(7, Gone::NoSuchMailbox), [notice(3, Fate::NoSuchMailbox)]);

    assert_eq!(one.watch(4, &mailbox(&own, 8)), [Output::Track { serial: 8 }]);
    assert_eq!(one.unwatch(4), []);
    assert_eq!(one.machine.held(), 0);

    one.watch(5, &mailbox(&own, 9));
    one.watch(6, &Target::Node(own.clone()));
    let renewed = life("here", 6);
    assert_eq!(
        one.handle(Input::Renewed { id: renewed.clone() }),
        [notice(6, Fate::Superseded), notice(5, Fate::Superseded)]
    );
    assert_eq!(one.watch(7, &mailbox(&own, 9)), [notice(7, Fate::Superseded)]);
    assert_eq!(one.watch_until_dead(8, &Target::Node(life("here", 4))), [notice(8, Fate::Superseded)]);
    assert_eq!(one.watch(9, &mailbox(&renewed, 9)), [Output::Track { serial: 9 }]);
}

/// Two peers and this node watch one mailbox: it is tracked once, and each is told once, of whom it asked for.
#[test]
fn a_mailbox_that_is_gone_is_told_to_each_node_once() {
    let mut one = One::new();
    let (near, far) = (life("near", 1), life("far", 1));
    one.up(&near);
    one.up(&far);
    assert_eq!(one.asked(&near, 7, None), [Output::Track { serial: 7 }]);
    assert_eq!(one.asked(&near, 7, Some(40)), []);
    assert_eq!(one.asked(&near, 7, Some(41)), []);
    assert_eq!(one.asked(&near, 7, Some(41)), [], "twice is once");
    assert_eq!(one.asked(&far, 7, Some(40)), []);
    assert_eq!(one.watch(1, &mailbox(&life("here", 5), 7)), []);
    assert_eq!(one.unasked(&near, 7, Some(40)), []);
    let cut = |mailbox| Cut { mailbox, number: 0 };
    let down = |cuts| Frame::Down { serial: 7, gone: Gone::Closed, cuts };
    assert_eq!(
        one.closed(7, Gone::Closed),
        [
            Output::Send { to: far.clone(), frame: down(vec![cut(40)]) },
            notice(1, Fate::Closed),
            Output::Send { to: near.clone(), frame: down(vec![cut(41)]) },
        ]
    );
    assert_eq!(one.machine.held(), 0);
    // Asked too late, it is tracked again, and whoever tracks knows that there is none.
    assert_eq!(one.asked(&far, 7, None), [Output::Track { serial: 7 }]);
    let down = Frame::Down { serial: 7, gone: Gone::NoSuchMailbox, cuts: vec![] };
    assert_eq!(one.closed(7, Gone::NoSuchMailbox), [Output::Send { to: far, frame: down }]);
}

/// Why a mailbox failed is said before it is said to be gone, to each node once; here it is told with the notice.
#[test]
fn why_a_mailbox_failed_is_told() {
    let mut one = One::new();
    let far = life("far", 1);
    one.up(&far);
    one.asked(&far, 7, Some(40));
    one.watch(1, &mailbox(&life("here", 5), 7));
    let send = |frame| Output::Send { to: far.clone(), frame };
    assert_eq!(
        one.failed(7, "no paper"),
        [
            send(Frame::Failed { serial: 7, reason: "no paper".into() }),
            send(Frame::Down { serial: 7, gone: Gone::Closed, cuts: vec![Cut { mailbox: 40, number: 0 }] }),
            Output::Notice { watch: WatchId(1), told: failure("no paper"), cut: None },
        ]
    );
    assert_eq!(one.machine.held(), 0);

    // From the other side: of each watch, be it prompt or in band, and of those that come after the answer.
    one.watch(2, &mailbox(&far, 8));
    one.watch_in_band(3, &mailbox(&far, 8), 30);
    one.watch_in_band(4, &mailbox(&far, 8), 31);
    let failed = |serial, reason: &str| Frame::Failed { serial, reason: reason.into() };
    assert_eq!(one.hear(&far, failed(8, "no ink")), [], "it is not over yet");
    let told = |watch, cut: Option<u64>| Output::Notice {
        watch: WatchId(watch),
        told: failure("no ink"),
        cut: cut.map(|number| (far.clone(), number)),
    };
    assert_eq!(one.answer(&far, 8, Gone::Closed, &[(30, 5)]), [told(2, None), told(3, Some(5)), armed(&far, 1)]);
    assert_eq!(one.watch(5, &mailbox(&far, 8)), [told(5, None)]);
    assert_eq!(one.answer(&far, 8, Gone::NoSuchMailbox, &[(31, 5)]), [told(4, Some(5)), armed(&far, 0)]);
    assert_eq!(one.machine.held(), 0);
}

/// A reason that nobody asked for is not kept; one of a mailbox that was not closed says nothing.
#[test]
fn a_reason_without_a_failure_says_nothing() {
    let mut one = One::new();
    let far = life("far", 1);
    one.up(&far);
    for serial in 0..100 {
        assert_eq!(one.hear(&far, Frame::Failed { serial, reason: "whatever".into() }), []);
    }
    assert_eq!(one.machine.held(), 0);
    for (gone, fate) in [(Gone::Panicked, Fate::Panicked), (Gone::NoSuchMailbox, Fate::NoSuchMailbox)] {
        one.watch(1, &mailbox(&far, 7));
        one.hear(&far, Frame::Failed { serial: 7, reason: "whatever".into() });
        assert_eq!(one.answer(&far, 7, gone, &[]), [notice(1, fate), armed(&far, 0)]);
    }
    one.watch(1, &mailbox(&far, 7));
    assert_eq!(
        one.answer(&far, 7, Gone::Closed, &[]),
        [notice(1, Fate::Closed), armed(&far, 0)],
        "it went with the watch"
    );
    one.watch(1, &mailbox(&far, 7));
    one.hear(&far, Frame::Failed { serial: 7, reason: "whatever".into() });
    assert_eq!(one.down(&far, Fate::Disconnected), [notice(1, Fate::Disconnected)]);
    assert_eq!(one.machine.held(), 0);
}

/// A peer may watch so much and no more. What it takes back, or what is over, does not count.
#[test]
fn a_peer_that_watches_too_much_is_stopped() {
    let mut one = One::new();
    let (near, far) = (life("near", 1), life("far", 1));
    one.up(&near);
    one.up(&far);
    for serial in 0..MAX as u64 {
        assert_eq!(one.asked(&near, serial, None), [Output::Track { serial }]);
    }
    assert_eq!(one.asked(&near, 0, None), [], "no watch more");
    assert_eq!(one.asked(&near, 0, Some(1)), [Output::Broken { peer: near.clone() }]);
    assert_eq!(one.asked(&near, MAX as u64, None), [Output::Broken { peer: near.clone() }]);
    assert_eq!(one.asked(&far, 0, Some(1)), [], "others have room");
    one.unasked(&near, 1, None);
    one.unasked(&near, 1, None);
    assert_eq!(one.asked(&near, 0, Some(1)), []);
    assert_eq!(one.asked(&near, 0, Some(2)), [Output::Broken { peer: near.clone() }]);
    one.closed(2, Gone::Closed);
    assert_eq!(one.asked(&near, 0, Some(2)), []);
    assert_eq!(one.down(&near, Fate::Disconnected), []);
    assert_eq!(one.down(&far, Fate::Disconnected), []);
    assert_eq!(one.machine.held(), 0);
    assert_eq!(one.closed(0, Gone::Closed), []);
}

/// Frames without a session, and answers to what was never asked, do nothing.
#[test]
fn unasked_frames_do_nothing() {
    let mut one = One::new();
    let there = life("there", 1);
    assert_eq!(one.asked(&there, 7, None), []);
    one.up(&there);
    assert_eq!(one.asked(&life("there", 2), 7, None), [], "another life");
    assert_eq!(one.answer(&there, 7, Gone::Closed, &[(1, u64::MAX)]), []);
    assert_eq!(one.unasked(&there, 7, None), []);
    one.watch_in_band(1, &mailbox(&there, 7), 30);
    assert_eq!(one.unasked(&there, 7, Some(30)), [], "that is this node's to take back");
    let told = Output::Notice { watch: WatchId(1), told: Fate::Closed.into(), cut: Some((there.clone(), 3)) };
    assert_eq!(one.answer(&there, 7, Gone::Closed, &[(30, 3), (30, 4), (31, 5)]), [told, armed(&there, 0)]);
    assert_eq!(one.machine.held(), 0);
}

/// Watches of ever new lives come, end and go, and leave nothing.
#[test]
fn two_hundred_thousand_dead_lives_leave_nothing() {
    let mut one = One::new();
    let present = life("there", 1_000_000);
    let old = |n| life("there", 1 + n);
    let mut told = 0;
    for n in 0..100_000 {
        one.watch(n, &mailbox(&old(n), 7));
    }
    assert_eq!(one.machine.watches.len(), 100_000);
    told += one.handle(Input::DialFailed { peer: present.name().clone() }).len();
    one.up(&present);
    for n in 100_000..200_000 {
        told += one.watch_until_dead(n, &Target::Node(old(n))).len();
    }
    assert_eq!(told, 200_000);
    assert_eq!(one.machine.held(), 0);
    for n in 0..200_000 {
        one.ended(&life(&format!("n{n}"), 1), Fate::NodeDown);
    }
    assert_eq!(one.machine.held(), 0);
    assert_eq!((one.machine.live.len(), one.machine.ended.order.len()), (0, ENDED_REMEMBERED));
}

const MAX: usize = 4;

impl One {
    fn new() -> Self {
        Self { machine: Monitors::new(life("here", 5), MAX), now: Instant::now() }
    }

    fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.machine.poll_output()).collect()
    }

    fn handle(&mut self, input: Input) -> Vec<Output> {
        self.machine.handle(input, self.now);
        self.drain()
    }

    fn pass(&mut self, time: Duration) -> Vec<Output> {
        self.now += time;
        self.machine.handle_timeout(self.now);
        self.drain()
    }

    fn watch(&mut self, watch: u64, target: &Target) -> Vec<Output> {
        self.handle(Input::Watch { watch: WatchId(watch), target: target.clone(), mailbox: None, until_dead: false })
    }

    fn watch_until_dead(&mut self, watch: u64, target: &Target) -> Vec<Output> {
        self.handle(Input::Watch { watch: WatchId(watch), target: target.clone(), mailbox: None, until_dead: true })
    }

    fn watch_in_band(&mut self, watch: u64, target: &Target, mailbox: u64) -> Vec<Output> {
        let mailbox = Some(mailbox);
        self.handle(Input::Watch { watch: WatchId(watch), target: target.clone(), mailbox, until_dead: false })
    }

    fn unwatch(&mut self, watch: u64) -> Vec<Output> {
        self.handle(Input::Unwatch { watch: WatchId(watch) })
    }

    fn closed(&mut self, serial: u64, gone: Gone) -> Vec<Output> {
        self.handle(Input::Closed { serial, gone, reason: None })
    }

    fn failed(&mut self, serial: u64, reason: &str) -> Vec<Output> {
        self.handle(Input::Closed { serial, gone: Gone::Closed, reason: Some(reason.into()) })
    }

    fn up(&mut self, peer: &NodeId) -> Vec<Output> {
        self.handle(Input::Up { peer: peer.clone() })
    }

    fn down(&mut self, peer: &NodeId, why: Fate) -> Vec<Output> {
        self.handle(Input::Down { peer: peer.clone(), why })
    }

    fn live(&mut self, node: &NodeId) -> Vec<Output> {
        self.handle(Input::Live { node: node.clone() })
    }

    fn ended(&mut self, node: &NodeId, fate: Fate) -> Vec<Output> {
        self.handle(Input::Ended { node: node.clone(), fate })
    }

    fn hear(&mut self, from: &NodeId, frame: Frame) -> Vec<Output> {
        self.handle(Input::Frame { from: from.clone(), frame })
    }

    fn asked(&mut self, from: &NodeId, serial: u64, mailbox: Option<u64>) -> Vec<Output> {
        self.hear(from, Frame::Watch { serial, mailbox })
    }

    fn unasked(&mut self, from: &NodeId, serial: u64, mailbox: Option<u64>) -> Vec<Output> {
        self.hear(from, Frame::Unwatch { serial, mailbox })
    }

    fn answer(&mut self, from: &NodeId, serial: u64, gone: Gone, cuts: &[(u64, u64)]) -> Vec<Output> {
        let cuts = cuts.iter().map(|&(mailbox, number)| Cut { mailbox, number }).collect();
        self.hear(from, Frame::Down { serial, gone, cuts })
    }
}

fn life(name: &str, incarnation: u64) -> NodeId {
    NodeId::new(NodeName::parse(&format!("{name}@h:1")).unwrap(), incarnation)
}

fn mailbox(node: &NodeId, serial: u64) -> Target {
    Target::Mailbox(Pid::new(node.clone(), serial))
}

fn ask(to: &NodeId, serial: u64, mailbox: Option<u64>) -> Output {
    Output::Send { to: to.clone(), frame: Frame::Watch { serial, mailbox } }
}

fn unask(to: &NodeId, serial: u64, mailbox: Option<u64>) -> Output {
    Output::Send { to: to.clone(), frame: Frame::Unwatch { serial, mailbox } }
}

fn notice(watch: u64, fate: Fate) -> Output {
    Output::Notice { watch: WatchId(watch), told: fate.into(), cut: None }
}

fn failure(reason: &str) -> Told {
    Told { fate: Fate::Failed, reason: Some(reason.into()) }
}

fn armed(peer: &NodeId, watches: usize) -> Output {
    Output::Armed { peer: peer.clone(), watches }
}
