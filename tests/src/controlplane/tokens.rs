//! Tokens of ServiceAccounts: the server's own, and such as end when a test wants them to.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{
    TokenRequest, TokenRequestSpec, TokenReview, TokenReviewSpec,
};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use rcgen::KeyPair;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use super::{ControlPlane, client_config, kubeconfig};

/// How long a ServiceAccount's token lives: longer than any test.
const TOKEN_LIVES: Duration = Duration::from_hours(24);
/// How long the server takes a token after its end: the leeway of its JWT library (go-jose's `DefaultLeeway`).
const LEEWAY: Duration = Duration::from_mins(1);
/// How long before its end a token was made, as it says.
const AGE: Duration = Duration::from_hours(1);

impl ControlPlane {
    /// A token of this ServiceAccount, which must exist. It lives a day.
    ///
    /// # Errors
    /// When there is no such ServiceAccount, or the server cannot be reached.
    pub async fn service_account_token(&self, namespace: &str, name: &str) -> Result<String> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(TOKEN_LIVES.as_secs().try_into()?),
                ..Default::default()
            }),
            ..Default::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client()?, namespace);
        api.create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("asking for a token of ServiceAccount {namespace}/{name}"))?
            .status
            .and_then(|status| status.token)
            .context("the token request was answered without a token")
    }

    /// The same, but the server takes it only for so long from now, and for as long as it remembers what it took (10 s). The server
    /// itself gives none for less than ten minutes: this is one of its own with another end, signed again with its key.
    ///
    /// # Errors
    /// As [`ControlPlane::service_account_token`].
    pub async fn service_account_token_for(
        &self,
        namespace: &str,
        name: &str,
        lives: Duration,
    ) -> Result<String> {
        let token = self.service_account_token(namespace, name).await?;
        let end = SystemTime::now() + lives - LEEWAY;
        let key = std::fs::read_to_string(&self.certificates.token_key_file)
            .context("reading the key of tokens")?;
        signed(&KeyPair::from_pem(&key)?, &token, end)
    }

    /// Whether the server takes this token.
    ///
    /// # Errors
    /// The server cannot be asked.
    pub async fn is_token_good(&self, token: &str) -> Result<bool> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<TokenReview> = Api::all(self.client()?);
        let answer = api.create(&PostParams::default(), &review).await?;
        let status = answer
            .status
            .context("a review was answered without a status")?;
        Ok(status.authenticated.unwrap_or_default())
    }

    /// Writes a kubeconfig file with a token of this ServiceAccount, which must exist. The token lives a day.
    ///
    /// # Errors
    /// As [`ControlPlane::service_account_token`].
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.service_account_token(namespace, name).await?;
        let url = format!("https://{}", self.server);
        let kubeconfig = kubeconfig::with_token(&url, &self.certificates.authority, &token)?;
        self.folder
            .write(&format!("{namespace}-{name}.kubeconfig"), &kubeconfig)
    }

    /// Writes a kubeconfig file that names a file with this token, as a pod finds its own, and that file. Given again, the token is
    /// another, put in place at once, as kubelet does it.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn kubeconfig_of_token_file(
        &self,
        namespace: &str,
        name: &str,
        token: &str,
    ) -> Result<PathBuf> {
        let (file, new) = (
            format!("{namespace}-{name}.token"),
            format!("{namespace}-{name}.token.new"),
        );
        let (new, file) = (
            self.folder.write(&new, token)?,
            self.folder.path().join(file),
        );
        std::fs::rename(&new, &file)
            .with_context(|| format!("putting {} there", file.display()))?;
        let url = format!("https://{}", self.server);
        let kubeconfig = kubeconfig::with_token_file(&url, &self.certificates.authority, &file)?;
        self.folder
            .write(&format!("{namespace}-{name}.kubeconfig"), &kubeconfig)
    }

    /// A client with the rights of this ServiceAccount, which must exist.
    ///
    /// # Errors
    /// As [`ControlPlane::service_account_kubeconfig`].
    pub async fn service_account_client(&self, namespace: &str, name: &str) -> Result<Client> {
        let file = self.service_account_kubeconfig(namespace, name).await?;
        let config = client_config(&std::fs::read_to_string(file)?).await?;
        Ok(Client::try_from(config)?)
    }
}

/// The token with another end, signed by `key` (RFC 7515 3.1, ES256 of RFC 7518 3.4).
fn signed(key: &KeyPair, token: &str, end: SystemTime) -> Result<String> {
    let mut parts = token.split('.');
    let mut part = || parts.next().context("a token has three parts");
    let (header, claims) = (part()?, part()?);
    let mut claims: Value = serde_json::from_slice(&decoded(claims)?)?;
    let seconds = |time: SystemTime| -> Result<u64> {
        Ok(time.duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
    };
    claims["exp"] = json!(seconds(end)?);
    for begun in ["iat", "nbf"] {
        claims[begun] = json!(seconds(end - AGE)?);
    }
    let body = format!("{header}.{}", encoded(claims.to_string().into_bytes())?);
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::from_pkcs8(
        &ECDSA_P256_SHA256_FIXED_SIGNING,
        &key.serialize_der(),
        &random,
    )
    .map_err(|error| anyhow!("the key of tokens: {error}"))?;
    let signature = key
        .sign(&random, body.as_bytes())
        .ok()
        .context("signing a token")?;
    let signature = encoded(signature.as_ref().to_vec())?;
    Ok(format!("{body}.{signature}"))
}

/// RFC 4648 5 without padding. Kubernetes' byte fields are the other base64, and have an encoder.
fn encoded(bytes: Vec<u8>) -> Result<String> {
    let text: String = serde_json::from_value(serde_json::to_value(ByteString(bytes))?)?;
    Ok(text
        .trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_"))
}

/// The way back from [`encoded`].
fn decoded(text: &str) -> Result<Vec<u8>> {
    let mut text = text.replace('-', "+").replace('_', "/");
    while !text.len().is_multiple_of(4) {
        text.push('=');
    }
    let bytes: ByteString = serde_json::from_value(text.into())?;
    Ok(bytes.0)
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    #[test]
    fn only_the_times_are_others_and_the_key_signed_it() {
        let claims = json!({ "sub": "who?>", "exp": 1, "iat": 1, "nbf": 1 });
        let part = |value: &Value| encoded(value.to_string().into_bytes()).unwrap();
        let header = part(&json!({ "alg": "ES256" }));
        let token = format!("{header}.{}.c2ln", part(&claims));
        let key = KeyPair::generate().unwrap();
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(7_200);
        let token = signed(&key, &token, end).unwrap();
        let (body, signature) = token.rsplit_once('.').unwrap();
        let (head, claims) = body.split_once('.').unwrap();
        assert_eq!(head, header);
        let claims: Value = serde_json::from_slice(&decoded(claims).unwrap()).unwrap();
        assert_eq!(
            claims,
            json!({ "sub": "who?>", "exp": 7_200, "iat": 3_600, "nbf": 3_600 })
        );
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key_raw())
            .verify(body.as_bytes(), &decoded(signature).unwrap())
            .unwrap();
    }
}
