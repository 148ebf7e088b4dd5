use std::task::Waker;

use super::*;
use crate::id::NodeId;

/// An owner on that node, of mailbox and stamp `serial`.
pub(crate) fn named(node: &str, serial: u64) -> Named {
    let pid = Pid::new(NodeId::new(node.parse().unwrap(), 1), serial);
    Named { pid, version: serial, stamp: serial, tag: "u64".into(), metadata: Bytes::new() }
}

fn names(events_max: usize) -> Names {
    Names::new(events_max, [Text::from("x")], None, Default::default())
}

impl Names {
    fn tell(&self, name: &str, named: Option<Named>, reason: NameReason) {
        self.apply("", name.into(), named, reason);
    }

    fn default_scope(&self) -> &Arc<Table> {
        self.table("").unwrap()
    }
}

fn entry(name: &str, named: &Named) -> NameEntry {
    NameEntry::new(name.into(), named)
}

fn changed(name: &str, before: Option<&Named>, now: Option<&Named>, reason: NameReason) -> NameEvent {
    let [before, now] = [before, now].map(|named| named.map(|named| entry(name, named)));
    NameEvent::Changed(NameChange { name: name.into(), before, now, reason })
}

/// All that can be read without waiting, and whether that was the end.
fn read(watch: &Watch) -> (Vec<NameEvent>, bool) {
    let mut context = Context::from_waker(Waker::noop());
    let mut events = Vec::new();
    loop {
        match watch.poll_next(&mut context) {
            Poll::Ready(Some(event)) => events.push(event),
            Poll::Ready(None) => return (events, true),
            Poll::Pending => return (events, false),
        }
    }
}

/// The names in a reader's mind.
fn replay(events: Vec<NameEvent>, mind: &mut BTreeMap<Arc<str>, NameEntry>) {
    for event in events {
        match event {
            NameEvent::Snapshot(entries) => {
                *mind = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
            }
            NameEvent::Changed(NameChange { name, before, now, .. }) => {
                let was = match now {
                    Some(now) => mind.insert(name, now),
                    None => mind.remove(&name),
                };
                assert_eq!(was, before, "nothing is missing before it");
            }
            NameEvent::Lagged => {}
        }
    }
}

/// Each change is one event, with whose it was, whose it is, and why; what looks as before is none.
#[test]
fn a_watcher_reads_a_snapshot_and_then_each_change_once() {
    let names = names(64);
    let (one, two) = (named("a@h", 1), named("b@h", 2));
    let updated = Named { version: 9, metadata: "m".into(), ..two.clone() };
    names.tell("n", Some(one.clone()), NameReason::Registered);
    let watch = names.default_scope().watch(Watched::Name("n".into()));
    let told = [
        (Some(&two), NameReason::Replaced),
        (Some(&two), NameReason::Synced),
        (Some(&updated), NameReason::Updated),
        (None, NameReason::MailboxClosed),
        (None, NameReason::NodeDown),
        (Some(&one), NameReason::Synced),
        (Some(&two), NameReason::Conflict),
        (None, NameReason::NodeDown),
        (Some(&two), NameReason::Synced),
        (None, NameReason::NodeLeft),
        (Some(&one), NameReason::Registered),
        (None, NameReason::Unregistered),
    ];
    for (named, reason) in told {
        names.tell("n", named.cloned(), reason);
    }
    let expected = [
        NameEvent::Snapshot(vec![entry("n", &one)]),
        changed("n", Some(&one), Some(&two), NameReason::Replaced),
        changed("n", Some(&two), Some(&updated), NameReason::Updated),
        changed("n", Some(&updated), None, NameReason::MailboxClosed),
        changed("n", None, Some(&one), NameReason::Synced),
        changed("n", Some(&one), Some(&two), NameReason::Conflict),
        changed("n", Some(&two), None, NameReason::NodeDown),
        changed("n", None, Some(&two), NameReason::Synced),
        changed("n", Some(&two), None, NameReason::NodeLeft),
        changed("n", None, Some(&one), NameReason::Registered),
        changed("n", Some(&one), None, NameReason::Unregistered),
    ];
    assert_eq!(read(&watch), (expected.to_vec(), false));
    let RegistryCounters { changes, conflicts, lagged, .. } = names.counters();
    assert_eq!((changes, conflicts, lagged), (11, 1, 0));
}

/// A version that changes alone is what the next update goes by, and no event.
#[test]
fn a_version_is_kept_and_not_told() {
    let names = names(64);
    names.tell("n", Some(named("a@h", 1)), NameReason::Registered);
    let watch = names.default_scope().watch(Watched::All);
    names.tell("n", Some(Named { version: 7, ..named("a@h", 1) }), NameReason::Synced);
    assert_eq!(read(&watch).0, [NameEvent::Snapshot(vec![entry("n", &named("a@h", 1))])]);
    assert_eq!(names.default_scope().look("n", |named| named.version), Some(7));
}

/// One who watches a name, a family, a family within it, and all.
#[test]
fn watchers_are_told_what_they_watch() {
    let names = names(64);
    let table = names.default_scope();
    let family = |prefix: &str| Watched::Family(prefix.into());
    let what = [Watched::Name("a/b/c".into()), family("a/"), family("a/b/"), family("a/b/c/"), Watched::All];
    let watches = what.map(|what| table.watch(what));
    let one = named("a@h", 1);
    for name in ["a", "a/", "a/b/c", "a/bc", "ab/c", "ü/a/b"] {
        names.tell(name, Some(one.clone()), NameReason::Registered);
    }
    let told = watches.each_ref().map(|watch| {
        let (events, _) = read(watch);
        let names = events.into_iter().filter_map(|event| match event {
            NameEvent::Changed(change) => Some(change.name.to_string()),
            _ => None,
        });
        names.collect::<Vec<_>>().join(" ")
    });
    assert_eq!(told, ["a/b/c", "a/ a/b/c a/bc", "a/b/c", "", "a a/ a/b/c a/bc ab/c ü/a/b"]);
    let snapshots = [(family("a/"), "a/ a/b/c a/bc"), (Watched::All, "a a/ a/b/c a/bc ab/c ü/a/b")];
    for (what, expected) in snapshots {
        let (events, _) = read(&table.watch(what));
        let [NameEvent::Snapshot(entries)] = &events[..] else { panic!("{events:?}") };
        assert_eq!(entries.iter().map(|entry| &*entry.name).collect::<Vec<_>>().join(" "), expected);
    }
    drop(watches);
    let watchers = lock(&table.watchers);
    assert!(watchers.names.is_empty() && watchers.families.is_empty() && watchers.all.is_empty());
}

/// What one scope has is nothing in another, and of a scope that this node takes no part in it hears nothing.
#[test]
fn scopes_are_apart() {
    let names = names(64);
    let watch = names.default_scope().watch(Watched::All);
    for scope in ["x", "y"] {
        names.apply(scope, "n".into(), Some(named("a@h", 1)), NameReason::Registered);
    }
    assert_eq!(read(&watch).0, [NameEvent::Snapshot(vec![])]);
    assert_eq!(
        (names.default_scope().len(), names.table("x").unwrap().len(), names.table("y").is_none()),
        (0, 1, true)
    );
}

/// The last event that fits, and the first that does not. The new snapshot is of when it is read.
#[test]
fn whoever_lags_begins_again() {
    let names = names(3);
    let watch = names.default_scope().watch(Watched::All);
    let (one, two) = (named("a@h", 1), named("b@h", 2));
    for name in ["m", "n"] {
        names.tell(name, Some(one.clone()), NameReason::Registered);
    }
    assert_eq!(read(&watch).0.len(), 3, "a snapshot and two changes");
    for name in ["o", "p", "q", "r", "s"] {
        names.tell(name, Some(one.clone()), NameReason::Registered);
    }
    names.tell("m", Some(two.clone()), NameReason::Replaced);
    let (events, is_over) = read(&watch);
    let all = ["m", "n", "o", "p", "q", "r", "s"].map(|name| entry(name, if name == "m" { &two } else { &one }));
    assert_eq!((events, is_over), (vec![NameEvent::Lagged, NameEvent::Snapshot(all.to_vec())], false));
    names.tell("m", None, NameReason::Unregistered);
    assert_eq!(read(&watch).0, [changed("m", Some(&two), None, NameReason::Unregistered)]);
    assert_eq!(names.counters().lagged, 2);
}

/// Readers of another thread that lag again and again end with what there is, and no change is missing or told twice.
#[test]
fn a_lagging_reader_ends_with_what_there_is() {
    for events_max in [1, 2, 5, 10_000] {
        let names = names(events_max);
        let table = names.default_scope().clone();
        let watch = table.watch(Watched::All);
        let reader = std::thread::spawn(move || {
            let mut mind = BTreeMap::new();
            loop {
                let (events, is_over) = read(&watch);
                replay(events, &mut mind);
                if is_over || mind.contains_key("end") {
                    return mind;
                }
            }
        });
        let mut rng = fastrand::Rng::with_seed(events_max as u64);
        for _ in 0..5_000 {
            let name = rng.u64(..20).to_string();
            let present = rng.bool().then(|| named("a@h", rng.u64(1..4)));
            names.tell(&name, present, NameReason::Synced);
        }
        names.tell("end", Some(named("a@h", 1)), NameReason::Registered);
        let mind: Vec<_> = reader.join().unwrap().into_values().collect();
        assert_eq!(mind, table.entries(), "{events_max}");
        assert_eq!(mind.len(), table.len());
    }
}

#[test]
fn at_the_end_nobody_has_a_name() {
    let names = names(64);
    names.tell("n", Some(named("a@h", 1)), NameReason::Registered);
    let table = names.default_scope();
    let watch = table.watch(Watched::All);
    names.close();
    assert_eq!(read(&watch), (vec![NameEvent::Snapshot(vec![entry("n", &named("a@h", 1))])], true));
    names.tell("n", Some(named("a@h", 1)), NameReason::Registered);
    assert_eq!((table.len(), table.entries(), table.look("n", |_| ())), (0, vec![], None));
    assert_eq!(read(&table.watch(Watched::All)), (vec![], true));
}

/// The loss finds its registration, once; who waits for it is told by whom.
#[tokio::test]
async fn a_registration_learns_of_its_loss() {
    let names = names(64);
    let (own, other) = (named("a@h", 1), named("b@h", 2));
    for closes in [false, true] {
        let claim = names.default_scope().claim("n".into(), own.pid.clone(), closes).granted();
        names.tell("n", Some(own.clone()), NameReason::Registered);
        let waits = tokio::spawn({
            let claim = claim.clone();
            async move { claim.ended().await }
        });
        tokio::task::yield_now().await;
        names.tell("n", Some(other.clone()), NameReason::Conflict);
        assert_eq!(claim.standing(), Standing::Holds, "a conflict that is not settled is no loss");
        assert!(!names.lost("", "n", 7, other.pid.clone()), "another mailbox");
        assert_eq!(names.lost("", "n", 1, other.pid.clone()), closes);
        assert_eq!(waits.await.unwrap(), Some(other.pid.clone()));
        assert_eq!(
            (claim.standing(), claim.ended().await),
            (Standing::Lost(other.pid.clone()), Some(other.pid.clone()))
        );
        assert!(!names.lost("", "n", 1, other.pid.clone()), "it is told once");
    }
    assert_eq!(names.counters().lost, 2);
}

/// A registration that ends otherwise is not lost, and none is remembered after its end.
#[tokio::test]
async fn a_registration_ends_with_its_name_or_its_mailbox() {
    let names = names(64);
    let table = names.default_scope();
    let own = named("a@h", 1);
    let ends: [&dyn Fn(); 5] = [
        &|| names.tell("n", None, NameReason::Unregistered),
        &|| names.tell("n", Some(named("a@h", 2)), NameReason::Replaced),
        &|| names.tell("n", None, NameReason::MailboxClosed),
        &|| names.mailbox_closed(1),
        &|| names.close(),
    ];
    for (at, end) in ends.into_iter().enumerate() {
        names.tell("n", Some(own.clone()), NameReason::Registered);
        let claim = table.claim("n".into(), own.pid.clone(), true).granted();
        let neighbour = table.claim("n".into(), named("a@h", 2).pid, true).granted();
        names.mailbox_closed(7);
        assert_eq!(claim.standing(), Standing::Holds, "{at}");
        end();
        assert_eq!(claim.ended().await, None, "{at}");
        assert_eq!(neighbour.standing() == Standing::Over, at == 4, "{at}");
        names.mailbox_closed(2);
        assert!(lock(&table.claims).is_empty(), "{at}");
    }
}

/// A refused or forgotten claim leaves nothing, unless somebody else makes it too, or it went through.
#[test]
fn a_claim_that_is_given_up_leaves_nothing() {
    let names = names(64);
    let table = names.default_scope();
    let own = named("a@h", 1);
    let claim = |closes| table.claim("n".into(), own.pid.clone(), closes);
    drop(claim(true));
    assert!(lock(&table.claims).is_empty());
    let (first, second) = (claim(true), claim(false));
    drop(second);
    assert!(names.lost("", "n", 1, named("b@h", 2).pid), "the first is asked for yet");
    assert_eq!(first.granted().standing(), Standing::Lost(named("b@h", 2).pid), "it was over before it was told");
    let dropped = claim(true);
    names.tell("n", Some(own.clone()), NameReason::Registered);
    drop(dropped);
    assert!(names.lost("", "n", 1, named("b@h", 2).pid), "nobody held the answer, and it is a registration");
}

#[tokio::test]
async fn readiness_is_told_once_and_stays() {
    let names = Arc::new(names(64));
    let wait = || {
        let names = names.clone();
        tokio::spawn(async move { names.wait_ready().await })
    };
    let first = wait();
    tokio::task::yield_now().await;
    assert!(!first.is_finished() && !names.is_ready());
    names.ready();
    assert_eq!((first.await.unwrap(), names.is_ready()), (Ok(()), true));
    names.close();
    assert_eq!((names.wait_ready().await, names.is_ready()), (Err(ReadyError::Shutdown), false));
    names.ready();
    assert!(!names.is_ready(), "that is too late");
}

#[test]
fn names_share_their_tag_as_long_as_there_are_few() {
    let names = names(8);
    let table = names.default_scope();
    let told = |name: &str, tag: &str| {
        names.tell(name, Some(Named { tag: tag.into(), ..named("a@h", 1) }), NameReason::Registered);
        table.look(name, |named| named.tag.clone()).unwrap()
    };
    let first = told("first", "u64");
    assert!(Arc::ptr_eq(&first, &told("second", "u64")));
    for other in 1..TAGS_SHARED {
        told("second", &format!("tag {other}"));
    }
    assert!(Arc::ptr_eq(&first, &told("second", "u64")));
    assert!(!Arc::ptr_eq(&told("third", "one more"), &told("fourth", "one more")), "no room for one more");
}
