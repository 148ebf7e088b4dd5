//! The run itself: what is due happens, what a machine wants is done, and packets find their way or do not.

use std::time::Duration;

use bytes::Bytes;

use super::clock::{Time, nanos};
use super::links::{EndState, LinkId, Payload, REDIALS};
use super::machine::{Id, Input, Machine, Output, Path, Rank, Seen, State, Unlinked, Way, What};
use super::network::{Dropped, mix};
use super::report::Fault;
use super::{Breach, Dial, LIFE_STEP, Phase, Sim, digest_of};

/// What is planned.
#[derive(Debug)]
pub(super) enum Event {
    Work {
        node: u32,
        work: Work,
    },
    Thaw {
        node: u32,
    },
    Unblock {
        node: u32,
    },
    /// A slow node takes up what waits.
    Wake {
        node: u32,
    },
    /// The link may have been idle for long enough.
    Idle {
        link: LinkId,
    },
    Flow {
        flow: usize,
    },
    /// A contact may have been lost from sight.
    Again {
        node: u32,
        to: u32,
    },
}

/// What a node has to do; it waits while the node is frozen or busy.
#[derive(Debug)]
pub(super) enum Work {
    Timer {
        at: Time,
    },
    Datagram {
        link: LinkId,
        end: usize,
        sent: Time,
        /// Its place in the backlog, once it waits.
        ticket: Option<u32>,
        packet: Bytes,
    },
    Stream {
        link: LinkId,
        end: usize,
        sent: Time,
        payload: Payload,
    },
    Unlinked {
        from: Id,
        packet: Bytes,
    },
    /// The first flight of a handshake.
    Hello {
        from: Id,
        dial: u64,
    },
    /// The second, which accepts or tells a life that is not over yet.
    Answer {
        from: Id,
        dial: u64,
        known: Option<u32>,
    },
    /// Whoever dialled knows a later life.
    Stale {
        known: u32,
    },
    /// It is time to send the first flight again, or to give up.
    Redial {
        to: u32,
        dial: u64,
    },
    /// It is time to look for an acknowledgement.
    Look {
        link: LinkId,
        end: usize,
    },
    Resend {
        link: LinkId,
        end: usize,
    },
    /// The other end has closed the link.
    Close {
        link: LinkId,
        end: usize,
        why: Unlinked,
    },
    Contact {
        to: u32,
    },
    /// It is time to look whether all has been said.
    Depart {
        tries: u32,
    },
}

impl Work {
    /// Whether the network brought it.
    fn is_from_afar(&self) -> bool {
        match self {
            Self::Datagram { .. }
            | Self::Stream { .. }
            | Self::Unlinked { .. }
            | Self::Hello { .. }
            | Self::Answer { .. }
            | Self::Stale { .. }
            | Self::Close { .. } => true,
            Self::Timer { .. }
            | Self::Redial { .. }
            | Self::Look { .. }
            | Self::Resend { .. }
            | Self::Contact { .. }
            | Self::Depart { .. } => false,
        }
    }
}

/// While something is outstanding, an acknowledgement is looked for at least so often.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// The first look comes two round trips and so much later: what QUIC allows an acknowledgement to be held back.
const ACK_DELAY: Duration = Duration::from_millis(25);
const RESEND_MIN: Duration = Duration::from_millis(200);
/// How often a node that leaves waits for its streams, [`RESEND_MIN`] each time.
const DEPART_TRIES: u32 = 10;

impl<M: Machine> Sim<M> {
    /// Lets everything happen that is due until then.
    pub(super) fn run_to(&mut self, limit: Time) {
        while let Some((at, event)) = self.agenda.next(limit) {
            self.now = at;
            self.report.events += 1;
            self.fold(at);
            match event {
                Event::Work { node, work } => self.deliver(node, work),
                Event::Thaw { node } => self.thaw(node),
                Event::Unblock { node } => self.unblock(node),
                Event::Wake { node } => self.wake(node),
                Event::Idle { link } => self.idle(link),
                Event::Flow { flow } => self.flow_on(flow),
                Event::Again { node, to } => self.contact_again(node, to),
            }
            if self.settings.rules.is_some() {
                self.check_on();
            }
        }
        self.now = limit;
    }

    fn fold(&mut self, value: u64) {
        self.trace = mix(self.trace ^ value);
    }

    fn plan(&mut self, at: Time, node: u32, work: Work) {
        self.agenda.plan(at, Event::Work { node, work });
    }

    /// Hands work to a node, or lets it wait there.
    fn deliver(&mut self, node: u32, work: Work) {
        let now = self.now;
        let this = &self.nodes[node as usize];
        if this.phase != Phase::Running {
            // Whoever sent it hears nothing; whose timer it was is gone.
            if let Work::Datagram { link, end, .. } | Work::Stream { link, end, .. } = work {
                self.unacknowledged(link, 1 - end);
            }
            return;
        }
        if this.frozen_until.is_some() || this.blocked_until.is_some() && work.is_from_afar() {
            self.report.faults.note(Fault::HeldUp);
            return self.hold(node, work);
        }
        let is_busy = this.blocked_until.is_none() && !this.inbox.is_empty() || this.busy_until > now;
        if is_busy {
            self.report.faults.note(Fault::Slowed);
            self.hold(node, work);
            return self.plan_wake(node);
        }
        self.perform(node, work);
        let this = &mut self.nodes[node as usize];
        this.busy_until = now + this.service;
    }

    /// Lets work wait at a node that cannot do it now.
    fn hold(&mut self, node: u32, mut work: Work) {
        if let Work::Datagram { link, end, ticket, packet, .. } = &mut work
            && let Some(open) = self.links.get(*link)
        {
            let (number, gave_way) = open.ends[*end].backlog.push(packet.len());
            *ticket = Some(number);
            (0..gave_way).for_each(|_| self.report.faults.note(Fault::Overflowed));
        }
        if let Work::Datagram { link, end, .. } | Work::Stream { link, end, .. } = &work {
            self.unacknowledged(*link, 1 - *end);
        }
        self.nodes[node as usize].inbox.push_back(work);
    }

    fn plan_wake(&mut self, node: u32) {
        let this = &mut self.nodes[node as usize];
        if !this.is_wake_planned {
            this.is_wake_planned = true;
            self.agenda.plan(this.busy_until.max(self.now), Event::Wake { node });
        }
    }

    fn wake(&mut self, node: u32) {
        let this = &mut self.nodes[node as usize];
        this.is_wake_planned = false;
        if this.phase != Phase::Running || this.frozen_until.is_some() || this.blocked_until.is_some() {
            return;
        }
        if let Some(work) = this.inbox.pop_front() {
            this.busy_until = self.now + this.service;
            self.perform(node, work);
        }
        if !self.nodes[node as usize].inbox.is_empty() {
            self.plan_wake(node);
        }
    }

    fn thaw(&mut self, node: u32) {
        let this = &mut self.nodes[node as usize];
        if this.frozen_until.is_none_or(|until| until > self.now) {
            return;
        }
        this.frozen_until = None;
        // Nobody knows whether a process that goes on sees its timers or its packets first.
        let timers_first = match self.rng.u8(..3) {
            0 => Some(true),
            1 => Some(false),
            _ => None,
        };
        if let Some(timers_first) = timers_first {
            let is_first = |work: &Work| matches!(work, Work::Timer { .. }) == timers_first;
            this.inbox.make_contiguous().sort_by_key(|work| !is_first(work));
        }
        self.check.set_late(node, self.nodes[node as usize].service > 0, self.now);
        self.catch_up(node);
    }

    fn unblock(&mut self, node: u32) {
        let this = &mut self.nodes[node as usize];
        if this.blocked_until.is_some_and(|until| until <= self.now) {
            this.blocked_until = None;
            self.catch_up(node);
        }
    }

    /// Does what has waited.
    fn catch_up(&mut self, node: u32) {
        let this = &self.nodes[node as usize];
        if this.frozen_until.is_some() || this.blocked_until.is_some() {
            return;
        }
        if self.nodes[node as usize].service > 0 {
            return self.plan_wake(node);
        }
        while let Some(work) = self.nodes[node as usize].inbox.pop_front() {
            self.perform(node, work);
        }
    }

    fn perform(&mut self, node: u32, work: Work) {
        match work {
            Work::Timer { at } => self.timer(node, at),
            Work::Datagram { link, end, sent, ticket, packet } => self.datagram(link, end, sent, ticket, packet),
            Work::Stream { link, end, sent, payload } => self.stream(link, end, sent, payload),
            Work::Unlinked { from, packet } => self.packet(from, node, Way::Unlinked, packet),
            Work::Hello { from, dial } => self.hello(from, node, dial),
            Work::Answer { from, dial, known } => self.answer(node, from, dial, known),
            Work::Stale { known } => self.told_stale(node, known),
            Work::Redial { to, dial } => self.redial(node, to, dial),
            Work::Look { link, end } => self.look(link, end),
            Work::Resend { link, end } => self.resend(link, end),
            Work::Close { link, end, why } => self.close_end(link, end, why),
            Work::Contact { to } => self.contact(node, to),
            Work::Depart { tries } => self.depart(node, tries),
        }
    }

    /// Gives a machine an input, and does what it wants.
    pub(super) fn tell(&mut self, node: u32, input: Input) {
        let clock = self.clock_of(node);
        if let Some(machine) = &mut self.nodes[node as usize].machine {
            machine.handle(input, clock.at(self.now));
            self.drain(node);
        }
    }

    fn timer(&mut self, node: u32, at: Time) {
        let clock = self.clock_of(node);
        let this = &mut self.nodes[node as usize];
        if this.timer != Some(at) {
            return;
        }
        this.timer = None;
        if at < self.now {
            self.report.faults.note(Fault::LateTimer);
        }
        let now = clock.at(self.now);
        let Some(machine) = &mut this.machine else { return };
        if machine.poll_timeout().is_some_and(|due| due <= now) {
            if !this.heard.is_empty() {
                for peer in machine.judged(now) {
                    if let Some(heard) = this.heard.get(&peer.node) {
                        machine.handle(Input::Heard { peer, at: clock.at(*heard) }, now);
                        self.report.faults.note(Fault::Heard);
                    }
                }
            }
            machine.handle_timeout(now);
        }
        self.drain(node);
    }

    /// Plans the node's next timer, unless an earlier one is planned, which will plan it.
    pub(super) fn plan_timer(&mut self, node: u32) {
        let clock = self.clock_of(node);
        let this = &mut self.nodes[node as usize];
        let Some(due) = this.machine.as_ref().and_then(Machine::poll_timeout) else { return };
        // A machine that is due now must not stop the clock.
        let at = clock.when(due).max(self.now + 1);
        if this.timer.is_none_or(|planned| at < planned) {
            this.timer = Some(at);
            self.plan(at, node, Work::Timer { at });
        }
    }

    /// Does what the machine wants.
    pub(super) fn drain(&mut self, node: u32) {
        let mut is_over = false;
        while let Some(output) = self.nodes[node as usize].machine.as_mut().and_then(Machine::poll_output) {
            match output {
                Output::Send { to, way, rank, packet } => self.send(node, to, way, rank, packet),
                Output::Dial { node: to } => self.dial(node, to),
                Output::Event { what, seen } => self.event(node, what, seen),
                Output::Fact { body } => self.fact(node, &body),
                Output::Renewed { life } => self.renew(node, life),
                Output::Superseded => self.report.faults.note(Fault::Superseded),
                Output::GoodbyeSaid => is_over = true,
            }
        }
        if self.settings.rules.is_some()
            && let Some(score) = self.nodes[node as usize].machine.as_ref().map(Machine::score)
            && let Err(breach) = self.check.score(score)
        {
            self.breach(breach, self.id(node), format!("{score}"));
        }
        if is_over {
            return self.depart(node, DEPART_TRIES);
        }
        self.plan_timer(node);
    }

    fn event(&mut self, node: u32, what: What, seen: Seen) {
        let observer = self.id(node);
        self.fold(u64::from(node) << 32 | u64::from(seen.id.node));
        self.fold(u64::from(seen.refutation) << 8 | seen.state as u64);
        let before = self.check.pictures[node as usize].digest;
        let is_leaving = self.nodes[node as usize].is_leaving;
        let held = self.check.pictures[node as usize].get(seen.id.node);
        if let Err(breach) = self.check.event(observer, what, seen, is_leaving, self.now)
            && self.settings.rules.is_some()
        {
            self.breach(breach, observer, format!("{what:?} {seen:?} after {held:?}"));
        }
        let picture = &self.check.pictures[node as usize];
        self.report.view_sizes.insert(picture.live);
        self.divergence.replace(before, picture.digest, self.now);
        let gone = |life| Id { node: seen.id.node, life };
        match what {
            What::Died => {
                self.judge(observer, seen.id);
                self.report.given_up(node, seen.id, self.now);
            }
            What::Left => self.report.given_up(node, seen.id, self.now),
            What::Replaced { old } => self.report.given_up(node, gone(old), self.now),
            What::Returned => self.report.flaps += 1,
            What::Suspected => self.report.suspicions += 1,
            _ => {}
        }
    }

    /// A death was declared: it is false when the process runs.
    fn judge(&mut self, observer: Id, id: Id) {
        let subject = &self.nodes[id.node as usize];
        let is_alive = subject.phase == Phase::Running && (subject.born..=subject.id.life).contains(&id.life);
        if !is_alive || subject.is_leaving {
            return;
        }
        self.report.false_positives += 1;
        if !subject.is_tainted {
            self.report.false_positives_healthy += 1;
            if !self.nodes[observer.node as usize].is_tainted {
                self.report.false_positives_among_healthy += 1;
                self.report.healthy_removed.insert(id.node);
            }
        }
    }

    fn fact(&mut self, node: u32, body: &[u8]) {
        let Ok(number) = body.try_into().map(u64::from_be_bytes) else { return };
        if let Some(spread) = self.report.facts.get_mut(number as usize).filter(|spread| spread.origin != node) {
            spread.arrivals.push(Duration::from_nanos(self.now) - spread.at);
        }
    }

    /// The process goes on under another life.
    fn renew(&mut self, node: u32, life: u32) {
        let this = &mut self.nodes[node as usize];
        let old = this.id;
        this.id.life = life;
        self.truth ^= digest_of(old) ^ digest_of(this.id);
        self.report.faults.note(Fault::Renewed);
    }

    /// The good-bye is said: when the streams are through, or have had time to be, the links close with it and the process
    /// ends.
    fn depart(&mut self, node: u32, tries: u32) {
        let links = self.nodes[node as usize].links.values();
        let is_held_back = |(link, end): &(LinkId, usize)| {
            self.links.get(*link).is_some_and(|open| !open.ends[*end].stream.is_empty())
        };
        if tries > 0 && links.copied().collect::<Vec<_>>().iter().any(is_held_back) {
            return self.plan(self.now + nanos(RESEND_MIN), node, Work::Depart { tries: tries - 1 });
        }
        for (link, end) in std::mem::take(&mut self.nodes[node as usize].links).into_values() {
            self.notify(link, end, Unlinked::Left);
            self.links.close(link, end);
        }
        self.end(node, Phase::Left);
        self.report.faults.note(Fault::Left);
    }

    pub(super) fn path(&self, from: u32, to: u32) -> Path {
        let rtt = Duration::from_nanos(self.between.rtt(from, to));
        Path { rtt, datagram_max: self.settings.datagram_max }
    }

    fn packet(&mut self, from: Id, to: u32, way: Way, packet: Bytes) {
        self.report.bytes_in[to as usize] += packet.len() as u64;
        let path = self.path(from.node, to);
        self.tell(to, Input::Packet { from, way, path, packet });
    }

    fn send(&mut self, from: u32, to: u32, way: Way, rank: Rank, packet: Bytes) {
        self.fold(u64::from(from) << 32 | u64::from(to));
        for piece in packet.chunks(8) {
            let mut bytes = [0; 8];
            bytes[..piece.len()].copy_from_slice(piece);
            self.fold(u64::from_le_bytes(bytes));
        }
        self.report.sent(from, rank, packet.len());
        if way == Way::Unlinked {
            let from = self.id(from);
            return self.scatter(from.node, to, false, |packet| Work::Unlinked { from, packet }, packet);
        }
        let Some(&(link, end)) = self.nodes[from as usize].links.get(&to) else {
            return self.report.faults.note(Fault::Unlinked);
        };
        let now = self.now;
        let Some(open) = self.links.get(link) else { return };
        open.used = now;
        open.ends[end].sent(now);
        let is_oversized = way == Way::Datagram && packet.len() > self.settings.datagram_max;
        if is_oversized {
            self.report.faults.note(Fault::Oversized);
        }
        if way == Way::Stream || is_oversized {
            return self.write(link, end, Payload::Packet(packet));
        }
        let work = |packet| Work::Datagram { link, end: 1 - end, sent: now, ticket: None, packet };
        let gossip_loss = if rank == Rank::Gossip { self.between.network.gossip_loss } else { 0.0 };
        let is_lost = self.rng_says(self.between.network.datagram_loss) || self.rng_says(gossip_loss);
        if self.fate(from, to).is_err() || is_lost {
            return self.unacknowledged(link, end);
        }
        if self.is_blocked(from) {
            self.unacknowledged(link, end);
        }
        self.scatter(from, to, true, work, packet);
    }

    /// Sends a datagram, which may come late, twice, or not at all.
    fn scatter(&mut self, from: u32, to: u32, has_passed: bool, work: impl Fn(Bytes) -> Work, packet: Bytes) {
        if !has_passed && self.fate(from, to).is_err() {
            return;
        }
        let mut at = self.arrival(from, to);
        if self.rng_says(self.between.network.reorder) {
            self.report.faults.note(Fault::Reordered);
            at += self.rng.u64(..=nanos(self.between.network.reorder_by));
        }
        if self.rng_says(self.between.network.duplicate) {
            self.report.faults.note(Fault::Duplicated);
            let again = self.arrival(from, to);
            self.plan(again, to, work(packet.clone()));
        }
        self.plan(at, to, work(packet));
    }

    /// When a packet that is sent now arrives: it leaves when nothing blocks its sender.
    fn arrival(&mut self, from: u32, to: u32) -> Time {
        let departs = self.nodes[from as usize].blocked_until.unwrap_or(self.now);
        departs + self.between.latency(from, to, &mut self.rng)
    }

    fn is_blocked(&self, node: u32) -> bool {
        self.nodes[node as usize].blocked_until.is_some()
    }

    fn rng_says(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.rng.f64() < chance
    }

    fn fate(&mut self, from: u32, to: u32) -> Result<(), Dropped> {
        let fate = self.between.fate(from, to, &mut self.rng);
        if let Err(dropped) = fate {
            self.report.faults.note(match dropped {
                Dropped::Cut => Fault::Cut,
                Dropped::Split => Fault::Split,
                Dropped::Lost => Fault::Lost,
            });
        }
        fate
    }

    /// A datagram is at its end of the link.
    fn datagram(&mut self, link: LinkId, end: usize, sent: Time, ticket: Option<u32>, packet: Bytes) {
        let Some(open) = self.links.get(link) else { return };
        if ticket.is_some_and(|ticket| !open.ends[end].backlog.take(ticket)) {
            return;
        }
        let (from, to) = (open.ends[1 - end].id, open.ends[end].id);
        match self.end_state(link, end) {
            EndState::Open => {
                self.used(link);
                self.acknowledge(link, 1 - end, sent);
                self.packet(from, to.node, Way::Datagram, packet);
            }
            EndState::Waiting => {
                self.report.faults.note(Fault::Early);
                self.acknowledge(link, 1 - end, sent);
            }
            EndState::Closed => self.reset(link, 1 - end),
        }
    }

    /// The state of an end as its process knows it: that of another process is nothing to it.
    fn end_state(&mut self, link: LinkId, end: usize) -> EndState {
        match self.links.get(link) {
            Some(open) if self.nodes[open.ends[end].id.node as usize].id == open.ends[end].id => open.ends[end].state,
            _ => EndState::Closed,
        }
    }

    fn used(&mut self, link: LinkId) {
        if let Some(open) = self.links.get(link) {
            open.used = self.now;
        }
    }

    /// Part of a stream is at its end of the link.
    fn stream(&mut self, link: LinkId, end: usize, sent: Time, payload: Payload) {
        let now = self.now;
        let Some(open) = self.links.get(link) else { return };
        let (from, to) = (open.ends[1 - end].id, open.ends[end].id);
        if self.end_state(link, end) == EndState::Closed {
            return self.reset(link, 1 - end);
        }
        self.used(link);
        self.acknowledge(link, 1 - end, sent);
        match payload {
            Payload::Ready => self.ready(link, end),
            Payload::Packet(packet) => self.packet(from, to.node, Way::Stream, packet),
            Payload::Application => drop(self.nodes[to.node as usize].heard.insert(from.node, now)),
        }
    }

    /// The end that sent something hears that it arrived, if the acknowledgement arrives.
    fn acknowledge(&mut self, link: LinkId, sender: usize, sent: Time) {
        let Some(open) = self.links.get(link) else { return };
        let (from, to) = (open.ends[1 - sender].id.node, open.ends[sender].id.node);
        if open.ends[sender].oldest.is_none() {
            return;
        }
        if self.fate(from, to).is_err() {
            return self.unacknowledged(link, sender);
        }
        if let Some(open) = self.links.get(link) {
            open.ends[sender].acknowledged(sent);
        }
    }

    /// What an end sent is not acknowledged for now: it looks again and again, until it is or the link is lost.
    fn unacknowledged(&mut self, link: LinkId, end: usize) {
        let Some(open) = self.links.get(link) else { return };
        let first_look = self.now + 2 * open.rtt + nanos(ACK_DELAY);
        let this = &mut open.ends[end];
        if this.state == EndState::Open && this.oldest.is_some() && !this.is_watching {
            (this.is_watching, this.looks) = (true, 0);
            let node = this.id.node;
            self.plan(first_look, node, Work::Look { link, end });
        }
    }

    fn look(&mut self, link: LinkId, end: usize) {
        let now = self.now;
        let lost_after = nanos(self.settings.links.lost_after);
        let Some(open) = self.links.get(link) else { return };
        let first = 2 * open.rtt + nanos(ACK_DELAY);
        let (here, there) = (open.ends[end].id, open.ends[1 - end].id);
        let this = &mut open.ends[end];
        let Some(oldest) = this.oldest.filter(|_| this.state == EndState::Open) else {
            this.is_watching = false;
            return;
        };
        this.looks += 1;
        let next = now + (first << this.looks.min(20)).min(nanos(LOOK_MAX));
        if now >= oldest + lost_after {
            self.report.faults.note(Fault::LinkLost);
            self.notify(link, end, Unlinked::Lost);
            return self.close_end(link, end, Unlinked::Lost);
        }
        let other = &self.nodes[there.node as usize];
        let answers = other.phase == Phase::Running && other.frozen_until.is_none() && other.blocked_until.is_none();
        let answers = answers && !self.is_blocked(here.node);
        let passes = answers && self.fate(here.node, there.node).is_ok() && self.fate(there.node, here.node).is_ok();
        if passes && self.end_state(link, 1 - end) == EndState::Closed {
            return self.reset(link, end);
        }
        let Some(open) = self.links.get(link) else { return };
        if passes {
            let this = &mut open.ends[end];
            (this.oldest, this.is_watching, this.looks) = (None, false, 0);
            return;
        }
        self.plan(next.min(oldest + lost_after), here.node, Work::Look { link, end });
    }

    /// Only this end still has the link, and the other says so.
    fn reset(&mut self, link: LinkId, end: usize) {
        self.report.faults.note(Fault::Reset);
        self.notify(link, 1 - end, Unlinked::Lost);
    }

    /// Tells the other end that the link is closed, once, if that arrives.
    fn notify(&mut self, link: LinkId, end: usize, why: Unlinked) {
        let Some(open) = self.links.get(link) else { return };
        let (from, to) = (open.ends[end].id.node, open.ends[1 - end].id.node);
        if open.ends[1 - end].state != EndState::Closed && self.fate(from, to).is_ok() {
            // A close in good order comes after all that was sent before it.
            let at = match why {
                Unlinked::Left | Unlinked::Idle => self.now + self.between.longest(from, to),
                Unlinked::Lost | Unlinked::Asked => self.arrival(from, to),
            };
            self.plan(at, to, Work::Close { link, end: 1 - end, why });
        }
    }

    /// The link is over at this end.
    fn close_end(&mut self, link: LinkId, end: usize, why: Unlinked) {
        let Some(open) = self.links.get(link) else { return };
        let (here, peer) = (open.ends[end].id, open.ends[1 - end].id);
        if self.links.close(link, end) != EndState::Open {
            return;
        }
        let links = &mut self.nodes[here.node as usize].links;
        if links.get(&peer.node).is_some_and(|(there, _)| *there == link) {
            links.remove(&peer.node);
        }
        self.tell(here.node, Input::Unlinked { peer, why });
    }

    /// Writes to the stream of a link.
    fn write(&mut self, link: LinkId, end: usize, payload: Payload) {
        let now = self.now;
        let Some(open) = self.links.get(link) else { return };
        open.used = now;
        open.ends[end].sent(now);
        open.ends[end].stream.push_back(payload);
        if !open.ends[end].is_resending {
            self.pump(link, end);
        }
    }

    /// Sends what the stream holds, until something is lost.
    fn pump(&mut self, link: LinkId, end: usize) {
        let now = self.now;
        loop {
            let Some(open) = self.links.get(link) else { return };
            let (from, to, rtt) = (open.ends[end].id.node, open.ends[1 - end].id.node, open.rtt);
            if open.ends[end].stream.is_empty() {
                open.ends[end].resends = 0;
                return;
            }
            let passes = self.fate(from, to).is_ok();
            let arrival = self.arrival(from, to);
            if self.is_blocked(from) {
                self.unacknowledged(link, end);
            }
            let Some(open) = self.links.get(link) else { return };
            let this = &mut open.ends[end];
            if passes {
                this.stream_until = (this.stream_until + 1).max(arrival);
                let (at, payload) = (this.stream_until, this.stream.pop_front().expect("it is not empty"));
                self.plan(at, to, Work::Stream { link, end: 1 - end, sent: now, payload });
            } else {
                let wait = nanos(RESEND_MIN).max(2 * rtt) << this.resends.min(6);
                (this.is_resending, this.resends) = (true, this.resends + 1);
                self.plan(now + wait, from, Work::Resend { link, end });
                return self.unacknowledged(link, end);
            }
        }
    }

    fn resend(&mut self, link: LinkId, end: usize) {
        self.report.faults.note(Fault::Resent);
        let Some(open) = self.links.get(link) else { return };
        open.ends[end].is_resending = false;
        if open.ends[end].state == EndState::Open {
            self.pump(link, end);
        }
    }

    /// Begins a dial, unless there is one or a link.
    pub(super) fn dial(&mut self, from: u32, to: u32) {
        let this = &mut self.nodes[from as usize];
        if from == to || this.links.contains_key(&to) || this.dials.contains_key(&to) {
            return;
        }
        self.dials += 1;
        self.report.handshakes += 1;
        this.dials.insert(to, Dial { number: self.dials, flights: 0 });
        self.redial(from, to, self.dials);
    }

    fn redial(&mut self, from: u32, to: u32, number: u64) {
        let source = self.id(from);
        let dials = &mut self.nodes[from as usize].dials;
        let Some(dial) = dials.get_mut(&to).filter(|dial| dial.number == number) else { return };
        dial.flights += 1;
        let flights = dial.flights;
        if flights > REDIALS.len() {
            dials.remove(&to);
            self.report.faults.note(Fault::DialFailed);
            self.plan(self.now + nanos(self.settings.contact_interval), from, Work::Contact { to });
            return self.tell(from, Input::DialFailed { node: to });
        }
        self.flight(from, to, Work::Hello { from: source, dial: number });
        let next = REDIALS.get(flights).map_or(self.settings.links.connect_timeout, |next| *next);
        let wait = nanos(next) - nanos(REDIALS[flights - 1]);
        self.plan(self.now + wait, from, Work::Redial { to, dial: number });
    }

    /// Sends a flight of a handshake.
    fn flight(&mut self, from: u32, to: u32, work: Work) {
        if self.fate(from, to).is_ok() {
            let work_there = nanos(self.settings.links.handshake_work);
            let at = self.arrival(from, to) + work_there;
            self.plan(at, to, work);
        }
    }

    /// Somebody wants a link.
    fn hello(&mut self, from: Id, node: u32, dial: u64) {
        let here = self.id(node);
        let known = self.later_life(node, from);
        self.flight(node, from.node, Work::Answer { from: here, dial, known });
    }

    /// The later life that a node knows of a peer's name, if it does.
    fn later_life(&self, node: u32, peer: Id) -> Option<u32> {
        let machine = self.nodes[node as usize].machine.as_ref()?;
        machine.life_of(peer.node).filter(|known| *known > peer.life)
    }

    /// The answer to a dial.
    fn answer(&mut self, node: u32, from: Id, number: u64, known: Option<u32>) {
        let dials = &mut self.nodes[node as usize].dials;
        if dials.get(&from.node).is_none_or(|dial| dial.number != number) {
            return;
        }
        dials.remove(&from.node);
        if let Some(known) = known {
            self.told_stale(node, known);
            return self.dial(node, from.node);
        }
        if self.nodes[node as usize].links.contains_key(&from.node) {
            return;
        }
        if let Some(known) = self.later_life(node, from) {
            self.flight(node, from.node, Work::Stale { known });
            return self.tell(node, Input::DialFailed { node: from.node });
        }
        let (here, now) = (self.id(node), self.now);
        // The two may have dialled each other at once; then one link serves both.
        let theirs = self.nodes[from.node as usize].links.get(&node).copied();
        if let Some((link, end)) = theirs
            && self.end_state(link, 1 - end) == EndState::Waiting
            && self.links.get(link).is_some_and(|open| open.ends[1 - end].id == here && open.ends[end].id == from)
        {
            return self.open(link, 1 - end);
        }
        let rtt = self.between.rtt(node, from.node);
        let link = self.links.add(here, from, rtt, now);
        self.agenda.plan(now + nanos(self.settings.links.idle), Event::Idle { link });
        // It goes before whatever the machine has to say.
        self.write(link, 0, Payload::Ready);
        self.open(link, 0);
    }

    /// The end is up.
    fn open(&mut self, link: LinkId, end: usize) {
        let Some(open) = self.links.get(link) else { return };
        open.ends[end].state = EndState::Open;
        let (here, peer) = (open.ends[end].id, open.ends[1 - end].id);
        let this = &mut self.nodes[here.node as usize];
        this.dials.remove(&peer.node);
        this.contacts.remove(&peer.node);
        let before = this.links.insert(peer.node, (link, end));
        self.report.links_max = self.report.links_max.max(this.links.len());
        if let Some((old, old_end)) = before.filter(|(old, _)| *old != link) {
            self.close_end(old, old_end, Unlinked::Lost);
        }
        let path = self.path(here.node, peer.node);
        self.tell(here.node, Input::Linked { peer, path });
    }

    /// The last flight of the handshake has arrived.
    fn ready(&mut self, link: LinkId, end: usize) {
        if self.end_state(link, end) == EndState::Waiting {
            self.open(link, end);
        }
    }

    /// A peer knows a later life of this name: the clock must have stepped back.
    fn told_stale(&mut self, node: u32, known: u32) {
        if known < self.id(node).life {
            return;
        }
        for (link, end) in std::mem::take(&mut self.nodes[node as usize].links).into_values() {
            self.notify(link, end, Unlinked::Asked);
            self.close_end(link, end, Unlinked::Asked);
        }
        let life = known + 1;
        assert!(!life.is_multiple_of(LIFE_STEP), "lives of one process do not run into those of the next");
        self.nodes[node as usize].dials.clear();
        self.renew(node, life);
        self.tell(node, Input::Renewed { life });
    }

    /// The link has perhaps been idle for long enough to be closed by agreement.
    fn idle(&mut self, link: LinkId) {
        let (now, idle) = (self.now, nanos(self.settings.links.idle));
        let Some(open) = self.links.get(link) else { return };
        let used = open.used;
        if now < used + idle {
            return self.agenda.plan(used + idle, Event::Idle { link });
        }
        let ids = [open.ends[0].id.node, open.ends[1].id.node];
        let are_open = open.ends.iter().all(|end| end.state == EndState::Open);
        let awake = |node: u32| self.is_running(node) && !self.is_frozen(node) && !self.is_blocked(node);
        let agree = are_open && ids.iter().all(|node| awake(*node));
        if agree && self.fate(ids[0], ids[1]).is_ok() && self.fate(ids[1], ids[0]).is_ok() {
            self.report.faults.note(Fault::LinkIdled);
            let at = now + self.between.longest(ids[0], ids[1]);
            self.plan(at, ids[1], Work::Close { link, end: 1, why: Unlinked::Idle });
            return self.close_end(link, 0, Unlinked::Idle);
        }
        // To ask for the agreement is to send something.
        for end in 0..2 {
            if let Some(open) = self.links.get(link).filter(|open| open.ends[end].state == EndState::Open) {
                open.ends[end].sent(now);
                self.unacknowledged(link, end);
            }
        }
        self.agenda.plan(now + nanos(self.settings.links.lost_after), Event::Idle { link });
    }

    /// Dials a contact that the node never had a link to.
    pub(super) fn contact(&mut self, node: u32, to: u32) {
        if self.nodes[node as usize].contacts.contains(&to) {
            self.dial(node, to);
        }
    }

    /// Dials a contact again that the node does not hold for live.
    fn contact_again(&mut self, node: u32, to: u32) {
        let Some(again) = self.settings.contact_again else { return };
        self.agenda.plan(self.now + nanos(again), Event::Again { node, to });
        let is_missed = self.state(node, to).is_none_or(|state| !state.is_live());
        if self.is_running(node) && !self.is_frozen(node) && is_missed {
            self.nodes[node as usize].contacts.insert(to);
            self.contact(node, to);
        }
    }

    /// The application of a node sends something to a peer's.
    fn flow_on(&mut self, flow: usize) {
        let super::Flow { from, to, every } = self.flows[flow];
        self.agenda.plan(self.now + every, Event::Flow { flow });
        if !self.is_running(from) || self.is_frozen(from) {
            return;
        }
        match self.nodes[from as usize].links.get(&to).copied() {
            Some((link, end)) => self.write(link, end, Payload::Application),
            None => self.dial(from, to),
        }
    }

    /// Checks what time alone may break, and one node's table now and then.
    fn check_on(&mut self) {
        if let Err((observer, subject)) = self.check.pass(self.now) {
            let held = self.check.pictures[observer as usize].get(subject);
            self.breach(Breach::SuspicionTooLong, self.id(observer), format!("of {subject}: {held:?}"));
        }
        self.events_to_check += 1;
        if self.events_to_check < self.nodes.len().max(256) {
            return;
        }
        self.events_to_check = 0;
        let node = self.next_checked % self.nodes.len();
        self.next_checked = node + 1;
        self.check_table(node as u32);
    }

    /// Compares a node's table with what its subscriber was told.
    pub fn check_table(&mut self, node: u32) {
        let Some(machine) = &self.nodes[node as usize].machine else { return };
        let mut table = Vec::with_capacity(self.nodes.len());
        machine.each_member(&mut |seen| table.push(seen));
        let differs = self.check.table(node, &table, machine.live()).err();
        let own = table.iter().find(|seen| seen.id.node == node).copied();
        let is_leaving = self.nodes[node as usize].is_leaving;
        if let Some(difference) = differs {
            self.breach(Breach::TableDiffers, self.id(node), difference);
        }
        if own.is_none_or(|own| matches!(own.state, State::Dead | State::Left)) && !is_leaving {
            self.breach(Breach::OwnDeath, self.id(node), format!("the table says {own:?}"));
        }
    }
}
