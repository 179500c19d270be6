//! What a run owes that it owes once: its workflow task, its expiry, and errands to its relatives.
//! What pending things owe is beside them. Read off the state only; never volatile, so that a new
//! leader finds the same.

use super::facts::{Closing, Facts};
use super::{RunState, Status, Step};
use crate::effect::{
    ChildOutcome, ChildResult, Effect, Errand, ErrandKey, ParentLink, TaskKey, TaskOffer, TimerKind,
};
use crate::id::{RunId, WorkflowId};
use crate::note::WorkflowTaskNote;
use crate::time::{Span, Timestamp};
use piton_proto::enums::ParentClosePolicy;

impl RunState {
    /// The effects that a run has one of each.
    pub(crate) fn single_effects(&self, out: &mut Vec<Effect>) {
        if !self.status.is_open() {
            out.extend(self.note.owed.iter().filter_map(|&key| self.owed_after_close(key)));
            return;
        }
        if let Some(task) = self.dispatched_workflow_task() {
            out.push(Effect::Task(self.workflow_task_offer(task)));
            let kind = TimerKind::WorkflowTaskScheduleToStart(task.scheduled_event_id);
            out.extend(task.schedule_to_start_due.map(|due| Effect::Timer(due, kind)));
        }
        let first = self.note.first_task_at;
        out.extend(first.map(|at| Effect::Timer(at, TimerKind::FirstWorkflowTask)));
        out.extend(self.expires_at().map(|at| Effect::Timer(at, TimerKind::RunExpiry)));
        if self.note.waits_for_parent {
            let parent = self.parent();
            out.extend(parent.map(|parent| {
                Effect::Errand(ErrandKey::ReportStart, Errand::ReportStart { parent })
            }));
        }
    }

    fn dispatched_workflow_task(&self) -> Option<&WorkflowTaskNote> {
        self.note.workflow_task.as_ref().filter(|_| self.may(Step::DispatchWorkflowTask))
    }

    /// The workflow task, if it is offered to workers.
    pub(crate) fn offered_workflow_task(&self) -> Option<TaskOffer> {
        let task = self.dispatched_workflow_task().filter(|_| self.status.is_open());
        task.map(|task| self.workflow_task_offer(task))
    }

    fn workflow_task_offer(&self, task: &WorkflowTaskNote) -> TaskOffer {
        let key = TaskKey::Workflow { scheduled: task.scheduled_event_id, stamp: task.stamp };
        TaskOffer::new(key, task.queue.clone(), self.started.priority.as_ref(), task.scheduled_at)
    }

    fn owed_after_close(&self, key: ErrandKey) -> Option<Effect> {
        let errand = match key {
            ErrandKey::ReportClose => {
                let outcome = Box::new(self.outcome()?);
                Errand::ReportClose { parent: self.parent()?, outcome }
            }
            ErrandKey::CloseChild(initiated) => {
                let child = self.children.get(&initiated)?;
                let policy = child.attributes.parent_close_policy();
                Errand::CloseChild {
                    initiated,
                    namespace_id: child.attributes.namespace_id.as_str().into(),
                    workflow_id: WorkflowId::from(child.attributes.workflow_id.as_str()),
                    first_run: child.started.as_ref()?.0.clone(),
                    terminate: policy != ParentClosePolicy::RequestCancel,
                }
            }
            ErrandKey::StartChild(_)
            | ErrandKey::Signal(_)
            | ErrandKey::Cancel(_)
            | ErrandKey::ReportStart => return None,
        };
        Some(Effect::Errand(key, errand))
    }

    /// Where the parent is, for a child.
    pub(crate) fn parent(&self) -> Option<ParentLink> {
        let execution = self.started.parent_workflow_execution.as_ref()?;
        Some(ParentLink {
            namespace_id: self.started.parent_workflow_namespace_id.as_str().into(),
            workflow_id: WorkflowId::from(execution.workflow_id.as_str()),
            run_id: RunId::from(execution.run_id.as_str()),
            initiated: crate::id::EventId(self.started.parent_initiated_event_id),
        })
    }

    /// How the chain ended, as its parent will record it. `None` while it goes on.
    fn outcome(&self) -> Option<ChildOutcome> {
        let facts = Facts::of_event(self.close_event.as_ref()?)?;
        let result = match facts.closes()? {
            Closing::Completed(a) => ChildResult::Completed(a.result.clone()),
            Closing::Failed(a) => ChildResult::Failed(a.failure.clone(), a.retry_state),
            Closing::Canceled(a) => ChildResult::Canceled(a.details.clone()),
            Closing::TimedOut(a) => ChildResult::TimedOut(a.retry_state),
            Closing::Terminated => ChildResult::Terminated,
            Closing::ContinuedAsNew => return None,
        };
        Some(ChildOutcome {
            workflow_id: self.key.workflow_id.clone(),
            run_id: self.run_id.clone(),
            first_run: self.first_run_id(),
            workflow_type: self.workflow_type().into(),
            result,
        })
    }

    /// The first run of the chain.
    pub(crate) fn first_run_id(&self) -> RunId {
        RunId::from(self.started.first_execution_run_id.as_str())
    }

    /// The errands that closing with `status` leaves.
    pub(super) fn errands_at_close(&self, status: Status) -> Vec<ErrandKey> {
        let mut owed = Vec::new();
        if self.parent().is_some() && status != Status::ContinuedAsNew {
            owed.push(ErrandKey::ReportClose);
        }
        let to_close = self.children.values().filter(|child| {
            let policy = child.attributes.parent_close_policy();
            child.started.is_some() && policy != ParentClosePolicy::Abandon
        });
        owed.extend(to_close.map(|child| ErrandKey::CloseChild(child.initiated_event_id)));
        owed
    }

    /// Drops the children that a closed run need not know any more. Those remain that it owes
    /// something, and started ones that live on: each may ask again whether its start was recorded.
    pub(super) fn forget_children(&mut self) {
        let owed = &self.note.owed;
        self.children.retain(|&initiated, child| {
            let policy = child.attributes.parent_close_policy();
            let lives_on = child.started.is_some() && policy != ParentClosePolicy::Terminate;
            lives_on || owed.contains(&ErrandKey::CloseChild(initiated))
        });
    }

    /// When the run may run until: its own timeout or that of the whole chain.
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        let backoff = Span::from_proto(self.started.first_workflow_task_backoff.as_ref());
        let timeout = Span::from_proto(self.started.workflow_run_timeout.as_ref()).given();
        let run = timeout.map(|timeout| self.start_time + backoff + timeout);
        run.into_iter().chain(self.chain_expires_at()).min()
    }

    /// The deadline of the chain of runs, fixed when its first run started.
    pub(crate) fn chain_expires_at(&self) -> Option<Timestamp> {
        Timestamp::from_proto(self.started.workflow_execution_expiration_time.as_ref())
    }
}
