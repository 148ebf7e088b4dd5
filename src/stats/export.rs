//! The counts of a node for the `metrics` facade.
//!
//! They are published every few seconds out of [`NodeStats`], instead of being counted twice: so there is one truth, and a
//! message costs the same with and without the feature.

use std::sync::Arc;
use std::time::Duration;

use metrics::Unit;

use super::NodeStats;
use crate::driver::Shared;

/// How often a node publishes its counts.
const PUBLISH_EVERY: Duration = Duration::from_secs(5);

/// One metric: its name, its unit, what it tells, and where that is.
struct Metric {
    name: &'static str,
    unit: Unit,
    help: &'static str,
    value: Value,
}

enum Value {
    /// Only rises.
    Counter(fn(&NodeStats) -> u64),
    /// Is so now.
    Gauge(fn(&NodeStats) -> f64),
}

const fn counter(name: &'static str, unit: Unit, help: &'static str, value: fn(&NodeStats) -> u64) -> Metric {
    Metric { name, unit, help, value: Value::Counter(value) }
}

const fn gauge(name: &'static str, unit: Unit, help: &'static str, value: fn(&NodeStats) -> f64) -> Metric {
    Metric { name, unit, help, value: Value::Gauge(value) }
}

/// The round trip of each link, at each publication.
const ROUND_TRIP: &str = "distribute_round_trip_seconds";

/// All others. Their documentation is at [`NodeStats`].
#[rustfmt::skip]
static METRICS: &[Metric] = &[
    counter("distribute_messages_sent_total", Unit::Count, "Messages sent to other nodes", |s| s.traffic.sent.messages),
    counter("distribute_messages_received_total", Unit::Count, "Messages of other nodes", |s| s.traffic.received.messages),
    counter("distribute_copies_sent_total", Unit::Count, "Copies of broadcasts sent", |s| s.traffic.sent.copies),
    counter("distribute_copies_received_total", Unit::Count, "Copies of broadcasts received", |s| s.traffic.received.copies),
    counter("distribute_requests_sent_total", Unit::Count, "Requests of calls and casts sent", |s| s.traffic.sent.requests),
    counter("distribute_requests_received_total", Unit::Count, "Requests of calls and casts received", |s| s.traffic.received.requests),
    counter("distribute_answers_sent_total", Unit::Count, "Answers, items and replies sent", |s| s.traffic.sent.answers),
    counter("distribute_answers_received_total", Unit::Count, "Answers, items and replies received", |s| s.traffic.received.answers),
    counter("distribute_body_bytes_sent_total", Unit::Bytes, "Bytes of bodies sent", |s| s.traffic.sent.bytes()),
    counter("distribute_body_bytes_received_total", Unit::Bytes, "Bytes of bodies received", |s| s.traffic.received.bytes()),
    counter("distribute_messages_local_total", Unit::Count, "Messages within the node", |s| s.local_messages),
    counter("distribute_messages_full_total", Unit::Count, "Messages turned away as full", |s| s.traffic.full),
    counter("distribute_messages_undeliverable_total", Unit::Count, "Messages that came for closed mailboxes", |s| s.traffic.undeliverable),
    counter("distribute_messages_refused_total", Unit::Count, "Messages that mailboxes could not read", |s| s.incidents.messages_refused),
    counter("distribute_handshakes_total", Unit::Count, "Handshakes of others that were let begin", |s| s.admission.admitted),
    counter("distribute_handshakes_failed_total", Unit::Count, "Of these: those that were refused", |s| s.admission.failed),
    counter("distribute_handshakes_turned_away_total", Unit::Count, "Those for which there was no room, or no patience", |s| s.admission.refused + s.admission.ignored + s.admission.ignored_failing),
    counter("distribute_busy_total", Unit::Count, "Times that something began to wait for a peer", |s| s.traffic.busy),
    counter("distribute_blocked_microseconds_total", Unit::Microseconds, "Time that sends, requests and answers waited", |s| s.traffic.blocked.as_micros() as u64),
    counter("distribute_calls_made_total", Unit::Count, "Calls made", |s| s.calls.made),
    counter("distribute_calls_answered_total", Unit::Count, "Calls answered", |s| s.calls.answered),
    counter("distribute_calls_failed_total", Unit::Count, "Calls that failed, other than in time", |s| s.calls.failed),
    counter("distribute_calls_timed_out_total", Unit::Count, "Calls without an answer in time", |s| s.calls.timed_out),
    counter("distribute_calls_given_up_total", Unit::Count, "Calls dropped by who made them", |s| s.calls.given_up),
    counter("distribute_answers_late_total", Unit::Count, "Answers that nobody waited for", |s| s.calls.late),
    counter("distribute_calls_served_total", Unit::Count, "Handlers started", |s| s.calls.served),
    counter("distribute_calls_refused_total", Unit::Count, "Calls turned away for another reason", |s| s.calls.refused),
    counter("distribute_calls_overloaded_total", Unit::Count, "Calls turned away as too many", |s| s.calls.overloaded),
    counter("distribute_casts_total", Unit::Count, "Casts made", |s| s.calls.casts),
    counter("distribute_casts_failed_total", Unit::Count, "Casts that came to nothing here", |s| s.calls.casts_failed),
    counter("distribute_handlers_panicked_total", Unit::Count, "Handlers that panicked", |s| s.incidents.handlers_panicked),
    counter("distribute_actors_panicked_total", Unit::Count, "Panics of actors", |s| s.incidents.actors_panicked),
    counter("distribute_actors_restarted_total", Unit::Count, "Restarts of actors", |s| s.incidents.actors_restarted),
    counter("distribute_sessions_begun_total", Unit::Count, "Sessions that began", |s| s.incidents.sessions_begun),
    counter("distribute_sessions_lost_total", Unit::Count, "Sessions that ended without a good-bye", |s| s.incidents.sessions_lost),
    counter("distribute_disconnects_forced_total", Unit::Count, "Sessions ended by force", |s| s.incidents.disconnects_forced),
    counter("distribute_frames_rejected_total", Unit::Count, "Links closed because of a frame", |s| s.incidents.frames_rejected),
    counter("distribute_frames_skipped_total", Unit::Count, "Frames of a later protocol skipped", |s| s.incidents.frames_skipped),
    counter("distribute_links_refused_total", Unit::Count, "Incoming links refused", |s| s.incidents.links_refused),
    counter("distribute_dials_failed_total", Unit::Count, "Dials that did not lead to a link", |s| s.incidents.dials_failed),
    counter("distribute_lives_refused_total", Unit::Count, "Second lives of a live name refused", |s| s.incidents.lives_refused),
    counter("distribute_packets_dropped_total", Unit::Count, "Packets of membership dropped", |s| s.incidents.packets_dropped_in + s.incidents.packets_dropped_out),
    counter("distribute_names_lost_total", Unit::Count, "Names lost to another claim", |s| s.names.lost),
    counter("distribute_member_deaths_total", Unit::Count, "Members declared dead", |s| s.membership.deaths),
    counter("distribute_member_suspicions_total", Unit::Count, "Members suspected", |s| s.membership.suspicions),
    counter("distribute_member_false_alarms_total", Unit::Count, "Suspicions and deaths that were wrong", |s| s.membership.false_alarms),
    gauge("distribute_sessions", Unit::Count, "Sessions now", |s| s.peers.len() as f64),
    gauge("distribute_peers_busy", Unit::Count, "Peers that something waits for now", |s| s.peers.iter().filter(|peer| peer.is_busy()).count() as f64),
    gauge("distribute_buffered_bytes", Unit::Bytes, "Accepted and not written now", |s| s.peers.iter().map(|peer| peer.queues.buffered + peer.queues.bulk_buffered + peer.queues.calls_buffered).sum::<u64>() as f64),
    gauge("distribute_mailboxes", Unit::Count, "Open mailboxes now", |s| s.mailboxes as f64),
    gauge("distribute_unread_messages", Unit::Count, "Unread messages in mailboxes now", |s| s.unread as f64),
    gauge("distribute_calls_waiting", Unit::Count, "Calls to other nodes without an answer now", |s| s.calls.waiting as f64),
    gauge("distribute_handlers", Unit::Count, "Handlers at work now", |s| s.calls.handlers as f64),
    gauge("distribute_uptime_seconds", Unit::Seconds, "Since the node's start", |s| s.uptime.as_secs_f64()),
];

impl NodeStats {
    /// Hands all counts to the recorder of the `metrics` facade, with the node's name as the label `node`.
    ///
    /// A node does so by itself every 5 seconds, and once more at its end: this is for a scrape that wants to be exact, and
    /// for tests.
    pub fn record(&self) {
        // Again each time: the recorder may have been installed since the last.
        describe();
        let node = self.id.name().to_string();
        for Metric { name, value, .. } in METRICS {
            match value {
                Value::Counter(value) => metrics::counter!(*name, "node" => node.clone()).absolute(value(self)),
                Value::Gauge(value) => metrics::gauge!(*name, "node" => node.clone()).set(value(self)),
            }
        }
        let round_trips = metrics::histogram!(ROUND_TRIP, "node" => node);
        for link in self.peers.iter().filter_map(|peer| peer.link) {
            round_trips.record(link.round_trip);
        }
    }
}

/// Publishes the counts of a node until it has stopped.
pub(crate) async fn publish(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    tokio::pin!(stopped);
    loop {
        let is_over = tokio::time::timeout(PUBLISH_EVERY, &mut stopped).await.is_ok();
        super::look(&shared).record();
        if is_over {
            return;
        }
    }
}

fn describe() {
    for Metric { name, unit, help, value } in METRICS {
        match value {
            Value::Counter(_) => metrics::describe_counter!(*name, *unit, *help),
            Value::Gauge(_) => metrics::describe_gauge!(*name, *unit, *help),
        }
    }
    metrics::describe_histogram!(ROUND_TRIP, Unit::Seconds, "Smoothed round trips of links");
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each metric is in the table of the documentation with its kind, and the table has no other.
    #[test]
    fn the_table_of_the_documentation_is_complete() {
        let row = |name: &str, kind: &str, help: &str| format!("/// | `{name}` | {kind} | {help} |");
        let mut rows: BTreeSet<_> = METRICS
            .iter()
            .map(|metric| match metric.value {
                Value::Counter(_) => row(metric.name, "counter", metric.help),
                Value::Gauge(_) => row(metric.name, "gauge", metric.help),
            })
            .collect();
        assert_eq!(rows.len(), METRICS.len(), "no name twice");
        rows.insert(row(ROUND_TRIP, "histogram", "Smoothed round trips of links"));
        let source = include_str!("../stats.rs");
        let found: BTreeSet<_> =
            source.lines().filter(|line| line.starts_with("/// | `distribute_")).map(str::to_owned).collect();
        let missing: Vec<_> = rows.difference(&found).collect();
        assert!(
            missing.is_empty(),
            "not documented:\n{}",
            missing.iter().map(|row| format!("{row}\n")).collect::<String>()
        );
        let superfluous: Vec<_> = found.difference(&rows).collect();
        assert!(superfluous.is_empty(), "{superfluous:#?}");
    }
}
