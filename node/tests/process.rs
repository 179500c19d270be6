//! The binary as a process: what it prints, what it refuses at its start, how signals end it.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// A server on any free ports.
fn piton(arguments: &[&str]) -> Command {
    piton_at(["0", "0"], arguments)
}

fn piton_at([port, http_port]: [&str; 2], arguments: &[&str]) -> Command {
    let ports = ["dev", "--port", port, "--http-port", http_port];
    piton_with(&[&ports, arguments].concat())
}

fn piton_with(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_piton"));
    // What the tests' own environment says is not meant for it.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PITON_")) {
        command.env_remove(name);
    }
    command.args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A server that is ready, and what it said.
struct Server {
    child: Child,
    said: String,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Server {
    fn start(arguments: &[&str]) -> Server {
        Server::of(piton(arguments))
    }

    fn of(mut command: Command) -> Server {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut said = String::new();
        while !said.contains("Ctrl-C stops.") {
            let read = stdout.read_line(&mut said).unwrap();
            assert!(read > 0, "it ended at its start: {:?}", child.wait_with_output().unwrap());
        }
        Server { child, said, stdout }
    }

    /// What stands behind a word of the text it says when it is ready.
    fn value(&self, name: &str) -> String {
        let line = self.said.lines().find_map(|line| line.trim().strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {}", self.said)).trim().to_owned()
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// The exit code and what it said last.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

/// A test that fails leaves no server behind.
impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended, as most do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn ctrl_c_and_sigterm_stop_it_in_order() {
    for name in ["INT", "TERM"] {
        let server = Server::start(&["--ephemeral"]);
        let api = server.value("API");
        assert!(TcpStream::connect(&api).is_ok());
        let data = server.value("Data");
        let data = PathBuf::from(data.strip_suffix(" (removed at exit)").unwrap());
        assert!(data.is_dir());
        server.signal(name);
        assert_eq!(server.end(), (Some(0), "Stopping.\n".to_owned()), "{name}");
        assert!(!data.exists(), "{name} left {}", data.display());
        assert!(TcpStream::connect(&api).is_err());
    }
}

#[test]
fn a_directory_in_use_and_a_taken_port_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let first = Server::start(&["--data-dir", path]);
    let second = piton(&["--data-dir", path]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let refusal = text(&second);
    assert!(refusal.starts_with("piton: the data directory"), "{refusal}");
    assert!(refusal.contains(path) && refusal.contains("--data-dir"), "{refusal}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (flag, ports) in [("--port", [port.as_str(), "0"]), ("--http-port", ["0", port.as_str()])] {
        let refused = piton_at(ports, &["--ephemeral"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(1));
        let refusal = text(&refused);
        assert!(refusal.contains("is taken") && refusal.contains(flag), "{refusal}");
        assert!(refusal.contains(&port), "{refusal}");
    }
    first.signal("TERM");
    assert_eq!(first.end().0, Some(0));
}

#[test]
fn what_was_kept_is_there_after_sigkill_with_no_flags_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let first = Server::start(&["--data-dir", path, "--namespace", "orders"]);
    first.signal("KILL");
    assert_eq!(first.end().0, None);
    let again = Server::start(&["--data-dir", path]);
    assert_eq!(again.value("Namespaces"), "default, orders");
    assert!(Path::new(again.value("Data").strip_suffix(" (kept)").unwrap()).is_dir());
    again.signal("INT");
    assert_eq!(again.end().0, Some(0));
}

/// The first bytes that the server says to a client of HTTP/2.
fn greeting(connection: &mut TcpStream) -> std::io::Result<[u8; 9]> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    connection.set_read_timeout(Some(Duration::from_secs(20)))?;
    connection.write_all(PREFACE)?;
    let mut greeting = [0; 9];
    connection.read_exact(&mut greeting)?;
    Ok(greeting)
}

/// Goal: connections that come while all file handles are taken are taken later, and said.
#[test]
fn a_server_without_file_handles_says_so_and_goes_on() {
    let mut server = Server::start(&["--ephemeral"]);
    let address = server.value("API");
    let pid = Pid::from_raw(i32::try_from(server.child.id()).unwrap());
    let few = |current| Rlimit { current: Some(current), maximum: Some(4_096) };
    prlimit(pid, Resource::Nofile, few(3)).unwrap();
    let mut connection = TcpStream::connect(&address).unwrap();
    let mut log = BufReader::new(server.child.stderr.take().unwrap()).lines();
    let said = log.find(|line| line.as_ref().unwrap().contains("no connection can be accepted"));
    assert!(said.is_some(), "it ended without a word");
    prlimit(pid, Resource::Nofile, few(4_096)).unwrap();
    let settings = greeting(&mut connection).unwrap();
    assert_eq!(settings[3], 4, "the first frame is one of settings");
    server.signal("TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

/// A node of a cluster, on any free ports but for the one that other nodes know.
fn node(data: &Path, peer_port: u16, arguments: &[&str]) -> Command {
    let ports = ["server", "--port", "0", "--http-port", "0", "--shards", "1"];
    let (peer_port, data) = (peer_port.to_string(), data.to_str().unwrap());
    let node = ["--peer-port", &peer_port, "--data-dir", data];
    piton_with(&[&ports, &node[..], arguments].concat())
}

/// A port that is free now, and that nobody is given who asks for any.
fn free_port() -> u16 {
    // Below those that systems draw from for connections.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(std::process::id() % 20_000).unwrap();
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A node that was let in, and ended before anything of the cluster could be sent to it: it says that it
/// is where nobody is.
fn joined_and_killed(through: &str, data: &Path, scratch: &Path) {
    let nowhere = scratch.join("nowhere.toml");
    std::fs::write(&nowhere, "[peer]\nadvertised = \"127.0.0.1:1\"\n").unwrap();
    let mut joiner =
        node(data, 0, &["--config", nowhere.to_str().unwrap(), "--join", through]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let is_let_in = || {
        let identity = std::fs::read_to_string(data.join("node.toml")).unwrap_or_default();
        identity.lines().any(|line| line.starts_with("cluster_id") && !line.contains("\"\""))
    };
    while !is_let_in() {
        assert!(Instant::now() < deadline, "it is not let in");
        std::thread::yield_now();
    }
    joiner.kill().unwrap();
    joiner.wait().unwrap();
}

#[test]
fn a_joiner_that_ended_before_it_was_filled_comes_up_at_its_next_start() {
    let [founder, joiner, scratch] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let first = Server::of(node(founder.path(), 0, &["--bootstrap"]));
    joined_and_killed(&first.value("Peers"), joiner.path(), scratch.path());
    // Nobody tells it anything.
    let second = Server::of(node(joiner.path(), 0, &[]));
    for server in [second, first] {
        server.signal("TERM");
        assert_eq!(server.end().0, Some(0));
    }
}

#[test]
fn one_whose_members_have_moved_meanwhile_asks_again_where_it_is_told_to() {
    let [founder, joiner, scratch] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let first = Server::of(node(founder.path(), free_port(), &["--bootstrap"]));
    joined_and_killed(&first.value("Peers"), joiner.path(), scratch.path());
    first.signal("TERM");
    assert_eq!(first.end().0, Some(0));
    let first = Server::of(node(founder.path(), free_port(), &[]));
    let second = Server::of(node(joiner.path(), 0, &["--join", &first.value("Peers")]));
    for server in [second, first] {
        server.signal("TERM");
        assert_eq!(server.end().0, Some(0));
    }
}
