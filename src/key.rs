//! Names that users give to what they share: methods, and whatever else a node is asked for by name.
//!
//! A [`Key`] is a constant of the program, then a bad one is an error of the compiler, or it is made at run time, then it
//! lives as long as its last clone: nothing is interned or leaked.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The longest key, in bytes.
pub const KEY_MAX: usize = 255;

/// Why a text is no key: a key has 1 to 255 bytes of UTF-8, of a topic 64 at most, and no control characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The text is empty.
    #[error("the name is empty")]
    Empty,
    /// The text has more bytes than allowed.
    #[error("the name has {len} bytes, at most {max} are allowed")]
    TooLong {
        /// Bytes of the text.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The text holds a control character.
    #[error("the name holds a control character at byte {at}")]
    Control {
        /// Where it begins, in bytes.
        at: usize,
    },
}

/// What is a name already needs no check.
impl From<Infallible> for KeyError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// A name of 1 to 255 bytes without control characters. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Key(Text);

#[derive(Clone)]
enum Text {
    Constant(&'static str),
    Made(Arc<str>),
}

impl Key {
    /// A key that is known when the program is written.
    ///
    /// # Panics
    /// When the name breaks the rules; in a constant that is an error of the compiler.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self::new_within(name, KEY_MAX)
    }

    /// As [`Key::new`], of at most `max` bytes.
    pub(crate) const fn new_within(name: &'static str, max: usize) -> Self {
        match check(name, max) {
            Ok(()) => Self(Text::Constant(name)),
            Err(KeyError::Empty) => panic!("a name is empty"),
            Err(KeyError::TooLong { .. }) => panic!("a name has more bytes than it may"),
            Err(KeyError::Control { .. }) => panic!("a name holds a control character"),
        }
    }

    /// A key that is made at run time.
    pub(crate) fn parse(name: impl Into<Arc<str>>) -> Result<Self, KeyError> {
        Self::parse_within(name, KEY_MAX)
    }

    /// As [`Key::parse`], of at most `max` bytes.
    pub(crate) fn parse_within(name: impl Into<Arc<str>>, max: usize) -> Result<Self, KeyError> {
        let name = name.into();
        check(&name, max)?;
        Ok(Self(Text::Made(name)))
    }

    /// The same text, shared by all who hold it.
    pub(crate) fn to_text(&self) -> Arc<str> {
        match &self.0 {
            Text::Constant(name) => Arc::from(*name),
            Text::Made(name) => name.clone(),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        match &self.0 {
            Text::Constant(name) => name,
            Text::Made(name) => name,
        }
    }
}

/// The rules, for constants too.
pub(crate) const fn check(name: &str, max: usize) -> Result<(), KeyError> {
    if name.is_empty() {
        return Err(KeyError::Empty);
    }
    if name.len() > max {
        return Err(KeyError::TooLong { len: name.len(), max });
    }
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        // Unicode's general category Cc: U+0000 to U+001F, U+007F, and U+0080 to U+009F, which are C2 80 to C2 9F.
        let is_control = match bytes[at] {
            0..=0x1f | 0x7f => true,
            0xc2 => bytes[at + 1] <= 0x9f,
            _ => false,
        };
        if is_control {
            return Err(KeyError::Control { at });
        }
        at += 1;
    }
    Ok(())
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// What holds for some names and families of names, and not for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ByName<T> {
    names: BTreeMap<Arc<str>, T>,
    /// By what all names of the family begin with.
    families: BTreeMap<Arc<str>, T>,
}

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self { names: BTreeMap::new(), families: BTreeMap::new() }
    }
}

impl<T> ByName<T> {
    pub(crate) fn set_name(&mut self, name: Arc<str>, value: T) {
        self.names.insert(name, value);
    }

    pub(crate) fn set_family(&mut self, prefix: Arc<str>, value: T) {
        self.families.insert(prefix, value);
    }

    /// What holds for a name: what was said of it alone, or else of the narrowest family that it is of.
    pub(crate) fn of(&self, name: &str) -> Option<&T> {
        self.names.get(name).or_else(|| {
            // Of several prefixes of one name the longest is the greatest.
            let families = self.families.iter().rev();
            families.into_iter().find(|(prefix, _)| name.starts_with(&***prefix)).map(|(_, value)| value)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_goes_before_its_family_and_a_narrow_family_before_a_wide_one() {
        let mut rules = ByName::default();
        for (prefix, value) in [("user/", 1), ("user/vip/", 2), ("a/", 3)] {
            rules.set_family(prefix.into(), value);
        }
        rules.set_name("user/7".into(), 4);
        rules.set_name("lone".into(), 5);
        for (name, value) in [
            ("user/1", Some(1)),
            ("user/7", Some(4)),
            ("user/70", Some(1)),
            ("user/vip/7", Some(2)),
            ("user", None),
            ("users/1", None),
            ("lone", Some(5)),
            ("a/", Some(3)),
            ("zebra", None),
        ] {
            assert_eq!(rules.of(name).copied(), value, "{name}");
        }
    }

    const ORDERS: Key = Key::new("orders");

    #[test]
    fn a_constant_and_what_is_made_are_one_key() {
        let made = Key::parse("orders").unwrap();
        assert_eq!(made, ORDERS);
        assert_eq!(HashSet::from([made.clone(), ORDERS]).len(), 1);
        assert_eq!(BTreeSet::from([made.clone(), ORDERS]).len(), 1);
        assert!(Key::parse("order").unwrap() < ORDERS && ORDERS < Key::parse("p".to_owned()).unwrap());
        assert_eq!((format!("{made}"), format!("{made:?}")), ("orders".to_owned(), "\"orders\"".to_owned()));
    }

    #[test]
    fn a_key_has_1_to_255_bytes() {
        assert_eq!(Key::parse(""), Err(KeyError::Empty));
        assert!(Key::parse("x").is_ok());
        assert!(Key::parse("x".repeat(KEY_MAX)).is_ok());
        assert_eq!(Key::parse("x".repeat(KEY_MAX + 1)), Err(KeyError::TooLong { len: 256, max: KEY_MAX }));
        assert_eq!(Key::parse("ü".repeat(128)), Err(KeyError::TooLong { len: 256, max: KEY_MAX }));
    }

    #[test]
    fn a_key_holds_no_control_characters() {
        for bad in ["a\0", "a\u{1f}", "a\u{7f}", "a\u{80}", "a\u{9f}"] {
            assert_eq!(Key::parse(bad), Err(KeyError::Control { at: 1 }), "{bad:?}");
        }
        for good in ["a b", "a~", "a\u{a0}", "ü/:@", "名"] {
            assert_eq!(Key::parse(good).unwrap().as_str(), good);
        }
    }

    #[test]
    #[should_panic(expected = "a name is empty")]
    fn outside_of_constants_a_bad_name_panics() {
        Key::new("");
    }

    #[test]
    fn what_is_made_goes_with_its_last_clone() {
        let text: Arc<str> = "cart/42".into();
        let key = Key::parse(text.clone()).unwrap();
        let other = key.clone();
        assert_eq!(Arc::strong_count(&text), 3);
        drop((key, other));
        assert_eq!(Arc::strong_count(&text), 1);
    }

    proptest! {
        #[test]
        fn the_rules_are_those_of_unicode(name in "\\PC*|[\\x00-\\u{a1}]{0,4}") {
            let holds = (1..=KEY_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
            prop_assert_eq!(Key::parse(name).is_ok(), holds);
        }
    }
}
