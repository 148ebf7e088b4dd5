use super::super::election::{Ballot, NUMBER_MAX, Release, Token, TokenError, VOTERS_MAX};
use super::*;

fn election(word: Word) -> Election {
    let ballot = Ballot { generation: 0, version: 2, digest: 0x0102_0304_0506_0708 };
    Election { name: "billing".into(), ballot, term: 300, word }
}

pub(super) fn golden() -> Vec<(&'static str, Service)> {
    let name = || NodeName::parse("a@host").unwrap();
    let token = Token::new(1, 2, 300);
    [
        ("b0160762696c6c696e6700020102030405060708412c0105", Word::Canvass { round: 5 }),
        (
            "b01f0762696c6c696e6700020102030405060708412c0200000000000000070501",
            Word::Canvassed { life: 7, round: 5, is_for: true },
        ),
        ("b0160762696c6c696e6700020102030405060708412c0300", Word::Stand { release: None }),
        (
            "b0240762696c6c696e6700020102030405060708412c03010b6140686f73743a34333730412b",
            Word::Stand { release: Some(Release { leader: name(), term: 299 }) },
        ),
        (
            "b01e0762696c6c696e6700020102030405060708412c04000000000000000700",
            Word::Voted { life: 7, is_for: false, lives: vec![] },
        ),
        (
            "b02e0762696c6c696e6700020102030405060708412c0400000000000000070100000000000000010000000000000002",
            Word::Voted { life: 7, is_for: true, lives: vec![1, 2] },
        ),
        ("b0160762696c6c696e6700020102030405060708412c0505", Word::Beat { number: 5 }),
        ("b01e0762696c6c696e6700020102030405060708412c06000000000000000705", Word::Beaten { life: 7, number: 5 }),
        ("b0150762696c6c696e6700020102030405060708412c07", Word::TakeOver),
        ("b0150762696c6c696e6700020102030405060708412c08", Word::Resigned),
        ("b0150762696c6c696e6700020102030405060708412c09", Word::Ask),
        ("b01a0762696c6c696e6700020102030405060708412c0a0102412c00", Word::Leads { token, leader: None }),
        (
            "b0260762696c6c696e6700020102030405060708412c0a0102412c010b6140686f73743a34333730",
            Word::Leads { token, leader: Some(name()) },
        ),
        ("b0150762696c6c696e6700020102030405060708412c0b", Word::Recover),
        (
            "b02e0762696c6c696e6700020102030405060708412c0c00000000000000070100000000000000010000000000000002",
            Word::Recovered { life: 7, has_begun: true, lives: vec![1, 2] },
        ),
        ("b01d0762696c6c696e6700020102030405060708412c0d0000000000000007", Word::Blank { life: 7 }),
    ]
    .map(|(hex, word)| (hex, Service::Election(election(word))))
    .into()
}

pub(super) fn any_election() -> BoxedStrategy<Election> {
    let (life, lives) = (any::<u64>, || vec(any::<u64>(), 0..=VOTERS_MAX));
    let leader = || any_node().prop_map(|node| node.name().clone());
    let release = (leader(), number()).prop_map(|(leader, term)| Release { leader, term });
    let token = || (number(), number(), number()).prop_map(|(g, v, t)| Token::new(g, v, t));
    let answer = (life(), number(), any::<bool>());
    let word = prop_oneof![
        number().prop_map(|round| Word::Canvass { round }),
        answer.prop_map(|(life, round, is_for)| Word::Canvassed { life, round, is_for }),
        of(release).prop_map(|release| Word::Stand { release }),
        (life(), any::<bool>(), lives()).prop_map(|(life, is_for, lives)| Word::Voted { life, is_for, lives }),
        number().prop_map(|number| Word::Beat { number }),
        (life(), number()).prop_map(|(life, number)| Word::Beaten { life, number }),
        prop_oneof![Just(Word::TakeOver), Just(Word::Resigned), Just(Word::Ask), Just(Word::Recover)],
        (token(), of(leader())).prop_map(|(token, leader)| Word::Leads { token, leader }),
        (life(), any::<bool>(), lives()).prop_map(|(life, has_begun, lives)| Word::Recovered {
            life,
            has_begun,
            lives
        }),
        life().prop_map(|life| Word::Blank { life }),
    ];
    let ballot = (number(), number(), any::<u64>());
    let ballot = ballot.prop_map(|(generation, version, digest)| Ballot { generation, version, digest });
    (name(), ballot, number(), word)
        .prop_map(|(name, ballot, term, word)| Election { name, ballot, term, word })
        .boxed()
}

#[test]
fn an_election_says_one_of_its_words() {
    let of = |word: &str| {
        let head = "0762696c6c696e6700020102030405060708412c";
        Service::decode(Frame { kind: 0xb0, body: from_hex(&format!("{head}{word}")).into() }).map(|_| ())
    };
    assert_eq!(of("09"), Ok(()));
    assert_eq!(of(""), Err(WireError::Short));
    assert_eq!(
        (of("00"), of("0e")),
        (Err(WireError::Value("word of an election")), Err(WireError::Value("word of an election")))
    );
    assert_eq!(of("0302"), Err(WireError::Value("flag")));
    let lives = |count: usize| of(&format!("0c000000000000000700{}", "0000000000000001".repeat(count)));
    assert_eq!(lives(VOTERS_MAX), Ok(()));
    assert!(matches!(lives(VOTERS_MAX + 1), Err(WireError::TooLong(_))));
}

#[test]
fn tokens_are_ordered_and_written_as_three_numbers() {
    let token = Token::new(1, 2, 3);
    assert!(token < Token::new(1, 2, 4) && token < Token::new(1, 3, 0) && token < Token::new(2, 0, 0));
    assert_eq!(token.to_string().parse(), Ok(token));
    assert_eq!(format!("{token:?}"), "1.2.3");
    assert_eq!(format!("0.0.{NUMBER_MAX}").parse(), Ok(Token::new(0, 0, NUMBER_MAX)));
    for bad in ["", "1", "1.2", "1.2.3.4", "1.2.", "1.-2.3", "1.+2.3", "a.b.c", &format!("0.0.{}", NUMBER_MAX + 1)] {
        assert_eq!(bad.parse::<Token>(), Err(TokenError), "{bad}");
    }
}
