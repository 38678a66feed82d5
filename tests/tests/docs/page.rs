//! A part of a page that a test writes: between two marks, compared, or written when blessed.
use std::path::Path;

use tests::OrFail as _;

/// Fails unless the part `name` of `docs/<page>` is `text`. With `RATELIMITER_BLESS=1` it writes it.
#[track_caller]
pub(crate) fn hold(page: &str, name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs")
        .join(page);
    let begin = format!("<!-- {name}: written by tests/tests/docs.rs -->\n");
    let end = format!("<!-- end of {name} -->\n");
    let whole = std::fs::read_to_string(&path).or_fail("read a page");
    let (head, rest) = whole.split_once(&begin).or_fail("the first mark");
    let (written, tail) = rest.split_once(&end).or_fail("the second mark");
    if std::env::var_os("RATELIMITER_BLESS").is_some() {
        std::fs::write(&path, format!("{head}{begin}{text}{end}{tail}")).or_fail("write a page");
        return;
    }
    let different = written
        .lines()
        .zip(text.lines())
        .find(|(old, new)| old != new);
    assert!(
        written == text,
        "docs/{page} is no longer as the code is; first difference (written, real): \
         {different:?}; run `RATELIMITER_BLESS=1 cargo test -p tests --test docs` and look at what \
         it changes"
    );
}
