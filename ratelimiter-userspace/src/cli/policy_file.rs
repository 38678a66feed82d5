//! Segments, clients and lists in a file: compared with what the agent has, and applied as one
//! change.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use http::Method;
use ipnet::IpNet;
use serde::Deserialize;

use super::change::{self, ChangeArgs};
use super::client::{Call, Client};
use super::diff::{self as steps, Step};
use super::exit::{Exit, Failure, Outcome};
use super::output::OutputArgs;
use crate::admin::views::Changed;
use crate::config::MAX_FILE_BYTES;
use crate::config::settings::StaticPrefix;
use crate::policy::model::{Client as ClientModel, Document, ListEntry, Segment};

/// Path of everything configured at run time.
const DOCUMENT: &str = "/v1/document";

/// The part of a configuration file that `limits diff` and `limits apply` read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyFile {
    segments: BTreeMap<String, Segment>,
    clients: BTreeMap<String, ClientModel>,
    allow: Vec<StaticPrefix>,
    block: Vec<StaticPrefix>,
}

/// Shows what the file would change. [`Exit::Denied`] if that is anything.
pub async fn diff(client: &Client, file: &Path, prune: bool, output: &OutputArgs) -> Outcome {
    let file = read(file)?;
    let (current, _) = document(client).await?;
    let steps = steps::diff(&current, &target(&current, file, prune), true);
    output.show(&steps, |steps, style| {
        if steps.is_empty() {
            "no differences\n".to_owned()
        } else {
            steps::render(steps, style)
        }
    })?;
    Ok(if steps.is_empty() {
        Exit::Ok
    } else {
        Exit::Denied
    })
}

/// Makes the agent's document that of the file, in one change, if nobody changed it in between.
pub async fn apply(
    client: &Client,
    file: &Path,
    prune: bool,
    change: &ChangeArgs,
    output: &OutputArgs,
) -> Outcome {
    let file = read(file)?;
    let (current, tag) = document(client).await?;
    let target = target(&current, file, prune);
    let steps: Vec<Step> = steps::diff(&current, &target, true);
    let call = Call::new(Method::PUT, DOCUMENT)
        .if_match(tag)
        .json(&target)?;
    let changed: Changed = client.send(change.apply(call)).await?.json()?;
    output.show(&changed, |changed, style| {
        let answer = change::render(changed, style, crate::clock::unix_ms());
        if changed.dry_run {
            // The answer shows the differences itself.
            answer
        } else {
            steps::render(&steps, style) + &answer
        }
    })?;
    change.ends(client, std::slice::from_ref(&changed)).await
}

async fn document(client: &Client) -> Result<(Document, Option<String>), Failure> {
    let answer = client.send(Call::new(Method::GET, DOCUMENT)).await?;
    Ok((answer.json()?, answer.etag()))
}

/// Reads a file, or standard input for `-`.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let bound = MAX_FILE_BYTES as u64;
    let shown = path.display();
    let read = if path == Path::new("-") {
        std::io::stdin().take(bound + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(bound + 1).read_to_string(&mut text))
    };
    match read {
        Ok(bytes) if bytes as u64 > bound => Err(Failure::usage(format!(
            "`{shown}` is larger than {bound} bytes, the largest that is read"
        ))),
        Ok(_) => Ok(text),
        Err(e) => {
            let exit = if e.kind() == std::io::ErrorKind::PermissionDenied {
                Exit::Permission
            } else {
                Exit::Usage
            };
            Err(Failure::new(format!("`{shown}` cannot be read: {e}")).with_exit(exit))
        }
    }
}

fn read(path: &Path) -> Result<PolicyFile, Failure> {
    let text = read_text(path)?;
    toml::from_str(&text).map_err(|e| {
        Failure::usage(format!(
            "`{}` is not understood: {}",
            path.display(),
            e.to_string().trim_end()
        ))
        .with_help("only `segments`, `clients`, `allow` and `block` may be in it, written as in the configuration")
    })
}

/// What the agent should have: the file's objects over its own, or instead of its own if `prune`.
/// Entries that end by themselves stay, and so does what is known of an entry that is kept.
fn target(current: &Document, file: PolicyFile, prune: bool) -> Document {
    let mut target = current.clone();
    if prune {
        let default = crate::policy::model::DEFAULT_SEGMENT;
        target
            .segments
            .retain(|name, _| name == default || file.segments.contains_key(name));
        target.clients.clear();
    }
    target.segments.extend(file.segments);
    target.clients.extend(file.clients);
    put(&mut target.allow, file.allow, prune);
    put(&mut target.block, file.block, prune);
    target
}

fn put(list: &mut BTreeMap<IpNet, ListEntry>, file: Vec<StaticPrefix>, prune: bool) {
    if prune {
        list.retain(|prefix, entry| {
            entry.expires_unix_ms.is_some() || file.iter().any(|kept| kept.prefix == *prefix)
        });
    }
    for entry in file {
        let kept = list.entry(entry.prefix).or_default();
        if kept.reason != entry.reason || kept.expires_unix_ms.is_some() {
            *kept = ListEntry {
                reason: entry.reason,
                ..ListEntry::default()
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::Style;

    fn file(text: &str) -> PolicyFile {
        toml::from_str(text).unwrap()
    }

    const FILE: &str = r#"
block = [{ prefix = "203.0.113.0/24", reason = "scanner" }]
[segments.free.limits.default]
rate_limit = 100
time_window = "1m"
[clients.alice]
segment = "free"
sources = ["192.0.2.7/32"]
"#;

    #[test]
    fn applying_twice_changes_nothing_the_second_time() {
        let first = target(&Document::default(), file(FILE), true);
        assert_eq!(first.clients.len(), 1);
        assert_eq!(first.block.len(), 1);
        assert_eq!(target(&first, file(FILE), true), first);
        assert_eq!(
            steps::diff(&first, &target(&first, file(FILE), false), true),
            vec![]
        );
    }

    #[test]
    fn prunes_only_when_asked_and_never_what_ends_by_itself() {
        let mut current = target(&Document::default(), file(FILE), true);
        current
            .clients
            .insert("bob".to_owned(), ClientModel::default());
        current
            .segments
            .insert("default".to_owned(), Segment::default());
        let ending = ListEntry {
            expires_unix_ms: Some(5),
            ..ListEntry::default()
        };
        current
            .block
            .insert("198.51.100.1/32".parse().unwrap(), ending);
        current
            .block
            .insert("198.51.100.2/32".parse().unwrap(), ListEntry::default());

        let kept = target(&current, file(FILE), false);
        assert_eq!(kept, current);
        let pruned = target(&current, file(FILE), true);
        assert_eq!(
            steps::render(&steps::diff(&current, &pruned, true), Style::PLAIN),
            "- block 198.51.100.2/32\n- client bob\n"
        );
    }

    #[test]
    fn keeps_who_made_an_entry_that_stays() {
        let mut current = target(&Document::default(), file(FILE), true);
        let entry = current.block.values_mut().next().unwrap();
        entry.by = Some("local".to_owned());
        let again = target(&current, file(FILE), true);
        assert_eq!(
            again.block.values().next().unwrap().by.as_deref(),
            Some("local")
        );
    }

    #[test]
    fn says_where_a_file_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("limits.toml");
        std::fs::write(&path, "[clients.alice]\nsegmnt = \"free\"\n").unwrap();
        let failure = read(&path).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("line 2"), "{}", failure.message);
        assert!(failure.message.contains("segmnt"), "{}", failure.message);
        let failure = read(&folder.path().join("none.toml")).unwrap_err();
        assert!(
            failure.message.contains("cannot be read"),
            "{}",
            failure.message
        );
    }
}
