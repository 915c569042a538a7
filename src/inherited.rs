//! Listening sockets that this process was given: by a service manager (socket activation), or by the process whose place it takes.
//!
//! They come in the form of `sd_listen_fds(3)`: descriptors from 3 on, as many as `$LISTEN_FDS` says. Whoever listens asks for those of its address;
//! what nobody asked for is told and closed. Must not know who listens.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use listenfd::ListenFd;

/// Set beside `$LISTEN_FDS` by a process that wants to be replaced: the last descriptor is a stream to it.
pub const PREDECESSOR: &str = "MERIDIAN_PREDECESSOR";

/// What was given and not yet asked for.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<TcpListener>,
    unix: Vec<UnixListener>,
    /// Where any port was asked for, the one that was given then: the address as configured, and as bound.
    ports: Vec<(SocketAddr, SocketAddr)>,
}

/// Takes what the environment names, and forgets it there. With the stream to the process whose place is to be taken, if there is one. To be called
/// before anything opens a descriptor.
pub fn take() -> io::Result<(Inherited, Option<UnixStream>)> {
    let mut given = ListenFd::from_env();
    let (mut inherited, mut count) = (Inherited::default(), given.len());
    let mut predecessor = None;
    if count > 0 && std::env::var_os(PREDECESSOR).is_some() {
        count -= 1;
        let stream = given.take_custom(count, libc::AF_UNIX, libc::SOCK_STREAM, "stream to another process")?;
        predecessor = stream;
    }
    for number in 0..count {
        if let Ok(Some(listener)) = given.take_tcp_listener(number) {
            inherited.tcp.push(listener);
        } else if let Some(listener) = given.take_unix_listener(number)? {
            inherited.unix.push(listener);
        }
    }
    Ok((inherited, predecessor))
}

impl Inherited {
    /// Which ports were given where any was asked for.
    pub fn set_ports(&mut self, ports: Vec<(SocketAddr, SocketAddr)>) {
        self.ports = ports;
    }

    /// The sockets of that address, as configured: none, or as many as the giver had.
    pub fn tcp(&mut self, address: SocketAddr) -> Vec<TcpListener> {
        let known = self.ports.iter().position(|(configured, _)| *configured == address);
        // Each once: several lines may ask for any port of one address.
        let address = known.map_or(address, |index| self.ports.remove(index).1);
        let is_meant = |listener: &mut TcpListener| listener.local_addr().is_ok_and(|local| local == address);
        self.tcp.extract_if(.., is_meant).collect()
    }

    /// The socket at that path.
    pub fn unix(&mut self, path: &Path) -> Option<UnixListener> {
        let is_meant = |listener: &UnixListener| {
            listener.local_addr().is_ok_and(|local| local.as_pathname().is_some_and(|bound| bound == path))
        };
        self.unix.iter().position(is_meant).map(|index| self.unix.remove(index))
    }

    /// Closes what is left, of which nobody knows anything; a socket's file goes, too, if it was `ours`.
    pub fn close(self, ours: bool) {
        for address in self.tcp.iter().filter_map(|listener| listener.local_addr().ok()) {
            tracing::warn!(%address, "a listening socket was given that no [[listen]] names: it is closed");
        }
        for address in self.unix.iter().filter_map(|listener| listener.local_addr().ok()) {
            let Some(path) = address.as_pathname() else { continue };
            tracing::warn!(path = %path.display(), "a listening socket was given that [admin] does not name: it is closed");
            if ours {
                // A file that is gone already is what is wanted.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}
