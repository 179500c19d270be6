//! What workers say of their builds, as the last completed workflow task left it, and the search
//! attributes that the server makes of it. All of it is folded from the Completed events.

use std::sync::Arc;

use piton_proto::common::Payload;
use piton_proto::history::WorkflowTaskCompletedEventAttributes;

use super::RunState;
use crate::id::EventId;
use crate::search_attribute::{self, BINARY_CHECKSUMS, BUILD_IDS, DEPLOYMENT, USED_DEPLOYMENTS};

/// A list is no longer than this as JSON; the oldest values go.
const LIST_BYTES_MAX: usize = 2 << 10;
/// So many checksums are kept; the oldest go.
const CHECKSUMS_MAX: usize = 20;
/// Among the build ids: the run's workers are not versioned. It stays the first.
const UNVERSIONED: &str = "unversioned";

impl RunState {
    #[allow(deprecated, reason = "workers say what build they are of, and the events have it")]
    pub(super) fn fold_workflow_task_completed(
        &mut self,
        event: &WorkflowTaskCompletedEventAttributes,
    ) {
        self.previous_started = EventId(event.started_event_id);
        if self.worker_version.as_deref() != event.worker_version.as_ref() {
            self.worker_version = event.worker_version.clone().map(Arc::new);
        }
        if *self.worker_deployment != event.worker_deployment_name {
            self.worker_deployment = event.worker_deployment_name.as_str().into();
            let name = event.worker_deployment_name.as_str();
            let value = (!name.is_empty()).then(|| search_attribute::keyword(name));
            self.set_attribute(DEPLOYMENT, value);
        }
        self.add_build_id(event);
        if let Some(version) = &event.deployment_version {
            let version = format!("{}:{}", version.deployment_name, version.build_id);
            self.change_list(USED_DEPLOYMENTS, |list| push_new(list, version));
        }
        if !event.binary_checksum.is_empty() {
            self.change_list(BINARY_CHECKSUMS, |list| {
                push_new(list, event.binary_checksum.clone());
                list.drain(..list.len().saturating_sub(CHECKSUMS_MAX));
            });
        }
    }

    #[allow(deprecated, reason = "workers say what build they are of, and the events have it")]
    fn add_build_id(&mut self, event: &WorkflowTaskCompletedEventAttributes) {
        let build_id = event.worker_version.as_ref().map_or("", |version| &version.build_id);
        self.change_list(BUILD_IDS, |list| {
            list.retain(|value| value != UNVERSIONED);
            list.insert(0, UNVERSIONED.to_owned());
            if !build_id.is_empty() {
                push_new(list, format!("{UNVERSIONED}:{build_id}"));
            }
        });
    }

    /// Changes an attribute that is a list of keywords.
    fn change_list(&mut self, name: &str, change: impl FnOnce(&mut Vec<String>)) {
        let before =
            self.search_attributes.get(name).map(search_attribute::keywords).unwrap_or_default();
        let mut list = before.clone();
        change(&mut list);
        if list == before {
            return;
        }
        let sentinel = usize::from(list.first().is_some_and(|value| value == UNVERSIONED));
        let mut payload = search_attribute::keyword_list(&list);
        while payload.data.len() > LIST_BYTES_MAX && !list.is_empty() {
            list.remove(sentinel.min(list.len() - 1));
            payload = search_attribute::keyword_list(&list);
        }
        self.set_attribute(name, Some(payload));
    }

    fn set_attribute(&mut self, name: &str, value: Option<Payload>) {
        let attributes = Arc::make_mut(&mut self.search_attributes);
        match value {
            Some(value) => attributes.insert(name.to_owned(), value),
            None => attributes.remove(name),
        };
    }
}

fn push_new(list: &mut Vec<String>, value: String) {
    if !list.contains(&value) {
        list.push(value);
    }
}
