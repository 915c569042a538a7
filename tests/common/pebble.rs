//! Pebble, the test server of those who run Let's Encrypt: a real authority on loopback, ended when dropped.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use super::authority::Authority;
use super::process::{PATIENCE, write};

/// Ports that nobody uses now, below those that the system gives away by itself, so that none is gone when it is wanted.
fn free_ports<const N: usize>() -> [u16; N] {
    let free = || loop {
        let port = fastrand::u16(10_000..30_000);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener;
        }
    };
    // Held together, so that no two are the same.
    [(); N].map(|()| free()).map(|listener| listener.local_addr().expect("an address").port())
}

/// Where an authority will be, before it is.
pub struct Plan {
    folder: tempfile::TempDir,
    directory: u16,
    management: u16,
    /// Where it asks whether names are ours: by http-01 and by tls-alpn-01.
    pub http: u16,
    pub tls: u16,
}

pub struct Pebble {
    child: Child,
    plan: Plan,
}

impl Plan {
    pub fn new() -> Plan {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::new("the directory's");
        authority.issue(folder.path(), "directory", &["localhost"]);
        authority.write(&folder.path().join("ca.pem"));
        let [directory, management, http, tls] = free_ports();
        Plan { folder, directory, management, http, tls }
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}/dir", self.directory)
    }

    /// The authority that signed the directory's own certificate.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Starts it, and waits until it answers.
    pub async fn start(self) -> Pebble {
        let at = |name: &str| self.folder.path().join(name);
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.directory),
            "managementListenAddress": format!("127.0.0.1:{}", self.management),
            "certificate": at("directory.pem"),
            "privateKey": at("directory.key"),
            "httpPort": self.http,
            "tlsPort": self.tls,
        }});
        write(&at("pebble.json"), &config.to_string());
        let log = std::fs::File::create(at("log")).expect("a log");
        let child = Command::new("pebble")
            .arg("-config")
            .arg(at("pebble.json"))
            .env("PEBBLE_VA_NOSLEEP", "1")
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("pebble is needed (tests/setup.sh tests): {error}"));
        let pebble = Pebble { child, plan: self };
        let begun = Instant::now();
        for port in [pebble.plan.directory, pebble.plan.management] {
            while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).is_err() {
                assert!(begun.elapsed() < PATIENCE, "pebble does not answer\n{}", pebble.log());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        pebble
    }
}

impl Pebble {
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whom clients must trust: it makes a new root at each start.
    pub fn roots(&self) -> RootCertStore {
        let url = format!("https://localhost:{}/roots/0", self.plan.management);
        let output =
            Command::new("curl").args(["-sSf", "--cacert"]).arg(self.plan.ca()).arg(url).output().expect("curl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&output.stdout).expect("a certificate")).expect("a root");
        roots
    }

    pub fn log(&self) -> String {
        log(self.plan.folder.path())
    }
}

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}

impl Drop for Pebble {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
