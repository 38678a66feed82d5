//! Rates as people write them: `500/s`, `10k/min`, `50/5m`, `10MiB/s`.
//!
//! Pure. A rate is a count and a window; what is counted, and how deep the bucket is, is said
//! elsewhere. Parsing is exact (no floating point), and [`Rate`]'s text form reads back as itself.

use std::fmt;
use std::str::FromStr;

use ratelimiter_common::quota::{MAX_BYTES_PER_S, MAX_RATE_PER_S};

use super::units::Window;

const NS: u64 = 1_000_000_000;
const EXAMPLES: &str = "write for example 500/s, 10k/min, 50/5m or 10MiB/s";

/// Units per window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Units per `window`, 1 or more.
    pub count: u64,
    /// The window, 1 s to 366 days.
    pub window: Window,
    /// Whether the count was written in bytes (`10MiB/s`), which settles what is counted.
    pub bytes: bool,
}

/// Why a text is not a rate: one sentence with the text and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RateError(String);

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let text = text.trim();
        let Some((count, window)) = text.split_once('/') else {
            return Err(RateError(format!(
                "`{text}` is not a rate: the window is missing; {EXAMPLES}"
            )));
        };
        let (count, bytes) = parse_count(count.trim())
            .map_err(|why| RateError(format!("`{text}` is not a rate: {why}; {EXAMPLES}")))?;
        if count == 0 {
            return Err(RateError(format!(
                "`{text}` is a rate of 0; it must be 1 or more (to refuse everything, use a block)"
            )));
        }
        let window = parse_window(window.trim())
            .map_err(|why| RateError(format!("`{text}` is not a rate: {why}")))?;
        let bound = if bytes {
            MAX_BYTES_PER_S
        } else {
            MAX_RATE_PER_S
        };
        let per_s = u128::from(count) * u128::from(NS) / u128::from(window.as_ns());
        if per_s > u128::from(bound) {
            return Err(RateError(format!(
                "`{text}` is {per_s} per second; it must be at most {bound} per second"
            )));
        }
        Ok(Self {
            count,
            window,
            bytes,
        })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}/{}",
            count_text(self.count, self.bytes),
            if self.bytes { "B" } else { "" },
            window_text(self.window)
        )
    }
}

/// Parses a count with an optional scale (`k`, `M`, `G`, `Ki`, `Mi`, `Gi`) and an optional `B` for
/// bytes; the second half of the answer is whether `B` was there.
pub fn parse_count(text: &str) -> Result<(u64, bool), String> {
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let suffix = suffix.trim();
    let (scale_text, bytes) = match suffix.strip_suffix('B') {
        Some(rest) => (rest, true),
        None => (suffix, false),
    };
    let scale: u64 = match scale_text {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "m" => {
            return Err(format!("`{text}`: `m` is not a scale (`M` is a million)"));
        }
        _ => {
            return Err(format!(
                "`{suffix}` is not a scale (k, M, G, Ki, Mi, Gi, each with B for bytes)"
            ));
        }
    };
    let count = scaled(number, scale).ok_or_else(|| {
        if text.is_empty() {
            "the count is missing".to_owned()
        } else {
            format!("`{text}` is not a whole number")
        }
    })?;
    Ok((count, bytes))
}

/// Parses what stands after the slash: `s`, `min`, `5m`, `1.5h`, `30d`.
fn parse_window(text: &str) -> Result<Window, String> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let scale_ns = match suffix {
        "s" | "sec" | "second" => NS,
        "" if !number.is_empty() => NS,
        "m" | "min" | "minute" => 60 * NS,
        "h" | "hour" => 3_600 * NS,
        "d" | "day" => 86_400 * NS,
        "w" | "week" => 7 * 86_400 * NS,
        _ => {
            return Err(format!(
                "`{text}` is not a window; write s, min, h, d, or a multiple such as 5m"
            ));
        }
    };
    let number = number.trim();
    let ns = scaled(if number.is_empty() { "1" } else { number }, scale_ns).ok_or_else(|| {
        format!("`{text}` is not a window; write s, min, h, d, or a multiple such as 5m")
    })?;
    Window::from_ns(ns)
}

/// `number * scale`, exactly; none if `number` is no decimal, or the product no `u64`.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let number = number.replace('_', "");
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.len() > 18 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    if fraction.is_empty() {
        return Some(whole);
    }
    let power = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = fraction.parse::<u128>().ok()? * u128::from(scale);
    if !part.is_multiple_of(power) {
        return None;
    }
    whole.checked_add(u64::try_from(part / power).ok()?)
}

/// Shortest exact text of a count: `10k`, `1500`, `4Mi` (binary scales for bytes only).
fn count_text(count: u64, bytes: bool) -> String {
    let binary: &[(u64, &str)] = &[(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    let decimal: &[(u64, &str)] = &[(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    let scales = decimal
        .iter()
        .chain(if bytes { binary } else { &[] })
        .filter(|(scale, _)| count > 0 && count.is_multiple_of(*scale))
        .max_by_key(|(scale, _)| *scale);
    match scales {
        Some((scale, suffix)) => format!("{}{suffix}", count / scale),
        None => count.to_string(),
    }
}

/// Text of a count for people: exact, with a scale where one fits.
pub fn show_count(count: u64) -> String {
    count_text(count, false)
}

fn window_text(window: Window) -> String {
    let ns = window.as_ns();
    for (unit_ns, alone, multiple) in [
        (86_400 * NS, "d", "d"),
        (3_600 * NS, "h", "h"),
        (60 * NS, "min", "m"),
        (NS, "s", "s"),
    ] {
        if ns == unit_ns {
            return alone.to_owned();
        }
        if ns.is_multiple_of(unit_ns) {
            return format!("{}{multiple}", ns / unit_ns);
        }
    }
    let fraction = format!("{:09}", ns % NS);
    format!("{}.{}s", ns / NS, fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(text: &str) -> (u64, u64, bool) {
        let rate: Rate = text.parse().unwrap();
        (rate.count, rate.window.as_ns(), rate.bytes)
    }

    fn refusal(text: &str) -> String {
        text.parse::<Rate>().unwrap_err().to_string()
    }

    #[test]
    fn reads_rates_as_people_write_them() {
        assert_eq!(rate("500/s"), (500, NS, false));
        assert_eq!(rate("10k/min"), (10_000, 60 * NS, false));
        assert_eq!(rate("50/5m"), (50, 300 * NS, false));
        assert_eq!(rate(" 1_000 / 90s "), (1_000, 90 * NS, false));
        assert_eq!(rate("1.5k/h"), (1_500, 3_600 * NS, false));
        assert_eq!(rate("1M/d"), (1_000_000, 86_400 * NS, false));
        assert_eq!(rate("10MiB/s"), (10 << 20, NS, true));
        assert_eq!(rate("100kB/s"), (100_000, NS, true));
        assert_eq!(rate("7/1.5s"), (7, 1_500_000_000, false));
        assert_eq!(rate("5/60"), (5, 60 * NS, false));
        assert_eq!(rate("1/366d"), (1, 366 * 86_400 * NS, false));
    }

    #[test]
    fn refuses_with_value_and_what_would_be_right() {
        assert_eq!(
            refusal("500"),
            "`500` is not a rate: the window is missing; write for example 500/s, 10k/min, 50/5m \
             or 10MiB/s"
        );
        assert_eq!(
            refusal("0/s"),
            "`0/s` is a rate of 0; it must be 1 or more (to refuse everything, use a block)"
        );
        assert_eq!(
            refusal("5/100ms"),
            "`5/100ms` is not a rate: `100ms` is not a window; write s, min, h, d, or a multiple \
             such as 5m"
        );
        assert!(refusal("5/0.5s").contains("must be between 1 s and 366 days"));
        assert!(refusal("5/367d").contains("must be between 1 s and 366 days"));
        assert!(
            refusal("2G/s").contains("is 2000000000 per second; it must be at most 1000000000")
        );
        assert!(refusal("51GB/s").contains("at most 50000000000 per second"));
        assert!(refusal("10m/s").contains("`M` is a million"));
        assert!(refusal("-5/s").contains("is not a scale"));
        assert!(refusal("1.0005k/s").contains("is not a whole number"));
        assert!(refusal("/s").contains("the count is missing"));
        assert!(refusal("99999999999999999999/s").contains("is not a whole number"));
        for text in [
            "", "/", "a/b", "5/", "5/s/s", "1./s", ".5k/s", "5 /5x", "NaN/s", "1e3/s",
        ] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn writes_the_shortest_exact_form() {
        for text in [
            "500/s", "10k/min", "50/5m", "1500/90s", "3M/h", "1/36h", "10MiB/s", "7/1.5s",
        ] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!("60000/60s".parse::<Rate>().unwrap().to_string(), "60k/min");
        assert_eq!("1/7d".parse::<Rate>().unwrap().to_string(), "1/7d");
    }

    proptest! {
        #[test]
        fn text_form_reads_back_as_itself(
            count in 1_u64..=1_000_000_000,
            scale in prop::sample::select(vec![1_u64, 1_000, 1 << 10, 1_000_000]),
            ns in NS..=366 * 86_400 * NS,
            whole in any::<bool>(),
            bytes in any::<bool>(),
        ) {
            let ns = if whole { ns / NS * NS } else { ns };
            let window = Window::from_ns(ns).unwrap();
            let rate = Rate { count: count.saturating_mul(scale), window, bytes };
            let bound = if bytes { MAX_BYTES_PER_S } else { MAX_RATE_PER_S };
            let per_s = u128::from(rate.count) * u128::from(NS) / u128::from(ns);
            let back = rate.to_string().parse::<Rate>();
            if per_s <= u128::from(bound) {
                prop_assert_eq!(back, Ok(rate));
            } else {
                prop_assert!(back.is_err());
            }
        }

        #[test]
        fn never_panics(text in "\\PC{0,24}") {
            let _outcome = text.parse::<Rate>();
        }

        #[test]
        fn never_panics_near_rates(text in "[0-9._]{0,22}[kKMGiBm]{0,3}/[0-9.]{0,22}[smhdw]{0,2}") {
            if let Ok(rate) = text.parse::<Rate>() {
                prop_assert_eq!(rate.to_string().parse::<Rate>(), Ok(rate));
            }
        }
    }
}
