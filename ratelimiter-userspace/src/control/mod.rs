//! Controllers: pure functions of state, observation and time.
