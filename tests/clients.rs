//! Clients and origins as they are out there, from PyPI: gRPC in all four kinds of calls, and WebSockets, through a meridian between them.
//!
//! Installs them into a folder of their own under `target`; needs python3 with `venv`, and PyPI the first time.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::authority::Authority;
use common::process::Proxy;
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [done.stdout, done.stderr].concat();
    assert!(done.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&text));
}

/// A Python with both in it.
fn python() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let (python, wanted) = (folder.join("bin/python"), format!("{FOLDER}/requirements.txt"));
    if !python.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
    }
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", &wanted]));
    python
}

/// Origins, until this is dropped.
struct Origins(Child);

impl Drop for Origins {
    fn drop(&mut self) {
        // They end with their standard input.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[tokio::test]
#[ignore = "installs from PyPI"]
async fn grpc_and_websockets_pass() {
    let (python, script) = (python(), format!("{FOLDER}/clients.py"));
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new("the tests'");
    ca.issue(folder.path(), "site", &["site.test"]);
    ca.write(&folder.path().join("ca.pem"));
    let at = |name: &str| folder.path().join(name);
    let mut serve = Command::new(&python);
    serve.args([&script, "serve"]).args([at("site.pem"), at("site.key")]);
    let mut origins = Origins(serve.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(origins.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ports: Value = serde_json::from_str(&line).unwrap();
    let service = |name: &str, path: &str, upstream: &str, port: &Value| {
        format!(
            "[services.{name}]\npaths = [\"{path}\"]\n[services.{name}.upstream]\n{upstream}\n\
             [services.{name}.pools.only]\nendpoints = [\"127.0.0.1:{port}\"]\n"
        )
    };
    let tls = format!("protocol = \"h2\"\ntls = {{ ca = {:?}, sni = \"site.test\" }}", at("ca.pem"));
    let config = [
        "[regions.only]\n".to_owned(),
        service("plain", "/plain.Test", "protocol = \"h2c\"", &ports["plain"]),
        service("tls", "/tls.Test", &tls, &ports["tls"]),
        // Nobody answers at a port that only root may listen on.
        service("nobody", "/nobody.Test", "protocol = \"h2c\"", &Value::from(1)),
        service("websocket", "/ws", "", &ports["websocket"]),
    ];
    let listen = format!("tls = {{ certificates = [{{ cert = {:?}, key = {:?} }}] }}", at("site.pem"), at("site.key"));
    let proxy = Proxy::start_with(&listen, &config.concat(), |_| {}).await;
    let (port, ca) = (proxy.listen.port().to_string(), at("ca.pem"));
    let check = move || run(Command::new(&python).args([&script, "check", &port]).arg(ca));
    tokio::task::spawn_blocking(check).await.unwrap();
}
