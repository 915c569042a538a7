//! The doors: a TCP address and a unix socket, few connections, short patience.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::admin::{Admin, Door};

/// Connections at a time at each door. Another one takes the place of the one that has said nothing for longest; where all are being answered it is closed.
const CONNECTIONS: usize = 64;

/// A request head must be complete within this; also how long an idle connection is kept.
const HEAD: Duration = Duration::from_secs(5);

/// How long one connection may live, and then finish its last answer.
const LIFE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));

/// Bytes and fields of a request head.
const HEAD_BYTES: usize = 16 * 1024;
const HEAD_FIELDS: usize = 64;

/// Who may use the socket: this user and this group.
const MODE: u32 = 0o660;

/// After accepting failed for want of descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// Listening doors. The socket file goes with them.
#[derive(Debug)]
pub struct Doors {
    tcp: Option<TcpListener>,
    unix: Option<(UnixListener, SocketFile)>,
}

/// Removed when dropped, unless it is kept.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    keep: Arc<AtomicBool>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.keep.load(Ordering::Acquire) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens the doors that are configured. Must be called within a runtime. An error says which door and why.
pub async fn open(address: Option<SocketAddr>, socket: Option<&Path>) -> io::Result<Doors> {
    open_given(address, socket, &mut (), &Arc::default()).await
}

/// The same, with what was given for them where something was. The socket's file is left where it is when `keep` is set by the time they close.
pub async fn open_given(
    address: Option<SocketAddr>,
    socket: Option<&Path>,
    given: &mut impl Given,
    keep: &Arc<AtomicBool>,
) -> io::Result<Doors> {
    let said = |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    let tcp = match address {
        Some(address) => {
            let opened = match given.tcp(address).into_iter().next() {
                Some(listener) => listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)),
                None => TcpListener::bind(address).await,
            };
            Some(opened.map_err(said(format!("[admin] address {address}")))?)
        }
        None => None,
    };
    let unix = match socket {
        Some(path) => {
            let opened = match given.unix(path) {
                Some(listener) => listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)),
                None => bind(path).await,
            };
            let listener = opened.map_err(said(format!("[admin] socket {}", path.display())))?;
            Some((listener, SocketFile { path: path.to_owned(), keep: Arc::clone(keep) }))
        }
        None => None,
    };
    Ok(Doors { tcp, unix })
}

/// Listening sockets that there are already.
pub trait Given {
    /// Those of that address, as configured.
    fn tcp(&mut self, address: SocketAddr) -> Vec<StdTcpListener>;
    /// The one at that path.
    fn unix(&mut self, path: &Path) -> Option<StdUnixListener>;
}

/// None.
impl Given for () {
    fn tcp(&mut self, _: SocketAddr) -> Vec<StdTcpListener> {
        Vec::new()
    }

    fn unix(&mut self, _: &Path) -> Option<StdUnixListener> {
        None
    }
}

async fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        // What a process that was killed left behind has nobody who answers.
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on it")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE)).inspect_err(|_| drop(fs::remove_file(path)))?;
    Ok(listener)
}

impl Doors {
    /// The TCP address, with the port that was given.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref()?.local_addr().ok()
    }

    /// Copies of the listening sockets, to be given to another process.
    pub fn sockets(&self) -> io::Result<Vec<OwnedFd>> {
        let (tcp, unix) = (self.tcp.iter().map(AsFd::as_fd), self.unix.iter().map(|(unix, _)| unix.as_fd()));
        tcp.chain(unix).map(|socket| socket.try_clone_to_owned()).collect()
    }

    /// Answers until the future is dropped.
    pub async fn serve(self, admin: Admin) {
        // One each: whoever can reach the address must not keep an operator from the socket.
        let tcp = async {
            let Some(listener) = &self.tcp else { return pending().await };
            let mut room = Room::default();
            loop {
                let accepted = listener.accept().await;
                let accepted = accepted.map(|(stream, peer)| (nodelay(stream), Door::Tcp(peer)));
                room.greet(accepted, &admin).await;
            }
        };
        let unix = async {
            let Some((listener, _)) = &self.unix else { return pending().await };
            let mut room = Room::default();
            loop {
                let accepted = listener.accept().await;
                let accepted = accepted.map(|(stream, _)| {
                    let user = stream.peer_cred().ok().map(|peer| peer.uid());
                    (stream, Door::Unix(user))
                });
                room.greet(accepted, &admin).await;
            }
        };
        tokio::join!(tcp, unix);
    }
}

fn nodelay(stream: TcpStream) -> TcpStream {
    // Only slower without it.
    let _ = stream.set_nodelay(true);
    stream
}

/// Whom a door lets in, the oldest first.
#[derive(Debug, Default)]
struct Room(VecDeque<Conversation>);

#[derive(Debug)]
struct Conversation {
    task: AbortHandle,
    /// It has asked, and waits for us.
    answering: Arc<AtomicBool>,
}

impl Room {
    async fn greet<S>(&mut self, accepted: io::Result<(S, Door)>, admin: &Admin)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (stream, door) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "admin: no connection accepted");
                sleep(BREATH).await;
                return;
            }
        };
        if !self.has_place() {
            return;
        }
        let (admin, answering) = (admin.clone(), Arc::<AtomicBool>::default());
        let task = tokio::spawn(converse(stream, door, admin, Arc::clone(&answering))).abort_handle();
        self.0.push_back(Conversation { task, answering });
    }

    /// Whether there is a place for another one, if need be that of somebody who says nothing.
    fn has_place(&mut self) -> bool {
        self.0.retain(|conversation| !conversation.task.is_finished());
        if self.0.len() < CONNECTIONS {
            return true;
        }
        let silent = self.0.iter().position(|conversation| !conversation.answering.load(Ordering::Relaxed));
        silent.and_then(|at| self.0.remove(at)).inspect(|conversation| conversation.task.abort()).is_some()
    }
}

async fn converse<S>(stream: S, door: Door, admin: Admin, answering: Arc<AtomicBool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let (admin, answering) = (&admin, &answering);
        async move {
            answering.store(true, Ordering::Relaxed);
            let answer = admin.answer(door, request).await;
            answering.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_headers(HEAD_FIELDS).max_buf_size(HEAD_BYTES);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // How a conversation ended interests nobody: who asked knows.
    if timeout(LIFE.0, &mut connection).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LIFE.1, connection).await;
    }
}
