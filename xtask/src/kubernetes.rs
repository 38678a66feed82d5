//! kubernetes-validate for the tests: checks manifests against the schemas of Kubernetes. From PyPI.
use anyhow::Result;

use crate::shell;
use crate::venv;

/// The version the tests were written for; it brings the schemas.
const VERSION: &str = "1.37.0";

/// Installs kubernetes-validate, unless it is there; returns a sentence about what was done.
pub(crate) fn ensure() -> Result<String> {
    let place = shell::target_dir().join("tools/kubernetes-validate");
    venv::ensure(&place, "kubernetes-validate", VERSION)
}
