//! # meridian
//!
//! Each HTTP request to the nearest healthy data center. This page is the map; ARCHITECTURE.md tells how the rooms meet.
//!
//! - [`geo`]: bytes to a place. Databases and geofeeds are read once into a flat table from address to place.
//! - [`steering`]: the core. Changes go in by one door and snapshots come out; clients ask at the other, and steps come out.
//! - [`config`]: text to what a process can run with, every mistake reported at once.
//! - [`telemetry`]: metrics, the line per request, the process log, spans of traces.
//! - [`state`]: the one writer's task, and what it publishes.
//! - [`proxy`]: the phases of a request, free of sockets; `proxy::engine` (ours) and `proxy::pingora` move the bytes.
//! - [`listen`]: sockets, admission and the life of connections, up to the first byte of HTTP.
//! - [`rate`]: how often something may happen for one client network.
//! - [`turn`]: what a busy worker does first.
//! - [`inherited`], [`upgrade`]: sockets that another process gave to this one, and how one takes the place of another.
//! - [`probe`], [`resolve`], [`watch`]: what keeps the world known: active checks, endpoint names, changed files.
//! - [`acme`]: certificates that an authority issues: ordered, kept, renewed; and the answers when it asks whether names are ours.
//! - [`load`], [`disk`]: files to a configuration and an atlas, whole or with a reason.
//! - [`admin`]: pages for operators and Prometheus. [`notify`]: words for the service manager.
//! - [`proxy_protocol`]: whose connection it is, said in a header before it.
//! - [`text`]: numbers, addresses and names as bytes. [`secret`]: keys and tokens, never shown. [`memory`], [`pressure`]: how much the process has, and
//!   whether it is too much; what is asked of the allocator.
//! - [`server`]: composition: builds every part, hands it what it needs, starts and ends it.
//! - [`cli`], [`demo`], [`origin`]: the command line, the demo, and the origin server of demos and tests.
//! - [`drill`]: outages played with real processes, measured from outside, beside peers.

#![deny(unsafe_code)]

pub mod acme;
pub mod admin;
pub mod cli;
pub mod config;
pub mod demo;
pub mod disk;
pub mod drill;
pub mod geo;
pub mod inherited;
pub mod listen;
pub mod load;
pub mod memory;
pub mod notify;
pub mod origin;
pub mod pressure;
pub mod probe;
pub mod proxy;
pub mod proxy_protocol;
pub mod rate;
pub mod resolve;
pub mod secret;
pub mod server;
pub mod socket;
pub mod state;
pub mod steering;
pub mod telemetry;
pub mod text;
pub mod turn;
pub mod upgrade;
pub mod watch;
