//! What every change has: `--dry-run`, `--try`, and an answer that says what became of it.

use std::time::Duration;

use clap::Args;

use super::client::{Call, Client};
use super::diff;
use super::exit::{Exit, Failure, Outcome};
use super::limit_text::limit_text;
use super::output::{OutputArgs, Style, Tint, clean, remark, show_relative, show_seconds};
use super::pages;
use crate::admin::TRY_BOUNDS;
use crate::admin::views::{ChangeView, Changed, Difference, DryRun, Page, Pending, Status};
use crate::policy::model::LimitSpec;
use crate::policy::units::parse_duration_ns;

/// How often it is looked whether a trial has ended.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long an agent that does not answer is waited for beyond the deadline, in milliseconds.
const GRACE_MS: u64 = 10_000;
/// Most objects of a dry run shown one by one.
const MAX_SHOWN: usize = 50;

/// Flags of every command that changes what is enforced.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "How to change")]
pub struct ChangeArgs {
    /// Show what would change and what it would mean for the traffic of the last minute; change
    /// nothing
    #[arg(long)]
    dry_run: bool,
    /// Take the change back after this time unless `ratelimiter confirm` keeps it
    #[arg(long = "try", value_name = "DURATION", conflicts_with = "dry_run", value_parser = parse_try)]
    try_for: Option<Duration>,
    /// Stay until a change on trial is confirmed (exit code 0) or taken back (exit code 6)
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

impl ChangeArgs {
    /// Adds the flags to a request.
    pub fn apply(&self, call: Call) -> Call {
        let call = if self.dry_run {
            call.query("dry_run", "true")
        } else {
            call
        };
        call.query_opt(
            "try",
            self.try_for.map(|time| format!("{}s", time.as_secs())),
        )
    }

    /// With `--wait`, stays until every one of `done` that is on trial has ended.
    pub(super) async fn ends(&self, client: &Client, done: &[Changed]) -> Outcome {
        if !self.wait {
            return Ok(Exit::Ok);
        }
        let pending: Vec<&Pending> = done.iter().filter_map(|c| c.pending.as_ref()).collect();
        let Some(last_ms) = pending.iter().map(|p| p.confirm_by_unix_ms).max() else {
            return Ok(Exit::Ok);
        };
        loop {
            // An agent that is away for a while is asked again: the kernel keeps the deadline.
            match client.get::<Status>("/v1/status").await {
                Ok(status) => {
                    let goes_on =
                        |p: &&Pending| status.pending.iter().any(|now| now.revision == p.revision);
                    if !pending.iter().any(goes_on) {
                        break;
                    }
                }
                Err(failure) if crate::clock::unix_ms() > last_ms.saturating_add(GRACE_MS) => {
                    return Err(failure);
                }
                Err(_) => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let changes: Page<ChangeView> = pages::read(client, "/v1/changes", None, 1_000).await?;
        for trial in pending {
            if was_taken_back(&changes.items, trial) {
                return Err(Failure::new(format!(
                    "the change of `{}` (revision {}) was taken back",
                    clean(&trial.path),
                    trial.revision
                ))
                .with_exit(Exit::RolledBack));
            }
            remark(&format!("kept: `{}`", clean(&trial.path)));
        }
        Ok(Exit::Ok)
    }
}

/// Whether the audit log says that a trial ended by being taken back.
fn was_taken_back(changes: &[ChangeView], trial: &Pending) -> bool {
    let what = format!("roll back `{}` (revision {})", trial.path, trial.revision);
    changes.iter().any(|entry| entry.change.change.what == what)
}

/// Parses the time of a trial: whole seconds within the agent's bounds.
fn parse_try(text: &str) -> Result<Duration, String> {
    let time = Duration::from_nanos(parse_duration_ns(text)?);
    let (shortest, longest) = TRY_BOUNDS;
    if time.subsec_nanos() == 0 && (shortest..=longest).contains(&time) {
        Ok(time)
    } else {
        Err(format!(
            "`{text}` is out of range; it must be whole seconds between {}s and {}s",
            shortest.as_secs(),
            longest.as_secs()
        ))
    }
}

/// Makes one change and shows its answer.
pub async fn make(
    client: &Client,
    call: Call,
    change: &ChangeArgs,
    output: &OutputArgs,
) -> Outcome {
    let changed: Changed = client.send(change.apply(call)).await?.json()?;
    output.show(&changed, |changed, style| {
        render(changed, style, crate::clock::unix_ms())
    })?;
    change.ends(client, std::slice::from_ref(&changed)).await
}

/// Makes several changes, one request each, and shows their answers as a list. Stops at the first
/// that fails; the failure says what was done before.
pub async fn make_all(
    client: &Client,
    calls: Vec<Call>,
    change: &ChangeArgs,
    output: &OutputArgs,
) -> Outcome {
    let total = calls.len();
    let mut done: Vec<Changed> = Vec::new();
    let mut failed = None;
    for call in calls {
        match client
            .send(change.apply(call))
            .await
            .and_then(|answer| answer.json())
        {
            Ok(changed) => done.push(changed),
            Err(failure) => {
                failed = Some(failure);
                break;
            }
        }
    }
    if !done.is_empty() || failed.is_none() {
        output.show(&done, |done, style| render_all(done, style))?;
    }
    match failed {
        None => change.ends(client, &done).await,
        Some(failure) if total > 1 => Err(Failure {
            message: format!("{} ({} of {total} done)", failure.message, done.len()),
            ..failure
        }),
        Some(failure) => Err(failure),
    }
}

/// Answers one after the other.
pub fn render_all(done: &[Changed], style: Style) -> String {
    let now = crate::clock::unix_ms();
    done.iter()
        .map(|changed| render(changed, style, now))
        .collect()
}

/// What became of a change.
pub fn render(changed: &Changed, style: Style, now_unix_ms: u64) -> String {
    let what = clean(&changed.what);
    let mut text = if changed.dry_run && changed.changed {
        format!("dry run, nothing is changed: would {what}\n")
    } else if changed.dry_run {
        format!("dry run: {what} would change nothing\n")
    } else if changed.changed {
        format!("done: {what} (revision {})\n", changed.revision)
    } else {
        format!(
            "nothing to do: {what} changes nothing (revision {})\n",
            changed.revision
        )
    };
    if changed.dry_run {
        text.push_str(&differences(changed, style));
        if let Some(traffic) = &changed.traffic {
            text.push_str(&format!("  {}\n", traffic_text(traffic)));
        }
    }
    if let Some(pending) = &changed.pending {
        let line = pending_text(pending, now_unix_ms);
        text.push_str(&format!("  {}\n", style.paint(Tint::Yellow, &line)));
    }
    for warning in &changed.warnings {
        let line = format!("warning: {}", clean(warning));
        text.push_str(&format!("  {}\n", style.paint(Tint::Yellow, &line)));
    }
    text
}

/// That a change is on trial, and what to do.
pub fn pending_text(pending: &Pending, now_unix_ms: u64) -> String {
    if pending.confirm_by_unix_ms <= now_unix_ms {
        return format!(
            "on trial: `{}` is being taken back now",
            clean(&pending.path)
        );
    }
    format!(
        "on trial: `{}` takes itself back {} unless `ratelimiter confirm {}` keeps it",
        clean(&pending.path),
        show_relative(pending.confirm_by_unix_ms, now_unix_ms),
        pending.revision
    )
}

fn traffic_text(traffic: &DryRun) -> String {
    let observed = show_seconds(traffic.observed_s);
    if traffic.packets == 0 {
        return format!("in the last {observed} nobody it concerns sent anything");
    }
    format!(
        "of about {} packets it concerns in the last {observed}, it would have refused about {} ({:.1} %), from {} source{}",
        traffic.packets,
        traffic.would_refuse,
        traffic.would_refuse as f64 * 100.0 / traffic.packets as f64,
        traffic.sources,
        if traffic.sources == 1 { "" } else { "s" },
    )
}

fn differences(changed: &Changed, style: Style) -> String {
    let mut text = String::new();
    for difference in changed.differences.iter().take(MAX_SHOWN) {
        text.push_str(&one_difference(difference, style));
    }
    let shown = changed.differences.len().min(MAX_SHOWN) as u64;
    if changed.differences_total > shown {
        text.push_str(&format!(
            "  ... and {} more\n",
            changed.differences_total - shown
        ));
    }
    text
}

fn one_difference(difference: &Difference, style: Style) -> String {
    let (sign, tint) = match (difference.before.is_null(), difference.after.is_null()) {
        (true, _) => ("+", Tint::Green),
        (_, true) => ("-", Tint::Red),
        _ => ("~", Tint::Yellow),
    };
    let head = format!("{sign} {}", clean(&difference.path));
    let mut text = format!("  {}\n", style.paint(tint, &head));
    for field in diff::changes(&fields(&difference.before), &fields(&difference.after)) {
        let side = |side: Option<String>| side.map_or_else(|| "not set".to_owned(), |s| clean(&s));
        let line = match sign {
            "+" => side(field.after),
            "-" => side(field.before),
            _ => format!("{} -> {}", side(field.before), side(field.after)),
        };
        text.push_str(&format!("      {}: {line}\n", clean(&field.field)));
    }
    text
}

/// The fields of an object of the model as texts; limits in one line each.
fn fields(object: &serde_json::Value) -> diff::Fields {
    let mut fields = diff::Fields::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            ("limits", serde_json::Value::Object(limits)) => {
                for (limit, spec) in limits {
                    let spec_text = serde_json::from_value::<LimitSpec>(spec.clone())
                        .map_or_else(|_| spec.to_string(), |spec| limit_text(&spec));
                    fields.insert(format!("limits.{limit}"), spec_text);
                }
            }
            // Who set an entry is no part of what it does.
            ("by", _) => {}
            ("expires_unix_ms", _) => {
                fields.insert("ends".to_owned(), "by itself".to_owned());
            }
            (_, serde_json::Value::Array(items)) => {
                let items: Vec<String> = items.iter().map(plain).collect();
                fields.insert(name.clone(), items.join(", "));
            }
            _ => {
                fields.insert(name.clone(), plain(value));
            }
        }
    }
    fields
}

fn plain(value: &serde_json::Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed() -> Changed {
        Changed {
            revision: 12,
            changed: true,
            path: "clients/alice".to_owned(),
            what: "set limit `default` of client `alice`".to_owned(),
            ..Changed::default()
        }
    }

    #[test]
    fn says_what_was_done() {
        assert_eq!(
            render(&changed(), Style::PLAIN, 0),
            "done: set limit `default` of client `alice` (revision 12)\n"
        );
        let same = Changed {
            changed: false,
            ..changed()
        };
        assert_eq!(
            render(&same, Style::PLAIN, 0),
            "nothing to do: set limit `default` of client `alice` changes nothing (revision 12)\n"
        );
    }

    #[test]
    fn says_how_to_keep_a_trial() {
        let trial = Changed {
            pending: Some(Pending {
                revision: 12,
                path: "clients/alice".to_owned(),
                confirm_by_unix_ms: 61_000,
                ..Pending::default()
            }),
            warnings: vec!["the agent runs in shadow".to_owned()],
            ..changed()
        };
        assert_eq!(
            render(&trial, Style::PLAIN, 1_000),
            "done: set limit `default` of client `alice` (revision 12)\n  \
             on trial: `clients/alice` takes itself back in 1 min unless `ratelimiter confirm 12` keeps it\n  \
             warning: the agent runs in shadow\n"
        );
        assert!(render(&trial, Style::PLAIN, 61_000).contains("is being taken back now"));
    }

    #[test]
    fn dry_run_shows_fields_and_traffic() {
        let dry = Changed {
            dry_run: true,
            differences: vec![Difference {
                path: "clients/alice".to_owned(),
                before: serde_json::json!({"segment": "free", "limits": {"default": {"rate_limit": 5, "time_window": 1}}}),
                after: serde_json::json!({"segment": "free", "sources": ["192.0.2.1/32"], "limits": {"default": {"rate_limit": 10_000, "time_window": 60, "burst": 20_000}}}),
            }],
            differences_total: 3,
            traffic: Some(DryRun {
                observed_s: 60.0,
                packets: 1_000,
                would_refuse: 125,
                sources: 1,
            }),
            ..changed()
        };
        assert_eq!(
            render(&dry, Style::PLAIN, 0),
            "dry run, nothing is changed: would set limit `default` of client `alice`
  ~ clients/alice
      limits.default: 5/s requests -> 10k/min requests, burst 20k
      sources: not set -> 192.0.2.1/32
  ... and 2 more
  of about 1000 packets it concerns in the last 1 min, it would have refused about 125 (12.5 %), from 1 source
"
        );
    }

    #[test]
    fn the_audit_log_tells_how_a_trial_ended() {
        let trial = Pending {
            revision: 12,
            path: "clients/alice".to_owned(),
            ..Pending::default()
        };
        let entry = |what: &str| {
            let mut entry = ChangeView::default();
            what.clone_into(&mut entry.change.change.what);
            entry
        };
        let back = entry("roll back `clients/alice` (revision 12)");
        assert!(was_taken_back(&[entry("set client `bob`"), back], &trial));
        let other = entry("roll back `clients/alice` (revision 11)");
        assert!(!was_taken_back(&[other], &trial));
    }

    #[test]
    fn trials_have_bounds() {
        assert_eq!(parse_try("60s"), Ok(Duration::from_mins(1)));
        assert_eq!(parse_try("5m"), Ok(Duration::from_mins(5)));
        for text in ["0s", "1.5s", "2h"] {
            assert!(
                parse_try(text)
                    .unwrap_err()
                    .contains("between 1s and 3600s"),
                "{text}"
            );
        }
    }
}
