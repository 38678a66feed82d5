//! `ratelimiter config`: the configuration file, without an agent.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use serde::Serialize;

use super::exit::{Exit, Failure, Outcome};
use super::output::{Cell, OutputArgs, Style, Table, Tint, json_text, print, remark};
use super::settings::{config_path, owner_problem, read_file, settings};
use crate::config::show::{Shown, default_text, example, schema, show};
use crate::config::{File, Loaded, Origin, Problem, Settings, load};

/// What to do with the configuration.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file: every mistake with line, column, value and bound
    Check(CheckArgs),
    /// Show every setting in force and where it comes from
    Show(ShowArgs),
    /// Show every setting's default
    Default(DefaultArgs),
    /// Print the JSON schema of the file, for editors
    Schema,
    /// Print a commented example of the file
    Example,
}

/// Flags of `check`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Exit code 0 if the agent would take it, 2 if not. A running agent never takes a broken file: it
keeps the policy it has.

Examples:
  ratelimiter config check
  ratelimiter config check ./ratelimiter.toml")]
pub struct CheckArgs {
    /// The file, `-` for standard input
    #[arg(
        value_name = "PATH",
        env = "RATELIMITER_CONFIG",
        default_value = crate::config::DEFAULT_PATH,
        hide_env_values = true
    )]
    path: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of `show`.
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// Configuration file. Default: /etc/ratelimiter/ratelimiter.toml if it exists
    #[arg(
        long,
        value_name = "PATH",
        env = "RATELIMITER_CONFIG",
        hide_env_values = true
    )]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of `default`.
#[derive(Clone, Debug, Args)]
pub struct DefaultArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `config`.
pub fn run(command: ConfigCommand) -> Outcome {
    match command {
        ConfigCommand::Check(args) => check(&args),
        ConfigCommand::Show(args) => {
            let path = config_path(args.config.as_deref());
            let loaded = settings(path.as_deref(), &[])?;
            args.output
                .show(&show(&loaded), |shown, style| table(shown, style))?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Default(args) => {
            args.output
                .show(&Settings::default(), |_, _| default_text())?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Schema => {
            print(&json_text(&schema())?)?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Example => {
            print(&example())?;
            Ok(Exit::Ok)
        }
    }
}

/// What `check -o json` says.
#[derive(Debug, Serialize)]
struct Report {
    valid: bool,
    problems: Vec<ProblemView>,
    warnings: Vec<ProblemView>,
}

/// One problem, for scripts and editors.
#[derive(Debug, Serialize)]
struct ProblemView {
    path: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl From<&Problem> for ProblemView {
    fn from(problem: &Problem) -> Self {
        Self {
            path: problem.path.clone(),
            message: problem.message.clone(),
            line: problem.place.as_ref().map(|place| place.line),
            column: problem.place.as_ref().map(|place| place.column),
            help: problem.help.clone(),
        }
    }
}

/// Judges the text of a file by itself: neither environment nor flags.
pub fn judge(name: &str, bytes: &[u8]) -> Result<Loaded, crate::config::Refused> {
    load(
        Some(File { name, bytes }),
        &std::collections::BTreeMap::<String, String>::new(),
        &[],
    )
}

fn check(args: &CheckArgs) -> Outcome {
    let bytes = read_file(&args.path)?;
    let name = args.path.display().to_string();
    let judged = judge(&name, &bytes);
    let owner = owner_problem(&args.path);
    if args.output.is_json() {
        let (problems, warnings) = match &judged {
            Ok(loaded) => (&[][..], &loaded.warnings[..]),
            Err(refused) => (&refused.problems[..], &[][..]),
        };
        let mut problems: Vec<ProblemView> = problems.iter().map(Into::into).collect();
        problems.extend(owner.map(|message| ProblemView {
            path: String::new(),
            message,
            line: None,
            column: None,
            help: None,
        }));
        let report = Report {
            valid: problems.is_empty(),
            problems,
            warnings: warnings.iter().map(Into::into).collect(),
        };
        print(&json_text(&report)?)?;
        return Ok(if report.valid { Exit::Ok } else { Exit::Usage });
    }
    let loaded = judged.map_err(|refused| {
        let count = refused.problems.len();
        let noun = if count == 1 { "problem" } else { "problems" };
        Failure::usage(format!("{count} {noun} in `{name}`\n{refused}"))
    })?;
    if let Some(problem) = owner {
        return Err(Failure::usage(problem));
    }
    for warning in &loaded.warnings {
        remark(&format!("warning: {warning}"));
    }
    let document = &loaded.document;
    print(&format!(
        "`{name}` is valid: {} segments, {} clients, {} allowed and {} blocked prefixes\n",
        document.segments.len(),
        document.clients.len(),
        document.allow.len(),
        document.block.len()
    ))?;
    Ok(Exit::Ok)
}

fn table(shown: &[Shown], style: Style) -> String {
    let mut table = Table::new(&["SETTING", "VALUE", "FROM"]);
    for setting in shown {
        let origin = match &setting.origin {
            Origin::Default => Cell::new("default", Tint::Dim),
            origin => origin.to_string().into(),
        };
        table.row(vec![
            setting.path.as_str().into(),
            setting.value.to_string().into(),
            origin,
        ]);
    }
    table.render(style, "no settings")
}
