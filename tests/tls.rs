//! TLS on listeners, by real clients: curl, `openssl s_client` and rustls.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use common::authority::{Authority, pem};
use common::harness::{answering, raw, scripted, status};
use common::process::{PATIENCE, Proxy, meridian, write};
use meridian::config::tls::Anybody;
use rcgen::KeyPair;
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// One service over that endpoint, whatever host is asked for.
fn config(endpoint: SocketAddr) -> String {
    format!(
        "[regions.only]\n[services.web]\n[services.web.health]\nkind = \"none\"\n[services.web.pools.only]\nendpoints = [\"{endpoint}\"]\n"
    )
}

/// What answers every request.
const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// A listener with `tls`, which may name what `setup` wrote.
async fn secured(tls: &str, endpoint: SocketAddr, setup: impl FnOnce(&Path)) -> Proxy {
    Proxy::start_with(&format!("tls = {{ {tls} }}\n"), &config(endpoint), setup).await
}

const SITE: &str = "certificates = [{ cert = \"site.pem\", key = \"site.key\" }]";

async fn connect(address: SocketAddr, name: &str, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
}

/// What a request gets, and how the connection ended: whole with a close alert, or not.
async fn get(stream: &mut TlsStream<TcpStream>, host: &str) -> (String, Result<(), ErrorKind>) {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it ends");
    (String::from_utf8_lossy(&answer).into_owned(), end.map(drop).map_err(|error| error.kind()))
}

/// The certificate that a client gets who asks for `name`.
async fn shown(address: SocketAddr, authority: &Authority, name: &str) -> CertificateDer<'static> {
    let mut client = authority.trusting().with_no_client_auth();
    client.dangerous().set_certificate_verifier(Arc::new(Anybody(Arc::new(ring::default_provider()))));
    let stream = connect(address, name, client).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

fn first_of(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

/// What a program does that is given nothing to read.
fn run(program: &str, arguments: &[&str]) -> Output {
    run_with(program, arguments, "")
}

fn run_with(program: &str, arguments: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program} is needed (tests/setup.sh): {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_is_served() {
    let authority = Authority::new("tests");
    let (origin, script) = answering(HELLO).await;
    let proxy = secured(SITE, origin, |folder| {
        authority.issue(folder, "site", &["www.example.com"]);
        authority.write(&folder.join("ca.pem"));
    })
    .await;
    let (ca, port) = (proxy.folder().join("ca.pem"), proxy.listen.port());
    let resolve = format!("www.example.com:{port}:127.0.0.1");
    let url = format!("https://www.example.com:{port}/x");
    let arguments = ["-sSv", "--http1.1", "--cacert", ca.to_str().unwrap(), "--resolve", &resolve, &url, &url];
    let output = run("curl", &arguments);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hellohello", "{}", text(&output));
    assert!(
        text(&output).contains("ALPN: server accepted http/1.1") || text(&output).contains("ALPN, server accepted"),
        "{}",
        text(&output)
    );
    assert!(text(&output).contains("Re-using existing connection"), "{}", text(&output));
    let requests = script.requests.lock().unwrap().clone();
    assert!(
        requests.iter().all(|head| head.to_ascii_lowercase().contains("x-forwarded-proto: https\r\n")),
        "{requests:?}"
    );
    assert_eq!(proxy.metric("meridian_tls_handshakes_total{resumed=\"no\",version=\"1.3\"}").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_that_is_asked_for_chooses_the_certificate() {
    let authority = Authority::new("tests");
    let tls = "certificates = [\
        { cert = \"first.pem\", key = \"first.key\" }, { cert = \"wild.pem\", key = \"wild.key\" }, \
        { cert = \"exact.pem\", key = \"exact.key\" }, { cert = \"rsa.pem\", key = \"rsa.key\" }]";
    let proxy = secured(tls, answering(HELLO).await.0, |folder| {
        authority.issue(folder, "first", &["example.org", "127.0.0.1"]);
        authority.issue(folder, "wild", &["*.example.com"]);
        authority.issue(folder, "exact", &["www.example.com"]);
        let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let made = run(
            "openssl",
            &[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=x",
                "-addext",
                "subjectAltName=DNS:www.example.com",
                "-days",
                "9",
                "-keyout",
                &at("rsa.key"),
                "-out",
                &at("rsa.pem"),
            ],
        );
        assert!(made.status.success(), "{}", text(&made));
    })
    .await;
    let rows = [
        ("example.org", "first"),
        ("www.example.com", "exact"),
        ("WWW.example.com", "exact"),
        ("other.example.com", "wild"),
        ("a.b.example.com", "first"),
        ("example.com", "first"),
        ("unknown.test", "first"),
        ("127.0.0.1", "first"),
    ];
    for (name, file) in rows {
        let expected = first_of(&proxy.folder().join(format!("{file}.pem")));
        assert_eq!(shown(proxy.listen, &authority, name).await, expected, "{name}");
    }
    // Who can verify one kind of key only gets that one.
    let address = proxy.listen.to_string();
    for (algorithms, kind) in [("RSA-PSS+SHA256", "RSA"), ("ECDSA+SHA256", "ECDSA")] {
        let arguments = ["s_client", "-connect", &address, "-servername", "www.example.com", "-sigalgs", algorithms];
        let seen = text(&run("openssl", &arguments));
        let signed = [
            "Peer signature type: RSA-PSS",
            "Peer signature type: ECDSA",
            "Peer signature type: rsa_pss",
            "Peer signature type: ecdsa",
        ];
        let found: Vec<_> = signed.iter().filter(|line| seen.contains(**line)).collect();
        assert!(found.iter().any(|line| line.to_ascii_uppercase().contains(kind)), "{algorithms}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_1_2_and_1_3_or_1_3_alone() {
    let authority = Authority::new("tests");
    let origin = answering(HELLO).await.0;
    for (more, rows) in [
        ("", [("-tls1_1", false), ("-tls1_2", true), ("-tls1_3", true)]),
        (", min_version = \"1.3\"", [("-tls1_1", false), ("-tls1_2", false), ("-tls1_3", true)]),
    ] {
        let proxy =
            secured(&format!("{SITE}{more}"), origin, |folder| authority.issue(folder, "site", &["x.test"])).await;
        let address = proxy.listen.to_string();
        for (version, works) in rows {
            let request = "GET / HTTP/1.1\r\nHost: x.test\r\nConnection: close\r\n\r\n";
            // The lowest security level: it is the server that is to refuse old versions.
            let arguments =
                ["s_client", "-connect", &address, version, "-cipher", "DEFAULT@SECLEVEL=0", "-ign_eof", "-quiet"];
            let seen = text(&run_with("openssl", &arguments, request));
            assert_eq!(seen.contains("hello"), works, "{version}{more}: {seen}");
        }
        assert!(proxy.metric("meridian_connections_refused_total{reason=\"tls\"}").await.unwrap_or(0.0) > 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_resumed_over_a_reload_but_not_where_clients_have_certificates() {
    let authority = Authority::new("tests");
    let origin = answering(HELLO).await.0;
    let proxy = secured(SITE, origin, |folder| authority.issue(folder, "site", &["x.test"])).await;
    let session = proxy.folder().join("session");
    let (address, session) = (proxy.listen.to_string(), session.to_str().unwrap());
    let request = "GET / HTTP/1.1\r\nHost: x.test\r\nConnection: close\r\n\r\n";
    for version in ["-tls1_2", "-tls1_3"] {
        let first = run_with(
            "openssl",
            &["s_client", "-connect", &address, version, "-sess_out", session, "-ign_eof"],
            request,
        );
        assert!(text(&first).contains("New, TLS"), "{}", text(&first));
        let generation = proxy.generation().await;
        authority.issue(proxy.folder(), "site", &["x.test", version.trim_start_matches('-')]);
        proxy.until("the reload", async || proxy.generation().await > generation).await;
        let again =
            run_with("openssl", &["s_client", "-connect", &address, version, "-sess_in", session, "-ign_eof"], request);
        assert!(text(&again).contains("Reused, TLS"), "{}", text(&again));
        let series =
            format!("meridian_tls_handshakes_total{{resumed=\"yes\",version=\"{}\"}}", version.replace("-tls1_", "1."));
        assert_eq!(proxy.metric(&series).await, Some(1.0));
    }

    let tls = format!("{SITE}, client_ca = \"ca.pem\"");
    let proxy = secured(&tls, origin, |folder| {
        authority.issue(folder, "site", &["x.test"]);
        authority.issue(folder, "client", &["client.test"]);
        authority.write(&folder.join("ca.pem"));
    })
    .await;
    let at = |name: &str| proxy.folder().join(name).to_str().unwrap().to_owned();
    let address = proxy.listen.to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let (cert, key) = (at("client.pem"), at("client.key"));
        let mine = [
            "s_client",
            "-connect",
            &address,
            version,
            "-servername",
            "x.test",
            "-cert",
            &cert,
            "-key",
            &key,
            "-ign_eof",
        ];
        let first = run_with("openssl", &[&mine[..], &["-sess_out", session]].concat(), request);
        assert!(text(&first).contains("hello"), "{}", text(&first));
        let again = run_with("openssl", &[&mine[..], &["-sess_in", session]].concat(), request);
        assert!(!text(&again).contains("Reused, TLS"), "{}", text(&again));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_it_runs_and_broken_ones_are_not_taken() {
    let authority = Authority::new("tests");
    let proxy =
        secured(SITE, answering(HELLO).await.0, |folder| authority.issue_until(folder, "site", &["x.test"], 2150))
            .await;
    let folder = proxy.folder().to_owned();
    let series = format!(
        "meridian_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}}",
        folder.join("site.pem").display()
    );
    assert_eq!(proxy.metric(&series).await, Some(5680281600.0));
    // One connection outlives all of it.
    let mut old = connect(proxy.listen, "x.test", authority.trusting().with_no_client_auth()).await.unwrap();

    let generation = proxy.generation().await;
    authority.issue(&folder, "site", &["x.test", "new.test"]);
    proxy.until("the reload", async || proxy.generation().await > generation).await;
    let good = first_of(&folder.join("site.pem"));
    assert_eq!(shown(proxy.listen, &authority, "x.test").await, good);
    assert_eq!(proxy.metric(&series).await, Some(7258118400.0));

    let refused = async || proxy.metric("meridian_config_reloads_total{result=\"failure\"}").await.unwrap_or(0.0);
    let key = std::fs::read_to_string(folder.join("site.key")).unwrap();
    for (n, (broken, said)) in [
        (pem("PRIVATE KEY", &KeyPair::generate().unwrap().serialize_der()), "is not that of the certificate"),
        ("no key".to_owned(), "holds no private key"),
    ]
    .iter()
    .enumerate()
    {
        write(&folder.join("site.key"), broken);
        proxy.until("it is refused", async || refused().await > n as f64).await;
        proxy.until("it says why", async || proxy.log().contains(said)).await;
        assert!(proxy.log().contains("meridian.toml:"), "{}", proxy.log());
        assert_eq!(shown(proxy.listen, &authority, "x.test").await, good);
    }
    write(&folder.join("site.key"), &key);
    proxy
        .until("it is well again", async || proxy.metric("meridian_config_last_reload_success").await == Some(1.0))
        .await;
    let (answer, end) = get(&mut old, "x.test").await;
    assert_eq!((status(&answer), end), (200, Ok(())));
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_must_have_a_certificate_and_ask_for_what_they_were_shown() {
    let (authority, strangers) = (Authority::new("tests"), Authority::new("strangers"));
    let tls = "certificates = [{ cert = \"site.pem\", key = \"site.key\" }, { cert = \"other.pem\", key = \"other.key\" }], client_ca = \"ca.pem\"";
    let proxy = secured(tls, answering(HELLO).await.0, |folder| {
        authority.issue(folder, "site", &["x.test", "*.x.test"]);
        authority.issue(folder, "other", &["other.test"]);
        authority.issue(folder, "client", &["client.test"]);
        strangers.issue(folder, "stranger", &["client.test"]);
        authority.write(&folder.join("ca.pem"));
    })
    .await;
    let with = |name: &str| {
        let at = |ending: &str| proxy.folder().join(format!("{name}.{ending}"));
        let chain = CertificateDer::pem_file_iter(at("pem")).unwrap().map(Result::unwrap).collect();
        authority.trusting().with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(at("key")).unwrap()).unwrap()
    };
    let rows = [
        ("x.test", "x.test", 200),
        ("x.test", "a.x.test:443", 200),
        ("x.test", "A.X.TEST", 200),
        ("x.test", "other.test", 421),
        ("x.test", "a.b.x.test", 421),
        ("other.test", "other.test", 200),
        ("other.test", "x.test", 421),
    ];
    for (name, host, expected) in rows {
        let mut stream = connect(proxy.listen, name, with("client")).await.unwrap();
        let (answer, _) = get(&mut stream, host).await;
        assert_eq!(status(&answer), expected, "{name} {host}: {answer}");
    }
    proxy.until("its line", async || proxy.access_log().contains("\"outcome\":\"misdirected\"")).await;
    // In TLS 1.3 a client hears of it with its first read.
    for client in [with("stranger"), authority.trusting().with_no_client_auth()] {
        let refused = match connect(proxy.listen, "x.test", client).await {
            Ok(mut stream) => {
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
                stream.read(&mut [0; 1]).await.map_or(true, |read| read == 0)
            }
            Err(_) => true,
        };
        assert!(refused);
    }
    proxy
        .until("both are counted", async || {
            proxy.metric("meridian_connections_refused_total{reason=\"tls\"}").await == Some(2.0)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_does_not_speak_tls_is_told_or_cut() {
    let authority = Authority::new("tests");
    let origin = answering(HELLO).await.0;
    let with_limit = format!("[limits]\nhandshake_timeout = \"300ms\"\n{}", config(origin));
    let proxy = Proxy::start_with(&format!("tls = {{ {SITE} }}\n"), &with_limit, |folder| {
        authority.issue(folder, "site", &["x.test"])
    })
    .await;
    let answer = raw(proxy.listen, b"GET / HTTP/1.1\r\nHost: x.test\r\n\r\n").await;
    assert_eq!(status(&answer), 400);
    assert!(answer.ends_with("this port speaks TLS only") && answer.contains("Content-Length: 42"), "{answer}");
    assert_eq!(raw(proxy.listen, b"\0\0\0").await, "");
    // Silence before and within the handshake.
    assert_eq!(raw(proxy.listen, b"").await, "");
    assert_eq!(raw(proxy.listen, b"\x16\x03\x01").await, "");
    for (reason, count) in [("not_tls", 2.0), ("handshake_timeout", 2.0)] {
        let series = format!("meridian_connections_refused_total{{reason=\"{reason}\"}}");
        proxy.until(reason, async || proxy.metric(&series).await == Some(count)).await;
    }
    assert_eq!(proxy.access_log(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_alert_means_that_the_answer_is_whole() {
    let authority = Authority::new("tests");
    let (origin, _) = scripted(|mut stream, script| async move {
        while let Some(head) = script.request(&mut stream).await {
            let answer: &[u8] = match head.contains("Host: broken") {
                true => b"HTTP/1.0 200 OK\r\n\r\nhalf of it",
                false => HELLO.as_bytes(),
            };
            stream.write_all(answer).await.unwrap();
            if head.contains("Host: broken") {
                // A reset instead of an end.
                socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).unwrap();
                return;
            }
        }
    })
    .await;
    for engine in ["native", "pingora"] {
        let listen = format!("engine = \"{engine}\"\ntls = {{ {SITE} }}\n");
        let proxy =
            Proxy::start_with(&listen, &config(origin), |folder| authority.issue(folder, "site", &["x.test"])).await;
        let client = || authority.trusting().with_no_client_auth();
        let mut stream = connect(proxy.listen, "x.test", client()).await.unwrap();
        let (answer, end) = get(&mut stream, "x.test").await;
        assert_eq!((status(&answer), end), (200, Ok(())), "{engine}: {answer}");
        if engine == "native" {
            // To HTTP/1.0 the end of the connection is the end of the answer.
            let mut stream = connect(proxy.listen, "x.test", client()).await.unwrap();
            stream.write_all(b"GET / HTTP/1.0\r\nHost: broken\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            let end = stream.read_to_end(&mut answer).await;
            assert!(end.is_err(), "{}", String::from_utf8_lossy(&answer));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_pass_whole_in_both_directions() {
    let authority = Authority::new("tests");
    const LENGTH: usize = 8 << 20;
    let body: Vec<u8> = (0..LENGTH).map(|n| ((n * 31) >> 3) as u8).collect();
    let sent = body.clone();
    // Echoes a body of a known length.
    let (origin, _) = scripted(move |mut stream, script| {
        let length = sent.len();
        async move {
            while script.request(&mut stream).await.is_some() {
                let mut got = vec![0; length];
                stream.read_exact(&mut got).await.unwrap();
                stream
                    .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes())
                    .await
                    .unwrap();
                stream.write_all(&got).await.unwrap();
            }
        }
    })
    .await;
    for engine in ["native", "pingora"] {
        let listen = format!("engine = \"{engine}\"\ntls = {{ {SITE} }}\n");
        let proxy =
            Proxy::start_with(&listen, &config(origin), |folder| authority.issue(folder, "site", &["x.test"])).await;
        let stream = connect(proxy.listen, "x.test", authority.trusting().with_no_client_auth()).await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        let head = format!("POST / HTTP/1.1\r\nHost: x.test\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n");
        let upload = body.clone();
        let sending = tokio::spawn(async move {
            write.write_all(head.as_bytes()).await.unwrap();
            write.write_all(&upload).await.unwrap();
            write.flush().await.unwrap();
            write
        });
        let mut answer = Vec::new();
        read.read_to_end(&mut answer).await.unwrap();
        drop(sending.await.unwrap());
        let at = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        assert!(answer[at..] == body, "{engine}: {} bytes", answer.len() - at);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_connections_count_as_https() {
    let authority = Authority::new("tests");
    let service = "[services.web]\nhttps = \"redirect\"\nhsts = \"1d\"\n";
    for engine in ["native", "pingora"] {
        let text = config(answering(HELLO).await.0).replace("[services.web]\n", service);
        let listen = format!("engine = \"{engine}\"\ntls = {{ {SITE} }}\n");
        let proxy = Proxy::start_with(&listen, &text, |folder| authority.issue(folder, "site", &["x.test"])).await;
        let client = authority.trusting().with_no_client_auth();
        let mut stream = connect(proxy.listen, "x.test", client).await.unwrap();
        let (answer, _) = get(&mut stream, "x.test").await;
        assert_eq!(status(&answer), 200, "{engine}: {answer}");
        assert!(answer.to_ascii_lowercase().contains("\r\nstrict-transport-security: max-age=86400\r\n"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_header_comes_before_the_handshake() {
    let authority = Authority::new("tests");
    let text = format!("[client_ip]\ntrusted = [\"127.0.0.1\"]\n{}", config(answering(HELLO).await.0));
    let listen = format!("proxy_protocol = \"required\"\ntls = {{ {SITE} }}\n");
    let proxy = Proxy::start_with(&listen, &text, |folder| authority.issue(folder, "site", &["x.test"])).await;
    let mut stream = TcpStream::connect(proxy.listen).await.unwrap();
    stream.write_all(b"PROXY TCP4 198.51.100.9 203.0.113.7 1 443\r\n").await.unwrap();
    let client = authority.trusting().with_no_client_auth();
    let mut stream =
        TlsConnector::from(Arc::new(client)).connect(ServerName::try_from("x.test").unwrap(), stream).await.unwrap();
    let (answer, _) = get(&mut stream, "x.test").await;
    assert_eq!(status(&answer), 200);
    proxy.until("its line", async || proxy.access_log().contains("\"client\":\"198.51.100.9\"")).await;
}

#[test]
fn check_warns_of_certificates_that_end() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("tests");
    authority.issue_until(folder.path(), "site", &["x.test"], 2020);
    let config = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ {SITE} }}\n{}",
        config(SocketAddr::from(([127, 0, 0, 1], 9)))
    );
    write(&folder.path().join("meridian.toml"), &config);
    let output = meridian().arg("check").arg(folder.path().join("meridian.toml")).output().unwrap();
    let said = text(&output);
    assert!(output.status.success() && said.contains("site.pem") && said.contains("2020-01-01"), "{said}");
}
