//! The kernel side as seen from user space: load, adopt, attach, write maps, read counters.
