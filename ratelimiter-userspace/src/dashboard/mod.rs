//! The files of the page at `/`, embedded. Plain ES modules, one style sheet, no build step, nothing
//! from elsewhere. Knows no transport.
//!
//! `main.js` follows `GET /v1/events?snapshots=true` (`stream.js`) and hands each snapshot to the
//! parts of the page, one file each. Text from the agent becomes text nodes and nothing else
//! (`dom.js`): the page is served with a policy under which nothing else works.

/// A file, and what it is served as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Name below `/dashboard/`.
    pub name: &'static str,
    /// Media type.
    pub kind: &'static str,
    /// The file.
    pub text: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! file {
    ($name:literal, $kind:expr) => {
        File {
            name: $name,
            kind: $kind,
            text: include_str!($name),
        }
    };
}

/// The page itself.
pub static PAGE: File = file!("index.html", "text/html; charset=utf-8");

/// What the page loads.
pub static FILES: &[File] = &[
    file!("style.css", "text/css; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
    file!("main.js", SCRIPT),
    file!("stream.js", SCRIPT),
    file!("api.js", SCRIPT),
    file!("dom.js", SCRIPT),
    file!("format.js", SCRIPT),
    file!("chart.js", SCRIPT),
    file!("history.js", SCRIPT),
    file!("overview.js", SCRIPT),
    file!("sources.js", SCRIPT),
    file!("explain.js", SCRIPT),
    file!("pending.js", SCRIPT),
    file!("adaptive.js", SCRIPT),
    file!("machine.js", SCRIPT),
    file!("happened.js", SCRIPT),
];

/// The file of this name.
#[must_use]
pub fn file(name: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_is_named_is_there_and_every_file_is_named() {
        let texts = || FILES.iter().map(|file| file.text).chain([PAGE.text]);
        for file in FILES {
            let named = [
                format!("\"/dashboard/{}\"", file.name),
                format!("\"./{}\"", file.name),
            ];
            assert!(
                texts().any(|text| named.iter().any(|name| text.contains(name))),
                "nobody asks for {}",
                file.name
            );
        }
        for text in texts() {
            for rest in text.split("from \"./").skip(1) {
                let name = rest.split('"').next().unwrap();
                assert!(file(name).is_some(), "{name} is missing");
            }
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_text_stays_text() {
        for file in FILES.iter().chain([&PAGE]) {
            let addresses = file.text.matches("://").count();
            let namespace = file.text.matches("http://www.w3.org/2000/svg").count();
            assert_eq!(addresses, namespace, "{} names an address", file.name);
            for word in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=",
                "onclick=",
            ] {
                assert!(!file.text.contains(word), "{}: {word}", file.name);
            }
        }
    }
}
