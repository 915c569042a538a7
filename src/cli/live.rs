//! Questions to the running process, over its admin socket or address.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::config::Config;
use crate::load::Loader;
use crate::steering::explain::{Explanation, Question};

/// A connection to the running process.
pub(super) struct Asker {
    runtime: tokio::runtime::Runtime,
    sender: SendRequest<Empty<Bytes>>,
}

impl Asker {
    /// Connects to the process that runs `config`: its admin socket first, then its admin address; or to `admin`.
    pub(super) fn new(config: &Path, admin: Option<&str>) -> Result<Asker, String> {
        let (socket, address, doubt) = doors(config, admin)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("error: no runtime: {error}"))?;
        let mut tried = Vec::new();
        if let Some(path) = socket {
            match runtime.block_on(UnixStream::connect(&path)) {
                Ok(stream) => return Asker::over(runtime, stream),
                Err(error) => tried.push(format!("{}: {error}", path.display())),
            }
        }
        if let Some(address) = address {
            match runtime.block_on(TcpStream::connect(address)) {
                Ok(stream) => return Asker::over(runtime, stream),
                Err(error) => tried.push(format!("{address}: {error}")),
            }
        }
        Err(format!(
            "{doubt}error: the running process cannot be reached ({}); is meridian running? --admin says where",
            tried.join("; ")
        ))
    }

    fn over<S>(runtime: tokio::runtime::Runtime, stream: S) -> Result<Asker, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let sender = runtime.block_on(async {
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            Ok::<_, hyper::Error>(sender)
        });
        Ok(Asker { sender: sender.map_err(|error| format!("error: {error}"))?, runtime })
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

    fn get(&mut self, target: &str) -> Result<Bytes, String> {
        let request = hyper::Request::get(target).header("host", "localhost").body(Empty::new());
        let request = request.map_err(|error| format!("error: {error}"))?;
        let sender = &mut self.sender;
        self.runtime.block_on(async {
            sender.ready().await.map_err(|error| format!("error: {error}"))?;
            let answer = sender.send_request(request).await.map_err(|error| format!("error: {error}"))?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(|error| format!("error: {error}"))?.to_bytes();
            match status.is_success() {
                true => Ok(body),
                false => Err(format!("error: {status}: {}", String::from_utf8_lossy(&body).trim_end())),
            }
        })
    }
}

/// The admin socket of the systemd unit, whose `$RUNTIME_DIRECTORY` an operator's shell does not have.
const UNIT_SOCKET: &str = "/run/meridian/admin.sock";

type Doors = (Option<PathBuf>, Option<SocketAddr>, String);

/// Socket and address to try, and what is wrong with the configuration, if it cannot say: a broken edit on disk is no reason not to ask the
/// process that still runs the last good one.
fn doors(config: &Path, admin: Option<&str>) -> Result<Doors, String> {
    if let Some(admin) = admin {
        return match admin.parse() {
            Ok(address) => Ok((None, Some(address), String::new())),
            Err(_) if admin.contains('/') => Ok((Some(admin.into()), None, String::new())),
            Err(_) => Err(format!("error: `{admin}` is neither a socket's path nor an address with a port")),
        };
    }
    let unit = || Some(PathBuf::from(UNIT_SOCKET));
    Ok(match Loader::default().config(config) {
        Ok(Config { boot, .. }) => (boot.admin_socket.or_else(unit), boot.admin, String::new()),
        Err(error) => (unit(), Some(SocketAddr::from(([127, 0, 0, 1], 9180))), error.to_string()),
    })
}
