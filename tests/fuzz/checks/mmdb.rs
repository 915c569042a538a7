//! Bytes as an operator's MMDB file, held against what `maxminddb` finds in them.

use std::net::IpAddr;

use maxminddb::Reader;
use meridian::geo::{AtlasBuilder, Canonical, Source};

/// What is looked up beside what the bytes name.
const ADDRESSES: [&str; 8] =
    ["0.0.0.0", "1.1.1.1", "81.2.69.142", "128.0.0.1", "255.255.255.255", "2000::", "2a00:1450::1", "3fff:ffff::"];

/// A file is refused with a reason or read to its end, and then a place is known only where the file has a record.
pub(crate) fn mmdb(data: &[u8]) {
    let atlas = match AtlasBuilder::new().database("fuzz", data) {
        Ok(builder) => builder.build(),
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let reader = Reader::from_source(data).expect("it was opened before");
    assert!(atlas.databases()[0].networks > 0);
    let fours = data.chunks_exact(4).take(8).map(|bytes| IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let named = ADDRESSES.iter().map(|text| text.parse().expect("an address"));
    for address in fours.chain(named) {
        let located = atlas.locate(Canonical::new(address));
        assert_eq!(located.feed_len, None);
        if let Source::Database(index) = atlas.place(located.place).source {
            assert_eq!(index, 0);
            let found = reader.lookup(address).expect("it was read before");
            assert!(found.has_data(), "{address}");
        }
    }
}
