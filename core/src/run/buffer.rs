//! Events that wait for the held workflow task to end, and their flush.

use piton_proto::history::HistoryEvent;
use piton_proto::history::history_event::Attributes;
use piton_proto::sdk::UserMetadata;

use crate::error::Rejection;
use crate::id::{EventId, RunId};
use crate::request::Drawn;
use crate::run::{Decided, RunState};

/// Something pending whose last event may wait in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By its Scheduled event.
    Activity(EventId),
    /// By its Started event.
    Timer(EventId),
    /// By its Initiated event: a terminal event or that the start failed.
    Child(EventId),
    ExternalSignal(EventId),
    ExternalCancel(EventId),
}

impl RunState {
    /// Writes an event into history, or lets it wait while a workflow task is held. Its id, if it
    /// has got one.
    pub(crate) fn add_event(
        &mut self,
        drawn: &Drawn<'_>,
        attributes: Attributes,
        user_metadata: Option<UserMetadata>,
    ) -> Option<EventId> {
        let event = super::event::event(drawn.now, attributes, user_metadata);
        self.add_whole_event(drawn, event)
    }

    /// As [`RunState::add_event`], for an event that has links.
    pub(crate) fn add_whole_event(
        &mut self,
        _drawn: &Drawn<'_>,
        _event: HistoryEvent,
    ) -> Option<EventId> {
        unimplemented!()
    }

    /// Writes what waits into history. False when nothing did.
    pub(crate) fn flush_buffered(&mut self) -> bool {
        unimplemented!()
    }

    /// Whether the last event of this waits in the buffer: then it counts as closed.
    pub(crate) fn is_ending_buffered(&self, _of: Ending) -> bool {
        unimplemented!()
    }

    /// The run named by a ChildWorkflowExecutionStarted event that waits in the buffer.
    pub(crate) fn buffered_child_start(&self, _initiated: EventId) -> Option<RunId> {
        unimplemented!()
    }

    /// Whether a WorkflowExecutionCancelRequested event waits in the buffer.
    pub(crate) fn is_cancel_request_buffered(&self) -> bool {
        unimplemented!()
    }

    /// Forgets the buffered TimerFired of a timer, which is being cancelled. False if none waits.
    pub(crate) fn remove_buffered_timer_fired(&mut self, _started: EventId) -> bool {
        unimplemented!()
    }

    pub(crate) fn flush_after_rehosting(self, _drawn: &Drawn<'_>) -> Result<Decided, Rejection> {
        unimplemented!()
    }
}
