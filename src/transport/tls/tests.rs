//! Two ends over real sockets, one of which is not what it should be.

pub(crate) mod ca;
mod pki;

use std::net::{Ipv4Addr, SocketAddr};

use quinn::{Connection, ConnectionError, Endpoint, TransportErrorCode};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ED25519, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, DigitallySignedStruct, SignatureScheme};

use super::authority::leaf_params;
use super::*;
use crate::identity::{Cookie, ProofInput, Role, certificate_name};

#[tokio::test]
async fn two_nodes_of_a_cluster_authenticate_each_other() {
    let cookie = Cookie::generate();
    let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
    let met = meet(b.server_config(), a.client_config(Some(&node("b@host")))).await;
    let (dialler, responder) = (met.dialler.unwrap(), met.responder.unwrap());

    let (seen_by_a, seen_by_b) = (a.peer(&dialler).unwrap(), b.peer(&responder).unwrap());
    assert_eq!((*seen_by_a.spki(), *seen_by_b.spki()), (b.own_spki(), a.own_spki()));
    assert_ne!(a.own_spki(), b.own_spki());
    assert_eq!(seen_by_a.admits(&cluster(), &node("b@host")), Ok(()));
    assert_eq!(seen_by_b.admits(&cluster(), &node("a@host")), Ok(()));
    assert_eq!(seen_by_b.admits(&cluster(), &node("b@host")), Err(AuthError::NameMismatch));
    assert_eq!(seen_by_b.admits(&ClusterName::parse("other").unwrap(), &node("a@host")), Err(AuthError::NameMismatch));

    let exported = exporter(&dialler);
    assert_eq!(exported, exporter(&responder));
    let (name, own_spki, peer_spki) = (&node("a@host"), &a.own_spki(), seen_by_a.spki());
    let input = ProofInput { exporter: &exported, role: Role::Dialler, name, incarnation: 1, own_spki, peer_spki };
    assert!(seen_by_b.proofs()[0].verify(&input, &a.hello_key().proof(&input)));

    // Nothing but the protocol is told in clear.
    let clear = responder.handshake_data().unwrap().downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
    assert_eq!((clear.protocol.as_deref(), &clear.server_name), (Some(ALPN), &None));
}

#[tokio::test]
async fn every_connection_exports_another_key() {
    let cookie = Cookie::generate();
    let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
    let first = meet(b.server_config(), a.client_config(None)).await.dialler.unwrap();
    let second = meet(b.server_config(), a.client_config(None)).await.dialler.unwrap();
    assert_ne!(exporter(&first), exporter(&second));
}

#[tokio::test]
async fn another_cookie_is_refused_by_the_dialler() {
    let (a, b) = (tls(&Cookie::generate(), "a@host"), tls(&Cookie::generate(), "b@host"));
    let met = meet(b.server_config(), a.client_config(None)).await;
    met.dialler_refuses(0x133, AuthError::WrongCookie);
}

#[tokio::test]
async fn another_cluster_name_is_another_cookie() {
    let cookie = Cookie::generate();
    let other = ClusterName::parse("other").unwrap();
    let keys = ClusterKeys::derive(&cookie, &other);
    let (a, b) = (tls(&cookie, "a@host"), Tls::new(&other, &node("b@host"), Some(keys), None, None).unwrap());
    let met = meet(b.server_config(), a.client_config(None)).await;
    met.dialler_refuses(0x133, AuthError::WrongCookie);
}

#[tokio::test]
async fn a_dialler_without_certificate_is_refused() {
    let server = tls(&Cookie::generate(), "b@host");
    let met = meet(server.server_config(), rogue_client(None, &[ALPN])).await;
    met.responder_refuses(0x174, AuthError::NoCertificate).await;
}

#[tokio::test]
async fn a_dialler_that_does_not_check_the_server_is_refused() {
    let (server, stranger) = (tls(&Cookie::generate(), "b@host"), tls(&Cookie::generate(), "a@host"));
    let met = meet(server.server_config(), rogue_client(Some(&stranger), &[ALPN])).await;
    met.responder_refuses(0x133, AuthError::WrongCookie).await;
}

#[tokio::test]
async fn a_copied_certificate_is_worth_nothing_without_its_key() {
    let cookie = Cookie::generate();
    let (server, member) = (tls(&cookie, "b@host"), tls(&cookie, "a@host"));
    let thief = tls(&Cookie::generate(), "a@host")
        .presenting(|own| CertifiedKey::new(member.leaf().key.cert.clone(), own.key.clone()));
    let met = meet(server.server_config(), rogue_client(Some(&thief), &[ALPN])).await;
    met.responder_refuses(0x133, AuthError::WrongCookie).await;
    let met = meet(thief.server_config(), server.client_config(None)).await;
    met.dialler_refuses(0x133, AuthError::WrongCookie);
}

#[tokio::test]
async fn another_protocol_or_none_is_refused_even_with_the_cookie() {
    let cookie = Cookie::generate();
    let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
    for protocols in [&[b"h3".as_slice()][..], &[b"distribute/2"], &[]] {
        let met = meet(b.server_config(), rogue_client(Some(&a), protocols)).await;
        met.responder_refuses(0x178, AuthError::Protocol).await;
    }
    for protocols in [&[b"h3".as_slice()][..], &[]] {
        let met = meet(rogue_server(&b, protocols), a.client_config(None)).await;
        met.responder_refuses(0x178, AuthError::Protocol).await;
    }
}

#[tokio::test]
async fn another_quic_version_is_refused() {
    let cookie = Cookie::generate();
    let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
    let mut only_v1 = quinn::EndpointConfig::default();
    only_v1.supported_versions(vec![1]);
    let socket = std::net::UdpSocket::bind(LOOPBACK).unwrap();
    let runtime = quinn::default_runtime().unwrap();
    let server = quinn::ServerConfig::with_crypto(b.server_config());
    let server = Endpoint::new(only_v1, Some(server), socket, runtime).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(a.client_config(None)));
    config.version(0xff00_001d);
    let client = Endpoint::client(LOOPBACK).unwrap();
    let dial = client.connect_with(config, server.local_addr().unwrap(), SERVER_NAME).unwrap();
    assert_eq!(classify(&dial.await.unwrap_err()), Some(AuthError::Protocol));
}

#[tokio::test]
async fn another_node_than_the_dialled_one_is_refused_and_told_no_names() {
    let cookie = Cookie::generate();
    let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
    let met = meet(b.server_config(), a.client_config(Some(&node("c@host")))).await;
    met.dialler_refuses(0x12a, AuthError::NameMismatch);
    let Err(ConnectionError::ConnectionClosed(close)) = &met.responder else { panic!("{:?}", met.responder) };
    let reason = String::from_utf8_lossy(&close.reason);
    assert!(!reason.contains(".invalid"), "{reason}");
}

#[tokio::test]
async fn a_certificate_for_many_names_is_for_none() {
    let cookie = Cookie::generate();
    let a = tls(&cookie, "a@host");
    let dns = |name: String| SanType::DnsName(name.try_into().unwrap());
    let right = certificate_name(&cluster(), &node("b@host"));
    for names in [
        vec![dns("*.node.distribute.invalid".to_owned())],
        vec![dns(right.clone()), dns(certificate_name(&cluster(), &node("c@host")))],
        vec![],
    ] {
        let b = signed(&cookie, "b@host", |params| params.subject_alt_names = names);
        let met = meet(b.server_config(), a.client_config(Some(&node("b@host")))).await;
        met.dialler_refuses(0x12a, AuthError::NameMismatch);
        let met = meet(a.server_config(), b.client_config(None)).await;
        let seen = a.peer(met.responder.as_ref().unwrap()).unwrap();
        assert_eq!(seen.admits(&cluster(), &node("b@host")), Err(AuthError::NameMismatch));
    }
}

#[tokio::test]
async fn more_than_one_certificate_is_refused() {
    let cookie = Cookie::generate();
    let a = tls(&cookie, "a@host");
    let own_authority = authority(&cookie).params.self_signed(&*authority(&cookie).key).unwrap();
    for extra in [own_authority.der().clone(), a.leaf().key.cert[0].clone(), CertificateDer::from(vec![0x30, 0])] {
        let b = tls(&cookie, "b@host")
            .presenting(|own| CertifiedKey::new(vec![own.cert[0].clone(), extra.clone()], own.key.clone()));
        let met = meet(a.server_config(), b.client_config(None)).await;
        met.responder_refuses(0x12b, AuthError::Certificate).await;
        let met = meet(b.server_config(), a.client_config(None)).await;
        met.dialler_refuses(0x12b, AuthError::Certificate);
    }
}

#[tokio::test]
async fn certificates_of_another_kind_are_refused_although_the_authority_signed_them() {
    use ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};
    let cookie = Cookie::generate();
    let a = tls(&cookie, "a@host");
    let kinds: [fn(&mut CertificateParams); 6] = [
        |params| params.extended_key_usages = vec![],
        |params| params.extended_key_usages = vec![ServerAuth],
        |params| params.extended_key_usages = vec![ClientAuth],
        |params| params.extended_key_usages = vec![CodeSigning],
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)),
        |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
    ];
    for alter in kinds {
        let b = signed(&cookie, "b@host", alter);
        let met = meet(a.server_config(), b.client_config(None)).await;
        met.responder_refuses(0x12b, AuthError::Certificate).await;
        let met = meet(b.server_config(), a.client_config(None)).await;
        met.dialler_refuses(0x12b, AuthError::Certificate);
    }
    let any_purpose_more = |params: &mut CertificateParams| params.extended_key_usages.push(CodeSigning);
    let b = signed(&cookie, "b@host", any_purpose_more);
    assert!(meet(a.server_config(), b.client_config(None)).await.responder.is_ok());
}

#[tokio::test]
async fn a_certificate_out_of_date_is_refused() {
    let cookie = Cookie::generate();
    let a = tls(&cookie, "a@host");
    let dates: [fn(&mut CertificateParams); 2] = [
        |params| params.not_after = rcgen::date_time_ymd(1971, 1, 1),
        |params| params.not_before = rcgen::date_time_ymd(9999, 1, 1),
    ];
    for alter in dates {
        let b = signed(&cookie, "b@host", alter);
        let met = meet(a.server_config(), b.client_config(None)).await;
        met.responder_refuses(0x12d, AuthError::Expired).await;
    }
}

#[tokio::test]
async fn a_certificate_that_comes_from_no_cookie_is_refused() {
    let a = tls(&Cookie::generate(), "a@host");
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let certificate = leaf_params("b.example".to_owned()).self_signed(&key).unwrap();
    let b = tls(&Cookie::generate(), "b@host").presenting(|_| {
        let signer = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key.serialized_der())).unwrap();
        CertifiedKey::new(vec![certificate.der().clone()], signer)
    });
    let met = meet(a.server_config(), rogue_client(Some(&b), &[ALPN])).await;
    met.responder_refuses(0x130, AuthError::UnknownIssuer).await;
    let met = meet(b.server_config(), a.client_config(None)).await;
    met.dialler_refuses(0x130, AuthError::UnknownIssuer);
}

#[test]
fn the_authority_is_no_node() {
    let cookie = Cookie::generate();
    let a = tls(&cookie, "a@host");
    let authority = authority(&cookie);
    let certificate = authority.params.self_signed(&*authority.key).unwrap();
    let judged = a.current().trust.judge(&[certificate.der().clone()], now()).map(|_| ());
    assert_eq!(judged, Err(AuthError::Certificate));
}

#[tokio::test]
async fn only_ed25519_is_spoken() {
    let cookie = Cookie::generate();
    let a = tls(&cookie, "a@host");
    let verifier = Verifier::new(&a.current().trust, None);
    assert_eq!(ServerCertVerifier::supported_verify_schemes(&verifier), [SignatureScheme::ED25519]);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let authority = authority(&cookie);
    let issuer = Issuer::from_params(&authority.params, &*authority.key);
    let certificate = leaf_params("b.example".to_owned()).signed_by(&key, &issuer).unwrap();
    let b = tls(&cookie, "b@host").presenting(|_| {
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        CertifiedKey::new(vec![certificate.der().clone()], provider::sign::any_ecdsa_type(&der).unwrap())
    });
    let met = meet(b.server_config(), a.client_config(None)).await;
    met.responder_refuses(0x128, AuthError::Protocol).await;
    let met = meet(a.server_config(), b.client_config(None)).await;
    met.responder_refuses(0x174, AuthError::NoCertificate).await;
}

#[tokio::test]
async fn a_rotation_passes_without_a_moment_of_refusal() {
    let (old, new) = (Cookie::generate(), Cookie::generate());
    let states = [
        ("before", tls(&old, "a@host")),
        ("accepts both", tls(&old, "b@host").trusting(&[&old, &new])),
        ("presents the new one", tls(&new, "c@host").trusting(&[&old, &new])),
        ("after", tls(&new, "d@host")),
    ];
    for (i, (dialling, dialler)) in states.iter().enumerate() {
        for (j, (responding, responder)) in states.iter().enumerate() {
            let met = meet(responder.server_config(), dialler.client_config(None)).await;
            if i.abs_diff(j) <= 1 || (1..=2).contains(&i) && (1..=2).contains(&j) {
                let seen = responder.peer(met.responder.as_ref().unwrap()).unwrap();
                // The proof is checked with the key of the dialler's epoch, whichever that is.
                let input = some_input(&seen);
                let proof = dialler.hello_key().proof(&input);
                assert!(seen.proofs()[0].verify(&input, &proof), "{dialling} to {responding}");
            } else if dialler.accepts(responder) {
                met.responder_refuses(0x133, AuthError::WrongCookie).await;
            } else {
                met.dialler_refuses(0x133, AuthError::WrongCookie);
            }
        }
    }
}

#[tokio::test]
async fn trust_changes_under_a_running_endpoint() {
    let (old, new) = (Cookie::generate(), Cookie::generate());
    let (a, b) = (tls(&old, "a@host"), tls(&old, "b@host"));
    let mesh = Mesh::of(&b, rogue_client(Some(&a), &[ALPN]));
    let before = mesh.meet().await.responder.unwrap();
    assert!(b.peer(&before).is_ok());
    b.trust(&[&old, &new]);
    assert!(b.peer(&before).is_ok());
    b.trust(&[&new]);
    assert_eq!(b.peer(&before).unwrap_err(), AuthError::WrongCookie);
    mesh.meet().await.responder_refuses(0x133, AuthError::WrongCookie).await;
}

/// A node that presents another cookie is still the same: its certificate is another, its key is not.
#[tokio::test]
async fn another_cookie_is_presented_with_the_same_key() {
    let (old, new) = (Cookie::generate(), Cookie::generate());
    let keys = |cookie| ClusterKeys::derive(cookie, &cluster());
    let (a, b) = (tls(&old, "a@host"), tls(&new, "b@host"));
    let (spki, life, before) = (a.own_spki(), a.life_key(), a.leaf());
    assert!(a.accept(&keys(&new)).unwrap());
    assert!(a.present(&keys(&new)).unwrap());
    assert!(!a.present(&keys(&new)).unwrap(), "once is enough");
    assert!(a.forget(&keys(&old)).unwrap());
    assert_eq!((a.own_spki(), a.life_key()), (spki, life));
    assert_ne!(a.leaf().key.cert, before.key.cert);
    let met = meet(b.server_config(), a.client_config(Some(&node("b@host")))).await;
    let seen = b.peer(met.responder.as_ref().unwrap()).unwrap();
    assert_eq!((*seen.spki(), seen.admits(&cluster(), &node("a@host"))), (spki, Ok(())));
    assert!(met.dialler.is_ok());
}

/// A handshake goes by what held when it began: a link knows what it presented, whatever happens meanwhile.
#[tokio::test]
async fn a_change_during_a_handshake_is_not_seen_by_it() {
    let (old, new) = (Cookie::generate(), Cookie::generate());
    let keys = |cookie| ClusterKeys::derive(cookie, &cluster());
    let (a, b) = (tls(&old, "a@host"), tls(&old, "b@host").trusting(&[&old, &new]));
    let (config, own) = a.dial(None);
    a.accept(&keys(&new)).unwrap();
    a.present(&keys(&new)).unwrap();
    let met = meet(b.server_config(), config).await;
    let seen = b.peer(met.responder.as_ref().unwrap()).unwrap();
    assert!(seen.proofs()[0].is(own.hello_key().unwrap()), "the certificate and the proof belong to one cookie");
    assert!(!own.presents_as(&a.current()));
    let met = meet(b.server_config(), a.client_config(None)).await;
    let seen = b.peer(met.responder.as_ref().unwrap()).unwrap();
    assert!(seen.proofs()[0].is(a.current().hello_key().unwrap()));
}

/// The dialler keeps tickets, and would send early data if it ever got one.
#[tokio::test]
async fn a_dialler_that_lost_its_trust_cannot_resume() {
    let (old, new) = (Cookie::generate(), Cookie::generate());
    let (a, b) = (tls(&old, "a@host"), tls(&old, "b@host"));
    let mesh = Mesh::of(&b, rogue_client(Some(&a), &[ALPN]));
    for _ in 0..2 {
        let met = mesh.meet().await;
        let _open = met.responder.as_ref().unwrap().open_uni().await.unwrap().write_all(b"x").await;
        met.dialler.as_ref().unwrap().accept_uni().await.unwrap();
        let again = mesh.dial();
        assert!(again.into_0rtt().is_err(), "there was a ticket");
        mesh.drain().await;
    }
    b.trust(&[&new]);
    mesh.meet().await.responder_refuses(0x133, AuthError::WrongCookie).await;
}

/// A server that hands out tickets is checked anew at each dial.
#[tokio::test]
async fn a_responder_that_lost_its_trust_cannot_resume() {
    let (old, new) = (Cookie::generate(), Cookie::generate());
    let (a, b) = (tls(&old, "a@host"), tls(&old, "b@host"));
    let mesh = Mesh::new(rogue_server(&b, &[ALPN]), a.client_config(None));
    let met = mesh.meet().await;
    let _open = met.responder.as_ref().unwrap().open_uni().await.unwrap().write_all(b"x").await;
    met.dialler.as_ref().unwrap().accept_uni().await.unwrap();
    assert!(mesh.dial().into_0rtt().is_err(), "it keeps no tickets");
    mesh.drain().await;
    a.trust(&[&new]);
    mesh.redial(a.client_config(None)).await.dialler_refuses(0x133, AuthError::WrongCookie);
}

#[test]
fn golden_anchor() {
    let keys = cookie_of_bytes_0_to_31();
    let anchor = Authority::from_seed(&ClusterKeys::derive(&keys, &cluster()).ca_seed).unwrap().anchor;
    // Public keys by Python's `cryptography`.
    assert_eq!(
        data_encoding::HEXLOWER.encode(&anchor.subject_public_key_info),
        "300506032b6570032100cccb2b43cba50b2ecab10e17d9007dc7eb2bf8ce18134916eda743593d55cd6e"
    );
    assert_eq!(
        data_encoding::HEXLOWER.encode(&anchor.subject),
        "311b301906035504030c126469737472696275746520636c7573746572"
    );
}

/// The values that a node of any version, and any other implementation, must get.
#[test]
fn golden_values_of_a_cookie() {
    let text = include_str!("../../../certs/golden.txt");
    let entries = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    let (mut cookie, mut name, mut at, mut checked) = (None, None, None, 0);
    for (what, value) in entries {
        let hash = |bytes: &[u8]| data_encoding::HEXLOWER.encode(&Sha256::digest(bytes));
        let got = match what {
            "cookie" => {
                cookie = Some(Cookie::from_text(value).unwrap());
                continue;
            }
            "node" => {
                name = Some(node(value));
                continue;
            }
            "cluster" => {
                at = Some(ClusterName::parse(value).unwrap());
                continue;
            }
            _ => {
                let at = at.as_ref().unwrap();
                let keys = ClusterKeys::derive(cookie.as_ref().unwrap(), at);
                let anchor = Authority::from_seed(&keys.ca_seed).unwrap().into_anchor();
                // The anchor's part of it lacks the outermost header.
                let spki = [&[0x30, 0x2a], &anchor.subject_public_key_info[..]].concat();
                match what {
                    "ca-seed-sha256" => hash(&keys.ca_seed[..]),
                    "hello-key-sha256" => hash(keys.hello.bytes()),
                    "authority-spki-sha256" => hash(&spki),
                    "leaf-name" => certificate_name(at, name.as_ref().unwrap()),
                    _ => panic!("{what} is unknown"),
                }
            }
        };
        assert_eq!(got, value, "{what} of {at:?}");
        checked += 1;
    }
    assert_eq!(checked, 8);
}

#[test]
fn a_certificate_tells_neither_the_cluster_nor_the_name() {
    let cookie = cookie_of_bytes_0_to_31();
    let (one, two) = (tls(&cookie, "secretname@host"), tls(&cookie, "secretname@host"));
    let (one, two) = (&one.leaf().key.cert[0], &two.leaf().key.cert[0]);
    assert_ne!(one, two);
    assert!(one.len() < 450, "{} bytes", one.len());
    let anchor = authority(&cookie).anchor;
    let public_key = &anchor.subject_public_key_info[10..];
    let spki = [&[0x30, 0x2a], &anchor.subject_public_key_info[..]].concat();
    let hashes: [[u8; 32]; 3] = [
        Sha256::digest(public_key).into(),
        Sha256::digest(&spki).into(),
        Sha256::digest(&anchor.subject_public_key_info).into(),
    ];
    let holds = |part: &[u8]| one.windows(part.len()).any(|window| window == part);
    assert!(holds(&anchor.subject));
    assert!(!holds(b"secretname"));
    assert!(!holds(&public_key[..8]));
    for hash in hashes {
        assert!(!holds(&hash[..8]));
    }
}

#[test]
fn certificates_are_good_at_any_time() {
    let tls = tls(&Cookie::generate(), "a@host");
    for seconds in [0, 1 << 31, 1 << 32, 4_102_444_800, 250_000_000_000] {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        assert!(tls.current().trust.judge(&tls.leaf().key.cert, time).is_ok(), "{seconds}");
    }
}

#[test]
fn bytes_that_are_no_certificate_are_refused() {
    let tls = tls(&Cookie::generate(), "a@host");
    let trust = tls.current().trust.clone();
    let good = tls.leaf().key.cert[0].to_vec();
    for end in 0..good.len() {
        assert!(trust.judge(&[CertificateDer::from(&good[..end])], now()).is_err(), "{end}");
    }
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut altered = good.clone();
            altered[at] ^= 1 << bit;
            assert!(trust.judge(&[CertificateDer::from(altered)], now()).is_err(), "byte {at}, bit {bit}");
        }
    }
}

/// What is recorded today stays closed to a quantum computer.
#[cfg(feature = "aws-lc-rs")]
#[test]
fn the_first_key_exchange_is_post_quantum() {
    assert_eq!(crypto().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
}

#[test]
fn no_more_than_four_epochs() {
    let cookies: Vec<Cookie> = (0..5).map(|_| Cookie::generate()).collect();
    let tls = tls(&cookies[0], "a@host");
    let accept = |cookie| tls.accept(&ClusterKeys::derive(cookie, &cluster()));
    for cookie in &cookies[1..4] {
        assert!(accept(cookie).unwrap());
    }
    assert!(matches!(accept(&cookies[4]), Err(TrustError::TooManyCookies { max: 4 })));
    assert!(!accept(&cookies[3]).unwrap(), "it is accepted already");
    assert_eq!(tls.cookies(), 4);
}

#[test]
fn each_refusal_is_understood_by_the_other_side() {
    for error in [
        AuthError::WrongCookie,
        AuthError::UnknownIssuer,
        AuthError::Certificate,
        AuthError::NameMismatch,
        AuthError::Expired,
        AuthError::Revoked,
        AuthError::NotAllowed,
    ] {
        let rustls::Error::InvalidCertificate(certificate) = refusal(error.clone()) else { unreachable!() };
        let code = TransportErrorCode::crypto(AlertDescription::from(certificate).into());
        assert_eq!(classify(&ConnectionError::TransportError(code.into())), Some(error));
    }
}

#[test]
fn what_is_not_about_authentication_is_not_classified() {
    let closed = |code: u32| {
        let close = quinn::ApplicationClose { error_code: code.into(), reason: Default::default() };
        ConnectionError::ApplicationClosed(close)
    };
    let errors = [
        ConnectionError::TimedOut,
        ConnectionError::Reset,
        ConnectionError::LocallyClosed,
        closed(0x133),
        ConnectionError::TransportError(TransportErrorCode::PROTOCOL_VIOLATION.into()),
        // internal_error, and the first code beyond the alerts.
        ConnectionError::TransportError(TransportErrorCode::crypto(80).into()),
    ];
    for error in errors {
        assert_eq!(classify(&error), None, "{error:?}");
    }
}

#[tokio::test]
async fn debug_output_tells_nothing_that_depends_on_the_cookie() {
    let cookie = Cookie::generate();
    let (a, b) = (tls(&cookie, "a@host"), tls(&cookie, "b@host"));
    assert_eq!(format!("{a:?}"), "Tls { cluster: default, .. }");
    assert_eq!(
        format!("{:?}", Verifier::new(&a.current().trust, Some((cluster(), node("b@host"))))),
        "Verifier { .. }"
    );
    let met = meet(b.server_config(), a.client_config(None)).await;
    let peer = format!("{:?}", b.peer(met.responder.as_ref().unwrap()).unwrap());
    let fingerprint = data_encoding::HEXLOWER.encode(&a.own_spki()[..8]);
    assert_eq!(peer, format!("PeerCertificate {{ fingerprint: {fingerprint:?}, .. }}"));
}

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

fn cluster() -> ClusterName {
    ClusterName::default()
}

fn cookie_of_bytes_0_to_31() -> Cookie {
    Cookie::from_text("pk1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypqeeggyf").unwrap()
}

fn tls(cookie: &Cookie, name: &str) -> Tls {
    let keys = ClusterKeys::derive(cookie, &cluster());
    Tls::new(&cluster(), &node(name), Some(keys), None, None).unwrap()
}

fn authority(cookie: &Cookie) -> Authority {
    Authority::from_seed(&ClusterKeys::derive(cookie, &cluster()).ca_seed).unwrap()
}

/// A member whose certificate is signed like all others, but was altered before.
fn signed(cookie: &Cookie, name: &str, alter: impl FnOnce(&mut CertificateParams)) -> Tls {
    let mut params = leaf_params(certificate_name(&cluster(), &node(name)));
    alter(&mut params);
    tls(cookie, name).with_leaf(authority(cookie).sign(params).unwrap())
}

/// What somebody presents who keeps no rules, and whom it trusts: nobody else does either.
pub(crate) fn nobody() -> Arc<Credentials> {
    static NOBODY: std::sync::LazyLock<Tls> = std::sync::LazyLock::new(|| tls(&Cookie::generate(), "nobody@nowhere"));
    NOBODY.current()
}

fn some_input(peer: &PeerCertificate) -> ProofInput<'_> {
    static NAME: std::sync::LazyLock<NodeName> = std::sync::LazyLock::new(|| node("x@host"));
    let own_spki = peer.spki();
    ProofInput { exporter: &[0; 32], role: Role::Dialler, name: &NAME, incarnation: 1, own_spki, peer_spki: &[0; 32] }
}

impl Tls {
    pub(crate) fn server_config(&self) -> Arc<QuicServerConfig> {
        self.current().server()
    }

    pub(crate) fn client_config(&self, expected: Option<&NodeName>) -> QuicClientConfig {
        self.dial(expected).0
    }

    pub(crate) fn own_spki(&self) -> [u8; 32] {
        self.current().leaf.spki
    }

    pub(crate) fn hello_key(&self) -> HelloKey {
        self.current().hello.clone().unwrap()
    }

    fn leaf(&self) -> Arc<Leaf> {
        self.current().leaf.clone()
    }

    fn with_leaf(self, leaf: Leaf) -> Self {
        self.change(|now| {
            let (hello, trust) = (now.hello.clone(), now.trust.again());
            Ok(Some(Credentials::new(now.version + 1, Arc::new(leaf), hello, trust, None)))
        })
        .unwrap();
        self
    }

    fn presenting(self, alter: impl FnOnce(&CertifiedKey) -> CertifiedKey) -> Self {
        let leaf = self.leaf();
        self.with_leaf(Leaf { key: alter(&leaf.key).into(), spki: leaf.spki, not_after: None })
    }

    fn trusting(self, cookies: &[&Cookie]) -> Self {
        self.trust(cookies);
        self
    }

    fn trust(&self, cookies: &[&Cookie]) {
        let epoch = |cookie: &&Cookie| {
            let keys = ClusterKeys::derive(cookie, &cluster());
            Epoch { anchor: authority(cookie).into_anchor(), hello: keys.hello }
        };
        let roots = Roots::Cookies(cookies.iter().map(epoch).collect());
        self.change(|now| Ok(Some(now.with_trust(now.trust.with_roots(roots))))).unwrap();
    }

    fn accepts(&self, other: &Self) -> bool {
        self.current().trust.judge(&other.leaf().key.cert, now()).is_ok()
    }
}

/// A client that takes any server, resumes whenever it can, and presents what it is given.
pub(crate) fn rogue_client(identity: Option<&Tls>, protocols: &[&[u8]]) -> QuicClientConfig {
    let builder = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible));
    let mut config = match identity {
        Some(tls) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(tls.leaf().key.clone()))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(16);
    config.enable_early_data = true;
    config.try_into().unwrap()
}

/// A server that takes any client, and hands out tickets for early data.
pub(crate) fn rogue_server(identity: &Tls, protocols: &[&[u8]]) -> QuicServerConfig {
    let mut config = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(WebPkiClientVerifier::no_client_auth())
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.leaf().key.clone())));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    config.max_early_data_size = u32::MAX;
    config.try_into().unwrap()
}

#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Two endpoints on this host, one of which dials the other.
struct Mesh {
    client: Endpoint,
    server: Endpoint,
    /// Lets each arrival in by what holds then.
    serving: Option<Tls>,
}

/// How a connection began at both ends.
struct Met {
    dialler: Result<Connection, ConnectionError>,
    responder: Result<Connection, ConnectionError>,
    /// Dropping the endpoints would close the connections.
    _mesh: (Endpoint, Endpoint),
}

async fn meet(server: impl Into<Arc<QuicServerConfig>>, client: QuicClientConfig) -> Met {
    Mesh::new(server, client).meet().await
}

impl Mesh {
    fn of(serving: &Tls, client: QuicClientConfig) -> Self {
        Self { serving: Some(serving.clone()), ..Self::new(closed_config(), client) }
    }

    fn new(server: impl Into<Arc<QuicServerConfig>>, client: QuicClientConfig) -> Self {
        let server = Endpoint::server(quinn::ServerConfig::with_crypto(server.into()), LOOPBACK).unwrap();
        let mut dialling = Endpoint::client(LOOPBACK).unwrap();
        dialling.set_default_client_config(quinn::ClientConfig::new(Arc::new(client)));
        Self { client: dialling, server, serving: None }
    }

    fn dial(&self) -> quinn::Connecting {
        self.client.connect(self.server.local_addr().unwrap(), SERVER_NAME).unwrap()
    }

    async fn accept(&self) -> Result<Connection, ConnectionError> {
        let incoming = self.server.accept().await.unwrap();
        match &self.serving {
            Some(tls) => {
                let server = quinn::ServerConfig::with_crypto(tls.server_config());
                incoming.accept_with(Arc::new(server))?.await
            }
            None => incoming.accept()?.await,
        }
    }

    async fn meet(&self) -> Met {
        let (dialler, responder) = tokio::join!(self.dial(), self.accept());
        Met { dialler, responder, _mesh: (self.client.clone(), self.server.clone()) }
    }

    /// Dials with another configuration.
    async fn redial(mut self, client: QuicClientConfig) -> Met {
        self.client.set_default_client_config(quinn::ClientConfig::new(Arc::new(client)));
        self.meet().await
    }

    /// Takes the next dial and forgets it.
    async fn drain(&self) {
        let _ = self.accept().await;
    }
}

impl Met {
    #[track_caller]
    fn dialler_refuses(&self, code: u64, error: AuthError) {
        let dialler = self.dialler.as_ref().unwrap_err();
        let responder = self.responder.as_ref().unwrap_err();
        assert!(matches!(dialler, ConnectionError::TransportError(_)), "{dialler:?}");
        assert!(matches!(responder, ConnectionError::ConnectionClosed(_)), "{responder:?}");
        for end in [dialler, responder] {
            assert_eq!((code_of(end), classify(end).as_ref()), (code, Some(&error)), "{end:?}");
        }
    }

    /// The dialler may believe that it is connected, until it hears of the refusal.
    async fn responder_refuses(&self, code: u64, error: AuthError) {
        let dialler = match &self.dialler {
            Ok(connection) => &connection.closed().await,
            Err(error) => error,
        };
        let responder = self.responder.as_ref().unwrap_err();
        assert!(matches!(responder, ConnectionError::TransportError(_)), "{responder:?}");
        assert!(matches!(dialler, ConnectionError::ConnectionClosed(_)), "{dialler:?}");
        for end in [dialler, responder] {
            assert_eq!((code_of(end), classify(end).as_ref()), (code, Some(&error)), "{end:?}");
        }
    }
}

fn code_of(error: &ConnectionError) -> u64 {
    match error {
        ConnectionError::TransportError(error) => error.code.into(),
        ConnectionError::ConnectionClosed(close) => close.error_code.into(),
        other => panic!("{other:?} has no transport error code"),
    }
}
