//! The owning side: what it is asked by those who want its name, or want to know whether it has it.

use std::sync::Arc;
use std::time::Instant;

use super::{Granted, Output, Purpose, Refusal, Registry, RequestId, Then, Timer};
use crate::id::{NodeId, NodeName, Pid};
use crate::wire::services::Text;
use crate::wire::services::registry::{Answer, Request};
use crate::wire::services::replication::{Binding, Ended, State};

/// Who asks an owner for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A handle on this node.
    Own(RequestId),
    Peer {
        peer: NodeId,
        number: u64,
    },
}

/// A request of a handle to an owner.
#[derive(Clone, Debug)]
pub(super) struct ToOwner {
    owner: NodeId,
    /// While there is no session with it.
    request: Option<Request>,
    deadline: Instant,
}

impl Registry {
    /// A handle asks the owner of a name for something, on whichever node.
    pub(super) fn ask_owner(&mut self, id: RequestId, owner: &NodeId, request: Request, deadline: Instant) {
        let (Request::Release { scope, .. } | Request::Update { scope, .. }) = &request else { return };
        if !self.scopes.contains_key(scope) {
            return self.done(id, Err(Refusal::NotInScope));
        }
        if *owner == self.id {
            return self.of_owner(Asker::Own(id), request);
        }
        self.timers.insert((deadline, Timer::Deadline(id)));
        let is_up = self.peers.contains(owner);
        let to = ToOwner { owner: owner.clone(), request: Some(request), deadline };
        self.to_owners.insert(id, to);
        if is_up {
            self.go_on_with_owner(owner);
        } else {
            self.outputs.push_back(Output::Dial { peer: owner.name().clone() });
        }
    }

    /// There is a session with the owner.
    pub(super) fn go_on_with_owner(&mut self, owner: &NodeId) {
        let waiting = self.to_owners.iter_mut().filter(|(_, to)| to.owner == *owner);
        let waiting: Vec<_> = waiting.filter_map(|(id, to)| Some((*id, to.request.take()?, to.deadline))).collect();
        for (id, request, deadline) in waiting {
            self.ask(owner, Purpose::Owner(id), request, deadline);
        }
    }

    /// It cannot be dialled. One that lives may be reached later, or dial itself.
    pub(super) fn owner_unreachable(&mut self, owner: &NodeName) {
        let owners = self.to_owners.values().map(|to| &to.owner).filter(|node| node.name() == owner);
        let gone: Vec<NodeId> = owners.filter(|node| !self.live.contains(node)).cloned().collect();
        gone.iter().for_each(|node| self.owner_gone(node));
    }

    /// What was not asked of it yet needs no asking: its names went with it.
    pub(super) fn owner_gone(&mut self, owner: &NodeId) {
        let waiting = self.to_owners.iter().filter(|(_, to)| to.owner == *owner && to.request.is_some());
        let waiting: Vec<RequestId> = waiting.map(|(id, _)| *id).collect();
        for id in waiting {
            self.forget_to_owner(id);
            self.done(id, Err(Refusal::NotRegistered));
        }
    }

    pub(super) fn forget_to_owner(&mut self, id: RequestId) -> bool {
        let Some(to) = self.to_owners.remove(&id) else { return false };
        self.timers.remove(&(to.deadline, Timer::Deadline(id)));
        true
    }

    pub(super) fn owner_answered(&mut self, id: RequestId, answer: Answer) {
        if self.forget_to_owner(id) {
            self.answer_asker(Asker::Own(id), answer);
        }
    }

    pub(super) fn answer_asker(&mut self, asker: Asker, answer: Answer) {
        let id = match asker {
            Asker::Peer { peer, number } => return self.answer(peer, number, answer),
            Asker::Own(id) => id,
        };
        let outcome = match answer {
            Answer::Released { .. } => Ok(Granted::Unregistered),
            Answer::Updated { version } => Ok(Granted::Updated { version }),
            Answer::Stale { version, metadata } => Err(Refusal::Stale { version, metadata }),
            Answer::NotOwner { owner: Some(owner) } => Err(Refusal::NotOwner { owner }),
            Answer::NotInScope | Answer::NotOwner { owner: None } => Err(Refusal::NotRegistered),
            _ => {
                self.counters.malformed += 1;
                Err(Refusal::Timeout)
            }
        };
        self.done(id, outcome);
    }

    /// Does what an owner is asked to do with its name.
    pub(super) fn of_owner(&mut self, asker: Asker, request: Request) {
        match request {
            Request::Release { scope, name, serial, successor } => {
                let (own, by) = (Pid::new(self.id.clone(), serial), successor.as_ref().map(Pid::node));
                if let Some((version, stamp)) = by.and_then(|by| self.handed_to(&scope, &name, &own, by)) {
                    // It is done: the answer was late.
                    return self.answer_asker(asker, Answer::Released { version, stamp });
                }
                let Some(own) = self.own_binding(&scope, &name).filter(|own| own.binding.serial == serial) else {
                    return self.not_the_owner(asker, &scope, &name);
                };
                let stamp = own.binding.stamp;
                let ended = match successor {
                    Some(by) => Ended::Replaced { by: by.node().clone(), old: own.binding },
                    None => Ended::Withdrawn,
                };
                self.write(&scope, &name, State::Gone(ended), Then::Owner { asker, stamp, is_update: false });
            }
            Request::Update { scope, name, serial, version, metadata } => {
                let Some(own) = self.own_binding(&scope, &name).filter(|own| own.binding.serial == serial) else {
                    return self.not_the_owner(asker, &scope, &name);
                };
                if own.version != version {
                    let metadata = own.binding.metadata.clone();
                    return self.answer_asker(asker, Answer::Stale { version: own.version, metadata });
                }
                if own.binding.metadata == metadata {
                    return self.answer_asker(asker, Answer::Updated { version });
                }
                let stamp = own.binding.stamp;
                let binding = Binding { metadata, ..Binding::clone(&own.binding) };
                let then = Then::Owner { asker, stamp, is_update: true };
                self.write(&scope, &name, State::Bound(Arc::new(binding)), then);
            }
            _ => {}
        }
    }

    fn not_the_owner(&mut self, asker: Asker, scope: &Text, name: &Text) {
        let owner = self.shown(scope, name);
        self.answer_asker(asker, Answer::NotOwner { owner });
    }

    /// Does this mailbox hold the name?
    pub(super) fn confirm(&self, scope: &Text, name: &Text, serial: u64) -> Answer {
        let Some(this) = self.scopes.get(scope) else { return Answer::NotInScope };
        if self.own_binding(scope, name).is_some_and(|own| own.binding.serial == serial) {
            return Answer::Holds;
        }
        if self.claims_name(scope, name, serial) || self.is_writing(scope, name) {
            return Answer::Claims;
        }
        // A mailbox that holds it next gets a later version.
        let next = self.own_binding(scope, name).map(|own| own.version - 1);
        Answer::Free { version: next.unwrap_or(this.own_version) }
    }

    /// A mailbox is gone that had handed its name to another node: it is not to be seen any longer.
    pub(super) fn handed_over_closed(&mut self, serial: u64) {
        for (scope, name) in self.handed_by(serial) {
            self.write(&scope, &name, State::Gone(Ended::Closed), Then::Nothing);
        }
    }

    /// By now all have the successor's binding, or there is none: whoever comes later is not to look for it.
    pub(super) fn hand_over_ended(&mut self, scope: &Text, name: &Text, version: u64) {
        if self.handing.get(&(scope.clone(), name.clone())) == Some(&version) {
            self.write(scope, name, State::Gone(Ended::Withdrawn), Then::Nothing);
        }
    }
}
