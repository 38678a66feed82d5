//! `bench-kernel [--json FILE] [--rounds N]`: see `tests::bench::kernel`.
use std::process::ExitCode;

use tests::bench::churn;
use tests::bench::kernel::kernel;

fn main() -> ExitCode {
    tests::requires::bpf();
    let mut json = None;
    let mut rounds = 7;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--json", Some(file)) => json = Some(file),
            ("--rounds", Some(number)) => match number.parse() {
                Ok(number) if number >= 1 => rounds = number,
                _ => return usage(&format!("`--rounds` is `{number}`; it must be 1 or more")),
            },
            (other, _) => return usage(&format!("unexpected argument `{other}`")),
        }
    }
    let mut figures = kernel(rounds);
    figures.extend(churn::rows());
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
    eprintln!("{what}\nusage: bench-kernel [--json FILE] [--rounds N]");
    ExitCode::from(2)
}
