//! Reading what a Rust test binary prints.

/// What one or more test binaries reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
}

impl Counts {
    /// Adds another report.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

/// The counts of a `test result:` line.
pub(crate) fn result(line: &str) -> Option<Counts> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut found = Counts::default();
    for part in counts.split("; ") {
        let Some((number, word)) = part.split_once(' ') else {
            continue;
        };
        let slot = match word {
            "passed" => &mut found.passed,
            "failed" => &mut found.failed,
            "ignored" => &mut found.ignored,
            _ => continue,
        };
        *slot = number.parse().ok()?;
    }
    Some(found)
}

/// Whether a line is worth showing: what passed and the frame around it is not.
pub(crate) fn is_news(line: &str) -> bool {
    let frame = line.is_empty()
        || line.starts_with("running ")
        || line.starts_with("test result: ok")
        || (line.starts_with("test ") && line.ends_with("... ok"));
    !frame
}

/// Name of the test of a `test name ... ok` line.
pub(crate) fn passed(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... ok")
}

#[cfg(test)]
mod tests {
    use super::{Counts, is_news, passed, result};

    #[test]
    fn reads_the_line_of_a_failed_run() {
        let line = "test result: FAILED. 10 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 1.28s";
        let counts = Counts {
            passed: 10,
            failed: 1,
            ignored: 2,
        };
        assert_eq!(result(line), Some(counts));
    }

    #[test]
    fn reads_nothing_from_other_lines() {
        assert_eq!(result("test policy::is_right ... ok"), None);
        assert_eq!(
            passed("test policy::is_right ... ok"),
            Some("policy::is_right")
        );
        assert_eq!(passed("test policy::is_right ... FAILED"), None);
    }

    #[test]
    fn shows_failures_and_hides_what_passed() {
        assert!(is_news("test policy::is_right ... FAILED"));
        assert!(is_news("thread 'main' panicked at src/lib.rs:1:1:"));
        assert!(!is_news("test policy::is_right ... ok"));
    }
}
