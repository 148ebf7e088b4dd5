//! A large log.

use super::*;

/// A hundred thousand names reach a node that joins in pieces of at most 48 KiB, and soon.
#[test]
fn a_large_log_is_sent_in_pieces() {
    const MANY: u64 = 100_000;
    let limits = Limits { owner_max: 100_000, total_max: 1_000_000, ..LIMITS };
    let mut net = Net::new(&["a", "b"], limits, 1);
    (0..MANY).for_each(|n| net.write("a", "", name(&format!("some-service/{n}")), bound(n)));
    net.causes.clear();
    let begun = stopwatch();
    net.connect_all(&[("a", "b")]);
    let mut longest = 0;
    loop {
        let on_its_way = net.channels.values().flatten().map(size);
        longest = on_its_way.max().unwrap_or_default().max(longest);
        if !net.deliver() {
            break;
        }
    }
    let took = begun.elapsed();
    assert!(longest <= 49 * 1024, "a frame of {longest} bytes");
    assert_eq!(net.node("b").visible("", &id("a")).count() as u64, MANY);
    assert_eq!(net.entries as u64, MANY, "each is sent once");
    assert!(net.causes.iter().all(|(_, change)| change.cause == Cause::Synced));
    // A machine that is busy with other tests is slow; something quadratic would take minutes.
    assert!(took < Duration::from_secs(20), "{took:?}");

    // A write into it costs what it costs into a small one.
    (net.bytes, net.entries) = (0, 0);
    net.write("a", "", name("one-more"), bound(1));
    net.write("a", "", name("some-service/7"), gone());
    net.settle();
    assert_eq!(net.entries, 2);
    assert!(net.bytes < 400, "{} bytes", net.bytes);
}
