//! Requests to the directory: HTTP/1.1 by TLS, one a connection.
//!
//! The library speaks ACME and leaves this to us, so that the authorities are those that the rest of meridian trusts, and every request and its answer have a bound. There are a dozen of
//! them in two months: nothing is kept open.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::{HeaderValue, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// For one request, from the name's look-up to the answer's last byte.
const PATIENCE: Duration = Duration::from_secs(30);

/// No answer of a directory is longer.
const MOST: usize = 1 << 20;

/// Who we are (RFC 8555, 6.1).
const US: &str = concat!("meridian/", env!("CARGO_PKG_VERSION"), " instant-acme");

/// Sends what the library asks for.
pub(super) struct Client(pub(super) Arc<ClientConfig>);

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let config = Arc::clone(&self.0);
        Box::pin(async move {
            match timeout(PATIENCE, exchange(config, request)).await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(why)) => Err(Error::Other(why.into())),
                Err(_) => Err(Error::Other(format!("no answer within {} s", PATIENCE.as_secs()).into())),
            }
        })
    }
}

async fn exchange(config: Arc<ClientConfig>, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, String> {
    let (mut parts, body) = request.into_parts();
    // What a directory says of where to go on is not believed to be what was configured.
    if parts.uri.scheme_str() != Some("https") {
        return Err("the directory wants to be asked without TLS".to_owned());
    }
    let authority = parts.uri.authority().ok_or("an address without a host")?.clone();
    let bare = authority.host();
    let host = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(bare);
    let name =
        ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is not a name that TLS can ask for"))?;
    let connected = TcpStream::connect((host, authority.port_u16().unwrap_or(443))).await;
    let stream = connected.map_err(|error| format!("no connection to {authority}: {error}"))?;
    let stream = TlsConnector::from(config).connect(name, stream).await;
    let stream = stream.map_err(|error| format!("no TLS with {authority}: {error}"))?;

    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let uri: Uri = path.parse().map_err(|_| "an address that is none")?;
    let host = HeaderValue::try_from(authority.as_str()).map_err(|_| "a host that is none")?;
    parts.uri = uri;
    parts.headers.insert(HOST, host);
    parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    parts.headers.insert(USER_AGENT, HeaderValue::from_static(US));

    let broken = |error: hyper::Error| format!("HTTP with {authority}: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let asked = async {
        let answer = sender.send_request(Request::from_parts(parts, body)).await.map_err(broken)?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, MOST).collect().await;
        let body = body.map_err(|error| format!("the answer of {authority}: {error}"))?.to_bytes();
        Ok(BytesResponse::from(http::Response::from_parts(parts, Full::new(body))))
    };
    tokio::pin!(asked, connection);
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // It ended, for good or ill: what was asked knows which.
        _ = &mut connection => asked.await,
    }
}
