//! What SECURITY.md promises of the admin pages and of secrets, asked of real processes.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use common::process::{Origin, Proxy, meridian, write};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOKEN: &str = "zq7token-zq7token-zq7token-zq7token";
const KEY: &str = "zq7keys-zq7keys-zq7keys-zq7keys-zq7";
const VALUE: &str = "zq7value";

/// What no log, page or report may show: what variables stand for, and what clients send in confidence.
const HIDDEN: [&str; 8] =
    ["zq7token", "zq7keys", "zq7value", "zq7written", "zq7cookie", "zq7auth", "zq7body", "zq7answer"];

/// The variables of [`config`], for a command.
fn with_variables(mut command: std::process::Command) -> std::process::Command {
    command.env("ADMIN_TOKEN", TOKEN).env("AFFINITY_KEY", KEY).env("UPSTREAM_VALUE", VALUE);
    command
}

/// A service for one host, and admin pages on TCP too.
fn config(admin: SocketAddr, endpoint: SocketAddr, folder: &Path, health: &str) -> String {
    format!(
        r#"
[[listen]]
address = "127.0.0.1:0"
[admin]
address = "{admin}"
socket = "{}"
token = "${{ADMIN_TOKEN}}"
[client_ip]
trusted = ["127.0.0.1"]
[geoip]
databases = []
[log]
level = "info,meridian=trace"
[regions.home]
[services.web]
hosts = ["web.test"]
affinity = {{ kind = "cookie", keys = ["${{AFFINITY_KEY}}", "zq7written-zq7written-zq7written-zq7"] }}
[services.web.health]
{health}
[services.web.headers.request]
set = {{ X-Upstream-Key = "${{UPSTREAM_VALUE}}" }}
[services.web.pools.home]
endpoints = ["{endpoint}"]
"#,
        folder.join("admin.sock").display()
    )
}

/// An address that nobody has.
fn free() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap()
}

/// Bytes as they are sent and come back; the connection is closed by the other side.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"))
}

/// A change that would be taken but for `fields`.
async fn change(admin: SocketAddr, page: &str, host: &str, fields: &str) -> String {
    let body = match page {
        "/api/overrides" => "{\"kind\":\"region\",\"name\":\"home\",\"state\":\"drain\",\"force\":true}",
        _ => "{}",
    };
    let length = body.len();
    raw(admin, &format!("POST {page} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n{fields}\r\n{body}")).await
}

#[tokio::test]
async fn admin_pages_are_behind_no_listener_no_name_and_no_web_page() {
    let (origin, admin) = (Origin::start("home"), free());
    let proxy =
        Proxy::start_whole(with_variables(meridian()), |folder| config(admin, origin.address, folder, "")).await;
    let own = |page: &str| format!("GET {page} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    for page in ["/metrics", "/healthz", "/readyz", "/api/status", "/api/overrides", "/api/events"] {
        let answer = raw(admin, &own(page)).await;
        assert_eq!(status(&answer), 200, "{page}");
        let lower = answer.to_ascii_lowercase();
        assert!(lower.contains("cache-control: no-store") && !lower.contains("access-control-"), "{answer}");

        // Through the proxy: whatever is named, the service's origin answers or nobody does.
        assert_eq!(status(&raw(proxy.listen, &own(page)).await), 421, "{page}");
        for target in [format!("http://{admin}{page}"), format!("https://{admin}{page}"), format!("//{admin}{page}")] {
            let asked = format!("GET {target} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
            assert_eq!(status(&raw(proxy.listen, &asked).await), 421, "{target}");
        }
        let asked = format!(
            "GET {page} HTTP/1.1\r\nHost: web.test\r\nX-Forwarded-Host: {admin}\r\nForwarded: host=\"{admin}\"\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(proxy.listen, &asked).await.to_ascii_lowercase();
        assert!(answer.contains("x-origin: home"), "{answer}");

        // DNS rebinding: a page's own name leads to the admin address.
        for host in ["rebound.example", &format!("rebound.example:{}", admin.port()), "127.0.0.1.rebound.example"] {
            let asked = format!("GET {page} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            assert_eq!(status(&raw(admin, &asked).await), 421, "{host}");
        }
        let asked = format!("GET http://rebound.example{page} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        assert_eq!(status(&raw(admin, &asked).await), 421, "{page}");
    }
    let asked = format!("CONNECT {admin} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    assert!(status(&raw(proxy.listen, &asked).await) >= 400);

    let (json, local) = ("Content-Type: application/json\r\n", admin.to_string());
    for page in ["/api/overrides", "/api/reload", "/api/upgrade"] {
        assert_eq!(status(&change(admin, page, "rebound.example", json).await), 421, "{page}");
        // CSRF: what a page can send is a form, or names the page.
        for kind in [
            "",
            "Content-Type: text/plain\r\n",
            "Content-Type: application/x-www-form-urlencoded\r\n",
            "Content-Type: multipart/form-data; boundary=x\r\n",
        ] {
            assert_eq!(status(&change(admin, page, &local, kind).await), 415, "{page} {kind}");
        }
        for from in ["http://evil.example", "null", "http://localhost:3000"] {
            let fields = format!("{json}Origin: {from}\r\n");
            assert_eq!(status(&change(admin, page, &local, &fields).await), 403, "{page} {from}");
        }
        let asked = format!(
            "OPTIONS {page} HTTP/1.1\r\nHost: {admin}\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(admin, &asked).await.to_ascii_lowercase();
        assert!(status(&answer) == 405 && !answer.contains("access-control-"), "{answer}");
        let asked = format!("GET {page}?state=drain HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        assert!(matches!(status(&raw(admin, &asked).await), 200 | 405));
    }
    assert_eq!(proxy.generation().await, 1);
    assert_eq!(proxy.status().await["services"][0]["regions"][0]["intent"], "ready");
    // The same word without any of that is taken.
    assert_eq!(status(&change(admin, "/api/overrides", &local, json).await), 200);
}

#[tokio::test]
async fn secrets_are_shown_nowhere() {
    let (origin, admin) = (Origin::start("home"), free());
    let endpoint = origin.address;
    let proxy = Proxy::start_whole(with_variables(meridian()), |folder| config(admin, endpoint, folder, "")).await;
    let path = proxy.config_path();
    let ask = async |fields: &str| {
        let body = "zq7body";
        let answer = raw(proxy.listen, &format!("POST /page HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nContent-Length: {}\r\n{fields}\r\n{body}", body.len())).await;
        status(&answer)
    };
    let confidence = "Authorization: Bearer zq7auth\r\nProxy-Authorization: Basic zq7auth\r\nCookie: session=zq7cookie; meridian=zq7cookie\r\nX-Api-Key: zq7auth\r\n";
    assert_eq!(ask(confidence).await, 200);
    // Heads that are refused, in the line of which something may be told of why.
    for wrong in [
        "Authorization: zq7auth\r\nauthorization zq7auth\r\n",
        "Cookie: zq7cookie\x01\r\n",
        "Transfer-Encoding: zq7auth\r\n",
    ] {
        assert_eq!(ask(wrong).await, 400, "{wrong:?}");
    }
    // Words with a wrong token, and with the right one.
    let word = |token: &str| {
        format!(
            "POST /api/overrides HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        )
    };
    assert_eq!(status(&raw(admin, &word("zq7auth")).await), 401);
    assert_eq!(status(&raw(admin, &word(TOKEN)).await), 400);

    let mut shown = String::new();
    for page in ["/metrics", "/api/status", "/api/overrides", "/api/events", "/api/explain?ip=192.0.2.1"] {
        shown += &proxy.admin(page).await.unwrap().1;
    }
    // A reload that is refused, for mistakes beside and within what is secret.
    let good = std::fs::read_to_string(&path).unwrap();
    let spoil = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        write(&path, &good.replace(from, to));
    };
    for (from, to) in [
        ("token = \"${ADMIN_TOKEN}\"", "token = \"${ADMIN_TOKEN}\\n\""),
        ("keys = [\"${AFFINITY_KEY}\", ", "keys = [\"${AFFINITY_KEY}\", \"${AFFINITY_KEY}\", 1, \"zq7written\", "),
        (
            "X-Upstream-Key = \"${UPSTREAM_VALUE}\"",
            "X-Upstream-Key = \" ${UPSTREAM_VALUE}\\u0007\", Via = \"${UPSTREAM_VALUE}\"",
        ),
        ("hosts = [\"web.test\"]", "hosts = [\"${UPSTREAM_VALUE} ${ADMIN_TOKEN}\"]"),
        ("endpoints = [", "endpoints = [\"${AFFINITY_KEY}/\", "),
    ] {
        spoil(from, to);
        for command in ["check", "reload", "states", "explain"] {
            let mut run = with_variables(meridian());
            run.args([command, "--config"]).arg(&path);
            if command == "explain" {
                run.args(["--ip", "192.0.2.1"]);
            }
            let said = run.output().unwrap();
            assert!(command == "states" || !said.status.success(), "{command} {to}");
            shown += &String::from_utf8_lossy(&said.stdout);
            shown += &String::from_utf8_lossy(&said.stderr);
        }
    }
    // A token in the file, beside a mistake on the same line.
    let rest: String = good
        .lines()
        .filter(|line| !line.starts_with("token") && *line != "[admin]")
        .map(|line| line.to_owned() + "\n")
        .collect();
    let rest = rest.replace(&format!("address = \"{admin}\"\n"), "");
    write(&path, &format!("admin = {{ token = \"zq7written-zq7written\", adress = \"\" }}\n{rest}"));
    let said = with_variables(meridian()).args(["check", "--config"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    assert!(said.contains("token = \"*********************\""), "{said}");
    shown += &said;
    write(&path, &good);
    for command in ["check", "states"] {
        let said = with_variables(meridian()).args([command, "--config"]).arg(&path).output().unwrap();
        shown += &String::from_utf8_lossy(&said.stdout);
        shown += &String::from_utf8_lossy(&said.stderr);
    }
    shown += &proxy.admin("/api/status").await.unwrap().1;
    shown += &proxy.admin("/api/events").await.unwrap().1;
    proxy.until("lines of the access log", async || proxy.access_log().lines().count() >= 4).await;
    shown += &proxy.log();
    shown += &proxy.access_log();
    assert!(shown.contains("\"path\":\"/page\""), "{shown}");
    for hidden in HIDDEN {
        let lines: Vec<&str> = shown.lines().filter(|line| line.contains(hidden)).collect();
        assert!(lines.is_empty(), "{hidden}:\n{}", lines.join("\n"));
    }
}
