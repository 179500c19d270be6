//! What may happen in a run now, as far as the whole run decides it: each step that a condition of
//! the run holds up asks here, and what holds it up stands here alone. A paused workflow will be
//! one more condition: no workflow task is scheduled in it and no activity goes out, while timers
//! fire and results come in.

use super::RunState;

/// A step that a run takes only if nothing of the whole run is in its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A workflow task is scheduled.
    ScheduleWorkflowTask,
    /// A scheduled workflow task is offered, and handed out.
    DispatchWorkflowTask,
    /// An attempt of an activity is offered, and handed out, be it in the answer that schedules it.
    DispatchActivity,
    /// What is due happens: timers fire, activities time out and are tried again, the run expires.
    Fire,
}

impl RunState {
    /// Whether the step may be taken now.
    // INVARIANT: what is offered is compared only where something has changed
    // ([`crate::transition::Change`]). A decision that opens or shuts DispatchActivity gives each
    // pending activity a new stamp, so that it has.
    pub fn may(&self, step: Step) -> bool {
        let open = self.status.is_open();
        match step {
            Step::ScheduleWorkflowTask => {
                open && !self.note.waits_for_parent && self.note.first_task_at.is_none()
            }
            Step::DispatchWorkflowTask | Step::DispatchActivity | Step::Fire => open,
        }
    }
}
