//! What the benches of decisions share: 50 regions in real cities, and geo data.

#![allow(dead_code, unreachable_pub, reason = "every bench uses another part")]

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use meridian::config::{self, Files};
use meridian::geo::{Atlas, AtlasBuilder, Canonical, builtin};
use meridian::steering::{Fleet, RegionSet, Snapshot, View};

struct Text(HashMap<PathBuf, String>);

impl Files for Text {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn glob(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

/// One service over the 50 cities, steered as said; `weight` is the first pool's.
pub fn text(steering: &str, weight: u32) -> String {
    let cities = include_str!("../fifty.tsv").lines().filter(|line| !line.starts_with('#'));
    let mut regions = String::from("[[listen]]\naddress = \"127.0.0.1:0\"\n");
    let mut pools = format!("[services.web]\nsteering = \"{steering}\"\n[services.web.health]\n");
    for (index, city) in cities.enumerate() {
        let [name, latitude, longitude] = city.split('\t').collect::<Vec<_>>()[..] else { panic!("{city}") };
        regions += &format!("[regions.{name}]\nlocation = [{latitude}, {longitude}]\n");
        let weight = if index == 0 { weight } else { 10 };
        pools += &format!("[services.web.pools.{name}]\nweight = {weight}\nendpoints = [");
        let endpoints = (1..=4).map(|n| format!("\"192.0.2.{n}:{}\"", 8000 + index));
        pools += &endpoints.collect::<Vec<_>>().join(", ");
        pools += "]\n";
    }
    regions + &pools
}

pub fn fleet(text: &str) -> Arc<Fleet> {
    let path = PathBuf::from("bench.toml");
    let files = Text(HashMap::from([(path.clone(), text.to_owned())]));
    config::load(&path, &files, &|_| None, "bench").unwrap_or_else(|report| panic!("{report}")).fleet
}

/// The files of `MERIDIAN_BENCH_DATABASES` (separated by `:`), else the built-in database.
pub fn databases() -> Vec<Vec<u8>> {
    match std::env::var("MERIDIAN_BENCH_DATABASES") {
        Ok(paths) => paths.split(':').map(|path| std::fs::read(path).expect("a readable file")).collect(),
        Err(_) => vec![builtin::bytes().expect("the embedded database unpacks")],
    }
}

pub fn atlas(databases: &[Vec<u8>]) -> Arc<Atlas> {
    let add = |builder: AtlasBuilder, bytes: &Vec<u8>| builder.database("bench", bytes).expect("a readable database");
    Arc::new(databases.iter().fold(AtlasBuilder::new(), add).build())
}

pub fn snapshot(steering: &str, atlas: &Arc<Atlas>) -> Snapshot {
    let view = View::compile(fleet(&text(steering, 10)), Arc::clone(atlas), None);
    Snapshot::assuming(view, RegionSet::EMPTY)
}

/// Random IPv4 addresses, more than caches hold.
pub fn clients() -> Vec<Canonical> {
    let mut random = fastrand::Rng::with_seed(50);
    (0..1 << 18).map(|_| Canonical::new(random.u32(..).to_be_bytes().into())).collect()
}
