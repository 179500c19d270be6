//! What becomes of an answer that is larger than a blob may be: the worker cannot do better, so
//! the activity fails for good and says why.

use piton_core::limits::Limits;
use piton_proto::failure::failure::FailureInfo;
use piton_proto::failure::{Failure, ServerFailureInfo};
use prost::Message;

pub(super) const RESULT: &str = "Complete result exceeds size limit.";
pub(super) const FAILURE: &str = "Failure exceeds size limit.";
pub(super) const CANCEL_DETAILS: &str = "Cancel details exceed size limit.";
pub(super) const HEARTBEAT: &str = "Heartbeat details exceed size limit.";

/// What is kept of a text of a failure that is too large.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// A failure that is not retried.
pub(super) fn failure(text: &str) -> Failure {
    Failure {
        message: text.to_owned(),
        source: "Server".to_owned(),
        failure_info: Some(FailureInfo::ServerFailureInfo(ServerFailureInfo {
            non_retryable: true,
        })),
        ..Failure::default()
    }
}

pub(super) enum Cut {
    Whole(Failure),
    /// It was too large; this stands for it and has the beginning of its texts as its cause.
    Replaced(Failure),
}

pub(super) fn cut(given: Failure, limits: &Limits) -> Cut {
    if given.encoded_len() as u64 <= limits.blob_bytes_max {
        return Cut::Whole(given);
    }
    let cause = Failure {
        message: beginning(given.message),
        source: beginning(given.source),
        stack_trace: beginning(given.stack_trace),
        ..Failure::default()
    };
    Cut::Replaced(Failure { cause: Some(Box::new(cause)), ..failure(FAILURE) })
}

fn beginning(mut text: String) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or(0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_is_too_large_is_replaced_and_keeps_the_beginning_of_its_texts() {
        let limits = Limits { blob_bytes_max: 10_000, ..Limits::default() };
        let small = Failure { message: "no".into(), ..Failure::default() };
        assert!(matches!(cut(small.clone(), &limits), Cut::Whole(kept) if kept == small));

        let large = Failure { message: "ä".repeat(20_000), ..Failure::default() };
        let Cut::Replaced(kept) = cut(large, &limits) else { panic!("not replaced") };
        assert!(kept.encoded_len() < 10_000);
        assert_eq!(kept.message, FAILURE);
        assert_eq!(kept.cause.unwrap().message, "ä".repeat(2_048));
    }
}
