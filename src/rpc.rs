//! Remote calls: a method served on one node, called from another.
//!
//! A call ends at its deadline, at the end of the session with the callee, or with an answer, whichever is first. The
//! error says whether the handler cannot have run, may have run, or ran ([`CallError::effect`]). The library never
//! repeats a call.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::config::LONGEST;
use crate::driver::Shared;
use crate::driver::calls::Request;
use crate::driver::exchange::{Answer, RequestError};
use crate::driver::session::Session;
use crate::error::{CallError, ConnectError, ServeError};
use crate::id::{NodeId, NodeName};
use crate::key::{Key, KeyError};
use crate::message::{self, Message, decode, schema};
use crate::messaging::inside;
use crate::wire::{Schema, Status};

/// The name of a method, with the types of its request and its answer.
///
/// An application's own failure is a value of the answer type, such as `Result<Quote, NoStock>`.
///
/// ```
/// use distribute::Method;
///
/// const LENGTH: Method<String, u64> = Method::new("text.length");
/// assert_eq!(LENGTH.name(), "text.length");
///
/// let length: Method<String, u64> = Method::parse(format!("text.length.{}", "de"))?;
/// # Ok::<(), distribute::Error>(())
/// ```
///
/// A constant with a bad name does not compile:
///
/// ```compile_fail
/// # use distribute::Method;
/// const LENGTH: Method<String, u64> = Method::new("");
/// ```
pub struct Method<Q, R> {
    name: Key,
    types: PhantomData<fn(Q) -> R>,
}

impl<Q, R> Method<Q, R> {
    /// A method with a name of 1 to 255 bytes, without control characters.
    ///
    /// # Panics
    /// When the name breaks these rules; in a constant that is an error of the compiler.
    pub const fn new(name: &'static str) -> Self {
        Self { name: Key::new(name), types: PhantomData }
    }

    /// A method whose name is made at run time, of 1 to 255 bytes, without control characters. Clones share the name.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with the name.
    pub fn parse(name: impl Into<String>) -> Result<Self, KeyError> {
        Ok(Self { name: Key::parse(name.into())?, types: PhantomData })
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

impl<Q, R> Clone for Method<Q, R> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), types: PhantomData }
    }
}

impl<Q, R> fmt::Debug for Method<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Method({:?})", self.name)
    }
}

/// What a handler knows of its call.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CallContext {
    /// The node that calls.
    pub caller: NodeId,
    /// When the caller stops waiting. The handler is dropped then.
    pub deadline: Instant,
}

/// Calls to and from one node. Cheap to clone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Method, Node};
///
/// const LENGTH: Method<String, u64> = Method::new("text.length");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// node.rpc().serve(LENGTH, |_call, text| async move { text.len() as u64 })?;
/// assert_eq!(node.rpc().call(node.name(), LENGTH, "seven".into()).await?, 5);
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[doc(alias = "erpc")]
pub struct Rpc {
    shared: Arc<Shared>,
}

impl Rpc {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone() }
    }

    /// Serves a method until the returned handle says stop, or the node shuts down.
    ///
    /// The handler runs in a task of its own for each call. It is dropped when the caller gives up, at the deadline, and
    /// when the session with the caller ends; a panic is the caller's error and nothing else. At most
    /// [`Config::handlers_max`](crate::Config::handlers_max) handlers of the node run at once.
    ///
    /// # Errors
    /// [`ServeError::Taken`] when the node serves that name.
    pub fn serve<Q, R, F, Fut>(&self, method: Method<Q, R>, handler: F) -> Result<Serving, ServeError>
    where
        Q: Message,
        R: Message,
        F: Fn(CallContext, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = R> + Send + 'static,
    {
        let name = method.name().to_owned();
        let handler = Arc::new(handler);
        let node = Arc::downgrade(&self.shared);
        let run = move |request: Request| {
            let (handler, node) = (handler.clone(), node.clone());
            let future = async move {
                let Request { caller, deadline, schema: sent, body } = request;
                let node = node.upgrade().ok_or(Status::ShuttingDown)?;
                let question = inside(&node, || decode::<Q>(&sent, &body)).map_err(|error| match error {
                    crate::DecodeError::Malformed(_)
                    | crate::DecodeError::Trailing(_)
                    | crate::DecodeError::TooDeep
                    | crate::DecodeError::TooLarge { .. } => Status::Undecodable,
                    _ => Status::Mismatch,
                })?;
                drop((node, body));
                let answer = handler(CallContext { caller, deadline }, question).await;
                let body = message::body(&answer).map_err(|error| {
                    tracing::warn!(%error, "an answer cannot be encoded");
                    Status::Panicked
                })?;
                Ok((schema::<R>(), body))
            };
            Box::pin(future) as crate::driver::calls::HandlerFuture
        };
        match self.shared.methods.serve(&name, Arc::new(run)) {
            Some(id) => Ok(Serving { shared: self.shared.clone(), name, id }),
            None => Err(ServeError::Taken(name)),
        }
    }

    /// Calls a method of a node: await the returned [`Call`].
    ///
    /// The node is named by its [`NodeName`], or by a [`NodeId`], which only that life of it answers. Without a session
    /// the node is dialled. A call to this node takes the same way, without a link.
    pub fn call<'a, Q: Message, R: Message>(
        &'a self,
        node: impl Callee,
        method: Method<Q, R>,
        question: Q,
    ) -> Call<'a, Q, R> {
        let timeout = self.shared.config.call_timeout;
        Call { rpc: self, name: node.name().clone(), life: node.life().cloned(), method, question, timeout }
    }
}

/// What can be called: a node's name, or one life of a node.
pub trait Callee {
    /// The node's name.
    fn name(&self) -> &NodeName;
    /// The life that is meant, when only that one will do.
    fn life(&self) -> Option<&NodeId>;
}

impl Callee for &NodeName {
    fn name(&self) -> &NodeName {
        self
    }

    fn life(&self) -> Option<&NodeId> {
        None
    }
}

impl Callee for &NodeId {
    fn name(&self) -> &NodeName {
        NodeId::name(self)
    }

    fn life(&self) -> Option<&NodeId> {
        Some(self)
    }
}

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

/// A call about to be made: await it.
///
/// # Cancel safety
/// A call that is dropped is given up: the handler, if it runs, is dropped at the callee.
#[must_use = "a call is made when it is awaited"]
pub struct Call<'a, Q, R> {
    rpc: &'a Rpc,
    name: NodeName,
    life: Option<NodeId>,
    method: Method<Q, R>,
    question: Q,
    timeout: Duration,
}

impl<Q, R> Call<'_, Q, R> {
    /// Sets how long to wait, dialling included. The default is [`Config::call_timeout`](crate::Config::call_timeout),
    /// 5 s; more than a year counts as a year.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST);
        self
    }
}

impl<Q, R> fmt::Debug for Call<'_, Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("node", &self.name).field("method", &self.method).finish_non_exhaustive()
    }
}

impl<'a, Q: Message, R: Message> IntoFuture for Call<'a, Q, R> {
    type Output = Result<R, CallError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<Q: Message, R: Message> Call<'_, Q, R> {
    async fn run(self) -> Result<R, CallError> {
        let Self { rpc: Rpc { shared }, name, life, method, question, timeout } = self;
        let deadline = Instant::now() + timeout;
        let body = message::body(&question).map_err(|error| CallError::Encode(error.to_string()))?;
        drop(question);
        let max = shared.config.message_max;
        if body.len() > max {
            return Err(CallError::TooLarge { size: body.len(), max });
        }
        let schema = schema::<Q>();
        let own = shared.id();
        if name == *own.name() {
            if life.as_ref().is_some_and(|life| *life != own) {
                return Err(superseded(&name, life));
            }
            let request = Request { caller: own, deadline, schema, body };
            return match shared.methods.run_local(shared, method.name(), request).await {
                Ok((schema, body)) => answer(shared, &schema, &body),
                Err(Status::Expired) => Err(CallError::Timeout(timeout)),
                Err(status) => Err(failed(status, &method)),
            };
        }
        let session = match shared.session(&name) {
            Some(session) => session,
            None => tokio::time::timeout_at(deadline, shared.connect(&name, false))
                .await
                .unwrap_or(Err(ConnectError::Timeout(timeout)))
                .map_err(|error| CallError::NotConnected(name.clone(), Some(error)))?,
        };
        if life.as_ref().is_some_and(|life| *life != session.peer) {
            return Err(superseded(&name, life));
        }
        if body.len() > session.message_max {
            return Err(CallError::TooLarge { size: body.len(), max: session.message_max });
        }
        let answered =
            tokio::time::timeout_at(deadline, request(shared, &session, &method, schema, body, deadline)).await;
        match answered.map_err(|_| CallError::Timeout(timeout))?? {
            Answer::Answered { schema, body } => answer(shared, &schema, &body),
            Answer::Failed(Status::Expired) => Err(CallError::Timeout(timeout)),
            Answer::Failed(status) => Err(failed(status, &method)),
            Answer::SessionEnded => Err(CallError::Disconnected(session.peer.clone())),
        }
    }
}

/// Sends the request and waits for its answer. Dropped before that, it tells the callee.
async fn request<Q, R>(
    shared: &Shared,
    session: &Session,
    method: &Method<Q, R>,
    schema: Schema,
    body: Bytes,
    deadline: Instant,
) -> Result<Answer, CallError> {
    struct GiveUp<'a>(&'a Session, u64);
    impl Drop for GiveUp<'_> {
        fn drop(&mut self) {
            self.0.give_up(self.1);
        }
    }
    let remaining = deadline.saturating_duration_since(Instant::now()).as_millis() as u64;
    let sent = session.request(method.name(), remaining, schema, body, shared.config.calls_max).await;
    let (id, answer) = sent.map_err(|error| match error {
        RequestError::Overloaded => CallError::Overloaded,
        RequestError::SessionEnded => CallError::NotConnected(session.peer.name().clone(), None),
    })?;
    let _give_up = GiveUp(session, id);
    Ok(answer.await.unwrap_or(Answer::SessionEnded))
}

fn answer<R: Message>(shared: &Arc<Shared>, schema: &Schema, body: &Bytes) -> Result<R, CallError> {
    inside(shared, || decode(schema, body)).map_err(|error| CallError::BadAnswer(error.to_string()))
}

fn superseded(name: &NodeName, life: Option<NodeId>) -> CallError {
    CallError::NotConnected(name.clone(), life.map(ConnectError::Superseded))
}

fn failed<Q, R>(status: Status, method: &Method<Q, R>) -> CallError {
    match status {
        Status::NoSuchMethod => CallError::NoSuchMethod(method.name().to_owned()),
        Status::Mismatch => CallError::Mismatch(method.name().to_owned()),
        Status::Undecodable => CallError::Undecodable,
        Status::Panicked => CallError::Panicked,
        Status::Cancelled | Status::Expired | Status::Answered => CallError::Cancelled,
        Status::ShuttingDown => CallError::ShuttingDown,
        Status::Overloaded => CallError::Overloaded,
        Status::AnswerTooLarge => CallError::AnswerTooLarge,
    }
}
