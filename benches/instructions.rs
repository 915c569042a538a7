//! Requests through the engine alone, as many as the first argument says: for instructions.sh, which counts instructions.

#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    let requests = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1_000);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let lane = common::lane::Lane::new();
    println!("{requests} requests, {} bytes", runtime.block_on(lane.ask(requests)));
}
