//! A timeline as an SVG: requests as they were due, in a stack of who answered them, and what happened meanwhile.
//!
//! Pure, and text by hand: a chart of bars needs no library. It has a ground of its own, so that it can be read on dark pages.

use std::fmt::Write as _;

use crate::drill::seen::{Answer, Mark, REGIONS, Request, Seen};

/// One timeline.
#[derive(Clone, Copy, Debug)]
pub struct Panel<'a> {
    /// `kill, meridian 0.1.0`.
    pub title: &'a str,
    /// What it shows.
    pub seen: &'a Seen,
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
/// Of a panel: its title and marks above the bars, the bars, the axis below.
const ABOVE: f64 = 96.0;
const BARS: f64 = 150.0;
const BELOW: f64 = 40.0;
const LEGEND: f64 = 30.0;
const ROW: f64 = 14.0;
/// Rows of marks; what does not fit is left without a label.
const ROWS: usize = 5;
/// Of a letter of a label.
const LETTER: f64 = 5.8;
const LONGEST: usize = 44;

/// Who answered: three regions, then those for whom it was refused, and failures. Told apart without colours by their order, too.
const KINDS: [(&str, &str); 5] = [
    (REGIONS[0], "#0072b2"),
    (REGIONS[1], "#56b4e9"),
    (REGIONS[2], "#009e73"),
    ("refused", "#f0c000"),
    ("failed", "#d00000"),
];

/// Before the fault, so much is shown.
const BEFORE_MS: f64 = 2_000.0;

/// All panels, one below the other, and a legend.
pub fn render(panels: &[Panel<'_>]) -> String {
    let each = ABOVE + BARS + BELOW;
    let height = LEGEND + each * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for (n, (name, colour)) in KINDS.iter().enumerate() {
        let x = LEFT + 90.0 * n as f64;
        // Writing to a string cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"20\" fill=\"#222222\">{name}</text>",
            x + 17.0
        );
    }
    for (n, panel) in panels.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", LEGEND + each * n as f64);
        draw(&mut svg, panel);
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

/// How moments and counts become places.
struct Scale {
    from_ms: f64,
    bin_ms: f64,
    bins: usize,
    most: u32,
}

impl Scale {
    fn of(seen: &Seen) -> Scale {
        let from_ms = (seen.fault_ms - BEFORE_MS).max(0.0);
        let span = (seen.end_ms - from_ms).max(1.0);
        // A tenth of a second, or as much as gives three hundred bars.
        let bin_ms = (span / 300.0 / 100.0).ceil().max(1.0) * 100.0;
        Scale { from_ms, bin_ms, bins: (span / bin_ms).floor().max(1.0) as usize, most: 1 }
    }

    fn bin(&self, at_ms: f64) -> Option<usize> {
        let bin = ((at_ms - self.from_ms) / self.bin_ms).floor();
        (bin >= 0.0 && bin < self.bins as f64).then_some(bin as usize)
    }

    fn x(&self, at_ms: f64) -> f64 {
        LEFT + (at_ms - self.from_ms) / (self.bin_ms * self.bins as f64) * (WIDTH - LEFT - RIGHT)
    }

    fn high(&self, count: u32) -> f64 {
        f64::from(count) / f64::from(self.most) * BARS
    }
}

fn draw(svg: &mut String, panel: &Panel<'_>) {
    let seen = panel.seen;
    let mut scale = Scale::of(seen);
    let bins = count(seen, &scale);
    scale.most = bins.iter().map(|bin| bin.iter().sum()).max().unwrap_or(0).max(1);
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"14\" fill=\"#222222\" font-size=\"13\" font-weight=\"bold\">{}</text>",
        escape(panel.title)
    );
    let bottom = ABOVE + BARS;
    for (kind, (name, colour)) in KINDS.iter().enumerate() {
        let mut path = String::new();
        for (n, bin) in bins.iter().enumerate().filter(|(_, bin)| bin[kind] > 0) {
            let below: u32 = bin[..kind].iter().sum();
            let (x, next) = (
                scale.x(scale.from_ms + scale.bin_ms * n as f64),
                scale.x(scale.from_ms + scale.bin_ms * (n + 1) as f64),
            );
            let (y, high) = (bottom - scale.high(below), scale.high(bin[kind]));
            let _ = write!(path, "M{x:.1} {y:.1}H{:.1}V{:.1}H{x:.1}Z", (next - 0.4).max(x + 0.4), y - high);
        }
        let _ = writeln!(svg, "<path d=\"{path}\" fill=\"{colour}\"><title>{name}</title></path>");
    }
    axes(svg, &scale, seen, bottom);
    marks(svg, &scale, seen, bottom);
}

/// Requests of each kind by when they were due.
fn count(seen: &Seen, scale: &Scale) -> Vec<[u32; KINDS.len()]> {
    let mut bins = vec![[0; KINDS.len()]; scale.bins];
    for request in &seen.requests {
        if let Some(bin) = scale.bin(request.due_ms) {
            bins[bin][kind(request)] += 1;
        }
    }
    bins
}

fn kind(request: &Request) -> usize {
    match request.answer {
        Answer::Whole { status: 200, region: Some(region), .. } => region.min(REGIONS.len() - 1),
        _ if request.is_refused() => REGIONS.len(),
        _ => REGIONS.len() + 1,
    }
}

fn axes(svg: &mut String, scale: &Scale, seen: &Seen, bottom: f64) {
    let right = WIDTH - RIGHT;
    let _ = writeln!(svg, "<path d=\"M{LEFT} {ABOVE}V{bottom}H{right}\" fill=\"none\" stroke=\"#888888\"/>");
    let per_second = f64::from(scale.most) * 1000.0 / scale.bin_ms;
    let _ = writeln!(
        svg,
        "<g fill=\"#555555\" text-anchor=\"end\"><text x=\"{0}\" y=\"{1}\">{per_second:.0}/s</text><text x=\"{0}\" y=\"{2}\">0</text></g>",
        LEFT - 6.0,
        ABOVE + 10.0,
        bottom
    );
    // Seconds from the fault on, about a dozen of them.
    let span = scale.bin_ms * scale.bins as f64 / 1000.0;
    let steps = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0];
    let step = steps.into_iter().find(|step| span / step <= 15.0).unwrap_or(60.0);
    let mut second = ((scale.from_ms - seen.fault_ms) / 1000.0 / step).ceil() * step;
    while seen.fault_ms + second * 1000.0 <= seen.end_ms {
        let x = scale.x(seen.fault_ms + second * 1000.0);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{second:.0} s</text>",
            bottom + 16.0
        );
        second += step;
    }
}

/// Kinds of events that are shown: what a region or the process turns to, not each endpoint that is behind it.
const SHOWN: [&str; 7] = ["", "region", "ejection", "shedding", "late", "self_suspicion", "panic"];

fn marks(svg: &mut String, scale: &Scale, seen: &Seen, bottom: f64) {
    let mut marks: Vec<&Mark> = seen
        .marks
        .iter()
        .filter(|mark| SHOWN.contains(&mark.kind.as_str()) || mark.kind == "reload_refused")
        .filter(|mark| mark.at_ms >= seen.fault_ms - 1.0 && mark.at_ms <= seen.end_ms)
        .collect();
    marks.sort_by(|one, other| one.at_ms.total_cmp(&other.at_ms));
    // Where each row of labels ends so far.
    let mut ends = [LEFT; ROWS];
    for mark in marks {
        let x = scale.x(mark.at_ms);
        let colour = if mark.kind.is_empty() { "#d00000" } else { "#444444" };
        let text = label(mark);
        let wide = text.chars().count() as f64 * LETTER;
        let at = if x + 4.0 + wide > WIDTH { (WIDTH - wide).max(LEFT) } else { x + 4.0 };
        let row = ends.iter().position(|end| at >= *end);
        let top = 24.0 + ROW * row.unwrap_or(ROWS) as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"{colour}\" stroke-dasharray=\"3 2\"><title>{}</title></path>",
            escape(&mark.text)
        );
        if let Some(row) = row {
            ends[row] = at + wide + 8.0;
            let _ =
                writeln!(svg, "<text x=\"{at:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>", top + 9.0, escape(&text));
        }
    }
}

/// A few words of a mark.
fn label(mark: &Mark) -> String {
    let Mark { kind, region, to, text, .. } = mark;
    let words = match kind.as_str() {
        "region" => format!("{region} {to}"),
        "ejection" if text.contains("no longer") => format!("{region} no longer ejected"),
        "ejection" => format!("{region} ejected"),
        "shedding" if text.contains("again") => format!("{region} sheds no more"),
        "shedding" => format!("{region} sheds"),
        "" => text.clone(),
        kind => kind.replace('_', " "),
    };
    words.chars().take(LONGEST).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        let request =
            |n: u64, answer| Request { n, post: false, home: 2, due_ms: n as f64 * 10.0, took_ms: 1.0, answer };
        let whole = |status, region, retry_after| Answer::Whole { status, region, retry_after };
        let mark = |at_ms, kind: &str, to: &str, text: &str| Mark {
            at_ms,
            kind: kind.to_owned(),
            region: "eu-west".to_owned(),
            to: to.to_owned(),
            text: text.to_owned(),
        };
        let mut requests: Vec<Request> = (0..400).map(|n| request(n, whole(200, Some(2), false))).collect();
        requests[250].answer = whole(503, None, true);
        requests[251].answer = Answer::Broken("reset".to_owned());
        Seen {
            requests,
            fault_ms: 2500.0,
            end_ms: 4000.0,
            marks: vec![
                mark(2500.0, "", "", "kill"),
                mark(2600.0, "region", "down", "<down> & \"out\""),
                mark(2600.0, "endpoint", "down", "an endpoint"),
                mark(100.0, "region", "up", "long before"),
            ],
            ..Seen::default()
        }
    }

    #[test]
    fn bars_marks_and_a_legend() {
        let seen = seen();
        let svg = render(&[Panel { title: "kill <1>", seen: &seen }, Panel { title: "again", seen: &seen }]);
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
        assert_eq!(svg.matches(">eu-west down</text>").count(), 2);
        assert_eq!(svg.matches(">kill</text>").count(), 2);
        assert!(svg.contains("kill &lt;1&gt;") && svg.contains("&lt;down&gt; &amp; &quot;out&quot;"));
        assert!(!svg.contains("an endpoint") && !svg.contains("long before"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn every_request_is_in_a_bar_by_who_answered_it() {
        let seen = seen();
        let scale = Scale::of(&seen);
        assert_eq!((scale.bin_ms, scale.bins), (100.0, 35));
        let bins = count(&seen, &scale);
        let sum = |kind: usize| bins.iter().map(|bin| bin[kind]).sum::<u32>();
        assert_eq!([0, 1, 2, 3, 4].map(sum), [0, 0, 348, 1, 1]);
        assert_eq!(bins[20], [0, 0, 8, 1, 1], "what was due from 2,500 ms on");
        let long = Seen { fault_ms: 3000.0, end_ms: 90_000.0, ..Seen::default() };
        assert_eq!(Scale::of(&long).bin_ms, 300.0);
        let nothing = Seen::default();
        assert!(!render(&[Panel { title: "", seen: &nothing }]).contains("NaN"));
    }
}
