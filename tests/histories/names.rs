//! Ids that a server draws get names by first appearance, the same name wherever they stand again.

use std::collections::BTreeMap;

const UUID_LENGTH: usize = 36;

#[derive(Default)]
pub(crate) struct Names {
    by_id: BTreeMap<String, String>,
    counts: BTreeMap<String, u32>,
    /// What differs for other reasons, with what stands for it.
    fixed: Vec<(String, String)>,
    /// The script's requests: an id that stands there was not drawn by a server.
    given: String,
}

impl Names {
    pub(crate) fn fix(&mut self, text: &str, name: &str) {
        self.fixed.push((text.to_owned(), name.to_owned()));
    }

    pub(crate) fn give(&mut self, text: &str) {
        self.given.push_str(text);
    }

    /// Puts names in the place of all ids within `text`; a new one is named for `field`, so that one
    /// id too many renames only its own kind.
    pub(crate) fn replace(&mut self, field: &str, text: &str) -> String {
        let mut text = text.to_owned();
        for (fixed, name) in &self.fixed {
            text = text.replace(fixed, name);
        }
        if field.ends_with("request_id") && !text.is_empty() && !self.given.contains(&text) {
            // Opaque, and not always a UUID.
            return self.name(field, &text);
        }
        let mut from = 0;
        while let Some(at) = find_uuid(&text, from) {
            let name = self.name(field, &text[at..at + UUID_LENGTH]);
            text.replace_range(at..at + UUID_LENGTH, &name);
            from = at + name.len();
        }
        text
    }

    /// Puts ids in the place of `$name`, for requests.
    pub(crate) fn resolve(&self, text: &str) -> String {
        // Longer names first: `$run-1` begins `$run-12`.
        let mut known: Vec<_> = self.by_id.iter().map(|(id, name)| (name, id)).collect();
        known.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        let resolved = known
            .into_iter()
            .fold(text.to_owned(), |text, (name, id)| text.replace(&format!("${name}"), id));
        self.fixed
            .iter()
            .fold(resolved, |text, (fixed, name)| text.replace(&format!("${name}"), fixed))
    }

    fn name(&mut self, field: &str, id: &str) -> String {
        if let Some(name) = self.by_id.get(id) {
            return name.clone();
        }
        let kind = match field {
            _ if field.ends_with("run_id") => "run",
            _ if field.ends_with("request_id") => "request",
            _ => "id",
        };
        let count = self.counts.entry(kind.to_owned()).or_default();
        *count += 1;
        let name = format!("{kind}-{count}");
        self.by_id.insert(id.to_owned(), name.clone());
        name
    }
}

fn find_uuid(text: &str, from: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    (from..(bytes.len() + 1).saturating_sub(UUID_LENGTH))
        .find(|&at| is_uuid(&bytes[at..at + UUID_LENGTH]))
}

fn is_uuid(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(index, byte)| match index {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_keeps_its_name_and_comes_back() {
        let mut names = Names::default();
        let (a, b) =
            ("0190a1b2-0000-7000-8000-000000000001", "0190a1b2-0000-7000-8000-000000000002");
        assert_eq!(names.replace("run_id", a), "run-1");
        assert_eq!(names.replace("message", &format!("no {b}, but {a}.")), "no id-1, but run-1.");
        assert_eq!(names.resolve("x: \"$run-1\""), format!("x: \"{a}\""));
        names.give("request_id: \"mine\"");
        assert_eq!(names.replace("request_id", "mine"), "mine");
        assert_eq!(names.replace("request_id", "17-4"), "request-1");
        names.fix("ns-7", "namespace");
        assert_eq!(names.replace("message", "ns-7 is gone"), "namespace is gone");
    }
}
