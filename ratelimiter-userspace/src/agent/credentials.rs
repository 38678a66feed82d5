//! Who may use the admin API, with tokens read from their files.

use crate::config::check::token_problem;
use crate::config::{Secret, Settings};
use crate::http::gate::Credential;

/// The credentials with their tokens read.
pub(super) fn credentials(settings: &Settings) -> Result<Vec<Credential>, String> {
    settings
        .credentials
        .iter()
        .map(|(name, credential)| {
            let token = match (&credential.token, &credential.token_file) {
                (Some(token), _) => token.clone(),
                (None, Some(file)) => {
                    let text = std::fs::read_to_string(file).map_err(|error| {
                        format!("`credentials.{name}.token_file`: cannot read `{file}`: {error}")
                    })?;
                    Secret::new(text.lines().next().unwrap_or_default().trim().to_owned())
                }
                (None, None) => {
                    return Err(format!(
                        "`credentials.{name}` has neither `token` nor `token_file`"
                    ));
                }
            };
            if let Some(problem) = token_problem(token.expose()) {
                return Err(format!("the token of `credentials.{name}` {problem}"));
            }
            Ok(Credential {
                name: name.clone(),
                token,
                rights: credential.rights.clone(),
                expires_unix_ms: credential.expires_unix_ms,
            })
        })
        .collect()
}
