//! A mailbox that exists on the leader only.

use std::future::pending;
use std::time::Duration;

use super::{Election, Lease};
use crate::driver::journal::target;
use crate::error::{ElectionError, LookupError, RegisterError, WaitError};
use crate::id::Pid;
use crate::message::Message;
use crate::messaging::{Address, Mailbox};
use crate::registry::{Name, Registry};

/// Between two tries to have the name.
const PAUSE: Duration = Duration::from_millis(50);

impl Election {
    /// Runs a task with a mailbox of that name on the leader, and on no other node: call it on each voter. It campaigns, runs
    /// the task as [`Leadership::run`](super::Leadership::run) does, and campaigns again when the leadership is lost, until the
    /// task ends by itself.
    ///
    /// Each leadership has a task and a mailbox of its own; at its end both are dropped before the lead is given up, so after a
    /// resignation, a transfer or a shutdown the next task begins when the one before has ended. After a loss by a lease they
    /// are apart as leases are: give the token along with what the task does.
    ///
    /// Meanwhile the mailbox has the name, and as the name's [metadata](crate::NameEntry::metadata) the token, as text. The name
    /// is the singleton's: whoever else has it is replaced. Messages to it are in order and at most once, as to every mailbox;
    /// those that the task has not read at its end are lost, and a sender that sends again is told that the mailbox is closed.
    /// Whoever must know what was done asks, by [`Address::ask`](crate::Address::ask) or a call.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use distribute::{Cookie, Name, Node, ReplyTo, Voters};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Next(ReplyTo<u64>);
    /// # impl distribute::Message for Next { const TAG: &'static str = "next"; const VERSION: u32 = 1; }
    ///
    /// const COUNTER: Name<Next> = Name::new("counter");
    ///
    /// # let directory = tempfile::tempdir().expect("a directory");
    /// let node = Node::builder("a@127.0.0.1:0").cookie(Cookie::generate()).election_dir(directory.path()).start().await?;
    /// let election = node.election("counter", Voters::new(1, [node.name()])).await?;
    /// let finding = election.clone();
    /// tokio::spawn(async move {
    ///     let counting = election.singleton(COUNTER, |_lease, mut mailbox| async move {
    ///         let mut count = 0;
    ///         while let Some(Next(reply)) = mailbox.recv().await {
    ///             count += 1;
    ///             let _ = reply.reply(count).await;
    ///         }
    ///     });
    ///     counting.await
    /// });
    /// let counter = finding.find(COUNTER).await?;
    /// assert_eq!(counter.ask(Next).await?, 1);
    /// assert_eq!(counter.ask(Next).await?, 2);
    /// # node.shutdown().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`campaign`](Self::campaign).
    ///
    /// # Cancel safety
    /// Dropping it ends this node's part: the task is dropped, and its mailbox, and then the leadership.
    #[doc(alias = "cluster singleton")]
    pub async fn singleton<M, T, F, Fut>(&self, name: Name<M>, mut task: F) -> Result<T, ElectionError>
    where
        M: Message,
        F: FnMut(Lease, Mailbox<M>) -> Fut,
        Fut: Future<Output = T>,
    {
        let registry = Registry::new(&self.shared);
        self.while_leading(|lease| {
            let mailbox = Mailbox::open(&self.shared);
            let named = keep_name(registry.clone(), name.clone(), mailbox.pid(), lease.token().to_string());
            let task = task(lease, mailbox);
            async move {
                tokio::select! {
                    biased;
                    outcome = task => outcome,
                    () = named => pending().await,
                }
            }
        })
        .await
    }

    /// Waits for the singleton of that name on the leader that this node knows of, and returns its address.
    ///
    /// [`Registry::lookup`] may name the mailbox of a leader that was killed or is frozen, until its successor has the name:
    /// some second after it leads. This waits for the successor's. It has no deadline of its own.
    ///
    /// # Errors
    /// [`WaitError::TagMismatch`] and [`WaitError::Shutdown`].
    ///
    /// # Cancel safety
    /// A wait that is dropped leaves nothing behind.
    pub async fn find<M: Message>(&self, name: Name<M>) -> Result<Address<M>, WaitError> {
        let registry = Registry::new(&self.shared);
        let (mut names, mut leader) = (registry.watch(name.clone()), self.place.leader.subscribe());
        loop {
            let leads = leader.borrow_and_update().clone();
            if let (Some((token, Some(node))), Some(entry)) = (leads, registry.entry(name.clone()))
                && *entry.owner.node().name() == node
                && entry.metadata == token.to_string()
            {
                match registry.lookup(name.clone()) {
                    Ok(address) if *address.pid() == entry.owner => return Ok(address),
                    Err(LookupError::TagMismatch { expected, found }) => {
                        return Err(WaitError::TagMismatch { expected, found });
                    }
                    _ => {}
                }
            }
            let is_over = tokio::select! {
                event = names.next() => event.is_none(),
                changed = leader.changed() => changed.is_err(),
            };
            if is_over || self.shared.is_stopping() {
                return Err(WaitError::Shutdown);
            }
        }
    }
}

/// Takes the name, and takes it again from whoever gets it: the claim of a leader of the past may be older.
async fn keep_name<M: Message>(registry: Registry, name: Name<M>, pid: Pid, token: String) {
    let mut taken_by = None;
    loop {
        let known = || registry.entry(name.clone()).map(|entry| entry.owner);
        let owner = taken_by.take().or_else(known).filter(|owner| *owner != pid);
        let claim = registry.claim(name.clone(), pid.clone(), true, owner).metadata(token.clone());
        match claim.await {
            Ok(registration) => taken_by = registration.lost().await,
            Err(RegisterError::Taken { owner, .. }) => taken_by = Some(owner),
            Err(RegisterError::MailboxClosed(_) | RegisterError::Shutdown) => return,
            Err(error) => {
                tracing::debug!(target: target::ELECTION, %name, %error, "the name of a singleton was not registered")
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
