//! Decides whether a licence expression can be met by an allow-list.
//!
//! Pure; SPDX expressions with AND, OR, WITH and parentheses, and the old `A/B` form.

/// Why an expression could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{expression}` is not a licence expression")]
pub(super) struct SpdxError {
    /// The expression as it stands in the manifest.
    pub(super) expression: String,
}

/// True if some choice among the ORs uses allowed licences alone.
pub(super) fn is_met(expression: &str, allowed: &[&str]) -> Result<bool, SpdxError> {
    let failed = || SpdxError { expression: expression.to_owned() };
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { tokens: &tokens, allowed };
    let met = parser.any().filter(|_| parser.tokens.is_empty());
    met.ok_or_else(failed)
}

struct Parser<'a> {
    tokens: &'a [&'a str],
    allowed: &'a [&'a str],
}

impl<'a> Parser<'a> {
    fn take(&mut self) -> Option<&'a str> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    fn take_if(&mut self, word: &str) -> bool {
        let is_next = self.tokens.first() == Some(&word);
        if is_next {
            self.tokens = &self.tokens[1..];
        }
        is_next
    }

    fn any(&mut self) -> Option<bool> {
        let mut met = self.all()?;
        while self.take_if("OR") {
            met |= self.all()?;
        }
        Some(met)
    }

    fn all(&mut self) -> Option<bool> {
        let mut met = self.one()?;
        while self.take_if("AND") {
            met &= self.one()?;
        }
        Some(met)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take_if("(") {
            let met = self.any()?;
            return self.take_if(")").then_some(met);
        }
        let name = self.take().filter(|name| !["OR", "AND", "WITH", "(", ")"].contains(name))?;
        // An exception only adds rights, so the licence alone decides.
        if self.take_if("WITH") {
            self.take()?;
        }
        Some(self.allowed.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: [&str; 2] = ["MIT", "ISC"];

    #[test]
    fn one_allowed_choice_is_enough_and_every_part_is_needed() {
        for (expression, met) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("GPL-3.0 AND MIT", false),
            ("ISC AND (GPL-3.0 OR MIT)", true),
            ("(ISC AND GPL-3.0) OR (MIT)", true),
            ("ISC AND GPL-3.0 OR Zlib", false),
            ("MIT WITH LLVM-exception", true),
        ] {
            assert_eq!(is_met(expression, &ALLOWED), Ok(met), "{expression}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for expression in ["", "MIT OR", "(MIT", "MIT)", "MIT ISC", "AND", "MIT WITH"] {
            assert!(is_met(expression, &ALLOWED).is_err(), "{expression}");
        }
    }
}
