//! Header fields as the phases see them.
//!
//! Movers keep heads in their own shape (a map, a parsed byte slice). The phases need little of it: look, remove, set, add. Names given by
//! the phases are lower case, those of a service's rules as they were written; comparing ignores case.

/// A list of header fields. Values keep their order within a name.
pub trait Fields {
    /// The values of a field, one for each line.
    fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &[u8]>;

    /// Every line: name and value.
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])>;

    /// How many lines there are, and their bytes on the wire: `name: value CRLF`.
    fn extent(&self) -> (usize, u64) {
        self.lines()
            .fold((0, 0), |(count, bytes), (name, value)| (count + 1, bytes + (name.len() + value.len() + 4) as u64))
    }

    /// Whether a name may have an underscore in it: false only where that was seen while names were read.
    fn may_have_underscores(&self) -> bool {
        true
    }

    /// Removes every line of that name.
    fn remove(&mut self, name: &str);

    /// Puts one line in place of every line of that name.
    fn set(&mut self, name: &'static str, value: &[u8]);

    /// Adds a line; its value is all parts together.
    fn append(&mut self, name: &'static str, parts: &[&[u8]]);

    /// [`Fields::set`] for a name that a service's rules give, a token.
    fn put(&mut self, name: &str, value: &[u8]);

    /// Adds a line of such a name.
    fn add(&mut self, name: &str, value: &[u8]);

    /// Continues a comma-separated list by one member: one line in place of every line of that name, empty ones left out.
    fn append_member(&mut self, name: &'static str, member: &[u8]) {
        let mut list = Vec::new();
        for line in self.values(name).filter(|line| !line.is_empty()) {
            list.extend_from_slice(line);
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(member);
        self.set(name, &list);
    }

    /// Whether the field is there.
    fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Whether that is a member of a comma-separated field, whatever its case.
    fn lists(&self, name: &str, member: &[u8]) -> bool {
        self.has(name) && self.members(name).any(|other| other.eq_ignore_ascii_case(member))
    }

    /// The members of a comma-separated field over all its lines, trimmed, empty ones left out (RFC 9110, 5.6.1).
    fn members(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let lines = self.values(name).flat_map(|line| line.split(|byte| *byte == b','));
        lines.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
    }
}

impl Fields for http::HeaderMap {
    fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.get_all(name).iter().map(http::HeaderValue::as_bytes)
    }

    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()))
    }

    fn remove(&mut self, name: &str) {
        http::HeaderMap::remove(self, name);
    }

    fn set(&mut self, name: &'static str, value: &[u8]) {
        if let Ok(value) = http::HeaderValue::from_bytes(value) {
            self.insert(http::HeaderName::from_static(name), value);
        }
    }

    fn append(&mut self, name: &'static str, parts: &[&[u8]]) {
        if let Ok(value) = http::HeaderValue::from_bytes(&parts.concat()) {
            http::HeaderMap::append(self, http::HeaderName::from_static(name), value);
        }
    }

    fn put(&mut self, name: &str, value: &[u8]) {
        if let (Ok(name), Ok(value)) = (name.parse::<http::HeaderName>(), http::HeaderValue::from_bytes(value)) {
            self.insert(name, value);
        }
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        if let (Ok(name), Ok(value)) = (name.parse::<http::HeaderName>(), http::HeaderValue::from_bytes(value)) {
            http::HeaderMap::append(self, name, value);
        }
    }
}
