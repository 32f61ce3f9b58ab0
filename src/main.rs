//! The command line of sstep; `sstep --help` explains it.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
