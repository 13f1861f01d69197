//! JSON under limits: read from untrusted bytes, written as one line.
//!
//! ```text
//!   bytes ──read(limits)──▶ Json ──write──▶ bytes that only this program chose
//! ```
//!
//! [`Json::read`] is the only way from bytes to a value in this crate: `clippy.toml` disallows
//! `serde_json`'s own readers, and each exception states why its input is trusted.
//!
//! Refused, whatever it means: more bytes, depth, elements or text than the limits allow; a key
//! twice in one object (readers differ in which they believe); the character NUL, escaped or not
//! (libxl's C strings end there); control characters in a key; text that is not UTF-8, lone
//! surrogates included; a literal without fraction and exponent outside 64 bits with sign; anything
//! after the value. `-0` is the integer 0, as in QEMU.
//!
//! # Memory
//! A value takes at most 56 bytes for each member of an object or 32 for each item of an array, a
//! quarter more while it is read, and the allocator's minimum for each key and text. With the
//! widest lines of 1 MiB and 100,000 elements, the most that a policy can allow, the whole worker
//! needs less than 16 MiB of its 32 (`tests/sandbox`: `a_wide_line_takes_half_of_the_memory`).
//! `serde_json::Value` is no substitute: an array of 50,000 objects of one member, a line of
//! 400 KB, takes it 34 MiB (24 MiB with `preserve_order`), because each object is a tree node.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

use crate::text::{escape, is_active, one_line};

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
    /// Bytes of the whole text.
    pub bytes: usize,
    /// Arrays and objects inside one another.
    pub depth: usize,
    /// Values in all, keys not counted.
    pub elements: usize,
    /// Bytes of one string.
    pub text: usize,
}

/// The longest key taken, in bytes.
const KEY_MAX: usize = 128;
/// Up to this many members, each key is compared with those before it as it is read. Beyond, all
/// keys are sorted when the object is complete.
const FEW_KEYS: usize = 16;

/// Why bytes were refused, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    why: String,
    is_json: bool,
}

impl Refused {
    /// Returns whether the bytes are JSON, as far as they were read, but break a limit: too many
    /// bytes or values, too deep, a key twice, a number out of range.
    pub fn is_json(&self) -> bool {
        self.is_json
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Refused {}

impl Json {
    /// Reads one value, which has to be all there is but for white space.
    ///
    /// # Errors
    /// Not JSON, or one of the refusals above.
    #[allow(clippy::disallowed_methods)] // This is the reader with limits.
    pub fn read(bytes: &[u8], limits: &Limits) -> Result<Self, Refused> {
        if bytes.len() > limits.bytes {
            let (count, most) = (bytes.len(), limits.bytes);
            return Err(Refused {
                why: format!("{count} bytes, more than {most}"),
                is_json: true,
            });
        }
        let mut budget = limits.elements;
        let mut from = serde_json::Deserializer::from_slice(bytes);
        let seed = Seed {
            limits,
            budget: &mut budget,
            numbers: &mut Numbers::of(bytes),
            depth: 0,
        };
        let read = seed.deserialize(&mut from);
        let read = read.and_then(|value| from.end().map(|()| value));
        read.map_err(|error| Refused {
            is_json: error.is_data(),
            why: one_line(&error.to_string()),
        })
    }

    /// The member `key` of an object.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(members) => members.iter().find(|m| m.0 == key).map(|m| &m.1),
            _ => None,
        }
    }

    /// Takes the member `key` out of an object.
    pub fn take(&mut self, key: &str) -> Option<Self> {
        let Self::Map(members) = self else {
            return None;
        };
        let at = members.iter().position(|member| member.0 == key)?;
        Some(members.swap_remove(at).1)
    }

    /// The text of a string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns the name of this value's kind, for people.
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

impl From<Json> for serde_json::Value {
    fn from(json: Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => value.into(),
            Json::Int(value) => value.into(),
            Json::Real(value) => value.into(),
            Json::Text(text) => text.into(),
            Json::List(items) => items.into_iter().map(Self::from).collect(),
            Json::Map(members) => {
                let members = members.into_iter();
                Self::Object(members.map(|(key, value)| (key, value.into())).collect())
            }
        }
    }
}

/// Of a value that this program made: nothing is checked.
impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => match number.as_i64() {
                Some(number) => Self::Int(number),
                None => Self::Real(number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => Self::Text(text),
            Value::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Value::Object(members) => {
                let members = members.into_iter();
                Self::Map(members.map(|(key, value)| (key, value.into())).collect())
            }
        }
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
            c if is_active(c) => out.extend_from_slice(escape(c).as_bytes()),
            c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    out.push(b'"');
}

/// The number literals of a text, in order. `serde_json` reads an integer that does not fit as a
/// real; only its literal distinguishes the two.
struct Numbers<'a> {
    rest: &'a [u8],
    /// Literals in front of the next one that were read and not looked at.
    behind: usize,
}

impl<'a> Numbers<'a> {
    fn of(text: &'a [u8]) -> Self {
        let (rest, behind) = (text, 0);
        Self { rest, behind }
    }

    /// One more was read as an integer.
    fn pass(&mut self) {
        self.behind += 1;
    }

    /// The literal of the number that was just read.
    fn literal(&mut self) -> &'a [u8] {
        for _ in 0..std::mem::take(&mut self.behind) {
            self.next();
        }
        self.next()
    }

    fn next(&mut self) -> &'a [u8] {
        let mut quoted = false;
        let mut at = 0;
        while let Some(byte) = self.rest.get(at) {
            match byte {
                b'\\' if quoted => at += 1,
                b'"' => quoted = !quoted,
                b'-' | b'0'..=b'9' if !quoted => break,
                _ => {}
            }
            at += 1;
        }
        let rest = self.rest.get(at..).unwrap_or_default();
        let of_number = |b: &u8| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
        let end = rest.iter().position(|b| !of_number(b));
        let (literal, rest) = rest.split_at(end.unwrap_or(rest.len()));
        self.rest = rest;
        literal
    }
}

/// Reads one value out of what is left of a budget.
struct Seed<'a, 't> {
    limits: &'a Limits,
    budget: &'a mut usize,
    numbers: &'a mut Numbers<'t>,
    depth: usize,
}

impl<'t> Seed<'_, 't> {
    /// A seed for what is inside this value.
    fn inner(&mut self) -> Seed<'_, 't> {
        Seed {
            limits: self.limits,
            budget: self.budget,
            numbers: self.numbers,
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

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
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

impl<'de> Visitor<'de> for Seed<'_, '_> {
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
        self.numbers.pass();
        Ok(Json::Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        self.numbers.pass();
        i64::try_from(value)
            .map(Json::Int)
            .map_err(|_| E::custom(format_args!("the integer {value} is out of range")))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        let literal = self.numbers.literal();
        if !literal.iter().any(|b| matches!(b, b'.' | b'e' | b'E')) {
            return match literal {
                b"-0" => Ok(Json::Int(0)),
                _ => Err(E::custom("an integer out of range")),
            };
        }
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
            grow(&mut items);
            items.push(item);
        }
        items.shrink_to_fit();
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<Json, A::Error> {
        self.enter()?;
        let mut members: Vec<(String, Json)> = Vec::new();
        while let Some(key) = access.next_key_seed(Key)? {
            let few = members.get(..FEW_KEYS).unwrap_or(&members);
            if few.iter().any(|member| member.0 == key) {
                return Err(twice(&key));
            }
            let value = access.next_value_seed(self.inner())?;
            grow(&mut members);
            members.push((key, value));
        }
        members.shrink_to_fit();
        if members.len() > FEW_KEYS {
            let mut keys: Vec<&str> = members.iter().map(|member| member.0.as_str()).collect();
            keys.sort_unstable();
            let same = keys.iter().zip(keys.iter().skip(1)).find(|(a, b)| a == b);
            if let Some((key, _)) = same {
                return Err(twice(key));
            }
        }
        Ok(Json::Map(members))
    }
}

/// Makes room for one more, and for a quarter of what is there: doubling would take a third of the
/// memory that a value needs once more.
fn grow<T>(items: &mut Vec<T>) {
    if items.len() == items.capacity() {
        items.reserve_exact(1 + items.len() / 4);
    }
}

fn twice<E: Error>(key: &str) -> E {
    E::custom(format_args!("the key {key:?} twice"))
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
        if key.contains(is_active) {
            return Err(E::custom("a key with a control character in it"));
        }
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests;
