//! How a line of the process log looks: text for people, JSON or logfmt for collectors.
//!
//! All three tell the same: the moment, the level, the target (which part of the program), the message, the fields. An event of the world
//! is its own JSON in text and JSON, and the same keys in logfmt. Here messages that repeat are left out, too, since this is the one place where all of them pass as text.
//!
//! Made by hand: what the subscriber's own JSON would need is another crate, and logfmt would not be in it. Must not know where lines go.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber as Subscribed};
use tracing_subscriber::fmt::format::{Compact, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogFormat;
use crate::telemetry::journal;
use crate::telemetry::repeats::{LeftOut, Message, Repeats, WINDOW};
use crate::text::{logfmt, rfc3339};

/// Keys that every line has; a field of such a name gets a `_` behind it.
const OWN: [&str; 4] = ["at", "level", "target", "message"];

/// Makes lines.
#[derive(Debug)]
pub(super) struct Shape {
    format: LogFormat,
    text: Format<Compact>,
    repeats: Arc<Repeats>,
}

impl Shape {
    pub(super) fn new(format: LogFormat, repeats: Arc<Repeats>) -> Shape {
        Shape { format, text: Format::default().compact(), repeats }
    }
}

impl<S, N> FormatEvent<S, N> for Shape
where
    S: Subscribed + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let said = Said::of(event);
        if said.target == journal::TARGET {
            // What comes from the journal is a whole line of JSON already.
            return match self.format {
                LogFormat::Logfmt => writeln!(writer, "{}", flat(&said.message)),
                LogFormat::Text | LogFormat::Json => writeln!(writer, "{}", said.message),
            };
        }
        let (is_said, left_out) = match said.level <= Level::INFO {
            true => self.repeats.say(said.as_message(), moment()),
            // Who asks for more wants all of it.
            false => (true, None),
        };
        if let Some(left_out) = left_out {
            writer.write_str(&line_of(&left_out, self.format))?;
        }
        match self.format {
            // Without a byte there is no line.
            _ if !is_said => Ok(()),
            LogFormat::Text => self.text.format_event(ctx, writer, event),
            format => writer.write_str(&said.line(format)),
        }
    }
}

/// The line that tells what was left out, with its end.
pub(super) fn line_of(left_out: &LeftOut, format: LogFormat) -> String {
    let LeftOut { count, level, target, message } = left_out;
    let words = format!("{count} more like the last of these were left out within {} s", WINDOW.as_secs());
    if format == LogFormat::Text {
        return format!("{} {level:>5} {target}: {words}: {message}\n", now());
    }
    let fields = vec![("left_out", Value::from(*count)), ("last", Value::from(message.as_str()))];
    Said { level: *level, target: target.clone(), message: words, fields, place: 0 }.line(format)
}

/// What an event says.
struct Said {
    level: Level,
    target: String,
    message: String,
    fields: Vec<(&'static str, Value)>,
    /// Which place in the program says it.
    place: u64,
}

impl Said {
    fn of(event: &Event<'_>) -> Said {
        let metadata = event.metadata();
        let mut place = DefaultHasher::new();
        metadata.callsite().hash(&mut place);
        let mut read = Read {
            said: Said {
                level: *metadata.level(),
                target: metadata.target().to_owned(),
                message: String::new(),
                fields: Vec::new(),
                place: 0,
            },
            place,
        };
        event.record(&mut read);
        Said { place: read.place.finish(), ..read.said }
    }

    fn as_message(&self) -> Message<'_> {
        let mut text = DefaultHasher::new();
        self.message.hash(&mut text);
        for (name, value) in &self.fields {
            (name, value.to_string()).hash(&mut text);
        }
        Message {
            place: self.place,
            text: text.finish(),
            level: self.level,
            target: &self.target,
            message: &self.message,
        }
    }

    /// As JSON, or as logfmt for any other format, with its end.
    fn line(&self, format: LogFormat) -> String {
        let level = self.level.as_str().to_ascii_lowercase();
        let own = [now(), level, self.target.clone(), self.message.clone()].map(Value::from);
        let mut line = Line::new(format);
        OWN.iter().zip(&own).for_each(|(key, value)| line.add(key, value));
        for (name, value) in &self.fields {
            match OWN.contains(name) {
                true => line.add(&format!("{name}_"), value),
                false => line.add(name, value),
            }
        }
        line.end()
    }
}

/// Reads an event's fields.
struct Read {
    said: Said,
    place: DefaultHasher,
}

impl Read {
    fn take(&mut self, field: &Field, value: Value) {
        let text = || value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match field.name() {
            "message" => self.said.message = text(),
            // Other crates' records, which all have one place: theirs is told in fields.
            "log.target" => {
                self.said.target = text();
                self.said.target.hash(&mut self.place);
            }
            "log.line" => value.to_string().hash(&mut self.place),
            "log.file" | "log.module_path" => {}
            name => self.said.fields.push((name, value)),
        }
    }
}

impl Visit for Read {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, Value::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field, Value::from(value));
    }
}

/// A line being made, of pairs.
struct Line {
    out: Vec<u8>,
    is_json: bool,
}

impl Line {
    fn new(format: LogFormat) -> Line {
        Line { out: Vec::with_capacity(256), is_json: format == LogFormat::Json }
    }

    fn add(&mut self, key: &str, value: &Value) {
        let out = &mut self.out;
        if self.is_json {
            out.extend_from_slice(if out.is_empty() { b"{" } else { b"," });
            out.extend_from_slice(Value::from(key).to_string().as_bytes());
            out.push(b':');
            return out.extend_from_slice(value.to_string().as_bytes());
        }
        if !out.is_empty() {
            out.push(b' ');
        }
        // A key has no escapes there.
        out.extend(key.bytes().map(|byte| if matches!(byte, b'!'..=b'~') && byte != b'=' { byte } else { b'_' }));
        out.push(b'=');
        match value.as_str() {
            Some(text) => logfmt(out, text),
            None => logfmt(out, &value.to_string()),
        }
    }

    fn end(mut self) -> String {
        self.out.extend_from_slice(if self.is_json { b"}\n" } else { b"\n" });
        // Of text only text was made.
        String::from_utf8(self.out).unwrap_or_default()
    }
}

/// The keys and values of a JSON object as logfmt, those that every line has first.
fn flat(json: &str) -> String {
    let Ok(Value::Object(mut object)) = serde_json::from_str(json) else { return json.to_owned() };
    let mut line = Line::new(LogFormat::Logfmt);
    object.insert("target".to_owned(), Value::from(journal::TARGET));
    for key in OWN {
        if let Some(value) = object.remove(key) {
            line.add(key, &value);
        }
    }
    object.iter().for_each(|(key, value)| line.add(key, value));
    line.end().trim_end().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "a shell: repeats are counted by the clock")]
pub(super) fn moment() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a shell: a line has its moment")]
fn now() -> String {
    rfc3339(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    use tracing_subscriber::layer::SubscriberExt;

    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let (kept, repeats) = (tempfile::NamedTempFile::new().unwrap(), Arc::new(Repeats::default()));
        let layer = tracing_subscriber::fmt::layer().with_writer(Arc::new(kept.reopen().unwrap())).with_ansi(false);
        let layer = layer.log_internal_errors(false).event_format(Shape::new(format, Arc::clone(&repeats)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let rest: String = repeats.over(None).iter().map(|left_out| line_of(left_out, format)).collect();
        std::fs::read_to_string(kept.path()).unwrap() + &rest
    }

    fn odd() {
        let text = "a \"b\"\n=c";
        tracing::warn!(number = 7, yes = true, text, level = "x", at = %"1.5", "it said {}", "no\\");
    }

    #[test]
    fn json_is_json_whatever_is_said() {
        let line: Value = serde_json::from_str(&logged(LogFormat::Json, odd)).unwrap();
        assert_eq!((&line["level"], &line["message"]), (&Value::from("warn"), &Value::from("it said no\\")));
        assert_eq!((&line["number"], &line["yes"]), (&Value::from(7), &Value::from(true)));
        assert_eq!((&line["text"], &line["level_"]), (&Value::from("a \"b\"\n=c"), &Value::from("x")));
        assert_eq!((&line["at_"], line["target"].as_str()), (&Value::from("1.5"), Some(module_path!())));
        assert!(line["at"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn logfmt_is_one_line_of_pairs() {
        let line = logged(LogFormat::Logfmt, odd);
        let (at, rest) = line.split_once(' ').unwrap();
        assert!(at.starts_with("at=2") && at.ends_with('Z'), "{line}");
        let want = format!(
            "level=warn target={} message=\"it said no\\\\\" number=7 yes=true text=\"a \\\"b\\\"\\n=c\" level_=x at_=1.5\n",
            module_path!()
        );
        assert_eq!(rest, want);
    }

    #[test]
    fn an_event_of_the_world_keeps_its_keys() {
        const EVENT: &str = r#"{"seq":4,"at":"1970-01-01T00:00:01.000Z","level":"info","message":"so it is","kind":"published","generation":4}"#;
        let event = || tracing::info!(target: journal::TARGET, "{EVENT}");
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(logged(format, event), format!("{EVENT}\n"));
        }
        let line = logged(LogFormat::Logfmt, event);
        let want = "at=1970-01-01T00:00:01.000Z level=info target=meridian::event message=\"so it is\" ";
        assert!(line.starts_with(want) && line.contains(" seq=4") && line.contains(" kind=published"), "{line}");
    }

    #[test]
    fn what_repeats_is_counted_and_what_is_news_is_not() {
        for format in [LogFormat::Text, LogFormat::Json, LogFormat::Logfmt] {
            let text = logged(format, || {
                for n in 0..50 {
                    tracing::warn!("the same");
                    tracing::warn!(n, "another");
                    tracing::debug!("the same, for those who look closely");
                    // An event may look like the one before it.
                    tracing::error!(target: journal::TARGET, "{{}}");
                }
            });
            assert_eq!(text.matches("another").count(), 50, "{text}");
            assert_eq!(text.matches("closely").count(), 50, "{text}");
            let events = if format == LogFormat::Logfmt { "target=meridian::event" } else { "{}\n" };
            assert_eq!(text.matches(events).count(), 50, "{text}");
            let last = text.lines().last().unwrap();
            assert!(last.contains("40 more like the last of these were left out within 10 s"), "{text}");
            // In the line that counts them, once more.
            assert_eq!(text.matches("the same").count() - 50, 11, "{text}");
        }
    }
}
