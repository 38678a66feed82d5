//! `ratelimiter allow` and `ratelimiter block`: the two lists of prefixes.

use clap::{Args, Subcommand};
use http::Method;
use ipnet::IpNet;

use super::change::{self, ChangeArgs};
use super::client::{Call, ConnectionArgs};
use super::exit::{Exit, Outcome};
use super::output::{Cell, OutputArgs, Style, Table, Tint, show_relative};
use super::pages;
use crate::admin::ListPut;
use crate::admin::views::{DefinedIn, ListEntryView, Page};
use crate::policy::units::{Window, parse_duration_ns};

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Never limited.
    Allow,
    /// Dropped.
    Block,
}

impl List {
    fn path(self) -> &'static str {
        match self {
            Self::Allow => "/v1/allowlist",
            Self::Block => "/v1/blocklist",
        }
    }
}

/// What to do with a list.
#[derive(Clone, Debug, Subcommand)]
pub enum ListCommand {
    /// Show the list
    List(ListArgs),
    /// Add addresses or prefixes
    Add(AddArgs),
    /// Remove addresses or prefixes
    Rm(RmArgs),
}

/// Flags of `list`.
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Only entries whose prefix or reason contains this
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `add`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
An allowed prefix wins over every block inside it. ARP, neighbour discovery and DHCP always pass.

Examples (the same for `allow`):
  ratelimiter block add 203.0.113.9
  ratelimiter block add 203.0.113.0/24 --reason 'scanner' --ttl 1h
  ratelimiter block add 198.51.100.0/24 --try 60s     takes itself back unless confirmed")]
pub struct AddArgs {
    /// Address or prefix
    #[arg(value_name = "CIDR", required = true, value_parser = parse_prefix)]
    prefixes: Vec<IpNet>,
    /// Why, for people; at most 200 characters
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Remove it again after this time
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
    ttl: Option<Window>,
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
    /// Address or prefix, as it is listed
    #[arg(value_name = "CIDR", required = true, value_parser = parse_prefix)]
    prefixes: Vec<IpNet>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Parses an address or a prefix whose host bits are zero.
pub fn parse_prefix(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let prefix: IpNet = text.parse().map_err(|_| {
        format!("`{text}` is not an address or prefix; write for example 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32")
    })?;
    if prefix.trunc() == prefix {
        Ok(prefix)
    } else {
        Err(format!(
            "`{text}` has bits set behind its length; did you mean `{}`?",
            prefix.trunc()
        ))
    }
}

/// Parses how long an entry stays: 1 s to 366 days.
fn parse_ttl(text: &str) -> Result<Window, String> {
    Window::from_ns(parse_duration_ns(text)?)
        .map_err(|_| format!("`{text}` is out of range; it must be between 1s and 366d"))
}

/// Runs `allow` and `block`.
pub async fn run(list: List, command: ListCommand) -> Outcome {
    match command {
        ListCommand::List(args) => {
            let client = args.connection.client()?;
            let page: Page<ListEntryView> =
                pages::read(&client, list.path(), args.search.as_deref(), 0).await?;
            args.output.show(&page, |page, style| {
                render(list, page, style, crate::clock::unix_ms())
            })?;
            Ok(Exit::Ok)
        }
        ListCommand::Add(args) => {
            let client = args.connection.client()?;
            let calls = args
                .prefixes
                .iter()
                .map(|prefix| {
                    Call::new(Method::POST, list.path()).json(&ListPut {
                        cidr: prefix.to_string(),
                        reason: args.reason.clone(),
                        ttl: args.ttl,
                    })
                })
                .collect::<Result<Vec<_>, _>>()?;
            change::make_all(&client, calls, &args.change, &args.output).await
        }
        ListCommand::Rm(args) => {
            let client = args.connection.client()?;
            let calls = args
                .prefixes
                .iter()
                .map(|prefix| {
                    Call::new(Method::DELETE, list.path()).query("cidr", prefix.to_string())
                })
                .collect();
            change::make_all(&client, calls, &args.change, &args.output).await
        }
    }
}

fn render(list: List, page: &Page<ListEntryView>, style: Style, now_unix_ms: u64) -> String {
    let mut table = Table::new(&["PREFIX", "REASON", "BY", "ENDS", "FROM"]);
    for entry in &page.items {
        let ends = entry
            .expires_unix_ms
            .map_or_else(|| "never".to_owned(), |at| show_relative(at, now_unix_ms));
        table.row(vec![
            entry.cidr.as_str().into(),
            entry.reason.as_deref().unwrap_or("-").into(),
            entry.by.as_deref().unwrap_or("-").into(),
            ends.into(),
            origin(entry.defined_in, entry.pending.is_some()),
        ]);
    }
    table.render(
        style,
        match list {
            List::Allow => "the allow list is empty",
            List::Block => "the block list is empty",
        },
    )
}

/// Where an object is defined, and whether it is on trial.
pub fn origin(defined_in: DefinedIn, on_trial: bool) -> Cell {
    let word = match defined_in {
        DefinedIn::Store => "api",
        DefinedIn::File => "file",
        DefinedIn::Default => "default",
        DefinedIn::Agent => "agent, for a time",
    };
    if on_trial {
        Cell::new(format!("{word}, on trial"), Tint::Yellow)
    } else {
        word.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_addresses_and_prefixes() {
        assert_eq!(
            parse_prefix("192.0.2.7").unwrap().to_string(),
            "192.0.2.7/32"
        );
        assert_eq!(
            parse_prefix("2001:db8::1").unwrap().to_string(),
            "2001:db8::1/128"
        );
        assert_eq!(
            parse_prefix("192.0.2.0/24").unwrap().to_string(),
            "192.0.2.0/24"
        );
        assert_eq!(
            parse_prefix("192.0.2.7/24").unwrap_err(),
            "`192.0.2.7/24` has bits set behind its length; did you mean `192.0.2.0/24`?"
        );
        assert!(
            parse_prefix("300.0.0.1")
                .unwrap_err()
                .contains("write for example")
        );
    }

    #[test]
    fn shows_when_entries_end_and_where_they_come_from() {
        let page = Page {
            items: vec![
                ListEntryView {
                    cidr: "203.0.113.0/24".to_owned(),
                    reason: Some("scanner\n".to_owned()),
                    by: Some("local".to_owned()),
                    expires_unix_ms: Some(61_000),
                    ..ListEntryView::default()
                },
                ListEntryView {
                    cidr: "198.51.100.7/32".to_owned(),
                    defined_in: DefinedIn::File,
                    ..ListEntryView::default()
                },
            ],
            total: 2,
            next: None,
        };
        assert_eq!(
            render(List::Block, &page, Style::PLAIN, 1_000),
            "\
PREFIX           REASON     BY     ENDS      FROM
203.0.113.0/24   scanner\\n  local  in 1 min  api
198.51.100.7/32  -          -      never     file
"
        );
        assert_eq!(
            render(List::Allow, &Page::default(), Style::PLAIN, 0),
            "the allow list is empty\n"
        );
    }
}
