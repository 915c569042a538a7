//! From whom a change is taken, and what it is sent as.
//!
//! Whoever may use the socket may send one; over TCP the token is asked for, which no web page can know. It comes as JSON with its
//! content type, which a page's form cannot send either. Must not know what is changed.

use std::fs;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;

use crate::admin::{Admin, Answer, Door, text};

/// The largest body.
const MOST_BYTES: usize = 16 * 1024;

/// The most characters of who says something.
const MOST_WHO: usize = 100;

impl Admin {
    /// The JSON that somebody sent who may change something, or the answer to who may not.
    pub(super) async fn accept(&self, door: Door, request: Request<Incoming>) -> Result<Bytes, Answer> {
        if let Door::Tcp(peer) = door
            && let Some(refusal) = self.unauthorised(request.headers())
        {
            tracing::warn!(%peer, status = refusal.status().as_u16(), "admin: an operator's word without the token");
            return Err(refusal);
        }
        // Browsers name the page that asks; none of ours does.
        if request.headers().contains_key(ORIGIN) {
            return Err(text(StatusCode::FORBIDDEN, "a web page may not ask for that\n"));
        }
        if !is_json(request.headers()) {
            return Err(text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected content-type: application/json\n"));
        }
        let body = Limited::new(request.into_body(), MOST_BYTES)
            .collect()
            .await
            .map_err(|error| text(StatusCode::PAYLOAD_TOO_LARGE, &format!("no body that can be read: {error}\n")))?;
        Ok(body.to_bytes())
    }

    /// The answer to who does not know the token.
    fn unauthorised(&self, headers: &HeaderMap) -> Option<Answer> {
        let Some(token) = &self.token else {
            let why = "without a token in [admin] nothing can be changed over TCP; set one, or use the admin socket (`socket` in [admin]; by default admin.sock in $RUNTIME_DIRECTORY, as systemd sets it)\n";
            return Some(text(StatusCode::FORBIDDEN, why));
        };
        let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
            let (scheme, rest) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
        });
        if given.is_some_and(|given| token.is(given)) {
            return None;
        }
        let mut answer = text(
            StatusCode::UNAUTHORIZED,
            "expected authorization: Bearer and the token of [admin]; `meridian set` takes it from the configuration, or from $MERIDIAN_ADMIN_TOKEN\n",
        );
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"meridian\""));
        Some(answer)
    }
}

/// The text, trimmed, if a log and a terminal can show it.
pub(super) fn plain(what: &str, text: &str, most: usize) -> Result<String, String> {
    let text = text.trim();
    if text.chars().any(char::is_control) {
        return Err(format!("{what} must be one line without control characters"));
    }
    if text.chars().count() > most {
        return Err(format!("{what} can have at most {most} characters"));
    }
    Ok(text.to_owned())
}

/// Who speaks: what the system knows of them, and what they say of themselves, if a log can show that.
pub(super) async fn said_by(door: Door, claim: &str) -> Result<String, String> {
    let claim = plain("who", claim, MOST_WHO)?;
    let known = match door {
        Door::Tcp(peer) => format!("token from {}", peer.ip()),
        Door::Unix(Some(uid)) => {
            // A file of the system's, but a file.
            let name = tokio::task::spawn_blocking(move || user_name(uid)).await.ok().flatten();
            name.unwrap_or_else(|| format!("uid {uid}"))
        }
        Door::Unix(None) => "socket".to_owned(),
    };
    Ok(if claim.is_empty() || claim == known { known } else { format!("{claim} ({known})") })
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, _, id) = (fields.next()?, fields.next()?, fields.next()?);
        let usable = !name.is_empty() && !name.chars().any(char::is_control);
        (usable && id.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}
