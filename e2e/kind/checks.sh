# shellcheck shell=bash
# What is checked on each cluster, in order. A client is a pod that asks; a server says whom it saw.

# ask FROM TO EXPECT [ARGS...]: the pod FROM asks HOST:PORT, and the server must have seen it direct or proxied.
ask() {
    local from=$1 to=$2 expect=$3
    shift 3
    apps exec "$from" -- /usr/local/bin/sluice-app once --to "$to" --expect "$expect" --retry 30 "$@"
}

ip_of() { kubectl_look 10.244.1.9 -n sluice-test get pod "$1" -o 'jsonpath={.status.podIP}'; }
bracketed() { case $1 in *:*) printf '[%s]' "$1" ;; *) printf '%s' "$1" ;; esac; }

doctor_finds_what_it_should() {
    local found
    found=$(set -o pipefail; doctor_problems | sort -u | tr '\n' ' ') || return 1
    [ -n "$dry_run" ] || [ "$found" = "$1" ] || { say "  doctor: \"$found\", and not \"$1\""; return 1; }
}

checks_before() {
    check "doctor before the CNI is set up for a mesh" doctor_finds_what_it_should "$cni_problems"
    cni_prepare
    check "doctor finds no problem now" doctor_finds_what_it_should ""
}

# Before anything is labelled: all as if Sluice were not there.
checks_outside() {
    clean=$(netns_of server)
    check "outside the mesh: direct by name" ask client server:9000 direct
    check "outside the mesh: direct, headless" ask client server-headless:9000 direct
}

checks_in_the_mesh() {
    kubectl_ label namespace sluice-test istio.io/dataplane-mode=ambient --overwrite
    check "every pod is captured" captured
    local ip
    ip=$(bracketed "$(ip_of server)")
    check "outbound and inbound, by the service's address" ask client server:9000 proxied
    check "headless" ask client server-headless:9000 proxied
    check "by the pod's address" ask client "$ip:9000" proxied
    check "HTTP and DNS" apps exec client -- /usr/local/bin/sluice-app once --over http --to server:8080 --retry 30
    check "gRPC" apps exec client -- /usr/local/bin/sluice-app once --over grpc --to server:9002 --retry 30
    check "UDP passes by" ask client server:9001 direct --over udp
    check "a pod's own address" ask server "$ip:9000" direct
    check "loopback" ask server 127.0.0.1:9000 direct
    check "a large line" ask client server:9000 proxied --say "$(printf '%0100000d' 0)"
    kubectl_ apply -f "$here/manifests/strict.yaml"
    check "mTLS only: the mesh passes" ask client server:9000 proxied
    check "mTLS only: plaintext from outside is refused" ask_outside_in_vain "$ip:9000"
    check "mTLS only: the kubelet's probes pass, and nothing was restarted" probes_pass
    kubectl_ -n sluice-system delete pod -l app.kubernetes.io/name=sluice-agent --wait=false
    check "captured pods stay so while the agent restarts" ask client server:9000 proxied
    kubectl_ -n sluice-system rollout status daemonset/sluice-agent "--timeout=$patience"
    check "a new pod is captured before its first packet" new_pod
}

checks_after() {
    kubectl_ delete -f "$here/manifests/strict.yaml"
    kubectl_ label namespace sluice-test istio.io/dataplane-mode-
    check "direct again" until_true 120 kubectl --context "kind-$cluster" -n sluice-test exec client -- \
        /usr/local/bin/sluice-app once --to server:9000 --expect direct
    check "its namespace is as it was" netns_is_clean
    helm_ uninstall sluice --namespace sluice-system --wait "--timeout=$patience"
    check "every configuration directory is as it was" directories_are_as_they_were
}

captured() {
    local pod
    for pod in client server; do
        until_true 120 sh -c \
            "test \"\$(kubectl --context kind-$cluster -n sluice-test get pod $pod -o \
            'jsonpath={.metadata.annotations.ambient\\.istio\\.io/redirection}')\" = enabled" || return 1
    done
}

ask_outside_in_vain() {
    local words=(-n sluice-outside exec client -- /usr/local/bin/sluice-app once --to "$1" --patience 5)
    [ -z "$dry_run" ] || { kubectl_ "${words[@]}"; return; }
    ! kubectl_ "${words[@]}"
}

# Longer than any probe's threshold: three failures, each second.
probes_pass() {
    run sleep 15
    local restarts
    apps wait --for=condition=Ready pod/server --timeout=1s || return 1
    restarts=$(kubectl_look 0 -n sluice-test get pod server -o 'jsonpath={.status.containerStatuses[0].restartCount}')
    [ "$restarts" = 0 ]
}

new_pod() {
    apps run late --image=docker.io/sluice/app:dev --image-pull-policy=Never --restart=Never --command -- \
        /usr/local/bin/sluice-app once --to server:9000 --expect proxied || return 1
    apps wait --for=jsonpath='{.status.phase}'=Succeeded pod/late "--timeout=$patience"
    local outcome=$?
    apps delete pod late --now
    return "$outcome"
}

# Rules, policy rules and routes of a pod's network namespace.
netns_of() {
    local node
    node=$(kubectl_look "$cluster-worker" -n sluice-test get pod "$1" -o 'jsonpath={.spec.nodeName}')
    # shellcheck disable=SC2016
    look '(dry)' docker exec "$node" sh -c \
        'path=$(crictl inspectp "$(crictl pods --namespace sluice-test --name "^'"$1"'\$" -q | head -n 1)" |
                grep -o "/var/run/netns/[^\"]*" | head -n 1) && [ -n "$path" ] &&
         nsenter --net="$path" sh -c "nft list ruleset; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all"'
}

netns_is_clean() {
    local now
    now=$(netns_of server) && [ "$now" = "$clean" ]
}

directories_are_as_they_were() {
    [ "$(directory_of_all)" = "$before" ]
}
