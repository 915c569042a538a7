//! `/api/upgrade`: have another process take the place of this one, and say how it went.

use bytes::Bytes;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::admin::accept::said_by;
use crate::admin::{Admin, Answer, Door, page, text};
use crate::state::UpgradeRequest;

/// What is sent.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    who: String,
}

#[derive(Serialize)]
struct Done {
    /// The process that took over.
    pid: u32,
}

impl Admin {
    /// Answers when another process has taken over: 200 with its id; or 409 and why none has.
    pub(super) async fn upgrade(&self, door: Door, request: Request<Incoming>) -> Answer {
        let who = match self.accept(door, request).await {
            Ok(body) => asked(door, &body).await,
            Err(refusal) => return refusal,
        };
        let who = match who {
            Ok(who) => who,
            Err(wrong) => return text(StatusCode::BAD_REQUEST, &format!("{wrong}\n")),
        };
        let (done, outcome) = oneshot::channel();
        let _ = self.upgrade.send(UpgradeRequest { who, done: Some(done) }).await;
        match outcome.await {
            Ok(Ok(pid)) => page(&Done { pid }),
            Ok(Err(why)) => text(StatusCode::CONFLICT, &format!("{}\n", why.trim_end())),
            Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "this process is ending\n"),
        }
    }
}

/// Who asks.
async fn asked(door: Door, body: &Bytes) -> Result<String, String> {
    let Asked { who } =
        serde_json::from_slice(body).map_err(|error| format!("{error}; expected {{}} and, if wanted, \"who\""))?;
    said_by(door, &who).await
}
