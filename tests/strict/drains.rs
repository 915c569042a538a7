//! Streams at a region that is drained or put into maintenance: how long they are left, and how they end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian::config::Engine;
use meridian::geo::AtlasBuilder;
use meridian::state::Sender;
use meridian::steering::fleet::Intent;
use meridian::steering::{Override, Target, View, Word};
use tokio::io::AsyncReadExt;

use super::common::harness::{Proxy, config, origin, status, until};
use super::common::process::PATIENCE;
use super::common::world::compile;
use super::kit::{Peer, always, ended};

const ASK: &str =
    "GET /chat HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// How long it may take until a change is noticed.
const NOTICED: Duration = Duration::from_millis(1500);

/// A living world of two regions, of which everybody uses the first.
struct Lab {
    proxy: Proxy,
    sender: Sender,
    text: String,
}

impl Lab {
    async fn over(upstream: SocketAddr) -> Lab {
        let regions = [("here", upstream), ("there", origin("there").await)];
        let text = config("", "drain_timeout = \"1s\"", &regions);
        let (proxy, sender) = Proxy::live_on(Engine::Native, &text).await;
        Lab { proxy, sender, text }
    }

    /// That region is in this state from now on.
    async fn put(&self, region: &str, state: &str) {
        let table = format!("[regions.{region}]\n");
        // Under another id, too.
        let text = format!("[regions.first]\n{}", self.text.replace(&table, &format!("{table}state = \"{state}\"\n")));
        let new = compile(&text);
        let view = View::compile(new.fleet, Arc::new(AtlasBuilder::new().build()), None);
        self.sender.publish(view, new.edge).await;
    }
}

async fn bytes(peer: &mut Peer, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    tokio::time::timeout(PATIENCE, peer.0.read_exact(&mut bytes)).await.expect("bytes in time").unwrap();
    bytes
}

/// A close frame that says 1001, masked as clients' are.
fn is_going_away(frame: &[u8]) -> bool {
    matches!(frame, [0x88, 0x82, a, b, _, _, high, low] if [high ^ a, low ^ b] == [3, 0xe9])
}

#[tokio::test]
async fn a_tunnel_ends_with_a_close_frame_between_frames_once_its_time_is_up() {
    for state in ["drain", "maint"] {
        let (tell, told) = tokio::sync::watch::channel(false);
        let (upstream, _) = always(move |mut peer, script| {
            let mut told = told.clone();
            async move {
                script.request(&mut peer.0).await;
                // A whole frame and half of one.
                peer.say([AGREE.as_bytes(), &[0x82, 2, 1, 2, 0x82, 4, 1, 2]].concat()).await;
                assert_eq!(bytes(&mut peer, 8).await, [0x81, 0x82, 0, 0, 0, 0, b'h', b'i']);
                assert!(is_going_away(&bytes(&mut peer, 8).await));
                told.wait_for(|told| *told).await.unwrap();
                // The rest, and a frame that nobody gets any more.
                peer.say([3, 4, 0x82, 1, 9]).await;
                // Nothing more is said, but who answers a close frame closes.
                peer.hears_nothing().await;
            }
        })
        .await;
        let lab = Lab::over(upstream).await;
        let mut client = Peer::connect(lab.proxy.address).await;
        client.say(ASK).await;
        assert_eq!(status(&client.head().await), 101);
        client.say([0x81, 0x82, 0, 0, 0, 0, b'h', b'i']).await;
        assert_eq!(bytes(&mut client, 8).await, [0x82, 2, 1, 2, 0x82, 4, 1, 2]);
        lab.put("there", state).await;
        tokio::time::sleep(NOTICED).await;
        client.hears_nothing().await;
        let left = if state == "drain" { Duration::from_secs(1) } else { Duration::ZERO };
        lab.put("here", state).await;
        let put = Instant::now();
        // Not inside a frame.
        tokio::time::sleep(left + NOTICED).await;
        client.hears_nothing().await;
        tell.send_replace(true);
        assert_eq!(bytes(&mut client, 6).await, [3, 4, 0x88, 2, 3, 0xe9], "{state}");
        assert!(put.elapsed() >= left);
        assert_eq!(client.rest().await, (String::new(), false));
        drop(client);
        ended(&lab.proxy, 1, "drained", 101).await;
    }
}

#[tokio::test]
async fn a_tunnel_that_has_closed_is_told_nothing_and_one_inside_a_frame_is_cut() {
    for closed in [true, false] {
        let (upstream, _) = always(move |mut peer, script| async move {
            script.request(&mut peer.0).await;
            let last: &[u8] = if closed { &[0x88, 2, 3, 0xe8] } else { &[0x82, 4, 1, 2] };
            peer.say([AGREE.as_bytes(), last].concat()).await;
            peer.rest().await;
        })
        .await;
        let lab = Lab::over(upstream).await;
        let mut client = Peer::connect(lab.proxy.address).await;
        client.say(ASK).await;
        client.head().await;
        bytes(&mut client, 4).await;
        lab.put("here", "maint").await;
        let began = Instant::now();
        assert_eq!(client.rest().await, (String::new(), false));
        let took = began.elapsed();
        assert!(if closed { took < Duration::from_secs(3) } else { took > Duration::from_secs(4) }, "{took:?}");
        drop(client);
        ended(&lab.proxy, 1, "drained", 101).await;
    }
}

#[tokio::test]
async fn an_endpoint_in_maintenance_ends_its_streams_and_no_others() {
    let agreeing = || {
        always(|mut peer, script| async move {
            script.request(&mut peer.0).await;
            peer.say(AGREE).await;
            peer.rest().await;
        })
    };
    let ((upstream, _), (beside, _)) = (agreeing().await, agreeing().await);
    let text = config("", "drain_timeout = \"600s\"", &[("here", upstream)]);
    let text = text.replace(&format!("[\"{upstream}\"]"), &format!("[\"{upstream}\", \"{beside}\"]"));
    let (proxy, sender) = Proxy::live_on(Engine::Native, &text).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = Peer::connect(proxy.address).await;
        client.say(ASK).await;
        assert_eq!(status(&client.head().await), 101);
        clients.push(client);
    }
    let meters: Vec<_> = proxy.snapshot.pools[0].endpoints.iter().map(|endpoint| endpoint.meter.clone()).collect();
    let (there, others) = (meters[0].in_flight(), meters[1].in_flight());
    assert!(there > 0 && others > 0, "{there} {others}");
    let word = |state| {
        let (name, who) = (upstream.to_string(), "alice".to_owned());
        Word::Set(Override {
            kind: Target::Endpoint,
            name,
            state,
            reason: String::new(),
            who,
            set_ms: 0,
            until_ms: None,
        })
    };
    // Drained, they may go on; it is the last of its region to nobody, so no force is needed.
    for state in [Intent::Drain, Intent::Maint] {
        tokio::time::sleep(NOTICED).await;
        assert_eq!((meters[0].in_flight(), meters[1].in_flight()), (there, others));
        sender.say(word(state), false).await.expect("it is taken");
    }
    until("the streams there have ended", || meters[0].in_flight() == 0).await;
    assert_eq!(meters[1].in_flight(), others);
    drop(clients);
    let lines = proxy.lines(20).await;
    let drained = lines.iter().filter(|line| line["outcome"] == "drained");
    assert!(drained.clone().all(|line| line["endpoint"] == upstream.to_string().as_str()), "{lines:?}");
    assert_eq!(drained.count(), there as usize);
}

#[tokio::test]
async fn a_long_answer_is_cut_so_that_it_shows_and_a_new_one_is_elsewhere() {
    const CHUNKED: &str = "Transfer-Encoding: chunked";
    let heads = ["Content-Length: 100", CHUNKED, "Connection: close", CHUNKED];
    let (upstream, script) = always(move |mut peer, script| async move {
        let served = script.count();
        if script.request(&mut peer.0).await.is_none() {
            return;
        }
        let head = heads[served];
        let body = if head == CHUNKED { "5\r\nbegun\r\n" } else { "begun" };
        peer.say(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}")).await;
        peer.rest().await;
    })
    .await;
    let lab = Lab::over(upstream).await;
    let mut clients = Vec::new();
    for (index, want) in ["begun", "5\r\nbegun\r\n", "5\r\nbegun\r\n", "begun"].into_iter().enumerate() {
        let mut client = Peer::connect(lab.proxy.address).await;
        client.say(if index == 3 { GET.replace("1.1", "1.0") } else { GET.to_owned() }).await;
        assert_eq!(status(&client.head().await), 200);
        assert_eq!(client.exactly(want.len()).await, want);
        clients.push(client);
    }
    assert_eq!(script.count(), 4);
    lab.put("here", "drain").await;
    let began = Instant::now();
    let mut new = Peer::connect(lab.proxy.address).await;
    new.say(GET).await;
    assert!(new.answer().await.0.contains("x-origin: there"));
    for (index, mut client) in clients.into_iter().enumerate() {
        let (rest, reset) = client.rest().await;
        assert_eq!(rest, "");
        // In HTTP/1.0 the end of the connection would look like the end of the answer.
        assert_eq!(reset, index == 3, "{index}");
    }
    assert!((Duration::from_secs(1)..PATIENCE).contains(&began.elapsed()));
    let lines = lab.proxy.lines(5).await;
    assert_eq!(lines.iter().filter(|line| line["outcome"] == "drained").count(), 4, "{lines:?}");
}
