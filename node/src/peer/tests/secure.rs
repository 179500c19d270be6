//! TLS: who may speak is who has a certificate of the cluster's CA.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::*;

/// A CA, and the certificates that it gives.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    pub(super) fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { issuer, directory }
    }

    /// Gives a node what it needs, for a host of this name.
    pub(super) fn equip(&self, config: &mut PeerConfig, host: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |name: String| self.directory.path().join(name);
        let serial = key.serialized_der().iter().map(|&byte| u64::from(byte)).sum::<u64>();
        config.certificate = path(format!("{host}-{serial}.pem"));
        config.key = path(format!("{host}-{serial}.key"));
        config.ca = path("ca.pem".to_owned());
        write(&config.certificate, &certificate.pem());
        write(&config.key, &key.serialize_pem());
    }

    pub(super) fn plan(&self, id: u64) -> Plan {
        let mut plan = plan(id);
        self.equip(&mut plan.config, "127.0.0.1");
        plan
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_certificates_of_one_ca_reach_each_other() {
    let authority = Authority::new();
    let [one, two] = connected([authority.plan(1), authority.plan(2)]).await;
    let frame = Bytes::from(vec![3; 5 << 20]);
    one.send(&two, Lane::Bulk, frame.clone());
    one.send(&two, Lane::Urgent, "vote");
    await_until("both arrive", || two.inbox.count() == 2).await;
    assert!(two.inbox.take().into_iter().any(|(_, arrived)| arrived == frame));
    two.net.answer_with(Arc::new(super::calls::Echo::default()));
    let answer = one.net.ask(two.id, Bytes::from_static(b"hello"), PATIENCE).await;
    assert_eq!(answer.unwrap(), "0000000000000001: hello");
    let mut config = PeerConfig::default();
    authority.equip(&mut config, "127.0.0.1");
    let stranger = Stranger::new(&config, NodeId(5), 7).unwrap();
    let joined = stranger.ask(&two.address(), Bytes::from_static(b"me"), PATIENCE).await;
    assert_eq!(joined.unwrap(), "0000000000000005 joins: me");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_ca_or_for_another_host_or_none_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let node = authority.plan(1).start();
    let mut foreign = other.plan(2);
    // It trusts our CA, and has no certificate of it.
    foreign.config.ca = node_ca(&authority);
    for (plan, refused_by_node) in [
        (foreign, true),
        (other.plan(2), false),
        (plan(2), true),
        (
            {
                let mut elsewhere = plan(2);
                authority.equip(&mut elsewhere.config, "elsewhere.example");
                elsewhere
            },
            false,
        ),
    ] {
        let two = plan.start();
        let before = node.refused("insecure");
        node.knows(&[(two.id, two.net.address())]);
        two.knows(&[(node.id, node.net.address())]);
        if refused_by_node {
            await_until("it is refused", || node.refused("insecure") > before).await;
        }
        // The other way, too: whoever calls it does not believe it.
        await_until("it is not believed", || two.refused_any() > 0.0).await;
        assert!(!PeerLane::ALL.into_iter().any(|lane| node.net.is_connected(two.id, lane)));
        node.knows(&[]);
    }
    // A stranger needs a certificate as well.
    let mut config = PeerConfig::default();
    other.equip(&mut config, "127.0.0.1");
    config.ca = node_ca(&authority);
    let stranger = Stranger::new(&config, NodeId(5), 7).unwrap();
    let joined = stranger.ask(&node.address(), Bytes::new(), PATIENCE).await;
    assert!(joined.is_err(), "{joined:?}");
}

fn node_ca(authority: &Authority) -> std::path::PathBuf {
    authority.directory.path().join("ca.pem")
}

impl TestNode {
    fn refused_any(&self) -> f64 {
        self.refused("insecure") + self.refused("no_hello")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let broken = |change: fn(&mut PeerConfig)| {
        let mut plan = authority.plan(1);
        change(&mut plan.config);
        let error = plan.try_start().err().unwrap();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        source.unwrap()
    };
    let text = broken(|config| config.ca = "/nowhere/ca.pem".into());
    assert!(text.contains("the CA's certificate from /nowhere/ca.pem"), "{text}");
    let text = broken(|config| std::mem::swap(&mut config.key, &mut config.certificate));
    assert!(text.contains(".key"), "{text}");
    let text = broken(|config| config.key = config.ca.clone());
    assert!(text.contains("private key"), "{text}");
}
