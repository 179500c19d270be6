//! Metrics read off what was committed of a run.

use piton_core::note::{Note, NoteKey};
use piton_core::proto::enums::EventType;
use piton_core::proto::history::HistoryEvent;
use piton_core::proto::history::history_event::Attributes;
use piton_core::run::{Closing, Ending, Facts, RunState};
use piton_core::time::Timestamp;
use piton_core::transition::Change;

use crate::workflow::batch::Hosted;

impl Hosted {
    /// Notes how long workflows, workflow tasks and activities took, and how they ended.
    pub(crate) fn measure(&self, before: Option<&RunState>, change: &Change) {
        let Some(run) = self.runs.get(&change.run_id).map(|run| &**run).or(before) else { return };
        let namespace = self.shard.cluster.meta().namespace_by_id(&self.key.namespace);
        let namespace = namespace.as_ref().map_or("", |n| &n.name);
        let workflow_type = run.started.workflow_type.as_ref().map_or("", |t| &t.name);
        let metrics = &self.shard.metrics;
        for event in &change.events {
            let at = Timestamp::from_proto(event.event_time.as_ref()).unwrap_or_default();
            let Some(facts) = Facts::of_event(event) else { continue };
            if let Some(closing) = facts.closes() {
                let took = (at - run.start_time).to_std();
                metrics.workflow_closed(namespace, workflow_type, outcome_of(closing), took);
            }
            self.measure_course(namespace, workflow_type, event);
            if let Some(Ending::Activity(scheduled)) = facts.ends() {
                let activity = before.and_then(|b| b.activities.get(&scheduled));
                if let Some(activity) = activity {
                    let name = activity.attributes.activity_type.as_ref().map_or("", |t| &t.name);
                    let took = (at - activity.scheduled_at).to_std();
                    let failed = [EventType::ActivityTaskFailed, EventType::ActivityTaskTimedOut];
                    metrics.activity_closed(namespace, name, took, failed.contains(&facts.kind));
                }
            }
            if facts.kind == EventType::WorkflowTaskCompleted {
                let scheduled = before.and_then(|b| b.note.workflow_task.as_ref());
                if let Some(task) = scheduled {
                    let took = (at - task.scheduled_at).to_std();
                    metrics.workflow_task_done(namespace, workflow_type, took);
                }
            }
        }
        self.measure_retries(before, change, namespace);
    }

    fn measure_course(&self, namespace: &str, workflow_type: &str, event: &HistoryEvent) {
        let metrics = &self.shard.metrics;
        match event.attributes.as_ref() {
            Some(Attributes::WorkflowExecutionStartedEventAttributes(_)) => {
                metrics.workflow_started(namespace, workflow_type);
            }
            Some(Attributes::WorkflowTaskFailedEventAttributes(failed)) => {
                metrics.workflow_task_failed(
                    namespace,
                    workflow_type,
                    failed.cause().as_str_name(),
                );
            }
            Some(Attributes::WorkflowTaskTimedOutEventAttributes(timed_out)) => {
                let kind = timed_out.timeout_type().as_str_name();
                metrics.workflow_task_failed(namespace, workflow_type, kind);
            }
            _ => {}
        }
    }

    /// An attempt that is one higher than before is a retry; it leaves no event.
    pub(crate) fn measure_retries(
        &self,
        before: Option<&RunState>,
        change: &Change,
        namespace: &str,
    ) {
        for (key, note) in &change.notes {
            let (NoteKey::Activity(id), Some(Note::Activity(note))) = (key, note) else { continue };
            let Some(activity) = before.and_then(|b| b.activities.get(id)) else { continue };
            if note.attempt > activity.note.attempt {
                let name = activity.attributes.activity_type.as_ref().map_or("", |t| &t.name);
                self.shard.metrics.activity_retried(namespace, name);
            }
        }
    }
}

fn outcome_of(closing: Closing<'_>) -> &'static str {
    match closing {
        Closing::Completed(_) => "completed",
        Closing::Failed(_) => "failed",
        Closing::Canceled(_) => "canceled",
        Closing::Terminated => "terminated",
        Closing::TimedOut(_) => "timed_out",
        Closing::ContinuedAsNew => "continued_as_new",
    }
}
