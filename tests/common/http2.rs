//! A client that speaks HTTP/2 without TLS.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::process::PATIENCE;

/// A connection, and how it ended.
pub async fn connect(address: SocketAddr) -> (SendRequest<Bytes>, JoinHandle<Result<(), h2::Error>>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .handshake(stream)
        .await
        .unwrap();
    (client, tokio::spawn(connection))
}

pub fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://test{path}")).body(()).unwrap()
}

pub async fn send(
    client: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: &[u8],
) -> Result<Response<RecvStream>, h2::Error> {
    *client = client.clone().ready().await?;
    let (answer, stream) = client.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        give(stream, Bytes::copy_from_slice(body)).await?;
    }
    tokio::time::timeout(PATIENCE, answer).await.expect("it answers")
}

/// Sends all of a body as its windows open.
pub async fn give(mut stream: SendStream<Bytes>, mut body: Bytes) -> Result<(), h2::Error> {
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap()?;
        stream.send_data(body.split_to(room.min(body.len())), body.is_empty())?;
    }
    Ok(())
}

pub async fn take(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = tokio::time::timeout(PATIENCE, body.data()).await.expect("it goes on") {
        let piece = piece?;
        let _ = body.flow_control().release_capacity(piece.len());
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

pub async fn get(client: &mut SendRequest<Bytes>, path: &str) -> (u16, String) {
    let mut answer = send(client, request("GET", path), b"").await.unwrap();
    let body = take(answer.body_mut()).await.unwrap();
    (answer.status().as_u16(), String::from_utf8(body).unwrap())
}
