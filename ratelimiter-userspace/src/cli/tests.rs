//! The command line as a whole: it is well formed, and every command explains itself.

use clap::{Command, CommandFactory, Parser};

use super::Cli;

#[test]
fn definition_is_well_formed() {
    Cli::command().debug_assert();
}

fn every_command(command: &Command, visit: &mut dyn FnMut(&Command)) {
    visit(command);
    for child in command.get_subcommands() {
        every_command(child, visit);
    }
}

#[test]
fn every_command_and_flag_says_what_it_does() {
    every_command(&Cli::command(), &mut |command| {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{} of {}",
                argument.get_id(),
                command.get_name()
            );
        }
    });
}

#[test]
fn every_answer_has_a_json_form() {
    let mut root = Cli::command();
    root.build();
    every_command(&root, &mut |command| {
        let silent = [
            "ratelimiter",
            "agent",
            "completions",
            "man",
            "schema",
            "example",
            "help",
        ];
        let leaf = command.get_subcommands().next().is_none();
        if leaf && !silent.contains(&command.get_name()) {
            assert!(
                command.get_arguments().any(|a| a.get_id() == "output"),
                "{} has no -o",
                command.get_name()
            );
        }
    });
}

#[test]
fn every_change_has_dry_run_and_try() {
    every_command(&Cli::command(), &mut |command| {
        if ["set", "rm", "add", "apply"].contains(&command.get_name()) {
            for flag in ["dry_run", "try_for"] {
                assert!(
                    command.get_arguments().any(|a| a.get_id() == flag),
                    "{flag}"
                );
            }
        }
    });
}

#[test]
fn examples_in_help_texts_parse() {
    let mut examples = 0;
    every_command(&Cli::command(), &mut |command| {
        let Some(help) = command.get_after_help() else {
            return;
        };
        for line in help.to_string().lines() {
            let Some(example) = line.strip_prefix("  ratelimiter ") else {
                continue;
            };
            // Up to the remark, the pipe or the redirection.
            let end = ["   ", " | ", " > ", " && "]
                .iter()
                .filter_map(|stop| example.find(stop))
                .min()
                .unwrap_or(example.len());
            let words = example[..end].replace('\'', "");
            let words = std::iter::once("ratelimiter").chain(words.split_whitespace());
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("`{example}`: {error}");
            }
            examples += 1;
        }
    });
    assert!(examples > 30, "{examples}");
}
