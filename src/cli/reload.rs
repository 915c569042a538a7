//! `meridian reload`: has the running process read its files now, and says how that went.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::live::{Asker, Reply};
use crate::cli::{ConfigFile, complain, or_complain, print, who};

/// Arguments of `meridian reload`.
#[derive(Args, Debug)]
pub(super) struct Reload {
    #[command(flatten)]
    file: ConfigFile,
    /// Even if it moves more clients than [process] brake lets pass
    #[arg(long)]
    force: bool,
    /// Where the running process answers: its admin socket's path or its admin address (default: as configured)
    #[arg(long, value_name = "SOCKET|ADDRESS")]
    admin: Option<String>,
}

impl Reload {
    pub(super) fn run(self) -> ExitCode {
        or_complain(self.ask())
    }

    fn ask(&self) -> Result<ExitCode, String> {
        let mut asker = Asker::new(&self.file.config, self.admin.as_deref())?;
        let Reply { status, body } =
            asker.post("/api/reload", json!({ "force": self.force, "who": who() }).to_string())?;
        let text = String::from_utf8_lossy(&body);
        if !status.is_success() {
            complain(&format!("error: {}\n", text.trim_end()));
            // The process understood and what it read will not do, or it cannot be asked at all.
            return Ok(ExitCode::from(if status.as_u16() == 409 { 1 } else { 2 }));
        }
        let answer: Value =
            serde_json::from_str(&text).map_err(|error| format!("error: an answer that is none: {error}"))?;
        print(&format!("reloaded: generation {}\n", answer["generation"]))?;
        Ok(ExitCode::SUCCESS)
    }
}
