//! The requests about domains, features, quotas and the daemon itself.

use xen_sys::DomId;

use crate::nodes::{OK, usage};
use crate::quota::Quota;
use crate::request::{Args, number};
use crate::view::Outcome;
use crate::{ConnId, Daemon};
use xen_store::XsError;
use xen_store::wire::MsgType;

/// An entry of `DomId::ANY` counts (`docs/misc/xenstore-ring.txt`, bit 3).
pub(crate) const FEATURE_ANY: u32 = 8;
/// The above, and WATCH takes a depth (bit 2). Bits 0 and 1 are about the ring page, which
/// connections of this daemon do not have.
pub(crate) const FEATURES: u32 = 4 | FEATURE_ANY;

/// The commands of CONTROL, as `help` prints them.
const COMMANDS: &str = "check\t\n\
    log\ton|off\n\
    print\t<string>\n\
    quota\t[set <name> <val>|<domid>]\n\
    help\t\n";

impl Daemon {
    pub(crate) fn dispatch_domains(
        &mut self,
        conn: ConnId,
        kind: MsgType,
        args: Args<'_>,
    ) -> Outcome<Vec<u8>> {
        match kind {
            MsgType::INTRODUCE => self.do_introduce(args),
            MsgType::RELEASE => {
                let id = self.introduced(args.only()?)?;
                self.release(id);
                Ok(OK.to_vec())
            }
            MsgType::RESUME => {
                let id = self.introduced(args.only()?)?;
                if let Some(domain) = self.domains.get_mut(id) {
                    domain.shutdown = false;
                }
                Ok(OK.to_vec())
            }
            MsgType::SET_TARGET => self.do_set_target(args),
            MsgType::IS_DOMAIN_INTRODUCED => {
                let id = number(args.only()?);
                let told = id == u32::from(DomId::SELF.as_u16())
                    || domid(id).is_some_and(|id| self.is_introduced(id));
                Ok(if told {
                    b"T\0".to_vec()
                } else {
                    b"F\0".to_vec()
                })
            }
            MsgType::CONTROL => self.do_control(args),
            _ if !self.config.extensions => Err(XsError::ENOSYS),
            MsgType::GET_FEATURE => self.do_get_feature(conn, args),
            MsgType::SET_FEATURE | MsgType::GET_QUOTA | MsgType::SET_QUOTA
                if !self.identity(conn).is_privileged() =>
            {
                Err(XsError::EACCES)
            }
            MsgType::SET_FEATURE => self.do_set_feature(args),
            MsgType::GET_QUOTA => self.do_get_quota(args),
            MsgType::SET_QUOTA => self.do_set_quota(args),
            _ => Err(XsError::ENOSYS),
        }
    }

    fn do_introduce(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let [id, _gfn, port] = args.at_least()?;
        let id = domid(number(id)).ok_or(XsError::EINVAL)?;
        if number(port) == 0 || !self.introduce(id) {
            return Err(XsError::EINVAL);
        }
        Ok(OK.to_vec())
    }

    fn do_set_target(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let [id, target] = args.at_least()?;
        let known = |id| domid(number(id)).filter(|id| self.is_introduced(*id));
        let (id, target) = (known(id), known(target));
        let (Some(id), Some(target)) = (id, target) else {
            return Err(XsError::ENOENT);
        };
        self.set_target(id, target);
        Ok(OK.to_vec())
    }

    /// Returns the introduced domain that a request is about; domain 0 is not one.
    fn introduced(&self, text: &[u8]) -> Outcome<DomId> {
        match number(text) {
            0 => Err(XsError::EINVAL),
            id => domid(id)
                .filter(|id| self.is_introduced(*id))
                .ok_or(XsError::ENOENT),
        }
    }

    fn do_control(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let strings = args.strings();
        let text = |text: String| Ok(format!("{text}\0").into_bytes());
        match strings.as_slice() {
            [b"check"] => match self.tree.check() {
                Ok(()) => Ok(OK.to_vec()),
                Err(fault) => text(fault),
            },
            [b"print", line] => {
                tracing::info!(line = %line.escape_ascii(), "print");
                Ok(OK.to_vec())
            }
            [b"log", b"on" | b"off"] => Ok(OK.to_vec()),
            [b"help"] => text(COMMANDS.to_owned()),
            [b"quota"] => text(format!("Quota settings:\n{}", self.config.quota.report())),
            [b"quota", b"set", name, value] => {
                let known = self.config.quota.set(name, number(value));
                if known {
                    Ok(OK.to_vec())
                } else {
                    Err(XsError::EINVAL)
                }
            }
            [b"quota", id] => {
                let id = number(id);
                let domain = domid(id).and_then(|id| self.domains.get(id));
                text(usage(id, domain.ok_or(XsError::ENOENT)?))
            }
            _ => Err(XsError::EINVAL),
        }
    }

    fn do_get_feature(&mut self, conn: ConnId, args: Args<'_>) -> Outcome<Vec<u8>> {
        let features = match *args.strings().as_slice() {
            [] => {
                let id = self.identity(conn).domain;
                self.domains.get(id).and_then(|domain| domain.features)
            }
            [_, ..] if !self.identity(conn).is_privileged() => return Err(XsError::EACCES),
            [id] => self.known(id)?.features,
            _ => return Err(XsError::EINVAL),
        };
        Ok(format!("{}\0", features.unwrap_or(FEATURES)).into_bytes())
    }

    fn do_set_feature(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let [id, features] = args.exactly()?;
        let features = number(features);
        let domain = self.known(id)?;
        if domain.introduced {
            return Err(XsError::EBUSY);
        }
        if features & !FEATURES != 0 {
            return Err(XsError::EINVAL);
        }
        domain.features = Some(features);
        Ok(OK.to_vec())
    }

    fn do_get_quota(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let global = self.config.quota;
        let value = match *args.strings().as_slice() {
            [] => return Ok(format!("{}\0", Quota::names()).into_bytes()),
            [name] => global.get(name),
            [id, name] => self.known(id)?.quota.unwrap_or(global).get(name),
            _ => None,
        };
        let value = value.ok_or(XsError::EINVAL)?;
        Ok(format!("{value}\0").into_bytes())
    }

    fn do_set_quota(&mut self, args: Args<'_>) -> Outcome<Vec<u8>> {
        let global = self.config.quota;
        let known = match *args.strings().as_slice() {
            [name, value] => self.config.quota.set(name, number(value)),
            [id, name, value] => self
                .known(id)?
                .quota
                .get_or_insert(global)
                .set(name, number(value)),
            _ => false,
        };
        if known {
            Ok(OK.to_vec())
        } else {
            Err(XsError::EINVAL)
        }
    }

    /// Returns the entry of an existing domain.
    fn known(&mut self, text: &[u8]) -> Outcome<&mut crate::domain::Domain> {
        let generation = self.tree.generation();
        let id = domid(number(text)).ok_or(XsError::EINVAL)?;
        self.domains
            .find_or_add(id, generation)
            .ok_or(XsError::ENOENT)
    }
}

/// `number` as the id of a real domain.
fn domid(number: u32) -> Option<DomId> {
    u16::try_from(number)
        .ok()
        .map(DomId::new)
        .filter(|id| !id.is_reserved())
}
