//! Keeps the house in order: reads the sources, and says where a path goes up a floor or names what its floor may not.
//!
//! It reads text, not types: paths in `use` declarations and wherever else a path begins with `crate`, `self`, `super` or
//! a crate's name. Comments and strings do not count. Unit tests obey the same rules as the file that they stand in.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What may use what: a module names those of its own floor and of the floors below. Planned modules have their place.
const FLOORS: &[&[&str]] = &[
    &["id", "key", "config", "error", "identity", "trace", "correlation"],
    &["wire", "codec"],
    &["proto", "transport"],
    &["driver"],
    &[
        "node",
        "cluster",
        "message",
        "envelope",
        "messaging",
        "rpc",
        "ask",
        "batch",
        "retry",
        "registry",
        "groups",
        "monitor",
        "membership",
        "discovery",
        "gossip",
        "election",
        "health",
        "stats",
        "trust",
        "actor",
        "pieces",
        "sim",
    ],
    &[ROOF],
];

/// Neighbours on one floor that never meet.
const STRANGERS: [(&str, &str); 2] = [("proto", "transport"), ("transport", "proto")];

/// Crates that are named in one place only.
const CONFINED: &[(&str, &str)] = &[
    ("quinn", "transport/"),
    ("rustls", "transport/"),
    ("rcgen", "transport/"),
    ("webpki", "transport/"),
    ("bincode", "codec.rs"),
];

/// What a protocol cannot name: it gets time and chance as arguments, and shares nothing that changes.
const NOT_IN_PROTO: &[&str] = &[
    "tokio",
    "quinn",
    "getrandom",
    "std::sync",
    "std::thread",
    "std::net::UdpSocket",
    "std::time::SystemTime",
    "SystemTime",
    "Instant::now",
    "std::time::Instant::now",
    "crate::identity::fill_random",
];

/// Except this: it shares what is never written.
const SHARED_IN_PROTO: &str = "std::sync::Arc";

/// The module in `proto` that joins the machines.
const JOINS_MACHINES: &str = "node";

/// Tests that need a whole node, and what a user cannot reach: they stand on the roof.
const WHOLE_NODE_TESTS: &str = "driver/tests/";
const ROOF: &str = "tests";

/// Where one machine of `proto` may name another after all.
///
/// `links` judges what a greeting says: these are the values that `hello` has read, without behaviour. The two machines
/// do not know each other.
const BETWEEN_MACHINES: &[(&str, &[&str])] = &[(
    "proto/links.rs",
    &["proto::hello::Greeting", "proto::hello::INCARNATION_END", "proto::hello::Peer", "proto::hello::Refusal"],
)];

/// Every file keeps to its floor.
#[test]
fn use_goes_down_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let facade = Facade::read(&fs::read_to_string(root.join("lib.rs")).unwrap());
    let mut complaints = Vec::new();
    for file in sources(&root) {
        let name = file.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        complaints.extend(check(&name, &fs::read_to_string(&file).unwrap(), &facade));
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Each rule bites, and says where.
#[test]
fn the_rules_bite() {
    let facade = Facade::read("mod node;\npub use crate::node::{Builder, Node};\n");
    let rule = |file, source| check(file, source, &facade);
    let fine: [&str; 0] = [];

    assert_eq!(rule("wire.rs", "use crate::id::NodeId;"), fine);
    assert_eq!(
        rule("wire.rs", "\nuse crate::driver::Shared;"),
        ["src/wire.rs:2: crate::driver::Shared: wire is on floor 1, driver above it on floor 3"]
    );
    assert_eq!(
        rule("driver/mod.rs", "fn f(n: &crate::Node) {}"),
        ["src/driver/mod.rs:1: crate::node::Node: driver is on floor 3, node above it on floor 4"]
    );
    assert_eq!(
        rule("id.rs", "use crate::attic::Box;"),
        ["src/id.rs:1: crate::attic::Box: attic has no floor: give it one in tests/it/tidy.rs"]
    );
    assert_eq!(
        rule("proto/link.rs", "use crate::{\n    wire::Code,\n    transport::{self, Link},\n};"),
        [
            "src/proto/link.rs:1: crate::transport: proto and transport never name each other",
            "src/proto/link.rs:1: crate::transport::Link: proto and transport never name each other",
        ]
    );
    assert_eq!(
        rule("transport/link.rs", "use super::tls;\nlet x = super::super::proto::lanes::x();"),
        ["src/transport/link.rs:2: crate::proto::lanes::x: proto and transport never name each other"]
    );
    assert_eq!(
        rule("proto/lanes.rs", "mod tests {\n    use super::super::link::Clockwork;\n}"),
        ["src/proto/lanes.rs:2: crate::proto::link::Clockwork: the machines of proto never name each other"]
    );
    assert_eq!(rule("proto/links.rs", "use crate::proto::hello::{Greeting, Peer};"), fine);
    assert_eq!(
        rule("proto/links.rs", "use crate::proto::hello::Handshake;"),
        ["src/proto/links.rs:1: crate::proto::hello::Handshake: the machines of proto never name each other"]
    );
    assert_eq!(rule("proto/node.rs", "use super::links::Links;"), fine);
    assert_eq!(rule("proto/node/tests.rs", "use crate::proto::links::Links;"), fine);
    assert_eq!(
        rule("proto/link.rs", "use std::{sync::Mutex, time::Instant};\nlet now = Instant::now();"),
        [
            "src/proto/link.rs:1: std::sync::Mutex: a protocol names no std::sync",
            "src/proto/link.rs:2: Instant::now: a protocol names no Instant::now",
        ]
    );
    assert_eq!(rule("proto/link.rs", "mod tests {\n    let start = Instant::now();\n}"), fine);
    assert_eq!(rule("proto/link.rs", "use std::sync::Arc;"), fine);
    assert_eq!(
        rule("proto/link.rs", "use std::sync::atomic::AtomicU8;"),
        ["src/proto/link.rs:1: std::sync::atomic::AtomicU8: a protocol names no std::sync"]
    );
    assert_eq!(
        rule("driver/mod.rs", "fn f() -> quinn::Endpoint {}"),
        ["src/driver/mod.rs:1: quinn::Endpoint: quinn is named only in src/transport/"]
    );
    assert_eq!(rule("wire.rs", "use bincode as b;"), ["src/wire.rs:1: bincode: bincode is named only in src/codec.rs"]);
    let words = [
        "// use quinn::x;",
        "/* bincode::y */ let s = \"crate::node::Node\";",
        "let r = r#\"rcgen::\"z\"\"#; let c = ['\"', '\\'', 'x'];",
    ];
    assert_eq!(rule("id.rs", &words.join("\n")), fine);
}

/// Every example is run by `.ci/run`, and explained in the README beside it.
#[test]
fn every_example_is_run_and_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let entries = fs::read_dir(root.join("examples")).unwrap();
    let mut examples: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    examples.retain(|name| !matches!(name.as_str(), "README.md" | "common"));
    assert!(examples.contains(&"node.rs".to_owned()) && examples.contains(&"two_nodes".to_owned()), "{examples:?}");
    assert_eq!(unnamed(&examples, &read("examples/README.md"), &read(".ci/run")), [""; 0]);

    let found =
        unnamed(&["one.rs".into(), "two.sh".into(), "three".into()], "`one`(one.rs), three", "example one\n# three");
    assert_eq!(
        found,
        [
            "two.sh is not explained in examples/README.md",
            "two.sh is not run by .ci/run",
            "three is not run by .ci/run"
        ]
    );
}

fn unnamed(examples: &[String], explained: &str, run: &str) -> Vec<String> {
    let code: String =
        run.lines().filter(|line| !line.starts_with('#')).fold(String::new(), |code, line| code + line + "\n");
    let names =
        |text: &str, name: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
    let complaints = examples.iter().flat_map(|example| {
        let name = example.split('.').next().unwrap_or_default();
        let explained = (!names(explained, name)).then(|| format!("{example} is not explained in examples/README.md"));
        let run = (!names(&code, name)).then(|| format!("{example} is not run by .ci/run"));
        explained.into_iter().chain(run)
    });
    complaints.collect()
}

/// What `lib.rs` says: where the names come from that it hands out, so that `crate::Node` means `crate::node::Node`.
struct Facade {
    origin: BTreeMap<String, Vec<String>>,
}

impl Facade {
    fn read(source: &str) -> Self {
        let paths = paths(&without_text(source)).into_iter();
        let own = paths.filter(|path| path.is_use && path.segments[0] == "crate");
        Self { origin: own.map(|path| (path.segments.last().unwrap().clone(), path.segments[1..].to_vec())).collect() }
    }
}

/// The complaints about one file, which is named by its path below `src`.
fn check(file: &str, source: &str, facade: &Facade) -> Vec<String> {
    let stem = file.strip_suffix(".rs").unwrap();
    let mut module: Vec<&str> = stem.split('/').filter(|part| !matches!(*part, "mod" | "lib")).collect();
    let Some(&here) = module.first() else { return Vec::new() };
    let here = if file.starts_with(WHOLE_NODE_TESTS) { ROOF } else { here };
    let code = without_text(source);
    let mut complaints = Vec::new();
    let mut paths = paths(&code).into_iter().peekable();
    let depth = module.len();
    for (number, line) in code.lines().enumerate() {
        // Modules within a file begin and end at the margin; rustfmt sees to it.
        if let Some(inner) = line.strip_suffix('{').and_then(|head| head.trim_end().rsplit_once("mod "))
            && !line.starts_with(' ')
        {
            module.push(inner.1);
        } else if line == "}" {
            module.truncate(depth);
        }
        while let Some(path) = paths.next_if(|path| path.line == number + 1) {
            let path = absolute(&module, path.segments, facade);
            let text = path.join("::");
            // Virtual time begins somewhere, and `Instant` has no other first value. A long search says how long it took.
            let is_test = matches!(module[..], [.., "tests"] | ["proto", "sim", "search"]);
            let begins_a_test = is_test && text == "Instant::now";
            let breach = if path[0] == "crate" { breach_within(file, here, &path[1..]) } else { None };
            if let Some(rule) = breach.or_else(|| breach_by_name(file, here, &text)).filter(|_| !begins_a_test) {
                complaints.push(format!("src/{file}:{}: {text}: {rule}", number + 1));
            }
        }
    }
    complaints
}

/// Why a module may not use this one, if it may not.
fn breach_within(file: &str, here: &str, path: &[String]) -> Option<String> {
    let there = path.first()?.as_str();
    let floor = |module: &str| FLOORS.iter().position(|floor| floor.contains(&module));
    let unplaced = |module| Some(format!("{module} has no floor: give it one in tests/it/tidy.rs"));
    let Some(from) = floor(here) else { return unplaced(here) };
    let Some(to) = floor(there) else { return unplaced(there) };
    if to > from {
        return Some(format!("{here} is on floor {from}, {there} above it on floor {to}"));
    }
    if STRANGERS.contains(&(here, there)) {
        return Some("proto and transport never name each other".into());
    }
    let own_machine = file.strip_prefix("proto/").and_then(|name| name.split(['/', '.']).next());
    if let (Some(own), Some(other)) = (own_machine, path.get(1))
        && there == "proto"
        && own != other
        && !matches!(own, "mod" | "sim" | "tests")
        && own != JOINS_MACHINES
    {
        let text = path.join("::");
        let allowed = BETWEEN_MACHINES.iter().any(|(at, items)| *at == file && items.contains(&text.as_str()));
        return (!allowed).then(|| "the machines of proto never name each other".into());
    }
    None
}

/// Why a file may not name this, if it may not.
fn breach_by_name(file: &str, here: &str, text: &str) -> Option<String> {
    let names = |what: &str| text.strip_prefix(what).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    if let Some((what, place)) = CONFINED.iter().find(|(what, place)| names(what) && !file.starts_with(place)) {
        return Some(format!("{what} is named only in src/{place}"));
    }
    let what = NOT_IN_PROTO.iter().find(|what| here == "proto" && names(what) && !names(SHARED_IN_PROTO))?;
    Some(format!("a protocol names no {what}"))
}

/// A path as it reads from the root of the crate, or from another crate.
fn absolute(module: &[&str], mut segments: Vec<String>, facade: &Facade) -> Vec<String> {
    let mut base = match segments[0].as_str() {
        "crate" => Vec::new(),
        "self" | "super" => module.to_vec(),
        _ => return segments,
    };
    while matches!(segments.first().map(String::as_str), Some("crate" | "self" | "super")) {
        if segments.remove(0) == "super" {
            base.pop();
        }
    }
    let base = base.into_iter().map(str::to_owned);
    let mut path: Vec<String> = base.chain(segments).collect();
    if let Some(origin) = path.first().and_then(|first| facade.origin.get(first)) {
        path.splice(..1, origin.iter().cloned());
    }
    path.insert(0, "crate".into());
    path
}

/// A path in the text.
struct Named {
    line: usize,
    segments: Vec<String>,
    is_use: bool,
}

/// All paths of a file in the order of their lines.
fn paths(code: &str) -> Vec<Named> {
    let mut found = Vec::new();
    let (mut rest, mut counted, mut line) = (code, code, 1);
    let mut before = None;
    while let Some(first) = rest.chars().next() {
        line += counted[..counted.len() - rest.len()].matches('\n').count();
        counted = rest;
        let (word, after) = split_word(rest);
        if word.is_empty() {
            before = Some(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let starts_path = !matches!(before, Some(':' | '.'));
        if word == "use" && after.starts_with(char::is_whitespace) {
            let (tree, tail) = after.split_once(';').unwrap_or((after, ""));
            let tree: String = tree.split_whitespace().collect::<Vec<_>>().join(" ");
            found.extend(expand(&tree).into_iter().map(|segments| Named { line, segments, is_use: true }));
            rest = tail;
        } else {
            let mut segments = vec![word.to_owned()];
            rest = after;
            while let (word, after) = split_word(rest.strip_prefix("::").unwrap_or_default())
                && !word.is_empty()
            {
                segments.push(word.to_owned());
                rest = after;
            }
            if starts_path && segments.len() > 1 {
                found.push(Named { line, segments, is_use: false });
            }
        }
        before = Some('a');
    }
    found
}

fn split_word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len()))
}

/// The paths of a `use` tree: `a::{b, c::{self, d}}` is `a::b`, `a::c`, `a::c::d`.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim().trim_start_matches("::");
    let Some((prefix, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default().trim();
        return vec![path.split("::").map(|segment| segment.trim().to_owned()).collect()];
    };
    let prefix: Vec<String> = prefix.split("::").map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect();
    let group = group.rsplit_once('}').map_or(group, |(inside, _)| inside);
    let mut depth = 0;
    let parts = group.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let parts = parts.map(str::trim).filter(|part| !part.is_empty());
    let paths = parts.flat_map(expand).map(|path| {
        let inner = if path == ["self"] { Vec::new() } else { path };
        [prefix.clone(), inner].concat()
    });
    paths.collect()
}

/// The code with its comments and texts blanked out, on the same lines.
fn without_text(source: &str) -> String {
    let mut code = String::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '/' if rest.starts_with("//") => Some(rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => rest.find("*/").map(|at| at + 2),
            '"' => text_end(rest),
            'r' if !code.ends_with(|c: char| c.is_alphanumeric() || c == '_') => raw_text_end(rest),
            // A character, not a lifetime.
            '\'' if rest.starts_with("'\\") => rest.get(3..).and_then(|tail| tail.find('\'')).map(|at| at + 4),
            '\'' => rest.char_indices().nth(2).filter(|(_, c)| *c == '\'').map(|(at, _)| at + 1),
            _ => None,
        };
        if let Some(end) = end {
            code.extend(rest[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[end..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

fn text_end(text: &str) -> Option<usize> {
    let mut is_escaped = true; // The quote that begins it.
    let end = text.bytes().position(|b| {
        let ends = b == b'"' && !is_escaped;
        is_escaped = b == b'\\' && !is_escaped;
        ends
    });
    end.map(|at| at + 1)
}

fn raw_text_end(text: &str) -> Option<usize> {
    let hashes = text[1..].bytes().take_while(|b| *b == b'#').count();
    let body = text[1 + hashes..].strip_prefix('"')?;
    let end = body.find(&format!("\"{}", "#".repeat(hashes)))?;
    Some(1 + hashes + 1 + end + 1 + hashes)
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
