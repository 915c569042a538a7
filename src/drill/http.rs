//! One request at a time to the proxy, an origin or the proxy's admin socket, by hyper's client: another HTTP than the one under test.

use std::net::SocketAddr;
use std::path::Path;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A connection that is kept.
pub(super) type Connection = SendRequest<Full<Bytes>>;

/// A whole answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

pub(super) async fn connect(address: SocketAddr) -> Result<Connection, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    over(stream).await
}

async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Result<Connection, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One request on an open connection.
pub(super) async fn send(
    connection: &mut Connection,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
) -> Result<Answer, String> {
    let mut request = Request::builder().method(method).uri(target).header("host", "drill");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::default()).map_err(|error| error.to_string())?;
    connection.ready().await.map_err(|error| format!("{error:?}"))?;
    let answer = connection.send_request(request).await.map_err(|error| format!("{error:?}"))?;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

/// One request on a connection of its own.
pub(super) async fn request(address: SocketAddr, method: &str, target: &str) -> Result<Answer, String> {
    send(&mut connect(address).await?, method, target, &[]).await
}

/// A GET over a unix socket.
pub(super) async fn get_unix(socket: &Path, target: &str) -> Result<Answer, String> {
    let stream = UnixStream::connect(socket).await.map_err(|error| format!("connect: {error}"))?;
    send(&mut over(stream).await?, "GET", target, &[]).await
}
