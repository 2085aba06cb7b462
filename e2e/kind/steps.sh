# shellcheck shell=bash
# One cluster from nothing to nothing: kind, the primary CNI, Istio, Sluice, the checks.

kubectl_() { run kubectl --context "kind-$cluster" "$@"; }
kubectl_look() { local instead=$1; shift; look "$instead" kubectl --context "kind-$cluster" "$@"; }
helm_() { run helm --kube-context "kind-$cluster" "$@"; }
apps() { kubectl_ -n sluice-test "$@"; }

one_cluster() {
    cni=$1
    cluster=sluice-$cni
    # shellcheck source=/dev/null
    . "$here/cni/$cni.sh"
    say "== $cni"
    cluster_config >"$work/$cluster.yaml"
    [ -z "$dry_run" ] || sed 's/^/    /' "$work/$cluster.yaml"
    run kind create cluster --name "$cluster" --config "$work/$cluster.yaml" ${kubernetes:+--image "$kubernetes"} --wait 0s
    nodes=$(look "$cluster-control-plane $cluster-worker" kind get nodes --name "$cluster" | tr '\n' ' ')
    cni_install
    kubectl_ wait --for=condition=Ready nodes --all "--timeout=$patience"
    run kind load image-archive --name "$cluster" "$images/sluice.tar"
    run kind load image-archive --name "$cluster" "$images/app.tar"
    checks_before
    istio_install
    before=$(directory_of_all)
    kubectl_ apply -f "$here/manifests/apps.yaml"
    apps wait --for=condition=Ready pod --all "--timeout=$patience"
    sluice_install
    checks_outside
    checks_in_the_mesh
    checks_after
    if [ -n "$keep" ]; then
        say "kind: the cluster $cluster stays; kind delete cluster --name $cluster"
    else
        run kind delete cluster --name "$cluster"
    fi
    cluster=''
}

cluster_config() {
    local default_cni=true
    [ "$cni" = kindnet ] || default_cni=false
    say "kind: Cluster"
    say "apiVersion: kind.x-k8s.io/v1alpha4"
    say "networking:"
    say "  ipFamily: $family"
    [ "$default_cni" = true ] || say "  disableDefaultCNI: true"
    cni_networking
    say "nodes:"
    say "  - role: control-plane"
    local worker
    for worker in $(seq "$workers"); do
        say "  - role: worker  # $worker"
    done
}

istio_install() {
    local chart
    for chart in base istiod ztunnel; do
        local values=()
        [ "$chart" != istiod ] || values=(--set profile=ambient --set cni.enabled=false)
        helm_ upgrade --install "istio-$chart" "$chart" --repo "$istio_charts" --version "$istio_version" \
            --namespace istio-system --create-namespace "${values[@]}"
    done
    kubectl_ -n istio-system rollout status deployment/istiod "--timeout=$patience"
}

sluice_install() {
    helm_ upgrade --install sluice "$root/install/chart" --namespace sluice-system --create-namespace \
        --set image=docker.io/sluice/sluice:dev
    kubectl_ -n sluice-system rollout status daemonset/sluice-agent "--timeout=$patience"
    # ztunnel is Ready only when an agent has taken its connection.
    kubectl_ -n istio-system rollout status daemonset/ztunnel "--timeout=$patience"
}

# The configuration directory of every node, by content.
directory_of_all() {
    local node
    for node in $nodes; do
        look "(dry: $node)" docker exec "$node" sh -c 'cd /etc/cni/net.d && find . -type f | sort | xargs -r sha256sum'
    done
}

# The doctor on every node, as docs/doctor.md has it for nodes where nothing is installed. Prints the ids of all problems.
doctor_problems() {
    local node report
    look '' kind get kubeconfig --internal --name "$cluster" >"$work/kubeconfig" || return 1
    kubectl_ create namespace sluice-doctor >&2 || return 1
    for node in $nodes; do
        run docker cp "$work/kubeconfig" "$node:/tmp/doctor-kubeconfig" >&2 || return 1
        report=$(kubectl_look '' -n sluice-doctor debug "node/$node" --quiet --stdin --profile=sysadmin --image=docker.io/sluice/sluice:dev \
            --image-pull-policy=Never -- /usr/local/bin/sluicectl doctor --host-root /host --conf-dir /etc/cni/net.d \
            --kubeconfig /host/tmp/doctor-kubeconfig -o json </dev/null || true)
        [ -n "$dry_run" ] || [ -n "$report" ] || { say "  doctor: no report from $node" >&2; return 1; }
        printf '%s' "$report" | tr -d ' \n' | grep -o '"id":"[a-z0-9-]*","severity":"problem"' | cut -d '"' -f 4 || true
    done
    kubectl_ delete namespace sluice-doctor >&2
}
