//! `ratelimiter clients`: who is limited.

use clap::{Args, Subcommand};
use http::{Method, StatusCode};
use ipnet::IpNet;

use super::change::{self, ChangeArgs};
use super::client::{Call, Client, ConnectionArgs, segment};
use super::exit::{Exit, Failure, Outcome};
use super::limit_text::{LIMIT_HELP, NamedLimit, mode_word, parse_limit, parse_mode};
use super::limits::limits_table;
use super::lists::{origin, parse_prefix};
use super::output::{Facts, OutputArgs, Style, Table, Tint};
use super::pages;
use crate::admin::views::{ClientView, DefinedIn, Page};
use crate::policy::model::{self, DEFAULT_SEGMENT, Mode};

/// What to do with clients.
#[derive(Clone, Debug, Subcommand)]
pub enum ClientsCommand {
    /// Show clients
    List(ListArgs),
    /// Show one client and the limits that apply to it
    Get(GetArgs),
    /// Add a client, or change what is named of it
    Set(SetArgs),
    /// Remove a client; it is limited by the default segment then
    Rm(RmArgs),
}

/// Flags of `list`.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Only clients whose id, segment or sources contain this
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    /// Number of clients shown; 0 for all
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `get`.
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    id: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `set`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
What is not named stays as it is; --replace starts from nothing. A client with sources is limited
in the kernel: addresses (/32 to /28, IPv6 /64 to /60) have a bucket each, wider prefixes share
one, unless --one-bucket says otherwise.

Examples:
  ratelimiter clients set customer-42 --segment premium
  ratelimiter clients set customer-42 --source 192.0.2.7 --limit packets=500/s,burst=1000
  ratelimiter clients set customer-42 --limit 10k/min --limit daily=1M/d
  ratelimiter clients set customer-42 --mode shadow --try 60s")]
pub struct SetArgs {
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    id: String,
    /// Its segment
    #[arg(long, value_name = "NAME")]
    segment: Option<String>,
    /// Mode of its limits that name none: off, shadow or enforce
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    mode: Option<Mode>,
    /// Address or prefix it sends from; repeat for several. Replaces those it had
    #[arg(long = "source", value_name = "CIDR", value_parser = parse_prefix)]
    sources: Vec<IpNet>,
    /// Whether all its sources share one bucket
    #[arg(long, value_name = "BOOL")]
    one_bucket: Option<bool>,
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
    /// Id of the client
    #[arg(value_name = "CLIENT")]
    id: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs `clients`.
pub async fn run(command: ClientsCommand) -> Outcome {
    match command {
        ClientsCommand::List(args) => {
            let client = args.connection.client()?;
            let page: Page<ClientView> =
                pages::read(&client, "/v1/clients", args.search.as_deref(), args.limit).await?;
            args.output.show(&page, table)?;
            Ok(Exit::Ok)
        }
        ClientsCommand::Get(args) => {
            let client = args.connection.client()?;
            let view: ClientView = client.get(&path(&args.id)).await?;
            args.output.show(&view, |view, style| {
                one(view, style, crate::clock::unix_ms())
            })?;
            Ok(Exit::Ok)
        }
        ClientsCommand::Set(args) => set(args).await,
        ClientsCommand::Rm(args) => {
            let client = args.connection.client()?;
            let call = Call::new(Method::DELETE, path(&args.id));
            change::make(&client, call, &args.change, &args.output).await
        }
    }
}

/// The client's path.
pub fn path(id: &str) -> String {
    format!("/v1/clients/{}", segment(id))
}

async fn set(args: SetArgs) -> Outcome {
    let client = args.connection.client()?;
    let path = path(&args.id);
    let (before, tag) = if args.replace {
        (None, None)
    } else {
        current::<ClientView>(&client, &path).await?
    };
    let tag = tag.filter(|_| is_stored(before.as_ref().map(|view| view.defined_in)));
    let after = merged(before.map(|view| view.client).unwrap_or_default(), &args);
    let call = Call::new(Method::PUT, path).if_match(tag).json(&after)?;
    change::make(&client, call, &args.change, &args.output).await
}

/// The object at `path` with its tag, so that nobody's change in between is lost; nothing if it
/// does not exist yet.
pub async fn current<T: serde::de::DeserializeOwned>(
    client: &Client,
    path: &str,
) -> Result<(Option<T>, Option<String>), Failure> {
    let answer = client.send_any(Call::new(Method::GET, path)).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok((None, None));
    }
    let answer = client.accept(answer)?;
    Ok((Some(answer.json()?), answer.etag()))
}

/// Whether an object's tag is that of something stored: a default of the product has none to match.
pub fn is_stored(defined_in: Option<DefinedIn>) -> bool {
    defined_in != Some(DefinedIn::Default)
}

/// The client with what the flags name put in.
fn merged(mut client: model::Client, args: &SetArgs) -> model::Client {
    if args.segment.is_some() {
        client.segment.clone_from(&args.segment);
    }
    if args.mode.is_some() {
        client.mode = args.mode;
    }
    if !args.sources.is_empty() {
        client.sources.clone_from(&args.sources);
    }
    if args.one_bucket.is_some() {
        client.one_bucket = args.one_bucket;
    }
    for limit in &args.limits {
        client.limits.insert(limit.name.clone(), limit.spec.clone());
    }
    client
}

fn table(page: &Page<ClientView>, style: Style) -> String {
    let mut table = Table::new(&["CLIENT", "SEGMENT", "SOURCES", "OWN LIMITS", "MODE", "FROM"]);
    for view in &page.items {
        let limits: Vec<&str> = view.client.limits.keys().map(String::as_str).collect();
        table.row(vec![
            view.id.as_str().into(),
            view.client
                .segment
                .as_deref()
                .unwrap_or(DEFAULT_SEGMENT)
                .into(),
            sources_text(&view.client.sources).into(),
            if limits.is_empty() {
                "-".into()
            } else {
                limits.join(", ").into()
            },
            view.client.mode.map_or("-", mode_word).into(),
            origin(view.defined_in, view.pending.is_some()),
        ]);
    }
    let mut text = table.render(
        style,
        "no clients: everybody is limited by segment `default`",
    );
    text.push_str(&pages::left_out(page, "`-n 0`"));
    text
}

/// The first prefixes, and how many more there are.
pub fn sources_text(sources: &[IpNet]) -> String {
    let shown: Vec<String> = sources.iter().take(2).map(ToString::to_string).collect();
    match sources.len() {
        0 => "-".to_owned(),
        1 | 2 => shown.join(", "),
        many => format!("{}, {} more", shown.join(", "), many - 2),
    }
}

fn one(view: &ClientView, style: Style, now_unix_ms: u64) -> String {
    let mut facts = Facts::default();
    facts.add("client", &view.id);
    facts.add(
        "segment",
        view.client.segment.as_deref().unwrap_or(DEFAULT_SEGMENT),
    );
    if let Some(mode) = view.client.mode {
        facts.add("mode", mode_word(mode));
    }
    let sources: Vec<String> = view
        .client
        .sources
        .iter()
        .map(ToString::to_string)
        .collect();
    if sources.is_empty() {
        facts.add(
            "sources",
            "none: its packets are limited as those of anybody",
        );
    } else {
        facts.add("sources", sources.join(", "));
    }
    if let Some(one_bucket) = view.client.one_bucket {
        facts.add(
            "buckets",
            if one_bucket {
                "one for all sources"
            } else {
                "one per source"
            },
        );
    }
    if let Some(pending) = &view.pending {
        facts.add_tinted(
            "change",
            change::pending_text(pending, now_unix_ms),
            Tint::Yellow,
        );
    }
    format!(
        "{}\n{}",
        facts.render(style),
        limits_table(&view.effective, style)
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::limit_text::limit_text;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        set: SetArgs,
    }

    fn args(line: &str) -> SetArgs {
        Line::try_parse_from(std::iter::once("set").chain(line.split(' ')))
            .map(|line| line.set)
            .unwrap()
    }

    #[test]
    fn leaves_what_is_not_named() {
        let first = merged(
            model::Client::default(),
            &args("alice --segment free --source 192.0.2.1 --limit 5/s --limit packets=1k/s"),
        );
        let second = merged(
            first.clone(),
            &args("alice --mode shadow --limit 10/s,burst=3"),
        );
        assert_eq!(second.segment.as_deref(), Some("free"));
        assert_eq!(second.mode, Some(Mode::Shadow));
        assert_eq!(second.sources, first.sources);
        assert_eq!(
            limit_text(&second.limits["default"]),
            "10/s requests, burst 3"
        );
        assert_eq!(limit_text(&second.limits["packets"]), "1k/s packets");
    }

    #[test]
    fn shows_clients_in_a_table() {
        let mut view = ClientView {
            id: "alice".to_owned(),
            client: merged(
                model::Client::default(),
                &args("alice --source 192.0.2.1 --source 192.0.2.2 --source 192.0.2.3 --limit 5/s"),
            ),
            ..ClientView::default()
        };
        let page = Page {
            items: vec![view.clone()],
            total: 1,
            next: None,
        };
        assert_eq!(
            table(&page, Style::PLAIN),
            "\
CLIENT  SEGMENT  SOURCES                             OWN LIMITS  MODE  FROM
alice   default  192.0.2.1/32, 192.0.2.2/32, 1 more  default     -     api
"
        );
        let page = Page {
            next: Some("alice".to_owned()),
            total: 7,
            ..page
        };
        assert!(table(&page, Style::PLAIN).ends_with("\n1 of 7; `-n 0` shows more\n"));
        view.client.sources.clear();
        assert!(one(&view, Style::PLAIN, 0).contains("limited as those of anybody"));
    }
}
