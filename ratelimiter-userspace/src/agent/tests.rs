//! The agent in process, on the fake data plane and the memory store, over real HTTP.

mod adaptive;
mod api;
mod check_doors;
mod checks;
mod doors;
mod escalation;
mod fleet;
mod fleet_config;
mod fleet_health;
mod harness;
mod life;
mod lockout;
mod refused;
mod stream;
