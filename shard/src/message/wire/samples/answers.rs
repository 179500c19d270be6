//! What requests are answered with.

use super::*;

fn started_task() -> Box<StartedTask> {
    Box::new(StartedTask {
        run_id: run(),
        workflow_type: "Order".into(),
        term: 7,
        number: 300,
        attempt: 2,
        scheduled_event_id: EventId(5),
        started_event_id: EventId(6),
        previous_started: EventId(3),
        history_from: EventId(1),
        history_end: EventId(5),
        suffix: vec![event(), event()],
        scheduled_at: TIME,
        started_at: TIME,
        due: TIME,
        queue: QueueName::normal("normal"),
    })
}

fn activity_task() -> ActivityTask {
    let response = PollActivityTaskQueueResponse { activity_id: "a".into(), ..d() };
    ActivityTask { scheduled: EventId(5), attempt: 2, stamp: 3, response: Box::new(response) }
}

pub(crate) fn replies() -> Vec<Reply> {
    vec![
        Reply::Done,
        Reply::Gone,
        Reply::Started {
            run_id: run(),
            first_run_id: "first".into(),
            started: true,
            status: Status::Running,
            eager: Some(started_task()),
        },
        Reply::WorkflowTask(started_task()),
        Reply::WorkflowTaskCompleted { next: None, eager_activities: vec![activity_task()] },
        Reply::Activity(Box::new(activity_task())),
        Reply::Heartbeat { cancel_requested: true },
        Reply::ActivityFailed { left_out: vec![failure(), Failure::default()] },
        Reply::ChildRecorded(true),
    ]
}

pub(crate) fn answers() -> Vec<Answer> {
    let started = StartWorkflowExecutionResponse { run_id: "run".into(), ..d() };
    let completed = RespondWorkflowTaskCompletedResponse { reset_history_event_id: 3, ..d() };
    let query = QueryWorkflowResponse { query_result: Some(payloads()), ..d() };
    let info = WorkflowExecutionInfo { history_length: 9, ..d() };
    let described =
        DescribeWorkflowExecutionResponse { workflow_execution_info: Some(info.clone()), ..d() };
    let history =
        HistoryPageReply { events: vec![event(), d(), event()], next_page_token: b"p".to_vec() };
    let view = TaskQueueView {
        pollers: vec![Poller { identity: "worker".into(), last_access: TIME }],
        backlog_count: 300,
        oldest: Some(TIME),
        beyond_window: vec![ShardId(3)],
    };
    let rows = vec![(b"a".to_vec(), info), (b"b".to_vec(), d())];
    let counts = CountReply { total: 5, groups: vec![("Running".into(), 5)] };
    let mut answers = vec![
        Answer::Done,
        Answer::Started(Box::new(started)),
        Answer::WorkflowTaskCompleted(Box::new(completed)),
        Answer::Query(Box::new(query)),
        Answer::Describe(Box::new(described)),
        Answer::History(history),
        Answer::List { rows, covered: vec![0..8_192, 8_192..SLOTS] },
        Answer::Count { counts, covered: vec![] },
        Answer::Queue(view),
    ];
    answers.extend(replies().into_iter().map(|reply| Answer::Reply(Box::new(reply))));
    answers
}

pub(crate) fn rejections() -> Vec<Rejection> {
    let text = || "why".to_owned();
    vec![
        Rejection::InvalidArgument(text()),
        Rejection::NotFound(text()),
        Rejection::WorkflowTaskNotFound,
        Rejection::ActivityNotFound(text()),
        Rejection::AlreadyCompleted,
        Rejection::AlreadyStarted {
            message: text(),
            start_request_id: "request".into(),
            run_id: run(),
            first_run_id: "first".into(),
        },
        Rejection::WorkflowNotReady(text()),
        Rejection::FailedPrecondition(text()),
        Rejection::QueryFailed { message: text(), failure: Some(Box::new(failure())) },
        Rejection::BusyWorkflow(text()),
        Rejection::CommandsRefused(text()),
    ]
}

pub(crate) fn errors() -> Vec<ShardError> {
    let text = || "why".to_owned();
    let mut errors = vec![
        ShardError::NamespaceNotFound { name: "orders".into() },
        ShardError::NotLeader { shard: ShardId(3), leader: None },
        ShardError::NotLeader { shard: ShardId(3), leader: Some(NodeId(2)) },
        ShardError::Unavailable(text()),
        ShardError::OutcomeUnknown(text()),
        ShardError::Overloaded(text()),
        ShardError::DeadlineExceeded(text()),
        ShardError::BadToken(text()),
        ShardError::Internal(text()),
    ];
    errors.extend(rejections().into_iter().map(ShardError::Rejected));
    errors
}

pub(crate) fn meta_errors() -> Vec<MetaError> {
    let name = || "orders".to_owned();
    vec![
        MetaError::NamespaceExists { name: name() },
        MetaError::NamespaceNotFound { name: name() },
        MetaError::AttributeExists { name: name() },
        MetaError::AttributeNotFound { name: name() },
        MetaError::Invalid("why".into()),
        MetaError::NotLed { leader: Some(NodeId(2)) },
        MetaError::Unavailable("why".into()),
    ]
}

pub(crate) fn receipts() -> Vec<Receipt> {
    vec![Receipt::Taken, Receipt::Gone, Receipt::Unknown, Receipt::Unreachable]
}

pub(crate) fn peer_answers() -> Vec<PeerAnswer> {
    let mut all = vec![PeerAnswer::NotUnderstood("why".into())];
    all.extend(answers().into_iter().map(|answer| PeerAnswer::Call(Ok(answer))));
    all.extend(errors().into_iter().map(|error| PeerAnswer::Call(Err(error))));
    all.extend(receipts().into_iter().map(PeerAnswer::Deliver));
    all.push(PeerAnswer::Node(Ok(NodeAnswer::Version(300))));
    all.push(PeerAnswer::Node(Ok(NodeAnswer::Done)));
    all.push(PeerAnswer::Node(Ok(NodeAnswer::Replica(Box::new(replica_status())))));
    all.push(PeerAnswer::Node(Ok(NodeAnswer::Status(Box::new(node_status())))));
    all.extend(meta_errors().into_iter().map(|error| PeerAnswer::Node(Err(error))));
    all
}
