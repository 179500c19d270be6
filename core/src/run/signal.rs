//! Signals to this run, and requests to cancel it.

use piton_proto::history::HistoryEvent;

use super::{Decided, RunState};
use crate::error::Rejection;
use crate::id::EventId;
use crate::request::{CancelRequest, Drawn, Signal};

impl RunState {
    pub(super) fn take_signal(
        self,
        signal: Signal,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (signal, drawn);
        unimplemented!()
    }

    /// The Signaled event of a signal; a start with a signal writes the same one.
    pub(super) fn signal_attributes(
        signal: Signal,
    ) -> piton_proto::history::history_event::Attributes {
        let _ = signal;
        unimplemented!()
    }

    pub(super) fn request_cancel(
        self,
        cancel: CancelRequest,
        drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        let _ = (cancel, drawn);
        unimplemented!()
    }

    pub(super) fn fold_signaled(&mut self) {
        self.signals += 1;
    }

    pub(super) fn fold_cancel_requested(&mut self, event: &HistoryEvent) {
        self.cancel_requested = Some(EventId(event.event_id));
    }
}
