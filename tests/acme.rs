//! Certificates by ACME, from a real authority: pebble, on loopback.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::authority::Authority;
use common::harness::{answering, raw, status};
use common::pebble::{Pebble, Plan};
use common::process::{Proxy, write};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";

/// What a test has: where the authority is or will be, where things are kept, and who serves.
struct Stage {
    state: tempfile::TempDir,
    origin: SocketAddr,
}

impl Stage {
    async fn new() -> Stage {
        Stage { state: tempfile::tempdir().unwrap(), origin: answering(HELLO).await.0 }
    }

    /// A configuration by that plan, with more beneath `[acme]`, the service, and the listener with TLS.
    fn config(&self, plan: &Plan, acme: &str, service: &str, tls: &str) -> String {
        format!(
            "[[listen]]\naddress = \"127.0.0.1:{}\"\n{tls}\n[[listen]]\naddress = \"127.0.0.1:{}\"\n\
             [process]\nstate_dir = \"{}\"\n[acme]\ndirectory = \"{}\"\nca = \"{}\"\nagree_tos = true\n{acme}\n\
             [regions.only]\n[services.web]\n{service}\n[services.web.health]\nkind = \"none\"\n\
             [services.web.pools.only]\nendpoints = [\"{}\"]\n",
            plan.tls,
            plan.http,
            self.state.path().display(),
            plan.url(),
            plan.ca().display(),
            self.origin,
        )
    }

    fn at(&self, name: &str) -> PathBuf {
        self.state.path().join("acme").join(name)
    }

    fn account(&self) -> String {
        fs::read_to_string(self.at("account.json")).unwrap()
    }

    fn kept(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.at("localhost.pem")).unwrap()
    }
}

const LOCALHOST: &str = "tls = { acme = [\"localhost\"] }";

const ISSUED: &str = "meridian_acme_orders_total{result=\"issued\"}";
const FAILED: &str = "meridian_acme_orders_total{result=\"failed\"}";

/// What pebble's log says when an account is asked for, and an order.
const ACCOUNT: &str = "POST /sign-me-up ->";
const ORDER: &str = "POST /order-plz ->";

/// The certificate that a client is shown that trusts these, and what a request gets; `None`: there was no handshake.
async fn visit(port: u16, roots: RootCertStore) -> Option<(CertificateDer<'static>, String)> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let mut answer = Vec::new();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    stream.read_to_end(&mut answer).await.unwrap();
    Some((certificate, String::from_utf8(answer).unwrap()))
}

/// Waits until a client that trusts the authority is served, and returns the certificate that it was shown.
async fn served(proxy: &Proxy, pebble: &Pebble) -> CertificateDer<'static> {
    let roots = pebble.roots();
    proxy
        .until("a certificate that the authority signed", async || {
            visit(pebble.plan().tls, roots.clone()).await.is_some()
        })
        .await;
    let (certificate, answer) = visit(pebble.plan().tls, roots).await.unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
    certificate
}

fn is_private(path: &Path) -> bool {
    fs::metadata(path).unwrap().permissions().mode() & 0o077 == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_issued_kept_and_renewed() {
    let stage = Stage::new().await;
    let pebble = Plan::new().start().await;
    let config = stage.config(pebble.plan(), "contact = [\"mailto:ops@example.com\"]", "", LOCALHOST);
    let proxy = Proxy::start(&config, |_| {}).await;
    let first = served(&proxy, &pebble).await;
    assert_eq!(first, stage.kept());
    assert!(is_private(&stage.at("localhost.pem")) && is_private(&stage.at("account.json")));
    assert_eq!((proxy.metric(ISSUED).await, proxy.metric(FAILED).await), (Some(1.0), None));
    let series = format!(
        "meridian_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}}",
        stage.at("localhost.pem").display()
    );
    assert!(proxy.metric(&series).await.unwrap() > 1e9);
    let log = proxy.logged(&["a placeholder is shown", "certificate issued"]).await;
    let account = stage.account();
    let key = fs::read_to_string(stage.at("localhost.pem")).unwrap();
    assert!(!log.contains("PRIVATE KEY") && !log.contains(key.lines().nth(1).unwrap()), "{log}");

    // A restart orders nothing.
    drop(proxy);
    let proxy = Proxy::start(&config, |_| {}).await;
    assert_eq!(served(&proxy, &pebble).await, first);
    let log = proxy.logged(&["ready generation=1"]).await;
    assert!(!log.contains("ordering") && !log.contains("placeholder"), "{log}");

    // What is near its end is replaced, by the same account.
    let authority = Authority::new("another");
    let folder = tempfile::tempdir().unwrap();
    authority.issue_until(folder.path(), "old", &["localhost"], 2027);
    let part = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let aside = stage.at("old");
    write(&aside, &(part("old.key") + &part("old.pem")));
    fs::rename(aside, stage.at("localhost.pem")).unwrap();
    proxy.until("another order", async || proxy.metric(ISSUED).await == Some(1.0)).await;
    proxy.until("the new one", async || visit(pebble.plan().tls, pebble.roots()).await.is_some()).await;
    let second = served(&proxy, &pebble).await;
    assert!(second != first && second == stage.kept());
    assert_eq!(stage.account(), account);
    let log = proxy.logged(&["certificate issued"]).await;
    assert!(!log.contains("account made"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_01_is_answered_though_its_service_redirects() {
    let stage = Stage::new().await;
    for engine in ["native", "pingora"] {
        let pebble = Plan::new().start().await;
        let _ = fs::remove_dir_all(stage.at(""));
        let config = stage.config(pebble.plan(), "challenge = \"http-01\"", "https = \"redirect\"", LOCALHOST);
        // Whoever moves the bytes of the plain listener.
        let plain = format!("[[listen]]\naddress = \"127.0.0.1:{}\"\n", pebble.plan().http);
        let config = config.replace(&plain, &format!("{plain}engine = \"{engine}\"\n"));
        let proxy = Proxy::start(&config, |_| {}).await;
        served(&proxy, &pebble).await;
        assert_eq!(proxy.metric(ISSUED).await, Some(1.0));
        proxy.until("its line", async || proxy.access_log().contains("\"challenge\"")).await;
        // Nothing is pending now: the path is as any other.
        let request = "GET /.well-known/acme-challenge/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let answer = raw(proxy.listen, request.as_bytes()).await;
        assert_eq!(status(&answer), 308, "{engine}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_whose_clients_need_certificates_is_asked_without_one() {
    let stage = Stage::new().await;
    let pebble = Plan::new().start().await;
    let tls = "tls = { acme = [\"localhost\"], client_ca = \"clients.pem\", min_version = \"1.3\" }";
    let config = stage.config(pebble.plan(), "", "", tls);
    let authority = Authority::new("clients'");
    let proxy = Proxy::start(&config, |folder| authority.write(&folder.join("clients.pem"))).await;
    proxy.until("its certificate", async || proxy.metric(ISSUED).await == Some(1.0)).await;
    assert_eq!(proxy.metric(FAILED).await, None);
    assert!(stage.at("localhost.pem").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_directory_is_down_a_placeholder_serves() {
    let stage = Stage::new().await;
    let plan = Plan::new();
    let proxy = Proxy::start(&stage.config(&plan, "", "", LOCALHOST), |_| {}).await;
    proxy.until("a failure", async || proxy.metric(FAILED).await == Some(1.0)).await;
    proxy.logged(&["no connection to localhost:", "trying again in"]).await;
    let series = format!(
        "meridian_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}}",
        stage.at("localhost.pem").display()
    );
    assert_eq!(proxy.metric(&series).await, Some(0.0));
    assert!(visit(plan.tls, RootCertStore::empty()).await.is_none(), "nobody trusts it");
    assert!(!stage.at("account.json").exists());

    // Whoever puts something right in `[acme]` does not wait for the next attempt.
    let config = stage.config(&plan, "contact = [\"mailto:ops@example.com\"]", "", LOCALHOST);
    let pebble = plan.start().await;
    proxy.write_config(&config);
    served(&proxy, &pebble).await;
    assert_eq!((proxy.metric(ISSUED).await, proxy.metric(FAILED).await), (Some(1.0), Some(1.0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_authority_objects_is_told_without_tokens() {
    let stage = Stage::new().await;
    // It asks somebody else: the listener is elsewhere.
    let mut plan = Plan::new();
    plan.http = stage.origin.port();
    let pebble = plan.start().await;
    let config = stage.config(pebble.plan(), "challenge = \"http-01\"", "", LOCALHOST);
    let config = config.replace(&format!("127.0.0.1:{}\"\n[process]", pebble.plan().http), "127.0.0.1:0\"\n[process]");
    let proxy = Proxy::start(&config, |_| {}).await;
    proxy.until("a failure", async || proxy.metric(FAILED).await == Some(1.0)).await;
    proxy.logged(&["urn:ietf:params:acme:error:unauthorized", "\\\"…\\\" != "]).await;
    assert!(!stage.at("localhost.pem").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_and_a_lost_account_keep_nobody_from_a_certificate() {
    let stage = Stage::new().await;
    let pebble = Plan::new().start().await;
    let config = stage.config(pebble.plan(), "", "", LOCALHOST);
    fs::create_dir(stage.at("")).unwrap();
    write(&stage.at("localhost.pem"), "-----BEGIN CERTIFICATE-----\nnothing\n");
    // Of an authority that has forgotten it, as every start of pebble's does.
    let key = rcgen::KeyPair::generate().unwrap().serialize_der();
    let key = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, key);
    let lost = serde_json::json!({
        "id": pebble.plan().url().replace("/dir", "/my-account/77"), "key_pkcs8": key, "directory": pebble.plan().url(),
    });
    let lost = lost.to_string();
    write(&stage.at("account.json"), &lost);
    let proxy = Proxy::start(&config, |_| {}).await;
    served(&proxy, &pebble).await;
    proxy.logged(&["cannot be used, and another is ordered", "does not know the account any more"]).await;
    assert!(stage.account() != lost && stage.at("account.json.broken").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_in_force_outlives_its_file() {
    let stage = Stage::new().await;
    let pebble = Plan::new().start().await;
    let config = stage.config(pebble.plan(), "", "", LOCALHOST);
    let proxy = Proxy::start(&config, |_| {}).await;
    let first = served(&proxy, &pebble).await;
    fs::remove_file(stage.at("localhost.pem")).unwrap();
    proxy.logged(&["the certificate that was shown before stays"]).await;
    assert_eq!(served(&proxy, &pebble).await, first);
    // The next one is not ordered at once; whoever changes `[acme]` has it ordered.
    assert_eq!(proxy.metric(ISSUED).await, Some(1.0));
    proxy.write_config(&stage.config(pebble.plan(), "contact = [\"mailto:ops@example.com\"]", "", LOCALHOST));
    proxy.until("another order", async || proxy.metric(ISSUED).await == Some(2.0)).await;
    proxy
        .until("the new one", async || {
            visit(pebble.plan().tls, pebble.roots()).await.is_some_and(|(shown, _)| shown == stage.kept())
        })
        .await;
    assert_ne!(stage.kept(), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_asked_for_that_could_not_be_kept() {
    let stage = Stage::new().await;
    let pebble = Plan::new().start().await;
    write(&stage.state.path().join("acme"), "a file, where a folder should be");
    let proxy = Proxy::start(&stage.config(pebble.plan(), "", "", LOCALHOST), |_| {}).await;
    proxy.until("a failure", async || proxy.metric(FAILED).await == Some(1.0)).await;
    proxy.logged(&["nothing is ordered, for"]).await;
    assert!(!pebble.log().contains(ACCOUNT) && !pebble.log().contains(ORDER), "{}", pebble.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_issued_and_cannot_be_written_is_not_ordered_again() {
    let stage = Stage::new().await;
    let pebble = Plan::new().start().await;
    // Beside it can be written, but it cannot take its name.
    fs::create_dir_all(stage.at("localhost.pem/x")).unwrap();
    let proxy = Proxy::start(&stage.config(pebble.plan(), "", "", LOCALHOST), |_| {}).await;
    proxy.until("a failure", async || proxy.metric(FAILED).await == Some(1.0)).await;
    proxy.logged(&["localhost.pem cannot be written"]).await;
    assert_eq!(pebble.log().matches(ORDER).count(), 1, "{}", pebble.log());
    fs::remove_dir_all(stage.at("localhost.pem")).unwrap();
    proxy.write_config(&stage.config(pebble.plan(), "contact = [\"mailto:ops@example.com\"]", "", LOCALHOST));
    assert_eq!(served(&proxy, &pebble).await, stage.kept());
    assert_eq!(pebble.log().matches(ORDER).count(), 1, "{}", pebble.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_busy_is_told_and_left_alone() {
    let stage = Stage::new().await;
    let (plan, folder) = (Plan::new(), tempfile::tempdir().unwrap());
    let authority = Authority::new("the busy directory's");
    authority.issue(folder.path(), "busy", &["localhost"]);
    let at = |name: &str| folder.path().join(name);
    let chain = CertificateDer::pem_file_iter(at("busy.pem")).unwrap().map(Result::unwrap).collect();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(at("busy.key")).unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            let mut stream = TlsAcceptor::from(Arc::new(config.clone())).accept(stream).await.unwrap();
            let mut begin = [0; 1024];
            let _ = stream.read(&mut begin).await.unwrap();
            let problem = "{\"type\":\"urn:ietf:params:acme:error:rateLimited\",\"detail\":\"come back later\"}";
            let head = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7200\r\nConnection: close\r\n";
            let answer = format!("{head}Content-Length: {}\r\n\r\n{problem}", problem.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    authority.write(&at("ca.pem"));
    let config = stage.config(&plan, "", "", LOCALHOST);
    let config = config.replace(&plan.url(), &format!("https://localhost:{port}/dir"));
    let config = config.replace(&plan.ca().display().to_string(), &at("ca.pem").display().to_string());
    let proxy = Proxy::start(&config, |_| {}).await;
    proxy.logged(&["503 Service Unavailable", "come back later", "trying again in 7200 s"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_placeholder_does_not_stand_before_a_certificate_for_the_name() {
    let stage = Stage::new().await;
    let plan = Plan::new();
    let authority = Authority::new("the operator's");
    let tls = "tls = { certificates = [{ cert = \"other.pem\", key = \"other.key\" }, { cert = \"site.pem\", key = \"site.key\" }], acme = [\"localhost\"] }";
    let proxy = Proxy::start(&stage.config(&plan, "", "", tls), |folder| {
        authority.issue(folder, "other", &["other.test"]);
        authority.issue(folder, "site", &["localhost"]);
    })
    .await;
    proxy.logged(&["a placeholder is shown"]).await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let (_, answer) = visit(plan.tls, roots).await.unwrap();
    assert_eq!(status(&answer), 200, "{answer}");
}
