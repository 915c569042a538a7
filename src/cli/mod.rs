//! The command line: what was asked, handed to the part that answers it.
//!
//! Exit codes: 0 done, 1 the answer is no (a configuration that does not pass, an address that is none, a word that is refused), 2 wrong
//! usage or something that could not be read.

mod check;
mod drill;
mod explain;
mod live;
mod reload;
mod set;
mod states;
mod upgrade;

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::{demo, memory, origin, server};

/// A geo-aware reverse proxy: each request to the nearest healthy data center.
#[derive(Debug, Parser)]
#[command(name = "meridian", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Run(ConfigFile),
    /// Check a configuration and the data it names
    Check(check::Check),
    /// Tell where a client's requests go, and why
    Explain(explain::Explain),
    /// Have the running process read its files now
    Reload(reload::Reload),
    /// Say what shall become of a region or an endpoint
    Set(set::Set),
    /// Show every service in every region: what is observed, and what operators want
    States(states::States),
    /// Have a new process, of the binary that is there now, take the place of the running one
    Upgrade(upgrade::Upgrade),
    /// Run with embedded data and three demo regions on loopback
    Demo(demo::Demo),
    /// Play outages with real processes on loopback, and measure what becomes of the requests
    Drill(drill::Drill),
    /// A small origin server for demos and tests
    #[command(hide = true)]
    Origin(Origin),
}

/// Which configuration is meant.
#[derive(Args, Clone, Debug)]
struct ConfigFile {
    /// The configuration
    #[arg(short, long, value_name = "FILE", env = "MERIDIAN_CONFIG", default_value = "/etc/meridian/meridian.toml")]
    config: PathBuf,
}

/// Which running process is meant.
#[derive(Args, Debug)]
struct Process {
    #[command(flatten)]
    file: ConfigFile,
    /// Where the running process answers: its admin socket's path or its admin address (default: as configured)
    #[arg(long, value_name = "SOCKET|ADDRESS")]
    admin: Option<String>,
}

#[derive(Args, Debug)]
struct Origin {
    /// The name it answers with
    name: String,
    /// Where it listens; port 0 takes any and says which
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Allow an address that is not loopback: it shows what it sees to everybody
    #[arg(long)]
    anywhere: bool,
    /// Fail as `POST /_control?trouble=WORD` tells: executed, body, close, refuse, garbage, drip, half, or a status
    #[arg(long)]
    troubled: bool,
    /// With --troubled: a file that gets a line for each request that was executed
    #[arg(long, value_name = "FILE", requires = "troubled")]
    journal: Option<PathBuf>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    memory::give_large_blocks_back();
    match Cli::parse().command {
        Command::Run(file) => server::run(&file.config, None),
        Command::Check(check) => check.run(),
        Command::Explain(explain) => explain.run(),
        Command::Reload(reload) => reload.run(),
        Command::Set(set) => set.run(),
        Command::States(states) => states.run(),
        Command::Upgrade(upgrade) => upgrade.run(),
        Command::Demo(demo) => demo.run(),
        Command::Drill(drill) => drill.run(),
        Command::Origin(Origin { name, listen, anywhere, troubled, journal }) => {
            let troubles = troubled.then_some(origin::Troubles { journal });
            origin::main(&name, listen, anywhere, troubles)
        }
    }
}

/// Writes `text` to standard output. Whoever closed its other end had enough: that is no error.
fn print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(format!("error: standard output: {error}")),
        _ => Ok(()),
    }
}

/// The exit code of a command: its own, or 2 once it was said on standard error why there is none.
fn or_complain(outcome: Result<ExitCode, String>) -> ExitCode {
    outcome.unwrap_or_else(|message| {
        complain(&format!("{}\n", message.trim_end()));
        ExitCode::from(2)
    })
}

/// Writes `text` to standard error; where that cannot be written, nobody can be told.
fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Who sits at this terminal: behind `sudo` the system only knows root.
fn who() -> String {
    let variables = ["SUDO_USER", "USER", "LOGNAME"];
    variables.iter().find_map(|name| std::env::var(name).ok().filter(|who| !who.is_empty())).unwrap_or_default()
}
