//! `meridian demo`: the real proxy with the embedded geo data before three real origin processes on loopback, to try things on;
//! and `--play`, which shows a region's outage and return as a live table.

mod play;
mod stage;

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Args;

use crate::server;
use stage::Stage;

/// Arguments of `meridian demo`.
#[derive(Args, Debug)]
pub struct Demo {
    /// Play half a minute of geo-routed traffic: a region is killed and comes back
    #[arg(long)]
    play: bool,
    /// Where the proxy listens
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where the admin pages are
    #[arg(long, default_value = "127.0.0.1:9180")]
    admin: SocketAddr,
}

impl Demo {
    /// Runs until interrupted, or until the play is over (exit code 1 if a request failed in it).
    pub fn run(self) -> ExitCode {
        let outcome = self.are_free().and_then(|()| match self.play {
            true => play::run(self.listen, self.admin),
            false => self.stay(),
        });
        outcome.unwrap_or_else(|error| {
            eprintln!("error: {error}");
            ExitCode::from(2)
        })
    }

    /// Whether nobody has our addresses: said before anything is printed, and before another meridian is taken for the one on show.
    fn are_free(&self) -> Result<(), String> {
        for address in [self.listen, self.admin] {
            std::net::TcpListener::bind(address).map_err(|error| {
                format!("{address}: {error}; choose others with --listen 127.0.0.1:8081 --admin 127.0.0.1:9181")
            })?;
        }
        Ok(())
    }

    fn stay(&self) -> Result<ExitCode, String> {
        let stage = Stage::build(&["us-east", "us-west", "eu-west"], self.listen, self.admin, Stage::UNHURRIED)?;
        say(&self.guide(&stage));
        let alone = "this is the demo, which ends its origins when it ends: upgrade a process of `meridian run`";
        Ok(server::run(&stage.config(), Some(alone)))
    }

    fn guide(&self, stage: &Stage) -> String {
        let (listen, admin) = (self.listen, self.admin);
        let config = stage.config();
        let config = config.display();
        let mut text = format!("meridian demo (process {}), configuration {config}\n\n", std::process::id());
        for origin in stage.origins() {
            text += &format!("  {:<8}  origin process {:>6} at {}\n", origin.name, origin.id(), origin.address);
        }
        let program = std::env::current_exe().unwrap_or_else(|_| "meridian".into());
        let program = program.display();
        let east = stage.origins().first();
        let (id, at) = (east.map_or(0, |o| o.id()), east.map_or(self.listen, |o| o.address));
        text + &format!(
            "  admin     http://{admin}/metrics  /healthz  /readyz  /api/status  /api/explain?ip=…\n\n\
             Try in another terminal:\n\
             \x20 curl -H 'X-Forwarded-For: 81.2.69.142' http://{listen}/      # London: eu-west\n\
             \x20 curl -H 'X-Forwarded-For: 128.101.101.101' http://{listen}/  # Minneapolis: a region in the US\n\
             \x20 {program} explain --live --config {config} --ip 81.2.69.142\n\
             \x20 kill {id}   # us-east goes down; its clients are elsewhere at once (see /api/status)\n\
             \x20 {program} origin us-east --listen {at}   # and comes back: 10 s of hold, 20 s of ramp\n\n\
             Edit {config} while it runs: it is read again at once. Ctrl-C ends all of it."
        )
    }
}

/// A line on standard output. That nobody reads it is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
