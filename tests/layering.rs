//! Keeps "who may know whom" true: every `crate::` path of a module stays at or below its tier, the shells do not know each
//! other, and tiers 0 to 2 hold no runtime, socket, file, clock, randomness or global.

#![allow(clippy::unwrap_used, reason = "tests may panic")]
#![allow(clippy::disallowed_methods, reason = "tests may look at the clock")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// (top-level module or `parent/child`, tier). The longest match rules.
const TIERS: &[(&str, u8)] = &[
    ("secret", 0),
    // Counts by a clock of its own.
    ("rate", 3),
    ("pressure", 3),
    ("text", 0),
    ("geo", 0),
    ("proxy_protocol", 0),
    ("steering", 1),
    ("config", 2),
    ("telemetry", 3),
    ("socket", 3),
    ("state", 3),
    ("turn", 3),
    // What is shared with those who are asked.
    ("acme/challenge", 3),
    ("acme/own", 3),
    ("proxy", 4),
    ("proxy/engine", 5),
    ("proxy/pingora", 5),
    ("acme", 5),
    ("admin", 5),
    ("disk", 5),
    ("inherited", 5),
    ("listen", 5),
    ("load", 5),
    ("memory", 5),
    ("notify", 5),
    ("origin", 5),
    ("probe", 5),
    ("resolve", 5),
    ("upgrade", 5),
    ("watch", 5),
    ("cli", 6),
    ("demo", 6),
    ("drill", 6),
    ("lib", 6),
    ("main", 6),
    ("server", 6),
];

/// Shells that may know another one, each with its reason.
const FRIENDS: &[(&str, &str)] = &[
    // Loading is reading files and compiling them.
    ("load", "disk"),
    // A reload is a load that a changed file asked for, told to the service manager.
    ("watch", "load"),
    ("watch", "disk"),
    ("watch", "notify"),
    // The service manager hears who is the main process; sockets come in the form that another meridian takes them in.
    ("upgrade", "notify"),
    ("upgrade", "inherited"),
];

/// What tiers 0 to 2 must not mention.
const IMPURE: &[&str] = &[
    "tokio::",
    "pingora::",
    "hyper::",
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "TcpStream",
    "UdpSocket",
    "Instant::now",
    "SystemTime::now",
    "fastrand",
    "notify::",
    "static mut",
    "Mutex",
    "RwLock",
    "arc_swap",
];

fn sources() -> Vec<(String, PathBuf)> {
    fn walk(dir: &Path, root: &Path, out: &mut Vec<(String, PathBuf)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().with_extension("");
                let name = name.to_str().unwrap().trim_end_matches("/mod").to_owned();
                out.push((name, path));
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = Vec::new();
    walk(&root, &root, &mut out);
    out.sort();
    out
}

/// The entry of `TIERS` that rules `module`.
fn room(module: &str) -> Option<(&'static str, u8)> {
    let covers = |name: &str| module == name || module.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
    TIERS.iter().copied().filter(|(name, _)| covers(name)).max_by_key(|(name, _)| name.len())
}

/// Code without comments and without what follows the first test module.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("\n#[cfg(test)]\n").next().unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Every `crate::a::b` path in `code`, as `a/b`; `crate::{a::x, b}` counts for each name.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let list = list.split(';').next().unwrap_or(list);
            let mut depth = 0;
            let mut start = 0;
            for (index, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => {
                        found.insert(first_two(&list[start..index]));
                        break;
                    }
                    '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.insert(first_two(&list[start..index]));
                        start = index + 1;
                    }
                    _ => {}
                }
            }
        } else {
            found.insert(first_two(rest));
        }
    }
    found.remove("");
    found
}

fn first_two(path: &str) -> String {
    let end = path.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':' || c.is_whitespace()));
    let path = path[..end.unwrap_or(path.len())].trim();
    // `steering::{…}` names the module alone.
    path.split("::").map(str::trim).take(2).filter(|name| !name.is_empty()).collect::<Vec<_>>().join("/")
}

#[test]
fn every_module_has_a_tier_and_knows_only_lower_ones() {
    let mut wrong = Vec::new();
    for (module, path) in sources() {
        let Some((from, tier)) = room(&module) else {
            wrong.push(format!("{module}: no tier; add it to the table in STYLE's sense"));
            continue;
        };
        for used in crate_paths(&code(&path)) {
            let Some((to, used_tier)) = room(&used) else { continue };
            if to == from {
                continue;
            }
            let neighbours = tier == 5 && used_tier == 5;
            if used_tier > tier || (neighbours && !FRIENDS.contains(&(from, to))) {
                wrong.push(format!("{module} (tier {tier}) must not know {used} (tier {used_tier})"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_core_is_pure() {
    let mut wrong = Vec::new();
    for (module, path) in sources() {
        if room(&module).is_some_and(|(_, tier)| tier <= 2) {
            let code = code(&path);
            wrong.extend(IMPURE.iter().filter(|w| code.contains(**w)).map(|word| format!("{module}: {word}")));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_phases_move_no_bytes() {
    let mut wrong = Vec::new();
    for (module, path) in sources() {
        if room(&module).is_some_and(|(name, _)| name == "proxy") {
            let code = code(&path);
            let words = ["pingora::", "pingora_", "tokio::net", "TcpStream"];
            wrong.extend(words.iter().filter(|w| code.contains(**w)).map(|word| format!("{module}: {word}")));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(_, path)| !fs::read_to_string(path).unwrap().starts_with("//!"))
        .map(|(module, _)| module)
        .collect();
    assert!(silent.is_empty(), "modules without a `//!` head: {silent:?}");
}

#[test]
fn the_reader_of_paths_reads_paths() {
    let code = "use crate::{geo::Atlas, steering::{walk::Walk, Query}, cli};\nlet x = crate::server::run();";
    let want = ["cli", "geo/Atlas", "server/run", "steering"].map(str::to_owned);
    assert_eq!(crate_paths(code), BTreeSet::from(want));
}
