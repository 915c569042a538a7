//! The tests of both movers: a module of this file is named after the one it tests.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::STAGE;
use super::common::http::Load;
use super::common::process::{Origin, Proxy, write};

async fn start(config: &str, setup: impl FnOnce(&std::path::Path)) -> Proxy {
    // The module's name is the mover's.
    let engine = module_path!().rsplit("::").next().unwrap();
    Proxy::start_on(engine, config, setup).await
}

/// Clients on three continents, from the embedded database: Minneapolis, Seattle, London, Frankfurt, Tokyo and others.
fn clients() -> Arc<Vec<IpAddr>> {
    let bases = ["128.101.0.0", "140.142.0.0", "81.2.69.0", "46.4.0.0", "133.11.0.0", "210.130.0.0"];
    let mut clients = Vec::new();
    for n in 0..100u32 {
        for base in bases {
            let base: std::net::Ipv4Addr = base.parse().unwrap();
            clients.push(IpAddr::from((u32::from(base) + n * 37 % 256).to_be_bytes()));
        }
    }
    Arc::new(clients)
}

/// What is turned here moves everybody, on purpose.
const REGIONS: &str = r#"
[process]
brake = 100

[client_ip]
trusted = ["127.0.0.0/8"]

[log]
access = "off"

[regions.us-east]
location = [38.95, -77.45]

[regions.us-west]
location = [45.84, -119.70]

[regions.eu-west]
location = [53.35, -6.26]
"#;

/// Three regions; `service` goes into `[services.web]`, `weights` are those of the pools.
fn config(origins: &[Origin], service: &str, weights: [u32; 3]) -> String {
    let mut text = format!("{REGIONS}\n[services.web]\n{service}\n\n[services.web.health]\ninterval = \"500ms\"\n");
    text += "hold = \"500ms\"\nramp = \"1s\"\n";
    for (origin, weight) in origins.iter().zip(weights) {
        text += &format!(
            "\n[services.web.pools.{}]\nweight = {weight}\nendpoints = [\"{}\"]\n",
            origin.name, origin.address
        );
    }
    text
}

fn three() -> Vec<Origin> {
    ["us-east", "us-west", "eu-west"].map(Origin::start).into()
}

/// Nothing but probes reaches an origin that is out this long after the cause.
const QUIET_AFTER: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_weight_is_in_force_within_a_second() {
    let _alone = STAGE.lock().await;
    let origins = three();
    let proxy = start(&config(&origins, "steering = \"split\"", [70, 30, 0]), |_| {}).await;
    let load = Load::start(proxy.listen, 8, clients());
    let before = load.more(2000).await;
    assert!(before.failures.is_empty(), "{:?}", before.failures);
    assert!(!before.by_origin.contains_key("eu-west"), "{:?}", before.by_origin);

    let written = Instant::now();
    proxy.write_config(&config(&origins, "steering = \"split\"", [0, 0, 100]));
    proxy.until("the second generation", async || proxy.generation().await == 2).await;
    let took = written.elapsed();
    // Requests in flight at the change may still end elsewhere.
    load.more(100).await;
    let after = load.more(1000).await;
    assert_eq!(after.share("eu-west"), 1.0, "{:?}", after.by_origin);
    let rest = load.stop().await;
    assert!(after.failures.is_empty() && rest.failures.is_empty(), "{:?} {:?}", after.failures, rest.failures);
    assert!(took < Duration::from_secs(1), "the new weight was in force after {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_region_loses_no_get_and_comes_back() {
    let _alone = STAGE.lock().await;
    let mut origins = three();
    let proxy = start(&config(&origins, "", [1, 1, 1]), |_| {}).await;
    let load = Load::start(proxy.listen, 8, clients());
    let before = load.more(2000).await;
    assert_eq!(before.by_origin.len(), 3, "{:?}", before.by_origin);

    let address = origins[2].address;
    origins[2].kill();
    let killed = Instant::now();
    // Something else now listens there: any connection to it is seen. It never accepts, so probes fail on.
    tokio::time::sleep_until((killed + QUIET_AFTER).into()).await;
    let listener = std::net::TcpListener::bind(address).expect("the address is free");
    listener.set_nonblocking(true).expect("it can be polled");
    load.take();
    let during = load.more(3000).await;
    assert!(during.failures.is_empty(), "{:?}", during.failures);
    assert_eq!(during.share("eu-west"), 0.0);
    let mut requests = Vec::new();
    while let Ok((mut stream, _)) = listener.accept() {
        use std::io::Read;
        let mut head = [0; 512];
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let len = stream.read(&mut head).unwrap_or(0);
        requests.push(String::from_utf8_lossy(&head[..len]).into_owned());
    }
    let traffic: Vec<_> = requests.iter().filter(|head| !head.is_empty() && !head.contains("/healthz")).collect();
    assert!(traffic.is_empty(), "{traffic:?}");
    drop(listener);

    origins[2] = Origin::start_at("eu-west", address);
    proxy.until("its return", async || proxy.status().await.to_string().contains("\"ramping\"")).await;
    proxy.until("all of its clients back", async || !proxy.status().await.to_string().contains("\"ramping\"")).await;
    load.take();
    let after = load.more(2000).await;
    assert!((after.share("eu-west") - before.share("eu-west")).abs() < 0.05, "{before:?} {after:?}");
    let rest = load.stop().await;
    let failures: Vec<_> = [before, during, after, rest].into_iter().flat_map(|seen| seen.failures).collect();
    assert!(failures.is_empty(), "{failures:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_health_empties_a_region_whose_traffic_works() {
    let _alone = STAGE.lock().await;
    let origins = three();
    let proxy = start(&config(&origins, "", [1, 1, 1]), |_| {}).await;
    let load = Load::start(proxy.listen, 8, clients());
    load.more(1000).await;
    origins[0].control("health=500").await;
    let cause = Instant::now();
    tokio::time::sleep_until((cause + QUIET_AFTER).into()).await;
    let counted = origins[0].requests().await;
    let seen = load.more(3000).await;
    assert_eq!(origins[0].requests().await, counted, "requests still reach a region that its checks call down");
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    let rest = load.stop().await;
    assert!(rest.failures.is_empty(), "{:?}", rest.failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_configuration_is_reported_and_ignored() {
    let _alone = STAGE.lock().await;
    let origins = three();
    let good = config(&origins, "", [1, 1, 1]);
    let proxy = start(&good, |_| {}).await;
    let load = Load::start(proxy.listen, 4, clients());
    load.more(500).await;
    proxy.write_config(&good.replace("weight = 1", "wieght = 1"));
    let failed = "meridian_config_last_reload_success";
    proxy.until("the failure", async || proxy.metric(failed).await == Some(0.0)).await;
    assert_eq!(proxy.generation().await, 1);
    // A thread of its own writes it.
    proxy.until("its report", async || ["wieght", "weight"].iter().all(|word| proxy.log().contains(word))).await;
    load.more(500).await;
    proxy.write_config(&good);
    proxy.until("the mended one", async || proxy.metric(failed).await == Some(1.0)).await;
    let seen = load.stop().await;
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_geo_data_moves_clients_and_broken_data_does_not() {
    let _alone = STAGE.lock().await;
    let origins = three();
    let data = std::fs::read("tests/data/geo/oracle-city.mmdb").expect("the test database");
    let geoip =
        |folder: &std::path::Path| format!("\n[geoip]\ndatabases = [\"{}\"]\n", folder.join("db.mmdb").display());
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("db.mmdb"), &data).unwrap();
    let config = config(&origins, "", [1, 1, 1]) + &geoip(folder.path());
    let proxy = start(&config, |_| {}).await;
    let load = Load::start(proxy.listen, 4, clients());
    load.more(500).await;

    // Half a file: refused, and the running data stays.
    let replace = |bytes: &[u8]| {
        std::fs::write(folder.path().join(".new"), bytes).unwrap();
        std::fs::rename(folder.path().join(".new"), folder.path().join("db.mmdb")).unwrap();
    };
    replace(&data[..data.len() / 2]);
    let success = "meridian_config_last_reload_success";
    proxy.until("the refusal", async || proxy.metric(success).await == Some(0.0)).await;
    assert_eq!(proxy.generation().await, 1);
    load.more(500).await;

    // The whole of another one: the builtin, unpacked.
    let builtin = meridian::geo::builtin::bytes().expect("it unpacks");
    replace(&builtin);
    proxy.until("the new data", async || proxy.generation().await == 2).await;
    load.more(500).await;
    let seen = load.stop().await;
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_lose_nothing() {
    let _alone = STAGE.lock().await;
    let origins = three();
    let texts = [
        config(&origins, "steering = \"nearest\"", [1, 1, 1]),
        config(&origins, "steering = \"split\"", [50, 30, 20]).replace("interval = \"500ms\"", "interval = \"400ms\""),
    ];
    let proxy = start(&texts[0], |_| {}).await;
    let load = Load::start(proxy.listen, 8, clients());
    for n in 1..=100u64 {
        // In turn by a changed file alone, and by a signal right after the change.
        proxy.write_config(&texts[(n % 2) as usize]);
        if n % 4 >= 2 {
            proxy.signal("HUP");
        }
        proxy.until("the next generation", async || proxy.generation().await > n).await;
    }
    let seen = load.stop().await;
    assert!(seen.failures.is_empty(), "{:?}", seen.failures);
    assert!(seen.total() > 1000, "{}", seen.total());
    let status = proxy.status().await.to_string();
    assert!(!status.contains("\"down\""), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_an_included_folder_count() {
    let _alone = STAGE.lock().await;
    let origins = three();
    let whole = config(&origins, "", [1, 1, 1]);
    let (head, eu) = whole.split_once("\n[services.web.pools.eu-west]").expect("the last pool");
    let eu = format!("[services.web.pools.eu-west]{eu}");
    let folder = tempfile::tempdir().expect("a folder");
    let pattern = folder.path().join("*.toml");
    let including = format!("{head}\n");
    let proxy = start(&including, |own| {
        write(&own.join("unused"), "");
    })
    .await;
    let with = format!("include = [\"{}\"]\n", pattern.display());
    let text = std::fs::read_to_string(proxy.config_path()).expect("the configuration");
    write(&proxy.config_path(), &format!("{with}{text}"));
    proxy.until("the include", async || proxy.generation().await >= 2).await;
    let generation = proxy.generation().await;
    write(&folder.path().join("eu.toml"), &eu);
    proxy.until("the new file", async || proxy.generation().await > generation).await;
    let status = proxy.status().await.to_string();
    assert!(status.contains(&origins[2].address.to_string()), "{status}");
}
