//! Every check: its id, which never changes, and why it matters. `docs/doctor.md` has a section for each.

/// A check.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    /// Its id, for programs.
    pub id: &'static str,
    /// Why what it finds matters.
    pub why: &'static str,
}

macro_rules! checks {
    ($($name:ident = $id:literal, $why:literal;)*) => {
        $(pub(super) const $name: &Check = &Check { id: $id, why: $why };)*
        /// All of them, in the order of `docs/doctor.md`.
        pub const ALL: &[&Check] = &[$($name),*];
    };
}

checks! {
    CNI_PRIMARY = "cni-primary",
        "The plugin is chained behind the primary CNI's plugin. Without a configuration of it that can be read there is \
         nothing to be chained behind, and no pod starts on the node.";
    CNI_WAY = "cni-way",
        "Our entry has to get into the primary's chain. Whether by a drop-in, in the primary's own list or by a list of our \
         own depends on the runtime and on that list, and some lists allow none of the three.";
    CNI_EXCLUSIVE = "cni-exclusive",
        "In exclusive mode Cilium writes its configuration anew at every change of the directory, and renames everybody \
         else's to .cilium_bak. An entry in the chain lasts for milliseconds; pods that start in between are not captured.";
    CNI_DIRECTORY = "cni-directory",
        "The installer writes into the runtime's configuration directory and its directory of plugins. In the wrong ones \
         nobody sees the plugin; ones that cannot be written it cannot chain.";
    PLUGIN_FILE = "plugin-file",
        "With our entry in the chain and no plugin that the runtime can run, no pod starts on the node.";
    PLUGIN_STALE = "plugin-stale",
        "A plugin of another build may not understand the agent's answers, and lacks what was mended since.";
    LEFTOVER = "leftover",
        "An entry that an uninstall left behind delays pods, and holds back those of namespaces that were in the mesh \
         until the lease has lapsed.";
    CILIUM_SOCKET_LB = "cilium-socket-lb",
        "Load balancing at the socket replaces a service's address within connect(), before a packet exists. ztunnel then \
         sees a pod's address and not the service's: policies and waypoints of services are passed by.";
    CILIUM_HOST_ROUTING = "cilium-host-routing",
        "With BPF host routing, answers to the address that the strategy `snat` gives to the kubelet's probes find no route \
         and are dropped: probes of captured pods fail, and the kubelet restarts them.";
    AWS_SG_STRICT = "aws-sg-strict",
        "In strict mode all traffic of a pod with a security group goes through its branch interface and the VPC, the kubelet's \
         probes included. A probe with a link-local source, as the strategy `snat` gives it, is dropped there.";
    CALICO_EBPF = "calico-ebpf",
        "Calico's eBPF data plane may replace a service's address within connect(), as Cilium's socket load balancing does, \
         and before 3.29 let answers to probes bypass the host's connection tracking.";
    OVN_GATEWAY = "ovn-gateway",
        "In shared gateway mode OVN-Kubernetes routes a pod's answers to link-local addresses out of the node. The probes of \
         captured pods fail with the strategy `snat`.";
    POLICY_15008 = "policy-15008",
        "Between pods of the mesh traffic arrives as mTLS on port 15008, whatever port the application has. A NetworkPolicy \
         that names the application's ports and not 15008 blocks it.";
    HOST_RULES = "host-rules",
        "Some platforms refuse packet filter rules in the host's network namespace (AKS, by BPF LSM). The strategy `snat` \
         needs such rules; pods' own namespaces are not affected.";
    KERNEL_RULES = "kernel-rules",
        "Pods are captured by packet filter rules in their own network namespace. Without a backend that takes all of them \
         no pod can be captured.";
    KERNEL_IPV6 = "kernel-ipv6",
        "The agent captures both families, whatever addresses a pod has now. On a kernel that cannot filter IPv6 it has to be \
         told to leave it, or no plan is ever accepted.";
    KERNEL_MARK_GUARD = "kernel-mark-guard",
        "Rules that tell sockets by their cgroup keep containers from using ztunnel's mark, and find the kubelet for the \
         strategy `snat`. Without them a container with CAP_NET_RAW can bypass the mesh.";
    KERNEL_TRANSPARENT = "kernel-transparent",
        "ztunnel's sockets in pods carry the addresses of the original peers.";
    CGROUP_V2 = "cgroup-v2",
        "Where pods do not live in a cgroup v2 hierarchy, ztunnel's and the kubelet's sockets cannot be told from others': \
         the mark guard is off, and probes pass by their source address.";
    BPF = "bpf",
        "The strategy `cookie` for probes, which needs no rule on the host, marks the kubelet's connections by a BPF program.";
    LIMITS = "limits",
        "The installer watches the configuration directory by inotify, whose instances are counted for all of root's processes on \
         the node. When there are none left it looks once in a while only.";
    CONNTRACK = "conntrack",
        "When the connection tracking table is full, the kernel drops packets of new connections, those of captured pods \
         first: each has more entries than an application that is not captured.";
    RP_FILTER = "rp-filter",
        "With strict reverse path filtering the host drops packets that arrive by another interface than the answer would \
         leave by, as they do on nodes with several network interfaces.";
    BRIDGE_NF = "bridge-nf",
        "Packets between two pods on one bridge pass by the host's rules when this is off: the answer of a service's pod is \
         not translated back, and the caller refuses it.";
    IP_FORWARD = "ip-forward",
        "With forwarding off the host passes no packet between pods and the network.";
    NODE_LOCAL_DNS = "node-local-dns",
        "With DNS capture, pods of the mesh ask ztunnel, which asks the servers of its own resolv.conf: the node's cache \
         serves captured pods only if ztunnel's pod is configured to use it.";
    SECOND_MESH = "second-mesh",
        "Two meshes that both redirect a pod's traffic send it in circles, or past one of the two.";
    AGENT = "agent",
        "While no agent answers, captured pods stay as they are, and new pods of namespaces in the mesh wait.";
    CHAIN_STATE = "chain-state",
        "Pods that start while our entry is not in the chain are captured only when the agent finds them, some time after \
         they have begun to run.";
    ZTUNNEL = "ztunnel",
        "New connections of captured pods are held, and after holdTimeoutSeconds refused, while no ztunnel is connected to \
         the agent.";
    SOURCE = "source",
        "What the agent knew before stays in force, and what changes is not seen.";
    PODS = "pods",
        "A pod that should be in the mesh and is not captured either waits to start or sends and takes plaintext.";
    NOTES = "notes",
        "Agent, installer and plugin tell each other things by small files. One that cannot be read counts as absent, but \
         for the plugin: with a membership file that it cannot read, every pod waits while no agent answers.";
    INTENT = "intent",
        "The installer takes everything off the node at its end when this file says that it should.";
    LEASE = "lease",
        "With a lease that was given up or has lapsed the plugin lets pods of the mesh start outside it while no agent answers.";
    CLOCK = "clock",
        "ztunnel's certificates live for hours and are valid from the minute they were made: with a clock that is wrong, \
         every mTLS handshake fails.";
}
