//! The atlas against `maxminddb` itself, and against databases and geofeeds of every odd shape.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "common/mmdb.rs"]
mod mmdb;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use maxminddb::Reader;
use meridian::geo::{
    Atlas, AtlasBuilder, Canonical, Country, DatabaseError, GeofeedError, Place, PlaceId, Point, Source, builtin,
    tables,
};
use mmdb::{Header, Value, map};

const ORACLE: &[u8] = include_bytes!("data/geo/oracle-city.mmdb");

fn atlas(databases: &[&[u8]]) -> Atlas {
    let add = |builder: AtlasBuilder, bytes: &&[u8]| builder.database("test", bytes).unwrap();
    databases.iter().fold(AtlasBuilder::new(), add).build()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn place(atlas: &Atlas, text: &str) -> Place {
    atlas.place(atlas.locate(Canonical::new(address(text))).place)
}

/// What `maxminddb` says of an address, as text: point (exact bits), country, subdivision, continent.
fn looked_up(reader: &Reader<&[u8]>, client: Canonical) -> Option<String> {
    if client.ip().is_ipv6() && reader.metadata().ip_version == 4 {
        return None;
    }
    let city: maxminddb::geoip2::City = reader.lookup(client.ip()).unwrap().decode().unwrap()?;
    let point = city.location.latitude.zip(city.location.longitude);
    let country = city.country.iso_code;
    let derived = country.and_then(Country::new).and_then(tables::continent_of).map(|c| c.as_str());
    let continent = city.continent.code.or(derived);
    let subdivision = city.subdivisions.first().and_then(|s| s.iso_code);
    if point.is_none() && country.is_none() && continent.is_none() {
        return None;
    }
    let point = point.map(|(latitude, longitude)| (latitude.to_bits(), longitude.to_bits()));
    Some(format!("{point:?} {country:?} {subdivision:?} {continent:?}"))
}

/// The same of the atlas.
fn located(atlas: &Atlas, client: Canonical) -> Option<String> {
    let id = atlas.locate(client).place;
    if id == PlaceId::UNKNOWN || id == PlaceId::SPECIAL {
        return None;
    }
    let place = atlas.place(id);
    assert_eq!(place.source, Source::Database(0));
    let point = place.point.map(|p| (p.latitude().to_bits(), p.longitude().to_bits()));
    let country = place.country.map(|c| c.to_string());
    let subdivision = place.subdivision.map(|s| s.as_str().to_owned());
    Some(format!("{point:?} {country:?} {subdivision:?} {:?}", place.continent.map(|c| c.as_str())))
}

/// Addresses of every kind that matters, the same in every run: over the whole space, over the part of IPv6 in use,
/// and close to listed networks.
fn random_addresses(count: usize, networks: &[(IpAddr, u8)]) -> impl Iterator<Item = IpAddr> {
    let mut random = fastrand::Rng::with_seed(0x6d65_7269_6469_616e);
    (0..count).map(move |n| match n % 5 {
        0 | 1 => IpAddr::V4(Ipv4Addr::from(random.u32(..))),
        2 => IpAddr::V6(Ipv6Addr::from(random.u128(..))),
        3 => IpAddr::V6(Ipv6Addr::from(random.u128(..) >> 3 | 1 << 125)),
        _ => match networks[random.usize(..networks.len())] {
            (IpAddr::V4(base), len) => {
                let host = random.u32(..).checked_shr(len.into()).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(base) | host))
            }
            (IpAddr::V6(base), len) => {
                let host = random.u128(..).checked_shr(len.into()).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(base) | host))
            }
        },
    })
}

/// First and last address of a network, and their neighbours outside.
fn edges((base, len): (IpAddr, u8)) -> Vec<IpAddr> {
    match base {
        IpAddr::V4(base) => {
            let first = u32::from(base);
            let last = first | u32::MAX.checked_shr(len.into()).unwrap_or(0);
            let all = [Some(first), Some(last), first.checked_sub(1), last.checked_add(1)];
            all.into_iter().flatten().map(|a| IpAddr::V4(a.into())).collect()
        }
        IpAddr::V6(base) => {
            let first = u128::from(base);
            let last = first | u128::MAX.checked_shr(len.into()).unwrap_or(0);
            let all = [Some(first), Some(last), first.checked_sub(1), last.checked_add(1)];
            all.into_iter().flatten().map(|a| IpAddr::V6(a.into())).collect()
        }
    }
}

fn networks(reader: &Reader<&[u8]>) -> Vec<(IpAddr, u8)> {
    let all = reader.networks(maxminddb::WithinOptions::default()).unwrap();
    all.map(|found| found.unwrap().network().unwrap()).map(|n| (n.network(), n.prefix())).collect()
}

fn assert_agrees(bytes: &[u8], random: usize, every_nth_network: usize) {
    let reader = Reader::from_source(bytes).unwrap();
    let atlas = atlas(&[bytes]);
    let networks = networks(&reader);
    let edges = networks.iter().step_by(every_nth_network).flat_map(|network| edges(*network));
    for address in edges.chain(random_addresses(random, &networks)) {
        let client = Canonical::new(address);
        assert_eq!(located(&atlas, client), looked_up(&reader, client), "{address}");
    }
}

#[test]
fn every_edge_and_a_million_addresses_agree_with_maxminddb() {
    assert_agrees(ORACLE, 1_000_000, 1);
}

#[test]
fn maxminds_own_test_databases_are_read() {
    assert_agrees(include_bytes!("data/mmdb/GeoIP2-City-Test.mmdb"), 1_000, 1);
    let countries = atlas(&[include_bytes!("data/mmdb/GeoIP2-Country-Test.mmdb")]);
    let london = place(&countries, "81.2.69.142");
    assert_eq!((london.country, london.point), (Country::new("GB"), tables::capital_of(Country::new("GB").unwrap())));
}

#[test]
fn the_builtin_database_agrees_with_maxminddb() {
    assert_agrees(&builtin::bytes().unwrap(), 200_000, 53);
}

fn city(country: &'static str, latitude: f64, longitude: f64) -> Value {
    map([
        ("country", map([("iso_code", Value::Text(country))])),
        ("location", map([("latitude", Value::Double(latitude)), ("longitude", Value::Double(longitude))])),
    ])
}

fn flat(country: &'static str, state: &'static str, latitude: f32, longitude: f32) -> Value {
    map([
        ("city", Value::Text("Somewhere")),
        ("country_code", Value::Text(country)),
        ("latitude", Value::Float(latitude)),
        ("longitude", Value::Float(longitude)),
        ("state1", Value::Text(state)),
    ])
}

const V4_FILE: Header = Header { ip_version: 4, record_size: 24, database_type: "city ipv4", build_epoch: 5 };

#[test]
fn a_file_for_each_family_and_the_flat_schema() {
    let v4 = mmdb::database(V4_FILE, &[("203.0.112.0/23", flat("US", "California", 37.5, -122.1))]);
    let v6 =
        mmdb::database(Header { record_size: 32, ..Header::default() }, &[("2600::/16", flat("CA", "?", 45.4, -75.7))]);
    let atlas = atlas(&[&v4, &v6]);
    let here = place(&atlas, "203.0.113.77");
    assert_eq!(here.point, Point::new(37.5, f64::from(-122.1_f32)));
    assert!(here.is_in("subdivision:US-CA".parse().unwrap()) && here.is_in("continent:NA".parse().unwrap()));
    assert_eq!(here.source, Source::Database(0));
    let there = place(&atlas, "2600:1::1");
    assert_eq!((there.country, there.subdivision, there.source), (Country::new("CA"), None, Source::Database(1)));
    assert_eq!(place(&atlas, "8.8.8.8"), Place::nowhere(Source::Unknown));
    assert_eq!(place(&atlas, "2a00::1"), Place::nowhere(Source::Unknown));
    let [v4_info, v6_info] = atlas.databases() else { panic!("two databases") };
    assert_eq!((v4_info.built_at, v4_info.networks, v4_info.kind.as_str()), (5, 1, "city ipv4"));
    assert!(v6_info.coordinates && v6_info.built_at == 1_700_000_000);
}

#[test]
fn the_first_database_that_knows_an_address_answers() {
    let first = mmdb::database(
        Header::default(),
        &[
            ("198.16.0.0/12", map([("city", map([("names", map([]))]))])),
            ("198.20.0.0/16", map([("country", map([("iso_code", Value::Text("FR"))]))])),
            ("198.21.0.0/16", city("FR", 48.8, 2.3)),
            ("198.21.3.0/24", map([("continent", map([("code", Value::Text("EU"))]))])),
            ("2600::/12", city("FR", 48.8, 2.3)),
        ],
    );
    let second =
        mmdb::database(Header::default(), &[("198.0.0.0/8", city("US", 1.0, 2.0)), ("2600::/8", city("US", 1.0, 2.0))]);
    let atlas = atlas(&[&first, &second]);
    let source = |text| place(&atlas, text).source;
    for (text, index) in [
        ("198.15.255.255", 1),
        ("198.16.0.0", 1),
        ("198.19.255.255", 1),
        ("198.20.0.0", 0),
        ("198.20.255.255", 0),
        ("198.21.2.255", 0),
        ("198.21.3.1", 0),
        ("198.21.4.0", 0),
        ("198.22.0.0", 1),
        ("198.31.255.255", 1),
        ("260f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0),
        ("2610::", 1),
        ("26ff::1", 1),
    ] {
        assert_eq!(source(text), Source::Database(index), "{text}");
    }
    // Of a city database, a record without coordinates has no point, but its country and continent count.
    let bare = place(&atlas, "198.20.0.1");
    assert_eq!((bare.point, bare.country), (None, Country::new("FR")));
    assert!(bare.is_in("continent:EU".parse().unwrap()));
    assert!(place(&atlas, "198.21.3.1").is_in("continent:EU".parse().unwrap()));
}

#[test]
fn countries_stand_for_their_capitals_only_where_no_record_has_coordinates() {
    let country = |code| map([("country", map([("iso_code", Value::Text(code))]))]);
    let countries =
        mmdb::database(Header::default(), &[("198.20.0.0/16", country("JP")), ("2600::/12", country("ZZ"))]);
    let atlas = atlas(&[&countries]);
    let tokyo = place(&atlas, "198.20.1.1");
    assert_eq!((tokyo.point, tokyo.source), (tables::capital_of(Country::new("JP").unwrap()), Source::Database(0)));
    assert!(tokyo.point.is_some() && !atlas.databases()[0].coordinates);
    assert_eq!((place(&atlas, "2600::1").point, place(&atlas, "2600::1").country), (None, Country::new("ZZ")));
}

#[test]
fn coordinates_come_in_any_width_and_wrong_ones_are_counted() {
    let at = |latitude, longitude| map([("location", map([("latitude", latitude), ("longitude", longitude)]))]);
    let half = map([
        ("location", map([("latitude", Value::Double(1.0))])),
        ("country", map([("iso_code", Value::Text("FR"))])),
    ]);
    let bytes = mmdb::database(
        V4_FILE,
        &[
            ("1.0.0.0/24", at(Value::Unsigned(10), Value::Signed(-20))),
            ("1.0.1.0/24", at(Value::Float(0.5), Value::Double(-0.1))),
            ("1.0.2.0/24", at(Value::Double(0.0), Value::Double(0.0))),
            ("1.0.3.0/24", at(Value::Double(91.0), Value::Double(0.0))),
            ("1.0.4.0/24", at(Value::Double(f64::NAN), Value::Double(0.0))),
            ("1.0.5.0/24", half),
            ("1.0.6.0/24", city("FR", 48.0, 181.0)),
        ],
    );
    let atlas = atlas(&[&bytes]);
    let point = |text| place(&atlas, text).point;
    assert_eq!(point("1.0.0.1"), Point::new(10.0, -20.0));
    assert_eq!(point("1.0.1.1"), Point::new(0.5, -0.1));
    assert_eq!(point("1.0.2.1"), Point::new(0.0, 0.0));
    assert_eq!(place(&atlas, "1.0.3.1"), Place::nowhere(Source::Unknown));
    assert_eq!(place(&atlas, "1.0.4.1"), Place::nowhere(Source::Unknown));
    for text in ["1.0.5.1", "1.0.6.1"] {
        assert_eq!((point(text), place(&atlas, text).country), (None, Country::new("FR")), "{text}");
    }
    assert_eq!(atlas.databases()[0].bad_coordinates, 4);
}

#[test]
fn networks_longer_than_64_bits_keep_their_places() {
    let bytes = mmdb::database(
        Header::default(),
        &[
            ("2600::/32", city("US", 1.0, 0.0)),
            ("2600:0:0:5::/64", city("US", 2.0, 0.0)),
            ("2600:0:0:5:8000::/65", city("US", 3.0, 0.0)),
            ("2600:0:0:5:8000::7/128", city("US", 4.0, 0.0)),
            ("2600:0:0:6::/127", city("US", 5.0, 0.0)),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", city("US", 6.0, 0.0)),
        ],
    );
    let atlas = atlas(&[&bytes]);
    let latitude = |text| place(&atlas, text).point.map(|p| p.latitude());
    for (text, expected) in [
        ("2600::4:ffff:ffff:ffff:ffff", Some(1.0)),
        ("2600:0:0:5::", Some(2.0)),
        ("2600:0:0:5:7fff:ffff:ffff:ffff", Some(2.0)),
        ("2600:0:0:5:8000::6", Some(3.0)),
        ("2600:0:0:5:8000::7", Some(4.0)),
        ("2600:0:0:5:8000::8", Some(3.0)),
        ("2600:0:0:5:ffff:ffff:ffff:ffff", Some(3.0)),
        ("2600:0:0:6::1", Some(5.0)),
        ("2600:0:0:6::2", Some(1.0)),
        ("2600:0:0:7::", Some(1.0)),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", None),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Some(6.0)),
    ] {
        assert_eq!(latitude(text), expected, "{text}");
    }
}

/// One record for everything is the record of `::` too, which must not make its other networks aliases of IPv4.
#[test]
fn one_record_for_all_networks_is_found_in_all_of_them() {
    let mut data = Vec::new();
    mmdb::encode(&city("FR", 48.8, 2.3), &mut data);
    let bytes = mmdb::file(Header::default(), &[[1 + 16, 1 + 16]], &data);
    let atlas = atlas(&[&bytes]);
    for text in ["0.0.0.0", "8.8.8.8", "255.255.255.255", "2600::1", "::1", "ffff::", "10.0.0.1"] {
        assert_eq!(place(&atlas, text).country, Country::new("FR"), "{text}");
    }
    assert_eq!(atlas.databases()[0].networks, 3);
}

#[test]
fn wrapped_and_special_addresses() {
    let bytes = mmdb::database(
        Header::default(),
        &[
            ("41.208.230.0/24", city("ZA", -26.0, 28.0)),
            ("10.9.0.0/16", city("FR", 48.8, 2.3)),
            ("fd00:1::/32", city("FR", 48.8, 2.3)),
        ],
    );
    let atlas = atlas(&[&bytes]);
    for text in [
        "41.208.230.222",
        "::ffff:41.208.230.222",
        "::ffff:0:41.208.230.222",
        "64:ff9b::41.208.230.222",
        "2001:0:1:2:3:4:d62f:1921",
        "2002:29d0:e6de::1",
        "::41.208.230.222",
    ] {
        assert_eq!(place(&atlas, text).country, Country::new("ZA"), "{text}");
    }
    let special = |text| place(&atlas, text).source == Source::Special;
    for text in
        ["10.8.0.1", "10.10.0.0", "127.0.0.1", "::1", "fd00:2::", "::8.8.8.8", "239.255.255.255", "255.255.255.255"]
    {
        assert!(special(text), "{text}");
    }
    for text in ["10.9.0.1", "fd00:1::1", "8.8.8.8", "2a00::1", "41.208.231.0"] {
        assert!(!special(text), "{text}");
    }
    assert_eq!(Atlas::empty().locate(Canonical::new(address("8.8.8.8"))).place, PlaceId::UNKNOWN);
    assert_eq!(Atlas::empty().locate(Canonical::new(address("192.168.1.1"))).place, PlaceId::SPECIAL);
}

#[test]
fn geofeeds_come_before_databases_and_the_longest_prefix_among_them_wins() {
    let database = mmdb::database(
        Header::default(),
        &[("198.0.0.0/8", city("FR", 48.8, 2.3)), ("2600::/12", city("FR", 48.8, 2.3))],
    );
    let atlas = AtlasBuilder::new()
        .database("file", &database)
        .unwrap()
        .geofeed("one", b"198.20.0.0/16,US,US-CA,,\n198.20.5.0/24,,,,\n10.0.0.0/8,DE\n2600:1::/32,JP,,,\n0.0.0.0/1,GB")
        .unwrap()
        .geofeed(
            "two",
            b"198.20.0.0/16,CA\n198.20.7.0/25,CA,CA-ON\n198.20.6.0/23,NL\n2600:1:2:3:4::/80,KR\n255.255.255.255,BE",
        )
        .unwrap()
        .build();
    let found = |text: &str| {
        let located = atlas.locate(Canonical::new(address(text)));
        let place = atlas.place(located.place);
        let country = place.country.map_or("-".to_owned(), |c| c.to_string());
        (country, located.feed_len, place.source)
    };
    let (one, two) = (Source::Geofeed(0), Source::Geofeed(1));
    for (text, country, feed_len, source) in [
        ("198.19.255.255", "FR", None, Source::Database(0)),
        ("198.20.0.0", "US", Some(16), one),
        ("198.20.4.255", "US", Some(16), one),
        ("198.20.5.0", "-", Some(24), Source::Unknown),
        ("198.20.6.0", "NL", Some(23), two),
        ("198.20.7.0", "CA", Some(25), two),
        ("198.20.7.128", "NL", Some(23), two),
        ("198.20.8.0", "US", Some(16), one),
        ("198.20.255.255", "US", Some(16), one),
        ("198.21.0.0", "FR", None, Source::Database(0)),
        ("10.1.2.3", "DE", Some(8), one),
        ("11.0.0.0", "GB", Some(1), one),
        ("127.255.255.255", "GB", Some(1), one),
        ("128.0.0.0", "-", None, Source::Unknown),
        ("255.255.255.255", "BE", Some(32), two),
        ("2600:1::1", "JP", Some(32), one),
        ("2600:1:2:3:3:ffff:ffff:ffff", "JP", Some(32), one),
        ("2600:1:2:3:4::", "KR", Some(80), two),
        ("2600:1:2:3:5::", "JP", Some(32), one),
        ("2600:2::", "FR", None, Source::Database(0)),
    ] {
        assert_eq!(found(text), (country.to_owned(), feed_len, source), "{text}");
    }
    let california = place(&atlas, "198.20.0.1").point.unwrap();
    assert!(california.distance_km(Point::new(36.0, -119.5).unwrap()) < 300.0);
    assert_eq!(place(&atlas, "2600:1::1").point, tables::capital_of(Country::new("JP").unwrap()));
    assert_eq!(atlas.geofeeds().iter().map(|feed| feed.networks).collect::<Vec<_>>(), [5, 5]);
}

#[test]
fn a_bad_geofeed_is_refused_with_its_lines() {
    let error = AtlasBuilder::new().geofeed("feed", b"198.20.0.0/16,US\n198.20.0.0/33,US\n").err().unwrap();
    assert!(matches!(error, GeofeedError::Lines { .. }));
    assert_eq!(error.to_string(), "line 2: prefix length 33 is out of range; expected 0 to 32");
}

fn refusal(bytes: &[u8]) -> DatabaseError {
    AtlasBuilder::new().database("bad", bytes).err().expect("it is refused")
}

/// Files that crashed or hung readers, from MaxMind's collection; see `data/mmdb/README.md`.
#[test]
fn broken_databases_are_refused_with_a_reason() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mmdb/broken");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "mmdb") {
            let text = refusal(&std::fs::read(&path).unwrap()).to_string();
            assert!(text.contains("expected"), "{}: {text}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} files");
}

#[test]
fn databases_of_something_else_or_of_nothing_are_refused() {
    let text = refusal(include_bytes!("data/mmdb/GeoLite2-ASN-Test.mmdb")).to_string();
    assert!(text.contains("only 0 of its 412 networks") && text.contains("`GeoLite2-ASN`"), "{text}");
    assert!(matches!(refusal(&mmdb::database(Header::default(), &[])), DatabaseError::Empty));
    let wrong_type = mmdb::database(Header::default(), &[("1.0.0.0/8", map([("country", Value::Text("FR"))]))]);
    let text = refusal(&wrong_type).to_string();
    assert!(text.starts_with("the record of 1.0.0.0 cannot be read"), "{text}");
    for bytes in [&b""[..], b"not a database", &[0x1f, 0x8b, 8, 0]] {
        assert!(matches!(refusal(bytes), DatabaseError::NotMmdb(_)));
    }
}

#[test]
fn nodes_in_a_circle_or_shared_without_end_are_refused() {
    let mut data = Vec::new();
    mmdb::encode(&city("FR", 48.8, 2.3), &mut data);
    let circle = mmdb::file(Header::default(), &[[0, 0]], &data);
    assert!(refusal(&circle).to_string().contains("a path is longer than an address"));
    // Each node's halves are the next node: 2^40 networks in 41 nodes.
    let mut shared: Vec<[u32; 2]> = (1..=40).map(|next| [next, next]).collect();
    shared.push([41 + 16, 41]);
    let shared = mmdb::file(Header::default(), &shared, &data);
    assert!(refusal(&shared).to_string().contains("networks"));
}

#[test]
fn a_half_written_file_is_refused_at_any_length() {
    for cut in (0..ORACLE.len()).step_by(ORACLE.len() / 97).skip(1).chain([ORACLE.len() - 1]) {
        refusal(&ORACLE[..cut]);
    }
}

/// A flipped bit may leave a readable file with a wrong city; what it must not do is crash or hang.
#[test]
fn flipped_bits_are_an_error_or_a_city() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut refused = 0;
    for _ in 0..60 {
        let mut bytes = ORACLE.to_vec();
        for _ in 0..50 {
            let at = random.usize(..bytes.len());
            bytes[at] ^= 1 << random.u8(..8);
        }
        refused += usize::from(AtlasBuilder::new().database("flipped", &bytes).is_err());
    }
    assert!(refused > 30, "{refused} of 60");
}
