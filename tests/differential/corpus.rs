//! The corpus as it is written: see `README.md` beside this file.

use std::fmt::{Display, Formatter, Result};
use std::path::{Path, PathBuf};

/// Which half of the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Requests,
    Answers,
}

impl Side {
    pub fn name(self) -> &'static str {
        if self == Side::Requests { "requests" } else { "answers" }
    }
}

/// One case: what is sent, in parts between which the sender waits for the other side.
#[derive(Clone, Debug)]
pub struct Case {
    pub side: Side,
    /// File and title.
    pub name: String,
    flags: Vec<String>,
    pub parts: Vec<Vec<u8>>,
    text: String,
}

impl Case {
    /// Whether the title line has `@flag`.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|own| own == flag)
    }
}

impl Display for Case {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        write!(out, "== {}\n{}", self.name, self.text)
    }
}

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential")
}

/// All cases of a half, in the order of the files and in them.
pub fn read(side: Side) -> Vec<Case> {
    let entries = std::fs::read_dir(folder().join(side.name())).expect("the folder is in the repository");
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "txt"));
    paths.sort();
    let mut cases: Vec<Case> = Vec::new();
    for path in paths {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut begun = false;
        for line in text.lines() {
            if let Some(title) = line.strip_prefix("== ") {
                let (title, flags) = title.split_once(" @").unwrap_or((title, ""));
                let flags = flags.split(" @").filter(|flag| !flag.is_empty()).map(|flag| flag.trim().to_owned());
                let name = format!("{stem}: {}", title.trim());
                assert!(cases.iter().all(|case| case.name != name), "twice: {name}");
                let parts = vec![Vec::new()];
                cases.push(Case { side, name, flags: flags.collect(), parts, text: String::new() });
                begun = true;
            } else if begun {
                let case = cases.last_mut().unwrap();
                case.text += &format!("{line}\n");
                match line {
                    "----" => case.parts.push(Vec::new()),
                    _ => case.parts.last_mut().unwrap().extend(bytes_of(line)),
                }
            } else {
                assert!(line.is_empty() || line.starts_with('#'), "{}: `{line}` before a case", path.display());
            }
        }
    }
    cases
}

/// The bytes that a line stands for.
fn bytes_of(line: &str) -> Vec<u8> {
    let (line, ends) = match line.strip_suffix('\\') {
        Some(line) => (line, &b""[..]),
        None => (line, &b"\r\n"[..]),
    };
    let mut out = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        if first != '\\' {
            out.extend(first.to_string().as_bytes());
            continue;
        }
        let escape = rest.chars().next().unwrap_or_else(|| panic!("`{line}`"));
        rest = &rest[1..];
        match escape {
            'r' => out.push(b'\r'),
            'n' => out.push(b'\n'),
            't' => out.push(b'\t'),
            '0' => out.push(0),
            's' => out.push(b' '),
            'x' => {
                out.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                rest = &rest[2..];
            }
            '{' => {
                let (inner, after) = rest.split_once('}').unwrap_or_else(|| panic!("`{line}`"));
                let (what, times) = inner.rsplit_once('*').unwrap_or_else(|| panic!("`{line}`"));
                let times: usize = times.parse().unwrap();
                out.extend(bytes_of(&format!("{what}\\")).repeat(times));
                rest = after;
            }
            _ => panic!("an unknown escape in `{line}`"),
        }
    }
    out.extend_from_slice(ends);
    out
}
