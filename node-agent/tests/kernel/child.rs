//! What must be done by a process of its own: being in another cgroup, or having fewer capabilities.

use crate::fixture::{kernel, plan};
use crate::listeners::Dial;
use crate::nested;
use sluice_agent::kernel::linux::watch::Watch;
use sluice_agent::kernel::{Examiner, HostProc, Kernel, KernelError, ThisKernel};
use sluice_shared::lower::Backend;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// Set for such a process; the value says what it does.
const TASK: &str = "SLUICE_KERNEL_TESTS_TASK";
const CGROUP: &str = "SLUICE_KERNEL_TESTS_CGROUP";

/// Does what this process was started for. `false` when it is none of these.
pub fn is_task() -> bool {
    let Ok(task) = std::env::var(TASK) else { return false };
    let words: Vec<&str> = task.split(' ').collect();
    match words[..] {
        ["dial", to, mark] => {
            let cgroup = std::env::var_os(CGROUP).expect("a cgroup");
            std::fs::write(cgroup, "0").expect("move to the cgroup");
            let dial = Dial { mark: mark.parse().expect("a mark"), ..Dial::default() };
            println!("{}", dial.here(to.parse().expect("an address")).summary());
        }
        ["hears"] => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            let hearing = runtime.block_on(async { Watch::start(&kernel()).map(|watch| watch.hearing) });
            println!("{hearing:?}");
        }
        ["probe-iptables"] => println!("{:?}", kernel().probe_backends(&plan(), Some(Backend::Iptables))),
        ["guard-iptables"] => {
            let kernel = kernel();
            kernel.probe_backends(&plan(), Some(Backend::Iptables)).expect("a plan without a guard works");
            println!("{:?}", kernel.guard_works(Backend::Iptables, &plan()));
        }
        ["cookies", path] => {
            let kernel = kernel();
            let done = kernel.cgroup_at(path).and_then(|kubelet| {
                kernel.attach_cookies(&kubelet)?;
                kernel.detach_cookies(&kubelet)
            });
            match done {
                Ok(_) => println!("attached"),
                Err(error) => println!("{error} {}", errno(&error)),
            }
        }
        ["examine"] => println!("{:?}", ThisKernel { proc: HostProc::default() }.trials()),
        ["look", host_proc] => println!("{}", nested::look(host_proc)),
        _ => panic!("unknown task {task}"),
    }
    true
}

/// Dials from a process in a cgroup, and gives the summary.
pub fn dial(cgroup_procs: &Path, to: SocketAddr, mark: u32) -> String {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    output(command.env(TASK, format!("dial {to} {mark}")).env(CGROUP, cgroup_procs))
}

/// What the watch's self-check says without a capability, as `setpriv` names it.
pub fn hears_without(capability: &str) -> String {
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-{capability}")).arg(std::env::current_exe().expect("own path"));
    output(command.env(TASK, "hears"))
}

/// What becomes of the program for cookies with these capabilities and no other, as `setpriv` names them.
pub fn cookies_with(capabilities: &str, kubelet: &str) -> String {
    let mut command = Command::new("setpriv");
    let only = capabilities.split(',').map(|name| format!(",+{name}")).collect::<String>();
    command.arg(format!("--bounding-set=-all{only}")).arg(std::env::current_exe().expect("own path"));
    output(command.env(TASK, format!("cookies {kubelet}")))
}

/// What the doctor's trials come to without a capability, as `setpriv` names it.
pub fn examined_without(capability: &str) -> String {
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-{capability}")).arg(std::env::current_exe().expect("own path"));
    output(command.env(TASK, "examine"))
}

/// What the probe for iptables says where there are no programs.
pub fn probe_iptables_without_programs() -> String {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    output(command.env(TASK, "probe-iptables").env("PATH", "/nonexistent"))
}

/// What the mark guard's probe says where iptables has only the extensions in a directory.
pub fn guard_with_extensions_in(directory: &Path) -> String {
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    output(command.env(TASK, "guard-iptables").env("XTABLES_LIBDIR", directory))
}

/// What an agent within `container`, a command that runs another one, finds of the cgroups of the host that `host_proc`
/// shows.
pub fn in_a_container(container: &[&str], host_proc: &str) -> String {
    let mut command = Command::new(container[0]);
    command.args(&container[1..]).arg(std::env::current_exe().expect("own path"));
    output(command.env(TASK, format!("look {host_proc}")))
}

fn errno(error: &KernelError) -> String {
    match error {
        KernelError::Call { source, .. } => {
            nix::Error::from_raw(source.raw_os_error().unwrap_or_default()).to_string()
        }
        other => other.to_string(),
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("run a process");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
