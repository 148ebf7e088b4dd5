//! Trust that changes while the node runs: who would no longer be let in is cut off, and links that present what this node
//! no longer does are exchanged for others.
//!
//! TLS looks at certificates once, when a link begins. So each change of the trust, and the clock now and then, has every
//! live link looked at again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::carrier::Greeted;
use super::journal::target;
use super::{Command, Entry, Farewell, Node, Shared, now};
use crate::error::TrustError;
use crate::id::{ClusterName, NodeName};
use crate::identity::{AuthError, ClusterKeys, Cookie, IdentityError, Pem};
use crate::proto::links::{LinkId, SessionId};
use crate::proto::node::Input;
use crate::transport::Link;
use crate::transport::tls::Tls;
use crate::wire::Code;

/// So many links are looked at in one go. Each takes some tenths of a millisecond.
const AT_ONCE: usize = 8;

/// How long a link that stops in good order may take to do so before its peer's distrust ends it.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// When the end of the certificate's validity is warned of: so long before, each once.
const WARNINGS: [Duration; 4] =
    [Duration::from_secs(14 * DAY), Duration::from_secs(3 * DAY), Duration::from_secs(DAY), Duration::ZERO];

const DAY: u64 = 24 * 60 * 60;

/// Derives what a cluster derives from its cookie; off the runtime's threads, where that takes its time.
pub(crate) async fn derive(
    cookie: &Cookie,
    cluster: &ClusterName,
    allows_blocking: bool,
) -> Result<ClusterKeys, IdentityError> {
    if !cookie.needs_stretching() || !allows_blocking {
        return Ok(ClusterKeys::derive(cookie, cluster));
    }
    let (cookie, cluster) = (cookie.clone(), cluster.clone());
    let derived = tokio::task::spawn_blocking(move || ClusterKeys::derive(&cookie, &cluster)).await;
    derived.map_err(|error| IdentityError::Tls(error.to_string()))
}

/// What a change of the trust has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changed {
    /// Peers that are no longer trusted: their links were closed.
    pub closed: Vec<NodeName>,
    /// Peers to which a link still presents the former certificate or cookie, because they could not be reached with the
    /// present one. They may not accept it yet.
    pub behind: Vec<NodeName>,
}

impl Shared {
    /// Derives the keys of a cookie.
    pub(crate) async fn keys_of(&self, cookie: &Cookie) -> Result<ClusterKeys, TrustError> {
        let endpoint = self.endpoint().ok_or(TrustError::Shutdown)?;
        Ok(derive(cookie, &self.cluster, endpoint.allows_blocking()).await?)
    }

    /// Reads the node's certificates again, from where they came from.
    pub(crate) async fn pem_again(&self) -> Result<Pem, TrustError> {
        let endpoint = self.endpoint().ok_or(TrustError::Shutdown)?;
        let pem = self.tls.pem().ok_or(TrustError::NoCertificates)?;
        if !endpoint.allows_blocking() {
            return Ok(pem.read_again()?);
        }
        let read = tokio::task::spawn_blocking(move || pem.read_again()).await;
        Ok(read.map_err(|error| IdentityError::Tls(error.to_string()))??)
    }

    /// Has every link looked at again, and waits for what comes of it.
    pub(crate) async fn trust_changed(&self) -> Changed {
        let (swept, closed) = oneshot::channel();
        let (exchanged, all) = oneshot::channel();
        self.command(Command::Recheck { swept: Some(swept), exchanged: Some(exchanged) });
        let closed = closed.await.unwrap_or_default();
        let _ = timeout(self.config.connect_timeout, all).await;
        let (done, behind) = oneshot::channel();
        self.command(Command::Behind { done });
        Changed { closed, behind: behind.await.unwrap_or_default() }
    }

    /// Why a peer that has just greeted is not to come in after all: the trust changed meanwhile.
    pub(super) fn no_longer_trusts(&self, greeted: &Greeted) -> Option<AuthError> {
        if greeted.trust == self.tls.version() {
            return None;
        }
        greeted.link.recheck(&self.tls, &self.cluster, &greeted.peer).err()
    }
}

impl Node {
    /// Looks at all links: exchanges those that present what this node no longer does, and has the peers' certificates
    /// looked at by another task.
    pub(super) fn recheck(
        &mut self,
        swept: Option<oneshot::Sender<Vec<NodeName>>>,
        exchanged: Option<oneshot::Sender<()>>,
    ) {
        self.exchanging.extend(exchanged);
        let present = self.shared.tls.current();
        if !self.presented.presents_as(&present) {
            // To the peer these may be up already, and they present what this node presented before.
            let coming_up = self.entries.iter().filter(|(_, entry)| entry.is_coming_up());
            self.coming_up.extend(coming_up.map(|(id, _)| *id));
            self.presented = present;
        }
        let mut looked_at = Vec::new();
        let mut outdated = Vec::new();
        for (id, entry) in &self.entries {
            let Some((link, peer)) = self.greeted(entry) else { continue };
            let is_stopping = entry.carrier.as_ref().is_some_and(|carrier| carrier.is_stopping());
            if !is_stopping && link.is_outdated(&self.shared.tls) {
                outdated.push(*id);
            }
            looked_at.push(Looked {
                id: *id,
                session: entry.session,
                link: link.clone(),
                peer: peer.clone(),
                is_stopping,
            });
        }
        // Those without a link have nothing that could be looked at but their names.
        let unlinked: Vec<_> = self
            .sessions
            .values()
            .filter(|session| !self.shared.tls.may_admit(session.peer.name()) && self.carrier_of(session).is_none())
            .map(|session| session.peer.clone())
            .collect();
        let mut closed = BTreeSet::new();
        for life in unlinked {
            self.shared.journal.distrusts(&life, &AuthError::NotAllowed);
            closed.insert(life.name().clone());
            self.node.handle(Input::Distrusted { life }, now());
        }
        if self.farewell == Farewell::No {
            for link in outdated {
                self.node.handle(Input::Outdated { link }, now());
            }
        }
        let sweep = sweep(self.shared.clone(), looked_at, closed, swept);
        self.tasks.spawn(sweep);
    }

    /// Cuts off a peer that is no longer let in.
    pub(super) fn distrust(&mut self, link: LinkId, why: &AuthError) {
        let greeted = self.entries.get(&link).and_then(|entry| self.greeted(entry));
        let Some((_, peer)) = greeted else { return };
        self.shared.journal.distrusts(peer, why);
        self.close(link, Code::TRUST_CHANGED);
    }

    /// To which peers a link presents what this node no longer does.
    pub(super) fn behind(&self) -> Vec<NodeName> {
        let greeted = self.entries.values().filter_map(|entry| self.greeted(entry));
        let outdated = greeted.filter(|(link, _)| link.is_outdated(&self.shared.tls));
        let peers: BTreeSet<_> = outdated.map(|(_, peer)| peer.clone()).collect();
        peers.into_iter().collect()
    }

    /// The link behind an entry, and the peer at its other end, once that has greeted.
    fn greeted<'a>(&'a self, entry: &'a Entry) -> Option<(&'a Link, &'a NodeName)> {
        if let Some(greeted) = &entry.greeted {
            return Some((&greeted.link, &greeted.peer));
        }
        let session = self.sessions.get(&entry.session?)?;
        Some((&entry.carrier.as_ref()?.link, session.peer.name()))
    }

    /// Tells those who wait for it that no link is behind, nor will be when it comes up.
    pub(super) fn tell_exchanged(&mut self) {
        if self.exchanging.is_empty() {
            return;
        }
        self.coming_up.retain(|link| self.entries.get(link).is_some_and(Entry::is_coming_up));
        if self.coming_up.is_empty() && self.behind().is_empty() {
            for waiting in self.exchanging.drain(..) {
                let _ = waiting.send(());
            }
        }
    }
}

/// One link, to be looked at.
struct Looked {
    id: LinkId,
    session: Option<SessionId>,
    link: Link,
    peer: NodeName,
    is_stopping: bool,
}

/// Looks at links, beside the node task, and reports those whose peer would no longer be let in.
async fn sweep(
    shared: Arc<Shared>,
    links: Vec<Looked>,
    mut closed: BTreeSet<NodeName>,
    swept: Option<oneshot::Sender<Vec<NodeName>>>,
) {
    let mut trusted = BTreeSet::new();
    let mut stopping = Vec::new();
    for (n, looked) in links.into_iter().enumerate() {
        if n % AT_ONCE == AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
        let Err(why) = looked.link.recheck(&shared.tls, &shared.cluster, &looked.peer) else {
            trusted.insert(looked.session);
            continue;
        };
        if looked.is_stopping {
            stopping.push((looked, why));
            continue;
        }
        closed.insert(looked.peer);
        shared.command(Command::Distrusted { link: looked.id, why });
    }
    // What another link has taken over from may say what it had begun to say, and no more.
    let (taken_over, alone): (Vec<_>, Vec<_>) =
        stopping.into_iter().partition(|(looked, _)| trusted.contains(&looked.session));
    for (looked, why) in alone {
        closed.insert(looked.peer);
        shared.command(Command::Distrusted { link: looked.id, why });
    }
    if let Some(swept) = swept {
        let _ = swept.send(closed.into_iter().collect());
    }
    let patience = tokio::time::Instant::now() + LAST_WORDS;
    for (looked, why) in taken_over {
        if tokio::time::timeout_at(patience, looked.link.closed()).await.is_err() {
            shared.command(Command::Distrusted { link: looked.id, why });
        }
    }
}

/// Has the links looked at again now and then, because certificates expire.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut warned = 0;
    loop {
        warned = warn_of_expiry(&shared.tls, warned);
        sleep(shared.config.trust_recheck).await;
        shared.command(Command::Recheck { swept: None, exchanged: None });
    }
}

/// Says once for each of the times that the certificate is about to expire. Returns how many of them have come.
fn warn_of_expiry(tls: &Tls, warned: usize) -> usize {
    let Some(left) = tls.validity_left() else { return 0 };
    let due = warnings_due(left);
    if due > warned {
        let hours_left = left.as_secs() / 3600;
        if left.is_zero() {
            tracing::error!(target: target::TRUST, "this node's certificate has expired");
        } else {
            tracing::warn!(target: target::TRUST, hours_left, "this node's certificate is about to expire");
        }
    }
    due
}

/// How many of the warnings are due when the certificate is valid for so long.
fn warnings_due(left: Duration) -> usize {
    WARNINGS.iter().filter(|before| left <= **before).count()
}

/// Whether the end of the certificate's validity is near enough to be told.
pub(crate) fn expires_soon(tls: &Tls) -> bool {
    tls.validity_left().is_some_and(|left| warnings_due(left) > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_warned_of_at_fourteen_three_and_one_days() {
        let second = Duration::from_secs(1);
        for (at, days) in (1..).zip([14, 3, 1]) {
            let days = Duration::from_secs(days * DAY);
            assert_eq!([days + second, days].map(warnings_due), [at - 1, at]);
        }
        assert_eq!([second, Duration::ZERO].map(warnings_due), [3, 4]);
    }
}
