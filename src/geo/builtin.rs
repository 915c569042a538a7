//! The world database built into the binary.
//!
//! An MMDB file like any operator's, so that there is one reader; only compressed, because zstd makes it fit. Made
//! by `make geoip`; see `geoip/README.md` for where it comes from and how exact it is.

use std::io::{self, Read};

/// What the configuration, `explain` and metrics call it.
pub const NAME: &str = "builtin";

/// Decompressed it has about 19 MB; the cap keeps a damaged build from filling the memory.
const MAX_BYTES: u64 = 128 << 20;

static COMPRESSED: &[u8] = include_bytes!("../../geoip/builtin.mmdb.zst");

/// The database as MMDB bytes, decompressed anew each time: needed once for every atlas that uses it. An error means
/// a binary whose database is damaged.
pub fn bytes() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    zstd::Decoder::with_buffer(COMPRESSED)?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geo::AtlasBuilder;

    #[test]
    fn it_is_complete() {
        let bytes = bytes().unwrap();
        assert!((bytes.len() as u64) < MAX_BYTES);
        let atlas = AtlasBuilder::new().database(NAME, &bytes).unwrap().build();
        let info = &atlas.databases()[0];
        assert!(info.coordinates && info.networks > 1_000_000 && info.bad_coordinates == 0, "{info:?}");
    }
}
