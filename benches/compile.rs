//! What it costs to compile: a configuration's text, and the tables of 50 regions over the geo data. Building the atlas itself is in
//! the bench `locate`.

mod fifty;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use meridian::steering::View;

fn compile(c: &mut Criterion) {
    let atlas = fifty::atlas(&fifty::databases());
    let text = fifty::text("nearest", 10);
    let fleet = fifty::fleet(&text);
    let mut group = c.benchmark_group("compile");
    group.sample_size(10);
    group.bench_function("text of 50 regions to fleet", |b| b.iter(|| black_box(fifty::fleet(&text))));
    group.bench_function(format!("orders and areas of {} places", atlas.places().len()), |b| {
        b.iter(|| black_box(View::compile(Arc::clone(&fleet), Arc::clone(&atlas), None)));
    });
    group.finish();
    let view = View::compile(fleet, atlas, None);
    println!("{} distinct orders", view.orders.distinct());
}

criterion_group!(benches, compile);
criterion_main!(benches);
