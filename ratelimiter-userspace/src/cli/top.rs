//! `ratelimiter top`: asks the agent again and again, and draws what it says.

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use http::Method;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::client::{Call, Client, ConnectionArgs, segment};
use super::exit::{Exit, Failure, Outcome};
use super::output::{OutputArgs, Style, json_text, print};
use crate::admin::ListPut;
use crate::admin::views::{Changed, Explanation, Page, ResetAnswer, SourceRow, Status};
use crate::clock::unix_ms;
use crate::policy::units::{Window, parse_duration_ns};
use crate::tui::model::{Action, Command, Input, List, Polled, State};
use crate::tui::sources::prefix;
use crate::tui::terminal::{Said, Screen, keys};
use crate::tui::view::{Theme, draw};

/// Sources asked for.
const SOURCES: usize = 500;
/// Answers and commands that may wait.
const QUEUE: usize = 64;
/// Time between the two polls of `--once`, which rates by reason need.
const ONCE_APART: Duration = Duration::from_secs(1);
/// Size of a frame of `--once`, unless told otherwise.
const ONCE_SIZE: (u16, u16) = (80, 24);

/// Flags of `top`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Keys: ? lists them all. Enter explains the chosen source, b blocks it, a allows it, r resets it, /
filters, s sorts, Space stops the figures, q quits. Every change asks first.

Without a terminal, --once writes one frame as text and `-o json` the figures of one moment.

Examples:
  ratelimiter top
  ratelimiter top --every 5s
  ratelimiter top --once --size 120x40
  ratelimiter top -o json | jq '.sources[0]'")]
pub struct TopArgs {
    /// Ask the agent this often; 200ms to 1m
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_every)]
    every: Duration,
    /// Write one frame and end
    #[arg(long)]
    once: bool,
    /// Columns and rows of the frame of --once
    #[arg(long, value_name = "COLUMNSxROWS", requires = "once", value_parser = parse_size)]
    size: Option<(u16, u16)>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

fn parse_every(text: &str) -> Result<Duration, String> {
    let every = Duration::from_nanos(parse_duration_ns(text)?);
    if (Duration::from_millis(200)..=Duration::from_mins(1)).contains(&every) {
        Ok(every)
    } else {
        Err(format!(
            "`{text}` is out of range; it must be between 200ms and 1m"
        ))
    }
}

fn parse_size(text: &str) -> Result<(u16, u16), String> {
    let refused = || format!("`{text}` is not a size; write 60x16 to 500x200, for example 80x24");
    let (columns, rows) = text.split_once('x').ok_or_else(refused)?;
    let size = (
        columns.parse().map_err(|_| refused())?,
        rows.parse().map_err(|_| refused())?,
    );
    if (60..=500).contains(&size.0) && (16..=200).contains(&size.1) {
        Ok(size)
    } else {
        Err(refused())
    }
}

/// The figures of one moment.
#[derive(Debug, Serialize)]
struct Figures {
    status: Status,
    sources: Vec<SourceRow>,
}

/// Runs `top`.
pub async fn run(args: TopArgs) -> Outcome {
    let client = args.connection.client()?;
    if args.output.is_json() {
        let Polled {
            status, sources, ..
        } = poll(&client).await?;
        print(&json_text(&Figures { status, sources })?)?;
        return Ok(Exit::Ok);
    }
    if args.once {
        return once(&client, args.size.unwrap_or(ONCE_SIZE)).await;
    }
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Failure::usage(
            "`top` needs a terminal, and standard input or output is none",
        )
        .with_help("`ratelimiter top --once` writes one frame, `ratelimiter top -o json` the figures"));
    }
    // Whoever may not ask is told so before the screen is taken.
    if let Err(failure) = client.get::<Status>("/v1/status").await
        && failure.exit != Exit::Unreachable
    {
        return Err(failure);
    }
    watch(client, args.every).await
}

async fn once(client: &Client, (columns, rows): (u16, u16)) -> Outcome {
    let mut state = State::new(client.target().to_string());
    for turn in 0..2 {
        if turn > 0 {
            tokio::time::sleep(ONCE_APART).await;
        }
        let polled = poll(client).await?;
        state.update(Input::Polled(Box::new(polled)), unix_ms());
    }
    let failed =
        |e: &dyn std::fmt::Display| Failure::new(format!("the frame cannot be drawn: {e}"));
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).map_err(|e| failed(&e))?;
    terminal
        .draw(|frame| draw(frame, &state, Theme { colour: false }))
        .map_err(|e| failed(&e))?;
    print(&text(terminal.backend().buffer()))?;
    Ok(Exit::Ok)
}

/// A frame as lines of text.
pub(crate) fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer
        .content()
        .chunks(usize::from(buffer.area.width).max(1))
    {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Shows the agent until told to stop.
async fn watch(client: Client, every: Duration) -> Outcome {
    let no_terminal = |e: std::io::Error| Failure::new(format!("the terminal cannot be used: {e}"));
    let mut stop = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ]
    .map(signal);
    let theme = Theme {
        colour: Style::of_stdout().colour,
    };
    let mut state = State::new(client.target().to_string());
    let (commands, asked) = mpsc::channel(QUEUE);
    let (answers, mut answered) = mpsc::channel(QUEUE);
    let worker = tokio::spawn(work(client, every, asked, answers));
    let mut screen = Screen::enter().map_err(no_terminal)?;
    let mut keys = keys().map_err(no_terminal)?;
    'shown: loop {
        screen
            .terminal()
            .draw(|frame| draw(frame, &state, theme))
            .map_err(no_terminal)?;
        let [terminate, interrupt, hangup] = &mut stop;
        let input = tokio::select! {
            said = keys.recv() => match said {
                Some(Said::Key(key)) => Input::Key(key),
                Some(Said::Resized) => Input::Tick,
                Some(Said::Gone) | None => break 'shown,
            },
            answer = answered.recv() => match answer {
                Some(answer) => answer,
                None => break 'shown,
            },
            () = arrives(terminate) => break 'shown,
            () = arrives(interrupt) => break 'shown,
            () = arrives(hangup) => break 'shown,
        };
        for command in state.update(input, unix_ms()) {
            // A queue that is full holds older questions; this one is asked again with the next poll.
            if command == Command::Quit
                || commands.try_send(command).is_err() && commands.is_closed()
            {
                break 'shown;
            }
        }
    }
    worker.abort();
    drop(screen);
    Ok(Exit::Ok)
}

async fn arrives(signal: &mut std::io::Result<tokio::signal::unix::Signal>) {
    match signal {
        Ok(signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}

/// Polls, and does what is asked in between.
async fn work(
    client: Client,
    every: Duration,
    mut asked: mpsc::Receiver<Command>,
    answers: mpsc::Sender<Input>,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let command = tokio::select! {
            command = asked.recv() => match command {
                Some(command) => Some(command),
                None => return,
            },
            _tick = ticks.tick() => None,
        };
        let input = match command {
            None => polled(&client).await,
            Some(Command::Explain(source)) => {
                let answer = explain(&client, &source).await.map_err(|f| f.message);
                Input::Explained(source, Box::new(answer))
            }
            Some(Command::Do(action)) => {
                let input = match act(&client, &action).await {
                    Ok(text) => Input::Done(text),
                    Err(failure) => Input::Refused(failure.message),
                };
                if answers.send(input).await.is_err() {
                    return;
                }
                // What it did is seen at once.
                polled(&client).await
            }
            Some(Command::Quit) => return,
        };
        if answers.send(input).await.is_err() {
            return;
        }
    }
}

async fn polled(client: &Client) -> Input {
    match poll(client).await {
        Ok(polled) => Input::Polled(Box::new(polled)),
        Err(failure) => Input::Unreachable(failure.message),
    }
}

async fn poll(client: &Client) -> Result<Polled, Failure> {
    let status = client.get("/v1/status").await?;
    let call = Call::new(Method::GET, "/v1/sources").query("limit", SOURCES.to_string());
    let page: Page<SourceRow> = client.send(call).await?.json()?;
    Ok(Polled {
        status,
        sources: page.items,
        sources_total: page.total,
    })
}

/// The address that stands for a source.
fn address(source: &str) -> String {
    prefix(source).map_or_else(|| source.to_owned(), |prefix| prefix.addr().to_string())
}

async fn explain(client: &Client, source: &str) -> Result<Explanation, Failure> {
    let call = Call::new(Method::GET, "/v1/explain").query("ip", address(source));
    client.send(call).await?.json()
}

async fn act(client: &Client, action: &Action) -> Result<String, Failure> {
    match action {
        Action::List { list, cidr, ttl_s } => {
            let call = Call::new(Method::POST, path(*list)).json(&ListPut {
                cidr: cidr.clone(),
                reason: Some("by hand, in top".to_owned()),
                ttl: ttl_s.and_then(|s| Window::from_ns(s.saturating_mul(1_000_000_000)).ok()),
            })?;
            let changed: Changed = client.send(call).await?.json()?;
            Ok(said(&changed))
        }
        Action::Unlist(cidr) => {
            let mut removed = Vec::new();
            for list in [List::Allow, List::Block] {
                let call = Call::new(Method::DELETE, path(list)).query("cidr", cidr.clone());
                match client.send(call).await {
                    Ok(answer) => removed.push(said(&answer.json()?)),
                    Err(failure) if failure.message.contains("there is no") => {}
                    Err(failure) => return Err(failure),
                }
            }
            if removed.is_empty() {
                return Err(Failure::new(format!(
                    "`{cidr}` is on neither list by itself"
                )));
            }
            Ok(removed.join("; "))
        }
        Action::Reset(cidr) => {
            let path = format!("/v1/sources/{}", segment(&address(cidr)));
            let answer: ResetAnswer = client.send(Call::new(Method::DELETE, path)).await?.json()?;
            Ok(answer.summary)
        }
        Action::Confirm(which) => ended(client, "/v1/changes:confirm", which).await,
        Action::Rollback(which) => ended(client, "/v1/changes:rollback", which).await,
    }
}

const fn path(list: List) -> &'static str {
    match list {
        List::Allow => "/v1/allowlist",
        List::Block => "/v1/blocklist",
    }
}

fn said(changed: &Changed) -> String {
    match (&changed.pending, changed.warnings.first()) {
        (Some(_), Some(warning)) => format!("{}: {warning}", changed.what),
        (Some(_), None) => format!("{}, on trial: c keeps it", changed.what),
        (None, _) => format!("done: {} (revision {})", changed.what, changed.revision),
    }
}

/// Ends the trials of these revisions, the newest first: an older one may lie beneath it.
async fn ended(client: &Client, path: &str, revisions: &[u64]) -> Result<String, Failure> {
    let mut changed: Vec<Changed> = Vec::new();
    let mut newest_first = revisions.to_vec();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    for revision in newest_first {
        let call = Call::new(Method::POST, path).query("revision", revision.to_string());
        changed.extend(client.send(call).await?.json::<Vec<Changed>>()?);
    }
    if changed.is_empty() {
        return Err(Failure::new("no change is on trial"));
    }
    let what: Vec<&str> = changed.iter().map(|c| c.what.as_str()).collect();
    Ok(what.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_bounds() {
        assert_eq!(parse_size("80x24"), Ok((80, 24)));
        for wrong in ["80", "x", "59x24", "80x15", "501x24", "80x24x1"] {
            assert!(parse_size(wrong).unwrap_err().contains("60x16"), "{wrong}");
        }
        assert_eq!(parse_every("500ms"), Ok(Duration::from_millis(500)));
        assert!(parse_every("100ms").unwrap_err().contains("200ms and 1m"));
        assert!(parse_every("2m").is_err());
    }

    #[test]
    fn an_ipv6_source_is_asked_about_by_its_first_address() {
        assert_eq!(address("2001:db8::/64"), "2001:db8::");
        assert_eq!(address("192.0.2.7"), "192.0.2.7");
    }
}
