//! Endpoints that fail: those who may be sent once only are spared them before anybody is sure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::io::AsyncWriteExt;

use super::common::harness::{Proxy, Script, answering, config, scripted, status};
use super::kit::{GET, OK, POST, Peer};

const OTHER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

/// Answers 503 while `bad` says so.
async fn moody() -> (SocketAddr, Script, Arc<AtomicBool>) {
    let bad = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&bad);
    let (address, script) = scripted(move |mut stream, script| {
        let bad = Arc::clone(&told);
        async move {
            while script.request(&mut stream).await.is_some() {
                let answer = if bad.load(Ordering::SeqCst) { BUSY } else { OK };
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (address, script, bad)
}

/// Asks as somebody else each time.
async fn ask(client: &mut Peer, request: &str) -> (u16, String) {
    static NUMBER: AtomicU8 = AtomicU8::new(0);
    ask_as(client, NUMBER.fetch_add(1, Ordering::Relaxed), request).await
}

async fn ask_as(client: &mut Peer, who: u8, request: &str) -> (u16, String) {
    client.say(request.replacen("\r\n", &format!("\r\nX-Forwarded-For: 192.0.2.{who}\r\n"), 1)).await;
    let (head, body) = client.answer().await;
    (status(&head), body)
}

/// Never more than four failures in a row, and nobody who would eject: what happens happens by doubt alone.
const TRUSTED: &str = "[client_ip]\ntrusted = [\"127.0.0.0/8\"]";
const SERVICE: &str = "[services.web.retry]\nbudget = 100\nidempotency_key = true\n";

#[tokio::test]
async fn a_post_leaves_an_endpoint_that_failed_others() {
    let (near, script, bad) = moody().await;
    let (far, far_script) = answering(OTHER).await;
    let proxy = Proxy::start(&config(TRUSTED, SERVICE, &[("near", near), ("far", far)]), &[]).await;
    let mut client = Peer::connect(proxy.address).await;
    assert_eq!(ask(&mut client, GET).await, (200, "other".into()));
    assert_eq!(ask(&mut client, POST).await, (503, "busy".into()), "one failure may be chance");
    assert_eq!(ask(&mut client, POST).await, (200, "other".into()));
    assert_eq!((script.count(), far_script.count()), (2, 2));
    // Who may be sent twice shows how it goes on there.
    assert_eq!(ask(&mut client, GET).await, (200, "other".into()));
    let keyed = POST.replacen("\r\n", "\r\nIdempotency-Key: 1\r\n", 1);
    assert_eq!(ask(&mut client, &keyed).await, (200, "other".into()));
    assert_eq!(script.count(), 4);
    let lines = proxy.lines(5).await;
    let way = |line: &serde_json::Value| {
        (
            line["attempts"].as_u64().unwrap(),
            line["region"].as_str().unwrap().to_owned(),
            line["reason"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(way(&lines[2]), (1, "far".into(), "failover".into()));
    assert_eq!(way(&lines[3]), (2, "far".into(), "failover".into()));
    bad.store(false, Ordering::SeqCst);
    for _ in 0..40 {
        assert_eq!(ask(&mut client, GET).await, (200, "good".into()));
    }
    assert_eq!(ask(&mut client, POST).await, (200, "good".into()));
}

#[tokio::test]
async fn an_endpoint_beside_it_comes_first_and_nobody_is_left_for_one_that_is_no_better() {
    let ((one, _, _), (two, two_script, calm)) = (moody().await, moody().await);
    let (far, far_script) = answering(OTHER).await;
    let text = config(TRUSTED, SERVICE, &[("near", one), ("far", far)])
        .replace(&format!("[\"{one}\"]"), &format!("[\"{one}\", \"{two}\"]"));
    let proxy = Proxy::start(&text, &[]).await;
    let mut client = Peer::connect(proxy.address).await;
    calm.store(false, Ordering::SeqCst);
    while !proxy.snapshot.pools[0].endpoints[0].meter.in_doubt() {
        assert_eq!(ask(&mut client, GET).await, (200, "good".into()));
    }
    for _ in 0..20 {
        assert_eq!(ask(&mut client, POST).await, (200, "good".into()));
    }
    assert_eq!(far_script.count(), 0);
    // Now all are in doubt: they are taken as ever.
    calm.store(true, Ordering::SeqCst);
    for endpoint in proxy.snapshot.pools.iter().flat_map(|pool| pool.endpoints.iter()) {
        (0..4).for_each(|_| endpoint.meter.failed(0));
    }
    let before = two_script.count();
    for _ in 0..10 {
        assert_eq!(ask(&mut client, POST).await, (503, "busy".into()));
    }
    assert!(far_script.count() == 0 && two_script.count() > before);
}

#[tokio::test]
async fn one_client_puts_nothing_in_doubt() {
    let (near, script, _) = moody().await;
    let (far, far_script) = answering(OTHER).await;
    let proxy = Proxy::start(&config(TRUSTED, SERVICE, &[("near", near), ("far", far)]), &[]).await;
    let mut client = Peer::connect(proxy.address).await;
    for _ in 0..10 {
        assert_eq!(ask_as(&mut client, 7, POST).await, (503, "busy".into()));
    }
    assert_eq!((script.count(), far_script.count()), (10, 0));
    assert_eq!(ask_as(&mut client, 8, POST).await, (503, "busy".into()));
    assert_eq!(ask_as(&mut client, 7, POST).await, (200, "other".into()));
}

#[tokio::test]
async fn a_region_that_does_not_accept_is_not_gone_to_for_a_doubt() {
    let (near, _, _) = moody().await;
    let (far, far_script) = answering(OTHER).await;
    let text = config(TRUSTED, SERVICE, &[("near", near), ("far", far)])
        .replace("[services.web.pools.far]", "[services.web.pools.far]\nweight = 0");
    let proxy = Proxy::start(&text, &[]).await;
    let mut client = Peer::connect(proxy.address).await;
    for _ in 0..5 {
        assert_eq!(ask(&mut client, POST).await, (503, "busy".into()));
    }
    assert_eq!(far_script.count(), 0);
    assert_eq!(ask(&mut client, GET).await, (200, "other".into()));
}

#[tokio::test]
async fn who_was_in_a_region_before_stays_there() {
    let (near, script, _) = moody().await;
    let (far, far_script) = answering(OTHER).await;
    let service = format!("affinity = {{ kind = \"header\", name = \"X-Region\" }}\n{SERVICE}");
    let proxy = Proxy::start(&config(TRUSTED, &service, &[("near", near), ("far", far)]), &[]).await;
    let mut client = Peer::connect(proxy.address).await;
    let bound = |request: &str| request.replacen("\r\n", "\r\nX-Region: near\r\n", 1);
    for _ in 0..6 {
        assert_eq!(ask(&mut client, &bound(POST)).await, (503, "busy".into()));
    }
    assert_eq!((script.count(), far_script.count()), (6, 0));
    assert_eq!(ask(&mut client, POST).await, (200, "other".into()));
}
