//! Certificates of an own PKI: who is let in, who is not and why, and what is wrong with one's own.

use proptest::strategy::Strategy;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Usage, IsCa, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    SignatureAlgorithm,
};

use super::super::pki::CERTIFICATE_MAX;
use super::ca::{self, Ca, Signed, self_signed};
use super::*;
use crate::identity::{Identity, IdentityFlaw};

/// The PKI of a cluster, and one of its nodes that keeps all rules.
struct World {
    ca: Ca,
    good: Tls,
}

impl World {
    fn new() -> Self {
        let ca = Ca::root("good");
        let good = start(&ca, &ca.sign(&["10.0.0.1"], &[]), "a@10.0.0.1").unwrap();
        Self { ca, good }
    }

    /// A node that presents this, although its own checks would say no. It trusts the cluster's authority.
    fn bad(&self, signed: &Signed) -> Tls {
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signed.key.clone()));
        let signer = provider::default_provider().key_provider.load_private_key(der).unwrap();
        let chain = signed.chain.iter().cloned().map(CertificateDer::from).collect();
        let key = CertifiedKey::new(chain, signer);
        self.member("z@10.0.0.9").with_leaf(Leaf { key: Arc::new(key), spki: [0; 32], not_after: None })
    }

    /// A member that keeps all rules.
    fn member(&self, name: &str) -> Tls {
        let host = name.rsplit('@').next().unwrap();
        start(&self.ca, &self.ca.sign(&[host], &[]), name).unwrap()
    }

    /// Either end is the good node: it refuses, and both ends know why.
    async fn refuses(&self, bad: &Tls, code: u64, why: AuthError) {
        let met = meet(self.good.server_config(), bad.client_config(None)).await;
        met.responder_refuses(code, why.clone()).await;
        let met = meet(bad.server_config(), self.good.client_config(None)).await;
        met.dialler_refuses(code, why);
    }

    async fn takes(&self, other: &Tls, name: &str) {
        let name = node(name);
        let met = meet(self.good.server_config(), other.client_config(Some(&node("a@10.0.0.1")))).await;
        let seen = self.good.peer(met.responder.as_ref().unwrap()).unwrap();
        assert_eq!((*seen.spki(), seen.admits(&cluster(), &name)), (other.own_spki(), Ok(())));
        assert!(met.dialler.is_ok());
        let met = meet(other.server_config(), self.good.client_config(Some(&name))).await;
        assert!(met.dialler.is_ok() && met.responder.is_ok());
    }
}

fn identity(ca: &Ca, signed: &Signed) -> Identity {
    Identity::from_pem_bytes(ca.root_pem(), signed.chain_pem(), signed.key_pem())
}

/// With a cookie beside it, so that the certificate may say as little as it likes.
fn start_as(identity: Identity, name: &str) -> Result<Tls, IdentityError> {
    static COOKIE: std::sync::LazyLock<Cookie> = std::sync::LazyLock::new(Cookie::generate);
    let keys = ClusterKeys::derive(&COOKIE, &cluster());
    Tls::new(&cluster(), &node(name), Some(keys), identity.pem, None)
}

fn start(ca: &Ca, signed: &Signed, name: &str) -> Result<Tls, IdentityError> {
    start_as(identity(ca, signed), name)
}

/// Without a cookie.
fn start_open(identity: Identity, name: &str, allowed: Option<Allowed>) -> Result<Tls, IdentityError> {
    Tls::new(&cluster(), &node(name), None, identity.pem, allowed)
}

#[tokio::test]
async fn keys_of_every_kind_and_chains_of_every_length_are_taken() {
    let world = World::new();
    let kinds: [&'static SignatureAlgorithm; 3] = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
    for algorithm in kinds {
        let signed = world.ca.sign_key(algorithm, &["10.0.0.2"], &[], |_| {});
        world.takes(&start(&world.ca, &signed, "b@10.0.0.2").unwrap(), "b@10.0.0.2").await;
    }
    #[cfg(feature = "aws-lc-rs")]
    {
        let signed = world.ca.sign_key(&rcgen::PKCS_RSA_SHA256, &["10.0.0.2"], &[], |_| {});
        world.takes(&start(&world.ca, &signed, "b@10.0.0.2").unwrap(), "b@10.0.0.2").await;
    }
    let mut below = world.ca.below("first", |_| {});
    for depth in ["second", "third", "fourth"] {
        let signed = below.sign(&["10.0.0.2"], &[]);
        world.takes(&start(&world.ca, &signed, "b@10.0.0.2").unwrap(), "b@10.0.0.2").await;
        below = below.below(depth, |_| {});
    }
    // With four behind it there are five.
    let signed = below.sign(&["10.0.0.2"], &[]);
    assert_eq!(signed.chain.len(), 5);
    let flaw = IdentityFlaw::TooMany { max: 4 };
    assert_flaw(start(&world.ca, &signed, "b@10.0.0.2"), "the given certificate", flaw);
    world.refuses(&world.bad(&signed), 0x12b, AuthError::Certificate).await;
    let without_usages = world.ca.sign_altered(&["10.0.0.2"], &[], |params| params.extended_key_usages.clear());
    world.takes(&start(&world.ca, &without_usages, "b@10.0.0.2").unwrap(), "b@10.0.0.2").await;
}

#[tokio::test]
async fn another_authority_is_refused_be_it_of_the_same_name() {
    let world = World::new();
    for name in ["other", "good"] {
        let other = Ca::root(name);
        world.refuses(&world.bad(&other.sign(&["10.0.0.2"], &[])), 0x130, AuthError::UnknownIssuer).await;
    }
    // An intermediate certificate that the peer does not send is not made up for.
    let mut signed = world.ca.below("below", |_| {}).sign(&["10.0.0.2"], &[]);
    signed.chain.truncate(1);
    world.refuses(&world.bad(&signed), 0x130, AuthError::UnknownIssuer).await;
}

#[tokio::test]
async fn a_cookie_and_a_pki_do_not_know_each_other() {
    let world = World::new();
    let with_cookie = tls(&Cookie::generate(), "b@10.0.0.2");
    let same_kind = world.ca.sign_key(&PKCS_ED25519, &["10.0.0.1"], &[], |_| {});
    let same_kind = start(&world.ca, &same_kind, "a@10.0.0.1").unwrap();
    let met = meet(same_kind.server_config(), with_cookie.client_config(None)).await;
    met.dialler_refuses(0x130, AuthError::UnknownIssuer);
    let met = meet(with_cookie.server_config(), same_kind.client_config(None)).await;
    met.dialler_refuses(0x130, AuthError::UnknownIssuer);
    let met = meet(same_kind.server_config(), rogue_client(Some(&with_cookie), &[ALPN])).await;
    met.responder_refuses(0x130, AuthError::UnknownIssuer).await;
    // With a cookie only Ed25519 is spoken, so these two do not come as far as their certificates.
    let met = meet(world.good.server_config(), with_cookie.client_config(None)).await;
    met.responder_refuses(0x128, AuthError::Protocol).await;
}

#[tokio::test]
async fn a_certificate_out_of_date_is_refused() {
    let world = World::new();
    let dates: [fn(&mut CertificateParams); 2] = [
        |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1),
        |params| params.not_before = rcgen::date_time_ymd(2998, 1, 1),
    ];
    for alter in dates {
        let signed = world.ca.sign_altered(&["10.0.0.2"], &[], alter);
        world.refuses(&world.bad(&signed), 0x12d, AuthError::Expired).await;
        let signed = world.ca.below("below", alter).sign(&["10.0.0.2"], &[]);
        world.refuses(&world.bad(&signed), 0x12d, AuthError::Expired).await;
    }
}

#[tokio::test]
async fn certificates_of_another_kind_are_refused() {
    let world = World::new();
    let kinds: [fn(&mut CertificateParams); 4] = [
        |params| params.extended_key_usages = vec![Usage::ServerAuth],
        |params| params.extended_key_usages = vec![Usage::ClientAuth],
        |params| params.extended_key_usages = vec![Usage::CodeSigning],
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
    ];
    for alter in kinds {
        let signed = world.ca.sign_altered(&["10.0.0.2"], &[], alter);
        world.refuses(&world.bad(&signed), 0x12b, AuthError::Certificate).await;
    }
    world.refuses(&world.bad(&self_signed(&["10.0.0.2"])), 0x12b, AuthError::Certificate).await;
    // One who may sign nothing has signed it.
    let no_authority = world.ca.below("no authority", |params| params.is_ca = IsCa::ExplicitNoCa);
    world.refuses(&world.bad(&no_authority.sign(&["10.0.0.2"], &[])), 0x12b, AuthError::Certificate).await;
}

#[tokio::test]
async fn a_copied_certificate_is_worth_nothing_without_its_key() {
    let world = World::new();
    let (victim, thief) = (world.ca.sign(&["10.0.0.2"], &[]), world.ca.sign(&["10.0.0.3"], &[]));
    let stolen = Signed { chain: victim.chain, ..thief };
    world.refuses(&world.bad(&stolen), 0x12b, AuthError::Certificate).await;
}

#[tokio::test]
async fn who_presents_no_certificate_is_refused() {
    let world = World::new();
    let met = meet(world.good.server_config(), rogue_client(None, &[ALPN])).await;
    met.responder_refuses(0x174, AuthError::NoCertificate).await;
}

#[tokio::test]
async fn the_revoked_and_the_blocked_are_refused() {
    let world = World::new();
    let below = world.ca.below("below", |_| {});
    let (by_root, by_below) = (world.ca.sign(&["10.0.0.2"], &[]), below.sign(&["10.0.0.2"], &[]));
    for (authority, revoked, other) in [(&world.ca, &by_root, &by_below), (&below, &by_below, &by_root)] {
        let good = || identity(&world.ca, &world.ca.sign(&["10.0.0.1"], &[]));
        let list = authority.revoke(&[revoked.serial, 999]);
        for good in [good().crl_pem(&list), good().crl_pem(authority.revoke_der(&[revoked.serial]))] {
            let good = start_as(good, "a@10.0.0.1").unwrap();
            let met = meet(good.server_config(), world.bad(revoked).client_config(None)).await;
            met.responder_refuses(0x12c, AuthError::Revoked).await;
            let met = meet(world.bad(revoked).server_config(), good.client_config(None)).await;
            met.dialler_refuses(0x12c, AuthError::Revoked);
            // The list of one authority says nothing of the other's.
            assert!(meet(good.server_config(), world.bad(other).client_config(None)).await.responder.is_ok());
        }
    }
    let member = world.member("b@10.0.0.2");
    let key = KeyHash::from_bytes(member.own_spki());
    assert!(world.good.set_blocked(key, true).unwrap());
    world.refuses(&member, 0x12c, AuthError::Revoked).await;
    assert!(world.good.set_blocked(key, false).unwrap());
    world.takes(&member, "b@10.0.0.2").await;
}

#[tokio::test]
async fn who_is_not_on_the_list_is_refused() {
    let world = World::new();
    let (member, other) = (world.member("b@10.0.0.2"), world.member("c@10.0.0.3"));
    world.good.set_allowed(Some(Allowed::nobody().key(KeyHash::from_bytes(other.own_spki())))).unwrap();
    // The key tells before anybody has said a name.
    world.refuses(&member, 0x131, AuthError::NotAllowed).await;
    world.takes(&other, "c@10.0.0.3").await;
    // By name alone, the dialling side knows it at once, and the responding side by the greeting.
    world.good.set_allowed(Some(Allowed::nobody().name(node("c@10.0.0.3")))).unwrap();
    let met = meet(member.server_config(), world.good.client_config(Some(&node("b@10.0.0.2")))).await;
    met.dialler_refuses(0x131, AuthError::NotAllowed);
    let met = meet(world.good.server_config(), member.client_config(None)).await;
    let seen = world.good.peer(met.responder.as_ref().unwrap()).unwrap();
    assert_eq!(seen.admits(&cluster(), &node("b@10.0.0.2")), Err(AuthError::NotAllowed));
    assert_eq!(seen.admits(&cluster(), &node("c@10.0.0.3")), Err(AuthError::NameMismatch), "a lie does not help");
    assert!(!world.good.may_admit(&node("b@10.0.0.2")));
    assert!(world.good.may_admit(&node("c@10.0.0.3")));
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused() {
    let world = World::new();
    let member = world.member("b@10.0.0.2");
    let met = meet(member.server_config(), world.good.client_config(Some(&node("b@10.0.0.3")))).await;
    met.dialler_refuses(0x12a, AuthError::NameMismatch);
    let met = meet(world.good.server_config(), member.client_config(None)).await;
    let seen = world.good.peer(met.responder.as_ref().unwrap()).unwrap();
    assert_eq!(seen.admits(&cluster(), &node("b@10.0.0.3")), Err(AuthError::NameMismatch));
    assert_eq!(seen.admits(&cluster(), &node("any@10.0.0.2:1")), Ok(()), "who has the host may bear any name there");
}

#[test]
fn names_as_each_policy_has_them() {
    let ca = Ca::root("good");
    let uri = "distribute://default/b@10.0.0.2:4370";
    let named = |policy, hosts: &[&str], uris: &[&str], name: &str| {
        let identity = identity(&ca, &ca.sign(hosts, uris)).names(policy);
        match start_as(identity, name) {
            Ok(_) => true,
            Err(IdentityError::Flawed { flaw: IdentityFlaw::Name { .. }, .. }) => false,
            Err(error) => panic!("{error:?}"),
        }
    };
    use NamePolicy::{AnyInCa, SanHost, SanUri};
    assert!(named(SanHost, &["10.0.0.2"], &[], "b@10.0.0.2"));
    assert!(named(SanHost, &["::1"], &[], "b@[::1]"));
    assert!(named(SanHost, &["db.example"], &[], "b@db.example"));
    assert!(named(SanHost, &["*.corp.example"], &[], "b@db.corp.example"));
    assert!(named(SanHost, &["other", "db.example"], &[], "b@DB.example"));
    assert!(!named(SanHost, &["*.corp.example"], &[], "b@a.db.corp.example"));
    assert!(!named(SanHost, &["10.0.0.3"], &[uri], "b@10.0.0.2"));
    assert!(!named(SanHost, &["10.0.0.2.example"], &[], "b@10.0.0.2"));

    assert!(named(SanUri, &[], &[uri], "b@10.0.0.2"));
    assert!(named(SanUri, &[], &["https://example.org/", uri], "b@10.0.0.2"));
    assert!(!named(SanUri, &["10.0.0.2"], &[], "b@10.0.0.2"));
    for wrong in [
        "distribute://default/b@10.0.0.2",
        "distribute://default/b@10.0.0.2:4371",
        "distribute://default/c@10.0.0.2:4370",
        "distribute://other/b@10.0.0.2:4370",
        "distribute://default/b@10.0.0.2:4370/",
        "Distribute://default/b@10.0.0.2:4370",
    ] {
        assert!(!named(SanUri, &["10.0.0.2"], &[wrong], "b@10.0.0.2"), "{wrong}");
    }
    assert!(named(SanUri, &[], &["distribute://default/caf%C3%A9%25@h:1"], "café%@h:1"));
    assert!(named(AnyInCa, &["elsewhere"], &[], "b@10.0.0.2"));
}

#[test]
fn certificates_alone_need_something_that_tells_members() {
    let ca = Ca::root("good");
    let signed = ca.sign(&["10.0.0.2"], &["distribute://default/b@10.0.0.2:4370"]);
    let start = |policy, allowed: Option<&Allowed>| match start_open(
        identity(&ca, &signed).names(policy),
        "b@10.0.0.2",
        allowed.cloned(),
    ) {
        Ok(tls) => Some(tls),
        Err(IdentityError::TooOpen) => None,
        Err(error) => panic!("{error:?}"),
    };
    let (names, keys) =
        (Allowed::nobody().name(node("b@10.0.0.2")), Allowed::nobody().key(KeyHash::from_bytes([1; 32])));
    use NamePolicy::{AnyInCa, SanHost, SanUri};
    assert_eq!(start(SanUri, None).unwrap().mode(), Mode::Pki);
    assert!(start(SanHost, None).is_none());
    assert!(start(AnyInCa, None).is_none());
    assert!(start(AnyInCa, Some(&names)).is_none(), "each may bear any name on the list");
    assert!(start(AnyInCa, Some(&keys)).is_some());
    // And it cannot be taken away later.
    let listed = start(SanHost, Some(&names)).unwrap();
    assert!(matches!(listed.set_allowed(None), Err(TrustError::Identity(IdentityError::TooOpen))));
    assert_eq!(listed.allowed(), Some(names));
    assert!(listed.set_allowed(Some(keys)).unwrap());
    let any = identity(&ca, &signed).names(AnyInCa).pem.unwrap();
    listed.set_allowed(Some(Allowed::nobody().name(node("b@10.0.0.2")))).unwrap();
    assert!(matches!(listed.reload(&any), Err(TrustError::Identity(IdentityError::TooOpen))));
}

#[track_caller]
fn assert_flaw(started: Result<Tls, IdentityError>, at: &str, expected: IdentityFlaw) {
    let error = started.unwrap_err();
    assert!(error.to_string().contains(at), "{error}");
    match error {
        IdentityError::Flawed { place, flaw } => assert_eq!((&*place, flaw), (at, expected)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_wrong_with_the_own_certificate_is_said_at_the_start() {
    const CERTIFICATE: &str = "the given certificate";
    let ca = Ca::root("good");
    let name = "b@10.0.0.2";
    type Alter = fn(&mut CertificateParams);
    let alter: [(IdentityFlaw, Alter); 5] = [
        (IdentityFlaw::Expired, |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1)),
        (IdentityFlaw::NotYetValid, |params| params.not_before = rcgen::date_time_ymd(2998, 1, 1)),
        (IdentityFlaw::Usages, |params| params.extended_key_usages = vec![Usage::ServerAuth]),
        (IdentityFlaw::Usages, |params| params.extended_key_usages = vec![Usage::ClientAuth]),
        (IdentityFlaw::IsAuthority, |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
    ];
    for (flaw, alter) in alter {
        assert_flaw(start(&ca, &ca.sign_altered(&["10.0.0.2"], &[], alter), name), CERTIFICATE, flaw);
    }
    let wanted = || IdentityFlaw::Name { wanted: "the host of b@10.0.0.2:4370".to_owned() };
    assert_flaw(start(&ca, &ca.sign(&["10.0.0.3"], &[]), name), CERTIFICATE, wanted());
    assert_flaw(
        start(&Ca::root("other"), &ca.sign(&["10.0.0.2"], &[]), name),
        CERTIFICATE,
        IdentityFlaw::UnknownIssuer,
    );
    assert_flaw(start(&Ca::root("good"), &ca.sign(&["10.0.0.2"], &[]), name), CERTIFICATE, IdentityFlaw::UnknownIssuer);
    assert_flaw(start(&ca, &self_signed(&["10.0.0.2"]), name), CERTIFICATE, IdentityFlaw::UnknownIssuer);
    let signed = ca.sign(&["10.0.0.2"], &[]);
    let revoked = identity(&ca, &signed).crl_pem(ca.revoke(&[signed.serial]));
    assert_flaw(start_as(revoked, name), CERTIFICATE, IdentityFlaw::Revoked);

    let (root, chain, key) = (ca.root_pem(), signed.chain_pem(), signed.key_pem());
    let texts = |root: &str, chain: &str, key: &str| start_as(Identity::from_pem_bytes(root, chain, key), name);
    assert!(texts(&root, &chain, &key).is_ok());
    assert_flaw(texts("", &chain, &key), "the given authorities", IdentityFlaw::NoCertificate);
    assert_flaw(texts(&root, &key, &key), CERTIFICATE, IdentityFlaw::NoCertificate);
    assert_flaw(texts(&root, &chain, &chain), "the given key", IdentityFlaw::NoKey);
    assert_flaw(texts(&root, &chain, ""), "the given key", IdentityFlaw::NoKey);
    let broken = chain.replacen("MI", "!!", 1);
    assert_flaw(texts(&root, &broken, &key), CERTIFICATE, IdentityFlaw::NotPem);
    let junk = ca::pem("CERTIFICATE", b"junk");
    assert_flaw(texts(&root, &junk, &key), CERTIFICATE, IdentityFlaw::Malformed);
    assert_flaw(texts(&junk, &chain, &key), "the given authorities", IdentityFlaw::Malformed);
    assert_flaw(texts(&chain, &chain, &key), "the given authorities", IdentityFlaw::NotAuthority);
    assert_flaw(
        texts(&self_signed(&["x"]).chain_pem(), &chain, &key),
        "the given authorities",
        IdentityFlaw::NotAuthority,
    );
    assert_flaw(texts(&root.repeat(65), &chain, &key), "the given authorities", IdentityFlaw::TooMany { max: 64 });
    assert!(texts(&root.repeat(64), &chain, &key).is_ok());
    let other = ca.sign(&["10.0.0.2"], &[]).key_pem();
    assert_flaw(texts(&root, &chain, &other), "the given key", IdentityFlaw::KeyMismatch);
    let junk = ca::pem("PRIVATE KEY", b"junk");
    assert_flaw(texts(&root, &chain, &junk), "the given key", IdentityFlaw::KeyKind);
    for list in ["", "junk", &*root] {
        let with_list = Identity::from_pem_bytes(&root, &chain, &key).crl_pem(list);
        assert_flaw(start_as(with_list, name), "the given revocation list", IdentityFlaw::Revocations);
    }
}

#[test]
fn the_first_of_a_chain_to_expire_sets_the_date() {
    let ca = Ca::root("good");
    let year =
        |year| SystemTime::UNIX_EPOCH + Duration::from_secs(rcgen::date_time_ymd(year, 1, 1).unix_timestamp() as u64);
    let until = |year| move |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(year, 1, 1);
    for (below, own, expected) in [(2999, 2500, 2500), (2400, 2500, 2400), (2500, 2500, 2500)] {
        let signed = ca.below("below", until(below)).sign_altered(&["10.0.0.2"], &[], until(own));
        let tls = start(&ca, &signed, "b@10.0.0.2").unwrap();
        assert_eq!(tls.not_after(), Some(year(expected)), "{below}, {own}");
        let left = year(expected).duration_since(SystemTime::now()).unwrap();
        assert!(tls.validity_left().unwrap().abs_diff(left) < Duration::from_secs(5));
    }
    assert_eq!(tls(&Cookie::generate(), "a@host").not_after(), None);
}

/// Another key under the same life: what a peer goes by to tell lives apart stays the same.
#[tokio::test]
async fn a_reload_changes_the_key_and_not_the_life() {
    let world = World::new();
    let (before, life, version) = (world.good.key(), world.good.life_key(), world.good.version());
    let signed = world.ca.sign(&["10.0.0.1"], &[]);
    assert!(world.good.reload(&identity(&world.ca, &signed).pem.unwrap()).unwrap());
    assert_ne!(world.good.key(), before);
    assert_eq!(world.good.life_key(), life);
    assert!(world.good.version() > version);
    world.takes(&world.member("b@10.0.0.2"), "b@10.0.0.2").await;
    // What cannot be used changes nothing.
    let now = world.good.key();
    let wrong = identity(&world.ca, &world.ca.sign(&["10.0.0.7"], &[])).pem.unwrap();
    assert!(matches!(world.good.reload(&wrong), Err(TrustError::Identity(IdentityError::Flawed { .. }))));
    assert_eq!(world.good.key(), now);
    let cookie = tls(&Cookie::generate(), "a@10.0.0.1");
    let good = identity(&world.ca, &signed).pem.unwrap();
    assert!(matches!(cookie.reload(&good), Err(TrustError::NoCertificates)));
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    let world = World::new();
    let trust = world.good.current().trust.clone();
    let good = world.ca.sign(&["10.0.0.2"], &[]).chain.remove(0);
    assert!(trust.judge(&[CertificateDer::from(&good[..])], now()).is_ok());
    for end in 0..good.len() {
        assert!(trust.judge(&[CertificateDer::from(&good[..end])], now()).is_err(), "{end}");
    }
    for at in 0..good.len() {
        let mut altered = good.clone();
        altered[at] ^= 1 << (at % 8);
        assert!(trust.judge(&[CertificateDer::from(altered)], now()).is_err(), "byte {at}");
    }
    assert_eq!(trust.judge(&[], now()).unwrap_err(), AuthError::NoCertificate);
    let large = CertificateDer::from(vec![0x30; CERTIFICATE_MAX + 1]);
    assert_eq!(trust.judge(&[CertificateDer::from(&good[..]), large], now()).unwrap_err(), AuthError::Certificate);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

    /// Whatever is in the files, there is an answer: never a panic, and never an identity.
    #[test]
    fn texts_that_are_no_pki_are_refused(
        parts in proptest::collection::vec(
            proptest::prop_oneof![
                "[ -~\n]{0,200}".prop_map(String::into_bytes),
                proptest::collection::vec(proptest::num::u8::ANY, 0..200),
                proptest::collection::vec(proptest::num::u8::ANY, 0..200)
                    .prop_map(|der| ca::pem("CERTIFICATE", &der).into_bytes()),
                proptest::collection::vec(proptest::num::u8::ANY, 0..200)
                    .prop_map(|der| ca::pem("X509 CRL", &der).into_bytes()),
            ],
            4,
        ),
        wrong in 0usize..4,
    ) {
        use std::sync::LazyLock;
        static CA: LazyLock<Ca> = LazyLock::new(|| Ca::root("good"));
        static SIGNED: LazyLock<Signed> = LazyLock::new(|| CA.sign(&["10.0.0.2"], &[]));
        // All but one of the four parts are as they should be.
        let text = |at: usize, right: String| if at == wrong { parts[at].clone() } else { right.into_bytes() };
        let identity = Identity::from_pem_bytes(
            text(0, CA.root_pem()),
            text(1, SIGNED.chain_pem()),
            text(2, SIGNED.key_pem()),
        );
        let identity = identity.crl_pem(text(3, CA.revoke(&[])));
        proptest::prop_assert!(start_as(identity, "b@10.0.0.2").is_err());
    }
}
