//! The operations people have (attach, limits, clients, lists, sources, explain), as one trait
//! and its request and answer types. Knows no transport.
