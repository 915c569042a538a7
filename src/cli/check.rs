//! `meridian check`: everything that `run` would read, read and compiled, and then let go.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::cli::ConfigFile;
use crate::load::{LoadError, Loader};

/// Arguments of `meridian check`.
#[derive(Args, Debug)]
pub(super) struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// The configuration, as an argument
    #[arg(value_name = "FILE", conflicts_with = "config")]
    path: Option<PathBuf>,
    /// Warnings fail, too
    #[arg(long)]
    strict: bool,
}

impl Check {
    pub(super) fn run(self) -> ExitCode {
        let path = self.path.unwrap_or(self.file.config);
        match Loader::default().load(&path) {
            Ok(loaded) => {
                let config = &loaded.config;
                eprint!("{}", config.warnings);
                let warnings = config.warnings.warnings();
                let fleet = &config.fleet;
                println!(
                    "{}: {} regions, {} services, {} pools, {} places{}",
                    path.display(),
                    fleet.regions.len(),
                    fleet.services.len(),
                    fleet.pools.len(),
                    loaded.view.atlas.places().len(),
                    if warnings == 0 { String::new() } else { format!("; warnings: {warnings}") },
                );
                ExitCode::from(u8::from(self.strict && warnings > 0))
            }
            Err(error @ LoadError::Config(_)) => {
                eprint!("{error}");
                ExitCode::from(1)
            }
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::from(1)
            }
        }
    }
}
