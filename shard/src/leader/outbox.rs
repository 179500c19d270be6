//! Carries out errands: what a run owes to other workflows. Leader only, after the commit, and
//! again after a failover: the rows are the truth, and doing an errand twice is harmless, since
//! its request id is derived from its event (D7).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use piton_core::effect::{Errand, ErrandKey, ParentLink};
use piton_core::error::Rejection;
use piton_core::id::{EventId, NamespaceId, RunId, WorkflowId, WorkflowKey};
use piton_core::message::Proto;
use piton_core::proto::common::WorkflowExecution;
use piton_core::proto::history::{
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    SignalExternalWorkflowExecutionInitiatedEventAttributes,
    StartChildWorkflowExecutionInitiatedEventAttributes,
};
use piton_core::proto::sdk::UserMetadata;
use piton_core::request::{
    CancelRequest, ChildRefusal, ExternalRefusal, RunRequest, Signal, TerminateRequest,
};
use piton_core::run::Reply;

use crate::error::ShardError;
use crate::leader::errand_lines::Line;
use crate::leader::runtime::ShardRuntime;
use crate::leader::{child_start, panics};
use crate::message::{Answer, WorkflowCall};

/// What events say of requests that the server itself makes, as on the official server.
const SERVER_IDENTITY: &str = "history-service";

/// Who has an errand carried out.
struct Sender {
    shard: Arc<ShardRuntime>,
    key: WorkflowKey,
    run_id: RunId,
}

impl ShardRuntime {
    /// Carries an errand out, after those of the same run to the same target.
    pub(crate) fn run_errand(
        self: &Arc<Self>,
        key: &WorkflowKey,
        run_id: &RunId,
        errand_key: ErrandKey,
        errand: Errand,
    ) {
        let line = Line { key: key.clone(), run_id: run_id.clone(), target: target_of(&errand) };
        if self.errands.add(&line, errand_key, errand) {
            let sender =
                Sender { shard: Arc::clone(self), key: key.clone(), run_id: run_id.clone() };
            tokio::spawn(async move { sender.work_off(line).await });
        }
    }
}

fn target_of(errand: &Errand) -> WorkflowKey {
    let key = |namespace: &str, workflow_id: &str| WorkflowKey {
        namespace: NamespaceId::from(namespace),
        workflow_id: WorkflowId::from(workflow_id),
    };
    let of = |e: &Option<WorkflowExecution>| e.as_ref().map_or("", |e| &*e.workflow_id).to_owned();
    match errand {
        Errand::StartChild { attributes, .. } => {
            key(&attributes.namespace_id, &attributes.workflow_id)
        }
        Errand::Signal { attributes, .. } => {
            key(&attributes.namespace_id, &of(&attributes.workflow_execution))
        }
        Errand::Cancel { attributes, .. } => {
            key(&attributes.namespace_id, &of(&attributes.workflow_execution))
        }
        Errand::ReportStart { parent } | Errand::ReportClose { parent, .. } => parent_key(parent),
        Errand::CloseChild { namespace_id, workflow_id, .. } => {
            key(namespace_id, workflow_id.as_str())
        }
    }
}

fn parent_key(parent: &ParentLink) -> WorkflowKey {
    WorkflowKey {
        namespace: NamespaceId::from(&*parent.namespace_id),
        workflow_id: parent.workflow_id.clone(),
    }
}

impl Sender {
    async fn work_off(self, line: Line) {
        while let Some((key, errand)) = self.shard.errands.first(&line) {
            let mut wait = self.shard.config.errand_retry_min;
            while let Err(error) = self.try_carry_out(&line.target, key, &errand).await {
                if self.shard.errands.is_stopped() {
                    return;
                }
                tracing::debug!(shard = %self.shard.id, %error, ?key, "an errand is tried again");
                pause(wait).await;
                wait = (wait * 2).min(self.shard.config.errand_retry_max);
            }
            self.shard.errands.done(&line);
        }
    }

    /// A panic is a bug of ours: the errand is tried again, and those behind it wait for it.
    async fn try_carry_out(
        &self,
        target: &WorkflowKey,
        key: ErrandKey,
        errand: &Errand,
    ) -> Result<(), ShardError> {
        let carried_out = AssertUnwindSafe(self.carry_out(target, key, errand)).catch_unwind();
        carried_out.await.unwrap_or_else(|panic| {
            let panic = panics::text_of(panic.as_ref());
            tracing::error!(shard = %self.shard.id, ?key, panic, "an errand panicked");
            Err(ShardError::Internal("an internal error in an errand".into()))
        })
    }

    /// Carries one errand out and records the result in the run that owes it.
    ///
    /// # Errors
    /// When it is not known to be done; then it is tried again.
    async fn carry_out(
        &self,
        target: &WorkflowKey,
        key: ErrandKey,
        errand: &Errand,
    ) -> Result<(), ShardError> {
        match errand {
            Errand::StartChild { initiated, attributes, user_metadata } => {
                self.start_child(target, *initiated, attributes, user_metadata.clone()).await
            }
            Errand::Signal { initiated, attributes } => {
                self.signal(target, *initiated, attributes).await
            }
            Errand::Cancel { initiated, attributes } => {
                self.cancel(target, *initiated, attributes).await
            }
            Errand::ReportStart { parent } => self.report_start(parent).await,
            Errand::ReportClose { parent, outcome } => {
                let request = RunRequest::ChildClosed {
                    initiated: parent.initiated,
                    outcome: outcome.clone(),
                };
                self.ask_absent_ok(target, Some(parent.run_id.clone()), request).await?;
                self.record(RunRequest::ErrandDone(key)).await
            }
            Errand::CloseChild { first_run, terminate, .. } => {
                let request = close_child(first_run, *terminate, self.execution());
                self.ask_absent_ok(target, None, request).await?;
                self.record(RunRequest::ErrandDone(key)).await
            }
        }
    }

    /// A started child reports by itself (see `RunRequest::ChildStarted`); a refusal is recorded here.
    async fn start_child(
        &self,
        target: &WorkflowKey,
        initiated: EventId,
        attributes: &StartChildWorkflowExecutionInitiatedEventAttributes,
        user_metadata: Option<UserMetadata>,
    ) -> Result<(), ShardError> {
        if !self.knows(&target.namespace) {
            let cause = ChildRefusal::NamespaceNotFound;
            return self.record(RunRequest::ChildRefused { initiated, cause }).await;
        }
        let parent = child_start::ParentState::of(&self.shard, &self.key, &self.run_id).await?;
        let request_id = self.request_id(initiated);
        let request =
            child_start::request(parent, initiated, attributes, user_metadata, request_id);
        let call = WorkflowCall::Start { key: target.clone(), request };
        match child_refusal(self.shard.cluster.call(call).await)? {
            Some(cause) => self.record(RunRequest::ChildRefused { initiated, cause }).await,
            None => Ok(()),
        }
    }

    async fn signal(
        &self,
        target: &WorkflowKey,
        initiated: EventId,
        attributes: &SignalExternalWorkflowExecutionInitiatedEventAttributes,
    ) -> Result<(), ShardError> {
        let signal = Signal {
            name: attributes.signal_name.clone(),
            input: attributes.input.clone(),
            identity: SERVER_IDENTITY.to_owned(),
            header: attributes.header.clone(),
            request_id: self.request_id(initiated),
            sender: Some(self.execution()),
            child_only: attributes.child_workflow_only,
            links: Vec::new(),
        };
        let run_id = run_of(attributes.workflow_execution.as_ref());
        let refusal = if *target == self.key {
            // A workflow cannot signal itself.
            Some(ExternalRefusal::NotFound)
        } else {
            self.ask_external(target, run_id, RunRequest::Signal(signal)).await?
        };
        self.record(RunRequest::ExternalSignalDone { initiated, refusal }).await
    }

    async fn cancel(
        &self,
        target: &WorkflowKey,
        initiated: EventId,
        attributes: &RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    ) -> Result<(), ShardError> {
        let cancel = CancelRequest {
            reason: attributes.reason.clone(),
            identity: SERVER_IDENTITY.to_owned(),
            request_id: self.request_id(initiated),
            sender: Some((Proto(self.execution()), initiated)),
            child_only: attributes.child_workflow_only,
            ..Default::default()
        };
        let run_id = run_of(attributes.workflow_execution.as_ref());
        let refusal = if *target == self.key {
            // A workflow cannot ask itself to be cancelled.
            Some(ExternalRefusal::NotFound)
        } else {
            self.ask_external(target, run_id, RunRequest::RequestCancel(cancel)).await?
        };
        self.record(RunRequest::ExternalCancelDone { initiated, refusal }).await
    }

    /// Asks the parent to record the start; goes on, or ends, as it answers.
    async fn report_start(&self, parent: &ParentLink) -> Result<(), ShardError> {
        let request = RunRequest::ChildStarted {
            initiated: parent.initiated,
            run_id: self.run_id.clone(),
            header: None,
        };
        let run_id = Some(parent.run_id.clone());
        let call = WorkflowCall::Run { key: parent_key(parent), run_id, request };
        let goes_on = match self.shard.cluster.call(call).await {
            Ok(Answer::Reply(reply)) => matches!(*reply, Reply::ChildRecorded(true)),
            Ok(_) => false,
            Err(error) if error.is_absent() => false,
            Err(error) => return Err(error),
        };
        if goes_on {
            return self.record(RunRequest::ParentRecorded).await;
        }
        self.record(RunRequest::Terminate(TerminateRequest {
            reason: "the parent was closed before it recorded the start of this child".into(),
            identity: SERVER_IDENTITY.to_owned(),
            ..Default::default()
        }))
        .await
    }

    async fn ask_external(
        &self,
        target: &WorkflowKey,
        run_id: Option<RunId>,
        request: RunRequest,
    ) -> Result<Option<ExternalRefusal>, ShardError> {
        if !self.knows(&target.namespace) {
            return Ok(Some(ExternalRefusal::NamespaceNotFound));
        }
        let call = WorkflowCall::Run { key: target.clone(), run_id, request };
        match self.shard.cluster.call(call).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_absent() => Ok(Some(ExternalRefusal::NotFound)),
            Err(ShardError::Rejected(Rejection::InvalidArgument(_))) => {
                Ok(Some(ExternalRefusal::SignalCountLimit))
            }
            Err(error) => Err(error),
        }
    }

    /// Asks; that the target is gone or closed is as good as done, and so is any refusal for good.
    async fn ask_absent_ok(
        &self,
        target: &WorkflowKey,
        run_id: Option<RunId>,
        request: RunRequest,
    ) -> Result<(), ShardError> {
        let call = WorkflowCall::Run { key: target.clone(), run_id, request };
        match self.shard.cluster.call(call).await {
            Ok(_) | Err(ShardError::Rejected(_)) => Ok(()),
            Err(error) if error.is_absent() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Records a result in the run that owed the errand; a run that is gone owes nothing.
    async fn record(&self, request: RunRequest) -> Result<(), ShardError> {
        self.ask_absent_ok(&self.key, Some(self.run_id.clone()), request).await
    }

    fn knows(&self, namespace: &NamespaceId) -> bool {
        self.shard.cluster.meta().namespace_by_id(namespace).is_some()
    }

    fn execution(&self) -> WorkflowExecution {
        WorkflowExecution {
            workflow_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.to_string(),
        }
    }

    /// The same for each try of an errand, other than that of any other errand.
    fn request_id(&self, event: EventId) -> String {
        format!("{}:{event}", self.run_id)
    }
}

fn run_of(execution: Option<&WorkflowExecution>) -> Option<RunId> {
    execution.filter(|e| !e.run_id.is_empty()).map(|e| RunId::from(e.run_id.as_str()))
}

fn child_refusal(answer: Result<Answer, ShardError>) -> Result<Option<ChildRefusal>, ShardError> {
    match answer {
        Ok(_) => Ok(None),
        // Refused for good: by a policy, or by a rule that no try will change.
        Err(ShardError::Rejected(_)) => Ok(Some(ChildRefusal::AlreadyExists)),
        Err(ShardError::NamespaceNotFound { .. }) => Ok(Some(ChildRefusal::NamespaceNotFound)),
        Err(error) => Err(error),
    }
}

fn close_child(first_run: &RunId, terminate: bool, parent: WorkflowExecution) -> RunRequest {
    let first_run_id = first_run.to_string();
    if terminate {
        return RunRequest::Terminate(TerminateRequest {
            reason: "by parent close policy".to_owned(),
            identity: SERVER_IDENTITY.to_owned(),
            first_run_id,
            ..Default::default()
        });
    }
    RunRequest::RequestCancel(CancelRequest {
        identity: SERVER_IDENTITY.to_owned(),
        request_id: format!("{}:close", parent.run_id),
        first_run_id,
        sender: Some((Proto(parent), EventId(0))),
        ..Default::default()
    })
}

async fn pause(wait: Duration) {
    tokio::time::sleep(wait).await;
}
