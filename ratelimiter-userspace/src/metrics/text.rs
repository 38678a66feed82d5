//! The two text formats: Prometheus 0.0.4 and OpenMetrics 1.0.

/// What kind of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only ever rises; its samples end in `_total`.
    Counter,
    /// May rise and fall.
    Gauge,
}

/// A text in the making.
#[derive(Debug)]
pub(super) struct Text {
    out: String,
    open_metrics: bool,
    name: &'static str,
    suffix: &'static str,
}

impl Text {
    pub(super) fn new(open_metrics: bool) -> Self {
        Self {
            out: String::with_capacity(16 * 1024),
            open_metrics,
            name: "",
            suffix: "",
        }
    }

    /// Begins a family; the samples that follow are its own. `name` is without `_total`.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> &mut Self {
        (self.name, self.suffix) = match kind {
            Kind::Counter => (name, "_total"),
            Kind::Gauge => (name, ""),
        };
        // OpenMetrics names a counter's family without the suffix of its samples, 0.0.4 with it.
        let head_suffix = if self.open_metrics { "" } else { self.suffix };
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.head(head_suffix, help, word);
        self
    }

    fn head(&mut self, suffix: &str, help: &str, word: &str) {
        let name = self.name;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.out.push_str(&format!(
            "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {word}\n"
        ));
    }

    /// Adds a sample.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        let (name, suffix) = (self.name, self.suffix);
        self.line(&format!("{name}{suffix}"), labels, value);
        self
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        for (n, (label, text)) in labels.iter().enumerate() {
            self.out.push(if n == 0 { '{' } else { ',' });
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            self.out.push_str(&format!("{label}=\"{text}\""));
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        self.out.push_str(&format!(" {value}\n"));
    }

    /// Adds a histogram: `counts` by bucket, not summed up, the last one for what is above every
    /// bound.
    pub(super) fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) {
        (self.name, self.suffix) = (name, "");
        self.head("", help, "histogram");
        let mut total = 0;
        let infinite = std::iter::once(f64::INFINITY);
        for (bound, count) in bounds.iter().copied().chain(infinite).zip(counts) {
            total += count;
            let bound = if bound.is_finite() {
                bound.to_string()
            } else {
                "+Inf".to_owned()
            };
            self.line(&format!("{name}_bucket"), &[("le", &bound)], total as f64);
        }
        self.line(&format!("{name}_sum"), &[], sum);
        self.line(&format!("{name}_count"), &[], total as f64);
    }

    /// The text.
    pub(super) fn finish(mut self) -> String {
        if self.open_metrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_differ_in_counters_and_the_end() {
        let text = |open| {
            let mut text = Text::new(open);
            text.family("a_b", Kind::Counter, "Help.")
                .sample(&[("x", "q\"\\\n")], 3.0);
            text.finish()
        };
        assert_eq!(
            text(false),
            "# HELP a_b_total Help.\n# TYPE a_b_total counter\na_b_total{x=\"q\\\"\\\\\\n\"} 3\n"
        );
        assert_eq!(
            text(true),
            "# HELP a_b Help.\n# TYPE a_b counter\na_b_total{x=\"q\\\"\\\\\\n\"} 3\n# EOF\n"
        );
    }

    #[test]
    fn histograms_are_cumulative() {
        let mut text = Text::new(false);
        text.histogram("h", "Help.", &[0.5, 1.0], &[2, 0, 1], 4.5);
        assert!(text.finish().ends_with(
            "h_bucket{le=\"0.5\"} 2\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 3\nh_sum 4.5\nh_count 3\n"
        ));
    }
}
