//! The check API: decisions on `client_id` in memory.
