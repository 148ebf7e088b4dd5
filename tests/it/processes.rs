//! Nodes in processes of their own, over loopback: what SIGKILL, SIGSTOP and SIGCONT do.

use std::path::{Path, PathBuf};
use std::time::Instant;

use distribute::{Address, CallError, Config, Cookie, DownReason, Effect, Method, Node, NodeEvent};

use crate::children::{Process, live};
use crate::common::{millis, next, quiet, secs};

const ECHO: Method<u64, u64> = Method::new("echo");
const SLEEP: Method<(), ()> = Method::new("sleep");
const COUNTER: Method<(), Address<u64>> = Method::new("counter");
const SUM: Method<(), u64> = Method::new("sum");

const COOKIE_FILE: &str = "DISTRIBUTE_TEST_COOKIE_FILE";

/// Signs of life five times as fast as the defaults, so that a dead process is noticed in 2 s.
fn config() -> Config {
    let mut config = Config::default();
    config.sign_of_life_every = millis(600);
    config.link_lost_after = secs(2);
    config
}

async fn node(name: &str, cookie: Cookie) -> Node {
    Node::builder(format!("{name}@127.0.0.1:0")).cookie(cookie).config(config()).start().await.unwrap()
}

/// The other process; by itself it is no test. It lives until its standard input ends.
#[tokio::test]
async fn child() {
    let Ok(file) = std::env::var(COOKIE_FILE) else { return };
    let node = node("child", Cookie::load(file).unwrap()).await;
    let mut numbers = node.mailbox::<u64>();
    let address = numbers.address();
    let (sum, seen) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        while let Some(n) = numbers.recv().await {
            sum.send_modify(|sum| *sum += n);
        }
    });
    node.rpc().serve(ECHO, |_, n| async move { n }).unwrap();
    node.rpc().serve(SLEEP, |_, ()| std::future::pending()).unwrap();
    node.rpc().serve(COUNTER, move |_, ()| std::future::ready(address.clone())).unwrap();
    node.rpc().serve(SUM, move |_, ()| std::future::ready(*seen.borrow())).unwrap();
    live(node).await;
}

fn start(cookie_file: &Path) -> Process {
    Process::start("processes::child", COOKIE_FILE, cookie_file)
}

async fn parent() -> (Node, tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("cookie");
    let cookie = Cookie::load_or_generate(&file).unwrap();
    (node("parent", cookie).await, directory, file)
}

/// Messages and calls between two processes, and a leave in good order.
#[tokio::test]
async fn two_processes_work_together() {
    let (node, _directory, file) = parent().await;
    let mut other = start(&file);
    let mut events = node.cluster().node_events();
    let numbers = node.rpc().call(&other.name, COUNTER, ()).await.unwrap();
    assert!(matches!(next(&mut events).await, NodeEvent::Up(_)));
    for n in 1..=10_000 {
        numbers.send(n).await.unwrap();
    }
    let deadline = Instant::now() + secs(20);
    while node.rpc().call(&other.name, SUM, ()).await != Ok(50_005_000) {
        assert!(Instant::now() < deadline, "not all has arrived");
    }
    drop(other.child.stdin.take());
    assert!(matches!(next(&mut events).await, NodeEvent::Down(_, DownReason::Left)));
    assert!(other.child.wait().unwrap().success());
}

/// A killed process fails the call that waits for it, within the loss of a link.
#[tokio::test]
async fn a_killed_process_is_noticed() {
    let (node, _directory, file) = parent().await;
    let mut other = start(&file);
    let mut events = node.cluster().node_events();
    assert_eq!(node.rpc().call(&other.name, ECHO, 1).await, Ok(1));
    assert!(matches!(next(&mut events).await, NodeEvent::Up(_)));
    let (rpc, name) = (node.rpc(), other.name.clone());
    let waiting = tokio::spawn(async move { rpc.call(&name, SLEEP, ()).timeout(secs(60)).await });
    node.cluster().ping(&other.name, secs(5)).await.unwrap();
    other.child.kill().unwrap();
    let killed = Instant::now();
    let error = waiting.await.unwrap().unwrap_err();
    println!("a killed process was noticed after {:?}", killed.elapsed());
    assert!(matches!(error, CallError::Disconnected(_)), "{error:?}");
    assert_eq!(error.effect(), Effect::Unknown);
    assert!(killed.elapsed() < secs(5), "{:?}", killed.elapsed());
    assert!(matches!(next(&mut events).await, NodeEvent::Down(_, DownReason::Lost)));
}

/// A process that stands still for less than the loss of a link is not lost; one that stands longer is, and is back at
/// the next call after it goes on.
#[tokio::test]
async fn a_stopped_process_is_lost_in_time_and_comes_back() {
    let (node, _directory, file) = parent().await;
    let other = start(&file);
    let mut events = node.cluster().node_events();
    assert_eq!(node.rpc().call(&other.name, ECHO, 1).await, Ok(1));
    assert!(matches!(next(&mut events).await, NodeEvent::Up(_)));

    other.signal("STOP");
    let (rpc, name) = (node.rpc(), other.name.clone());
    let slow = tokio::spawn(async move { rpc.call(&name, ECHO, 2).timeout(secs(60)).await });
    assert!(quiet(&mut events, secs(1)).await);
    other.signal("CONT");
    assert_eq!(slow.await.unwrap(), Ok(2));

    other.signal("STOP");
    let (rpc, name) = (node.rpc(), other.name.clone());
    let stuck = tokio::spawn(async move { rpc.call(&name, ECHO, 3).timeout(secs(60)).await });
    assert!(matches!(next(&mut events).await, NodeEvent::Down(_, DownReason::Lost)));
    assert!(matches!(stuck.await.unwrap(), Err(CallError::Disconnected(_))));
    other.signal("CONT");
    let deadline = Instant::now() + secs(20);
    while node.rpc().call(&other.name, ECHO, 4).await != Ok(4) {
        assert!(Instant::now() < deadline, "the process does not come back");
    }
    assert!(matches!(next(&mut events).await, NodeEvent::Up(_)));
}
