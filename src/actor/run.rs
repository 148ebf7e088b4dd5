//! The task of an actor.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::coop::consume_budget;
use tokio::time::Instant;

use super::exit::Status;
use super::restart::Restarts;
use super::{Actor, ActorContext, Exit, Next};
use crate::driver::journal::{Journal, target};
use crate::driver::mailboxes::Ending;
use crate::message::Message;
use crate::messaging::{Mailbox, Received};
use crate::wire::services::monitor::reason;

/// Makes the state anew.
pub(super) type Make<A> = Box<dyn FnMut() -> A + Send>;

/// How one life of an actor ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its handler said so.
    Stopped,
    Failed(String),
    Panicked(String),
    /// It was asked to, or its time is over.
    Asked,
    /// Nothing more will come.
    Closed,
}

/// An actor, as its task holds it. However the task ends, the fields are dropped in this order.
pub(super) struct Run<A: Actor> {
    /// There is one but between two lives.
    pub(super) actor: Option<A>,
    pub(super) make: Option<Make<A>>,
    pub(super) restarts: Restarts,
    pub(super) context: ActorContext<A::Message>,
    pub(super) mailbox: Mailbox<A::Message>,
    pub(super) ending: Exiting,
}

/// Tells the exit: [`Exit::Killed`] unless there was another.
pub(super) struct Exiting {
    pub(super) status: Arc<Status>,
    pub(super) exit: Option<Exit>,
}

impl Drop for Exiting {
    fn drop(&mut self) {
        self.status.exit.send_replace(Some(self.exit.take().unwrap_or(Exit::Killed)));
    }
}

impl<A: Actor> Run<A> {
    /// Lives until the actor has ended for good. Then all is dropped.
    pub(super) async fn run(mut self) {
        let exit = self.lives().await;
        Journal::actor_ended(self.context.pid(), exit.kind(), exit.is_clean());
        self.mailbox.set_ending(match &exit {
            Exit::Stopped => Ending::Closed,
            Exit::Panicked(_) => Ending::Panicked,
            Exit::Failed(text) => Ending::Failed(reason(text)),
            // What a panic said may quote a message, and stays here.
            Exit::TooManyRestarts(_) | Exit::Killed => Ending::Failed(reason(exit.kind())),
        });
        self.ending.exit = Some(exit);
    }

    async fn lives(&mut self) -> Exit {
        loop {
            let mut is_over = false;
            let ended = self.life(&mut is_over).await;
            self.bury();
            if is_over || !self.restarts.follows(&ended) {
                return match ended {
                    Ended::Stopped | Ended::Asked | Ended::Closed => Exit::Stopped,
                    Ended::Failed(reason) => Exit::Failed(reason),
                    Ended::Panicked(text) => Exit::Panicked(text),
                };
            }
            let last = match ended {
                Ended::Panicked(text) => format!("panicked: {text}"),
                Ended::Failed(reason) => reason,
                Ended::Stopped | Ended::Asked | Ended::Closed => "stopped".into(),
            };
            let Some(pause) = self.restarts.next(Instant::now(), fastrand::f64()) else {
                return Exit::TooManyRestarts(last);
            };
            if !waited(pause, &self.ending.status, &self.context).await {
                return Exit::Stopped;
            }
            self.ending.status.restarts.fetch_add(1, Ordering::Relaxed);
            self.context.shared().journal.actor_restarts(self.context.pid(), pause);
        }
    }

    /// From the first message to the last, or to a panic. It is the last life when the actor was asked to stop, or its mailbox
    /// has ended, whatever happens to it on the way out.
    async fn life(&mut self, is_over: &mut bool) -> Ended {
        let Self { actor, make, context, mailbox, ending, .. } = self;
        let life = async {
            let actor = match (&mut *actor, make) {
                (Some(actor), _) => actor,
                (none, Some(make)) => none.insert(make()),
                // Only who has a maker begins anew.
                (None, None) => return Ended::Stopped,
            };
            let ended = messages(actor, context, mailbox, ending.status.stop.subscribe()).await;
            *is_over = matches!(ended, Ended::Asked | Ended::Closed);
            actor.stopping(context).await;
            ended
        };
        let ended = contained(life).await.unwrap_or_else(Ended::Panicked);
        if matches!(ended, Ended::Panicked(_)) {
            self.ending.status.panics.fetch_add(1, Ordering::Relaxed);
            self.context.shared().journal.actor_panicked(self.context.pid());
        }
        ended
    }

    /// Drops the state.
    fn bury(&mut self) {
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(self.actor.take())));
        if dropped.is_err() {
            tracing::warn!(target: target::ACTOR, actor = %self.context.pid(), "the state of an actor panicked when it was dropped");
        }
    }
}

/// Waits before the next life; false when the actor is to stop instead.
async fn waited<M: Message>(pause: Duration, status: &Status, context: &ActorContext<M>) -> bool {
    let mut stop = status.stop.subscribe();
    tokio::select! {
        biased;
        () = asked(&mut stop) => false,
        () = context.shared().stopped() => false,
        () = due(context.stop_at()) => false,
        () = tokio::time::sleep(pause) => true,
    }
}

/// Handles messages as they come.
async fn messages<A: Actor>(
    actor: &mut A,
    context: &mut ActorContext<A::Message>,
    mailbox: &mut Mailbox<A::Message>,
    mut stop: watch::Receiver<bool>,
) -> Ended {
    let mut next = actor.started(context).await;
    loop {
        match next {
            Next::Continue => {}
            Next::Stop => return Ended::Stopped,
            Next::StopAbnormal(reason) => return Ended::Failed(reason),
        }
        // A mailbox that is never empty leaves others their turn.
        consume_budget().await;
        let received = tokio::select! {
            biased;
            () = asked(&mut stop) => return Ended::Asked,
            () = due(context.stop_at()) => return Ended::Asked,
            received = mailbox.recv_or_refused() => received,
        };
        next = match received {
            None => return Ended::Closed,
            Some(Ok(received)) => handled(actor, received, context).await,
            Some(Err(refused)) => {
                context.set_sender(refused.from.clone());
                actor.refused(&refused, context)
            }
        };
    }
}

async fn handled<A: Actor>(
    actor: &mut A,
    received: Received<A::Message>,
    context: &mut ActorContext<A::Message>,
) -> Next {
    let Received { message, from, trace } = received;
    context.set_sender(from);
    let handling = actor.handle(message, context);
    match trace {
        Some(trace) => trace.scope(handling).await,
        None => handling.await,
    }
}

/// Runs a future of a user's. A panic is an outcome, with its text.
async fn contained<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    // It is not polled again after a panic, and the state that it left half done is dropped.
    poll_fn(|task| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(task))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(text_of(panic.as_ref()))),
    })
    .await
}

async fn asked(stop: &mut watch::Receiver<bool>) {
    // Its sender is held by the task itself.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a panic says.
fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text").to_owned()
}
