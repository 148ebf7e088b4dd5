use crate::wire::services::election::Token;

/// What a resource keeps, so that no leader of the past changes it: the greatest token that it has seen.
///
/// A leader sends its [`Token`] with everything that it has others do. Whoever does it asks its fence first. To hold across
/// restarts, what [`Fence::highest`] returns has to be stored together with the effect, and given to [`Fence::starting_at`].
///
/// ```
/// use distribute::{Fence, Token};
///
/// let (old, new): (Token, Token) = ("0.1.4".parse()?, "0.1.5".parse()?);
/// let mut fence = Fence::default();
/// assert!(fence.admit(old).is_ok() && fence.admit(new).is_ok());
/// let refused = fence.admit(old).unwrap_err();
/// assert_eq!(refused.highest, new, "the old leader learns that there is a newer one");
/// assert!(fence.admit(new).is_ok(), "the new one goes on");
/// # Ok::<(), distribute::TokenError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fence {
    highest: Option<Token>,
}

/// A leader of the past wanted something done: another was elected since. Nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the leadership {token} is over: {highest} has been seen")]
#[non_exhaustive]
pub struct Fenced {
    /// The token that was refused.
    pub token: Token,
    /// The greatest that was seen.
    pub highest: Token,
}

impl Fence {
    /// A fence that has seen this token before, and refuses lesser ones from the beginning.
    pub fn starting_at(token: Token) -> Self {
        Self { highest: Some(token) }
    }

    /// Admits the greatest token so far and greater ones. Call it before each effect, and without anything else in between.
    ///
    /// # Errors
    /// [`Fenced`] when a greater token has been seen.
    pub fn admit(&mut self, token: Token) -> Result<(), Fenced> {
        match self.highest {
            Some(highest) if token < highest => Err(Fenced { token, highest }),
            _ => {
                self.highest = Some(token);
                Ok(())
            }
        }
    }

    /// Returns the greatest token that was admitted.
    pub fn highest(&self) -> Option<Token> {
        self.highest
    }
}
