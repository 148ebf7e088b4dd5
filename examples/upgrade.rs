//! A rolling upgrade: nodes of three releases, whose message has changed, talk to each other.
//!
//! ```text
//! cargo run --example upgrade
//!     a desk of release 1 and one of release 2 side by side, then one of release 3: who can read what of whom
//!
//! cargo run --example upgrade -- --name one@10.0.0.1 --cookie-file cluster.cookie --release 1
//! cargo run --example upgrade -- --name two@10.0.0.2 --cookie-file cluster.cookie --join one@10.0.0.1 --release 2
//!     on two hosts: `send NODE TEXT` sends an order, `call NODE TEXT` calls with one and is answered how it was read,
//!     `refusals NODE` counts what could not be read there
//! ```
//!
//! | | reads 1 | reads 2 | reads 3 |
//! |---|---|---|---|
//! | release 1 | yes | all but the note, which came at the end | no |
//! | release 2 | by migration | yes | no |
//! | release 3 | by migration | by migration | yes |
//!
//! What cannot be read is not misread: it is refused, and both ends can know. So roll out release 2 in any order, and
//! release 3 to the readers first.
//!
//! Read the modules [`release_1`], [`release_2`] and [`release_3`]: each is what the program of that release has in its
//! place. [`demo`] is the upgrade.

use std::process::ExitCode;
use std::time::Duration;

use distribute::{Message, Method, Name, NodeName};
use pico_args::Arguments;

use crate::common::{PATIENCE, Place, Process, Result, Stage, explain, say};

mod common;

/// How long the desk of another node is waited for.
const SOON: Duration = Duration::from_secs(5);

mod release_1 {
    use distribute::Message;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Serialize, Deserialize)]
    pub(crate) struct Order {
        pub(crate) item: String,
    }

    impl Message for Order {
        const TAG: &'static str = "shop.order";
        const VERSION: u32 = 1;
    }

    impl From<String> for Order {
        fn from(item: String) -> Self {
            Self { item }
        }
    }
}

mod release_2 {
    use distribute::{Bytes, DecodeError, Message};
    use serde::{Deserialize, Serialize};

    use crate::release_1;

    #[derive(Debug, Serialize, Deserialize)]
    pub(crate) struct Order {
        pub(crate) item: String,
        pub(crate) note: String,
    }

    impl Message for Order {
        const TAG: &'static str = "shop.order";
        const VERSION: u32 = 2;
        // Since then a field was added at the end, and nothing else was changed.
        const READABLE_SINCE: u32 = 1;

        fn migrate(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
            let release_1::Order { item } = release_1::Order::decode(body, version)?;
            Ok(Self { item, note: "from before there were notes".into() })
        }
    }

    impl From<String> for Order {
        fn from(item: String) -> Self {
            Self { item, note: "soon".into() }
        }
    }
}

mod release_3 {
    use distribute::{Bytes, DecodeError, Message};
    use serde::{Deserialize, Serialize};

    use crate::release_2;

    /// The item has become a list: no earlier release can read that.
    #[derive(Debug, Serialize, Deserialize)]
    pub(crate) struct Order {
        pub(crate) items: Vec<String>,
        pub(crate) note: String,
    }

    impl Message for Order {
        const TAG: &'static str = "shop.order";
        const VERSION: u32 = 3;

        fn migrate(body: &Bytes, version: u32) -> Result<Self, DecodeError> {
            // Release 2 reads release 1.
            let release_2::Order { item, note } = release_2::Order::decode(body, version)?;
            Ok(Self { items: vec![item], note })
        }
    }

    impl From<String> for Order {
        fn from(item: String) -> Self {
            Self { items: vec![item], note: "soon".into() }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    common::end(run(Arguments::from_env()).await)
}

async fn run(mut arguments: Arguments) -> Result<()> {
    if arguments.contains("--help") {
        say!("usage: upgrade [OPTIONS --release NUMBER]\n{}\n  --release NUMBER     1, 2 or 3", Place::OPTIONS);
        return Ok(());
    }
    let release: Option<u32> = arguments.opt_value_from_str("--release")?;
    let place = Place::take(&mut arguments)?;
    common::done(arguments)?;
    match (place, release) {
        (Some(place), Some(1)) => desk::<release_1::Order>(&place).await,
        (Some(place), Some(2)) => desk::<release_2::Order>(&place).await,
        (Some(place), Some(3)) => desk::<release_3::Order>(&place).await,
        (None, None) => demo().await,
        _ => Err("--name and --release go together; see --help".into()),
    }
}

/// A node of one release: it takes orders, and sends them.
async fn desk<Order: Message + From<String> + std::fmt::Debug>(place: &Place) -> Result<()> {
    let refused = |refused: &distribute::RefusedMessage| {
        say!("cannot read what {} sends: {}", refused.from.name(), refused.error)
    };
    let node = place.builder()?.on_refused(refused).start().await?;
    let read = Method::<Order, String>::new("shop.read");
    node.rpc().serve(read.clone(), |_call, order| async move { format!("{order:?}") })?;
    say!("node {}", node.name());
    node.ready().await?;
    let mut orders = node.mailbox::<Order>();
    let desk = |node: &NodeName| Name::<Order>::parse(format!("desk/{}", node.local()));
    node.registry().register(desk(node.name())?, &orders).await?;
    say!("ready, release {}", Order::VERSION);

    let mut typed = common::input();
    loop {
        let line = tokio::select! {
            line = typed.recv() => line,
            Some(order) = orders.recv() => {
                say!("reads {order:?}");
                continue;
            }
        };
        let Some(line) = line else { break };
        let mut words = line.splitn(3, ' ');
        let (command, other) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let order = Order::from(words.next().unwrap_or_default().to_owned());
        let other: NodeName = other.parse()?;
        match command {
            "send" => {
                // A name that was registered a moment ago may not be known here yet.
                let sending =
                    async { Ok(node.registry().wait_for(desk(&other)?).timeout(SOON).await?.send(order).await?) };
                match sending.await as Result<()> {
                    Ok(()) => say!("sent"),
                    Err(error) => say!("not sent: {}", explain(&*error)),
                }
            }
            "call" => match node.rpc().call(&other, read.clone(), order).await {
                Ok(answer) => say!("it was read as {answer}"),
                Err(error) => say!("it was not read: {} (effect: {:?})", explain(&error), error.effect()),
            },
            "refusals" => {
                let refusals = node.cluster().refusals(&other).unwrap_or_default();
                say!("{} could not read {} of this node's messages, for their version", other, refusals.wrong_version);
            }
            _ => say!("send NODE TEXT, call NODE TEXT, or refusals NODE"),
        }
    }
    node.shutdown().await;
    Ok(())
}

/// The upgrade.
async fn demo() -> Result<()> {
    let mut stage = Stage::new()?;
    let mut a = start(&mut stage, "a", 1).await?;
    let mut b = start(&mut stage, "b", 1).await?;
    send(&mut a, "tea", &mut b, r#"Order { item: "tea" }"#).await?;

    say!("\nNode b is upgraded, node a is not yet");
    let name = b.node.clone();
    b.end().await?;
    let mut b = start(&mut stage, &name, 2).await?;
    send(&mut a, "cake", &mut b, r#"Order { item: "cake", note: "from before there were notes" }"#).await?;
    send(&mut b, "jam", &mut a, r#"Order { item: "jam" }"#).await?;
    call(&mut a, "cake", &b, r#"read as Order { item: "cake", note: "from before there were notes" }"#).await?;
    call(&mut b, "jam", &a, r#"read as Order { item: "jam" }"#).await?;

    say!("\nA node of release 3 joins, and what it sends cannot be read by the others");
    let mut c = start(&mut stage, "c", 3).await?;
    send(&mut a, "milk", &mut c, r#"Order { items: ["milk"], note: "from before there were notes" }"#).await?;
    send(&mut b, "rice", &mut c, r#"Order { items: ["rice"], note: "soon" }"#).await?;
    for old in [&mut a, &mut b] {
        c.say(&format!("send {} salt", old.node)).await?;
        old.expect(&format!("cannot read what {} sends: ", c.node)).await?;
        until_told(&mut c, &old.node).await?;
        call(&mut c, "salt", old, "(effect: NotDone)").await?;
    }

    say!("\nAll are upgraded");
    let (of_a, of_b) = (a.node.clone(), b.node.clone());
    a.end().await?;
    b.end().await?;
    let mut a = start(&mut stage, &of_a, 3).await?;
    let mut b = start(&mut stage, &of_b, 3).await?;
    for desk in [&mut a, &mut b] {
        send(&mut c, "salt", desk, r#"Order { items: ["salt"], note: "soon" }"#).await?;
    }
    for desk in [a, b, c] {
        desk.end().await?;
    }
    Ok(())
}

async fn start(stage: &mut Stage, name: &str, release: u32) -> Result<Process> {
    let mut desk = stage.start(name, &["--release", &release.to_string()]).await?;
    desk.expect("ready, release ").await?;
    Ok(desk)
}

async fn send(from: &mut Process, item: &str, to: &mut Process, reads: &str) -> Result<()> {
    from.say(&format!("send {} {item}", to.node)).await?;
    from.expect("sent").await?;
    to.expect(&format!("reads {reads}")).await.map(drop)
}

async fn call(from: &mut Process, item: &str, to: &Process, answer: &str) -> Result<()> {
    from.say(&format!("call {} {item}", to.node)).await?;
    from.expect(answer).await.map(drop)
}

/// The sender is told soon, but not at once.
async fn until_told(sender: &mut Process, reader: &str) -> Result<()> {
    let asking = async {
        loop {
            sender.say(&format!("refusals {reader}")).await?;
            if sender.expect("could not read").await?.contains("could not read 1 ") {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.map_err(|_| "the sender is not told")?
}
