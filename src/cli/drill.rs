//! `meridian drill`: what is asked for, played one after the other, and told as a table, as JSON and as timelines.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{complain, or_complain, print};
use crate::config::meant;
use crate::drill::svg::{self, Panel};
use crate::drill::table::{self, Row};
use crate::drill::{self, FAULTS, Fault, Figures, Seen, Setup, Who, figures};

/// Arguments of `meridian drill`.
#[derive(Args, Debug)]
pub(super) struct Drill {
    /// The faults to play, by name; all of them if none is named
    #[arg(long, value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    fault: Vec<String>,
    /// List the faults, a line each
    #[arg(long)]
    list: bool,
    /// Play them against these, too: nginx, haproxy, envoy
    #[arg(long, value_name = "PEER", value_delimiter = ',', num_args = 1..)]
    against: Vec<Peer>,
    /// Play each so many times, and take medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=99))]
    runs: u32,
    /// Requests a second, a quarter of them POSTs; where regions have a capacity, that decides instead
    #[arg(long, value_name = "N", default_value_t = drill::RATE, value_parser = clap::value_parser!(u32).range(1..=2000))]
    rate: u32,
    /// Write all figures into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw a timeline of each fault's first run into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Where Envoy is, if not in PATH
    #[arg(long, value_name = "PROGRAM")]
    envoy: Option<PathBuf>,
    /// Play one fault against one proxy in the network that is here, and print what was seen
    #[arg(long, value_name = "PROXY", hide = true)]
    inside: Option<Who>,
}

/// Who can be compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    Nginx,
    Haproxy,
    Envoy,
}

impl Peer {
    fn who(self) -> Who {
        match self {
            Peer::Nginx => Who::Nginx,
            Peer::Haproxy => Who::Haproxy,
            Peer::Envoy => Who::Envoy,
        }
    }
}

/// What came of one fault and one proxy.
struct Played {
    row: Row,
    runs: Vec<Figures>,
    /// Of the first run, for the timeline.
    seen: Seen,
}

impl Drill {
    pub(super) fn run(self) -> ExitCode {
        if self.list || self.fault.iter().any(|name| name == "list") {
            return or_complain(print(&list()).map(|()| ExitCode::SUCCESS));
        }
        or_complain(self.play())
    }

    fn play(&self) -> Result<ExitCode, String> {
        let faults = self.faults()?;
        let program = std::env::current_exe().map_err(|error| format!("error: own program not found: {error}"))?;
        let setup = Setup { program, envoy: self.envoy.clone(), rate: self.rate };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| format!("error: no runtime: {error}"))?;
        runtime.block_on(async {
            // Whoever ends it first ends the children with what is dropped.
            tokio::select! {
                outcome = self.tell(&setup, &faults) => outcome.map_err(|error| format!("error: {error}")),
                () = interrupted() => Ok(ExitCode::from(130)),
            }
        })
    }

    fn faults(&self) -> Result<Vec<&'static Fault>, String> {
        if self.fault.is_empty() {
            return Ok(FAULTS.iter().collect());
        }
        let named = |name: &String| {
            Fault::named(name).ok_or_else(|| {
                let hint = match meant(name, FAULTS.iter().map(|fault| fault.name)) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => "`meridian drill --list` names them all".to_owned(),
                };
                format!("error: there is no fault `{name}`; {hint}")
            })
        };
        self.fault.iter().map(named).collect()
    }

    async fn tell(&self, setup: &Setup, faults: &[&'static Fault]) -> Result<ExitCode, String> {
        if let Some(who) = self.inside {
            let [fault] = faults else { return Err("--inside is for one fault".to_owned()) };
            let seen = drill::play_here(setup, fault, who).await?;
            print(&serde_json::to_string(&seen).map_err(|error| error.to_string())?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut versions = BTreeMap::new();
        for who in std::iter::once(Who::Meridian).chain(self.against.iter().map(|peer| peer.who())) {
            versions.insert(who.as_str(), who.version(setup)?);
        }
        let all = self.play_all(setup, faults).await?;
        let rows: Vec<Row> = all.iter().map(|played| played.row.clone()).collect();
        let (misses, behind) = (table::misses(&rows), table::behind(&rows));
        let named: Vec<String> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let runs = if self.runs == 1 { "one run each".to_owned() } else { format!("medians of {} runs", self.runs) };
        let mut text = format!("{}; {runs}\n\n{}", named.join(", "), table::render(&rows));
        for (what, lines) in [("outside of the bars", &misses), ("behind the best peer", &behind)] {
            if !lines.is_empty() {
                text += &format!("\n{what}:\n");
                lines.iter().for_each(|line| text += &format!("  {line}\n"));
            }
        }
        print(&text)?;
        self.write(&versions, &all)?;
        Ok(ExitCode::from(u8::from(!misses.is_empty())))
    }

    async fn play_all(&self, setup: &Setup, faults: &[&'static Fault]) -> Result<Vec<Played>, String> {
        let mut all = Vec::new();
        for fault in faults {
            let peers = self.against.iter().map(|peer| peer.who()).filter(|_| fault.is_for_peers());
            for who in std::iter::once(Who::Meridian).chain(peers) {
                let mut runs = Vec::new();
                let mut first = None;
                for n in 1..=self.runs {
                    progress(&format!("{}, {}, {n} of {}", fault.name, who.as_str(), self.runs));
                    let seen = drill::play(setup, fault, who).await;
                    let seen = seen.map_err(|error| format!("{}, {}: {error}", fault.name, who.as_str()))?;
                    runs.push(Figures::of(fault, &seen));
                    first.get_or_insert(seen);
                }
                progress("");
                let misses = (who == Who::Meridian).then(|| drill::judge(fault, &runs));
                let figures = figures::medians(&runs);
                let row = Row { fault: fault.name, who: who.as_str(), figures, misses };
                all.push(Played { row, runs, seen: first.unwrap_or_default() });
            }
        }
        Ok(all)
    }

    fn write(&self, versions: &BTreeMap<&str, String>, all: &[Played]) -> Result<(), String> {
        if let Some(path) = &self.json {
            let result = |played: &Played| {
                let Row { fault, who, figures, misses } = &played.row;
                json!({ "fault": fault, "proxy": who, "medians": figures, "runs": played.runs, "misses": misses })
            };
            let results: Vec<_> = all.iter().map(result).collect();
            let whole = json!({ "versions": versions, "rate": self.rate, "runs": self.runs, "results": results });
            let text = serde_json::to_string_pretty(&whole).map_err(|error| error.to_string())? + "\n";
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        if let Some(path) = &self.svg {
            let title = |played: &Played| {
                let Row { fault, who, .. } = &played.row;
                let version = versions.get(who).map(String::as_str).unwrap_or_default();
                let about = Fault::named(fault).map_or("", |fault| fault.about);
                format!("{who} {version}, {fault}: {about}")
            };
            let titles: Vec<String> = all.iter().map(title).collect();
            let panels = titles.iter().zip(all).map(|(title, played)| Panel { title, seen: &played.seen });
            let panels: Vec<Panel<'_>> = panels.collect();
            std::fs::write(path, svg::render(&panels)).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }
}

fn list() -> String {
    let width = FAULTS.iter().map(|fault| fault.name.len()).max().unwrap_or(0);
    FAULTS.iter().map(|fault| format!("{:<width$}  {}\n", fault.name, fault.about)).collect()
}

/// What is played now, in one line that the next one overwrites; only where somebody looks.
fn progress(line: &str) {
    if std::io::stderr().is_terminal() {
        complain(&format!("\r\x1b[K{line}"));
    }
}

/// Ctrl-C, or a service manager that ends it.
async fn interrupted() {
    let both = signal(SignalKind::interrupt()).and_then(|int| Ok((int, signal(SignalKind::terminate())?)));
    match both {
        Ok((mut interrupt, mut terminate)) => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => std::future::pending().await,
    }
}
