//! The `Date` of answers that have none: an origin server without a clock leaves that to whoever forwards (RFC 9110, 6.6.1).

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrayvec::ArrayString;

/// Bytes of a date: `Sun, 06 Nov 1994 08:49:37 GMT`.
const LENGTH: usize = 29;

/// A second since 1970 and its date.
type Written = (u64, ArrayString<LENGTH>);

thread_local! {
    /// What this thread wrote last.
    static LAST: RefCell<Written> = const { RefCell::new((u64::MAX, ArrayString::new_const())) };
}

/// Appends a line `Date` for that moment.
pub(super) fn line(out: &mut Vec<u8>, now: SystemTime) {
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|last| {
        if last.0 != second {
            *last = (second, written(second));
        }
        for part in [b"Date: ", last.1.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    });
}

fn written(second: u64) -> ArrayString<LENGTH> {
    use std::fmt::Write;
    let mut text = ArrayString::new();
    // The last second that has a date of that length is 9999-12-31T23:59:59Z.
    let moment = UNIX_EPOCH + Duration::from_secs(second.min(253_402_300_799));
    // It fits by its form.
    let _ = write!(text, "{}", httpdate::HttpDate::from(moment));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_rfc_9110_has_them() {
        let rows = [
            (784_111_777, "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
            (784_111_777, "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
            (0, "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"),
            (u64::MAX >> 2, "Date: Fri, 31 Dec 9999 23:59:59 GMT\r\n"),
        ];
        for (second, line) in rows {
            let mut out = Vec::new();
            super::line(&mut out, UNIX_EPOCH + Duration::from_secs(second));
            assert_eq!(String::from_utf8(out).unwrap(), line);
        }
    }
}
