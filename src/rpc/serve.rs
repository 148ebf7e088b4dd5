//! Serving methods.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;

use tracing::Span;
use tracing::field::Empty;

use super::context::OverGuard;
use super::{CallContext, Method, Scope, content};
use crate::DecodeError;
use crate::correlation::CorrelationId;
use crate::driver::calls::{Handler, Reply, Request, contained, supervise};
use crate::driver::exchange::Content;
use crate::driver::journal::target;
use crate::driver::{Shared, inside};
use crate::error::{ServeError, SinkError};
use crate::message::{Message, decode};
use crate::wire::Status;

/// A method being served. Dropping it goes on serving; [`Serving::stop`] ends it.
#[derive(Debug)]
pub struct Serving {
    shared: Arc<Shared>,
    name: String,
    id: u64,
}

impl Serving {
    /// Serves the method no longer. Handlers at work go on.
    pub fn stop(self) {
        self.shared.methods.remove(&self.name, self.id);
    }
}

pub(super) fn serve<Q, R, F, Fut>(shared: &Arc<Shared>, method: Method<Q, R>, handler: F) -> Result<Serving, ServeError>
where
    Q: Message,
    R: Message,
    F: Fn(CallContext, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = R> + Send + 'static,
{
    register(shared, &method, Arc::new(Unary { handler, types: PhantomData::<fn(Q) -> R> }))
}

pub(super) fn serve_inline<Q, R, F>(
    shared: &Arc<Shared>,
    method: Method<Q, R>,
    handler: F,
) -> Result<Serving, ServeError>
where
    Q: Message,
    R: Message,
    F: Fn(CallContext, Q) -> R + Send + Sync + 'static,
{
    register(shared, &method, Arc::new(Inline { handler, types: PhantomData::<fn(Q) -> R> }))
}

pub(super) fn serve_stream<Q, R, F, Fut>(
    shared: &Arc<Shared>,
    method: Method<Q, R>,
    handler: F,
) -> Result<Serving, ServeError>
where
    Q: Message,
    R: Message,
    F: Fn(CallContext, Q, Sink<R>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    register(shared, &method, Arc::new(Streaming { handler, types: PhantomData::<fn(Q) -> R> }))
}

fn register<Q, R>(
    shared: &Arc<Shared>,
    method: &Method<Q, R>,
    handler: Arc<dyn Handler>,
) -> Result<Serving, ServeError> {
    let name = method.name().to_owned();
    match shared.methods.serve(&name, handler) {
        Some(id) => Ok(Serving { shared: shared.clone(), name, id }),
        None => Err(ServeError::Taken(name)),
    }
}

/// A method with one answer.
struct Unary<F, T> {
    handler: F,
    types: PhantomData<T>,
}

impl<Q, R, F, Fut> Handler for Unary<F, fn(Q) -> R>
where
    Q: Message,
    R: Message,
    F: Fn(CallContext, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = R> + Send + 'static,
{
    fn spawn(self: Arc<Self>, request: Request, reply: Reply) {
        tokio::spawn(async move {
            let (over, span) = (OverGuard(request.call.clone()), span(&request));
            let outcome = {
                let work = std::pin::pin!(async {
                    let (context, question) = open(&reply, request)?;
                    let answer = (self.handler)(context, question).await;
                    let answer = encoded(&answer)?;
                    if let Some(answer) = reply.send_now(answer) {
                        Box::pin(reply.send(answer)).await;
                    }
                    Ok(())
                });
                supervise(work, &over.0, |step| span.in_scope(|| Scope::of(&over.0).enter(step))).await
            };
            end(&reply, &span, outcome);
        });
    }

    fn is_stream(&self) -> bool {
        false
    }
}

/// A method that is answered where its request arrives.
struct Inline<F, T> {
    handler: F,
    types: PhantomData<T>,
}

impl<Q, R, F> Handler for Inline<F, fn(Q) -> R>
where
    Q: Message,
    R: Message,
    F: Fn(CallContext, Q) -> R + Send + Sync + 'static,
{
    fn spawn(self: Arc<Self>, request: Request, reply: Reply) {
        let (over, span) = (OverGuard(request.call.clone()), span(&request));
        let handle = || {
            contained(|| {
                let (context, question) = open(&reply, request)?;
                encoded(&(self.handler)(context, question))
            })
        };
        let answered = span.in_scope(|| Scope::of(&over.0).enter(handle));
        let outcome = match answered.map(|answer| reply.send_now(answer)) {
            Ok(None) => Ok(()),
            Ok(Some(answer)) => {
                // It is large, or there is no room now.
                tokio::spawn(async move {
                    reply.send(answer).await;
                    drop(over);
                    reply.end(Status::Answered);
                });
                return;
            }
            Err(status) => Err(status),
        };
        end(&reply, &span, outcome);
    }

    fn is_stream(&self) -> bool {
        false
    }
}

/// What an answer is on its way.
fn encoded<R: Message>(answer: &R) -> Result<Content, Status> {
    content(answer).map_err(|_| {
        // The error may quote the answer.
        tracing::debug!(target: target::CALL, "an answer cannot be encoded");
        Status::Panicked
    })
}

/// A method with a stream of items.
struct Streaming<F, T> {
    handler: F,
    types: PhantomData<T>,
}

impl<Q, R, F, Fut> Handler for Streaming<F, fn(Q) -> R>
where
    Q: Message,
    R: Message,
    F: Fn(CallContext, Q, Sink<R>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn spawn(self: Arc<Self>, request: Request, reply: Reply) {
        tokio::spawn(async move {
            let (over, span) = (OverGuard(request.call.clone()), span(&request));
            // The sink may be handed on, but the stream ends with the handler.
            let ending = Ending(Arc::new(reply));
            let outcome = {
                let work = std::pin::pin!(async {
                    let (context, question) = open(&ending.0, request)?;
                    let sink = Sink { reply: ending.0.clone(), items: PhantomData };
                    (self.handler)(context, question, sink).await;
                    Ok(())
                });
                supervise(work, &over.0, |step| span.in_scope(|| Scope::of(&over.0).enter(step))).await
            };
            end(&ending.0, &span, outcome);
        });
    }

    fn is_stream(&self) -> bool {
        true
    }
}

/// Ends a stream whose handler is dropped, though its sink lives.
struct Ending(Arc<Reply>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(Status::Cancelled);
    }
}

/// The span that a handler runs in. It has no parent here: it belongs to its caller's trace.
fn span(request: &Request) -> Span {
    let Request { call, term, .. } = request;
    let (method, caller) = (term.method.as_str(), &call.caller);
    let correlation = call.trace.map(|trace| tracing::field::display(CorrelationId::from(trace)));
    tracing::info_span!(target: target::CALL, parent: None, "call", method, %caller, correlation, outcome = Empty)
}

/// Ends a call whose handler is over.
fn end(reply: &Reply, span: &Span, outcome: Result<(), Status>) {
    let status = outcome.err().unwrap_or(Status::Answered);
    if !span.is_disabled() {
        span.record("outcome", tracing::field::debug(status));
    }
    if status == Status::Panicked {
        span.in_scope(|| reply.shared().journal.handler_panicked());
    }
    reply.end(status);
}

/// What a handler is given.
fn open<Q: Message>(reply: &Reply, request: Request) -> Result<(CallContext, Q), Status> {
    let Request { call, term, body } = request;
    let question = inside(reply.shared(), || decode::<Q>(&term.schema, &body)).map_err(|error| match error {
        DecodeError::Tag { .. } | DecodeError::Version { .. } | DecodeError::Codec(_) => Status::Mismatch,
        _ => Status::Undecodable,
    })?;
    Ok((CallContext { call }, question))
}

/// Where the handler of a stream sends its items. The stream ends with its handler; a sink that is handed on and lives
/// longer keeps its place among the handlers.
pub struct Sink<R> {
    reply: Arc<Reply>,
    items: PhantomData<fn(R)>,
}

impl<R: Message> Sink<R> {
    /// Sends an item: waits while the caller has a window of items unread, and for room.
    ///
    /// Items arrive in the order of sending, without a gap, for as long as the session with the caller lasts. Resolves when
    /// the item is accepted, which is not to say that it was read.
    ///
    /// # Errors
    /// [`SinkError`]; the item was not sent, and the stream goes on unless it is over.
    ///
    /// # Cancel safety
    /// A send that is dropped before it resolves has sent nothing.
    pub async fn send(&mut self, item: R) -> Result<(), SinkError> {
        let content = content(&item).map_err(|error| SinkError::Encode(error.to_string()))?;
        drop(item);
        let (size, max) = (content.body.len(), self.reply.size_max());
        if size > max {
            return Err(SinkError::TooLarge { size, max });
        }
        if self.reply.item(content).await { Ok(()) } else { Err(SinkError::Ended) }
    }
}

impl<R> fmt::Debug for Sink<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}
