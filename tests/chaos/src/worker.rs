//! Workers: they poll all nodes for tasks and answer each once or not at all, as ones that may be
//! killed at any time. Some attempts of activities fail, some never end.

use std::time::Duration;

use bytes::Bytes;
use piton_proto::enums::{QueryResultType, TaskQueueKind};
use piton_proto::failure::Failure as ActivityFailure;
use piton_proto::query::WorkflowQueryResult;
use piton_proto::taskqueue::TaskQueue;
use piton_proto::workflowservice::{
    PollActivityTaskQueueRequest, PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse,
    RespondActivityTaskCompletedRequest, RespondActivityTaskFailedRequest,
    RespondQueryTaskCompletedRequest, RespondWorkflowTaskCompletedRequest,
};
use piton_tests::audit::{Asked, Ending};
use piton_tests::orders::{Code, answer_to_query, payloads};
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::time::sleep;

use crate::client::{Client, Failure, NAMESPACE, What};
use crate::orders::{PATIENCE, ending_of};

const POLL_MAX: Duration = Duration::from_secs(20);
const CALL_MAX: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

/// One poller; each node is polled by as many.
pub(crate) struct Worker {
    pub(crate) client: Client,
    pub(crate) code: Code,
    pub(crate) random: SmallRng,
    /// It answers all that it is given, as often as it takes.
    pub(crate) is_careful: bool,
}

fn queue(name: &str) -> Option<TaskQueue> {
    let kind = TaskQueueKind::Normal.into();
    Some(TaskQueue { name: name.to_owned(), kind, ..TaskQueue::default() })
}

impl Worker {
    /// Answers workflow tasks for as long as the run lasts.
    pub(crate) async fn work_on_workflows(mut self) {
        loop {
            let request = PollWorkflowTaskQueueRequest {
                namespace: NAMESPACE.to_owned(),
                task_queue: queue(&self.code.queue),
                identity: "worker".to_owned(),
                ..PollWorkflowTaskQueueRequest::default()
            };
            let what = What { call: "poll-workflow-task", workflow: "", text: "" };
            let polled = self.client.call(what, POLL_MAX, request, async |mut service, request| {
                service.poll_workflow_task_queue(request).await
            });
            match polled.await {
                Ok(task) if !task.task_token.is_empty() => self.answer(task).await,
                Ok(_) => {}
                Err(_) => self.turn_elsewhere().await,
            }
        }
    }

    async fn turn_elsewhere(&self) {
        self.client.go_on();
        sleep(PAUSE).await;
    }

    async fn answer(&mut self, task: PollWorkflowTaskQueueResponse) {
        let execution = task.workflow_execution.clone().unwrap_or_default();
        let first = task.history.clone().map(|history| history.events).unwrap_or_default();
        let rest = task.next_page_token.to_vec();
        let events = if rest.is_empty() {
            first
        } else {
            let events = self.client.history_after(&execution, first, rest, CALL_MAX).await;
            let Ok(events) = events else { return };
            events
        };
        let queried = answer_to_query(&execution.run_id, &events);
        if task.query.is_some() {
            let answer = RespondQueryTaskCompletedRequest {
                namespace: NAMESPACE.to_owned(),
                task_token: task.task_token.clone(),
                completed_type: QueryResultType::Answered.into(),
                query_result: Some(queried),
                ..RespondQueryTaskCompletedRequest::default()
            };
            let what = What { call: "answer-query", workflow: &execution.workflow_id, text: "" };
            let sent = self.client.call(what, CALL_MAX, answer, async |mut service, request| {
                service.respond_query_task_completed(request).await
            });
            // Whoever asked asks again.
            let _ = sent.await;
            return;
        }
        if !self.is_careful && self.random.random_range(0..100) < 3 {
            // The worker is killed: its task times out.
            return;
        }
        let result = |_: &String| WorkflowQueryResult {
            result_type: QueryResultType::Answered.into(),
            answer: Some(queried.clone()),
            ..WorkflowQueryResult::default()
        };
        let workflow_type = task.workflow_type.as_ref().map_or("", |t| t.name.as_str());
        let name = self.client.journal.name("answer");
        let answer = RespondWorkflowTaskCompletedRequest {
            namespace: NAMESPACE.to_owned(),
            task_token: task.task_token.clone(),
            commands: self.code.decide(workflow_type, &execution, &events),
            identity: name.clone(),
            query_results: task.queries.keys().map(|id| (id.clone(), result(id))).collect(),
            ..RespondWorkflowTaskCompletedRequest::default()
        };
        let workflow = &execution.workflow_id;
        let what = What { call: "complete-workflow-task", workflow, text: &name };
        let send = async |client: &Client| {
            let sent = client.call(what, CALL_MAX, answer.clone(), async |mut service, request| {
                service.respond_workflow_task_completed(request).await
            });
            sent.await.map(|_| String::new())
        };
        let (ending, is_retried) = self.send_answer(send).await;
        self.client.journal.enter(workflow, Asked::WorkflowTask(name), ending, is_retried);
    }

    async fn send_answer(
        &self,
        send: impl AsyncFn(&Client) -> Result<String, Failure>,
    ) -> (Ending, bool) {
        if self.is_careful {
            return ending_of(self.client.clone().insist(PATIENCE, send).await);
        }
        let ending = match send(&self.client).await {
            Ok(_) => Ending::Done(String::new()),
            Err(Failure::Refused(_, text)) => Ending::Refused(text),
            Err(Failure::Unknown(..)) => Ending::Unknown,
        };
        (ending, false)
    }

    /// Carries activities out for as long as the run lasts.
    pub(crate) async fn work_on_activities(mut self) {
        loop {
            let request = PollActivityTaskQueueRequest {
                namespace: NAMESPACE.to_owned(),
                task_queue: queue(&self.code.queue),
                identity: "worker".to_owned(),
                ..PollActivityTaskQueueRequest::default()
            };
            let what = What { call: "poll-activity-task", workflow: "", text: "" };
            let polled = self.client.call(what, POLL_MAX, request, async |mut service, request| {
                service.poll_activity_task_queue(request).await
            });
            let task = match polled.await {
                Ok(task) if !task.task_token.is_empty() => task,
                Ok(_) => continue,
                Err(_) => {
                    self.turn_elsewhere().await;
                    continue;
                }
            };
            let execution = task.workflow_execution.clone().unwrap_or_default();
            let (workflow, run) = (&execution.workflow_id, &execution.run_id);
            self.client.journal.attempt_given(workflow, run, &task.activity_id, task.attempt);
            let drawn = if self.is_careful { 100 } else { self.random.random_range(0..100) };
            if drawn < 4 {
                continue;
            }
            if drawn < 10 {
                // By then the attempt has timed out, and another one may be under way.
                let late = Duration::from_millis(self.random.random_range(0..1_500));
                sleep(self.code.attempt + late).await;
            }
            let token = task.task_token.clone();
            if (10..20).contains(&drawn) {
                self.fail(workflow, token).await;
            } else {
                // The auditor reads the attempt off the name.
                let name = self.client.journal.name("attempt");
                let name = format!("{name}/{}", task.attempt);
                self.complete(workflow, name, token).await;
            }
        }
    }

    /// A failed attempt that is repeated leaves nothing in the history.
    async fn fail(&self, workflow: &str, token: Bytes) {
        let failure = ActivityFailure { message: "as drawn".to_owned(), ..Default::default() };
        let request = RespondActivityTaskFailedRequest {
            namespace: NAMESPACE.to_owned(),
            task_token: token,
            failure: Some(failure),
            ..RespondActivityTaskFailedRequest::default()
        };
        let what = What { call: "fail-activity", workflow, text: "" };
        let sent = self.client.call(what, CALL_MAX, request, async |mut service, request| {
            service.respond_activity_task_failed(request).await
        });
        // The attempt times out if this did not arrive.
        let _ = sent.await;
    }

    async fn complete(&self, workflow: &str, name: String, token: Bytes) {
        let request = RespondActivityTaskCompletedRequest {
            namespace: NAMESPACE.to_owned(),
            task_token: token,
            result: Some(payloads("done")),
            identity: name.clone(),
            ..RespondActivityTaskCompletedRequest::default()
        };
        let what = What { call: "complete-activity", workflow, text: &name };
        let send = async |client: &Client| {
            let sent =
                client.call(what, CALL_MAX, request.clone(), async |mut service, request| {
                    service.respond_activity_task_completed(request).await
                });
            sent.await.map(|_| String::new())
        };
        let (ending, is_retried) = self.send_answer(send).await;
        self.client.journal.enter(workflow, Asked::Activity(name), ending, is_retried);
    }
}
