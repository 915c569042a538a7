//! What it costs from the text of a changed weight to a snapshot that decides by it, and from a probe's result to a snapshot without
//! the endpoint: 50 regions, 200 endpoints, tables taken over.

mod fifty;

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use meridian::steering::snapshot::Asked;
use meridian::steering::world::ProbeResult;
use meridian::steering::{Change, Now, View, World};

fn publish(c: &mut Criterion) {
    let atlas = fifty::atlas(&fifty::databases());
    let texts = [fifty::text("nearest", 10), fifty::text("nearest", 20)];
    let first = View::compile(fifty::fleet(&texts[0]), Arc::clone(&atlas), None);
    let world = RefCell::new(World::new(first.clone(), Now(0)));
    let mut view = first;
    let mut turn = 0;
    let mut group = c.benchmark_group("publish");
    group.bench_function("a weight, from its text", |b| {
        b.iter(|| {
            turn += 1;
            let fleet = fifty::fleet(&texts[turn % 2]);
            view = View::compile(fleet, Arc::clone(&atlas), Some(&view));
            let mut world = world.borrow_mut();
            world.apply(Change::View(view.clone()), Now(turn as u64));
            black_box(world.snapshot())
        });
    });
    let endpoint = world.borrow().snapshot().pools[7].endpoints[0].id;
    group.bench_function("a probe's result that changes a verdict", |b| {
        b.iter(|| {
            let mut world = world.borrow_mut();
            for result in [ProbeResult::Pass(Asked::default()), ProbeResult::Pass(Asked::default())] {
                world.apply(Change::Probed { endpoint, result, began: Now(0) }, Now(0));
            }
            for _ in 0..3 {
                let result = ProbeResult::Fail("refused".to_owned());
                world.apply(Change::Probed { endpoint, result, began: Now(0) }, Now(0));
            }
            black_box(world.snapshot())
        });
    });
    group.finish();
}

criterion_group!(benches, publish);
criterion_main!(benches);
