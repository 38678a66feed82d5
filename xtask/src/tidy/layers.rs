//! The architecture's invariants that can be read off the sources: who may know whom.
//! `ARCHITECTURE.md` says why each holds.
use super::{Findings, Source};

/// Below `directory`, no code names any of `paths`.
struct Ban {
    directory: &'static str,
    /// Files below it to which the ban does not apply.
    except: &'static [&'static str],
    paths: &'static [&'static str],
    why: &'static str,
}

const USERSPACE: &str = "ratelimiter-userspace/src/";

const IO: &[&str] = &["tokio::", "aya::", "redis::", "axum::", "redb::", "hyper::"];

const BANS: [Ban; 13] = [
    Ban {
        directory: "ratelimiter-userspace/src/policy/",
        except: &[],
        paths: IO,
        why: "policy is pure",
    },
    Ban {
        directory: "ratelimiter-userspace/src/control/",
        except: &[],
        paths: IO,
        why: "control is pure",
    },
    Ban {
        directory: "ratelimiter-userspace/src/config/",
        except: &[],
        paths: IO,
        why: "config is pure",
    },
    Ban {
        directory: "ratelimiter-userspace/src/sync/",
        except: &[],
        paths: IO,
        why: "sync is pure",
    },
    Ban {
        directory: "ratelimiter-userspace/src/dataplane/",
        except: &[],
        paths: &[
            "crate::store",
            "crate::http",
            "crate::limiter",
            "crate::admin",
        ],
        why: "dataplane, store and http do not know each other",
    },
    Ban {
        directory: "ratelimiter-userspace/src/store/",
        except: &[],
        paths: &["crate::dataplane", "crate::http", "crate::admin"],
        why: "dataplane, store and http do not know each other",
    },
    Ban {
        directory: "ratelimiter-userspace/src/http/",
        except: &[],
        paths: &["crate::dataplane", "crate::store"],
        why: "dataplane, store and http do not know each other",
    },
    Ban {
        directory: USERSPACE,
        except: &[
            "ratelimiter-userspace/src/agent/",
            "ratelimiter-userspace/src/cli/",
            "ratelimiter-userspace/src/main.rs",
            "ratelimiter-userspace/src/lib.rs",
        ],
        paths: &["crate::agent"],
        why: "only the command line starts the agent; nothing else knows it",
    },
    Ban {
        directory: USERSPACE,
        except: &["ratelimiter-userspace/src/dataplane/"],
        paths: &["aya::"],
        why: "only dataplane talks to the kernel",
    },
    Ban {
        directory: USERSPACE,
        except: &[
            "ratelimiter-userspace/src/store/",
            "ratelimiter-userspace/src/redis/",
        ],
        paths: &["redis::", "redb::"],
        why: "only store and redis talk to a database",
    },
    Ban {
        directory: USERSPACE,
        except: &[
            "ratelimiter-userspace/src/http/",
            "ratelimiter-userspace/src/agent/",
        ],
        paths: &["axum::"],
        why: "only http speaks HTTP to clients",
    },
    Ban {
        directory: "ratelimiter-common/src/",
        except: &[],
        paths: &[
            "std::time",
            "core::time",
            "Instant",
            "SystemTime",
            "bpf_ktime",
            "aya_ebpf",
        ],
        why: "ratelimiter-common never reads a clock; time is an argument",
    },
    Ban {
        directory: "ratelimiter-ebpf/src/",
        except: &[],
        paths: &["std::", "alloc::"],
        why: "the kernel program is no_std",
    },
];

pub(super) fn check(source: &Source, findings: &mut Findings) {
    let path = source.path.as_str();
    for ban in &BANS {
        if !path.starts_with(ban.directory)
            || ban.except.iter().any(|except| path.starts_with(except))
        {
            continue;
        }
        for (number, code) in product_code(&source.text) {
            for banned in ban.paths {
                if names(code, banned) {
                    findings.error(format!("{path}:{number}: names `{banned}`: {}", ban.why));
                }
            }
        }
    }
}

/// Lines of code with their numbers, without comments, up to the unit tests at the end of the file.
fn product_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or(line)))
}

/// Whether `code` contains `path` where an identifier or path begins, outside a string.
fn names(code: &str, path: &str) -> bool {
    code.match_indices(path).any(|(at, _)| {
        let head = code.get(..at).unwrap_or("");
        let before = head.chars().next_back();
        let in_string = head.matches('"').count() % 2 == 1;
        let inside = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
        !inside && !in_string
    })
}

/// The shared crate depends on nothing.
pub(super) fn check_common_manifest(sources: &[Source], findings: &mut Findings) {
    const MANIFEST: &str = "ratelimiter-common/Cargo.toml";
    let Some(manifest) = sources.iter().find(|source| source.path == MANIFEST) else {
        findings.error(format!("{MANIFEST}: there is no such file"));
        return;
    };
    let mut inside = false;
    for line in manifest.text.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line.starts_with("[dependencies");
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            findings.error(format!(
                "{MANIFEST}: depends on `{line}`; it depends on nothing, ever"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Findings, Source, check, check_common_manifest};

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn errors(path: &str, text: &str) -> usize {
        let mut findings = Findings::default();
        check(&source(path, text), &mut findings);
        findings.errors.len()
    }

    #[test]
    fn keeps_the_pure_modules_pure() {
        assert_eq!(
            errors(
                "ratelimiter-userspace/src/policy/plan.rs",
                "use tokio::sync;"
            ),
            1
        );
        assert_eq!(
            errors(
                "ratelimiter-userspace/src/policy/plan.rs",
                "// use tokio::sync;"
            ),
            0
        );
        assert_eq!(
            errors("ratelimiter-userspace/src/agent/mod.rs", "use tokio::sync;"),
            0
        );
    }

    #[test]
    fn reads_paths_from_their_beginning() {
        let file = "ratelimiter-userspace/src/policy/plan.rs";
        assert_eq!(errors(file, "use other_tokio::sync;"), 0);
        assert_eq!(errors(file, "let text = \"tokio::sync\";"), 0);
        assert_eq!(errors(file, "let x = tokio::spawn(y);"), 1);
    }

    #[test]
    fn keeps_neighbours_apart() {
        assert_eq!(
            errors(
                "ratelimiter-userspace/src/http/a.rs",
                "use crate::store::Store;"
            ),
            1
        );
        assert_eq!(
            errors(
                "ratelimiter-userspace/src/agent/a.rs",
                "use crate::store::Store;"
            ),
            0
        );
        assert_eq!(
            errors(
                "ratelimiter-userspace/src/metrics/mod.rs",
                "use crate::agent::A;"
            ),
            1
        );
    }

    #[test]
    fn keeps_clocks_out_of_the_shared_crate() {
        assert_eq!(
            errors(
                "ratelimiter-common/src/gcra.rs",
                "use core::time::Duration;"
            ),
            1
        );
    }

    #[test]
    fn lets_the_shared_crate_depend_on_nothing() {
        let manifest = |text| [source("ratelimiter-common/Cargo.toml", text)];
        let mut findings = Findings::default();
        let dev = "[dependencies]\n# none\n\n[dev-dependencies]\nproptest = 1\n";
        check_common_manifest(&manifest(dev), &mut findings);
        assert!(findings.errors.is_empty());
        check_common_manifest(&manifest("[dependencies]\nlibm = 1\n"), &mut findings);
        assert_eq!(findings.errors.len(), 1);
    }
}
