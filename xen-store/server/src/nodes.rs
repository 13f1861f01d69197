//! The requests on nodes.

use crate::access::{self, Need};
use crate::domain::Domain;
use crate::quota::exceeded;
use crate::request::Args;
use crate::tree::Node;
use crate::view::{Outcome, View};
use xen_store::XsError;
use xen_store::path::is_allowed;
use xen_store::wire::{ABS_PATH_MAX, PAYLOAD_MAX, REL_PATH_MAX};
use xen_sys::DomId;

pub(crate) const OK: &[u8] = b"OK\0";

impl View<'_> {
    /// READ
    pub(crate) fn do_read(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let path = self.path(args.only()?)?;
        Ok(self.get(&path, Need::Read)?.value.to_vec())
    }

    /// WRITE: everything after the path's NUL is the value.
    pub(crate) fn do_write(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let (name, value) = args.split_first()?;
        let path = self.path(name)?;
        let node = match self.get(&path, Need::Write) {
            Ok(node) => {
                self.write(
                    &path,
                    Node {
                        value: value.into(),
                        ..Node::clone(&node)
                    },
                )?;
                node
            }
            Err(XsError::ENOENT) => self.create(&path, value)?,
            Err(error) => return Err(error),
        };
        self.fire(&path, false, Some(&node), None)?;
        Ok(OK.to_vec())
    }

    /// MKDIR
    pub(crate) fn do_mkdir(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let path = self.path(args.only()?)?;
        match self.get(&path, Need::Write) {
            Ok(_) => {}
            Err(XsError::ENOENT) => {
                let node = self.create(&path, b"")?;
                self.fire(&path, false, Some(&node), None)?;
            }
            Err(error) => return Err(error),
        }
        Ok(OK.to_vec())
    }

    /// RM
    pub(crate) fn do_rm(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let path = self.path(args.only()?)?;
        match self.get(&path, Need::Write) {
            Ok(_) if path == "/" => return Err(XsError::EINVAL),
            Ok(_) => self.remove_tree(&path)?,
            Err(XsError::ENOENT) => {
                // A missing node may be removed if its parent exists.
                self.read(crate::tree::parent(&path))?
                    .ok_or(XsError::ENOENT)?;
            }
            Err(error) => return Err(error),
        }
        Ok(OK.to_vec())
    }

    /// DIRECTORY
    pub(crate) fn do_directory(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let path = self.path(args.only()?)?;
        Ok(self.get(&path, Need::Read)?.child_list())
    }

    /// DIRECTORY_PART
    pub(crate) fn do_directory_part(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let [name, offset] = args.exactly()?;
        let path = self.path(name)?;
        let node = self.get(&path, Need::Read)?;
        let list = node.child_list();
        let offset = usize::try_from(crate::request::number(offset)).unwrap_or(usize::MAX);
        let mut reply = format!("{}\0", node.generation).into_bytes();
        let rest = list.get(offset..).unwrap_or_default();
        // Whole names while they fit, and room for the NUL that marks the end.
        let room = PAYLOAD_MAX - reply.len() - 1;
        let mut part = 0;
        for name in rest.split_inclusive(|&byte| byte == 0) {
            if part + name.len() > room {
                break;
            }
            part += name.len();
        }
        let (part, left) = rest.split_at(part);
        reply.extend_from_slice(part);
        if left.is_empty() {
            reply.push(0);
        }
        Ok(reply)
    }

    /// GET_PERMS
    pub(crate) fn do_get_perms(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let path = self.path(args.only()?)?;
        Ok(access::format(&self.get(&path, Need::Read)?.perms))
    }

    /// SET_PERMS on a node; `entries` were read by [`View::parse_perms`].
    pub(crate) fn do_set_perms(
        &mut self,
        name: &[u8],
        entries: Vec<access::Entry>,
    ) -> Outcome<Vec<u8>> {
        let path = self.path(name)?;
        let node = self.get(&path, Need::Own)?;
        let perms: access::Perms = entries.into();
        let new = Node {
            perms,
            ..Node::clone(&node)
        };
        let (from, to) = (node.owner(), new.owner());
        if from != to && !self.who.is_privileged() {
            return Err(XsError::EPERM);
        }
        let now = new.clone();
        self.write(&path, new)?;
        self.adjust_nodes(from, -1);
        self.adjust_nodes(to, 1);
        self.fire(&path, false, Some(&now), Some(node.perms.clone()))?;
        Ok(OK.to_vec())
    }

    /// Returns the entries of a SET_PERMS request, those about domains that do not exist marked.
    pub(crate) fn parse_perms(&mut self, text: &[u8]) -> Outcome<Vec<access::Entry>> {
        let count = text.iter().filter(|&&byte| byte == 0).count();
        if count == 0 {
            return Err(XsError::EINVAL);
        }
        if exceeded(count as u64, self.quota.permissions) && !self.who.is_privileged() {
            return Err(XsError::ENOSPC);
        }
        let mut entries = access::parse(text)?;
        let generation = self.tree.generation();
        for entry in &mut entries {
            entry.stale = if entry.domain == DomId::ANY {
                !self.offers_any
            } else {
                self.domains.find_or_add(entry.domain, generation).is_none()
            };
        }
        match entries.first() {
            Some(first) if !first.stale && first.domain != DomId::ANY => Ok(entries),
            _ => Err(XsError::ENOENT),
        }
    }

    /// Returns the absolute path that a request names.
    pub(crate) fn path(&self, name: &[u8]) -> Outcome<String> {
        absolute(self.who.domain.as_u16(), name)
    }
}

/// Returns the path to which relative paths of `domain` are relative.
pub(crate) fn home(domain: u32) -> String {
    format!("/local/domain/{domain}")
}

/// `name` as an absolute path, if that is the name of a node.
pub(crate) fn absolute(domain: u16, name: &[u8]) -> Outcome<String> {
    let name = std::str::from_utf8(name).map_err(|_| XsError::EINVAL)?;
    let path = match name.as_bytes().first() {
        Some(b'/' | b'@') => name.to_owned(),
        _ => format!("{}/{name}", home(domain.into())),
    };
    let within = path.len() <= REL_PATH_MAX + home_prefix(&path) && path.len() <= ABS_PATH_MAX;
    let well_formed = path.starts_with('/')
        && path.bytes().all(is_allowed)
        && !path.contains("//")
        && (path == "/" || !path.ends_with('/'));
    if within && well_formed {
        Ok(path)
    } else {
        Err(XsError::EINVAL)
    }
}

/// Length of a leading `/local/domain/<id>/`, which does not count towards the limit.
fn home_prefix(path: &str) -> usize {
    let Some(rest) = path.strip_prefix("/local/domain/") else {
        return 0;
    };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count().min(5);
    if digits > 0 && rest.as_bytes().get(digits) == Some(&b'/') {
        "/local/domain/".len() + digits + 1
    } else {
        0
    }
}

/// One line per count, as CONTROL `quota <domid>` prints them.
pub(crate) fn usage(id: u32, domain: &Domain) -> String {
    format!(
        "Domain {id}:\n{:<16}: {:>8}\n{:<16}: {:>8}\n{:<16}: {:>8}\n{:<16}: {:>8}\n",
        "nodes",
        domain.nodes,
        "watches",
        domain.watches,
        "transactions",
        domain.transactions,
        "memory",
        domain.memory,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_names_start_at_home() {
        assert_eq!(absolute(7, b"a/b").unwrap(), "/local/domain/7/a/b");
        assert_eq!(absolute(7, b"/a").unwrap(), "/a");
        for bad in [
            &b""[..],
            b"/a/",
            b"//",
            b"/a//b",
            b"@x",
            b"/a.b",
            b"a/",
            b"/\xff",
        ] {
            assert_eq!(
                absolute(7, bad),
                Err(XsError::EINVAL),
                "{}",
                bad.escape_ascii()
            );
        }
    }

    #[test]
    fn the_home_prefix_is_not_counted() {
        let name = "x".repeat(REL_PATH_MAX);
        assert!(absolute(65535, name.as_bytes()).is_ok());
        assert!(absolute(7, format!("{name}x").as_bytes()).is_err());
        assert!(absolute(0, format!("/{}", &name[1..]).as_bytes()).is_ok());
        assert!(absolute(0, format!("/{name}").as_bytes()).is_err());
        assert_eq!(home_prefix("/local/domain/12/x"), 17);
        assert_eq!(home_prefix("/local/domain/12"), 0);
        assert_eq!(home_prefix("/local/domain/x/y"), 0);
    }
}
