//! `/api/explain?ip=ADDRESS[&host=H][&path=P][&method=M][&affinity=REGION]`: the decision for a client as this process sees the world now.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::steering::explain::{Explanation, Question};
use crate::steering::{RegionSet, Snapshot};

/// The explanation that `query` asks for, or what is wrong with the query. `now`: nanoseconds of the writer's clock.
pub(super) fn of(snapshot: &Snapshot, query: &str, now: impl Fn() -> u64) -> Result<Explanation, String> {
    let mut ip = None;
    let mut question = Question {
        client: std::net::IpAddr::from([0, 0, 0, 0]),
        host: None,
        path: "/".to_owned(),
        method: "GET".to_owned(),
        affinity: None,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value).ok_or_else(|| format!("`{key}` is not UTF-8\n"))?;
        match key {
            "ip" => ip = Some(value),
            "host" => question.host = Some(value.into_owned()),
            "path" => question.path = value.into_owned(),
            "method" => question.method = value.into_owned(),
            "affinity" => question.affinity = Some(value.into_owned()),
            _ => return Err(format!("there is no `{key}`; there are ip, host, path, method and affinity\n")),
        }
    }
    let ip = ip.ok_or("`ip` is missing: /api/explain?ip=192.0.2.1\n")?;
    if let Some(name) = question.affinity.as_ref().filter(|name| snapshot.fleet().region_named(name).is_none()) {
        return Err(format!("there is no region `{name}`\n"));
    }
    question.client = ip.parse().map_err(|_| format!("`{ip}` is not an address\n"))?;
    Ok(snapshot.explain(&question, "live; as the running process sees it", snapshot.full(RegionSet::ALL, now)))
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}
