//! How refusals are looked at: gRPC code, type of the first detail, text.

use prost::Message;
use prost_types::Any;
use tonic::{Code, Response, Status};

/// What `grpc-status-details-bin` carries: `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// The first detail: the only one that clients read.
fn first_detail(status: &Status) -> Option<Any> {
    let encoded = RpcStatus::decode(status.details()).unwrap();
    if !status.details().is_empty() {
        assert_eq!(
            (encoded.code, encoded.message.as_str()),
            (status.code().into(), status.message())
        );
    }
    encoded.details.into_iter().next()
}

/// Checks a refusal. `detail` is the message's name in `temporal.api.errordetails.v1`, or empty
/// for none; `text` is what the message must contain.
#[track_caller]
pub(crate) fn check_refused<T: std::fmt::Debug>(
    what: &str,
    answer: Result<Response<T>, Status>,
    code: Code,
    detail: &str,
    text: &str,
) -> Status {
    let status = answer.err().unwrap_or_else(|| panic!("{what}: it was not refused"));
    assert_eq!(status.code(), code, "{what}: {status:?}");
    assert!(status.message().contains(text), "{what}: {:?} lacks {text:?}", status.message());
    let name = first_detail(&status).map(|any| any.type_url).unwrap_or_default();
    let name = name.strip_prefix("type.googleapis.com/temporal.api.errordetails.v1.");
    assert_eq!(name.unwrap_or_default(), detail, "{what}: {status:?}");
    status
}

/// The first detail of a refusal, decoded.
#[track_caller]
pub(crate) fn detail_of<T: Message + Default>(status: &Status) -> T {
    let any = first_detail(status).unwrap();
    T::decode(any.value.as_slice()).unwrap()
}
