use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::inbound::Pool;
use super::*;

const LIMITS: InboundLimits = InboundLimits {
    window: 1000,
    window_max: 4000,
    lanes_max: 8,
    message_max: 5000,
    windows_max: 64_000,
    large_max: 6000,
};

fn offer(mailbox: u64, body: usize, wait: bool) -> Offer {
    Offer { mailbox, body, bulk: false, wait }
}

/// The sending side of a test; a message is its size.
struct Sender(Outbound<usize>);

impl Sender {
    fn offer(&mut self, offer: Offer, out: &mut Vec<Output<usize>>) -> Offered {
        self.0.offer(offer, || offer.body, out)
    }
}

impl std::ops::Deref for Sender {
    type Target = Outbound<usize>;

    fn deref(&self) -> &Outbound<usize> {
        &self.0
    }
}

impl std::ops::DerefMut for Sender {
    fn deref_mut(&mut self) -> &mut Outbound<usize> {
        &mut self.0
    }
}

fn outbound() -> Sender {
    Sender(Outbound::new(LIMITS.window, 100, 10_000, 10_000))
}

#[test]
fn the_last_byte_of_credit_is_used_and_one_more_waits() {
    let mut out = Vec::new();
    let mut lanes = outbound();
    let fits = (LIMITS.window - MESSAGE_COST) as usize;
    assert!(matches!(lanes.offer(offer(1, fits, false), &mut out), Offered::Accepted(0)));
    assert_eq!(out, []);
    assert_eq!(lanes.offer(offer(2, fits + 1, false), &mut out), Offered::Full);
    assert_eq!(out, [Output::Need { mailbox: 2, seq: 1, sent: 0, limit: LIMITS.window + 1 }]);
}

#[test]
fn a_small_message_does_not_overtake_a_large_one_that_waits() {
    let mut out = Vec::new();
    let mut lanes = outbound();
    let Offered::Waits(_) = lanes.offer(offer(1, 3000, true), &mut out) else { panic!() };
    assert_eq!(lanes.offer(offer(1, 1, false), &mut out), Offered::Full);
    let Offered::Waits(_) = lanes.offer(offer(1, 1, true), &mut out) else { panic!() };
    out.clear();
    lanes.granted(Grant { mailbox: 1, seq: 1, limit: 3000 + 1 + 2 * MESSAGE_COST }, &mut out);
    let bodies: Vec<_> = out
        .iter()
        .map(|output| match output {
            Output::Write(accepted) => (accepted.number, accepted.item),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(bodies, [(0, 3000), (1, 1)]);
}

#[test]
fn who_gives_up_makes_way() {
    let mut out = Vec::new();
    let mut lanes = outbound();
    let Offered::Waits(large) = lanes.offer(offer(1, 3000, true), &mut out) else { panic!() };
    let Offered::Waits(small) = lanes.offer(offer(1, 1, true), &mut out) else { panic!() };
    out.clear();
    assert_eq!(lanes.cancel(1, large, &mut out), Some(3000));
    assert!(matches!(&out[..], [Output::Write(Accepted { number: 0, item: 1, .. })]), "{out:?}");
    assert_eq!(lanes.cancel(1, small, &mut out), None, "it was accepted");
}

#[test]
fn a_closed_mailbox_refuses_who_waits_and_who_comes() {
    let mut out = Vec::new();
    let mut lanes = outbound();
    let Offered::Waits(ticket) = lanes.offer(offer(1, 3000, true), &mut out) else { panic!() };
    out.clear();
    lanes.closed(1, &mut out);
    assert_eq!(out, [Output::Refused { ticket, item: 3000 }]);
    assert_eq!(lanes.offer(offer(1, 1, true), &mut out), Offered::Closed);
}

#[test]
fn a_full_buffer_holds_back_and_its_emptying_lets_go() {
    let mut out = Vec::new();
    let mut lanes = Sender(Outbound::new(1_000_000, 100, 100, 100));
    assert!(matches!(lanes.offer(offer(1, 500, true), &mut out), Offered::Accepted(_)), "one always fits");
    let Offered::Waits(_) = lanes.offer(offer(2, 7, true), &mut out) else { panic!() };
    let bulk = Offer { bulk: true, ..offer(3, 9, true) };
    assert!(matches!(lanes.offer(bulk, &mut out), Offered::Accepted(_)), "bulk has its own room");
    assert_eq!(out, []);
    lanes.written(500 + MESSAGE_COST, false, &mut out);
    assert!(matches!(&out[..], [Output::Write(Accepted { mailbox: 2, .. })]), "{out:?}");
}

/// Of what is offered to many, each takes what it has credit for, and has the number that is next there.
#[test]
fn copies_go_where_there_is_credit() {
    let mut out = Vec::new();
    let mut lanes = outbound();
    let body = (LIMITS.window - MESSAGE_COST) as usize;
    assert_eq!(lanes.offer(offer(2, 0, false), &mut out), Offered::Accepted(0));
    let Offered::Waits(_) = lanes.offer(offer(3, 3000, true), &mut out) else { panic!() };
    lanes.closed(4, &mut out);
    out.clear();
    let offered = lanes.0.offer_copies(&[1, 2, 3, 4], body - MESSAGE_COST as usize, false, &mut out);
    assert_eq!(offered, [Offered::Accepted(0), Offered::Accepted(1), Offered::Full, Offered::Closed]);
    assert_eq!(out, []);
    // That was all for 2, and but for one message all for 1.
    assert_eq!(lanes.0.offer_copies(&[1, 2], 0, false, &mut out), [Offered::Accepted(1), Offered::Full]);
    assert_eq!(out, [Output::Need { mailbox: 2, seq: 1, sent: LIMITS.window, limit: LIMITS.window + MESSAGE_COST }]);
}

/// All copies of a frame take the room of one; when there is none, none goes, though all have credit.
#[test]
fn copies_take_the_room_of_one_frame() {
    let mut out = Vec::new();
    let mut lanes = Sender(Outbound::new(1_000_000, 100, 1000, 1000));
    let (all, frame) = (Vec::from_iter(1..=50), copies_cost(100, 50));
    assert!(lanes.0.offer_copies(&all, 100, false, &mut out).iter().all(|offered| *offered == Offered::Accepted(0)));
    let full = vec![Offered::Full; 50];
    assert_eq!(lanes.0.offer_copies(&all, 100, false, &mut out), full, "{frame} bytes are more than all room");
    assert_eq!(lanes.0.offer_copies(&all, 100, true, &mut out).len(), 50, "bulk has its own room");
    lanes.written(frame - 1000, false, &mut out);
    assert_eq!(lanes.0.offer_copies(&all, 100, false, &mut out), full, "to the last byte");
    lanes.written(1, false, &mut out);
    assert_eq!(lanes.0.offer_copies(&all[..1], 100, false, &mut out), [Offered::Accepted(2)]);
    lanes.written(999 + copies_cost(100, 1), false, &mut out);
    assert_eq!(lanes.offer(offer(51, 999 - MESSAGE_COST as usize, false), &mut out), Offered::Accepted(0));
    assert_eq!(lanes.offer(offer(51, 0, false), &mut out), Offered::Accepted(1), "all was given back");
    assert_eq!(lanes.offer(offer(51, 0, false), &mut out), Offered::Full);
}

#[test]
fn a_lane_too_many_is_refused_before_it_is_sent() {
    let mut out = Vec::new();
    let mut lanes = Sender(Outbound::new(LIMITS.window, 2, 10_000, 10_000));
    for mailbox in [1, 2] {
        assert!(matches!(lanes.offer(offer(mailbox, 1, false), &mut out), Offered::Accepted(_)));
    }
    assert_eq!(lanes.offer(offer(3, 1, true), &mut out), Offered::TooMany);
    lanes.closed(1, &mut out);
    assert!(matches!(lanes.offer(offer(3, 1, true), &mut out), Offered::Accepted(_)));
}

/// Mailboxes to which nothing was sent take no place: the peer has not heard of them, so it never says that they closed.
#[test]
fn a_lane_that_was_not_used_is_forgotten() {
    let mut out = Vec::new();
    let mut lanes = Sender(Outbound::new(LIMITS.window, 2, 100, 100));
    assert!(matches!(lanes.offer(offer(1, 500, false), &mut out), Offered::Accepted(0)));
    for mailbox in 2..10 {
        assert_eq!(lanes.offer(offer(mailbox, 7, false), &mut out), Offered::Full, "no room");
        let Offered::Waits(ticket) = lanes.offer(offer(mailbox, 7, true), &mut out) else { panic!("{mailbox}") };
        assert_eq!(lanes.cancel(mailbox, ticket, &mut out), Some(7));
    }
    lanes.written(500 + MESSAGE_COST, false, &mut out);
    assert_eq!(out, []);
    assert!(matches!(lanes.offer(offer(10, 7, false), &mut out), Offered::Accepted(0)));
}

/// Who gave up a large message returns its credit when the peer says that others wait, and not before.
#[test]
fn unused_credit_goes_back_when_the_peer_is_short_of_it() {
    let mut out = Vec::new();
    let mut lanes = outbound();
    assert_eq!(lanes.offer(offer(1, 3000, false), &mut out), Offered::Full);
    out.clear();
    lanes.granted(Grant { mailbox: 1, seq: 1, limit: 3064 }, &mut out);
    assert_eq!(out, []);
    lanes.short(Short { seq: 1, on: true }, &mut out);
    assert_eq!(out, [Output::Return { mailbox: 1, seq: 2, limit: LIMITS.window }]);
    out.clear();
    lanes.granted(Grant { mailbox: 1, seq: 1, limit: 3064 }, &mut out);
    assert_eq!(out, [], "a grant from before is void");
    lanes.short(Short { seq: 1, on: false }, &mut out);
    assert!(matches!(lanes.offer(offer(1, 3000, true), &mut out), Offered::Waits(_)));
}

/// Asked for windows that are not used, a sender returns those of lanes that stay idle from one question to the next.
#[test]
fn idle_windows_go_back_when_the_peer_is_pressed() {
    let mut out = Vec::new();
    let mut lanes = outbound();
    for mailbox in 1..=4 {
        lanes.offer(offer(mailbox, 1, false), &mut out);
        lanes.granted(Grant { mailbox, seq: 1, limit: 2000 }, &mut out);
    }
    out.clear();
    lanes.spare(&mut out);
    assert_eq!(out, [], "all were just used");
    lanes.offer(offer(2, 1, false), &mut out);
    lanes.spare(&mut out);
    let returned: Vec<_> = out
        .iter()
        .map(|output| match output {
            Output::Return { mailbox, limit, .. } => (*mailbox, *limit),
            other => panic!("{other:?}"),
        })
        .collect();
    let kept = 1 + MESSAGE_COST + LIMITS.window;
    assert_eq!(returned, [(1, kept), (3, kept), (4, kept)]);
}

/// A receiving side with a pool that never runs short.
struct Receiver {
    lanes: Inbound<usize>,
    pool: Pool,
    grants: Vec<Grant>,
    ready: Vec<usize>,
}

impl Receiver {
    fn new(limits: InboundLimits) -> Self {
        let pool = Pool::new(1 << 40, 1 << 40);
        Self { lanes: Inbound::new(1, limits), pool, grants: Vec::new(), ready: Vec::new() }
    }

    fn receive(&mut self, mailbox: u64, number: u64, body: usize) -> Result<(), Violation> {
        self.receive_run(mailbox, number, 1, body)
    }

    /// So many messages in a row, of that size each.
    fn receive_run(&mut self, mailbox: u64, number: u64, messages: u64, body: usize) -> Result<(), Violation> {
        let cost = messages * (body as u64 + MESSAGE_COST);
        self.lanes.receive(Arrived { mailbox, number, messages, cost, item: body }, &mut self.ready)
    }

    /// Asks when all that was sent has arrived.
    fn need(&mut self, mailbox: u64, seq: u64, limit: u64) -> Result<Option<Grant>, Violation> {
        let sent = self.lanes.received(mailbox).min(limit);
        self.need_after(mailbox, seq, sent, limit)
    }

    fn need_after(&mut self, mailbox: u64, seq: u64, sent: u64, limit: u64) -> Result<Option<Grant>, Violation> {
        self.lanes.need(mailbox, seq, sent, limit, &mut self.pool, &mut self.grants)?;
        let grant = self.grants.pop();
        assert_eq!(self.grants, [], "to one lane");
        Ok(grant)
    }

    fn consumed(&mut self, mailbox: u64, body: usize) -> Vec<Grant> {
        self.lanes.consumed(mailbox, body as u64 + MESSAGE_COST, &mut self.pool, &mut self.grants);
        std::mem::take(&mut self.grants)
    }
}

#[test]
fn what_breaks_the_rules_is_a_violation() {
    let mut side = Receiver::new(LIMITS);
    let fits = (LIMITS.window - MESSAGE_COST) as usize;
    assert_eq!(side.receive(1, 0, fits), Ok(()));
    assert_eq!(side.receive(1, 1, 0), Err(Violation::Credit));
    assert_eq!(side.receive(2, 0, fits + 1), Err(Violation::Credit));
    assert_eq!(side.receive(3, 5, 1), Ok(()));
    assert_eq!(side.receive(3, 5, 1), Err(Violation::Repeated));
    assert_eq!(side.lanes.finish(), Err(Violation::Gap));
    let too_large = LIMITS.window + LIMITS.message_max + MESSAGE_COST + 1;
    assert_eq!(side.need(1, 1, too_large), Err(Violation::TooLarge));
    for mailbox in 10..10 + (LIMITS.lanes_max as u64 - 3) {
        assert!(side.need(mailbox, 1, 1).is_ok());
    }
    assert_eq!(side.receive(99, 0, 1), Err(Violation::Lanes));
    assert_eq!(side.need(99, 1, 1), Err(Violation::Lanes));
}

/// Messages that come in a row are taken together, in their order, and none of them twice.
#[test]
fn runs_keep_their_order_and_do_not_overlap() {
    let mut side = Receiver::new(LIMITS);
    assert_eq!(side.receive_run(1, 2, 2, 1), Ok(()), "early");
    for (number, messages) in [(1, 2), (2, 1), (3, 1), (3, 3), (0, 3), (0, 5)] {
        assert_eq!(side.receive_run(1, number, messages, 1), Err(Violation::Repeated), "{number}, {messages}");
    }
    assert!(side.ready.is_empty());
    assert_eq!(side.receive_run(1, 0, 2, 2), Ok(()));
    assert_eq!(side.ready, [2, 1]);
    assert_eq!(side.lanes.delivered(), 4);
    assert_eq!(side.receive_run(1, 3, 2, 1), Err(Violation::Repeated));
    assert_eq!(side.receive_run(1, 4, 1, 3), Ok(()));
    assert_eq!(side.ready, [2, 1, 3]);
}

#[test]
fn a_mailbox_that_nobody_reads_gets_no_more_than_its_window() {
    let mut side = Receiver::new(LIMITS);
    assert_eq!(side.receive(1, 0, 500), Ok(()));
    let full = 500 + MESSAGE_COST + 500 + MESSAGE_COST;
    assert_eq!(side.need(1, 1, full), Ok(None), "it holds a message, and the second exceeds the window");
    assert_eq!(side.consumed(1, 500), [Grant { mailbox: 1, seq: 1, limit: 500 + MESSAGE_COST + LIMITS.window }]);
}

#[test]
fn a_window_grows_while_it_is_used_up_and_read_and_not_beyond_its_bound() {
    let mut side = Receiver::new(LIMITS);
    let (mut sent, mut granted) = (0, LIMITS.window);
    let mut windows = Vec::new();
    for seq in 1..=4 {
        // All that is granted is sent and read; then the sender asks for more.
        let body = (granted - sent - MESSAGE_COST) as usize;
        assert_eq!(side.receive(1, seq - 1, body), Ok(()));
        sent = granted;
        let grant = side.consumed(1, body).pop().expect("a window was read");
        granted = side.need(1, seq, grant.limit + 1).unwrap().expect("a window and a byte").limit;
        windows.push(side.lanes.window(1));
    }
    assert_eq!(windows, [2000, 4000, 4000, 4000]);
}

/// A request that overtakes what it is about neither grows the window nor gets more than that.
#[test]
fn a_request_that_overtakes_its_messages_waits_for_them() {
    let mut side = Receiver::new(LIMITS);
    let sent = LIMITS.window;
    assert_eq!(side.need_after(1, 1, sent, sent + 500), Ok(None), "nothing is read yet");
    let body = (LIMITS.window - MESSAGE_COST) as usize;
    assert_eq!(side.receive(1, 0, body), Ok(()));
    assert_eq!(side.lanes.window(1), LIMITS.window);
    assert_eq!(side.consumed(1, body), [Grant { mailbox: 1, seq: 1, limit: 3 * LIMITS.window }]);
    assert_eq!(side.lanes.window(1), 2 * LIMITS.window);
}

const SMALL: u64 = 4 << 10;

/// A thousand lanes that nobody reads take nothing of the budget, and the next one that is read grows as if alone.
#[test]
fn stuffed_lanes_leave_the_budget_to_others() {
    let limits = InboundLimits {
        window: SMALL,
        window_max: 1 << 20,
        lanes_max: 2000,
        message_max: 1 << 20,
        windows_max: 16 << 20,
        large_max: 1 << 20,
    };
    let mut side = Receiver::new(limits);
    for mailbox in 0..1000 {
        assert_eq!(side.receive(mailbox, 0, (SMALL - MESSAGE_COST) as usize), Ok(()));
        assert_eq!(side.need(mailbox, 1, SMALL + 1064), Ok(None), "it is not read");
    }
    assert_eq!(side.pool.used(), 0);
    let (mut sent, mut limit) = (0, SMALL);
    for seq in 1..=9 {
        let body = (limit - sent - MESSAGE_COST) as usize;
        assert_eq!(side.receive(1000, seq - 1, body), Ok(()));
        sent = limit;
        let grants = side.consumed(1000, body);
        limit = grants[0].limit;
        limit = side.need(1000, seq, limit + 1064).unwrap().map_or(limit, |grant| grant.limit);
    }
    assert_eq!(side.lanes.window(1000), 1 << 20);
    assert!(limit - sent >= 1 << 20);
    for mailbox in 0..=1000 {
        side.lanes.close(mailbox, &mut side.pool, &mut side.grants);
    }
    assert_eq!(side.pool.used(), 0);
}

/// Lanes that were read, and no longer are, keep what they grew to; but never all that there is.
#[test]
fn grown_lanes_leave_a_part_for_the_next() {
    let limits = InboundLimits { window_max: 1 << 20, lanes_max: 100, windows_max: 400_000, ..LIMITS };
    let mut side = Receiver::new(limits);
    let mut windows = Vec::new();
    for mailbox in 0..20 {
        let (mut sent, mut limit) = (0, limits.window);
        for seq in 1..=10 {
            let body = (limit - sent - MESSAGE_COST) as usize;
            side.receive(mailbox, seq - 1, body).unwrap();
            sent = limit;
            limit = side.consumed(mailbox, body).last().map_or(limit, |grant| grant.limit);
            limit = side.need(mailbox, seq, limit + 1).unwrap().map_or(limit, |grant| grant.limit);
        }
        windows.push(limit - sent);
    }
    assert!(windows.is_sorted_by(|a, b| a >= b), "{windows:?}");
    assert!(windows[0] > 40_000 && windows[19] > 3 * limits.window, "{windows:?}");
    assert!(side.pool.windows.used < limits.windows_max);
    assert!(side.lanes.take_pressed(), "the peer is asked for what it does not use");
}

#[test]
fn large_messages_share_a_budget_and_wait_in_turn() {
    let limits = InboundLimits { window: 0, windows_max: 0, ..LIMITS };
    let mut side = Receiver::new(limits);
    let large = LIMITS.message_max + MESSAGE_COST;
    assert_eq!(side.need(1, 1, large), Ok(Some(Grant { mailbox: 1, seq: 1, limit: large })));
    assert_eq!(side.need(2, 1, large), Ok(Some(Grant { mailbox: 2, seq: 1, limit: large })), "one more");
    assert_eq!(side.lanes.shortage(&side.pool), None);
    assert_eq!(side.need(3, 1, large), Ok(None), "the two hold more than the budget");
    assert_eq!(side.lanes.shortage(&side.pool), Some(Short { seq: 1, on: true }));
    assert_eq!(side.receive(1, 0, LIMITS.message_max as usize), Ok(()));
    let grants = side.consumed(1, LIMITS.message_max as usize);
    assert_eq!(grants, [Grant { mailbox: 3, seq: 1, limit: large }]);
    assert_eq!(side.lanes.shortage(&side.pool), Some(Short { seq: 2, on: false }));
}

/// What a large message had is free when its lane's window grows over it, and goes to who waits.
#[test]
fn a_window_that_grows_over_a_large_grant_sets_it_free() {
    let mut side = Receiver::new(LIMITS);
    let large = LIMITS.message_max + MESSAGE_COST;
    assert!(side.need(3, 1, large).unwrap().is_some());
    assert!(side.need(1, 1, 1900).unwrap().is_some());
    assert_eq!(side.need(2, 1, large), Ok(None), "the two hold more than the budget");
    let body = (LIMITS.window - MESSAGE_COST) as usize;
    assert_eq!(side.receive(1, 0, body), Ok(()));
    assert_eq!(side.consumed(1, body), [], "still more");
    let mut grants = Vec::new();
    side.lanes.need(1, 2, LIMITS.window, 2901, &mut side.pool, &mut grants).unwrap();
    assert_eq!(side.receive(1, 1, 1), Ok(()));
    grants.extend(side.consumed(1, 1));
    side.lanes.check();
    assert!(grants.iter().any(|grant| grant.mailbox == 2), "{grants:?}");
}

/// A peer that says it had sent less than it had is not granted what it has sent long ago.
#[test]
fn what_was_sent_before_is_no_part_of_a_large_message() {
    let mut side = Receiver::new(LIMITS);
    for number in 0..1000 {
        assert_eq!(side.receive(1, number, 500), Ok(()));
        side.consumed(1, 500);
    }
    let consumed = 1000 * (500 + MESSAGE_COST);
    let one = LIMITS.message_max + MESSAGE_COST;
    let granted = side.need_after(1, 1, 0, consumed + one).unwrap().unwrap().limit;
    assert!(granted <= consumed + LIMITS.window_max + one, "{} bytes are granted", granted - consumed);
    side.lanes.check();
}

/// One session's large messages keep another's waiting, until they are read; an ended session keeps nobody waiting.
#[test]
fn sessions_share_the_pool() {
    let limits = InboundLimits { window: 0, windows_max: 0, ..LIMITS };
    let mut pool = Pool::new(0, LIMITS.message_max);
    let (mut one, mut two) = (Inbound::<()>::new(1, limits), Inbound::<()>::new(2, limits));
    let large = LIMITS.message_max + MESSAGE_COST;
    let mut grants = Vec::new();
    assert_eq!(one.need(7, 1, 0, large, &mut pool, &mut grants), Ok(()));
    assert_eq!(std::mem::take(&mut grants).len(), 1);
    assert_eq!(two.need(7, 1, 0, large, &mut pool, &mut grants), Ok(()));
    assert_eq!(grants, []);
    assert!(pool.has_turned());
    assert!(one.shortage(&pool).is_some_and(|short| short.on), "the one that holds it is told");
    assert_eq!(pool.freed(), BTreeSet::new());
    one.end(&mut pool);
    assert_eq!(pool.freed(), BTreeSet::from([2]));
    two.supply_waiting(&mut pool, &mut grants);
    assert_eq!(grants, [Grant { mailbox: 7, seq: 1, limit: large }]);
    two.end(&mut pool);
    assert_eq!(pool.used(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Send {
        mailbox: u64,
        body: usize,
        wait: bool,
    },
    Cancel,
    /// A frame at the front of one of the streams arrives.
    Arrive {
        stream: usize,
    },
    Read {
        mailbox: u64,
    },
    SwitchLink,
    CloseMailbox {
        mailbox: u64,
    },
}

/// What travels in the streams of either link, to the receiver or back.
#[derive(Debug)]
enum Travelling {
    Message(Accepted<(u64, u64)>, usize),
    Control(Output<(u64, u64)>),
    Grant(Grant),
    Short(Short),
    Spare,
    Closed(u64),
}

/// Streams of one link: small messages, two for bodies, control, and control of the other direction.
const STREAMS: usize = 5;

/// One session with its streams.
struct Pair {
    sender: Outbound<(u64, u64)>,
    receiver: Inbound<(u64, u64)>,
    streams: Vec<VecDeque<Travelling>>,
    link: usize,
    bodies: BTreeMap<u64, usize>,
    accepted: BTreeMap<u64, Vec<u64>>,
    delivered: BTreeMap<u64, Vec<u64>>,
    queues: BTreeMap<u64, VecDeque<usize>>,
    waiting: Vec<(u64, Ticket, u64)>,
    gone: BTreeSet<u64>,
    next: u64,
}

/// Sessions of one receiving node.
struct World {
    pairs: Vec<Pair>,
    pool: Pool,
}

const POOL_WINDOWS: u64 = 9_000;
const POOL_LARGE: u64 = 7_000;

impl World {
    fn new(sessions: usize) -> Self {
        let pairs = (0..sessions as u64).map(Pair::new).collect();
        Self { pairs, pool: Pool::new(POOL_WINDOWS, POOL_LARGE) }
    }

    fn step(&mut self, session: usize, step: Step) {
        self.pairs[session].step(step, &mut self.pool);
        self.supply_freed();
        let one = LIMITS.message_max + MESSAGE_COST;
        let unasked = self.pairs.len() as u64 * 5 * LIMITS.window;
        let held: u64 = self.pairs.iter().map(Pair::held).sum();
        let leftover = self.pairs.len() as u64 * 5 * LIMITS.window;
        assert!(held <= unasked + POOL_WINDOWS + POOL_LARGE + one + leftover, "the node holds {held}");
    }

    fn supply_freed(&mut self) {
        loop {
            let freed = self.pool.freed();
            for session in &freed {
                self.pairs[*session as usize].freed(&mut self.pool);
            }
            if freed.is_empty() {
                break;
            }
        }
        if self.pool.has_turned() {
            for pair in &mut self.pairs {
                pair.tell(&self.pool);
            }
        }
    }
}

impl World {
    /// The session of that number ends, and what was on its way is lost.
    fn end(&mut self, session: usize) {
        let pair = &mut self.pairs[session];
        pair.receiver.end(&mut self.pool);
        *pair = Pair { receiver: std::mem::replace(&mut pair.receiver, Inbound::new(0, LIMITS)), ..Pair::new(0) };
        self.supply_freed();
    }

    /// All that is sent arrives and is read: then nothing waits, and nothing is missing.
    fn arrives_and_is_read(&mut self, sessions: std::ops::Range<usize>) {
        for _ in 0..400 {
            for session in sessions.clone() {
                for stream in 0..2 * STREAMS {
                    self.step(session, Step::Arrive { stream });
                }
                for mailbox in 0..5 {
                    self.step(session, Step::Read { mailbox });
                }
            }
        }
        for pair in &self.pairs[sessions] {
            assert!(pair.streams.iter().all(VecDeque::is_empty));
            assert!(pair.waiting.is_empty(), "{:?} wait for ever", pair.waiting);
            assert_eq!(pair.receiver.finish(), Ok(()));
            for (mailbox, ids) in &pair.accepted {
                if !pair.gone.contains(mailbox) {
                    assert_eq!(&pair.delivered[mailbox], ids);
                }
            }
        }
    }
}

impl Pair {
    fn new(session: u64) -> Self {
        Self {
            sender: Outbound::new(LIMITS.window, LIMITS.lanes_max, 4000, 6000),
            receiver: Inbound::new(session, LIMITS),
            streams: (0..2 * STREAMS).map(|_| VecDeque::new()).collect(),
            link: 0,
            bodies: BTreeMap::new(),
            accepted: BTreeMap::new(),
            delivered: BTreeMap::new(),
            queues: BTreeMap::new(),
            waiting: Vec::new(),
            gone: BTreeSet::new(),
            next: 0,
        }
    }

    fn held(&self) -> u64 {
        self.receiver.held()
    }

    fn travel(&mut self, stream: usize, what: Travelling) {
        self.streams[self.link * STREAMS + stream].push_back(what);
    }

    /// Says what the peer is to know of the budgets.
    fn tell(&mut self, pool: &Pool) {
        if let Some(short) = self.receiver.shortage(pool) {
            self.travel(4, Travelling::Short(short));
        }
        if self.receiver.take_pressed() {
            self.travel(4, Travelling::Spare);
        }
    }

    fn freed(&mut self, pool: &mut Pool) {
        let mut grants = Vec::new();
        self.receiver.supply_waiting(pool, &mut grants);
        grants.into_iter().for_each(|grant| self.travel(4, Travelling::Grant(grant)));
        self.tell(pool);
    }

    fn step(&mut self, step: Step, pool: &mut Pool) {
        let mut out = Vec::new();
        let mut grants = Vec::new();
        match step {
            Step::Send { mailbox, body, wait } => {
                self.next += 1;
                let id = self.next;
                self.bodies.insert(id, body);
                let bulk = is_bulk(body, 1000);
                let item = (mailbox, id);
                match self.sender.offer(Offer { mailbox, body, bulk, wait }, || item, &mut out) {
                    Offered::Accepted(number) => {
                        out.push(Output::Write(Accepted { ticket: Ticket::NONE, mailbox, number, bulk, item }));
                    }
                    Offered::Waits(ticket) => self.waiting.push((mailbox, ticket, id)),
                    Offered::Full => {}
                    Offered::Closed => assert!(self.gone.contains(&mailbox)),
                    Offered::TooMany => panic!("there are fewer mailboxes"),
                }
            }
            Step::Cancel => {
                if let Some((mailbox, ticket, id)) = self.waiting.pop() {
                    let back = self.sender.cancel(mailbox, ticket, &mut out);
                    assert_eq!(back, Some((mailbox, id)));
                }
            }
            Step::Arrive { stream } => {
                if let Some(what) = self.streams[stream].pop_front() {
                    self.arrive(what, pool, &mut out, &mut grants);
                }
            }
            Step::Read { mailbox } => {
                if let Some(body) = self.queues.entry(mailbox).or_default().pop_front() {
                    self.receiver.consumed(mailbox, body as u64 + MESSAGE_COST, pool, &mut grants);
                }
            }
            Step::SwitchLink => self.link = 1 - self.link,
            Step::CloseMailbox { mailbox } => {
                self.gone.insert(mailbox);
                self.queues.remove(&mailbox);
                if self.receiver.close(mailbox, pool, &mut grants) {
                    self.travel(4, Travelling::Closed(mailbox));
                }
            }
        }
        for grant in grants {
            self.travel(4, Travelling::Grant(grant));
        }
        self.tell(pool);
        for output in out {
            match output {
                Output::Write(message) => {
                    let (mailbox, id) = message.item;
                    self.accepted.entry(mailbox).or_default().push(id);
                    self.waiting.retain(|(.., waits)| *waits != id);
                    let body = self.bodies[&id];
                    let stream = if message.bulk { 1 + (id % 2) as usize } else { 0 };
                    self.travel(stream, Travelling::Message(message, body));
                }
                Output::Refused { item: (_, id), .. } => self.waiting.retain(|(.., waits)| *waits != id),
                other => self.travel(3, Travelling::Control(other)),
            }
        }
        for (mailbox, ids) in &self.delivered {
            assert!(self.accepted[mailbox].starts_with(ids), "mailbox {mailbox} got {ids:?}");
        }
        self.receiver.check();
    }

    fn arrive(
        &mut self,
        what: Travelling,
        pool: &mut Pool,
        out: &mut Vec<Output<(u64, u64)>>,
        grants: &mut Vec<Grant>,
    ) {
        let receiver = &mut self.receiver;
        match what {
            Travelling::Grant(grant) => self.sender.granted(grant, out),
            Travelling::Short(short) => self.sender.short(short, out),
            Travelling::Spare => self.sender.spare(out),
            Travelling::Closed(mailbox) => self.sender.closed(mailbox, out),
            Travelling::Control(Output::Need { mailbox, .. }) if self.gone.contains(&mailbox) => {
                if receiver.refuse(mailbox) {
                    self.travel(4, Travelling::Closed(mailbox));
                }
            }
            Travelling::Control(Output::Need { mailbox, seq, sent, limit }) => {
                receiver.need(mailbox, seq, sent, limit, pool, grants).unwrap();
            }
            Travelling::Control(Output::Return { mailbox, seq, limit }) => {
                receiver.returned(mailbox, seq, limit, pool, grants).unwrap();
            }
            Travelling::Control(other) => panic!("{other:?}"),
            Travelling::Message(message, body) => {
                self.sender.written(body as u64 + MESSAGE_COST, message.bulk, out);
                if self.gone.contains(&message.mailbox) {
                    if receiver.refuse(message.mailbox) {
                        self.travel(4, Travelling::Closed(message.mailbox));
                    }
                    return;
                }
                let mut ready = Vec::new();
                let Accepted { mailbox, number, item, .. } = message;
                let cost = body as u64 + MESSAGE_COST;
                receiver.receive(Arrived { mailbox, number, messages: 1, cost, item }, &mut ready).unwrap();
                for (mailbox, id) in ready {
                    self.delivered.entry(mailbox).or_default().push(id);
                    self.queues.entry(mailbox).or_default().push_back(self.bodies[&id]);
                }
            }
        }
    }
}

/// What a peer that keeps no rules does, or the mailboxes that it sends to.
#[derive(Clone, Debug)]
enum Move {
    /// The number counts from the next one that is awaited.
    Receive {
        mailbox: u64,
        number: u64,
        body: usize,
    },
    Need {
        mailbox: u64,
        seq: u64,
        sent: Number,
        limit: Number,
    },
    Return {
        mailbox: u64,
        seq: u64,
        limit: Number,
    },
    Read {
        mailbox: u64,
    },
    Close {
        mailbox: u64,
    },
    /// So many messages, each of which is read at once.
    Talk {
        mailbox: u64,
        messages: usize,
    },
    End,
}

#[derive(Clone, Copy, Debug)]
enum Number {
    Any(u64),
    /// Beside the lane's limit.
    Near(i64),
}

impl Number {
    fn beside(self, limit: u64) -> u64 {
        match self {
            Self::Any(number) => number,
            Self::Near(offset) => limit.saturating_add_signed(offset),
        }
    }
}

/// The receiving side of a session with such a peer.
struct Victim {
    lanes: Inbound<(u64, u64)>,
    next: BTreeMap<u64, u64>,
    limits: BTreeMap<u64, u64>,
    queues: BTreeMap<u64, VecDeque<u64>>,
    gone: BTreeSet<u64>,
}

impl Victim {
    fn new(session: u64) -> Self {
        Self {
            lanes: Inbound::new(session, LIMITS),
            next: BTreeMap::new(),
            limits: BTreeMap::new(),
            queues: BTreeMap::new(),
            gone: BTreeSet::new(),
        }
    }

    fn act(&mut self, act: Move, pool: &mut Pool) -> Result<(), Violation> {
        let mut grants = Vec::new();
        let limit = |mailbox| self.limits.get(&mailbox).copied().unwrap_or(LIMITS.window);
        match act {
            Move::Receive { mailbox, .. } | Move::Need { mailbox, .. } if self.gone.contains(&mailbox) => {
                self.lanes.refuse(mailbox);
            }
            Move::Receive { mailbox, number, body } => {
                let next = self.next.entry(mailbox).or_default();
                let number = next.saturating_add(number);
                let mut ready = Vec::new();
                let cost = body as u64 + MESSAGE_COST;
                let item = (mailbox, body as u64);
                self.lanes.receive(Arrived { mailbox, number, messages: 1, cost, item }, &mut ready)?;
                *next += ready.len() as u64;
                for (mailbox, body) in ready {
                    self.queues.entry(mailbox).or_default().push_back(body);
                }
            }
            Move::Need { mailbox, seq, sent, limit: asked } => {
                let (sent, asked) = (sent.beside(limit(mailbox)), asked.beside(limit(mailbox)));
                self.lanes.need(mailbox, seq, sent, asked, pool, &mut grants)?;
            }
            Move::Return { mailbox, seq, limit: back } => {
                let back = back.beside(limit(mailbox));
                self.lanes.returned(mailbox, seq, back, pool, &mut grants)?;
            }
            Move::Read { mailbox } => {
                if let Some(body) = self.queues.entry(mailbox).or_default().pop_front() {
                    self.lanes.consumed(mailbox, body + MESSAGE_COST, pool, &mut grants);
                }
            }
            Move::Close { mailbox } => {
                self.gone.insert(mailbox);
                self.queues.remove(&mailbox);
                self.lanes.close(mailbox, pool, &mut grants);
            }
            Move::Talk { mailbox, messages } => {
                for _ in 0..messages {
                    self.act(Move::Receive { mailbox, number: 0, body: 500 }, pool)?;
                    self.act(Move::Read { mailbox }, pool)?;
                }
            }
            Move::End => self.lanes.end(pool),
        }
        self.limits.extend(grants.into_iter().map(|grant| (grant.mailbox, grant.limit)));
        self.lanes.take_pressed();
        self.lanes.shortage(pool);
        Ok(())
    }
}

fn number() -> impl Strategy<Value = Number> {
    prop_oneof![
        4 => (-3000..7000i64).prop_map(Number::Near),
        2 => (0..7000u64).prop_map(Number::Any),
        1 => any::<u64>().prop_map(Number::Any),
    ]
}

fn act() -> impl Strategy<Value = Move> {
    let mailbox = || 0..10u64;
    let seq = || prop_oneof![8 => 0..50u64, 1 => any::<u64>()];
    prop_oneof![
        8 => (mailbox(), prop_oneof![9 => 0..2u64, 1 => any::<u64>()], prop_oneof![0..1000usize, 0..6000usize])
            .prop_map(|(mailbox, number, body)| Move::Receive { mailbox, number, body }),
        6 => (mailbox(), seq(), number(), number())
            .prop_map(|(mailbox, seq, sent, limit)| Move::Need { mailbox, seq, sent, limit }),
        2 => (mailbox(), seq(), number()).prop_map(|(mailbox, seq, limit)| Move::Return { mailbox, seq, limit }),
        8 => mailbox().prop_map(|mailbox| Move::Read { mailbox }),
        1 => mailbox().prop_map(|mailbox| Move::Close { mailbox }),
        2 => (mailbox(), 0..40usize).prop_map(|(mailbox, messages)| Move::Talk { mailbox, messages }),
        1 => Just(Move::End),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5u64, prop_oneof![0..50usize, 0..1200usize, 3000..5000usize], any::<bool>())
            .prop_map(|(mailbox, body, wait)| Step::Send { mailbox, body, wait }),
        1 => Just(Step::Cancel),
        8 => (0..2 * STREAMS).prop_map(|stream| Step::Arrive { stream }),
        6 => (0..5u64).prop_map(|mailbox| Step::Read { mailbox }),
        1 => Just(Step::SwitchLink),
        1 => (0..5u64).prop_map(|mailbox| Step::CloseMailbox { mailbox }),
    ]
}

const SESSIONS: usize = 2;

/// More cases than the suite has time for: `CASES=20000 cargo test --release lanes`.
fn cases() -> u32 {
    std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// However sends, streams, links, reads and closes of two sessions interleave: each mailbox gets what was accepted for
    /// it, in the order of acceptance, once; nothing breaks a rule; what is held stays within the limits of the session
    /// and of the node; and when all has arrived and is read, nothing waits for ever.
    #[test]
    fn every_interleaving_keeps_order_and_bounds(
        steps in proptest::collection::vec((0..SESSIONS, step()), 1..300)
    ) {
        let mut world = World::new(SESSIONS);
        for (session, step) in steps {
            world.step(session, step);
        }
        world.arrives_and_is_read(0..SESSIONS);
    }

    /// A session that ends in the middle of it all, with credit, messages and requests on their way, leaves nothing in the
    /// pool, and what it held lets the other go on to its end.
    #[test]
    fn an_ended_session_leaves_nothing_behind(
        before in proptest::collection::vec((0..SESSIONS, step()), 1..200),
        after in proptest::collection::vec(step(), 0..100),
    ) {
        let mut world = World::new(SESSIONS);
        for (session, step) in before {
            world.step(session, step);
        }
        world.end(0);
        for step in after {
            world.step(1, step);
        }
        world.arrives_and_is_read(1..SESSIONS);
        world.end(1);
        prop_assert_eq!(world.pool.used(), 0);
        prop_assert_eq!(world.pool.freed(), BTreeSet::new());
    }

    /// Whatever a peer says, in whatever order and with whatever numbers: it is a violation or it is borne; the books of
    /// its session and of the pool agree, and no more is granted than the limits allow.
    #[test]
    fn no_peer_gets_beyond_the_limits(
        acts in proptest::collection::vec((0..SESSIONS, act()), 1..300)
    ) {
        let mut pool = Pool::new(POOL_WINDOWS, POOL_LARGE);
        let mut sessions = 0..;
        let mut victims: Vec<_> = sessions.by_ref().take(SESSIONS).map(Victim::new).collect();
        for (session, act) in acts {
            let victim = &mut victims[session];
            let ends = matches!(act, Move::End);
            if victim.act(act, &mut pool).is_err() || ends {
                victim.lanes.end(&mut pool);
                *victim = Victim::new(sessions.next().unwrap());
            }
            for _ in pool.freed() {
                for victim in &mut victims {
                    let mut grants = Vec::new();
                    victim.lanes.supply_waiting(&mut pool, &mut grants);
                    victim.limits.extend(grants.into_iter().map(|grant| (grant.mailbox, grant.limit)));
                }
            }
            pool.has_turned();
            let one = LIMITS.message_max + MESSAGE_COST;
            // What credit that was given back leaves a lane counts as its window, whatever is free.
            let leftover = (SESSIONS * LIMITS.lanes_max) as u64 * LIMITS.window;
            prop_assert!(pool.used() <= POOL_WINDOWS + POOL_LARGE + one + leftover, "{}", pool.used());
            prop_assert_eq!(pool.used(), victims.iter().map(|victim| victim.lanes.used()).sum::<u64>());
            victims.iter().for_each(|victim| victim.lanes.check());
        }
    }
}
