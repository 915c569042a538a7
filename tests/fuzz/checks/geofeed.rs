//! Geofeeds, held against a search over their lines.

use std::net::IpAddr;

use meridian::geo::{AtlasBuilder, Canonical, GeofeedError, Prefix};

/// What a geofeed says of an address is what its longest prefix says; line ends and remarks change nothing; a line that is refused is there.
pub(crate) fn geofeed(data: &[u8]) {
    let built = AtlasBuilder::new().geofeed("feed", data).map(AtlasBuilder::build);
    let text = String::from_utf8_lossy(data);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let atlas = match built {
        Ok(atlas) => atlas,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            if let GeofeedError::Lines { named, .. } = &error {
                assert!(named.is_sorted_by(|(before, _), (after, _)| before < after));
                let line = |number: usize| text.lines().nth(number - 1).unwrap_or_default();
                assert!(named.iter().all(|(number, _)| !line(*number).trim().is_empty()), "{error}");
            }
            let again = AtlasBuilder::new().geofeed("feed", &retold(text)).map(|_| ());
            assert_eq!(again.map_err(|again| refused(&again)), Err(refused(&error)));
            return;
        }
    };
    let retold = AtlasBuilder::new().geofeed("feed", &retold(text)).expect("the same feed").build();
    assert_eq!(atlas.geofeeds()[0].networks, retold.geofeeds()[0].networks);

    // Prefix and country of each line; in quotes they are beyond this reading.
    if text.contains('"') {
        return;
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entries: Vec<(Prefix, String)> = lines
        .map(|line| {
            let mut fields = line.split(',').map(str::trim);
            let prefix = fields.next().and_then(|prefix| prefix.parse().ok()).expect("it was taken as a prefix");
            (prefix, fields.next().unwrap_or_default().to_ascii_uppercase())
        })
        .collect();
    assert_eq!(entries.len() as u64, atlas.geofeeds()[0].networks);
    for (prefix, _) in entries.iter().take(50) {
        for address in [prefix.first(), prefix.last()] {
            let client = Canonical::new(address);
            let located = atlas.locate(client);
            assert_eq!(located, retold.locate(client));
            let Some((longest, country)) = longest(&entries, client.ip()) else {
                assert_eq!(located.feed_len, None, "{address}");
                continue;
            };
            assert_eq!(located.feed_len, Some(longest.prefix_len()), "{address}");
            let found = atlas.place(located.place).country.map(|country| country.as_str().to_owned());
            assert_eq!(found.unwrap_or_default(), *country, "{address}");
        }
    }
}

/// How many lines are refused.
fn refused(error: &GeofeedError) -> usize {
    match error {
        GeofeedError::Lines { named, more } => named.len() + more,
        GeofeedError::Empty | GeofeedError::TooMany => 0,
    }
}

fn longest(entries: &[(Prefix, String)], address: IpAddr) -> Option<&(Prefix, String)> {
    entries.iter().filter(|(prefix, _)| prefix.contains(address)).max_by_key(|(prefix, _)| prefix.prefix_len())
}

/// The same with other line ends, a mark at its begin and remarks between its lines.
fn retold(text: &str) -> Vec<u8> {
    let lines: Vec<&str> = text.lines().collect();
    format!("\u{feff}{}", lines.join("\r\n# a remark\r\n")).into_bytes()
}
