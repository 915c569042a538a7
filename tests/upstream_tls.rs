//! TLS to upstreams: whom meridian trusts, what it shows, and what it does when it cannot.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::authority::Authority;
use common::http::request;
use common::process::Proxy;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// The name that was asked for, and how many certificates were shown.
type Hello = (Option<String>, usize);

/// What an origin saw.
#[derive(Clone, Default)]
struct Seen {
    handshakes: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    /// Of each connection.
    names: Arc<Mutex<Vec<Hello>>>,
}

/// An origin that shows `NAME.pem` and answers with its name. `clients`: it wants theirs to be signed by that.
async fn origin(folder: &Path, name: &'static str, clients: Option<&Path>) -> (SocketAddr, Seen) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
            )
        }
    };
    let at = |ending: &str| folder.join(format!("{name}.{ending}"));
    let chain = CertificateDer::pem_file_iter(at("pem")).unwrap().map(Result::unwrap).collect();
    let config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(at("key")).unwrap()).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let told = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, seen) = (acceptor.clone(), told.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                seen.handshakes.fetch_add(1, Ordering::SeqCst);
                let session = stream.get_ref().1;
                let shown = session.peer_certificates().map_or(0, <[_]>::len);
                seen.names.lock().unwrap().push((session.server_name().map(str::to_owned), shown));
                let mut head = Vec::new();
                while let Ok(byte) = stream.read_u8().await {
                    head.push(byte);
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    if !head.starts_with(b"GET /healthz") {
                        seen.requests.fetch_add(1, Ordering::SeqCst);
                    }
                    head.clear();
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, seen)
}

/// Regions in this order, each with its endpoint, and a service with that `upstream.tls`.
fn config(tls: &str, health: &str, regions: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, _) in regions {
        text += &format!("[regions.{name}]\n");
    }
    text += &format!("[services.web.upstream]\ntls = {{ {tls} }}\n[services.web.health]\n{health}\n");
    // One worker, whose connections are its own; and handshakes of a debug build on a busy machine.
    text += "[process]\nthreads = 1\n[services.web.timeouts]\nconnect = \"10s\"\n[services.web.retry]\nrace = false\n";
    for (name, endpoint) in regions {
        text += &format!("[services.web.pools.{name}]\nendpoints = [\"{endpoint}\"]\n");
    }
    text
}

const NONE: &str = "kind = \"none\"";

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_within_tls_and_connections_are_kept() {
    let authority = Authority::new("tests");
    let folder = tempfile::tempdir().unwrap();
    authority.issue(folder.path(), "near", &["origin.test", "127.0.0.1"]);
    authority.write(&folder.path().join("ca.pem"));
    let (address, seen) = origin(folder.path(), "near", None).await;
    let ca = folder.path().join("ca.pem").display().to_string();
    for (sni, name) in [("", None), (", sni = \"origin.test\"", Some("origin.test".to_owned()))] {
        seen.names.lock().unwrap().clear();
        let proxy =
            Proxy::start(&config(&format!("ca = \"{ca}\"{sni}"), NONE, &[("near", address.to_string())]), |_| {}).await;
        for _ in 0..5 {
            let answer = request(proxy.listen, "GET", "/", &[]).await.unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (200, "near"), "{}", proxy.log());
        }
        // An address is verified, but not asked for.
        assert_eq!(*seen.names.lock().unwrap(), [(name, 0)]);
    }
    assert_eq!((seen.handshakes.load(Ordering::SeqCst), seen.requests.load(Ordering::SeqCst)), (2, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_verified_gets_nothing_and_the_next_region_is_asked() {
    let (authority, strangers) = (Authority::new("tests"), Authority::new("strangers"));
    let folder = tempfile::tempdir().unwrap();
    authority.issue(folder.path(), "good", &["127.0.0.1"]);
    authority.issue(folder.path(), "other-name", &["192.0.2.1"]);
    authority.issue_until(folder.path(), "expired", &["127.0.0.1"], 2020);
    strangers.issue(folder.path(), "stranger", &["127.0.0.1"]);
    authority.write(&folder.path().join("ca.pem"));
    let tls = format!("ca = \"{}\"", folder.path().join("ca.pem").display());
    let (good, _) = origin(folder.path(), "good", None).await;
    for name in ["other-name", "expired", "stranger"] {
        let (bad, seen) = origin(folder.path(), name, None).await;
        let proxy =
            Proxy::start(&config(&tls, NONE, &[("near", bad.to_string()), ("far", good.to_string())]), |_| {}).await;
        // Nothing was sent, so that any request may go elsewhere.
        let answer = request(proxy.listen, "POST", "/", &[("content-length", "0")]).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "good"), "{name}");
        assert_eq!(seen.requests.load(Ordering::SeqCst), 0, "{name}");
        let alone = Proxy::start(&config(&tls, NONE, &[("near", bad.to_string())]), |_| {}).await;
        assert_eq!(request(alone.listen, "GET", "/", &[]).await.unwrap().status, 502, "{name}");
        // Unless nobody wants to know.
        let proxy = Proxy::start(&config("verify = false", NONE, &[("near", bad.to_string())]), |_| {}).await;
        assert_eq!(request(proxy.listen, "GET", "/", &[]).await.unwrap().text(), name);
        proxy.logged(&["are not verified"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_shown_where_one_is_wanted() {
    let authority = Authority::new("tests");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    authority.issue(folder.path(), "origin", &["127.0.0.1"]);
    authority.issue(folder.path(), "me", &["meridian.test"]);
    authority.write(&folder.path().join("ca.pem"));
    let (address, seen) = origin(folder.path(), "origin", Some(&folder.path().join("ca.pem"))).await;
    let regions = [("near", address.to_string())];
    let with = format!("ca = \"{}\", cert = \"{}\", key = \"{}\"", at("ca.pem"), at("me.pem"), at("me.key"));
    let proxy = Proxy::start(&config(&with, NONE, &regions), |_| {}).await;
    assert_eq!(request(proxy.listen, "GET", "/", &[]).await.unwrap().status, 200);
    assert_eq!(*seen.names.lock().unwrap(), [(None, 2)]);
    let proxy = Proxy::start(&config(&format!("ca = \"{}\"", at("ca.pem")), NONE, &regions), |_| {}).await;
    assert_eq!(request(proxy.listen, "GET", "/", &[]).await.unwrap().status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_verify_what_requests_verify() {
    let (authority, strangers) = (Authority::new("tests"), Authority::new("strangers"));
    let folder = tempfile::tempdir().unwrap();
    authority.issue(folder.path(), "good", &["127.0.0.1"]);
    strangers.issue(folder.path(), "stranger", &["127.0.0.1"]);
    authority.write(&folder.path().join("ca.pem"));
    let (good, _) = origin(folder.path(), "good", None).await;
    let (bad, _) = origin(folder.path(), "stranger", None).await;
    let tls = format!("ca = \"{}\"", folder.path().join("ca.pem").display());
    let health = "interval = \"100ms\"\nfast_interval = \"100ms\"\ntimeout = \"5s\"";
    let proxy =
        Proxy::start(&config(&tls, health, &[("near", bad.to_string()), ("far", good.to_string())]), |_| {}).await;
    let up =
        async |region: &str| proxy.metric(&format!("meridian_region_up{{region=\"{region}\",service=\"web\"}}")).await;
    proxy.until("both are known", async || up("near").await == Some(0.0) && up("far").await == Some(1.0)).await;
    proxy.until("it says why", async || proxy.status().await.to_string().contains("invalid peer certificate")).await;
    let series = format!(
        "meridian_endpoint_certificate_expiry_timestamp_seconds{{endpoint=\"{good}\",region=\"far\",service=\"web\"}}"
    );
    assert_eq!(proxy.metric(&series).await, Some(7258118400.0));
    assert_eq!(request(proxy.listen, "GET", "/", &[]).await.unwrap().text(), "good");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_another_trust_are_not_used_after_a_reload() {
    let (authority, others) = (Authority::new("tests"), Authority::new("others"));
    let folder = tempfile::tempdir().unwrap();
    authority.issue(folder.path(), "origin", &["127.0.0.1"]);
    let ca = folder.path().join("ca.pem");
    authority.write(&ca);
    let (address, seen) = origin(folder.path(), "origin", None).await;
    let text = config(&format!("ca = \"{}\"", ca.display()), NONE, &[("near", address.to_string())]);
    let proxy = Proxy::start(&text, |_| {}).await;
    assert_eq!(request(proxy.listen, "GET", "/", &[]).await.unwrap().status, 200);
    let generation = proxy.generation().await;
    others.write(&ca);
    proxy.until("the reload", async || proxy.generation().await > generation).await;
    assert_eq!(request(proxy.listen, "GET", "/", &[]).await.unwrap().status, 502);
    let generation = proxy.generation().await;
    authority.write(&ca);
    proxy.until("the reload", async || proxy.generation().await > generation).await;
    assert_eq!(request(proxy.listen, "GET", "/", &[]).await.unwrap().status, 200);
    assert_eq!(seen.requests.load(Ordering::SeqCst), 2);
}
