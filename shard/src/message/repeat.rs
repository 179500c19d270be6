//! Which calls may be sent again when nobody knows whether they were carried out, and how long their
//! callers wait.

use std::time::Duration;

use piton_core::request::RunRequest;

use crate::message::{Call, QueueCall, ReadCall, WorkflowCall};

impl Call {
    /// Whether a call that was perhaps carried out may be sent again: done twice it does what it does
    /// once, and answers the same.
    pub fn is_safe_to_repeat(&self) -> bool {
        match self {
            Self::Workflow(call) => call.is_safe_to_repeat(),
            // A poll that comes again, to an owner that does not know of its match, waits there for a
            // task that would be nobody's. Its sender polls anew under another id.
            Self::Queue(QueueCall::Poll(_)) => false,
            Self::Queue(
                QueueCall::Offer(_)
                | QueueCall::Withdraw { .. }
                | QueueCall::WithdrawPoll { .. }
                | QueueCall::ShutdownWorker { .. }
                | QueueCall::Describe { .. },
            )
            | Self::Read(_)
            | Self::Wanted(_) => true,
        }
    }

    /// How long the caller waits for the answer, if the call says so.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match self {
            Self::Workflow(WorkflowCall::Query { timeout, .. }) => Some(*timeout),
            Self::Read(ReadCall::History { page, .. }) => page.wait,
            Self::Read(
                ReadCall::List { timeout, .. }
                | ReadCall::Count { timeout, .. }
                | ReadCall::Backlog { timeout, .. },
            ) => *timeout,
            Self::Workflow(_) | Self::Queue(_) | Self::Wanted(_) => None,
        }
    }

    /// The same call after its caller has waited for so long.
    pub(crate) fn after(mut self, waited: Duration) -> Self {
        let left = match &mut self {
            Self::Workflow(WorkflowCall::Query { timeout, .. }) => Some(timeout),
            Self::Read(ReadCall::History { page, .. }) => page.wait.as_mut(),
            Self::Read(
                ReadCall::List { timeout, .. }
                | ReadCall::Count { timeout, .. }
                | ReadCall::Backlog { timeout, .. },
            ) => timeout.as_mut(),
            Self::Workflow(_) | Self::Queue(_) | Self::Wanted(_) => None,
        };
        if let Some(left) = left {
            *left = left.saturating_sub(waited);
        }
        self
    }
}

impl WorkflowCall {
    /// See [`Call::is_safe_to_repeat`].
    pub fn is_safe_to_repeat(&self) -> bool {
        match self {
            Self::Start { request, .. } => {
                let signal = request.signal.as_ref();
                !request.start.request_id.is_empty()
                    && signal.is_none_or(|signal| !signal.request_id.is_empty())
            }
            Self::Run { request, .. } => is_safe(request),
            Self::Query { .. } | Self::Describe { .. } => true,
            // Tickets and offers are known by their ids.
            Self::Ticket(_) | Self::NoPoller { .. } => true,
            // Whoever leads by then does not know the answer that it had: it would be refused.
            Self::CompleteWorkflowTask { .. } | Self::AnswerQuery { .. } => false,
        }
    }
}

fn is_safe(request: &RunRequest) -> bool {
    use RunRequest as R;
    match request {
        R::Signal(signal) => !signal.request_id.is_empty(),
        R::RequestCancel(cancel) => !cancel.request_id.is_empty(),
        R::ResetSticky | R::HeartbeatActivity { .. } => true,
        // By the number, the stamp or the event that they name they are recognised, or nothing is left
        // for them to do.
        R::WorkflowTaskTimedOut { .. }
        | R::WorkflowTaskUndelivered { .. }
        | R::StickyUnavailable { .. }
        | R::StickyLost
        | R::ActivityUndelivered { .. }
        | R::Due
        | R::Rehosted
        | R::ChildStarted { .. }
        | R::ChildRefused { .. }
        | R::ChildClosed { .. }
        | R::ParentRecorded
        | R::ExternalSignalDone { .. }
        | R::ExternalCancelDone { .. }
        | R::ErrandDone(_) => true,
        // The second is refused, since the first is done; or, of a terminate, it may meet another run.
        R::Terminate(_)
        | R::CompleteWorkflowTask { .. }
        | R::FailWorkflowTask { .. }
        | R::CompleteActivity { .. }
        | R::FailActivity { .. }
        | R::CancelActivity { .. } => false,
        // Never sent to another node: they follow from a ticket.
        R::TakeWorkflowTask { .. } | R::StartActivity { .. } => false,
    }
}
