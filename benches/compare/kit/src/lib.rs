//! What `origin` and `load` share: waiting for many sockets at once.
//!
//! Both are one thread around one epoll, without a runtime, because they share a core and whatever they take there shows as
//! latency of the proxy between them. epoll is called through rustix, not mio: a load at a fixed rate must wake within
//! microseconds of the moment a request is due, and mio rounds timeouts up to milliseconds.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// What a socket is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, or the end.
    Read,
    /// Room to write; of a new connection: that it is made.
    Write,
}

impl Interest {
    const fn flags(self) -> EventFlags {
        match self {
            Interest::Read => EventFlags::IN,
            Interest::Write => EventFlags::OUT,
        }
    }
}

/// Sockets by number. A socket that is closed is forgotten by itself.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
}

impl Poller {
    /// Without any socket.
    pub fn new() -> io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)?, events: Vec::with_capacity(1024) })
    }

    /// Waits for `socket` from now on and calls it `number`.
    pub fn add(&self, socket: impl AsFd, number: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(number as u64), interest.flags())?)
    }

    /// Waits for something else on a socket that was added.
    pub fn change(&self, socket: impl AsFd, number: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(number as u64), interest.flags())?)
    }

    /// Puts the numbers of the sockets that are ready into `ready`, none after `timeout`. A number may come up for a socket that
    /// has been replaced in the meantime, so whoever reads must be prepared to find nothing.
    pub fn wait(&mut self, ready: &mut Vec<usize>, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs().cast_signed(), tv_nsec: t.subsec_nanos().into() });
        ready.clear();
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        ready.extend(self.events.iter().map(|event| event.data.u64() as usize));
        Ok(())
    }
}
