//! Node A: keeps a running sum, under the name `calculator`, until it is interrupted.
//!
//! ```text
//! calculator a@10.0.0.1:4370 cluster.cookie
//! ```
//!
//! It makes the cookie if there is none.

use distribute::{Cookie, Node};
use two_nodes::messages::{Add, CALCULATOR};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, name, cookie_file] = &*arguments else { return Err("usage: calculator NODE COOKIE-FILE".into()) };

    let node = Node::builder(name).cookie(Cookie::load_or_generate(cookie_file)?).start().await?;
    let mut questions = node.mailbox();
    node.registry().register(CALCULATOR, &questions).await?;
    println!("{} is ready", node.name());

    let mut sum: i64 = 0;
    loop {
        tokio::select! {
            Some(Add { number, reply_to }) = questions.recv() => {
                sum = sum.wrapping_add(number);
                println!("calculator got {number}, the sum is {sum}");
                // Whoever asked may have given up.
                let _ = reply_to.reply(sum).await;
            }
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    node.shutdown().await;
    println!("{} has left", node.name());
    Ok(())
}
