//! Limits as words of a command line: `1000/s`, `packets=10k/min,burst=20k`, and back.
//!
//! Pure. What the agent validates (bounds, unit against algorithm) is not repeated here.

use crate::policy::model::{
    Algorithm, Consistency, DEFAULT_LIMIT, LimitSpec, Mode, OnStoreLoss, Unit,
};
use crate::policy::rate::{Rate, parse_count, show_count};

/// A limit with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedLimit {
    /// Its name, [`DEFAULT_LIMIT`] if none was written.
    pub name: String,
    /// The limit.
    pub spec: LimitSpec,
}

/// How a limit is written, for help texts.
pub const LIMIT_HELP: &str = "[NAME=]RATE[,burst=N][,unit=UNIT][,algorithm=ALGORITHM][,mode=MODE]\
                              [,consistency=WORD][,on_store_loss=WORD]";

/// Parses [`LIMIT_HELP`]. A limit named like a unit counts that unit unless it says otherwise;
/// a rate in bytes counts bytes; everything else counts requests.
pub fn parse_limit(text: &str) -> Result<NamedLimit, String> {
    let mut parts = text.split(',');
    let first = parts.next().unwrap_or_default();
    let (name, rate) = first.split_once('=').unwrap_or((DEFAULT_LIMIT, first));
    if name.is_empty() {
        return Err(format!("`{text}` has an empty name; write {LIMIT_HELP}"));
    }
    let rate: Rate = rate.parse().map_err(|e| format!("{e}"))?;
    let mut burst = None;
    let mut unit = None;
    let mut algorithm = None;
    let mut mode = None;
    let mut consistency = None;
    let mut on_store_loss = None;
    for part in parts {
        let Some((key, value)) = part.split_once('=') else {
            return Err(format!(
                "`{part}` is not KEY=VALUE; the keys are burst, unit, algorithm, mode, consistency and on_store_loss"
            ));
        };
        match key {
            "burst" => burst = Some(parse_burst(value)?),
            "unit" => unit = Some(parse_unit(value)?),
            "algorithm" => algorithm = Some(parse_algorithm(value)?),
            "mode" => mode = Some(parse_mode(value)?),
            "consistency" => consistency = Some(parse_consistency(value)?),
            "on_store_loss" => on_store_loss = Some(parse_on_store_loss(value)?),
            _ => {
                return Err(format!(
                    "`{key}` is not a key of a limit; the keys are burst, unit, algorithm, mode, consistency and on_store_loss"
                ));
            }
        }
    }
    let unit = unit_of(rate, unit, name)?;
    Ok(NamedLimit {
        name: name.to_owned(),
        spec: LimitSpec {
            rate_limit: rate.count,
            time_window: rate.window,
            burst,
            unit,
            algorithm,
            mode,
            consistency,
            on_store_loss,
        },
    })
}

/// What a rate counts: said outright, or by its own `B`, or by the limit's name, or requests.
pub fn unit_of(rate: Rate, said: Option<Unit>, name: &str) -> Result<Unit, String> {
    match (rate.bytes, said) {
        (true, Some(unit)) if unit != Unit::Bytes => Err(format!(
            "`{rate}` is a rate in bytes, but `unit` is `{}`",
            unit_word(unit)
        )),
        (true, _) => Ok(Unit::Bytes),
        (false, Some(unit)) => Ok(unit),
        (false, None) => Ok(parse_unit(name).unwrap_or_default()),
    }
}

/// Parses a burst: `2000`, `10k`, `1MiB`.
pub fn parse_burst(text: &str) -> Result<u64, String> {
    parse_count(text.trim())
        .map(|(count, _)| count)
        .map_err(|why| format!("`burst`: {why}"))
}

/// Parses a unit.
pub fn parse_unit(text: &str) -> Result<Unit, String> {
    match text {
        "packets" => Ok(Unit::Packets),
        "bytes" => Ok(Unit::Bytes),
        "connections" => Ok(Unit::Connections),
        "requests" => Ok(Unit::Requests),
        _ => Err(format!(
            "`{text}` is not a unit; write packets, bytes, connections or requests"
        )),
    }
}

/// Parses an algorithm; dashes may stand for underscores.
pub fn parse_algorithm(text: &str) -> Result<Algorithm, String> {
    match text.replace('-', "_").as_str() {
        "token_bucket" => Ok(Algorithm::TokenBucket),
        "sliding_log" => Ok(Algorithm::SlidingLog),
        "sliding_window" => Ok(Algorithm::SlidingWindow),
        "fixed_window" => Ok(Algorithm::FixedWindow),
        _ => Err(format!(
            "`{text}` is not an algorithm; write token_bucket, sliding_log, sliding_window or fixed_window"
        )),
    }
}

/// Parses a mode.
pub fn parse_mode(text: &str) -> Result<Mode, String> {
    match text {
        "off" => Ok(Mode::Off),
        "shadow" => Ok(Mode::Shadow),
        "enforce" => Ok(Mode::Enforce),
        _ => Err(format!(
            "`{text}` is not a mode; write off, shadow or enforce"
        )),
    }
}

/// Parses a consistency.
pub fn parse_consistency(text: &str) -> Result<Consistency, String> {
    match text {
        "exact" => Ok(Consistency::Exact),
        "leased" => Ok(Consistency::Leased),
        "local" => Ok(Consistency::Local),
        _ => Err(format!(
            "`{text}` is not a consistency; write exact, leased or local"
        )),
    }
}

/// Parses what a limit does while the shared store is away.
pub fn parse_on_store_loss(text: &str) -> Result<OnStoreLoss, String> {
    match text {
        "hold" => Ok(OnStoreLoss::Hold),
        "strict" => Ok(OnStoreLoss::Strict),
        "local" => Ok(OnStoreLoss::Local),
        "deny" => Ok(OnStoreLoss::Deny),
        _ => Err(format!(
            "`{text}` is not a rule for the loss of the store; write hold, strict, local or deny"
        )),
    }
}

/// The consistency's word.
fn consistency_word(consistency: Consistency) -> &'static str {
    match consistency {
        Consistency::Exact => "exact",
        Consistency::Leased => "leased",
        Consistency::Local => "local",
    }
}

/// The unit's word.
pub fn unit_word(unit: Unit) -> &'static str {
    ratelimiter_common::quota::Unit::from(unit).as_str()
}

/// The mode's word.
pub fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Off => "off",
        Mode::Shadow => "shadow",
        Mode::Enforce => "enforce",
    }
}

/// The algorithm's word.
pub fn algorithm_word(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::TokenBucket => "token_bucket",
        Algorithm::SlidingLog => "sliding_log",
        Algorithm::SlidingWindow => "sliding_window",
        Algorithm::FixedWindow => "fixed_window",
    }
}

/// The limit's rate: `10k/min`, `10MiB/s`.
pub fn rate_text(spec: &LimitSpec) -> String {
    Rate {
        count: spec.rate_limit,
        window: spec.time_window,
        bytes: spec.unit == Unit::Bytes,
    }
    .to_string()
}

/// The limit on one line: `10k/min packets, burst 20k`.
pub fn limit_text(spec: &LimitSpec) -> String {
    let mut text = format!("{} {}", rate_text(spec), unit_word(spec.unit));
    if let Some(burst) = spec.burst {
        text.push_str(&format!(", burst {}", show_count(burst)));
    }
    if let Some(algorithm) = spec.algorithm {
        text.push_str(&format!(", {}", algorithm_word(algorithm)));
    }
    if let Some(mode) = spec.mode {
        text.push_str(&format!(", {}", mode_word(mode)));
    }
    if let Some(consistency) = spec.consistency {
        text.push_str(&format!(", {}", consistency_word(consistency)));
    }
    if let Some(on_store_loss) = spec.on_store_loss {
        let word = on_store_loss.as_str();
        text.push_str(&format!(", on store loss {word}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let limit = parse_limit(text).unwrap();
        format!("{}: {}", limit.name, limit_text(&limit.spec))
    }

    #[test]
    fn reads_limits_as_people_write_them() {
        assert_eq!(shown("100/min"), "default: 100/min requests");
        assert_eq!(
            shown("packets=10k/s,burst=20k"),
            "packets: 10k/s packets, burst 20k"
        );
        assert_eq!(shown("up=10MiB/s"), "up: 10MiB/s bytes");
        assert_eq!(
            shown("syn=50/5m,unit=connections"),
            "syn: 50/5m connections"
        );
        assert_eq!(
            shown("api=5/s,algorithm=fixed-window,mode=shadow"),
            "api: 5/s requests, fixed_window, shadow"
        );
    }

    #[test]
    fn refuses_with_the_word_that_is_wrong() {
        for (text, part) in [
            ("=5/s", "empty name"),
            ("5", "the window is missing"),
            ("5/s,burst", "`burst` is not KEY=VALUE"),
            ("5/s,burst=x", "`burst`: `x` is not a scale"),
            ("5/s,unit=frames", "`frames` is not a unit"),
            ("5/s,colour=red", "`colour` is not a key of a limit"),
            ("5/s,mode=on", "`on` is not a mode"),
            ("5/s,algorithm=gcra", "`gcra` is not an algorithm"),
            (
                "5MiB/s,unit=packets",
                "is a rate in bytes, but `unit` is `packets`",
            ),
        ] {
            let why = parse_limit(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
    }
}
