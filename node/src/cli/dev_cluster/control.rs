//! How another process asks the one that runs a local cluster to start a node again: one line over a
//! socket in the data directory, and one line back.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const SOCKET: &str = "launcher.sock";
/// What a number takes, and more.
const LINE_BYTES_MAX: u64 = 64;
/// How long whoever connects may take to say what it wants.
const LINE_WAIT: Duration = Duration::from_secs(5);
const READY: &str = "ready";

/// A node that is to be started again, and who waits for it.
type Request = (u32, UnixStream);

/// Takes requests. The socket goes with it.
pub(super) struct Control {
    path: PathBuf,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
    serving: JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.serving.abort();
        // One that is left behind is removed by the next.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens in a data directory, which no other process does then.
///
/// # Errors
/// When another one does, or it cannot be done there.
pub(super) fn listen(directory: &Path) -> anyhow::Result<Control> {
    let path = directory.join(SOCKET);
    match std::os::unix::net::UnixStream::connect(&path) {
        Ok(_) => bail!(
            "the local cluster in {} runs already; stop it, or choose another directory with \
             --data-dir",
            directory.display()
        ),
        // Left behind by one that was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(&path);
    let listener = listener.with_context(|| format!("listen on {}", path.display()))?;
    let (say, requests) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(read_request(stream, say.clone()));
        }
    });
    Ok(Control { path, requests, serving })
}

/// Whoever does not say a number in time is not answered.
async fn read_request(stream: UnixStream, say: mpsc::UnboundedSender<Request>) {
    let mut reader = BufReader::new(stream.take(LINE_BYTES_MAX));
    let mut line = String::new();
    let read = tokio::time::timeout(LINE_WAIT, reader.read_line(&mut line)).await;
    if let (Ok(Ok(_)), Ok(node)) = (read, line.trim().parse()) {
        // Nobody takes it: this process is about to end.
        let _ = say.send((node, reader.into_inner().into_inner()));
    }
}

/// Answers all who waited for a node.
pub(super) fn answer(asked: Option<Vec<UnixStream>>, outcome: Result<(), String>) {
    let line = outcome.map_or_else(|why| format!("{why}\n"), |()| format!("{READY}\n"));
    for mut asker in asked.unwrap_or_default() {
        let line = line.clone();
        tokio::spawn(async move {
            // Whoever is gone needs no answer.
            let _ = asker.write_all(line.as_bytes()).await;
        });
    }
}

/// Has a node of the local cluster in a data directory started again; it is ready when this returns.
///
/// # Errors
/// When no local cluster runs there, and when the node does not start.
pub(crate) async fn restart_node(node: u32, directory: &Path) -> anyhow::Result<()> {
    let path = directory.join(SOCKET);
    let stream = UnixStream::connect(&path).await.with_context(|| {
        format!(
            "no local cluster runs in {}: start one with piton dev --nodes 3 --data-dir {}",
            directory.display(),
            directory.display()
        )
    })?;
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{node}\n").as_bytes()).await.context("ask for the node")?;
    let mut line = String::new();
    stream.read_line(&mut line).await.context("wait for the node")?;
    match line.trim() {
        READY => Ok(()),
        "" => bail!("the local cluster was stopped before node {node} was ready"),
        why => bail!("{why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_by_what_became_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut control = listen(directory.path()).unwrap();
        let error = listen(directory.path()).err().unwrap().to_string();
        assert!(error.contains("runs already"), "{error}");
        for outcome in [Ok(()), Err("node 2 has ended".to_owned())] {
            let path = directory.path().to_owned();
            let asking = tokio::spawn(async move { restart_node(2, &path).await });
            let (node, asker) = control.requests.recv().await.unwrap();
            answer(Some(vec![asker]), outcome.clone());
            let answered = asking.await.unwrap().map_err(|error| error.to_string());
            assert_eq!((node, answered), (2, outcome));
        }
    }

    #[tokio::test]
    async fn a_socket_that_was_left_behind_is_in_nobodys_way() {
        let directory = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(directory.path().join(SOCKET)).unwrap());
        assert!(restart_node(1, directory.path()).await.is_err());
        drop(listen(directory.path()).unwrap());
        assert!(!directory.path().join(SOCKET).exists());
    }
}
