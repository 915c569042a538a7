//! One request at a time to the proxy, an origin or the proxy's admin socket, by hyper's client: another HTTP than the one under test. The tests
//! use it as well.

use std::net::SocketAddr;
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A connection that is kept.
pub type Connection = SendRequest<Full<Bytes>>;

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body, whole.
    pub body: Bytes,
}

impl Answer {
    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The origin that answered.
    pub fn origin(&self) -> Option<String> {
        Some(self.headers.get("x-origin")?.to_str().ok()?.to_owned())
    }
}

/// Opens a connection; an error says what was wrong, here and below.
pub async fn connect(address: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    over(stream).await
}

async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<Connection, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One request on an open connection; `Host: drill` unless given.
pub async fn send(
    connection: &mut Connection,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<Answer, String> {
    let mut request = Request::builder().method(method).uri(target);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", "drill");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::default()).map_err(|error| error.to_string())?;
    connection.ready().await.map_err(|error| format!("{error:?}"))?;
    let answer = connection.send_request(request).await.map_err(|error| format!("{error:?}"))?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
}

/// One request on a connection of its own.
pub async fn request(address: SocketAddr, method: &str, target: &str) -> Result<Answer, String> {
    send(&mut connect(address).await?, method, target, &[]).await
}

/// A GET over a unix socket.
pub async fn get_unix(socket: &Path, target: &str) -> Result<Answer, String> {
    let stream = UnixStream::connect(socket).await.map_err(|error| format!("connect: {error}"))?;
    send(&mut over(stream).await?, "GET", target, &[]).await
}
