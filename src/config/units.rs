//! Durations, sizes and the likeness of words.

use std::time::Duration;

const DURATION_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Parses `300ms`, `1s`, `1m30s`: whole numbers with units, the larger unit first, each at most once. The error is a hint.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    const UNITS: &str = "units are `ms`, `s`, `m`, `h` and `d`, as in `300ms`, `5s` or `1m30s`";
    let (mut rest, mut total_ms, mut last) = (text, 0u64, u64::MAX);
    if rest.is_empty() {
        return Err(UNITS);
    }
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        if digits.is_empty() && text.contains('.') || after.starts_with('.') {
            return Err("use a smaller unit in place of a fraction, as in `1500ms` or `1m30s`");
        }
        let (Ok(number), Some((_, ms))) = (digits.parse::<u64>(), DURATION_UNITS.iter().find(|(u, _)| *u == unit))
        else {
            return Err(UNITS);
        };
        if *ms >= last {
            return Err("each unit once, the larger one first, as in `1m30s`");
        }
        last = *ms;
        total_ms =
            number.checked_mul(*ms).and_then(|part| total_ms.checked_add(part)).ok_or("it is too long to be a time")?;
        rest = after;
    }
    Ok(Duration::from_millis(total_ms))
}

/// A way to write a duration of whole milliseconds: in days only what is long, as people say it.
pub(crate) fn show_duration(duration: Duration) -> String {
    let mut ms = duration.as_millis() as u64;
    if ms == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    let days_from = 10 * DURATION_UNITS[0].1;
    let units = DURATION_UNITS.iter().skip(usize::from(ms < days_from));
    for (unit, size) in units {
        if ms >= *size {
            out.push_str(&format!("{}{unit}", ms / size));
            ms %= size;
        }
    }
    out
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("B", 1),
];

/// Parses `64KiB`, `1MB`, `0B` to bytes. The error is a hint.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let units = || "units are `B`, `KB`, `KiB`, `MB`, `MiB`, `GB`, `GiB`, `TB` and `TiB`, as in `64KiB`".to_owned();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = digits.parse().map_err(|_| units())?;
    let Some((_, bytes)) = SIZE_UNITS.iter().find(|(u, _)| *u == unit) else {
        let meant = SIZE_UNITS.iter().find(|(u, _)| u.eq_ignore_ascii_case(unit.trim()));
        return Err(meant.map_or_else(units, |(u, _)| format!("write it as `{number}{u}`")));
    };
    number.checked_mul(*bytes).ok_or_else(|| "it is too large to be a size".to_owned())
}

/// The shortest exact way to write a size.
pub(crate) fn show_size(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size));
    let (unit, size) = unit.copied().unwrap_or(("B", 1));
    format!("{}{unit}", bytes / size)
}

/// The candidate that `word` was probably meant to be: the fewest edits, at most a third of its length.
pub(crate) fn meant<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let length = word.chars().count();
    if length > 64 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (edits(&word, &candidate.to_lowercase().replace('-', "_")), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= length.max(candidate.chars().count()).div_ceil(3))
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string alignment).
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("300ms", 300),
            ("1s", 1000),
            ("5m", 300_000),
            ("1m30s", 90_000),
            ("0s", 0),
            ("24h", 86_400_000),
            ("365d", 31_536_000_000),
            ("1d12h", 129_600_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration(&show_duration(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "1.5s",
            "-1s",
            "1s1m",
            "1s1s",
            "1 s",
            "1S",
            "99999999999999999999h",
            "18446744073709551615h",
            "1y",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(show_duration(Duration::from_millis(90_500)), "1m30s500ms");
        assert_eq!(show_duration(Duration::from_secs(24 * 3600)), "24h");
        assert_eq!(show_duration(Duration::from_secs(3650 * 24 * 3600)), "3650d");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("64KiB", 65536), ("1GiB", 1 << 30), ("1MB", 1_000_000), ("0B", 0), ("12B", 12)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
            assert_eq!(show_size(bytes), text);
        }
        for bad in ["", "5", "B", "1.5MB", "-1B", "1K", "99999999999999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(size("64kib"), Err("write it as `64KiB`".to_owned()));
    }

    #[test]
    fn meanings() {
        let keys = ["weight", "dial", "endpoints", "drain_timeout"];
        for (word, want) in [
            ("wieght", Some("weight")),
            ("endpoint", Some("endpoints")),
            ("drain-timeout", Some("drain_timeout")),
            ("Dial", Some("dial")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(meant(word, keys), want, "{word}");
        }
    }
}
