//! Text that nobody is to see: keys and tokens.
//!
//! Must not know what it is a secret of.

use std::fmt;
use std::sync::Arc;

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

    /// Whether `guess` is the text. The time that it takes is that of the guess's length, wherever the two differ: each byte is looked at.
    pub fn is(&self, guess: &[u8]) -> bool {
        let secret = self.0.as_bytes();
        // In a circle: a guess that is longer takes as long as it is, and does not tell where the secret ends.
        let pairs = guess.iter().zip(secret.iter().cycle());
        let differing = pairs.fold(0, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
        secret.len() == guess.len() && differing == 0
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

    /// With an end at the first difference the one would take a millionth of the other.
    #[test]
    #[allow(clippy::disallowed_methods, reason = "a test of how long something takes")]
    fn a_guess_that_is_wrong_at_once_takes_as_long_as_one_that_is_wrong_at_last() {
        use std::time::{Duration, Instant};

        let length = 1 << 20;
        let secret = Secret::new(&"s".repeat(length));
        let wrong_at = |at: usize| {
            let mut guess = vec![b's'; length];
            guess[at] = b'x';
            guess
        };
        let (first, last) = (wrong_at(0), wrong_at(length - 1));
        let least = |guess: &[u8]| {
            let once = || {
                let begun = Instant::now();
                assert!(!secret.is(guess));
                begun.elapsed()
            };
            (0..9).map(|_| once()).min().unwrap_or(Duration::ZERO)
        };
        let (first, last) = (least(&first), least(&last));
        assert!(first > last / 4 && last > first / 4, "{first:?} {last:?}");
    }
}
