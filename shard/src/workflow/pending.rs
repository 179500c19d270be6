//! What a batch owes to those who asked, carried out once it is committed: see `settle`.

use std::collections::HashMap;

use piton_core::id::RunId;
use piton_core::proto::query::WorkflowQueryResult;
use piton_core::request::WorkflowTaskRef;
use piton_core::run::{ActivityTask, Reply, StartedTask};

use crate::error::ShardError;
use crate::leader::hosting::Tell;
use crate::message::{Answer, Delivery, Ticket, WorkflowCall};
use crate::route::cluster::Cluster;
use crate::route::shard_leader::ReplyTo;
use crate::rows::retention::{ExpireRow, Turn};
use crate::workflow::query::QueryStage;

/// What a worker says of queries along with its answer, by the number it was given.
pub(crate) type QueryResults = HashMap<String, WorkflowQueryResult>;

/// Something to be done once the batch is committed.
pub(crate) enum Pending {
    Answer(ReplyTo, Result<Answer, ShardError>),
    Reply(ReplyTo, Result<Reply, ShardError>),
    Started(ReplyTo, Reply),
    Completed {
        reply: ReplyTo,
        reference: WorkflowTaskRef,
        run_id: RunId,
        results: QueryResults,
        completed: Result<Reply, ShardError>,
    },
    DeliverWorkflowTask(Ticket, Box<StartedTask>),
    DeliverActivity(Ticket, Box<ActivityTask>),
    DeliverQuery(Ticket, u64),
    DeliverNothing(Ticket),
    SendQuery(u64, QueryStage),
    Subscribe(Option<RunId>, Tell),
    Resume(RunId),
    Expire(ExpireRow, Turn),
}

impl Pending {
    /// The commit failed: whoever waits hears so.
    pub(crate) fn refuse(self, error: &ShardError) {
        match self {
            Self::Answer(reply, _)
            | Self::Reply(reply, _)
            | Self::Started(reply, _)
            | Self::Completed { reply, .. } => reply.send(Err(error.clone())),
            Self::Subscribe(_, tell) => {
                // The reader may have gone away.
                let _ = tell.send(Err(error.clone()));
            }
            Self::DeliverWorkflowTask(..)
            | Self::DeliverActivity(..)
            | Self::DeliverQuery(..)
            | Self::DeliverNothing(_)
            | Self::SendQuery(..)
            | Self::Resume(_)
            | Self::Expire(..) => {}
        }
    }

    /// Somebody takes it for the state of things, so it must not come from a leader that is none
    /// any more (D5a). A task that is handed out carries its term.
    pub(crate) fn tells_state(&self) -> bool {
        match self {
            Self::Answer(..)
            | Self::Started(..)
            | Self::Completed { .. }
            | Self::SendQuery(..)
            | Self::Subscribe(..) => true,
            Self::Reply(reply, _) => !reply.is_nobody(),
            Self::DeliverWorkflowTask(..)
            | Self::DeliverActivity(..)
            | Self::DeliverQuery(..)
            | Self::DeliverNothing(_)
            | Self::Resume(_)
            | Self::Expire(..) => false,
        }
    }

    /// The commit failed, or nobody knows: the poll of a ticket must not wait for ever.
    pub(crate) fn give_up_ticket(&self, cluster: &Cluster) {
        match self {
            // The attempt may be recorded, now or later, and then nobody but this poll may have it:
            // whoever leads is asked again, with the same ticket (D8).
            Self::DeliverActivity(ticket, _) => {
                let shard = cluster.shard_of(&ticket.offer.key);
                cluster.insist_again(shard, WorkflowCall::Ticket(ticket.clone()).into());
            }
            Self::DeliverWorkflowTask(ticket, _)
            | Self::DeliverQuery(ticket, _)
            | Self::DeliverNothing(ticket) => {
                cluster.deliver(ticket.node, ticket.poll, Delivery::Again);
            }
            _ => {}
        }
    }
}
