//! What becomes of what a worker sends that is larger than a blob may be. The worker cannot do better, so
//! it is not refused: a failure that says so, and is not retried, takes its place. A command that is too
//! large ends its run: see `field`.

use piton_proto::failure::failure::FailureInfo;
use piton_proto::failure::{ApplicationFailureInfo, Failure, ServerFailureInfo};

use crate::limits::Limits;

pub(super) const RESULT: &str = "Complete result exceeds size limit.";
pub(super) const CANCEL_DETAILS: &str = "Cancel details exceed size limit.";
pub(super) const HEARTBEAT: &str = "Heartbeat details exceed size limit.";
const FAILURE: &str = "Failure exceeds size limit.";

/// What is kept of a failure, as a part of what it may be.
const KEPT_PART: u64 = 4;
/// Causes of causes are kept this deep.
const CAUSES_MAX: usize = 20;
/// What a field takes beside its text.
const FIELD_BYTES: usize = 4;

/// The failure that takes the place of something too large.
pub(super) fn failure(text: &str) -> Failure {
    let info = ServerFailureInfo { non_retryable: true };
    Failure {
        message: text.to_owned(),
        failure_info: Some(FailureInfo::ServerFailureInfo(info)),
        ..Failure::default()
    }
}

/// The failure that takes the place of one that is too large, with its beginning as the cause.
pub(super) fn of_failure(given: &Failure, limits: &Limits) -> Option<Failure> {
    if limits.is_blob(Some(given)) {
        return None;
    }
    let kept = usize::try_from(limits.blob_bytes_max / KEPT_PART).unwrap_or(usize::MAX);
    Some(Failure { cause: Some(Box::new(truncated(given, kept))), ..failure(FAILURE) })
}

/// The texts of a failure and its causes in about `bytes_max` bytes, the first ones first, and what
/// decides about retries.
pub(super) fn truncated(failure: &Failure, bytes_max: usize) -> Failure {
    Room(bytes_max).failure(failure, CAUSES_MAX)
}

/// The bytes that are left.
struct Room(usize);

impl Room {
    fn failure(&mut self, failure: &Failure, causes: usize) -> Failure {
        let failure_info = match &failure.failure_info {
            Some(FailureInfo::ApplicationFailureInfo(info)) => {
                let (r#type, non_retryable) = (self.text(&info.r#type), info.non_retryable);
                let info = ApplicationFailureInfo { r#type, non_retryable, ..Default::default() };
                Some(FailureInfo::ApplicationFailureInfo(info))
            }
            Some(FailureInfo::ServerFailureInfo(info)) => {
                Some(FailureInfo::ServerFailureInfo(*info))
            }
            _ => None,
        };
        self.take(2 * FIELD_BYTES);
        let source = self.text(&failure.source);
        let message = self.text(&failure.message);
        let stack_trace = self.text(&failure.stack_trace);
        let cause = failure.cause.as_ref().filter(|_| self.0 > FIELD_BYTES && causes > 0);
        let cause = cause.map(|cause| Box::new(self.failure(cause, causes - 1)));
        Failure { message, source, stack_trace, cause, failure_info, encoded_attributes: None }
    }

    /// The longest beginning of a text that has room and ends between two characters.
    fn text(&mut self, text: &str) -> String {
        let mut ends = (0..=self.0.min(text.len())).rev();
        let end = ends.find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        let kept = &text[..end];
        if !kept.is_empty() {
            self.take(kept.len() + FIELD_BYTES);
        }
        kept.to_owned()
    }

    fn take(&mut self, bytes: usize) {
        self.0 = self.0.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn a_failure_that_is_too_large_is_replaced_and_keeps_the_beginning_of_its_texts() {
        let limits = Limits { blob_bytes_max: 10_000, ..Limits::default() };
        let small = Failure { message: "no".into(), ..Failure::default() };
        assert_eq!(of_failure(&small, &limits), None);

        let info = ApplicationFailureInfo { r#type: "T".into(), ..Default::default() };
        let large = Failure {
            message: "ä".repeat(20_000),
            stack_trace: "s".into(),
            failure_info: Some(FailureInfo::ApplicationFailureInfo(info.clone())),
            ..Failure::default()
        };
        let kept = of_failure(&large, &limits).expect("it is too large");
        assert!(kept.encoded_len() < 3_000);
        assert_eq!(kept.message, "Failure exceeds size limit.");
        let cause = kept.cause.expect("it says what the failure was");
        assert_eq!(cause.failure_info, Some(FailureInfo::ApplicationFailureInfo(info)));
        assert!(cause.message.len() > 2_400 && cause.message.chars().all(|c| c == 'ä'));
    }

    #[test]
    fn causes_are_kept_as_far_as_there_is_room() {
        let mut failure = Failure::default();
        for depth in 0..100 {
            let cause = Some(Box::new(failure));
            failure = Failure { message: format!("{depth}"), cause, ..Failure::default() };
        }
        let depth = |failure: &Failure| {
            std::iter::successors(failure.cause.as_deref(), |f| f.cause.as_deref()).count()
        };
        assert_eq!(depth(&truncated(&failure, 1 << 20)), CAUSES_MAX);
        assert!(depth(&truncated(&failure, 50)) < 5);
    }
}
