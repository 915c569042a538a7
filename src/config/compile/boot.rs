//! `[[listen]]`, `[admin]`, `[process]` and `[log]`: what is fixed at start; `[acme]`, which needs two of them, and `[trace]`, which is half of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::compile::Context;
use crate::config::compile::acme::Orders;
use crate::config::file::{Node, Value};
use crate::config::reader::{Section, Text};
use crate::config::scribe::Place;
use crate::config::units::meant;
use crate::config::{
    AccessFormat, AccessLines, AccessLog, Acme, AdminDoors, Boot, Engine, Listen, ListenerId, LogFormat, Share, Tls,
    Trace,
};
use crate::secret::Secret;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The default of `[process] brake`, in percent: what moves more than half of the clients is a rare thing to want.
const BRAKE: u8 = 50;

/// The TLS of the listeners that have it.
type Secured = Vec<(ListenerId, Arc<Tls>)>;

/// What of these tables is not fixed at start.
pub(super) struct Reloaded {
    pub(super) brake: u8,
    pub(super) tls: Secured,
    pub(super) acme: Option<Arc<Acme>>,
    pub(super) trace: Trace,
}

/// What is fixed at start, and what is not.
pub(super) fn boot(root: &Section<'_>, context: &Context<'_>) -> (Boot, Reloaded) {
    let process = root.table("process");
    let state_dir = path(&process, "state_dir", context).or_else(|| context.folder("STATE_DIRECTORY"));
    let acme = root.table("acme");
    let mut orders = Orders::new(&acme, state_dir.as_deref());
    let (listen, tls, mut taken) = listen(root, &mut orders, context);
    let acme = orders.settings(&acme, &listen, context);
    let AdminDoors { address: admin, socket: admin_socket, token: admin_token } =
        admin(root.table("admin"), &mut taken, context);
    refuse_collisions(&taken, context);
    let threads = process.integer("threads", 0u32, 0..=1024) as usize;
    let drain_delay = process.duration("drain_delay", Duration::ZERO, Duration::ZERO..=HOUR);
    let drain_timeout = process.duration("drain_timeout", Duration::from_secs(60), Duration::ZERO..=DAY);
    let brake = process.integer("brake", BRAKE, 0..=100);
    process.finish();
    let log = root.table("log");
    let log_level = log_level(&log);
    let words = [("text", LogFormat::Text), ("json", LogFormat::Json), ("logfmt", LogFormat::Logfmt)];
    let log_format = log.choice("format", LogFormat::Text, &words);
    let access_log = access_log(&log, context);
    let access_lines = access_lines(&log);
    log.finish();
    let (trace, otlp) = super::trace::trace(&root.table("trace"));
    let boot = Boot {
        listen,
        admin,
        admin_socket,
        admin_token,
        threads,
        drain_delay,
        drain_timeout,
        state_dir,
        log_level,
        log_format,
        access_log,
        access_lines,
        otlp,
    };
    (boot, Reloaded { brake, tls, acme, trace })
}

type Taken = Vec<(SocketAddr, Place)>;

fn listen(root: &Section<'_>, orders: &mut Orders, context: &Context<'_>) -> (Vec<Listen>, Secured, Taken) {
    let (mut listen, mut secured, mut taken): (Vec<Listen>, _, _) = (Vec::new(), Vec::new(), Vec::new());
    let sections = root.tables("listen");
    let nobody_trusted = super::edge::trusts_nobody(root);
    if !root.has("listen") || super::is_empty_list(root, "listen") {
        context
            .scribe
            .file_error(0, true, "`[[listen]]` is missing: meridian would not be reachable")
            .hint("add `[[listen]]` and below it `address = \"0.0.0.0:8080\"`");
    }
    for section in sections {
        let engine =
            section.choice("engine", Engine::Native, &[("native", Engine::Native), ("pingora", Engine::Pingora)]);
        let proxy_protocol = section.choice("proxy_protocol", false, &[("off", false), ("required", true)]);
        if proxy_protocol && nobody_trusted {
            section
                .scribe
                .warning(
                    section.place_of("proxy_protocol"),
                    "no connection can come in here: no peer is trusted to send a PROXY header",
                )
                .hint("list your load balancers in `trusted` of `[client_ip]`");
        }
        let tls = super::tls::tls(&section, orders, context);
        let http2 = section.boolean("http2", engine == Engine::Native && section.has("tls"));
        if http2 && engine == Engine::Pingora {
            section
                .scribe
                .error(section.place_of("http2"), "HTTP/2 from clients needs the native engine")
                .hint("leave `engine` out");
        }
        if http2 && !section.has("tls") && nobody_trusted {
            section
                .scribe
                .warning(
                    section.place_of("http2"),
                    "nobody can speak HTTP/2 here: without TLS it is spoken to trusted peers only, and there are none",
                )
                .hint("list your load balancers in `trusted` of `[client_ip]`");
        }
        if engine == Engine::Pingora && tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) {
            section
                .scribe
                .error(
                    section.place_of("engine"),
                    "`client_ca` needs the native engine: only that holds hosts against certificates",
                )
                .hint("leave `engine` out");
        }
        match section.text("address") {
            Some(text) => {
                if let Some(address) = socket(&section, text) {
                    let id = ListenerId::after(&listen, address);
                    listen.push(Listen { address, engine, http2, tls: tls.is_some(), proxy_protocol });
                    secured.extend(tls.map(|tls| (id, Arc::new(tls))));
                    // Port 0 means any free port: it never collides.
                    taken.extend((address.port() != 0).then_some((address, text.place)));
                }
            }
            None if !section.has("address") => {
                section.missing("`address` of this `[[listen]]`", "write `address = \"0.0.0.0:8080\"`");
            }
            None => {}
        }
        section.finish();
    }
    (listen, secured, taken)
}

pub(super) fn admin_doors(section: Section<'_>, context: &Context<'_>) -> AdminDoors {
    admin(section, &mut Vec::new(), context)
}

fn admin(section: Section<'_>, taken: &mut Taken, context: &Context<'_>) -> AdminDoors {
    let address = match section.text("address") {
        Some(Text { value: "", .. }) => None,
        Some(text) => {
            let address = socket(&section, text);
            taken.extend(address.filter(|address| address.port() != 0).map(|address| (address, text.place)));
            address
        }
        None => {
            let address = SocketAddr::from(([127, 0, 0, 1], 9180));
            if let Some((_, place)) = taken.iter().find(|(other, _)| collide(*other, address)) {
                context
                    .scribe
                    .error(*place, format!("this address is taken by `[admin]`, which listens on {address} by default"))
                    .hint("choose another one, or set `address` in `[admin]` (`\"\"` turns it off)");
            }
            Some(address)
        }
    };
    let default = || context.folder("RUNTIME_DIRECTORY").map(|folder| folder.join("admin.sock"));
    let socket = path(&section, "socket", context).or_else(default);
    let token = token(&section, context);
    section.finish();
    AdminDoors { address, socket, token }
}

/// The shortest token: what can be guessed is none.
const SHORTEST_TOKEN: usize = 16;

/// What is wrong with it is said without showing its line.
fn token(section: &Section<'_>, context: &Context<'_>) -> Option<Secret> {
    let text = section.text("token").filter(|text| !text.value.is_empty())?;
    // Whatever else is wrong in its line. A variable is shown by its name.
    if !text.secret {
        context.scribe.hide(text.place);
    }
    let wrong = |what: String| {
        context
            .scribe
            .file_error(text.place.file, false, what)
            .also("at", text.place)
            .hint("make one with `openssl rand -hex 32`, and write it as `\"${MERIDIAN_ADMIN_TOKEN}\"`");
        None
    };
    if !text.value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("`token` of `[admin]` must be of visible ASCII characters".to_owned());
    }
    if text.value.len() < SHORTEST_TOKEN {
        return wrong(format!("`token` of `[admin]` must have at least {SHORTEST_TOKEN} characters"));
    }
    Some(Secret::new(text.value))
}

/// Whether two listeners cannot both have their address.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let either_is_all = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() == b.port() && (a.ip() == b.ip() || a.is_ipv4() == b.is_ipv4() && either_is_all)
}

fn refuse_collisions(taken: &Taken, context: &Context<'_>) {
    for (n, (address, place)) in taken.iter().enumerate() {
        if let Some((_, first)) = taken[..n].iter().find(|(other, _)| collide(*other, *address)) {
            context.scribe.error(*place, "this address is taken already").also("by the one at", *first);
        }
    }
}

fn socket(section: &Section<'_>, text: Text<'_>) -> Option<SocketAddr> {
    if let Ok(address) = text.value.parse() {
        return Some(address);
    }
    let (host, port) = text.value.rsplit_once(':').unwrap_or((text.value, ""));
    let has_port = port.parse::<u16>().is_ok();
    let hint = match host {
        "" | "*" if has_port => format!("every address is `\"0.0.0.0:{port}\"`, with IPv6 `\"[::]:{port}\"`"),
        "localhost" if has_port => format!("names are not looked up here: write `\"127.0.0.1:{port}\"`"),
        _ if text.value.parse::<std::net::IpAddr>().is_ok() => "the port is missing".to_owned(),
        _ => "write an IP address and a port, as in `\"0.0.0.0:8080\"` or `\"[::]:8080\"`".to_owned(),
    };
    let found = section.scribe.written(text.place);
    let written =
        section.scribe.error(text.place, format!("`address` must be an IP address and a port, not `{found}`"));
    if !text.secret {
        written.hint(hint);
    }
    None
}

/// A path; "" counts as absent.
fn path(section: &Section<'_>, key: &'static str, context: &Context<'_>) -> Option<PathBuf> {
    section.text(key).filter(|text| !text.value.is_empty()).map(|text| context.path(text))
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

fn log_level(section: &Section<'_>) -> String {
    let default = || "info".to_owned();
    let Some(text) = section.text("level") else { return default() };
    let is_level = |word: &str| LEVELS.contains(&word);
    let is_target = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-'))
    };
    let good = text.value.split(',').all(|part| match part.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(part),
    });
    if good {
        return text.value.to_owned();
    }
    let found = section.scribe.written(text.place);
    section
        .scribe
        .error(text.place, format!("`level` must be `off`, `error`, `warn`, `info`, `debug` or `trace`, not `{found}`"))
        .hint("a part of the program can have its own, as in `\"info,meridian::probe=debug\"`")
        .meant(meant(text.value, LEVELS).filter(|_| !text.secret));
    default()
}

fn access_log(section: &Section<'_>, context: &Context<'_>) -> AccessLog {
    const EXPECTED: &str = "`\"stdout\"`, `\"off\"`, a file, or a list of `\"stdout\"` and a file";
    match section.node("access") {
        None => AccessLog::Stdout,
        Some(Node { value: Value::Array { items, tables: false }, .. }) => access_logs(section, items, context),
        Some(node) => match section.text_of(node, "access", EXPECTED) {
            Some(text) => one_access_log(section, text, context),
            None => AccessLog::Stdout,
        },
    }
}

/// Standard output and a file, each once; one alone is as good.
fn access_logs(section: &Section<'_>, items: &[Node], context: &Context<'_>) -> AccessLog {
    const HINT: &str = "write `access = [\"stdout\", \"/var/log/meridian/access.log\"]`";
    let (mut stdout, mut file) = (None, None);
    for item in items {
        let Some(text) = section.text_of(item, "an item of `access`", "`\"stdout\"` or a file") else { continue };
        let first = match one_access_log(section, text, context) {
            AccessLog::Off => {
                section.scribe.error(text.place, "`off` cannot stand in a list of where lines go").hint(HINT);
                continue;
            }
            AccessLog::File(path) => file.replace((path, text.place)).map(|(_, first)| first),
            AccessLog::Stdout | AccessLog::StdoutAndFile(_) => stdout.replace(text.place),
        };
        if let Some(first) = first {
            section
                .scribe
                .error(text.place, "lines go to standard output and to one file at most")
                .also("first at", first)
                .hint(HINT);
        }
    }
    match (stdout, file) {
        (Some(_), Some((path, _))) => AccessLog::StdoutAndFile(path),
        (None, Some((path, _))) => AccessLog::File(path),
        (Some(_), None) => AccessLog::Stdout,
        (None, None) => {
            if items.is_empty() {
                let place = section.place_of("access");
                section.scribe.error(place, "`access` names nothing").hint("none is `access = \"off\"`");
            }
            AccessLog::Off
        }
    }
}

fn one_access_log(section: &Section<'_>, text: Text<'_>, context: &Context<'_>) -> AccessLog {
    match text.value {
        "stdout" => AccessLog::Stdout,
        "off" => AccessLog::Off,
        value => {
            // A mistyped word would otherwise quietly become a file of that name.
            let word = meant(value, ["stdout", "off", "stderr"]).filter(|_| !value.contains(['/', '.']));
            if value.is_empty() || word.is_some() {
                let found = section.scribe.written(text.place);
                section
                    .scribe
                    .error(text.place, format!("`access` must be `\"stdout\"`, `\"off\"` or a file, not `{found}`"))
                    .hint("write a file of that name as `\"./NAME\"`")
                    .meant(word.filter(|word| *word != "stderr" && !text.secret));
            }
            AccessLog::File(context.path(text))
        }
    }
}

fn access_lines(section: &Section<'_>) -> AccessLines {
    let words = [("json", AccessFormat::Json), ("logfmt", AccessFormat::Logfmt)];
    AccessLines {
        format: section.choice("access_format", AccessFormat::Json, &words),
        sample: Share::of(section.number("access_sample", 1.0, 0.0..=1.0)),
        slow: section.duration("access_slow", AccessLines::default().slow, Duration::ZERO..=HOUR),
    }
}
