//! `ratelimiter segments`: classes of clients.

use clap::{Args, Subcommand};
use http::Method;
use ipnet::IpNet;

use super::change::{self, ChangeArgs};
use super::client::{Call, ConnectionArgs, segment};
use super::clients::{current, is_stored, sources_text};
use super::exit::{Exit, Outcome};
use super::limit_text::{LIMIT_HELP, NamedLimit, limit_text, mode_word, parse_limit, parse_mode};
use super::lists::{origin, parse_prefix};
use super::output::{Facts, OutputArgs, Style, Table, Tint};
use super::pages;
use crate::admin::views::{Page, SegmentView};
use crate::policy::model::{Mode, Segment};

/// What to do with segments.
#[derive(Clone, Debug, Subcommand)]
pub enum SegmentsCommand {
    /// Show segments
    List(ListArgs),
    /// Show one segment
    Get(GetArgs),
    /// Add a segment, or change what is named of it
    Set(SetArgs),
    /// Remove a segment that no client names
    Rm(RmArgs),
}

/// Flags of `list`.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Name of the segment
    #[arg(value_name = "SEGMENT")]
    name: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `set`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
What is not named stays as it is; --replace starts from nothing. The segment `default` holds
everybody who is in no other, unknown sources included.

Examples:
  ratelimiter segments set default --limit packets=2k/s,burst=4k
  ratelimiter segments set premium --limit packets=10k/s --limit 1k/min --weight 3
  ratelimiter segments set office --source 198.51.100.0/22 --mode shadow")]
pub struct SetArgs {
    /// Name of the segment: a-z, 0-9, `-` and `_`
    #[arg(value_name = "SEGMENT")]
    name: String,
    /// Mode of its limits that name none: off, shadow or enforce
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    mode: Option<Mode>,
    /// Its share in a shortage, 1 to 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    weight: Option<u32>,
    /// What its clients use
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Refusals in a row after which the address a client's checks name is blocked for a while
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    escalate_after: Option<u32>,
    /// Wide prefix whose sources belong to it; repeat for several. Replaces those it had
    #[arg(long = "source", value_name = "CIDR", value_parser = parse_prefix)]
    sources: Vec<IpNet>,
    /// A limit to add or change; repeat for several
    #[arg(long = "limit", value_name = LIMIT_HELP, value_parser = parse_limit)]
    limits: Vec<NamedLimit>,
    /// Forget everything that is not named here
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `rm`.
#[derive(Clone, Debug, Args)]
pub struct RmArgs {
    /// Name of the segment
    #[arg(value_name = "SEGMENT")]
    name: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs `segments`.
pub async fn run(command: SegmentsCommand) -> Outcome {
    match command {
        SegmentsCommand::List(args) => {
            let client = args.connection.client()?;
            let page: Page<SegmentView> = pages::read(&client, "/v1/segments", None, 0).await?;
            args.output.show(&page, table)?;
            Ok(Exit::Ok)
        }
        SegmentsCommand::Get(args) => {
            let client = args.connection.client()?;
            let view: SegmentView = client.get(&path(&args.name)).await?;
            args.output.show(&view, |view, style| {
                one(view, style, crate::clock::unix_ms())
            })?;
            Ok(Exit::Ok)
        }
        SegmentsCommand::Set(args) => set(args).await,
        SegmentsCommand::Rm(args) => {
            let client = args.connection.client()?;
            let call = Call::new(Method::DELETE, path(&args.name));
            change::make(&client, call, &args.change, &args.output).await
        }
    }
}

/// The segment's path.
pub fn path(name: &str) -> String {
    format!("/v1/segments/{}", segment(name))
}

async fn set(args: SetArgs) -> Outcome {
    let client = args.connection.client()?;
    let path = path(&args.name);
    let (before, tag) = if args.replace {
        (None, None)
    } else {
        current::<SegmentView>(&client, &path).await?
    };
    let tag = tag.filter(|_| is_stored(before.as_ref().map(|view| view.defined_in)));
    let after = merged(before.map(|view| view.segment).unwrap_or_default(), &args);
    let call = Call::new(Method::PUT, path).if_match(tag).json(&after)?;
    change::make(&client, call, &args.change, &args.output).await
}

/// The segment with what the flags name put in.
fn merged(mut segment: Segment, args: &SetArgs) -> Segment {
    if args.mode.is_some() {
        segment.mode = args.mode;
    }
    if args.weight.is_some() {
        segment.weight = args.weight;
    }
    if args.backend.is_some() {
        segment.backend.clone_from(&args.backend);
    }
    if args.escalate_after.is_some() {
        segment.escalate_after = args.escalate_after;
    }
    if !args.sources.is_empty() {
        segment.sources.clone_from(&args.sources);
    }
    for limit in &args.limits {
        segment
            .limits
            .insert(limit.name.clone(), limit.spec.clone());
    }
    segment
}

fn table(page: &Page<SegmentView>, style: Style) -> String {
    let mut table = Table::new(&["SEGMENT", ">CLIENTS", "LIMITS", "SOURCES", "MODE", "FROM"]);
    for view in &page.items {
        let limits: Vec<String> = view.segment.limits.values().map(limit_text).collect();
        table.row(vec![
            view.name.as_str().into(),
            view.clients.to_string().into(),
            if limits.is_empty() {
                "those of `default`".into()
            } else {
                limits.join("; ").into()
            },
            sources_text(&view.segment.sources).into(),
            view.segment.mode.map_or("-", mode_word).into(),
            origin(view.defined_in, view.pending.is_some()),
        ]);
    }
    table.render(style, "no segments")
}

fn one(view: &SegmentView, style: Style, now_unix_ms: u64) -> String {
    let mut facts = Facts::default();
    facts.add("segment", &view.name);
    facts.add("clients", view.clients.to_string());
    if let Some(mode) = view.segment.mode {
        facts.add("mode", mode_word(mode));
    }
    facts.add("weight", view.segment.weight.unwrap_or(1).to_string());
    facts.add(
        "backend",
        view.segment.backend.as_deref().unwrap_or("default"),
    );
    if let Some(after) = view.segment.escalate_after {
        facts.add("escalates", format!("after {after} refusals in a row"));
    }
    let sources: Vec<String> = view
        .segment
        .sources
        .iter()
        .map(ToString::to_string)
        .collect();
    if !sources.is_empty() {
        facts.add("sources", sources.join(", "));
    }
    for (name, spec) in &view.segment.limits {
        facts.add(&format!("limit {name}"), limit_text(spec));
    }
    if view.segment.limits.is_empty() {
        facts.add("limits", "those of segment `default`");
    }
    if let Some(pending) = &view.pending {
        facts.add_tinted(
            "change",
            change::pending_text(pending, now_unix_ms),
            Tint::Yellow,
        );
    }
    facts.render(style)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::Limits;

    fn view() -> SegmentView {
        let limit = parse_limit("packets=2k/s,burst=4k").unwrap();
        SegmentView {
            name: "premium".to_owned(),
            segment: Segment {
                limits: Limits::from([(limit.name, limit.spec)]),
                sources: vec!["198.51.100.0/22".parse().unwrap()],
                ..Segment::default()
            },
            clients: 3,
            ..SegmentView::default()
        }
    }

    #[test]
    fn shows_segments_in_a_table() {
        let page = Page {
            items: vec![view()],
            total: 1,
            next: None,
        };
        assert_eq!(
            table(&page, Style::PLAIN),
            "\
SEGMENT  CLIENTS  LIMITS                  SOURCES          MODE  FROM
premium        3  2k/s packets, burst 4k  198.51.100.0/22  -     api
"
        );
    }

    #[test]
    fn shows_one_segment_with_its_defaults() {
        assert_eq!(
            one(&view(), Style::PLAIN, 0),
            "\
segment        premium
clients        3
weight         1
backend        default
sources        198.51.100.0/22
limit packets  2k/s packets, burst 4k
"
        );
    }
}
