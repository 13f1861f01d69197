//! The required form of a value, and the value rebuilt from the parts that fit.
//!
//! The result holds only what the schema names: nothing passes because it was not recognised as
//! bad. An argument the schema does not name is a refusal. A member of an answer that it does not
//! name is left out, because newer QEMUs add some and libxl reads only those named.

use std::fmt;

use crate::json::Json;
use crate::policy::pattern::Pattern;
use crate::text::{is_active, lines as clean_lines};

/// The direction of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the toolstack to QEMU, whose version is given as far as it is known.
    ToQemu(Version),
    /// From QEMU to the toolstack.
    FromQemu,
}

/// QEMU's version: major, minor, micro.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16, pub u16);

impl std::str::FromStr for Version {
    type Err = String;

    /// Reads `MAJOR.MINOR.MICRO`; missing parts are 0.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut parts = text.split('.').map(str::parse);
        let mut next = || parts.next().unwrap_or(Ok(0));
        match (next(), next(), next()) {
            (Ok(major), Ok(minor), Ok(micro)) if parts.next().is_none() => {
                Ok(Self(major, minor, micro))
            }
            _ => Err(format!("{text:?} is no version")),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// The schema of a value.
#[derive(Clone, Debug, PartialEq)]
pub enum Schema {
    /// An object, of which nothing is kept.
    Nothing,
    /// `true` or `false`.
    Bool,
    /// An integer in a range.
    Int(i64, i64),
    /// An integer in a range, or a string of its decimal digits. Towards a QEMU of at least this
    /// version it is sent as an integer, otherwise as it was received.
    Number(i64, i64, Version),
    /// One of these strings.
    OneOf(Vec<String>),
    /// A string of a form.
    Pattern(Pattern),
    /// A name: ASCII letters, digits and `-_.,:+/@`, not empty, at most this long, with one of
    /// these endings if there are any.
    Token(usize, Vec<String>),
    /// One line of text, at most this long in bytes.
    Line(usize),
    /// Text with line breaks and tabs, at most this long in bytes.
    Lines(usize),
    /// An array of at most this many such values.
    List(Box<Self>, usize),
    /// An object with these members.
    Map(Vec<Member>),
}

/// A member of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Its key.
    pub key: String,
    /// Its form.
    pub schema: Schema,
    /// `true` if the object may omit it.
    pub optional: bool,
}

/// Why a value was refused: where it is, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    path: String,
    why: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.trim_start_matches('.');
        match path {
            "" => f.write_str(&self.why),
            _ => write!(f, "{path}: {}", self.why),
        }
    }
}

impl std::error::Error for Misfit {}

type Result<T> = std::result::Result<T, Misfit>;

fn misfit<T>(why: impl fmt::Display) -> Result<T> {
    Err(Misfit {
        path: String::new(),
        why: why.to_string(),
    })
}

impl Schema {
    /// Returns the value as it may be passed on.
    ///
    /// # Errors
    /// It does not fit.
    pub fn rebuild(&self, value: &Json, direction: Direction) -> Result<Json> {
        match (self, value) {
            (Self::Nothing, Json::Map(members)) => match (direction, members.first()) {
                (Direction::ToQemu(_), Some((key, _))) => {
                    misfit(format_args!("{key} is not expected"))
                }
                _ => Ok(Json::Map(Vec::new())),
            },
            (Self::Bool, Json::Bool(_)) => Ok(value.clone()),
            (Self::Int(low, high), Json::Int(n)) => {
                within(*n, *low, *high)?;
                Ok(value.clone())
            }
            (Self::Number(low, high, since), _) => number(value, *low, *high, *since, direction),
            (Self::OneOf(all), Json::Text(text)) if all.contains(text) => Ok(value.clone()),
            (Self::OneOf(_), Json::Text(text)) => {
                misfit(format_args!("{text:?} is not one of those known"))
            }
            (Self::Pattern(form), Json::Text(text)) if form.fits(text) => Ok(value.clone()),
            (Self::Pattern(form), Json::Text(text)) => {
                misfit(format_args!("{text:?} has not the form {form}"))
            }
            (Self::Token(most, ends), Json::Text(text)) => {
                token(text, *most, ends)?;
                Ok(value.clone())
            }
            (Self::Line(most), Json::Text(text)) => clean(text, *most, false, direction),
            (Self::Lines(most), Json::Text(text)) => clean(text, *most, true, direction),
            (Self::List(of, most), Json::List(items)) => {
                if items.len() > *most {
                    return misfit(format_args!("{} items, more than {most}", items.len()));
                }
                let rebuilt = items.iter().enumerate().map(|(n, item)| {
                    of.rebuild(item, direction)
                        .map_err(|inner| inner.inside(&format!("[{n}]")))
                });
                Ok(Json::List(rebuilt.collect::<Result<_>>()?))
            }
            (Self::Map(members), Json::Map(given)) => object(members, given, direction),
            _ => misfit(format_args!("{} where {self} belongs", value.kind())),
        }
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("an empty object"),
            Self::Bool => f.write_str("true or false"),
            Self::Int(low, high) => write!(f, "an integer {low}..{high}"),
            Self::Number(low, high, since) => {
                write!(
                    f,
                    "a number {low}..{high}, sent as an integer from QEMU {since} on"
                )
            }
            Self::OneOf(all) => f.write_str(&all.join(" | ")),
            Self::Pattern(form) => write!(f, "{form}"),
            Self::Token(most, ends) if ends.is_empty() => write!(f, "a name of up to {most} bytes"),
            Self::Token(most, ends) => {
                write!(
                    f,
                    "a name of up to {most} bytes ending in {}",
                    ends.join(" or ")
                )
            }
            Self::Line(most) => write!(f, "a line of up to {most} bytes"),
            Self::Lines(most) => write!(f, "text of up to {most} bytes"),
            Self::List(of, most) => write!(f, "up to {most} of: {of}"),
            Self::Map(members) => {
                let list: Vec<String> = members
                    .iter()
                    .map(|m| {
                        let mark = if m.optional { "?" } else { "" };
                        format!("{}{mark}: {}", m.key, m.schema)
                    })
                    .collect();
                write!(f, "{{{}}}", list.join(", "))
            }
        }
    }
}

impl Misfit {
    fn inside(mut self, step: &str) -> Self {
        self.path.insert_str(0, step);
        self
    }
}

fn within(n: i64, low: i64, high: i64) -> Result<()> {
    if (low..=high).contains(&n) {
        Ok(())
    } else {
        misfit(format_args!("{n} is not within {low}..{high}"))
    }
}

fn number(value: &Json, low: i64, high: i64, since: Version, direction: Direction) -> Result<Json> {
    let n = match value {
        Json::Int(n) => *n,
        // As `%d` prints it: one way to write each number.
        Json::Text(text) => match text.parse::<i64>() {
            Ok(n) if n.to_string() == *text => n,
            _ => return misfit(format_args!("{text:?} is no decimal number")),
        },
        _ => return misfit(format_args!("{} where a number belongs", value.kind())),
    };
    within(n, low, high)?;
    Ok(match direction {
        Direction::ToQemu(version) if version >= since => Json::Int(n),
        _ => value.clone(),
    })
}

fn token(text: &str, most: usize, ends: &[String]) -> Result<()> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || b"-_.,:+/@".contains(&b);
    if text.is_empty() || text.len() > most || !text.bytes().all(ok) {
        return misfit(format_args!("not a name of up to {most} bytes"));
    }
    if !ends.is_empty() && !ends.iter().any(|end| text.ends_with(end.as_str())) {
        return misfit(format_args!(
            "{text:?} does not end in {}",
            ends.join(" or ")
        ));
    }
    Ok(())
}

/// Text from QEMU is made harmless for a terminal and a log; text for QEMU is right or refused.
fn clean(text: &str, most: usize, lines: bool, direction: Direction) -> Result<Json> {
    if text.len() > most {
        return misfit(format_args!("{} bytes, more than {most}", text.len()));
    }
    let cleaned = match lines {
        true => clean_lines(text).into_owned(),
        false => text.replace(is_active, " "),
    };
    let cleaned = cleaned.replace(is_noncharacter, " ");
    match direction {
        // QEMU's parser would refuse the whole command, in an answer without its id.
        Direction::ToQemu(_) if text.contains(is_noncharacter) => misfit("what is no character"),
        Direction::ToQemu(_) if cleaned != text => misfit("a control character"),
        _ => Ok(Json::Text(cleaned)),
    }
}

/// The code points that Unicode sets aside as noncharacters, such as U+FFFE.
fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    matches!(code, 0xfdd0..=0xfdef) || code & 0xfffe == 0xfffe
}

fn object(members: &[Member], given: &[(String, Json)], direction: Direction) -> Result<Json> {
    if let Direction::ToQemu(_) = direction {
        let unknown = given.iter().find(|g| members.iter().all(|m| m.key != g.0));
        if let Some((key, _)) = unknown {
            return misfit(format_args!("{key} is not expected"));
        }
    }
    let mut rebuilt = Vec::new();
    for member in members {
        match given.iter().find(|g| g.0 == member.key) {
            Some((_, value)) => {
                let value = member.schema.rebuild(value, direction);
                let value = value.map_err(|inner| inner.inside(&format!(".{}", member.key)))?;
                rebuilt.push((member.key.clone(), value));
            }
            None if member.optional => {}
            None => return misfit(format_args!("{} is missing", member.key)),
        }
    }
    Ok(Json::Map(rebuilt))
}

#[cfg(test)]
mod tests;
