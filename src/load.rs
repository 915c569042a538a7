//! From files to something to publish: configuration text, geo data, and the tables compiled of both.
//!
//! One loader serves the start, every reload and the command line, so that `check` finds what `run` would find. It remembers what
//! it made last: geo data is read again only when its files changed, and tables whose inputs did not change are taken over.
//! It also remembers what it looked at ([`Inputs`]), so that whoever watches files needs no idea of includes or databases.
//!
//! Everything here blocks, up to seconds for the largest databases: never call it on the request path or from a task.

mod stand_ins;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{self, AdminDoors, Config, DatabaseSource, Edge, Files, GeoFiles, Report};
use crate::disk::DiskFiles;
use crate::geo::{Atlas, AtlasBuilder, builtin};
use crate::steering::View;
use crate::steering::balance::Sample;
use crate::text::day;
use stand_ins::StandIns;

/// Days after which data is worth a warning: an operator's file should be replaced monthly, the builtin one comes with releases.
const OLD_FILE_DAYS: u64 = 35;
const OLD_BUILTIN_DAYS: u64 = 180;

/// Days before a certificate's end at which it is worth a warning: who renews by machine does so a month before.
const ENDING_DAYS: i64 = 14;

/// Reads configurations and their data. See the module.
#[derive(Debug, Default)]
pub struct Loader {
    inputs: Inputs,
    last: Option<Last>,
    sample: Sample,
    stand_ins: StandIns,
}

/// What the last successful load made.
#[derive(Clone, Debug)]
pub struct Last {
    /// The configuration's own files as they were.
    config: Inputs,
    geoip: GeoFiles,
    /// The data files as they were when `view`'s atlas was built of them.
    data: Inputs,
    view: View,
}

/// A configuration that can be published.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Its fleet and geo data, compiled.
    pub view: View,
    /// Why new geo data was refused, if it was; `view` then holds the old data.
    pub stale_data: Option<String>,
    /// Whether anything differs from the last load but files whose data was refused.
    pub changed: bool,
}

/// Why nothing can be published.
#[derive(Debug)]
pub enum LoadError {
    /// The configuration is wrong; every mistake is in the report.
    Config(Report),
    /// Geo data cannot be used; every source that was refused.
    Data(Vec<RefusedData>),
}

/// A source of geo data that cannot be used.
#[derive(Debug)]
pub struct RefusedData {
    /// `builtin` or the file.
    pub name: String,
    /// What is wrong with it.
    pub cause: String,
}

impl fmt::Display for RefusedData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "geo data {}: {}", self.name, self.cause)
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadError::Config(report) => report.fmt(f),
            LoadError::Data(refused) => {
                for (n, refused) in refused.iter().enumerate() {
                    write!(f, "{}{refused}", if n == 0 { "" } else { "\n" })?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for LoadError {}

/// Where the process answers that runs this configuration, whatever else is wrong with it here.
pub fn admin_doors(path: &Path) -> Result<AdminDoors, LoadError> {
    config::admin_doors(path, &DiskFiles, &|name| std::env::var(name).ok()).map_err(LoadError::Config)
}

impl Loader {
    /// Reads and compiles the configuration without its data.
    pub fn config(&mut self, path: &Path) -> Result<Config, LoadError> {
        let files = Recorder::default();
        let mut result = config::load(path, &files, &|name| std::env::var(name).ok(), &host_name());
        if let Ok(config) = &mut result {
            self.stand_ins.give(Arc::make_mut(&mut config.edge), &files, unix_now());
        }
        self.inputs = files.seen.into_inner();
        result.map_err(LoadError::Config)
    }

    /// Reads and compiles everything. Geo data that was readable before and is not now is no error: the old data is kept and
    /// [`Loaded::stale_data`] says why.
    pub fn load(&mut self, path: &Path) -> Result<Loaded, LoadError> {
        let config = self.config(path)?;
        let config_inputs = self.inputs.clone();
        let data = Inputs::of(data_files(&config.geoip));
        self.inputs.files.extend(data.files.clone());

        for warning in ending(&config.edge) {
            tracing::warn!("{warning}");
        }
        self.stand_ins.tell();
        let last = self.last.as_ref().filter(|last| last.geoip == config.geoip);
        let mut stale_data = None;
        let atlas = match last.filter(|last| last.data == data) {
            Some(last) => last.view.atlas.clone(),
            None => match (atlas(&config.geoip), last) {
                (Ok(atlas), _) => {
                    warn_of_age(&atlas);
                    Arc::new(atlas)
                }
                (Err(error), Some(last)) => {
                    stale_data = Some(error.to_string());
                    last.view.atlas.clone()
                }
                (Err(error), None) => return Err(error),
            },
        };
        let changed = stale_data.is_none() || self.last.as_ref().is_none_or(|last| last.config != config_inputs);
        let view =
            View::compile_for(&self.sample, config.fleet.clone(), atlas, self.last.as_ref().map(|last| &last.view));
        let data = match (&stale_data, last) {
            // The atlas is still the one made of the files as they were.
            (Some(_), Some(last)) => last.data.clone(),
            _ => data,
        };
        self.last = Some(Last { config: config_inputs, geoip: config.geoip.clone(), data, view: view.clone() });
        Ok(Loaded { config, view, stale_data, changed })
    }

    /// Says who was seen to ask for services: what is balanced is balanced for them.
    pub fn seen(&mut self, sample: Sample) {
        self.sample = sample;
    }

    /// Says what is in force: of certificates that are ordered and have been lost, what was shown stays.
    pub fn in_force(&mut self, edge: Arc<Edge>) {
        self.stand_ins.in_force(edge);
    }

    /// Says that this is published now, made of what the last load made.
    pub fn published(&mut self, view: View) {
        if let Some(last) = &mut self.last {
            last.view = view;
        }
    }

    /// What the last successful load made, for [`Loader::back_to`].
    pub fn last(&self) -> Option<Last> {
        self.last.clone()
    }

    /// Forgets what was made since: it was not published, and the next load starts from what is.
    pub fn back_to(&mut self, last: Option<Last>) {
        self.last = last;
    }

    /// A loader that made nothing yet and is said to have looked at `inputs`.
    pub fn watching(inputs: Inputs) -> Loader {
        Loader { inputs, ..Loader::default() }
    }

    /// What the last call looked at, whether it succeeded or not.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }
}

/// The default of `[pop] name`. Asked of the kernel: `/proc` may be hidden from a confined process.
fn host_name() -> String {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy();
    if name.is_empty() { "localhost".to_owned() } else { name.into_owned() }
}

fn data_files(geoip: &GeoFiles) -> impl Iterator<Item = &Path> {
    let databases = geoip.databases.iter().filter_map(|source| match source {
        DatabaseSource::Builtin => None,
        DatabaseSource::File(path) => Some(path.as_path()),
    });
    databases.chain(geoip.geofeeds.iter().map(PathBuf::as_path))
}

/// A refused source takes the builder with it; the others are read all the same, so that everything that is wrong is said at once.
fn atlas(geoip: &GeoFiles) -> Result<Atlas, LoadError> {
    let mut builder = AtlasBuilder::new();
    let mut refused = Vec::new();
    let mut add = |name: String, added: Result<AtlasBuilder, String>| {
        added.unwrap_or_else(|cause| {
            refused.push(RefusedData { name, cause });
            AtlasBuilder::new()
        })
    };
    for source in &geoip.databases {
        let (name, bytes) = match source {
            DatabaseSource::Builtin => (builtin::NAME.to_owned(), builtin::bytes()),
            DatabaseSource::File(path) => (path.display().to_string(), read(path)),
        };
        let added = bytes.map_err(|error| error.to_string());
        let added = added.and_then(|bytes| builder.database(&name, &bytes).map_err(|error| error.to_string()));
        builder = add(name, added);
    }
    for path in &geoip.geofeeds {
        let name = path.display().to_string();
        let added = read(path).map_err(|error| error.to_string());
        let added = added.and_then(|bytes| builder.geofeed(&name, &bytes).map_err(|error| error.to_string()));
        builder = add(name, added);
    }
    if refused.is_empty() { Ok(builder.build()) } else { Err(LoadError::Data(refused)) }
}

/// The bytes of a regular file: a device or pipe named by mistake would be read for ever.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn warn_of_age(atlas: &Atlas) {
    for (source, days) in outdated(atlas) {
        tracing::warn!(source, days, "geo data is old; places may have moved");
    }
}

/// What is to be said of certificates that are not valid now, or not for long.
pub fn ending(edge: &Edge) -> impl Iterator<Item = String> {
    let now = unix_now();
    let certificates = edge.tls.iter().flat_map(|(_, tls)| &tls.certificates);
    certificates.filter(|certificate| !certificate.placeholder).filter_map(move |certificate| {
        let (from, until) = certificate.valid;
        let left = until.saturating_sub(now);
        let what = match () {
            () if left < 0 => format!("ended on {}", day(until)),
            () if from > now => format!("is not valid before {}", day(from)),
            () if left < ENDING_DAYS * 86_400 => format!("ends on {}", day(until)),
            () => return None,
        };
        Some(format!("certificate {} {what}", certificate.file.display()))
    })
}

#[expect(clippy::disallowed_methods, reason = "a shell: certificates end by the calendar")]
fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64
}

/// The databases that are older than they should be, and their age in days.
#[expect(clippy::disallowed_methods, reason = "a shell: ages are as of now")]
pub fn outdated(atlas: &Atlas) -> impl Iterator<Item = (&str, u64)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    atlas.databases().iter().filter_map(move |source| {
        let days = now.saturating_sub(source.built_at) / 86_400;
        let most = if source.name == builtin::NAME { OLD_BUILTIN_DAYS } else { OLD_FILE_DAYS };
        (source.built_at > 0 && days > most).then_some((source.name.as_str(), days))
    })
}

/// Files and patterns, with what was seen of them at one moment. Two looks are equal when nothing changed in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inputs {
    /// `None`: it was not there or not readable.
    files: BTreeMap<PathBuf, Option<Print>>,
    patterns: BTreeMap<PathBuf, Vec<PathBuf>>,
}

/// What tells one state of a file from another without reading it: device, inode, size, and the nanoseconds of the last write and of
/// the last change of anything about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    file: (u64, u64),
    size: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl Print {
    fn of(path: &Path) -> Option<Print> {
        let meta = fs::metadata(path).ok()?;
        Some(Print {
            file: (meta.dev(), meta.ino()),
            size: meta.size(),
            written: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl Inputs {
    fn of<'a>(files: impl Iterator<Item = &'a Path>) -> Inputs {
        let files = files.map(|path| (path.to_owned(), Print::of(path))).collect();
        Inputs { files, patterns: BTreeMap::new() }
    }

    /// The same files and patterns, as they are now.
    pub fn look(&self) -> Inputs {
        let files = self.files.keys().map(|path| (path.clone(), Print::of(path))).collect();
        let patterns =
            self.patterns.keys().map(|pattern| (pattern.clone(), DiskFiles.glob(pattern).unwrap_or_default()));
        Inputs { files, patterns: patterns.collect() }
    }

    /// The files, whether they are there or not.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// The patterns by which further files may come.
    pub fn patterns(&self) -> impl Iterator<Item = &Path> {
        self.patterns.keys().map(PathBuf::as_path)
    }
}

/// Files on disk; notes each look before the reading, so that a change during it is seen as one afterwards.
#[derive(Default)]
struct Recorder {
    seen: RefCell<Inputs>,
}

impl Files for Recorder {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.seen.borrow_mut().files.insert(path.to_owned(), Print::of(path));
        DiskFiles.read(path)
    }

    fn glob(&self, pattern: &Path) -> io::Result<Vec<PathBuf>> {
        let found = DiskFiles.glob(pattern);
        self.seen.borrow_mut().patterns.insert(pattern.to_owned(), found.as_deref().unwrap_or_default().to_vec());
        found
    }
}
