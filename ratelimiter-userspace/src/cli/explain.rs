//! `ratelimiter explain` and `ratelimiter reset`: one source or client, and its buckets.

use std::net::IpAddr;

use clap::Args;

use http::Method;

use super::client::{Call, ConnectionArgs, segment};
use super::clients;
use super::exit::{Exit, Outcome};
use super::limit_text::{mode_word, rate_text, unit_word};
use super::limits::mode_cell;
use super::output::{
    Cell, Facts, OutputArgs, Style, Table, Tint, clean, show_relative, show_seconds,
};
use crate::admin::views::{DefinedIn, Explanation, ResetAnswer, Rule, RuleKind, UnitState};
use crate::policy::model::{LimitSpec, Mode};
use crate::policy::rate::show_count;

/// Flags of `explain`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Shows the rules in the order in which they were asked, who set the one that decided, what is left
of each limit and when the next packet or request is allowed.

Examples:
  ratelimiter explain 192.0.2.7
  ratelimiter explain 2001:db8::1
  ratelimiter explain customer-42
  ratelimiter explain --client 10.0.0.1     a client whose id looks like an address")]
pub struct ExplainArgs {
    /// Address of a source, or id of a client
    #[arg(value_name = "IP|CLIENT")]
    subject: String,
    /// The word is a client id, whatever it looks like
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Flags of `reset`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Forgives what the source or client owes; limits and lists stay as they are.

Examples:
  ratelimiter reset 192.0.2.7
  ratelimiter reset customer-42")]
pub struct ResetArgs {
    /// Address of a source, or id of a client
    #[arg(value_name = "IP|CLIENT")]
    subject: String,
    /// The word is a client id, whatever it looks like
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Who is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    /// A source address.
    Ip(IpAddr),
    /// A client id.
    Client(String),
}

impl Subject {
    fn new(text: &str, client: bool) -> Self {
        match text.parse() {
            Ok(ip) if !client => Self::Ip(ip),
            _ => Self::Client(text.to_owned()),
        }
    }
}

/// Runs `explain`.
pub async fn run(args: ExplainArgs) -> Outcome {
    let client = args.connection.client()?;
    let call = Call::new(Method::GET, "/v1/explain");
    let call = match Subject::new(&args.subject, args.client) {
        Subject::Ip(ip) => call.query("ip", ip.to_string()),
        Subject::Client(id) => call.query("client_id", id),
    };
    let explanation: Explanation = client.send(call).await?.json()?;
    args.output.show(&explanation, |explanation, style| {
        render(explanation, style, crate::clock::unix_ms())
    })?;
    Ok(Exit::Ok)
}

/// Runs `reset`.
pub async fn reset(args: ResetArgs) -> Outcome {
    let client = args.connection.client()?;
    let call = match Subject::new(&args.subject, args.client) {
        Subject::Ip(ip) => Call::new(
            Method::DELETE,
            format!("/v1/sources/{}", segment(&ip.to_string())),
        ),
        Subject::Client(id) => Call::new(Method::DELETE, format!("{}/debt", clients::path(&id))),
    };
    let answer: ResetAnswer = client.send(call).await?.json()?;
    args.output
        .show(&answer, |answer, _| format!("{}\n", clean(&answer.summary)))?;
    Ok(Exit::Ok)
}

fn render(explanation: &Explanation, style: Style, now_unix_ms: u64) -> String {
    let drops = explanation.verdict == "drop";
    let (word, tint) = if drops {
        ("DROP", Tint::Red)
    } else {
        ("PASS", Tint::Green)
    };
    let mut text = format!(
        "{}: {} ({})\n{}\n\n",
        style.paint(Tint::Bold, &clean(&explanation.subject)),
        style.paint(tint, word),
        clean(&explanation.reason),
        clean(&explanation.summary),
    );
    let mut facts = Facts::default();
    facts.add("rule", rule(&explanation.rule));
    if let Some(set) = set_by(&explanation.rule, now_unix_ms) {
        facts.add("set", set);
    }
    if let Some(reason) = &explanation.rule.reason {
        facts.add("why", reason);
    }
    if let Some(ends) = explanation.rule.expires_unix_ms {
        facts.add("ends", show_relative(ends, now_unix_ms));
    }
    if let Some(source) = explanation
        .source
        .as_ref()
        .filter(|s| **s != explanation.subject)
    {
        facts.add(
            "source",
            format!("{source} (these addresses are one source)"),
        );
    }
    if let Some(client) = explanation
        .client
        .as_ref()
        .filter(|c| **c != explanation.rule.name)
    {
        facts.add("client", client);
    }
    if let Some(segment) = &explanation.segment {
        facts.add("segment", segment);
    }
    if let (Some(offered), Some(admitted)) = (explanation.offered, explanation.admitted) {
        facts.add(
            "counted",
            format!("{offered} packets offered, {admitted} admitted"),
        );
    }
    if let Some(mode) = explanation.agent_mode.filter(|mode| *mode != Mode::Enforce) {
        let line = format!("the agent runs in {}: nothing is dropped", mode_word(mode));
        facts.add_tinted("mode", line, Tint::Yellow);
    }
    text.push_str(&facts.render(style));
    if !explanation.units.is_empty() {
        text.push('\n');
        text.push_str(&units(&explanation.units, style));
    }
    if !explanation.path.is_empty() {
        text.push_str(&format!(
            "\n{}\n",
            style.paint(Tint::Bold, "how it was decided")
        ));
        for (number, step) in explanation.path.iter().enumerate() {
            text.push_str(&format!("  {}. {}\n", number + 1, clean(step)));
        }
    }
    text
}

/// The rule in words.
pub(crate) fn rule(rule: &Rule) -> String {
    let name = &rule.name;
    let by_prefix = rule
        .prefix
        .as_ref()
        .filter(|prefix| *prefix != name)
        .map_or_else(String::new, |prefix| format!(", by its prefix {prefix}"));
    match rule.kind {
        RuleKind::Allow => format!("allow list: {name}{by_prefix}"),
        RuleKind::Block => format!("block list: {name}{by_prefix}"),
        RuleKind::Client => format!("client `{name}`{by_prefix}"),
        RuleKind::Segment => format!("segment `{name}`{by_prefix}"),
        RuleKind::Default => "segment `default`: nobody said anything about it".to_owned(),
        RuleKind::Malformed => "no packet may come from such an address".to_owned(),
    }
}

/// Who set it, and when.
pub(crate) fn set_by(rule: &Rule, now_unix_ms: u64) -> Option<String> {
    let place = match rule.defined_in {
        DefinedIn::File => Some("in the configuration file"),
        DefinedIn::Default => Some("a default of the product"),
        // Its entries are signed by the agent itself.
        DefinedIn::Store | DefinedIn::Agent => None,
    };
    let by = rule.set_by.as_ref().map(|by| {
        let at = rule.set_at_unix_ms.map_or_else(String::new, |at| {
            format!(" {}", show_relative(at, now_unix_ms))
        });
        format!("by `{by}`{at}")
    });
    match (place, by) {
        (None, None) => None,
        (Some(place), None) => Some(place.to_owned()),
        (None, Some(by)) => Some(by),
        (Some(place), Some(by)) => Some(format!("{by}, {place}")),
    }
}

fn units(units: &[UnitState], style: Style) -> String {
    let mut table = Table::new(&[
        "UNIT",
        "LIMIT",
        ">RATE",
        ">BURST",
        ">LEFT",
        ">OWED",
        ">NEXT ALLOWED",
        ">FULL AGAIN",
        "MODE",
    ]);
    for unit in units {
        let spec = LimitSpec {
            rate_limit: unit.rate_limit,
            time_window: unit.time_window,
            burst: Some(unit.burst),
            unit: unit.unit,
            algorithm: None,
            mode: None,
            consistency: None,
            on_store_loss: None,
        };
        let next = if unit.retry_after_s > 0.0 {
            Cell::new(
                format!("in {}", show_seconds(unit.retry_after_s)),
                Tint::Red,
            )
        } else {
            Cell::new("now", Tint::Green)
        };
        table.row(vec![
            unit_word(unit.unit).into(),
            unit.limit.as_str().into(),
            rate_text(&spec).into(),
            show_count(unit.burst).into(),
            // Part of a unit cannot be spent: round what is left down, what is owed up.
            format!("{:.0}", unit.tokens.floor()).into(),
            format!("{:.0}", unit.debt.ceil()).into(),
            next,
            if unit.reset_after_s > 0.0 {
                format!("in {}", show_seconds(unit.reset_after_s)).into()
            } else {
                "full".into()
            },
            mode_cell(unit.mode),
        ]);
    }
    table.render(style, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::Unit;
    use crate::policy::units::Window;

    #[test]
    fn tells_addresses_from_client_ids() {
        assert_eq!(
            Subject::new("192.0.2.7", false),
            Subject::Ip("192.0.2.7".parse().unwrap())
        );
        assert_eq!(
            Subject::new("::1", false),
            Subject::Ip("::1".parse().unwrap())
        );
        assert_eq!(
            Subject::new("10.0.0.1", true),
            Subject::Client("10.0.0.1".to_owned())
        );
        assert_eq!(
            Subject::new("192.0.2.0/24", false),
            Subject::Client("192.0.2.0/24".to_owned())
        );
    }

    fn limited() -> Explanation {
        Explanation {
            subject: "192.0.2.7".to_owned(),
            source: Some("192.0.2.7".to_owned()),
            verdict: "drop".to_owned(),
            reason: "over_packets".to_owned(),
            summary: "client `alice` has used up its 500 packets per second".to_owned(),
            rule: Rule {
                kind: RuleKind::Client,
                name: "alice".to_owned(),
                prefix: Some("192.0.2.0/28".to_owned()),
                set_by: Some("local".to_owned()),
                set_at_unix_ms: Some(0),
                ..Rule::default()
            },
            client: Some("alice".to_owned()),
            segment: Some("free".to_owned()),
            tracked: true,
            units: vec![UnitState {
                unit: Unit::Packets,
                limit: "packets".to_owned(),
                rate_limit: 500,
                time_window: Window::SECOND,
                burst: 1_000,
                mode: Mode::Enforce,
                tokens: 0.6,
                debt: 999.4,
                retry_after_s: 0.0008,
                next_allowed_unix_ms: 200_001,
                reset_after_s: 1.9988,
            }],
            path: vec![
                "192.0.0.0/16 has prefixes: look further".to_owned(),
                "prefix 192.0.2.0/28 belongs to client `alice`".to_owned(),
            ],
            offered: Some(5_000),
            admitted: Some(4_000),
            agent_mode: Some(Mode::Enforce),
        }
    }

    #[test]
    fn tells_rule_maker_tokens_and_next_allowed_time() {
        assert_eq!(
            render(&limited(), Style::PLAIN, 200_000),
            "\
192.0.2.7: DROP (over_packets)
client `alice` has used up its 500 packets per second

rule     client `alice`, by its prefix 192.0.2.0/28
set      by `local` 3 min 20 s ago
segment  free
counted  5000 packets offered, 4000 admitted

UNIT     LIMIT     RATE  BURST  LEFT  OWED  NEXT ALLOWED  FULL AGAIN  MODE
packets  packets  500/s     1k     0  1000    in 0.001 s  in 1.999 s  enforce

how it was decided
  1. 192.0.0.0/16 has prefixes: look further
  2. prefix 192.0.2.0/28 belongs to client `alice`
"
        );
    }

    #[test]
    fn says_when_shadow_lets_everything_pass() {
        let shadow = Explanation {
            agent_mode: Some(Mode::Shadow),
            source: Some("2001:db8::/64".to_owned()),
            ..limited()
        };
        let text = render(&shadow, Style::PLAIN, 0);
        assert!(
            text.contains("mode     the agent runs in shadow: nothing is dropped\n"),
            "{text}"
        );
        assert!(
            text.contains("2001:db8::/64 (these addresses are one source)"),
            "{text}"
        );
    }

    #[test]
    fn every_kind_of_rule_has_a_sentence() {
        let named = |kind| {
            rule(&Rule {
                kind,
                name: "203.0.113.0/24".to_owned(),
                ..Rule::default()
            })
        };
        assert_eq!(named(RuleKind::Block), "block list: 203.0.113.0/24");
        assert_eq!(named(RuleKind::Allow), "allow list: 203.0.113.0/24");
        assert_eq!(named(RuleKind::Segment), "segment `203.0.113.0/24`");
        assert!(named(RuleKind::Default).starts_with("segment `default`"));
        assert!(named(RuleKind::Malformed).starts_with("no packet"));
        let file = Rule {
            defined_in: DefinedIn::File,
            ..Rule::default()
        };
        assert_eq!(
            set_by(&file, 0).as_deref(),
            Some("in the configuration file")
        );
        assert_eq!(set_by(&Rule::default(), 0), None);
    }
}
