//! Which nodes are let in, of those that prove to be members.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER_PERMISSIVE;

use crate::id::NodeName;

/// The most entries of a list of allowed nodes.
pub const ALLOWED_MAX: usize = 16_384;

/// The SHA-256 of a public key, as a certificate holds it (its SubjectPublicKeyInfo, RFC 5280, section 4.1).
///
/// As a text it is 64 hexadecimal digits, with colons between pairs of them or without. `openssl x509 -pubkey -noout -in
/// shop.pem | openssl pkey -pubin -outform DER | sha256sum` tells that of a certificate, and
/// [`Trust::key`](crate::Trust::key) that of a running node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "fingerprint")]
#[doc(alias = "spki")]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Takes the 32 bytes of the hash.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for KeyHash {
    type Err = KeyHashError;

    fn from_str(text: &str) -> Result<Self, KeyHashError> {
        // 64 digits and 31 colons at most, before any other look at it.
        if text.len() > 95 {
            return Err(KeyHashError);
        }
        let has_colons = text.contains(':');
        if has_colons && !text.split(':').all(|pair| pair.len() == 2) {
            return Err(KeyHashError);
        }
        let digits = text.replace(':', "");
        let bytes = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).map_err(|_| KeyHashError)?;
        bytes.try_into().map(Self).map_err(|_| KeyHashError)
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyHash({self})")
    }
}

/// The text is not the hash of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hash of a key is 64 hexadecimal digits")]
pub struct KeyHashError;

/// Which nodes are let in, of those that prove to be members: by name, by the key of their certificate, or by both.
///
/// A node is allowed if one entry fits. An empty list allows nobody; a node without a list allows all members. It holds for
/// both directions: who is not on it is neither let in nor dialled. Give the same list to all nodes of a cluster: members that
/// do not let each other in still hear of each other by others. At most [`ALLOWED_MAX`] entries.
///
/// ```
/// use distribute::{Allowed, NodeName};
///
/// let name: NodeName = "shop@10.0.0.2".parse()?;
/// let allowed = Allowed::nobody().name(name.clone());
/// assert!(allowed.names().eq([&name]));
/// # Ok::<(), distribute::NameError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    names: BTreeSet<NodeName>,
    keys: BTreeSet<KeyHash>,
    pairs: BTreeSet<(NodeName, KeyHash)>,
}

impl Allowed {
    /// A list without entries.
    pub fn nobody() -> Self {
        Self::default()
    }

    /// Allows a node by its full name, whatever its key.
    #[must_use]
    pub fn name(mut self, name: NodeName) -> Self {
        self.names.insert(name);
        self
    }

    /// Allows whoever holds a key, by any name that its certificate permits. Only for a PKI: a node with a cookie has
    /// another key in each life.
    #[must_use]
    pub fn key(mut self, key: KeyHash) -> Self {
        self.keys.insert(key);
        self
    }

    /// Allows a node by its full name, with this key alone.
    #[must_use]
    pub fn name_with_key(mut self, name: NodeName, key: KeyHash) -> Self {
        self.pairs.insert((name, key));
        self
    }

    /// Returns the names that are allowed whatever their key, in their order.
    pub fn names(&self) -> impl Iterator<Item = &NodeName> {
        self.names.iter()
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.names.len() + self.keys.len() + self.pairs.len()
    }

    /// Returns true if nobody is allowed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each entry names a key.
    pub(crate) fn demands_keys(&self) -> bool {
        self.names.is_empty()
    }

    pub(crate) fn admits(&self, name: &NodeName, key: KeyHash) -> bool {
        self.names.contains(name) || self.keys.contains(&key) || self.pairs.contains(&(name.clone(), key))
    }

    /// Whether a node of that name may be allowed, by a key that is not known yet.
    pub(crate) fn may_admit_name(&self, name: &NodeName) -> bool {
        let first = (name.clone(), KeyHash([0; 32]));
        let has_pair = self.pairs.range(first..).next().is_some_and(|(paired, _)| paired == name);
        !self.keys.is_empty() || self.names.contains(name) || has_pair
    }

    /// Whether whoever holds that key may be allowed, by a name that is not known yet.
    pub(crate) fn may_admit_key(&self, key: KeyHash) -> bool {
        !self.names.is_empty() || self.keys.contains(&key) || self.pairs.iter().any(|(_, paired)| *paired == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).unwrap()
    }

    fn key(byte: u8) -> KeyHash {
        KeyHash::from_bytes([byte; 32])
    }

    #[test]
    fn the_hash_of_a_key_survives_its_text() {
        let bytes: [u8; 32] = std::array::from_fn(|i| (i * 7) as u8);
        let hash = KeyHash::from_bytes(bytes);
        assert_eq!(hash.to_string().parse(), Ok(hash));
        assert_eq!(hash.to_string().to_uppercase().parse(), Ok(hash));
        let pairs: Vec<_> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(pairs.join(":").parse(), Ok(hash));
        let text = hash.to_string();
        for bad in ["", &text[..62], &text[1..], &format!("{text}00"), &text.replace('0', "g"), &format!(":{text}")] {
            assert_eq!(bad.parse::<KeyHash>(), Err(KeyHashError), "{bad:?}");
        }
        assert_eq!("ab:".repeat(1000).parse::<KeyHash>(), Err(KeyHashError));
    }

    #[test]
    fn one_fitting_entry_is_enough() {
        let (a, b, c) = (name("a@h"), name("b@h"), name("c@h"));
        let list = Allowed::nobody().name(a.clone()).key(key(2)).name_with_key(c.clone(), key(3));
        assert_eq!(list.len(), 3);
        for (who, with, is_allowed) in
            [(&a, 9, true), (&b, 9, false), (&b, 2, true), (&b, 3, false), (&c, 3, true), (&c, 9, false), (&c, 2, true)]
        {
            assert_eq!(list.admits(who, key(with)), is_allowed, "{who} with {with}");
        }
        assert!(Allowed::nobody().is_empty());
        assert!(!Allowed::nobody().admits(&a, key(1)));
    }

    #[test]
    fn half_of_what_is_to_be_known_already_rules_some_out() {
        let (a, b) = (name("a@h"), name("b@h"));
        let named = Allowed::nobody().name(a.clone());
        assert_eq!([&a, &b].map(|name| named.may_admit_name(name)), [true, false]);
        assert!(named.may_admit_key(key(1)), "the name tells");
        let keyed = Allowed::nobody().key(key(1));
        assert!(keyed.may_admit_name(&b), "the key tells");
        assert_eq!([1, 2].map(|byte| keyed.may_admit_key(key(byte))), [true, false]);
        let paired = Allowed::nobody().name_with_key(a.clone(), key(7));
        assert_eq!([&a, &b].map(|name| paired.may_admit_name(name)), [true, false]);
        assert_eq!([7, 8].map(|byte| paired.may_admit_key(key(byte))), [true, false]);
        assert!(!named.demands_keys());
        assert!(keyed.demands_keys() && paired.demands_keys());
    }
}
