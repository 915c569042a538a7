//! The configuration through its door: every file in `conf/` works, every file in `tests/bad/` yields the report beside it, and no
//! text whatever makes it panic.
//!
//! `UPDATE=1` writes the reports anew; read the difference before committing it.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

use meridian::config::{self, AccessLog, Config, DatabaseSource, Files, Forwarding, Report, Severity, Underscores};
use meridian::disk::DiskFiles;
use meridian::steering::fleet::{Draw, HostRule, Panic, Probe, Steering};
use meridian::steering::{RegionId, ServiceId};
use proptest::prelude::*;

/// Files in memory, for what needs no disk.
#[derive(Default)]
struct Memory(BTreeMap<PathBuf, String>);

impl Files for Memory {
    fn read(&self, path: &Path) -> Result<String> {
        self.0.get(path).cloned().ok_or_else(|| Error::new(ErrorKind::NotFound, "no such file"))
    }

    /// Every pattern is taken as `*`.
    fn glob(&self, pattern: &Path) -> Result<Vec<PathBuf>> {
        Ok(self.0.keys().filter(|path| path.parent() == pattern.parent()).cloned().collect())
    }
}

/// The environment of every test here.
fn env(name: &str) -> Option<String> {
    match name {
        "ORIGIN" => Some("10.9.9.9:80".to_owned()),
        "SECRET" => Some("hunter2".to_owned()),
        _ => None,
    }
}

fn load_files(files: &[(&str, &str)]) -> std::result::Result<Config, Report> {
    let memory = Memory(files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect());
    config::load(Path::new(files[0].0), &memory, &env, "test-host")
}

fn load(text: &str) -> std::result::Result<Config, Report> {
    load_files(&[("meridian.toml", text)])
}

const SMALL: &str =
    "[[listen]]\naddress = \"0.0.0.0:0\"\n[regions.a]\n[services.web.pools.a]\nendpoints = [\"10.0.0.1:80\"]\n";

fn listed(folder: &str, ending: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("the folder is in the repository")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.retain(|path| path.to_string_lossy().ends_with(ending));
    paths.sort();
    paths
}

#[test]
fn every_configuration_we_ship_works_without_a_warning() {
    let paths = listed("conf", ".toml");
    assert!(paths.len() >= 2);
    for path in paths {
        match config::load(&path, &DiskFiles, &env, "test-host") {
            Ok(config) => assert!(config.warnings.is_empty(), "{}:\n{}", path.display(), config.warnings),
            Err(report) => panic!("{}:\n{report}", path.display()),
        }
    }
}

#[test]
fn where_a_process_answers_is_told_whatever_else_is_wrong() {
    let doors = |admin: &str, rest: &str| {
        let text = format!("{SMALL}{rest}\n[admin]\n{admin}\n");
        config::admin_doors(Path::new("m.toml"), &Memory([(PathBuf::from("m.toml"), text)].into()), &env)
    };
    for rest in ["", "[pop]\nname = \"${GONE}\"", "[nonsense]", "[services.b.pools.none]\nendpoints = []"] {
        let told =
            doors("address = \"127.0.0.1:1\"\nsocket = \"run/a.sock\"\ntoken = \"0123456789abcdef\"", rest).unwrap();
        assert_eq!(told.address, Some("127.0.0.1:1".parse().unwrap()), "{rest}");
        assert_eq!(told.socket, Some(PathBuf::from("run/a.sock")));
        assert_eq!(told.token.unwrap().reveal(), "0123456789abcdef");
    }
    let told = doors("token = \"${GONE}\"", "").unwrap();
    assert_eq!((told.address, told.token), (Some("127.0.0.1:9180".parse().unwrap()), None));
    assert_eq!(doors("address = \"\"", "").unwrap().address, None);
    // Another process would be asked instead.
    for (admin, rest) in [
        ("address = \"${GONE}:1\"", ""),
        ("socket = \"${GONE}/a.sock\"", ""),
        ("address = \"here\"", ""),
        ("adress = \"127.0.0.1:1\"", ""),
        ("", "[pop"),
        ("", "[pop]\nname = nothing"),
    ] {
        let report = doors(admin, rest).unwrap_err();
        assert!(report.errors() > 0, "{admin} {rest}");
    }
    assert!(config::admin_doors(Path::new("gone.toml"), &Memory::default(), &env).is_err());
}

#[test]
fn every_bad_file_yields_the_report_beside_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let update = std::env::var_os("UPDATE").is_some();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for path in listed("tests/bad", ".toml") {
        count += 1;
        let name = path.file_name().unwrap().to_owned();
        let report = match config::load(Path::new(&name), &Within(folder.clone()), &env, "test-host") {
            Ok(config) => config.warnings,
            Err(report) => report,
        };
        assert!(!report.is_empty(), "{} has nothing wrong", path.display());
        let beside = path.with_extension("txt");
        let want = std::fs::read_to_string(&beside).unwrap_or_default();
        if report.to_string() != want {
            if update {
                std::fs::write(&beside, report.to_string()).unwrap();
            } else {
                wrong.push(format!("{}\n--- expected\n{want}\n--- got\n{report}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}\n(UPDATE=1 writes the reports anew)", wrong.join("\n\n"));
    assert!(count >= 40, "only {count} bad files");
    let reports = listed("tests/bad", ".txt").len();
    assert_eq!(reports, count, "a report without its file");
}

/// Disk files below a folder, named from there: reports then read the same on every machine.
struct Within(PathBuf);

impl Files for Within {
    fn read(&self, path: &Path) -> Result<String> {
        DiskFiles.read(&self.0.join(path))
    }

    fn glob(&self, pattern: &Path) -> Result<Vec<PathBuf>> {
        let found = DiskFiles.glob(&self.0.join(pattern))?;
        Ok(found.into_iter().map(|path| path.strip_prefix(&self.0).map(Path::to_owned).unwrap_or(path)).collect())
    }
}

/// The reference with every commented default taken in: `#key = value` without a space.
fn uncommented(text: &str) -> String {
    let is_key = |line: &str| line.starts_with(|c: char| c.is_ascii_lowercase());
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if is_key(rest) => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn the_reference_shows_the_defaults() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/meridian.toml")).unwrap();
    let full = uncommented(&text);
    assert!(full.lines().count() == text.lines().count() && full.len() + 60 < text.len(), "no key was uncommented");
    let (bare, full) = (load(&text).unwrap(), load(&full).unwrap_or_else(|report| panic!("{report}")));
    assert!(full.warnings.is_empty(), "{}", full.warnings);
    assert_eq!(bare.boot, full.boot);
    assert_eq!(bare.edge, full.edge);
    assert_eq!(bare.geoip, full.geoip);
    assert_eq!(format!("{:?}", bare.fleet), format!("{:?}", full.fleet));
}

#[test]
fn the_smallest_configuration_has_the_documented_defaults() {
    let config = load(SMALL).unwrap();
    assert_eq!(config.boot.admin, Some("127.0.0.1:9180".parse().unwrap()));
    assert_eq!((config.boot.admin_socket, config.boot.admin_token, config.boot.state_dir), (None, None, None));
    assert_eq!((config.boot.threads, config.boot.drain_timeout), (0, Duration::from_secs(60)));
    assert_eq!((config.boot.log_level.as_str(), config.boot.access_log), ("info", AccessLog::Stdout));
    assert_eq!((config.edge.via.as_str(), config.edge.forwarding), ("meridian-test-host", Forwarding::XForwardedFor));
    let limits = &config.edge.limits;
    assert_eq!((limits.header_bytes, limits.headers, limits.uri), (32 << 10, 100, 8 << 10));
    assert_eq!((limits.requests, limits.connections, limits.underscores), (0, 20_000, Underscores::Drop));
    assert_eq!(config.geoip.databases, [DatabaseSource::Builtin]);
    let service = config.fleet.service(ServiceId(0));
    assert_eq!((service.steering, service.draw, service.panic), (Steering::Nearest, Draw::Network, Panic::Serve));
    assert_eq!(
        (service.max_body, &service.host, service.drain_timeout),
        (1 << 30, &HostRule::Pass, Duration::from_secs(300))
    );
    assert_eq!(service.health.probe, Probe::None);
    assert_eq!((service.retry.attempts, service.retry.budget, &service.retry.on[..]), (3, 20, &[502, 503, 504][..]));
    assert_eq!(service.timeouts.connect, Duration::from_millis(300));
    assert_eq!(service.upstream.idle, Duration::from_secs(60));
    let pool = config.fleet.pool(service.pools[0]);
    assert_eq!((pool.region, pool.weight, pool.dial, pool.endpoints.len()), (RegionId(0), 1, 100, 1));
    assert_eq!(config.fleet.router.route("any.host", "/any/path"), Ok(ServiceId(0)));

    let config = load(&format!("{SMALL}[services.web.health]\n")).unwrap();
    let health = &config.fleet.service(ServiceId(0)).health;
    assert!(matches!(&health.probe, Probe::Http { path, status, .. } if path == "/healthz" && status == &[(200, 299)]));
    assert_eq!((health.rise, health.fall, health.min_healthy), (2, 3, 50));
    for (kind, want) in [
        ("tcp", Probe::Tcp),
        ("tls", Probe::Tls { host: "www.example:8443".to_owned() }),
        ("grpc", Probe::Grpc { host: "www.example:8443".to_owned() }),
        ("none", Probe::None),
    ] {
        let text = format!("{SMALL}[services.web.health]\nkind = \"{kind}\"\nhost = \"www.example:8443\"\n");
        assert_eq!(load(&text).unwrap().fleet.service(ServiceId(0)).health.probe, want);
    }
    assert_eq!((health.hold, health.ramp), (Duration::from_secs(30), Duration::from_secs(60)));
}

#[test]
fn folders_of_the_service_manager_are_defaults() {
    let memory = Memory([(PathBuf::from("m.toml"), SMALL.to_owned())].into());
    let env = |name: &str| match name {
        "RUNTIME_DIRECTORY" => Some("/run/meridian:/run/other".to_owned()),
        "STATE_DIRECTORY" => Some("/var/lib/meridian".to_owned()),
        _ => None,
    };
    let boot = config::load(Path::new("m.toml"), &memory, &env, "h").unwrap().boot;
    assert_eq!(boot.admin_socket, Some("/run/meridian/admin.sock".into()));
    assert_eq!(boot.state_dir, Some("/var/lib/meridian".into()));
}

#[test]
fn ids_are_dense_and_in_the_order_of_the_file() {
    let text = "
        [[listen]]
        address = \"127.0.0.1:0\"
        [services.b.pools.r2]
        endpoints = [\"10.0.0.1:80\"]
        [services.b.pools.r1]
        endpoints = [\"10.0.0.2:80\"]
        weight = 0
        [regions.r1]
        location = [1, 2]
        [regions.r2]
        location = [3.5, 4]
        bias = -5
        state = \"drain\"
        [services.a]
        hosts = [\"A.example.\", \"*.b.example\"]
        [services.a.pools.r2]
        endpoints = [\"Origin.Example:80\"]
        [services.b]
        paths = [\"/x\"]
        [services.b.health]
        kind = \"tcp\"
        [services.b.pins]
        \"continent:eu\" = [\"r1\"]
        \"subdivision:us-ca\" = [\"r2\", \"r1\"]
        \"country:fr\" = [\"r2\"]
    ";
    let fleet = load(text).unwrap().fleet;
    let names = |list: Vec<&String>| list.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(names(fleet.services.iter().map(|s| &s.name).collect()), ["b", "a"], "first appearance counts");
    assert_eq!(names(fleet.regions.iter().map(|r| &r.name).collect()), ["r1", "r2"]);
    let b = fleet.service(ServiceId(0));
    let regions: Vec<u8> = b.pools.iter().map(|id| fleet.pool(*id).region.0).collect();
    assert_eq!(regions, [0, 1], "pools follow the order of the regions");
    assert_eq!(b.pool_of, b.pools.iter().map(|id| Some(*id)).collect::<Vec<_>>());
    assert_eq!((b.regions.len(), b.weighted.iter().collect::<Vec<_>>()), (2, vec![RegionId(1)]));
    assert_eq!((b.seeds.len(), b.seeds[0] != b.seeds[1]), (2, true));
    let areas: Vec<String> = b.pins.iter().map(|pin| pin.area.to_string()).collect();
    assert_eq!(areas, ["subdivision:US-CA", "country:FR", "continent:EU"], "narrowest first");
    let a = fleet.service(ServiceId(1));
    assert_eq!(a.pool_of, [None, Some(a.pools[0])]);
    assert_eq!(fleet.pool(a.pools[0]).endpoints[0].address.to_string(), "origin.example:80");
    assert_eq!(fleet.router.route("a.EXAMPLE:80", "/x"), Ok(ServiceId(1)));
    assert_eq!(fleet.router.route("c.b.example", "/"), Ok(ServiceId(1)));
    assert_eq!(fleet.router.route("other", "/x/y"), Ok(ServiceId(0)));
}

#[test]
fn included_files_merge() {
    let config = load_files(&[
        ("etc/m.toml", "include = [\"conf.d/*.toml\", \"one.toml\"]\n[geoip]\ndatabases = [\"a.mmdb\", \"builtin\"]\n[regions.a]\n"),
        ("etc/conf.d/1.toml", "[[listen]]\naddress = \"127.0.0.1:1\"\n[services.web.pools.a]\nendpoints = [\"${ORIGIN}\"]\n[geoip]\ngeofeeds = [\"feed.csv\"]"),
        ("etc/conf.d/2.toml", "[[listen]]\naddress = \"127.0.0.1:2\"\n[services.web]\ndial = 50\n"),
        ("etc/one.toml", "[log]\naccess = \"./access.log\"\n"),
    ])
    .unwrap();
    let ports: Vec<u16> = config.boot.listen.iter().map(|listen| listen.address.port()).collect();
    assert_eq!(ports, [1, 2]);
    assert_eq!(config.files.len(), 4);
    assert_eq!(config.patterns, [PathBuf::from("etc/conf.d/*.toml"), PathBuf::from("etc/one.toml")]);
    assert_eq!(config.geoip.databases, [DatabaseSource::File("etc/a.mmdb".into()), DatabaseSource::Builtin]);
    assert_eq!(config.geoip.geofeeds, [PathBuf::from("etc/conf.d/feed.csv")], "relative to the file that names it");
    assert_eq!(config.boot.access_log, AccessLog::File("etc/access.log".into()));
    let pool = &config.fleet.pools[0];
    assert_eq!((pool.dial, pool.endpoints[0].address.to_string()), (50, "10.9.9.9:80".to_owned()));
}

#[test]
fn a_key_in_two_files_points_at_both() {
    let report = load_files(&[
        ("m.toml", &format!("include = [\"d/*\"]\n{SMALL}[services.web]\ndial = 1\n")),
        ("d/1.toml", "[services.web]\ndial = 2\n"),
    ])
    .unwrap_err();
    let finding = report.iter().next().unwrap();
    assert_eq!(
        (finding.place().as_str(), finding.message.as_str()),
        ("d/1.toml:2:1", "`services.web.dial` is given twice")
    );
    assert_eq!(finding.note.as_deref(), Some("first at m.toml:8:1"));
}

#[test]
fn a_pattern_that_matches_nothing_is_fine_and_a_missing_file_is_not() {
    assert!(load(&format!("include = [\"conf.d/*.toml\"]\n{SMALL}")).is_ok());
    let report = load(&format!("include = [\"conf.d/x.toml\"]\n{SMALL}")).unwrap_err();
    assert_eq!(report.to_string().lines().next(), Some("error: `conf.d/x.toml` cannot be read: there is no such file"));
    let report = config::load(Path::new("none.toml"), &Memory::default(), &env, "h").unwrap_err();
    assert_eq!(report.to_string(), "error: cannot be read: there is no such file\n --> none.toml\n\n1 error\n");
}

#[test]
fn what_a_variable_holds_is_never_shown() {
    for line in [
        "[client_ip]\ntrusted = [\"${SECRET}\"]",
        "[client_ip]\nheader = \"${SECRET}\"",
        "[geoip.networks]\n\"10.0.0.0/8\" = \"${SECRET}\"",
        "[log]\nlevel = \"${SECRET}!\"\naccess = \"${SECRET}\\u0000\"",
        "[trace]\ntraceparent = \"${SECRET}\"\notlp = \"https://${SECRET}\"",
        "[limits]\nuri = \"${SECRET}\"\nbody_timeout = \"${SECRET}\"\nheaders = \"${SECRET}\"\nrequests = \"${SECRET}\"",
        "[services.web.health]\nkind = \"${SECRET}\"\npath = \"${SECRET}\"\nmethod = \"${SECRET} \"\nhost = \"${SECRET}:x\"\nstatus = [\"${SECRET}\"]",
        "[services.other]\nhosts = [\"${SECRET}:1\"]\npaths = [\"${SECRET}\"]\nresidency = [{ from = [\"${SECRET}\"], to = [\"${SECRET}\"] }]",
        "[services.other.pools.a]\nendpoints = [\"${SECRET}\", \"${SECRET}:99999\"]",
        "[admin]\naddress = \"${SECRET}\"\ntoken = \"${SECRET}\"",
        "[services.web.retry]\nreplay = \"${SECRET}\"\non = [\"${SECRET}\"]",
        "[services.o]\nhosts = [\"${SECRET}.example\"]\npaths = [\"/${SECRET}\"]\npools.a.endpoints = [\"10.0.0.1:80\"]\n\
         [services.p]\nhosts = [\"${SECRET}.example\"]\npaths = [\"/${SECRET}\"]\npools.a.endpoints = [\"10.0.0.1:80\"]",
        "[services.web]\nstrip_prefix = \"${SECRET}/\"\nhsts = \"${SECRET}\"\nhttps = \"${SECRET}\"\n[services.web.headers.request]\n\
         remove = [\"${SECRET}\", \"${SECRET}\", \"${SECRET} \"]\nset = { x = \"${SECRET}\\n\", host = \"${SECRET}\", y = \"${SECRET}\" }",
        "[pop]\nname = \"${SECRET} x\"\nlocation = [\"${SECRET}\", 1]",
    ] {
        let report = load(&format!("{SMALL}{line}\n")).map(|config| config.warnings).unwrap_err();
        let (text, json) = (report.to_string(), serde_json::to_string(&report).unwrap());
        assert!(!text.contains("hunter2") && !json.contains("hunter2"), "{text}");
        assert!(text.contains("${SECRET}"), "{text}");
    }
}

#[test]
fn a_report_can_be_read_by_programs() {
    let report = load(&format!("{SMALL}[log]\nlevle = \"info\"\n")).unwrap_err();
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["errors"], 1);
    let finding = &json["findings"][0];
    assert_eq!((finding["severity"].as_str(), finding["file"].as_str()), (Some("error"), Some("meridian.toml")));
    assert_eq!((finding["line"].as_u64(), finding["column"].as_u64()), (Some(7), Some(1)));
    assert_eq!(finding["hint"], "did you mean `level`?");
    assert_eq!(report.iter().next().unwrap().severity, Severity::Error);
}

#[test]
fn a_syntax_error_hides_no_other_mistake_and_makes_up_none() {
    let text = "[[listen]]\naddress = \"0.0.0.0:0\"\n[regions.a\nlocation = [0, 0]\n[services.web]\nstering = \"split\"\n\
                [services.web.pools.a]\nendpoints = [\"10.0.0.1:80\"]\nweight = 1s\n";
    let report = load(text).unwrap_err();
    let places: Vec<String> = report.iter().map(|finding| finding.place()).collect();
    assert_eq!(places, ["meridian.toml:3:11", "meridian.toml:6:1", "meridian.toml:9:10"], "{report}");
}

#[test]
fn lines_may_go_to_two_places() {
    let access = |log: &str| load(&format!("{SMALL}[log]\n{log}\n")).unwrap().boot.access_log;
    assert_eq!(access("access = [\"stdout\", \"./a.log\"]"), AccessLog::StdoutAndFile("a.log".into()));
    assert_eq!(access("access = [\"/a.log\"]"), AccessLog::File("/a.log".into()));
    assert_eq!(access("access = [\"stdout\"]"), AccessLog::Stdout);
}

#[test]
fn spans_go_to_a_collectors_traces() {
    let otlp = |address: &str| {
        let text = format!("{SMALL}[trace]\ntraceparent = \"start\"\notlp = \"{address}\"\n");
        load(&text).unwrap().boot.otlp
    };
    assert_eq!(otlp(""), None);
    for (address, want) in [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://[::1]:4318/", "http://[::1]:4318/v1/traces"),
        ("http://collector.test/otlp", "http://collector.test/otlp/v1/traces"),
    ] {
        assert_eq!(otlp(address).as_deref(), Some(want));
    }
}

#[test]
fn a_share_takes_that_share() {
    let sample =
        |share: &str| load(&format!("{SMALL}[log]\naccess_sample = {share}\n")).unwrap().boot.access_lines.sample;
    let numbers = || (0..1_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).chain([0, u64::MAX]);
    let taken = |share: &str| numbers().filter(|number| sample(share).takes(*number)).count();
    assert_eq!((taken("0"), taken("1"), taken("1.0")), (0, 1_002, 1_002));
    assert!((240..260).contains(&taken("0.25")), "{}", taken("0.25"));
}

#[test]
fn what_needs_a_restart_is_named() {
    let old = load(SMALL).unwrap().boot;
    let same = load(&format!("{SMALL}[limits]\nrequests = 5\n[admin]\n[log]\n")).unwrap().boot;
    assert!(old.changed_keys(&same).is_empty());
    let text = SMALL.replace("0.0.0.0:0", "0.0.0.0:1");
    let text = format!(
        "{text}[admin]\naddress = \"\"\nsocket = \"s\"\ntoken = \"0123456789abcdef\"\n[process]\nthreads = 1\ndrain_delay = \"1s\"\ndrain_timeout = \"1s\"\n\
         state_dir = \"d\"\n[log]\nlevel = \"debug\"\naccess = \"off\"\nformat = \"json\"\n\
         access_format = \"logfmt\"\naccess_sample = 0.5\naccess_slow = \"2s\"\n\
         [trace]\ntraceparent = \"start\"\notlp = \"http://127.0.0.1:4318\"\n"
    );
    let all = [
        "listen",
        "admin.address",
        "admin.socket",
        "admin.token",
        "process.threads",
        "process.drain_delay",
        "process.drain_timeout",
        "process.state_dir",
        "log.level",
        "log.format",
        "log.access",
        "log.access_format",
        "log.access_sample",
        "log.access_slow",
        "trace.otlp",
    ];
    assert_eq!(old.changed_keys(&load(&text).unwrap().boot), all);
}

#[test]
fn the_largest_configuration_is_read() {
    let mut text = String::from("[[listen]]\naddress = \"0.0.0.0:0\"\n");
    for region in 0..128 {
        text.push_str(&format!("[regions.r{region}]\nlocation = [{}, {region}]\n", region % 90));
    }
    for service in 0..100 {
        text.push_str(&format!(
            "[services.s{service}]\nhosts = [\"h{service}.example\"]\n[services.s{service}.health]\nkind = \"tcp\"\n"
        ));
        for region in 0..128 {
            text.push_str(&format!(
                "[services.s{service}.pools.r{region}]\nendpoints = [\"10.0.{service}.{region}:80\"]\n"
            ));
        }
    }
    let fleet = load(&text).unwrap().fleet;
    assert_eq!((fleet.regions.len(), fleet.services.len(), fleet.pools.len()), (128, 100, 12_800));
    assert_eq!(fleet.service(ServiceId(99)).regions.iter().last(), Some(RegionId(127)));
    let report = load(&format!("{text}[regions.r128]\n")).unwrap_err();
    assert!(report.to_string().contains("at most 128 regions, not 129"), "{report}");
}

/// A good configuration with pieces cut out, doubled or replaced.
fn mutated() -> impl Strategy<Value = String> {
    let good = uncommented(include_str!("../conf/meridian.toml"));
    let pieces = [
        "",
        "\"",
        "]",
        "[",
        "{",
        "}",
        "=",
        "\n",
        "0",
        "-1",
        "1e9",
        "nan",
        "${",
        "${SECRET}",
        "true",
        "é",
        "\u{202e}",
        "[x]\n",
        "a.b=1\n",
        "1979-05-27",
    ];
    let edit = (any::<prop::sample::Index>(), 0..12usize, prop::sample::select(pieces.to_vec()));
    prop::collection::vec(edit, 1..4).prop_map(move |edits| {
        let mut text = good.clone();
        for (at, length, piece) in edits {
            let boundary =
                |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let start = boundary(at.index(text.len().max(1)));
            let end = boundary(start + length).max(start);
            text.replace_range(start..end, piece);
        }
        text
    })
}

fn check_report(result: std::result::Result<Config, Report>) {
    match result {
        Ok(config) => assert_eq!(config.warnings.errors(), 0),
        Err(report) => {
            assert!(report.errors() > 0);
            let text = report.to_string();
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        check_report(load(&text));
    }

    #[test]
    fn no_toml_like_text_makes_it_panic(text in "([\\[\\]{}\"'=,.#$\n a-z0-9-]|\\[\\[listen\\]\\]\n|address = |\\$\\{|\t|\r){0,60}") {
        check_report(load(&text));
    }

    #[test]
    fn no_slip_in_a_good_file_makes_it_panic(text in mutated()) {
        check_report(load(&text));
    }
}
