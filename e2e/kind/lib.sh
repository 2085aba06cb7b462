# shellcheck shell=bash
# How commands are run, or printed, and how checks are counted.
# From `run`: here root work family workers keep dry_run cni cluster

# What is installed: each can be set in the environment. Charts and manifests are the projects' own.
kubernetes=${KIND_NODE_IMAGE:-}
istio_version=${ISTIO_VERSION:-1.29.0}
istio_charts=${ISTIO_CHARTS:-https://istio-release.storage.googleapis.com/charts}
calico_version=${CALICO_VERSION:-v3.30.3}
calico_manifest=${CALICO_MANIFEST:-https://raw.githubusercontent.com/projectcalico/calico/$calico_version/manifests/calico.yaml}
cilium_version=${CILIUM_VERSION:-1.18.2}
cilium_charts=${CILIUM_CHARTS:-https://helm.cilium.io}
flannel_version=${FLANNEL_VERSION:-v0.27.4}
flannel_manifest=${FLANNEL_MANIFEST:-https://github.com/flannel-io/flannel/releases/download/$flannel_version/kube-flannel.yml}
# flannel calls `bridge`, which kind's nodes do not have.
bridge_plugin=${BRIDGE_PLUGIN:-/usr/lib/cni/bridge}
images=${SLUICE_IMAGES:-$root/target/images}
# How long what should take seconds may take.
patience=${PATIENCE:-300s}

passed=0
failed=()
results=()

say() { printf '%s\n' "$*"; }
fail_usage() { say "$1" >&2; exit 64; }

# A command as one could type it; long arguments are cut.
shown() {
    local word line=''
    for word in "$@"; do
        [ "${#word}" -le 2000 ] || word="${word:0:60}…(${#word} characters)"
        line+=" $(printf '%q' "$word")"
    done
    printf '%s' "${line# }"
}

# Runs a command, or only prints it.
run() {
    say "+ $(shown "$@")"
    [ -n "$dry_run" ] || "$@"
}

# Runs a command and gives what it prints; dry, prints the command (not to stdout) and gives $1 in its place.
look() {
    local instead=$1
    shift
    say "+ $(shown "$@")" >&2
    if [ -n "$dry_run" ]; then printf '%s' "$instead"; else "$@"; fi
}

# check NAME COMMAND...: one check of this cluster; a failure is counted and does not end the run.
check() {
    local name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        results+=("{\"cell\":\"kind-$cni\",\"check\":\"$name\",\"ok\":true}")
        [ -n "$dry_run" ] || say "✓ $cni: $name"
    else
        failed+=("$cni: $name")
        results+=("{\"cell\":\"kind-$cni\",\"check\":\"$name\",\"ok\":false}")
        say "✗ $cni: $name"
    fi
}

# Whether what is asked again and again comes true in time: until SECONDS COMMAND...
until_true() {
    local end=$((SECONDS + $1))
    shift
    while true; do
        if run "$@"; then return 0; fi
        [ -z "$dry_run" ] && [ "$SECONDS" -lt "$end" ] || return 1
        sleep 2
    done
}

versions_are_sound() {
    local name
    for name in istio_version calico_version cilium_version flannel_version; do
        [[ ${!name} =~ ^v?[0-9]+\.[0-9]+\.[0-9]+(-[0-9a-z.]+)?$ ]] || fail_usage "kind: $name is no version: \"${!name}\""
    done
    [[ $patience =~ ^[1-9][0-9]*s$ ]] || fail_usage "kind: PATIENCE is a number of seconds such as 300s, not \"$patience\""
}

everything_is_there() {
    local missing=() tool
    for tool in docker kind kubectl helm; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ "${#missing[@]}" -eq 0 ] || { say "kind: not found: ${missing[*]}" >&2; exit 1; }
    docker info >/dev/null 2>&1 || { say "kind: there is no Docker to talk to (docker info)" >&2; exit 1; }
    for tool in sluice app; do
        [ -f "$images/$tool.tar" ] || { say "kind: $images/$tool.tar is not there: make images" >&2; exit 1; }
    done
    for cni in "${cnis[@]}"; do
        [ "$cni" != flannel ] || [ -x "$bridge_plugin" ] || {
            say "kind: $bridge_plugin is not there: install containernetworking-plugins, or name it as BRIDGE_PLUGIN" >&2
            exit 1
        }
    done
}

finish_report() {
    if [ -n "$dry_run" ]; then
        say "kind: dry run: nothing was run, so nothing was proven"
        return
    fi
    mkdir -p "$root/target/reports"
    local joined
    joined=$(IFS=,; printf '%s' "${results[*]}")
    printf '{"name":"kind","ok":%s,"checks":[%s]}\n' "$([ "${#failed[@]}" -eq 0 ] && echo true || echo false)" "$joined" \
        >"$root/target/reports/kind.json"
    say "kind: $passed checks passed, ${#failed[@]} failed"
    [ "${#failed[@]}" -eq 0 ] || { printf '  %s\n' "${failed[@]}"; exit 1; }
}
