//! From a parser's words to ours.

/// Says what a parser says in the words of our messages; `raw` is the text it points at.
#[must_use]
pub(super) fn rephrase(message: &str, raw: &str) -> String {
    let mut text = message.to_owned();
    for (word, range) in [
        ("u8", "a whole number between 0 and 255"),
        ("u16", "a whole number between 0 and 65535"),
        ("u32", "a whole number between 0 and 4294967295"),
        ("u64", "a whole number, 0 or more"),
        ("a boolean", "`true` or `false`"),
        ("a sequence", "a list in brackets"),
        ("a map", "a table"),
        ("struct Wrapper", "a whole number, 0 or more"),
    ] {
        let expected = format!("expected {word}");
        if let Some(head) = text.strip_suffix(&expected) {
            text = format!("{head}it must be {range}");
            break;
        }
    }
    text = text
        .replace("invalid type: floating point `nan`", "invalid type: `nan`")
        .replace(", it must be", "; it must be");
    let raw = raw.trim();
    let shown = raw.trim_matches(['"', '\'']);
    let is_value =
        !raw.is_empty() && !text.starts_with("missing") && raw.len() <= 80 && !raw.contains('\n');
    if is_value && !shown.is_empty() && !text.contains(shown) {
        format!("`{shown}`: {text}")
    } else {
        text
    }
}

/// What was probably meant by an unknown word, from a message that lists the known ones.
#[must_use]
pub(super) fn did_you_mean(message: &str) -> Option<String> {
    let (unknown, known) = message
        .strip_prefix("unknown field ")
        .or_else(|| message.strip_prefix("unknown variant "))?
        .split_once(", ")?;
    let unknown = unknown.trim_matches('`');
    nearest(unknown, known.split('`').skip(1).step_by(2))
        .map(|word| format!("did you mean `{word}`?"))
}

/// The word nearest to `unknown`, if any is near.
#[must_use]
pub(super) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|word| {
            // Typing slips and wrong endings: one measure is good at each.
            let slip = strsim::normalized_damerau_levenshtein(unknown, word);
            (slip.max(strsim::jaro_winkler(unknown, word) - 0.1), word)
        })
        .filter(|(likeness, _)| *likeness > 0.65)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_nearest_word() {
        let message = "unknown field `enforced`, expected one of `enforce`, `state_dir`, `pin_dir`";
        assert_eq!(did_you_mean(message).unwrap(), "did you mean `enforce`?");
        let message = "unknown field `zzz`, expected `enforce`";
        assert_eq!(did_you_mean(message), None);
    }

    #[test]
    fn says_bounds_instead_of_types() {
        assert_eq!(
            rephrase("invalid value: integer `-1`, expected u32", "-1"),
            "invalid value: integer `-1`; it must be a whole number between 0 and 4294967295"
        );
        assert_eq!(
            rephrase("invalid IP address syntax", "\"10.0.0.0/33\""),
            "`10.0.0.0/33`: invalid IP address syntax"
        );
    }
}
