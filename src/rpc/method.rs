//! The names of methods.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

/// The name of a method, with the types of its request and its answer.
///
/// An application's own failure is a value of the answer type, such as `Result<Quote, NoStock>`. Of a method that answers
/// with a stream, the answer type is that of one item.
///
/// ```
/// use distribute::Method;
///
/// const LENGTH: Method<String, u64> = Method::new("text.length");
/// assert_eq!(LENGTH.name(), "text.length");
/// ```
pub struct Method<Q, R> {
    name: Cow<'static, str>,
    types: PhantomData<fn(Q) -> R>,
}

impl<Q, R> Method<Q, R> {
    /// A method with a name of 1 to 255 bytes, checked when it is served or called.
    pub const fn new(name: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), types: PhantomData }
    }

    /// A method whose name is made at run time.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Cow::Owned(name.into()), types: PhantomData }
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a method can have this name.
    pub(super) fn is_valid(&self) -> bool {
        let name = self.name();
        !name.is_empty() && name.len() <= crate::wire::TAG_MAX && !name.chars().any(char::is_control)
    }
}

impl<Q, R> Clone for Method<Q, R> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), types: PhantomData }
    }
}

impl<Q, R> fmt::Debug for Method<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Method({:?})", self.name)
    }
}
