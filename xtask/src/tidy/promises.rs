//! `docs/guarantees.md` is true: every test it names exists, and every guarantee is in it.
use std::collections::BTreeSet;

use super::{Findings, Source};

const TABLE: &str = "docs/guarantees.md";

/// Guarantees the first release owes, by their number.
const OWED: [u32; 25] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 19, 20, 22, 23, 24, 25, 26, 45, 46,
];

pub(super) fn check(sources: &[Source], findings: &mut Findings) {
    let Some(table) = sources.iter().find(|source| source.path == TABLE) else {
        findings.error(format!("{TABLE}: there is no such file"));
        return;
    };
    let tests = test_names(sources);
    let mut kept = BTreeSet::new();
    for (index, line) in table.text.lines().enumerate() {
        let Some((what, names)) = row(line) else {
            continue;
        };
        kept.extend(
            what.strip_prefix('R')
                .and_then(|number| number.parse::<u32>().ok()),
        );
        if names.is_empty() && what != "id" {
            findings.warning(format!("{TABLE}:{}: no test holds {what} yet", index + 1));
        }
        for name in names.iter().filter(|name| !tests.contains(name.as_str())) {
            let number = index + 1;
            findings.error(format!(
                "{TABLE}:{number}: there is no test `{name}` (for {what})"
            ));
        }
    }
    for number in OWED.iter().filter(|number| !kept.contains(number)) {
        findings.error(format!("{TABLE}: R{number} is missing"));
    }
}

/// First cell of a table row, and the names in back-ticks in its third.
fn row(line: &str) -> Option<(&str, Vec<String>)> {
    let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
    let what = cells.next()?;
    let tests = cells.nth(1)?;
    let names = tests
        .split('`')
        .skip(1)
        .step_by(2)
        // A module path may stand before the name, for people.
        .filter_map(|name| name.rsplit("::").next().map(str::to_owned))
        .collect();
    (!what.is_empty() && !what.starts_with('-')).then_some((what, names))
}

/// Names of functions marked as tests.
fn test_names(sources: &[Source]) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let mut marked = false;
        let mut in_proptest = false;
        for line in source.text.lines().map(str::trim) {
            in_proptest |= line.starts_with("proptest!");
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                marked = true;
            } else if let Some(name) = function(line) {
                if marked || in_proptest {
                    names.insert(name);
                }
                marked = false;
            }
        }
    }
    names
}

/// Name of the function that begins on this line.
fn function(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("async ").unwrap_or(line);
    rest.strip_prefix("fn ")?.split(['(', '<']).next()
}

#[cfg(test)]
mod tests {
    use super::{Source, row, test_names};

    #[test]
    fn reads_names_from_the_third_cell() {
        let line = "| R8 | exact `not_this` | `program::exact::two_cpus` `one_cpu` | 4 M |";
        let expected = vec!["two_cpus".to_owned(), "one_cpu".to_owned()];
        assert_eq!(row(line), Some(("R8", expected)));
        assert_eq!(row("|---|---|---|---|"), None);
        assert_eq!(row("text"), None);
    }

    #[test]
    fn finds_marked_functions_only() {
        let text = "#[test]\nfn marked() {}\nfn helper() {}\n#[tokio::test]\nasync fn later() {}\n";
        let sources = [Source {
            path: "a.rs".to_owned(),
            text: text.to_owned(),
        }];
        let names: Vec<&str> = test_names(&sources).into_iter().collect();
        assert_eq!(names, ["later", "marked"]);
    }
}
