//! What a request costs in the engine alone: head, decision, forwarding, answer, metrics, over pipes without a system call.

#[path = "../tests/common/mod.rs"]
mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Requests of one connection.
const REQUESTS: usize = 1_000;

fn exchange(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let lane = common::lane::Lane::new();
    let mut group = c.benchmark_group("exchange");
    group.throughput(Throughput::Elements(REQUESTS as u64));
    group.bench_function("keep-alive", |b| b.iter(|| runtime.block_on(lane.ask(REQUESTS))));
    group.finish();
}

criterion_group!(benches, exchange);
criterion_main!(benches);
