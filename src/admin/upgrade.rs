//! `/api/upgrade`: have another process take the place of this one, and say how it went.

use http::{Request, StatusCode};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::admin::accept::{MOST_WHO, plain, said_by};
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
            Ok(body) => match serde_json::from_slice(&body).map_err(|error| error.to_string()) {
                Ok(Asked { who }) => plain("who", &who, MOST_WHO),
                Err(error) => Err(format!("{error}; expected {{}} and, if wanted, \"who\"")),
            },
            Err(refusal) => return refusal,
        };
        let who = match who {
            Ok(who) => said_by(door, &who).await,
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
