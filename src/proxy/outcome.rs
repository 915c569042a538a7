//! What a failure means to the client: one table from outcome to status, label and body.
//!
//! Whatever went wrong in a request becomes an [`Outcome`], once; the log, the metrics and the answer all read it. Bodies are
//! short and say nothing of the inside: no address, no name of an endpoint.

use crate::steering::Refusal;
use crate::steering::route::NoRoute;

/// How a request ended, when it was not simply answered by an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An upstream's final answer was passed on whole.
    Answered,
    /// The head or the body breaks a rule of HTTP.
    BadRequest,
    /// Host is missing, repeated or malformed.
    BadHost,
    /// The path leaves the root or hides a delimiter.
    BadPath,
    /// CONNECT: this is no forward proxy.
    Connect,
    /// TRACE or OPTIONS that is to go no further.
    MaxForwards,
    /// The request came too slowly.
    RequestTimeout,
    /// The body is larger than the service takes.
    BodyTooLarge,
    /// The request target is too long.
    TargetTooLong,
    /// Too many header fields, or too large ones.
    HeadTooLarge,
    /// The request went through this PoP twice already.
    Loop,
    /// No service has this host.
    NoHost,
    /// The client was shown a certificate that is not for this host.
    Misdirected,
    /// No service of this host has this path.
    NoPath,
    /// It came by http, and its service is to be reached by https.
    Redirected,
    /// An authority asked whether a name is ours, and was answered.
    Challenge,
    /// More requests are under way than there may be.
    Overloaded,
    /// The process has as much memory as it may.
    Memory,
    /// The client's network asked too often.
    RateLimited,
    /// Residency leaves the client no region.
    Residency,
    /// Operators took out every region.
    NoRegion,
    /// No region is up.
    Unhealthy,
    /// Every region is at its limit.
    Full,
    /// No connection to the endpoint could be made.
    ConnectFailed,
    /// Connecting took too long.
    ConnectTimeout,
    /// The connection broke before an answer came.
    Reset,
    /// What came is no valid answer.
    BadAnswer,
    /// The answer did not begin in time.
    FirstByteTimeout,
    /// All attempts together took too long.
    Deadline,
    /// The answer broke off after it had begun: the client sees a broken answer.
    AnswerBroken,
    /// The client left.
    ClientGone,
    /// The client took the answer too slowly.
    ClientSlow,
    /// Its region is drained for long enough, or in maintenance: the answer or the tunnel was cut.
    Drained,
    /// A mistake of ours.
    Internal,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 34] = [
        Outcome::Answered,
        Outcome::BadRequest,
        Outcome::BadHost,
        Outcome::BadPath,
        Outcome::Connect,
        Outcome::MaxForwards,
        Outcome::RequestTimeout,
        Outcome::BodyTooLarge,
        Outcome::TargetTooLong,
        Outcome::HeadTooLarge,
        Outcome::Loop,
        Outcome::NoHost,
        Outcome::Misdirected,
        Outcome::NoPath,
        Outcome::Redirected,
        Outcome::Challenge,
        Outcome::Overloaded,
        Outcome::Memory,
        Outcome::RateLimited,
        Outcome::Residency,
        Outcome::NoRegion,
        Outcome::Unhealthy,
        Outcome::Full,
        Outcome::ConnectFailed,
        Outcome::ConnectTimeout,
        Outcome::Reset,
        Outcome::BadAnswer,
        Outcome::FirstByteTimeout,
        Outcome::Deadline,
        Outcome::AnswerBroken,
        Outcome::ClientGone,
        Outcome::ClientSlow,
        Outcome::Drained,
        Outcome::Internal,
    ];

    /// Status, label of logs and metrics, and body of the answer. Status 0: nothing can be answered any more.
    const fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Outcome::Answered => (0, "answered", ""),
            Outcome::BadRequest => (400, "bad_request", "400 bad request\n"),
            Outcome::BadHost => (400, "bad_host", "400 bad request: Host is missing, repeated or malformed\n"),
            Outcome::BadPath => (400, "bad_path", "400 bad request: the path leaves its root or hides a delimiter\n"),
            Outcome::Connect => (405, "connect", "405 method not allowed: CONNECT is not served here\n"),
            Outcome::MaxForwards => {
                (405, "max_forwards", "405 method not allowed: not served here, and Max-Forwards ends here\n")
            }
            Outcome::RequestTimeout => (408, "request_timeout", "408 request timeout\n"),
            Outcome::BodyTooLarge => (413, "body_too_large", "413 content too large\n"),
            Outcome::TargetTooLong => (414, "target_too_long", "414 URI too long\n"),
            Outcome::HeadTooLarge => (431, "head_too_large", "431 request header fields too large\n"),
            Outcome::Loop => (508, "loop", "508 loop detected: this request was here before\n"),
            Outcome::NoHost => (421, "no_host", "421 misdirected request: no service has this host\n"),
            Outcome::Misdirected => (
                421,
                "misdirected",
                "421 misdirected request: the certificate that you were shown is not for this host\n",
            ),
            Outcome::NoPath => (404, "no_path", "404 not found: no service has this path\n"),
            // Unlike 301, it lets no client make a GET of a POST.
            Outcome::Redirected => (308, "redirected", "308 permanent redirect: by https\n"),
            // In place of the body, the exchange has the answer.
            Outcome::Challenge => (200, "challenge", "200 challenge\n"),
            Outcome::Overloaded => (503, "overloaded", "503 overloaded: too many requests are under way here\n"),
            Outcome::Memory => (503, "memory", "503 memory: there is none left for more requests here\n"),
            Outcome::RateLimited => (429, "rate_limited", "429 too many requests: ask less often\n"),
            Outcome::Residency => {
                (451, "residency", "451 residency: data residency rules leave no region for your location\n")
            }
            Outcome::NoRegion => (503, "no_region", "503 no_region: every region is out of service\n"),
            Outcome::Unhealthy => (503, "unhealthy", "503 unhealthy: no region is up\n"),
            Outcome::Full => (503, "full", "503 full: every region is at its limit\n"),
            Outcome::ConnectFailed => (502, "connect_failed", "502 bad gateway: no connection to the upstream\n"),
            Outcome::ConnectTimeout => (504, "connect_timeout", "504 gateway timeout: connecting took too long\n"),
            Outcome::Reset => (502, "reset", "502 bad gateway: the upstream closed the connection\n"),
            Outcome::BadAnswer => (502, "bad_answer", "502 bad gateway: the upstream's answer is not valid\n"),
            Outcome::FirstByteTimeout => {
                (504, "first_byte_timeout", "504 gateway timeout: the upstream did not answer in time\n")
            }
            Outcome::Deadline => (504, "deadline", "504 gateway timeout: no upstream answered in time\n"),
            Outcome::AnswerBroken => (0, "answer_broken", ""),
            Outcome::ClientGone => (0, "client_gone", ""),
            Outcome::ClientSlow => (0, "client_slow", ""),
            Outcome::Drained => (0, "drained", ""),
            Outcome::Internal => (500, "internal", "500 internal error\n"),
        }
    }

    /// The status that the client gets; 0 when nothing can be answered any more.
    pub const fn status(self) -> u16 {
        self.row().0
    }

    /// The word of logs and metrics.
    pub const fn label(self) -> &'static str {
        self.row().1
    }

    /// The body of the answer: one line of plain text.
    pub const fn body(self) -> &'static str {
        self.row().2
    }

    /// Seconds after which trying again may help, for `Retry-After`.
    pub const fn retry_after_s(self) -> Option<u32> {
        match self {
            Outcome::Full | Outcome::Overloaded | Outcome::Memory => Some(1),
            Outcome::Unhealthy | Outcome::NoRegion => Some(5),
            _ => None,
        }
    }

    /// Whether the client's connection can serve further requests, once all of this one was read: only what was wrong with this request's
    /// meaning or its upstream, not with its form, leaves the connection in a state that both sides agree on.
    pub const fn keeps_connection(self) -> bool {
        matches!(
            self,
            Outcome::NoHost
                | Outcome::Misdirected
                | Outcome::NoPath
                | Outcome::Redirected
                | Outcome::Challenge
                | Outcome::Overloaded
                | Outcome::RateLimited
                | Outcome::Residency
                | Outcome::NoRegion
                | Outcome::Unhealthy
                | Outcome::Full
                | Outcome::ConnectFailed
                | Outcome::ConnectTimeout
                | Outcome::Reset
                | Outcome::BadAnswer
                | Outcome::FirstByteTimeout
                | Outcome::Deadline
        )
    }
}

impl From<NoRoute> for Outcome {
    fn from(reason: NoRoute) -> Outcome {
        match reason {
            NoRoute::Host => Outcome::NoHost,
            NoRoute::Path => Outcome::NoPath,
            NoRoute::BadPath => Outcome::BadPath,
        }
    }
}

impl From<Refusal> for Outcome {
    /// For a walk that ended before any attempt.
    fn from(refusal: Refusal) -> Outcome {
        match refusal {
            Refusal::Residency => Outcome::Residency,
            Refusal::NoRegion => Outcome::NoRegion,
            Refusal::Unhealthy | Refusal::Exhausted => Outcome::Unhealthy,
            Refusal::Full => Outcome::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_itself_and_with_the_core() {
        let mut labels: Vec<_> = Outcome::ALL.iter().map(|o| o.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Outcome::ALL.len());
        for outcome in Outcome::ALL {
            assert_eq!(outcome.status() == 0, outcome.body().is_empty(), "{outcome:?}");
            assert!(outcome.body().starts_with(&outcome.status().to_string()) || outcome.status() == 0);
        }
        let page = include_str!("../../docs/access-log.md");
        for outcome in Outcome::ALL {
            let row = format!("| `{}` | ", outcome.label());
            let answer = page.split_once(&row).unwrap_or_else(|| panic!("no row {row}")).1;
            let says_status = answer.starts_with(&outcome.status().to_string());
            assert_eq!(says_status, outcome.status() != 0, "{outcome:?}");
        }
        for reason in [NoRoute::Host, NoRoute::Path, NoRoute::BadPath] {
            assert_eq!(
                (Outcome::from(reason).status(), Outcome::from(reason).label()),
                (reason.status(), reason.as_str())
            );
        }
        for refusal in [Refusal::Residency, Refusal::NoRegion, Refusal::Unhealthy, Refusal::Full] {
            let outcome = Outcome::from(refusal);
            assert_eq!((outcome.status(), outcome.label()), (refusal.status(), refusal.as_str()));
        }
    }
}
