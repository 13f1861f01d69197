//! Store paths and their rules.
//!
//! | form | example | limit |
//! |---|---|---|
//! | absolute | `/local/domain/3/name` | 3072 bytes |
//! | relative to `/local/domain/<the caller>` | `device/vif/0` | 2048 bytes |
//! | special, for watches and permissions | `@releaseDomain` | as relative |
//!
//! Only ASCII letters, digits and `-/_@` are allowed, no doubled and no trailing slash
//! (`docs/misc/xenstore.txt`). A NUL would end the path on the wire and turn the rest into further
//! protocol fields; it is rejected here like all other characters.

use crate::error::Invalid;
use crate::wire::{ABS_PATH_MAX, REL_PATH_MAX};

/// A checked path. Copying it copies a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath<'a>(&'a str);

impl<'a> StorePath<'a> {
    /// Checks `text`.
    ///
    /// # Errors
    ///
    /// [`Invalid`] names the rule that is violated, and where.
    pub fn new(text: &'a str) -> Result<Self, Invalid> {
        let max = if text.starts_with('/') {
            ABS_PATH_MAX
        } else {
            REL_PATH_MAX
        };
        if text.is_empty() {
            return Err(Invalid::EmptyPath);
        }
        if text.len() > max {
            return Err(Invalid::PathTooLong {
                len: text.len(),
                max,
            });
        }
        if let Some(at) = text.bytes().position(|byte| !is_allowed(byte)) {
            return Err(Invalid::PathCharacter {
                byte: text.as_bytes()[at],
                at,
            });
        }
        if let Some(at) = text.find("//") {
            return Err(Invalid::DoubledSlash { at });
        }
        if text.len() > 1 && text.ends_with('/') {
            return Err(Invalid::TrailingSlash);
        }
        Ok(Self(text))
    }

    /// Returns the path as text.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// Returns whether the daemon resolves the path against the caller's own domain path.
    #[must_use]
    pub fn is_relative(self) -> bool {
        !self.0.starts_with(['/', '@'])
    }

    /// Returns whether this names an event of the daemon (`@introduceDomain`, …) and not a node.
    #[must_use]
    pub fn is_special(self) -> bool {
        self.0.starts_with('@')
    }

    /// Returns the path one level up; `None` for `/` and for a path of one component without a
    /// slash.
    #[must_use]
    pub fn parent(self) -> Option<Self> {
        if self.0 == "/" {
            return None;
        }
        match self.0.rfind('/')? {
            0 => Some(Self("/")),
            at => Some(Self(&self.0[..at])),
        }
    }

    /// Returns the last component; empty for `/`.
    #[must_use]
    pub fn name(self) -> &'a str {
        self.0.rfind('/').map_or(self.0, |at| &self.0[at + 1..])
    }

    /// Returns whether `self` is `ancestor` or lies below it.
    ///
    /// As in the protocol's definition of a child, a path is at or below itself.
    #[doc(alias = "xs_path_is_subpath")]
    #[must_use]
    pub fn is_at_or_below(self, ancestor: StorePath<'_>) -> bool {
        if ancestor.0 == "/" {
            return self.0.starts_with('/');
        }
        self.0
            .strip_prefix(ancestor.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// Returns `base` and `rest` with exactly one slash between them.
///
/// # Errors
///
/// [`Invalid`] if the result is not a path; `rest` may not start with a slash.
pub fn join(base: &str, rest: &str) -> Result<String, Invalid> {
    let joined = if base.ends_with('/') {
        format!("{base}{rest}")
    } else {
        format!("{base}/{rest}")
    };
    StorePath::new(&joined)?;
    Ok(joined)
}

/// Returns whether `byte` may occur in a path.
#[must_use]
pub const fn is_allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'/' | b'_' | b'@')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Result<(), Invalid>) {
        assert_eq!(StorePath::new(text).map(|_| ()), expect, "{text:?}");
    }

    #[test]
    fn rules_of_the_protocol_hold() {
        check("/", Ok(()));
        check("/local/domain/0", Ok(()));
        check("device/vif-0_@A", Ok(()));
        check("@releaseDomain", Ok(()));
        check("@releaseDomain/5", Ok(()));
        check("", Err(Invalid::EmptyPath));
        check("/a//b", Err(Invalid::DoubledSlash { at: 2 }));
        check("//", Err(Invalid::DoubledSlash { at: 0 }));
        check("/a/", Err(Invalid::TrailingSlash));
        check("/a b", Err(Invalid::PathCharacter { byte: b' ', at: 2 }));
        check("/a\0b", Err(Invalid::PathCharacter { byte: 0, at: 2 }));
        check("/é", Err(Invalid::PathCharacter { byte: 0xc3, at: 1 }));
        check("/a.b", Err(Invalid::PathCharacter { byte: b'.', at: 2 }));
    }

    #[test]
    fn lengths_are_limited_by_form() {
        let absolute = format!("/{}", "a".repeat(ABS_PATH_MAX - 1));
        check(&absolute, Ok(()));
        let len = ABS_PATH_MAX + 1;
        check(
            &format!("{absolute}a"),
            Err(Invalid::PathTooLong {
                len,
                max: ABS_PATH_MAX,
            }),
        );
        let relative = "a".repeat(REL_PATH_MAX);
        check(&relative, Ok(()));
        let len = REL_PATH_MAX + 1;
        check(
            &format!("{relative}a"),
            Err(Invalid::PathTooLong {
                len,
                max: REL_PATH_MAX,
            }),
        );
    }

    #[test]
    fn ancestry_is_by_component() {
        let path = |text| StorePath::new(text).unwrap();
        assert!(path("/a/b").is_at_or_below(path("/a")));
        assert!(path("/a").is_at_or_below(path("/a")));
        assert!(path("/a").is_at_or_below(path("/")));
        assert!(!path("/ab").is_at_or_below(path("/a")));
        assert!(!path("a").is_at_or_below(path("/")));
        assert_eq!(path("/a/b").parent(), Some(path("/a")));
        assert_eq!(path("/a").parent(), Some(path("/")));
        assert_eq!(path("/").parent(), None);
        assert_eq!(path("a").parent(), None);
        assert_eq!(path("/a/b").name(), "b");
    }

    #[test]
    fn join_puts_one_slash() {
        assert_eq!(join("/", "a").unwrap(), "/a");
        assert_eq!(join("/a", "b/c").unwrap(), "/a/b/c");
        assert!(join("/a", "/b").is_err());
        assert!(join("/a", "").is_err());
    }
}
