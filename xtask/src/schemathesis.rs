//! schemathesis for the tests: it asks the check API what its own description says may be asked, and
//! what it says may not. From PyPI.
use anyhow::Result;

use crate::shell;
use crate::venv;

/// The version the tests were written for.
const VERSION: &str = "4.32.0";

/// Installs schemathesis, unless it is there; returns a sentence about what was done.
pub(crate) fn ensure() -> Result<String> {
    let place = shell::target_dir().join("tools/schemathesis");
    venv::ensure(&place, "schemathesis", VERSION)
}
