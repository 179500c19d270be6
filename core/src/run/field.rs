//! Checks of single fields of commands, with the words that name the field. What a command means
//! is checked in the file of its concern.

use piton_proto::common::RetryPolicy;
use piton_proto::enums::WorkflowTaskFailedCause;
use prost::Message;

use super::command::CommandFailure;
use crate::limits::Limits;
use crate::retry_policy::filled;
use crate::time::Span;

/// The fields of one command.
pub(super) struct Fields<'a> {
    cause: WorkflowTaskFailedCause,
    command: &'static str,
    limits: &'a Limits,
    /// What a refusal says of the command so that a reader finds it: names and values.
    beside: Vec<(&'static str, String)>,
}

impl<'a> Fields<'a> {
    /// Fields of `command`, which fails with `cause` where one is wrong.
    pub(super) fn of(
        command: &'static str,
        cause: WorkflowTaskFailedCause,
        limits: &'a Limits,
    ) -> Self {
        Self { cause, command, limits, beside: Vec::new() }
    }

    /// Adds a value that tells this command from others of its kind.
    pub(super) fn beside(mut self, name: &'static str, value: &str) -> Self {
        self.beside.push((name, value.to_owned()));
        self
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
            let (length, limit) = (text.len(), self.limits.id_bytes_max);
            let mut told = format!("{field} on {} exceeds length limit.", self.command);
            for (name, value) in &self.beside {
                told.push_str(&format!(" {name}={value}"));
                if *name == field {
                    told.push_str(&format!(" Length={length} Limit={limit}"));
                }
            }
            return Err(self.bad(told));
        }
        Ok(())
    }

    /// The refusal of a field that has to be there.
    pub(super) fn missing(&self, field: &str) -> CommandFailure {
        let others = self.told_beside(|name| name != field);
        self.bad(format!("{field} is not set on {}.{others}", self.command))
    }

    fn told_beside(&self, wanted: impl Fn(&str) -> bool) -> String {
        let told = self.beside.iter().filter(|(name, _)| wanted(name));
        told.map(|(name, value)| format!(" {name}={value}")).collect()
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
        Span::asked(given).map_err(|why| {
            let all = self.told_beside(|_| true);
            self.bad(format!("Invalid {field} on {}: {why}.{all}", self.command))
        })
    }

    /// A workflow's retry policy that cannot be.
    pub(super) fn retry_policy(
        &self,
        given: Option<RetryPolicy>,
    ) -> Result<Option<RetryPolicy>, CommandFailure> {
        given.map(|policy| filled(Some(policy))).transpose().map_err(|why| {
            let all = self.told_beside(|_| true);
            self.bad(format!("invalid WorkflowRetryPolicy on {}: {why}.{all}", self.command))
        })
    }

    /// A run id: empty or a UUID.
    pub(super) fn run_id(&self, text: &str) -> Result<(), CommandFailure> {
        if text.is_empty() || is_uuid(text) {
            return Ok(());
        }
        let all = self.told_beside(|_| true);
        Err(self.bad(format!("Invalid RunId set on {}.{all}", self.command)))
    }

    /// A payload blob; `field` is what the official server puts behind the command's name. One that
    /// is too large would be so again, so it ends the run.
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
        let text = format!("{}Attributes{field} exceeds size limit.", self.command);
        Err(CommandFailure { terminate: true, ..self.bad(text) })
    }
}

/// The words for a command that what the run has pending does not allow.
pub(super) fn refused_by_state(action: &str, name: &str, id: impl std::fmt::Display) -> String {
    format!("invalid history builder state for action: {action}, {name}: {id}")
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
