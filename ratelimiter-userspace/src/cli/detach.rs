//! `ratelimiter detach`: through the agent if one runs, else directly in the kernel.

use std::path::PathBuf;

use clap::Args;

use http::Method;
use serde::Serialize;

use super::attach::path;
use super::client::{Call, Client, ConnectionArgs, Target};
use super::exit::{Exit, Failure, Outcome};
use super::output::{OutputArgs, clean};
use crate::admin::views::{Detached, InterfaceView};
use crate::dataplane::{self, Error as DataPlaneError, ErrorKind, detach_all};

/// Flags of `detach`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Works without a running agent too: links and pins are removed directly, which needs root (or
CAP_BPF and CAP_NET_ADMIN). Doing it twice is no mistake: the second time says that there was
nothing to do, and succeeds.

Examples:
  ratelimiter detach eth0        stop protecting one interface; buckets and limits stay
  ratelimiter detach --all       remove every link, map and pin from the kernel")]
pub struct DetachArgs {
    /// Name of the interface
    #[arg(
        value_name = "IFACE",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    interface: Option<String>,
    /// Detach every interface and remove every pin: nothing of ours stays in the kernel
    #[arg(long)]
    all: bool,
    /// Directory of the pins, where no agent runs
    #[arg(
        long,
        value_name = "DIR",
        env = "RATELIMITER_PIN_DIR",
        default_value = "/sys/fs/bpf/ratelimiter",
        hide_env_values = true
    )]
    pins: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Report {
    /// Interfaces that were detached.
    interfaces: Vec<String>,
    /// Map pins that were removed.
    maps: usize,
    /// Whether a running agent did it; it keeps its tables.
    by_agent: bool,
}

/// Runs `detach`.
pub async fn run(args: DetachArgs) -> Outcome {
    let client = args.connection.client()?;
    let report = match through_agent(&client, args.interface.as_deref()).await {
        // Only the socket says that there is no agent on this machine; an address may be another's.
        Err(failure)
            if failure.exit == Exit::Unreachable
                && matches!(client.target(), Target::Socket(_)) =>
        {
            directly(&args)?
        }
        outcome => outcome?,
    };
    args.output.show(&report, |report, _| {
        render(report, args.interface.as_deref())
    })?;
    Ok(Exit::Ok)
}

async fn through_agent(client: &Client, interface: Option<&str>) -> Result<Report, Failure> {
    let names = match interface {
        Some(name) => vec![name.to_owned()],
        None => client
            .get::<Vec<InterfaceView>>("/v1/interfaces")
            .await?
            .into_iter()
            .map(|view| view.name)
            .collect(),
    };
    let mut report = Report {
        by_agent: true,
        ..Report::default()
    };
    for name in names {
        let call = Call::new(Method::DELETE, path(&name));
        let answer: Detached = client.send(call).await?.json()?;
        if answer.detached {
            report.interfaces.push(name);
        }
    }
    Ok(report)
}

fn directly(args: &DetachArgs) -> Result<Report, Failure> {
    let Some(interface) = &args.interface else {
        let removed = detach_all(&args.pins).map_err(|error| refused(&error))?;
        return Ok(Report {
            interfaces: removed.interfaces,
            maps: removed.maps,
            by_agent: false,
        });
    };
    let detached = dataplane::inspect::detach_interface(&args.pins, interface)
        .map_err(|error| refused(&error))?;
    Ok(Report {
        interfaces: detached.then(|| interface.clone()).into_iter().collect(),
        ..Report::default()
    })
}

fn refused(error: &DataPlaneError) -> Failure {
    let failure = Failure::new(error.to_string());
    match error.kind() {
        ErrorKind::Permission => failure.with_exit(Exit::Permission),
        ErrorKind::Conflict => failure
            .with_help("an agent runs although its socket does not answer: stop it, or name its socket with --socket"),
        _ => failure,
    }
}

fn render(report: &Report, interface: Option<&str>) -> String {
    let mut text = String::new();
    for name in &report.interfaces {
        text.push_str(&format!("{} is no longer protected\n", clean(name)));
    }
    if report.maps > 0 {
        text.push_str(&format!("{} maps removed from the kernel\n", report.maps));
    }
    if text.is_empty() {
        text = match interface {
            Some(name) => format!("nothing to do: {} is not attached\n", clean(name)),
            None => "nothing to do: nothing is attached and nothing is pinned\n".to_owned(),
        };
    }
    if report.by_agent && interface.is_none() {
        text.push_str(
            "the agent runs and keeps its tables: stop it and repeat `ratelimiter detach --all` to remove them too\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_was_removed() {
        let report = Report {
            interfaces: vec!["eth0".to_owned(), "eth1".to_owned()],
            maps: 20,
            by_agent: false,
        };
        assert_eq!(
            render(&report, None),
            "eth0 is no longer protected\neth1 is no longer protected\n20 maps removed from the kernel\n"
        );
    }

    #[test]
    fn second_time_there_is_nothing_to_do() {
        let none = Report::default();
        assert_eq!(
            render(&none, Some("eth0")),
            "nothing to do: eth0 is not attached\n"
        );
        assert_eq!(
            render(&none, None),
            "nothing to do: nothing is attached and nothing is pinned\n"
        );
    }

    #[test]
    fn says_that_a_running_agent_keeps_its_tables() {
        let report = Report {
            interfaces: vec!["eth0".to_owned()],
            maps: 0,
            by_agent: true,
        };
        assert!(render(&report, None).contains("repeat `ratelimiter detach --all`"));
        assert!(!render(&report, Some("eth0")).contains("repeat"));
    }
}
