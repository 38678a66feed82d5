//! What tests share: packet builder, namespaces, residue scan.
