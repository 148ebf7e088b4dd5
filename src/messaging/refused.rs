//! Messages that a mailbox cannot read, told to whoever reads it.

use std::future::poll_fn;
use std::sync::Arc;

use super::{Mailbox, Received};
use crate::driver::mailboxes::{RefusedHook, RefusedMessage};
use crate::message::Message;

impl<M: Message> Mailbox<M> {
    /// Waits for the next message, be it readable or not: as [`recv_full`](Self::recv_full), but what this mailbox cannot
    /// read is not skipped. It is counted and logged, and hooks are told of it, all the same. `None` at the end, as
    /// [`recv`](Self::recv).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Address, Cookie, DecodeError, Node};
    ///
    /// let cookie = Cookie::generate();
    /// let here = Node::builder("here@127.0.0.1:0").cookie(cookie.clone()).start().await?;
    /// let there = Node::builder("there@127.0.0.1:0").cookie(cookie).start().await?;
    /// let mut numbers = here.mailbox::<u64>();
    ///
    /// // Another program holds this mailbox for one of texts.
    /// let mistaken: Address<String> = serde_json::from_str(&serde_json::to_string(&numbers.pid()).unwrap()).unwrap();
    /// mistaken.bind(&there).send("forty-two".into()).await?;
    /// numbers.address().bind(&there).send(42).await?;
    ///
    /// let mut total = 0;
    /// while total == 0 {
    ///     match numbers.recv_or_refused().await {
    ///         Some(Ok(received)) => total += received.message,
    ///         Some(Err(refused)) => assert!(matches!(refused.error, DecodeError::Tag { .. })),
    ///         None => break,
    ///     }
    /// }
    /// assert_eq!((total, numbers.refused()), (42, 1));
    /// # there.shutdown().await;
    /// # here.shutdown().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    /// A receive that is dropped takes no message.
    pub async fn recv_or_refused(&mut self) -> Option<Result<Received<M>, Box<RefusedMessage>>> {
        poll_fn(|context| self.poll_read(context, |mailbox, opened| Some(mailbox.received_or_refused(opened)))).await
    }

    /// Sets what is told of each message that this mailbox cannot read, beside what
    /// [`Builder::on_refused`](crate::Builder::on_refused) has set for the whole node. The last one set is told.
    ///
    /// It is called by whoever reads the mailbox, each time that such a message is reached, and should not block.
    pub fn on_refused(&mut self, hook: impl Fn(&RefusedMessage) + Send + Sync + 'static) {
        self.on_refused = Some(RefusedHook(Arc::new(hook)));
    }
}
