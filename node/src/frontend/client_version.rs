//! Whether a client and this server fit: the headers `client-name`, `client-version` and
//! `supported-server-versions` that SDKs send. Unknown clients pass.

use tonic::codegen::http::HeaderMap;
use tonic::metadata::MetadataMap;

use super::error::ApiError;

/// The version of the official server whose behaviour this one has; SDKs and the command line
/// compare it. Not this project's own version.
pub(crate) const SERVER_VERSION: &str = "1.31.0";

/// The clients that are known, with the versions of each that fit.
pub(crate) const SUPPORTED_CLIENTS: &[(&str, &str)] = &[
    ("temporal-go", "<2.0.0"),
    ("temporal-java", "<2.0.0"),
    ("temporal-php", "<3.0.0"),
    ("temporal-typescript", "<2.0.0"),
    ("temporal-python", "<2.0.0"),
    ("temporal-dotnet", "<2.0.0"),
    ("temporal-ruby", "<2.0.0"),
    ("temporal-server", "<2.0.0"),
    ("temporal-cli", "<2.0.0"),
    ("temporal-ui", "<3.0.0"),
];

type Version = (u64, u64, u64);

/// # Errors
/// When client and server do not fit, or a header cannot be read.
pub(crate) fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    check_client(text("client-name"), text("client-version"))?;
    check_server(text("supported-server-versions"))
}

/// Whether the client is the official command line or web UI, by the name that it gives.
pub(super) fn is_cli_or_ui(metadata: &MetadataMap) -> bool {
    let name = metadata.get("client-name").and_then(|name| name.to_str().ok());
    matches!(name, Some("temporal-cli" | "temporal-ui"))
}

fn check_client(name: &str, version: &str) -> Result<(), ApiError> {
    let Some((_, supported)) = SUPPORTED_CLIENTS.iter().find(|(known, _)| *known == name) else {
        return Ok(());
    };
    if version.is_empty() {
        return Ok(());
    }
    let parsed = parse(version)
        .ok_or_else(|| ApiError::invalid(format!("Unable to parse client version: {version}")))?;
    if in_range(parsed, supported) == Some(true) {
        return Ok(());
    }
    Err(ApiError::ClientVersion { name: name.to_owned(), version: version.to_owned(), supported })
}

fn check_server(supported: &str) -> Result<(), ApiError> {
    if supported.is_empty() {
        return Ok(());
    }
    let ours = parse(SERVER_VERSION).expect("our own version is a version");
    match in_range(ours, supported) {
        Some(true) => Ok(()),
        Some(false) => {
            Err(ApiError::ServerVersion { server: SERVER_VERSION, supported: supported.to_owned() })
        }
        None => Err(ApiError::invalid(format!(
            "Unable to parse supported server versions: {supported}"
        ))),
    }
}

/// A semantic version without its pre-release and build parts.
fn parse(text: &str) -> Option<Version> {
    let numbers = text.trim().trim_start_matches('v').split(['-', '+']).next()?;
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    let version =
        (parts.next()??, parts.next().unwrap_or(Some(0))?, parts.next().unwrap_or(Some(0))?);
    parts.next().is_none().then_some(version)
}

/// Whether a version is in a range such as `>=1.0.0 <2.0.0 || 3.1.0`. `None`: not a range.
fn in_range(version: Version, range: &str) -> Option<bool> {
    let mut any = false;
    for alternative in range.split("||") {
        let mut all = true;
        let mut terms = alternative.split_whitespace().peekable();
        terms.peek()?;
        for term in terms {
            all &= fits(version, term)?;
        }
        any |= all;
    }
    Some(any)
}

fn fits(version: Version, term: &str) -> Option<bool> {
    let at = term.find(|c: char| c.is_ascii_digit())?;
    let bound = parse(&term[at..])?;
    match &term[..at] {
        ">=" => Some(version >= bound),
        ">" => Some(version > bound),
        "<=" => Some(version <= bound),
        "<" => Some(version < bound),
        "" | "=" | "==" => Some(version == bound),
        "!=" | "!" => Some(version != bound),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_and_servers_fit_by_version() {
        let check = |name: &'static str, version: &'static str, servers: &'static str| {
            let mut headers = HeaderMap::new();
            for (header, value) in [
                ("client-name", name),
                ("client-version", version),
                ("supported-server-versions", servers),
            ] {
                if !value.is_empty() {
                    headers.insert(header, value.parse().unwrap());
                }
            }
            match super::check(&headers) {
                Ok(()) => "fits",
                Err(ApiError::ClientVersion { .. }) => "client",
                Err(ApiError::ServerVersion { .. }) => "server",
                Err(_) => "malformed",
            }
        };
        for (name, version, servers, verdict) in [
            ("", "", "", "fits"),
            ("temporal-typescript", "1.24.0", ">=1.0.0 <2.0.0", "fits"),
            ("temporal-python", "1.31.0-rc.1", "", "fits"),
            ("temporal-go", "2.0.0", "", "client"),
            ("temporal-go", "one", "", "malformed"),
            ("someone-else", "17", "", "fits"),
            ("temporal-java", "1.2.3", ">=2.0.0", "server"),
            ("temporal-java", "1.2.3", "<1.0.0 || >=1.31.0", "fits"),
            ("temporal-java", "1.2.3", "about 1", "malformed"),
            ("", "", ">=1.0.0 ||", "malformed"),
        ] {
            assert_eq!(check(name, version, servers), verdict, "{name} {version} {servers}");
        }
    }
}
