//! What a cluster derives from its cookie, and the proofs made with it.
//!
//! The constants are part of the protocol: all nodes of a cluster must derive the same keys, so none of them changes without
//! a new ALPN.
//!
//! Nothing but the two keys is derived from the cookie. Whatever else needs a key (connection ids, reset tokens) draws
//! a random one: a value that travels in clear and depends on the cookie would let a listener test guesses.

use std::fmt;
use std::sync::Arc;

use data_encoding::BASE32_NOPAD;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::cookie::Cookie;
use crate::id::{ClusterName, NodeName};

/// What a cluster derives from its cookie. Short-lived: the seed is dropped once the node's certificate is made.
pub(crate) struct ClusterKeys {
    /// The Ed25519 private key (RFC 8032, section 5.1.5) of the cluster's certificate authority.
    pub(crate) ca_seed: Zeroizing<[u8; 32]>,
    /// The key of the proofs in HELLO.
    pub(crate) hello: HelloKey,
}

impl ClusterKeys {
    /// Derives the keys with HKDF-SHA256 (RFC 5869). Slow when [`Cookie::needs_stretching`].
    pub(crate) fn derive(cookie: &Cookie, cluster: &ClusterName) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"distribute/v1"), &cookie.key_material(cluster)[..]);
        let expand = |label: &[u8]| {
            let mut key = Zeroizing::new([0; 32]);
            hkdf.expand_multi_info(&[label, b"\0", cluster.as_str().as_bytes()], &mut key[..])
                .expect("HKDF-SHA256 gives up to 8160 bytes");
            key
        };
        Self { ca_seed: expand(b"ca-ed25519-seed"), hello: HelloKey(Arc::new(expand(b"hello-proof"))) }
    }
}

impl fmt::Debug for ClusterKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKeys([redacted])")
    }
}

/// The key of the proofs in HELLO: the second lock behind TLS. Clones share it; the last one wipes it.
#[derive(Clone)]
pub(crate) struct HelloKey(Arc<Zeroizing<[u8; 32]>>);

impl HelloKey {
    /// Whether both come from the same cookie. Both are this node's own, so the time that it takes tells nobody anything.
    pub(crate) fn is(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }

    /// Returns the proof: HMAC-SHA256 (RFC 2104) over the input.
    pub(crate) fn proof(&self, input: &ProofInput<'_>) -> [u8; 32] {
        self.mac(input).finalize().into_bytes().into()
    }

    /// Returns whether a proof was made with this key over this input, in constant time.
    pub(crate) fn verify(&self, input: &ProofInput<'_>, proof: &[u8]) -> bool {
        self.mac(input).verify_slice(proof).is_ok()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0[..]
    }

    fn mac(&self, input: &ProofInput<'_>) -> Hmac<Sha256> {
        let name = input.name.as_str().as_bytes();
        let name_len = u16::try_from(name.len()).expect("a node name has at most 255 bytes");
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0[..]).expect("HMAC takes keys of any length");
        mac.update(input.exporter);
        mac.update(&[input.role as u8]);
        mac.update(&name_len.to_be_bytes());
        mac.update(name);
        mac.update(&input.incarnation.to_be_bytes());
        mac.update(input.own_spki);
        mac.update(input.peer_spki);
        mac
    }
}

impl fmt::Debug for HelloKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HelloKey([redacted])")
    }
}

/// Which end of a connection proves itself. In the proof, so that it cannot be sent back to whom it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    /// The end that dialled: the TLS client.
    Dialler = 1,
    /// The end that answered: the TLS server.
    Responder = 2,
}

/// What a proof covers: this TLS session, and who proves to whom.
#[derive(Clone, Copy)]
pub(crate) struct ProofInput<'a> {
    /// The keying material that both ends export from the TLS session (RFC 8446, section 7.5).
    pub(crate) exporter: &'a [u8; 32],
    /// The role of the prover.
    pub(crate) role: Role,
    /// The name of the prover.
    pub(crate) name: &'a NodeName,
    /// The incarnation of the prover.
    pub(crate) incarnation: u64,
    /// SHA-256 of the prover's public key, as its certificate holds it.
    pub(crate) own_spki: &'a [u8; 32],
    /// SHA-256 of the public key of the end that checks the proof.
    pub(crate) peer_spki: &'a [u8; 32],
}

impl fmt::Debug for ProofInput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProofInput")
            .field("role", &self.role)
            .field("name", self.name)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

/// Returns the DNS name in a node's certificate.
///
/// A hash rather than the name, so that every node name fits a label (RFC 1035, section 2.3.4), and what a stranger sees
/// of a certificate tells no names. `.invalid` resolves nowhere (RFC 6761, section 6.4).
pub(crate) fn certificate_name(cluster: &ClusterName, node: &NodeName) -> String {
    let hash = Sha256::new()
        .chain_update(b"distribute/v1/node-name\0")
        .chain_update(cluster.as_str())
        .chain_update(b"\0")
        .chain_update(node.as_str())
        .finalize();
    format!("n{}.node.distribute.invalid", BASE32_NOPAD.encode(&hash).to_ascii_lowercase())
}

/// Fills a buffer with random bytes that secrets may be made of.
pub(crate) fn fill_random(buffer: &mut [u8]) {
    getrandom::fill(buffer).expect("the operating system gives random bytes");
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;

    use super::*;

    /// The bytes 0 to 31.
    const GENERATED: &str = "pk1-aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dypqeeggyf";

    fn keys(cookie: &Cookie, cluster: &str) -> ClusterKeys {
        ClusterKeys::derive(cookie, &ClusterName::parse(cluster).unwrap())
    }

    fn hex(bytes: &[u8]) -> String {
        HEXLOWER.encode(bytes)
    }

    // The golden values were computed by another implementation: Python's hashlib and `cryptography`.

    #[test]
    fn golden_keys_of_a_generated_cookie() {
        let cookie = Cookie::from_text(GENERATED).unwrap();
        assert_eq!(cookie.reveal(), GENERATED);
        assert!(!cookie.needs_stretching());
        let default = keys(&cookie, "default");
        assert_eq!(hex(&default.ca_seed[..]), "1d2d73211a45cbdd9e532dbfd46e26d827d1c881d873174a973395b6a7a9aca0");
        assert_eq!(
            hex(&Sha256::digest(&default.hello.0[..])),
            "5064966eeb0405b0aed21e88517d24e7769f5771d8ac3ce3aea465911bb46390"
        );
        let prod = keys(&cookie, "prod");
        assert_eq!(hex(&prod.ca_seed[..]), "10f6b662ce877e9b27e617bcbde811f773666cc2c9603026d3585a46bec50084");
    }

    #[test]
    fn golden_keys_of_a_passphrase() {
        let cookie = Cookie::from_passphrase("a long enough passphrase").unwrap();
        assert!(cookie.needs_stretching());
        let default = keys(&cookie, "default");
        assert_eq!(hex(&default.ca_seed[..]), "59b77596d32a2b75d8e209012e2261d800c1583bb6ba54b4ca14f9cb8131aa39");
        assert_eq!(
            hex(&Sha256::digest(&default.hello.0[..])),
            "346051ca98f310e576c583b76c690bd18ba1dd5477b408e6255cf21f402bb2d2"
        );
    }

    #[test]
    fn golden_certificate_name() {
        let node = NodeName::parse("shop@10.0.0.2").unwrap();
        assert_eq!(
            certificate_name(&ClusterName::default(), &node),
            "nht5chfmnkiypnifw336oedaz7edpvyeoych5mahyrqmd4bs2ectq.node.distribute.invalid"
        );
    }

    #[test]
    fn golden_proof_and_every_part_of_its_input_counts() {
        let key = keys(&Cookie::from_text(GENERATED).unwrap(), "default").hello;
        let (node, other) = (NodeName::parse("shop@10.0.0.2").unwrap(), NodeName::parse("shop@10.0.0.3").unwrap());
        let input = ProofInput {
            exporter: &[0x11; 32],
            role: Role::Dialler,
            name: &node,
            incarnation: 7,
            own_spki: &[0x22; 32],
            peer_spki: &[0x33; 32],
        };
        let proof = key.proof(&input);
        assert_eq!(hex(&proof), "dea64d051e18b3262d7e0b5b34f7b34511655409a2ba986a29fab4f8519fa546");
        assert!(key.verify(&input, &proof));

        for (i, altered) in [
            ProofInput { exporter: &[0x10; 32], ..input },
            ProofInput { role: Role::Responder, ..input },
            ProofInput { name: &other, ..input },
            ProofInput { incarnation: 8, ..input },
            ProofInput { own_spki: &[0x23; 32], ..input },
            ProofInput { peer_spki: &[0x32; 32], ..input },
            ProofInput { own_spki: input.peer_spki, peer_spki: input.own_spki, ..input },
        ]
        .iter()
        .enumerate()
        {
            assert!(!key.verify(altered, &proof), "alteration {i}");
        }
        assert!(!key.verify(&input, &proof[..31]));
        assert!(!key.verify(&input, &[]));
        assert!(!keys(&Cookie::generate(), "default").hello.verify(&input, &proof));
    }
}
