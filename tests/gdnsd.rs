//! gdnsd's answers are ours: every row of the recorded sample gives gdnsd's order, through `meridian explain --ip -`, and the same
//! addresses sent through the running proxy reach the region that `explain` names.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;

use common::http::{connect, send};
use common::process::{Origin, Proxy, meridian, write};
use serde_json::Value;

const DATABASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/geo/oracle-city.mmdb");

struct Row {
    address: String,
    /// Topology to region indices, nearest first.
    orders: [(&'static str, Vec<usize>); 2],
}

fn sample() -> Vec<Row> {
    let text = std::fs::read_to_string("tests/data/geo/sample.tsv").expect("the sample");
    let rows = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let fields: Vec<_> = line.split('\t').collect();
        let order = |field: &str| field.split(',').map(|n| n.parse().expect("an index")).collect();
        Row { address: fields[0].to_owned(), orders: [("m8", order(fields[2])), ("mtie", order(fields[3]))] }
    });
    rows.collect()
}

/// The regions of a topology: name and coordinates.
fn topology(name: &str) -> Vec<(String, Option<(f64, f64)>)> {
    let text = std::fs::read_to_string("tests/data/geo/topologies.json").expect("the topologies");
    type Region = (String, Option<f64>, Option<f64>);
    let all: BTreeMap<String, Vec<Region>> = serde_json::from_str(&text).expect("JSON");
    all[name].iter().map(|(region, lat, lon)| (region.clone(), lat.zip(*lon))).collect()
}

/// A configuration of that topology; `endpoint` names each region's endpoint.
fn config(topology: &[(String, Option<(f64, f64)>)], endpoint: impl Fn(&str) -> String) -> String {
    let mut text = format!(
        "[client_ip]\ntrusted = [\"127.0.0.0/8\"]\n[log]\naccess = \"off\"\n[geoip]\ndatabases = [\"{DATABASE}\"]\n"
    );
    for (region, location) in topology {
        text += &format!("[regions.{region}]\n");
        if let Some((lat, lon)) = location {
            text += &format!("location = [{lat:?}, {lon:?}]\n");
        }
    }
    text += "[services.web.health]\ninterval = \"500ms\"\n";
    for (region, _) in topology {
        text += &format!("[services.web.pools.{region}]\nendpoints = [\"{}\"]\n", endpoint(region));
    }
    text
}

/// What `explain --ip -` prints for the addresses, an object each.
fn explain(config: &Path, addresses: &[&str], further: &[&str]) -> Vec<Value> {
    let mut child = meridian()
        .args(["explain", "--ip", "-", "--config"])
        .arg(config)
        .args(further)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("explain starts");
    let mut stdin = child.stdin.take().expect("its input is piped");
    let input = addresses.join("\n");
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().expect("explain ends");
    writer.join().unwrap().expect("it reads all of its input");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), addresses.len());
    lines
}

fn names(line: &Value) -> Vec<&str> {
    line["order"].as_array().expect("an order").iter().map(|region| region.as_str().expect("a name")).collect()
}

#[test]
fn every_row_of_the_sample_gives_gdnsds_order() {
    let rows = sample();
    assert!(rows.len() > 2600);
    let folder = tempfile::tempdir().unwrap();
    let addresses: Vec<_> = rows.iter().map(|row| row.address.as_str()).collect();
    for which in 0..2 {
        let regions = topology(rows[0].orders[which].0);
        let path = folder.path().join(format!("{which}.toml"));
        write(
            &path,
            &(String::from("[[listen]]\naddress = \"127.0.0.1:0\"\n") + &config(&regions, |_| "127.0.0.1:9".into())),
        );
        for (row, line) in rows.iter().zip(explain(&path, &addresses, &[])) {
            let order = names(&line);
            // gdnsd leaves regions without coordinates out where it knows the client's; ours go last, in their order.
            let mut want: Vec<&str> = row.orders[which].1.iter().map(|index| regions[*index].0.as_str()).collect();
            let rest: Vec<_> =
                regions.iter().map(|(name, _)| name.as_str()).filter(|name| !want.contains(name)).collect();
            want.extend(rest);
            assert_eq!(order, want, "{} in {}", row.address, row.orders[which].0);
            assert_eq!(line["region"], order[0], "{}", row.address);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_running_proxy_sends_them_where_explain_says() {
    let rows = sample();
    let regions = topology("m8");
    let mut origins: Vec<Origin> = regions.iter().map(|(name, _)| Origin::start(name)).collect();
    let endpoint = |name: &str| origins.iter().find(|o| o.name == name).expect("an origin").address.to_string();
    let text = config(&regions, endpoint);
    let proxy = Proxy::start(&text, |_| {}).await;
    let addresses: Vec<_> =
        rows.iter().map(|row| row.address.as_str()).step_by(rows.len().div_ceil(2000).max(1)).collect();
    let addresses: Vec<_> =
        if addresses.len() < 2000 { rows.iter().map(|r| r.address.as_str()).take(2000).collect() } else { addresses };
    assert_eq!(addresses.len(), 2000);

    for down in [0, 1, 2] {
        // The first and the second region of the configuration go down, one after the other.
        if down > 0 {
            origins[down - 1].kill();
            let region = regions[down - 1].0.clone();
            proxy.until("the region to be down", async || state_of(&proxy.status().await, &region) == "down").await;
        }
        let further: Vec<_> = regions[..down].iter().flat_map(|(name, _)| ["--down", name.as_str()]).collect();
        let mut connection = connect(proxy.listen).await.unwrap();
        for (address, line) in addresses.iter().zip(explain(&proxy.config_path(), &addresses, &further)) {
            let canonical = address.parse::<IpAddr>().unwrap().to_string();
            let answer = send(&mut connection, "GET", "/", &[("x-forwarded-for", &canonical)]).await.unwrap();
            assert_eq!(answer.status, 200, "{address}: {}", answer.text());
            assert_eq!(answer.origin().as_deref(), line["region"].as_str(), "{address} with {down} regions down");
        }
    }
}

/// The state of a region for the service `web` in `/api/status`.
fn state_of(status: &Value, region: &str) -> String {
    let services = status["services"].as_array().expect("services");
    let web = services.iter().find(|service| service["name"] == "web").expect("the service");
    let regions = web["regions"].as_array().expect("regions");
    let found = regions.iter().find(|r| r["name"] == region).expect("the region");
    found["state"].as_str().expect("a state").to_owned()
}
