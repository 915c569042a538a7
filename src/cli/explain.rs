//! `meridian explain`: the decision for one client told in full, or for a stream of them a line each.
//!
//! Offline it loads the configuration and assumes every region healthy except those of `--down`; with `--live` it asks the running
//! process. Both print the same value.

use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::cli::{ConfigFile, complain, live, or_complain, print};
use crate::geo::Canonical;
use crate::load::Loader;
use crate::steering::explain::{ExplainedPlace, Explanation, Question, service_for};
use crate::steering::{Query, RegionId, RegionSet, Snapshot};

/// Arguments of `meridian explain`.
#[derive(Args, Debug)]
pub(super) struct Explain {
    #[command(flatten)]
    file: ConfigFile,
    /// The client's address; `-` reads one a line from standard input and prints a JSON object a line
    #[arg(long, value_name = "ADDRESS")]
    ip: String,
    /// Host of the request; without it, the service for every host, or the first one
    #[arg(long)]
    host: Option<String>,
    /// Path of the request
    #[arg(long, default_value = "/")]
    path: String,
    /// Method of the request
    #[arg(long, default_value = "GET")]
    method: String,
    /// The region that the client was at before, for services with affinity
    #[arg(long, value_name = "REGION")]
    affinity: Option<String>,
    /// Assume this region down (may be given several times)
    #[arg(long, value_name = "REGION", conflicts_with = "live")]
    down: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Ask the running process instead of assuming health
    #[arg(long)]
    live: bool,
    /// Where the running process answers: its admin socket's path or its admin address (default: as configured)
    #[arg(long, value_name = "SOCKET|ADDRESS", requires = "live")]
    admin: Option<String>,
}

impl Explain {
    pub(super) fn run(self) -> ExitCode {
        let outcome = match (self.ip.as_str(), self.live) {
            ("-", true) => self.each(live::Asker::new(&self.file.config, self.admin.as_deref()).map(|mut asker| {
                move |question: &Question, out: &mut dyn Write| {
                    let answer = asker.ask(question).map_err(io::Error::other)?;
                    write_line(out, &Line::from(&answer))
                }
            })),
            ("-", false) => self.each(self.assumed().map(|snapshot| {
                let names = Names::new(&snapshot);
                move |question: &Question, out: &mut dyn Write| names.answer(&snapshot, question, out)
            })),
            (_, live) => self.one(live),
        };
        or_complain(outcome)
    }

    fn question(&self, client: IpAddr) -> Question {
        Question {
            client,
            host: self.host.clone(),
            path: self.path.clone(),
            method: self.method.clone(),
            affinity: self.affinity.clone(),
        }
    }

    fn one(&self, live: bool) -> Result<ExitCode, String> {
        let client = parse(&self.ip)?;
        let question = self.question(client);
        let answer = if live {
            live::Asker::new(&self.file.config, self.admin.as_deref())?.ask(&question)?
        } else {
            let basis = match self.down.as_slice() {
                [] => "offline; every region is assumed healthy".to_owned(),
                down => format!("offline; every region is assumed healthy but {}", down.join(", ")),
            };
            self.assumed()?.explain(&question, &basis, RegionSet::EMPTY)
        };
        if self.json {
            let text = serde_json::to_string_pretty(&answer).map_err(|error| error.to_string())?;
            print(&format!("{text}\n"))?;
        } else {
            print(&answer.to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn assumed(&self) -> Result<Snapshot, String> {
        let loaded = Loader::default().load(&self.file.config).map_err(|error| error.to_string())?;
        let fleet = &loaded.view.fleet;
        let mut down = RegionSet::EMPTY;
        let named = |name: &String| {
            let known = || fleet.regions.iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ");
            fleet.region_named(name).ok_or_else(|| format!("error: no region `{name}`; there are {}", known()))
        };
        self.affinity.as_ref().map(named).transpose()?;
        for name in &self.down {
            down.insert(named(name)?);
        }
        Ok(Snapshot::assuming(loaded.view, down))
    }

    /// Answers every line of standard input. A line that is no address gets an object with an `error`, and exit code 1 at the end.
    fn each<F>(&self, answerer: Result<F, String>) -> Result<ExitCode, String>
    where
        F: FnMut(&Question, &mut dyn Write) -> io::Result<()>,
    {
        let mut answer = answerer?;
        let mut input = BufReader::with_capacity(1 << 16, io::stdin().lock());
        let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let mut question = self.question(IpAddr::from([0, 0, 0, 0]));
        let mut line = Vec::new();
        let mut bad = 0u64;
        let outcome = loop {
            // Before it may have to wait for more: who asks may wait for the answers.
            if !input.buffer().contains(&b'\n')
                && let Err(error) = out.flush()
            {
                break Err(error);
            }
            line.clear();
            match input.read_until(b'\n', &mut line) {
                Ok(0) => break out.flush(),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_start_matches('\u{feff}').trim();
            if text.is_empty() {
                continue;
            }
            let written = match parse(text) {
                Ok(client) => {
                    question.client = client;
                    answer(&question, &mut out)
                }
                Err(error) => {
                    bad += 1;
                    write_line(&mut out, &serde_json::json!({ "ip": text, "error": error }))
                }
            };
            if let Err(error) = written {
                break Err(error);
            }
        };
        match outcome {
            // Whoever read our output had enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
            Err(error) => Err(format!("error: {error}")),
            Ok(()) if bad > 0 => {
                complain(&format!("error: {bad} lines were no addresses\n"));
                Ok(ExitCode::from(1))
            }
            Ok(()) => Ok(ExitCode::SUCCESS),
        }
    }
}

fn parse(text: &str) -> Result<IpAddr, String> {
    text.parse()
        .map_err(|_| format!("`{text}` is not an address; expected IPv4 or IPv6, as in 192.0.2.1 or 2001:db8::1"))
}

/// One line of output. `order` is the full order.
#[derive(Serialize)]
struct Line<'a> {
    ip: IpAddr,
    place: &'a ExplainedPlace,
    order: Vec<&'a str>,
    region: Option<&'a str>,
    reason: &'a str,
}

impl<'a> From<&'a Explanation> for Line<'a> {
    fn from(answer: &'a Explanation) -> Line<'a> {
        Line {
            ip: answer.ip,
            place: &answer.place,
            order: answer.order.iter().map(|r| r.region.as_str()).collect(),
            region: answer.region.as_deref(),
            reason: &answer.reason,
        }
    }
}

fn write_line(out: &mut dyn Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Answers lines at the speed of the walk: what does not depend on the client is looked up once.
struct Names {
    regions: Vec<String>,
}

impl Names {
    fn new(snapshot: &Snapshot) -> Names {
        Names { regions: snapshot.fleet().regions.iter().map(|r| r.name.clone()).collect() }
    }

    fn answer(&self, snapshot: &Snapshot, question: &Question, out: &mut dyn Write) -> io::Result<()> {
        let client = Canonical::new(question.client);
        let id = snapshot.view.atlas.locate(client).place;
        let place = ExplainedPlace::new(&snapshot.view.atlas, &snapshot.view.atlas.place(id));
        let name = |region: RegionId| self.regions[region.index()].as_str();
        let (region, reason) = match service_for(snapshot.fleet(), question.host.as_deref(), &question.path) {
            Ok(service) => {
                let affinity = question.affinity(snapshot.fleet(), service);
                match snapshot
                    .walk(&Query { client, service, chance: 0, affinity, full: RegionSet::EMPTY })
                    .take(snapshot)
                {
                    Ok(take) => (Some(name(take.region)), take.reason.as_str()),
                    Err(refusal) => (None, refusal.as_str()),
                }
            }
            Err(refused) => (None, refused.as_str()),
        };
        let order = snapshot.view.orders.order(id).iter().map(|region| name(*region)).collect();
        write_line(out, &Line { ip: question.client, place: &place, order, region, reason })
    }
}
