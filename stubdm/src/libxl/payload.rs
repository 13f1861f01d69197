//! The payload of a vchan, by the name of its node.

/// The payload, which decides how a session boundary can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// QMP: lines of JSON, a greeting first; a probe finds the boundary.
    Qmp,
    /// Anything: bytes are passed on as they are.
    Opaque,
}

impl Payload {
    /// libxl names the QMP node `qmp-vchan`; any other node carries what it likes.
    pub fn of_node(path: &str) -> Self {
        match path.rsplit('/').next() {
            Some("qmp-vchan") => Self::Qmp,
            _ => Self::Opaque,
        }
    }
}
