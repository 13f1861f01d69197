//! The values seen at one place, and the schema that fits them.

use std::collections::{BTreeMap, BTreeSet};

use crate::json::Json;
use crate::policy::PolicyError;

/// Different strings remembered; with more it is any line that is allowed.
const TEXTS: usize = 8;

/// The side whose values they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A command's arguments: exactly what was seen, as far as it can be listed.
    Arguments,
    /// Answers: the kind of what was seen, with room for other values.
    Answers,
}

/// The values of one place.
#[derive(Debug, Default)]
pub(super) struct Values {
    times: usize,
    bools: usize,
    ints: Option<(i64, i64)>,
    texts: BTreeSet<String>,
    longest: Option<usize>,
    breaks: bool,
    items: Option<(Box<Self>, usize)>,
    members: Option<BTreeMap<String, Self>>,
    objects: usize,
    other: Option<&'static str>,
}

/// A string as TOML has it.
pub(super) fn quoted(text: &str) -> String {
    // JSON's escapes are all among TOML's.
    Json::from(text).to_string()
}

/// The next power of two, for a limit with some room.
fn room(n: usize, least: usize) -> usize {
    n.max(least).checked_next_power_of_two().unwrap_or(n)
}

impl Values {
    /// One more value.
    pub(super) fn add(&mut self, value: &Json) {
        self.times += 1;
        match value {
            Json::Bool(_) => self.bools += 1,
            Json::Int(n) => {
                let (low, high) = self.ints.unwrap_or((*n, *n));
                self.ints = Some((low.min(*n), high.max(*n)));
            }
            Json::Text(text) => {
                if self.texts.len() <= TEXTS {
                    self.texts.insert(text.clone());
                }
                self.breaks |= text.contains(['\n', '\r', '\t']);
                self.longest = Some(self.longest.unwrap_or(0).max(text.len()));
            }
            Json::List(items) => {
                let (inner, most) = self.items.get_or_insert_with(Default::default);
                *most = (*most).max(items.len());
                items.iter().for_each(|item| inner.add(item));
            }
            Json::Map(members) => {
                self.objects += 1;
                let by_key = self.members.get_or_insert_with(BTreeMap::new);
                for (key, value) in members {
                    by_key.entry(key.clone()).or_default().add(value);
                }
            }
            Json::Null | Json::Real(_) => self.other = Some(value.kind()),
        }
    }

    /// The schema of the values; `None` for an object without members, or for nothing seen.
    pub(super) fn schema(&self, side: Side) -> Result<Option<String>, PolicyError> {
        let mut all = Vec::new();
        if self.bools > 0 {
            all.push("bool = true".to_owned());
        }
        if let Some((low, high)) = self.ints {
            let top = i64::try_from(room(usize::try_from(high).unwrap_or(0), 1)).unwrap_or(high);
            let (low, high) = match side {
                Side::Arguments => (low, high),
                Side::Answers => (low.min(0), high.max(top)),
            };
            all.push(format!("int = [{low}, {high}]"));
        }
        if let Some(longest) = self.longest {
            all.push(if side == Side::Arguments && self.texts.len() <= TEXTS {
                let list: Vec<String> = self.texts.iter().map(|text| quoted(text)).collect();
                format!("one_of = [{}]", list.join(", "))
            } else if self.breaks {
                format!("lines = {}", room(longest, 64))
            } else {
                format!("line = {}", room(longest, 64))
            });
        }
        if let Some((inner, most)) = &self.items {
            let most = match side {
                Side::Arguments => (*most).max(1),
                Side::Answers => room(most * 4, 16),
            };
            let inner = inner.schema(side)?;
            let inner = inner.unwrap_or_else(|| "{ nothing = true }".to_owned());
            all.push(format!("list = {inner}, most = {most}"));
        }
        if self.objects > 0 {
            let members = self.members(side)?;
            if !members.is_empty() {
                let list: Vec<String> = members
                    .iter()
                    .map(|(key, schema)| format!("{} = {schema}", quoted(key)))
                    .collect();
                all.push(format!("object = {{ {} }}", list.join(", ")));
            } else if all.is_empty() {
                return Ok(None);
            }
        }
        if let Some(kind) = self.other {
            return Err(PolicyError(format!("no row can be made for {kind}")));
        }
        match (all.pop(), all.is_empty()) {
            (None, _) => Ok(None),
            (Some(one), true) => Ok(Some(format!("{{ {one} }}"))),
            (Some(_), false) => Err(PolicyError(
                "values of more than one kind at one place".to_owned(),
            )),
        }
    }

    /// The schemas of an object's members. Those of an answer that no row can be made for are left
    /// out, as a row does with what it does not name.
    pub(super) fn members(&self, side: Side) -> Result<Vec<(String, String)>, PolicyError> {
        let mut list = Vec::new();
        for (key, values) in self.members.iter().flatten() {
            let schema = match (values.schema(side), side) {
                (Ok(schema), _) => schema.unwrap_or_else(|| "{ nothing = true }".to_owned()),
                (Err(_), Side::Answers) => continue,
                (Err(error), Side::Arguments) => {
                    return Err(PolicyError(format!("argument {key}: {error}")));
                }
            };
            let schema = if values.times < self.objects {
                schema.replacen('{', "{ optional = true,", 1)
            } else {
                schema
            };
            list.push((key.clone(), schema));
        }
        Ok(list)
    }
}
