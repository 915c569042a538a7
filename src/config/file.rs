//! As written: TOML with the place of every key and value kept.
