//! What services change in what passes, over real sockets and both movers: header rules, the way to https, HSTS, prefixes of paths.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

mod common;

use std::sync::Arc;

use common::harness::{Proxy, answering, config, origin, raw, status};
use common::http::{connect, request, send};
use common::world;
use meridian::config::Engine;
use meridian::geo::AtlasBuilder;
use meridian::steering::View;
use serde_json::{Value, json};

const MOVERS: [Engine; 2] = [Engine::Native, Engine::Pingora];
const LAB: &str = "[pop]\nname = \"lab\"";
const TRUSTING: &str = "[pop]\nname = \"lab\"\n[client_ip]\ntrusted = [\"127.0.0.0/8\"]";

/// In front of an origin that tells what it got.
async fn before_origin(engine: Engine, more: &str, service: &str) -> Proxy {
    let only = origin("only").await;
    Proxy::start_on(engine, &config(more, service, &[("only", only)]), &[]).await
}

async fn report(proxy: &Proxy, target: &str, headers: &[(&str, &str)]) -> Value {
    let answer = request(proxy.address, "GET", target, headers).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

/// The value of a raw answer's field; `None` where there is none, or more than one.
fn field<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(": "));
    let mut values = lines.by_ref().filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    values.next().filter(|_| values.next().is_none())
}

#[tokio::test]
async fn upstreams_get_what_the_rules_say() {
    for engine in MOVERS {
        let rules = "[services.web.headers.request]\nremove = [\"X-Gone\", \"cookie\"]\n\
            set = { X-Set = \"ours é\", Authorization = \"Basic x\", under_score = \"1\" }\nadd = { X-Added = \"2\" }";
        let proxy = before_origin(engine, LAB, rules).await;
        let claims = [
            ("x-gone", "a"),
            ("X-GONE", "b"),
            ("cookie", "a=b"),
            ("x-set", "theirs"),
            ("x-set", "theirs too"),
            ("authorization", "Bearer y"),
            ("x-added", "1"),
            ("under_score", "theirs"),
            ("x-other", "stays"),
        ];
        // On the same connection, so that nothing of one request is left in the next.
        let mut connection = connect(proxy.address).await.unwrap();
        for claims in [&claims[..], &[], &claims] {
            let answer = send(&mut connection, "GET", "/a?b", claims).await.unwrap();
            let report: Value = serde_json::from_slice(&answer.body).unwrap();
            let headers = &report["headers"];
            assert!(headers.get("x-gone").is_none() && headers.get("cookie").is_none(), "{headers}");
            assert_eq!(headers["x-set"], json!(["ours é"]));
            assert_eq!(headers["authorization"], json!(["Basic x"]));
            assert_eq!(headers["under_score"], json!(["1"]));
            let added = if claims.is_empty() { json!(["2"]) } else { json!(["1", "2"]) };
            assert_eq!(headers["x-added"], added);
            assert_eq!((&headers["host"], &headers["x-forwarded-for"]), (&json!(["test"]), &json!(["127.0.0.1"])));
            assert_eq!(report["target"], "/a?b");
        }
    }
}

#[tokio::test]
async fn clients_get_what_the_rules_say_of_final_answers() {
    const ANSWER: &str = "HTTP/1.1 103 Early Hints\r\nX-Gone: hint\r\n\r\n\
        HTTP/1.1 404 Not Found\r\nX-Gone: a\r\nServer: origin\r\nx-set: theirs\r\nx-set: too\r\nx-added: 1\r\n\
        Cache-Control: max-age=1\r\nContent-Length: 2\r\n\r\nhi";
    for engine in MOVERS {
        let (only, _) = answering(ANSWER).await;
        let rules = "affinity = { kind = \"cookie\", keys = [\"0123456789abcdef0123456789abcdef\"] }\n\
            [services.web.headers.response]\nremove = [\"x-gone\", \"Server\"]\n\
            set = { X-Set = \"ours\", Cache-Control = \"public, max-age=60\" }\nadd = { X-Added = \"2\" }";
        let proxy = Proxy::start_on(engine, &config(LAB, rules, &[("only", only)]), &[]).await;
        let answer = request(proxy.address, "GET", "/", &[]).await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (404, "hi"));
        let values = |name: &str| answer.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert!(values("x-gone").is_empty() && values("server").is_empty(), "{:?}", answer.headers);
        assert_eq!((values("x-set"), values("x-added")), (vec!["ours"], vec!["1", "2"]));
        // Whatever a rule says, no shared cache keeps our cookie for others.
        assert_eq!(values("cache-control"), ["public, max-age=60, private"]);
        assert_eq!(values("set-cookie").len(), 1);
        assert_eq!(values("via"), ["1.1 meridian-lab"]);

        let text = raw(proxy.address, b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await;
        let hint = text.split_once("\r\n\r\n").map(|(first, _)| first).filter(|first| first.contains(" 103 "));
        assert!(hint.is_some() || engine == Engine::Pingora, "{text}");
        assert!(hint.is_none_or(|hint| hint.contains("hint") && !hint.contains("ours")), "{text}");
        // As they are written, for who looks at the case of names.
        assert!(text.contains("\r\nX-Set: ours\r\n") && text.contains("\r\nX-Added: 2\r\n"), "{text}");
    }
}

#[tokio::test]
async fn answers_of_our_own_get_no_rules() {
    for engine in MOVERS {
        let only = origin("only").await;
        let rules = "panic = \"refuse\"\n[services.web.headers.response]\nset = { X-Set = \"ours\", Cache-Control = \"public\" }";
        let proxy = Proxy::start_on(engine, &config(LAB, rules, &[("only", only)]), &["only"]).await;
        let answer = request(proxy.address, "GET", "/", &[]).await.unwrap();
        assert_eq!((answer.status, answer.headers.get("x-set")), (503, None));
        assert_eq!(answer.headers["cache-control"], "no-store");
    }
}

#[tokio::test]
async fn what_came_by_http_is_sent_to_https() {
    for engine in MOVERS {
        let (only, script) = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
        let proxy = Proxy::start_on(engine, &config(LAB, "https = \"redirect\"", &[("only", only)]), &[]).await;
        let mut connection = connect(proxy.address).await.unwrap();
        for (n, (method, target, host, want)) in [
            ("GET", "/a/%2e?b=c//d", "www.example.com", "https://www.example.com/a/%2e?b=c//d"),
            ("HEAD", "/", "www.example.com:8080", "https://www.example.com/"),
            ("GET", "//evil.example", "[2001:db8::1]:80", "https://[2001:db8::1]//evil.example"),
            ("POST", "/x", "a", "https://a/x"),
        ]
        .into_iter()
        .enumerate()
        {
            // A stranger's word counts for nothing. The connection is kept: it is the same one each time.
            let said = [("host", host), ("x-forwarded-proto", "https")];
            let answer = send(&mut connection, method, target, &said).await.unwrap();
            assert_eq!((answer.status, answer.headers["location"].to_str().unwrap()), (308, want));
            assert_eq!(answer.headers["cache-control"], "no-store");
            assert!(!answer.headers.contains_key("strict-transport-security"));
            let body = if method == "HEAD" { "" } else { "308 permanent redirect: by https\n" };
            assert_eq!(answer.text(), body);
            let line = &proxy.lines(n + 1).await[n];
            let told = (&line["outcome"], &line["status"], &line["service"], &line["attempts"], &line["region"]);
            assert_eq!(told, (&json!("redirected"), &json!(308), &json!("web"), &json!(0), &Value::Null));
            assert_eq!(line["path"], target);
        }
        let long = format!("/{}?q", "x".repeat(5000));
        let answer = send(&mut connection, "GET", &long, &[]).await.unwrap();
        assert_eq!(answer.headers["location"].to_str().unwrap(), format!("https://test{long}"));
        // Other forms of a target; and with a body the connection ends.
        for (head, code, want) in [
            ("GET http://test?x HTTP/1.1\r\nHost: test\r\nConnection: close", 308, Some("https://test/?x")),
            ("OPTIONS * HTTP/1.1\r\nHost: test\r\nConnection: close", 308, Some("https://test")),
            ("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi", 308, Some("https://test/")),
            ("GET / HTTP/1.0", 400, None),
            ("GET / HTTP/1.1\r\nHost: a\\b\r\nConnection: close", 400, None),
        ] {
            let answer = raw(proxy.address, format!("{head}\r\n\r\n").as_bytes()).await;
            assert_eq!((status(&answer), field(&answer, "location")), (code, want), "{head}: {answer}");
        }
        assert_eq!(script.count(), 0);
        let page = proxy.metrics.render(std::time::SystemTime::now());
        assert!(page.lines().any(|line| line.contains("meridian_requests_total") && line.contains("\"redirected\"")));
    }
}

#[tokio::test]
async fn a_trusted_peer_says_how_the_client_came() {
    for engine in MOVERS {
        let service = "https = \"redirect\"\nhttps_port = 8443\nhsts = \"365d\"";
        let proxy = before_origin(engine, TRUSTING, service).await;
        let answer = request(proxy.address, "GET", "/a", &[("x-forwarded-proto", "https")]).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["strict-transport-security"], "max-age=31536000");
        for said in [&[("x-forwarded-proto", "http")][..], &[], &[("x-forwarded-proto", "gopher")]] {
            let answer = request(proxy.address, "GET", "/a", said).await.unwrap();
            assert_eq!((answer.status, &answer.headers["location"]), (308, &"https://test:8443/a".parse().unwrap()));
            assert!(!answer.headers.contains_key("strict-transport-security"));
        }
    }
}

#[tokio::test]
async fn hsts_is_said_over_https_only() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\nStrict-Transport-Security: x\r\nContent-Length: 2\r\n\r\nhi";
    const HTTPS: (&str, &str) = ("x-forwarded-proto", "https");
    let service = "panic = \"refuse\"\nhsts = { max_age = \"2d\", include_subdomains = true }";
    for engine in MOVERS {
        let (only, _) = answering(ANSWER).await;
        let config = config(TRUSTING, service, &[("only", only)]);
        let proxy = Proxy::start_on(engine, &config, &[]).await;
        let said = |answer: &common::http::Answer| {
            let values = answer.headers.get_all("strict-transport-security").iter();
            values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let ours = ["max-age=172800; includeSubDomains"];
        assert_eq!(said(&request(proxy.address, "GET", "/", &[HTTPS]).await.unwrap()), ours);
        assert!(said(&request(proxy.address, "GET", "/", &[]).await.unwrap()).is_empty());
        // Of answers of our own it is as true.
        let down = Proxy::start_on(engine, &config, &["only"]).await;
        let answer = request(down.address, "GET", "/", &[HTTPS]).await.unwrap();
        assert_eq!((answer.status, said(&answer)), (503, ours.map(str::to_owned).to_vec()));
        assert!(said(&request(down.address, "GET", "/", &[]).await.unwrap()).is_empty());
    }
}

#[tokio::test]
async fn prefixes_go_and_come() {
    for engine in MOVERS {
        let both = before_origin(engine, LAB, "strip_prefix = \"/api\"\nadd_prefix = \"/v2\"").await;
        let strip = before_origin(engine, LAB, "strip_prefix = \"/api\"").await;
        for (n, (asked, stripped, rewritten, prefix)) in [
            ("/api/x?y=/api", "/x?y=/api", "/v2/x?y=/api", true),
            ("/api", "/", "/v2", true),
            ("/api?y", "/?y", "/v2?y", true),
            ("/api/", "/", "/v2/", true),
            ("/api/a%2Fb/./c", "/a%2Fb/./c", "/v2/a%2Fb/./c", true),
            ("/%61pi/x", "/x", "/v2/x", true),
            ("/apix", "/apix", "/v2/apix", false),
            ("/", "/", "/v2/", false),
        ]
        .into_iter()
        .enumerate()
        {
            for (proxy, want) in [(&strip, stripped), (&both, rewritten)] {
                // A stranger's prefix never passes.
                let report = report(proxy, asked, &[("x-forwarded-prefix", "/evil")]).await;
                assert_eq!(report["target"], want, "{asked}");
                let said = prefix.then(|| json!(["/api"]));
                assert_eq!(report["headers"].get("x-forwarded-prefix"), said.as_ref(), "{asked}");
                assert_eq!(proxy.lines(n + 1).await[n]["path"], asked);
            }
        }
        // What could be cut in one reading and not in another.
        for asked in ["/x/../api/y", "/api/../api/y", "/api/..%2fx", "/api%2fx"] {
            let text = format!("GET {asked} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
            assert_eq!(status(&raw(strip.address, text.as_bytes()).await), 400, "{asked}");
        }
        assert_eq!(strip.lines(12).await[11]["outcome"], "bad_path");
        // Other forms of a target.
        let text = "GET http://test/api/z HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        assert!(raw(both.address, text.as_bytes()).await.contains("\"target\":\"/v2/z\""));
    }
}

#[tokio::test]
async fn asterisks_stay_and_trusted_prefixes_are_continued() {
    for engine in MOVERS {
        let (only, script) = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
        let service = "strip_prefix = \"/api\"\nadd_prefix = \"/v2\"";
        let proxy = Proxy::start_on(engine, &config(TRUSTING, service, &[("only", only)]), &[]).await;
        let text = "OPTIONS * HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        assert_eq!(status(&raw(proxy.address, text.as_bytes()).await), 204);
        request(proxy.address, "GET", "/api/x", &[("x-forwarded-prefix", "/outer")]).await.unwrap();
        let requests = script.requests.lock().unwrap().clone();
        assert!(requests[0].starts_with("OPTIONS * HTTP/1.1\r\n"), "{}", requests[0]);
        assert!(requests[1].starts_with("GET /v2/x HTTP/1.1\r\n"), "{}", requests[1]);
        assert_eq!(field(&requests[1], "x-forwarded-prefix"), Some("/outer, /api"));
    }
}

#[tokio::test]
async fn rules_are_reloaded() {
    for engine in MOVERS {
        let only = origin("only").await;
        let of = |rules: &str| config(LAB, rules, &[("only", only)]);
        let (proxy, sender) = Proxy::live_on(engine, &of("headers.request.set = { X-Set = \"one\" }")).await;
        let mut connection = connect(proxy.address).await.unwrap();
        for (rules, want) in [
            ("headers.request.set = { X-Set = \"one\" }", json!(["one"])),
            ("headers.request.set = { X-Set = \"two\" }", json!(["two"])),
            ("", json!(["theirs"])),
        ] {
            let new = world::compile(&of(rules));
            let view = View::compile(new.fleet, Arc::new(AtlasBuilder::new().build()), None);
            sender.publish(view, new.edge).await;
            let answer = send(&mut connection, "GET", "/", &[("x-set", "theirs")]).await.unwrap();
            let report: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(report["headers"]["x-set"], want);
        }
    }
}
