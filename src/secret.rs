//! Text that nobody is to see: keys and tokens.
//!
//! Must not know what it is a secret of.

use std::fmt;
use std::sync::Arc;

use subtle::ConstantTimeEq;

/// A text that nobody is shown: not in logs, not in reports, not in what is printed for debugging.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Of that text.
    pub fn new(text: &str) -> Secret {
        Secret(text.into())
    }

    /// The text, for whoever sends it, signs or verifies with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `guess` is the text. The time that it takes tells no more than whether the lengths are equal.
    pub fn is(&self, guess: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(guess).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_compared_and_never_shown() {
        let secret = Secret::new("correct horse battery staple");
        assert!(secret.is(b"correct horse battery staple"));
        for guess in
            ["", "c", "correct horse battery stapl", "correct horse battery staple ", "Correct horse battery staple"]
        {
            assert!(!secret.is(guess.as_bytes()), "{guess}");
        }
        assert_eq!(format!("{:?}", Some(&secret)), "Some(Secret(…))");
        // A guess may be the secret and more, or the secret twice.
        assert!(!secret.is("correct horse battery staple".repeat(2).as_bytes()));
        assert!(!Secret::new("").is(b"a") && Secret::new("").is(b""));
    }
}
