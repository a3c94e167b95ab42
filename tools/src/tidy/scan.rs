//! Tells code, comments and literals of Rust text apart, byte by byte.
//!
//! Pure; called by `source` for every `.rs` file. It knows nested comments, raw strings, byte and C
//! strings, character literals and lifetimes, and nothing else of the language. It never fails:
//! text that does not compile is classified somehow, and the compiler complains elsewhere.

/// What a byte of Rust text belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Everything that is neither comment nor literal.
    Code,
    /// `//`, `///`, `//!` and `/* */`, with their markers.
    Comment,
    /// Strings and characters, with their quotes.
    Literal,
}

/// Classifies every byte of `text`; the answer is as long as the text.
pub(super) fn classify(text: &[u8]) -> Vec<Class> {
    let mut classes = vec![Class::Code; text.len()];
    let mut at = 0;
    while at < text.len() {
        let (class, end) = token(text, at);
        let end = end.clamp(at + 1, text.len());
        classes[at..end].fill(class);
        at = end;
    }
    classes
}

/// The class and the end of the token that starts at `at`.
fn token(text: &[u8], at: usize) -> (Class, usize) {
    match text[at] {
        b'/' if text[at..].starts_with(b"//") => (Class::Comment, line_end(text, at)),
        b'/' if text[at..].starts_with(b"/*") => (Class::Comment, block_end(text, at)),
        b'"' => (Class::Literal, quoted_end(text, at, b'"')),
        b'\'' => quote(text, at),
        byte if is_word(byte) => word(text, at),
        _ => (Class::Code, at + 1),
    }
}

/// True for the bytes of identifiers and numbers; bytes of other alphabets count as such.
pub(super) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// A run of word bytes, or the literal that it is the prefix of.
fn word(text: &[u8], at: usize) -> (Class, usize) {
    let length = text[at..].iter().take_while(|byte| is_word(**byte)).count();
    let end = at + length;
    let next = text.get(end).copied();
    match &text[at..end] {
        b"r" | b"br" | b"cr" => {
            let hashes = text[end..].iter().take_while(|byte| **byte == b'#').count();
            match text.get(end + hashes) {
                Some(b'"') => (Class::Literal, raw_end(text, end + hashes, hashes)),
                _ => (Class::Code, end),
            }
        }
        b"b" | b"c" if next == Some(b'"') => (Class::Literal, quoted_end(text, end, b'"')),
        b"b" if next == Some(b'\'') => (Class::Literal, quoted_end(text, end, b'\'')),
        _ => (Class::Code, end),
    }
}

/// A character literal, or the tick of a lifetime.
fn quote(text: &[u8], at: usize) -> (Class, usize) {
    let width = match text.get(at + 1) {
        Some(b'\\') => return (Class::Literal, quoted_end(text, at, b'\'')),
        Some(first) if *first >= 0xf0 => 4,
        Some(first) if *first >= 0xe0 => 3,
        Some(first) if *first >= 0xc0 => 2,
        Some(_) => 1,
        None => return (Class::Code, at + 1),
    };
    match text.get(at + 1 + width) {
        Some(b'\'') => (Class::Literal, at + width + 2),
        _ => (Class::Code, at + 1),
    }
}

fn line_end(text: &[u8], at: usize) -> usize {
    text[at..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |length| at + length)
}

fn block_end(text: &[u8], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut at = start;
    while at < text.len() {
        if text[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

/// The end of a literal with escapes whose opening quote is at `open`.
fn quoted_end(text: &[u8], open: usize, quote: u8) -> usize {
    let mut at = open + 1;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// The end of a raw string whose opening quote is at `open`.
fn raw_end(text: &[u8], open: usize, hashes: usize) -> usize {
    let mut at = open + 1;
    while at < text.len() {
        let closing = &text[at + 1..];
        if text[at] == b'"' && closing.iter().take_while(|byte| **byte == b'#').count() >= hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text with everything but one class blanked.
    fn only(text: &str, class: Class) -> String {
        let classes = classify(text.as_bytes());
        text.bytes()
            .zip(classes)
            .map(|(byte, found)| if found == class { char::from(byte) } else { '_' })
            .collect::<String>()
            .replace('_', "")
    }

    #[test]
    fn line_comments_end_at_the_line() {
        assert_eq!(only("a // b \"c\"\nd", Class::Code), "a \nd");
    }

    #[test]
    fn block_comments_nest() {
        assert_eq!(only("a/* b /* c */ d */e", Class::Code), "ae");
    }

    #[test]
    fn strings_hide_comment_marks_and_braces() {
        assert_eq!(only(r#"f("// {", x)"#, Class::Code), "f(, x)");
        assert_eq!(only(r#"f("\"{", x)"#, Class::Code), "f(, x)");
    }

    #[test]
    fn raw_strings_end_at_their_own_hashes() {
        assert_eq!(only("r#\"a\" {\"# b", Class::Code), " b");
        assert_eq!(only("br##\"\"#\"## b", Class::Code), " b");
        assert_eq!(only("r#fn x", Class::Code), "r#fn x");
    }

    #[test]
    fn characters_are_not_lifetimes() {
        assert_eq!(only("'{' 'a' '\\'' b'{' '\u{e9}'", Class::Code).trim(), "");
        assert_eq!(only("&'a str", Class::Code), "&'a str");
        assert_eq!(only("<'a, 'b>", Class::Code), "<'a, 'b>");
    }

    #[test]
    fn a_letter_before_a_quote_is_a_prefix_only_on_its_own() {
        assert_eq!(only("attr\"{\"", Class::Code), "attr");
        assert_eq!(only("b\"{\" c\"}\"", Class::Code), " ");
    }

    #[test]
    fn text_that_stops_within_a_token_is_still_covered() {
        for text in ["\"a", "/* a", "r#\"a", "'", "'\\", "\"\\", "b'"] {
            assert_eq!(classify(text.as_bytes()).len(), text.len());
        }
    }
}
