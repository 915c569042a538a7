//! `meridian set`: an operator's word over regions or endpoints, said to the running process.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::live::tell;
use crate::cli::{Process, complain, or_complain, print, who};

/// Arguments of `meridian set`.
#[derive(Args, Debug)]
pub(super) struct Set {
    /// What it is over
    #[arg(value_parser = ["region", "endpoint"])]
    kind: String,
    /// The region's name, or the endpoint's address or `host:port` as configured; `*` and `?` may stand for characters
    name: String,
    /// ready: takes traffic; drain: no new clients; maint: nothing; auto: as the configuration says
    #[arg(value_parser = ["ready", "drain", "maint", "auto"])]
    state: String,
    /// For how long, as in 30m or 4h; without it until `auto`
    #[arg(long = "for", value_name = "TIME")]
    lasting: Option<String>,
    /// Why, for those who come after
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// Even if a service is left without any ready region, or with none that is up, or more clients move than [process] brake lets pass
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    process: Process,
}

impl Set {
    pub(super) fn run(self) -> ExitCode {
        or_complain(self.say())
    }

    fn say(&self) -> Result<ExitCode, String> {
        let mut word = json!({
            "kind": self.kind, "name": self.name, "state": self.state, "reason": self.reason, "force": self.force, "who": who(),
        });
        if let Some(lasting) = &self.lasting {
            word["for"] = json!(lasting);
        }
        let answer = match tell(&self.process, "/api/overrides", &word)? {
            Ok(answer) => answer,
            Err(refused) => return Ok(refused),
        };
        let mut line = format!("{} {}: {}", self.kind, self.name, self.state);
        if let Some(until) = answer["override"]["until"].as_str() {
            line += &format!(" until {until}");
        }
        let targets: Vec<&str> = answer["targets"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if targets != [self.name.as_str()] {
            line +=
                &format!(" ({})", if targets.is_empty() { "nothing fits now".to_owned() } else { targets.join(", ") });
        }
        print(&format!("{line}\n"))?;
        if let Some(note) = answer["note"].as_str() {
            complain(&format!("note: {note}\n"));
        }
        Ok(ExitCode::SUCCESS)
    }
}
