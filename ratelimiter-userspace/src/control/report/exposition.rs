//! Chosen series of a Prometheus text page (format 0.0.4, and OpenMetrics as far as it is alike).
//!
//! Only what is asked for is read: a name, some labels, and the sum of the series that have them.

/// Longest line that is read, in bytes; longer ones are left out.
const LINE_MAX_BYTES: usize = 64 * 1024;

/// Names and values.
type Labels = Vec<(String, String)>;

/// A series by name and labels: `http_requests_total{code="500",job="web"}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    name: String,
    labels: Labels,
}

impl Selector {
    /// Reads a selector.
    ///
    /// # Errors
    ///
    /// What it must be, as the end of a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bound = || "it must be a series such as `http_requests_total{code=\"500\"}`".to_owned();
        let (name, labels) = split_series(text.trim()).ok_or_else(bound)?;
        let first = name.bytes().next().ok_or_else(bound)?;
        let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b':');
        if first.is_ascii_digit() || !name.bytes().all(legal) {
            return Err(bound());
        }
        Ok(Self {
            name: name.to_owned(),
            labels,
        })
    }

    /// The same labels under the name with `suffix`.
    fn suffixed(&self, suffix: &str) -> Self {
        Self {
            name: format!("{}{suffix}", self.name),
            labels: self.labels.clone(),
        }
    }

    fn matches(&self, name: &str, labels: &[(String, String)]) -> bool {
        name == self.name && self.labels.iter().all(|wanted| labels.contains(wanted))
    }

    /// Adds up the matching series of a page, and counts them. A value that is no finite number
    /// makes the sum none.
    fn sum(&self, page: &str) -> Option<(f64, u32)> {
        let (mut sum, mut found) = (0.0, 0);
        for line in page.lines().filter(|l| l.len() <= LINE_MAX_BYTES) {
            let line = line.trim();
            if !line.starts_with(&self.name) {
                continue;
            }
            let Some((name, labels, value)) = sample(line) else {
                continue;
            };
            if self.matches(name, &labels) {
                sum += value;
                found += 1;
            }
        }
        (found > 0).then_some((sum, found))
    }
}

/// Splits `name{a="b"}` into name and labels.
fn split_series(text: &str) -> Option<(&str, Labels)> {
    let Some((name, rest)) = text.split_once('{') else {
        return Some((text, Vec::new()));
    };
    let (labels, after) = read_labels(rest)?;
    after.trim().is_empty().then_some((name.trim(), labels))
}

/// Reads `a="b",c="d"}`, and returns what stands behind it.
fn read_labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, quoted) = rest.split_once('=')?;
        let mut text = quoted.trim_start().strip_prefix('"')?.chars();
        let mut value = String::new();
        loop {
            match text.next()? {
                '"' => break,
                '\\' => match text.next()? {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                other => value.push(other),
            }
        }
        labels.push((name.trim().to_owned(), value));
        rest = text.as_str().trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// Takes a sample line apart: name, labels, value.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let at = line.find(|c: char| c == '{' || c.is_whitespace())?;
    let (name, rest) = line.split_at_checked(at)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => read_labels(inside)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_ascii_whitespace().next()?.parse::<f64>().ok()?;
    Some((name, labels, value))
}

/// What is asked of each page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// A histogram, summary or gauge of response times.
    pub latency: Selector,
    /// A counter of failed requests.
    pub errors: Option<Selector>,
    /// A counter of all requests; the response time's own count if absent.
    pub requests: Option<Selector>,
}

/// What one page said; two of them make a report.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Sum and count of response times, where there are such.
    pub timed: Option<(f64, f64)>,
    /// The response time itself, where it is a gauge.
    pub gauge: Option<f64>,
    /// Failed requests so far.
    pub errors: Option<f64>,
    /// Requests so far.
    pub requests: Option<f64>,
}

/// What happened between two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Between {
    /// Average response time in the page's unit; `None` if nothing was served.
    pub latency: Option<f64>,
    /// Share of failed requests, 0..=1.
    pub errors: f64,
    /// Requests, where they are counted.
    pub count: Option<u64>,
}

impl Wanted {
    /// Reads a page.
    ///
    /// # Errors
    ///
    /// If the response time is not in it.
    pub fn read(&self, page: &str) -> Result<Reading, String> {
        let total = |selector: &Selector| selector.sum(page).map(|(sum, _)| sum);
        let sum = total(&self.latency.suffixed("_sum"));
        let count = total(&self.latency.suffixed("_count"));
        let timed = sum.zip(count);
        let gauge = match timed {
            Some(_) => None,
            None => self.latency.sum(page).map(|(sum, n)| sum / f64::from(n)),
        };
        if timed.is_none() && gauge.is_none() {
            return Err(format!("the page has no series `{}`", self.latency.name));
        }
        Ok(Reading {
            timed,
            gauge,
            errors: self.errors.as_ref().and_then(total),
            requests: self
                .requests
                .as_ref()
                .and_then(total)
                .or(timed.map(|(_, count)| count)),
        })
    }
}

impl Reading {
    /// What happened since `before`; `None` where a counter has run backwards: the backend was
    /// started anew.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<Between> {
        let grown = |now: Option<f64>, before: Option<f64>| match now.zip(before) {
            Some((now, before)) if now >= before => Some(Some(now - before)),
            Some(_) => None,
            None => Some(None),
        };
        let requests = grown(self.requests, before.requests)?;
        let errors = grown(self.errors, before.errors)?;
        let latency = match (self.timed, before.timed) {
            (Some((sum, count)), Some((sum_before, count_before))) => {
                let served = grown(Some(count), Some(count_before))??;
                let spent = grown(Some(sum), Some(sum_before))??;
                (served > 0.0).then(|| spent / served)
            }
            _ => self.gauge,
        };
        let share = match errors.zip(requests) {
            Some((errors, requests)) if requests > 0.0 => (errors / requests).clamp(0.0, 1.0),
            _ => 0.0,
        };
        Some(Between {
            latency,
            errors: share,
            count: requests.map(|requests| requests as u64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# HELP http_seconds Time.
# TYPE http_seconds histogram
http_seconds_bucket{handler=\"api\",le=\"0.1\"} 9
http_seconds_sum{handler=\"api\"} 12.5
http_seconds_count{handler=\"api\"} 100
http_seconds_sum{handler=\"a \\\"b\\\", c\"} 1 1700000000000
http_seconds_count{handler=\"a \\\"b\\\", c\"} 3
http_total{code=\"200\"} 95
http_total{code=\"500\"} 5
queue_ms 12
odd NaN
# EOF
";

    fn wanted(latency: &str, errors: &str) -> Wanted {
        Wanted {
            latency: Selector::parse(latency).unwrap(),
            errors: (!errors.is_empty()).then(|| Selector::parse(errors).unwrap()),
            requests: None,
        }
    }

    #[test]
    fn reads_the_series_that_are_chosen() {
        let all = wanted("http_seconds", "").read(PAGE).unwrap();
        assert_eq!(all.timed, Some((13.5, 103.0)));
        let one = wanted("http_seconds{handler=\"api\"}", "http_total{code=\"500\"}")
            .read(PAGE)
            .unwrap();
        assert_eq!((one.timed, one.errors), (Some((12.5, 100.0)), Some(5.0)));
        let quoted = wanted("http_seconds{handler=\"a \\\"b\\\", c\"}", "");
        assert_eq!(quoted.read(PAGE).unwrap().timed, Some((1.0, 3.0)));
        assert_eq!(wanted("queue_ms", "").read(PAGE).unwrap().gauge, Some(12.0));
        assert_eq!(
            wanted("nothing", "").read(PAGE).unwrap_err(),
            "the page has no series `nothing`"
        );
    }

    #[test]
    fn two_readings_make_an_average_and_a_restart_makes_none() {
        let wanted = wanted("http_seconds{handler=\"api\"}", "http_total{code=\"500\"}");
        let before = wanted.read(PAGE).unwrap();
        let later = PAGE
            .replace("} 12.5", "} 32.5")
            .replace("api\"} 100", "api\"} 200")
            .replace("500\"} 5", "500\"} 30");
        let between = wanted.read(&later).unwrap().since(&before).unwrap();
        assert_eq!(between.count, Some(100));
        assert!((between.latency.unwrap() - 0.2).abs() < 1e-9);
        assert!((between.errors - 0.25).abs() < 1e-9);
        assert_eq!(before.since(&wanted.read(&later).unwrap()), None);
        let idle = before.since(&before).unwrap();
        assert_eq!((idle.latency, idle.count), (None, Some(0)));
    }

    #[test]
    fn a_value_that_is_no_number_reaches_nobody_as_one() {
        let odd = wanted("odd", "").read(PAGE).unwrap();
        assert!(odd.gauge.unwrap().is_nan(), "a report of it is refused");
    }

    #[test]
    fn selectors_are_checked_and_garbage_is_left_out() {
        for bad in ["", "9a", "a b", "a{b}", "a{b=\"c\"", "a{b=\"c\"}d"] {
            Selector::parse(bad).unwrap_err();
        }
        let garbage = "a{b=\"\\\na{\na{x\na{x=\"y\"} z\na\n\u{0}\na 3";
        assert_eq!(wanted("a", "").read(garbage).unwrap().gauge, Some(3.0));
    }
}
