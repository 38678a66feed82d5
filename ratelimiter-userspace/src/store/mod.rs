//! What outlives the process: configuration and usage.
