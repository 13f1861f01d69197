//! From a message to its reply.

use crate::access::{Need, NodeAccess};
use crate::admin::{FEATURE_ANY, FEATURES};
use crate::nodes::{OK, absolute, home};
use crate::quota::exceeded;
use crate::txn::Transaction;
use crate::view::{Outcome, View};
use crate::watch::Watch;
use crate::{ConnId, Daemon};
use xen_store::XsError;
use xen_store::wire::{self, Message, MsgType, REL_PATH_MAX};
use xen_sys::DomId;

/// A payload made of NUL-terminated strings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Args<'a>(pub(crate) &'a [u8]);

impl<'a> Args<'a> {
    /// The terminated strings; what follows the last NUL is not among them.
    pub(crate) fn strings(self) -> Vec<&'a [u8]> {
        let mut fields: Vec<&[u8]> = self.0.split(|&byte| byte == 0).collect();
        fields.pop();
        fields
    }

    /// The one string of a payload that is nothing else.
    pub(crate) fn only(self) -> Outcome<&'a [u8]> {
        match self.0.split_last() {
            Some((0, text)) if !text.contains(&0) => Ok(text),
            _ => Err(XsError::EINVAL),
        }
    }

    /// Returns exactly `N` strings.
    pub(crate) fn exactly<const N: usize>(self) -> Outcome<[&'a [u8]; N]> {
        self.strings().try_into().map_err(|_| XsError::EINVAL)
    }

    /// Returns `N` strings; more may follow.
    pub(crate) fn at_least<const N: usize>(self) -> Outcome<[&'a [u8]; N]> {
        let strings = self.strings();
        strings.first_chunk().copied().ok_or(XsError::EINVAL)
    }

    /// The first string and all bytes after its NUL.
    pub(crate) fn split_first(self) -> Outcome<(&'a [u8], &'a [u8])> {
        let at = self
            .0
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(XsError::EINVAL)?;
        Ok((&self.0[..at], &self.0[at + 1..]))
    }
}

/// Returns the number at the front of `text`, 0 if there is none: C programs send and expect that.
pub(crate) fn number(text: &[u8]) -> u32 {
    let digits = text
        .trim_ascii_start()
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |sum: u32, byte| {
        sum.saturating_mul(10)
            .saturating_add(u32::from(byte - b'0'))
    })
}

impl Daemon {
    /// Carries out one message and queues its reply.
    pub(crate) fn handle(&mut self, conn: ConnId, message: &Message) {
        let Message {
            kind,
            req_id,
            tx_id,
            payload,
        } = message;
        let outcome = self.dispatch(conn, *kind, *tx_id, payload);
        let reply = |kind, payload: &[u8]| wire::encode(kind, *req_id, *tx_id, &[payload]);
        let error = |error: XsError| {
            reply(MsgType::ERROR, format!("{}\0", error.name()).as_bytes()).unwrap_or_default()
        };
        let bytes = match outcome {
            Ok(payload) => reply(*kind, &payload).unwrap_or_else(|_| error(XsError::E2BIG)),
            Err(code) => error(code),
        };
        if let Some(state) = self.conns.get_mut(&conn) {
            state.queue_reply(bytes);
        }
        // A watch's first event follows the reply that grants it.
        if let Some(key) = self.granted.take() {
            if let (Some(watch), Some(state)) = (self.watches.get(key), self.conns.get_mut(&conn)) {
                state.queue_event(key, watch, &watch.path);
            }
        }
        self.dirty.insert(conn);
    }

    fn dispatch(
        &mut self,
        conn: ConnId,
        kind: MsgType,
        tx_id: u32,
        payload: &[u8],
    ) -> Outcome<Vec<u8>> {
        let args = Args(payload);
        let privileged = self.identity(conn).is_privileged();
        if is_for_domain_0(kind) && !privileged {
            return Err(XsError::EACCES);
        }
        if kind == MsgType::WATCH {
            return self.do_watch(conn, args);
        }
        if kind == MsgType::UNWATCH {
            return self.do_unwatch(conn, args);
        }
        let state = self.conns.get_mut(&conn).ok_or(XsError::EIO)?;
        if tx_id != 0
            && is_known(kind, self.config.extensions)
            && !state.transactions.contains_key(&tx_id)
        {
            return Err(XsError::ENOENT);
        }
        match kind {
            MsgType::TRANSACTION_START => self.do_transaction_start(conn, tx_id),
            MsgType::TRANSACTION_END => self.do_transaction_end(conn, tx_id, args),
            MsgType::RESET_WATCHES => {
                self.forget_state(conn);
                Ok(OK.to_vec())
            }
            MsgType::SET_PERMS => self.do_set_perms(conn, tx_id, args),
            MsgType::READ => self.on_nodes(conn, tx_id, |view| view.do_read(args)),
            MsgType::WRITE => self.on_nodes(conn, tx_id, |view| view.do_write(args)),
            MsgType::MKDIR => self.on_nodes(conn, tx_id, |view| view.do_mkdir(args)),
            MsgType::RM => self.on_nodes(conn, tx_id, |view| view.do_rm(args)),
            MsgType::DIRECTORY => self.on_nodes(conn, tx_id, |view| view.do_directory(args)),
            MsgType::DIRECTORY_PART => {
                self.on_nodes(conn, tx_id, |view| view.do_directory_part(args))
            }
            MsgType::GET_PERMS => self.on_nodes(conn, tx_id, |view| view.do_get_perms(args)),
            MsgType::GET_DOMAIN_PATH => {
                Ok(format!("{}\0", home(number(args.only()?))).into_bytes())
            }
            _ => self.dispatch_domains(conn, kind, args),
        }
    }

    /// Returns whether `domain` may write permissions for all domains.
    fn offers_any(&self, domain: DomId) -> bool {
        let features = self.domains.get(domain).and_then(|domain| domain.features);
        self.config.extensions && features.unwrap_or(FEATURES) & FEATURE_ANY != 0
    }

    /// Runs `body` on the nodes as transaction `tx_id` sees them.
    pub(crate) fn on_nodes<T>(
        &mut self,
        conn: ConnId,
        tx_id: u32,
        body: impl FnOnce(&mut View<'_>) -> Outcome<T>,
    ) -> Outcome<T> {
        let who = self.identity(conn);
        let quota = self.quota_of(who.domain);
        let offers_any = self.offers_any(who.domain);
        let mut fires = Vec::new();
        let state = self.conns.get_mut(&conn);
        let mut view = View {
            offers_any,
            tree: &mut self.tree,
            domains: &mut self.domains,
            quota,
            who,
            tx: state.and_then(|state| state.transactions.get_mut(&tx_id)),
            fires: &mut fires,
        };
        let outcome = body(&mut view);
        self.deliver(fires);
        outcome
    }

    fn do_set_perms(&mut self, conn: ConnId, tx_id: u32, args: Args<'_>) -> Outcome<Vec<u8>> {
        let (name, text) = args.split_first()?;
        let entries = self.on_nodes(conn, tx_id, |view| view.parse_perms(text))?;
        if name.first() != Some(&b'@') {
            return self.on_nodes(conn, tx_id, |view| view.do_set_perms(name, entries));
        }
        let who = self.identity(conn);
        let perms = self.special_perms(name).ok_or(XsError::EINVAL)?;
        if !NodeAccess::of(who, perms).allow(Need::Own) {
            return Err(XsError::EACCES);
        }
        *perms = entries.into();
        Ok(OK.to_vec())
    }

    fn do_transaction_start(&mut self, conn: ConnId, tx_id: u32) -> Outcome<Vec<u8>> {
        if tx_id != 0 {
            return Err(XsError::EBUSY);
        }
        let who = self.identity(conn);
        let quota = self.quota_of(who.domain);
        let state = self.conns.get_mut(&conn).ok_or(XsError::EIO)?;
        let domain = self.domains.get_mut(who.domain).ok_or(XsError::EIO)?;
        if exceeded(domain.transactions.into(), quota.transactions) && !who.is_privileged() {
            return Err(XsError::ENOSPC);
        }
        while state.next_transaction == 0
            || state.transactions.contains_key(&state.next_transaction)
        {
            state.next_transaction = state.next_transaction.wrapping_add(1);
        }
        let id = state.next_transaction;
        state.next_transaction = id.wrapping_add(1);
        state.transactions.insert(id, Transaction::default());
        domain.transactions += 1;
        Ok(format!("{id}\0").into_bytes())
    }

    fn do_transaction_end(&mut self, conn: ConnId, tx_id: u32, args: Args<'_>) -> Outcome<Vec<u8>> {
        let commit = match args.only()? {
            b"T" => true,
            b"F" => false,
            _ => return Err(XsError::EINVAL),
        };
        let who = self.identity(conn);
        let state = self.conns.get_mut(&conn).ok_or(XsError::EIO)?;
        let transaction = state.transactions.remove(&tx_id).ok_or(XsError::ENOENT)?;
        if let Some(domain) = self.domains.get_mut(who.domain) {
            domain.transactions = domain.transactions.saturating_sub(1);
        }
        if commit {
            self.on_nodes(conn, 0, |view| view.commit(transaction))?;
        }
        Ok(OK.to_vec())
    }

    fn do_watch(&mut self, conn: ConnId, args: Args<'_>) -> Outcome<Vec<u8>> {
        let strings = args.strings();
        let (name, token, depth) = match *strings.as_slice() {
            [name, token] => (name, token, None),
            [name, token, depth] if self.config.extensions => (name, token, Some(number(depth))),
            _ => return Err(XsError::EINVAL),
        };
        let who = self.identity(conn);
        let (path, strip) = self.watch_path(conn, name)?;
        if self.watches.find(conn, &path, token).is_some() {
            return Err(XsError::EEXIST);
        }
        let quota = self.quota_of(who.domain);
        let domain = self.domains.get_mut(who.domain).ok_or(XsError::EIO)?;
        if exceeded(domain.watches.into(), quota.watches) && !who.is_privileged() {
            return Err(XsError::E2BIG);
        }
        domain.watches += 1;
        domain.memory += i64::try_from(path.len() + token.len()).unwrap_or(0);
        let (path, token) = (path.into(), token.into());
        let key = self.watches.add(Watch {
            conn,
            path,
            token,
            strip,
            depth,
        });
        if let Some(state) = self.conns.get_mut(&conn) {
            state.watches.insert(key);
        }
        self.granted = Some(key);
        Ok(OK.to_vec())
    }

    fn do_unwatch(&mut self, conn: ConnId, args: Args<'_>) -> Outcome<Vec<u8>> {
        let [name, token] = args.exactly()?;
        let (path, _) = self.watch_path(conn, name).map_err(|_| XsError::ENOENT)?;
        let key = self
            .watches
            .find(conn, &path, token)
            .ok_or(XsError::ENOENT)?;
        self.drop_watch(key);
        Ok(OK.to_vec())
    }

    /// Returns the absolute path to watch, and how much of it is not shown in events.
    fn watch_path(&self, conn: ConnId, name: &[u8]) -> Outcome<(Vec<u8>, usize)> {
        if name.first() == Some(&b'@') {
            let fits = name.len() <= REL_PATH_MAX;
            return if fits {
                Ok((name.to_vec(), 0))
            } else {
                Err(XsError::EINVAL)
            };
        }
        let domain = self.identity(conn).domain.as_u16();
        let path = absolute(domain, name)?;
        let strip = if name.first() == Some(&b'/') {
            0
        } else {
            home(domain.into()).len() + 1
        };
        Ok((path.into_bytes(), strip))
    }
}

fn is_for_domain_0(kind: MsgType) -> bool {
    matches!(
        kind,
        MsgType::CONTROL
            | MsgType::INTRODUCE
            | MsgType::RELEASE
            | MsgType::IS_DOMAIN_INTRODUCED
            | MsgType::RESUME
            | MsgType::SET_TARGET
    )
}

/// Returns whether this daemon implements such requests.
fn is_known(kind: MsgType, extensions: bool) -> bool {
    let last = if extensions {
        MsgType::SET_QUOTA
    } else {
        MsgType::DIRECTORY_PART
    };
    let reply = kind == MsgType::WATCH_EVENT || kind == MsgType::ERROR;
    kind.name().is_some() && kind.0 <= last.0 && !reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_end_in_nul() {
        assert_eq!(Args(b"a\0b\0c").strings(), [b"a", b"b"]);
        assert_eq!(Args(b"").strings(), [b""; 0]);
        assert_eq!(Args(b"a\0").only(), Ok(&b"a"[..]));
        for bad in [&b""[..], b"a", b"a\0b\0", b"a\0b"] {
            assert_eq!(Args(bad).only(), Err(XsError::EINVAL));
        }
        assert_eq!(
            Args(b"a\0b\0c").split_first(),
            Ok((&b"a"[..], &b"b\0c"[..]))
        );
    }

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        assert_eq!(number(b"17"), 17);
        assert_eq!(number(b" 17x"), 17);
        assert_eq!(number(b"x"), 0);
        assert_eq!(number(b"99999999999"), u32::MAX);
    }
}
