//! `meridian upgrade`: has another process take the place of the running one, and says how that went.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::cli::live::tell;
use crate::cli::{Process, or_complain, print, who};

/// Arguments of `meridian upgrade`.
#[derive(Args, Debug)]
pub(super) struct Upgrade {
    #[command(flatten)]
    process: Process,
}

impl Upgrade {
    pub(super) fn run(self) -> ExitCode {
        or_complain(self.ask())
    }

    fn ask(&self) -> Result<ExitCode, String> {
        let answer = match tell(&self.process, "/api/upgrade", &json!({ "who": who() }))? {
            Ok(answer) => answer,
            Err(refused) => return Ok(refused),
        };
        print(&format!(
            "upgraded: process {} took over; the one before it finishes what it has begun\n",
            answer["pid"]
        ))?;
        Ok(ExitCode::SUCCESS)
    }
}
