//! `/api/reload`: read the files now, and say how it went.

use bytes::Bytes;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::admin::accept::said_by;
use crate::admin::{Admin, Answer, Door, page, text};
use crate::state::ReloadRequest;

/// What is sent.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    force: bool,
    who: String,
}

impl Admin {
    /// Answers when the reload is over: 200 with the generation and what of it needs a new process, or 409 and why what was published stays, as a whole or in part.
    pub(super) async fn reload(&self, door: Door, request: Request<Incoming>) -> Answer {
        let asked = match self.accept(door, request).await {
            Ok(body) => asked(door, &body).await,
            Err(refusal) => return refusal,
        };
        let (force, who) = match asked {
            Ok(asked) => asked,
            Err(wrong) => return text(StatusCode::BAD_REQUEST, &format!("{wrong}\n")),
        };
        let (done, outcome) = oneshot::channel();
        let _ = self.ask.send(ReloadRequest { force, who, done: Some(done) }).await;
        match outcome.await {
            Ok(Ok(reloaded)) => page(&reloaded),
            Ok(Err(why)) => text(StatusCode::CONFLICT, &format!("{}\n", why.trim_end())),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "this process is ending\n"),
        }
    }
}

/// Whether it is forced, and who asks.
async fn asked(door: Door, body: &Bytes) -> Result<(bool, String), String> {
    let Asked { force, who } = serde_json::from_slice(body)
        .map_err(|error| format!("{error}; expected {{}} and, as far as wanted, \"force\": true, \"who\""))?;
    Ok((force, said_by(door, &who).await?))
}
