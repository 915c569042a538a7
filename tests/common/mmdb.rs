//! A small MMDB writer: files of any shape for tests, also wrong ones.

use std::net::IpAddr;

use meridian::geo::Prefix;

/// A value of the format.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Map(Vec<(&'static str, Value)>),
    List(Vec<Value>),
    Text(&'static str),
    Double(f64),
    Float(f32),
    Short(u16),
    Unsigned(u32),
    Long(u64),
    Signed(i32),
}

/// A map value.
pub(crate) fn map<const N: usize>(fields: [(&'static str, Value); N]) -> Value {
    Value::Map(fields.into())
}

/// What a file says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) ip_version: u16,
    pub(crate) record_size: u16,
    pub(crate) database_type: &'static str,
    pub(crate) build_epoch: u64,
}

impl Default for Header {
    fn default() -> Self {
        Header { ip_version: 6, record_size: 28, database_type: "Test-City", build_epoch: 1_700_000_000 }
    }
}

#[derive(Clone, Copy)]
enum Child {
    Empty,
    Node(usize),
    Record(usize),
}

/// A database of networks; a later entry replaces what it covers. IPv4 networks go where the version keeps them.
pub(crate) fn database(header: Header, entries: &[(&str, Value)]) -> Vec<u8> {
    let mut nodes = vec![[Child::Empty; 2]];
    let mut data = Vec::new();
    for (prefix, value) in entries {
        let prefix: Prefix = prefix.parse().expect("a prefix");
        let record = Child::Record(data.len());
        encode(value, &mut data);
        let (bits, len) = match (prefix.address(), header.ip_version) {
            (IpAddr::V4(v4), 4) => (u128::from(u32::from(v4)) << 96, prefix.prefix_len()),
            (IpAddr::V4(v4), _) => (u128::from(u32::from(v4)), prefix.prefix_len() + 96),
            (IpAddr::V6(v6), _) => (u128::from(v6), prefix.prefix_len()),
        };
        let mut node = 0;
        for depth in 0..len {
            let side = (bits >> (127 - depth) & 1) as usize;
            if depth + 1 == len {
                nodes[node][side] = record;
            } else if let Child::Node(next) = nodes[node][side] {
                node = next;
            } else {
                // A record that held for more now holds for both halves.
                let both = nodes[node][side];
                nodes.push([both; 2]);
                nodes[node][side] = Child::Node(nodes.len() - 1);
                node = nodes.len() - 1;
            }
        }
    }
    let count = nodes.len();
    let number = |child: &Child| match child {
        Child::Empty => count,
        Child::Node(node) => *node,
        Child::Record(offset) => count + 16 + offset,
    };
    let tree: Vec<[u32; 2]> = nodes.iter().map(|[a, b]| [number(a) as u32, number(b) as u32]).collect();
    file(header, &tree, &data)
}

/// A file of these nodes and this data, taken as they are.
pub(crate) fn file(header: Header, nodes: &[[u32; 2]], data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for [left, right] in nodes {
        let (l, r) = (left.to_be_bytes(), right.to_be_bytes());
        match header.record_size {
            24 => out.extend([l[1], l[2], l[3], r[1], r[2], r[3]]),
            28 => out.extend([l[1], l[2], l[3], l[0] << 4 | r[0], r[1], r[2], r[3]]),
            _ => out.extend([l, r].concat()),
        }
    }
    out.extend([0; 16]);
    out.extend(data);
    out.extend(b"\xab\xcd\xefMaxMind.com");
    let metadata = map([
        ("binary_format_major_version", Value::Short(2)),
        ("binary_format_minor_version", Value::Short(0)),
        ("build_epoch", Value::Long(header.build_epoch)),
        ("database_type", Value::Text(header.database_type)),
        ("description", Value::Map(Vec::new())),
        ("ip_version", Value::Short(header.ip_version)),
        ("languages", Value::List(Vec::new())),
        ("node_count", Value::Unsigned(nodes.len() as u32)),
        ("record_size", Value::Short(header.record_size)),
    ]);
    encode(&metadata, &mut out);
    out
}

/// Appends a value in the format's encoding.
pub(crate) fn encode(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Map(fields) => {
            out.push(7 << 5 | size(fields.len()));
            for (key, value) in fields {
                encode(&Value::Text(key), out);
                encode(value, out);
            }
        }
        Value::List(values) => {
            out.extend([size(values.len()), 11 - 7]);
            values.iter().for_each(|value| encode(value, out));
        }
        Value::Text(text) => {
            out.push(2 << 5 | size(text.len()));
            out.extend(text.as_bytes());
        }
        Value::Double(number) => {
            out.push(3 << 5 | 8);
            out.extend(number.to_be_bytes());
        }
        Value::Float(number) => {
            out.extend([4, 15 - 7]);
            out.extend(number.to_be_bytes());
        }
        Value::Short(number) => {
            out.push(5 << 5 | 2);
            out.extend(number.to_be_bytes());
        }
        Value::Long(number) => {
            out.extend([8, 9 - 7]);
            out.extend(number.to_be_bytes());
        }
        Value::Unsigned(number) => {
            out.push(6 << 5 | 4);
            out.extend(number.to_be_bytes());
        }
        Value::Signed(number) => {
            out.extend([4, 8 - 7]);
            out.extend(number.to_be_bytes());
        }
    }
}

fn size(len: usize) -> u8 {
    assert!(len < 29, "this writer knows short values only");
    len as u8
}
