//! Questions and words to the running process, over its admin socket or address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::cli::{Process, complain};
use crate::config::AdminDoors;
use crate::load::admin_doors;
use crate::secret::Secret;
use crate::steering::explain::{Explanation, Question};

/// A connection to the running process.
pub(super) struct Asker {
    runtime: tokio::runtime::Runtime,
    sender: SendRequest<Full<Bytes>>,
    /// What the process wants to hear before it takes a word over TCP.
    token: Option<String>,
}

/// An answer, whatever it says.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Reply {
    /// What a process says that took what it was sent; or the exit code of one that says no, whose words are on standard error.
    pub(super) fn taken(self) -> Result<Result<Value, ExitCode>, String> {
        let text = String::from_utf8_lossy(&self.body);
        if !self.status.is_success() {
            let text = text.trim_end();
            complain(&format!("error: {}\n", text.strip_prefix("error: ").unwrap_or(text)));
            // It understood and says no, or it cannot take such a thing at all.
            return Ok(Err(ExitCode::from(if matches!(self.status.as_u16(), 404 | 409) { 1 } else { 2 })));
        }
        let answer = serde_json::from_str(&text).map_err(|error| format!("error: an answer that is none: {error}"))?;
        Ok(Ok(answer))
    }
}

/// Sends that to the process that is meant: what one says that took it, or the exit code of one that says no.
pub(super) fn tell(process: &Process, target: &str, json: &Value) -> Result<Result<Value, ExitCode>, String> {
    let mut reply = Asker::of(process)?.post(target, json.to_string())?;
    // Another process may be taking its place: then that one is meant.
    for _ in 0..AGAIN.0 {
        if reply.status != StatusCode::SERVICE_UNAVAILABLE {
            break;
        }
        std::thread::sleep(AGAIN.1);
        let Ok(mut asker) = Asker::of(process) else { break };
        reply = asker.post(target, json.to_string())?;
    }
    reply.taken()
}

/// How often a process that is ending is looked for anew, and between two looks.
const AGAIN: (u32, Duration) = (20, Duration::from_millis(100));

/// A token for a process whose configuration this shell cannot read.
const TOKEN: &str = "MERIDIAN_ADMIN_TOKEN";

impl Asker {
    /// Connects to that process.
    pub(super) fn of(process: &Process) -> Result<Asker, String> {
        Asker::new(&process.file.config, process.admin.as_deref())
    }

    /// Connects to the process that runs `config`: its admin socket first, then its admin address; or to `admin`.
    pub(super) fn new(config: &Path, admin: Option<&str>) -> Result<Asker, String> {
        let Doors { socket, guessed, address, token } = doors(config, admin)?;
        let mut runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("error: no runtime: {error}"))?;
        let mut tried = Vec::new();
        if let Some(path) = socket {
            match runtime.block_on(UnixStream::connect(&path)) {
                Ok(stream) => {
                    let mut asker = Asker::over(runtime, stream, None)?;
                    if !guessed || asker.runs(config)? {
                        return Ok(asker);
                    }
                    tried.push(format!("{}: runs another configuration", path.display()));
                    runtime = asker.runtime;
                }
                Err(error) => tried.push(format!("{}: {error}", path.display())),
            }
        }
        if let Some(address) = address {
            match runtime.block_on(TcpStream::connect(address)) {
                Ok(stream) => {
                    let mut asker = Asker::over(runtime, stream, token)?;
                    if admin.is_some() || asker.runs(config)? {
                        return Ok(asker);
                    }
                    return Err(format!(
                        "error: the process at {address} runs another configuration than {}; --admin {address} asks it all the same",
                        config.display()
                    ));
                }
                Err(error) => tried.push(format!("{address}: {error}")),
            }
        }
        Err(format!(
            "error: the running process cannot be reached ({}); is meridian running? --admin says where",
            tried.join("; ")
        ))
    }

    fn over<S>(runtime: tokio::runtime::Runtime, stream: S, token: Option<String>) -> Result<Asker, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let sender = runtime.block_on(async {
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            Ok::<_, hyper::Error>(sender)
        });
        Ok(Asker { sender: sender.map_err(|error| format!("error: {error}"))?, runtime, token })
    }

    /// Whether the process runs that configuration.
    fn runs(&mut self, config: &Path) -> Result<bool, String> {
        #[derive(Deserialize)]
        struct Status {
            config: PathBuf,
        }
        let status: Status = serde_json::from_slice(&self.get("/api/status")?)
            .map_err(|error| format!("error: the running process is of another version: {error}"))?;
        // As it is named, which a link that now leads elsewhere does not change; or by another name.
        let is_named = std::path::absolute(config).is_ok_and(|config| config == status.config);
        let found = |path: &Path| std::fs::canonicalize(path).ok();
        Ok(is_named || found(config).is_some_and(|config| Some(config) == found(&status.config)))
    }

    /// Asks one question.
    pub(super) fn ask(&mut self, question: &Question) -> Result<Explanation, String> {
        let fields = [
            ("ip", Some(question.client.to_string())),
            ("host", question.host.clone()),
            ("path", Some(question.path.clone())),
            ("method", Some(question.method.clone())),
            ("affinity", question.affinity.clone()),
        ];
        let query: Vec<String> = fields
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", utf8_percent_encode(&value?, NON_ALPHANUMERIC))))
            .collect();
        let body = self.get(&format!("/api/explain?{}", query.join("&")))?;
        serde_json::from_slice(&body).map_err(|error| format!("error: an answer that is none: {error}"))
    }

    /// The body of a page that is there.
    pub(super) fn get(&mut self, target: &str) -> Result<Bytes, String> {
        let request = Request::get(target).header("host", "localhost").body(Full::default());
        let Reply { status, body } = self.send(request)?;
        match status.is_success() {
            true => Ok(body),
            false => Err(format!("error: {status}: {}", String::from_utf8_lossy(&body).trim_end())),
        }
    }

    /// Sends JSON, with the token where one is needed.
    pub(super) fn post(&mut self, target: &str, json: String) -> Result<Reply, String> {
        let mut request = Request::post(target).header("host", "localhost").header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(json.into()))
    }

    fn send(&mut self, request: http::Result<Request<Full<Bytes>>>) -> Result<Reply, String> {
        let request = request.map_err(|error| format!("error: {error}"))?;
        let sender = &mut self.sender;
        self.runtime.block_on(async {
            sender.ready().await.map_err(|error| format!("error: {error}"))?;
            let answer = sender.send_request(request).await.map_err(|error| format!("error: {error}"))?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(|error| format!("error: {error}"))?.to_bytes();
            Ok(Reply { status, body })
        })
    }
}

/// The admin socket of the systemd unit, whose `$RUNTIME_DIRECTORY` an operator's shell does not have.
const UNIT_SOCKET: &str = "/run/meridian/admin.sock";

struct Doors {
    socket: Option<PathBuf>,
    /// Nobody named the socket: another process may answer there.
    guessed: bool,
    address: Option<SocketAddr>,
    token: Option<String>,
}

/// Socket and address to try. A mistake elsewhere in the file is no reason not to ask the process that still runs the last good one; but where it does not
/// say who is meant, nobody else is asked instead.
fn doors(config: &Path, admin: Option<&str>) -> Result<Doors, String> {
    let configured = admin_doors(config);
    let given = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
    let in_file = configured.as_ref().ok().and_then(|doors| doors.token.as_ref());
    let token = given.or_else(|| in_file.map(|token: &Secret| token.reveal().to_owned()));
    let none = Doors { socket: None, guessed: false, address: None, token };
    if let Some(admin) = admin {
        return match admin.parse() {
            Ok(address) => Ok(Doors { address: Some(address), ..none }),
            Err(_) if admin.contains('/') => Ok(Doors { socket: Some(admin.into()), ..none }),
            Err(_) => Err(format!("error: `{admin}` is neither a socket's path nor an address with a port")),
        };
    }
    match configured {
        Ok(AdminDoors { address, socket, .. }) => {
            let guessed = socket.is_none();
            Ok(Doors { socket: socket.or_else(|| Some(UNIT_SOCKET.into())), guessed, address, ..none })
        }
        Err(error) => Err(format!(
            "{}\nerror: with that mistake the file does not tell where the running process answers; say it with --admin (that of the systemd unit: {UNIT_SOCKET})",
            error.to_string().trim_end()
        )),
    }
}
