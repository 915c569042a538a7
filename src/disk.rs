//! Configuration text from the file system.
//!
//! The shell beneath [`config::Files`](crate::config::Files): `std::fs` and nothing else. A file is read whole, up to a bound, so
//! that a mistyped path to a log or a device cannot fill the memory.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::{Path, PathBuf};

use crate::config::Files;
use crate::text::fits;

/// The largest configuration file, bytes.
const MAX_BYTES: u64 = 8 << 20;

/// Files on disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskFiles;

impl Files for DiskFiles {
    fn read(&self, path: &Path) -> Result<String> {
        let file = File::open(path)?;
        if file.metadata()?.is_dir() {
            return Err(Error::new(ErrorKind::IsADirectory, "it is a folder"));
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::new(ErrorKind::FileTooLarge, "it is larger than 8 MiB, which no configuration is"));
        }
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
            Error::new(
                ErrorKind::InvalidData,
                format!("it is not UTF-8 text: line {line} has a byte that cannot be read"),
            )
        })
    }

    fn glob(&self, pattern: &Path) -> Result<Vec<PathBuf>> {
        let Some(name) = pattern.file_name().and_then(|name| name.to_str()) else {
            return Err(Error::new(ErrorKind::InvalidInput, "the pattern has no file name"));
        };
        let folder = pattern.parent().unwrap_or(Path::new(""));
        let shown = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let entries = match std::fs::read_dir(shown) {
            Ok(entries) => entries,
            // A folder that is not there yet holds no file; it may come while we run.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?.file_name();
            let matching = entry.to_str().is_some_and(|entry| !entry.starts_with('.') && fits(name, entry));
            if matching && !shown.join(&entry).is_dir() {
                found.push(folder.join(entry));
            }
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_listed_in_order_without_hidden_files() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.toml", "a.toml", ".c.toml", "d.txt", "a.toml~"] {
            std::fs::write(dir.path().join(name), "x = 1").unwrap();
        }
        std::fs::create_dir(dir.path().join("e.toml")).unwrap();
        let found = DiskFiles.glob(&dir.path().join("*.toml")).unwrap();
        assert_eq!(found, [dir.path().join("a.toml"), dir.path().join("b.toml")]);
        assert!(DiskFiles.glob(&dir.path().join("none/*.toml")).unwrap().is_empty());
        assert_eq!(DiskFiles.read(&found[0]).unwrap(), "x = 1");
    }

    #[test]
    fn what_is_no_text_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        std::fs::write(&path, b"a = 1\nb = \"\xff\"\n").unwrap();
        let error = DiskFiles.read(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        assert!(error.to_string().contains("line 2"), "{error}");
        std::fs::write(&path, vec![b' '; MAX_BYTES as usize + 1]).unwrap();
        assert!(DiskFiles.read(&path).unwrap_err().to_string().contains("8 MiB"));
        assert!(DiskFiles.read(dir.path()).unwrap_err().to_string().contains("folder"));
        assert_eq!(DiskFiles.read(&dir.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
