# shellcheck shell=bash
# Cilium by its chart: first as it comes, which takes everybody else out of the chain, then as it has to be for a mesh.
cni_problems='cilium-socket-lb cni-exclusive '
cni_networking() { say '  kubeProxyMode: none'; }
cilium() {
    local v4=true v6=false
    case $family in ipv6) v4=false v6=true ;; dual) v6=true ;; esac
    helm_ upgrade --install cilium cilium --repo "$cilium_charts" --version "$cilium_version" --namespace kube-system \
        --set ipam.mode=kubernetes --set kubeProxyReplacement=true --set "ipv4.enabled=$v4" --set "ipv6.enabled=$v6" \
        --set "k8sServiceHost=$cluster-control-plane" --set k8sServicePort=6443 "$@"
    kubectl_ -n kube-system rollout status daemonset/cilium "--timeout=$patience"
}
cni_install() { cilium; }
cni_prepare() {
    cilium --set cni.exclusive=false --set socketLB.hostNamespaceOnly=true
    kubectl_ -n kube-system rollout restart daemonset/cilium
    kubectl_ -n kube-system rollout status daemonset/cilium "--timeout=$patience"
}
