//! Asks a node what an operator asks.

use std::time::Duration;

use futures::future::BoxFuture;
use piton_raft::NodeId;
use piton_shard::feature_level;

use crate::config::PeerConfig;
use crate::membership::{KNOCK, Knock};
use crate::operator::call::OPERATOR_ANSWER;
use crate::operator::{ClusterReport, OperatorAnswer, OperatorCall, OperatorRefusal};
use crate::peer::{AskError, PeerAddress, Stranger, TlsError};

/// An operator is no node.
const NOBODY: NodeId = NodeId(0);
/// How long a node may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// Why nothing was done, as far as is known.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error("no node that was tried can be asked: {0}")]
    Unreachable(String),
    #[error("node {address} was asked and did not answer, so it may be done: {error}")]
    Unknown { address: String, error: AskError },
    #[error(transparent)]
    Refused(#[from] OperatorRefusal),
    #[error("node {address} answers something else: it is of another release")]
    NotUnderstood { address: String },
}

/// A way to the nodes of a cluster.
pub struct OperatorClient {
    stranger: Stranger,
    addresses: Vec<PeerAddress>,
}

impl OperatorClient {
    /// Asks the first of these peer addresses that answers. Of `config`, certificates are used.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub fn new(config: &PeerConfig, addresses: Vec<PeerAddress>) -> Result<Self, TlsError> {
        Ok(Self { stranger: Stranger::new(config, NOBODY, feature_level())?, addresses })
    }

    /// Asks the other nodes of a report, too, where those that were named do not answer any more.
    pub fn learn(&mut self, report: &ClusterReport) {
        let members = report.nodes.iter().filter(|node| node.state != "removed");
        let addresses = members.filter_map(|node| node.peer.parse().ok());
        let new = addresses.filter(|address| !self.addresses.contains(address));
        let new: Vec<PeerAddress> = new.collect();
        self.addresses.extend(new);
    }

    /// The cluster, as the first node that answers sees it.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub fn report(&self) -> BoxFuture<'_, Result<ClusterReport, OperatorError>> {
        Box::pin(async move {
            match self.ask(OperatorCall::Report).await? {
                (_, OperatorAnswer::Report(report)) => Ok(*report),
                (address, _) => Err(OperatorError::NotUnderstood { address }),
            }
        })
    }

    /// Asks the first node that answers; with its address comes what it says.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub fn ask(
        &self,
        call: OperatorCall,
    ) -> BoxFuture<'_, Result<(String, OperatorAnswer), OperatorError>> {
        Box::pin(async move {
            let mut tried = Vec::new();
            for address in &self.addresses {
                match self.ask_at(address, call.clone()).await {
                    Err(OperatorError::Unreachable(why)) => tried.push(why),
                    answered => return answered.map(|answer| (address.to_string(), answer)),
                }
            }
            Err(OperatorError::Unreachable(tried.join("; ")))
        })
    }

    /// Asks one node.
    ///
    /// # Errors
    /// See [`OperatorError`].
    pub async fn ask_at(
        &self,
        address: &PeerAddress,
        call: OperatorCall,
    ) -> Result<OperatorAnswer, OperatorError> {
        let not_understood = || OperatorError::NotUnderstood { address: address.to_string() };
        let request = KNOCK.encode(&Knock::Operate(call)).map_err(|_| not_understood())?;
        let answer = match self.stranger.ask(address, request, ANSWER_WAIT).await {
            Ok(answer) => answer,
            Err(AskError::NotSent(why)) => {
                return Err(OperatorError::Unreachable(format!("{address}: {why}")));
            }
            Err(error) => {
                return Err(OperatorError::Unknown { address: address.to_string(), error });
            }
        };
        match OPERATOR_ANSWER.decode(&answer) {
            Ok(OperatorAnswer::Refused(refusal)) => Err(refusal.into()),
            Ok(answer) => Ok(answer),
            Err(_) => Err(not_understood()),
        }
    }
}
