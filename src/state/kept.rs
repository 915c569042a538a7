//! Operators' words over restarts: one small file in the state directory; and another one with a sample of each service's clients.
//!
//! It is written whole to a temporary file, synced and renamed, so that a crash leaves the old words or the new ones. It is read
//! before anything is published. A file that cannot be read is moved aside and told; it never keeps a proxy from starting, for a
//! region that takes traffic against an operator's word is a lesser harm than none that takes any.
//!
//! Without a directory words are kept in memory only, and whoever says one is told.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::geo::Canonical;
use crate::steering::balance::Sample;
use crate::steering::clients::{self, Clients};
use crate::steering::fleet::Service;
use crate::steering::{Event, Override, Overrides, Snapshot};

/// The file's name in the state directory.
const NAME: &str = "overrides.json";

/// The same of what was seen of clients.
const CLIENTS: &str = "clients.json";

/// What ends the name of a file that is being written.
const NEW: &str = ".new";

/// Nothing takes as long to write.
const STALE: Duration = Duration::from_secs(3600);

/// Grows when an older meridian would misunderstand what is written.
const VERSION: u32 = 1;

/// More than any operator can have said.
const MOST_BYTES: u64 = 16 << 20;

/// Twice what as many services as there can be have.
const MOST_CLIENTS: u64 = 64 << 20;

/// Where words are kept.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    file: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Content {
    version: u32,
    overrides: Vec<Override>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    overrides: Vec<&'a Override>,
}

/// The networks of each service's sample.
#[derive(Deserialize, Serialize)]
struct Seen {
    version: u32,
    services: BTreeMap<String, SeenOf>,
}

#[derive(Deserialize, Serialize)]
struct SeenOf {
    thin: u32,
    networks: Vec<IpAddr>,
}

/// The samples of services as they were kept.
#[derive(Default)]
pub struct Remembered(BTreeMap<String, SeenOf>);

impl Remembered {
    /// Who was seen to ask for each service, where enough were.
    pub fn sample(&self) -> Sample {
        let networks = self.0.iter().map(|(service, seen)| (service.clone(), seen.networks().collect()));
        networks.filter(|(_, networks): &(_, Vec<_>)| networks.len() >= clients::ENOUGH).collect()
    }

    /// Gives the services of `snapshot` the clients that were seen of them.
    pub(super) fn recall(&self, snapshot: &Snapshot) {
        for (service, seen) in &self.0 {
            let Some(id) = snapshot.fleet().service_named(service) else { continue };
            snapshot.clients[id.index()].recall(seen.thin, seen.networks());
        }
    }
}

impl SeenOf {
    /// No more than there can be, whatever the file says.
    fn networks(&self) -> impl Iterator<Item = Canonical> + '_ {
        self.networks.iter().take(clients::SIZE).copied().map(Canonical::new)
    }
}

impl Kept {
    /// In that directory, or nowhere.
    pub fn in_directory(state_dir: Option<&Path>) -> Kept {
        Kept { file: state_dir.map(|folder| folder.join(NAME)) }
    }

    /// The file, if there is to be one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The words that were in force, the oldest first; an event when they cannot be read.
    pub(super) fn read(&self) -> (Vec<Override>, Option<Event>) {
        let Some(file) = &self.file else { return (Vec::new(), None) };
        match read(file) {
            Ok(words) => (words, None),
            Err(why) => {
                let aside = file.with_extension("json.broken");
                let next = match fs::rename(file, &aside) {
                    Ok(()) => format!(
                        "it is now {}; look what was in force there and say it again with `meridian set`",
                        aside.display()
                    ),
                    Err(error) => format!(
                        "it cannot be moved aside ({error}); say what shall be in force with `meridian set`, and remove it"
                    ),
                };
                let event = Event::OverridesLost { file: file.display().to_string(), error: format!("{why}; {next}") };
                (Vec::new(), Some(event))
            }
        }
    }

    /// Writes the words down, to last. Blocks.
    pub(super) fn write(&self, overrides: &Overrides) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let words = Written { version: VERSION, overrides: overrides.iter().map(|word| &**word).collect() };
        let mut text = serde_json::to_vec_pretty(&words)?;
        text.push(b'\n');
        write_whole(file, 0o644, &text)
    }

    /// The sample of clients beside it.
    fn clients(&self) -> Option<PathBuf> {
        Some(self.file.as_ref()?.with_file_name(CLIENTS))
    }

    /// Which clients were seen before. They are worth something, but no more than that: what cannot be read is not there. Blocks.
    pub fn remembered(&self) -> Remembered {
        let Some(file) = self.clients() else { return Remembered::default() };
        match read_json::<Seen>(&file, MOST_CLIENTS) {
            Ok(Some(seen)) if seen.version == VERSION => Remembered(seen.services),
            Ok(_) => Remembered::default(),
            Err(error) => {
                tracing::warn!(file = %file.display(), error, "the sample of clients cannot be read");
                Remembered::default()
            }
        }
    }

    /// Writes down which clients were seen. Blocks.
    pub fn write_clients(&self, snapshot: &Snapshot) -> io::Result<()> {
        let Some(file) = self.clients() else { return Ok(()) };
        let of = |(service, clients): (&Service, &Arc<Clients>)| {
            let networks = clients.networks().into_iter().map(Canonical::ip).collect();
            (service.name.clone(), SeenOf { thin: clients.thin(), networks })
        };
        let services = snapshot.fleet().services.iter().zip(&snapshot.clients).map(of).collect();
        write_whole(&file, 0o600, &serde_json::to_vec(&Seen { version: VERSION, services })?)
    }
}

/// Whoever reads finds the old content or the new one, never a part. `mode`: who may, as far as the umask lets them. Others may write the same file at the
/// same time, in this process or another one that shares the folder: the last one's content stays.
pub fn write_whole(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    remove_stale(file);
    // Two processes in containers may have the same number.
    let aside = with_ending(file, &format!(".{}-{:08x}{NEW}", std::process::id(), fastrand::u32(..)));
    let written = write_new(&aside, mode, content).and_then(|()| fs::rename(&aside, file));
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written?;
    // The new name lasts only when the folder does.
    File::open(folder)?.sync_all()
}

fn write_new(file: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let mut new = OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
    new.write_all(content)?;
    new.sync_all()
}

/// Removes what was written aside and never took the file's name: whoever wrote it is gone. What is young may be somebody's who writes now.
#[expect(clippy::disallowed_methods, reason = "a shell: ages are as of now")]
fn remove_stale(file: &Path) {
    let (Some(name), Some(folder)) = (file.file_name().and_then(|name| name.to_str()), file.parent()) else { return };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let is_aside = |entry: &str| {
            let middle = entry.strip_prefix(name).and_then(|rest| rest.strip_suffix(NEW));
            middle.is_some_and(|middle| {
                middle.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b'-'))
            })
        };
        if !entry.file_name().to_str().is_some_and(is_aside) {
            continue;
        }
        let written = entry.metadata().and_then(|meta| meta.modified());
        let age = written.ok().and_then(|written| SystemTime::now().duration_since(written).ok());
        if age.is_some_and(|age| age > STALE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn with_ending(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn read(file: &Path) -> Result<Vec<Override>, String> {
    let Some(content) = read_json::<Content>(file, MOST_BYTES)? else { return Ok(Vec::new()) };
    if content.version != VERSION {
        return Err(format!("it has version {}, and this meridian knows version {VERSION}", content.version));
    }
    Ok(content.overrides)
}

/// The content of a file of at most so many bytes; `None`: there is none.
fn read_json<T: DeserializeOwned>(file: &Path, most: u64) -> Result<Option<T>, String> {
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
        Ok(meta) if !meta.is_file() => return Err("it is not a regular file".to_owned()),
        Ok(meta) if meta.len() > most => return Err(format!("it is larger than {} MiB", most >> 20)),
        Ok(_) => {}
    }
    let text = fs::read(file).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map(Some).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steering::Target;
    use crate::steering::fleet::Intent;

    fn words() -> Vec<Override> {
        let word = |kind, name: &str, until_ms| Override {
            kind,
            name: name.to_owned(),
            state: Intent::Drain,
            reason: "a \"reason\"\n".to_owned(),
            who: "alice".to_owned(),
            set_ms: 1,
            until_ms,
        };
        vec![word(Target::Region, "eu-*", Some(5)), word(Target::Endpoint, "10.0.0.1:80", None)]
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::in_directory(Some(&folder.path().join("made/when/needed")));
        assert_eq!(kept.read(), (Vec::new(), None), "nothing was said yet");
        for words in [words(), words()[..1].to_vec(), Vec::new()] {
            kept.write(&words.iter().cloned().collect()).unwrap();
            assert_eq!(kept.read(), (words, None));
        }
        let names: Vec<_> = fs::read_dir(kept.file().unwrap().parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "no temporary file is left");
    }

    #[test]
    fn what_others_write_at_the_same_time_is_theirs_and_what_they_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (old, others) =
            (["a.pem.new", "a.pem.17-0000abcd.new"], ["a.pem.18-0000abcd.new", "b.a.pem.new", "a.pem.x.new"]);
        for name in old.iter().chain(&others) {
            fs::write(at(name), name).unwrap();
        }
        for name in old.iter().chain(&others[1..]) {
            let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
            File::options().write(true).open(at(name)).unwrap().set_modified(long_ago).unwrap();
        }
        write_whole(&at("a.pem"), 0o600, b"new").unwrap();
        assert_eq!(fs::read(at("a.pem")).unwrap(), b"new");
        assert!(old.iter().all(|name| !at(name).exists()), "stale");
        assert!(others.iter().all(|name| at(name).exists()), "of others");
        // One that cannot take its name leaves nothing.
        fs::create_dir_all(at("c/c.pem/x")).unwrap();
        assert!(write_whole(&at("c/c.pem"), 0o600, b"new").is_err());
        assert_eq!(fs::read_dir(at("c")).unwrap().count(), 1);
        // Many at once.
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| (0..25).for_each(|_| write_whole(&at("d.pem"), 0o600, b"new").unwrap()));
            }
        });
    }

    #[test]
    fn without_a_directory_nothing_is_kept() {
        let kept = Kept::in_directory(None);
        kept.write(&words().into_iter().collect()).unwrap();
        assert_eq!((kept.file(), kept.read()), (None, (Vec::new(), None)));
    }

    #[test]
    fn a_broken_file_is_moved_aside_and_told() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::in_directory(Some(folder.path()));
        let file = kept.file().unwrap().to_owned();
        let half = serde_json::to_string(&words()).unwrap();
        for text in [
            &b""[..],
            b"{\"version\":1,\"overrides\":[{\"kind\":\"region\"",
            b"\xff\xfe",
            b"{\"version\":2,\"overrides\":[]}",
            half.as_bytes(),
        ] {
            fs::write(&file, text).unwrap();
            let (words, event) = kept.read();
            let said = event.expect("an event").to_string();
            assert!(words.is_empty() && said.contains("meridian set") && !file.exists(), "{said}");
            assert_eq!(fs::read(folder.path().join("overrides.json.broken")).unwrap(), text);
        }
        fs::create_dir(&file).unwrap();
        assert!(kept.read().1.is_some(), "a folder of that name");
    }
}
