//! The command line as its users meet it: exit codes, pipes that close early, input that is no text.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Output, Stdio};

use common::process::{meridian, write};
use serde_json::Value;

const CONFIG: &str = "\
[[listen]]
address = \"127.0.0.1:0\"
[regions.us-east]
location = [38.95, -77.45]
[services.web]
paths = [\"/api\"]
[services.web.pools.us-east]
endpoints = [\"192.0.2.1:80\"]
";

fn config(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("meridian.toml");
    write(&path, CONFIG);
    path
}

/// Runs it with `input`, and with an output and errors that nobody reads if `deaf`.
fn run(args: &[&str], config: &Path, input: &[u8], deaf: bool) -> Output {
    let mut command = meridian();
    command.args(args).arg("--config").arg(config).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    if deaf {
        drop((child.stdout.take(), child.stderr.take()));
    }
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_pipe_that_closes_early_is_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let good = config(folder.path());
    let bad = folder.path().join("bad.toml");
    write(&bad, "x = 1\n");
    for (args, config, code) in [
        (&["check"][..], &good, 0),
        (&["check"], &bad, 1),
        (&["explain", "--ip", "192.0.2.1"], &good, 0),
        (&["explain", "--ip", "192.0.2.1", "--json"], &good, 0),
        (&["explain", "--ip", "192.0.2.1"], &bad, 2),
    ] {
        assert_eq!(run(args, config, b"", true).status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_line_that_is_no_text_spoils_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(
        &["explain", "--ip", "-"],
        &config(folder.path()),
        b"\xef\xbb\xbf192.0.2.1\r\n\xff\xfe\n\n 2001:db8::1",
        false,
    );
    assert_eq!(output.status.code(), Some(1));
    let lines: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!((&lines[0]["ip"], &lines[2]["ip"]), (&"192.0.2.1".into(), &"2001:db8::1".into()));
    assert!(lines[1]["error"].as_str().unwrap().contains("is not an address"), "{}", lines[1]);
}

#[test]
fn answers_come_while_the_asker_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = meridian()
        .args(["explain", "--ip", "-", "--config"])
        .arg(config(folder.path()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut ask, mut answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    for address in ["192.0.2.1", "192.0.2.2"] {
        writeln!(ask, "{address}").unwrap();
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["ip"], address);
    }
    drop(ask);
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_argument_goes_before_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let output =
        meridian().arg("check").arg(config(folder.path())).env("MERIDIAN_CONFIG", "elsewhere.toml").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn without_a_host_a_path_that_nobody_serves_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path());
    for (further, region, status) in [
        (&[][..], Some("us-east"), None),
        (&["--path", "/api/x"], Some("us-east"), None),
        (&["--path", "/nope"], None, Some(404)),
        (&["--path", "/.."], None, Some(400)),
        (&["--path", "/api", "--host", "any.example"], Some("us-east"), None),
    ] {
        let output = run(&[&["explain", "--ip", "192.0.2.1", "--json"], further].concat(), &path, b"", false);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((answer["region"].as_str(), answer["status"].as_u64()), (region, status), "{further:?}");
    }
}

#[test]
fn a_client_that_was_elsewhere_before_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("affine.toml");
    let regions = "[regions.one]\n[regions.two]\n";
    let pools = "[services.web.pools.one]\nendpoints = [\"192.0.2.1:80\"]\n[services.web.pools.two]\nendpoints = [\"192.0.2.2:80\"]\n";
    let affine = "[services.web]\naffinity = { kind = \"header\", name = \"x-region\" }\n";
    for (service, said, region, reason) in
        [(affine, Some("two"), "two", "affinity"), (affine, None, "one", "nearest"), ("", None, "one", "nearest")]
    {
        write(&path, &format!("[[listen]]\naddress = \"127.0.0.1:0\"\n{regions}{service}{pools}"));
        for (ip, input) in [("192.0.2.1", &b""[..]), ("-", b"192.0.2.1\n")] {
            let output = run(
                &["explain", "--ip", ip, "--json", "--affinity", "two"][..if said.is_some() { 6 } else { 4 }],
                &path,
                input,
                false,
            );
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!((&answer["region"], &answer["reason"]), (&region.into(), &reason.into()), "{service}");
        }
    }
    let output = run(&["explain", "--ip", "192.0.2.1", "--affinity", "three"], &path, b"", false);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no region `three`; there are one, two"), "{output:?}");
}

#[test]
fn all_data_that_cannot_be_used_is_named_and_old_data_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = config(folder.path());
    let with = |geoip: &str| {
        write(&path, &format!("{CONFIG}[geoip]\n{geoip}\n"));
        let output = run(&["check"], &path, b"", false);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    write(&folder.path().join("feed.csv"), "192.0.2.0/24,US\nno network\n");
    let (code, said) = with("databases = [\"one.mmdb\", \"builtin\", \"two.mmdb\"]\ngeofeeds = [\"feed.csv\"]");
    assert_eq!(code, Some(1));
    for name in ["one.mmdb", "two.mmdb", "feed.csv: line 2"] {
        assert!(said.contains(name), "{name} in {said}");
    }
    assert!(!said.contains("builtin"), "{said}");

    let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mmdb/GeoIP2-City-Test.mmdb");
    let (code, said) = with(&format!("databases = [{old:?}]"));
    assert_eq!(code, Some(0));
    assert!(said.contains("City-Test.mmdb is ") && said.contains("days old"), "{said}");
}

#[test]
fn a_drill_names_its_faults() {
    let drill = |args: &[&str]| {
        let output = meridian().arg("drill").args(args).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    for args in [&["--list"][..], &["--fault", "list"]] {
        let (code, said, _) = drill(args);
        assert_eq!((code, said.lines().count()), (Some(0), meridian::drill::FAULTS.len()));
        assert!(said.lines().any(|line| line.starts_with("kill ") && line.contains("process is killed")), "{said}");
    }
    for (args, want) in [
        (&["--fault", "kill,kil"][..], "there is no fault `kil`; did you mean `kill`?"),
        (&["--fault", "earthquake"], "there is no fault `earthquake`; `meridian drill --list` names them all"),
        (&["--against", "apache"], "invalid value 'apache'"),
        (&["--against", "envoy", "--envoy", "/nowhere"], "--envoy: there is no /nowhere"),
    ] {
        let (code, said, errors) = drill(args);
        assert_eq!((code, said.as_str()), (Some(2), ""), "{args:?}");
        assert!(errors.contains(want), "{errors}");
    }
}
