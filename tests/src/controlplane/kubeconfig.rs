//! Kubeconfig files: whole in themselves, so that a process in another mount namespace can be handed one.

use std::path::Path;

use anyhow::Result;
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::certificates::Pair;

/// The kubeconfig of a user with a client certificate, as YAML.
pub(super) fn with_certificate(server: &str, authority: &str, user: &Pair) -> Result<String> {
    let user = json!({
        "client-certificate-data": base64(&user.certificate),
        "client-key-data": base64(&user.key),
    });
    render(server, authority, user)
}

/// The kubeconfig of a user with a bearer token, as YAML.
pub(super) fn with_token(server: &str, authority: &str, token: &str) -> Result<String> {
    render(server, authority, json!({ "token": token }))
}

/// The kubeconfig of a user whose bearer token is in a file, as YAML.
pub(super) fn with_token_file(server: &str, authority: &str, file: &Path) -> Result<String> {
    render(server, authority, json!({ "tokenFile": file }))
}

fn render(server: &str, authority: &str, user: Value) -> Result<String> {
    let cluster = json!({ "server": server, "certificate-authority-data": base64(authority) });
    Ok(serde_yaml_ng::to_string(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "sluice-tests", "cluster": cluster }],
        "users": [{ "name": "user", "user": user }],
        "contexts": [{ "name": "sluice-tests", "context": { "cluster": "sluice-tests", "user": "user" } }],
        "current-context": "sluice-tests",
    }))?)
}

/// Kubernetes' byte fields are base64 in JSON, and so are a kubeconfig's `*-data`.
fn base64(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}
