//! Composition: builds every part, hands it what it needs, starts it, and ends it in order.
//!
//! Pingora's `Server` gives runtimes and their end; what runs on them is ours: the listening service with the movers of bytes behind
//! it, and one service for everything that keeps the world known. A stop is ours, too: first not ready, then no new connections, then
//! the connections that are left, then the rest. Pingora is only told when nothing is left to save.

#![expect(clippy::disallowed_methods, reason = "a shell: it starts the clocks")]

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::Pin;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use ::pingora::protocols::{ALPN, Stream};
use ::pingora::server::configuration::ServerConf;
use ::pingora::server::{ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use ::pingora::services::Service;
use async_trait::async_trait;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{interval, sleep, timeout};

use crate::acme::{self, challenge::Challenges};
use crate::admin::{self, Admin};
use crate::config::tls::Certificate;
use crate::config::{Boot, Engine, Listen, ListenerId};
use crate::inherited::{self, Inherited};
use crate::listen::{self, Acceptor, Before, ConnectionHandler, Drain, HttpService, Listener, Pulse};
use crate::load::Loader;
use crate::memory;
use crate::notify::{self, Stage, tell};
use crate::pressure::Pressure;
use crate::probe;
use crate::proxy::caught::caught;
use crate::proxy::engine::{Served, h2};
use crate::proxy::{Shared, engine, pingora};
use crate::resolve;
use crate::state::{self, Kept, Reader, ReloadRequest, Sender, UpgradeRequest};
use crate::telemetry::{AccessLogger, Metrics, Mover, Spans, log};
use crate::upgrade::{Brought, Predecessor, Spare, Upgrade};
use crate::watch::Watch;

/// How long the control service may take to put its things away.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Between two times that client networks are forgotten that were not there lately.
const SWEEP: Duration = Duration::from_secs(60);

/// Between two looks for the rest of an HTTP/2 preface that came in pieces.
const PIECES: Duration = Duration::from_millis(5);

/// Runs the proxy with that configuration until it is told to end. `alone`: why no other process can take its place, where none can.
/// Exit codes: 0 after an orderly end, 1 when it could not start.
pub fn run(config: &Path, alone: Option<&'static str>) -> ExitCode {
    hear_early();
    let (inherited, stream) = match inherited::take() {
        Ok(given) => given,
        Err(error) => {
            eprintln!("error: the descriptors that $LISTEN_FDS names: {error}");
            return ExitCode::from(1);
        }
    };
    let mut predecessor = stream.map(Predecessor::new);
    match start(config, alone, inherited, &mut predecessor) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", error.trim_end());
            if let Some(predecessor) = predecessor {
                predecessor.refuse(&error);
            }
            ExitCode::from(1)
        }
    }
}

/// Has signals that ask for something do nothing instead of ending a process that cannot do it yet: what they ask for, a start does anyway.
fn hear_early() {
    let heard = tokio::runtime::Builder::new_current_thread().enable_io().build().and_then(|runtime| {
        let kinds = [SignalKind::hangup(), SignalKind::user_defined1(), SignalKind::user_defined2()];
        // Once heard, they are never again what they were, whoever listens.
        runtime.block_on(async { kinds.into_iter().try_for_each(|kind| signal(kind).map(drop)) })
    });
    if let Err(error) = heard {
        // It will be said again by who needs them.
        eprintln!("warning: signals cannot be heard yet: {error}");
    }
}

/// `predecessor` is taken from when its place is to be taken.
fn start(
    path: &Path,
    alone: Option<&'static str>,
    mut inherited: Inherited,
    predecessor: &mut Option<Predecessor>,
) -> Result<ExitCode, String> {
    let brought = predecessor.as_ref().map(Predecessor::brought).transpose();
    let mut brought = brought.map_err(|error| format!("error: what the process before brings: {error}"))?;
    if let Some(brought) = &mut brought {
        inherited.set_ports(std::mem::take(&mut brought.ports));
    }
    let mut loader = Loader::default();
    // The log's level is in the configuration, so what loading has to say waits for it.
    let boot = loader.config(path).map_err(|error| error.to_string())?.boot;
    let _log_guard = log::start(&boot.log_level, boot.log_format).map_err(|error| format!("error: {error}"))?;
    raise_descriptor_limit();
    let handover = brought.as_mut().and_then(Brought::handover);
    let kept = Kept::in_directory(boot.state_dir.as_deref());
    let remembered = kept.remembered();
    loader.seen(remembered.sample());
    let loaded = loader.load(path).map_err(|error| error.to_string())?;
    if !loaded.config.warnings.is_empty() {
        tracing::warn!("warnings of the configuration\n{}", loaded.config.warnings.to_string().trim_end());
    }
    let boot = loaded.config.boot;
    let (files, connections) = (getrlimit(Resource::Nofile).current, loaded.config.edge.limits.connections as u64);
    if files.is_some_and(|files| files < connections * 2) {
        tracing::warn!(
            limit = files,
            connections,
            "the limit of open files is below two for each of [limits] connections: raise it (`ulimit -n`, LimitNOFILE=) or lower those"
        );
    }

    let metrics = Metrics::new();
    metrics.loaded(SystemTime::now());
    let pop = &loaded.view.fleet.pop.name;
    let spans = boot.otlp.as_deref().map(|to| Spans::start(to, pop, &metrics)).transpose();
    let (spans, spans_guard) = spans.map_err(|error| format!("error: [trace] otlp: {error}"))?.unzip();
    let started = AccessLogger::start(&boot.access_log, boot.access_lines, spans, &metrics);
    let (access, access_guard) = started.map_err(|error| format!("error: access log: {error}"))?;
    if kept.file().is_none() {
        tracing::info!(
            "no [process] state_dir and no $STATE_DIRECTORY: what operators set is forgotten with this process"
        );
    }
    let (sender, reader, writer) =
        state::start_with(loaded.view, loaded.config.edge, metrics.clone(), kept, remembered, handover);

    let threads = match boot.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let shared = Arc::new(Shared::new(reader.clone(), access.clone(), Instant::now()));
    let listen = listeners(&boot.listen, &shared, &metrics, threads);
    let given = |address| inherited.tcp(address);
    let mut http = HttpService::bind(listen, given, reader.clone(), metrics.clone(), threads, boot.drain_timeout)
        .map_err(|error| format!("error: {error}"))?;
    http.heed(shared.pressure.clone());
    let predecessor = predecessor.take().map(|predecessor| (predecessor, http.wait()));
    let spare = Spare::default();
    spare.keep(http.sockets().map_err(|error| format!("error: listening sockets cannot be copied: {error}"))?);

    let (drains, draining) = watch::channel(false);
    let (failed, failure) = mpsc::channel(1);
    let (stop, stopped) = watch::channel(false);
    let (put_away, all_put_away) = mpsc::channel::<()>(1);
    let (handed_over, replaced) = mpsc::channel(1);
    let ending = Ending {
        drains,
        drain: http.drain(),
        spare: spare.clone(),
        boot: boot.clone(),
        replaced: tokio::sync::Mutex::new(replaced),
        failure: tokio::sync::Mutex::new(failure),
        stop,
        put_away: tokio::sync::Mutex::new(all_put_away),
    };
    let exit = Arc::new(AtomicBool::new(false));
    let (ask, asked) = mpsc::channel(1);
    let (upgrade, upgrades) = mpsc::channel(1);
    let control = Control {
        parts: Mutex::new(Some(Parts {
            admin: Admin {
                reader: reader.clone(),
                sender: sender.clone(),
                token: boot.admin_token.clone(),
                metrics: metrics.clone(),
                draining: draining.clone(),
                ask: ask.clone(),
                upgrade: upgrade.clone(),
                listen: http.local_addresses().into(),
                config: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).into(),
            },
            watch: Watch {
                path: path.to_owned(),
                loader,
                boot: boot.clone(),
                sender: sender.clone(),
                reader: reader.clone(),
                metrics: metrics.clone(),
            },
            writer: Box::pin(writer),
            sender: sender.clone(),
            reader: reader.clone(),
            metrics,
            access,
            challenges: shared.challenges.clone(),
            pressure: shared.pressure.clone(),
            failed,
            ask,
            asked,
            upgrade: Upgrade {
                sender: sender.clone(),
                reader: reader.clone(),
                spare,
                ports: ports(&boot, http.local_addresses()),
                alone,
                draining,
            },
            ask_upgrade: upgrade,
            upgrades,
            handed_over,
            inherited,
            predecessor,
            pulse: http.pulse(),
            sweep: Box::new({
                let (networks, rates, reader) = (http.sweep(), shared.rates.clone(), reader.clone());
                move || {
                    networks();
                    let published = reader.load();
                    rates.sweep(|name| published.snapshot.fleet().service_named(name).is_some());
                }
            }),
            exit: Arc::clone(&exit),
            stopped,
            put_away,
        })),
    };

    for address in http.local_addresses() {
        tracing::info!(%address, "listening");
    }
    let mut server = Server::new_with_opt_and_conf(None, ServerConf { threads, ..ServerConf::default() });
    server.bootstrap();
    server.add_service(http);
    server.add_service(control);
    server.run(RunArgs { shutdown_signal: Box::new(ending) });
    // What is queued of the access log is written now.
    drop(access_guard);
    // And then what became spans.
    drop(spans_guard);
    Ok(ExitCode::from(u8::from(exit.load(Ordering::Acquire))))
}

/// Where any port was asked for, the one that it became.
fn ports(boot: &Boot, bound: &[SocketAddr]) -> Vec<(SocketAddr, SocketAddr)> {
    let configured = boot.listen.iter().map(|listen| listen.address);
    configured.zip(bound.iter().copied()).filter(|(configured, _)| configured.port() == 0).collect()
}

/// Doors that are there already.
impl admin::Given for Inherited {
    fn tcp(&mut self, address: SocketAddr) -> Vec<TcpListener> {
        Inherited::tcp(self, address)
    }

    fn unix(&mut self, path: &Path) -> Option<UnixListener> {
        Inherited::unix(self, path)
    }
}

/// Raises the soft limit of descriptors to the hard one: a request takes two, and shells set it low for programs of another kind.
fn raise_descriptor_limit() {
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: now.maximum, maximum: now.maximum };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => tracing::debug!(from = now.current, to = now.maximum, "limit of open files raised"),
        Err(error) => tracing::warn!(%error, limit = now.current, "the limit of open files cannot be raised"),
    }
}

/// Each address with the mover that its `engine` names; there is one of each, so upstream connections are shared.
pub fn listeners(listen: &[Listen], shared: &Arc<Shared>, metrics: &Metrics, threads: usize) -> Vec<Listener> {
    let pingora = Pingora { mover: pingora::Mover::new(Arc::clone(shared), threads), metrics: metrics.clone() };
    let engine = Arc::new(engine::Mover::new(Arc::clone(shared), metrics.clone(), threads));
    let crew = Arc::new(h2::Crew::new(threads));
    let native = |plain_http2| -> Arc<dyn ConnectionHandler> {
        Arc::new(Native {
            engine: Arc::clone(&engine),
            crew: Arc::clone(&crew),
            reader: shared.reader.clone(),
            plain_http2,
        })
    };
    let [native, trusted, all] = [PlainHttp2::Nobody, PlainHttp2::Trusted, PlainHttp2::All].map(native);
    let pingora: Arc<dyn ConnectionHandler> = Arc::new(pingora);
    let listener = |(n, Listen { address, engine, http2, tls, proxy_protocol }): (usize, &Listen)| {
        let handler = match engine {
            Engine::Native if *http2 && !tls && *proxy_protocol => &all,
            Engine::Native if *http2 && !tls => &trusted,
            Engine::Native => &native,
            Engine::Pingora => &pingora,
        };
        let tls =
            tls.then(|| Acceptor::new(ListenerId::after(&listen[..n], *address), *http2, shared.challenges.clone()));
        let before = Before { proxy_protocol: *proxy_protocol, tls };
        Listener { address: *address, before, handler: Arc::clone(handler) }
    };
    listen.iter().enumerate().map(listener).collect()
}

/// What the engine has to know of an accepted connection.
impl engine::Side for Stream {
    fn socket(&self) -> Option<&TcpStream> {
        listen::socket(self)
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.get_socket_digest()?.local_addr()?.as_inet().copied()
    }

    fn close(&mut self) {
        listen::close(self);
    }
}

/// Joins the listening service to our engine.
struct Native {
    engine: Arc<engine::Mover<engine::Tcp>>,
    /// Serves streams of HTTP/2.
    crew: Arc<h2::Crew<(Stream, Arc<Whose>, ShutdownWatch)>>,
    reader: Reader,
    plain_http2: PlainHttp2,
}

/// Who may speak HTTP/2 without TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PlainHttp2 {
    Nobody,
    /// Peers that are trusted.
    Trusted,
    /// Everybody who comes in: who has sent a PROXY header was trusted to, and the address in it is another's.
    All,
}

/// Whose connection it is.
struct Whose {
    peer: SocketAddr,
    scheme: &'static str,
    http2: bool,
    bound: Vec<Arc<Certificate>>,
}

#[async_trait]
impl ConnectionHandler for Native {
    async fn serve(&self, stream: Stream, peer: SocketAddr, shutdown: &ShutdownWatch) -> listen::Ending {
        let scheme = if stream.get_ssl_digest().is_some() { "https" } else { "http" };
        let bound = listen::certificates(&stream).to_vec();
        let http2 = match stream.selected_alpn_proto() {
            Some(protocol) => protocol == ALPN::H2,
            None => self.speaks_plain_http2(&stream, peer).await,
        };
        let whose = Whose { peer, scheme, http2, bound };
        if !http2 {
            return whose.served_by(&self.engine, stream, shutdown).await;
        }
        let edge = Arc::clone(&self.reader.load().edge);
        let whose = Arc::new(whose);
        let each = |stream| {
            let engine = Arc::clone(&self.engine);
            self.crew.give((stream, Arc::clone(&whose), shutdown.clone()), move |(stream, whose, shutdown)| {
                let engine = Arc::clone(&engine);
                async move {
                    // However it ended, the stream it came from knows.
                    drop(whose.served_by(&engine, stream, &shutdown).await);
                }
            });
        };
        Box::pin(h2::serve(stream, &edge.limits, shutdown.clone(), each)).await;
        listen::Ending::Closed
    }

    /// Its connections watch the drain themselves.
    async fn close_idle(&self) {}
}

impl Native {
    /// Whether a client without TLS speaks HTTP/2, and may. Most listeners know without a look at anything.
    async fn speaks_plain_http2(&self, stream: &Stream, peer: SocketAddr) -> bool {
        if self.plain_http2 == PlainHttp2::Nobody {
            return false;
        }
        let edge = Arc::clone(&self.reader.load().edge);
        let may = self.plain_http2 == PlainHttp2::All || edge.trusts(peer.ip().to_canonical());
        may && timeout(edge.limits.header_timeout, begins_with(stream, h2::PREFACE)).await.unwrap_or(false)
    }
}

/// Whether the first bytes on a plain connection are those. They stay to be read. Returns when that is known.
async fn begins_with(stream: &Stream, expected: &[u8]) -> bool {
    let Some(socket) = listen::socket(stream) else { return false };
    let mut seen = [0; 32];
    let seen = &mut seen[..expected.len()];
    loop {
        match socket.peek(seen).await {
            Ok(count @ 1..) if expected.starts_with(&seen[..count]) => {
                if count == expected.len() {
                    return true;
                }
            }
            _ => return false,
        }
        // It would return at once with the same. Whoever sends this in pieces can wait for the next.
        sleep(PIECES).await;
    }
}

impl Whose {
    /// Serves HTTP/1.1, or one request that came as if by it.
    async fn served_by(
        &self,
        engine: &engine::Mover<engine::Tcp>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> listen::Ending {
        let Whose { peer, scheme, http2, bound } = self;
        let from = engine::Downstream { peer: Some(*peer), scheme, http2: *http2, bound };
        match engine.serve(stream, from, shutdown).await {
            Served::Closed => listen::Ending::Closed,
            Served::Finished(stream) => listen::Ending::Finished(stream),
            Served::Reset(stream) => listen::Ending::Reset(stream),
        }
    }
}

/// Joins the listening service to pingora-proxy.
struct Pingora {
    mover: pingora::Mover,
    metrics: Metrics,
}

#[async_trait]
impl ConnectionHandler for Pingora {
    async fn serve(&self, stream: Stream, _peer: SocketAddr, shutdown: &ShutdownWatch) -> listen::Ending {
        if let Err(panic) = caught(pin!(self.mover.serve(stream, shutdown))).await {
            self.metrics.panicked(Mover::Pingora, &panic);
        }
        listen::Ending::Closed
    }

    async fn close_idle(&self) {
        self.mover.close_idle().await;
    }
}

/// The service of everything but requests, on a thread of its own.
struct Control {
    /// Taken when it starts. Never contended: a service that can be started must be `Sync`, which a future is not.
    parts: Mutex<Option<Parts>>,
}

struct Parts {
    admin: Admin,
    watch: Watch,
    writer: Pin<Box<dyn Future<Output = ()> + Send>>,
    sender: Sender,
    reader: Reader,
    metrics: Metrics,
    access: AccessLogger,
    challenges: Challenges,
    /// Said when memory is short.
    pressure: Pressure,
    /// Said when something without which we cannot be cannot start.
    failed: mpsc::Sender<()>,
    /// Reloads that somebody asks for.
    ask: mpsc::Sender<ReloadRequest>,
    asked: mpsc::Receiver<ReloadRequest>,
    upgrade: Upgrade,
    ask_upgrade: mpsc::Sender<UpgradeRequest>,
    upgrades: mpsc::Receiver<UpgradeRequest>,
    /// Said when another process took the place of this one.
    handed_over: mpsc::Sender<()>,
    /// What nobody has asked for yet.
    inherited: Inherited,
    /// Whose place is to be taken, and what opens the listeners then.
    predecessor: Option<(Predecessor, oneshot::Sender<()>)>,
    pulse: Pulse,
    /// Forgets the networks that were not there lately, of those that are counted.
    sweep: Box<dyn Fn() + Send + Sync>,
    exit: Arc<AtomicBool>,
    stopped: watch::Receiver<bool>,
    /// Dropped when everything is put away.
    put_away: mpsc::Sender<()>,
}

#[async_trait]
impl Service for Control {
    async fn start_service(&mut self, _fds: Option<ListenFds>, _shutdown: ShutdownWatch, _listeners_per_fd: usize) {
        let parts = self.parts.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let Some(parts) = parts else { return };
        let (failed, exit) = (parts.failed.clone(), Arc::clone(&parts.exit));
        if let Err(error) = parts.run().await {
            tracing::error!("{error}");
            exit.store(true, Ordering::Release);
            let _ = failed.send(()).await;
        }
    }

    fn name(&self) -> &str {
        "control"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

impl Parts {
    /// Runs until stopped.
    async fn run(self) -> Result<(), String> {
        let Parts { admin, watch, writer, sender, reader, metrics, access, challenges, mut inherited, .. } = self;
        let (ask, asked, mut stopped, put_away) = (self.ask, self.asked, self.stopped, self.put_away);
        let (upgrade, upgrades, handed_over, predecessor) =
            (self.upgrade, self.upgrades, self.handed_over, self.predecessor);
        let pressure = self.pressure;
        let handed = Arc::new(AtomicBool::new(false));
        let (address, socket) = (watch.boot.admin, watch.boot.admin_socket.clone());
        let doors = admin::open_given(address, socket.as_deref(), &mut inherited, &handed).await;
        let doors = doors.map_err(|error| format!("admin: {error}"))?;
        inherited.close(predecessor.is_some());
        upgrade.spare.keep(doors.sockets().map_err(|error| format!("admin: {error}"))?);
        if let Some(address) = doors.address() {
            tracing::info!(%address, "admin pages");
        }
        let failed = |error| format!("signals: {error}");
        let signals = signals(ask, self.ask_upgrade).map_err(failed)?;
        let rotation = rotation(access).map_err(failed)?;
        tokio::spawn(writer);
        let kept = sender.kept().clone();
        // What only one process does at a time.
        let office = async {
            if let Some((predecessor, begin)) = predecessor {
                predecessor
                    .relieve(reader.clone(), || {
                        let _ = begin.send(());
                    })
                    .await?;
            }
            tokio::select! {
                () = doors.serve(admin) => {}
                () = watch.run(asked) => {}
                () = acme::run(reader.clone(), challenges, metrics.clone()) => {}
                () = signals => {}
                () = ready(reader.clone()) => {}
                () = watchdog(self.pulse) => {}
                () = sweep(self.sweep) => {}
                () = state::remember(reader.clone(), kept.clone()) => {}
                () = async {
                    upgrade.run(upgrades).await;
                    // Before the doors are dropped, or their file goes with them.
                    handed.store(true, Ordering::Release);
                } => {}
            }
            Ok::<_, String>(())
        };
        // What goes on while there is a request.
        let world = async {
            tokio::join!(
                probe::run(reader.clone(), sender.clone(), metrics.clone()),
                resolve::run(reader.clone(), sender.clone()),
                memory::watch(reader.clone(), pressure, metrics.clone()),
                rotation
            );
        };
        let until_drained = async {
            office.await?;
            // Who ends this process waits for it.
            let _ = handed_over.send(()).await;
            std::future::pending::<Result<(), String>>().await
        };
        tokio::select! {
            () = world => {}
            done = until_drained => done?,
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        if !handed.load(Ordering::Acquire) {
            state::remember_now(&reader, &kept).await;
        }
        drop(put_away);
        Ok(())
    }
}

/// Forgets what nobody needs any more, now and then.
async fn sweep(forget: Box<dyn Fn() + Send + Sync>) {
    loop {
        sleep(SWEEP).await;
        forget();
    }
}

/// Tells the service manager that everything moves, as often as it wants to hear it; and does not when a worker stands still.
async fn watchdog(pulse: Pulse) {
    let Some(within) = notify::watchdog() else { return std::future::pending().await };
    // Twice as often, as sd_watchdog_enabled(3) has it.
    let mut times = interval(within / 2);
    loop {
        times.tick().await;
        let silent = pulse.ask();
        if silent.is_empty() {
            tell(Stage::Alive);
        } else {
            tracing::error!(workers = ?silent, "workers stand still, so the service manager is not told that all is well");
        }
    }
}

/// Says once that we are ready, and then waits for ever.
async fn ready(mut reader: Reader) {
    reader.ready().await;
    let generation = reader.load().snapshot.generation;
    tracing::info!(generation, "ready");
    tell(Stage::Ready(&format!("generation {generation}")));
    std::future::pending::<()>().await;
}

/// SIGUSR1 opens the access log anew, for log rotation, as long as anything may be written to it.
fn rotation(access: AccessLogger) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut asked = signal(SignalKind::user_defined1())?;
    Ok(async move {
        while asked.recv().await.is_some() {
            access.reopen();
        }
    })
}

/// SIGHUP asks for a reload, SIGUSR2 for a process that takes over.
fn signals(
    ask: mpsc::Sender<ReloadRequest>,
    upgrade: mpsc::Sender<UpgradeRequest>,
) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut second = signal(SignalKind::user_defined2())?;
    Ok(async move {
        loop {
            tokio::select! {
                // Full: a reload is due already.
                _ = hangup.recv() => drop(ask.try_send(ReloadRequest::default())),
                // Full: it is under way already.
                _ = second.recv() => drop(upgrade.try_send(UpgradeRequest::default())),
            }
        }
    })
}

/// The way out.
struct Ending {
    /// Whether this process is on its way out.
    drains: watch::Sender<bool>,
    drain: Drain,
    /// Listening sockets that would take connections after the listeners are closed.
    spare: Spare,
    boot: Boot,
    /// Another process took the place of this one.
    replaced: tokio::sync::Mutex<mpsc::Receiver<()>>,
    failure: tokio::sync::Mutex<mpsc::Receiver<()>>,
    stop: watch::Sender<bool>,
    put_away: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

#[async_trait]
impl ShutdownSignalWatch for Ending {
    /// Returns when nothing is left to save, or at once on a second signal.
    async fn recv(&self) -> ShutdownSignal {
        let signals = signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
        match signals {
            Ok((mut term, mut interrupt)) => {
                let (mut failure, mut replaced) = (self.failure.lock().await, self.replaced.lock().await);
                let told = tokio::select! {
                    () = either(&mut term, &mut interrupt) => Some(true),
                    Some(()) = replaced.recv() => Some(false),
                    Some(()) = failure.recv() => None,
                };
                if let Some(told) = told {
                    tokio::select! {
                        () = self.drain(told) => {}
                        () = async {
                            if !told {
                                // The first word to end: it is about to.
                                either(&mut term, &mut interrupt).await;
                                tracing::info!(connections = self.drain.open(), "told to end: it does when its connections have");
                            }
                            either(&mut term, &mut interrupt).await;
                        } => tracing::warn!("told to end while it drains: connections are cut"),
                    }
                }
            }
            Err(error) => tracing::error!(%error, "signals cannot be heard, so nobody could end this process"),
        }
        let _ = self.stop.send(true);
        // Closed, not received: the control service dropped its end.
        let _ = timeout(LAST_WORDS, self.put_away.lock().await.recv()).await;
        tracing::info!("ended");
        ShutdownSignal::FastShutdown
    }
}

impl Ending {
    /// `told`: somebody wants this to end; else another process took over, which is ready and has the service manager's ear.
    async fn drain(&self, told: bool) {
        self.drains.send_replace(true);
        tracing::info!(connections = self.drain.open(), "draining");
        if told {
            tell(Stage::Stopping("draining"));
            sleep(self.boot.drain_delay).await;
        }
        self.spare.close();
        self.drain.begin();
        let left = self.drain.wait(self.boot.drain_timeout).await;
        if left > 0 {
            tracing::warn!(connections = left, "drain_timeout is over: connections are cut");
        }
    }
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
