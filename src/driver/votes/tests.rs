use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn name(local: &str) -> NodeName {
    NodeName::parse(&format!("{local}@10.0.0.1:4370")).unwrap()
}

fn cluster(name: &str) -> ClusterName {
    ClusterName::try_from(name).unwrap()
}

fn set(version: u64, locals: &[&str]) -> Arc<Set> {
    Arc::new(Set { version, names: locals.iter().map(|local| name(local)).collect() })
}

fn vote(term: u64) -> Vote {
    let (set, led) = (set(2, &["a", "b", "d"]), Some(set(1, &["a", "b", "c"])));
    Vote { set, term, choice: Choice::For(name("b")), led, seen: 3 }
}

/// Of node `a` of cluster `shop`.
fn open(directory: &Path) -> Result<VoteDir, VoteError> {
    VoteDir::open(directory, cluster("shop"), name("a"))
}

/// The only vote in there.
fn only_vote(directory: &Path) -> PathBuf {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let votes: Vec<_> = entries.filter(|path| path.extension().is_some_and(|ending| ending == "vote")).collect();
    assert_eq!(votes.len(), 1, "{votes:?}");
    votes.into_iter().next().unwrap()
}

#[test]
fn what_was_written_last_is_read_by_the_next_life() {
    let directory = tempfile::tempdir().unwrap();
    let votes = open(directory.path()).unwrap();
    assert_eq!(votes.load("billing"), Ok(None));
    votes.store("billing", &vote(7)).unwrap();
    votes.store("billing", &vote(8)).unwrap();
    let other = Vote { choice: Choice::Nobody, led: None, ..vote(1) };
    votes.store("an election / of ☃", &other).unwrap();
    drop(votes);
    let votes = open(directory.path()).unwrap();
    assert_eq!(votes.load("billing"), Ok(Some(vote(8))));
    assert_eq!(votes.load("an election / of ☃"), Ok(Some(other)));
    assert_eq!(votes.load("another"), Ok(None));
}

#[test]
fn two_never_use_one_directory() {
    let directory = tempfile::tempdir().unwrap();
    let votes = open(directory.path()).unwrap();
    let locked = VoteError::Locked(directory.path().to_owned());
    assert_eq!(open(directory.path()).map(|_| ()), Err(locked));
    drop(votes);
    assert!(open(directory.path()).is_ok(), "it is free again");
}

#[test]
fn a_directory_that_is_not_there_is_not_made() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("not mounted");
    let refused = open(&missing).map(|_| ());
    assert!(matches!(refused, Err(VoteError::Io { kind: io::ErrorKind::NotFound, .. })), "{refused:?}");
    assert!(!missing.exists());
}

/// Whatever is left of a vote after a cut at any byte, it is never taken for a vote, nor for none, and never overwritten.
#[test]
fn a_vote_that_is_cut_anywhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let votes = open(directory.path()).unwrap();
    votes.store("billing", &vote(7)).unwrap();
    let path = only_vote(directory.path());
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(votes.load("billing"), Err(VoteError::Damaged(path.clone())), "cut at {len}");
        assert_eq!(fs::read(&path).unwrap(), &whole[..len]);
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert_eq!(votes.load("billing"), Err(VoteError::Damaged(path.clone())), "a byte more");
    fs::write(&path, &whole).unwrap();
    assert_eq!(votes.load("billing"), Ok(Some(vote(7))));
}

#[test]
fn a_vote_with_any_byte_changed_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let votes = open(directory.path()).unwrap();
    votes.store("billing", &vote(7)).unwrap();
    let path = only_vote(directory.path());
    let whole = fs::read(&path).unwrap();
    let mut seen = BTreeSet::new();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut changed = whole.clone();
            changed[at] ^= 1 << bit;
            fs::write(&path, &changed).unwrap();
            let error = votes.load("billing").expect_err("a changed byte");
            let (is_right, what) = match error {
                VoteError::NotAVote(_) => (at < 8, "magic"),
                VoteError::Format { found, known: 1, .. } => ((8..10).contains(&at) && found != 1, "format"),
                VoteError::Damaged(_) => (at >= 10, "damaged"),
                error => panic!("{error}"),
            };
            assert!(is_right, "byte {at}");
            seen.insert(what);
        }
    }
    assert_eq!(seen.len(), 3);
}

/// With a checksum that is right: it was meant so, by somebody else.
#[test]
fn votes_of_others_and_of_other_formats_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let votes = open(directory.path()).unwrap();
    let path = votes.file("billing");
    let foreign = |found: &str, expected: &str| {
        Err(VoteError::Foreign { path: path.clone(), found: found.into(), expected: expected.into() })
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let put = |cluster_name, node, election: &str| {
        let other = VoteDir::open(elsewhere.path(), cluster(cluster_name), name(node)).unwrap();
        fs::write(&path, other.encode(election, &vote(9))).unwrap();
    };
    put("bank", "a", "billing");
    assert_eq!(votes.load("billing"), foreign("bank", "shop"));
    put("shop", "b", "billing");
    assert_eq!(votes.load("billing"), foreign("b@10.0.0.1:4370", "a@10.0.0.1:4370"));
    put("shop", "a", "shipping");
    assert_eq!(votes.load("billing"), foreign("shipping", "billing"));
    for found in [0, FORMAT + 1] {
        let mut bytes = votes.encode("billing", &vote(9));
        bytes[8..10].copy_from_slice(&found.to_be_bytes());
        let content = bytes.len() - DIGEST;
        let digest = Sha256::digest(&bytes[..content]);
        bytes[content..].copy_from_slice(&digest);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(votes.load("billing"), Err(VoteError::Format { path: path.clone(), found, known: FORMAT }));
        assert_eq!(fs::read(&path).unwrap(), bytes, "it is left as it is");
    }
    fs::write(&path, vec![0; FILE_MAX as usize + 1]).unwrap();
    assert_eq!(votes.load("billing"), Err(VoteError::NotAVote(path.clone())), "it is not even read");
}

/// Where the vote cannot be written, the one before stays.
#[test]
fn a_write_that_fails_leaves_the_vote_before() {
    let directory = tempfile::tempdir().unwrap();
    let votes = open(directory.path()).unwrap();
    votes.store("billing", &vote(7)).unwrap();
    // As root no directory is read-only; but where a directory stands no file can be made.
    let obstacle = votes.file("billing").with_extension("new");
    fs::create_dir(&obstacle).unwrap();
    assert!(matches!(votes.store("billing", &vote(8)), Err(VoteError::Io { path, .. }) if path == obstacle));
    assert_eq!(votes.load("billing"), Ok(Some(vote(7))));
    fs::remove_dir(&obstacle).unwrap();
    votes.store("billing", &vote(8)).unwrap();
    assert_eq!(votes.load("billing"), Ok(Some(vote(8))));
}

/// What a crash in the middle of a write leaves is no vote, and in nobody's way.
#[test]
fn a_write_that_was_cut_short_is_forgotten() {
    let directory = tempfile::tempdir().unwrap();
    let votes = open(directory.path()).unwrap();
    votes.store("billing", &vote(7)).unwrap();
    let beside = votes.file("billing").with_extension("new");
    fs::write(&beside, &votes.encode("billing", &vote(8))[..20]).unwrap();
    assert_eq!(votes.load("billing"), Ok(Some(vote(7))));
    votes.store("billing", &vote(9)).unwrap();
    assert_eq!(votes.load("billing"), Ok(Some(vote(9))));
}

proptest! {
    #[test]
    fn noise_is_no_vote(bytes in proptest::collection::vec(any::<u8>(), 0..200), has_magic: bool) {
        let directory = tempfile::tempdir().unwrap();
        let votes = open(directory.path()).unwrap();
        let content = if has_magic { [&MAGIC[..], &[0, 1], &bytes].concat() } else { bytes.clone() };
        prop_assert!(votes.decode(Path::new("x"), "billing", &content).is_err());
        // Also where it has the right checksum.
        let digest = Sha256::digest(&content);
        prop_assert!(votes.decode(Path::new("x"), "billing", &[&content[..], &digest].concat()).is_err());
    }

    #[test]
    fn every_vote_is_read_as_it_was_written(
        (term, seen, version, of, led) in (any::<u64>(), any::<u64>(), any::<u64>(), 0..3u8, any::<bool>()),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let votes = open(directory.path()).unwrap();
        let choice = [Choice::Nobody, Choice::For(name("c")), Choice::Unknown][usize::from(of)].clone();
        let vote = Vote { set: set(version, &["a", "c"]), term, choice, led: led.then(|| set(seen, &["c"])), seen };
        let bytes = votes.encode("billing", &vote);
        prop_assert_eq!(votes.decode(Path::new("x"), "billing", &bytes), Ok(vote));
    }
}
