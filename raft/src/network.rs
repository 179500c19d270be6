//! The switch as openraft wants it: one link per group, peer and purpose.

use std::collections::VecDeque;
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
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{NodeId, Tuning};
use crate::execution::blocking;
use crate::frame::{Answer, Body, Frame, Request, SnapshotAnswer};
use crate::log::GroupId;
use crate::snapshot::SnapshotFile;
use crate::switch::{OpenSession, SessionAnswer, Switch, Unanswered};
use crate::transport::Lane;
use crate::types::{AppendRequest, AppendResult, TypeConfig, Vote, VoteRequest, VoteResponse};

/// Requests of one append session that may be under way without an answer.
const SESSION_WINDOW: usize = 64;
/// How long a part of a snapshot may take to be written on the other side.
const PART_LIMIT: Duration = Duration::from_secs(5);
/// How often to ask whether a snapshot is installed.
const INSTALL_ASKED_EVERY: Duration = Duration::from_millis(20);

type RpcError = RPCError<TypeConfig>;
type Snapshot = SnapshotOf<TypeConfig, SnapshotFile>;

/// Makes the links of one group.
pub(crate) struct Network {
    switch: Arc<Switch>,
    group: GroupId,
    /// A session without an answer for this long is given up.
    session_limit: Duration,
    part_bytes: usize,
}

impl Network {
    pub(crate) fn new(switch: Arc<Switch>, group: GroupId, tuning: &Tuning) -> Network {
        Network {
            switch,
            group,
            session_limit: tuning.election_max,
            part_bytes: tuning.snapshot_frame_bytes,
        }
    }

    fn link(&self, to: NodeId, lane: Lane) -> Link {
        Link {
            switch: self.switch.clone(),
            group: self.group,
            to,
            lane,
            session_limit: self.session_limit,
            part_bytes: self.part_bytes,
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

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RpcError {
        Timeout { action, id: self.switch.node(), target: self.to, timeout }.into()
    }

    fn session<S>(&mut self, input: S) -> Session<'_, S> {
        let (open, answers) = self.switch.open_session(self.to);
        Session {
            link: self,
            input: Some(input),
            open,
            answers,
            under_way: VecDeque::new(),
            next: 0,
        }
    }

    async fn send_snapshot(&self, vote: Vote, file: SnapshotFile) -> Result<Vote, RpcError> {
        let transfer = self.switch.number();
        let mut offset = 0;
        while offset < file.bytes {
            let (source, part_bytes) = (file.clone(), self.part_bytes);
            let part = blocking(move || source.part(offset, part_bytes)).await;
            let part = part
                .map_err(|error| network(&error.to_string()))?
                .map_err(|error| network(&error.to_string()))?;
            let next = offset + part.len() as u64;
            let request = Request::SnapshotPart { transfer, offset, part };
            match self.ask(RPCTypes::InstallSnapshot, request, PART_LIMIT).await? {
                Answer::Snapshot(SnapshotAnswer::Going) => offset = next,
                _ => return Err(network("the snapshot was lost on the other side")),
            }
        }
        loop {
            let request = Request::SnapshotInstall { transfer, bytes: file.bytes, vote };
            match self.ask(RPCTypes::InstallSnapshot, request, PART_LIMIT).await? {
                Answer::Snapshot(SnapshotAnswer::Installed { vote }) => return Ok(vote),
                Answer::Snapshot(SnapshotAnswer::Going) => sleep(INSTALL_ASKED_EVERY).await,
                _ => return Err(network("the snapshot was lost on the other side")),
            }
        }
    }
}

fn unreachable(reason: &str) -> RpcError {
    Unreachable::from_string(reason).into()
}

fn network(reason: &str) -> RpcError {
    NetworkError::from_string(reason).into()
}

/// Entry requests on their way to one follower: many at once, answered in order.
struct Session<'s, S> {
    link: &'s Link,
    /// `None` once it has ended.
    input: Option<S>,
    open: OpenSession,
    answers: mpsc::UnboundedReceiver<SessionAnswer>,
    /// Requests without an answer: number and when it was sent.
    under_way: VecDeque<(u64, Instant)>,
    next: u64,
}

impl<S: Stream<Item = AppendRequest> + Unpin> Session<'_, S> {
    /// The next answer. `None` once the requests have ended and all answers are in: openraft waits
    /// for that end before it goes on.
    async fn answer(&mut self) -> Option<Result<AppendResult, RpcError>> {
        loop {
            let oldest = self.under_way.front().map(|(_, sent)| *sent);
            if self.input.is_none() && oldest.is_none() {
                return None;
            }
            let deadline = oldest.unwrap_or_else(Instant::now) + self.link.session_limit;
            tokio::select! {
                biased;
                answer = self.answers.recv(), if oldest.is_some() => {
                    return Some(self.take_answer(answer));
                }
                request = next_of(&mut self.input),
                    if self.input.is_some() && self.under_way.len() < SESSION_WINDOW =>
                {
                    match request {
                        Some(request) => {
                            if let Err(error) = self.send(request) {
                                return Some(Err(error));
                            }
                        }
                        None => self.input = None,
                    }
                }
                () = sleep_until(deadline), if oldest.is_some() => {
                    let limit = self.link.session_limit;
                    return Some(Err(self.link.timeout(RPCTypes::AppendEntries, limit)));
                }
            }
        }
    }

    fn send(&mut self, request: AppendRequest) -> Result<(), RpcError> {
        let sequence = self.next;
        let body = Body::Append { sequence, request };
        let frame = Frame { group: self.link.group, number: self.open.number, body };
        let sent = self.link.switch.send(self.link.to, Lane::Entries, &frame);
        sent.map_err(|_| unreachable("the frame could not be sent"))?;
        self.under_way.push_back((sequence, Instant::now()));
        self.next += 1;
        Ok(())
    }

    fn take_answer(&mut self, answer: Option<SessionAnswer>) -> Result<AppendResult, RpcError> {
        let expected = self.under_way.pop_front().map(|(sequence, _)| sequence);
        match answer {
            Some((sequence, Some(result))) if Some(sequence) == expected => Ok(result),
            _ => Err(network("the follower ended the session")),
        }
    }
}

async fn next_of<S: Stream + Unpin>(input: &mut Option<S>) -> Option<S::Item> {
    match input {
        Some(input) => input.next().await,
        None => None,
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let request = Request::Heartbeat(request);
        match self.ask(RPCTypes::AppendEntries, request, option.soft_ttl()).await? {
            Answer::Append(result) => Ok(result.into()),
            _ => Err(network("the answer does not fit the question")),
        }
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
                let request = Request::Heartbeat(request);
                let answer = self.ask(RPCTypes::AppendEntries, request, option.soft_ttl()).await?;
                let result = match answer {
                    Answer::Append(result) => Ok(result),
                    _ => Err(network("the answer does not fit the question")),
                };
                return Ok(stream::iter([result]).boxed());
            }
            let answers = stream::unfold(Some(self.session(input)), async |session| {
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
        match self.ask(RPCTypes::Vote, Request::Vote(request), option.soft_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(network("the answer does not fit the question")),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest,
        option: RPCOption,
    ) -> Result<VoteResponse, RpcError> {
        match self.ask(RPCTypes::Vote, Request::PreVote(request), option.soft_ttl()).await? {
            Answer::Vote(response) => Ok(response),
            _ => Err(network("the answer does not fit the question")),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let sent = tokio::select! {
            closed = cancel => return Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot.snapshot) => sent,
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
            _ => Err(network("the answer does not fit the question")),
        }
    }
}
