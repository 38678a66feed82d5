//! `ratelimiter limits`: limits of clients and segments, one by one or from a file.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use http::Method;

use super::change::{self, ChangeArgs};
use super::client::{Call, Client, ConnectionArgs};
use super::clients::{current, is_stored};
use super::exit::{Exit, Failure, Outcome};
use super::limit_text::{
    algorithm_word, mode_word, parse_algorithm, parse_burst, parse_consistency, parse_mode,
    parse_on_store_loss, parse_unit, rate_text, unit_of, unit_word,
};
use super::lists::origin;
use super::output::{Cell, OutputArgs, Style, Table, Tint};
use super::policy_file;
use super::{clients, pages, segments};
use crate::admin::LimitPut;
use crate::admin::views::{self, ClientView, LimitRow, Page, SegmentView};
use crate::policy::model::{
    Algorithm, Consistency, DEFAULT_LIMIT, LimitSpec, Mode, OnStoreLoss, Unit,
};
use crate::policy::rate::{Rate, show_count};

/// What to do with limits.
#[derive(Clone, Debug, Subcommand)]
pub enum LimitsCommand {
    /// Show every limit of every segment and client
    List(ListArgs),
    /// Show the limits that apply to a client or segment
    Get(GetArgs),
    /// Set one limit of a client or segment
    Set(SetArgs),
    /// Remove one limit of a client or segment
    Rm(RmArgs),
    /// Show what a file would change
    Diff(DiffArgs),
    /// Make the agent's segments, clients and lists those of a file
    Apply(ApplyArgs),
}

/// Flags of `list`.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Only limits of owners whose name contains this
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Id of a client, or `segment:NAME`
    #[arg(value_name = "OWNER", value_parser = parse_owner)]
    owner: Owner,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `set`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
A rate is a count and a window: 500/s, 10k/min, 50/5m, 1M/d, 10MiB/s. Counts take k, M, G (Ki, Mi,
Gi), windows s, min, h, d or a multiple such as 90s. The burst is the rate's count unless given.

Examples:
  ratelimiter limits set customer-42 10k/min
  ratelimiter limits set customer-42 500/s --unit packets --burst 1000 --name packets
  ratelimiter limits set segment:free 100/min --try 60s
  ratelimiter limits set customer-42 10/s --dry-run")]
pub struct SetArgs {
    /// Id of a client, or `segment:NAME`
    #[arg(value_name = "OWNER", value_parser = parse_owner)]
    owner: Owner,
    /// The rate
    #[arg(value_name = "RATE")]
    rate: Rate,
    /// Units admitted at one instant
    #[arg(long, value_name = "N", value_parser = parse_burst)]
    burst: Option<u64>,
    /// What is counted: packets, bytes, connections or requests (default: what the limit is
    /// called, else requests)
    #[arg(long, value_name = "UNIT", value_parser = parse_unit)]
    unit: Option<Unit>,
    /// How requests are judged: token_bucket, sliding_log, sliding_window or fixed_window
    #[arg(long, value_name = "ALGORITHM", value_parser = parse_algorithm)]
    algorithm: Option<Algorithm>,
    /// off, shadow or enforce
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    mode: Option<Mode>,
    /// Over how many hosts it holds: exact, leased or local (requests)
    #[arg(long, value_name = "WORD", value_parser = parse_consistency)]
    consistency: Option<Consistency>,
    /// What counts while the shared store is away: hold, strict, local or deny
    #[arg(long, value_name = "WORD", value_parser = parse_on_store_loss)]
    on_store_loss: Option<OnStoreLoss>,
    /// Name of the limit
    #[arg(long, value_name = "NAME", default_value = DEFAULT_LIMIT)]
    name: String,
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
    /// Id of a client, or `segment:NAME`
    #[arg(value_name = "OWNER", value_parser = parse_owner)]
    owner: Owner,
    /// Name of the limit
    #[arg(long, value_name = "NAME", default_value = DEFAULT_LIMIT)]
    name: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `diff`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The file is written like the configuration's `segments`, `clients`, `allow` and `block`.
Exit code 0 if there is no difference, 3 if there is one.

Examples:
  ratelimiter limits diff limits.toml
  ratelimiter limits diff limits.toml --prune")]
pub struct DiffArgs {
    /// The file (TOML), `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Count what the file does not name as to be removed
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `apply`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Applying the same file twice changes nothing the second time.

Examples:
  ratelimiter limits apply limits.toml --dry-run
  ratelimiter limits apply limits.toml --prune --try 60s && ratelimiter confirm")]
pub struct ApplyArgs {
    /// The file (TOML), `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Remove what the file does not name
    #[arg(long)]
    prune: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Whose limit it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// A client's.
    Client(String),
    /// A segment's.
    Segment(String),
}

/// Parses `segment:NAME`, `client:ID` (for ids that begin with `segment:`) or a client id.
fn parse_owner(text: &str) -> Result<Owner, String> {
    let (owner, name) = match text.split_once(':') {
        Some(("segment", name)) => (Owner::Segment(name.to_owned()), name),
        Some(("client", id)) => (Owner::Client(id.to_owned()), id),
        _ => (Owner::Client(text.to_owned()), text),
    };
    if name.is_empty() {
        return Err("the name is empty; write a client id or `segment:NAME`".to_owned());
    }
    Ok(owner)
}

/// Runs `limits`.
pub async fn run(command: LimitsCommand) -> Outcome {
    match command {
        LimitsCommand::List(args) => {
            let client = args.connection.client()?;
            let page: Page<LimitRow> =
                pages::read(&client, "/v1/limits", args.search.as_deref(), 0).await?;
            args.output
                .show(&page, |page, style| limits_table(&page.items, style))?;
            Ok(Exit::Ok)
        }
        LimitsCommand::Get(args) => {
            let client = args.connection.client()?;
            let rows = rows_of(&client, &args.owner).await?;
            args.output
                .show(&rows, |rows, style| limits_table(rows, style))?;
            Ok(Exit::Ok)
        }
        LimitsCommand::Set(args) => set(args).await,
        LimitsCommand::Rm(args) => {
            let client = args.connection.client()?;
            let call = match &args.owner {
                Owner::Client(id) => {
                    Call::new(Method::DELETE, format!("{}/limit", clients::path(id)))
                        .query("name", args.name.as_str())
                }
                Owner::Segment(name) => {
                    edit_segment(&client, name, |limits| {
                        limits.remove(&args.name).map(drop).ok_or_else(|| {
                            Failure::new(format!("segment `{name}` has no limit `{}`", args.name))
                        })
                    })
                    .await?
                }
            };
            change::make(&client, call, &args.change, &args.output).await
        }
        LimitsCommand::Diff(args) => {
            let client = args.connection.client()?;
            policy_file::diff(&client, &args.file, args.prune, &args.output).await
        }
        LimitsCommand::Apply(args) => {
            let client = args.connection.client()?;
            policy_file::apply(&client, &args.file, args.prune, &args.change, &args.output).await
        }
    }
}

async fn set(args: SetArgs) -> Outcome {
    let client = args.connection.client()?;
    let spec = spec(&args)?;
    let call = match &args.owner {
        Owner::Client(id) => Call::new(Method::PUT, format!("{}/limit", clients::path(id)))
            .query("name", args.name.as_str())
            .json(&LimitPut {
                rate_limit: spec.rate_limit,
                time_window: spec.time_window,
                burst: spec.burst,
                unit: spec.unit,
                algorithm: spec.algorithm,
                mode: spec.mode,
                consistency: spec.consistency,
                on_store_loss: spec.on_store_loss,
                segment: None,
            })?,
        Owner::Segment(name) => {
            edit_segment(&client, name, |limits| {
                limits.insert(args.name.clone(), spec);
                Ok(())
            })
            .await?
        }
    };
    change::make(&client, call, &args.change, &args.output).await
}

/// The limit the flags ask for.
fn spec(args: &SetArgs) -> Result<LimitSpec, Failure> {
    Ok(LimitSpec {
        rate_limit: args.rate.count,
        time_window: args.rate.window,
        burst: args.burst,
        unit: unit_of(args.rate, args.unit, &args.name).map_err(Failure::usage)?,
        algorithm: args.algorithm,
        mode: args.mode,
        consistency: args.consistency,
        on_store_loss: args.on_store_loss,
    })
}

/// The request that puts a segment back with other limits, if nobody changed it in between.
async fn edit_segment(
    client: &Client,
    name: &str,
    edit: impl FnOnce(&mut crate::policy::model::Limits) -> Result<(), Failure>,
) -> Result<Call, Failure> {
    let path = segments::path(name);
    let (before, tag) = current::<SegmentView>(client, &path).await?;
    let view = before.ok_or_else(|| {
        Failure::new(format!("there is no segment `{name}`"))
            .with_help(format!("`ratelimiter segments set {name}` makes one"))
    })?;
    let tag = tag.filter(|_| is_stored(Some(view.defined_in)));
    let mut segment = view.segment;
    edit(&mut segment.limits)?;
    Call::new(Method::PUT, path).if_match(tag).json(&segment)
}

async fn rows_of(client: &Client, owner: &Owner) -> Result<Vec<LimitRow>, Failure> {
    match owner {
        Owner::Client(id) => {
            let (view, _) = current::<ClientView>(client, &clients::path(id)).await?;
            Ok(view
                .ok_or_else(|| {
                    Failure::new(format!("there is no client `{id}`")).with_help(
                        "an unknown client has the limits of segment `default`: `ratelimiter limits get segment:default`",
                    )
                })?
                .effective)
        }
        Owner::Segment(name) => {
            let page: Page<LimitRow> = pages::read(client, "/v1/limits", Some(name), 0).await?;
            let rows: Vec<LimitRow> = page
                .items
                .into_iter()
                .filter(|row| row.owner == views::Owner::Segment && row.owner_name == *name)
                .collect();
            if rows.is_empty() {
                // Tells a segment without limits of its own from one that does not exist.
                client.get::<SegmentView>(&segments::path(name)).await?;
            }
            Ok(rows)
        }
    }
}

/// Limits as they apply, every default filled in.
pub fn limits_table(rows: &[LimitRow], style: Style) -> String {
    let mut table = Table::new(&[
        "OWNER",
        "LIMIT",
        ">RATE",
        "UNIT",
        ">BURST",
        "ALGORITHM",
        "MODE",
        "FROM",
    ]);
    for row in rows {
        let spec = LimitSpec {
            rate_limit: row.rate_limit,
            time_window: row.time_window,
            burst: Some(row.burst),
            unit: row.unit,
            algorithm: Some(row.algorithm),
            mode: Some(row.mode),
            consistency: None,
            on_store_loss: None,
        };
        table.row(vec![
            match row.owner {
                views::Owner::Client => row.owner_name.as_str().into(),
                views::Owner::Segment => format!("segment:{}", row.owner_name).into(),
            },
            row.name.as_str().into(),
            rate_text(&spec).into(),
            unit_word(row.unit).into(),
            show_count(row.burst).into(),
            algorithm_word(row.algorithm).into(),
            mode_cell(row.mode),
            origin(row.defined_in, false),
        ]);
    }
    table.render(style, "no limits")
}

/// A mode, tinted: shadow drops nothing, which surprises.
pub fn mode_cell(mode: Mode) -> Cell {
    let tint = match mode {
        Mode::Enforce => Tint::Green,
        Mode::Shadow => Tint::Yellow,
        Mode::Off => Tint::Dim,
    };
    Cell::new(mode_word(mode), tint)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::admin::views::DefinedIn;
    use crate::policy::units::Window;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        set: SetArgs,
    }

    fn asked(line: &str) -> Result<String, String> {
        let args = Line::try_parse_from(std::iter::once("set").chain(line.split(' ')))
            .map_err(|e| e.to_string())?
            .set;
        spec(&args)
            .map(|spec| crate::cli::limit_text::limit_text(&spec))
            .map_err(|failure| failure.message)
    }

    #[test]
    fn reads_a_limit_from_flags() {
        assert_eq!(asked("a 10k/min"), Ok("10k/min requests".to_owned()));
        assert_eq!(
            asked("a 500/s --unit packets --burst 1k --mode shadow"),
            Ok("500/s packets, burst 1k, shadow".to_owned())
        );
        assert_eq!(asked("a 5/s --name packets"), Ok("5/s packets".to_owned()));
        assert_eq!(asked("a 1MiB/s"), Ok("1MiB/s bytes".to_owned()));
        assert!(
            asked("a 1MiB/s --unit packets")
                .unwrap_err()
                .contains("rate in bytes")
        );
        assert!(asked("a 0/s").unwrap_err().contains("use a block"));
        assert!(asked("segment: 5/s").unwrap_err().contains("name is empty"));
    }

    #[test]
    fn owners_are_clients_unless_they_say_segment() {
        assert_eq!(parse_owner("alice"), Ok(Owner::Client("alice".to_owned())));
        assert_eq!(parse_owner("a:b"), Ok(Owner::Client("a:b".to_owned())));
        assert_eq!(
            parse_owner("segment:free"),
            Ok(Owner::Segment("free".to_owned()))
        );
        assert_eq!(
            parse_owner("client:segment:x"),
            Ok(Owner::Client("segment:x".to_owned()))
        );
    }

    #[test]
    fn shows_limits_in_a_table() {
        let row = LimitRow {
            owner: views::Owner::Segment,
            owner_name: "default".to_owned(),
            name: "packets".to_owned(),
            rate_limit: 1_000,
            time_window: Window::SECOND,
            burst: 2_000,
            unit: Unit::Packets,
            algorithm: Algorithm::TokenBucket,
            mode: Mode::Shadow,
            defined_in: DefinedIn::Default,
        };
        assert_eq!(
            limits_table(&[row], Style::PLAIN),
            "\
OWNER            LIMIT    RATE  UNIT     BURST  ALGORITHM     MODE    FROM
segment:default  packets  1k/s  packets     2k  token_bucket  shadow  default
"
        );
    }
}
