//! What a simulation of whole nodes needs of this crate: a runtime whose every choice follows from
//! a seed, and points at which a node can be crashed. Only under the feature `sim`.

use std::cell::{Cell, RefCell};
use std::future::Future;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

use crate::config::NodeId;
use crate::execution::mix;
use crate::log::GroupId;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs a simulation in this thread, in virtual time: when nothing is left to do, the clock jumps
/// to the next timer. The same seed and future do the same. It may spawn local tasks.
///
/// # Panics
/// When the runtime cannot be built.
// INVARIANT: what tokio draws is seeded by the caller, who answers for what the system gives at random.
pub fn run<T>(seed: u64, simulation: impl Future<Output = T>) -> T {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing of the system");
    SEED.set(Some(seed));
    // What is left of the simulation is dropped inside of the runtime, where it may still spawn.
    let _inside = runtime.enter();
    LocalSet::new().block_on(&runtime, simulation)
}

/// The next random number for openraft; `None` where no simulation runs.
pub(crate) fn draw() -> Option<u64> {
    let drawn = mix(SEED.get()?);
    SEED.set(Some(drawn));
    Some(drawn)
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
