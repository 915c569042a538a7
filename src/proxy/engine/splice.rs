//! Long bodies that pass as they are: from socket to socket through a pipe, without coming into this process.
//!
//! Copying a long body is most of what it costs, and nobody here looks at its bytes. So once a read has filled its buffer and enough
//! of a known length is left, the kernel moves the payload itself (`splice`): into a pipe, then out of it. How much is
//! moved is counted as if it had been read and written, so deadlines, rates and the log know no difference. A pipe is held only while it holds
//! bytes, as a buffer is, and otherwise lies in its thread's stock; one with bytes in it, of an answer that ended early, is closed: what is in it
//! is nobody else's. Never more than the body's rest is moved, so what comes after it stays in its socket, where the
//! next look at the connection finds it.
//!
//! Only between plain sockets ([`Side::socket`]) and on Linux. Whenever it cannot be, bytes are copied. Refused: filling a pipe that is not empty
//! (then nobody could tell whether the pipe or the socket had to be waited for), bodies in chunks (their framing is ours), requests
//! (they may have to be kept), and a message to the kernel that more will come (it would hold the last bytes back).

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest};
use tokio::net::TcpStream;

use super::stock::Stock;
use crate::socket::Socket;

/// Bytes of a body that have to be left: for fewer, copying costs as little.
pub(super) const LEAST: u64 = 64 << 10;

/// Bytes that a pipe is asked to hold.
const ROOM: usize = 256 << 10;

/// A pipe that holds less would be filled too often. It is what a pipe holds that is not asked.
const LEAST_ROOM: usize = 64 << 10;

/// Pipes at once, those of all threads together: 64 MiB and two descriptors each. For no more than that do Linux's defaults let one user ask.
const MOST: usize = 256;

/// Empty pipes that a thread keeps.
const STOCK: usize = 16;

/// The pipes that there are.
static PIPES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: Stock<Ends> = const { Stock::new(STOCK) };
}

/// What broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broke {
    /// The connection.
    Connection,
    /// The same, and the other side said that it did not look at the request, which may be sent again whatever it does.
    ConnectionUnseen,
    /// The request alone: the other side gave it up.
    Request,
    /// The request alone, and it was not looked at.
    RequestUnseen,
    /// What the other side sent was nonsense.
    Nonsense,
}

/// One side of an exchange: a stream, and whether the kernel may be told to move its bytes.
pub trait Side: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket that takes and gives just the bytes that are written to this and read from it, for as long as this is. `None`: they are changed or
    /// kept on the way, or there is none.
    fn socket(&self) -> Option<&TcpStream> {
        None
    }

    /// Where the other side came to, should that be known.
    fn local_address(&self) -> Option<SocketAddr> {
        self.socket()?.local_addr().ok()
    }

    /// What broke, once reading or writing failed. HTTP/1.1 cannot say more than that the connection did.
    fn broke(&self) -> Broke {
        Broke::Connection
    }

    /// Says before this is dropped that all that was to be sent on it was: where an end can be told from a cut, it is to be an end.
    fn close(&mut self) {}
}

impl Side for Socket {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self.stream())
    }
}

impl Side for DuplexStream {}

/// Bytes on their way from one socket to another.
#[derive(Debug)]
pub(super) struct Pipe {
    /// Taken only when dropped.
    ends: Option<Ends>,
    /// Bytes in it.
    held: usize,
}

/// Both ends of a pipe. Counted among [`PIPES`].
#[derive(Debug)]
struct Ends {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    /// An empty one, unless there are too many, or the system gives none that is worth it.
    pub(super) fn take() -> Option<Pipe> {
        let ends = Stock::take(&SPARE).or_else(Ends::new)?;
        Some(Pipe { ends: Some(ends), held: 0 })
    }

    /// Moves up to `most` bytes that came into the pipe, which has to be empty. 0: the other side closed.
    pub(super) fn poll_fill(&mut self, from: &TcpStream, most: u64, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        debug_assert_eq!(self.held, 0);
        let most = usize::try_from(most).map_or(ROOM, |most| most.min(ROOM));
        let Some(ends) = &self.ends else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let moved = ready!(poll_move(from, Interest::READABLE, cx, || {
            kernel::splice(from.as_fd(), ends.into.as_fd(), most)
        }))?;
        self.held = moved;
        Poll::Ready(Ok(moved))
    }

    /// Moves some of the bytes that it holds on.
    pub(super) fn poll_drain(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(ends) = &self.ends else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        let moved = ready!(poll_move(to, Interest::WRITABLE, cx, || {
            kernel::splice(ends.out.as_fd(), to.as_fd(), self.held)
        }))?;
        self.held -= moved;
        Poll::Ready(Ok(moved))
    }
}

/// Calls `once` whenever the socket is ready for it, until it has an answer.
fn poll_move(
    socket: &TcpStream,
    interest: Interest,
    cx: &mut Context<'_>,
    once: impl Fn() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(if interest.is_readable() { socket.poll_read_ready(cx) } else { socket.poll_write_ready(cx) })?;
        match socket.try_io(interest, &once) {
            // The runtime knows it now, too, and wakes us.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if let (Some(ends), 0) = (self.ends.take(), self.held) {
            Stock::keep(&SPARE, ends);
        }
    }
}

impl Ends {
    fn new() -> Option<Ends> {
        if PIPES.fetch_add(1, Relaxed) >= MOST {
            PIPES.fetch_sub(1, Relaxed);
            return None;
        }
        let Ok((out, into)) = kernel::pipe() else {
            PIPES.fetch_sub(1, Relaxed);
            return None;
        };
        let ends = Ends { out, into };
        (kernel::room(&ends.into, ROOM) >= LEAST_ROOM).then_some(ends)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        PIPES.fetch_sub(1, Relaxed);
    }
}

/// What is asked of the system.
#[cfg(target_os = "linux")]
mod kernel {
    use super::{BorrowedFd, OwnedFd, io};
    use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

    pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?)
    }

    /// Asks for so much room, and tells what it is then.
    pub(super) fn room(pipe: &OwnedFd, wanted: usize) -> usize {
        fcntl_setpipe_size(pipe, wanted).or_else(|_| fcntl_getpipe_size(pipe)).unwrap_or(0)
    }

    /// Moves what can be moved now. A client that is gone raises no signal: Rust's start ignores `SIGPIPE`.
    pub(super) fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        Ok(rustix::io::retry_on_intr(|| rustix::pipe::splice(from, None, to, None, most, flags))?)
    }
}

/// Elsewhere bytes are copied.
#[cfg(not(target_os = "linux"))]
mod kernel {
    use super::{BorrowedFd, OwnedFd, io};

    pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn room(_: &OwnedFd, _: usize) -> usize {
        0
    }

    pub(super) fn splice(_: BorrowedFd<'_>, _: BorrowedFd<'_>, _: usize) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
