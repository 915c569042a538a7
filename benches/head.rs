//! What the heads of a request cost: reading them, and writing what the upstream gets.

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use common::lane::{ANSWER, CONFIG, REQUEST};
use criterion::{Criterion, criterion_group, criterion_main};
use meridian::proxy::client;
use meridian::proxy::engine::head::{read_request, read_response};
use meridian::proxy::framing::Framing;
use meridian::proxy::headers::Forward;
use meridian::steering::fleet::HostRule;

fn head(c: &mut Criterion) {
    let edge = common::world::compile(CONFIG).edge;
    let mut group = c.benchmark_group("head");
    group.bench_function("parse a request", |b| {
        b.iter(|| read_request(black_box(REQUEST), 100).expect("a head").expect("a whole one").1);
    });
    group.bench_function("parse an answer", |b| {
        b.iter(|| read_response(black_box(ANSWER)).expect("a head").expect("a whole one").1);
    });
    let mut out = Vec::new();
    group.bench_function("parse a request and rewrite it", |b| {
        b.iter(|| {
            let (mut request, _) = read_request(black_box(REQUEST), 100).expect("a head").expect("a whole one");
            let forward = Forward {
                client: Some(&client::Client {
                    address: meridian::geo::Canonical::new([198, 51, 100, 7].into()),
                    peer: [192, 0, 2, 77].into(),
                    peer_trusted: true,
                }),
                host: "www.example",
                scheme: "http",
                via: &edge.via,
                version: "1.1",
                request_id: 7,
                request_id_kept: false,
                host_rule: &HostRule::Pass,
                websocket: false,
                max_forwards: None,
                trailers: true,
                rules: None,
                cut: 0,
                traced: &meridian::telemetry::Traced::default(),
            };
            out.clear();
            request.rewrite(&mut out, &edge, &forward, Framing::None, false);
            out.len()
        });
    });
    group.finish();
}

criterion_group!(benches, head);
criterion_main!(benches);
