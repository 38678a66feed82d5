//! `ratelimiter completions` and `ratelimiter man`: what packages install beside the binary.

use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory};

use super::exit::{Exit, Failure, Outcome};
use super::output::print;

/// Flags of `completions`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  ratelimiter completions bash > /etc/bash_completion.d/ratelimiter
  ratelimiter completions zsh > ~/.zfunc/_ratelimiter
  ratelimiter completions fish > ~/.config/fish/completions/ratelimiter.fish")]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Flags of `man`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  ratelimiter man | man -l -              read the overview
  ratelimiter man --all /usr/share/man/man1   one page per command")]
pub struct ManArgs {
    /// Write a page for every command into this directory, which must exist
    #[arg(long, value_name = "DIR")]
    all: Option<PathBuf>,
}

/// Runs `completions`.
pub fn completions(args: &CompletionsArgs) -> Outcome {
    let mut text = Vec::new();
    let mut command = super::Cli::command();
    clap_complete::generate(args.shell, &mut command, "ratelimiter", &mut text);
    print(&String::from_utf8_lossy(&text))?;
    Ok(Exit::Ok)
}

/// Runs `man`.
pub fn man(args: &ManArgs) -> Outcome {
    let mut command = super::Cli::command();
    command.build();
    match &args.all {
        None => print(&page(command)?)?,
        Some(folder) => write_pages(folder, &command, "ratelimiter")?,
    }
    Ok(Exit::Ok)
}

fn page(command: Command) -> Result<String, Failure> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut text)
        .map_err(|e| Failure::new(format!("the manual page cannot be written: {e}")))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn write_pages(folder: &Path, command: &Command, name: &str) -> Result<(), Failure> {
    let file = folder.join(format!("{name}.1"));
    // clap wants 'static names; a page is written once per process.
    let titled = command.clone().name(&*name.to_owned().leak());
    std::fs::write(&file, page(titled)?)
        .map_err(|e| Failure::new(format!("`{}` cannot be written: {e}", file.display())))?;
    for child in command
        .get_subcommands()
        .filter(|c| c.get_name() != "help" && !c.is_hide_set())
    {
        write_pages(folder, child, &format!("{name}-{}", child.get_name()))?;
    }
    Ok(())
}
