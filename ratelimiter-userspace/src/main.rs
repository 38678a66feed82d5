//! The `ratelimiter` binary.

fn main() -> std::process::ExitCode {
    ratelimiter_userspace::cli::main()
}
