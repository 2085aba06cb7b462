//! The one table of keys: the file, the environment, the flags, `--help`, `--print-config` and docs/config.md all
//! come from it.

use super::env::Env;
use super::value::Kind;
use sluice_shared::contract;
use sluice_shared::enroll::default_selectors;

/// One key.
#[derive(Debug)]
pub struct Key {
    /// As it is written in the file.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is when nobody sets it.
    pub default: Default,
    /// What it does, in a sentence or a few.
    pub doc: &'static str,
}

/// What a key is when nobody sets it.
#[derive(Debug)]
pub enum Default {
    /// This text.
    Text(&'static str),
    /// What this gives, and how the documentation calls that.
    Computed(fn(&dyn Env) -> String, &'static str),
}

/// Every key, in the order of the documentation.
pub static KEYS: &[Key] = &[
    Key {
        name: "source",
        kind: Kind::Word(&["kubernetes", "file"]),
        default: Default::Text("kubernetes"),
        doc: "Where pods and namespaces come from: the API server, or the file `podsFile`.",
    },
    Key {
        name: "kubeconfig",
        kind: Kind::OptionalPath,
        default: Default::Text(""),
        doc: "For `source: kubernetes`: a kubeconfig file, whose current context is used. Empty is the service account \
              that is mounted into the agent's pod. It needs get, list and watch on pods and namespaces.",
    },
    Key {
        name: "podsFile",
        kind: Kind::OptionalPath,
        default: Default::Text(""),
        doc: "For `source: file`: the YAML file of namespaces and pods. It is watched; a version with a mistake is \
              reported and changes nothing.",
    },
    Key {
        name: "nodeName",
        kind: Kind::NodeName,
        default: Default::Computed(
            |env| env.hostname().unwrap_or_default().to_lowercase(),
            "the host's name",
        ),
        doc: "The name of this node in Kubernetes.",
    },
    Key {
        name: "namespace",
        kind: Kind::OptionalName,
        default: Default::Text(""),
        doc: "The namespace of the agent's own pod.",
    },
    Key {
        name: "daemonset",
        kind: Kind::OptionalName,
        default: Default::Text(""),
        doc: "The agent's own DaemonSet, in `namespace`. When the agent is told to end, it asks the API server what becomes of \
              it, and so tells the installer an uninstall from an upgrade. Needs get on it, and get on nodes. Empty asks \
              nothing, and the installation then stays when the pod ends.",
    },
    Key {
        name: "podName",
        kind: Kind::OptionalName,
        default: Default::Text(""),
        doc: "The agent's own pod, in `namespace`: Events about the installation are on it. Empty makes none.",
    },
    Key {
        name: "podUid",
        kind: Kind::OptionalName,
        default: Default::Text(""),
        doc: "The uid of `podName`.",
    },
    Key {
        name: "nodeTaints",
        kind: Kind::TaintKeys,
        default: Default::Text(""),
        doc: "For `source: kubernetes`: the keys of the taints that the agent removes from its own node once a pod that starts \
              there is captured: it serves, and the plugin is in the chain. `cni.istio.io/not-ready` is the one that Istio's \
              own documentation uses. Needs watch and patch on nodes. Empty touches no taint.",
    },
    Key {
        name: "agentSocket",
        kind: Kind::Socket,
        default: Default::Text(contract::AGENT_SOCKET),
        doc: "Where the CNI plugin reaches the agent. The plugin's netconf must name the same path.",
    },
    Key {
        name: "adminSocket",
        kind: Kind::Socket,
        default: Default::Text(contract::ADMIN_SOCKET),
        doc: "Where sluicectl reaches the agent.",
    },
    Key {
        name: "zdsSocket",
        kind: Kind::Socket,
        default: Default::Text(contract::ZDS_SOCKET),
        doc: "Where ztunnel reaches the agent: ztunnel's `INPOD_UDS`.",
    },
    Key {
        name: "stateDir",
        kind: Kind::Path,
        default: Default::Text(contract::STATE_DIR),
        doc: "What survives a boot: which namespaces are in the mesh, which the plugin reads when no agent answers. \
              The plugin's netconf must name the same path.",
    },
    Key {
        name: "runDir",
        kind: Kind::Path,
        default: Default::Text(contract::RUN_DIR),
        doc: "What lives for one boot: the journal of enrolled pods. It should be on a tmpfs.",
    },
    Key {
        name: "backend",
        kind: Kind::Word(&["auto", "nftables", "iptables", "ebpf"]),
        default: Default::Text("auto"),
        doc: "How rules get into the kernel. `auto` tries nftables, then iptables, and takes the first that this \
              kernel lets work. `iptables` runs iptables' programs, of which Sluice's image has none: it \
              takes an image of your own (docs/install.md). This build has no `ebpf` and refuses to start with it.",
    },
    Key {
        name: "probes",
        kind: Kind::Word(&["auto", "cookie", "snat", "source", "none"]),
        default: Default::Text("auto"),
        doc: "How the kubelet's probes reach applications that take mTLS only. `snat`: the host gives the kubelet's \
              own connections a source address that pods let pass. `source`: the node's own addresses, to ports that \
              pods declare for probes, with no rule on the host. `none`: they are captured like everything else. \
              `cookie`: a BPF program on the kubelet's cgroup puts a secret of the pod's into the opening SYN, to ports \
              that pods declare for probes, with no rule on the host; it takes Linux 5.10 and the backend nftables, and \
              where it cannot be had what `auto` takes is used, and `sluicectl status` says why. `auto` takes the first of \
              cookie, snat and source that a self-test in this node's pods has shown to pass; until there is a pod to test \
              with, snat where the host takes it, else source. What is set here instead is tested too, and kept.",
    },
    Key {
        name: "probeSourceV4",
        kind: Kind::Ipv4,
        default: Default::Text("169.254.7.127"),
        doc: "For the probe strategy `snat`: the source that probes of IPv4 pods get. No pod or service may have it.",
    },
    Key {
        name: "probeSourceV6",
        kind: Kind::Ipv6,
        default: Default::Text("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"),
        doc: "For the probe strategy `snat`: the source that probes of IPv6 pods get. No pod or service may have it.",
    },
    Key {
        name: "ipv6",
        kind: Kind::Flag,
        default: Default::Text("true"),
        doc: "Capture IPv6 as well as IPv4, whatever addresses a pod has. `false` is for kernels without IPv6 \
              netfilter: a pod's IPv6 traffic then bypasses the mesh.",
    },
    Key {
        name: "dnsCapture",
        kind: Kind::Flag,
        default: Default::Text("true"),
        doc: "Let ztunnel answer the pods' DNS queries. A pod's annotation `ambient.istio.io/dns-capture` comes first.",
    },
    Key {
        name: "excludeNamespaces",
        kind: Kind::Namespaces,
        default: Default::Text("kube-system"),
        doc: "Namespaces whose pods are never in the mesh, whatever their labels.",
    },
    Key {
        name: "enablementSelectors",
        kind: Kind::Selectors,
        default: Default::Computed(
            |_| serde_json::to_string(&default_selectors()).unwrap_or_default(),
            "Istio's: the pod's label `istio.io/dataplane-mode: ambient`, or the namespace's unless the pod's is `none`",
        ),
        doc: "Which pods are in the mesh: those that any of these selects by both of its parts. A part that is not \
              given selects everything.",
    },
    Key {
        name: "whenAgentUnavailable",
        kind: Kind::Word(&["auto", "fail-closed", "pass"]),
        default: Default::Text("auto"),
        doc: "What the plugin does with a new pod while no agent answers. A pod in a namespace of the mesh always \
              waits, and one in a namespace known to be outside always starts. `auto`: in namespaces that have ever \
              held enrolled pods a pod waits, in others it starts. `fail-closed`: a pod waits unless its namespace is \
              known to be outside. `pass`: only pods of namespaces in the mesh wait.",
    },
    Key {
        name: "existingConnections",
        kind: Kind::Word(&["keep", "reset"]),
        default: Default::Text("keep"),
        doc: "What becomes of connections that are older than their pod's enrolment: they keep their path until they \
              end, or are cut, so that the application opens them again through the mesh.",
    },
    Key {
        name: "addTimeoutSeconds",
        kind: Kind::Number(1..=55),
        default: Default::Text("25"),
        doc: "How long an ADD may take until the plugin is told why the pod is not captured. Below the plugin's own \
              limit (timeoutSeconds, 30), so that this answer comes first.",
    },
    Key {
        name: "holdTimeoutSeconds",
        kind: Kind::Number(0..=86_400),
        default: Default::Text("30"),
        doc: "How long a pod's new connections are held while no ztunnel listens in it, before they are rejected. \
              0 holds them for ever.",
    },
    Key {
        name: "drainTimeoutSeconds",
        kind: Kind::Number(0..=604_800),
        default: Default::Text("3600"),
        doc: "How long the proxied connections of a pod that leaves the mesh may live on before they are cut.",
    },
    Key {
        name: "markGuard",
        kind: Kind::Word(&["auto", "off"]),
        default: Default::Text("auto"),
        doc: "Trust ztunnel's mark only on ztunnel's own sockets, so that a container with CAP_NET_RAW cannot use it to \
              bypass the mesh. `auto` does so where pods live in a cgroup v2 hierarchy.",
    },
    Key {
        name: "kubeletCgroup",
        kind: Kind::AutoOrPath,
        default: Default::Text("auto"),
        doc: "The cgroup v2 directory in which the kubelet runs, from the hierarchy's root: \
              `/system.slice/kubelet.service`. `auto` finds it from the running kubelet.",
    },
    Key {
        name: "hostProc",
        kind: Kind::Path,
        default: Default::Text("/proc"),
        doc: "Where the host's procfs is mounted. A container without hostPID mounts the host's /proc, for example at \
              /host/proc, and names that: ztunnel's and the kubelet's processes are looked up there.",
    },
    Key {
        name: "hostNetns",
        kind: Kind::OptionalPath,
        default: Default::Text(""),
        doc: "The host's network namespace: where the probe strategy `snat` has its table, and where pods' rules are \
              never written. Empty is the agent's own, or with `hostProc` elsewhere than /proc, that of the host's \
              process 1.",
    },
    Key {
        name: "criSocket",
        kind: Kind::AutoPathOrNone,
        default: Default::Text("auto"),
        doc: "The container runtime's socket, which is asked for the network namespaces of pods that ran before the \
              agent. `auto` takes the first of the usual ones that shows any sandbox: containerd, CRI-O, k3s, microk8s, \
              k0s, cri-dockerd. Empty asks no runtime.",
    },
    Key {
        name: "netnsDirs",
        kind: Kind::Paths,
        default: Default::Text("/run/netns,/var/run/netns,/run/docker/netns"),
        doc: "Where the runtime keeps its pods' network namespaces, as files. Pods that ran before the agent are looked \
              for in them where the runtime cannot be asked. In a container they are the host's directories, mounted with \
              HostToContainer propagation. Empty looks nowhere.",
    },
    Key {
        name: "kernelThreads",
        kind: Kind::Number(0..=256),
        default: Default::Text("0"),
        doc: "How many threads enter pods' namespaces. 0 is one for each CPU.",
    },
    Key {
        name: "metricsAddress",
        kind: Kind::Listen,
        default: Default::Text("127.0.0.1:15014"),
        doc: "Where `/metrics`, `/healthz` and `/readyz` are served over HTTP. Empty is nowhere.",
    },
    Key {
        name: "logFormat",
        kind: Kind::Word(&["text", "json"]),
        default: Default::Text("text"),
        doc: "How log lines are written, to stderr.",
    },
    Key {
        name: "logLevel",
        kind: Kind::LogFilter,
        default: Default::Text("info"),
        doc: "What is logged: a level, or a filter such as `info,sluice_agent::zds=debug`.",
    },
];

impl Key {
    /// By its name in the file.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// `podsFile` → `SLUICE_PODS_FILE`
    #[must_use]
    pub fn variable(&self) -> String {
        format!("SLUICE_{}", self.words('_').to_uppercase())
    }

    /// `podsFile` → `pods-file`
    #[must_use]
    pub fn flag(&self) -> String {
        self.words('-')
    }

    fn words(&self, between: char) -> String {
        let mut out = String::new();
        for c in self.name.chars() {
            if c.is_ascii_uppercase() {
                out.push(between);
            }
            out.push(c.to_ascii_lowercase());
        }
        out
    }
}
