//! The RPCs of both services, from the API's descriptor: their paths, whether they are built, and
//! whether they wait. What is built is what `frontend/mod.rs` lists.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;
use prost_types::FileDescriptorSet;

/// The RPCs that may be held until something happens; they have permits of their own, so that
/// waiting workers never keep a signal out.
const HELD: &[&str] = &[
    "PollWorkflowTaskQueue",
    "PollActivityTaskQueue",
    "PollNexusTaskQueue",
    "GetWorkflowExecutionHistory",
    "QueryWorkflow",
];

/// What is known of an RPC before it is decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rpc {
    /// Its name in metrics.
    pub(crate) label: &'static str,
    pub(crate) is_held: bool,
    /// Set to its name when this server does not have it.
    pub(crate) not_built: Option<String>,
}

/// An RPC of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Method {
    /// `WorkflowService` or `OperatorService`.
    pub(crate) service: &'static str,
    pub(crate) name: &'static str,
    pub(crate) is_built: bool,
}

impl Method {
    fn rpc(&self) -> Rpc {
        Rpc {
            label: self.name,
            is_held: HELD.contains(&self.name),
            not_built: (!self.is_built).then(|| self.name.to_owned()),
        }
    }
}

/// All RPCs of both services by their path, `/package.Service/Method`.
static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(read_descriptor);

/// What is known of the RPC at a path. One of another service (health, reflection) is built.
pub(crate) fn find(path: &str) -> Rpc {
    if let Some(method) = METHODS.get(path) {
        return method.rpc();
    }
    let unknown_method = path.strip_prefix("/temporal.api.").and_then(|p| p.split_once('/'));
    Rpc {
        label: "other",
        is_held: false,
        not_built: unknown_method.map(|(_, method)| method.to_owned()),
    }
}

/// All RPCs of both services, as the descriptor orders them.
#[cfg(test)]
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static Method)> {
    METHODS.iter().map(|(path, method)| (path.as_str(), method))
}

fn read_descriptor() -> HashMap<String, Method> {
    let set = FileDescriptorSet::decode(piton_proto::FILE_DESCRIPTOR_SET)
        .expect("the build wrote the descriptor that is compiled in");
    let mut methods = HashMap::new();
    for file in &set.file {
        for service in &file.service {
            let (name, built) = match service.name() {
                "WorkflowService" => ("WorkflowService", super::WORKFLOW_RPCS),
                "OperatorService" => ("OperatorService", super::OPERATOR_RPCS),
                _ => continue,
            };
            for method in &service.method {
                let path = format!("/{}.{name}/{}", file.package(), method.name());
                // The set of names is fixed, so leaking them once costs nothing.
                let method: &'static str = Box::leak(method.name().to_owned().into_boxed_str());
                let is_built = built.contains(&method);
                methods.insert(path, Method { service: name, name: method, is_built });
            }
        }
    }
    methods
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_holds_all_rpcs_and_every_built_one_is_among_them() {
        let count = |service| METHODS.values().filter(|m| m.service == service).count();
        assert_eq!((count("WorkflowService"), count("OperatorService")), (123, 12));
        let built = METHODS.values().filter(|m| m.is_built).count();
        assert_eq!(built, super::super::WORKFLOW_RPCS.len() + super::super::OPERATOR_RPCS.len());
    }

    #[test]
    fn held_rpcs_exist_and_are_built() {
        for name in HELD {
            assert!(METHODS.values().any(|m| m.name == *name && m.is_built), "{name}");
        }
    }

    #[test]
    fn an_unknown_method_of_the_api_is_not_built_and_other_services_pass() {
        let unknown = find("/temporal.api.workflowservice.v1.WorkflowService/Fly");
        assert_eq!((unknown.label, unknown.not_built.as_deref()), ("other", Some("Fly")));
        assert_eq!(find("/grpc.health.v1.Health/Check").not_built, None);
    }
}
