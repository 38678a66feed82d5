//! Errors of the layers below, as callers of the API meet them.

use crate::admin::AdminError;
use crate::admin::error::FieldError;
use crate::dataplane::{Error as PlaneError, ErrorKind};
use crate::policy::validate::Issue;
use crate::store::StoreError;

pub(super) fn invalid(issues: &[Issue]) -> AdminError {
    AdminError::Invalid(
        issues
            .iter()
            .map(|issue| {
                let pointer = issue.path.iter().fold(String::new(), |pointer, part| {
                    pointer + "/" + &part.replace('~', "~0").replace('/', "~1")
                });
                FieldError::new(pointer, issue.message.clone())
            })
            .collect(),
    )
}

pub(in crate::agent) fn store_error(error: StoreError) -> AdminError {
    match error {
        StoreError::Conflict { .. } | StoreError::Locked { .. } => {
            AdminError::Conflict(error.to_string())
        }
        StoreError::Invalid(text) => AdminError::invalid("", text),
        StoreError::Damaged { .. } | StoreError::Io { .. } => {
            AdminError::Unavailable(error.to_string())
        }
    }
}

pub(in crate::agent) fn plane_error(error: PlaneError) -> AdminError {
    let text = error.to_string();
    match error {
        PlaneError::Capacity(text) => AdminError::Capacity(text),
        PlaneError::UnknownInterface(name) => AdminError::NotFound {
            what: "interface",
            name,
        },
        PlaneError::BadInterfaceName(_) => AdminError::invalid("", text),
        _ => match error.kind() {
            ErrorKind::Invalid => AdminError::invalid("", text),
            ErrorKind::Conflict => AdminError::Conflict(text),
            ErrorKind::Permission => AdminError::Permission(text),
            ErrorKind::Unsupported => AdminError::Unsupported(text),
            ErrorKind::Kernel => AdminError::Unavailable(text),
        },
    }
}
