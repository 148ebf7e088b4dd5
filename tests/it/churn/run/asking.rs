//! What nodes are asked for, and what they may answer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use distribute::{
    BroadcastError, Bytes, CallError, Groups, Monitored, NodeId, Pid, RegisterError, Registration, ReplaceError,
    SendError, UnregisterError, UpdateError,
};
use tokio::sync::mpsc;

use super::super::books::{Event, Letter, Said, Watch};
use super::{DOUBLE, GROUPS, NAMES, Order, Run, Unsaid, group, name};
use crate::common::millis;

/// What came of a request.
pub(super) enum Answer {
    Registered {
        claim: (&'static str, Pid),
        was_ready: bool,
        outcome: Result<Registration<Event>, RegisterError>,
    },
    Replaced {
        old: Pid,
        claim: (&'static str, Pid),
        was_ready: bool,
        outcome: Result<Registration<Event>, ReplaceError>,
    },
    Unregistered {
        by: NodeId,
        claim: (&'static str, Pid),
        was_ready: bool,
        outcome: Result<(), UnregisterError>,
    },
    Updated {
        by: NodeId,
        was_ready: bool,
        outcome: Result<Bytes, UpdateError<()>>,
    },
    Called {
        by: NodeId,
        of: NodeId,
        question: u64,
        outcome: Result<u64, CallError>,
    },
}

impl Run {
    fn metadata(&mut self, named: &'static str) -> Bytes {
        self.next += 1;
        let metadata = Bytes::from(self.next.to_string());
        self.books.metadata.insert((named, metadata.clone()));
        metadata
    }

    /// Whether nobody is about to take it away, or to make it.
    fn is_new(&self, claim: &(&'static str, Pid)) -> bool {
        !self.books.claims.contains(claim) && !self.books.taking.contains(claim)
    }

    /// One request of one node.
    pub(super) fn ask(&mut self) {
        let host = self.some_host();
        let (which, all) = (self.rng.usize(..NAMES.len()), self.rng.usize(..GROUPS.len()));
        let (named, among) = (NAMES[which], GROUPS[all]);
        let desk = self.desk(host);
        let life = &self.lives[&host];
        let (by, registry, was_ready) = (life.id.clone(), life.node.registry(), life.node.is_ready());
        let claim = (named, life.desks[desk].pid());
        let owner = registry.entry(name(named)).map(|entry| entry.owner);
        let what = match self.rng.u8(..100) {
            0..20 => {
                if !self.is_new(&claim) {
                    return;
                }
                let metadata = self.metadata(named);
                self.books.claims.insert(claim.clone());
                let asked = registry.register(name(named), &self.lives[&host].desks[desk]).metadata(metadata);
                self.requests.spawn(async move {
                    let outcome = asked.await;
                    Answer::Registered { claim, was_ready, outcome }
                });
                "register"
            }
            20..26 => {
                let Some(old) = owner.filter(|old| *old != claim.1) else { return };
                if !self.is_new(&claim) {
                    return;
                }
                let metadata = self.metadata(named);
                self.books.claims.insert(claim.clone());
                self.books.taking.insert((named, old.clone()));
                let asked =
                    registry.replace(name(named), old.clone(), &self.lives[&host].desks[desk]).metadata(metadata);
                self.requests.spawn(async move {
                    let outcome = asked.await;
                    Answer::Replaced { old, claim, was_ready, outcome }
                });
                "replace"
            }
            26..36 => {
                let Some(owner) = owner else { return };
                let claim = (named, owner.clone());
                self.books.taking.insert(claim.clone());
                self.requests.spawn(async move {
                    let outcome = registry.unregister(name(named), owner).await;
                    Answer::Unregistered { by, claim, was_ready, outcome }
                });
                "unregister"
            }
            36..42 => {
                if owner.is_none() {
                    return;
                }
                let metadata = self.metadata(named);
                self.requests.spawn(async move {
                    let outcome = registry.update(name(named), |_| Ok(metadata.clone())).await;
                    Answer::Updated { by, was_ready, outcome }
                });
                "update"
            }
            42..50 => {
                life.node.groups().join(group(among), &life.desks[desk]).unwrap();
                *self.books.joined.entry((among, claim.1)).or_default() += 1;
                "join"
            }
            50..55 => {
                let member = (among, claim.1);
                let left = life.node.groups().leave(group(among), &life.desks[desk]);
                let times = self.books.joined.get_mut(&member);
                assert_eq!(left.is_ok(), times.is_some(), "SEED={}: {left:?}", self.seed);
                if let Some(times) = times {
                    *times -= 1;
                    if *times == 0 {
                        self.books.joined.remove(&member);
                    }
                }
                "leave"
            }
            55..67 => {
                let patience = millis([50, 1_000, 5_000][self.rng.usize(..3)]);
                self.order(host, Order::Broadcast(among, patience));
                "broadcast"
            }
            67..80 => {
                let to = if self.rng.bool() {
                    let members = life.node.groups().members(group(among));
                    self.pick(&members)
                } else {
                    life.node.registry().lookup(name(named)).ok()
                };
                let Some(to) = to else { return };
                self.order(host, Order::Send(to));
                "send"
            }
            80..90 => {
                let members = life.node.membership().alive();
                let rpc = life.node.rpc();
                let Some(of) = self.pick(&members) else { return };
                let question = self.rng.u64(..);
                self.requests.spawn(async move {
                    let outcome = rpc.call(of.name(), DOUBLE, question).await;
                    Answer::Called { by, of, question, outcome }
                });
                "call"
            }
            90..96 => {
                self.watch(host, desk);
                "watch"
            }
            96..98 => {
                let desk = self.lives.get_mut(&host).expect("it runs").desks.swap_remove(desk);
                self.close(desk);
                "close"
            }
            _ => {
                let watches: Vec<u64> = self.books.watches.keys().copied().collect();
                let Some(id) = self.pick(&watches) else { return };
                let watch = &self.books.watches[&id];
                if watch.monitor.is_none() {
                    return;
                }
                self.books.watches.remove(&id);
                "end a watch"
            }
        };
        self.count(what);
    }

    fn order(&self, host: u8, order: Order) {
        // A node that waits for another is not given ever more to say.
        if self.unsaid.load(Ordering::Relaxed) < 200 {
            let unsaid = Unsaid::new(&self.unsaid);
            self.lives[&host].orders.send((order, unsaid)).expect("it speaks as long as it runs");
        }
    }

    fn watch(&mut self, host: u8, desk: usize) {
        let target: Monitored = if self.rng.u8(..4) == 0 {
            let hosts = self.hosts();
            let other = self.pick(&hosts).expect("somebody runs");
            self.lives[&other].id.clone().into()
        } else {
            let known = self.known.clone();
            let Some(pid) = self.pick(&known) else { return };
            pid.into()
        };
        self.next += 1;
        let (id, until_dead, in_band) = (self.next, self.rng.bool(), self.rng.bool());
        let life = &self.lives[&host];
        let inbox = &life.desks[desk];
        let by = inbox.pid();
        let monitor = match (in_band, until_dead) {
            (true, true) => {
                inbox.monitor_until_dead(target.clone(), move |notice| Event::Notice(id, notice.fate));
                None
            }
            (true, false) => {
                inbox.monitor(target.clone(), move |notice| Event::Notice(id, notice.fate));
                None
            }
            (false, true) => Some(life.node.monitor_until_dead(target.clone())),
            (false, false) => Some(life.node.monitor(target.clone())),
        };
        self.books.watches.insert(id, Watch { by, target, until_dead, monitor, told: None });
    }

    pub(super) fn answered(&mut self, answer: Answer) {
        let seed = self.seed;
        match answer {
            Answer::Registered { claim, was_ready, outcome } => {
                let is_open = self.books.open.contains(&claim.1);
                match outcome {
                    Ok(registration) if is_open => self.books.holders.push((claim, registration)),
                    Err(RegisterError::Timeout(_)) | Ok(_) => {}
                    Err(RegisterError::Taken { .. }) => _ = self.books.claims.remove(&claim),
                    Err(RegisterError::NotReady) if !was_ready => _ = self.books.claims.remove(&claim),
                    Err(RegisterError::MailboxClosed(_) | RegisterError::Shutdown) if !is_open => {}
                    Err(error) => panic!("SEED={seed}: {claim:?} {error:?}"),
                }
            }
            Answer::Replaced { old, claim, was_ready, outcome } => {
                let is_open = self.books.open.contains(&claim.1);
                self.books.taking.remove(&(claim.0, old.clone()));
                match outcome {
                    Ok(registration) => {
                        self.books.claims.remove(&(claim.0, old));
                        if is_open {
                            self.books.holders.push((claim, registration));
                        }
                    }
                    Err(ReplaceError::Timeout(_)) => {}
                    Err(ReplaceError::NotOwner { .. } | ReplaceError::NotRegistered) => {
                        self.books.claims.remove(&claim);
                    }
                    Err(ReplaceError::NotReady) if !was_ready => _ = self.books.claims.remove(&claim),
                    Err(ReplaceError::MailboxClosed(_) | ReplaceError::Shutdown) if !is_open => {}
                    Err(error) => panic!("SEED={seed}: {claim:?} in place of {old} {error:?}"),
                }
            }
            Answer::Unregistered { by, claim, was_ready, outcome } => {
                self.books.taking.remove(&claim);
                match outcome {
                    Ok(()) => _ = self.books.claims.remove(&claim),
                    Err(
                        UnregisterError::NotOwner { .. } | UnregisterError::NotRegistered | UnregisterError::Timeout(_),
                    ) => {}
                    Err(UnregisterError::NotReady) if !was_ready => {}
                    Err(UnregisterError::Shutdown) if !self.runs(&by) => {}
                    Err(error) => panic!("SEED={seed}: {claim:?} {error:?}"),
                }
            }
            Answer::Updated { by, was_ready, outcome } => match outcome {
                Ok(_) | Err(UpdateError::NotRegistered | UpdateError::Timeout(_)) => {}
                Err(UpdateError::NotReady) if !was_ready => {}
                Err(UpdateError::Shutdown) if !self.runs(&by) => {}
                Err(error) => panic!("SEED={seed}: {error:?}"),
            },
            Answer::Called { by, of, question, outcome } => match outcome {
                Ok(answer) => assert_eq!(answer, question.wrapping_mul(2), "SEED={seed}"),
                Err(error) if self.is_calm && self.runs(&by) && self.runs(&of) => {
                    panic!("SEED={seed}: {by} calls {of} on a calm day: {error:?}")
                }
                Err(
                    CallError::NotConnected(..)
                    | CallError::Timeout(_)
                    | CallError::Disconnected(_)
                    | CallError::ShuttingDown
                    | CallError::Cancelled,
                ) => self.count("failed call"),
                Err(error) => panic!("SEED={seed}: {error:?}"),
            },
        }
    }
}

/// Says one thing after another, each with its number.
pub(super) async fn speak(
    from: NodeId,
    groups: Groups,
    mut orders: mpsc::UnboundedReceiver<(Order, Unsaid)>,
    said: Arc<Mutex<Vec<Letter>>>,
) {
    let mut number = 0;
    while let Some((order, _unsaid)) = orders.recv().await {
        number += 1;
        let event = Event::Letter { from: from.clone(), number };
        let to = match order {
            Order::Broadcast(among, patience) => match groups.broadcast(group(among), &event).timeout(patience).await {
                Ok(report) => report.outcomes().map(|(pid, outcome)| (pid.clone(), Said::Copy(outcome))).collect(),
                // It is stopping.
                Err(BroadcastError::Shutdown) => Vec::new(),
                Err(error) => panic!("{error:?}"),
            },
            Order::Send(to) => {
                let outcome = match to.send(event).await {
                    Ok(()) => Said::Accepted,
                    Err(
                        SendError::NotConnected(..)
                        | SendError::SessionEnded(_)
                        | SendError::MailboxClosed(_)
                        | SendError::Shutdown,
                    ) => Said::Failed,
                    Err(error) => panic!("{error:?}"),
                };
                vec![(to.pid().clone(), outcome)]
            }
        };
        said.lock().unwrap().push(Letter { from: from.clone(), number, to });
    }
}
