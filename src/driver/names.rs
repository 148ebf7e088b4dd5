//! The names of the cluster, as handles see them.
//!
//! The node task writes, in the order in which the registry tells; handles read. Each scope has its own [`Table`], in
//! shards, so that a lookup meets a writer seldom. Watchers stand in an index by what they watch: a change costs those
//! who watch it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::disputes::Resolver;
use super::journal::target;
use super::subscriber::Subscriber;
use super::{Shared, lock};
use crate::error::ReadyError;
use crate::id::Pid;
use crate::key::ByName;
use crate::proto::registry::{NameReason, Named};
use crate::wire::services::Text;

/// A name and its owner, as one node sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NameEntry {
    /// The name.
    pub name: Arc<str>,
    /// The mailbox that has it.
    pub owner: Pid,
    /// The tag of the messages that the mailbox takes: see [`Message::tag`](crate::Message::tag).
    pub tag: Arc<str>,
    /// What was said of it at its registration, or by an update since.
    pub metadata: Bytes,
}

impl NameEntry {
    pub(crate) fn new(name: Text, named: &Named) -> Self {
        Self { name, owner: named.pid.clone(), tag: named.tag.clone(), metadata: named.metadata.clone() }
    }
}

/// What happened to one name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NameChange {
    /// The name.
    pub name: Arc<str>,
    /// Whose it was; `None` when it was nobody's.
    pub before: Option<NameEntry>,
    /// Whose it is; `None` when it is nobody's.
    pub now: Option<NameEntry>,
    /// Why.
    pub reason: NameReason,
}

/// What a watcher of names reads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameEvent {
    /// Those of the watched names that have an owner at this moment, in their order. It comes first, and after
    /// [`Lagged`](Self::Lagged).
    Snapshot(Vec<NameEntry>),
    /// Something happened to a watched name since the last snapshot. Each change comes once, in the order in which this
    /// node learned of it.
    Changed(NameChange),
    /// The watcher left too many events unread, and they are gone. A snapshot follows.
    Lagged,
}

/// What has happened to the names that a node knows, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistryCounters {
    /// Changes of names that were to be seen.
    pub changes: u64,
    /// Changes that came of two claims of one name.
    pub conflicts: u64,
    /// Registrations of this node that lost their name to another claim.
    pub lost: u64,
    /// Times that the [`ConflictResolver`](crate::ConflictResolver) panicked, or did not answer in time.
    pub resolver_failures: u64,
    /// Times that a watcher left too many events unread.
    pub lagged: u64,
}

/// The names that a node knows.
#[derive(Debug)]
pub(crate) struct Names {
    /// By scope; always with the default scope, whose name is empty.
    tables: BTreeMap<Text, Arc<Table>>,
    resolver: Option<Resolver>,
    /// Of names and families that have another.
    resolvers: ByName<Resolver>,
    readiness: watch::Sender<Readiness>,
    tally: Tally,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    Waits,
    Ready,
    Over,
}

#[derive(Debug, Default)]
struct Tally {
    changes: AtomicU64,
    conflicts: AtomicU64,
    lost: AtomicU64,
    resolver_failures: AtomicU64,
    lagged: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Names {
    /// The names of the default scope and of these. Watchers may leave so many events unread.
    pub(crate) fn new(
        events_max: usize,
        scopes: impl IntoIterator<Item = Text>,
        resolver: Option<Resolver>,
        resolvers: ByName<Resolver>,
    ) -> Self {
        let scopes = scopes.into_iter().chain([Text::from("")]);
        Self {
            tables: scopes.map(|scope| (scope.clone(), Arc::new(Table::new(scope, events_max)))).collect(),
            resolver,
            resolvers,
            readiness: watch::Sender::new(Readiness::Waits),
            tally: Tally::default(),
        }
    }

    /// The names of a scope, if this node takes part in it.
    pub(crate) fn table(&self, scope: &str) -> Option<&Arc<Table>> {
        self.tables.get(scope)
    }

    /// Whom to ask about a name.
    pub(crate) fn resolver(&self, name: &str) -> Option<&Resolver> {
        self.resolvers.of(name).or(self.resolver.as_ref())
    }

    pub(crate) fn resolver_failed(&self) {
        count(&self.tally.resolver_failures);
    }

    pub(crate) fn counters(&self) -> RegistryCounters {
        let Tally { changes, conflicts, lost, resolver_failures, lagged } = &self.tally;
        let [changes, conflicts, lost, resolver_failures, lagged] =
            [changes, conflicts, lost, resolver_failures, lagged].map(|counter| counter.load(Ordering::Relaxed));
        RegistryCounters { changes, conflicts, lost, resolver_failures, lagged }
    }

    /// Takes what the registry tells, in its order. What looks as before is no change.
    pub(crate) fn apply(&self, scope: &str, name: Text, named: Option<Named>, reason: NameReason) {
        if let Some(table) = self.tables.get(scope) {
            table.apply(&name, named, reason, &self.tally);
        }
    }

    /// A registration of this node has ended, whether or not its mailbox was the one to be seen.
    pub(crate) fn over(&self, scope: &str, name: &str, serial: u64) {
        let claim = self.tables.get(scope).and_then(|table| lock(&table.claims).remove(&(serial, name.into())));
        if let Some(claim) = claim {
            claim.end(Standing::Over);
        }
    }

    /// A registration of this node lost its name to another claim. True when its mailbox is to be closed for it.
    pub(crate) fn lost(&self, scope: &str, name: &str, serial: u64, winner: Pid) -> bool {
        let claim = self.tables.get(scope).and_then(|table| lock(&table.claims).remove(&(serial, name.into())));
        let Some(claim) = claim else { return false };
        tracing::warn!(target: target::CONFLICT, scope, name, mailbox = serial, %winner, "a registration lost its name to another claim");
        count(&self.tally.lost);
        claim.end(Standing::Lost(winner));
        claim.closes_mailbox
    }

    /// Registrations of a mailbox of this node end with it.
    pub(crate) fn mailbox_closed(&self, serial: u64) {
        for table in self.tables.values() {
            let mut claims = lock(&table.claims);
            if claims.is_empty() {
                continue;
            }
            let is_of = |(of, _): &(u64, Text)| *of == serial;
            let names: Vec<_> = claims
                .range((serial, Text::from(""))..)
                .map(|(key, _)| key)
                .take_while(|key| is_of(key))
                .cloned()
                .collect();
            let ended: Vec<_> = names.iter().filter_map(|name| claims.remove(name)).collect();
            drop(claims);
            ended.iter().for_each(|claim| claim.end(Standing::Over));
        }
    }

    /// The node has the names and groups of the cluster.
    pub(crate) fn ready(&self) {
        self.readiness.send_if_modified(|readiness| {
            let waits = *readiness == Readiness::Waits;
            if waits {
                *readiness = Readiness::Ready;
            }
            waits
        });
    }

    pub(crate) fn is_ready(&self) -> bool {
        *self.readiness.borrow() == Readiness::Ready
    }

    /// Waits until the node is ready, or over.
    pub(crate) async fn wait_ready(&self) -> Result<(), ReadyError> {
        let mut readiness = self.readiness.subscribe();
        match readiness.wait_for(|readiness| *readiness != Readiness::Waits).await.as_deref() {
            Ok(Readiness::Ready) => Ok(()),
            _ => Err(ReadyError::Shutdown),
        }
    }

    /// The node is over: nobody has a name, and watchers end when they are read.
    pub(crate) fn close(&self) {
        self.readiness.send_replace(Readiness::Over);
        self.tables.values().for_each(|table| table.close());
    }
}

/// So many parts, each with a lock of its own: a power of two.
const SHARDS: usize = 64;

/// Of so many tags one copy is kept for all names that have them.
const TAGS_SHARED: usize = 64;

/// The names of one scope.
#[derive(Debug)]
pub(crate) struct Table {
    scope: Text,
    events_max: usize,
    /// The first tags that came. A lookup compares the tag, and finds one that many names share in the processor's cache.
    tags: Mutex<BTreeSet<Text>>,
    /// Names come from peers: hashed with a key of this process, so that nobody can choose them to collide.
    hasher: RandomState,
    shards: Box<[RwLock<HashMap<Text, Named, RandomState>>]>,
    len: AtomicUsize,
    /// Locked around each change, so that a snapshot falls between two.
    watchers: Mutex<Watchers>,
    /// Registrations of this node, by mailbox and name.
    claims: Mutex<BTreeMap<(u64, Text), Arc<Claim>>>,
}

impl Table {
    fn new(scope: Text, events_max: usize) -> Self {
        let hasher = RandomState::new();
        Self {
            scope,
            events_max,
            tags: Mutex::default(),
            shards: (0..SHARDS).map(|_| RwLock::new(HashMap::with_hasher(hasher.clone()))).collect(),
            hasher,
            len: AtomicUsize::new(0),
            watchers: Mutex::default(),
            claims: Mutex::default(),
        }
    }

    pub(crate) fn scope(&self) -> &Text {
        &self.scope
    }

    fn shard(&self, name: &str) -> &RwLock<HashMap<Text, Named, RandomState>> {
        // The map takes its buckets from the low bits and its tags from the high ones.
        &self.shards[(self.hasher.hash_one(name) >> 40) as usize % SHARDS]
    }

    /// Looks at a name's owner.
    pub(crate) fn look<T>(&self, name: &str, look: impl FnOnce(&Named) -> T) -> Option<T> {
        self.shard(name).read().unwrap_or_else(PoisonError::into_inner).get(name).map(look)
    }

    /// All names that have an owner, in their order.
    pub(crate) fn entries(&self) -> Vec<NameEntry> {
        let mut entries = self.collect(|_| true);
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    /// How many names have an owner.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    fn collect(&self, wanted: impl Fn(&str) -> bool) -> Vec<NameEntry> {
        let mut entries = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            let wanted = shard.iter().filter(|(name, _)| wanted(name));
            entries.extend(wanted.map(|(name, named)| NameEntry::new(name.clone(), named)));
        }
        entries
    }

    /// The copy of the tag that others share.
    fn share(&self, tag: &mut Text) {
        let mut tags = lock(&self.tags);
        match tags.get(tag) {
            Some(shared) => *tag = shared.clone(),
            None if tags.len() < TAGS_SHARED => drop(tags.insert(tag.clone())),
            None => {}
        }
    }

    fn apply(&self, name: &Text, mut named: Option<Named>, reason: NameReason, tally: &Tally) {
        let watchers = lock(&self.watchers);
        if watchers.is_closed {
            return;
        }
        if let Some(named) = &mut named {
            self.share(&mut named.tag);
        }
        let now = named.as_ref().map(|named| NameEntry::new(name.clone(), named));
        let mut shard = self.shard(name).write().unwrap_or_else(PoisonError::into_inner);
        let before = match named {
            // What is there already keeps its key.
            Some(named) => match shard.get_mut(&**name) {
                Some(present) => Some(std::mem::replace(present, named)),
                None => shard.insert(name.clone(), named),
            },
            None => shard.remove(&**name),
        };
        drop(shard);
        let before = before.map(|before| NameEntry::new(name.clone(), &before));
        match (&before, &now) {
            (None, Some(_)) => drop(self.len.fetch_add(1, Ordering::Relaxed)),
            (Some(_), None) => drop(self.len.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
        if before == now {
            return;
        }
        count(&tally.changes);
        if reason == NameReason::Conflict {
            count(&tally.conflicts);
        }
        if let Some(before) = &before
            && now.as_ref().is_none_or(|now| now.owner != before.owner)
        {
            self.owner_gone(before, reason);
        }
        let mut watching = watchers.of(name).peekable();
        if watching.peek().is_none() {
            return;
        }
        let change = Arc::new(NameChange { name: name.clone(), before, now, reason });
        for subscriber in watching {
            subscriber.push(Told::Changed(change.clone()), self.events_max, || {
                count(&tally.lagged);
                [Told::Lagged, Told::Anew].into()
            });
        }
    }

    /// A name is not this owner's any more. If a registration of this node made it so, that is over; of one that lost
    /// its name is told apart.
    fn owner_gone(&self, before: &NameEntry, reason: NameReason) {
        if matches!(reason, NameReason::Conflict | NameReason::Synced) {
            return;
        }
        let mut claims = lock(&self.claims);
        let key = (before.owner.serial(), before.name.clone());
        let is_own = |claim: &Arc<Claim>| claim.pid.node().name() == before.owner.node().name();
        let ended = if claims.get(&key).is_some_and(is_own) { claims.remove(&key) } else { None };
        drop(claims);
        if let Some(claim) = ended {
            claim.end(Standing::Over);
        }
    }

    /// A watcher whose first event is what there is now.
    pub(crate) fn watch(self: &Arc<Self>, what: Watched) -> Watch {
        let mut watchers = lock(&self.watchers);
        let is_closed = watchers.is_closed;
        let first = if is_closed { VecDeque::new() } else { [Told::Snapshot(self.snapshot(&what))].into() };
        let subscriber = Subscriber::new(first, is_closed);
        if !is_closed {
            watchers.add(&what, subscriber.clone());
        }
        drop(watchers);
        Watch { table: self.clone(), what, subscriber }
    }

    fn snapshot(&self, what: &Watched) -> Vec<NameEntry> {
        match what {
            Watched::Name(name) => self.look(name, |named| NameEntry::new(name.clone(), named)).into_iter().collect(),
            Watched::Family(prefix) => {
                let mut entries = self.collect(|name| name.starts_with(&**prefix));
                entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                entries
            }
            Watched::All => self.entries(),
        }
    }

    fn close(&self) {
        let mut watchers = lock(&self.watchers);
        watchers.is_closed = true;
        for shard in &self.shards {
            shard.write().unwrap_or_else(PoisonError::into_inner).clear();
        }
        self.len.store(0, Ordering::Relaxed);
        watchers.close();
        drop(watchers);
        for claim in std::mem::take(&mut *lock(&self.claims)).into_values() {
            claim.end(Standing::Over);
        }
    }

    /// A registration is about to be asked for, so that its loss finds it, however soon it comes.
    pub(crate) fn claim(self: &Arc<Self>, name: Text, pid: Pid, closes_mailbox: bool) -> Claiming {
        let mut claims = lock(&self.claims);
        let claim = claims.entry((pid.serial(), name.clone())).or_insert_with(|| {
            let state = ClaimState { standing: Standing::Asks, ended: None };
            Arc::new(Claim { pid, closes_mailbox, state: Mutex::new(state) })
        });
        Claiming { table: self.clone(), name, claim: claim.clone() }
    }
}

/// What is watched.
#[derive(Clone, Debug)]
pub(crate) enum Watched {
    Name(Text),
    /// All names that begin with this, which ends with the separator.
    Family(Text),
    All,
}

/// What ends the prefix of a family.
pub(crate) const SEPARATOR: char = '/';

/// What waits in a watcher's queue.
#[derive(Debug)]
pub(crate) enum Told {
    Snapshot(Vec<NameEntry>),
    /// Shared by all who are told.
    Changed(Arc<NameChange>),
    Lagged,
    /// A snapshot, taken when it is read: who lags behind many changes is not told all names after each few.
    Anew,
}

/// Those who watch names of one scope. Each removes itself.
#[derive(Debug, Default)]
struct Watchers {
    names: HashMap<Text, Vec<Arc<Subscriber<Told>>>>,
    families: HashMap<Text, Vec<Arc<Subscriber<Told>>>>,
    all: Vec<Arc<Subscriber<Told>>>,
    is_closed: bool,
}

impl Watchers {
    /// Those who watch this name.
    fn of(&self, name: &str) -> impl Iterator<Item = &Arc<Subscriber<Told>>> {
        let ends = if self.families.is_empty() { "" } else { name };
        let prefixes = ends.match_indices(SEPARATOR).map(|(at, separator)| &name[..at + separator.len()]);
        let families = prefixes.filter_map(|prefix| self.families.get(prefix)).flatten();
        self.names.get(name).into_iter().flatten().chain(families).chain(&self.all)
    }

    fn add(&mut self, what: &Watched, subscriber: Arc<Subscriber<Told>>) {
        match what {
            Watched::Name(name) => self.names.entry(name.clone()).or_default().push(subscriber),
            Watched::Family(prefix) => self.families.entry(prefix.clone()).or_default().push(subscriber),
            Watched::All => self.all.push(subscriber),
        }
    }

    fn remove(&mut self, what: &Watched, subscriber: &Arc<Subscriber<Told>>) {
        let (map, key) = match what {
            Watched::Name(name) => (&mut self.names, name),
            Watched::Family(prefix) => (&mut self.families, prefix),
            Watched::All => return self.all.retain(|other| !Arc::ptr_eq(other, subscriber)),
        };
        let Some(subscribers) = map.get_mut(key) else { return };
        subscribers.retain(|other| !Arc::ptr_eq(other, subscriber));
        if subscribers.is_empty() {
            map.remove(key);
        }
    }

    fn close(&mut self) {
        let Self { names, families, all, .. } = self;
        let indexed = names.drain().chain(families.drain()).flat_map(|(_, subscribers)| subscribers);
        for subscriber in indexed.chain(all.drain(..)) {
            subscriber.close();
        }
    }
}

/// One watcher's place.
#[derive(Debug)]
pub(crate) struct Watch {
    table: Arc<Table>,
    what: Watched,
    subscriber: Arc<Subscriber<Told>>,
}

impl Watch {
    /// The next event; `None` once the node is over and all is read.
    pub(crate) fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<NameEvent>> {
        let Some(told) = ready!(self.subscriber.poll_next(context)) else { return Poll::Ready(None) };
        Poll::Ready(Some(match told {
            Told::Snapshot(entries) => NameEvent::Snapshot(entries),
            Told::Changed(change) => NameEvent::Changed(Arc::unwrap_or_clone(change)),
            Told::Lagged => NameEvent::Lagged,
            Told::Anew => {
                // Nothing changes meanwhile, and what waits is part of what is told now.
                let _watchers = lock(&self.table.watchers);
                self.subscriber.clear();
                NameEvent::Snapshot(self.table.snapshot(&self.what))
            }
        }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.table.watchers).remove(&self.what, &self.subscriber);
    }
}

/// A registration of this node.
#[derive(Debug)]
pub(crate) struct Claim {
    pid: Pid,
    closes_mailbox: bool,
    state: Mutex<ClaimState>,
}

#[derive(Debug)]
struct ClaimState {
    standing: Standing,
    /// Whom to tell of the end, made for the first who waits.
    ended: Option<Arc<Notify>>,
}

/// How it stands with a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Asks,
    Holds,
    /// Another claim of the name stands: this mailbox's.
    Lost(Pid),
    /// The name was given up, or its mailbox is.
    Over,
}

impl Claim {
    pub(crate) fn pid(&self) -> &Pid {
        &self.pid
    }

    pub(crate) fn standing(&self) -> Standing {
        lock(&self.state).standing.clone()
    }

    fn end(&self, standing: Standing) {
        let mut state = lock(&self.state);
        state.standing = standing;
        if let Some(ended) = state.ended.take() {
            ended.notify_waiters();
        }
    }

    /// Waits until the name is not this registration's any more: the mailbox that it was lost to, if it was lost.
    pub(crate) async fn ended(&self) -> Option<Pid> {
        loop {
            let ended = lock(&self.state).ended.get_or_insert_with(Arc::default).clone();
            let notified = ended.notified();
            match self.standing() {
                Standing::Asks | Standing::Holds => notified.await,
                Standing::Lost(winner) => return Some(winner),
                Standing::Over => return None,
            }
        }
    }
}

/// A registration that is asked for. Dropping it forgets it, unless it is one by then.
#[derive(Debug)]
pub(crate) struct Claiming {
    table: Arc<Table>,
    name: Text,
    claim: Arc<Claim>,
}

impl Claiming {
    /// It was granted.
    pub(crate) fn granted(self) -> Arc<Claim> {
        let mut state = lock(&self.claim.state);
        if state.standing == Standing::Asks {
            state.standing = Standing::Holds;
        }
        drop(state);
        self.claim.clone()
    }
}

impl Drop for Claiming {
    fn drop(&mut self) {
        let mut claims = lock(&self.table.claims);
        let key = (self.claim.pid.serial(), self.name.clone());
        // Whoever asks for the same at the same time goes on with it: the table's, this one, theirs.
        let is_last = Arc::strong_count(&self.claim) == 2;
        let is_owner = self.table.look(&self.name, |named| named.pid == self.claim.pid) == Some(true);
        if is_last && !is_owner && self.claim.standing() == Standing::Asks {
            claims.remove(&key);
        }
    }
}

impl Shared {
    /// Whether this cannot be the live owner of a name: a mailbox of this node that is closed, or of a former life.
    pub(crate) fn is_known_closed(&self, pid: &Pid) -> bool {
        self.with_id(|id| {
            id.name() == pid.node().name() && (id != pid.node() || self.mailboxes.inbox(pid.serial()).is_none())
        })
    }

    /// A name's owner, as far as this node knows.
    pub(crate) fn owner_of(&self, scope: &str, name: &str) -> Option<Pid> {
        let owner = self.names.table(scope)?.look(name, |named| named.pid.clone())?;
        (!self.is_known_closed(&owner)).then_some(owner)
    }
}

#[cfg(test)]
pub(crate) mod tests;
