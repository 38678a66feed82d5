//! From byte offsets to lines, columns, excerpts and field paths, and back.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A place in a text: one line, with a caret under what is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The line with a caret under it, ready to print.
    pub excerpt: String,
}

/// Widest excerpt, in characters.
const WIDTH: usize = 96;

impl Place {
    /// Locates a range of bytes.
    #[must_use]
    pub fn of(text: &str, range: &Range<usize>) -> Self {
        let start = floor(text, range.start.min(text.len()));
        // A range that ends a line or the file points behind its last character.
        let line_start = text.get(..start).and_then(|head| head.rfind('\n'));
        let line_start = line_start.map_or(0, |at| at + 1);
        let line_end = text
            .get(start..)
            .and_then(|tail| tail.find('\n'))
            .map_or(text.len(), |at| start + at);
        let line_text = text.get(line_start..line_end).unwrap_or_default();
        let line_text = line_text.strip_suffix('\r').unwrap_or(line_text);
        let line = text
            .get(..line_start)
            .map_or(1, |head| head.matches('\n').count() + 1);
        let column = text.get(line_start..start).map_or(0, |s| s.chars().count());
        let end = floor(text, range.end.clamp(start, line_end));
        let marked = text.get(start..end).map_or(0, |s| s.chars().count());
        Self {
            line,
            column: column + 1,
            excerpt: if holds_secret(line_text) {
                format!("{line} | (the line holds a token and is not shown)\n  | ^")
            } else {
                excerpt(line, line_text, column, marked.max(1))
            },
        }
    }
}

/// Whether a line may hold a token: whatever stands behind `token`, but not `token_file`.
fn holds_secret(line: &str) -> bool {
    line.replace("token_file", "").contains("token")
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0)
}

fn excerpt(line: usize, text: &str, column: usize, marked: usize) -> String {
    // Long lines are shown around the caret; control characters and wide spaces as one space each.
    let shown: Vec<char> = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let from = if shown.len() > WIDTH {
        column.saturating_sub(WIDTH / 3).min(shown.len() - WIDTH)
    } else {
        0
    };
    let window: String = shown.iter().skip(from).take(WIDTH).collect();
    let indent = column.saturating_sub(from);
    let carets = marked.min(WIDTH.saturating_sub(indent)).max(1);
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    format!(
        "{margin} |\n{number} | {}\n{margin} | {}{}",
        window.trim_end(),
        " ".repeat(indent),
        "^".repeat(carets)
    )
}

/// Where a path stands in a file: the value at its end, or the key of the deepest part that is
/// there.
#[must_use]
pub(super) fn range_of(table: &Spanned<DeTable<'_>>, path: &[String]) -> Option<Range<usize>> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table
        .get_ref()
        .iter()
        .find(|(key, _)| key.get_ref().as_ref() == first.as_str())?;
    Some(range_in(key.span(), value, rest))
}

fn range_in(key: Range<usize>, value: &Spanned<DeValue<'_>>, path: &[String]) -> Range<usize> {
    let Some((first, rest)) = path.split_first() else {
        // A whole table is best shown by its name.
        return if value.get_ref().is_table() {
            key
        } else {
            value.span()
        };
    };
    match value.get_ref() {
        DeValue::Table(inner) => inner
            .iter()
            .find(|(key, _)| key.get_ref().as_ref() == first.as_str())
            .map_or(key, |(key, value)| range_in(key.span(), value, rest)),
        DeValue::Array(items) => first
            .parse::<usize>()
            .ok()
            .and_then(|n| items.get(n))
            .map_or(key, |item| {
                let start = item.span();
                if rest.is_empty() {
                    start
                } else {
                    range_in(start, item, rest)
                }
            }),
        _ => value.span(),
    }
}

/// The path of whatever stands at a range: the deepest key or value that contains its start.
#[must_use]
pub(super) fn path_at(table: &Spanned<DeTable<'_>>, range: &Range<usize>) -> Vec<String> {
    let mut best = (usize::MAX, Vec::new());
    let mut path = Vec::new();
    walk(table.get_ref(), range.start, &mut path, &mut best);
    best.1
}

fn walk(table: &DeTable<'_>, at: usize, path: &mut Vec<String>, best: &mut (usize, Vec<String>)) {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        consider(&key.span(), at, path, best);
        visit(value, at, path, best);
        path.pop();
    }
}

fn visit(
    value: &Spanned<DeValue<'_>>,
    at: usize,
    path: &mut Vec<String>,
    best: &mut (usize, Vec<String>),
) {
    consider(&value.span(), at, path, best);
    match value.get_ref() {
        DeValue::Table(inner) => walk(inner, at, path, best),
        DeValue::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                path.push(n.to_string());
                visit(item, at, path, best);
                path.pop();
            }
        }
        _ => {}
    }
}

fn consider(span: &Range<usize>, at: usize, path: &[String], best: &mut (usize, Vec<String>)) {
    if span.start <= at && at < span.end.max(span.start + 1) && span.len() <= best.0 {
        *best = (span.len(), path.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_point_at_characters_not_bytes() {
        let text = "a = 1\nname = \"\u{e9}\u{e9}\" # x\nbad = -1\n";
        let at = text.find("-1").unwrap();
        let place = Place::of(text, &(at..at + 2));
        assert_eq!((place.line, place.column), (3, 7));
        assert_eq!(place.excerpt, "  |\n3 | bad = -1\n  |       ^^");
    }

    #[test]
    fn places_survive_any_range() {
        let text = "x = \"\u{e9}\"";
        for start in 0..12 {
            for end in 0..12 {
                let place = Place::of(text, &(start..end));
                assert_eq!(place.line, 1);
            }
        }
        assert_eq!(Place::of("", &(0..0)).column, 1);
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let text = format!("k = [{}-1]", "1, ".repeat(200));
        let at = text.find("-1").unwrap();
        let place = Place::of(&text, &(at..at + 2));
        assert!(place.excerpt.lines().all(|line| line.chars().count() < 110));
        assert!(place.excerpt.contains("-1]"));
    }

    #[test]
    fn paths_and_ranges_are_inverse() {
        let text = "[a.b]\nc = [1, { d = \"x\" }]\n[[e]]\nf = 2\n";
        let table = DeTable::parse(text).unwrap();
        for path in [
            vec!["a", "b", "c", "1", "d"],
            vec!["e", "0", "f"],
            vec!["a", "b", "c", "0"],
        ] {
            let path: Vec<String> = path.into_iter().map(str::to_owned).collect();
            let range = range_of(&table, &path).unwrap();
            assert_eq!(path_at(&table, &range), path);
        }
        let missing = ["a".to_owned(), "b".to_owned(), "zzz".to_owned()];
        let range = range_of(&table, &missing).unwrap();
        assert_eq!(text.get(range), Some("b"));
    }
}
