//! Node B: finds the calculator by its name, on whatever node it runs, and gives it numbers.
//!
//! ```text
//! customer b@10.0.0.2:4370 cluster.cookie a@10.0.0.1:4370 3 4 5
//! ```
//!
//! The third argument is a node of the cluster, any of them; the cookie is a copy of the calculator's.

use std::time::Duration;

use distribute::{Cookie, Node};
use two_nodes::messages::{Add, CALCULATOR};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, name, cookie_file, join, numbers @ ..] = &*arguments else {
        return Err("usage: customer NODE COOKIE-FILE JOIN NUMBER...".into());
    };

    let node = Node::builder(name).cookie(Cookie::load(cookie_file)?).join(join).start().await?;
    let calculator = node.registry().wait_for(CALCULATOR).timeout(Duration::from_secs(10)).await?;
    println!("the calculator is on {}", calculator.node().name());
    for number in numbers {
        let number = number.parse()?;
        let sum = calculator.ask(|reply_to| Add { number, reply_to }).await?;
        println!("sent {number}, the sum is {sum}");
    }
    node.shutdown().await;
    Ok(())
}
