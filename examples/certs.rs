//! Makes a small PKI for a cluster: an authority, and a certificate with its key for each node.
//!
//! ```sh
//! cargo run --example certs -- --out my-certs --node shop@10.0.0.2 --node shop@10.0.0.3
//! ```
//!
//! In `my-certs` are then `ca.pem`, and for each node a certificate and a key, `shop@10.0.0.2.pem` and `shop@10.0.0.2.key`,
//! which go to that node's host together with `ca.pem`. The certificates name the node in both ways that
//! `NamePolicy` knows: its host, and its full name as a URI. `ca.key` signs whatever it is asked for: keep it off the hosts
//! of nodes. Run again with other nodes to have them signed by the same authority. No file is ever overwritten.
//!
//! Options: `--cluster NAME` (the default is `default`), `--days N` (how long they are valid, 365), `--subject TEXT` (what
//! the certificates say that they are, `DEVELOPMENT ONLY`).

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use distribute::{Cookie, HostName, Identity, NamePolicy, Node, NodeName};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What was asked for.
struct Options {
    out: PathBuf,
    nodes: Vec<String>,
    cluster: String,
    days: u64,
    subject: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    std::fs::create_dir_all(&options.out)?;
    let (authority, key) = authority(&options)?;
    let issuer = Issuer::from_params(&authority, &key);
    for text in &options.nodes {
        let name: NodeName = text.parse()?;
        let stem = text.replace(':', "_");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = node(&options, &name)?.signed_by(&key, &issuer)?;
        write(&options.out.join(format!("{stem}.pem")), 0o644, &pem("CERTIFICATE", certificate.der()))?;
        write(&options.out.join(format!("{stem}.key")), 0o600, &pem("PRIVATE KEY", &key.serialize_der()))?;
        println!("signed {name}");
    }
    if let Some(text) = options.nodes.first() {
        try_out(&options, text).await?;
    }
    Ok(())
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            out: PathBuf::new(),
            nodes: Vec::new(),
            cluster: "default".to_owned(),
            days: 365,
            subject: "DEVELOPMENT ONLY".to_owned(),
        };
        while let Some(option) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{option} needs a value"));
            match &*option {
                "--out" => options.out = value()?.into(),
                "--node" => options.nodes.push(value()?),
                "--cluster" => options.cluster = value()?,
                "--days" => options.days = value()?.parse()?,
                "--subject" => options.subject = value()?,
                _ => return Err(format!("{option} is no option: --out DIR --node NAME [--node NAME ...]").into()),
            }
        }
        if options.out.as_os_str().is_empty() {
            return Err("--out says in which directory the files go".into());
        }
        Ok(options)
    }
}

/// The authority that is there, or a new one.
fn authority(options: &Options) -> Result<(CertificateParams, KeyPair)> {
    let (certificate_file, key_file) = (options.out.join("ca.pem"), options.out.join("ca.key"));
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&format!("distribute authority of {}", options.cluster), &options.subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, options.days);
    if key_file.exists() {
        // Certificates say by whose name and key they were signed, and both are the same as then.
        let der = PrivatePkcs8KeyDer::from_pem_file(&key_file)?;
        return Ok((params, KeyPair::try_from(&der)?));
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    write(&key_file, 0o600, &pem("PRIVATE KEY", &key.serialize_der()))?;
    write(&certificate_file, 0o644, &pem("CERTIFICATE", certificate.der()))?;
    println!("made an authority: {}", certificate_file.display());
    Ok((params, key))
}

/// What a node's certificate says.
fn node(options: &Options, name: &NodeName) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(name.local(), &options.subject);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let mut hosts = vec![name.host()];
    if hosts[0] == HostName::Dns("localhost".to_owned()) || matches!(hosts[0], HostName::Ip(ip) if ip.is_loopback()) {
        hosts = vec![
            HostName::Ip([127, 0, 0, 1].into()),
            HostName::Ip(std::net::Ipv6Addr::LOCALHOST.into()),
            HostName::Dns("localhost".to_owned()),
        ];
    }
    for host in hosts {
        params.subject_alt_names.push(match host {
            HostName::Ip(ip) => SanType::IpAddress(ip),
            HostName::Dns(name) => SanType::DnsName(name.try_into()?),
            _ => return Err("a host of another kind".into()),
        });
    }
    let uri = format!("distribute://{}/{}", options.cluster, in_uri(name.as_str()));
    params.subject_alt_names.push(SanType::URI(uri.try_into()?));
    valid_for(&mut params, options.days);
    Ok(params)
}

/// A name as it stands in a URI: what is not ASCII, or means something else there, is percent-encoded.
fn in_uri(name: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'@' | b':' | b'[' | b']' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    name.bytes().map(encode).collect()
}

fn subject(name: &str, what: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, what);
    subject.push(DnType::CommonName, name);
    subject
}

/// From yesterday on, because clocks differ.
fn valid_for(params: &mut CertificateParams, days: u64) {
    let today = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / 86_400);
    let date = |days: u64| {
        let (year, month, day) = civil(days);
        rcgen::date_time_ymd(year, month, day)
    };
    params.not_before = date(today.saturating_sub(1));
    params.not_after = date(today + days);
}

/// The date of a day since 1970, up to the year 9999.
fn civil(mut days: u64) -> (i32, u8, u8) {
    for year in 1970..=9999 {
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let months = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        for (month, length) in (1..).zip(months) {
            if days < length {
                return (year, month, days as u8 + 1);
            }
            days -= length;
        }
    }
    (9999, 12, 31)
}

/// DER as a text (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let body = data_encoding::BASE64.encode(der);
    let lines: String = body.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

/// Writes a file that is not there yet.
fn write(path: &Path, mode: u32, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode;
    let mut file = options.open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

/// Starts the first node with what was made, as a program would: its own checks say whether all is well.
async fn try_out(options: &Options, text: &str) -> Result<()> {
    let name: NodeName = text.parse()?;
    let file = |end: &str| options.out.join(format!("{}.{end}", text.replace(':', "_")));
    let identity = Identity::from_pem(options.out.join("ca.pem"), file("pem"), file("key"))?;
    // Bound elsewhere, because the node may be meant for another host, or run here already.
    let node = Node::builder(&name)
        .cluster(&*options.cluster)
        .identity(identity.names(NamePolicy::SanUri).with_cookie(Cookie::generate()))
        .bind(([127, 0, 0, 1], 0).into())
        .start()
        .await?;
    println!("{name} starts with it; its key is {}", node.trust().key());
    node.shutdown().await;
    Ok(())
}
