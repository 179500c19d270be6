//! Activities: scheduling, handing out an attempt, its answers. Retries are in `activity_retry`,
//! timeouts in `activity_timeout`.

use std::sync::Arc;

use piton_proto::command::ScheduleActivityTaskCommandAttributes;
use piton_proto::common::Payloads;
use piton_proto::failure::Failure;
use piton_proto::history::{
    ActivityTaskCancelRequestedEventAttributes, ActivityTaskScheduledEventAttributes, HistoryEvent,
};
use piton_proto::sdk::UserMetadata;

use super::command::CommandFailure;
use super::{Activity, ActivityTask, Decided, RunState};
use crate::effect::Effect;
use crate::error::Rejection;
use crate::id::EventId;
use crate::request::{ActivityRef, Drawn, Taker};

impl RunState {
    pub(super) fn schedule_activity(
        &mut self,
        attributes: ScheduleActivityTaskCommandAttributes,
        user_metadata: Option<UserMetadata>,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<Option<ActivityTask>, CommandFailure> {
        let _ = (attributes, user_metadata, completed, drawn);
        unimplemented!()
    }

    /// True when the activity had not been started, so that its Canceled event is written now.
    pub(super) fn request_cancel_activity(
        &mut self,
        scheduled: EventId,
        completed: EventId,
        drawn: &Drawn<'_>,
    ) -> Result<bool, CommandFailure> {
        let _ = (scheduled, completed, drawn);
        unimplemented!()
    }

    pub(super) fn start_activity(
        self,
        scheduled: EventId,
        stamp: u32,
        taker: Taker,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (scheduled, stamp, taker, drawn);
        unimplemented!()
    }

    pub(super) fn take_back_activity(
        self,
        scheduled: EventId,
        stamp: u32,
        request_id: &str,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (scheduled, stamp, request_id, drawn);
        unimplemented!()
    }

    pub(super) fn complete_activity(
        self,
        activity: &ActivityRef,
        result: Option<Payloads>,
        identity: String,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (activity, result, identity, drawn);
        unimplemented!()
    }

    pub(super) fn fail_activity(
        self,
        activity: &ActivityRef,
        failure: Option<Failure>,
        last_heartbeat_details: Option<Payloads>,
        identity: String,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (activity, failure, last_heartbeat_details, identity, drawn);
        unimplemented!()
    }

    pub(super) fn cancel_activity(
        self,
        activity: &ActivityRef,
        details: Option<Payloads>,
        identity: String,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (activity, details, identity, drawn);
        unimplemented!()
    }

    pub(super) fn heartbeat_activity(
        self,
        activity: &ActivityRef,
        details: Option<Payloads>,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (activity, details, drawn);
        unimplemented!()
    }

    pub(super) fn fire_activities(&mut self, drawn: &Drawn<'_>) {
        let _ = drawn;
        unimplemented!()
    }

    /// What a pending activity owes: its offer or its nearest timeout.
    pub(crate) fn activity_effects(&self, activity: &Activity, out: &mut Vec<Effect>) {
        let _ = (activity, out);
        unimplemented!()
    }

    pub(super) fn fold_activity_scheduled(
        &mut self,
        event: &HistoryEvent,
        attributes: &ActivityTaskScheduledEventAttributes,
    ) {
        let _ = (event, Arc::new(attributes));
        unimplemented!()
    }

    pub(super) fn fold_activity_cancel_requested(
        &mut self,
        event: &HistoryEvent,
        attributes: &ActivityTaskCancelRequestedEventAttributes,
    ) {
        let _ = (event, attributes);
        unimplemented!()
    }

    /// Completed, Failed, TimedOut or Canceled.
    pub(super) fn fold_activity_closed(&mut self, scheduled: EventId) {
        self.activities.remove(&scheduled);
    }
}
