//! How many files and connections this process may have open: as many as the system allows, and said
//! at the start where that is few.

use rustix::process::{Resource, getrlimit, setrlimit};

/// With fewer, a few thousand connections leave none for the log and the store.
const ENOUGH: u64 = 4_096;

/// Raises the limit to what this user may have, and warns where that is too low.
pub fn raise_file_handle_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        let mut raised = limit;
        raised.current = limit.maximum;
        // Some systems have a lower bound than they say; then it stays as it is.
        if limit.current.is_some() && setrlimit(Resource::Nofile, raised).is_ok() {
            limit = getrlimit(Resource::Nofile);
        }
    }
    if let Some(handles) = limit.current.filter(|handles| *handles < ENOUGH) {
        tracing::warn!(
            handles,
            wanted = ENOUGH,
            "few file handles: connections may be refused; raise the limit (ulimit -n, LimitNOFILE)"
        );
    }
}
