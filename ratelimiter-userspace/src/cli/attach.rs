//! `ratelimiter attach`: asks the agent to protect an interface.

use clap::{Args, ValueEnum};

use http::Method;

use super::client::{Call, Client, ConnectionArgs, segment};
use super::exit::{Exit, Failure, Outcome};
use super::output::{OutputArgs, Style, Tint, clean, print, show_relative};
use super::pages;
use crate::admin::views::{AttachRequest, DefinedIn, InterfaceView, ListEntryView, Page};
use crate::config::AttachMode;

/// Flags of `attach`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The interface is protected until `ratelimiter detach`, over restarts of the agent too: it is kept
in the agent's store. An interface that goes away is protected again when it comes back.

Examples:
  ratelimiter attach eth0
  ratelimiter attach eth0 --mode generic     where the driver has no native XDP
  ratelimiter attach eth0 --replace          take the place of another XDP program")]
pub struct AttachArgs {
    /// Name of the interface
    #[arg(value_name = "IFACE")]
    interface: String,
    /// Where to run: native (in the driver: cheapest, sees every packet) or generic (in the stack:
    /// any driver, slower, sees coalesced packets)
    #[arg(long, value_enum, default_value_t = ModeArg::Native, hide_possible_values = true)]
    mode: ModeArg,
    /// Take the place of a foreign XDP program
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Where in the receive path XDP runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// In the driver: cheapest, sees every packet
    #[default]
    Native,
    /// In the stack: any driver, slower, sees coalesced packets
    Generic,
}

/// Runs `attach`.
pub async fn run(args: AttachArgs) -> Outcome {
    let client = args.connection.client()?;
    let call = Call::new(Method::PUT, path(&args.interface)).json(&AttachRequest {
        mode: match args.mode {
            ModeArg::Native => AttachMode::Native,
            ModeArg::Generic => AttachMode::Generic,
        },
        replace: args.replace,
    })?;
    let view: InterfaceView = client
        .send(call)
        .await
        .map_err(|failure| without_agent(failure, &args.interface))?
        .json()?;
    args.output.show(&view, render)?;
    if !args.output.is_json() {
        say_who_is_let_in(&client).await?;
    }
    Ok(if view.attached {
        Exit::Ok
    } else {
        Exit::Failed
    })
}

/// Shows whom the agent lets in for a while, so that nobody is surprised when it ends.
async fn say_who_is_let_in(client: &Client) -> Result<(), Failure> {
    let page: Page<ListEntryView> = pages::read(client, "/v1/allowlist", None, 0).await?;
    print(&let_in(&page.items, crate::clock::unix_ms()))
}

fn let_in(entries: &[ListEntryView], now_unix_ms: u64) -> String {
    let mut text = String::new();
    for entry in entries {
        let (DefinedIn::Agent, Some(end)) = (entry.defined_in, entry.expires_unix_ms) else {
            continue;
        };
        text += &format!(
            "  {} is never limited until this ends {} ({})\n",
            clean(&entry.cidr),
            show_relative(end, now_unix_ms),
            clean(entry.reason.as_deref().unwrap_or_default()),
        );
    }
    if !text.is_empty() {
        text += "  to keep one: `ratelimiter allow add ADDRESS`\n";
    }
    text
}

/// The interface's path.
pub fn path(interface: &str) -> String {
    format!("/v1/interfaces/{}", segment(interface))
}

/// Attaching needs an agent that keeps the tables: says how to get one.
fn without_agent(failure: Failure, interface: &str) -> Failure {
    if failure.exit != Exit::Unreachable {
        return failure;
    }
    failure.with_help(format!(
        "the agent attaches and keeps attached: start it with `ratelimiter agent --iface {interface}` (or `systemctl start ratelimiter`), or name its socket with --socket"
    ))
}

fn render(view: &InterfaceView, style: Style) -> String {
    let mode = match view.mode {
        AttachMode::Native => "native",
        AttachMode::Generic => "generic",
    };
    let name = clean(&view.name);
    if view.attached {
        return format!(
            "{} is protected in {mode} mode\n",
            style.paint(Tint::Green, &name)
        );
    }
    let why = view
        .problem
        .as_deref()
        .map_or_else(|| view.state.clone(), clean);
    format!(
        "{} is not protected yet: {why}\n",
        style.paint(Tint::Red, &name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_whether_the_interface_is_protected() {
        let view = InterfaceView {
            name: "eth0".to_owned(),
            attached: true,
            ..InterfaceView::default()
        };
        assert_eq!(
            render(&view, Style::PLAIN),
            "eth0 is protected in native mode\n"
        );
        let waiting = InterfaceView {
            attached: false,
            state: "absent".to_owned(),
            ..view
        };
        assert_eq!(
            render(&waiting, Style::PLAIN),
            "eth0 is not protected yet: absent\n"
        );
    }

    #[test]
    fn explains_that_an_agent_is_needed() {
        let failure = without_agent(
            Failure::new("agent unreachable").with_exit(Exit::Unreachable),
            "eth0",
        );
        assert!(
            failure
                .help
                .unwrap()
                .contains("ratelimiter agent --iface eth0")
        );
        let other = Failure::new("no native XDP");
        assert_eq!(without_agent(other.clone(), "eth0"), other);
    }
}
