//! Which sources are shown, and in which order.

use std::cmp::Ordering;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::admin::views::SourceRow;

/// What the table is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// Packets dropped per second, the most first.
    #[default]
    Dropped,
    /// Packets offered per second, the most first.
    Packets,
    /// Bytes offered per second, the most first.
    Bytes,
    /// Address, ascending.
    Source,
}

impl Sort {
    /// The next column.
    #[must_use]
    pub const fn next(self) -> Self {
        match self {
            Self::Dropped => Self::Packets,
            Self::Packets => Self::Bytes,
            Self::Bytes => Self::Source,
            Self::Source => Self::Dropped,
        }
    }

    /// The word for people.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Dropped => "dropped/s",
            Self::Packets => "packets/s",
            Self::Bytes => "bytes/s",
            Self::Source => "source",
        }
    }
}

/// Sorts `rows`; `reverse` turns the order around. Rows that are alike stay in the order of their
/// addresses, so that the table does not dance.
pub fn sort(rows: &mut [SourceRow], by: Sort, reverse: bool) {
    rows.sort_by(|a, b| {
        let order = match by {
            Sort::Dropped => b
                .dropped_per_s
                .total_cmp(&a.dropped_per_s)
                .then(b.packets_per_s.total_cmp(&a.packets_per_s)),
            Sort::Packets => b.packets_per_s.total_cmp(&a.packets_per_s),
            Sort::Bytes => b.bytes_per_s.total_cmp(&a.bytes_per_s),
            Sort::Source => Ordering::Equal,
        };
        let order = order.then_with(|| by_address(a, b));
        if reverse { order.reverse() } else { order }
    });
}

fn by_address(a: &SourceRow, b: &SourceRow) -> Ordering {
    match (prefix(&a.source), prefix(&b.source)) {
        (Some(a), Some(b)) => a.cmp(&b),
        (None, None) => a.source.cmp(&b.source),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

/// Whether a row's address, client, segment or reason contains `filter`, in any case.
#[must_use]
pub fn matches(row: &SourceRow, filter: &str) -> bool {
    let filter = filter.to_lowercase();
    [
        Some(row.source.as_str()),
        row.client.as_deref(),
        Some(row.segment.as_str()),
        Some(row.reason.as_str()),
    ]
    .into_iter()
    .flatten()
    .any(|text| text.to_lowercase().contains(&filter))
}

/// The prefix a source stands for; none for a bucket that many share.
#[must_use]
pub fn prefix(source: &str) -> Option<IpNet> {
    source
        .parse::<IpNet>()
        .ok()
        .or_else(|| source.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(source: &str, packets_per_s: f64, dropped_per_s: f64) -> SourceRow {
        SourceRow {
            source: source.to_owned(),
            segment: "default".to_owned(),
            packets_per_s,
            dropped_per_s,
            ..SourceRow::default()
        }
    }

    fn order(by: Sort, reverse: bool) -> Vec<String> {
        let mut rows = [
            row("192.0.2.10", 5.0, 0.0),
            row("192.0.2.9", 1.0, 1.0),
            row("192.0.2.11", 9.0, 0.0),
            row("shared bucket of policy 7", 5.0, 0.0),
        ];
        sort(&mut rows, by, reverse);
        rows.iter()
            .map(|row| row.source.rsplit('.').next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn sorts_by_rate_and_then_by_address() {
        let shared = "shared bucket of policy 7";
        assert_eq!(order(Sort::Dropped, false), ["9", "11", "10", shared]);
        assert_eq!(order(Sort::Packets, false), ["11", "10", shared, "9"]);
        assert_eq!(order(Sort::Source, false), ["9", "10", "11", shared]);
        assert_eq!(order(Sort::Source, true), [shared, "11", "10", "9"]);
    }

    #[test]
    fn finds_a_source_by_any_of_its_words() {
        let row = SourceRow {
            client: Some("Alice".to_owned()),
            reason: "over_packets".to_owned(),
            ..row("192.0.2.10", 0.0, 0.0)
        };
        for filter in ["", "2.10", "alice", "OVER", "default"] {
            assert!(matches(&row, filter), "{filter}");
        }
        assert!(!matches(&row, "bob"));
    }

    #[test]
    fn a_shared_bucket_has_no_prefix() {
        assert_eq!(prefix("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
        assert_eq!(
            prefix("2001:db8::/64").unwrap().to_string(),
            "2001:db8::/64"
        );
        assert_eq!(prefix("shared bucket of policy 7"), None);
    }
}
