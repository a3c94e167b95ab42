//! Splits a command line into words as a shell would, without a shell: no variable, no glob, no
//! substitution has a meaning, so nothing but the named program is ever started.
//!
//! Pure.

use super::error::VmError;

/// Splits a command line: blanks part words, `'..'` and `".."` and `\` quote.
///
/// # Errors
/// A quote is not closed, or a backslash ends the text.
pub(crate) fn shell_words(text: &str) -> Result<Vec<String>, VmError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            quote @ ('\'' | '"') => {
                let word = word.get_or_insert_default();
                quoted(&mut chars, quote, word)?;
            }
            '\\' => {
                let escaped = chars.next().ok_or(unclosed("it ends with a backslash"))?;
                // A backslash before a line's end joins the lines.
                if escaped != '\n' {
                    word.get_or_insert_default().push(escaped);
                }
            }
            blank if blank.is_ascii_whitespace() => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(chars: &mut std::str::Chars<'_>, quote: char, word: &mut String) -> Result<(), VmError> {
    loop {
        match chars.next().ok_or(unclosed("a quote is not closed"))? {
            end if end == quote => return Ok(()),
            '\\' if quote == '"' => {
                let escaped = chars.next().ok_or(unclosed("a quote is not closed"))?;
                if !matches!(escaped, '"' | '\\' | '$' | '`') {
                    word.push('\\');
                }
                word.push(escaped);
            }
            other => word.push(other),
        }
    }
}

fn unclosed(why: &'static str) -> VmError {
    VmError::SpawnCommand { why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_part_as_in_a_shell() {
        let cases: [(&str, &[&str]); 8] = [
            ("", &[]),
            ("  a  b\tc\n", &["a", "b", "c"]),
            ("-append 'console=ttyS0 quiet' -S", &["-append", "console=ttyS0 quiet", "-S"]),
            ("a\"b c\"'d e'f", &["ab cd ef"]),
            ("'' \"\"", &["", ""]),
            ("a\\ b \\\n c", &["a b", "c"]),
            ("\"\\\"\\x\" '\\'", &["\"\\x", "\\"]),
            ("$(reboot) `x` *", &["$(reboot)", "`x`", "*"]),
        ];
        for (text, expected) in cases {
            assert_eq!(shell_words(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn an_open_quote_is_refused() {
        for text in ["'a", "\"a", "a\\", "\"a\\"] {
            assert_eq!(shell_words(text).unwrap_err().code(), "spawn_command", "{text:?}");
        }
    }
}
