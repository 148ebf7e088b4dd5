//! What a session with the owner brings: snapshots, deltas, tombstones, and how much is on its way.

use super::*;

/// Two who meet tell each other what they have; each sends what the other lacks, and then what is new, as it is written.
#[test]
fn a_snapshot_and_then_what_is_new() {
    let (mut one, peer) = (One::new(), id("peer"));
    one.write("a", bound(1));
    one.live(&peer);
    let outputs = one.handle(Input::Up { peer: peer.clone() });
    assert_eq!(outputs, [send(&peer, status(0, 0))]);
    assert_eq!(one.handle(Input::Linked { peer: peer.clone() }), [], "nobody knows yet what the peer has");

    let own = [entry(1, "a", bound(1))];
    let outputs = one.hear(&peer, status(0, 0));
    assert_eq!(outputs, [send(&peer, reset(1, Some(digest_of(&own)), own.to_vec()))]);
    let acknowledged = Output::Acknowledged { peer: peer.clone(), scope: text(""), version: 1 };
    assert_eq!(one.hear(&peer, have(1)), [acknowledged]);
    assert_eq!(one.node.acknowledged(&peer, ""), 1);

    let outputs = one.write("b", bound(2));
    let digest = digest_of(&[entry(1, "a", bound(1)), entry(2, "b", bound(2))]);
    let sent = send(&peer, delta(1, 2, Some(digest), vec![entry(2, "b", bound(2))]));
    assert_eq!(outputs, [changed(&id("me"), "b", 2, Some(bound(2)), Cause::Written), sent]);
}

/// What was there when they met is learned; what comes after is written just now, also when there was nothing before.
#[test]
fn learned_and_written() {
    let (mut one, old, new) = (One::new(), id("old"), id("new"));
    one.meet(&old);
    let first = [entry(4, "a", bound(1))];
    let outputs = one.hear(&old, reset(4, Some(digest_of(&first)), first.to_vec()));
    assert_eq!(outputs, [changed(&old, "a", 4, Some(bound(1)), Cause::Synced), send(&old, have(4))]);
    let digest = digest_of(&[entry(5, "a", bound(2))]);
    let outputs = one.hear(&old, delta(4, 5, Some(digest), vec![entry(5, "a", bound(2))]));
    assert_eq!(outputs, [changed(&old, "a", 5, Some(bound(2)), Cause::Written), send(&old, have(5))]);

    one.meet(&new);
    assert_eq!(one.hear(&new, delta(0, 0, Some(0), vec![])), [send(&new, have(0))]);
    let first = [entry(1, "b", bound(1))];
    let outputs = one.hear(&new, delta(0, 1, Some(digest_of(&first)), first.to_vec()));
    assert_eq!(outputs, [changed(&new, "b", 1, Some(bound(1)), Cause::Written), send(&new, have(1))]);

    // The session ends, and in the next one the peer sends what came meanwhile.
    one.handle(Input::Down { peer: new.clone() });
    one.meet(&new);
    let outputs = one.hear(&new, delta(1, 2, Some(0), vec![entry(2, "b", gone())]));
    assert_eq!(outputs[0], changed(&new, "b", 2, Some(gone()), Cause::Synced));
}

/// A peer that has everything is told only that it has; one that has something else gets all of it.
#[test]
fn a_session_goes_on_where_the_last_one_ended() {
    let own = [entry(1, "a", bound(1)), entry(2, "b", bound(2))];
    let (all, first) = (digest_of(&own), digest_of(&own[..1]));
    let second = vec![own[1].clone()];
    let cases = [
        (2, all, delta(2, 2, Some(all), vec![])),
        (1, first, delta(1, 2, Some(all), second)),
        (2, all ^ 1, reset(2, Some(all), own.to_vec())),
        (3, all, reset(2, Some(all), own.to_vec())),
        (0, 0, reset(2, Some(all), own.to_vec())),
    ];
    for (version, digest, expected) in cases {
        let (mut one, peer) = (One::new(), id("peer"));
        one.write("a", bound(1));
        one.write("b", bound(2));
        one.live(&peer);
        one.handle(Input::Up { peer: peer.clone() });
        one.handle(Input::Linked { peer: peer.clone() });
        let outputs = one.hear(&peer, status(version, digest));
        assert_eq!(outputs.last(), Some(&send(&peer, expected)), "after version {version}");
    }
}

/// The oldest tombstones are dropped; a peer that has seen the last of these goes on, one that has not gets everything anew.
#[test]
fn below_the_floor_everything_is_sent_anew() {
    for (version, is_reset) in [(3, false), (2, true)] {
        let mut one = One::with(Limits { tombstones_max: 1, ..LIMITS }, &[""]);
        one.write("a", bound(1));
        one.write("b", bound(1));
        one.write("a", gone());
        one.write("b", gone());
        one.write("c", bound(1));
        let peer = id("peer");
        one.live(&peer);
        one.handle(Input::Up { peer: peer.clone() });
        one.handle(Input::Linked { peer: peer.clone() });
        let outputs = one.hear(&peer, status(version, 0));
        let live = entry(5, "c", bound(1));
        let digest = Some(digest_of(std::slice::from_ref(&live)));
        let expected = if is_reset {
            reset(5, digest, vec![live])
        } else {
            delta(3, 5, digest, vec![entry(4, "b", gone()), live])
        };
        assert_eq!(outputs.last(), Some(&send(&peer, expected)), "after version {version}");
    }
}

/// A log that is sent anew replaces what is here when all of it has come: what is not in it is gone then, and not before.
#[test]
fn a_reset_counts_when_it_is_complete() {
    let (mut one, peer) = (One::new(), id("peer"));
    one.meet(&peer);
    let old = [entry(1, "a", bound(1)), entry(2, "b", bound(1)), entry(3, "c", bound(1))];
    one.hear(&peer, reset(3, Some(digest_of(&old)), old.to_vec()));

    // Interrupted: nothing is gone, and the next session begins where the last complete one was.
    one.hear(&peer, reset(3, None, vec![entry(3, "c", bound(1))]));
    assert_eq!(one.names(&peer), ["a", "b", "c"]);
    one.handle(Input::Down { peer: peer.clone() });
    let outputs = one.handle(Input::Up { peer: peer.clone() });
    assert_eq!(outputs, [send(&peer, status(3, digest_of(&old)))]);

    one.handle(Input::Linked { peer: peer.clone() });
    one.hear(&peer, status(0, 0));
    let new = [entry(3, "c", bound(1)), entry(7, "a", bound(2)), entry(9, "d", bound(1))];
    let outputs = one.hear(&peer, reset(7, None, new[..2].to_vec()));
    assert_eq!(outputs, [changed(&peer, "a", 7, Some(bound(2)), Cause::Synced), send(&peer, have(3))]);
    let outputs = one.hear(&peer, delta(7, 9, Some(digest_of(&new)), new[2..].to_vec()));
    let told = [
        changed(&peer, "d", 9, Some(bound(1)), Cause::Synced),
        changed(&peer, "b", 9, None, Cause::Synced),
        send(&peer, have(9)),
    ];
    assert_eq!(outputs, told);
    assert_eq!(one.names(&peer), ["a", "c", "d"]);
}

/// What is written and removed while a log is being sent anew arrives as it is in the end.
#[test]
fn a_log_changes_while_it_is_sent_anew() {
    for seed in 0..20 {
        let limits = Limits { window: 2000, tombstones_max: 3, ..LIMITS };
        let mut net = Net::new(&["a", "b"], limits, seed);
        (0..100).for_each(|n| net.write("a", "", name(&format!("n{n}")), bound(n)));
        net.connect_all(&[("a", "b")]);
        for n in 0..40 {
            net.deliver();
            net.write("a", "", name(&format!("n{}", n * 2)), if n % 3 == 0 { bound(1000) } else { gone() });
        }
        net.run(Duration::ZERO);
        net.assert_same("");
        assert_eq!(net.broken, []);
    }
}

/// What is on its way to a peer that does not answer stays within the window; each answer makes room for more.
#[test]
fn the_window_bounds_what_is_on_its_way() {
    let limits = Limits { window: 100 * 1024, ..LIMITS };
    let (mut one, peer) = (One::with(limits, &[""]), id("peer"));
    for n in 0..10_000 {
        one.write(&format!("name-{n}"), bound(n));
    }
    let mut frames: VecDeque<_> = one.meet(&peer).into();
    let mut received = 0;
    let mut answers = 0;
    while let Some(Output::Send { frame, .. }) = frames.pop_front() {
        let state = &one.node.peers[&peer];
        assert!(state.in_flight_bytes() <= limits.window && state.in_flight_bytes() > 0);
        assert!(size(&frame) <= 49 * 1024);
        let Frame::Entries { entries, upto, .. } = frame else { panic!("{frame:?}") };
        received += entries.len();
        answers += 1;
        let outputs = one.hear(&peer, have(upto));
        frames.extend(outputs.into_iter().filter(|output| matches!(output, Output::Send { .. })));
    }
    assert_eq!(received, 10_000);
    assert!(answers > 5, "{answers} frames");
    assert_eq!(one.node.peers[&peer].in_flight_bytes(), 0);

    // A window that is too small for anything still lets one entry at a time through.
    let mut net = Net::new(&["a", "b"], Limits { window: 1, ..LIMITS }, 1);
    (0..50).for_each(|n| net.write("a", "", name(&format!("n{n}")), bound(n)));
    net.connect_all(&[("a", "b")]);
    net.settle();
    net.assert_same("");
}

/// Without a link nothing is sent; with the next one it goes on where it was.
#[test]
fn nothing_is_sent_without_a_link() {
    let (mut one, peer) = (One::new(), id("peer"));
    one.meet(&peer);
    one.hear(&peer, have(0));
    one.handle(Input::Unlinked { peer: peer.clone() });
    assert_eq!(one.write("a", bound(1)), [changed(&id("me"), "a", 1, Some(bound(1)), Cause::Written)]);
    one.write("b", bound(1));
    let both = [entry(1, "a", bound(1)), entry(2, "b", bound(1))];
    let outputs = one.handle(Input::Linked { peer: peer.clone() });
    assert_eq!(outputs, [send(&peer, delta(0, 2, Some(digest_of(&both)), both.to_vec()))]);
}

/// The entries of a node that dies are hidden, and seen again when it returns, without being sent again.
#[test]
fn a_node_returns_with_what_it_had() {
    let mut net = Net::new(&["a", "b"], LIMITS, 1);
    (0..100).for_each(|n| net.write("a", "", name(&format!("n{n}")), bound(n)));
    net.connect_all(&[("a", "b")]);
    net.settle();
    net.assert_same("");

    net.cut(&id("a"), &id("b"));
    net.causes.clear();
    net.handle(&id("b"), Input::Hidden { node: id("a") });
    assert_eq!(net.seen(&id("b"), "", &id("a")).len(), 0);
    assert_eq!(net.causes.iter().filter(|(_, change)| change.cause == Cause::Died).count(), 100);

    (net.bytes, net.entries) = (0, 0);
    net.causes.clear();
    net.connect_all(&[("a", "b")]);
    net.settle();
    net.handle(&id("b"), Input::Live { node: id("a") });
    net.settle();
    net.assert_same("");
    assert_eq!(net.causes.iter().filter(|(_, change)| change.cause == Cause::Synced).count(), 100);
    assert_eq!(net.entries, 0);
    assert!(net.bytes < 300, "{} bytes", net.bytes);
}

/// What comes by the session of a node that is not held for live is kept, and shown when it is.
#[test]
fn entries_may_come_before_their_node_lives() {
    let (mut one, peer) = (One::new(), id("peer"));
    let first = [entry(1, "a", bound(1))];
    one.handle(Input::Up { peer: peer.clone() });
    one.handle(Input::Linked { peer: peer.clone() });
    one.hear(&peer, status(0, 0));
    let outputs = one.hear(&peer, reset(1, Some(digest_of(&first)), first.to_vec()));
    assert_eq!(outputs, [send(&peer, have(1))]);
    assert_eq!(one.names(&peer), [""; 0]);
    let outputs = one.handle(Input::Live { node: peer.clone() });
    assert_eq!(outputs, [changed(&peer, "a", 1, Some(bound(1)), Cause::Synced)]);
    assert_eq!(one.handle(Input::Live { node: peer.clone() }), [], "it lived already");

    // Of one that never is, nothing is left when its session ends.
    let never = id("never");
    one.handle(Input::Up { peer: never.clone() });
    one.hear(&never, status(0, 0));
    one.hear(&never, reset(1, Some(digest_of(&first)), first.to_vec()));
    assert_eq!(one.node.owners.live, 2);
    one.handle(Input::Down { peer: never });
    assert_eq!(one.node.owners.live, 1);
}

/// A life that is over takes its entries with it; the next one begins with nothing.
#[test]
fn a_new_incarnation_voids_the_old() {
    let (mut one, old, new) = (One::new(), life("peer", 1), life("peer", 2));
    one.meet(&old);
    let first = [entry(9, "a", bound(1))];
    one.hear(&old, reset(9, Some(digest_of(&first)), first.to_vec()));
    one.handle(Input::Down { peer: old.clone() });
    let outputs = one.handle(Input::Over { node: old.clone() });
    assert_eq!(outputs, [changed(&old, "a", 9, None, Cause::Left)]);
    assert_eq!(one.names(&old), [""; 0]);
    assert_eq!(one.node.owners.live, 0);

    one.live(&new);
    assert_eq!(one.handle(Input::Up { peer: new.clone() })[..], [send(&new, status(0, 0))]);

    // One that was hidden was told of already.
    one.handle(Input::Linked { peer: new.clone() });
    one.hear(&new, status(0, 0));
    one.hear(&new, reset(9, Some(digest_of(&first)), first.to_vec()));
    let outputs = one.handle(Input::Hidden { node: new.clone() });
    assert_eq!(outputs, [changed(&new, "a", 9, None, Cause::Died)]);
    assert_eq!(one.handle(Input::Over { node: new }), []);
}

/// A node that goes on under another id writes all that it has anew, and owes it to everybody.
#[test]
fn a_renewed_node_writes_its_log_anew() {
    let (mut one, peer, renewed) = (One::new(), id("peer"), life("me", 2));
    one.meet(&peer);
    one.write("a", bound(1));
    one.write("b", bound(1));
    one.write("a", gone());
    one.hear(&peer, have(3));
    let outputs = one.handle(Input::Renewed { id: renewed.clone() });
    let told =
        [changed(&id("me"), "b", 2, None, Cause::Left), changed(&renewed, "b", 1, Some(bound(1)), Cause::Written)];
    assert_eq!(outputs, told);
    assert_eq!((one.node.own_version(""), one.node.own_len()), (1, 1));
    assert_eq!(one.node.own("", &name("b")), Some((1, &bound(1))));
    assert_eq!(one.node.acknowledged(&peer, ""), 0);
    assert_eq!(entries_in(&one.meet(&peer)), 1);
}

/// Logs of scopes do not mix, and go only to those who take part.
#[test]
fn scopes_are_apart() {
    let scopes = |scopes: &[&str]| scopes.iter().copied().map(Text::from).collect::<Vec<_>>();
    let ids = [(id("a"), scopes(&["", "x"])), (id("b"), scopes(&["", "x", "y"])), (id("c"), scopes(&["", "y"]))];
    let mut net = Net::with(&ids, LIMITS, 1);
    net.connect_all(&[("a", "b"), ("b", "c"), ("a", "c")]);
    net.settle();
    net.write("a", "x", name("n"), bound(1));
    net.write("b", "y", name("n"), bound(2));
    net.write("c", "", name("n"), bound(3));
    net.run(INTERVAL * 3);
    ["", "x", "y"].into_iter().for_each(|scope| net.assert_same(scope));
    assert_eq!(net.node("c").owners("y").collect::<Vec<_>>(), [&id("b")]);
    assert_eq!(net.node("a").shares(&id("c"), "x"), Some(false));
    assert_eq!(net.node("a").shares(&id("b"), "x"), Some(true));
    assert_eq!(net.node("a").shares(&id("d"), "x"), None);
    assert!(!net.node("a").takes_part("y"));
    assert_eq!(net.broken, []);
}
