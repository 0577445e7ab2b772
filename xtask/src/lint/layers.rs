//! The import rule of DESIGN.md 2: which module may see what, and where `unsafe` may be.

use std::path::Path as FilePath;

use anyhow::{Context, Result};

use super::source::{self, Token};
use crate::workspace;

/// Other crates that only some modules may see.
struct Crates {
    names: &'static [&'static str],
    within: &'static [&'static str],
    reason: &'static str,
}

const CRATES: &[Crates] = &[
    Crates {
        names: &["aya", "aya_log", "aya_obj"],
        within: &["datapath", "observe::logging"],
        reason: "the kernel is behind the datapath's trait",
    },
    Crates {
        names: &[
            "kube",
            "kube_core",
            "kube_client",
            "kube_runtime",
            "k8s_openapi",
        ],
        within: &["source"],
        reason: "cluster objects are cut to the model at the edge",
    },
    Crates {
        names: &["tonic", "prost", "prost_types"],
        within: &["source"],
        reason: "xDS is one more source",
    },
];

/// Modules that few may import.
struct Private {
    module: &'static str,
    by: &'static [&'static str],
    reason: &'static str,
}

const PRIVATE: &[Private] = &[
    Private {
        module: "app",
        by: &["main"],
        reason: "it wires the rest; nothing depends on the wiring",
    },
    Private {
        module: "cli",
        by: &["main", "app"],
        reason: "it is how people come in, not what the agent is made of",
    },
];

/// Modules that see few others. A path may be an item's; what is not this crate's is judged elsewhere.
struct Sees {
    module: &'static str,
    only: &'static [&'static str],
    except: &'static [&'static str],
    reason: &'static str,
}

const SEES: &[Sees] = &[
    Sees {
        module: "model",
        only: &[],
        except: &[],
        reason: "it is what all others speak of",
    },
    Sees {
        module: "oracle",
        only: &[
            "model",
            "local",
            "compile::Options",
            "compile::IpBlockMode",
            "compile::UnknownPod",
        ],
        except: &[],
        reason: "it judges the compiled maps, so it shares types of what is asked with compile, and no code",
    },
    Sees {
        module: "compile",
        only: &[
            "model",
            "desired",
            "local",
            "problem",
            "datapath::Bits",
            "datapath::Contents",
            "datapath::contents::rules_of",
            "mutant",
        ],
        except: &[],
        reason: "a pure function of the cluster's state",
    },
    Sees {
        module: "plan",
        only: &[
            "desired",
            "datapath",
            "problem",
            "model",
            "dump::prefix",
            "mutant",
        ],
        except: &["datapath::kernel"],
        reason: "it orders writes and makes none",
    },
];

/// Modules without I/O and clock, and what they may therefore not name.
const PURE: &[&str] = &["model", "desired", "compile", "oracle", "plan"];
const IMPURE: &[&str] = &[
    "tokio",
    "nix",
    "libc",
    "rtnetlink",
    "netlink_sys",
    "notify",
    "std::fs",
    "std::io",
    "std::env",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "std::os",
];

/// Files and directories that may hold `unsafe`. `tests/` may too, where a system call demands it.
const UNSAFE: &[&str] = &[
    "agent-ebpf/",
    "agent/src/datapath/",
    "agent-common/src/user.rs",
    "tests/",
];

/// Where the agent's modules lie.
const AGENT: &str = "agent/src/";

/// Checks every Rust file of the workspace; a line for each finding.
pub(super) fn check() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in workspace::files()? {
        if file.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let name = file.to_string_lossy();
        let text = std::fs::read_to_string(workspace::root().join(&file))
            .with_context(|| format!("cannot read {name}"))?;
        findings.extend(check_file(&name, &text));
    }
    Ok(findings)
}

/// The findings of one file.
fn check_file(name: &str, text: &str) -> Vec<String> {
    // A file of tests is declared under `#[cfg(test)]` and may see all.
    if name.ends_with("/tests.rs") || name.contains("/tests/") {
        return Vec::new();
    }
    let tokens = source::tokens(text);
    let mut findings = unsafe_blocks(name, &tokens);
    if let Some(relative) = name.strip_prefix(AGENT) {
        findings.extend(imports(name, &module_of(relative), &tokens));
    }
    findings
}

/// `datapath/kernel.rs` is `datapath::kernel`, `lib.rs` the root (no segment), `main.rs` the crate `main`.
fn module_of(relative: &str) -> Vec<String> {
    let path = FilePath::new(relative).with_extension("");
    let segments = path
        .iter()
        .map(|segment| segment.to_string_lossy().into_owned());
    segments.filter(|segment| segment != "lib").collect()
}

fn unsafe_blocks(name: &str, tokens: &[Token]) -> Vec<String> {
    if UNSAFE.iter().any(|allowed| name.starts_with(allowed)) {
        return Vec::new();
    }
    let blocks = tokens.iter().filter(|token| token.text == "unsafe");
    blocks
        .map(|token| {
            format!(
                "{name}:{}: `unsafe` is only for {}",
                token.line,
                UNSAFE.join(", ")
            )
        })
        .collect()
}

fn imports(name: &str, module: &[String], tokens: &[Token]) -> Vec<String> {
    let own = module.join("::");
    let mut findings = Vec::new();
    for path in source::paths(tokens, module) {
        let mut say = |reason: &str| {
            findings.push(format!(
                "{name}:{}: {own} may not see {}: {reason}",
                path.line,
                path.segments.join("::")
            ));
        };
        let Some(first) = path.segments.first() else {
            continue;
        };
        if first == "crate" || first == "sluice" {
            let seen = path.segments[1..].join("::");
            if let Some(reason) = judge_module(&own, &seen) {
                say(reason);
            }
            continue;
        }
        for rule in CRATES
            .iter()
            .filter(|rule| rule.names.contains(&first.as_str()))
        {
            if !inside_any(&own, rule.within) {
                say(rule.reason);
            }
        }
        if inside_any(&own, PURE) && inside_any(&path.segments.join("::"), IMPURE) {
            say("this module has no I/O and no clock");
        }
    }
    findings
}

/// Why the module `own` may not see `seen`, also of this crate; `None` where it may.
fn judge_module(own: &str, seen: &str) -> Option<&'static str> {
    let private = PRIVATE.iter().find(|rule| {
        inside(seen, rule.module) && !inside(own, rule.module) && !inside_any(own, rule.by)
    });
    let sees = SEES.iter().find(|rule| {
        let allowed = inside_any(seen, rule.only) && !inside_any(seen, rule.except);
        inside(own, rule.module) && !inside(seen, rule.module) && !allowed && !seen.is_empty()
    });
    private
        .map(|rule| rule.reason)
        .or(sees.map(|rule| rule.reason))
}

/// Whether `path` is `module` or lies below it.
fn inside(path: &str, module: &str) -> bool {
    path.strip_prefix(module)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn inside_any(path: &str, modules: &[&str]) -> bool {
    modules.iter().any(|module| inside(path, module))
}

#[cfg(test)]
mod tests {
    use super::check_file;

    /// Asserts that each line of `text` is a finding in that file, alone.
    fn forbidden(file: &str, lines: &[&str]) {
        for line in lines {
            assert_eq!(
                check_file(file, line).len(),
                1,
                "{file}: {line}: {:?}",
                check_file(file, line)
            );
        }
    }

    fn allowed(file: &str, lines: &[&str]) {
        for line in lines {
            assert_eq!(
                check_file(file, line),
                Vec::<String>::new(),
                "{file}: {line}"
            );
        }
    }

    #[test]
    fn the_kernel_is_behind_the_datapath() {
        forbidden(
            "agent/src/plan.rs",
            &[
                "use aya::Ebpf;",
                "fn f() { ::aya::x() }",
                "use crate::datapath::kernel::Kernel;",
            ],
        );
        allowed(
            "agent/src/datapath/kernel.rs",
            &["use aya::Ebpf;", "fn f() { unsafe { g() } }"],
        );
        allowed(
            "agent/src/observe/logging.rs",
            &["use aya_log::EbpfLogger;"],
        );
        allowed(
            "agent/src/plan.rs",
            &["use crate::datapath::Write;", "use agent_common::Pod;"],
        );
    }

    #[test]
    fn kubernetes_is_behind_the_sources() {
        forbidden(
            "agent/src/app.rs",
            &[
                "use kube::Client;",
                "fn f(pod: k8s_openapi::api::core::v1::Pod) {}",
            ],
        );
        allowed(
            "agent/src/source/objects.rs",
            &["use k8s_openapi::api::core::v1::Pod;"],
        );
        allowed(
            "agent/src/app.rs",
            &["use crate::source::kube; fn f() { kube::start() }"],
        );
    }

    #[test]
    fn compile_is_pure_and_the_oracle_alone() {
        forbidden(
            "agent/src/compile/policy.rs",
            &[
                "use crate::source::Event;",
                "use std::time::Instant;",
                "use crate::oracle::verdict;",
                "use super::super::app::App;",
            ],
        );
        allowed(
            "agent/src/compile/policy.rs",
            &[
                "use crate::{model::Text, desired, local, problem};",
                "use super::service;",
            ],
        );
        allowed(
            "agent/src/compile.rs",
            &[
                "#[cfg(test)] mod tests { use crate::oracle::verdict; }",
                "use std::time::Duration;",
            ],
        );
        forbidden(
            "agent/src/oracle.rs",
            &["use crate::desired::Desired;", "use crate::compile;"],
        );
        allowed("agent/src/oracle.rs", &["use crate::model::Cluster;"]);
    }

    #[test]
    fn nothing_imports_the_wiring() {
        forbidden(
            "agent/src/observe.rs",
            &["use crate::app::App;", "use crate::cli;"],
        );
        forbidden("agent/src/cli/status.rs", &["use crate::app::App;"]);
        allowed("agent/src/main.rs", &["use sluice::{app, cli};"]);
        allowed(
            "agent/src/cli/status.rs",
            &["use crate::cli::Table;", "use super::Table;"],
        );
    }

    #[test]
    fn unsafe_has_its_places() {
        forbidden("agent/src/app.rs", &["fn f() { unsafe { g() } }"]);
        forbidden("agent-common/src/lookup.rs", &["unsafe impl X for Y {}"]);
        forbidden("xtask/src/main.rs", &["fn f() { unsafe { g() } }"]);
        allowed("agent-common/src/user.rs", &["unsafe impl X for Y {}"]);
        allowed(
            "agent/src/app.rs",
            &["#![forbid(unsafe_code)]", "// unsafe"],
        );
    }
}
