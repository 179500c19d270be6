//! Every limit the API promises, in one place. The meta group holds a
//! cluster's values; `--limit key=value` sets them at the start.

use prost::Message;
use serde::{Deserialize, Serialize};

use crate::time::Span;

macro_rules! limits {
    ($($(#[doc = $doc:literal])+ $name:ident = $default:expr;)+) => {
        /// Limits and intervals that a cluster runs with. Sizes in bytes, spans in milliseconds.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Limits {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $($name: $default,)+ }
            }
        }

        impl Limits {
            /// `(name, default, what it limits)` of each, for `--help`.
            pub const ALL: &'static [(&'static str, u64, &'static str)] =
                &[$((stringify!($name), $default, concat!($($doc,)+)),)+];

            /// Sets the limit called `name`; false when there is none of that name.
            pub fn set(&mut self, name: &str, value: u64) -> bool {
                match name {
                    $(stringify!($name) => self.$name = value,)+
                    _ => return false,
                }
                true
            }
        }
    };
}

limits! {
    /// One payload blob: input, result, details, failure, marker, signal.
    blob_bytes_max = 2 << 20;
    /// All memo fields of a workflow together.
    memo_bytes_max = 2 << 20;
    /// History size at which the server terminates a run.
    history_bytes_max = 50 << 20;
    /// History length at which the server terminates a run.
    history_events_max = 51_200;
    /// History size at which workers are told to continue as new.
    history_bytes_suggest = 4 << 20;
    /// History length at which workers are told to continue as new.
    history_events_suggest = 4_096;
    /// Length of any id, name or type.
    id_bytes_max = 1_000;
    /// Pending activities of a run.
    pending_activities_max = 2_000;
    /// Pending children of a run.
    pending_children_max = 2_000;
    /// Pending signals from a run to other workflows.
    pending_external_signals_max = 2_000;
    /// Pending cancel requests from a run to other workflows.
    pending_external_cancels_max = 2_000;
    /// Events that wait for a started workflow task to end.
    buffered_events_max = 100;
    /// Bytes of events that wait for a started workflow task to end.
    buffered_bytes_max = 2 << 20;
    /// Signals one run takes in its life.
    signals_max = 10_000;
    /// Queries that wait for one workflow's task.
    buffered_queries_max = 16;
    /// Search attributes of a workflow.
    search_attributes_max = 100;
    /// One search attribute's value.
    search_attribute_bytes_max = 2 << 10;
    /// All search attributes of a workflow.
    search_attributes_bytes_max = 40 << 10;
    /// Summary of user metadata.
    user_metadata_summary_bytes_max = 400;
    /// Details of user metadata.
    user_metadata_details_bytes_max = 20_000;
    /// A failure kept of an activity's attempt that is retried.
    retry_failure_bytes_max = 4 << 10;
    /// Events in a page of history.
    history_page_events_max = 256;
    /// Bytes in a page of history; below the 4 MiB that clients accept in a message.
    history_page_bytes_max = 3 << 20;
    /// Rows in a page of a list.
    list_page_max = 1_000;
    /// Default workflow task timeout.
    workflow_task_timeout_ms = 10_000;
    /// Longest workflow task timeout.
    workflow_task_timeout_ms_max = 120_000;
    /// How long a workflow task may go on by heartbeats.
    workflow_task_heartbeat_ms_max = 1_800_000;
    /// Shortest time between the start of a run and that of the run it continues as.
    continue_as_new_interval_ms_min = 1_000;
    /// How long a task poll is held.
    poll_ms_max = 60_000;
    /// How long a history long poll is held.
    history_poll_ms_max = 20_000;
    /// Closed runs' default retention where a namespace gives none.
    retention_ms_default = 86_400_000;
    /// How long request ids are kept.
    request_id_ms_min = 3_600_000;
}

/// What a blob that is too large is refused with.
pub const BLOB_OVERSIZED: &str = "Blob data size exceeds limit.";

impl Limits {
    /// Whether a message, if there is one, is no larger than a blob may be.
    pub fn is_blob(&self, message: Option<&impl Message>) -> bool {
        message.is_none_or(|message| message.encoded_len() as u64 <= self.blob_bytes_max)
    }

    /// A workflow task timeout with its default, within its limit.
    #[must_use]
    pub fn task_timeout(&self, given: Span) -> Span {
        let default = Span::of_limit_ms(self.workflow_task_timeout_ms);
        given.given().unwrap_or(default).min(Span::of_limit_ms(self.workflow_task_timeout_ms_max))
    }
}
