//! Whole nodes under everything: they come and go, in good order and without a word, while all of them are asked for all that
//! they offer; and whenever that pauses, what each was told must be true.
//!
//! A seed fixes what is asked and which faults happen, but not every packet of QUIC. So what is checked are promises, not
//! times.

mod books;
mod links;
mod run;

use run::Run;
use tokio::time::Instant;

use crate::common::{millis, secs};

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// A cluster grows from one node to ten and shrinks to one again, by good-byes and by deaths in turn, under load. After each step all
/// is as it must be. `CHURN_MINUTES=n` do it again and again for so long, in virtual time; `SEED=n` replays one.
#[tokio::test(start_paused = true)]
async fn a_cluster_grows_and_shrinks_under_load() {
    const PEAK: usize = 10;
    let minutes = variable("CHURN_MINUTES");
    let end = Instant::now() + secs(60 * minutes.unwrap_or(0));
    let real = std::time::Instant::now();
    let baseline = tasks();
    let mut run = Run::new(variable("SEED").unwrap_or(146));
    run.start(1).await;
    let mut is_kill = false;
    loop {
        while run.lives.len() < PEAK {
            let host = run.free_host();
            run.start(host).await;
            run.busy(secs(2)).await;
            run.rest().await;
        }
        while run.lives.len() > 1 {
            let host = run.some_host();
            if is_kill {
                run.kill(host)
            } else {
                run.stop(host)
            }
            is_kill = !is_kill;
            run.busy(secs(3)).await;
            run.rest().await;
        }
        if minutes.is_some() {
            println!(
                "SEED={}: after {:?}, {:?} to go, {:?}",
                run.seed,
                real.elapsed(),
                end - Instant::now(),
                run.counts
            );
        }
        if Instant::now() >= end {
            break;
        }
    }
    run.pause(millis(1)).await;
    run.end(baseline).await;
    println!("it took {:?}", real.elapsed());
}

/// Random requests and faults, among three to seven nodes. At each rest, what every handle was told is true on every node, and
/// each mailbox has what was reported as delivered to it. `SEEDS=n` runs as many histories, from `SEED=n` on; `SEED=n` alone that
/// one.
#[tokio::test(start_paused = true)]
async fn what_nodes_are_told_is_true_whatever_happens() {
    const MOST: usize = 7;
    let (seed, seeds) = (variable("SEED"), variable("SEEDS"));
    let (first, many) = (seed.unwrap_or(1), seeds.unwrap_or_else(|| if seed.is_some() { 1 } else { 3 }));
    let real = std::time::Instant::now();
    for seed in first..first + many {
        let mut run = Run::new(seed);
        let size = run.rng.usize(3..=MOST);
        while run.lives.len() < size {
            let host = run.free_host();
            run.start(host).await;
        }
        run.rest().await;
        for _ in 0..3 {
            for _ in 0..80 {
                run.happen(MOST).await;
            }
            run.rest().await;
        }
        run.end(0).await;
        println!("SEED={seed}: after {:?}", real.elapsed());
    }
}

/// Nine nodes: two sides and one alone, each of which goes on; while they find each other again, one says good-bye, one is
/// killed, two are new and one begins another life. In the end there is one membership, and one table of names.
#[tokio::test(start_paused = true)]
async fn nine_nodes_under_everything_end_as_one_cluster() {
    let real = std::time::Instant::now();
    let mut run = Run::new(variable("SEED").unwrap_or(146));
    for host in 1..=9 {
        run.start(host).await;
    }
    run.rest().await;
    run.busy(secs(2)).await;
    run.cut(&[1, 2, 3, 4], &[5, 6, 7, 8, 9]);
    run.cut(&[5, 6, 7, 8], &[9]);
    run.busy(secs(2)).await;
    run.kill(4);
    // By now each side takes the others for dead.
    run.pause(secs(30)).await;
    run.busy(secs(3)).await;
    run.heal();
    run.busy(millis(200)).await;
    run.stop(2);
    run.kill(7);
    run.start(10).await;
    run.busy(millis(500)).await;
    run.start(4).await;
    run.start(11).await;
    run.busy(secs(5)).await;
    run.rest().await;
    assert_eq!(run.hosts(), [1, 3, 4, 5, 6, 8, 9, 10, 11]);
    let lost: u64 = run.lives.values().map(|life| life.node.registry().counters().lost).sum();
    assert!(lost > 0, "SEED={}: the sides gave no name twice", run.seed);
    run.end(0).await;
    println!("{lost} names were lost to an older claim; it took {:?}", real.elapsed());
}
