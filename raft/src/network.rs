//! The switch as openraft wants it: one link per group, peer and purpose.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EmptyNode, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};

use crate::config::{NodeId, Tuning};
use crate::frame::{Answer, Request, is_append_answer, is_vote_answer};
use crate::log::GroupId;
use crate::purge::KeptFrom;
use crate::silence::Silence;
use crate::snapshot::{SnapshotFile, Snapshots};
use crate::switch::{Switch, Unanswered};
use crate::transport::Lane;
use crate::types::{
    AppendRequest, AppendResult, LogId, TypeConfig, Vote, VoteRequest, VoteResponse,
};

mod sending;
mod session;

use sending::Sending;
pub(crate) use sending::Sendings;
use session::Session;

type RpcError = RPCError<TypeConfig>;
type Snapshot = SnapshotOf<TypeConfig, SnapshotFile>;

/// Makes the links of one group.
pub(crate) struct Network {
    switch: Arc<Switch>,
    group: GroupId,
    /// A session that waits and gets no answer for this long is given up.
    session_limit: Duration,
    part_bytes: usize,
    /// The same for a snapshot.
    patience: Duration,
    snapshots: Arc<Snapshots>,
    sendings: Arc<Sendings>,
    kept_from: Arc<KeptFrom>,
    silence: Arc<Silence>,
    /// A commit without entries waits for some.
    holds_commits: bool,
}

impl Network {
    pub(crate) fn new(
        switch: Arc<Switch>,
        group: GroupId,
        tuning: &Tuning,
        snapshots: Arc<Snapshots>,
        sendings: Arc<Sendings>,
        kept_from: Arc<KeptFrom>,
        holds_commits: bool,
    ) -> Network {
        Network {
            switch,
            group,
            session_limit: tuning.election_max,
            part_bytes: tuning.snapshot_frame_bytes,
            patience: tuning.snapshot_patience,
            snapshots,
            sendings,
            kept_from,
            silence: Arc::new(Silence::new(tuning)),
            holds_commits,
        }
    }

    /// Whether a leader that nobody answers is silent; to be told who answers.
    pub(crate) fn silence(&self) -> &Arc<Silence> {
        &self.silence
    }

    fn link(&self, to: NodeId, lane: Lane) -> Link {
        Link {
            switch: self.switch.clone(),
            group: self.group,
            to,
            lane,
            session_limit: self.session_limit,
            part_bytes: self.part_bytes,
            patience: self.patience,
            snapshots: self.snapshots.clone(),
            sendings: self.sendings.clone(),
            kept_from: self.kept_from.clone(),
            silence: self.silence.clone(),
            holds_commits: self.holds_commits,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, _: &EmptyNode) -> Link {
        self.link(target, Lane::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, _: &EmptyNode) -> Link {
        self.link(target, Lane::Urgent)
    }

    async fn new_snapshot_client(&mut self, target: NodeId, _: &EmptyNode) -> Link {
        self.link(target, Lane::Bulk)
    }
}

/// One group's way to one peer.
pub(crate) struct Link {
    switch: Arc<Switch>,
    group: GroupId,
    to: NodeId,
    lane: Lane,
    session_limit: Duration,
    part_bytes: usize,
    patience: Duration,
    snapshots: Arc<Snapshots>,
    sendings: Arc<Sendings>,
    kept_from: Arc<KeptFrom>,
    silence: Arc<Silence>,
    holds_commits: bool,
}

impl Link {
    async fn ask(
        &self,
        action: RPCTypes,
        request: Request,
        limit: Duration,
    ) -> Result<Answer, RpcError> {
        // Votes go out on links made for entries, but must not wait behind them.
        let lane = if self.lane == Lane::Bulk { Lane::Bulk } else { Lane::Urgent };
        let answer = self.switch.ask(self.to, lane, self.group, request, limit).await;
        answer.map_err(|error| match error {
            Unanswered::Timeout => self.timeout(action, limit),
            Unanswered::Unreachable => unreachable("the frame could not be sent"),
            Unanswered::Refused => unreachable("the group does not run there"),
        })
    }

    /// One question, one answer: the follower knows this leader, or says why not.
    async fn heartbeat(
        &self,
        request: AppendRequest,
        limit: Duration,
    ) -> Result<AppendResult, RpcError> {
        let (prev, last) = (request.prev_log_id, last_of(&request));
        let request = Request::Heartbeat(request);
        match self.ask(RPCTypes::AppendEntries, request, limit).await? {
            Answer::Append(result) if is_append_answer(&result, self.switch.node(), prev, last) => {
                Ok(result)
            }
            _ => Err(does_not_fit()),
        }
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RpcError {
        Timeout { action, id: self.switch.node(), target: self.to, timeout }.into()
    }
}

fn unreachable(reason: &str) -> RpcError {
    Unreachable::from_string(reason).into()
}

fn network(reason: &str) -> RpcError {
    NetworkError::from_string(reason).into()
}

fn does_not_fit() -> RpcError {
    network("the answer does not fit the question")
}

/// The last entry that a follower has which takes a request.
fn last_of(request: &AppendRequest) -> Option<LogId> {
    request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id)
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        self.heartbeat(request, option.soft_ttl()).await.map(Into::into)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<AppendResult, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            if self.lane == Lane::Urgent {
                // A heartbeat: one question, one answer, never behind entries.
                let Some(request) = input.next().await else {
                    return Ok(stream::empty().boxed());
                };
                let result = self.heartbeat(request, option.soft_ttl()).await?;
                return Ok(stream::iter([Ok(result)]).boxed());
            }
            let answers = stream::unfold(Some(Session::open(self, input)), async |session| {
                let mut session = session?;
                let answer = session.answer().await?;
                let goes_on = matches!(answer, Ok(Ok(_)));
                Some((answer, goes_on.then_some(session)))
            });
            Ok(answers.boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse, RpcError> {
        let asked = request.clone();
        match self.ask(RPCTypes::Vote, Request::Vote(request), option.soft_ttl()).await? {
            Answer::Vote(response) if is_vote_answer(&response, &asked) => Ok(response),
            _ => Err(does_not_fit()),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse, RpcError> {
        let asked = request.clone();
        match self.ask(RPCTypes::Vote, Request::PreVote(request), option.soft_ttl()).await? {
            Answer::Vote(response) if is_vote_answer(&response, &asked) => Ok(response),
            _ => Err(does_not_fit()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let _sending = Sending::begin(&self.sendings, self.to, snapshot.snapshot.mark.index);
        let sent = tokio::select! {
            closed = cancel => return Err(closed.into()),
            sent = self.send_snapshot(vote, &snapshot.snapshot) => sent,
        };
        match sent {
            Ok(vote) => Ok(SnapshotResponse::new(vote)),
            Err(RPCError::Timeout(error)) => Err(error.into()),
            Err(RPCError::Unreachable(error)) => Err(error.into()),
            Err(RPCError::Network(error)) => Err(error.into()),
            Err(RPCError::RemoteError(error)) => match error.source {},
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let request = Request::Transfer(request);
        match self.ask(RPCTypes::TransferLeader, request, option.soft_ttl()).await? {
            Answer::Transfer(response) => Ok(response),
            _ => Err(does_not_fit()),
        }
    }
}
