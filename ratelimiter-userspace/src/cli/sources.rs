//! `ratelimiter sources`: the sources that send most.

use clap::Args;

use super::client::ConnectionArgs;
use super::exit::{Exit, Outcome};
use super::output::{Cell, OutputArgs, Style, Table, Tint, show_bytes, show_relative};
use super::pages;
use crate::admin::views::{Page, SourceRow};

/// Flags of `sources`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Figures are estimates from samples of the packets of the last seconds; a source with a client or a
promoted entry of its own is counted exactly.

Examples:
  ratelimiter sources                  top talkers
  ratelimiter sources --limit 100 -o json
  ratelimiter explain 192.0.2.7        why one of them is limited")]
pub struct SourcesArgs {
    /// Number of sources shown
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only sources whose address, client or segment contains this
    #[arg(long, value_name = "TEXT")]
    search: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs `sources`.
pub async fn run(args: SourcesArgs) -> Outcome {
    let client = args.connection.client()?;
    let page: Page<SourceRow> = pages::read(
        &client,
        "/v1/sources",
        args.search.as_deref(),
        args.limit as usize,
    )
    .await?;
    args.output.show(&page, |page, style| {
        render(page, style, crate::clock::unix_ms())
    })?;
    Ok(Exit::Ok)
}

fn render(page: &Page<SourceRow>, style: Style, now_unix_ms: u64) -> String {
    let mut table = Table::new(&[
        "SOURCE",
        "CLIENT",
        "SEGMENT",
        ">PACKETS/S",
        ">DROPPED/S",
        ">BYTES/S",
        ">PACKETS",
        ">DROPPED",
        "LAST REASON",
        ">SEEN",
    ]);
    for row in &page.items {
        let tint = if row.dropped_per_s > 0.0 {
            Tint::Red
        } else {
            Tint::Plain
        };
        table.row(vec![
            row.source.as_str().into(),
            row.client.as_deref().unwrap_or("-").into(),
            row.segment.as_str().into(),
            format!("{:.0}", row.packets_per_s).into(),
            Cell::new(format!("{:.0}", row.dropped_per_s), tint),
            show_bytes(row.bytes_per_s.max(0.0) as u64).into(),
            row.packets.to_string().into(),
            row.dropped.to_string().into(),
            row.reason.as_str().into(),
            show_relative(row.last_seen_unix_ms.min(now_unix_ms), now_unix_ms).into(),
        ]);
    }
    let mut text = table.render(style, "no source was seen in the last seconds");
    text.push_str(&pages::left_out(page, "`-n N`"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_sources_in_a_table() {
        let page = Page {
            items: vec![SourceRow {
                source: "192.0.2.7".to_owned(),
                segment: "default".to_owned(),
                packets_per_s: 1_234.5,
                dropped_per_s: 234.0,
                bytes_per_s: 79_000.0,
                packets: 9_000,
                dropped: 800,
                reason: "over_packets".to_owned(),
                last_seen_unix_ms: 8_000,
                ..SourceRow::default()
            }],
            total: 3,
            next: Some("192.0.2.7".to_owned()),
        };
        assert_eq!(
            render(&page, Style::PLAIN, 10_000),
            "\
SOURCE     CLIENT  SEGMENT  PACKETS/S  DROPPED/S  BYTES/S  PACKETS  DROPPED  LAST REASON      SEEN
192.0.2.7  -       default       1234        234   77 KiB     9000      800  over_packets  2 s ago
1 of 3; `-n N` shows more
"
        );
    }
}
