//! What is closed once, whatever happens.

use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::driver::journal::target;

/// Something that is closed exactly once, when its owner ends: however that comes about.
///
/// It belongs into the state of an [`Actor`](super::Actor), which is dropped when the actor stops, fails, panics, is killed,
/// or its node or its runtime goes away; and it is closed when it is dropped. A panic of the closing is contained.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use std::sync::{Arc, atomic::{AtomicU32, Ordering}};
/// use distribute::{ActorContext, Cookie, Next, Node, Resource, actor_fn};
///
/// async fn write(log: &mut Resource<Vec<u8>>, line: String, _: &ActorContext<String>) -> Next {
///     log.extend(line.bytes());
///     Next::Continue
/// }
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let closed = Arc::new(AtomicU32::new(0));
/// let count = closed.clone();
/// let log = Resource::new(Vec::new(), move |_lines| drop(count.fetch_add(1, Ordering::Relaxed)));
/// let writer = node.actor(actor_fn(log, write)).await?;
/// writer.kill();
/// writer.ended().await;
/// assert_eq!(closed.load(Ordering::Relaxed), 1);
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
pub struct Resource<T> {
    /// There until it is closed.
    held: Option<Held<T>>,
}

struct Held<T> {
    value: T,
    close: Box<dyn FnOnce(T) + Send>,
}

impl<T> Resource<T> {
    /// Holds something, and what closes it.
    pub fn new(value: T, close: impl FnOnce(T) + Send + 'static) -> Self {
        Self { held: Some(Held { value, close: Box::new(close) }) }
    }

    /// Closes it now.
    pub fn close(self) {
        drop(self);
    }
}

impl<T: Send + 'static> Resource<T> {
    /// Holds it until something is over, such as a [`Monitor`](crate::Monitor), and closes it then; at once, if that is over
    /// already. It is closed too when the present runtime, which waits for that, goes away.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Cookie, Node, Resource};
    ///
    /// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
    /// let owner = node.mailbox::<u64>();
    /// let (tell, closed) = tokio::sync::oneshot::channel();
    /// Resource::new(tell, |tell| drop(tell.send("closed"))).until(node.monitor(&owner));
    /// drop(owner);
    /// assert_eq!(closed.await, Ok("closed"));
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub fn until<F>(self, over: F)
    where
        F: Future + Send + 'static,
    {
        tokio::spawn(async move {
            let _held = self;
            let _ = over.await;
        });
    }
}

impl<T> Drop for Resource<T> {
    fn drop(&mut self) {
        let Some(Held { value, close }) = self.held.take() else { return };
        // It may be dropped by a panic, and a second one would end the process.
        if catch_unwind(AssertUnwindSafe(|| close(value))).is_err() {
            tracing::warn!(target: target::ACTOR, "closing a resource panicked");
        }
    }
}

impl<T> Deref for Resource<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.held.as_ref().expect("it is held until it is dropped").value
    }
}

impl<T> DerefMut for Resource<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.held.as_mut().expect("it is held until it is dropped").value
    }
}

impl<T: fmt::Debug> fmt::Debug for Resource<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource").field("value", &**self).finish_non_exhaustive()
    }
}
