//! The keys and certificates of one control plane.
//!
//! Made by rcgen rather than by the `openssl` command: a fresh machine need not have that command, and a
//! certificate's content is checked by the compiler instead of living in a configuration file.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::workdir::Workdir;

/// The group that Kubernetes' bootstrap RBAC makes administrator of everything.
const ADMINISTRATORS: &str = "system:masters";

/// A certificate (PEM) and its private key (PKCS #8, PEM).
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// What a control plane is started with: contents where a kubeconfig embeds them, paths where a flag names them.
pub(super) struct Certificates {
    /// The authority that signed the rest, PEM.
    pub(super) authority: String,
    pub(super) authority_file: PathBuf,
    pub(super) serving_certificate_file: PathBuf,
    pub(super) serving_key_file: PathBuf,
    /// The key that signs ServiceAccount tokens.
    pub(super) token_key_file: PathBuf,
    /// Its public half, by which tokens are checked.
    pub(super) token_public_key_file: PathBuf,
    /// A client certificate that may do everything.
    pub(super) admin: Pair,
}

impl Certificates {
    /// Makes a new authority and everything below it; the API server is known by `addresses` and by the names
    /// that pods know it by.
    pub(super) fn create(folder: &Workdir, addresses: &[IpAddr]) -> Result<Self> {
        let authority_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(DnType::CommonName, "sluice-tests");
        let authority = params.self_signed(&authority_key)?.pem();
        let issuer = Issuer::new(params, authority_key);

        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
        ];
        let names = names
            .map(str::to_owned)
            .into_iter()
            .chain(addresses.iter().map(IpAddr::to_string));
        let serving = leaf(
            &issuer,
            "kube-apiserver",
            None,
            names.collect(),
            ExtendedKeyUsagePurpose::ServerAuth,
        )?;
        let admin = leaf(
            &issuer,
            "admin",
            Some(ADMINISTRATORS),
            Vec::new(),
            ExtendedKeyUsagePurpose::ClientAuth,
        )?;
        let token_key = KeyPair::generate()?;

        Ok(Self {
            authority_file: folder.write("ca.crt", &authority)?,
            serving_certificate_file: folder.write("apiserver.crt", &serving.certificate)?,
            serving_key_file: folder.write("apiserver.key", &serving.key)?,
            token_key_file: folder.write("service-account.key", &token_key.serialize_pem())?,
            token_public_key_file: folder
                .write("service-account.pub", &token_key.public_key_pem())?,
            authority,
            admin,
        })
    }
}

/// A certificate below `issuer`. For a client, the common name is the user and the organisation the group.
fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    common_name: &str,
    organisation: Option<&str>,
    names: Vec<String>,
    usage: ExtendedKeyUsagePurpose,
) -> Result<Pair> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    if let Some(organisation) = organisation {
        params
            .distinguished_name
            .push(DnType::OrganizationName, organisation);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    Ok(Pair {
        certificate: params.signed_by(&key, issuer)?.pem(),
        key: key.serialize_pem(),
    })
}
