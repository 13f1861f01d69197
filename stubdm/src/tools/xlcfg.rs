//! A guest's configuration as xl reads it, as far as checks need it: names, and values that are
//! texts, numbers or lists of texts.
//!
//! (`docs/man/xl.cfg.5.pod`, `tools/libs/util/libxlu_cfg_l.l`.) What is not understood is skipped:
//! xl itself reports what is wrong.

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text or a number.
    Scalar(String),
    /// A list.
    List(Vec<String>),
}

/// A configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    all: Vec<(String, Value)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Mark(char),
}

impl Settings {
    /// Reads a configuration.
    pub fn parse(text: &str) -> Self {
        let mut tokens = tokens(text).into_iter().peekable();
        let mut all = Vec::new();
        while let Some(token) = tokens.next() {
            let Token::Word(name) = token else { continue };
            if tokens.next_if_eq(&Token::Mark('=')).is_none() {
                continue;
            }
            if let Some(Token::Word(value)) = tokens.next_if(|t| matches!(t, Token::Word(_))) {
                all.push((name, Value::Scalar(value)));
            } else if tokens.next_if_eq(&Token::Mark('[')).is_some() {
                let inside = tokens.by_ref().take_while(|t| *t != Token::Mark(']'));
                let words = inside.filter_map(|token| match token {
                    Token::Word(word) => Some(word),
                    Token::Mark(_) => None,
                });
                all.push((name, Value::List(words.collect())));
            }
        }
        Self { all }
    }

    /// A setting; of several of one name the last holds.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let mut all = self.all.iter().rev();
        all.find(|(own, _)| own == name).map(|(_, value)| value)
    }

    /// A setting that is a text or a number.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Scalar(value) => Some(value),
            Value::List(_) => None,
        }
    }

    /// A setting that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }

    /// Returns whether a switch is on.
    pub fn is_on(&self, name: &str) -> bool {
        self.number(name).is_some_and(|number| number != 0)
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut all = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '#' => while chars.next_if(|&c| c != '\n').is_some() {},
            '"' | '\'' => {
                let mut word = String::new();
                while let Some(inner) = chars.next_if(|&inner| inner != c) {
                    match inner {
                        '\\' => word.extend(chars.next()),
                        _ => word.push(inner),
                    }
                }
                chars.next();
                all.push(Token::Word(word));
            }
            // The end of a setting, but inside of a list.
            '=' | '[' | ']' | ',' | ';' | '\n' => all.push(Token::Mark(c)),
            c if c.is_whitespace() => {}
            _ => {
                let mut word = String::from(c);
                let plain = |c: &char| !c.is_whitespace() && !"=[],;#\"'".contains(*c);
                while let Some(c) = chars.next_if(plain) {
                    word.push(c);
                }
                all.push(Token::Word(word));
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_xl_reads_is_read() {
        let settings = Settings::parse(
            "# vnc=0\nname = 'g' # a name\nvnc=1;vnc=0\n\
             usbdevice=[ \"tablet\",\n  'host:1.2', ]\nstubdomain_cmdline=\"a=b \\\"c\\\" # d\"\nbroken\n=\nlast=0x1",
        );
        assert_eq!(settings.text("name"), Some("g"));
        assert_eq!(settings.number("vnc"), Some(0));
        assert!(!settings.is_on("vnc") && settings.get("broken").is_none());
        let list = Value::List(vec!["tablet".into(), "host:1.2".into()]);
        assert_eq!(settings.get("usbdevice"), Some(&list));
        assert_eq!(settings.text("stubdomain_cmdline"), Some("a=b \"c\" # d"));
        assert_eq!(settings.text("last"), Some("0x1"));
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(text in "[a-z=\\[\\],;#\"'\\\\ \n0-9]{0,60}") {
            let _ = Settings::parse(&text);
        }
    }
}
