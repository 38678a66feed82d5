//! Findings as people read them: one aligned line each, advice below what needs some.

use super::checks::{Finding, Level};
use crate::cli::output::{Style, Tint, clean};

/// The report: findings, then a line of counts.
pub fn report(findings: &[Finding], style: Style) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.thing.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let (word, tint) = match finding.level {
            Level::Ok => ("ok     ", Tint::Green),
            Level::Note => ("note   ", Tint::Dim),
            Level::Warning => ("WARNING", Tint::Yellow),
            Level::Failed => ("FAILED ", Tint::Red),
        };
        let word = style.paint(tint, word);
        // A broken configuration comes with its lines and carets: keep them aligned.
        let mut value = finding.value.lines().map(clean);
        let first = value.next().unwrap_or_default();
        text.push_str(&format!("{word}  {:width$}  {first}\n", finding.thing));
        for line in value {
            text.push_str(&format!("           {line}\n"));
        }
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("           wanted: {}\n", finding.bound));
            text.push_str(&format!("           fix:    {fix}\n"));
        }
    }
    text.push_str(&counts(findings));
    text
}

fn counts(findings: &[Finding]) -> String {
    let count = |level, one: &str, many: &str| {
        let n = findings.iter().filter(|f| f.level == level).count();
        format!("{n} {}", if n == 1 { one } else { many })
    };
    format!(
        "{} checks: {}, {}, {}, {}\n",
        findings.len(),
        count(Level::Ok, "ok", "ok"),
        count(Level::Note, "note", "notes"),
        count(Level::Warning, "warning", "warnings"),
        count(Level::Failed, "failed", "failed"),
    )
}
