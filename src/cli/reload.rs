//! `meridian reload`: has the running process read its files now, and says how that went.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::cli::live::tell;
use crate::cli::{Process, or_complain, print, who};

/// Arguments of `meridian reload`.
#[derive(Args, Debug)]
pub(super) struct Reload {
    /// Even if it moves more clients than [process] brake lets pass
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    process: Process,
}

impl Reload {
    pub(super) fn run(self) -> ExitCode {
        or_complain(self.ask())
    }

    fn ask(&self) -> Result<ExitCode, String> {
        let answer = match tell(&self.process, "/api/reload", &json!({ "force": self.force, "who": who() }))? {
            Ok(answer) => answer,
            Err(refused) => return Ok(refused),
        };
        let mut said = format!("reloaded: generation {}\n", answer["generation"]);
        let keys: Vec<&str> =
            answer["needs_restart"].as_array().into_iter().flatten().filter_map(|key| key.as_str()).collect();
        if !keys.is_empty() {
            said += &format!("not in force yet: {}; `meridian upgrade` has a new process take over\n", keys.join(", "));
        }
        print(&said)?;
        Ok(ExitCode::SUCCESS)
    }
}
