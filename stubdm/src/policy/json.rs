//! JSON under limits: read from bytes nobody vouches for, written as one line.
//!
//! ```text
//!   bytes ──read(limits)──▶ Json ──write──▶ bytes that only this program chose
//! ```
//!
//! Refused, whatever it means: more depth, elements or text than the limits say; a key twice in
//! one object (readers differ in which they believe); the character NUL, escaped or not (libxl's C
//! strings end there); control characters in a key; text that is not UTF-8; an integer outside
//! 64 bits with sign; anything after the value. The length of the whole is the caller's to bound.

use std::collections::HashSet;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use crate::error::one_line;

/// A JSON value. Members of an object keep their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number without fraction and exponent.
    Int(i64),
    /// Any other number; always finite.
    Real(f64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Self>),
    /// An object; no key occurs twice.
    Map(Vec<(String, Self)>),
}

/// How much a value may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Arrays and objects inside one another.
    pub depth: usize,
    /// Values in all, keys not counted.
    pub elements: usize,
    /// Bytes of one string.
    pub text: usize,
}

/// The longest key taken, in bytes.
const KEY_MAX: usize = 128;
/// From this many members on, keys are found by hashing.
const MANY_KEYS: usize = 16;

/// Why bytes were refused, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl Json {
    /// Reads one value, which has to be all there is but for white space.
    ///
    /// # Errors
    /// Not JSON, or one of the refusals above.
    pub fn read(bytes: &[u8], limits: &Limits) -> Result<Self, Refused> {
        let mut budget = limits.elements;
        let mut from = serde_json::Deserializer::from_slice(bytes);
        let seed = Seed {
            limits,
            budget: &mut budget,
            depth: 0,
        };
        let read = seed.deserialize(&mut from);
        let read = read.and_then(|value| from.end().map(|()| value));
        read.map_err(|error| Refused(one_line(&error.to_string())))
    }

    /// The member `key` of an object.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(members) => members.iter().find(|m| m.0 == key).map(|m| &m.1),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// What kind of value this is, for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a truth value",
            Self::Int(_) => "an integer",
            Self::Real(_) => "a number with a fraction",
            Self::Text(_) => "a string",
            Self::List(_) => "an array",
            Self::Map(_) => "an object",
        }
    }

    /// Adds the value to `out`, without white space and without any raw control character.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(value) => out.extend_from_slice(value.to_string().as_bytes()),
            Self::Int(value) => out.extend_from_slice(value.to_string().as_bytes()),
            Self::Real(value) => {
                let text = serde_json::Number::from_f64(*value)
                    .map_or_else(|| "null".to_owned(), |number| number.to_string());
                out.extend_from_slice(text.as_bytes());
            }
            Self::Text(text) => write_text(text, out),
            Self::List(items) => {
                out.push(b'[');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            Self::Map(members) => {
                out.push(b'{');
                for (n, (key, value)) in members.iter().enumerate() {
                    if n > 0 {
                        out.push(b',');
                    }
                    write_text(key, out);
                    out.push(b':');
                    value.write(out);
                }
                out.push(b'}');
            }
        }
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        f.write_str(&String::from_utf8_lossy(&bytes))
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// An object of these members.
pub fn map<const N: usize>(members: [(&str, Json); N]) -> Json {
    Json::Map(members.map(|(key, value)| (key.to_owned(), value)).into())
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend([b'\\', c as u8]),
            '\n' => out.extend_from_slice(b"\\n"),
            '\r' => out.extend_from_slice(b"\\r"),
            '\t' => out.extend_from_slice(b"\\t"),
            c if c.is_control() => {
                out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes());
            }
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

/// Reads one value out of what is left of a budget.
struct Seed<'a> {
    limits: &'a Limits,
    budget: &'a mut usize,
    depth: usize,
}

impl Seed<'_> {
    /// A seed for what is inside this value.
    fn inner(&mut self) -> Seed<'_> {
        Seed {
            limits: self.limits,
            budget: self.budget,
            depth: self.depth + 1,
        }
    }

    fn enter<E: Error>(&self) -> Result<(), E> {
        if self.depth < self.limits.depth {
            Ok(())
        } else {
            Err(E::custom(format_args!(
                "nested deeper than {}",
                self.limits.depth
            )))
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
        let Some(left) = self.budget.checked_sub(1) else {
            let most = self.limits.elements;
            return Err(D::Error::custom(format_args!("more than {most} values")));
        };
        *self.budget = left;
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        i64::try_from(value)
            .map(Json::Int)
            .map_err(|_| E::custom(format_args!("the integer {value} is out of range")))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        if value.is_finite() {
            Ok(Json::Real(value))
        } else {
            Err(E::custom("a number out of range"))
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        let most = self.limits.text;
        if text.len() > most {
            return Err(E::custom(format_args!(
                "a string of {} bytes, more than {most}",
                text.len()
            )));
        }
        if text.contains('\0') {
            return Err(E::custom("a string with NUL in it"));
        }
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut access: A) -> Result<Json, A::Error> {
        self.enter()?;
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self.inner())? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Json, A::Error> {
        self.enter()?;
        let mut members: Vec<(String, Json)> = Vec::new();
        let mut seen = HashSet::new();
        while let Some(key) = access.next_key_seed(Key)? {
            let twice = if members.len() < MANY_KEYS {
                members.iter().any(|member| member.0 == key)
            } else {
                if seen.is_empty() {
                    seen.extend(members.iter().map(|member| member.0.clone()));
                }
                !seen.insert(key.clone())
            };
            if twice {
                return Err(A::Error::custom(format_args!("the key {key:?} twice")));
            }
            members.push((key, access.next_value_seed(self.inner())?));
        }
        Ok(Json::Map(members))
    }
}

/// Reads a key.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        if key.len() > KEY_MAX {
            return Err(E::custom(format_args!("a key of {} bytes", key.len())));
        }
        if key.chars().any(char::is_control) {
            return Err(E::custom("a key with a control character in it"));
        }
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests;
