//! Who votes, and how many of them decide.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::error::VotersError;
use crate::id::NodeName;
use crate::wire::services::election::{Ballot, NUMBER_MAX, VOTERS_MAX};

/// One version of the voters, as a voter remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) version: u64,
    /// In their order.
    pub(crate) names: Vec<NodeName>,
}

/// Of one election there is one set for each version.
impl Hash for Set {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.version.hash(state);
    }
}

/// Who votes, as a node was told: all voters have to be told the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Voters {
    set: Arc<Set>,
    /// The set before, of which a majority has to agree as well.
    previous: Vec<NodeName>,
    generation: u64,
    is_diskless: bool,
    digest: u64,
}

fn majority(of: usize) -> usize {
    of / 2 + 1
}

/// Names without doubles, in their order.
fn sorted(mut names: Vec<NodeName>) -> Result<Vec<NodeName>, VotersError> {
    names.sort();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(VotersError::Twice(pair[0].clone()));
    }
    match names.len() {
        0 => Err(VotersError::Empty),
        count if count > VOTERS_MAX => Err(VotersError::TooMany { count, max: VOTERS_MAX }),
        _ => Ok(names),
    }
}

fn in_common(one: &[NodeName], other: &[NodeName]) -> usize {
    one.iter().filter(|name| other.contains(name)).count()
}

/// Every majority of one shares a voter with every majority of the other.
fn meet(one: &[NodeName], other: &[NodeName]) -> bool {
    let common = in_common(one, other);
    // What each cannot find outside of what they have in common.
    let needed = |set: &[NodeName]| majority(set.len()).saturating_sub(set.len() - common);
    needed(one) + needed(other) > common
}

impl Voters {
    /// With `generation` votes are kept in memory only.
    pub(crate) fn new(
        version: u64,
        names: Vec<NodeName>,
        previous: Option<Vec<NodeName>>,
        generation: Option<u64>,
    ) -> Result<Self, VotersError> {
        let names = sorted(names)?;
        let previous = previous.map(sorted).transpose()?.unwrap_or_default();
        if [version, generation.unwrap_or_default()].into_iter().any(|number| number > NUMBER_MAX) {
            return Err(VotersError::Number { max: NUMBER_MAX });
        }
        // Of two, neither could learn from a majority of others what it has forgotten.
        if generation.is_some() && names.len() == 2 {
            return Err(VotersError::TwoWithoutDisk);
        }
        if !previous.is_empty() && in_common(&names, &previous) < majority(previous.len()) {
            return Err(VotersError::PreviousGone);
        }
        let mut hash = Sha256::new();
        for number in [version, generation.unwrap_or_default(), u64::from(generation.is_some()), names.len() as u64] {
            hash.update(number.to_be_bytes());
        }
        for name in names.iter().chain(&previous) {
            hash.update((name.as_str().len() as u64).to_be_bytes());
            hash.update(name.as_str());
        }
        let digest = hash.finalize().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        Ok(Self {
            set: Arc::new(Set { version, names }),
            previous,
            generation: generation.unwrap_or_default(),
            is_diskless: generation.is_some(),
            digest,
        })
    }

    /// The voters have to agree on these times as well: a promise that is shorter than the lease is none.
    pub(crate) fn timed(mut self, lease: Duration, drift_ppm: u32) -> Self {
        let hash = Sha256::new()
            .chain_update(self.digest.to_be_bytes())
            .chain_update(lease.as_nanos().to_be_bytes())
            .chain_update(drift_ppm.to_be_bytes());
        self.digest = hash.finalize().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        self
    }

    pub(crate) fn set(&self) -> &Arc<Set> {
        &self.set
    }

    pub(crate) fn names(&self) -> &[NodeName] {
        &self.set.names
    }

    pub(crate) fn is_diskless(&self) -> bool {
        self.is_diskless
    }

    pub(crate) fn ballot(&self) -> Ballot {
        Ballot { generation: self.generation, version: self.set.version, digest: self.digest }
    }

    pub(crate) fn rank(&self, name: &NodeName) -> Option<usize> {
        self.names().binary_search(name).ok()
    }

    /// The greatest value that a quorum has or exceeds, when `of` says what each voter has.
    pub(crate) fn reached<T: Ord>(&self, of: impl Fn(usize) -> Option<T>) -> Option<T> {
        let by = |is_in: &dyn Fn(&NodeName) -> bool, size: usize| {
            let ranks = self.names().iter().enumerate().filter(|(_, name)| is_in(name));
            let mut values: Vec<T> = ranks.filter_map(|(rank, _)| of(rank)).collect();
            values.sort_by(|one, other| other.cmp(one));
            values.into_iter().nth(majority(size) - 1)
        };
        let reached = by(&|_| true, self.names().len())?;
        if self.previous.is_empty() {
            return Some(reached);
        }
        Some(reached.min(by(&|name| self.previous.contains(name), self.previous.len())?))
    }

    pub(crate) fn is_quorum(&self, has: impl Fn(usize) -> bool) -> bool {
        self.reached(|rank| has(rank).then_some(())).is_some()
    }

    /// Whether a voter that remembers `stored` may go on to these: no leader of theirs is elected while one of `stored`
    /// could be.
    pub(crate) fn may_follow(&self, stored: &Set) -> Result<(), VotersError> {
        let Set { version, names } = stored;
        if self.set.version < *version {
            return Err(VotersError::Older { version: self.set.version, stored: *version });
        }
        if self.set.version == *version {
            let is_same = *names == self.set.names;
            return if is_same { Ok(()) } else { Err(VotersError::SameVersion { version: *version }) };
        }
        if *names == self.previous || meet(names, self.names()) {
            Ok(())
        } else {
            Err(VotersError::Apart { version: self.set.version, stored: *version })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(locals: &str) -> Vec<NodeName> {
        locals.chars().map(|local| NodeName::parse(&format!("{local}@h:1")).unwrap()).collect()
    }

    fn voters(locals: &str) -> Voters {
        Voters::new(1, names(locals), None, None).unwrap()
    }

    fn quorum(voters: &Voters, locals: &str) -> bool {
        let has = names(locals);
        voters.is_quorum(|rank| has.contains(&voters.names()[rank]))
    }

    #[test]
    fn more_than_half_is_a_quorum() {
        for (all, no, yes) in
            [("a", "", "a"), ("ab", "a", "ab"), ("abc", "b", "ac"), ("abcd", "ab", "abd"), ("abcde", "ab", "bde")]
        {
            assert!(!quorum(&voters(all), no), "{no} of {all}");
            assert!(quorum(&voters(all), yes), "{yes} of {all}");
        }
        assert!(!quorum(&voters("abc"), "axyz"), "strangers do not count");
    }

    #[test]
    fn a_quorum_of_both_sets_where_the_one_before_is_named() {
        let voters = Voters::new(2, names("abd"), Some(names("abc")), None).unwrap();
        assert!(quorum(&voters, "ab"));
        assert!(!quorum(&voters, "ad") && !quorum(&voters, "bd"), "one of three of the set before");
        assert_eq!(voters.reached(|rank| Some([7, 5, 9][rank])), Some(5), "as of the set before");
        let gone = Voters::new(2, names("ade"), Some(names("abc")), None);
        assert_eq!(gone, Err(VotersError::PreviousGone));
    }

    #[test]
    fn votes_of_those_with_other_times_do_not_count() {
        let timed = |millis, drift| voters("abc").timed(Duration::from_millis(millis), drift).ballot();
        assert_eq!(timed(1500, 10_000), timed(1500, 10_000));
        assert_ne!(timed(1500, 10_000), timed(1501, 10_000));
        assert_ne!(timed(1500, 10_000), timed(1500, 10_001));
    }

    #[test]
    fn what_a_quorum_has_reached() {
        let five = voters("abcde");
        assert_eq!(five.reached(|rank| Some([5, 1, 4, 2, 3][rank])), Some(3));
        assert_eq!(five.reached(|rank| [Some(5), None, Some(4), None, Some(3)][rank]), Some(3));
        assert_eq!(five.reached(|rank| [Some(5), None, Some(4), None, None][rank]), None);
    }

    #[test]
    fn sets_that_are_none() {
        let new = |locals: &str, generation| Voters::new(1, names(locals), None, generation).map(|_| ());
        assert_eq!(new("", None), Err(VotersError::Empty));
        assert_eq!(new("aba", None), Err(VotersError::Twice(names("a").remove(0))));
        assert_eq!(new("abcdefghijklmno", None), Ok(()));
        assert_eq!(new("abcdefghijklmnop", None), Err(VotersError::TooMany { count: 16, max: 15 }));
        assert_eq!((new("ab", None), new("ab", Some(1))), (Ok(()), Err(VotersError::TwoWithoutDisk)));
        assert_eq!(Voters::new(NUMBER_MAX, names("a"), None, None).map(|_| ()), Ok(()));
        let over = Voters::new(NUMBER_MAX + 1, names("a"), None, None);
        assert_eq!(over, Err(VotersError::Number { max: NUMBER_MAX }));
    }

    /// Against all majorities, one by one.
    #[test]
    fn majorities_meet_or_do_not() {
        let subsets = |set: &str| {
            let all = names(set);
            let of =
                move |bits: u32| (0..all.len()).filter(|at| bits >> at & 1 == 1).map(|at| all[at].clone()).collect();
            let count = set.len();
            (0..1u32 << count)
                .filter(move |bits| bits.count_ones() as usize > count / 2)
                .map(of)
                .collect::<Vec<Vec<_>>>()
        };
        let mut met = 0;
        for (one, other) in [
            ("abc", "abc"),
            ("abc", "abcd"),
            ("abcd", "abd"),
            ("abc", "abd"),
            ("abc", "ab"),
            ("abc", "a"),
            ("ab", "bc"),
            ("abcd", "abcde"),
            ("abcde", "abcdf"),
            ("abcde", "abcdef"),
            ("abc", "abcde"),
            ("abc", "def"),
            ("a", "b"),
        ] {
            let apart = subsets(one).iter().any(|x| subsets(other).iter().any(|y| in_common(x, y) == 0));
            assert_eq!(meet(&names(one), &names(other)), !apart, "{one} and {other}");
            met += usize::from(!apart);
        }
        assert!((4..12).contains(&met), "{met}: of both kinds");
    }

    #[test]
    fn one_set_follows_another_only_where_they_cannot_both_elect() {
        let stored = |version, locals: &str| Set { version, names: names(locals) };
        let next = |version, locals: &str, previous: Option<&str>| {
            Voters::new(version, names(locals), previous.map(names), None).unwrap()
        };
        assert_eq!(next(5, "abc", None).may_follow(&stored(5, "abc")), Ok(()));
        assert_eq!(next(5, "abd", None).may_follow(&stored(5, "abc")), Err(VotersError::SameVersion { version: 5 }));
        assert_eq!(
            next(4, "abc", None).may_follow(&stored(5, "abc")),
            Err(VotersError::Older { version: 4, stored: 5 })
        );
        assert_eq!(next(6, "abcd", None).may_follow(&stored(5, "abc")), Ok(()));
        assert_eq!(
            next(6, "abd", None).may_follow(&stored(5, "abc")),
            Err(VotersError::Apart { version: 6, stored: 5 })
        );
        assert_eq!(next(6, "abd", Some("abc")).may_follow(&stored(5, "abc")), Ok(()));
        let other = next(6, "abd", Some("abe")).may_follow(&stored(5, "abc"));
        assert_eq!(other, Err(VotersError::Apart { version: 6, stored: 5 }), "another set was named");
    }

    #[test]
    fn a_ballot_tells_sets_apart() {
        let of = |version, locals: &str, previous: Option<&str>, generation| {
            Voters::new(version, names(locals), previous.map(names), generation).unwrap().ballot()
        };
        let ballot = of(1, "abc", None, None);
        assert_eq!(ballot, of(1, "cab", None, None), "in whatever order they are given");
        for other in [
            of(2, "abc", None, None),
            of(1, "abd", None, None),
            of(1, "abc", Some("abd"), None),
            of(1, "abc", None, Some(0)),
            of(1, "abc", None, Some(1)),
        ] {
            assert_ne!(ballot, other);
        }
    }
}
