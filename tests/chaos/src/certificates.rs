//! A CA for one run, and certificates for its nodes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let file = directory.join("ca.pem");
        fs::write(&file, issuer.pem())?;
        Ok(Self { issuer, file })
    }

    /// Gives a node what it needs, and answers the lines of its `[peer]`.
    pub(crate) fn certify(&self, directory: &Path) -> Result<String> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let (certificate_file, key_file) = (directory.join("node.pem"), directory.join("key.pem"));
        fs::write(&certificate_file, certificate.pem())?;
        fs::write(&key_file, key.serialize_pem())?;
        Ok(format!(
            "certificate = {certificate_file:?}\nkey = {key_file:?}\nca = {:?}\n",
            self.file
        ))
    }
}
