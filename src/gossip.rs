//! Small facts for every live node.

use std::fmt;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::cluster::Refusals;
use crate::codec::DecodeError;
use crate::driver::facts::{Arrived, Subscriber};
use crate::driver::{self, Command, Shared};
use crate::envelope::Envelope;
use crate::error::PublishError;
use crate::id::NodeId;
use crate::key::{Key, KeyError};
use crate::message::Message;
use crate::proto::membership;

/// The longest topic, in bytes.
pub const TOPIC_MAX: usize = membership::TOPIC_MAX;

/// The largest fact, in bytes, with its [`Envelope`].
pub const FACT_MAX: usize = membership::FACT_MAX;

/// The name of a topic, with the type of its facts.
///
/// ```
/// use distribute::Topic;
///
/// const PRICE: Topic<u64> = Topic::new("shop.price");
/// assert_eq!(PRICE.name(), "shop.price");
///
/// let price: Topic<u64> = Topic::parse(format!("shop.price.{}", 42))?;
/// # Ok::<(), distribute::Error>(())
/// ```
///
/// A constant with a bad name does not compile:
///
/// ```compile_fail
/// # use distribute::Topic;
/// const PRICE: Topic<u64> = Topic::new("");
/// ```
pub struct Topic<T> {
    name: Key,
    fact: PhantomData<fn(T) -> T>,
}

impl<T> Topic<T> {
    /// A topic with a name of 1 to 64 bytes, without control characters.
    ///
    /// # Panics
    /// When the name breaks these rules; in a constant that is an error of the compiler.
    pub const fn new(name: &'static str) -> Self {
        Self { name: Key::new_within(name, TOPIC_MAX), fact: PhantomData }
    }

    /// A topic whose name is made at run time, of 1 to 64 bytes, without control characters. Clones share the name.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with the name.
    pub fn parse(name: impl Into<String>) -> Result<Self, KeyError> {
        Ok(Self { name: Key::parse_within(name.into(), TOPIC_MAX)?, fact: PhantomData })
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

impl<T> Clone for Topic<T> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), fact: PhantomData }
    }
}

impl<T> fmt::Debug for Topic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic({:?})", self.name)
    }
}

/// Facts that go to every live node. Cheap to clone.
///
/// For what is small, changes seldom, and is still right when it comes late or not at all: a changed price, a cache
/// entry to forget, a level of load. It spreads by the gossip of membership, from node to node, within some gossip
/// intervals.
///
/// Best effort: each live node gets a fact at most once, and almost always once; one that joins later, is cut off or
/// dies does not get it afterwards. There is no order, neither between topics nor between facts of one node. What must
/// arrive, or arrive in order, belongs in messages; what must be known to late comers, in [`Membership::set_metadata`],
/// or in a call.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Node, Topic};
///
/// const PRICE: Topic<(String, u64)> = Topic::new("shop.price");
///
/// let node = Node::builder("here@127.0.0.1:0").cookie(Cookie::generate()).start().await?;
/// let mut prices = node.gossip().subscribe(PRICE);
/// node.gossip().publish(PRICE, &("tea".into(), 3)).await?;
/// let fact = prices.next().await;
/// assert_eq!(fact.map(|fact| (fact.from, fact.value)), Some((node.id(), ("tea".into(), 3))));
/// # node.shutdown().await;
/// # Ok(()) }
/// ```
///
/// [`Membership::set_metadata`]: crate::Membership::set_metadata
#[derive(Clone, Debug)]
#[doc(alias = "broadcast")]
#[doc(alias = "pubsub")]
pub struct Gossip {
    shared: Arc<Shared>,
}

impl Gossip {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone() }
    }

    /// Publishes a fact: to the subscribers of its topic on every live node, this one included.
    ///
    /// It has at most [`FACT_MAX`] bytes, with the tag of its type and 11 bytes around it. Returns once this node has
    /// begun to spread it.
    ///
    /// # Errors
    /// [`PublishError`]; nobody gets the fact. [`PublishError::Busy`] while
    /// [`Config::facts_max`](crate::Config::facts_max) facts wait to be spread.
    ///
    /// # Cancel safety
    /// A publish that is dropped has published nothing, or has published in that instant.
    pub async fn publish<T: Message>(&self, topic: Topic<T>, fact: &T) -> Result<(), PublishError> {
        let body = Envelope::wrap(fact).map_err(|error| PublishError::Encode(error.to_string()))?.to_bytes();
        if body.len() > FACT_MAX {
            return Err(PublishError::TooLarge { size: body.len(), max: FACT_MAX });
        }
        if self.shared.is_stopping() || self.shared.members.is_closed() {
            return Err(PublishError::Shutdown);
        }
        let (done, published) = oneshot::channel();
        self.shared.command(Command::Publish { topic: topic.name().to_owned(), body, done });
        match published.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(PublishError::Busy),
            Err(_) => Err(PublishError::Shutdown),
        }
    }

    /// Subscribes to the facts of a topic that arrive from now on.
    ///
    /// A subscriber that leaves more than [`Config::events_max`](crate::Config::events_max) facts unread loses the
    /// oldest; the next one says how many, in [`Fact::missed`].
    pub fn subscribe<T: Message>(&self, topic: Topic<T>) -> Facts<T> {
        let subscriber = self.shared.facts.subscribe(topic.name());
        Facts { shared: self.shared.clone(), topic, subscriber, missed: 0, refusals: Refusals::default() }
    }
}

/// A fact, as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fact<T> {
    /// The life of the node that published it.
    pub from: NodeId,
    /// What was published.
    pub value: T,
    /// How many facts of the topic were dropped right before this one, because they were left unread for too long.
    /// Above zero, whoever keeps a picture of all facts should make it anew.
    #[doc(alias = "lagged")]
    pub missed: u64,
}

/// A subscription to the facts of one topic, also a [`Stream`](futures_core::Stream) of [`Fact`]s. Dropping it ends it.
///
/// A fact that this node cannot read, because it is of another type or version or is malformed, is skipped and counted.
pub struct Facts<T> {
    shared: Arc<Shared>,
    topic: Topic<T>,
    subscriber: Arc<Subscriber>,
    /// Dropped in front of a fact that could not be read.
    missed: u64,
    refusals: Refusals,
}

impl<T: Message> Facts<T> {
    /// Waits for the next fact; `None` once the node is shut down.
    ///
    /// # Cancel safety
    /// Dropping it loses no fact.
    pub async fn next(&mut self) -> Option<Fact<T>> {
        poll_fn(|context| self.poll_fact(context)).await
    }

    /// Returns how many facts this subscription has skipped because they could not be read.
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    fn poll_fact(&mut self, context: &mut Context<'_>) -> Poll<Option<Fact<T>>> {
        while let Some(Arrived { from, body, missed }) = ready!(self.subscriber.poll_next(context)) {
            self.missed += missed;
            let value = driver::inside(&self.shared, || Envelope::from_bytes(body).map(|envelope| envelope.unwrap()));
            let error = match value {
                Ok(Ok(value)) => {
                    let missed = std::mem::take(&mut self.missed);
                    return Poll::Ready(Some(Fact { from, value, missed }));
                }
                Ok(Err(error)) => error,
                Err(error) => DecodeError::Malformed(error.to_string()),
            };
            tracing::debug!(topic = self.topic.name(), %from, reason = error.kind(), "skipped a fact that cannot be read");
            match error {
                DecodeError::Tag { .. } => self.refusals.wrong_type += 1,
                DecodeError::Version { .. } => self.refusals.wrong_version += 1,
                _ => self.refusals.malformed += 1,
            }
        }
        Poll::Ready(None)
    }
}

impl<T> fmt::Debug for Facts<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("topic", &self.topic).field("refusals", &self.refusals).finish_non_exhaustive()
    }
}

impl<T: Message> futures_core::Stream for Facts<T> {
    type Item = Fact<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Fact<T>>> {
        self.poll_fact(context)
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use bytes::Bytes;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::identity::Cookie;
    use crate::node::Node;
    use crate::sim::Fabric;

    const PRICE: Topic<Price> = Topic::new("price");

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Price(u64);

    impl Message for Price {
        const TAG: &'static str = "shop.price";
        const VERSION: u32 = 1;
    }

    /// What a later version of the program has made of it.
    #[derive(Serialize, Deserialize)]
    struct Later(u64);

    impl Message for Later {
        const TAG: &'static str = "shop.price";
        const VERSION: u32 = 2;
    }

    async fn node() -> Node {
        let name = "a@10.0.0.1:4370";
        let host = Fabric::new(1).host([10, 0, 0, 1]);
        Node::builder(name).cookie(Cookie::generate()).network(host).start().await.unwrap()
    }

    #[test]
    fn a_topic_has_1_to_64_bytes() {
        assert_eq!(Topic::<u64>::parse("x".repeat(64)).unwrap().name().len(), TOPIC_MAX);
        assert_eq!(Topic::<u64>::parse("x".repeat(65)).unwrap_err(), KeyError::TooLong { len: 65, max: TOPIC_MAX });
        assert_eq!(Topic::<u64>::parse("").unwrap_err(), KeyError::Empty);
        assert_eq!(format!("{:?}", PRICE.clone()), "Topic(\"price\")");
    }

    #[test]
    #[should_panic(expected = "a name has more bytes than it may")]
    fn outside_of_constants_a_long_topic_panics() {
        Topic::<u64>::new("a topic that has a few bytes more than the sixty-four that one may have");
    }

    /// What this binary cannot read is counted by its reason, and what comes after it is read.
    #[tokio::test(start_paused = true)]
    async fn facts_that_cannot_be_read_are_skipped() {
        let node = node().await;
        let mut prices = node.gossip().subscribe(PRICE);
        let wrapped = |envelope: Result<Envelope, _>| envelope.map(|envelope| envelope.to_bytes()).unwrap();
        let bodies = [
            wrapped(Envelope::wrap(&7u64)),
            wrapped(Envelope::wrap(&Later(7))),
            Bytes::from_static(b"noise"),
            wrapped(Envelope::wrap(&Price(7))).slice(..21),
            wrapped(Envelope::wrap(&Price(8))),
        ];
        for body in bodies {
            node.shared().facts.deliver(node.id(), "price", body);
        }
        assert_eq!(prices.next().await, Some(Fact { from: node.id(), value: Price(8), missed: 0 }));
        let refusals = prices.refusals();
        assert_eq!((refusals.wrong_type, refusals.wrong_version, refusals.malformed), (1, 1, 2));
        node.shutdown().await;
        assert_eq!(prices.next().await, None);
    }

    /// What was missed before a fact that cannot be read was missed before the next.
    #[tokio::test(start_paused = true)]
    async fn what_was_missed_is_told_with_the_next_fact() {
        let node = node().await;
        let mut prices = node.gossip().subscribe(PRICE);
        let max = node.shared().config.events_max as u64;
        node.shared().facts.deliver(node.id(), "price", Bytes::from_static(b"lost"));
        node.shared().facts.deliver(node.id(), "price", Bytes::from_static(b"noise"));
        for price in 1..=max - 1 {
            let body = Envelope::wrap(&Price(price)).unwrap().to_bytes();
            node.shared().facts.deliver(node.id(), "price", body);
        }
        let told = [prices.next().await.unwrap(), prices.next().await.unwrap()].map(|fact| (fact.value.0, fact.missed));
        assert_eq!(told, [(1, 1), (2, 0)]);
    }

    /// Bytes around the body count.
    #[tokio::test(start_paused = true)]
    async fn a_fact_has_1024_bytes_at_most() {
        const RAW: Topic<Bytes> = Topic::new("raw");
        let node = node().await;
        let around = "bytes".len() + 11;
        let fits = Bytes::from(vec![0; FACT_MAX - around]);
        assert_eq!(node.gossip().publish(RAW, &fits).await, Ok(()));
        let larger = Bytes::from(vec![0; FACT_MAX - around + 1]);
        let error = PublishError::TooLarge { size: 1025, max: 1024 };
        assert_eq!(node.gossip().publish(RAW, &larger).await, Err(error));
        node.shutdown().await;
        assert_eq!(node.gossip().publish(RAW, &fits).await, Err(PublishError::Shutdown));
    }
}
