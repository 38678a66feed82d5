//! `bench-kernel [--json FILE] [--rounds N] [--rows A,B] [--object FILE]`: see `tests::bench::kernel`.
use std::process::ExitCode;

use tests::bench::churn;
use tests::bench::kernel::{Choice, kernel};

fn main() -> ExitCode {
    tests::requires::bpf();
    let mut json = None;
    let mut rounds = 7;
    let mut choice = Choice::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--json", Some(file)) => json = Some(file),
            ("--rounds", Some(number)) => match number.parse() {
                Ok(number) if number >= 1 => rounds = number,
                _ => return usage(&format!("`--rounds` is `{number}`; it must be 1 or more")),
            },
            ("--rows", Some(names)) => choice.rows = names.split(',').map(str::to_owned).collect(),
            ("--object", Some(file)) => match std::fs::read(&file) {
                Ok(object) => choice.object = Some(object.leak()),
                Err(error) => return usage(&format!("cannot read `{file}`: {error}")),
            },
            (other, _) => return usage(&format!("unexpected argument `{other}`")),
        }
    }
    let mut figures = kernel(rounds, &choice);
    if choice.rows.is_empty() {
        figures.extend(churn::rows());
    }
    if let Some(file) = json {
        let text = match serde_json::to_string_pretty(&figures) {
            Ok(text) => text,
            Err(error) => return usage(&error.to_string()),
        };
        if let Err(error) = std::fs::write(&file, text) {
            return usage(&format!("cannot write `{file}`: {error}"));
        }
    }
    ExitCode::SUCCESS
}

fn usage(what: &str) -> ExitCode {
    eprintln!(
        "{what}\nusage: bench-kernel [--json FILE] [--rounds N] [--rows A,B] [--object FILE]"
    );
    ExitCode::from(2)
}
