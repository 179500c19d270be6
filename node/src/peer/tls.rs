//! Connections between nodes: TLS in which both sides show a certificate of the cluster's CA, or
//! plaintext that does not leave the machine.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::either::Either;

use crate::config::PeerConfig;

/// A connection, before and after the handshake.
pub(super) type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// A connection on which nothing arrives is asked for a sign of life after this time.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_COUNT: u32 = 3;
/// What is sent and not acknowledged for so long breaks the connection.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_MILLIS: u32 = 10_000;

/// Why the files of `[peer]` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {what} from {}: {source}", path.display())]
    Read { what: &'static str, path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("there is no certificate in {}", path.display())]
    Empty { path: PathBuf },
    #[error("use the certificates in {}: {reason}", path.display())]
    Use { path: PathBuf, reason: String },
}

/// How connections are secured.
#[derive(Clone)]
pub(super) enum Security {
    /// Only between loopback addresses.
    Plaintext,
    Tls {
        acceptor: TlsAcceptor,
        connector: TlsConnector,
    },
}

impl Security {
    /// Reads the files that are configured; without any it is plaintext.
    ///
    /// # Errors
    /// When they cannot be used.
    pub(super) fn load(config: &PeerConfig) -> Result<Security, TlsError> {
        if !config.has_tls() {
            return Ok(Security::Plaintext);
        }
        let authorities = certificates("the CA's certificate", &config.ca)?;
        let chain = certificates("the node's certificate", &config.certificate)?;
        let key = || {
            PrivateKeyDer::from_pem_file(&config.key).map_err(|source| TlsError::Read {
                what: "the node's private key",
                path: config.key.clone(),
                source,
            })
        };
        let use_error = |path: &Path, error: &dyn std::fmt::Display| TlsError::Use {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| use_error(&config.ca, &error))?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier = verifier.map_err(|error| use_error(&config.ca, &error))?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| use_error(&config.certificate, &error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key()?)
            .map_err(|error| use_error(&config.certificate, &error))?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| use_error(&config.certificate, &error))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key()?)
            .map_err(|error| use_error(&config.certificate, &error))?;
        Ok(Security::Tls { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }

    /// Takes a connection that came in.
    ///
    /// # Errors
    /// When it is not secured as it must be.
    pub(super) async fn accept(&self, tcp: TcpStream) -> io::Result<Stream> {
        match self {
            Security::Plaintext => {
                check_loopback(tcp.peer_addr()?)?;
                check_loopback(tcp.local_addr()?)?;
                Ok(Either::Left(tcp))
            }
            Security::Tls { acceptor, .. } => {
                Ok(Either::Right(Box::new(acceptor.accept(tcp).await?.into())))
            }
        }
    }

    /// Secures a connection to a host of this name.
    ///
    /// # Errors
    /// When it cannot be secured as it must be.
    pub(super) async fn connect(&self, host: &str, tcp: TcpStream) -> io::Result<Stream> {
        match self {
            Security::Plaintext => Ok(Either::Left(tcp)),
            Security::Tls { connector, .. } => {
                let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
                Ok(Either::Right(Box::new(connector.connect(name, tcp).await?.into())))
            }
        }
    }

    /// Whether an address may be spoken to.
    ///
    /// # Errors
    /// When what is said would leave the machine for all to read.
    pub(super) fn check(&self, address: SocketAddr) -> io::Result<()> {
        match self {
            Security::Plaintext => check_loopback(address),
            Security::Tls { .. } => Ok(()),
        }
    }
}

/// # Errors
/// When the address is another machine's.
fn check_loopback(address: SocketAddr) -> io::Result<()> {
    if is_loopback(address.ip()) {
        return Ok(());
    }
    let text = format!(
        "{address} is not a loopback address, and nodes speak plaintext only on their own machine: \
         set certificate, key and ca in [peer]"
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

/// Also where an IPv4 address comes as an IPv6 one.
pub(crate) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read_error = |source| TlsError::Read { what, path: path.to_owned(), source };
    let certificates = CertificateDer::pem_file_iter(path).map_err(read_error)?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(read_error)?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(certificates)
}

/// Small frames leave at once, and a peer whose machine is gone is noticed.
///
/// # Errors
/// When the system refuses.
pub(super) fn tune(tcp: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    tcp.set_nodelay(true)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(tcp, KEEPALIVE_EVERY)?;
    sockopt::set_tcp_keepcnt(tcp, KEEPALIVE_COUNT)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(tcp, UNACKNOWLEDGED_MILLIS)?;
    Ok(())
}

/// Lets the runtime that runs this be the one that is woken when something arrives. Otherwise each
/// read would first wake the runtime on which the connection was made.
///
/// # Errors
/// When the system refuses.
pub(super) fn rehome(stream: &mut Stream) -> io::Result<()> {
    let tcp = match stream {
        Either::Left(tcp) => tcp,
        Either::Right(tls) => tls.get_mut().0,
    };
    let handle = tcp.as_fd().try_clone_to_owned()?;
    *tcp = TcpStream::from_std(handle.into())?;
    Ok(())
}
