//! Pingora's heads as header fields.

use pingora::http::{RequestHeader, ResponseHeader};

use crate::proxy::Fields;

/// A value that is no field value is left out: the phases write none, so that it would be their mistake, and no request is
/// worth a panic.
macro_rules! impl_fields {
    ($head:ty) => {
        impl Fields for $head {
            fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &[u8]> {
                self.headers.get_all(name).iter().map(|value| value.as_bytes())
            }

            fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
                self.headers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
            }

            fn remove(&mut self, name: &str) {
                self.remove_header(name);
            }

            fn set(&mut self, name: &'static str, value: &[u8]) {
                let _ = self.insert_header(name, value);
            }

            fn append(&mut self, name: &'static str, parts: &[&[u8]]) {
                let _ = self.append_header(name, parts.concat());
            }

            fn put(&mut self, name: &str, value: &[u8]) {
                let _ = self.insert_header(name.to_owned(), value);
            }

            fn add(&mut self, name: &str, value: &[u8]) {
                let _ = self.append_header(name.to_owned(), value);
            }
        }
    };
}

impl_fields!(RequestHeader);
impl_fields!(ResponseHeader);
