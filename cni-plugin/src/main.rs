//! `sluice-cni`: the chained CNI plugin. It runs for every pod on the node, so it does little: it reads the netconf,
//! hands the pod's netns descriptor to the node agent in one message, waits for the one answer, and passes prevResult
//! on untouched.
//!
//! | file | what it does |
//! |---|---|
//! | `verbs` | what each CNI verb means here, in order |
//! | `environment`, `stdin` | what the runtime says |
//! | `netns` | opens the pod's namespace, and nothing else's |
//! | `agent` | one question, one answer, one deadline |
//! | `fallback` | what holds with no agent to ask |
//! | `answer` | stdout: one result or one error object, also after a panic |
//! | `log` | stderr, and best effort the agent's log |
//!
//! Input: environment and stdin as the CNI spec says. Output: stdout and the exit status. May import: `shared`.

mod agent;
mod answer;
mod environment;
mod fallback;
mod log;
mod netns;
mod stdin;
mod verbs;

use std::process::ExitCode;

fn main() -> ExitCode {
    answer::turn_panics_into_errors();
    let mut log = log::Log::new();
    let status = answer::deliver(verbs::run(&mut log));
    log.forward();
    status
}
