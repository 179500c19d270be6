//! What a long history comes to at one event, as a record: a later fold goes on from there instead of
//! from event 1. It never decides anything, and nothing rests on it: without it the fold takes longer.

use std::collections::BTreeMap;
use std::sync::Arc;

use piton_proto::common::{Link, Memo, Payload, WorkerVersionStamp};
use piton_proto::history::{
    ActivityTaskScheduledEventAttributes, HistoryEvent,
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    SignalExternalWorkflowExecutionInitiatedEventAttributes,
    StartChildWorkflowExecutionInitiatedEventAttributes, WorkflowExecutionStartedEventAttributes,
};
use piton_proto::sdk::UserMetadata;
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{Activity, Child, FoldError, RunState, Status, Timer};
use crate::id::{EventId, RunId, WorkflowKey};
use crate::message::Proto;
use crate::note::{Note, NoteKey, RunNote};
use crate::time::Timestamp;

/// The fold of an open run's events before `next_event_id`, without its notes.
///
/// Whatever the fold makes of an event belongs here: a field more in [`RunState`] is a field more
/// here, and then older milestones are not read any more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Milestone {
    pub next_event_id: EventId,
    started: Proto<WorkflowExecutionStartedEventAttributes>,
    start_time: Timestamp,
    user_metadata: Option<Proto<UserMetadata>>,
    start_links: Vec<Proto<Link>>,
    history_bytes: u64,
    last_event_time: Timestamp,
    previous_started: EventId,
    cancel_requested: Option<EventId>,
    signals: u64,
    memo: Proto<Memo>,
    search_attributes: BTreeMap<String, Proto<Payload>>,
    worker_version: Option<Proto<WorkerVersionStamp>>,
    worker_deployment: Arc<str>,
    activities: Vec<PendingActivity>,
    timers: Vec<PendingTimer>,
    children: Vec<PendingChild>,
    external_signals:
        Vec<(EventId, Proto<SignalExternalWorkflowExecutionInitiatedEventAttributes>)>,
    external_cancels:
        Vec<(EventId, Proto<RequestCancelExternalWorkflowExecutionInitiatedEventAttributes>)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PendingActivity {
    scheduled: EventId,
    attributes: Proto<ActivityTaskScheduledEventAttributes>,
    user_metadata: Option<Proto<UserMetadata>>,
    scheduled_at: Timestamp,
    cancel_requested: Option<EventId>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PendingTimer {
    started: EventId,
    timer_id: String,
    fires_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PendingChild {
    initiated: EventId,
    attributes: Proto<StartChildWorkflowExecutionInitiatedEventAttributes>,
    user_metadata: Option<Proto<UserMetadata>>,
    started: Option<(RunId, EventId)>,
}

fn proto<M: Message + Clone>(message: &Arc<M>) -> Proto<M> {
    Proto(M::clone(message))
}

fn shared<M>(message: Proto<M>) -> Arc<M> {
    Arc::new(message.0)
}

impl Milestone {
    /// Where an open run stands, all of whose events are committed or about to be.
    pub fn of(run: &RunState) -> Option<Self> {
        // Field by field, here and below, so that a new one is not forgotten.
        let RunState {
            key: _,
            run_id: _,
            status,
            started,
            start_time,
            user_metadata,
            start_links,
            next_event_id,
            history_bytes,
            last_event_time,
            close_time: _,
            close_event: _,
            previous_started,
            cancel_requested,
            signals,
            memo,
            search_attributes,
            worker_version,
            worker_deployment,
            activities,
            timers,
            children,
            external_signals,
            external_cancels,
            buffered: _,
            note: _,
            held: _,
            uncommitted: _,
        } = run;
        let attributes = search_attributes.iter();
        status.is_open().then(|| Self {
            next_event_id: *next_event_id,
            started: proto(started),
            start_time: *start_time,
            user_metadata: user_metadata.as_ref().map(proto),
            start_links: start_links.iter().cloned().map(Proto).collect(),
            history_bytes: *history_bytes,
            last_event_time: *last_event_time,
            previous_started: *previous_started,
            cancel_requested: *cancel_requested,
            signals: *signals,
            memo: proto(memo),
            search_attributes: attributes.map(|(k, v)| (k.clone(), Proto(v.clone()))).collect(),
            worker_version: worker_version.as_ref().map(proto),
            worker_deployment: Arc::clone(worker_deployment),
            activities: activities.values().map(|a| PendingActivity::of(a)).collect(),
            timers: timers.values().map(|t| PendingTimer::of(t)).collect(),
            children: children.values().map(|c| PendingChild::of(c)).collect(),
            external_signals: external_signals.iter().map(|(id, s)| (*id, proto(s))).collect(),
            external_cancels: external_cancels.iter().map(|(id, c)| (*id, proto(c))).collect(),
        })
    }

    /// The run as it stood, but for its notes.
    fn restore(self, key: WorkflowKey, run_id: RunId) -> RunState {
        let attributes = self.search_attributes.into_iter();
        let activities = self.activities.into_iter().map(PendingActivity::restore);
        let timers = self.timers.into_iter().map(PendingTimer::restore);
        let children = self.children.into_iter().map(PendingChild::restore);
        let signals = self.external_signals.into_iter();
        let cancels = self.external_cancels.into_iter();
        RunState {
            key,
            run_id,
            status: Status::Running,
            started: shared(self.started),
            start_time: self.start_time,
            user_metadata: self.user_metadata.map(shared),
            start_links: self.start_links.into_iter().map(|link| link.0).collect(),
            next_event_id: self.next_event_id,
            history_bytes: self.history_bytes,
            last_event_time: self.last_event_time,
            close_time: None,
            close_event: None,
            previous_started: self.previous_started,
            cancel_requested: self.cancel_requested,
            signals: self.signals,
            memo: shared(self.memo),
            search_attributes: Arc::new(attributes.map(|(k, v)| (k, v.0)).collect()),
            worker_version: self.worker_version.map(shared),
            worker_deployment: self.worker_deployment,
            activities: activities.map(|a| (a.scheduled_event_id, Arc::new(a))).collect(),
            timers: timers.map(|t| (t.started_event_id, Arc::new(t))).collect(),
            children: children.map(|c| (c.initiated_event_id, Arc::new(c))).collect(),
            external_signals: signals.map(|(id, signal)| (id, shared(signal))).collect(),
            external_cancels: cancels.map(|(id, cancel)| (id, shared(cancel))).collect(),
            buffered: BTreeMap::new(),
            note: RunNote::default(),
            held: None,
            uncommitted: Vec::new(),
        }
    }
}

impl PendingActivity {
    fn of(activity: &Activity) -> Self {
        Self {
            scheduled: activity.scheduled_event_id,
            attributes: proto(&activity.attributes),
            user_metadata: activity.user_metadata.as_ref().map(proto),
            scheduled_at: activity.scheduled_at,
            cancel_requested: activity.cancel_requested,
        }
    }

    fn restore(self) -> Activity {
        let metadata = self.user_metadata.map(shared);
        Activity {
            cancel_requested: self.cancel_requested,
            ..Activity::scheduled(
                self.scheduled,
                shared(self.attributes),
                metadata,
                self.scheduled_at,
            )
        }
    }
}

impl PendingTimer {
    fn of(timer: &Timer) -> Self {
        let (timer_id, fires_at) = (timer.timer_id.clone(), timer.fires_at);
        Self { started: timer.started_event_id, timer_id, fires_at }
    }

    fn restore(self) -> Timer {
        let Self { started, timer_id, fires_at } = self;
        Timer { timer_id, started_event_id: started, fires_at }
    }
}

impl PendingChild {
    fn of(child: &Child) -> Self {
        Self {
            initiated: child.initiated_event_id,
            attributes: proto(&child.attributes),
            user_metadata: child.user_metadata.as_ref().map(proto),
            started: child.started.clone(),
        }
    }

    fn restore(self) -> Child {
        Child {
            initiated_event_id: self.initiated,
            attributes: shared(self.attributes),
            user_metadata: self.user_metadata.map(shared),
            started: self.started,
        }
    }
}

impl RunState {
    /// As [`RunState::from_history`], from a milestone and the events behind it.
    ///
    /// # Errors
    /// Names what does not fit.
    pub fn from_milestone(
        key: WorkflowKey,
        run_id: RunId,
        milestone: Milestone,
        events: impl IntoIterator<Item = HistoryEvent>,
        notes: impl IntoIterator<Item = (NoteKey, Note)>,
    ) -> Result<Self, FoldError> {
        milestone.restore(key, run_id).fold_on(events, notes)
    }
}
