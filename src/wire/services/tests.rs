use std::collections::BTreeSet;

use proptest::collection::{btree_map, vec};
use proptest::option::of;
use proptest::prelude::*;

use super::election::Word;
use super::monitor::{CUTS_MAX, Cut, Gone, REASON_MAX, reason};
use super::registry::{Answer, Pending, Request, Spent, Token};
use super::replication::{After, Binding, ENTRIES_MAX, Ended, Entry, Held, Joined, Key, Mine, State};
use super::*;
use crate::id::{NODE_NAME_MAX, NodeName};
use crate::wire::tests::{from_hex, to_hex};
use crate::wire::{SKIPPABLE, Splitter};

mod election;

/// These bytes are what nodes of this version say to each other: a change here is a change of the protocol.
#[test]
fn the_bytes_of_every_frame_are_these() {
    for (hex, service) in golden() {
        assert_eq!(to_hex(&encoded(&service)), hex, "{service:?}");
        assert_eq!(decode(&from_hex(hex)), Ok(Some(service)), "{hex}");
    }
    let kinds: BTreeSet<u8> = golden().iter().map(|(hex, _)| from_hex(hex)[0]).collect();
    let known = (0..=255u8).filter(|kind| is_known(*kind)).collect::<BTreeSet<_>>();
    assert_eq!(kinds, known, "each kind is pinned");
    let pinned = |kind| golden().iter().filter(|(hex, _)| from_hex(hex)[0] == kind).count();
    assert!(pinned(0x90) >= 7 && pinned(0x91) >= 19 && pinned(0xb0) >= 13, "each request and each answer is pinned");
}

#[test]
fn a_frame_of_the_stream_has_a_number() {
    let mut bytes = Vec::new();
    put_numbered(&mut bytes, 300, &Service::Ready);
    assert_eq!(to_hex(&bytes), "8f04412c8000");
    let frame = split(&bytes);
    assert_eq!(numbered(frame), Ok(Some((300, Frame { kind: READY, body: Bytes::new() }))));
    let of = |hex| numbered(split(&from_hex(hex)));
    assert_eq!(of("8f00"), Err(WireError::Short));
    assert_eq!(of("8f0101"), Err(WireError::Short));
    assert_eq!(of("8f03018001"), Err(WireError::Short), "a length beyond the frame");
    assert_eq!(of("8f0401800000"), Err(WireError::Trailing));
    assert_eq!(of("8e00"), Err(WireError::UnknownFrame(0x8e)));
    assert_eq!(of("cf00"), Ok(None), "without a number");
    assert_eq!(of("8f0301c000"), Ok(Some((1, Frame { kind: 0xc0, body: Bytes::new() }))), "what is skipped has one");
}

#[test]
fn a_service_frame_has_64_kib() {
    let numbered_of = |len: usize| {
        let mut body = vec![0; 0];
        put_varint(&mut body, VARINT_MAX);
        body.push(READY);
        put_varint(&mut body, len as u64);
        body.extend(vec![0; len]);
        numbered(Frame { kind: NUMBERED, body: body.into() }).map(|read| read.map(|(number, _)| number))
    };
    assert_eq!(numbered_of(CONTROL_MAX), Ok(Some(VARINT_MAX)));
    assert_eq!(numbered_of(CONTROL_MAX + 1), Err(WireError::TooLong(CONTROL_MAX as u64 + 1)));
}

#[test]
fn a_truncated_frame_is_an_error() {
    for (hex, service) in golden() {
        let whole = split(&from_hex(hex));
        // A list goes on to the end of its frame: what has lost whole items is a frame too.
        let good = items(&service);
        for len in 0..whole.body.len() {
            let read = Service::decode(Frame { kind: whole.kind, body: whole.body.slice(..len) });
            assert_eq!(read.is_ok(), good.contains(&len), "{len} bytes of {service:?}: {read:?}");
        }
    }
}

#[test]
fn a_frame_that_goes_on_is_an_error() {
    for (hex, service) in golden() {
        let whole = split(&from_hex(hex));
        // The first half of a number, with which each item begins.
        let longer = [&whole.body[..], &[0x40]].concat();
        let why = if has_list(&service) { WireError::Short } else { WireError::Trailing };
        assert_eq!(Service::decode(Frame { kind: whole.kind, body: longer.into() }), Err(why), "{hex}");
    }
}

#[test]
fn an_unknown_frame_is_skipped_if_it_may_be_and_refused_if_not() {
    for kind in (0..=255u8).filter(|kind| !is_known(*kind)) {
        let read = Service::decode(Frame { kind, body: Bytes::from_static(b"whatever") });
        let skipped = if kind & SKIPPABLE != 0 { Ok(None) } else { Err(WireError::UnknownFrame(kind)) };
        assert_eq!(read, skipped);
    }
    let skippable: Vec<u8> = (0..=255u8).filter(|kind| is_known(*kind) && kind & SKIPPABLE != 0).collect();
    assert_eq!(skippable, [0xe3], "peers that do not know the others may not skip them");
    assert_eq!(NUMBERED & SKIPPABLE, 0);
}

#[test]
fn names_are_those_that_users_may_give() {
    let confirm = |scope: &[u8], name: &[u8]| {
        let mut body = vec![0, 0, 3];
        put_bytes(&mut body, scope);
        put_bytes(&mut body, name);
        body.push(9);
        Service::decode(Frame { kind: 0x90, body: body.into() }).map(|_| ())
    };
    let bad = Err(WireError::Value("name"));
    assert_eq!(confirm(b"", b"x"), Ok(()), "the default scope");
    assert_eq!(confirm(&[b's'; SCOPE_MAX], &[b'n'; KEY_MAX]), Ok(()));
    assert_eq!(confirm(&[b's'; SCOPE_MAX + 1], b"x"), Err(WireError::TooLong(65)));
    assert_eq!(confirm(b"", &[b'n'; KEY_MAX + 1]), Err(WireError::TooLong(256)));
    assert_eq!(confirm(b"", b""), bad);
    assert_eq!(confirm(b"", b"a\n"), bad);
    assert_eq!(confirm(b"a\x7f", b"x"), bad);
    assert_eq!(confirm("\u{9f}".as_bytes(), b"x"), bad);
    assert_eq!(confirm("\u{a0}".as_bytes(), "名/é".as_bytes()), Ok(()));
    assert_eq!(confirm(b"", b"\xff"), Err(WireError::Value("UTF-8")));
}

#[test]
fn a_reason_has_a_limit_and_is_cut_to_it() {
    let longest = "x".repeat(REASON_MAX);
    assert_eq!(*reason(&longest), *longest);
    assert_eq!(*reason(&format!("{longest}y")), *longest);
    let split = format!("{}é", "x".repeat(REASON_MAX - 1));
    assert_eq!(*reason(&split), split[..REASON_MAX - 1], "no half of a character");
    assert_eq!(reason("").len(), 0);
    for (len, read) in [(REASON_MAX, Ok(())), (REASON_MAX + 1, Err(WireError::TooLong(257)))] {
        let mut body = vec![5];
        put_bytes(&mut body, &vec![b'x'; len]);
        assert_eq!(Service::decode(Frame { kind: 0xe3, body: body.into() }).map(|_| ()), read);
    }
    assert_eq!(decode(&from_hex("e3030501ff")), Err(WireError::Value("UTF-8")));
}

#[test]
fn metadata_has_a_limit() {
    for (len, read) in [(NAME_METADATA_MAX, Ok(())), (NAME_METADATA_MAX + 1, Err(WireError::TooLong(1025)))] {
        let metadata = |mut body: Vec<u8>| {
            put_bytes(&mut body, &vec![0; len]);
            body
        };
        let update = Frame { kind: 0x90, body: metadata(from_hex("0000060001780102")).into() };
        assert_eq!(Service::decode(update).map(|_| ()), read);
        let stale = Frame { kind: 0x91, body: metadata(from_hex("00001201")).into() };
        assert_eq!(Service::decode(stale).map(|_| ()), read);
        let bound = Frame { kind: 0x82, body: metadata(from_hex("0000000101020178010901000174")).into() };
        assert_eq!(Service::decode(bound).map(|_| ()), read);
    }
}

/// Of a log from one version to another, each once and in order.
#[test]
fn entries_are_within_their_versions() {
    let entries = |flags: u8, since: u64, upto: u64, versions: &[u64]| {
        let mut body = vec![0, flags];
        put_varint(&mut body, since);
        put_varint(&mut body, upto);
        for version in versions {
            put_varint(&mut body, *version);
            body.extend([2, 1, b'x', 2]);
        }
        Service::decode(Frame { kind: 0x82, body: body.into() }).map(|_| ())
    };
    let bad = Err(WireError::Value("versions"));
    assert_eq!(entries(0, 5, 5, &[]), Ok(()), "nothing is left of them");
    assert_eq!(entries(0, 6, 5, &[]), bad);
    assert_eq!(entries(0, 5, 9, &[6, 9]), Ok(()));
    assert_eq!(entries(0, 5, 9, &[5, 9]), bad);
    assert_eq!(entries(0, 5, 9, &[6, 10]), bad);
    assert_eq!(entries(0, 5, 9, &[7, 7]), bad);
    assert_eq!(entries(0, 5, 9, &[8, 7]), bad);
    assert_eq!(entries(0, 0, 9, &[0]), bad, "versions begin with 1");
    assert_eq!(entries(0, 0, 9, &[1]), Ok(()));
    assert_eq!(entries(2, 0, 9, &[1]), Ok(()), "a reset begins with the log");
    assert_eq!(entries(2, 1, 9, &[2]), bad);
    assert_eq!(entries(8, 0, 9, &[1]), Err(WireError::Value("flags")));
    let most: Vec<u64> = (1..=ENTRIES_MAX as u64 + 1).collect();
    assert_eq!(entries(0, 0, VARINT_MAX, &most[1..]), Ok(()));
    assert!(matches!(entries(0, 0, VARINT_MAX, &most), Err(WireError::TooLong(_))));
}

/// What a key is about decides what can be said of it.
#[test]
fn a_state_is_one_of_its_key() {
    let entry = |key: &str, state: &str| {
        let body = from_hex(&format!("0000000101{key}{state}"));
        Service::decode(Frame { kind: 0x82, body: body.into() }).map(|_| ())
    };
    let (arbiter, name, member) = ("010173", "020178", "03016705");
    let replaced = "050b6140686f73743a343337300000000000000007090100017400";
    let bad = Err(WireError::Value("state"));
    for (key, state, read) in [
        (arbiter, "01", Ok(())),
        (arbiter, "02", Ok(())),
        (arbiter, "03", Ok(())),
        (arbiter, "04", bad),
        (arbiter, replaced, bad),
        (name, "01090100017400", Ok(())),
        (name, "02", Ok(())),
        (name, "03", Ok(())),
        (name, "04", Ok(())),
        (name, replaced, Ok(())),
        (member, "01010174", Ok(())),
        (member, "01000174", Err(WireError::Value("count"))),
        (member, "02", Ok(())),
        (member, "03", Ok(())),
        (member, "04", bad),
        (arbiter, "06", bad),
        (name, "06", Ok(())),
        (member, "06", Ok(())),
        (member, replaced, bad),
        (name, "00", bad),
        (name, "07", bad),
        ("00", "", Err(WireError::Value("key"))),
        ("04", "", Err(WireError::Value("key"))),
    ] {
        assert_eq!(entry(key, state), read, "{key} {state}");
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let of = |kind, hex| Service::decode(Frame { kind, body: from_hex(hex).into() });
    assert_eq!(of(0x90, "000000"), Err(WireError::Value("request")));
    assert_eq!(of(0x90, "000008"), Err(WireError::Value("request")));
    assert_eq!(of(0x91, "000000"), Err(WireError::Value("answer")));
    assert_eq!(of(0x91, "000014"), Err(WireError::Value("answer")));
    assert_eq!(of(0xa0, "0502"), Err(WireError::Value("flag")));
    assert_eq!(of(0xa2, "0500"), Err(WireError::Value("fate")));
    assert_eq!(of(0xa2, "0504"), Err(WireError::Value("fate")));
    let capital = "000b6140484f53543a34333730000000000000000705";
    assert_eq!(of(0x86, capital), Err(WireError::Value("node name")), "one name has one spelling");
    assert_eq!(of(0x85, "0002"), Err(WireError::Value("flag")));
}

#[test]
fn a_lists_length_is_bounded_by_its_frame() {
    let down = |cuts: usize| {
        let body = [vec![5, 1], [1, 2].repeat(cuts)].concat();
        Service::decode(Frame { kind: 0xa2, body: body.into() }).map(|_| ())
    };
    assert_eq!(down(CUTS_MAX), Ok(()));
    assert_eq!(down(CUTS_MAX + 1), Err(WireError::TooLong(2 * (CUTS_MAX as u64 + 1))));
    let largest = Cut { mailbox: VARINT_MAX, number: VARINT_MAX };
    let frame = Monitor::Down { serial: VARINT_MAX, gone: Gone::Closed, cuts: vec![largest; CUTS_MAX] };
    assert!(Service::Monitor(frame).body_len() <= CONTROL_MAX);
}

/// Whoever fills frames by bounds never makes one that is too large.
#[test]
fn what_fits_by_its_bounds_fits_a_frame() {
    let largest = largest_entry(VARINT_MAX);
    assert_eq!(largest.size_bound(), entries_len(std::slice::from_ref(&largest)));
    let many = ITEMS_MAX / largest.size_bound();
    assert!(many >= 16, "{many}");
    let first = VARINT_MAX - many as u64;
    let entries: Vec<_> = (1..=many as u64).map(|n| largest_entry(first + n)).collect();
    let frame = Service::Replication(Replication::Entries {
        scope: "s".repeat(SCOPE_MAX).into(),
        owner: Some(longest_node()),
        since: first,
        upto: VARINT_MAX,
        is_reset: false,
        digest: Some(u64::MAX),
        entries,
    });
    assert!(frame.body_len() <= CONTROL_MAX);
    assert_eq!(decode(&encoded(&frame)), Ok(Some(frame)));

    let smallest = Entry { version: 1, key: Key::Arbiter { scope: "".into() }, state: State::Arbiter };
    assert_eq!(smallest.size_bound(), 16);
    assert!(ITEMS_MAX / smallest.size_bound() <= ENTRIES_MAX);

    let held = Held { owner: longest_node(), version: VARINT_MAX, digest: 0 };
    let logs = vec![held.clone(); ITEMS_MAX / held.size_bound()];
    let scope: Text = "s".repeat(SCOPE_MAX).into();
    let vector = Replication::Vector { scope, logs, is_question: true };
    assert!(Service::Replication(vector).body_len() <= CONTROL_MAX);
    let token = Token { node: longest_node(), number: VARINT_MAX };
    let pending = Pending { name: longest(), token, serial: VARINT_MAX, stamp: u64::MAX };
    let pending = vec![pending.clone(); ITEMS_MAX / pending.size_bound()];
    let held = Registry::Answer { number: VARINT_MAX, clock: u64::MAX, answer: Answer::Held { pending } };
    assert!(Service::Registry(held).body_len() <= CONTROL_MAX);
}

/// A peer may have said the greatest.
#[test]
fn a_time_beyond_the_greatest_is_the_greatest() {
    let at = |clock| {
        let (scope, name) = (Text::default(), Text::from("x"));
        let token = Token { node: node("a@host", 7), number: 1 };
        Service::Registry(Registry::Withdraw { scope, name, token, clock })
    };
    assert_eq!(decode(&encoded(&at(u64::MAX))), Ok(Some(at(VARINT_MAX))));
}

/// An entry is kept as long as its node lives, a stream's chunk is not.
#[test]
fn what_is_read_keeps_nothing_of_the_bytes() {
    for (hex, service) in golden() {
        let bytes = Bytes::from(from_hex(hex));
        let frame = take_frame(&mut bytes.clone()).unwrap();
        let read = Service::decode(frame);
        assert!(bytes.is_unique(), "{service:?}");
        assert_eq!(read, Ok(Some(service)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(number in number(), service in any_service()) {
        let mut bytes = Vec::new();
        put_numbered(&mut bytes, number, &service);
        let (read, frame) = numbered(split(&bytes)).unwrap().unwrap();
        prop_assert_eq!(read, number);
        prop_assert_eq!(Service::decode(frame), Ok(Some(service)));
    }

    #[test]
    fn an_entry_takes_what_it_says(entry in any_entry(), version in 1..=VARINT_MAX) {
        let entry = Entry { version, ..entry };
        let len = entries_len(std::slice::from_ref(&entry));
        prop_assert_eq!(entry.size_bound(), len.max(16));
    }

    #[test]
    fn noise_breaks_no_decoder(kind in prop_oneof![0x80..=0xa2u8, Just(0xb0u8), any::<u8>()], body in vec(any::<u8>(), 0..400)) {
        check_read(Frame { kind, body: body.clone().into() })?;
        let _ = numbered(Frame { kind: NUMBERED, body: body.into() });
    }

    /// Small numbers are what most kinds, flags and lengths are.
    #[test]
    fn small_numbers_break_no_decoder(kind in prop_oneof![0x80..=0xa2u8, Just(0xb0u8)], body in vec(0..20u8, 0..200)) {
        check_read(Frame { kind, body: body.into() })?;
    }

    /// A good frame with a few bytes changed goes deeper than noise does.
    #[test]
    fn no_change_of_a_frame_breaks_a_decoder(
        service in any_service(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = split_service(&encoded(&service));
        let mut body = whole.body.to_vec();
        for (at, byte) in changes {
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] = byte;
            }
        }
        check_read(Frame { kind: whole.kind, body: body.clone().into() })?;
        body.truncate(cut.index(body.len() + 1));
        check_read(Frame { kind: whole.kind, body: body.into() })?;
    }
}

/// What was read can be said again, in no more bytes than it came in.
fn check_read(frame: Frame) -> Result<(), TestCaseError> {
    let len = frame.body.len();
    if let Ok(Some(read)) = Service::decode(frame) {
        prop_assert!(read.body_len() <= len);
        prop_assert_eq!(decode(&encoded(&read)), Ok(Some(read)));
    }
    Ok(())
}

fn is_known(kind: u8) -> bool {
    kind == READY || Replication::has(kind) || Registry::has(kind) || Monitor::has(kind) || Election::has(kind)
}

fn has_list(service: &Service) -> bool {
    use Replication::{Entries, Status, Vector};
    matches!(
        service,
        Service::Replication(Status { .. } | Entries { .. } | Vector { .. })
            | Service::Registry(Registry::Answer { answer: Answer::Held { .. }, .. })
            | Service::Monitor(Monitor::Down { .. })
            | Service::Election(Election { word: Word::Voted { .. } | Word::Recovered { .. }, .. })
    )
}

/// The lengths of the bodies that hold only the first items of a list.
fn items(service: &Service) -> Vec<usize> {
    let shorter = |service: &Service| match service.clone() {
        Service::Replication(Replication::Status { mut scopes }) => {
            scopes.pop().map(|_| Service::Replication(Replication::Status { scopes }))
        }
        Service::Replication(Replication::Entries { scope, owner, since, upto, is_reset, digest, mut entries }) => {
            entries.pop().map(|_| {
                Service::Replication(Replication::Entries { scope, owner, since, upto, is_reset, digest, entries })
            })
        }
        Service::Replication(Replication::Vector { scope, mut logs, is_question }) => {
            logs.pop().map(|_| Service::Replication(Replication::Vector { scope, logs, is_question }))
        }
        Service::Registry(Registry::Answer { number, clock, answer: Answer::Held { mut pending } }) => pending
            .pop()
            .map(|_| Service::Registry(Registry::Answer { number, clock, answer: Answer::Held { pending } })),
        Service::Monitor(Monitor::Down { serial, gone, mut cuts }) => {
            cuts.pop().map(|_| Service::Monitor(Monitor::Down { serial, gone, cuts }))
        }
        Service::Election(mut election) => {
            let (Word::Voted { lives, .. } | Word::Recovered { lives, .. }) = &mut election.word else { return None };
            lives.pop().map(|_| Service::Election(election))
        }
        _ => None,
    };
    std::iter::successors(shorter(service), shorter).map(|shorter| shorter.body_len()).collect()
}

fn encoded(service: &Service) -> Vec<u8> {
    let mut bytes = Vec::new();
    service.encode(&mut bytes);
    bytes
}

fn decode(bytes: &[u8]) -> Result<Option<Service>, WireError> {
    Service::decode(split_service(bytes))
}

fn split_service(bytes: &[u8]) -> Frame {
    let mut bytes = Bytes::copy_from_slice(bytes);
    let frame = take_frame(&mut bytes).expect("a whole frame");
    assert!(bytes.is_empty(), "one frame and no more");
    frame
}

/// As a stream delivers it.
fn split(bytes: &[u8]) -> Frame {
    let mut splitter = Splitter::new(NUMBERED_MAX);
    splitter.push(Bytes::copy_from_slice(bytes));
    let frame = splitter.next_frame().expect("a frame").expect("a whole one");
    assert_eq!((splitter.next_frame(), splitter.is_begun()), (Ok(None), false), "one frame and no more");
    frame
}

fn node(text: &str, incarnation: u64) -> NodeId {
    NodeId::new(NodeName::parse(text).expect("a name"), incarnation)
}

fn longest_node() -> NodeId {
    node(&format!("{}@h:4370", "n".repeat(NODE_NAME_MAX - 7)), u64::MAX)
}

fn longest() -> Text {
    "x".repeat(KEY_MAX).into()
}

fn largest_entry(version: u64) -> Entry {
    let old = Arc::new(Binding {
        serial: VARINT_MAX,
        stamp: VARINT_MAX,
        after: Some(After { owner: longest_node(), version: VARINT_MAX }),
        tag: longest(),
        metadata: vec![7; NAME_METADATA_MAX].into(),
    });
    let state = State::Gone(Ended::Replaced { by: longest_node(), old });
    Entry { version, key: Key::Name(longest()), state }
}

/// How many bytes these add to a frame.
fn entries_len(entries: &[Entry]) -> usize {
    let of = |entries: &[Entry]| {
        let (scope, entries) = (Text::default(), entries.to_vec());
        let frame = Replication::Entries {
            scope,
            owner: None,
            since: 0,
            upto: VARINT_MAX,
            is_reset: false,
            digest: None,
            entries,
        };
        Service::Replication(frame).body_len()
    };
    of(entries) - of(&[])
}

fn golden() -> Vec<(&'static str, Service)> {
    let (a, b) = (node("a@host", 7), node("b@host", 0x0102_0304_0506_0708));
    let (scope, name) = (|| Text::from("eu"), || Text::from("cart/42"));
    let pid = |serial| Pid::new(b.clone(), serial);
    let after = || Some(After { owner: b.clone(), version: 300 });
    let token = || Token { node: a.clone(), number: 9 };
    let metadata = Bytes::from_static(b"zone");
    let binding = |after| {
        let (tag, metadata) = (Text::from("shop.order"), metadata.clone());
        Arc::new(Binding { serial: 5, stamp: 70_000, after, tag, metadata })
    };
    let entry = |version, key, state| Entry { version, key, state };
    let entries = vec![
        entry(301, Key::Arbiter { scope: scope() }, State::Arbiter),
        entry(302, Key::Name(name()), State::Bound(binding(None))),
        entry(303, Key::Name(name()), State::Bound(binding(after()))),
        entry(
            304,
            Key::Member { group: "workers".into(), serial: 5 },
            State::Joined(Joined { count: 2, tag: "job".into() }),
        ),
        entry(305, Key::Member { group: "workers".into(), serial: 6 }, State::Gone(Ended::Closed)),
        entry(306, Key::Name("x".into()), State::Gone(Ended::Withdrawn)),
        entry(307, Key::Name("y".into()), State::Gone(Ended::Lost)),
        entry(308, Key::Name("w".into()), State::Gone(Ended::Left)),
        entry(309, Key::Name("z".into()), State::Gone(Ended::Replaced { by: b.clone(), old: binding(None) })),
    ];
    let held = |owner: &NodeId, version, digest| Held { owner: owner.clone(), version, digest };
    let mine = |scope, version, digest| Mine { scope, version, digest };
    let replication = Service::Replication;
    let request = |request| Service::Registry(Registry::Request { number: 300, clock: 70_000, request });
    let answer = |answer| Service::Registry(Registry::Answer { number: 300, clock: 70_000, answer });
    let monitor = Service::Monitor;
    let mut golden = vec![
        ("8000", Service::Ready),
        (
            "811700412c8000000000000000026575000000000000000000",
            replication(Replication::Status { scopes: vec![mine("".into(), 300, 1 << 63), mine(scope(), 0, 0)] }),
        ),
        ("8100", replication(Replication::Status { scopes: vec![] })),
        (
            "8240e6026575050b6140686f73743a343337300000000000000007412c413600000000000000f1412d0102657501412e\
             0207636172742f3432010580011170000a73686f702e6f72646572047a6f6e65412f0207636172742f34320105800111\
             70010b6240686f73743a343337300102030405060708412c0a73686f702e6f72646572047a6f6e6541300307776f726b\
             657273050102036a6f6241310307776f726b6572730603413202017802413302017904413402017706413502017a050b\
             6240686f73743a3433373001020304050607080580011170000a73686f702e6f72646572047a6f6e65",
            replication(Replication::Entries {
                scope: scope(),
                owner: Some(a.clone()),
                since: 300,
                upto: 310,
                is_reset: false,
                digest: Some(0xf1),
                entries,
            }),
        ),
        (
            "820400020000",
            replication(Replication::Entries {
                scope: "".into(),
                owner: None,
                since: 0,
                upto: 0,
                is_reset: true,
                digest: None,
                entries: vec![],
            }),
        ),
        (
            "831a026575010b6140686f73743a343337300000000000000007412c",
            replication(Replication::Have { scope: scope(), owner: Some(a.clone()), version: 300 }),
        ),
        ("8303000000", replication(Replication::Have { scope: "".into(), owner: None, version: 0 })),
        ("840b02657500000000000000f1", replication(Replication::Digest { scope: scope(), digest: 0xf1 })),
        (
            "853f026575010b6140686f73743a343337300000000000000007412c00000000000000f10b6240686f73743a34333730\
             0102030405060708000000000000000000",
            replication(Replication::Vector {
                scope: scope(),
                logs: vec![held(&a, 300, 0xf1), held(&b, 0, 0)],
                is_question: true,
            }),
        ),
        (
            "86190265750b6140686f73743a343337300000000000000007412c",
            replication(Replication::Want { scope: scope(), owner: a.clone(), since: 300 }),
        ),
        (
            "902b412c800111700102657507636172742f34320905010b6240686f73743a3433373001020304050607080601",
            request(Request::Claim {
                scope: scope(),
                name: name(),
                claim: 9,
                serial: 5,
                replacing: Some(pid(6)),
                has_voted: true,
            }),
        ),
        (
            "90405b412c800111700202657507636172742f34320b6140686f73743a34333730000000000000000709058001117100\
             010b6240686f73743a343337300102030405060708412c010b6240686f73743a3433373001020304050607080609",
            request(Request::Vote {
                scope: scope(),
                name: name(),
                token: token(),
                serial: 5,
                stamp: 70_001,
                replacing: None,
                free: after(),
                spent: Some(Spent { mailbox: pid(6), time: 9 }),
            }),
        ),
        (
            "9013412c800111700302657507636172742f343205",
            request(Request::Confirm { scope: scope(), name: name(), serial: 5 }),
        ),
        (
            "902c412c800111700402657507636172742f3432050b6240686f73743a3433373001020304050607080680011171",
            request(Request::Contend { scope: scope(), name: name(), serial: 5, contender: pid(6), stamp: 70_001 }),
        ),
        (
            "9029412c800111700502657507636172742f343205010b6240686f73743a34333730010203040506070806",
            request(Request::Release { scope: scope(), name: name(), serial: 5, successor: Some(pid(6)) }),
        ),
        (
            "901a412c800111700602657507636172742f343205412c047a6f6e65",
            request(Request::Update {
                scope: scope(),
                name: name(),
                serial: 5,
                version: 300,
                metadata: metadata.clone(),
            }),
        ),
        ("900a412c8001117007026575", request(Request::Hold { scope: scope() })),
        (
            "9122412c800111700180011171010b6240686f73743a343337300102030405060708412c",
            answer(Answer::Granted { stamp: 70_001, after: after() }),
        ),
        (
            "911d412c80011170020b6240686f73743a3433373001020304050607080601",
            answer(Answer::Taken { owner: pid(6), is_confirmed: true }),
        ),
        ("9107412c8001117003", answer(Answer::Contended)),
        ("9107412c8001117004", answer(Answer::NotArbiter)),
        ("9107412c8001117005", answer(Answer::NotInScope)),
        ("9107412c8001117006", answer(Answer::Busy)),
        (
            "911d412c8001117007010b6240686f73743a34333730010203040506070806",
            answer(Answer::NotOwner { owner: Some(pid(6)) }),
        ),
        ("9107412c8001117008", answer(Answer::Yes)),
        ("911c412c80011170090b6240686f73743a34333730010203040506070806", answer(Answer::No { holder: pid(6) })),
        ("9107412c800111700a", answer(Answer::Holds)),
        ("9107412c800111700b", answer(Answer::Claims)),
        ("9109412c800111700c412c", answer(Answer::Free { version: 300 })),
        ("9107412c800111700d", answer(Answer::Wins)),
        ("9109412c800111700e412c", answer(Answer::Yields { version: 300 })),
        ("9107412c800111700f", answer(Answer::Neither)),
        ("910d412c8001117010412c80011171", answer(Answer::Released { version: 300, stamp: 70_001 })),
        ("9109412c8001117011412c", answer(Answer::Updated { version: 300 })),
        ("910e412c8001117012412c047a6f6e65", answer(Answer::Stale { version: 300, metadata })),
        (
            "914042412c800111701307636172742f34320b6140686f73743a34333730000000000000000709058001117101780b61\
             40686f73743a343337300000000000000007090601",
            answer(Answer::Held {
                pending: vec![
                    Pending { name: name(), token: token(), serial: 5, stamp: 70_001 },
                    Pending { name: "x".into(), token: token(), serial: 6, stamp: 1 },
                ],
            }),
        ),
        (
            "922402657507636172742f34320b6140686f73743a3433373000000000000000070980011170",
            Service::Registry(Registry::Withdraw { scope: scope(), name: name(), token: token(), clock: 70_000 }),
        ),
        ("a0040501412c", monitor(Monitor::Watch { serial: 5, mailbox: Some(300) })),
        ("a0020500", monitor(Monitor::Watch { serial: 5, mailbox: None })),
        ("a1040501412c", monitor(Monitor::Unwatch { serial: 5, mailbox: Some(300) })),
        (
            "a20a0501412c800111700100",
            monitor(Monitor::Down {
                serial: 5,
                gone: Gone::Closed,
                cuts: vec![Cut { mailbox: 300, number: 70_000 }, Cut { mailbox: 1, number: 0 }],
            }),
        ),
        ("a2020502", monitor(Monitor::Down { serial: 5, gone: Gone::Panicked, cuts: vec![] })),
        ("a2020503", monitor(Monitor::Down { serial: 5, gone: Gone::NoSuchMailbox, cuts: vec![] })),
        ("e3020500", monitor(Monitor::Failed { serial: 5, reason: "".into() })),
        ("e307412c04666cc3a9", monitor(Monitor::Failed { serial: 300, reason: "flé".into() })),
    ];
    golden.extend(election::golden());
    golden
}

/// As often small as not: each length of a varint is met.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..100u64, 0..20_000u64, 0..=VARINT_MAX]
}

fn name() -> impl Strategy<Value = Text> {
    "[a-zé/.]{1,40}".prop_map(Text::from)
}

fn scope() -> impl Strategy<Value = Text> {
    "[a-zé]{0,20}".prop_map(Text::from)
}

fn any_node() -> impl Strategy<Value = NodeId> {
    ("[a-z]{1,9}@[a-z]{1,9}:[1-9][0-9]{0,3}", any::<u64>()).prop_map(|(text, incarnation)| node(&text, incarnation))
}

fn pid() -> impl Strategy<Value = Pid> {
    (any_node(), number()).prop_map(|(node, serial)| Pid::new(node, serial))
}

fn token() -> impl Strategy<Value = Token> {
    (any_node(), number()).prop_map(|(node, number)| Token { node, number })
}

fn after() -> impl Strategy<Value = After> {
    (any_node(), number()).prop_map(|(owner, version)| After { owner, version })
}

fn metadata() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=60).prop_map(Bytes::from)
}

fn binding() -> BoxedStrategy<Arc<Binding>> {
    (number(), number(), of(after()), name(), metadata())
        .prop_map(|(serial, stamp, after, tag, metadata)| Arc::new(Binding { serial, stamp, after, tag, metadata }))
        .boxed()
}

/// Of version 0.
fn any_entry() -> BoxedStrategy<Entry> {
    let over = || prop_oneof![Just(Ended::Withdrawn), Just(Ended::Closed)].prop_map(State::Gone);
    let left = || Just(State::Gone(Ended::Left));
    let replaced = (any_node(), binding()).prop_map(|(by, old)| State::Gone(Ended::Replaced { by, old }));
    let bound = prop_oneof![binding().prop_map(State::Bound), Just(State::Gone(Ended::Lost)), replaced, over(), left()];
    let joined = (1..=u32::MAX, name()).prop_map(|(count, tag)| State::Joined(Joined { count, tag }));
    let about = prop_oneof![
        (scope().prop_map(|scope| Key::Arbiter { scope }), prop_oneof![Just(State::Arbiter), over()]),
        (name().prop_map(Key::Name), bound),
        ((name(), number()).prop_map(|(group, serial)| Key::Member { group, serial }), prop_oneof![joined, over()]),
    ];
    about.prop_map(|(key, state)| Entry { version: 0, key, state }).boxed()
}

fn any_service() -> BoxedStrategy<Service> {
    prop_oneof![
        1 => Just(Service::Ready),
        4 => replication().prop_map(Service::Replication),
        4 => registry().prop_map(Service::Registry),
        2 => monitor().prop_map(Service::Monitor),
        2 => election::any_election().prop_map(Service::Election),
    ]
    .boxed()
}

fn replication() -> BoxedStrategy<Replication> {
    let mine = (scope(), number(), any::<u64>()).prop_map(|(scope, version, digest)| Mine { scope, version, digest });
    let held =
        (any_node(), number(), any::<u64>()).prop_map(|(owner, version, digest)| Held { owner, version, digest });
    let log = btree_map(1..=VARINT_MAX, any_entry(), 0..20)
        .prop_map(|log| log.into_iter().map(|(version, entry)| Entry { version, ..entry }).collect::<Vec<_>>());
    let entries = (scope(), of(any_node()), log, of(any::<u64>()), any::<bool>(), any::<bool>()).prop_map(
        |(scope, owner, entries, digest, is_reset, is_tight)| {
            let first = entries.first().map_or(1, |entry| entry.version);
            let last = entries.last().map_or(first, |entry| entry.version);
            let since = if is_reset { 0 } else { first - 1 };
            let upto = if is_tight { last } else { VARINT_MAX };
            Replication::Entries { scope, owner, since, upto, is_reset, digest, entries }
        },
    );
    prop_oneof![
        1 => vec(mine, 0..9).prop_map(|scopes| Replication::Status { scopes }),
        3 => entries,
        1 => (scope(), of(any_node()), number()).prop_map(|(scope, owner, version)| Replication::Have {
            scope,
            owner,
            version
        }),
        1 => (scope(), any::<u64>()).prop_map(|(scope, digest)| Replication::Digest { scope, digest }),
        1 => (scope(), vec(held, 0..9), any::<bool>()).prop_map(|(scope, logs, is_question)| Replication::Vector {
            scope,
            logs,
            is_question
        }),
        1 => (scope(), any_node(), number()).prop_map(|(scope, owner, since)| Replication::Want { scope, owner, since }),
    ].boxed()
}

fn registry() -> BoxedStrategy<Registry> {
    prop_oneof![
        7 => (number(), number(), request()).prop_map(|(number, clock, request)| Registry::Request {
            number,
            clock,
            request
        }),
        7 => (number(), number(), answer()).prop_map(|(number, clock, answer)| Registry::Answer {
            number,
            clock,
            answer
        }),
        1 => (scope(), name(), token(), number()).prop_map(|(scope, name, token, clock)| Registry::Withdraw {
            scope,
            name,
            token,
            clock
        }),
    ]
    .boxed()
}

fn request() -> BoxedStrategy<Request> {
    let head = || (scope(), name(), number());
    prop_oneof![
        (head(), number(), of(pid()), any::<bool>()).prop_map(
            |((scope, name, serial), claim, replacing, has_voted)| Request::Claim {
                scope,
                name,
                claim,
                serial,
                replacing,
                has_voted
            }
        ),
        (head(), token(), number(), of(pid()), of(after()), of((pid(), number()))).prop_map(
            |((scope, name, serial), token, stamp, replacing, free, spent)| Request::Vote {
                scope,
                name,
                token,
                serial,
                stamp,
                replacing,
                free,
                spent: spent.map(|(mailbox, time)| Spent { mailbox, time }),
            }
        ),
        head().prop_map(|(scope, name, serial)| Request::Confirm { scope, name, serial }),
        (head(), pid(), number()).prop_map(|((scope, name, serial), contender, stamp)| Request::Contend {
            scope,
            name,
            serial,
            contender,
            stamp
        }),
        (head(), of(pid())).prop_map(|((scope, name, serial), successor)| Request::Release {
            scope,
            name,
            serial,
            successor
        }),
        (head(), number(), metadata()).prop_map(|((scope, name, serial), version, metadata)| Request::Update {
            scope,
            name,
            serial,
            version,
            metadata
        }),
        scope().prop_map(|scope| Request::Hold { scope }),
    ]
    .boxed()
}

fn answer() -> BoxedStrategy<Answer> {
    let pending = (name(), token(), number(), number()).prop_map(|(name, token, serial, stamp)| Pending {
        name,
        token,
        serial,
        stamp,
    });
    let bare = vec![
        Answer::Contended,
        Answer::NotArbiter,
        Answer::NotInScope,
        Answer::Busy,
        Answer::Yes,
        Answer::Holds,
        Answer::Claims,
        Answer::Wins,
        Answer::Neither,
    ];
    prop_oneof![
        prop::sample::select(bare),
        (number(), of(after())).prop_map(|(stamp, after)| Answer::Granted { stamp, after }),
        (pid(), any::<bool>()).prop_map(|(owner, is_confirmed)| Answer::Taken { owner, is_confirmed }),
        of(pid()).prop_map(|owner| Answer::NotOwner { owner }),
        pid().prop_map(|holder| Answer::No { holder }),
        number().prop_map(|version| Answer::Free { version }),
        number().prop_map(|version| Answer::Yields { version }),
        (number(), number()).prop_map(|(version, stamp)| Answer::Released { version, stamp }),
        number().prop_map(|version| Answer::Updated { version }),
        (number(), metadata()).prop_map(|(version, metadata)| Answer::Stale { version, metadata }),
        vec(pending, 0..9).prop_map(|pending| Answer::Held { pending }),
    ]
    .boxed()
}

fn monitor() -> BoxedStrategy<Monitor> {
    let gone = prop::sample::select(vec![Gone::Closed, Gone::Panicked, Gone::NoSuchMailbox]);
    let cut = (number(), number()).prop_map(|(mailbox, number)| Cut { mailbox, number });
    prop_oneof![
        (number(), of(number())).prop_map(|(serial, mailbox)| Monitor::Watch { serial, mailbox }),
        (number(), of(number())).prop_map(|(serial, mailbox)| Monitor::Unwatch { serial, mailbox }),
        (number(), gone, vec(cut, 0..20)).prop_map(|(serial, gone, cuts)| Monitor::Down { serial, gone, cuts }),
        (number(), ".{0,60}").prop_map(|(serial, reason)| Monitor::Failed { serial, reason: reason.as_str().into() }),
    ]
    .boxed()
}
