//! Strings of a fixed form, such as `pci-pt-{hex2}_{hex2}.{hex1}`: literal text with numbers in it.
//!
//! | in the form | stands for |
//! |---|---|
//! | `{int}` | a decimal integer from 0 to 2147483647, without leading zeros |
//! | `{hex}` | one to eight hexadecimal digits, in lower case |
//! | `{hexN}` | exactly N of them, N from 1 to 8 |
//!
//! The part after a number may not begin with a digit, so a string fits in one way or not at all.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Int,
    Hex { least: usize, most: usize },
}

/// A form that strings can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<Part>,
}

impl Pattern {
    /// Reads a form.
    ///
    /// # Errors
    /// An unknown or unfinished placeholder, or one whose end cannot be distinguished from what
    /// follows.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let after_number = matches!(parts.last(), Some(Part::Int | Part::Hex { .. }));
            let end = rest.find('{').unwrap_or(rest.len());
            let (literal, more) = rest.split_at(end);
            if literal.contains('}') {
                return Err(format!("the form {text:?} has a }} too many"));
            }
            if !literal.is_empty() {
                if after_number && literal.starts_with(|c: char| c.is_ascii_hexdigit()) {
                    return Err(format!("in the form {text:?} a digit follows a number"));
                }
                parts.push(Part::Literal(literal.to_owned()));
            }
            let Some(more) = more.strip_prefix('{') else {
                break;
            };
            if after_number && literal.is_empty() {
                return Err(format!("in the form {text:?} a number follows a number"));
            }
            let Some((name, more)) = more.split_once('}') else {
                return Err(format!("the form {text:?} has a {{ without end"));
            };
            parts.push(match (name, name.strip_prefix("hex")) {
                ("int", _) => Part::Int,
                ("hex", _) => Part::Hex { least: 1, most: 8 },
                (_, Some(digits)) => match digits.parse() {
                    Ok(count @ 1..=8) => Part::Hex {
                        least: count,
                        most: count,
                    },
                    _ => return Err(format!("{{{name}}} in the form {text:?}")),
                },
                _ => return Err(format!("{{{name}}} in the form {text:?}")),
            });
            rest = more;
        }
        let text = text.to_owned();
        Ok(Self { text, parts })
    }

    /// Returns whether a string has this form.
    pub fn fits(&self, text: &str) -> bool {
        let mut rest = text;
        for part in &self.parts {
            let left = match part {
                Part::Literal(literal) => rest.strip_prefix(literal.as_str()),
                Part::Int => {
                    let (digits, left) = split(rest, |b| b.is_ascii_digit());
                    let plain = digits == "0" || !digits.starts_with('0');
                    (plain && digits.len() <= 10 && digits.parse::<i32>().is_ok()).then_some(left)
                }
                Part::Hex { least, most } => {
                    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
                    let (digits, left) = split(rest, hex);
                    (*least..=*most).contains(&digits.len()).then_some(left)
                }
            };
            let Some(left) = left else {
                return false;
            };
            rest = left;
        }
        rest.is_empty()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The longest beginning of such bytes, all of them ASCII, and what follows.
fn split(text: &str, such: impl Fn(u8) -> bool) -> (&str, &str) {
    let end = text.bytes().position(|b| !such(b)).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libxls_names_fit_and_their_neighbours_do_not() {
        for (form, good, bad) in [
            (
                "pci-pt-{hex2}_{hex2}.{hex1}",
                &["pci-pt-00_1f.7"][..],
                &[
                    "pci-pt-00_1F.7",
                    "pci-pt-0_1f.7",
                    "pci-pt-00_1f.7 ",
                    "pci-pt-000_1f.7",
                ][..],
            ),
            (
                "ide-{int}",
                &["ide-5632", "ide-0"],
                &[
                    "ide-",
                    "ide-05",
                    "ide--1",
                    "ide-2147483648",
                    "ide-5632,x",
                    "ide-٣",
                ],
            ),
            (
                "{hex}.{hex}",
                &["0.0", "1f.7"],
                &[".0", "1f.", "123456789.0"],
            ),
            ("", &[""], &["x"]),
        ] {
            let form = Pattern::new(form).unwrap();
            for text in good {
                assert!(form.fits(text), "{form} {text}");
            }
            for text in bad {
                assert!(!form.fits(text), "{form} {text}");
            }
        }
    }

    #[test]
    fn forms_that_could_be_read_in_two_ways_are_refused() {
        for form in [
            "{int}{int}",
            "{hex}a",
            "{int}0",
            "{dec}",
            "{int",
            "a}",
            "{hex9}",
            "{hex0}",
        ] {
            assert!(Pattern::new(form).is_err(), "{form}");
        }
        assert!(Pattern::new("{hex4}:{hex2}-x{int}").is_ok());
    }
}
