//! A configuration's text, from the reader to what a process can run with.

use std::collections::HashMap;
use std::path::PathBuf;

use meridian::config::{self, Config, Report, Severity};
use meridian::geo::Atlas;
use meridian::steering::View;

use crate::common::world::Memory;

/// What variables stand for: by the first letter of their names an address, a path, or a word that is long enough for a token or a key.
const ADDRESS: &str = "203.0.113.77:47077";
const PATH: &str = "/zq7secretzq7";
const WORD: &str = "zq7secretzq7zq7secretzq7zq7secretzq7";

/// What of them no report shows.
const HIDDEN: [&str; 2] = ["203.0.113.77", "zq7secret"];

fn variable(name: &str) -> Option<String> {
    match name.bytes().next() {
        Some(b'A') => Some(ADDRESS.to_owned()),
        Some(b'P') => Some(PATH.to_owned()),
        Some(b'N') => None,
        _ => Some(WORD.to_owned()),
    }
}

fn load(text: &str) -> Result<Config, Report> {
    let path = PathBuf::from("fuzz.toml");
    let files = Memory(HashMap::from([(path.clone(), text.to_owned())]));
    config::load(&path, &files, &variable, "host")
}

/// Every finding has its place, says the same again, and shows neither what a variable stands for nor what a terminal acts on. What is taken can be compiled.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (loaded, again) = (load(text), load(text));
    let report = match (&loaded, &again) {
        (Ok(config), Ok(again)) => {
            assert!(config.boot == again.boot && config.edge == again.edge);
            assert_eq!((config.warnings.errors(), &config.warnings), (0, &again.warnings));
            View::compile(config.fleet.clone(), Atlas::empty().into(), None);
            &config.warnings
        }
        (Err(report), Err(again)) => {
            assert!(report.errors() > 0);
            assert_eq!(report, again);
            report
        }
        _ => panic!("it is taken and refused"),
    };
    let lines: Vec<&str> = text.split('\n').collect();
    for finding in report.iter() {
        assert!(finding.file.starts_with("fuzz.toml") && !finding.message.is_empty());
        let Some(mark) = &finding.mark else { continue };
        let line =
            lines.get(mark.line.wrapping_sub(1)).unwrap_or_else(|| panic!("line {} of {}", mark.line, lines.len()));
        assert!((1..=line.chars().count() + 1).contains(&mark.column), "{finding}");
        assert!(mark.width > 0);
    }
    let shown = report.to_string();
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    assert!(report.iter().any(|finding| finding.severity == Severity::Error) == (report.errors() > 0));
    // A finding says in which file it is, whatever says which files there are.
    if text.contains("include") {
        return;
    }
    for hidden in HIDDEN {
        assert!(text.contains(hidden) || !shown.contains(hidden), "{shown}");
    }
}
