//! What a look-up and the building of an atlas cost, with the built-in database and, when `MERIDIAN_BENCH_DATABASES`
//! names files (separated by `:`), with those: `MERIDIAN_BENCH_DATABASES=a.mmdb:b.mmdb cargo bench --bench locate`.
//!
//! Addresses are random and far more than caches hold, so each look-up is a cold one; "listed" are addresses within
//! known ranges, each range as likely as the next, which puts the most weight on the most finely divided parts.

use std::collections::HashSet;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use meridian::geo::{Atlas, AtlasBuilder, Canonical, builtin};

const ADDRESSES: usize = 1 << 20;

fn build(databases: &[Vec<u8>]) -> Atlas {
    let add = |builder: AtlasBuilder, bytes: &Vec<u8>| builder.database("bench", bytes).expect("a readable database");
    databases.iter().fold(AtlasBuilder::new(), add).build()
}

/// Addresses in random order within networks of the files, so that every network is as likely as every other.
fn listed(databases: &[Vec<u8>], v4: bool) -> Vec<IpAddr> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut chosen: Vec<IpAddr> = Vec::with_capacity(ADDRESSES);
    let mut seen = 0;
    for bytes in databases {
        let reader = maxminddb::Reader::from_source(bytes.as_slice()).expect("a readable database");
        let networks = reader.networks(maxminddb::WithinOptions::default()).expect("a readable database");
        for network in networks.filter_map(|found| found.ok()?.network().ok()) {
            let host = u32::from(network.prefix());
            let address = match network.network() {
                IpAddr::V4(base) if v4 => {
                    IpAddr::V4((u32::from(base) | random.u32(..).checked_shr(host).unwrap_or(0)).into())
                }
                IpAddr::V6(base) if !v4 => {
                    IpAddr::V6((u128::from(base) | random.u128(..).checked_shr(host).unwrap_or(0)).into())
                }
                _ => continue,
            };
            // A fair sample of a stream.
            seen += 1;
            if chosen.len() < ADDRESSES {
                chosen.push(address);
            } else if let at = random.usize(..seen)
                && at < ADDRESSES
            {
                chosen[at] = address;
            }
        }
    }
    random.shuffle(&mut chosen);
    chosen
}

fn locate(c: &mut Criterion, name: &str, databases: &[Vec<u8>]) {
    let atlas = build(databases);
    let distinct: HashSet<_> = atlas.places().filter_map(|place| place.point).map(|p| p.to_string()).collect();
    println!("{name}: {} places, {} points, {} bytes", atlas.places().len(), distinct.len(), atlas.memory_bytes());
    let mut random = fastrand::Rng::with_seed(2);
    let any_v4: Vec<IpAddr> = (0..ADDRESSES).map(|_| IpAddr::V4(Ipv4Addr::from(random.u32(..)))).collect();
    let any_v6: Vec<IpAddr> =
        (0..ADDRESSES).map(|_| IpAddr::V6(Ipv6Addr::from(random.u128(..) >> 3 | 1 << 125))).collect();
    let mut group = c.benchmark_group(format!("locate/{name}"));
    for (kind, addresses) in [
        ("IPv4 in the whole space", any_v4),
        ("IPv6 in 2000::/3", any_v6),
        ("IPv4 listed", listed(databases, true)),
        ("IPv6 listed", listed(databases, false)),
    ] {
        let clients: Vec<Canonical> = addresses.into_iter().map(Canonical::new).collect();
        let mut next = clients.iter().cycle();
        group.bench_function(kind, |b| {
            b.iter(|| next.next().map(|client| atlas.locate(black_box(*client))));
        });
    }
    group.finish();
    let mut group = c.benchmark_group(format!("build/{name}"));
    group.sample_size(10);
    group.bench_function("atlas", |b| b.iter_batched(|| (), |()| build(databases), BatchSize::PerIteration));
    group.finish();
}

fn all(c: &mut Criterion) {
    locate(c, "builtin", &[builtin::bytes().expect("the builtin database unpacks")]);
    if let Ok(paths) = std::env::var("MERIDIAN_BENCH_DATABASES") {
        let read = |path: &str| std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        locate(c, "files", &paths.split(':').map(read).collect::<Vec<_>>());
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
