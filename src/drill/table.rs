//! Figures as a table for people and, since its lines are also Markdown, for pages.
//!
//! Pure.

use crate::drill::figures::{Failed, Figures};

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// The fault's name.
    pub fault: &'static str,
    /// Whose figures they are.
    pub who: &'static str,
    /// Medians.
    pub figures: Figures,
    /// What is not within the bars; nothing of a peer.
    pub misses: Option<Vec<String>>,
}

const HEAD: [&str; 11] = [
    "fault",
    "proxy",
    "GETs failed",
    "POSTs failed",
    "refused",
    "twice",
    "trouble, s",
    "left alone, s",
    "peak ÷ limit",
    "attempts ÷ requests",
    "p99, ms more",
];

/// The table.
pub fn render(rows: &[Row]) -> String {
    let mut cells = vec![HEAD.map(str::to_owned).to_vec(), Vec::new()];
    cells.extend(rows.iter().map(line));
    let width = |column: usize| cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..HEAD.len()).map(|column| width(column).unwrap_or(0)).collect();
    cells[1] = widths.iter().map(|width| "-".repeat(*width)).collect();
    let row = |row: &Vec<String>| {
        let padded: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("| {} |\n", padded.join(" | "))
    };
    cells.iter().map(row).collect()
}

/// What missed its bars, a line each.
pub fn misses(rows: &[Row]) -> Vec<String> {
    let of = |row: &Row| {
        let misses = row.misses.clone().unwrap_or_default();
        misses.into_iter().map(|miss| format!("{}: {miss}", row.fault)).collect::<Vec<_>>()
    };
    rows.iter().flat_map(of).collect()
}

/// Faults at which the first of several loses or repeats more than the best of its peers, a line each.
pub fn behind(rows: &[Row]) -> Vec<String> {
    let lost = |figures: &Figures| figures.gets.all() + figures.posts.all();
    let mut lines = Vec::new();
    for own in rows.iter().filter(|row| row.misses.is_some()) {
        let peers = || rows.iter().filter(|row| row.misses.is_none() && row.fault == own.fault);
        for (what, of) in [
            ("lost", &lost as &dyn Fn(&Figures) -> usize),
            ("refused or lost", &|figures: &Figures| lost(figures) + figures.refused),
            ("executed twice", &|figures: &Figures| figures.duplicates),
        ] {
            let Some(best) = peers().min_by_key(|row| of(&row.figures)) else { continue };
            let (mine, least) = (of(&own.figures), of(&best.figures));
            if mine > least {
                lines.push(format!("{}: {mine} {what}, {least} by {}", own.fault, best.who));
            }
        }
    }
    lines
}

fn line(row: &Row) -> Vec<String> {
    let Row { fault, who, figures: of, .. } = row;
    let seconds = |ms: f64| format!("{:.2}", ms / 1000.0);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
    vec![
        (*fault).to_owned(),
        (*who).to_owned(),
        failed(of.gets),
        failed(of.posts),
        of.refused.to_string(),
        of.duplicates.to_string(),
        or_none(of.trouble_ms.map(|(first, last)| format!("{}–{}", seconds(first), seconds(last)))),
        or_none(of.down_ms.map(seconds)),
        or_none(of.peak.map(|peak| format!("{peak:.2}"))),
        if of.requests == 0 { "–".to_owned() } else { format!("{:.2}", of.attempts) },
        if of.requests == 0 { "–".to_owned() } else { whole(of.added_p99_ms) },
    ]
}

/// Without a sign where there is nothing.
fn whole(number: f64) -> String {
    format!("{}", number.round() as i64)
}

/// `3: 2 status, 1 broken`.
fn failed(failed: Failed) -> String {
    let parts = [(failed.status, "status"), (failed.broken, "broken"), (failed.silent, "silent")];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    match parts.len() {
        0 => "0".to_owned(),
        1 => parts.concat(),
        _ => format!("{}: {}", failed.all(), parts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_for_people() {
        let figures = Figures {
            requests: 960,
            gets: Failed { status: 2, broken: 1, silent: 0 },
            trouble_ms: Some((0.0, 312.4)),
            down_ms: Some(251.0),
            attempts: 1.004,
            added_p99_ms: 2.4,
            ..Figures::default()
        };
        let row = |who, figures: &Figures, misses| Row { fault: "kill", who, figures: figures.clone(), misses };
        let idle = Figures { requests: 0, duplicates: 1, ..Figures::default() };
        let rows = [row("meridian", &figures, Some(vec!["too slow".to_owned()])), row("nginx", &idle, None)];
        let want = "\
| fault | proxy    | GETs failed           | POSTs failed | refused | twice | trouble, s | left alone, s | peak ÷ limit | attempts ÷ requests | p99, ms more |
| ----- | -------- | --------------------- | ------------ | ------- | ----- | ---------- | ------------- | ------------ | ------------------- | ------------ |
| kill  | meridian | 3: 2 status, 1 broken | 0            | 0       | 0     | 0.00–0.31  | 0.25          | –            | 1.00                | 2            |
| kill  | nginx    | 0                     | 0            | 0       | 1     | –          | –             | –            | –                   | –            |
";
        assert_eq!(render(&rows), want);
        assert_eq!(misses(&rows), ["kill: too slow"]);
        assert_eq!(behind(&rows), ["kill: 3 lost, 0 by nginx", "kill: 3 refused or lost, 0 by nginx"]);
    }
}
