//! What a whole decision costs, from the client's address to the endpoint, over 50 regions and random clients. `explain` of
//! the same is beside it, for the record.

mod fifty;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use meridian::steering::{Avoid, Query, RegionSet, ServiceId};

fn decide(c: &mut Criterion) {
    let atlas = fifty::atlas(&fifty::databases());
    let clients = fifty::clients();
    let mut group = c.benchmark_group("decide");
    for steering in ["nearest", "split", "band", "balanced"] {
        let snapshot = fifty::snapshot(steering, &atlas);
        let mut next = clients.iter().cycle().enumerate();
        let mut query = move || {
            let (chance, client) = next.next().expect("a cycle does not end");
            Query {
                client: *client,
                service: ServiceId(0),
                chance: chance as u64,
                affinity: None,
                full: RegionSet::EMPTY,
            }
        };
        group.bench_function(steering, |b| {
            b.iter(|| {
                let query = query();
                black_box(snapshot.walk(&query).take(&snapshot))
            });
        });
        group.bench_function(format!("{steering}, then two failovers"), |b| {
            b.iter(|| {
                let query = query();
                let mut walk = snapshot.walk(&query);
                for _ in 0..2 {
                    let _ = black_box(walk.take(&snapshot));
                    walk.failed(&snapshot, Avoid::Region);
                }
                black_box(walk.take(&snapshot))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decide);
criterion_main!(benches);
