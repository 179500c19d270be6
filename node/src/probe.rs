//! Asks a node how it is, over its HTTP port: what an image without a shell is probed with.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// More than `/healthz` and `/readyz` say.
const ANSWER_BYTES_MAX: u64 = 4 << 10;

/// Why a node is not taken for well.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("ask {address}")]
    Ask {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("{address} answers: {answer}")]
    Refused { address: SocketAddr, answer: String },
}

/// Asks for a page, and is content with "200 OK".
///
/// # Errors
/// When there is another answer, or none in time.
pub fn probe(listens: SocketAddr, page: &str, limit: Duration) -> Result<(), ProbeError> {
    let address = SocketAddr::new(reachable(listens.ip()), listens.port());
    let answer = ask(address, page, limit).map_err(|source| ProbeError::Ask { address, source })?;
    let line = answer.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) == Some("200") {
        return Ok(());
    }
    Err(ProbeError::Refused { address, answer: line.to_owned() })
}

/// Who listens on all addresses is asked on this machine's own.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

fn ask(address: SocketAddr, page: &str, limit: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let request = format!("GET {page} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Asks a server that says this, or nothing.
    fn probed(answer: Option<&'static str>, limit: Duration) -> Result<(), ProbeError> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap();
            assert!(request[..read].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).unwrap(),
                // Until the other side has had enough.
                None => assert_eq!(stream.read(&mut request).unwrap(), 0),
            }
        });
        let probed = probe(SocketAddr::from(([0, 0, 0, 0], port)), "/readyz", limit);
        server.join().unwrap();
        probed
    }

    #[test]
    fn only_an_ok_counts() {
        let long = Duration::from_secs(10);
        probed(Some("HTTP/1.1 200 OK\r\n\r\nready\n"), long).unwrap();
        for other in ["HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready\n", "", "200"] {
            let error = probed(Some(other), long).unwrap_err();
            assert!(matches!(error, ProbeError::Refused { .. }), "{other}: {error}");
        }
    }

    #[test]
    fn who_does_not_answer_in_time_is_not_well() {
        let error = probed(None, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ProbeError::Ask { .. }), "{error}");
    }

    #[test]
    fn who_does_not_listen_is_not_well() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = probe(address, "/readyz", Duration::from_secs(10)).unwrap_err();
        assert!(matches!(error, ProbeError::Ask { .. }), "{error}");
    }
}
