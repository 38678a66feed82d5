//! `ratelimiter changes`, `confirm` and `rollback`: who changed what, and what is on trial.

use clap::Args;

use http::Method;

use super::change;
use super::client::{Call, Client, ConnectionArgs};
use super::exit::{Exit, Failure, Outcome};
use super::output::{Cell, OutputArgs, Style, Table, Tint, clean, show_relative};
use super::pages;
use crate::admin::views::{ChangeView, Changed, Page};

/// Flags of `changes`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  ratelimiter changes
  ratelimiter changes -n 100 -o json")]
pub struct ChangesArgs {
    /// Number of changes shown, newest first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `confirm`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A change made with --try, or one the agent finds risky, takes itself back unless it is confirmed in
time; also if the agent is killed meanwhile. Exit code 6 if it has already been taken back.

Examples:
  ratelimiter limits set customer-42 10/s --try 60s
  ratelimiter confirm")]
pub struct ConfirmArgs {
    /// Number of the change (`ratelimiter changes` lists them). Default: all on trial
    #[arg(value_name = "CHANGE")]
    change: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `rollback`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  ratelimiter rollback          everything on trial
  ratelimiter rollback 17       one change")]
pub struct RollbackArgs {
    /// Number of the change (`ratelimiter changes` lists them). Default: all on trial
    #[arg(value_name = "CHANGE")]
    change: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Who the audit log names for a change that took itself back.
const ROLLBACK: &str = "rollback";

/// Runs `changes`.
pub async fn run(args: ChangesArgs) -> Outcome {
    let client = args.connection.client()?;
    let page: Page<ChangeView> =
        pages::read(&client, "/v1/changes", None, args.limit as usize).await?;
    args.output.show(&page, |page, style| {
        render(page, style, crate::clock::unix_ms())
    })?;
    Ok(Exit::Ok)
}

/// Runs `confirm`.
pub async fn confirm(args: ConfirmArgs) -> Outcome {
    let client = args.connection.client()?;
    match end(&client, "/v1/changes:confirm", args.change).await {
        Ok(changed) if changed.is_empty() => Err(too_late(&client, args.change, None).await),
        Ok(changed) => {
            args.output.show(&changed, |changed, _| kept(changed))?;
            Ok(Exit::Ok)
        }
        Err(failure) if failure.exit == Exit::Failed => {
            Err(too_late(&client, args.change, Some(failure)).await)
        }
        Err(failure) => Err(failure),
    }
}

/// Runs `rollback`.
pub async fn rollback(args: RollbackArgs) -> Outcome {
    let client = args.connection.client()?;
    let changed = end(&client, "/v1/changes:rollback", args.change).await?;
    args.output.show(&changed, |changed, style| {
        if changed.is_empty() {
            "nothing to do: no change is on trial\n".to_owned()
        } else {
            change::render_all(changed, style)
        }
    })?;
    Ok(Exit::Ok)
}

async fn end(client: &Client, path: &str, revision: Option<u64>) -> Result<Vec<Changed>, Failure> {
    let call = Call::new(Method::POST, path)
        .query_opt("revision", revision.map(|revision| revision.to_string()));
    client.send(call).await?.json()
}

fn kept(changed: &[Changed]) -> String {
    let mut text = String::new();
    for changed in changed {
        text += &format!(
            "kept: `{}` stays as it is now (revision {})\n",
            clean(&changed.path),
            changed.revision
        );
    }
    text
}

/// Why there was nothing to confirm: taken back already (exit code 6), or never on trial.
async fn too_late(client: &Client, revision: Option<u64>, failure: Option<Failure>) -> Failure {
    let nothing = failure.unwrap_or_else(|| {
        Failure::new("nothing to confirm: no change is on trial")
            .with_help("`ratelimiter changes` shows what was changed last")
    });
    let Ok(page) = pages::read::<ChangeView>(client, "/v1/changes", None, 100).await else {
        return nothing;
    };
    taken_back(&page.items, revision, crate::clock::unix_ms()).unwrap_or(nothing)
}

/// The failure that says that a trial has ended by itself, if the audit log (newest first) says so.
fn taken_back(changes: &[ChangeView], revision: Option<u64>, now_unix_ms: u64) -> Option<Failure> {
    let path = match revision {
        None => None,
        Some(revision) => {
            let found = changes.iter().find(|c| c.change.revision == revision)?;
            Some(&found.change.change.path)
        }
    };
    let back = match path {
        // The trial that ended last, and only if nothing was changed since.
        None => changes.first().filter(|c| c.change.change.by == ROLLBACK)?,
        Some(path) => changes
            .iter()
            .take_while(|c| Some(c.change.revision) > revision)
            .find(|c| c.change.change.by == ROLLBACK && c.change.change.path == *path)?,
    };
    let back = &back.change.change;
    Some(
        Failure::new(format!(
            "too late: the change of `{}` took itself back {}",
            clean(&back.path),
            show_relative(back.at_unix_ms, now_unix_ms)
        ))
        .with_exit(Exit::RolledBack)
        .with_help("make it again, with a longer --try or without it"),
    )
}

fn render(page: &Page<ChangeView>, style: Style, now_unix_ms: u64) -> String {
    let mut table = Table::new(&[">REVISION", ">WHEN", "BY", "WHAT", "STATE"]);
    for view in &page.items {
        let change = &view.change.change;
        let state = match change.confirm_by_unix_ms {
            Some(until) if view.pending => Cell::new(
                format!(
                    "on trial, takes itself back {}",
                    show_relative(until, now_unix_ms)
                ),
                Tint::Yellow,
            ),
            _ => "".into(),
        };
        table.row(vec![
            view.change.revision.to_string().into(),
            show_relative(change.at_unix_ms.min(now_unix_ms), now_unix_ms).into(),
            change.by.as_str().into(),
            change.what.as_str().into(),
            state,
        ]);
    }
    let mut text = table.render(style, "nothing has been changed yet");
    text.push_str(&pages::left_out(page, "`-n N`"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Change, NewChange};

    fn entry(revision: u64, by: &str, path: &str, pending: bool) -> ChangeView {
        ChangeView {
            change: Change {
                revision,
                change: NewChange {
                    at_unix_ms: 1_000 * revision,
                    by: by.to_owned(),
                    what: format!("set {path}"),
                    path: path.to_owned(),
                    confirm_by_unix_ms: pending.then_some(70_000),
                    ..NewChange::default()
                },
            },
            pending,
        }
    }

    #[test]
    fn shows_who_changed_what_and_what_is_on_trial() {
        let page = Page {
            items: vec![
                entry(9, "local", "clients/alice", true),
                entry(8, "config", "document", false),
            ],
            total: 2,
            next: None,
        };
        assert_eq!(
            render(&page, Style::PLAIN, 10_000),
            "\
REVISION     WHEN  BY      WHAT               STATE
       9  1 s ago  local   set clients/alice  on trial, takes itself back in 1 min
       8  2 s ago  config  set document
"
        );
    }

    #[test]
    fn says_what_was_kept() {
        let changed = Changed {
            revision: 3,
            path: "allow/192.0.2.1/32".to_owned(),
            ..Changed::default()
        };
        assert_eq!(
            kept(&[changed]),
            "kept: `allow/192.0.2.1/32` stays as it is now (revision 3)\n"
        );
    }

    #[test]
    fn a_trial_that_ended_is_exit_code_6() {
        let log = [
            entry(12, ROLLBACK, "clients/alice", false),
            entry(11, "local", "clients/bob", false),
            entry(10, "local", "clients/alice", false),
        ];
        let failure = taken_back(&log, Some(10), 15_000).unwrap();
        assert_eq!(failure.exit, Exit::RolledBack);
        assert_eq!(
            failure.message,
            "too late: the change of `clients/alice` took itself back 3 s ago"
        );
        assert!(taken_back(&log, None, 15_000).is_some());
        assert_eq!(taken_back(&log, Some(11), 15_000), None);
        assert_eq!(taken_back(&log, Some(99), 15_000), None);
        assert_eq!(taken_back(&log[1..], None, 15_000), None);
    }
}
