//! The binary as a process: what it prints, what it refuses at its start, how signals end it.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// A server on any free ports.
fn piton(arguments: &[&str]) -> Command {
    piton_at(["0", "0"], arguments)
}

fn piton_at([port, http_port]: [&str; 2], arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_piton"));
    // What the tests' own environment says is not meant for it.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PITON_")) {
        command.env_remove(name);
    }
    command.args(["dev", "--port", port, "--http-port", http_port]).args(arguments);
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
        let mut child = piton(arguments).spawn().unwrap();
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
