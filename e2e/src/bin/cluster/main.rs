//! `sluice-cluster`: Kubernetes on this machine, in a private world. See `sluice_e2e::cluster`.

use clap::{Args, Parser, Subcommand};
use sluice_e2e::cluster::node::daemon::Choice;
use sluice_e2e::cluster::standing::Standing;
use sluice_e2e::cluster::{Cluster, DIR, MAX_NODES, Options, node, test};
use sluice_e2e::lab::outer;
use sluice_e2e::lab::report::keep_files;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// A control plane and nodes, of upstream's own programs, in network namespaces.
#[derive(Parser)]
#[command(name = "sluice-cluster", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Start a cluster and leave it standing in the background
    Up(Up),
    /// End the standing cluster; nothing of it is left
    Down,
    /// Open a shell on the control plane's host, with kubectl ready
    Shell {
        /// A program to run in the shell's place, and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// Open a shell on a node
    Node {
        /// node1, node2, …
        name: String,
        /// A program to run in the shell's place, and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// Prove, on a cluster of its own, what Sluice does there; writes target/reports/cluster.json
    Test {
        /// Only this scenario; may be given more than once
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        #[command(flatten)]
        primary: Choice,
        /// Leave the cluster standing afterwards, until Ctrl-C
        #[arg(long)]
        keep: bool,
    },
    /// Bring a cluster up and keep it until a signal comes (used by `up`)
    #[command(hide = true)]
    Serve(Up),
    /// Become a node's first process (used by the cluster itself)
    #[command(hide = true)]
    Boot(Machine),
    /// Be a node's first process (used by the cluster itself)
    #[command(hide = true)]
    Init(Machine),
    /// Become a program on a node (used by the cluster itself)
    #[command(hide = true)]
    Enter {
        /// The node's directory
        dir: PathBuf,
        /// The cgroup, below the node's
        #[arg(long)]
        cgroup: String,
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
}

#[derive(Args)]
struct Up {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    nodes: u8,
    /// Chain our plugin behind each node's primary CNI
    #[arg(long)]
    chain_sluice: bool,
    #[command(flatten)]
    primary: Choice,
}

#[derive(Args)]
struct Machine {
    /// The node's directory
    dir: PathBuf,
    /// The node's name
    name: String,
    /// Where the upstream programs are
    programs: PathBuf,
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().what {
        What::Up(up) => {
            up.start()?;
            println!("\n`make cluster-shell` has kubectl ready; `make cluster-down` ends it.");
        }
        What::Down => {
            let stood = Standing::here()?.stop()?;
            println!("{}", if stood { "the cluster is down" } else { "no cluster stood" });
        }
        What::Shell { program } => Standing::here()?.enter(&or_shell(program))?,
        What::Node { name, program } => {
            let this = std::env::current_exe()?.into_os_string();
            let dir = Path::new(DIR).join("nodes").join(name).into_os_string();
            let mut enter =
                vec![this, "enter".into(), dir, "--cgroup".into(), "user.slice".into(), "--".into()];
            enter.extend(or_shell(program));
            Standing::here()?.enter(&enter)?;
        }
        What::Test { only, primary, keep } => {
            let outer = outer::enter()?;
            let held = test::run(&outer, &only, primary.daemon(), keep)?;
            outer.exit(i32::from(!held))
        }
        What::Serve(up) => up.serve()?,
        What::Boot(Machine { dir, name, programs }) => node::init::boot(&dir, &name, &programs)?,
        What::Init(Machine { dir, name, programs }) => node::init::init(&dir, &name, &programs)?,
        What::Enter { dir, cgroup, program } => node::enter::enter(&dir, &cgroup, &program)?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Up {
    fn start(&self) -> anyhow::Result<()> {
        let mut serve = Command::new(std::env::current_exe()?);
        serve.arg("serve").arg("--nodes").arg(self.nodes.to_string());
        if self.chain_sluice {
            serve.arg("--chain-sluice");
        }
        serve.args(self.primary.arguments());
        Standing::here()?.start(&mut serve)
    }

    fn serve(&self) -> anyhow::Result<()> {
        // A closed terminal is no reason to end. The second execution leads the session already.
        let _ = nix::unistd::setsid();
        let outer = outer::enter()?;
        let options = Options {
            nodes: self.nodes,
            chain_sluice: self.chain_sluice,
            daemon: self.primary.daemon(),
            ..Options::default()
        };
        let up = Cluster::up(&outer, &options.with_built_images()?);
        let _cluster = match up {
            Ok(cluster) => cluster,
            Err(why) => {
                let kept = keep_files("cluster-up", &Path::new(DIR).join("logs"))?;
                return Err(why.context(format!("the logs are in {}", kept.display())));
            }
        };
        Standing::here()?.ready()?;
        // A signal ends the world, and its cgroups with it (outer.rs).
        loop {
            std::thread::park();
        }
    }
}

fn or_shell(program: Vec<OsString>) -> Vec<OsString> {
    if program.is_empty() {
        return vec![std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into())];
    }
    program
}
