//! What failed answers of etcd mean: whether trying again helps, and what an operator can do.
use std::error::Error as _;

use etcd_client::Error;

use crate::store::StoreError;

/// What an error of the client means.
pub(super) fn classify(name: &str, error: &Error) -> StoreError {
    let detail = text(error);
    // The status codes of gRPC (grpc.io, "Status codes and their use in gRPC") that etcd answers with when it was reached
    // and refuses the request.
    const INVALID_ARGUMENT: i32 = 3;
    const PERMISSION_DENIED: i32 = 7;
    const FAILED_PRECONDITION: i32 = 9;
    const UNAUTHENTICATED: i32 = 16;
    // What etcd answers to writes from the moment on at which its database is full (the alarm NOSPACE).
    if detail.contains("database space exceeded") {
        return StoreError::Full {
            store: name.to_owned(),
            detail: format!(
                "{detail}: compact its history and defragment it (`etcdctl compact REVISION`, `etcdctl defrag`), or raise \
                 --quota-backend-bytes, then `etcdctl alarm disarm`"
            ),
        };
    }
    let code = match error {
        Error::GRpcStatus(status) => i32::from(status.code()),
        _ => 0,
    };
    // Users or roles were altered since our token was made. The next connection gets a new token.
    let stale_token = detail.contains("revision of auth store is old");
    let refusal =
        matches!(code, INVALID_ARGUMENT | PERMISSION_DENIED | FAILED_PRECONDITION | UNAUTHENTICATED);
    if (refusal && !stale_token) || detail.to_ascii_lowercase().contains("certificate") {
        return refused(name, &detail);
    }
    // With TLS 1.3 the server refuses our certificate only after the handshake. What is seen of it here is the end of the
    // connection, or the alert if that arrives first.
    let ends = ["broken pipe", "connection reset", "connection closed"];
    if name.contains("https://") && ends.iter().any(|end| detail.contains(end)) {
        return unavailable(
            name,
            format!("{detail}: if this stays, check --etcd-certfile and --etcd-keyfile"),
        );
    }
    unavailable(name, detail)
}

/// The error of an etcd that refuses, with what to do.
pub(super) fn refused(name: &str, detail: &str) -> StoreError {
    let has = |word| detail.to_ascii_lowercase().contains(word);
    let remedy = if has("certificate") {
        "check --etcd-cafile, --etcd-certfile and --etcd-keyfile"
    } else if has("permission denied") {
        "grant the user's role readwrite on the prefix (etcdctl role grant-permission --prefix=true)"
    } else if has("user name is empty") {
        "etcd wants a login: give --etcd-username and --etcd-password"
    } else if has("authentication is not enabled") {
        "etcd wants no login: leave out --etcd-username and --etcd-password"
    } else if has("auth") {
        "check --etcd-username and --etcd-password"
    } else {
        "check the --etcd-* flags"
    };
    StoreError::Refused { store: name.to_owned(), detail: format!("{detail}: {remedy}") }
}

/// The error of an etcd that may answer later.
pub(super) fn unavailable(name: &str, detail: impl Into<String>) -> StoreError {
    StoreError::Unavailable { store: name.to_owned(), detail: detail.into() }
}

/// The error of a watch that etcd has closed.
pub(super) fn ended(name: &str) -> StoreError {
    unavailable(name, "it closed the watch")
}

/// The message and its causes, without the words that the client puts around them.
fn text(error: &Error) -> String {
    let (mut text, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), other.source()),
    };
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
