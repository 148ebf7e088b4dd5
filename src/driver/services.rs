//! Names, groups and monitors between the node task and handles.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::oneshot;

use super::disputes::Resolver;
use super::journal::{By, target};
use super::session::Session;
use super::{Command, Node, Shared, lock, now};
use crate::config::Config;
use crate::id::NodeId;
use crate::key::ByName;
use crate::proto::founding::Plan;
use crate::proto::node::Input;
use crate::proto::node::services::{self, Done, Output, Request, Setup};
use crate::proto::registry::{Params, Refusal, RequestId, Rule};
use crate::proto::replication::Limits;
use crate::wire::Code;
use crate::wire::services::monitor::Gone;
use crate::wire::services::{Service, Text};

/// What a node is told of names and groups at its start.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    /// Beside the default scope.
    pub(crate) scopes: Vec<Text>,
    pub(crate) plan: Plan,
    pub(crate) rule: Rule,
    /// Whom to ask, when the rule is to ask.
    pub(crate) resolver: Option<Resolver>,
    /// The same for names and families that have a rule of their own.
    pub(crate) rules: ByName<Rule>,
    pub(crate) resolvers: ByName<Resolver>,
}

/// What the services of a node with these settings are made of.
pub(crate) fn setup(config: &Config, services: &Services, is_client: bool) -> Setup {
    Setup {
        scopes: services.scopes.clone(),
        plan: services.plan.clone(),
        // Lists of contacts that overlap are heard of by then.
        settle: config.probe_interval,
        registry: Params {
            rule: services.rule.clone(),
            rules: services.rules.clone(),
            patience: config.claim_patience,
            barrier: config.claim_barrier,
            grant_kept: config.grant_kept,
            names_max: config.names_max,
            claims_max: config.claims_max,
            is_client,
        },
        replication: Limits {
            owner_max: config.entries_per_peer_max,
            total_max: config.entries_max,
            tombstones_max: config.tombstones_max,
            window: config.services_window,
            sync_interval: config.names_sync_interval,
        },
        watches_max: config.watches_max,
    }
}

/// Requests of handles that the node task has not answered.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    last: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: HashMap<RequestId, oneshot::Sender<Result<Done, Refusal>>>,
    is_closed: bool,
}

impl Requests {
    /// Nobody is answered any more.
    pub(crate) fn close(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.is_closed = true;
        waiting.answers.clear();
    }

    fn wait(&self, id: RequestId, done: oneshot::Sender<Result<Done, Refusal>>) -> Result<(), Refusal> {
        let mut waiting = lock(&self.waiting);
        if waiting.is_closed {
            return Err(Refusal::Shutdown);
        }
        waiting.answers.insert(id, done);
        Ok(())
    }

    fn answer(&self, id: RequestId, outcome: Result<Done, Refusal>) {
        let waiting = lock(&self.waiting).answers.remove(&id);
        if let Some(done) = waiting {
            let _ = done.send(outcome);
        }
    }
}

impl Shared {
    /// Whether this node has to do with that scope. The default scope is empty.
    pub(crate) fn takes_part(&self, scope: &str) -> bool {
        self.names.table(scope).is_some()
    }

    /// Asks the node task, and waits for its answer, which comes by the deadline.
    ///
    /// Dropping it gives the request up.
    pub(crate) async fn request(&self, request: Request, deadline: Instant) -> Result<Done, Refusal> {
        struct GiveUp<'a>(&'a Shared, RequestId);
        impl Drop for GiveUp<'_> {
            fn drop(&mut self) {
                if lock(&self.0.requests.waiting).answers.remove(&self.1).is_some() {
                    self.0.command(Command::Service(services::Input::GiveUp { id: self.1 }));
                }
            }
        }
        let id = RequestId(self.requests.last.fetch_add(1, Ordering::Relaxed));
        let (done, answered) = oneshot::channel();
        self.requests.wait(id, done)?;
        let _give_up = GiveUp(self, id);
        self.command(Command::Service(services::Input::Request { id, request, deadline }));
        answered.await.unwrap_or(Err(Refusal::Shutdown))
    }
}

impl Node {
    pub(super) fn act_on_services(&mut self, output: Output) {
        match output {
            Output::Send { to, frame } => self.send_service(&to, frame),
            Output::Dial { peer } => self.node.handle(Input::Want { peer, urgent: true }, now()),
            Output::Track { serial } => {
                let mailboxes = &self.shared.mailboxes;
                if !mailboxes.track(serial) && !mailboxes.is_closing(serial) {
                    let closed = services::Input::Closed { serial, gone: Gone::NoSuchMailbox, reason: None };
                    self.node.handle(Input::Service(closed), now());
                }
            }
            Output::Done { id, outcome } => self.shared.requests.answer(id, outcome),
            Output::Named { scope, name, named, reason } => self.shared.names.apply(&scope, name, named, reason),
            Output::Member { scope, group, pid, tag, count, cause } => {
                self.shared.groups.apply(&scope, group, pid, tag, count, cause);
            }
            Output::Lost { scope, name, serial, winner } => {
                if self.shared.names.lost(&scope, &name, serial, winner) {
                    self.shared.shut_mailbox(serial);
                }
            }
            Output::Over { scope, name, serial } => self.shared.names.over(&scope, &name, serial),
            Output::Decide { dispute, over } => self.decide(dispute, over),
            Output::Notice { watch, told, cut } => self.shared.notice(watch, told, cut),
            Output::Armed { peer, watches } => {
                if let Some(session) = self.session_with(&peer) {
                    session.armed(watches);
                }
            }
            Output::Ready => self.shared.names.ready(),
            Output::Broken { peer } => {
                self.shared.journal.service_broken(&peer);
                self.node.handle(Input::Disconnect { peer: peer.name().clone() }, now());
            }
        }
    }
    /// The session with that very life, if there is one.
    fn session_with(&self, peer: &NodeId) -> Option<Arc<Session>> {
        self.shared.session(peer.name()).filter(|session| session.peer == *peer)
    }

    fn send_service(&mut self, to: &NodeId, frame: Service) {
        let Some(session) = self.session_with(to) else { return };
        if session.push_service(frame) {
            return;
        }
        let why = "it does not read what it is told of names, groups and mailboxes";
        tracing::debug!(target: target::PROTOCOL, peer = %to, why, "the peer is too slow");
        match self.carrier_of(&session) {
            Some(carrier) => carrier.close(Code::SLOW),
            None => {
                self.shared.journal.disconnects(to, By::Slow);
                self.node.handle(Input::Disconnect { peer: to.name().clone() }, now());
            }
        }
    }
}
