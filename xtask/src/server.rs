//! A server under test: its own ports and data directory, killed by its process handle, and a
//! loopback control port so that a suite can have it killed and started again.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

mod local_cluster;

/// A debug-like build on a busy machine may take a while to its first leader.
const READY_LIMIT: Duration = Duration::from_secs(90);

/// How to start it: everything but the ports, which are drawn.
pub(crate) struct Spec {
    pub(crate) binary: PathBuf,
    /// More than one: a local cluster, of which the first is the one that suites are told of, and which
    /// are killed in turn.
    pub(crate) nodes: u32,
    pub(crate) data: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) environment: Vec<(&'static str, &'static str)>,
}

pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) http: String,
    shared: Arc<Shared>,
    control: u16,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    spec: Spec,
    /// Of a local cluster 0: it draws its ports.
    port: u16,
    http_port: u16,
    child: Mutex<Option<Child>>,
    /// Of a local cluster: whose turn it is to be killed, and who is down.
    turn: Mutex<(u32, Option<u32>)>,
    over: AtomicBool,
}

impl Server {
    /// Starts a server on an empty data directory; it answers `/readyz` when this returns.
    pub(crate) fn start(spec: Spec) -> Result<Server> {
        let _ = std::fs::remove_dir_all(&spec.data);
        std::fs::create_dir_all(&spec.data)?;
        File::create(&spec.log)?;
        let (port, http_port) = if spec.nodes > 1 { (0, 0) } else { free_ports()? };
        let shared = Arc::new(Shared {
            spec,
            port,
            http_port,
            child: Mutex::new(None),
            turn: Mutex::new((0, None)),
            over: AtomicBool::new(false),
        });
        let control = TcpListener::bind("127.0.0.1:0").context("bind the control port")?;
        let mut server = Server {
            address: format!("127.0.0.1:{port}"),
            http: format!("127.0.0.1:{http_port}"),
            shared: Arc::clone(&shared),
            control: control.local_addr()?.port(),
            listener: None,
        };
        shared.spawn()?;
        server.await_ready()?;
        if shared.spec.nodes > 1 {
            let first = local_cluster::first(&shared.spec.data)?;
            server.address = format!("127.0.0.1:{}", first.api);
            server.http = format!("127.0.0.1:{}", first.http);
        }
        server.listener = Some(std::thread::spawn(move || serve_control(&control, &shared)));
        Ok(server)
    }

    pub(crate) fn process_id(&self) -> Option<u32> {
        if self.shared.spec.nodes > 1 {
            return local_cluster::first(self.data()).ok()?.pid;
        }
        self.shared.lock().as_ref().map(Child::id)
    }

    pub(crate) fn data(&self) -> &Path {
        &self.shared.spec.data
    }

    pub(crate) fn log(&self) -> &PathBuf {
        &self.shared.spec.log
    }

    /// A shell command that has the server killed (`kill`) or started (`start`) and then returns.
    pub(crate) fn control_command(&self, verb: &str) -> String {
        format!(
            "exec 3<>/dev/tcp/127.0.0.1/{}; echo {verb} >&3; read -r answer <&3; [ \"$answer\" = ok ]",
            self.control
        )
    }

    fn await_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_LIMIT;
        let is_ready = || match self.shared.spec.nodes {
            1 => answers_ready(&self.http),
            _ => local_cluster::is_ready(self.log()),
        };
        while !is_ready() {
            if let Some(child) = self.shared.lock().as_mut()
                && let Some(status) = child.try_wait()?
            {
                bail!("the server ended at its start: {status}; see {}", self.log().display());
            }
            if Instant::now() > deadline {
                bail!("not ready within {READY_LIMIT:?}; see {}", self.log().display());
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        // Wakes the control thread, which then sees `over`.
        let _ = TcpStream::connect(("127.0.0.1", self.control));
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        self.shared.end();
        let _ = std::fs::remove_dir_all(&self.shared.spec.data);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self) -> Result<()> {
        // One that still runs would keep the ports and the directory from the next.
        self.end();
        let log = File::options().append(true).open(&self.spec.log)?;
        let mut command = Command::new(&self.spec.binary);
        // What the environment says of the developer's own server is not meant for this one.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PITON_") {
                command.env_remove(name);
            }
        }
        command.arg("dev");
        if self.spec.nodes > 1 {
            command.args(["--nodes", &self.spec.nodes.to_string()]);
        }
        let child = command
            .args(["--port", &self.port.to_string(), "--http-port", &self.http_port.to_string()])
            .arg("--data-dir")
            .arg(&self.spec.data)
            .envs(self.spec.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.spec.binary.display()))?;
        *self.lock() = Some(child);
        Ok(())
    }

    /// SIGKILL. The process is gone, its ports and lock free, when this returns.
    fn kill(&self) -> Result<()> {
        if self.spec.nodes == 1 {
            self.end();
            return Ok(());
        }
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if turn.1.is_none() {
            let killed = local_cluster::kill(&self.spec.data, turn.0)?;
            *turn = (turn.0 + 1, Some(killed));
        }
        Ok(())
    }

    /// Starts what was killed; one that runs is killed before.
    fn start_again(&self) -> Result<()> {
        if self.spec.nodes == 1 {
            return self.spawn();
        }
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(down) = turn.1 {
            local_cluster::restart(&self.spec.binary, &self.spec.data, down)?;
            turn.1 = None;
        }
        Ok(())
    }

    /// Ends all processes.
    fn end(&self) {
        if let Some(mut child) = self.lock().take() {
            if self.spec.nodes > 1 {
                return local_cluster::stop(&mut child);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn serve_control(listener: &TcpListener, shared: &Shared) {
    for stream in listener.incoming() {
        if shared.over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(mut stream) = stream else { continue };
        let mut verb = String::new();
        if BufReader::new(&stream).read_line(&mut verb).is_err() {
            continue;
        }
        let done = match verb.trim() {
            "kill" => shared.kill(),
            "start" => shared.start_again(),
            other => Err(anyhow::anyhow!("unknown verb {other:?}")),
        };
        let answer = done.map_or_else(|error| format!("{error:#}"), |()| "ok".to_owned());
        let _ = writeln!(stream, "{answer}");
    }
}

/// Both are held until both are known, so that they differ.
fn free_ports() -> Result<(u16, u16)> {
    let first = TcpListener::bind("127.0.0.1:0")?;
    let second = TcpListener::bind("127.0.0.1:0")?;
    Ok((first.local_addr()?.port(), second.local_addr()?.port()))
}

fn answers_ready(http: &str) -> bool {
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect(http)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    ask().is_ok_and(|answer| answer == "HTTP/1.1 200")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers as a server that is ready; takes the same flags.
    const STAND_IN: &str = r#"#!/usr/bin/env python3
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()
port = int(sys.argv[sys.argv.index("--http-port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"#;

    fn shell(command: &str) -> Result<bool> {
        Ok(Command::new("bash").args(["-c", command]).status()?.success())
    }

    #[test]
    fn a_server_killed_by_command_comes_back_on_its_ports() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let directory = std::env::temp_dir().join(format!("xtask-server-{}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let binary = directory.join("stand-in");
        std::fs::write(&binary, STAND_IN)?;
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755))?;
        let server = Server::start(Spec {
            binary,
            nodes: 1,
            data: directory.join("data"),
            log: directory.join("log"),
            environment: Vec::new(),
        })?;
        let first = server.process_id();
        assert!(first.is_some());
        assert!(shell(&server.control_command("kill"))?);
        assert!(!answers_ready(&server.http));
        assert_eq!(server.process_id(), None);
        assert!(shell(&server.control_command("start"))?);
        server.await_ready()?;
        assert_ne!(server.process_id(), first);
        assert!(!shell(&server.control_command("dance"))?);
        let http = server.http.clone();
        drop(server);
        assert!(!answers_ready(&http));
        std::fs::remove_dir_all(directory)?;
        Ok(())
    }
}
