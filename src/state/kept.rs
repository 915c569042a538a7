//! Operators' words over restarts: one small file in the state directory.
//!
//! It is written whole to a temporary file, synced and renamed, so that a crash leaves the old words or the new ones. It is read
//! before anything is published. A file that cannot be read is moved aside and told; it never keeps a proxy from starting, for a
//! region that takes traffic against an operator's word is a lesser harm than none that takes any.
//!
//! Without a directory words are kept in memory only, and whoever says one is told.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::steering::{Event, Override, Overrides};

/// The file's name in the state directory.
const NAME: &str = "overrides.json";

/// Grows when an older meridian would misunderstand what is written.
const VERSION: u32 = 1;

/// More than any operator can have said.
const MOST_BYTES: u64 = 16 << 20;

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
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let aside = file.with_extension("json.new");
        let mut new = File::create(&aside)?;
        new.write_all(&text)?;
        new.sync_all()?;
        fs::rename(&aside, file)?;
        // The new name lasts only when the folder does.
        File::open(folder)?.sync_all()
    }
}

fn read(file: &Path) -> Result<Vec<Override>, String> {
    match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
        Ok(meta) if !meta.is_file() => return Err("it is not a regular file".to_owned()),
        Ok(meta) if meta.len() > MOST_BYTES => return Err(format!("it is larger than {} MiB", MOST_BYTES >> 20)),
        Ok(_) => {}
    }
    let text = fs::read(file).map_err(|error| error.to_string())?;
    let content: Content = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    if content.version != VERSION {
        return Err(format!("it has version {}, and this meridian knows version {VERSION}", content.version));
    }
    Ok(content.overrides)
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
