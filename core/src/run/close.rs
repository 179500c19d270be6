//! How a run ends.

use piton_proto::history::history_event::Attributes;

use crate::effect::ErrandKey;
use crate::error::Rejection;
use crate::request::{Drawn, TerminateRequest};
use crate::run::{Decided, RunState, Status};
use crate::time::Timestamp;

impl RunState {
    /// Closes the run by its last event.
    pub(crate) fn close(&mut self, _drawn: &Drawn<'_>, _attributes: Attributes, _status: Status) {
        unimplemented!()
    }

    pub(super) fn terminate(
        self,
        _request: TerminateRequest,
        _drawn: &Drawn<'_>,
    ) -> Result<Decided, Rejection> {
        unimplemented!()
    }

    /// Whether the run timeout or the execution timeout is over.
    pub fn is_expired(&self, _now: Timestamp) -> bool {
        unimplemented!()
    }

    pub(super) fn time_out_run(&mut self, _drawn: &Drawn<'_>) {
        unimplemented!()
    }

    pub(super) fn errand_done(self, _errand: ErrandKey) -> Result<Decided, Rejection> {
        unimplemented!()
    }
}
