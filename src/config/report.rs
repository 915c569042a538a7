//! What is wrong with a configuration, and where.
//!
//! A report is complete in itself: every finding carries the line it is about, so that it can be printed, logged or sent as JSON
//! long after the text is gone. The choice: sanitise once, when a finding is made; nothing of a file reaches a terminal raw.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It cannot work.
    Error,
    /// It is probably a mistake.
    Warning,
}

impl Severity {
    /// The word that begins a finding.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}

/// A line of a file, ready to be shown, and what of it to underline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line (or a window of a long one), tabs widened and control characters escaped.
    pub text: String,
    /// Terminal cells of `text` before the underlined part.
    pub indent: usize,
    /// Terminal cells underlined, at least 1.
    pub width: usize,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as it was named.
    pub file: String,
    /// Where in the file; `None` when it is about the file as a whole.
    #[serde(flatten)]
    pub mark: Option<Mark>,
    /// What is wrong and what was expected.
    pub message: String,
    /// Another place that has to do with it, in words.
    pub note: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Finding {
    /// `file:line:column`, or the file alone.
    pub fn place(&self) -> String {
        match &self.mark {
            Some(mark) => format!("{}:{}:{}", self.file, mark.line, mark.column),
            None => self.file.clone(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.severity.as_str(), self.message)?;
        let gutter = self.mark.as_ref().map_or(1, |mark| mark.line.to_string().len());
        writeln!(f, "{:gutter$}--> {}", "", self.place())?;
        if let Some(mark) = &self.mark {
            writeln!(f, "{:gutter$} |", "")?;
            writeln!(f, "{} | {}", mark.line, mark.text)?;
            writeln!(f, "{:gutter$} | {:indent$}{:^>width$}", "", "", "", indent = mark.indent, width = mark.width)?;
        }
        for (word, text) in [("note", &self.note), ("hint", &self.hint)] {
            if let Some(text) = text {
                writeln!(f, "{:gutter$} = {word}: {text}", "")?;
            }
        }
        Ok(())
    }
}

/// Every finding of one load, in the order of the files and their lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    findings: Vec<Finding>,
    errors: usize,
    warnings: usize,
}

/// More findings than this are counted, not kept: one slip can spoil every line of a large file.
const KEPT: usize = 1000;

impl Report {
    /// From findings that are in order already, and how many errors there were beside them.
    pub(crate) fn new(mut findings: Vec<Finding>, more_errors: usize) -> Report {
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        let warnings = findings.len() - errors;
        findings.truncate(KEPT);
        Report { findings, errors: errors + more_errors, warnings }
    }

    /// How many errors were found.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// How many warnings were found.
    pub fn warnings(&self) -> usize {
        self.warnings
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.errors + self.warnings == 0
    }

    /// The findings, at most the first thousand.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter()
    }

    /// `2 errors, 1 warning`.
    pub fn counts(&self) -> String {
        let count = |n: usize, word: &str| (n > 0).then(|| format!("{n} {word}{}", if n == 1 { "" } else { "s" }));
        let parts: Vec<String> =
            [count(self.errors, "error"), count(self.warnings, "warning")].into_iter().flatten().collect();
        if parts.is_empty() { "nothing found".to_owned() } else { parts.join(", ") }
    }
}

impl fmt::Display for Report {
    /// Every finding with an empty line after it, then the counts. Ends with a newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        let more = (self.errors + self.warnings).saturating_sub(self.findings.len());
        if more > 0 {
            writeln!(f, "… and {more} more")?;
        }
        writeln!(f, "{}", self.counts())
    }
}

impl std::error::Error for Report {}

/// `text` without anything that a terminal would act on, that hides or that turns writing around.
pub(crate) fn sanitised(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        show(c, &mut out);
    }
    out
}

/// Appends `c` as it is shown and returns the terminal cells it takes.
fn show(c: char, out: &mut String) -> usize {
    if c == '\t' {
        out.push_str("    ");
        return 4;
    }
    if c.is_control() || is_invisible(c) {
        let before = out.len();
        out.extend(c.escape_unicode());
        return out.len() - before;
    }
    out.push(c);
    cells(c)
}

/// Format characters that reorder, join or hide text.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Terminal cells of a printable character: two for East Asian wide and emoji blocks (Unicode TR 11, by block), none for
/// combining marks, else one.
fn cells(c: char) -> usize {
    match c {
        '\u{300}'..='\u{36f}'
        | '\u{1ab0}'..='\u{1aff}'
        | '\u{1dc0}'..='\u{1dff}'
        | '\u{20d0}'..='\u{20ff}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{fe20}'..='\u{fe2f}' => 0,
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{303e}'
        | '\u{3041}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{ffe0}'..='\u{ffe6}'
        | '\u{1f300}'..='\u{1f64f}'
        | '\u{1f680}'..='\u{1f6ff}'
        | '\u{1f900}'..='\u{1f9ff}'
        | '\u{20000}'..='\u{3fffd}' => 2,
        _ => 1,
    }
}

/// Characters shown of a long line before and after the start of the underlined part.
const BEFORE: usize = 60;
const AFTER: usize = 120;

impl Mark {
    /// From a line without its end and the bytes of it to underline; `number` is from 1. Ranges past the line's end or inside a
    /// character are moved to where they make sense.
    pub(crate) fn new(number: usize, line: &str, start: usize, end: usize) -> Mark {
        let start = (0..=start.min(line.len())).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        let column = line[..start].chars().count();
        let skip = column.saturating_sub(BEFORE);
        let mut text = String::new();
        let (mut indent, mut width) = (0, 0);
        if skip > 0 {
            text.push('…');
            indent += 1;
        }
        for (n, (at, c)) in line.char_indices().enumerate().skip(skip) {
            if n >= column + AFTER {
                text.push('…');
                break;
            }
            let taken = show(c, &mut text);
            if at < start {
                indent += taken;
            } else if at < end {
                width += taken;
            }
        }
        Mark { line: number, column: column + 1, text, indent, width: width.max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(line: &str, start: usize, end: usize) -> (String, String, usize) {
        let mark = Mark::new(1, line, start, end);
        let caret = format!("{}{}", " ".repeat(mark.indent), "^".repeat(mark.width));
        (mark.text, caret, mark.column)
    }

    #[test]
    fn the_caret_stands_under_the_span() {
        for (line, span, text, caret, column) in [
            ("a = bad", 4..7, "a = bad", "    ^^^", 5),
            ("\ta = bad", 5..8, "    a = bad", "        ^^^", 6),
            ("é = bad", 5..8, "é = bad", "    ^^^", 5),
            ("日 = bad", 6..9, "日 = bad", "     ^^^", 5),
            ("e\u{301} = 本", 6..9, "e\u{301} = 本", "    ^^", 6),
            ("\u{1b}[31m = x", 8..9, r"\u{1b}[31m = x", "             ^", 9),
            ("a\u{202e} = x", 7..8, r"a\u{202e} = x", "            ^", 6),
            ("short", 40..50, "short", "     ^", 6),
            ("", 0..0, "", "^", 1),
        ] {
            let (got_text, got_caret, got_column) = drawn(line, span.start, span.end);
            assert_eq!((got_text.as_str(), got_caret.as_str(), got_column), (text, caret, column), "{line:?}");
        }
    }

    #[test]
    fn long_lines_show_a_window() {
        let line = format!("{}bad{}", "x".repeat(5000), "y".repeat(5000));
        let (text, caret, column) = drawn(&line, 5000, 5003);
        assert_eq!(column, 5001);
        assert_eq!(text.chars().count(), 1 + BEFORE + AFTER + 1);
        let at = caret.find('^').unwrap();
        assert_eq!(text.chars().skip(at).take(3).collect::<String>(), "bad");
    }

    #[test]
    fn counts_are_in_words() {
        let finding =
            |severity| Finding { severity, file: "f".into(), mark: None, message: "m".into(), note: None, hint: None };
        assert_eq!(Report::new(vec![finding(Severity::Error)], 0).counts(), "1 error");
        let report = Report::new((0..1200).map(|_| finding(Severity::Warning)).collect(), 0);
        assert_eq!((report.iter().count(), report.warnings()), (1000, 1200));
        assert!(report.to_string().ends_with("… and 200 more\n1200 warnings\n"));
    }
}
