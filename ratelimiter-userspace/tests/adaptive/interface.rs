//! What passes between the plant and a law.
use crate::scenario::Client;

pub(crate) const GROUPS: usize = 2;

/// One report of the monitor. `rt_s` is the average of served requests.
#[derive(Clone, Debug)]
pub(crate) struct Health {
    pub(crate) seq: u64,
    pub(crate) period_s: f64,
    pub(crate) rt_s: f64,
    pub(crate) count: u64,
    pub(crate) errors: f64,
}

/// What a law sees on a host.
pub(crate) struct Host<'a> {
    pub(crate) now_s: f64,
    pub(crate) index: usize,
    /// Offered per client at this host, smoothed over a second.
    pub(crate) demand: &'a [f64],
    pub(crate) clients: &'a [Client],
    /// Admitted so far.
    pub(crate) admitted: f64,
}

/// What a host enforces.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) factor: f64,
    pub(crate) levels: [f64; GROUPS],
    pub(crate) aggregates: [f64; GROUPS],
}

impl Limits {
    pub(crate) const OPEN: Self = Self {
        factor: 1.0,
        levels: [f64::INFINITY; GROUPS],
        aggregates: [f64::INFINITY; GROUPS],
    };
}

pub(crate) trait Law {
    fn report(&mut self, health: &Health, host: &Host<'_>);
    fn tick(&mut self, host: &Host<'_>) -> Limits;
    /// The host's exchange with the store.
    fn sync(&mut self, _host: &Host<'_>) {}
}
