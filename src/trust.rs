//! What a node presents and whom it trusts, changed while it runs.

use std::sync::Arc;
use std::time::SystemTime;

use crate::driver::Shared;
use crate::driver::journal::target;
use crate::driver::trust::Changed;
use crate::error::TrustError;
use crate::identity::{Allowed, Cookie, Identity, KeyHash};

/// What a node presents and whom it trusts. Cheap to clone.
///
/// Everything here takes effect without a restart and without losing a session that is still trusted. A change is made at
/// once or not at all; then every live link is looked at again by it. Links to peers that are trusted no longer are closed,
/// and their sessions end with [`DownReason::TrustChanged`](crate::DownReason::TrustChanged), on both sides. Links that
/// present what the node no longer does are exchanged for new ones, in good order. [`Changed`] tells both. A peer without a
/// link at that moment has only its name to be judged by, against the list of [`set_allowed`](Self::set_allowed); for the
/// rest it is looked at with the next link, and its session ends when that is refused. Without a change all this is done
/// every [`Config::trust_recheck`](crate::Config::trust_recheck), because certificates expire.
///
/// # Another cookie for a cluster
/// In three rounds, each of which is to be finished on all nodes before the next: [`accept`](Self::accept) the new one,
/// [`present`](Self::present) it, [`forget`](Self::forget) the old one. Nodes that are one step apart understand each other,
/// and so do those between the first round and the last. Who has not learned the new cookie by the last is cut off. The new
/// cookie has to be given to later starts, too. That is the only way to take a cookie from somebody who knows it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), distribute::Error> {
/// use distribute::{Cookie, Node};
///
/// let (old, new) = (Cookie::generate(), Cookie::generate());
/// let one = Node::builder("one@127.0.0.1:0").cookie(old.clone()).start().await?;
/// let two = Node::builder("two@127.0.0.1:0").cookie(old.clone()).join(one.name()).start().await?;
/// two.cluster().connect(one.name()).await?;
/// let life = one.id();
///
/// for node in [&one, &two] {
///     node.trust().accept(&new).await?;
/// }
/// for node in [&one, &two] {
///     node.trust().present(&new).await?;
/// }
/// for node in [&one, &two] {
///     assert!(node.trust().forget(&old).await?.closed.is_empty());
/// }
/// assert_eq!(two.cluster().peers(), [life]);
/// # two.shutdown().await;
/// # one.shutdown().await;
/// # Ok(()) }
/// ```
///
/// # Other certificates
/// [`reload`](Self::reload) takes them as values, [`reload_files`](Self::reload_files) from the files that the node was
/// started with: its own certificate and key, the authorities, and the lists of revocations. A node that goes from one
/// authority to another needs three rounds, too: trust both, present the new one, trust only that.
///
/// # Cancel safety
/// Of all methods: one that is dropped has made its change or not. If it has, what follows from it is done all the same.
#[derive(Clone, Debug)]
pub struct Trust {
    shared: Arc<Shared>,
}

impl Trust {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: shared.clone() }
    }

    /// Accepts a cookie beside those that are accepted: nodes that present it are let in. At most four are accepted at a
    /// time. Accepting one again changes nothing.
    ///
    /// A passphrase is stretched first, as at the start of a node.
    ///
    /// # Errors
    /// [`TrustError::TooManyCookies`], and [`TrustError::NoCookies`] on a node that was started without one.
    pub async fn accept(&self, cookie: &Cookie) -> Result<Changed, TrustError> {
        let keys = self.shared.keys_of(cookie).await?;
        self.done(self.shared.tls.accept(&keys)?, "another cookie is accepted").await
    }

    /// Presents a cookie that is accepted, in place of the one before, which stays accepted. The key of the node stays the
    /// same.
    ///
    /// Waits until no link presents the former one any more, for [`Config::connect_timeout`](crate::Config::connect_timeout)
    /// at most. A peer that cannot be reached with the new one keeps its link, is told in [`Changed::behind`], and is tried
    /// again and again. One that [nobody can dial](crate::Builder::not_dialable) is to dial anew: if it does not accept the new
    /// one, it loses its session, and is not told in [`Changed::behind`].
    ///
    /// # Errors
    /// [`TrustError::NotAccepted`] for a cookie that is not accepted, and [`TrustError::NoCookies`].
    pub async fn present(&self, cookie: &Cookie) -> Result<Changed, TrustError> {
        let keys = self.shared.keys_of(cookie).await?;
        self.done(self.shared.tls.present(&keys)?, "another cookie is presented").await
    }

    /// Accepts a cookie no longer: peers that still present it are cut off.
    ///
    /// # Errors
    /// [`TrustError::Presented`] for the one that the node presents, [`TrustError::NotAccepted`] for one that it does not
    /// accept, and [`TrustError::NoCookies`].
    #[doc(alias = "drop")]
    pub async fn forget(&self, cookie: &Cookie) -> Result<Changed, TrustError> {
        let keys = self.shared.keys_of(cookie).await?;
        self.done(self.shared.tls.forget(&keys)?, "a cookie is accepted no longer").await
    }

    /// Returns how many cookies are accepted: 0 on a node with certificates alone.
    pub fn cookies(&self) -> usize {
        self.shared.tls.cookies()
    }

    /// Presents other certificates of a PKI, and trusts other authorities. The cookies stay as they are, whether or not the
    /// identity has one. Peers do not take the node for another one, be it with another key.
    ///
    /// # Errors
    /// [`TrustError::Identity`] if the certificates cannot be used, in which case nothing has changed, and
    /// [`TrustError::NoCertificates`] on a node that was started with a cookie alone, or for such an identity.
    pub async fn reload(&self, identity: Identity) -> Result<Changed, TrustError> {
        let pem = identity.pem.ok_or(TrustError::NoCertificates)?;
        self.done(self.shared.tls.reload(&pem)?, "other certificates").await
    }

    /// Reads the files again that the node was started with, or that came with the last [`reload`](Self::reload).
    ///
    /// # Errors
    /// As [`reload`](Self::reload); also if the certificates did not come from files.
    pub async fn reload_files(&self) -> Result<Changed, TrustError> {
        let pem = self.shared.pem_again().await?;
        self.done(self.shared.tls.reload(&pem)?, "certificates were read again").await
    }

    /// Lets in and dials only the nodes on a list, or all members for `None`.
    ///
    /// # Errors
    /// [`TrustError::TooMany`] for a list of more than [`ALLOWED_MAX`](crate::ALLOWED_MAX) entries, and
    /// [`TrustError::Identity`] if nothing else tells members from other holders of certificates: see
    /// [`IdentityError::TooOpen`](crate::IdentityError::TooOpen).
    pub async fn set_allowed(&self, allowed: Option<Allowed>) -> Result<Changed, TrustError> {
        self.done(self.shared.tls.set_allowed(allowed)?, "another list of allowed nodes").await
    }

    /// Returns which nodes are let in; `None` for all members.
    pub fn allowed(&self) -> Option<Allowed> {
        self.shared.tls.allowed()
    }

    /// Refuses whoever holds a key, as if its certificate were revoked. At most 4096 keys. With a cookie instead of
    /// certificates this keeps out one life of a node, and not whoever knows the cookie.
    ///
    /// # Errors
    /// [`TrustError::TooMany`].
    #[doc(alias = "blocklist")]
    pub async fn block_key(&self, key: KeyHash) -> Result<Changed, TrustError> {
        self.done(self.shared.tls.set_blocked(key, true)?, "a key is blocked").await
    }

    /// Refuses the holder of a key no longer.
    ///
    /// # Errors
    /// None that a list which gets shorter can have.
    pub async fn unblock_key(&self, key: KeyHash) -> Result<Changed, TrustError> {
        self.done(self.shared.tls.set_blocked(key, false)?, "a key is blocked no longer").await
    }

    /// Looks at all links now, and closes those whose peers would no longer be let in.
    pub async fn recheck(&self) -> Changed {
        self.shared.trust_changed().await
    }

    /// Returns the hash of the key in the node's certificate.
    pub fn key(&self) -> KeyHash {
        self.shared.tls.key()
    }

    /// Returns when the node's certificate, or an intermediate one, expires; `None` with a cookie alone. It is warned of in
    /// the log 14, 3 and 1 days before, and in [`Health`](crate::Health) for as long.
    pub fn not_after(&self) -> Option<SystemTime> {
        self.shared.tls.not_after()
    }

    async fn done(&self, is_changed: bool, what: &str) -> Result<Changed, TrustError> {
        if !is_changed {
            return Ok(Changed::default());
        }
        tracing::info!(target: target::TRUST, node = %self.shared.id(), what, "trust changed");
        Ok(self.shared.trust_changed().await)
    }
}
