//! What `cargo xtask run` shows: the real agent, and packets dropped by it.
//!
//! Without `--iface`: a namespace, a veth pair into it, the agent on the machine's end, and in the
//! namespace one polite and one noisy client. All of it is tied to this process, so that it goes
//! with it, however it ends.
mod interface;
mod signals;
mod stage;
mod traffic;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask run")]
struct Args {
    /// Attach to this interface instead of a veth pair of our own
    #[arg(long)]
    iface: Option<String>,
    /// End by itself after this long
    #[arg(long = "for", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// With --iface: really drop
    #[arg(long, requires = "iface")]
    enforce: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Before any thread is started, so that none of them is the one a signal ends.
    signals::hold();
    let shown = std::panic::catch_unwind(|| match &args.iface {
        Some(interface) => interface::show(interface, args.enforce, args.duration),
        None => stage::show(args.duration),
    });
    match shown {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Reads `90`, `60s`, `5m` or `1h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, factor) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(digits) if text.ends_with('m') => (digits, 60),
        Some(digits) if text.ends_with('h') => (digits, 3600),
        Some(digits) => (digits, 1),
        None => (text, 1),
    };
    match digits.parse::<u32>() {
        Ok(count) if count > 0 => Ok(Duration::from_secs(u64::from(count) * factor)),
        _ => Err(format!(
            "`{text}` is not a time such as `60s`, `5m` or `1h`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_duration;

    #[test]
    fn reads_times_as_people_write_them() {
        assert_eq!(parse_duration("60s").unwrap().as_secs(), 60);
        assert_eq!(parse_duration("5m").unwrap().as_secs(), 300);
        assert_eq!(parse_duration("90").unwrap().as_secs(), 90);
        assert!(parse_duration("0").is_err());
        assert!(parse_duration("soon").is_err());
    }
}
