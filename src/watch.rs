//! A file changed, or somebody asked: read, compile aside, publish. A bad file changes nothing.
//!
//! What is watched is folders, never files: an editor renames a new file over the old one, a ConfigMap swaps a link three names away,
//! and a new file appears in `conf.d`; none of them touches the inode that was there. An event only says "look": whether
//! anything changed is told by comparing what is there with what the loader saw ([`Inputs`]). So a log written to the
//! same folder reloads nothing, and a lost event (queue overflow, a folder made anew, a file system without events) costs at most the time to
//! the next look.
//!
//! There is one reload at a time, in the order of the events. One that would move more clients than `[process] brake` lets pass is refused
//! as a broken file is, unless whoever asked for it insists.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::notify::event::{AccessKind, AccessMode};
use ::notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::config::Boot;
use crate::load::{Inputs, LoadError, Loaded, Loader};
use crate::notify::{Stage, tell};
use crate::state::{Reader, ReloadRequest, Reloaded, Sender};
use crate::steering::{Event, View, balance, brake};
use crate::telemetry::Metrics;

/// Files must look the same for this long before they are read: nobody wants the first half of a file.
const QUIET: Duration = Duration::from_millis(50);

/// Events that come together make one look.
const GATHER: Duration = Duration::from_millis(5);

/// A file that never stops changing is read after so many looks; it is then read again and again, which at least shows.
const LOOKS: u32 = 10;

/// Without any event, a look this often.
const ANYWAY: Duration = Duration::from_secs(5);

/// Links that may lead to a link.
const LINKS: u32 = 40;

/// What the reloading task needs.
#[derive(Debug)]
pub struct Watch {
    /// The configuration.
    pub path: PathBuf,
    /// The loader that made what is published now.
    pub loader: Loader,
    /// What this process was started with.
    pub boot: Boot,
    /// Where new views go.
    pub sender: Sender,
    /// What is published.
    pub reader: Reader,
    /// Where results are counted.
    pub metrics: Metrics,
}

impl Watch {
    /// Reloads whenever a file changed, or on a message in `asked`, until the future is dropped.
    pub async fn run(mut self, mut asked: mpsc::Receiver<ReloadRequest>) {
        let (events, mut event) = mpsc::channel(1);
        let mut folders = Folders::new(events);
        let mut can_be_asked = true;
        // Something may have changed between the load and the first watch, and during every load after.
        let mut look_at_once = true;
        let mut balancing = interval(balance::EVERY);
        balancing.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is at once, and what was loaded is balanced.
        balancing.tick().await;
        loop {
            let mut request = None;
            if !look_at_once {
                tokio::select! {
                    received = asked.recv(), if can_be_asked => {
                        can_be_asked = received.is_some();
                        request = received;
                    }
                    Some(()) = event.recv() => sleep(GATHER).await,
                    () = sleep(ANYWAY) => {}
                    _ = balancing.tick() => self.balance().await,
                }
            }
            // Watched before looked at: what changes after the look makes an event. Each time, because a folder may be new.
            folders.watch(self.loader.inputs());
            look_at_once = settled(self.loader.inputs().clone(), request.is_some()).await;
            if look_at_once {
                self.reload(request.unwrap_or_default()).await;
            }
        }
    }

    /// Read, compile, publish; says how it went to the log, the metrics and the service manager.
    #[expect(clippy::disallowed_methods, reason = "a shell: reloads are dated")]
    async fn reload(&mut self, asked: ReloadRequest) {
        // Before the first READY=1 the service manager waits for that and nothing else.
        let managed = self.reader.is_ready();
        if managed {
            tell(Stage::Reloading);
        }
        let generation = self.generation();
        let last = self.loader.last();
        let loaded = self.load().await;
        // No word comes into force between the look at what it moves and its publication.
        let turn = self.sender.turn().await;
        let mut needs_restart = Vec::new();
        let error = match loaded {
            Ok(Ok(loaded)) => match self.braked(&loaded, &asked).await {
                None => {
                    needs_restart = self.boot.changed_keys(&loaded.config.boot);
                    self.publish(loaded, &needs_restart).await
                }
                Some(text) => {
                    self.loader.back_to(last);
                    tracing::error!(generation, "reload refused; what is published stays: {text}");
                    Some(text)
                }
            },
            Ok(Err(error)) => {
                let text = error.to_string();
                tracing::error!(generation, "reload refused; what is published stays\n{}", text.trim_end());
                Some(text)
            }
            Err(panic) => {
                tracing::error!(generation, %panic, "the reload failed by a mistake of ours; what is published stays");
                Some(panic.to_string())
            }
        };
        drop(turn);
        if let Some(error) = &error {
            let refused = Event::ReloadRefused { generation: self.generation(), error: error.clone() };
            self.metrics.event(&refused, SystemTime::now());
        }
        self.metrics.reloaded(SystemTime::now(), error.clone());
        if managed {
            tell(Stage::Ready(&format!("generation {}", self.generation())));
        }
        if let Some(done) = asked.done {
            // Who asked may have gone.
            let generation = self.generation();
            let _ = done.send(error.map_or_else(|| Ok(Reloaded { generation, needs_restart }), Err));
        }
    }

    /// Why the brake holds it back, if it does.
    async fn braked(&self, loaded: &Loaded, asked: &ReloadRequest) -> Option<String> {
        if !loaded.changed {
            return None;
        }
        let moves = match self.moves(loaded.view.clone()).await {
            Ok(moves) if moves.is_empty() => return None,
            Ok(moves) => moves,
            Err(panic) => {
                tracing::error!(%panic, "what a reload would move cannot be told, by a mistake of ours");
                return (!asked.force).then(|| {
                    format!("what it would move cannot be told: {panic}; `meridian reload --force` passes it")
                });
            }
        };
        let told = brake::told(&moves);
        if asked.force {
            tracing::warn!(who = asked.who, "reloads past the brake, which moves {told}");
            return None;
        }
        let brake = loaded.view.fleet.brake;
        Some(format!(
            "it would move {told}; more than [process] brake = {brake} has to be forced: `meridian reload --force`, or `brake = 100`"
        ))
    }

    async fn moves(&self, view: View) -> Result<Vec<brake::Moves>, JoinError> {
        let now = self.reader.load().snapshot.clone();
        spawn_blocking(move || brake::reload(&now, &view)).await
    }

    /// Has the offsets of balanced services follow their traffic.
    async fn balance(&mut self) {
        let published = self.reader.load();
        let now = Arc::clone(&published.snapshot);
        let moved = spawn_blocking(move || balance::follow(&now)).await;
        let moved = moved.inspect_err(|panic| tracing::error!(%panic, "not balanced anew, by a mistake of ours"));
        let Ok(Some(balances)) = moved else { return };
        let view = View { balances, ..published.snapshot.view.clone() };
        self.loader.published(view.clone());
        let generation = self.sender.publish(view, Arc::clone(&published.edge)).await;
        tracing::info!(generation, "balanced anew, by the traffic of the last hours");
    }

    fn generation(&self) -> u64 {
        self.reader.load().snapshot.generation
    }

    async fn load(&mut self) -> Result<Result<Loaded, LoadError>, JoinError> {
        let seen = self.loader.inputs().look();
        let published = self.reader.load();
        self.loader.seen(balance::sample(&published.snapshot));
        self.loader.in_force(Arc::clone(&published.edge));
        let (mut loader, path) = (std::mem::take(&mut self.loader), self.path.clone());
        let done = spawn_blocking(move || {
            let result = loader.load(&path);
            (loader, result)
        });
        match done.await {
            Ok((loader, result)) => {
                self.loader = loader;
                Ok(result)
            }
            Err(panic) => {
                self.loader = Loader::watching(seen);
                Err(panic)
            }
        }
    }

    /// Returns what was refused of it all the same.
    async fn publish(&self, loaded: Loaded, needs_restart: &[&str]) -> Option<String> {
        let Loaded { config, view, stale_data, changed } = loaded;
        if !config.warnings.is_empty() {
            tracing::warn!("warnings of the configuration\n{}", config.warnings.to_string().trim_end());
        }
        if !needs_restart.is_empty() {
            tracing::warn!(
                "changed, but needs a restart: {} (`meridian upgrade` does without one)",
                needs_restart.join(", ")
            );
        }
        if let Some(cause) = &stale_data {
            tracing::error!("new geo data refused, the old stays: {cause}");
        }
        if changed {
            let generation = self.sender.publish(view, config.edge).await;
            tracing::info!(generation, "reloaded");
        }
        stale_data
    }
}

/// Whether there is something to reload, once nothing moves any more. `explicit`: there is, in any case.
async fn settled(seen: Inputs, explicit: bool) -> bool {
    let look = |inputs: Inputs| async move {
        // Files may be on a network's disk.
        let back = inputs.clone();
        spawn_blocking(move || inputs.look()).await.unwrap_or(back)
    };
    let mut now = look(seen.clone()).await;
    if !explicit && now == seen {
        return false;
    }
    for _ in 0..LOOKS {
        sleep(QUIET).await;
        let next = look(seen.clone()).await;
        if next == now {
            break;
        }
        now = next;
    }
    explicit || now != seen
}

/// The folders under watch.
struct Folders {
    /// `None`: the system gives no events; looks go on.
    watcher: Option<RecommendedWatcher>,
    /// Each with its device and inode when it was put under watch: a folder made anew under the old name has no watch.
    watched: HashMap<PathBuf, (u64, u64)>,
}

impl Folders {
    fn new(events: mpsc::Sender<()>) -> Folders {
        let watcher = ::notify::recommended_watcher(move |event: ::notify::Result<::notify::Event>| {
            if matters(&event) {
                // Full: a look is due already.
                let _ = events.try_send(());
            }
        });
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(%error, "no file events; files are looked at every {} s instead", ANYWAY.as_secs());
        });
        Folders { watcher: watcher.ok(), watched: HashMap::new() }
    }

    /// Puts the folders of `inputs` under watch, and no others.
    fn watch(&mut self, inputs: &Inputs) {
        let Some(watcher) = &mut self.watcher else { return };
        let mut wanted: Vec<PathBuf> = inputs.files().chain(inputs.patterns()).flat_map(folders).collect();
        wanted.sort();
        wanted.dedup();
        self.watched.retain(|folder, _| {
            let keep = wanted.binary_search(folder).is_ok();
            if !keep {
                let _ = watcher.unwatch(folder);
            }
            keep
        });
        for folder in wanted {
            let Ok(meta) = fs::metadata(&folder) else { continue };
            let id = (meta.dev(), meta.ino());
            if self.watched.get(&folder) == Some(&id) {
                continue;
            }
            if self.watched.remove(&folder).is_some() {
                let _ = watcher.unwatch(&folder);
            }
            match watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.watched.insert(folder, id)),
                Err(error) => {
                    tracing::debug!(%error, folder = %folder.display(), "no events from this folder; its files are looked at all the same");
                }
            }
        }
    }
}

/// Whether an event can mean that a file has another content. Our own reading makes events, too.
fn matters(event: &::notify::Result<::notify::Event>) -> bool {
    match event {
        Ok(event) => match event.kind {
            EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
            _ => true,
        },
        // Whatever went wrong, a look puts it right.
        Err(_) => true,
    }
}

/// The folders in which something may happen that makes `path` another file: its own, and that of every link on the way to it. Where the way
/// ends early, the last folder there is.
fn folders(path: &Path) -> Vec<PathBuf> {
    let Ok(path) = std::path::absolute(path) else { return Vec::new() };
    let mut found = Vec::new();
    let mut links = 0;
    let mut here = PathBuf::from("/");
    // Reversed: the next component is the last one.
    let mut rest: Vec<PathBuf> = names(&path);
    while let Some(name) = rest.pop() {
        if name == Path::new("..") {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        if let Ok(target) = fs::read_link(&next) {
            found.push(here.clone());
            links += 1;
            if links > LINKS {
                return found;
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            rest.extend(names(&target));
        } else if rest.is_empty() || !next.exists() {
            found.push(here);
            return found;
        } else {
            here = next;
        }
    }
    found
}

/// The components of a path but for the root, the last one first.
fn names(path: &Path) -> Vec<PathBuf> {
    let inner = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    inner.map(|c| PathBuf::from(c.as_os_str())).rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn every_link_on_the_way_has_its_folder_watched() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mounted = root.join("mounted");
        fs::create_dir_all(mounted.join("..1")).unwrap();
        fs::write(mounted.join("..1/a.toml"), "").unwrap();
        symlink("..1", mounted.join("..data")).unwrap();
        symlink("..data/a.toml", mounted.join("a.toml")).unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        symlink(mounted.join("a.toml"), root.join("etc/a.toml")).unwrap();

        let mut found = folders(&root.join("etc/a.toml"));
        found.sort();
        found.dedup();
        assert_eq!(found, [root.join("etc"), mounted.clone(), mounted.join("..1")]);
        assert_eq!(folders(&root.join("etc/conf.d/*.toml")), [root.join("etc")]);
        assert_eq!(folders(&mounted.join("*.toml")), [mounted]);
    }

    #[test]
    fn a_ring_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(!folders(&dir.path().join("a")).is_empty());
    }
}
