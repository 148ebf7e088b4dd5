//! Who is who: cluster, node, incarnation, mailbox.
//!
//! All of these are plain values that travel inside messages. Parsing is strict and bounded, because names arrive from
//! configuration files and from peers alike.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The port of a node whose name does not say another.
pub const DEFAULT_PORT: u16 = 4370;

/// The longest node name, in bytes.
pub const NODE_NAME_MAX: usize = 255;

/// The longest cluster name, in bytes.
pub const CLUSTER_NAME_MAX: usize = 64;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty.
    #[error("the name is empty")]
    Empty,
    /// The name has more bytes than allowed.
    #[error("the name has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Bytes in the name.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A character that names do not hold.
    #[error("the name holds {0:?}, which is not allowed")]
    Character(char),
    /// A node name without `@`, or with more than one.
    #[error("a node name is `local@host` or `local@host:port`, with exactly one `@`")]
    NotLocalAtHost,
    /// The part before `@` is empty.
    #[error("the part before `@` is empty")]
    NoLocal,
    /// The part after `@` is not an address or a DNS name.
    #[error("the host is neither an IP address nor a DNS name")]
    Host,
    /// The part after the last `:` is not a port.
    #[error("the port is not a number between 0 and 65535")]
    Port,
}

/// The host of a node: an address, or a DNS name that is resolved at every dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum HostName {
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
    /// A DNS name.
    Dns(String),
}

/// A node's name: `local@host:port`.
///
/// The host is an IPv4 address, an IPv6 address in brackets, or a DNS name; the port is part of the name, so there is no
/// port mapper, and it is [`DEFAULT_PORT`] when the text leaves it out. Names are compared as text: `a@localhost:4370`
/// and `a@127.0.0.1:4370` are two names. Cloning is cheap.
///
/// Names have 1 to 255 bytes. The local part is UTF-8 without control characters, white space, `@`, `/` or `:`. DNS names
/// are lower-cased.
///
/// ```
/// use distribute::NodeName;
///
/// let name: NodeName = "shop@10.0.0.2".parse()?;
/// assert_eq!(name.to_string(), "shop@10.0.0.2:4370");
/// assert_eq!((name.local(), name.port()), ("shop", 4370));
/// assert!("shop".parse::<NodeName>().is_err());
/// # Ok::<(), distribute::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "node")]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// Parses `local@host` or `local@host:port`.
    ///
    /// # Errors
    /// [`NameError`] says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        // Before any other look at the text: a peer may send 64 KiB of it.
        if text.len() > NODE_NAME_MAX {
            return Err(NameError::TooLong { len: text.len(), max: NODE_NAME_MAX });
        }
        let (local, place) = text.split_once('@').ok_or(NameError::NotLocalAtHost)?;
        if place.contains('@') {
            return Err(NameError::NotLocalAtHost);
        }
        if local.is_empty() {
            return Err(NameError::NoLocal);
        }
        if let Some(bad) = local.chars().find(|c| c.is_control() || c.is_whitespace() || matches!(c, '/' | ':')) {
            return Err(NameError::Character(bad));
        }
        let (host, port) = split_port(place)?;
        let host = parse_host(host)?;
        let name = match host {
            HostName::Ip(IpAddr::V6(ip)) => format!("{local}@[{ip}]:{port}"),
            HostName::Ip(ip) => format!("{local}@{ip}:{port}"),
            HostName::Dns(dns) => format!("{local}@{dns}:{port}"),
        };
        // The port that the text left out counts too: what travels is the full name.
        if name.len() > NODE_NAME_MAX {
            return Err(NameError::TooLong { len: name.len(), max: NODE_NAME_MAX });
        }
        Ok(Self(name.into()))
    }

    /// Returns the whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the part before `@`.
    pub fn local(&self) -> &str {
        self.0.split_once('@').map_or("", |(local, _)| local)
    }

    /// Returns the host.
    pub fn host(&self) -> HostName {
        self.place().0
    }

    /// Returns the port.
    pub fn port(&self) -> u16 {
        self.place().1
    }

    fn place(&self) -> (HostName, u16) {
        let place = self.0.split_once('@').map_or("", |(_, place)| place);
        let (host, port) = split_port(place).expect("checked when the name was made");
        (parse_host(host).expect("checked when the name was made"), port)
    }

    /// The same name with another port: what a node that was bound to port 0 is called.
    pub(crate) fn with_port(&self, port: u16) -> Self {
        let stem = self.0.rsplit_once(':').map_or("", |(stem, _)| stem);
        Self(format!("{stem}:{port}").into())
    }
}

fn split_port(place: &str) -> Result<(&str, u16), NameError> {
    let (host, port) = match place.rsplit_once(':') {
        // `[::1]` ends with the bracket; `[::1]:4370` does not.
        Some((host, port)) if !place.ends_with(']') => (host, Some(port)),
        _ => (place, None),
    };
    match port {
        None => Ok((host, DEFAULT_PORT)),
        Some(port) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            port.parse().map(|port| (host, port)).map_err(|_| NameError::Port)
        }
        Some(_) => Err(NameError::Port),
    }
}

fn parse_host(host: &str) -> Result<HostName, NameError> {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or(NameError::Host)?;
        return inner.parse().map(|ip| HostName::Ip(IpAddr::V6(ip))).map_err(|_| NameError::Host);
    }
    if let Ok(ip) = host.parse::<std::net::Ipv4Addr>() {
        return Ok(HostName::Ip(ip.into()));
    }
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // A last label of digits only would be a mistyped IPv4 address (RFC 3696, section 2).
    let last_is_number = host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if host.is_empty() || last_is_number || !host.split('.').all(label_is_good) {
        return Err(NameError::Host);
    }
    Ok(HostName::Dns(host.to_ascii_lowercase()))
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<&str> for NodeName {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for NodeName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl TryFrom<&String> for NodeName {
    type Error = NameError;

    fn try_from(text: &String) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<&Self> for NodeName {
    type Error = NameError;

    fn try_from(name: &Self) -> Result<Self, NameError> {
        Ok(name.clone())
    }
}

impl Serialize for NodeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

/// A cluster's name: 1 to 64 bytes of `a` to `z`, `0` to `9`, `.`, `_` and `-`.
///
/// The same cookie under another cluster name is another cluster. The default is `default`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    /// Parses a cluster name.
    ///
    /// # Errors
    /// [`NameError`] says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > CLUSTER_NAME_MAX {
            return Err(NameError::TooLong { len: text.len(), max: CLUSTER_NAME_MAX });
        }
        match text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-')) {
            Some(bad) => Err(NameError::Character(bad)),
            None => Ok(Self(text.into())),
        }
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ClusterName {
    fn default() -> Self {
        Self("default".into())
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<&str> for ClusterName {
    type Error = NameError;

    fn try_from(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for ClusterName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl TryFrom<&String> for ClusterName {
    type Error = NameError;

    fn try_from(text: &String) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

/// One life of a node, from start to stop: a name and its incarnation.
///
/// A node that restarts under its old name is another `NodeId`. Incarnations of one name are ordered.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId {
    name: NodeName,
    incarnation: u64,
}

impl NodeId {
    pub(crate) fn new(name: NodeName, incarnation: u64) -> Self {
        Self { name, incarnation }
    }

    /// Returns the node's name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Returns the number of this life. Later lives of one name have greater numbers.
    #[doc(alias = "creation")]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.name, self.incarnation)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A mailbox's identity: the life of the node that it lives on, and its serial there.
///
/// Serials are never used twice in one incarnation, so a `Pid` never comes to mean another mailbox.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "AnyPid")]
pub struct Pid {
    node: NodeId,
    serial: u64,
}

/// Things by the serial of their mailbox.
pub(crate) type BySerial<T> = HashMap<u64, T, BuildHasherDefault<SerialHasher>>;

/// Spreads serials by Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, 6.4). Serials are counted up by
/// the node that they belong to, so nobody can choose those of another to collide.
#[derive(Debug, Default)]
pub(crate) struct SerialHasher(u64);

impl Hasher for SerialHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, serial: u64) {
        let spread = (self.0 ^ serial).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The map takes its buckets from the low bits and its tags from the high ones.
        self.0 = spread ^ (spread >> 32);
    }
}

/// What may arrive as a [`Pid`].
#[derive(Deserialize)]
#[serde(rename = "Pid")]
struct AnyPid {
    node: NodeId,
    serial: u64,
}

impl TryFrom<AnyPid> for Pid {
    type Error = &'static str;

    fn try_from(AnyPid { node, serial }: AnyPid) -> Result<Self, Self::Error> {
        // Serials are counted from 1, and have to fit a varint on the wire.
        if serial < 1 << 62 { Ok(Self { node, serial }) } else { Err("a serial that no mailbox can have") }
    }
}

impl Pid {
    pub(crate) fn new(node: NodeId, serial: u64) -> Self {
        Self { node, serial }
    }

    /// Returns the node that the mailbox lives on.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Returns the mailbox's number on its node.
    pub fn serial(&self) -> u64 {
        self.serial
    }
}

impl From<&Self> for Pid {
    fn from(pid: &Self) -> Self {
        pid.clone()
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.serial)
    }
}

impl fmt::Debug for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Result<&str, NameError>) {
        let got = NodeName::parse(text);
        assert_eq!(got.as_ref().map(NodeName::as_str), expect.as_ref().map(|s| *s), "{text:?}");
    }

    /// As from the command line or a file: nobody has to know how the text is owned.
    #[test]
    fn a_text_is_a_name_however_it_is_owned() {
        let (node, cluster) = ("a@h:1".to_owned(), "c".to_owned());
        let nodes = [NodeName::try_from(&*node), NodeName::try_from(&node), NodeName::try_from(node.clone())];
        assert!(nodes.iter().all(|name| name.as_ref().is_ok_and(|name| name.as_str() == node)), "{nodes:?}");
        let clusters =
            [ClusterName::try_from(&*cluster), ClusterName::try_from(&cluster), ClusterName::try_from(cluster.clone())];
        assert!(
            clusters.iter().all(|name| name.as_ref().is_ok_and(|name| name.to_string() == cluster)),
            "{clusters:?}"
        );
    }

    #[test]
    fn node_names_are_read_in_full() {
        check("shop@10.0.0.2", Ok("shop@10.0.0.2:4370"));
        check("shop@10.0.0.2:0", Ok("shop@10.0.0.2:0"));
        check("shop@[::1]", Ok("shop@[::1]:4370"));
        check("shop@[2001:DB8::1]:99", Ok("shop@[2001:db8::1]:99"));
        check("shop@Node-1.Example.com:65535", Ok("shop@node-1.example.com:65535"));
        check("büro@localhost", Ok("büro@localhost:4370"));
    }

    #[test]
    fn what_is_no_node_name_says_why() {
        check("", Err(NameError::Empty));
        check("shop", Err(NameError::NotLocalAtHost));
        check("a@b@c", Err(NameError::NotLocalAtHost));
        check("@host", Err(NameError::NoLocal));
        check("a b@host", Err(NameError::Character(' ')));
        check("a\u{7}@host", Err(NameError::Character('\u{7}')));
        check("a@", Err(NameError::Host));
        check("a@-x", Err(NameError::Host));
        check("a@10.0.0.256", Err(NameError::Host));
        check("a@[::1", Err(NameError::Host));
        check("a@host:", Err(NameError::Port));
        check("a@host:65536", Err(NameError::Port));
        check("a@host:+1", Err(NameError::Port));
        check("a@::1", Err(NameError::Host));
    }

    #[test]
    fn the_longest_name_fits_and_one_more_byte_does_not() {
        let fits = format!("{}@h:4370", "a".repeat(NODE_NAME_MAX - 7));
        check(&fits, Ok(&fits));
        let over = format!("a{fits}");
        check(&over, Err(NameError::TooLong { len: 256, max: 255 }));
        let over_with_its_port = format!("{}@h", "a".repeat(NODE_NAME_MAX - 6));
        check(&over_with_its_port, Err(NameError::TooLong { len: 256 + 3 - 3, max: 255 }));
    }

    #[test]
    fn parts_of_a_name() {
        let name = NodeName::parse("shop@[::1]:9").unwrap();
        assert_eq!(name.host(), HostName::Ip("::1".parse().unwrap()));
        assert_eq!(name.port(), 9);
        assert_eq!(name.with_port(10).as_str(), "shop@[::1]:10");
        assert_eq!(NodeName::parse("a@db").unwrap().host(), HostName::Dns("db".into()));
    }

    /// A peer may put any number into a message: one that the wire cannot carry is refused where it is decoded.
    #[test]
    fn the_largest_serial_is_read_and_one_more_is_not() {
        let json = |serial: u64| format!(r#"{{"node":{{"name":"a@h:1","incarnation":1}},"serial":{serial}}}"#);
        let largest = (1 << 62) - 1;
        assert_eq!(serde_json::from_str::<Pid>(&json(largest)).unwrap().serial(), largest);
        assert!(serde_json::from_str::<Pid>(&json(largest + 1)).is_err());
    }

    #[test]
    fn cluster_names() {
        assert_eq!(ClusterName::default().as_str(), "default");
        assert!(ClusterName::parse(&"a".repeat(64)).is_ok());
        assert_eq!(ClusterName::parse(&"a".repeat(65)), Err(NameError::TooLong { len: 65, max: 64 }));
        assert_eq!(ClusterName::parse("Prod"), Err(NameError::Character('P')));
    }
}
