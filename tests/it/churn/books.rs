//! What handles were told, and what has to follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use distribute::{Bytes, Fate, Message, Monitor, Monitored, NameEntry, NodeId, Outcome, Pid, Registration};
use serde::{Deserialize, Serialize};

/// What mailboxes receive.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Event {
    /// Each life of a node counts what it says, to whomever, in the order of saying.
    Letter { from: NodeId, number: u64 },
    /// A watch is over, and why.
    #[serde(skip)]
    Notice(u64, Fate),
}

impl Message for Event {
    const TAG: &'static str = "test.churn";
    const VERSION: u32 = 1;
}

/// What became of something that was said, as whoever said it was told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Said {
    /// A send was accepted.
    Accepted,
    /// A send failed.
    Failed,
    /// One copy of a broadcast.
    Copy(Outcome),
}

impl Said {
    /// Whether it never left its node.
    fn is_unsent(self) -> bool {
        match self {
            Self::Accepted | Self::Copy(Outcome::Delivered | Outcome::NoAnswer) => false,
            Self::Failed | Self::Copy(_) => true,
        }
    }
}

/// What a node said to mailboxes, once.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) from: NodeId,
    pub(super) number: u64,
    pub(super) to: Vec<(Pid, Said)>,
}

/// Somebody who is to be told of an end.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) by: Pid,
    pub(super) target: Monitored,
    pub(super) until_dead: bool,
    /// The future, if it is one; else the notice comes to the mailbox.
    pub(super) monitor: Option<Monitor>,
    pub(super) told: Option<Fate>,
}

/// A name of a mailbox: it was asked for, and not refused or given up since.
type Claim = (&'static str, Pid);

#[derive(Default)]
pub(super) struct Books {
    /// The mailboxes that are open, on nodes that run.
    pub(super) open: BTreeSet<Pid>,
    /// How often each is in which group.
    pub(super) joined: BTreeMap<(&'static str, Pid), u32>,
    /// Who may have a name.
    pub(super) claims: BTreeSet<Claim>,
    /// What was ever said of the owner of a name.
    pub(super) metadata: BTreeSet<(&'static str, Bytes)>,
    /// Claims that somebody is taking away just now.
    pub(super) taking: BTreeSet<Claim>,
    /// Who was told that it has a name.
    pub(super) holders: Vec<(Claim, Registration<Event>)>,
    pub(super) watches: BTreeMap<u64, Watch>,
    pub(super) letters: Vec<Letter>,
    heard: BTreeSet<(NodeId, Pid, u64)>,
    last: BTreeMap<(NodeId, Pid), u64>,
}

impl Books {
    /// A mailbox has received something.
    pub(super) fn hear(&mut self, pid: &Pid, event: Event) {
        match event {
            Event::Letter { from, number } => {
                let last = self.last.insert((from.clone(), pid.clone()), number);
                assert!(last.is_none_or(|last| last < number), "{pid} got {number} of {from} after {last:?}");
                self.heard.insert((from, pid.clone(), number));
            }
            // Its node says good-bye, and nobody keeps account of its watches any more.
            Event::Notice(..) if !self.open.contains(pid) => {}
            Event::Notice(id, fate) => {
                let watch = self.watches.get_mut(&id).unwrap_or_else(|| panic!("{pid} is told {fate:?} unasked"));
                assert_eq!((&watch.by, watch.told), (pid, None), "one notice, {fate:?}: {watch:?}");
                watch.told = Some(fate);
            }
        }
    }

    /// Reads the futures.
    pub(super) fn poll(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        for watch in self.watches.values_mut().filter(|watch| watch.told.is_none()) {
            if let Some(monitor) = &mut watch.monitor
                && let Poll::Ready(notice) = Pin::new(monitor).poll(&mut context)
            {
                assert_eq!(notice.target, watch.target);
                watch.told = Some(notice.fate);
            }
        }
    }

    /// These mailboxes are no longer open.
    pub(super) fn close(&mut self, is_gone: impl Fn(&Pid) -> bool) {
        self.open.retain(|pid| !is_gone(pid));
        self.joined.retain(|(_, pid), _| !is_gone(pid));
        self.holders.retain(|((_, pid), _)| !is_gone(pid));
        // Whoever is on a closed mailbox is told nothing any more.
        self.watches.retain(|_, watch| !is_gone(&watch.by));
    }

    /// What holds whenever nothing has happened for a while; when calm, nothing was cut or held up before.
    pub(super) fn check(&self, live: &BTreeSet<NodeId>, names: &[NameEntry], is_calm: bool) -> Result<(), String> {
        self.names(names)?;
        self.watches(live, is_calm)?;
        self.letters(live, is_calm)
    }

    /// Who was told that it has a name has it, or was told that it lost it; and nobody else.
    fn names(&self, names: &[NameEntry]) -> Result<(), String> {
        for NameEntry { name, owner, metadata, .. } in names {
            if !self.open.contains(owner) {
                return Err(format!("{name} points at {owner}, which is gone"));
            }
            if !self.claims.iter().any(|(claimed, pid)| **claimed == **name && pid == owner) {
                return Err(format!("{name} is {owner}'s, which was told otherwise"));
            }
            if !self.metadata.iter().any(|(of, said)| **of == **name && said == metadata) {
                return Err(format!("nobody said {metadata:?} of {name}"));
            }
        }
        let mut context = Context::from_waker(Waker::noop());
        for ((name, pid), registration) in &self.holders {
            let has_it = names.iter().any(|entry| *entry.name == **name && entry.owner == *pid);
            if !has_it && pin!(registration.lost()).poll(&mut context).is_pending() {
                let shown = names.iter().find(|entry| *entry.name == **name);
                return Err(format!("{pid} was told that it has {name}, and not that it lost it to {shown:?}"));
            }
        }
        Ok(())
    }

    /// Each watch is on and its target lives, or it was told what became of it.
    fn watches(&self, live: &BTreeSet<NodeId>, is_calm: bool) -> Result<(), String> {
        for watch in self.watches.values() {
            let (lives, node) = match &watch.target {
                Monitored::Mailbox(pid) => (self.open.contains(pid), pid.node()),
                Monitored::Node(node) => (live.contains(node), node),
                other => panic!("nobody watches {other:?}"),
            };
            let runs = live.contains(node);
            let is_right = match watch.told {
                None => lives,
                Some(Fate::Closed | Fate::NoSuchMailbox) => !lives,
                Some(Fate::Disconnected) => !(watch.until_dead || is_calm && runs),
                Some(Fate::NodeDown) => !(is_calm && runs),
                Some(Fate::NodeLeft | Fate::Superseded) => !runs,
                Some(_) => false,
            };
            if !is_right {
                return Err(format!("the target lives: {lives}, its node: {runs}, but {watch:?}"));
            }
        }
        Ok(())
    }

    /// Each mailbox has what was delivered to it, and nothing that was not sent.
    fn letters(&self, live: &BTreeSet<NodeId>, is_calm: bool) -> Result<(), String> {
        // The last letter that was sent on this way and did not arrive, if none has arrived since.
        let mut missing: BTreeMap<(&NodeId, &Pid), u64> = BTreeMap::new();
        for Letter { from, number, to } in &self.letters {
            for (pid, said) in to {
                let way = (from, pid);
                let has_it = self.heard.contains(&(from.clone(), pid.clone(), *number));
                let both_live = self.open.contains(pid) && live.contains(from);
                if said.is_unsent() {
                    if has_it {
                        return Err(format!("{pid} got {number} of {from}, which was {said:?}"));
                    }
                    if is_calm && both_live {
                        return Err(format!("{number} of {from} to {pid} was {said:?} on a calm day"));
                    }
                } else if has_it {
                    missing.remove(&way);
                } else {
                    let gap = missing.insert(way, *number);
                    // It follows there what was sent before; if that was lost with a session, so is this.
                    let is_delivered = *said == Said::Copy(Outcome::Delivered) && gap.is_none();
                    if self.open.contains(pid) && is_delivered || is_calm && both_live {
                        return Err(format!("{number} of {from} was {said:?} and never came to {pid}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// All of it was looked at, and need not be again.
    pub(super) fn turn_page(&mut self, live: &BTreeSet<NodeId>) {
        self.watches.retain(|_, watch| watch.told.is_none());
        self.letters.clear();
        self.heard.clear();
        let open = &self.open;
        self.last.retain(|(from, pid), _| live.contains(from) && open.contains(pid));
        self.claims.retain(|(_, pid)| open.contains(pid));
    }
}
