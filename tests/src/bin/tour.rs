//! What `cargo xtask run` shows: see `tests::tour`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tests::tour;

/// A tour of Sluice: a lab of network namespaces as pods, the agent on sample manifests, real traffic, and what became
/// of it. It stays until Ctrl-C and shows live flows; edits of the samples take effect meanwhile.
#[derive(Debug, Parser)]
#[command(name = "tour")]
struct Arguments {
    /// End after the tour: exit code 0 only if every step showed what it should.
    #[arg(long)]
    once: bool,

    /// The manifests.
    #[arg(long, value_name = "DIR", default_value = "deploy/samples")]
    samples: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match tour::run(&arguments.samples, arguments.once) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tour: {error:#}");
            ExitCode::FAILURE
        }
    }
}
