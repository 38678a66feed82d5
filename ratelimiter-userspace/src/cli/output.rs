//! What commands print: JSON as it came, or aligned tables; colour on terminals only.
//!
//! Rendering is pure (a [`Style`] in, a `String` out); only [`print`] touches standard output.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::exit::Failure;

/// The form of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// The agent's JSON, indented, for scripts.
    Json,
}

/// Flags of every command that prints an answer.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OutputArgs {
    /// Form of the answer: table or json
    #[arg(
        short,
        long,
        value_enum,
        value_name = "FORM",
        default_value_t = Format::Table,
        hide_possible_values = true
    )]
    pub output: Format,
}

impl OutputArgs {
    /// Whether JSON was asked for.
    pub fn is_json(&self) -> bool {
        self.output == Format::Json
    }

    /// Prints `value` as JSON, or what `table` makes of it.
    pub fn show<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce(&T, Style) -> String,
    ) -> Result<(), Failure> {
        if self.is_json() {
            print(&json_text(value)?)
        } else {
            print(&table(value, Style::of_stdout()))
        }
    }
}

/// `value` as indented JSON with a final newline.
pub fn json_text<T: Serialize>(value: &T) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Failure::new(format!("the answer cannot be written as JSON: {e}")))?;
    Ok(text + "\n")
}

/// Writes to standard output. A reader that went away (`| head`) is not an error.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(format!(
            "standard output cannot be written: {e}"
        ))),
        _ => Ok(()),
    }
}

/// Writes a remark to standard error, where it does not disturb scripts.
pub fn remark(text: &str) {
    // Nothing useful can be done when standard error is closed.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// A tint of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tint {
    /// As it is.
    Plain,
    /// Headings.
    Bold,
    /// Less important.
    Dim,
    /// Good.
    Green,
    /// Look here.
    Yellow,
    /// Bad.
    Red,
}

/// Whether to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Write ANSI sequences.
    pub colour: bool,
}

impl Style {
    /// No colour.
    pub const PLAIN: Self = Self { colour: false };

    /// Colour if standard output is a terminal and neither `NO_COLOR` nor `TERM=dumb` is set.
    pub fn of_stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    /// The same for standard error.
    pub fn of_stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    fn of(terminal: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self {
            colour: terminal && !no_color && !dumb,
        }
    }

    /// `text` in a tint.
    pub fn paint(self, tint: Tint, text: &str) -> String {
        let code = match tint {
            _ if !self.colour => return text.to_owned(),
            Tint::Plain => return text.to_owned(),
            Tint::Bold => 1,
            Tint::Dim => 2,
            Tint::Green => 32,
            Tint::Yellow => 33,
            Tint::Red => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// One cell of a table.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    tint: Tint,
}

impl Cell {
    /// A cell in a tint.
    pub fn new(text: impl AsRef<str>, tint: Tint) -> Self {
        Self {
            text: clean(text.as_ref()),
            tint,
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tint::Plain)
    }
}

/// Aligned columns. A heading that starts with `>` aligns its column to the right.
#[derive(Clone, Debug)]
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text, one line per row, no trailing blanks; `empty` instead if there are no rows.
    pub fn render(&self, style: Style, empty: &str) -> String {
        if self.rows.is_empty() {
            return format!("{empty}\n");
        }
        let widths: Vec<usize> = self
            .headings
            .iter()
            .enumerate()
            .map(|(column, heading)| {
                self.rows
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.text.chars().count())
                    .chain([heading.trim_start_matches('>').len()])
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        let headings: Vec<Cell> = self
            .headings
            .iter()
            .map(|heading| Cell::new(heading.trim_start_matches('>'), Tint::Bold))
            .collect();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column > 0 {
                    line.push_str("  ");
                }
                let pad = " ".repeat(width - cell.text.chars().count().min(*width));
                let right = self
                    .headings
                    .get(column)
                    .is_some_and(|h| h.starts_with('>'));
                if right {
                    line.push_str(&pad);
                }
                line.push_str(&style.paint(cell.tint, &cell.text));
                if !right {
                    line.push_str(&pad);
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Lines of `name  value`, the names aligned.
#[derive(Clone, Debug, Default)]
pub struct Facts(Vec<(String, String, Tint)>);

impl Facts {
    /// Adds a line.
    pub fn add(&mut self, name: &str, value: impl AsRef<str>) -> &mut Self {
        self.add_tinted(name, value, Tint::Plain)
    }

    /// Adds a line in a tint.
    pub fn add_tinted(&mut self, name: &str, value: impl AsRef<str>, tint: Tint) -> &mut Self {
        self.0.push((name.to_owned(), clean(value.as_ref()), tint));
        self
    }

    /// The text.
    pub fn render(&self, style: Style) -> String {
        let width = self
            .0
            .iter()
            .map(|(name, ..)| name.len())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for (name, value, tint) in &self.0 {
            let name = style.paint(Tint::Bold, &format!("{name:width$}"));
            text.push_str(&format!("{name}  {}", style.paint(*tint, value)));
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }
}

/// Escapes what could disturb a terminal or deceive a reader: control and direction characters.
/// Client ids and reasons come from elsewhere.
pub fn clean(text: &str) -> String {
    let hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(hostile) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| {
            if hostile(c) {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// A duration of `seconds` for people: `0.25 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `4 d 2 h`.
pub fn show_seconds(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "never".to_owned();
    }
    let seconds = seconds.max(0.0);
    if seconds < 10.0 {
        let text = format!("{seconds:.3}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        return format!("{text} s");
    }
    let whole = seconds.round() as u64;
    let parts = |high: u64, high_name: &str, low: u64, low_name: &str| {
        if low == 0 {
            format!("{high} {high_name}")
        } else {
            format!("{high} {high_name} {low} {low_name}")
        }
    };
    match whole {
        0..60 => format!("{whole} s"),
        60..3_600 => parts(whole / 60, "min", whole % 60, "s"),
        3_600..86_400 => parts(whole / 3_600, "h", whole % 3_600 / 60, "min"),
        _ => parts(whole / 86_400, "d", whole % 86_400 / 3_600, "h"),
    }
}

/// A point in time for people, relative to now, in whole seconds: `in 12 s`, `3 min ago`.
pub fn show_relative(unix_ms: u64, now_unix_ms: u64) -> String {
    let seconds = (unix_ms.abs_diff(now_unix_ms) as f64 / 1e3).round();
    if seconds < 1.0 {
        "now".to_owned()
    } else if unix_ms > now_unix_ms {
        format!("in {}", show_seconds(seconds))
    } else {
        format!("{} ago", show_seconds(seconds))
    }
}

/// Bytes in binary units.
pub fn show_bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["CLIENT", ">RATE", "MODE"]);
        table.row(vec![
            "a".into(),
            "500/s".into(),
            Cell::new("enforce", Tint::Green),
        ]);
        table.row(vec!["longer-name".into(), "10k/min".into()]);
        table
    }

    #[test]
    fn aligns_columns_and_leaves_no_trailing_blanks() {
        assert_eq!(
            sample().render(Style::PLAIN, ""),
            "CLIENT          RATE  MODE\n\
             a              500/s  enforce\n\
             longer-name  10k/min\n"
        );
    }

    #[test]
    fn colours_only_when_asked() {
        assert!(!sample().render(Style::PLAIN, "").contains('\x1b'));
        let coloured = sample().render(Style { colour: true }, "");
        assert!(coloured.contains("\x1b[32menforce\x1b[0m"));
        assert!(coloured.contains("\x1b[1mCLIENT\x1b[0m"));
    }

    #[test]
    fn says_so_when_there_is_nothing() {
        assert_eq!(
            Table::new(&["A"]).render(Style::PLAIN, "no clients"),
            "no clients\n"
        );
    }

    #[test]
    fn escapes_what_could_deceive() {
        assert_eq!(clean("plain \u{e9}"), "plain \u{e9}");
        assert_eq!(clean("a\x1b[31mb\n\u{202e}"), "a\\u{1b}[31mb\\n\\u{202e}");
    }

    #[test]
    fn aligns_names_of_facts() {
        let mut facts = Facts::default();
        facts
            .add("mode", "shadow")
            .add("interface", "eth0")
            .add("empty", "");
        assert_eq!(
            facts.render(Style::PLAIN),
            "mode       shadow\ninterface  eth0\nempty\n"
        );
    }

    #[test]
    fn shows_durations_for_people() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.25, "0.25 s"),
            (1.0, "1 s"),
            (12.4, "12 s"),
            (59.6, "1 min"),
            (200.0, "3 min 20 s"),
            (7_500.0, "2 h 5 min"),
            (352_800.0, "4 d 2 h"),
            (f64::INFINITY, "never"),
        ] {
            assert_eq!(show_seconds(seconds), text);
        }
        assert_eq!(show_relative(15_000, 3_000), "in 12 s");
        assert_eq!(show_relative(3_000, 15_000), "12 s ago");
        assert_eq!(show_relative(3_000, 3_400), "now");
        assert_eq!(show_relative(3_000, 4_588), "2 s ago");
    }
}
