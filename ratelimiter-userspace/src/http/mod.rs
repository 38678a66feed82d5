//! The admin and check API over HTTP.
