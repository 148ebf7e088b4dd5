//! One link's own clockwork: signs of life, the idle close, the agreed stop.
//!
//! QUIC's keep-alive stays off: an idle link costs nothing. While something is outstanding (bytes that the peer may not
//! have, an open call, a stop that is not agreed yet) the link asks for a sign of life, and is lost when none comes.
//!
//! A link is closed in good order when it has been idle, or when another one replaces it. Both sides stop: each finishes
//! its streams, tells how many it opened, and says when it has read all of the other's. Only then does either close, so
//! nothing in flight is lost, and the close code alone proves to the other side that all was well.

use std::time::{Duration, Instant};

use crate::wire::Code;

/// When a link asks, gives up, and closes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// How long to wait for a sign of life, while something is outstanding, before asking.
    pub(crate) ask_after: Duration,
    /// How often to repeat a question that was not answered.
    pub(crate) repeat_every: Duration,
    /// Without a sign for so long, the link is lost.
    pub(crate) lost_after: Duration,
    /// What to do with a link that was unused for so long.
    pub(crate) idle: Idle,
}

/// What becomes of a link that nobody uses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Idle {
    Close(Duration),
    /// Ask for a sign of life, so that nothing on the way forgets the link.
    Keep(Duration),
}

impl Idle {
    fn after(self) -> Duration {
        match self {
            Self::Close(after) | Self::Keep(after) => after,
        }
    }
}

/// What the clockwork wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    SendPing {
        seq: u64,
    },
    /// Finish this side's streams, then report with [`Clockwork::streams_finished`].
    FinishStreams,
    SendStop {
        code: Code,
        streams: u64,
    },
    SendStopped,
    /// Close now: with such a code that keeps the session, or as lost.
    Close(Code),
}

/// The state of one link that is up.
#[derive(Debug)]
pub(crate) struct Clockwork {
    times: Times,
    /// Since when something is outstanding.
    outstanding: Option<Instant>,
    /// The number of the last ping, and whether anything became outstanding after it was sent.
    ping: u64,
    newer_than_ping: bool,
    pinged: Option<Instant>,
    heard: Instant,
    /// When something for the session arrived.
    received: Option<Instant>,
    used: Instant,
    calls: usize,
    stop: Stop,
}

#[derive(Debug, Default)]
struct Stop {
    /// Why this side stops, once it does.
    code: Option<Code>,
    sent: bool,
    /// How many streams the peer opened, from its STOP.
    peer_streams: Option<u64>,
    /// How many of the peer's streams have been read to their end.
    read: u64,
    said_stopped: bool,
    heard_stopped: bool,
}

impl Clockwork {
    pub(crate) fn new(times: Times, now: Instant) -> Self {
        Self {
            times,
            outstanding: None,
            ping: 0,
            newer_than_ping: false,
            pinged: None,
            heard: now,
            received: None,
            used: now,
            calls: 0,
            stop: Stop::default(),
        }
    }

    /// This side wrote something that the peer may not have.
    pub(crate) fn wrote(&mut self, now: Instant) {
        self.used = now;
        self.newer_than_ping = true;
        self.mark_outstanding(now);
    }

    /// The peer sent something for the session.
    pub(crate) fn received(&mut self, now: Instant) {
        self.used = now;
        self.heard = now;
        self.received = Some(now);
    }

    /// The link was used for what is a question of its own: whoever asked finds out whether it arrived.
    pub(crate) fn touched(&mut self, now: Instant) {
        self.used = now;
    }

    /// When something for the session arrived last.
    pub(crate) fn last_received(&self) -> Option<Instant> {
        self.received
    }

    /// The peer gave any sign of life.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = self.heard.max(now);
    }

    /// So many calls are open, of either side, or sends wait for credit: a caller waits for its answer, a callee wants to know
    /// of its caller's end, and a sender of the end of who grants.
    pub(crate) fn calls_open(&mut self, calls: usize, now: Instant) {
        if calls > 0 {
            self.mark_outstanding(now);
        }
        self.calls = calls;
    }

    pub(crate) fn pong(&mut self, seq: u64, now: Instant) {
        self.heard(now);
        if seq == self.ping && !self.newer_than_ping && self.calls == 0 && !self.is_stopping() {
            self.outstanding = None;
        }
    }

    /// Begins the agreed stop, unless it has begun.
    pub(crate) fn begin_stop(&mut self, code: Code, now: Instant) -> Option<Output> {
        if let Some(begun) = self.stop.code {
            // The graver reason stands: a link that was found idle may be the last.
            if begun.keeps_session() && !code.keeps_session() {
                self.stop.code = Some(code);
            }
            return None;
        }
        self.stop.code = Some(code);
        self.mark_outstanding(now);
        Some(Output::FinishStreams)
    }

    /// Whether a sign of life is awaited.
    pub(crate) fn is_waiting(&self) -> bool {
        self.outstanding.is_some()
    }

    /// Whether this side has read all that the peer sent, and has sent all of its own.
    pub(crate) fn is_agreed(&self) -> bool {
        self.stop.said_stopped
    }

    /// Why the link stops.
    pub(crate) fn stop_code(&self) -> Code {
        self.stop.code.unwrap_or(Code::IDLE)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.code.is_some()
    }

    /// All streams of this side are finished; it had opened so many.
    pub(crate) fn streams_finished(&mut self, streams: u64) -> Vec<Output> {
        let code = self.stop_code();
        self.stop.sent = true;
        let mut outputs = vec![Output::SendStop { code, streams }];
        outputs.extend(self.settle());
        outputs
    }

    /// The peer stops; it had opened so many streams.
    pub(crate) fn peer_stops(&mut self, code: Code, streams: u64, now: Instant) -> Vec<Output> {
        self.stop.peer_streams = Some(streams);
        let mut outputs: Vec<_> = self.begin_stop(code, now).into_iter().collect();
        outputs.extend(self.settle());
        outputs
    }

    /// One of the peer's streams was read to its end.
    pub(crate) fn stream_read(&mut self) -> Vec<Output> {
        self.stop.read += 1;
        self.settle()
    }

    pub(crate) fn peer_stopped(&mut self) -> Vec<Output> {
        self.stop.heard_stopped = true;
        self.settle()
    }

    fn settle(&mut self) -> Vec<Output> {
        let stop = &mut self.stop;
        let mut outputs = Vec::new();
        if !stop.said_stopped && stop.sent && stop.peer_streams.is_some_and(|all| stop.read >= all) {
            stop.said_stopped = true;
            outputs.push(Output::SendStopped);
        }
        if stop.said_stopped && stop.heard_stopped {
            outputs.push(Output::Close(stop.code.unwrap_or(Code::IDLE)));
        }
        outputs
    }

    fn mark_outstanding(&mut self, now: Instant) {
        if self.outstanding.is_none() {
            self.outstanding = Some(now);
        }
    }

    /// When to look again.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match self.outstanding {
            Some(since) => Some(self.ask_at(since).min(self.lost_at(since))),
            None if self.is_stopping() => None,
            None => Some(self.used + self.times.idle.after()),
        }
    }

    /// After a sign of life there is time; in silence the question is repeated often, so that the first moment of a
    /// healed path is used, while QUIC's own probes have backed off.
    fn ask_at(&self, since: Instant) -> Instant {
        let answered = self.heard.max(since);
        match self.pinged {
            Some(pinged) if pinged > answered => pinged + self.times.repeat_every,
            Some(pinged) => pinged.max(since) + self.times.ask_after,
            None => since + self.times.ask_after,
        }
    }

    fn lost_at(&self, since: Instant) -> Instant {
        self.heard.max(since) + self.times.lost_after
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<Output> {
        let Some(since) = self.outstanding else {
            if self.is_stopping() || now < self.used + self.times.idle.after() {
                return vec![];
            }
            return match self.times.idle {
                Idle::Close(_) => self.begin_stop(Code::IDLE, now).into_iter().collect(),
                Idle::Keep(_) => {
                    self.wrote(now);
                    self.ask(now)
                }
            };
        };
        if now >= self.lost_at(since) {
            // With all agreed but the last word, the link has served: the session goes on.
            let agreed = self.stop.said_stopped && self.stop.heard_stopped;
            return vec![Output::Close(if agreed { self.stop_code() } else { Code::LOST })];
        }
        if now < self.ask_at(since) { vec![] } else { self.ask(now) }
    }

    fn ask(&mut self, now: Instant) -> Vec<Output> {
        self.ping += 1;
        self.newer_than_ping = false;
        self.pinged = Some(now);
        vec![Output::SendPing { seq: self.ping }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times {
        ask_after: Duration::from_secs(3),
        repeat_every: Duration::from_millis(500),
        lost_after: Duration::from_secs(10),
        idle: Idle::Close(Duration::from_secs(60)),
    };

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_link_without_anything_outstanding_asks_nothing_and_idles_out() {
        let t0 = Instant::now();
        let mut link = Clockwork::new(TIMES, t0);
        assert_eq!(link.poll_timeout(), Some(t0 + secs(60)));
        assert_eq!(link.handle_timeout(t0 + secs(60) - Duration::from_nanos(1)), vec![]);
        assert_eq!(link.handle_timeout(t0 + secs(60)), vec![Output::FinishStreams]);
    }

    #[test]
    fn a_link_that_membership_uses_is_not_idle_and_asks_nothing() {
        let t0 = Instant::now();
        let mut link = Clockwork::new(TIMES, t0);
        link.touched(t0 + secs(50));
        assert!(!link.is_waiting());
        assert_eq!(link.last_received(), None);
        assert_eq!(link.handle_timeout(t0 + secs(110) - Duration::from_nanos(1)), vec![]);
        assert_eq!(link.handle_timeout(t0 + secs(110)), vec![Output::FinishStreams]);
        link.received(t0 + secs(111));
        assert_eq!(link.last_received(), Some(t0 + secs(111)));
    }

    #[test]
    fn a_kept_link_asks_now_and_then_and_never_stops() {
        let t0 = Instant::now();
        let mut link = Clockwork::new(Times { idle: Idle::Keep(secs(20)), ..TIMES }, t0);
        for n in 1..10 {
            let now = t0 + n * secs(20);
            assert_eq!(link.poll_timeout(), Some(now));
            assert_eq!(link.handle_timeout(now), vec![Output::SendPing { seq: n.into() }]);
            link.pong(n.into(), now);
        }
    }

    #[test]
    fn an_outstanding_write_asks_after_three_seconds_then_often_and_is_lost_after_ten() {
        let t0 = Instant::now();
        let mut link = Clockwork::new(TIMES, t0);
        link.wrote(t0);
        let mut asked = Vec::new();
        loop {
            let now = link.poll_timeout().unwrap();
            match link.handle_timeout(now)[..] {
                [Output::SendPing { .. }] => asked.push((now - t0).as_millis()),
                [Output::Close(code)] => {
                    assert_eq!((code, now), (Code::LOST, t0 + secs(10)));
                    break;
                }
                ref other => panic!("{other:?}"),
            }
        }
        assert_eq!(asked, (3000..10_000).step_by(500).collect::<Vec<_>>());
    }

    #[test]
    fn with_signs_of_life_the_questions_are_rare() {
        let t0 = Instant::now();
        let mut link = Clockwork::new(TIMES, t0);
        link.calls_open(1, t0);
        for n in 1..20 {
            let now = link.poll_timeout().unwrap();
            assert_eq!((now, link.handle_timeout(now)), (t0 + n * secs(3), vec![Output::SendPing { seq: n.into() }]));
            link.pong(n.into(), now);
        }
    }

    #[test]
    fn silence_before_the_write_does_not_count() {
        let t0 = Instant::now();
        let mut link = Clockwork::new(TIMES, t0);
        link.wrote(t0 + secs(50));
        assert_eq!(link.handle_timeout(t0 + secs(53)), vec![Output::SendPing { seq: 1 }]);
        let last = t0 + secs(60);
        assert_eq!(link.handle_timeout(last - Duration::from_nanos(1)), vec![Output::SendPing { seq: 2 }]);
        assert_eq!(link.handle_timeout(last), vec![Output::Close(Code::LOST)]);
    }

    #[test]
    fn the_answer_to_the_last_ping_settles_what_was_written_before_it() {
        let t0 = Instant::now();
        let mut link = Clockwork::new(TIMES, t0);
        link.wrote(t0);
        link.handle_timeout(t0 + secs(3));
        link.pong(1, t0 + secs(3));
        assert_eq!(link.poll_timeout(), Some(t0 + secs(60)));

        link.wrote(t0 + secs(4));
        link.handle_timeout(t0 + secs(7));
        link.wrote(t0 + secs(8));
        link.pong(2, t0 + secs(8));
        assert_eq!(link.poll_timeout(), Some(t0 + secs(10)), "the second write is newer than the ping");
        link.handle_timeout(t0 + secs(10));
        link.pong(3, t0 + secs(10));
        assert_eq!(link.poll_timeout(), Some(t0 + secs(68)));
    }

    /// Whatever happens in whatever order: who obeys `poll_timeout` is never called twice for one moment, a silent peer is
    /// found out in time, and none that gave a sign of life within that time is called lost.
    #[test]
    fn the_clock_neither_spins_nor_sleeps_too_long() {
        'seeds: for seed in 0..2000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let t0 = Instant::now();
            let idle = if rng.bool() { Idle::Close(secs(60)) } else { Idle::Keep(secs(20)) };
            let mut link = Clockwork::new(Times { idle, ..TIMES }, t0);
            let (mut now, mut heard, mut waiting_since) = (t0, t0, None);
            for _ in 0..200 {
                let event = now + Duration::from_millis(rng.u64(0..4000));
                while let Some(due) = link.poll_timeout().filter(|due| *due <= event) {
                    assert!(due >= now, "seed {seed}: a moment that has passed");
                    now = due;
                    let outputs = link.handle_timeout(now);
                    assert_eq!(outputs.len(), 1, "seed {seed}: called for nothing");
                    if let [Output::Close(code)] = outputs[..] {
                        assert_eq!(code, Code::LOST, "seed {seed}");
                        let silent = heard.max(waiting_since.expect("something was outstanding"));
                        assert_eq!(now, silent + TIMES.lost_after, "seed {seed}");
                        continue 'seeds;
                    }
                    waiting_since = waiting_since.or_else(|| link.is_waiting().then_some(now));
                    assert!(link.poll_timeout().is_none_or(|next| next > now), "seed {seed}: the clock spins");
                }
                now = event;
                match rng.u8(0..13) {
                    12 => link.touched(now),
                    0..=2 => link.wrote(now),
                    3 => link.calls_open(rng.usize(0..2), now),
                    4 => drop(link.begin_stop(Code::IDLE, now)),
                    5..=7 => {
                        link.pong(link.ping, now);
                        heard = now;
                    }
                    8 => {
                        link.received(now);
                        heard = now;
                    }
                    _ => {}
                }
                waiting_since = if link.is_waiting() { waiting_since.or(Some(now)) } else { None };
            }
        }
    }

    /// Every order in which the eight steps of an agreed stop can happen ends with both sides closing in good order, and
    /// never before both have read everything.
    #[test]
    fn both_sides_close_only_when_all_is_read() {
        let t0 = Instant::now();
        for seed in 0..2000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut side = [Clockwork::new(TIMES, t0), Clockwork::new(TIMES, t0)];
            let opened = [rng.u64(0..3), rng.u64(0..3)];
            // What is on its way to each side: its streams in any order, control frames in theirs.
            let mut unread = opened;
            let mut control = [std::collections::VecDeque::new(), std::collections::VecDeque::new()];
            let mut finishing = [false, false];
            let mut closed = [None, None];
            let both = rng.bool();
            let first = rng.usize(0..2);
            let apply = |who: usize,
                         outputs: Vec<Output>,
                         control: &mut [std::collections::VecDeque<Output>; 2],
                         finishing: &mut [bool; 2],
                         closed: &mut [Option<Code>; 2]| {
                for output in outputs {
                    match output {
                        Output::FinishStreams => finishing[who] = true,
                        Output::Close(code) => closed[who] = Some(code),
                        other => control[1 - who].push_back(other),
                    }
                }
            };
            let out = side[first].begin_stop(Code::IDLE, t0).into_iter().collect();
            apply(first, out, &mut control, &mut finishing, &mut closed);
            if both {
                let out = side[1 - first].begin_stop(Code::DUPLICATE_LINK, t0).into_iter().collect();
                apply(1 - first, out, &mut control, &mut finishing, &mut closed);
            }
            for _ in 0..200 {
                let who = rng.usize(0..2);
                if closed[who].is_some() {
                    continue;
                }
                let out = match rng.u8(0..3) {
                    0 if finishing[who] => {
                        finishing[who] = false;
                        side[who].streams_finished(opened[who])
                    }
                    1 if unread[1 - who] > 0 && side[1 - who].is_stopping() => {
                        unread[1 - who] -= 1;
                        side[who].stream_read()
                    }
                    2 => match control[who].pop_front() {
                        Some(Output::SendStop { code, streams }) => side[who].peer_stops(code, streams, t0),
                        Some(Output::SendStopped) => side[who].peer_stopped(),
                        _ => vec![],
                    },
                    _ => vec![],
                };
                apply(who, out, &mut control, &mut finishing, &mut closed);
                if closed.iter().any(Option::is_some) {
                    assert_eq!(unread, [0, 0], "seed {seed}: closed with a stream unread");
                }
            }
            for code in closed {
                assert!(code.is_some_and(Code::keeps_session), "seed {seed}: {closed:?}");
            }
        }
    }
}
