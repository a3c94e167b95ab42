//! Texts from and for a peer: bounded in bytes, without control characters.
//!
//! Used on the control thread. A text that breaks the bound is refused when it comes from outside
//! and cut when it is our own, so that a message for people never fails a session.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A text of at most `MAX` bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Text<const MAX: usize>(String);

/// Why a text is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// Longer than allowed.
    #[error("a text of {bytes} bytes is longer than {max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The longest allowed.
        max: usize,
    },
    /// It holds a character that would disturb a terminal or a log.
    #[error("the text holds a control character")]
    ControlCharacter,
}

impl BadText {
    /// The stable code of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "text_too_long",
            Self::ControlCharacter => "text_control_character",
        }
    }
}

impl<const MAX: usize> Text<MAX> {
    /// Takes a text as it is.
    ///
    /// # Errors
    /// It is too long or holds control characters.
    pub fn new(text: &str) -> Result<Self, BadText> {
        if text.len() > MAX {
            return Err(BadText::TooLong { bytes: text.len(), max: MAX });
        }
        if text.chars().any(char::is_control) {
            return Err(BadText::ControlCharacter);
        }
        Ok(Self(text.to_owned()))
    }

    /// Takes as much of a text as fits and blanks its control characters.
    #[must_use]
    pub fn cut(text: &str) -> Self {
        let end = text.floor_char_boundary(MAX);
        let blank = |c: char| if c.is_control() { ' ' } else { c };
        // A control character of two bytes becomes one space, so the text never grows.
        Self(text[..end].chars().map(blank).collect())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<const MAX: usize> Serialize for Text<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Text<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_bounded_and_plain() {
        assert!(Text::<3>::new("abc").is_ok());
        assert_eq!(Text::<3>::new("abcd"), Err(BadText::TooLong { bytes: 4, max: 3 }));
        assert_eq!(Text::<9>::new("a\nb"), Err(BadText::ControlCharacter));
        assert_eq!(Text::<4>::cut("aäöü").as_str(), "aä");
        assert_eq!(Text::<9>::cut("a\u{1b}[b").as_str(), "a [b");
    }
}
