use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::id::{NODE_NAME_MAX, NodeName};
use crate::wire::tests::{from_hex, to_hex};
use crate::wire::{SKIPPABLE, put_frame, put_text};

/// What a datagram holds on the narrowest path that QUIC takes.
const DATAGRAM: usize = 1162;

const A: ShortId = ShortId(0x0102_0304_0506_0708);
const B: ShortId = ShortId(0xf1f2_f3f4_f5f6_f7f8);

/// These bytes are what nodes of this version say to each other: a change here is a change of the protocol.
#[test]
fn the_bytes_of_every_frame_are_these() {
    for (hex, frame) in golden() {
        assert_eq!(to_hex(&encode_all([&frame])), hex, "{frame:?}");
        assert_eq!(frame.len(), hex.len() / 2, "{frame:?}");
        assert_eq!(read_all(from_hex(hex)), [Ok(frame)], "{hex}");
    }
    let mut kinds: Vec<u8> = golden().iter().map(|(hex, _)| from_hex(hex)[0]).collect();
    kinds.dedup();
    assert_eq!(kinds, (PING..=SUMMARIES).collect::<Vec<_>>(), "each kind is pinned");
}

/// Two nodes that compute it differently would not know whom the other speaks of.
#[test]
fn a_short_id_is_of_one_life() {
    let life = |incarnation| ShortId::of(&NodeId::new(name("a@host:4370"), incarnation));
    assert_eq!(life(7), ShortId(0x7f5e_5f47_00d7_7fc9));
    assert_eq!(life(8), ShortId(0x1387_cb97_8bfe_2729));
    let full = ShortId::of(&NodeId::new(name("a@host"), 7));
    assert_eq!(full, life(7), "the port that a name leaves out counts");
}

#[test]
fn a_datagram_of_the_narrowest_path_holds_80_rumours_of_life_50_suspicions_or_the_largest_frame_of_a_member() {
    let alive = Swim::Alive { subject: B, refutation: 63, profile: 16_383 };
    assert_eq!(alive.len(), 13);
    assert!(encode_all(&vec![alive; 80]).len() <= DATAGRAM);

    let suspect = Swim::Suspect { subject: B, refutation: 16_383, accuser: A };
    assert_eq!(suspect.len(), 20);
    assert!(encode_all(&vec![suspect; 50]).len() <= DATAGRAM);

    let introduction = Swim::Introduce(largest_introduction());
    assert!(introduction.len() <= DATAGRAM, "{}", introduction.len());
    let fact =
        Swim::Fact { origin: B, number: (1 << 62) - 1, topic: "t".repeat(TOPIC_MAX), body: vec![7; FACT_MAX].into() };
    assert!(fact.len() <= DATAGRAM, "{}", fact.len());
    for frame in [introduction, fact] {
        assert_eq!(read_all(encode_all([&frame])), [Ok(frame)]);
    }
}

#[test]
fn an_empty_packet_holds_nothing() {
    assert_eq!(read_all(Bytes::new()), []);
}

#[test]
fn a_packet_cut_short_says_what_was_whole_and_then_that_it_is_short() {
    let frames: Vec<Swim> = golden().into_iter().map(|(_, frame)| frame).collect();
    let packet = encode_all(&frames);
    let mut whole = 0;
    let mut whole_len = 0;
    for len in 0..=packet.len() {
        if let Some(next) = frames.get(whole).filter(|next| whole_len + next.len() == len) {
            whole += 1;
            whole_len += next.len();
        }
        let expected = frames[..whole].iter().cloned().map(Ok);
        let expected: Vec<_> = expected.chain((len > whole_len).then_some(Err(WireError::Short))).collect();
        assert_eq!(read_all(packet.slice(..len)), expected, "{len} bytes");
    }
    assert_eq!(whole, frames.len());
}

/// Only where a list goes on to the end of the frame, a whole item less is a frame too.
#[test]
fn a_frame_cut_short_is_an_error() {
    for (hex, frame) in golden() {
        let head_len = 2;
        let body = &from_hex(hex)[head_len..];
        let good: &[usize] = match &frame {
            Swim::Who(subjects) if !subjects.is_empty() => &[0, 8],
            Swim::Buckets(_) => &[8],
            Swim::Summaries { summaries, .. } if !summaries.is_empty() => &[6, 17],
            _ => &[],
        };
        for len in 0..body.len() {
            let packet = packed(from_hex(hex)[0], &body[..len]);
            assert_eq!(one(packet).is_ok(), good.contains(&len), "{len} bytes of {frame:?}");
        }
    }
}

#[test]
fn a_frame_that_goes_on_is_an_error() {
    for (hex, frame) in golden() {
        let body = [&from_hex(hex)[2..], &[0]].concat();
        let why = match frame {
            // A byte is the beginning of another item.
            Swim::Who(_) | Swim::Buckets(_) | Swim::Summaries { .. } => WireError::Short,
            _ => WireError::Trailing,
        };
        assert_eq!(one(packed(from_hex(hex)[0], &body)), Err(why), "{frame:?}");
    }
}

#[test]
fn an_unknown_frame_is_skipped_if_it_may_be_and_ends_the_packet_if_not() {
    let (before, after) = (Swim::Nack { seq: 1 }, Swim::Nack { seq: 2 });
    for kind in (0..=255u8).filter(|kind| !(PING..=SUMMARIES).contains(kind)) {
        let unknown = packed(kind, b"whatever");
        let packet = [&encode_all([&before])[..], &unknown, &encode_all([&after])].concat();
        let second = if kind & SKIPPABLE != 0 { Ok(after.clone()) } else { Err(WireError::UnknownFrame(kind)) };
        assert_eq!(read_all(packet), [Ok(before.clone()), second]);
    }
    assert!((PING..=SUMMARIES).all(|kind| kind & SKIPPABLE == 0), "a later peer may not skip these");

    let only_skipped = [packed(SKIPPABLE, b""), packed(SKIPPABLE | 1, b"x")].concat();
    assert_eq!(read_all(only_skipped), []);
    let short = [SKIPPABLE, 3, 0, 0];
    assert_eq!(read_all(short.to_vec()), [Err(WireError::Short)], "skipping does not go beyond the packet");
}

#[test]
fn nothing_is_read_after_an_error() {
    let packet = [packed(NACK, &[1]), packed(NACK, &[]), packed(NACK, &[2])].concat();
    let mut frames = read(packet.into());
    assert_eq!(frames.next(), Some(Ok(Swim::Nack { seq: 1 })));
    assert_eq!(frames.next(), Some(Err(WireError::Short)));
    assert_eq!((frames.next(), frames.next()), (None, None));
}

#[test]
fn a_length_beyond_the_packet_is_refused_by_its_head() {
    let longest = [0xff; 8];
    for kind in PING..=SUMMARIES {
        assert_eq!(one([&[kind][..], &longest, &[0; 20]].concat()), Err(WireError::Short));
    }
    let id = A.0.to_be_bytes();
    let too_long = WireError::TooLong((1 << 62) - 1);
    assert_eq!(one(packed(INTRODUCE, &longest)), Err(too_long));
    assert_eq!(one(packed(FACT, &[&id[..], &[0], &longest].concat())), Err(too_long));
    assert_eq!(one(packed(FACT, &[&id[..], &[0, 1, b't'], &longest].concat())), Err(too_long));
    assert_eq!(one(packed(SUMMARIES, &[&[1][..], &longest].concat())), Err(too_long));
}

#[test]
fn lists_are_read_up_to_their_limits() {
    let long = |subjects| Swim::Who(vec![A; subjects]);
    assert_eq!(one(encode_all([&long(WHO_MAX)])), Ok(long(WHO_MAX)));
    let over = 8 * (WHO_MAX + 1);
    assert_eq!(one(packed(WHO, &vec![0; over])), Err(WireError::TooLong(over as u64)));

    let summaries = |many| vec![Summary { subject: A, life: Life::Left, refutation: 0, profile: 0 }; many];
    let long = Swim::Summaries { buckets: 1, of: vec![0], summaries: summaries(SUMMARIES_MAX) };
    assert_eq!(one(encode_all([&long])), Ok(long));
    let mut over = vec![1, 1, 0];
    summaries(SUMMARIES_MAX + 1).iter().for_each(|summary| summary.put(&mut over));
    assert_eq!(one(packed(SUMMARIES, &over)), Err(WireError::TooLong(11 * (SUMMARIES_MAX as u64 + 1))));
}

#[test]
fn buckets_are_a_power_of_two_up_to_256() {
    let not_so_many = Err(WireError::Value("number of buckets"));
    for many in 0..=300u32 {
        let hashes = packed(BUCKETS, &vec![0; 8 * many as usize]);
        let none_of = packed(SUMMARIES, &bucket_list(many, &[]));
        match many {
            1 | 2 | 4 | 8 | 16 | 32 | 64 | 128 | 256 => {
                assert_eq!(one(hashes), Ok(Swim::Buckets(vec![0; many as usize])));
                let frame = Swim::Summaries { buckets: many, of: vec![], summaries: vec![] };
                assert_eq!(one(none_of), Ok(frame));
            }
            0..=256 => {
                assert_eq!(one(hashes), not_so_many, "{many}");
                assert_eq!(one(none_of), not_so_many, "{many}");
            }
            _ => {
                assert_eq!(one(hashes), Err(WireError::TooLong(8 * u64::from(many))));
                assert_eq!(one(none_of), not_so_many, "{many}");
            }
        }
    }
    assert_eq!(one(packed(SUMMARIES, &bucket_list(512, &[]))), not_so_many);
    assert_eq!(one(packed(SUMMARIES, &bucket_list(1 << 31, &[]))), not_so_many);
}

#[test]
fn summaries_are_of_buckets_that_exist_each_once() {
    let of = |buckets, of: &[u32]| one(packed(SUMMARIES, &bucket_list(buckets, of)));
    let good = |buckets, of: &[u32]| Ok(Swim::Summaries { buckets, of: of.to_vec(), summaries: vec![] });
    assert_eq!(of(4, &[0, 1, 2, 3]), good(4, &[0, 1, 2, 3]));
    let all: Vec<u32> = (0..256).collect();
    assert_eq!(of(256, &all), good(256, &all));
    let no_buckets = Err(WireError::Value("buckets"));
    assert_eq!(of(4, &[4]), no_buckets);
    assert_eq!(of(256, &[256]), no_buckets);
    assert_eq!(of(4, &[1, 1]), no_buckets);
    assert_eq!(of(4, &[2, 1]), no_buckets);
    assert_eq!(of(256, &[all.as_slice(), &[255]].concat()), Err(WireError::TooLong(257)));
}

#[test]
fn an_introduction_is_read_up_to_its_limits() {
    let largest = largest_introduction();
    assert_eq!(one(introduced(&largest)), Ok(Swim::Introduce(largest.clone())));

    let metadata = vec![0; METADATA_MAX + 1];
    let refused = |body: Vec<u8>, why| assert_eq!(one(packed(INTRODUCE, &body)), Err(why));
    refused(introduction(b"a@host:4370", 1, 0, &metadata), WireError::TooLong(513));
    refused(introduction(b"a@host:4370", 1, 5, b""), WireError::TooLong(5));
    let long = format!("{}@h:4370", "n".repeat(NODE_NAME_MAX - 6));
    refused(introduction(long.as_bytes(), 1, 0, b""), WireError::TooLong(256));
    refused(introduction(b"a@HOST:4370", 1, 0, b""), WireError::Value("node name"));
    refused(introduction(b"a@host", 1, 0, b""), WireError::Value("node name"));
    refused(introduction(b"", 1, 0, b""), WireError::Value("node name"));
    refused(introduction(b"\xff@host:4370", 1, 0, b""), WireError::Value("UTF-8"));
    for life in [0, 5, 255] {
        refused(introduction(b"a@host:4370", life, 0, b""), WireError::Value("life"));
    }
    for (byte, life) in [(1, Life::Alive), (2, Life::Suspect), (3, Life::Dead), (4, Life::Left)] {
        let read = one(packed(INTRODUCE, &introduction(b"a@host:4370", byte, 0, b"")));
        assert!(matches!(read, Ok(Swim::Introduce(Introduction { life: read, .. })) if read == life), "{read:?}");
    }
}

#[test]
fn more_addresses_than_four_are_left_out() {
    let [known, ..] = largest_introduction().addresses[..] else { unreachable!() };
    let five = Swim::Introduce(Introduction { addresses: vec![known; 5], ..largest_introduction() });
    let packet = encode_all([&five]);
    assert_eq!(five.len(), packet.len());
    assert_eq!(one(packet), Ok(Swim::Introduce(Introduction { addresses: vec![known; 4], ..largest_introduction() })));
}

/// A later version may have more flags.
#[test]
fn flags_that_nobody_knows_say_nothing() {
    let mut body = introduction(b"a@host:4370", 1, 0, b"");
    let flags_at = body.len() - 3;
    for (byte, not_dialable, client) in
        [(0, false, false), (1, true, false), (2, false, true), (0xfc, false, false), (0xff, true, true)]
    {
        body[flags_at] = byte;
        let Ok(Swim::Introduce(read)) = one(packed(INTRODUCE, &body)) else { panic!("{byte:#x}") };
        assert_eq!(read.flags, NodeFlags { not_dialable, client });
    }
}

#[test]
fn a_fact_has_a_topic_and_is_read_up_to_its_limits() {
    let of = |topic: &str, len| {
        let mut fact = [&A.0.to_be_bytes()[..], &[9]].concat();
        put_text(&mut fact, topic);
        put_bytes(&mut fact, &vec![0; len]);
        one(packed(FACT, &fact))
    };
    let good = |topic: &str, len| Swim::Fact { origin: A, number: 9, topic: topic.into(), body: vec![0; len].into() };
    assert_eq!(of("", 0), Err(WireError::Value("topic")));
    assert_eq!(of("t", 0), Ok(good("t", 0)));
    let longest = "t".repeat(TOPIC_MAX);
    assert_eq!(of(&longest, FACT_MAX), Ok(good(&longest, FACT_MAX)));
    assert_eq!(of(&"t".repeat(TOPIC_MAX + 1), 0), Err(WireError::TooLong(65)));
    assert_eq!(of("t", FACT_MAX + 1), Err(WireError::TooLong(1025)));
}

#[test]
fn numbers_of_32_bits_are_not_greater() {
    let mut most = Vec::new();
    put_varint(&mut most, u32::MAX.into());
    let mut more = Vec::new();
    put_varint(&mut more, u64::from(u32::MAX) + 1);
    let refused = Err(WireError::Value("a 32-bit number"));
    let id = A.0.to_be_bytes();
    assert_eq!(one(packed(NACK, &most)), Ok(Swim::Nack { seq: u32::MAX }));
    assert_eq!(one(packed(NACK, &more)), refused);
    assert_eq!(one(packed(PING, &[&[0][..], &most].concat())), Ok(Swim::Ping { seq: 0, refutation: u32::MAX }));
    assert_eq!(one(packed(PING, &[&[0][..], &more].concat())), refused);
    let alive = Swim::Alive { subject: A, refutation: 0, profile: u32::MAX };
    assert_eq!(one(packed(ALIVE, &[&id[..], &[0], &most].concat())), Ok(alive));
    assert_eq!(one(packed(ALIVE, &[&id[..], &[0], &more].concat())), refused);
}

/// A member's metadata is kept as long as the member, a packet is not.
#[test]
fn what_is_read_keeps_nothing_of_the_packet() {
    let frames: Vec<Swim> = golden().into_iter().map(|(_, frame)| frame).collect();
    let packet = encode_all(&frames);
    let read = read_all(packet.clone());
    assert_eq!(read.len(), frames.len());
    assert!(packet.is_unique());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(frames in vec(any_frame(), 0..6)) {
        let packet = encode_all(&frames);
        prop_assert_eq!(packet.len(), frames.iter().map(Swim::len).sum::<usize>());
        prop_assert_eq!(read_all(packet), frames.into_iter().map(Ok).collect::<Vec<_>>());
    }

    /// Noise seldom gets beyond the first head.
    #[test]
    fn noise_is_read_in_bounds(packet in vec(any::<u8>(), 0..5000)) {
        check_bounds(packet)?;
    }

    /// Noise in frames that are whole.
    #[test]
    fn frames_of_noise_are_read_in_bounds(
        frames in vec((prop_oneof![4 => PING..=SUMMARIES, 1 => any::<u8>()], vec(any::<u8>(), 0..80)), 0..40),
    ) {
        check_bounds(frames.iter().flat_map(|(kind, body)| packed(*kind, body)).collect())?;
    }

    /// Small numbers are what most limits are about.
    #[test]
    fn frames_of_small_numbers_are_read_in_bounds(
        frames in vec((PING..=SUMMARIES, vec(0..9u8, 0..80)), 0..40),
    ) {
        check_bounds(frames.iter().flat_map(|(kind, body)| packed(*kind, body)).collect())?;
    }

    /// A good packet with a few bytes changed goes deeper than noise does.
    #[test]
    fn a_changed_packet_is_read_in_bounds(
        frames in vec(any_frame(), 1..6),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut packet = encode_all(&frames).to_vec();
        for (at, byte) in changes {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        check_bounds(packet)?;
    }
}

/// Whatever a packet holds: each frame took two bytes at least, what was read can be said again in no more bytes than
/// it came in, and an error is the end.
fn check_bounds(packet: Vec<u8>) -> Result<(), TestCaseError> {
    let len = packet.len();
    let mut frames = read(packet.into());
    let mut good = Vec::new();
    let mut steps = 0;
    for frame in frames.by_ref() {
        steps += 1;
        prop_assert!(steps <= len.div_ceil(2));
        match frame {
            Ok(frame) => good.push(frame),
            Err(_) => break,
        }
    }
    prop_assert_eq!(frames.next(), None);
    let again = encode_all(&good);
    prop_assert!(again.len() <= len);
    prop_assert_eq!(read_all(again), good.into_iter().map(Ok).collect::<Vec<_>>());
    Ok(())
}

fn golden() -> Vec<(&'static str, Swim)> {
    let addresses = vec!["10.0.0.2:4370".parse().expect("one"), "[2001:db8::1]:80".parse().expect("another")];
    let full = Introduction {
        id: NodeId::new(name("a@host:4370"), A.0),
        life: Life::Alive,
        refutation: 2,
        profile: 70_000,
        flags: NodeFlags { not_dialable: true, client: true },
        addresses,
        metadata: Bytes::from_static(b"zone"),
    };
    let bare = Introduction {
        id: NodeId::new(name("a@host:4370"), 7),
        life: Life::Left,
        refutation: 0,
        profile: 0,
        flags: NodeFlags::default(),
        addresses: vec![],
        metadata: Bytes::new(),
    };
    let suspect = Summary { subject: A, life: Life::Suspect, refutation: 2, profile: 5 };
    let dead = Summary { subject: B, life: Life::Dead, refutation: 0, profile: 1 };
    let (topic, body) = ("rates".to_owned(), Bytes::from_static(b"body"));
    vec![
        ("3003412c02", Swim::Ping { seq: 300, refutation: 2 }),
        ("3103412c02", Swim::Ack { seq: 300, refutation: 2 }),
        ("320a412cf1f2f3f4f5f6f7f8", Swim::PingReq { seq: 300, target: B }),
        ("3302412c", Swim::Nack { seq: 300 }),
        ("34100102030405060708f1f2f3f4f5f6f7f8", Swim::Who(vec![A, B])),
        ("3400", Swim::Who(vec![])),
        ("350a01020304050607080205", Swim::Alive { subject: A, refutation: 2, profile: 5 }),
        ("3611010203040506070802f1f2f3f4f5f6f7f8", Swim::Suspect { subject: A, refutation: 2, accuser: B }),
        ("3711010203040506070802f1f2f3f4f5f6f7f8", Swim::Dead { subject: A, refutation: 2, accuser: B }),
        ("3809010203040506070802", Swim::Left { subject: A, refutation: 2 }),
        (
            "393b0b6140686f73743a3433373001020304050607080102800111700302040a00000211120620010db80000000000000000\
             000000010050047a6f6e65",
            Swim::Introduce(full),
        ),
        ("391a0b6140686f73743a343337300000000000000007040000000000", Swim::Introduce(bare)),
        ("3a1701020304050607088001117005726174657304626f6479", Swim::Fact { origin: A, number: 70_000, topic, body }),
        ("3b0a412cf1f2f3f4f5f6f7f8", Swim::Digest { members: 300, digest: B.0 }),
        ("3c100102030405060708f1f2f3f4f5f6f7f8", Swim::Buckets(vec![A.0, B.0])),
        (
            "3d1c4100020340ff0102030405060708020205f1f2f3f4f5f6f7f8030001",
            Swim::Summaries { buckets: 256, of: vec![3, 255], summaries: vec![suspect, dead] },
        ),
        ("3d03010100", Swim::Summaries { buckets: 1, of: vec![0], summaries: vec![] }),
    ]
}

fn largest_introduction() -> Introduction {
    Introduction {
        id: NodeId::new(name(&format!("{}@h:4370", "n".repeat(NODE_NAME_MAX - 7))), u64::MAX),
        life: Life::Left,
        refutation: u32::MAX,
        profile: u32::MAX,
        flags: NodeFlags { not_dialable: true, client: true },
        addresses: vec!["[2001:db8::1]:80".parse().expect("an address"); ADDRESSES_MAX],
        metadata: vec![7; METADATA_MAX].into(),
    }
}

/// The body of an introduction, good or not.
fn introduction(name: &[u8], life: u8, addresses: u8, metadata: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, name);
    body.extend_from_slice(&[0; 8]);
    body.extend_from_slice(&[life, 0, 0, 0, addresses]);
    body.extend_from_slice(&[4, 10, 0, 0, 2, 0, 80].repeat(addresses.into()));
    put_bytes(&mut body, metadata);
    body
}

fn introduced(introduction: &Introduction) -> Bytes {
    encode_all([&Swim::Introduce(introduction.clone())])
}

/// The body of summaries of these buckets, good or not, without any summary.
fn bucket_list(buckets: u32, of: &[u32]) -> Vec<u8> {
    let mut body = Vec::new();
    put_varint(&mut body, buckets.into());
    put_varint(&mut body, of.len() as u64);
    of.iter().for_each(|bucket| put_varint(&mut body, (*bucket).into()));
    body
}

fn packed(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    put_frame(&mut packet, kind, body.len(), |out| out.extend_from_slice(body));
    packet
}

fn read_all(packet: impl Into<Bytes>) -> Vec<Result<Swim, WireError>> {
    read(packet.into()).collect()
}

fn one(packet: impl Into<Bytes>) -> Result<Swim, WireError> {
    let mut all = read_all(packet);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

fn name(text: &str) -> NodeName {
    NodeName::parse(text).expect("a name")
}

fn short_id() -> impl Strategy<Value = ShortId> {
    any::<u64>().prop_map(ShortId)
}

/// As often small as not: each length of a varint is met.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![0..100u32, 0..20_000u32, any::<u32>()]
}

fn life() -> impl Strategy<Value = Life> {
    prop::sample::select(&Life::ALL[..])
}

fn any_frame() -> impl Strategy<Value = Swim> {
    prop_oneof![
        (number(), number()).prop_map(|(seq, refutation)| Swim::Ping { seq, refutation }),
        (number(), number()).prop_map(|(seq, refutation)| Swim::Ack { seq, refutation }),
        (number(), short_id()).prop_map(|(seq, target)| Swim::PingReq { seq, target }),
        number().prop_map(|seq| Swim::Nack { seq }),
        vec(short_id(), 0..40).prop_map(Swim::Who),
        (short_id(), number(), number()).prop_map(|(subject, refutation, profile)| Swim::Alive {
            subject,
            refutation,
            profile
        }),
        (short_id(), number(), short_id()).prop_map(|(subject, refutation, accuser)| Swim::Suspect {
            subject,
            refutation,
            accuser
        }),
        (short_id(), number(), short_id()).prop_map(|(subject, refutation, accuser)| Swim::Dead {
            subject,
            refutation,
            accuser
        }),
        (short_id(), number()).prop_map(|(subject, refutation)| Swim::Left { subject, refutation }),
        any_introduction().prop_map(Swim::Introduce),
        (short_id(), 0..1u64 << 62, "[a-zé./]{1,32}", vec(any::<u8>(), 0..=FACT_MAX))
            .prop_map(|(origin, number, topic, body)| Swim::Fact { origin, number, topic, body: body.into() }),
        (0..1u64 << 62, any::<u64>()).prop_map(|(members, digest)| Swim::Digest { members, digest }),
        (0..=8u32).prop_flat_map(|log| vec(any::<u64>(), 1usize << log)).prop_map(Swim::Buckets),
        any_summaries(),
    ]
}

fn any_introduction() -> impl Strategy<Value = Introduction> {
    let id = ("[a-z]{1,20}@[a-z]{1,9}:[1-9][0-9]{0,3}", any::<u64>());
    let addresses = vec(any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from), 0..=ADDRESSES_MAX);
    let metadata = vec(any::<u8>(), 0..=METADATA_MAX);
    (id, life(), number(), number(), any::<(bool, bool)>(), addresses, metadata).prop_map(
        |((text, incarnation), life, refutation, profile, (not_dialable, client), addresses, metadata)| Introduction {
            id: NodeId::new(name(&text), incarnation),
            life,
            refutation,
            profile,
            flags: NodeFlags { not_dialable, client },
            addresses,
            metadata: metadata.into(),
        },
    )
}

fn any_summaries() -> impl Strategy<Value = Swim> {
    let summary = (short_id(), life(), number(), number()).prop_map(|(subject, life, refutation, profile)| Summary {
        subject,
        life,
        refutation,
        profile,
    });
    let buckets = (0..=8u32).prop_map(|log| 1 << log).prop_flat_map(|buckets| {
        (Just(buckets), btree_set(0..buckets, 0..=buckets as usize).prop_map(|of| of.into_iter().collect()))
    });
    (buckets, vec(summary, 0..40)).prop_map(|((buckets, of), summaries)| Swim::Summaries { buckets, of, summaries })
}
