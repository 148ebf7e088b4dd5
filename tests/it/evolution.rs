//! Nodes of different binaries: their types have other versions, and some bytes are no honest ones.

use distribute::{Address, Bytes, CallError, DecodeError, Effect, Envelope, Message, Method, Node};
use serde::{Deserialize, Serialize};

use crate::common::World;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct OrderV1 {
    id: u64,
}

impl Message for OrderV1 {
    const TAG: &'static str = "shop.order";
    const VERSION: u32 = 1;
}

/// Adds a note at the end.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct OrderV2 {
    id: u64,
    note: String,
}

impl Message for OrderV2 {
    const TAG: &'static str = "shop.order";
    const VERSION: u32 = 2;
    const READABLE_SINCE: u32 = 1;

    fn migrate(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
        let OrderV1 { id } = OrderV1::decode(body, version)?;
        Ok(Self { id, note: String::new() })
    }
}

/// Begins with the note.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct OrderV3 {
    note: String,
    id: u64,
}

impl Message for OrderV3 {
    const TAG: &'static str = "shop.order";
    const VERSION: u32 = 3;
}

/// The address of a mailbox, as the other binary knows it.
fn known_as<A: Message, B: Message>(address: &Address<A>, node: &Node) -> Address<B> {
    let text = serde_json::to_string(address).unwrap();
    serde_json::from_str::<Address<B>>(&text).unwrap().bind(node)
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_reads_the_versions_that_it_can() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let mut old = b.mailbox::<OrderV1>();
    let to_old = old.address();
    known_as::<_, OrderV1>(&to_old, &a).send(OrderV1 { id: 1 }).await.unwrap();
    assert_eq!(old.recv().await, Some(OrderV1 { id: 1 }));
    known_as::<_, OrderV2>(&to_old, &a).send(OrderV2 { id: 2, note: "soon".into() }).await.unwrap();
    assert_eq!(old.recv().await, Some(OrderV1 { id: 2 }));
    known_as::<_, OrderV3>(&to_old, &a).send(OrderV3 { note: String::new(), id: 3 }).await.unwrap();
    known_as::<_, Vec<OrderV1>>(&to_old, &a).send(vec![]).await.unwrap();
    known_as::<_, OrderV1>(&to_old, &a).send(OrderV1 { id: 4 }).await.unwrap();
    assert_eq!(old.recv().await, Some(OrderV1 { id: 4 }));
    assert_eq!(old.refused(), 2);

    let mut new = b.mailbox::<OrderV2>();
    known_as::<_, OrderV1>(&new.address(), &a).send(OrderV1 { id: 5 }).await.unwrap();
    assert_eq!(new.recv().await, Some(OrderV2 { id: 5, note: String::new() }));
    assert_eq!(new.refused(), 0);
}

/// A part that grew is not misread, though its own type could be.
#[tokio::test(start_paused = true)]
async fn a_list_is_read_exactly() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let mut old = b.mailbox::<Vec<OrderV1>>();
    let to_new = known_as::<_, Vec<OrderV2>>(&old.address(), &a);
    to_new.send(vec![OrderV2 { id: 1, note: "\u{2}".into() }]).await.unwrap();
    old.address().bind(&a).send(vec![OrderV1 { id: 2 }]).await.unwrap();
    assert_eq!(old.recv().await, Some(vec![OrderV1 { id: 2 }]));
    assert_eq!(old.refused(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_between_versions() {
    const V1: Method<OrderV1, u64> = Method::new("price");
    const V2: Method<OrderV2, u64> = Method::new("price");
    const V3: Method<OrderV3, u64> = Method::new("price");
    const OTHER_ANSWER: Method<OrderV1, u32> = Method::new("price");
    let world = World::new(1);
    let (a, b) = world.pair().await;
    b.rpc().serve(V1, |_call, order| async move { 10 * order.id }).unwrap();
    assert_eq!(a.rpc().call(b.name(), V1, OrderV1 { id: 1 }).await, Ok(10));
    assert_eq!(a.rpc().call(b.name(), V2, OrderV2 { id: 2, note: "soon".into() }).await, Ok(20));
    let unread = a.rpc().call(b.name(), V3, OrderV3 { note: String::new(), id: 3 }).await.unwrap_err();
    assert_eq!(unread, CallError::Mismatch("price".into()));
    assert_eq!(unread.effect(), Effect::NotDone);
    let misunderstood = a.rpc().call(b.name(), OTHER_ANSWER, OrderV1 { id: 4 }).await;
    assert!(matches!(misunderstood, Err(CallError::BadAnswer(_))), "{misunderstood:?}");
}

/// What is nested too deep, or swells too much, is the caller's error, and the callee lives on.
#[tokio::test(start_paused = true)]
async fn a_hostile_request_is_undecodable() {
    #[derive(Serialize, Deserialize)]
    enum Chain {
        End,
        Link(Box<Self>),
    }

    impl Message for Chain {
        const TAG: &'static str = "chain";
        const VERSION: u32 = 1;
    }

    const LENGTH: Method<Chain, u64> = Method::new("length");
    const COUNT: Method<Vec<()>, u64> = Method::new("count");
    let world = World::new(1);
    let (a, b) = world.pair().await;
    b.rpc()
        .serve(LENGTH, |_call, mut chain| async move {
            let mut length = 0;
            while let Chain::Link(next) = chain {
                (chain, length) = (*next, length + 1);
            }
            length
        })
        .unwrap();
    b.rpc().serve(COUNT, |_call, units| async move { units.len() as u64 }).unwrap();
    let chain = |length| (0..length).fold(Chain::End, |chain, _| Chain::Link(Box::new(chain)));
    assert_eq!(a.rpc().call(b.name(), LENGTH, chain(127)).await, Ok(127));
    assert_eq!(a.rpc().call(b.name(), LENGTH, chain(128)).await, Err(CallError::Undecodable));
    assert_eq!(a.rpc().call(b.name(), COUNT, vec![(); 1024]).await, Ok(1024));
    assert_eq!(a.rpc().call(b.name(), COUNT, vec![(); 100_000]).await, Err(CallError::Undecodable));
    assert_eq!(a.rpc().call(b.name(), LENGTH, chain(1)).await, Ok(1));
}

/// The tag has more than 255 bytes, and the link does not mind.
#[tokio::test(start_paused = true)]
async fn a_type_of_many_parts_is_sent() {
    type Four<T> = (T, T, T, T);
    type Many = Vec<Four<Four<Four<u64>>>>;
    const COUNT: Method<Many, Many> = Method::new("count");
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let mut inbox = b.mailbox::<Many>();
    inbox.address().bind(&a).send(vec![]).await.unwrap();
    assert_eq!(inbox.recv().await, Some(vec![]));
    b.rpc().serve(COUNT, |_call, many| async move { many }).unwrap();
    assert_eq!(a.rpc().call(b.name(), COUNT, vec![]).await, Ok(vec![]));
}

/// A node in the middle passes on what it cannot read.
#[tokio::test(start_paused = true)]
async fn an_envelope_is_forwarded_unopened() {
    let world = World::new(1);
    let (a, b) = world.pair().await;
    let c = world.node("c", 3).await;
    let (mut middle, mut end) = (b.mailbox::<Envelope>(), c.mailbox::<Envelope>());
    let order = OrderV3 { note: "soon".into(), id: 7 };
    middle.address().bind(&a).send(Envelope::wrap(&order).unwrap()).await.unwrap();
    let passing = middle.recv().await.unwrap();
    assert!(passing.holds::<OrderV1>());
    assert_eq!(passing.unwrap::<OrderV1>(), Err(DecodeError::Version { expected: 1, got: 3 }));
    end.address().bind(&b).send(passing).await.unwrap();
    assert_eq!(end.recv().await.unwrap().unwrap(), Ok(order));
}
