use super::*;

use crate::driver::names::tests::named;
use crate::identity::Cookie;
use crate::node::Node;
use crate::proto::registry::{NameReason, Named};
use crate::sim::Fabric;

const DESK: Name<u64> = Name::new("desk");

async fn node(local: &str) -> Node {
    let host = Fabric::new(1).host([10, 0, 0, 1]);
    let name = format!("{local}@10.0.0.1:4370");
    Node::builder(name.as_str()).cookie(Cookie::generate()).network(host).scope("x").start().await.unwrap()
}

/// The node's view says so, whatever its registry thinks.
fn tell(node: &Node, name: &str, named: Option<Named>) {
    let reason = if named.is_some() { NameReason::Registered } else { NameReason::Unregistered };
    node.shared().names.apply("", name.into(), named, reason);
}

fn owned_by(pid: Pid) -> Named {
    Named { pid, ..named("a@h", 1) }
}

/// The view may lag behind a mailbox of this very node: whoever asks is not sent there.
#[tokio::test(start_paused = true)]
async fn a_closed_mailbox_of_this_node_is_never_found() {
    let node = node("a").await;
    let registry = node.registry();
    assert_eq!(registry.lookup(DESK), Err(LookupError::NotFound));
    let desk = node.mailbox::<u64>();
    let pid = desk.pid();
    tell(&node, "desk", Some(owned_by(pid.clone())));
    assert_eq!(registry.lookup(DESK), Ok(desk.address()));
    assert_eq!((registry.entry(DESK).unwrap().owner, registry.names()), (pid.clone(), vec!["desk".into()]));
    drop(desk);
    assert_eq!((registry.lookup(DESK), registry.entry(DESK)), (Err(LookupError::NotFound), None));
    assert_eq!((registry.names(), node.shared().owner_of("", "desk")), (vec![], None));
    let sent = registry.send(DESK, 7).await;
    assert_eq!(sent, Err(NamedSendError::Lookup(LookupError::NotFound)));
    let updated = registry.update(DESK, |_| Ok::<_, ()>("m".into())).await;
    assert_eq!(updated, Err(UpdateError::NotRegistered));

    let former = crate::id::NodeId::new(node.name().clone(), node.id().incarnation() - 1);
    tell(&node, "desk", Some(owned_by(Pid::new(former, 1))));
    assert_eq!(registry.lookup(DESK), Err(LookupError::NotFound), "a mailbox of a former life");
    tell(&node, "desk", Some(named("b@h", 1)));
    assert_eq!(registry.lookup(DESK).unwrap().pid(), &named("b@h", 1).pid, "of others the view is all there is");
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_of_another_type_is_told_apart() {
    let node = node("a").await;
    let text = node.mailbox::<String>();
    tell(&node, "desk", Some(Named { tag: "string".into(), ..owned_by(text.pid()) }));
    let (expected, found) = ("u64".to_owned(), "string".to_owned());
    let mismatch = LookupError::TagMismatch { expected: expected.clone(), found: found.clone() };
    assert_eq!(node.registry().lookup(DESK), Err(mismatch.clone()));
    assert_eq!(node.registry().send(DESK, 7).await, Err(NamedSendError::Lookup(mismatch)));
    assert_eq!(node.registry().wait_for(DESK).await, Err(WaitError::TagMismatch { expected, found }));
    assert_eq!(&*node.registry().entry(DESK).unwrap().tag, <String as Message>::tag());
    assert_eq!(node.registry().lookup(Name::<String>::new("desk")), Ok(text.address()));
}

/// It ends with the name, at its deadline, or with the node; a name of a closed mailbox is not waited for.
#[tokio::test(start_paused = true)]
async fn a_wait_ends_with_what_it_waits_for() {
    let node = node("a").await;
    let (registry, patience) = (node.registry(), Duration::from_secs(3));
    let began = tokio::time::Instant::now();
    assert_eq!(registry.wait_for(DESK).timeout(patience).await, Err(WaitError::Timeout(patience)));
    assert_eq!(began.elapsed(), patience);
    let wait = || tokio::spawn(registry.wait_for(DESK).into_future());
    let waits = wait();
    tokio::task::yield_now().await;
    let closed = node.mailbox::<u64>().pid();
    tell(&node, "desk", Some(owned_by(closed)));
    tokio::task::yield_now().await;
    assert!(!waits.is_finished());
    let desk = node.mailbox::<u64>();
    tell(&node, "desk", Some(owned_by(desk.pid())));
    assert_eq!(waits.await.unwrap(), Ok(desk.address()));
    assert_eq!(registry.wait_for(DESK).await, Ok(desk.address()), "it is there");
    tell(&node, "desk", None);
    let waits = wait();
    tokio::task::yield_now().await;
    node.shutdown().await;
    assert_eq!(waits.await.unwrap(), Err(WaitError::Shutdown));
    let refused = [registry.register(DESK, &desk).await.map(drop), Err(RegisterError::Shutdown)];
    assert_eq!(refused[0], refused[1]);
    assert_eq!(registry.unregister(DESK, &desk).await, Err(UnregisterError::Shutdown));
    assert_eq!(node.ready().await, Err(crate::error::ReadyError::Shutdown));
}

/// What cannot be is refused before anybody is asked.
#[tokio::test(start_paused = true)]
async fn a_bad_registration_asks_nobody() {
    let (node, other) = (node("a").await, node("b").await);
    let (registry, foreign, desk) = (node.registry(), other.mailbox::<u64>(), node.mailbox::<u64>());
    let pid = foreign.pid();
    assert_eq!(registry.register(DESK, &foreign).await.unwrap_err(), RegisterError::WrongNode(pid.clone()));
    let replaced = registry.replace(DESK, &desk, &foreign).await.unwrap_err();
    assert_eq!(replaced, ReplaceError::WrongNode(pid));
    let large = || vec![0; NAME_METADATA_MAX + 1];
    let error = registry.register(DESK, &desk).metadata(large()).await.unwrap_err();
    assert_eq!(error, RegisterError::TooLarge { size: 1025, max: 1024 });
    let register = registry.register(DESK, &desk);
    let pid = desk.pid();
    drop(desk);
    assert_eq!(register.await.unwrap_err(), RegisterError::MailboxClosed(pid.clone()));
    let home = node.mailbox::<u64>();
    tell(&node, "desk", Some(owned_by(home.pid())));
    let updated = registry.update(DESK, |_| Ok::<_, ()>(large().into())).await;
    assert_eq!(updated, Err(UpdateError::TooLarge { size: 1025, max: 1024 }));
    assert_eq!(registry.update(DESK, |_| Err("no")).await, Err(UpdateError::Failed("no")));
    assert_eq!(registry.update(DESK, |present| Ok::<_, ()>(present.clone())).await, Ok(Bytes::new()), "as it was");
}

/// A loss closes the mailbox that was registered so: what has come is read, then the end; senders are told.
#[tokio::test(start_paused = true)]
async fn a_mailbox_closes_with_the_loss_of_its_name() {
    let node = node("a").await;
    let registry = node.registry();
    for on_loss in [OnLoss::Tell, OnLoss::CloseMailbox] {
        let mut desk = node.mailbox::<u64>();
        let closes = on_loss == OnLoss::CloseMailbox;
        let claim = registry.table.claim("desk".into(), desk.pid(), closes).granted();
        let registration = Registration { registry: registry.clone(), name: DESK, claim };
        desk.address().send(1).await.unwrap();
        assert!(!registration.is_lost());
        let serial = desk.pid().serial();
        if node.shared().names.lost("", "desk", serial, named("b@h", 1).pid) {
            node.shared().shut_mailbox(serial);
        }
        assert_eq!((registration.is_lost(), registration.lost().await), (true, Some(named("b@h", 1).pid)));
        assert_eq!(desk.recv().await, Some(1));
        match on_loss {
            OnLoss::Tell => assert_eq!(desk.address().send(2).await, Ok(())),
            OnLoss::CloseMailbox => {
                assert_eq!(desk.recv().await, None);
                let sent = desk.address().send(2).await;
                assert_eq!(sent, Err(crate::error::SendError::MailboxClosed(desk.pid())));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_scope_is_taken_part_in_or_not() {
    let node = node("a").await;
    let scope = node.registry().in_scope("x").unwrap();
    assert_eq!((node.shared().takes_part("x"), node.shared().takes_part("y")), (true, false));
    for none in ["", "y"] {
        assert_eq!(node.registry().in_scope(none).unwrap_err(), ScopeError::NotInScope(none.to_owned()));
    }
    assert_eq!(scope.in_scope("x").unwrap().count(), 0);
    node.shared().names.apply("x", "desk".into(), Some(named("b@h", 1)), NameReason::Registered);
    assert_eq!((scope.count(), node.registry().count()), (1, 0));
    assert!(scope.lookup(DESK).is_ok() && node.registry().lookup(DESK).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_family_is_watched_as_one() {
    const USERS: Names<u64> = Names::new("user");
    let node = node("a").await;
    let mut changes = node.registry().watch_family(&USERS);
    assert_eq!(changes.next().await, Some(NameEvent::Snapshot(vec![])));
    for name in ["user", "users/1", "user/42"] {
        tell(&node, name, Some(named("b@h", 1)));
    }
    let Some(NameEvent::Changed(change)) = changes.next().await else { panic!() };
    assert_eq!((&*change.name, change.reason), ("user/42", NameReason::Registered));
    assert_eq!(USERS.member(&change.name), Some("42"));
}

/// The longest that fits, and one byte more.
#[test]
fn a_name_of_a_family_is_a_name() {
    let users = Names::<u64>::parse("user").unwrap();
    assert_eq!(users.name("").unwrap_err(), KeyError::Empty);
    assert_eq!(users.name("a\n").unwrap_err(), KeyError::Control { at: 6 });
    assert!(users.name("x".repeat(250)).is_ok());
    assert_eq!(users.name("x".repeat(251)).unwrap_err(), KeyError::TooLong { len: 256, max: 255 });
    assert_eq!(Names::<u64>::parse("x".repeat(253)).unwrap().name(1).unwrap().name().len(), 255);
    assert_eq!(Names::<u64>::parse("x".repeat(254)).unwrap_err(), KeyError::TooLong { len: 254, max: 253 });
    assert_eq!(Name::<u64>::parse("").unwrap_err(), KeyError::Empty);
    assert_eq!(Name::<u64>::parse("x".repeat(256)).unwrap_err(), KeyError::TooLong { len: 256, max: 255 });
    assert_eq!(Name::<u64>::parse("a\0").unwrap_err(), KeyError::Control { at: 1 });
}
