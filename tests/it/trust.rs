//! Trust that changes while nodes run: another cookie, other certificates, revocations, lists of allowed nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use distribute::sim::Fabric;
use distribute::{
    Allowed, AuthError, Builder, Config, ConnectError, Cookie, DownReason, HealthReason, Identity, IdentityError,
    IdentityFlaw, Method, NamePolicy, Node, NodeEvent, NodeName, StartError, TrustError,
};
use tokio::task::JoinSet;
use tracing::Level;

use crate::captured::Log;
use crate::common::{ip, millis, next, quiet, secs, unprobing};

#[path = "../../src/transport/tls/tests/ca.rs"]
mod ca;

use self::ca::{Ca, Signed};

const ECHO: Method<u64, u64> = Method::new("echo");

fn name(local: &str, host: u8) -> String {
    format!("{local}@10.0.0.{host}")
}

fn builder(fabric: &Fabric, local: &str, host: u8, identity: impl Into<Identity>) -> Builder {
    Node::builder(name(local, host).as_str()).identity(identity).network(fabric.host(ip(host)))
}

async fn start(fabric: &Fabric, local: &str, host: u8, identity: impl Into<Identity>) -> Node {
    builder(fabric, local, host, identity).start().await.unwrap()
}

async fn dial(from: &Node, to: &Node) -> Result<(), ConnectError> {
    from.cluster().connect(to.name()).await.map(drop)
}

fn refused(why: AuthError) -> Result<(), ConnectError> {
    Err(ConnectError::Auth(why))
}

/// Messages and calls between each two nodes, all the time. Anything that is lost, late or out of order ends it.
struct Traffic {
    tasks: JoinSet<()>,
    is_over: Arc<AtomicBool>,
    said: Arc<AtomicU64>,
}

impl Traffic {
    fn between(nodes: &[Node]) -> Self {
        let mut this = Self { tasks: JoinSet::new(), is_over: Arc::default(), said: Arc::default() };
        for node in nodes {
            node.rpc().serve(ECHO, |_, n| async move { n }).unwrap();
        }
        for from in nodes {
            for to in nodes.iter().filter(|to| to.name() != from.name()) {
                this.add(from.clone(), to.clone());
            }
        }
        this
    }

    fn add(&mut self, from: Node, to: Node) {
        let (is_over, said) = (self.is_over.clone(), self.said.clone());
        let mut inbox = to.mailbox::<u64>();
        let there = inbox.address().bind(&from);
        self.tasks.spawn(async move {
            for n in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                there.send(n).await.unwrap_or_else(|error| panic!("{from:?} to {to:?}: {error:?}"));
                let got = inbox.recv_timeout(secs(5)).await;
                assert_eq!(got, Ok(n), "{from:?} to {to:?}");
                let answer = from.rpc().call(to.name(), ECHO, n).timeout(secs(5)).await;
                assert_eq!(answer, Ok(n), "{from:?} calls {to:?}");
                said.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(millis(40)).await;
            }
        });
    }

    /// Waits until each pair has had some rounds more.
    async fn goes_on(&mut self) {
        let goal = self.said.load(Ordering::Relaxed) + 5 * self.tasks.len() as u64;
        while self.said.load(Ordering::Relaxed) < goal {
            tokio::select! {
                Some(ended) = self.tasks.join_next() => panic!("the traffic ended: {ended:?}"),
                () = tokio::time::sleep(millis(10)) => {}
            }
        }
    }

    async fn end(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// Five nodes take another cookie while they talk. Nobody who moved loses a session; who did not learn it is cut off.
#[tokio::test(start_paused = true)]
async fn five_nodes_take_another_cookie_under_traffic() {
    let fabric = Fabric::new(1);
    let (old, new) = (Cookie::generate(), Cookie::generate());
    let mut nodes = Vec::new();
    for host in 1..=5 {
        nodes.push(start(&fabric, &format!("n{host}"), host, old.clone()).await);
    }
    let late = start(&fabric, "late", 6, old.clone()).await;
    let keys: Vec<_> = nodes.iter().map(|node| node.trust().key()).collect();
    let mut traffic = Traffic::between(&nodes);
    for node in &nodes {
        dial(node, &late).await.unwrap();
    }
    traffic.goes_on().await;
    let mut events: Vec<_> = nodes.iter().map(|node| node.cluster().node_events()).collect();
    for events in &mut events {
        // Four of the five, and the late one.
        for _ in 0..5 {
            assert!(matches!(next(events).await, NodeEvent::Up(_)));
        }
    }
    let mut late_events = late.cluster().node_events();
    for _ in 0..5 {
        assert!(matches!(next(&mut late_events).await, NodeEvent::Up(_)));
    }

    for node in &nodes {
        let changed = node.trust().accept(&new).await.unwrap();
        assert!(changed.closed.is_empty() && changed.behind.is_empty(), "{changed:?}");
        traffic.goes_on().await;
    }
    for node in &nodes {
        let changed = node.trust().present(&new).await.unwrap();
        assert_eq!((changed.closed, changed.behind), (vec![], vec![late.name().clone()]));
        traffic.goes_on().await;
    }
    for events in events.iter_mut().chain([&mut late_events]) {
        assert!(quiet(events, millis(100)).await, "no session has ended until here");
    }
    for node in &nodes {
        let changed = node.trust().forget(&old).await.unwrap();
        assert_eq!(changed.closed, [late.name().clone()]);
        traffic.goes_on().await;
    }
    traffic.end().await;
    for events in &mut events {
        assert_eq!(next(events).await, NodeEvent::Down(late.id(), DownReason::TrustChanged));
        assert!(quiet(events, secs(2)).await, "and no other session");
    }
    for _ in 0..5 {
        assert!(matches!(next(&mut late_events).await, NodeEvent::Down(_, DownReason::TrustChanged)));
    }
    let now: Vec<_> = nodes.iter().map(|node| node.trust().key()).collect();
    assert_eq!(now, keys, "a node keeps its key for its life");

    let stranger = start(&fabric, "stranger", 7, old).await;
    let newcomer = start(&fabric, "newcomer", 8, new).await;
    for node in &nodes {
        assert_eq!(dial(&stranger, node).await, refused(AuthError::WrongCookie));
        assert_eq!(dial(node, &stranger).await, refused(AuthError::WrongCookie));
        assert_eq!(dial(&late, node).await, refused(AuthError::WrongCookie));
        dial(&newcomer, node).await.unwrap();
    }
}

/// Nodes at different steps of the change understand each other, whoever dials.
#[tokio::test(start_paused = true)]
async fn nodes_one_step_apart_understand_each_other() {
    let fabric = Fabric::new(2);
    let (old, new) = (Cookie::generate(), Cookie::generate());
    let mut nodes = Vec::new();
    for (host, steps) in (1..).zip([0, 1, 2, 3]) {
        let node = builder(&fabric, &format!("n{host}"), host, old.clone()).config(unprobing()).start().await.unwrap();
        if steps > 0 {
            node.trust().accept(&new).await.unwrap();
        }
        if steps > 1 {
            node.trust().present(&new).await.unwrap();
        }
        if steps > 2 {
            node.trust().forget(&old).await.unwrap();
        }
        nodes.push(node);
    }
    assert_eq!(nodes.iter().map(|node| node.trust().cookies()).collect::<Vec<_>>(), [1, 2, 2, 1]);
    for (i, from) in nodes.iter().enumerate() {
        for (j, to) in nodes.iter().enumerate().filter(|(j, _)| *j != i) {
            let expected = if i.abs_diff(j) == 1 { Ok(()) } else { refused(AuthError::WrongCookie) };
            assert_eq!(dial(from, to).await, expected, "{i} dials {j}");
            from.cluster().disconnect(to.name()).await;
        }
    }
}

/// What cannot be done is said, and changes nothing.
#[tokio::test(start_paused = true)]
async fn steps_out_of_order_are_refused() {
    let fabric = Fabric::new(3);
    let cookies: Vec<_> = (0..5).map(|_| Cookie::generate()).collect();
    let node = start(&fabric, "a", 1, cookies[0].clone()).await;
    let trust = node.trust();
    assert!(matches!(trust.present(&cookies[1]).await, Err(TrustError::NotAccepted)));
    assert!(matches!(trust.forget(&cookies[1]).await, Err(TrustError::NotAccepted)));
    assert!(matches!(trust.forget(&cookies[0]).await, Err(TrustError::Presented)));
    for cookie in &cookies[1..4] {
        trust.accept(cookie).await.unwrap();
        trust.accept(cookie).await.unwrap();
    }
    assert!(matches!(trust.accept(&cookies[4]).await, Err(TrustError::TooManyCookies { max: 4 })));
    assert_eq!(trust.cookies(), 4);
    trust.present(&cookies[3]).await.unwrap();
    assert!(matches!(trust.forget(&cookies[3]).await, Err(TrustError::Presented)));
    trust.forget(&cookies[0]).await.unwrap();
    trust.accept(&cookies[4]).await.unwrap();
    assert!(matches!(trust.reload_files().await, Err(TrustError::NoCertificates)));
    assert_eq!(trust.not_after(), None);
    let (shut, also) = (start(&fabric, "b", 2, cookies[0].clone()).await, cookies[0].clone());
    shut.shutdown().await;
    assert!(matches!(shut.trust().accept(&also).await, Err(TrustError::Shutdown)));
}

/// A node that nobody can dial changes its cookie, and so do those it has dialled: its sessions go on.
#[tokio::test(start_paused = true)]
async fn a_node_behind_a_nat_takes_another_cookie() {
    let fabric = Fabric::new(4);
    let (old, new) = (Cookie::generate(), Cookie::generate());
    let open = start(&fabric, "open", 1, old.clone()).await;
    let hidden = builder(&fabric, "hidden", 2, old.clone()).not_dialable().start().await.unwrap();
    dial(&hidden, &open).await.unwrap();
    let nodes = [open, hidden];
    let mut events: Vec<_> = nodes.iter().map(|node| node.cluster().node_events()).collect();
    for events in &mut events {
        assert!(matches!(next(events).await, NodeEvent::Up(_)));
    }
    let mut traffic = Traffic::between(&nodes);
    for node in &nodes {
        node.trust().accept(&new).await.unwrap();
    }
    for node in &nodes {
        assert!(node.trust().present(&new).await.unwrap().behind.is_empty());
        traffic.goes_on().await;
    }
    for node in &nodes {
        assert!(node.trust().forget(&old).await.unwrap().closed.is_empty());
        traffic.goes_on().await;
    }
    traffic.end().await;
    for events in &mut events {
        assert!(quiet(events, secs(1)).await);
    }
}

/// The PKI of a cluster whose certificates name nodes.
struct Pki {
    ca: Ca,
}

impl Pki {
    fn new() -> Self {
        Self { ca: Ca::root("shop") }
    }

    fn sign(&self, local: &str, host: u8) -> Signed {
        self.ca.sign(&[&format!("10.0.0.{host}")], &[&format!("distribute://default/{}:4370", name(local, host))])
    }

    fn identity(&self, signed: &Signed) -> Identity {
        identity(&self.ca.root_pem(), signed)
    }

    async fn start(&self, fabric: &Fabric, local: &str, host: u8) -> Node {
        start(fabric, local, host, self.identity(&self.sign(local, host))).await
    }
}

fn identity(authorities: &str, signed: &Signed) -> Identity {
    Identity::from_pem_bytes(authorities, signed.chain_pem(), signed.key_pem()).names(NamePolicy::SanUri)
}

/// Another authority, another key, another certificate for each of five nodes, while they talk: nobody notices.
#[tokio::test(start_paused = true)]
async fn five_nodes_take_certificates_of_another_authority_under_traffic() {
    let fabric = Fabric::new(5);
    let (old, new) = (Pki::new(), Pki { ca: Ca::root("other") });
    let both = old.ca.root_pem() + &new.ca.root_pem();
    let mut nodes = Vec::new();
    let mut certificates = Vec::new();
    for host in 1..=5 {
        let local = format!("n{host}");
        let signed = old.sign(&local, host);
        nodes.push(start(&fabric, &local, host, old.identity(&signed)).await);
        certificates.push((signed, new.sign(&local, host)));
    }
    let ids: Vec<_> = nodes.iter().map(Node::id).collect();
    let mut traffic = Traffic::between(&nodes);
    traffic.goes_on().await;
    let mut events: Vec<_> = nodes.iter().map(|node| node.cluster().node_events()).collect();
    for events in &mut events {
        for _ in 0..4 {
            assert!(matches!(next(events).await, NodeEvent::Up(_)));
        }
    }
    for (node, (former, _)) in nodes.iter().zip(&certificates) {
        let changed = node.trust().reload(identity(&both, former)).await.unwrap();
        assert!(changed.closed.is_empty() && changed.behind.is_empty(), "{changed:?}");
        traffic.goes_on().await;
    }
    for (node, (_, next)) in nodes.iter().zip(&certificates) {
        let key = node.trust().key();
        let changed = node.trust().reload(identity(&both, next)).await.unwrap();
        assert!(changed.closed.is_empty() && changed.behind.is_empty(), "{changed:?}");
        assert_ne!(node.trust().key(), key);
        traffic.goes_on().await;
    }
    for (node, (_, next)) in nodes.iter().zip(&certificates) {
        let changed = node.trust().reload(new.identity(next)).await.unwrap();
        assert!(changed.closed.is_empty() && changed.behind.is_empty(), "{changed:?}");
        traffic.goes_on().await;
    }
    traffic.end().await;
    for events in &mut events {
        assert!(quiet(events, secs(2)).await);
    }
    assert_eq!(nodes.iter().map(Node::id).collect::<Vec<_>>(), ids);
    let stranger = old.start(&fabric, "stranger", 6).await;
    assert_eq!(dial(&stranger, &nodes[0]).await, refused(AuthError::UnknownIssuer));
    assert_eq!(dial(&nodes[0], &stranger).await, refused(AuthError::UnknownIssuer));
}

/// A list of revocations cuts the revoked one off, and nobody else. The same files are read again for it.
#[tokio::test(start_paused = true)]
async fn a_revoked_node_is_cut_off() {
    let fabric = Fabric::new(6);
    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let own = pki.sign("a", 1);
    let (ca, chain, key) =
        (write("ca.pem", pki.ca.root_pem()), write("a.pem", own.chain_pem()), write("a.key", own.key_pem()));
    let list = write("crl.pem", pki.ca.revoke(&[]));
    let identity = Identity::from_pem(ca, &chain, key).unwrap().names(NamePolicy::SanUri).crl_file(&list).unwrap();
    let a = start(&fabric, "a", 1, identity).await;
    let bad = pki.sign("b", 2);
    let b = start(&fabric, "b", 2, pki.identity(&bad)).await;
    let c = pki.start(&fabric, "c", 3).await;
    dial(&b, &a).await.unwrap();
    dial(&c, &a).await.unwrap();
    let mut events = a.cluster().node_events();
    let mut b_events = b.cluster().node_events();
    assert!(matches!(next(&mut events).await, NodeEvent::Up(_)));
    assert!(matches!(next(&mut events).await, NodeEvent::Up(_)));
    assert_eq!(next(&mut b_events).await, NodeEvent::Up(a.id()));

    write("crl.pem", pki.ca.revoke(&[bad.serial]));
    assert_eq!(a.trust().reload_files().await.unwrap().closed, [b.name().clone()]);
    assert_eq!(next(&mut events).await, NodeEvent::Down(b.id(), DownReason::TrustChanged));
    while next(&mut b_events).await != NodeEvent::Down(a.id(), DownReason::TrustChanged) {}
    assert_eq!(dial(&b, &a).await, refused(AuthError::Revoked));
    assert_eq!(dial(&a, &b).await, refused(AuthError::Revoked));
    dial(&c, &a).await.unwrap();
    assert!(quiet(&mut events, secs(2)).await);

    // What cannot be used changes nothing.
    write("a.pem", "junk".to_owned());
    let error = a.trust().reload_files().await.unwrap_err();
    let TrustError::Identity(IdentityError::Flawed { place, flaw }) = error else { panic!("{error:?}") };
    assert_eq!((place, flaw), (chain.display().to_string(), IdentityFlaw::NoCertificate));
    assert_eq!(dial(&a, &b).await, refused(AuthError::Revoked));
    dial(&a, &c).await.unwrap();
}

/// A key that is blocked is cut off at once, and comes back when it is blocked no longer.
#[tokio::test(start_paused = true)]
async fn a_blocked_key_is_cut_off() {
    let (log, _listening) = Log::listen(Level::DEBUG);
    let fabric = Fabric::new(7);
    let cookie = Cookie::generate();
    let secret = cookie.reveal();
    let (a, b) = (start(&fabric, "a", 1, cookie.clone()).await, start(&fabric, "b", 2, cookie).await);
    dial(&a, &b).await.unwrap();
    let key = b.trust().key();
    assert_eq!(a.trust().block_key(key).await.unwrap().closed, [b.name().clone()]);
    assert_eq!(a.trust().block_key(key).await.unwrap().closed, []);
    assert_eq!(dial(&b, &a).await, refused(AuthError::Revoked));
    assert_eq!(dial(&a, &b).await, refused(AuthError::Revoked));
    a.trust().unblock_key(key).await.unwrap();
    dial(&b, &a).await.unwrap();

    // It is told once, with its reason, and counted.
    let told = log.only("forced disconnect");
    assert_eq!((&*told.target, told.level), ("distribute::session", Level::WARN));
    assert_eq!(told.field("peer"), b.name().as_str());
    assert!(told.field("by").contains("trusted") && told.field("why").contains("blocked"), "{told:?}");
    let what: Vec<_> = log.of("trust changed").iter().map(|line| line.field("what").to_owned()).collect();
    assert_eq!(what, ["a key is blocked", "a key is blocked no longer"]);
    assert_eq!(a.stats().incidents.disconnects_forced, 1);
    assert!(!log.text().contains(&secret) && !log.text().contains(&key.to_string()));
}

/// A list of allowed nodes takes effect at once, in both directions, whoever has it.
#[tokio::test(start_paused = true)]
async fn a_list_of_allowed_nodes_changes_without_a_restart() {
    let fabric = Fabric::new(8);
    let cookie = Cookie::generate();
    let only = |nodes: &[&Node]| {
        nodes.iter().fold(Allowed::nobody(), |allowed, node| allowed.name(NodeName::clone(node.name())))
    };
    let calm = |local, host| builder(&fabric, local, host, cookie.clone()).config(unprobing());
    let (b, c) = (calm("b", 2).start().await.unwrap(), calm("c", 3).start().await.unwrap());
    let a = calm("a", 1).allow(only(&[&b])).start().await.unwrap();
    assert_eq!(a.trust().allowed(), Some(only(&[&b])));
    dial(&b, &a).await.unwrap();
    assert_eq!(dial(&c, &a).await, refused(AuthError::NotAllowed));
    assert_eq!(dial(&a, &c).await, refused(AuthError::NotAllowed));

    let mut events = a.cluster().node_events();
    let mut b_events = b.cluster().node_events();
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert_eq!(next(&mut b_events).await, NodeEvent::Up(a.id()));
    assert_eq!(a.trust().set_allowed(Some(only(&[&c]))).await.unwrap().closed, [b.name().clone()]);
    assert_eq!(next(&mut events).await, NodeEvent::Down(b.id(), DownReason::TrustChanged));
    assert_eq!(next(&mut b_events).await, NodeEvent::Down(a.id(), DownReason::TrustChanged));
    assert_eq!(dial(&b, &a).await, refused(AuthError::NotAllowed));
    dial(&c, &a).await.unwrap();
    assert_eq!(next(&mut events).await, NodeEvent::Up(c.id()));
    // Also one whose link is idle.
    tokio::time::sleep(secs(70)).await;
    assert_eq!(a.trust().set_allowed(Some(only(&[&b]))).await.unwrap().closed, [c.name().clone()]);
    assert_eq!(next(&mut events).await, NodeEvent::Down(c.id(), DownReason::TrustChanged));
    assert_eq!(dial(&a, &c).await, refused(AuthError::NotAllowed));

    a.trust().set_allowed(None).await.unwrap();
    dial(&a, &b).await.unwrap();
    dial(&a, &c).await.unwrap();
}

/// A list may name the key that goes with a name: another certificate of the same PKI for that name is not enough.
#[tokio::test(start_paused = true)]
async fn a_list_may_demand_a_key() {
    let fabric = Fabric::new(9);
    let pki = Pki::new();
    let b = pki.start(&fabric, "b", 2).await;
    let (name, key) = (b.name().clone(), b.trust().key());
    let a = builder(&fabric, "a", 1, pki.identity(&pki.sign("a", 1)));
    let a = a.allow(Allowed::nobody().name_with_key(name.clone(), key)).start().await.unwrap();
    dial(&a, &b).await.unwrap();
    dial(&b, &a).await.unwrap();
    b.trust().reload(pki.identity(&pki.sign("b", 2))).await.unwrap();
    a.cluster().disconnect(&name).await;
    assert_eq!(dial(&a, &b).await, refused(AuthError::NotAllowed));
    assert_eq!(dial(&b, &a).await, refused(AuthError::NotAllowed));
    a.trust().set_allowed(Some(Allowed::nobody().name_with_key(name, b.trust().key()))).await.unwrap();
    dial(&b, &a).await.unwrap();
}

/// With a cookie as a second factor, the certificate is not enough; and all nodes must have the same factors.
#[tokio::test(start_paused = true)]
async fn the_second_factor_is_demanded_of_both_ends() {
    let fabric = Fabric::new(10);
    let pki = Pki::new();
    let (cookie, other) = (Cookie::generate(), Cookie::generate());
    let with = |local: &str, host, cookie: &Cookie| {
        let identity = pki.identity(&pki.sign(local, host)).with_cookie(cookie.clone());
        builder(&fabric, local, host, identity).config(unprobing()).start()
    };
    let (a, b) = (with("a", 1, &cookie).await.unwrap(), with("b", 2, &cookie).await.unwrap());
    let (wrong, without) = (with("wrong", 3, &other).await.unwrap(), pki.start(&fabric, "without", 4).await);
    dial(&a, &b).await.unwrap();
    assert_eq!(dial(&a, &wrong).await, refused(AuthError::Proof));
    assert_eq!(dial(&wrong, &a).await, refused(AuthError::Proof));
    assert_eq!(dial(&a, &without).await, refused(AuthError::ModeMismatch));
    assert_eq!(dial(&without, &a).await, refused(AuthError::ModeMismatch));
    let none = without.trust().accept(&cookie).await;
    assert!(matches!(none, Err(TrustError::NoCookies)), "{none:?}");

    // It changes as it does where it is the only factor.
    let c = with("c", 5, &cookie).await.unwrap();
    dial(&a, &c).await.unwrap();
    let mut events = a.cluster().node_events();
    assert!(matches!(next(&mut events).await, NodeEvent::Up(_)));
    assert!(matches!(next(&mut events).await, NodeEvent::Up(_)));
    for node in [&a, &b] {
        node.trust().accept(&other).await.unwrap();
    }
    for node in [&a, &b] {
        node.trust().present(&other).await.unwrap();
    }
    assert_eq!(a.trust().forget(&cookie).await.unwrap().closed, [c.name().clone()]);
    assert!(b.trust().forget(&cookie).await.unwrap().closed.is_empty());
    assert_eq!(next(&mut events).await, NodeEvent::Down(c.id(), DownReason::TrustChanged));
    assert!(quiet(&mut events, secs(1)).await);
    assert_eq!(dial(&c, &a).await, refused(AuthError::Proof));
    dial(&wrong, &a).await.unwrap();
}

/// A certificate names its node at both ends of a link.
#[tokio::test(start_paused = true)]
async fn a_node_bears_the_name_of_its_certificate() {
    let fabric = Fabric::new(11);
    let pki = Pki::new();
    let a = pki.start(&fabric, "a", 1).await;
    // Its own checks tell it before any peer does.
    let error = builder(&fabric, "x", 2, pki.identity(&pki.sign("b", 2))).start().await.unwrap_err();
    let StartError::Identity(IdentityError::Flawed { flaw: IdentityFlaw::Name { wanted }, .. }) = error else {
        panic!("{error:?}")
    };
    assert_eq!(wanted, "the URI distribute://default/x@10.0.0.2:4370");
    // One that goes by host may bear any name there: the other policy refuses it, whoever dials.
    let cheat = pki.identity(&pki.sign("b", 2)).names(NamePolicy::SanHost);
    let cheat = builder(&fabric, "x", 2, cheat).allow(Allowed::nobody().name(a.name().clone())).start().await.unwrap();
    assert_eq!(dial(&a, &cheat).await, refused(AuthError::NameMismatch));
    assert_eq!(dial(&cheat, &a).await, refused(AuthError::NameMismatch));
}

/// A certificate near its end is told, until it is renewed; and the sweep ends links of those whose end has come.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_certificate_is_told_in_time() {
    let fabric = Fabric::new(12);
    let pki = Pki::new();
    // Expires in about ten days, and in about twenty.
    let until = |days: u64| {
        let at = std::time::SystemTime::now() + secs(days * 24 * 60 * 60);
        let seconds = at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let (year, month, day) = civil(seconds / (24 * 60 * 60));
        pki.ca.sign_altered(&[], &["distribute://default/a@10.0.0.1:4370"], move |params| {
            params.not_after = rcgen::date_time_ymd(year, month, day);
        })
    };
    let a = start(&fabric, "a", 1, pki.identity(&until(10))).await;
    let at = a.trust().not_after().unwrap();
    let left = at.duration_since(std::time::SystemTime::now()).unwrap();
    assert!((9..=10).contains(&(left.as_secs() / (24 * 60 * 60))), "{left:?}");
    let told = HealthReason::CertificateExpires { at };
    assert!(a.health().status().reasons().contains(&told), "{:?}", a.health().status());
    a.trust().reload(pki.identity(&until(20))).await.unwrap();
    assert!(a.trust().not_after().unwrap() > at);
    let reasons = a.health().status();
    assert!(!reasons.reasons().iter().any(|reason| matches!(reason, HealthReason::CertificateExpires { .. })));
}

/// The date of a day since 1970.
fn civil(days: u64) -> (i32, u8, u8) {
    let mut left = days;
    for year in 1970.. {
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let months = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        for (month, length) in (1..).zip(months) {
            if left < length {
                return (year, month, left as u8 + 1);
            }
            left -= length;
        }
    }
    unreachable!()
}

/// A certificate expires under a link that is up: the next look ends it, without a change of the trust.
#[tokio::test(start_paused = true)]
async fn links_do_not_outlive_certificates_for_long() {
    let fabric = Fabric::new(13);
    let pki = Pki::new();
    // Until the end of this second or the next, by the clock of certificates, which no test can turn.
    let soon = std::time::SystemTime::now() + secs(3);
    let expires = soon.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let signed = pki.ca.sign_altered(&[], &["distribute://default/b@10.0.0.2:4370"], move |params| {
        let (year, month, day) = civil(expires / (24 * 60 * 60));
        params.not_after = rcgen::date_time_ymd(year, month, day) + std::time::Duration::from_secs(expires % 86_400);
    });
    let config = || {
        let mut config: Config = unprobing();
        config.trust_recheck = secs(20);
        config
    };
    let a = builder(&fabric, "a", 1, pki.identity(&pki.sign("a", 1))).config(config()).start().await.unwrap();
    let b = builder(&fabric, "b", 2, pki.identity(&signed)).config(config()).start().await.unwrap();
    dial(&b, &a).await.unwrap();
    let mut events = a.cluster().node_events();
    let mut b_events = b.cluster().node_events();
    assert_eq!(next(&mut events).await, NodeEvent::Up(b.id()));
    assert_eq!(next(&mut b_events).await, NodeEvent::Up(a.id()));
    assert!(quiet(&mut events, secs(25)).await, "it is good yet");
    // Real time, which certificates go by.
    while soon > std::time::SystemTime::now() {
        std::thread::sleep(millis(50));
    }
    std::thread::sleep(millis(1100));
    assert_eq!(next(&mut events).await, NodeEvent::Down(b.id(), DownReason::TrustChanged));
    assert_eq!(next(&mut b_events).await, NodeEvent::Down(a.id(), DownReason::TrustChanged));
    assert_eq!(dial(&b, &a).await, refused(AuthError::Expired));
    assert_eq!(dial(&a, &b).await, refused(AuthError::Expired));
    let HealthReason::CertificateExpires { at } = b.health().status().reasons().last().unwrap().clone() else {
        panic!("{:?}", b.health().status())
    };
    assert!(at < std::time::SystemTime::now());
}

/// The two nodes of the development PKI, by their files.
fn development(node: &str) -> Identity {
    let file = |name: &str| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("certs").join(name);
    // The sources are checked out with the modes of their owner's choice.
    Identity::from_pem_shared(file("ca.pem"), file(&format!("{node}.pem")), file(&format!("{node}.key"))).unwrap()
}

/// The development certificates make a cluster by the hosts that they name and a cookie, over real sockets.
#[tokio::test]
async fn the_development_certificates_name_hosts() {
    let cookie = Cookie::generate();
    let start = async |name: &str, file: &str| {
        Node::builder(name).identity(development(file).with_cookie(cookie.clone())).start().await.unwrap()
    };
    let a = start("a@127.0.0.1:0", "a@127.0.0.1").await;
    let b = start("b@localhost:0", "b@127.0.0.1_4371").await;
    dial(&a, &b).await.unwrap();
    let in_a_year = std::time::SystemTime::now() + secs(365 * 24 * 60 * 60);
    assert!(a.trust().not_after().unwrap() > in_a_year, "there is time to make others");
}

/// And by the URIs that they name, without a cookie.
#[tokio::test(start_paused = true)]
async fn the_development_certificates_name_nodes() {
    let fabric = Fabric::new(14);
    let host = fabric.host([127, 0, 0, 1]);
    let start = async |name: &str, file: &str| {
        let identity = development(file).names(NamePolicy::SanUri);
        Node::builder(name).identity(identity).network(&host).start().await
    };
    let a = start("a@127.0.0.1", "a@127.0.0.1").await.unwrap();
    let b = start("b@127.0.0.1:4371", "b@127.0.0.1_4371").await.unwrap();
    dial(&a, &b).await.unwrap();
    dial(&b, &a).await.unwrap();
    let error = start("b@127.0.0.1:4372", "b@127.0.0.1_4371").await.unwrap_err();
    assert!(matches!(error, StartError::Identity(IdentityError::Flawed { .. })), "{error:?}");
}
