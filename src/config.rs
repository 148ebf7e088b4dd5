//! Every number that a node goes by, in one struct.

use std::time::Duration;

/// The numbers that a node goes by; every field has a default.
///
/// Limits hold for one node; two nodes need not agree on them. [`Config::validate`] is called at start.
///
/// There are three presets of the times of membership: [`Config::lan`], which is the default, [`Config::wan`] and
/// [`Config::local`]. Use the same on all nodes of a cluster: a node whose suspicions are shorter than the others'
/// declares dead whom the others still give time.
///
/// ```
/// use std::time::Duration;
/// use distribute::Config;
///
/// let mut config = Config::default();
/// config.connect_timeout = Duration::from_secs(2);
/// assert!(config.validate().is_ok());
/// config.lanes = 0;
/// assert!(config.validate().is_err());
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// How long a dial may take from its first packet until both sides are up. A send, a call or a `connect` to a node
    /// without a session waits so long at most. Default 5 s. Too short, and a busy peer or a debug build is never
    /// reached; too long, and callers hang on a host that is off.
    pub connect_timeout: Duration,
    /// How long an incoming link may take for its TLS handshake. Default 5 s. It bounds what strangers can hold open.
    pub handshake_timeout: Duration,
    /// How long a link may take from the end of TLS until it is up, on both sides. Default 5 s.
    pub hello_timeout: Duration,
    /// The first pause after a dial that failed; it doubles with each further failure, less a random part of up to a
    /// half. Default 100 ms.
    pub backoff_min: Duration,
    /// The longest pause between dials to one peer. Default 5 s.
    pub backoff_max: Duration,
    /// A link that nobody used for so long is closed; the session goes on, and the next use dials again. Default 60 s.
    /// Links of nodes that cannot be dialled are kept.
    pub idle_close: Duration,
    /// How long a link waits for a sign of life, while something is outstanding on it, before it asks for one. A question
    /// that is not answered is repeated six times as often. Default 3 s.
    pub sign_of_life_every: Duration,
    /// How often a link that is kept, because one of its nodes cannot be dialled, asks for a sign of life. Default 20 s,
    /// below what address translators commonly remember (RFC 4787 asks for two minutes, many keep 30 s).
    pub keep_alive: Duration,
    /// A link with something outstanding is lost after so long without a sign of life. Default 10 s. Shorter notices a
    /// dead peer sooner and ends sessions over shorter interruptions.
    pub link_lost_after: Duration,
    /// How long an old life of a name may take to answer before a newcomer of that name replaces it. Default 1 s.
    pub conflict_check: Duration,
    /// How often the certificates behind all links are looked at again, against the clock and what is trusted by then; each
    /// change of the trust does so at once. Default 1 h: so long may a link outlive the certificate of its peer.
    pub trust_recheck: Duration,
    /// How long `shutdown` waits for running handlers and for what was accepted to be flushed. Default 5 s.
    pub shutdown_timeout: Duration,
    /// Sessions at one time. Default 1024. Beyond it the session that has been without a link for longest is ended; where
    /// all have links, the newcomer is refused with `LIMIT`.
    pub peers_max: usize,
    /// Peers whose session counts are remembered. Default 4096; at least `peers_max`.
    pub peers_remembered: usize,
    /// Incoming links that may be in their handshake or greeting at one time; more are refused. Default 128, about
    /// 3.5 MiB. From a quarter of it on, who comes must first prove the address, at the cost of a round trip. A source, an
    /// IPv4 address or a /64 of IPv6, that had ten handshakes refused within ten seconds is ignored for ten seconds, unless a
    /// member is known there. See [`Cluster::admission`](crate::Cluster::admission).
    pub handshakes_max: usize,
    /// How many more may be, beside these, of addresses where a member is known. Default 32. None, and a crowd of strangers
    /// keeps members from coming back.
    pub handshakes_reserved: usize,
    /// First packets of strangers that may wait to be looked at. Default 256; more are dropped by QUIC.
    pub incoming_max: usize,
    /// Bytes that may wait of each of these, and of all together. Default 16 KiB and 4 MiB.
    pub incoming_buffer: usize,
    /// See [`incoming_buffer`](Self::incoming_buffer).
    pub incoming_buffer_total: usize,

    /// The largest body of a message, call or answer, in bytes, for sending and for receiving. Default 16 MiB.
    pub message_max: usize,
    /// A message, call or answer of at least so many bytes travels on a stream of its own, so it delays nobody. Default
    /// 64 KiB.
    pub bulk_from: usize,
    /// Streams per link that small messages are spread over, by their mailbox. Default 8, at most 16.
    pub lanes: usize,
    /// Streams per link that calls and answers are spread over. Default 2, at most 8.
    pub call_streams: usize,
    /// Messages of their own stream that are written to one link at one time, and as many calls and answers. Default 4,
    /// at most 8.
    pub bulk_streams: usize,
    /// What one peer may send to one mailbox before the mailbox reads, in bytes; each message counts 128 bytes more than
    /// its body. Default 32 KiB. It grows by itself while the mailbox is read as fast as messages come. A larger message
    /// asks for credit first.
    pub lane_window: usize,
    /// What that may grow to. Default 4 MiB, which fills 320 Mbit/s at 100 ms. A node bounds by
    /// [`window_budget`](Self::window_budget) and [`window_budget_total`](Self::window_budget_total) what all of them take.
    pub lane_window_max: usize,
    /// To how many mailboxes of this node one session may send. Default 8192: with the window this is what one peer can
    /// make this node hold in mailboxes that nobody reads (256 MiB). A peer's send to one more fails with
    /// [`TooManyMailboxes`](crate::SendError::TooManyMailboxes) until one of them closes.
    pub lanes_max: usize,
    /// What the windows of one peer may grow by, all together, in bytes. Default 32 MiB. No mailbox gets more than an eighth
    /// of what is free, so those that are no longer read leave a part for the others.
    pub window_budget: usize,
    /// The same for all peers together. Default 256 MiB.
    pub window_budget_total: usize,
    /// What all messages larger than their window may take of one peer, in bytes, and one message more; frames of one
    /// peer that have not arrived whole may take as much again. Default 32 MiB. Such messages wait their turn.
    pub bulk_budget: usize,
    /// The same for all peers together, in messages that have arrived or are granted. Default 256 MiB.
    pub bulk_budget_total: usize,
    /// What may wait between acceptance and the socket, in bytes per peer: small messages and small calls each. Default
    /// 1 MiB.
    pub send_buffer: usize,
    /// The same for large messages and large calls, until the peer's QUIC has them. One message always may. Default 4 MiB.
    pub bulk_buffer: usize,
    /// Messages that a mailbox holds of senders on its own node before `send` waits. Default 1024.
    pub mailbox_local: usize,
    /// Bytes of them, as [`Message::heap_size`](crate::Message::heap_size) counts; one message always fits. Default 16 MiB.
    pub mailbox_local_bytes: usize,

    /// How long a call waits for its answer, unless the call says otherwise. Default 5 s.
    pub call_timeout: Duration,
    /// Handlers that run at one time; a call beyond is answered `Overloaded`, a cast beyond is dropped. Default 4096.
    pub handlers_max: usize,
    /// How many of these handlers may run for one peer. Default 2048, half of them, so that no member takes them all.
    pub handlers_per_peer: usize,
    /// What the requests of all handlers at work may take, in bytes; a call beyond is answered `Overloaded`. One request
    /// always may. Default 64 MiB.
    pub calls_budget: usize,
    /// What the requests of one peer's handlers may take of that, in bytes; one request always may. Default 32 MiB.
    pub calls_budget_per_peer: usize,
    /// Calls to one peer that may wait for their answers, and questions to mailboxes of all nodes; more fail with
    /// `Overloaded` before they are sent. Default 16384.
    pub calls_max: usize,
    /// What the callee of a stream may send before the caller reads, in bytes; each item counts 64 bytes more than its
    /// body, and one item may go beyond. Default 256 KiB. Larger suits long fat networks; a caller holds so much for each
    /// stream that it does not read.
    pub call_window: usize,
    /// Events that a subscriber may leave unread before it is told `Lagged`, and facts of gossip before the oldest are
    /// dropped. Default 1024.
    pub events_max: usize,
    /// Memberships in groups of this node's mailboxes, however often each joined; a join beyond is refused. Default 65536,
    /// some 20 MiB at each node of the cluster.
    pub groups_max: usize,

    /// Membership asks one other member for a sign of life in each such interval, and all in turn. Default 1 s, as in
    /// memberlist. A crash is noticed after 1.6 intervals on average, however large the cluster is (SWIM, 3.1), and
    /// declared when the suspicion is over. Shorter notices sooner and costs each node in proportion; so short that
    /// busy nodes cannot follow, and members are suspected for nothing.
    pub probe_interval: Duration,
    /// How long a member may take to answer before others are asked to try. Default 500 ms, as in memberlist; below
    /// `probe_interval`, whose rest is left for the detour. Longer than the round trip between the farthest members, or
    /// every probe takes the detour.
    pub probe_timeout: Duration,
    /// How much longer a probe waits when it has to dial first. Default 1 s, the first retransmission of a lost
    /// handshake packet (RFC 9002, 6.2.2). Too short, and members that nobody talks to are suspected when a packet is
    /// lost.
    pub dial_allowance: Duration,
    /// How many others are asked to try when a member does not answer. Default 3, as in the SWIM paper's analysis and
    /// in memberlist; at most 32. None, and each packet lost is a suspicion; many, and a failed switch makes a burst of
    /// probes.
    pub probe_helpers: usize,
    /// The highest score that a node gives its own bad health, when its probes fail or it is suspected itself. Its
    /// probes take `score + 1` times as long. Default 7, at most 100, memberlist's limit (the Lifeguard paper has 8). 0
    /// turns it off, and a node that is short of CPU suspects the healthy.
    pub health_score_max: u32,
    /// The shortest time that a suspected member has to object, in probe intervals, times the decimal logarithm of the
    /// number of members from ten on. Default 4, between 1 and 100: 4 s up to ten members, 12 s with a thousand. It is
    /// memberlist's value (the Lifeguard paper measured 5). Shorter declares the dead sooner, and more of the living:
    /// at 2, the paper has seven times the false deaths of 5 at 57 % of the time.
    pub suspicion_mult: u32,
    /// The longest such time, in shortest ones. Default 6, between 1 and 100, the Lifeguard paper's. A suspicion begins
    /// with the longest time, and each further accuser shortens it; so long takes a death that only one node has
    /// noticed. 1 trusts the first accuser as much as several.
    pub suspicion_max_mult: u32,
    /// How many accusers beside the first shorten a suspicion to its shortest time. Default 2, at most 32:
    /// `suspicion_mult` less 2, as in memberlist (the Lifeguard paper has 3). More gives those time who only a few
    /// cannot reach; 0 turns it off.
    pub suspicion_accusers: usize,
    /// How often a node passes on what it has heard, times the decimal logarithm of the number of members, rounded up.
    /// Default 4, between 1 and 100, memberlist's. Fewer reach all members less often by gossip alone, and leave the
    /// rest to the comparisons of `sync_interval`; more costs packets, only while there is something to tell.
    pub retransmit_mult: u32,
    /// How often a node tells others what is new, beside what rides on probes. Default 200 ms, memberlist's: a thousand
    /// members know within a second. While nothing is new, nothing is sent.
    pub gossip_interval: Duration,
    /// How many others it tells each time. Default 3, between 1 and 32, memberlist's.
    pub gossip_fanout: usize,
    /// For how long the dead are told that they are. Default 30 s, memberlist's. It is how a member that was falsely
    /// declared dead learns of it and objects; later only `reconnect_interval` finds it. Not above `dead_kept`.
    pub gossip_to_dead: Duration,
    /// How often a node compares all that it knows with another member, on a stream, and repairs what differs. Default
    /// 30 s, memberlist's. It finds what gossip missed: shorter finds it sooner; if nothing differs it costs a packet.
    pub sync_interval: Duration,
    /// How often a node dials one of the dead, in case it was cut off and not dead, and tries a way into the cluster
    /// while it sees no other member (see [`Builder::join`](crate::Builder::join)). Default 10 s (serf tries every 30
    /// s). It bounds how long two halves of a cluster stay apart after a partition.
    pub reconnect_interval: Duration,
    /// How long the dead and those who left are remembered. Default 10 min, our own choice. Too short, and an old
    /// rumour brings them back to life; so it must be at least the longest suspicion of a cluster of `members_max`, and
    /// two `sync_interval`. Long keeps members listed that are long gone.
    pub dead_kept: Duration,
    /// A member that was declared dead so often within `flap_window`, and objected each time, holds its next objection
    /// back. Default 3, at least 1; our own choice, because SWIM lets a half-dead member die and return for ever.
    /// Higher lets it flap for longer.
    pub flap_deaths: u32,
    /// See [`flap_deaths`](Self::flap_deaths). Default 10 min.
    pub flap_window: Duration,
    /// How long such a member first holds its objection back: for so long it stays dead. It doubles each time after, up
    /// to `hold_down_max`, and starts anew after a quiet `flap_window`. Default 60 s.
    pub hold_down: Duration,
    /// See [`hold_down`](Self::hold_down). Default 1 h; not below it.
    pub hold_down_max: Duration,
    /// To how many others a node that cannot be dialled keeps links. Default 3, between 1 and 64. Only these can tell
    /// whether it lives: with one, that one's failure is taken for its death.
    pub kept_links: usize,
    /// Members that are known at one time, those that are still remembered included. Default 16384, between 2 and 2^18.
    /// More are left out and counted. Name, addresses and metadata of one take 1 KiB at most, and the tables around
    /// them their part.
    pub members_max: usize,
    /// Own facts of gossip that may wait to be spread, and facts of all members that are being spread. Default 256,
    /// between 1 and 65536; each takes 1 KiB at most. An own fact beyond fails with
    /// [`Busy`](crate::PublishError::Busy), another's is dropped and counted.
    pub facts_max: usize,

    /// How long to register, unregister, replace or update a name may take, unless the call says otherwise. Default 10 s.
    /// Shorter than an arbiter's replacement takes ([`claim_patience`](Self::claim_patience) a few times), and a node that
    /// dies at the wrong moment fails what would have gone through.
    pub register_timeout: Duration,
    /// How long an arbiter, or a name's present owner, may take to answer before it is done without. Default 1 s; less
    /// than [`register_timeout`](Self::register_timeout). Too short, and a busy arbiter is passed over; long, and each
    /// claim that meets a dead one waits so long.
    pub claim_patience: Duration,
    /// How long a new arbiter waits at most for what the others have granted before, until it decides itself. Default
    /// 2 s. Shorter lets a name be granted twice while members come and go, which is revoked later; for so long a claim
    /// may wait after such a change.
    pub claim_barrier: Duration,
    /// How long a granted claim that its node does not make use of keeps the name from others. Default 10 s; not below
    /// [`register_timeout`](Self::register_timeout), or a slow claimant's grant may be given to another.
    pub grant_kept: Duration,
    /// How long a [`ConflictResolver`](crate::ConflictResolver) may take. Then the older claim keeps the name, which is
    /// logged and counted. Default 1 s.
    pub resolver_timeout: Duration,
    /// Names that mailboxes of this node may have at one time, in all scopes. Default 131,072. A registration beyond
    /// fails with [`LimitReached`](crate::RegisterError::LimitReached). Not above
    /// [`entries_per_peer_max`](Self::entries_per_peer_max), which is what the others take of a node.
    pub names_max: usize,
    /// Claims of other nodes that this one, as an arbiter, decides on or keeps a name for at one time. Default 65,536.
    /// Beyond it claims are put off.
    pub claims_max: usize,
    /// Names and memberships in groups that are taken of one other node. Default 2^18. A node that has more breaks the
    /// rules: its session is ended. Not above [`entries_max`](Self::entries_max); the same on all nodes, or some have
    /// what others refuse.
    pub entries_per_peer_max: usize,
    /// Names and memberships in groups of all nodes together. Default 2^20, some 300 bytes each and their metadata.
    /// Beyond it some are left out here, and counted.
    pub entries_max: usize,
    /// Removals that each node's names and memberships remember in a scope. Default 4096. A node that was away for more
    /// of them is told all anew.
    pub tombstones_max: usize,
    /// Bytes of names and memberships that may be on their way to one peer. Default 256 KiB, between 16 KiB and 1 GiB.
    /// Larger makes a new node ready sooner over long fat networks.
    pub services_window: usize,
    /// How often a node compares all names and memberships that it knows with another node, and repairs what differs.
    /// Default 1 s. While nothing differs it is one small frame.
    pub names_sync_interval: Duration,
    /// Mailboxes of this node that one peer may watch at one time. Default 131,072. A peer that watches more breaks the
    /// rules: its session is ended.
    pub watches_max: usize,

    /// How often a leader tells the voters that it leads. Default 250 ms, our own choice: six of them fit a lease, so that a
    /// lost packet ends none. Shorter costs packets.
    pub election_heartbeat: Duration,
    /// How long a leader may rely on the answers to one heartbeat, and for how long a voter that hears no leader waits before
    /// it stands, or twice as long by chance. Default 1.5 s; at least three `election_heartbeat` and two round trips. Shorter
    /// replaces a dead leader sooner, and takes a slow one for dead. All voters of an election must have the same, and the
    /// same `election_drift`: votes of others do not count. To change it, stop all voters first.
    pub election_lease: Duration,
    /// By how much the clocks of two voters may differ in speed, in millionths. Default 10,000, which is one per cent; at most
    /// 200,000. Clocks that are slewed to the right time are well within it, unless they are told to slew at their utmost. A
    /// voter's promise is longer than the lease by so much, and a leader's reliance shorter. Clocks that are further apart may
    /// let two leaders overlap; tokens are ordered all the same.
    pub election_drift: u32,
    /// Elections that this node takes part in at one time. Default 64, between 1 and 4096. Each costs its voters a packet in
    /// each heartbeat.
    pub elections_max: usize,

    /// QUIC's own idle time-out, behind the signs of life. Default 90 s.
    pub quic_idle_timeout: Duration,
    /// Streams that a peer may open at one time, after its HELLO. Default 64. Each costs about 66 bytes per link from
    /// the start.
    pub streams_max: u32,
    /// Bytes that a peer may have in flight on one stream. Default 1.25 MB, which fills 100 Mbit/s at 100 ms.
    pub stream_window: u32,
    /// Bytes that this side may have in flight on one link. Default 8 MiB.
    pub send_window: u32,
    /// What QUIC holds of datagrams that have arrived and are not read yet, in bytes per link. Default 64 KiB.
    pub datagram_buffer: usize,
    /// The largest UDP payload that path MTU discovery tries. Default 1452, which fits Ethernet; at most 6500, because
    /// with segmentation offload ten segments must fit 64 KiB, and beyond that packets vanish.
    pub mtu_max: u16,
    /// A frame that has begun must grow by 1 KiB or be complete within this time, again and again; a link that stops must
    /// carry 16 KiB or be closed. Default 30 s. It bounds how long a dribbling peer holds a buffer or a link.
    pub frame_timeout: Duration,
    /// A new stream must say what it is within this time. Default 10 s.
    pub stream_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        const KIB: usize = 1024;
        const MIB: usize = 1024 * KIB;
        Self {
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(5),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            idle_close: Duration::from_secs(60),
            sign_of_life_every: Duration::from_secs(3),
            keep_alive: Duration::from_secs(20),
            link_lost_after: Duration::from_secs(10),
            conflict_check: Duration::from_secs(1),
            trust_recheck: Duration::from_secs(60 * 60),
            shutdown_timeout: Duration::from_secs(5),
            peers_max: 1024,
            peers_remembered: 4096,
            handshakes_max: 128,
            handshakes_reserved: 32,
            incoming_max: 256,
            incoming_buffer: 16 * KIB,
            incoming_buffer_total: 4 * MIB,
            message_max: 16 * MIB,
            bulk_from: 64 * KIB,
            lanes: 8,
            call_streams: 2,
            bulk_streams: 4,
            lane_window: 32 * KIB,
            lane_window_max: 4 * MIB,
            lanes_max: 8 * 1024,
            window_budget: 32 * MIB,
            window_budget_total: 256 * MIB,
            bulk_budget: 32 * MIB,
            bulk_budget_total: 256 * MIB,
            send_buffer: MIB,
            bulk_buffer: 4 * MIB,
            mailbox_local: 1024,
            mailbox_local_bytes: 16 * MIB,
            call_timeout: Duration::from_secs(5),
            handlers_max: 4096,
            handlers_per_peer: 2048,
            calls_budget: 64 * MIB,
            calls_budget_per_peer: 32 * MIB,
            calls_max: 16 * 1024,
            call_window: 256 * KIB,
            events_max: 1024,
            groups_max: 1 << 16,
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_millis(500),
            dial_allowance: Duration::from_secs(1),
            probe_helpers: 3,
            health_score_max: 7,
            suspicion_mult: 4,
            suspicion_max_mult: 6,
            suspicion_accusers: 2,
            retransmit_mult: 4,
            gossip_interval: Duration::from_millis(200),
            gossip_fanout: 3,
            gossip_to_dead: Duration::from_secs(30),
            sync_interval: Duration::from_secs(30),
            reconnect_interval: Duration::from_secs(10),
            dead_kept: Duration::from_secs(10 * 60),
            flap_deaths: 3,
            flap_window: Duration::from_secs(10 * 60),
            hold_down: Duration::from_secs(60),
            hold_down_max: Duration::from_secs(60 * 60),
            kept_links: 3,
            members_max: 16 * 1024,
            facts_max: 256,
            register_timeout: Duration::from_secs(10),
            claim_patience: Duration::from_secs(1),
            claim_barrier: Duration::from_secs(2),
            grant_kept: Duration::from_secs(10),
            resolver_timeout: Duration::from_secs(1),
            names_max: 128 * 1024,
            claims_max: 64 * 1024,
            entries_per_peer_max: 1 << 18,
            entries_max: 1 << 20,
            tombstones_max: 4096,
            services_window: 256 * KIB,
            names_sync_interval: Duration::from_secs(1),
            watches_max: 128 * 1024,
            election_heartbeat: Duration::from_millis(250),
            election_lease: Duration::from_millis(1500),
            election_drift: 10_000,
            elections_max: 64,
            quic_idle_timeout: Duration::from_secs(90),
            streams_max: 64,
            stream_window: 1_250_000,
            send_window: 8 * MIB as u32,
            datagram_buffer: 64 * KIB,
            mtu_max: 1452,
            frame_timeout: Duration::from_secs(30),
            stream_timeout: Duration::from_secs(10),
        }
    }
}

/// Beyond this a wait is a mistake, and sums of times could overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("config: {field} {rule}")]
pub struct ConfigError {
    field: &'static str,
    rule: &'static str,
}

impl Config {
    /// Numbers for members in one region, a few milliseconds apart: the default.
    #[must_use]
    pub fn lan() -> Self {
        Self::default()
    }

    /// Numbers for members that are continents apart, or on networks that stall: failures are noticed several times
    /// later than with [`Config::lan`], and fewer are false. The times of membership are memberlist's for wide areas:
    /// probes every 5 s that may take 3 s, `suspicion_mult` 6 with 4 accusers, gossip to 4 every 500 ms, to the dead
    /// for 60 s, a comparison every 60 s. With them go `dial_allowance` 3 s, `dead_kept` 20 min, and dials and
    /// greetings of 10 s with `conflict_check` 3 s. Claims of names and elections have three times as long.
    #[must_use]
    pub fn wan() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            hello_timeout: Duration::from_secs(10),
            conflict_check: Duration::from_secs(3),
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(3),
            dial_allowance: Duration::from_secs(3),
            suspicion_mult: 6,
            suspicion_accusers: 4,
            gossip_interval: Duration::from_millis(500),
            gossip_fanout: 4,
            gossip_to_dead: Duration::from_secs(60),
            sync_interval: Duration::from_secs(60),
            dead_kept: Duration::from_secs(20 * 60),
            register_timeout: Duration::from_secs(30),
            claim_patience: Duration::from_secs(3),
            claim_barrier: Duration::from_secs(6),
            grant_kept: Duration::from_secs(30),
            names_sync_interval: Duration::from_secs(3),
            election_heartbeat: Duration::from_millis(750),
            election_lease: Duration::from_millis(4500),
            ..Self::default()
        }
    }

    /// Numbers for members on one machine, as in development: failures are noticed sooner than with [`Config::lan`].
    /// The times of membership are memberlist's for loopback: probes may take 200 ms and ask one helper,
    /// `suspicion_mult` 3 with one accuser, `retransmit_mult` 2, gossip every 100 ms, to the dead for 15 s, a
    /// comparison every 15 s.
    #[must_use]
    pub fn local() -> Self {
        Self {
            probe_timeout: Duration::from_millis(200),
            probe_helpers: 1,
            suspicion_mult: 3,
            suspicion_accusers: 1,
            retransmit_mult: 2,
            gossip_interval: Duration::from_millis(100),
            gossip_to_dead: Duration::from_secs(15),
            sync_interval: Duration::from_secs(15),
            ..Self::default()
        }
    }

    /// The longest that a member can be suspected in a cluster of `members_max`, before rounding.
    fn suspicion_max(&self) -> Duration {
        let scale = (self.members_max as f64).log10().max(1.0);
        self.probe_interval.mul_f64(scale * f64::from(self.suspicion_mult) * f64::from(self.suspicion_max_mult))
    }

    /// Checks that the settings can work together.
    ///
    /// # Errors
    /// [`ConfigError`] names the first field that cannot work, and its rule.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, field, rule| if ok { Ok(()) } else { Err(ConfigError { field, rule }) };
        for (time, field) in [
            (self.connect_timeout, "connect_timeout"),
            (self.handshake_timeout, "handshake_timeout"),
            (self.hello_timeout, "hello_timeout"),
            (self.backoff_max, "backoff_max"),
            (self.idle_close, "idle_close"),
            (self.link_lost_after, "link_lost_after"),
            (self.keep_alive, "keep_alive"),
            (self.conflict_check, "conflict_check"),
            (self.trust_recheck, "trust_recheck"),
            (self.shutdown_timeout, "shutdown_timeout"),
            (self.call_timeout, "call_timeout"),
            (self.probe_interval, "probe_interval"),
            (self.dial_allowance, "dial_allowance"),
            (self.gossip_interval, "gossip_interval"),
            (self.sync_interval, "sync_interval"),
            (self.reconnect_interval, "reconnect_interval"),
            (self.dead_kept, "dead_kept"),
            (self.flap_window, "flap_window"),
            (self.hold_down_max, "hold_down_max"),
            (self.register_timeout, "register_timeout"),
            (self.claim_barrier, "claim_barrier"),
            (self.grant_kept, "grant_kept"),
            (self.resolver_timeout, "resolver_timeout"),
            (self.names_sync_interval, "names_sync_interval"),
            (self.election_lease, "election_lease"),
            (self.quic_idle_timeout, "quic_idle_timeout"),
            (self.frame_timeout, "frame_timeout"),
            (self.stream_timeout, "stream_timeout"),
        ] {
            check(time <= LONGEST, field, "must not be above a year")?;
        }
        let some_time = "must be above zero";
        check(!self.connect_timeout.is_zero(), "connect_timeout", some_time)?;
        check(!self.handshake_timeout.is_zero(), "handshake_timeout", some_time)?;
        check(!self.hello_timeout.is_zero(), "hello_timeout", some_time)?;
        check(!self.backoff_min.is_zero(), "backoff_min", some_time)?;
        check(self.backoff_max >= self.backoff_min, "backoff_max", "must not be below backoff_min")?;
        check(!self.idle_close.is_zero(), "idle_close", some_time)?;
        check(!self.sign_of_life_every.is_zero(), "sign_of_life_every", some_time)?;
        check(self.link_lost_after > self.sign_of_life_every, "link_lost_after", "must be above sign_of_life_every")?;
        check(
            self.quic_idle_timeout > self.link_lost_after,
            "quic_idle_timeout",
            "must be above link_lost_after, or QUIC gives up first",
        )?;
        check(self.quic_idle_timeout > self.idle_close, "quic_idle_timeout", "must be above idle_close")?;
        check(!self.keep_alive.is_zero(), "keep_alive", some_time)?;
        check(self.quic_idle_timeout > self.keep_alive, "quic_idle_timeout", "must be above keep_alive")?;
        check(!self.conflict_check.is_zero(), "conflict_check", some_time)?;
        check(self.trust_recheck >= Duration::from_secs(1), "trust_recheck", "must be at least 1 s")?;
        check(self.peers_max > 0, "peers_max", "must be above zero")?;
        check(self.peers_remembered >= self.peers_max, "peers_remembered", "must not be below peers_max")?;
        check(self.handshakes_max > 0, "handshakes_max", "must be above zero")?;
        check(self.incoming_max > 0, "incoming_max", "must be above zero")?;
        check(self.incoming_buffer >= 1500, "incoming_buffer", "must hold a packet, 1500 bytes")?;
        check(
            self.incoming_buffer_total >= self.incoming_buffer,
            "incoming_buffer_total",
            "must not be below incoming_buffer",
        )?;
        check((1..=1 << 30).contains(&self.message_max), "message_max", "must be between 1 byte and 1 GiB")?;
        check(self.bulk_from > 0, "bulk_from", "must be above zero")?;
        check((1..=16).contains(&self.lanes), "lanes", "must be between 1 and 16")?;
        check((1..=8).contains(&self.call_streams), "call_streams", "must be between 1 and 8")?;
        check((1..=8).contains(&self.bulk_streams), "bulk_streams", "must be between 1 and 8")?;
        check((1024..=1 << 30).contains(&self.lane_window), "lane_window", "must be between 1 KiB and 1 GiB")?;
        check(
            (self.lane_window..=1 << 30).contains(&self.lane_window_max),
            "lane_window_max",
            "must be between lane_window and 1 GiB",
        )?;
        check(self.lanes_max > 0, "lanes_max", "must be above zero")?;
        check(u32::try_from(self.lanes_max).is_ok(), "lanes_max", "must fit 32 bits")?;
        check(
            self.window_budget_total >= self.window_budget,
            "window_budget_total",
            "must not be below window_budget",
        )?;
        check(self.bulk_budget as u64 <= 1 << 40, "bulk_budget", "must not be above 2^40")?;
        check(self.bulk_budget_total >= self.bulk_budget, "bulk_budget_total", "must not be below bulk_budget")?;
        let room = 1..=1 << 40;
        for (size, field) in [(self.send_buffer, "send_buffer"), (self.bulk_buffer, "bulk_buffer")] {
            check(room.contains(&(size as u64)), field, "must be between 1 and 2^40")?;
        }
        check(self.mailbox_local > 0, "mailbox_local", "must be above zero")?;
        check(
            (self.mailbox_local..=1 << 31).contains(&self.mailbox_local_bytes),
            "mailbox_local_bytes",
            "must be between mailbox_local and 2 GiB",
        )?;
        check(self.handlers_max > 0, "handlers_max", "must be above zero")?;
        check(self.handlers_per_peer > 0, "handlers_per_peer", "must be above zero")?;
        check(self.calls_budget > 0, "calls_budget", "must be above zero")?;
        check(self.calls_budget_per_peer > 0, "calls_budget_per_peer", "must be above zero")?;
        check(self.calls_max > 0, "calls_max", "must be above zero")?;
        check((1024..=1 << 30).contains(&self.call_window), "call_window", "must be between 1 KiB and 1 GiB")?;
        check(self.events_max > 0, "events_max", "must be above zero")?;
        check((1..=1 << 20).contains(&self.groups_max), "groups_max", "must be between 1 and 2^20")?;
        self.validate_membership(check)?;
        self.validate_services(check)?;
        check(self.streams_max >= 48, "streams_max", "must be at least 48: lanes, call, bulk and control streams")?;
        check((1200..=6500).contains(&self.mtu_max), "mtu_max", "must be between 1200 and 6500")?;
        check(!self.frame_timeout.is_zero(), "frame_timeout", some_time)?;
        check(!self.stream_timeout.is_zero(), "stream_timeout", some_time)
    }

    fn validate_membership(
        &self,
        check: impl Fn(bool, &'static str, &'static str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let some_time = "must be above zero";
        check(!self.probe_interval.is_zero(), "probe_interval", some_time)?;
        check(!self.probe_timeout.is_zero(), "probe_timeout", some_time)?;
        check(self.probe_timeout < self.probe_interval, "probe_timeout", "must be below probe_interval")?;
        check(self.probe_helpers <= 32, "probe_helpers", "must not be above 32")?;
        check(self.health_score_max <= 100, "health_score_max", "must not be above 100")?;
        for (mult, field) in [
            (self.suspicion_mult, "suspicion_mult"),
            (self.suspicion_max_mult, "suspicion_max_mult"),
            (self.retransmit_mult, "retransmit_mult"),
        ] {
            check((1..=100).contains(&mult), field, "must be between 1 and 100")?;
        }
        check(self.suspicion_accusers <= 32, "suspicion_accusers", "must not be above 32")?;
        check(!self.gossip_interval.is_zero(), "gossip_interval", some_time)?;
        check((1..=32).contains(&self.gossip_fanout), "gossip_fanout", "must be between 1 and 32")?;
        check(self.gossip_to_dead <= self.dead_kept, "gossip_to_dead", "must not be above dead_kept")?;
        check(!self.sync_interval.is_zero(), "sync_interval", some_time)?;
        check(!self.reconnect_interval.is_zero(), "reconnect_interval", some_time)?;
        check((2..=1 << 18).contains(&self.members_max), "members_max", "must be between 2 and 2^18")?;
        check(
            self.dead_kept >= self.suspicion_max() + 2 * self.sync_interval,
            "dead_kept",
            "must not be below the longest suspicion, which grows with members_max, and two sync_interval",
        )?;
        check(self.flap_deaths > 0, "flap_deaths", "must be above zero")?;
        check(!self.flap_window.is_zero(), "flap_window", some_time)?;
        check(self.hold_down_max >= self.hold_down, "hold_down_max", "must not be below hold_down")?;
        check((1..=64).contains(&self.kept_links), "kept_links", "must be between 1 and 64")?;
        check((1..=1 << 16).contains(&self.facts_max), "facts_max", "must be between 1 and 65536")
    }

    fn validate_services(
        &self,
        check: impl Fn(bool, &'static str, &'static str) -> Result<(), ConfigError>,
    ) -> Result<(), ConfigError> {
        let some_time = "must be above zero";
        check(!self.claim_patience.is_zero(), "claim_patience", some_time)?;
        check(self.claim_patience < self.register_timeout, "claim_patience", "must be below register_timeout")?;
        check(!self.claim_barrier.is_zero(), "claim_barrier", some_time)?;
        check(self.grant_kept >= self.register_timeout, "grant_kept", "must not be below register_timeout")?;
        check(!self.resolver_timeout.is_zero(), "resolver_timeout", some_time)?;
        check(!self.names_sync_interval.is_zero(), "names_sync_interval", some_time)?;
        for (count, field) in [
            (self.names_max, "names_max"),
            (self.claims_max, "claims_max"),
            (self.tombstones_max, "tombstones_max"),
            (self.watches_max, "watches_max"),
        ] {
            check(count > 0, field, "must be above zero")?;
        }
        check(self.names_max <= self.entries_per_peer_max, "names_max", "must not be above entries_per_peer_max")?;
        check(self.entries_per_peer_max <= self.entries_max, "entries_per_peer_max", "must not be above entries_max")?;
        let window = 16 * 1024..=1 << 30;
        check(window.contains(&self.services_window), "services_window", "must be between 16 KiB and 1 GiB")?;
        check(!self.election_heartbeat.is_zero(), "election_heartbeat", some_time)?;
        check(
            self.election_heartbeat <= self.election_lease / 3,
            "election_lease",
            "must not be below three election_heartbeat",
        )?;
        check(self.election_drift <= 200_000, "election_drift", "must not be above 200,000")?;
        check((1..=4096).contains(&self.elections_max), "elections_max", "must be between 1 and 4096")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_work() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn both_sides_of_a_bound() {
        let check = |mtu_max| Config { mtu_max, ..Config::default() }.validate().is_ok();
        assert_eq!([1199, 1200, 6500, 6501].map(check), [false, true, true, false]);
        let error = Config { lanes: 17, ..Config::default() }.validate().unwrap_err();
        assert_eq!(error.to_string(), "config: lanes must be between 1 and 16");
    }

    #[test]
    fn the_presets_work() {
        for config in [Config::lan(), Config::wan(), Config::local()] {
            assert_eq!(config.validate(), Ok(()));
        }
        assert_eq!(Config::lan(), Config::default());
    }

    /// Whoever is dead stays dead until all rumours of its life have died down: one second less is too short.
    #[test]
    fn the_dead_are_kept_for_longer_than_anything_is_told_of_them() {
        let secs = Duration::from_secs;
        let config = |members_max, dead_kept| Config { members_max, dead_kept, ..Config::default() };
        // 4 s to object at ten members, six times as long at most, and two comparisons; from ten on by the logarithm.
        for (members, least) in [(2, 84), (10, 84), (100, 108), (1_000, 132), (10_000, 156)] {
            assert!(config(members, secs(least)).validate().is_ok(), "{members}");
            let error = config(members, secs(least) - Duration::from_millis(1)).validate().unwrap_err();
            assert!(error.to_string().starts_with("config: dead_kept must not be below"), "{error}");
        }
    }

    /// A probe that waits for its direct answer until the interval ends has no time to ask others.
    #[test]
    fn a_probe_leaves_time_for_the_detour() {
        let ms = Duration::from_millis;
        let check = |timeout| Config { probe_timeout: timeout, ..Config::default() }.validate().is_ok();
        assert_eq!([ms(0), ms(1), ms(999), ms(1000)].map(check), [false, true, true, false]);
    }

    #[test]
    fn membership_numbers_have_bounds() {
        let works = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().is_ok()
        };
        let within: [fn(&mut Config); 10] = [
            |c| c.probe_helpers = 0,
            |c| c.probe_helpers = 32,
            |c| c.health_score_max = 0,
            |c| c.suspicion_mult = 1,
            |c| (c.suspicion_max_mult, c.dead_kept) = (100, LONGEST),
            |c| c.suspicion_accusers = 0,
            |c| c.gossip_to_dead = c.dead_kept,
            |c| c.hold_down = c.hold_down_max,
            |c| c.members_max = 1 << 18,
            |c| (c.kept_links, c.facts_max) = (1, 1 << 16),
        ];
        for (at, change) in within.into_iter().enumerate() {
            assert!(works(change), "{at}");
        }
        let beyond: [fn(&mut Config); 15] = [
            |c| c.probe_interval = Duration::ZERO,
            |c| c.probe_interval = Duration::MAX,
            |c| c.probe_helpers = 33,
            |c| c.health_score_max = 101,
            |c| c.suspicion_mult = 0,
            |c| (c.suspicion_max_mult, c.dead_kept) = (101, LONGEST),
            |c| c.retransmit_mult = 0,
            |c| c.suspicion_accusers = 33,
            |c| c.gossip_fanout = 0,
            |c| c.gossip_to_dead = c.dead_kept + Duration::from_nanos(1),
            |c| c.hold_down = c.hold_down_max + Duration::from_nanos(1),
            |c| c.members_max = 1,
            |c| c.members_max = usize::MAX,
            |c| c.kept_links = 0,
            |c| c.facts_max = 0,
        ];
        for (at, change) in beyond.into_iter().enumerate() {
            assert!(!works(change), "{at}");
        }
    }

    /// Each of them, at the last value that works and the first that does not.
    #[test]
    fn numbers_of_names_have_bounds() {
        let works = |change: &dyn Fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().is_ok()
        };
        let tick = Duration::from_nanos(1);
        let within: [&dyn Fn(&mut Config); 7] = [
            &|c| c.claim_patience = c.register_timeout - tick,
            &|c| (c.register_timeout, c.grant_kept) = (LONGEST, LONGEST),
            &|c| c.names_max = c.entries_per_peer_max,
            &|c| c.entries_per_peer_max = c.entries_max,
            &|c| (c.names_max, c.claims_max, c.tombstones_max, c.watches_max) = (1, 1, 1, 1),
            &|c| c.services_window = 16 * 1024,
            &|c| c.services_window = 1 << 30,
        ];
        for (at, change) in within.into_iter().enumerate() {
            assert!(works(change), "{at}");
        }
        let beyond: [&dyn Fn(&mut Config); 14] = [
            &|c| c.claim_patience = c.register_timeout,
            &|c| c.claim_patience = Duration::ZERO,
            &|c| c.claim_barrier = Duration::ZERO,
            &|c| c.grant_kept = c.register_timeout - tick,
            &|c| c.grant_kept = LONGEST + tick,
            &|c| c.resolver_timeout = Duration::ZERO,
            &|c| c.names_sync_interval = Duration::ZERO,
            &|c| c.names_max = c.entries_per_peer_max + 1,
            &|c| c.entries_per_peer_max = c.entries_max + 1,
            &|c| c.names_max = 0,
            &|c| c.claims_max = 0,
            &|c| c.watches_max = 0,
            &|c| c.services_window = 16 * 1024 - 1,
            &|c| c.services_window = (1 << 30) + 1,
        ];
        for (at, change) in beyond.into_iter().enumerate() {
            assert!(!works(change), "{at}");
        }
    }

    #[test]
    fn numbers_of_elections_have_bounds() {
        let works = |change: &dyn Fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.validate().is_ok()
        };
        let tick = Duration::from_nanos(1);
        assert!(works(&|c| c.election_heartbeat = c.election_lease / 3));
        assert!(!works(&|c| c.election_heartbeat = c.election_lease / 3 + tick));
        assert!(!works(&|c| c.election_heartbeat = Duration::ZERO));
        assert!(works(&|c| c.election_lease = LONGEST) && !works(&|c| c.election_lease = LONGEST + tick));
        assert!(works(&|c| c.election_drift = 200_000) && !works(&|c| c.election_drift = 200_001));
        assert!(works(&|c| c.elections_max = 1) && !works(&|c| c.elections_max = 0));
        assert!(works(&|c| c.elections_max = 4096) && !works(&|c| c.elections_max = 4097));
    }

    /// Buffers without room would keep everybody waiting for ever; and no semaphore counts to the largest number.
    #[test]
    fn room_is_neither_nothing_nor_endless() {
        for (value, works) in [(0, false), (1, true), (1 << 30, true), (usize::MAX, false)] {
            for config in
                [Config { send_buffer: value, ..Config::default() }, Config { bulk_buffer: value, ..Config::default() }]
            {
                assert_eq!(config.validate().is_ok(), works, "{config:?}");
            }
        }
        let config = Config { bulk_budget: usize::MAX, bulk_budget_total: usize::MAX, ..Config::default() };
        assert!(config.validate().is_err());
    }
}
