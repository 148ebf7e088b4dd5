//! What is compared with what, and what is aimed at.

use distribute::{Address, Bytes};
use quinn::Connection;
use tokio::task::JoinSet;

use crate::baseline::{self, MuxCalls, Pace, StreamCalls};
use crate::far::{Far, Places, Secrets};
use crate::load::{Contender, Sample, ask_from};
use crate::measure::resident_kib;
use crate::ours::{self, Pair, Reading, send_to_all};
use crate::raw::{QUINN_MTU, Raw};
use crate::{JUMBO_MTU, LARGE, SMALL};

/// Senders of large messages.
const SENDERS: usize = 4;

/// Loads that take turns, and the rows that come of them.
pub(crate) struct Group {
    pub(crate) contenders: Vec<Contender>,
    pub(crate) rows: Vec<Row>,
    /// Printed below the table.
    pub(crate) notes: Vec<String>,
    /// Keeps the near nodes running: addresses alone do not.
    _pairs: Vec<Pair>,
}

/// What is known of a group before it is set up.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    /// Also on a multi-thread runtime.
    pub(crate) on_multi: bool,
    pub(crate) placement: Placement,
}

/// Where the two ends run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Each on a CPU of its own, where each is one thread: left alone, the scheduler now puts them on one CPU and now on
    /// two, and the figures differ by half.
    Apart,
    Together,
    Free,
}

const fn plan(name: &'static str, on_multi: bool, placement: Placement) -> Plan {
    Plan { name, on_multi, placement }
}

pub(crate) const PLANS: [Plan; 10] = [
    plan("one-way-64", true, Placement::Apart),
    plan("one-way-1k", true, Placement::Apart),
    plan("one-way-1m", true, Placement::Apart),
    plan("call-one-cpu", false, Placement::Together),
    plan("call", true, Placement::Free),
    plan("calls-64", true, Placement::Apart),
    plan("calls-256", true, Placement::Apart),
    plan("call-beside-bulk", true, Placement::Apart),
    plan("local", true, Placement::Apart),
    plan("unread", false, Placement::Apart),
];

/// One line of the table.
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) quantity: Quantity,
    pub(crate) ours: String,
    /// What it is compared with: in each round the best of these.
    pub(crate) baseline: Vec<String>,
    pub(crate) target: Target,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quantity {
    PerSecond,
    MibPerSecond,
    BesideMibPerSecond,
    P50,
    P99,
    Cpu,
}

impl Quantity {
    pub(crate) fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::PerSecond | Self::MibPerSecond => sample.per_second,
            Self::BesideMibPerSecond => sample.beside_per_second,
            Self::P50 => sample.p50_us,
            Self::P99 => sample.p99_us,
            Self::Cpu => sample.cpu_us,
        }
    }

    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::PerSecond | Self::MibPerSecond | Self::BesideMibPerSecond)
    }
}

/// What a row aims at.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    None,
    /// A ratio to the baseline, at least or at most, whichever is good of that quantity.
    Ratio(f64),
    /// A value of ours, likewise.
    Value(f64),
}

/// The two ends, as a group sees them.
struct Ends<'a> {
    secrets: &'a Secrets,
    places: &'a Places,
}

impl Ends<'_> {
    async fn raw(&self) -> Connection {
        self.raw_at(self.places.raw, QUINN_MTU).await
    }

    async fn raw_at(&self, address: std::net::SocketAddr, mtu: u16) -> Connection {
        let raw = Raw::new(self.secrets.identity.clone(), mtu);
        raw.endpoint().connect_with(raw.client(), address, "localhost").unwrap().await.unwrap()
    }

    async fn pair(&self) -> Pair {
        Pair::connect(ours::start("near", &self.secrets.cookie, QUINN_MTU).await, &self.places.node).await
    }

    async fn jumbo_pair(&self) -> Pair {
        Pair::connect(ours::start("near", &self.secrets.cookie, JUMBO_MTU).await, &self.places.node_jumbo).await
    }
}

/// Sets a group up: links, mailboxes, and the loads that will take turns on them.
pub(crate) async fn build(name: &str, secrets: &Secrets, far: &mut Far) -> Group {
    let places = far.places.clone();
    let ends = &Ends { secrets, places: &places };
    match name {
        "one-way-64" => small_messages(ends).await,
        "one-way-1k" => messages_of_1k(ends).await,
        "one-way-1m" => large_messages(ends).await,
        "call-one-cpu" => one_caller(ends, ", one CPU", Target::Ratio(1.15)).await,
        "call" => one_caller(ends, ", free placement", Target::None).await,
        "calls-64" => many_callers(ends, 64, 0.7).await,
        "calls-256" => many_callers(ends, 256, 0.6).await,
        "call-beside-bulk" => call_beside_bulk(ends).await,
        "local" => local(ends).await,
        "unread" => unread(ends, far).await,
        other => unreachable!("{other} is no group"),
    }
}

fn row(what: impl Into<String>, quantity: Quantity, ours: impl Into<String>, baseline: &[&str], target: Target) -> Row {
    let baseline = baseline.iter().map(|name| (*name).to_owned()).collect();
    Row { what: what.into(), quantity, ours: ours.into(), baseline, target }
}

async fn small_messages(ends: &Ends<'_>) -> Group {
    let (raw, pair) = (ends.raw().await, ends.pair().await);
    let (one, many) = (pair.open(1).await, pair.open(1000).await);
    let reading = pair.open_readings().await;
    let (to_channel, message) = (raw.clone(), payload(SMALL));
    let for_many = message.clone();
    let contenders = vec![
        Contender::far("raw", move |tasks| baseline::messages(tasks, &raw, SMALL)),
        Contender::far("raw into a channel", move |tasks| baseline::messages_to_channel(tasks, &to_channel, SMALL)),
        Contender::far("ours", move |tasks| send_to_all(tasks, one.clone(), &message)),
        Contender::far("ours to 1000", move |tasks| send_to_all(tasks, many.clone(), &for_many)),
        Contender::far("ours of a struct", move |tasks| send_to_all(tasks, vec![reading.clone()], &Reading::example())),
    ];
    let rate = Quantity::PerSecond;
    let rows = vec![
        row("one-way 64 B", rate, "ours", &["raw"], Target::Ratio(0.6)),
        row("one-way 64 B, raw into a channel", rate, "ours", &["raw into a channel"], Target::None),
        row("one-way struct of 64 B", rate, "ours of a struct", &["raw"], Target::None),
        row("one-way 64 B to 1000 mailboxes, beside to one", rate, "ours to 1000", &["ours"], Target::Ratio(0.5)),
    ];
    Group { contenders, rows, notes: Vec::new(), _pairs: vec![pair] }
}

async fn messages_of_1k(ends: &Ends<'_>) -> Group {
    const SIZE: usize = 1024;
    let (raw, pair) = (ends.raw().await, ends.pair().await);
    let (addresses, message) = (pair.open(1).await, payload(SIZE));
    let contenders = vec![
        Contender::far("raw", move |tasks| baseline::messages(tasks, &raw, SIZE)),
        Contender::far("ours", move |tasks| send_to_all(tasks, addresses.clone(), &message)),
    ];
    let rows = vec![row("one-way 1 KiB", Quantity::PerSecond, "ours", &["raw"], Target::Ratio(0.85))];
    Group { contenders, rows, notes: Vec::new(), _pairs: vec![pair] }
}

const RAW_BULK: &[&str] = &["raw", "raw acknowledged"];

async fn large_messages(ends: &Ends<'_>) -> Group {
    let (pair, jumbo_pair) = (ends.pair().await, ends.jumbo_pair().await);
    let contenders = vec![
        raw_bulk("raw", ends.raw().await, Pace::Taken),
        raw_bulk("raw acknowledged", ends.raw().await, Pace::Acknowledged),
        bulk("ours", &pair).await,
        raw_bulk("raw jumbo", ends.raw_at(ends.places.raw_jumbo, JUMBO_MTU).await, Pace::Taken),
        bulk("ours jumbo", &jumbo_pair).await,
    ];
    let rate = Quantity::MibPerSecond;
    let rows = vec![
        row("1 MiB messages", rate, "ours", RAW_BULK, Target::Ratio(0.9)),
        row("1 MiB messages, MTU 6000, raw at its default", rate, "ours jumbo", RAW_BULK, Target::Ratio(1.8)),
        row("1 MiB messages, MTU 6000, both", rate, "ours jumbo", &["raw jumbo"], Target::None),
    ];
    Group { contenders, rows, notes: Vec::new(), _pairs: vec![pair, jumbo_pair] }
}

fn raw_bulk(name: &str, raw: Connection, pace: Pace) -> Contender {
    Contender::far(name, move |tasks| baseline::large_messages(tasks, &raw, SENDERS, LARGE, pace))
}

async fn bulk(name: &str, pair: &Pair) -> Contender {
    let (addresses, message) = (pair.open(1).await, payload(LARGE));
    Contender::far(name, move |tasks| send_bulk(tasks, &addresses, &message))
}

fn send_bulk(tasks: &mut JoinSet<()>, addresses: &[Address<Bytes>], message: &Bytes) {
    (0..SENDERS).for_each(|_| send_to_all(tasks, addresses.to_vec(), message));
}

const RAW_CALLS: &[&str] = &["raw streams", "raw mux"];

async fn one_caller(ends: &Ends<'_>, placement: &str, target: Target) -> Group {
    let rows = vec![
        row(format!("call 64 B{placement}, p50"), Quantity::P50, "ours", RAW_CALLS, target),
        row(format!("call 64 B{placement}, p99"), Quantity::P99, "ours", RAW_CALLS, Target::None),
    ];
    calls(ends, 1, rows).await
}

async fn many_callers(ends: &Ends<'_>, callers: usize, target: f64) -> Group {
    let what = format!("calls 64 B, {callers} callers");
    let rows = vec![
        row(&what, Quantity::PerSecond, "ours", RAW_CALLS, Target::Ratio(target)),
        row(what + ", CPU", Quantity::Cpu, "ours", RAW_CALLS, Target::Ratio(1.5)),
    ];
    calls(ends, callers, rows).await
}

async fn calls(ends: &Ends<'_>, callers: usize, rows: Vec<Row>) -> Group {
    let (raw, pair) = (ends.raw().await, ends.pair().await);
    let (streams, ours) = (StreamCalls::new(&raw, SMALL), pair.calls(SMALL));
    let contenders = vec![
        Contender::near("raw streams", move |tasks, tally| ask_from(tasks, tally, callers, &streams)),
        Contender::near("raw mux", move |tasks, tally| {
            let mux = MuxCalls::start(&raw, SMALL);
            ask_from(tasks, tally, callers, &mux);
        }),
        Contender::near("ours", move |tasks, tally| ask_from(tasks, tally, callers, &ours)),
    ];
    Group { contenders, rows, notes: Vec::new(), _pairs: vec![pair] }
}

async fn call_beside_bulk(ends: &Ends<'_>) -> Group {
    let (raw, pair) = (ends.raw().await, ends.pair().await);
    let (addresses, message) = (pair.open(1).await, payload(LARGE));
    let calls = pair.calls(SMALL);
    let contenders = vec![
        raw_call_beside_bulk("raw", raw.clone(), Pace::Taken),
        raw_call_beside_bulk("raw acknowledged", raw, Pace::Acknowledged),
        Contender::near("ours", move |tasks, tally| {
            send_bulk(tasks, &addresses, &message);
            ask_from(tasks, tally, 1, &calls);
        }),
    ];
    let rows = vec![
        row("call 64 B beside bulk, p50", Quantity::P50, "ours", RAW_BULK, Target::Ratio(1.3)),
        row("call 64 B beside bulk, p99", Quantity::P99, "ours", RAW_BULK, Target::Value(3000.0)),
        row("bulk beside a caller", Quantity::BesideMibPerSecond, "ours", RAW_BULK, Target::None),
    ];
    Group { contenders, rows, notes: Vec::new(), _pairs: vec![pair] }
}

fn raw_call_beside_bulk(name: &str, raw: Connection, pace: Pace) -> Contender {
    Contender::near(name, move |tasks, tally| {
        baseline::large_messages(tasks, &raw, SENDERS, LARGE, pace);
        ask_from(tasks, tally, 1, &StreamCalls::new(&raw, SMALL));
    })
}

async fn local(ends: &Ends<'_>) -> Group {
    let pair = ends.pair().await;
    let node = pair.near.clone();
    let contenders = vec![Contender::near("ours", move |tasks, tally| ours::send_within(&node, tasks, tally))];
    let rows = vec![row("send on one node, 64 B", Quantity::PerSecond, "ours", &[], Target::Value(5e6))];
    Group { contenders, rows, notes: Vec::new(), _pairs: vec![pair] }
}

/// How many mailboxes on the link nobody reads; each is full.
const UNREAD: [u32; 4] = [0, 1, 100, 1000];

async fn unread(ends: &Ends<'_>, far: &mut Far) -> Group {
    const CALLERS: usize = 64;
    let mut group = Group { contenders: Vec::new(), rows: Vec::new(), notes: Vec::new(), _pairs: Vec::new() };
    for unread in UNREAD {
        let pair = ends.pair().await;
        let before = resident_mib(far);
        pair.stuff(unread, SMALL).await;
        let grown = resident_mib(far) - before;
        group
            .notes
            .push(format!("{unread} full mailboxes of 64 B messages: {grown:.1} MiB resident, both ends together"));
        let (calls, addresses, message) = (pair.calls(SMALL), pair.open(1).await, payload(SMALL));
        let messages = Contender::far(format!("messages, {unread}"), move |tasks| {
            send_to_all(tasks, addresses.clone(), &message);
        });
        let calls = Contender::near(format!("calls, {unread}"), move |tasks, tally| {
            ask_from(tasks, tally, CALLERS, &calls);
        });
        group.contenders.extend([messages, calls]);
        group._pairs.push(pair);
    }
    for (what, kind) in [("one-way 64 B", "messages"), ("calls, 64 callers", "calls")] {
        for unread in &UNREAD[1..] {
            let (ours, unloaded) = (format!("{kind}, {unread}"), format!("{kind}, 0"));
            let what = format!("{what}, {unread} unread");
            group.rows.push(row(&what, Quantity::PerSecond, &ours, &[&unloaded], Target::Ratio(0.9)));
            group.rows.push(row(what + ", CPU", Quantity::Cpu, &ours, &[&unloaded], Target::Ratio(1.15)));
        }
    }
    group
}

fn payload(size: usize) -> Bytes {
    Bytes::from(vec![7; size])
}

fn resident_mib(far: &mut Far) -> f64 {
    (far.report().resident_kib + resident_kib()) / 1024.0
}
