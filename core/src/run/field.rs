//! Checks of single fields of commands, with the words that name the field. What a command means
//! is checked in the file of its concern.

use piton_proto::enums::WorkflowTaskFailedCause;
use prost::Message;

use super::command::CommandFailure;
use crate::limits::Limits;
use crate::time::Span;

/// The fields of one command.
pub(super) struct Fields<'a> {
    cause: WorkflowTaskFailedCause,
    command: &'static str,
    limits: &'a Limits,
}

impl<'a> Fields<'a> {
    /// Fields of `command`, which fails with `cause` where one is wrong.
    pub(super) fn of(
        command: &'static str,
        cause: WorkflowTaskFailedCause,
        limits: &'a Limits,
    ) -> Self {
        Self { cause, command, limits }
    }

    pub(super) fn bad(&self, text: impl Into<String>) -> CommandFailure {
        CommandFailure::new(self.cause, text)
    }

    /// A text that has to be there, no longer than an id may be.
    pub(super) fn required(&self, field: &str, text: &str) -> Result<(), CommandFailure> {
        if text.is_empty() {
            return Err(self.missing(field));
        }
        self.short(field, text)
    }

    /// A text that may be empty, no longer than an id may be.
    pub(super) fn short(&self, field: &str, text: &str) -> Result<(), CommandFailure> {
        if text.len() as u64 > self.limits.id_bytes_max {
            return Err(self.bad(format!("{field} on {} exceeds length limit.", self.command)));
        }
        Ok(())
    }

    /// The refusal of a field that has to be there.
    pub(super) fn missing(&self, field: &str) -> CommandFailure {
        self.bad(format!("{field} is not set on {}.", self.command))
    }

    /// The name of a task queue, with the empty one standing for `default`.
    pub(super) fn task_queue(
        &self,
        given: Option<&piton_proto::taskqueue::TaskQueue>,
        default: &str,
    ) -> Result<String, CommandFailure> {
        let name = given.map_or("", |queue| queue.name.as_str());
        let name = if name.is_empty() { default } else { name };
        self.required("TaskQueue", name)?;
        if name.starts_with("/_sys/") {
            return Err(self.bad("task queue name cannot start with reserved prefix /_sys/"));
        }
        Ok(name.to_owned())
    }

    /// A timeout or interval: absent is 0, and it is never negative.
    pub(super) fn span(
        &self,
        field: &str,
        given: Option<&prost_types::Duration>,
    ) -> Result<Span, CommandFailure> {
        let negative = || self.bad(format!("{field} on {} is negative.", self.command));
        Span::asked(given).ok_or_else(negative)
    }

    /// A run id: empty or a UUID.
    pub(super) fn run_id(&self, text: &str) -> Result<(), CommandFailure> {
        if text.is_empty() || is_uuid(text) {
            return Ok(());
        }
        Err(self.bad(format!("Invalid RunId set on {}. RunId={text}", self.command)))
    }

    /// A payload blob. One that is too large would be so again, so it ends the run.
    pub(super) fn blob(
        &self,
        field: &str,
        message: Option<&impl Message>,
    ) -> Result<(), CommandFailure> {
        let bytes = message.map_or(0, |m| m.encoded_len() as u64);
        self.bytes(field, bytes, self.limits.blob_bytes_max)
    }

    /// As [`Fields::blob`], for a size that was measured.
    pub(super) fn bytes(&self, field: &str, bytes: u64, max: u64) -> Result<(), CommandFailure> {
        if bytes <= max {
            return Ok(());
        }
        let text = format!("{}.{field} exceeds size limit.", self.command);
        Err(CommandFailure { terminate: true, ..self.bad(text) })
    }
}

/// Whether a text is a UUID as it is usually written.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::is_uuid;

    #[test]
    fn run_ids_are_uuids() {
        assert!(is_uuid("0190c4f0-6a3e-7e35-9b1f-3f0f5a1c2d4e"));
        for text in ["", "run-1", "0190c4f0x6a3e-7e35-9b1f-3f0f5a1c2d4e"] {
            assert!(!is_uuid(text), "{text}");
        }
    }
}
