use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Any frame, with the stream that it belongs to.
#[derive(Clone, Debug, PartialEq)]
enum Any {
    Hello(Hello),
    Control(Control),
    Lane(LaneFrame),
    Call(CallFrame),
}

/// These bytes are what nodes of this version say to each other: a change here is a change of the protocol.
#[test]
fn the_bytes_of_every_frame_are_these() {
    for (hex, frame) in golden() {
        assert_eq!(to_hex(&frame.encoded()), hex, "{frame:?}");
    }
    let kinds = [
        StreamKind::Control,
        StreamKind::Lane,
        StreamKind::Calls,
        StreamKind::Body,
        StreamKind::LargeCall,
        StreamKind::Membership,
        StreamKind::Services,
    ];
    assert_eq!(kinds.map(StreamKind::to_byte), [1, 2, 3, 4, 5, 6, 7]);
    for byte in 0..=255 {
        let kind = kinds.into_iter().find(|kind| kind.to_byte() == byte);
        assert_eq!(StreamKind::from_byte(byte), kind);
    }
}

#[test]
fn a_packet_travels_in_a_frame() {
    let mut bytes = Vec::new();
    put_packet(&mut bytes, &[0x30, 0]);
    assert_eq!(to_hex(&bytes), "3f023000");
    assert_eq!(packet(split_one(&bytes)), Ok(Some(Bytes::from_static(&[0x30, 0]))));
    assert_eq!(packet(Frame { kind: 0x3e, body: Bytes::new() }), Err(WireError::UnknownFrame(0x3e)));
    assert_eq!(packet(Frame { kind: 0x7e, body: Bytes::new() }), Ok(None));
}

#[test]
fn the_golden_frames_are_read_back() {
    for (hex, frame) in golden() {
        let bytes = from_hex(hex);
        assert_eq!(frame.decoded(split_one(&bytes)), Ok(Some(frame.clone())), "{hex}");
    }
}

#[test]
fn a_truncated_frame_is_an_error() {
    for (hex, frame) in golden() {
        let whole = split_one(&from_hex(hex));
        // The body of a message or a call ends where its frame ends: only what comes before it can be cut short.
        let open_end = match &frame {
            Any::Lane(LaneFrame::Message(message)) => message.body.len(),
            Any::Lane(LaneFrame::Copies(copies)) => copies.body.len(),
            Any::Call(call) => call.body.len(),
            _ => 0,
        };
        for len in 0..whole.body.len() {
            let cut = Frame { kind: whole.kind, body: whole.body.slice(..len) };
            let read = frame.decoded(cut);
            assert_eq!(read.is_err(), len < whole.body.len() - open_end, "{len} bytes of {frame:?}: {read:?}");
        }
    }
}

#[test]
fn a_frame_that_goes_on_is_an_error() {
    for (hex, frame) in golden() {
        let whole = split_one(&from_hex(hex));
        let longer = Frame { kind: whole.kind, body: [&whole.body[..], &[0]].concat().into() };
        match frame {
            Any::Lane(LaneFrame::Message(_) | LaneFrame::Copies(_)) => {}
            Any::Call(call) if call.head.has_body() => {}
            _ => assert_eq!(frame.decoded(longer), Err(WireError::Trailing), "{hex}"),
        }
    }
}

#[test]
fn an_unknown_frame_is_skipped_if_it_may_be_and_refused_if_not() {
    let samples = golden();
    let known = |kind: u8| samples.iter().any(|(hex, _)| from_hex(hex)[0] == kind);
    for kind in (0..=255u8).filter(|kind| !known(*kind)) {
        let frame = Frame { kind, body: Bytes::from_static(b"whatever") };
        let is_skipped = kind & SKIPPABLE != 0;
        let unknown = WireError::UnknownFrame(kind);
        assert_eq!(Control::decode(frame.clone()), if is_skipped { Ok(None) } else { Err(unknown) });
        assert_eq!(LaneFrame::decode(frame.clone()), if is_skipped { Ok(None) } else { Err(unknown) });
        assert_eq!(CallFrame::decode(frame.clone()), if is_skipped { Ok(None) } else { Err(unknown) });
        assert_eq!(Hello::decode(frame), Err(unknown), "a greeting is a HELLO");
    }
    let skippable: Vec<_> = samples.iter().filter(|(hex, _)| from_hex(hex)[0] & SKIPPABLE != 0).collect();
    assert!(skippable.iter().all(|(hex, _)| *hex == "4f00"), "a peer may not skip others: {skippable:?}");
}

/// The most copies that one frame may carry, and one more; none at all; and more announced than have come.
#[test]
fn copies_are_counted_before_they_are_kept() {
    let frame = |count: usize| {
        let to = (0..count as u64).map(|mailbox| (mailbox, VARINT_MAX)).collect();
        let mut bytes = Vec::new();
        CopiesHead { id: 1, schema: 0, trace: None, to }.put(&mut bytes, 0);
        let mut splitter = Splitter::new(1 << 20);
        splitter.push(bytes.into());
        LaneFrame::decode(splitter.next_frame().unwrap().unwrap())
    };
    let unfit = WireError::Value("number of copies");
    assert!(matches!(frame(1), Ok(Some(LaneFrame::Copies(copies))) if copies.head.to == [(0, VARINT_MAX)]));
    assert!(matches!(frame(COPIES_MAX), Ok(Some(LaneFrame::Copies(copies))) if copies.head.to.len() == COPIES_MAX));
    assert_eq!(frame(COPIES_MAX + 1), Err(unfit));
    assert_eq!(frame(0), Err(unfit));
    let short = Bytes::from_static(&[1, 0, 0x4f, 0xff, 1, 1]);
    assert_eq!(LaneFrame::decode(Frame { kind: COPIES, body: short }), Err(WireError::Short));
    let answer = |closed| {
        let mut bytes = Vec::new();
        Control::Delivered { id: 1, closed: vec![7; closed] }.encode(&mut bytes);
        Control::decode(split_one(&bytes)).map(drop)
    };
    assert_eq!([answer(COPIES_MAX), answer(COPIES_MAX + 1)], [Ok(()), Err(unfit)]);
}

#[test]
fn a_hello_of_the_next_version_is_understood() {
    let hello = Hello { minor: MINOR + 1, capabilities: u64::MAX, codecs: vec![1, 99], ..full_hello() };
    let mut body = split_one(&Any::Hello(hello.clone()).encoded()).body.to_vec();
    let flags_at = body.len() - 32 - 1 - 8 - 24 - 1;
    assert_eq!(body[flags_at], 0b11);
    body[flags_at] = 0xff;
    body.extend_from_slice(b"what nobody knows yet");
    assert_eq!(Hello::decode(Frame { kind: HELLO, body: body.into() }), Ok(hello));
}

#[test]
fn a_hello_that_says_nonsense_is_refused() {
    let hello = full_hello();
    let good = split_one(&Any::Hello(hello.clone()).encoded()).body;
    let refused = |from: &[u8], to: &[u8], why| {
        let at = good.windows(from.len()).position(|window| window == from).expect("it is in there");
        let body = [&good[..at], to, &good[at + from.len()..]].concat();
        assert_eq!(Hello::decode(Frame { kind: HELLO, body: body.into() }), Err(why), "{to:?}");
    };
    refused(b"DSTB", b"DSTC", WireError::Value("magic"));
    refused(b"a@host", b"a@HOST", WireError::Value("node name"));
    refused(b"a@host:4370", b"a@host:+437", WireError::Value("node name"));
    refused(b"a@host:4370", b"a-host:4370", WireError::Value("node name"));
    refused(b"a@host:4370", b"\xff@host:4370", WireError::Value("UTF-8"));
    refused(&[4, 10, 0, 0, 2], &[5, 10, 0, 0, 2], WireError::Value("address family"));
    refused(&[2, 4, 10, 0, 0, 2], &[5, 4, 10, 0, 0, 2], WireError::TooLong(5));
    refused(&[2, 1, 2, 4, b'p'], &[17, 1, 2, 4, b'p'], WireError::TooLong(17));
    refused(&[&[4][..], b"prod"].concat(), &[&[0x40, 65][..], b"prod"].concat(), WireError::TooLong(65));
    refused(&[1; 33], &[&[4][..], &[1; 32]].concat(), WireError::Value("mode"));
    // The port may not be left out either: one name has one spelling.
    let short = [&[6][..], b"a@host"].concat();
    refused(&[&[11][..], b"a@host:4370"].concat(), &short, WireError::Value("node name"));
}

#[test]
fn more_than_a_list_may_hold_is_left_out() {
    let address = full_hello().addresses[0];
    let hello = Hello { codecs: vec![1; 17], addresses: vec![address; 5], ..full_hello() };
    let read = Hello::decode(split_one(&Any::Hello(hello).encoded())).expect("a good HELLO");
    assert_eq!((read.codecs.len(), read.addresses.len()), (16, 4));
}

#[test]
fn the_largest_hello_fits() {
    let hello = Hello {
        codecs: vec![1; CODECS_MAX],
        cluster: "c".repeat(crate::id::CLUSTER_NAME_MAX),
        name: NodeName::parse(&format!("{}@h:4370", "n".repeat(NODE_NAME_MAX - 7))).expect("a long name"),
        addresses: vec!["[::1]:1".parse().expect("an address"); ADDRESSES_MAX],
        ..full_hello()
    };
    let bytes = Any::Hello(hello.clone()).encoded();
    assert!(bytes.len() <= HELLO_MAX);
    assert_eq!(Hello::decode(split_one(&bytes)), Ok(hello));
}

#[test]
fn values_out_of_range_are_refused() {
    let control = |kind, body: &[u8]| Control::decode(Frame { kind, body: Bytes::copy_from_slice(body) });
    assert_eq!(control(SHORT, &[1, 2]), Err(WireError::Value("flag")));
    assert_eq!(control(REFUSED, &[0, 1]), Err(WireError::Value("reason")));
    assert_eq!(control(STOP, &[0xc0, 0, 0, 1, 0, 0, 0, 0, 1]), Err(WireError::Value("a 32-bit number")));
    let call = |kind, body: &[u8]| CallFrame::decode(Frame { kind, body: Bytes::copy_from_slice(body) });
    assert_eq!(call(END, &[1, STATUSES.len() as u8, 0]), Err(WireError::Value("status")));
    assert_eq!(call(CALL, &[1, 1, 1, ONE_WAY | ITEMS]), Err(WireError::Value("call flags")));
    assert_eq!(call(CALL, &[1, 1, 1, 8]), Err(WireError::Value("call flags")));
    assert_eq!(call(CALL, &[1, 0, 0x41, 0]), Err(WireError::TooLong(256)), "the longest method has 255 bytes");
    assert_eq!(call(TERM, &[0, 0, 1, b'x', 1, 1, 1]), Err(WireError::Value("term number")));
}

#[test]
fn a_call_may_wait_for_ever() {
    let call = |timeout_ms| {
        let (term, mode) = (TermRef::Number(1), CallMode::Answer);
        let head = CallHead::Call { id: 9, term, timeout_ms, mode, trace: None };
        Any::Call(CallFrame { head, body: Bytes::new() })
    };
    assert_eq!(call(u64::MAX).encoded(), call(VARINT_MAX).encoded());
}

/// What a small call costs beside its body: a million calls into a session, with the default timeout.
#[test]
fn a_small_call_costs_ten_bytes_and_its_answer_seven() {
    let (id, term) = (1_000_000, TermRef::Number(3));
    let len = |head: CallHead| Any::Call(CallFrame { head, body: Bytes::new() }).encoded().len();
    let (mode, trace) = (CallMode::Answer, None);
    assert_eq!(len(CallHead::Call { id, term: term.clone(), timeout_ms: 5_000, mode, trace }), 10);
    assert_eq!(len(CallHead::Answer { id, term }), 7);
}

#[test]
fn varints_are_those_of_rfc_9000() {
    // RFC 9000, appendix A.1, and both sides of every edge.
    for (value, hex) in [
        (151_288_809_941_952_652, "c2197c5eff14e88c"),
        (494_878_333, "9d7f3e7d"),
        (15_293, "7bbd"),
        (37, "25"),
        (0, "00"),
        (0x3f, "3f"),
        (0x40, "4040"),
        (0x3fff, "7fff"),
        (0x4000, "80004000"),
        (0x3fff_ffff, "bfffffff"),
        (0x4000_0000, "c000000040000000"),
        (VARINT_MAX, "ffffffffffffffff"),
    ] {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        assert_eq!(to_hex(&bytes), hex);
        assert_eq!(varint_len(value), bytes.len());
        assert_eq!(peek_varint(&bytes), Some((value, bytes.len())));
        assert!((0..bytes.len()).all(|len| peek_varint(&bytes[..len]).is_none()));
    }
    assert_eq!(peek_varint(&[0x40, 0x25]), Some((37, 2)), "the shortest form is not required");
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_head() {
    for (max, head, is_refused) in [(63, [7, 63].as_slice(), false), (63, &[7, 0x40, 64], true), (0, &[7, 1], true)] {
        for chunk in [1, 2, 3] {
            let mut splitter = Splitter::new(max);
            let outcomes: Vec<_> = head
                .chunks(chunk)
                .map(|chunk| {
                    splitter.push(Bytes::copy_from_slice(chunk));
                    splitter.next_frame()
                })
                .collect();
            let last = outcomes.last().expect("a head is not empty");
            assert_eq!(last.is_err(), is_refused, "{outcomes:?}");
            assert!(outcomes[..outcomes.len() - 1].iter().all(|outcome| *outcome == Ok(None)));
            assert!(splitter.begun.len() <= head.len());
        }
    }
    let mut splitter = Splitter::new(10);
    splitter.push(vec![7; 11].into_iter().chain([0; 1000]).collect::<Vec<_>>().into());
    assert!(splitter.next_frame().is_ok(), "a body of 7 bytes");
    splitter.chunk = Bytes::from([&[7, 0x44, 0][..], &[0; 1000]].concat());
    assert_eq!(splitter.next_frame(), Err(WireError::TooLong(1024)));
    assert_eq!(splitter.begun.len(), 0, "nothing of it was kept");
    assert_eq!(splitter.next_frame(), Err(WireError::TooLong(1024)), "and it stays refused");
}

#[test]
fn a_splitter_knows_what_is_missing() {
    let mut splitter = Splitter::new(1000);
    assert!(!splitter.is_begun());
    for (byte, missing) in [(7, 1), (0x40, 1), (3, 3), (0, 2), (0, 1)] {
        splitter.push(Bytes::copy_from_slice(&[byte]));
        assert_eq!(splitter.next_frame(), Ok(None));
        assert!(splitter.is_begun());
        assert_eq!(splitter.missing(), missing);
    }
    splitter.push(Bytes::from_static(&[0, 8, 0]));
    assert_eq!(splitter.next_frame(), Ok(Some(Frame { kind: 7, body: Bytes::from_static(&[0, 0, 0]) })));
    assert!(!splitter.is_begun());
    assert_eq!(splitter.next_frame(), Ok(Some(Frame { kind: 8, body: Bytes::new() })), "an empty body is a body");
    assert_eq!(splitter.next_frame(), Ok(None));
    assert!(!splitter.is_begun());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(frame in any_frame()) {
        let bytes = frame.encoded();
        prop_assert_eq!(frame.decoded(split_one(&bytes)), Ok(Some(frame)));
    }

    #[test]
    fn it_does_not_matter_how_a_stream_is_cut(
        frames in vec((any::<u8>(), vec(any::<u8>(), 0..200)), 0..8),
        cuts in vec(1..100usize, 1..20),
    ) {
        let mut bytes = Vec::new();
        for (kind, body) in &frames {
            put_frame(&mut bytes, *kind, body.len(), |out| out.extend_from_slice(body));
        }
        let mut splitter = Splitter::new(200);
        let mut read = Vec::new();
        let mut left = Bytes::from(bytes);
        for cut in cuts.into_iter().cycle() {
            if left.is_empty() {
                break;
            }
            splitter.push(left.split_to(cut.min(left.len())));
            while let Some(frame) = splitter.next_frame().expect("none is too long") {
                read.push((frame.kind, frame.body.to_vec()));
            }
            if splitter.is_begun() {
                prop_assert!((1..=left.len()).contains(&splitter.missing()));
            }
        }
        prop_assert!(!splitter.is_begun());
        prop_assert_eq!(read, frames);
    }

    #[test]
    fn no_bytes_break_a_decoder(
        kind in any::<u8>(),
        sample in any::<prop::sample::Index>(),
        body in vec(any::<u8>(), 0..400),
    ) {
        let samples = golden();
        let (hex, _) = &samples[sample.index(samples.len())];
        for kind in [kind, from_hex(hex)[0]] {
            let frame = Frame { kind, body: body.clone().into() };
            let _ = (Hello::decode(frame.clone()), Control::decode(frame.clone()));
            let _ = (LaneFrame::decode(frame.clone()), CallFrame::decode(frame));
        }
        let mut splitter = Splitter::new(100);
        splitter.push(body.into());
        while let Ok(Some(_)) = splitter.next_frame() {}
    }

    /// A good frame with a few bytes changed goes deeper than noise does; what is read of it can be said again.
    #[test]
    fn no_change_of_a_frame_breaks_a_decoder(
        sample in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let samples = golden();
        let (hex, frame) = &samples[sample.index(samples.len())];
        let whole = split_one(&from_hex(hex));
        let mut body = whole.body.to_vec();
        for (at, byte) in changes {
            if !body.is_empty() {
                let at = at.index(body.len());
                body[at] = byte;
            }
        }
        if let Ok(Some(read)) = frame.decoded(Frame { kind: whole.kind, body: body.into() }) {
            prop_assert_eq!(read.decoded(split_one(&read.encoded())), Ok(Some(read)));
        }
    }
}

impl Any {
    fn encoded(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello(hello) => hello.encode(&mut out),
            Self::Control(control) => control.encode(&mut out),
            Self::Lane(LaneFrame::Schema { id, schema }) => put_schema(&mut out, *id, schema),
            Self::Lane(LaneFrame::Copies(CopiesFrame { head, body })) => {
                head.put(&mut out, body.len());
                out.extend_from_slice(body);
            }
            Self::Lane(LaneFrame::Message(MessageFrame { head, body })) => {
                put_message_head(&mut out, head, body.len());
                out.extend_from_slice(body);
            }
            Self::Call(CallFrame { head, body }) => {
                head.put(&mut out, body.len());
                out.extend_from_slice(body);
            }
        }
        out
    }

    /// Reads a frame from the kind of stream that this one belongs to.
    fn decoded(&self, frame: Frame) -> Result<Option<Self>, WireError> {
        Ok(match self {
            Self::Hello(_) => Some(Self::Hello(Hello::decode(frame)?)),
            Self::Control(_) => Control::decode(frame)?.map(Self::Control),
            Self::Lane(_) => LaneFrame::decode(frame)?.map(Self::Lane),
            Self::Call(_) => CallFrame::decode(frame)?.map(Self::Call),
        })
    }
}

fn golden() -> Vec<(&'static str, Any)> {
    let trace = Trace(std::array::from_fn(|n| n as u8));
    let schema = Schema { tag: "shop.order".to_owned(), version: 300, readable_since: 2, codec: 1 };
    let body = Bytes::from_static(b"body");
    let copies = |trace| {
        let head = CopiesHead { id: 9, schema: 3, trace, to: vec![(5, 70_000), (6, 0)] };
        Any::Lane(LaneFrame::Copies(CopiesFrame { head, body: Bytes::from_static(b"body") }))
    };
    let message = MessageHead { mailbox: 5, number: 70_000, schema: 3, trace: None };
    let term = Term { method: "shop.quote".to_owned(), schema: schema.clone() };
    let numbered = || TermRef::Number(3);
    let in_full = || TermRef::InFull(Box::new(term.clone()));
    let bare = |head| Any::Call(CallFrame { head, body: Bytes::new() });
    let full = |head| Any::Call(CallFrame { head, body: body.clone() });
    let call = |term, mode, trace| full(CallHead::Call { id: 9, term, timeout_ms: 5_000, mode, trace });
    let end = |status| bare(CallHead::End { id: 9, status, items: 0 });
    vec![
        (
            "01408c4453544200000101020304050607080000000000000000010000000201020470726f640b6140686f73743a343337\
             3002040a00000211120620010db80000000000000000000000010050030000000000000006000000000000000700000000\
             000000080001000000001000010101010101010101010101010101010101010101010101010101010101010101",
            Any::Hello(full_hello()),
        ),
        (
            "014070445354420000020102030405060708000000000000000001000000000470726f640b6140686f73743a3433373000\
             00000000000000000600000000000000070000000000000008000100000000100003010101010101010101010101010101\
             0101010101010101010101010101010101",
            Any::Hello(bare_hello()),
        ),
        ("0200", Any::Control(Control::Ready)),
        ("0306050280100000", Any::Control(Control::Grant { mailbox: 5, seq: 2, limit: 1 << 20 })),
        ("04050502324064", Any::Control(Control::Need { mailbox: 5, seq: 2, sent: 50, limit: 100 })),
        ("050105", Any::Control(Control::Closed { mailbox: 5 })),
        ("0608c000010000000000", Any::Control(Control::Ping { seq: 1 << 40 })),
        ("070101", Any::Control(Control::Pong { seq: 1 })),
        ("08020203", Any::Control(Control::Stop { code: Code::IDLE, streams: 3 })),
        ("0900", Any::Control(Control::Stopped)),
        ("4f00", Any::Control(Control::Drained)),
        ("0a0305023c", Any::Control(Control::Return { mailbox: 5, seq: 2, limit: 60 })),
        ("0b020301", Any::Control(Control::Short { seq: 3, on: true })),
        ("0c00", Any::Control(Control::Spare)),
        ("0d020207", Any::Control(Control::Refused { reason: Unreadable::Version, messages: 7 })),
        ("0e020500", Any::Control(Control::Delivered { id: 5, closed: vec![] })),
        ("0e0705020780011170", Any::Control(Control::Delivered { id: 5, closed: vec![7, 70_000] })),
        ("1010030a73686f702e6f72646572412c0201", Any::Lane(LaneFrame::Schema { id: 3, schema: schema.clone() })),
        ("110a058001117003626f6479", Any::Lane(LaneFrame::Message(message.with(body.clone())))),
        (
            "1223058001117003000102030405060708090a0b0c0d0e0f101112131415161718626f6479",
            Any::Lane(LaneFrame::Message(MessageHead { trace: Some(trace), ..message }.with(body.clone()))),
        ),
        ("130e09030205800111700600626f6479", copies(None)),
        ("14270903000102030405060708090a0b0c0d0e0f1011121314151617180205800111700600626f6479", copies(Some(trace))),
        ("20090903538800626f6479", call(numbered(), CallMode::Answer, None)),
        (
            "202309000a73686f702e71756f74650a73686f702e6f72646572412c0201538800626f6479",
            call(in_full(), CallMode::Answer, None),
        ),
        (
            "20220903538801000102030405060708090a0b0c0d0e0f101112131415161718626f6479",
            call(numbered(), CallMode::Answer, Some(trace)),
        ),
        ("20090903538802626f6479", call(numbered(), CallMode::Nothing, None)),
        (
            "2026090353880580040000000102030405060708090a0b0c0d0e0f101112131415161718626f6479",
            call(numbered(), CallMode::Items { limit: 1 << 18 }, Some(trace)),
        ),
        ("21060903626f6479", full(CallHead::Answer { id: 9, term: numbered() })),
        (
            "212009000a73686f702e71756f74650a73686f702e6f72646572412c0201626f6479",
            full(CallHead::Answer { id: 9, term: in_full() }),
        ),
        ("250809412c03626f6479", full(CallHead::Item { id: 9, number: 300, term: numbered() })),
        ("2303090000", end(Status::Answered)),
        ("2303090100", end(Status::NoSuchMethod)),
        ("2303090200", end(Status::Mismatch)),
        ("2303090300", end(Status::Undecodable)),
        ("2303090400", end(Status::Panicked)),
        ("2303090500", end(Status::Cancelled)),
        ("2303090600", end(Status::ShuttingDown)),
        ("2303090700", end(Status::Overloaded)),
        ("2303090800", end(Status::Expired)),
        ("2303090900", end(Status::AnswerTooLarge)),
        ("2306090080011170", bare(CallHead::End { id: 9, status: Status::Answered, items: 70_000 })),
        ("220109", bare(CallHead::Cancel { id: 9 })),
        ("26050980100000", bare(CallHead::Credit { id: 9, limit: 1 << 20 })),
        (
            "270e09010203040506070803626f6479",
            full(CallHead::Reply { serial: 9, secret: [1, 2, 3, 4, 5, 6, 7, 8], term: numbered() }),
        ),
        (
            "241b030a73686f702e71756f74650a73686f702e6f72646572412c0201",
            bare(CallHead::Term { number: 3, term: term.clone() }),
        ),
    ]
}

fn full_hello() -> Hello {
    Hello {
        minor: MINOR,
        role: 1,
        incarnation: 0x0102_0304_0506_0708,
        capabilities: 0,
        message_max: 16 << 20,
        codecs: vec![1, 2],
        cluster: "prod".to_owned(),
        name: NodeName::parse("a@host").expect("a name"),
        addresses: vec!["10.0.0.2:4370".parse().expect("v4"), "[2001:db8::1]:80".parse().expect("v6")],
        flags: NodeFlags { not_dialable: true, client: true },
        known_incarnation: 6,
        ended: 7,
        seen_ended: 8,
        first_credit: 65_536,
        lanes_max: 4_096,
        mode: Mode::Cookie,
        proof: [1; 32],
    }
}

fn bare_hello() -> Hello {
    Hello { role: 2, codecs: vec![], addresses: vec![], flags: NodeFlags::default(), mode: Mode::Both, ..full_hello() }
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..100u64, 0..=VARINT_MAX]
}

fn schema() -> impl Strategy<Value = Schema> {
    ("[a-z.é]{0,100}", any::<u32>(), any::<u32>(), any::<u8>())
        .prop_map(|(tag, version, readable_since, codec)| Schema { tag, version, readable_since, codec })
}

fn trace() -> impl Strategy<Value = Option<Trace>> {
    prop::option::of(any::<[u8; 25]>().prop_map(Trace))
}

fn body() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn any_frame() -> impl Strategy<Value = Any> {
    prop_oneof![
        hello().prop_map(Any::Hello),
        control().prop_map(Any::Control),
        (number(), schema()).prop_map(|(id, schema)| Any::Lane(LaneFrame::Schema { id, schema })),
        (number(), number(), number(), trace(), body()).prop_map(|(mailbox, number, schema, trace, body)| {
            Any::Lane(LaneFrame::Message(MessageHead { mailbox, number, schema, trace }.with(body)))
        }),
        (number(), number(), trace(), vec((number(), number()), 1..20), body()).prop_map(
            |(id, schema, trace, to, body)| {
                Any::Lane(LaneFrame::Copies(CopiesFrame { head: CopiesHead { id, schema, trace, to }, body }))
            }
        ),
        call().prop_map(Any::Call),
    ]
}

fn control() -> impl Strategy<Value = Control> {
    (0..14u8, number(), number(), number(), any::<(u32, bool)>()).prop_map(|(kind, mailbox, seq, limit, (code, on))| {
        match kind {
            0 => Control::Ready,
            1 => Control::Grant { mailbox, seq, limit },
            2 => Control::Need { mailbox, seq, sent: limit / 2, limit },
            3 => Control::Return { mailbox, seq, limit },
            4 => Control::Closed { mailbox },
            5 => Control::Ping { seq },
            6 => Control::Pong { seq },
            7 => Control::Short { seq, on },
            8 => Control::Spare,
            9 => Control::Refused { reason: Unreadable::ALL[code as usize % 3], messages: limit },
            10 => Control::Delivered { id: mailbox, closed: vec![seq, limit] },
            11 => Control::Stop { code: Code(code), streams: limit },
            12 => Control::Drained,
            _ => Control::Stopped,
        }
    })
}

fn term() -> impl Strategy<Value = Term> {
    ("[a-z.]{0,255}", schema()).prop_map(|(method, schema)| Term { method, schema })
}

fn term_ref() -> impl Strategy<Value = TermRef> {
    let number = prop_oneof![1..100u64, 1..=VARINT_MAX].prop_map(TermRef::Number);
    prop_oneof![number, term().prop_map(|term| TermRef::InFull(Box::new(term)))]
}

fn mode() -> impl Strategy<Value = CallMode> {
    prop_oneof![Just(CallMode::Answer), Just(CallMode::Nothing), number().prop_map(|limit| CallMode::Items { limit })]
}

fn call() -> impl Strategy<Value = CallFrame> {
    let head = prop_oneof![
        (number(), number(), term_ref(), mode(), trace())
            .prop_map(|(id, timeout_ms, term, mode, trace)| CallHead::Call { id, timeout_ms, term, mode, trace }),
        (number(), term_ref()).prop_map(|(id, term)| CallHead::Answer { id, term }),
        (number(), number(), term_ref()).prop_map(|(id, number, term)| CallHead::Item { id, number, term }),
        (number(), 0..STATUSES.len(), number()).prop_map(|(id, status, items)| CallHead::End {
            id,
            status: STATUSES[status],
            items
        }),
        number().prop_map(|id| CallHead::Cancel { id }),
        (number(), number()).prop_map(|(id, limit)| CallHead::Credit { id, limit }),
        (number(), any::<[u8; 8]>(), term_ref()).prop_map(|(serial, secret, term)| CallHead::Reply {
            serial,
            secret,
            term
        }),
        (1..=VARINT_MAX, term()).prop_map(|(number, term)| CallHead::Term { number, term }),
    ];
    (head, body()).prop_map(|(head, body)| {
        let body = if head.has_body() { body } else { Bytes::new() };
        CallFrame { head, body }
    })
}

fn hello() -> impl Strategy<Value = Hello> {
    let address = (any::<std::net::IpAddr>(), any::<u16>()).prop_map(std::net::SocketAddr::from);
    (
        (any::<u16>(), any::<u8>(), any::<[u64; 5]>(), any::<[u32; 3]>()),
        (vec(any::<u8>(), 0..=CODECS_MAX), "[a-z.]{0,64}", "[a-z]{1,20}@[a-z]{1,20}"),
        (vec(address, 0..=ADDRESSES_MAX), any::<[bool; 2]>(), 0..3usize, any::<[u8; 32]>()),
    )
        .prop_map(|((minor, role, longs, ints), (codecs, cluster, name), (addresses, flags, mode, proof))| Hello {
            minor,
            role,
            incarnation: longs[0],
            capabilities: longs[1],
            message_max: ints[0],
            codecs,
            cluster,
            name: NodeName::parse(&name).expect("a name"),
            addresses,
            flags: NodeFlags { not_dialable: flags[0], client: flags[1] },
            known_incarnation: longs[2],
            ended: longs[3],
            seen_ended: longs[4],
            first_credit: ints[1],
            lanes_max: ints[2],
            mode: [Mode::Cookie, Mode::Pki, Mode::Both][mode],
            proof,
        })
}

fn split_one(bytes: &[u8]) -> Frame {
    let mut splitter = Splitter::new(CONTROL_MAX);
    splitter.push(Bytes::copy_from_slice(bytes));
    let frame = splitter.next_frame().expect("a frame").expect("a whole one");
    assert_eq!((splitter.next_frame(), splitter.is_begun()), (Ok(None), false), "one frame and no more");
    frame
}

pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn from_hex(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
}
