//! `meridian states`: every service in every region, what is observed there and what operators want, on one page.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::live::Asker;
use crate::cli::{Process, or_complain, print};
use crate::steering::fleet::{Capacity, Intent};
use crate::steering::overrides::Shown;
use crate::steering::snapshot::Carried;

/// Arguments of `meridian states`.
#[derive(Args, Debug)]
pub(super) struct States {
    /// Print JSON: `services` and `regions` of `/api/status`, and `/api/overrides`
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    process: Process,
}

#[derive(Deserialize)]
struct Service {
    name: String,
    failback: String,
    panic: bool,
    regions: Vec<Region>,
}

#[derive(Deserialize)]
struct Region {
    name: String,
    state: String,
    intent: Intent,
    #[serde(rename = "override")]
    word: Option<Shown>,
    weight: u32,
    dial: u8,
    ramp: f64,
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    name: String,
    address: String,
    state: String,
    cause: Option<String>,
    ejected_until: Option<String>,
    in_doubt: bool,
    intent: Intent,
    draining: bool,
    weight: u32,
    warmth: f32,
    effective_weight: f64,
}

/// The last reload.
#[derive(Deserialize)]
struct Reload {
    at: String,
    error: Option<String>,
}

const HEAD: [&str; 9] = ["SERVICE", "REGION", "STATE", "INTENT", "RAMP", "WEIGHT", "DIAL", "UP", "BY"];

impl States {
    pub(super) fn run(self) -> ExitCode {
        or_complain(self.show())
    }

    fn show(&self) -> Result<ExitCode, String> {
        let mut asker = Asker::of(&self.process)?;
        let mut read = |page: &str| {
            let body = asker.get(page)?;
            serde_json::from_slice::<Value>(&body).map_err(|error| format!("error: an answer that is none: {error}"))
        };
        let mut status = read("/api/status")?;
        let [services, regions, reload] = ["services", "regions", "reload"].map(|key| status[key].take());
        let overrides = read("/api/overrides")?["overrides"].take();
        let text = if self.json {
            let all = json!({ "services": services, "regions": regions, "overrides": overrides, "reload": reload });
            serde_json::to_string_pretty(&all).map_err(|error| error.to_string())? + "\n"
        } else {
            let other = |error| format!("error: the running process is of another version: {error}");
            let services: Vec<Service> = serde_json::from_value(services).map_err(other)?;
            let words: Vec<Shown> = serde_json::from_value(overrides).map_err(other)?;
            let regions: Vec<Carried> = serde_json::from_value(regions).map_err(other)?;
            let reload: Option<Reload> = serde_json::from_value(reload).map_err(other)?;
            table(&services) + &odd(&services) + &bounded(&regions) + &list(&words) + &refused(reload.as_ref())
        };
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Says that the files are not what is in force.
fn refused(reload: Option<&Reload>) -> String {
    let Some(Reload { at, error: Some(error) }) = reload else { return String::new() };
    format!(
        "\nthe files were refused at {at}, and what was published before stays:\n  {}\n",
        error.trim_end().replace('\n', "\n  ")
    )
}

fn table(services: &[Service]) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for service in services {
        for region in &service.regions {
            let takes = |endpoint: &&Endpoint| endpoint.state == "up" && endpoint.intent == Intent::Ready;
            let up = region.endpoints.iter().filter(takes).count();
            let out = region.endpoints.iter().filter(|endpoint| endpoint.intent != Intent::Ready).count();
            let ready = service.regions.iter().any(|region| region.intent == Intent::Ready);
            let panic = match (service.panic, ready) {
                (false, _) => "",
                (true, true) => " (panic)",
                (true, false) => " (none ready: 503)",
            };
            let by = match (&region.word, region.intent, out) {
                (Some(word), ..) => word.to_string(),
                (None, Intent::Ready, 0) if region.state == "holding" && service.failback == "manual" => {
                    format!("waits for `meridian set region {} ready`", region.name)
                }
                (None, Intent::Ready, 0) => String::new(),
                (None, _, out) if out > 0 => format!("{out} of {} endpoints out", region.endpoints.len()),
                (None, ..) => "the configuration".to_owned(),
            };
            rows.push([
                service.name.clone(),
                region.name.clone(),
                format!("{}{panic}", region.state),
                region.intent.as_str().to_owned(),
                format!("{:.0}%", region.ramp * 100.0),
                region.weight.to_string(),
                format!("{}%", region.dial),
                format!("{up}/{}", region.endpoints.len()),
                by,
            ]);
        }
    }
    let widths: [usize; HEAD.len()] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Endpoints that are not up, or that ask for less than their share.
fn odd(services: &[Service]) -> String {
    let mut text = String::new();
    for service in services {
        for region in &service.regions {
            for endpoint in &region.endpoints {
                let Endpoint { name, address, state, cause, ejected_until, in_doubt, draining, .. } = endpoint;
                let cause = cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
                let asked = endpoint.effective_weight / f64::from(endpoint.weight) / f64::from(endpoint.warmth);
                let what = match ejected_until {
                    Some(until) => format!("ejected until {until}{cause}"),
                    None if state != "up" => format!("{state}{cause}"),
                    None if *in_doubt => "up, in doubt: what may be sent once only goes elsewhere".to_owned(),
                    None if *draining => "up, asks to be drained".to_owned(),
                    None if asked < 0.995 => format!("up, asks for {:.0}% of its weight", asked * 100.0),
                    None => continue,
                };
                let also = if name == address { String::new() } else { format!(" ({name})") };
                let first = if text.is_empty() { "\nendpoints:\n" } else { "" };
                text += &format!("{first}  {} {} {address}{also}: {what}\n", service.name, region.name);
            }
        }
    }
    text
}

/// Regions that have a capacity, and what they carry.
fn bounded(regions: &[Carried]) -> String {
    let mut text = String::new();
    for Carried { name, in_flight, shed, intake, capacity } in regions {
        let Some(Capacity { target, limit, unit }) = capacity else { continue };
        let first = if text.is_empty() { "\ncapacity:\n" } else { "" };
        let takes = if *shed > 0.0 { format!(", sheds {:.0}% of its clients", shed * 100.0) } else { String::new() };
        let lets_in = if *intake < 1.0 {
            format!(", lets in {:.0}% of those who come from a lost region", intake * 100.0)
        } else {
            String::new()
        };
        let unit = unit.as_str();
        text +=
            &format!("{first}  {name}: {in_flight} in flight, target {target}, limit {limit} {unit}{takes}{lets_in}\n");
    }
    text
}

/// Every word in force: one over endpoints, or over what is not there, has no row of its own.
fn list(words: &[Shown]) -> String {
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        if index == 0 {
            text += "\nin force, the oldest first:\n";
        }
        // Writing to memory does not fail.
        let _ = writeln!(text, "  {} {}: {word}, since {}", word.kind.as_str(), word.name, word.set);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_for_people() {
        let endpoint = |state: &str, intent: &str| {
            json!({"name": "a.test:80", "address": "192.0.2.1:80", "state": state, "cause": null, "ejected_until": null, "in_doubt": false, "intent": intent,
                   "draining": false, "weight": 10, "warmth": 0.5, "effective_weight": 5.0})
        };
        let with = |mut endpoint: Value, key: &str, value: Value| {
            endpoint[key] = value;
            endpoint
        };
        let services: Vec<Service> = serde_json::from_value(json!([{
            "name": "web", "failback": "manual", "panic": false, "regions": [
                {"name": "eu-west", "state": "up", "intent": "drain", "weight": 1, "dial": 100, "ramp": 1.0,
                 "override": {"kind": "region", "name": "eu-*", "state": "drain", "reason": "new switch", "who": "alice",
                              "set": "2026-11-26T18:00:00Z", "until": "2026-11-26T18:30:00Z"},
                 "endpoints": [endpoint("up", "ready"), with(endpoint("down", "ready"), "cause", json!("failed 3 times: HTTP 500"))]},
                {"name": "us-east", "state": "ramping", "intent": "ready", "weight": 20, "dial": 50, "ramp": 0.25, "override": null,
                 "endpoints": [endpoint("up", "maint"), with(endpoint("up", "ready"), "effective_weight", json!(1.25))]},
                {"name": "us-west", "state": "holding", "intent": "ready", "weight": 1, "dial": 100, "ramp": 0.0, "override": null,
                 "endpoints": [with(with(endpoint("down", "ready"), "ejected_until", json!("2026-11-26T18:01:00Z")), "cause", json!("5 failures")),
                               with(with(endpoint("up", "ready"), "draining", json!(true)), "name", json!("192.0.2.1:80"))]},
                {"name": "ap", "state": "unknown", "intent": "maint", "weight": 0, "dial": 0, "ramp": 1.0, "override": null,
                 "endpoints": []},
            ],
        }]))
        .unwrap();
        let want = "\
SERVICE  REGION   STATE    INTENT  RAMP  WEIGHT  DIAL  UP   BY
web      eu-west  up       drain   100%  1       100%  1/2  drain by alice until 2026-11-26T18:30:00Z: new switch
web      us-east  ramping  ready   25%   20      50%   1/2  1 of 2 endpoints out
web      us-west  holding  ready   0%    1       100%  1/2  waits for `meridian set region us-west ready`
web      ap       unknown  maint   100%  0       0%    0/0  the configuration

endpoints:
  web eu-west 192.0.2.1:80 (a.test:80): down: failed 3 times: HTTP 500
  web us-east 192.0.2.1:80 (a.test:80): up, asks for 25% of its weight
  web us-west 192.0.2.1:80 (a.test:80): ejected until 2026-11-26T18:01:00Z: 5 failures
  web us-west 192.0.2.1:80: up, asks to be drained
";
        assert_eq!(table(&services) + &odd(&services), want);
        let regions: Vec<Carried> = serde_json::from_value(json!([
            {"name": "eu-west", "in_flight": 850, "shed": 0.25, "intake": 1.0, "capacity": {"target": 800, "limit": 1000, "unit": "in_flight"}},
            {"name": "us-east", "in_flight": 3, "shed": 0.0, "intake": 0.4, "capacity": {"target": 50, "limit": 60, "unit": "rps"}},
            {"name": "us-west", "in_flight": 9, "shed": 0.0, "intake": 1.0, "capacity": null},
        ]))
        .unwrap();
        let want = "
capacity:
  eu-west: 850 in flight, target 800, limit 1000 in_flight, sheds 25% of its clients
  us-east: 3 in flight, target 50, limit 60 rps, lets in 40% of those who come from a lost region
";
        assert_eq!(bounded(&regions), want);
    }
}
