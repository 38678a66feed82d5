//! Scripts as commands, and what errors mean.

use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind};

use super::pace::Failure;

/// A script and the name Redis has for it.
pub(super) struct Script {
    pub(super) code: &'static str,
    pub(super) hash: String,
    /// Whether the store is of no use where this one fails.
    pub(super) is_vital: bool,
}

impl Script {
    pub(super) fn new(code: &'static str) -> Self {
        let hash = redis::Script::new(code).get_hash().to_owned();
        Self {
            code,
            hash,
            is_vital: true,
        }
    }

    /// The same, of which a failure says nothing about the store's use for limits, unless the
    /// connection broke: an access list may forbid it what the others may.
    pub(super) fn beside(self) -> Self {
        Self {
            is_vital: false,
            ..self
        }
    }
}

pub(super) fn command(name: &str, script: &str, keys: &[String], arguments: &[Vec<u8>]) -> Cmd {
    let mut command = redis::cmd(name);
    command.arg(script).arg(keys.len());
    for key in keys {
        command.arg(key);
    }
    for argument in arguments {
        command.arg(argument.as_slice());
    }
    command
}

pub(super) fn is_server(error: &RedisError, kind: ServerErrorKind) -> bool {
    error.kind() == ErrorKind::Server(kind)
}

/// What an error means for the connection. A cluster's connection is many: one server's end is not
/// the others'.
pub(super) fn severity(error: &RedisError, is_cluster: bool) -> Failure {
    let of_server = matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::MasterDown
                | ServerErrorKind::Moved
                | ServerErrorKind::NoPerm
        ) | ErrorKind::AuthenticationFailed
    ) || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"));
    let of_connection =
        error.is_io_error() || error.is_unrecoverable_error() || error.kind() == ErrorKind::Parse;
    if !is_cluster && (of_server || of_connection) {
        Failure::Final
    } else {
        Failure::Doubtful
    }
}

/// Why, for people. What the server says is bounded and on one line; no error has a password in it.
pub(super) fn reason(error: &RedisError) -> String {
    const LONGEST: usize = 200;
    let text = error.to_string();
    let text = text.lines().next().unwrap_or_default();
    text.chars()
        .filter(|c| !c.is_control())
        .take(LONGEST)
        .collect()
}
