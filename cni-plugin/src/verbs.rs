//! What each CNI verb means here.

use crate::agent::{self, Deadline, NoAnswer};
use crate::answer::{Answer, Failure};
use crate::environment::{self, Command, Sandbox};
use crate::log::Log;
use crate::stdin::{self, MAX_STDIN, StdinError};
use crate::{fallback, netns};
use sluice_shared::cni::{self, NetConf, Settings, SpecVersion, VersionInfo, code};
use sluice_shared::ids::PodRef;
use sluice_shared::membership::{Fallback, is_exempt};
use sluice_shared::wire::{Reply, Verb};
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

/// How long a runtime has to write the netconf and close stdin.
const STDIN_WAIT: Duration = Duration::from_secs(5);
/// The same for VERSION, which some callers run with a stdin that never ends.
const VERSION_STDIN_WAIT: Duration = Duration::from_millis(500);
/// How long ADD waits before it looks again for an agent that is not there.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// The longest that DEL waits: the agent hears of the pod's end by other ways too.
const DEL_WAIT: Duration = Duration::from_secs(1);
/// The longest that STATUS and GC wait, which runtimes call again and again.
const BACKGROUND_WAIT: Duration = Duration::from_secs(2);

/// Does what the environment and stdin ask for.
pub fn run(log: &mut Log) -> Result<Answer, Failure> {
    let command = environment::command()?;
    match command {
        Command::Version => return version(),
        Command::Del => {
            del(log);
            return Ok(Answer::Silence);
        }
        Command::Add | Command::Check | Command::Gc | Command::Status => {}
    }
    let stdin = stdin::read(STDIN_WAIT).map_err(unread)?;
    let conf = NetConf::parse(&stdin)?;
    let outcome = match command {
        Command::Add => add(&conf, log),
        Command::Check => check(&conf, log),
        Command::Gc => gc(&conf, log),
        _ => status(&conf, log),
    };
    outcome.map_err(|failure| failure.in_version(conf.version))
}

/// A sandbox was made: its pod is captured before ADD returns, or it is not in the mesh.
fn add(conf: &NetConf<'_>, log: &mut Log) -> Result<Answer, Failure> {
    let sandbox = Sandbox::read()?;
    let passed_on =
        || conf.prev_result.map_or_else(|| cni::empty_result(conf.version), |result| result.get().to_owned());
    let Some((pod, settings)) = concerned(conf, &sandbox, log)? else {
        return Ok(Answer::Print(passed_on()));
    };
    let netns = netns::open(&sandbox.netns)?;
    let addresses = conf.prev_result.map(cni::addresses).unwrap_or_default();
    for skipped in &addresses.skipped {
        log.warn(format_args!("pod {pod}: {skipped}; left out"));
    }
    let verb = Verb::Add(sandbox.attachment(addresses.ips));
    // An agent that hangs must not cost pods that it would have nothing to do with the runtime's patience.
    let outside = || fallback::is_known_outside(&settings.state_dir, &pod.namespace);
    let deadline = Deadline::after(settings.timeout);
    loop {
        match agent::ask_unless_hung(&settings.agent_socket, &verb, Some(netns.as_fd()), deadline, outside) {
            Ok(Reply::Ok { outcome }) => {
                log.agent = Some(settings.agent_socket.clone());
                log.debug(format_args!("ADD of pod {pod}: {outcome}"));
                break;
            }
            Ok(Reply::Error { code, msg, details }) => return Err(refused(code, msg, details)),
            Err(no_answer) => {
                let Err(failure) = without_agent(pod, &settings, &no_answer, log) else { break };
                if failure.code != code::TRY_AGAIN_LATER || deadline.left() <= LOOK_AGAIN {
                    return Err(failure);
                }
                // An agent that is being replaced is back in seconds, and a sandbox that failed is made anew as a whole.
                sleep(LOOK_AGAIN);
            }
        }
    }
    Ok(Answer::Print(passed_on()))
}

/// Is what ADD did still there?
fn check(conf: &NetConf<'_>, log: &mut Log) -> Result<Answer, Failure> {
    since(SpecVersion::V0_4_0, conf.version, "CHECK")?;
    let sandbox = Sandbox::read()?;
    let Some((pod, settings)) = concerned(conf, &sandbox, log)? else { return Ok(Answer::Silence) };
    let netns = netns::open(&sandbox.netns)?;
    let ips = conf.prev_result.map(cni::addresses).unwrap_or_default().ips;
    let verb = Verb::Check(sandbox.attachment(ips));
    match agent::ask(&settings.agent_socket, &verb, Some(netns.as_fd()), Deadline::after(settings.timeout)) {
        Ok(Reply::Ok { .. }) => {}
        Ok(Reply::Error { code, msg, details }) => return Err(refused(code, msg, details)),
        Err(no_answer) => without_agent(pod, &settings, &no_answer, log)?,
    }
    Ok(Answer::Silence)
}

/// A sandbox goes away. Tells the agent, and succeeds whatever happens: an error here would keep the sandbox, its
/// address and its name.
fn del(log: &mut Log) {
    let stdin = match stdin::read(DEL_WAIT) {
        Ok(stdin) | Err(StdinError::StillOpen(stdin)) => stdin,
        Err(e) => {
            log.warn(format_args!("DEL: {}", unread(e).msg));
            Vec::new()
        }
    };
    let settings = NetConf::parse(&stdin).and_then(|conf| conf.settings()).unwrap_or_else(|e| {
        log.warn(format_args!("DEL: {e}; going on with the defaults"));
        Settings::default()
    });
    log.level = settings.log_level;
    let sandbox = match Sandbox::read_for_del() {
        Ok(sandbox) => sandbox,
        Err(e) => return log.warn(format_args!("DEL: {}; the agent is not told", e.msg)),
    };
    if sandbox.args.pod.as_ref().is_some_and(|pod| exempt(pod, &settings)) {
        return;
    }
    let verb = Verb::Del(sandbox.attachment(Vec::new()));
    match agent::ask(&settings.agent_socket, &verb, None, Deadline::after(settings.timeout.min(DEL_WAIT))) {
        Ok(Reply::Ok { .. }) => {}
        Ok(Reply::Error { msg, .. }) => log.warn(format_args!("DEL of {}: {msg}", sandbox.id.container_id)),
        Err(NoAnswer { why, .. }) => {
            log.warn(format_args!("DEL of {}: the Sluice agent {why}", sandbox.id.container_id));
        }
    }
}

/// Only these attachments are still there.
fn gc(conf: &NetConf<'_>, log: &mut Log) -> Result<Answer, Failure> {
    since(SpecVersion::V1_1_0, conf.version, "GC")?;
    let settings = settings(conf, log)?;
    let Some(valid) = conf.valid_attachments()? else {
        log.warn("GC: cni.dev/valid-attachments is missing, which proves nothing; nothing is collected");
        return Ok(Answer::Silence);
    };
    match agent::ask(
        &settings.agent_socket,
        &Verb::Gc { valid },
        None,
        Deadline::after(settings.timeout.min(BACKGROUND_WAIT)),
    ) {
        Ok(Reply::Ok { .. }) => Ok(Answer::Silence),
        Ok(Reply::Error { code, msg, details }) => Err(refused(code, msg, details)),
        Err(NoAnswer { code: code::IO_FAILURE, why }) => {
            Err(Failure::new(code::IO_FAILURE, format_args!("GC: the Sluice agent {why}")))
        }
        Err(NoAnswer { why, .. }) => {
            log.warn(format_args!("GC: the Sluice agent {why}; it compares for itself when it starts"));
            Ok(Answer::Silence)
        }
    }
}

/// Can an ADD be served? Only an agent that says no makes this fail: silence is no reason to take the node out of
/// service, and the agent's own pod with it (docs/decisions/0001-status-never-blocks.md).
fn status(conf: &NetConf<'_>, log: &mut Log) -> Result<Answer, Failure> {
    since(SpecVersion::V1_1_0, conf.version, "STATUS")?;
    let settings = settings(conf, log)?;
    match agent::ask(
        &settings.agent_socket,
        &Verb::Status,
        None,
        Deadline::after(settings.timeout.min(BACKGROUND_WAIT)),
    ) {
        Ok(Reply::Ok { .. }) => {}
        Ok(Reply::Error { msg, details, .. }) => return Err(refused(code::NOT_AVAILABLE, msg, details)),
        Err(NoAnswer { why, .. }) => {
            log.warn(format_args!(
                "STATUS: the Sluice agent {why}; pods of the mesh wait for it, others start"
            ));
        }
    }
    Ok(Answer::Silence)
}

/// Some callers probe with nothing on stdin, or with a stdin that never ends.
fn version() -> Result<Answer, Failure> {
    let stdin = match stdin::read(VERSION_STDIN_WAIT) {
        Ok(stdin) | Err(StdinError::StillOpen(stdin)) => stdin,
        Err(_) => Vec::new(),
    };
    let asked = NetConf::parse(&stdin).ok().map(|conf| conf.version);
    let text = serde_json::to_string(&VersionInfo::answer(asked));
    text.map(Answer::Print).map_err(|e| Failure::new(code::INTERNAL, e))
}

/// The pod, if it is one that may be in the mesh, and how to ask about it. The order matters: what the mesh is made of
/// starts even when our own keys of the netconf are wrong.
fn concerned<'s>(
    conf: &NetConf<'_>,
    sandbox: &'s Sandbox,
    log: &mut Log,
) -> Result<Option<(&'s PodRef, Settings)>, Failure> {
    let Some(pod) = &sandbox.args.pod else { return Ok(None) };
    if is_exempt(pod) {
        return Ok(None);
    }
    let settings = settings(conf, log)?;
    Ok((!exempt(pod, &settings)).then_some((pod, settings)))
}

fn settings(conf: &NetConf<'_>, log: &mut Log) -> Result<Settings, Failure> {
    let settings = conf.settings()?;
    log.level = settings.log_level;
    log.agent = Some(settings.agent_socket.clone());
    Ok(settings)
}

fn exempt(pod: &PodRef, settings: &Settings) -> bool {
    is_exempt(pod)
        || settings
            .exempt_pods
            .iter()
            .any(|exempt| pod.namespace == exempt.namespace && pod.name.starts_with(&exempt.name_prefix))
}

/// Decides with no answer to go by: `Ok` when the pod may go on without.
fn without_agent(
    pod: &PodRef,
    settings: &Settings,
    no_answer: &NoAnswer,
    log: &mut Log,
) -> Result<(), Failure> {
    let NoAnswer { why, code } = no_answer;
    log.agent = None;
    match fallback::decide(&settings.state_dir, &pod.namespace, log) {
        Fallback::Pass(because) => {
            log.warn(format_args!(
                "pod {pod} goes on outside the mesh for now: the Sluice agent {why}, and {because}; the agent \
                 adopts the pod if it belongs to the mesh"
            ));
            Ok(())
        }
        Fallback::Wait(because) => Err(Failure::new(
            *code,
            format_args!(
                "pod {pod} waits for the Sluice agent, which {why}: {because}; `sluicectl why {pod}` on the node \
                 explains it"
            ),
        )),
    }
}

/// The agent's refusal, in its own words. Zero is no error code.
fn refused(code: u32, msg: String, details: String) -> Failure {
    let code = if code == 0 { code::REDIRECT_FAILED } else { code };
    Failure { details, ..Failure::new(code, msg) }
}

/// Refuses a verb that the netconf's version of the spec does not have.
fn since(first: SpecVersion, asked: SpecVersion, verb: &str) -> Result<(), Failure> {
    if asked >= first {
        return Ok(());
    }
    let msg = format_args!("{verb} came with cniVersion {asked}; it is part of the spec from {first} on");
    Err(Failure::new(code::INCOMPATIBLE_VERSION, msg))
}

fn unread(e: StdinError) -> Failure {
    match e {
        StdinError::TooLong => Failure::new(
            code::INVALID_NETCONF,
            format_args!("the netconf on stdin is longer than {MAX_STDIN} bytes"),
        ),
        StdinError::StillOpen(_) => Failure::new(
            code::IO_FAILURE,
            format_args!("stdin was not closed within {} s", STDIN_WAIT.as_secs()),
        ),
        StdinError::Failed(e) => Failure::new(code::IO_FAILURE, format_args!("cannot read stdin: {e}")),
    }
}
