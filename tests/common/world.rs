//! Worlds made of configuration text and the embedded geo data, for tests of the decision.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use meridian::config::{self, Config, Files};
use meridian::geo::{Atlas, AtlasBuilder, Canonical, builtin};
use meridian::steering::fleet::Intent;
use meridian::steering::{Override, Query, RegionId, RegionSet, ServiceId, Snapshot, Take, Target, View};

/// Files that exist in memory only.
#[derive(Default)]
pub struct Memory(pub HashMap<PathBuf, String>);

impl Files for Memory {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn glob(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

/// Compiles a configuration; `[[listen]]` is put before it.
pub fn compile(text: &str) -> Config {
    let path = PathBuf::from("test.toml");
    let text = format!("[[listen]]\naddress = \"127.0.0.1:0\"\n{text}");
    let files = Memory(HashMap::from([(path.clone(), text)]));
    config::load(&path, &files, &|_| None, "test").unwrap_or_else(|report| panic!("{report}"))
}

/// The embedded world, read once for all tests of a binary.
pub fn atlas() -> Arc<Atlas> {
    static ATLAS: OnceLock<Arc<Atlas>> = OnceLock::new();
    let built = ATLAS.get_or_init(|| {
        let builder =
            AtlasBuilder::new().database(builtin::NAME, &builtin::bytes().expect("the embedded database unpacks"));
        Arc::new(builder.expect("the embedded database is good").build())
    });
    Arc::clone(built)
}

/// A view of a configuration over the embedded world.
pub fn view(text: &str) -> View {
    View::compile(compile(text).fleet, atlas(), None)
}

/// A snapshot of it with these regions down.
pub fn snapshot(text: &str, down: &[&str]) -> Snapshot {
    let view = view(text);
    let down: RegionSet = down.iter().map(|name| view.fleet.region_named(name).expect("a region")).collect();
    Snapshot::assuming(view, down)
}

/// An operator's word, from now on.
pub fn over(kind: Target, name: &str, state: Intent) -> Override {
    let (name, who) = (name.to_owned(), "alice".to_owned());
    Override { kind, name, state, reason: "test".to_owned(), who, set_ms: 0, until_ms: None }
}

/// A question for the first service.
pub fn query(client: IpAddr) -> Query {
    Query { client: Canonical::new(client), service: ServiceId(0), chance: 0, affinity: None, full: RegionSet::EMPTY }
}

/// The first take for a client.
pub fn take(snapshot: &Snapshot, client: IpAddr) -> Option<Take> {
    snapshot.walk(&query(client)).take(snapshot).ok()
}

/// The region a client gets.
pub fn region(snapshot: &Snapshot, client: IpAddr) -> Option<RegionId> {
    take(snapshot, client).map(|take| take.region)
}

/// SplitMix64: test data without a random crate, the same in every run.
pub fn random(seed: u64) -> impl Iterator<Item = u64> {
    (1..).map(move |n: u64| {
        let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// Addresses of distinct /24 networks.
pub fn networks(seed: u64, count: usize) -> Vec<IpAddr> {
    let mut seen = std::collections::HashSet::new();
    let addresses = random(seed).map(|bits| (bits as u32) & 0xffff_ff00).filter(|base| seen.insert(*base));
    addresses.take(count).map(|base| IpAddr::from((base | 7).to_be_bytes())).collect()
}
