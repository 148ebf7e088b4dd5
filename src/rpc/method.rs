//! The names of methods.

use std::fmt;
use std::marker::PhantomData;

use crate::key::{Key, KeyError};

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
///
/// let length: Method<String, u64> = Method::parse(format!("text.length.{}", "de"))?;
/// # Ok::<(), distribute::Error>(())
/// ```
///
/// A constant with a bad name does not compile:
///
/// ```compile_fail
/// # use distribute::Method;
/// const LENGTH: Method<String, u64> = Method::new("");
/// ```
pub struct Method<Q, R> {
    name: Key,
    types: PhantomData<fn(Q) -> R>,
}

impl<Q, R> Method<Q, R> {
    /// A method with a name of 1 to 255 bytes, without control characters.
    ///
    /// # Panics
    /// When the name breaks these rules; in a constant that is an error of the compiler.
    pub const fn new(name: &'static str) -> Self {
        Self { name: Key::new(name), types: PhantomData }
    }

    /// A method whose name is made at run time, of 1 to 255 bytes, without control characters. Clones share the name.
    ///
    /// # Errors
    /// [`KeyError`] says what is wrong with the name.
    pub fn parse(name: impl Into<String>) -> Result<Self, KeyError> {
        Ok(Self { name: Key::parse(name.into())?, types: PhantomData })
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        self.name.as_str()
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
