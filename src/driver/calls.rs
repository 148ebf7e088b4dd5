//! The methods that a node serves, and the handlers at work.

use std::any::Any;
use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Shared;
use super::session::Session;
use crate::id::NodeId;
use crate::wire::{Code, Schema, Status};

/// A request as the node sees it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) caller: NodeId,
    pub(crate) deadline: Instant,
    pub(crate) schema: Schema,
    pub(crate) body: Bytes,
}

pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = Result<(Schema, Bytes), Status>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Request) -> HandlerFuture + Send + Sync>;

/// The methods of a node, by name.
pub(crate) struct Methods {
    served: RwLock<HashMap<String, (u64, Handler)>>,
    next: std::sync::atomic::AtomicU64,
    handlers: Arc<Semaphore>,
    handlers_max: usize,
}

impl std::fmt::Debug for Methods {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Methods")
    }
}

impl Methods {
    pub(crate) fn new(handlers_max: usize) -> Self {
        Self {
            served: RwLock::default(),
            next: std::sync::atomic::AtomicU64::new(0),
            handlers: Arc::new(Semaphore::new(handlers_max)),
            handlers_max,
        }
    }

    /// Serves a method; `None` when its name is taken.
    pub(crate) fn serve(&self, name: &str, handler: Handler) -> Option<u64> {
        let mut served = self.served.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if served.contains_key(name) {
            return None;
        }
        let id = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        served.insert(name.to_owned(), (id, handler));
        Some(id)
    }

    /// Serves the method no longer, if it is still the one of that id.
    pub(crate) fn remove(&self, name: &str, id: u64) {
        let mut served = self.served.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if served.get(name).is_some_and(|(served, _)| *served == id) {
            served.remove(name);
        }
    }

    fn handler(&self, name: &str) -> Option<Handler> {
        let served = self.served.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        served.get(name).map(|(_, handler)| handler.clone())
    }

    /// Waits until no handler runs.
    pub(crate) async fn drained(&self) {
        let _ = self.handlers.acquire_many(self.handlers_max as u32).await;
    }

    /// Runs a request of this very node.
    pub(crate) async fn run_local(
        &self,
        shared: &Shared,
        name: &str,
        request: Request,
    ) -> Result<(Schema, Bytes), Status> {
        if shared.is_stopping() {
            return Err(Status::ShuttingDown);
        }
        let handler = self.handler(name).ok_or(Status::NoSuchMethod)?;
        let _permit = self.handlers.clone().try_acquire_owned().map_err(|_| Status::Overloaded)?;
        run(&handler, request).await
    }
}

/// Handles a peer's request: runs the method's handler, or answers why not. Never waits.
///
/// # Errors
/// The code to close the link with, when the peer has too many calls open.
pub(crate) fn serve(
    shared: &Arc<Shared>,
    session: &Arc<Session>,
    id: u64,
    timeout_ms: u64,
    method: &str,
    schema: Schema,
    body: Bytes,
) -> Result<(), Code> {
    // A day is beyond any call; it also keeps the deadline from overflowing.
    let timeout = Duration::from_millis(timeout_ms.min(24 * 60 * 60 * 1000));
    let deadline = Instant::now() + timeout;
    let ready = if shared.is_stopping() {
        Err(Status::ShuttingDown)
    } else {
        let methods = &shared.methods;
        methods.handler(method).ok_or(Status::NoSuchMethod).and_then(|handler| {
            let permit = methods.handlers.clone().try_acquire_owned().map_err(|_| Status::Overloaded)?;
            Ok((handler, permit))
        })
    };
    let caller = session.peer.clone();
    let at = session.clone();
    match ready {
        Ok((handler, permit)) => session.serve(id, || {
            let task = tokio::spawn(async move {
                let outcome = run(&handler, Request { caller, deadline, schema, body }).await;
                // A call until its answer has left: whoever does not read answers reaches the limit of calls.
                match outcome {
                    Ok((schema, body)) if body.len() <= at.message_max => {
                        at.answer(id, Status::Answered, Some(schema), body).await;
                    }
                    Ok(_) => at.answer(id, Status::AnswerTooLarge, None, Bytes::new()).await,
                    Err(status) => at.answer(id, status, None, Bytes::new()).await,
                }
                at.served(id);
                drop(permit);
            });
            task.abort_handle()
        }),
        // An open call until the refusal has left, so a peer that floods and does not read reaches its limit.
        Err(status) => session.serve(id, || {
            let task = tokio::spawn(async move {
                at.answer(id, status, None, Bytes::new()).await;
                at.served(id);
            });
            task.abort_handle()
        }),
    }
}

/// Runs a handler to its end or its deadline, whichever is first; a panic is contained.
async fn run(handler: &Handler, request: Request) -> Result<(Schema, Bytes), Status> {
    let deadline = request.deadline;
    let future = catch_unwind(AssertUnwindSafe(|| handler(request))).map_err(|panic| {
        log_panic(&panic);
        Status::Panicked
    })?;
    match tokio::time::timeout_at(deadline, Contained(future)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Status::Expired),
    }
}

/// A future whose panic is an outcome.
struct Contained(HandlerFuture);

impl Future for Contained {
    type Output = Result<(Schema, Bytes), Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The future is not polled again after a panic, so nobody sees what it left half done.
        catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))).unwrap_or_else(|panic| {
            log_panic(&panic);
            Poll::Ready(Err(Status::Panicked))
        })
    }
}

fn log_panic(panic: &Box<dyn Any + Send>) {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text");
    tracing::warn!(panic = text, "a handler panicked");
}
