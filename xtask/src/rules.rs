//! How many rules of the fidelity suite held where, as the tests printed it: `fidelity: AREA PLACE
//! N`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The beginning of a line with a count.
const MARK: &str = "fidelity: ";

/// By area and place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules(BTreeMap<String, BTreeMap<String, u64>>);

impl Rules {
    /// Reads the counts from a runner's output.
    pub(crate) fn from_output(text: &str) -> Self {
        let mut rules = Self::default();
        for line in text.lines() {
            let Some(words) = line.trim_end().strip_prefix(MARK) else {
                continue;
            };
            let words: Vec<&str> = words.split(' ').collect();
            let [area, place, count] = words[..] else {
                continue;
            };
            if let Ok(count) = count.parse() {
                rules.note(area, place, count);
            }
        }
        rules
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (area, places) in &other.0 {
            for (place, count) in places {
                self.note(area, place, *count);
            }
        }
    }

    /// The same rules in the same place more than once are the same rules.
    fn note(&mut self, area: &str, place: &str, count: u64) {
        let places = self.0.entry(area.to_owned()).or_default();
        let known = places.entry(place.to_owned()).or_default();
        *known = count.max(*known);
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        let places: BTreeSet<&String> = self.0.values().flat_map(BTreeMap::keys).collect();
        write!(f, "\n{:<14}", "rules held")?;
        for place in &places {
            write!(f, " {place:>16}")?;
        }
        writeln!(f)?;
        for (area, counts) in &self.0 {
            write!(f, "{area:<14}")?;
            for place in &places {
                match counts.get(*place) {
                    Some(count) => write!(f, " {count:>16}")?,
                    None => write!(f, " {:>16}", "-")?,
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_printed_becomes_a_table() {
        let mut rules = Rules::from_output(
            "x\nfidelity: evtchn simulated 19\r\nfidelity: evtchn real 19\nfidelity: odd\n",
        );
        rules.add(&Rules::from_output(
            "fidelity: store real 4\nfidelity: evtchn real 18",
        ));
        let table = rules.to_string();
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .filter(|words: &Vec<&str>| !words.is_empty())
            .collect();
        assert_eq!(
            lines,
            [
                vec!["rules", "held", "real", "simulated"],
                vec!["evtchn", "19", "19"],
                vec!["store", "4", "-"],
            ]
        );
        assert_eq!(Rules::from_output("nothing").to_string(), "");
    }
}
