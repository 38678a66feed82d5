//! How a command ends: an exit code scripts can rely on, and a sentence for people.

use std::fmt;
use std::process::ExitCode;

/// Exit codes, listed in `ratelimiter --help`. Never renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// Failed, or done and the agent is degraded.
    Failed = 1,
    /// The command line or a value on it is wrong; nothing was changed.
    Usage = 2,
    /// `check`: the client is denied. `limits diff`: there are differences.
    Denied = 3,
    /// No agent answers.
    Unreachable = 4,
    /// The agent, or the operating system, refuses this user.
    Permission = 5,
    /// A change on trial was not confirmed and has been rolled back.
    RolledBack = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed: the exit code, what happened, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// Thing, value and bound; lower case, no full stop.
    pub message: String,
    /// What the reader can do, if that is known.
    pub help: Option<String>,
}

impl Failure {
    /// A failure with code [`Exit::Failed`].
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            message: message.into(),
            help: None,
        }
    }

    /// A failure with code [`Exit::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            ..Self::new(message)
        }
    }

    /// The same with another exit code.
    #[must_use]
    pub fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }

    /// The same with advice.
    #[must_use]
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

/// What every command answers.
pub type Outcome = Result<Exit, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_keep_their_numbers() {
        let all = [
            Exit::Ok,
            Exit::Failed,
            Exit::Usage,
            Exit::Denied,
            Exit::Unreachable,
            Exit::Permission,
            Exit::RolledBack,
        ];
        for (number, exit) in all.into_iter().enumerate() {
            assert_eq!(exit as usize, number);
        }
    }

    #[test]
    fn shows_help_below_the_message() {
        let failure = Failure::new("no socket at `/x`").with_help("start the agent");
        assert_eq!(
            failure.to_string(),
            "error: no socket at `/x`\n  help: start the agent"
        );
    }
}
