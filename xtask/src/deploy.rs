//! `cargo xtask deploy-check`: what is in `deploy/` against the tools that it is for, as far as they are on
//! the path. No part of `test`, which needs nothing but toolchains.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Workspace;
use crate::process;
use crate::report::{Log, Report, Tally};

const LIMIT: Duration = Duration::from_secs(120);

/// Each turns other parts of the chart on.
const VALUES: &[&str] = &[
    "bootstrap=true,tls.existingSecret=x",
    "tls.certManager.enabled=true,serviceMonitor.enabled=true,networkPolicy.enabled=true",
    "tls.certManager.enabled=true,tls.certManager.issuerRef.name=x,replicaCount=5",
    "tls.existingSecret=x,podAntiAffinity=none,zoneSpread.topologyKey=,zoneLabel=,preStopSleepSeconds=0",
    "tls.existingSecret=x,podAntiAffinity=preferred,config.data.table_bytes=134217728",
];
/// And what it must not take.
const REFUSED: &[&str] = &[
    "replicaCount=3",
    "tls.existingSecret=x,tls.certManager.enabled=true",
    "tls.existingSecret=x,replicaCount=three",
    "tls.existingSecret=x,replicas=3",
];

pub(crate) fn run(workspace: &Workspace, report: &mut Report) {
    let checks: [(&str, &str, Check); 6] = [
        ("openssl", "certificates", certificates),
        ("promtool", "alert rules", |tools, log| {
            tools
                .run(log, "promtool", &["test", "rules", "prometheus/alerts_test.yaml"])
                .map(Tally::one)
        }),
        ("helm", "chart", chart),
        ("hadolint", "image", |tools, log| {
            tools.run(log, "hadolint", &["Dockerfile"]).map(Tally::one)
        }),
        ("docker-compose", "compose file", |tools, log| {
            let arguments = ["-f", "compose.yaml", "config", "-q"];
            tools.run(log, "docker-compose", &arguments).map(Tally::one)
        }),
        ("systemd-analyze", "unit", |tools, log| {
            let arguments =
                ["security", "--offline=true", "--threshold=20", "systemd/piton.service"];
            tools.run(log, "systemd-analyze", &arguments).map(Tally::one)
        }),
    ];
    let tools = Tools { deploy: workspace.root.join("deploy"), target: workspace.target.clone() };
    for (tool, name, check) in checks {
        if process::is_on_path(tool) {
            report.step(name, |log| check(&tools, log));
        } else {
            println!("== {name}\n   left out: {tool} is not on the path");
        }
    }
}

type Check = fn(&Tools, &mut Log) -> Result<Tally>;

/// Runs tools in `deploy/`.
struct Tools {
    deploy: PathBuf,
    target: PathBuf,
}

impl Tools {
    fn run(&self, log: &mut Log, tool: &str, arguments: &[&str]) -> Result<bool> {
        let mut command = Command::new(tool);
        command.args(arguments).current_dir(&self.deploy);
        process::run(command, log, LIMIT, |_| {})
    }
}

/// Made once, and kept the second time; good for both sides of a connection.
fn certificates(tools: &Tools, log: &mut Log) -> Result<Tally> {
    let directory = tools.target.join("deploy-check-certs");
    if directory.exists() {
        fs::remove_dir_all(&directory).context("remove the certificates of the last check")?;
    }
    let out = directory.to_str().context("a target directory with a name in UTF-8")?;
    let make = ["certs.sh", "--out", out, "node1,127.0.0.1", "node2"];
    ensure!(tools.run(log, "bash", &make)?, "certificates are not made");
    let (ca, node) = (format!("{out}/ca.pem"), format!("{out}/node1.pem"));
    let made = fs::read(&node).context("read a certificate that was made")?;
    ensure!(tools.run(log, "bash", &make)?, "it may not be repeated");
    ensure!(fs::read(&node)? == made, "a good certificate is made anew");
    let mut tally = Tally::default();
    for purpose in ["sslserver", "sslclient"] {
        let verify = ["verify", "-x509_strict", "-verify_ip", "127.0.0.1", "-purpose", purpose];
        let is_good =
            tools.run(log, "openssl", &[&verify[..], &["-CAfile", &ca, &node]].concat())?;
        tally.passed += usize::from(is_good);
        tally.failed += usize::from(!is_good);
    }
    Ok(tally)
}

fn chart(tools: &Tools, log: &mut Log) -> Result<Tally> {
    let mut helm = |verb: &[&str], values: &str| {
        let given = ["helm/piton", "--kube-version", "1.33.0", "--set", values];
        tools.run(log, "helm", &[verb, &given].concat())
    };
    let mut tally = Tally::one(helm(&["lint", "--strict"], VALUES[0])?);
    let rendered = VALUES.iter().map(|values| (values, true));
    for (values, wanted) in rendered.chain(REFUSED.iter().map(|values| (values, false))) {
        let is_as_wanted = helm(&["template", "piton"], values)? == wanted;
        if !is_as_wanted {
            println!("   {} with {values}", if wanted { "not rendered" } else { "rendered" });
        }
        tally.passed += usize::from(is_as_wanted);
        tally.failed += usize::from(!is_as_wanted);
    }
    Ok(tally)
}
