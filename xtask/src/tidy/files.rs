//! Rules for every file: plain ASCII, a bounded length.
use super::{Findings, Source, has_extension};

/// Length a file should not exceed.
const LINES_WANTED: usize = 400;

/// Length a file must not exceed, unless it is in [`LONG`].
const LINES_BOUND: usize = 550;

/// Files that may be longer, each with its bound and the reason.
const LONG: [(&str, usize, &str); 4] = [
    (
        "ratelimiter-userspace/src/agent/core.rs",
        720,
        "grown past the bound before the first release; to be split by operation",
    ),
    (
        "ratelimiter-userspace/src/agent/service.rs",
        700,
        "grown past the bound before the first release; to be split by operation",
    ),
    (
        "ratelimiter-userspace/src/cli/doctor/checks.rs",
        600,
        "a list of checks, each a few lines; splitting it hides what doctor looks at",
    ),
    (
        "tests/src/program.rs",
        620,
        "grown past the bound before the first release; to be split into loading and running",
    ),
];

/// File types that are written by people.
const WRITTEN: [&str; 11] = [
    "rs", "toml", "md", "sh", "yml", "yaml", "html", "css", "js", "mjs", "json",
];

pub(super) fn check(source: &Source, findings: &mut Findings) {
    let path = &source.path;
    if !WRITTEN
        .iter()
        .any(|extension| has_extension(path, extension))
    {
        return;
    }
    for (number, line) in source.text.lines().enumerate() {
        if let Some(character) = line.chars().find(|c| !c.is_ascii()) {
            let escaped = character.escape_unicode();
            findings.error(format!("{path}:{}: `{escaped}` is not ASCII", number + 1));
        }
        if line.contains('\r') {
            findings.error(format!("{path}:{}: ends in a carriage return", number + 1));
        }
    }
    if has_extension(path, "rs") {
        check_length(path, source.text.lines().count(), findings);
    }
}

fn check_length(path: &str, lines: usize, findings: &mut Findings) {
    let allowed = LONG.iter().find(|(long, ..)| *long == path);
    let bound = allowed.map_or(LINES_BOUND, |(_, bound, _)| *bound);
    if lines > bound {
        findings.error(format!(
            "{path}: {lines} lines, the bound is {bound}: split it by concept"
        ));
    } else if lines > LINES_WANTED && allowed.is_none() {
        findings.warning(format!("{path}: {lines} lines, {LINES_WANTED} are wanted"));
    }
}

#[cfg(test)]
mod tests {
    use super::{Findings, Source, check};

    fn findings(path: &str, text: &str) -> Findings {
        let mut findings = Findings::default();
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        check(&source, &mut findings);
        findings
    }

    #[test]
    fn complains_about_a_long_file() {
        assert_eq!(findings("a.rs", &"\n".repeat(400)).warnings.len(), 0);
        assert_eq!(findings("a.rs", &"\n".repeat(401)).warnings.len(), 1);
        assert_eq!(findings("a.rs", &"\n".repeat(551)).errors.len(), 1);
    }

    #[test]
    fn complains_about_typographic_quotes() {
        assert_eq!(
            findings("docs/a.md", "one\n\u{201c}two\u{201d}\n").errors,
            ["docs/a.md:2: `\\u{201c}` is not ASCII"]
        );
    }
}
