//! A request's line in the access log: one JSON object, or pairs of logfmt, made by hand.
//!
//! Field names and their order are a contract; a field without a value is `null`, so that every line has every field (in logfmt it is
//! left out, as is custom there). By hand, because a line
//! for each request is as much work as the rest of the request when a general serialiser makes it.
//!
//! Must not know where lines go.

use std::net::SocketAddr;
use std::sync::Arc;

use time::OffsetDateTime;
use wide::u8x16;

use crate::config::AccessFormat;
use crate::geo::atlas::SourceInfo;
use crate::geo::{Continent, Country, Place, Source, Subdivision};
use crate::steering::{RegionId, ServiceId, Snapshot, TakeReason};
use crate::telemetry::{AccessRecord, Mover};
use crate::text::{
    address, digits_of_three, find, hexadecimal, hexadecimal_digit, logfmt, number, rfc3339, sixteen, socket,
    three_digits,
};

/// Makes lines; remembers what it wrote last where much of the next one is the same.
#[derive(Debug, Default)]
pub(super) struct Lines {
    format: AccessFormat,
    /// A Unix second, and how lines of it begin.
    second: Option<(u64, Beginning)>,
    /// Where clients were.
    places: Remembered<At>,
    /// Ways that requests took.
    ways: Remembered<Way>,
}

/// How many of each kind are remembered.
const REMEMBERED: usize = 64;

/// What was written for a key, as long as no other key takes its slot.
#[derive(Debug)]
struct Remembered<K>(Vec<Option<(K, Vec<u8>)>>);

impl<K> Default for Remembered<K> {
    fn default() -> Remembered<K> {
        Remembered(Vec::new())
    }
}

impl<K: Clone + PartialEq> Remembered<K> {
    /// Appends what `write` makes of `key`, which has a slot of this number.
    fn append(&mut self, out: &mut Vec<u8>, slot: usize, key: K, write: impl FnOnce(&K, &mut Vec<u8>)) {
        if self.0.is_empty() {
            self.0.resize(REMEMBERED, None);
        }
        match &mut self.0[slot % REMEMBERED] {
            Some((known, written)) if *known == key => out.extend_from_slice(written),
            slot => {
                let start = out.len();
                write(&key, out);
                // In the storage of what was there.
                let mut written = slot.take().map_or_else(Vec::new, |(_, written)| written);
                written.clear();
                written.extend_from_slice(&out[start..]);
                *slot = Some((key, written));
            }
        }
    }
}

/// What a line tells of a client's place: a few dozen countries make most requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    /// Of the configuration that knows the sources' names.
    generation: u64,
    country: Option<Country>,
    subdivision: Option<Subdivision>,
    continent: Option<Continent>,
    source: Source,
}

impl At {
    fn of(place: &Place, snapshot: &Snapshot) -> At {
        let &Place { country, subdivision, continent, source, .. } = place;
        At { generation: snapshot.generation, country, subdivision, continent, source }
    }

    fn slot(&self) -> usize {
        let country = self.country.as_ref().map_or("", Country::as_str);
        let subdivision = self.subdivision.as_ref().map_or("", Subdivision::as_str);
        let letters = country.bytes().chain(subdivision.bytes());
        letters.fold(0, |slot, letter| slot * 31 + usize::from(letter))
    }

    fn write(&self, out: &mut Vec<u8>, snapshot: &Snapshot) {
        out.extend_from_slice(b"{\"country\":");
        or_null(out, self.country.as_ref().map(Country::as_str), plain);
        out.extend_from_slice(b",\"subdivision\":");
        or_null(out, self.subdivision.as_ref().map(Subdivision::as_str), plain);
        out.extend_from_slice(b",\"continent\":");
        or_null(out, self.continent.map(Continent::as_str), plain);
        out.extend_from_slice(b",\"source\":");
        text(out, source(self.source, snapshot));
        out.push(b'}');
    }
}

/// What the middle of a line tells, from `protocol` to `attempts`: the same for most requests to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// Of the configuration that ids belong to.
    generation: u64,
    protocol: &'static str,
    mover: Mover,
    status: u16,
    outcome: &'static str,
    service: Option<ServiceId>,
    region: Option<RegionId>,
    endpoint: Option<SocketAddr>,
    reason: Option<TakeReason>,
    attempts: u8,
    gave_up: Option<&'static str>,
}

impl Way {
    fn of(record: &AccessRecord, snapshot: &Snapshot) -> Way {
        let &AccessRecord {
            protocol,
            mover,
            status,
            outcome,
            service,
            region,
            endpoint,
            reason,
            attempts,
            gave_up,
            ..
        } = record;
        let generation = snapshot.generation;
        Way { generation, protocol, mover, status, outcome, service, region, endpoint, reason, attempts, gave_up }
    }

    fn slot(&self) -> usize {
        let port = self.endpoint.map_or(0, |endpoint| endpoint.port());
        usize::from(port ^ self.status.wrapping_mul(5))
    }

    fn write(&self, out: &mut Vec<u8>, snapshot: &Snapshot) {
        let fleet = snapshot.fleet();
        let service = self.service.and_then(|id| Some(fleet.services.get(id.index())?.name.as_str()));
        let region = self.region.and_then(|id| Some(fleet.regions.get(id.index())?.name.as_str()));
        out.extend_from_slice(b",\"protocol\":");
        plain(out, self.protocol);
        out.extend_from_slice(b",\"mover\":");
        plain(out, self.mover.as_str());
        out.extend_from_slice(b",\"status\":");
        number(out, self.status.into());
        out.extend_from_slice(b",\"outcome\":");
        plain(out, self.outcome);
        out.extend_from_slice(b",\"service\":");
        or_null(out, service, plain);
        out.extend_from_slice(b",\"region\":");
        or_null(out, region, plain);
        out.extend_from_slice(b",\"endpoint\":");
        or_null(out, self.endpoint, |out, endpoint| quoted(out, |out| socket(out, endpoint)));
        out.extend_from_slice(b",\"reason\":");
        or_null(out, self.reason.map(TakeReason::as_str), plain);
        out.extend_from_slice(b",\"attempts\":");
        number(out, self.attempts.into());
        out.extend_from_slice(b",\"gave_up\":");
        or_null(out, self.gave_up, plain);
    }
}

impl Lines {
    /// Nothing is remembered yet.
    pub(super) fn new(format: AccessFormat) -> Lines {
        Lines { format, ..Lines::default() }
    }

    /// Appends the line of a request that was served by this snapshot, with its end.
    pub(super) fn append(&mut self, out: &mut Vec<u8>, record: &AccessRecord, snapshot: &Snapshot) {
        if self.format == AccessFormat::Logfmt {
            return pairs(out, record, snapshot);
        }
        out.extend_from_slice(&self.beginning(record.at_us, record.request_id));
        or_null(out, record.client, |out, client| quoted(out, |out| address(out, client)));
        out.extend_from_slice(b",\"peer\":");
        or_null(out, record.peer, |out, peer| quoted(out, |out| socket(out, peer)));
        out.extend_from_slice(b",\"place\":");
        or_null(out, record.place.as_ref(), |out, place| {
            let at = At::of(place, snapshot);
            self.places.append(out, at.slot(), at, |at, out| at.write(out, snapshot));
        });
        out.extend_from_slice(b",\"method\":");
        plain(out, record.method.as_str());
        // Mostly there is nothing to be escaped in either.
        let write = if find(record.text.both().as_bytes(), 0, escaped).is_none() { raw } else { text };
        out.extend_from_slice(b",\"host\":");
        write(out, record.text.host());
        out.extend_from_slice(b",\"path\":");
        write(out, record.text.target());
        let way = Way::of(record, snapshot);
        self.ways.append(out, way.slot(), way, |way, out| way.write(out, snapshot));
        out.extend_from_slice(b",\"bytes_in\":");
        number(out, record.bytes_in);
        out.extend_from_slice(b",\"bytes_out\":");
        number(out, record.bytes_out);
        out.extend_from_slice(b",\"duration_ms\":");
        milliseconds(out, record.total_us);
        out.extend_from_slice(b",\"first_byte_ms\":");
        or_null(out, record.first_byte_us, milliseconds);
        out.extend_from_slice(b",\"connect_ms\":");
        milliseconds(out, record.connect_us);
        out.extend_from_slice(b",\"trace_id\":");
        or_null(out, trace(record), |out, id| quoted(out, |out| out.extend_from_slice(&hexadecimal(id))));
        out.extend_from_slice(b"}\n");
    }

    /// Up to where the client is told. The moment in UTC, with milliseconds.
    fn beginning(&mut self, at_us: u64, request_id: u128) -> Beginning {
        const MS: usize = 27;
        const ID: usize = 47;
        let (second, ms) = (at_us / 1_000_000, at_us / 1000 % 1000);
        let mut text = match self.second {
            Some((known, text)) if known == second => text,
            _ => self.second.insert((second, beginning(second))).1,
        };
        text[MS..MS + 3].copy_from_slice(digits_of_three(ms));
        text[ID..ID + 32].copy_from_slice(&hexadecimal(request_id));
        text
    }
}

/// The same line in logfmt, with its end.
fn pairs(out: &mut Vec<u8>, record: &AccessRecord, snapshot: &Snapshot) {
    let fleet = snapshot.fleet();
    let service = record.service.and_then(|id| Some(fleet.services.get(id.index())?.name.as_str()));
    let region = record.region.and_then(|id| Some(fleet.regions.get(id.index())?.name.as_str()));
    out.extend_from_slice(b"ts=");
    out.extend_from_slice(rfc3339(record.at_us / 1000).as_bytes());
    pair(out, "request_id", |out| out.extend_from_slice(&hexadecimal(record.request_id)));
    pair_of(out, "client", record.client, address);
    pair_of(out, "peer", record.peer, socket);
    if let Some(place) = &record.place {
        pair_of(out, "place_country", place.country.as_ref().map(Country::as_str), logfmt);
        pair_of(out, "place_subdivision", place.subdivision.as_ref().map(Subdivision::as_str), logfmt);
        pair_of(out, "place_continent", place.continent.map(Continent::as_str), logfmt);
        pair(out, "place_source", |out| logfmt(out, source(place.source, snapshot)));
    }
    pair(out, "method", |out| logfmt(out, record.method.as_str()));
    pair(out, "host", |out| logfmt(out, record.text.host()));
    pair(out, "path", |out| logfmt(out, record.text.target()));
    pair(out, "protocol", |out| logfmt(out, record.protocol));
    pair(out, "mover", |out| logfmt(out, record.mover.as_str()));
    pair(out, "status", |out| number(out, record.status.into()));
    pair(out, "outcome", |out| logfmt(out, record.outcome));
    pair_of(out, "service", service, logfmt);
    pair_of(out, "region", region, logfmt);
    pair_of(out, "endpoint", record.endpoint, socket);
    pair_of(out, "reason", record.reason.map(TakeReason::as_str), logfmt);
    pair(out, "attempts", |out| number(out, record.attempts.into()));
    pair_of(out, "gave_up", record.gave_up, logfmt);
    pair(out, "bytes_in", |out| number(out, record.bytes_in));
    pair(out, "bytes_out", |out| number(out, record.bytes_out));
    pair(out, "duration_ms", |out| milliseconds(out, record.total_us));
    pair_of(out, "first_byte_ms", record.first_byte_us, milliseconds);
    pair(out, "connect_ms", |out| milliseconds(out, record.connect_us));
    pair_of(out, "trace_id", trace(record), |out, id| out.extend_from_slice(&hexadecimal(id)));
    out.push(b'\n');
}

/// The trace that a request is in.
fn trace(record: &AccessRecord) -> Option<u128> {
    Some(record.traced.trace).filter(|id| *id != 0)
}

fn pair(out: &mut Vec<u8>, key: &str, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b' ');
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    write(out);
}

/// The pair of a value that may not be known.
fn pair_of<T>(out: &mut Vec<u8>, key: &str, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    if let Some(value) = value {
        pair(out, key, |out| write(out, value));
    }
}

/// How a line begins, with place for milliseconds and the request's id.
type Beginning = [u8; 90];

fn beginning(second: u64) -> Beginning {
    let text = format!("{{\"ts\":\"{}000Z\",\"request_id\":\"{:032}\",\"client\":", time_of_day(second), 0);
    // Years have four digits, so that it is always as long.
    text.into_bytes().try_into().unwrap_or([b' '; 90])
}

fn time_of_day(second: u64) -> String {
    let at = i64::try_from(second).ok().and_then(|second| OffsetDateTime::from_unix_timestamp(second).ok());
    let at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (date, time) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

fn or_null<T>(out: &mut Vec<u8>, value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
    match value {
        Some(value) => write(out, value),
        None => out.extend_from_slice(b"null"),
    }
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

/// A string of tokens' letters, in which nothing is to be escaped.
fn plain(out: &mut Vec<u8>, text: &str) {
    debug_assert_eq!(find(text.as_bytes(), 0, escaped), None);
    raw(out, text);
}

/// A string in which nothing is to be escaped.
fn raw(out: &mut Vec<u8>, text: &str) {
    quoted(out, |out| out.extend_from_slice(text.as_bytes()));
}

/// A JSON string (RFC 8259, 7).
fn text(out: &mut Vec<u8>, text: &str) {
    quoted(out, |out| {
        let mut rest = text.as_bytes();
        while let Some(at) = find(rest, 0, escaped) {
            out.extend_from_slice(&rest[..at]);
            match rest[at] {
                byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
                byte => {
                    let digits = [hexadecimal_digit(byte >> 4), hexadecimal_digit(byte)];
                    out.extend_from_slice(&[b'\\', b'u', b'0', b'0', digits[0], digits[1]]);
                }
            }
            rest = &rest[at + 1..];
        }
        out.extend_from_slice(rest);
    });
}

/// Bytes that a JSON string escapes.
fn escaped(some: u8x16) -> u8x16 {
    sixteen::below(some, b' ') | sixteen::equal(some, b'"') | sixteen::equal(some, b'\\')
}

/// Microseconds as milliseconds, to three places.
fn milliseconds(out: &mut Vec<u8>, us: u64) {
    if us == 0 {
        return out.extend_from_slice(b"0.000");
    }
    number(out, us / 1000);
    out.push(b'.');
    three_digits(out, us % 1000);
}

fn name<'a>(sources: &'a [Arc<SourceInfo>], index: u8, default: &'a str) -> &'a str {
    sources.get(usize::from(index)).map_or(default, |source| source.name.as_str())
}

/// Who knew the place.
fn source(source: Source, snapshot: &Snapshot) -> &str {
    let atlas = &snapshot.view.atlas;
    match source {
        Source::Unknown => "unknown",
        Source::Special => "special",
        Source::Database(index) => name(atlas.databases(), index, "database"),
        Source::Geofeed(index) => name(atlas.geofeeds(), index, "geofeed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    use crate::telemetry::access::Text;
    use crate::telemetry::access::tests::{record, snapshot};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn line(record: &AccessRecord) -> Value {
        let mut out = Vec::new();
        let mut lines = Lines::default();
        // The second is remembered from an earlier one.
        lines.append(&mut out, &self::record("/"), &snapshot());
        out.clear();
        lines.append(&mut out, record, &snapshot());
        assert_eq!(out.pop(), Some(b'\n'));
        assert!(!out.contains(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_line_is_json_whatever_the_client_sent() {
        let line = line(&record("/\u{0}\n\u{2028}%22"));
        assert_eq!(line["ts"], "2026-01-31T23:59:59.999Z");
        assert_eq!(line["request_id"], "00000000000000000000000000000abc");
        assert_eq!(line["host"], "a\"b\\\u{7}");
        assert_eq!(line["path"], "/\u{0}\n\u{2028}%22");
        assert_eq!(line["peer"], "[2001:db8::1]:443");
        assert_eq!(line["duration_ms"], 1.234);
        assert_eq!(line["service"], Value::Null);
        assert_eq!(line["place"], Value::Null);
        assert_eq!(line["gave_up"], Value::Null);
        assert_eq!(line["trace_id"], Value::Null);
        assert_eq!(line.as_object().unwrap().len(), 24);
        let page = include_str!("../../docs/access-log.md").split("## Outcomes").next().unwrap();
        for field in line.as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{field}` ")), "{field} is not in the page");
        }
    }

    #[test]
    fn in_logfmt_a_line_is_pairs_of_the_same_names() {
        let mut record = AccessRecord { place: Some(Place::nowhere(Source::Special)), ..record("/x?y=\"z\"\n") };
        record.traced.trace = 0xdef;
        let mut out = Vec::new();
        Lines::new(AccessFormat::Logfmt).append(&mut out, &record, &snapshot());
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "ts=2026-01-31T23:59:59.999Z request_id=00000000000000000000000000000abc peer=[2001:db8::1]:443 place_source=special \
             method=GET host=\"a\\\"b\\\\\\u0007\" path=\"/x?y=\\\"z\\\"\\n\" protocol=HTTP/1.1 mover=pingora status=400 outcome=bad_request \
             attempts=0 bytes_in=0 bytes_out=12 duration_ms=1.234 connect_ms=0.000 \
             trace_id=00000000000000000000000000000def\n"
        );
        let line = line(&record);
        assert_eq!(line["trace_id"], "00000000000000000000000000000def");
        let known = line.as_object().unwrap();
        for key in text.split(' ').filter_map(|pair| Some(pair.split_once('=')?.0)) {
            assert!(known.contains_key(key) || key == "place_source", "{key}");
        }
    }

    #[test]
    fn a_way_that_is_remembered_is_written_as_it_is() {
        let (mut lines, snapshot) = (Lines::default(), snapshot());
        let mut records = [record("/"), record("/"), record("/"), record("/"), record("/")];
        records[4].gave_up = Some("budget");
        // 64 x 5 more: the same place.
        (records[1].status, records[2].outcome, records[3].attempts) = (400 + 64, "other", 7);
        let slots: Vec<_> = records.iter().map(|record| Way::of(record, &snapshot).slot() % REMEMBERED).collect();
        assert!(slots.iter().all(|slot| *slot == slots[0]));
        for _ in 0..2 {
            for record in &records {
                for _ in 0..2 {
                    let mut out = Vec::new();
                    lines.append(&mut out, record, &snapshot);
                    let line: Value = serde_json::from_slice(&out).unwrap();
                    assert_eq!((&line["status"], &line["outcome"]), (&json!(record.status), &json!(record.outcome)));
                    assert_eq!(line["attempts"], record.attempts);
                    assert_eq!(line["gave_up"].as_str(), record.gave_up);
                }
            }
        }
    }

    #[test]
    fn a_place_that_is_remembered_is_written_as_it_is() {
        let (mut lines, snapshot) = (Lines::default(), snapshot());
        let mut country = Place::nowhere(Source::Unknown);
        country.country = Country::new("NL");
        let mut continent = country;
        continent.continent = country.country.map(|_| Continent::Europe);
        // All but those with a country share a slot, and so do those with it.
        let places = [Place::nowhere(Source::Special), Place::nowhere(Source::Unknown), country, continent];
        for place in [places, places].concat() {
            let record = AccessRecord { place: Some(place), ..record("/") };
            let mut out = Vec::new();
            lines.append(&mut out, &record, &snapshot);
            let line: Value = serde_json::from_slice(&out).unwrap();
            let source = if place.source == Source::Special { "special" } else { "unknown" };
            let country = place.country.as_ref().map(Country::as_str);
            let continent = place.continent.map(Continent::as_str);
            let want = json!({"country": country, "subdivision": null, "continent": continent, "source": source});
            assert_eq!(line["place"], want);
        }
    }

    #[test]
    fn a_place_is_a_json_object() {
        let mut record = record("/");
        record.place = Some(Place::nowhere(Source::Unknown));
        let unknown = json!({"country": null, "subdivision": null, "continent": null, "source": "unknown"});
        assert_eq!(line(&record)["place"], unknown);
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(
            host: String, target: String, at_us in 0..253_402_300_800_000_000_u64, id: u128, addresses: (IpAddr, SocketAddr, SocketAddr),
            numbers: (u64, u64, u16, u8), times in (0..1_u64 << 50, prop::option::of(0..1_u64 << 50), 0..1_u64 << 50),
        ) {
            let mut record = record("/");
            record.text = Text::new(&host, &target);
            (record.at_us, record.request_id) = (at_us, id);
            (record.client, record.peer, record.endpoint) = (Some(addresses.0), Some(addresses.1), Some(addresses.2));
            (record.bytes_in, record.bytes_out, record.status, record.attempts) = numbers;
            (record.total_us, record.first_byte_us, record.connect_us) = times;
            let line = line(&record);
            prop_assert_eq!((&line["host"], &line["path"]), (&json!(host), &json!(target)));
            let at = OffsetDateTime::parse(line["ts"].as_str().unwrap(), &time::format_description::well_known::Rfc3339);
            prop_assert_eq!(at.unwrap().unix_timestamp_nanos() / 1_000_000, i128::from(at_us / 1000));
            prop_assert_eq!(u128::from_str_radix(line["request_id"].as_str().unwrap(), 16).unwrap(), id);
            let addresses = (addresses.0.to_string(), addresses.1.to_string(), addresses.2.to_string());
            prop_assert_eq!((&line["client"], &line["peer"], &line["endpoint"]), (&json!(addresses.0), &json!(addresses.1), &json!(addresses.2)));
            prop_assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&json!(numbers.0), &json!(numbers.1)));
            prop_assert_eq!((&line["status"], &line["attempts"]), (&json!(numbers.2), &json!(numbers.3)));
            let ms = |us: u64| us as f64 / 1000.0;
            prop_assert_eq!(line["duration_ms"].as_f64().unwrap(), ms(times.0));
            prop_assert_eq!(line["first_byte_ms"].as_f64(), times.1.map(ms));
            prop_assert_eq!(line["connect_ms"].as_f64().unwrap(), ms(times.2));
        }
    }
}
