//! What a simulation of whole nodes needs of this crate: a runtime whose every choice follows from
//! a seed, and points at which a node can be crashed. Only under the feature `sim`.

use std::cell::RefCell;
use std::future::Future;

use futures::FutureExt;
use openraft::impls::TokioRuntime;
use openraft::rt::deterministic_rng::DeterministicRng;
use tokio::runtime::{Builder, RngSeed};
use tokio::task::LocalSet;

use crate::config::NodeId;
use crate::log::GroupId;

#[cfg(not(tokio_unstable))]
compile_error!("feature `sim` needs `--cfg tokio_unstable`: use `cargo xtask sim`");

/// What openraft runs on: tokio, with random numbers from the seed of [`run`].
pub(crate) type Runtime = DeterministicRng<TokioRuntime>;

/// Runs a simulation in this thread, in virtual time: when nothing is left to do, the clock jumps
/// to the next timer. The same seed and future do the same. It may spawn local tasks.
///
/// # Panics
/// When the runtime cannot be built.
pub fn run<T>(seed: u64, simulation: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
        .build()
        .expect("a runtime without I/O needs nothing of the system");
    // openraft draws from a seed that belongs to a future. The whole runtime runs within one poll
    // of such a future, so all of its tasks have a seed, whoever spawned them.
    // What is left of the simulation is dropped inside of the runtime, where it may still spawn.
    let _inside = runtime.enter();
    let local = LocalSet::new();
    let all = Runtime::scope(seed, async { local.block_on(&runtime, simulation) });
    all.now_or_never().expect("a runtime that is blocked on ends within one poll")
}

/// Is told which node has come to a point, and may crash it before it goes on.
pub type Hook = Box<dyn Fn(NodeId, GroupId, &'static str)>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// From now on `hook` hears of every point that a node of this thread comes to.
pub fn set_hook(hook: Hook) {
    HOOK.with(|current| *current.borrow_mut() = Some(hook));
}

pub(crate) fn reached(node: NodeId, group: GroupId, point: &'static str) {
    HOOK.with(|hook| {
        if let Some(hook) = &*hook.borrow() {
            hook(node, group, point);
        }
    });
}
