//! `meridian check`: everything that `run` would read, read and compiled, and then let go.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::cli::{ConfigFile, complain, print};
use crate::config::AccessLog;
use crate::load::{LoadError, Loader, ending, outdated};

/// Arguments of `meridian check`.
#[derive(Args, Debug)]
pub(super) struct Check {
    #[command(flatten)]
    file: ConfigFile,
    /// The configuration, as an argument; it goes before `--config` and the environment
    #[arg(value_name = "FILE")]
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
                if !config.warnings.is_empty() {
                    complain(&config.warnings.to_string());
                }
                // Not counted: what passes today would fail one day without a change.
                for (source, days) in outdated(&loaded.view.atlas) {
                    complain(&format!("warning: geo data {source} is {days} days old; places may have moved\n"));
                }
                for ending in ending(&config.edge) {
                    complain(&format!("warning: {ending}\n"));
                }
                if let AccessLog::File(file) | AccessLog::StdoutAndFile(file) = &config.boot.access_log
                    && !file.parent().is_some_and(Path::is_dir)
                {
                    complain(&format!(
                        "warning: [log] access {}: there is no such folder, and `run` makes none\n",
                        file.display()
                    ));
                }
                let warnings = config.warnings.warnings();
                let fleet = &config.fleet;
                let summary = format!(
                    "{}: {} regions, {} services, {} pools, {} places{}\n",
                    path.display(),
                    fleet.regions.len(),
                    fleet.services.len(),
                    fleet.pools.len(),
                    loaded.view.atlas.places().len(),
                    if warnings == 0 { String::new() } else { format!("; warnings: {warnings}") },
                );
                match print(&summary) {
                    Ok(()) => ExitCode::from(u8::from(self.strict && warnings > 0)),
                    Err(error) => {
                        complain(&format!("{error}\n"));
                        ExitCode::from(2)
                    }
                }
            }
            Err(error @ LoadError::Config(_)) => {
                complain(&error.to_string());
                ExitCode::from(1)
            }
            Err(LoadError::Data(refused)) => {
                for refused in refused {
                    complain(&format!("error: {refused}\n"));
                }
                ExitCode::from(1)
            }
        }
    }
}
