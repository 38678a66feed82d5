//! Rules for Rust sources: module docs, no ignored tests, reasons where reasons are due.
use super::{Findings, Source};

/// Macros and attributes that must not reach `main`, and why. Written in two halves so that this
/// file does not complain about itself.
const FORBIDDEN: [(&str, &str, &str); 5] = [
    ("#[ig", "nore", "a test runs or goes"),
    (
        "todo",
        "!(",
        "finish it, or return an error that names what is missing",
    ),
    (
        "unimpl",
        "emented!(",
        "finish it, or return an error that names what is missing",
    ),
    ("// TO", "DO:", "write `// TODO(#issue): reason`"),
    ("#[al", "low(", "use `#[expect(lint, reason = ...)]`"),
];

/// Lines above an `unsafe` in which its reason is looked for; clippy looks at host crates only.
const SAFETY_WINDOW: usize = 8;

pub(super) fn check(source: &Source, findings: &mut Findings) {
    let path = &source.path;
    if !source.text.starts_with("//!") {
        findings.error(format!(
            "{path}:1: must start with `//!`: what lives here, what does not"
        ));
    }
    let lines: Vec<&str> = source.text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let number = index + 1;
        for (left, right, why) in FORBIDDEN {
            let text = format!("{left}{right}");
            if line.trim_start().starts_with(&text)
                || (text.ends_with('(') && has_word(line, &text))
            {
                findings.error(format!("{path}:{number}: `{text}`: {why}"));
            }
        }
        if path.starts_with("ratelimiter-ebpf/") && is_unsafe(line) {
            let above = lines.get(index.saturating_sub(SAFETY_WINDOW)..=index);
            if !above.is_some_and(|window| window.iter().any(|line| line.contains("SAFETY:"))) {
                findings.error(format!("{path}:{number}: `unsafe` without `// SAFETY:`"));
            }
        }
    }
}

/// Whether the line opens an unsafe block or makes an unsafe promise.
fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or(line);
    code.contains("unsafe {") || code.contains("unsafe impl")
}

/// Whether code, not a comment, contains `text` where a word begins.
fn has_word(line: &str, text: &str) -> bool {
    let code = line.split("//").next().unwrap_or(line);
    code.match_indices(text).any(|(at, _)| {
        let before = code.get(..at).and_then(|head| head.chars().next_back());
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '"')
    })
}

#[cfg(test)]
mod tests {
    use super::{Findings, Source, check};

    fn errors(path: &str, text: &str) -> Vec<String> {
        let mut findings = Findings::default();
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        check(&source, &mut findings);
        findings.errors
    }

    #[test]
    fn wants_module_docs() {
        assert_eq!(errors("a.rs", "//! Doc.\nfn a() {}\n").len(), 0);
        assert_eq!(errors("a.rs", "fn a() {}\n").len(), 1);
    }

    #[test]
    fn forbids_ignored_tests_and_holes() {
        let ignored = format!("//! Doc.\n    #[{}]\n", "ignore");
        assert_eq!(errors("a.rs", &ignored).len(), 1);
        let hole = format!("//! Doc.\nfn a() {{ {}!() }}\n", "todo");
        assert_eq!(errors("a.rs", &hole).len(), 1);
    }

    #[test]
    fn wants_a_reason_for_unsafe_in_the_kernel_program() {
        let bare = "//! Doc.\nfn a() { unsafe { b() } }\n";
        assert_eq!(errors("ratelimiter-ebpf/src/a.rs", bare).len(), 1);
        assert_eq!(errors("ratelimiter-userspace/src/a.rs", bare).len(), 0);
        let explained = "//! Doc.\n// SAFETY: b is safe.\nfn a() { unsafe { b() } }\n";
        assert_eq!(errors("ratelimiter-ebpf/src/a.rs", explained).len(), 0);
    }
}
