//! One order, from the account to the certificate's file.
//!
//! What authorities say of a failure is passed on, but for tokens: those are said by nobody but who has to. Must not know when a certificate is due.

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, Order, OrderStatus,
    RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::challenge::{Answer, Challenges};
use super::directory::{Client, Pause};
use super::shelf::{Issued, Shelf};
use super::{own, store};
use crate::config::acme::Proof;
use crate::config::tls::Certificate;
use crate::config::{Acme, Ordered};

/// How an order is looked at until the authority has decided: soon at first, then less often. The whole order has a bound of its own.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_secs(120));

/// The most of an error that is told, in characters.
const TOLD: usize = 600;

/// An account that the directory does not know (RFC 8555, 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Why there is no certificate.
enum Failed {
    /// The directory does not know the account that we have.
    NoAccount,
    Because(String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        match error {
            Error::Api(problem) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => Failed::NoAccount,
            error => Failed::Because(error.to_string()),
        }
    }
}

impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed::Because(why)
    }
}

/// What an order needs besides what is ordered. Clones are the same.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) acme: Arc<Acme>,
    pub(super) challenges: Challenges,
    /// What was issued and is not written.
    pub(super) shelf: Shelf,
    /// What the directory wants.
    pub(super) pause: Pause,
}

/// Orders it, and writes it to its file. Returns from when to when it is valid. `now` is in Unix seconds.
pub(super) async fn certificate(means: &Means, ordered: &Ordered, now: i64) -> Result<(i64, i64), String> {
    let acme = &means.acme;
    if let Some(issued) = means.shelf.certificate(ordered, &acme.directory, now) {
        tracing::info!(names = ?ordered.names, "the certificate that was issued before is written; none is ordered");
        return keep(means, ordered, issued).await;
    }
    let file = ordered.file.clone();
    let tried = blocking(move || store::try_out(&file)).await?;
    tried
        .map_err(|error| format!("nothing is ordered, for {} could not be written: {error}", ordered.file.display()))?;
    let mut secrets = Vec::new();
    let mut result = attempt(means, ordered, &mut secrets).await;
    if let Err(Failed::NoAccount) = result {
        tracing::warn!(directory = acme.host, "the directory does not know the account any more: another is made");
        let folder = acme.folder.clone();
        means.shelf.forget_account();
        blocking(move || store::forget(&folder)).await?;
        result = attempt(means, ordered, &mut secrets).await;
    }
    let issued = result.map_err(|failed| match failed {
        Failed::NoAccount => "the directory does not know the account that it has just made".to_owned(),
        Failed::Because(why) => told(&why, &secrets),
    })?;
    keep(means, ordered, issued).await
}

/// Writes it to its file. On the shelf until it is: the next attempt is to write only.
async fn keep(means: &Means, ordered: &Ordered, issued: Issued) -> Result<(i64, i64), String> {
    let (valid, file, pem) = (issued.certificate.valid, ordered.file.clone(), Arc::clone(&issued.pem));
    means.shelf.put(issued, &means.acme.directory);
    let written = blocking(move || store::keep_certificate(&file, &pem)).await?;
    written.map_err(|error| format!("{} cannot be written: {error}; that is tried again", ordered.file.display()))?;
    means.shelf.written(&ordered.file);
    Ok(valid)
}

/// An error as it is told.
fn told(why: &str, secrets: &[String]) -> String {
    let why = secrets.iter().fold(why.to_owned(), |why, secret| why.replace(secret.as_str(), "…"));
    why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TOLD).collect()
}

async fn attempt(means: &Means, ordered: &Ordered, secrets: &mut Vec<String>) -> Result<Issued, Failed> {
    let account = account(means).await?;
    let names: Vec<_> = ordered.names.iter().map(|name| Identifier::Dns(name.clone())).collect();
    let mut order = account.new_order(&NewOrder::new(&names)).await?;
    // Given until the authority has decided.
    let pending = prove(means.acme.proof, &mut order, &means.challenges, secrets).await?;
    if order.poll_ready(&POLL).await? == OrderStatus::Invalid {
        return Err(Failed::Because(objection(&mut order).await));
    }
    drop(pending);

    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let mut params = CertificateParams::new(ordered.names.clone()).map_err(|error| error.to_string())?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(|error| error.to_string())?;
    order.finalize_csr(request.der()).await?;
    let chain = order.poll_certificate(&POLL).await?;

    let pem = store::joined(&key.serialize_der(), &chain);
    let certificate = Certificate::from_pem(ordered.file.clone(), &pem);
    let certificate = certificate.map_err(|why| format!("what was issued cannot be used: {why}"))?;
    if !ordered.is_covered_by(&certificate) {
        return Err(Failed::Because(format!("what was issued is for {:?}", certificate.names)));
    }
    Ok(Issued { pem: pem.into(), certificate: Arc::new(certificate) })
}

/// The account that is kept, or a new one, which is then.
async fn account(means: &Means) -> Result<Account, Failed> {
    let acme = &means.acme;
    let client = Client { config: Arc::clone(&acme.client), pause: means.pause.clone() };
    let builder = Account::builder_with_http(Box::new(client));
    if let Some(unwritten) = means.shelf.account(&acme.directory) {
        keep_account(means, unwritten).await?;
    }
    let (folder, directory) = (acme.folder.clone(), acme.directory.clone());
    let kept = blocking(move || store::account(&folder, &directory)).await?;
    if let Some(kept) = kept {
        return Ok(builder.from_credentials(kept).await?);
    }
    let contact: Vec<&str> = acme.contact.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder.create(&new, acme.directory.clone(), None).await?;
    tracing::info!(directory = acme.host, "account made");
    let credentials = serde_json::to_value(&credentials).map_err(|error| error.to_string())?;
    keep_account(means, credentials).await?;
    Ok(account)
}

/// Writes it to its file. On the shelf until it is: without it every order would make another account, which authorities count.
async fn keep_account(means: &Means, account: Value) -> Result<(), String> {
    let folder = means.acme.folder.clone();
    means.shelf.put_account(account.clone(), &means.acme.directory);
    let written = blocking(move || store::keep_account(&folder, &account)).await?;
    written.map_err(|error| format!("the account cannot be kept in {}: {error}", means.acme.folder.display()))?;
    means.shelf.forget_account();
    Ok(())
}

/// Has the answers ready, then says so: the authority may ask before that returns.
async fn prove(
    proof: Proof,
    order: &mut Order,
    challenges: &Challenges,
    secrets: &mut Vec<String>,
) -> Result<super::challenge::Pending, Failed> {
    let (kind, word) = match proof {
        Proof::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        Proof::Http01 => (ChallengeType::Http01, "http-01"),
    };
    let mut answers = Vec::new();
    let mut all = order.authorizations();
    while let Some(authorization) = all.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Pending => {}
            AuthorizationStatus::Valid => continue,
            status => return Err(Failed::Because(format!("an authorization is {status:?}"))),
        }
        let Some(challenge) = authorization.challenge(kind.clone()) else {
            return Err(Failed::Because(format!("the directory does not offer {word}")));
        };
        let Identifier::Dns(name) = challenge.identifier().identifier.clone() else {
            return Err(Failed::Because("the directory asks for something that is no name".to_owned()));
        };
        let authorized = challenge.key_authorization();
        // The longer one first: it holds the other.
        secrets.extend([authorized.as_str().to_owned(), challenge.token.clone()]);
        answers.push(match proof {
            Proof::Http01 => Answer::Request(challenge.token.clone(), authorized.as_str().into()),
            Proof::TlsAlpn01 => {
                let digest = authorized.digest();
                let digest = digest.as_ref().try_into().map_err(|_| "a digest of another length".to_owned())?;
                let key = own::challenge(&name, digest)?;
                Answer::Handshake(name, Arc::new(key))
            }
        });
    }
    let pending = challenges.put(answers);
    let mut all = order.authorizations();
    while let Some(authorization) = all.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Pending
            && let Some(mut challenge) = authorization.challenge(kind.clone())
        {
            challenge.set_ready().await?;
        }
    }
    Ok(pending)
}

/// What the authority has against an order.
async fn objection(order: &mut Order) -> String {
    let mut all = order.authorizations();
    let mut found = Vec::new();
    while let Some(Ok(mut authorization)) = all.next().await {
        // The state is as it was before the authority looked.
        if authorization.refresh().await.is_err() {
            continue;
        }
        let name = authorization.identifier().to_string();
        let problems = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        found.extend(problems.map(|problem| format!("{name}: {problem}")));
    }
    if found.is_empty() { "the authority refuses the order, and does not say why".to_owned() } else { found.join("; ") }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    spawn_blocking(work).await.map_err(|panic| panic.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_is_told_and_no_line_is_broken() {
        let secrets = ["tok.print".to_owned(), "tok".to_owned()];
        assert_eq!(told("expected \"tok.print\" at /x/tok:\n404", &secrets), "expected \"…\" at /x/…: 404");
        assert_eq!(told(&"é".repeat(5_000), &[]).chars().count(), TOLD);
    }
}
