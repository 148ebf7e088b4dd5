//! Two claims of one name, and who says which of them stands.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use super::journal::target;
use super::names::{NameEntry, Names};
use super::{Command, Node};
use crate::proto::node::services::Input;
use crate::proto::registry::{Dispute, DisputeId, Verdict};

/// Says which of two claims of one name stands, once a partition or a change of the members has let two be made.
///
/// Give it to [`Builder::conflict_resolver`](crate::Builder::conflict_resolver) or
/// [`Builder::conflict_resolver_for`](crate::Builder::conflict_resolver_for), the same on all nodes. It is asked at the
/// node of the older claim only, and all others follow what it says there.
///
/// ```
/// use std::pin::Pin;
/// use distribute::{Conflict, ConflictResolver, Verdict};
///
/// /// Whoever says in its metadata that it has more is to go on.
/// struct Fullest;
///
/// impl ConflictResolver for Fullest {
///     fn resolve(&self, conflict: Conflict) -> Pin<Box<dyn Future<Output = Verdict> + Send + '_>> {
///         let is_newer_fuller = conflict.newer.metadata > conflict.older.metadata;
///         Box::pin(async move { if is_newer_fuller { Verdict::Newer } else { Verdict::Older } })
///     }
/// }
/// ```
pub trait ConflictResolver: Send + Sync + 'static {
    /// Returns which claim stands.
    ///
    /// It runs in a task of its own, has [`Config::resolver_timeout`](crate::Config::resolver_timeout) to answer, and is
    /// dropped then. Without an answer in time, and after a panic, the older claim stands, which is logged and counted
    /// ([`RegistryCounters::resolver_failures`](crate::RegistryCounters::resolver_failures)). It may use the registry;
    /// it must not block. Other names go on meanwhile.
    fn resolve(&self, conflict: Conflict) -> Pin<Box<dyn Future<Output = Verdict> + Send + '_>>;
}

/// Two claims of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Conflict {
    /// The scope of the name; the default scope is empty.
    pub scope: Arc<str>,
    /// The name.
    pub name: Arc<str>,
    /// The claim that was made first. Its mailbox is one of the node that is asked.
    pub older: NameEntry,
    /// The claim that was made later.
    pub newer: NameEntry,
}

/// Whom to ask.
#[derive(Clone)]
pub(crate) struct Resolver(pub(crate) Arc<dyn ConflictResolver>);

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}

impl Node {
    /// Asks the resolver, off this task.
    pub(super) fn decide(&mut self, dispute: DisputeId, over: Dispute) {
        let shared = self.shared.clone();
        self.tasks.spawn(async move {
            let Dispute { scope, name, older, newer } = over;
            let [older, newer] = [older, newer].map(|named| NameEntry::new(name.clone(), &named));
            let conflict = Conflict { scope, name, older, newer };
            let verdict = resolve(&shared.names, shared.config.resolver_timeout, conflict).await;
            shared.command(Command::Service(Input::Decided { dispute, verdict }));
        });
    }
}

/// What the resolver says, or else that the older claim stands.
async fn resolve(names: &Names, patience: std::time::Duration, conflict: Conflict) -> Verdict {
    /// The resolver is not asked any longer than its answer is waited for.
    struct Abort(tokio::task::AbortHandle);
    impl Drop for Abort {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let Some(Resolver(resolver)) = names.resolver(&conflict.name).cloned() else { return Verdict::Older };
    let (scope, name) = (conflict.scope.clone(), conflict.name.clone());
    let asked = tokio::spawn(async move { resolver.resolve(conflict).await });
    let _abort = Abort(asked.abort_handle());
    let error = match tokio::time::timeout(patience, asked).await {
        Ok(Ok(verdict)) => return verdict,
        Ok(Err(_)) => "it panicked",
        Err(_) => "it did not answer in time",
    };
    names.resolver_failed();
    tracing::warn!(target: target::CONFLICT, %scope, %name, error, "the conflict resolver failed: the older claim stands");
    Verdict::Older
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::driver::names::tests::named;

    enum Mood {
        Says(Verdict),
        Panics,
        PanicsAtOnce,
        Sleeps,
    }

    impl ConflictResolver for Mood {
        fn resolve(&self, conflict: Conflict) -> Pin<Box<dyn Future<Output = Verdict> + Send + '_>> {
            assert!(!matches!(self, Self::PanicsAtOnce), "a user's mistake");
            Box::pin(async move {
                match self {
                    Self::Says(verdict) => {
                        assert_eq!((&*conflict.name, conflict.older.owner.serial()), ("n", 1));
                        assert_eq!(conflict.newer.owner.serial(), 2);
                        *verdict
                    }
                    Self::Sleeps => std::future::pending().await,
                    _ => panic!("a user's mistake"),
                }
            })
        }
    }

    /// Whatever it says goes; when it says nothing the older stands, at the deadline at the latest, and that is counted.
    #[tokio::test(start_paused = true)]
    async fn a_resolver_decides_or_the_older_stands() {
        let patience = Duration::from_secs(1);
        let cases = [
            (Mood::Says(Verdict::Newer), Verdict::Newer, 0),
            (Mood::Says(Verdict::Neither), Verdict::Neither, 0),
            (Mood::Panics, Verdict::Older, 1),
            (Mood::PanicsAtOnce, Verdict::Older, 1),
            (Mood::Sleeps, Verdict::Older, 1),
        ];
        for (at, (mood, expected, failures)) in cases.into_iter().enumerate() {
            let names = Names::new(8, [], Some(Resolver(Arc::new(mood))), Default::default());
            let [older, newer] = [1, 2].map(|serial| NameEntry::new("n".into(), &named("a@h", serial)));
            let conflict = Conflict { scope: "".into(), name: "n".into(), older, newer };
            let began = tokio::time::Instant::now();
            assert_eq!(resolve(&names, patience, conflict).await, expected, "{at}");
            assert!(began.elapsed() <= patience + Duration::from_millis(1), "{at}");
            assert_eq!(names.counters().resolver_failures, failures, "{at}");
        }
    }
}
