//! Who answered of those by whom a node joins, and who did not, and why.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Contact;
use crate::config::LONGEST;
use crate::error::ConnectError;
use crate::id::NodeName;
use crate::node::Node;

/// What has come of the ways into the cluster that a node was given: from [`Node::join_report`].
///
/// It has an entry for each name of [`Builder::join`](crate::Builder::join), and for each place that a
/// [`Discovery`](crate::Discovery) told, 64 of these at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JoinReport {
    /// The places, in their order, with what has come of each.
    pub places: Vec<(Contact, JoinOutcome)>,
}

/// What has come of one place where a member may be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinOutcome {
    /// A node answered there, and there is a session with it.
    #[non_exhaustive]
    Answered {
        /// Who it is.
        node: NodeName,
        /// How long after this node's start.
        after: Duration,
    },
    /// A node is there that is a member, as others say, or that came by itself: it was not asked.
    Member,
    /// This node is there itself.
    Itself,
    /// No session came of it, and that is why. It is tried again as [`Builder::join`](crate::Builder::join) says.
    Failed(ConnectError),
    /// It was not tried yet, or the answer is not there yet.
    Pending,
}

impl JoinReport {
    /// Returns the nodes that answered, and how long after the start.
    pub fn answered(&self) -> impl Iterator<Item = (&NodeName, Duration)> {
        self.places.iter().filter_map(|(_, outcome)| match outcome {
            JoinOutcome::Answered { node, after } => Some((node, *after)),
            _ => None,
        })
    }

    /// Returns the places that did not lead to a session, and why.
    pub fn failed(&self) -> impl Iterator<Item = (&Contact, &ConnectError)> {
        self.places.iter().filter_map(|(place, outcome)| match outcome {
            JoinOutcome::Failed(error) => Some((place, error)),
            _ => None,
        })
    }

    /// Returns the places of which nothing is known yet.
    pub fn pending(&self) -> impl Iterator<Item = &Contact> {
        self.places.iter().filter(|(_, outcome)| *outcome == JoinOutcome::Pending).map(|(place, _)| place)
    }
}

/// What is found out while a node looks for others.
#[derive(Debug)]
pub(crate) struct Joins {
    begun: Instant,
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct State {
    places: BTreeMap<Contact, JoinOutcome>,
    /// Each place of the first round has its outcome, or there will be none.
    is_tried: bool,
}

impl Joins {
    /// Of a node that has ways into a cluster, or none.
    pub(crate) fn new(has_ways: bool) -> Self {
        Self { begun: Instant::now(), state: watch::Sender::new(State { is_tried: !has_ways, ..State::default() }) }
    }

    /// These are the places now. What is known of them stands.
    pub(super) fn places(&self, places: impl IntoIterator<Item = Contact>) {
        self.state.send_modify(|state| {
            let mut before = std::mem::take(&mut state.places);
            let known = |place: Contact| {
                let outcome = before.remove(&place).unwrap_or(JoinOutcome::Pending);
                (place, outcome)
            };
            state.places = places.into_iter().map(known).collect();
        });
    }

    pub(super) fn answered(&self, place: &Contact, node: NodeName) {
        self.came_of(place, JoinOutcome::Answered { node, after: self.begun.elapsed() });
    }

    pub(super) fn came_of(&self, place: &Contact, outcome: JoinOutcome) {
        self.state.send_modify(|state| {
            if let Some(known) = state.places.get_mut(place) {
                *known = outcome;
            }
        });
    }

    /// Nobody need look there. Whoever answered there before did so.
    pub(super) fn met(&self, place: &Contact, is_own: bool) {
        self.state.send_if_modified(|state| match state.places.get_mut(place) {
            Some(JoinOutcome::Answered { .. }) | None => false,
            Some(known) => {
                *known = if is_own { JoinOutcome::Itself } else { JoinOutcome::Member };
                true
            }
        });
    }

    /// All were tried once.
    pub(super) fn tried(&self) {
        self.state.send_if_modified(|state| !std::mem::replace(&mut state.is_tried, true));
    }

    fn report(&self) -> JoinReport {
        let places =
            self.state.borrow().places.iter().map(|(place, outcome)| (place.clone(), outcome.clone())).collect();
        JoinReport { places }
    }
}

impl Node {
    /// Waits until each way into the cluster that this node was given was tried once, for so long at most, and returns what has
    /// come of them.
    ///
    /// A start does not wait for others, so this is how to learn who answered, and why the rest did not: a wrong cookie reads
    /// otherwise than a host that is off. It tells the latest that is known of each place, also later. A node without ways has
    /// an empty report at once. To wait until the node takes part in the cluster, see [`Node::ready`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), distribute::Error> {
    /// use std::time::Duration;
    /// use distribute::{Cookie, Node};
    ///
    /// let cookie = Cookie::generate();
    /// let one = Node::builder("one@127.0.0.1:0").cookie(cookie.clone()).start().await?;
    /// let two = Node::builder("two@127.0.0.1:0").cookie(cookie).join(one.name()).join("three@127.0.0.1:1").start().await?;
    /// let report = two.join_report(Duration::from_secs(10)).await;
    /// assert_eq!(report.answered().map(|(node, _)| node).collect::<Vec<_>>(), [one.name()]);
    /// for (place, error) in report.failed() {
    ///     println!("nobody at {place:?}: {error}");
    /// }
    /// # two.shutdown().await;
    /// # one.shutdown().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    /// A wait that is dropped leaves nothing behind.
    pub async fn join_report(&self, patience: Duration) -> JoinReport {
        let joins = self.joins();
        let mut changes = joins.state.subscribe();
        let waiting = async {
            tokio::select! {
                _ = changes.wait_for(|state| state.is_tried) => {}
                () = self.shared().stopped() => {}
            }
        };
        let _ = tokio::time::timeout(patience.min(LONGEST), waiting).await;
        joins.report()
    }
}
