//! The configuration file: parse, validate, errors with line and column. Pure.
