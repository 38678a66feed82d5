//! `ratelimiter sync`: how it goes with the fleet.

use clap::{Args, Subcommand};
use http::Method;

use super::client::{Call, ConnectionArgs};
use super::exit::{Exit, Outcome};
use super::output::{Facts, OutputArgs, Style, Tint, clean, show_seconds};
use crate::admin::views::{ConfigState, ConfigSyncView, SyncView};

/// Subcommands of `sync`.
#[derive(Clone, Debug, Subcommand)]
pub enum SyncCommand {
    /// Show whether the shared store answers, and who is in the fleet; exit code 1 while it does not
    Status(SyncArgs),
    /// Tell the store everything again at once
    Resync(SyncArgs),
}

/// Flags of `sync`.
#[derive(Clone, Debug, Args)]
pub struct SyncArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Runs the command.
pub async fn run(command: SyncCommand) -> Outcome {
    let (call, args) = match command {
        SyncCommand::Status(args) => (Call::new(Method::GET, "/v1/sync"), args),
        SyncCommand::Resync(args) => (Call::new(Method::POST, "/v1/sync:resync"), args),
    };
    let client = args.connection.client()?;
    let view: SyncView = client.send(call).await?.json()?;
    args.output.show(&view, render)?;
    Ok(if view.alone { Exit::Failed } else { Exit::Ok })
}

fn configuration(config: &ConfigSyncView) -> String {
    let mut text = format!("{}, revision {}", config.state.as_str(), config.revision);
    if config.ahead > 0 {
        text += &format!(", {} made here", config.ahead);
    }
    if config.lost > 0 {
        text += &format!(", {} gave way (see `changes`)", config.lost);
    }
    text
}

fn render(view: &SyncView, style: Style) -> String {
    if !view.configured {
        return "no fleet: `redis.url` is not set, every limit is this host's own\n".to_owned();
    }
    let mut facts = Facts::default();
    facts.add("store", clean(&view.store));
    let (word, tint) = if view.connected {
        ("connected", Tint::Green)
    } else {
        ("away", Tint::Red)
    };
    facts.add_tinted(
        "state",
        format!("{word} for {}", show_seconds(view.since_s)),
        tint,
    );
    if let Some(error) = &view.error {
        facts.add_tinted("error", clean(error), Tint::Red);
    }
    if view.alone {
        facts.add_tinted(
            "limits",
            "held by this host alone, as `on_store_loss` says",
            Tint::Yellow,
        );
    }
    facts.add(
        "hosts",
        format!("{} live of {} known", view.hosts_live, view.hosts_known),
    );
    facts.add_tinted(
        "configuration",
        configuration(&view.config),
        match view.config.state {
            ConfigState::InStep => Tint::Green,
            ConfigState::Refused => Tint::Red,
            _ => Tint::Yellow,
        },
    );
    if let Some(error) = &view.config.error {
        facts.add_tinted("", clean(error), Tint::Red);
    }
    facts.add("clients", format!("{} exchanged", view.clients));
    facts.add(
        "checks",
        format!("{} waited, {} in vain", view.waited, view.overdue),
    );
    facts.add(
        "calls",
        format!(
            "{} of {} entries, {} late, {} failed",
            view.calls, view.entries, view.late, view.failed
        ),
    );
    facts.add("refills", view.refills.to_string());
    facts.render(style)
}
